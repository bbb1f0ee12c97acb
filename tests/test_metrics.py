"""EER, cmAP, AUROC and top-1 against loops over thresholds, ranks and pairs."""

import json
import pathlib
import warnings

import jaxtyping
import numpy as np
import pytest

from apex_jax import metrics

LABELS = np.array([[1, 0, 0], [0, 1, 0], [1, 1, 0], [0, 0, 0], [1, 0, 0]])
SCORES = np.array(
    [
        [0.9, 0.3, 0.1],
        [0.8, 0.7, 0.9],
        [0.4, 0.2, 0.3],
        [0.1, 0.6, 0.5],
        [0.6, 0.1, 0.7],
    ]
)


def eer_by_hand(labels, scores):
    """Walks the ROC threshold by threshold to where the two error rates cross."""
    thresholds = [np.inf, *sorted(set(scores.tolist()), reverse=True)]
    real, fake = scores[labels == 0], scores[labels == 1]
    before = None
    for threshold in thresholds:
        acceptance = sum(s >= threshold for s in real) / len(real)
        rejection = sum(s < threshold for s in fake) / len(fake)
        if acceptance >= rejection:
            last_acceptance, last_rejection = before
            gap, last_gap = rejection - acceptance, last_rejection - last_acceptance
            share = last_gap / (last_gap - gap)
            return last_acceptance + share * (acceptance - last_acceptance)
        before = acceptance, rejection
    raise AssertionError("the rates always cross")


def average_precision_by_hand(labels, scores):
    """Mean over the positives of the precision at their rank; no ties."""
    ranked = labels[np.argsort(-scores)]
    precisions = [
        ranked[: rank + 1].sum() / (rank + 1)
        for rank in range(len(ranked))
        if ranked[rank]
    ]
    return sum(precisions) / len(precisions)


def auroc_by_hand(labels, scores):
    """Share of (positive, negative) pairs in the right order; ties count half."""
    wins = [
        1.0 if positive > negative else 0.5 if positive == negative else 0.0
        for positive in scores[labels == 1]
        for negative in scores[labels == 0]
    ]
    return sum(wins) / len(wins)


@pytest.mark.parametrize("decimals", [6, 1, 0])
@pytest.mark.parametrize("seed", range(10))
def test_eer_by_hand(seed, decimals):
    rng = np.random.default_rng(seed)
    labels = np.array([0, 1, *rng.integers(0, 2, rng.integers(1, 60)).tolist()])
    scores = np.round(rng.normal(size=len(labels)) + labels, decimals)  # with ties
    got = metrics.equal_error_rate(labels, scores)
    assert got == pytest.approx(eer_by_hand(labels, scores), abs=1e-9)


def test_eer_known_values():
    labels = np.array([0, 0, 1, 1])
    assert metrics.equal_error_rate(labels, np.array([0.1, 0.2, 0.3, 0.4])) == (
        pytest.approx(0.0, abs=1e-9)
    )
    assert metrics.equal_error_rate(labels, np.array([0.4, 0.3, 0.2, 0.1])) == (
        pytest.approx(1.0, abs=1e-9)
    )
    assert metrics.equal_error_rate(labels, np.zeros(4)) == pytest.approx(0.5)
    # One of four fakes below one of four reals.
    labels = np.array([0, 0, 0, 0, 1, 1, 1, 1])
    scores = np.array([0.1, 0.2, 0.3, 0.6, 0.5, 0.7, 0.8, 0.9])
    assert metrics.equal_error_rate(labels, scores) == pytest.approx(0.25)


def test_eer_needs_both_classes_and_finite_scores():
    with pytest.raises(ValueError, match="labelled 0 and clips labelled 1"):
        metrics.equal_error_rate(np.array([1, 1]), np.array([0.1, 0.2]))
    with pytest.raises(ValueError, match="finite"):
        metrics.equal_error_rate(np.array([0, 1]), np.array([0.1, np.nan]))


def test_cmap_by_hand_and_absent_classes():
    per_class = [average_precision_by_hand(LABELS[:, c], SCORES[:, c]) for c in (0, 1)]
    # Class 0: positives at ranks 1, 3, 4; class 1: at ranks 1 and 4.
    assert per_class[0] == pytest.approx((1 + 2 / 3 + 3 / 4) / 3)
    assert per_class[1] == pytest.approx((1 + 2 / 4) / 2)
    with pytest.warns(UserWarning, match="1 of 3 classes.*'ignore'"):
        ignored = metrics.mean_average_precision(LABELS, SCORES)
    with pytest.warns(UserWarning, match="1 of 3 classes.*'zero'"):
        zero = metrics.mean_average_precision(LABELS, SCORES, absent="zero")
    assert ignored == pytest.approx(sum(per_class) / 2)
    assert zero == pytest.approx(sum(per_class) / 3)
    assert metrics.mean_average_precision(LABELS[:, :2], SCORES[:, :2]) == (
        pytest.approx(sum(per_class) / 2)
    )


def test_cmap_of_a_class_that_is_always_there_is_one():
    assert metrics.mean_average_precision(np.ones((4, 1), int), SCORES[:4, :1]) == 1.0


def test_auroc_by_hand_and_absent_classes():
    labels = np.concatenate([LABELS, np.ones((5, 1), int)], axis=1)  # no negatives
    scores = np.concatenate([SCORES, SCORES[:, :1]], axis=1)
    scores[1, 0] = scores[4, 0]  # a tie of a positive with a negative
    per_class = [auroc_by_hand(labels[:, c], scores[:, c]) for c in (0, 1)]
    with pytest.warns(UserWarning, match="2 of 4 classes"):
        ignored = metrics.auroc(labels, scores)
    with pytest.warns(UserWarning, match="2 of 4 classes"):
        zero = metrics.auroc(labels, scores, absent="zero")
    assert ignored == pytest.approx(sum(per_class) / 2)
    assert zero == pytest.approx(sum(per_class) / 4)


