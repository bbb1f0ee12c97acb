"""The commands one after another on tones: train, fit, explain, evaluate.

A folder of three classes, and a manifest where a clip has several of them or none.
"""

import csv
import dataclasses
import functools
import json
import math
import os
import pathlib
import shutil
import sys
import weakref

import jax
import numpy as np
import pytest
import soundfile

from apex_jax import (
    archive,
    audio,
    checkpoint,
    cli,
    convert,
    data,
    dataset,
    explain,
    logbook,
    train,
)
from apex_jax.commands import clips as command_clips
from apex_jax.commands import evaluate
from apex_jax.commands import explain as explain_command
from apex_jax.models import audioprotopnet, convnext

RATE, SECONDS = 8000, 0.5
SEED = 3  # of the split: not the default, so that who forgets it is found out
TONES = {"high": 2800, "low": 300, "middle": 1100}
# A name is bytes on most systems, and they need not be text.
ODD = os.fsdecode(b"odd\xff.wav") if sys.platform == "linux" else "odd.wav"
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
    log = trained / "classifier-training"
    assert [epoch.epoch for epoch in logbook.read(log)] == list(range(1, 13))
    assert list(log.glob("events.out.tfevents.*"))
    assert not (log / "state").exists()
    assert "broken.wav" in (trained / "skipped.csv").read_text()


def test_train_refuses(root, trained, capsys):
    sounds, out = root / "sounds", root / "refused"
    assert "is not there" in fails(
        capsys, "train", "--data", root / "none", "--out", out
    )
    assert "finished run of other settings" in fails(
        capsys, "train", "--data", sounds, "--out", trained, *TRAIN, "--seed", "1"
    )
    # Nor of other sounds; and what was there stays, to the byte.
    files = ("results.json", "config.json", "classifier-training/made_from.json")
    before = [(trained / name).read_bytes() for name in files]
    touched = sounds / "high" / "high0.wav"
    state = touched.stat()
    os.utime(touched)
    again = ("train", "--data", sounds, "--out", trained, *TRAIN, "--split.seed", SEED)
    assert "finished run of other settings (clips)" in fails(capsys, *again)
    # A refusal that comes later, when the sounds have been measured.
    assert "rows and 32 frames; a ConvNeXt needs" in fails(
        capsys, *again, "--overwrite", "--front-end.n-mels", "2"
    )
    assert [(trained / name).read_bytes() for name in files] == before
    os.utime(touched, ns=(state.st_atime_ns, state.st_mtime_ns))
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
        values = {"train_loss": 1.0, "validation_loss": 1.0, "validation_accuracy": 1.0}
        return model, [train.Epoch(epoch=1, learning_rate=0.1, **values)]

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


def test_learning_from_rounded_products(root, trained, fitted, capsys):
    run("fit", "--weights", trained, "--out", root / "rounded", "--matmul-dtype",
        "bfloat16", *FIT)  # fmt: skip
    assert "rounding     logits moved by up to" in capsys.readouterr().out
    results, exact = (
        json.loads((folder / "results.json").read_text())
        for folder in (root / "rounded", fitted)
    )
    assert exact["rounding"] is None
    assert results["rounding"]["max_abs_logit_difference"] > 0
    assert results["rounding"]["num_clips"] == results["clips"]["train"]
    for name, audit in results["invariance"].items():
        # Of the network as it is, also on the clips that were learned from.
        spread, expected = audit["logit_spread"], exact["invariance"][name]
        assert spread == pytest.approx(expected["logit_spread"], rel=1e-6)
    # Which is what the run keeps, and later explanations are judged by.
    audit = explain.load(root / "rounded").provenance.audit
    assert audit is not None
    assert dataclasses.asdict(audit) == results["invariance"]["train"]
    kept, network = (
        convnext.named_arrays(explain.load(folder).classifier.params)
        for folder in (root / "rounded", fitted)
    )
    for name, array in network.items():
        np.testing.assert_array_equal(kept[name], array)


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


BIRDS = ("wren", "robin", "crow", "owl", "tit")
CONVNEXT = pathlib.Path(__file__).parent / "data" / "convnext" / "transformers_1"
SETTINGS = [
    *("--front-end.sample-rate", RATE, "--front-end.clip-s", SECONDS),
    *("--front-end.n-fft", 512, "--front-end.hop-length", 100),
    *("--front-end.n-mels", 32),
]


