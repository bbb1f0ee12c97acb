"""What can be set, apart from the front end: plain, hashable, and known without JAX.

The modules that do the work take these as their own `Config`. They stand here so that
a command line can show its help, or refuse a mistake, before anything heavy is
imported: JAX alone takes most of a second.
"""

from __future__ import annotations

import dataclasses
import json
import math
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, get_args

import numpy as np
import tyro

from apex_jax import frontend

if TYPE_CHECKING:
    import optax

MIN_STEPS = 300

# Sizes of a ConvNeXt, ways to compute expm(A), precisions of a network's products;
# `models.convnext` and `disentangle` say what they are.
Size = Literal["atto", "femto", "pico", "nano", "tiny", "small", "base", "large"]
Exponential = Literal["products", "reference"]
# Of learning U: the coordinates it starts from, what it may be, who takes the steps.
Precondition = Literal["none", "centre", "whiten"]
Family = Literal["general", "orthogonal"]
Algorithm = Literal["adam", "muon", "lbfgs"]
# What a channel's contribution counts towards: a class's logit, as in the paper, or how
# far it is above the other classes'.
Evidence = Literal["plain", "contrastive"]
# What finds a channel's region: where its map is largest, as in the paper, or which
# region of the sound adds most to it; `occlusion` has it.
Location = Literal["map", "occlusion"]
# What LIME has in the place of what it leaves out; `occlusion.usual` is the latter.
Instead = Literal["silence", "usual"]
MatmulDtype = Literal["float32", "bfloat16"]
# What a network of several classes a clip is trained by; `objective` has them.
Loss = Literal["cross-entropy", "asymmetric"]

# An option without a value of its own: each command says what leaving it out means.
_OPEN = tyro.conf.arg(help_behavior_hint="")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Hosts:
    """How the processes of one run find each other; by default it has only one.

    Start the same command on every host, with the same settings but for process_id,
    and one folder to write to that all of them see.

    Attributes:
      coordinator: HOST:PORT of process 0, where all can reach it.
      num_processes: how many there are.
      process_id: which one this is, from 0.
      cluster: ask the cluster instead of naming these three; SLURM, Open MPI,
        Kubernetes and Cloud TPU are known.
    """

    coordinator: Annotated[
        str | None, tyro.conf.arg(metavar="HOST:PORT", help_behavior_hint="")
    ] = None
    num_processes: Annotated[int | None, _OPEN] = None
    process_id: Annotated[int | None, _OPEN] = None
    cluster: tyro.conf.FlagCreatePairsOff[bool] = False

    @property
    def alone(self) -> bool:
        """Whether this is the only process."""
        return self == Hosts()

    def check(self) -> None:
        """Raises ValueError for settings that cannot work."""
        given = dataclasses.asdict(self)
        del given["cluster"]
        missing = [name for name, value in given.items() if value is None]
        if len(missing) == len(given):
            return
        if self.cluster:
            raise ValueError(
                "hosts: either cluster, which knows where processes are, or "
                "coordinator, num_processes and process_id"
            )
        if missing:
            raise ValueError(
                f"hosts: {', '.join(missing)} not given; name coordinator, "
                "num_processes and process_id, or cluster to ask it for them"
            )
        host, _, port = (self.coordinator or "").rpartition(":")
        if not host or not port.isdigit():
            raise ValueError(
                f"hosts: coordinator={self.coordinator!r}; it must be HOST:PORT"
            )
        if not 0 <= (self.process_id or 0) < (self.num_processes or 0):
            raise ValueError(
                f"hosts: process_id={self.process_id}, num_processes="
                f"{self.num_processes}; ids count from 0 and stay below their number"
            )


