"""The backbone once per clip, kept on disk.

In come a classifier, clips and a front end; out come `Features` and the clips that
could be read. On disk a cache is a folder: `cache.json` holds the fingerprint of
everything the features depend on and how many consecutive clips a shard covers, and
each shard, a NumPy file, holds the features of its clips and what was skipped.

A shard appears whole or not at all and depends on no other one. So an interrupted
build goes on from the finished shards, and several processes fill one cache in a
folder that all of them see, each its own shards on its own devices; who reads it later
need not be as many. A cache that other weights, settings or clips made is refused.
"""

from __future__ import annotations

import concurrent.futures
import dataclasses
import functools
import hashlib
import json
import math
import os
import re
import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh

from apex_jax import (
    atomic,
    audio,
    data,
    disentangle,
    hosts,
    inference,
    progress,
    schemes,
)
from apex_jax import classifier as classifier_lib
from apex_jax import features as features_lib
from apex_jax import mesh as mesh_lib

VERSION = 3
SHARD_BYTES = 64 * 2**20


class CacheError(ValueError):
    """A cache that is missing, damaged, or made from something else."""


class DamagedError(CacheError):
    """A file of a cache is missing or damaged; `build` makes it anew, and it alone.

    Attributes:
      file: which.
    """

    def __init__(self, file: Path, what: str = "is damaged"):
        super().__init__(f"{file} {what}; cache.build makes it anew")
        self.file = file


def _warn_of(error: DamagedError) -> None:
    warnings.warn(f"{error.file} is damaged and made anew", stacklevel=3)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Cached:
    """Features and the clips they belong to, in the same order.

    Attributes:
      features: pooled vectors and logits on every host, NumPy; views spread over a
        mesh and padded beyond the clips.
      clips: those that could be read.
    """

    features: features_lib.Features
    clips: tuple[data.Clip, ...]


def fingerprint(
    classifier: classifier_lib.Classifier,
    clips: Sequence[data.Clip],
    front_end: audio.FrontEnd,
) -> dict[str, str]:
    """Digests of all that cached features depend on: weights, front end, clips.

    "weights" are the arrays, the network's settings and the function that runs it.
    A clip counts by its path, offset, and its file's size and time of modification.
    """
    listed = hashlib.sha256()
    for line in listing(clips):
        listed.update(line.encode(errors="surrogateescape"))  # names are bytes
    settings = json.dumps(front_end.to_dict(), sort_keys=True)
    return {
        "weights": weights_digest(classifier),
        "front end": hashlib.sha256(settings.encode()).hexdigest(),
        "clips": listed.hexdigest(),
    }


def listing(clips: Sequence[data.Clip]) -> Iterator[str]:
    """A line a clip: its path, offset, and its file's size and time of modification."""

    @functools.cache  # a recording can have many clips
    def state(path: str) -> str:
        try:
            stat = os.stat(path)
        except OSError:
            return "missing"
        return f"{stat.st_size} {stat.st_mtime_ns}"

    for clip in clips:
        path = os.fspath(clip.path)
        yield f"{path}\0{clip.offset_s}\0{state(path)}\n"


def weights_digest(classifier: classifier_lib.Classifier) -> str:
    """SHA-256 of the network: its arrays, settings and the function that runs it."""
    structure = f"{classifier.forward_fn} {jax.tree.structure(classifier.params)}"
    # What the network's modules are set to, less where in memory functions lie.
    weights = hashlib.sha256(re.sub(r" at 0x[0-9a-f]+", "", structure).encode())
    for path, leaf in jax.tree_util.tree_leaves_with_path(
        (classifier.params, classifier.head)
    ):
        array = np.asarray(leaf)
        label = f"{jax.tree_util.keystr(path)} {array.dtype} {array.shape}"
        weights.update(label.encode())
        weights.update(array.tobytes())
    return weights.hexdigest()


