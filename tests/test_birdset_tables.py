"""Tables 3 and 4 in miniature: small copies in, every cell against plain scores."""

import csv
import dataclasses
import functools
import json

import jax
import numpy as np
import pytest
import test_birdset_corpus
from flax import nnx

from apex_jax import audio, checkpoint, data, objective, optimize, settings, train
from apex_jax import classifier as classifier_lib
from apex_jax.models import audioprotopnet, convnext
from experiments import methods
from experiments.birdset import labels, networks, options, table3, table4, tables

sounds, copies = test_birdset_corpus.sounds, test_birdset_corpus.copies
FRONT_END = audio.FrontEnd(
    sample_rate=16_000, clip_s=5.0, n_fft=1024, hop_length=2500, n_mels=24
)


def config(root, output, **changes):
    return options.Config(
        **{
            "data_dir": root,
            "labels": root / "labels",
            "train_on": "XCM",
            "test_on": ("HSN", "POW"),
            "output_dir": output,
            "mask_draws": 2,
            "batch_size": 8,
            "front_end": FRONT_END,
            "train": settings.Training(
                epochs=2, batch_size=8, learning_rate=1e-2, loss="asymmetric",
                augment=options.AUGMENT,
            ),
            "audioprotopnet": settings.PrototypeTraining(epochs=2, batch_size=8),
            "optimise": optimize.Config(
                epochs=2, prototypes_start=4, prototypes_end=2, batch_size=16
            ),
        }
        | changes
    )  # fmt: skip


@pytest.fixture(scope="module", autouse=True)
def small_atto():
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(convnext._SIZES, "atto", ((1,), (12,)))
        patch.setattr(
            train.Config, "optimiser", functools.cache(train.Config.optimiser)
        )
        yield


@pytest.fixture(scope="module")
def done(copies, tmp_path_factory, small_atto):
    output = tmp_path_factory.mktemp("runs") / "table3"
    return table3.main(config(copies / "archives", output)), output


@pytest.mark.slow
def test_table_3(done, copies):
    results, output = done
    assert list(results["tests"]) == ["HSN", "POW"]
    for name, row in results["tests"].items():
        assert row["classes"] == 4
        assert "nobird1" in row["classes_without_positives"]
        assert row["without_birds"] > 0
        assert row["invariance"]["changed_predictions"] == 0
        for score in tables.SCORES:
            values = {m: row["scores"][m][score] for m in methods.TITLES}
            assert values["apex"] == pytest.approx(values["classifier"], abs=1e-6)
            assert 0 <= values["audioprotopnet"] <= 1
        assert row["scores"]["apex"]["auroc"] > row["scores"]["apex"]["auroc_zero"]
        # The cell once more, from the kept network.
        model, metadata = checkpoint.load_classifier(output / "classifier")
        names = labels.read(copies / "archives" / "labels", name)
        assert metadata["class_names"] != list(names)
        at = [metadata["class_names"].index(code) for code in names]
        part = test_birdset_corpus.read(copies / "archives", name, "test_5s")
        target = objective.targets(part.clips, 4)[:, at]
        waves = np.stack([audio.load_clip(c.path, FRONT_END) for c in part.clips])
        logits = np.asarray(model(audio.spectrogram(FRONT_END, waves)))[:, at]
        found = table3.scores(target.astype(bool), 1 / (1 + np.exp(-logits)))
        for score, value in found.items():
            assert row["scores"]["classifier"][score] == pytest.approx(value, abs=1e-4)
    with (output / "table3.csv").open(newline="") as file:
        lines = list(csv.DictReader(file))
    assert len(lines) == 2 * 3 * len(tables.SCORES)
    known = next(
        line
        for line in lines
        if (line["test_set"], line["method"], line["score"])
        == ("HSN", "audioprotopnet", "cmap")
    )
    assert known["paper"] == "0.55"
    shown = tables.scored_terminal(results)
    assert max(map(len, shown.splitlines())) <= 80


