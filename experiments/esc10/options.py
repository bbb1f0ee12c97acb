"""What the ESC-10 experiment can be asked, known without JAX."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Annotated

import tyro

from apex_jax import frontend, settings
from experiments import options

# For few clips of sounds that fill five seconds; not tuned.
AUGMENT = settings.Augmentation(
    roll=1.0,
    mix=0.5,
    mixes=1,
    mix_snr_db=(0.0, 20.0),
    gain=0.5,
    gain_db=(-12.0, 6.0),
    freq_mask=0.5,
    freq_mask_hz=2000.0,
    time_mask=0.5,
    time_mask_s=1.0,
)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config(options.Reproduction):
    """ConvNeXt, AudioProtoPNet and APEX on ESC-10, fold by fold."""

    data_dir: Annotated[Path, tyro.conf.arg(metavar="DIR")]
    """ESC-10: one folder a class, files named FOLD-SOURCE-TAKE."""
    folds: tuple[int, ...] = (1, 2, 3, 4, 5)
    """Folds to test on, one after another."""
    examples: int = 4
    """Explained test clips to draw in each fold, under --scheme."""
    front_end: frontend.FrontEnd = frontend.FrontEnd(
        sample_rate=22050,
        clip_s=5.0,
        n_fft=1024,
        hop_length=689,  # 161 frames: five cells, and one frame over
        n_mels=128,
        mean=-31.0,
        std=22.0,
    )
    """Settings of the spectrogram."""
    train: settings.Training = settings.Training(epochs=60, augment=AUGMENT)
    """Training of the classifier."""
    audioprotopnet: settings.PrototypeTraining = settings.PrototypeTraining(
        epochs=30, batch_size=16, augment=AUGMENT
    )
    """Training of the AudioProtoPNet."""

    def check(self) -> None:
        """Raises ValueError for what cannot work before any work is done."""
        super().check()
        self.check_least(examples=0)
        if not self.folds or len(set(self.folds)) < len(self.folds):
            raise ValueError(f"--folds must be different ones; got {self.folds}")
