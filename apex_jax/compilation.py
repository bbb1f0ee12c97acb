"""Compiled programs: kept from one run to the next, and their time told apart.

Compiling is what a short run spends most of its time on. The commands and experiments
keep what XLA compiled in a folder of the user's; the library itself leaves that to its
caller, as it does every global setting of JAX.
"""

from __future__ import annotations

import os
import threading
import time
import warnings
from pathlib import Path

import jax
import platformdirs

MAX_BYTES = 2 * 1024**3

# What JAX reports on the way from a Python function to a program that can run; a
# program found in the folder reports how long loading it took as the last of these.
_EVENTS = frozenset(
    (
        "/jax/core/compile/jaxpr_trace_duration",
        "/jax/core/compile/jaxpr_to_mlir_module_duration",
        "/jax/core/compile/backend_compile_duration",
    )
)


def keep() -> Path | None:
    """Keeps compiled programs on disk, so that a second run need not compile them.

    The programs of other versions of JAX, other processors and other shapes lie beside
    each other under different names; the longest unused go when the folder exceeds
    2 GiB. Loading a program runs it: the folder is the user's own, and closed to
    others.

    Returns:
      The folder: what `JAX_COMPILATION_CACHE_DIR` names, or else one among the user's
      caches. None where that cannot be written, or where others may write to it; then
      every run compiles.
    """
    # Small ones too: a run holds some hundred, and they add up to seconds.
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
    chosen = jax.config.jax_compilation_cache_dir  # type: ignore[attr-defined]
    if chosen:
        return Path(chosen)
    folder = Path(platformdirs.user_cache_dir("apex_jax")) / "compiled"
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    except OSError:
        return None
    # A program found there is run: nobody else may have put it there.
    found = folder.stat()
    own = not hasattr(os, "getuid") or found.st_uid == os.getuid()
    if not own or found.st_mode & 0o022:
        warnings.warn(
            f"compiled programs are not kept: {folder} is not the user's alone; "
            "chmod 700 it, or remove it",
            stacklevel=2,
        )
        return None
    if not os.access(folder, os.R_OK | os.W_OK | os.X_OK):
        return None
    jax.config.update("jax_compilation_cache_dir", str(folder))
    jax.config.update("jax_compilation_cache_max_size", MAX_BYTES)
    return folder


class Clock:
    """Seconds that this process has spent tracing, compiling and loading programs.

    Spans within one another count once. One a process: `clock`.
    """

    def __init__(self) -> None:
        self._spans: list[tuple[float, float]] = []
        self._lock = threading.Lock()

    @property
    def seconds(self) -> float:
        """Since the module was imported."""
        with self._lock:
            return sum((end - start for start, end in self._spans), 0.0)

    def add(self, event: str, duration_secs: float, **_: str | int) -> None:
        """Called by JAX when something took this many seconds until now."""
        if event not in _EVENTS:
            return
        end = time.perf_counter()
        start = end - duration_secs
        with self._lock:
            # Tracing a function traces those that it calls; they have reported first.
            while self._spans and self._spans[-1][0] >= start:
                self._spans.pop()
            self._spans.append((start, end))


clock = Clock()
jax.monitoring.register_event_duration_secs_listener(clock.add)
