"""A WaveFake copy as clips: the layout, the splits, which rows test which vocoder."""

import collections
import itertools

import numpy as np
import pytest

from apex_jax import data
from experiments.wavefake import corpus as wavefake_corpus

NAMES = [f"LJ001-{n:04d}" for n in range(20)]


def touch(*files):
    for file in files:
        file.parent.mkdir(parents=True, exist_ok=True)
        file.touch()


def copy_of(root, fakes, names=NAMES):
    """Empty files in the release's layout; `fakes`: vocoder to its sentences."""
    touch(*(root / "LJSpeech-1.1" / "wavs" / f"{name}.wav" for name in names))
    for vocoder, sentences in fakes.items():
        folder = root / "generated_audio" / f"ljspeech_{vocoder}"
        touch(*(folder / f"{name}_gen.wav" for name in sentences))
    return root


@pytest.fixture
def corpus(tmp_path):
    fakes = {"waveglow": NAMES, "melgan": NAMES[::2], "hifiGAN": NAMES}
    return wavefake_corpus.read(copy_of(tmp_path / "WaveFake", fakes))


def test_layout(corpus):
    assert list(corpus.fake) == ["melgan", "hifiGAN", "waveglow"]  # the paper's order
    assert corpus.sentences == NAMES
    assert [clip.label for clip in corpus.real] == [0] * 20
    assert {c.label for clips in corpus.fake.values() for c in clips} == {1}
    assert [clip.group for clip in corpus.fake["melgan"]] == NAMES[::2]
    assert corpus.real[3].path == (
        corpus.root / "LJSpeech-1.1" / "wavs" / "LJ001-0003.wav"
    )


def test_what_else_lies_in_a_copy(tmp_path):
    root = copy_of(tmp_path, {"hifiGAN": NAMES[:3]})
    touch(
        root / "LJSpeech-1.1" / "wavs" / "._LJ001-0001.wav",  # macOS puts these
        root / "LJSpeech-1.1" / "wavs" / "readme.txt",
        root / "LJSpeech-1.1" / "metadata.csv",
        root / "generated_audio" / "jsut_parallel_wavegan" / "BASIC_gen.wav",
        root / "generated_audio" / "ljspeech_waveglow" / "notes.txt",
        root / "generated_audio" / "ljspeech_own_vocoder" / "LJ001-0007.wav",
    )
    corpus = wavefake_corpus.read(root)
    assert len(corpus.real) == 20
    assert list(corpus.fake) == ["hifiGAN", "waveglow", "own_vocoder"]
    assert corpus.fake["waveglow"] == ()  # said to have no test clips, not left out
    assert corpus.fake["own_vocoder"][0].group == "LJ001-0007"


@pytest.mark.parametrize("name", ["hifiGAN", "hifigan", "HiFi_GAN", "HIFIGAN"])
def test_vocoders_by_any_spelling(name, corpus):
    assert corpus.vocoder(name) == "hifiGAN"


def test_a_vocoder_that_is_absent(corpus):
    with pytest.raises(ValueError, match=r"no vocoder 'mb'.*melgan, hifiGAN, waveglow"):
        corpus.vocoder("mb")


def test_missing_and_empty_folders(tmp_path):
    read = wavefake_corpus.read
    with pytest.raises(ValueError, match=r"absent is not a folder; expected LJSpeech"):
        read(tmp_path / "absent")
    with pytest.raises(ValueError, match=r"no real clips in .*wavs; expected LJSpeech"):
        read(tmp_path)
    root = copy_of(tmp_path, {})
    with pytest.raises(ValueError, match=r"no vocoded clips in .*generated_audio"):
        read(root)
    (root / "generated_audio" / "ljspeech_hifiGAN").mkdir(parents=True)
    with pytest.raises(ValueError, match="no vocoded clips"):
        read(root)


# --- who is held out


def test_the_papers_protocol():
    names = [f"{n:05d}" for n in range(13_100)]
    test, validation = wavefake_corpus.held_out(names, None, None)
    assert (test, validation) == (names[:1000], names[1000:2000])
    names = names[:3000]  # just enough
    test, validation = wavefake_corpus.held_out(names, None, None)
    assert (test, validation) == (names[:1000], names[1000:2000])
    test, validation = wavefake_corpus.held_out(names, 500, 200)
    assert (test, validation) == (names[:500], names[500:700])


