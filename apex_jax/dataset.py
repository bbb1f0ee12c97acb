"""A folder of class folders, or a CSV manifest, as clips, classes and splits.

What the command line reads: before `data.batches`, which turns the clips into
waveforms. Clips that come without splits are split by group, each class by its share.
"""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from apex_jax import audio, data, manifest, settings
from apex_jax import classifier as classifier_lib

SHOWN = 3  # examples that a message lists


Shares = settings.Shares


@dataclasses.dataclass(frozen=True, kw_only=True)
class Dataset:
    """Clips with their classes and splits.

    Attributes:
      clips: by split; validation and test may be empty.
      class_names: in the order of the labels.
      activation: "softmax" for one class a clip; "sigmoid" where labels are tuples.
      given_splits: whether the data said which split a clip is in.
      notes: what the reader should know, in words.
    """

    clips: data.Splits
    class_names: tuple[str, ...]
    activation: classifier_lib.Activation
    given_splits: bool = False
    notes: tuple[str, ...] = ()

    def __str__(self) -> str:
        sizes = ", ".join(
            f"{len(part)} {name}"
            for name, part in zip(self.clips._fields, self.clips, strict=True)
            if part
        )
        several = ", several a clip" if self.activation == "sigmoid" else ""
        return (
            f"{sum(map(len, self.clips))} clips ({sizes}), "
            f"{len(self.class_names)} classes{several}"
        )


def read(
    path: str | Path,
    *,
    class_names: Sequence[str] | None = None,
    activation: classifier_lib.Activation | None = None,
    shares: Shares | None = None,
    skip_log: data.SkipLog | None = None,
) -> Dataset:
    """Reads a folder `path/CLASS/**/FILE` or a manifest `path.csv`.

    Args:
      path: the folder or the manifest.
      class_names: a classifier's, whose order the labels follow; None: the classes
        found, sorted.
      activation: a classifier's; None: by the manifest's column, `label` or `labels`.
      shares: how to split what has no splits; None for the defaults.
      skip_log: takes the files that are missing; None, or strict: they raise.

    Raises:
      ValueError: neither a folder nor a manifest, or wrong: which line and column,
        what came and what would be right.
    """
    path = Path(os.path.expanduser(path))
    shares = Shares() if shares is None else shares
    shares.check()
    skip_log = data.SkipLog(strict=True) if skip_log is None else skip_log
    notes: list[str] = []
    if path.is_dir():
        clips, names = data.class_folder(path)
        rows = [
            manifest.Row(
                where=str(c.path), path=Path(c.path), classes=(names[c.labels[0]],)
            )
            for c in clips
        ]
        several = False
    elif path.is_file() and path.suffix.lower() == ".csv":
        found = manifest.read(path)
        rows, several = list(found.rows), found.multi_label
        if found.unused:
            notes.append(f"columns that are not used: {', '.join(found.unused)}")
    else:
        raise ValueError(
            f"{path} is {'no .csv file' if path.exists() else 'not there'}; expected a "
            "folder with one folder a class, or a .csv manifest"
        )
    rows = _present(rows, path, skip_log, notes)
    names = _class_names(rows, path, class_names)
    activation = activation or ("sigmoid" if several else "softmax")
    clips = [_clip(row, names, activation) for row in rows]
    splits = _splits(rows, clips, len(names), shares, notes)
    if class_names is None:
        trained = {label for clip in splits.train for label in clip.labels}
        if without := [names[i] for i in range(len(names)) if i not in trained]:
            raise ValueError(
                f"{path}: no training clip of {', '.join(without)}; each class needs "
                "one, and more to be split"
            )
    return Dataset(
        clips=splits,
        class_names=names,
        activation=activation,
        given_splits=bool(rows[0].split),
        notes=tuple(notes),
    )


