"""The command line: which command is asked for, errors, exit status.

    apex-jax COMMAND --help

What computes is imported once the options are understood, so help is quick. Errors
that a user causes are one line on stderr and status 1; wrong options are status 2,
Ctrl-C is 130.
"""

from __future__ import annotations

import dataclasses
import importlib
import io
import os
import sys
from collections.abc import Sequence

from apex_jax import escape


@dataclasses.dataclass(frozen=True, kw_only=True)
class Command:
    """Where a command lives.

    Attributes:
      module: has `main(config)`.
      summary: what it does, for the list of commands.
      config: name of the settings' class.
      options: the module that has it, known without JAX.
    """

    module: str
    summary: str
    config: str
    options: str = "apex_jax.commands.options"


COMMANDS = {
    "train": Command(
        module="apex_jax.commands.train",
        summary="train a ConvNeXt on a folder of sounds",
        config="Train",
    ),
    "fit": Command(
        module="apex_jax.commands.fit",
        summary="learn the explanations of a trained classifier",
        config="Fit",
    ),
    "predict": Command(
        module="apex_jax.commands.predict",
        summary="say the most likely classes of sound files",
        config="Predict",
    ),
    "explain": Command(
        module="apex_jax.commands.explain",
        summary="explain sound files as an HTML page to look at and listen to",
        config="Explain",
    ),
    "evaluate": Command(
        module="apex_jax.commands.evaluate",
        summary="test the classifier, with regions hidden too",
        config="Evaluate",
    ),
    "figure": Command(
        module="apex_jax.commands.figure",
        summary="draw the figures of the paper",
        config="Figure",
    ),
    "convert": Command(
        module="apex_jax.convert",
        summary="turn weights of torch into a checkpoint",
        config="Convert",
        options="apex_jax.convert",
    ),
}


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs a command.

    Args:
      arguments: without the program's name; None for the process's own.

    Returns:
      The exit status.
    """
    if isinstance(sys.stdout, io.TextIOWrapper):
        # A file may have a name that is no text; it can be named nevertheless.
        sys.stdout.reconfigure(errors="backslashreplace")
    given = sys.argv[1:] if arguments is None else arguments
    name, *rest = list(given) or ["--help"]
    if name in ("-h", "--help"):
        return _say(_usage())
    if name == "--version":
        import apex_jax

        return _say(f"apex-jax {apex_jax.__version__}")
    if name not in COMMANDS:
        return _fail(f"no command {name!r}; there are {', '.join(COMMANDS)}", 2)
    try:
        return _run(name, rest)
    except BrokenPipeError:
        # Whoever read along has read enough, as `head` does; say no more.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except (ValueError, OSError, ImportError) as error:
        return _fail(f"{name}: {error}", 1)
    except KeyboardInterrupt:
        status = _fail(f"{name}: interrupted", 130)
        if arguments is None:
            # Devices and readers may be at work still: when the interpreter is taken
            # down beneath them, they crash.
            sys.stdout.flush()
            os._exit(status)
        return status


def _run(name: str, arguments: list[str]) -> int:
    import tyro

    command = COMMANDS[name]
    config = tyro.cli(
        getattr(importlib.import_module(command.options), command.config),
        prog=f"apex-jax {name}",
        args=arguments,
        config=(tyro.conf.DisallowNone,),
    )
    from apex_jax import compilation, hosts

    compilation.keep()
    hosts.connect(getattr(config, "hosts", hosts.Config()))
    summary = importlib.import_module(command.module).main(config)
    hosts.barrier("end")
    return _say(summary) if isinstance(summary, str) else 0


def _usage() -> str:
    lines = [
        "usage: apex-jax COMMAND [OPTIONS]",
        "",
        "Explains trained audio classifiers by prototypes (APEX).",
        "",
        *(f"  {name:10}{command.summary}" for name, command in COMMANDS.items()),
        "",
        "apex-jax COMMAND --help lists a command's options. With a folder of sounds,",
        "one folder a class, and no trained classifier:",
        "",
        "  apex-jax train --data sounds --out runs/classifier",
        "  apex-jax fit --data sounds --weights runs/classifier --out runs/apex",
        "  apex-jax explain some.wav --run runs/apex",
    ]
    return "\n".join(lines)


def _say(text: str) -> int:
    print(escape.readable(text, breaks=True))  # noqa: T201
    return 0


def _fail(message: str, status: int) -> int:
    # It may quote a name, which may hold what a terminal takes for a command.
    print(escape.readable(f"apex-jax {message}"), file=sys.stderr)  # noqa: T201
    return status
