"""What the WaveFake experiment can be asked, known without JAX: a quick `--help`."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Literal

from apex_jax import frontend, settings


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config:
    """Explains a detector of vocoded speech with APEX."""

    scheme: Literal[
        "square", "time", "frequency", "time_frequency", "time-frequency"
    ] = "frequency"
    """Where prototypes lie."""
    table: Literal["1", "2"] | None = None
    """Fill a table of the paper. 1: every vocoder trained on, ConvNeXt, AudioProtoPNet
    and APEX, tested on all. 2: regions hidden under all four schemes."""
    data_dir: Path | None = None
    """A WaveFake copy; without it the synthetic demo corpus is made and used."""
    output_dir: Path | None = None
    """Where results go; by default runs/CORPUS-SCHEME, and what differs from the
    defaults of train-on, model and seed."""
    overwrite: bool = False
    """Replace a finished run of other settings in the output folder."""
    train_on: str | None = None
    """Vocoder to train on; by default hifiGAN, and for the demo mel80_griffin_lim."""
    weights: Path | None = None
    """A classifier to explain instead of training one: RUN/classifier, or what
    python -m apex_jax.convert wrote. It brings its size and its front end."""
    model: settings.Size = "atto"
    """Size of the ConvNeXt to train; the paper's is base."""
    seed: int = 0
    """Of the demo corpus, the training, the optimisation and the random masks."""
    strict: bool = False
    """Stop at the first file that cannot be read, instead of skipping it."""
    test_sentences: int | None = None
    """Sentences to test on; by default the paper's 1,000, or a fifth if too few."""
    validation_sentences: int | None = None
    """Sentences to validate on; by default as many as to test on."""
    windows_per_file: int | None = None
    """Clips cut from a file; by default 1, or up to 4 of fewer than 200 sentences."""
    mask_draws: int = 10
    """Random masks a clip in the masking study."""
    examples: int = 4
    """Explained clips to draw: a real one, one by `train_on`, then by the others."""
    batch_size: int = 32
    """Clips in the network at a time when it is not being trained."""
    matmul_dtype: settings.MatmulDtype = "float32"
    """Of the network's products while the training clips' features are computed;
    bfloat16 is faster on accelerators and most new processors."""
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
    hosts: settings.Hosts = settings.Hosts()
    """For several processes; started alone, none of these."""
    train: settings.Training = settings.Training()
    """Training of the classifier."""
    audioprotopnet: settings.PrototypeTraining = settings.PrototypeTraining()
    """Training of the AudioProtoPNet of --table 1."""
    optimise: settings.Optimisation = settings.Optimisation()
    """Optimisation of U."""
