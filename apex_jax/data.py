"""Which clips there are, which split they fall in, and batches of them.

Second step of the flow: from a folder of sound files to `Clip`s, and from clips to
waveforms `[batch, sample]` of a fixed shape, read by grain's threads on the host. A
file that cannot be read is noted in a `SkipLog` and marked invalid, not fatal.
"""

from __future__ import annotations

import contextlib
import csv
import dataclasses
import functools
import io
import math
import sys
import threading
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from apex_jax import atomic, audio, hosts

# Waveforms that wait to be used: so many batches of them, at most so many bytes.
AHEAD_BATCHES = 4
AHEAD_BYTES = 2 * 2**30
Batch = dict[str, np.ndarray]
Example = dict[str, Any]

# Endings of libsndfile's formats that differ from the format's name. RAW is left
# out: it has no header to tell the sample rate.
_OTHER_ENDINGS = {"aif", "aifc", "oga", "opus", "snd", "wave"}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Clip:
    """A stretch of a sound file and its class; `FrontEnd.clip_s` is its length.

    Attributes:
      path: the file.
      label: index of the class; for a classifier that gives a clip several classes,
        or none, a tuple of indices.
      offset_s: where the clip starts, in seconds.
      group: clips of one group, such as the same sentence in several voices, never
        fall in different splits. Empty: the file's name without its ending.
      within: where a random crop is taken from, start and end in seconds; None: the
        whole file.
    """

    path: Path | str
    label: int | tuple[int, ...]
    offset_s: audio.Real = 0.0
    group: str = ""
    within: tuple[float, float] | None = None

    def __post_init__(self):
        if not self.group:
            object.__setattr__(self, "group", Path(self.path).stem)

    @property
    def labels(self) -> tuple[int, ...]:
        """Indices of its classes: one, or as many as a tuple says."""
        return self.label if isinstance(self.label, tuple) else (self.label,)

    @property
    def id(self) -> str:
        """`folder/name@offset`: names alone repeat from class to class."""
        path = Path(self.path)
        return f"{path.parent.name}/{path.name}@{self.offset_s:.3f}"


class SkipLog:
    """Files that could not be used and why, once each; safe among threads.

    Attributes:
      strict: `add` raises instead.
    """

    def __init__(self, *, strict: bool = False):
        self.strict = strict
        self._reasons: dict[str, str] = {}
        self._lock = threading.Lock()

    def __len__(self) -> int:
        return len(self._reasons)

    def add(self, error: audio.AudioError) -> None:
        """Notes the file and the reason, or raises `error` if strict."""
        if self.strict:
            raise error
        with self._lock:
            self._reasons.setdefault(str(error.path), error.reason)

    def share(self) -> None:
        """Tells every process what the others noted; all of them have to call it."""
        for entries in hosts.collect(self.entries()):
            with self._lock:
                for path, reason in entries:
                    self._reasons.setdefault(path, reason)

    def entries(self) -> list[tuple[str, str]]:
        """`(path, reason)` in the order of the paths."""
        with self._lock:
            return sorted(self._reasons.items())

    def read_csv(self, path: str | Path) -> None:
        """Adds what an earlier, interrupted run had written; of no file, nothing."""
        if not Path(path).exists():
            return
        with Path(path).open(
            newline="", encoding="utf-8", errors="surrogateescape"
        ) as file:
            _, *entries = csv.reader(file)
        with self._lock:
            for name, reason in entries:
                self._reasons.setdefault(name, reason)

    def write_csv(self, path: str | Path) -> None:
        """Writes the entries under the header `path,reason`."""
        lines = io.StringIO(newline="")
        csv.writer(lines).writerows([("path", "reason"), *self.entries()])
        atomic.write_text(path, lines.getvalue())


class Splits(NamedTuple):
    """Three lists of clips that share no group."""

    train: list[Clip]
    validation: list[Clip]
    test: list[Clip]


def endings() -> frozenset[str]:
    """Endings of the sound files libsndfile reads, lower case, without the dot."""
    import soundfile

    formats = {name.lower() for name in soundfile.available_formats()}
    return frozenset(formats | _OTHER_ENDINGS) - {"raw"}


