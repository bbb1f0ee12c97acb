"""Does hiding the region hurt? The masking study (method, section 8).

In come test clips and an explained classifier; out come the logits with nothing
hidden, with the region of the most contributing channel hidden, and with regions of
the same shape at random cells hidden; or, of one clip, also what is left to see.

A random cell can be the clip's own, as in the paper: on a map of few rows a random row
is often APEX's, and the two then differ less. `exclude_own` draws among the others.
"""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from jaxtyping import Array, Float, Int

from apex_jax import (
    audio,
    data,
    disentangle,
    explanation,
    hosts,
    look,
    occlusion,
    progress,
    schemes,
    settings,
)
from apex_jax import classifier as classifier_lib
from apex_jax import evidence as evidence_lib
from apex_jax import explainer as explainer_lib
from apex_jax import mesh as mesh_lib

BLUR = 0.25  # sigma of a mask's soft edge, in cells


@dataclasses.dataclass(frozen=True, kw_only=True)
class Study:
    """Logits of the same clips under the masks.

    Attributes:
      index: positions of the clips that could be read, `[clip]`.
      none: nothing hidden, `[clip, classes]`.
      apex: the top channel's region hidden, `[clip, classes]`.
      random: a random region hidden, `[draw, clip, classes]`.
      location: of the top channel's region, `[clip, 2]`.
      own_share: how often a region is the clip's own if it is drawn from all; None
        where the random ones were, and nothing need be made up for.
    """

    index: np.ndarray
    none: np.ndarray
    apex: np.ndarray
    random: np.ndarray
    location: np.ndarray
    own_share: float | None = None


@dataclasses.dataclass(frozen=True, kw_only=True)
class Hidden:
    """A clip with a region silenced, and with another one of the same shape.

    Attributes:
      scheme: where the region lies.
      learned: that of U.
      areas: the region.
      mask: what hides it, soft at the edges, `[F_in, T_in]`.
      spectrogram: what is left, `[F_in, T_in]`.
      probability: of the class explained, of what is left.
      random_spectrogram: what a random region leaves, `[F_in, T_in]`.
      random_probability: of the same class.
      random_mean: mean of it over several random regions.
      draws: how many.
    """

    scheme: schemes.Scheme
    learned: schemes.Scheme
    areas: tuple[explanation.Area, ...]
    mask: np.ndarray
    spectrogram: np.ndarray
    probability: float
    random_spectrogram: np.ndarray
    random_probability: float
    random_mean: float
    draws: int


