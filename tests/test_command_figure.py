"""Each figure from small runs; which clip is shown, and what is refused."""

import dataclasses
import json
import shutil

import jax
import numpy as np
import pytest
import soundfile
import test_cache

from apex_jax import (
    audio,
    cache,
    checkpoint,
    cli,
    comparisons,
    data,
    explain,
    figures,
    fit,
    optimize,
    plot,
)
from apex_jax.commands import figure
from apex_jax.commands import options as command_options
from apex_jax.models import audioprotopnet, convnext

FRONT_END = test_cache.FRONT_END
CONFIG = convnext.ConvNeXtConfig(depths=(1, 1), dims=(8, 12), num_classes=2)
OPTIMISE = optimize.Config(
    epochs=1, prototypes_start=3, prototypes_end=3, batch_size=16
)
KINDS = ("explained", "before-after", "methods", "masking", "twin")

pytestmark = pytest.mark.slow


def write_twins(folder):
    """Five sentences, each real and vocoded, some a little shorter than a clip."""
    rng = np.random.default_rng(1)
    clips = []
    for n in range(5):
        time = np.arange(round((0.45 + 0.02 * n) * FRONT_END.sample_rate))
        tone = 0.2 * np.sin(2 * np.pi * (300 + 200 * n) / 8000 * time)
        for label, name in enumerate((f"wavs/{n}.wav", f"gen/{n}_gen.wav")):
            wave = tone + (0.01 + 0.1 * label) * rng.normal(size=len(time))
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            soundfile.write(folder / name, wave, FRONT_END.sample_rate)
            clips.append(data.Clip(path=folder / name, label=label, group=str(n)))
    return clips


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    """Runs of two schemes of one classifier, and of another classifier."""
    root = tmp_path_factory.mktemp("runs")
    clips = write_twins(root)
    mesh = test_cache.mesh_of(1)
    for name, scheme, seed in (
        ("square", "square", 0),
        ("cross", "time_frequency", 0),
        ("other", "time", 1),
    ):
        classifier = test_cache.classifier_of(CONFIG, seed, ("real", "fake"))
        cached = cache.build(
            root / f"cache{seed}",
            classifier,
            clips,
            FRONT_END,
            content="maps",
            batch_size=4,
            mesh=mesh,
            skip_log=data.SkipLog(strict=True),
        )
        fitted = fit.explainer(
            jax.random.key(0),
            classifier,
            cached,
            FRONT_END,
            scheme,
            config=OPTIMISE,
            mesh=mesh,
        )
        explain.save(root / name, fitted.explainer)
    return root


@pytest.fixture
def drawn(monkeypatch):
    """What the figures are given, instead of drawing it again: `test_comparisons`."""
    calls = {}

    def record(module, name):
        def draw(*arguments, **options):
            calls[name] = (*arguments, options)
            return plot.figure((1.0, 1.0))

        monkeypatch.setattr(module, name, draw)

    record(figures, "explained")
    for name in ("before_after", "methods", "masking", "twin"):
        record(comparisons, name)
    return calls


def config_of(kind, *runs, **options):
    options = {"num_samples": 20, "draws": 2, "num_channels": 2, "dpi": 30, **options}
    return command_options.Figure(kind=kind, run=runs, **options)


def test_every_kind_from_the_command_line(root, capsys):
    for kind in KINDS:
        out = root / "figures" / f"{kind}.png"
        small = ["--num-samples", "20", "--draws", "2", "--dpi", "30"]
        small += ["--num-channels", "1", "--num-prototypes", "1"]
        arguments = ["figure", kind, "--run", root / "square", "--out", out, *small]
        assert cli.main([str(a) for a in arguments]) == 0
        assert out.read_bytes().startswith(b"\x89PNG")
        assert "written to" in capsys.readouterr().out


def test_without_out_it_lies_in_the_run(root):
    path = figure.main(config_of("explained", root / "square"))
    assert path == root / "square" / "explained.png"
    assert path.exists()