def sounds_in(folder: Path) -> list[Path]:
    """The sound files in a folder at any depth, sorted.

    Names that start with a dot are passed over.
    """
    known = endings()
    return [
        path
        for path in sorted(folder.rglob("*"))
        if path.suffix[1:].lower() in known
        and not any(p.startswith(".") for p in path.relative_to(folder).parts)
        and path.is_file()
    ]


def class_folder(root: str | Path) -> tuple[list[Clip], tuple[str, ...]]:
    """The clips of a folder with one folder a class, `root/CLASS/**/FILE`.

    Args:
      root: the folder. Names that start with a dot are passed over at any depth.

    Returns:
      One clip a file, by class and then by path, and the sorted class names.

    Raises:
      ValueError: no such folder, no class folders, or one without a sound file.
    """
    root = Path(root)
    if not root.is_dir():
        raise ValueError(f"class_folder: root={str(root)!r} is not a folder")
    visible = [p for p in root.iterdir() if not p.name.startswith(".")]
    folders = sorted(p for p in visible if p.is_dir())
    if not folders:
        raise ValueError(
            f"class_folder: root={str(root)!r} has no class folders; expected one "
            "folder a class with its sound files inside, root/CLASS/FILE"
        )
    clips = []
    for label, folder in enumerate(folders):
        files = sounds_in(folder)
        if not files:
            known = ", ".join(sorted(endings()))
            raise ValueError(
                f"class_folder: {str(folder)!r} has no sound file; expected "
                f"{known}. Fill it or move it out of {str(root)!r}"
            )
        clips += [Clip(path=path, label=label) for path in files]
    return clips, tuple(folder.name for folder in folders)


