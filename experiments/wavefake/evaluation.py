"""What a WaveFake run measures: error rates, masking, regions, example figures."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np

from apex_jax import (
    bank,
    data,
    explain,
    figures,
    masking,
    metrics,
    progress,
    significance,
)
from apex_jax import explainer as explainer_lib
from experiments.wavefake import corpus as wavefake_corpus

FAKE = wavefake_corpus.CLASS_NAMES.index("fake")


def eers(
    logits: np.ndarray, clips: Sequence[data.Clip], rows: dict[str, np.ndarray]
) -> dict[str, float | None]:
    """EER in percent of each vocoder, None without clips, and their mean, `aeer`."""
    label = np.array([clip.label for clip in clips])
    score = logits[:, FAKE] - logits[:, 1 - FAKE]
    percent = {
        name: _percent(label[at], score[at]) if len(at) else None
        for name, at in rows.items()
    }
    known = [value for value in percent.values() if value is not None]
    return {**percent, "aeer": float(np.mean(known)) if known else None}


def _percent(label: np.ndarray, score: np.ndarray) -> float:
    # brentq's last digits are noise.
    return round(100 * metrics.equal_error_rate(label, score), 6)


def masking_eers(
    key: jax.Array,
    explainer: explain.Explainer,
    clips: Sequence[data.Clip],
    corpus: wavefake_corpus.Corpus,
    *,
    masks: dict[str, Any],
    batch_size: int,
    mesh: jax.sharding.Mesh,
    skip_log: data.SkipLog,
) -> dict[str, Any]:
    """EERs with nothing hidden, APEX's regions hidden, random regions hidden.

    Args:
      key: of the random regions.
      explainer: whose regions.
      clips: to hide them in.
      corpus: tells vocoders.
      masks: options of `masking.study`.
      batch_size: clips a step.
      mesh: devices.
      skip_log: notes clips that cannot be read.
    """
    assert explainer.front_end is not None  # an explainer of sounds
    with progress.bar("masking study", len(clips), "clip") as on_progress:
        study = masking.study(
            key,
            explainer.classifier,
            explainer.transform,
            clips,
            explainer.front_end,
            scheme=explainer.scheme,
            **masks,
            batch_size=batch_size,
            mesh=mesh,
            skip_log=skip_log,
            on_progress=on_progress,
        )
    read = [clips[i] for i in study.index]
    rows = wavefake_corpus.rows_by_vocoder(read, corpus)
    random = [eers(logits, read, rows) for logits in study.random]
    names = [name for name, value in random[0].items() if value is not None]
    table = np.array([[draw[name] for name in names] for draw in random])

    def mean_eer(logits: np.ndarray) -> float:
        found = eers(logits, read, rows)["aeer"]
        assert found is not None  # asked only where it is known
        return found

    known = random[0]["aeer"] is not None
    return {
        "p_value": significance.p_value(
            mean_eer, study.apex, study.random, own_share=study.own_share
        )
        if known
        else None,
        "none": eers(study.none, read, rows),
        "apex": eers(study.apex, read, rows),
        "random": {
            **masks,
            "mean": dict(zip(names, table.mean(axis=0).tolist(), strict=True)),
            "std": dict(zip(names, metrics.spread(table).tolist(), strict=True)),
        },
    }


def draw_examples(
    directory: Path,
    explainer: explain.Explainer,
    clips: Sequence[data.Clip],
    corpus: wavefake_corpus.Corpus,
    *,
    num: int,
    train_on: str,
    shown: explainer_lib.Options,
) -> None:
    """Explanation figures of the first test clips: real, `train_on`'s, the others'."""
    directory.mkdir(exist_ok=True)
    for stale in directory.glob("*.png"):
        stale.unlink()
    made_by = {str(c.path): name for name, fakes in corpus.fake.items() for c in fakes}
    first: dict[str, data.Clip] = {}
    for clip in clips:
        first.setdefault(made_by.get(str(clip.path), "real"), clip)
    order = sorted(first, key=("real", train_on).__contains__, reverse=True)
    drawn = order[:num]
    with progress.bar("figures", len(drawn), "figure") as on_progress:
        for name in drawn:
            clip = first[name]
            result = explainer(clip.path, offset_s=clip.offset_s, **shown)
            figure = figures.explained(result)
            figures.save(figure, directory / f"{clip.group}_{name}.png", dpi=100)
            on_progress(1)


def regions_per_channel(positive: bank.Bank) -> float:
    """Mean number of different regions among a channel's prototypes."""
    location = np.asarray(positive.location)
    return float(np.mean([len(np.unique(one, axis=0)) for one in location]))
