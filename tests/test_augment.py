"""Augmentation: each change against plain NumPy, chances, levels, classes, masks."""

import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from apex_jax import audio, augment, settings, spectrogram

FRONT_END = audio.FrontEnd(
    sample_rate=8000, clip_s=0.5, n_fft=256, hop_length=80, n_mels=24
)
NUM = FRONT_END.num_samples
SIZE = 64


@pytest.fixture(scope="module")
def clips():
    """Sines of different pitch and loudness: what was added can be told apart."""
    at = np.arange(NUM) / FRONT_END.sample_rate
    loud = np.geomspace(0.01, 1, SIZE)
    return np.stack(
        [a * np.sin(2 * np.pi * (200 + 40 * i) * at) for i, a in enumerate(loud)]
    ).astype(np.float32)


def rms(x):
    return np.sqrt(np.mean(np.square(x, dtype=np.float64), axis=-1))


def mixed(clips, target, activation="sigmoid", valid=None, seed=0, **changes):
    config = settings.Augmentation(**{"mix": 1.0, "mixes": 1} | changes)
    valid = np.ones(len(clips), bool) if valid is None else valid
    with jax.numpy_rank_promotion("raise"):
        out = jax.jit(augment.mixed, static_argnums=(1, 5))(
            jax.random.key(seed), config, clips, target, valid, activation
        )
    return tuple(np.asarray(a) for a in out)


def test_nothing_by_default():
    assert settings.Augmentation().off
    assert not settings.Augmentation.birdset().off
    assert settings.Augmentation.birdset().needs_background


# --- mixing


def test_a_partner_is_added_at_its_level_with_its_classes(clips):
    target = np.eye(SIZE, dtype=np.float32)
    now, classes = mixed(clips, target, mix_snr_db=(3.0, 30.0))
    snr = []
    for i in range(SIZE):
        (partner,) = np.flatnonzero(classes[i] - target[i])
        added = now[i] - clips[i]
        expected = clips[partner] / rms(clips[partner]) * rms(added)
        np.testing.assert_allclose(added, expected, atol=1e-5)
        snr.append(20 * np.log10(rms(clips[i]) / rms(added)))
        assert classes[i].sum() == 2
    assert min(snr) > 2.9
    assert max(snr) < 30.1
    assert np.ptp(snr) > 15


def test_targets_stay_a_distribution_where_classes_exclude_each_other(clips):
    target = np.eye(SIZE, dtype=np.float32)
    now, classes = mixed(clips, target, "softmax", mix_snr_db=(0.0, 20.0), seed=3)
    np.testing.assert_allclose(classes.sum(axis=1), 1, rtol=1e-6)
    for i in range(SIZE):
        ratio = rms(now[i] - clips[i]) / rms(clips[i])
        assert 1 - classes[i, i] == pytest.approx(ratio / (1 + ratio), rel=1e-3)
        assert classes[i, i] >= 0.5 - 1e-6


def test_only_some_are_mixed_and_only_with_what_is_there(clips):
    valid = np.arange(SIZE) % 2 == 0
    target = np.eye(SIZE, dtype=np.float32)
    now, classes = mixed(clips, target, valid=valid, mix=0.5, mixes=2)
    changed = (now != clips).any(axis=1)
    assert not changed[~valid].any()
    assert 0.2 < changed[valid].mean() < 0.8
    assert not (classes - target)[:, ~valid].any()
    assert (classes.sum(axis=1) > 1)[changed].all()
    assert classes.sum(axis=1).max() == 3


@pytest.mark.parametrize("count", [0, 1])
def test_nobody_to_mix_with(count, clips):
    valid = np.arange(4) < count
    target = np.eye(4, dtype=np.float32)
    now, classes = mixed(clips[:4], target, valid=valid)
    np.testing.assert_array_equal(now, clips[:4])
    np.testing.assert_array_equal(classes, target)


# --- one clip


def changed(clip, seed=0, behind=None, **changes):
    config = settings.Augmentation(**changes)
    has = None if behind is None else jnp.asarray(True)
    behind = None if behind is None else jnp.asarray(behind)
    out = augment.sound(
        jax.random.key(seed),
        config,
        FRONT_END.sample_rate,
        jnp.asarray(clip),
        behind,
        has,
    )
    return np.asarray(out[0]), bool(out[1])


def test_roll(clips):
    out, kept = changed(clips[9], roll=1.0)
    assert kept
    assert (out != clips[9]).any()
    np.testing.assert_array_equal(np.sort(out), np.sort(clips[9]))
    by = next(n for n in range(NUM) if (np.roll(clips[9], n) == out).all())
    assert by


@pytest.mark.parametrize("name", ["background", "noise"])
def test_what_is_added_is_so_much_below(name, clips):
    noise = np.random.default_rng(0).normal(size=NUM).astype(np.float32)
    options = {name: 1.0, f"{name}_snr_db": (12.0, 12.0)}
    out, kept = changed(clips[40], behind=noise, **options)
    assert kept
    added = out - clips[40]
    assert 20 * np.log10(rms(clips[40]) / rms(added)) == pytest.approx(12, abs=0.01)
    if name == "background":
        np.testing.assert_allclose(
            added / rms(added), noise / rms(noise), rtol=1e-3, atol=1e-4
        )


