"""The backbone once per clip, kept on disk.

In come a classifier, clips and a front end; out come `Features` and the clips that
could be read. On disk a cache is a folder of NumPy shards beside `cache.json`, which
holds the fingerprint of everything the features depend on, each shard's checksum and
the clips that were skipped. A cache that other weights, settings or clips made is
refused. An interrupted build goes on after its last finished shard.
"""

from __future__ import annotations

import collections
import dataclasses
import functools
import hashlib
import json
import os
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Literal

import jax
import numpy as np
from jax.sharding import Mesh
from jaxtyping import Array, Float

from apex_jax import audio, data, disentangle, progress, schemes
from apex_jax import classifier as classifier_lib
from apex_jax import features as features_lib
from apex_jax import mesh as mesh_lib

VERSION = 1
SHARD_BYTES = 64 * 2**20

# "marginals" serves the time, frequency and time-frequency schemes; "maps" all four.
Content = Literal["marginals", "maps"]


class CacheError(ValueError):
    """A cache that is missing, damaged, or made from something else."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Cached:
    """Features on the host and the clips they belong to, in the same order."""

    features: features_lib.Features
    clips: tuple[data.Clip, ...]


def content_for(scheme: schemes.Scheme) -> Content:
    """What a cache must hold for a scheme."""
    return "maps" if schemes.needs_cells(scheme) else "marginals"


@functools.partial(jax.jit, static_argnames=("front_end", "keep_cells", "mesh"))
def extract(
    classifier: classifier_lib.Classifier,
    waveform: Float[Array, "batch sample"],
    *,
    front_end: audio.FrontEnd,
    keep_cells: bool,
    mesh: Mesh,
) -> tuple[jax.Array, jax.Array, schemes.Views]:
    """Pooled vectors, the network's own logits and views of a batch of waveforms."""

    def on_device(classifier, waveform):
        feature_map, logits = classifier(audio.spectrogram(front_end, waveform))
        pooled = classifier_lib.pool(feature_map)
        return pooled, logits, schemes.views(feature_map, keep_cells=keep_cells)

    return mesh_lib.map_clips(on_device, mesh)(classifier, waveform)


def stream(
    classifier: classifier_lib.Classifier,
    clips: Sequence[data.Clip],
    front_end: audio.FrontEnd,
    *,
    content: Content = "marginals",
    batch_size: int = 32,
    mesh: Mesh,
    skip_log: data.SkipLog,
    on_progress: progress.OnProgress = progress.silent,
) -> Iterator[tuple[np.ndarray, dict[str, np.ndarray]]]:
    """One pass of the backbone over clips, batch by batch.

    Args:
      classifier: the network.
      clips: in the order wanted.
      front_end: settings of the spectrogram.
      content: whether whole maps are kept.
      batch_size: clips a step over all devices, rounded up to a multiple of them.
      mesh: devices the batches are spread over.
      skip_log: notes the clips that cannot be read, which are left out.
      on_progress: told how many clips are done.

    Yields:
      Positions in `clips` `[n]`, and arrays by name: pooled `[n, chan]`, logits
      `[n, classes]`, rows `[n, F, chan]`, columns `[n, T, chan]`, and for "maps"
      cells `[n, F, T, chan]`. `n` is at most the batch size.
    """
    front_end.check_devices(mesh.size)
    classifier = mesh_lib.replicate(classifier, mesh)
    pending: collections.deque = collections.deque()

    def finish() -> tuple[np.ndarray, dict[str, np.ndarray]]:
        batch, (pooled, logits, views) = pending.popleft()
        valid = batch["valid"]
        arrays = {
            "pooled": pooled,
            "logits": logits,
            "rows": views.rows,
            "columns": views.columns,
        }
        if views.cells is not None:
            arrays["cells"] = views.cells
        on_progress(int((batch["index"] >= 0).sum()))
        return batch["index"][valid], {
            k: np.asarray(v)[valid] for k, v in arrays.items()
        }

    for batch in data.batches(
        clips,
        front_end,
        batch_size=mesh_lib.round_up(batch_size, mesh),
        skip_log=skip_log,
    ):
        waveform = mesh_lib.shard(batch["waveform"], mesh)
        result = extract(
            classifier,
            waveform,
            front_end=front_end,
            keep_cells=content == "maps",
            mesh=mesh,
        )
        pending.append((batch, result))
        # The device works on this batch while the last one is fetched.
        if len(pending) > 1:
            yield finish()
    while pending:
        yield finish()


