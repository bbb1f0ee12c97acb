r"""A copy of WaveFake or BirdSet as a TFDS data set of array_records.

    python -m experiments.package wavefake --data-dir WaveFake --output packaged
    python -m experiments.package birdset --data-dir BirdSet --labels ebird_codes \
        --subset HSN --output packaged

Needs the extra `tfds`, and no TensorFlow. `experiments.packaged.read` opens what was
written, as does `tfds.builder_from_directory`.
"""

from __future__ import annotations

import dataclasses
from pathlib import Path

import tyro

from experiments import command


@dataclasses.dataclass(frozen=True, kw_only=True)
class Wavefake:
    """Packages a copy of WaveFake, with the paper's splits."""

    data_dir: Path
    """The copy, or what experiments.vocode wrote."""
    output: Path
    """Where data sets lie; this one gets a folder in it."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Birdset:
    """Packages a subset of BirdSet."""

    data_dir: Path
    """The copy, in any of its layouts."""
    labels: Path
    """BirdSet's class lists, NAME_ebird_codes.json."""
    subset: str
    """Which, as HSN or XCM."""
    output: Path
    """Where data sets lie; this one gets a folder in it."""
    class_limit: int | None = None
    """As in experiments.birdset, whose 500 keep XCL at some 270 GB; by default all
    events."""
    event_limit: int | None = None
    """As there."""


def main(config: Wavefake | Birdset) -> Path:
    """Writes the data set and returns its folder."""
    try:
        from experiments import packaged
    except ImportError as error:
        raise ValueError(f"{error}; pip install -e '.[tfds]' brings it") from error

    place = {"file_format": "array_record"}
    if isinstance(config, Birdset):
        builder = packaged.BirdSet(
            copy=config.data_dir,
            labels=config.labels,
            subset=config.subset,
            class_limit=config.class_limit,
            event_limit=config.event_limit,
            data_dir=str(config.output / config.subset),
            **place,
        )
    else:
        builder = packaged.WaveFake(
            copy=config.data_dir, data_dir=str(config.output), **place
        )
    for split, number in packaged.write(builder).items():
        print(f"{split:12}{number:>9,} examples")
    if isinstance(builder, packaged.BirdSet) and len(builder.skip_log):
        skipped = config.output / f"{builder._subset}-skipped.csv"
        builder.skip_log.write_csv(skipped)
        print(f"skipped     {len(builder.skip_log):>9,} sounds, listed in {skipped}")
    print(f"written to  {builder.data_path}")
    return Path(builder.data_path)


if __name__ == "__main__":
    asked = tyro.extras.subcommand_cli_from_dict(
        {"wavefake": Wavefake, "birdset": Birdset},
        prog="python -m experiments.package",
    )
    with command.ending():
        main(asked)
