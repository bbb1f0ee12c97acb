"""Explanations on disk: `explanation.json` beside `explanation.npz`.

The JSON holds every name and number and can be read by any program; an array stands in
it as the name of its entry in the NPZ, and a digest tells whether both files are as
they were written. Nothing in either file is ever executed.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
import types
import typing
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from apex_jax import atomic, explanation

FORMAT = "apex_jax explanation"
VERSION = 2
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
    target = Path(os.path.expanduser(directory))
    if (target / JSON).exists() and not overwrite:
        raise ValueError(f"{target / JSON} exists; overwrite=True replaces it")
    target.mkdir(parents=True, exist_ok=True)
    arrays: dict[str, np.ndarray] = {}
    told = _plain(result, "", arrays)
    content = {
        "format": FORMAT,
        "version": VERSION,
        "sha256": _digest(told, arrays),
        "explanation": told,
    }
    text = json.dumps(content, indent=1, allow_nan=False)
    # The arrays first: a folder that holds the JSON is whole. Where one explanation
    # replaces another, the digest tells arrays of one beside names of the other.
    atomic.write(
        target / NPZ,
        lambda file: np.savez_compressed(file, allow_pickle=False, **arrays),
    )
    atomic.write_text(target / JSON, text)
    return target


def load(directory: str | os.PathLike[str]) -> explanation.Explanation:
    """Reads what `save` wrote.

    Raises:
      FileNotFoundError: there is no explanation in the folder.
      ValueError: it is damaged, or of another version.
    """
    source = Path(os.path.expanduser(directory))
    if not (source / JSON).exists():
        raise FileNotFoundError(f"no {JSON} in {source}")
    try:
        content = json.loads((source / JSON).read_text(encoding="utf-8"))
        found = content["format"], content["version"]
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise ValueError(f"{source / JSON} is damaged: {error!r:.300}") from error
    # The first version had no digest.
    if found not in ((FORMAT, 1), (FORMAT, VERSION)):
        raise ValueError(
            f"{source / JSON} is {found[0]!r:.80}, version {found[1]!r:.80}; this "
            f"reads {FORMAT!r}, version {VERSION}"
        )
    try:
        with np.load(source / NPZ, allow_pickle=False) as stored:
            arrays = dict(stored)
        told = content["explanation"]
        if found[1] != 1 and content["sha256"] != _digest(told, arrays):
            raise ValueError("it does not hold what was written")
        return _value(explanation.Explanation, told, arrays, "explanation")
    # zipfile and zlib have errors of their own for a file that was cut or changed.
    except Exception as error:
        raise ValueError(
            f"the explanation in {source} is damaged: {error!r:.300}"
        ) from error


def _digest(told: Any, arrays: Mapping[str, np.ndarray]) -> str:
    """SHA-256 of both files' content, however it is laid out in them."""
    found = hashlib.sha256(json.dumps(told, sort_keys=True).encode())
    for name in sorted(arrays):
        array = np.asarray(arrays[name])
        found.update(f"{name} {array.dtype} {array.shape}".encode())
        found.update(np.ascontiguousarray(array).tobytes())
    return found.hexdigest()


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


def _value(kind: Any, plain: Any, arrays: Mapping[str, np.ndarray], name: str) -> Any:
    """The value of type `kind` that `_plain` wrote; `name` says which, if it is none.

    Raises:
      TypeError: of another type.
    """
    kinds = _kinds(kind)
    match plain:
        case {"array": str(entry), **rest} if not rest and np.ndarray in kinds:
            array = arrays[entry]
            array.setflags(write=False)
            return array
        case {"float": str(text), **rest} if not rest and float in kinds:
            return float(text)
        case dict():
            made: Any
            for made in filter(dataclasses.is_dataclass, kinds):
                hints = typing.get_type_hints(made)
                if unknown := set(plain) - set(hints):
                    raise TypeError(f"{name} has no {sorted(unknown)!r:.80}")
                return made(
                    **{
                        key: _value(hints[key], value, arrays, f"{name}.{key}")
                        for key, value in plain.items()
                    }
                )
        case list():
            for parts in (
                typing.get_args(k) for k in kinds if typing.get_origin(k) is tuple
            ):
                if parts[-1] is Ellipsis:
                    parts = parts[:1] * len(plain)
                return tuple(
                    _value(k, value, arrays, f"{name}[{i}]")
                    for i, (k, value) in enumerate(zip(parts, plain, strict=True))
                )
        case str() if Path in kinds:
            return Path(plain)
        case _ if type(plain) in kinds:
            return plain
        case int() if type(plain) is int and float in kinds:
            return float(plain)
        case str() if any(plain in typing.get_args(k) for k in kinds):  # Literals
            return plain
    raise TypeError(f"{name} is {plain!r:.80}, which is no {kind}")


def _kinds(kind: Any) -> tuple[Any, ...]:
    """The types of a union, or the type itself."""
    union = typing.get_origin(kind) in (types.UnionType, typing.Union)
    return typing.get_args(kind) if union else (kind,)
