"""The whole WaveFake experiment in miniature: sound in, every file of a run out."""

import csv
import functools
import json
import math
import pathlib
import re

import numpy as np
import pytest

from apex_jax import audio, checkpoint, disentangle, explain, optimize, train
from apex_jax.models import convnext
from experiments import demo_corpus, vocoders
from experiments.wavefake import options
from experiments.wavefake import run as wavefake_run

# 24 rows x 32 frames; the network below has cells of 4 x 4 pixels.
FRONT_END = audio.FrontEnd(
    sample_rate=16000,
    clip_s=0.5,
    n_fft=512,
    hop_length=256,
    n_mels=24,
    mean=-30.0,
    std=17.0,
)
NUM_PROTOTYPES = 3
STAGES = ["corpus", "train", "features", "optimise", "evaluate", "masking", "figures"]
TESTED = ["griffin_lim_long", "phase_jitter"]


@pytest.fixture(scope="module", autouse=True)
def small_atto():
    """The published sizes need minutes to compile on eight virtual devices."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(convnext._SIZES, "atto", ((1,), (12,)))
        patch.setattr(
            train.Config, "optimiser", functools.cache(train.Config.optimiser)
        )
        yield


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """Runs the experiment on twelve sentences and two vocoders."""
    root = tmp_path_factory.mktemp("corpus")
    demo_corpus.write(root, num_utterances=12, names=TESTED)

    def run(output, **changes):
        settings = {
            "output_dir": output,
            "data_dir": root,
            "train_on": TESTED[0],
            "windows_per_file": 2,
            "mask_draws": 2,
            "examples": 1,
            "batch_size": 8,
            "front_end": FRONT_END,
            "train": train.Config(epochs=3, batch_size=16),
            "optimise": optimize.Config(
                epochs=4,
                prototypes_start=6,
                prototypes_end=NUM_PROTOTYPES,
                batch_size=16,
            ),
        }
        return wavefake_run.main(options.Config(**settings | changes))

    return run


@pytest.fixture(scope="module")
def first(tmp_path_factory, run, small_atto):
    """A run's results, and its folder."""
    output = tmp_path_factory.mktemp("runs") / "first"
    return run(output), output


def test_results(first):
    results, output = first
    assert json.loads((output / "results.json").read_text()) == results
    for name in ("classifier", "apex"):
        eer = results["eer"][name]
        assert sorted(eer) == sorted([*TESTED, "aeer"])
        assert all(0 <= value <= 100 for value in eer.values())
        mean = sum(eer[vocoder] for vocoder in TESTED) / len(TESTED)
        assert eer["aeer"] == pytest.approx(mean)
    assert results["eer"]["apex"] == pytest.approx(
        results["eer"]["classifier"], abs=1e-6
    )
    invariance = results["invariance"]
    assert invariance["changed_predictions"] == 0
    assert 0 < invariance["max_abs_logit_error"] < 1e-4
    assert 1 <= invariance["condition_number"] < 10
    purity = results["purity"]
    assert -1 <= purity["before"] < purity["after"] <= 1
    assert purity["round_purity"][0] == purity["before"]
    assert len(purity["epoch_purity"]) == 4
    masking = results["masking"]
    assert masking["none"] == pytest.approx(results["eer"]["classifier"], abs=1e-6)
    assert masking["random"]["draws"] == 2
    for part in (masking["apex"], masking["random"]["mean"], masking["random"]["std"]):
        assert sorted(part) == sorted([*TESTED, "aeer"])
        assert all(math.isfinite(value) for value in part.values())
    assert list(results["seconds"]) == STAGES
    assert all(value >= 0 for value in results["seconds"].values())
    assert list(results["compile_seconds"]) == STAGES
    assert {"python", "apex-jax", "jax", "flax", "numpy"} <= set(results["versions"])
    assert results["seed"] == 0
    assert results["device"] == "8 x cpu"
    assert results["scheme"] == "frequency"
    # 12 sentences: two to test on, two to validate on, two clips a file.
    assert results["corpus"]["skipped_files"] == 0
    assert results["corpus"]["clips"]["test"] == 2 * 2 * (1 + len(TESTED))
    assert set(results["corpus"]["vocoders"].values()) == {8}


def test_files(first):
    _, output = first
    config = json.loads((output / "config.json").read_text())
    assert config["front_end"]["n_mels"] == 24
    assert config["optimise"]["prototypes_end"] == NUM_PROTOTYPES
    assert config["output_dir"] == str(output)
    lines = (output / "classifier-training" / "epochs.jsonl").read_text().splitlines()
    assert [json.loads(line)["epoch"] for line in lines] == [1, 2, 3]
    assert (output / "skipped.csv").read_text().split() == ["path,reason"]
    figures = sorted((output / "explanations").glob("*.png"))
    assert [figure.stem for figure in figures] == ["0003_real"]
    for figure in (output / "purity.png", *figures):
        assert figure.read_bytes().startswith(b"\x89PNG")
    assert not list(output.rglob("*.tmp"))


def test_bank_as_a_table(first):
    results, output = first
    explainer = explain.load(output)
    with (output / "bank.csv").open() as file:
        rows = list(csv.DictReader(file))
    chan = 12
    assert len(rows) == 2 * chan * NUM_PROTOTYPES
    assert list(dict.fromkeys(row["sign"] for row in rows)) == ["positive", "negative"]
    for row in rows:
        bank = getattr(explainer, row["sign"])
        at = int(row["channel"]), int(row["rank"]) - 1
        clip = explainer.clips[int(bank.clip[at])]
        assert row["file"] == str(clip.path)
        assert float(row["offset_s"]) == pytest.approx(clip.offset_s, abs=1e-3)
        assert row["class"] == ("real", "fake")[clip.label]
        assert float(row["activation"]) == pytest.approx(
            float(bank.activation[at]), rel=1e-4
        )
        assert float(row["purity"]) == pytest.approx(float(bank.purity[at]), abs=1e-4)
        assert row["regions"].startswith("0.00-0.50 s, ")  # of rows: all the time
    after = np.mean([float(r["purity"]) for r in rows if r["sign"] == "positive"])
    assert results["purity"]["after"] == pytest.approx(after, abs=1e-3)