@pytest.fixture(scope="module")
def birds(root):
    rng = np.random.default_rng(2)
    for number, name in enumerate(BIRDS):
        (root / "birds" / name).mkdir(parents=True)
        time = np.arange(round(SECONDS * RATE)) / RATE
        for n in range(4):
            wave = 0.3 * np.sin(2 * np.pi * 500 * (1 + number) * time)
            wave += rng.normal(0, 0.02, len(time))
            soundfile.write(root / "birds" / name / f"{name}{n}.wav", wave, RATE)
        (root / "birds" / name / f"{name}0.wav").rename(root / "birds" / name / ODD)
    return root / "birds"


@pytest.mark.slow
def test_fit_takes_the_weights_of_torch(root, birds, capsys):
    """A transformers folder that names its classes."""
    out = root / "birds-run"
    asked = ("fit", "--data", birds, "--out", out, "--weights", CONVNEXT, *FIT)
    assert "--front-end.sample-rate" in fails(capsys, *asked)
    run(*asked, *SETTINGS)
    assert "its logits are taken" not in capsys.readouterr().out
    model, metadata = checkpoint.load_classifier(out / "classifier")
    theirs, names = convert.load(CONVNEXT)
    assert tuple(metadata["class_names"]) == names == BIRDS
    assert metadata["front_end"]["n_mels"] == 32
    ours = convnext.named_arrays(model)
    for name, array in convnext.named_arrays(theirs).items():
        np.testing.assert_array_equal(ours[name], array)
    results = json.loads((out / "results.json").read_text())
    assert results["invariance"]["test"]["changed_predictions"] == 0
    config = json.loads((out / "config.json").read_text())
    assert config["weights"] == str(CONVNEXT)


@pytest.mark.slow
def test_weights_without_names_take_those_of_the_data(root, birds, capsys):
    (root / "downloaded").mkdir()
    weights = root / "downloaded" / "model.safetensors"
    shutil.copy(CONVNEXT / "model.safetensors", weights)
    asked = ("fit", "--weights", weights, *FIT, *SETTINGS)
    out = root / "unnamed-run"
    run(*asked, "--data", birds, "--out", out)
    assert (
        "model.safetensors names none; its logits are taken to be, in this order: "
        "crow, owl, robin, tit, wren"
    ) in " ".join(capsys.readouterr().out.split())
    results = json.loads((out / "results.json").read_text())
    assert results["class_names"] == sorted(BIRDS)
    assert (
        "model.safetensors has 5 classes without names, the data have 3: high, low, "
        "middle; apex-jax convert --class-names"
    ) in fails(capsys, *asked, "--data", root / "sounds", "--out", root / "refused")
    notes = root / "downloaded" / "notes.txt"
    notes.write_text("no weights")
    assert "ends in .safetensors" in fails(
        capsys, "fit", "--weights", notes, "--data", birds, "--out", root / "refused"
    )


# explain


