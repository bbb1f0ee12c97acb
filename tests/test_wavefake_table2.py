"""Table 2 of the paper in miniature: one classifier, four schemes, resumed, written."""

import csv
import json

import pytest
import test_flow
import test_wavefake_table1

from experiments.wavefake import run as wavefake_run
from experiments.wavefake import table2, tables

run_table1, small = test_wavefake_table1.run, test_wavefake_table1.small
pytestmark = pytest.mark.slow

SCHEMES = ["square", "time", "frequency", "time_frequency"]


@pytest.fixture(scope="module")
def run(run_table1):
    def run(output, **changes):
        settings = {"table": "2", "train_on": test_flow.TESTED[0], "mask_draws": 3}
        with pytest.MonkeyPatch.context() as patch:
            # The other table's way of making its options.
            patch.setattr(test_wavefake_table1.table1, "main", table2.main)
            return run_table1(output, **settings, examples=0, **changes)

    return run


@pytest.fixture(scope="module")
def table(run, small, tmp_path_factory):
    """Its results, and its folder."""
    output = tmp_path_factory.mktemp("runs") / "table"
    return run(output), output


def test_four_schemes_explain_one_classifier(table):
    results, output = table
    assert list(results["aeer"]) == SCHEMES
    assert results["train_on"] == test_flow.TESTED[0]
    assert (output / "square" / "classifier-training").exists()
    assert not (output / "time" / "classifier-training").exists()
    for scheme in SCHEMES:
        row = json.loads((output / scheme / "results.json").read_text())
        assert row["scheme"] == scheme
        assert row["masking"]["none"]["aeer"] == pytest.approx(results["none"])
        found = results["aeer"][scheme]
        assert found["apex"] == row["masking"]["apex"]["aeer"]
        assert found["random"]["mean"] == row["masking"]["random"]["mean"]["aeer"]
        assert 1 / 1001 <= found["p"] <= 1


def test_the_files_hold_the_numbers(table):
    results, output = table
    with (output / "table2.csv").open(newline="") as file:
        lines = list(csv.reader(file))
    assert len(lines) == 2 + 2 * len(SCHEMES)
    value = results["aeer"]["frequency"]["apex"]
    (line,) = [line for line in lines if line[0] == "frequency, APEX"]
    assert line[1] == f"{value:.1f}"
    assert line[4] == "–"  # the paper's are of HiFi-GAN
    known = tables.masked_rows(results | {"train_on": "hifiGAN"})
    assert [row[4] for row in known if row[0] == "frequency, APEX"] == ["3.4"]
    shown = tables.masked_terminal(results)
    assert max(map(len, shown.splitlines())) <= 80
    for ending in ("md", "tex"):
        assert f"{value:.1f}" in (output / f"table2.{ending}").read_text()


def test_what_is_finished_is_not_done_again(table, run, monkeypatch, capsys):
    results, output = table
    (output / "results.json").unlink()

    def never(config):
        raise AssertionError("run again")

    monkeypatch.setattr(wavefake_run, "main", never)
    again = run(output)
    assert capsys.readouterr().out.count("finished before") == len(SCHEMES)
    assert again["aeer"] == results["aeer"]
