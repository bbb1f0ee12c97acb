"""Corpora of clips in half of which an event is planted, on disk with its place.

    ROOT/train/planted/0001.wav
    ROOT/truth.csv      path, label, split, start_s, end_s, low_hz, high_hz

A clip and its event are a function of the seed and of the recordings; no recording is
in two splits. Clean clips are made as planted ones are, and turned down alike, so that
only the event tells them apart.
"""

from __future__ import annotations

import csv
import dataclasses
import math
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import soundfile

from apex_jax import atomic, audio, data, frontend, pointing, progress, resume, runs
from experiments import layout, speech
from experiments.localisation import options, plants

CLASSES = ("clean", "planted")
SPLITS = ("train", "validation", "test")
TRUTH, SETTINGS = "truth.csv", "corpus.json"
VERSION = 2  # of what the samples are; raise it when a change alters them

# ESC-10's classes that begin and end, and those that go on; of a folder's name what
# follows the number that it may have, as in "001 - Dog bark".
EVENTS = ("dog_bark", "rooster", "person_sneeze", "baby_cry")
BACKGROUNDS = ("rain", "sea_waves", "helicopter", "chainsaw", "fire_crackling")
# A stretch of speech or background that is quieter is drawn anew: an event is as loud
# as what is there, and in digital silence there would be none.
LEAST_PEAK = 1e-3


@dataclasses.dataclass(frozen=True, kw_only=True)
class Corpus:
    """Clips and where their events are.

    Attributes:
      splits: clips of class 0, clean, and 1, planted.
      events: of each planted clip by its path.
      recordings: that were planted, by the path of the clip; none of synthetic events.
    """

    splits: data.Splits
    events: dict[str, pointing.Event]
    recordings: dict[str, str]


def make(
    root: Path,
    config: options.Config,
    event: plants.Name,
    seed: int,
    *,
    skip_log: data.SkipLog,
    on_progress: progress.OnProgress = progress.silent,
) -> Corpus:
    """The corpus of an event and a seed, from disk where it is there.

    Args:
      root: its folder.
      config: how many clips, of which recordings.
      event: what is planted.
      seed: same seed and same recordings, same samples.
      skip_log: notes recordings that cannot be read.
      on_progress: told how many clips are written.

    Raises:
      ValueError: too few recordings.
    """
    front_end = config.front_end_of(event)
    sources = _sources(config, event, seed)
    settings = {
        "version": VERSION,
        "event": event,
        "seed": seed,
        "clips": list(config.clips),
        "level_db": list(plants.LEVEL_DB[event]),
        "front_end": front_end.to_dict(),
        "sources": resume.digest(repr(sources)),
    }
    if runs.read_json(root / SETTINGS) != settings or not (root / TRUTH).exists():
        # Until all is written anew, nothing is: sounds and truth must be of one making.
        (root / SETTINGS).unlink(missing_ok=True)
        rows = []
        for split, count in zip(SPLITS, config.clips, strict=True):
            made = _clips(event, seed, split, count, sources, front_end, skip_log)
            for number, (waveform, found, planted) in enumerate(made):
                label = CLASSES[found is not None]
                path = root / split / label / f"{number:04d}.wav"
                path.parent.mkdir(parents=True, exist_ok=True)
                soundfile.write(path, waveform, front_end.sample_rate, subtype="PCM_16")
                place = dataclasses.astuple(found) if found else ("",) * 4
                name = path.relative_to(root).as_posix()
                rows.append((name, label, split, *place, planted))
                on_progress(1)
        names = [field.name for field in dataclasses.fields(pointing.Event)]
        header = ("path", "label", "split", *names, "recording")
        text = layout.as_csv([header, *rows])
        atomic.write_text(root / TRUTH, text)
        runs.write_json(root / SETTINGS, settings)
    return read(root)


def read(root: Path) -> Corpus:
    """What `make` wrote."""
    clips: dict[str, list[data.Clip]] = {split: [] for split in SPLITS}
    events: dict[str, pointing.Event] = {}
    recordings: dict[str, str] = {}
    with (root / TRUTH).open(newline="", encoding="utf-8") as stream:
        for row in csv.DictReader(stream):
            path = str(root / row["path"])
            clip = data.Clip(path=path, label=CLASSES.index(row["label"]), group=path)
            clips[row["split"]].append(clip)
            if row["start_s"]:
                names = (field.name for field in dataclasses.fields(pointing.Event))
                events[path] = pointing.Event(**{n: float(row[n]) for n in names})
            if row.get("recording"):
                recordings[path] = row["recording"]
    splits = data.Splits(**clips)
    return Corpus(splits=splits, events=events, recordings=recordings)


def _sources(
    config: options.Config, event: plants.Name, seed: int
) -> dict[str, list[list[Path]]]:
    """Recordings to plant in and to plant, a list a split; empty for babble."""
    if event == "sound":
        assert config.sounds is not None
        folders = folders_of(config.sounds)
        return {
            kind: _split([f for name in names for f in _files(folders[name])], seed)
            for kind, names in (("event", EVENTS), ("background", BACKGROUNDS))
        }
    if config.speech is None:
        return {}
    return {"background": _split(_files(config.speech), seed)}


def kinds(sounds: Path) -> dict[str, str]:
    """Which of `EVENTS` each recording is, by what `Corpus.recordings` calls it."""
    folders = folders_of(sounds, EVENTS)
    return {_source(file): name for name in EVENTS for file in _files(folders[name])}


