"""Ticks lie where their value lies, at round numbers, and do not crowd."""

import itertools

import numpy as np
import pytest

from apex_jax import frontend, ticks

FRONT_ENDS = {
    "speech": frontend.FrontEnd(
        sample_rate=22050, clip_s=1.48, n_fft=1024, hop_length=256
    ),
    "birdset": frontend.FrontEnd.birdset(n_fft=2048),
    "linear": frontend.FrontEnd(sample_rate=8000, clip_s=0.5, n_fft=256, n_mels=None),
    "half a minute": frontend.FrontEnd(
        sample_rate=16000, clip_s=30.0, n_fft=512, n_mels=40, fmin=300, fmax=4000
    ),
    "less than an octave": frontend.FrontEnd(
        sample_rate=16000, clip_s=3.0, n_fft=4096, n_mels=37, fmin=1050, fmax=1950
    ),
    "infrasound": frontend.FrontEnd(
        sample_rate=250, clip_s=600, n_fft=128, n_mels=None
    ),
}


@pytest.fixture(params=FRONT_ENDS.values(), ids=FRONT_ENDS)
def front_end(request):
    return request.param


def is_round(value):
    """One or two significant digits, or an octave of 1 kHz: 0.125, 16, 32 ..."""
    octave = value > 0 and np.log2(value).is_integer()
    return octave or float(f"{value:.1e}") == pytest.approx(value)


@pytest.mark.parametrize("gap", [0.05, 0.1, 0.15, 0.3])
def test_seconds_are_where_their_frame_is(front_end, gap):
    frames = front_end.num_frames
    found = ticks.time(front_end, frames, gap=gap)
    for at, label in found:
        assert 0 <= at <= frames - 1
        # Frame t is centred on sample t * hop.
        assert at * front_end.hop_length == pytest.approx(
            float(label) * front_end.sample_rate
        )
        assert is_round(float(label))
    assert found[0] == (0, "0")
    distances = np.diff([at for at, _ in found])
    assert np.all(distances >= gap * frames * (1 - 1e-6))
    np.testing.assert_allclose(distances, distances[0])
    if gap <= 0.15:
        assert len(found) >= 3


@pytest.mark.parametrize("gap", [0.05, 0.1, 0.15])
def test_kilohertz_are_where_their_row_is(front_end, gap):
    rows = front_end.num_rows
    found = ticks.frequency(front_end, rows, gap=gap)
    assert len(found) >= 3
    for at, label in found:
        assert 0 <= at <= rows - 1
        low, high = (float(front_end.row_to_hz(f(at))) for f in (np.floor, np.ceil))
        assert low * (1 - 1e-9) <= 1000 * float(label) <= high * (1 + 1e-9)
        assert is_round(float(label))
    assert np.diff([at for at, _ in found]).min() >= gap * rows * (1 - 1e-6)


def test_a_mel_axis_names_octaves_and_a_linear_one_equal_steps():
    def labels(name):
        front_end = FRONT_ENDS[name]
        return [float(t.label) for t in ticks.frequency(front_end, front_end.num_rows)]

    assert labels("birdset") == [0.5, 1, 2, 4, 8]
    assert labels("less than an octave") == [1.2, 1.4, 1.6, 1.8]
    np.testing.assert_allclose(labels("linear"), 0.5 * np.arange(9))


def test_a_row_is_where_its_frequency_is():
    """Slaney's mels: linear below 1 kHz, 15 mels up to there, 27 for a factor 6.4."""
    top = 15 + 27 * np.log(11025 / 1000) / np.log(6.4)
    for row, label in ticks.frequency(FRONT_ENDS["speech"], 128):
        hertz = 1000 * float(label)
        mel = hertz * 3 / 200
        if hertz > 1000:
            mel = 15 + 27 * np.log(hertz / 1000) / np.log(6.4)
        assert row == pytest.approx(mel / top * 129 - 1, abs=0.05)


def test_octaves_that_crowd_are_left_out_from_below():
    """What is left are neighbouring octaves: none is skipped in between."""
    front_end = FRONT_ENDS["birdset"]
    for gap in (0.02, 0.05, 0.1, 0.17):
        hertz = [
            float(t.label)
            for t in ticks.frequency(front_end, front_end.num_rows, gap=gap)
        ]
        assert hertz[-1] == 8
        assert all(b == 2 * a for a, b in itertools.pairwise(hertz))


def test_a_single_row_and_a_single_frame():
    front_end = frontend.FrontEnd(sample_rate=16000, clip_s=1.0, n_mels=1)
    ((at, label),) = ticks.frequency(front_end, 1)
    assert at == 0
    assert 1000 * float(label) == pytest.approx(float(front_end.row_to_hz(0)), rel=5e-3)
    assert ticks.time(front_end, 1) == [(0, "0")]


@pytest.mark.parametrize("size", [1, 2, 3, 7, 128, 626])
def test_pixels_are_whole(size):
    found = ticks.pixels(size)
    assert found[0] == (0, "0")
    assert [str(int(at)) for at, _ in found] == [label for _, label in found]
    assert found[-1].position <= size - 1
    assert len(found) <= 7


@pytest.mark.parametrize(
    ("low", "high", "apart", "wanted"),
    [
        (-87.3, -7.1, 16.0, [-80, -60, -40, -20]),
        (0.0, 0.3, 0.1, [0, 0.1, 0.2, 0.3]),
        (-0.4, 0.4, 0.2, [-0.4, -0.2, 0, 0.2, 0.4]),
        (1e-7, 3e-7, 1e-7, [1e-7, 2e-7, 3e-7]),
        (1.0, 9.0, 1.01, [2, 4, 6, 8]),
        (5.0, 5.0, 1.0, [5.0]),
    ],
)
def test_values(low, high, apart, wanted):
    found = ticks.values(low, high, apart=apart)
    np.testing.assert_allclose(found, wanted, atol=1e-12)
    assert "-0" not in [f"{value:g}" for value in found]
