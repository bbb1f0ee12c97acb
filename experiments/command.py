"""The command line of an experiment: a clear line instead of a traceback."""

from __future__ import annotations

import contextlib
import functools
import sys
from collections.abc import Callable, Iterator
from typing import Any, TypeVar

import tyro

from apex_jax import escape
from experiments import options

Config = TypeVar("Config", bound=options.Common)

# Packages that not everybody needs, and the extra that brings them.
_EXTRAS = {
    "pyarrow": "birdset",
    "tensorflow_datasets": "tfds",
    "safetensors": "convert",
}


def run(
    config_type: type[Config],
    name: str,
    description: str,
    choose: Callable[[Config], Callable[[Config], Any]],
    usual: Callable[[Config], Config] | None = None,
) -> None:
    """Parses the arguments, joins the other processes, runs; ends with its status.

    Args:
      config_type: what can be asked.
      name: the module that `python -m` runs.
      description: of the help text.
      choose: gives the function that does what is asked; imports it only then.
      usual: what options that are not given are, where one decides on the others.
    """
    parse = functools.partial(
        tyro.cli, prog=f"python -m {name}", description=description
    )
    config = parse(config_type)
    if usual is not None:
        config = parse(config_type, default=usual(config))
    with ending():
        config.check_given()
        # Not before: whoever asks for help, or mistypes, need not wait for JAX.
        from apex_jax import compilation, hosts

        compilation.keep()
        hosts.connect(config.hosts)
        choose(config)(config)
        hosts.barrier("end")


@contextlib.contextmanager
def ending() -> Iterator[None]:
    """Ends the process with a line and a status where a user caused an error."""
    try:
        yield
    except (ValueError, OSError) as error:
        sys.exit(escape.readable(f"error: {error}"))
    except ModuleNotFoundError as error:
        if error.name not in _EXTRAS:
            raise
        extra = _EXTRAS[error.name]
        sys.exit(f"error: {error.name} is missing: pip install 'apex-jax[{extra}]'")
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        sys.exit(130)  # 128 and the signal's number, as shells have it
