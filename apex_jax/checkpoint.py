"""Checkpoints on disk: a tree of arrays beside a JSON description.

The one module that knows Orbax. A checkpoint names its format, its kind and the
format's version, carries a digest of its arrays and its description, loads on any
number of devices whatever wrote it, and appears under its path whole or not at all.
"""

from __future__ import annotations

import contextlib
import dataclasses
import glob
import hashlib
import importlib.metadata
import json
import os
import pathlib
import platform
import re
import shutil
from collections.abc import Iterator, Sequence
from typing import Any, get_args

import jax
import numpy as np

from apex_jax import classifier as classifier_lib
from apex_jax.models import audioprotopnet, convnext

FORMAT = "apex_jax"
VERSION = 2  # the first had no digest


class DamagedError(ValueError):
    """A checkpoint that was cut or changed, or a folder that is none."""


def save(
    path: str | os.PathLike[str],
    tree: Any,
    metadata: dict[str, Any],
    *,
    kind: str,
    overwrite: bool = False,
) -> pathlib.Path:
    """Writes a checkpoint, a folder.

    Args:
      path: the folder to create; with several processes one that all of them see.
      tree: arrays and Python scalars in nested dicts, none of them empty, the same in
        every process. Lists and tuples both come back as lists.
      metadata: anything JSON can hold.
      kind: what the tree is, "classifier" for one; `load` asks for it by this name.
      overwrite: replace a checkpoint that is already there.

    Returns:
      The absolute path.

    Raises:
      ValueError: something is there already and `overwrite` is off, or is there and
        is no checkpoint of this package.
      OSError: it cannot be written, for want of space say; what was there before is
        still there, and nothing half written beside it.
    """
    from orbax.checkpoint import v1 as ocp

    target = pathlib.Path(os.path.expanduser(path)).absolute()
    if target.exists() or target.is_symlink():
        if not overwrite:
            raise ValueError(
                f"path {target} exists; overwrite=True (--overwrite) replaces it"
            )
        _read_format(target)  # never replace what this package did not write
    # Orbax would delete the old checkpoint before it begins with the new one.
    written = target.with_name(f"{target.name}.new") if overwrite else target
    # Of several processes one writes NumPy's arrays; JAX's must be on all devices.
    tree = jax.tree.map(
        lambda leaf: np.asarray(leaf) if isinstance(leaf, jax.Array) else leaf, tree
    )
    description = {
        "name": FORMAT,
        "version": VERSION,
        "kind": kind,
        "sha256": _digest(tree, metadata, kind),
    }
    with _naming(target, written):
        ocp.save(
            written,
            tree,
            overwrite=overwrite,
            custom_metadata={"format": description, "metadata": metadata},
        )
    if overwrite:
        _replace(target, written)
    return target


def load(path: str | os.PathLike[str], *, kind: str) -> tuple[Any, dict[str, Any]]:
    """Reads a checkpoint.

    Args:
      path: the folder that `save` wrote.
      kind: what it has to be.

    Returns:
      The tree with NumPy arrays, and the metadata.

    Raises:
      FileNotFoundError: nothing at this path.
      DamagedError: no checkpoint, or one that was cut or changed.
      ValueError: of another kind, or of a later version.
    """
    from orbax.checkpoint import v1 as ocp

    source = _place(path)
    description, stored = _read_format(source)
    if description["kind"] != kind:
        raise ValueError(
            f"path {source} is a checkpoint of kind {description['kind']!r}; this "
            f"needs {kind!r}"
        )
    # Left alone, Orbax asks for the devices that the checkpoint was written on.
    try:
        template = jax.tree.map(
            lambda leaf: (
                np.zeros(leaf.shape, leaf.dtype) if hasattr(leaf, "shape") else leaf
            ),
            stored.metadata,
        )
        tree = ocp.load(source, template)
    except Exception as error:
        raise DamagedError(
            f"path {source} is a damaged checkpoint: {error!s:.300}"
        ) from error
    metadata = stored.custom_metadata.get("metadata")
    digest = description["sha256"]
    if digest is not None and digest != _digest(tree, metadata, kind):
        raise DamagedError(
            f"path {source} is a damaged checkpoint: it does not hold what was written"
        )
    return tree, metadata