@pytest.mark.slow
def test_what_is_finished_is_not_done_again(done, copies, monkeypatch, capsys):
    results, output = done
    (output / "results.json").unlink()

    def never(*_, **__):
        raise AssertionError("trained again")

    monkeypatch.setattr(train, "run", never)
    again = table3.main(config(copies / "archives", output))
    assert capsys.readouterr().out.count("finished before") == 2
    assert again["tests"] == results["tests"]
    # A set's scores depend neither on the other sets nor on how regions are hidden.
    alone = config(
        copies / "archives", output, test_on=("POW",), mask_draws=3, overwrite=True
    )
    alone = table3.main(alone)
    assert capsys.readouterr().out.count("finished before") == 1
    assert alone["tests"] == {"POW": results["tests"]["POW"]}


@pytest.mark.slow
def test_table_4_on_the_same_network(done, copies, tmp_path):
    _, output = done
    results = table4.main(
        config(
            copies / "archives",
            tmp_path / "table4",
            weights=output,
            test_on=("HSN",),
            explain_clips=12,
            exclude_own=True,
        )
    )
    assert list(results["schemes"]) == ["square", "time", "frequency", "time_frequency"]
    first = json.loads((output / "HSN" / "results.json").read_text())
    for row in results["schemes"].values():
        assert row["none"] == pytest.approx(first["scores"]["classifier"]["cmap"])
        assert 0 < row["p_value"] <= 1
        audit = row["test_invariance"]
        assert audit["changed_predictions"] == 0
        assert audit["num_clips"] == row["clips"]
    text = (tmp_path / "table4" / "table4.md").read_text()
    assert f"{results['schemes']['time']['apex']:.3f}" in text
    # The paper's numbers are of SNE, and stand beside no other set.
    assert "| 0.28 |" not in text
    shown = tables.masked_terminal({**results, "test_on": "SNE"})
    assert "never of APEX's own region" in " ".join(shown.split())
    assert "0.28" in shown
    assert max(map(len, shown.splitlines())) <= 80


@pytest.mark.slow
def test_networks_that_are_given(done, copies, tmp_path):
    """The same cells from checkpoints, whose classes lie in another order."""
    results, output = done
    model, metadata = checkpoint.load_classifier(output / "classifier")
    other, _ = checkpoint.load_audioprotopnet(output / "audioprotopnet")
    turned = list(reversed(range(model.config.num_classes)))
    names = [metadata["class_names"][i] for i in turned]
    common = {"class_names": names, "front_end": metadata["front_end"]}
    checkpoint.save_classifier(
        tmp_path / "model", convnext.restrict(model, turned), **common
    )
    checkpoint.save_audioprotopnet(
        tmp_path / "other", audioprotopnet.restrict(other, turned), **common
    )
    again = table3.main(
        config(
            copies / "files",
            tmp_path / "again",
            weights=tmp_path / "model",
            prototypes=tmp_path / "other",
            test_on=("HSN",),
        )
    )
    for method in methods.TITLES:
        found = again["tests"]["HSN"]["scores"][method]
        wanted = results["tests"]["HSN"]["scores"][method]
        assert found == pytest.approx(wanted, abs=1e-4)


def test_a_list_is_read_only_where_it_is_needed(copies, tmp_path):
    """Networks with names need no list of what they were trained on; numbers do."""
    names = labels.read(copies / "files" / "labels", "HSN")
    shape = convnext.ConvNeXtConfig(depths=(1,), dims=(4,), num_classes=len(names))
    backbone = convnext.ConvNeXt(shape, rngs=nnx.Rngs(0))
    other = audioprotopnet.on(backbone, num_classes=len(names), key=jax.random.key(0))
    numbers = [str(n) for n in range(len(names))]
    for folder, classes in (("named", names), ("numbers", numbers)):
        common = {"class_names": classes, "front_end": FRONT_END.to_dict()}
        checkpoint.save_classifier(tmp_path / folder / "classifier", backbone, **common)
        checkpoint.save_audioprotopnet(tmp_path / folder / "other", other, **common)

    def get(folder, train_on):
        given = tmp_path / folder
        changes = {"weights": given, "prototypes": given / "other"}
        asked = config(copies / "files", tmp_path, train_on=train_on, **changes)
        return networks.get(asked, tmp_path, None, data.SkipLog(), with_other=True)

    assert get("named", "XCL").class_names == names  # of which there is no list here
    assert get("named", "XCL").other_names == names
    assert get("numbers", "HSN").class_names == names
    assert get("numbers", "HSN").other_names == names
    with pytest.raises(ValueError, match="has no XCL_ebird_codes"):
        get("numbers", "XCL")


