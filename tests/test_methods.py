"""What the tables share, where a table in miniature does not show it: the push."""

import json

import numpy as np
import pytest
import test_cache
import test_convnext

from apex_jax import audioprotopnet, data, objective, settings, train
from apex_jax.commands import clips as clips_of
from apex_jax.models import convnext
from experiments import methods, options

FRONT_END, NAMES = test_cache.FRONT_END, test_cache.NAMES
BACKBONE = convnext.ConvNeXtConfig(depths=(1,), dims=(6,), num_classes=3)


@pytest.fixture(scope="module")
def problem(tmp_path_factory):
    clips = test_cache.write_clips(tmp_path_factory.mktemp("tones"), num_clips=15)
    return methods.Problem(
        splits=data.Splits(train=clips[:10], validation=clips[10:], test=[]),
        class_names=NAMES,
        front_end=FRONT_END,
        mesh=test_cache.mesh_of(1),
        skip_log=data.SkipLog(strict=True),
    )


def config(**changes):
    return options.Reproduction(
        batch_size=8,
        audioprotopnet=settings.PrototypeTraining(epochs=1, batch_size=8),
        **changes,
    )


@pytest.mark.slow
def test_prototypes_are_pushed_and_the_effect_is_told(
    problem, tmp_path, monkeypatch, capsys
):
    backbone = test_convnext.lively(BACKBONE)
    folder = tmp_path / "audioprotopnet"
    plain, nothing = methods.train_prototypes(folder, problem, config(), backbone)
    assert nothing is None

    def never(*_, **__):
        raise AssertionError("done again")

    # The network before the push is the one that is there already.
    monkeypatch.setattr(train, "run", never)
    asked = config(push_prototypes=True)
    pushed, effect = methods.train_prototypes(folder, problem, asked, backbone)
    said = " ".join(capsys.readouterr().out.split())
    assert "15 of 15 prototypes are now places of" in said
    assert f"loss {effect['validation_before']['loss']:.4g} before" in said

    train_clips, validation = problem.splits.train, problem.splits.validation
    before, after = (
        audioprotopnet.nearest(model, train_clips, FRONT_END, num=1)
        for model in (plain, pushed)
    )
    assert after.similarity.min() > 0.98  # each is a place of a clip
    assert before.similarity.min() < 0.98
    assert effect["similarity_before"] == pytest.approx(before.similarity.mean())
    assert effect["clips"] == len(set(before.index.ravel().tolist()))
    # Loss and accuracy once more, clip by clip.
    target = objective.targets(validation, 3)
    waves = np.stack([test_cache.waveform_of(clip) for clip in validation])
    for model, found in (
        (plain, effect["validation_before"]),
        (pushed, effect["validation_after"]),
    ):
        logits = np.asarray(model(methods.audio.spectrogram(FRONT_END, waves)))
        p = 1 / (1 + np.exp(-np.float64(logits)))
        q = np.minimum(1 - p + 0.05, 1)
        each = np.where(target > 0, (1 - p) * np.log(p), (1 - q) ** 4 * np.log(q))
        assert found["loss"] == pytest.approx(-each.mean(), rel=1e-4)
        hits = target[np.arange(len(target)), logits.argmax(axis=1)]
        assert found["top1_accuracy"] == pytest.approx(hits.mean())

    # What `apex-jax figure` looks in for what a prototype stands for.
    for name in ("audioprotopnet", "audioprotopnet-pushed"):
        log = data.SkipLog(strict=True)
        listed = clips_of.trained_on(tmp_path / name, NAMES[::-1], log)
        assert [(c.path, c.offset_s, c.group) for c in listed] == [
            (c.path, c.offset_s, c.group) for c in train_clips
        ]
        assert [2 - c.label for c in listed] == [c.label for c in train_clips]
    assert clips_of.trained_on(tmp_path / "other", NAMES, log) is None

    kept = json.loads((tmp_path / methods.PUSH).read_text())
    assert kept["effect"] == effect
    monkeypatch.setattr(audioprotopnet, "push", never)
    again, same = methods.train_prototypes(folder, problem, asked, backbone)
    assert same == effect
    np.testing.assert_array_equal(
        again.head.prototypes[...], pushed.head.prototypes[...]
    )
