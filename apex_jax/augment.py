"""Training clips made harder: mixed, noised, masked; on the device, from a key a step.

Between `data` and the network, while `train` learns. In come waveforms and targets, or
power spectrograms; out come the same, changed as `settings.Augmentation` says. What a
clip gets depends on the key and on its place in the batch alone, not on the devices.
The recipe and its defaults follow AudioProtoPNet's training on BirdSet; where a rule
there depends on the whole batch (one number of mixes for all, one mask or none), ours
is drawn for each clip.
"""

from __future__ import annotations

import functools
import math

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, Key

from apex_jax import classifier, frontend, settings, spectrogram

Config = settings.Augmentation
Range = tuple[float, float]

# Of a clip that is silent: what is added has to be so much below something.
_LEAST_RMS = 1e-5


def mixed(
    key: Key[Array, ""],
    config: Config,
    waveform: Float[Array, "batch sample"],
    target: Float[Array, "batch classes"],
    valid: Bool[Array, " batch"],
    activation: classifier.Activation,
) -> tuple[Float[Array, "batch sample"], Float[Array, "batch classes"]]:
    """Clips of the batch added to each other, each at its own level.

    A partner is any other valid clip. With "sigmoid" the mixture has all their classes.
    With "softmax" targets stay a distribution: a partner's share is that of its
    amplitude, `r / (1 + r)` at `r` times the amplitude of what it is added to, as in
    Tokozume et al., "Learning from between-class examples", 2018.

    Args:
      key: of this step.
      config: the chances.
      waveform: `[batch, sample]`.
      target: `[batch, classes]`.
      valid: which are clips.
      activation: how the classes exclude each other.
    """
    if not config.mix:
        return waveform, target
    size = len(waveform)
    which_key, count_key, *keys = jax.random.split(key, 2 + 2 * config.mixes)
    chosen = jax.random.bernoulli(which_key, config.mix, (size,)) & valid
    count = jax.random.randint(count_key, (size,), 1, config.mixes + 1)
    ratio = 10 ** (-_uniform(keys[0], config.mix_snr_db, (size,)) / 20)
    now, now_target = waveform, target
    others = valid[None] & ~jnp.eye(size, dtype=bool)
    for number in range(config.mixes):
        # The one with the largest of random numbers.
        draws = jax.random.uniform(keys[1 + number], (size, size))
        partner = jnp.argmax(jnp.where(others, draws, -1.0), axis=1)
        added = chosen & others.any(axis=1) & (number < count)
        louder = jnp.where(added, ratio * _rms(now), 0.0)
        other = waveform[partner]
        now = now + other * (louder / _rms(other))[:, None]
        share = jnp.where(added, ratio / (1 + ratio), 0.0)[:, None]
        if activation == "softmax":
            now_target = (1 - share) * now_target + share * target[partner]
        else:
            now_target = jnp.maximum(
                now_target, jnp.where(share > 0, target[partner], 0.0)
            )
    return now, now_target


def power(
    key: Key[Array, ""],
    config: Config,
    front_end: frontend.FrontEnd,
    waveform: Float[Array, "batch sample"],
    place: Int[Array, " batch"],
    background: Float[Array, "batch sample"] | None = None,
    has_background: Bool[Array, " batch"] | None = None,
) -> tuple[Float[Array, "batch time bin"], Bool[Array, " batch"]]:
    """Power spectrograms of clips after `sound` and `masked`.

    Args:
      key: of this step.
      config: the chances.
      front_end: settings of the spectrogram.
      waveform: `[batch, sample]`.
      place: of each clip in the whole batch; with the key it decides what happens.
      background: recordings, `[batch, sample]`; None where there are none.
      has_background: which of them could be read.

    Returns:
      The spectrograms, and which clips keep their classes.
    """
    keys = jax.vmap(functools.partial(jax.random.fold_in, key))(place)
    sound_keys, mask_keys = jnp.moveaxis(jax.vmap(jax.random.split)(keys), 1, 0)
    waveform, kept = jax.vmap(
        lambda key, *arrays: sound(key, config, front_end.sample_rate, *arrays),
    )(sound_keys, waveform, background, has_background)
    value = spectrogram.power(front_end, waveform)
    if config.freq_mask or config.time_mask:
        mask = functools.partial(masked, config=config, front_end=front_end)
        value = jax.vmap(lambda key, value: mask(key, power=value))(mask_keys, value)
    return value, kept


