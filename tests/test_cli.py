"""Which command runs, what its exit status says, and what help costs."""

import dataclasses
import importlib.metadata
import os
import subprocess
import sys
import types
from typing import get_args

import pytest

from apex_jax import cli, settings
from apex_jax.models import convnext


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config:
    """Does nothing much.

    Attributes:
      number: how much.
    """

    number: int = 3


def command(monkeypatch, main):
    """A command `try` that runs `main`."""
    module = types.ModuleType("apex_jax_try")
    module.Config, module.main = Config, main
    monkeypatch.setitem(sys.modules, module.__name__, module)
    entry = cli.Command(
        module=module.__name__,
        summary="tries something",
        config="Config",
        options=module.__name__,
    )
    monkeypatch.setitem(cli.COMMANDS, "try", entry)


def test_a_command_gets_its_settings(monkeypatch, capsys):
    command(monkeypatch, lambda config: f"done {config.number}")
    assert cli.main(["try"]) == 0
    assert cli.main(["try", "--number", "5"]) == 0
    assert capsys.readouterr().out == "done 3\ndone 5\n"


def test_results_that_are_no_words_are_not_printed(monkeypatch, capsys):
    command(monkeypatch, lambda config: {"a": 1})
    assert cli.main(["try"]) == 0
    assert capsys.readouterr() == ("", "")


@pytest.mark.parametrize(
    ("error", "status", "line"),
    [
        (ValueError("number must be 3"), 1, "apex-jax try: number must be 3"),
        (FileNotFoundError(2, "No such file", "a"), 1, "apex-jax try: [Errno 2] No"),
        (ImportError("needs torch"), 1, "apex-jax try: needs torch"),
        (KeyboardInterrupt(), 130, "apex-jax try: interrupted"),
    ],
)
def test_what_users_cause_is_one_line(error, status, line, monkeypatch, capsys):
    def main(config):
        raise error

    command(monkeypatch, main)
    assert cli.main(["try"]) == status
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith(line)
    assert err.count("\n") == 1


def test_a_reader_that_stops_reading_is_no_error_to_speak_of():
    code = (
        "import dataclasses, sys, types; from apex_jax import cli\n"
        "sys.modules['many'] = many = types.ModuleType('many')\n"
        "def main(config):\n"
        "    for n in range(100000): print(n)\n"
        "many.Config, many.main = dataclasses.make_dataclass('Config', []), main\n"
        "cli.COMMANDS['many'] = cli.Command(\n"
        "    module='many', summary='', config='Config', options='many')\n"
        "sys.exit(cli.main(['many']))"
    )
    script = f'{sys.executable} -c "$CODE" | head -1; exit ${{PIPESTATUS[0]}}'
    done = subprocess.run(
        ["bash", "-c", script],
        env={**os.environ, "CODE": code},
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.returncode, done.stdout, done.stderr) == (1, "0\n", "")


def test_ctrl_c_ends_the_process_without_taking_it_down():
    """Not even `atexit` runs: what threads are doing must not crash them."""
    code = (
        "import atexit, dataclasses, os, signal, sys, types\n"
        "from apex_jax import cli\n"
        "sys.modules['slow'] = slow = types.ModuleType('slow')\n"
        "def main(config): os.kill(os.getpid(), signal.SIGINT)\n"
        "slow.Config, slow.main = dataclasses.make_dataclass('Config', []), main\n"
        "cli.COMMANDS['slow'] = cli.Command(\n"
        "    module='slow', summary='', config='Config', options='slow')\n"
        "atexit.register(print, 'taken down')\n"
        # A shell's background jobs inherit a Ctrl-C that is ignored.
        "signal.signal(signal.SIGINT, signal.default_int_handler)\n"
        "sys.argv = ['apex-jax', 'slow']\n"
        "sys.exit(cli.main())"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=False
    )
    assert done.returncode == 130
    assert (done.stdout, done.stderr) == ("", "apex-jax slow: interrupted\n")


def test_a_mistake_of_ours_keeps_its_traceback(monkeypatch):
    def main(config):
        raise TypeError("ours")

    command(monkeypatch, main)
    with pytest.raises(TypeError, match="ours"):
        cli.main(["try"])


@pytest.mark.parametrize("arguments", [["--numbr", "5"], ["--number", "x"], ["more"]])
def test_wrong_options_are_status_2(arguments, monkeypatch, capsys):
    command(monkeypatch, lambda config: None)
    with pytest.raises(SystemExit) as ended:
        cli.main(["try", *arguments])
    assert ended.value.code == 2
    assert "apex-jax try" in capsys.readouterr().err


