"""Clips through the network, batch by batch.

In come a network, clips and a front end; out come, on the host and in the order of
the clips, pooled vectors, logits and the views of the feature map. Reading runs ahead
of the devices, and what they have done is fetched while they go on.
"""

from __future__ import annotations

import collections
import functools
from collections.abc import Iterator, Sequence
from typing import Literal

import jax
import numpy as np
from jax.sharding import Mesh
from jaxtyping import Array, Float

from apex_jax import audio, data, hosts, progress, schemes
from apex_jax import classifier as classifier_lib
from apex_jax import mesh as mesh_lib

# "marginals" serves the time, frequency and time-frequency schemes; "maps" all four.
Content = Literal["marginals", "maps"]


def content_for(scheme: schemes.Scheme) -> Content:
    """What a cache must hold for a scheme."""
    return "maps" if schemes.needs_cells(scheme) else "marginals"


@functools.partial(jax.jit, static_argnames=("front_end", "keep_cells", "mesh"))
def extract(
    network: classifier_lib.Network,
    waveform: Float[Array, "batch sample"],
    *,
    front_end: audio.FrontEnd,
    keep_cells: bool,
    mesh: Mesh,
) -> tuple[jax.Array, jax.Array, schemes.Views]:
    """Pooled vectors, the network's own logits and views of a batch of waveforms."""

    def on_device(network, waveform):
        feature_map, logits = network(audio.spectrogram(front_end, waveform))
        pooled = classifier_lib.pool(feature_map)
        return pooled, logits, schemes.views(feature_map, keep_cells=keep_cells)

    together = front_end.couples_clips
    return mesh_lib.map_clips(on_device, mesh, together=together)(network, waveform)


def batches(
    network: classifier_lib.Network,
    clips: Sequence[data.Clip],
    front_end: audio.FrontEnd,
    *,
    content: Content,
    batch_size: int,
    mesh: Mesh,
    skip_log: data.SkipLog,
    on_progress: progress.OnProgress,
) -> Iterator[tuple[np.ndarray, np.ndarray, dict[str, np.ndarray]]]:
    """One pass of the backbone over clips, also of those that cannot be read.

    Of several processes each runs all of `clips`, on its own devices.

    Args:
      network: what is run.
      clips: in the order wanted.
      front_end: settings of the spectrogram.
      content: whether whole maps are kept.
      batch_size: clips a step, rounded up to a multiple of the devices.
      mesh: devices the batches are spread over; of those, this process's own.
      skip_log: notes the clips that cannot be read.
      on_progress: told how many clips are done.

    Yields:
      Positions in `clips` `[n]`, which of them could be read `[n]`, and arrays by name:
      pooled `[n, chan]`, logits `[n, classes]`, rows `[n, F, chan]`, columns
      `[n, T, chan]`, and for "maps" cells `[n, F, T, chan]`. `n` is at most the batch
      size; what belongs to a clip that could not be read means nothing.
    """
    mesh = mesh_lib.local(mesh)
    front_end.check_devices(mesh.size)
    network = mesh_lib.replicate(network, mesh)
    pending: collections.deque = collections.deque()

    def finish() -> tuple[np.ndarray, np.ndarray, dict[str, np.ndarray]]:
        batch, (pooled, logits, views) = pending.popleft()
        arrays = {
            "pooled": pooled,
            "logits": logits,
            "rows": views.rows,
            "columns": views.columns,
        }
        if views.cells is not None:
            arrays["cells"] = views.cells
        clip = batch["index"] >= 0
        on_progress(int(clip.sum()))
        return (
            batch["index"][clip],
            batch["valid"][clip],
            {name: np.asarray(array)[clip] for name, array in arrays.items()},
        )

    for batch in data.batches(
        clips,
        front_end,
        batch_size=mesh_lib.round_up(batch_size, mesh),
        skip_log=skip_log,
    ):
        waveform = mesh_lib.shard(batch["waveform"], mesh)
        result = extract(
            network,
            waveform,
            front_end=front_end,
            keep_cells=content == "maps",
            mesh=mesh,
        )
        for array in jax.tree.leaves(result):
            array.copy_to_host_async()
        pending.append((batch, result))
        # The device works on this batch and the next while an earlier one is fetched.
        if len(pending) > 2:
            yield finish()
    while pending:
        yield finish()


def stream(
    network: classifier_lib.Network,
    clips: Sequence[data.Clip],
    front_end: audio.FrontEnd,
    *,
    content: Content = "marginals",
    batch_size: int = 32,
    mesh: Mesh,
    skip_log: data.SkipLog,
    on_progress: progress.OnProgress = progress.silent,
) -> Iterator[tuple[np.ndarray, dict[str, np.ndarray]]]:
    """`batches` without the clips that cannot be read: positions and arrays."""
    for index, valid, arrays in batches(
        network,
        clips,
        front_end,
        content=content,
        batch_size=batch_size,
        mesh=mesh,
        skip_log=skip_log,
        on_progress=on_progress,
    ):
        yield index[valid], {name: array[valid] for name, array in arrays.items()}


def predict(
    network: classifier_lib.Network,
    clips: Sequence[data.Clip],
    front_end: audio.FrontEnd,
    *,
    batch_size: int = 32,
    mesh: Mesh,
    skip_log: data.SkipLog,
    on_progress: progress.OnProgress = progress.silent,
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Pooled vectors and logits of the clips that can be read, in their order.

    Of several processes each runs its share; all of them return the whole.

    Args:
      network: what is run.
      clips: what to classify.
      front_end: settings of the spectrogram.
      batch_size: clips a step.
      mesh: devices.
      skip_log: notes clips that cannot be read.
      on_progress: told how many clips are done.

    Returns:
      Positions in `clips` `[n]`, pooled `[n, chan]` and logits `[n, classes]`.

    Raises:
      ValueError: no clip could be read.
    """
    # Fewer clips than processes: each runs all of them.
    spread = len(clips) >= jax.process_count()
    own = hosts.share(len(clips)) if spread else range(len(clips))
    parts = [
        (positions + own.start, arrays["pooled"], arrays["logits"])
        for positions, arrays in stream(
            network,
            clips[own.start : own.stop],
            front_end,
            batch_size=batch_size,
            mesh=mesh,
            skip_log=skip_log,
            on_progress=on_progress,
        )
    ]
    whole = tuple(np.concatenate(arrays) for arrays in zip(*parts, strict=True))
    positions, pooled, logits = hosts.concatenate(whole) if spread else whole
    skip_log.share()
    if not len(positions):
        raise ValueError(f"none of the {len(clips)} clips could be read")
    return positions, pooled, logits
