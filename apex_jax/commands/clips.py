"""The clips that a command works on.

Those that a run was made from, read again as its settings say: what `apex-jax evaluate`
tests on and `apex-jax figure` looks through. An experiment's run says other things: its
networks bring a manifest of what they were trained on. And windows of the sound files
that are named to `apex-jax explain` and `apex-jax predict`.
"""

from __future__ import annotations

import math
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Literal

from apex_jax import audio, data, dataset, look, runs
from apex_jax import classifier as classifier_lib

LISTED = "clips.csv"  # in a network's training folder: what it was trained on
Split = Literal["train", "validation", "test", "all"]
Window = tuple[Path, float]  # a file, and where in it a clip starts, in seconds


def settings_of(run: Path) -> dict[str, Any]:
    """Of a run of `apex-jax fit`; of any other none."""
    made = runs.read_json(run.expanduser() / "config.json") or {}
    return made if made.get("command") == "fit" else {}


def of_run(
    source: Path | str,
    made: dict[str, Any],
    classifier: classifier_lib.Classifier,
    front_end: audio.FrontEnd,
    split: Split,
    skip_log: data.SkipLog,
) -> Sequence[data.Clip]:
    """A split's clips, cut as a run's were.

    Args:
      source: a folder with one folder a class, or a manifest.
      made: the run's settings, how it split and cut clips among them.
      classifier: whose classes labels count.
      front_end: for the length of a clip.
      split: which.
      skip_log: takes the files that cannot be read.

    Raises:
      ValueError: no such clips, or see `dataset.read`.
    """
    found = dataset.read(
        source,
        class_names=classifier.class_names,
        activation=classifier.activation,
        shares=dataset.Shares(**made.get("split", {})),
        skip_log=skip_log,
    )
    runs.report("data", str(found), *found.notes)
    if split == "all":
        clips = [clip for part in found.clips for clip in part]
    else:
        clips = getattr(found.clips, split)
    if not clips:
        raise ValueError(
            f"{source} has no {split} clips: {found}; name another --split"
        )
    if (most := made.get("windows_per_file", 1)) > 1:
        clips = data.windows(clips, front_end, max_windows=most, skip_log=skip_log)
    return clips


def trained_on(
    network: Path,
    class_names: Sequence[str],
    skip_log: data.SkipLog,
) -> Sequence[data.Clip] | None:
    """The training clips that an experiment listed beside its network; None where not.

    Args:
      network: its folder.
      class_names: the network's, which labels count.
      skip_log: takes the files that are gone.
    """
    listed = network.with_name(network.name + runs.TRAINING) / LISTED
    if not listed.exists():
        return None
    return dataset.read(listed, class_names=class_names, skip_log=skip_log).clips.train


def files(paths: Sequence[Path]) -> Iterator[Path]:
    """The files named, and the sound files of the folders named, each once.

    Raises:
      ValueError: a folder holds none.
    """
    seen = set[str]()
    for path in paths:
        path = path.expanduser()
        inside = data.sounds_in(path) if path.is_dir() else [path]
        if not inside:
            raise ValueError(f"{path} holds no sound file")
        for file in inside:
            # Not `resolve`, which has no answer to links in a circle.
            place = os.path.realpath(file)
            if place not in seen:
                seen.add(place)
                yield file


def check_hop(hop_s: float | None) -> None:
    """Raises ValueError for what is no time from one window to the next."""
    if hop_s is not None and not 0 < hop_s < math.inf:
        raise ValueError(f"--hop-s must be positive seconds; got {hop_s:g}")


def windows(
    files: Sequence[Path],
    front_end: audio.FrontEnd,
    skip_log: data.SkipLog,
    *,
    hop_s: float | None = None,
    start_s: float = 0.0,
    end_s: float | None = None,
) -> Iterator[Window]:
    """The clips that files are cut into; a short file is one.

    Args:
      files: sound files.
      front_end: for the length of a clip.
      skip_log: takes the files that cannot be read.
      hop_s: seconds from one clip to the next; None: they touch.
      start_s: where to begin.
      end_s: where to end; None: with the file.
    """
    for file in files:
        try:
            starts = look.offsets(front_end, file, hop_s, start_s=start_s, end_s=end_s)
        except audio.AudioError as error:
            skip_log.add(error)
            continue
        yield from ((file, start) for start in starts)
