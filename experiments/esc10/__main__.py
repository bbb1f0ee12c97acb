"""APEX on ESC-10: environmental sounds, cross-validated over the five folds.

    python -m experiments.esc10 --data-dir ESC-10

For each fold a ConvNeXt is trained from scratch on the other four, an AudioProtoPNet on
it, and U under each of the four schemes; the fold tests all three methods, and the
regions that APEX points at are hidden, and random ones. A finished fold is not done
again. What published networks reach, and ours: docs/results.md.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from experiments import command
from experiments.esc10 import options

HELP = """ConvNeXt, AudioProtoPNet and APEX on ESC-10, fold by fold.

The data: https://github.com/karolpiczak/ESC-10 (CC BY), one folder a class."""


def choose(config: options.Config) -> Callable[[options.Config], Any]:
    """What the options ask for."""
    from experiments.esc10 import run

    return run.main


if __name__ == "__main__":
    command.run(options.Config, "experiments.esc10", HELP, choose)
