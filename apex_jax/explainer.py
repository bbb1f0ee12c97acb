"""Explaining clips: channels, regions, heatmaps, prototypes (method, section 7).

In comes a sound, a spectrogram or a feature map; out comes an
`explanation.Explanation` of one class: the channels that contribute most, where each
of them lies, and the training clips that show what it stands for. `explain` is the
front door, where explainers are loaded and saved.
"""

from __future__ import annotations

import dataclasses
import functools
import os
from collections.abc import Iterator, Sequence
from typing import TypedDict, Unpack, get_args, overload

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from apex_jax import (
    audio,
    bank,
    data,
    disentangle,
    explanation,
    gallery,
    look,
    occlusion,
    schemes,
    settings,
)
from apex_jax import classifier as classifier_lib
from apex_jax import evidence as evidence_lib

# Several clips to explain in one go.
Several = list[look.Sound | look.Look] | tuple[look.Sound | look.Look, ...]


@jax.jit
def _contributions(
    transform: disentangle.Transform,
    head: classifier_lib.LinearHead,
    counting: classifier_lib.LinearHead,
    pooled: Float[Array, " chan"],
    target: Int[Array, ""],
) -> tuple[Float[Array, " chan"], Float[Array, " classes"]]:
    """Of all channels to what counts, and the logits of the compensated head."""
    transformed = transform(pooled)
    share = evidence_lib.contributions(counting, transformed, target)
    return share, head(transformed)


@functools.partial(jax.jit, static_argnames=("scheme", "grid"))
def _channels(
    transform: disentangle.Transform,
    head: classifier_lib.LinearHead,
    views: schemes.Views,
    channels: Int[Array, " top"],
    target: Int[Array, ""],
    *,
    scheme: schemes.Scheme,
    grid: schemes.Grid,
) -> tuple[Int[Array, "top 2"], Float[Array, "top rows frames"], Float[Array, " top"]]:
    """Location and heatmap of several channels of one clip, and the largest value."""

    def one(channel):
        return evidence_lib.placed(
            head, transform, views, channel, target, scheme=scheme, grid=grid
        )

    return jax.vmap(one)(channels)


@functools.partial(jax.jit, static_argnames=("scheme", "occluded"))
def _of_class(
    views: schemes.Views,
    direction: Float[Array, " chan"],
    *,
    scheme: schemes.Scheme,
    occluded: bool,
) -> tuple[Int[Array, "2"], Bool[Array, ""]]:
    """Where all channels together speak for a class, and whether anything does."""
    location = schemes.locate(scheme, views, direction)
    there = jnp.bool_(True)
    if occluded:
        cells = jnp.asarray(views.cells)
        heat = jnp.matmul(cells, direction, precision=disentangle.HIGHEST)
        there = jnp.max(heat) > 0
    return location, there


class Options(TypedDict, total=False):
    """What is shown of a clip, see `Explainer.explain`."""

    num_channels: int | None
    num_prototypes: int | None
    num_negatives: int
    evidence: settings.Evidence | None
    locate: settings.Location | None


