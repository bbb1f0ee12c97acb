"""Whole figures render without a warning, and no text is cut or runs into another.

The explanations made up here, and the check, serve `test_comparisons` too.
"""

import dataclasses
import io

import matplotlib.image
import numpy as np
import pytest
from test_plot import FRONT_END, areas_of

from apex_jax import boxes, data, explanation, figures, optimize


def sound(rng):
    rows, frames = np.indices(FRONT_END.shape)
    ripple = np.sin(rows / 4 + rng.normal()) + np.sin(frames / 9 + rng.normal())
    decibel = -10 + 8 * ripple - 0.3 * rows + rng.normal(0, 3, rows.shape)
    return np.asarray((decibel - FRONT_END.mean) / FRONT_END.std, np.float32)


def prototype_of(scheme, rng, n):
    location = tuple(rng.integers(0, 4, 2).tolist())
    return explanation.Prototype(
        clip=data.Clip(
            path=f"generated_audio/ljspeech_hifiGAN/LJ0{n:02d}-0{n:03d}_gen.wav",
            label=1,
            offset_s=1.48 * (n % 3),
        ),
        class_name=("real", "fake")[n % 2],
        activation=12.5,
        purity=-0.71 + 0.1 * n,
        location=location,
        areas=areas_of(scheme, location),
        spectrogram=sound(rng),
        heatmap=np.asarray(rng.random(FRONT_END.shape), np.float32),
    )


def made_up(scheme, num_channels=4, num_prototypes=5, num_negatives=0, seed=0):
    """An explanation with the lengths of words and numbers that real ones have."""
    rng = np.random.default_rng(seed)

    def prototypes(k, num):
        return tuple(prototype_of(scheme, rng, 5 * k + n) for n in range(num))

    return explanation.Explanation(
        source="runs/demo/LJSpeech-1.1/wavs/LJ001-0001.wav",
        sound_s=1.48,
        class_names=("real", "fake"),
        logits=np.array([-1.0, 2.5]),
        predicted=1,
        target=1,
        scheme=scheme,
        front_end=FRONT_END,
        spectrogram=sound(rng),
        channels=tuple(
            explanation.Channel(
                index=31 * k,
                contribution=2.0 / (k + 1),
                location=(k % 4, (k + 2) % 4),
                areas=areas_of(scheme, (k % 4, (k + 2) % 4)),
                heatmap=np.asarray(rng.random(FRONT_END.shape), np.float32),
                prototypes=prototypes(k, num_prototypes),
                negatives=prototypes(k, num_negatives),
            )
            for k in range(num_channels)
        ),
        contributions=2.0 / np.arange(1, 12),
        evidence_share=0.87,
    )


def without_sound(result):
    """As of a feature map that was computed elsewhere: pixels are all that is known."""

    def bare(one):
        areas = tuple(explanation.Area(box=area.box) for area in one.areas)
        changes = {"areas": areas}
        if isinstance(one, explanation.Prototype):
            changes["spectrogram"] = None
        else:
            changes["prototypes"] = tuple(map(bare, one.prototypes))
        return dataclasses.replace(one, **changes)

    return dataclasses.replace(
        result,
        source="feature map",
        sound_s=None,
        front_end=None,
        spectrogram=None,
        channels=tuple(map(bare, result.channels)),
    )


def baseline(scheme, method="grad-cam"):
    """As Grad-CAM and LIME give it: one channel without a number."""
    result = made_up(scheme, num_channels=1, num_prototypes=0)
    (channel,) = result.channels
    return dataclasses.replace(
        result,
        method=method,
        channels=(dataclasses.replace(channel, index=None),),
        contributions=np.array([0.4, -0.2]),
        evidence_share=1.0,
    )


def all_parts(part):
    return [part, *(deeper for sub in part.subfigs for deeper in all_parts(sub))]


