"""Explanations on disk: back as they went, and damage is told."""

import dataclasses
import json
import pathlib

import jax
import numpy as np
import pytest

from apex_jax import archive, audio, data, disentangle, explanation, schemes

FRONT_END = audio.FrontEnd(sample_rate=8000, clip_s=0.5, n_fft=256, hop_length=128)
ROWS, FRAMES = 24, 32


def area(row):
    box = schemes.Box(rows=(float(row), row + 8.0), frames=(0.0, float(FRAMES)))
    return explanation.Area(
        box=box, start_s=0.0, end_s=0.5, low_hz=100.5, high_hz=200.0
    )


def prototype(rng, label):
    return explanation.Prototype(
        clip=data.Clip(path=pathlib.Path("wavs") / "é one.wav", label=label),
        class_name="low, high",
        activation=float(rng.normal()),
        purity=0.25,
        location=(1, schemes.ALL),
        areas=(area(8),),
        spectrogram=rng.normal(size=(ROWS, FRAMES)).astype(np.float32),
        heatmap=rng.uniform(size=(ROWS, FRAMES)).astype(np.float32),
    )


@pytest.fixture
def result(rng):
    channel = explanation.Channel(
        index=7,
        contribution=-0.5,
        location=(2, schemes.ALL),
        areas=(area(16), area(0)),
        heatmap=rng.uniform(size=(ROWS, FRAMES)).astype(np.float32),
        prototypes=(prototype(rng, 1), prototype(rng, (0, 2))),
    )
    audit = disentangle.Audit(
        num_clips=3,
        max_abs_logit_error=1e-6,
        mean_abs_logit_error=1e-7,
        changed_predictions=0,
        condition_number=np.inf,
        logit_spread=1.0,
        largest_logit=2.0,
        tolerance=1e-3,
    )
    return explanation.Explanation(
        source="a 'quoted' <name>.wav",
        offset_s=0.5,
        sound_s=0.25,
        waveform=rng.normal(size=11).astype(np.float32),
        sample_rate=44100,
        class_names=("low", "high", "none"),
        activation="sigmoid",
        logits=rng.normal(size=3).astype(np.float32),
        predicted=1,
        target=2,
        scheme="frequency",
        front_end=FRONT_END,
        spectrogram=rng.normal(size=(ROWS, FRAMES)).astype(np.float32),
        channels=(channel, dataclasses.replace(channel, index=None, prototypes=())),
        contributions=rng.normal(size=12).astype(np.float32),
        evidence_share=0.125,
        provenance=explanation.Provenance(
            audit=audit, purity=(0.1, 0.4), settings=(("a", "b"),), versions=()
        ),
    )


def assert_identical(one, other):
    assert type(one) is type(other)
    if dataclasses.is_dataclass(one):
        for field in dataclasses.fields(one):
            assert_identical(getattr(one, field.name), getattr(other, field.name))
    elif isinstance(one, tuple):
        assert len(one) == len(other)
        for mine, theirs in zip(one, other, strict=True):
            assert_identical(mine, theirs)
    elif isinstance(one, np.ndarray):
        assert one.dtype == other.dtype
        np.testing.assert_array_equal(one, other)
    else:
        assert one == other


def test_there_and_back(result, tmp_path):
    folder = archive.save(tmp_path / "new" / "folder", result)
    assert sorted(p.name for p in folder.iterdir()) == [archive.JSON, archive.NPZ]
    assert_identical(archive.load(folder), result)


def test_without_what_is_optional(result, tmp_path):
    """An explanation of a feature map: no sound, no spectrogram, no front end."""
    bare = explanation.Area(box=area(0).box)
    channel = dataclasses.replace(result.channels[1], areas=(bare,))
    few = dataclasses.replace(
        result,
        source="feature map",
        sound_s=None,
        waveform=None,
        sample_rate=None,
        front_end=None,
        spectrogram=None,
        channels=(channel,),
        provenance=explanation.Provenance(),
    )
    archive.save(tmp_path, few)
    assert_identical(archive.load(tmp_path), few)


def test_what_was_loaded_cannot_be_changed(result, tmp_path):
    archive.save(tmp_path, result)
    back = archive.load(tmp_path)
    with pytest.raises(ValueError, match="read-only"):
        back.logits[0] = 0
    with pytest.raises(dataclasses.FrozenInstanceError):
        back.target = 0


def test_other_programs_can_read_the_numbers(result, tmp_path):
    archive.save(tmp_path, result)
    content = json.loads((tmp_path / archive.JSON).read_text(encoding="utf-8"))
    told = content["explanation"]
    assert told["class_names"] == ["low", "high", "none"]
    assert told["channels"][0]["areas"][0]["low_hz"] == 100.5
    with np.load(tmp_path / archive.NPZ, allow_pickle=False) as arrays:
        name = told["channels"][0]["heatmap"]["array"]
        np.testing.assert_array_equal(arrays[name], result.channels[0].heatmap)


def test_overwriting_takes_leave(result, tmp_path):
    archive.save(tmp_path, result)
    other = dataclasses.replace(result, target=0)
    with pytest.raises(ValueError, match="exists; overwrite=True"):
        archive.save(tmp_path, other)
    archive.save(tmp_path, other, overwrite=True)
    assert archive.load(tmp_path).target == 0
    assert len(list(tmp_path.iterdir())) == 2


def test_nothing_there(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"no explanation\.json"):
        archive.load(tmp_path / "nowhere")


