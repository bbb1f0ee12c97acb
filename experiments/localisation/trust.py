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
from experiments.localisation import explained, scoring, summary, variants

CLASS = summary.CLASS
RANDOM_DRAWS = 5  # of random heat a clip, of whose areas the mean counts
# What prototypes are set against: clips drawn among all, or among those of the class.
CHANCE = {"any clips": False, "same class": True}

# A method, what finds its place, and the kind of heat.
Heat = tuple[str, str, str]


def with_raw(
    explainers: Mapping[str, explain.Explainer],
) -> dict[str, disentangle.Transform]:
    """Transforms by name, that of the network's own channels first."""
    first = next(iter(explainers.values()))
    chan = first.classifier.head.weight.shape[1]
    return {variants.RAW: disentangle.identity(chan)} | {
        name: explainer.transform for name, explainer in explainers.items()
    }


def faithful(
    explainers: Mapping[str, explain.Explainer],
    clips: Sequence[data.Clip],
    target: int,
    *,
    seed: int,
    steps: int,
    lime: Sequence[np.ndarray] = (),
    on_progress: progress.OnProgress,
) -> list[dict[str, Any]]:
    """Areas of insertion and deletion, one a clip, and the mean curves of all clips.

    Evidence is contrastive, of the methods without channels too. Of each there are a
    heatmap and the scheme's regions by rank; only heat of one kind compares.

    Args:
      explainers: by name, of one classifier and scheme.
      clips: to explain.
      target: the class whose probability is watched.
      seed: of the random order of cells, and of what is equally hot.
      steps: of the curves.
      lime: LIME's heatmaps `[F_in, T_in]` of the first clips, in order. It has rows
        where that is all of them.
      on_progress: told of each clip.
    """
    first = next(iter(explainers.values()))
    front_end, classifier, grid = first.front_end, first.classifier, first.grid()
    assert front_end is not None
    by_heat: dict[Heat, list[faithfulness.Curves]] = {}
    for number, clip in enumerate(clips):
        seen = first.occluded(first.look(clip.path, offset_s=clip.offset_s))
        assert seen.spectrogram is not None
        key = jax.random.fold_in(jax.random.key(seed), number)
        drawing, of_equal = jax.random.split(key)
        # By kind several of random heat, one of all others.
        heats: dict[Heat, list[np.ndarray]] = {}
        for draw in jax.random.split(drawing, RANDOM_DRAWS):
            by_kind = {
                "heatmap": faithfulness.random_heat(draw, grid),
                "regions": faithfulness.random_heat(draw, grid, first.scheme),
            }
            for kind, heat in by_kind.items():
                heats.setdefault(("random", "", kind), []).append(heat)
        one_each = _without_channels(first, seen, target)
        if len(lime) >= len(clips):
            cells = attribution.cell_means(jnp.asarray(lime[number]), grid)
            one_each["LIME", "", "heatmap"] = lime[number]
            one_each["LIME", "", "regions"] = faithfulness.region_heat_of_cells(
                first.scheme, cells, grid
            )
        for name, transform in with_raw(explainers).items():
            for locate in get_args(settings.Location):
                regions, heatmap = _heats(first, transform, seen, target, locate)
                one_each[name, locate, "regions"] = regions
                one_each[name, locate, "heatmap"] = heatmap
        heats |= {which: [heat] for which, heat in one_each.items()}
        for which, several in heats.items():
            found = [
                faithfulness.curves(
                    classifier,
                    front_end,
                    seen.spectrogram,
                    heat,
                    target,
                    steps=steps,
                    key=of_equal,
                    grid=grid,
                )
                for heat in several
            ]
            by_heat.setdefault(which, []).append(_mean_curves(found))
        on_progress(1)
    return [
        {
            "method": method,
            "locate": locate,
            "heat": heat,
            "deletion": [round(one.deletion_area, 6) for one in found],
            "insertion": [round(one.insertion_area, 6) for one in found],
            "curves": {
                name: np.round(values, 6).tolist()
                for name, values in vars(_mean_curves(found)).items()
            },
        }
        for (method, locate, heat), found in by_heat.items()
    ]


def _mean_curves(several: Sequence[faithfulness.Curves]) -> faithfulness.Curves:
    """Step by step; of as many steps each."""
    return faithfulness.Curves(
        **{
            name: np.mean([getattr(one, name) for one in several], axis=0)
            for name in ("share", "deletion", "insertion")
        }
    )


