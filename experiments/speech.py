"""Speech-like noise made from a seed, for the demo corpus.

A source-filter synthesiser in plain NumPy: glottal pulses with pitch, jitter and
shimmer, breath and friction noise, a vocal tract of moving resonances, then a room
and a microphone. A seed and a `Speaker` go in, a waveform comes out. The syllables
are drawn at random, so it babbles: the spectrogram looks like speech, but nobody
says anything.
"""

from __future__ import annotations

import dataclasses
from typing import NamedTuple

import numpy as np
import scipy.fft
import scipy.ndimage
import scipy.signal

Seed = int | list[int] | np.random.Generator

_TICK_S = 0.001  # the control tracks' step
_HOP_S = 0.005  # how often the tract's filter is set anew
_EQ_HZ = (100.0, 400.0, 1500.0, 4000.0, 9000.0)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Speaker:
    """One voice and the room it is recorded in.

    Attributes:
      f0_hz: the middle of the voice's pitch.
      f0_octaves: how far the melody swings about it.
      tract: what multiplies the formants of an average man; 1.18 is a woman's.
      breathiness: share of breath noise in the voice, 0 to 1.
      rate: speaking rate, 1 is about five syllables a second.
      eq_db: the microphone's gains at 100, 400, 1500, 4000 and 9000 Hz.
      reverb_s: time in which the room's echo falls by 60 dB.
      snr_db: speech over background noise.
    """

    f0_hz: float
    f0_octaves: float
    tract: float
    breathiness: float
    rate: float
    eq_db: tuple[float, ...]
    reverb_s: float
    snr_db: float


class _Phone(NamedTuple):
    """A sound's targets: formants in Hz, how long, and how loud each source is."""

    formants: tuple[float, ...]
    duration_s: float
    voice: float = 0.0
    breath: float = 0.0
    noise: float = 0.0
    band: tuple[float, ...] = (4000.0, 3000.0)  # friction's centre and bandwidth, Hz
    damping: float = 1.0  # multiplies the formants' bandwidths


# Formants of an average man's vowels (Peterson and Barney, 1952), rounded, then where
# the formants of consonants tend. Durations in ms; stops are their bursts, which
# `_stop` puts behind a closure. A kind is drawn first, then one of its sounds.
_SOUNDS = """
kind       F1   F2   F3  ms voice breath noise centre width damping
vowel     275 2280 3000  95  1.00   1.0   0.00   4000  3000   1.0
vowel     395 1980 2550  95  1.00   1.0   0.00   4000  3000   1.0
vowel     530 1840 2480  95  1.00   1.0   0.00   4000  3000   1.0
vowel     670 1710 2410  95  1.00   1.0   0.00   4000  3000   1.0
vowel     730 1100 2450  95  1.00   1.0   0.00   4000  3000   1.0
vowel     570  850 2420  95  1.00   1.0   0.00   4000  3000   1.0
vowel     440 1020 2250  95  1.00   1.0   0.00   4000  3000   1.0
vowel     300  880 2250  95  1.00   1.0   0.00   4000  3000   1.0
vowel     630 1200 2400  95  1.00   1.0   0.00   4000  3000   1.0
vowel     500 1450 2450  95  1.00   1.0   0.00   4000  3000   1.0
vowel     490 1350 1700  95  1.00   1.0   0.00   4000  3000   1.0
sonorant  260 1050 2200  60  0.45   0.5   0.00   4000  3000   3.0
sonorant  270 1550 2500  60  0.45   0.5   0.00   4000  3000   3.0
sonorant  370 1050 2700  60  0.60   0.5   0.00   4000  3000   1.6
sonorant  360 1150 1550  60  0.60   0.5   0.00   4000  3000   1.6
sonorant  300  700 2200  60  0.60   0.5   0.00   4000  3000   1.6
sonorant  270 2200 2950  60  0.60   0.5   0.00   4000  3000   1.6
fricative 330 1650 2550 105  0.00   0.4   0.75   7200  2600   2.0
fricative 330 1650 2550 105  0.00   0.4   0.65   6300  3000   2.0
fricative 330 1900 2550 105  0.00   0.4   0.70   3600  1700   2.0
fricative 330 1000 2550 105  0.00   0.4   0.10   7500  9000   2.0
fricative 330 1400 2550 105  0.00   0.4   0.10   6500  7000   2.0
fricative 330 1650 2550  75  0.30   0.4   0.35   6600  2800   2.0
fricative 330 1000 2550  75  0.40   0.4   0.08   6000  8000   2.0
fricative 500 1500 2500  60  0.05   3.0   0.00   4000  3000   1.0
stop      280  900 2450   8  0.00   0.5   0.35   1200  2500   1.0
stop      280 1750 2450   8  0.00   0.5   0.80   4800  3500   1.0
stop      280 2000 2450   8  0.00   0.5   0.70   2200  1400   1.0
"""