def build(
    directory: str | Path,
    classifier: classifier_lib.Classifier,
    clips: Sequence[data.Clip],
    front_end: audio.FrontEnd,
    *,
    content: inference.Content = "marginals",
    batch_size: int = 32,
    mesh: Mesh | None = None,
    skip_log: data.SkipLog | None = None,
    on_progress: progress.OnProgress = progress.silent,
) -> Cached:
    """Fills a cache, or goes on filling one that was interrupted, and loads it.

    A finished cache of the same fingerprint is loaded without running the backbone;
    a shard of it that is damaged is made anew, with a warning.

    Args:
      directory: the cache's own folder.
      classifier: the network.
      clips: what to cache, in order.
      front_end: settings of the spectrogram.
      content: "marginals", or "maps" for the square scheme as well.
      batch_size: clips a step.
      mesh: devices; None for all.
      skip_log: notes clips that cannot be read; None raises at the first.
      on_progress: told how many clips are done.

    Raises:
      CacheError: the folder holds a cache of something else; of several processes also
        where a shard is damaged.
      InvarianceError: the classifier's head does not give its own logits.
      ValueError: no clip could be read.
    """
    directory = Path(directory)
    mesh = mesh_lib.make() if mesh is None else mesh
    skip_log = data.SkipLog(strict=True) if skip_log is None else skip_log
    expected = fingerprint(classifier, clips, front_end)
    try:
        index = _read_index(directory, expected, content)
    except DamagedError as error:
        _warn_of(error)
        index = None
    if index is None:
        directory.mkdir(parents=True, exist_ok=True)
        index = {
            "version": VERSION,
            "fingerprint": expected,
            "content": content,
            "clips": len(clips),
            "shard_clips": _shard_clips(
                classifier, len(clips), front_end, content, batch_size, mesh
            ),
        }
    damaged: set[Path] = set()
    while True:
        _complete(
            directory,
            index,
            classifier,
            clips,
            front_end,
            batch_size=batch_size,
            mesh=mesh,
            skip_log=skip_log,
            on_progress=progress.silent if damaged else on_progress,
        )
        try:
            return _load(directory, index, clips, content, mesh)
        except DamagedError as error:
            # Other processes may be reading it; and a disk that fails twice is broken.
            if jax.process_count() > 1 or error.file in damaged:
                raise
            _warn_of(error)
            damaged.add(error.file)
            error.file.unlink(missing_ok=True)