def test_networks_hear_what_they_were_trained_on(copies, tmp_path):
    """Neither unsaid nor another than the other network's."""
    names = labels.read(copies / "files" / "labels", "HSN")
    shape = convnext.ConvNeXtConfig(depths=(1,), dims=(4,), num_classes=len(names))
    backbone = convnext.ConvNeXt(shape, rngs=nnx.Rngs(0))
    other = audioprotopnet.on(backbone, num_classes=len(names), key=jax.random.key(0))
    checkpoint.save_audioprotopnet(
        tmp_path / "other",
        other,
        class_names=names,
        front_end=audio.FrontEnd.birdset().to_dict(),
    )

    def get(front_end):
        checkpoint.save_classifier(
            tmp_path / "net",
            backbone,
            class_names=names,
            front_end=front_end,
            overwrite=True,
        )
        asked = config(
            copies / "files",
            tmp_path,
            weights=tmp_path / "net",
            prototypes=tmp_path / "other",
        )
        return networks.get(asked, tmp_path, None, data.SkipLog(), with_other=True)

    with pytest.raises(ValueError, match="--front-end birdset-128"):
        get(None)
    published = audio.FrontEnd.birdset_128().to_dict()
    with pytest.raises(ValueError, match="256 x 626 pixels, not 128 x 501"):
        get(published)
    assert get(audio.FrontEnd.birdset().to_dict()).front_end.shape == (256, 626)


def test_a_training_can_go_on_from_the_network_below_an_audioprotopnet(tmp_path):
    shape = convnext.ConvNeXtConfig(depths=(1,), dims=(4,), num_classes=0)
    backbone = convnext.ConvNeXt(shape, rngs=nnx.Rngs(0))
    other = audioprotopnet.on(backbone, num_classes=3, key=jax.random.key(0))
    checkpoint.save_audioprotopnet(tmp_path / "other", other, class_names=list("abc"))
    found = methods._pretrained(tmp_path / "other")
    new = convnext.continued(
        dataclasses.replace(shape, num_classes=7), found, jax.random.key(1)
    )
    arrays = convnext.named_arrays(new)
    assert arrays["head.kernel"].shape == (4, 7)
    for name, array in convnext.named_arrays(backbone).items():
        np.testing.assert_array_equal(arrays[name], array, err_msg=name)


