"""What two explanations share, on explanations whose answer is known."""

import dataclasses

import numpy as np
import pytest
import scipy.stats

from apex_jax import data, explanation, schemes, stability

RATE = 8000


def channel_of(index, box, names, heat):
    prototypes = tuple(
        explanation.Prototype(
            clip=data.Clip(path=f"{name}.wav", label=0),
            class_name="a",
            activation=1.0,
            purity=0.5,
            location=(0, 0),
            areas=(),
            spectrogram=None,
            heatmap=heat,
        )
        for name in names
    )
    return explanation.Channel(
        index=index,
        contribution=1.0,
        location=(0, 0),
        areas=tuple(explanation.Area(box=one) for one in box),
        heatmap=heat,
        prototypes=prototypes,
    )


def box(low, high, start, end):
    return schemes.Box(rows=(low, high), frames=(start, end))


SOMEWHERE = (box(0.0, 4.0, 0.0, 4.0),)


def explanation_of(rng, index=3, boxes=SOMEWHERE, names="abc"):
    heat = rng.random((8, 8)).astype(np.float32)
    return explanation.Explanation(
        source="clip.wav",
        class_names=("a", "b"),
        logits=np.array([1.0, 0.0], np.float32),
        predicted=0,
        target=0,
        scheme="square",
        spectrogram=None,
        channels=(channel_of(index, boxes, names, heat),),
        contributions=rng.normal(size=6).astype(np.float32),
        evidence_share=0.5,
    )


def test_an_explanation_agrees_with_itself(rng):
    one = explanation_of(rng)
    found = dataclasses.astuple(stability.compare(one, one))
    assert found == pytest.approx((True, 1, True, 1, 1, 1, 1))


def test_what_two_have_in_common(rng):
    one = explanation_of(rng)
    other = explanation_of(rng, index=4, boxes=(box(2.0, 6.0, 0.0, 4.0),), names="bcd")
    other = dataclasses.replace(other, predicted=1)
    found = stability.compare(one, other)
    assert (found.same_class, found.same_channel) == (False, False)
    assert found.region == pytest.approx(8 / 24)
    assert found.prototypes == pytest.approx(2 / 4)

    def ranks(a):
        return scipy.stats.rankdata(np.ravel(a))

    for name, a, b in (
        ("rank", one.contributions, other.contributions),
        ("heat", one.channels[0].heatmap, other.channels[0].heatmap),
    ):
        expected = np.corrcoef(ranks(a), ranks(b))[0, 1]
        assert getattr(found, name) == pytest.approx(expected)
    largest = [
        {k for k, _ in sorted(enumerate(e.contributions), key=lambda p: -p[1])[:4]}
        for e in (one, other)
    ]
    assert found.top_channels == len(largest[0] & largest[1]) / 4
    by_another_run = stability.compare(one, one, same_channels=False)
    assert np.isnan(by_another_run.rank)
    assert np.isnan(by_another_run.top_channels)
    assert not by_another_run.same_channel
    assert by_another_run.region == 1


def test_a_slower_clips_region_is_taken_back(rng):
    one = explanation_of(rng, boxes=(box(0.0, 4.0, 2.0, 4.0),))
    slower = explanation_of(rng, boxes=(box(0.0, 4.0, 2.2, 4.4),))
    found = stability.compare(one, slower, stretch=1.1)
    assert found.region == pytest.approx(1)
    assert np.isnan(found.heat)
    assert stability.compare(one, slower).region < 0.9
    # A band as long as the clip is so whatever lasts longer in it.
    band = explanation_of(rng, boxes=(box(2.0, 4.0, 0.0, 8.0),))
    assert stability.compare(band, band, stretch=1.1).region == pytest.approx(1)


def test_what_cannot_be_compared(rng):
    one = explanation_of(rng)
    with pytest.raises(ValueError, match="one scheme and have channels; got square"):
        stability.compare(one, dataclasses.replace(one, scheme="time"))
    with pytest.raises(ValueError, match="have channels"):
        stability.compare(one, dataclasses.replace(one, channels=()))


def test_regions_of_several_boxes_against_counted_pixels(rng):
    def region():
        corners = [sorted(rng.choice(12, 2, replace=False)) for _ in range(4)]
        return [
            box(*map(float, corners[0]), *map(float, corners[1])),
            box(*map(float, corners[2]), *map(float, corners[3])),
        ]

    def pixels(boxes):
        inside = np.zeros((12, 12), bool)
        for one in boxes:
            (low, high), (start, end) = one.rows, one.frames
            inside[int(low) : int(high), int(start) : int(end)] = True
        return inside

    for _ in range(50):
        one, other = region(), region()
        a, b = pixels(one), pixels(other)
        assert stability.overlap(one, other) == pytest.approx(
            (a & b).sum() / (a | b).sum()
        )
    assert stability.overlap([], []) == 0


def peak_hz(waveform):
    spectrum = np.abs(np.fft.rfft(waveform * np.hanning(len(waveform))))
    return np.argmax(spectrum) * RATE / len(waveform)


def test_a_disturbed_clip_is_what_it_is_said_to_be(rng):
    at = np.arange(2 * RATE) / RATE
    tone = (0.3 * np.sin(2 * np.pi * 500 * at)).astype(np.float32)
    noisy = stability.disturb(tone, RATE, "noise", 20.0)
    ratio = np.mean(tone**2) / np.mean((noisy - tone) ** 2)
    assert 10 * np.log10(ratio) == pytest.approx(20, abs=0.3)
    higher = stability.disturb(tone, RATE, "pitch", 12.0)
    assert peak_hz(higher) == pytest.approx(1000, abs=10)
    coded = stability.disturb(tone, RATE, "vorbis", 0.5)
    assert 0 < np.abs(coded - tone).max() < 0.1
    # A burst in the middle comes later in a slower clip, at the same pitch.
    burst = tone * (np.abs(at - 1) < 0.1)
    slower = stability.disturb(burst, RATE, "stretch", 1.2)
    middle = (np.abs(slower) ** 2 @ at) / np.sum(np.abs(slower) ** 2)
    assert middle == pytest.approx(1.2, abs=0.03)
    assert peak_hz(slower) == pytest.approx(500, abs=10)
    for changed in (noisy, higher, coded, slower):
        assert changed.shape == tone.shape
        assert changed.dtype == np.float32