@functools.partial(
    jax.jit,
    static_argnames=(
        "front_end", "scheme", "draws", "exclude_own", "evidence", "locate", "mesh"
    ),
)  # fmt: skip
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
    exclude_own: bool = False,
    evidence: settings.Evidence = "plain",
    locate: settings.Location = "map",
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
      exclude_own: never draw the top channel's region.
      evidence: what the top channel contributes most to, see `evidence.head_of`.
      locate: what finds its region, its map or occlusion.
      mesh: devices the batch is spread over.

    Returns:
      Logits with nothing, the region and random regions hidden, the last of them
      `[batch, draw, classes]`; and the locations `[batch, 2]`.
    """

    def on_device(copied, spread):
        key, classifier, transform = copied
        waveform, index = spread
        spectrogram = audio.spectrogram(front_end, waveform)
        feature_map, logits = classifier(spectrogram)
        head = evidence_lib.head_of(
            transform.compensate(classifier.head), classifier.activation, evidence
        )
        grid = schemes.Grid.of(
            feature_map.shape[1:3], front_end.shape, classifier.stride
        )

        pooled = classifier_lib.pool(feature_map)
        views = schemes.views(feature_map, keep_cells=schemes.needs_cells(scheme))
        if locate == "occlusion":
            views = occlusion.effects(
                classifier, front_end, spectrogram, pooled, grid=grid, scheme=scheme
            )

        def top_location(views, pooled, logits):
            share = evidence_lib.contributions(
                head, transform(pooled), jnp.argmax(logits)
            )
            return schemes.locate(scheme, views, transform.matrix[jnp.argmax(share)])

        def logits_without(location):
            mask = masks(grid, scheme, location)
            return classifier(audio.attenuate(front_end, spectrogram, mask))[1]

        def random_draw(draw):
            draw_key = jax.random.fold_in(key, draw)
            keys = jax.vmap(functools.partial(jax.random.fold_in, draw_key))(index)
            if not exclude_own:
                return logits_without(jax.vmap(grid.random_location)(keys))
            other = jax.vmap(lambda key, own: grid.other_location(key, scheme, own))
            return logits_without(other(keys, location))

        location = jax.vmap(top_location)(views, pooled, logits)
        # One draw at a time: memory does not grow with their number.
        random = jax.lax.map(random_draw, jnp.arange(draws))
        clips_first = jnp.swapaxes(random, 0, 1)
        return logits, logits_without(location), clips_first, location

    together = front_end.couples_clips
    return mesh_lib.map_clips(on_device, mesh, together=together)(
        (key, classifier, transform), (waveform, index)
    )


def study(
    key: jax.Array,
    classifier: classifier_lib.Classifier,
    transform: disentangle.Transform,
    clips: Sequence[data.Clip],
    front_end: audio.FrontEnd,
    *,
    scheme: schemes.Scheme,
    draws: int = 10,
    exclude_own: bool = False,
    evidence: settings.Evidence = "plain",
    locate: settings.Location = "map",
    batch_size: int = 32,
    mesh: Mesh | None = None,
    skip_log: data.SkipLog | None = None,
    on_progress: progress.OnProgress = progress.silent,
) -> Study:
    """Classifies every clip unmasked, without its region, and without random ones.

    Of several processes each takes its share of the clips; all return the whole study.

    Args:
      key: for the random regions.
      classifier: the untouched network.
      transform: U, mu.
      clips: usually the test clips.
      front_end: settings of the spectrogram.
      scheme: where regions lie.
      draws: random regions a clip.
      exclude_own: never draw the top channel's region; False for the paper's control,
        a uniformly random cell.
      evidence: what the top channel contributes most to: the predicted class's logit,
        as in the paper, or its lead over the others, see `evidence.head_of`.
      locate: what finds its region: its map, as in the paper, or occlusion.
      batch_size: clips a step.
      mesh: devices; None for all.
      skip_log: notes clips that cannot be read; None raises at the first.
      on_progress: told how many clips are done.

    Raises:
      ValueError: no clip could be read, or see `evidence.head_of`.
    """
    mesh = mesh_lib.make() if mesh is None else mesh
    skip_log = data.SkipLog(strict=True) if skip_log is None else skip_log
    front_end.check_devices(mesh.size)
    mesh = mesh_lib.local(mesh)
    pixels = jax.ShapeDtypeStruct((1, *front_end.shape), jnp.float32)
    map_shape = jax.eval_shape(classifier, pixels)[0].shape[1:3]
    grid = schemes.Grid.of(map_shape, front_end.shape, classifier.stride)
    classifier, transform = mesh_lib.replicate((classifier, transform), mesh)
    # Fewer clips than processes: each runs all of them.
    spread = len(clips) >= jax.process_count()
    own = hosts.share(len(clips)) if spread else range(len(clips))
    parts: list[tuple[np.ndarray, ...]] = []
    for batch in data.batches(
        clips[own.start : own.stop],
        front_end,
        batch_size=mesh_lib.round_up(batch_size, mesh),
        skip_log=skip_log,
    ):
        index = batch["index"] + own.start
        none, apex, random, location = masked_logits(
            key,
            classifier,
            transform,
            mesh_lib.shard(batch["waveform"], mesh),
            mesh_lib.shard(index, mesh),
            front_end=front_end,
            scheme=scheme,
            draws=draws,
            exclude_own=exclude_own,
            evidence=evidence,
            locate=locate,
            mesh=mesh,
        )
        valid = batch["valid"]
        parts.append(
            (
                index[valid],
                np.asarray(none)[valid],
                np.asarray(apex)[valid],
                np.asarray(random)[valid],
                np.asarray(location)[valid],
            )
        )
        on_progress(int((batch["index"] >= 0).sum()))
    whole = tuple(np.concatenate(arrays) for arrays in zip(*parts, strict=True))
    skip_log.share()
    index, none, apex, random, location = hosts.concatenate(whole) if spread else whole
    if not len(index):
        raise ValueError(f"none of the {len(clips)} clips could be read")
    return Study(
        index=index,
        none=none,
        apex=apex,
        random=np.moveaxis(random, 0, 1),
        location=location,
        own_share=1 / math.prod(grid.regions(scheme)) if exclude_own else None,
    )


def masks(
    grid: schemes.Grid, scheme: schemes.Scheme, locations: Int[Array, "region 2"]
) -> Float[Array, "region freq time"]:
    """What silences the regions at some locations, with the paper's soft edges.

    Args:
      grid: how maps lie on spectrograms.
      scheme: decides the regions.
      locations: from `schemes.locate`.

    Returns:
      In [0, 1], for `audio.attenuate`.
    """
    return jax.vmap(functools.partial(grid.mask, scheme, blur=BLUR))(locations)


def hide(
    key: jax.Array,
    explainer: explainer_lib.Explainer,
    seen: look.Look,
    target: int,
    scheme: schemes.Scheme,
    *,
    draws: int = 10,
    evidence: settings.Evidence = "plain",
    locate: settings.Location = "map",
) -> Hidden:
    """Silences the top channel's region of a clip, and random ones of its shape.

    The random ones are always others, where the map has any: a picture of the region
    itself, called random, would show nothing.

    Args:
      key: for the random regions.
      explainer: for its transform, classifier and front end.
      seen: the clip.
      target: the class whose probability is watched.
      scheme: where the region lies; it need not be the explainer's.
      draws: random regions.
      evidence: as in `study`.
      locate: as in `study`.

    Raises:
      ValueError: no spectrogram is known, or no front end to tell what silence is; or
        see `evidence.head_of`.
    """
    front_end = explainer.front_end
    if seen.spectrogram is None or front_end is None:
        raise ValueError("hide takes a clip with its spectrogram and front end")
    grid = explainer.grid()
    transform, pooled = explainer.transform, jnp.mean(seen.views.rows, axis=0)
    head = evidence_lib.head_of(
        explainer.head, explainer.classifier.activation, evidence
    )
    share = evidence_lib.contributions(head, transform(pooled), jnp.int32(target))
    direction = transform.matrix[jnp.argmax(share)]
    views = seen.views
    if locate == "occlusion":
        views = seen.effects.get(scheme) or occlusion.effects_of_clip(
            explainer.classifier,
            front_end,
            seen.spectrogram,
            pooled,
            grid=grid,
            scheme=scheme,
            chunk_size=explainer.chunk_size,
        )
    own = schemes.locate(scheme, views, direction)
    random = jax.vmap(lambda key: grid.other_location(key, scheme, own))(
        jax.random.split(key, draws)
    )
    locations = jnp.concatenate([own[None], random])
    hiding = masks(grid, scheme, locations)
    copies = jnp.broadcast_to(jnp.asarray(seen.spectrogram), hiding.shape)
    left = list(np.asarray(audio.attenuate(front_end, copies, hiding)))
    probability: list[float] = []
    for first in range(0, len(left), explainer.chunk_size):
        chunk = left[first : first + explainer.chunk_size]
        _, logits = look.run(explainer.classifier, chunk, explainer.chunk_size)
        found = classifier_lib.probabilities(logits, explainer.classifier.activation)
        probability += found[: len(chunk), target].tolist()
    return Hidden(
        scheme=scheme,
        learned=explainer.scheme,
        areas=explanation.areas(grid, scheme, np.asarray(locations[0]), front_end),
        mask=np.asarray(hiding[0]),
        spectrogram=left[0],
        probability=probability[0],
        random_spectrogram=left[1],
        random_probability=probability[1],
        random_mean=float(np.mean(probability[1:])),
        draws=draws,
    )
