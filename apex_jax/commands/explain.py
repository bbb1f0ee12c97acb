"""`apex-jax explain`: why a classifier says what it says of sound files.

    apex-jax explain clip.wav --run runs/apex

Writes an HTML page to look at and listen to, and says the gist on the terminal. A long
recording is explained window by window; a folder stands for its sound files. What is
too much for one page goes to several, and no more than a page is in memory.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from apex_jax import (
    archive,
    audio,
    data,
    escape,
    explain,
    explanation,
    progress,
    report,
    runs,
)
from apex_jax import explainer as explainer_lib
from apex_jax.commands import clips, options

MOST = 200  # clips and windows on a page: some 100 MB of it


def main(config: options.Explain) -> list[Path]:
    """Explains, writes the pages, and returns their paths."""
    _check(config)
    explainers = runs.load(config.run, data=config.data)
    front_end = runs.front_end_of(next(iter(explainers.values())))
    skip_log = data.SkipLog(strict=config.strict)
    files = list(clips.files(config.clips))
    windows = list(
        clips.windows(
            files,
            front_end,
            skip_log,
            hop_s=config.hop_s,
            start_s=config.start_s,
            end_s=config.end_s,
        )
    )
    each = max(1, MOST // len(explainers))
    parts = [windows[i : i + each] for i in range(0, len(windows), each)]
    config.out.parent.mkdir(parents=True, exist_ok=True)
    written: list[Path] = []
    index: list[dict[str, Any]] = []
    lines: list[str] = []
    with progress.bar("explain", len(windows) * len(explainers), "clip") as done:
        for number, part in enumerate(parts, start=1):
            out, title = _page(config.out, part, number, len(parts))
            found = list(_explain(part, explainers, config, skip_log, done))
            if found:
                report.write(out, found, title=title, sounds=config.sounds)
                written.append(out)
                _save(config.save, found, index)
                page = f"  [{out.name}]" if len(parts) > 1 else ""
                lines += _lines(found, front_end, page, several=len(explainers) > 1)
            del found  # before the next page's are made
    if not written:
        path, reason = skip_log.entries()[0]
        raise ValueError(
            f"none of the {len(files)} files could be explained; {path}: {reason}"
        )
    runs.write_skipped(config.out, skip_log)
    # Nothing is said before all is written: whoever reads along may stop reading.
    for line in lines:
        runs.say(line)
    for path, reason in skip_log.entries():
        runs.report("skipped", escape.readable(f"{path}: {reason}"))
    if config.save is not None:
        runs.say(f"{'saved to':{runs.INDENT}}{config.save}")
    for out in written:
        size = out.stat().st_size / 1e6
        runs.say(f"{'written to':{runs.INDENT}}{out}, {size:.1f} MB")
    return written


def _check(config: options.Explain) -> None:
    """Raises for what cannot work before any work is done."""
    runs.check_least(config, num_channels=1, num_prototypes=1, num_negatives=0)
    for name in ("clips", "run"):
        if not getattr(config, name):
            flag = "CLIP" if name == "clips" else "--run"
            raise ValueError(f"{flag} must be given at least once")
    if config.out.suffix.lower() not in (".html", ".htm"):
        raise ValueError(f"--out must end in .html; got {config.out}")
    clips.check_hop(config.hop_s)
    end_s = math.inf if config.end_s is None else config.end_s
    if not 0 <= config.start_s < end_s:
        raise ValueError(
            "--start-s must be at least 0 and below --end-s; got "
            f"{config.start_s:g} and {end_s:g}"
        )
    if config.save is not None and config.save.exists() and any(config.save.iterdir()):
        raise ValueError(f"--save {config.save} is not empty; name another folder")


def _page(
    out: Path, windows: Sequence[clips.Window], number: int, count: int
) -> tuple[Path, str | None]:
    """Path and title of one of several pages; of a single one the report's own."""
    if count == 1:
        return out, None
    names = list(dict.fromkeys(file.name for file, _ in windows))
    what = names[0] if len(names) == 1 else f"{len(names)} files from {names[0]}"
    width = max(2, len(str(count)))
    path = out.with_stem(f"{out.stem}-{number:0{width}}")
    return path, f"{what}, page {number} of {count}"


