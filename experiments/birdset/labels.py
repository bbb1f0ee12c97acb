"""Which class is which output: BirdSet's lists of eBird codes.

A list is a JSON file of BirdSet's repository, `resources/ebird_codes/NAME_ebird_codes.
json`, with `label2id`. Their order is that of the published networks' outputs and
differs from list to list, so nothing here relies on the order of rows or on sorting.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

SOURCE = "https://github.com/DBD-research-group/BirdSet, resources/ebird_codes"


def read(folder: Path, name: str) -> tuple[str, ...]:
    """The eBird codes of a list, in the order of the outputs.

    Args:
      folder: where the lists lie.
      name: of the list, as XCM or HSN.

    Raises:
      ValueError: there is no such list, or it numbers its codes otherwise than from 0.
    """
    for file in (folder / f"{name}_ebird_codes.json", folder / f"{name}.json"):
        if file.exists():
            break
    else:
        raise ValueError(
            f"--labels {folder} has no {name}_ebird_codes.json; the lists are in "
            f"{SOURCE}"
        )
    try:
        numbers = json.loads(file.read_text(encoding="utf-8"))["label2id"]
        names = sorted(numbers, key=lambda code: int(numbers[code]))
        in_order = [int(numbers[code]) for code in names] == list(range(len(names)))
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{file} is no list of BirdSet's ({error!r})") from error
    if not (names and in_order):
        raise ValueError(f"{file}: label2id must number its codes from 0 without gaps")
    return tuple(names)


def positions(names: Sequence[str], wanted: Sequence[str], what: str) -> list[int]:
    """Where each of the wanted classes is among a network's.

    Args:
      names: the network's.
      wanted: those of a test set.
      what: the test set, for the message.

    Raises:
      ValueError: the network lacks one.
    """
    at = {name: i for i, name in enumerate(names)}
    if lacking := [name for name in wanted if name not in at]:
        raise ValueError(
            f"the classifier has no class {', '.join(lacking[:5])}"
            f"{', ...' * (len(lacking) > 5)} of {what}'s {len(wanted)}"
        )
    return [at[name] for name in wanted]
