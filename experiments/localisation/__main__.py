"""Do explanations point at the truth? Who finds an event planted at a known place.

    python -m experiments.localisation --speech fsdd/recordings --sounds ESC-10

Makes clips in half of which an event is planted, trains a ConvNeXt to tell them apart,
and scores where APEX, the raw channels, CAM, Grad-CAM, LIME and random regions point,
with intervals over clips and seeds. How to read the table: docs/truth.md.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from experiments import command
from experiments.localisation import options

HELP = """Whether explanations point at an event that was planted.

Without --speech the clips are synthetic babble. The real data are FSDD,
https://github.com/Jakobovski/free-spoken-digit-dataset, and ESC-10,
https://github.com/karolpiczak/ESC-10."""


def choose(config: options.Config) -> Callable[[options.Config], Any]:
    """What the options ask for."""
    from experiments.localisation import run

    return run.main


if __name__ == "__main__":
    command.run(options.Config, "experiments.localisation", HELP, choose)
