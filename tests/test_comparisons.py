"""The figures that set things side by side: what they show, and that it is readable."""

import dataclasses

import numpy as np
import pytest
from test_figures import baseline, check, made_up, pictures, prototype_of, sound
from test_plot import FRONT_END, areas_of

from apex_jax import comparisons, masking, plot, schemes


def outlines(axes):
    return len(axes.patches)


# --- before and after


@pytest.mark.parametrize("scheme", ["frequency", "time_frequency"])
def test_before_and_after(scheme, rng):
    before, after = (
        [
            tuple(prototype_of(scheme, rng, 3 * k + n + shift) for n in range(num))
            for k, num in enumerate((3, 3, 2))
        ]
        for shift in (0, 8)
    )
    figure = comparisons.before_after(
        [4, 17, 305], before, after, FRONT_END, scheme, mean_purity=(0.02, 0.31)
    )
    shown = check(figure)
    assert len(pictures(figure)) == 2 * (3 + 3 + 2)
    assert all(outlines(axes) == 1 for axes in pictures(figure))
    assert "mean purity of all 0.02" in shown
    assert "mean purity of all 0.31" in shown
    for k, sides in zip((4, 17, 305), zip(before, after, strict=True), strict=True):
        for ones in sides:
            mean = sum(one.purity for one in ones) / len(ones)
            assert f"channel {k}: purity {mean:.2f}" in shown
            assert f"purity {ones[0].purity:.2f}" in shown


def test_before_and_after_of_one_channel(rng):
    one = [(prototype_of("time", rng, 0),)]
    check(comparisons.before_after([3], one, one, FRONT_END, "time"))


# --- methods


def test_methods_side_by_side():
    results = [
        *(made_up(scheme, 1, 1) for scheme in schemes.SCHEMES),
        baseline("square"),
        baseline("square", "lime"),
    ]
    figure = comparisons.methods(results)
    shown = check(figure)
    assert "predicted fake (97.1 %)" in shown
    assert len(pictures(figure)) == 2 * 6
    assert all(outlines(axes) == 1 for axes in pictures(figure))
    for word in ("APEX, time-frequency", "Grad-CAM", "LIME", "by the square scheme"):
        assert word in shown
    # Of contributions 2, 1, 2/3, ... of eleven channels, the first is 2.
    share = 100 / sum(1 / k for k in range(1, 12))
    assert f"channel 0: {share:.0f} % of the evidence" in shown
    heat = [axes.images[0].get_array() for axes in figure.axes if axes.images][6:]
    for values, result in zip(heat, results, strict=True):
        np.testing.assert_array_equal(values, result.channels[0].heatmap)


def test_a_method_that_finds_nothing():
    result = baseline("time", "lime")
    nothing = dataclasses.replace(
        result.channels[0], areas=(), heatmap=np.zeros(FRONT_END.shape)
    )
    figure = comparisons.methods(
        [made_up("time", 1, 1), dataclasses.replace(result, channels=(nothing,))]
    )
    assert "no region" in check(figure)


@pytest.mark.parametrize(
    "draw",
    [
        lambda result: comparisons.methods([result]),
        lambda result: comparisons.masking(result, []),
        lambda result: comparisons.twin(result, result),
    ],
)
def test_pictures_need_a_spectrogram(draw):
    result = dataclasses.replace(made_up("time", 1, 1), spectrogram=None)
    with pytest.raises(ValueError, match="explained without its spectrogram"):
        draw(result)


# --- masking


def hidden_of(scheme, rng, learned=None):
    return masking.Hidden(
        scheme=scheme,
        learned=learned or scheme,
        areas=areas_of(scheme, (1, 2)),
        mask=np.asarray(rng.random(FRONT_END.shape)),
        spectrogram=sound(rng) - 1,
        probability=0.512,
        random_spectrogram=sound(rng) - 1,
        random_probability=0.934,
        random_mean=0.9567,
        draws=10,
    )


