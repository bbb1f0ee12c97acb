"""Small copies in BirdSet's layouts, from a folder of sounds with a folder a class.

    python -m experiments.birdset.make_copy --sounds ESC-10 --output small
    python -m experiments.birdset --table 3 --data-dir small --labels small/labels ...

Whoever has not the 480 GB of BirdSet can run the experiment on what they have, and the
tests do. Sounds become Ogg Vorbis at 32 kHz, folders become birds. There are recordings
to train on (XCM; every third one also a subset's own), whose loudest second is their
event, and annotated clips of five seconds to validate on (POW) and to test on (the
other subsets): of one bird, of two at once, of none. As in the release, clips are cut
from soundscapes that lie beside them (split test), which the experiment must not take
for clips.
"""

from __future__ import annotations

import dataclasses
import io
import json
import re
import tarfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
import tyro

from apex_jax import audio, data, dataset
from experiments import command

Layout = Literal["archives", "files", "embedded"]
# What a table says of a sound, as far as it is known, and the sound: name and bytes.
Entry = tuple[dict[str, Any], tuple[str, bytes]]

RATE = 32_000
CLIP_S = 5.0
QUIET = 1e-3  # of the noise in clips where nothing calls


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config:
    """Makes a small copy in one of BirdSet's layouts."""

    sounds: Path
    """A folder with a folder for each class."""
    output: Path
    """Where the copy goes; a new folder."""
    layout: Layout = "archives"
    """Parquet with tar.gz shards, with plain files, or with the sounds in it."""
    subsets: tuple[str, ...] = ("HSN", "SNE")
    """Subsets to test on, beside POW."""
    shards: int = 2
    """Archives, or embedded parquet files, of each split."""
    seed: int = 0
    """Of which sound goes where."""


def main(config: Config) -> None:
    """Writes the copy and the class lists."""
    if config.output.exists() and any(config.output.iterdir()):
        raise ValueError(f"--output {config.output} is there and not empty")
    clips, names = data.class_folder(config.sounds)
    codes = _codes(names)
    tests = ("POW", *config.subsets)
    shares = [0.6, *[0.4 / len(tests)] * len(tests)]
    parts = dataset.split(clips, shares, num_classes=len(names), seed=config.seed)
    rng = np.random.default_rng(config.seed)
    recordings = list(_recordings(parts[0], codes, rng))
    _write(config, "XCM", "train", recordings)
    lists = {"XCM": [*codes, "nobird1"]}  # a class that has no recordings
    for name, part in zip(tests, parts[1:], strict=True):
        each, soundscape = _clips(name, part, codes, rng)
        _write(config, name, "train", recordings[::3])
        _write(config, name, "test", soundscape)
        _write(config, name, "test_5s", each)
        # In an order of its own, and with a class that has no positives.
        lists[name] = [str(c) for c in rng.permutation(lists["XCM"])]
    folder = config.output / "labels"
    folder.mkdir()
    for name, listed in lists.items():
        content = {
            "id2label": {str(i): code for i, code in enumerate(listed)},
            "label2id": {code: i for i, code in enumerate(listed)},
        }
        file = folder / f"{name}_ebird_codes.json"
        file.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")


def _codes(names: Sequence[str]) -> list[str]:
    """Six letters and a number for each class, as eBird's codes are about as long."""
    return [
        f"{re.sub('[^a-z]', '', name.lower())[:6]}{i}" for i, name in enumerate(names)
    ]


def _recordings(
    clips: Sequence[data.Clip], codes: Sequence[str], rng: np.random.Generator
) -> Iterator[Entry]:
    """Recordings with their loudest second as an event; of a few, none was detected."""
    for number, clip in enumerate(clips):
        waveform = audio.load(clip.path, RATE)
        length = len(waveform) / RATE
        energy = np.cumsum(waveform.astype(np.float64) ** 2)
        loudest = np.argmax(energy[RATE:] - energy[:-RATE]) if length > 1 else 0
        middle = loudest / RATE + 0.5
        start, end = max(0.0, middle - 0.5), min(length, middle + 0.5)
        code = codes[clip.labels[0]]
        events: list[list[float]] | None = [[start, end]]
        clusters = [0]
        if number % 7 == 3:  # another event, which is noise
            events, clusters = [[start, end], [0.0, 0.2]], [0, -1]
        elif number % 7 == 5:
            events, clusters = None, []
        file = f"XC{100000 + number}.ogg"
        row = {
            "filepath": file,
            "ebird_code": code,
            "ebird_code_multilabel": [code],
            "length": int(length),
            "detected_events": events,
            "event_cluster": clusters,
            "quality": "A",
        }
        yield row, (file, _ogg(waveform))


