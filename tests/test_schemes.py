"""The four schemes against the whole transformed map; regions against pixel loops."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.ndimage

from apex_jax import disentangle, schemes

N, F, T, C = 7, 3, 5, 6


def transformed_map(feature_map, matrix, centre):
    """`Zhat[f, t] = U (Z[f, t] - mu)`, cell by cell in float64."""
    zhat = np.zeros(feature_map.shape)
    for f, t in np.ndindex(feature_map.shape[:2]):
        for k in range(len(matrix)):
            zhat[f, t, k] = sum(
                matrix[k, c] * (feature_map[f, t, c] - centre[c])
                for c in range(len(centre))
            )
    return zhat


def first_largest(values):
    """Index of the largest value, the first of equals."""
    best = 0
    for i, value in enumerate(values):
        if value > values[best]:
            best = i
    return best


def locate_by_hand(scheme, zhat, k):
    num_rows, num_columns = zhat.shape[:2]
    row_means = [
        np.mean([zhat[f, t, k] for t in range(num_columns)]) for f in range(num_rows)
    ]
    column_means = [
        np.mean([zhat[f, t, k] for f in range(num_rows)]) for t in range(num_columns)
    ]
    if scheme == "square":
        cells = [(f, t) for f in range(num_rows) for t in range(num_columns)]
        return cells[first_largest([zhat[f, t, k] for f, t in cells])]
    return (
        -1 if scheme == "time" else first_largest(row_means),
        -1 if scheme == "frequency" else first_largest(column_means),
    )


def vector_by_hand(scheme, zhat, location):
    row, column = location
    of_column = sum(zhat[f, column] for f in range(len(zhat))) / len(zhat)
    of_row = sum(zhat[row, t] for t in range(zhat.shape[1])) / zhat.shape[1]
    return {
        "square": zhat[row, column],
        "time": of_column,
        "frequency": of_row,
        "time_frequency": (of_column + of_row) / 2,
    }[scheme]


def locate(scheme, feature_map, direction):
    views = schemes.views(jnp.asarray(feature_map, jnp.float32), keep_cells=True)
    found = schemes.locate(scheme, views, jnp.asarray(direction, jnp.float32))
    return tuple(int(i) for i in found)


@pytest.mark.parametrize("scheme", schemes.SCHEMES)
def test_location_and_vector_by_hand(scheme, rng):
    maps = rng.normal(size=(N, F, T, C))
    matrix, centre = rng.normal(size=(C, C)), rng.normal(size=C)
    transform = disentangle.Transform(
        matrix=jnp.asarray(matrix, jnp.float32),
        inverse=jnp.linalg.inv(jnp.asarray(matrix, jnp.float32)),
        centre=jnp.asarray(centre, jnp.float32),
    )
    views = schemes.views(jnp.asarray(maps, jnp.float32), keep_cells=scheme == "square")
    every_channel = jax.vmap(
        functools.partial(schemes.locate, scheme), in_axes=(None, 0)
    )
    locations = jax.jit(jax.vmap(every_channel, in_axes=(0, None)))(
        views, transform.matrix
    )
    vectors = jax.jit(
        jax.vmap(jax.vmap(functools.partial(schemes.vector, scheme), in_axes=(None, 0)))
    )(views, locations)
    prototypes = transform(vectors)
    for n in range(N):
        zhat = transformed_map(maps[n], matrix, centre)
        for k in range(C):
            expected = locate_by_hand(scheme, zhat, k)
            assert tuple(locations[n, k].tolist()) == expected
            np.testing.assert_allclose(
                prototypes[n, k], vector_by_hand(scheme, zhat, expected), atol=2e-5
            )


def test_locations_vary_in_the_test_above(rng):
    """The loops above would prove little if every argmax were the same cell."""
    maps, matrix = rng.normal(size=(N, F, T, C)), rng.normal(size=(C, C))
    found = {
        locate_by_hand("square", transformed_map(z, matrix, np.zeros(C)), k)
        for z in maps
        for k in range(C)
    }
    assert len(found) > F * T / 2


@pytest.mark.parametrize(
    ("scheme", "expected"),
    [
        ("square", (0, 0)),
        ("time", (-1, 0)),
        ("frequency", (0, -1)),
        ("time_frequency", (0, 0)),
    ],
)
def test_a_flat_map_gives_the_first_location(scheme, expected):
    assert locate(scheme, np.ones((F, T, C)), np.ones(C)) == expected


def test_ties_go_to_the_lowest_row_then_the_lowest_column():
    feature_map = np.zeros((F, T, 2))
    feature_map[2, 1, 0] = feature_map[1, 4, 0] = feature_map[1, 3, 0] = 2.0
    assert locate("square", feature_map, [1.0, 0.0]) == (1, 3)
    feature_map[1, 4, 0] = 0.0  # rows 1 and 2 and columns 1 and 3 tie now
    assert locate("frequency", feature_map, [1.0, 0.0]) == (1, -1)
    assert locate("time", feature_map, [1.0, 0.0]) == (-1, 1)
    assert locate("time_frequency", feature_map, [1.0, 0.0]) == (1, 1)


def test_time_frequency_is_not_the_largest_cell():
    feature_map = np.zeros((F, T, 1))
    feature_map[0, 0] = 3.0  # the largest cell
    feature_map[1, 2:] = 2.0  # the largest row
    feature_map[1:, 3] = 2.0  # the largest column
    assert locate("square", feature_map, [1.0]) == (0, 0)
    assert locate("time_frequency", feature_map, [1.0]) == (1, 3)


@pytest.mark.parametrize("scheme", schemes.SCHEMES)
def test_the_centre_moves_no_location(scheme, rng):
    feature_map, matrix = rng.normal(size=(F, T, C)), rng.normal(size=(C, C))
    for k in range(C):
        without = locate_by_hand(
            scheme, transformed_map(feature_map, matrix, np.zeros(C)), k
        )
        moved = transformed_map(feature_map, matrix, rng.normal(size=C))
        assert locate_by_hand(scheme, moved, k) == without
        assert locate(scheme, feature_map, matrix[k]) == without


def test_views_of_a_batch(rng):
    maps = rng.normal(size=(N, F, T, C))
    views = schemes.views(jnp.asarray(maps, jnp.float32), keep_cells=False)
    assert views.cells is None
    assert (views.rows.shape, views.columns.shape) == ((N, F, C), (N, T, C))
    for n in range(N):
        for f in range(F):
            np.testing.assert_allclose(views.rows[n, f], sum(maps[n, f]) / T, atol=1e-6)
        for t in range(T):
            np.testing.assert_allclose(
                views.columns[n, t], sum(maps[n, :, t]) / F, atol=1e-6
            )


def test_square_without_cells_says_how_to_get_them():
    views = schemes.views(jnp.ones((F, T, C)), keep_cells=False)
    with pytest.raises(ValueError, match="content='maps'"):
        schemes.locate("square", views, jnp.ones(C))
    with pytest.raises(ValueError, match="content='maps'"):
        schemes.vector("square", views, jnp.array([0, 0]))
    assert [s for s in schemes.SCHEMES if schemes.needs_cells(s)] == ["square"]


def test_parse():
    assert [schemes.parse(s) for s in schemes.SCHEMES] == list(schemes.SCHEMES)
    assert schemes.parse("time-frequency") == "time_frequency"
    with pytest.raises(ValueError, match=r"one of square, time.* got 'circle'"):
        schemes.parse("circle")


# Regions.

GRIDS = {
    "even": schemes.Grid.of((3, 5), (12, 20)),
    "fractional": schemes.Grid.of((3, 4), (7, 10)),
    "stride": schemes.Grid.of((3, 4), (13, 18), (4, 4)),
    "one cell": schemes.Grid.of((1, 1), (4, 9)),
}


def locations_of(scheme, map_shape):
    return [
        (
            -1 if scheme == "time" else row,
            -1 if scheme == "frequency" else column,
        )
        for row in range(1 if scheme == "time" else map_shape[0])
        for column in range(1 if scheme == "frequency" else map_shape[1])
    ]


def masks_of(grid, scheme, locations, blur=0.0):
    mask = functools.partial(grid.mask, scheme, blur=blur)
    return np.asarray(jax.jit(jax.vmap(mask))(jnp.array(locations)))


def indicator_by_hand(boxes, centres):
    """1 where a point lies in one of the boxes, point by point."""
    inside = np.zeros((len(centres[0]), len(centres[1])))
    for i, row in enumerate(centres[0]):
        for j, frame in enumerate(centres[1]):
            inside[i, j] = any(
                box.rows[0] <= row < box.rows[1]
                and box.frames[0] <= frame < box.frames[1]
                for box in boxes
            )
    return inside


def test_boxes_of_a_cell():
    grid = schemes.Grid.of((3, 4), (7, 10))
    assert grid.cell == (7 / 3, 2.5)
    row, frames = pytest.approx((7 / 3, 14 / 3)), (7.5, 10.0)
    (square,) = grid.boxes("square", (1, 3))
    assert (square.rows, square.frames) == (row, frames)
    (column,) = grid.boxes("time", (-1, 3))
    assert (column.rows, column.frames) == ((0.0, 7.0), frames)
    (strip,) = grid.boxes("frequency", (1, -1))
    assert (strip.rows, strip.frames) == (row, (0.0, 10.0))
    assert grid.boxes("time_frequency", (1, 3)) == (column, strip)


@pytest.mark.parametrize("name", GRIDS)
@pytest.mark.parametrize("scheme", schemes.SCHEMES)
def test_hard_mask_is_the_boxes_indicator_at_pixel_centres(scheme, name):
    grid = GRIDS[name]
    locations = locations_of(scheme, grid.map_shape)
    masks = masks_of(grid, scheme, locations)
    centres = [np.arange(n) + 0.5 for n in grid.input_shape]
    for location, mask in zip(locations, masks, strict=True):
        expected = indicator_by_hand(grid.boxes(scheme, location), centres)
        np.testing.assert_array_equal(mask, expected)


def test_every_pixel_lies_in_one_cell_and_its_box():
    """Also where a pixel's centre lies on an edge, as for 12 cells of 13 pixels."""
    for num, size in ((12, 13), (14, 23), (24, 26), (30, 33), (36, 37), (24, 35)):
        grid = schemes.Grid.of((num, 1), (size, 2))
        locations = locations_of("frequency", grid.map_shape)
        masks = masks_of(grid, "frequency", locations)[:, :, 0]
        np.testing.assert_array_equal(masks.sum(axis=0), np.ones(size))
        edges = [grid.boxes("frequency", location)[0].rows for location in locations]
        boxes = [[low <= p + 0.5 < high for p in range(size)] for low, high in edges]
        np.testing.assert_array_equal(masks, boxes)


