"""Table 1 of the paper in miniature: every vocoder trained on, resumed, written."""

import csv
import functools
import json
import pathlib

import pytest
import test_flow

from apex_jax import (
    audioprotopnet,
    checkpoint,
    disentangle,
    explain,
    fit,
    optimize,
    train,
)
from apex_jax.models import convnext
from experiments import demo_corpus, methods
from experiments.wavefake import corpus, options, table1, tables
from experiments.wavefake import run as wavefake_run

pytestmark = pytest.mark.slow

EERS = {"griffin_lim_long", "phase_jitter", "aeer"}


@pytest.fixture(scope="module", autouse=True)
def small():
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(convnext._SIZES, "atto", ((1,), (12,)))
        for config in (train.Config, audioprotopnet.Config):
            patch.setattr(config, "optimiser", functools.cache(config.optimiser))
        yield


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """Two vocoders; of a third too few sentences to train on."""
    root = tmp_path_factory.mktemp("corpus")
    demo_corpus.write(
        root,
        num_utterances=12,
        names=[*test_flow.TESTED, "lpc_vocoder"],
        only={"lpc_vocoder": [0]},
    )

    def run(output, **changes):
        settings = {
            "table": "1",
            "output_dir": output,
            "data_dir": root,
            "windows_per_file": 1,
            "batch_size": 8,
            "front_end": test_flow.FRONT_END,
            "train": train.Config(epochs=2, batch_size=8),
            "audioprotopnet": audioprotopnet.Config(epochs=2, batch_size=8),
            "optimise": optimize.Config(
                epochs=2, prototypes_start=3, prototypes_end=2, batch_size=16
            ),
        }
        return table1.main(options.Config(**settings | changes))

    return run


@pytest.fixture(scope="module")
def table(run, small, tmp_path_factory):
    """Its results, and its folder."""
    output = tmp_path_factory.mktemp("runs") / "table"
    return run(output), output


def test_every_vocoder_is_trained_on_and_tested(table):
    results, output = table
    eer = results["eer"]
    assert set(eer) == {*test_flow.TESTED, "lpc_vocoder"}
    assert eer["lpc_vocoder"] is None
    assert list(results["left_out"]) == ["lpc_vocoder"]
    assert "sentences for it have only" in results["left_out"]["lpc_vocoder"]
    for trained in test_flow.TESTED:
        assert set(eer[trained]) == set(methods.TITLES)
        for found in eer[trained].values():
            assert set(found) >= EERS
            assert all(0 <= found[name] <= 100 for name in EERS)
        # The method's promise.
        for name in EERS:
            assert eer[trained]["apex"][name] == pytest.approx(
                eer[trained]["classifier"][name], abs=1e-3
            )
        row = json.loads((output / trained / "results.json").read_text())
        assert row["invariance"]["changed_predictions"] == 0
        assert row["train_on"] == trained
    assert json.loads((output / "results.json").read_text()) == results
    assert results["skipped_files"] == 0
    assert (output / "skipped.csv").read_text().split() == ["path,reason"]


def test_classes_that_do_not_exclude_each_other(run, small, tmp_path):
    """The published recipe in miniature: asymmetric loss, augmented clips."""
    augment = options.AUGMENT
    results = run(
        tmp_path / "table",
        recipe="published",
        train=train.Config(epochs=2, batch_size=8, loss="asymmetric", augment=augment),
        audioprotopnet=audioprotopnet.Config(epochs=2, batch_size=8, augment=augment),
    )
    for trained in test_flow.TESTED:
        folder = tmp_path / "table" / trained / "classifier"
        assert checkpoint.load_classifier(folder)[1]["activation"] == "sigmoid"
        eer = results["eer"][trained]
        assert eer["apex"] == pytest.approx(eer["classifier"], abs=1e-3)
    # Given to be explained, it keeps what its classes are.
    explained = wavefake_run.main(
        options.Config(
            output_dir=tmp_path / "explained",
            data_dir=pathlib.Path(results["data_dir"]),
            train_on=test_flow.TESTED[0],
            weights=tmp_path / "table" / test_flow.TESTED[0] / "classifier",
            windows_per_file=1,
            mask_draws=2,
            examples=1,
            optimise=optimize.Config(epochs=2, prototypes_start=3, prototypes_end=2),
        )
    )
    found = explain.load(tmp_path / "explained")
    assert found.classifier.activation == "sigmoid"
    wanted = results["eer"][test_flow.TESTED[0]]["classifier"]
    for name in EERS:
        assert explained["eer"]["classifier"][name] == pytest.approx(
            wanted[name], abs=1e-3
        )


def test_the_files_hold_the_numbers(table):
    results, output = table
    with (output / "table1.csv").open(newline="") as file:
        lines = list(csv.DictReader(file))
    assert len(lines) == 3 * 3 * 4
    for line in lines:
        row = results["eer"][line["trained_on"]]
        value = None if row is None else row[line["method"]].get(line["tested_on"])
        assert line["eer_percent"] == ("" if value is None else str(value))
    for ending in ("md", "tex"):
        text = (output / f"table1.{ending}").read_text()
        for method in methods.TITLES:
            value = results["eer"]["phase_jitter"][method]["griffin_lim_long"]
            assert f"{value:.1f}" in text


