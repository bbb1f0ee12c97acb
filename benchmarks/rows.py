"""A row of the table: what was measured, its floor, its goal.

Goals are those of the project's budgets (docs/performance.md); they hold at the
paper's size, so smaller runs have none.
"""

from __future__ import annotations

import dataclasses
from typing import Any, Literal

from benchmarks import timing


@dataclasses.dataclass(frozen=True, kw_only=True)
class Goal:
    """What a row should stay under.

    Attributes:
      at_most: the limit.
      of: "ratio", of the row to its floor, or "seconds" a unit.
    """

    at_most: float
    of: Literal["ratio", "seconds"] = "ratio"

    def __str__(self) -> str:
        return f"{self.at_most:g}{' s' if self.of == 'seconds' else ' x'}"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Row:
    """One measurement beside its floor.

    Attributes:
      name: of the stage, as `--only` takes it.
      what: the measurement in words.
      unit: what `seconds` is per.
      seconds: median.
      compile_s: tracing, compiling and loading in the first call; 0 where an earlier
        row had compiled the same.
      floor: what it is compared to, in words.
      floor_seconds: median, per the same unit.
      ratio: to the floor, turn by turn.
      goal: None where there is none.
      details: further numbers by name.
      note: what a reader must know to trust the row.
    """

    name: str
    what: str
    unit: str
    seconds: float
    compile_s: float
    floor: str
    floor_seconds: float
    ratio: timing.Ratio
    goal: Goal | None = None
    details: dict[str, Any] = dataclasses.field(default_factory=dict)
    note: str = ""

    @property
    def met(self) -> bool | None:
        """Whether the goal is met; None without one."""
        if self.goal is None:
            return None
        reached = self.ratio.median if self.goal.of == "ratio" else self.seconds
        return reached <= self.goal.at_most

    def to_dict(self) -> dict[str, Any]:
        """For JSON, with throughput and whether the goal is met."""
        return dataclasses.asdict(self) | {
            "per_second": 1 / self.seconds,
            "met": self.met,
        }


def between(
    name: str,
    what: str,
    ours: timing.Timing,
    floor: timing.Timing,
    *,
    unit: str,
    floor_is: str,
    per_call: float = 1.0,
    goal: Goal | None = None,
    details: dict[str, Any] | None = None,
    note: str = "",
) -> Row:
    """The row of two timings that alternated.

    Args:
      name: as in `Row`, like the other arguments that are not below.
      what: see there.
      ours: of the measurement.
      floor: of what it is compared to.
      unit: see there.
      floor_is: the floor in words.
      per_call: units in one call of either.
      goal: see there.
      details: see there.
      note: see there.
    """
    return Row(
        name=name,
        what=what,
        unit=unit,
        seconds=ours.median_s / per_call,
        compile_s=ours.compile_s,
        floor=floor_is,
        floor_seconds=floor.median_s / per_call,
        ratio=timing.ratio(ours, floor),
        goal=goal,
        details={"turns": len(ours.turns_s)} | (details or {}),
        note=note,
    )


def from_dict(values: dict[str, Any]) -> Row:
    """The inverse of `Row.to_dict`."""
    fields = {f.name for f in dataclasses.fields(Row)}
    known = {key: value for key, value in values.items() if key in fields}
    goal = known["goal"]
    return Row(
        **known
        | {
            "ratio": timing.Ratio(**known["ratio"]),
            "goal": None if goal is None else Goal(**goal),
        }
    )
