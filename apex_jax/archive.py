"""Explanations on disk: `explanation.json` beside `explanation.npz`.

The JSON holds every name and number and can be read by any program; an array stands in
it as the name of its entry in the NPZ. Nothing in either file is ever executed.
"""

from __future__ import annotations

import dataclasses
import json
import os
import types
import typing
from pathlib import Path
from typing import Any

import numpy as np

from apex_jax import explanation

FORMAT = "apex_jax explanation"
VERSION = 1
JSON, NPZ = "explanation.json", "explanation.npz"


def save(
    directory: str | os.PathLike[str],
    result: explanation.Explanation,
    *,
    overwrite: bool = False,
) -> Path:
    """Writes an explanation.

    Args:
      directory: the folder to write into; it is made if need be.
      result: what to write.
      overwrite: replace an explanation that is already there.

    Returns:
      The folder.

    Raises:
      ValueError: one is there already and `overwrite` is off.
    """
    target = Path(directory).expanduser()
    if (target / JSON).exists() and not overwrite:
        raise ValueError(f"{target / JSON} exists; overwrite=True replaces it")
    target.mkdir(parents=True, exist_ok=True)
    arrays: dict[str, np.ndarray] = {}
    content = {
        "format": FORMAT,
        "version": VERSION,
        "explanation": _plain(result, "", arrays),
    }
    text = json.dumps(content, indent=1, allow_nan=False)
    # The arrays first: a folder that holds the JSON is whole.
    with (target / (NPZ + ".tmp")).open("wb") as stream:
        np.savez_compressed(stream, allow_pickle=False, **arrays)
        _to_disk(stream)
    with (target / (JSON + ".tmp")).open("w", encoding="utf-8") as stream:
        stream.write(text)
        _to_disk(stream)
    for name in (NPZ, JSON):
        os.replace(target / (name + ".tmp"), target / name)
    return target


def load(directory: str | os.PathLike[str]) -> explanation.Explanation:
    """Reads what `save` wrote.

    Raises:
      FileNotFoundError: there is no explanation in the folder.
      ValueError: it is damaged, or of another version.
    """
    source = Path(directory).expanduser()
    if not (source / JSON).exists():
        raise FileNotFoundError(f"no {JSON} in {source}")
    try:
        content = json.loads((source / JSON).read_text(encoding="utf-8"))
        found = content["format"], content["version"]
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise ValueError(f"{source / JSON} is damaged: {error!r}") from error
    if found != (FORMAT, VERSION):
        raise ValueError(
            f"{source / JSON} is {found[0]!r}, version {found[1]}; this reads "
            f"{FORMAT!r}, version {VERSION}"
        )
    try:
        with np.load(source / NPZ, allow_pickle=False) as stored:
            arrays = dict(stored)
        return _value(explanation.Explanation, content["explanation"], arrays)
    # zipfile and zlib have errors of their own for a file that was cut or changed.
    except Exception as error:
        raise ValueError(
            f"the explanation in {source} is damaged: {error!r}"
        ) from error


def _to_disk(stream: typing.IO[Any]) -> None:
    stream.flush()
    os.fsync(stream.fileno())


def _plain(value: Any, name: str, arrays: dict[str, np.ndarray]) -> Any:
    """What JSON can hold of a value; its arrays go to `arrays`, by name."""
    if isinstance(value, np.ndarray):
        arrays[name] = value
        return {"array": name}
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {
            field.name: _plain(
                getattr(value, field.name), f"{name}.{field.name}".lstrip("."), arrays
            )
            for field in dataclasses.fields(value)
        }
    if isinstance(value, tuple):
        return [_plain(one, f"{name}.{i}", arrays) for i, one in enumerate(value)]
    if isinstance(value, Path):
        return str(value)
    if isinstance(value, float) and not np.isfinite(value):
        return {"float": str(value)}  # JSON has no infinity
    return value


def _value(kind: Any, plain: Any, arrays: dict[str, np.ndarray]) -> Any:
    """The value of type `kind` that `_plain` wrote."""
    if isinstance(plain, dict) and set(plain) == {"array"}:
        array = arrays[plain["array"]]
        array.setflags(write=False)
        return array
    if isinstance(plain, dict) and set(plain) == {"float"}:
        return float(plain["float"])
    if isinstance(plain, dict):
        made: Any = next(k for k in _kinds(kind) if dataclasses.is_dataclass(k))
        hints = typing.get_type_hints(made)
        return made(
            **{name: _value(hints[name], v, arrays) for name, v in plain.items()}
        )
    if isinstance(plain, list):
        parts = typing.get_args(
            next(k for k in _kinds(kind) if typing.get_origin(k) is tuple)
        )
        if parts[-1] is Ellipsis:
            parts = parts[:1] * len(plain)
        return tuple(_value(k, v, arrays) for k, v in zip(parts, plain, strict=True))
    if isinstance(plain, str) and Path in _kinds(kind):
        return Path(plain)
    if isinstance(plain, int) and float in _kinds(kind) and int not in _kinds(kind):
        return float(plain)
    return plain


def _kinds(kind: Any) -> tuple[Any, ...]:
    """The types of a union, or the type itself."""
    union = isinstance(kind, types.UnionType)
    return typing.get_args(kind) if union else (kind,)
