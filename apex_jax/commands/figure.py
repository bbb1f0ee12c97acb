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
    runs,
    schemes,
)
from apex_jax import audioprotopnet as prototype_training
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
    if (config.kind == "beside") != (config.prototypes is not None):
        raise ValueError(
            "beside takes --prototypes DIR, an AudioProtoPNet's checkpoint; no other "
            "figure does"
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
    runs.report("LIME", f"{config.num_samples} samples, seed {config.seed}")
    results += [
        attribution.grad_cam(first, sound, offset_s=offset_s, target=target),
        attribution.lime(
            first,
            sound,
            offset_s=offset_s,
            target=target,
            seed=config.seed,
            num_samples=config.num_samples,
        ),
    ]
    return comparisons.methods(results)


def _masking(config: options.Figure, explainers: Sequence[explain.Explainer]) -> Figure:
    first = explainers[0]
    sound, offset_s = _look(config, first)
    seen = first.look(sound, offset_s=offset_s)
    result = first.explain(seen, target=config.target, num_channels=1, num_prototypes=1)
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
    model = audioprotopnet.restrict(model, order)
    sound, offset_s = _look(config, explainer)
    num = config.num_prototypes
    result = _explain(config, explainer, sound, offset_s, num_prototypes=num)
    nearest = prototype_training.nearest(model, explainer.clips, front_end, num=num)
    other = boxes.explain(
        model,
        names,
        front_end,
        sound,
        offset_s=offset_s,
        target=result.target,
        num=1,
        nearest=nearest,
        num_examples=num,
    )
    return comparisons.beside([result, other], num=num)


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
