"""Folders and manifests as data sets; splits that keep groups whole."""

import collections

import numpy as np
import pytest

from apex_jax import audio, data, dataset


@pytest.fixture
def folder(tmp_path):
    """Files of 12, 6 and 3 clips a class; reading a data set opens none of them."""
    for name, count in (("rook", 12), ("crow", 6), ("jay", 3)):
        (tmp_path / "sounds" / name).mkdir(parents=True)
        for n in range(count):
            (tmp_path / "sounds" / name / f"{name}{n:02d}.wav").touch()
    return tmp_path / "sounds"


@pytest.fixture
def manifest(tmp_path):
    """Writes a manifest and, unless told otherwise, the files it names."""

    def write(*lines, absent=()):
        for line in lines[1:]:
            name = line.split(",")[0]
            if name not in absent:
                (tmp_path / name).touch()
        file = tmp_path / "list.csv"
        file.write_text("\n".join(lines) + "\n", encoding="utf-8")
        return file

    return write


def names(clips):
    return [clip.path.name for clip in clips]


def test_a_folder(folder):
    found = dataset.read(folder)
    assert found.class_names == ("crow", "jay", "rook")
    assert found.activation == "softmax"
    assert not found.given_splits
    assert found.notes == ()
    every = [clip for part in found.clips for clip in part]
    assert sorted(every, key=lambda c: c.path) == data.class_folder(folder)[0]
    assert str(found).startswith("21 clips (13 train, 4 validation, 4 test), 3 classes")
    counts = [collections.Counter(c.label for c in part) for part in found.clips]
    assert [c[2] for c in counts] == [7, 2, 3]  # of 12
    assert all(c[0] for c in counts)  # 6 are enough for all three
    assert counts[0][1] == 2  # and 3 for two in train
    for part in found.clips:
        assert names(part) == sorted(names(part), key=names(every := part).index)


def test_the_seed_decides(folder):
    read = [
        dataset.read(folder, shares=dataset.Shares(seed=seed)).clips
        for seed in (0, 0, 1)
    ]
    assert read[0] == read[1] != read[2]
    sizes = [[len(part) for part in clips] for clips in read]
    assert sizes[0] == sizes[2]


def test_splits_given(manifest):
    file = manifest(
        "path,label,split", "a,x,train", "b,y,train", "c,x,validation", "d,y,test"
    )
    found = dataset.read(file)
    assert [names(part) for part in found.clips] == [["a", "b"], ["c"], ["d"]]
    assert found.given_splits
    assert found.notes == ()


def test_missing_validation_is_taken_from_train_and_said(manifest):
    rows = [f"t{n:02d},{'xy'[n % 2]},train" for n in range(20)]
    found = dataset.read(manifest("path,label,split", *rows, "e,x,test"))
    assert [len(part) for part in found.clips] == [16, 4, 1]
    assert collections.Counter(c.label for c in found.clips.validation) == {0: 2, 1: 2}
    assert found.notes == ("no validation clips: 4 are taken from train",)
    none = dataset.Shares(validation=0.0)
    found = dataset.read(manifest("path,label,split", *rows, "e,x,test"), shares=none)
    assert [len(part) for part in found.clips] == [20, 0, 1]


def test_several_classes_a_clip(manifest):
    rows = ["a,x;y,train", "b,,train", "c,y;y,test"]
    found = dataset.read(manifest("path,labels,split", *rows))
    assert found.activation == "sigmoid"
    assert [clip.label for clip in found.clips.train] == [(0, 1), ()]
    assert [clip.label for clip in found.clips.test] == [(1,)]
    assert str(found).endswith("2 classes, several a clip")


def test_offsets_groups_and_columns_that_mean_nothing(manifest):
    rows = ["a,x,1.5,one,?", "b,y,0,one,?", "c,x,0,two,?"]
    found = dataset.read(
        manifest("path,label,offset_s,group,note", *rows),
        shares=dataset.Shares(validation=0.0, test=0.0),
    )
    assert [(c.offset_s, c.group) for c in found.clips.train] == [
        (1.5, "one"),
        (0, "one"),
        (0, "two"),
    ]
    assert found.notes == ("columns that are not used: note",)


# Classes of a classifier


def test_labels_follow_the_order_of_a_classifier(manifest):
    file = manifest("path,label,split", "a,x,train", "b,z,train")
    found = dataset.read(file, class_names=("z", "y", "x"))
    assert found.class_names == ("z", "y", "x")
    assert [clip.label for clip in found.clips.train] == [2, 0]


def test_classes_that_a_classifier_lacks(manifest):
    file = manifest("path,label,split", "a,x,train", "b,w,train")
    with pytest.raises(ValueError) as error:
        dataset.read(file, class_names=("z", "x"))
    assert "lacks: w. It has w, x; the classifier has z, x" in str(error.value)


def test_many_classes_are_cut_short(manifest):
    file = manifest("path,label,split", "a,x,train")
    with pytest.raises(ValueError, match=r"has 0, 1, .*11, \.\.\. \(20 in all\)"):
        dataset.read(file, class_names=[str(n) for n in range(20)])


