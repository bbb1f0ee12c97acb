"""Scores of pointing on cases whose answer is known, and against counted pixels."""

import dataclasses

import jax.numpy as jnp
import numpy as np
import pytest

from apex_jax import frontend, pointing, schemes

FRONT_END = frontend.FrontEnd(
    sample_rate=8000, clip_s=1.016, n_fft=512, hop_length=64, n_mels=64
)
GRID = schemes.Grid(map_shape=(4, 8), input_shape=(64, 128), cell=(16.0, 16.0))


def boxes_of(*boxes):
    return np.array(boxes, float)


def test_an_event_in_pixels_is_where_the_front_end_has_it():
    event = pointing.Event(start_s=0.25, end_s=0.5, low_hz=1000, high_hz=2000)
    box = event.box(FRONT_END)
    # The front end's own way from pixels to seconds and hertz leads back.
    np.testing.assert_allclose(FRONT_END.span_s(*box.frames), (0.25, 0.5))
    np.testing.assert_allclose(FRONT_END.band_hz(*box.rows), (1000, 2000))
    whole = pointing.Event().box(FRONT_END)
    assert (whole.rows, whole.frames) == ((0, 64), (0, 128))


@pytest.mark.parametrize("settings", [{}, {"n_mels": None}, {"mel_scale": "htk"}])
def test_rows_and_frames_have_an_inverse(settings):
    front_end = dataclasses.replace(FRONT_END, **settings)
    rows, frames = np.linspace(0, front_end.num_rows, 9), np.linspace(-3, 200, 9)
    np.testing.assert_allclose(
        front_end.hz_to_row(front_end.row_to_hz(rows)), rows, atol=1e-9
    )
    np.testing.assert_allclose(
        front_end.s_to_frame(front_end.frame_to_s(frames)), frames, atol=1e-9
    )


def test_what_is_no_event():
    with pytest.raises(ValueError, match="begin before it ends; got 2 to 1 s"):
        pointing.Event(start_s=2, end_s=1)
    with pytest.raises(ValueError, match="got 300 to 200 Hz"):
        pointing.Event(low_hz=300, high_hz=200)
    with pytest.raises(ValueError, match="outside of a spectrogram"):
        pointing.Event(start_s=9, end_s=10).box(FRONT_END)


def test_hits_of_known_regions():
    # Rows 20 to 28 lie in row 1 of the map, frames 30 to 50 in columns 1 to 3.
    box = boxes_of((20, 28, 30, 50))
    for scheme, location, (frequency, time) in (
        ("square", (1, 2), (True, True)),
        ("square", (1, 4), (True, False)),
        ("square", (0, 2), (False, True)),
        ("square", (1, 1), (True, False)),  # two frames of twenty only graze
        ("time", (schemes.ALL, 2), (True, True)),
        ("time", (schemes.ALL, 7), (True, False)),
        ("frequency", (1, schemes.ALL), (True, True)),
        ("frequency", (3, schemes.ALL), (False, True)),
        ("time_frequency", (1, 7), (True, False)),
        ("time_frequency", (1, 2), (True, True)),
    ):
        found = pointing.score(GRID, scheme, np.array([location]), box)
        assert (bool(found.frequency[0]), bool(found.time[0])) == (frequency, time)
        assert bool(found.both[0]) == (frequency and time)


@pytest.mark.parametrize("scheme", schemes.SCHEMES)
def test_overlap_is_a_share_of_pixels(scheme, rng):
    """Region and event as sets of pixels, of the mask that the masking study hides."""
    for _ in range(20):
        low, start = rng.integers(0, 50), rng.integers(0, 100)
        high, end = low + rng.integers(1, 14), start + rng.integers(1, 28)
        location = np.array([rng.integers(4), rng.integers(8)])
        event = np.zeros((64, 128), bool)
        event[low:high, start:end] = True
        region = np.asarray(GRID.mask(scheme, jnp.asarray(location))) > 0.5
        expected = (region & event).sum() / (region | event).sum()
        found = pointing.score(
            GRID, scheme, location[None], boxes_of((low, high, start, end))
        )
        assert float(found.iou[0]) == pytest.approx(expected)


def test_a_region_that_is_the_event_overlaps_it_all():
    found = pointing.score(
        GRID, "square", np.array([[2, 5]]), boxes_of((32, 48, 80, 96))
    )
    assert found.iou[0] == 1
    elsewhere = pointing.score(
        GRID, "square", np.array([[0, 0]]), boxes_of((32, 48, 80, 96))
    )
    assert elsewhere.iou[0] == 0
    assert not elsewhere.both[0]
