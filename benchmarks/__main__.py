"""Throughput of each stage beside a floor measured in the same run.

    python -m benchmarks --smoke
    python -m benchmarks --output benchmarks/results/cpu.json

A ratio compares with the floor named in its row; absolute times differ from machine
to machine. A *product* is one float32 [chan, chan] x [chan, chan] matrix product.
"""

from __future__ import annotations

import dataclasses
import functools
import json
import os
import platform
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import tyro
from flax import nnx

from apex_jax import audio, bank, disentangle, optimize, schemes
from apex_jax import mesh as mesh_lib
from apex_jax.models import convnext


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config:
    """Measures each stage and writes JSON."""

    smoke: bool = False
    """Small sizes, under a minute: to see that everything runs."""
    chan: int = 1024
    """Channels of the method's rows; the paper's ConvNeXt-Base has 1,024."""
    model: convnext.Size = "base"
    """Size of the backbone."""
    clips: int = 22_200
    """Clips to rank; WaveFake has 22,200 to train on for one vocoder."""
    repeats: int = 5
    """Counted runs of each row; the median is reported."""
    output: Path | None = None
    """Where the JSON goes; by default it is only printed."""


def timed(function: Callable[[], Any], repeats: int) -> float:
    """Median seconds of a call, after one that compiles."""
    jax.block_until_ready(function())
    seconds = []
    for _ in range(repeats):
        start = time.perf_counter()
        jax.block_until_ready(function())
        seconds.append(time.perf_counter() - start)
    return statistics.median(seconds)


def log_mel(config: Config) -> dict[str, Any]:
    """Our spectrogram on the device against librosa's on the host."""
    import librosa

    front_end = audio.FrontEnd.librosa(
        sample_rate=22050, clip_s=5.0, hop_length=512, top_db=None
    )
    clips = 8 if config.smoke else 32
    noise = np.random.default_rng(0).normal(size=(clips, front_end.num_samples))
    waveform = noise.astype(np.float32) * 0.1
    ours = jax.jit(audio.spectrogram, static_argnums=0)

    def theirs() -> np.ndarray:
        power = librosa.feature.melspectrogram(y=waveform, sr=22050)
        return librosa.power_to_db(power, top_db=None)

    error = float(np.max(np.abs(np.asarray(ours(front_end, waveform)) - theirs())))
    assert error < 0.05, f"spectrograms differ by {error} dB"
    seconds = timed(lambda: ours(front_end, waveform), config.repeats)
    floor = timed(theirs, config.repeats)
    return row("log-mel, 5 s clips", seconds / clips, floor / clips, "librosa", "clip")


def backbone(config: Config) -> dict[str, Any]:
    """Forward passes against the products inside them, one after another."""
    size: convnext.Size = "atto" if config.smoke else config.model
    side, batch = (128, 4) if config.smoke else (224, 4)
    shape = convnext.ConvNeXtConfig.named(size, num_classes=2)
    model = jax.jit(lambda: convnext.ConvNeXt(shape, rngs=nnx.Rngs(0)))()
    images = jax.random.normal(jax.random.key(0), (batch, side, side))
    run = jax.jit(lambda model, x: model(x))
    seconds = timed(lambda: run(model, images), config.repeats)
    # The two linear layers of every block are nearly all of the arithmetic.
    pairs = []
    for index, (depth, dim) in enumerate(zip(shape.depths, shape.dims, strict=True)):
        cells = batch * (side // shape.patch_size // 2**index) ** 2
        pairs.append((depth, jnp.ones((cells, dim)), jnp.ones((dim, 4 * dim))))

    @jax.jit
    def products(x, w):
        return (x @ w) @ w.T

    floor = 0.0
    for depth, x, w in pairs:
        floor += depth * timed(functools.partial(products, x, w), config.repeats)
    label = f"backbone {size}, {side} x {side}"
    return row(label, seconds / batch, floor / batch, "its linear layers alone", "clip")


def optimiser_step(config: Config, product: float) -> dict[str, Any]:
    """One step of the optimisation on marginals of a 7 x 7 map, 512 pairs."""
    chan, clips, settings = config.chan, 256, optimize.Config()
    mesh = mesh_lib.make(jax.devices()[:1])
    keys = jax.random.split(jax.random.key(0), 4)
    rows = jax.random.normal(keys[0], (clips, 7, chan))
    columns = jax.random.normal(keys[1], (clips, 7, chan))
    views = schemes.Views(rows=rows, columns=columns)
    prototypes = 4096 // chan + 2  # a few steps also at small sizes
    chosen = jax.random.randint(keys[2], (chan, prototypes), 0, clips)
    steps = chan * prototypes // settings.batch_size

    def epoch():
        generator = jnp.zeros((chan, chan))
        return optimize.run_epoch(
            keys[3],
            generator,
            settings.optimiser().init(generator),
            views,
            chosen,
            jnp.int32(prototypes),
            config=settings,
            scheme="frequency",
            mesh=mesh,
        )[0]

    seconds = timed(epoch, config.repeats) / steps
    return row(f"optimiser step, {chan} channels", seconds, product, "product", "step")


def scoring(config: Config) -> dict[str, Any]:
    """Ranking all clips for all channels against the product inside it."""
    clips = 2_000 if config.smoke else config.clips
    mesh = mesh_lib.make(jax.devices()[:1])
    pooled = jax.random.normal(jax.random.key(0), (clips, config.chan))
    transform = disentangle.identity(config.chan)
    seconds = timed(
        lambda: bank.top_clips(transform, pooled, num=100, num_clips=clips, mesh=mesh),
        config.repeats,
    )
    product = jax.jit(lambda transform, pooled: transform(pooled))
    floor = timed(lambda: product(transform, pooled), config.repeats)
    label = f"scoring, {clips} clips, top 100"
    return row(label, seconds, floor, "its product alone", "round")


def row(
    what: str, seconds: float, floor: float, floor_is: str, unit: str
) -> dict[str, Any]:
    """One line of the table."""
    return {
        "what": what,
        "seconds_per_" + unit: seconds,
        "floor": floor_is,
        "floor_seconds": floor,
        "ratio": seconds / floor,
    }


def main(config: Config) -> dict[str, Any]:
    """Runs every row, prints the table, returns what is written."""
    if config.smoke:
        config = dataclasses.replace(config, chan=128, repeats=2)
    square = jax.random.normal(jax.random.key(0), (config.chan, config.chan))
    multiply = jax.jit(jnp.matmul)
    product = timed(lambda: multiply(square, square), 4 * config.repeats)
    print(f"{'stage':34}{'seconds':>12}{'ratio':>9}  to")
    rows = []
    for measure in (
        log_mel,
        backbone,
        lambda config: optimiser_step(config, product),
        scoring,
    ):
        rows.append(measure(config))
        one = rows[-1]
        unit = next(key for key in one if key.startswith("seconds_per_"))
        print(f"{one['what']:34}{one[unit]:12.5f}{one['ratio']:9.2f}  {one['floor']}")
    results = {
        "device": f"{len(jax.devices())} x {jax.devices()[0].device_kind}",
        "cores": os.cpu_count(),
        "machine": platform.machine(),
        "versions": {"jax": jax.__version__, "python": platform.python_version()},
        "product_seconds": product,
        "rows": rows,
    }
    if config.output is not None:
        config.output.parent.mkdir(parents=True, exist_ok=True)
        config.output.write_text(json.dumps(results, indent=2) + "\n")
    return results


if __name__ == "__main__":
    main(tyro.cli(Config, description=__doc__))
