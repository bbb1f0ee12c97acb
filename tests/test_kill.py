"""A run killed at a random moment ends, when it goes on, as one that was left alone."""

import kill_program
import pytest


@pytest.mark.slow
def test_killed_runs_lose_nothing(capsys):
    assert kill_program.main(kills=2, seed=7) == 2
    assert "2 of 2 ended" in capsys.readouterr().out
