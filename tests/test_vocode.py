"""Fakes of one's own recordings: layout, splits by speaker, skipped, refused."""

import collections
import csv
import pathlib
import shutil

import numpy as np
import pytest
import soundfile

from experiments import vocode, vocoders
from experiments.wavefake import corpus as wavefake_corpus

RATE = 8000
NAMES = ("phase_jitter", "subband_alias")


@pytest.fixture
def recordings(tmp_path):
    """`digit_speaker_index`, in two folders, one with a file that is too short."""
    root, rng = tmp_path / "in", np.random.default_rng(0)
    for folder in ("a", "b"):
        (root / folder).mkdir(parents=True)
    for n in range(8):
        time = np.arange(RATE // 4) / RATE
        tone = 0.4 * np.sin(2 * np.pi * (200 + 50 * n) * time)
        wave = tone + rng.normal(0, 0.02, len(time))
        name = f"{n}_{'wxyz'[n % 4]}_0.wav"
        soundfile.write(root / "ab"[n // 4] / name, wave, RATE)
    soundfile.write(root / "b" / "9_w_0.wav", wave[:200], RATE)
    (root / "b" / "notes.txt").write_text("not a sound")
    return root


def run(recordings, **changes):
    output = recordings.parent / "out"
    settings = {"input": recordings, "output": output, "vocoders": NAMES}
    vocode.main(vocode.Config(**settings | changes))
    return output


def test_a_corpus_that_the_experiment_reads(recordings, capsys):
    output = run(recordings, speaker="_([a-z])_")
    corpus = wavefake_corpus.read(output)
    assert list(corpus.fake) == sorted(NAMES)
    sentences = [f"{'ab'[n // 4]}__{n}_{'wxyz'[n % 4]}_0" for n in range(8)]
    assert corpus.sentences == sentences
    for clip in corpus.real:
        real, rate = soundfile.read(clip.path)
        assert rate == RATE
        folder, name = clip.group.split("__")
        original, _ = soundfile.read(recordings / folder / f"{name}.wav")
        np.testing.assert_array_equal(real, original)
    for name in NAMES:
        for clip in corpus.fake[name]:
            fake, rate = soundfile.read(clip.path)
            assert (rate, len(fake)) == (RATE, RATE // 4)
    said = capsys.readouterr().out
    assert "8, each through 2 vocoders" in said
    assert "skipped" in said
    skipped = (output / "skipped.csv").read_text()
    assert "9_w_0.wav" in skipped
    assert "at least 0.1 s" in skipped


def rms(path):
    waveform, _ = soundfile.read(path)
    return np.sqrt(np.mean(waveform**2))


def test_loudness_tells_nothing_apart(tmp_path):
    """Also where a fake would clip, and where one is made again later."""
    rng = np.random.default_rng(0)
    time = np.arange(RATE // 2) / RATE
    (tmp_path / "in").mkdir()
    for name, level in (("loud", 0.95), ("quiet", 0.2)):
        # Harmonics in step: what changes phases raises or lowers the peak.
        wave = sum(np.sign(np.sin(2 * np.pi * f * time)) for f in (110, 220))
        wave = wave + 0.1 * rng.normal(size=len(time))
        wave *= level / np.abs(wave).max()
        soundfile.write(tmp_path / "in" / f"{name}.wav", wave, RATE)
    original, _ = soundfile.read(tmp_path / "in" / "loud.wav", dtype="float32")
    # The loud one does put it to the test.
    alone = {
        name: vocoders.VOCODERS[name](original, RATE, seed=[0])
        for name in vocoders.VOCODERS
    }
    loudness = {name: np.sqrt(np.mean(fake**2)) for name, fake in alone.items()}
    assert min(loudness.values()) < 0.95 * np.sqrt(np.mean(original**2))
    output = run(tmp_path / "in", vocoders=())
    files = {
        name: sorted(p for p in output.rglob("*.wav") if p.name.startswith(name))
        for name in ("loud", "quiet")
    }
    for paths in files.values():
        levels = [rms(path) for path in paths]
        assert len(levels) == 1 + len(vocoders.VOCODERS)
        assert max(levels) / min(levels) < 1.003
    real, _ = soundfile.read(output / "LJSpeech-1.1" / "wavs" / "quiet.wav")
    np.testing.assert_array_equal(
        real, soundfile.read(tmp_path / "in" / "quiet.wav")[0]
    )
    before = {path: path.read_bytes() for path in files["loud"]}
    victim = files["loud"][3]
    victim.unlink()
    run(tmp_path / "in", vocoders=())
    assert victim.read_bytes() == before[victim]


def test_what_is_made_even():
    made = {"a": np.full(4, 0.5), "b": np.full(4, -0.25), "c": np.full(4, 0.25002)}
    assert vocode.even(made) == {"a": 0.5, "b": 1, "c": 1}
    silent = vocode.even({"a": np.full(4, 0.5), "b": np.zeros(4)})
    assert silent == {"a": 1, "b": 1}
    assert vocode.even({"a": np.zeros(4)}) == {"a": 1}


def test_a_speaker_is_in_one_split(recordings):
    output = run(recordings, speaker="_([a-z])_")
    corpus = wavefake_corpus.read(output)
    splits = wavefake_corpus.split(
        corpus, NAMES[0], num_test=None, num_validation=None, cut=list
    )
    where = collections.defaultdict(set)
    for part, clips in splits._asdict().items():
        assert clips
        for clip in clips:
            where[clip.group.split("_")[-2]].add(part)
    assert {tuple(parts) for parts in where.values()} == {
        ("train",),
        ("validation",),
        ("test",),
    }
    with (output / "splits.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 8
    assert all(row["sentence"].split("_")[-2] == row["speaker"] for row in rows)
    with pytest.raises(ValueError, match=r"has a splits\.csv"):
        wavefake_corpus.split(
            corpus, NAMES[0], num_test=2, num_validation=None, cut=list
        )


def test_without_speakers_there_are_no_splits(recordings):
    output = run(recordings, limit=3)
    assert not (output / "splits.csv").exists()
    corpus = wavefake_corpus.read(output)
    assert len(corpus.real) == 3
    assert corpus.splits == {}


def test_the_seed_decides_and_what_is_there_stays(recordings):
    output = run(recordings, limit=2)
    first = {p: p.read_bytes() for p in output.rglob("*.wav")}
    times = {p: p.stat().st_mtime_ns for p in first}
    run(recordings, limit=2)
    assert {p: p.stat().st_mtime_ns for p in first} == times
    victim = next(p for p in first if "phase_jitter" in str(p))
    victim.unlink()
    run(recordings, limit=2)
    assert victim.read_bytes() == first[victim]
    with pytest.raises(ValueError, match="was made with"):
        run(recordings, limit=2, seed=1)
    run(recordings, limit=2, seed=1, overwrite=True)
    assert victim.read_bytes() != first[victim]


def test_nothing_of_another_corpus_stays(recordings):
    output = run(recordings, speaker="_([a-z])_")
    (output / "mine.txt").write_text("mine")
    run(recordings, limit=2, vocoders=NAMES[:1], overwrite=True)
    corpus = wavefake_corpus.read(output)
    assert (len(corpus.real), list(corpus.fake)) == (2, [NAMES[0]])
    assert corpus.splits == {}  # there were speakers, now there are none
    assert (output / "mine.txt").read_text() == "mine"


def test_interrupted_while_making_anew(recordings, monkeypatch):
    """The next command goes on, and mixes nothing of the old with the new."""
    wanted = {"limit": 4, "seed": 1, "overwrite": True}
    run(recordings, limit=4)
    real, calls = vocode._make, []

    def killed(job):
        calls.append(job)
        if len(calls) == 3:
            raise KeyboardInterrupt
        return real(job)

    monkeypatch.setattr(vocode, "_make", killed)
    with pytest.raises(KeyboardInterrupt):
        run(recordings, **wanted)
    monkeypatch.setattr(vocode, "_make", real)
    output = run(recordings, **wanted)
    resumed = {p.name: p.read_bytes() for p in output.rglob("*_gen.wav")}
    shutil.rmtree(output)
    run(recordings, **wanted)
    assert {p.name: p.read_bytes() for p in output.rglob("*_gen.wav")} == resumed


def test_a_corpus_made_elsewhere_is_not_touched(recordings):
    """The release itself, say."""
    precious = recordings.parent / "out" / "LJSpeech-1.1" / "wavs" / "a.wav"
    precious.parent.mkdir(parents=True)
    precious.write_bytes(b"precious")
    for overwrite in (False, True):
        with pytest.raises(ValueError, match="was not made by this command"):
            run(recordings, overwrite=overwrite)
    assert precious.read_bytes() == b"precious"


def test_speakers_go_to_splits_up_to_about_a_fifth():
    speaker = {f"{n}": who for n, who in enumerate("aaaabbbbccccddddeeee")}
    found = vocode.by_speaker(speaker, seed=3)
    of = collections.defaultdict(set)
    for sentence, (split, who) in found.items():
        assert who == speaker[sentence]
        of[split].add(who)
    assert {split: len(who) for split, who in of.items()} == {
        "test": 1,
        "validation": 1,
        "train": 3,
    }
    # Six equal ones: one is nearer to a fifth than two.
    six = vocode.by_speaker({f"{n}": f"{n % 6}" for n in range(30)})
    assert [sum(s == part for s, _ in six.values()) for part in of] == [
        {"test": 5, "validation": 5, "train": 20}[part] for part in of
    ]
    # Many small ones add up.
    many = vocode.by_speaker({f"{n}": f"{n // 2}" for n in range(100)})
    assert sum(s == "test" for s, _ in many.values()) == 20
    others = {vocode.by_speaker(speaker, seed=n)["0"][0] for n in range(40)}
    assert others == {"test", "validation", "train"}
    # However uneven: someone is left to train on.
    uneven = vocode.by_speaker({"0": "a", "1": "b", "2": "c"})
    assert {split for split, _ in uneven.values()} == {"test", "validation", "train"}


@pytest.mark.parametrize(
    ("pattern", "message"),
    [
        ("_(", "--speaker"),
        ("_[a-z]_", "one group"),
        ("(q)", "does not fit 0_w_0.wav"),
        ("(_)", "needs|three or more"),
    ],
)
def test_patterns_that_find_no_speakers(pattern, message, recordings):
    with pytest.raises(ValueError, match=message):
        run(recordings, speaker=pattern)
    assert not (recordings.parent / "out").exists()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"vocoders": ("wavenet",)}, "wavenet: there are griffin_lim_long"),
        ({"sample_rate": 4000}, "at least 8000; got 4000"),
        ({"limit": 0}, "--limit must be at least 1"),
        ({"input": pathlib.Path("nowhere")}, "is not a folder"),
    ],
)
def test_what_cannot_work(changes, message, recordings):
    with pytest.raises(ValueError, match=message):
        run(recordings, **changes)


def test_two_recordings_of_one_name(recordings):
    (recordings / "a" / "0_w_0.flac").touch()
    with pytest.raises(ValueError, match="would both be a__0_w_0"):
        run(recordings)


def test_nothing_usable(tmp_path):
    (tmp_path / "in").mkdir()
    with pytest.raises(ValueError, match=r"has no \.wav"):
        vocode.find(tmp_path / "in")
    (tmp_path / "in" / "x.wav").write_text("no sound")
    with pytest.raises(ValueError, match="none of the 1 recordings could be used"):
        run(tmp_path / "in")


def test_splits_that_lack_a_sentence(recordings):
    output = run(recordings, speaker="_([a-z])_", limit=8)
    file = output / "splits.csv"
    whole = file.read_text()
    file.write_text("\n".join(whole.splitlines()[:-1]) + "\n")
    with pytest.raises(ValueError, match="missing b__7_z_0"):
        wavefake_corpus.read(output)
    file.write_text(whole.replace("train", "learn"))
    with pytest.raises(ValueError, match=r"splits \['learn'\]"):
        wavefake_corpus.read(output)


def test_in_processes_of_their_own(recordings, monkeypatch):
    alone = {p.name: p.read_bytes() for p in run(recordings).rglob("*.wav")}
    monkeypatch.setattr(vocode, "ENOUGH", 1)
    output = run(recordings, output=recordings.parent / "other")
    assert {p.name: p.read_bytes() for p in output.rglob("*.wav")} == alone


def test_all_vocoders_by_default():
    assert vocode.Config(input=".", output=".").vocoders == ()
    assert len(vocoders.VOCODERS) == 7
