"""What the WaveFake experiment can be asked, known without JAX: a quick `--help`."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Literal

from apex_jax import frontend
from experiments import options


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config(options.Common):
    """Explains a detector of vocoded speech with APEX."""

    table: Literal["1", "2"] | None = None
    """Fill a table of the paper. 1: every vocoder trained on, ConvNeXt, AudioProtoPNet
    and APEX, tested on all. 2: regions hidden under all four schemes."""
    data_dir: Path | None = None
    """A WaveFake copy; without it the synthetic demo corpus is made and used."""
    train_on: str | None = None
    """Vocoder to train on; by default hifiGAN, and for the demo mel80_griffin_lim."""
    weights: Path | None = None
    """A classifier to explain instead of training one: RUN/classifier, or what
    python -m apex_jax.convert wrote. It brings its size and its front end."""
    test_sentences: int | None = None
    """Sentences to test on; by default the paper's 1,000, or a fifth if too few."""
    validation_sentences: int | None = None
    """Sentences to validate on; by default as many as to test on."""
    windows_per_file: int | None = None
    """Clips cut from a file; by default 1, or up to 4 of fewer than 200 sentences."""
    examples: int = 4
    """Explained clips to draw: a real one, one by `train_on`, then by the others."""
    demo_utterances: int = 240
    """Utterances of the demo corpus."""
    front_end: frontend.FrontEnd = frontend.FrontEnd(
        sample_rate=22050,
        clip_s=1.48,
        n_fft=1024,
        hop_length=256,
        n_mels=128,
        mean=-30.0,
        std=17.0,
    )
    """Settings of the spectrogram; those of `--weights` come with them."""

    def check(self) -> None:
        """Raises ValueError for what cannot work before any work is done."""
        super().check()
        self.check_least(
            examples=0,
            demo_utterances=5,
            windows_per_file=1,
            test_sentences=1,
            validation_sentences=1,
        )
