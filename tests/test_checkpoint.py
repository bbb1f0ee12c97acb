"""Checkpoints: back as they went, on any device count, and never half there."""

import gc
import json
import shutil

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from apex_jax import checkpoint
from apex_jax.models import convnext

CONFIG = convnext.ConvNeXtConfig(
    depths=(1, 2), dims=(4, 6), num_classes=3, head_norm_epsilon=1e-12
)
NAMES = ["oak", "ash", "elm"]


@pytest.fixture
def model(rng):
    arrays = convnext.named_arrays(convnext.abstract(CONFIG))
    return convnext.from_named_arrays(
        CONFIG, {name: rng.normal(size=array.shape) for name, array in arrays.items()}
    )


@pytest.fixture
def tree(rng):
    return {
        "weight": rng.normal(size=(3, 5)).astype(np.float32),
        "nested": {"count": np.arange(4), "half": jnp.ones(2, jnp.bfloat16)},
    }


def test_tree_and_metadata_come_back(tmp_path, tree):
    metadata = {"floats": [1e-12, 0.1], "nothing": None, "word": "größer", "deep": {}}
    checkpoint.save(tmp_path / "it", tree, metadata, kind="thing")
    back, read = checkpoint.load(tmp_path / "it", kind="thing")
    chex.assert_trees_all_equal(back, tree)
    chex.assert_trees_all_equal_dtypes(back, tree)
    assert all(isinstance(leaf, np.ndarray) for leaf in jax.tree.leaves(back))
    assert read == metadata