def test_masking(rng):
    result = made_up("time", 1, 1)
    hidden = [hidden_of(scheme, rng, "time") for scheme in schemes.SCHEMES]
    figure = comparisons.masking(result, hidden)
    shown = check(figure)
    shots = pictures(figure)
    assert len(shots) == 4 * 4
    for row, one in enumerate(hidden):
        clip, mask, left, random = shots[4 * row : 4 * row + 4]
        assert outlines(clip) == 1
        np.testing.assert_array_equal(mask.images[0].get_array(), one.mask)
        for axes, values in (
            (clip, result.spectrogram),
            (left, one.spectrogram),
            (random, one.random_spectrogram),
        ):
            decibel = FRONT_END.to_db(values)
            np.testing.assert_allclose(axes.images[0].get_array(), decibel, rtol=1e-5)
            # One scale: what was silenced is seen to be darker.
            assert axes.images[0].get_clim() == clip.images[0].get_clim()
    for word in (
        "fake 97.1 % → 51.2 %",
        "→ 93.4 %, mean of 10: 95.7 %",
        "square scheme, U learned by time",
        "share hidden",
    ):
        assert word in shown
    assert "time scheme, U" not in shown


# --- twins


def twins(scheme="square", **changes):
    real = dataclasses.replace(made_up(scheme, 3, 1, seed=1), source="a/wavs/1.wav")
    fake = dataclasses.replace(made_up(scheme, 3, 1, seed=2), source="a/gen/1_gen.wav")
    return real, dataclasses.replace(fake, **changes)


@pytest.mark.parametrize("scheme", ["time", "time_frequency"])
def test_twins(scheme):
    real, fake = twins(scheme)
    figure = comparisons.twin(real, fake)
    shown = check(figure)
    shots = pictures(figure)
    assert [outlines(axes) for axes in shots] == [0, 0, 0, 1, 1, 1]
    wanted = (fake.spectrogram - real.spectrogram) * FRONT_END.std
    for axes in shots[2:]:
        np.testing.assert_allclose(axes.images[0].get_array(), wanted, atol=1e-4)
    for channel, axes in zip(fake.channels, shots[3:], strict=True):
        assert axes.get_title().startswith(f"channel {channel.index}: ")
        assert plot.where(scheme, channel.areas) in axes.get_title()
    for word in ("wavs/1.wav", "gen/1_gen.wav", "vocoded less real", "speak for fake"):
        assert word in shown


def test_a_single_channel_leaves_places_empty():
    real, fake = twins()
    fake = dataclasses.replace(fake, channels=fake.channels[:1])
    assert len(pictures(comparisons.twin(real, fake))) == 4


def test_where_a_twin_has_ended_there_is_no_difference():
    """Vocoders change the length by some milliseconds; here 0.7 s and 1 s."""
    real, fake = twins(sound_s=0.7)
    found = comparisons.difference(dataclasses.replace(real, sound_s=1.0), fake)
    for frame in range(128):
        assert np.isnan(found[:, frame]).all() == (frame * 256 / 22050 > 0.7)
    assert not np.isnan(found[:, :60]).any()
    assert "grey where one has ended" in check(comparisons.twin(real, fake))


def test_twins_of_two_front_ends_are_refused():
    real, fake = twins()
    other = dataclasses.replace(FRONT_END, mean=0.0)
    with pytest.raises(ValueError, match="same front end"):
        comparisons.twin(dataclasses.replace(real, front_end=other), fake)


@pytest.mark.parametrize("scheme", schemes.SCHEMES)
def test_contrast(scheme, rng):
    decibel = rng.normal(0, 3, FRONT_END.shape)
    decibel[:, 120:] = np.nan
    areas = areas_of(scheme, (1, 3))
    inside, elsewhere = [], []
    for row, frame in np.ndindex(*decibel.shape):
        if np.isnan(decibel[row, frame]):
            continue
        is_row, is_column = 32 <= row < 64, frame >= 96
        within = {
            "square": is_row and is_column,
            "time": is_column,
            "frequency": is_row,
            "time_frequency": is_row or is_column,
        }[scheme]
        (inside if within else elsewhere).append(abs(decibel[row, frame]))
    found = comparisons.contrast(decibel, areas)
    np.testing.assert_allclose(found, (np.mean(inside), np.mean(elsewhere)))


def test_contrast_of_nothing():
    assert comparisons.contrast(np.full((4, 5), np.nan), ()) == (0.0, 0.0)
