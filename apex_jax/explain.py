"""Explaining one clip: the front door of the package (method, section 7).

In comes a sound; out comes an `explanation.Explanation`: the channels that contribute
most to a class, where each of them lies in the spectrogram, its heatmap, and the
training clips that show what the channel stands for.

    >>> from apex_jax import explain
    >>> explainer = explain.load("runs/demo-frequency")  # doctest: +SKIP
    >>> explanation = explainer("clip.wav")  # doctest: +SKIP
"""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any, get_args

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from apex_jax import (
    audio,
    bank,
    cache,
    checkpoint,
    data,
    disentangle,
    evidence,
    explanation,
    frontend,
    schemes,
)
from apex_jax import classifier as classifier_lib
from apex_jax.models import convnext


def _count(name: str, value: int | None, usual: int, most: int) -> int:
    """`value` if it is possible; where nothing was asked, the usual or all."""
    if value is None:
        return min(usual, most)
    if not 0 < value <= most:
        raise ValueError(f"{name} must be between 1 and {most}; got {value}")
    return value


@jax.jit
def _rank(
    transform: disentangle.Transform,
    head: classifier_lib.LinearHead,
    pooled: Float[Array, "batch chan"],
    target: Int[Array, " batch"],
) -> Float[Array, "batch chan"]:
    return jax.vmap(functools.partial(evidence.contributions, head))(
        transform(pooled), target
    )


@functools.partial(jax.jit, static_argnames=("front_end",))
def _forward(
    classifier: classifier_lib.Classifier,
    waveform: Float[Array, "batch sample"],
    *,
    front_end: audio.FrontEnd,
) -> tuple[jax.Array, jax.Array, jax.Array]:
    spectrogram = audio.spectrogram(front_end, waveform)
    return spectrogram, *classifier(spectrogram)