def test_relative_path(tmp_path, tree, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert checkpoint.save("here", tree, {}, kind="thing") == tmp_path / "here"
    chex.assert_trees_all_equal(checkpoint.load("here", kind="thing")[0], tree)


def test_sharded_arrays_load_without_their_devices(tmp_path):
    mesh = jax.make_mesh((8,), ("data",), axis_types=(jax.sharding.AxisType.Auto,))
    sharding = jax.NamedSharding(mesh, jax.P("data"))
    rows = jax.device_put(jnp.arange(16.0).reshape(8, 2), sharding)
    checkpoint.save(tmp_path / "it", {"rows": rows}, {}, kind="thing")
    back, _ = checkpoint.load(tmp_path / "it", kind="thing")
    assert isinstance(back["rows"], np.ndarray)
    np.testing.assert_array_equal(back["rows"], rows)


def test_overwrite(tmp_path, tree):
    path = tmp_path / "it"
    checkpoint.save(path, tree, {"round": 1}, kind="thing")
    with pytest.raises(ValueError, match="--overwrite"):
        checkpoint.save(path, tree, {"round": 2}, kind="thing")
    assert checkpoint.load(path, kind="thing")[1] == {"round": 1}
    checkpoint.save(path, {"other": np.ones(3)}, {}, kind="thing", overwrite=True)
    assert list(checkpoint.load(path, kind="thing")[0]) == ["other"]
    assert [p.name for p in tmp_path.iterdir()] == ["it"]
    checkpoint.save(tmp_path / "new", tree, {}, kind="thing", overwrite=True)
    checkpoint.load(tmp_path / "new", kind="thing")


def test_overwrite_spares_what_is_no_checkpoint(tmp_path, tree):
    (tmp_path / "thesis.tex").write_text("years of work")
    with pytest.raises(ValueError, match="no apex_jax checkpoint"):
        checkpoint.save(tmp_path, tree, {}, kind="thing", overwrite=True)
    assert (tmp_path / "thesis.tex").read_text() == "years of work"


def test_failed_overwrite_keeps_the_old(tmp_path, tree):
    checkpoint.save(tmp_path / "it", tree, {}, kind="thing")
    with pytest.raises(Exception, match=r"."):
        checkpoint.save(
            tmp_path / "it", {"bad": object()}, {}, kind="thing", overwrite=True
        )
    chex.assert_trees_all_equal(checkpoint.load(tmp_path / "it", kind="thing")[0], tree)


def test_what_is_no_checkpoint(tmp_path, tree, monkeypatch):
    with pytest.raises(FileNotFoundError, match="no checkpoint at"):
        checkpoint.load(tmp_path / "nowhere", kind="thing")
    with pytest.raises(
        FileNotFoundError, match=r"no checkpoint at .*~nobody-of-this-name"
    ):
        checkpoint.load("~nobody-of-this-name/it", kind="thing")
    (tmp_path / "folder").mkdir()
    (tmp_path / "file").write_text("words")
    for name in ("folder", "file"):
        with pytest.raises(ValueError, match="no apex_jax checkpoint"):
            checkpoint.load(tmp_path / name, kind="thing")
    path = checkpoint.save(tmp_path / "it", tree, {}, kind="thing")
    with pytest.raises(ValueError, match=r"kind 'thing'.*needs 'classifier'"):
        checkpoint.load_classifier(path)
    monkeypatch.setattr(checkpoint, "VERSION", 0)
    with pytest.raises(ValueError, match="format version 2"):
        checkpoint.load(path, kind="thing")
    monkeypatch.setattr(checkpoint, "FORMAT", "other_package")
    with pytest.raises(ValueError, match="no other_package checkpoint"):
        checkpoint.load(path, kind="thing")


# Orbax leaves the failed reads of the other arrays unawaited.
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_damaged_checkpoint(tmp_path, tree):
    path = checkpoint.save(tmp_path / "it", tree, {}, kind="thing")
    for data in path.rglob("d"):
        shutil.rmtree(data)
    with pytest.raises(ValueError, match="damaged checkpoint"):
        checkpoint.load(path, kind="thing")
    # Now, while they are ignored, and not in whatever test collects garbage next.
    gc.collect()


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_any_flipped_byte_is_noticed(tmp_path, tree):
    """Never a wrong number or name: an error, or a byte that nobody reads."""
    metadata = {"names": ["real", "fake"], "mean": -4.5}
    path = checkpoint.save(tmp_path / "it", tree, metadata, kind="thing")
    whole = checkpoint.load(path, kind="thing")
    noticed = 0
    for file in sorted(f for f in path.rglob("*") if f.is_file()):
        content = file.read_bytes()
        for place in range(0, len(content), max(1, len(content) // 12)):
            harmed = bytearray(content)
            harmed[place] ^= 1
            file.write_bytes(harmed)
            try:
                found = checkpoint.load(path, kind="thing")
            except ValueError:
                noticed += 1
                continue
            jax.tree.map(np.testing.assert_array_equal, found[0], whole[0])
            assert found[1] == whole[1]
        file.write_bytes(content)
    assert noticed > 20
    gc.collect()


def described(path, change):
    """Changes what a checkpoint says of itself, as text, where Orbax keeps it."""
    changed = 0
    for file in [f for f in path.rglob("*") if f.is_file()]:
        try:
            content = json.loads(file.read_bytes())
            description = content["custom_metadata"]["format"]
        except (ValueError, KeyError, TypeError):
            continue
        change(description)
        file.write_text(json.dumps(content))
        changed += 1
    assert changed == 1


def test_earlier_checkpoints_had_no_digest(tmp_path, tree, monkeypatch):
    monkeypatch.setattr(checkpoint, "VERSION", 1)
    path = checkpoint.save(tmp_path / "it", tree, {"a": 1}, kind="thing")
    monkeypatch.undo()
    assert checkpoint.load(path, kind="thing")[1] == {"a": 1}
    described(path, lambda told: told.pop("sha256"))
    assert checkpoint.load(path, kind="thing")[1] == {"a": 1}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda told: told.update(version="1"), "its format version is '1'"),
        (lambda told: told.update(version=True), "its format version is True"),
        (lambda told: told.update(version=0), "its format version is 0"),
        (lambda told: told.update(version=None), "its format version is None"),
        (lambda told: told.pop("version"), "is no apex_jax checkpoint"),
        (lambda told: told.pop("name"), "is no apex_jax checkpoint"),
        (lambda told: told.pop("kind"), "its description has no kind"),
        (lambda told: told.update(kind=["thing"]), "its description has no kind"),
        (lambda told: told.pop("sha256"), "its description has no sha256"),
        (lambda told: told.update(sha256=3), "its description has no sha256"),
        (lambda told: told.update(sha256=""), "does not hold what was written"),
        (lambda told: told.update(version=3), "format version 3.*upgrade"),
    ],
)
def test_a_description_that_was_changed_is_named(change, message, tmp_path, tree):
    path = checkpoint.save(tmp_path / "it", tree, {}, kind="thing")
    described(path, change)
    with pytest.raises(ValueError, match=f"path .*it .*{message}"):
        checkpoint.load(path, kind="thing")


def test_classifier(tmp_path, model):
    front_end = {"sample_rate": 32_000, "mean": -13.369}
    checkpoint.save_classifier(
        tmp_path / "it",
        model,
        class_names=NAMES,
        front_end=front_end,
        extra={"epochs": 3},
    )
    back, metadata = checkpoint.load_classifier(tmp_path / "it")
    chex.assert_trees_all_equal(back, model)
    assert back.config == CONFIG
    assert hash(back.config) == hash(CONFIG)
    assert metadata["class_names"] == NAMES
    assert metadata["front_end"] == front_end
    assert metadata["extra"] == {"epochs": 3}


def test_classifier_needs_a_name_a_class(tmp_path, model):
    with pytest.raises(ValueError, match="3 classes, got 2"):
        checkpoint.save_classifier(tmp_path / "it", model, class_names=NAMES[:2])
    assert not (tmp_path / "it").exists()
