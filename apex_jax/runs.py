"""The folder of a run: claimed once, with the plain files that others read.

After everything that computes, before the commands and experiments: features that are
made anew where something else made them, JSON, the bank as a table.
"""

from __future__ import annotations

import contextlib
import csv
import dataclasses
import hashlib
import io
import json
import os
import shutil
import textwrap
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from apex_jax import (
    atomic,
    audio,
    cache,
    data,
    disentangle,
    escape,
    explain,
    hosts,
    inference,
    logbook,
    occupied,
    progress,
    resume,
    train,
)
from apex_jax import classifier as classifier_lib

Network = TypeVar("Network")

INDENT = 13  # of what stands beside a label
# Options that change no result; a run's own folder may be moved.
IRRELEVANT = ("overwrite", "hosts", "output_dir", "out")
TRAINING = "-training"  # the folder beside a network that tells of its training
MADE_FROM = "made_from.json"
SKIPPED = "skipped.csv"
BANK_HEADER = (
    "channel",
    "sign",
    "rank",
    "file",
    "offset_s",
    "class",
    "activation",
    "purity",
    "regions",
)


def say(message: str) -> None:
    """A line for the person at the terminal; of several processes the first's."""
    if hosts.is_primary():
        # A name may hold what a terminal takes for a command.
        print(escape.readable(message, breaks=True), flush=True)  # noqa: T201


def check_least(config: Any, **least: int) -> None:
    """Raises ValueError for options below what they must be at least."""
    for name, smallest in least.items():
        value = getattr(config, name)
        if value is not None and value < smallest:
            flag = name.replace("_", "-")
            raise ValueError(f"--{flag} must be at least {smallest}; got {value}")


def claim(output: Path, config: Any, **more: Any) -> bool:
    """`hold` and `begin` in one: for a run that nothing else can refuse any more."""
    known = hold(output, config, **more)
    begin(output, config, **more)
    return known


def hold(output: Path, config: Any, **more: Any) -> bool:
    """Makes a folder this process's, until it ends; changes nothing that is in it.

    Args:
      output: the run's folder, made if need be.
      config: a dataclass with all defaults filled in; its `overwrite` lets a finished
        run be replaced.
      **more: what else the run depends on, as JSON: `config.json` will say it.

    Returns:
      Whether a run of the same was here before: what it finished will do.

    Raises:
      ValueError: the folder holds a finished run of other settings or clips.
      OccupiedError: another run is at work in it.
    """
    differs = hosts.collect(_differs(output, config, **more))[0]

    def decide() -> None:
        output.mkdir(parents=True, exist_ok=True)
        occupied.occupy(output)
        finished = (output / "results.json").exists()
        if finished and differs != [] and not config.overwrite:
            what = f" ({', '.join(differs)})" if differs else ""
            raise ValueError(
                f"{output} holds a finished run of other settings{what}; name another "
                "folder, or --overwrite it"
            )

    hosts.agree(decide)
    return differs == []


def begin(output: Path, config: Any, **more: Any) -> None:
    """Writes `config.json`; results of anything else that lie there are removed.

    After `hold`, and after whatever may refuse the run: a refusal must leave a finished
    run as it was. Before anything is replaced: old results must not tell of new parts.

    Args:
      output: as in `hold`, like the next two.
      config: the settings.
      **more: what else the run depends on.
    """

    def replace() -> None:
        # Of the same they are true until the new ones take their place.
        if config.overwrite or _differs(output, config, **more) != []:
            (output / "results.json").unlink(missing_ok=True)
        write_json(output / "config.json", {**plain(config), **more})

    hosts.agree(replace)


def same(output: Path, config: Any, **more: Any) -> bool:
    """Whether the folder was claimed with what gives the same results."""
    return _differs(output, config, **more) == []


def _differs(output: Path, config: Any, **more: Any) -> list[str] | None:
    """Settings that the folder's run has otherwise; None where there is no run."""
    before = read_json(output / "config.json")
    if before is None:
        return None
    # As JSON gives them back.
    now = json.loads(json.dumps({**plain(config), **more}))
    return sorted(
        name
        for name in {*before, *now}
        if name not in IRRELEVANT
        and (name not in before or name not in now or before[name] != now[name])
    )


