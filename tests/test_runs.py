"""A run's folder: who may write into it, and what is written."""

import csv
import dataclasses
import json
import os
from pathlib import Path

import jax.numpy as jnp
import numpy as np
import pytest
import test_cache

from apex_jax import (
    audio,
    bank,
    cache,
    data,
    disentangle,
    explain,
    progress,
    runs,
    train,
)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config:
    out: Path = Path("x")
    number: int = 3
    span: tuple[float, float] = (1.0, 2.0)
    overwrite: bool = False


def test_a_folder_is_claimed_once(tmp_path):
    run = tmp_path / "deep" / "run"
    runs.claim(run, Config(), split={"seed": 0})
    assert json.loads((run / "config.json").read_text()) == {
        "out": "x",
        "number": 3,
        "span": [1.0, 2.0],
        "overwrite": False,
        "split": {"seed": 0},
    }
    # Not finished: other settings may go on.
    runs.claim(run, Config(number=4), split={"seed": 0})
    for name in ("results.json", "bank.csv"):
        (run / name).write_text("{}")
    for other in (
        lambda: runs.claim(run, Config(number=5), split={"seed": 0}),
        lambda: runs.claim(run, Config(number=4), split={"seed": 1}),
    ):
        with pytest.raises(ValueError, match=r"finished run of other .*--overwrite"):
            other()
    assert json.loads((run / "config.json").read_text())["number"] == 4
    # The same again: what it says stays true. Or another, if it is meant.
    assert runs.claim(run, Config(number=4), split={"seed": 0})
    assert (run / "results.json").exists()
    assert not runs.claim(run, Config(number=5, overwrite=True))
    assert runs.read_json(run / "config.json")["number"] == 5
    visible = [p.name for p in run.iterdir() if not p.name.startswith(".")]
    assert sorted(visible) == ["bank.csv", "config.json"]


def test_a_refusal_says_what_differs_and_changes_nothing(tmp_path):
    runs.claim(tmp_path, Config(), clips="a", split={"seed": (0, 1)})
    (tmp_path / "results.json").write_text("{}")
    before = {f.name: f.read_bytes() for f in tmp_path.iterdir()}
    assert runs.hold(tmp_path, Config(), clips="a", split={"seed": (0, 1)})
    for config, clips, what in (
        (Config(), "b", r"settings \(clips\)"),
        (Config(number=4), "b", r"settings \(clips, number\)"),
    ):
        with pytest.raises(ValueError, match=what):
            runs.hold(tmp_path, config, clips=clips, split={"seed": (0, 1)})
    # To hold a folder is not yet to begin: something else may refuse the run.
    runs.hold(tmp_path, Config(number=4, overwrite=True), clips="b")
    assert {f.name: f.read_bytes() for f in tmp_path.iterdir()} == before
    runs.begin(tmp_path, Config(number=4, overwrite=True), clips="b")
    assert not (tmp_path / "results.json").exists()


@pytest.mark.parametrize("text", ["", "{", "[1]", "[" * 100_000, "null", "\xff"])
def test_a_damaged_file_of_a_run_is_named(text, tmp_path):
    (tmp_path / "config.json").write_text(text, encoding="latin-1")
    for read in (
        lambda: runs.read_json(tmp_path / "config.json"),
        lambda: runs.claim(tmp_path, Config()),
        lambda: runs.is_finished(tmp_path / "config.json", "x"),
    ):
        with pytest.raises(ValueError, match=r"config\.json is damaged: .*delete it"):
            read()


def test_results_of_something_else_are_not_replaced(tmp_path):
    (tmp_path / "results.json").write_text("{}")
    with pytest.raises(ValueError, match="finished run"):
        runs.claim(tmp_path, Config())


def test_options_that_are_too_small():
    runs.check_least(Config(), number=3)
    with pytest.raises(ValueError, match="--number must be at least 4; got 3"):
        runs.check_least(Config(), number=4)
    with pytest.raises(ValueError, match="--windows-per-file must be"):
        runs.check_least(dataclasses.make_dataclass("C", ["windows_per_file"])(0),
                         windows_per_file=1)  # fmt: skip


