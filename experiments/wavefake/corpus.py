"""A WaveFake copy as clips: real speech, its vocoded twins, the splits.

    DIR/LJSpeech-1.1/wavs/ID.wav
    DIR/generated_audio/ljspeech_VOCODER/ID_gen.wav     (or ID.wav)

A clip's group is its sentence, so real and fake of one sentence stay in one split.
Where DIR/splits.csv says which sentence is in which split, that is followed.
"""

from __future__ import annotations

import csv
import dataclasses
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np

from apex_jax import data

CLASS_NAMES = ("real", "fake")

# The release's seven, in the order of the paper's table.
VOCODERS = (
    "melgan",
    "melgan_large",
    "multi_band_melgan",
    "full_band_melgan",
    "hifiGAN",
    "parallel_wavegan",
    "waveglow",
)
PAPER_SPLIT = 1000  # sentences to test on, and as many to validate on


class TooFewError(ValueError):
    """A vocoder has too few sentences to train or to validate on."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Corpus:
    """The clips of a copy, one a file.

    Attributes:
      root: the copy's folder.
      real: the real clips.
      fake: the vocoded clips by vocoder; a vocoder's folder may be empty.
      splits: by sentence, "train", "validation" or "test", as `splits.csv` has it;
        empty where there is none.
    """

    root: Path
    real: tuple[data.Clip, ...]
    fake: dict[str, tuple[data.Clip, ...]]
    splits: dict[str, str] = dataclasses.field(default_factory=dict)

    @property
    def sentences(self) -> list[str]:
        """The sentences spoken, in file-name order."""
        return sorted({clip.group for clip in self.real})

    def vocoder(self, name: str) -> str:
        """The vocoder's name as the copy spells it.

        Raises:
          ValueError: the copy has no such vocoder.
        """
        for known in self.fake:
            if known.lower().replace("_", "") == name.lower().replace("_", ""):
                return known
        raise ValueError(
            f"no vocoder {name!r} in {self.root}; it has {', '.join(self.fake)}"
        )


def read(root: str | Path) -> Corpus:
    """Lists a WaveFake copy; no sound is read.

    Raises:
      ValueError: the folder is missing, or lacks real or vocoded clips.
    """
    root = Path(root)
    wavs, generated = root / "LJSpeech-1.1" / "wavs", root / "generated_audio"
    expected = (
        "expected LJSpeech-1.1/wavs/ID.wav and generated_audio/ljspeech_VOCODER/"
        "ID_gen.wav in it"
    )
    if not root.is_dir():
        raise ValueError(f"--data-dir {root} is not a folder; {expected}")
    real = _clips(wavs, label=0)
    if not real:
        raise ValueError(f"--data-dir {root} has no real clips in {wavs}; {expected}")
    fake = {}
    for folder in sorted(generated.glob("ljspeech_*")):
        fake[folder.name.removeprefix("ljspeech_")] = _clips(folder, label=1)
    if not any(fake.values()):
        raise ValueError(
            f"--data-dir {root} has no vocoded clips in {generated}; {expected}"
        )
    order = {name: i for i, name in enumerate(VOCODERS)}
    names = sorted(fake, key=lambda name: (order.get(name, len(order)), name))
    return Corpus(
        root=root,
        real=real,
        fake={name: fake[name] for name in names},
        splits=_splits(root / "splits.csv", {clip.group for clip in real}),
    )


def _splits(file: Path, sentences: set[str]) -> dict[str, str]:
    if not file.exists():
        return {}
    with file.open(newline="", encoding="utf-8") as opened:
        found = {
            row.get("sentence"): row.get("split") for row in csv.DictReader(opened)
        }
    wrong = set(found.values()) - {"train", "validation", "test"}
    if wrong or not sentences <= set(found):
        lacking = sorted(sentences - set(found))
        raise ValueError(
            f"{file}: needs columns sentence and split (train, validation or test) for "
            f"every sentence; splits {sorted(map(str, wrong))}, missing "
            f"{', '.join(lacking[:3]) or 'none'}"
        )
    return {str(sentence): str(split) for sentence, split in found.items()}


def _clips(folder: Path, label: int) -> tuple[data.Clip, ...]:
    return tuple(
        data.Clip(path=file, label=label, group=file.stem.removesuffix("_gen"))
        for file in sorted(folder.glob("*"))
        if file.suffix.lower() in (".wav", ".flac") and not file.name.startswith(".")
    )


def held_out(
    sentences: list[str], num_test: int | None, num_validation: int | None
) -> tuple[list[str], list[str]]:
    """Sentences to test on and to validate on.

    The paper's protocol where there are enough: the first 1,000 in file-name order,
    and the next 1,000. A small copy gives a fifth to each, taken evenly from the whole
    order, since its vocoders need not cover the same sentences.
    """
    enough = len(sentences) >= 3 * PAPER_SPLIT
    if num_test is None:
        num_test = PAPER_SPLIT if enough else max(1, len(sentences) // 5)
    if num_validation is None:
        num_validation = num_test
    if min(num_test, num_validation) < 1 or num_test + num_validation >= len(sentences):
        raise ValueError(
            f"--test-sentences {num_test} and --validation-sentences {num_validation} "
            "must each be at least 1 and leave some to train on; the corpus has "
            f"{len(sentences)} sentences"
        )
    held = num_test + num_validation
    if enough:
        return sentences[:num_test], sentences[num_test:held]
    spread = [sentences[i * len(sentences) // held] for i in range(held)]
    # Test and validation take turns along the order, in proportion.
    is_test = [(i + 1) * num_test // held > i * num_test // held for i in range(held)]
    test = [s for s, chosen in zip(spread, is_test, strict=True) if chosen]
    return test, [s for s in spread if s not in test]


def split(
    corpus: Corpus,
    vocoder: str,
    *,
    num_test: int | None,
    num_validation: int | None,
    cut: Callable[[Sequence[data.Clip]], list[data.Clip]],
) -> data.Splits:
    """Clips to train on (one vocoder), to validate on (the same), to test on (all).

    Args:
      corpus: the copy.
      vocoder: to train on.
      num_test: sentences, see `held_out`.
      num_validation: sentences, see `held_out`.
      cut: from files to clips.

    Raises:
      TooFewError: a split would lack real or vocoded clips.
      ValueError: the options do not fit the copy.
    """
    if corpus.splits and not (num_test is num_validation is None):
        raise ValueError(
            "--test-sentences and --validation-sentences: the copy has a splits.csv"
        )
    test, validation = (
        set(part) for part in sentences_held_out(corpus, num_test, num_validation)
    )
    held = test | validation
    seen = (*corpus.real, *corpus.fake[vocoder])
    everything = (*corpus.real, *(c for clips in corpus.fake.values() for c in clips))
    splits = data.Splits(
        train=cut([clip for clip in seen if clip.group not in held]),
        validation=cut([clip for clip in seen if clip.group in validation]),
        test=cut([clip for clip in everything if clip.group in test]),
    )
    for name, part in zip(("train", "validate"), splits[:2], strict=True):
        if {clip.label for clip in part} != {0, 1}:
            raise TooFewError(
                f"to {name} on {vocoder} takes real and vocoded clips, and the "
                f"sentences for it have only {len(part)} clips of one kind; choose "
                "other --test-sentences or --validation-sentences"
            )
    return splits


def sentences_held_out(
    corpus: Corpus, num_test: int | None = None, num_validation: int | None = None
) -> tuple[list[str], list[str]]:
    """Sentences to test on and to validate on, as `splits.csv` or `held_out` has it."""
    if not corpus.splits:
        return held_out(corpus.sentences, num_test, num_validation)
    by_split = {
        part: [s for s in corpus.sentences if corpus.splits[s] == part]
        for part in ("test", "validation")
    }
    return by_split["test"], by_split["validation"]


def rows_by_vocoder(
    clips: Sequence[data.Clip], corpus: Corpus
) -> dict[str, np.ndarray]:
    """Positions of the clips that test each vocoder: all real ones and its own.

    Empty for a vocoder that has no clips among these.
    """
    by_path = {
        str(clip.path): name for name, fakes in corpus.fake.items() for clip in fakes
    }
    made_by = [by_path.get(str(clip.path)) for clip in clips]
    return {
        name: np.array(
            [i for i, who in enumerate(made_by) if who in (None, name)]
            if name in made_by
            else [],
            dtype=int,
        )
        for name in corpus.fake
    }
