"""The permutation test against all permutations, and where the answer is known."""

import itertools

import numpy as np
import pytest

from apex_jax import significance


def lost(logits):
    """Clips whose second class is not ahead."""
    return float(np.mean(logits[:, 1] <= logits[:, 0]))


def total(logits):
    return float(logits.sum())


def test_as_all_permutations(rng):
    """Four clips under three masks: every choice counted, against random ones."""
    apex, random = rng.normal(size=(4, 2)), rng.normal(size=(2, 4, 2))
    masks = np.concatenate([apex[None], random])
    every = [
        total(masks[list(choice), range(4)])
        for choice in itertools.product(range(3), repeat=4)
    ]
    exact = np.mean(np.array(every) >= total(apex))
    found = significance.p_value(total, apex, random, permutations=20_000)
    assert found == pytest.approx(exact, abs=0.012)


def test_regions_that_hurt_every_clip(rng):
    random = rng.normal(size=(5, 40, 2)) + np.array([0, 5])
    apex = rng.normal(size=(40, 2)) - np.array([0, 5])
    found = significance.p_value(lost, apex, random, permutations=99)
    assert found == 1 / 100


def test_regions_that_help(rng):
    random = rng.normal(size=(5, 40, 2)) - np.array([0, 5])
    apex = rng.normal(size=(40, 2)) + np.array([0, 5])
    assert significance.p_value(lost, apex, random, permutations=99) == 1


def test_regions_like_any_other_are_found_rarely():
    """Under the null p is uniform: below 0.1 about one time in ten."""
    found = []
    for seed in range(200):
        rng = np.random.default_rng(seed)
        masks = rng.normal(size=(6, 15, 2))
        found.append(
            significance.p_value(total, masks[0], masks[1:], permutations=99, seed=seed)
        )
    assert np.mean(np.array(found) <= 0.1) == pytest.approx(0.1, abs=0.06)
    assert np.mean(found) == pytest.approx(0.5, abs=0.06)


def test_equal_masks_are_no_evidence():
    same = np.tile([0.3, 0.1], (7, 1))
    assert significance.p_value(total, same, np.stack([same] * 3)) == 1


def test_the_seed_decides(rng):
    apex, random = rng.normal(size=(9, 2)), rng.normal(size=(3, 9, 2))
    first, again = (significance.p_value(total, apex, random) for _ in range(2))
    assert first == again


def p_values_of_nothing(own_share):
    """Two regions a clip, APEX's by chance, the random ones never APEX's."""
    found = []
    for seed in range(150):
        rng = np.random.default_rng(seed)
        regions = rng.normal(size=(2, 30, 1))
        own = rng.integers(2, size=30)
        others = np.tile(1 - own, (10, 1))
        clips = np.arange(30)
        found.append(
            significance.p_value(
                total,
                regions[own, clips],
                regions[others, clips[None]],
                own_share=own_share,
                permutations=99,
                seed=seed,
            )
        )
    return np.array(found)


def test_regions_that_are_never_the_own():
    """Picked as often as chance alone would make it, p is uniform; else too small."""
    found = p_values_of_nothing(1 / 2)
    assert np.mean(found <= 0.1) == pytest.approx(0.1, abs=0.06)
    assert np.mean(found) == pytest.approx(0.5, abs=0.06)
    naive = p_values_of_nothing(None)
    assert np.mean(naive <= 0.1) > 0.3


def test_a_map_of_one_region_is_no_evidence(rng):
    apex, random = rng.normal(size=(9, 2)), rng.normal(size=(3, 9, 2))
    assert significance.p_value(total, apex, random, own_share=1.0) == 1


@pytest.mark.parametrize("share", [0.0, 1.5, float("nan")])
def test_a_share_that_is_none(share):
    one = np.zeros((1, 4, 2))
    with pytest.raises(ValueError, match="own_share must be above 0"):
        significance.p_value(total, one[0], one, own_share=share)


def test_no_draws():
    with pytest.raises(ValueError, match="not empty; got"):
        significance.p_value(total, np.zeros((4, 2)), np.zeros((0, 4, 2)))


def test_no_permutations():
    with pytest.raises(ValueError, match="at least 1; got 0"):
        significance.p_value(
            total, np.zeros((4, 2)), np.zeros((1, 4, 2)), permutations=0
        )
