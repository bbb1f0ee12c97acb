"""`apex-jax figure`: the figures of the paper, made from a run.

    apex-jax figure methods --run runs/time --run runs/frequency --out methods.png

Without `--clip` a training clip that the run's prototypes come from is shown, and the
command says which.
"""

from __future__ import annotations

import collections
import dataclasses
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import jax
import numpy as np

from apex_jax import (
    attribution,
    audio,
    boxes,
    checkpoint,
    comparisons,
    data,
    dataset,
    disentangle,
    explain,
    explanation,
    figures,
    look,
    masking,
    plot,
    progress,
    runs,
    schemes,
)
from apex_jax import audioprotopnet as prototype_training
from apex_jax.commands import clips as clips_of
from apex_jax.commands import options
from apex_jax.models import audioprotopnet

if TYPE_CHECKING:
    from matplotlib.figure import Figure

REAL = "real"  # the class of clips that no vocoder made


def main(config: options.Figure) -> Path:
    """Draws the figure, writes it, and returns its path."""
    _check(config)
    explainers = runs.load(config.run, data=config.data)
    make: dict[options.Kind, Callable[..., Figure]] = {
        "explained": _explained,
        "before-after": _before_after,
        "methods": _methods,
        "masking": _masking,
        "twin": _twin,
        "beside": _beside,
        "prototypes": _prototypes,
    }
    with runs.naming_prototypes(explainers):
        figure = make[config.kind](config, list(explainers.values()))
    out = (config.out or config.run[0] / f"{config.kind}.png").expanduser()
    out.parent.mkdir(parents=True, exist_ok=True)
    figures.save(figure, out, dpi=config.dpi)
    runs.say(f"{'written to':{runs.INDENT}}{out}")
    return out


def _check(config: options.Figure) -> None:
    """Raises for what cannot work before any work is done."""
    runs.check_least(
        config, num_channels=1, num_prototypes=1, seed=0, num_samples=2, draws=1, dpi=1
    )
    if not config.run:
        raise ValueError("--run must name a run's folder")
    if len(config.run) > 1 and config.kind not in ("methods", "masking"):
        raise ValueError(f"{config.kind} takes one --run; methods, masking several")
    if config.kind == "twin" and (config.clip is None) != (config.twin is None):
        raise ValueError("twin takes both files, --clip REAL --twin VOCODED, or none")
    if config.kind != "twin" and config.twin is not None:
        raise ValueError(f"--twin is for twin alone; {config.kind} takes one --clip")
    if config.kind == "before-after" and config.clip is not None:
        raise ValueError("before-after shows training clips, it takes no --clip")
    if (config.kind in ("beside", "prototypes")) != (config.prototypes is not None):
        raise ValueError(
            "beside and prototypes take --prototypes DIR, an AudioProtoPNet's "
            "checkpoint; no other figure does"
        )
    if config.offset_s and config.clip is None:
        raise ValueError("--offset-s says where in --clip to start; name a --clip")
    formats = plot.figure((1.0, 1.0)).canvas.get_supported_filetypes()
    if config.out is not None and config.out.suffix[1:].lower() not in formats:
        raise ValueError(f"--out must end in .png, .pdf or .svg; got {config.out}")


def _look(
    config: options.Figure, explainer: explain.Explainer
) -> tuple[look.Sound, float]:
    """The file to explain, and where the clip starts in it."""
    if config.clip is not None:
        return config.clip, config.offset_s
    # One that prototypes seldom come from, so that it is not shown beside itself.
    uses = np.bincount(
        np.asarray(explainer.positive.clip).ravel(), minlength=len(explainer.clips)
    )
    clip = explainer.clips[int(np.argmin(uses))]
    runs.report("clip", f"{clip.id}, a training clip of the run; --clip names another")
    return clip.path, float(clip.offset_s)


def _explain(
    config: options.Figure,
    explainer: explain.Explainer,
    sound: look.Sound,
    offset_s: float,
    num_channels: int = 1,
    num_prototypes: int = 1,
    *,
    target: str | None = None,
) -> explanation.Explanation:
    return explainer.explain(
        explainer.look(sound, offset_s=offset_s),
        target=config.target or target,
        num_channels=num_channels,
        num_prototypes=num_prototypes,
        evidence=config.evidence,
        locate=config.locate,
    )


def _explained(
    config: options.Figure, explainers: Sequence[explain.Explainer]
) -> Figure:
    (explainer,) = explainers
    sound, offset_s = _look(config, explainer)
    channels, num = config.num_channels, config.num_prototypes
    result = _explain(config, explainer, sound, offset_s, channels, num)
    return figures.explained(result, num_prototypes=num)


