"""The training clips that banks point to, as the network sees them.

Prototypes come up again and again, so the last ones are kept. Where the network cannot
be run on the clips' files, their maps were kept when the explainer was made.
"""

from __future__ import annotations

import collections
import dataclasses
from collections.abc import Sequence

import jax
import numpy as np

from apex_jax import audio, data, look, schemes
from apex_jax import classifier as classifier_lib

RECENT_CLIPS = 64

# Views of a clip's map, and the spectrogram to draw them on.
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

    def __getitem__(self, index: int) -> Seen:
        """One clip."""
        views = jax.tree.map(lambda a: np.asarray(a[index]), self.views)
        return views, None if self.spectrogram is None else self.spectrogram[index]

    def take(self, indices: np.ndarray) -> Kept:
        """Some of the clips, in the order asked for."""
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

    def __getitem__(self, indices: Sequence[int]) -> list[Seen]:
        """At most `chunk_size` clips.

        Raises:
          AudioError: a clip's file cannot be used any more.
        """
        new = [i for i in dict.fromkeys(indices) if i not in self._recent]
        if new:
            spectrograms = []
            for i in new:
                clip = self._clips[i]
                waveform = audio.load_clip(clip.path, self._front_end, clip.offset_s)
                spectrograms.append(look.spectrogram(self._front_end, waveform))
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
