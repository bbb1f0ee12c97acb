"""Insertion and deletion of a network whose answer hangs on known pixels."""

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
