"""Looking at a clip: from a sound to what the network makes of it.

In comes a file, a waveform or a spectrogram; out comes a `Look`, the network's map
and logits beside the spectrogram it saw. Everything that explains starts here.
"""

from __future__ import annotations

import dataclasses
import functools
import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from apex_jax import audio, schemes
from apex_jax import classifier as classifier_lib

# Of one recording: a year of it, a window every half minute.
MOST_WINDOWS = 1_000_000

# A file's path, a waveform [sample], or a spectrogram [F_in, T_in].
Sound = str | os.PathLike | np.ndarray


@dataclasses.dataclass(frozen=True, kw_only=True)
class Look:
    """What a network makes of one clip.

    Attributes:
      source: as in `explanation.Explanation`, like the next four.
      offset_s: where in the source the clip starts.
      sound_s: how much of it is sound.
      waveform: the clip's own samples, where they are in no file.
      sample_rate: of `waveform`, Hz.
      spectrogram: `[F_in, T_in]`, or None.
      views: of its folded feature map, on the host.
      logits: the network's own, `[classes]`.
      effects: by scheme, what each region adds to the pooled vector, where that was
        asked for; see `occlusion.effects`.
      given: whether the map was given and not computed here, so that what the network
        would make of other sounds is not known.
    """

    source: str
    offset_s: float = 0.0
    sound_s: float | None = None
    waveform: np.ndarray | None = None
    sample_rate: int | None = None
    spectrogram: np.ndarray | None
    views: schemes.Views
    logits: np.ndarray
    effects: Mapping[schemes.Scheme, schemes.Views] = dataclasses.field(
        default_factory=dict
    )
    given: bool = False


def looks(
    classifier: classifier_lib.Network,
    front_end: audio.FrontEnd,
    sounds: Sequence[tuple[Sound, float]],
    *,
    sample_rate: int | None = None,
    chunk_size: int = 8,
) -> Iterator[Look]:
    """What the network makes of several sounds.

    Args:
      classifier: the network.
      front_end: settings of its spectrogram.
      sounds: what, and where in it the clip starts, in seconds.
      sample_rate: of waveforms among them, Hz.
      chunk_size: clips in the network at a time.

    Raises:
      AudioError: a file cannot be used.
      ValueError: a waveform or a spectrogram cannot.
    """
    # One by itself runs alone.
    size = 1 if len(sounds) == 1 else chunk_size
    for first in range(0, len(sounds), size):
        chunk = sounds[first : first + size]
        known = [_read(front_end, *one, sample_rate) for one in chunk]
        views, logits = run(classifier, [one["spectrogram"] for one in known], size)
        for i, facts in enumerate(known):
            mine = jax.tree.map(lambda a, i=i: a[i], views)
            yield Look(**facts, views=mine, logits=logits[i])


def pooled(
    classifier: classifier_lib.Network,
    spectrograms: Float[np.ndarray, "copy freq time"],
    chunk_size: int = 8,
) -> Float[np.ndarray, "copy chan"]:
    """Pooled vectors of many spectrograms, on the host.

    Args:
      classifier: the network.
      spectrograms: in the front end's units.
      chunk_size: how many in the network at a time.
    """
    found = []
    for first in range(0, len(spectrograms), chunk_size):
        chunk = list(spectrograms[first : first + chunk_size])
        views, _ = run(classifier, chunk, chunk_size)
        found.append(np.asarray(views.rows[: len(chunk)]).mean(axis=1))
    return np.concatenate(found)


def offsets(
    front_end: audio.FrontEnd,
    path: str | os.PathLike,
    hop_s: float | None = None,
    *,
    start_s: float = 0.0,
    end_s: float | None = None,
) -> list[float]:
    """Where the windows of a recording start, in seconds.

    Args:
      front_end: for the length of a window.
      path: the recording.
      hop_s: from one window to the next; None for windows that touch.
      start_s: where the first window starts.
      end_s: where the last one ends; None for the recording's end.

    Returns:
      One offset at least. The last window ends at `end_s`, if there is room.

    Raises:
      AudioError: the recording cannot be used, ends before `start_s`, or lacks the
        end that its header promises.
      ValueError: `hop_s` is not positive, or so small that there would be more than
        `MOST_WINDOWS`.
    """
    hop_s = float(front_end.clip_s if hop_s is None else hop_s)
    if not hop_s > 0:
        raise ValueError(f"hop_s must be positive seconds; got {hop_s}")
    length_s = audio.duration(Path(path), check_end=True)
    if not 0 <= start_s < length_s:
        raise audio.AudioError(
            Path(path), f"{length_s:g} s long; a start at {start_s:g} s lies outside"
        )
    last_s = (length_s if end_s is None else min(length_s, end_s)) - front_end.clip_s
    # To a sample: lengths in seconds are quotients.
    sample_s = 1 / front_end.sample_rate
    many = max(0.0, last_s - start_s + sample_s) / hop_s
    if not many < MOST_WINDOWS:
        raise ValueError(
            f"{path} is {length_s:g} s long; a window every {hop_s:g} s would be more "
            f"than {MOST_WINDOWS:,} windows; choose a larger hop_s"
        )
    count = int(many)
    starts = [start_s + n * hop_s for n in range(count + 1)]
    return starts if last_s - starts[-1] <= sample_s else [*starts, last_s]


