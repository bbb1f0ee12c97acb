"""A region as sound, cut from the original recording.

In comes an explanation and the `Area`s that are drawn; out comes a `Sound` and its
FLAC file. The recording keeps its own sample rate, whatever the front end's, and
nothing is ever made from a spectrogram. What is heard is what is drawn: an area's
seconds are cut with short fades, its hertz with filters of linear phase whose delay
is removed, so that nothing moves in time.
"""

from __future__ import annotations

import dataclasses
import io
import itertools
import math
from pathlib import Path

import numpy as np
from jaxtyping import Float

from apex_jax import atomic, audio, explanation

# soundfile and scipy.signal are imported where they are used: `--help` need not pay.

# Of an edge between heard and not heard: 0 dB half of this inside the area, -6 dB on
# the edge, about -80 dB half of this outside. Finer than a row of a usual spectrogram;
# and the filter, 5 / TRANSITION_HZ seconds long, smears a click by 50 ms at most.
TRANSITION_HZ = 50.0
ATTENUATION_DB = 80.0
# Narrow bands get a steeper edge and a longer filter, but no steeper than this.
NARROWEST_TRANSITION_HZ = 1.0

# Where amplification stops: -6 dB below full scale, and 40 dB in any case.
AMPLIFIED_PEAK = 10 ** (-6 / 20)
LARGEST_GAIN = 10 ** (40 / 20)
# Half a step of 24 bits: what is quieter is the filters' rounding.
SILENCE = 2.0**-24


@dataclasses.dataclass(frozen=True, kw_only=True)
class Sound:
    """Samples to listen to.

    Attributes:
      samples: `[sample]`, float32, one channel, of magnitude up to 1, full scale.
      sample_rate: the recording's own, Hz.
      start_s: where in the clip they begin, seconds.
      gain_db: by how much they are louder than the recording; below 0 where they would
        exceed full scale otherwise.
    """

    samples: np.ndarray = dataclasses.field(repr=False)
    sample_rate: int
    start_s: float = 0.0
    gain_db: float = 0.0

    def __post_init__(self):
        samples = self.samples
        if samples.ndim != 1 or samples.dtype != np.float32 or not len(samples):
            raise ValueError(
                "Sound: samples must be float32, [sample], at least one; got "
                f"{samples.dtype}, {list(samples.shape)}"
            )
        # Written so that NaN is caught too.
        if not (np.abs(samples) <= 1).all():
            raise ValueError(
                "Sound: samples must be finite and of magnitude up to 1, full scale; "
                f"got up to {np.abs(samples).max():g}"
            )


def clip(
    result: explanation.Explanation, prototype: explanation.Prototype | None = None
) -> Sound | None:
    """The recording of an explained clip, or of one of its prototypes.

    One channel, the mean of the file's as the network heard it, from where the clip
    starts to where it or the file ends; what was appended to a shorter file is left
    out. Samples beyond full scale attenuate the whole.

    Args:
      result: the explanation.
      prototype: one of its prototypes; None for the clip explained itself.

    Returns:
      None where there is nothing to cut: a spectrogram or a feature map was given and
      no sound, or no front end tells how long a clip is.

    Raises:
      AudioError: the file cannot be read.
      ValueError: the explanation's waveform has no sample rate.
    """
    if result.front_end is None:
        return None
    clip_s = result.front_end.clip_s
    if prototype is not None:
        return _from_file(prototype.clip.path, prototype.clip.offset_s, clip_s)
    if result.sound_s is None:
        return None
    if result.waveform is None:
        return _from_file(result.source, result.offset_s, clip_s)
    if result.sample_rate is None:
        raise ValueError(
            "listen.clip: result.sample_rate is None; it must tell the waveform's, Hz"
        )
    count = round(clip_s * result.sample_rate)
    return _sound(result.waveform[:count], result.sample_rate)


