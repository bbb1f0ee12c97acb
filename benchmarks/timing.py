"""Times of computations that alternate, so that a machine's drift hits all alike.

A ratio is taken turn by turn, between neighbours in time; its median and its smallest
and largest value are reported. The first call, which compiles, is not among the turns.
"""

from __future__ import annotations

import dataclasses
import statistics
import time
from collections.abc import Callable, Mapping
from typing import Any

import jax
import numpy as np

from apex_jax import compilation

# A short computation is repeated in its turn until that takes about this long: a
# single call would be at the mercy of the scheduler.
TURN_S = 0.05


class WrongResultError(ArithmeticError):
    """A computation that was to be timed gives wrong numbers."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Timing:
    """How long a computation took.

    Attributes:
      first_s: the first call, compilation included.
      compile_s: of it tracing, compiling and loading of programs; 0 where an earlier
        measurement had done that.
      turns_s: one call in each turn.
    """

    first_s: float
    compile_s: float
    turns_s: tuple[float, ...]

    @property
    def median_s(self) -> float:
        """Of a call that does not compile."""
        return statistics.median(self.turns_s)

    def scaled(self, factor: float) -> Timing:
        """The same per unit: of a call that does several, or part of one."""
        turns_s = tuple(s * factor for s in self.turns_s)
        # The first call stays whole: it compiled once.
        return dataclasses.replace(self, turns_s=turns_s)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Ratio:
    """How many times as long one computation takes as another.

    Attributes:
      median: over the turns.
      low: the smallest of a turn.
      high: the largest.
    """

    median: float
    low: float
    high: float


def ratio(timing: Timing, floor: Timing) -> Ratio:
    """Of times that alternated in one call of `alternate`."""
    turns = [a / b for a, b in zip(timing.turns_s, floor.turns_s, strict=True)]
    return Ratio(median=statistics.median(turns), low=min(turns), high=max(turns))


def alternate(
    functions: Mapping[str, Callable[[], Any]],
    *,
    budget_s: float,
    check: Callable[..., None] = lambda *results: None,
    least: int = 3,
    most: int = 15,
) -> list[Timing]:
    """Runs the functions by turns and times each.

    Args:
      functions: what to run, by name; each takes nothing and gives arrays.
      budget_s: stop after this many seconds of turns, if there were `least`.
      check: is given the results of the first calls, in order, and raises where they
        are wrong; nothing is timed before.
      least: turns at least.
      most: turns at most.
    """
    if budget_s < 0 or not 1 <= least <= most:
        raise ValueError(
            "budget_s must be at least 0 and 1 <= least <= most; got "
            f"{budget_s}, {least}, {most}"
        )
    calls = list(functions.values())
    results, first_s, compile_s = zip(*map(_timed, calls), strict=True)
    check(*results)
    del results
    repeats = [max(1, round(TURN_S / _timed(call)[1])) for call in calls]
    turns: list[list[float]] = [[] for _ in calls]
    start = time.perf_counter()
    for turn in range(most):
        if turn >= least and time.perf_counter() - start > budget_s:
            break
        # There and back: whoever is next to whom, and first, changes every turn.
        order = range(len(calls)) if turn % 2 == 0 else reversed(range(len(calls)))
        for i in order:
            turns[i].append(seconds(calls[i], repeats[i]))
    return [
        Timing(first_s=first, compile_s=compiling, turns_s=tuple(one))
        for first, compiling, one in zip(first_s, compile_s, turns, strict=True)
    ]


def _timed(call: Callable[[], Any]) -> tuple[Any, float, float]:
    """The result, seconds, and how many of them went into compiling."""
    start, compiled = time.perf_counter(), compilation.clock.seconds
    result = jax.block_until_ready(call())
    return (
        result,
        time.perf_counter() - start,
        compilation.clock.seconds - compiled,
    )


def seconds(call: Callable[[], Any], repeats: int = 1) -> float:
    """Of a call, the mean over `repeats` of them.

    On an accelerator all are queued and the last is waited for: the time of one
    dispatch is hidden behind the one before it, as it is in a program. On a CPU each is
    waited for: several at a time would share the cores.
    """
    wait_for_each = jax.default_backend() == "cpu"
    result = None
    start = time.perf_counter()
    for _ in range(repeats):
        result = call()
        if wait_for_each:
            jax.block_until_ready(result)
    jax.block_until_ready(result)
    return (time.perf_counter() - start) / repeats


def check_close(what: str, found: Any, expected: Any, tolerance: float) -> float:
    """The largest difference as a share of the largest expected number.

    Raises:
      WrongResultError: it is above `tolerance`, or something is not finite.
    """
    found, expected = (np.asarray(a, np.float64) for a in (found, expected))
    if found.shape != expected.shape:
        raise WrongResultError(f"{what}: shape {found.shape}, not {expected.shape}")
    size = max(float(np.abs(expected).max()), float(np.finfo(np.float32).tiny))
    error = float(np.abs(found - expected).max()) / size
    if not error <= tolerance:  # NaN included
        raise WrongResultError(
            f"{what}: off by {error:.3g} of the largest number; allowed is "
            f"{tolerance:g}"
        )
    return error