def test_a_clip_is_chosen_and_named(root, drawn, capsys):
    figure.main(config_of("explained", root / "square", num_prototypes=3))
    (result, options) = drawn["explained"]
    assert options == {"num_prototypes": 3}
    explainer = explain.load(root / "square")
    sources = np.asarray(explainer.positive.clip)
    uses = [np.sum(sources == i) for i in range(len(explainer.clips))]
    least = [str(c.path) for c, n in zip(explainer.clips, uses, strict=True)
             if n == min(uses)]  # fmt: skip
    assert result.source == least[0]
    assert f"{least[0].rsplit('/', 2)[1]}/{least[0].rsplit('/', 1)[1]}@0.000" in (
        capsys.readouterr().out
    )
    assert len(result.channels) == 2
    assert len(result.channels[0].prototypes) == 3


def test_the_clip_asked_for(root, drawn):
    file = root / "gen" / "3_gen.wav"
    figure.main(
        config_of("explained", root / "square", clip=file, offset_s=0.1, target="real")
    )
    result = drawn["explained"][0]
    assert (result.source, result.offset_s) == (str(file), 0.1)
    assert result.class_name == "real"


def test_before_and_after_runs_from_the_largest_gain_to_the_smallest(root, drawn):
    figure.main(config_of("before-after", root / "square", num_channels=3))
    channels, before, after, front_end, scheme, options = drawn["before_after"]
    explainer = explain.load(root / "square")
    purity = [np.asarray(b.purity) for b in (explainer.raw, explainer.positive)]
    gain = purity[1].mean(axis=1) - purity[0].mean(axis=1)
    assert channels[0] == gain.argmax()
    assert channels[-1] == gain.argmin()
    assert len(channels) == 3
    assert options["mean_purity"] == pytest.approx([p.mean() for p in purity])
    assert (front_end, scheme) == (FRONT_END, "square")
    for ones, bank in ((before, explainer.raw), (after, explainer.positive)):
        for k, prototypes in zip(channels, ones, strict=True):
            found = [one.purity for one in prototypes]
            np.testing.assert_allclose(found, bank.purity[k])
            paths = [str(one.clip.path) for one in prototypes]
            assert paths == [str(explainer.clips[i].path) for i in bank.clip[k]]


def test_methods_of_several_runs(root, drawn):
    figure.main(config_of("methods", root / "square", root / "cross", target="real"))
    (results, _) = drawn["methods"]
    assert [(r.method, r.scheme) for r in results] == [
        ("apex", "square"),
        ("apex", "time_frequency"),
        ("grad-cam", "square"),
        ("lime", "square"),
    ]
    assert {r.source for r in results} == {results[0].source}
    assert {r.class_name for r in results} == {"real"}
    assert _instead(results[-1]) == "silence"
    figure.main(config_of("methods", root / "square", instead="usual"))
    assert _instead(drawn["methods"][0][-1]) == "usual"


def _instead(result):
    return dict(result.provenance.settings)["LIME instead of a superpixel"]


def test_masking_takes_each_scheme_from_the_run_that_learned_it(root, drawn, capsys):
    figure.main(config_of("masking", root / "cross", root / "square"))
    result, hidden, _ = drawn["masking"]
    assert [(one.scheme, one.learned) for one in hidden] == [
        ("square", "square"),
        ("time", "time_frequency"),
        ("frequency", "time_frequency"),
        ("time_frequency", "time_frequency"),
    ]
    assert {one.draws for one in hidden} == {2}
    assert "time, frequency: under the U" in " ".join(capsys.readouterr().out.split())
    assert result.scheme == "time_frequency"


def test_twins_of_the_run(root, drawn):
    figure.main(config_of("twin", root / "square"))
    real, fake, _ = drawn["twin"]
    name = fake.source.rsplit("/", 1)[1]
    assert real.source.endswith(f"/wavs/{name.replace('_gen', '')}")
    # What the vocoded clip was said to be does not matter; what speaks for it does.
    assert (real.class_name, fake.class_name) == ("fake", "fake")