@pytest.mark.parametrize(
    ("name", "blur"), [("fractional", 0.25), ("stride", 0.5), ("one cell", 1.0)]
)
@pytest.mark.parametrize("scheme", schemes.SCHEMES)
def test_soft_mask_is_the_blurred_indicator(scheme, name, blur):
    """Blurred numerically on a fine grid; the region goes on beyond the spectrogram."""
    grid, fine = GRIDS[name], 21
    fine_centres = [(np.arange(n * fine) + 0.5) / fine for n in grid.input_shape]
    locations = locations_of(scheme, grid.map_shape)
    masks = masks_of(grid, scheme, locations, blur)
    sigmas = [blur * step * fine for step in grid.cell]
    for i in range(0, len(locations), 3):
        boxes = grid.boxes(scheme, locations[i])
        # The boxes are intervals along each axis: their corners tell all points.
        points = np.zeros([len(c) for c in fine_centres], bool)
        for box in boxes:
            rows = (fine_centres[0] >= box.rows[0]) & (fine_centres[0] < box.rows[1])
            frames = (fine_centres[1] >= box.frames[0]) & (
                fine_centres[1] < box.frames[1]
            )
            points |= rows[:, None] & frames[None, :]
        blurred = scipy.ndimage.gaussian_filter(
            points.astype(float), sigmas, mode="nearest", truncate=6
        )
        expected = blurred[fine // 2 :: fine, fine // 2 :: fine]
        # A fine pixel on an edge is all in or all out: half of one is the error.
        tolerance = 0.5 * sum(1 / (np.sqrt(2 * np.pi) * s) for s in sigmas) + 1e-4
        np.testing.assert_allclose(masks[i], expected, atol=tolerance)


def test_soft_mask_stays_sharp_at_the_spectrograms_edges():
    grid = schemes.Grid.of((1, 3), (8, 12))
    (whole,) = masks_of(grid, "frequency", [(0, -1)], blur=1.0)
    np.testing.assert_array_equal(whole, np.ones((8, 12)))
    first = masks_of(grid, "time", [(-1, 0)], blur=0.25)[0, 0]
    assert float(first[0]) > 0.999
    assert float(first[3]) > 0.5 > float(first[4])
    np.testing.assert_allclose(first[3] + first[4], 1.0, atol=1e-5)


def test_frames_beyond_the_last_stride_belong_to_no_cell():
    grid = schemes.Grid.of((4, 19), (128, 626), (32, 32))
    masks = masks_of(grid, "time", locations_of("time", grid.map_shape))
    covered = masks.sum(axis=0)
    np.testing.assert_array_equal(covered[:, :608], np.ones((128, 608)))
    np.testing.assert_array_equal(covered[:, 608:], np.zeros((128, 18)))
    assert grid.boxes("square", (3, 18))[0].frames == (576.0, 608.0)
    # Its last cell is soft towards frames that no cell covers.
    soft = masks_of(grid, "time", [(-1, 18)], blur=0.25)[0, 0]
    np.testing.assert_allclose(soft[607] + soft[608], 1.0, atol=1e-4)
    np.testing.assert_array_equal(grid.upsample(jnp.ones((4, 19)))[:, 608:], 0.0)


def test_a_stride_that_does_not_fit():
    with pytest.raises(ValueError, match=r"20 cells of 32 pixels.* 626 .*frames"):
        schemes.Grid.of((4, 20), (128, 626), (32, 32))
    with pytest.raises(ValueError, match="rows"):
        schemes.Grid.of((5, 19), (128, 626), (32, 32))


def upsampled_by_hand(cells, shape, covered):
    """Bilinear interpolation between cell centres, held beyond the outer ones."""
    out = np.zeros(shape)
    for i, j in np.ndindex(*covered):
        y = (i + 0.5) * cells.shape[0] / covered[0] - 0.5
        x = (j + 0.5) * cells.shape[1] / covered[1] - 0.5
        total = 0.0
        for f, t in np.ndindex(*cells.shape):
            clipped_y = min(max(y, 0.0), cells.shape[0] - 1.0)
            clipped_x = min(max(x, 0.0), cells.shape[1] - 1.0)
            total += (
                max(0.0, 1 - abs(clipped_y - f))
                * max(0.0, 1 - abs(clipped_x - t))
                * cells[f, t]
            )
        out[i, j] = total
    return out


@pytest.mark.parametrize(
    ("name", "covered"),
    [("even", (12, 20)), ("fractional", (7, 10)), ("stride", (12, 16))],
)
def test_upsampling_by_hand(name, covered, rng):
    grid = GRIDS[name]
    cells = rng.normal(size=grid.map_shape)
    np.testing.assert_allclose(
        grid.upsample(jnp.asarray(cells, jnp.float32)),
        upsampled_by_hand(cells, grid.input_shape, covered),
        atol=1e-5,
    )


def test_random_locations_are_uniform_over_the_cells(key):
    grid, draws = GRIDS["even"], 6000
    locations = jax.jit(jax.vmap(grid.random_location))(jax.random.split(key, draws))
    flat = np.asarray(locations[:, 0] * 5 + locations[:, 1])
    counts = np.bincount(flat, minlength=15)
    assert len(counts) == 15
    # Chi square with 14 degrees of freedom: 36 is its 99.9th percentile.
    assert ((counts - draws / 15) ** 2 / (draws / 15)).sum() < 36


@pytest.mark.parametrize(
    ("scheme", "location", "others"),
    [
        ("square", (1, 3), [(f, t) for f in range(3) for t in range(5)]),
        ("time", (schemes.ALL, 4), [(0, t) for t in range(5)]),
        ("frequency", (0, schemes.ALL), [(f, 0) for f in range(3)]),
        ("time_frequency", (2, 4), [(f, t) for f in range(3) for t in range(5)]),
    ],
)
def test_other_locations_are_uniform_over_the_other_regions(
    scheme, location, others, key
):
    grid, draws = GRIDS["even"], 6000
    own = tuple(max(i, 0) for i in location)
    others.remove(own)
    found = jax.jit(
        jax.vmap(lambda key: grid.other_location(key, scheme, jnp.array(location)))
    )(jax.random.split(key, draws))
    places, counts = np.unique(np.asarray(found), axis=0, return_counts=True)
    assert [tuple(place) for place in places.tolist()] == others
    expected = draws / len(others)
    # Chi square with up to 13 degrees of freedom: 36 is beyond its 99.9th percentile.
    assert ((counts - expected) ** 2 / expected).sum() < 36
    assert all(grid.boxes(scheme, o) != grid.boxes(scheme, location) for o in others)


@pytest.mark.parametrize(("scheme", "shape"), [("frequency", (1, 5)), ("time", (3, 1))])
def test_a_map_of_one_region_has_no_other(scheme, shape, key):
    grid = schemes.Grid.of(shape, (12, 20))
    own = (0, schemes.ALL) if scheme == "frequency" else (schemes.ALL, 0)
    other = tuple(grid.other_location(key, scheme, jnp.array(own)).tolist())
    assert grid.boxes(scheme, other) == grid.boxes(scheme, own)


def test_locations_has_each_region_once():
    grid = schemes.Grid.of((4, 8), (64, 128))
    counts = {s: len(grid.locations(s)) for s in schemes.SCHEMES}
    assert counts == {"square": 32, "time": 8, "frequency": 4, "time_frequency": 32}
    assert set(map(tuple, grid.locations("time"))) == {
        (schemes.ALL, column) for column in range(8)
    }
