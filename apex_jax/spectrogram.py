"""From a waveform to a spectrogram, on the device.

In comes a waveform `[batch, sample]`; out goes a spectrogram `[batch, freq, time]`
(JAX) whose row 0 is the lowest frequency.
"""

from __future__ import annotations

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from apex_jax import frontend

# librosa is imported where it is used: it costs more than a second.


@functools.lru_cache(maxsize=8)
def _tables(front_end: frontend.FrontEnd) -> tuple[np.ndarray, np.ndarray | None]:
    """Window `[n_fft]` and mel filters `[mel, bin]`, None where linear."""
    import librosa

    window = librosa.filters.get_window("hann", front_end.win_length or front_end.n_fft)
    window = librosa.util.pad_center(window, size=front_end.n_fft).astype(np.float32)
    if front_end.n_mels is None:
        return window, None
    return window, librosa.filters.mel(
        sr=front_end.sample_rate,
        n_fft=front_end.n_fft,
        n_mels=front_end.n_mels,
        fmin=front_end.fmin,
        fmax=front_end.fmax,
        htk=front_end.mel_scale == "htk",
        norm=front_end.mel_norm,
    )


def spectrogram(
    front_end: frontend.FrontEnd, waveform: Float[Array | np.ndarray, "batch sample"]
) -> Float[Array, "batch freq time"]:
    """Normalised (mel) spectrograms in dB; row 0 is the lowest frequency.

    Finite for samples of magnitude up to `frontend.LARGEST_SAMPLE`; a clip of zeros is
    `amin` in dB, normalised, everywhere. Clips are independent of each other unless
    `top_db_scope` is 'batch'. XLA gathers a batch that is spread over devices for
    the Fourier transform; inside `jax.shard_map` each device keeps to its own clips.

    Args:
      front_end: the settings, static under `jax.jit`.
      waveform: `[batch, num_samples]`, full scale 1.

    Returns:
      `[batch, num_rows, num_frames]`, float32.

    Raises:
      ValueError: the clips are not `front_end.num_samples` long.
    """
    return decibel(front_end, power(front_end, waveform))


def power(
    front_end: frontend.FrontEnd, waveform: Float[Array | np.ndarray, "batch sample"]
) -> Float[Array, "batch time bin"]:
    """Squared magnitudes of the Fourier transform of each frame.

    Args:
      front_end: the settings, static under `jax.jit`.
      waveform: `[batch, num_samples]`, full scale 1.

    Returns:
      `[batch, num_frames, 1 + n_fft // 2]`, float32.

    Raises:
      ValueError: the clips are not `front_end.num_samples` long.
    """
    if waveform.shape[1] != front_end.num_samples:
        raise ValueError(
            f"spectrogram: waveform has {waveform.shape[1]} samples a clip; "
            f"clip_s={front_end.clip_s} at {front_end.sample_rate} Hz is "
            f"{front_end.num_samples}, see `fit_length`"
        )
    window, _ = _tables(front_end)
    n_fft, hop = front_end.n_fft, front_end.hop_length
    ends = ((0, 0), (n_fft // 2, n_fft // 2))
    padded = jnp.pad(jnp.asarray(waveform, jnp.float32), ends, mode=front_end.pad_mode)
    # A frame is `n_fft` samples of `pieces` consecutive hops: shifted slices of one
    # reshaped array, where a gather would be slow on accelerators. Stacked, XLA makes
    # them and their window in one go; concatenated, they take twice as long.
    pieces = -(-n_fft // hop)
    length = (front_end.num_frames + pieces - 1) * hop
    padded = jnp.pad(padded, ((0, 0), (0, max(0, length - padded.shape[1]))))
    hops = padded[:, :length].reshape(len(padded), -1, hop)
    frames = jnp.stack(
        [hops[:, i : i + front_end.num_frames] for i in range(pieces)], axis=2
    )
    frames = frames.reshape(*frames.shape[:2], -1)[:, :, :n_fft]
    spectrum = jnp.fft.rfft(frames * window[None, None, :])
    return spectrum.real**2 + spectrum.imag**2


def decibel(
    front_end: frontend.FrontEnd, value: Float[Array, "batch time bin"]
) -> Float[Array, "batch freq time"]:
    """What `power` gives as a normalised (mel) spectrogram in dB, see `spectrogram`."""
    _, filters = _tables(front_end)
    if front_end.power != 2:
        value = value ** (front_end.power / 2)
    if filters is None:
        value = jnp.swapaxes(value, 1, 2)
    else:
        value = jnp.einsum(
            "mf,btf->bmt", filters, value, precision=jax.lax.Precision.HIGHEST
        )
    level = 20 / front_end.power * jnp.log10(jnp.maximum(value, front_end.amin))
    if front_end.top_db is not None:
        level = jnp.maximum(level, _maximum(front_end, level) - front_end.top_db)
    return (level - front_end.mean) / front_end.std


def silence_level(
    front_end: frontend.FrontEnd,
    spectrogram: Float[Array | np.ndarray, "batch freq time"],
) -> Float[Array, " batch"]:
    """The value silence has in each clip, in the clip's own normalised units.

    Where `top_db` cuts, that is the clip's maximum less `top_db`, but never less
    than `amin`; else `amin`.

    Args:
      front_end: the settings the spectrogram was made with.
      spectrogram: `[batch, freq, time]`, from `spectrogram`.
    """
    decibel = 20 / front_end.power * math.log10(front_end.amin)
    lowest = (decibel - front_end.mean) / front_end.std
    level = jnp.full(len(spectrogram), lowest, jnp.float32)
    if front_end.top_db is None:
        return level
    maximum = _maximum(front_end, jnp.asarray(spectrogram))
    floor = maximum - front_end.top_db / front_end.std
    return jnp.maximum(level, floor.reshape(-1))


def attenuate(
    front_end: frontend.FrontEnd,
    spectrogram: Float[Array, "batch freq time"],
    mask: Float[Array, "batch freq time"],
) -> Float[Array, "batch freq time"]:
    """Silences what a mask covers: `S' = S (1 - M) + silence M`.

    Args:
      front_end: tells what silence is in the spectrogram's units.
      spectrogram: from `spectrogram`.
      mask: in [0, 1], 1 hides.
    """
    silence = silence_level(front_end, spectrogram)[:, None, None]
    return spectrogram * (1 - mask) + silence * mask


def _maximum(front_end: frontend.FrontEnd, decibel: jax.Array) -> jax.Array:
    """What `top_db` counts from: `[batch, 1, 1]`, or `[1, 1, 1]` of the batch."""
    axes = (1, 2) if front_end.top_db_scope == "clip" else (0, 1, 2)
    return jnp.max(decibel, axis=axes, keepdims=True)
