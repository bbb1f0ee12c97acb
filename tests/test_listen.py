"""A region sounds as it is drawn: its seconds, its hertz, at the file's own rate."""

import dataclasses
import io
import itertools

import numpy as np
import pytest
import soundfile
import soxr

from apex_jax import audio, data, explanation, listen, schemes

RATE = 12_000
LENGTH = 9_001  # of most sounds here: 0.75 s and no round number
TIMELINE_S = LENGTH / RATE
ANYWHERE = schemes.Box(rows=(0.0, 1.0), frames=(0.0, 1.0))
FRONT_END = audio.FrontEnd(
    sample_rate=8_000, clip_s=0.9, n_fft=256, hop_length=64, n_mels=40, top_db=None
)


def area(start_s=0.0, end_s=TIMELINE_S, low_hz=0.0, high_hz=RATE / 2):
    return explanation.Area(
        box=ANYWHERE, start_s=start_s, end_s=end_s, low_hz=low_hz, high_hz=high_hz
    )


def noise(rng, length=LENGTH, rate=RATE, scale=0.1):
    samples = np.clip(rng.normal(0, scale, length), -1, 1).astype(np.float32)
    return listen.Sound(samples=samples, sample_rate=rate)


def tone(hertz, *, rate=RATE, length=LENGTH):
    samples = 0.5 * np.sin(2 * np.pi * hertz * np.arange(length) / rate)
    return listen.Sound(samples=samples.astype(np.float32), sample_rate=rate)