def _from_file(path: str | Path, offset_s: audio.Real, clip_s: audio.Real) -> Sound:
    rate = audio.sample_rate_of(path)
    return _sound(audio.load(path, rate, offset_s=offset_s, duration_s=clip_s), rate)


def region(
    sound: Sound,
    areas: tuple[explanation.Area, ...],
    *,
    fade_s: audio.Real = 0.01,
    amplify: bool = False,
) -> Sound:
    """What a clip sounds like inside a region, and nowhere else.

    With x the clip, `w` an area's window in time and `B` the filter of a band: `w B x`
    for one area. Of several it is their union: in each band the window is
    `1 - prod (1 - w)` over the areas that have the band, so that nothing is heard
    twice. For a column and a row that is `w x + (1 - w) B x`. Edges that meet add up:
    the rows of a clip sum to the clip.

    An edge nearer to 0 Hz, or to half the sample rate, than half a transition is not
    filtered. Full-height columns end where the spectrogram ends: what a recording holds
    above is not heard. Where a spectrogram outlasts its recording there is silence.

    Args:
      sound: of the clip, from `clip`.
      areas: as drawn, with seconds and hertz.
      fade_s: length of the raised cosines that fade in and out, inside each area;
        at most half of it each.
      amplify: make quiet regions louder, to 6 dB below full scale or by 40 dB.

    Returns:
      From the first area's start to the last one's end.

    Raises:
      ValueError: no area, or one without extent, seconds or hertz.
    """
    if not 0 <= fade_s < math.inf:
        raise ValueError(f"listen.region: fade_s must be at least 0; got {fade_s}")
    if not areas:
        raise ValueError("listen.region: areas must hold at least one Area; got none")
    start_s, end_s, low_hz, high_hz = np.array([_edges(area) for area in areas]).T
    rate = sound.sample_rate

    # On the clip's own time line, from its start to the end of whichever is longer.
    spans = np.rint(np.stack([start_s, end_s], axis=1) * rate).astype(int)
    spans[:, 1] = np.maximum(spans[:, 1], spans[:, 0] + 1)
    first, last = int(spans.min()), int(spans.max())
    before = round(sound.start_s * rate)
    after = max(0, last - before - len(sound.samples))
    timeline = np.pad(sound.samples.astype(np.float64), (before, after))
    fade, length = round(fade_s * rate), len(timeline)
    windows = [_window(length, start, stop, fade) for start, stop in spans.tolist()]

    narrowest_hz = float((high_hz - low_hz).min())
    transition_hz = max(NARROWEST_TRANSITION_HZ, min(TRANSITION_HZ, narrowest_hz / 2))
    edges = np.union1d(low_hz, high_hz).tolist()
    below = [_low_pass(timeline, rate, edge, transition_hz) for edge in edges]
    heard = np.zeros_like(timeline)
    for i, (low, high) in enumerate(itertools.pairwise(edges)):
        outside = np.ones_like(timeline)
        for area in np.flatnonzero((low_hz <= low) & (high <= high_hz)):
            outside *= 1 - windows[area]
        heard += (1 - outside) * (below[i + 1] - below[i])
    part = _sound(heard[first:last], rate, amplify=amplify)
    return dataclasses.replace(
        part, start_s=first / rate, gain_db=sound.gain_db + part.gain_db
    )