@pytest.fixture(scope="module")
def sounds(tmp_path_factory):
    return test_cache.write_clips(tmp_path_factory.mktemp("sounds"))


def options():
    return {
        "batch_size": 4,
        "mesh": test_cache.mesh_of(1),
        "skip_log": data.SkipLog(),
    }


def test_features_of_something_else_are_made_anew(tmp_path, sounds, capsys):
    folder = tmp_path / "train"
    front_end = test_cache.FRONT_END
    classifiers = [test_cache.classifier_of(seed=seed) for seed in (0, 1)]
    first, other = (
        runs.features(folder, c, sounds, front_end, **options()) for c in classifiers
    )
    assert "other weights than asked for now" in capsys.readouterr().out
    assert not np.allclose(first.features.logits, other.features.logits)
    again = runs.features(folder, classifiers[1], sounds, front_end, **options())
    np.testing.assert_array_equal(again.features.logits, other.features.logits)
    assert "making it anew" not in capsys.readouterr().out


def test_predictions_leave_out_what_cannot_be_read(sounds, tmp_path):
    classifier, front_end = test_cache.classifier_of(), test_cache.FRONT_END
    gone = data.Clip(path=tmp_path / "gone.wav", label=0)
    clips = [*sounds[:3], gone, *sounds[3:6]]
    some = options()
    read, pooled, logits = runs.predictions("x", classifier, clips, front_end, **some)
    assert read == [*sounds[:3], *sounds[3:6]]
    cached = cache.build(tmp_path / "cache", classifier, sounds[:6], front_end)
    np.testing.assert_allclose(pooled, cached.features.pooled, atol=1e-4)
    np.testing.assert_allclose(logits, cached.features.logits, atol=1e-4)
    assert [path for path, _ in some["skip_log"].entries()] == [str(gone.path)]
    with pytest.raises(ValueError, match="none of the 1 clips"):
        runs.predictions("x", classifier, [gone], front_end, **some)


def explainer_of(scheme="frequency", seed=0, **changes):
    """Two prototypes of each of twelve channels; a clip may have several classes."""
    chan = test_cache.CHAN
    clips = [
        data.Clip(path="a.wav", label=(0, 2)),
        data.Clip(path="b.wav", label=1, offset_s=0.5),
    ]
    banks = [
        bank.Bank(
            clip=jnp.tile(jnp.array([[0, 1]], jnp.int32), (chan, 1)),
            activation=jnp.full((chan, 2), 2.5, jnp.float32),
            location=jnp.tile(jnp.array([1, -1], jnp.int32), (chan, 2, 1)),
            purity=jnp.full((chan, 2), 0.25, jnp.float32),
            scheme=scheme,
            sign=sign,
        )
        for sign in ("positive", "negative")
    ]
    explainer = explain.Explainer(
        classifier=test_cache.classifier_of(seed=seed),
        transform=disentangle.identity(chan),
        positive=banks[0],
        negative=banks[1],
        clips=clips,
        front_end=test_cache.FRONT_END,
    )
    return dataclasses.replace(explainer, **changes)


def test_runs_given_together_tell_of_one_classifier(tmp_path, monkeypatch):
    louder = dataclasses.replace(test_cache.FRONT_END, mean=1.0)
    made = {
        "frequency": explainer_of(),
        "square": explainer_of("square"),
        "cross": explainer_of("time_frequency"),
        "again": explainer_of("time_frequency"),
        "network": explainer_of("time", seed=1),
        "sound": explainer_of("time", front_end=louder),
        "maps": explainer_of("time", front_end=None),
    }
    asked = []

    def load(folder, *, data):
        asked.append(data)
        return made[folder.name]

    monkeypatch.setattr(explain, "load", load)
    folders = {name: tmp_path / name for name in made}

    def together(*names):
        return runs.load([folders[n] for n in names], data=tmp_path / "moved")

    found = together("square", "frequency", "cross")
    assert list(found) == [folders[n] for n in ("square", "frequency", "cross")]
    assert found[folders["cross"]] is made["cross"]
    assert set(asked) == {tmp_path / "moved"}
    for names, message in (
        (("square", "network"), "network explains another classifier than .*square"),
        (("square", "sound"), "sound explains another front end than .*square"),
        (("cross", "square", "again"), "again and .*cross are both of scheme time-fre"),
        (("square", "square"), "square and .*square are both of scheme square"),
        (("square", "maps"), "takes sound"),
    ):
        with pytest.raises(ValueError, match=message):
            together(*names)


