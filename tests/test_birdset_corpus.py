"""Copies of BirdSet in three layouts: the same clips from each; what real ones lack.

The sounds are synthetic; the layouts are those of the release.
"""

import io
import json
import shutil
import tarfile
from pathlib import Path

import numpy as np
import pyarrow
import pyarrow.parquet
import pytest
import soundfile

from apex_jax import audio, data
from experiments.birdset import corpus, labels, make_copy, options, unpack

LAYOUTS = ("archives", "files", "embedded")
CLASSES = ("chaffinch", "owl", "wren")


@pytest.fixture(scope="module")
def sounds(tmp_path_factory):
    """Three classes of short tones, 44.1 kHz, one file in stereo."""
    root = tmp_path_factory.mktemp("sounds")
    rng = np.random.default_rng(0)
    for label, name in enumerate(CLASSES):
        (root / name).mkdir()
        for number in range(16):
            at = np.arange(int(44_100 * rng.uniform(1.5, 7))) / 44_100
            tone = np.sin(2 * np.pi * (500 + 700 * label) * at) * rng.uniform(0.1, 0.9)
            wave = np.stack([tone, tone]).T if number == 0 else tone
            soundfile.write(root / name / f"{number:02d}.wav", wave, 44_100)
    return root


@pytest.fixture(scope="module")
def copies(sounds, tmp_path_factory):
    root = tmp_path_factory.mktemp("copies")
    for layout in LAYOUTS:
        make_copy.main(
            make_copy.Config(
                sounds=sounds, output=root / layout, layout=layout, subsets=("HSN",)
            )
        )
    return root


def read(root, name="XCM", split="train", skip_log=None, **options):
    folder = root / "labels"
    names = labels.read(folder, "XCM")
    return corpus.read(
        root,
        name,
        split,
        names,
        own_names=labels.read(folder, name),
        skip_log=data.SkipLog(strict=True) if skip_log is None else skip_log,
        **options,
    )


def told(part, root):
    """What a part's clips are, wherever their files lie."""
    return sorted(
        (clip.path.name, clip.labels, clip.offset_s, clip.within) for clip in part.clips
    )


@pytest.mark.parametrize(
    ("name", "split"), [("XCM", "train"), ("HSN", "train"), ("HSN", "test_5s")]
)
def test_every_layout_gives_the_same_clips(name, split, copies):
    parts = [read(copies / layout, name, split) for layout in LAYOUTS]
    first = told(parts[0], copies)
    assert len(first) > 6
    for part in parts[1:]:
        assert told(part, copies) == first
    waves = [
        sorted(audio.load(clip.path, 32_000).tobytes() for clip in part.clips)
        for part in parts
    ]
    assert waves[0] == waves[1] == waves[2]


RECORDINGS = Path(__file__).parents[2] / "shared" / "data"


@pytest.mark.skipif(not RECORDINGS.is_dir(), reason="no real recordings beside us")
def test_real_recordings_in_every_layout(tmp_path):
    """Compressed, in stereo, of 16 to 48 kHz, of seconds to minutes."""
    chosen = {
        "bird": sorted((RECORDINGS / "birds").glob("*.*")),
        "rooster": sorted((RECORDINGS / "esc10" / "rooster").glob("*.ogg"))[:8],
        "rain": sorted((RECORDINGS / "esc10" / "rain").glob("*.ogg"))[:8],
    }
    for name, files in chosen.items():
        (tmp_path / "sounds" / name).mkdir(parents=True)
        for file in files:
            shutil.copyfile(file, tmp_path / "sounds" / name / file.name)
    for layout in LAYOUTS:
        make_copy.main(
            make_copy.Config(
                sounds=tmp_path / "sounds",
                output=tmp_path / layout,
                layout=layout,
                subsets=("HSN",),
            )
        )
    front_end = audio.FrontEnd.birdset()
    for name, split in (("XCM", "train"), ("HSN", "test_5s")):
        found = []
        for layout in LAYOUTS:
            part = read(tmp_path / layout, name, split)
            assert len(part.clips) > 2
            waves = {
                (clip.path.name, clip.labels): audio.load_clip(
                    clip.path, front_end, clip.offset_s
                )
                for clip in part.clips
            }
            assert all(wave.shape == (160_000,) for wave in waves.values())
            found.append(waves)
        assert found[0].keys() == found[1].keys() == found[2].keys()
        for one, wave in found[0].items():
            assert np.abs(wave).max() > 0
            np.testing.assert_array_equal(wave, found[1][one])
            np.testing.assert_array_equal(wave, found[2][one])


