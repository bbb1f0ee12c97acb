"""What explaining a clip gives: plain values on the host, nothing to compute.

An `Explanation` has `Channel`s, a channel has a region (`Area`s) in the clip and
`Prototype`s, and each prototype has its own region in its own clip. All of them are
immutable and pytrees whose leaves are the numbers. Grad-CAM and LIME answer in the
same type, with one channel that has no prototypes; of AudioProtoPNet the channels are
its prototypes, and theirs the training clips that come closest.
"""

from __future__ import annotations

import dataclasses
from typing import Literal

import jax
import numpy as np
from jaxtyping import Array, Int

from apex_jax import classifier as classifier_lib
from apex_jax import data, disentangle, frontend, schemes, settings

Method = Literal["apex", "grad-cam", "lime", "audioprotopnet"]


# A field that is part of a pytree's structure, not one of its leaves.
STATIC = {"static": True}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Area:
    """A rectangle of the spectrogram that matters.

    Attributes:
      box: in pixels of the spectrogram.
      start_s: seconds from the start of the clip; None where no front end tells.
      end_s: seconds from the start of the clip.
      low_hz: lower edge; None where no front end tells.
      high_hz: upper edge.
    """

    box: schemes.Box
    start_s: float | None = None
    end_s: float | None = None
    low_hz: float | None = None
    high_hz: float | None = None

    def __str__(self) -> str:
        if self.start_s is None or self.low_hz is None:
            (low, high), (start, end) = self.box.rows, self.box.frames
            return f"frames {start:g}-{end:g}, rows {low:g}-{high:g}"
        return (
            f"{self.start_s:.2f}-{self.end_s:.2f} s, "
            f"{self.low_hz:.0f}-{self.high_hz:.0f} Hz"
        )


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True, kw_only=True)
class Prototype:
    """A training clip that shows what a channel stands for.

    Attributes:
      clip: file, offset and class index.
      class_name: of the clip; several are joined by commas.
      activation: `a_k`, the sum of the channel's map; for AudioProtoPNet the
        similarity.
      purity: of its prototype vector, in [-1, 1]; None for AudioProtoPNet.
      location: `(row, column)` of the feature map, `schemes.ALL` along an axis that
        the scheme leaves open.
      areas: its region by the scheme.
      spectrogram: `[F_in, T_in]`, in the front end's units; None where there is none.
      heatmap: `[F_in, T_in]`, in [0, 1].
    """

    clip: data.Clip = dataclasses.field(metadata=STATIC)
    class_name: str = dataclasses.field(metadata=STATIC)
    activation: float
    purity: float | None
    location: tuple[int, int] = dataclasses.field(metadata=STATIC)
    areas: tuple[Area, ...] = dataclasses.field(metadata=STATIC)
    spectrogram: np.ndarray | None = dataclasses.field(repr=False)
    heatmap: np.ndarray = dataclasses.field(repr=False)


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True, kw_only=True)
class Channel:
    """One of the channels that contribute most.

    Attributes:
      index: k, for AudioProtoPNet the prototype's number; None where the heatmap
        belongs to no channel (Grad-CAM, LIME).
      contribution: to the explained class's logit, signed.
      location: `(row, column)` of the feature map, as in `Prototype`.
      areas: its region in the clip by the scheme; empty where it has none, because no
        part of the sound adds to the channel (`locate`).
      heatmap: `[F_in, T_in]`, in [0, 1].
      prototypes: training clips that excite the channel most, strongest first.
      negatives: training clips that excite it least, if they were asked for.
    """

    index: int | None = dataclasses.field(metadata=STATIC)
    contribution: float
    location: tuple[int, int] = dataclasses.field(metadata=STATIC)
    areas: tuple[Area, ...] = dataclasses.field(metadata=STATIC)
    heatmap: np.ndarray = dataclasses.field(repr=False)
    prototypes: tuple[Prototype, ...] = ()
    negatives: tuple[Prototype, ...] = ()


