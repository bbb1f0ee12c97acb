"""`apex-jax predict`: what a network says of sound files.

    apex-jax predict recordings --weights runs/classifier

For a ConvNeXt or an AudioProtoPNet with its front end, as `apex-jax train` and
`apex-jax convert` write them: no explanations, and nothing to be learned before. A long
recording is cut into windows. The most likely classes of each go to the terminal and
to a table.
"""

from __future__ import annotations

import csv
import io
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np

from apex_jax import atomic, audio, checkpoint, data, escape, hosts, report, runs
from apex_jax import classifier as classifier_lib
from apex_jax import mesh as mesh_lib
from apex_jax.commands import clips, options
from apex_jax.models import audioprotopnet, convnext

HEADER = ("path", "start_s", "end_s", "class", "probability")


def main(config: options.Predict) -> Path:
    """Classifies, writes the table, and returns its path."""
    runs.check_least(config, num_classes=1, batch_size=1)
    if not config.clips:
        raise ValueError("CLIP must be given at least once")
    if config.out.suffix.lower() != ".csv":
        raise ValueError(f"--out must end in .csv; got {config.out}")
    clips.check_hop(config.hop_s)
    network, names, activation, front_end = _network(config.weights)
    skip_log = data.SkipLog(strict=config.strict)
    files = list(clips.files(config.clips))
    windows = [
        data.Clip(path=file, label=(), offset_s=start)
        for file, start in clips.windows(files, front_end, skip_log, hop_s=config.hop_s)
    ]
    if not windows:
        path, reason = skip_log.entries()[0]
        raise ValueError(
            f"none of the {len(files)} files can be read; {path}: {reason}"
        )
    read, _, logits = runs.predictions(
        "predict",
        network,
        windows,
        front_end,
        batch_size=config.batch_size,
        mesh=mesh_lib.make(),
        skip_log=skip_log,
    )
    likely = classifier_lib.probabilities(logits, activation)
    best = np.argsort(-likely, axis=1, kind="stable")[:, : config.num_classes]
    if hosts.is_primary():
        rows = _rows(read, likely, best, names, front_end)
        atomic.write_text(config.out, _as_csv(rows))
    listed = runs.write_skipped(config.out, skip_log)
    for line in _lines(read, likely, best, names, front_end):
        runs.say(line)
    if listed is not None:
        runs.report("skipped", f"{len(skip_log)} files, listed in {listed}")
    runs.say(f"{'written to':{runs.INDENT}}{config.out}")
    return config.out


def _network(
    path: Path,
) -> tuple[
    classifier_lib.Network,
    Sequence[str],
    classifier_lib.Activation,
    audio.FrontEnd,
]:
    """What is run, its classes, how logits become probabilities, and its front end."""
    path = path.expanduser()
    path = path / "classifier" if (path / "classifier").is_dir() else path
    if checkpoint.kind_of(path) == "audioprotopnet":
        prototypes, metadata = checkpoint.load_audioprotopnet(path)
        network = audioprotopnet.as_network(prototypes)
    else:
        model, metadata = checkpoint.load_classifier(path)
        network = convnext.as_classifier(
            model, metadata["class_names"], metadata["activation"]
        )
    if metadata["front_end"] is None:
        raise ValueError(
            f"--weights {path} does not say how its spectrograms are made; apex-jax "
            "convert --front-end FILE.json, or a published name, writes that beside it"
        )
    front_end = audio.FrontEnd.from_dict(metadata["front_end"])
    return network, metadata["class_names"], metadata["activation"], front_end


def _span(clip: data.Clip, front_end: audio.FrontEnd) -> tuple[float, float]:
    """Where a window lies in its recording, in seconds; it may reach beyond the end."""
    return clip.offset_s, clip.offset_s + front_end.clip_s


def _rows(
    read: Sequence[data.Clip],
    likely: np.ndarray,
    best: np.ndarray,
    names: Sequence[str],
    front_end: audio.FrontEnd,
) -> Iterator[tuple[str, ...]]:
    """A window and a class each."""
    for clip, probabilities, classes in zip(read, likely, best, strict=True):
        start, end = _span(clip, front_end)
        for c in classes:
            # As it is on disk: a name that is no text comes back as the same bytes.
            path = str(clip.path)
            yield path, f"{start:g}", f"{end:g}", names[c], f"{probabilities[c]:.6g}"


def _as_csv(rows: Iterator[tuple[str, ...]]) -> str:
    stream = io.StringIO()
    writer = csv.writer(stream, lineterminator="\n")
    writer.writerow(HEADER)
    writer.writerows(rows)
    return stream.getvalue()


def _lines(
    read: Sequence[data.Clip],
    likely: np.ndarray,
    best: np.ndarray,
    names: Sequence[str],
    front_end: audio.FrontEnd,
) -> Iterator[str]:
    """A file, and below it a line a window."""
    file = None
    for clip, probabilities, classes in zip(read, likely, best, strict=True):
        if clip.path != file:
            file = clip.path
            yield escape.readable(str(file))
        start, end = _span(clip, front_end)
        found = ", ".join(
            f"{escape.readable(names[c])} {report.percent(float(probabilities[c]))}"
            for c in classes
        )
        yield f"  {start:.1f}-{end:.1f} s  {found}"