@dataclasses.dataclass(frozen=True, kw_only=True)
class Shares:
    """How clips that come without splits are split.

    Attributes:
      validation: share of the clips to validate on.
      test: share of the clips to test on; the rest is trained on.
      seed: decides which.
    """

    validation: float = 0.2
    test: float = 0.2
    seed: int = 0

    def check(self) -> None:
        """Raises ValueError for shares that leave nothing to train on."""
        if not (self.validation >= 0 and self.test >= 0):
            raise ValueError(
                "the shares of validation and test must not be negative; got "
                f"{self.validation:g} and {self.test:g}"
            )
        if not self.validation + self.test < 1:
            raise ValueError(
                "the shares of validation and test must sum to less than 1; got "
                f"{self.validation:g} and {self.test:g}"
            )
        if self.seed < 0:
            raise ValueError(f"the seed of the split must be at least 0; {self.seed}")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Wanted:
    """Settings of the spectrogram that are asked for.

    Attributes:
      file: a .json with any settings of a front end; the options below go first.
      sample_rate: Hz; files of other rates are resampled.
      clip_s: length of a clip in seconds.
      n_fft: length of the Fourier transform in samples.
      hop_length: samples between two frames.
      n_mels: rows of the mel spectrogram.
      fmin: lowest edge of the mel filters, Hz; else 0.
      fmax: highest edge of the mel filters, Hz; else half the sample rate.
      mean: subtracted from the dB values.
      std: they are divided by it.
    """

    file: Annotated[Path | None, _OPEN] = None
    sample_rate: Annotated[int | None, _OPEN] = None
    clip_s: Annotated[float | None, _OPEN] = None
    n_fft: Annotated[int | None, _OPEN] = None
    hop_length: Annotated[int | None, _OPEN] = None
    n_mels: Annotated[int | None, _OPEN] = None
    fmin: Annotated[float | None, _OPEN] = None
    fmax: Annotated[float | None, _OPEN] = None
    mean: Annotated[float | None, _OPEN] = None
    std: Annotated[float | None, _OPEN] = None

    def settings(self) -> dict[str, Any]:
        """What was asked for, by the names that `FrontEnd` has.

        Raises:
          ValueError: the file is no JSON of named settings.
          OSError: it cannot be read.
        """
        found: Any = {}
        if self.file is not None:
            try:
                found = json.loads(self.file.read_text(encoding="utf-8"))
            except ValueError as error:
                raise ValueError(f"{self.file} is no JSON: {error}") from error
            names = {field.name for field in dataclasses.fields(frontend.FrontEnd)}
            if not isinstance(found, dict) or not set(found) <= names:
                raise ValueError(
                    f"{self.file}: expected settings of a front end by name, some of "
                    f"{', '.join(sorted(names))}"
                )
        asked = dataclasses.asdict(self)
        del asked["file"]
        return found | {k: value for k, value in asked.items() if value is not None}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Augmentation:
    """What is done to training clips before the network sees them; by default nothing.

    A number without a unit is the probability, of each clip, that it happens. The
    order is the attributes'. What is added is so many dB below what is there.

    Attributes:
      roll: turned in time, what leaves at the end comes in at the beginning.
      mix: other clips of the batch are added, and their classes.
      mixes: so many at most.
      mix_snr_db: range of how far below they are.
      background: a stretch of a background recording is added, where there are any.
      background_snr_db: range.
      noise: coloured noise is added.
      noise_snr_db: range.
      noise_exponent: range; amplitude falls with frequency to this, 0 white, about
        0.5 pink.
      gain: louder or softer.
      gain_db: range.
      no_call: background in the clip's place, and no class; needs classes that are
        each there or not.
      freq_mask: a band of the power spectrogram is set to zero.
      freq_mask_hz: its greatest width.
      time_mask: a stretch of it is.
      time_mask_s: its greatest length.
    """

    roll: float = 0.0
    mix: float = 0.0
    mixes: int = 2
    mix_snr_db: tuple[float, float] = (3.0, 30.0)
    background: float = 0.0
    background_snr_db: tuple[float, float] = (3.0, 30.0)
    noise: float = 0.0
    noise_snr_db: tuple[float, float] = (3.0, 30.0)
    noise_exponent: tuple[float, float] = (-2.0, 2.0)
    gain: float = 0.0
    gain_db: tuple[float, float] = (-18.0, 6.0)
    no_call: float = 0.0
    freq_mask: float = 0.0
    freq_mask_hz: float = 1562.5
    time_mask: float = 0.0
    time_mask_s: float = 0.8

    @classmethod
    def birdset(cls) -> Augmentation:
        """AudioProtoPNet's for BirdSet, masks of up to 100 bins and 100 frames."""
        return cls(
            mix=0.8,
            background=0.5,
            noise=0.2,
            gain=0.2,
            no_call=0.075,
            freq_mask=0.5,
            time_mask=0.3,
        )

    @property
    def without_background(self) -> Augmentation:
        """The same without what takes background recordings."""
        return dataclasses.replace(self, background=0.0, no_call=0.0)

    @property
    def off(self) -> bool:
        """Whether clips stay as they are."""
        chances = ("roll", "mix", "background", "noise", "gain", "no_call")
        return not any(
            getattr(self, name) for name in (*chances, "freq_mask", "time_mask")
        )

    @property
    def needs_background(self) -> bool:
        """Whether background recordings are asked for."""
        return bool(self.background or self.no_call)

    def check(self) -> None:
        """Raises ValueError for settings that cannot work."""
        for field in dataclasses.fields(self):
            value = getattr(self, field.name)
            if isinstance(value, tuple):
                if not -math.inf < value[0] <= value[1] < math.inf:
                    raise ValueError(
                        f"augment.{field.name} must be a range, lowest first; {value}"
                    )
            elif field.name in ("freq_mask_hz", "time_mask_s", "mixes"):
                if not value > 0:
                    raise ValueError(
                        f"augment.{field.name} must be positive; got {value}"
                    )
            elif not 0 <= value <= 1:
                raise ValueError(
                    f"augment.{field.name} is a probability, 0 to 1; got {value}"
                )