@pytest.mark.parametrize(
    "harm",
    [
        lambda folder: (folder / archive.NPZ).unlink(),
        lambda folder: (folder / archive.NPZ).write_bytes(b"PK"),
        lambda folder: (folder / archive.JSON).write_text("{"),
        lambda folder: (folder / archive.JSON).write_text("[1]"),
        lambda folder: changed(folder, lambda told: told.pop("logits")),
        lambda folder: changed(folder, lambda told: told.update(spy="here")),
        lambda folder: changed(folder, lambda told: told.update(logits={"array": "x"})),
        lambda folder: flipped(folder / archive.NPZ),
    ],
)
def test_damage_is_told(harm, result, tmp_path):
    archive.save(tmp_path, result)
    harm(tmp_path)
    with pytest.raises(ValueError, match="damaged"):
        archive.load(tmp_path)


def test_another_version(result, tmp_path, monkeypatch):
    archive.save(tmp_path, result)
    monkeypatch.setattr(archive, "VERSION", 3)
    with pytest.raises(ValueError, match=r"version 2; this reads.*version 3"):
        archive.load(tmp_path)


def test_the_first_version_had_no_digest(result, tmp_path):
    archive.save(tmp_path, result)
    content = json.loads((tmp_path / archive.JSON).read_text())
    del content["sha256"]
    (tmp_path / archive.JSON).write_text(json.dumps(content))
    with pytest.raises(ValueError, match="sha256"):
        archive.load(tmp_path)
    content["version"] = 1
    (tmp_path / archive.JSON).write_text(json.dumps(content))
    assert_identical(archive.load(tmp_path), result)


def test_any_changed_number_or_name_is_noticed(result, tmp_path):
    """Also where both files are whole in themselves."""
    archive.save(tmp_path, result)
    text = (tmp_path / archive.JSON).read_text()
    for before, after in (
        ('"high"', '"hi9h"'),
        ('"contribution": -0.5', '"contribution": -0.4'),
        ('"target": 2', '"target": 0'),
    ):
        assert before in text
        (tmp_path / archive.JSON).write_text(text.replace(before, after, 1))
        with pytest.raises(ValueError, match="does not hold what was written"):
            archive.load(tmp_path)


def test_a_pair_of_two_explanations_is_none(result, tmp_path):
    """As a run leaves it that is killed while it replaces one by the other."""
    other = dataclasses.replace(result, logits=result.logits + 1)
    archive.save(tmp_path / "a", result)
    archive.save(tmp_path / "b", other)
    (tmp_path / "a" / archive.NPZ).replace(tmp_path / "b" / archive.NPZ)
    with pytest.raises(ValueError, match="does not hold what was written"):
        archive.load(tmp_path / "b")


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("source", 3),
        ("source", None),
        ("offset_s", "0"),
        ("offset_s", True),
        ("predicted", 1.5),
        ("predicted", True),
        ("sample_rate", "44100"),
        ("class_names", "low"),
        ("class_names", ["low", 3]),
        ("logits", [0.0, 1.0]),
        ("logits", None),
        ("logits", {"float": "nan"}),
        ("evidence_share", {"array": "logits"}),
        ("scheme", "diagonal"),
        ("channels", {"index": 3}),
        ("channels", [{"array": "logits"}]),
        ("provenance", []),
        ("provenance", {"purity": [0.1]}),
        ("front_end", {"sample_rate": 8000, "clip_s": 1, "mel_norm": "loud"}),
    ],
)
def test_values_of_another_type_are_told(field, value, result, tmp_path):
    """Of a file that somebody else wrote: a digest is no help there."""
    archive.save(tmp_path, result)
    changed(tmp_path, lambda told: told.update({field: value}))
    content = json.loads((tmp_path / archive.JSON).read_text())
    content["version"] = 1
    (tmp_path / archive.JSON).write_text(json.dumps(content))
    with pytest.raises(ValueError, match=rf"damaged: .*(explanation\.{field}|zip\()"):
        archive.load(tmp_path)


def test_no_objects(result, tmp_path):
    """An array of objects would be a pickle: neither written nor read."""
    objects = dataclasses.replace(result, logits=np.array([{}, []], dtype=object))
    with pytest.raises(ValueError, match="allow_pickle=False"):
        archive.save(tmp_path / "a", objects)
    assert not (tmp_path / "a" / archive.JSON).exists()


def changed(folder, change):
    content = json.loads((folder / archive.JSON).read_text())
    change(content["explanation"])
    (folder / archive.JSON).write_text(json.dumps(content))


def flipped(file):
    content = bytearray(file.read_bytes())
    content[len(content) // 3] ^= 0xFF
    file.write_bytes(bytes(content))


# --- the type itself


def test_an_explanation_is_a_pytree_of_its_numbers(result):
    leaves, structure = jax.tree.flatten(result)
    assert_identical(jax.tree.unflatten(structure, leaves), result)
    hash(structure)
    assert all(isinstance(leaf, np.ndarray | float) for leaf in leaves)
    doubled = jax.tree.map(lambda leaf: 2 * leaf, result)
    np.testing.assert_array_equal(doubled.logits, 2 * result.logits)
    assert doubled.channels[0].prototypes[0].purity == 0.5
    assert doubled.channels[0].areas == result.channels[0].areas


def test_probabilities(result):
    np.testing.assert_allclose(
        result.probabilities, 1 / (1 + np.exp(-result.logits)), rtol=1e-6
    )
    one = dataclasses.replace(result, activation="softmax").probabilities
    np.testing.assert_allclose(one, np.exp(result.logits) / np.exp(result.logits).sum())
    assert result.class_name == "none"


def test_areas_in_words():
    assert str(area(8)) == "0.00-0.50 s, 100-200 Hz"
    bare = explanation.Area(box=area(8).box)
    assert str(bare) == "frames 0-32, rows 8-16"