def test_a_run_of_train_is_no_run_of_fit(tmp_path):
    (tmp_path / "classifier").mkdir()
    with pytest.raises(
        ValueError, match=r"run of apex-jax train; fit it first: apex-jax fit --weights"
    ):
        runs.load([tmp_path])


def test_a_prototypes_file_is_called_one(tmp_path):
    explainers = {
        tmp_path / "square": explainer_of(
            "square", clips=[data.Clip(path="c", label=0)] * 2
        ),
        tmp_path / "cross": explainer_of("time_frequency"),
    }
    gone = audio.AudioError("b.wav", "missing")
    with (
        pytest.raises(
            ValueError, match=r"prototype's file of run .*cross .*b.wav: missing"
        ),
        runs.naming_prototypes(explainers),
    ):
        raise audio.AudioError("b.wav", "missing. Do this in Python") from gone
    with (
        pytest.raises(ValueError, match=r"missing\. Fit it again, or --data DIR"),
        runs.naming_prototypes(explainers),
    ):
        raise gone
    with pytest.raises(audio.AudioError), runs.naming_prototypes(explainers):
        raise audio.AudioError("query.wav", "missing")


def test_the_bank_as_a_table(tmp_path):
    chan = test_cache.CHAN
    explainer = explainer_of()
    runs.write_bank(tmp_path / "bank.csv", explainer)
    with (tmp_path / "bank.csv").open(newline="", encoding="utf-8") as file:
        header, *rows = csv.reader(file)
    assert tuple(header) == runs.BANK_HEADER
    assert len(rows) == 2 * chan * 2
    low, high = test_cache.FRONT_END.band_hz(8, 16)
    start, end = test_cache.FRONT_END.span_s(0, 32)
    region = f"{start:.2f}-{end:.2f} s, {low:.0f}-{high:.0f} Hz"
    assert rows[0] == ["0", "positive", "1", "a.wav", "0.000", "low, high", "2.5",
                       "0.2500", region]  # fmt: skip
    assert rows[1][2:6] == ["2", "b.wav", "0.500", "middle"]
    assert rows[-1][:2] == [str(chan - 1), "negative"]

    assert runs.front_end_of(explainer) is test_cache.FRONT_END
    of_maps = dataclasses.replace(explainer, front_end=None)
    with pytest.raises(ValueError, match="feature maps that were computed elsewhere"):
        runs.front_end_of(of_maps)


# What is said


def test_reports_fit_a_terminal_of_80_columns(capsys):
    runs.report("label", "word " * 40, "", "more", "x" * 60)
    lines = capsys.readouterr().out.splitlines()
    assert max(map(len, lines)) <= 80
    assert lines[0].startswith("label        word word")
    assert all(line.startswith(" " * runs.INDENT) for line in lines[1:])
    assert lines[-2].strip() == "more"


def test_the_end_of_a_run(tmp_path, capsys):
    stages = progress.Stages()
    with stages("train"):
        pass
    log = data.SkipLog()
    runs.report_end(tmp_path, log, stages, "apex-jax x")
    assert capsys.readouterr().out.splitlines() == [
        "seconds      train 0; compiling 0 of it",
        f"written to   {tmp_path}",
        "then         apex-jax x",
    ]
    log.add(data.audio.AudioError("a.wav", "missing"))
    runs.report_end(tmp_path, log, stages, "apex-jax x")
    assert "1 files, listed in" in capsys.readouterr().out


def test_audits_are_lines_of_a_table(capsys):
    audit = disentangle.audit(
        disentangle.identity(4),
        test_cache.classifier_of().head.__class__(weight=jnp.eye(4), bias=jnp.zeros(4)),
        np.eye(4, dtype=np.float32),
        np.eye(4, dtype=np.float32),
    )
    runs.report_audits({"train": audit, "test": audit})
    assert capsys.readouterr().out.splitlines() == [
        "invariance   train       0 of 4 predictions changed, logits within 0.0e+00",
        "             test        0 of 4 predictions changed, logits within 0.0e+00",
        "             cond(U)     1.0",
    ]
    runs.report_audits({"test": dataclasses.replace(audit, near_ties=2)})
    lines = capsys.readouterr().out.splitlines()
    assert lines[1] == "                         2 ties decided by rounding"


