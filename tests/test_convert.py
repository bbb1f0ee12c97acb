"""Key tables both ways, and one error for everything that does not fit."""

import ast
import dataclasses
import json
import math
import pathlib
import pickle
import subprocess
import sys

import chex
import ml_dtypes
import numpy as np
import pytest
import safetensors.numpy

from apex_jax import audio, checkpoint, convert, disentangle
from apex_jax.models import convnext, convnext_keys

DATA = pathlib.Path(__file__).parent / "data" / "convnext"
CONFIG = convnext.ConvNeXtConfig(
    depths=(1, 2, 1), dims=(4, 6, 5), num_classes=3, in_channels=3, patch_size=2
)
DIALECTS = ["transformers", "timm", "torchvision"]


@pytest.fixture
def model(rng):
    arrays = convnext.named_arrays(convnext.abstract(CONFIG))
    return convnext.from_named_arrays(
        CONFIG,
        {
            name: rng.normal(size=a.shape).astype(np.float32)
            for name, a in arrays.items()
        },
    )


@pytest.fixture
def state(model):
    return convnext_keys.to_state_dict(model, "timm")


def recorded(name):
    """A recorded list of keys: {key: shape}."""
    lines = (DATA / f"{name}.txt").read_text().splitlines()
    pairs = (line.split(" ", 1) for line in lines if not line.startswith("#"))
    return {key: tuple(ast.literal_eval(shape)) for key, shape in pairs}


# --- there and back


@pytest.mark.parametrize("pointwise", [False, True])
@pytest.mark.parametrize("dialect", DIALECTS)
def test_round_trip(model, dialect, pointwise):
    if pointwise and dialect != "timm":
        pytest.skip("only timm has 1x1 convolutions")
    theirs = convnext_keys.to_state_dict(model, dialect, pointwise=pointwise)
    back, found = convnext_keys.from_state_dict(theirs, head_norm_epsilon=1e-6)
    assert found == dialect
    chex.assert_trees_all_equal(back, model)
    assert convnext_keys.from_state_dict(theirs)[0].config.head_norm_epsilon == (
        1e-12 if dialect == "transformers" else 1e-6
    )


@pytest.mark.parametrize("dialect", DIALECTS)
def test_table_uses_every_key_once_and_fills_every_array(dialect):
    table = convnext_keys.key_table(CONFIG, dialect)
    assert len({row.key for row in table}) == len(table)
    assert len({(row.name, row.block) for row in table}) == len(table)
    arrays = convnext.named_arrays(convnext.abstract(CONFIG))
    assert {row.name for row in table} == set(arrays)
    for name, array in arrays.items():
        blocks = [row.block for row in table if row.name == name]
        assert blocks == ([None] if blocks == [None] else list(range(array.shape[0])))


@pytest.mark.parametrize(
    ("name", "dialect", "size"),
    [
        ("transformers_tiny", "transformers", "tiny"),
        ("timm_atto", "timm", "atto"),
        ("torchvision_tiny", "torchvision", "tiny"),
    ],
)
def test_published_networks(name, dialect, size):
    """The recorded keys and shapes of published networks, filled with zeros."""
    shapes = recorded(name)
    zeros = {key: np.broadcast_to(np.float32(0), s) for key, s in shapes.items()}
    model, found = convnext_keys.from_state_dict(zeros)
    assert found == dialect
    assert model.config.size == size
    assert model.config.num_classes == 1000
    assert model.config.in_channels == 3
    back = convnext_keys.to_state_dict(model, dialect, pointwise=name == "timm_atto")
    assert {key: array.shape for key, array in back.items()} == shapes


def test_layouts_by_hand(model):
    """One array of each layout, element by element."""
    ours = {n: np.asarray(a) for n, a in convnext.named_arrays(model).items()}
    timm = convnext_keys.to_state_dict(model, "timm", pointwise=True)
    vision = convnext_keys.to_state_dict(model, "torchvision")
    kernel = ours["stem.kernel"]
    assert kernel[1, 0, 2, 3] == timm["stem.0.weight"][3, 2, 1, 0]
    kernel = ours["stages.1.blocks.depthwise.kernel"]
    assert kernel[1, 6, 2, 5] == timm["stages.1.blocks.1.conv_dw.weight"][5, 0, 6, 2]
    kernel = ours["stages.1.blocks.expand.kernel"]
    assert kernel[1, 2, 20] == timm["stages.1.blocks.1.mlp.fc1.weight"][20, 2, 0, 0]
    assert kernel[1, 2, 20] == vision["features.3.1.block.3.weight"][20, 2]
    assert (
        ours["stages.1.blocks.scale"][1, 4]
        == vision["features.3.1.layer_scale"][4, 0, 0]
    )
    assert ours["stages.2.downsample.bias"][2] == vision["features.4.1.bias"][2]
    assert ours["head.kernel"][4, 1] == vision["classifier.2.weight"][1, 4]