@dataclasses.dataclass(frozen=True, kw_only=True)
class Training:
    """AdamW with a linear warm-up and a cosine to zero.

    Attributes:
      epochs: passes over the training clips; by default as many as make about 300
        steps, but at least 16: a few clips need many epochs.
      batch_size: clips a step over all devices.
      learning_rate: the largest.
      weight_decay: on kernels only.
      warmup: share of the steps over which the rate grows.
      clip_norm: largest norm of a gradient.
      random_crop: a random stretch of each file instead of its beginning.
      patience: epochs without a lower validation loss after which training ends;
        by default it goes on to the end.
      matmul_dtype: of the network's products while it is trained; weights and sums
        stay float32. bfloat16 is faster on accelerators and most new processors.
      rematerialise: run the network's blocks again in the backward pass instead of
        keeping what happened in them: a third more work in a fraction of the memory.
      augment: what is done to the clips.
      loss: "asymmetric" for networks that give a clip several classes: what a class
        is not hardly counts once that is clear.
    """

    epochs: Annotated[int | None, tyro.conf.arg(help_behavior_hint="")] = None
    batch_size: int = 16
    learning_rate: float = 1e-3
    weight_decay: float = 0.05
    warmup: float = 0.1
    clip_norm: float = 1.0
    random_crop: bool = True
    patience: Annotated[int | None, _OPEN] = None
    matmul_dtype: MatmulDtype = "float32"
    rematerialise: bool = False
    augment: Augmentation = Augmentation()
    loss: Loss = "cross-entropy"

    @classmethod
    def birdset(cls, augment: Augmentation) -> Training:
        """BirdSet's of a ConvNeXt, with an augmentation."""
        return cls(
            epochs=10,
            batch_size=64,
            learning_rate=5e-4,
            weight_decay=1e-4,
            warmup=0.05,
            clip_norm=0.5,
            augment=augment,
            loss="asymmetric",
        )

    def check(self) -> None:
        """Raises ValueError for settings that cannot work."""
        _check_positive(
            self, "epochs", "batch_size", "learning_rate", "patience", "clip_norm"
        )
        _check_not_negative(self, "weight_decay")
        _check_share(self, "warmup")
        self.augment.check()

    def num_epochs(self, steps_per_epoch: int) -> int:
        """Passes over the clips when one takes `steps_per_epoch` steps."""
        return _num_epochs(self.epochs, 16, steps_per_epoch)

    def optimiser(self, num_steps: int) -> optax.GradientTransformation:
        """The optimiser for a run of `num_steps` steps."""
        import optax

        rate = _rate(self.learning_rate, self.warmup, num_steps)
        return optax.chain(
            optax.clip_by_global_norm(self.clip_norm),
            optax.adamw(rate, weight_decay=self.weight_decay, mask=_is_kernel),
        )

    def rate(self, step: int, num_steps: int) -> float:
        """The learning rate at a step, from 0, of a run of `num_steps`."""
        return float(_rate(self.learning_rate, self.warmup, num_steps)(step))

    def rate_in_words(self) -> str:
        """The setting to lower where training diverges."""
        return f"learning_rate, now {self.learning_rate:g}"


def _check_positive(config: Any, *names: str) -> None:
    for name in names:
        value = getattr(config, name)
        if value is not None and not value > 0:  # NaN included
            raise ValueError(f"{name} must be positive; got {value}")


def _check_not_negative(config: Any, *names: str) -> None:
    for name in names:
        value = getattr(config, name)
        if not value >= 0:  # NaN included
            raise ValueError(f"{name} must not be negative; got {value}")


def _check_share(config: Any, name: str) -> None:
    value = getattr(config, name)
    if not 0 <= value <= 1:
        raise ValueError(f"{name} is a share, 0 to 1; got {value}")


