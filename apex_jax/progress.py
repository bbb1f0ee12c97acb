"""How long things take: bars with rates while a stage runs, seconds a stage after."""

from __future__ import annotations

import contextlib
import sys
import time
from collections.abc import Callable, Iterator

import tqdm

# Called with the number of items done since the last call.
OnProgress = Callable[[int], None]


def silent(done: int) -> None:
    """An `OnProgress` that shows nothing: the library's default."""


@contextlib.contextmanager
def bar(label: str, total: int, unit: str) -> Iterator[OnProgress]:
    """A bar on stderr with rate and time left; nothing if done within a second."""
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
    ) as shown:
        yield shown.update


class Stages:
    """Wall-clock seconds of the named stages of a run.

    Attributes:
      seconds: by stage, in the order in which they first ran.
    """

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}

    @contextlib.contextmanager
    def __call__(self, name: str) -> Iterator[None]:
        """Adds the time of the `with` block to stage `name`."""
        start = time.perf_counter()
        try:
            yield
        finally:
            spent = time.perf_counter() - start
            self.seconds[name] = self.seconds.get(name, 0.0) + spent
