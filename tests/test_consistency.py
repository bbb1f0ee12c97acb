"""How alike prototypes are, against pairs counted one by one."""

import itertools

import jax.numpy as jnp
import numpy as np
import pytest

from apex_jax import bank as bank_lib
from apex_jax import consistency, data, disentangle, schemes

N, F, T, C, TOP = 9, 4, 6, 3, 4


def bank_of(clip):
    shape = clip.shape
    return bank_lib.Bank(
        clip=clip,
        activation=jnp.zeros(shape),
        location=jnp.zeros((*shape, 2), jnp.int32),
        purity=jnp.zeros(shape),
        scheme="time",
        sign="positive",
    )


def clips_of(labels):
    return [data.Clip(path=f"{i}.wav", label=label) for i, label in enumerate(labels)]


def by_hand(transform, maps, clips, prototypes):
    matrix = np.asarray(transform.matrix, np.float64)
    found = {"same_class": [], "time": [], "frequency": []}
    for k, which in enumerate(prototypes):
        rows, columns = [], []
        for i in which:
            channel = maps[i] @ matrix[k]
            rows.append(channel.mean(axis=1))
            column = channel.mean(axis=0)
            columns.append(np.roll(column, T // 2 - column.argmax()))
        pairs = list(itertools.combinations(range(len(which)), 2))
        found["same_class"].append(
            np.mean(
                [
                    bool(set(clips[which[i]].labels) & set(clips[which[j]].labels))
                    for i, j in pairs
                ]
            )
        )
        for name, lines in (("time", columns), ("frequency", rows)):
            found[name].append(
                np.mean([np.corrcoef(lines[i], lines[j])[0, 1] for i, j in pairs])
            )
    return found


@pytest.mark.parametrize(
    "labels", [[0, 1, 2] * 3, [(0,), (0, 1), (), (2,), (1, 2)] * 2]
)
def test_every_pair_by_hand(labels, rng):
    clips = clips_of(labels[:N])
    maps = rng.normal(size=(N, F, T, C))
    transform = disentangle.from_generator(
        jnp.asarray(0.4 * rng.normal(size=(C, C)), jnp.float32)
    )
    prototypes = np.stack([rng.permutation(N)[:TOP] for _ in range(C)])
    views = schemes.views(jnp.asarray(maps, jnp.float32), keep_cells=False)
    found = consistency.measure(transform, bank_of(prototypes), views, clips)
    expected = by_hand(transform, maps, clips, prototypes)
    for name, values in expected.items():
        np.testing.assert_allclose(getattr(found, name), values, atol=1e-4)
    pairs = list(itertools.combinations(clips, 2))
    chance = np.mean([bool(set(a.labels) & set(b.labels)) for a, b in pairs])
    assert found.chance == pytest.approx(chance)


def test_a_channel_that_stands_for_one_thing_and_one_for_nothing(rng):
    """Channel 0: the same pattern of one class, at any time. Channel 1: noise."""
    maps = rng.normal(size=(N, F, T, C))
    labels = [0] * TOP + [1, 2, 3, 4, 5]
    pattern = np.outer([0, 5, 1, 0], [0, 1, 6, 2, 0, 0])
    for i in range(TOP):
        maps[i, :, :, 0] = np.roll(pattern, i, axis=1)
    prototypes = np.array([range(TOP), [0, 4, 5, 6], [5, 6, 7, 8]])
    views = schemes.views(jnp.asarray(maps, jnp.float32), keep_cells=False)
    found = consistency.measure(
        disentangle.identity(C), bank_of(prototypes), views, clips_of(labels)
    )
    assert found.same_class.tolist() == [1, 0, 0]
    assert found.time[0] == pytest.approx(1)
    assert found.frequency[0] == pytest.approx(1)
    assert abs(found.frequency[1]) < 0.9


def test_a_single_prototype_is_alike_to_none(rng):
    views = schemes.views(jnp.ones((2, F, T, C)), keep_cells=False)
    clips = clips_of([0, 1])
    found = consistency.measure(
        disentangle.identity(C), bank_of(np.zeros((C, 1), int)), views, clips
    )
    for values in (found.same_class, found.time, found.frequency):
        assert np.isnan(values).all()
    flat = consistency.measure(
        disentangle.identity(C), bank_of(np.array([[0, 1]] * C)), views, clips
    )
    np.testing.assert_array_equal(flat.time, np.zeros(C))
    with pytest.raises(ValueError, match=r"at least 2; got 2 and 1"):
        consistency.measure(
            disentangle.identity(C), bank_of(np.zeros((C, 1), int)), views, clips[:1]
        )


def test_clips_by_chance_are_of_the_class_that_they_stand_for(rng):
    labels = [0, 1, 2] * 8
    clips = clips_of(labels)
    prototypes = np.stack([rng.permutation(24)[:TOP] for _ in range(200)])
    bank = bank_of(prototypes)
    drawn = consistency.by_chance(bank, clips, same_class=True)
    of = np.array(labels)
    np.testing.assert_array_equal(of[drawn.clip], of[prototypes])
    any_clips = consistency.by_chance(bank, clips, same_class=False)
    for one, often in ((drawn, 1 / 8), (any_clips, 1 / 24)):
        # As many clips, all of them different, and the prototype as often as any.
        assert all(len(set(line)) == TOP for line in one.clip.tolist())
        assert (one.clip == prototypes).mean() == pytest.approx(often, abs=0.04)
        assert set(one.clip.ravel()) == set(range(24))
    same = (of[any_clips.clip] == of[prototypes]).mean()
    assert same == pytest.approx(1 / 3, abs=0.05)
    again = consistency.by_chance(bank, clips, same_class=True)
    np.testing.assert_array_equal(again.clip, drawn.clip)
    other = consistency.by_chance(bank, clips, same_class=True, seed=1)
    assert not np.array_equal(other.clip, drawn.clip)
    # All prototypes of one class: so are those that stand for them.
    of_one = bank_of(np.array([[0, 3, 6, 9]] * 4))
    drawn = consistency.by_chance(of_one, clips, same_class=True)
    maps = jnp.asarray(rng.normal(size=(24, F, T, 4)), jnp.float32)
    views = schemes.views(maps, keep_cells=False)
    found = consistency.measure(disentangle.identity(4), drawn, views, clips)
    assert found.same_class.tolist() == [1] * 4


def test_a_class_of_no_more_clips_than_a_channel_has():
    """All of them are drawn; and where one is asked for too often, it comes again."""
    clips = clips_of([0, 0, 0, 1, (), (0, 1)])
    drawn = consistency.by_chance(
        bank_of(np.array([[2, 0, 1, 5]] * 50)), clips, same_class=True
    ).clip
    # Of 5 both classes: 3 may take its place.
    assert {tuple(sorted(line)) for line in drawn.tolist()} <= {
        (0, 1, 2, 5), (0, 1, 3, 5), (0, 2, 3, 5), (1, 2, 3, 5), (0, 1, 2, 3),
    }  # fmt: skip
    assert {3, 5} <= set(drawn[:, 3])
    lonely = bank_of(np.array([[4, 4, 3, 3]]))
    drawn = consistency.by_chance(lonely, clips, same_class=True).clip
    assert drawn[0, :2].tolist() == [4, 4]  # no other clip is without a class
    assert sorted(drawn[0, 2:]) == [3, 5]


def test_clips_by_chance_look_alike_where_their_class_does(rng):
    """All clips of a class one pattern: by class as alike as can be, else not."""
    patterns = rng.normal(size=(3, F, T, C))
    labels = [0, 1, 2] * 4
    views = schemes.views(jnp.asarray(patterns[labels], jnp.float32), keep_cells=False)
    clips = clips_of(labels)
    bank = bank_of(np.array([[0, 3, 6, 9], [1, 4, 7, 10], [2, 5, 8, 11]]))
    found = [
        consistency.measure(
            disentangle.identity(C),
            consistency.by_chance(bank, clips, same_class=same_class),
            views,
            clips,
        )
        for same_class in (True, False)
    ]
    for kind in ("time", "frequency"):
        by_class, by_all = (getattr(one, kind) for one in found)
        np.testing.assert_allclose(by_class, 1, atol=1e-5)
        assert (by_all < 0.99).all()
