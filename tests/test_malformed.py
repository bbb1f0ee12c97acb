"""Malformed inputs: a clear message in bounded time and memory, never a crash."""

import json
import os
import pathlib
import resource
import signal
import subprocess
import sys
import tempfile

import malformed
import malformed_program
import numpy as np
import pytest

INPUTS = malformed.inputs()
SECONDS, MEGABYTES = 20, 512


@pytest.fixture
def bounded():
    """Ends a test that takes too long, and measures how much memory it took."""

    def late(*_):
        raise TimeoutError(f"took more than {SECONDS} s")

    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    old = signal.signal(signal.SIGALRM, late)
    signal.alarm(SECONDS)
    yield
    signal.alarm(0)
    signal.signal(signal.SIGALRM, old)
    grown = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
    assert grown < MEGABYTES * 1024, f"took {grown / 1024:.0f} MiB"


def test_there_are_enough_and_no_two_of_one_name():
    names = [one.name for one in INPUTS]
    assert len(set(names)) == len(names) >= 200


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
@pytest.mark.parametrize("one", INPUTS, ids=lambda one: one.name.replace(" ", "_"))
def test_refused_with_a_message(one, tmp_path, bounded, monkeypatch):
    monkeypatch.chdir(tmp_path)
    path = one.make(tmp_path)
    message = found = None
    try:
        found = one.use(path)
    except TimeoutError:
        raise
    # What the commands turn into a line and status 1; anything else is a traceback.
    except (ValueError, OSError, ImportError) as error:
        message = str(error)
    if message is not None:
        assert 10 < len(message) < 2_000, "a message is to be read"
        assert tmp_path.name in message, f"does not name what is wrong: {message}"
        assert not (tmp_path / "it-was-run").exists(), "code in it was run"
        return
    assert one.may_pass, f"went through: {found!r:.200}"
    if isinstance(found, np.ndarray):
        assert np.isfinite(found).all()
        assert found.ndim == 1


@pytest.mark.parametrize(
    "name",
    [
        b"new\nline.wav",
        b"quote\"'`.wav",
        b"<script>alert(1)<!--.wav",
        b"-rf.wav",
        b"  .wav",
        "Käuzchen \u202egnp.wav".encode(),
        b"latin-\xe4.wav",
        b"n" * 251 + b".wav",
        b"%s%n{0}$(id).wav",
        b"\x1b[2J.wav",
    ],
)
def test_odd_names_are_names(name, tmp_path):
    """A file may be called anything: as a clip it is read, and a broken one named."""
    from apex_jax import audio, data

    for folder in ("cat", "dog"):
        (tmp_path / folder).mkdir()
        path = os.path.join(os.fsencode(tmp_path / folder), name)
        with open(path, "wb") as file:
            file.write(malformed.sound("wav"))
    clips, names = data.class_folder(tmp_path)
    assert names == ("cat", "dog")
    assert [os.fsencode(clip.path.name) for clip in clips] == [name, name]
    for clip in clips:
        assert len(audio.load(clip.path, 8000)) == malformed.RATE // 4
        clip.path.write_bytes(b"")
        with pytest.raises(audio.AudioError):
            audio.load(clip.path, 8000)
    log = data.SkipLog()
    log.add(audio.AudioError(clips[0].path, "broken"))
    log.write_csv(tmp_path / "skipped.csv")
    again = data.SkipLog()
    again.read_csv(tmp_path / "skipped.csv")
    assert again.entries() == log.entries()


def through_the_commands(root, every):
    """What a process with little memory and time says of inputs."""
    done = subprocess.run(
        [sys.executable, malformed_program.__file__, root, str(every)],
        capture_output=True,
        text=True,
        check=False,
        cwd=root,
        env=os.environ | {"JAX_PLATFORMS": "cpu", "XLA_FLAGS": ""},
    )
    assert done.returncode == 0, done.stderr
    told = [json.loads(line) for line in done.stdout.splitlines()]
    assert not (root / "it-was-run").exists()
    for one in told:
        assert one["status"] == 1, one
        *_, line = one["err"].splitlines()
        assert line.startswith("apex-jax "), one
        assert one["folder"] in line, one
        assert line.isprintable(), one
        assert "Traceback" not in one["err"], one
        # Nothing is said that a terminal would take for a command.
        assert "\x1b" not in one["out"] + one["err"], one
    return len(told)


def test_some_are_refused_by_the_commands(tmp_path):
    assert through_the_commands(tmp_path, every=12) > 12


@pytest.mark.slow
def test_all_are_refused_by_the_commands(tmp_path):
    assert through_the_commands(tmp_path, every=1) > 150


@pytest.mark.parametrize("kind", ["wav", "manifest", "weights", "checkpoint", "config"])
def test_what_may_not_be_read_is_named(kind):
    """By somebody without the right to: the administrator may read anything."""
    from apex_jax import audio, checkpoint, convert, dataset, runs

    names = {"wav": "a.wav", "manifest": "a.csv", "weights": "a.safetensors"}
    read = {
        "wav": lambda path: audio.load(path, 8000),
        "manifest": dataset.read,
        "weights": convert.load,
        "checkpoint": lambda path: checkpoint.load(path, kind="thing"),
        "config": runs.read_json,
    }[kind]
    with tempfile.TemporaryDirectory() as folder:
        os.chmod(folder, 0o755)
        path = pathlib.Path(folder, names.get(kind, "it"))
        if kind == "checkpoint":
            checkpoint.save(path, {"a": np.ones(2)}, {}, kind="thing")
        else:
            path.write_bytes(malformed.sound("wav"))
        path.chmod(0)
        administrator = os.geteuid() == 0
        if administrator:
            os.seteuid(65534)
        try:
            with pytest.raises((ValueError, PermissionError)) as raised:
                read(path)
        finally:
            if administrator:
                os.seteuid(0)
            path.chmod(0o755)
        assert str(path) in str(raised.value)
        if kind == "wav":
            assert isinstance(raised.value, audio.AudioError)
        if kind != "checkpoint":
            assert "ermission denied" in str(raised.value)
