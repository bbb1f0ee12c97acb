"""Kills a run at random moments, lets it go on, and compares with one left alone.

    python tests/kill_program.py --kills 25

The run is Table 1 in miniature: two ConvNeXts, two AudioProtoPNets, feature passes, two
U's, two cells. After each kill (SIGKILL, which nothing can catch) the same command is
started again and has to end with the same numbers and the same arrays, bit for bit,
and has to list the same sounds as skipped: some to train on, to validate on and to test
on are broken.
"""

from __future__ import annotations

# ruff: noqa: T201
import argparse
import json
import os
import pathlib
import random
import signal
import struct
import subprocess
import sys
import tempfile
import time

import numpy as np

TESTED = ("griffin_lim_long", "phase_jitter")
APART = ("seconds", "compile_seconds")  # what may differ from run to run


def run(output: str, corpus: str) -> None:
    """The run itself, in a process of its own."""
    import test_flow

    from apex_jax import audioprotopnet, cache, compilation, optimize, resume, train
    from apex_jax.models import convnext
    from experiments.wavefake import options, table1

    compilation.keep()
    # States and shards as often as a long run has them in its hours.
    resume.SECONDS, cache.SHARD_BYTES = 0.2, 1
    convnext._SIZES["atto"] = ((1,), (12,))
    table1.main(
        options.Config(
            table="1",
            output_dir=pathlib.Path(output),
            data_dir=pathlib.Path(corpus),
            windows_per_file=2,
            batch_size=8,
            front_end=test_flow.FRONT_END,
            train=train.Config(epochs=12, batch_size=8),
            audioprotopnet=audioprotopnet.Config(epochs=12, batch_size=8),
            optimise=optimize.Config(
                epochs=8, prototypes_start=6, prototypes_end=2, batch_size=16
            ),
        )
    )


def start(output: pathlib.Path, corpus: pathlib.Path) -> subprocess.Popen:
    return subprocess.Popen(
        [sys.executable, __file__, "--run", str(output), str(corpus)],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
        env=os.environ | {"JAX_PLATFORMS": "cpu"},
    )


def finish(process: subprocess.Popen) -> None:
    error = process.communicate()[1]
    if process.returncode:
        raise RuntimeError(f"a run ended with status {process.returncode}:\n{error}")


def contents(output: pathlib.Path) -> dict[str, object]:
    """What a finished run says and holds."""
    from apex_jax import checkpoint

    found: dict[str, object] = {}
    for file in sorted(output.rglob("skipped.csv")):
        found[str(file.relative_to(output))] = file.read_bytes()
    for file in sorted(output.rglob("results.json")):
        said = json.loads(file.read_text())
        kept = {name: value for name, value in said.items() if name not in APART}
        found[str(file.relative_to(output))] = kept
    for vocoder in TESTED:
        for name, kind in (
            ("classifier", "classifier"),
            ("audioprotopnet", "audioprotopnet"),
            ("apex", "explainer"),
        ):
            arrays, _ = checkpoint.load(output / vocoder / name, kind=kind)
            found[f"{vocoder}/{name}"] = arrays
    return found


def same(one: object, other: object) -> bool:
    """Whether two trees are the same to the bit: also NaN, -0 and 1 beside 1.0."""
    if type(one) is not type(other):
        return False
    if isinstance(one, dict):
        return one.keys() == other.keys() and all(same(one[k], other[k]) for k in one)
    if isinstance(one, list | tuple):
        return len(one) == len(other) and all(map(same, one, other))
    if isinstance(one, np.ndarray | np.generic):
        kinds = [(a.dtype, a.shape, a.tobytes()) for a in (one, other)]
        return kinds[0] == kinds[1]
    if isinstance(one, float):
        return struct.pack("<d", one) == struct.pack("<d", other)
    return one == other


def corpus(root: pathlib.Path) -> None:
    """A small corpus: a second window of each split is broken, and one sound none."""
    import soundfile
    import test_flow

    from experiments import demo_corpus
    from experiments.wavefake import corpus as wavefake_corpus

    demo_corpus.write(root, num_utterances=12, names=TESTED)
    found = wavefake_corpus.read(root)
    splits = wavefake_corpus.split(
        found, TESTED[0], num_test=None, num_validation=None, cut=list
    )
    for part in splits:
        samples, rate = soundfile.read(part[0].path, dtype="float32")
        samples[round(1.5 * test_flow.FRONT_END.clip_s * rate) :] = np.nan
        soundfile.write(part[0].path, samples, rate, subtype="FLOAT")
    pathlib.Path(splits.train[-1].path).write_bytes(b"no sound")


def state(output: pathlib.Path) -> str:
    """How far a killed run had come, in words."""
    if not output.exists():
        return "nothing yet"
    for vocoder in reversed(TESTED):
        folder = output / vocoder
        for name, words in (
            ("results.json", "cell finished"),
            ("learned.json", "U learned"),
            ("optimise-state", "U being learned"),
            ("cache", "features"),
            ("audioprotopnet-training", "AudioProtoPNet in training"),
            ("classifier-training", "ConvNeXt in training"),
        ):
            if (folder / name).exists():
                return f"{words} ({vocoder})"
    return "begun"


def main(kills: int, seed: int) -> int:
    """Kills that were survived."""
    rng, survived = random.Random(seed), 0
    with tempfile.TemporaryDirectory() as temporary:
        root = pathlib.Path(temporary)
        corpus(root / "corpus")
        # Twice: the second compiles nothing, as the killed ones will.
        for name in ("first", "whole"):
            began = time.monotonic()
            finish(start(root / name, root / "corpus"))
            seconds = time.monotonic() - began
        whole = contents(root / "whole")
        assert same(contents(root / "first"), whole), "two runs differ to begin with"
        listed = whole["skipped.csv"]
        counts = [listed.count(word) for word in (b"is nan", b"not readable")]
        assert counts == [3, 1], f"these were skipped: {listed}"
        print(f"left alone  {seconds:.1f} s", flush=True)
        for number in range(1, kills + 1):
            output, at = root / f"killed{number}", rng.uniform(0, seconds)
            process = start(output, root / "corpus")
            time.sleep(at)
            os.killpg(process.pid, signal.SIGKILL)
            process.communicate()
            how_far = state(output)
            finish(start(output, root / "corpus"))
            fine = same(contents(output), whole)
            survived += fine
            print(
                f"{number:3} killed after {at:5.1f} s: {how_far:45}"
                f"{'the same' if fine else 'DIFFERS'}",
                flush=True,
            )
    print(f"{survived} of {kills} ended as the run that was left alone")
    return survived


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--kills", type=int, default=25)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--run", nargs=2, help=argparse.SUPPRESS)
    asked = parser.parse_args()
    if asked.run:
        run(*asked.run)
    else:
        sys.exit(main(asked.kills, asked.seed) != asked.kills)
