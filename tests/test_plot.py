"""What is drawn lies where the front end and the grid say, and captions say it."""

import jax.numpy as jnp
import numpy as np
import pytest

from apex_jax import audio, explanation, plot, schemes, ticks

# Of the experiments: 128 rows x 128 frames, cells of 32 x 32.
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


def areas_of(scheme, location, front_end=FRONT_END):
    return explanation.areas(GRID, scheme, np.array(location), front_end)


def axes_of():
    return plot.figure((4.0, 3.0)).subplots()


def drawn(front_end=FRONT_END, values=None):
    axes = axes_of()
    values = np.zeros(FRONT_END.shape) if values is None else values
    return axes, plot.spectrogram(axes, front_end, values)


def test_axes_are_seconds_and_kilohertz():
    axes, image = drawn()
    plot.name_axes(np.array([[axes]]), FRONT_END)
    assert tuple(image.get_extent()) == (-0.5, 127.5, -0.5, 127.5)
    assert image.origin == "lower"
    assert (axes.get_xlabel(), axes.get_ylabel()) == ("time (s)", "frequency (kHz)")
    for axis, wanted in (
        (axes.xaxis, ticks.time(FRONT_END, 128, gap=0.2)),
        (axes.yaxis, ticks.frequency(FRONT_END, 128)),
    ):
        assert [t.position for t in wanted] == axis.get_ticklocs().tolist()
        assert [t.label for t in wanted] == [
            t.get_text() for t in axis.get_ticklabels()
        ]


def test_axes_without_a_front_end_count_frames_and_rows():
    axes, _ = drawn(None, np.zeros((6, 40)))
    plot.name_axes(np.array([[axes]]), None)
    assert (axes.get_xlabel(), axes.get_ylabel()) == ("frame", "row")
    labels = [t.get_text() for t in axes.get_xticklabels()]
    assert labels == [f"{at:g}" for at in axes.get_xticks()]
    assert labels[0] == "0"


def test_a_row_is_where_its_frequency_is():
    """Slaney's mels: linear below 1 kHz, 15 mels up to there, 27 for a factor 6.4."""
    axes, _ = drawn()
    top = 15 + 27 * np.log(11025 / 1000) / np.log(6.4)
    for row, label in zip(axes.get_yticks(), axes.get_yticklabels(), strict=True):
        hertz = 1000 * float(label.get_text())
        mel = hertz * 3 / 200
        if hertz > 1000:
            mel = 15 + 27 * np.log(hertz / 1000) / np.log(6.4)
        assert row == pytest.approx(mel / top * 129 - 1, abs=0.05)


def test_only_the_edges_of_a_grid_are_named():
    grid = plot.figure((4.0, 3.0)).subplots(2, 3)
    plot.name_axes(grid, FRONT_END)
    assert [a.get_xlabel() for a in grid.flat] == ["", "", ""] + ["time (s)"] * 3
    assert [bool(a.get_ylabel()) for a in grid.flat] == [True, False, False] * 2
    grid = plot.figure((4.0, 3.0)).subplots(2, 3)
    plot.name_axes(grid, FRONT_END, up=False)
    assert not any(a.get_ylabel() for a in grid.flat)


def test_colours_are_decibel_of_the_same_scale(rng):
    values = rng.normal(0, 0.5, FRONT_END.shape)
    _, image = drawn(values=values)
    decibel = values * 17 - 30
    np.testing.assert_allclose(image.get_array(), decibel)
    np.testing.assert_allclose(image.get_clim(), (decibel.min(), decibel.max()))
    # Silence far below the sound does not use up the colours.
    padded = values.copy()
    padded[:, 100:] = -10
    _, image = drawn(values=padded)
    highest = decibel[:, :100].max()
    np.testing.assert_allclose(image.get_clim(), (highest - plot.SPAN_DB, highest))
    # What is left of a clip is as dark as it was in the clip.
    axes = axes_of()
    quiet = plot.spectrogram(axes, FRONT_END, values - 1, like=values)
    np.testing.assert_allclose(quiet.get_clim(), (decibel.min(), decibel.max()))
    # Without a front end nobody knows what a decibel is.
    _, image = drawn(None, values)
    np.testing.assert_allclose(image.get_clim(), (values.min(), values.max()))


def test_heat_is_on_a_scale_from_0_to_1(rng):
    image = plot.heatmap(axes_of(), FRONT_END, 0.3 * rng.random(FRONT_END.shape))
    assert image.get_clim() == (0, 1)
    assert image.get_cmap().name == "gray"


