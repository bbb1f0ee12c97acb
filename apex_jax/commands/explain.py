"""`apex-jax explain`: why a classifier says what it says of sound files.

    apex-jax explain clip.wav --run runs/apex

Writes one HTML page to look at and listen to, and says the gist on the terminal. A
long recording is explained window by window; a folder stands for its sound files.
"""

from __future__ import annotations

import contextlib
import dataclasses
import itertools
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Annotated

import tyro

from apex_jax import (
    archive,
    audio,
    cache,
    data,
    explain,
    explanation,
    progress,
    report,
    runs,
)

MOST = 200  # clips and windows on a page: some 100 MB of it


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config:
    """Explains what a classifier says of sound files.

    Attributes:
      clips: sound files, or folders of them.
      run: a run of apex-jax fit; give it again for other schemes of the same
        classifier.
      target: the class to explain.
      num_channels: top channels of each clip.
      num_prototypes: training clips beside each channel.
      num_negatives: and of those that excite it least.
      hop_s: seconds from one window of a long recording to the next.
      out: the page to write, in the place of one that is there.
      save: a folder to keep the explanations in, as JSON and NPZ.
      sounds: embed the sounds, which are most of the page's size.
      strict: stop at the first file that cannot be read, instead of skipping it.
    """

    clips: Annotated[
        tuple[Path, ...],
        tyro.conf.Positional,
        tyro.conf.arg(metavar="CLIP [CLIP ...]", help_behavior_hint="(required)"),
    ]
    run: Annotated[
        tuple[Path, ...], tyro.conf.UseAppendAction, tyro.conf.arg(metavar="DIR")
    ]
    target: Annotated[
        str | None,
        tyro.conf.arg(
            metavar="CLASS",
            help_behavior_hint="(default: the predicted one; where a clip can have "
            "several classes, each that is found)",
        ),
    ] = None
    num_channels: Annotated[
        int | None, tyro.conf.arg(help_behavior_hint="(default: 4)")
    ] = None
    num_prototypes: Annotated[
        int | None, tyro.conf.arg(help_behavior_hint="(default: 5)")
    ] = None
    num_negatives: int = 0
    hop_s: Annotated[
        float | None, tyro.conf.arg(help_behavior_hint="(default: windows touch)")
    ] = None
    out: Annotated[Path, tyro.conf.arg(metavar="FILE.html")] = Path("report.html")
    save: Annotated[
        Path | None, tyro.conf.arg(metavar="DIR", help_behavior_hint="")
    ] = None
    sounds: bool = True
    strict: tyro.conf.FlagCreatePairsOff[bool] = False


def main(config: Config) -> list[explanation.Explanation]:
    """Explains, writes the page, and returns the explanations."""
    _check(config)
    explainers = _explainers(config.run)
    clip_s = float(runs.front_end_of(explainers[0]).clip_s)
    skip_log = data.SkipLog(strict=config.strict)
    files = list(_files(config.clips))
    total = sum(_windows(files, explainers[0], config)) * len(explainers)
    if total > MOST:
        raise ValueError(
            f"{total} clips and windows to explain; a page holds {MOST}: name fewer "
            "files, or a longer --hop-s"
        )
    found: list[explanation.Explanation] = []
    with progress.bar("explain", total, "clip") as done:
        for file, explainer in itertools.product(files, explainers):
            try:
                found += _explain(explainer, file, config, done)
            except audio.AudioError as error:
                # A prototype's file that is gone spoils every explanation.
                if Path(error.path) != file:
                    raise
                skip_log.add(error)
    if not found:
        path, reason = skip_log.entries()[0]
        raise ValueError(
            f"none of the {len(files)} files could be explained; {path}: {reason}"
        )
    # Written before anything is said: whoever reads along may stop reading.
    config.out.parent.mkdir(parents=True, exist_ok=True)
    report.write(config.out, found, sounds=config.sounds)
    if config.save is not None:
        for number, one in enumerate(found):
            archive.save(config.save / f"{number:04d}", one)
    _say(found, clip_s, several=len(explainers) > 1)
    for path, reason in skip_log.entries():
        runs.report("skipped", report.readable(f"{path}: {reason}"))
    if config.save is not None:
        runs.say(f"{'saved to':{runs.INDENT}}{config.save}")
    size = config.out.stat().st_size / 1e6
    runs.say(f"{'written to':{runs.INDENT}}{config.out}, {size:.1f} MB")
    return found


