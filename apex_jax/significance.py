"""Whether hiding a region hurts more than hiding random ones: a permutation test.

After `masking`. Were the region like any other, then of all masks that a clip was seen
under, APEX's and the random ones, each could as well have been APEX's. So for each
clip one of its masks is picked at random, again and again, and how often the picked
ones hurt at least as much as APEX's is counted. Nothing is assumed of how scores are
distributed, and any statistic of all clips will do, an equal error rate for one.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from jaxtyping import Float


def p_value(
    statistic: Callable[[Float[np.ndarray, "clip classes"]], float],
    apex: Float[np.ndarray, "clip classes"],
    random: Float[np.ndarray, "draw clip classes"],
    *,
    own_share: float | None = None,
    permutations: int = 1000,
    seed: int = 0,
) -> float:
    """One-sided p of "the regions hurt no more than random ones".

    Args:
      statistic: of all clips' logits, or what is made of them; larger where more was
        lost. It is asked once a permutation: `metrics.quick_cmap` is made for that.
      apex: logits with the regions hidden.
      random: logits of the same clips with random regions hidden.
      own_share: where random regions are never APEX's, how often a region drawn from
        all would be (`masking.Study`): so often APEX's is picked. Picked like each of
        the others it would be too seldom on a map of few regions, and p too small.
        None where each random region can be APEX's.
      permutations: how many random choices; p is at least 1 / (permutations + 1).
      seed: of the choices.

    Raises:
      ValueError: no clips, no draws, or arrays that do not fit.
    """
    if random.ndim != 3 or random.shape[1:] != apex.shape or not random.size:
        raise ValueError(
            "apex and random are logits of the same clips, [clip, classes] and [draw, "
            f"clip, classes], not empty; got {apex.shape} and {random.shape}"
        )
    if own_share is not None and not 0 < own_share <= 1:
        raise ValueError(f"own_share must be above 0 and at most 1; got {own_share}")
    if permutations < 1:
        raise ValueError(f"permutations must be at least 1; got {permutations}")
    masks = np.concatenate([apex[None], random])
    clips = np.arange(apex.shape[0])
    rng = np.random.default_rng(seed)

    def picked() -> np.ndarray:
        if own_share is None:
            return rng.integers(len(masks), size=len(clips))
        others = rng.integers(1, len(masks), size=len(clips))
        return np.where(rng.random(len(clips)) < own_share, 0, others)

    # Rounding must not decide between equal statistics.
    observed = statistic(apex) - 1e-9
    reached = sum(
        statistic(masks[picked(), clips]) >= observed for _ in range(permutations)
    )
    return float((1 + reached) / (1 + permutations))
