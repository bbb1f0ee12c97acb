import csv
import dataclasses
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np
import pytest
import soundfile

from apex_jax import audio, data

DATA = Path(__file__).parents[2] / "shared" / "data"
RATE = 1000
FRONT_END = audio.FrontEnd(
    sample_rate=RATE, clip_s=0.1, n_fft=32, hop_length=8, n_mels=5
)


def write(path, samples):
    path.parent.mkdir(parents=True, exist_ok=True)
    soundfile.write(path, samples, RATE, subtype="FLOAT")
    return path


@pytest.fixture
def clips(tmp_path):
    """Seven clips; file i counts up from i by 1/1000 a sample, 0.3 s."""
    ramp = np.arange(300) / 1000
    return [
        data.Clip(path=write(tmp_path / f"c{i}.wav", i + ramp), label=i % 3)
        for i in range(7)
    ]


def read(clips, **kwargs):
    settings = {"batch_size": 3, "skip_log": data.SkipLog()}
    return list(data.batches(clips, FRONT_END, **settings | kwargs))


def same(left, right):
    assert len(left) == len(right)
    for a, b in zip(left, right, strict=True):
        assert a.keys() == b.keys()
        for key in a:
            np.testing.assert_array_equal(a[key], b[key])


def order(batches):
    return np.concatenate([b["index"] for b in batches]).tolist()


def grain_threads():
    return [t for t in threading.enumerate() if "grain" in t.name and t.is_alive()]


def test_skip_log_keeps_the_first_reason(tmp_path):
    log = data.SkipLog()
    for path, reason in [("b.wav", "one"), (Path("a.wav"), "two"), ("b.wav", "three")]:
        log.add(audio.AudioError(path, reason))
    assert log.entries() == [("a.wav", "two"), ("b.wav", "one")]


# Batches