def _num_epochs(asked: int | None, least: int, steps_per_epoch: int) -> int:
    """As asked, or so many that a small corpus gets steps enough."""
    if asked is not None:
        return asked
    return max(least, math.ceil(MIN_STEPS / steps_per_epoch))


def _rate(largest: float, warmup: float, num_steps: int) -> optax.Schedule:
    import optax

    # At least a step is left to decay in.
    rising = min(max(1, round(warmup * num_steps)), num_steps - 1)
    return optax.warmup_cosine_decay_schedule(0.0, largest, rising, num_steps)


def _is_kernel(params: Any) -> Any:
    """Which of a network's arrays decay."""
    import jax

    # By name: the biases of stacked blocks are matrices too.
    def is_kernel(path, _):
        return any(getattr(part, "name", None) == "kernel" for part in path)

    return jax.tree_util.tree_map_with_path(is_kernel, params)


@dataclasses.dataclass(frozen=True, kw_only=True)
class PrototypeTraining:
    """AudioProtoPNet's AdamW; the defaults are those of its authors.

    Attributes:
      epochs: passes over the training clips; by default as many as make about 300
        steps, but at least its authors' 10.
      batch_size: clips a step over all devices.
      prototype_rate: largest learning rate of the prototypes; one rate for them and
        for their weights is known to fail.
      prototype_decay: their weight decay.
      learning_rate: largest learning rate of the last layer.
      weight_decay: its weight decay.
      backbone_rate: largest learning rate of the network below; 0 leaves it as it is,
        as the published networks do.
      warmup: share of the steps over which rates grow.
      clip_norm: largest norm of a gradient.
      random_crop: a random stretch of each file instead of its beginning.
      patience: epochs without a lower validation loss after which training ends;
        by default it goes on to the end.
      matmul_dtype: of the network's products while it is trained; weights and sums
        stay float32. bfloat16 is faster on accelerators and most new processors.
      rematerialise: as for `Training`; where the backbone is trained too.
      augment: what is done to the clips.
    """

    epochs: Annotated[int | None, tyro.conf.arg(help_behavior_hint="")] = None
    batch_size: int = 64
    prototype_rate: float = 0.05
    prototype_decay: float = 0.01
    learning_rate: float = 5e-4
    weight_decay: float = 1e-4
    backbone_rate: float = 0.0
    warmup: float = 0.05
    clip_norm: float = 0.5
    random_crop: bool = True
    patience: Annotated[int | None, _OPEN] = None
    matmul_dtype: MatmulDtype = "float32"
    rematerialise: bool = False
    augment: Augmentation = Augmentation()

    def check(self) -> None:
        """Raises ValueError for settings that cannot work."""
        _check_positive(self, "epochs", "batch_size", "prototype_rate", "learning_rate")
        _check_positive(self, "patience", "clip_norm")
        _check_not_negative(self, "backbone_rate", "prototype_decay", "weight_decay")
        _check_share(self, "warmup")
        self.augment.check()

    def num_epochs(self, steps_per_epoch: int) -> int:
        """Passes over the clips when one takes `steps_per_epoch` steps."""
        return _num_epochs(self.epochs, 10, steps_per_epoch)

    def optimiser(self, num_steps: int) -> optax.GradientTransformation:
        """The optimiser for a run of `num_steps` steps, by part of the network."""
        import jax
        import optax

        parts = {
            "prototypes": (self.prototype_rate, self.prototype_decay),
            "weight": (self.learning_rate, self.weight_decay),
            "bias": (self.learning_rate, self.weight_decay),
            "backbone": (self.backbone_rate, self.weight_decay),
        }

        def part(path, _):
            names = [getattr(key, "name", None) for key in path]
            return "backbone" if "backbone" in names else names[-2]

        return optax.chain(
            optax.clip_by_global_norm(self.clip_norm),
            optax.multi_transform(
                {
                    name: optax.adamw(
                        _rate(rate, self.warmup, num_steps), weight_decay=decay
                    )
                    for name, (rate, decay) in parts.items()
                },
                lambda params: jax.tree_util.tree_map_with_path(part, params),
            ),
        )

    def rate(self, step: int, num_steps: int) -> float:
        """The prototypes' learning rate at a step, from 0, of a run of `num_steps`."""
        return float(_rate(self.prototype_rate, self.warmup, num_steps)(step))

    def rate_in_words(self) -> str:
        """The setting to lower where training diverges."""
        return f"prototype_rate, now {self.prototype_rate:g}"


AnyTraining = Training | PrototypeTraining