def digest_of(*clips: Sequence[data.Clip]) -> str:
    """A digest of lists of clips, as files and as what is said of them.

    A file counts by its path, size and time of modification; labels, places and
    which list a clip is in count too.
    """
    found = hashlib.sha256()
    for number, part in enumerate(clips):
        for line, clip in zip(cache.listing(part), part, strict=True):
            told = f"{number}\0{line}{clip!r}\n"
            found.update(told.encode(errors="surrogateescape"))
    return found.hexdigest()


def settings_of(config: Any, *made_from: Any) -> str:
    """A digest of all that decides results; a part that is finished carries it.

    Args:
      config: the settings.
      *made_from: what else it depends on, arrays or text: `digest_of` its clips, the
        networks that it tells of.
    """
    relevant = {name: v for name, v in plain(config).items() if name not in IRRELEVANT}
    return resume.digest(json.dumps(relevant, sort_keys=True), made_from)


def is_finished(file: Path, settings: str) -> bool:
    """Whether a part's results are there, and of `settings`, see `settings_of`."""
    found = read_json(file) or {}
    return hosts.collect(found.get("settings") == settings)[0]


def skipped(
    skip_log: data.SkipLog, *clips: Sequence[data.Clip]
) -> list[tuple[str, str]]:
    """Those of lists of clips that were skipped, with the reason; JSON can keep it."""
    paths = {str(clip.path) for part in clips for clip in part}
    return [(path, reason) for path, reason in skip_log.entries() if path in paths]


def write_skipped(written: Path, skip_log: data.SkipLog) -> Path | None:
    """Says beside a file, in `NAME-skipped.csv`, what was skipped for it; if anything.

    Returns:
      Where, or None where nothing was skipped: then there is no such file any more.
    """
    beside = written.with_name(f"{written.stem}-{SKIPPED}")
    if hosts.is_primary():
        if len(skip_log):
            skip_log.write_csv(beside)
        else:
            beside.unlink(missing_ok=True)
    return beside if len(skip_log) else None


def gather_skipped(output: Path, parts: Sequence[Path]) -> int:
    """One `skipped.csv` of those of a run's parts; how many files it lists."""
    found = data.SkipLog()
    for part in parts:
        found.read_csv(part / SKIPPED)
    if hosts.is_primary():
        found.write_csv(output / SKIPPED)
    return len(found)


def trained(
    folder: Path,
    fit: Callable[..., tuple[Network, list[train.Epoch]]],
    *,
    load: Callable[[Path], tuple[Network, Any]],
    save: Callable[[Path, Network], Any],
    clips: Sequence[Sequence[data.Clip]],
    made_from: Mapping[str, Any],
    overwrite: bool,
    label: str,
    total: int,
    skip_log: data.SkipLog,
    begin: Callable[[], Any] = lambda: None,
) -> tuple[Network, list[train.Epoch]]:
    """A network that an earlier run kept, or one trained now.

    Its logbook, its state while it is trained, digests of what it is made from and
    which files were skipped lie beside `folder`, in `FOLDER-training`. What was made
    from the same is used, finished or not; nothing else is.

    Args:
      folder: where the network is kept.
      fit: trains it; takes on_epoch, on_progress and state_dir.
      load: reads it from `folder`.
      save: writes it there.
      clips: all that it is trained and validated on.
      made_from: what else it depends on, by name: settings, weights to start from.
      overwrite: whether a network made from something else may be replaced.
      label: of the bar.
      total: clips that all epochs come to.
      skip_log: that `fit` notes files in; takes those that an earlier run noted.
      begin: called once nothing is refused any more, before anything is replaced.

    Raises:
      ValueError: there is a network, or an interrupted training, made from something
        else, and `overwrite` is off.
    """
    beside = folder.with_name(folder.name + TRAINING)
    wanted = {name: resume.digest(part) for name, part in made_from.items()}
    wanted["clips"] = digest_of(*clips)
    found = hosts.collect(read_json(beside / MADE_FROM))[0]
    known = found.get("digests", {}) if found else wanted
    differs = sorted(name for name in wanted if known.get(name) != wanted[name])
    if differs and not overwrite:
        raise ValueError(
            f"{folder} is a network, or the beginning of one, made from other "
            f"{' and '.join(differs)}; name another folder, or --overwrite it"
        )
    begin()
    there = hosts.collect(folder.exists())[0]
    if found and found.get("finished") and there and not differs:
        say(f"trained before: {folder}")
        for path, reason in found.get("skipped", ()):
            skip_log.add(audio.AudioError(path, reason))
        return load(folder)[0], logbook.read(beside)
    if hosts.is_primary():
        if differs:
            shutil.rmtree(beside)
        beside.mkdir(parents=True, exist_ok=True)
    write_json(beside / MADE_FROM, {"finished": False, "digests": wanted})
    hosts.barrier("training begins")
    with (
        logbook.writing(beside) as on_epoch,
        progress.bar(label, total, "clip") as on_progress,
    ):

        def told_of(epoch: train.Epoch) -> None:
            on_epoch(epoch)
            on_progress.note(f"validation loss {epoch.validation_loss:.3f}")

        network, epochs = fit(
            on_epoch=told_of, on_progress=on_progress, state_dir=beside / "state"
        )
    save(folder, network)
    told = {"digests": wanted, "skipped": skipped(skip_log, *clips)}
    write_json(beside / MADE_FROM, {"finished": True, **told})
    hosts.barrier("training kept")
    if hosts.is_primary():
        shutil.rmtree(beside / "state", ignore_errors=True)
    return network, epochs