@functools.partial(jax.jit, static_argnames=("scheme", "grid"))
def _show(
    transform: disentangle.Transform,
    head: classifier_lib.LinearHead,
    feature_map: Float[Array, "batch freq time chan"],
    channel: Int[Array, " batch"],
    target: Int[Array, ""],
    *,
    scheme: schemes.Scheme,
    grid: schemes.Grid,
) -> tuple[Int[Array, "batch 2"], Float[Array, "batch rows frames"]]:
    """Location and heatmap of one channel of each map."""

    def one(feature_map, channel):
        views = schemes.views(feature_map, keep_cells=True)
        location = schemes.locate(scheme, views, transform.matrix[channel])
        return location, evidence.heatmap(
            head, transform, feature_map, channel, target, grid=grid
        )

    return jax.vmap(one)(feature_map, channel)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Explainer:
    """Everything it takes to explain a clip.

    Attributes:
      classifier: the untouched network.
      transform: U, U^-1, mu.
      positive: the clips that excite each channel most.
      negative: the clips that excite it least.
      clips: the training clips that the banks point to.
      front_end: settings of the spectrogram.
      chunk_size: clips in the network at a time; bounds memory.
    """

    classifier: classifier_lib.Classifier
    transform: disentangle.Transform
    positive: bank.Bank
    negative: bank.Bank
    clips: Sequence[data.Clip]
    front_end: audio.FrontEnd
    chunk_size: int = 8

    @property
    def scheme(self) -> schemes.Scheme:
        """Where prototypes lie."""
        return self.positive.scheme

    @property
    def map_shape(self) -> tuple[int, int]:
        """`(F, T)` of the network's map of one clip."""
        waveform = jax.ShapeDtypeStruct((1, self.front_end.num_samples), jnp.float32)
        forward = functools.partial(_forward, front_end=self.front_end)
        feature_map = jax.eval_shape(forward, self.classifier, waveform)[1]
        return feature_map.shape[1], feature_map.shape[2]

    def __call__(
        self,
        sound: str | Path | Float[np.ndarray, " sample"],
        *,
        offset_s: float = 0.0,
        target: str | int | np.integer | None = None,
        num_channels: int | None = None,
        num_prototypes: int | None = None,
        sign: bank.Sign = "positive",
    ) -> explanation.Explanation:
        """Explains a clip.

        Args:
          sound: a file, or a waveform at the front end's sample rate. The clip is
            `front_end.clip_s` long: longer sounds are cut, shorter ones padded.
          offset_s: where in the file, or the waveform, the clip starts.
          target: name or index of the class to explain; None for the predicted one.
          num_channels: top channels; None for 4, or all where there are fewer.
          num_prototypes: training clips beside each; None for 5, or all.
          sign: "positive" for the clips that excite a channel most.

        Raises:
          AudioError: the sound cannot be used.
          ValueError: no such class, or a number out of range.
        """
        source, waveform, sound_s = self._read(sound, offset_s)
        spectrogram, feature_map, logits = _forward(
            self.classifier, waveform[None], front_end=self.front_end
        )
        predicted = int(jnp.argmax(logits[0]))
        wanted = jnp.int32(predicted if target is None else self._class_index(target))

        head = self.transform.compensate(self.classifier.head)
        pooled = classifier_lib.pool(feature_map)
        share = np.asarray(_rank(self.transform, head, pooled, wanted[None])[0])
        if sign not in get_args(bank.Sign):
            raise ValueError(f"sign must be positive or negative; got {sign!r}")
        chosen_bank = self.positive if sign == "positive" else self.negative
        num_channels = _count("num_channels", num_channels, 4, len(share))
        num_prototypes = _count(
            "num_prototypes", num_prototypes, 5, chosen_bank.clip.shape[1]
        )
        # A stable sort: equal contributions go to the lowest channel.
        top = np.argsort(-share, kind="stable")[:num_channels]

        grid = self.grid(feature_map.shape[1:3], spectrogram.shape[1:])
        location, heat = _show(
            self.transform,
            head,
            jnp.broadcast_to(feature_map, (num_channels, *feature_map.shape[1:])),
            jnp.asarray(top),
            wanted,
            scheme=self.scheme,
            grid=grid,
        )
        prototypes = self._prototypes(
            head, top, wanted, chosen_bank, num_prototypes, grid
        )
        channels = tuple(
            explanation.Channel(
                index=int(k),
                contribution=float(share[k]),
                areas=self.areas(grid, location[i]),
                heatmap=np.asarray(heat[i]),
                prototypes=prototypes[i],
            )
            for i, k in enumerate(top)
        )
        positive = np.maximum(share, 0).sum()
        return explanation.Explanation(
            source=source,
            offset_s=float(offset_s),
            sound_s=float(min(sound_s, self.front_end.clip_s)),
            class_names=self.classifier.class_names,
            logits=np.asarray(logits[0]),
            predicted=predicted,
            target=int(wanted),
            scheme=self.scheme,
            sign=sign,
            spectrogram=np.asarray(spectrogram[0]),
            channels=channels,
            evidence_share=float(np.maximum(share[top], 0).sum() / positive)
            if positive > 0
            else 0.0,
        )

    def grid(self, map_shape: tuple[int, int], shape: tuple[int, int]) -> schemes.Grid:
        """How the network's cells lie on a spectrogram of `shape`."""
        return schemes.Grid.of(map_shape, shape, self.classifier.stride)

    def areas(
        self, grid: schemes.Grid, location: Int[Array | np.ndarray, "2"]
    ) -> tuple[explanation.Area, ...]:
        """The region at a location, in pixels, seconds and hertz."""
        found = []
        for box in grid.boxes(self.scheme, tuple(np.asarray(location).tolist())):
            low, high = self.front_end.band_hz(*box.rows)
            start, end = self.front_end.span_s(*box.frames)
            found.append(
                explanation.Area(
                    box=box,
                    start_s=float(start),
                    end_s=float(end),
                    low_hz=float(low),
                    high_hz=float(high),
                )
            )
        return tuple(found)

    def _read(
        self, sound: str | Path | np.ndarray, offset_s: float
    ) -> tuple[str, np.ndarray, float]:
        """Source, the clip's waveform, and the seconds of it that are sound."""
        if isinstance(sound, str | Path):
            waveform = audio.load_clip(sound, self.front_end, offset_s)
            return str(sound), waveform, audio.duration(sound) - offset_s
        if not isinstance(sound, np.ndarray):
            raise ValueError(
                "sound must be a file's path or a NumPy array, [sample]; got "
                f"{type(sound).__name__}"
            )
        if not np.issubdtype(sound.dtype, np.floating):
            raise ValueError(
                "a waveform must be floating point with full scale 1; got "
                f"{sound.dtype}"
            )
        waveform = sound.astype(np.float32)
        if waveform.ndim != 1:
            raise ValueError(
                f"a waveform must be one channel, [sample]; got shape {waveform.shape}"
            )
        # Written so that NaN is caught too.
        if not (np.abs(waveform) <= frontend.LARGEST_SAMPLE).all():
            raise ValueError(
                "a waveform must be finite and of magnitude up to "
                f"{frontend.LARGEST_SAMPLE:g} (full scale is 1); got NaN, infinity or "
                "more"
            )
        if not math.isfinite(offset_s):
            raise ValueError(f"offset_s must be finite; got {offset_s}")
        start = round(offset_s * self.front_end.sample_rate)
        if not 0 <= start < len(waveform):
            raise ValueError(
                f"offset_s must lie within the waveform of {len(waveform)} samples; "
                f"got {offset_s} s, sample {start}"
            )
        window = self.front_end.win_length or self.front_end.n_fft
        if len(waveform) - start < window:
            raise ValueError(
                f"the waveform is too short: {len(waveform) - start} samples from "
                f"{offset_s:g} s; one analysis window takes {window}"
            )
        waveform = waveform[start:]
        return (
            "waveform",
            audio.fit_length(waveform, self.front_end.num_samples),
            len(waveform) / self.front_end.sample_rate,
        )

    def _class_index(self, target: str | int | np.integer) -> int:
        names = self.classifier.class_names
        if isinstance(target, str) and target in names:
            return names.index(target)
        if isinstance(target, int | np.integer) and 0 <= target < len(names):
            return int(target)
        raise ValueError(f"target must be one of {', '.join(names)}; got {target!r}")

    def _prototypes(
        self,
        head: classifier_lib.LinearHead,
        channels: np.ndarray,
        target: jax.Array,
        prototypes: bank.Bank,
        num: int,
        grid: schemes.Grid,
    ) -> list[tuple[explanation.Prototype, ...]]:
        """The first `num` prototypes of each channel, through the network again."""
        pairs = [(int(k), n) for k in channels for n in range(num)]
        clip_index, activation, purity = (
            np.asarray(a)
            for a in (prototypes.clip, prototypes.activation, prototypes.purity)
        )
        shown: list[explanation.Prototype] = []
        for first in range(0, len(pairs), self.chunk_size):
            chunk = pairs[first : first + self.chunk_size]
            clips = [self.clips[clip_index[pair]] for pair in chunk]
            waveform = np.zeros((self.chunk_size, self.front_end.num_samples), "f4")
            channel = np.zeros(self.chunk_size, np.int32)
            for i, (clip, (k, _)) in enumerate(zip(clips, chunk, strict=True)):
                waveform[i] = audio.load_clip(clip.path, self.front_end, clip.offset_s)
                channel[i] = k
            spectrogram, feature_map, _ = _forward(
                self.classifier, waveform, front_end=self.front_end
            )
            location, heat = _show(
                self.transform,
                head,
                feature_map,
                channel,
                target,
                scheme=self.scheme,
                grid=grid,
            )
            shown += [
                explanation.Prototype(
                    clip=clip,
                    class_name=self.classifier.class_names[clip.label],
                    activation=float(activation[pair]),
                    purity=float(purity[pair]),
                    areas=self.areas(grid, location[i]),
                    spectrogram=np.asarray(spectrogram[i]),
                    heatmap=np.asarray(heat[i]),
                )
                for i, (clip, pair) in enumerate(zip(clips, chunk, strict=True))
            ]
        return [tuple(shown[i : i + num]) for i in range(0, len(shown), num)]