def test_twins_asked_for(root, drawn):
    real, fake = root / "wavs" / "2.wav", root / "gen" / "2_gen.wav"
    figure.main(config_of("twin", root / "square", clip=real, twin=fake))
    assert [one.source for one in drawn["twin"][:2]] == [str(real), str(fake)]


def refused(message, *arguments, **options):
    with pytest.raises(ValueError, match=message):
        figure.main(config_of(*arguments, **options))


def test_what_does_not_go_together_is_refused(root):
    run, cross, clip = root / "square", root / "cross", root / "wavs" / "1.wav"
    refused("--run must name", "explained")
    refused("--num-channels must be at least 1; got 0", "methods", run, num_channels=0)
    refused("explained takes one --run", "explained", run, cross)
    refused("both files", "twin", run, clip=clip)
    refused("--twin is for twin alone", "masking", run, clip=clip, twin=clip)
    refused("takes no --clip", "before-after", run, clip=clip)
    refused("name a --clip", "explained", run, offset_s=1.0)
    refused("must end in .png", "explained", run, out=root / "figure.doc")
    refused("target must be one of real, fake", "explained", run, target="loud")
    refused("another classifier", "methods", run, root / "other")
    refused("are both of scheme square", "methods", run, run)


def test_clips_that_have_moved(root, drawn):
    """What is gone is named as a prototype's; `--data` says where it is now."""
    query = root / "query.wav"
    shutil.copy(root / "wavs" / "1.wav", query)
    moved = root / "moved"
    moved.mkdir()
    for name in ("wavs", "gen"):
        (root / name).rename(moved / name)
    try:
        run = root / "square"
        message = r"a prototype's file of run .*square cannot be used: .*\.wav: missing"
        refused(f"{message}.*; expected a sound file.* --data DIR", "explained", run)
        refused(message, "explained", run, clip=query)
        figure.main(config_of("explained", run, clip=query, data=moved))
    finally:
        for name in ("wavs", "gen"):
            (moved / name).rename(root / name)
    prototype = drawn["explained"][0].channels[0].prototypes[0]
    assert moved in prototype.clip.path.parents
    with pytest.raises(audio.AudioError, match=r"gone\.wav: missing; expected"):
        figure.main(config_of("explained", run, clip=root / "gone.wav"))


def test_runs_that_lack_what_a_figure_needs(root, tmp_path, monkeypatch):
    explainer = explain.load(root / "square")

    def with_changes(**changes):
        changed = dataclasses.replace(explainer, **changes)
        monkeypatch.setattr(explain, "load", lambda run, data: changed)

    with_changes(raw=None)
    refused("keeps no prototypes of the raw channels", "before-after", tmp_path)
    with_changes(front_end=None)
    refused("explains feature maps", "explained", tmp_path)
    alone = [dataclasses.replace(c, group=str(c.path)) for c in explainer.clips]
    with_changes(clips=alone)
    refused("no real clip beside its vocoded twin", "twin", tmp_path)


