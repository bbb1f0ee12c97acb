"""The cache against one clip at a time; resuming it, refusing it, damage to it.

The network, front end and clips at the top serve other test modules too.
"""

import dataclasses
import errno
import functools
import json
import os
import threading
import tracemalloc

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import soundfile

from apex_jax import atomic, audio, cache, data, disentangle, inference
from apex_jax import mesh as mesh_lib
from apex_jax.models import convnext

# 24 rows x 32 frames, cells of 8 x 8 pixels: maps of 3 x 4 cells.
FRONT_END = audio.FrontEnd(
    sample_rate=8000,
    clip_s=0.5,
    n_fft=256,
    hop_length=128,
    n_mels=24,
    mean=-30.0,
    std=20.0,
)
CONFIG = convnext.ConvNeXtConfig(depths=(1, 1), dims=(8, 12), num_classes=3)
NAMES = ("low", "middle", "high")
NUM_CLIPS = 11  # neither a multiple of a batch nor of the devices
CHAN = CONFIG.dims[-1]


@jax.jit
def forward(model, waveform):
    spectrogram = audio.spectrogram(FRONT_END, waveform)
    return spectrogram, *convnext.forward(model, spectrogram)


def classifier_of(config=CONFIG, seed=0, class_names=NAMES):
    """A network in which every array matters: a new one's blocks add 1e-6."""
    rng = np.random.default_rng(seed)
    arrays = {
        name: np.float32(name.endswith("scale") + rng.normal(0, 0.3, array.shape))
        for name, array in convnext.named_arrays(convnext.abstract(config)).items()
    }
    model = convnext.from_named_arrays(config, arrays)
    return convnext.as_classifier(model, class_names)


def write_clips(folder, num_clips=NUM_CLIPS, num_classes=3):
    """Tones in noise; the class is the tone. Shorter and longer than a clip."""
    folder.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(1)
    clips = []
    for n in range(num_clips):
        label = n % num_classes
        time = np.arange(round((0.4 + 0.1 * (n % 4)) * FRONT_END.sample_rate))
        tone = np.sin(2 * np.pi * 300 * 3**label / FRONT_END.sample_rate * time)
        wave = (0.1 + 0.02 * n) * tone + 0.02 * rng.normal(size=len(time))
        path = folder / f"clip{n:02d}.wav"
        soundfile.write(path, wave, FRONT_END.sample_rate, subtype="PCM_16")
        offset_s = 0.05 if n % 4 > 2 else 0.0
        clips.append(data.Clip(path=path, label=label, offset_s=offset_s))
    return tuple(clips)


def waveform_of(clip):
    samples, rate = soundfile.read(clip.path, dtype="float32")
    assert rate == FRONT_END.sample_rate
    samples = samples[round(clip.offset_s * rate) :][: FRONT_END.num_samples]
    return np.concatenate(
        [samples, np.zeros(FRONT_END.num_samples - len(samples), np.float32)]
    )


def map_of(classifier, clip):
    """Spectrogram, map and logits of a clip that is alone in the network."""
    found = forward(classifier.params, waveform_of(clip)[None])
    return tuple(np.asarray(a[0]) for a in found)


def mesh_of(num_devices):
    return mesh_lib.make(jax.devices()[:num_devices])


@pytest.fixture(scope="module")
def classifier():
    return classifier_of()


@pytest.fixture
def clips(tmp_path):
    return write_clips(tmp_path / "wavs")


@pytest.fixture
def folder(tmp_path):
    return tmp_path / "cache"


def build(folder, classifier, clips, front_end=FRONT_END, **options):
    """By default four clips a step on one device."""
    options = {"mesh": mesh_of(1), "batch_size": 4, **options}
    return cache.build(folder, classifier, clips, front_end, **options)


def arrays_of(cached):
    """Without the padding of the devices."""
    views = cached.features.views
    arrays = {
        "pooled": cached.features.pooled,
        "logits": cached.features.logits,
        "rows": views.rows,
        "columns": views.columns,
        "cells": views.cells,
    }
    return {
        name: None if array is None else np.asarray(array)[: len(cached.clips)]
        for name, array in arrays.items()
    }


def assert_same(one, other, **tolerance):
    assert one.clips == other.clips
    assert one.features.num_clips == other.features.num_clips == len(one.clips)
    theirs = arrays_of(other)
    for name, array in arrays_of(one).items():
        if array is None:
            assert theirs[name] is None
        elif tolerance:
            np.testing.assert_allclose(array, theirs[name], err_msg=name, **tolerance)
        else:
            np.testing.assert_array_equal(array, theirs[name], err_msg=name)