def test_json_comes_back(tmp_path):
    content = {"a": [1, 2.5, None], "é": "x"}
    runs.write_json(tmp_path / "a.json", content)
    assert (tmp_path / "a.json").read_text().endswith("}\n")
    assert runs.read_json(tmp_path / "a.json") == content
    assert runs.read_json(tmp_path / "none.json") is None


def test_the_bank_keeps_names_that_are_no_text(tmp_path):
    clips = [data.Clip(path=os.fsdecode(b"bad\xff.wav"), label=0)] * 2
    runs.write_bank(tmp_path / "bank.csv", explainer_of(clips=clips))
    assert b"positive,1,bad\xff.wav,0.000" in (tmp_path / "bank.csv").read_bytes()


def test_a_network_is_trained_once(tmp_path):
    """And replaced only if that is meant, by one that is made from something else."""
    begun = []
    sound = tmp_path / "a.wav"
    sound.write_bytes(b"1")
    clips = [data.Clip(path=sound, label=0)]
    kept, trainings = tmp_path / "run" / "network", []
    fits_log = data.SkipLog()
    config = Config(number=4)

    only = train.Epoch(
        epoch=1,
        train_loss=0.5,
        validation_loss=0.25,
        validation_accuracy=None,
        learning_rate=1e-3,
    )

    def fit(*, on_epoch, on_progress, state_dir):
        trainings.append(state_dir)
        state_dir.mkdir()
        on_epoch(only)
        fits_log.add(audio.AudioError(sound, "loud"))
        fits_log.add(audio.AudioError("of something else", "quiet"))
        return "network", [only]

    def run(rate=0.1, overwrite=False, log=None):
        return runs.trained(
            kept,
            fit,
            load=lambda path: (path.read_text(), {}),
            save=lambda path, network: path.write_text(network),
            clips=(clips, clips),
            made_from={"settings": repr(rate), "weights": np.ones(3)},
            overwrite=overwrite,
            label="train",
            total=1,
            skip_log=fits_log if log is None else log,
            begin=lambda: begun.append(rate),
        )

    assert not runs.claim(tmp_path / "run", config)
    assert run() == ("network", [only])
    assert not trainings[0].exists()
    assert runs.claim(tmp_path / "run", config)
    # What was skipped then is known now, and only that.
    log = data.SkipLog()
    assert run(log=log) == ("network", [only])
    assert log.entries() == [(str(sound), "loud")]
    with pytest.raises(audio.AudioError, match="loud"):
        run(log=data.SkipLog(strict=True))
    assert len(trainings) == 1
    # An option that the training does not depend on.
    assert not runs.claim(tmp_path / "run", Config(number=5))
    run()
    assert len(trainings) == 1
    with pytest.raises(ValueError, match=r"made from other settings; .*--overwrite"):
        run(rate=0.2)
    sound.write_bytes(b"22")
    with pytest.raises(ValueError, match="made from other clips and settings"):
        run(rate=0.2)
    assert 0.2 not in begun  # a refusal begins nothing
    assert kept.read_text() == "network"
    run(rate=0.2, overwrite=True)
    assert len(trainings) == 2
    run(rate=0.2)
    assert len(trainings) == 2
    # The same files under another label teach something else.
    clips[0] = data.Clip(path=sound, label=1)
    with pytest.raises(ValueError, match="made from other clips"):
        run(rate=0.2)


def test_which_clips_are_trained_on_is_part_of_what_a_network_is_made_from(tmp_path):
    a, b, c = (data.Clip(path=tmp_path / name, label=0) for name in "abc")

    def run(*clips):
        return runs.trained(
            tmp_path / "network",
            lambda **options: ("network", []),
            load=lambda path: (path.read_text(), {}),
            save=lambda path, network: path.write_text(network),
            clips=clips,
            made_from={},
            overwrite=False,
            label="train",
            total=1,
            skip_log=data.SkipLog(),
        )

    run([a, b], [c])
    run([a, b], [c])
    with pytest.raises(ValueError, match="made from other clips"):
        run([a], [b, c])


