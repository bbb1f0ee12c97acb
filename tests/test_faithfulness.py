"""Insertion and deletion of a network whose answer hangs on known pixels."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from apex_jax import audio, disentangle, faithfulness, schemes
from apex_jax import classifier as classifier_lib

FRONT_END = audio.FrontEnd(
    sample_rate=8000,
    clip_s=0.1,
    n_fft=256,
    hop_length=64,
    n_mels=8,
    mean=-40.0,
    std=20.0,
    top_db=None,
)
ROWS, FRAMES = FRONT_END.shape
SILENCE = float(audio.silence_level(FRONT_END, jnp.zeros((1, ROWS, FRAMES)))[0])
# The logit of class 1 counts how many of these pixels are louder than silence.
WEIGHED = np.zeros((ROWS, FRAMES), bool)
WEIGHED[2:4, 3:6] = True


def forward(params, spectrogram):
    heard = (spectrogram > SILENCE + 1e-3) & jnp.asarray(WEIGHED)[None]
    count = jnp.sum(heard, axis=(1, 2)).astype(jnp.float32)
    logits = jnp.stack([jnp.zeros_like(count), count - WEIGHED.sum() / 2], axis=1)
    return heard[:, :, :, None].astype(jnp.float32), logits


CLASSIFIER = classifier_lib.Classifier(
    params=None,
    forward_fn=forward,
    head=classifier_lib.LinearHead(weight=jnp.ones((2, 1)), bias=jnp.zeros(2)),
    class_names=("no", "yes"),
)
CLIP = np.full((ROWS, FRAMES), SILENCE + 1, np.float32)


def curves(heat, **options):
    return faithfulness.curves(
        CLASSIFIER, FRONT_END, CLIP, np.asarray(heat, np.float32), 1, **options
    )


def test_every_step_by_hand(rng):
    heat = rng.permutation(ROWS * FRAMES).reshape(ROWS, FRAMES)
    found = curves(heat, steps=7)
    order = np.argsort(-heat.ravel(), kind="stable")
    for step in range(8):
        count = round(step * ROWS * FRAMES / 7)
        assert found.share[step] == count / (ROWS * FRAMES)
        gone = WEIGHED.ravel()[order[:count]].sum()
        for heard, curve in (
            (WEIGHED.sum() - gone, found.deletion),
            (gone, found.insertion),
        ):
            expected = 1 / (1 + np.exp(WEIGHED.sum() / 2 - heard))
            assert curve[step] == pytest.approx(expected, rel=1e-5)
    # Nothing silenced, and all heard, are the clip itself.
    assert found.deletion[0] == found.insertion[-1]
    areas = [
        sum(
            (a + b) / 2 * w
            for a, b, w in zip(c, c[1:], np.diff(found.share), strict=False)
        )
        for c in (found.deletion, found.insertion)
    ]
    assert (found.deletion_area, found.insertion_area) == pytest.approx(areas)


def test_heat_on_what_counts_is_the_best_there_is(rng):
    right, wrong = curves(WEIGHED), curves(~WEIGHED)
    by_chance = [
        curves(rng.permutation(ROWS * FRAMES).reshape(ROWS, FRAMES)) for _ in range(5)
    ]
    for other in by_chance:
        assert right.deletion_area < other.deletion_area < wrong.deletion_area
        assert right.insertion_area > other.insertion_area > wrong.insertion_area


def test_chunks_change_nothing(rng):
    heat = rng.normal(size=(ROWS, FRAMES))
    one, other = (curves(heat, steps=5, chunk_size=n) for n in (3, 16))
    np.testing.assert_allclose(one.deletion, other.deletion, atol=1e-6)
    np.testing.assert_allclose(one.insertion, other.insertion, atol=1e-6)


def test_every_spectrogram_is_looked_at_once():
    """Nothing silenced and all silenced are on both curves, whatever the heat."""
    looked = []

    def counted(params, spectrogram):
        jax.debug.callback(lambda one: looked.append(one), spectrogram)
        return forward(params, spectrogram)

    classifier = dataclasses.replace(CLASSIFIER, forward_fn=counted)
    found = faithfulness.curves(
        classifier, FRONT_END, CLIP, WEIGHED.astype(float), 1, steps=4, chunk_size=8
    )
    jax.effects_barrier()
    assert len(looked) == 1  # 5 of deletion, and 3 of insertion between its ends
    assert found.insertion[0] == found.deletion[-1]
    assert found.insertion[-1] == found.deletion[0]


# Cells of 4 by 4 pixels: 2 by 3 of them, and the last frame in none.
CELLS = schemes.Grid(
    map_shape=(2, 3), input_shape=(ROWS, FRAMES), cell=(ROWS / 2, (FRAMES - 1) / 3)
)


def weighed_at(row, column):
    """The network whose answer hangs on one cell, and the probabilities it gives."""
    mine = np.zeros((ROWS, FRAMES), bool)
    mine[4 * row : 4 * row + 4, 4 * column : 4 * column + 4] = True

    def forward(params, spectrogram):
        heard = (spectrogram > SILENCE + 1e-3) & jnp.asarray(mine)[None]
        count = jnp.sum(heard, axis=(1, 2)).astype(jnp.float32)
        logits = jnp.stack([jnp.zeros_like(count), count - 8], axis=1)
        return heard[:, :, :, None].astype(jnp.float32), logits

    return dataclasses.replace(CLASSIFIER, forward_fn=forward)


def steps_until_gone(classifier, heat, **options):
    """After how many of 13 steps of half a cell the whole cell is silent."""
    found = faithfulness.curves(
        classifier, FRONT_END, CLIP, np.asarray(heat, np.float32), 1, steps=13,
        **options,
    )  # fmt: skip
    return int(np.argmax(found.deletion < 1e-3))


@pytest.mark.parametrize("place", [(0, 0), (1, 2)])
def test_equal_heat_goes_in_an_order_that_says_nothing_of_where_it_lies(place):
    """A flat heat reaches the first cell as late as the last, over many keys."""
    classifier = weighed_at(*place)
    flat = np.zeros((ROWS, FRAMES))
    keys = [jax.random.key(n) for n in range(60)]
    gone = [steps_until_gone(classifier, flat, key=k, grid=CELLS) for k in keys]
    # Cells stay together, and pixels of none come last.
    assert set(gone) == {2, 4, 6, 8, 10, 12}
    assert np.mean(gone) == pytest.approx(7, abs=1.4)  # 3 standard errors
    assert [steps_until_gone(classifier, flat, key=k, grid=CELLS) for k in keys] == gone
    # Pixel by pixel, the last of a cell's 16 is near the end wherever the cell lies.
    scattered = [steps_until_gone(classifier, flat, key=k) for k in keys[:20]]
    assert len(set(scattered)) > 1
    assert 11 < np.mean(scattered) <= 13
    assert steps_until_gone(classifier, flat) == scattered[0]


def test_only_equal_heat_is_shuffled():
    """A cell above the zeros goes first, one below them last, whatever the key."""
    for value, steps in ((1, 2), (-1, 13)):
        heat = np.zeros((ROWS, FRAMES))
        heat[4:, 8:12] = value
        for n in range(5):
            key = jax.random.key(n)
            for grid in (None, CELLS):
                found = steps_until_gone(weighed_at(1, 2), heat, key=key, grid=grid)
                assert found == steps


def test_a_grid_of_another_spectrogram():
    grid = schemes.Grid.of((2, 3), (ROWS, FRAMES + 1))
    with pytest.raises(ValueError, match="grid must be of the spectrogram's shape"):
        curves(WEIGHED, grid=grid)


@pytest.mark.parametrize("heat", [np.zeros((2, 2)), np.full((ROWS, FRAMES), np.nan)])
def test_heat_that_cannot_work(heat):
    with pytest.raises(
        ValueError, match="heat must be finite and of the spectrogram's"
    ):
        curves(heat)
    with pytest.raises(ValueError, match="steps must be between 1 and"):
        curves(WEIGHED, steps=0)


GRID = schemes.Grid(map_shape=(2, 3), input_shape=(8, 13), cell=(4.0, 4.0))


@pytest.mark.parametrize("scheme", schemes.SCHEMES)
def test_the_hottest_region_is_the_one_that_the_scheme_locates(scheme, rng):
    maps = jnp.asarray(rng.normal(size=(2, 3, 5)), jnp.float32)
    transform = disentangle.from_generator(
        jnp.asarray(0.3 * rng.normal(size=(5, 5)), jnp.float32)
    )
    views = schemes.views(maps, keep_cells=True)
    heat = faithfulness.region_heat(transform, scheme, views, 2, GRID)
    location = schemes.locate(scheme, views, transform.matrix[2])
    region = np.asarray(GRID.mask(scheme, location)) > 0.5
    inside = np.zeros((8, 13), bool)
    inside[:8, :12] = True  # the last frame belongs to no cell
    hottest = heat == heat.max()
    np.testing.assert_array_equal(hottest & inside, region & inside)
    assert not heat[~inside].any()
    assert heat[inside].min() > 0


@pytest.mark.parametrize("scheme", schemes.SCHEMES)
def test_what_has_no_channels_has_its_regions_ranked_as_a_channel_has(scheme, rng):
    """By hand, from a value a cell; and as `region_heat` ranks a channel's map."""
    cells = rng.normal(size=(2, 3)).astype(np.float32)
    heat = faithfulness.region_heat_of_cells(scheme, cells, GRID)

    def ranked(values):
        return [1 - sum(o > v for o in values) / len(values) for v in values]

    of_columns = np.array(ranked(cells.mean(axis=0)))[None].repeat(2, axis=0)
    of_rows = np.array(ranked(cells.mean(axis=1)))[:, None].repeat(3, axis=1)
    expected = {
        "square": np.array(ranked(cells.ravel())).reshape(2, 3),
        "time": of_columns,
        "frequency": of_rows,
        "time_frequency": np.maximum(of_columns, of_rows),
    }[scheme]
    np.testing.assert_allclose(heat[2::4, 2:12:4], expected)

    maps = np.stack([rng.normal(size=(2, 3)), cells], axis=-1).astype(np.float32)
    views = schemes.views(jnp.asarray(maps), keep_cells=True)
    of_channel = faithfulness.region_heat(
        disentangle.identity(2), scheme, views, 1, GRID
    )
    np.testing.assert_array_equal(heat, of_channel)