def _sounds(kind: str) -> list[_Phone]:
    rows = [row.split() for row in _SOUNDS.splitlines() if row.startswith(kind)]
    numbers = [[float(word) for word in row[1:]] for row in rows]
    return [
        _Phone(tuple(n[:3]), n[3] / 1000, n[4], n[5], n[6], tuple(n[7:9]), n[9])
        for n in numbers
    ]


def _stop(burst: _Phone, voiced: bool) -> list[_Phone]:
    """Closed lips, behind which a voiced stop hums; the burst; breath unless voiced."""
    closed = burst._replace(noise=0.0, breath=0.0, damping=3.0)
    if voiced:
        return [closed._replace(duration_s=0.05, voice=0.09), burst]
    after = burst._replace(duration_s=0.045, breath=3.0, noise=0.1 * burst.noise)
    return [closed._replace(duration_s=0.065), burst, after]


_VOWELS = _sounds("vowel")
_FRICATIVES = [[phone] for phone in _sounds("fricative")]
_STOPS = [_stop(burst, voiced) for burst in _sounds("stop") for voiced in (False, True)]
_CONSONANTS = [[[phone] for phone in _sounds("sonorant")], _FRICATIVES, _STOPS]


def speakers(n: int, seed: Seed) -> list[Speaker]:
    """Draws `n` speakers, low voices and high ones in turn."""
    rng = np.random.default_rng(seed)
    drawn = []
    for index in range(n):
        high = index % 2
        drawn.append(
            Speaker(
                f0_hz=(190.0 if high else 105.0) * 2 ** rng.uniform(-0.2, 0.25),
                f0_octaves=rng.uniform(0.18, 0.32),
                tract=(1.15 if high else 1.0) * rng.uniform(0.95, 1.06),
                breathiness=rng.uniform(0.1, 0.5),
                rate=rng.uniform(0.85, 1.2),
                eq_db=tuple(rng.uniform(-3.0, 3.0, len(_EQ_HZ)).tolist()),
                reverb_s=rng.uniform(0.12, 0.4),
                snr_db=rng.uniform(37.0, 48.0),
            )
        )
    return drawn