def save(
    directory: str | Path, explainer: Explainer, *, overwrite: bool = False
) -> None:
    """Writes an explainer of a ConvNeXt to `directory/classifier` and `directory/apex`.

    Clips are kept by path, relative to `directory` where they lie inside it, and only
    those that a bank points to.

    Raises:
      ValueError: the classifier is not a ConvNeXt of this package.
    """
    directory = Path(directory).absolute()
    model = explainer.classifier.params
    if not isinstance(model, convnext.ConvNeXt):
        raise ValueError(
            "explain.save writes classifiers made by models.convnext; got params of "
            f"type {type(model).__name__}"
        )
    checkpoint.save_classifier(
        directory / "classifier",
        model,
        class_names=explainer.classifier.class_names,
        front_end=explainer.front_end.to_dict(),
        overwrite=overwrite,
    )
    banks = {"positive": explainer.positive, "negative": explainer.negative}
    used, packed = np.unique(
        np.stack([np.asarray(b.clip) for b in banks.values()]), return_inverse=True
    )
    packed = packed.reshape(2, *explainer.positive.clip.shape)
    arrays: dict[str, Any] = {
        "matrix": explainer.transform.matrix,
        "inverse": explainer.transform.inverse,
        "centre": explainer.transform.centre,
    }
    for clips, (sign, one) in zip(packed, banks.items(), strict=True):
        arrays[sign] = {
            "clip": clips.astype(np.int32),
            "activation": one.activation,
            "location": one.location,
            "purity": one.purity,
        }
    listing = []
    for i in used:
        clip = explainer.clips[i]
        path = Path(clip.path).absolute()
        if path.is_relative_to(directory):
            path = path.relative_to(directory)
        listing.append(
            {
                "path": str(path),
                "label": clip.label,
                "offset_s": clip.offset_s,
                "group": clip.group,
            }
        )
    checkpoint.save(
        directory / "apex",
        arrays,
        {
            "scheme": explainer.scheme,
            "clips": listing,
            "weights": cache.weights_digest(explainer.classifier),
        },
        kind="explainer",
        overwrite=overwrite,
    )