def _check(config: Config) -> None:
    """Raises for what cannot work before any work is done."""
    runs.check_least(config, num_channels=1, num_prototypes=1, num_negatives=0)
    for name in ("clips", "run"):
        if not getattr(config, name):
            flag = "CLIP" if name == "clips" else "--run"
            raise ValueError(f"{flag} must be given at least once")
    if config.out.suffix.lower() not in (".html", ".htm"):
        raise ValueError(f"--out must end in .html; got {config.out}")
    if config.hop_s is not None and not config.hop_s > 0:
        raise ValueError(f"--hop-s must be positive seconds; got {config.hop_s:g}")
    if config.save is not None and config.save.exists() and any(config.save.iterdir()):
        raise ValueError(f"--save {config.save} is not empty; name another folder")


def _explainers(folders: Sequence[Path]) -> list[explain.Explainer]:
    """One a run, of the same classifier."""
    found = [explain.load(folder.expanduser()) for folder in folders]
    first = cache.weights_digest(found[0].classifier)
    for folder, explainer in zip(folders, found, strict=True):
        if cache.weights_digest(explainer.classifier) != first:
            raise ValueError(
                f"{folder} explains another classifier than {folders[0]}; runs given "
                "together have to be of one"
            )
    return found


def _files(paths: Sequence[Path]) -> Iterator[Path]:
    """The files named, and the sound files of the folders named."""
    known = data.endings()
    for path in paths:
        path = path.expanduser()
        if not path.is_dir():
            yield path
            continue
        inside = [
            file
            for file in sorted(path.rglob("*"))
            if file.suffix[1:].lower() in known
            and not any(p.startswith(".") for p in file.relative_to(path).parts)
            and file.is_file()
        ]
        if not inside:
            raise ValueError(f"{path} holds no sound file")
        yield from inside


def _windows(
    files: Sequence[Path], explainer: explain.Explainer, config: Config
) -> Iterator[int]:
    """How many windows each file has; files that cannot be read have none."""
    for file in files:
        with contextlib.suppress(audio.AudioError):
            yield len(explainer.offsets(file, hop_s=config.hop_s))


def _explain(
    explainer: explain.Explainer,
    file: Path,
    config: Config,
    done: progress.OnProgress,
) -> list[explanation.Explanation]:
    """Of one file: one a window, and a class; a short file is one window."""
    found: list[explanation.Explanation] = []
    for one in explainer.windows(
        file,
        hop_s=config.hop_s,
        positives=config.target is None,
        target=config.target,
        num_channels=config.num_channels,
        num_prototypes=config.num_prototypes,
        num_negatives=config.num_negatives,
    ):
        if not found or found[-1].offset_s != one.offset_s:
            done(1)
        found.append(one)
    return found


def _say(
    found: Sequence[explanation.Explanation], clip_s: float, *, several: bool
) -> None:
    """What is predicted and where the channels lie, for a terminal."""
    source = None
    for one in found:
        if one.source != source:
            source = one.source
            runs.say(report.readable(source))
        start = one.offset_s
        end = start + (clip_s if one.sound_s is None else one.sound_s)
        predicted = one.class_names[one.predicted]
        what = report.readable(one.class_name)
        likely = report.percent(float(one.probabilities[one.target]))
        instead = f"  (predicted: {predicted})" if one.target != one.predicted else ""
        scheme = f"  [{one.scheme.replace('_', '-')}]" if several else ""
        runs.say(f"  {start:.1f}-{end:.1f} s  {what} {likely}{instead}{scheme}")
        for channel in one.channels:
            region = " and ".join(_region(area, start) for area in channel.areas)
            runs.say(
                f"    channel {channel.index:<5}{channel.contribution:+7.3f}  {region}"
            )


def _region(area: explanation.Area, start_s: float) -> str:
    """A region in seconds of the whole recording."""
    assert area.start_s is not None
    assert area.end_s is not None
    return str(
        dataclasses.replace(
            area, start_s=start_s + area.start_s, end_s=start_s + area.end_s
        )
    )