def _explain(
    windows: Sequence[clips.Window],
    explainers: Mapping[Path, explain.Explainer],
    config: options.Explain,
    skip_log: data.SkipLog,
    done: progress.OnProgress,
) -> Iterator[explanation.Explanation]:
    """Of every window one a run, and a class."""
    options: explainer_lib.Options = {
        "num_channels": config.num_channels,
        "num_prototypes": config.num_prototypes,
        "num_negatives": config.num_negatives,
        "evidence": config.evidence,
        "locate": config.locate,
    }
    for file, offset_s in windows:
        try:
            # The runs are of one network, which has to look only once.
            seen = next(iter(explainers.values())).look(file, offset_s=offset_s)
        except audio.AudioError as error:
            skip_log.add(error)
            done(len(explainers))
            continue
        for run, explainer in explainers.items():
            with runs.naming_prototypes({run: explainer}):
                if config.target is None:
                    yield from explainer.positives(seen, **options)
                else:
                    yield explainer.explain(seen, target=config.target, **options)
            done(1)


def _save(
    folder: Path | None,
    found: Sequence[explanation.Explanation],
    index: list[dict[str, Any]],
) -> None:
    """Keeps explanations in numbered folders; `index.json` says what is where."""
    if folder is None:
        return
    for one in found:
        name = f"{len(index):04d}"
        archive.save(folder / name, one)
        index.append(
            {
                "folder": name,
                "source": one.source,
                "offset_s": one.offset_s,
                "class": one.class_name,
                "scheme": one.scheme,
            }
        )
    runs.write_json(folder / "index.json", index)


def _lines(
    found: Sequence[explanation.Explanation],
    front_end: audio.FrontEnd,
    page: str,
    *,
    several: bool,
) -> Iterator[str]:
    """What is predicted and where the channels lie, for a terminal."""
    source = None
    for one in found:
        if one.source != source:
            source = one.source
            yield escape.readable(source) + page
        start = one.offset_s
        end = start + (front_end.clip_s if one.sound_s is None else one.sound_s)
        scheme = f"  [{one.scheme.replace('_', '-')}]" if several else ""
        yield f"  {start:.1f}-{end:.1f} s  {_verdict(one)}{scheme}"
        for channel in one.channels:
            region = " and ".join(_region(area, one) for area in channel.areas)
            region = region or "no region: no part of the sound adds to it"
            share = f"{channel.index:<5}{channel.contribution:+7.3f}"
            yield f"    channel {share}  {region}"
        if one.class_areas:
            region = " and ".join(_region(area, one) for area in one.class_areas)
            same = {True: "", False: ", not where the first is", None: ""}[one.agrees]
            yield f"    all channels          {region}{same}"


def _verdict(one: explanation.Explanation) -> str:
    """The class explained, and what else was found if it was not that."""
    likely = report.percent(float(one.probabilities[one.target]))
    what = f"{escape.readable(one.class_name)} {likely}"
    if one.target in one.found:
        return what
    if one.target == one.predicted:
        return f"nothing found; most likely {what}"
    names = ", ".join(escape.readable(one.class_names[c]) for c in one.found)
    word = "predicted" if one.activation == "softmax" else "found"
    return f"{what}  ({word}: {names or 'nothing'})"


def _region(area: explanation.Area, one: explanation.Explanation) -> str:
    """A region in seconds of the whole recording."""
    assert area.start_s is not None
    assert area.end_s is not None
    moved = dataclasses.replace(
        area, start_s=one.offset_s + area.start_s, end_s=one.offset_s + area.end_s
    )
    silent = one.sound_s is not None and area.start_s >= one.sound_s
    return f"{moved}{' (in the silence appended)' * silent}"
