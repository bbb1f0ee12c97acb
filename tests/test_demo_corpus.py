"""The demo corpus: same seed, same bytes; fakes that differ in what they should."""

import json

import numpy as np
import pytest
import soundfile

from experiments import demo_corpus, speech, vocoders

SAMPLE_RATE = 16000
SPEAKERS = speech.speakers(2, 3)
NAMES = tuple(vocoders.VOCODERS)


@pytest.fixture(scope="module")
def original():
    return speech.utterance(
        [3, 1], SPEAKERS[1], sample_rate=SAMPLE_RATE, duration_s=1.2
    )


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    root = tmp_path_factory.mktemp("corpus")
    return demo_corpus.write(root, num_utterances=3, sample_rate=8000)


def rms(waveform):
    return float(np.sqrt(np.mean(np.square(waveform, dtype=np.float64))))


def bands(waveform, sample_rate, width_s=0.032, num_bands=24):
    """Log energy of bands [time, band], in NumPy alone."""
    width = round(width_s * sample_rate)
    count = len(waveform) // width
    frames = waveform[: count * width].reshape(count, width) * np.hanning(width)
    power = np.abs(np.fft.rfft(frames)) ** 2
    edges = np.unique(np.geomspace(2, power.shape[1], num_bands).astype(int))
    energy = np.add.reduceat(power, edges[:-1], axis=1)
    return 10 * np.log10(energy + 1e-6 * power.sum(axis=1).max())


def contents(root):
    return {
        str(path.relative_to(root)): path.read_bytes() for path in root.rglob("*.wav")
    }


# Speech.


def test_an_utterance_is_what_its_seed_says():
    first, again, other = (
        speech.utterance([7, n], SPEAKERS[0], duration_s=0.5) for n in (0, 0, 1)
    )
    np.testing.assert_array_equal(first, again)
    assert np.max(np.abs(first - other)) > 0.01


@pytest.mark.parametrize("sample_rate", [8000, 22050, 44100])
@pytest.mark.parametrize("duration_s", [0.1, 0.73])
def test_an_utterance_has_its_length_and_does_not_clip(sample_rate, duration_s):
    waveform = speech.utterance(
        5, SPEAKERS[1], sample_rate=sample_rate, duration_s=duration_s
    )
    assert waveform.shape == (round(duration_s * sample_rate),)
    assert waveform.dtype == np.float32
    assert np.max(np.abs(waveform)) <= 0.9501
    assert rms(waveform) > 1e-3


def test_an_utterance_has_pitch_vowels_hisses_and_pauses():
    for speaker in SPEAKERS:
        waveform = speech.utterance(
            2, speaker, sample_rate=SAMPLE_RATE, duration_s=8.0
        ).astype(float)
        frames = waveform.reshape(-1, 640)
        level_db = 20 * np.log10(np.sqrt(np.mean(frames**2, axis=1)) + 1e-9)
        # Pauses lie at the noise floor, far under the vowels.
        assert np.max(level_db) - np.min(level_db) > 30
        # Where it is loudest the voice repeats at the speaker's pitch.
        loud = np.argsort(level_db)[-20:]
        lags = []
        for frame in frames[loud]:
            echo = np.correlate(frame, frame, "full")[640 - 1 :]
            low, high = SAMPLE_RATE // 400, SAMPLE_RATE // 70
            lags.append(low + int(np.argmax(echo[low:high])))
        pitch = SAMPLE_RATE / np.median(lags)
        assert abs(np.log2(pitch / speaker.f0_hz)) < 0.5
        # A hiss has its energy above 3 kHz, a vowel below.
        power = np.abs(np.fft.rfft(frames)) ** 2
        share = power[:, 120:].sum(axis=1) / power.sum(axis=1)
        heard = level_db > np.max(level_db) - 30
        assert np.mean(share[heard] > 0.5) > 0.03
        assert np.mean(share[heard] < 0.1) > 0.4


