"""What the WaveFake experiment can be asked, known without JAX: a quick `--help`."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Literal

from apex_jax import frontend, settings
from experiments import options

AUGMENT = settings.Augmentation.birdset().without_background


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config(options.Reproduction):
    """Explains a detector of vocoded speech with APEX."""

    recipe: Literal["small", "published"] = "small"
    """What options are that are not given. small: a ConvNeXt that trains on two cores.
    published: as one of the authors trained ConvNeXt-Base and AudioProtoPNet: 256 x 626
    pixels, classes that do not exclude each other, asymmetric loss, augmentation, ten
    epochs. They begin with a network of images, --pretrained."""
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

    @classmethod
    def published(cls) -> Config:
        """The recipe of that name (docs/decisions/0026-wavefake-recipe.md)."""
        return cls(
            recipe="published",
            model="base",
            front_end=frontend.FrontEnd.birdset(),
            train=settings.Training.birdset(AUGMENT),
            audioprotopnet=settings.PrototypeTraining(epochs=10, augment=AUGMENT),
        )

    def usual(self) -> Config:
        """What the recipe has for options that are not given."""
        return Config.published() if self.recipe == "published" else Config()

    @property
    def activation(self) -> Literal["softmax", "sigmoid"]:
        """Of a classifier that is trained: whether its two classes exclude each other.

        The asymmetric loss is for classes that do not.
        """
        return "sigmoid" if self.train.loss == "asymmetric" else "softmax"

    def check_given(self) -> None:
        """See `Common`."""
        usual = self.usual()
        if self.table != "1":
            why = "is for --table 1, which has an AudioProtoPNet"
            self.refuse(why, "audioprotopnet", "push_prototypes", usual=usual)
        if self.table == "2":
            self.refuse("and --table 2, which has all four", "scheme", usual=usual)
        if self.weights is not None:
            why = "and --weights: no ConvNeXt is trained"
            self.refuse(why, "pretrained", "train", usual=usual)

    def check(self) -> None:
        """Raises ValueError for what cannot work before any work is done."""
        super().check()
        if self.weights is None:
            self.check_evidence(self.activation)
        self.check_least(
            examples=0,
            demo_utterances=5,
            windows_per_file=1,
            test_sentences=1,
            validation_sentences=1,
        )