def to_flac(sound: Sound) -> bytes:
    """A FLAC file: of 16 bits where that loses nothing, else of 24.

    A recording of 16 bits comes back bit for bit. What was filtered or faded is rounded
    144 dB below full scale, not 96, where quiet bands would be distorted audibly.

    Raises:
      ValueError: FLAC has no such sample rate.
    """
    import soundfile

    rate = sound.sample_rate
    if not (1 <= rate <= 65_535 or (rate <= 655_350 and rate % 10 == 0)):
        raise ValueError(
            f"listen.to_flac: sample_rate={rate}; FLAC holds up to 65535 Hz, and "
            "multiples of 10 Hz up to 655350 Hz"
        )
    # Integers, so that nothing hangs on how libsndfile scales floating point. Only a
    # sample at +1, which no integer format holds, is clipped.
    for bits in (16, 24):
        full = 2 ** (bits - 1)
        exact = sound.samples.astype(np.float64) * full
        rounded = np.clip(np.rint(exact), -full, full - 1)
        if (rounded == exact).all():
            break
    integers = rounded.astype(np.int32) << (32 - bits)
    buffer = io.BytesIO()
    soundfile.write(buffer, integers, rate, format="FLAC", subtype=f"PCM_{bits}")
    return buffer.getvalue()


def write(path: str | Path, sound: Sound) -> None:
    """Writes a FLAC file, which appears whole or not at all.

    Raises:
      ValueError: `path` does not end in .flac, or as `to_flac`.
    """
    path = Path(path)
    if path.suffix.lower() != ".flac":
        raise ValueError(f"listen.write: path must end in .flac; got {str(path)!r}")
    content = to_flac(sound)
    atomic.write(path, lambda file: file.write(content))


def _edges(area: explanation.Area) -> list[float]:
    """Start and end in seconds, low and high edge in hertz."""
    values = (area.start_s, area.end_s, area.low_hz, area.high_hz)
    edges = [math.nan if value is None else value for value in values]
    start, end, low, high = edges
    # Written so that None and NaN are caught too.
    if not (0 <= start < end < math.inf and 0 <= low < high < math.inf):
        raise ValueError(
            "listen.region: areas must have seconds and hertz, as a front end tells "
            f"them, and an extent; got start_s, end_s, low_hz, high_hz = {values}"
        )
    return edges


def _window(
    length: int, start: int, stop: int, fade: int
) -> Float[np.ndarray, " sample"]:
    """1 in `[start, stop)`, rising and falling inside it as raised cosines."""
    fade = min(fade, (stop - start) // 2)
    rise = np.sin(np.pi / 2 * (np.arange(fade) + 0.5) / max(1, fade)) ** 2
    window = np.zeros(length)
    window[start:stop] = 1
    window[start : start + fade] = rise
    window[stop - fade : stop] = rise[::-1]
    return window


def _low_pass(
    samples: Float[np.ndarray, " sample"],
    rate: int,
    edge_hz: float,
    transition_hz: float,
) -> Float[np.ndarray, " sample"]:
    """What lies below an edge.

    Bands are differences of these, which makes neighbours add up exactly. An odd,
    symmetric filter delays everything by half its length, and that is cut off again.
    """
    nyquist = rate / 2
    if edge_hz < transition_hz / 2:
        return np.zeros_like(samples)
    if edge_hz > nyquist - transition_hz / 2:
        return samples
    from scipy import signal

    taps, beta = signal.kaiserord(ATTENUATION_DB, transition_hz / nyquist)
    taps |= 1
    kernel = signal.firwin(taps, edge_hz, window=("kaiser", beta), fs=rate)
    # Mirrored ends: a clip cut out of a longer sound would start with a click.
    padded = np.pad(samples, taps // 2, mode="reflect")
    return signal.oaconvolve(padded, kernel, mode="valid")


def _sound(
    samples: Float[np.ndarray, " sample"], rate: int, *, amplify: bool = False
) -> Sound:
    """Attenuated to full scale where it exceeds that, or amplified if so asked."""
    peak, scale = float(np.abs(samples).max()), 1.0
    if peak > 1:
        scale = 1 / peak
    elif amplify and SILENCE < peak < AMPLIFIED_PEAK:
        scale = min(AMPLIFIED_PEAK / peak, LARGEST_GAIN)
    # In float32 the product could exceed full scale by its last bit.
    scaled = (samples.astype(np.float64) * scale).astype(np.float32)
    return Sound(samples=scaled, sample_rate=rate, gain_db=20 * math.log10(scale))
