"""Fakes of your own recordings, in the layout of the WaveFake release.

    python -m experiments.vocode --input recordings --output corpus
    python -m experiments.wavefake --data-dir corpus

Every recording goes through the seven signal-processing vocoders of
`experiments.vocoders`; original and fakes are written alike, so that neither format
nor loudness (RMS) tells them apart: where a fake of a loud recording would clip, all of
that recording is made quieter. Where file names say who speaks, --speaker keeps each
speaker in one split, which `experiments.wavefake` then honours. Interrupted, the same
command goes on. None of these vocoders is neural: what is learned is their artefacts.
"""

from __future__ import annotations

import collections
import concurrent.futures
import contextlib
import csv
import dataclasses
import multiprocessing
import os
import re
import shutil
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import tyro

from experiments import command

ENDINGS = (".wav", ".flac", ".ogg", ".mp3", ".aif", ".aiff")
SPLITS = "splits.csv"
SETTINGS = "vocode.json"
PARTS = ("LJSpeech-1.1", "generated_audio")
SHARE = 0.2  # of the recordings to test on, and as many to validate on
ENOUGH = 24  # recordings that make other processes worth their start
LEAST_HZ, LEAST_S = 8000, 0.1  # what the vocoders can take
EQUAL = 1e-3  # share by which loudness may differ, a hundredth of a decibel


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config:
    """Makes fakes of a folder of recordings, laid out as WaveFake is."""

    input: Path
    """Folder of recordings; folders in it are searched too."""
    output: Path
    """Folder to write: LJSpeech-1.1/wavs and generated_audio/ljspeech_VOCODER."""
    vocoders: tuple[str, ...] = ()
    """Which; by default all seven."""
    speaker: str | None = None
    """Regular expression whose group finds the speaker in a file's name without ending,
    such as '_([a-z]+)_'. Each speaker then is in one split."""
    sample_rate: int | None = None
    """Hz to resample to; by default each recording keeps its own."""
    limit: int | None = None
    """Recordings at most, the first in order of their names."""
    seed: int = 0
    """Of the vocoders, and of which speakers are tested on."""
    overwrite: bool = False
    """Remove a corpus that this command made with other settings, and make it anew."""


def main(config: Config) -> None:
    """Writes the corpus, or what of it is missing."""
    from apex_jax import audio, data, hosts, progress, runs
    from experiments import vocoders

    names = config.vocoders or tuple(vocoders.VOCODERS)
    unknown = sorted(set(names) - set(vocoders.VOCODERS))
    if unknown:
        raise ValueError(
            f"--vocoders {' '.join(unknown)}: there are {', '.join(vocoders.VOCODERS)}"
        )
    if config.sample_rate is not None and config.sample_rate < LEAST_HZ:
        raise ValueError(
            f"--sample-rate must be at least {LEAST_HZ}; got {config.sample_rate}"
        )
    runs.check_least(config, limit=1, seed=0)
    recordings = find(config.input)
    if config.limit is not None:
        recordings = dict(list(recordings.items())[: config.limit])
    splits = None
    if config.speaker is not None:
        splits = by_speaker(speakers(recordings, config.speaker), seed=config.seed)
    claim(
        config.output,
        {
            "input": str(config.input.resolve()),
            "sample_rate": config.sample_rate,
            "seed": config.seed,
            "limit": config.limit,
            "vocoders": list(names),
        },
        overwrite=config.overwrite,
    )
    jobs = [
        (str(path), sentence, config.output, names, config)
        for sentence, path in recordings.items()
    ]
    skipped = data.SkipLog()
    with (
        contextlib.ExitStack() as stack,
        progress.bar("vocode", len(jobs), "file") as on_progress,
    ):
        run: Callable[..., Iterator[str | None]] = map
        if len(jobs) >= ENOUGH:
            # Not forked: a process that has JAX loaded must not be.
            context = multiprocessing.get_context("spawn")
            pool = concurrent.futures.ProcessPoolExecutor(hosts.cores(), context)
            run = stack.enter_context(pool).map
        for (path, *_), problem in zip(jobs, run(_make, jobs), strict=True):
            if problem is not None:
                skipped.add(audio.AudioError(path, problem))
            on_progress(1)
    if len(skipped) == len(jobs):
        raise ValueError(f"none of the {len(jobs)} recordings could be used: {problem}")
    skipped.write_csv(config.output / "skipped.csv")
    left_out = {path for path, _ in skipped.entries()}
    made = [s for s, path in recordings.items() if str(path) not in left_out]
    if splits is None:
        (config.output / SPLITS).unlink(missing_ok=True)
    else:
        write_splits(config.output / SPLITS, {s: splits[s] for s in made})
    runs.report("recordings", f"{len(made)}, each through {len(names)} vocoders")
    if splits is not None:
        runs.report("splits", _in_words({s: splits[s] for s in made}))
    if skipped:
        runs.report("skipped", f"{len(skipped)}, listed in {config.output}/skipped.csv")
    runs.report("written to", str(config.output))
    runs.report("then", f"python -m experiments.wavefake --data-dir {config.output}")


