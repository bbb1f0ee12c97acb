"""A CSV manifest: which sound file has which classes, in which split.

Before `dataset`, which makes clips of it. UTF-8 with a header, one clip a line:

    path,label,split
    wavs/0001.wav,robin,train

`path` counts from the manifest's folder. `label` is one class; `labels` instead of it
are several, joined by `;`, or none. `split` (train, validation, test), `offset_s` and
`group` can be left out.
"""

from __future__ import annotations

import csv
import dataclasses
import io
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from apex_jax import data

SPLITS = data.Splits._fields
COLUMNS = ("path", "label", "labels", "split", "offset_s", "group")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Row:
    """A clip whose classes are names.

    Attributes:
      where: file and line, for messages.
      path: the sound file.
      classes: one, or where there is a column `labels`, any number.
      split: empty where there is no such column.
      offset_s: where in the file the clip starts.
      group: clips of one group belong to one split; empty for the file's name.
    """

    where: str
    path: Path
    classes: tuple[str, ...]
    split: str = ""
    offset_s: float = 0.0
    group: str = ""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Manifest:
    """What a manifest says.

    Attributes:
      rows: one a clip.
      multi_label: whether a clip can have several classes or none.
      unused: columns that mean nothing here.
    """

    rows: tuple[Row, ...]
    multi_label: bool
    unused: tuple[str, ...]


def read(path: Path) -> Manifest:
    """Reads a manifest.

    Raises:
      ValueError: no UTF-8, no CSV, no header, no clips, or something wrong in a line:
        which line and column, what came, what would be right.
    """
    try:
        text = path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        line = error.object[: error.start].count(b"\n") + 1
        raise ValueError(f"{path}, line {line}: not UTF-8; save it as UTF-8") from None
    # Not `splitlines`: a name may hold what Unicode, but no CSV, takes for a new line.
    lines = csv.reader(io.StringIO(text, newline=""), strict=True)
    try:
        header = [name.strip() for name in next(lines, [])]
        _check_header(path, header)
        rows = tuple(_rows(path, header, lines))
    except csv.Error as error:
        raise ValueError(f"{path}, line {lines.line_num}: no CSV ({error})") from None
    if not rows:
        raise ValueError(f"{path} has a header and no clips")
    return Manifest(
        rows=rows,
        multi_label="labels" in header,
        unused=tuple(name for name in header if name not in COLUMNS),
    )


def _check_header(path: Path, header: list[str]) -> None:
    if not any(header):
        raise ValueError(f"{path} is empty; expected a header such as path,label")
    if "path" not in header or ("label" in header) == ("labels" in header):
        raise ValueError(
            f"{path}, line 1: the columns are {', '.join(header):.300}; expected a "
            "header with path and either label or labels, separated by commas, and if "
            "wanted split, offset_s and group"
        )
    if twice := sorted({name for name in header if header.count(name) > 1}):
        raise ValueError(f"{path}, line 1: column {', '.join(twice)} is there twice")


def _rows(path: Path, header: list[str], lines: Any) -> Iterator[Row]:
    seen: dict[tuple[Path, float], int] = {}
    split_of: dict[str, tuple[str, int]] = {}
    for fields in lines:
        if not fields:
            continue  # a blank line
        line = lines.line_num
        if len(fields) != len(header):
            raise ValueError(
                f"{path}, line {line}: {len(fields)} fields; the header has "
                f"{len(header)}"
            )
        values = {k: v.strip() for k, v in zip(header, fields, strict=True)}
        row = _row(path, line, values)
        first = seen.setdefault((row.path, row.offset_s), line)
        if first != line:
            raise ValueError(
                f"{row.where}: {values['path']} at {row.offset_s:g} s is on line "
                f"{first} already; expected each clip once"
            )
        if row.group and row.split:
            split, first = split_of.setdefault(row.group, (row.split, line))
            if split != row.split:
                raise ValueError(
                    f"{row.where}, column split: {row.split!r}, but group "
                    f"{row.group!r} is in {split!r} on line {first}; expected each "
                    "group in one split"
                )
        yield row


def _row(path: Path, line: int, values: dict[str, str]) -> Row:
    def wrong(column: str, right: str) -> ValueError:
        came = f"{values[column]!r:.300}" if values[column] else "empty"
        return ValueError(
            f"{path}, line {line}, column {column}: {came}; expected {right}"
        )

    if not values["path"]:
        raise wrong("path", "a sound file")
    if values.get("label") == "":
        raise wrong("label", "a class; for several a clip, or none, a column labels")
    if values.get("split", SPLITS[0]) not in SPLITS:
        raise wrong("split", ", ".join(SPLITS))
    try:
        offset_s = float(values.get("offset_s") or 0)
    except ValueError:
        offset_s = math.nan
    if not 0 <= offset_s < math.inf:
        raise wrong("offset_s", "seconds, at least 0")
    several = [name.strip() for name in values.get("labels", "").split(";")]
    return Row(
        where=f"{path}, line {line}",
        path=path.parent / values["path"],
        classes=(values["label"],)
        if "label" in values
        else tuple(filter(None, several)),
        split=values.get("split", ""),
        offset_s=offset_s,
        group=values.get("group", ""),
    )
