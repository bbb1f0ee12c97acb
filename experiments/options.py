"""What every experiment can be asked, known without JAX."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Self

from apex_jax import settings

if TYPE_CHECKING:
    from apex_jax import explainer as explainer_lib

Scheme = Literal["square", "time", "frequency", "time_frequency", "time-frequency"]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Common:
    """What every experiment can be asked."""

    output_dir: Path | None = None
    """Where results go; by default a folder in runs that says what was asked."""
    overwrite: bool = False
    """Replace a finished run of other settings in the output folder."""
    model: settings.Size = "atto"
    """Size of the ConvNeXt to train; the paper's is base."""
    pretrained: Path | None = None
    """A ConvNeXt of this size to go on from, or an AudioProtoPNet for the one below it,
    which apex-jax convert wrote: BirdSet's own begin with one of images. What does not
    fit, stem and head, begins anew."""
    seed: int = 0
    """Of the training, the optimisation, random masks, and the splits drawn."""
    strict: bool = False
    """Stop at the first file that cannot be read, instead of skipping it."""
    batch_size: int = 32
    """Clips in the network at a time when it is not being trained."""
    matmul_dtype: settings.MatmulDtype = "float32"
    """Of the network's products while it computes the features that U is learned on;
    bfloat16 is faster on accelerators. What is tested and audited is exact."""
    hosts: settings.Hosts = settings.Hosts()
    """For several processes; started alone, none of these."""
    train: settings.Training = settings.Training()
    """Training of the classifier."""
    optimise: settings.Optimisation = settings.Optimisation()
    """Optimisation of U."""

    def check(self) -> None:
        """Raises ValueError for what cannot work before any work is done."""
        self.train.check()
        self.optimise.check()
        self.check_least(batch_size=1, seed=0)

    def check_given(self) -> None:
        """Raises ValueError for what was asked for and would have no effect."""

    def refuse(self, why: str, *names: str, usual: Self) -> None:
        """Raises ValueError for options that are not as usual; in words, why not."""
        for name in names:
            value = getattr(self, name)
            if value != getattr(usual, name):
                # Settings of their own have names of their own below.
                flag = name.replace("_", "-") + ".*" * dataclasses.is_dataclass(value)
                raise ValueError(f"--{flag} {why}")

    def check_least(self, **least: int) -> None:
        """Raises ValueError for options below what they must be at least."""
        for name, smallest in least.items():
            value = getattr(self, name)
            if value is not None and value < smallest:
                flag = name.replace("_", "-")
                raise ValueError(f"--{flag} must be at least {smallest}; got {value}")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Reproduction(Common):
    """What experiments of the paper can be asked, which compare three methods."""

    scheme: Scheme = "frequency"
    """Where prototypes lie."""
    mask_draws: int = 10
    """Random masks a clip in the masking study."""
    exclude_own: bool = False
    """Draw random regions other than APEX's own; the paper draws among all, of which
    there may be few."""
    evidence: settings.Evidence = "plain"
    """What the channel whose region is hidden contributes most to: a class's logit, the
    paper's, or under softmax its lead over the other classes."""
    locate: settings.Location = "map"
    """What finds its region: the feature map, the paper's way, or occlusion, what each
    region of the sound adds."""
    audioprotopnet: settings.PrototypeTraining = settings.PrototypeTraining()
    """Training of the AudioProtoPNet."""
    push_prototypes: bool = False
    """Replace each of AudioProtoPNet's trained prototypes by the most similar place of
    a training clip of its class, as a prototype can be shown and heard; what that
    changes is reported. The published networks are not pushed."""

    @property
    def masks(self) -> dict[str, Any]:
        """What the masking study is asked, for it and for the results."""
        return {
            "draws": self.mask_draws,
            "exclude_own": self.exclude_own,
            "evidence": self.evidence,
            "locate": self.locate,
        }

    @property
    def shown(self) -> explainer_lib.Options:
        """What an explanation is asked, for figures."""
        return {"evidence": self.evidence, "locate": self.locate}

    def check(self) -> None:
        """Raises ValueError for what cannot work before any work is done."""
        super().check()
        self.audioprotopnet.check()
        self.check_least(mask_draws=1)

    def check_evidence(self, activation: Literal["softmax", "sigmoid"]) -> None:
        """Raises ValueError for evidence that such classes do not have."""
        if self.evidence != "plain" and activation == "sigmoid":
            raise ValueError(
                f"--evidence {self.evidence} sets a class against the others; here "
                "each is there or not by itself: --evidence plain"
            )