def test_beside_an_audioprotopnet(root, tmp_path, capsys):
    """Classes in another order are put in the run's; others are refused."""
    model = audioprotopnet.on(
        test_cache.classifier_of(CONFIG, 0, ("real", "fake")).params,
        num_classes=2,
        num_prototypes=2,
        key=jax.random.key(0),
    )

    def save(name, names, front_end=FRONT_END):
        return checkpoint.save_audioprotopnet(
            tmp_path / name, model, class_names=names, front_end=front_end.to_dict()
        )

    run, out = str(root / "square"), tmp_path / "beside.png"
    command = ["figure", "beside", "--run", run, "--out", str(out)]
    good = save("good", ("fake", "real"))
    assert cli.main([*command, "--prototypes", str(good)]) == 0
    assert out.read_bytes().startswith(b"\x89PNG")
    assert "only those that the banks of" in " ".join(capsys.readouterr().out.split())
    local = ["figure", "prototypes", "--run", run, "--num-channels", "1"]
    local += ["--out", str(tmp_path / "local.png"), "--target", "fake"]
    assert cli.main([*local, "--prototypes", str(good)]) == 0
    said = capsys.readouterr().out
    assert said.count("similar x weight 1.000 adds") == 1
    assert (tmp_path / "local.png").read_bytes().startswith(b"\x89PNG")
    more = checkpoint.save_audioprotopnet(
        tmp_path / "more",
        audioprotopnet.on(
            test_cache.classifier_of(CONFIG, 0, ("real", "fake")).params,
            num_classes=3,
            num_prototypes=2,
            key=jax.random.key(0),
        ),
        class_names=("fake", "dog", "real"),
        front_end=FRONT_END.to_dict(),
    )
    assert cli.main([*command, "--prototypes", str(more)]) == 0
    capsys.readouterr()
    other_names = save("names", ("dog", "cat"))
    other_front_end = save("front", ("real", "fake"), dataclasses.replace(
        FRONT_END, mean=1.0))  # fmt: skip
    for arguments, message in (
        (["--prototypes", str(other_names)], "has other classes"),
        (["--prototypes", str(other_front_end)], "has another front end"),
        ([], "beside and prototypes take --prototypes"),
    ):
        assert cli.main([*command, *arguments]) == 1
        assert message in capsys.readouterr().err


@pytest.mark.parametrize("listed", [True, False])
def test_nearest_clips_come_from_all_training_clips(
    listed, root, tmp_path, monkeypatch, capsys
):
    """Those that an experiment lists with the network, or those of the run's data.

    The run's banks point to some; here they hold but one of each class.
    """
    run = tmp_path / "run"
    shutil.copytree(root / "square", run)
    model = audioprotopnet.on(
        test_cache.classifier_of(CONFIG, 0, ("real", "fake")).params,
        num_classes=3,
        num_prototypes=2,
        key=jax.random.key(0),
    )
    network = checkpoint.save_audioprotopnet(
        tmp_path / "audioprotopnet",
        model,
        class_names=("fake", "dog", "real"),
        front_end=FRONT_END.to_dict(),
    )
    fakes, reals = (sorted((root / part).glob("*.wav")) for part in ("gen", "wavs"))
    lines = [f"{path},fake,{'train' if n else 'test'}" for n, path in enumerate(fakes)]
    parts = ("validation", "train", "train", "train", "train")
    lines += [f"{path},real,{part}" for path, part in zip(reals, parts, strict=True)]
    lines += [f"{root / 'gone.wav'},fake,train"]
    folder = tmp_path / "audioprotopnet-training" if listed else tmp_path
    folder.mkdir(exist_ok=True)
    manifest = folder / "clips.csv"
    manifest.write_text("\n".join(["path,label,split", *lines]) + "\n")
    if not listed:
        made = {"command": "fit", "data": str(manifest), "windows_per_file": 1}
        (run / "config.json").write_text(json.dumps(made))
    asked, real = [], figure.prototype_training.nearest

    def nearest(model, clips, *arguments, **options):
        asked.append(clips)
        return real(model, clips, *arguments, **options)

    monkeypatch.setattr(figure.prototype_training, "nearest", nearest)
    for kind in ("beside", "prototypes"):
        figure.main(config_of(kind, run, prototypes=network, target="fake"))
        said = " ".join(capsys.readouterr().out.split())
        words = "all that the AudioProtoPNet was trained" if listed else "was fitted on"
        assert "looked for in 4 clips of fake" in said
        assert words in said
    for clips in asked:
        assert [clip.path for clip in clips] == fakes[1:]
        # Of the run's classes, real and fake.
        assert {clip.labels for clip in clips} == {(1,)}