def test_shared_prefix_is_dropped(model, state):
    wrapped = {f"module.{key}": array for key, array in state.items()}
    chex.assert_trees_all_equal(convnext_keys.from_state_dict(wrapped)[0], model)
    with pytest.raises(ValueError, match=r"unexpected: epoch$"):
        convnext_keys.from_state_dict({**wrapped, "epoch": np.ones(1)})


@pytest.mark.parametrize("dtype", [ml_dtypes.bfloat16, np.float16])
def test_half_precision_becomes_float32(state, dtype, tmp_path):
    halves = {key: array.astype(dtype) for key, array in state.items()}
    safetensors.numpy.save_file(halves, tmp_path / "half.safetensors")
    model, _ = convert.load(tmp_path / "half.safetensors")
    for name, array in convnext_keys.to_state_dict(model, "timm").items():
        assert array.dtype == np.float32
        np.testing.assert_array_equal(array, halves[name].astype(np.float32))


# --- what does not fit


def test_one_error_lists_everything(state):
    del state["head.norm.bias"]
    del state["stages.1.blocks.1.norm.weight"]
    state["stages.1.blocks.0.extra"] = np.ones(2)
    state["stages.2.downsample.1.weight"] = np.ones((5, 6, 3, 3))
    state["stages.0.blocks.0.mlp.fc1.bias"] = np.ones(7)
    state["stem.1.bias"] = np.array([0, np.nan, 0, 0])
    with pytest.raises(ValueError, match="no whole ConvNeXt of timm") as caught:
        convnext_keys.from_state_dict(state)
    message = str(caught.value)
    assert "missing: stages.1.blocks.1.norm.weight, head.norm.bias;" in message
    assert "unexpected: stages.1.blocks.0.extra;" in message
    assert "stages.0.blocks.0.mlp.fc1.bias (7,) instead of (16,)" in message
    assert (
        "stages.2.downsample.1.weight (5, 6, 3, 3) instead of (5, 6, 2, 2)" in message
    )
    assert message.endswith("not finite: stem.1.bias")


def test_every_single_missing_key_is_named():
    config = dataclasses.replace(CONFIG, depths=(1, 1), dims=(4, 6))
    table = convnext_keys.key_table(config, "timm")
    abstract = convnext.named_arrays(convnext.abstract(config))
    arrays = {name: np.ones(array.shape) for name, array in abstract.items()}
    state = convnext_keys.to_state_dict(
        convnext.from_named_arrays(config, arrays), "timm"
    )
    for row in table:
        rest = {key: array for key, array in state.items() if key != row.key}
        with pytest.raises(ValueError, match=f"timm. missing: {row.key}$"):
            convnext_keys.from_state_dict(rest)


def test_other_networks_are_named(state):
    with pytest.raises(ValueError, match="ConvNeXt V2"):
        convnext_keys.from_state_dict(
            {**state, "stages.0.blocks.0.mlp.grn.weight": np.ones(4)}
        )
    with pytest.raises(ValueError, match=r"these keys: conv1\.weight, fc\.bias"):
        convnext_keys.from_state_dict(
            {"fc.bias": np.ones(2), "conv1.weight": np.ones(3)}
        )
    with pytest.raises(ValueError, match="no ConvNeXt classifier"):
        convnext_keys.from_state_dict({})


def test_files_that_cannot_be_read(state, tmp_path):
    whole = tmp_path / "whole.safetensors"
    safetensors.numpy.save_file(state, whole)
    cut = tmp_path / "cut.safetensors"
    cut.write_bytes(whole.read_bytes()[:-100])
    with pytest.raises(ValueError, match="no whole safetensors file"):
        convert.load(cut)
    cut.write_bytes(b"")
    with pytest.raises(ValueError, match="no whole safetensors file"):
        convert.load(cut)
    (tmp_path / "weights.h5").write_bytes(b"HDF")
    with pytest.raises(ValueError, match=r"ends in \.safetensors"):
        convert.load(tmp_path / "weights.h5")
    with pytest.raises(FileNotFoundError, match=r"gone\.pt"):
        convert.load(tmp_path / "gone.pt")
    (tmp_path / "folder").mkdir()
    with pytest.raises(ValueError, match=r"none of model\.safetensors"):
        convert.load(tmp_path / "folder")