def claim(output: Path, settings: Mapping[str, Any], *, overwrite: bool) -> None:
    """Makes the folder of a corpus ready: new, begun with these settings, or emptied.

    Raises:
      ValueError: it holds a corpus of other settings and `overwrite` is off, or one
        that was not made here, which is never removed.
    """
    from apex_jax import runs

    before = runs.read_json(output / SETTINGS)
    there = [output / part for part in PARTS if (output / part).exists()]
    if before is None and there:
        raise ValueError(
            f"{there[0]} is there and was not made by this command; name another folder"
        )
    if before not in (None, settings):
        if not overwrite:
            raise ValueError(
                f"{output} was made with {before}, wanted is {settings}; name another "
                "folder, or --overwrite it"
            )
        # Nothing of the old corpus may stay among the new one's files. The settings
        # go last: what is interrupted here is begun again.
        for part in there:
            shutil.rmtree(part)
        for name in (SPLITS, "skipped.csv", SETTINGS):
            (output / name).unlink(missing_ok=True)
    output.mkdir(parents=True, exist_ok=True)
    runs.write_json(output / SETTINGS, dict(settings))


def find(root: Path) -> dict[str, Path]:
    """Recordings by the name that they are to have, in its order.

    Raises:
      ValueError: no folder, no recordings, or two that would have one name.
    """
    if not root.is_dir():
        raise ValueError(f"--input {root} is not a folder")
    found: dict[str, Path] = {}
    for path in sorted(root.rglob("*")):
        if path.suffix.lower() not in ENDINGS or path.name.startswith("."):
            continue
        name = "__".join(path.relative_to(root).with_suffix("").parts)
        if name in found:
            raise ValueError(
                f"{found[name]} and {path} would both be {name}; rename one of them"
            )
        found[name] = path
    if not found:
        raise ValueError(f"--input {root} has no {', '.join(ENDINGS)} files")
    return found


def speakers(recordings: Mapping[str, Path], pattern: str) -> dict[str, str]:
    """Who speaks in each recording.

    Raises:
      ValueError: no regular expression with a group, or a name that it does not fit.
    """
    try:
        expression = re.compile(pattern)
    except re.error as error:
        raise ValueError(f"--speaker {pattern!r}: {error}") from error
    if expression.groups != 1:
        raise ValueError(
            f"--speaker {pattern!r} must have one group in brackets, around the speaker"
        )
    found = {}
    for name, path in recordings.items():
        match = expression.search(path.stem)
        if match is None:
            raise ValueError(f"--speaker {pattern!r} does not fit {path.name}")
        found[name] = match[1]
    return found


