"""One run at a time in a folder, whatever becomes of the first."""

import errno
import os
import signal
import subprocess
import sys

import pytest

from apex_jax import occupied

HOLD = """
import pathlib, sys, time
from apex_jax import occupied
occupied.occupy(pathlib.Path(sys.argv[1]))
print("held", flush=True)
time.sleep(60)
"""


@pytest.fixture
def other(tmp_path):
    """A process that holds the folder."""
    process = subprocess.Popen(
        [sys.executable, "-c", HOLD, str(tmp_path)], stdout=subprocess.PIPE, text=True
    )
    assert process.stdout.readline() == "held\n"
    yield process
    process.kill()
    process.wait()
    process.stdout.close()


def test_the_second_is_told_who_is_first(other, tmp_path):
    message = rf"in use by process {other.pid} on .* since 20\d\d-.*T.*; wait for it"
    with pytest.raises(occupied.OccupiedError, match=message):
        occupied.occupy(tmp_path)
    (tmp_path / occupied.HOLDER).write_text("{")
    with pytest.raises(occupied.OccupiedError, match="in use by another process"):
        occupied.occupy(tmp_path)


def test_a_killed_process_holds_nothing(other, tmp_path):
    os.kill(other.pid, signal.SIGKILL)
    other.wait()
    occupied.occupy(tmp_path)
    occupied.occupy(tmp_path)  # its own


def test_a_link_to_the_folder_is_the_folder(other, tmp_path):
    link = tmp_path.parent / "link"
    link.symlink_to(tmp_path)
    with pytest.raises(occupied.OccupiedError):
        occupied.occupy(link)


@pytest.mark.skipif(sys.platform == "win32", reason="locks are flock's")
@pytest.mark.parametrize("answer", ["ENOSYS", "ENOLCK", "EOPNOTSUPP"])
def test_a_file_system_without_locks(answer, tmp_path, monkeypatch):
    """A warning, and a file is the lock."""
    import fcntl

    def refuse(*_):
        raise OSError(getattr(errno, answer), os.strerror(getattr(errno, answer)))

    monkeypatch.setattr(fcntl, "flock", refuse)
    with pytest.warns(UserWarning, match="has no locks|flock not supported"):
        occupied.occupy(tmp_path)
    occupied.occupy(tmp_path)  # its own, without a word
    second = HOLD.replace(
        "occupied.occupy",
        f"""
import errno, fcntl, os, warnings
def refuse(*_): raise OSError(errno.{answer}, "no locks")
fcntl.flock = refuse
warnings.simplefilter("ignore")
occupied.occupy""",
        1,
    )
    done = subprocess.run(
        [sys.executable, "-c", second, str(tmp_path)],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 1
    last = done.stderr.splitlines()[-1]
    assert (
        f"OccupiedError: {tmp_path.resolve()} is in use by process {os.getpid()}"
        in (last)
    )
    assert answer == "ENOSYS" or f"delete {tmp_path / occupied.SOFT}" in last


def test_what_else_the_file_system_says_is_an_error(tmp_path, monkeypatch):
    import fcntl

    def refuse(*_):
        raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr(fcntl, "flock", refuse)
    with pytest.raises(OSError, match="Input/output error"):
        occupied.occupy(tmp_path)
