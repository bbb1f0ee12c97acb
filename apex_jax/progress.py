"""How long things take: bars with rates while a stage runs, seconds a stage after."""

from __future__ import annotations

import contextlib
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import jax
import tqdm

from apex_jax import compilation

# Called with the number of items done since the last call.
OnProgress = Callable[[int], None]


def silent(done: int) -> None:
    """An `OnProgress` that shows nothing: the library's default."""


class Bar:
    """An `OnProgress` that is shown."""

    def __init__(self, shown: tqdm.tqdm):
        self._shown = shown

    def __call__(self, done: int) -> None:
        """So many more are done."""
        self._shown.update(done)

    def note(self, text: str) -> None:
        """What the bar is to end with from now on."""
        self._shown.set_postfix_str(text, refresh=False)


@contextlib.contextmanager
def bar(label: str, total: int, unit: str) -> Iterator[Bar]:
    """A bar on stderr with rate and time left; nothing if done within a second.

    Of several processes only the first shows one.
    """
    # A log file gets a line now and then, not ten a second.
    interval = 0.1 if sys.stderr.isatty() else 10.0
    with tqdm.tqdm(
        desc=label,
        total=total,
        unit=" " + unit,
        delay=1.0,
        mininterval=interval,
        dynamic_ncols=True,
        leave=True,
        disable=jax.process_index() > 0,
    ) as shown:
        yield Bar(shown)


class Stages:
    """Wall-clock seconds of the named stages of a run.

    Attributes:
      seconds: by stage, in the order in which they first ran.
      compile_seconds: how much of each went into compiling.
    """

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}
        self.compile_seconds: dict[str, float] = {}

    @contextlib.contextmanager
    def __call__(self, name: str) -> Iterator[None]:
        """Adds the time of the `with` block to stage `name`."""
        start, compiled = time.perf_counter(), compilation.clock.seconds
        try:
            yield
        finally:
            for times, spent in (
                (self.seconds, time.perf_counter() - start),
                (self.compile_seconds, compilation.clock.seconds - compiled),
            ):
                times[name] = times.get(name, 0.0) + spent

    def to_dict(self) -> dict[str, dict[str, float]]:
        """As `results.json` has them, in hundredths of a second."""
        return {
            "seconds": {name: round(s, 2) for name, s in self.seconds.items()},
            "compile_seconds": {
                name: round(s, 2) for name, s in self.compile_seconds.items()
            },
        }


def in_words(times: Mapping[str, Any]) -> str:
    """What `Stages.to_dict` gives on a line, `train 31, fit 4; compiling 12 of it`."""
    parts = [f"{name} {seconds:.0f}" for name, seconds in times["seconds"].items()]
    compiling = sum(times["compile_seconds"].values())
    return ", ".join(parts) + f"; compiling {compiling:.0f} of it"