def test_copies_are_as_the_release_is(copies):
    """Files and columns; soundscapes are there, and are no clips."""
    names = {p.name for p in (copies / "archives" / "HSN").iterdir()}
    wanted = {f"HSN_metadata_{split}.parquet" for split in ("train", "test", "test_5s")}
    for part in ("train", "test", "test5s"):
        wanted |= {f"HSN_{part}_shard_000{i}.tar.gz" for i in (1, 2)}
    assert names - {"extracted"} == wanted
    names = {p.name for p in (copies / "archives" / "XCM").iterdir()}
    assert {"XCM_metadata.parquet", "XCM_shard_0001.tar.gz"} <= names
    table = copies / "embedded" / "HSN" / "test_5s" / "0000.parquet"
    assert len(pyarrow.parquet.read_schema(table).names) == 29
    test = copies / "files" / "HSN" / "HSN_metadata_test.parquet"
    rows = pyarrow.parquet.read_table(test).to_pylist()
    (soundscape,) = {row["filepath"] for row in rows}
    assert (copies / "files" / "HSN" / "audio" / soundscape).exists()
    assert len(rows) > 4
    for layout in LAYOUTS:
        part = read(copies / layout, "HSN", "test_5s")
        assert soundscape not in {clip.path.name for clip in part.clips}
        own = read(copies / layout, "HSN", "train")
        every = {clip.path.name for clip in read(copies / layout).clips}
        assert {clip.path.name for clip in own.clips} < every


def ogg(waveform):
    file = io.BytesIO()
    soundfile.write(file, waveform, 32_000, format="OGG", subtype="VORBIS")
    return file.getvalue()


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("split", ["train", "test_5s"])
def test_files_that_cannot_be_decoded_are_left_out(layout, split, tmp_path):
    """As BirdSet's NES has them; one in stereo is mixed down."""
    rng = np.random.default_rng(0)
    at = np.arange(5 * 32_000)[:, None] / 32_000
    stereo = 0.4 * np.sin(2 * np.pi * np.array([500.0, 900.0]) * at)
    sounds = {
        "empty.ogg": b"",
        "cut.ogg": ogg(stereo)[:60],
        "noise.ogg": rng.bytes(4000),
        "stereo.ogg": ogg(stereo),
        "mono.ogg": ogg(stereo[:, 0]),
    }
    row = {"ebird_code": "a", "ebird_code_multilabel": ["a"], "length": 5}
    config = make_copy.Config(sounds=tmp_path, output=tmp_path, layout=layout)
    make_copy._write(
        config,
        "HSN",
        split,
        [({**row, "filepath": name}, (name, one)) for name, one in sounds.items()],
    )
    log = data.SkipLog()
    part = corpus.read(
        tmp_path, "HSN", split, NAMES, own_names=NAMES, skip_log=log
    )  # fmt: skip
    front_end = audio.FrontEnd(
        sample_rate=32_000, clip_s=5.0, n_fft=1024, hop_length=320, n_mels=64
    )
    read_in = {}
    for batch in data.batches(part.clips, front_end, batch_size=2, skip_log=log):
        for index, wave, valid in zip(
            batch["index"], batch["waveform"], batch["valid"], strict=True
        ):
            if valid:
                read_in[part.clips[index].path.name] = wave
    assert set(read_in) == {"stereo.ogg", "mono.ogg"}
    left_out = {Path(path).name for path, _ in log.entries()}
    assert left_out == {"empty.ogg", "cut.ogg", "noise.ogg"}
    np.testing.assert_allclose(read_in["stereo.ogg"], stereo.mean(axis=1), atol=0.05)