def features(
    directory: Path,
    classifier: classifier_lib.Classifier,
    clips: Sequence[data.Clip],
    front_end: audio.FrontEnd,
    **options: Any,
) -> cache.Cached:
    """`cache.build` with a bar; a cache that something else made is made anew."""
    with progress.bar(f"features ({directory.name})", len(clips), "clip") as done:
        options["on_progress"] = done
        try:
            return cache.build(directory, classifier, clips, front_end, **options)
        except cache.CacheError as error:
            say(f"{error}; making it anew")
            hosts.barrier("cache looked at")
            if hosts.is_primary():
                shutil.rmtree(directory)
            hosts.barrier("cache removed")
            return cache.build(directory, classifier, clips, front_end, **options)


def predictions(
    label: str,
    network: classifier_lib.Network,
    clips: Sequence[data.Clip],
    front_end: audio.FrontEnd,
    **options: Any,
) -> tuple[list[data.Clip], np.ndarray, np.ndarray]:
    """The clips that can be read, their pooled vectors and logits; with a bar.

    Args:
      label: of the bar.
      network: what is run.
      clips: what to classify.
      front_end: settings of the spectrogram.
      **options: of `inference.predict`.

    Raises:
      ValueError: no clip could be read.
    """
    with progress.bar(label, len(clips), "clip") as done:
        positions, pooled, logits = inference.predict(
            network, clips, front_end, on_progress=done, **options
        )
    return [clips[i] for i in positions], pooled, logits


def load(
    folders: Sequence[Path], *, data: Path | None = None
) -> dict[Path, explain.Explainer]:
    """The explainers of several runs of one classifier, by folder.

    Args:
      folders: of runs of `apex-jax fit`, each of another scheme.
      data: where the training clips lie now, if they have moved.

    Raises:
      FileNotFoundError: there is no such run.
      ValueError: a run that is not fitted yet, two of one scheme, of different
        classifiers or front ends, or one that takes no sound.
    """
    found: dict[Path, explain.Explainer] = {}
    networks: list[tuple[str, audio.FrontEnd]] = []
    for folder in folders:
        run = Path(os.path.expanduser(folder))
        if (run / "classifier").is_dir() and not (run / "apex").exists():
            raise ValueError(
                f"{folder} is a run of apex-jax train; fit it first: apex-jax fit "
                f"--weights {folder} --out NAME"
            )
        explainer = explain.load(run, data=data)
        networks.append(
            (cache.weights_digest(explainer.classifier), front_end_of(explainer))
        )
        for i, what in enumerate(("classifier", "front end")):
            if networks[-1][i] != networks[0][i]:
                raise ValueError(
                    f"{folder} explains another {what} than {folders[0]}; runs given "
                    "together have to be of one classifier"
                )
        for other, one in found.items():
            if one.scheme == explainer.scheme:
                raise ValueError(
                    f"{folder} and {other} are both of scheme "
                    f"{one.scheme.replace('_', '-')}; runs given together have to be "
                    "of different schemes"
                )
        found[folder] = explainer
    return found


