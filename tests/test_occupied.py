"""One run at a time in a folder, whatever becomes of the first."""

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
