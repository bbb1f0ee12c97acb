"""The front end's settings, and from the pixels of a spectrogram back to sound.

`FrontEnd` holds every setting, and the geometry is read off the same object, so a
region that is drawn, masked or heard means the same rows and frames. `spectrogram`
makes the pixels. NumPy alone: command lines ask this for their help.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from typing import Any, Literal

import numpy as np

Real = float | int
Numbers = float | int | np.number | np.ndarray
Result = np.ndarray | np.float64
MelScale = Literal["slaney", "htk"]
PAD_MODES = ("constant", "reflect")
SCOPES = ("clip", "batch")

# Full scale is 1. Far beyond it the power of a bin overflows float32.
LARGEST_SAMPLE = 1e15


@dataclasses.dataclass(frozen=True, kw_only=True)
class FrontEnd:
    """All settings of a spectrogram, and its geometry.

    The STFT is centred and its window a periodic Hann. The defaults are librosa's
    conventions; `torchaudio` and `birdset` are the other two that trained networks
    come with. Hashable, so it can be a static argument of `jax.jit`.

    Attributes:
      sample_rate: Hz.
      clip_s: length of a clip in seconds.
      n_fft: length of the Fourier transform in samples.
      hop_length: samples between two frames.
      win_length: samples under the window, centred in `n_fft`; None: `n_fft`.
      n_mels: rows of a mel spectrogram; None: linear, `1 + n_fft // 2` rows.
      fmin: lowest edge of the mel filters, Hz.
      fmax: highest edge of the mel filters, Hz; None: half the sample rate.
      mel_scale: which formula, Slaney's or HTK's.
      mel_norm: 'slaney' for filters of equal area, None for filters of height 1.
      pad_mode: what lies before and after the clip, zeros or its reflection.
      power: exponent of the magnitude, 2 for power; dB are `20 / power * log10`.
      amin: smallest value before the logarithm.
      top_db: dB below the maximum at which the spectrogram is cut; None: not cut.
      top_db_scope: maximum of each 'clip', or of the whole 'batch' as torchaudio
        does to a tensor of rank 3: a clip's values then depend on its batch mates.
      mean: subtracted after dB.
      std: divided by after dB.
    """

    sample_rate: int
    clip_s: Real
    n_fft: int = 2048
    hop_length: int = 512
    win_length: int | None = None
    n_mels: int | None = 128
    fmin: Real = 0.0
    fmax: Real | None = None
    mel_scale: MelScale = "slaney"
    mel_norm: Literal["slaney"] | None = "slaney"
    pad_mode: Literal["constant", "reflect"] = "constant"
    power: Real = 2.0
    amin: Real = 1e-10
    top_db: Real | None = 80.0
    top_db_scope: Literal["clip", "batch"] = "clip"
    mean: Real = 0.0
    std: Real = 1.0

    def __post_init__(self):
        nyquist = self.sample_rate / 2
        fmax = nyquist if self.fmax is None else self.fmax
        window = self.n_fft if self.win_length is None else self.win_length
        # Below `tiny` float32 flushes `amin` to zero and silence becomes -inf.
        tiny, inf = float(np.finfo(np.float32).tiny), math.inf
        rules = {
            "sample_rate": (self.sample_rate >= 1, "at least 1 Hz"),
            "clip_s": (0 < self.clip_s < inf, "positive seconds"),
            "n_fft": (self.n_fft >= 2, "at least 2 samples"),
            "hop_length": (self.hop_length >= 1, "at least 1 sample"),
            "win_length": (1 <= window <= self.n_fft, f"in [1, n_fft={self.n_fft}]"),
            "n_mels": (self.n_mels is None or self.n_mels >= 1, "at least 1, or None"),
            "fmax": (0 < fmax <= nyquist, f"in (0, {nyquist:g}], half the rate"),
            "fmin": (0 <= self.fmin < fmax, f"in [0, fmax={fmax:g})"),
            "mel_scale": (self.mel_scale in ("slaney", "htk"), "'slaney' or 'htk'"),
            "mel_norm": (self.mel_norm in ("slaney", None), "'slaney' or None"),
            "pad_mode": (self.pad_mode in PAD_MODES, f"one of {PAD_MODES}"),
            "power": (0 < self.power < inf, "positive"),
            "amin": (tiny <= self.amin < inf, "a normal float32, such as 1e-10"),
            "top_db": (0 < (self.top_db or 1) < inf, "positive, or None"),
            "top_db_scope": (self.top_db_scope in SCOPES, f"one of {SCOPES}"),
            "mean": (math.isfinite(self.mean), "finite"),
            "std": (0 < self.std < inf, "positive"),
        }
        for name, (valid, right) in rules.items():
            if not valid:
                value = getattr(self, name)
                raise ValueError(f"FrontEnd: {name}={value!r}; it must be {right}")
        # Reflection needs a sample more than it shows.
        shortest = self.n_fft // 2 + 1 if self.pad_mode == "reflect" else window
        if self.num_samples < shortest:
            raise ValueError(
                f"FrontEnd: clip_s={self.clip_s} is {self.num_samples} samples; with "
                f"n_fft={self.n_fft} and pad_mode={self.pad_mode!r} it must be at "
                f"least {shortest} samples, {shortest / self.sample_rate:g} s"
            )
        if self.n_mels is None:
            if self.fmin or self.fmax is not None:
                raise ValueError(
                    f"FrontEnd: fmin={self.fmin}, fmax={self.fmax} with n_mels=None; "
                    "they bound mel filters only, leave them out"
                )
        else:
            self._check_filters(fmax)

    def _check_filters(self, fmax: Real) -> None:
        """Raises where a mel filter would lie between two bins and stay empty."""

        def empty(n_mels: int, n_fft: int) -> int:
            points = _mel_points(n_mels, self.fmin, fmax, self.mel_scale)
            bins = np.arange(1 + n_fft // 2) * (self.sample_rate / n_fft)
            first = np.searchsorted(bins, points[:-2], side="right")
            past = np.searchsorted(bins, points[2:], side="left")
            return int(np.sum(first >= past))

        assert self.n_mels is not None
        if count := empty(self.n_mels, self.n_fft):
            fewer = self.n_mels
            while fewer and empty(fewer, self.n_fft):
                fewer -= 1
            longer = self.n_fft
            while empty(self.n_mels, longer):
                longer *= 2
            raise ValueError(
                f"FrontEnd: n_mels={self.n_mels} with n_fft={self.n_fft} leaves "
                f"{count} mel filters without a frequency bin; "
                f"use n_fft={longer}" + f" or n_mels={fewer}" * bool(fewer)
            )

    @classmethod
    def librosa(cls, **settings: Any) -> FrontEnd:
        """The defaults are librosa's conventions: Slaney mels, zero padding."""
        try:
            return cls(**settings)
        except TypeError as error:
            raise ValueError(f"FrontEnd: a value of a wrong type: {error}") from error

    @classmethod
    def torchaudio(cls, **settings: Any) -> FrontEnd:
        """torchaudio's: HTK mels without area norm, reflect padding."""
        theirs = {"mel_scale": "htk", "mel_norm": None, "pad_mode": "reflect"}
        return cls(**theirs | settings)

    @classmethod
    def birdset(cls, **settings: Any) -> FrontEnd:
        """The front end of AudioProtoPNet's networks for BirdSet, 256 x 626 pixels."""
        pixels = {
            "sample_rate": 32_000,
            "clip_s": 5.0,
            "hop_length": 256,
            "n_mels": 256,
        }
        values = {"mean": -13.369, "std": 13.162}
        return cls.torchaudio(**pixels | values | settings)

    @classmethod
    def birdset_128(cls, **settings: Any) -> FrontEnd:
        """The front end of BirdSet's own published ConvNeXts, 128 x 501 pixels."""
        pixels = {"n_fft": 1024, "hop_length": 320, "n_mels": 128}
        values = {"mean": -4.268, "std": 4.569}
        return cls.birdset(**pixels | values | settings)

    @classmethod
    def named(cls, name: str) -> FrontEnd:
        """One of `PUBLISHED`; ValueError for another name."""
        if name not in PUBLISHED:
            raise ValueError(
                f"no front end is called {name!r}; known are {', '.join(PUBLISHED)}"
            )
        return PUBLISHED[name]()

    @classmethod
    def from_dict(cls, settings: Mapping[str, Any]) -> FrontEnd:
        """The inverse of `to_dict`."""
        names = {field.name for field in dataclasses.fields(cls)}
        if unknown := sorted(set(settings) - names):
            raise ValueError(f"FrontEnd: unknown {unknown}; it has {sorted(names)}")
        if missing := {"sample_rate", "clip_s"} - set(settings):
            raise ValueError(
                f"FrontEnd: {sorted(missing)} missing; they have no default"
            )
        try:
            return cls(**settings)
        except TypeError as error:
            raise ValueError(f"FrontEnd: a value of a wrong type: {error}") from error

    def to_dict(self) -> dict[str, Any]:
        """The settings as plain JSON types."""
        return dataclasses.asdict(self)

    @property
    def num_samples(self) -> int:
        """Samples of a clip."""
        return round(self.clip_s * self.sample_rate)

    @property
    def num_frames(self) -> int:
        """Frames of a clip, the width of its spectrogram."""
        padded = self.num_samples + 2 * (self.n_fft // 2)
        return 1 + (padded - self.n_fft) // self.hop_length

    @property
    def num_rows(self) -> int:
        """Rows of a spectrogram, its height."""
        return 1 + self.n_fft // 2 if self.n_mels is None else self.n_mels

    @property
    def shape(self) -> tuple[int, int]:
        """`(rows, frames)` of a spectrogram."""
        return (self.num_rows, self.num_frames)

    @property
    def couples_clips(self) -> bool:
        """Whether a clip's spectrogram depends on the others of its batch."""
        return self.top_db_scope == "batch"

    def check_devices(self, num_devices: int) -> None:
        """Raises ValueError if clips spread over several devices would change."""
        if self.couples_clips and num_devices > 1:
            raise ValueError(
                "top_db_scope='batch' makes a clip depend on its batch mates, which "
                f"{num_devices} devices cannot see; use 'clip', or one device"
            )

    def to_db(self, spectrogram: np.ndarray) -> np.ndarray:
        """Decibel again from a normalised spectrogram."""
        return spectrogram * self.std + self.mean

    def row_to_hz(self, row: Numbers) -> Result:
        """Centre frequency of a row; fractions lie between, edges are row -/+ 0.5."""
        if self.n_mels is None:
            return np.multiply(row, self.sample_rate / self.n_fft)
        fmax = self.sample_rate / 2 if self.fmax is None else self.fmax
        low, high = _hz_to_mel(np.array([self.fmin, fmax]), self.mel_scale)
        step = (high - low) / (self.n_mels + 1)
        return _mel_to_hz(low + np.add(row, 1) * step, self.mel_scale)

    def band_hz(self, low_row: Numbers, high_row: Numbers) -> tuple[Result, Result]:
        """Edges in Hz of the half-open range of rows, within `[0, sample_rate/2]`."""
        edges = (self.row_to_hz(np.subtract(r, 0.5)) for r in (low_row, high_row))
        low, high = (np.clip(edge, 0, self.sample_rate / 2) for edge in edges)
        return low, high

    def hz_to_row(self, hz: Numbers) -> Result:
        """The inverse of `row_to_hz`; it may lie outside of the spectrogram."""
        if self.n_mels is None:
            return np.multiply(hz, self.n_fft / self.sample_rate)
        fmax = self.sample_rate / 2 if self.fmax is None else self.fmax
        low, high = _hz_to_mel(np.array([self.fmin, fmax]), self.mel_scale)
        mel = _hz_to_mel(np.asarray(hz, float), self.mel_scale)
        return (mel - low) * (self.n_mels + 1) / (high - low) - 1

    def s_to_frame(self, seconds: Numbers) -> Result:
        """The inverse of `frame_to_s`; it may lie outside of the spectrogram."""
        return np.multiply(seconds, self.sample_rate / self.hop_length)

    def frame_to_s(self, frame: Numbers) -> Result:
        """Time in seconds at the centre of a frame."""
        return np.multiply(frame, self.hop_length / self.sample_rate)

    def span_s(self, low_frame: Numbers, high_frame: Numbers) -> tuple[Result, Result]:
        """Edges in seconds of the half-open range of frames, within `[0, clip_s]`."""
        edges = (self.frame_to_s(np.subtract(f, 0.5)) for f in (low_frame, high_frame))
        low, high = (np.clip(edge, 0, self.clip_s) for edge in edges)
        return low, high


# What networks were published for, by name.
PUBLISHED = {
    "birdset-128": FrontEnd.birdset_128,
    "birdset-256": FrontEnd.birdset,
}


# The two mel formulas are written out because geometry and validation need them
# without librosa's import; the filters themselves are librosa's.
def _hz_to_mel(hz: np.ndarray, scale: MelScale) -> np.ndarray:
    if scale == "htk":
        return 2595 * np.log10(1 + hz / 700)
    # Slaney: 200/3 Hz a mel up to 1 kHz, then 27 mels for each factor of 6.4.
    log = 15 + 27 * np.log(np.maximum(hz, 1000) / 1000) / np.log(6.4)
    return np.where(hz < 1000, hz * 3 / 200, log)


def _mel_to_hz(mel: Result, scale: MelScale) -> Result:
    if scale == "htk":
        return 700 * (np.power(10, np.divide(mel, 2595)) - 1)
    log = 1000 * np.power(6.4, (np.maximum(mel, 15) - 15) / 27)
    return np.where(mel < 15, mel * 200 / 3, log)[()]


def _mel_points(n_mels: int, fmin: Real, fmax: Real, scale: MelScale) -> np.ndarray:
    """Hz of the corners of the filters: filter i rises, peaks, falls at i, i+1, i+2."""
    low, high = _hz_to_mel(np.array([fmin, fmax]), scale)
    return np.asarray(_mel_to_hz(np.linspace(low, high, n_mels + 2), scale))