def _without_channels(
    explainer: explain.Explainer, seen: look.Look, target: int
) -> dict[Heat, np.ndarray]:
    """What all channels together say of a class's lead: CAM, Grad-CAM, occlusion.

    Regions are ranked by what `scoring` finds the method's location in, so that the
    hottest is the one that pointing and masking look at.
    """
    classifier, scheme, grid = explainer.classifier, explainer.scheme, explainer.grid()
    head = evidence.head_of(classifier.head, classifier.activation, "contrastive")
    maps = jnp.asarray(seen.views.cells)
    effects = jnp.asarray(seen.effects[scheme].cells)
    weight = head.weight[target]
    by_gradient, _ = attribution.grad_cam_cells(head, maps, jnp.int32(target))
    cells_of = {
        ("CAM", "map"): jnp.matmul(maps, weight, precision="highest"),
        ("Grad-CAM", "map"): by_gradient,
        (CLASS, "occlusion"): jnp.matmul(effects, weight, precision="highest"),
    }
    heats: dict[Heat, np.ndarray] = {}
    for (name, locate), cells in cells_of.items():
        heats[name, locate, "regions"] = faithfulness.region_heat_of_cells(
            scheme, cells, grid
        )
        heats[name, locate, "heatmap"] = np.asarray(grid.upsample(jax.nn.relu(cells)))
    return heats


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
    """What silencing a method's region takes from the probability, and other regions.

    The masking study (method, section 8) with every other region in the place of random
    ones. Of a transform the region is its top channel's; what points nowhere has
    nothing silenced.

    Args:
      of: the classifier and its clips.
      transforms: by the name of the way to learn them.
      scheme: where regions lie, one region a location.
    """
    head, (_, columns) = of.classifier.head, of.grid.regions(scheme)

    def probability(vectors: np.ndarray) -> np.ndarray:
        logits = np.asarray(head(vectors))
        found = classifier_lib.probabilities(logits, of.classifier.activation)
        return found[..., explained.PLANTED]

    none = probability(np.asarray(classifier_lib.pool(of.maps)))
    lost = none[:, None] - probability(of.silenced(scheme))
    where = _whole(of, scheme)
    for name, transform in transforms.items():
        for way in variants.WAYS:
            where[name, way] = of.located(transform, scheme, *way)
    found = []
    for (name, (kind, locate)), (locations, there) in where.items():
        first = locations[:, 0]
        row, column = np.where(first == schemes.ALL, 0, first).T
        is_own = np.arange(lost.shape[1]) == (row * columns + column)[:, None]
        own = np.where(there[:, 0], lost[is_own], 0.0)
        others = lost[~is_own].reshape(len(lost), -1)
        found.append(
            {
                "method": name,
                "evidence": kind,
                "locate": locate,
                "own": np.round(own, 6).tolist(),
                "random": np.round(others.mean(axis=1), 6).tolist(),
                "p": significance.p_value(
                    lambda kept: float(np.mean(kept)),
                    own[:, None],
                    others.T[:, :, None],
                    own_share=1 / lost.shape[1],
                ),
            }
        )
    return found


def _whole(
    of: explained.Explained, scheme: schemes.Scheme
) -> dict[tuple[str, variants.Way], scoring.Where]:
    """Where CAM, Grad-CAM and occlusion of the class point, contrastive all of them."""

    def found(finder: Any, locate: settings.Location) -> scoring.Where:
        views = of.views(scheme, locate)
        return finder(
            of.classifier, views, explained.PLANTED, scheme, kind="contrastive"
        )

    return {
        ("CAM", ("contrastive", "map")): found(scoring.whole, "map"),
        ("Grad-CAM", ("contrastive", "map")): found(scoring.grad_cam, "map"),
        (CLASS, ("contrastive", "occlusion")): found(scoring.whole, "occlusion"),
    }


def consistent(
    explainers: Mapping[str, explain.Explainer], cached: cache.Cached
) -> list[dict[str, Any]]:
    """How alike the prototypes of each channel are, before and after U, and by chance.

    By chance is with random clips in the prototypes' place (`CHANCE`), seen through the
    same channels: how alike clips look depends on U. Prototypes that are no more alike
    than any clips of their class have nothing but the class in common.

    Args:
      explainers: by name, of one classifier and scheme.
      cached: the training clips' features, whose positions the banks hold.
    """
    found = []
    place = {clip.id: i for i, clip in enumerate(cached.clips)}
    first = next(iter(explainers.values()))
    assert first.raw is not None
    pairs = {variants.RAW: (first, first.raw)} | {
        name: (explainer, explainer.positive) for name, explainer in explainers.items()
    }
    for name, transform in with_raw(explainers).items():
        explainer, bank = pairs[name]
        # A saved explainer holds only the clips that its banks point to.
        where = np.array([place[clip.id] for clip in explainer.clips])
        bank = bank_at(bank, where)
        banks = {"": bank} | {
            f", {level}": consistency.by_chance(
                bank, cached.clips, same_class=same_class
            )
            for level, same_class in CHANCE.items()
        }
        measured = {
            level: consistency.measure(
                transform, one, cached.features.views, cached.clips
            )
            for level, one in banks.items()
        }
        found.append(
            {
                "method": name,
                "chance": measured[""].chance,
                "same_class": _rounded(measured[""].same_class),
                **{
                    f"{kind}{level}": _rounded(getattr(one, kind))
                    for level, one in measured.items()
                    for kind in ("time", "frequency")
                },
            }
        )
    return found


def _rounded(values: np.ndarray) -> list[float]:
    return np.round(values, 4).tolist()


def bank_at(bank: bank_lib.Bank, where: np.ndarray) -> bank_lib.Bank:
    """The bank counting clips elsewhere: position i there is `where[i]`."""
    return dataclasses.replace(bank, clip=where[np.asarray(bank.clip)])