def test_missing_packages(state, tmp_path, monkeypatch):
    safetensors.numpy.save_file(state, tmp_path / "a.safetensors")
    (tmp_path / "a.pt").write_bytes(b"")
    monkeypatch.setitem(sys.modules, "safetensors", None)
    monkeypatch.setitem(sys.modules, "torch", None)
    with pytest.raises(ImportError, match=r"pip install 'apex-jax\[convert\]'"):
        convert.load(tmp_path / "a.safetensors")
    with pytest.raises(ImportError, match="needs torch"):
        convert.load(tmp_path / "a.pt")


class Trap:
    """Unpickled, it creates a file."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return pathlib.Path.touch, (self.path,)


@pytest.mark.parametrize("suffix", [".pt", ".bin", ".safetensors"])
def test_code_in_a_pickle_does_not_run(tmp_path, suffix):
    sprung = tmp_path / "sprung"
    file = tmp_path / f"trap{suffix}"
    file.write_bytes(pickle.dumps({"stem.0.weight": Trap(sprung)}, protocol=2))
    with pytest.raises((ValueError, ImportError)):
        convert.load(file)
    assert not sprung.exists()
    pickle.loads(file.read_bytes())
    assert sprung.exists()  # the trap works


@pytest.mark.parametrize("wrapper", [None, "state_dict", "model"])
def test_torch_files(model, state, tmp_path, wrapper):
    torch = pytest.importorskip("torch")
    tensors = {key: torch.tensor(array) for key, array in state.items()}
    torch.save(
        {wrapper: tensors, "epoch": 3} if wrapper else tensors, tmp_path / "a.pt"
    )
    chex.assert_trees_all_equal(convert.load(tmp_path / "a.pt")[0], model)
    torch.save([1, 2], tmp_path / "list.pt")
    with pytest.raises(ValueError, match="no state dict"):
        convert.load(tmp_path / "list.pt")
    torch.save({"stem.0.weight": Trap(tmp_path / "sprung")}, tmp_path / "trap.pt")
    with pytest.raises(ValueError, match="nothing in it was run") as caught:
        convert.load(tmp_path / "trap.pt")
    assert "weights_only" not in str(caught.value)  # how to run it after all
    assert not (tmp_path / "sprung").exists()


def test_parameters_are_tensors_too(model, state, tmp_path):
    torch = pytest.importorskip("torch")
    parameters = {k: torch.nn.Parameter(torch.tensor(a)) for k, a in state.items()}
    torch.save(parameters, tmp_path / "a.pt")
    chex.assert_trees_all_equal(convert.load(tmp_path / "a.pt")[0], model)


@pytest.mark.parametrize("odd", ["sparse", "meta", "number"])
def test_torch_tensors_without_plain_values(odd, state, tmp_path):
    torch = pytest.importorskip("torch")
    tensors = {key: torch.tensor(array) for key, array in state.items()}
    name = next(iter(tensors))
    match odd:
        case "sparse":
            tensors[name] = tensors[name].to_sparse()
        case "meta":
            tensors[name] = tensors[name].to("meta")
        case "number":
            tensors[7] = tensors[name]
    torch.save(tensors, tmp_path / "a.pt")
    message = "no state dict" if odd == "number" else rf"plain values.*{name}"
    with pytest.raises(ValueError, match=message):
        convert.load(tmp_path / "a.pt")


def test_damaged_torch_files_are_named(state, tmp_path, rng):
    """Whatever torch makes of a changed byte: weights, or an error with the file."""
    torch = pytest.importorskip("torch")
    file = tmp_path / "a.pt"
    torch.save({key: torch.tensor(array) for key, array in state.items()}, file)
    whole, refused = file.read_bytes(), 0
    # Names and types stand in a pickle near the beginning.
    for place in rng.choice(min(len(whole), 4000), 60, replace=False):
        changed = bytearray(whole)
        changed[place] ^= int(rng.integers(1, 256))
        file.write_bytes(changed)
        try:
            convert.load(file)
        except ValueError as error:
            assert str(file) in str(error)  # noqa: PT017
            refused += 1
    assert refused


# --- the transformers folder and the command


def test_transformers_folder():
    settings = json.loads((DATA / "transformers_1" / "config.json").read_text())
    model, names = convert.load(DATA / "transformers_1")
    assert names == tuple(settings["id2label"].values())
    assert model.config.depths == tuple(settings["depths"])
    assert model.config.dims == tuple(settings["hidden_sizes"])
    assert model.config.head_norm_epsilon == settings["layer_norm_eps"] == 1e-3
    assert convert.load(DATA / "transformers_1" / "model.safetensors")[1] == names


def test_what_can_be_converted(tmp_path):
    assert convert.is_source(DATA / "transformers_1")
    assert convert.is_source(DATA / "transformers_1" / "model.safetensors")
    assert not convert.is_source(tmp_path)
    assert not convert.is_source(tmp_path / "gone.pt")


def test_names_that_transformers_made_up_are_none(model, tmp_path):
    arrays = convnext_keys.to_state_dict(model, "transformers")
    safetensors.numpy.save_file(arrays, tmp_path / "model.safetensors")
    settings = {"model_type": "convnext", "id2label": {}}
    for names in (["LABEL_0", "LABEL_1", "LABEL_2"], ["LABEL_0", "wren", "LABEL_2"]):
        settings["id2label"] = dict(enumerate(names))
        (tmp_path / "config.json").write_text(json.dumps(settings))
        known = None if "wren" not in names else tuple(names)
        assert convert.load(tmp_path)[1] == known


@pytest.mark.parametrize(
    ("kind", "name", "value"),
    [
        ("convnext", "hidden_act", "relu"),
        ("AudioProtoNet", "add_on_layers_type", "identity"),
        ("AudioProtoNet", "non_negative_last_layer", False),
        ("AudioProtoNet", "topk_k", 3),
    ],
)
def test_settings_that_leave_no_trace_in_the_arrays(kind, name, value, model, tmp_path):
    arrays = convnext_keys.to_state_dict(model, "transformers")
    safetensors.numpy.save_file(arrays, tmp_path / "model.safetensors")
    (tmp_path / "config.json").write_text(json.dumps({"model_type": kind, name: value}))
    with pytest.raises(ValueError, match=rf"config\.json: {name} {value!r}; networks"):
        convert.load(tmp_path)


@pytest.mark.parametrize("epsilon", [-1, 0, 1, "x", True, math.nan])
def test_transformers_folder_with_an_epsilon_that_cannot_be(model, tmp_path, epsilon):
    arrays = convnext_keys.to_state_dict(model, "transformers")
    safetensors.numpy.save_file(arrays, tmp_path / "model.safetensors")
    settings = {"model_type": "convnext", "layer_norm_eps": epsilon}
    (tmp_path / "config.json").write_text(json.dumps(settings))
    with pytest.raises(ValueError, match=r"config\.json: layer_norm_eps must be"):
        convert.load(tmp_path)


@pytest.mark.parametrize("names", [5, "wren", None])
def test_transformers_folder_with_names_that_are_none(model, tmp_path, names):
    arrays = convnext_keys.to_state_dict(model, "transformers")
    safetensors.numpy.save_file(arrays, tmp_path / "model.safetensors")
    settings = {"model_type": "convnext", "id2label": names}
    (tmp_path / "config.json").write_text(json.dumps(settings))
    with pytest.raises(ValueError, match=r"config\.json holds no list of names"):
        convert.load(tmp_path)


def test_command(tmp_path):
    front_end = {"sample_rate": 32_000, "clip_s": 5.0}
    (tmp_path / "front_end.json").write_text(json.dumps(front_end))
    config = convert.Convert(
        source=DATA / "transformers_1",
        out=tmp_path / "out",
        front_end=str(tmp_path / "front_end.json"),
    )
    summary = convert.main(config)
    assert "ConvNeXt custom from transformers, 65 tensors" in summary
    assert "5 classes" in summary
    model, metadata = checkpoint.load_classifier(tmp_path / "out")
    chex.assert_trees_all_equal(model, convert.load(DATA / "transformers_1")[0])
    assert metadata["class_names"] == ["wren", "robin", "crow", "owl", "tit"]
    assert metadata["front_end"].items() >= front_end.items()
    assert metadata["extra"] == {"source": "transformers_1", "dialect": "transformers"}
    with pytest.raises(ValueError, match="overwrite"):
        convert.main(config)


@pytest.mark.parametrize(
    ("file", "text"),
    [
        ("names.txt", "oak\nash\n\nelm\n"),
        ("names.json", '["oak", "ash", "elm"]'),
        ("names.json", '{"id2label": {"1": "ash", "0": "oak", "2": "elm"}}'),
    ],
)
def test_class_names(state, tmp_path, file, text):
    safetensors.numpy.save_file(state, tmp_path / "a.safetensors")
    (tmp_path / file).write_text(text)
    config = convert.Convert(
        source=tmp_path / "a.safetensors",
        out=tmp_path / "out",
        class_names=tmp_path / file,
    )
    assert "without names" not in convert.main(config)
    names = checkpoint.load_classifier(tmp_path / "out")[1]["class_names"]
    assert names == ["oak", "ash", "elm"]


def test_class_names_that_do_not_fit(state, tmp_path):
    safetensors.numpy.save_file(state, tmp_path / "a.safetensors")
    config = convert.Convert(
        source=tmp_path / "a.safetensors",
        out=tmp_path / "out",
        class_names=tmp_path / "names.json",
    )
    for text, message in [
        ('["oak"]', "3 classes, got 1"),
        ('{"0": "oak", "2": "elm"}', "no name for class '1'"),
        ("3", "holds no list"),
    ]:
        config.class_names.write_text(text)
        with pytest.raises(ValueError, match=message):
            convert.main(config)
    assert not config.out.exists()


def test_command_reports_errors_without_a_traceback(tmp_path):
    out = subprocess.run(
        [
            sys.executable,
            "-m",
            "apex_jax.convert",
            tmp_path / "gone.pt",
            tmp_path / "o",
        ],
        capture_output=True,
        text=True,
        check=False,
    )
    assert out.returncode == 1
    assert out.stderr.strip() == f"convert: no file at {tmp_path / 'gone.pt'}"


def test_help_is_quick():
    """Neither jax nor torch is imported before there is something to convert."""
    code = (
        "import sys, apex_jax.convert; print({'jax', 'torch', 'flax'} & {*sys.modules})"
    )
    out = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    )
    assert out.stdout.strip() == "set()"


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{", "front.json is no JSON"),
        ('{"sample_rate": "22050", "clip_s": 1}', "wrong type"),
        ("[]", "no named settings"),
    ],
)
def test_front_ends_that_are_none(state, content, message, tmp_path):
    (tmp_path / "front.json").write_text(content)
    source = tmp_path / "model.safetensors"
    safetensors.numpy.save_file(state, source)
    command = convert.Convert(
        source=source, out=tmp_path / "out", front_end=str(tmp_path / "front.json")
    )
    with pytest.raises(ValueError, match=message):
        convert.main(command)


def test_front_ends_by_name(tmp_path):
    """BirdSet's own, as its configuration has it, and AudioProtoPNet's."""

    def stored(name):
        convert.main(
            convert.Convert(
                source=DATA / "transformers_1",
                out=tmp_path / "out",
                front_end=name,
                overwrite=True,
            )
        )
        _, metadata = checkpoint.load_classifier(tmp_path / "out")
        return audio.FrontEnd.from_dict(metadata["front_end"])

    found = stored("birdset-128")
    assert found.shape == (128, 501)
    assert (found.sample_rate, found.clip_s, found.n_fft) == (32_000, 5.0, 1024)
    assert (found.mean, found.std) == (-4.268, 4.569)
    assert stored("birdset-256") == audio.FrontEnd.birdset()
    with pytest.raises(ValueError, match="'birdset'; known are birdset-128, birdset-2"):
        stored("birdset")


def test_weights_that_make_no_numbers_are_told(state, tmp_path):
    """Each of them is finite, but not what the network makes of anything."""
    source = tmp_path / "a.safetensors"
    config = convert.Convert(source=source, out=tmp_path / "out")
    huge = {k: 1e30 * a if ".mlp." in k else a for k, a in state.items()}
    safetensors.numpy.save_file(huge, source)
    with pytest.raises(ValueError, match=r"a\.safetensors: of noise the network makes"):
        convert.main(config)
    assert not config.out.exists()


def test_what_was_converted_is_audited(state, tmp_path, monkeypatch):
    """A table of names that put the norm beside the head, say."""
    source = tmp_path / "a.safetensors"
    safetensors.numpy.save_file(state, source)
    real = convnext.forward

    def unfolded(model, spectrogram):
        return model.body(spectrogram), real(model, spectrogram)[1]

    monkeypatch.setattr(convnext, "forward", unfolded)
    with pytest.raises(disentangle.InvarianceError, match=r"norm .*not folded"):
        convert.main(convert.Convert(source=source, out=tmp_path / "out"))
    assert not (tmp_path / "out").exists()
