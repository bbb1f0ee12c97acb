"""The figures of `scaling.md`: the cost model, and what it is checked against.

    python docs/make_scaling.py           formulas, and XLA's own count of the same
    python docs/make_scaling.py --memory  peak memory of a process against clips

Neither measures time: operations, bytes, array sizes and collectives are the same on
any machine.
"""

from __future__ import annotations

# ruff: noqa: T201
import os
import pathlib
import re
import resource
import subprocess
import sys
import tempfile

os.environ["XLA_FLAGS"] = "--xla_force_host_platform_device_count=8"
os.environ["JAX_PLATFORMS"] = "cpu"

import jax
import jax.numpy as jnp
import numpy as np

from apex_jax import (
    audio,
    bank,
    cache,
    classifier,
    data,
    disentangle,
    optimize,
    ranking,
    schemes,
)
from apex_jax import mesh as mesh_lib
from apex_jax.models import convnext

CLIPS, CLASSES, CHAN = 528_434, 9_736, 1_024
MAP = (8, 19)
SAMPLES, SPECTROGRAM = 160_000, (256, 626)
DEPTHS, DIMS = (3, 3, 27, 3), (128, 256, 512, 1024)
CONFIG = optimize.Config()
FLOAT = 4  # bytes

# Of one H100 SXM, from its data sheet; and the share that ConvNeXt-Base reached on an
# H200, which computes as fast (benchmarks/results/h200.json, docs/performance.md).
FP32, BF16 = 67e12, 989e12
FP32_SHARE, BF16_SHARE = 0.57, 0.13
MEMORY, MEMORY_SHARE = 3.35e12, 0.7
LINK = {8: 450e9 * 0.5, 64: 50e9 * 0.5}  # a device: NVLink inside a host, then 400 Gb/s
DECODE_S = 0.010  # of a core, to open an Ogg file and decode 5 s of it
CORES = 96  # a host, of 8 devices
DISK = 2e9  # bytes a second and host, from shared storage
SQUARINGS = 5  # at the norms where the schedule ends
RECORDINGS = 484e9  # bytes of the corpus


# --- the formulas


def backbone(depths, dims, rows, frames, classes):
    """Operations of one clip: stem, blocks, downsampling, head."""
    rows, frames = rows // 4, frames // 4
    total = 2 * 16 * dims[0] * rows * frames
    for stage, (depth, dim) in enumerate(zip(depths, dims, strict=True)):
        if stage:
            rows, frames = rows // 2, frames // 2
            total += 2 * 4 * dims[stage - 1] * dim * rows * frames
        total += depth * rows * frames * (2 * 49 * dim + 16 * dim**2)
    return total + 2 * dims[-1] * classes


