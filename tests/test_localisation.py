"""The localisation experiment from sounds to tables, merged and tuned."""

import dataclasses
import gzip
import json

import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from apex_jax import checkpoint, disentangle, schemes
from apex_jax.models import convnext
from experiments import methods
from experiments.localisation import (
    merge,
    options,
    run,
    scoring,
    tables,
    tuning,
)


def _check_scores(scores):
    """Of what is kept of a seed: every hit can be found again from places and boxes."""
    boxes = np.array([clip["box"] for clip in scores["explained"]])
    assert len(boxes) == scores["clips"] > 0
    assert all(0.5 < clip["probability"] <= 1 for clip in scores["explained"])
    grid = schemes.Grid(
        map_shape=tuple(scores["grid"]["map_shape"]),
        input_shape=tuple(scores["grid"]["input_shape"]),
        cell=tuple(scores["grid"]["cell"]),
    )
    for row in scores["rows"]:
        if row["method"] == "random":
            continue
        where = np.array(row["locations"]), np.array(row["there"])
        again = scoring.scored(grid, row["scheme"], where, boxes[: len(where[0])])
        for name, values in again.items():
            np.testing.assert_allclose(row["scores"][name], values, atol=1e-6)
    assert {row["scheme"] for row in scores["rows"] if row["method"] == "paper"} == set(
        schemes.SCHEMES
    )
    # What is shown of it nowhere else is learned under the scheme that fits alone.
    assert {r["scheme"] for r in scores["rows"] if r["method"] == "whitened"} == {
        "square"
    }
    for row in scores["learned"]:
        assert row["audited_clips"] == 6 + 4  # of training and of test
        assert row["changed_predictions"] == 0
    assert [row["variant"] for row in scores["again"]] == ["paper"]
    assert scores["settings"]["clips"] == [8, 2, 4]
    assert "output_dir" not in scores["settings"]
    assert "jax" in scores["versions"]


@pytest.mark.slow
def test_the_experiment_from_babble_to_tables(tmp_path, capsys, monkeypatch):
    """With a network that was not trained, and says planted of every clip."""

    def untrained(folder, problem, config, patch_size):
        shape = convnext.ConvNeXtConfig(
            depths=(1, 1, 1, 1),
            dims=(8, 8, 12, 16),
            num_classes=2,
            patch_size=patch_size,
            layer_scale_init=1.0,
        )
        model = convnext.ConvNeXt(shape, rngs=nnx.Rngs(0))
        model.head.bias = nnx.Param(jnp.array([0.0, 9.0]))
        checkpoint.save_classifier(
            folder, model, activation=problem.activation, **methods._about(problem)
        )
        return model

    monkeypatch.setattr(methods, "train_convnext", untrained)
    config = options.Config(
        events=("burst",),
        clips=(8, 2, 4),
        explain_clips=6,
        seeds=1,
        variants=("paper", "whitened"),
        lime_clips=1,
        lime_samples=8,
        faithful_clips=1,
        curve_steps=2,
        stable_clips=1,
        output_dir=tmp_path / "run",
        optimise=dataclasses.replace(
            options.Config().optimise, epochs=2, prototypes_start=2, prototypes_end=1
        ),
    )
    results = run.main(config)
    scores = json.loads((tmp_path / "run/burst/seed0/scores.json").read_text())
    _check_scores(scores)
    rows = results["events"]["burst"]["rows"]
    assert {row["method"] for row in rows} == {
        "random", "always the same", "CAM", "Grad-CAM", "all channels",
        "all channels, random weights", "loudest region", "most unusual region",
        "raw channels", "paper",
        "whitened", "LIME", "LIME, usual sound",
    }  # fmt: skip
    assert "### burst: square scheme" in (tmp_path / "run/localisation.md").read_text()
    capsys.readouterr()
    again = run.main(config)
    assert "finished before" in capsys.readouterr().out
    assert again["events"] == results["events"]
    pictures = "burst/consistency.png", "burst/curves.png", "burst/seed0/regions.png"
    for picture in pictures:
        assert (tmp_path / "run" / picture).stat().st_size > 10_000

    scores = tmp_path / "burst-0.json.gz"
    content = (tmp_path / "run/burst/seed0/scores.json").read_bytes()
    scores.write_bytes(gzip.compress(content))
    merged = merge.main(merge.Config(scores=(scores,), output=tmp_path / "merged"))
    assert merged["events"] == results["events"]
    assert (tmp_path / "merged/burst/curves.png").exists()
    assert (tmp_path / "merged/localisation.md").read_text() == (
        tmp_path / "run/localisation.md"
    ).read_text()

    changes = {"as it is": {}, "another": {"algorithm": "muon"}}
    monkeypatch.setattr(tuning, "CHANGES", {"optimiser": changes})
    seed = tmp_path / "run" / "burst" / "seed0"
    tuned = tuning.main(tuning.Config(run=seed, optimise=config.optimise))
    assert [row["name"] for row in tuned["settings"]] == list(changes)
    for row in tuned["settings"]:
        assert len(row["seconds"]) == 2
        assert len(row["round_epochs"]) == len(row["round_purity"])
    # The same way to learn U as the experiment's own.
    own = next(
        row
        for row in results["events"]["burst"]["rows"]
        if (row["method"], row["scheme"], row.get("locate"))
        == ("paper", "square", "occlusion")
    )
    assert tuned["settings"][0]["hit"] == pytest.approx(own["scores"]["both"][0])
    assert "| as it is |" in (seed / "optimiser.md").read_text()
    assert (seed / "optimiser.png").stat().st_size > 10_000
    with pytest.raises(ValueError, match="no finished folder of an event"):
        tuning.main(tuning.Config(run=tmp_path))