def test_a_classifier_decides_on_one_class_or_several(manifest):
    file = manifest("path,label,split", "a,x,train", "b,y,train")
    found = dataset.read(file, class_names=("x", "y"), activation="sigmoid")
    assert [clip.label for clip in found.clips.train] == [(0,), (1,)]
    file = manifest("path,labels,split", "a,x,train", "b,x;y,train")
    with pytest.raises(ValueError, match=r"line 3: 2 classes; the classifier gives"):
        dataset.read(file, class_names=("x", "y"), activation="softmax")


def test_a_class_without_a_training_clip(manifest):
    file = manifest("path,label,split", "a,x,train", "b,y,test", "c,z,validation")
    with pytest.raises(ValueError, match=r"no training clip of y, z; each class"):
        dataset.read(file)
    assert dataset.read(file, class_names=("x", "y", "z"))


# Files that are missing


def test_missing_files_are_noted(manifest, tmp_path):
    rows = [f"m{n},x" for n in range(5)] + ["a,x"]
    absent = [f"m{n}" for n in range(5)]
    file = manifest("path,label", *rows, absent=absent)
    log = data.SkipLog()
    found = dataset.read(file, skip_log=log)
    assert names(found.clips.train) == ["a"]
    assert [path for path, _ in log.entries()] == [str(tmp_path / m) for m in absent]
    assert log.entries()[0][1] == f"missing ({file}, line 2)"
    (note,) = found.notes
    assert "5 of 6 files are missing" in note
    assert "line 4, ..." in note
    assert "line 5" not in note
    with pytest.raises(ValueError, match=r"5 of 6 files are missing: .*m0.*count from"):
        dataset.read(file, skip_log=data.SkipLog(strict=True))


def test_all_files_missing(manifest):
    file = manifest("path,label", "a,x", "b,y", absent=("a", "b"))
    with pytest.raises(ValueError, match="2 of 2 files are missing"):
        dataset.read(file, skip_log=data.SkipLog())


# What cannot be read at all


def test_neither_folder_nor_manifest(tmp_path):
    with pytest.raises(ValueError, match="none is not there; expected a folder"):
        dataset.read(tmp_path / "none")
    with pytest.raises(ValueError, match="~nobody-of-this-name is not there"):
        dataset.read("~nobody-of-this-name")
    (tmp_path / "a.txt").write_text("path,label\n")
    with pytest.raises(ValueError, match=r"a\.txt is no \.csv file; expected"):
        dataset.read(tmp_path / "a.txt")


@pytest.mark.parametrize(
    ("shares", "message"),
    [
        ({"validation": -0.1}, "must not be negative; got -0.1 and 0.2"),
        ({"test": float("nan")}, "must not be negative"),
        ({"test": 0.8}, "sum to less than 1; got 0.2 and 0.8"),
        ({"seed": -1}, "at least 0"),
    ],
)
def test_shares_that_cannot_be(folder, shares, message):
    with pytest.raises(ValueError, match=message):
        dataset.read(folder, shares=dataset.Shares(**shares))


# Splitting


def clips_of(groups):
    """`groups`: name to the labels of its clips."""
    return [
        data.Clip(path=f"{name}{n}", label=label, group=name)
        for name, labels in groups.items()
        for n, label in enumerate(labels)
    ]


@pytest.mark.parametrize("seed", range(5))
def test_groups_stay_whole_and_shares_are_kept(seed):
    rng = np.random.default_rng(seed)
    clips = clips_of(
        {f"g{n}": rng.integers(0, 4, rng.integers(1, 6)).tolist() for n in range(120)}
    )
    shares = (0.6, 0.25, 0.15)
    parts = dataset.split(clips, shares, num_classes=4, seed=seed)
    assert sorted(c.path for part in parts for c in part) == sorted(
        c.path for c in clips
    )
    groups = [{c.group for c in part} for part in parts]
    assert sum(map(len, groups)) == len(set.union(*groups))
    for label in range(4):
        of = [sum(c.label == label for c in part) for part in parts]
        np.testing.assert_allclose(np.array(of) / sum(of), shares, atol=0.1)
    sizes = np.array([len(part) for part in parts])
    np.testing.assert_allclose(sizes / sizes.sum(), shares, atol=0.03)
    for part in parts:  # in their order
        assert [clips.index(c) for c in part] == sorted(clips.index(c) for c in part)


def test_several_labels_and_none_are_shared_out_too():
    labels = [(0,), (0, 1), (1, 2), (), (2,)]
    clips = [
        data.Clip(path=f"{n}", label=labels[n % 5], group=f"{n}") for n in range(100)
    ]
    parts = dataset.split(clips, (0.5, 0.5), num_classes=3, seed=0)
    assert [len(part) for part in parts] == [50, 50]
    for wanted in labels:
        assert sum(c.label == wanted for c in parts[0]) == pytest.approx(10, abs=3)


def test_the_largest_part_gets_the_first_of_every_class():
    clips = clips_of({f"g{n}": [n] for n in range(7)})
    parts = dataset.split(clips, (0.6, 0.2, 0.2), num_classes=7, seed=0)
    assert [len(part) for part in parts] == [7, 0, 0]


def test_missing_files_raise_without_a_log(manifest):
    file = manifest("path,label", "a,x", "b,x", absent=("a",))
    with pytest.raises(ValueError, match="1 of 2"):
        dataset.read(file)
    assert not issubclass(ValueError, audio.AudioError)