@pytest.mark.parametrize("batch_size", [1, 3, 7, 10])
def test_batches_have_one_shape(clips, batch_size):
    batches = read(clips, batch_size=batch_size)
    assert len(batches) == -(-7 // batch_size)
    for batch in batches:
        assert {k: (v.shape, v.dtype.name) for k, v in batch.items()} == {
            "waveform": ((batch_size, 100), "float32"),
            "index": ((batch_size,), "int32"),
            "valid": ((batch_size,), "bool"),
        }
        for i in range(batch_size):
            if batch["valid"][i]:
                clip = clips[batch["index"][i]]
                expected = audio.load_clip(clip.path, FRONT_END)
                np.testing.assert_array_equal(batch["waveform"][i], expected)
            else:
                assert batch["index"][i] == -1
                assert not batch["waveform"][i].any()
    padding = len(batches) * batch_size - 7
    assert order(batches) == [*range(7), *[-1] * padding]


def test_offset_of_a_clip(clips):
    late = data.Clip(path=clips[4].path, label=0, offset_s=0.15)
    (batch,) = read([late], batch_size=1)
    np.testing.assert_allclose(
        batch["waveform"][0], 4.15 + np.arange(100) / 1000, rtol=1e-6
    )


def test_shuffle_is_reproducible_and_new_each_epoch(clips):
    batches = read(clips, seed=5, num_epochs=3)
    epochs = [order(batches[i : i + 3]) for i in (0, 3, 6)]
    for epoch in epochs:
        assert sorted(epoch) == [-1, -1, *range(7)]
    assert epochs[0] != epochs[1] != epochs[2]
    for num_threads in (0, 1, 5):
        same(batches, read(clips, seed=5, num_epochs=3, num_threads=num_threads))
    assert order(read(clips, seed=6)) != epochs[0]
    assert order(read(clips)) == [*range(7), -1, -1]


def test_random_crop(clips):
    settings = {"seed": 3, "random_crop": True, "num_epochs": 25}
    batches = read(clips, num_threads=4, **settings)
    starts = []
    for batch in batches:
        valid = batch["valid"]
        steps = np.diff(batch["waveform"][valid], axis=1)
        np.testing.assert_allclose(steps, 1e-3, rtol=1e-2)
        starts += (batch["waveform"][valid, 0] - batch["index"][valid]).tolist()
    # Uniform over the 0.2 s that a clip of 0.1 s can start in, in a file of 0.3 s.
    assert len(starts) == 7 * 25
    counts = np.histogram(starts, bins=4, range=(-1e-3, 0.201))[0]
    assert counts.sum() == 7 * 25
    assert counts.min() > 25
    same(batches, read(clips, num_threads=1, **settings))
    first, second = batches[:3], batches[3:6]
    assert first[0]["waveform"][0, 0] % 1 != second[0]["waveform"][0, 0] % 1


def test_random_crop_of_a_short_file(tmp_path):
    path = write(tmp_path / "a.wav", np.ones(60))
    short = [data.Clip(path=path, label=0, offset_s=0.05)]
    (batch,) = read(short, batch_size=1, seed=0, random_crop=True)
    np.testing.assert_array_equal(batch["waveform"][0], [1] * 60 + [0] * 40)


def test_start_goes_on_where_it_stopped(clips):
    settings = {"seed": 5, "num_epochs": 3, "random_crop": True}
    batches = read(clips, **settings)
    for start in (0, 2, 4, 9):
        same(batches[start:], read(clips, start=start, **settings))
    endless = data.batches(
        clips, FRONT_END, batch_size=3, skip_log=data.SkipLog(), num_epochs=None,
        seed=5, random_crop=True, start=7,
    )  # fmt: skip
    same(batches[7:9], [next(endless), next(endless)])
    next(endless)
    endless.close()


def test_bad_files_among_many_are_skipped_and_logged(clips, tmp_path):
    (tmp_path / "c2.wav").write_text("not a sound")
    data_6 = (tmp_path / "c6.wav").read_bytes()
    (tmp_path / "c6.wav").write_bytes(data_6[: len(data_6) // 2])
    (tmp_path / "c0.wav").unlink()
    log = data.SkipLog()
    batches = read(clips, skip_log=log, num_epochs=2)
    valid = np.concatenate([b["valid"] for b in batches])
    assert order(batches) == [*range(7), -1, -1] * 2
    assert valid.tolist() == [i not in (0, 2, 6, 7, 8) for i in range(9)] * 2
    assert not batches[0]["waveform"][[0, 2]].any()
    assert len(log) == 3
    reasons = dict(log.entries())
    assert list(reasons) == [str(tmp_path / f"c{i}.wav") for i in (0, 2, 6)]
    for found, expected in zip(
        reasons.values(), ["missing", "not readable", "truncated"], strict=True
    ):
        assert found.startswith(expected)
    log.write_csv(tmp_path / "skipped.csv")
    with (tmp_path / "skipped.csv").open(newline="", encoding="utf-8") as file:
        assert [tuple(row) for row in csv.reader(file)] == [
            ("path", "reason"),
            *log.entries(),
        ]


@pytest.mark.parametrize("random_crop", [False, True])
def test_strict_raises_what_is_wrong(clips, tmp_path, random_crop):
    (tmp_path / "c4.wav").write_text("not a sound")
    with pytest.raises(audio.AudioError, match=r"c4\.wav: not readable as audio"):
        read(clips, skip_log=data.SkipLog(strict=True), seed=1, random_crop=random_crop)


def test_threads_end_with_their_reader(clips):
    # Some may still be ending that another test has left.
    before = set(grain_threads())
    batches = data.batches(
        clips, FRONT_END, batch_size=1, skip_log=data.SkipLog(), num_epochs=50
    )
    next(batches)
    own = set(grain_threads()) - before
    assert own
    batches.close()
    for thread in own:
        thread.join(timeout=5)
    assert not any(thread.is_alive() for thread in own)


def test_a_batch_is_read_by_all_threads(clips, monkeypatch):
    """None of four clips is there before all four have been begun."""
    together = threading.Barrier(4, timeout=30)
    load_clip = audio.load_clip

    def load(*args):
        together.wait()
        return load_clip(*args)

    monkeypatch.setattr(audio, "load_clip", load)
    (batch,) = read(clips[:4], batch_size=4, num_threads=4)
    assert batch["valid"].all()


@pytest.mark.parametrize("part", [(0, 1), (1, 2)])
@pytest.mark.parametrize("num_threads", [1, 3])
@pytest.mark.parametrize("ahead_bytes", [data.AHEAD_BYTES, 7 * 400])
def test_what_waits_does_not_grow(ahead_bytes, num_threads, part, clips, monkeypatch):
    """Clips that have been begun and not handed out, whatever the number of clips."""
    monkeypatch.setattr(data, "AHEAD_BYTES", ahead_bytes)
    begun, lock = [], threading.Lock()

    def load(path, front_end, offset_s):
        with lock:
            begun.append(path)
        return np.ones(front_end.num_samples, np.float32)

    monkeypatch.setattr(audio, "load_clip", load)
    size = 4 // part[1]
    waiting = []
    for count in (40, 160):
        begun.clear()
        most = 0
        batches = data.batches(
            [clips[0]] * count,
            FRONT_END,
            batch_size=4,
            skip_log=data.SkipLog(),
            num_threads=num_threads,
            part=part,
        )
        for number, _ in enumerate(batches):
            time.sleep(1e-3)  # they read as far ahead as they may
            most = max(most, len(begun) - number * size)
        assert len(begun) == count // part[1]
        waiting.append(most)
    ahead = data.AHEAD_BATCHES * size if ahead_bytes == data.AHEAD_BYTES else 7
    # The batch in hand is counted too.
    assert max(waiting) <= ahead + size


def test_a_program_that_stops_early_is_silent(clips):
    code = f"""
from apex_jax import audio, data
front_end = audio.FrontEnd.from_dict({FRONT_END.to_dict()})
clips = [data.Clip(path=p, label=0) for p in {[str(c.path) for c in clips]}]
for batch in data.batches(clips, front_end, batch_size=2, skip_log=data.SkipLog(),
                          num_epochs=None, seed=0):
    break
left = data.batches(clips, front_end, batch_size=2, skip_log=data.SkipLog())
print(batch["waveform"].shape, next(left)["waveform"].shape)
"""
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", code],
        capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip
    assert (done.returncode, done.stdout, done.stderr) == (0, "(2, 100) (2, 100)\n", "")


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"batch_size": 0}, "batch_size=0"),
        ({"num_epochs": 0}, "num_epochs=0"),
        ({"seed": -1}, "seed=-1"),
        ({"start": -1}, "start=-1"),
        ({"num_threads": -1}, "num_threads=-1"),
        ({"random_crop": True}, "random_crop=True needs a seed"),
    ],
)
def test_batches_refuse_at_once(clips, settings, message):
    settings = {"batch_size": 3, "skip_log": data.SkipLog()} | settings
    with pytest.raises(ValueError, match=message):
        data.batches(clips, FRONT_END, **settings)
    with pytest.raises(ValueError, match="clips is empty"):
        data.batches([], FRONT_END, batch_size=3, skip_log=data.SkipLog())


