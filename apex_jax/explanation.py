"""What explaining a clip gives: plain values on the host, nothing to compute.

An `Explanation` has `Channel`s, a channel has a region (`Area`s) in the clip and
`Prototype`s, and each prototype has its own region in its own clip.
"""

from __future__ import annotations

import dataclasses

import numpy as np

from apex_jax import bank, data, schemes


@dataclasses.dataclass(frozen=True, kw_only=True)
class Area:
    """A rectangle of the spectrogram that matters.

    Attributes:
      box: in pixels of the spectrogram.
      start_s: seconds from the start of the clip.
      end_s: seconds from the start of the clip.
      low_hz: lower edge.
      high_hz: upper edge.
    """

    box: schemes.Box
    start_s: float
    end_s: float
    low_hz: float
    high_hz: float

    def __str__(self) -> str:
        return (
            f"{self.start_s:.2f}-{self.end_s:.2f} s, "
            f"{self.low_hz:.0f}-{self.high_hz:.0f} Hz"
        )


@dataclasses.dataclass(frozen=True, kw_only=True)
class Prototype:
    """A training clip that shows what a channel stands for.

    Attributes:
      clip: file, offset and class index.
      class_name: of the clip.
      activation: `a_k`, the sum of the channel's map.
      purity: of its prototype vector, in [-1, 1].
      areas: its region by the scheme.
      spectrogram: `[F_in, T_in]`, in the front end's units.
      heatmap: `[F_in, T_in]`, in [0, 1].
    """

    clip: data.Clip
    class_name: str
    activation: float
    purity: float
    areas: tuple[Area, ...]
    spectrogram: np.ndarray = dataclasses.field(repr=False)
    heatmap: np.ndarray = dataclasses.field(repr=False)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Channel:
    """One of the channels that contribute most.

    Attributes:
      index: k.
      contribution: to the explained class's logit.
      areas: its region in the clip by the scheme.
      heatmap: `[F_in, T_in]`, in [0, 1].
      prototypes: training clips, strongest first.
    """

    index: int
    contribution: float
    areas: tuple[Area, ...]
    heatmap: np.ndarray = dataclasses.field(repr=False)
    prototypes: tuple[Prototype, ...]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Explanation:
    """Why a classifier says what it says of a clip.

    Attributes:
      source: where the sound came from.
      offset_s: where in the source the clip starts; areas count from there.
      sound_s: how much of the clip is sound; the rest was filled with silence.
      class_names: in the order of the logits.
      logits: the untouched network's, `[classes]`.
      predicted: index of the most likely class.
      target: index of the class explained.
      scheme: where regions lie.
      sign: whether the prototypes excite their channel most or least.
      spectrogram: `[F_in, T_in]`, what the network saw.
      channels: the top channels, largest contribution first.
      evidence_share: the part of all positive contributions that they carry.
    """

    source: str
    offset_s: float
    sound_s: float
    class_names: tuple[str, ...]
    logits: np.ndarray
    predicted: int
    target: int
    scheme: schemes.Scheme
    sign: bank.Sign
    spectrogram: np.ndarray = dataclasses.field(repr=False)
    channels: tuple[Channel, ...]
    evidence_share: float

    @property
    def class_name(self) -> str:
        """The class explained."""
        return self.class_names[self.target]
