"""A local copy of BirdSet as clips, in whichever of three layouts it lies.

    DIR/HSN/HSN_metadata_train.parquet, HSN_train_shard_0001.tar.gz, ...     archives
    DIR/HSN/HSN_metadata_train.parquet, and the .ogg files in any folder     files
    DIR/HSN/train/0000.parquet with a column audio {bytes, path}             embedded

A sound is found by its file's name. Archives and embedded sounds are unpacked once
(`unpack`), since neither gives a sound without reading those before it; then grain
reads any clip at any time. Missing and broken files, missing events, times that are
not there and birds that the class list lacks are what real copies have: they are noted
or counted, and the rest is used.
"""

from __future__ import annotations

import dataclasses
import itertools
import math
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Literal

from apex_jax import audio, data
from experiments.birdset import events, unpack

Split = Literal["train", "test_5s"]

COLUMNS = (
    "filepath",
    "start_time",
    "ebird_code",
    "ebird_code_multilabel",
    "length",
    "detected_events",
    "event_cluster",
)
CLIP_S = 5.0


@dataclasses.dataclass(frozen=True, kw_only=True)
class Row:
    """A recording to train on, or a clip to test on.

    Attributes:
      file: the sound's name, without folders.
      codes: of the birds in it; none where nothing calls.
      code: the bird that the recording was made for.
      start_s: where a clip begins; 0 where it is not said.
      length_s: of the file; None where it is not known.
      spans: usable events.
    """

    file: str
    codes: tuple[str, ...]
    code: str
    start_s: float
    length_s: float | None
    spans: tuple[events.Span, ...]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Part:
    """The clips of one split, and what of it could not be used.

    Attributes:
      clips: labels are positions in the class list.
      unknown: birds that the class list lacks, with how many rows have them.
    """

    clips: tuple[data.Clip, ...]
    unknown: dict[str, int]


def read(
    root: Path,
    name: str,
    split: Split,
    class_names: Sequence[str],
    *,
    own_names: Sequence[str],
    class_limit: int | None = None,
    event_limit: int | None = None,
    seed: int = 0,
    unpack_dir: Path | None = None,
    skip_log: data.SkipLog,
) -> Part:
    """The clips of a subset.

    Args:
      root: the copy, with a folder for each subset.
      name: the subset, as HSN or XCM.
      split: "train" for the events of recordings, "test_5s" for annotated clips.
      class_names: what labels are counted in.
      own_names: the subset's own class list, for copies that hold numbers.
      class_limit: see `events.limit`; of training clips alone.
      event_limit: the same.
      seed: of which events are kept.
      unpack_dir: where archives are unpacked; None: in the subset's folder.
      skip_log: takes sounds that are missing, rows without a name, archives that are
        broken, and of several tables those that are.

    Raises:
      ValueError: there is no such subset, or it is not as BirdSet's are, or none of
        its sounds is there.
    """
    folder = root / name
    tables, rows = _read(_tables(folder, name, split), own_names, skip_log)
    into = folder / "extracted" if unpack_dir is None else unpack_dir / name
    unpack.sounds(folder, name, split, tables, into, skip_log)
    sounds = _sounds((folder, into))
    known = {code: i for i, code in enumerate(class_names)}
    unknown: dict[str, int] = {}
    for code in itertools.chain.from_iterable(set(row.codes) for row in rows):
        if code not in known:
            unknown[code] = unknown.get(code, 0) + 1
    if split == "train":
        # A recording of an unknown bird is not one without birds.
        rows = [row for row in rows if not known.keys().isdisjoint(row.codes)]
    there = []
    for row in rows:
        if row.file in sounds:
            there.append(row)
        else:
            skip_log.add(audio.AudioError(folder / row.file, "missing from the copy"))
    if not there:
        raise ValueError(
            f"{folder}: of {len(rows)} rows of {split} with a known bird none has its "
            "sound there"
        )
    labels = [
        tuple(sorted({known[code] for code in row.codes if code in known}))
        for row in there
    ]
    if split == "train":
        clips = _events(there, labels, sounds, class_limit, event_limit, seed)
    else:
        clips = [
            data.Clip(path=sounds[row.file], label=label, offset_s=row.start_s)
            for row, label in zip(there, labels, strict=True)
        ]
    return Part(clips=tuple(clips), unknown=dict(sorted(unknown.items())))


def has(root: Path, name: str, split: Split) -> bool:
    """Whether a subset of the copy has this split."""
    try:
        return bool(_tables(root / name, name, split))
    except ValueError:
        return False


def backgrounds(
    folder: Path, unpack_dir: Path | None, skip_log: data.SkipLog
) -> tuple[data.Clip, ...]:
    """Recordings to put behind training clips, all sounds in a folder.

    Args:
      folder: with sounds in it or below, or with BirdSet's archives of them, as
        dcase18_shard_0001.tar.gz.
      unpack_dir: where archives are unpacked; None: in the folder.
      skip_log: takes archives that are broken.

    Raises:
      ValueError: there is no folder, or no sound in it.
    """
    found: list[Path] = []
    if folder.is_dir():
        name = folder.resolve().name
        into = folder / "extracted" if unpack_dir is None else unpack_dir / name
        unpack.sounds(folder, name, "train", (), into, skip_log)
        found = sorted(_sounds((folder, into)).values())
    if not found:
        raise ValueError(f"--background {folder} holds no sound files")
    return tuple(data.Clip(path=path, label=()) for path in found)


