"""The prototypes that are shown: training clips as the network sees them.

In come banks, channels and a class; out come `explanation.Prototype`s with their
pictures. The clips are run through the network again, the last ones kept since
prototypes come up again and again. Where the network cannot be run, the clips' maps
were kept when the explainer was made.
"""

from __future__ import annotations

import collections
import dataclasses
import functools
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from apex_jax import (
    audio,
    bank,
    data,
    disentangle,
    evidence,
    explanation,
    look,
    occlusion,
    schemes,
    settings,
)
from apex_jax import classifier as classifier_lib

RECENT_CLIPS = 64
RECENT_EFFECTS = 256  # small, and each took two passes a region

# Views of a clip's map, or of its regions' effects; the spectrogram to draw them on.
Seen = tuple[schemes.Views, np.ndarray | None]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Kept:
    """Training clips of a network that cannot be run here.

    Attributes:
      views: of their folded maps, axis 0 counts clips.
      spectrogram: `[clip, F_in, T_in]` to draw them on, or None.
    """

    views: schemes.Views
    spectrogram: np.ndarray | None = None

    def __len__(self) -> int:
        return len(self.views.rows)

    def __getitem__(self, indices: Sequence[int]) -> list[Seen]:
        """Some of the clips."""
        picture = self.spectrogram
        return [
            (
                jax.tree.map(lambda a, i=i: np.asarray(a[i]), self.views),
                None if picture is None else picture[i],
            )
            for i in indices
        ]

    def effects(
        self, indices: Sequence[int], grid: schemes.Grid, scheme: schemes.Scheme
    ) -> list[Seen]:
        """Nothing can be taken from the sound of a map.

        Raises:
          ValueError: always.
        """
        raise ValueError(
            "locate='occlusion' takes a network that can be run here; of this one the "
            "training clips' maps were kept, which locate='map' looks at"
        )

    def take(self, indices: np.ndarray) -> Kept:
        """Only these clips, in this order."""
        chosen = jax.tree.map(lambda a: np.asarray(a)[indices], self.views)
        picture = self.spectrogram
        return Kept(
            views=chosen, spectrogram=None if picture is None else picture[indices]
        )


class Gallery:
    """Training clips by index, run through the network when they are asked for."""

    def __init__(
        self,
        classifier: classifier_lib.Classifier,
        front_end: audio.FrontEnd,
        clips: Sequence[data.Clip],
        chunk_size: int,
    ):
        self._classifier = classifier
        self._front_end = front_end
        self._clips = clips
        self._chunk_size = chunk_size
        self._recent: collections.OrderedDict[int, Seen] = collections.OrderedDict()
        self._effects: collections.OrderedDict[
            tuple[int, schemes.Grid, schemes.Scheme], schemes.Views
        ] = collections.OrderedDict()

    def __getitem__(self, indices: Sequence[int]) -> list[Seen]:
        """At most `chunk_size` clips.

        Raises:
          AudioError: a clip's file cannot be used any more.
        """
        new = [i for i in dict.fromkeys(indices) if i not in self._recent]
        if new:
            spectrograms = [self._spectrogram(self._clips[i]) for i in new]
            views, _ = look.run(self._classifier, spectrograms, self._chunk_size)
            for n, i in enumerate(new):
                # A copy: a view would keep the whole batch.
                mine = jax.tree.map(lambda a, n=n: a[n].copy(), views)
                self._recent[i] = mine, spectrograms[n]
        for i in indices:
            self._recent.move_to_end(i)
        found = [self._recent[i] for i in indices]
        while len(self._recent) > max(RECENT_CLIPS, self._chunk_size):
            self._recent.popitem(last=False)
        return found

    def effects(
        self, indices: Sequence[int], grid: schemes.Grid, scheme: schemes.Scheme
    ) -> list[Seen]:
        """At most `chunk_size` clips with what each region adds in their maps' place.

        Args:
          indices: of the clips.
          grid: how maps lie on spectrograms.
          scheme: decides the regions; see `occlusion.effects`.

        Raises:
          AudioError: a clip's file cannot be used any more.
        """
        seen = self[indices]
        found: list[Seen] = []
        for i, (views, spectrogram) in zip(indices, seen, strict=True):
            key = (i, grid, scheme)
            if key not in self._effects:
                assert spectrogram is not None
                self._effects[key] = occlusion.effects_of_clip(
                    self._classifier,
                    self._front_end,
                    spectrogram,
                    np.mean(views.rows, axis=0),
                    grid=grid,
                    scheme=scheme,
                    chunk_size=self._chunk_size,
                )
            self._effects.move_to_end(key)
            found.append((self._effects[key], spectrogram))
            while len(self._effects) > RECENT_EFFECTS:
                self._effects.popitem(last=False)
        return found

    def _spectrogram(self, clip: data.Clip) -> np.ndarray:
        try:
            waveform = audio.load_clip(clip.path, self._front_end, clip.offset_s)
        except audio.AudioError as error:
            raise audio.AudioError(
                error.path,
                f"{error.reason}. It is a training clip that prototypes are shown of; "
                "explain.load(run, data=FOLDER) finds clips that have moved to FOLDER",
            ) from error
        return look.spectrogram_of(self._front_end, waveform)