@pytest.mark.parametrize("scheme", ["square", "time", "frequency"])
def test_regions_of_equal_value_are_equally_hot(scheme):
    """Zeros above all, which have no order of their own."""
    cells = np.zeros((2, 3), np.float32)
    cells[1, 2] = 1
    heat = faithfulness.region_heat_of_cells(scheme, cells, GRID)[2::4, 2:12:4]
    region = np.asarray(GRID.mask(scheme, jnp.array([1, 2])))[2::4, 2:12:4] > 0.5
    assert (heat[region] == 1).all()
    rows, columns = GRID.regions(scheme)
    np.testing.assert_allclose(heat[~region], 1 - 1 / (rows * columns))


def test_random_heat_is_an_order_of_the_cells():
    heats = [faithfulness.random_heat(jax.random.key(s), GRID) for s in (0, 0, 1)]
    np.testing.assert_array_equal(heats[0], heats[1])
    assert not np.array_equal(heats[0], heats[2])
    ranks = [0, *(n / 6 for n in range(1, 7))]
    assert sorted(set(heats[0].ravel())) == pytest.approx(ranks)
    assert (heats[0][:4, :4] == heats[0][0, 0]).all()


@pytest.mark.parametrize("scheme", schemes.SCHEMES)
def test_random_heat_has_the_regions_of_a_scheme(scheme):
    """As the heat by rank has them, which it stands beside."""
    heat = faithfulness.random_heat(jax.random.key(2), GRID, scheme)
    inside = heat > 0
    rows, columns = GRID.regions(scheme)
    for index, size in ((0, rows), (1, columns)):
        if scheme == "time_frequency":
            continue
        # Constant along an axis that is open.
        lines = np.moveaxis(heat * inside, index, 0)
        values = {tuple(line[line > 0]) for line in lines if line.any()}
        assert len(values) == size
    count = rows * columns if scheme != "time_frequency" else None
    if count:
        assert sorted(set(heat[inside])) == pytest.approx(
            [n / count for n in range(1, count + 1)]
        )
    else:
        of_rows, of_columns = GRID.map_shape
        assert heat.max() == 1
        wanted = {n / m for m in (of_rows, of_columns) for n in range(1, m + 1)}
        assert {round(v, 6) for v in set(heat[inside])} <= {round(v, 6) for v in wanted}


def test_p_of_pairs(rng):
    base = rng.normal(size=40)
    assert faithfulness.paired_p(base + 0.5, base) < 0.001
    assert faithfulness.paired_p(base, base + 0.5) > 0.99
    assert faithfulness.paired_p(base, base) == 1
    # Of 5 pairs all one way: 1 of the 32 ways to turn their signs.
    assert faithfulness.paired_p(np.arange(1.0, 6), np.zeros(5)) == pytest.approx(
        1 / 32
    )