def texts_of(figure):
    """Every text of a drawn figure that shows, and where, in pixels."""
    figure.draw_without_rendering()
    found = [part._suptitle for part in all_parts(figure) if part._suptitle]
    for axes in figure.axes:
        if not axes.axison:
            continue
        found += [axes.title, axes.xaxis.label, axes.yaxis.label]
        for axis in (axes.xaxis, axes.yaxis):
            low, high = sorted(axis.get_view_interval())
            ticks = zip(axis.get_majorticklocs(), axis.get_ticklabels(), strict=True)
            found += [label for at, label in ticks if low <= at <= high]
    boxes = [(t, t.get_window_extent()) for t in found if t.get_text().strip()]
    return [(t.get_text(), box) for t, box in boxes if box.width > 0]


def check(figure):
    """Nothing is cut off, nothing overlaps; returns all that can be read."""
    texts = texts_of(figure)
    width, height = figure.bbox.width, figure.bbox.height
    for text, box in texts:
        assert box.x0 >= 0, text
        assert box.y0 >= 0, text
        assert box.x1 <= width, text
        assert box.y1 <= height, text
    for i, (one, box) in enumerate(texts):
        for other, another in texts[i + 1 :]:
            across = min(box.x1, another.x1) - max(box.x0, another.x0)
            up = min(box.y1, another.y1) - max(box.y0, another.y0)
            assert not (across > 1 and up > 1), (one, other)
    return " ".join(text for text, _ in texts)


def pictures(figure):
    return [axes for axes in figure.axes if axes.images]


# --- an explanation


@pytest.mark.parametrize("scheme", ["frequency", "time_frequency"])
def test_an_explanation(scheme):
    figure = figures.explained(made_up(scheme))
    shown = check(figure)
    assert len(pictures(figure)) == 1 + 4 * (2 + 4)
    for word in (
        "LJ001-0001.wav",
        "predicted fake (97.1 %)",
        "channels shown: 87 % of all positive evidence",
        "contribution to the logit of fake",
        "channel 31",
        "heatmap",
        "excite the channel most",
        "LJ011-0011_gen.wav",
        "dB",
    ):
        assert word in shown
    assert "least" not in shown
    assert shown.count("time (s)") == 1 + 2 + 4


@pytest.mark.parametrize(
    ("channels", "prototypes", "negatives"), [(1, 1, 0), (2, 5, 2), (1, 0, 0)]
)
def test_few_of_everything(channels, prototypes, negatives):
    result = made_up("time_frequency", channels, prototypes, negatives)
    figure = figures.explained(result, num_prototypes=3)
    shown = check(figure)
    beside = min(3, prototypes) + negatives
    assert len(pictures(figure)) == 1 + channels * (2 + beside)
    assert ("excite the channel least" in shown) == bool(negatives)


def test_a_channel_with_fewer_prototypes_leaves_its_place_empty():
    result = made_up("square", 2, 3)
    first, second = result.channels
    fewer = dataclasses.replace(second, prototypes=second.prototypes[:1])
    result = dataclasses.replace(result, channels=(first, fewer))
    figure = figures.explained(result)
    check(figure)
    assert len(pictures(figure)) == 1 + 2 * 2 + 3 + 1


def test_another_class_than_the_predicted_one():
    result = dataclasses.replace(made_up("time"), target=0)
    shown = check(figures.explained(result))
    assert "predicted fake (97.1 %), explained real (2.9 %)" in shown


@pytest.mark.parametrize("scheme", ["square", "time_frequency"])
def test_without_sound_heatmaps_stand_alone(scheme):
    figure = figures.explained(without_sound(made_up(scheme, 2, 2)))
    shown = check(figure)
    assert len(pictures(figure)) == 2 * (1 + 2)
    for word in ("feature map", "frame", "row", "frames 64-96", "channel 31"):
        assert word in shown
    assert "kHz" not in shown