@dataclasses.dataclass(frozen=True, kw_only=True)
class Optimisation:
    """The schedule and the optimiser; the defaults are the paper's and EPIC's.

    What `apex-jax fit` and `apex_jax.fit` take unless told otherwise is `recommended`.

    Attributes:
      epochs: passes over the (channel, prototype) pairs.
      epochs_per_round: epochs between two choices of the prototypes.
      prototypes_start: prototypes a channel in the first round.
      prototypes_end: in the last; linear in between.
      batch_size: pairs a step.
      learning_rate: Adam's or Muon's; L-BFGS searches along its line instead. Much
        above 1e-3, Adam makes U ill-conditioned.
      weight_decay: L2 term added to the gradient (not AdamW).
      beta1: Adam's decay of the first moment.
      beta2: Adam's decay of the second moment.
      epsilon: Adam's epsilon.
      exponential: how expm(A) is computed, see `disentangle.exponential`.
      precondition: coordinates in which A is learned. "none" for the channels as they
        are, the paper's; "centre" takes their mean away, "whiten" also evens out their
        variances (`precondition`).
      precondition_eps: of "whiten": the largest variance's share that is added to all.
      transform: "orthogonal" for an antisymmetric A, so that U only turns; "general"
        is the paper's.
      concentration: weight of the loss's second term, which rewards few channels that
        carry a clip's evidence (`evidence.concentration`); 0 is the paper's loss.
      algorithm: who takes the steps; "adam" is the paper's.
    """

    epochs: int = 20
    epochs_per_round: int = 2
    prototypes_start: int = 100
    prototypes_end: int = 5
    batch_size: int = 512
    learning_rate: float = 1e-3
    weight_decay: float = 1e-5
    beta1: float = 0.9
    beta2: float = 0.999
    epsilon: float = 1e-8
    exponential: Exponential = "products"
    precondition: Precondition = "none"
    precondition_eps: float = 0.1
    transform: Family = "general"
    concentration: float = 0.0
    algorithm: Algorithm = "adam"

    @classmethod
    def recommended(cls) -> Optimisation:
        """Few prototypes from the start, for longer, and concentrated evidence.

        Under the scheme that fits a planted event the top channel points at it at least
        as often as by the paper's loss, carries most of the evidence where two classes
        differ in one thing, and U is better conditioned, for less purity
        (docs/decisions/0027).
        """
        return cls(epochs=120, prototypes_start=5, concentration=0.03)

    def schedule(self) -> list[int]:
        """Prototypes a channel in each round."""
        rounds = -(-self.epochs // self.epochs_per_round)
        line = np.linspace(self.prototypes_start, self.prototypes_end, rounds)
        return [int(n) for n in np.round(line)]

    def check(self) -> None:
        """Raises ValueError for settings that cannot work."""
        for name in (
            "epochs",
            "epochs_per_round",
            "prototypes_end",
            "batch_size",
            "learning_rate",
            "precondition_eps",
        ):
            value = getattr(self, name)
            if not value > 0:  # NaN included
                raise ValueError(f"{name} must be positive; got {value}")
        for name, kinds in (
            ("precondition", Precondition),
            ("transform", Family),
            ("algorithm", Algorithm),
        ):
            if (value := getattr(self, name)) not in get_args(kinds):
                raise ValueError(
                    f"{name} must be one of {', '.join(get_args(kinds))}; got {value!r}"
                )
        if self.prototypes_start < self.prototypes_end:
            raise ValueError(
                f"prototypes_start must be at least prototypes_end "
                f"({self.prototypes_end}); got {self.prototypes_start}"
            )
        for name in ("weight_decay", "concentration"):
            if not getattr(self, name) >= 0:  # NaN included
                raise ValueError(
                    f"{name} must not be negative; got {getattr(self, name)}"
                )

    def optimiser(self) -> optax.GradientTransformationExtraArgs:
        """The algorithm, with the L2 term in the gradient as torch.optim.Adam has it.

        Its `update` takes `value`, `grad` and `value_fn`, which L-BFGS needs for its
        line search.
        """
        import optax

        moments = {"b1": self.beta1, "b2": self.beta2, "eps": self.epsilon}
        match self.algorithm:
            case "adam":
                rule = optax.adam(self.learning_rate, **moments)
            case "muon":
                rule = optax.contrib.muon(self.learning_rate)
            case "lbfgs":
                rule = optax.lbfgs()
        return optax.with_extra_args_support(
            optax.chain(optax.add_decayed_weights(self.weight_decay), rule)
        )
