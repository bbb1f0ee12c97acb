"""Figures render, and their axes say what the front end says."""

import dataclasses
import io

import numpy as np
import pytest

from apex_jax import audio, data, explanation, optimize, plot, schemes

matplotlib_figure = pytest.importorskip("matplotlib.figure")

# Of the experiments: 128 rows x 128 frames.
FRONT_END = audio.FrontEnd(
    sample_rate=22050,
    clip_s=1.48,
    n_fft=1024,
    hop_length=256,
    n_mels=128,
    mean=-30.0,
    std=17.0,
)
GRID = schemes.Grid.of((4, 4), FRONT_END.shape, (32, 32))


def areas_of(scheme, location):
    found = []
    for box in GRID.boxes(scheme, location):
        low, high = FRONT_END.band_hz(*box.rows)
        start, end = FRONT_END.span_s(*box.frames)
        found.append(
            explanation.Area(
                box=box,
                start_s=float(start),
                end_s=float(end),
                low_hz=float(low),
                high_hz=float(high),
            )
        )
    return tuple(found)


def made_up(scheme, num_channels=4, num_prototypes=5):
    """An explanation with the lengths of words and numbers that real ones have."""
    rng = np.random.default_rng(0)
    rows, frames = np.indices(FRONT_END.shape)

    def sound():
        ripple = np.sin(rows / 4 + rng.normal()) + np.sin(frames / 9 + rng.normal())
        decibel = -10 + 8 * ripple - 0.3 * rows + rng.normal(0, 3, rows.shape)
        return (decibel - FRONT_END.mean) / FRONT_END.std

    def prototype(n):
        name = f"LJ0{n:02d}-0{n:03d}_gen.wav"
        return explanation.Prototype(
            clip=data.Clip(path=f"generated_audio/ljspeech_hifiGAN/{name}", label=1),
            class_name=("real", "fake")[n % 2],
            activation=12.5,
            purity=0.71,
            areas=areas_of(scheme, tuple(rng.integers(0, 4, 2).tolist())),
            spectrogram=sound(),
            heatmap=np.asarray(rng.random(rows.shape)),
        )

    return explanation.Explanation(
        source="runs/demo/LJSpeech-1.1/wavs/LJ001-0001.wav",
        offset_s=0.0,
        sound_s=1.0,
        class_names=("real", "fake"),
        logits=np.array([-1.0, 2.5]),
        predicted=1,
        target=1,
        scheme=scheme,
        sign="positive",
        spectrogram=sound(),
        channels=tuple(
            explanation.Channel(
                index=31 * k,
                contribution=2.0 / (k + 1),
                areas=areas_of(scheme, (k % 4, (k + 2) % 4)),
                heatmap=np.asarray(rng.random(rows.shape)),
                prototypes=tuple(prototype(5 * k + n) for n in range(num_prototypes)),
            )
            for k in range(num_channels)
        ),
        evidence_share=0.87,
    )


def axes_of_spectrogram(front_end, **options):
    axes = matplotlib_figure.Figure().subplots()
    image = plot.spectrogram(axes, front_end, np.zeros(front_end.shape), **options)
    return axes, image


@pytest.mark.parametrize(
    "front_end",
    [
        FRONT_END,
        audio.FrontEnd.birdset(n_fft=2048),
        audio.FrontEnd(sample_rate=8000, clip_s=0.5, n_fft=256, n_mels=None),
        audio.FrontEnd(
            sample_rate=16000, clip_s=30.0, n_fft=512, n_mels=40, fmin=300, fmax=4000
        ),
    ],
)
def test_ticks_are_seconds_and_kilohertz(front_end):
    axes, image = axes_of_spectrogram(front_end)
    rows, frames = front_end.shape
    assert tuple(image.get_extent()) == (-0.5, frames - 0.5, -0.5, rows - 0.5)
    assert image.origin == "lower"
    assert axes.get_xlabel() == "time (s)"
    assert axes.get_ylabel() == "frequency (kHz)"
    # Frame t is centred on t hops; every tick lies within the picture.
    at, labels = (
        axes.get_xticks(),
        [float(t.get_text()) for t in axes.get_xticklabels()],
    )
    np.testing.assert_allclose(
        labels, at * front_end.hop_length / front_end.sample_rate, atol=1e-6
    )
    assert 3 <= len(at) <= 8
    assert min(at) == 0
    assert max(at) <= frames - 1
    at, labels = (
        axes.get_yticks(),
        [float(t.get_text()) for t in axes.get_yticklabels()],
    )
    assert len(labels) >= 3
    for row, khz in zip(at, labels, strict=True):
        assert 0 <= row <= rows - 1
        low, high = (front_end.row_to_hz(f(row)) for f in (np.floor, np.ceil))
        assert low <= 1000 * khz * (1 + 1e-9)
        assert 1000 * khz <= high * (1 + 1e-9)
    assert np.abs(np.diff(at)).min() >= rows / 10  # labels do not touch