def _before_after(
    config: options.Figure, explainers: Sequence[explain.Explainer]
) -> Figure:
    (explainer,) = explainers
    if explainer.raw is None:
        raise ValueError(
            f"{config.run[0]} keeps no prototypes of the raw channels; fit it again"
        )
    num = config.num_prototypes
    purity = [
        np.asarray(one.purity)[:, :num] for one in (explainer.raw, explainer.positive)
    ]
    gain = purity[1].mean(axis=1) - purity[0].mean(axis=1)
    # From the largest gain to the smallest, evenly: not the best cases alone.
    order = np.argsort(-gain, kind="stable")
    at = np.linspace(0, len(order) - 1, min(config.num_channels, len(order)))
    channels = order[np.round(at).astype(int)]
    runs.report("channels", f"{', '.join(map(str, channels))}, largest gain first")
    raw = dataclasses.replace(
        explainer, transform=disentangle.identity(len(gain)), positive=explainer.raw
    )
    before, after = (  # class 0 is of the heatmaps, which are not drawn
        one.prototypes(channels, 0, one.positive, num) for one in (raw, explainer)
    )
    return comparisons.before_after(
        channels.tolist(),
        before,
        after,
        explainer.front_end,
        explainer.scheme,
        mean_purity=(float(purity[0].mean()), float(purity[1].mean())),
    )


def _methods(config: options.Figure, explainers: Sequence[explain.Explainer]) -> Figure:
    first = explainers[0]
    sound, offset_s = _look(config, first)
    results = [_explain(config, one, sound, offset_s) for one in explainers]
    target = results[0].target
    runs.report(
        "LIME",
        f"{config.num_samples} samples, seed {config.seed}, instead of what is left "
        f"out: {config.instead}",
    )
    results += [
        attribution.grad_cam(first, sound, offset_s=offset_s, target=target),
        attribution.lime(
            first,
            sound,
            offset_s=offset_s,
            target=target,
            seed=config.seed,
            num_samples=config.num_samples,
            instead=config.instead,
        ),
    ]
    return comparisons.methods(results)


def _masking(config: options.Figure, explainers: Sequence[explain.Explainer]) -> Figure:
    first = explainers[0]
    sound, offset_s = _look(config, first)
    seen = first.look(sound, offset_s=offset_s)
    result = first.explain(
        seen,
        target=config.target,
        num_channels=1,
        num_prototypes=1,
        evidence=config.evidence,
        locate=config.locate,
    )
    of_scheme = {one.scheme: one for one in explainers}
    others = [scheme for scheme in schemes.SCHEMES if scheme not in of_scheme]
    if others:
        runs.report("schemes", f"{', '.join(others)}: under the U of {config.run[0]}")
    hidden = [
        masking.hide(
            jax.random.key(config.seed),
            of_scheme.get(scheme, first),
            seen,
            result.target,
            scheme,
            draws=config.draws,
            evidence=config.evidence,
            locate=config.locate,
        )
        for scheme in schemes.SCHEMES
    ]
    return comparisons.masking(result, hidden)


def _twin(config: options.Figure, explainers: Sequence[explain.Explainer]) -> Figure:
    (explainer,) = explainers
    files, offset_s = [config.clip, config.twin], config.offset_s
    if config.clip is None:
        pair = _twins(explainer)
        runs.report("clips", " and ".join(clip.id for clip in pair))
        files, offset_s = [Path(clip.path) for clip in pair], float(pair[0].offset_s)
    real, fake = (
        _explain(
            config,
            explainer,
            file,
            offset_s,
            num_channels=config.num_channels,
            target=_vocoded(explainer),
        )
        for file in files
        if file is not None
    )
    return comparisons.twin(real, fake)


def _beside(config: options.Figure, explainers: Sequence[explain.Explainer]) -> Figure:
    (explainer,) = explainers
    network = _network(config, explainer)
    sound, offset_s = _look(config, explainer)
    num = config.num_prototypes
    result = _explain(config, explainer, sound, offset_s, num_prototypes=num)
    other = boxes.explain(
        network.model,
        network.class_names,
        network.front_end,
        sound,
        offset_s=offset_s,
        target=result.target,
        num=1,
        nearest=_nearest(config, explainer, network, result.target, num),
        num_examples=num,
    )
    return comparisons.beside([result, other], num=num)


def _prototypes(
    config: options.Figure, explainers: Sequence[explain.Explainer]
) -> Figure:
    """AudioProtoPNet's local explanation: what its prototypes of a class find."""
    (explainer,) = explainers
    network = _network(config, explainer)
    sound, offset_s = _look(config, explainer)
    result = boxes.explain(
        network.model,
        network.class_names,
        network.front_end,
        sound,
        offset_s=offset_s,
        target=config.target,
        num=1,
    )
    assert result.spectrogram is not None  # it was made from the sound
    found = boxes.matches(
        network.model,
        network.class_names,
        result.spectrogram,
        target=result.target,
        num=config.num_channels,
        front_end=network.front_end,
    )
    nearest = _nearest(config, explainer, network, result.target, 1)
    for match in found:
        runs.report(
            f"prototype {match.prototype}"[: runs.INDENT - 1],
            f"{match.class_name}: {match.similarity:.3f} similar x weight "
            f"{match.weight:.3f} adds {match.contribution:+.3f}; {match.area}",
        )
    return figures.prototypes(
        result.spectrogram,
        found,
        front_end=network.front_end,
        nearest=boxes.examples(
            network.model, network.class_names, network.front_end, found, nearest
        ),
        title=f"{plot.name(result.source, 60, result.offset_s)}: AudioProtoPNet, "
        f"{plot.verdict(result)}",
    )