def by_speaker(
    speaker: Mapping[str, str], *, seed: int = 0
) -> dict[str, tuple[str, str]]:
    """Split and speaker of each recording; a speaker is in one split.

    Speakers in random order go to test as long as that brings it nearer to a fifth of
    the recordings, then to validation; at least one to each.

    Raises:
      ValueError: fewer than three speakers.
    """
    names = sorted(set(speaker.values()))
    if len(names) < 3:
        raise ValueError(
            f"--speaker found {len(names)} ({', '.join(names)}); test, validation and "
            "training need three or more"
        )
    left = [names[i] for i in np.random.default_rng(seed).permutation(len(names))]
    split: dict[str, str] = {}
    count = collections.Counter(speaker.values())
    for part, keep in (("test", 2), ("validation", 1)):
        wanted = SHARE * len(speaker)  # recordings
        while len(left) > keep:
            if part in split.values() and wanted < count[left[0]] / 2:
                break
            wanted -= count[left[0]]
            split[left.pop(0)] = part
    return {s: (split.get(who, "train"), who) for s, who in speaker.items()}


def write_splits(path: Path, splits: Mapping[str, tuple[str, str]]) -> None:
    """A CSV of sentence, split and speaker, as `wavefake.corpus` reads it."""
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(("sentence", "split", "speaker"))
        writer.writerows((s, *splits[s]) for s in splits)


def _in_words(splits: Mapping[str, tuple[str, str]]) -> str:
    parts = []
    for part in ("train", "validation", "test"):
        who = sorted({name for split, name in splits.values() if split == part})
        count = sum(split == part for split, _ in splits.values())
        parts.append(f"{count} to {part} ({', '.join(who)})")
    return ", ".join(parts)


def _make(job: tuple[str, str, Path, Sequence[str], Config]) -> str | None:
    """Writes a recording and its fakes where missing; what is wrong with it, if so."""
    path, sentence, root, names, config = job
    from apex_jax import audio
    from experiments import vocoders

    files = {None: root / "LJSpeech-1.1" / "wavs" / f"{sentence}.wav"} | {
        name: root / "generated_audio" / f"ljspeech_{name}" / f"{sentence}_gen.wav"
        for name in names
    }
    missing = [n for n, file in files.items() if not file.exists()]
    if not missing:
        return None
    try:
        rate = config.sample_rate or audio.sample_rate_of(path)
        original = audio.load(path, rate)
    except audio.AudioError as error:
        return error.reason
    if rate < LEAST_HZ or len(original) < LEAST_S * rate:
        return (
            f"{len(original) / rate:.2f} s at {rate} Hz; at least {LEAST_S} s and "
            f"{LEAST_HZ} Hz are needed"
        )
    peak = np.abs(original).max()
    if peak > 1:  # would be clipped, the original more than its fakes
        original = original / peak
    made: dict[str | None, np.ndarray] = {None: original}
    for name in names:  # all of them, as each can be the one that the others follow
        own = [config.seed, zlib.crc32(sentence.encode()), zlib.crc32(name.encode())]
        made[name] = vocoders.VOCODERS[name](original, rate, seed=own)
    gain = even(made)
    for version in missing:
        _save(files[version], made[version] * gain[version], rate)
    return None


def even(made: Mapping[Any, np.ndarray]) -> dict[Any, np.float32]:
    """Factors, at most 1, that make all waveforms as loud as the quietest of them.

    Exactly 1 for what is as loud but for rounding, and for silence, which nothing can
    be made as quiet as.
    """
    rms = {
        name: float(np.sqrt(np.mean(np.square(waveform, dtype=np.float64))))
        for name, waveform in made.items()
    }
    quietest = min((value for value in rms.values() if value), default=0.0)
    return {
        name: np.float32(1 if value * (1 - EQUAL) <= quietest else quietest / value)
        for name, value in rms.items()
    }


def _save(path: Path, waveform: np.ndarray, sample_rate: int) -> None:
    """A 16-bit WAV, whole or not at all."""
    import soundfile

    path.parent.mkdir(parents=True, exist_ok=True)
    unfinished = path.with_name(f".{path.name}.{os.getpid()}")
    soundfile.write(unfinished, waveform, sample_rate, subtype="PCM_16", format="WAV")
    unfinished.replace(path)


if __name__ == "__main__":
    asked = tyro.cli(Config, description=__doc__)
    with command.ending():
        main(asked)