def test_gain(clips):
    out, _ = changed(clips[50], gain=1.0, gain_db=(-6.0, -6.0))
    np.testing.assert_allclose(out, clips[50] * 10 ** (-6 / 20), rtol=1e-5)


def test_no_call_takes_the_clip_and_its_classes(clips):
    noise = np.random.default_rng(0).normal(size=NUM).astype(np.float32)
    out, kept = changed(clips[0], behind=noise, no_call=1.0)
    np.testing.assert_array_equal(out, noise)
    assert not kept


def test_background_that_could_not_be_read_is_not_added(clips):
    config = settings.Augmentation(background=1.0, no_call=1.0)
    out, kept = augment.sound(
        jax.random.key(0),
        config,
        FRONT_END.sample_rate,
        *map(jnp.asarray, (clips[0], clips[1], False)),
    )
    np.testing.assert_array_equal(out, clips[0])
    assert kept


@pytest.mark.parametrize("exponent", [-2.0, 0.0, 1.0, 2.0])
@pytest.mark.parametrize("seconds", [1, 4])
def test_coloured_noise_falls_with_frequency(exponent, seconds):
    """By band, as the mask of torch-audiomentations has it for one second."""
    rate = 16_000
    noise = jax.jit(augment.coloured, static_argnums=(1, 2, 3))(
        jax.random.key(1), seconds * rate, rate, (exponent, exponent)
    )
    power = np.abs(np.fft.rfft(noise)) ** 2
    mask = np.linspace(1, np.sqrt(rate / 2), rate // 2 + 1) ** -exponent
    bands = (0, 50, 200, 1000, 3000, 8000)
    for low, high in itertools.pairwise(bands):
        found = power[low * seconds : high * seconds].mean() / power.mean()
        wanted = np.mean(mask[low:high] ** 2) / np.mean(mask**2)
        assert found == pytest.approx(wanted, rel=0.4 if high == 50 else 0.25)


@pytest.mark.slow
def test_silence_stays_finite():
    config = settings.Augmentation(mix=1.0, noise=1.0, gain=1.0, background=1.0)
    silent = jnp.zeros((4, NUM))
    target, valid = jnp.eye(4), jnp.ones(4, bool)
    now, _ = augment.mixed(jax.random.key(0), config, silent, target, valid, "sigmoid")
    power, _ = augment.power(
        jax.random.key(0), config, FRONT_END, now, jnp.arange(4), silent, valid
    )
    assert np.isfinite(spectrogram.decibel(FRONT_END, power)).all()


# --- masks


@functools.cache
def masked(seed, **changes):
    config = settings.Augmentation(**changes)
    ones = jnp.ones((FRONT_END.num_frames, 129))
    return np.asarray(augment.masked(jax.random.key(seed), config, FRONT_END, ones))


def test_masks_are_bands_and_stretches_of_bounded_width():
    widths = {"freq": [], "time": []}
    for seed in range(40):
        for kind, limit in (("freq", 1000.0), ("time", 0.2)):
            unit = "hz" if kind == "freq" else "s"
            options = {f"{kind}_mask": 1.0, f"{kind}_mask_{unit}": limit}
            out = masked(seed, **options)
            line = out[0] if kind == "freq" else out[:, 0]
            np.testing.assert_array_equal(
                out,
                np.broadcast_to(line if kind == "freq" else line[:, None], out.shape),
            )
            hidden = np.flatnonzero(line == 0)
            assert len(hidden) == 0 or np.ptp(hidden) + 1 == len(hidden)
            widths[kind].append(len(hidden))
    # 1000 Hz are 32 bins of 31.25 Hz, 0.2 s are 20 frames of 10 ms.
    assert 25 < max(widths["freq"]) <= 32
    assert 14 < max(widths["time"]) <= 20
    assert min(widths["freq"]) < 8


def test_chances():
    hidden = [bool((masked(seed, time_mask=0.5) == 0).any()) for seed in range(60)]
    assert 0.25 < np.mean(hidden) < 0.75


# --- the batch


def test_a_clip_gets_the_same_wherever_it_is_computed(clips):
    """By its place and the key: on its own as among others."""
    config = settings.Augmentation.birdset()
    key, place = jax.random.key(5), np.arange(8)
    run = jax.jit(augment.power, static_argnums=(1, 2))
    has = np.ones(8, bool)
    whole, kept = run(key, config, FRONT_END, clips[:8], place, clips[8:16], has)
    for i in (0, 5):
        one = slice(i, i + 1)
        alone, own = run(
            key, config, FRONT_END, clips[one], place[one], clips[8:16][one], has[one]
        )
        np.testing.assert_allclose(alone[0], whole[i], rtol=1e-4, atol=1e-6)
        assert bool(own[0]) == bool(kept[i])


def test_nothing_asked_for_changes_nothing(clips):
    power, kept = augment.power(
        jax.random.key(0),
        settings.Augmentation(),
        FRONT_END,
        jnp.asarray(clips[:3]),
        jnp.arange(3),
    )
    np.testing.assert_array_equal(power, spectrogram.power(FRONT_END, clips[:3]))
    assert kept.all()
