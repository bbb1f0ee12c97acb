"""Front ends for clips of any rate and length; mean and deviation by hand."""

import json

import numpy as np
import pytest
import soundfile

from apex_jax import audio, data, suggest


@pytest.fixture
def write(tmp_path):
    """Files of noise: `(rate, seconds)` each."""

    def write(*sounds):
        rng = np.random.default_rng(0)
        clips = []
        for n, (rate, seconds) in enumerate(sounds):
            path = tmp_path / f"{n}.wav"
            soundfile.write(path, rng.normal(0, 0.1, round(rate * seconds)), rate)
            clips.append(data.Clip(path=path, label=0))
        return clips

    return write


def choose(clips, log=None, **settings):
    # Measured in a test of its own.
    settings = {"mean": 0.0, "std": 1.0, **settings}
    log = data.SkipLog(strict=True) if log is None else log
    return suggest.front_end(clips, settings, skip_log=log)


def test_rate_and_length_are_the_files(write):
    choice = choose(write((8000, 0.3), (8000, 0.5), (11025, 0.42)))
    assert choice.front_end.sample_rate == 8000
    assert choice.front_end.clip_s == 0.42
    assert choice.reasons["sample_rate"] == "as 2 of 3 files"
    assert choice.reasons["clip_s"] == "as the files' median"


def test_at_most_32_khz_and_5_s(write):
    choice = choose(write((44100, 6.0)))
    assert choice.front_end.sample_rate == 32000
    assert choice.front_end.clip_s == 5.0
    assert choice.reasons["sample_rate"] == "at most 32000; the files have 44100"
    assert choice.reasons["clip_s"] == "at most; the files' median is 6"


@pytest.mark.parametrize(
    ("rate", "n_fft"),
    [(8000, 256), (16000, 512), (22050, 1024), (32000, 1024), (48000, 2048)],
)
def test_a_window_of_about_46_ms(rate, n_fft):
    front_end = choose([], sample_rate=rate, clip_s=5.0).front_end
    assert front_end.n_fft == n_fft
    assert n_fft // 4 <= front_end.hop_length <= n_fft // 2
    assert front_end.n_mels == 128


@pytest.mark.parametrize("rate", [4000, 8000, 22050, 32000])
@pytest.mark.parametrize("clip_s", [0.1, 0.42, 1.0, 3.0, 5.0, 30.0])
def test_enough_cells_for_a_map(rate, clip_s):
    """Each length gives some columns; only short clips get short hops."""
    front_end = choose([], sample_rate=rate, clip_s=clip_s).front_end
    columns = front_end.num_frames // 32
    assert columns >= 4
    if clip_s >= 3:
        assert front_end.hop_length >= front_end.n_fft // 4
    assert front_end.num_rows <= 128


def test_fewer_mels_where_filters_would_be_empty():
    choice = choose([], sample_rate=8000, clip_s=1.0, n_fft=128)
    assert 32 <= choice.front_end.n_mels < 128
    assert "no filter empty" in choice.reasons["n_mels"]
    with pytest.raises(ValueError, match="without a frequency bin"):
        choose([], sample_rate=8000, clip_s=1.0, n_fft=128, n_mels=128)


def test_what_is_asked_for_is_kept(write):
    choice = choose(write((8000, 0.5)), sample_rate=16000, hop_length=50, fmin=100.0)
    front_end = choice.front_end
    assert (front_end.sample_rate, front_end.hop_length, front_end.fmin) == (
        16000,
        50,
        100,
    )
    assert set(choice.reasons) == {"clip_s", "n_fft", "n_mels"}


def test_mean_and_deviation_of_what_the_network_sees(write):
    clips = write((8000, 0.5), (8000, 0.4), (8000, 0.6))
    log, seen = data.SkipLog(strict=True), []
    choice = suggest.front_end(clips, {}, skip_log=log, on_progress=seen.append)
    front_end = choice.front_end
    waveforms = np.stack([audio.load_clip(c.path, front_end) for c in clips])
    pictures = np.asarray(audio.spectrogram(front_end, waveforms))
    assert pictures.mean() == pytest.approx(0, abs=1e-3)
    assert pictures.std() == pytest.approx(1, abs=1e-3)
    assert sum(seen) == 3


def test_silence_is_not_divided_by_nothing(tmp_path):
    soundfile.write(tmp_path / "a.wav", np.zeros(4000), 8000)
    clips = [data.Clip(path=tmp_path / "a.wav", label=0)]
    log = data.SkipLog(strict=True)
    assert suggest.front_end(clips, {}, skip_log=log).front_end.std == 1


def test_files_that_cannot_be_read(write, tmp_path):
    clips = write((8000, 0.5), (8000, 0.5))
    (tmp_path / "1.wav").write_text("no sound")
    log = data.SkipLog()
    assert choose(clips, log).reasons["sample_rate"] == "as 1 of 1 files"
    assert [path for path, _ in log.entries()] == [str(tmp_path / "1.wav")]
    with pytest.raises(ValueError, match="none of the 1 training clips could be read"):
        choose(clips[1:], log)
    known = {"sample_rate": 8000, "clip_s": 0.5}
    with pytest.raises(ValueError, match="none of the 1 training clips could be read"):
        suggest.front_end(clips[1:], known, skip_log=log)


def test_settings_from_options_and_a_file(tmp_path):
    assert suggest.Wanted().settings() == {}
    file = tmp_path / "front_end.json"
    file.write_text(json.dumps({"n_fft": 512, "mel_scale": "htk", "fmax": None}))
    wanted = suggest.Wanted(file=file, n_fft=1024, fmin=50.0)
    assert wanted.settings() == {
        "n_fft": 1024,
        "mel_scale": "htk",
        "fmax": None,
        "fmin": 50,
    }
    for text, message in (
        ("{", "is no JSON"),
        ("[1]", "expected settings of a front end by name"),
        ('{"hop": 3}', "some of amin, clip_s"),
    ):
        file.write_text(text)
        with pytest.raises(ValueError, match=message):
            wanted.settings()
    with pytest.raises(OSError, match="absent"):
        suggest.Wanted(file=tmp_path / "absent.json").settings()
