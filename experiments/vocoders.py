"""Seven signal-processing vocoders that leave seven kinds of artefact.

Each takes a recording apart and puts it together again, losing on the way something
that a neural vocoder loses too: the phase, the fine spectrum, the pitch pulses, the
seams between sub-bands. None of them is a neural vocoder and none stands in for one
in a result; they are for trying the tool where no corpus is at hand, and for making
fakes of one's own recordings.

All take `(waveform [sample], sample_rate, *, seed)` and give a waveform of the same
length and loudness (RMS), so that neither is a cue; quieter only where it would clip,
which `vocode` makes up for. They run from 8000 Hz and 0.1 s up.
"""

from __future__ import annotations

import functools
from collections.abc import Callable

import librosa
import numpy as np
import scipy.fft
import scipy.signal

from experiments import speech

Vocoder = Callable[..., np.ndarray]
_FRAME_S = 0.046  # 1024 samples at 22,050 Hz, as most neural vocoders have it
_TINY = 1e-9


def griffin_lim_long(
    waveform: np.ndarray, sample_rate: int, *, seed: speech.Seed = 0
) -> np.ndarray:
    """Keeps a long window's magnitudes and finds phases: echoes before onsets."""
    n_fft = _power_of_two(2 * _FRAME_S * sample_rate)
    magnitude = np.abs(_stft(waveform, n_fft, n_fft // 4))
    rebuilt = _griffin_lim(magnitude, n_fft, len(waveform), seed, iterations=16)
    return _finish(rebuilt, waveform, sample_rate)


def griffin_lim_short(
    waveform: np.ndarray, sample_rate: int, *, seed: speech.Seed = 0
) -> np.ndarray:
    """The same on a short window, stopped early: partials break up, a rough voice."""
    n_fft = _power_of_two(_FRAME_S / 2 * sample_rate)
    magnitude = np.abs(_stft(waveform, n_fft, n_fft // 4))
    rebuilt = _griffin_lim(magnitude, n_fft, len(waveform), seed, iterations=6)
    return _finish(rebuilt, waveform, sample_rate)


def mel80_griffin_lim(
    waveform: np.ndarray, sample_rate: int, *, seed: speech.Seed = 0
) -> np.ndarray:
    """Keeps 80 mel bands, as neural vocoders do: fine structure is guessed."""
    n_fft = _power_of_two(_FRAME_S * sample_rate)
    bank = _mel80(sample_rate, n_fft)
    mel = np.abs(_stft(waveform, n_fft, n_fft // 4)) @ bank.T
    # Non-negative by multiplicative steps: a pseudo-inverse clipped at 0 has holes.
    magnitude = (mel / bank.sum(axis=1)) @ bank
    target = mel @ bank
    for _ in range(8):
        magnitude *= target / ((magnitude @ bank.T) @ bank + np.float32(_TINY))
    rebuilt = _griffin_lim(magnitude, n_fft, len(waveform), seed, iterations=24)
    return _finish(rebuilt, waveform, sample_rate)


def lpc_vocoder(
    waveform: np.ndarray, sample_rate: int, *, seed: speech.Seed = 0
) -> np.ndarray:
    """Linear prediction, excited by pulses and noise: the classic buzz."""
    rng = np.random.default_rng(seed)
    hop, order = round(0.005 * sample_rate), 2 + sample_rate // 1000
    size = _power_of_two(_FRAME_S * sample_rate)
    frames = _frames(waveform, 6 * hop, hop)[: len(waveform) // hop + 2]
    power = np.abs(scipy.fft.rfft(frames.astype(float), 2 * size)) ** 2
    correlation = scipy.fft.irfft(power, axis=1)[:, :size]
    predictor, error = _levinson(correlation[:, : order + 1])
    whitening = scipy.fft.rfft(predictor, size)

    # Pitch from the residual's autocorrelation, 60 to 400 Hz.
    flat = power[:, ::2] * np.abs(whitening) ** 2
    echo = scipy.fft.irfft(flat, axis=1)
    low, high = sample_rate // 400, min(sample_rate // 60, size // 2)
    lag = low + np.argmax(echo[:, low:high], axis=1)
    peak = echo[np.arange(len(lag)), lag] / (echo[:, 0] + _TINY)
    voicing = np.clip(2.5 * peak - 0.25, 0.0, 1.0)
    lag = scipy.signal.medfilt(lag.astype(float), 5)
    ticks = np.arange(len(lag))
    period = np.interp(np.arange(len(waveform)) / hop, ticks, np.maximum(lag, low))
    turns = np.cumsum(1 / period)
    pulses = np.diff(np.floor(turns), prepend=0.0) * np.sqrt(period)
    noise = rng.standard_normal(len(waveform))
    # Voices grow noisy upwards: the pulses give way to noise about 3500 Hz.
    hertz = scipy.fft.rfftfreq(size, 1 / sample_rate)
    share = voicing[:, None] / (1 + (hertz / 3500.0) ** 4)
    loudness = np.sqrt(error[:, None] / (2.25 * hop)) / whitening  # window's energy
    rebuilt = speech.fading_filter(pulses, np.sqrt(share) * loudness, hop)
    rebuilt += speech.fading_filter(noise, np.sqrt(1 - share) * loudness, hop)
    return _finish(rebuilt, waveform, sample_rate)


def phase_jitter(
    waveform: np.ndarray, sample_rate: int, *, seed: speech.Seed = 0
) -> np.ndarray:
    """Shakes every phase a little: a faint roughness around each partial."""
    rng = np.random.default_rng(seed)
    n_fft = _power_of_two(_FRAME_S * sample_rate)
    spectrum = _stft(waveform, n_fft, n_fft // 4)
    shaken = 0.6 * rng.standard_normal(spectrum.shape, np.float32)
    spectrum = spectrum * np.exp(1j * shaken)
    return _finish(
        _istft(spectrum, n_fft, n_fft // 4, len(waveform)), waveform, sample_rate
    )


def stretch_roundtrip(
    waveform: np.ndarray, sample_rate: int, *, seed: speech.Seed = 0
) -> np.ndarray:
    """Phase vocoder, a quarter slower and back: smeared onsets, loose partials."""
    del seed  # nothing is drawn
    n_fft = _power_of_two(_FRAME_S * sample_rate)
    slow = _stretch(waveform, n_fft, round(1.25 * len(waveform)))
    return _finish(_stretch(slow, n_fft, len(waveform)), waveform, sample_rate)


def subband_alias(
    waveform: np.ndarray, sample_rate: int, *, seed: speech.Seed = 0
) -> np.ndarray:
    """Four decimated bands that no longer fit: aliases about three seams."""
    rng = np.random.default_rng(seed)
    # The pseudo-QMF bank of multi-band MelGAN: 62 taps, cut-off 0.142, Kaiser 9.
    bands, taps = 4, 62
    prototype = scipy.signal.firwin(taps + 1, 0.142, window=("kaiser", 9.0))
    at = np.arange(taps + 1) - taps / 2
    padded = np.pad(waveform, taps)
    rebuilt = np.zeros(len(padded) + 2 * taps)
    for band in range(bands):
        turn = (2 * band + 1) * np.pi / (2 * bands) * at
        shift = (-1) ** band * np.pi / 4
        analysis = 2 * prototype * np.cos(turn + shift)
        synthesis = 2 * bands * prototype * np.cos(turn - shift)
        sub = scipy.signal.upfirdn(analysis, padded, 1, bands)
        # Odd bands come late by a part of a sample, so their aliases stay.
        late = 0.35 * (band % 2)
        size = scipy.fft.next_fast_len(len(sub) + 16, real=True)
        delay = np.exp(-2j * np.pi * scipy.fft.rfftfreq(size) * late)
        sub = scipy.fft.irfft(scipy.fft.rfft(sub, size) * delay, size)[: len(sub)]
        gain_db = np.interp(
            np.arange(len(sub)),
            np.linspace(0, len(sub), 2 + len(sub) // 400),
            rng.normal(0.0, 0.7, 2 + len(sub) // 400),
        )
        sub = sub * 10 ** (gain_db / 20)
        part = scipy.signal.upfirdn(synthesis, sub, bands, 1)[: len(rebuilt)]
        rebuilt[: len(part)] += part
    return _finish(rebuilt[2 * taps :][: len(waveform)], waveform, sample_rate)


VOCODERS: dict[str, Vocoder] = {
    vocoder.__name__: vocoder
    for vocoder in (
        griffin_lim_long,
        griffin_lim_short,
        mel80_griffin_lim,
        lpc_vocoder,
        phase_jitter,
        stretch_roundtrip,
        subband_alias,
    )
}


def _finish(rebuilt: np.ndarray, original: np.ndarray, sample_rate: int) -> np.ndarray:
    """The original's rumble and loudness, quieter only where it would clip; float32.

    What lies below the voice, under 80 Hz, is the original's: else the leak of a
    window into an empty band would give a fake away.
    """
    length = len(original)
    size = scipy.fft.next_fast_len(length + sample_rate // 10, real=True)
    rumble = 1 / (1 + (scipy.fft.rfftfreq(size, 1 / sample_rate) / 80.0) ** 16)
    below = scipy.fft.rfft(original.astype(float), size)
    above = scipy.fft.rfft(rebuilt.astype(float), size)
    mixed = scipy.fft.irfft(above + rumble * (below - above), size)[:length]
    rms = np.sqrt(np.mean(np.square(original, dtype=np.float64)))
    now = np.sqrt(np.mean(np.square(mixed)))
    if min(rms, now) < _TINY:
        return np.zeros(length, np.float32)
    return (mixed * min(rms / now, 0.99 / np.max(np.abs(mixed)))).astype(np.float32)


def _power_of_two(samples: float) -> int:
    return int(2 ** round(np.log2(samples)))


def _frames(waveform: np.ndarray, width: int, hop: int) -> np.ndarray:
    """Hann-windowed frames `[frame, width]`, frame `i` centred on `i * hop`."""
    padded = np.pad(np.asarray(waveform, np.float32), (width // 2, width + hop))
    window = scipy.signal.get_window("hann", width).astype(np.float32)
    return np.lib.stride_tricks.sliding_window_view(padded, width)[::hop] * window


def _stft(waveform: np.ndarray, n_fft: int, hop: int) -> np.ndarray:
    """Complex64 `[frame, freq]`."""
    return scipy.fft.rfft(_frames(waveform, n_fft, hop), axis=1)


def _istft(spectrum: np.ndarray, n_fft: int, hop: int, length: int) -> np.ndarray:
    """The waveform whose frames come closest to `spectrum`, `[sample]`."""
    window = scipy.signal.get_window("hann", n_fft).astype(np.float32)
    parts = n_fft // hop
    frames = scipy.fft.irfft(spectrum, n_fft, axis=1) * window
    blocks = np.zeros((len(frames) + parts - 1, hop), np.float32)
    for part in range(parts):
        blocks[part : part + len(frames)] += frames[:, part * hop : (part + 1) * hop]
    blocks /= np.sum(np.square(window).reshape(parts, hop), axis=0)
    return blocks.ravel()[n_fft // 2 :][:length]


def _griffin_lim(
    magnitude: np.ndarray,
    n_fft: int,
    length: int,
    seed: speech.Seed,
    *,
    iterations: int,
) -> np.ndarray:
    """Fast Griffin-Lim (Perraudin et al., 2013), momentum 0.99, random first phase."""
    rng = np.random.default_rng(seed)
    turns = rng.random(magnitude.shape, np.float32)
    phase = np.exp(2j * np.pi * turns).astype(np.complex64)
    previous = np.zeros_like(phase)
    hop = n_fft // 4
    for _ in range(iterations):
        wave = _istft(magnitude * phase, n_fft, hop, length)
        rebuilt = _stft(wave, n_fft, hop)
        ahead = rebuilt + np.float32(0.99) * (rebuilt - previous)
        phase = ahead / (np.abs(ahead) + np.float32(_TINY))
        previous = rebuilt
    return _istft(magnitude * phase, n_fft, hop, length)


@functools.lru_cache(maxsize=8)
def _mel80(sample_rate: int, n_fft: int) -> np.ndarray:
    """The mel bank `[80, freq]`, triangles of height 1."""
    return librosa.filters.mel(sr=sample_rate, n_fft=n_fft, n_mels=80, norm=None)


def _levinson(correlation: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Prediction-error filters `[frame, order + 1]` and their error, for each frame."""
    num_frames, width = correlation.shape
    predictor = np.zeros((num_frames, width))
    predictor[:, 0] = 1.0
    error = correlation[:, 0] * (1 + 1e-7) + _TINY
    for step in range(1, width):
        ahead = np.sum(predictor[:, :step] * correlation[:, step:0:-1], axis=1)
        reflection = -ahead / error
        predictor[:, : step + 1] += (
            reflection[:, None] * predictor[:, : step + 1][:, ::-1]
        )
        error = error * (1 - reflection**2)
    return predictor, error


def _stretch(waveform: np.ndarray, n_fft: int, length: int) -> np.ndarray:
    """Phase vocoder to `length` samples, phases locked to their neighbours' (Puckette).

    A frame turns by what the original turned in a hop; each bin starts from the sum
    of the previous frame's bin and its neighbours, which the window sets opposite.
    """
    hop = n_fft // 4
    spectrum = _stft(waveform, n_fft, hop)
    at = np.arange(length // hop + 2) * len(waveform) / length
    before = np.minimum(at.astype(int), len(spectrum) - 2)
    part = (at - before)[:, None].astype(np.float32)
    now, then = spectrum[before], spectrum[before + 1]
    magnitude = (1 - part) * np.abs(now) + part * np.abs(then)
    turn = then * np.conj(now)
    stretched = np.empty_like(now)
    stretched[0] = last = now[0]
    for frame in range(1, len(before)):
        locked = last.copy()
        locked[1:-1] -= last[:-2] + last[2:]
        locked *= turn[frame - 1]
        # A bin that was silent has no phase to go by: it takes the original's.
        lost = np.abs(locked) < np.float32(1e-30)
        locked[lost] = now[frame][lost]
        size = np.abs(locked)
        last = magnitude[frame] * locked / np.maximum(size, np.float32(1e-30))
        stretched[frame] = last
    return _istft(stretched, n_fft, hop, length)
