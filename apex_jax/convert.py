"""Weights from torch: ConvNeXt of transformers, timm and torchvision, AudioProtoPNet.

    python -m apex_jax.convert SOURCE OUT --class-names classes.txt

Before everything else: turns a downloaded network into a checkpoint that
`checkpoint.load_classifier` reads. Here the files are read and written;
`models/convnext_keys` and `models/audioprotopnet_keys` know the names. `.safetensors`
files need no torch, `.pt` files are read by torch with `weights_only=True`, so that
nothing stored in them runs.
"""

from __future__ import annotations

import dataclasses
import json
import os
import pathlib
import sys
from typing import TYPE_CHECKING, Annotated, Any

import numpy as np
import tyro

from apex_jax import escape, frontend

# jax and flax wait until there is something to convert, so that --help is quick.
if TYPE_CHECKING:
    from apex_jax.models import convnext


# What transformers' config.json calls them.
KINDS = ("convnext", "AudioProtoNet")
FOLDER_FILES = ("model.safetensors", "pytorch_model.bin")  # of transformers


def is_source(path: pathlib.Path) -> bool:
    """Whether `load` is for this: a file, or a transformers folder."""
    return path.is_file() or any((path / name).exists() for name in FOLDER_FILES)


def load(
    source: str | os.PathLike[str],
) -> tuple[convnext.ConvNeXt, tuple[str, ...] | None]:
    """Reads a checkpoint of transformers, timm or torchvision.

    Args:
      source: a `.safetensors` file, a `.pt`, `.pth` or `.bin` file (needs torch), or
        a transformers folder.

    Returns:
      The network, and the class names if a transformers `config.json` lies beside
      that has them.

    Raises:
      FileNotFoundError: nothing there.
      ValueError: cannot be read, or see `convnext_keys.from_state_dict`.
      ImportError: a package that the file needs is not installed.
    """
    from apex_jax.models import convnext

    model, class_names, _ = _load(pathlib.Path(os.path.expanduser(source)))
    if not isinstance(model, convnext.ConvNeXt):
        raise ValueError(
            f"source {source} is an AudioProtoPNet, whose prototypes are its own; APEX "
            "explains classifiers that average over their map"
        )
    return model, class_names


def _load(source: pathlib.Path) -> tuple[Any, tuple[str, ...] | None, Any]:
    from apex_jax.models import audioprotopnet_keys, convnext_keys

    if source.is_dir():
        found = [source / name for name in FOLDER_FILES if (source / name).exists()]
        if not found:
            raise ValueError(f"source {source} holds none of {', '.join(FOLDER_FILES)}")
        source = found[0]
    if not source.exists():
        raise FileNotFoundError(f"no file at {source}")
    state = _read_tensors(source)
    if not state:
        raise ValueError(f"source {source} holds no tensors")
    described = source.with_name("config.json")
    settings = _read_json(described) if described.exists() else {}
    if not isinstance(settings, dict) or settings.get("model_type") not in KINDS:
        settings = {}
    # What changes the logits and leaves no trace in the arrays.
    for name, known in (
        ("hidden_act", "gelu"),
        ("add_on_layers_type", "upsample"),
        ("topk_k", 1),
        ("non_negative_last_layer", True),
    ):
        if settings.get(name, known) != known:
            raise ValueError(
                f"{described}: {name} {settings[name]!r}; networks here have {known!r}"
            )
    epsilon = settings.get("layer_norm_eps")
    number = isinstance(epsilon, int | float) and not isinstance(epsilon, bool)
    if epsilon is not None and not (number and 0 < epsilon < 1):
        raise ValueError(
            f"{described}: layer_norm_eps must be a number between 0 and 1; got "
            f"{epsilon!r}"
        )
    model: Any
    dialect: Any
    try:
        if audioprotopnet_keys.recognised(state):
            dialect = "AudioProtoPNet"
            model = audioprotopnet_keys.from_state_dict(
                state, head_norm_epsilon=epsilon
            )
        else:
            model, dialect = convnext_keys.from_state_dict(
                state, head_norm_epsilon=epsilon
            )
    except ValueError as error:
        raise ValueError(f"source {source}: {error}") from error
    class_names = _read_names(described) if "id2label" in settings else None
    if class_names == tuple(f"LABEL_{i}" for i in range(len(class_names or ()))):
        class_names = None  # what transformers writes where nobody named the classes
    return model, class_names, dialect