def test_a_damaged_table_of_several_is_noted(copies, tmp_path):
    """Its sounds too; the others are used."""
    root = tmp_path / "copy"
    shutil.copytree(copies / "embedded", root)
    folder = root / "HSN" / "train"
    whole = read(root, "HSN", "train")
    second = folder / "0001.parquet"
    second.write_bytes(second.read_bytes()[:200])
    log = data.SkipLog()
    part = read(root, "HSN", "train", skip_log=log)
    assert 0 < len(part.clips) < len(whole.clips)
    assert [Path(path).name for path, _ in log.entries()] == ["0001.parquet"]
    assert "cannot be read as parquet" in log.entries()[0][1]


def test_damaged_sounds_in_a_table_are_noted(copies, tmp_path):
    """Rows that can be read, of sounds that cannot."""
    root = tmp_path / "copy"
    shutil.copytree(copies / "embedded", root)
    shutil.rmtree(root / "HSN" / "extracted", ignore_errors=True)
    file = root / "HSN" / "train" / "0000.parquet"
    column = pyarrow.parquet.ParquetFile(file).metadata.row_group(0)
    at = next(
        column.column(i)
        for i in range(column.num_columns)
        if column.column(i).path_in_schema == "audio.bytes"
    )
    content = bytearray(file.read_bytes())
    first = at.dictionary_page_offset or at.data_page_offset
    content[first : first + 200] = bytes(200)
    file.write_bytes(content)
    log = data.SkipLog()
    part = read(root, "HSN", "train", skip_log=log)
    assert part.clips
    reasons = {Path(path).name: reason for path, reason in log.entries()}
    assert "broken archive" in reasons["0000.parquet"]
    assert "missing from the copy" in reasons.values()


def test_labels_are_positions_in_the_list_asked_for(copies):
    """The subsets' own lists are in other orders."""
    root = copies / "files"
    whole, own = (
        labels.read(root / "labels", "XCM"),
        labels.read(root / "labels", "HSN"),
    )
    assert whole != own
    assert sorted(whole) == sorted(own)
    part = read(root, "HSN", "test_5s")
    table = pyarrow.parquet.read_table(root / "HSN" / "HSN_metadata_test_5s.parquet")
    wanted = {
        row["filepath"]: row["ebird_code_multilabel"] for row in table.to_pylist()
    }
    sizes = set()
    for clip in part.clips:
        assert {whole[i] for i in clip.labels} == set(wanted[clip.path.name])
        sizes.add(len(clip.labels))
    assert sizes == {0, 1, 2}  # no call, one bird, two


def test_clips_lie_around_their_event(copies):
    part = read(copies / "files")
    table = pyarrow.parquet.read_table(
        copies / "files" / "XCM" / "XCM_metadata.parquet"
    )
    rows = {row["filepath"]: row for row in table.to_pylist()}
    seen = set()
    for clip in part.clips:
        found = rows[clip.path.name]["detected_events"]
        first, end = clip.within
        start, stop = found[0] if found else (0.0, 5.0)
        assert first <= start
        assert end >= min(stop, rows[clip.path.name]["length"]) - 1e-9
        assert end - first <= max(8.0, stop - start) + 1e-9
        assert clip.group == clip.path.name
        seen.add(bool(found))
    assert seen == {True, False}
    assert len({clip.path for clip in part.clips}) == len(part.clips)


def test_unpacked_once(copies, monkeypatch, tmp_path):
    root = copies / "archives"
    read(root, unpack_dir=tmp_path)
    files = sorted(p.name for p in (tmp_path / "XCM").glob("*.ogg"))
    assert files

    def never(*_):
        raise AssertionError("unpacked again")

    monkeypatch.setattr(unpack, "_members", never)
    read(root, unpack_dir=tmp_path)
    assert not list((tmp_path / "XCM").glob("*.part"))