def test_a_network_that_learned_nothing_does_not_stop_the_others(tmp_path, monkeypatch):
    """It is named in the tables; of nothing else there are none."""

    def one(config, folder, event, seed, mesh):
        if seed in untrained:
            raise disentangle.UntrainedError(f"seed {seed} tells nothing apart")
        return {"seed": seed}

    monkeypatch.setattr(run, "_one", one)
    monkeypatch.setattr(run.summary, "of", lambda parts: [p["seed"] for p in parts])
    monkeypatch.setattr(run.pictures, "of_seeds", lambda *_: None)
    monkeypatch.setattr(run.results_lib, "write", lambda *_: None)
    monkeypatch.setattr(run.tables, "terminal", lambda _: "")
    config = options.Config(
        events=("click",), seeds=3, lime_clips=0, output_dir=tmp_path
    )
    untrained = {1}
    found = run.main(config)
    assert found["events"] == {"click": [0, 2]}
    (left_out,) = found["left_out"]
    assert (left_out["event"], left_out["seed"]) == ("click", 1)
    told = tables.markdown({"events": {}, "left_out": [left_out]})
    assert told == "**click, seed 1, is left out:** seed 1 tells nothing apart\n"
    untrained = {0, 1, 2}
    with pytest.raises(ValueError, match="no network learned"):
        run.main(dataclasses.replace(config, overwrite=True))


def test_what_cannot_be_merged(tmp_path):
    def scores(name, **changes):
        part = {"made_from": {"version": 2}, "event": "click", "seed": 0, "rows": [],
                "settings": {"seed": 0, "clips": [1, 2, 3]}}  # fmt: skip
        (tmp_path / name).write_text(json.dumps(part | changes))
        return tmp_path / name

    def refused(message, *files):
        with pytest.raises(ValueError, match=message):
            merge.main(merge.Config(scores=files, output=tmp_path / "out"))

    one = scores("one.json")
    refused("at least one")
    refused("click has a seed twice", one, scores("again.json"))
    refused(
        "measured in different ways",
        one,
        scores("older.json", seed=1, made_from={"version": 1}),
    )
    other = {"settings": {"seed": 1, "clips": [4, 2, 3]}}
    refused(
        "different settings: clips of click, seed 1",
        one,
        scores("more.json", seed=1, **other),
    )
    (tmp_path / "other.json").write_text("{}")
    refused(r"other\.json is no scores\.json", tmp_path / "other.json")
    (tmp_path / "cut.json.gz").write_bytes(gzip.compress(b"{}")[:12])
    refused(r"cut\.json\.gz is no scores\.json", tmp_path / "cut.json.gz")


def test_what_cannot_work():
    with pytest.raises(ValueError, match="--events sound takes --sounds DIR"):
        options.Config(events=("sound",)).check()
    with pytest.raises(ValueError, match="--clips must be at least 2 each"):
        options.Config(clips=(6, 1, 4)).check()