@dataclasses.dataclass(frozen=True, kw_only=True)
class Explainer:
    """Everything it takes to explain a clip.

    Attributes:
      classifier: the untouched network.
      transform: U, U^-1, mu.
      positive: the clips that excite each channel most.
      negative: the clips that excite it least.
      raw: the clips that excite the network's own channels most, to compare with.
      clips: the training clips that the banks point to.
      front_end: settings of the spectrogram; None where only feature maps are known.
      kept: the training clips' maps, where the network cannot be run on their files.
      provenance: how all of it was made.
      chunk_size: clips in memory at a time.
    """

    classifier: classifier_lib.Classifier
    transform: disentangle.Transform
    positive: bank.Bank
    negative: bank.Bank
    raw: bank.Bank | None = None
    clips: Sequence[data.Clip]
    front_end: audio.FrontEnd | None = None
    kept: gallery.Kept | None = None
    provenance: explanation.Provenance = explanation.Provenance()
    chunk_size: int = 8

    def __post_init__(self) -> None:
        if self.chunk_size < 1:
            raise ValueError(f"chunk_size must be at least 1; got {self.chunk_size}")
        banks = [self.positive, self.negative]
        banks += [] if self.raw is None else [self.raw]
        if len({one.scheme for one in banks}) > 1:
            raise ValueError(
                "positive, negative and raw must be of one scheme; got "
                f"{', '.join(one.scheme for one in banks)}"
            )
        chan = self.classifier.head.weight.shape[-1]
        for one in banks:
            shape = (chan, *np.shape(one.clip)[1:2])
            for name in ("clip", "activation", "location", "purity"):
                wanted = (*shape, 2) if name == "location" else shape
                if len(shape) != 2 or np.shape(getattr(one, name)) != wanted:
                    raise ValueError(
                        f"{name} of a bank must be of each prototype of {chan} channels"
                        f", {wanted}; got {np.shape(getattr(one, name))}"
                    )
            if np.min(np.asarray(one.clip)) < 0:
                raise ValueError("clip of a bank must be positions of clips, from 0")
        last = max(int(np.max(np.asarray(one.clip))) for one in banks)
        if last >= len(self.clips):
            raise ValueError(
                f"clips must hold every clip that a bank points to, at least {last + 1}"
                f"; got {len(self.clips)}"
            )
        if self.kept is not None and len(self.kept) != len(self.clips):
            raise ValueError(
                f"kept must hold one map a clip, {len(self.clips)}; got "
                f"{len(self.kept)}"
            )

    @property
    def scheme(self) -> schemes.Scheme:
        """Where prototypes lie."""
        return self.positive.scheme

    @functools.cached_property
    def head(self) -> classifier_lib.LinearHead:
        """The compensated head."""
        return self.transform.compensate(self.classifier.head)

    @functools.cached_property
    def contrastive_head(self) -> classifier_lib.LinearHead:
        """Of the same decisions, each class against the others; of a softmax only."""
        return evidence_lib.contrastive(self.head, self.classifier.activation)

    @property
    def evidence(self) -> settings.Evidence:
        """What contributions count towards where nothing else is asked for.

        Contrastive under a softmax: what all classes share decides nothing.
        """
        return evidence_lib.best(self.head, self.classifier.activation)

    def _counting(self, kind: settings.Evidence) -> classifier_lib.LinearHead:
        """The head whose contributions count."""
        if kind == "contrastive":
            return self.contrastive_head
        return evidence_lib.head_of(self.head, self.classifier.activation, kind)

    @functools.cached_property
    def map_shape(self) -> tuple[int, int]:
        """`(F, T)` of the training clips' maps."""
        if self.kept is not None:
            views = self.kept.views
            return views.rows.shape[1], views.columns.shape[1]
        shape = (1, *self._front_end().shape)
        spectrogram = jax.ShapeDtypeStruct(shape, jnp.float32)
        feature_map, _ = jax.eval_shape(
            lambda classifier, spectrogram: classifier(spectrogram),
            self.classifier,
            spectrogram,
        )
        return feature_map.shape[1], feature_map.shape[2]

    @property
    def input_shape(self) -> tuple[int, int]:
        """`(F_in, T_in)` that regions are counted in; without pixels, cells."""
        if self.front_end is not None:
            return self.front_end.shape
        if self.kept is not None and self.kept.spectrogram is not None:
            rows, frames = self.kept.spectrogram.shape[1:]
            return rows, frames
        return self.map_shape

    @overload
    def __call__(
        self,
        sound: look.Sound | look.Look,
        *,
        sample_rate: int | None = None,
        offset_s: float = 0.0,
        target: str | int | np.integer | None = None,
        **options: Unpack[Options],
    ) -> explanation.Explanation: ...

    @overload
    def __call__(
        self,
        sound: Several,
        *,
        sample_rate: int | None = None,
        offset_s: float = 0.0,
        target: str | int | np.integer | None = None,
        **options: Unpack[Options],
    ) -> list[explanation.Explanation]: ...

    def __call__(
        self,
        sound: look.Sound | look.Look | Several,
        *,
        sample_rate: int | None = None,
        offset_s: float = 0.0,
        target: str | int | np.integer | None = None,
        **options: Unpack[Options],
    ) -> explanation.Explanation | list[explanation.Explanation]:
        """Explains a clip, or each of several.

        Args:
          sound: a file, a waveform `[sample]`, a spectrogram of the front end's shape
            and units, what `look` or `look_at_map` gave, or a list of them. A clip is
            `front_end.clip_s` long: longer sounds are cut, shorter ones padded.
          sample_rate: of a waveform, Hz; a waveform without one is refused.
          offset_s: where in the file, or the waveform, the clip starts.
          target: name or index of the class to explain; None for the predicted one.
          **options: see `explain`.

        Returns:
          An explanation; a list of them for a list of sounds.

        Raises:
          AudioError: a sound, or a prototype's file, cannot be used.
          InvarianceError: the transformed classifier disagrees with the network.
          ValueError: no such class, a number out of range, a shape that does not fit.
        """
        several = isinstance(sound, list | tuple)
        sounds = sound if isinstance(sound, list | tuple) else [sound]
        seen = self._looks([(one, offset_s) for one in sounds], sample_rate)
        found = [self.explain(one, target=target, **options) for one in seen]
        return found if several else found[0]

    def positives(
        self,
        sound: look.Sound | look.Look,
        *,
        sample_rate: int | None = None,
        offset_s: float = 0.0,
        **options: Unpack[Options],
    ) -> tuple[explanation.Explanation, ...]:
        """Explains each class that a multi-label classifier finds, likeliest first.

        That is each with a probability above one half; where there is none, and for
        a classifier of one class a clip, the most likely class alone.

        Args:
          sound: as in `__call__`, like the next two.
          sample_rate: of a waveform.
          offset_s: where the clip starts.
          **options: see `explain`.
        """
        (seen,) = self._looks([(sound, offset_s)], sample_rate)
        return self._each(seen, self._positive(seen), **options)

    def windows(
        self,
        path: str | os.PathLike,
        *,
        hop_s: float | None = None,
        positives: bool = False,
        target: str | int | np.integer | None = None,
        **options: Unpack[Options],
    ) -> Iterator[explanation.Explanation]:
        """Explains a long recording window by window, in order of time.

        Args:
          path: the recording.
          hop_s: from one window to the next; None for windows that touch. A last
            window ends where the recording does, and may overlap the one before.
          positives: each class that is found in a window, as `positives` does.
          target: the class to explain in every window; None for the predicted one.
          **options: see `explain`.

        Raises:
          AudioError: the recording, or a prototype's file, cannot be used.
          ValueError: `hop_s` is not positive, or see `__call__`.
        """
        offsets = self.offsets(path, hop_s=hop_s)
        for seen in self._looks([(path, at) for at in offsets], None):
            targets = self._positive(seen) if positives else (target,)
            yield from self._each(seen, targets, **options)

    def offsets(
        self, path: str | os.PathLike, *, hop_s: float | None = None
    ) -> list[float]:
        """Where the windows of a recording start, in seconds; see `windows`."""
        return look.offsets(self._front_end(), path, hop_s)

    def from_map(
        self,
        feature_map: Float[np.ndarray, "freq time chan"] | schemes.Views,
        *,
        logits: Float[np.ndarray, " classes"] | None = None,
        spectrogram: Float[np.ndarray, "rows frames"] | None = None,
        source: str | os.PathLike = "feature map",
        offset_s: float = 0.0,
        target: str | int | np.integer | None = None,
        **options: Unpack[Options],
    ) -> explanation.Explanation:
        """Explains a clip by its feature map, computed by any framework.

        Short for `explain(look_at_map(...))`; see there.

        Args:
          feature_map: the folded map `[F, T, chan]`, or its averages.
          logits: the network's own.
          spectrogram: to draw regions on.
          source: the clip's file, if there is one.
          offset_s: where in it the clip starts.
          target: name or index of the class to explain; None for the predicted one.
          **options: see `explain`.
        """
        seen = self.look_at_map(
            feature_map,
            logits=logits,
            spectrogram=spectrogram,
            source=source,
            offset_s=offset_s,
        )
        return self.explain(seen, target=target, **options)

    def look_at_map(
        self,
        feature_map: Float[np.ndarray, "freq time chan"] | schemes.Views,
        *,
        logits: Float[np.ndarray, " classes"] | None = None,
        spectrogram: Float[np.ndarray, "rows frames"] | None = None,
        source: str | os.PathLike = "feature map",
        offset_s: float = 0.0,
    ) -> look.Look:
        """A clip by its feature map, for `__call__`, `positives` and `explain`.

        Args:
          feature_map: the folded map `[F, T, chan]`, or its averages.
          logits: the network's own, against which the map and the head are checked;
            None: what the head says of the map.
          spectrogram: to draw regions on, as large as the training clips'; None for
            that of `source`, where there is a front end and a file, else none.
          source: the clip's file, if there is one; it is what will be heard.
          offset_s: where in it the clip starts.

        Raises:
          ValueError: a shape that does not fit, or values that are not finite.
        """
        sized = self.front_end is not None or (
            self.kept is not None and self.kept.spectrogram is not None
        )
        return look.of_map(
            feature_map,
            self.classifier.head,
            logits=logits,
            spectrogram=spectrogram,
            shape=self.input_shape if sized else None,
            source=source,
            offset_s=offset_s,
            front_end=self.front_end,
        )

    def look(
        self,
        sound: look.Sound,
        *,
        sample_rate: int | None = None,
        offset_s: float = 0.0,
    ) -> look.Look:
        """What the network makes of one clip; see `__call__` for the arguments."""
        (seen,) = self._looks([(sound, offset_s)], sample_rate)
        return seen

    def occluded(self, seen: look.Look) -> look.Look:
        """The clip with what each region adds, for `locate="occlusion"`.

        `explain` does this by itself; beforehand it saves doing it for each class.

        Raises:
          ValueError: the network cannot be run, or not on this clip.
        """
        if self.scheme in seen.effects:
            return seen
        if not self._can_occlude(seen):
            raise ValueError(
                "locate='occlusion' takes a network that can be run here, and was run "
                "on the clip; this one is known by its feature map, which locate='map' "
                "looks at"
            )
        effects = occlusion.effects_of_clip(
            self.classifier,
            self._front_end(),
            seen.spectrogram,
            np.mean(seen.views.rows, axis=0),
            grid=self.grid(),
            scheme=self.scheme,
            chunk_size=self.chunk_size,
        )
        return dataclasses.replace(seen, effects={**seen.effects, self.scheme: effects})

    def _can_occlude(self, seen: look.Look) -> bool:
        """Whether the network, which can be run, was run on a clip."""
        runs = self.front_end is not None and self.kept is None
        return runs and seen.spectrogram is not None and not seen.given

    def explain(
        self,
        seen: look.Look,
        *,
        target: str | int | np.integer | None = None,
        num_channels: int | None = None,
        num_prototypes: int | None = None,
        num_negatives: int | None = 0,
        evidence: settings.Evidence | None = None,
        locate: settings.Location | None = None,
    ) -> explanation.Explanation:
        """Explains one class of a clip that the network has looked at.

        Args:
          seen: from `look`.
          target: name or index of the class to explain; None for the predicted one.
          num_channels: top channels; None for 4, or all where there are fewer.
          num_prototypes: training clips beside each; None for 5, or all.
          num_negatives: and of those that excite it least.
          evidence: "plain" for what channels add to the class's logit, as in the
            paper; "contrastive" for what they add to its lead over the other classes
            of a softmax, which alone decides; None for that where there is a softmax.
          locate: "map" for regions and heat where a channel's feature map is large, as
            in the paper; "occlusion" for what the sound there adds to the channel, in
            the clip and in its prototypes: two passes through the network for each
            region (`occlusion`); None for that where the network can be run.

        Raises:
          AudioError: a prototype's file cannot be used any more.
          InvarianceError: the transformed classifier disagrees with the network.
          ValueError: no such class, evidence or way to locate; a number out of range;
            occlusion of a clip or by a network that only feature maps are known of.
        """
        if evidence is None:
            evidence = self.evidence
        if locate is None:
            locate = "occlusion" if self._can_occlude(seen) else "map"
        if locate not in get_args(settings.Location):
            raise ValueError(
                f"locate must be one of {', '.join(get_args(settings.Location))}; got "
                f"{locate!r}"
            )
        predicted = int(np.argmax(seen.logits))
        wanted = predicted if target is None else self.class_index(target)
        head = self._counting(evidence)
        share, again = (
            np.asarray(a)
            for a in _contributions(
                self.transform,
                self.head,
                head,
                jnp.mean(jnp.asarray(seen.views.rows), axis=0),
                jnp.int32(wanted),
            )
        )
        self._check_invariance(seen, again)
        most = self.positive.clip.shape[1]
        num_channels = _count("num_channels", num_channels, 1, 4, len(share))
        num_prototypes = _count("num_prototypes", num_prototypes, 1, 5, most)
        num_negatives = _count("num_negatives", num_negatives, 0, 0, most)
        # A stable sort: equal contributions go to the lowest channel.
        top = np.argsort(-share, kind="stable")[:num_channels]

        shape = self.input_shape if seen.spectrogram is None else seen.spectrogram.shape
        map_shape = seen.views.rows.shape[0], seen.views.columns.shape[0]
        grid = self.grid(map_shape, shape)
        views, transform, heated = seen.views, self.transform, head
        if locate == "occlusion":
            views = self.occluded(seen).effects[self.scheme]
            transform, heated = occlusion.of_differences(transform, heated)
        location, heat, most_there = (
            np.asarray(a)
            for a in _channels(
                transform,
                heated,
                views,
                top,
                jnp.int32(wanted),
                scheme=self.scheme,
                grid=grid,
            )
        )
        own = evidence_lib.head_of(
            self.classifier.head, self.classifier.activation, evidence
        )
        class_location, speaks = _of_class(
            views,
            own.weight[wanted],
            scheme=self.scheme,
            occluded=locate == "occlusion",
        )
        shown = [
            self.prototypes(top, wanted, one, num, evidence=evidence, locate=locate)
            for one, num in (
                (self.positive, num_prototypes),
                (self.negative, num_negatives),
            )
        ]
        channels = tuple(
            explanation.Channel(
                index=int(k),
                contribution=float(share[k]),
                location=(int(location[i, 0]), int(location[i, 1])),
                # Where no part of the sound adds to it, it lies nowhere.
                areas=()
                if locate == "occlusion" and most_there[i] <= 0
                else self.areas(grid, location[i]),
                heatmap=heat[i],
                prototypes=shown[0][i],
                negatives=shown[1][i],
            )
            for i, k in enumerate(top)
        )
        positive = np.maximum(share, 0).sum()
        carried = np.maximum(share[top], 0).sum()
        return explanation.Explanation(
            source=seen.source,
            offset_s=seen.offset_s,
            sound_s=seen.sound_s,
            waveform=seen.waveform,
            sample_rate=seen.sample_rate,
            class_names=self.classifier.class_names,
            activation=self.classifier.activation,
            logits=seen.logits,
            predicted=predicted,
            target=wanted,
            scheme=self.scheme,
            front_end=self.front_end,
            spectrogram=seen.spectrogram,
            channels=channels,
            contributions=share,
            evidence_share=float(carried / positive) if positive > 0 else 0.0,
            evidence=evidence,
            locate=locate,
            class_location=(int(class_location[0]), int(class_location[1])),
            class_areas=self.areas(grid, class_location) if speaks else (),
            provenance=self.provenance,
        )

    def grid(
        self,
        map_shape: tuple[int, int] | None = None,
        shape: tuple[int, ...] | None = None,
    ) -> schemes.Grid:
        """How a map's cells lie on a spectrogram; by default the training clips'."""
        cells = self.map_shape if map_shape is None else map_shape
        rows, frames = self.input_shape if shape is None else shape
        # Without pixels, regions are counted in cells.
        stride = None if (rows, frames) == cells else self.classifier.stride
        return schemes.Grid.of(cells, (rows, frames), stride)

    def areas(
        self, grid: schemes.Grid, location: Int[Array | np.ndarray, "2"]
    ) -> tuple[explanation.Area, ...]:
        """The region at a location, in pixels, seconds and hertz."""
        return explanation.areas(grid, self.scheme, location, self.front_end)

    def _looks(
        self,
        sounds: Sequence[tuple[look.Sound | look.Look, float]],
        sample_rate: int | None,
    ) -> Iterator[look.Look]:
        """Of sounds what the network makes of them; looks as they are."""
        ready = [isinstance(sound, look.Look) for sound, _ in sounds]
        made: Iterator[look.Look] = iter(())
        if not all(ready):
            made = look.looks(
                self.classifier,
                self._front_end(),
                [one for one, done in zip(sounds, ready, strict=True) if not done],
                sample_rate=sample_rate,
                chunk_size=self.chunk_size,
            )
        for (sound, _), done in zip(sounds, ready, strict=True):
            yield sound if done else next(made)

    @functools.cached_property
    def _gallery(self) -> gallery.Gallery | gallery.Kept:
        """The training clips as the network sees them."""
        if self.kept is not None:
            return self.kept
        return gallery.Gallery(
            self.classifier, self._front_end(), self.clips, self.chunk_size
        )

    def _each(
        self,
        seen: look.Look,
        targets: Sequence[str | int | np.integer | None],
        **options: Unpack[Options],
    ) -> tuple[explanation.Explanation, ...]:
        """A clip's classes one by one; what they share is done once."""
        if options.get("locate") != "map" and self._can_occlude(seen):
            seen = self.occluded(seen)
        return tuple(self.explain(seen, target=one, **options) for one in targets)

    def _front_end(self) -> audio.FrontEnd:
        if self.front_end is None:
            raise ValueError(
                "this explainer has no front end to turn sound into what its network "
                "takes; give feature maps to `from_map`, or make it with a front_end"
            )
        return self.front_end

    def _positive(self, seen: look.Look) -> list[int]:
        """The classes to explain of a clip, the most likely first."""
        found = classifier_lib.found(seen.logits, self.classifier.activation)
        return list(found) or [int(np.argmax(seen.logits))]

    def class_index(self, target: str | int | np.integer) -> int:
        """Index of a class by name or number, or a ValueError that lists them."""
        names = self.classifier.class_names
        if isinstance(target, str) and target in names:
            return names.index(target)
        if isinstance(target, int | np.integer) and 0 <= target < len(names):
            return int(target)
        shown = ", ".join(names[:20]) + ", ..." * (len(names) > 20)
        raise ValueError(f"target must be one of {shown}; got {target!r}")

    def _check_invariance(self, seen: look.Look, again: np.ndarray) -> None:
        """Raises unless the transformed classifier gives the network's own logits."""
        audit = self.provenance.audit
        if seen.logits.shape != again.shape:
            raise ValueError(
                f"logits must be one a class, [{again.size}]; got {seen.logits.shape}"
            )
        size = float(np.abs(seen.logits).max())
        allowed = 1e-3 * max(1.0, size) if audit is None else 10 * audit.allowed
        error = float(np.abs(again - seen.logits).max())
        if not error <= allowed:  # NaN included
            cause = disentangle.cause_of(
                self.transform,
                self.classifier.head,
                np.mean(seen.views.rows, axis=0, keepdims=True),
                seen.logits[None],
            )
            if not cause:
                matrix = np.asarray(self.transform.matrix, np.float64)
                cause = (
                    "U is too ill-conditioned for this clip (condition number "
                    f"{np.linalg.cond(matrix):.3g}): learn U again at a lower learning "
                    "rate."
                )
            raise disentangle.InvarianceError(
                f"of {seen.source} the transformed classifier says other logits than "
                f"the network, by up to {error:.3g} (allowed: {allowed:.3g}). {cause}"
            )

    def prototypes(
        self,
        channels: Sequence[int] | np.ndarray,
        target: int,
        prototypes: bank.Bank,
        num: int,
        *,
        evidence: settings.Evidence = "plain",
        locate: settings.Location = "map",
    ) -> list[tuple[explanation.Prototype, ...]]:
        """The first `num` prototypes of each channel, with heatmaps for a class."""
        return gallery.prototypes(
            self._gallery,
            prototypes,
            self.clips,
            self.classifier.class_names,
            channels,
            target,
            num,
            transform=self.transform,
            head=self._counting(evidence),
            grid=self.grid(),
            front_end=self.front_end,
            chunk_size=self.chunk_size,
            locate=locate,
        )


def _count(name: str, value: int | None, least: int, usual: int, most: int) -> int:
    """`value` if it is possible; where nothing was asked, the usual or all."""
    if value is None:
        return min(usual, most)
    if not least <= value <= most:
        raise ValueError(f"{name} must be between {least} and {most}; got {value}")
    return value