def of_map(
    feature_map: Float[np.ndarray, "freq time chan"] | schemes.Views,
    head: classifier_lib.LinearHead,
    *,
    logits: Float[np.ndarray, " classes"] | None = None,
    spectrogram: Float[np.ndarray, "rows frames"] | None = None,
    shape: tuple[int, int] | None = None,
    source: str | os.PathLike = "feature map",
    offset_s: float = 0.0,
    front_end: audio.FrontEnd | None = None,
) -> Look:
    """A look at a clip whose feature map was computed elsewhere.

    Args:
      feature_map: the folded map `[F, T, chan]`, or its averages.
      head: the network's linear layer.
      logits: the network's own; None: what `head` says of the map.
      spectrogram: to draw on; None for that of `source`, if it can be had.
      shape: what the spectrogram has to be like; None for any.
      source: the clip's file, if there is one.
      offset_s: where in it the clip starts.
      front_end: settings of the spectrogram, or None.

    Raises:
      AudioError: `source` is a file that cannot be used.
      ValueError: a shape that does not fit, or values that are not finite.
    """
    views = feature_map
    if not isinstance(views, schemes.Views):
        views = schemes.views(jnp.asarray(views), keep_cells=True)
    chan = head.weight.shape[1]
    if views.rows.ndim != 2 or views.rows.shape[1] != chan:
        raise ValueError(
            f"feature_map must be [F, T, {chan}], as wide as the head; got rows "
            f"{views.rows.shape} and columns {views.columns.shape}"
        )
    if logits is None:
        logits = np.asarray(head(jnp.mean(jnp.asarray(views.rows), axis=0)))
    sound_s = None
    if front_end is not None and Path(source).is_file():
        path = Path(source)
        sound_s = min(audio.duration(path) - offset_s, float(front_end.clip_s))
        if spectrogram is None:
            waveform = audio.load_clip(path, front_end, offset_s)
            spectrogram = spectrogram_of(front_end, waveform)
    if spectrogram is not None:
        if shape is not None and spectrogram.shape != shape:
            raise ValueError(
                f"spectrogram must be {list(shape)}, as the training clips'; got "
                f"{list(spectrogram.shape)}"
            )
        if not np.isfinite(spectrogram).all():
            raise ValueError("spectrogram must be finite; got NaN or infinity")
        spectrogram = _constant(spectrogram)
    return Look(
        source=str(source),
        offset_s=float(offset_s),
        sound_s=sound_s,
        spectrogram=spectrogram,
        views=jax.tree.map(_constant, views),
        logits=_constant(logits),
        given=True,
    )


def run(
    classifier: classifier_lib.Network,
    spectrograms: Sequence[np.ndarray],
    size: int,
) -> tuple[schemes.Views, np.ndarray]:
    """Views and logits of up to `size` clips, in a batch that always has that many."""
    batch = np.zeros((size, *spectrograms[0].shape), np.float32)
    batch[: len(spectrograms)] = spectrograms
    views, logits = network(classifier, jnp.asarray(batch))
    return jax.tree.map(np.asarray, views), np.asarray(logits)


@jax.jit
def network(
    classifier: classifier_lib.Network,
    spectrogram: Float[Array, "batch freq time"],
) -> tuple[schemes.Views, jax.Array]:
    """Views with cells, and the network's own logits, of a batch of spectrograms."""
    feature_map, logits = classifier(spectrogram)
    return schemes.views(feature_map, keep_cells=True), logits


def spectrogram_of(
    front_end: audio.FrontEnd, waveform: Float[np.ndarray, " sample"]
) -> Float[np.ndarray, "freq time"]:
    """The spectrogram of one clip, on the host."""
    return np.asarray(_spectrogram(waveform, front_end=front_end))


@functools.partial(jax.jit, static_argnames=("front_end",))
def _spectrogram(
    waveform: Float[Array | np.ndarray, " sample"], *, front_end: audio.FrontEnd
) -> Float[Array, "freq time"]:
    # Of each clip alone: a batch-wide `top_db` would depend on its mates.
    return audio.spectrogram(front_end, waveform[None])[0]


def _read(
    front_end: audio.FrontEnd, sound: Sound, offset_s: float, sample_rate: int | None
) -> dict[str, Any]:
    """What a `Look` says of a sound before the network sees it."""
    if isinstance(sound, str | os.PathLike):
        path = Path(sound)
        waveform = audio.load_clip(path, front_end, offset_s)
        sound_s = min(audio.duration(path) - offset_s, float(front_end.clip_s))
        facts: dict[str, Any] = {"source": str(sound), "sound_s": sound_s}
    elif not isinstance(sound, np.ndarray):
        raise ValueError(
            "sound must be a file's path, a waveform [sample] or a spectrogram "
            f"{list(front_end.shape)}, NumPy arrays; got {type(sound).__name__}"
        )
    elif sound.ndim == 2:
        if sound.shape != front_end.shape or not np.isfinite(sound).all():
            raise ValueError(
                f"a spectrogram must be {list(front_end.shape)} in the front end's "
                f"units, and finite; got shape {list(sound.shape)}. A waveform has "
                "one channel, [sample]"
            )
        return {"source": "spectrogram", "spectrogram": _constant(sound)}
    else:
        if sample_rate is None:
            raise ValueError("sample_rate must say how fast the waveform is, in Hz")
        waveform = audio.clip_of(sound, sample_rate, front_end, offset_s)
        first = round(offset_s * sample_rate)
        count = round(front_end.clip_s * sample_rate)
        samples = _constant(sound[first : first + count])
        facts = {
            "source": "waveform",
            "sound_s": len(samples) / sample_rate,
            "waveform": samples,
            "sample_rate": sample_rate,
        }
    return {
        **facts,
        "offset_s": float(offset_s),
        "spectrogram": spectrogram_of(front_end, waveform),
    }


def _constant(values: jax.Array | np.ndarray) -> np.ndarray:
    """A float32 copy that nobody changes."""
    copy = np.array(values, np.float32)
    copy.setflags(write=False)
    return copy
