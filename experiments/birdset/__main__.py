r"""APEX on BirdSet: birds in soundscapes (the paper's Tables 3 and 4).

    python -m experiments.birdset --table 3 --data-dir BirdSet --labels ebird_codes \
        --model base --pretrained IMAGENET --background BirdSet/dcase18
    python -m experiments.birdset --table 4 --data-dir BirdSet --labels ebird_codes \
        --weights runs/birdset-table3/classifier

Table 3 trains a ConvNeXt on XCL (or takes `--weights`) and an AudioProtoPNet on it,
learns U on XCM, and tests all three on the eight soundscapes, each restricted to its
own birds. Table 4 hides APEX's regions, and random ones, on SNE under all four schemes.
What is finished is not done again. Without a copy of BirdSet,
`python -m experiments.birdset.make_copy` makes a small one of any folder of sounds.
What that takes in time, memory and disk: docs/scaling.md; results: docs/results.md.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from experiments import command
from experiments.birdset import options

HELP = """ConvNeXt, AudioProtoPNet and APEX on BirdSet.

The data: https://huggingface.co/datasets/DBD-research-group/BirdSet, branch data."""


def choose(config: options.Config) -> Callable[[options.Config], Any]:
    """What the options ask for."""
    from experiments.birdset import table3, table4

    return {"3": table3, "4": table4}[config.table].main


if __name__ == "__main__":
    command.run(options.Config, "experiments.birdset", HELP, choose)
