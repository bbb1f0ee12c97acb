"""The clips that a run was made from, read again as its settings say.

What `apex-jax evaluate` tests on and `apex-jax figure` looks through. An experiment's
run says other things: its networks bring a manifest of what they were trained on.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

from apex_jax import audio, data, dataset, runs
from apex_jax import classifier as classifier_lib

LISTED = "clips.csv"  # in a network's training folder: what it was trained on
Split = Literal["train", "validation", "test", "all"]


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
