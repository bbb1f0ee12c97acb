"""Malformed inputs given to the commands, in bounded time and memory.

    python tests/malformed_program.py FOLDER EVERY

A process of its own, as its limits cannot be taken back: address space for what is
imported and 2 GiB more, and so many seconds an input. Every EVERYth input of
`malformed.inputs` that a command can be given, and names of every kind, go through
`cli.main`; a line of JSON each tells what came of it.
"""

from __future__ import annotations

# ruff: noqa: T201
import contextlib
import importlib
import io
import json
import os
import pathlib
import resource
import signal
import sys
import traceback

import malformed

SECONDS, MORE_BYTES = 20, 2 * 2**30
NAMES = [
    b"new\nline.wav",
    b"quote\"'`.wav",
    b"<script>alert(1)<!--.wav",
    b"  .wav",
    "Käuzchen \u202egnp.wav".encode(),
    b"latin-\xe4.wav",
    b"n" * 251 + b".wav",
    b"%s%n{0}$(id).wav",
    b"\x1b[2J.wav",
    b"\x1b]0;owned\x07.wav",
]


def command_for(one: malformed.Input, path: pathlib.Path, root: pathlib.Path) -> list:
    """What a user would type who has this input; nothing where there is no command."""
    run, data, out = root / "run", root / "sounds", path.parent / "out"
    match one.use:
        case _ if one.name == "flac of silence at 20 Hz":
            return []  # too long as a whole, which no command asks for
        case malformed.use_sound | malformed.use_windows:
            return ["explain", path, "--run", run, "--out", out.with_suffix(".html")]
        case malformed.use_data:
            return ["train", "--data", path, "--out", out, "--strict"]
        case malformed.use_weights:
            return ["convert", path, out]
        case _ if "checkpoint" in one.name:
            return ["fit", "--weights", path, "--data", data, "--out", out]
    return []


def limited(run) -> dict[str, object]:
    """What comes of it, and what it says."""

    def late(*_):
        raise TimeoutError(f"took more than {SECONDS} s")

    signal.signal(signal.SIGALRM, late)
    signal.alarm(SECONDS)
    out, err = io.StringIO(), io.StringIO()
    try:
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
            status = run()
    # What the interpreter would print; also of a SystemExit.
    except BaseException:  # noqa: BLE001
        status, err = "raised", io.StringIO(traceback.format_exc())
    finally:
        signal.alarm(0)
    return {"status": status, "out": out.getvalue(), "err": err.getvalue()}


def prepare(root: pathlib.Path) -> None:
    """A run to explain with and sounds to fit on; all that may have to be imported."""
    import test_runs

    from apex_jax import cli, explain

    for command in cli.COMMANDS.values():
        importlib.import_module(command.module)
    explain.save(root / "run", test_runs.explainer_of())
    for folder in ("cat", "dog"):
        (root / "sounds" / folder).mkdir(parents=True)
        (root / "sounds" / folder / "a.wav").write_bytes(malformed.sound("wav"))


def main(root: pathlib.Path, every: int) -> None:
    """Tells of each input in a line."""
    from apex_jax import cli

    prepare(root)
    size = int(pathlib.Path("/proc/self/statm").read_text().split()[0])
    limit = size * resource.getpagesize() + MORE_BYTES
    resource.setrlimit(resource.RLIMIT_AS, (limit, limit))

    def tell(name: str, folder: pathlib.Path, command: list) -> None:
        found = limited(lambda: cli.main([os.fspath(word) for word in command]))
        print(json.dumps({"name": name, "folder": folder.name, **found}), flush=True)

    given = [one for one in malformed.inputs() if not one.may_pass]
    for number, one in enumerate(given[::every]):
        folder = root / f"input{number}"
        folder.mkdir()
        if command := command_for(one, one.make(folder), root):
            tell(one.name, folder, command)
    for number, name in enumerate(NAMES[:: max(1, every // 4)]):
        folder = root / f"name{number}"
        folder.mkdir()
        path = folder / os.fsdecode(name)
        path.write_bytes(b"no sound")
        tell(
            repr(name),
            folder,
            ["explain", path, "--run", root / "run", "--out", folder / "a.html"],
        )


if __name__ == "__main__":
    main(pathlib.Path(sys.argv[1]), int(sys.argv[2]))
