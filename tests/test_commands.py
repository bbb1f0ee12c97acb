"""The commands one after another on tones: train, fit, explain, evaluate.

A folder of three classes, and a manifest where a clip has several of them or none.
"""

import functools
import json
import shutil

import numpy as np
import pytest
import soundfile

from apex_jax import archive, checkpoint, cli, data, dataset, train
from apex_jax.models import convnext

RATE, SECONDS = 8000, 0.5
SEED = 3  # of the split: not the default, so that who forgets it is found out
TONES = {"high": 2800, "low": 300, "middle": 1100}
# Small in every way; 24 rows x 32 frames make maps of 6 x 8 cells.
FRONT_END = [
    *("--front-end.n-fft", "256", "--front-end.hop-length", "128"),
    *("--front-end.n-mels", "24"),
]
TRAIN = [
    *("--train.epochs", "12", "--train.batch-size", "8"),
    *("--train.learning-rate", "1e-2"),
    *FRONT_END,
]
FIT = [
    *("--optimise.epochs", "2", "--optimise.prototypes-start", "3"),
    *("--optimise.prototypes-end", "2", "--optimise.batch-size", "16"),
    *("--batch-size", "8"),
]


@pytest.fixture(scope="module", autouse=True)
def small():
    """The published sizes need minutes to compile on eight virtual devices."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(convnext._SIZES, "atto", ((1,), (12,)))
        patch.setattr(
            train.Config, "optimiser", functools.cache(train.Config.optimiser)
        )
        patch.setenv("COLUMNS", "80")
        yield


def tone(rng, *names, seconds=SECONDS):
    time = np.arange(round(seconds * RATE)) / RATE
    tones = [np.sin(2 * np.pi * TONES[name] * time) for name in names]
    return 0.3 * sum(tones, np.zeros_like(time)) + rng.normal(0, 0.02, len(time))


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    """`sounds/CLASS/*.wav`, a long recording, and a file that is no sound."""
    root = tmp_path_factory.mktemp("commands")
    rng = np.random.default_rng(0)
    for name in TONES:
        (root / "sounds" / name).mkdir(parents=True)
        for n in range(10):
            path = root / "sounds" / name / f"{name}{n}.wav"
            soundfile.write(path, tone(rng, name), RATE)
    (root / "sounds" / "low" / "broken.wav").write_text("no sound")
    long = np.concatenate([tone(rng, name) for name in ("low", "high", "low", "high")])
    soundfile.write(root / "long.wav", long, RATE)
    return root


def run(*arguments):
    assert cli.main([str(a) for a in arguments]) == 0


@pytest.fixture(scope="module")
def trained(root):
    run("train", "--data", root / "sounds", "--out", root / "classifier", *TRAIN,
        "--split.seed", SEED)  # fmt: skip
    return root / "classifier"


@pytest.fixture(scope="module")
def fitted(root, trained):
    for scheme in ("frequency", "square"):
        run("fit", "--weights", trained, "--out", root / scheme, "--scheme", scheme,
            *FIT)  # fmt: skip
    return root / "frequency"


def fails(capsys, *arguments):
    """The one line that a failing command says."""
    assert cli.main([str(a) for a in arguments]) == 1
    err = capsys.readouterr().err.splitlines()
    return err[-1]


# train


def test_train(root, trained):
    results = json.loads((trained / "results.json").read_text())
    assert results["class_names"] == ["high", "low", "middle"]
    assert results["skipped_files"] == 1
    assert sum(results["clips"].values()) == 31
    scores = results["scores"]
    assert list(scores) == ["validation", "test"]
    assert scores["test"]["accuracy"] == scores["test"]["cmap"] == 1
    _, metadata = checkpoint.load_classifier(trained / "classifier")
    front_end = metadata["front_end"]
    assert (front_end["sample_rate"], front_end["clip_s"]) == (RATE, SECONDS)
    assert (front_end["n_mels"], front_end["hop_length"]) == (24, 128)
    assert -80 < front_end["mean"] < 0 < front_end["std"]
    assert metadata["activation"] == "softmax"
    config = json.loads((trained / "config.json").read_text())
    assert config["data"] == str(root / "sounds")
    assert config["split"] == {"validation": 0.2, "test": 0.2, "seed": SEED}
    assert len(json.loads((trained / "training.json").read_text())) == 12
    assert "broken.wav" in (trained / "skipped.csv").read_text()


def test_train_refuses(root, trained, capsys):
    sounds, out = root / "sounds", root / "refused"
    assert "is not there" in fails(
        capsys, "train", "--data", root / "none", "--out", out
    )
    assert "finished run of other settings" in fails(
        capsys, "train", "--data", sounds, "--out", trained, *TRAIN, "--seed", "1"
    )
    assert "broken.wav: not readable" in fails(
        capsys, "train", "--data", sounds, "--out", out, *TRAIN, "--strict"
    )
    assert "--seed must be at least 0" in fails(
        capsys, "train", "--data", sounds, "--out", out, "--seed", "-1"
    )
    assert "training needs clips to train on and to validate on" in fails(
        capsys, "train", "--data", sounds, "--out", out, "--split.validation", "0"
    )
    one = root / "one"
    shutil.copytree(sounds / "high", one / "high")
    assert "one class, high; a classifier needs two" in fails(
        capsys, "train", "--data", one, "--out", out
    )
    assert "a ConvNeXt needs 4 of each" in fails(
        capsys, "train", "--data", sounds, "--out", out, "--front-end.n-mels", "2"
    )


def test_clips_with_offsets_are_not_cropped_at_random(root, capsys, monkeypatch):
    seen = []

    def fit(model, clips, *_, config, **__):
        seen.append(config.random_crop)
        return model, [train.Epoch(epoch=1, train_loss=1.0, validation_loss=1.0,
                                   validation_accuracy=1.0)]  # fmt: skip

    monkeypatch.setattr(train, "fit", fit)
    rows = [f"{name}/{name}{n}.wav,{name},0.{n % 2}\n"
            for name in TONES for n in range(10)]  # fmt: skip
    manifest = root / "sounds" / "offsets.csv"
    manifest.write_text("path,label,offset_s\n" + "".join(rows))
    run("train", "--data", manifest, "--out", root / "offsets", *TRAIN)
    manifest.unlink()
    assert seen == [False]
    assert "the manifest says where clips start" in capsys.readouterr().out
    config = json.loads((root / "offsets" / "config.json").read_text())
    assert config["train"]["random_crop"] is False


def test_missing_options_are_usage_errors(capsys):
    with pytest.raises(SystemExit) as ended:
        cli.main(["train", "--out", "x"])
    assert ended.value.code == 2
    assert "--data" in capsys.readouterr().err


# fit


def test_fit(root, trained, fitted):
    results = json.loads((fitted / "results.json").read_text())
    counts = json.loads((trained / "results.json").read_text())["clips"]
    assert sum(counts.values()) - sum(results["clips"].values()) == 1  # the broken one
    assert set(results["invariance"]) == {"train", "validation", "test"}
    for audit in results["invariance"].values():
        assert audit["changed_predictions"] == 0
    assert -1 <= results["purity"]["before"] <= 1
    assert len(results["purity"]["epoch_purity"]) == 2
    assert (fitted / "purity.png").stat().st_size > 1000
    assert (fitted / "bank.csv").read_text().count("positive") == 12 * 2
    config = json.loads((fitted / "config.json").read_text())
    assert config["data"] == str(root / "sounds")  # what it was trained on
    assert config["weights"] == str(trained / "classifier")
    assert config["split"] == {"validation": 0.2, "test": 0.2, "seed": SEED}


def test_prototypes_are_training_clips_of_the_classifier(root, trained, fitted):
    """The split of the training is the split of the fit: nothing tested is shown."""
    log = data.SkipLog()
    shares = dataset.Shares(seed=SEED)
    splits = dataset.read(root / "sounds", shares=shares, skip_log=log).clips
    held_out = {str(clip.path) for clip in (*splits.validation, *splits.test)}
    lines = (fitted / "bank.csv").read_text().splitlines()[1:]
    assert not held_out & {line.split(",")[3] for line in lines}


def test_fit_refuses(root, trained, fitted, capsys):
    out = ("--out", root / "refused")
    assert "apex-jax train makes one" in fails(
        capsys, "fit", "--data", root / "sounds", *out
    )
    assert "no checkpoint at" in fails(capsys, "fit", "--weights", root / "no", *out)
    assert "is no apex_jax checkpoint" in fails(
        capsys, "fit", "--weights", root / "sounds", *out
    )
    assert "name another folder" in fails(
        capsys, "fit", "--weights", trained, "--out", trained
    )
    assert "brings its own front end; leave out --front-end for n_fft" in fails(
        capsys, "fit", "--weights", trained, *out, "--front-end.n-fft", "512"
    )
    assert "--windows-per-file must be at least 1" in fails(
        capsys, "fit", "--weights", trained, *out, "--windows-per-file", "0"
    )
    other = root / "other"
    shutil.copytree(root / "sounds" / "high", other / "wren")
    assert "lacks: wren. It has wren; the classifier has high, low, middle" in fails(
        capsys, "fit", "--weights", trained, "--data", other, *out
    )


def test_a_network_without_a_front_end(root, trained, capsys):
    model, metadata = checkpoint.load_classifier(trained / "classifier")
    bare = root / "bare"
    checkpoint.save_classifier(bare, model, class_names=metadata["class_names"])
    asked = ("fit", "--weights", bare, "--out", root / "from-bare", *FIT)
    assert "does not say what it was trained on" in fails(
        capsys, *asked, "--front-end.sample-rate", "8000", "--front-end.clip-s", "0.5"
    )
    asked = (*asked, "--data", root / "sounds")
    assert "--front-end.file FILE.json" in fails(capsys, *asked)
    assert "clip_s" in fails(capsys, *asked, "--front-end.sample-rate", "8000")
    file = root / "front_end.json"
    file.write_text(json.dumps(metadata["front_end"]))
    run(*asked, "--front-end.file", file)
    assert "nothing says which of these clips" in " ".join(
        capsys.readouterr().out.split()
    )


# explain


def test_explain(root, fitted, capsys):
    page, kept = root / "page.html", root / "kept"
    clips = [root / "sounds" / "high" / f"high{n}.wav" for n in (0, 1)]
    run("explain", *clips, root / "sounds" / "low", "--run", fitted,
        "--run", root / "square", "--num-channels", "2", "--num-prototypes", "1",
        "--num-negatives", "1", "--out", page, "--save", kept)  # fmt: skip
    out = capsys.readouterr().out
    assert "high0.wav\n  0.0-0.5 s  high" in out
    assert "[square]" in out
    assert "[frequency]" in out
    assert out.count("channel ") == 12 * 2 * 2
    assert "broken.wav: not readable" in " ".join(out.split())
    assert f"{page}, " in out
    text = page.read_text(encoding="utf-8")
    assert text.startswith("<!")
    assert "high1.wav" in text
    saved = [archive.load(kept / f"{n:04d}") for n in range(24)]
    assert {one.scheme for one in saved} == {"frequency", "square"}
    assert saved[0].source == str(clips[0])
    assert len(saved[0].channels) == 2
    assert len(saved[0].channels[0].negatives) == 1


def test_a_long_recording_is_explained_window_by_window(root, fitted, capsys):
    page = root / "long.html"
    asked = ("explain", root / "long.wav", "--run", fitted, "--out", page,
             "--num-channels", "1", "--num-prototypes", "1", "--no-sounds")  # fmt: skip
    run(*asked)
    lines = capsys.readouterr().out.splitlines()
    found = [line.split() for line in lines if " s  " in line and "channel" not in line]
    assert [(words[0], words[2]) for words in found] == [
        ("0.0-0.5", "low"),
        ("0.5-1.0", "high"),
        ("1.0-1.5", "low"),
        ("1.5-2.0", "high"),
    ]
    regions = [line for line in lines if "channel" in line]
    spans = [line.split()[3] for line in regions]  # in seconds of the recording
    assert spans == ["0.00-0.50", "0.50-1.00", "1.00-1.50", "1.50-2.00"]
    assert "a page holds 200" in fails(capsys, *asked, "--hop-s", "0.008")
    run(*asked, "--hop-s", "1.0", "--target", "high")
    out = capsys.readouterr().out
    assert out.count("high") == 2
    assert out.count("(predicted: low)") == 2


def test_explain_refuses(root, trained, fitted, capsys):
    clip = root / "sounds" / "high" / "high0.wav"
    broken = root / "sounds" / "low" / "broken.wav"
    asked = ("explain", clip, "--run", fitted)
    out = ("--out", root / "refused.html")
    assert "--out must end in .html" in fails(capsys, *asked, "--out", clip)
    assert "target must be one of high, low, middle; got 'wren'" in fails(
        capsys, *asked, *out, "--target", "wren"
    )
    assert "no such folder" in fails(capsys, "explain", clip, "--run", root / "no")
    assert "no checkpoint at" in fails(capsys, "explain", clip, "--run", trained)
    assert "CLIP must be given" in fails(capsys, "explain", "--run", fitted)
    assert "--run must be given" in fails(capsys, "explain", clip)
    assert "--hop-s must be positive" in fails(capsys, *asked, *out, "--hop-s", "0")
    assert "none of the 1 files could be explained" in fails(
        capsys, "explain", broken, "--run", fitted, *out
    )
    assert "broken.wav: not readable" in fails(
        capsys, "explain", broken, "--run", fitted, *out, "--strict"
    )
    assert "holds no sound file" in fails(
        capsys, "explain", root / "frequency" / "apex", "--run", fitted, *out
    )
    assert "is not empty" in fails(capsys, *asked, *out, "--save", root)
    assert not (root / "refused.html").exists()


def test_runs_of_different_classifiers_do_not_go_together(root, fitted, capsys):
    clip = root / "sounds" / "high" / "high0.wav"
    other = root / "another"
    shutil.copytree(fitted, other)
    model, metadata = checkpoint.load_classifier(other / "classifier")
    model.head.bias[...] = model.head.bias[...] + 1
    checkpoint.save_classifier(
        other / "classifier",
        model,
        class_names=metadata["class_names"],
        front_end=metadata["front_end"],
        overwrite=True,
    )
    out = root / "again"
    run("fit", "--weights", other / "classifier", "--data", root / "sounds",
        "--out", out, *FIT)  # fmt: skip
    assert "explains another classifier than" in fails(
        capsys, "explain", clip, "--run", fitted, "--run", out
    )


# evaluate


def test_evaluate(root, fitted, capsys):
    run("evaluate", "--run", fitted, "--draws", "2", "--batch-size", "8")
    out = capsys.readouterr().out
    assert max(map(len, out.splitlines())) <= 80 + len(str(root))
    results = json.loads((fitted / "evaluation.json").read_text())
    scores = results["scores"]
    assert scores["apex"] == pytest.approx(scores["classifier"], abs=1e-6)
    assert scores["classifier"]["accuracy"] == 1
    assert results["masking"]["none"] == pytest.approx(scores["classifier"], abs=1e-6)
    for part in (results["masking"]["apex"], results["masking"]["random"]["mean"]):
        assert all(0 <= value <= 1 for value in part.values())
    assert results["invariance"]["changed_predictions"] == 0
    assert "accuracy" in out
    assert "macro AUROC" in out


def test_evaluate_on_other_data(root, fitted, capsys):
    other = root / "others"
    for name in ("high", "low"):  # only some of the classes
        shutil.copytree(root / "sounds" / name, other / name)
    asked = ("evaluate", "--run", fitted, "--data", other, "--draws", "1",
             "--batch-size", "8", "--out", root / "evaluation.json")  # fmt: skip
    run(*asked, "--split", "all")
    assert "broken.wav" in capsys.readouterr().out
    results = json.loads((root / "evaluation.json").read_text())
    assert results["clips"] == 20
    manifest = root / "sounds" / "train.csv"
    manifest.write_text("path,label,split\nhigh/high0.wav,high,train\n")
    assert "has no test clips" in fails(
        capsys, "evaluate", "--run", fitted, "--data", manifest
    )
    manifest.unlink()


def test_evaluate_needs_to_know_the_data(root, fitted, capsys):
    bare = root / "copied"
    shutil.copytree(fitted, bare)
    (bare / "config.json").unlink()
    assert "does not say what it was made from" in fails(
        capsys, "evaluate", "--run", bare
    )


# Several classes a clip


def test_several_classes_a_clip(root, capsys):
    rng = np.random.default_rng(1)
    (root / "mixed").mkdir()
    lines = ["path,labels,split"]
    mixes = [("low",), ("low", "high"), ("high",), ()]
    for n in range(40):
        names, split = mixes[n % 4], "test" if n >= 32 else "train"
        soundfile.write(root / "mixed" / f"m{n}.wav", tone(rng, *names), RATE)
        lines.append(f"m{n}.wav,{';'.join(names)},{split}")
    manifest = root / "mixed" / "list.csv"
    manifest.write_text("\n".join(lines) + "\n")
    classifier, fit = root / "mixed-classifier", root / "mixed-run"
    run("train", "--data", manifest, "--out", classifier, *TRAIN,
        "--train.epochs", "30")  # fmt: skip
    results = json.loads((classifier / "results.json").read_text())
    assert results["activation"] == "sigmoid"
    assert list(results["scores"]["test"]) == ["top1_accuracy", "cmap", "auroc"]
    assert results["scores"]["test"]["cmap"] > 0.9
    run("fit", "--weights", classifier, "--out", fit, *FIT)
    capsys.readouterr()
    run("explain", root / "mixed" / "m33.wav", root / "mixed" / "m34.wav", "--run",
        fit, "--out", root / "mixed.html", "--num-prototypes", "1")  # fmt: skip
    lines = [
        line for line in capsys.readouterr().out.splitlines() if "0.0-0.5 s" in line
    ]
    assert sorted(line.split()[2] for line in lines) == ["high", "high", "low"]
    run("evaluate", "--run", fit, "--draws", "1", "--batch-size", "8")
    evaluation = json.loads((fit / "evaluation.json").read_text())
    assert list(evaluation["scores"]["apex"]) == ["top1_accuracy", "cmap", "auroc"]
