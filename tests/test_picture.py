"""Pictures of the page: pixels, axes and outlines, checked pixel by pixel."""

import io
import itertools
import re

import matplotlib
import numpy as np
import pytest
from PIL import Image

from apex_jax import frontend, schemes
from apex_jax.pages import picture

FRONT_END = frontend.FrontEnd(sample_rate=8000, clip_s=1.0, n_fft=512, hop_length=256)


def pixels_of(content, mode):
    image = Image.open(io.BytesIO(content))
    assert image.format == "PNG"
    return np.asarray(image.convert(mode))


def test_a_spectrogram_has_a_pixel_a_value_and_its_lowest_row_at_the_bottom():
    values = np.linspace(-90.0, -20.0, 12).reshape(3, 4)
    shown = pixels_of(picture.spectrogram(values, (-80.0, -20.0)), "RGB")
    assert shown.shape == (3, 4, 3)
    colours = matplotlib.colormaps[picture.COLOURS]
    for row, frame in np.ndindex(3, 4):
        share = max(0.0, (values[row, frame] + 80) / 60)
        wanted = np.array(colours(share)[:3]) * 255
        # Half a step of the palette away at most.
        np.testing.assert_allclose(shown[2 - row, frame], wanted, atol=4)


def test_a_heatmap_is_as_opaque_as_it_is_hot():
    values = np.array([[0.0, 0.25, 0.5], [0.75, 1.0, 0.0]])
    shown = pixels_of(picture.heatmap(values), "RGBA")
    assert np.all(shown[..., :3] == picture.HEAT)
    largest = shown[..., 3].max()
    np.testing.assert_allclose(shown[::-1, :, 3] / largest, values, atol=0.03)
    assert shown[1, 0, 3] == 0


def test_one_colour_for_a_spectrogram_without_contrast():
    flat = np.full((2, 3), -5.0)
    limits = picture.limits([flat])
    assert limits == (-5.0, -5.0)
    shown = pixels_of(picture.spectrogram(flat, limits), "RGB")
    assert len(np.unique(shown.reshape(-1, 3), axis=0)) == 1
    assert picture.bar_ticks(*limits) == ((50.0, "-5"),)


def test_limits_hold_for_all_and_span_80_db_at_most():
    quiet, loud = np.array([[-70.0, -60.0]]), np.array([[-50.0, -30.0]])
    assert picture.limits([quiet, loud]) == (-70.0, -30.0)
    assert picture.limits([quiet, loud, np.array([[-200.0]])]) == (-110.0, -30.0)


def test_the_colour_bar_names_values_where_their_colour_is():
    for percent, label in picture.bar_ticks(-87.0, -7.0):
        value = float(label.replace("−", "-"))
        assert percent == pytest.approx(100 * (-7 - value) / 80)
        assert 0 <= percent <= 100
    bar = pixels_of(picture.colour_bar(), "RGB")
    assert bar.shape == (picture.LEVELS, 1, 3)
    assert bar[0].sum() > bar[-1].sum()  # bright on top


@pytest.mark.parametrize("small", [False, True])
def test_axes_in_seconds_and_kilohertz(small):
    rows, frames = FRONT_END.shape
    axes = picture.axes(FRONT_END, (rows, frames), small=small)
    assert axes.units == ("s", "kHz")
    left, right = axes.edges_s
    for percent, label in axes.across:
        # The playhead and the ticks agree on where a second is.
        assert left + percent / 100 * (right - left) == pytest.approx(float(label))
    for percent, label in axes.up:
        row = (100 - percent) / 100 * rows - 0.5
        low, high = (FRONT_END.row_to_hz(f(row)) for f in (np.floor, np.ceil))
        assert low - 1e-6 <= 1000 * float(label) <= high + 1e-6
    assert len(axes.across) <= (4 if small else 7)


def test_axes_in_frames_and_rows():
    axes = picture.axes(None, (20, 50))
    assert axes.units == ("frame", "row")
    assert axes.edges_s is None
    assert axes.across[1] == (21.0, "10")
    assert axes.up[0] == (97.5, "0")


def loops_of(path, num_rows):
    """Closed loops of corners (frame, row), row 0 at the bottom again."""
    assert re.fullmatch(r"(M[-\d.]+ [-\d.]+(L[-\d.]+ [-\d.]+)+Z)*", path)
    return [
        [
            (float(x), num_rows - float(y))
            for x, y in re.findall(r"([-\d.]+) ([-\d.]+)", loop)
        ]
        for loop in path.split("Z")[:-1]
    ]


def area_of(loop):
    """Signed, by the shoelace formula."""
    around = zip(loop, [*loop[1:], loop[0]], strict=True)
    return sum(a * d - c * b for (a, b), (c, d) in around) / 2


def length_of(loop):
    around = zip(loop, [*loop[1:], loop[0]], strict=True)
    return sum(abs(a - c) + abs(b - d) for (a, b), (c, d) in around)


def mask_of(boxes, shape):
    """Which whole pixels lie in one of the boxes."""
    mask = np.zeros(shape, bool)
    for box in boxes:
        (low, high), (start, end) = box.rows, box.frames
        mask[int(low) : int(high), int(start) : int(end)] = True
    return mask


def perimeter_of(mask):
    padded = np.pad(mask, 1)
    return sum(np.sum(padded != np.roll(padded, 1, axis)) for axis in (0, 1))


@pytest.mark.parametrize(
    ("scheme", "location", "corners"),
    [
        ("square", (1, 2), 4),
        ("time", (-1, 2), 4),
        ("frequency", (1, -1), 4),
        ("time_frequency", (1, 2), 12),
        ("time_frequency", (0, 2), 8),  # a T
        ("time_frequency", (0, 0), 6),  # an L
    ],
)
def test_a_region_is_one_outline(scheme, location, corners):
    shape = (6, 20)
    boxes = schemes.Grid.of((3, 5), shape, (2, 4)).boxes(scheme, location)
    (loop,) = loops_of(picture.outline(boxes, 6), 6)
    assert len(loop) == corners
    mask = mask_of(boxes, shape)
    assert area_of(loop) == mask.sum()
    assert length_of(loop) == perimeter_of(mask)


def test_outlines_of_any_rectangles(rng):
    """Area and length are those of the union, holes and touching corners included."""
    shape = (9, 11)
    for _ in range(200):
        boxes = []
        for _ in range(rng.integers(1, 5)):
            low, high = np.sort(rng.choice(10, 2, replace=False))
            start, end = np.sort(rng.choice(12, 2, replace=False))
            boxes.append(
                schemes.Box(
                    rows=(float(low), float(high)), frames=(float(start), float(end))
                )
            )
        loops = loops_of(picture.outline(boxes, 9), 9)
        mask = mask_of(boxes, shape)
        assert sum(map(area_of, loops)) == mask.sum()
        assert sum(map(length_of, loops)) == perimeter_of(mask)
        for loop in loops:
            sides = zip(loop, [*loop[1:], loop[0]], strict=True)
            upright = [a[0] == b[0] for a, b in sides]
            assert all(a != b for a, b in itertools.pairwise(upright))


def test_no_box_no_outline():
    assert picture.outline([], 5) == ""
