"""One run at a time in a folder.

Between `runs.hold` and the operating system, which gives the lock back when the
process ends, however it ends. Who holds it stands beside it, for the message to the
second run. Where a file system has no locks, as some over a network have none, the
lock is a file, which a process that is killed leaves behind.
"""

from __future__ import annotations

import datetime
import errno
import json
import os
import platform
import warnings
from pathlib import Path

import filelock

LOCK = ".running.lock"
SOFT = ".running.file"
HOLDER = ".running.json"

# What file systems without locks answer; of ENOSYS filelock itself does the same.
NO_LOCKS = (errno.ENOLCK, errno.EOPNOTSUPP, errno.ENOTSUP)

# Of this process, by folder; held until it ends.
_held: dict[Path, filelock.BaseFileLock] = {}


class OccupiedError(ValueError):
    """Another run is at work in the folder."""


def occupy(folder: Path) -> None:
    """Holds a folder until this process ends; again and again without effect.

    Args:
      folder: of a run, there already.

    Raises:
      OccupiedError: another process holds it; says which, since when, and what to
        delete where a process that was killed may have left it behind.
      OSError: nothing can be written there.
    """
    folder = folder.resolve()
    if folder in _held:
        return
    lock: filelock.BaseFileLock = filelock.FileLock(folder / LOCK)
    hint = ""
    try:
        try:
            lock.acquire(timeout=0)
        except OSError as error:
            if isinstance(error, filelock.Timeout) or error.errno not in NO_LOCKS:
                raise
            warnings.warn(
                f"the file system of {folder} has no locks ({error.strerror}); its "
                f"lock is the file {SOFT}, which a killed run leaves behind",
                stacklevel=2,
            )
            hint = f"; if there is no such process any more, delete {folder / SOFT}"
            lock = filelock.SoftFileLock(folder / SOFT)
            lock.acquire(timeout=0)
    except filelock.Timeout as error:
        raise OccupiedError(
            f"{folder} is in use by {_who(folder)}; wait for it, or name another "
            f"folder{hint}"
        ) from error
    _held[folder] = lock
    holder = {
        "process": os.getpid(),
        "host": platform.node(),
        "since": datetime.datetime.now().astimezone().isoformat(timespec="seconds"),
    }
    (folder / HOLDER).write_text(json.dumps(holder), encoding="utf-8")


def _who(folder: Path) -> str:
    try:
        holder = json.loads((folder / HOLDER).read_text(encoding="utf-8"))
        return (
            f"process {holder['process']} on {holder['host']} since {holder['since']}"
        )
    # It may be writing that just now.
    except (OSError, ValueError, KeyError, TypeError):
        return "another process"
