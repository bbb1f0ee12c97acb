"""The row of a training step: forward, back, and the optimiser."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np

from apex_jax import audio, settings, train
from apex_jax import mesh as mesh_lib
from benchmarks import rows, sizes, synthetic, timing

STEPS = 1000  # of the schedule that the steps are the first of


def step(size: sizes.Sizes) -> list[rows.Row]:
    """A step on a batch against the forward pass alone."""
    config, mesh = settings.Training(learning_rate=1e-6), mesh_lib.make()
    batch = mesh_lib.round_up(size.batch, mesh)
    model = synthetic.classifier(size.network).params
    optimiser = config.optimiser(STEPS)
    classes = size.network.num_classes
    target = np.eye(classes, dtype=np.float32)[:1].repeat(batch, axis=0)
    waveform, target, valid, place = mesh_lib.shard(
        (
            synthetic.waveforms(size.front_end, batch),
            target,
            np.ones(batch, bool),
            np.arange(batch, dtype=np.int32),
        ),
        mesh,
    )
    task = train.classification("softmax")
    # A step gives its arrays away to the next one.
    own = jax.tree.map(jnp.array, mesh_lib.replicate(model, mesh))
    held = [own, mesh_lib.replicate(optimiser.init(own), mesh)]

    def teach() -> jax.Array:
        held[0], held[1], loss = train.step(
            *held,
            jax.random.key(0),
            waveform,
            target,
            valid,
            place,
            task=task,
            optimiser=optimiser,
            front_end=size.front_end,
            mesh=mesh,
        )
        return loss

    @jax.jit
    def forward(model, waveform, target):
        logits = model(audio.spectrogram(size.front_end, waveform))
        return jnp.mean(task.loss(logits, target, jnp.ones(len(logits), bool)))

    def check(taught: jax.Array, passed: jax.Array) -> None:
        # Of the first step, before anything has changed.
        timing.check_close("loss of a step", taught, passed, 1e-4)

    spread = mesh_lib.replicate(model, mesh)
    timings = timing.alternate(
        {
            "step": teach,
            "forward": lambda: forward(spread, waveform, target),
        },
        budget_s=size.budget_s,
        check=check,
        least=size.least,
    )
    return [
        rows.between(
            "train-step",
            f"training step, {size.network_name}, {batch} clips",
            *timings,
            unit="clip",
            per_call=batch,
            floor_is="the forward pass alone",
        )
    ]