def kind_of(path: str | os.PathLike[str]) -> str:
    """What a checkpoint holds; raises as `load`."""
    return _read_format(_place(path))[0]["kind"]


def _place(path: str | os.PathLike[str]) -> pathlib.Path:
    """Where a checkpoint lies."""
    source = pathlib.Path(os.path.expanduser(path)).absolute()
    # Killed between the two renames of `_replace`.
    if not source.exists() and (new := source.with_name(f"{source.name}.new")).exists():
        return new
    return source


def _digest(tree: Any, metadata: Any, kind: str) -> str:
    """SHA-256 of everything that `load` returns."""
    found = hashlib.sha256(json.dumps([kind, metadata], sort_keys=True).encode())
    for path, leaf in jax.tree_util.tree_leaves_with_path(tree):
        array = np.asarray(leaf)
        name = "/".join(
            str(getattr(key, "key", getattr(key, "idx", key))) for key in path
        )
        found.update(f"{name} {array.dtype} {array.shape}".encode())
        found.update(np.ascontiguousarray(array).tobytes())
    return found.hexdigest()


def save_classifier(
    path: str | os.PathLike[str],
    model: convnext.ConvNeXt,
    *,
    class_names: Sequence[str],
    activation: classifier_lib.Activation = "softmax",
    front_end: dict[str, Any] | None = None,
    extra: dict[str, Any] | None = None,
    overwrite: bool = False,
) -> pathlib.Path:
    """Writes a network with what is needed to use it.

    Args:
      path: the folder to create.
      model: the network.
      class_names: one name a class, in the order of the logits.
      activation: how its logits become probabilities.
      front_end: `FrontEnd.to_dict()`, how sound became the spectrograms it expects.
      extra: anything else worth keeping, JSON: how it was trained, how well it does.
      overwrite: replace a checkpoint that is already there.

    Returns:
      The absolute path.

    Raises:
      ValueError: not one name a class, or see `save`.
    """
    return _save_network(
        path,
        model,
        kind="classifier",
        class_names=class_names,
        activation=activation,
        front_end=front_end,
        extra=extra,
        overwrite=overwrite,
    )


def save_audioprotopnet(
    path: str | os.PathLike[str],
    model: audioprotopnet.AudioProtoPNet,
    *,
    class_names: Sequence[str],
    front_end: dict[str, Any] | None = None,
    extra: dict[str, Any] | None = None,
    overwrite: bool = False,
) -> pathlib.Path:
    """Writes an AudioProtoPNet; arguments and errors as for `save_classifier`."""
    return _save_network(
        path,
        model,
        kind="audioprotopnet",
        class_names=class_names,
        activation="sigmoid",
        front_end=front_end,
        extra=extra,
        overwrite=overwrite,
    )


def _save_network(
    path: str | os.PathLike[str],
    model: convnext.ConvNeXt | audioprotopnet.AudioProtoPNet,
    *,
    kind: str,
    class_names: Sequence[str],
    activation: classifier_lib.Activation,
    front_end: dict[str, Any] | None,
    extra: dict[str, Any] | None,
    overwrite: bool,
) -> pathlib.Path:
    convnext.check_class_names(class_names, model.config.num_classes)
    metadata = {
        "config": dataclasses.asdict(model.config),
        "class_names": list(class_names),
        "activation": activation,
        "front_end": front_end,
        "extra": extra or {},
    }
    arrays = convnext.named_arrays(model)
    return save(path, arrays, metadata, kind=kind, overwrite=overwrite)


def load_classifier(
    path: str | os.PathLike[str],
) -> tuple[convnext.ConvNeXt, dict[str, Any]]:
    """Reads a network.

    Returns:
      The network, and the metadata: `class_names`, `activation`, `front_end`,
      `extra`, `config`.

    Raises:
      FileNotFoundError: nothing at this path.
      ValueError: no checkpoint of a classifier.
    """
    arrays, metadata = load(path, kind="classifier")
    with _described(path, metadata):
        config = _convnext_config(metadata["config"])
        model = convnext.from_named_arrays(config, arrays)
        convnext.check_class_names(metadata["class_names"], config.num_classes)
    return model, metadata