def test_without_background_recordings_none_are_put_behind(copies, tmp_path):
    prototypes = settings.PrototypeTraining(augment=options.AUGMENT)
    asked = config(copies / "files", tmp_path, audioprotopnet=prototypes)
    found = networks.resolved(asked, tmp_path)
    for training in (found.train, found.audioprotopnet):
        assert training.augment.background == training.augment.no_call == 0
        assert training.augment.mix == 0.8
    kept = networks.resolved(
        config(copies / "files", tmp_path, background=tmp_path), tmp_path
    )
    assert kept.train.augment == options.AUGMENT
    # Asked for in so many words, it is not left out without one.
    wanted = dataclasses.replace(options.AUGMENT, no_call=0.2)
    for name, training in (
        ("train", settings.Training.birdset(wanted)),
        ("audioprotopnet", settings.PrototypeTraining(augment=wanted)),
    ):
        asked = config(copies / "files", tmp_path, **{name: training})
        message = f"--{name}.augment.no-call 0.2 takes recordings without birds"
        with pytest.raises(ValueError, match=message):
            networks.resolved(asked, tmp_path)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"table": "4", "prototypes": "x"}, "--prototypes is for --table 3"),
        ({"table": "4", "push_prototypes": True}, "--push-prototypes is for"),
        (
            {"table": "4", "audioprotopnet": settings.PrototypeTraining(epochs=3)},
            r"--audioprotopnet\.\* is for --table 3",
        ),
        ({"table": "4", "scheme": "time"}, "--scheme and --table 4"),
        ({"weights": "x", "pretrained": "y"}, "--pretrained and --weights"),
        (
            {"weights": "x", "prototypes": "y", "background": "z"},
            "--background and nothing to train",
        ),
    ],
)
def test_what_would_have_no_effect_is_refused(changes, message, tmp_path):
    given = {"data_dir": tmp_path, "labels": tmp_path, **changes}
    with pytest.raises(ValueError, match=message):
        options.Config(**given).check_given()
    fine = {"weights": "x", "background": "z"}  # behind an AudioProtoPNet's clips
    options.Config(data_dir=tmp_path, labels=tmp_path, **fine).check_given()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"test_on": ()}, "names no subset"),
        ({"test_on": ("NES",)}, "has no NES_ebird_codes"),
        ({"class_limit": 0}, "--class-limit must be at least 1"),
        ({"train_on": "XCL"}, "has no XCL_ebird_codes"),
        ({"push_prototypes": True, "prototypes": "x"}, "that is trained here"),
    ],
)
def test_refused(changes, message, copies, tmp_path):
    with pytest.raises(ValueError, match=message):
        table3.main(config(copies / "files", tmp_path / "out", **changes))


def test_table_4_is_of_one_set(copies, tmp_path):
    with pytest.raises(ValueError, match="of one test set; --test-on names 2"):
        table4.main(config(copies / "files", tmp_path / "out"))


def test_scores_of_absent_classes():
    """By hand: class 0 ranked perfectly, class 1 absent, class 2 everywhere."""
    target = np.array([[1, 0, 1], [0, 0, 1], [0, 0, 1]], bool)
    probability = np.array([[0.9, 0.5, 0.95], [0.7, 0.5, 0.5], [0.5, 0.5, 0.5]])
    found = table3.scores(target, probability)
    assert found["cmap"] == pytest.approx(1.0)
    assert found["auroc"] == pytest.approx(1.0)
    assert found["auroc_zero"] == pytest.approx(1 / 3)
    assert found["t1"] == pytest.approx(1 / 3)


def test_the_mean_leaves_out_what_chose_the_epoch():
    """By hand: POW, which the paper validates on, and two others."""
    tests = {
        name: {"scores": {method: {"cmap": value} for method in methods.TITLES}}
        for name, value in (("POW", 0.9), ("HSN", 0.2), ("SNE", 0.4))
    }
    rows = tables.scored({"tests": tests, "validate_on": "POW"}, "cmap")
    assert rows[0] == ("", "POW*", "HSN", "SNE", "mean")
    assert rows[1] == ("ConvNeXt", "0.90", "0.20", "0.40", "0.30")
    # The paper's HSN and SNE: 0.52 and 0.32.
    assert rows[2][-1] == "0.42"
    rows = tables.scored({"tests": tests, "validate_on": "NES"}, "cmap")
    assert rows[1][-1] == "0.50"


def test_each_method_has_its_own_probabilities():
    """AudioProtoPNet's classes stand alone, whatever the ConvNeXt's do."""
    logits = np.array([[0.0, 2.0], [1.0, -1.0]], np.float32)
    tested = methods.Tested(
        clips=[],
        head=classifier_lib.LinearHead(weight=np.eye(2), bias=np.zeros(2)),
        pooled=logits,
        logits={"classifier": logits, "audioprotopnet": logits},
        activation="softmax",
    )
    found = tested.probabilities()
    np.testing.assert_allclose(found["classifier"].sum(axis=1), 1)
    np.testing.assert_allclose(found["audioprotopnet"], 1 / (1 + np.exp(-logits)))
