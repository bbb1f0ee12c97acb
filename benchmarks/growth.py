"""Growth of times with clips, channels and devices.

Virtual CPU devices share the same cores: more of them gain only where one leaves a core
idle, and what is asked of them is the same result and little overhead. They must be
asked for before JAX starts, so they are measured in a process of their own:

    python -m benchmarks.growth --help
"""

from __future__ import annotations

import dataclasses
import json
import os
import subprocess
import sys
from typing import Any

import jax
import numpy as np
import tyro

from apex_jax import bank, inference
from apex_jax import mesh as mesh_lib
from benchmarks import method, rows, sizes, synthetic, timing

# A process that has measured nothing for so long will not: at the paper's size it takes
# about two minutes on two cores.
CHILD_S = 1200


@dataclasses.dataclass(frozen=True, kw_only=True)
class Point:
    """One measurement of a curve.

    Attributes:
      stage: what was measured: scoring, step or features.
      axis: what grows: clips, chan or devices.
      value: how many.
      seconds: median.
      ratio: to the floor of the same size; over devices, to one device.
      at: what does not grow, in words.
    """

    stage: str
    axis: str
    value: int
    seconds: float
    ratio: float
    at: str = ""


def growth(size: sizes.Sizes) -> list[Point]:
    """All curves."""
    size = _shorter(size)
    return [*over_clips(size), *over_channels(size), *over_devices(size)]


def _shorter(size: sizes.Sizes) -> sizes.Sizes:
    """Many points: few steps and turns for each."""
    return dataclasses.replace(size, epoch_prototypes=1, budget_s=size.budget_s / 4)


def over_clips(size: sizes.Sizes) -> list[Point]:
    """Scoring grows with the clips, a step does not."""
    points = []
    for clips in size.growth_clips:
        row = method.rank(size, clips=clips, chan=size.chan)
        at = f"{size.chan:,} channels"
        points.append(_point("scoring", "clips", clips, row, at))
        points.append(_step(size, "clips", clips, clips=clips, chan=size.chan))
    return points


def over_channels(size: sizes.Sizes) -> list[Point]:
    """In products of its size a step stays as it is."""
    points = []
    for chan in size.growth_chan:
        clips = size.growth_clips[0]
        row = method.rank(size, clips=clips, chan=chan)
        points.append(_point("scoring", "chan", chan, row, f"{clips:,} clips"))
        points.append(_step(size, "chan", chan, clips=256, chan=chan))
    return points


def _step(size: sizes.Sizes, axis: str, value: int, *, clips: int, chan: int) -> Point:
    run, steps = synthetic.epoch(size, clips=clips, chan=chan)
    epoch, floor = timing.alternate(
        {"epoch": run, "product": method.product(chan)},
        budget_s=size.budget_s,
        least=size.least,
    )
    one = epoch.scaled(1 / steps)
    return Point(
        stage="step",
        axis=axis,
        value=value,
        seconds=one.median_s,
        ratio=timing.ratio(one, floor).median,
        at=f"{chan:,} channels" if axis == "clips" else f"{clips:,} clips",
    )


def _point(stage: str, axis: str, value: int, row: rows.Row, at: str) -> Point:
    return Point(
        stage=stage,
        axis=axis,
        value=value,
        seconds=row.seconds,
        ratio=row.ratio.median,
        at=at,
    )