def test_an_interrupted_training_is_not_thrown_away(tmp_path):
    """The same goes on with its state; another is refused, or begins without it."""
    kept, states = tmp_path / "network", []

    def interrupted(*, on_epoch, on_progress, state_dir):
        states.append(state_dir.exists())
        state_dir.mkdir(exist_ok=True)
        raise KeyboardInterrupt

    def run(rate=0.1, overwrite=False):
        with pytest.raises(KeyboardInterrupt):
            runs.trained(
                kept,
                interrupted,
                load=lambda path: ("network", {}),
                save=lambda path, network: None,
                clips=(),
                made_from={"settings": repr(rate)},
                overwrite=overwrite,
                label="train",
                total=1,
                skip_log=data.SkipLog(),
            )

    run()
    run()
    with pytest.raises(ValueError, match="made from other settings"):
        run(rate=0.2)
    run(rate=0.2, overwrite=True)
    assert states == [False, True, False]


def test_a_finished_part_is_of_the_same_settings_and_made_from_the_same(tmp_path):
    file, sound = tmp_path / "results.json", tmp_path / "a.wav"
    sound.write_bytes(b"1")
    clips = [data.Clip(path=sound, label=0)]

    def settings(config, weights=0.0):
        return runs.settings_of(config, runs.digest_of(clips), np.full(2, weights))

    assert not runs.is_finished(file, settings(Config()))
    runs.write_json(file, {"settings": settings(Config(overwrite=True))})
    assert runs.is_finished(file, settings(Config()))
    assert not runs.is_finished(file, settings(Config(number=4)))
    assert not runs.is_finished(file, settings(Config(), weights=1.0))
    sound.write_bytes(b"22")
    assert not runs.is_finished(file, settings(Config()))
    runs.write_json(file, {})
    assert not runs.is_finished(file, settings(Config()))


def test_a_digest_of_clips_tells_all_of_them(tmp_path):
    file = tmp_path / "a\udcff.wav"  # a name that is no text
    file.write_bytes(b"1")
    a, b = data.Clip(path=file, label=0), data.Clip(path="absent.wav", label=1)

    def changed(**what):
        return dataclasses.replace(a, **what)

    found = [
        runs.digest_of(*clips)
        for clips in (
            ([a], [b]),
            ([b], [a]),
            ([a, b], []),
            ([changed(label=1)], [b]),
            ([changed(offset_s=0.5)], [b]),
            ([changed(group="c")], [b]),
            ([changed(within=(0.0, 1.0))], [b]),
        )
    ]
    assert len(set(found)) == len(found)
    assert runs.digest_of((a,), (b,)) == found[0]
    file.write_bytes(b"22")
    assert runs.digest_of([a], [b]) != found[0]


def test_what_was_skipped_is_said_beside_and_gathered(tmp_path):
    log = data.SkipLog()
    log.add(audio.AudioError("a\n.wav", "broken"))
    page = tmp_path / "page.html"
    beside = runs.write_skipped(page, log)
    assert beside == tmp_path / "page-skipped.csv"
    assert runs.write_skipped(page, data.SkipLog()) is None
    assert not beside.exists()
    for name, path in (("one", "a.wav"), ("two", "b.wav"), ("three", "a.wav")):
        (tmp_path / name).mkdir()
        log = data.SkipLog()
        log.add(audio.AudioError(path, "broken"))
        log.write_csv(tmp_path / name / runs.SKIPPED)
    parts = [tmp_path / name for name in ("one", "two", "three", "never")]
    assert runs.gather_skipped(tmp_path, parts) == 2
    again = data.SkipLog()
    again.read_csv(tmp_path / runs.SKIPPED)
    assert again.entries() == [("a.wav", "broken"), ("b.wav", "broken")]


def test_what_is_said_gives_a_terminal_no_commands(capsys):
    runs.say("a\x1b[2Jb\x07\u202ec\td\ne")
    assert capsys.readouterr().out == "a\\x1b[2Jb\\x07\\u202ec\td\ne\n"
