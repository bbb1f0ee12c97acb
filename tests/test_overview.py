"""A recording as a whole: every window where it lies in time."""

import dataclasses

import numpy as np
import pytest
import test_report

from apex_jax.pages import embed, overview, page


@pytest.fixture(scope="module")
def result(tmp_path_factory):
    return test_report.explained(tmp_path_factory.mktemp("sounds"), "time")


def overviews_of(result, offsets, logits=None):
    windows = [
        dataclasses.replace(
            result,
            offset_s=offset,
            logits=result.logits if logits is None else np.array(logits[n], float),
        )
        for n, offset in enumerate(offsets)
    ]
    return overview.overviews(page.clips(windows, embed.Store(sounds=False)))


CLIP_S = test_report.FRONT_END.clip_s


def test_windows_side_by_side(result):
    (whole,) = overviews_of(result, [2 * CLIP_S, 0.0, CLIP_S])
    starts = [w.start for w in whole.windows]
    np.testing.assert_allclose(starts, [0, 100 / 3, 200 / 3])
    np.testing.assert_allclose([w.length for w in whole.windows], 100 / 3)
    assert [w.shown for w in whole.windows] == [1, 1, 1]
    assert [w.clip.result.offset_s for w in whole.windows] == [0, CLIP_S, 2 * CLIP_S]
    for percent, label in whole.axes.across:
        assert percent == pytest.approx(100 * float(label) / (3 * CLIP_S))


def test_windows_that_overlap_or_leave_a_gap(result):
    (whole,) = overviews_of(result, [0.0, 0.25 * CLIP_S, 1.5 * CLIP_S])
    np.testing.assert_allclose([w.shown for w in whole.windows], [0.25, 1, 1])
    np.testing.assert_allclose([w.start for w in whole.windows], [0, 10, 60])
    np.testing.assert_allclose([w.length for w in whole.windows], [10, 40, 40])


def test_a_recording_that_does_not_start_at_zero(result):
    (whole,) = overviews_of(result, [10.0, 10.0 + CLIP_S])
    assert whole.windows[0].start == 0
    for percent, label in whole.axes.across:
        assert 10 <= float(label) <= 10 + 2 * CLIP_S
        assert percent == pytest.approx(100 * (float(label) - 10) / (2 * CLIP_S))


def test_lanes_are_the_classes_found_most_often_first(result):
    logits = [[0, 5, 0], [0, 0, 9], [0, 3, 0]]
    (whole,) = overviews_of(result, [0.0, CLIP_S, 2 * CLIP_S], logits)
    names = result.class_names
    assert [name for name, _ in whole.lanes] == [names[1], names[2]]
    for name, probabilities in whole.lanes:
        c = names.index(name)
        wanted = [np.exp(z[c]) / np.exp(z).sum() for z in logits]
        np.testing.assert_allclose(probabilities, wanted)


@pytest.mark.parametrize("offsets", [[0.0], [0.0, 100.0]])
def test_no_overview_of_one_window_or_of_windows_far_apart(result, offsets):
    assert overviews_of(result, offsets) == []


def test_no_overview_of_arrays(result):
    given = dataclasses.replace(
        result,
        waveform=np.zeros(100, np.float32),
        sample_rate=8000,
    )
    assert overviews_of(given, [0.0, CLIP_S]) == []
