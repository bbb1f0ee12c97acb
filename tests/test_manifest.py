"""What a manifest may say, and every way in which one can be wrong."""

import pytest

from apex_jax import manifest


@pytest.fixture
def write(tmp_path):
    def write(text, encoding="utf-8"):
        file = tmp_path / "list.csv"
        file.write_bytes(text.encode(encoding))
        return file

    return write


def test_one_class_a_clip(write, tmp_path):
    file = write("path,label\na.wav,robin\n\n/far/b.wav, wren \n")
    found = manifest.read(file)
    assert not found.multi_label
    assert found.unused == ()
    assert [(r.path, r.classes, r.split, r.offset_s, r.group) for r in found.rows] == [
        (tmp_path / "a.wav", ("robin",), "", 0, ""),
        (manifest.Path("/far/b.wav"), ("wren",), "", 0, ""),
    ]
    # The blank line counts.
    assert [r.where for r in found.rows] == [f"{file}, line 2", f"{file}, line 4"]


def test_all_columns_in_any_order(write):
    file = write(
        "split,labels,offset_s,path,recorder,group\n"
        'test,"a; b",1.5,x.wav,R1,g\n'
        "train,,,x.wav,R2,\n"
    )
    found = manifest.read(file)
    assert found.multi_label
    assert found.unused == ("recorder",)
    one, two = found.rows
    assert (one.classes, one.offset_s, one.group, one.split) == (
        ("a", "b"),
        1.5,
        "g",
        "test",
    )
    assert (two.classes, two.offset_s, two.group, two.split) == ((), 0, "", "train")


def test_excel_writes_a_mark_first(write):
    assert manifest.read(write("path,label\na.wav,é\n", "utf-8-sig")).rows[
        0
    ].classes == ("é",)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "is empty; expected a header"),
        ("path,label\n", "has a header and no clips"),
        ("a.wav,robin\n", "line 1: the columns are a.wav, robin; expected a header"),
        ("path;label\na.wav;robin\n", "separated by commas"),
        ("path,label,labels\na,b,c\n", "either label or labels"),
        ("file,label\na,b\n", "with path and"),
        ("path,label,path\na,b,c\n", "line 1: column path is there twice"),
        ("path,label\na,b\nc\n", "line 3: 1 fields; the header has 2"),
        ("path,label\na,b,c\n", "line 2: 3 fields; the header has 2"),
        ("path,label\n,b\n", "line 2, column path: empty; expected a sound file"),
        ("path,label\na,\n", "line 2, column label: empty; expected a class"),
        (
            "path,label,split\na,b,train\nc,b,valid\n",
            "line 3, column split: 'valid'; expected train, validation, test",
        ),
        ("path,label,split\na,b,\n", "line 2, column split: empty"),
        ("path,label,offset_s\na,b,x\n", "line 2, column offset_s: 'x'; expected sec"),
        ("path,label,offset_s\na,b,-1\n", "column offset_s: '-1'"),
        ("path,label,offset_s\na,b,nan\n", "column offset_s: 'nan'"),
        ("path,label,offset_s\na,b,inf\n", "column offset_s: 'inf'"),
        ("path,label\na,b\nc,b\na,d\n", "line 4: a at 0 s is on line 2 already"),
        (
            "path,label,offset_s\na,b,2\na,b,0\na,b,2.0\n",
            "line 4: a at 2 s is on line 2 already; expected each clip once",
        ),
        (
            "path,label,split,group\na,b,train,g\nc,b,test,h\nd,b,test,g\n",
            "line 4, column split: 'test', but group 'g' is in 'train' on line 2",
        ),
        ('path,label\n"a,b\n', "no CSV"),
    ],
)
def test_wrong(write, text, message):
    file = write(text)
    with pytest.raises(ValueError) as error:
        manifest.read(file)
    assert str(file) in str(error.value)
    assert message in str(error.value)


def test_not_utf8(write):
    file = write("path,label\na.wav,robin\nb.wav,mésange\n", "latin-1")
    with pytest.raises(ValueError, match=r"line 3: not UTF-8; save it as UTF-8"):
        manifest.read(file)


@pytest.mark.parametrize(
    "odd", ["\u2028", "\u2029", "\x85", "\x0b", "\x0c", "\x1c", "\x1e"]
)
def test_only_new_lines_are_new_lines(odd, write, tmp_path):
    """What else Unicode takes for one is part of a name, as in any other reader."""
    for end in ("\n", "\r\n", "\r"):
        text = f"path,label\na{odd}b.wav,robin{odd}red\nc.wav,wren\n"
        found = manifest.read(write(text.replace("\n", end)))
        assert [row.path.name for row in found.rows] == [f"a{odd}b.wav", "c.wav"]
        assert found.rows[0].classes == (f"robin{odd}red",)
        assert found.rows[1].where.endswith("line 3")


def test_a_quoted_name_may_hold_a_new_line(write):
    found = manifest.read(write('path,label\n"a\nb.wav",robin\nc.wav,wren\n'))
    assert [row.path.name for row in found.rows] == ["a\nb.wav", "c.wav"]
    assert found.rows[1].where.endswith("line 4")
