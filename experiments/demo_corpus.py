"""The demo corpus: babble and seven vocoded versions of it, made from a seed.

What it is: a few hundred speech-like utterances of several synthetic speakers
(`experiments.speech`), and the same utterances through the signal-processing vocoders
of `experiments.vocoders`. It lies on disk as the WaveFake release does, so the loader
that reads this reads real data:

    ROOT/LJSpeech-1.1/wavs/0000.wav
    ROOT/generated_audio/ljspeech_VOCODER/0000_gen.wav
    ROOT/corpus.json

What it is not: data. Nobody speaks in it and no neural network made its fakes. It
shows that the tool runs and what its output looks like; error rates on it say nothing
about deepfakes.
"""

from __future__ import annotations

import json
import os
import pathlib
import subprocess
import sys
import zlib
from collections.abc import Callable, Iterable, Mapping, Sequence

import numpy as np
import soundfile

from apex_jax import progress
from experiments import speech, vocoders

VERSION = 1  # of what the samples are; raise it when a change alters them
_MANIFEST = "corpus.json"
_ENOUGH = 12  # utterances that make another process worth its start

# Vocoder to the utterances it is wanted for: their numbers, or a test of the number.
Only = Mapping[str, Iterable[int] | Callable[[int], bool]]


def write(
    root: str | os.PathLike[str],
    *,
    num_utterances: int = 240,
    num_speakers: int = 8,
    sample_rate: int = 22050,
    seed: int = 0,
    names: Sequence[str] = tuple(vocoders.VOCODERS),
    only: Only | None = None,
    overwrite: bool = False,
    on_progress: progress.OnProgress = progress.silent,
) -> pathlib.Path:
    """Writes the corpus, or what of it is missing.

    A file depends on its number, its vocoder and the settings in `corpus.json` alone,
    not on what else is asked for or on the order, so files that are there stay.

    Args:
      root: the folder, made where missing.
      num_utterances: real ones, numbered from 0; the speakers take turns.
      num_speakers: low voices and high ones in turn.
      sample_rate: in hertz, 8000 or more.
      seed: same seed, same bytes.
      names: which of `vocoders.VOCODERS`.
      only: for the vocoders in it, the utterances wanted; the others get all.
      overwrite: replace a corpus made with other settings.
      on_progress: called with the number of files done since the last call.

    Returns:
      The folder, as a path.

    Raises:
      ValueError: a vocoder has no such name, or `root` holds a corpus made with other
        settings, or another's recordings.
    """
    only = only or {}
    for name in (*names, *only):
        if name not in vocoders.VOCODERS:
            raise ValueError(
                f"no vocoder is named {name!r}, only {sorted(vocoders.VOCODERS)}"
            )
    root = pathlib.Path(root)
    settings = {
        "version": VERSION,
        "seed": seed,
        "num_speakers": num_speakers,
        "sample_rate": sample_rate,
    }
    _claim(root, settings, overwrite)
    for path in root.rglob("[0-9]*.wav"):  # a longer corpus' surplus would be read too
        if int(path.stem.removesuffix("_gen")) >= num_utterances:
            path.unlink()
    jobs: list[tuple[int, list[str]]] = []
    for number in range(num_utterances):
        wanted = [name for name in names if _wanted(only.get(name), number)]
        files = [path_of(root, number, name) for name in (None, *wanted)]
        if all(path.exists() for path in files):
            on_progress(len(files))
        else:
            jobs.append((number, wanted))
    # Processes of its own: threads would wait for Python's lock, and to fork or spawn
    # a caller that has JAX loaded is not allowed or slow.
    count = max(1, min(os.cpu_count() or 1, 8, len(jobs) // _ENOUGH))
    if count == 1:
        for number, wanted in jobs:
            on_progress(_make(root, settings, number, wanted))
    else:
        _share_out(root, settings, [jobs[k::count] for k in range(count)], on_progress)
    return root


def path_of(root: pathlib.Path, number: int, vocoder: str | None) -> pathlib.Path:
    """Where an utterance lies; `vocoder` None is the original."""
    if vocoder is None:
        return root / "LJSpeech-1.1" / "wavs" / f"{number:04d}.wav"
    folder = root / "generated_audio" / f"ljspeech_{vocoder}"
    return folder / f"{number:04d}_gen.wav"


def _wanted(chosen: Iterable[int] | Callable[[int], bool] | None, number: int) -> bool:
    if chosen is None:
        return True
    return chosen(number) if callable(chosen) else number in set(chosen)


def _claim(root: pathlib.Path, settings: dict[str, int], overwrite: bool) -> None:
    """Makes sure that what lies in `root` was made with `settings`, and says so."""
    manifest = root / _MANIFEST
    found = json.loads(manifest.read_text()) if manifest.exists() else None
    if found == settings:
        return
    ours = [root / "LJSpeech-1.1" / "wavs", root / "generated_audio"]
    files = [path for folder in ours for path in folder.rglob("*.wav")]
    if files and found is None:
        raise ValueError(
            f"root {str(root)!r} holds recordings without a {_MANIFEST}: they are not "
            "a demo corpus and stay as they are; give an empty folder"
        )
    if files and not overwrite:
        raise ValueError(
            f"root {str(root)!r} holds the demo corpus of {found}, wanted is {settings}"
            "; give another folder, or overwrite=True"
        )
    for path in files:
        path.unlink()
    root.mkdir(parents=True, exist_ok=True)
    unfinished = manifest.with_suffix(".part")
    unfinished.write_text(json.dumps(settings, indent=2) + "\n")
    unfinished.replace(manifest)


def _make(
    root: pathlib.Path, settings: dict[str, int], number: int, wanted: list[str]
) -> int:
    """Writes an utterance and its fakes where missing; returns how many were asked."""
    seed, sample_rate = settings["seed"], settings["sample_rate"]
    cast = speech.speakers(settings["num_speakers"], seed)
    # The first stream is the length's, so that the speech's own stays untouched.
    duration_s = 1.6 + 0.8 * np.random.default_rng([seed, number, 0]).random()
    original = speech.utterance(
        [seed, number, 1],
        cast[number % len(cast)],
        sample_rate=sample_rate,
        duration_s=duration_s,
    )
    _save(path_of(root, number, None), original, sample_rate)
    for name in wanted:
        own = [seed, number, 2, zlib.crc32(name.encode())]
        path = path_of(root, number, name)
        if not path.exists():
            fake = vocoders.VOCODERS[name](original, sample_rate, seed=own)
            _save(path, fake, sample_rate)
    return 1 + len(wanted)


def _save(path: pathlib.Path, waveform: np.ndarray, sample_rate: int) -> None:
    """A 16-bit WAV, whole or not at all."""
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        unfinished = path.with_name(f".{path.name}.{os.getpid()}")
        soundfile.write(
            unfinished, waveform, sample_rate, subtype="PCM_16", format="WAV"
        )
        unfinished.replace(path)


def _share_out(
    root: pathlib.Path,
    settings: dict[str, int],
    shares: list[list[tuple[int, list[str]]]],
    on_progress: progress.OnProgress,
) -> None:
    """One child process a share; all report to one pipe, which ends with them."""
    here = str(pathlib.Path(__file__).parents[1])
    path = os.pathsep.join([here, *filter(None, [os.environ.get("PYTHONPATH")])])
    # One thread each, and no look for devices: the processes are the parallel part.
    env = os.environ | {"PYTHONPATH": path, "OPENBLAS_NUM_THREADS": "1"}
    reading, writing = os.pipe()
    children = []
    try:
        for share in shares:
            command = [sys.executable, "-m", "experiments.demo_corpus"]
            child = subprocess.Popen(
                command, stdin=subprocess.PIPE, stdout=writing, env=env
            )
            children.append(child)
            assert child.stdin is not None  # it was asked for
            with child.stdin as pipe:
                pipe.write(json.dumps([str(root), settings, share]).encode())
        os.close(writing)
        with os.fdopen(reading) as lines:
            for line in lines:
                on_progress(int(line))
        codes = [child.wait() for child in children]
    finally:
        for child in children:
            child.kill()
            child.wait()
    if any(codes):
        raise RuntimeError(f"a process that makes the demo corpus failed: {codes}")


def _main() -> None:
    """A child's work: a share from stdin, a line on stdout for each utterance done."""
    root, settings, share = json.load(sys.stdin)
    for number, wanted in share:
        done = _make(pathlib.Path(root), settings, number, wanted)
        # One write a line: the children's lines share a pipe and must not mix.
        os.write(sys.stdout.fileno(), b"%d\n" % done)


if __name__ == "__main__":
    _main()