def load(directory: str | Path) -> Explainer:
    """Reads what `save` wrote: a finished run of an experiment, for one.

    Raises:
      FileNotFoundError: there is no such run.
      ValueError: the folder holds something else, is of another format, or its
        classifier is not the one that was explained.
    """
    directory = Path(directory).absolute()
    model, metadata = checkpoint.load_classifier(directory / "classifier")
    arrays, made = checkpoint.load(directory / "apex", kind="explainer")
    classifier = convnext.as_classifier(model, metadata["class_names"])
    if made["weights"] != cache.weights_digest(classifier):
        raise ValueError(
            f"{directory / 'apex'} was fitted to another network than "
            f"{directory / 'classifier'} holds; fit it again"
        )
    arrays = jax.tree.map(jnp.asarray, arrays)
    scheme = schemes.parse(made["scheme"])
    positive, negative = (
        bank.Bank(scheme=scheme, sign=sign, **arrays[sign])
        for sign in get_args(bank.Sign)
    )
    return Explainer(
        classifier=classifier,
        transform=disentangle.Transform(
            matrix=arrays["matrix"], inverse=arrays["inverse"], centre=arrays["centre"]
        ),
        positive=positive,
        negative=negative,
        # Joined to a folder, an absolute path stays as it is.
        clips=tuple(
            data.Clip(**{**clip, "path": directory / clip["path"]})
            for clip in made["clips"]
        ),
        front_end=audio.FrontEnd.from_dict(metadata["front_end"]),
    )
