"""A recording as a whole: every window where it lies in time."""

import dataclasses

import numpy as np
import pytest
import test_report

from apex_jax import report
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
    np.testing.assert_allclose([w.shown for w in whole.windows], [[0, 1]] * 3)
    assert not whole.overlap
    assert [w.clip.result.offset_s for w in whole.windows] == [0, CLIP_S, 2 * CLIP_S]
    for percent, label in whole.axes.across:
        assert percent == pytest.approx(100 * float(label) / (3 * CLIP_S))


def test_windows_that_overlap_or_leave_a_gap(result):
    (whole,) = overviews_of(result, [0.0, 0.25 * CLIP_S, 1.5 * CLIP_S])
    # The first two share what lies from 0.25 to 1: they meet at 0.625.
    wanted = [(0, 0.625), (0.375, 1), (0, 1)]
    np.testing.assert_allclose([w.shown for w in whole.windows], wanted)
    np.testing.assert_allclose([w.start for w in whole.windows], [0, 25, 60])
    np.testing.assert_allclose([w.length for w in whole.windows], [25, 25, 40])
    assert whole.overlap
    assert whole.span == "0–2.5 s"  # not whole: a gap


@pytest.mark.parametrize("last", [0.7, 1.0, 1.1, 1.999, 2.0])
def test_windows_lie_at_their_true_time_without_hiding_one(result, last):
    starts = np.sort([0.0, 0.5, last - 0.4, last])
    (whole,) = overviews_of(result, starts * CLIP_S)
    length = CLIP_S * (last + 1) / 100  # seconds in a percent
    assert not whole.num_other
    end = 0.0
    for start, window in zip(starts * CLIP_S, whole.windows, strict=True):
        first, stop = window.shown
        assert window.start * length == pytest.approx(start + first * CLIP_S)
        assert window.length * length == pytest.approx((stop - first) * CLIP_S)
        assert window.length > 5
        assert window.start >= end - 1e-9
        end = window.start + window.length
    assert end == pytest.approx(100)


@pytest.mark.parametrize(
    ("offsets", "sound_s", "span"),
    [
        ([0.0, 1.0], 1.0, ""),
        ([0.0, 0.6, 1.0], 1.0, ""),  # the last one ends where the file ends
        ([0.0, 0.6], 1.0, "0–1.6 s"),
        ([0.0, 1.2], 0.8, "0–2.2 s"),  # a gap
        ([0.5, 1.0], 1.0, "0.5–2 s"),
        ([0.0, 0.9, 1.8], 0.2, ""),  # filled up
    ],
)
def test_the_whole_recording_is_said_of_all_of_it_only(result, offsets, sound_s, span):
    """The file is two seconds long, a window one."""
    windows = [
        dataclasses.replace(
            result, offset_s=at, sound_s=sound_s if at == offsets[-1] else 1.0
        )
        for at in offsets
    ]
    (found,) = overview.overviews(page.clips(windows, embed.Store(sounds=False)))
    assert found.span == span
    # Of a file that is gone nobody knows the end, unless a window was filled up.
    gone = [dataclasses.replace(one, source="gone.wav") for one in windows]
    (found,) = overview.overviews(page.clips(gone, embed.Store(sounds=False)))
    assert (found.span == "") == (span == "" and sound_s < 1)
    text = report.html(windows, sounds=False)
    assert ("The whole of <bdi>" in text) == (span == "")
    assert ("to the middle of the overlap" in text) == found.overlap


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


def test_lanes_of_several_classes_a_window_and_of_those_explained(result):
    logits = [[2.0, 3.0, -4.0], [-1.0, 0.5, -3.0], [-1.0, -2.0, -3.0]]
    windows = [
        dataclasses.replace(
            result,
            offset_s=n * CLIP_S,
            logits=np.array(z),
            predicted=int(np.argmax(z)),
            target=target,
            activation="sigmoid",
        )
        for n, (z, target) in enumerate(zip(logits, [1, 1, 0], strict=True))
    ]

    def lanes(windows):
        clips = page.clips(windows, embed.Store(sounds=False))
        (whole,) = overview.overviews(clips)
        return whole, [name for name, _ in whole.lanes]

    wren, robin, crow = result.class_names
    whole, names = lanes(windows)
    assert names == [wren, robin]  # twice each: found once and explained once, found
    np.testing.assert_allclose(
        whole.lanes[0][1], [1 / (1 + np.exp(-z[0])) for z in logits]
    )
    assert lanes([*windows, dataclasses.replace(windows[1], target=2)])[1] == [
        wren,
        robin,
        crow,
    ]


def test_lanes_that_do_not_fit_are_counted(result, monkeypatch):
    monkeypatch.setattr(overview, "MOST_LANES", 1)
    logits = [[0, 5, 0], [0, 0, 9], [0, 3, 0]]
    (whole,) = overviews_of(result, [0.0, CLIP_S, 2 * CLIP_S], logits)
    assert [name for name, _ in whole.lanes] == [result.class_names[1]]
    assert whole.num_other == 1


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
