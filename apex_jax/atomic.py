"""Files that appear whole or not at all.

Beside everything that writes: a killed run, a full disk or a power failure leaves what
was there before.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any, BinaryIO


def write(file: str | os.PathLike[str], fill: Callable[[BinaryIO], Any]) -> None:
    """Writes a file under another name, flushes it to the disk and renames it.

    Args:
      file: what it will be called; its folder is there already.
      fill: writes the content.

    Raises:
      OSError: it cannot be written, for want of space say; names the file, and what
        was there before is still there.
    """
    file = Path(file)
    # A name can take 255 bytes, and this one has to have room for its ending.
    temporary = file.with_name(os.fsdecode(os.fsencode(file.name)[:250]) + ".tmp")
    try:
        with temporary.open("wb") as stream:
            fill(stream)
            stream.flush()
            os.fsync(stream.fileno())
        os.replace(temporary, file)
        sync_folder(file.parent)
    except BaseException as error:
        temporary.unlink(missing_ok=True)
        if not isinstance(error, OSError) or error.errno is None:
            raise
        if error.filename not in (None, str(temporary)):
            raise
        raise OSError(error.errno, error.strerror, str(file)) from error


def write_text(file: str | os.PathLike[str], text: str) -> None:
    """Writes UTF-8 as `write` does; bytes of names that are no text stay as they are.

    Raises:
      OSError: as `write`.
    """
    content = text.encode("utf-8", errors="surrogateescape")
    write(file, lambda stream: stream.write(content))


def sync_folder(folder: Path) -> None:
    """Has the names in a folder on the disk, as `fsync` has a file's content."""
    # Windows opens no folders, and some file systems do not sync them.
    with contextlib.suppress(OSError):
        handle = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)