def test_explain(root, fitted, capsys):
    page, kept = root / "page.html", root / "kept"
    clips = [root / "sounds" / "high" / f"high{n}.wav" for n in (0, 1)]
    run("explain", *clips, clips[0], root / "sounds" / "low", "--run", fitted,
        "--run", root / "square", "--num-channels", "2", "--num-prototypes", "1",
        "--num-negatives", "1", "--out", page, "--save", kept)  # fmt: skip
    out = capsys.readouterr().out
    assert "high0.wav\n  0.0-0.5 s  high" in out
    assert "[square]" in out
    assert "[frequency]" in out
    assert out.count("channel ") == 12 * 2 * 2
    assert out.count("    all channels  ") == 12 * 2
    assert "broken.wav: not readable" in " ".join(out.split())
    assert 'broken.wav,"not readable' in (root / "page-skipped.csv").read_text()
    assert f"{page}, " in out
    text = page.read_text(encoding="utf-8")
    assert text.startswith("<!")
    assert "high1.wav" in text
    saved = [archive.load(kept / f"{n:04d}") for n in range(24)]
    assert {one.scheme for one in saved} == {"frequency", "square"}
    assert saved[0].source == str(clips[0])
    assert len(saved[0].channels) == 2
    assert len(saved[0].channels[0].negatives) == 1
    assert {(one.evidence, one.locate) for one in saved} == {
        ("contrastive", "occlusion")
    }
    assert "the part of the sound that adds most to the channel" in text
    index = json.loads((kept / "index.json").read_text())
    assert [one["folder"] for one in index] == [f"{n:04d}" for n in range(24)]
    for one, entry in zip(saved, index, strict=True):
        assert entry == {
            "folder": entry["folder"],
            "source": one.source,
            "offset_s": one.offset_s,
            "class": one.class_name,
            "scheme": one.scheme,
        }
    # A region that lies where silence was appended says so.
    area = dataclasses.replace(saved[0].channels[0].areas[0], start_s=0.25, end_s=0.5)
    for sound_s, words in ((0.25, " (in the silence appended)"), (0.26, "")):
        one = dataclasses.replace(saved[0], offset_s=10.0, sound_s=sound_s)
        region = explain_command._region(area, one)
        assert region.startswith("10.25-10.50 s, ")
        assert region.endswith(f" Hz{words}")


def test_a_long_recording_is_explained_window_by_window(root, fitted, capsys):
    page = root / "long.html"
    asked = ("explain", root / "long.wav", "--run", fitted, "--out", page,
             "--num-channels", "1", "--num-prototypes", "1", "--no-sounds",
             "--locate", "map", "--evidence", "plain")  # fmt: skip
    run(*asked)
    lines = capsys.readouterr().out.splitlines()
    found = [line.split() for line in lines if " s  " in line and "channel" not in line]
    assert [(words[0], words[2]) for words in found] == [
        ("0.0-0.5", "low"),
        ("0.5-1.0", "high"),
        ("1.0-1.5", "low"),
        ("1.5-2.0", "high"),
    ]
    regions = [line for line in lines if line.startswith("    channel ")]
    spans = [line.split()[3] for line in regions]  # in seconds of the recording
    assert spans == ["0.00-0.50", "0.50-1.00", "1.00-1.50", "1.50-2.00"]
    run(*asked, "--hop-s", "1.0", "--target", "high")
    out = capsys.readouterr().out
    assert out.count("high") == 3  # the last window ends where the recording does
    assert out.count("(predicted: low)") == 2
    run(*asked, "--start-s", "0.7", "--end-s", "1.3")
    lines = capsys.readouterr().out.splitlines()
    found = [line.split()[0] for line in lines if " s  " in line and "chan" not in line]
    assert found == ["0.7-1.2", "0.8-1.3"]


@pytest.mark.parametrize(
    ("start_s", "end_s", "hop_s", "starts"),
    [
        (0.0, None, 0.5, [0, 0.5, 1, 1.5]),
        (0.0, None, 0.4, [0, 0.4, 0.8, 1.2, 1.5]),
        (0.0, None, 3.0, [0, 1.5]),
        (1.2, None, 0.5, [1.2, 1.5]),
        (1.9, None, 0.5, [1.9]),  # what is left is short
        (0.25, 1.25, 0.5, [0.25, 0.75]),
        (0.25, 0.5, 0.5, [0.25]),
        (0.0, 9.0, 1.0, [0, 1, 1.5]),
    ],
)
def test_windows_of_a_stretch(root, start_s, end_s, hop_s, starts):
    front_end = audio.FrontEnd(sample_rate=RATE, clip_s=SECONDS)
    file = root / "long.wav"
    stretch = {"start_s": start_s, "end_s": end_s, "hop_s": hop_s}
    log = data.SkipLog()
    found = list(command_clips.windows([file], front_end, log, **stretch))
    np.testing.assert_allclose([at for _, at in found], starts, atol=1e-9)
    assert {path for path, _ in found} == {file}
    assert not len(log)
    late = stretch | {"start_s": 2.0, "end_s": math.inf}
    assert not list(command_clips.windows([file], front_end, log, **late))
    assert "2 s long; a start at 2 s lies outside" in log.entries()[0][1]