def fingerprint(
    classifier: classifier_lib.Classifier,
    clips: Sequence[data.Clip],
    front_end: audio.FrontEnd,
) -> dict[str, str]:
    """Digests of all that cached features depend on: weights, front end, clips.

    "weights" are the arrays, the network's settings and the function that runs it.
    A clip counts by its path, offset, and its file's size and time of modification.
    """
    listing = hashlib.sha256()
    for clip in clips:
        try:
            stat = os.stat(clip.path)
            state = f"{stat.st_size} {stat.st_mtime_ns}"
        except OSError:
            state = "missing"
        listing.update(f"{clip.path}\0{clip.offset_s}\0{state}\n".encode())
    settings = json.dumps(front_end.to_dict(), sort_keys=True)
    return {
        "weights": weights_digest(classifier),
        "front end": hashlib.sha256(settings.encode()).hexdigest(),
        "clips": listing.hexdigest(),
    }


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
    content: Content = "marginals",
    batch_size: int = 32,
    mesh: Mesh | None = None,
    skip_log: data.SkipLog | None = None,
    on_progress: progress.OnProgress = progress.silent,
) -> Cached:
    """Fills a cache, or goes on filling one that was interrupted, and loads it.

    A finished cache of the same fingerprint is loaded without running the backbone.

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
      CacheError: the folder holds a cache of something else, or a damaged one.
      InvarianceError: the classifier's head does not give its own logits.
      ValueError: no clip could be read.
    """
    directory = Path(directory)
    mesh = mesh_lib.make() if mesh is None else mesh
    skip_log = data.SkipLog(strict=True) if skip_log is None else skip_log
    expected = fingerprint(classifier, clips, front_end)
    index = _open_index(directory, expected, content)
    for path, reason in index["skipped"]:
        skip_log.add(audio.AudioError(path, reason))

    done = index["clips_done"]
    if done < len(clips):
        on_progress(done)
        _fill(
            directory,
            index,
            classifier,
            clips,
            front_end,
            batch_size=batch_size,
            mesh=mesh,
            skip_log=skip_log,
            on_progress=on_progress,
        )
    return _load(directory, index, clips, content)


def load(
    directory: str | Path,
    classifier: classifier_lib.Classifier,
    clips: Sequence[data.Clip],
    front_end: audio.FrontEnd,
    *,
    content: Content = "marginals",
) -> Cached:
    """Loads a finished cache.

    Raises:
      CacheError: it is missing, unfinished, damaged or made from something else.
    """
    directory = Path(directory)
    if not (directory / "cache.json").exists():
        raise CacheError(f"no feature cache in {directory}; make it with cache.build")
    expected = fingerprint(classifier, clips, front_end)
    index = _open_index(directory, expected, content)
    if index["clips_done"] < len(clips):
        raise CacheError(
            f"the cache in {directory} was interrupted after {index['clips_done']} of "
            f"{len(clips)} clips; cache.build finishes it"
        )
    return _load(directory, index, clips, content)


def _open_index(
    directory: Path, expected: dict[str, str], content: Content
) -> dict[str, Any]:
    """The cache's index, or a new one for an empty folder."""
    file = directory / "cache.json"
    if not file.exists():
        directory.mkdir(parents=True, exist_ok=True)
        return {
            "version": VERSION,
            "fingerprint": expected,
            "content": content,
            "clips_done": 0,
            "shards": [],
            "skipped": [],
        }
    remedy = "delete the folder or name another one"
    try:
        index = json.loads(file.read_text())
        version = index["version"]
        if version == VERSION:
            for name in ("content", "clips_done", "shards", "skipped"):
                index[name]
            found = dict(index["fingerprint"])
    except (ValueError, KeyError, TypeError) as error:
        raise CacheError(f"{file} is damaged ({error!r}); {remedy}") from error
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