def log_mel(n_fft=2048):
    """Operations of one clip: a real Fourier transform a frame, and the mel product."""
    mels, frames = SPECTROGRAM
    return frames * (2.5 * n_fft * np.log2(n_fft) + 2 * mels * (n_fft // 2 + 1))


def clip_bytes(content, classes=CLASSES, chan=CHAN, shape=MAP):
    """Of a cached clip: pooled, logits, rows, columns, and for maps the cells."""
    cells = shape[0] * shape[1] if content == "maps" else 0
    return FLOAT * (chan * (1 + sum(shape) + cells) + classes)


def view_bytes(content, chan=CHAN, shape=MAP):
    """What a device holds of a clip, besides its pooled vector."""
    return clip_bytes(content, 0, chan, shape) - FLOAT * chan


def steps(chan=CHAN):
    """Optimiser steps of the schedule."""
    epochs = np.repeat(CONFIG.schedule(), CONFIG.epochs_per_round)[: CONFIG.epochs]
    return int(sum(-(-chan * n // CONFIG.batch_size) for n in epochs))


def step(squarings, chan=CHAN, pairs=512):
    """Operations of a step: the exponential and its gradient, and the pairs."""
    products = (3 + squarings) + (6 + 2 * squarings)
    # The location against 27 candidates, U times the vectors, and back.
    return 2 * chan**3 * products + 2 * pairs * chan * (sum(MAP) + 2 * chan)


def model(devices):
    """Rows `(stage, what bounds it, seconds)` and `(what, bytes)` of a run."""
    hosts, share = max(1, devices // 8), -(-CLIPS // devices)
    fp32, bf16 = FP32 * FP32_SHARE, BF16 * BF16_SHARE
    network = backbone(DEPTHS, DIMS, *SPECTROGRAM, CLASSES)
    gathered = CONFIG.batch_size * FLOAT * CHAN
    ring, rounds = 2 * (devices - 1) / devices, len(CONFIG.schedule()) + 1
    held = view_bytes("marginals") + FLOAT * CHAN
    audit = 2 * CLIPS * CHAN * (CHAN + CLASSES)
    seconds = {
        "read whole recordings": RECORDINGS / hosts / DISK,
        "decode": CLIPS * DECODE_S / hosts / CORES,
        "log-mel, float32": share * log_mel() / fp32,
        "backbone, float32": share * network / fp32,
        "backbone, bf16": share * network / bf16,
        "write the cache, marginals": CLIPS * clip_bytes("marginals") / hosts / DISK,
        "write the cache, maps": CLIPS * clip_bytes("maps") / hosts / DISK,
        "read it back, marginals": (
            CLIPS * FLOAT * (CHAN + CLASSES) + CLIPS / hosts * view_bytes("marginals")
        )
        / DISK,
        "read it back, maps": (
            CLIPS * FLOAT * (CHAN + CLASSES) + CLIPS / hosts * view_bytes("maps")
        )
        / DISK,
        "optimise, operations": steps() * step(SQUARINGS) / fp32,
        "optimise, views read": steps()
        * CONFIG.batch_size
        * view_bytes("marginals")
        / (MEMORY * MEMORY_SHARE),
        "optimise, sums over devices": steps() * gathered * ring / LINK[devices],
        "score, rounds and banks": (rounds + 3) * share * 2 * CHAN**2 / fp32,
        "score, candidates travel": (rounds + 3)
        * 8
        * CHAN
        * CONFIG.prototypes_start
        * devices
        / LINK[devices],
        "audit twice, products (every host all)": 2 * audit / fp32,
        "audit twice, float64 on the host": 2 * 8 * CLIPS * CLASSES * 8 / 20e9,
    }
    sizes = {
        "device: pooled, rows, columns": share * held,
        "device: cells besides (square)": share * FLOAT * CHAN * MAP[0] * MAP[1],
        "device: A, U, U^-1, Adam, stored squarings": FLOAT * CHAN**2 * 24,
        "host: pooled vectors": CLIPS * FLOAT * CHAN,
        "host: logits": CLIPS * FLOAT * CLASSES,
        "disk: cache, marginals": CLIPS * clip_bytes("marginals"),
        "disk: cache, maps": CLIPS * clip_bytes("maps"),
        "to a device: waveforms": share * SAMPLES * FLOAT,
        "between devices: one step": gathered * ring,
        "between devices: whole optimisation": steps() * gathered * ring,
        "between devices: one ranking": 8 * CHAN * CONFIG.prototypes_start * devices,
    }
    return seconds, sizes


def print_model():
    """Prints the tables of the cost model."""
    print(f"backbone {backbone(DEPTHS, DIMS, *SPECTROGRAM, CLASSES) / 1e9:.1f} GFLOP,")
    print(f"log-mel {log_mel() / 1e9:.2f} GFLOP, {steps()} steps of", end=" ")
    print(f"{step(SQUARINGS) / 1e9:.1f} GFLOP, a cached clip {clip_bytes('marginals')}")
    print(f"or {clip_bytes('maps')} bytes\n")
    (few, few_sizes), (many, many_sizes) = model(8), model(64)
    print("| s | 8 | 64 |\n| --- | --- | --- |")
    for name in few:
        print(f"| {name} | {few[name]:.3g} | {many[name]:.3g} |")
    print("\n| GB | 8 | 64 |\n| --- | --- | --- |")
    for name in few_sizes:
        print(
            f"| {name} | {few_sizes[name] / 1e9:.3g} | {many_sizes[name] / 1e9:.3g} |"
        )
    print()


# --- what XLA counts


def cost(lowered):
    """Operations and bytes of a program, loops' bodies counted once."""
    found = lowered.cost_analysis()
    return (found[0] if isinstance(found, list) else found)["flops"]


def collectives(text):
    """Names and shapes of what travels between devices in a compiled program."""
    names = "all-gather|all-reduce|reduce-scatter|all-to-all|collective-permute"
    found = re.findall(rf"= (\(?[^=]*?\)?) ({names})(?:-start)?\(", text)
    return [f"{name} {re.sub(r'{[^}]*}', '', shape)}" for shape, name in found]


def spread(mesh, *shape, dtype=jnp.float32, spec=mesh_lib.CLIPS):
    """An array of this shape on the mesh, of which nothing is made."""
    sharding = jax.sharding.NamedSharding(mesh, spec)
    return jax.ShapeDtypeStruct(shape, dtype, sharding=sharding)


def row(name, formula, counted):
    """A row of the table of operations."""
    print(f"| {name} | {formula:.4g} | {counted:.4g} | {counted / formula:.3f} |")


def check_operations():
    """Operations by formula, and as XLA counts them."""
    print("| what | formula | XLA | ratio |\n| --- | --- | --- | --- |")
    # A stage's blocks are a loop, of which XLA counts one pass.
    config = convnext.ConvNeXtConfig(
        depths=(1, 1, 1, 1), dims=DIMS, num_classes=CLASSES
    )
    counted = cost(
        jax.jit(convnext.forward).lower(
            convnext.abstract(config), jax.ShapeDtypeStruct((1, *SPECTROGRAM), "f4")
        )
    )
    row(
        "ConvNeXt, one block a stage, 256 x 626",
        backbone((1, 1, 1, 1), DIMS, *SPECTROGRAM, CLASSES),
        counted,
    )
    front_end = audio.FrontEnd.birdset()
    wave = jax.ShapeDtypeStruct((1, SAMPLES), "f4")
    log_mel_fn = jax.jit(lambda wave: audio.spectrogram(front_end, wave))
    row("log-mel of a clip", log_mel(), cost(log_mel_fn.lower(wave)))
    block = ranking.CPU_BLOCK_CLIPS  # XLA counts a loop over blocks once
    vectors = jax.ShapeDtypeStruct((block, CHAN), "f4")
    square = jax.ShapeDtypeStruct((CHAN, CHAN), "f4")
    number = jax.ShapeDtypeStruct((), "i4")
    scoring = jax.jit(lambda u, v, n: ranking.best(u, v, n, 100))
    row(
        f"scoring a block of {block:,} clips",
        2 * block * CHAN**2,
        cost(scoring.lower(square, vectors, number)),
    )


def check_programs():
    """Sizes and collectives of the compiled programs on 8 virtual devices."""
    mesh, chan, clips, top = mesh_lib.make(), 128, 1024, 100
    transform = jax.tree.map(
        lambda a: spread(mesh, *a.shape, spec=mesh_lib.COPY), disentangle.identity(chan)
    )
    views = schemes.Views(
        rows=spread(mesh, clips, MAP[0], chan),
        columns=spread(mesh, clips, MAP[1], chan),
    )
    compiled = bank.top_clips.lower(
        transform,
        spread(mesh, clips, chan),
        num=top,
        num_clips=clips,
        mesh=mesh,
    ).compile()
    print(f"\nscoring, {clips} clips, {chan} channels, top {top}, 8 devices:")
    print(
        "  argument bytes a device", compiled.memory_analysis().argument_size_in_bytes
    )
    print("  by hand", FLOAT * (clips // 8 * chan + chan**2 + chan))
    print("  travels:", collectives(compiled.as_text()))
    generator = spread(mesh, chan, chan, spec=mesh_lib.COPY)
    state = jax.tree.map(
        lambda a: spread(mesh, *a.shape, dtype=a.dtype, spec=mesh_lib.COPY),
        jax.eval_shape(CONFIG.optimiser().init, generator),
    )
    lowered = optimize.run_epoch.lower(
        jax.eval_shape(lambda: jax.random.key(0)),
        generator,
        state,
        views,
        spread(mesh, chan, top, dtype=jnp.int32, spec=mesh_lib.COPY),
        spread(mesh, dtype=jnp.int32, spec=mesh_lib.COPY),
        config=CONFIG,
        scheme="time_frequency",
        mesh=mesh,
    )
    compiled = lowered.compile()
    print(f"\nan epoch, {clips} clips, {chan} channels, 8 devices:")
    print(
        "  argument bytes a device", compiled.memory_analysis().argument_size_in_bytes
    )
    by_hand = clips // 8 * view_bytes("marginals", chan) + FLOAT * (
        3 * chan**2 + chan * top
    )
    print("  by hand", by_hand)
    print("  travels in a step:", collectives(compiled.as_text()))
    print()
    row("a step, one squaring (loop bodies counted once)", step(1, chan), cost(lowered))


# --- memory of a process


def measure_memory(num_clips, folder):
    """Peak memory of this process, loading a cache of `num_clips`; in a fresh one."""
    front_end = audio.FrontEnd(
        sample_rate=8000, clip_s=0.25, n_fft=256, hop_length=112, n_mels=8
    )
    chan = 256
    key = jax.random.key(0)
    weight = jax.random.normal(key, (chan,))
    head = jax.random.normal(key, (3, chan))

    def forward(params, spectrogram):
        feature_map = spectrogram[..., None] * params[None, None, None, :]
        return feature_map, jnp.einsum("bftc,kc->bk", feature_map, head) / (
            feature_map.shape[1] * feature_map.shape[2]
        )

    network = classifier.Classifier(
        params=weight,
        head=classifier.LinearHead(weight=head, bias=jnp.zeros(3)),
        forward_fn=forward,
        class_names=("a", "b", "c"),
    )
    wave = folder / "noise.wav"
    clips = [
        data.Clip(path=wave, label=0, offset_s=0.01 * (n % 900))
        for n in range(num_clips)
    ]
    use = cache.load if (folder / "cache/cache.json").exists() else cache.build
    options = {"content": "maps", "mesh": mesh_lib.make()}
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    cached = use(folder / "cache", network, clips, front_end, **options)
    jax.block_until_ready(cached.features.views)
    held = sum(a.nbytes for a in jax.tree.leaves(cached.features.views))
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    host = cached.features.pooled.nbytes + cached.features.logits.nbytes
    print(
        f"| {use.__name__} | {num_clips} | {held / 2**20:.0f} | {host / 2**20:.1f} | "
        f"{(peak - before) / 2**20:.0f} | {(peak - before - held) / 2**20:.0f} |"
    )


def memory():
    """Builds and loads caches of more and more clips, each in a fresh process."""
    print(
        "| | clips | views on devices, MiB | pooled and logits on the host, MiB | "
        "growth of the peak, MiB | of it beyond the views, MiB |"
    )
    print("| --- | --- | --- | --- | --- | --- |", flush=True)
    import soundfile

    for num_clips in (2000, 4000, 8000, 16_000):
        with tempfile.TemporaryDirectory() as name:
            noise = np.random.default_rng(0).normal(0, 0.1, 80_000)
            soundfile.write(pathlib.Path(name) / "noise.wav", noise, 8000)
            for _ in range(2):
                command = [sys.executable, __file__, "--one", str(num_clips), name]
                subprocess.run(command, check=True)


if __name__ == "__main__":
    match sys.argv[1:]:
        case ["--memory"]:
            memory()
        case ["--one", count, folder]:
            measure_memory(int(count), pathlib.Path(folder))
        case _:
            print_model()
            check_operations()
            check_programs()