def split(
    clips: Sequence[data.Clip],
    shares: Sequence[float],
    *,
    num_classes: int,
    seed: int,
) -> list[list[data.Clip]]:
    """Shares out clips, each group whole, each class by the shares.

    Iterative stratification (Sechidis et al., 2011): groups of the rarest class
    first, each to the part that still lacks most clips of that class. Unlike
    scikit-learn's splitters it takes groups and several classes a clip together,
    and a class with few clips gives the largest part its first.

    Args:
      clips: keep their order within a part.
      shares: one a part, summing to 1.
      num_classes: labels count up to it.
      seed: of the order within a class.
    """
    groups = sorted({clip.group for clip in clips})
    number = {group: i for i, group in enumerate(groups)}
    # Clips without a class are a class of their own.
    counts = np.zeros((len(groups), num_classes + 1))
    for clip in clips:
        counts[number[clip.group], list(clip.labels or (num_classes,))] += 1
    order = np.random.default_rng(seed).permutation(len(groups))
    lacking = np.outer(shares, counts.sum(axis=0))
    part = np.full(len(groups), -1)
    while (part < 0).any():
        left = counts[part < 0].sum(axis=0)
        rarest = int(np.argmin(np.where(left > 0, left, np.inf)))
        waiting = [g for g in order if part[g] < 0 and counts[g, rarest]]
        for group in sorted(waiting, key=lambda g: -counts[g, rarest]):
            part[group] = max(
                range(len(shares)),
                key=lambda p: (lacking[p, rarest], lacking[p].sum(), shares[p]),
            )
            lacking[part[group]] -= counts[group]
    chosen = [part[number[clip.group]] for clip in clips]
    return [
        [clip for clip, p in zip(clips, chosen, strict=True) if p == wanted]
        for wanted in range(len(shares))
    ]


def _present(
    rows: list[manifest.Row], path: Path, skip_log: data.SkipLog, notes: list[str]
) -> list[manifest.Row]:
    """The rows whose file is there; the others are noted, or raise if strict."""
    missing = [row for row in rows if not row.path.is_file()]
    if not missing:
        return rows
    examples = ", ".join(row.where for row in missing[:SHOWN])
    more = ", ..." if len(missing) > SHOWN else ""
    message = (
        f"{len(missing)} of {len(rows)} files are missing: "
        f"{missing[0].path} ({examples}{more})"
    )
    if skip_log.strict or len(missing) == len(rows):
        raise ValueError(f"{path}: {message}; paths count from {path.parent}")
    for row in missing:
        skip_log.add(audio.AudioError(row.path, f"missing ({row.where})"))
    notes.append(message)
    return [row for row in rows if row.path.is_file()]


def _class_names(
    rows: Sequence[manifest.Row], path: Path, wanted: Sequence[str] | None
) -> tuple[str, ...]:
    found = sorted({name for row in rows for name in row.classes})
    if not found:
        raise ValueError(f"{path}: no clip has a class")
    if wanted is None:
        return tuple(found)
    if unknown := [name for name in found if name not in wanted]:
        raise ValueError(
            f"{path} has classes that the classifier lacks: {listed(unknown)}. It has "
            f"{listed(found)}; the classifier has {listed(wanted)}"
        )
    return tuple(wanted)


def listed(names: Sequence[str]) -> str:
    """The first names, and how many there are if there are more."""
    few = 12
    more = f", ... ({len(names)} in all)" if len(names) > few else ""
    return ", ".join(names[:few]) + more


def _clip(
    row: manifest.Row, names: tuple[str, ...], activation: classifier_lib.Activation
) -> data.Clip:
    labels = tuple(sorted({names.index(name) for name in row.classes}))
    if activation == "softmax" and len(labels) != 1:
        raise ValueError(
            f"{row.where}: {len(labels)} classes; the classifier gives each clip one"
        )
    return data.Clip(
        path=row.path,
        label=labels[0] if activation == "softmax" else labels,
        offset_s=row.offset_s,
        group=row.group,
    )


def _splits(
    rows: Sequence[manifest.Row],
    clips: Sequence[data.Clip],
    num_classes: int,
    shares: Shares,
    notes: list[str],
) -> data.Splits:
    def share_out(clips, *parts):
        return split(clips, parts, num_classes=num_classes, seed=shares.seed)

    if not rows[0].split:
        rest = 1 - shares.validation - shares.test
        return data.Splits(*share_out(clips, rest, shares.validation, shares.test))
    parts = {
        name: [c for c, row in zip(clips, rows, strict=True) if row.split == name]
        for name in data.Splits._fields
    }
    if not parts["validation"] and parts["train"] and shares.validation:
        parts["train"], parts["validation"] = share_out(
            parts["train"], 1 - shares.validation, shares.validation
        )
        notes.append(
            f"no validation clips: {len(parts['validation'])} are taken from train"
        )
    return data.Splits(**parts)