@contextlib.contextmanager
def naming_prototypes(explainers: Mapping[Path, explain.Explainer]) -> Iterator[None]:
    """Where a prototype's file cannot be used, says that it is one, and what helps."""
    try:
        yield
    except audio.AudioError as error:
        for run, explainer in explainers.items():
            if any(Path(clip.path) == Path(error.path) for clip in explainer.clips):
                # The gallery adds what a program can do: no help at a terminal.
                first = error.__cause__
                reason = first.reason if isinstance(first, audio.AudioError) else ""
                raise ValueError(
                    f"a prototype's file of run {run} cannot be used: {error.path}: "
                    f"{reason or error.reason}. Fit it again, or --data DIR where its "
                    "clips lie now"
                ) from error
        raise


def front_end_of(explainer: explain.Explainer) -> audio.FrontEnd:
    """How an explainer turns sound into spectrograms.

    Raises:
      ValueError: it explains feature maps computed elsewhere.
    """
    if explainer.front_end is None:
        raise ValueError(
            "this run explains feature maps that were computed elsewhere; a command "
            "needs one that takes sound"
        )
    return explainer.front_end


def write_bank(file: Path, explainer: explain.Explainer) -> None:
    """The prototypes of every channel as a table that a person can read."""
    if not hosts.is_primary():
        return
    grid = explainer.grid()
    names = explainer.classifier.class_names
    stream = io.StringIO(newline="")
    writer = csv.writer(stream)
    writer.writerow(BANK_HEADER)
    for one in (explainer.positive, explainer.negative):
        clip, activation, purity, location = (
            np.asarray(a) for a in (one.clip, one.activation, one.purity, one.location)
        )
        for channel, rank in np.ndindex(clip.shape):
            at = channel, rank
            source = explainer.clips[int(clip[at])]
            areas = explainer.areas(grid, location[at])
            writer.writerow(
                [
                    channel,
                    one.sign,
                    rank + 1,
                    source.path,
                    f"{source.offset_s:.3f}",
                    ", ".join(names[label] for label in source.labels),
                    f"{activation[at]:.6g}",
                    f"{purity[at]:.4f}",
                    "; ".join(str(area) for area in areas),
                ]
            )
    atomic.write_text(file, stream.getvalue())


def plain(value: Any) -> Any:
    """A config as JSON knows it."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {
            f.name: plain(getattr(value, f.name)) for f in dataclasses.fields(value)
        }
    if isinstance(value, tuple):
        return [plain(one) for one in value]
    return str(value) if isinstance(value, Path) else value


def read_json(file: Path) -> Any:
    """What a file of a run says, names and values, or None where there is none.

    Raises:
      ValueError: it was cut or changed; says which.
    """
    try:
        found = json.loads(file.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return None
    except (ValueError, RecursionError) as error:
        raise ValueError(
            f"{file} is damaged: no JSON ({error!s:.200}); delete it, and the same "
            "command makes it anew"
        ) from error
    if not isinstance(found, dict):
        raise ValueError(
            f"{file} is damaged: it holds no names and values; delete it, and the same "
            "command makes it anew"
        )
    return found


def write_json(file: Path, content: Any) -> None:
    """Indented, whole or not at all; of several processes the first writes it."""
    if not hosts.is_primary():
        return
    atomic.write_text(file, json.dumps(content, indent=2) + "\n")


def report(label: str, text: str, *more: str) -> None:
    """Lines of a table for a terminal of 80 columns: a label, and what it says."""
    for line, words in enumerate((text, *more)):
        for part in textwrap.wrap(words, 80 - INDENT) or [""]:
            say(f"{'' if line else label:{INDENT}}{part}")
            label = ""


def report_audits(audits: Mapping[str, disentangle.Audit]) -> None:
    """How well APEX reproduces the classifier, a line a split."""
    lines = []
    for name, audit in audits.items():
        lines.append(
            f"{name:12}{audit.changed_predictions} of {audit.num_clips} predictions "
            f"changed, logits within {audit.max_abs_logit_error:.1e}"
        )
        if audit.near_ties:
            lines.append(f"{'':12}{audit.near_ties} ties decided by rounding")
    condition = next(iter(audits.values())).condition_number
    report("invariance", *lines, f"{'cond(U)':12}{condition:.1f}")


def report_end(
    output: Path, skip_log: data.SkipLog, stages: progress.Stages, then: str
) -> None:
    """What every run says last; `then` is the command that goes on from here."""
    report("seconds", progress.in_words(stages.to_dict()))
    if len(skip_log):
        report("skipped", f"{len(skip_log)} files, listed in {output / SKIPPED}")
    say(f"{'written to':{INDENT}}{output}")
    say(f"{'then':{INDENT}}{then}")
