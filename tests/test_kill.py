"""A run killed at a random moment ends, when it goes on, as one that was left alone."""

import kill_program
import numpy as np
import pytest


@pytest.mark.slow
def test_killed_runs_lose_nothing(capsys):
    assert kill_program.main(kills=2, seed=7) == 2
    assert "2 of 2 ended" in capsys.readouterr().out


def test_the_same_is_the_same_to_the_bit():
    nan = np.array([np.nan, 1], np.float32)
    for one in (nan, 1, 1.0, float("nan"), "a", None, [1, {"a": nan}], b"x", True):
        assert kill_program.same(one, one)
        assert kill_program.same({"a": one}, {"a": one})
    assert kill_program.same(nan, nan.copy())
    for one, other in (
        (1, 1.0),
        (1, True),
        (0.0, -0.0),
        (nan, nan.astype(np.float64)),
        (nan, nan[None]),
        (np.zeros(2), -np.zeros(2)),
        ([1], [1, 2]),
        ([1], (1,)),
        ({"a": 1}, {"a": 1, "b": 2}),
        ({"a": [nan, 1]}, {"a": [nan, 2]}),
        (nan, None),
    ):
        assert not kill_program.same(one, other)
        assert not kill_program.same(other, one)
