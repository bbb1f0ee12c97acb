"""Several seeds of one run: by hand, and what cannot be put together."""

import csv
import json

import numpy as np
import pytest

from experiments import seeds


@pytest.fixture
def folders(tmp_path):
    found = []
    for seed, eer in enumerate((1.0, 2.0, 6.0)):
        folder = tmp_path / f"seed{seed}"
        folder.mkdir()
        made = {"seed": seed, "model": "atto", "output_dir": str(folder)}
        (folder / "config.json").write_text(json.dumps(made))
        results = {
            "seed": seed,
            "eer": {"apex": {"aeer": eer}, "none": None if seed else 4.0},
            "purity": {"history": [1, 2], "after": 0.5},
            "seconds": {"train": 9.0 * seed},
            "fine": True,
        }
        (folder / "results.json").write_text(json.dumps(results))
        found.append(folder)
    return tuple(found)


def test_mean_and_spread(folders, tmp_path, capsys):
    output = tmp_path / "out"
    table = seeds.main(seeds.Config(runs=folders, output=output))
    assert set(table) == {"eer.apex.aeer", "purity.after"}
    values = [1.0, 2.0, 6.0]
    spread = np.sqrt(sum((v - 3) ** 2 for v in values) / 2)
    assert table["eer.apex.aeer"] == {
        "mean": 3.0,
        "spread": pytest.approx(spread),
        "runs": 3,
    }
    assert table["purity.after"]["spread"] == 0
    with (output / "seeds.csv").open(newline="") as file:
        (first, second) = csv.DictReader(file)
    assert first == {
        "what": "eer.apex.aeer",
        "mean": "3",
        "spread": f"{spread:.6g}",
        "runs": "3",
    }
    assert second["mean"] == "0.5"
    assert "| eer.apex.aeer | 3 |" in (output / "seeds.md").read_text()
    assert "2 numbers of 3 runs" in capsys.readouterr().out


def test_what_does_not_belong_together(folders, tmp_path):
    def refused(message, *runs):
        with pytest.raises(ValueError, match=message):
            seeds.main(seeds.Config(runs=runs, output=tmp_path / "out"))

    refused("two runs or more; got 1", folders[0])
    refused(r"own seed; got \[0, 0\]", folders[0], folders[0])
    other = json.loads((folders[1] / "config.json").read_text()) | {"model": "base"}
    (folders[1] / "config.json").write_text(json.dumps(other))
    refused("by more than its seed: model", *folders)
    (folders[2] / "results.json").unlink()
    refused("seed2 is no finished run", folders[0], folders[2])
    assert not (tmp_path / "out").exists()