# Clips


def test_labels_of_a_clip():
    assert data.Clip(path="a.wav", label=3).labels == (3,)
    assert data.Clip(path="a.wav", label=(3, 1)).labels == (3, 1)
    assert data.Clip(path="a.wav", label=()).labels == ()


def test_clip_names():
    clip = data.Clip(path="x/melgan/LJ001_gen.wav", label=1, offset_s=2.5)
    assert clip.id == "melgan/LJ001_gen.wav@2.500"
    assert clip.group == "LJ001_gen"
    assert data.Clip(path=Path("a.wav"), label=0, group="g").group == "g"


def test_class_folder(tmp_path):
    names = ["b/2.wav", "b/1.wav", "b/deep/3.FLAC", "a/x.ogg", "a/y.txt", "a/z.aif",
             "a/.hidden.wav", "b/.cache/4.wav", ".git/5.wav", "top.wav",
             "a/no.raw"]  # fmt: skip
    for name in names:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    (tmp_path / "a" / "folder.wav").mkdir()
    clips, class_names = data.class_folder(tmp_path)
    assert class_names == ("a", "b")
    assert [(c.path.relative_to(tmp_path).as_posix(), c.label) for c in clips] == [
        ("a/x.ogg", 0),
        ("a/z.aif", 0),
        ("b/1.wav", 1),
        ("b/2.wav", 1),
        ("b/deep/3.FLAC", 1),
    ]
    assert data.class_folder(str(tmp_path)) == (clips, class_names)


