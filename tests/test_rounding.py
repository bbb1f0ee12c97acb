"""What rounding did to a network's answers, counted by hand."""

import numpy as np
import pytest
import test_cache

from apex_jax import cache, data, rounding
from apex_jax import mesh as mesh_lib
from apex_jax.models import convnext


def test_differences_and_changed_predictions_by_hand():
    exact = np.array([[1.0, 0.0], [0.2, 0.1], [-1.0, 3.0]])
    rounded = np.array([[1.1, 0.0], [0.1, 0.15], [-1.0, 2.7]])
    found = rounding.compare(exact, rounded, "softmax")
    assert found.num_clips == 3
    assert found.max_abs_logit_difference == pytest.approx(0.3)
    assert found.changed_predictions == 1  # the second clip
    assert found.logit_spread == pytest.approx(
        np.sqrt(np.mean([np.var(exact[:, 0]), np.var(exact[:, 1])]))
    )
    # Class by class: 0 and 0 have no sign to lose, -0.1 and 0.1 have.
    found = rounding.compare(np.array([[0.5, -0.1]]), np.array([[0.4, 0.1]]), "sigmoid")
    assert found.changed_predictions == 1
    assert "1 of 1 predictions changed" in rounding.in_words(found)


def test_the_same_clips_are_compared(tmp_path, monkeypatch):
    clips = test_cache.write_clips(tmp_path / "clips")
    classifier = test_cache.classifier_of()
    rounded = convnext.as_classifier(
        convnext.with_matmul_dtype(classifier.params, "bfloat16"), test_cache.NAMES
    )
    options = {"batch_size": 8, "mesh": mesh_lib.make()}
    cached = cache.build(
        tmp_path / "cache", rounded, clips, test_cache.FRONT_END, **options
    )
    monkeypatch.setattr(rounding, "NUM_CLIPS", 4)
    found, pooled, logits = rounding.measure(
        classifier,
        cached,
        test_cache.FRONT_END,
        skip_log=data.SkipLog(strict=True),
        **options,
    )
    assert found.num_clips == len(pooled) == len(logits) == 4  # 0, 3, 6, 9 of 11
    np.testing.assert_allclose(classifier.head(pooled), logits, rtol=1e-4, atol=1e-5)
    off = np.abs(logits - cached.features.logits[::3])
    assert found.max_abs_logit_difference == pytest.approx(off.max())
    assert 0 < off.max() < 0.1 * np.abs(logits).max()


def test_caches_of_other_precisions_are_told_apart(tmp_path):
    clips = test_cache.write_clips(tmp_path / "clips")
    classifier = test_cache.classifier_of()
    rounded = convnext.as_classifier(
        convnext.with_matmul_dtype(classifier.params, "bfloat16"), test_cache.NAMES
    )
    exact, other = (
        cache.fingerprint(each, clips, test_cache.FRONT_END)
        for each in (classifier, rounded)
    )
    assert exact["weights"] != other["weights"]