class Interrupted(Exception):
    """What stops a build midway."""


def stop_after(num_clips):
    done = 0

    def on_progress(more):
        nonlocal done
        done += more
        if done > num_clips:
            raise Interrupted

    return on_progress


# --- the numbers


@pytest.mark.parametrize(("num_devices", "batch_size"), [(1, 4), (8, 5)])
def test_features_are_those_of_each_clip(
    num_devices, batch_size, folder, classifier, clips
):
    made = build(
        folder,
        classifier,
        clips,
        content="maps",
        mesh=mesh_of(num_devices),
        batch_size=batch_size,
    )
    assert made.clips == clips
    assert made.features.num_clips == NUM_CLIPS
    assert made.features.map_shape == (3, 4)
    arrays = arrays_of(made)
    for n, clip in enumerate(clips):
        _, feature_map, logits = map_of(classifier, clip)
        num_freq, num_time, _ = feature_map.shape
        expected = {
            "pooled": sum(
                feature_map[f, t] for f in range(num_freq) for t in range(num_time)
            )
            / (num_freq * num_time),
            "logits": logits,
            "rows": sum(feature_map[:, t] for t in range(num_time)) / num_time,
            "columns": sum(feature_map[f] for f in range(num_freq)) / num_freq,
            "cells": feature_map,
        }
        for name, array in expected.items():
            np.testing.assert_allclose(
                arrays[name][n], array, rtol=1e-4, atol=2e-5, err_msg=f"{name} {n}"
            )


def test_what_a_scheme_needs():
    assert inference.content_for("square") == "maps"
    for scheme in ("time", "frequency", "time_frequency"):
        assert inference.content_for(scheme) == "marginals"


def test_a_bad_file_is_left_out_and_the_others_keep_their_clips(
    folder, classifier, clips
):
    whole = build(folder / "whole", classifier, clips)
    for n in (3, 6, 10):  # the last of a batch, the middle of one, the last of all
        clips[n].path.write_bytes(b"no sound")
    good = [n for n in range(NUM_CLIPS) if n not in (3, 6, 10)]
    log, seen = data.SkipLog(), []
    made = build(
        folder / "bad", classifier, clips, skip_log=log, on_progress=seen.append
    )
    assert made.clips == tuple(clips[n] for n in good)
    np.testing.assert_allclose(
        made.features.pooled, whole.features.pooled[good], rtol=1e-6
    )
    np.testing.assert_allclose(
        made.features.logits, whole.features.logits[good], rtol=1e-6
    )
    assert [path for path, _ in log.entries()] == [
        str(clips[n].path) for n in (3, 6, 10)
    ]
    assert sum(seen) == NUM_CLIPS

    # A finished cache says again what it left out, and a strict log hears of it.
    again = data.SkipLog()
    assert_same(build(folder / "bad", classifier, clips, skip_log=again), made)
    assert again.entries() == log.entries()
    with pytest.raises(audio.AudioError, match=r"clip03\.wav"):
        build(folder / "bad", classifier, clips)


def test_without_a_log_the_first_bad_file_raises(folder, classifier, clips):
    clips[5].path.write_bytes(b"no sound")
    with pytest.raises(audio.AudioError, match=r"clip05\.wav"):
        build(folder, classifier, clips)


def test_nothing_can_be_read(folder, classifier, clips):
    for clip in clips:
        clip.path.unlink()
    for _ in range(2):  # the second time there is a cache, without a shard
        with pytest.raises(ValueError, match=r"none of the 11 clips.*missing"):
            build(folder, classifier, clips, skip_log=data.SkipLog())
    with pytest.raises(ValueError, match="there are no clips"):
        build(folder / "empty", classifier, ())


# --- running


@pytest.mark.parametrize(
    ("num_devices", "batch_size", "content"), [(1, 4, "marginals"), (8, 8, "maps")]
)
def test_a_ragged_end_neither_compiles_nor_changes_a_number(
    num_devices, batch_size, content, folder, classifier, clips
):
    """The last rows of the last batch are padding, or other clips."""
    options = {
        "mesh": mesh_of(num_devices),
        "batch_size": batch_size,
        "content": content,
    }
    filled = clips + clips[: -NUM_CLIPS % batch_size]
    full = build(folder / "full", classifier, filled, **options)
    programs = inference.extract._cache_size()
    ragged = build(folder / "ragged", classifier, clips, **options)
    assert inference.extract._cache_size() == programs
    expected = arrays_of(full)
    for name, array in arrays_of(ragged).items():
        if array is not None:
            np.testing.assert_array_equal(
                array, expected[name][:NUM_CLIPS], err_msg=name
            )