def test_many_windows_go_to_several_pages(root, fitted, capsys, monkeypatch):
    monkeypatch.setattr(explain_command, "MOST", 6)
    out, kept = root / "pages" / "many.html", root / "pages" / "kept"
    run("explain", root / "long.wav", root / "sounds" / "high" / "high0.wav",
        "--run", fitted, "--run", root / "square", "--hop-s", "0.25", "--out", out,
        "--num-channels", "1", "--num-prototypes", "1", "--no-sounds",
        "--save", kept)  # fmt: skip
    text = capsys.readouterr().out
    # Seven windows and a clip, of which a page holds three, each by two runs.
    pages = [out.with_name(f"many-0{n}.html") for n in (1, 2, 3)]
    assert sorted(out.parent.glob("*.html")) == pages
    for page, title, clips in zip(
        pages,
        ("long.wav, page 1 of 3", "long.wav, page 2 of 3",
         "2 files from long.wav, page 3 of 3"),
        (("long.wav",), ("long.wav",), ("long.wav", "high0.wav")),
        strict=True,
    ):  # fmt: skip
        html = page.read_text(encoding="utf-8")
        assert f"<title>{title}</title>" in html
        assert ("high0.wav" in html) == ("high0.wav" in clips)
        assert f"written to   {page}, " in text
        assert f"long.wav  [{page.name}]" in text
    index = json.loads((kept / "index.json").read_text())
    offsets = [one["offset_s"] for one in index if one["scheme"] == "square"]
    assert offsets == [0, 0.25, 0.5, 0.75, 1, 1.25, 1.5, 0]
    assert archive.load(kept / "0015").source.endswith("high0.wav")


def test_no_more_than_a_page_is_kept(root, fitted, monkeypatch):
    """What a page was made of is gone when the next one is made."""
    alive, most = [], []
    explain_one = explain_command._explain

    def watched(*arguments):
        for one in explain_one(*arguments):
            alive.append(weakref.ref(one))
            most.append(sum(ref() is not None for ref in alive))
            yield one

    monkeypatch.setattr(explain_command, "_explain", watched)
    monkeypatch.setattr(explain_command, "MOST", 2)
    monkeypatch.setattr(
        explain_command.report, "write", lambda out, *_, **__: out.write_text("")
    )
    run("explain", root / "long.wav", "--run", fitted, "--hop-s", "0.25",
        "--out", root / "bounded" / "page.html", "--num-prototypes", "1")  # fmt: skip
    assert len(alive) == 7
    assert max(most) == 2


def test_a_name_that_is_no_text(root, fitted, capsys):
    shutil.copy(root / "sounds" / "low" / "low0.wav", root / ODD)
    run("explain", root / ODD, "--run", fitted, "--out", root / "odd.html",
        "--save", root / "odd")  # fmt: skip
    shown = ODD.encode("ascii", "backslashreplace").decode()
    out = capsys.readouterr().out
    assert f"{shown}\n  0.0-0.5 s  low" in out
    assert shown in (root / "odd.html").read_text(encoding="utf-8")
    assert archive.load(root / "odd" / "0000").source == str(root / ODD)


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
    for command in (("explain", clip), ("evaluate",), ("figure", "explained")):
        assert f"fit it first: apex-jax fit --weights {trained} --out NAME" in fails(
            capsys, *command, "--run", trained
        )
    assert "are both of scheme frequency" in fails(
        capsys, *asked, "--run", fitted, *out
    )
    assert "CLIP must be given" in fails(capsys, "explain", "--run", fitted)
    assert "--run must be given" in fails(capsys, "explain", clip)
    assert "--hop-s must be positive" in fails(capsys, *asked, *out, "--hop-s", "0")
    for start_s, end_s in (("-1", "2"), ("1", "1"), ("nan", "2")):
        assert "--start-s must be at least 0 and below --end-s" in fails(
            capsys, *asked, *out, "--start-s", start_s, "--end-s", end_s
        )
    assert "high0.wav: 0.5 s long; a start at 3 s lies outside" in fails(
        capsys, *asked, *out, "--start-s", "3"
    )
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