def level_db(samples):
    """Root mean square of the middle half: ends have fades."""
    middle = np.asarray(samples, float)[len(samples) // 4 : -len(samples) // 4]
    return 10 * np.log10(np.mean(middle**2) + 1e-30)


def raised_cosine(length, start, stop, fade):
    """1 inside, fades inside, by the definition."""
    window = np.zeros(length)
    for i in range(start, stop):
        edge = min(i - start, stop - 1 - i) + 0.5
        window[i] = 0.5 - 0.5 * np.cos(np.pi * edge / fade) if edge < fade else 1.0
    return window


def ideal_band(samples, rate, low, high):
    """Everything between two edges, by the Fourier transform of the whole."""
    spectrum = np.fft.rfft(samples)
    hertz = np.fft.rfftfreq(len(samples), 1 / rate)
    spectrum[(hertz < low) | (hertz > high)] = 0
    return np.fft.irfft(spectrum, len(samples))


def explained(**settings):
    fixed = {
        "source": "waveform",
        "class_names": ("dog", "cat"),
        "logits": np.array([1.0, 2.0]),
        "predicted": 1,
        "target": 1,
        "scheme": "square",
        "front_end": FRONT_END,
        "spectrogram": None,
        "channels": (),
        "contributions": np.zeros(3),
        "evidence_share": 0.0,
    }
    return explanation.Explanation(**fixed | settings)


def prototype_of(path, offset_s=0.0):
    return explanation.Prototype(
        clip=data.Clip(path=path, label=0, offset_s=offset_s),
        class_name="dog",
        activation=1.0,
        purity=0.5,
        location=(0, 0),
        areas=(),
        spectrogram=None,
        heatmap=np.zeros((2, 3)),
    )


def decoded(content):
    with soundfile.SoundFile(io.BytesIO(content)) as file:
        assert file.format == "FLAC"
        return file.read(dtype="float64"), file.samplerate, file.subtype


# The clip's own sound.


@pytest.mark.parametrize("rate", [8_000, 12_000, 7_350])
def test_a_file_keeps_its_rate_and_its_samples(tmp_path, rng, rate):
    path = tmp_path / "long.wav"
    whole = rng.integers(-(2**15), 2**15, 2 * rate).astype(np.int16)
    whole[500:502] = -(2**15), 2**15 - 1
    soundfile.write(path, whole, rate)
    for sound in (
        listen.clip(explained(source=str(path), offset_s=0.37, sound_s=0.9)),
        listen.clip(explained(), prototype_of(path, offset_s=0.37)),
    ):
        first, count = round(0.37 * rate), round(0.9 * rate)
        assert (sound.sample_rate, sound.start_s, sound.gain_db) == (rate, 0, 0)
        expected = whole[first : first + count] / 2**15
        np.testing.assert_array_equal(sound.samples, expected)
        samples, flac_rate, subtype = decoded(listen.to_flac(sound))
        np.testing.assert_array_equal(samples, expected)
        assert (flac_rate, subtype) == (rate, "PCM_16")


def test_a_short_file_is_not_padded_and_a_stereo_one_mixed_down(tmp_path, rng):
    path = tmp_path / "stereo.wav"
    both = rng.integers(-(2**15), 2**15, (777, 2)).astype(np.int16)
    soundfile.write(path, both, RATE)
    sound = listen.clip(explained(source=str(path), sound_s=777 / RATE))
    np.testing.assert_array_equal(sound.samples, both.mean(axis=1) / 2**15)
    # Half a step of 16 bits does not fit into 16 bits.
    samples, _, subtype = decoded(listen.to_flac(sound))
    np.testing.assert_array_equal(samples, both.mean(axis=1) / 2**15)
    assert subtype == "PCM_24"


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_a_waveform_is_its_own_sound(rng, dtype):
    samples = rng.uniform(-1, 1, RATE).astype(dtype)
    result = explained(waveform=samples, sample_rate=RATE, sound_s=0.9, offset_s=5.0)
    sound = listen.clip(result)
    expected = samples[: round(0.9 * RATE)].astype(np.float32)
    np.testing.assert_array_equal(sound.samples, expected)
    assert (sound.sample_rate, sound.start_s, sound.gain_db) == (RATE, 0, 0)


def test_samples_beyond_full_scale_are_attenuated_and_it_is_said(rng):
    samples = rng.uniform(-1, 1, 500).astype(np.float32)
    samples[77] = -2.5
    sound = listen.clip(explained(waveform=samples, sample_rate=RATE, sound_s=0.04))
    np.testing.assert_allclose(sound.samples, samples / 2.5, rtol=1e-6)
    assert sound.gain_db == pytest.approx(-20 * np.log10(2.5))
    back, _, _ = decoded(listen.to_flac(sound))
    np.testing.assert_allclose(back, samples / 2.5, atol=2**-23)
    # A region says how loud it is beside the recording, not beside the clip.
    again = listen.region(sound, (area(end_s=500 / RATE),), fade_s=0)
    assert again.gain_db == sound.gain_db


def test_no_sound_no_clip(tmp_path):
    assert listen.clip(explained(source="spectrogram", sound_s=None)) is None
    nowhere = explained(source="feature map", front_end=None)
    assert listen.clip(nowhere) is None
    assert listen.clip(nowhere, prototype_of(tmp_path / "some.wav")) is None
    with pytest.raises(audio.AudioError, match=r"some\.wav: missing"):
        listen.clip(explained(), prototype_of(tmp_path / "some.wav"))
    with pytest.raises(ValueError, match="sample_rate"):
        listen.clip(explained(waveform=np.zeros(9, np.float32), sound_s=0.1))


# Regions, one scheme after the other.


@pytest.mark.parametrize("fade_s", [0.0, 0.01, 5.0])
def test_time_is_the_segment_and_fades(rng, fade_s):
    sound = noise(rng)
    heard = listen.region(sound, (area(0.2, 0.45),), fade_s=fade_s)
    start, stop = round(0.2 * RATE), round(0.45 * RATE)
    fade = min(round(fade_s * RATE), (stop - start) // 2)
    window = raised_cosine(LENGTH, start, stop, fade)
    expected = (sound.samples * window)[start:stop]
    assert (heard.start_s, heard.gain_db) == (start / RATE, 0)
    np.testing.assert_allclose(heard.samples, expected, atol=1e-7)
    # Between the fades it is the recording itself, to the bit.
    inner = slice(fade, stop - start - fade)
    np.testing.assert_array_equal(
        heard.samples[inner], sound.samples[start:stop][inner]
    )


def test_fades_rise_and_fall_steadily():
    ones = listen.Sound(samples=np.ones(LENGTH, np.float32), sample_rate=RATE)
    heard = listen.region(ones, (area(0.2, 0.45),), fade_s=0.02).samples
    fade = round(0.02 * RATE)
    assert (np.diff(heard[:fade]) > 0).all()
    assert (heard[fade:-fade] == 1).all()
    np.testing.assert_array_equal(heard, heard[::-1])
    assert 0 < heard[0] < 1e-4


@pytest.mark.parametrize(
    ("rate", "low", "high"),
    [
        (48_000, 0.0, 100.0),
        (48_000, 60.0, 160.0),
        (48_000, 1_000.0, 3_000.0),
        (48_000, 23_000.0, 24_000.0),
        (8_000, 3_000.0, 16_000.0),
        (22_050, 500.0, 520.0),
    ],
)
def test_frequency_passes_the_band_and_nothing_else(rate, low, high):
    seconds = 1.0
    whole = (area(end_s=seconds, low_hz=low, high_hz=high),)
    transition = min(listen.TRANSITION_HZ, (high - low) / 2)
    top = min(high, rate / 2)
    inside = [(low + top) / 2]
    inside += [low + transition / 2] if low else []
    outside = [low - transition / 2, 0.5 * low] if low else []
    if high < rate / 2:
        inside.append(high - transition / 2)
        outside += [high + transition / 2, 1.7 * high]
    for hertz in inside:
        sound = tone(hertz, rate=rate, length=rate)
        heard = listen.region(sound, whole)
        assert heard.start_s == 0
        assert len(heard.samples) == rate
        middle = slice(rate // 4, -rate // 4)
        # Not only as loud: nothing moves in time.
        np.testing.assert_allclose(
            heard.samples[middle], sound.samples[middle], atol=1e-3
        )
    for hertz in outside:
        sound = tone(hertz, rate=rate, length=rate)
        heard = listen.region(sound, whole)
        assert level_db(heard.samples) < level_db(sound.samples) - 75, hertz


def test_on_the_edge_a_tone_is_halved():
    heard = listen.region(tone(2_000), (area(low_hz=2_000.0, high_hz=4_000.0),))
    lost = level_db(tone(2_000).samples) - level_db(heard.samples)
    assert lost == pytest.approx(20 * np.log10(2), abs=0.01)


def test_a_clip_cut_out_of_a_longer_sound_does_not_click():
    low = tone(40).samples[75:-225]  # from crest to crest
    sound = listen.Sound(samples=low, sample_rate=RATE)
    band = area(end_s=len(low) / RATE, low_hz=1_000.0, high_hz=2_000.0)
    heard = listen.region(sound, (band,), fade_s=0)
    assert np.abs(heard.samples).max() < 1e-3


def test_neighbouring_bands_sum_to_the_whole(rng):
    sound = noise(rng)
    edges = [0.0, 130.0, 700.0, 2_900.0, RATE / 2]
    rows = [
        listen.region(sound, (area(low_hz=low, high_hz=high),), fade_s=0).samples
        for low, high in itertools.pairwise(edges)
    ]
    np.testing.assert_allclose(sum(rows), sound.samples, atol=1e-7)


def test_a_click_is_heard_where_it_is_drawn():
    samples = np.zeros(LENGTH, np.float32)
    samples[3_000] = 0.5
    sound = listen.Sound(samples=samples, sample_rate=RATE)
    band = {"low_hz": 1_000.0, "high_hz": 4_000.0}
    around = listen.region(sound, (area(0.2, 0.3, **band),))
    assert np.abs(around.samples).argmax() == 3_000 - round(0.2 * RATE)
    peak = np.abs(around.samples).max()
    assert peak == pytest.approx(0.5 * 3_000 / (RATE / 2), rel=0.01)
    # 10 ms beside it, and past the fade: what a steep band smears.
    beside = listen.region(sound, (area(0.26, 0.4, **band),))
    assert np.abs(beside.samples).max() < peak / 30
    assert not listen.region(sound, (area(0.26, 0.4),)).samples.any()


def test_square_is_the_band_of_the_segment(rng):
    sound = noise(rng)
    heard = listen.region(sound, (area(0.2, 0.45, 1_000.0, 2_500.0),))
    band = listen.region(sound, (area(0.0, TIMELINE_S, 1_000.0, 2_500.0),), fade_s=0)
    start, stop = round(0.2 * RATE), round(0.45 * RATE)
    window = raised_cosine(LENGTH, start, stop, round(0.01 * RATE))
    expected = (window * band.samples)[start:stop]
    assert heard.start_s == start / RATE
    np.testing.assert_allclose(heard.samples, expected, atol=1e-6)
    # And the band is one: what the Fourier transform of the whole leaves is close.
    ideal = ideal_band(sound.samples, RATE, 1_000, 2_500)
    error = level_db(band.samples - ideal) - level_db(ideal)
    assert error < -15


@pytest.mark.parametrize("swapped", [False, True])
def test_time_frequency_is_the_union(rng, swapped):
    sound = noise(rng)
    column, row = area(0.2, 0.45), area(low_hz=1_000.0, high_hz=2_500.0)
    heard = listen.region(sound, (row, column) if swapped else (column, row))
    band = listen.region(sound, (row,), fade_s=0).samples
    fade = round(0.01 * RATE)
    w = raised_cosine(LENGTH, round(0.2 * RATE), round(0.45 * RATE), fade)
    ends = raised_cosine(LENGTH, 0, LENGTH, fade)
    expected = w * sound.samples + (1 - w) * ends * band
    assert (heard.start_s, len(heard.samples)) == (0, LENGTH)
    np.testing.assert_allclose(heard.samples, expected, atol=1e-6)
    inner = w == 1
    np.testing.assert_allclose(heard.samples[inner], sound.samples[inner], atol=1e-7)


def test_areas_that_overlap_are_heard_once(rng):
    sound = noise(rng)
    one = listen.region(sound, (area(0.1, 0.6),), fade_s=0)
    same = listen.region(sound, (area(0.1, 0.6), area(0.1, 0.6)), fade_s=0)
    split = listen.region(sound, (area(0.3, 0.6), area(0.1, 0.4)), fade_s=0)
    np.testing.assert_array_equal(same.samples, one.samples)
    np.testing.assert_array_equal(split.samples, one.samples)
    # Apart from each other: silence between.
    apart = listen.region(sound, (area(0.1, 0.2), area(0.5, 0.6)), fade_s=0)
    assert len(apart.samples) == len(one.samples)
    assert not apart.samples[round(0.1 * RATE) : round(0.4 * RATE)].any()


def test_above_the_drawn_spectrogram_nothing_is_heard():
    drawn = area(0.1, 0.6, 0.0, 4_000.0)
    assert level_db(listen.region(tone(5_000), (drawn,)).samples) < -80
    heard, whole = listen.region(tone(3_900), (drawn,)), tone(3_900)
    assert level_db(heard.samples) == pytest.approx(level_db(whole.samples), abs=0.01)


def test_a_band_above_what_the_recording_holds_is_silent(rng):
    heard = listen.region(noise(rng), (area(low_hz=7_000.0, high_hz=9_000.0),))
    assert len(heard.samples) == LENGTH
    assert not heard.samples.any()


def test_after_the_recording_there_is_silence(rng):
    sound = noise(rng, length=500)
    heard = listen.region(sound, (area(0.5, 0.75, 1_000.0, 2_500.0),), amplify=True)
    assert (heard.start_s, len(heard.samples)) == (0.5, round(0.25 * RATE))
    assert heard.gain_db == 0
    assert not decoded(listen.to_flac(heard))[0].any()
    across = listen.region(sound, (area(0.02, 0.75),), fade_s=0)
    start = round(0.02 * RATE)
    np.testing.assert_array_equal(across.samples[: 500 - start], sound.samples[start:])
    assert not across.samples[500 - start :].any()
    assert len(across.samples) == round(0.75 * RATE) - start


@pytest.mark.parametrize("length", [1, 2, 300])
def test_sounds_and_areas_of_any_size(rng, length):
    sound = noise(rng, length=length)
    bands = area(0.0, 1e-9, 100.0, 100.001), area(0.0, 0.01, 10.0, 30.0)
    for one in bands:
        heard = listen.region(sound, (one,), amplify=True)
        assert np.isfinite(heard.samples).all()
        assert len(heard.samples) == max(1, round(one.end_s * RATE))


def test_a_region_of_a_region_stays_in_place(rng):
    sound = noise(rng)
    first = listen.region(sound, (area(0.2, 0.6),), fade_s=0)
    again = listen.region(first, (area(0.3, 0.5),), fade_s=0)
    direct = listen.region(sound, (area(0.3, 0.5),), fade_s=0)
    assert again.start_s == direct.start_s
    np.testing.assert_array_equal(again.samples, direct.samples)


@pytest.mark.parametrize("scheme", schemes.SCHEMES)
@pytest.mark.parametrize("n_mels", [40, None])
def test_heard_is_drawn(rng, scheme, n_mels):
    """The spectrogram of what is heard is the clip's inside the boxes, else empty."""
    front_end = dataclasses.replace(FRONT_END, n_mels=n_mels)
    rows, frames = front_end.shape
    grid = schemes.Grid.of((4, 5), (rows, frames), (rows // 4, frames // 5))
    location = (2, 3)
    boxes = grid.boxes(scheme, location)
    areas = []
    for box in boxes:
        (low, high), (start, end) = (
            front_end.band_hz(*box.rows),
            front_end.span_s(*box.frames),
        )
        seconds, hertz = (float(start), float(end)), (float(low), float(high))
        areas.append(area(*seconds, *hertz))
    sound = noise(rng, length=round(front_end.clip_s * RATE))
    heard = listen.region(sound, tuple(areas))

    def drawn(one):
        samples = np.pad(one.samples, (round(one.start_s * RATE), 0))
        samples = soxr.resample(samples, RATE, front_end.sample_rate)
        samples = audio.fit_length(samples, front_end.num_samples)
        return np.asarray(audio.spectrogram(front_end, samples[None]))[0]

    # Within half an analysis window of an edge, and one fade, a frame sees both sides.
    near = front_end.n_fft / 2 / front_end.hop_length + 0.01 * 8_000 / 64 + 1
    high_margin = 3 if n_mels else 6  # rows: overlapping triangles, the Hann's lobe

    def around(grow):
        """Pixels of the boxes grown, or shrunk, by the margins."""
        mask = np.zeros((rows, frames), bool)
        for box in boxes:
            (low, high), (start, end) = box.rows, box.frames
            full_height, full_width = high - low == rows, end - start == frames
            dy = 0 if full_height else grow * high_margin
            dx = 0 if full_width else grow * near
            y, x = np.arange(rows), np.arange(frames)
            mask |= ((y >= low - dy) & (y < high + dy))[:, None] & (
                (x >= start - dx) & (x < end + dx)
            )
        return mask

    clip, region = drawn(sound), drawn(heard)
    inside, outside = around(-1), ~around(1)
    # The drawn spectrogram's own edges: its lowest and highest row, the clip's ends.
    inside[[0, -1]] = inside[:, :5] = inside[:, -5:] = False
    assert inside.sum() > 10
    assert outside.sum() > 10
    difference = np.abs(region - clip)[inside]
    assert np.percentile(difference, 95) < 0.1
    usual = np.median(clip)
    assert region[outside].max() < usual - 40
    assert np.median(region[outside]) < usual - 75


# Loudness.


def test_amplify_makes_quiet_regions_louder_and_says_by_how_much():
    sound = dataclasses.replace(tone(1_000), samples=tone(1_000).samples / 10)
    quiet = (area(0.2, 0.45),)
    plain, loud = (listen.region(sound, quiet, amplify=a) for a in (False, True))
    assert np.abs(loud.samples).max() == pytest.approx(10 ** (-6 / 20), rel=1e-5)
    assert plain.gain_db == 0
    gain = 10 ** (loud.gain_db / 20)
    np.testing.assert_allclose(loud.samples, gain * plain.samples, rtol=1e-5)


def test_amplify_stops_at_40_db_and_never_attenuates():
    faint = dataclasses.replace(tone(1_000), samples=tone(1_000).samples / 1e4)
    heard = listen.region(faint, (area(0.2, 0.45),), amplify=True)
    assert heard.gain_db == pytest.approx(40)
    assert np.abs(heard.samples).max() == pytest.approx(0.005, rel=1e-3)
    loud = dataclasses.replace(tone(1_000), samples=tone(1_000).samples * 1.9)
    assert listen.region(loud, (area(0.2, 0.45),), amplify=True).gain_db == 0
    nothing = dataclasses.replace(faint, samples=np.zeros(50, np.float32))
    assert listen.region(nothing, (area(0.2, 0.45),), amplify=True).gain_db == 0


@pytest.mark.parametrize("amplify", [False, True])
def test_a_filter_that_overshoots_full_scale_is_attenuated(amplify):
    # A square wave's fundamental alone is 4 / pi as high.
    samples = np.sign(np.sin(2 * np.pi * 101 * np.arange(RATE) / RATE + 0.1))
    sound = listen.Sound(samples=samples.astype(np.float32), sample_rate=RATE)
    heard = listen.region(
        sound, (area(end_s=1.0, low_hz=0.0, high_hz=200.0),), amplify=amplify
    )
    assert heard.gain_db == pytest.approx(-20 * np.log10(4 / np.pi), abs=0.1)
    assert np.abs(heard.samples).max() == 1


# Files.


def test_flac_takes_24_bits_where_16_would_lose():
    coarse = np.array([-(2**15), -1, 0, 7, 2**15 - 1], np.float32) / 2**15
    fine = np.array([-(2**23), -1, 0, 7, 2**23 - 1], np.float32) / 2**23
    for samples, bits in ((coarse, 16), (fine, 24)):
        sound = listen.Sound(samples=samples.astype(np.float32), sample_rate=RATE)
        back, rate, subtype = decoded(listen.to_flac(sound))
        assert (rate, subtype) == (RATE, f"PCM_{bits}")
        np.testing.assert_array_equal(back, samples)


def test_full_scale_does_not_wrap():
    for samples in ([1, -1, 0], [1, -1, 1 - 2**-24, 0.3]):
        sound = listen.Sound(samples=np.array(samples, np.float32), sample_rate=RATE)
        back, _, _ = decoded(listen.to_flac(sound))
        np.testing.assert_allclose(back, sound.samples, atol=2**-23)


@pytest.mark.parametrize("rate", [1, 7, 44_100, 65_535, 192_000, 250_000, 655_350])
def test_rates_that_flac_has(rng, rate):
    sound = noise(rng, length=20, rate=rate)
    samples, found, _ = decoded(listen.to_flac(sound))
    assert found == rate
    np.testing.assert_allclose(samples, sound.samples, atol=2**-24)


@pytest.mark.parametrize("rate", [65_537, 96_001, 700_000])
def test_rates_that_flac_has_not(rng, rate):
    with pytest.raises(ValueError, match=f"sample_rate={rate}; FLAC holds"):
        listen.to_flac(noise(rng, length=20, rate=rate))


def test_write_replaces_whole_files(tmp_path, rng):
    path = tmp_path / "region.flac"
    path.write_text("something older")
    sound = noise(rng)
    listen.write(path, sound)
    assert path.read_bytes() == listen.to_flac(sound)
    assert [p.name for p in tmp_path.iterdir()] == ["region.flac"]
    with pytest.raises(ValueError, match="FLAC holds"):
        listen.write(path, noise(rng, rate=96_001))
    assert path.read_bytes() == listen.to_flac(sound)
    with pytest.raises(ValueError, match=r"must end in \.flac; got .*region\.wav"):
        listen.write(tmp_path / "region.wav", sound)


# What is refused.


@pytest.mark.parametrize(
    "wrong",
    [
        explanation.Area(box=ANYWHERE),
        explanation.Area(box=ANYWHERE, start_s=0.0, end_s=1.0),
        area(start_s=0.5, end_s=0.5),
        area(start_s=-0.1),
        area(low_hz=300.0, high_hz=200.0),
        area(high_hz=float("nan")),
    ],
)
def test_areas_without_seconds_hertz_or_extent(rng, wrong):
    with pytest.raises(ValueError, match=r"areas must have seconds and hertz.*got "):
        listen.region(noise(rng), (area(), wrong))


def test_no_areas_and_wrong_fades(rng):
    with pytest.raises(ValueError, match="at least one Area"):
        listen.region(noise(rng), ())
    for fade_s in (-0.01, float("nan"), float("inf")):
        with pytest.raises(ValueError, match=f"fade_s must be .*got {fade_s}"):
            listen.region(noise(rng), (area(),), fade_s=fade_s)


@pytest.mark.parametrize(
    ("samples", "words"),
    [
        (np.zeros(0, np.float32), "at least one"),
        (np.zeros((2, 3), np.float32), r"got float32, \[2, 3\]"),
        (np.zeros(3), "float32"),
        (np.array([0, 1.5], np.float32), "got up to 1.5"),
        (np.array([0, np.nan], np.float32), "finite"),
    ],
)
def test_sounds_that_are_none(samples, words):
    with pytest.raises(ValueError, match=words):
        listen.Sound(samples=samples, sample_rate=RATE)
