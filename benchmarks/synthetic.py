"""What is measured on: features, generators, networks and sounds made from a seed."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from apex_jax import audio, bank, data, disentangle, optimize, schemes
from apex_jax import classifier as classifier_lib
from apex_jax import features as features_lib
from apex_jax import mesh as mesh_lib
from apex_jax.models import convnext
from benchmarks import sizes


def features(
    clips: int, chan: int, map_shape: tuple[int, int], *, seed: int = 0
) -> features_lib.Features:
    """Row and column averages of maps that vary from clip to clip and within one."""

    @jax.jit
    def draw(key):
        keys = jax.random.split(key, 3)
        pooled = jax.random.normal(keys[0], (clips, chan))

        def around_pooled(key, length):
            noise = jax.random.normal(key, (clips, length, chan))
            # Rows and columns are averages of the same map: both have its mean.
            return pooled[:, None] + noise - noise.mean(axis=1, keepdims=True)

        rows, columns = map(around_pooled, keys[1:], map_shape)
        return pooled, schemes.Views(rows=rows, columns=columns)

    pooled, views = draw(jax.random.key(seed))
    return features_lib.Features(
        pooled=pooled, logits=pooled[:, :2], views=views, num_clips=clips
    )


def generator(chan: int, norm: float, *, seed: int = 0) -> jax.Array:
    """A random A `[chan, chan]` of a given 1-norm."""
    a = jax.random.normal(jax.random.key(seed), (chan, chan))
    return a * (norm / jnp.max(jnp.sum(jnp.abs(a), axis=0)))


def classifier(config: convnext.ConvNeXtConfig) -> classifier_lib.Classifier:
    """A network of random weights."""
    # Compiled: one by one, the random draws would each compile by themselves.
    model = jax.jit(lambda: convnext.ConvNeXt(config, rngs=nnx.Rngs(0)))()
    names = [str(i) for i in range(config.num_classes)]
    return convnext.as_classifier(model, names)


def waveforms(front_end: audio.FrontEnd, clips: int) -> np.ndarray:
    """Noise, `[clips, sample]` float32."""
    rng = np.random.default_rng(0)
    shape = clips, front_end.num_samples
    return 0.1 * rng.standard_normal(shape, np.float32)


def sounds(
    directory: Path,
    front_end: audio.FrontEnd,
    clips: int,
    classes: int,
    *,
    sample_rate: int | None = None,
) -> list[data.Clip]:
    """Noise in FLAC files as long as a clip.

    Args:
      directory: where they go; made if it is not there.
      front_end: for the length, and the sample rate.
      clips: how many.
      classes: how many they belong to.
      sample_rate: of the files, Hz, if not the front end's.
    """
    import soundfile

    of_files = front_end
    if sample_rate is not None:
        of_files = dataclasses.replace(front_end, sample_rate=sample_rate)
    directory.mkdir(exist_ok=True)
    made = []
    for i, waveform in enumerate(waveforms(of_files, clips)):
        path = directory / f"{i:05d}.flac"
        soundfile.write(path, waveform, of_files.sample_rate)
        made.append(data.Clip(path=path, label=i % classes))
    return made


def transform(chan: int) -> disentangle.Transform:
    """One that is well conditioned."""
    return disentangle.from_generator(generator(chan, 3.0))


def steps(schedule: optimize.Config, chan: int) -> list[int]:
    """Optimiser steps of each epoch."""
    per_round = [-(-chan * n // schedule.batch_size) for n in schedule.schedule()]
    return [
        per_round[epoch // schedule.epochs_per_round]
        for epoch in range(schedule.epochs)
    ]


def epoch(
    size: sizes.Sizes, *, clips: int = 256, chan: int | None = None
) -> tuple[Callable[[], Any], int]:
    """An epoch of the optimisation on a few clips, and how many steps it has.

    Args:
      size: for the schedule, the channels and the 1-norm of A.
      clips: how many; a step does not depend on it.
      chan: channels, if others than the size's.
    """
    config, mesh = size.schedule, mesh_lib.make(jax.devices()[:1])
    chan = size.chan if chan is None else chan
    # The frequency scheme looks at rows alone: one column saves half the memory.
    of_clips = features(clips, chan, (size.map_shape[0], 1))
    prototypes = min(size.epoch_prototypes, clips)
    chosen, _ = bank.top_clips(
        disentangle.identity(chan),
        of_clips.pooled,
        num=prototypes,
        num_clips=clips,
        mesh=mesh,
    )
    start = generator(chan, size.norm)
    state = config.optimiser().init(start)
    key = jax.random.key(0)

    def run() -> tuple[jax.Array, Any, jax.Array]:
        # Copies: what goes in is donated.
        return optimize.run_epoch(
            key,
            *jax.tree.map(jnp.copy, (start, state)),
            of_clips.views,
            chosen,
            jnp.int32(prototypes),
            config=config,
            scheme="frequency",
            mesh=mesh,
        )

    return run, -(-chan * prototypes // min(config.batch_size, chan * prototypes))
