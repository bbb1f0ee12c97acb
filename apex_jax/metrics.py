"""Scores of a classifier, from scikit-learn, with the rules the field leaves implicit.

Conventions: `labels` are 0 or 1; a higher `score` means class 1 (fake, present).
Rates are in [0, 1].
"""

from __future__ import annotations

import warnings
from typing import Any, Literal

import numpy as np
from jaxtyping import Bool, Float, Int
from numpy.typing import ArrayLike

# What a class without positives (or, for AUROC, without negatives) counts in a mean.
Absent = Literal["ignore", "zero"]

Matrix = Float[np.ndarray, "example classes"]
Targets = Bool[np.ndarray, "example classes"] | Int[np.ndarray, "example classes"]


def equal_error_rate(
    labels: Int[np.ndarray, " example"], scores: Float[np.ndarray, " example"]
) -> float:
    """Where false acceptance equals false rejection on the ROC, interpolated.

    Args:
      labels: 1 for fake, 0 for real.
      scores: higher is more likely fake.

    Returns:
      In [0, 1]; 0.5 for scores that say nothing.

    Raises:
      ValueError: only one of the two classes is there, or a score is not finite.
    """
    from scipy.optimize import brentq
    from sklearn.metrics import roc_curve

    present = set(np.unique(labels).tolist())
    if present != {0, 1}:
        raise ValueError(
            f"an EER needs clips labelled 0 and clips labelled 1; got {present or '{}'}"
        )
    if not np.isfinite(scores).all():
        raise ValueError("scores must be finite; got NaN or infinity")
    false_positive, true_positive, _ = roc_curve(labels, scores)

    def rejection_minus_acceptance(rate: float) -> float:
        return 1.0 - rate - float(np.interp(rate, false_positive, true_positive))

    return float(brentq(rejection_minus_acceptance, 0.0, 1.0))


def mean_average_precision(
    labels: Targets, scores: Matrix, *, absent: Absent = "ignore"
) -> float:
    """cmAP: average precision of each class, then the mean over classes.

    Args:
      labels: 1 where the class is present.
      scores: any that rank, higher is more likely.
      absent: what a class without positives counts: left out, as in the reference of
        BirdSet, or 0.

    Raises:
      ValueError: every class is absent and `absent` leaves them out.
    """
    from sklearn.metrics import average_precision_score

    labels = np.asarray(labels)
    _check(labels, scores)
    known = labels.any(axis=0)
    values = np.zeros(labels.shape[1])
    for c in np.flatnonzero(known):
        values[c] = average_precision_score(labels[:, c], scores[:, c])
    return _mean(values, known, absent)


def quick_cmap(labels: Targets, scores: Matrix) -> float:
    """`mean_average_precision` without absent classes, for a permutation test.

    A class's average precision is the mean over its positives of the share of
    positives among all that score at least as much; two sorts a class find it. The
    same number to rounding, ten to a hundred times as fast as scikit-learn's.

    Raises:
      ValueError: no class has a positive.
    """
    labels = np.asarray(labels).astype(bool)
    _check(labels, scores)
    found = []
    for present, column in zip(labels.T, np.ascontiguousarray(scores.T), strict=True):
        own = np.sort(column[present])
        if len(own):
            positives = len(own) - np.searchsorted(own, own)
            everything = len(column) - np.searchsorted(np.sort(column), own)
            found.append(float(np.mean(positives / everything)))
    if not found:
        raise ValueError("every class is absent from these clips: nothing to average")
    return float(np.mean(found))


def auroc(labels: Targets, scores: Matrix, *, absent: Absent = "ignore") -> float:
    """Macro mean of the area under each class's ROC curve.

    Args:
      labels: 1 where the class is present.
      scores: any that rank, higher is more likely.
      absent: what a class without positives or without negatives counts: left out,
        or 0 as in the reference of BirdSet.

    Raises:
      ValueError: every class is absent and `absent` leaves them out.
    """
    from sklearn.metrics import roc_auc_score

    labels = np.asarray(labels)
    _check(labels, scores)
    known = labels.any(axis=0) & ~labels.astype(bool).all(axis=0)
    values = np.zeros(labels.shape[1])
    for c in np.flatnonzero(known):
        values[c] = roc_auc_score(labels[:, c], scores[:, c])
    return _mean(values, known, absent)


def top1_accuracy(labels: Targets, scores: Matrix) -> float:
    """Share of the clips with a label whose top-scoring class is one of theirs.

    Raises:
      ValueError: no clip has a label.
    """
    labels = np.asarray(labels)
    _check(labels, scores)
    labelled = labels.any(axis=1)
    if not labelled.any():
        raise ValueError("labels must hold at least one clip with a label; got none")
    best = np.argmax(scores, axis=1)
    hit = labels[np.arange(len(labels)), best].astype(bool)
    return float(hit[labelled].mean())


def summary(
    targets: Targets,
    probabilities: Matrix,
    activation: Literal["softmax", "sigmoid"] = "softmax",
) -> dict[str, float]:
    """The scores that suit a classifier.

    Classes without positives (or, for AUROC, without negatives) are left out of means.

    Args:
      targets: 1 where the class is present.
      probabilities: of the classes.
      activation: "softmax" for one class a clip, "sigmoid" for any number.

    Returns:
      By name and in this order, as far as the clips allow: accuracy, or top1_accuracy
      where clips have several classes; cmap; auroc; and where two classes exclude
      each other eer, of which the second is 1.
    """
    targets = np.asarray(targets).astype(bool)
    _check(targets, probabilities)
    present = np.asarray(targets.any(axis=0))
    absent = np.asarray(~targets.all(axis=0))
    found = {}
    if present.any():
        name = "accuracy" if activation == "softmax" else "top1_accuracy"
        found[name] = top1_accuracy(targets, probabilities)
        found["cmap"] = mean_average_precision(
            targets[:, present], probabilities[:, present]
        )
    if (known := present & absent).any():
        found["auroc"] = auroc(targets[:, known], probabilities[:, known])
    if activation == "softmax" and len(present) == 2 and present.all():
        # brentq's last digits are noise.
        rate = equal_error_rate(targets[:, 1].astype(int), probabilities[:, 1])
        found["eer"] = round(rate, 8)
    return found


def spread(values: ArrayLike) -> Any:
    """Of scores of several runs or draws: the sample standard deviation, 0 of one.

    Args:
      values: along the first axis; a number, or an array of as many as the others.
    """
    values = np.asarray(values, float)
    return np.std(values, axis=0, ddof=min(1, len(values) - 1))


def _check(labels: np.ndarray, scores: np.ndarray) -> None:
    if labels.shape != np.shape(scores) or labels.ndim != 2:
        raise ValueError(
            "labels and scores must both be [example, classes]; got "
            f"{labels.shape} and {np.shape(scores)}"
        )
    if not np.isfinite(scores).all():
        raise ValueError("scores must be finite; got NaN or infinity")


def _mean(values: np.ndarray, known: Any, absent: Absent) -> float:
    if not known.all():
        warnings.warn(
            f"{(~known).sum()} of {len(known)} classes have no positives (or no "
            f"negatives) in these clips: {absent!r} rule applied",
            stacklevel=3,
        )
    if absent == "zero":
        return float(values.mean())
    if not known.any():
        raise ValueError("every class is absent from these clips: nothing to average")
    return float(values[known].mean())