@pytest.mark.parametrize(
    ("method", "name", "unit"),
    [("grad-cam", "Grad-CAM", "logit"), ("lime", "LIME", "probability")],
)
def test_other_methods(method, name, unit):
    result = baseline("square", method)
    figure = figures.explained(result)
    shown = check(figure)
    assert len(pictures(figure)) == 1 + 2
    assert name in shown
    assert f"contribution to the {unit} of fake" in shown
    assert "evidence" not in shown
    nowhere = dataclasses.replace(result.channels[0], areas=())
    result = dataclasses.replace(result, channels=(nowhere,))
    assert "no region" in check(figures.explained(result))


def test_names_and_numbers_of_other_sizes():
    result = made_up("frequency", 2, 2)
    odd = dataclasses.replace(
        result,
        source="recordings/" + "a very long name of a recording " * 4 + ".wav",
        offset_s=1234.5,
        class_names=(
            "Corvus corax (northern raven), calling from a long way off",
            "Turdus philomelos (song thrush), and quite some others",
        ),
        activation="sigmoid",
        logits=np.array([-40.0, 900.0]),
        target=0,
        evidence_share=0.0,
        channels=tuple(
            dataclasses.replace(
                c, contribution=-1e-7, heatmap=np.zeros(FRONT_END.shape)
            )
            for c in result.channels
        ),
    )
    check(figures.explained(odd))


def test_the_same_explanation_gives_the_same_picture():
    """Text aside: the edge of a letter may come out a few levels of 255 lighter."""

    def picture():
        stream = io.BytesIO()
        result = made_up("time_frequency", 1, 1)
        figures.explained(result).savefig(stream, format="png", dpi=40)
        stream.seek(0)
        return matplotlib.image.imread(stream)

    one, other = picture(), picture()
    np.testing.assert_allclose(one, other, atol=0.05)
    assert (one != other).mean() < 1e-3


# --- purity


@pytest.mark.parametrize("start", [0.2, -0.4])
def test_purity(start):
    history = optimize.History(
        epoch_purity=[start, 0.4, 0.5, 0.55],
        epoch_prototypes=[100, 100, 5, 5],
        round_purity=[start, 0.5, 0.6],
        round_epochs=[0, 2, 4],
        round_prototypes=5,
    )
    figure = figures.purity(history)
    check(figure)
    (axes,) = figure.axes
    rounds, epochs = axes.lines
    np.testing.assert_array_equal(rounds.get_xydata(), [[0, start], [2, 0.5], [4, 0.6]])
    np.testing.assert_array_equal(epochs.get_xdata(), [1, 2, 3, 4])
    assert axes.get_ylim()[0] <= start


# --- AudioProtoPNet


def match_of(n):
    (area,) = areas_of("square", (1, 2))
    rng = np.random.default_rng(n)
    return boxes.Match(
        prototype=40_000 + n,
        class_name="an owl with a rather long name",
        similarity=0.61,
        weight=1.2,
        heatmap=rng.random(FRONT_END.shape),
        area=area,
    )


@pytest.mark.parametrize("with_clips", [True, False])
def test_what_prototypes_found(with_clips):
    rng = np.random.default_rng(0)
    found = [match_of(n) for n in range(3)]
    nearest = [(f"folder/train{n}.wav", sound(rng), one) for n, one in enumerate(found)]
    figure = figures.prototypes(
        sound(rng),
        found,
        front_end=FRONT_END,
        nearest=nearest if with_clips else (),
        title="query.wav",
    )
    shown = check(figure)
    assert len(pictures(figure)) == 3 * (3 if with_clips else 2)
    for word in ("query.wav", "prototype 40002", "0.61 similar, adds +0.73", "kHz"):
        assert word in shown
    assert ("folder/train2.wav" in shown) == with_clips


def test_a_training_clip_for_each_prototype():
    with pytest.raises(ValueError, match="each of 2 matches; got 1"):
        figures.prototypes(
            sound(np.random.default_rng(0)),
            [match_of(0), match_of(1)],
            nearest=[("x", sound(np.random.default_rng(0)), match_of(0))],
        )
