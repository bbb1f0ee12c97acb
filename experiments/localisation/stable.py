"""Do explanations stay when the sound hardly changes, and change when the network does?

In come explainers of one classifier and test clips; out comes, for each disturbance and
each way to learn U, what is left of the explanation. Beside them what it shares with
that of another clip, which is the least to be asked; another seed of the optimisation;
and a network of random weights, whose explanations must not share more.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from apex_jax import (
    audio,
    data,
    explain,
    explanation,
    look,
    progress,
    stability,
)
from apex_jax import classifier as classifier_lib
from experiments.localisation import variants

# Kind and amount, see `stability.disturb`.
DISTURBANCES: tuple[tuple[stability.Kind, float], ...] = (
    ("noise", 30.0),
    ("noise", 20.0),
    ("noise", 10.0),
    ("stretch", 1.05),
    ("stretch", 0.95),
    ("pitch", 0.5),
    ("pitch", -0.5),
    ("vorbis", 0.5),
)
SEED, RANDOM = "another seed", "random weights"
# What two explanations share that have nothing to do with each other.
ANOTHER = "another clip"
# Of other channels, and of other weights, not all numbers mean anything.
SAID = {
    SEED: ("same_class", "region", "prototypes"),
    RANDOM: ("region",),
    ANOTHER: ("same_channel", "top_channels", "rank", "region", "prototypes"),
}
UNITS = {
    "noise": "noise at {:g} dB",
    "stretch": "{:g} times as long",
    "pitch": "{:+g} semitones",
    "vorbis": "Vorbis, quality {:g}",
}


def measured(
    explainers: Mapping[str, explain.Explainer],
    again: Mapping[str, explain.Explainer],
    clips: Sequence[data.Clip],
    target: int,
    *,
    untrained: classifier_lib.Classifier,
    on_progress: progress.OnProgress,
) -> list[dict[str, Any]]:
    """What explanations share with those of the undisturbed clip, one a clip.

    Args:
      explainers: by name, of one classifier and scheme.
      again: by the same names, learned with another seed, compared on the clips as they
        are; a name may be missing.
      clips: to explain.
      target: the class.
      untrained: the network with random weights, in whose place U and banks stay. Of
        it the class is explained that it takes the clip for: the sign of a random head
        is random, and of another class its region would be what speaks against that.
      on_progress: told of each clip.
    """
    first = next(iter(explainers.values()))
    front_end = first.front_end
    of_random = {name: _of(untrained, e) for name, e in explainers.items()}
    assert front_end is not None
    rows: dict[tuple[str, variants.Way, str], list[stability.Agreement]] = {}
    undisturbed: list[dict[tuple[str, variants.Way], explanation.Explanation]] = []
    for number, clip in enumerate(clips):
        waveform = audio.load_clip(clip.path, front_end, clip.offset_s)
        before = _explained(explainers, _looked(first, waveform), target)
        for kind, amount in DISTURBANCES:
            changed = stability.disturb(
                waveform, front_end.sample_rate, kind, amount, seed=number
            )
            after = _explained(explainers, _looked(first, changed), target)
            for which, one in before.items():
                rows.setdefault((*which, UNITS[kind].format(amount)), []).append(
                    stability.compare(
                        one, after[which], stretch=amount if kind == "stretch" else 1.0
                    )
                )
        seen = _looked(first, waveform)
        for which, one in _explained(again, seen, target).items():
            rows.setdefault((*which, SEED), []).append(
                stability.compare(before[which], one, same_channels=False)
            )
        seen = _looked(next(iter(of_random.values())), waveform)
        for which, one in _explained(of_random, seen, None).items():
            rows.setdefault((*which, RANDOM), []).append(
                stability.compare(before[which], one)
            )
        undisturbed.append(before)
        on_progress(1)
    if len(undisturbed) > 1:
        for number, before in enumerate(undisturbed):
            # The one before it; of the first the last.
            for which, one in before.items():
                rows.setdefault((*which, ANOTHER), []).append(
                    stability.compare(one, undisturbed[number - 1][which])
                )
    return [
        {
            "method": name,
            "evidence": kind,
            "locate": locate,
            "change": change,
            **in_numbers(found),
        }
        for (name, (kind, locate), change), found in rows.items()
    ]


def _of(
    classifier: classifier_lib.Classifier, explainer: explain.Explainer
) -> explain.Explainer:
    """The explainer of another network; its audit was not of that one."""
    return dataclasses.replace(
        explainer, classifier=classifier, provenance=explanation.Provenance()
    )


def in_numbers(found: Sequence[stability.Agreement]) -> dict[str, list[float | None]]:
    """One a clip; None where it cannot be said."""
    names = [field.name for field in dataclasses.fields(stability.Agreement)]
    return {
        name: [
            None if np.isnan(value) else round(float(value), 4)
            for value in (getattr(one, name) for one in found)
        ]
        for name in names
    }


def _looked(explainer: explain.Explainer, waveform: np.ndarray) -> look.Look:
    assert explainer.front_end is not None
    return explainer.look(waveform, sample_rate=explainer.front_end.sample_rate)


def _explained(
    explainers: Mapping[str, explain.Explainer],
    seen: look.Look,
    target: int | None,
) -> dict[tuple[str, variants.Way], explanation.Explanation]:
    """Of each explainer each way; the regions' effects are the network's, so one."""
    if not explainers:
        return {}
    seen = next(iter(explainers.values())).occluded(seen)
    return {
        (name, way): _top_channel(one, seen, target, way)
        for name, one in explainers.items()
        for way in variants.ways_of(name)
    }


def _top_channel(
    explainer: explain.Explainer,
    seen: look.Look,
    target: int | None,
    way: variants.Way,
) -> explanation.Explanation:
    """An explanation of one channel, with prototypes whose regions are of the map.

    Which training clips they are does not hang on how regions are found, and theirs are
    not asked for: they would cost a pass each.
    """
    kind, locate = way
    shown = explainer.explain(
        seen,
        target=target,
        num_channels=1,
        num_prototypes=1,
        evidence=kind,
        locate=locate,
    )
    by_map = explainer.explain(
        seen, target=target, num_channels=1, evidence=kind, locate="map"
    )
    top = dataclasses.replace(
        shown.channels[0], prototypes=by_map.channels[0].prototypes
    )
    return dataclasses.replace(shown, channels=(top,))