def utterance(
    seed: Seed,
    speaker: Speaker,
    *,
    sample_rate: int = 22050,
    duration_s: float = 2.0,
) -> np.ndarray:
    """Babbles for `duration_s` seconds.

    Args:
      seed: what `np.random.default_rng` takes; same seed, same samples.
      speaker: the voice.
      sample_rate: in hertz, 8000 or more.
      duration_s: seconds, 0.1 or more.

    Returns:
      Waveform, float32 `[sample]`, between -0.95 and 0.95.

    Raises:
      ValueError: the sample rate or the duration is too low.
    """
    if sample_rate < 8000 or duration_s < 0.1:
        raise ValueError(
            "utterance needs sample_rate >= 8000 and duration_s >= 0.1, got "
            f"{sample_rate} and {duration_s}"
        )
    rng = np.random.default_rng(seed)
    phones, melody = _plan(rng, speaker, duration_s)
    num_samples = round(duration_s * sample_rate)
    num_ticks = int(np.ceil(duration_s / _TICK_S)) + 1
    ends = np.cumsum([p.duration_s for p in phones]) / _TICK_S
    index = np.searchsorted(ends, np.arange(num_ticks), side="right")
    index = np.minimum(index, len(phones) - 1)

    def track(values: list, smooth_s: float) -> np.ndarray:
        steps = np.array(values, np.float64)[index]
        return scipy.ndimage.gaussian_filter1d(steps, smooth_s / _TICK_S, axis=0)

    at = np.arange(num_samples) / (sample_rate * _TICK_S)
    ticks = np.arange(num_ticks)
    voice, breath, noise = (
        np.interp(at, ticks, track([p[field] for p in phones], smooth_s))
        for field, smooth_s in ((2, 0.007), (3, 0.008), (4, 0.004))
    )
    f0 = speaker.f0_hz * 2 ** np.interp(at, ticks, track(melody, 0.04))
    pulses, flow = _glottis(rng, speaker, f0, sample_rate)
    hiss = rng.standard_normal((2, num_samples))
    # Breath is loudest while the glottis is open.
    level = 0.12 * (0.3 + speaker.breathiness) * breath * (0.3 + flow)
    excitation = voice * pulses + level * np.diff(hiss[0], prepend=0.0)

    hop = round(_HOP_S * sample_rate)
    frames = np.minimum(
        np.arange(num_samples // hop + 2) * round(_HOP_S / _TICK_S), num_ticks - 1
    )
    formants = speaker.tract * np.exp(
        track(np.log([p.formants for p in phones]).tolist(), 0.016)[frames]
    )
    damping = track([p.damping for p in phones], 0.01)[frames]
    band = track([p.band for p in phones], 0.01)[frames]
    size = 2 * scipy.fft.next_fast_len(hop + round(0.02 * sample_rate), real=True)
    delay = np.exp(-2j * np.pi * np.arange(size // 2 + 1) / size).astype(np.complex64)
    tract = _tract(formants, damping, speaker, delay, sample_rate)
    voiced = fading_filter(excitation, tract, hop)
    hissed = fading_filter(noise * hiss[1], _friction(band, delay, sample_rate), hop)
    return _record(rng, speaker, voiced + 1.6 * hissed, sample_rate)


def _plan(
    rng: np.random.Generator, speaker: Speaker, duration_s: float
) -> tuple[list[_Phone], list[float]]:
    """Phones with their final durations, and each one's pitch in octaves."""
    silence = _Phone((480.0, 1500.0, 2500.0), 0.1)

    def pause(low: float, high: float) -> tuple[_Phone, float]:
        return silence._replace(duration_s=rng.uniform(low, high)), 0.0

    edge_s = min(0.15, 0.2 * duration_s)
    plan = [pause(0.2 * edge_s, edge_s)]
    end_s = duration_s - rng.uniform(0.2, 1.0) * edge_s
    now_s = plan[0][0].duration_s
    while now_s < end_s:
        stress = rng.uniform(0.2, 1.0)
        syllable: list[_Phone] = []
        if rng.random() < 0.85:
            group = _CONSONANTS[rng.choice(3, p=(0.35, 0.3, 0.35))]
            if group is _STOPS and rng.random() < 0.2:
                syllable += _FRICATIVES[0]
            syllable += group[rng.integers(len(group))]
        vowel = _VOWELS[rng.integers(len(_VOWELS))]
        gain = 0.55 + 0.45 * stress
        lasting = vowel.duration_s * (0.5 + 0.9 * stress)
        glide = rng.uniform(0.0, 0.5)  # how far it moves on to another vowel
        towards = _VOWELS[rng.integers(len(_VOWELS))].formants
        moved = (1 - glide) * np.array(vowel.formants) + glide * np.array(towards)
        for formants in (vowel.formants, tuple(moved.tolist())):
            half = vowel._replace(formants=formants, duration_s=0.5 * lasting)
            syllable.append(half._replace(voice=gain, breath=gain))
            gain *= rng.uniform(0.6, 1.0)
        if rng.random() < 0.4:
            group = _CONSONANTS[rng.choice(3, p=(0.4, 0.35, 0.25))]
            syllable += group[rng.integers(len(group))]
        # The melody falls along the phrase; stressed syllables stand out of it.
        tone = speaker.f0_octaves * (1.1 * stress - 0.2 - 0.9 * now_s / duration_s)
        stretch = rng.uniform(0.85, 1.2) / speaker.rate
        spoken = [p._replace(duration_s=p.duration_s * stretch) for p in syllable]
        plan += [(p, tone + rng.normal(0.0, 0.07)) for p in spoken]
        if rng.random() < 0.12:
            plan.append(pause(0.06, 0.25))
        now_s = sum(p.duration_s for p, _ in plan)
    scale = end_s / now_s
    phones = [p._replace(duration_s=p.duration_s * scale) for p, _ in plan]
    melody = [tone for _, tone in plan]
    return [*phones, silence._replace(duration_s=1.0)], [*melody, melody[-1]]


def _glottis(
    rng: np.random.Generator, speaker: Speaker, f0: np.ndarray, sample_rate: int
) -> tuple[np.ndarray, np.ndarray]:
    """Derivative of Rosenberg's glottal flow, and the flow, both `[sample]`."""
    double = np.repeat(f0, 2) / (2 * sample_rate)  # twice the rate, against aliasing
    cycle = np.cumsum(double).astype(int)
    jitter, shimmer = rng.standard_normal((2, cycle[-1] + 2))
    phase = np.cumsum(double * (1 + 0.008 * jitter[cycle])) + rng.random()
    cycle = np.minimum(phase.astype(int), len(shimmer) - 1)
    at = phase % 1.0
    close = 0.5 + 0.25 * speaker.breathiness  # the share of a cycle it stays open
    rise, fall = 0.68 * close, 0.32 * close
    falling = np.clip((at - rise) / fall, 0.0, 1.0) * np.pi / 2
    rising = np.minimum(at / rise, 1.0) * np.pi
    flow = np.where(at < rise, 0.5 - 0.5 * np.cos(rising), np.cos(falling))
    slope = np.where(at < rise, np.sin(rising) / (2 * rise), -np.sin(falling) / fall)
    slope[at >= close] = 0.0
    slope *= 1 + 0.06 * shimmer[cycle]
    return scipy.signal.resample_poly(slope, 1, 2), flow[::2]


def _resonance(
    centre: np.ndarray, bandwidth: np.ndarray, delay: np.ndarray, sample_rate: int
) -> tuple[np.ndarray, np.ndarray]:
    """Gain and denominator of pole pairs at `centre`, on the grid `delay` = 1/z."""
    radius = np.exp(-np.pi * bandwidth / sample_rate)[..., None]
    b = -2 * radius * np.cos(2 * np.pi * centre / sample_rate)[..., None]
    b, c = b.astype(np.float32), (radius**2).astype(np.float32)
    return 1 + b + c, 1 + b * delay + c * delay**2


def _tract(
    formants: np.ndarray,
    damping: np.ndarray,
    speaker: Speaker,
    delay: np.ndarray,
    sample_rate: int,
) -> np.ndarray:
    """The tract's response `[frame, freq]`: three moving resonances, the rest still."""
    response = np.ones((len(formants), len(delay)), np.complex64)
    for column, width in zip(formants.T, (70.0, 90.0, 130.0), strict=True):
        column = np.minimum(column, 0.47 * sample_rate)
        gain, poles = _resonance(column, width * damping, delay, sample_rate)
        response *= gain / poles
    still = speaker.tract * np.arange(3400.0, 16000.0, 1000.0)
    still = still[still < 0.48 * sample_rate]
    gain, poles = _resonance(still, 60.0 + 0.06 * still, delay, sample_rate)
    # Lips radiate the derivative, which the glottal source already is.
    return response * np.prod(gain / poles, axis=0)


def _friction(band: np.ndarray, delay: np.ndarray, sample_rate: int) -> np.ndarray:
    """Band-pass of friction noise `[frame, freq]`, its peak at about 1."""
    centre = np.minimum(band[:, 0], 0.42 * sample_rate)
    _, poles = _resonance(centre, band[:, 1], delay, sample_rate)
    response = (1 - delay**2) / poles
    return response / np.abs(response).max(axis=1, keepdims=True)


def fading_filter(waveform: np.ndarray, response: np.ndarray, hop: int) -> np.ndarray:
    """Filters by a response that changes every `hop` samples, fading into the next.

    Args:
      waveform: `[sample]`.
      response: complex `[frame, freq]` with an odd number of frequencies from 0 to
        the Nyquist frequency; frame `i` is centred on sample `i * hop`, and there
        are `len(waveform) // hop + 2` of them.
      hop: samples from one response to the next.

    Returns:
      The filtered waveform, `[sample]`.
    """
    num_frames, size = len(response), 2 * (response.shape[1] - 1)
    padded = np.zeros((num_frames + 1) * hop, np.float32)
    padded[hop : hop + len(waveform)] = waveform
    frames = np.lib.stride_tricks.sliding_window_view(padded, 2 * hop)[::hop]
    frames = frames * scipy.signal.get_window("hann", 2 * hop).astype(np.float32)
    rung = scipy.fft.irfft(scipy.fft.rfft(frames, size) * response, size)
    num_parts = -(-size // hop)
    rung = np.pad(rung, ((0, 0), (0, num_parts * hop - size)))
    output = np.zeros((num_frames + num_parts, hop))
    for part in range(num_parts):
        columns = rung[:, part * hop : (part + 1) * hop]
        output[part : part + num_frames] += columns
    return output.ravel()[hop : hop + len(waveform)]


def _record(
    rng: np.random.Generator, speaker: Speaker, dry: np.ndarray, sample_rate: int
) -> np.ndarray:
    """The room, the microphone and its noise; float32 at a level a reader keeps."""
    tail = round(speaker.reverb_s * sample_rate)
    decay = np.exp(-6.9 * np.arange(tail) / tail)
    echo = scipy.signal.lfilter([0.5], [1.0, -0.5], rng.standard_normal(tail)) * decay
    echo *= 0.22 / np.sqrt(np.sum(echo**2))
    echo[: round(0.004 * sample_rate)] *= 0.3
    echo[0] = 1.0
    wet = scipy.signal.oaconvolve(dry, echo)[: len(dry)]

    size = scipy.fft.next_fast_len(len(dry) + sample_rate // 10, real=True)
    hertz = np.maximum(scipy.fft.rfftfreq(size, 1 / sample_rate), 1.0)
    # The day's microphone distance: small changes about the speaker's own gains.
    gains = np.array(speaker.eq_db) + rng.uniform(-1.5, 1.5, len(_EQ_HZ))
    eq = 10 ** (np.interp(np.log(hertz), np.log(_EQ_HZ), gains) / 20)
    eq /= np.sqrt(1 + (70.0 / hertz) ** 6)
    heard = scipy.fft.irfft(scipy.fft.rfft(wet, size) * eq, size)[: len(dry)]
    tilt = 1 / (1 + hertz / 700.0) / np.sqrt(1 + (50.0 / hertz) ** 4)
    hiss = scipy.fft.rfft(rng.standard_normal(size)) * tilt
    floor = scipy.fft.irfft(hiss, size)[: len(dry)]
    heard *= 1 / max(np.sqrt(np.mean(heard**2)), 1e-9)
    floor *= 1 / max(np.sqrt(np.mean(floor**2)), 1e-9)
    snr_db = speaker.snr_db + rng.uniform(-3.0, 3.0)
    mixed = (heard + floor * 10 ** (-snr_db / 20)) * 10 ** (rng.uniform(-26, -22) / 20)
    return (mixed * min(1.0, 0.95 / np.max(np.abs(mixed)))).astype(np.float32)