def test_a_row_is_where_its_frequency_is():
    """Slaney's mels: linear below 1 kHz, 15 mels up to there, 27 for a factor 6.4."""
    axes, _ = axes_of_spectrogram(FRONT_END)
    top = 15 + 27 * np.log(11025 / 1000) / np.log(6.4)
    for row, label in zip(axes.get_yticks(), axes.get_yticklabels(), strict=True):
        hertz = 1000 * float(label.get_text())
        mel = hertz * 3 / 200
        if hertz > 1000:
            mel = 15 + 27 * np.log(hertz / 1000) / np.log(6.4)
        assert row == pytest.approx(mel / top * 129 - 1, abs=0.05)


@pytest.mark.parametrize("scheme", schemes.SCHEMES)
@pytest.mark.parametrize("location", [(1, 2), (0, 0), (3, 3)])
def test_regions_are_drawn_round_their_pixels(scheme, location):
    """Pixel i is drawn from i - 1/2 to i + 1/2; at the edge the line stays inside."""
    axes, _ = axes_of_spectrogram(FRONT_END)
    plot.areas(axes, areas_of(scheme, location))
    row, column = location
    rows, frames = (32 * row, 32 * row + 32), (32 * column, 32 * column + 32)
    wanted = {
        "square": [(rows, frames)],
        "time": [((0, 128), frames)],
        "frequency": [(rows, (0, 128))],
        "time_frequency": [((0, 128), frames), (rows, (0, 128))],
    }[scheme]
    assert len(axes.patches) == len(wanted)
    for patch, ((low, high), (start, end)) in zip(axes.patches, wanted, strict=True):
        corners = patch.get_corners()
        edges = [*corners.min(axis=0), *corners.max(axis=0)]
        np.testing.assert_allclose(
            edges, [start - 0.5, low - 0.5, end - 0.5, high - 0.5], atol=2.1
        )
        assert -0.5 < edges[0] < edges[2] < 127.5
        assert -0.5 < edges[1] < edges[3] < 127.5
        for edge, exact in zip(edges, [start, low, end, high], strict=True):
            if 0 < exact < 128:
                assert edge == exact - 0.5
        assert not patch.get_fill()


def texts_of(figure):
    """Every text of a drawn figure that shows, and where, in pixels."""
    figure.draw_without_rendering()
    found = [part._suptitle for part in figure.subfigs if part._suptitle]
    for axes in figure.axes:
        found += [axes.title, axes.xaxis.label, axes.yaxis.label]
        for axis in (axes.xaxis, axes.yaxis):
            low, high = sorted(axis.get_view_interval())
            ticks = zip(axis.get_majorticklocs(), axis.get_ticklabels(), strict=True)
            found += [label for at, label in ticks if low <= at <= high]
    boxes = [(t, t.get_window_extent()) for t in found if t.get_text()]
    return [(t.get_text(), box) for t, box in boxes if box.width > 0]


@pytest.mark.parametrize("scheme", schemes.SCHEMES)
def test_an_explanation_renders(scheme):
    """Without a warning, and no text is cut off or runs into another."""
    result = made_up(scheme)
    figure = plot.explained(result, FRONT_END)
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
    assert sum(text == "time (s)" for text, _ in texts) == 1 + 2 + 4
    shown = " ".join(text for text, _ in texts)
    for word in ("channel 31", "heatmap", "LJ001-0001.wav", "fake", "97.1 %", "87 %"):
        assert word in shown


@pytest.mark.parametrize(("num_channels", "num_prototypes"), [(1, 1), (2, 5)])
def test_few_channels_and_prototypes(num_channels, num_prototypes):
    result = made_up("time_frequency", num_channels, num_prototypes)
    figure = plot.explained(result, FRONT_END, num_prototypes=3)
    images = [axes for axes in figure.subfigs[1].axes if axes.images]
    assert len(images) == num_channels * (2 + min(3, num_prototypes))
    figure.savefig(io.BytesIO(), format="png", dpi=30)


def test_names_and_numbers_of_other_sizes():
    result = made_up("frequency", 2, 2)
    odd = dataclasses.replace(
        result,
        source="recordings/" + "a very long name of a recording " * 4 + ".wav",
        class_names=(
            "Corvus corax (northern raven)",
            "Turdus philomelos (song thrush)",
        ),
        logits=np.array([-40.0, 900.0]),
        evidence_share=0.0,
        channels=tuple(
            dataclasses.replace(c, contribution=0.0, heatmap=np.zeros(FRONT_END.shape))
            for c in result.channels
        ),
    )
    plot.explained(odd, FRONT_END).savefig(io.BytesIO(), format="png", dpi=30)


@pytest.mark.parametrize("start", [0.2, -0.4])
def test_purity_renders(start):
    history = optimize.History(
        epoch_purity=[start, 0.4, 0.5, 0.55],
        epoch_prototypes=[100, 100, 5, 5],
        round_purity=[start, 0.5, 0.6],
        round_epochs=[0, 2, 4],
        round_prototypes=5,
    )
    figure = plot.purity(history)
    figure.savefig(io.BytesIO(), format="png", dpi=30)
    (axes,) = figure.axes
    rounds, epochs = axes.lines
    np.testing.assert_array_equal(rounds.get_xydata(), [[0, start], [2, 0.5], [4, 0.6]])
    np.testing.assert_array_equal(epochs.get_xdata(), [1, 2, 3, 4])
    assert axes.get_ylim()[0] <= start
