"""Planted events are where they are said to be; what they are planted in."""

import itertools
from pathlib import Path

import numpy as np
import pytest
import soundfile

from apex_jax import data
from experiments.localisation import (
    corpus,
    options,
    plants,
)

RATE = 8000


@pytest.mark.parametrize("name", ["burst", "band", "click"])
def test_what_is_planted_is_where_it_is_said_to_be(name, rng):
    """Nine tenths of what was added lie in the box, give or take the edges' width."""
    waveform = 0.1 * rng.normal(size=RATE)
    planted, event = getattr(plants, name)(rng, waveform, RATE, 1500.0)
    added = planted - waveform
    outside = np.ones(RATE, bool)
    end = RATE if event.end_s == np.inf else round(event.end_s * RATE)
    outside[round(event.start_s * RATE) : end] = False
    assert not np.any(added[outside])
    power = np.abs(np.fft.rfft(added)) ** 2
    hz = np.fft.rfftfreq(RATE, 1 / RATE)
    inside = (hz >= event.low_hz - 20) & (hz <= event.high_hz + 20)
    assert power[inside].sum() > 0.9 * power.sum()


def test_a_real_sounds_band_is_where_its_energy_is(rng):
    at = np.arange(RATE // 4) / RATE
    tone = np.sin(2 * np.pi * 1000 * at) + np.sin(2 * np.pi * 1400 * at)
    planted, event = plants.sound(rng, 0.05 * rng.normal(size=RATE), RATE, tone)
    assert event.low_hz == pytest.approx(1000, abs=20)
    assert event.high_hz == pytest.approx(1400, abs=20)
    assert event.end_s - event.start_s == pytest.approx(0.25)
    assert len(planted) == RATE


def test_the_loudest_moment_of_a_recording(rng):
    recording = 0.01 * rng.normal(size=2 * RATE)
    recording[9000:11000] += rng.normal(size=2000)
    cut = plants.loudest(recording, RATE)
    assert 2000 <= len(cut) <= 2000 + 0.1 * RATE
    assert len(plants.loudest(rng.normal(size=5 * RATE), RATE, most_s=0.5)) <= 4000
    whole = rng.normal(size=100)
    np.testing.assert_array_equal(plants.loudest(whole, RATE), whole)


@pytest.fixture
def speech(tmp_path, rng):
    for number in range(8):
        path = tmp_path / "speech" / f"{number}_someone_{number}.wav"
        path.parent.mkdir(exist_ok=True)
        soundfile.write(path, 0.1 * rng.normal(size=3000), RATE)
    return tmp_path / "speech"


def config_of(**more):
    return options.Config(events=("burst",), clips=(6, 4, 4), **more)


def test_a_corpus_is_made_once_and_the_same_again(tmp_path, speech):
    config = config_of(speech=speech)

    def make(folder, seed=0):
        told = []
        made = corpus.make(
            folder,
            config,
            "burst",
            seed,
            skip_log=data.SkipLog(),
            on_progress=told.append,
        )
        samples = [soundfile.read(c.path)[0] for c in made.splits.train]
        return made, samples, sum(told)

    made, samples, count = make(tmp_path / "one")
    assert count == 14
    labels = [clip.label for clip in made.splits.train]
    assert labels == [0, 1, 0, 1, 0, 1]
    assert [len(p) for p in (made.splits.validation, made.splits.test)] == [4, 4]
    events = corpus.of(made, [c for c in made.splits.test if c.label])
    assert all(e.end_s - e.start_s == pytest.approx(plants.BURST_S) for e in events)
    assert len({e.low_hz for e in events}) == 1  # one band a corpus
    assert len({e.start_s for e in events}) == len(events)

    again, _, count = make(tmp_path / "one")
    assert (again, count) == (made, 0)
    _, other, _ = make(tmp_path / "two")
    np.testing.assert_array_equal(samples, other)
    _, other, _ = make(tmp_path / "three", seed=1)
    assert not np.array_equal(samples, other)


def test_no_recording_is_in_two_splits(speech):
    parts = corpus._sources(config_of(speech=speech), "burst", 0)["background"]
    names = [{path.name for path in part} for part in parts]
    assert sum(map(len, names)) == len(set.union(*names)) == 8
    assert all(names)
    few = [Path("1-100-A.wav"), Path("1-100-B.wav"), Path("2-7-A.wav")]
    with pytest.raises(ValueError, match="2 recordings are too few"):
        corpus._split(few, 0)  # takes of a source are one recording


def test_real_sounds_over_others_and_which_they_are(tmp_path, rng):
    """As ESC-10 lies: takes of one source share the first two parts of their name."""
    rate = options.SOUNDS.sample_rate
    for kind, names in (("event", corpus.EVENTS), ("background", corpus.BACKGROUNDS)):
        for number, name in enumerate(names):
            for source, take in itertools.product("xy", "AB"):
                sound = 0.01 * rng.normal(size=4 * rate)
                if kind == "event":  # loud for a moment
                    sound[rate : rate + rate // 4] *= 30
                path = (
                    tmp_path / "esc10" / name / f"1-{number}{source}{kind}-{take}-7.wav"
                )
                path.parent.mkdir(parents=True, exist_ok=True)
                soundfile.write(path, sound.clip(-1, 1), rate)
    config = options.Config(
        events=("sound",), clips=(20, 8, 8), sounds=tmp_path / "esc10"
    )
    log = data.SkipLog(strict=True)
    made = corpus.make(tmp_path / "made", config, "sound", 0, skip_log=log)
    heard = []
    for part in (made.splits.train, made.splits.validation, made.splits.test):
        planted = [str(clip.path) for clip in part if clip.label]
        assert planted == [str(c.path) for c in part if str(c.path) in made.recordings]
        heard.append({made.recordings[path] for path in planted})
        for path in planted:
            samples, _ = soundfile.read(path)
            event = made.events[path]
            start, end = (round(t * rate) for t in (event.start_s, event.end_s))
            assert 0.2 < event.end_s - event.start_s < 0.4
            inside, outside = samples[start:end], np.delete(samples, slice(start, end))
            assert np.mean(inside**2) > 5 * np.mean(outside**2)
    assert all(heard)
    assert sum(map(len, heard)) == len(set.union(*heard)) <= 2 * len(corpus.EVENTS)


def test_esc10_as_its_authors_name_its_folders(tmp_path):
    names = (*corpus.EVENTS, *corpus.BACKGROUNDS)
    for number, name in enumerate(names):
        theirs = f"{number:03d} - {name.capitalize().replace('_', ' ')}"
        (tmp_path / theirs).mkdir()
    found = corpus.folders_of(tmp_path)
    assert list(found) == list(names)
    assert found["dog_bark"].name == "000 - Dog bark"
    for name in ("rooster", "fire_crackling"):
        found[name].rmdir()
    with pytest.raises(ValueError, match="no folder for rooster, fire_crackling; it"):
        corpus.folders_of(tmp_path)


def test_only_the_event_tells_clips_apart(tmp_path, speech, monkeypatch):
    """A clean clip is turned down as if it had the event, which is planted too."""
    alike = np.random.default_rng
    # Every clip from the same draws: the event's clip less the clean one is the event.
    monkeypatch.setattr(
        np.random,
        "default_rng",
        lambda seed: alike(seed[:3] if len(seed) > 3 else seed),
    )
    monkeypatch.setitem(plants.LEVEL_DB, "burst", (20.0, 20.0))
    log = data.SkipLog(strict=True)
    config = config_of(speech=speech)
    made = corpus.make(tmp_path / "made", config, "burst", 0, skip_log=log)
    clean, planted = (
        soundfile.read(made.splits.train[label].path)[0] for label in (0, 1)
    )
    event = made.events[str(made.splits.train[1].path)]
    start, end = (round(t * RATE) for t in (event.start_s, event.end_s))
    outside = np.delete(clean - planted, slice(start, end))
    np.testing.assert_allclose(outside, 0, atol=2 / 2**15)
    assert np.abs(planted).max() > 0.98 > 4 * np.abs(clean).max()


def test_silence_is_drawn_anew(tmp_path, rng):
    """An event that is as loud as nothing would be none."""
    for number in range(8):
        path = tmp_path / "speech" / f"{number}_someone_{number}.wav"
        path.parent.mkdir(exist_ok=True)
        sound = np.zeros(3 * RATE)
        sound[:2000] = 0.1 * rng.normal(size=2000)
        soundfile.write(path, sound, RATE)
    config = options.Config(
        events=("click",), clips=(20, 4, 4), speech=tmp_path / "speech"
    )
    log = data.SkipLog(strict=True)
    made = corpus.make(tmp_path / "made", config, "click", 0, skip_log=log)
    for clip in made.splits.train:
        assert np.abs(soundfile.read(clip.path)[0]).max() > 0.1


def test_a_corpus_that_was_left_half_made_is_made_anew(tmp_path, speech):
    """Not taken for that of before, whose sounds it has begun to replace."""
    root, log = tmp_path / "made", data.SkipLog(strict=True)
    corpus.make(root, config_of(speech=speech), "burst", 0, skip_log=log)

    def stopped(count):
        raise KeyboardInterrupt

    other = {"skip_log": log, "on_progress": stopped}
    with pytest.raises(KeyboardInterrupt):
        corpus.make(root, config_of(speech=speech), "burst", 1, **other)
    told = []
    again = {"skip_log": log, "on_progress": told.append}
    corpus.make(root, config_of(speech=speech), "burst", 0, **again)
    assert sum(told) == 14


def test_babble_where_no_speech_is_given(tmp_path):
    made = corpus.make(
        tmp_path, config_of(), "burst", 0, skip_log=data.SkipLog(strict=True)
    )
    waveform, rate = soundfile.read(made.splits.train[0].path)
    assert (len(waveform), rate) == (options.SPEECH.num_samples, RATE)
    assert np.abs(waveform).max() > 0.1
