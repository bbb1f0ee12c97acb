"""What a page embeds: once each, sounds as listen makes them, missing ones told."""

import base64
import dataclasses
import io

import numpy as np
import pytest
import soundfile
import test_report

from apex_jax import explanation, listen, schemes
from apex_jax.pages import embed, picture


@pytest.fixture
def result(tmp_path):
    return test_report.explained(tmp_path, "square")


def decoded(store, player):
    content = base64.b64decode(store.sounds[player.id])
    return soundfile.read(io.BytesIO(content), dtype="float32")


def test_the_same_image_is_embedded_once(rng):
    store = embed.Store()
    values = rng.random((3, 5)).astype(np.float32)
    one = store.image(picture.heatmap, values)
    assert store.image(picture.heatmap, values.copy()) is one
    assert one.shape == (3, 5)
    assert base64.b64decode(one.base64) == picture.heatmap(values)
    # Other values, another drawing, other options: another image.
    others = [
        store.image(picture.heatmap, values.T),
        store.image(picture.spectrogram, values, (0.0, 1.0)),
        store.image(picture.spectrogram, values, (0.0, 2.0)),
    ]
    assert len({i.id for i in (one, *others)}) == len(store.images) == 4


def test_a_clip_and_its_region(result):
    store = embed.Store()
    clip = store.player(result)
    heard, rate = decoded(store, clip)
    wanted = listen.clip(result)
    assert rate == wanted.sample_rate
    np.testing.assert_array_equal(heard, wanted.samples)  # 16 bits as recorded
    assert clip.length_s == pytest.approx(len(heard) / rate)
    assert (clip.start_s, clip.gain_db, clip.problem) == (0, 0, "")

    areas = result.channels[0].areas
    region = store.player(result, areas=areas)
    wanted = listen.region(wanted, areas, amplify=True)
    heard, _ = decoded(store, region)
    np.testing.assert_allclose(heard, wanted.samples, atol=0.51 / 2**15)
    assert region.gain_db == wanted.gain_db > 0
    assert region.start_s == wanted.start_s == pytest.approx(areas[0].start_s, abs=1e-3)


def test_the_same_sound_is_embedded_once(result):
    store = embed.Store()
    areas = result.channels[0].areas
    prototype = result.channels[0].prototypes[0]
    players = [
        store.player(result),
        store.player(result, areas=areas),
        store.player(result, prototype),
        store.player(result, prototype, prototype.areas),
    ]
    again = dataclasses.replace(result, target=0)
    assert store.player(again) is players[0]
    assert store.player(again, areas=areas) is players[1]
    assert store.player(again, prototype, prototype.areas) is players[3]
    assert len(store.sounds) == len({p.id for p in players}) == 4
    later = dataclasses.replace(result, offset_s=0.25)
    assert store.player(later) is not players[0]


def test_sounds_of_samples_in_memory(result):
    store = embed.Store()
    rng = np.random.default_rng(0)
    first, second = (
        dataclasses.replace(
            result,
            source="waveform",
            waveform=rng.uniform(-0.5, 0.5, 3000).astype(np.float32),
            sample_rate=7000,
        )
        for _ in range(2)
    )
    heard, rate = decoded(store, store.player(first))
    assert rate == 7000
    np.testing.assert_allclose(heard, first.waveform[: len(heard)], atol=0.51 / 2**15)
    assert store.player(second).id != store.player(first).id


def test_a_recording_that_is_gone_costs_its_players_only(result, tmp_path):
    store = embed.Store()
    gone = dataclasses.replace(result, source=str(tmp_path / "gone.wav"))
    for areas in ((), gone.channels[0].areas):
        player = store.player(gone, areas=areas)
        assert not player.id
        assert player.problem.startswith("gone.wav: missing")
    assert not store.sounds
    assert store.player(gone, gone.channels[0].prototypes[0]).id


def test_no_sound_where_there_is_none(result):
    assert embed.Store(sounds=False).player(result) is None
    given = dataclasses.replace(result, source="spectrogram", sound_s=None)
    assert embed.Store().player(given) is None
    unknown = dataclasses.replace(result, front_end=None)
    assert embed.Store().player(unknown) is None


def area(start_s, end_s, low_hz=500.0, high_hz=1500.0):
    box = schemes.Box(rows=(0.0, 1.0), frames=(0.0, 1.0))
    return explanation.Area(
        box=box, start_s=start_s, end_s=end_s, low_hz=low_hz, high_hz=high_hz
    )


def test_silence_is_told_instead_of_played(result, tmp_path):
    """A clip of one second: half of it sound, then a tenth of zeros, then nothing."""
    second = np.arange(4800) / 8000
    samples = np.where(second < 0.5, 0.1 * np.sin(2 * np.pi * 900 * second), 0)
    path = tmp_path / "short.wav"
    soundfile.write(path, samples, 8000, subtype="PCM_16")
    query = dataclasses.replace(result, source=str(path), sound_s=0.6)
    prototype = result.channels[0].prototypes[0]
    prototype = dataclasses.replace(
        prototype, clip=dataclasses.replace(prototype.clip, path=path, offset_s=0.0)
    )
    for areas, silence in (
        ((area(0.1, 0.3),), ""),
        ((area(0.4, 0.9),), ""),
        ((area(0.52, 0.59, 0.0, 4000.0),), "no sound here"),
        ((area(0.1, 0.3, 3000.0, 3500.0),), "no sound here"),
        ((area(0.6, 0.8),), "in the silence appended to the clip"),
        # A column in the padding, and a row in which the tone lies.
        ((area(0.6, 0.8), area(0.0, 1.0)), ""),
    ):
        store = embed.Store()
        for part in (None, prototype):
            player = store.player(query, part, areas)
            assert player.silence == silence
            assert bool(player.id) == (not silence)
            assert not player.problem
        assert store.player(query).id
    quiet = dataclasses.replace(
        result, source="waveform", waveform=np.zeros(8000, np.float32), sample_rate=8000
    )
    assert embed.Store().player(quiet).silence == "silent throughout"


@pytest.mark.parametrize(("peak_db", "silent"), [(-89.0, False), (-91.0, True)])
def test_what_is_too_quiet_to_hear_however_amplified(result, peak_db, silent):
    tone = np.sin(2 * np.pi * 900 * np.arange(8000) / 8000)
    tone *= 10 ** (peak_db / 20) / np.abs(tone).max()
    given = dataclasses.replace(
        result, source="waveform", waveform=tone.astype(np.float32), sample_rate=8000
    )
    player = embed.Store().player(given, areas=(area(0.2, 0.8),))
    assert bool(player.silence) == silent
    assert player.gain_db == pytest.approx(0 if silent else 40, abs=1e-6)


def test_a_rate_that_flac_does_not_know_costs_its_players_only(result):
    """FLAC counts hertz in 16 bits, above that in tens."""
    store = embed.Store()
    odd = dataclasses.replace(
        result,
        source="waveform",
        waveform=np.full(70001, 0.1, np.float32),
        sample_rate=70001,
    )
    player = store.player(odd)
    assert not player.id
    assert "70001" in player.problem
