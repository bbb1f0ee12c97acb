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
    occlusion,
    progress,
    schemes,
    settings,
    significance,
)
from apex_jax import bank as bank_lib
from apex_jax import classifier as classifier_lib
from experiments.localisation import explained, variants

RAW = "raw channels"
CLASS, BY_CHANCE = "all channels", "clips at random"

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
        by_gradient = attribution.grad_cam(
            first, clip.path, offset_s=clip.offset_s, target=target
        )
        heats: dict[Heat, np.ndarray] = {
            ("random", "", "heatmap"): faithfulness.random_heat(key, grid),
            ("random", "", "regions"): faithfulness.random_heat(
                key, grid, first.scheme
            ),
            ("Grad-CAM", "map", "heatmap"): by_gradient.channels[0].heatmap,
            (CLASS, "occlusion", "heatmap"): _of_class(first, seen, target),
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


def _of_class(explainer: explain.Explainer, seen: look.Look, target: int) -> np.ndarray:
    """What silencing each region takes from the class's lead, as heat."""
    classifier = explainer.classifier
    head = evidence.head_of(classifier.head, classifier.activation, "contrastive")
    cells = np.asarray(seen.effects[explainer.scheme].cells) @ np.asarray(
        head.weight[target]
    )
    return np.asarray(explainer.grid().upsample(jax.nn.relu(jnp.asarray(cells))))


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
    of: explained.Explained,
    transforms: Mapping[str, disentangle.Transform],
    scheme: schemes.Scheme,
) -> list[dict[str, Any]]:
    """What silencing the top channel's region takes from the probability, and others.

    The masking study (method, section 8) with every other region in the place of random
    ones: the network without a region is the head on the pooled vector less the
    region's effect, so all of it is known.

    Args:
      of: the classifier and its clips.
      transforms: by the name of the way to learn them.
      scheme: where regions lie, one region a location.
    """
    head, grid, effects = of.classifier.head, of.grid, of.effects[scheme]
    assert effects.cells is not None
    pooled = np.asarray(classifier_lib.pool(of.maps))
    # [clip, region, chan]; along an open axis all cells have one value.
    rows, columns = grid.regions(scheme)
    every = np.asarray(effects.cells)[:, :rows, :columns]
    every = every.reshape(len(pooled), rows * columns, -1)

    def probability(vectors: np.ndarray) -> np.ndarray:
        logits = np.asarray(head(vectors))
        found = classifier_lib.probabilities(logits, of.classifier.activation)
        return found[..., explained.PLANTED]

    none = probability(pooled)
    lost = none[:, None] - probability(pooled[:, None] - every)
    found = []
    for name, transform in transforms.items():
        for kind, locate in variants.WAYS:
            locations, _ = of.located(transform, scheme, kind, locate)
            row, column = np.where(locations == schemes.ALL, 0, locations).T
            own = np.arange(lost.shape[1]) == (row * columns + column)[:, None]
            others = lost[~own].reshape(len(lost), -1)
            found.append(
                {
                    "method": name,
                    "evidence": kind,
                    "locate": locate,
                    "own": np.round(lost[own], 6).tolist(),
                    "random": np.round(others.mean(axis=1), 6).tolist(),
                    "p": significance.p_value(
                        lambda kept: float(np.mean(kept)),
                        lost[own][:, None],
                        others.T[:, :, None],
                        own_share=1 / lost.shape[1],
                    ),
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
    transforms = with_raw(explainers)
    banks = {}
    for name, (explainer, bank) in pairs.items():
        # A saved explainer holds only the clips that its banks point to.
        where = np.array([place[clip.id] for clip in explainer.clips])
        banks[name] = bank_at(bank, where)
    # What clips taken at random have in common, on the network's own channels.
    transforms[BY_CHANCE], shape = transforms[RAW], np.shape(banks[RAW].clip)
    drawn = np.random.default_rng(0).integers(len(cached.clips), size=shape)
    banks[BY_CHANCE] = dataclasses.replace(banks[RAW], clip=drawn)
    for name, transform in transforms.items():
        measured = consistency.measure(
            transform, banks[name], cached.features.views, cached.clips
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