def load_audioprotopnet(
    path: str | os.PathLike[str],
) -> tuple[audioprotopnet.AudioProtoPNet, dict[str, Any]]:
    """Reads an AudioProtoPNet; returns and raises as `load_classifier`."""
    arrays, metadata = load(path, kind="audioprotopnet")
    with _described(path, metadata):
        backbone = _convnext_config(metadata["config"]["backbone"])
        config = audioprotopnet.AudioProtoPNetConfig(
            **{**metadata["config"], "backbone": backbone}
        )
        model = audioprotopnet.from_named_arrays(config, arrays)
        convnext.check_class_names(metadata["class_names"], config.num_classes)
    return model, metadata


@contextlib.contextmanager
def _described(path: str | os.PathLike[str], metadata: Any) -> Iterator[None]:
    """Where a network's description does not fit what it holds, names the file."""
    try:
        metadata.setdefault("activation", "softmax")  # before it was written down
        if metadata["activation"] not in get_args(classifier_lib.Activation):
            raise ValueError(f"unknown activation {metadata['activation']!r}")
        yield
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise ValueError(
            f"path {path} holds no network that is described as it is: {error!r:.500}"
        ) from error


def _convnext_config(stored: dict[str, Any]) -> convnext.ConvNeXtConfig:
    # JSON has no tuples, and a config has to be hashable.
    shape = {name: tuple(stored[name]) for name in ("depths", "dims")}
    return convnext.ConvNeXtConfig(**{**stored, **shape})


def versions() -> tuple[tuple[str, str], ...]:
    """Python, and the packages that decide the numbers, each with its version."""
    packages = ("apex-jax", "jax", "flax", "optax", "numpy", "librosa", "scikit-learn")
    found = ((name, importlib.metadata.version(name)) for name in packages)
    return (("python", platform.python_version()), *found)


def _read_format(path: pathlib.Path) -> tuple[dict[str, Any], Any]:
    """The checked description, with the digest or None, and what Orbax says."""
    from orbax.checkpoint import v1 as ocp

    if not path.exists():
        raise FileNotFoundError(f"no checkpoint at {path}")
    try:
        stored = ocp.metadata(path)
        description = dict(stored.custom_metadata["format"])
        version = description["version"]
        ours = description["name"] == FORMAT
    # Orbax has no error of its own for a folder that is something else.
    except Exception as error:
        raise DamagedError(f"path {path} is no {FORMAT} checkpoint") from error
    if not ours:
        raise DamagedError(
            f"path {path} is no {FORMAT} checkpoint: {description!r:.300}"
        )
    if type(version) is not int or version < 1:
        raise DamagedError(
            f"path {path} is a damaged checkpoint: its format version is "
            f"{version!r:.80}"
        )
    if version == 1:
        description.setdefault("sha256", None)
    for name, wanted in (("kind", str), ("sha256", str | None)):
        if not isinstance(description.get(name, 0), wanted):
            raise DamagedError(
                f"path {path} is a damaged checkpoint: its description has no {name}"
            )
    if version > VERSION:
        raise ValueError(
            f"path {path} has format version {version}; this {FORMAT} reads up to "
            f"{VERSION}: upgrade it"
        )
    return description, stored


@contextlib.contextmanager
def _naming(target: pathlib.Path, written: pathlib.Path) -> Iterator[None]:
    """Where a file cannot be written, says which checkpoint, and takes it away."""
    try:
        yield
    except Exception as error:
        # TensorStore's errors are ValueErrors that quote the system's number.
        number = error.errno if isinstance(error, OSError) else None
        if found := re.search(r"os_error_code='(\d+)'", str(error)):
            number = int(found[1])
        if jax.process_index() == 0:
            name = glob.escape(f"{written.name}.orbax-checkpoint-tmp")
            for rest in target.parent.glob(f"{name}*"):
                shutil.rmtree(rest, ignore_errors=True)
        if number is None:
            raise
        raise OSError(number, os.strerror(number), str(target)) from error


def _replace(target: pathlib.Path, written: pathlib.Path) -> None:
    """Puts `written` in the place of `target`; at every moment one of them is whole."""
    if jax.process_index() == 0:
        old = target.with_name(f"{target.name}.old")
        shutil.rmtree(old, ignore_errors=True)
        if target.exists():
            target.rename(old)
        written.rename(target)
        shutil.rmtree(old, ignore_errors=True)
    if jax.process_count() > 1:
        from jax.experimental import multihost_utils

        multihost_utils.sync_global_devices(f"replaced {target}")
