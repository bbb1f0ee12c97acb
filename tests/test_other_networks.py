"""The page on other frameworks runs as printed."""

import pathlib
import re

import numpy as np
import pytest

PAGE = pathlib.Path(__file__).parent.parent / "docs" / "other-networks.md"


def test_the_example_runs(capsys):
    pytest.importorskip("torch", reason="the example is a PyTorch network's")
    blocks = re.findall(r"```python\n(.*?)```", PAGE.read_text(), flags=re.DOTALL)
    assert len(blocks) == 2
    names = {}
    for block in blocks:
        exec(compile(block, str(PAGE), "exec"), names)
    made, result = names["made"], names["result"]
    assert made.audit.changed_predictions == 0
    before, after = made.explainer.provenance.purity
    assert after > before
    assert result.class_names == ("call", "no call")
    assert result.channels[0].heatmap.shape == (64, 96)
    prototype = result.channels[0].prototypes[0]
    n = int(re.search(r"\d+", str(prototype.clip.path)).group())
    np.testing.assert_array_equal(prototype.spectrogram, names["spectrograms"][n])
    printed = capsys.readouterr().out.splitlines()
    assert re.fullmatch(r"purity -?\d\.\d\d -> \d\.\d\d", printed[0])
    assert len(printed) == 1 + len(result.channels)
