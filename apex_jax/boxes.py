"""Where AudioProtoPNet's prototypes are in a clip: maps on the spectrogram, and boxes.

In come a network and a spectrogram, out come the prototypes that count most for a
class, each with the picture that its authors draw: the similarity map enlarged by
cubic interpolation, and the box around the best of its brightest twentieth.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from apex_jax import audio, data, explanation, frontend, look, schemes
from apex_jax import audioprotopnet as training
from apex_jax.models import audioprotopnet, convnext

PERCENTILE = 95
# The kernel of OpenCV's cubic interpolation; other libraries take -0.5.
SHARPNESS = -0.75
# What differs by less than this share is equal but for the rounding of `enlarge`.
FLAT = 1e-12


@dataclasses.dataclass(frozen=True, kw_only=True)
class Match:
    """One prototype in a clip.

    Attributes:
      prototype: its number, `class * prototypes a class + j`.
      class_name: the class it belongs to.
      similarity: at the place where it is largest.
      weight: what a similarity of 1 adds to the logit.
      heatmap: `[F_in, T_in]`, in [0, 1].
      area: the box.
    """

    prototype: int
    class_name: str
    similarity: float
    weight: float
    heatmap: np.ndarray = dataclasses.field(repr=False)
    area: explanation.Area

    @property
    def contribution(self) -> float:
        """What it adds to the class's logit."""
        return self.weight * self.similarity


@dataclasses.dataclass(frozen=True, kw_only=True)
class Local:
    """What the prototypes say of one clip.

    Attributes:
      logits: `[classes]`.
      predicted: classes at least as likely as not, most likely first.
      activated: the most similar prototypes of all classes, most similar first.
      likeliest: of the most likely classes all prototypes, a tuple a class, most
        likely first; within a class largest contribution first. A class's
        contributions and its bias sum to its logit.
    """

    logits: np.ndarray
    predicted: tuple[int, ...]
    activated: tuple[Match, ...]
    likeliest: tuple[tuple[Match, ...], ...]


def matches(
    model: audioprotopnet.AudioProtoPNet,
    class_names: tuple[str, ...],
    spectrogram: Float[Array | np.ndarray, "freq time"],
    *,
    target: int,
    num: int | None = None,
    front_end: frontend.FrontEnd | None = None,
) -> tuple[Match, ...]:
    """A class's prototypes in a clip, largest contribution first.

    Args:
      model: the network.
      class_names: in the order of the logits.
      spectrogram: what the network sees of the clip.
      target: the class.
      num: how many; None for all.
      front_end: tells seconds and hertz.

    Raises:
      ValueError: no such class.
    """
    classes = model.config.num_classes
    if not 0 <= target < classes:
        raise ValueError(f"target must be 0 to {classes - 1}; got {target}")
    chosen = _of_class(model, target)
    found = _matched(model, class_names, spectrogram, chosen, front_end)
    return tuple(sorted(found, key=_by_contribution)[:num])


def local(
    model: audioprotopnet.AudioProtoPNet,
    class_names: tuple[str, ...],
    spectrogram: Float[Array | np.ndarray, "freq time"],
    *,
    num_activated: int = 20,
    num_classes: int = 10,
    front_end: frontend.FrontEnd | None = None,
) -> Local:
    """What the prototypes say of a clip, the local explanation of its authors.

    Args:
      model: the network; `restrict` it to the classes that can be in the clip.
      class_names: in the order of the logits.
      spectrogram: what the network sees of the clip.
      num_activated: the most similar prototypes of all classes, so many at most.
      num_classes: the most likely classes, so many at most, with all prototypes.
      front_end: tells seconds and hertz.

    Raises:
      ValueError: a name for each class is missing, or a number is negative.
    """
    convnext.check_class_names(class_names, model.config.num_classes)
    if min(num_activated, num_classes) < 0:
        raise ValueError(
            "num_activated and num_classes must not be negative; got "
            f"{num_activated} and {num_classes}"
        )
    similar, scores = _judged(model, jnp.asarray(spectrogram)[None])
    similarity, logits = np.asarray(similar).ravel(), np.asarray(scores)[0]
    activated = np.argsort(-similarity, kind="stable")[:num_activated]
    order = np.argsort(-logits, kind="stable").tolist()
    of_class = [_of_class(model, c) for c in order[:num_classes]]
    # Each prototype's map once, also where it is among both.
    chosen = np.unique(np.concatenate([activated, *of_class]).astype(np.int32))
    found = {
        match.prototype: match
        for match in _matched(model, class_names, spectrogram, chosen, front_end)
    }
    return Local(
        logits=logits,
        predicted=tuple(c for c in order if logits[c] >= 0),  # probability 0.5
        activated=tuple(found[p] for p in activated.tolist()),
        likeliest=tuple(
            tuple(sorted((found[p] for p in ones.tolist()), key=_by_contribution))
            for ones in of_class
        ),
    )