@dataclasses.dataclass(frozen=True, kw_only=True)
class _Network:
    """An AudioProtoPNet with a run's classes in its order.

    Attributes:
      model: with these classes.
      class_names: the run's.
      front_end: of both.
      all_names: the classes that it was trained on.
    """

    model: audioprotopnet.AudioProtoPNet
    class_names: tuple[str, ...]
    front_end: audio.FrontEnd
    all_names: tuple[str, ...]


def _network(config: options.Figure, explainer: explain.Explainer) -> _Network:
    """That of --prototypes; it has to fit the run."""
    assert config.prototypes is not None  # see `_check`
    model, metadata = checkpoint.load_audioprotopnet(config.prototypes)
    names, front_end = explainer.classifier.class_names, runs.front_end_of(explainer)
    # It may know more: BirdSet's learns 9,736 classes, of which a run explains some.
    if missing := set(names) - set(metadata["class_names"]):
        raise ValueError(
            f"--prototypes {config.prototypes} has other classes than "
            f"{config.run[0]}: it does not know {dataset.listed(sorted(missing))}, but "
            f"{dataset.listed(metadata['class_names'])}"
        )
    if audio.FrontEnd.from_dict(metadata["front_end"]) != front_end:
        raise ValueError(
            f"--prototypes {config.prototypes} has another front end than "
            f"{config.run[0]}; they are compared on the same spectrogram"
        )
    order = [metadata["class_names"].index(name) for name in names]
    return _Network(
        model=audioprotopnet.restrict(model, order),
        class_names=names,
        front_end=front_end,
        all_names=tuple(metadata["class_names"]),
    )


def _nearest(
    config: options.Figure,
    explainer: explain.Explainer,
    network: _Network,
    target: int,
    num: int,
) -> prototype_training.Nearest:
    """The training clips that come closest to a class's prototypes; says of which."""
    name = network.class_names[target]
    skip_log = data.SkipLog()
    found, words = _training_clips(config, explainer, network, skip_log)
    # Others of other classes are never the nearest: they need not be run.
    clips = [clip for clip in found if target in clip.labels]
    runs.report("nearest", f"looked for in {len(clips):,} clips of {name}, {words}")
    if not clips:
        raise ValueError(f"no training clip of {name}, {words}; name another --target")
    with progress.bar("nearest clips", len(clips), "clip") as on_progress:
        nearest = prototype_training.nearest(
            network.model,
            clips,
            network.front_end,
            num=num,
            skip_log=skip_log,
            on_progress=on_progress,
        )
    if len(skip_log):
        runs.report("skipped", f"{len(skip_log)} training clips cannot be read")
    return nearest


def _training_clips(
    config: options.Figure,
    explainer: explain.Explainer,
    network: _Network,
    skip_log: data.SkipLog,
) -> tuple[Sequence[data.Clip], str]:
    """All training clips, labels in the run's order, and in words which these are."""
    assert config.prototypes is not None  # see `_check`
    folder = config.prototypes.expanduser()
    listed = clips_of.trained_on(folder, network.all_names, skip_log)
    if listed is not None:
        at = {network.all_names.index(n): i for i, n in enumerate(network.class_names)}
        return [
            dataclasses.replace(
                clip, label=tuple(at[label] for label in clip.labels if label in at)
            )
            for clip in listed
        ], "all that the AudioProtoPNet was trained on"
    made = clips_of.settings_of(config.run[0])
    if "data" in made:
        return clips_of.of_run(
            made["data"],
            made,
            explainer.classifier,
            network.front_end,
            "train",
            skip_log,
        ), f"all that {config.run[0]} was fitted on"
    return explainer.clips, (
        f"only those that the banks of {config.run[0]} point to: neither it nor "
        "--prototypes says what it was trained on"
    )


def _vocoded(explainer: explain.Explainer) -> str | None:
    """The class of vocoded clips where there is no doubt, whatever is predicted."""
    others = [name for name in explainer.classifier.class_names if name != REAL]
    return others[0] if len(others) == 1 else None


def _twins(explainer: explain.Explainer) -> tuple[data.Clip, data.Clip]:
    """The first real clip, by name, whose vocoded twin is among the training clips."""
    names = explainer.classifier.class_names
    twins = collections.defaultdict[tuple[str, float], dict[str, data.Clip]](dict)
    for clip in explainer.clips:
        for label in clip.labels:
            at = clip.group, float(clip.offset_s)
            twins[at].setdefault(names[label], clip)
    for _, found in sorted(twins.items()):
        if len(found) == 2 and REAL in found:
            (fake,) = (clip for name, clip in found.items() if name != REAL)
            return found[REAL], fake
    raise ValueError(
        "the run has no real clip beside its vocoded twin among its prototypes; name "
        "both, --clip REAL --twin VOCODED"
    )