def _events(
    rows: Sequence[Row],
    labels: Sequence[tuple[int, ...]],
    sounds: dict[str, Path],
    class_limit: int | None,
    event_limit: int | None,
    seed: int,
) -> list[data.Clip]:
    """A clip for each event that the limits leave; a file's events stay together."""
    each = [(row, label, s) for row, label in zip(rows, labels, strict=True)
            for s in row.spans]  # fmt: skip
    kept = events.limit(
        [row.file for row, _, _ in each],
        [row.code for row, _, _ in each],
        class_limit=class_limit,
        event_limit=event_limit,
        seed=seed,
    )
    return [
        data.Clip(
            path=sounds[row.file],
            label=label,
            offset_s=events.middle(span, CLIP_S, row.length_s),
            group=row.file,
            within=events.window(span, row.length_s),
        )
        for row, label, span in (each[i] for i in kept)
    ]


def _tables(folder: Path, name: str, split: Split) -> list[Path]:
    """The parquet files that say what is in a split."""
    if not folder.is_dir():
        raise ValueError(
            f"--data-dir {folder.parent} has no folder {name}; BirdSet has a folder "
            "for each subset"
        )
    plain = [folder / f"{name}_metadata_{split}.parquet"]
    if split == "train":
        plain.append(folder / f"{name}_metadata.parquet")  # XCL, XCM: one split only
    for file in plain:
        if file.exists():
            return [file]
    if embedded := sorted((folder / split).glob("*.parquet")):
        return embedded
    raise ValueError(
        f"{folder} has neither {plain[0].name} nor {split}/*.parquet: it is no copy of "
        f"BirdSet's {name}, or one without its {split} part"
    )


def _read(
    tables: Sequence[Path], own_names: Sequence[str], skip_log: data.SkipLog
) -> tuple[list[Path], list[Row]]:
    """The tables that can be read, and their rows; of one table that must be all."""
    import pyarrow

    readable, rows = [], []
    for table in tables:
        try:
            rows += list(_rows(table, own_names, skip_log))
            readable.append(table)
        except (pyarrow.ArrowException, OSError) as error:
            reason = f"cannot be read as parquet: {str(error)[:200]}"
            if len(tables) == 1:
                raise ValueError(f"{table} {reason}") from error
            skip_log.add(audio.AudioError(table, reason))
    return readable, rows


def _rows(
    table: Path, own_names: Sequence[str], skip_log: data.SkipLog
) -> Iterator[Row]:
    """Rows that name a sound."""
    import pyarrow.parquet

    file = pyarrow.parquet.ParquetFile(table)
    columns = [c for c in (*COLUMNS, "audio") if c in file.schema_arrow.names]
    # Only the path of embedded sounds: their bytes are read when unpacked.
    wanted = [c if c != "audio" else "audio.path" for c in columns]
    batches = file.iter_batches(columns=wanted)
    every = itertools.chain.from_iterable(b.to_pylist() for b in batches)
    for number, row in enumerate(every):
        sound = row.get("audio") or {}
        if path := row.get("filepath") or sound.get("path"):
            yield _row(row, str(path), own_names, table)
        else:
            reason = f"row {number} has neither a filepath nor an audio path"
            skip_log.add(audio.AudioError(table, reason))


def _row(row: dict[str, Any], path: str, own_names: Sequence[str], table: Path) -> Row:
    several = row.get("ebird_code_multilabel") or ()
    codes = [_code(c, own_names, table) for c in several if not _is_null(c)]
    own = row.get("ebird_code")
    if not _is_null(own):
        own = _code(own, own_names, table)
        codes = codes or [own]
    else:
        own = None
    return Row(
        file=os.path.basename(path.replace("\\", "/")),
        codes=tuple(codes),
        code=own or (codes[0] if codes else ""),
        start_s=_seconds(row.get("start_time")) or 0.0,
        length_s=_seconds(row.get("length")),
        spans=tuple(
            events.usable(row.get("detected_events"), row.get("event_cluster"))
        ),
    )


def _code(value: Any, own_names: Sequence[str], table: Path) -> str:
    """An eBird code, also where a copy holds its number."""
    if isinstance(value, str):
        return value
    # A column with nulls comes out of pandas as floats.
    if not 0 <= value < len(own_names) or value != int(value):
        raise ValueError(f"{table}: class {value} of {len(own_names)}; codes expected")
    return own_names[int(value)]


def _is_null(value: Any) -> bool:
    """Also what pandas writes for nothing."""
    return value is None or value != value


def _seconds(value: Any) -> float | None:
    """None for what is not there, NaN, or not positive."""
    if value is None or not math.isfinite(value) or value <= 0:
        return None
    return float(value)


def _sounds(folders: Sequence[Path]) -> dict[str, Path]:
    """Every sound below the folders by its name."""
    found: dict[str, Path] = {}
    for folder in folders:
        for at, _, names in os.walk(folder):
            for name in names:
                if name.lower().endswith(unpack.SOUNDS) and not name.startswith("."):
                    found.setdefault(name, Path(at, name))
    return found