def test_an_unknown_command_lists_the_commands(capsys):
    assert cli.main(["trian"]) == 2
    err = capsys.readouterr().err
    assert "no command 'trian'" in err
    assert all(name in err for name in cli.COMMANDS)


@pytest.mark.parametrize("arguments", [[], ["-h"], ["--help"]])
def test_help_lists_the_commands_within_80_columns(arguments, capsys):
    assert cli.main(arguments) == 0
    out = capsys.readouterr().out
    assert all(f"\n  {name} " in out for name in cli.COMMANDS)
    assert max(map(len, out.splitlines())) <= 80


def test_version(capsys):
    assert cli.main(["--version"]) == 0
    assert capsys.readouterr().out.startswith("apex-jax 0.")


def imports_of(arguments, *heavy):
    """Which of the heavy modules a Python that is started so has imported in the end.

    Args:
      arguments: after `python -m`.
      heavy: names of modules.
    """
    code = (
        "import atexit, runpy, sys\n"
        f"sys.argv = {list(arguments)}\n"
        f"heavy = {list(heavy)}\n"
        "atexit.register(lambda: print([m for m in heavy if m in sys.modules]))\n"
        "runpy.run_module(sys.argv[0], run_name='__main__', alter_sys=True)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=False
    )
    return done, done.stdout.splitlines()[-1]


COMPUTING = ("jax", "flax", "optax", "orbax", "grain", "matplotlib", "scipy")


def test_help_imports_not_even_numpy():
    done, found = imports_of(["apex_jax", "--help"], "jax", "numpy", "tyro")
    assert (done.returncode, found) == (0, "[]")


@pytest.mark.parametrize(
    "arguments",
    [
        *(["apex_jax", name, "--help"] for name in cli.COMMANDS),
        ["experiments.wavefake", "--help"],
        ["apex_jax", "fit", "--ot", "runs/apex"],
        ["experiments.wavefake", "--sheme", "time"],
    ],
    ids=" ".join,
)
def test_help_and_mistakes_do_not_wait_for_jax(arguments):
    done, found = imports_of(arguments, *COMPUTING)
    status = 0 if "--help" in arguments else 2
    assert (done.returncode, found) == (status, "[]"), done.stderr


def test_the_sizes_offered_are_the_sizes_there_are():
    assert get_args(settings.Size) == get_args(convnext.Size)


@pytest.mark.parametrize("name", cli.COMMANDS)
def test_help_of_every_command(name, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    with pytest.raises(SystemExit) as ended:
        cli.main([name, "--help"])
    assert ended.value.code == 0
    out = capsys.readouterr().out
    assert out.startswith(f"usage: apex-jax {name} ")
    assert max(len(line) for line in out.splitlines() if line[0:1] in "│╭╰") <= 80


@pytest.mark.parametrize("name", cli.COMMANDS)
def test_help_speaks_of_no_none(name, capsys):
    with pytest.raises(SystemExit):
        cli.main([name, "--help"])
    assert "None" not in capsys.readouterr().out


def test_help_of_convert_names_what_it_takes(capsys):
    with pytest.raises(SystemExit):
        cli.main(["convert", "--help"])
    assert "apex-jax convert [-h] SOURCE OUT " in capsys.readouterr().out


def test_names_of_files_that_are_no_text_are_escaped():
    code = (
        "import dataclasses, sys, types; from apex_jax import cli\n"
        "sys.modules['name'] = name = types.ModuleType('name')\n"
        "name.Config = dataclasses.make_dataclass('Config', [])\n"
        "name.main = lambda config: 'bad\\udcff.wav'\n"
        "cli.COMMANDS['name'] = cli.Command(\n"
        "    module='name', summary='', config='Config', options='name')\n"
        "sys.exit(cli.main(['name']))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stdout) == (0, "bad\\udcff.wav\n")


def test_the_console_script():
    (script,) = importlib.metadata.entry_points(
        group="console_scripts", name="apex-jax"
    )
    assert script.load() is cli.main


def test_the_module_is_the_console_script():
    done = subprocess.run(
        [sys.executable, "-m", "apex_jax", "nothing"],
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith("apex-jax no command 'nothing'")


@pytest.mark.parametrize(
    "name", ["a\x1b]0;owned\x07.wav", "a\nb\r.wav", "\u202egnp.wav"]
)
def test_names_in_errors_give_a_terminal_no_commands(name, monkeypatch, capsys):
    def refuse(config):
        raise ValueError(f"{name}: missing")

    command(monkeypatch, refuse)
    assert cli.main(["try"]) == 1
    (line,) = capsys.readouterr().err.split("\n")[:-1]
    assert line.isprintable()
    assert line.isascii()
    assert line.endswith(".wav: missing")
