import dataclasses
import json
import os
import re
import struct
import sys
import warnings
from pathlib import Path

import chex
import jax
import jax.numpy as jnp
import librosa
import numpy as np
import pytest
import soundfile
from jax.sharding import PartitionSpec as P

from apex_jax import audio, look
from apex_jax import mesh as mesh_lib

DATA = Path(__file__).parents[2] / "shared" / "data"

spectrogram = jax.jit(audio.spectrogram, static_argnums=0)


@pytest.fixture
def recordings():
    if not DATA.is_dir():
        pytest.skip("no folder of real recordings beside the repository")
    return DATA


def tiny(**settings):
    defaults = {"sample_rate": 1000, "clip_s": 0.11, "n_fft": 32, "hop_length": 7}
    return audio.FrontEnd(**defaults | {"n_mels": 5, "top_db": None} | settings)


def naive(front_end, clip):
    """One clip, by the definitions: reflect or zeros, Hann, DFT, triangles, dB."""
    n, hop = front_end.n_fft, front_end.hop_length
    win = front_end.win_length or n
    window = np.zeros(n)
    for i in range(win):
        window[(n - win) // 2 + i] = 0.5 - 0.5 * np.cos(2 * np.pi * i / win)

    def at(i):
        if 0 <= i < len(clip):
            return float(clip[i])
        if front_end.pad_mode == "constant":
            return 0.0
        return float(clip[-i] if i < 0 else clip[2 * (len(clip) - 1) - i])

    num_frames = 1 + len(clip) // hop
    out = np.zeros((front_end.num_rows, num_frames))
    fmax = front_end.fmax or front_end.sample_rate / 2
    for t in range(num_frames):
        frame = np.array([at(t * hop - n // 2 + i) for i in range(n)]) * window
        power = np.zeros(1 + n // 2)
        for k in range(1 + n // 2):
            wave = np.exp(-2j * np.pi * k * np.arange(n) / n)
            power[k] = abs(np.sum(frame * wave)) ** front_end.power
        if front_end.n_mels is None:
            out[:, t] = power
            continue
        low, high = (2595 * np.log10(1 + hz / 700) for hz in (front_end.fmin, fmax))
        for m in range(front_end.n_mels):
            corners = [
                700 * (10 ** ((low + (m + j) * (high - low) / (front_end.n_mels + 1))
                / 2595) - 1)
                for j in range(3)
            ]  # fmt: skip
            for k in range(1 + n // 2):
                hz = k * front_end.sample_rate / n
                up = (hz - corners[0]) / (corners[1] - corners[0])
                down = (corners[2] - hz) / (corners[2] - corners[1])
                out[m, t] += max(0.0, min(up, down)) * power[k]
    out = 20 / front_end.power * np.log10(np.maximum(out, front_end.amin))
    if front_end.top_db is not None:
        out = np.maximum(out, out.max() - front_end.top_db)
    return (out - front_end.mean) / front_end.std


@pytest.mark.parametrize(
    "settings",
    [
        {"mel_scale": "htk", "mel_norm": None, "pad_mode": "reflect"},
        {"n_mels": None, "hop_length": 8, "top_db": 20.0, "mean": -3.0, "std": 2.0},
        {"n_mels": None, "win_length": 20, "power": 1.0, "hop_length": 40},
        {"mel_scale": "htk", "mel_norm": None, "fmin": 50.0, "fmax": 400.0},
    ],
)
def test_spectrogram_re_derived(rng, settings):
    front_end = tiny(**settings)
    clips = rng.standard_normal((3, front_end.num_samples)).astype(np.float32)
    result = audio.spectrogram(front_end, clips)
    assert result.shape == (3, *front_end.shape)
    assert result.dtype == jnp.float32
    expected = np.stack([naive(front_end, clip) for clip in clips])
    np.testing.assert_allclose(result, expected, rtol=0, atol=2e-3)


@pytest.mark.parametrize("jit", [False, True])
@pytest.mark.parametrize(
    "front_end",
    [
        audio.FrontEnd(sample_rate=22_050, clip_s=0.7),
        audio.FrontEnd.librosa(
            sample_rate=16_000, clip_s=0.5, n_fft=1024, hop_length=320, n_mels=60,
            win_length=800, fmin=20.0, fmax=7600.0, top_db=None,
        ),
        audio.FrontEnd.birdset(clip_s=0.6),
        audio.FrontEnd.torchaudio(
            sample_rate=8000, clip_s=0.4, n_fft=400, hop_length=160, n_mels=40,
            mel_norm="slaney",
        ),
        audio.FrontEnd(
            sample_rate=8000, clip_s=0.4, n_fft=510, hop_length=100, n_mels=None
        ),
    ],
    ids=["slaney", "win", "birdset", "htk-norm", "linear"],
)  # fmt: skip
def test_spectrogram_is_librosas(rng, front_end, jit):
    time = np.arange(front_end.num_samples) / front_end.sample_rate
    clips = np.stack(
        [
            rng.standard_normal(len(time)) * 0.1,
            np.sin(2 * np.pi * 440 * time) + 1e-3 * rng.standard_normal(len(time)),
        ]
    ).astype(np.float32)
    stft = {
        "n_fft": front_end.n_fft,
        "hop_length": front_end.hop_length,
        "win_length": front_end.win_length,
        "pad_mode": front_end.pad_mode,
    }
    expected = []
    for clip in clips:
        if front_end.n_mels is None:
            power = np.abs(librosa.stft(clip, **stft)) ** 2
        else:
            power = librosa.feature.melspectrogram(
                y=clip,
                sr=front_end.sample_rate,
                n_mels=front_end.n_mels,
                fmin=front_end.fmin,
                fmax=front_end.fmax,
                htk=front_end.mel_scale == "htk",
                norm=front_end.mel_norm,
                **stft,
            )
        decibel = librosa.power_to_db(power, top_db=front_end.top_db)
        expected.append((decibel - front_end.mean) / front_end.std)
    transform = spectrogram if jit else audio.spectrogram
    result = transform(front_end, jnp.asarray(clips))
    # Float32 rounds a bin 60 dB below its neighbours to some 0.01 dB.
    np.testing.assert_allclose(result, expected, rtol=0, atol=2e-2)
    assert np.abs(result - np.stack(expected)).mean() < 1e-4


def test_spectrogram_over_devices(rng):
    front_end = tiny(top_db=30.0)
    clips = rng.standard_normal((16, front_end.num_samples)).astype(np.float32)
    alone = audio.spectrogram(front_end, clips)
    mesh = mesh_lib.make()
    assert mesh.size == 8
    spread = mesh_lib.shard(clips, mesh)
    automatic = spectrogram(front_end, spread)
    chex.assert_trees_all_close(automatic, alone, atol=1e-4)
    mapped = jax.jit(
        jax.shard_map(
            lambda x: audio.spectrogram(front_end, x),
            mesh=mesh,
            in_specs=P(mesh_lib.AXIS),
            out_specs=P(mesh_lib.AXIS),
        )
    )
    chex.assert_trees_all_close(mapped(spread), alone, atol=1e-4)
    text = mapped.lower(spread).compile().as_text()
    assert not re.search("all-gather|all-reduce|all-to-all|collective", text)


def test_front_end_is_static(rng):
    compiled = jax.jit(chex.assert_max_traces(audio.spectrogram, n=1), static_argnums=0)
    for seed in range(2):
        clips = np.random.default_rng(seed).standard_normal((2, 110))
        compiled(tiny(), jnp.asarray(clips, jnp.float32))
    assert hash(tiny()) == hash(tiny())
    assert tiny() != tiny(power=1.0)


@pytest.mark.parametrize("front_end", [tiny(), audio.FrontEnd.birdset(clip_s=0.3)])
def test_extreme_clips_are_finite(front_end):
    constants = [0.0, 1.0, -1.0, 1e-30, audio.LARGEST_SAMPLE]
    clips = np.full((len(constants), front_end.num_samples), 1.0, np.float32)
    clips *= np.array(constants, np.float32)[:, None]
    clips[-1, ::2] *= -1
    result = spectrogram(front_end, clips)
    assert np.isfinite(result).all()
    silence = (-100 - front_end.mean) / front_end.std
    np.testing.assert_allclose(result[0], silence, rtol=1e-5)


def test_birdset_silence():
    front_end = audio.FrontEnd.birdset()
    assert front_end.shape == (256, 626)
    assert front_end.num_samples == 160_000
    zeros = np.zeros((1, 160_000), np.float32)
    result = spectrogram(front_end, zeros)
    np.testing.assert_allclose(result, -6.58, atol=5e-3)
    np.testing.assert_allclose(audio.silence_level(front_end, result), result[0, 0, 0])


def test_top_db_scope(rng):
    quiet, loud = rng.standard_normal((2, 110)).astype(np.float32)
    quiet[20:] = 0
    clips = np.stack([quiet * 1e-2, loud * 10])
    clip = tiny(top_db=30.0)
    batch = tiny(top_db=30.0, top_db_scope="batch")
    alone = spectrogram(clip, clips[:1])
    np.testing.assert_allclose(spectrogram(clip, clips)[0], alone[0], atol=1e-4)
    together = np.asarray(spectrogram(batch, clips))
    assert together.min() == pytest.approx(together[1].max() - 30, abs=1e-4)
    assert (together[0] > np.asarray(alone[0]) + 1).any()
    np.testing.assert_allclose(
        audio.silence_level(batch, together), together.min(), atol=1e-4
    )


@pytest.mark.parametrize("top_db", [None, 30.0, 500.0])
def test_silence_level(rng, top_db):
    front_end = tiny(top_db=top_db, mean=-13.0, std=4.0, n_mels=None)
    clips = rng.standard_normal((2, 110)).astype(np.float32)
    clips[0, 60:] = 0
    clips[1] *= 100
    # Frame 12 of clip 0 sees zeros only.
    result = np.asarray(spectrogram(front_end, clips))
    level = np.asarray(audio.silence_level(front_end, result))
    assert level.shape == (2,)
    np.testing.assert_allclose(result[0, :, 12], level[0], atol=1e-5)
    for clip in range(2):
        floor = (-100 + 13) / 4
        if top_db is not None:
            floor = max(floor, result[clip].max() - top_db / 4)
        np.testing.assert_allclose(level[clip], floor, rtol=1e-5)


def test_spectrogram_refuses_another_length():
    with pytest.raises(ValueError, match=r"100 samples.*110.*fit_length"):
        audio.spectrogram(tiny(), np.zeros((1, 100), np.float32))


# Geometry


@pytest.mark.parametrize(("hz", "row"), [(500, 43), (1000, 71), (8000, 203)])
def test_birdset_rows(hz, row):
    front_end = audio.FrontEnd.birdset(clip_s=0.2)
    time = np.arange(front_end.num_samples) / front_end.sample_rate
    tone = np.sin(2 * np.pi * hz * time).astype(np.float32)
    result = np.asarray(spectrogram(front_end, tone[None])[0])
    assert result[:, 5].argmax() == row
    low, high = front_end.band_hz(row, row + 1)
    assert low < hz < high
    exact = 257 * np.log10(1 + hz / 700) / np.log10(1 + 16_000 / 700) - 1
    assert front_end.row_to_hz(exact) == pytest.approx(hz, rel=1e-9)


@pytest.mark.parametrize("n_mels", [None, 40])
def test_a_tone_lies_in_its_row(n_mels):
    front_end = audio.FrontEnd(
        sample_rate=16_000, clip_s=0.2, n_fft=1024, hop_length=128, n_mels=n_mels,
        mel_norm=None,
    )  # fmt: skip
    time = np.arange(front_end.num_samples) / front_end.sample_rate
    for row in (3, 17, 38):
        hz = front_end.row_to_hz(row)
        tone = np.sin(2 * np.pi * hz * time).astype(np.float32)
        result = np.asarray(spectrogram(front_end, tone[None])[0])
        assert result[:, 12].argmax() == row
    click = np.zeros((1, front_end.num_samples), np.float32)
    click[0, round(0.1 * 16_000)] = 1
    column = int(np.asarray(spectrogram(front_end, click))[0].max(0).argmax())
    low, high = front_end.span_s(column, column + 1)
    assert low <= 0.1 <= high


@pytest.mark.parametrize("scale", ["slaney", "htk"])
def test_rows_are_librosas_filter_peaks(scale):
    settings = {"sample_rate": 22_050, "clip_s": 1.0, "n_mels": 40, "mel_scale": scale}
    front_end = audio.FrontEnd(**settings, fmin=30.0, fmax=9000.0)
    peaks = librosa.mel_frequencies(42, fmin=30.0, fmax=9000.0, htk=scale == "htk")
    rows = np.arange(-1, 41)
    np.testing.assert_allclose(front_end.row_to_hz(rows), peaks, rtol=1e-9)
    for row in (0, 7, 39):
        assert front_end.row_to_hz(row) == pytest.approx(peaks[row + 1])
    low, high = front_end.band_hz(np.array([0, 5]), np.array([5, 40]))
    np.testing.assert_allclose(low[1], high[0])
    assert low[0] < peaks[1] < high[0]
    assert (front_end.band_hz(-50, 90)) == (0, 11_025)


def test_linear_rows_and_frames():
    front_end = audio.FrontEnd(
        sample_rate=8000, clip_s=2, n_fft=256, hop_length=100, n_mels=None
    )
    assert front_end.shape == (129, 161)
    assert front_end.row_to_hz(128) == 4000
    assert front_end.band_hz(0, 129) == (0, 4000)
    assert front_end.band_hz(2, 4) == (1.5 * 31.25, 3.5 * 31.25)
    assert front_end.frame_to_s(8) == pytest.approx(0.1)
    assert front_end.span_s(0, 161) == (0, 2)
    np.testing.assert_allclose(
        front_end.span_s(np.array([8, 16]), np.array([9, 17.0])),
        [[0.09375, 0.19375], [0.10625, 0.20625]],
    )


# Settings


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"sample_rate": 0}, "sample_rate=0"),
        ({"clip_s": -1.0}, "clip_s=-1.0"),
        ({"clip_s": float("nan")}, "clip_s=nan"),
        ({"n_fft": 1}, "n_fft=1"),
        ({"hop_length": 0}, "hop_length=0"),
        ({"win_length": 33}, r"win_length=33; it must be in \[1, n_fft=32\]"),
        ({"win_length": 0}, "win_length=0"),
        ({"n_mels": 0}, "n_mels=0"),
        ({"fmin": 600.0}, r"fmin=600.0; it must be in \[0, fmax=500\)"),
        ({"fmax": 501.0}, r"fmax=501.0; it must be in \(0, 500\]"),
        ({"power": 0.0}, "power=0.0"),
        ({"amin": 0.0}, "amin=0.0"),
        ({"amin": 1e-40}, "amin=1e-40"),
        ({"top_db": -1.0}, "top_db=-1.0"),
        ({"mean": float("inf")}, "mean=inf"),
        ({"std": 0.0}, "std=0.0"),
        ({"clip_s": 0.031}, "at least 32 samples, 0.032 s"),
        ({"clip_s": 0.016, "pad_mode": "reflect"}, "at least 17 samples"),
        ({"n_mels": None, "fmax": 100.0}, "fmax=100.0 with n_mels=None"),
    ],
)
def test_settings_are_checked(settings, message):
    with pytest.raises(ValueError, match=message):
        tiny(**settings)


@pytest.mark.parametrize(
    "settings", [{"n_mels": 40}, {"n_mels": 40, "mel_scale": "htk"}, {"n_mels": 33}]
)
def test_empty_mel_filters_are_refused_with_a_remedy(settings):
    with pytest.raises(ValueError, match="without a frequency bin") as error:
        tiny(**settings)
    n_fft, n_mels = map(
        int, re.search(r"n_fft=(\d+) or n_mels=(\d+)$", str(error.value)).groups()
    )
    htk = settings.get("mel_scale") == "htk"

    def empty(fft, mels):
        # librosa warns too, but not of an empty first filter.
        with warnings.catch_warnings(action="ignore"):
            filters = librosa.filters.mel(sr=1000, n_fft=fft, n_mels=mels, htk=htk)
        return (filters.max(axis=1) == 0).any()

    wanted = settings["n_mels"]
    assert not empty(n_fft, wanted)
    assert empty(n_fft // 2, wanted)
    assert not empty(32, n_mels)
    assert empty(32, n_mels + 1)
    tiny(**settings | {"n_mels": n_mels})
    tiny(**settings | {"n_fft": n_fft, "clip_s": 1.0})


def test_dict_round_trip():
    for front_end in (audio.FrontEnd.birdset(), tiny(n_mels=None)):
        stored = json.loads(json.dumps(front_end.to_dict()))
        assert audio.FrontEnd.from_dict(stored) == front_end
    with pytest.raises(ValueError, match=r"unknown \['hop'\].*hop_length"):
        audio.FrontEnd.from_dict({"sample_rate": 1, "clip_s": 1.0, "hop": 3})
    with pytest.raises(ValueError, match=r"\['clip_s'\] missing"):
        audio.FrontEnd.from_dict({"sample_rate": 8000})
    with pytest.raises(dataclasses.FrozenInstanceError):
        tiny().n_fft = 3


# Files


def write(path, samples, rate=8000, **kwargs):
    soundfile.write(path, samples, rate, **kwargs)
    return path


@pytest.mark.parametrize(
    ("name", "tolerance"),
    [("a.wav", 1e-4), ("a.flac", 1e-4), ("a.aiff", 1e-4), ("a.au", 1e-4),
     ("a.ogg", 0.1), ("a.mp3", 0.15), ("a.w64", 1e-4), ("a.caf", 1e-4),
     ("a.rf64", 1e-4)],
)  # fmt: skip
def test_load_reads_formats(tmp_path, name, tolerance):
    time = np.arange(16_000) / 8000
    tone = 0.5 * np.sin(2 * np.pi * 300 * time)
    path = write(tmp_path / name, tone)
    waveform = audio.load(path, 8000)
    assert waveform.dtype == np.float32
    assert waveform.shape == (16_000,)
    np.testing.assert_allclose(waveform, tone, atol=tolerance)
    assert audio.duration(path) == 2
    # An MP3 decoder needs some frames after a seek to be exact.
    segment = audio.load(str(path), 8000, offset_s=0.5, duration_s=0.25)
    np.testing.assert_allclose(segment, tone[4000:6000], atol=tolerance)
    rest = audio.load(path, 8000, offset_s=1.5, duration_s=9)
    assert rest.shape == (4000,)


def test_load_averages_channels(tmp_path, rng):
    samples = rng.uniform(-0.5, 0.5, (1000, 3))
    path = write(tmp_path / "a.wav", samples, subtype="FLOAT")
    np.testing.assert_allclose(
        audio.load(path, 8000), samples.mean(1), rtol=0, atol=1e-6
    )


@pytest.mark.parametrize("rate", [44_100, 11_025, 48_000])
def test_load_resamples(tmp_path, rate):
    def tone(sample_rate):
        time = np.arange(sample_rate) / sample_rate
        return 0.5 * np.sin(2 * np.pi * 440 * time)

    path = write(tmp_path / "a.wav", np.stack([tone(rate)] * 2, 1), rate)
    waveform = audio.load(path, 16_000)
    assert waveform.dtype == np.float32
    assert waveform.shape == (16_000,)
    np.testing.assert_allclose(waveform[500:-500], tone(16_000)[500:-500], atol=1e-3)
    segment = audio.load(path, 16_000, offset_s=0.24, duration_s=0.3)
    assert segment.shape == (4800,)
    np.testing.assert_allclose(segment[500:-500], tone(16_000)[4340:8140], atol=1e-3)


def test_load_decodes_the_segment_only(tmp_path, monkeypatch):
    path = write(tmp_path / "a.wav", np.zeros(80_000))
    counts = []
    read = soundfile.SoundFile.read

    def counting(self, frames=-1, **kwargs):
        counts.append(frames)
        return read(self, frames, **kwargs)

    monkeypatch.setattr(soundfile.SoundFile, "read", counting)
    audio.load(path, 8000, offset_s=3, duration_s=1)
    assert counts == [8000]


def bad_file(folder, kind):
    rng = np.random.default_rng(0)
    noise = 0.1 * rng.standard_normal(16_000)
    name, _, how = kind.partition(" ")
    path = folder / name
    match how:
        case "missing":
            pass
        case "directory":
            path.mkdir()
        case "text":
            path.write_text("not a sound")
        case "empty":
            path.touch()
        case "none":
            write(path, np.zeros(0))
        case "unsized":
            data = bytearray(write(path, noise).read_bytes())
            data[21] &= 0xF0  # STREAMINFO's 36 bits of total samples
            data[22:26] = bytes(4)
            path.write_bytes(data)
        case "nan" | "inf" | "1e20":
            noise[123] = float(how)
            write(path, noise, subtype="FLOAT")
        case _:
            data = write(path, noise).read_bytes()
            cuts = {"half": len(data) // 2, "last": len(data) - 3, "header": 60}
            cuts["page"] = data.rfind(b"OggS")  # whole pages, the last one missing
            path.write_bytes(data[: cuts[how]])
    return path


BAD_FILES = [
    ("a.wav missing", "missing; expected a sound file"),
    ("a.wav directory", "a directory; expected a sound file"),
    ("a.wav text", "not readable as audio .*expected .*WAV, FLAC"),
    ("a.raw text", "not readable as audio"),
    ("a.wav empty", "not readable as audio"),
    ("a.wav none", "no samples; expected at least one"),
    ("a.ogg none", "no samples"),
    ("a.flac unsized", "does not say how long.*encode it again"),
    ("a.wav nan", "sample 123 is nan; samples must be finite"),
    ("a.wav inf", "sample 123 is inf; samples must be finite"),
    ("a.wav 1e20", r"sample 123 is 1e\+20; .* up to 1e\+15"),
    ("a.wav half", "truncated: .*32000 bytes, it holds 15978; copy it again"),
    ("a.wav last", "truncated: .*32000 bytes, it holds 31997"),
    ("a.wav header", "truncated: .*32000 bytes, it holds 16"),
    ("a.rf64 half", "truncated"),
    ("a.w64 half", "truncated"),
    ("a.aiff half", "truncated"),
    ("a.au half", "truncated"),
    ("a.flac half", "truncated or damaged .*lost sync"),
    ("a.flac last", "truncated or damaged"),
    ("a.flac header", "not readable as audio"),
    ("a.ogg half", "truncated: .*ends the stream"),
    ("a.ogg last", "truncated: .*ends the stream"),
    ("a.ogg page", "truncated: .*ends the stream"),
    ("a.mp3 half", "truncated: .*16000 samples, .* could be read"),
]


@pytest.mark.parametrize(("kind", "reason"), BAD_FILES)
def test_bad_files_are_named(tmp_path, kind, reason):
    path = bad_file(tmp_path, kind)
    with pytest.raises(audio.AudioError, match=reason) as error:
        audio.load(path, 8000)
    assert error.value.path == path
    assert str(error.value) == f"{path}: {error.value.reason}"


def test_a_cut_wav_is_refused_before_the_cut(tmp_path):
    path = bad_file(tmp_path, "a.wav half")
    with pytest.raises(audio.AudioError, match="truncated"):
        audio.load(path, 8000, duration_s=0.1)
    with pytest.raises(audio.AudioError, match="truncated"):
        audio.duration(path)


@pytest.mark.parametrize("size", [0xFFFFFFFF, 0x7FFFFFFF, 0x7FFFFF00])
def test_a_wav_from_a_pipe_is_read(tmp_path, size):
    # Encoders that cannot seek back leave such sizes in the header.
    path = write(tmp_path / "a.wav", np.full(500, 0.25))
    data, size = path.read_bytes(), struct.pack("<I", size)
    path.write_bytes(data[:4] + size + data[8:40] + size + data[44:])
    np.testing.assert_allclose(audio.load(path, 8000), np.full(500, 0.25), atol=1e-4)


def test_an_ogg_with_bytes_after_its_end_is_read(tmp_path, rng):
    path = write(tmp_path / "a.ogg", 0.1 * rng.standard_normal(16_000))
    path.write_bytes(path.read_bytes() + b"tag" * 50)
    assert audio.load(path, 8000).shape == (16_000,)


@pytest.mark.parametrize("offset_s", [2.0, 5, -0.5])
def test_offset_outside_the_file(tmp_path, offset_s):
    path = write(tmp_path / "a.wav", np.zeros(16_000))
    with pytest.raises(audio.AudioError, match=r"outside the file.*length, 2 s"):
        audio.load(path, 8000, offset_s=offset_s)
    with pytest.raises(ValueError, match="duration_s=0"):
        audio.load(path, 8000, duration_s=0)


def test_load_clip(tmp_path, rng):
    front_end = tiny()  # 110 samples, windows of 32
    samples = rng.uniform(-1, 1, 300)
    path = write(tmp_path / "a.wav", samples, 1000, subtype="FLOAT")
    np.testing.assert_allclose(
        audio.load_clip(path, front_end, 0.1), samples[100:210], atol=1e-6
    )
    clip = audio.load_clip(path, front_end, 0.25)
    np.testing.assert_allclose(clip, [*samples[250:], *[0] * 60], atol=1e-6)
    with pytest.raises(audio.AudioError, match=r"too short: 31 samples.*takes 32"):
        audio.load_clip(path, front_end, 0.269)
    assert audio.load_clip(path, front_end, 0.268).shape == (110,)
    assert audio.load_clip(path, tiny(win_length=8), 0.29).shape == (110,)


@pytest.mark.skipif(sys.platform in ("win32", "darwin"), reason="names are text there")
def test_a_name_that_is_no_utf_8(tmp_path):
    """On disk a name is bytes, and nobody promised that they are text."""
    good = write(tmp_path / "good.wav", np.float32([0.5, -0.25] * 50), 1000)
    bad = Path(os.fsdecode(os.fsencode(tmp_path) + b"/bad\xff.wav"))
    good.rename(bad)
    assert audio.duration(bad) == pytest.approx(0.1)
    assert audio.sample_rate_of(bad) == 1000
    np.testing.assert_allclose(audio.load(bad, 1000)[:2], [0.5, -0.25], atol=1e-4)
    with pytest.raises(audio.AudioError, match="offset 9 s lies outside"):
        audio.load(bad, 1000, offset_s=9)


@pytest.mark.parametrize("rate", [1000, 2000])
@pytest.mark.parametrize("offset_s", [0.0, 0.1, 0.25])
def test_clip_of_samples_is_that_of_their_file(tmp_path, rng, rate, offset_s):
    samples = np.float32(rng.uniform(-1, 1, round(0.3 * rate)))
    path = write(tmp_path / "a.wav", samples, rate, subtype="FLOAT")
    found = audio.clip_of(samples, rate, tiny(), offset_s)
    wanted = audio.load_clip(path, tiny(), offset_s)
    np.testing.assert_allclose(found, wanted, atol=1e-6)
    assert found.dtype == np.float32
    doubles = audio.clip_of(samples.astype(np.float64), rate, tiny(), offset_s)
    np.testing.assert_allclose(doubles, wanted, atol=1e-6)


@pytest.mark.parametrize(
    ("samples", "settings", "message"),
    [
        (np.zeros(0, np.float32), {}, "of 0 samples"),
        (np.zeros(31, np.float32), {}, "too short: 31 samples.*takes 32"),
        (np.zeros(200, np.float32), {"offset_s": 0.2}, "offset_s must lie within"),
        (np.zeros(200, np.float32), {"offset_s": -0.1}, "offset_s must lie within"),
        (np.zeros(200, np.float32), {"offset_s": np.nan}, "offset_s must lie within"),
        (np.zeros(200, np.int16), {}, "floating point.*full scale 1; got int16"),
        (np.zeros((2, 200), np.float32), {}, r"one channel.*\(2, 200\)"),
        (np.full(200, np.inf, np.float32), {}, "NaN, infinity or more"),
        (np.full(200, 1e20), {}, r"1e\+15.*full scale is 1"),
        (np.zeros(200, np.float32), {"sample_rate": 0}, "at least 1 Hz; got 0"),
    ],
)
def test_impossible_samples(samples, settings, message):
    # The annotation refuses some of them, but only in tests.
    call = getattr(audio.clip_of, "__wrapped__", audio.clip_of)
    arguments = {"sample_rate": 1000} | settings
    with pytest.raises(ValueError, match=message):
        call(samples, front_end=tiny(), **arguments)


def test_fit_length():
    waveform = np.arange(4, dtype=np.float32)
    np.testing.assert_array_equal(audio.fit_length(waveform, 2), [0, 1])
    np.testing.assert_array_equal(audio.fit_length(waveform, 6), [0, 1, 2, 3, 0, 0])
    assert audio.fit_length(waveform, 6).dtype == np.float32


@pytest.mark.parametrize(
    "name",
    [
        "birds/birds_10s.wav",
        "birds/soundscape.ogg",
        "birds/robin_*.ogg",
        "fsdd/recordings/0_*_0.wav",
        "esc10/rooster/1-*.ogg",
        "wavefake_mini/LJSpeech-1.1/wavs/*.wav",
    ],
)
def test_real_recordings(recordings, name):
    front_end = audio.FrontEnd.birdset()
    path = sorted(recordings.glob(name))[0]
    info = soundfile.info(path)
    assert audio.duration(path) == pytest.approx(info.duration)
    clip = audio.load_clip(path, front_end)
    assert clip.shape == (160_000,)
    samples, rate = soundfile.read(path, frames=5 * info.samplerate, always_2d=True)
    whole = librosa.resample(
        samples.mean(1), orig_sr=rate, target_sr=32_000, res_type="soxr_hq"
    )
    np.testing.assert_allclose(clip[: len(whole)], whole[:160_000], atol=1e-4)
    result = np.asarray(spectrogram(front_end, clip[None])[0])
    expected = librosa.power_to_db(
        librosa.feature.melspectrogram(
            y=clip, sr=32_000, n_fft=2048, hop_length=256, n_mels=256, htk=True,
            norm=None, pad_mode="reflect",
        )
    )  # fmt: skip
    np.testing.assert_allclose(result * 13.162 - 13.369, expected, atol=5e-2)
    assert np.abs(result * 13.162 - 13.369 - expected).mean() < 1e-3


def test_import_is_light():
    import subprocess
    import sys

    code = (
        "import sys; from apex_jax import audio; audio.FrontEnd.birdset();"
        "print([m for m in ('librosa', 'soundfile', 'soxr', 'scipy.signal', 'grain')"
        " if m in sys.modules])"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == "[]"


def test_absurd_rates_are_told(tmp_path):
    """Resampling them would take any amount of memory, or of time."""
    path, tone = tmp_path / "a.wav", np.zeros(4000, np.float32)
    front_end = audio.FrontEnd(sample_rate=32_000, clip_s=0.1, n_mels=8)
    for rate in (1, 31, 32_000_001, 2**31 - 1):
        soundfile.write(path, tone, rate)
        for load in (
            lambda: audio.load(path, 32_000),
            lambda: audio.load_clip(path, front_end),
        ):
            with pytest.raises(audio.AudioError, match=f"says {rate} Hz, more than"):
                load()
        with pytest.raises(ValueError, match=f"sample_rate is {rate} Hz, more than"):
            audio.clip_of(tone, rate, front_end)
    for rate in (100, 1_000_000):  # infrasound and ultrasound are recorded
        soundfile.write(path, tone, rate)
        assert len(audio.load(path, 32_000)) == 4000 * 32_000 // rate


def test_more_than_fits_into_memory_is_told(tmp_path, monkeypatch):
    path = tmp_path / "a.wav"
    soundfile.write(path, np.zeros((4000, 2), np.float32), 8000)
    monkeypatch.setattr(audio, "MOST_SAMPLES", 8000)
    assert len(audio.load(path, 8000)) == 4000
    assert len(audio.load(path, 16_000)) == 8000
    with pytest.raises(audio.AudioError, match=r"0\.5 s, 1\.2e\+04 samples .* most"):
        audio.load(path, 24_000)
    assert len(audio.load(path, 24_000, duration_s=0.1)) == 2400
    monkeypatch.setattr(audio, "MOST_SAMPLES", 7999)
    with pytest.raises(audio.AudioError, match="give duration_s"):
        audio.load(path, 8000)


def test_blocks_are_of_samples_and_not_of_frames(tmp_path, monkeypatch):
    """Of 255 channels a block of so many frames would be gigabytes."""
    path = tmp_path / "a.wav"
    samples = np.random.default_rng(0).uniform(-1, 1, (1000, 64)).astype(np.float32)
    soundfile.write(path, samples, 8000, subtype="FLOAT")
    asked = []
    real = soundfile.SoundFile.read

    def read(self, frames, **options):
        asked.append(frames * self.channels)
        return real(self, frames, **options)

    monkeypatch.setattr(soundfile.SoundFile, "read", read)
    monkeypatch.setattr(audio, "BLOCK", 6400)
    np.testing.assert_allclose(audio.load(path, 8000), samples.mean(1), atol=1e-6)
    assert len(asked) == 10
    assert max(asked) <= 6400


@pytest.mark.parametrize("ending", ["wav", "flac", "ogg", "mp3"])
def test_the_end_of_a_whole_file_is_there(ending, tmp_path):
    path = tmp_path / f"a.{ending}"
    soundfile.write(path, np.random.default_rng(0).uniform(-1, 1, 30_011), 16_000)
    assert audio.duration(path, check_end=True) == audio.duration(path)


def test_an_end_that_is_promised_and_not_there_is_told(tmp_path):
    path = tmp_path / "a.flac"
    soundfile.write(path, np.random.default_rng(0).uniform(-1, 1, 30_011), 16_000)
    header = bytearray(path.read_bytes())
    header[21:26] = (header[21] & 0xF0 | 0x0F, 255, 255, 255, 255)
    path.write_bytes(header)
    assert audio.duration(path) == (2**36 - 1) / 16_000
    with pytest.raises(audio.AudioError, match="promises 68719476735 samples, the la"):
        audio.duration(path, check_end=True)
    front_end = audio.FrontEnd(sample_rate=16_000, clip_s=0.5, n_mels=8)
    with pytest.raises(audio.AudioError, match="the last is not there"):
        look.offsets(front_end, path)


def test_windows_without_number_are_told(tmp_path):
    path = tmp_path / "a.wav"
    soundfile.write(path, np.zeros(16_000), 16_000)
    front_end = audio.FrontEnd(sample_rate=16_000, clip_s=0.5, n_mels=8)
    for hop_s in (1e-9, 1e-300, 5e-324):
        with pytest.raises(ValueError, match="more than 1,000,000 windows"):
            look.offsets(front_end, path, hop_s)