@pytest.mark.parametrize(
    ("total", "num_test", "num_validation"),
    [
        (20, None, None),
        (2999, None, None),
        (3, None, None),
        (17, 5, 2),
        (17, 2, 9),
        (100, 1, 98),
        (100, 98, 1),
        (7, 1, 1),
    ],
)
def test_small_copies_are_spread(total, num_test, num_validation):
    names = [f"{n:05d}" for n in range(total)]
    test, validation = wavefake_corpus.held_out(names, num_test, num_validation)
    wanted = num_test or max(1, total // 5)
    assert len(test) == wanted
    assert len(validation) == (num_validation or wanted)
    assert not set(test) & set(validation)
    held = sorted(test + validation)
    assert len(set(held)) == len(held)
    assert set(held) < set(names)
    # Evenly: gaps between neighbours differ by one at most, and neither split is
    # ahead of its share by more than one anywhere.
    gaps = {int(b) - int(a) for a, b in itertools.pairwise(held)}
    assert gaps <= {total // len(held), -(-total // len(held))}
    for count in range(1, len(held) + 1):
        so_far = len(set(held[:count]) & set(test))
        assert abs(so_far - count * len(test) / len(held)) <= 1


@pytest.mark.parametrize(
    ("num_test", "num_validation"), [(0, 3), (3, 0), (-1, 3), (10, 10), (19, None)]
)
def test_impossible_numbers(num_test, num_validation):
    with pytest.raises(ValueError, match="leave some to train on; the corpus has 20"):
        wavefake_corpus.held_out(NAMES, num_test, num_validation)


def test_too_few_sentences():
    with pytest.raises(ValueError, match="the corpus has 2 sentences"):
        wavefake_corpus.held_out(NAMES[:2], None, None)


# --- splits


def cut_in_two(clips):
    """Two windows a file, as a small corpus has them."""
    return [
        data.Clip(path=c.path, label=c.label, group=c.group, offset_s=offset_s)
        for c in clips
        for offset_s in (0.0, 1.5)
    ]


def test_no_sentence_is_divided(corpus):
    splits = wavefake_corpus.split(
        corpus, "melgan", num_test=4, num_validation=3, cut=cut_in_two
    )
    groups = [{clip.group for clip in part} for part in splits]
    for one, other in itertools.combinations(groups, 2):
        assert not one & other
    test, validation = wavefake_corpus.held_out(NAMES, 4, 3)
    assert groups == [set(NAMES) - {*test, *validation}, set(validation), set(test)]
    assert [len(part) for part in groups] == [13, 3, 4]
    makers = [collections.Counter(c.path.parent.name for c in part) for part in splits]
    assert set(makers[0]) == set(makers[1]) == {"wavs", "ljspeech_melgan"}
    assert set(makers[2]) == {"wavs", *(f"ljspeech_{name}" for name in corpus.fake)}
    assert makers[2]["ljspeech_waveglow"] == makers[2]["wavs"] == 2 * 4


def test_a_split_without_both_kinds(tmp_path):
    test, validation = wavefake_corpus.held_out(NAMES, 4, 4)
    fakes = {"melgan": test, "waveglow": [n for n in NAMES if n not in validation]}
    corpus = wavefake_corpus.read(copy_of(tmp_path, fakes))
    for vocoder, name in (("melgan", "train"), ("waveglow", "validate")):
        with pytest.raises(ValueError, match=rf"to {name} on {vocoder} takes real and"):
            wavefake_corpus.split(
                corpus, vocoder, num_test=4, num_validation=4, cut=list
            )


def test_rows_by_vocoder(corpus):
    clips = [
        corpus.fake["waveglow"][0],
        corpus.real[0],
        corpus.fake["melgan"][0],
        corpus.real[5],
        corpus.fake["melgan"][3],
    ]
    rows = wavefake_corpus.rows_by_vocoder(clips, corpus)
    assert list(rows) == ["melgan", "hifiGAN", "waveglow"]
    assert rows["hifiGAN"].size == 0  # none of its clips: nothing to test
    np.testing.assert_array_equal(rows["melgan"], [1, 2, 3, 4])
    np.testing.assert_array_equal(rows["waveglow"], [0, 1, 3])