def test_a_finished_run_explains_a_clip(first):
    _, output = first
    explainer = explain.load(output)
    assert explainer.front_end == FRONT_END
    result = explainer(explainer.clips[0].path, target="fake")
    assert result.class_name == "fake"
    assert len(result.channels) == 4
    assert len(result.channels[0].prototypes) == NUM_PROTOTYPES
    assert result.spectrogram.shape == FRONT_END.shape == (24, 32)


def without_times(results):
    timed = ("seconds", "compile_seconds")
    return {name: value for name, value in results.items() if name not in timed}


@pytest.mark.slow
def test_same_seed_same_numbers(first, run, tmp_path, capsys):
    """In another folder, from nothing: training and all the rest."""
    results, _ = first
    again = run(tmp_path / "again")
    assert without_times(again) == without_times(results)
    shown = capsys.readouterr().out
    assert "only 12 sentences" in shown
    assert "absent from" in shown
    table = shown[shown.index("EER in %") :].splitlines()
    assert any(line.startswith("griffin_lim_long             8 ") for line in table)
    assert max(map(len, table[:-1])) <= 80


@pytest.mark.parametrize(
    "scheme",
    [
        "square",
        pytest.param("time", marks=pytest.mark.slow),
        pytest.param("time-frequency", marks=pytest.mark.slow),
    ],
)
def test_every_scheme_explains_the_saved_classifier(scheme, first, run):
    """`--weights` trains nothing, and says of it what the first run said."""
    trained, output = first
    results = run(
        output.parent / scheme,
        scheme=scheme,
        weights=output / "classifier",
        front_end=audio.FrontEnd(sample_rate=8000, clip_s=1.0),  # comes with weights
        seed=3,
    )
    assert results["scheme"] == scheme.replace("-", "_")
    assert "train" not in results["seconds"]
    assert results["eer"]["classifier"] == pytest.approx(
        trained["eer"]["classifier"], abs=1e-6
    )
    assert results["eer"]["apex"] == pytest.approx(trained["eer"]["apex"], abs=1e-6)
    assert results["purity"]["after"] > results["purity"]["before"]
    assert explain.load(output.parent / scheme).scheme == results["scheme"]


@pytest.mark.slow
def test_a_second_run_in_the_same_folder_uses_the_features(first, run, capsys):
    """The classifier read back is the one that was trained, to the last bit."""
    trained, output = first
    with pytest.raises(ValueError, match="finished run of other settings"):
        run(output, weights=output / "classifier")
    assert (output / "results.json").exists()
    results = run(output, weights=output / "classifier", overwrite=True)
    assert "making it anew" not in capsys.readouterr().out
    assert results["eer"] == trained["eer"]


@pytest.mark.slow
def test_the_demo_and_the_example_of_the_readme(run, tmp_path, monkeypatch, capsys):
    """Without data the demo corpus is made; the README's lines explain a clip of it."""
    monkeypatch.chdir(tmp_path)
    results = run(
        None, data_dir=None, train_on=None, demo_utterances=12, windows_per_file=1
    )
    assert list(results["corpus"]["vocoders"]) == sorted(vocoders.VOCODERS)
    readme = pathlib.Path(__file__).parents[1] / "README.md"
    (example,) = re.findall(r"```python\n(.*?)```", readme.read_text(), re.DOTALL)
    assert len([line for line in example.splitlines() if line.strip()]) <= 12
    capsys.readouterr()
    exec(example, {})
    shown = capsys.readouterr().out
    assert re.match(r"(real|fake), logits \[", shown)
    regions = re.findall(r"in this clip: (0.00-0.50 s, \d+-\d+ Hz|no region)", shown)
    assert len(regions) == 3
    assert set(regions) != {"no region"}


@pytest.mark.slow
def test_weights_keep_their_classes(first, run, tmp_path):
    """A network whose classes stand the other way round is turned, others refused."""
    trained, output = first
    model, metadata = checkpoint.load_classifier(output / "classifier")
    arrays = convnext.named_arrays(model)
    for name in ("head.kernel", "head.bias"):
        arrays[name] = arrays[name][..., ::-1]
    turned = convnext.from_named_arrays(model.config, arrays)
    front_end = metadata["front_end"]
    for names in (("fake", "real"), ("cat", "dog")):
        checkpoint.save_classifier(
            tmp_path / names[0], turned, class_names=names, front_end=front_end
        )
    results = run(tmp_path / "run", weights=tmp_path / "fake")
    assert results["eer"]["classifier"] == pytest.approx(trained["eer"]["classifier"])
    with pytest.raises(ValueError, match=r"cat, dog.*needs real and fake"):
        run(tmp_path / "other", weights=tmp_path / "cat")


def test_a_classifier_outlives_a_fit_that_fails(run, tmp_path):
    """Training takes longest: what it made is there whatever comes after."""
    wild = optimize.Config(
        epochs=4, learning_rate=30.0, prototypes_start=6, prototypes_end=3
    )
    with pytest.raises(disentangle.InvarianceError):
        run(tmp_path, optimise=wild)
    checkpoint.load_classifier(tmp_path / "classifier")
    assert not (tmp_path / "results.json").exists()