def _of_class(model: audioprotopnet.AudioProtoPNet, target: int) -> np.ndarray:
    """The numbers of a class's prototypes."""
    each = model.config.num_prototypes
    return target * each + np.arange(each)


def _by_contribution(match: Match) -> float:
    return -match.contribution


def _matched(
    model: audioprotopnet.AudioProtoPNet,
    class_names: tuple[str, ...],
    spectrogram: Float[Array | np.ndarray, "freq time"],
    chosen: Int[np.ndarray, " chosen"],
    front_end: frontend.FrontEnd | None,
) -> list[Match]:
    """Some prototypes in a clip, in the order asked for."""
    each = model.config.num_prototypes
    weight = np.maximum(np.asarray(model.head.weight[...]), 0).ravel()
    maps = np.asarray(_maps(model, jnp.asarray(spectrogram)[None], chosen)[0])
    found = []
    for prototype, similarity in zip(chosen.tolist(), maps, strict=True):
        heat = on_spectrogram(
            similarity, np.shape(spectrogram), stride=model.backbone.stride
        )
        found.append(
            Match(
                prototype=prototype,
                class_name=class_names[prototype // each],
                similarity=float(similarity.max()),
                weight=float(weight[prototype]),
                heatmap=normalised(heat),
                area=explanation.area_of(box(heat), front_end),
            )
        )
    return found


def explain(
    model: audioprotopnet.AudioProtoPNet,
    class_names: tuple[str, ...],
    front_end: audio.FrontEnd,
    sound: look.Sound,
    *,
    sample_rate: int | None = None,
    offset_s: float = 0.0,
    target: str | int | None = None,
    num: int = 4,
    nearest: training.Nearest | None = None,
    num_examples: int = 5,
) -> explanation.Explanation:
    """Why an AudioProtoPNet says what it says of a clip, as APEX would be asked.

    Reports, sounds of regions and archives take it like any other. Its channels are
    the class's prototypes, their regions boxes, their examples the nearest clips.

    Args:
      model: the network.
      class_names: in the order of the logits.
      front_end: settings of the spectrogram.
      sound: a file, a waveform or a spectrogram.
      sample_rate: of a waveform, Hz.
      offset_s: where in the sound the clip starts.
      target: name or index of the class to explain; None for the most likely one.
      num: prototypes shown, at most.
      nearest: from `audioprotopnet.nearest`; None shows no training clips.
      num_examples: training clips of each, at most.

    Raises:
      AudioError: the sound, or a training clip, cannot be used.
      ValueError: no such class.
    """
    convnext.check_class_names(class_names, model.config.num_classes)
    network = audioprotopnet.as_network(model)
    (seen,) = look.looks(
        network, front_end, [(sound, offset_s)], sample_rate=sample_rate
    )
    assert seen.spectrogram is not None  # it was made from the sound
    predicted = int(np.argmax(seen.logits))
    wanted = _index(class_names, predicted if target is None else target)
    found = matches(
        model, class_names, seen.spectrogram, target=wanted, front_end=front_end
    )
    channels = tuple(
        explanation.Channel(
            index=match.prototype,
            contribution=match.contribution,
            location=(schemes.ALL, schemes.ALL),  # of the finer map, and no cell
            areas=(match.area,),
            heatmap=match.heatmap.astype(np.float32),
            prototypes=_examples(
                model, class_names, front_end, match, nearest, num_examples
            ),
        )
        for match in found[:num]
    )
    # By prototype: those of other classes add nothing.
    contributions = np.zeros(len(class_names) * model.config.num_prototypes, np.float32)
    for match in found:
        contributions[match.prototype] = match.contribution
    total = float(contributions.sum())
    shown = sum(channel.contribution for channel in channels)
    return explanation.Explanation(
        source=seen.source,
        offset_s=seen.offset_s,
        sound_s=seen.sound_s,
        waveform=seen.waveform,
        sample_rate=seen.sample_rate,
        class_names=tuple(class_names),
        activation="sigmoid",
        logits=seen.logits,
        predicted=predicted,
        target=wanted,
        method="audioprotopnet",
        scheme="square",
        front_end=front_end,
        spectrogram=seen.spectrogram,
        channels=channels,
        contributions=contributions,
        evidence_share=shown / total if total else 1.0,
    )


def examples(
    model: audioprotopnet.AudioProtoPNet,
    class_names: tuple[str, ...],
    front_end: audio.FrontEnd,
    found: Sequence[Match],
    nearest: training.Nearest,
) -> list[tuple[str, np.ndarray, Match]]:
    """The training clip that comes closest to each of the prototypes found.

    Args:
      model: the network.
      class_names: in the order of the logits.
      front_end: settings of the spectrogram.
      found: from `matches`, of classes that have training clips.
      nearest: from `audioprotopnet.nearest`.

    Returns:
      For each its file, its spectrogram and the same prototype there, as
      `figures.prototypes` takes them.

    Raises:
      AudioError: a training clip cannot be used.
      ValueError: a prototype whose class has no training clip.
    """
    shown = []
    for match in found:
        index = int(nearest.index[match.prototype, 0])
        if index < 0:
            raise ValueError(
                f"prototype {match.prototype} is of {match.class_name}, of which there "
                "is no training clip"
            )
        clip = nearest.clips[index]
        pixels, there = _in_clip(model, class_names, front_end, match, clip)
        shown.append((str(clip.path), pixels, there))
    return shown


def _index(class_names: tuple[str, ...], target: str | int) -> int:
    if isinstance(target, str):
        if target not in class_names:
            raise ValueError(
                f"target {target!r} is none of the classes {', '.join(class_names[:9])}"
                f"{', ...' * (len(class_names) > 9)}"
            )
        return class_names.index(target)
    return int(target)


def _examples(
    model: audioprotopnet.AudioProtoPNet,
    class_names: tuple[str, ...],
    front_end: audio.FrontEnd,
    match: Match,
    nearest: training.Nearest | None,
    num: int,
) -> tuple[explanation.Prototype, ...]:
    """The training clips that come closest to a prototype, with their boxes."""
    if nearest is None:
        return ()
    index = nearest.index[match.prototype, :num]
    found = []
    for clip in (nearest.clips[i] for i in index if i >= 0):
        pixels, there = _in_clip(model, class_names, front_end, match, clip)
        found.append(
            explanation.Prototype(
                clip=clip,
                class_name=", ".join(class_names[label] for label in clip.labels),
                activation=there.similarity,
                purity=None,
                location=(schemes.ALL, schemes.ALL),
                areas=(there.area,),
                spectrogram=pixels,
                heatmap=there.heatmap.astype(np.float32),
            )
        )
    return tuple(found)


def _in_clip(
    model: audioprotopnet.AudioProtoPNet,
    class_names: tuple[str, ...],
    front_end: audio.FrontEnd,
    match: Match,
    clip: data.Clip,
) -> tuple[np.ndarray, Match]:
    """A training clip's spectrogram, and the same prototype there."""
    pixels = look.spectrogram_of(
        front_end, audio.load_clip(clip.path, front_end, clip.offset_s)
    )
    chosen = np.array([match.prototype])
    (there,) = _matched(model, class_names, pixels, chosen, front_end)
    return pixels, there


@jax.jit
def _judged(
    model: audioprotopnet.AudioProtoPNet, spectrogram: Float[Array, "one freq time"]
) -> tuple[jax.Array, jax.Array]:
    """The best similarity of every prototype, and the logits."""
    return audioprotopnet.forward(model, spectrogram)


@jax.jit
def _maps(
    model: audioprotopnet.AudioProtoPNet,
    spectrogram: Float[Array, "one freq time"],
    chosen: Int[Array | np.ndarray, " chosen"],
) -> jax.Array:
    return model.head.maps(model.backbone.body(spectrogram), chosen)


def on_spectrogram(
    similarity: Float[np.ndarray, "fine_freq fine_time"],
    shape: tuple[int, int],
    *,
    stride: int | None = None,
) -> Float[np.ndarray, "freq time"]:
    """A similarity map as large as the spectrogram.

    Args:
      similarity: of one prototype, on the finer map.
      shape: rows and frames of the spectrogram.
      stride: what a cell of the network's map covers; rows and frames beyond the last
        cell repeat it. None stretches the map over the whole spectrogram, as its
        authors do: at the end of a clip it then lies up to a cell too late.
    """
    if stride is None:
        return enlarge(similarity, shape)
    fine = stride // audioprotopnet.UPSAMPLING
    covered = enlarge(similarity, tuple(fine * n for n in similarity.shape))
    beyond = [
        (0, whole - part) for whole, part in zip(shape, covered.shape, strict=True)
    ]
    return np.pad(covered, beyond, mode="edge")


def enlarge(
    values: Float[np.ndarray, "freq time"], shape: tuple[int, ...]
) -> Float[np.ndarray, "new_freq new_time"]:
    """Cubic interpolation as OpenCV's `INTER_CUBIC`, float64: edges are repeated."""
    rows, columns = (
        _cubic(old, new) for old, new in zip(values.shape, shape, strict=True)
    )
    return rows @ np.asarray(values, np.float64) @ columns.T


@functools.cache
def _cubic(old: int, new: int) -> np.ndarray:
    """How much each of `old` samples counts in each of `new`, `[new, old]`."""
    place = (np.arange(new) + 0.5) * old / new - 0.5
    weights = np.zeros((new, old))
    for step in (-1, 0, 1, 2):
        sample = np.floor(place).astype(int) + step
        distance = np.abs(place - sample)
        near = ((SHARPNESS + 2) * distance - (SHARPNESS + 3)) * distance**2 + 1
        far = SHARPNESS * (((distance - 5) * distance + 8) * distance - 4)
        weight = np.where(distance <= 1, near, far)
        np.add.at(weights, (np.arange(new), np.clip(sample, 0, old - 1)), weight)
    return weights


def box(heat: Float[np.ndarray, "freq time"]) -> schemes.Box:
    """The box around the part of a map that stands out.

    Of the values at or above the 95th percentile, the connected group (diagonals
    count) with the largest mean; of equals the one that begins in the lowest row.

    On a map that is flat but for rounding, as that of a prototype that is similar to
    nothing in a clip, no part stands out: the box is the whole map.
    """
    from scipy import ndimage

    if _is_flat(heat):
        rows, frames = ((0.0, float(size)) for size in heat.shape)
        return schemes.Box(rows=rows, frames=frames)
    bright = heat >= np.percentile(heat, PERCENTILE)
    labels, number = ndimage.label(bright, structure=np.ones((3, 3)))
    means = ndimage.mean(heat, labels, np.arange(1, number + 1))
    rows, frames = ndimage.find_objects(labels)[int(np.argmax(means))]
    return schemes.Box(
        rows=(float(rows.start), float(rows.stop)),
        frames=(float(frames.start), float(frames.stop)),
    )


def normalised(heat: Float[np.ndarray, "freq time"]) -> Float[np.ndarray, "freq time"]:
    """From 0 to 1; 0 everywhere where a map is flat but for rounding."""
    if _is_flat(heat):
        return np.zeros_like(heat)
    above = heat - heat.min()
    return above / above.max()


def _is_flat(heat: np.ndarray) -> bool:
    low, high = float(heat.min()), float(heat.max())
    return high - low <= FLAT * max(abs(low), abs(high))
