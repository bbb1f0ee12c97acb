"""Does an explanation stay when the sound hardly changes? How much two have in common.

In come two explanations of one class under one scheme: of a clip and of the same clip
with noise, played slower or encoded again; or of one clip by two runs. Out comes what
they share. `disturb` makes the other clip.
"""

from __future__ import annotations

import dataclasses
import io
from collections.abc import Sequence
from typing import Literal

import numpy as np
import scipy.stats
from jaxtyping import Float

from apex_jax import explanation, schemes

Kind = Literal["noise", "stretch", "pitch", "vorbis"]
Waveform = Float[np.ndarray, " sample"]
TOP = 4  # channels that a report shows, about


@dataclasses.dataclass(frozen=True, kw_only=True)
class Agreement:
    """What two explanations have in common.

    Attributes:
      same_class: whether the classifier says the same.
      rank: Spearman's correlation of all channels' contributions, in [-1, 1]; NaN where
        there are none, or they are of different channels.
      same_channel: whether the top channel has the same number.
      top_channels: share of the `TOP` channels with the largest contributions that are
        among those of the other, too; NaN where they are of different channels.
      region: intersection over union of the top channels' regions, in [0, 1].
      heat: Spearman's correlation of the top channels' heatmaps; NaN where one is flat.
      prototypes: share of the top channels' training clips that both show (Jaccard).
    """

    same_class: bool
    rank: float
    same_channel: bool
    top_channels: float
    region: float
    heat: float
    prototypes: float


def compare(
    one: explanation.Explanation,
    other: explanation.Explanation,
    *,
    stretch: float = 1.0,
    same_channels: bool = True,
) -> Agreement:
    """What two explanations have in common.

    Args:
      one: of the clip as it is.
      other: of the clip as it was changed, or by another run.
      stretch: how much longer everything lasts in the other; its regions are taken
        back before they are compared.
      same_channels: whether channel k is the same in both; False for two runs, whose
        channels have nothing to do with each other.

    Raises:
      ValueError: of different schemes, or an explanation without channels.
    """
    if one.scheme != other.scheme or not (one.channels and other.channels):
        raise ValueError(
            "explanations to compare must be of one scheme and have channels; got "
            f"{one.scheme} with {len(one.channels)} and {other.scheme} with "
            f"{len(other.channels)}"
        )
    first, second = one.channels[0], other.channels[0]
    shown = [
        {(str(p.clip.path), float(p.clip.offset_s)) for p in channel.prototypes}
        for channel in (first, second)
    ]
    either = shown[0] | shown[1]
    heats = (first.heatmap, second.heatmap)
    return Agreement(
        same_class=one.predicted == other.predicted,
        rank=(
            _spearman(one.contributions, other.contributions)
            if same_channels
            else float("nan")
        ),
        same_channel=same_channels and first.index == second.index,
        top_channels=(
            _shared(one.contributions, other.contributions)
            if same_channels
            else float("nan")
        ),
        region=overlap(
            [area.box for area in first.areas],
            [
                _taken_back(area.box, stretch, second.heatmap.shape[1])
                for area in second.areas
            ],
        ),
        heat=(
            _spearman(*heats)
            if stretch == 1 and heats[0].shape == heats[1].shape
            else float("nan")
        ),
        prototypes=len(shown[0] & shown[1]) / len(either) if either else float("nan"),
    )


def _shared(one: np.ndarray, other: np.ndarray) -> float:
    """Share of the largest values' places that are those of the other's, too."""
    num = min(TOP, len(one))
    places = [set(np.argsort(-values, kind="stable")[:num]) for values in (one, other)]
    return len(places[0] & places[1]) / num if num else float("nan")


def overlap(one: Sequence[schemes.Box], other: Sequence[schemes.Box]) -> float:
    """Intersection over union of two regions, each the union of its boxes; exact."""
    boxes = [*one, *other]
    if not boxes:
        return 0.0
    rows, frames = (
        np.unique([edge for box in boxes for edge in getattr(box, axis)])
        for axis in ("rows", "frames")
    )

    def covered(some: Sequence[schemes.Box]) -> np.ndarray:
        """Which of the rectangles between neighbouring edges lie in it."""
        inside = np.zeros((len(rows) - 1, len(frames) - 1), bool)
        for box in some:
            up = (rows[:-1] >= box.rows[0]) & (rows[1:] <= box.rows[1])
            along = (frames[:-1] >= box.frames[0]) & (frames[1:] <= box.frames[1])
            inside |= up[:, None] & along[None]
        return inside

    area = np.diff(rows)[:, None] * np.diff(frames)[None]
    first, second = covered(one), covered(other)
    union = float(area[first | second].sum())
    return float(area[first & second].sum()) / union if union > 0 else 0.0


def disturb(
    waveform: Waveform,
    sample_rate: int,
    kind: Kind,
    amount: float,
    *,
    seed: int = 0,
) -> Waveform:
    """A clip that a listener would take for the same.

    Args:
      waveform: `[sample]`, full scale 1.
      sample_rate: Hz.
      kind: "noise" for white noise, "stretch" for slower at the same pitch, "pitch" for
        higher at the same speed, "vorbis" for Ogg Vorbis and back.
      amount: of noise the signal-to-noise ratio in dB; of stretch how much longer, 1.05
        for 5 %; of pitch semitones; of vorbis the quality, 0 to 1.
      seed: of the noise.

    Returns:
      As many samples; what a slower clip loses at its end is lost.
    """
    import librosa
    import soundfile

    waveform = np.asarray(waveform, np.float32)
    match kind:
        case "noise":
            noise = np.random.default_rng(seed).standard_normal(len(waveform))
            level = np.sqrt(np.mean(waveform.astype(np.float64) ** 2))
            changed = waveform + noise * level * 10 ** (-amount / 20)
        case "stretch":
            changed = librosa.effects.time_stretch(waveform, rate=1 / amount)
        case "pitch":
            changed = librosa.effects.pitch_shift(
                waveform, sr=sample_rate, n_steps=amount
            )
        case "vorbis":
            file = io.BytesIO()
            soundfile.write(
                file,
                waveform,
                sample_rate,
                format="OGG",
                subtype="VORBIS",
                compression_level=1 - amount,
            )
            file.seek(0)
            changed, _ = soundfile.read(file, dtype="float32")
        case _:
            raise ValueError(
                f"kind must be noise, stretch, pitch or vorbis; got {kind!r}"
            )
    return librosa.util.fix_length(np.asarray(changed, np.float32), size=len(waveform))


def _spearman(one: np.ndarray, other: np.ndarray) -> float:
    """Rank correlation; NaN where one of the two does not vary."""
    flat = [np.asarray(a, float).ravel() for a in (one, other)]
    if flat[0].size != flat[1].size or any(np.ptp(a) == 0 for a in flat):
        return float("nan")
    return float(scipy.stats.spearmanr(*flat).statistic)


def _taken_back(box: schemes.Box, stretch: float, frames: int) -> schemes.Box:
    """A box of the longer clip at the time it has in the other.

    One that is as long as the clip stays as it is, whatever lasts longer in it.
    """
    start, end = box.frames
    if start <= 0 and end >= frames:
        return box
    return dataclasses.replace(box, frames=(start / stretch, end / stretch))
