"""Full disks and folders that may not be written to: an error, and nothing is lost."""

import contextlib
import errno
import gc
import os
import pathlib
import resource
import stat
import subprocess
import sys
import tempfile

import numpy as np
import pytest
import safetensors.numpy
import test_archive
import test_convert

from apex_jax import archive, atomic, checkpoint, occupied, resume, runs

pytestmark = [
    pytest.mark.skipif(sys.platform != "linux", reason="limits are Linux'"),
    # Orbax's own threads end as the write did.
    pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning"),
]
# An explanation, and the weights of a network with those they are made of.
result, model, state = test_archive.result, test_convert.model, test_convert.state


@pytest.fixture(autouse=True)
def collected():
    """What Orbax left unfinished is collected here, not in whatever test comes next."""
    yield
    gc.collect()


LITTLE = {"a": np.zeros(3)}
MUCH = {"a": np.random.default_rng(0).normal(size=100_000)}  # does not compress


@contextlib.contextmanager
def full(size=50_000):
    """No file may grow beyond `size` bytes, as on a disk that has no more."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


@pytest.fixture
def closed():
    """A folder that nobody may write to; the administrator acts as somebody else."""
    with tempfile.TemporaryDirectory() as folder:
        path = pathlib.Path(folder)

        @contextlib.contextmanager
        def close():
            for one in (path, *(p for p in path.rglob("*") if p.is_dir())):
                one.chmod(stat.S_IRUSR | stat.S_IXUSR | 0o55)
            administrator = os.geteuid() == 0
            if administrator:
                os.seteuid(65534)
            try:
                yield
            finally:
                if administrator:
                    os.seteuid(0)
                for one in (path, *(p for p in path.rglob("*") if p.is_dir())):
                    one.chmod(0o755)

        path.chmod(0o755)
        yield path, close


def names(folder):
    return sorted(p.name for p in folder.iterdir())


def test_a_checkpoint_on_a_full_disk(tmp_path):
    checkpoint.save(tmp_path / "it", LITTLE, {"round": 1}, kind="thing")
    for name, overwrite in (("it", True), ("new", False)):
        with pytest.raises(OSError, match=name) as raised, full():
            checkpoint.save(
                tmp_path / name, MUCH, {}, kind="thing", overwrite=overwrite
            )
        assert raised.value.errno == errno.EFBIG
        assert raised.value.filename == str(tmp_path / name)
        assert names(tmp_path) == ["it"]
    assert checkpoint.load(tmp_path / "it", kind="thing")[1] == {"round": 1}
    checkpoint.save(tmp_path / "it", MUCH, {}, kind="thing", overwrite=True)
    found, _ = checkpoint.load(tmp_path / "it", kind="thing")
    np.testing.assert_array_equal(found["a"], MUCH["a"])


def test_the_state_before_stays_when_the_next_does_not_fit(tmp_path):
    saver = resume.Saver(tmp_path / "state", lambda: {"settings": "these"})
    saver.save(1, [np.zeros(3)], {"told": 1})
    with pytest.raises(OSError, match="00000002"), full():
        saver.save(2, [MUCH["a"]], {"told": 2})
    assert names(tmp_path / "state") == ["00000001"]
    step, _, told = saver.load([np.zeros(3)])
    assert (step, told) == (1, {"told": 1})


def test_a_run_killed_between_the_renames_has_its_checkpoint(tmp_path, monkeypatch):
    """The old one is out of the way, the new one not yet in its place."""
    checkpoint.save(tmp_path / "it", LITTLE, {"round": 1}, kind="thing")
    real, renames = pathlib.Path.rename, []

    def rename(self, target):
        renames.append(self)
        if self.name == "it.new":
            raise KeyboardInterrupt
        return real(self, target)

    monkeypatch.setattr(pathlib.Path, "rename", rename)
    with pytest.raises(KeyboardInterrupt):
        checkpoint.save(
            tmp_path / "it", MUCH, {"round": 2}, kind="thing", overwrite=True
        )
    monkeypatch.undo()
    assert not (tmp_path / "it").exists()
    assert checkpoint.load(tmp_path / "it", kind="thing")[1] == {"round": 2}
    checkpoint.save(tmp_path / "it", LITTLE, {"round": 3}, kind="thing", overwrite=True)
    assert checkpoint.load(tmp_path / "it", kind="thing")[1] == {"round": 3}
    assert names(tmp_path) == ["it"]


def test_files_on_a_full_disk(tmp_path, result):
    runs.write_json(tmp_path / "a.json", {"a": 1})
    archive.save(tmp_path / "explained", result)
    for write, file in (
        (lambda: runs.write_json(tmp_path / "a.json", "x" * 10_000), "a.json"),
        (lambda: atomic.write_text(tmp_path / "b.csv", "x" * 10_000), "b.csv"),
        (
            lambda: archive.save(tmp_path / "explained", result, overwrite=True),
            archive.NPZ,
        ),
    ):
        with pytest.raises(OSError, match=file), full(1000):
            write()
    assert names(tmp_path) == ["a.json", "explained"]
    assert runs.read_json(tmp_path / "a.json") == {"a": 1}
    test_archive.assert_identical(archive.load(tmp_path / "explained"), result)


def test_a_folder_that_may_not_be_written_to(closed):
    folder, close = closed
    checkpoint.save(folder / "it", LITTLE, {"round": 1}, kind="thing")
    atomic.write_text(folder / "a.csv", "before")
    for write, named in (
        (lambda: atomic.write_text(folder / "a.csv", "after"), "a.csv"),
        (lambda: occupied.occupy(folder), folder.name),
        (lambda: runs.hold(folder / "run", None), "run"),
        (
            lambda: checkpoint.save(
                folder / "it", MUCH, {}, kind="thing", overwrite=True
            ),
            "it",
        ),
    ):
        with pytest.raises(OSError, match="ermission denied") as raised, close():
            write()
        assert named in str(raised.value)
    assert names(folder) == ["a.csv", "it"]
    assert (folder / "a.csv").read_text() == "before"
    assert checkpoint.load(folder / "it", kind="thing")[1] == {"round": 1}


LIMITED = """
import resource, sys
import commands_program
size = int(sys.argv[1])
resource.setrlimit(resource.RLIMIT_FSIZE, (size, size))
sys.exit(commands_program.main(sys.argv[2:]))
"""


def command(size, *arguments):
    """A command on a disk that has so much left; its status, and all that it says."""
    done = subprocess.run(
        [sys.executable, "-c", LIMITED, str(size), *map(str, arguments)],
        capture_output=True,
        text=True,
        check=False,
        cwd=pathlib.Path(__file__).parent,
        # What is compiled is kept on the same disk, or a warning says that it is not.
        env=os.environ | {"JAX_ENABLE_COMPILATION_CACHE": "0", "XLA_FLAGS": ""},
    )
    return done.returncode, done.stderr


@pytest.mark.slow
def test_a_command_on_a_full_disk(tmp_path, state):
    safetensors.numpy.save_file(state, tmp_path / "a.safetensors")
    asked = ("convert", tmp_path / "a.safetensors", tmp_path / "out")
    status, said = command(2000, *asked)
    assert status == 1
    # Orbax's threads may have their say before and after, and in the same line.
    said_by_us = said.partition("apex-jax convert: [Errno 27] File too large: ")[2]
    assert f"{tmp_path / 'out'}" in said_by_us.partition("\n")[0], said
    assert names(tmp_path) == ["a.safetensors"]
    assert command(10**9, *asked)[0] == 0
    checkpoint.load_classifier(tmp_path / "out")