def _read_tensors(file: pathlib.Path) -> dict[str, np.ndarray]:
    # The readers call what may not be read missing, or damaged.
    file.open("rb").close()
    match file.suffix:
        case ".safetensors":
            return _read_safetensors(file)
        case ".pt" | ".pth" | ".bin" | ".ckpt":
            return _read_torch(file)
    raise ValueError(
        f"source {file}: needs a transformers folder or a file that ends in "
        ".safetensors, .pt, .pth, .bin or .ckpt"
    )


def _read_safetensors(file: pathlib.Path) -> dict[str, np.ndarray]:
    try:
        import safetensors
        import safetensors.numpy
    except ImportError as error:
        raise ImportError(
            f"{file} needs safetensors: pip install 'apex-jax[convert]'"
        ) from error
    try:
        return safetensors.numpy.load_file(file)
    except safetensors.SafetensorError as error:
        raise ValueError(
            f"source {file} is no whole safetensors file: {error}"
        ) from error


def _read_torch(file: pathlib.Path) -> dict[str, np.ndarray]:
    try:
        import torch
    except ImportError as error:
        raise ImportError(
            f"{file} is torch's own format and needs torch (pip install torch); a "
            ".safetensors file of the same weights does not"
        ) from error
    try:
        state = torch.load(file, map_location="cpu", weights_only=True)
    except OSError:
        raise
    # Of bytes that were changed torch's reader makes whatever error comes first: of
    # keys, attributes, asserts, text. None of them names the file.
    except Exception as error:
        # Not torch's words: they advise to load the file without this protection.
        raise ValueError(
            f"source {file} holds more than tensors, or is damaged "
            f"({type(error).__name__}); nothing in it was run"
        ) from error
    for wrapper in ("state_dict", "model_state_dict", "model"):
        if isinstance(state, dict) and isinstance(state.get(wrapper), dict):
            state = state[wrapper]
    if not isinstance(state, dict) or not all(
        isinstance(key, str) and isinstance(tensor, torch.Tensor)
        for key, tensor in state.items()
    ):
        raise ValueError(f"source {file} holds no state dict, a dict of tensors")
    other = [
        key
        for key, tensor in state.items()
        if tensor.layout != torch.strided or tensor.is_meta or tensor.is_quantized
    ]
    if other:
        raise ValueError(
            f"source {file} holds tensors without plain values, such as {other[0]!r}"
        )
    # A parameter brings its gradient along; its values are all that is asked for.
    return {key: tensor.detach().float().numpy() for key, tensor in state.items()}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Convert:
    """Turns torch's ConvNeXt weights into a checkpoint.

    Attributes:
      source: a .safetensors file, a .pt, .pth, .bin or .ckpt file (needs torch), or a
        transformers folder.
      out: the checkpoint to write, a folder.
      class_names: a .txt with one name a line or a .json with a list or an id2label,
        in the order of the logits.
      front_end: how the network's spectrograms are made: a .json, or birdset-128 for
        BirdSet's ConvNeXts and birdset-256 for AudioProtoPNet's.
      overwrite: replace a checkpoint that is already there.
    """

    source: Annotated[
        tyro.conf.Positional[pathlib.Path], tyro.conf.arg(metavar="SOURCE")
    ]
    out: Annotated[tyro.conf.Positional[pathlib.Path], tyro.conf.arg(metavar="OUT")]
    class_names: Annotated[
        pathlib.Path | None,
        tyro.conf.arg(
            metavar="FILE",
            help_behavior_hint="(default: the source's, else the classes' numbers)",
        ),
    ] = None
    front_end: Annotated[
        str | None,
        tyro.conf.arg(
            metavar="FILE.json|NAME",
            help_behavior_hint="(default: that of AudioProtoPNet for one; else none, "
            "and apex-jax fit has to be told)",
        ),
    ] = None
    overwrite: tyro.conf.FlagCreatePairsOff[bool] = False