def _clips(
    name: str,
    clips: Sequence[data.Clip],
    codes: Sequence[str],
    rng: np.random.Generator,
) -> tuple[list[Entry], list[Entry]]:
    """Clips of five seconds, and the soundscape that they are cut from.

    A clip is of one bird, every fourth of two, every ninth of none. The soundscape has
    a row for each bird, all with its one file.
    """
    recorder = f"{name}_001_20150708_061805"
    waves, each, birds = [], [], []
    for number, clip in enumerate(clips):
        waveform = audio.fit_length(audio.load(clip.path, RATE), round(CLIP_S * RATE))
        found = [codes[clip.labels[0]]]
        if number % 9 == 8:
            waveform = QUIET * rng.normal(size=len(waveform)).astype(np.float32)
            found = []
        elif number % 4 == 3:
            other = clips[int(rng.integers(len(clips)))]
            more = audio.fit_length(audio.load(other.path, RATE), len(waveform))
            waveform = 0.5 * (waveform + more)
            found = sorted({*found, codes[other.labels[0]]})
        waves.append(waveform)
        first = 5 * number
        file = f"{recorder}_{first:03d}_{first + 5:03d}.ogg"
        row = {
            "filepath": file,
            "start_time": 0.0,
            "end_time": CLIP_S,
            "ebird_code_multilabel": found,
            "length": int(CLIP_S),
        }
        each.append((row, (file, _ogg(waveform))))
        birds += [
            {
                "filepath": f"{recorder}.ogg",
                "start_time": float(first),
                "end_time": first + CLIP_S,
                "low_freq": 0,
                "high_freq": RATE // 2,
                "ebird_code": code,
                "ebird_code_multilabel": [code],
                "length": len(clips) * int(CLIP_S),
            }
            for code in found
        ]
    soundscape = (f"{recorder}.ogg", _ogg(np.concatenate(waves)))
    return each, [(row, soundscape) for row in birds]


def _ogg(waveform: np.ndarray) -> bytes:
    import soundfile

    file = io.BytesIO()
    # In pieces: libsndfile's Vorbis encoder overflows its stack on long ones.
    with soundfile.SoundFile(
        file, "w", RATE, 1, format="OGG", subtype="VORBIS"
    ) as sound:
        for first in range(0, len(waveform), RATE):
            sound.write(np.clip(waveform[first : first + RATE], -1, 1))
    return file.getvalue()


def _schema() -> Any:
    """BirdSet's 28 columns beside the sound; what a row does not name is null."""
    import pyarrow

    text, number, whole = pyarrow.string(), pyarrow.float64(), pyarrow.int64()
    several = pyarrow.list_(text)
    return pyarrow.schema(
        {
            "filepath": text,
            "start_time": number,
            "end_time": number,
            "low_freq": whole,
            "high_freq": whole,
            "ebird_code": text,
            "ebird_code_multilabel": several,
            "ebird_code_secondary": several,
            "call_type": text,
            "sex": text,
            "lat": number,
            "long": number,
            "length": whole,
            "microphone": text,
            "license": text,
            "source": text,
            "local_time": text,
            "detected_events": pyarrow.list_(pyarrow.list_(number)),
            "event_cluster": pyarrow.list_(whole),
            "peaks": pyarrow.list_(number),
            "quality": text,
            "recordist": text,
            "genus": text,
            "species_group": text,
            "order": text,
            "genus_multilabel": several,
            "species_group_multilabel": several,
            "order_multilabel": several,
        }
    )


def _write(config: Config, name: str, split: str, rows: Sequence[Entry]) -> None:
    """One split of one subset in the layout asked for."""
    import pyarrow
    import pyarrow.parquet

    folder, schema = config.output / name, _schema()
    folder.mkdir(parents=True, exist_ok=True)
    shards = [rows[i :: config.shards] for i in range(config.shards)]
    if config.layout == "embedded":
        kind = pyarrow.struct({"bytes": pyarrow.binary(), "path": pyarrow.string()})
        whole = schema.append(pyarrow.field("audio", kind))
        (folder / split).mkdir()
        for number, shard in enumerate(shards):
            table = pyarrow.Table.from_pylist(
                [
                    {**row, "audio": {"bytes": sound, "path": file}}
                    for row, (file, sound) in shard
                ],
                whole,
            )
            pyarrow.parquet.write_table(table, folder / split / f"{number:04d}.parquet")
        return
    suffix = "" if name.startswith("XC") else f"_{split}"
    pyarrow.parquet.write_table(
        pyarrow.Table.from_pylist([row for row, _ in rows], schema),
        folder / f"{name}_metadata{suffix}.parquet",
    )
    if config.layout == "files":
        (folder / "audio").mkdir(exist_ok=True)
        for file, sound in dict(sound for _, sound in rows).items():
            (folder / "audio" / file).write_bytes(sound)
        return
    part = "" if name.startswith("XC") else f"{split.replace('_', '')}_"
    for number, shard in enumerate(shards, start=1):
        with tarfile.open(
            folder / f"{name}_{part}shard_{number:04d}.tar.gz", "w:gz"
        ) as tar:
            for file, sound in dict(sound for _, sound in shard).items():
                member = tarfile.TarInfo(f"{name}/{file}")
                member.size = len(sound)
                tar.addfile(member, io.BytesIO(sound))


if __name__ == "__main__":
    asked = tyro.cli(
        Config,
        prog="python -m experiments.birdset.make_copy",
        description="Makes a small copy in one of BirdSet's layouts.",
    )
    with command.ending():
        main(asked)
