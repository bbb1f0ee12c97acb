"""What else an explanation can be held to: being faithful, having channels with sense.

In come explainers of one classifier under one scheme, and test clips; out come areas of
insertion and deletion for each, and the consistency of their channels' prototypes.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

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
    progress,
)
from apex_jax import bank as bank_lib

RAW = "raw channels"


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
    head = evidence.head_of(classifier.head, classifier.activation, "contrastive")
    areas: dict[tuple[str, str], list[tuple[float, float]]] = {}
    for number, clip in enumerate(clips):
        seen: look.Look = first.look(clip.path, offset_s=clip.offset_s)
        assert seen.spectrogram is not None
        key = jax.random.fold_in(jax.random.key(seed), number)
        heats: dict[tuple[str, str], np.ndarray] = {
            ("random", "cells"): faithfulness.random_heat(key, grid),
            ("Grad-CAM", "heatmap"): attribution.grad_cam(
                first, clip.path, offset_s=clip.offset_s, target=target
            )
            .channels[0]
            .heatmap,
        }
        for name, transform in with_raw(explainers).items():
            own = transform.compensate(head)
            pooled = transform(jnp.mean(jnp.asarray(seen.views.rows), axis=0))
            share = evidence.contributions(own, pooled, jnp.int32(target))
            channel = int(jnp.argmax(share))
            heats[name, "regions"] = faithfulness.region_heat(
                transform, first.scheme, seen.views, channel, grid
            )
            heats[name, "heatmap"] = np.asarray(
                evidence.heatmap(
                    own,
                    transform,
                    seen.views,
                    jnp.int32(channel),
                    jnp.int32(target),
                    grid=grid,
                )
            )
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
            "heat": heat,
            "deletion": [round(one[0], 6) for one in found],
            "insertion": [round(one[1], 6) for one in found],
        }
        for (method, heat), found in areas.items()
    ]


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
