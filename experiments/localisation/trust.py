"""What else an explanation can be held to: being faithful, having channels with sense.

In come explainers of one classifier under one scheme, and test clips; out come areas of
insertion and deletion for each, what hiding their regions takes from the class, and the
consistency of their channels' prototypes.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any, get_args

import jax
import jax.numpy as jnp
import numpy as np

from apex_jax import (
    attribution,
    cache,
    consistency,
    data,
    disentangle,
    evidence,
    explain,
    faithfulness,
    look,
    masking,
    occlusion,
    progress,
    settings,
)
from apex_jax import bank as bank_lib
from apex_jax import classifier as classifier_lib
from experiments.localisation import variants

RAW = "raw channels"
CLASS = "class"  # all channels together

# A method, what finds its place, and the kind of heat.
Heat = tuple[str, str, str]


def with_raw(
    explainers: Mapping[str, explain.Explainer],
) -> dict[str, disentangle.Transform]:
    """Transforms by name, that of the network's own channels first."""
    first = next(iter(explainers.values()))
    chan = first.classifier.head.weight.shape[1]
    return {RAW: disentangle.identity(chan)} | {
        name: explainer.transform for name, explainer in explainers.items()
    }


def faithful(
    explainers: Mapping[str, explain.Explainer],
    clips: Sequence[data.Clip],
    target: int,
    *,
    seed: int,
    steps: int,
    on_progress: progress.OnProgress,
) -> list[dict[str, Any]]:
    """Areas of insertion and deletion, one a clip, by method and kind of heat.

    Evidence is contrastive.

    Args:
      explainers: by name, of one classifier and scheme.
      clips: to explain.
      target: the class whose probability is watched.
      seed: of the random order of cells.
      steps: of the curves.
      on_progress: told of each clip.
    """
    first = next(iter(explainers.values()))
    front_end, classifier, grid = first.front_end, first.classifier, first.grid()
    assert front_end is not None
    areas: dict[Heat, list[tuple[float, float]]] = {}
    for number, clip in enumerate(clips):
        seen = first.occluded(first.look(clip.path, offset_s=clip.offset_s))
        assert seen.spectrogram is not None
        key = jax.random.fold_in(jax.random.key(seed), number)
        heats: dict[Heat, np.ndarray] = {
            ("random", "", "cells"): faithfulness.random_heat(key, grid),
            ("Grad-CAM", "map", "heatmap"): attribution.grad_cam(
                first, clip.path, offset_s=clip.offset_s, target=target
            )
            .channels[0]
            .heatmap,
        }
        for name, transform in with_raw(explainers).items():
            for locate in get_args(settings.Location):
                regions, heatmap = _heats(first, transform, seen, target, locate)
                heats[name, locate, "regions"] = regions
                heats[name, locate, "heatmap"] = heatmap
        for which, heat in heats.items():
            found = faithfulness.curves(
                classifier, front_end, seen.spectrogram, heat, target, steps=steps
            )
            areas.setdefault(which, []).append(
                (found.deletion_area, found.insertion_area)
            )
        on_progress(1)
    return [
        {
            "method": method,
            "locate": locate,
            "heat": heat,
            "deletion": [round(one[0], 6) for one in found],
            "insertion": [round(one[1], 6) for one in found],
        }
        for (method, locate, heat), found in areas.items()
    ]


def _heats(
    explainer: explain.Explainer,
    transform: disentangle.Transform,
    seen: look.Look,
    target: int,
    locate: settings.Location,
) -> tuple[np.ndarray, np.ndarray]:
    """The top channel's regions by rank, and its heatmap."""
    classifier, scheme, grid = explainer.classifier, explainer.scheme, explainer.grid()
    head = evidence.head_of(
        transform.compensate(classifier.head), classifier.activation, "contrastive"
    )
    pooled = transform(jnp.mean(jnp.asarray(seen.views.rows), axis=0))
    channel = int(jnp.argmax(evidence.contributions(head, pooled, jnp.int32(target))))
    views = seen.views
    if locate == "occlusion":
        views = seen.effects[scheme]
        transform, head = occlusion.of_differences(transform, head)
    heat = evidence.heatmap(
        head, transform, views, jnp.int32(channel), jnp.int32(target), grid=grid
    )
    regions = faithfulness.region_heat(transform, scheme, views, channel, grid)
    return regions, np.asarray(heat)


def masked(
    explainers: Mapping[str, explain.Explainer],
    clips: Sequence[data.Clip],
    target: int,
    *,
    seed: int,
    draws: int,
    on_progress: progress.OnProgress,
) -> list[dict[str, Any]]:
    """What hiding the top channel's region takes from the probability, and random ones.

    The masking study (method, section 8), clip by clip; random regions are of the same
    shape and never the channel's own.

    Args:
      explainers: by name, of one classifier and scheme.
      clips: that the network gives the class.
      target: the class whose probability is watched.
      seed: of the random regions.
      draws: of them, a clip.
      on_progress: told how many clips are done.
    """
    if not clips:
        return []
    found = []
    for name, explainer in explainers.items():
        assert explainer.front_end is not None
        for kind, locate in variants.ways_of(name):
            study = masking.study(
                jax.random.key(seed),
                explainer.classifier,
                explainer.transform,
                clips,
                explainer.front_end,
                scheme=explainer.scheme,
                draws=draws,
                exclude_own=True,
                evidence=kind,
                locate=locate,
                on_progress=on_progress,
            )
            none, own, random = (
                classifier_lib.probabilities(logits, explainer.classifier.activation)[
                    ..., target
                ]
                for logits in (study.none, study.apex, study.random)
            )
            found.append(
                {
                    "method": name,
                    "evidence": kind,
                    "locate": locate,
                    "own": np.round(none - own, 6).tolist(),
                    "random": np.round(none - random.mean(axis=0), 6).tolist(),
                }
            )
    return found


def consistent(
    explainers: Mapping[str, explain.Explainer], cached: cache.Cached
) -> list[dict[str, Any]]:
    """How alike the prototypes of each channel are, before and after U.

    Args:
      explainers: by name, of one classifier and scheme.
      cached: the training clips' features, whose positions the banks hold.
    """
    found = []
    place = {clip.id: i for i, clip in enumerate(cached.clips)}
    first = next(iter(explainers.values()))
    assert first.raw is not None
    pairs = {RAW: (first, first.raw)} | {
        name: (explainer, explainer.positive) for name, explainer in explainers.items()
    }
    for name, transform in with_raw(explainers).items():
        explainer, bank = pairs[name]
        # A saved explainer holds only the clips that its banks point to.
        where = np.array([place[clip.id] for clip in explainer.clips])
        measured = consistency.measure(
            transform,
            bank_at(bank, where),
            cached.features.views,
            cached.clips,
        )
        found.append(
            {
                "method": name,
                "chance": measured.chance,
                **{
                    kind: np.round(getattr(measured, kind), 4).tolist()
                    for kind in ("same_class", "time", "frequency")
                },
            }
        )
    return found


def bank_at(bank: bank_lib.Bank, where: np.ndarray) -> bank_lib.Bank:
    """The bank counting clips elsewhere: position i there is `where[i]`."""
    return dataclasses.replace(bank, clip=where[np.asarray(bank.clip)])
