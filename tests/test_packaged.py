"""TFDS data sets: what goes in comes out, byte for byte, without TensorFlow."""

import json
import shutil
import sys

import numpy as np
import pytest
import soundfile
import test_birdset_corpus
import test_wavefake_corpus

from apex_jax import audio

tfds = pytest.importorskip("tensorflow_datasets")

from experiments import package, packaged  # noqa: E402
from experiments.wavefake import corpus as wavefake_corpus  # noqa: E402

sounds, copies = test_birdset_corpus.sounds, test_birdset_corpus.copies


def test_wavefake(tmp_path):
    names = test_wavefake_corpus.NAMES
    copy = test_wavefake_corpus.copy_of(
        tmp_path / "copy", {"melgan": names, "hifiGAN": names[::2]}
    )
    for number, path in enumerate(sorted(copy.rglob("*.wav"))):
        test_birdset_corpus.tone(path, 0.1 + 0.01 * number)
    made = package.main(package.Wavefake(data_dir=copy, output=tmp_path / "out"))
    corpus = wavefake_corpus.read(copy)
    test, validation = wavefake_corpus.sentences_held_out(corpus)
    seen = set()
    for split, sentences in (("test", test), ("validation", validation)):
        for record in packaged.read(made, split, 32_000):
            assert record["sentence"].decode() in sentences
            seen.add(record["sentence"].decode())
    assert seen == {*test, *validation}
    files = {}
    builder = tfds.builder_from_directory(made)
    for split in builder.info.splits:
        for record in builder.as_data_source(split):
            files[record["vocoder"].decode(), record["file"].decode()] = record
    everything = {"": corpus.real, **corpus.fake}
    assert len(files) == sum(map(len, everything.values()))
    for vocoder, clips in everything.items():
        for clip in clips:
            record = files[vocoder, clip.path.name]
            assert record["audio"] == clip.path.read_bytes()
            assert record["label"] == clip.label
            np.testing.assert_allclose(
                packaged.waveform(record["audio"], 32_000),
                audio.load(clip.path, 32_000),
                atol=1e-6,
            )
    assert "tensorflow" not in sys.modules


@pytest.mark.parametrize(("name", "split"), [("XCM", "train"), ("HSN", "test_5s")])
def test_birdset(name, split, copies, tmp_path):
    root = copies / "files"
    made = package.main(
        package.Birdset(
            data_dir=root, labels=root / "labels", subset=name, output=tmp_path
        )
    )
    part = test_birdset_corpus.read(root, name, split)
    own = packaged.birdset_labels.read(root / "labels", name)
    whole = packaged.birdset_labels.read(root / "labels", "XCM")
    records = list(packaged.read(made, split, 32_000))
    assert len(records) == len(part.clips)
    wanted = {clip.path.name: clip for clip in part.clips}
    for record in records:
        clip = wanted[record["file"].decode()]
        assert {own[i] for i in record["labels"]} == {whole[i] for i in clip.labels}
        start, end = clip.within or (clip.offset_s, clip.offset_s + 5.0)
        start, end = min(start, clip.offset_s), max(end, clip.offset_s + 5.0)
        assert record["start_s"] == pytest.approx(start)
        assert record["start_s"] + record["clip_s"] == pytest.approx(clip.offset_s)
        np.testing.assert_allclose(
            record["waveform"],
            audio.load(clip.path, 32_000, offset_s=start, duration_s=end - start),
            atol=2e-5,  # 16 bits
        )
    assert "tensorflow" not in sys.modules


def test_limits_of_events(tmp_path):
    folder = tmp_path / "HSN"
    folder.mkdir()
    test_birdset_corpus.tone(folder / "x.ogg", 30.0)
    row = {"filepath": "x.ogg", "ebird_code": "a", "ebird_code_multilabel": ["a"],
           "length": 30, "event_cluster": [0] * 4,
           "detected_events": [[5.0 * i, 5.0 * i + 1] for i in range(4)]}  # fmt: skip
    test_birdset_corpus.write_rows(folder, [row])
    lists = {"id2label": {"0": "a"}, "label2id": {"a": 0}}
    (tmp_path / "HSN_ebird_codes.json").write_text(json.dumps(lists))
    for number, limits in enumerate(({}, {"class_limit": 1, "event_limit": 2})):
        made = package.main(
            package.Birdset(
                data_dir=tmp_path,
                labels=tmp_path,
                subset="HSN",
                output=tmp_path / str(number),
                **limits,
            )
        )
        records = packaged.read(made, "train", 32_000)
        assert len(records) == (4, 2)[number]


def test_what_is_beyond_full_scale_comes_back(tmp_path):
    file = tmp_path / "loud.wav"
    wave = np.float32([0.5, -1.7, 1.2, 0.0] * 4000)
    soundfile.write(file, wave, 16_000, subtype="FLOAT")
    content, scale = packaged._flac(file, 0.0, 1.0)
    assert scale == pytest.approx(1.7)
    found = packaged.waveform(content, 16_000) * scale
    np.testing.assert_allclose(found, wave, atol=6e-5)


def test_what_cannot_be_read_is_listed(copies, tmp_path, capsys):
    root = tmp_path / "copy"
    shutil.copytree(copies / "files", root)
    victim = next(
        clip.path for clip in test_birdset_corpus.read(root, "HSN", "test_5s").clips
    )
    victim.write_bytes(b"no sound")
    package.main(
        package.Birdset(
            data_dir=root, labels=root / "labels", subset="HSN", output=tmp_path / "out"
        )
    )
    assert "skipped" in capsys.readouterr().out
    assert victim.name in (tmp_path / "out" / "HSN-skipped.csv").read_text()


def test_refused(tmp_path, copies):
    root = copies / "files"
    (tmp_path / "XCM").mkdir()
    with pytest.raises(ValueError, match="holds no split"):
        package.main(
            package.Birdset(
                data_dir=tmp_path, labels=root / "labels", subset="XCM", output=tmp_path
            )
        )
