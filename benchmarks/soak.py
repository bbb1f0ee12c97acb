"""Ten thousand explanations in one process: memory, latency, recompilation.

    python -m benchmarks.soak
    python -m benchmarks.soak --explanations 500

Each explains one of 200 sound files, as a service would, and makes its report's page
now and then. Printed are the resident memory and the latency of every tenth part.
"""

from __future__ import annotations

import dataclasses
import functools
import gc
import statistics
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import tyro

from apex_jax import bank, cache, compilation, explainer, report, settings
from apex_jax import mesh as mesh_lib
from apex_jax.models import convnext
from benchmarks import sizes, synthetic

FILES = 200
PARTS = 10
WARM = 100  # explanations before anything is counted
PAGE_EVERY = 500
# Of resident memory, from the first part to the last; and of the latency.
LARGEST_GROWTH, LARGEST_SLOWDOWN = 1.05, 1.5


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config:
    """Explains over and over, and fails where memory, latency or compiling grows."""

    explanations: int = 10_000
    """How many."""
    size: settings.Size = "atto"
    """Of the ConvNeXt."""
    slowdown: float = LARGEST_SLOWDOWN
    """Of the latency, what fails; `inf` where the machine has other work beside it."""


def resident_mib() -> float:
    """Memory of this process that is in use now."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("VmRSS:"):
            return int(line.split()[1]) / 1024
    raise OSError("/proc/self/status has no VmRSS; this needs Linux")


def make(folder: Path, size: settings.Size) -> tuple[explainer.Explainer, list[Path]]:
    """An explainer of random weights, and the files to explain."""
    front_end = sizes.smoke().front_end
    network = convnext.ConvNeXtConfig.named(size, num_classes=3, layer_scale_init=1.0)
    classifier = synthetic.classifier(network)
    mesh = mesh_lib.make()
    clips = synthetic.sounds(folder, front_end, FILES, network.num_classes)
    cached = cache.build(folder / "cache", classifier, clips, front_end, mesh=mesh)
    features = cached.features.to_mesh(mesh)
    transform = synthetic.transform(features.pooled.shape[-1])
    of_sign = functools.partial(
        bank.build, transform, features, scheme="frequency", mesh=mesh
    )
    made = explainer.Explainer(
        classifier=classifier,
        transform=transform,
        positive=of_sign(sign="positive"),
        negative=of_sign(sign="negative"),
        clips=cached.clips,
        front_end=front_end,
    )
    return made, [Path(clip.path) for clip in clips]


def main(config: Config) -> bool:
    """Whether everything stayed as it was."""
    with tempfile.TemporaryDirectory() as temporary:
        explain, files = make(Path(temporary), config.size)
        for number in range(WARM):
            found = explain(files[number % FILES])
        report.html([found])
        compiled = compilation.clock.seconds
        parts = []
        for part in np.array_split(np.arange(config.explanations), PARTS):
            seconds = []
            for number in part.tolist():
                start = time.perf_counter()
                found = explain(files[number % FILES])
                seconds.append(time.perf_counter() - start)
                if number % PAGE_EVERY == 0:
                    report.html([found])
            gc.collect()
            parts.append((statistics.median(seconds), max(seconds), resident_mib()))
            print(
                f"{part[-1] + 1:7,} explained   median {1e3 * parts[-1][0]:6.1f} ms   "
                f"worst {1e3 * parts[-1][1]:7.1f} ms   {parts[-1][2]:7.0f} MiB",
                flush=True,
            )
        compiling = compilation.clock.seconds - compiled
    growth = parts[-1][2] / parts[0][2]
    slowdown = parts[-1][0] / parts[0][0]
    print(
        f"memory {growth:.3f} x, latency {slowdown:.2f} x, {compiling:.1f} s compiling"
    )
    return growth <= LARGEST_GROWTH and slowdown <= config.slowdown and compiling == 0.0


if __name__ == "__main__":
    sys.exit(not main(tyro.cli(Config, description=__doc__)))