def folders_of(
    sounds: Path, names: Sequence[str] = (*EVENTS, *BACKGROUNDS)
) -> dict[str, Path]:
    """Where each class is in a copy of ESC-10.

    Raises:
      ValueError: a class has no folder; names all that have none.
    """
    found = {
        re.sub(r"^\d+ *- *", "", folder.name).lower().replace(" ", "_"): folder
        for folder in sorted(sounds.glob("*/"))
    }
    missing = [name for name in names if name not in found]
    if missing:
        raise ValueError(
            f"--sounds {sounds} has no folder for {', '.join(missing)}; it takes a "
            "copy of ESC-10, with folders such as dog_bark or '001 - Dog bark'"
        )
    return {name: found[name] for name in names}


def _files(folder: Path) -> list[Path]:
    found = [
        p for p in sorted(folder.rglob("*")) if p.suffix[1:].lower() in data.endings()
    ]
    if not found:
        raise ValueError(f"{folder} holds no sound file")
    return found


def _split(files: Sequence[Path], seed: int) -> list[list[Path]]:
    """Seven tenths to train, and the rest in halves; takes of one source together."""
    sources = sorted({_source(file) for file in files})
    order = np.random.default_rng([seed, 1]).permutation(len(sources))
    first, second = math.ceil(0.7 * len(sources)), math.ceil(0.85 * len(sources))
    if second >= len(sources):
        raise ValueError(
            f"{files[0].parent}: {len(sources)} recordings are too few for three splits"
        )
    part_of = {
        sources[s]: int(rank >= first) + int(rank >= second)
        for rank, s in enumerate(order)
    }
    return [[f for f in files if part_of[_source(f)] == part] for part in range(3)]


def _source(file: Path) -> str:
    """ESC-10's FOLD-SOURCE-TAKE without the take; another name as it is."""
    parts = file.stem.split("-")
    return "-".join(parts[:2]) if len(parts) > 2 and parts[0].isdigit() else file.stem


def _clips(
    event: plants.Name,
    seed: int,
    split: str,
    count: int,
    sources: dict[str, list[list[Path]]],
    front_end: frontend.FrontEnd,
    skip_log: data.SkipLog,
) -> Iterator[tuple[np.ndarray, pointing.Event | None, str]]:
    """Clips in turns with an event and without, and which recording was planted."""
    part, rate = SPLITS.index(split), front_end.sample_rate
    centre = plants.centre_hz(np.random.default_rng([seed, 2]), rate)
    voices = speech.speakers(8, [seed, 3])
    loaded: dict[Path, np.ndarray] = {}

    def recording(rng: np.random.Generator, kind: str) -> tuple[str, np.ndarray]:
        files = sources[kind][part]
        for _ in range(100):
            file = files[rng.integers(len(files))]
            if file not in loaded:
                try:
                    loaded[file] = audio.load(file, rate).astype(np.float64)
                except audio.AudioError as error:
                    skip_log.add(error)
                    continue
            if np.any(loaded[file]):
                return _source(file), loaded[file]
        raise ValueError(f"of {len(files)} recordings none in a hundred could be used")

    def background(rng: np.random.Generator) -> np.ndarray:
        """A clip's length in which something can be heard."""
        if not sources:
            who = voices[rng.integers(len(voices))]
            babble = speech.utterance(
                rng, who, sample_rate=rate, duration_s=front_end.clip_s
            )
            return np.asarray(babble, np.float64)
        for _ in range(100):
            stretch = stretch_of(rng)
            if (peak := float(np.abs(stretch).max())) >= LEAST_PEAK:
                return 0.5 * stretch / peak
        raise ValueError("a hundred stretches of the recordings were silent")

    def stretch_of(rng: np.random.Generator) -> np.ndarray:
        """Of a long recording a part, of short ones several."""
        pieces: list[np.ndarray] = []
        while sum(map(len, pieces)) < front_end.num_samples:
            # Where one begins and the next ends must not sound like a click.
            pieces.append(plants.faded(recording(rng, "background")[1], rate))
        whole = np.concatenate(pieces)
        start = rng.integers(len(whole) - front_end.num_samples + 1)
        return whole[start : start + front_end.num_samples]

    for number in range(count):
        rng = np.random.default_rng([seed, 4, part, number])
        waveform = background(rng)
        name = ""
        if event == "sound":
            name, heard = recording(rng, "event")
            cut = plants.loudest(heard, rate)
            planted, found = plants.sound(rng, waveform, rate, cut)
        else:
            plant = {"burst": plants.burst, "band": plants.band, "click": plants.click}
            planted, found = plant[event](rng, waveform, rate, centre)
        # Clean clips too are turned down as if they had the event.
        gain = min(1.0, 0.99 / float(np.abs(planted).max()))
        if number % 2:
            yield gain * planted, found, name
        else:
            yield gain * waveform, None, ""


def of(corpus: Corpus, clips: Sequence[data.Clip]) -> list[pointing.Event]:
    """The events of planted clips."""
    return [corpus.events[str(clip.path)] for clip in clips]


def about(folder: Path) -> dict[str, Any]:
    """What the corpus in a folder of the experiment was made from."""
    return runs.read_json(folder / "corpus" / SETTINGS)
