"""The same optimisation the obvious way, as EPIC does it.

The backbone runs for every (channel, clip) pair of every epoch and for all clips in
every round; whole feature maps go through U; the exponential is the library's, its
gradient automatic. A small share of it is measured and scaled by what the schedule
holds: so many passes of the backbone, so many steps.
"""

from __future__ import annotations

import dataclasses
import functools

import jax
import jax.numpy as jnp
import optax

from apex_jax import mesh as mesh_lib
from apex_jax import optimize, schemes
from benchmarks import rows, sizes, synthetic, timing


@dataclasses.dataclass(frozen=True, kw_only=True)
class Work:
    """What a whole optimisation consists of.

    Attributes:
      pairs: passes of the backbone that the pairs of all epochs take.
      ranked: passes that the choices of prototypes take.
      steps: of the optimiser.
    """

    pairs: int
    ranked: int
    steps: int

    @classmethod
    def of(cls, schedule: optimize.Config, *, chan: int, clips: int) -> Work:
        """The work of a schedule: every pair of every epoch, all clips every round."""
        per_round = schedule.schedule()
        return cls(
            pairs=sum(
                chan * per_round[epoch // schedule.epochs_per_round]
                for epoch in range(schedule.epochs)
            ),
            ranked=clips * len(per_round),
            steps=sum(synthetic.steps(schedule, chan)),
        )

    def seconds(self, *, pass_s: float, step_s: float) -> float:
        """Of the whole, from those of one pass of one clip and of one step."""
        return (self.pairs + self.ranked) * pass_s + self.steps * step_s


@functools.partial(jax.jit, static_argnames=("config",))
def update(
    generator: jax.Array,
    state: optax.OptState,
    maps: jax.Array,
    channels: jax.Array,
    *,
    config: optimize.Config,
) -> tuple[jax.Array, optax.OptState, jax.Array]:
    """One step on the rows of whole maps `[pair, F, T, chan]`; frequency scheme."""

    def loss_of(generator):
        with jax.default_matmul_precision("highest"):
            matrix = jax.scipy.linalg.expm(generator)
            transformed = jnp.einsum("kc,pftc->pftk", matrix, maps)
        candidates = transformed.mean(axis=2)  # [pair, F, chan]
        pair = jnp.arange(len(channels))
        best = jnp.argmax(candidates[pair, :, channels], axis=1)
        prototype = candidates[pair, best]
        length = jnp.linalg.norm(prototype, axis=1)
        return -jnp.mean(prototype[pair, channels] / length)

    loss, gradient = jax.value_and_grad(loss_of)(generator)
    updates, state = config.optimiser().update(gradient, state, generator)
    return optax.apply_updates(generator, updates), state, -loss


def check_same_step() -> None:
    """Raises unless one naive step and one of ours do the same, at a small size."""
    chan, clips, shape = 16, 9, (3, 4)
    config = optimize.Config(batch_size=chan * 2)
    keys = jax.random.split(jax.random.key(0), 3)
    maps = jax.random.normal(keys[0], (clips, *shape, chan))
    chosen = jax.random.randint(keys[1], (chan, 2), 0, clips)
    start = synthetic.generator(chan, 2.0)
    _, state, _ = optimize.run_epoch(
        keys[2],
        jnp.copy(start),
        config.optimiser().init(start),
        schemes.views(maps, keep_cells=False),
        chosen,
        jnp.int32(2),
        config=config,
        scheme="frequency",
        mesh=mesh_lib.make(jax.devices()[:1]),
    )
    channels = jnp.repeat(jnp.arange(chan), 2)
    _, naive_state, _ = update(
        start,
        config.optimiser().init(start),
        maps[chosen.reshape(-1)],
        channels,
        config=config,
    )
    # Adam's first step is a sign; its moments tell whether gradients agree.
    ours, theirs = (optax.tree.get(one, "mu") for one in (state, naive_state))
    timing.check_close("a step against the naive one", ours, theirs, 1e-4)


def naive(size: sizes.Sizes) -> list[rows.Row]:
    """The whole optimisation, the obvious way against ours, both scaled."""
    check_same_step()
    config, chan = size.schedule, size.chan
    classifier = synthetic.classifier(size.network)
    keys = jax.random.split(jax.random.key(0), 4)
    images = jax.random.normal(keys[0], (size.batch, *size.front_end.shape))
    batch_size = min(config.batch_size, chan * size.epoch_prototypes)
    maps = jax.random.normal(keys[1], (batch_size, *size.map_shape, chan))
    channels = jax.random.randint(keys[2], (batch_size,), 0, chan)
    start = synthetic.generator(chan, size.norm)
    state = config.optimiser().init(start)
    epoch, steps = synthetic.epoch(size)

    passes, obvious, ours = timing.alternate(
        {
            "passes": functools.partial(_forward, classifier, images),
            "obvious step": lambda: update(start, state, maps, channels, config=config),
            "our steps": epoch,
        },
        budget_s=size.budget_s,
        least=size.least,
    )
    passes, ours = passes.scaled(1 / size.batch), ours.scaled(1 / steps)
    work = Work.of(config, chan=chan, clips=size.clips)
    # Ours: every clip through the backbone once, and the same number of steps.
    once = Work(pairs=0, ranked=size.clips, steps=work.steps)

    def whole(work: Work, step: timing.Timing) -> timing.Timing:
        return timing.Timing(
            first_s=passes.first_s + step.first_s,
            compile_s=passes.compile_s + step.compile_s,
            turns_s=tuple(
                work.seconds(pass_s=pass_s, step_s=step_s)
                for pass_s, step_s in zip(passes.turns_s, step.turns_s, strict=True)
            ),
        )

    theirs, floor = whole(work, obvious), whole(once, ours)
    return [
        rows.between(
            "naive",
            "optimisation, the obvious way",
            theirs,
            floor,
            unit="fit",
            floor_is="ours, backbone once a clip included",
            details={
                "backbone_passes": work.pairs + work.ranked,
                "backbone_passes_ours": once.ranked,
                "steps": work.steps,
                "seconds_a_pass": passes.median_s,
                "seconds_a_step": obvious.median_s,
                "seconds_a_step_ours": ours.median_s,
                "passes_measured": size.batch * len(passes.turns_s),
                "steps_measured": len(obvious.turns_s),
                "ratio_of_steps": obvious.median_s / ours.median_s,
            },
            note=(
                f"scaled from {size.batch * len(passes.turns_s)} passes and "
                f"{len(obvious.turns_s)} steps to {work.pairs + work.ranked:,} passes "
                f"and {work.steps:,} steps"
            ),
        )
    ]


@jax.jit
def _forward(classifier, images):
    return classifier(images)