@pytest.mark.parametrize("metric", [metrics.mean_average_precision, metrics.auroc])
def test_nothing_to_average(metric):
    labels, scores = np.zeros((3, 2), int), np.ones((3, 2))
    with (
        pytest.warns(UserWarning, match="2 of 2 classes"),
        pytest.raises(ValueError, match="nothing to average"),
    ):
        metric(labels, scores)
    with pytest.warns(UserWarning, match="2 of 2 classes"):
        assert metric(labels, scores, absent="zero") == 0.0


def test_top1_counts_clips_with_a_label_only():
    # Best classes 0, 2, 0, 1, 2 against {0}, {1}, {0, 1}, {}, {0}.
    assert metrics.top1_accuracy(LABELS, SCORES) == pytest.approx(2 / 4)
    assert metrics.top1_accuracy(LABELS.astype(bool), SCORES) == pytest.approx(2 / 4)
    with pytest.raises(ValueError, match="at least one clip with a label"):
        metrics.top1_accuracy(np.zeros((2, 3), int), np.ones((2, 3)))


@pytest.mark.parametrize(
    "metric",
    [metrics.mean_average_precision, metrics.auroc, metrics.top1_accuracy],
)
def test_shapes_and_values_are_checked(metric, monkeypatch):
    # Users run without the annotations' checks.
    monkeypatch.setattr(jaxtyping.config, "jaxtyping_disable", True)
    with pytest.raises(ValueError, match=r"\(5, 3\) and \(4, 3\)"):
        metric(LABELS, SCORES[:4])
    with pytest.raises(ValueError, match="finite"):
        metric(LABELS, np.where(SCORES > 0.85, np.inf, SCORES))


# Which scores suit


def test_summary_where_a_clip_has_several_classes():
    """The third class is absent: left out of the means, without a warning."""
    found = metrics.summary(LABELS, SCORES, "sigmoid")
    assert list(found) == ["top1_accuracy", "cmap", "auroc"]
    assert found["top1_accuracy"] == metrics.top1_accuracy(LABELS, SCORES)
    precision = [average_precision_by_hand(LABELS[:, c], SCORES[:, c]) for c in (0, 1)]
    assert found["cmap"] == pytest.approx(np.mean(precision))
    known = metrics.auroc(LABELS[:, :2], SCORES[:, :2])
    assert found["auroc"] == pytest.approx(known)


def test_summary_of_two_classes_that_exclude_each_other():
    label = np.array([0, 0, 1, 1, 0, 1])
    fake = np.array([0.1, 0.6, 0.7, 0.4, 0.2, 0.9])
    probabilities = np.stack([1 - fake, fake], axis=1)
    found = metrics.summary(np.eye(2, dtype=int)[label], probabilities)
    assert list(found) == ["accuracy", "cmap", "auroc", "eer"]
    assert found["accuracy"] == pytest.approx(4 / 6)
    assert found["eer"] == pytest.approx(eer_by_hand(label, fake), abs=1e-8)


def test_summary_of_what_the_clips_allow():
    probabilities = np.array([[0.9, 0.1], [0.3, 0.7]])
    first = np.array([[1, 0], [1, 0]])
    assert metrics.summary(first, probabilities) == {"accuracy": 0.5, "cmap": 1.0}
    assert metrics.summary(np.zeros((2, 2), int), probabilities, "sigmoid") == {}
    with pytest.raises((ValueError, jaxtyping.TypeCheckError)):
        metrics.summary(first, probabilities[:, :1])


# As BirdSet's own metrics give them

REFERENCES = json.loads(
    (pathlib.Path(__file__).parent / "data" / "metrics.json").read_text()
)["cases"]


@pytest.mark.filterwarnings("ignore:.*classes have no positives")
@pytest.mark.parametrize("case", REFERENCES)
def test_as_torchmetrics(case):
    """Recorded: cmAP leaves absent classes out, AUROC counts them as 0."""
    target, scores = np.array(case["target"]), np.array(case["scores"])
    assert metrics.mean_average_precision(target, scores) == pytest.approx(
        case["cmap"], abs=1e-6
    )
    assert metrics.auroc(target, scores, absent="zero") == pytest.approx(
        case["auroc"], abs=1e-6
    )
    for c, known in enumerate(case["average_precision"]):
        if known is not None:
            own = slice(c, c + 1)
            found = metrics.mean_average_precision(target[:, own], scores[:, own])
            assert found == pytest.approx(known, abs=1e-6)
    assert any(value is None for value in REFERENCES[1]["average_precision"])


def test_the_quick_cmap_is_that_of_scikit_learn():
    """Also with ties, classes that are everywhere, and classes that are absent."""
    rng = np.random.default_rng(0)
    for seed in range(40):
        clips, classes = rng.integers(1, 40), rng.integers(1, 7)
        labels = rng.random((clips, classes)) < rng.choice([0.05, 0.4, 0.95])
        labels[0, 0] = True
        # Half of them of a few values only.
        scores = rng.normal(size=(clips, classes))
        scores = np.round(scores) if seed % 2 else scores.astype(np.float32)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            wanted = metrics.mean_average_precision(labels, scores)
        assert metrics.quick_cmap(labels, scores) == pytest.approx(wanted, abs=1e-12)
    with pytest.raises(ValueError, match="every class is absent"):
        metrics.quick_cmap(np.zeros((3, 2), bool), np.zeros((3, 2)))