def sound(
    key: Key[Array, ""],
    config: Config,
    sample_rate: int,
    waveform: Float[Array, " sample"],
    background: Float[Array, " sample"] | None,
    has_background: Bool[Array, ""] | None,
) -> tuple[Float[Array, " sample"], Bool[Array, ""]]:
    """One clip turned, with background, with noise, louder or softer, or replaced.

    Unbatched.

    Args:
      key: of this clip in this step.
      config: the chances.
      sample_rate: in hertz.
      waveform: `[sample]`.
      background: a recording, `[sample]`; None where there are none.
      has_background: False where it could not be read.

    Returns:
      The clip, and whether it still has its classes.
    """
    keys = iter(jax.random.split(key, 9))
    roll = _happens(next(keys), config.roll)
    by = jax.random.randint(next(keys), (), 0, len(waveform))
    if config.roll:
        waveform = jnp.roll(waveform, jnp.where(roll, by, 0))
    background_key, noise_key, colour_key = next(keys), next(keys), next(keys)
    if background is not None and has_background is not None and config.background:
        added = _at(background_key, waveform, background, config.background_snr_db)
        happens = _happens(next(keys), config.background) & has_background
        waveform = jnp.where(happens, added, waveform)
    if config.noise:
        noise = coloured(colour_key, len(waveform), sample_rate, config.noise_exponent)
        added = _at(noise_key, waveform, noise, config.noise_snr_db)
        waveform = jnp.where(_happens(next(keys), config.noise), added, waveform)
    if config.gain:
        gain_key, happens_key = jax.random.split(next(keys))
        gain = 10 ** (_uniform(gain_key, config.gain_db) / 20)
        waveform = waveform * jnp.where(_happens(happens_key, config.gain), gain, 1.0)
    replaced = jnp.asarray(False)
    if background is not None and has_background is not None and config.no_call:
        replaced = _happens(next(keys), config.no_call) & has_background
        waveform = jnp.where(replaced, background, waveform)
    return waveform, ~replaced


def coloured(
    key: Key[Array, ""], length: int, sample_rate: int, exponent: Range
) -> Float[Array, " sample"]:
    """Noise whose amplitude falls with frequency to a random exponent.

    It is divided by `1 + (sqrt(s / 2) - 1) f / (s / 2)` to the exponent, `f` in hertz
    and `s` the sample rate, so that it is white below about 130 Hz (at 32 kHz) and the
    rest is heard: as torch-audiomentations' AddColoredNoise has it.
    """
    exponent_key, noise_key = jax.random.split(key)
    spectrum = jnp.fft.rfft(jax.random.normal(noise_key, (length,)))
    nyquist = sample_rate / 2
    of_nyquist = jnp.arange(len(spectrum)) * (2 / length)
    falling = 1 + (math.sqrt(nyquist) - 1) * of_nyquist
    return jnp.fft.irfft(
        spectrum * falling ** -_uniform(exponent_key, exponent), n=length
    )


def masked(
    key: Key[Array, ""],
    config: Config,
    front_end: frontend.FrontEnd,
    power: Float[Array, "time bin"],
) -> Float[Array, "time bin"]:
    """A power spectrogram with a band and a stretch set to zero (SpecAugment).

    Unbatched.

    Args:
      key: of this clip in this step.
      config: the chances and the greatest widths.
      front_end: tells how many bins and frames they are.
      power: from `spectrogram.power`.
    """
    time_key, freq_key = jax.random.split(key)
    frame_s = front_end.hop_length / front_end.sample_rate
    bin_hz = front_end.sample_rate / front_end.n_fft
    kept = _kept(
        time_key, len(power), config.time_mask, round(config.time_mask_s / frame_s)
    )[:, None]
    kept &= _kept(
        freq_key, power.shape[1], config.freq_mask, round(config.freq_mask_hz / bin_hz)
    )[None]
    return jnp.where(kept, power, 0.0)


def _kept(
    key: Key[Array, ""], length: int, chance: float, widest: int
) -> Bool[Array, " length"]:
    """Where nothing is masked: a stretch of random width and place, or nothing, is."""
    happens_key, width_key, first_key = jax.random.split(key, 3)
    width = jnp.round(jax.random.uniform(width_key) * min(widest, length))
    first = jnp.round(jax.random.uniform(first_key) * (length - width))
    at = jnp.arange(length)
    inside = (at >= first) & (at < first + width)
    return ~(inside & _happens(happens_key, chance))


def _at(
    key: Key[Array, ""],
    waveform: Float[Array, " sample"],
    other: Float[Array, " sample"],
    snr_db: Range,
) -> Float[Array, " sample"]:
    """The clip with another sound at a random level below its own."""
    level = _rms(waveform) * 10 ** (-_uniform(key, snr_db) / 20)
    return waveform + other * (level / _rms(other))


def _rms(waveform: Float[Array, "*batch sample"]) -> Float[Array, "*batch"]:
    return jnp.maximum(jnp.sqrt(jnp.mean(waveform**2, axis=-1)), _LEAST_RMS)


def _uniform(key: Key[Array, ""], within: Range, shape: tuple[int, ...] = ()) -> Array:
    return jax.random.uniform(key, shape, minval=within[0], maxval=within[1])


def _happens(key: Key[Array, ""], chance: float) -> Bool[Array, ""]:
    return jax.random.bernoulli(key, chance)