@pytest.mark.parametrize("shift", [-3.0, 0.0, 5.0])
def test_a_difference_of_zero_is_white(rng, shift):
    values = rng.normal(shift, 2, FRONT_END.shape)
    values[:, 90:] = np.nan
    axes = axes_of()
    image = plot.difference(axes, FRONT_END, values)
    low, high = image.get_clim()
    assert low == -high
    share = np.mean(np.abs(values[:, :90]) <= high)
    assert share == pytest.approx(0.98, abs=0.001)
    np.testing.assert_allclose(image.get_cmap()(image.norm(0.0))[:3], 1, atol=0.04)
    assert image.get_array().mask[:, 90:].all()


@pytest.mark.parametrize("values", [np.zeros((4, 5)), np.full((4, 5), np.nan)])
def test_a_difference_of_nothing(values):
    assert plot.difference(axes_of(), None, values).get_clim() == (-1, 1)


# --- regions


@pytest.mark.parametrize("scheme", schemes.SCHEMES)
@pytest.mark.parametrize("location", [(1, 2), (0, 0), (3, 3), (0, 2), (2, 3)])
def test_a_region_is_drawn_round_its_pixels(scheme, location):
    """Inside the outline are the pixels of the mask; at the edge it stays inside."""
    axes, _ = drawn()
    plot.areas(axes, areas_of(scheme, location))
    (patch,) = axes.patches
    assert not patch.get_fill()
    outline = patch.get_xy()
    assert outline.min() > -0.5
    assert outline.max() < 127.5
    rows, frames = np.indices(FRONT_END.shape)
    points = np.stack([frames.ravel(), rows.ravel()], axis=1)
    inside = patch.get_path().contains_points(points).reshape(FRONT_END.shape)
    mask = np.asarray(GRID.mask(scheme, jnp.array(location))) == 1
    edge = np.ones(FRONT_END.shape, bool)
    edge[3:-3, 3:-3] = False
    np.testing.assert_array_equal(inside[~edge], mask[~edge])
    assert not (inside & ~mask).any()
    for low, high in zip(outline.min(axis=0), outline.max(axis=0), strict=True):
        assert low < high


def test_a_cross_is_one_outline_with_twelve_corners():
    axes, _ = drawn()
    plot.areas(axes, areas_of("time_frequency", (1, 2)))
    (patch,) = axes.patches
    assert len(np.unique(patch.get_xy(), axis=0)) == 12
    # It turns at every corner and never runs through the middle.
    steps = np.diff(patch.get_xy(), axis=0)
    assert all(np.count_nonzero(step) == 1 for step in steps)


def test_no_region_draws_nothing():
    axes, _ = drawn()
    plot.areas(axes, ())
    assert not axes.patches
    assert plot.where("square", ()) == "no region"


@pytest.mark.parametrize(
    ("scheme", "words"),
    [
        ("square", "0.37-0.74 s, 0.84-1.98 kHz"),
        ("time", "0.37-0.74 s"),
        ("frequency", "0.84-1.98 kHz"),
        ("time_frequency", "0.37-0.74 s, 0.84-1.98 kHz"),
    ],
)
def test_a_region_in_words(scheme, words):
    assert plot.where(scheme, areas_of(scheme, (1, 1))) == words
    pixels = plot.where(scheme, areas_of(scheme, (1, 2), None))
    wanted = {"time": "frames 64-96", "frequency": "rows 32-64"}
    assert pixels == wanted.get(scheme, "frames 64-96, rows 32-64")


# --- names


@pytest.mark.parametrize(
    ("source", "length", "offset_s", "words"),
    [
        ("a/b/c.wav", 20, 0.0, "b/c.wav"),
        ("c.wav", 20, 0.0, "c.wav"),
        ("a\\b\\c.wav", 20, 1.5, "b/c.wav at 1.5 s"),
        ("some/long_folder/clip.wav", 15, 0.0, "…older/clip.wav"),
        ("some/long_folder/clip.wav", 17, 10.0, "…clip.wav at 10.0 s"[-17:]),
        ("waveform", 20, 0.0, "waveform"),
    ],
)
def test_the_name_of_a_clip(source, length, offset_s, words):
    found = plot.name(source, length, offset_s)
    assert len(found) <= length
    if len(words) < length:
        assert found == words
    else:
        assert found.startswith("…")
        assert found.endswith(words[2:])


def test_long_names_keep_their_end():
    assert plot.shortened("abc", 3) == "abc"
    assert plot.shortened("abcd", 3) == "…cd"
    assert plot.scheme_name("time_frequency") == "time-frequency"