@dataclasses.dataclass(frozen=True, kw_only=True)
class Provenance:
    """How the explainer was made, for whoever has to judge its explanations.

    Attributes:
      audit: how well the transformed classifier reproduces the untouched one.
      purity: mean purity of the prototypes before and after the optimisation.
      settings: names and values, in the order in which they are to be shown.
      versions: packages and their versions.
    """

    audit: disentangle.Audit | None = None
    purity: tuple[float, float] | None = None
    settings: tuple[tuple[str, str], ...] = ()
    versions: tuple[tuple[str, str], ...] = ()


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True, kw_only=True)
class Explanation:
    """Why a classifier says what it says of a clip.

    Attributes:
      source: the sound file's path; "waveform", "spectrogram" or "feature map" where
        that was given instead.
      offset_s: where in the source the clip starts; areas count from there.
      sound_s: how much of the clip is sound, the rest was filled with silence; None
        where no sound was given.
      waveform: the clip's own samples `[sample]` where a waveform was given; of a
        file the sound is in the file.
      sample_rate: of `waveform`, Hz.
      class_names: in the order of the logits.
      activation: how logits become probabilities.
      logits: the untouched network's, `[classes]`.
      predicted: index of the most likely class.
      target: index of the class explained.
      method: what made the explanation.
      scheme: where regions lie.
      front_end: tells seconds and hertz; None where it is not known.
      spectrogram: `[F_in, T_in]`, what the network saw; None where it is not known.
      channels: the top channels, largest contribution first.
      contributions: of all channels to the explained class, `[chan]`.
      evidence_share: the part of all positive contributions that `channels` carry.
      evidence: what contributions count towards, the class's logit or how far it is
        above the other classes'.
      locate: what found regions and heatmaps, the map or occlusion.
      class_location: `(row, column)` where all channels together speak for the class,
        found as a channel's is; None where it was not looked for.
      class_areas: that region; empty where no part of the sound speaks for the class.
      provenance: how the explainer was made.
    """

    source: str = dataclasses.field(metadata=STATIC)
    offset_s: float = dataclasses.field(default=0.0, metadata=STATIC)
    sound_s: float | None = dataclasses.field(default=None, metadata=STATIC)
    waveform: np.ndarray | None = dataclasses.field(default=None, repr=False)
    sample_rate: int | None = dataclasses.field(default=None, metadata=STATIC)
    class_names: tuple[str, ...] = dataclasses.field(metadata=STATIC)
    activation: classifier_lib.Activation = dataclasses.field(
        default="softmax", metadata=STATIC
    )
    logits: np.ndarray
    predicted: int = dataclasses.field(metadata=STATIC)
    target: int = dataclasses.field(metadata=STATIC)
    method: Method = dataclasses.field(default="apex", metadata=STATIC)
    scheme: schemes.Scheme = dataclasses.field(metadata=STATIC)
    front_end: frontend.FrontEnd | None = dataclasses.field(
        default=None, metadata=STATIC
    )
    spectrogram: np.ndarray | None = dataclasses.field(repr=False)
    channels: tuple[Channel, ...]
    contributions: np.ndarray = dataclasses.field(repr=False)
    evidence_share: float
    evidence: settings.Evidence = dataclasses.field(default="plain", metadata=STATIC)
    locate: settings.Location = dataclasses.field(default="map", metadata=STATIC)
    class_location: tuple[int, int] | None = dataclasses.field(
        default=None, metadata=STATIC
    )
    class_areas: tuple[Area, ...] = dataclasses.field(default=(), metadata=STATIC)
    provenance: Provenance = dataclasses.field(
        default=Provenance(), repr=False, metadata=STATIC
    )

    @property
    def class_name(self) -> str:
        """The class explained."""
        return self.class_names[self.target]

    @property
    def agrees(self) -> bool | None:
        """Whether the top channel's region is that of all channels together.

        Of planted events that the two agree on nearly all are there (docs/truth.md).
        None where either has no region.
        """
        if not (self.class_areas and self.channels and self.channels[0].areas):
            return None
        return self.channels[0].location == self.class_location

    @property
    def probabilities(self) -> np.ndarray:
        """Of each class, `[classes]`: they sum to 1 under softmax only."""
        return classifier_lib.probabilities(self.logits, self.activation)

    @property
    def found(self) -> tuple[int, ...]:
        """The classes that the classifier finds, see `classifier.found`."""
        return classifier_lib.found(self.logits, self.activation)

    @property
    def score(self) -> float:
        """What contributions count towards: the class's logit, or its lead.

        The lead is over the mean of the other classes' logits.
        """
        logits = np.asarray(self.logits, float)
        if self.evidence == "plain":
            return float(logits[self.target])
        return float(logits[self.target] - np.delete(logits, self.target).mean())

    def _repr_html_(self) -> str:
        """What a notebook shows of it: the report, with players."""
        # The one import against the flow: a notebook asks the value itself.
        from apex_jax import report

        return report.notebook(self)


def areas(
    grid: schemes.Grid,
    scheme: schemes.Scheme,
    location: Int[Array | np.ndarray, "2"],
    front_end: frontend.FrontEnd | None,
) -> tuple[Area, ...]:
    """The region at a location in pixels and, with a front end, seconds and hertz.

    Args:
      grid: how the map's cells lie on the spectrogram.
      scheme: what a location stands for.
      location: `(row, column)` of the map, from `schemes.locate`.
      front_end: settings of the spectrogram, or None.

    Returns:
      One rectangle; column and row for time-frequency.
    """
    row, column = np.asarray(location).tolist()
    boxes = grid.boxes(scheme, (row, column))
    return tuple(area_of(box, front_end) for box in boxes)


def area_of(box: schemes.Box, front_end: frontend.FrontEnd | None) -> Area:
    """A rectangle with, where a front end tells, its seconds and hertz."""
    if front_end is None:
        return Area(box=box)
    low_hz, high_hz = front_end.band_hz(*box.rows)
    start_s, end_s = front_end.span_s(*box.frames)
    return Area(
        box=box,
        start_s=float(start_s),
        end_s=float(end_s),
        low_hz=float(low_hz),
        high_hz=float(high_hz),
    )