def test_what_is_finished_is_not_done_again(table, run, capsys, monkeypatch):
    """A row that lacks its results takes networks and U from where they are."""
    results, output = table
    (output / "phase_jitter" / "results.json").unlink()

    def never(*arguments, **options):
        raise AssertionError("trained again")

    monkeypatch.setattr(train, "fit", never)
    monkeypatch.setattr(audioprotopnet, "fit", never)
    monkeypatch.setattr(fit, "explainer", never)
    again = run(output)
    said = capsys.readouterr().out
    assert "finished before" in said
    assert "learned before" in said
    for trained in test_flow.TESTED:
        for method in methods.TITLES:
            assert again["eer"][trained][method] == pytest.approx(
                results["eer"][trained][method], abs=1e-3
            )
    # Other settings are another table.
    with pytest.raises(ValueError, match="finished run of other settings"):
        run(output, seed=1)


def test_u_of_other_settings_is_learned_anew(table, tmp_path):
    """What was learned counts for the same network, clips, scheme and settings."""
    _, output = table
    learned = json.loads((output / "phase_jitter" / methods.LEARNED).read_text())
    other = json.loads((output / "griffin_lim_long" / methods.LEARNED).read_text())
    differs = {
        name
        for name, digest in learned["digests"].items()
        if other["digests"][name] != digest
    }
    assert differs == {"weights", "clips"}


def test_options_that_do_not_fit_the_copy(run, tmp_path):
    """Said at once, and not as a vocoder that is left out."""
    with pytest.raises(ValueError, match="must each be at least 1 and leave some"):
        run(tmp_path / "a", test_sentences=11)


def test_a_table_without_rows_is_an_error(run, tmp_path, monkeypatch):
    def refuses(*arguments, **options):
        raise corpus.TooFewError("only two sentences")

    monkeypatch.setattr(table1, "_row", refuses)
    with pytest.raises(ValueError, match="no row of the table could be made"):
        run(tmp_path / "b")


@pytest.mark.parametrize("changes", [{"train_on": "x"}, {"weights": "x"}])
def test_one_vocoder_is_no_table(changes, run, tmp_path):
    with pytest.raises(ValueError, match="the table trains on every vocoder"):
        run(tmp_path, **changes)


def test_as_text():
    """By hand: one cell of each kind."""
    eer = {
        "classifier": {"hifiGAN": 1.25, "waveglow": None, "aeer": 1.25},
        "audioprotopnet": {"hifiGAN": 0.5, "waveglow": None, "aeer": 0.5},
        "apex": {"hifiGAN": 1.25, "waveglow": None, "aeer": 1.25},
    }
    table = {"hifiGAN": eer, "waveglow": None}
    shown = tables.terminal(table)
    assert max(map(len, shown.splitlines())) <= 80
    assert "AudioProtoPNet" in shown
    assert " 1 hifiGAN               0.5     –    0.5    0.6" in shown
    assert " 2 waveglow                –     –      –   12.9" in shown
    assert tables.markdown(table).splitlines()[4] == (
        "| hifiGAN | 1.2 / 0.5 / 1.2 | – / – / – | 1.2 / 0.5 / 1.2 | 1.8 / 0.6 / 1.8 |"
    )
    latex = tables.latex({"full_band_melgan": None})
    assert r"full\_band\_melgan & -- / -- / -- &" in latex
    assert latex.count(r"\\") == 2
    lines = tables.as_csv(table).splitlines()
    assert "hifiGAN,apex,aeer,1.25,1.8" in lines
    assert "waveglow,classifier,hifiGAN,," in lines


def test_the_papers_means():
    """Seven vocoders; APEX changes no prediction."""
    assert len(tables.PAPER) == 7
    for known in tables.PAPER.values():
        assert known["apex"] == known["classifier"]


def test_a_network_that_learned_nothing_has_no_apex(table, run, monkeypatch, capsys):
    """The audit refuses it; what else is known of it is told, and the others go on."""
    results, output = table
    for name in ("", *test_flow.TESTED):
        (output / name / "results.json").unlink()
    real = methods.learn

    def refuses(stages, folder, key, problem, config, *arguments, **options):
        if config.train_on == test_flow.TESTED[0]:
            raise disentangle.UntrainedError("hardly tells these clips apart")
        return real(stages, folder, key, problem, config, *arguments, **options)

    monkeypatch.setattr(methods, "learn", refuses)
    again = run(output)
    first, second = test_flow.TESTED
    assert set(again["eer"][first]) == {"classifier", "audioprotopnet"}
    for method, found in again["eer"][first].items():
        assert found == pytest.approx(results["eer"][first][method], abs=1e-3)
    assert again["without_apex"] == {first: "hardly tells these clips apart"}
    assert again["eer"][second]["apex"] == pytest.approx(
        results["eer"][second]["apex"], abs=1e-3
    )
    said = " ".join(capsys.readouterr().out.split())
    assert "without APEX: hardly tells" in said
    assert "not trained on: lpc_vocoder" in said
    assert f"no APEX for {first}" in said
    lines = (output / "table1.md").read_text().splitlines()
    (line,) = (line for line in lines if line.startswith(f"| {first} | "))
    assert line.split(" | ")[1].endswith(" / –")
    # Finished like the others, and still without.
    (output / "results.json").unlink()
    assert run(output)["without_apex"] == again["without_apex"]