def test_members_stay_in_their_folder(tmp_path):
    """Whatever they are called; links and what is no sound are left."""
    folder = tmp_path / "HSN"
    folder.mkdir()
    with tarfile.open(folder / "HSN_test5s_shard_0001.tar.gz", "w:gz") as tar:
        for name in ("../../evil.ogg", "/abs/root.ogg", "..\\win.ogg", "a/b/fine.ogg",
                     "script.sh", ".hidden.ogg"):  # fmt: skip
            member = tarfile.TarInfo(name)
            member.size = 3
            tar.addfile(member, io.BytesIO(b"abc"))
        link = tarfile.TarInfo("link.ogg")
        link.type, link.linkname = tarfile.SYMTYPE, "/etc/passwd"
        tar.addfile(link)
    into = tmp_path / "into"
    log = data.SkipLog(strict=True)
    unpack.sounds(folder, "HSN", "test_5s", [], into, log)
    names = {p.name for p in into.iterdir() if p.suffix == ".ogg"}
    assert names == {"evil.ogg", "root.ogg", "win.ogg", "fine.ogg"}
    assert {p.name for p in tmp_path.iterdir()} == {"HSN", "into"}


def test_a_broken_archive_is_noted_and_tried_again(copies, tmp_path):
    shard = next((copies / "archives" / "XCM").glob("*_0001.tar.gz"))
    folder = tmp_path / "XCM"
    folder.mkdir()
    cut = folder / shard.name
    cut.write_bytes(shard.read_bytes()[: shard.stat().st_size // 2])
    log = data.SkipLog()
    unpack.sounds(folder, "XCM", "train", [], tmp_path / "into", log)
    ((path, reason),) = log.entries()
    assert path == str(cut)
    assert "broken archive" in reason
    some = len(list((tmp_path / "into").glob("*.ogg")))
    cut.write_bytes(shard.read_bytes())
    unpack.sounds(folder, "XCM", "train", [], tmp_path / "into", data.SkipLog())
    assert 0 <= some < len(list((tmp_path / "into").glob("*.ogg")))


def write_rows(folder, rows, name="HSN", split="train"):
    folder.mkdir(parents=True, exist_ok=True)
    table = pyarrow.Table.from_pylist(rows)
    pyarrow.parquet.write_table(table, folder / f"{name}_metadata_{split}.parquet")


def tone(path, seconds=6.0):
    at = np.arange(int(32_000 * seconds)) / 32_000
    soundfile.write(path, 0.3 * np.sin(2 * np.pi * 900 * at), 32_000)


NAMES = ("a", "b", "c")


def small(root, rows, split="train", skip_log=None, names=NAMES):
    write_rows(root / "HSN", rows, split=split)
    return corpus.read(
        root,
        "HSN",
        split,
        names,
        own_names=("c", "a"),
        skip_log=data.SkipLog() if skip_log is None else skip_log,
    )


def test_what_real_copies_lack_is_tolerated(tmp_path):
    folder = tmp_path / "HSN"
    folder.mkdir()
    for name in ("whole", "nulls", "unknown", "partly", "holes"):
        tone(folder / f"{name}.ogg")
    base = {
        "filepath": "whole.ogg",
        "start_time": None,
        "ebird_code": "a",
        "ebird_code_multilabel": ["a"],
        "length": 6,
        "detected_events": [[1.0, 2.0]],
        "event_cluster": [-1],
    }
    rows = [
        base,
        {**base, "filepath": "deep/in/nulls.ogg", "detected_events": None,
         "event_cluster": None, "ebird_code_multilabel": None, "length": None,
         "start_time": float("nan")},
        {**base, "filepath": "missing.ogg"},
        {**base, "filepath": "unknown.ogg", "ebird_code": "zz",
         "ebird_code_multilabel": ["zz"]},
        {**base, "filepath": "partly.ogg", "ebird_code_multilabel": ["a", "zz", "b"]},
        {**base, "filepath": None},
        {**base, "filepath": "holes.ogg", "ebird_code": None,
         "ebird_code_multilabel": [None, "b"], "detected_events": [[100.0, 103.0]],
         "event_cluster": [0]},
    ]  # fmt: skip
    log = data.SkipLog()
    part = small(tmp_path, rows, skip_log=log)
    assert [(c.path.name, c.labels) for c in part.clips] == [
        ("whole.ogg", (0,)),
        ("nulls.ogg", (0,)),
        ("partly.ogg", (0, 1)),
        ("holes.ogg", (1,)),
    ]
    assert part.clips[1].within == (0.0, 6.5)  # the first five seconds, widened
    # The event lies beyond the end: the last seconds of what is there.
    assert part.clips[3].within == (0.0, 6.0)
    assert part.clips[3].offset_s == 1.0
    assert part.unknown == {"zz": 2}
    assert [path.rpartition("/")[2] for path, _ in log.entries()] == [
        "HSN_metadata_train.parquet",
        "missing.ogg",
    ]
    assert "row 5 has neither" in log.entries()[0][1]


def test_test_clips_without_a_known_bird_are_kept(tmp_path):
    folder = tmp_path / "HSN"
    folder.mkdir()
    rows = []
    for name, codes in (("none", []), ("unknown", ["zz"]), ("b", ["b"])):
        tone(folder / f"{name}.ogg", 5.0)
        rows.append(
            {
                "filepath": f"{name}.ogg",
                "start_time": 0.0,
                "ebird_code": None,
                "ebird_code_multilabel": codes,
                "length": 5,
            }
        )
    part = small(tmp_path, rows, split="test_5s")
    assert [clip.labels for clip in part.clips] == [(), (), (1,)]
    assert part.unknown == {"zz": 1}


def test_numbers_are_codes_of_the_subsets_own_list(tmp_path):
    tone(tmp_path / "x.ogg")
    (tmp_path / "HSN").mkdir()
    (tmp_path / "x.ogg").rename(tmp_path / "HSN" / "x.ogg")
    row = {"filepath": "x.ogg", "ebird_code": 0, "ebird_code_multilabel": [0, 1]}
    part = small(tmp_path, [row])
    assert part.clips[0].labels == (0, 2)  # c and a, of a, b, c
    # Where a row has none, pandas makes the column one of floats.
    part = small(tmp_path, [{**row, "ebird_code": 0.0}])
    assert part.clips[0].labels == (0, 2)
    for wrong, said in ((7, "class 7 of 2"), (0.5, r"class 0\.5 of 2")):
        with pytest.raises(ValueError, match=said):
            small(tmp_path, [{**row, "ebird_code": wrong}])


def test_refused(tmp_path, copies):
    log = data.SkipLog()
    with pytest.raises(ValueError, match="has no folder HSN"):
        corpus.read(
            tmp_path, "HSN", "train", NAMES, own_names=NAMES, skip_log=log
        )  # fmt: skip
    (tmp_path / "HSN").mkdir()
    with pytest.raises(ValueError, match=r"neither HSN_metadata_train\.parquet nor"):
        corpus.read(tmp_path, "HSN", "train", NAMES, own_names=NAMES, skip_log=log)
    (tmp_path / "HSN" / "HSN_metadata_train.parquet").write_bytes(b"PAR1 no")
    with pytest.raises(ValueError, match="cannot be read as parquet"):
        corpus.read(tmp_path, "HSN", "train", NAMES, own_names=NAMES, skip_log=log)
    row = {"filepath": "gone.ogg", "ebird_code": "a", "ebird_code_multilabel": ["a"]}
    with pytest.raises(ValueError, match="of 1 rows of train with a known bird none"):
        small(tmp_path, [row])
    with pytest.raises(ValueError, match="not empty"):
        make_copy.main(make_copy.Config(sounds=tmp_path, output=copies))


# --- class lists


def test_a_list_by_its_numbers(tmp_path):
    file = tmp_path / "HSN_ebird_codes.json"
    file.write_text(json.dumps({"label2id": {"x": 2, "y": 0, "z": 1}}))
    assert labels.read(tmp_path, "HSN") == ("y", "z", "x")
    assert labels.positions(("a", "x", "z", "y"), ("y", "z", "x"), "HSN") == [3, 2, 1]
    with pytest.raises(ValueError, match=r"no class b, c of HSN's 3"):
        labels.positions(("a",), ("a", "b", "c"), "HSN")


@pytest.mark.parametrize(
    "content", ["{", "[]", "{}", '{"label2id": {"a": 1}}', '{"label2id": {}}']
)
def test_a_list_that_is_none(content, tmp_path):
    (tmp_path / "HSN.json").write_text(content)
    with pytest.raises(ValueError, match=r"no list of BirdSet's|number its codes"):
        labels.read(tmp_path, "HSN")
    with pytest.raises(ValueError, match="has no SNE_ebird_codes"):
        labels.read(tmp_path, "SNE")


REAL = Path(__file__).parents[2] / "shared" / "data" / "birdset_labels"
needs_lists = pytest.mark.skipif(
    not REAL.is_dir(), reason=f"BirdSet's class lists are not in {REAL}"
)
SIZES = {
    "XCL": 9736, "XCM": 411, "PER": 132, "NES": 89, "UHH": 27,
    "HSN": 21, "NBP": 51, "SSW": 81, "SNE": 56, "POW": 48,
}  # fmt: skip


@needs_lists
@pytest.mark.parametrize("name", SIZES)
def test_the_real_lists(name):
    """Their sizes; each name once; both directions of the file say the same."""
    names = labels.read(REAL, name)
    assert len(names) == len(set(names)) == SIZES[name]
    content = json.loads((REAL / f"{name}_ebird_codes.json").read_text())
    assert [content["id2label"][str(i)] for i in range(len(names))] == list(names)
    # No list is sorted: who sorts them gets other outputs.
    assert list(names) != sorted(names)


@needs_lists
def test_every_tested_bird_is_in_both_training_lists():
    """XCM is the union of the tests; where a bird stands differs from list to list."""
    tests = [labels.read(REAL, name) for name in options.TESTS]
    lists = {name: labels.read(REAL, name) for name in ("XCL", "XCM")}
    assert set().union(*tests) == set(lists["XCM"])
    for names in tests:
        for own in lists.values():
            at = labels.positions(own, names, "a test set")
            assert [own[i] for i in at] == list(names)
    places = {"HSN": 17, "SNE": 20, "XCM": 352, "XCL": 7775}
    for name, place in places.items():
        assert labels.read(REAL, name).index("mouchi") == place
    # Two birds without recordings come last, after 9,734 with some.
    assert lists["XCL"][-2:] == ("reblei", "melthr")


def test_backgrounds_come_out_of_archives_too(tmp_path):
    """As BirdSet has them: recordings without birds in dcase18's shards."""
    folder = tmp_path / "dcase18"
    folder.mkdir()
    for number in (1, 2):
        with tarfile.open(folder / f"dcase18_shard_000{number}.tar.gz", "w:gz") as tar:
            member = tarfile.TarInfo(f"somewhere/noise{number}.wav")
            member.size = 3
            tar.addfile(member, io.BytesIO(b"abc"))
    log = data.SkipLog()
    for _ in range(2):
        found = corpus.backgrounds(folder, tmp_path / "unpacked", log)
        assert [Path(c.path).name for c in found] == ["noise1.wav", "noise2.wav"]
        assert all(c.labels == () for c in found)
    assert sorted(p.name for p in folder.iterdir()) == [
        "dcase18_shard_0001.tar.gz",
        "dcase18_shard_0002.tar.gz",
    ]
    with pytest.raises(ValueError, match="holds no sound files"):
        corpus.backgrounds(tmp_path / "none", None, log)
