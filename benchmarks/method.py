"""Rows of the method: exponential, step, round, scoring.

A *product* is one float32 `[chan, chan] x [chan, chan]` matrix product at the highest
precision, measured in the same turns.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from apex_jax import bank, disentangle, optimize
from apex_jax import features as features_lib
from apex_jax import mesh as mesh_lib
from benchmarks import naive, rows, sizes, synthetic, timing


def product(chan: int) -> Callable[[], jax.Array]:
    """One product of the given size."""
    a = jax.random.normal(jax.random.key(0), (chan, chan))
    return functools.partial(_multiply, a, a)


@jax.jit
def _multiply(a: jax.Array, b: jax.Array) -> jax.Array:
    return jnp.matmul(a, b, precision=disentangle.HIGHEST)


@functools.partial(jax.jit, static_argnames=("method",))
def exponential_and_gradient(
    generator: jax.Array, cotangent: jax.Array, *, method: disentangle.Method
) -> tuple[jax.Array, jax.Array]:
    """`expm(A)` and a cotangent pulled back through it."""
    value, pull_back = jax.vjp(lambda a: disentangle.exponential(a, method), generator)
    return value, pull_back(cotangent)[0]


def expm(size: sizes.Sizes) -> list[rows.Row]:
    """Value and gradient of the exponential, ours and JAX's, in products."""
    import scipy.linalg

    chan = size.chan
    generator = synthetic.generator(chan, size.norm)
    cotangent = jax.random.normal(jax.random.key(1), (chan, chan))
    both = functools.partial(exponential_and_gradient, generator, cotangent)
    errors: dict[str, float] = {}

    def check(ours: Any, reference: Any, _: Any) -> None:
        exact = scipy.linalg.expm(np.asarray(generator, np.float64))
        for name, (value, _) in (("error", ours), ("error of JAX's", reference)):
            errors[name] = timing.check_close("expm", value, exact, 1e-4)
        timing.check_close("gradient of expm", ours[1], reference[1], 1e-3)

    ours, reference, floor = timing.alternate(
        {
            "ours": functools.partial(both, method="products"),
            "JAX's": functools.partial(both, method="reference"),
            "product": product(chan),
        },
        budget_s=size.budget_s,
        check=check,
        least=size.least,
    )
    what = f"expm with gradient, C = {chan}"
    common: dict[str, Any] = {"unit": "call", "floor_is": "product"}
    return [
        rows.between(
            "expm",
            what,
            ours,
            floor,
            goal=rows.Goal(at_most=30) if size.judged else None,
            details={"one_norm": size.norm, "error": errors["error"]},
            **common,
        ),
        rows.between(
            "expm",
            "  jax.scipy.linalg.expm",
            reference,
            floor,
            details={"one_norm": size.norm, "error": errors["error of JAX's"]},
            **common,
        ),
    ]


def step(size: sizes.Sizes) -> list[rows.Row]:
    """One step of the optimiser, in products."""
    naive.check_same_step()
    run, steps = synthetic.epoch(size)

    def check(epoch: Any, _: Any) -> None:
        generator, _, purity = epoch
        if not (np.isfinite(generator).all() and abs(float(purity)) <= 1):
            raise timing.WrongResultError(f"an epoch ends with purity {purity}")

    epoch, floor = timing.alternate(
        {"epoch": run, "product": product(size.chan)},
        budget_s=size.budget_s,
        check=check,
        least=size.least,
    )
    return [
        rows.between(
            "step",
            f"optimiser step, C = {size.chan}",
            epoch.scaled(1 / steps),
            floor,
            unit="step",
            floor_is="product",
            goal=rows.Goal(at_most=40) if size.judged else None,
            details={"pairs": size.schedule.batch_size, "one_norm": size.norm},
        )
    ]


def choice(
    size: sizes.Sizes, features: features_lib.Features
) -> Callable[[], tuple[jax.Array, jax.Array]]:
    """Choosing the prototypes of a round among all clips, as `optimize.fit` does."""
    config, mesh = size.schedule, mesh_lib.make(jax.devices()[:1])
    generator = synthetic.generator(size.chan, size.norm)

    def choose() -> tuple[jax.Array, jax.Array]:
        transform = disentangle.from_generator(generator)
        clips, _ = bank.top_clips(
            transform,
            features.pooled,
            num=min(config.prototypes_start, size.clips),
            num_clips=size.clips,
            mesh=mesh,
        )
        _, score = bank.measure(
            transform,
            features.views,
            clips[:, : config.prototypes_end],
            scheme="frequency",
            mesh=mesh,
        )
        return clips, score

    return choose


def one_round(size: sizes.Sizes) -> list[rows.Row]:
    """The last round: ranking, measuring and its epochs, against its epochs alone."""
    config = size.schedule
    features = synthetic.features(size.clips, size.chan, size.map_shape)
    choose = choice(size, features)
    epoch, steps = synthetic.epoch(size)

    def epochs() -> Any:
        return [epoch() for _ in range(config.epochs_per_round)][-1]

    def whole() -> Any:
        return choose(), epochs()

    def check(found: Any, alone: Any) -> None:
        timing.check_close("a round's epochs", found[1][0], alone[0], 0.0)

    timings = timing.alternate(
        {"round": whole, "epochs": epochs},
        budget_s=size.budget_s,
        check=check,
        least=size.least,
    )
    return [
        rows.between(
            "round",
            f"round of {size.epoch_prototypes} prototypes",
            *timings,
            unit="round",
            floor_is="its epochs alone",
            details={"steps": steps * config.epochs_per_round, "clips": size.clips},
        )
    ]


def scoring(size: sizes.Sizes) -> list[rows.Row]:
    """Ranking all clips for all channels against the product inside it."""
    return [rank(size, clips=size.clips, chan=size.chan)]


def rank(size: sizes.Sizes, *, clips: int, chan: int) -> rows.Row:
    """Scoring of some number of clips and channels."""
    num = min(optimize.Config().prototypes_start, clips)
    mesh = mesh_lib.make(jax.devices()[:1])
    pooled = jax.random.normal(jax.random.key(0), (clips, chan))
    transform = synthetic.transform(chan)

    def check(found: tuple[jax.Array, jax.Array], scores: jax.Array) -> None:
        check_ranking(found[0], np.asarray(scores), num)

    timings = timing.alternate(
        {
            "scoring": lambda: bank.top_clips(
                transform, pooled, num=num, num_clips=clips, mesh=mesh
            ),
            "product": lambda: _apply(transform, pooled),
        },
        budget_s=size.budget_s,
        check=check,
        least=size.least,
    )
    return rows.between(
        "scoring",
        f"scoring {clips:,} clips, top {num}",
        *timings,
        unit="round",
        floor_is="its product alone",
        goal=rows.Goal(at_most=1.3) if size.judged else None,
        details={"clips": clips, "chan": chan, "num": num},
    )


@jax.jit
def _apply(transform: disentangle.Transform, pooled: jax.Array) -> jax.Array:
    return transform(pooled)


def check_ranking(clips: jax.Array, scores: np.ndarray, num: int) -> None:
    """Raises unless the clips `[chan, num]` are those of a full sort of the scores.

    Up to the last digit of a score: products may add in another order.
    """
    for channel in np.linspace(0, scores.shape[1] - 1, 16).astype(int):
        exact = np.sort(scores[:, channel])[::-1][:num]
        found = scores[np.asarray(clips[channel]), channel]
        timing.check_close("ranking", found, exact, 1e-5)
