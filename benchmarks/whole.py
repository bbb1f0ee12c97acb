"""Row of the whole optimisation, on synthetic features at the paper's size.

By default a share of the schedule runs and the rest is scaled; with `--full` all of
it does.
"""

from __future__ import annotations

import dataclasses
import statistics
import time

import jax
import jax.numpy as jnp

from apex_jax import compilation, optimize
from apex_jax import mesh as mesh_lib
from benchmarks import method, rows, sizes, synthetic, timing

# One of so many pairs is trained on where the schedule is not run in full.
SHARE = 10


def share_of(config: optimize.Config, share: int) -> optimize.Config:
    """A schedule of the same rounds and epochs with a share of the pairs.

    The generator decides how many squarings a step takes, so its way must be the
    whole schedule's: steps are longer in the measure in which they are fewer. They
    overshoot rather than fall short, so that scaling errs on the slow side.
    """
    short = dataclasses.replace(
        config,
        prototypes_start=max(1, config.prototypes_start // share),
        prototypes_end=max(1, config.prototypes_end // share),
    )
    longer = sum(config.schedule()) / sum(short.schedule())
    return dataclasses.replace(short, learning_rate=config.learning_rate * longer)


def scaled(
    epoch_s: list[float], ran: list[int], whole: list[int], choice_s: float, rounds: int
) -> float:
    """Seconds of the whole schedule.

    Args:
      epoch_s: of the epochs that ran, choices of prototypes left out.
      ran: their steps.
      whole: steps of the same epochs in the whole schedule.
      choice_s: of one choice of prototypes.
      rounds: of the schedule; prototypes are chosen before each and after the last.
    """
    steps = sum(s / n * m for s, n, m in zip(epoch_s, ran, whole, strict=True))
    return steps + (rounds + 1) * choice_s


def optimisation(size: sizes.Sizes, *, full: bool = False) -> list[rows.Row]:
    """Learning A from beginning to end; one product a step as the yardstick."""
    config = size.schedule if full else share_of(size.schedule, SHARE)
    mesh = mesh_lib.make(jax.devices()[:1])
    features = synthetic.features(size.clips, size.chan, size.map_shape)
    (choice,) = timing.alternate(
        {"choice": method.choice(size, features)}, budget_s=0.0, least=size.least
    )
    multiply = method.product(size.chan)
    jax.block_until_ready(multiply())
    epoch_s: list[float] = []
    product_s: list[float] = []
    last = time.perf_counter()

    def on_epoch(epoch: int, purity: float) -> None:
        nonlocal last
        now = time.perf_counter()
        epoch_s.append(now - last)
        # Beside each epoch, so that the machine's drift hits it alike.
        for _ in range(5):
            jax.block_until_ready(multiply())
        product_s.append((time.perf_counter() - now) / 5)
        last = time.perf_counter()

    start, compiled = last, compilation.clock.seconds
    generator, history = optimize.fit(
        jax.random.key(0),
        features,
        "frequency",
        config=config,
        mesh=mesh,
        on_epoch=on_epoch,
    )
    elapsed_s = time.perf_counter() - start - 5 * sum(product_s)
    compile_s = compilation.clock.seconds - compiled
    _check(history)

    per_round, whole = (
        config.epochs_per_round,
        synthetic.steps(size.schedule, size.chan),
    )
    ran = synthetic.steps(config, size.chan)
    # The first epoch of a round holds the choice of prototypes, and of the first round
    # what compiling takes: the others stand for them.
    alone = [
        min(epoch_s[first : first + per_round])
        for first in range(0, config.epochs, per_round)
        for _ in range(min(per_round, config.epochs - first))
    ]
    rounds = len(config.schedule())
    seconds = (
        elapsed_s - compile_s
        if full
        else scaled(alone, ran, whole, choice.median_s, rounds)
    )
    steps, floor_s = sum(whole), statistics.median(product_s)
    per_step = [s / n / p for s, n, p in zip(alone, ran, product_s, strict=True)]
    share = sum(ran) / steps
    return [
        rows.Row(
            name="whole",
            what=f"whole optimisation, C = {size.chan}",
            unit="fit",
            seconds=seconds,
            compile_s=compile_s,
            floor="one product a step",
            floor_seconds=steps * floor_s,
            ratio=timing.Ratio(
                median=seconds / (steps * floor_s),
                low=min(per_step),
                high=max(per_step),
            ),
            goal=_goal() if size.judged else None,
            details={
                "clips": size.clips,
                "steps": steps,
                "steps_run": sum(ran),
                "seconds_run": elapsed_s,
                "choice_s": choice.median_s,
                "one_norm_at_the_end": float(jnp.abs(generator).sum(axis=0).max()),
                "purity": [history.round_purity[0], history.round_purity[-1]],
            },
            note=(
                f"all {steps:,} steps run"
                if full
                else f"scaled from {sum(ran):,} of {steps:,} steps ({share:.0%})"
            ),
        )
    ]


def _goal() -> rows.Goal:
    cpu = jax.default_backend() == "cpu"
    return rows.Goal(at_most=600 if cpu else 15, of="seconds")


def _check(history: optimize.History) -> None:
    first, last = history.round_purity[0], history.round_purity[-1]
    if not last > first:
        raise timing.WrongResultError(
            f"purity went from {first:.3f} to {last:.3f}; it should grow"
        )