def windows(
    clips: Sequence[Clip],
    front_end: audio.FrontEnd,
    *,
    max_windows: int,
    skip_log: SkipLog,
) -> list[Clip]:
    """Cuts each file into consecutive clips of `clip_s`, reading headers only.

    A last stretch is kept if it is at least half a clip long; a file gives one clip
    at least. Each keeps its file's group.

    Args:
      clips: one a file; cutting starts at `offset_s`.
      front_end: for the length of a clip.
      max_windows: clips a file, at most.
      skip_log: takes the files whose header cannot be read.
    """
    if max_windows < 1:
        raise ValueError(f"windows: max_windows={max_windows}; it must be at least 1")
    cut = []
    for clip in clips:
        try:
            left_s = audio.duration(clip.path) - clip.offset_s
        except audio.AudioError as error:
            skip_log.add(error)
            continue
        # In samples: the quotient of two lengths in seconds may miss a half.
        left, length = round(left_s * front_end.sample_rate), front_end.num_samples
        count = min(max_windows, max(1, (2 * left + length) // (2 * length)))
        cut += [
            dataclasses.replace(clip, offset_s=clip.offset_s + i * front_end.clip_s)
            for i in range(count)
        ]
    return cut


def batches(
    clips: Sequence[Clip],
    front_end: audio.FrontEnd,
    *,
    batch_size: int,
    skip_log: SkipLog,
    seed: int | None = None,
    random_crop: bool = False,
    num_epochs: int | None = 1,
    num_threads: int | None = None,
    start: int = 0,
    part: tuple[int, int] = (0, 1),
) -> Iterator[Batch]:
    """Batches of one shape, in an order that depends on the arguments alone.

    Each epoch has `ceil(len(clips) / batch_size)` batches; the last is padded.

    Args:
      clips: what to read.
      front_end: for the sample rate and the length.
      batch_size: clips a batch, valid or not.
      skip_log: takes the files that cannot be read; if strict, they raise.
      seed: shuffles, anew each epoch; None: in the order of `clips`.
      random_crop: a random stretch of the file each time instead of the one at
        `offset_s`; only that stretch is decoded. Needs `seed`.
      num_epochs: how often each clip comes; None: without end.
      num_threads: that read ahead, clip by clip; 0: none, the caller's reads; None:
        one for each core that this process may use. Clips that wait are at most
        `AHEAD_BATCHES` batches, or one a thread, and `AHEAD_BYTES`.
      start: number of batches to leave out, to go on after an interruption.
      part: number and count of consecutive parts of each batch: only this one is read
        and given, and together they are the whole. They must divide the batch.

    Yields:
      `waveform [batch, sample]` float32, `index [batch]` int32 into `clips`,
      `valid [batch]` bool. A clip that could not be read is zeros and not valid;
      padding has, besides, index -1.
    """
    if not len(clips):
        raise ValueError("batches: clips is empty; expected at least one clip")
    if batch_size < 1:
        raise ValueError(f"batches: batch_size={batch_size}; it must be at least 1")
    if num_epochs is not None and num_epochs < 1:
        raise ValueError(f"batches: num_epochs={num_epochs}; at least 1, or None")
    num_threads = hosts.cores() if num_threads is None else num_threads
    if start < 0 or num_threads < 0:
        raise ValueError(
            f"batches: start={start}, num_threads={num_threads}; at least 0"
        )
    if seed is not None and not 0 <= seed < 2**32:
        raise ValueError(f"batches: seed={seed}; it must be in [0, 2**32)")
    if random_crop and seed is None:
        raise ValueError("batches: random_crop=True needs a seed")

    number, parts = part
    if not 0 <= number < parts or batch_size % parts:
        raise ValueError(
            f"batches: part={part}; it must be one of as many as divide the batch of "
            f"{batch_size}"
        )
    size = batch_size // parts
    own = slice(number * size, (number + 1) * size)

    dtypes = {"waveform": "f4", "index": "i4", "valid": "?"}
    silence = np.zeros(front_end.num_samples, np.float32)
    clips_ahead = min(
        max(AHEAD_BATCHES * size, num_threads), max(1, AHEAD_BYTES // silence.nbytes)
    )

    def example(index: int, at: float | None) -> Example:
        nothing = {"waveform": silence, "index": index, "valid": False, "error": None}
        if index < 0:
            return nothing
        clip = clips[index]
        try:
            offset_s = clip.offset_s
            if at is not None:
                first_s, end_s = clip.within or (0.0, math.inf)
                end_s = min(end_s, audio.duration(clip.path))
                offset_s = first_s + at * max(0, end_s - front_end.clip_s - first_s)
            waveform = audio.load_clip(clip.path, front_end, offset_s)
        except audio.AudioError as error:
            return {**nothing, "error": error}
        return {**nothing, "waveform": waveform, "valid": True}

    def own_part(
        indices: Sequence[int], rng: np.random.Generator | None = None
    ) -> list[tuple[int, float | None]]:
        """What `example` is asked for a batch."""
        # Drawn for the whole batch: what a clip gets does not depend on who reads it.
        places = [None] * batch_size if rng is None else rng.random(batch_size)
        asked = list(zip(indices[own], places[own], strict=False))
        return asked + [(-1, None)] * (size - len(asked))

    def stack(examples: Sequence[Example]) -> Batch:
        # Here, where clips come in their order, and not where threads race: of a file
        # that is read several times the first reason is kept.
        for one in examples:
            if one["error"] is not None:
                skip_log.add(one["error"])
        return {
            key: np.array([example[key] for example in examples], dtype)
            for key, dtype in dtypes.items()
        }

    def read() -> Iterator[Batch]:
        import grain

        plan = grain.MapDataset.source(range(len(clips)))
        if seed is not None:
            plan = plan.seed(seed).shuffle()
        plan = plan.batch(batch_size, batch_fn=list)
        plan = plan.random_map(own_part) if random_crop else plan.map(own_part)
        plan = plan.repeat(num_epochs)

        # Every clip of a batch looks into the batch's plan, which is made once. One
        # thread at a time: grain's data sets finish themselves when first looked at.
        planned = functools.lru_cache(clips_ahead // size + 2)(plan.__getitem__)
        lock = threading.Lock()

        def read_one(number: int) -> Example:
            with lock:
                asked = planned(number // size)
            return example(*asked[number % size])

        # Clips are read one by one and then batched: a whole batch to a thread would
        # let the device wait for the first one, and for each that has slow files.
        every = range(min(len(plan), sys.maxsize // size) * size)
        dataset = grain.MapDataset.source(every).map(read_one)
        options = grain.ReadOptions(
            num_threads=num_threads, prefetch_buffer_size=clips_ahead
        )
        reader = iter(dataset.to_iter_dataset(options).batch(size, batch_fn=stack))
        reader.set_state({"next_index": start * size})
        # Whoever stops early leaves no thread reading on.
        with contextlib.closing(reader):
            yield from reader

    # Not itself a generator, so that wrong arguments raise here and not later.
    return read()