def test_class_folder_errors(tmp_path):
    with pytest.raises(ValueError, match="is not a folder"):
        data.class_folder(tmp_path / "none")
    (tmp_path / "a.wav").touch()
    with pytest.raises(ValueError, match=r"no class folders; .*root/CLASS/FILE"):
        data.class_folder(tmp_path)
    write(tmp_path / "a" / "a.wav", np.zeros(9))
    (tmp_path / "b").mkdir()
    (tmp_path / "b" / "notes.txt").touch()
    with pytest.raises(ValueError, match=r"/b' has no sound file; .*flac.*wav"):
        data.class_folder(tmp_path)


def test_every_common_ending_is_known():
    common = {"wav", "flac", "ogg", "oga", "opus", "mp3", "aiff", "aif", "au"}
    assert common <= data.endings()


@pytest.mark.parametrize(
    ("samples", "max_windows", "count"),
    [(20, 9, 1), (100, 9, 1), (149, 9, 1), (150, 9, 2), (249, 9, 2), (450, 9, 5),
     (450, 3, 3), (450, 1, 1)],
)  # fmt: skip
def test_windows(tmp_path, samples, max_windows, count):
    path = write(tmp_path / "a.wav", np.zeros(samples))
    clip = data.Clip(path=path, label=2, group="g")
    log = data.SkipLog()
    cut = data.windows([clip], FRONT_END, max_windows=max_windows, skip_log=log)
    assert [c.offset_s for c in cut] == pytest.approx(0.1 * np.arange(count))
    assert {(c.path, c.label, c.group) for c in cut} == {(path, 2, "g")}
    late = data.Clip(path=path, label=2, offset_s=0.1)
    cut = data.windows([late], FRONT_END, max_windows=max_windows, skip_log=log)
    assert cut[0].offset_s == pytest.approx(0.1)
    assert len(cut) == max(1, min(max_windows, (samples - 100 + 50) // 100))
    assert len(log) == 0


def test_windows_read_headers_only_and_report(clips, tmp_path, monkeypatch):
    (tmp_path / "c1.wav").write_text("not a sound")
    monkeypatch.delattr(soundfile.SoundFile, "read")
    log = data.SkipLog()
    cut = data.windows(clips, FRONT_END, max_windows=2, skip_log=log)
    assert len(cut) == 12
    assert [p for p, _ in log.entries()] == [str(tmp_path / "c1.wav")]
    with pytest.raises(audio.AudioError, match=r"c1\.wav"):
        data.windows(
            clips, FRONT_END, max_windows=2, skip_log=data.SkipLog(strict=True)
        )
    with pytest.raises(ValueError, match="max_windows=0"):
        data.windows(clips, FRONT_END, max_windows=0, skip_log=log)


def test_real_folder():
    if not DATA.is_dir():
        pytest.skip("no folder of real recordings beside the repository")
    front_end = audio.FrontEnd(sample_rate=22_050, clip_s=2.0)
    clips, class_names = data.class_folder(DATA / "esc10")
    assert len(class_names) == 10
    log = data.SkipLog()
    cut = data.windows(clips[::50], front_end, max_windows=3, skip_log=log)
    batches = list(data.batches(cut, front_end, batch_size=8, skip_log=log, seed=0))
    assert len(log) == 0
    assert sum(b["valid"].sum() for b in batches) == len(cut)
    assert 2 * len(clips[::50]) < len(cut) <= 3 * len(clips[::50])
    result = audio.spectrogram(front_end, batches[0]["waveform"])
    assert np.isfinite(result).all()


def test_of_a_file_read_twice_the_first_reason_is_kept(clips, monkeypatch):
    """Also where a later window of it is done first."""
    windows = [dataclasses.replace(clips[0], offset_s=float(s)) for s in (0, 1)]
    second = threading.Event()

    def load_clip(path, front_end, offset_s):
        if offset_s == 0:
            assert second.wait(30)
        else:
            second.set()
        raise audio.AudioError(path, f"broken from {offset_s:g} s")

    monkeypatch.setattr(audio, "load_clip", load_clip)
    log = data.SkipLog()
    list(data.batches(windows, FRONT_END, batch_size=2, skip_log=log, num_threads=2))
    assert log.entries() == [(str(clips[0].path), "broken from 0 s")]