def test_reading_overlaps_with_the_network(folder, classifier, clips, monkeypatch):
    """A network that does not end before the reading of the next batch has begun."""
    batches_begun = [threading.Event() for _ in range(3)]
    number_of = {clip.path: n for n, clip in enumerate(clips)}
    load_clip, runs = audio.load_clip, []

    def load(path, *rest):
        batches_begun[number_of[path] // 4].set()
        return load_clip(path, *rest)

    def wait(logits):
        runs.append(len(runs))
        upcoming = min(len(runs), len(batches_begun) - 1)
        if not batches_begun[upcoming].wait(timeout=30):
            raise TimeoutError(f"nobody reads batch {upcoming} meanwhile")
        return logits

    def forward_fn(model, spectrogram):
        feature_map, logits = convnext.forward(model, spectrogram)
        like = jax.ShapeDtypeStruct(logits.shape, logits.dtype)
        return feature_map, jax.pure_callback(wait, like, logits)

    monkeypatch.setattr(audio, "load_clip", load)
    slow = dataclasses.replace(classifier, forward_fn=forward_fn)
    assert build(folder, slow, clips).clips == clips
    assert len(runs) == 3


def test_host_memory_does_not_grow_with_the_clips(folder, classifier, monkeypatch):
    """Waveforms and shards come and go; what stays is a vector and logits a clip."""
    front_end = dataclasses.replace(FRONT_END, clip_s=2.0)
    monkeypatch.setattr(
        audio, "load_clip", lambda *_: np.ones(front_end.num_samples, np.float32)
    )
    monkeypatch.setattr(cache, "SHARD_BYTES", 2**14)

    def made_of(num_clips):
        clips = [data.Clip(path=f"{n}.wav", label=0) for n in range(num_clips)]
        return build(folder / str(num_clips), classifier, clips, front_end)

    def peak(num_clips):
        tracemalloc.start()
        made = made_of(num_clips)
        _, most = tracemalloc.get_traced_memory()
        tracemalloc.stop()
        kept = made.features.pooled.nbytes + made.features.logits.nbytes
        return most - kept

    made_of(8)  # compiles, imports
    growth = peak(256) - peak(64)
    # Of the 192 more, waveforms alone would be 12 MB. Lists of clips are not counted
    # out: a line of the fingerprint, a path, a number each.
    assert growth < 192 * 4 * front_end.num_samples / 20


# --- interrupting and going on


def test_an_interrupted_build_goes_on(folder, classifier, clips, monkeypatch):
    whole = build(folder / "whole", classifier, clips)
    monkeypatch.setattr(cache, "SHARD_BYTES", 1)  # a shard a batch
    with pytest.raises(Interrupted):
        build(folder / "parts", classifier, clips, on_progress=stop_after(8))
    with pytest.raises(cache.CacheError, match="interrupted after 8 of 11 clips"):
        cache.load(folder / "parts", classifier, clips, FRONT_END)
    shards = sorted((folder / "parts").glob("*.npz"))
    assert len(shards) == 2
    before = [shard.stat().st_mtime_ns for shard in shards]

    batches, seen = [], []
    extract = inference.extract
    monkeypatch.setattr(
        inference, "extract", lambda *a, **k: (batches.append(a), extract(*a, **k))[1]
    )
    resumed = build(folder / "parts", classifier, clips, on_progress=seen.append)
    assert len(batches) == 1  # three clips were left
    assert seen == [8, 3]
    assert [shard.stat().st_mtime_ns for shard in shards] == before
    assert_same(resumed, whole, rtol=1e-6)

    # A finished one runs nothing.
    assert_same(build(folder / "parts", classifier, clips), resumed)
    assert_same(cache.load(folder / "parts", classifier, clips, FRONT_END), resumed)
    assert len(batches) == 1


def test_going_on_past_bad_files(folder, classifier, clips, monkeypatch):
    """One bad clip in a finished shard, one at its end, in other batches after."""
    for n in (1, 3, 9):
        clips[n].path.write_bytes(b"no sound")
    whole = build(folder / "whole", classifier, clips, skip_log=data.SkipLog())
    monkeypatch.setattr(cache, "SHARD_BYTES", 1)
    with pytest.raises(Interrupted):
        build(
            folder / "parts",
            classifier,
            clips,
            skip_log=data.SkipLog(),
            on_progress=stop_after(4),
        )
    log = data.SkipLog()
    resumed = build(folder / "parts", classifier, clips, skip_log=log, batch_size=3)
    assert_same(resumed, whole, rtol=1e-5, atol=1e-6)
    assert [path for path, _ in log.entries()] == [
        str(clips[n].path) for n in (1, 3, 9)
    ]


def test_nothing_half_written_counts(folder, classifier, clips, monkeypatch):
    """Power fails while a shard is written, and while the index is."""
    savez = np.savez

    def fail(stream, **arrays):
        stream.write(b"half a shard")
        raise Interrupted

    monkeypatch.setattr(np, "savez", fail)
    with pytest.raises(Interrupted):
        build(folder, classifier, clips)
    assert not list(folder.glob("*.npz"))
    with pytest.raises(cache.CacheError, match="interrupted after 0 of 11 clips"):
        cache.load(folder, classifier, clips, FRONT_END)
    monkeypatch.setattr(np, "savez", savez)
    (folder / "cache.json").unlink()

    replace = cache.os.replace

    def fail_at_index(source, target):
        if target.name == "cache.json":
            raise Interrupted
        replace(source, target)

    monkeypatch.setattr(cache.os, "replace", fail_at_index)
    with pytest.raises(Interrupted):
        build(folder, classifier, clips)
    monkeypatch.setattr(cache.os, "replace", replace)
    with pytest.raises(cache.CacheError, match=r"no feature cache in .* cache\.build"):
        cache.load(folder, classifier, clips, FRONT_END)

    build(folder, classifier, clips)
    assert sorted(p.name for p in folder.iterdir()) == ["cache.json", "shard-00000.npz"]


# --- refusing


def other_weights(classifier, clips):
    weight = np.array(classifier.head.weight)
    weight[1, 2] = np.nextafter(weight[1, 2], 9)  # a single bit
    head = dataclasses.replace(classifier.head, weight=jnp.asarray(weight))
    return dataclasses.replace(classifier, head=head), clips, FRONT_END


def other_kernel(classifier, clips):
    return classifier_of(seed=1), clips, FRONT_END


def other_epsilon(classifier, clips):
    """The same weights in a network that computes something else with them."""
    config = dataclasses.replace(CONFIG, head_norm_epsilon=1e-2)
    return classifier_of(config), clips, FRONT_END


def other_front_end(classifier, clips):
    return classifier, clips, dataclasses.replace(FRONT_END, mean=-29.0)


def other_order(classifier, clips):
    return classifier, clips[::-1], FRONT_END


def other_offset(classifier, clips):
    return (
        classifier,
        (dataclasses.replace(clips[0], offset_s=0.01), *clips[1:]),
        FRONT_END,
    )


def other_content(classifier, clips):
    write_clips(clips[0].path.parent, num_clips=1)
    return classifier, clips, FRONT_END


@pytest.mark.parametrize(
    ("change", "named"),
    [
        (other_weights, "weights"),
        (other_kernel, "weights"),
        (other_epsilon, "weights"),
        (other_front_end, "front end"),
        (other_order, "clips"),
        (other_offset, "clips"),
        (other_content, "clips"),
    ],
)
def test_a_cache_of_something_else_is_refused(change, named, folder, classifier, clips):
    build(folder, classifier, clips)
    arguments = change(classifier, clips)
    for use in (build, cache.load):
        with pytest.raises(cache.CacheError, match=f"with other {named} than asked"):
            use(folder, *arguments)


def test_all_that_differs_is_named(folder, classifier, clips):
    build(folder, classifier, clips)
    front_end = dataclasses.replace(FRONT_END, std=21.0)
    with pytest.raises(cache.CacheError, match="other weights and front end and clips"):
        build(folder, classifier_of(seed=1), clips[:-1], front_end)


def test_labels_and_class_names_are_no_reason_to_refuse(folder, classifier, clips):
    build(folder, classifier, clips)
    relabelled = tuple(dataclasses.replace(clip, label=0) for clip in clips)
    renamed = dataclasses.replace(classifier, class_names=("a", "b", "c"))
    loaded = cache.load(folder, renamed, relabelled, FRONT_END)
    assert loaded.clips == relabelled


def test_averages_do_not_serve_the_square_scheme(folder, classifier, clips):
    build(folder, classifier, clips)
    for use in (build, cache.load):
        with pytest.raises(cache.CacheError, match="square scheme needs whole maps"):
            use(folder, classifier, clips, FRONT_END, content="maps")


def test_maps_serve_every_scheme(folder, classifier, clips):
    maps = build(folder, classifier, clips, content="maps")
    assert arrays_of(maps)["cells"].shape == (NUM_CLIPS, 3, 4, CHAN)
    averages = cache.load(folder, classifier, clips, FRONT_END)
    assert averages.features.views.cells is None
    np.testing.assert_array_equal(arrays_of(averages)["rows"], arrays_of(maps)["rows"])


def test_other_format(folder, classifier, clips):
    build(folder, classifier, clips)
    file = folder / "cache.json"
    index = json.loads(file.read_text())
    del index["digest"]
    file.write_text(json.dumps({**index, "version": 2}))
    with pytest.raises(cache.CacheError, match="has format 2, not 3; delete"):
        build(folder, classifier, clips)


def flip(file):
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1
    file.write_bytes(content)


def cut(file):
    content = file.read_bytes()
    file.write_bytes(content[: len(content) // 2])


@pytest.mark.parametrize("harm", [flip, cut, lambda file: file.write_bytes(b"")])
def test_damaged_shards(harm, folder, classifier, clips, monkeypatch):
    """Said on loading; made anew by building, and the others stay."""
    monkeypatch.setattr(cache, "SHARD_BYTES", 1)
    whole = build(folder, classifier, clips)
    times = {file: file.stat().st_mtime_ns for file in folder.glob("*.npz")}
    victim = folder / "shard-00001.npz"
    harm(victim)
    with pytest.raises(cache.DamagedError, match=r"00001\.npz is damaged; cache.build"):
        cache.load(folder, classifier, clips, FRONT_END)
    with pytest.warns(UserWarning, match=r"00001\.npz is damaged and made anew"):
        again = build(folder, classifier, clips)
    assert_same(again, whole)
    after = {file: file.stat().st_mtime_ns for file in folder.glob("*.npz")}
    assert {file for file in times if after[file] != times[file]} == {victim}


def test_a_disk_that_fails_again(folder, classifier, clips, monkeypatch):
    build(folder, classifier, clips[:2])
    real = cache._load

    def broken(directory, *arguments):
        flip(directory / "shard-00000.npz")
        return real(directory, *arguments)

    monkeypatch.setattr(cache, "_load", broken)
    with pytest.raises(cache.DamagedError), pytest.warns(UserWarning, match="anew"):
        build(folder, classifier, clips[:2])


def test_a_full_disk_leaves_what_was_there(tmp_path):
    file = tmp_path / "a.json"
    atomic.write(file, lambda stream: stream.write(b"before"))

    def full(stream):
        stream.write(b"half")
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with pytest.raises(OSError, match=r"No space left on device: '.*a\.json'"):
        atomic.write(file, full)
    assert [p.name for p in tmp_path.iterdir()] == ["a.json"]
    assert file.read_bytes() == b"before"


def test_any_flipped_byte_of_an_array_is_noticed(folder, classifier, clips):
    """Never a wrong number: an error, or a byte that is read by nobody."""
    whole = build(folder, classifier, clips[:2])
    file = folder / "shard-00000.npz"
    content = file.read_bytes()
    noticed = 0
    for place in range(0, len(content), 41):
        harmed = bytearray(content)
        harmed[place] ^= 4
        file.write_bytes(harmed)
        try:
            assert_same(cache.load(folder, classifier, clips[:2], FRONT_END), whole)
        except cache.CacheError:
            noticed += 1
    assert noticed > 0.5 * len(content) / 41


def test_a_missing_shard_is_made_again(folder, classifier, clips, monkeypatch):
    monkeypatch.setattr(cache, "SHARD_BYTES", 1)
    whole = build(folder, classifier, clips)
    (folder / "shard-00001.npz").unlink()
    with pytest.raises(cache.CacheError, match="interrupted after 7 of 11 clips"):
        cache.load(folder, classifier, clips, FRONT_END)
    seen = []
    again = build(folder, classifier, clips, on_progress=seen.append)
    assert seen == [7, 4]
    assert_same(again, whole)


def test_a_shard_of_another_cache_is_made_again(folder, classifier, clips, monkeypatch):
    """Left over from a build whose index is gone, or copied in."""
    monkeypatch.setattr(cache, "SHARD_BYTES", 1)
    build(folder, classifier_of(seed=1), clips)
    (folder / "cache.json").unlink()
    made = build(folder, classifier, clips)
    assert_same(made, build(folder.parent / "fresh", classifier, clips))


def without(name):
    def harm(text):
        return json.dumps({k: v for k, v in json.loads(text).items() if k != name})

    return harm


def changed(**values):
    return lambda text: json.dumps({**json.loads(text), **values})


@pytest.mark.parametrize(
    "harm",
    [
        lambda text: text[: len(text) // 2],
        lambda text: "[]",
        lambda text: "",
        lambda text: json.dumps({**json.loads(text), "fingerprint": "abc"}),
        *(without(name) for name in ("version", "fingerprint", "content")),
        *(without(name) for name in ("clips", "shard_clips", "digest")),
        # One bit of a number: fewer clips, more, other shards, another format.
        *(changed(clips=number) for number in (0, 2, 5, 6, 12, "4", None)),
        *(changed(shard_clips=number) for number in (0, 1, 5, -4, "x")),
        *(changed(content=content) for content in ("mapz", "maps", 1)),
        changed(version=2),
        changed(fingerprint={}),
    ],
)
def test_damaged_index(harm, folder, classifier, clips):
    """Shards tell what they belong to: nothing is computed again."""
    whole = build(folder, classifier, clips[:4])
    file = folder / "cache.json"
    file.write_text(harm(file.read_text()))
    with pytest.raises(cache.DamagedError, match=r"cache\.json is damaged"):
        cache.load(folder, classifier, clips[:4], FRONT_END)
    seen = []
    with pytest.warns(UserWarning, match=r"cache\.json is damaged and made anew"):
        again = build(folder, classifier, clips[:4], on_progress=seen.append)
    assert seen == []
    assert_same(again, whole)
    assert_same(cache.load(folder, classifier, clips[:4], FRONT_END), whole)


def test_a_head_that_is_not_the_networks_own(folder, classifier, clips):
    head = dataclasses.replace(classifier.head, weight=2 * classifier.head.weight)
    wrong = dataclasses.replace(classifier, head=head)
    with pytest.raises(disentangle.InvarianceError, match="was not folded"):
        build(folder, wrong, clips)
    assert not (folder / "cache.json").exists()


def test_a_norm_that_was_not_folded_is_found(folder, classifier, clips):
    def unfolded(model, spectrogram):
        body = model.body(spectrogram)
        return body, model.logits(body)

    wrong = dataclasses.replace(classifier, forward_fn=unfolded)
    with pytest.raises(disentangle.InvarianceError):
        build(folder, wrong, clips)


def test_a_new_network_passes_the_check(folder, classifier, clips):
    """Before training, logits are nearly the same for every clip."""
    arrays = {
        name: array * (1e-6 if name.endswith("blocks.scale") else 0.05)
        for name, array in convnext.named_arrays(classifier.params).items()
    }
    model = convnext.from_named_arrays(CONFIG, arrays)
    build(folder, convnext.as_classifier(model, NAMES), clips)


def test_a_forward_function_without_a_name(folder, classifier, clips):
    def scaled(scale, model, spectrogram):
        feature_map, logits = convnext.forward(model, spectrogram)
        return scale * feature_map, scale * logits

    def with_scale(scale):
        forward_fn = functools.partial(scaled, scale)
        head = dataclasses.replace(classifier.head, bias=scale * classifier.head.bias)
        return dataclasses.replace(classifier, forward_fn=forward_fn, head=head)

    build(folder, with_scale(2.0), clips)
    cache.load(folder, with_scale(2.0), clips, FRONT_END)
    with pytest.raises(cache.CacheError, match="other weights"):
        cache.load(folder, with_scale(3.0), clips, FRONT_END)


def test_batches_that_depend_on_each_other_stay_on_one_device(
    folder, classifier, clips
):
    front_end = dataclasses.replace(FRONT_END, top_db_scope="batch")
    with pytest.raises(ValueError, match="8 devices cannot see"):
        build(folder, classifier, clips, front_end, mesh=mesh_of(8))
