"""One run at a time in a folder.

Between `runs.claim` and the operating system, which gives the lock back when the
process ends, however it ends. Who holds it stands beside it, for the message to the
second run.
"""

from __future__ import annotations

import datetime
import json
import os
import platform
from pathlib import Path

import filelock

LOCK = ".running.lock"
HOLDER = ".running.json"

# Of this process, by folder; held until it ends.
_held: dict[Path, filelock.BaseFileLock] = {}


class OccupiedError(ValueError):
    """Another run is at work in the folder."""


def occupy(folder: Path) -> None:
    """Holds a folder until this process ends; again and again without effect.

    Args:
      folder: of a run, there already.

    Raises:
      OccupiedError: another process holds it; says which, and since when.
      OSError: nothing can be written there.
    """
    folder = folder.resolve()
    if folder in _held:
        return
    lock = filelock.FileLock(folder / LOCK)
    try:
        lock.acquire(timeout=0)
    except filelock.Timeout as error:
        raise OccupiedError(
            f"{folder} is in use by {_who(folder)}; wait for it, or name another folder"
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
