"""Sounds with an event planted in them, at a time and in a band that are known.

In comes a waveform, out comes the waveform with the event and a `pointing.Event`. What
is planted decides the label, and nothing else does.
"""

from __future__ import annotations

from typing import Literal

import numpy as np
import scipy.signal
from jaxtyping import Float

from apex_jax import pointing, schemes

Name = Literal["burst", "band", "click", "sound"]
Waveform = Float[np.ndarray, " sample"]

BURST_S = 0.15
BURST_HZ = 400.0
BAND_HZ = 200.0
CLICK_S = 0.004
# Of the event over what is there, root mean square; the click's peak over its peak.
LEVEL_DB: dict[Name, tuple[float, float]] = {
    "burst": (-3.0, 6.0),
    "band": (-24.0, -15.0),
    "click": (0.0, 9.0),
    "sound": (10.0, 20.0),
}
FADE_S = 0.01
# What a real event's band holds of its energy.
ENERGY = 0.9
# Along which an event has a place.
AXES: dict[Name, tuple[str, ...]] = {
    "burst": ("time", "frequency", "both"),
    "band": ("frequency",),
    "click": ("time",),
    "sound": ("time", "frequency", "both"),
}
# The scheme that an event is made for, and the axis that counts.
FITS: dict[Name, tuple[schemes.Scheme, str]] = {
    "burst": ("square", "both"),
    "band": ("frequency", "frequency"),
    "click": ("time", "time"),
    "sound": ("time", "time"),
}


def axes_of(event: Name, scheme: schemes.Scheme) -> list[str]:
    """Along which scheme and event both have a place; the last one tells most."""
    whole = scheme in ("square", "time_frequency")
    return [axis for axis in AXES[event] if whole or axis == scheme]


def centre_hz(rng: np.random.Generator, sample_rate: int) -> float:
    """Where a corpus has its band, from 0.1 to 0.35 of the sample rate."""
    return float(rng.uniform(0.1, 0.35) * sample_rate)


def burst(
    rng: np.random.Generator, waveform: Waveform, sample_rate: int, centre: float
) -> tuple[Waveform, pointing.Event]:
    """A burst of noise in a band, at a random time."""
    length = round(BURST_S * sample_rate)
    start = int(rng.integers(len(waveform) - length))
    low, high = centre - BURST_HZ / 2, centre + BURST_HZ / 2
    noise = faded(_noise(rng, length, sample_rate, low, high), sample_rate)
    gain = _rms(waveform) * _gain(rng, "burst") / _rms(noise)
    planted = _added(waveform, noise * gain, start)
    return planted, pointing.Event(
        start_s=start / sample_rate,
        end_s=(start + length) / sample_rate,
        low_hz=low,
        high_hz=high,
    )


def band(
    rng: np.random.Generator, waveform: Waveform, sample_rate: int, centre: float
) -> tuple[Waveform, pointing.Event]:
    """Noise in a narrow band as long as the clip, as a vocoder may leave it."""
    low, high = centre - BAND_HZ / 2, centre + BAND_HZ / 2
    noise = _noise(rng, len(waveform), sample_rate, low, high)
    gain = _rms(waveform) * _gain(rng, "band") / _rms(noise)
    return _added(waveform, noise * gain, 0), pointing.Event(low_hz=low, high_hz=high)


def click(
    rng: np.random.Generator, waveform: Waveform, sample_rate: int, centre: float
) -> tuple[Waveform, pointing.Event]:
    """A click over all frequencies, at a random time; `centre` plays no part."""
    length = max(4, round(CLICK_S * sample_rate))
    start = int(rng.integers(len(waveform) - length))
    shape = rng.standard_normal(length) * np.exp(-5 * np.arange(length) / length)
    gain = np.abs(waveform).max() * _gain(rng, "click") / np.abs(shape).max()
    return _added(waveform, shape * gain, start), pointing.Event(
        start_s=start / sample_rate, end_s=(start + length) / sample_rate
    )


def sound(
    rng: np.random.Generator,
    waveform: Waveform,
    sample_rate: int,
    event: Waveform,
) -> tuple[Waveform, pointing.Event]:
    """A real sound over another, at a random time; its band is where its energy is."""
    event = faded(event[: len(waveform) // 2], sample_rate)
    start = int(rng.integers(len(waveform) - len(event)))
    gain = _rms(waveform) * _gain(rng, "sound") / _rms(event)
    power = np.cumsum(np.abs(np.fft.rfft(event)) ** 2)
    edges = np.searchsorted(power / power[-1], [(1 - ENERGY) / 2, (1 + ENERGY) / 2])
    low, high = edges * sample_rate / len(event)
    return _added(waveform, event * gain, start), pointing.Event(
        start_s=start / sample_rate,
        end_s=(start + len(event)) / sample_rate,
        low_hz=float(low),
        high_hz=float(max(high, low + sample_rate / len(event))),
    )


def loudest(waveform: Waveform, sample_rate: int, *, most_s: float = 1.0) -> Waveform:
    """The event of a recording: its loudest moment, and around it what is as loud.

    From where the level, over 50 ms, rises above a tenth of the loudest to where it
    falls below, and at most `most_s`.
    """
    window = round(0.05 * sample_rate)
    level = np.sqrt(
        np.convolve(waveform**2, np.full(window, 1 / window), mode="same").clip(0)
    )
    peak = int(np.argmax(level))
    quiet = np.flatnonzero(level < 0.1 * level[peak])
    start = max(quiet[quiet < peak], default=0)
    end = min(quiet[quiet > peak], default=len(waveform))
    half = round(most_s * sample_rate / 2)
    return waveform[max(start, peak - half) : min(end, peak + half)]


def _noise(
    rng: np.random.Generator, length: int, sample_rate: int, low: float, high: float
) -> Waveform:
    """Noise between two frequencies, by a filter whose edges are 60 dB down."""
    sos = scipy.signal.cheby2(
        8, 60, [low, high], "bandpass", fs=sample_rate, output="sos"
    )
    warm = round(0.1 * sample_rate)  # the filter's own beginning
    return scipy.signal.sosfilt(sos, rng.standard_normal(length + warm))[warm:]


def faded(waveform: Waveform, sample_rate: int) -> Waveform:
    """Without a click at either end."""
    length = min(round(FADE_S * sample_rate), len(waveform) // 2)
    ramp = np.sin(np.linspace(0, np.pi / 2, length, endpoint=False)) ** 2
    shaped = waveform.copy()
    shaped[:length] *= ramp
    shaped[len(shaped) - length :] *= ramp[::-1]
    return shaped


def _added(waveform: Waveform, event: Waveform, start: int) -> Waveform:
    planted = waveform.copy()
    planted[start : start + len(event)] += event
    return planted


def _gain(rng: np.random.Generator, event: Name) -> float:
    return float(10 ** (rng.uniform(*LEVEL_DB[event]) / 20))


def _rms(waveform: Waveform) -> float:
    return float(np.sqrt(np.mean(waveform**2))) + 1e-9
