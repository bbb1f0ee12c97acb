"""Kinds of events that share a class: shares by hand, and from a finished folder."""

import json
import types

import numpy as np
import pytest
import soundfile

from experiments.localisation import kinds, variants


def test_shares_by_hand():
    shown = [
        ["dog", "dog", "", "baby"],  # two of three planted are dogs
        ["", ""],  # none is planted
        ["baby", "baby"],
    ]
    known = ["dog", "baby", "baby", "baby"]
    found = kinds.measure(shown, [0, 0, 1, 2], ["dog", "rooster", "dog", "baby"], known)
    np.testing.assert_allclose(found["same"], [2 / 3, 0, np.nan, 1])
    np.testing.assert_allclose(found["chance"], [0.25, 0, 0.25, 0.75])
    np.testing.assert_allclose(found["pairs"], [1 / 3, 1])
    assert found["pairs by chance"] == 0.25**2 + 0.75**2
    assert found["tops"] == 3


@pytest.fixture
def finished(tmp_path, monkeypatch):
    """A folder of the event sound with two training clips of each of two kinds."""
    sounds, run = tmp_path / "sounds", tmp_path / "run"
    for number, name in enumerate(("dog_bark", "rooster", "person_sneeze", "baby_cry")):
        (sounds / name).mkdir(parents=True)
        soundfile.write(sounds / name / f"1-{number}-A.wav", np.zeros(8), 8000)
    (run / "corpus").mkdir(parents=True)
    lines = ["path,label,split,start_s,end_s,low_hz,high_hz,recording"]
    for number, recording in enumerate(["1-0", "1-3", "", "1-0", "1-3"]):
        label, place = ("planted", "0,1,2,3") if recording else ("clean", ",,,")
        lines.append(f"{number}.wav,{label},train,{place},{recording}")
    (run / "corpus" / "truth.csv").write_text("\n".join(lines) + "\n")
    explained = [{"clip": "a", "recording": "1-0"}, {"clip": "b", "recording": "1-3"}]
    row = {"scheme": "time", "evidence": "contrastive", "top": [[1, 0], [0, 1]]}
    scores = {
        "event": "sound",
        "seed": 2,
        "fits": ["time", "time"],
        "explained": explained,
        "settings": {"explain_clips": 4, "variants": ["paper"]},
        "rows": [{**row, "method": name} for name in (variants.RAW, "paper")],
    }
    (run / "scores.json").write_text(json.dumps(scores))

    # The clips of its banks alone, so that positions are not the training clips'.
    ids = [f"corpus/{number}.wav@0.000" for number in (4, 3, 2, 0)]
    clips = [types.SimpleNamespace(id=name) for name in ids]
    positive = types.SimpleNamespace(clip=np.array([[0, 2], [1, 3]]))  # baby; dog, dog
    raw = types.SimpleNamespace(clip=np.array([[1, 3], [0, 1]]))  # dogs; baby and dog
    explainer = types.SimpleNamespace(clips=clips, positive=positive, raw=raw)
    asked = []

    def load(folder):
        asked.append(folder)
        return explainer

    monkeypatch.setattr("apex_jax.explain.load", load)
    return sounds, run, asked


def test_a_finished_folder(finished, tmp_path, capsys):
    sounds, run, asked = finished
    output = tmp_path / "out"
    config = kinds.Config(runs=(run,), sounds=sounds, output=output)
    found = kinds.main(config)
    assert asked == [run / "paper" / "time"] * 2
    # Channel 1 is on top of the dog, channel 0 of the baby.
    assert found["rows"]["paper"]["same"][0] == 1
    assert found["rows"][variants.RAW]["same"][0] == (0.5 + 0) / 2
    # The fourth training clip is the last that U was learned on: dog, baby, dog.
    np.testing.assert_allclose(found["rows"]["paper"]["chance"][0], (2 / 3 + 1 / 3) / 2)
    assert json.loads(json.dumps(found)) == json.loads(
        (output / "kinds.json").read_text()
    )
    text = (output / "kinds.md").read_text()
    assert "| paper | 1.00 (0.16, 1.00) | 1.00 | 2 |" in text
    shown = capsys.readouterr().out
    assert "paper" in shown
    assert max(map(len, shown.splitlines()[:-1])) <= 80


def test_what_is_no_finished_folder(finished, tmp_path):
    sounds, run, _ = finished
    scores = json.loads((run / "scores.json").read_text())
    (run / "scores.json").write_text(json.dumps({**scores, "event": "burst"}))
    for runs in ((), (run,), (tmp_path,)):
        with pytest.raises(ValueError, match="runs/localisation/sound"):
            kinds.main(kinds.Config(runs=runs, sounds=sounds, output=tmp_path / "o"))
    assert not (tmp_path / "o").exists()


def test_other_sounds_than_those_of_the_run(finished, tmp_path):
    sounds, run, _ = finished
    (sounds / "baby_cry" / "1-3-A.wav").rename(sounds / "baby_cry" / "1-9-A.wav")
    with pytest.raises(ValueError, match=r"--sounds .* lacks recordings.* such as 1-3"):
        kinds.main(kinds.Config(runs=(run,), sounds=sounds, output=tmp_path / "o"))
