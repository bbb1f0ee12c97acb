"""A WaveFake copy as clips: real speech, its vocoded twins, the splits.

    DIR/LJSpeech-1.1/wavs/ID.wav
    DIR/generated_audio/ljspeech_VOCODER/ID_gen.wav     (or ID.wav)

A clip's group is its sentence, so real and fake of one sentence stay in one split.
"""

from __future__ import annotations

import dataclasses
from pathlib import Path

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


@dataclasses.dataclass(frozen=True, kw_only=True)
class Corpus:
    """The clips of a copy, one a file.

    Attributes:
      root: the copy's folder.
      real: the real clips.
      fake: the vocoded clips by vocoder.
    """

    root: Path
    real: tuple[data.Clip, ...]
    fake: dict[str, tuple[data.Clip, ...]]

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
        clips = _clips(folder, label=1)
        if clips:
            fake[folder.name.removeprefix("ljspeech_")] = clips
    if not fake:
        raise ValueError(
            f"--data-dir {root} has no vocoded clips in {generated}; {expected}"
        )
    order = {name: i for i, name in enumerate(VOCODERS)}
    names = sorted(fake, key=lambda name: (order.get(name, len(order)), name))
    return Corpus(root=root, real=real, fake={name: fake[name] for name in names})


def _clips(folder: Path, label: int) -> tuple[data.Clip, ...]:
    return tuple(
        data.Clip(path=file, label=label, group=file.stem.removesuffix("_gen"))
        for file in sorted(folder.glob("*.wav"))
        if not file.name.startswith(".")
    )
