"""ESC-10 in miniature: folds, tables against plain NumPy, nothing done twice."""

import functools
import json

import numpy as np
import pytest
import soundfile
import test_flow

from apex_jax import data, optimize, settings, train
from apex_jax.models import convnext
from experiments import methods
from experiments.esc10 import options, run, tables

CLASSES = ("high", "low")
RATE = 16_000


@pytest.fixture(scope="module")
def sounds(tmp_path_factory):
    """Two classes in three folds, two takes of each source."""
    root = tmp_path_factory.mktemp("sounds")
    rng = np.random.default_rng(0)
    for name, hertz in zip(CLASSES, (3000, 500), strict=True):
        (root / name).mkdir()
        for fold in (1, 2, 3):
            for source in range(4):
                for take in "AB":
                    at = np.arange(RATE // 2) / RATE
                    wave = 0.3 * np.sin(2 * np.pi * hertz * at)
                    wave += 0.05 * rng.normal(size=len(at))
                    soundfile.write(
                        root / name / f"{fold}-{100 + source}-{take}.wav", wave, RATE
                    )
    return root


def config(sounds, output, **changes):
    return options.Config(
        **{
            "data_dir": sounds,
            "output_dir": output,
            "folds": (1, 3),
            "mask_draws": 3,
            "examples": 1,
            "batch_size": 8,
            "front_end": test_flow.FRONT_END,
            "train": train.Config(
                epochs=3,
                batch_size=8,
                learning_rate=1e-2,
                augment=settings.Augmentation(mix=0.5, roll=1.0),
            ),
            "audioprotopnet": settings.PrototypeTraining(epochs=2, batch_size=8),
            "optimise": optimize.Config(
                epochs=2, prototypes_start=4, prototypes_end=2, batch_size=16
            ),
        }
        | changes
    )


@pytest.fixture(scope="module")
def done(sounds, tmp_path_factory):
    output = tmp_path_factory.mktemp("runs") / "esc10"
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(convnext._SIZES, "atto", ((1,), (12,)))
        patch.setattr(
            train.Config, "optimiser", functools.cache(train.Config.optimiser)
        )
        yield run.main(config(sounds, output)), output


def test_splits_keep_sources_together_and_classes_even(sounds):
    clips, _ = data.class_folder(sounds)
    clips = [run.of_source(clip) for clip in clips]
    held = [clip for clip in clips if run.fold_of(clip) == 2]
    rest = [clip for clip in clips if run.fold_of(clip) != 2]
    splits = run.split(rest, held, 2, seed=0)
    assert splits.test == held
    assert len(splits.train) + len(splits.validation) == 32
    groups = [{clip.group for clip in part} for part in splits]
    assert not groups[0] & groups[1]
    assert len(splits.validation) == 4
    assert {clip.label for clip in splits.validation} == {0, 1}


def test_names_without_a_fold_are_refused(tmp_path):
    with pytest.raises(ValueError, match="does not begin with a fold"):
        run.fold_of(data.Clip(path=tmp_path / "dog.ogg", label=0))


@pytest.mark.slow
def test_every_number_is_that_of_the_folds(done):
    results, output = done
    folds = [
        json.loads((output / f"fold{n}" / "results.json").read_text()) for n in (1, 3)
    ]
    for method in methods.TITLES:
        own = [fold["scores"][method]["accuracy"] for fold in folds]
        found = results["scores"][method]["accuracy"]
        assert found["mean"] == pytest.approx(np.mean(own))
        assert found["spread"] == pytest.approx(np.std(own, ddof=1))
    for fold in folds:
        for of in fold["schemes"].values():
            assert of["invariance"]["changed_predictions"] == 0
        assert fold["scores"]["apex"] == pytest.approx(
            fold["scores"]["classifier"], abs=1e-6
        )
        assert fold["clips"]["test"] == 16
    # Masked accuracies from what was kept, without the code that made them.
    arrays = [np.load(output / f"fold{n}" / "masked-time.npz") for n in (1, 3)]
    found = results["masking"]["time"]
    for name in ("none", "apex"):
        own = [np.mean(a[name].argmax(axis=1) == a["target"]) for a in arrays]
        assert found[name]["mean"] == pytest.approx(np.mean(own))
    own = [np.mean(a["random"].argmax(axis=2) == a["target"]) for a in arrays]
    assert found["random"]["mean"] == pytest.approx(np.mean(own))
    assert 0 < found["p_value"] <= 1
    counts = [np.sum(a["random"].argmax(axis=2) == a["target"], axis=1) for a in arrays]
    # Of each draw over the 32 clips of both folds.
    assert found["random_draws"] == pytest.approx(np.std(sum(counts) / 32, ddof=1))
    shown = tables.terminal(results)
    assert f"±{found['random_draws']:.3f}" in shown
    assert max(map(len, shown.splitlines())) <= 80
    for ending in ("csv", "md", "tex"):
        assert (
            f"{found['apex']['mean']:.3f}" in (output / f"esc10.{ending}").read_text()
        )
    assert len(list((output / "fold1" / "explanations").glob("*.png"))) == 1


@pytest.mark.slow
def test_a_finished_fold_is_not_done_again(done, sounds, monkeypatch, capsys):
    results, output = done
    (output / "results.json").unlink()
    (output / "fold3" / "results.json").unlink()

    def never(*_, **__):
        raise AssertionError("trained again")

    monkeypatch.setattr(train, "run", never)
    again = run.main(config(sounds, output))
    said = capsys.readouterr().out
    assert said.count("finished before") == 1
    assert said.count("trained before") == 2
    for method in methods.TITLES:
        assert again["scores"][method]["accuracy"] == pytest.approx(
            results["scores"][method]["accuracy"]
        )
    with pytest.raises(ValueError, match="finished run of other settings"):
        run.main(config(sounds, output, seed=3))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"folds": (1, 7)}, "is of fold 7; there are 1, 2, 3"),
        ({"folds": (1, 1)}, "must be different"),
        ({"folds": ()}, "must be different"),
        ({"examples": -1}, "--examples must be at least 0"),
        ({"mask_draws": 0}, "--mask-draws must be at least 1"),
    ],
)
def test_refused(changes, message, sounds, tmp_path):
    with pytest.raises(ValueError, match=message):
        run.main(config(sounds, tmp_path / "out", **changes))


def test_masked_by_hand():
    """Two folds of two clips, two draws: what is counted is seen."""
    right, wrong = [1.0, 0.0], [0.0, 1.0]
    fold = {
        "target": np.zeros(2, int),
        "none": np.array([right, right]),
        "apex": np.array([wrong, wrong]),
        "random": np.array([[right, right], [right, wrong]]),
    }
    other = {**fold, "apex": np.array([right, right])}
    found = tables.masked([fold, other])
    assert found["none"] == {"mean": 1.0, "spread": 0.0}
    assert found["apex"] == {"mean": 0.5, "spread": pytest.approx(0.5**0.5)}
    assert found["random"] == {"mean": 0.75, "spread": 0.0}
    assert found["random_draws"] == pytest.approx(0.125**0.5)
    scores = {"accuracy": 0.5, "cmap": 0.25, "auroc": 0.75}
    all_three = dict.fromkeys(methods.TITLES, scores)
    better = {m: {k: v + 0.2 for k, v in scores.items()} for m in methods.TITLES}
    table = tables.over_folds([all_three, better])
    assert table["apex"]["auroc"]["mean"] == pytest.approx(0.85)
    assert table["apex"]["auroc"]["spread"] == pytest.approx(0.02**0.5)