def over_devices(size: sizes.Sizes) -> list[Point]:
    """The same work on more devices: accelerators, or virtual devices of the CPU."""
    if jax.default_backend() != "cpu":
        there = [n for n in size.growth_devices if n <= len(jax.devices())]
        # A single one has nothing to grow to.
        return (
            on_devices(dataclasses.replace(size, growth_devices=tuple(there)))
            if len(there) > 1
            else []
        )
    if len(jax.devices()) >= max(size.growth_devices):
        return on_devices(size)
    count = max(size.growth_devices)
    flag = f"--xla_force_host_platform_device_count={count}"
    command = [sys.executable, "-m", "benchmarks.growth"]
    command += [] if size.judged else ["--smoke"]
    try:
        done = subprocess.run(
            command,
            capture_output=True,
            text=True,
            check=False,
            timeout=CHILD_S,
            env=os.environ
            | {
                "JAX_PLATFORMS": "cpu",
                "XLA_FLAGS": f"{os.environ.get('XLA_FLAGS', '')} {flag}".strip(),
            },
        )
    except subprocess.TimeoutExpired as error:
        raise RuntimeError(
            f"growth over {count} virtual devices was stopped after {CHILD_S} s "
            f"({' '.join(command)}). Is the machine busy? The rows are saved; --only "
            "growth measures growth again"
        ) from error
    if done.returncode != 0:
        raise RuntimeError(f"{' '.join(command)} failed:\n{done.stderr}")
    return [Point(**one) for one in json.loads(done.stdout.splitlines()[-1])]


def on_devices(size: sizes.Sizes) -> list[Point]:
    """Scoring and features on the first 1, 2, ... devices of this process."""
    counts = size.growth_devices
    if len(jax.devices()) < max(counts):
        raise ValueError(
            f"growth over {max(counts)} devices; this process has {len(jax.devices())}"
        )
    clips, num = size.growth_spread, size.schedule.prototypes_start
    pooled = synthetic.features(clips, size.chan, (1, 1)).pooled
    transform = synthetic.transform(size.chan)
    classifier = synthetic.classifier(size.growth_network)
    waveform = synthetic.waveforms(size.front_end, size.growth_batch)

    def score(mesh: jax.sharding.Mesh) -> Any:
        copied = mesh_lib.replicate(transform, mesh)
        spread = mesh_lib.shard(pooled, mesh)
        return lambda: bank.top_clips(
            copied, spread, num=num, num_clips=clips, mesh=mesh
        )

    def check_scores(first: Any, *others: Any) -> None:
        (positions, means), *others = jax.tree.map(np.asarray, (first, *others))
        for other_positions, other_means in others:
            if (other_positions != positions).any():
                raise timing.WrongResultError("on more devices other clips are best")
            timing.check_close("scores on more devices", other_means, means, 1e-5)

    def extract(mesh: jax.sharding.Mesh) -> Any:
        copied = mesh_lib.replicate(classifier, mesh)
        spread = mesh_lib.shard(waveform, mesh)
        return lambda: inference.extract(
            copied, spread, front_end=size.front_end, keep_cells=False, mesh=mesh
        )[:2]

    def check_features(first: Any, *others: Any) -> None:
        for other in others:
            for found, wanted in zip(other, first, strict=True):
                timing.check_close("features on more devices", found, wanted, 1e-4)

    meshes = [mesh_lib.make(jax.devices()[:count]) for count in counts]
    points = []
    for stage, make, check, at in (
        ("scoring", score, check_scores, f"{clips:,} clips, {size.chan:,} channels"),
        (
            "features",
            extract,
            check_features,
            f"{size.growth_batch:,} clips, {size.named(size.growth_network)}",
        ),
    ):
        timings = timing.alternate(
            {str(mesh.size): make(mesh) for mesh in meshes},
            budget_s=size.budget_s,
            check=check,
            least=size.least,
        )
        points += [
            Point(
                stage=stage,
                axis="devices",
                value=count,
                seconds=one.median_s,
                ratio=timing.ratio(one, timings[0]).median,
                at=at,
            )
            for count, one in zip(counts, timings, strict=True)
        ]
    return points


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config:
    """Growth with the devices of this process, printed as JSON."""

    smoke: bool = False
    """Small sizes."""


def main(config: Config) -> None:
    """Measures and prints."""
    if config.smoke:
        jax.config.update("jax_disable_most_optimizations", True)
    size = sizes.smoke() if config.smoke else sizes.paper(accelerator=False)
    points = on_devices(_shorter(size))
    print(json.dumps([dataclasses.asdict(point) for point in points]))


if __name__ == "__main__":
    main(tyro.cli(Config, description=__doc__))