def test_clips_that_have_moved(root, fitted, capsys):
    sounds, moved = root / "sounds", root / "elsewhere"
    asked = ("explain", root / "long.wav", "--run", fitted, "--no-sounds", "--end-s",
             "0.5", "--out", root / "moved.html")  # fmt: skip
    sounds.rename(moved)
    try:
        said = fails(capsys, *asked)
        run(*asked, "--data", moved)
    finally:
        moved.rename(sounds)
    assert f"a prototype's file of run {fitted} cannot be used: {sounds}" in said
    assert said.endswith(
        ": missing; expected a sound file. Fit it again, or --data DIR where its clips "
        "lie now"
    )


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


# predict


def test_predict(root, trained, capsys, tmp_path):
    """Each window of a long recording; the probabilities are the network's own."""
    folder = tmp_path / "recordings"
    shutil.copytree(root / "sounds" / "low", folder / "low")
    shutil.copy(root / "long.wav", folder)
    out = tmp_path / "said.csv"
    asked = ("predict", folder, "--weights", trained, "--out", out)
    run(*asked, "--num-classes", "2", "--batch-size", "8")
    said = capsys.readouterr().out
    assert max(map(len, said.splitlines())) <= 80 + len(str(tmp_path))
    assert "1 files, listed in" in " ".join(said.split())
    assert "broken.wav" in (tmp_path / "said-skipped.csv").read_text()
    with out.open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 2 * (10 + 4)
    found = [row for row in rows if row["path"] == str(folder / "long.wav")][::2]
    assert [row["class"] for row in found] == ["low", "high", "low", "high"]
    assert [float(row["start_s"]) for row in found] == [0, 0.5, 1, 1.5]
    assert [float(row["end_s"]) for row in found] == [0.5, 1, 1.5, 2]
    assert "  0.5-1.0 s  high " in said
    model, metadata = checkpoint.load_classifier(trained / "classifier")
    front_end = audio.FrontEnd.from_dict(metadata["front_end"])
    waveform = audio.load_clip(folder / "long.wav", front_end, 1.0)
    logits = np.asarray(model(audio.spectrogram(front_end, waveform[None])))[0]
    likely = np.exp(logits - logits.max()) / np.exp(logits - logits.max()).sum()
    of_window = [r for r in rows if r["path"].endswith("long.wav")][4:6]
    assert [metadata["class_names"].index(r["class"]) for r in of_window] == list(
        np.argsort(-likely)[:2]
    )
    np.testing.assert_allclose(
        [float(r["probability"]) for r in of_window],
        np.sort(likely)[::-1][:2],
        rtol=1e-3,
        atol=1e-6,
    )


def test_predict_by_prototypes(root, trained, tmp_path, capsys):
    """An AudioProtoPNet's checkpoint, of which classes are each there or not."""
    backbone, metadata = checkpoint.load_classifier(trained / "classifier")
    model = audioprotopnet.on(
        backbone, num_classes=2, num_prototypes=1, key=jax.random.key(0)
    )
    checkpoint.save_audioprotopnet(
        tmp_path / "net",
        model,
        class_names=("a", "b"),
        front_end=metadata["front_end"],
    )
    out = tmp_path / "said.csv"
    run("predict", root / "long.wav", "--weights", tmp_path / "net", "--out", out)
    with out.open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert {row["class"] for row in rows} == {"a", "b"}
    # Nothing is similar enough at the start to be likely: the bias is -2.
    assert all(0.1 < float(row["probability"]) < 0.6 for row in rows)


