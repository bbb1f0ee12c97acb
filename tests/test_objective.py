"""Losses in plain Python, targets, labels that cannot be."""

import math

import jax.numpy as jnp
import numpy as np
import pytest

from apex_jax import data, objective


def test_cross_entropy_by_hand(rng):
    logits = rng.normal(size=(5, 3)).astype(np.float32)
    label, valid = np.array([0, 2, 1, 1, 0]), np.array([1, 0, 1, 1, 0], bool)
    losses = [
        math.log(sum(math.exp(x) for x in row)) - row[c]
        for row, c, counts in zip(logits, label, valid, strict=True)
        if counts
    ]
    target = np.eye(3, dtype=np.float32)[label]
    loss = objective.cross_entropy(*map(jnp.asarray, (logits, target, valid)))
    assert float(loss) == pytest.approx(sum(losses) / 3, rel=1e-5)
    none = jnp.zeros(5, bool)
    assert (
        float(objective.cross_entropy(*map(jnp.asarray, (logits, target, none)))) == 0
    )


def test_binary_cross_entropy_by_hand(rng):
    """Each class of each clip for itself; a clip of no class says no to all."""
    logits = rng.normal(size=(4, 3)).astype(np.float32)
    target = np.array([[1, 0, 1], [0, 0, 0], [1, 1, 1], [0, 1, 0]], np.float32)
    valid = np.array([1, 1, 0, 1], bool)
    total = 0.0
    for n in np.flatnonzero(valid):
        for c in range(3):
            probability = 1 / (1 + math.exp(-logits[n, c]))
            total -= math.log(probability if target[n, c] else 1 - probability)
    loss = objective.cross_entropy(
        *map(jnp.asarray, (logits, target, valid)), "sigmoid"
    )
    assert float(loss) == pytest.approx(total / 9, rel=1e-5)


def test_targets():
    clips = [
        data.Clip(path=f"{n}", label=label) for n, label in enumerate([2, (), (0, 2)])
    ]
    assert objective.targets(clips, 4).tolist() == [
        [0, 0, 1, 0],
        [0, 0, 0, 0],
        [1, 0, 1, 0],
    ]


@pytest.mark.parametrize(
    ("label", "activation", "message"),
    [
        ((0, 1), "softmax", "a.wav@0.000 has 2 classes; with activation 'softmax'"),
        ((), "softmax", "0 classes"),
        (3, "softmax", "label 3; labels count from 0 to 2"),
        (-1, "softmax", "label -1"),
        ((0, 3), "sigmoid", "label (0, 3)"),
    ],
)
def test_labels_that_cannot_be(label, activation, message):
    clip = data.Clip(path="a.wav", label=label)
    with pytest.raises(ValueError) as error:
        objective.check_labels([clip], 3, activation)
    assert message in str(error.value)
    for fine in (data.Clip(path="a.wav", label=2), data.Clip(path="a.wav", label=(2,))):
        objective.check_labels([fine], 3, activation)