@functools.partial(jax.jit, static_argnames=("grid", "scheme"))
def _placed(
    transform: disentangle.Transform,
    head: classifier_lib.LinearHead,
    views: schemes.Views,
    channels: Int[Array | np.ndarray, " clip"],
    target: Int[Array, ""],
    *,
    grid: schemes.Grid,
    scheme: schemes.Scheme,
) -> tuple[
    Int[Array, "clip 2"], Float[Array, "clip rows frames"], Float[Array, " clip"]
]:
    """Location, heatmap and largest value of one channel of each of several clips."""

    def one(views, channel):
        return evidence.placed(
            head, transform, views, channel, target, scheme=scheme, grid=grid
        )

    return jax.vmap(one)(views, channels)


def prototypes(
    source: Gallery | Kept,
    prototypes: bank.Bank,
    clips: Sequence[data.Clip],
    class_names: Sequence[str],
    channels: Sequence[int] | np.ndarray,
    target: int,
    num: int,
    *,
    transform: disentangle.Transform,
    head: classifier_lib.LinearHead,
    grid: schemes.Grid,
    front_end: audio.FrontEnd | None,
    chunk_size: int,
    locate: settings.Location = "map",
) -> list[tuple[explanation.Prototype, ...]]:
    """The first `num` prototypes of each channel.

    Args:
      source: the training clips as the network sees them.
      prototypes: which of them, and where in them.
      clips: their files and classes.
      class_names: in the order of the clips' labels.
      channels: whose prototypes.
      target: the class that heatmaps speak for.
      num: prototypes a channel.
      transform: U, mu.
      head: the compensated head.
      grid: how maps lie on spectrograms.
      front_end: tells seconds and hertz, or None.
      chunk_size: clips in memory at a time.
      locate: "map" for the places that the bank has, "occlusion" for those that matter
        most in the sound.

    Raises:
      AudioError: a clip's file cannot be used any more.
      ValueError: occlusion, and the network cannot be run.
    """
    by_map = locate == "map"
    if not by_map:
        transform, head = occlusion.of_differences(transform, head)
    pairs = [(int(k), rank) for k in channels for rank in range(num)]
    clip_index, activation, purity, location = (
        np.asarray(getattr(prototypes, name))
        for name in ("clip", "activation", "purity", "location")
    )
    shown: list[explanation.Prototype] = []
    for first in range(0, len(pairs), chunk_size):
        chunk = pairs[first : first + chunk_size]
        wanted = [int(clip_index[pair]) for pair in chunk]
        if by_map:
            seen = source[wanted]
        else:
            seen = source.effects(wanted, grid, prototypes.scheme)
        # Filled up with the first, so that every batch has one shape.
        order = [*range(len(chunk)), *[0] * (chunk_size - len(chunk))]
        places, heat, most_there = _placed(
            transform,
            head,
            jax.tree.map(lambda *a: np.stack(a), *(seen[i][0] for i in order)),
            np.array([chunk[i][0] for i in order], np.int32),
            jnp.int32(target),
            grid=grid,
            scheme=prototypes.scheme,
        )
        for i, pair in enumerate(chunk):
            place = location[pair] if by_map else np.asarray(places[i])
            clip, (row, column) = clips[clip_index[pair]], place.tolist()
            shown.append(
                explanation.Prototype(
                    clip=clip,
                    class_name=", ".join(class_names[c] for c in clip.labels),
                    activation=float(activation[pair]),
                    purity=float(purity[pair]),
                    location=(row, column),
                    areas=()
                    if not by_map and most_there[i] <= 0
                    else explanation.areas(grid, prototypes.scheme, place, front_end),
                    spectrogram=seen[i][1],
                    heatmap=np.asarray(heat[i]),
                )
            )
    return [tuple(shown[i * num : (i + 1) * num]) for i in range(len(channels))]