def _fill(
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
    first = index["clips_done"]
    held: list[tuple[np.ndarray, dict[str, np.ndarray]]] = []
    held_bytes = 0
    checked = False

    def flush(clips_done: int) -> None:
        nonlocal held, held_bytes
        arrays = {
            name: np.concatenate([batch[name] for _, batch in held])
            for name in (held[0][1] if held else ())
        }
        if arrays:
            arrays["index"] = np.concatenate([position for position, _ in held])
            name = f"shard-{len(index['shards']):05d}.npz"
            digest = _write_npz(directory / name, arrays)
            index["shards"].append(
                {"file": name, "clips": len(arrays["index"]), "sha256": digest}
            )
        index["clips_done"] = clips_done
        seen = {str(clip.path) for clip in clips[:clips_done]}
        index["skipped"] = [skip for skip in skip_log.entries() if skip[0] in seen]
        _write_whole(directory / "cache.json", json.dumps(index, indent=1).encode())
        held, held_bytes = [], 0

    for position, arrays in stream(
        classifier,
        clips[first:],
        front_end,
        content=index["content"],
        batch_size=batch_size,
        mesh=mesh,
        skip_log=skip_log,
        on_progress=on_progress,
    ):
        if len(position) == 0:
            continue
        if not checked:
            chan = arrays["pooled"].shape[-1]
            disentangle.audit(
                disentangle.identity(chan),
                classifier.head,
                arrays["pooled"],
                arrays["logits"],
            ).check()
            checked = True
        held.append((position + first, arrays))
        held_bytes += sum(array.nbytes for array in arrays.values())
        if held_bytes >= SHARD_BYTES:
            flush(int(position[-1]) + first + 1)
    flush(len(clips))


def _load(
    directory: Path, index: dict[str, Any], clips: Sequence[data.Clip], content: Content
) -> Cached:
    total = sum(shard["clips"] for shard in index["shards"])
    if total == 0:
        raise ValueError(
            f"none of the {len(clips)} clips could be read; the first reason: "
            f"{index['skipped'][0] if index['skipped'] else 'there are no clips'}"
        )
    wanted = ["index", "pooled", "logits", "rows", "columns"]
    if content == "maps":
        wanted.append("cells")
    # Filled shard by shard: never the shards and their concatenation at once.
    whole: dict[str, Any] = {}
    row = 0
    for shard in index["shards"]:
        file = directory / shard["file"]
        if not file.exists():
            raise CacheError(f"{file} is missing; delete the folder to make it anew")
        if _digest(file) != shard["sha256"]:
            raise CacheError(f"{file} is damaged; delete the folder to make it anew")
        with np.load(file, allow_pickle=False) as arrays:
            for name in wanted:
                part = arrays[name]
                if name not in whole:
                    whole[name] = np.empty((total, *part.shape[1:]), part.dtype)
                whole[name][row : row + shard["clips"]] = part
        row += shard["clips"]
    features = features_lib.Features(
        pooled=whole["pooled"],
        logits=whole["logits"],
        views=schemes.Views(
            rows=whole["rows"], columns=whole["columns"], cells=whole.get("cells")
        ),
        num_clips=total,
    )
    return Cached(features=features, clips=tuple(clips[i] for i in whole["index"]))


def _digest(file: Path) -> str:
    with file.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def _write_npz(file: Path, arrays: dict[str, np.ndarray]) -> str:
    temporary = file.with_suffix(".tmp")
    with temporary.open("wb") as stream:
        np.savez(stream, **arrays)  # type: ignore[arg-type]
        stream.flush()
        os.fsync(stream.fileno())
    digest = _digest(temporary)
    os.replace(temporary, file)
    return digest


def _write_whole(file: Path, content: bytes) -> None:
    """Writes a file that appears whole or not at all."""
    temporary = file.with_suffix(".tmp")
    with temporary.open("wb") as stream:
        stream.write(content)
        stream.flush()
        os.fsync(stream.fileno())
    os.replace(temporary, file)