def test_speakers_differ_and_are_reproducible():
    assert speech.speakers(5, 1) == speech.speakers(5, 1)
    assert speech.speakers(5, 1)[:3] == speech.speakers(3, 1)
    assert len(set(speech.speakers(5, 1))) == 5


@pytest.mark.parametrize("bad", [{"sample_rate": 4000}, {"duration_s": 0.01}])
def test_an_utterance_too_short_or_too_slow_is_refused(bad):
    with pytest.raises(ValueError, match="sample_rate >= 8000 and duration_s"):
        speech.utterance(0, SPEAKERS[0], **bad)


def test_fading_filter_with_one_response_is_a_convolution(rng):
    kernel, waveform = rng.standard_normal(9), rng.standard_normal(333)
    hop, size = 20, 64
    response = np.tile(np.fft.rfft(kernel, size), (len(waveform) // hop + 2, 1))
    np.testing.assert_allclose(
        speech.fading_filter(waveform, response, hop),
        np.convolve(waveform, kernel)[: len(waveform)],
        atol=1e-5,
    )


# Vocoders.


def test_there_are_seven_named_as_their_functions():
    assert len(NAMES) == 7
    assert all(vocoders.VOCODERS[name].__name__ == name for name in NAMES)


@pytest.mark.parametrize("name", NAMES)
def test_a_fake_differs_and_keeps_length_level_and_envelope(name, original):
    vocoder = vocoders.VOCODERS[name]
    fake = vocoder(original, SAMPLE_RATE, seed=1)
    assert fake.shape == original.shape
    assert fake.dtype == np.float32
    np.testing.assert_array_equal(fake, vocoder(original, SAMPLE_RATE, seed=1))
    assert abs(20 * np.log10(rms(fake) / rms(original))) < 0.3
    assert np.max(np.abs(fake)) <= 0.99 + 1e-6
    # Far from a copy: what was added is over a thousandth of the power.
    assert rms(fake - original) ** 2 > 1e-3 * rms(original) ** 2
    ours, theirs = bands(fake, SAMPLE_RATE), bands(original, SAMPLE_RATE)
    assert np.corrcoef(ours.ravel(), theirs.ravel())[0, 1] > 0.9
    assert np.mean(np.abs(ours - theirs)) > 0.2


@pytest.mark.parametrize("name", NAMES)
def test_nothing_under_the_voice_tells_a_fake(name, original):
    fake = vocoders.VOCODERS[name](original, SAMPLE_RATE, seed=1)

    def rumble_db(waveform):
        power = np.abs(np.fft.rfft(waveform * np.hanning(len(waveform)))) ** 2
        hertz = np.fft.rfftfreq(len(waveform), 1 / SAMPLE_RATE)
        return 10 * np.log10(power[(hertz > 5) & (hertz < 50)].sum())

    assert abs(rumble_db(fake) - rumble_db(original)) < 3


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize(
    ("sample_rate", "num_samples"),
    [(8000, 800), (11025, 1103), (22050, 2205), (44100, 9001), (48000, 4800)],
)
def test_any_rate_any_length(name, sample_rate, num_samples, rng):
    waveform = 0.1 * rng.standard_normal(num_samples).astype(np.float32)
    fake = vocoders.VOCODERS[name](waveform, sample_rate)
    assert fake.shape == waveform.shape
    assert np.all(np.isfinite(fake))
    assert abs(rms(fake) / rms(waveform) - 1) < 0.05


@pytest.mark.parametrize("name", NAMES)
def test_silence_stays_silence_and_full_scale_does_not_clip(name):
    silence = np.zeros(4000, np.float32)
    np.testing.assert_array_equal(vocoders.VOCODERS[name](silence, 16000), silence)
    half = np.sin(np.arange(8000) * 0.2).astype(np.float32)
    half[:4000] = 0.0
    fake = vocoders.VOCODERS[name](half, 16000)
    assert np.all(np.isfinite(fake))
    assert np.max(np.abs(fake)) <= 0.99 + 1e-6


# The corpus on disk.


def test_layout_is_wavefakes(corpus):
    expected = {f"LJSpeech-1.1/wavs/{n:04d}.wav" for n in range(3)} | {
        f"generated_audio/ljspeech_{name}/{n:04d}_gen.wav"
        for name in NAMES
        for n in range(3)
    }
    assert set(contents(corpus)) == expected
    for number in range(3):
        real = soundfile.info(demo_corpus.path_of(corpus, number, None))
        assert (real.subtype, real.channels) == ("PCM_16", 1)
        assert real.samplerate == 8000
        assert 1.6 <= real.duration <= 2.4
        for name in NAMES:
            fake = soundfile.info(demo_corpus.path_of(corpus, number, name))
            assert (fake.subtype, fake.frames) == ("PCM_16", real.frames)


def test_a_file_depends_on_its_number_and_vocoder_alone(corpus, tmp_path):
    # Two at a time, in processes of their own, fewer vocoders, fewer utterances.
    only = {"phase_jitter": [2], "lpc_vocoder": lambda number: number == 0}
    told = []
    demo_corpus.write(
        tmp_path,
        num_utterances=24,
        sample_rate=8000,
        names=["subband_alias", "phase_jitter", "lpc_vocoder"],
        only={**only, "subband_alias": [1]},
        on_progress=told.append,
    )
    some, whole = contents(tmp_path), contents(corpus)
    assert len(some) == sum(told) == 24 + 3
    shared = some.keys() & whole.keys()
    assert len(shared) == 3 + 3
    assert all(some[name] == whole[name] for name in shared)


def test_what_is_there_is_reused_and_what_is_missing_made(tmp_path):
    settings = {"num_utterances": 2, "sample_rate": 8000, "names": ["subband_alias"]}
    demo_corpus.write(tmp_path, **settings)
    before = contents(tmp_path)
    kept = demo_corpus.path_of(tmp_path, 0, "subband_alias")
    lost = demo_corpus.path_of(tmp_path, 1, "subband_alias")
    lost.unlink()
    stamp = kept.stat().st_mtime_ns
    demo_corpus.write(tmp_path, **settings)
    assert contents(tmp_path) == before
    assert kept.stat().st_mtime_ns == stamp
    demo_corpus.write(tmp_path, **{**settings, "num_utterances": 1})
    assert len(contents(tmp_path)) == 2
    assert not [path for path in tmp_path.rglob(".*") if path.is_file()]


def test_another_corpus_is_refused_unless_overwritten(tmp_path):
    settings = {"num_utterances": 1, "sample_rate": 8000, "names": ["phase_jitter"]}
    demo_corpus.write(tmp_path, **settings)
    before = contents(tmp_path)
    with pytest.raises(ValueError, match="overwrite=True"):
        demo_corpus.write(tmp_path, seed=1, **settings)
    assert contents(tmp_path) == before
    demo_corpus.write(tmp_path, seed=1, overwrite=True, **settings)
    after = contents(tmp_path)
    assert after.keys() == before.keys()
    assert all(after[name] != before[name] for name in after)
    assert json.loads((tmp_path / "corpus.json").read_text())["seed"] == 1


def test_recordings_of_others_are_never_touched(tmp_path):
    theirs = tmp_path / "LJSpeech-1.1" / "wavs" / "0000.wav"
    theirs.parent.mkdir(parents=True)
    theirs.write_bytes(b"theirs")
    with pytest.raises(ValueError, match="not a demo corpus"):
        demo_corpus.write(tmp_path, num_utterances=1, overwrite=True)
    assert theirs.read_bytes() == b"theirs"


def test_an_unknown_vocoder_is_named(tmp_path):
    with pytest.raises(ValueError, match="'hifigan'"):
        demo_corpus.write(tmp_path, names=["hifigan"])
