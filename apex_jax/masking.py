"""Does hiding the region hurt? The masking study (method, section 8).

In come test clips and an explained classifier; out come the logits with nothing
hidden, with the region of the most contributing channel hidden, and with regions of
the same shape at random cells hidden.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from jaxtyping import Array, Float, Int

from apex_jax import audio, data, disentangle, evidence, progress, schemes
from apex_jax import classifier as classifier_lib
from apex_jax import mesh as mesh_lib

BLUR = 0.25  # sigma of the filter's soft edge, in cells


@dataclasses.dataclass(frozen=True, kw_only=True)
class Study:
    """Logits of the same clips under the masks.

    Attributes:
      index: positions of the clips that could be read, `[clip]`.
      none: nothing hidden, `[clip, classes]`.
      apex: the top channel's region hidden, `[clip, classes]`.
      random: a random region hidden, `[draw, clip, classes]`.
      location: of the top channel's region, `[clip, 2]`.
    """

    index: np.ndarray
    none: np.ndarray
    apex: np.ndarray
    random: np.ndarray
    location: np.ndarray


def attenuate(
    front_end: audio.FrontEnd,
    spectrogram: Float[Array, "batch freq time"],
    mask: Float[Array, "batch freq time"],
) -> Float[Array, "batch freq time"]:
    """Silences what the mask covers: `S' = S (1 - M) + silence M`.

    Args:
      front_end: tells what silence is in the spectrogram's units.
      spectrogram: from `audio.spectrogram`.
      mask: in [0, 1], 1 hides.
    """
    silence = audio.silence_level(front_end, spectrogram)[:, None, None]
    return spectrogram * (1 - mask) + silence * mask


@functools.partial(jax.jit, static_argnames=("front_end", "scheme", "draws", "mesh"))
def masked_logits(
    key: jax.Array,
    classifier: classifier_lib.Classifier,
    transform: disentangle.Transform,
    waveform: Float[Array, "batch sample"],
    index: Int[Array, " batch"],
    *,
    front_end: audio.FrontEnd,
    scheme: schemes.Scheme,
    draws: int,
    mesh: Mesh,
) -> tuple[jax.Array, jax.Array, jax.Array, jax.Array]:
    """One batch of the study.

    Args:
      key: with `index` it decides the random regions, whatever the batches.
      classifier: the untouched network.
      transform: U, mu.
      waveform: `[batch, sample]`.
      index: of the clips.
      front_end: settings of the spectrogram.
      scheme: where regions lie.
      draws: random regions a clip.
      mesh: devices the batch is spread over.

    Returns:
      Logits with nothing, the region and random regions hidden; and the locations
      `[batch, 2]`.
    """

    def on_device(copied, spread):
        key, classifier, transform = copied
        waveform, index = spread
        spectrogram = audio.spectrogram(front_end, waveform)
        feature_map, logits = classifier(spectrogram)
        head = transform.compensate(classifier.head)
        grid = schemes.Grid.of(
            feature_map.shape[1:3], front_end.shape, classifier.stride
        )

        def top_location(feature_map, logits):
            pooled = transform(classifier_lib.pool(feature_map))
            share = evidence.contributions(head, pooled, jnp.argmax(logits))
            views = schemes.views(feature_map, keep_cells=schemes.needs_cells(scheme))
            return schemes.locate(scheme, views, transform.matrix[jnp.argmax(share)])

        def logits_without(location):
            mask = jax.vmap(functools.partial(grid.mask, scheme, blur=BLUR))(location)
            return classifier(attenuate(front_end, spectrogram, mask))[1]

        def random_draw(draw):
            draw_key = jax.random.fold_in(key, draw)
            keys = jax.vmap(functools.partial(jax.random.fold_in, draw_key))(index)
            return logits_without(jax.vmap(grid.random_location)(keys))

        location = jax.vmap(top_location)(feature_map, logits)
        # One draw at a time: memory does not grow with their number.
        random = jax.lax.map(random_draw, jnp.arange(draws))
        return logits, logits_without(location), random, location

    spread = mesh_lib.CLIPS
    draws_first = jax.sharding.PartitionSpec(None, mesh_lib.AXIS)
    return mesh_lib.map_clips(
        on_device, mesh, out_specs=(spread, spread, draws_first, spread)
    )((key, classifier, transform), (waveform, index))


def study(
    key: jax.Array,
    classifier: classifier_lib.Classifier,
    transform: disentangle.Transform,
    clips: Sequence[data.Clip],
    front_end: audio.FrontEnd,
    *,
    scheme: schemes.Scheme,
    draws: int = 10,
    batch_size: int = 32,
    mesh: Mesh | None = None,
    skip_log: data.SkipLog | None = None,
    on_progress: progress.OnProgress = progress.silent,
) -> Study:
    """Classifies every clip unmasked, without its region, and without random ones.

    Args:
      key: for the random regions.
      classifier: the untouched network.
      transform: U, mu.
      clips: usually the test clips.
      front_end: settings of the spectrogram.
      scheme: where regions lie.
      draws: random regions a clip.
      batch_size: clips a step.
      mesh: devices; None for all.
      skip_log: notes clips that cannot be read; None raises at the first.
      on_progress: told how many clips are done.

    Raises:
      ValueError: no clip could be read.
    """
    mesh = mesh_lib.make() if mesh is None else mesh
    skip_log = data.SkipLog(strict=True) if skip_log is None else skip_log
    front_end.check_devices(mesh.size)
    classifier, transform = mesh_lib.replicate((classifier, transform), mesh)
    parts: list[tuple[np.ndarray, ...]] = []
    for batch in data.batches(
        clips,
        front_end,
        batch_size=mesh_lib.round_up(batch_size, mesh),
        skip_log=skip_log,
    ):
        none, apex, random, location = masked_logits(
            key,
            classifier,
            transform,
            mesh_lib.shard(batch["waveform"], mesh),
            mesh_lib.shard(batch["index"], mesh),
            front_end=front_end,
            scheme=scheme,
            draws=draws,
            mesh=mesh,
        )
        valid = batch["valid"]
        parts.append(
            (
                batch["index"][valid],
                np.asarray(none)[valid],
                np.asarray(apex)[valid],
                np.asarray(random)[:, valid],
                np.asarray(location)[valid],
            )
        )
        on_progress(int((batch["index"] >= 0).sum()))
    index, none, apex, random, location = zip(*parts, strict=True)
    if not sum(map(len, index)):
        raise ValueError(f"none of the {len(clips)} clips could be read")
    return Study(
        index=np.concatenate(index),
        none=np.concatenate(none),
        apex=np.concatenate(apex),
        random=np.concatenate(random, axis=1),
        location=np.concatenate(location),
    )
