"""BirdSet's archives and embedded sounds as files, each once.

What an archive calls its members does not decide where they go: each goes into one
folder under its bare name. A finished archive leaves a mark and is not read again; a
sound that is there already is left alone.
"""

from __future__ import annotations

import contextlib
import os
import re
import tarfile
import zlib
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import IO

from apex_jax import atomic, audio, data, hosts, progress

SOUNDS = (".ogg", ".wav", ".flac", ".mp3")
_CHUNK = 2**20


def sounds(
    folder: Path,
    name: str,
    split: str,
    tables: Iterable[Path],
    into: Path,
    skip_log: data.SkipLog,
) -> None:
    """Unpacks what a split has in archives or tables; of several hosts the first does.

    Args:
      folder: of the subset.
      name: of the subset.
      split: "train" or "test_5s".
      tables: its parquet files.
      into: where sounds go, in a folder that all hosts see.
      skip_log: takes archives that are broken; what comes before the damage is used.
    """
    import pyarrow

    packed = [*_archives(folder, name, split), *filter(_is_embedded, tables)]
    left = [file for file in packed if not _mark(into, file).exists()]
    if left and hosts.is_primary():
        into.mkdir(parents=True, exist_ok=True)
        with progress.bar(f"unpack {name}", len(left), "archive") as on_progress:
            for file in left:
                try:
                    read = _embedded if file.suffix == ".parquet" else _members
                    for sound, chunks in read(file):
                        _write(into / sound, chunks)
                    _mark(into, file).touch()
                except (
                    tarfile.TarError,
                    EOFError,
                    zlib.error,
                    pyarrow.ArrowException,
                ) as error:
                    skip_log.add(audio.AudioError(file, f"broken archive: {error}"))
                on_progress(1)
    hosts.barrier(f"unpacked {name} {split}")


def _archives(folder: Path, name: str, split: str) -> list[Path]:
    part = {"train": "(train_)?", "test_5s": "test_?5s_"}[split]
    pattern = re.compile(rf"{re.escape(name)}_{part}shard_\d+\.tar(\.gz)?")
    return sorted(p for p in folder.iterdir() if pattern.fullmatch(p.name))


def _is_embedded(table: Path) -> bool:
    import pyarrow.parquet

    return "audio" in pyarrow.parquet.ParquetFile(table).schema_arrow.names


def _mark(into: Path, packed: Path) -> Path:
    return into / f".{packed.parent.name}-{packed.name}.unpacked"


def _members(archive: Path) -> Iterator[tuple[str, Iterator[bytes]]]:
    with tarfile.open(archive, "r|*") as tar:
        for member in tar:
            name = _bare(member.name)
            if member.isfile() and name:
                stream = tar.extractfile(member)
                assert stream is not None  # it is a file
                yield name, _pieces(stream)


def _embedded(table: Path) -> Iterator[tuple[str, Iterator[bytes]]]:
    import pyarrow.parquet

    file = pyarrow.parquet.ParquetFile(table)
    there = set(file.schema_arrow.names)
    columns = [c for c in ("audio", "filepath") if c in there]
    try:
        for batch in file.iter_batches(batch_size=16, columns=columns):
            for row in batch.to_pylist():
                sound = row["audio"] or {}
                name = _bare(str(row.get("filepath") or sound.get("path") or ""))
                if name and sound.get("bytes"):
                    yield name, iter([sound["bytes"]])
    except OSError as error:
        # Damage, as pyarrow tells of it; a disk that is full is told by who writes.
        raise pyarrow.ArrowInvalid(str(error)) from error


def _bare(path: str) -> str:
    """The name without folders, empty for what is no sound."""
    name = os.path.basename(path.replace("\\", "/"))
    sound = name.lower().endswith(SOUNDS) and not name.startswith(".")
    return name if sound else ""


def _pieces(stream: IO[bytes]) -> Iterator[bytes]:
    with contextlib.closing(stream):
        while piece := stream.read(_CHUNK):
            yield piece


def _write(path: Path, pieces: Iterable[bytes]) -> None:
    """Whole or not at all; a file that is there stays."""
    if path.exists():
        return
    atomic.write(path, lambda file: file.writelines(pieces))