def _complete(
    directory: Path,
    index: dict[str, Any],
    classifier: classifier_lib.Classifier,
    clips: Sequence[data.Clip],
    front_end: audio.FrontEnd,
    *,
    batch_size: int,
    mesh: Mesh,
    skip_log: data.SkipLog,
    on_progress: progress.OnProgress,
) -> None:
    """Fills the shards that are missing, damaged or of another cache."""
    # Before any process writes: what is finished is the same to all of them.
    finished = set()
    for number in _shards(index):
        try:
            if _is_finished(directory, index, number):
                _tell_skipped(directory, number, skip_log)
                finished.add(number)
        except DamagedError as error:
            _warn_of(error)
    hosts.barrier("cache opened")
    shards = _shards(index)
    left = [number for number in shards if number not in finished]
    own = [left[i] for i in hosts.share(len(left))]
    if own:
        on_progress(sum(len(_clips_of(index, number)) for number in finished))
        _fill(
            directory,
            index,
            own,
            classifier,
            clips,
            front_end,
            batch_size=-(-batch_size // jax.process_count()),
            mesh=mesh,
            skip_log=skip_log,
            on_progress=on_progress,
        )
    _write_index(directory, index)
    hosts.barrier("cache filled")
    if jax.process_count() > 1:
        for number in shards:
            _tell_skipped(directory, number, skip_log)


def load(
    directory: str | Path,
    classifier: classifier_lib.Classifier,
    clips: Sequence[data.Clip],
    front_end: audio.FrontEnd,
    *,
    content: inference.Content = "marginals",
    mesh: Mesh | None = None,
) -> Cached:
    """Loads a finished cache, whatever number of processes made it.

    Args:
      directory: the cache's folder.
      classifier: the network.
      clips: what was cached, in order.
      front_end: settings of the spectrogram.
      content: what is needed of it.
      mesh: devices the views go to; None for all.

    Raises:
      CacheError: it is missing, unfinished, damaged or made from something else.
    """
    directory = Path(directory)
    mesh = mesh_lib.make() if mesh is None else mesh
    expected = fingerprint(classifier, clips, front_end)
    index = _read_index(directory, expected, content)
    if index is None:
        raise CacheError(f"no feature cache in {directory}; make it with cache.build")
    finished = [n for n in _shards(index) if _is_finished(directory, index, n)]
    if len(finished) < len(_shards(index)):
        done = sum(len(_clips_of(index, number)) for number in finished)
        raise CacheError(
            f"the cache in {directory} was interrupted after {done} of "
            f"{len(clips)} clips; cache.build finishes it"
        )
    return _load(directory, index, clips, content, mesh)


def _read_index(
    directory: Path, expected: dict[str, str], content: inference.Content
) -> dict[str, Any] | None:
    """The cache's index; None where there is none yet."""
    file = directory / "cache.json"
    if not file.exists():
        return None
    remedy = "delete the folder or name another one"
    try:
        index = json.loads(file.read_text())
        version, digest = index["version"], index.pop("digest", None)
        # A cache of another format may have none.
        if digest != _name(index) and (digest is not None or version == VERSION):
            raise ValueError("its digest is not that of what it says")
        found = index.get("fingerprint", {})
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise DamagedError(file, f"is damaged ({error!r})") from error
    if version != VERSION:
        raise CacheError(
            f"the cache in {directory} has format {version}, not {VERSION}; {remedy}"
        )
    differs = [name for name, digest in expected.items() if found.get(name) != digest]
    if differs:
        raise CacheError(
            f"the cache in {directory} was made with other {' and '.join(differs)} "
            f"than asked for now; {remedy}"
        )
    if content == "maps" and index["content"] != "maps":
        raise CacheError(
            f"the cache in {directory} holds only row and column averages, and the "
            f"square scheme needs whole maps; {remedy}"
        )
    return index


def _write_index(directory: Path, index: dict[str, Any]) -> None:
    """By the primary process: from then on the cache is this one."""
    file = directory / "cache.json"
    text = json.dumps({**index, "digest": _name(index)}, indent=1).encode()
    if hosts.is_primary() and not (file.exists() and file.read_bytes() == text):
        atomic.write(file, lambda stream: stream.write(text))


def _shard_clips(
    classifier: classifier_lib.Classifier,
    num_clips: int,
    front_end: audio.FrontEnd,
    content: inference.Content,
    batch_size: int,
    mesh: Mesh,
) -> int:
    """Clips a shard: about `SHARD_BYTES`, as many shards to each process, a batch."""
    mesh = mesh_lib.local(mesh)
    batch = mesh_lib.round_up(batch_size, mesh)
    run = functools.partial(
        inference.extract, front_end=front_end, keep_cells=content == "maps", mesh=mesh
    )
    leaves = jax.eval_shape(
        lambda *arguments: jax.tree.leaves(run(*arguments)),
        classifier,
        jax.ShapeDtypeStruct((batch, front_end.num_samples), np.float32),
    )
    bytes_a_clip = sum(leaf.size * leaf.dtype.itemsize for leaf in leaves) // batch
    rounds = math.ceil(num_clips * bytes_a_clip / SHARD_BYTES / jax.process_count())
    shards = max(1, rounds) * jax.process_count()
    return max(batch_size, math.ceil(num_clips / shards))


def _shards(index: dict[str, Any]) -> range:
    return range(-(-index["clips"] // index["shard_clips"]))


def _clips_of(index: dict[str, Any], number: int) -> range:
    """The positions of a shard's clips."""
    first = number * index["shard_clips"]
    return range(first, min(first + index["shard_clips"], index["clips"]))


def _file(directory: Path, number: int) -> Path:
    return directory / f"shard-{number:05d}.npz"


def _name(index: dict[str, Any]) -> str:
    """What a shard is marked with: a shard of another cache is none of this one."""
    return hashlib.sha256(json.dumps(index, sort_keys=True).encode()).hexdigest()


def _is_finished(directory: Path, index: dict[str, Any], number: int) -> bool:
    file = _file(directory, number)
    return file.exists() and str(_read(file, "cache")["cache"]) == _name(index)


def _tell_skipped(directory: Path, number: int, skip_log: data.SkipLog) -> None:
    for path, reason in _read(_file(directory, number), "skipped")["skipped"]:
        skip_log.add(audio.AudioError(str(path), str(reason)))


def _read(file: Path, *names: str) -> dict[str, np.ndarray]:
    """Arrays of a shard; a checksum that the file brings along guards each."""
    try:
        with file.open("rb") as stream, np.load(stream, allow_pickle=False) as arrays:
            return {name: arrays[name] for name in names}
    except FileNotFoundError as error:
        raise DamagedError(file, "is missing") from error
    # NumPy and zipfile tell of damage in a dozen ways.
    except Exception as error:
        raise DamagedError(file) from error


def _fill(
    directory: Path,
    index: dict[str, Any],
    shards: Sequence[int],
    classifier: classifier_lib.Classifier,
    clips: Sequence[data.Clip],
    front_end: audio.FrontEnd,
    *,
    batch_size: int,
    mesh: Mesh,
    skip_log: data.SkipLog,
    on_progress: progress.OnProgress,
) -> None:
    """Runs the clips of `shards` and writes each shard once its last clip is done."""
    positions = np.concatenate([_clips_of(index, number) for number in shards])
    held: list[dict[str, np.ndarray]] = []
    checked = False

    def write(number: int, held: list[dict[str, np.ndarray]]) -> None:
        arrays = {name: np.concatenate([h[name] for h in held]) for name in held[0]}
        paths = {str(clips[i].path) for i in _clips_of(index, number)}
        skipped = [entry for entry in skip_log.entries() if entry[0] in paths]
        arrays["skipped"] = np.array(skipped, np.str_).reshape(-1, 2)
        arrays["cache"] = np.array(_name(index))
        atomic.write(
            _file(directory, number),
            lambda file: np.savez(file, **arrays),  # type: ignore[arg-type]
        )

    # The device goes on while a shard is written.
    with concurrent.futures.ThreadPoolExecutor(1) as writer:
        waiting: concurrent.futures.Future[None] | None = None
        for found, valid, arrays in inference.batches(
            classifier,
            [clips[i] for i in positions],
            front_end,
            content=index["content"],
            batch_size=batch_size,
            mesh=mesh,
            skip_log=skip_log,
            on_progress=on_progress,
        ):
            if not checked and valid.any():
                disentangle.audit(
                    disentangle.identity(arrays["pooled"].shape[-1]),
                    classifier.head,
                    arrays["pooled"][valid],
                    arrays["logits"][valid],
                ).check()
                checked = True
                # Not before: who gave a wrong head must find an empty folder next time.
                _write_index(directory, index)
            arrays["index"] = positions[found]
            numbers = arrays["index"] // index["shard_clips"]
            for number in np.unique(numbers).tolist():
                here = numbers == number
                held.append({name: a[here & valid] for name, a in arrays.items()})
                if arrays["index"][here][-1] == _clips_of(index, number)[-1]:
                    # One at a time: no more than two shards are held.
                    if waiting is not None:
                        waiting.result()
                    waiting = writer.submit(write, number, held)
                    held = []
        if waiting is not None:
            waiting.result()


def _load(
    directory: Path,
    index: dict[str, Any],
    clips: Sequence[data.Clip],
    content: inference.Content,
    mesh: Mesh,
) -> Cached:
    """Pooled vectors and logits to the host, views straight to the devices."""
    files = [_file(directory, number) for number in _shards(index)]
    positions = [_read(file, "index")["index"] for file in files]
    starts = np.cumsum([0, *map(len, positions)])
    total = int(starts[-1])
    if total == 0:
        log = data.SkipLog()
        for number in _shards(index):
            _tell_skipped(directory, number, log)
        reason = log.entries()[0] if len(log) else "there are no clips"
        raise ValueError(
            f"none of the {len(clips)} clips could be read; the first reason: {reason}"
        )

    # Filled shard by shard: never the shards and their concatenation at once.
    whole: dict[str, np.ndarray] = {}
    for file, start in zip(files, starts, strict=False):
        for name, part in _read(file, "pooled", "logits").items():
            if name not in whole:
                whole[name] = np.empty((total, *part.shape[1:]), part.dtype)
            whole[name][start : start + len(part)] = part

    names = ("rows", "columns", *(("cells",) if content == "maps" else ()))

    def read(rows: range) -> Iterator[dict[str, np.ndarray]]:
        for file, start, end in zip(files, starts, starts[1:], strict=False):
            part = slice(max(rows.start, start) - start, min(rows.stop, end) - start)
            if part.start < part.stop:
                arrays = _read(file, *names)
                yield {name: array[part] for name, array in arrays.items()}

    row = {
        name: jax.ShapeDtypeStruct(array.shape[1:], array.dtype)
        for name, array in _read(files[0], *names).items()
    }
    views: dict[str, Any] = mesh_lib.assemble(read, row, total, mesh)
    return Cached(
        features=features_lib.Features(
            pooled=whole["pooled"],
            logits=whole["logits"],
            views=schemes.Views(**views),
            num_clips=total,
        ),
        clips=tuple(clips[i] for i in np.concatenate(positions)),
    )
