"""What the BirdSet experiment can be asked, known without JAX."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Annotated, Literal

import tyro

from apex_jax import frontend, settings
from experiments import options

TESTS = ("POW", "PER", "NES", "UHH", "HSN", "NBP", "SSW", "SNE")
AUGMENT = settings.Augmentation.birdset()


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config(options.Reproduction):
    """ConvNeXt, AudioProtoPNet and APEX on BirdSet."""

    table: Literal["3", "4"] = "3"
    """Which table of the paper. 3: the three methods on every test set. 4: regions
    hidden under all four schemes, on one."""
    data_dir: Annotated[Path, tyro.conf.arg(metavar="DIR")]
    """A copy of BirdSet with a folder for each subset, as XCM and HSN: parquet with
    tar.gz shards, parquet with the .ogg files, or parquet with the sounds in it."""
    labels: Annotated[Path, tyro.conf.arg(metavar="DIR")]
    """BirdSet's class lists, NAME_ebird_codes.json."""
    train_on: str = "XCL"
    """Subset that the classifiers are trained on, and whose classes they have."""
    validate_on: str | None = None
    """Subset whose test clips choose the epoch; by default POW for XCL and XCM, and
    else a fifth of the training recordings, which are then not trained on."""
    explain_on: str = "XCM"
    """Subset that U is learned on and prototypes come from."""
    test_on: tuple[str, ...] | None = None
    """Subsets to test on; by default the paper's eight, and SNE for --table 4."""
    weights: Path | None = None
    """A ConvNeXt instead of training one: RUN/classifier, or what apex-jax convert
    wrote. It brings its classes and its front end."""
    prototypes: Path | None = None
    """An AudioProtoPNet instead of training one."""
    background: Path | None = None
    """Sounds without birds to put behind training clips, and in the place of some;
    without them the augmentation leaves both out."""
    class_limit: int | None = 500
    """Events of a class below which no recording loses any; None for all events."""
    event_limit: int | None = 1
    """Events of a recording that are always allowed."""
    explain_clips: int | None = None
    """At most so many clips to learn U on, drawn; by default all."""
    unpack_dir: Path | None = None
    """Where archives are unpacked; by default in each subset's own folder."""
    front_end: frontend.FrontEnd = frontend.FrontEnd.birdset()
    """Settings of the spectrogram; those of --weights come with them."""
    train: settings.Training = settings.Training.birdset(AUGMENT)
    """Training of the classifier."""
    audioprotopnet: settings.PrototypeTraining = settings.PrototypeTraining(
        epochs=10, augment=AUGMENT
    )
    """Training of the AudioProtoPNet."""

    def check(self) -> None:
        """Raises ValueError for what cannot work before any work is done."""
        super().check()
        self.check_least(class_limit=1, event_limit=1, explain_clips=1)
        if self.test_on is not None and not self.test_on:
            raise ValueError("--test-on names no subset")
        self.check_evidence("sigmoid")
        if self.push_prototypes and self.prototypes is not None:
            raise ValueError(
                "--push-prototypes is for an AudioProtoPNet that is trained here; "
                f"--prototypes {self.prototypes} gives one that is used as it is"
            )

    def check_given(self) -> None:
        """See `Common`."""
        usual = Config(data_dir=self.data_dir, labels=self.labels)
        trains_other = self.table == "3" and self.prototypes is None
        if self.table == "4":
            why = "is for --table 3, which has an AudioProtoPNet"
            names = ("prototypes", "push_prototypes", "audioprotopnet")
            self.refuse(why, *names, usual=usual)
            self.refuse("and --table 4, which has all four", "scheme", usual=usual)
        if self.weights is not None:
            why = "and --weights: no ConvNeXt is trained"
            self.refuse(why, "pretrained", "train", usual=usual)
            if not trains_other:
                why = "and nothing to train"
                self.refuse(why, "background", "validate_on", usual=usual)
