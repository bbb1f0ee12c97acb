"""A command, or the experiment, with the smallest network: what several hosts run.

`commands_program.py COMMAND ...` for `apex-jax COMMAND ...`, `commands_program.py
wavefake ...` for `python -m experiments.wavefake ...`.
"""

import sys

from apex_jax import cli
from apex_jax.models import convnext

# The published sizes take minutes to compile on many virtual devices.
convnext._SIZES["atto"] = ((1,), (12,))


def main(arguments):
    """The exit status."""
    if arguments[0] != "wavefake":
        return cli.main(arguments)
    from experiments.wavefake import __main__ as wavefake

    sys.argv = ["wavefake", *arguments[1:]]
    wavefake.cli()
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