def main(config: Convert) -> str:
    """Converts, writes the checkpoint and returns a summary in words."""
    import jax

    from apex_jax import checkpoint
    from apex_jax.models import audioprotopnet, convnext_keys

    model, names, dialect = _load(pathlib.Path(os.path.expanduser(config.source)))
    prototypes = isinstance(model, audioprotopnet.AudioProtoPNet)
    if config.class_names is not None:
        names = _read_names(config.class_names)
    front_end = frontend.FrontEnd.birdset() if prototypes else None
    if config.front_end is not None:
        front_end = _front_end(config.front_end)
    _try_out(config.source, model)
    shape = model.config
    save = checkpoint.save_audioprotopnet if prototypes else checkpoint.save_classifier
    path = save(
        config.out,
        model,
        class_names=names or [str(index) for index in range(shape.num_classes)],
        front_end=None if front_end is None else front_end.to_dict(),
        extra={"source": config.source.name, "dialect": dialect},
        overwrite=config.overwrite,
    )
    weights = sum(array.size for array in jax.tree.leaves(model))
    named = f"{shape.num_classes} classes{'' if names else ' without names'}"
    if prototypes:
        return (
            f"{path}: AudioProtoPNet on ConvNeXt {shape.backbone.size}, "
            f"{weights:,} weights, {shape.num_prototypes} prototypes for each of "
            f"{named}; front end {'given' if config.front_end else 'as published'}"
        )
    num_tensors = len(convnext_keys.key_table(shape, dialect))
    return (
        f"{path}: ConvNeXt {shape.size} from {dialect}, "
        f"{num_tensors} tensors, {weights:,} weights, "
        f"{shape.in_channels} input channel(s), {named}"
    )


def _front_end(asked: str) -> frontend.FrontEnd:
    """The front end of a name, or of a file that ends in .json."""
    if not asked.endswith(".json"):
        return frontend.FrontEnd.named(asked)
    settings = _read_json(pathlib.Path(os.path.expanduser(asked)))
    if not isinstance(settings, dict):
        raise ValueError(f"{asked} holds no named settings")
    return frontend.FrontEnd.from_dict(settings)


def _try_out(source: pathlib.Path, model: Any) -> None:
    """Runs what was converted on noise, and audits it where it is a classifier.

    Raises:
      ValueError: logits that are no numbers.
      InvarianceError: the head does not give the network's logits of the folded map.
    """
    import jax

    from apex_jax import classifier as classifier_lib
    from apex_jax import disentangle
    from apex_jax.models import audioprotopnet, convnext

    prototypes = isinstance(model, audioprotopnet.AudioProtoPNet)
    config = model.config.backbone if prototypes else model.config
    network: classifier_lib.Network
    if prototypes:
        network = audioprotopnet.as_network(model)
    else:
        names = [str(index) for index in range(config.num_classes)]
        network = convnext.as_classifier(model, names)
    rng = np.random.default_rng(0)
    noise = rng.normal(size=(2, 2 * config.stride, 3 * config.stride))
    feature_map, logits = jax.jit(lambda network, x: network(x))(
        network, noise.astype(np.float32)
    )
    logits = np.asarray(logits)
    if not np.isfinite(logits).all():
        raise ValueError(
            f"source {source}: of noise the network makes logits that are no numbers; "
            "its weights are not those of a trained network"
        )
    if isinstance(network, classifier_lib.Classifier):
        pooled = np.asarray(classifier_lib.pool(feature_map))
        transform = disentangle.identity(pooled.shape[1])
        error = np.abs(np.asarray(network.head(pooled)) - logits).max()
        if not error <= 1e-3 * max(1.0, np.abs(logits).max()):
            raise disentangle.InvarianceError(
                f"source {source}: of noise the head's logits differ from the "
                f"network's by {error:.3g}. "
                + disentangle.cause_of(transform, network.head, pooled, logits)
            )


def _read_json(file: pathlib.Path) -> Any:
    try:
        return json.loads(file.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{file} is no JSON: {error}") from error


def _read_names(file: pathlib.Path) -> tuple[str, ...]:
    if file.suffix != ".json":
        # Not `splitlines`, which takes more for a new line than a text file does.
        lines = file.read_text(encoding="utf-8").split("\n")
        return tuple(line.strip() for line in lines if line.strip())
    names = _read_json(file)
    if isinstance(names, dict):
        names = names.get("id2label", names)
    if isinstance(names, dict):
        try:
            names = [names[str(index)] for index in range(len(names))]
        except KeyError as error:
            raise ValueError(
                f"class_names {file} has no name for class {error}"
            ) from None
    if not isinstance(names, list):
        raise ValueError(f"class_names {file} holds no list of names")
    return tuple(str(name) for name in names)


if __name__ == "__main__":
    try:
        summary = main(tyro.cli(Convert))
    except (ValueError, OSError, ImportError) as error:
        sys.exit(escape.readable(f"convert: {error}"))
    print(escape.readable(summary, breaks=True))  # noqa: T201