def test_predict_what_cannot_be(root, trained, tmp_path, capsys):
    long = root / "long.wav"
    asked = ("predict", long, "--weights", trained)
    assert "--out must end in .csv" in fails(capsys, *asked, "--out", "x.txt")
    assert "--num-classes must be at least 1" in fails(
        capsys, *asked, "--num-classes", "0"
    )
    assert "--hop-s must be positive" in fails(capsys, *asked, "--hop-s", "0")
    bad = root / "sounds" / "low" / "broken.wav"
    assert "none of the 1 files can be read" in fails(
        capsys, "predict", bad, "--weights", trained
    )
    assert "no checkpoint at" in fails(
        capsys, "predict", long, "--weights", tmp_path / "none"
    )
    model, metadata = checkpoint.load_classifier(trained / "classifier")
    checkpoint.save_classifier(
        tmp_path / "bare", model, class_names=metadata["class_names"]
    )
    assert "does not say how its spectrograms are made" in fails(
        capsys, "predict", long, "--weights", tmp_path / "bare"
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
    random = results["masking"]["random"]
    assert (random["evidence"], random["locate"]) == ("contrastive", "occlusion")
    # Of 2 + 1 masks a clip: what is picked at random hurts as much now and then.
    assert 1 / 1001 <= results["masking"]["p_value"] <= 1
    assert f"{results['masking']['p_value']:.3f}" in out
    assert "accuracy" in out
    assert "macro AUROC" in out
    carried = results["evidence"]
    assert carried["kind"] == "contrastive"
    share = f"{carried['share']['first']:24.2f}{carried['share_of_all']['first']:24.2f}"
    assert f"top channel         {share}" in out


def test_what_the_top_channels_carry_by_hand(fitted, rng):
    explainer = explain.load(fitted)
    head = explainer.classifier.head
    weight, bias = np.asarray(head.weight), np.asarray(head.bias)
    pooled = rng.normal(size=(30, weight.shape[1])).astype(np.float32)
    logits = pooled @ weight.T + bias
    found = evaluate._carried(explainer, pooled, logits, "plain")
    inverse = np.linalg.inv(np.asarray(explainer.transform.matrix, np.float64))
    moved = np.asarray(explainer.transform(pooled), np.float64)
    firsts, fours, firsts_of_all, counts, tops = [], [], [], [], set()
    for clip, said in zip(moved, logits, strict=True):
        moves = (weight[said.argmax()] @ inverse) * clip
        seen = np.where(clip > 0, moves.clip(0), 0)
        falling = np.sort(seen)[::-1]
        firsts.append(falling[0] / seen.sum())
        fours.append(falling[:4].sum() / seen.sum())
        firsts_of_all.append(falling[0] / np.abs(moves).sum())
        so_far, count = 0.0, 0
        while so_far < 0.9 * seen.sum():
            so_far, count = so_far + falling[count], count + 1
        counts.append(count)
        tops.add(int(seen.argmax()))
    assert found["share"] == pytest.approx(
        {"first": np.mean(firsts), "top_four": np.mean(fours)}, rel=1e-3
    )
    assert found["share_of_all"]["first"] == pytest.approx(
        np.mean(firsts_of_all), rel=1e-3
    )
    assert found["channels_for_nine_tenths"] == pytest.approx(np.mean(counts), abs=0.1)
    assert found["different_top_channels"] == len(tops)


def test_evaluate_on_other_data(root, fitted, capsys):
    other = root / "others"
    for name in ("high", "low"):  # only some of the classes
        shutil.copytree(root / "sounds" / name, other / name)
    asked = ("evaluate", "--run", fitted, "--data", other, "--draws", "1",
             "--batch-size", "8", "--out", root / "evaluation.json")  # fmt: skip
    run(*asked, "--split", "all", "--exclude-own", "--locate", "map",
        "--evidence", "plain")  # fmt: skip
    assert "1 files, listed in" in capsys.readouterr().out
    assert "broken.wav" in (root / "evaluation-skipped.csv").read_text()
    results = json.loads((root / "evaluation.json").read_text())
    random = results["masking"]["random"]
    assert random["exclude_own"] is True
    assert (random["evidence"], random["locate"]) == ("plain", "map")
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


@pytest.mark.slow
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
    nothing = ("explain", root / "mixed" / "m35.wav", "--run", fit, "--out",
               root / "nothing.html", "--num-prototypes", "1")  # fmt: skip
    run(*nothing)
    assert "0.0-0.5 s  nothing found; most likely " in capsys.readouterr().out
    run(*nothing, "--target", "low")
    run("explain", root / "mixed" / "m34.wav", *nothing[2:], "--target", "low")
    out = capsys.readouterr().out
    assert " %  (found: high)" in out
    assert " %  (found: nothing)" in out or "nothing found; most likely low" in out
    run("evaluate", "--run", fit, "--draws", "1", "--batch-size", "8")
    evaluation = json.loads((fit / "evaluation.json").read_text())
    assert list(evaluation["scores"]["apex"]) == ["top1_accuracy", "cmap", "auroc"]
