"""What both tables need of BirdSet: its clips, the networks, U.

In come the options; out come networks with their classes, and explainers. What an
earlier run of the same settings has finished is taken from where it is.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np

from apex_jax import (
    audio,
    checkpoint,
    data,
    dataset,
    progress,
    rounding,
    runs,
    schemes,
)
from apex_jax.models import audioprotopnet as prototypes
from apex_jax.models import convnext
from experiments import methods
from experiments.birdset import corpus, labels, options

VALIDATION = 0.2  # of the recordings, where no other set is named


@dataclasses.dataclass(frozen=True, kw_only=True)
class Networks:
    """Trained networks and what they expect.

    Attributes:
      classifier: the ConvNeXt.
      class_names: its eBird codes.
      other: the AudioProtoPNet, None where it was not asked for.
      other_names: its eBird codes.
      front_end: of both.
      push: what pushing the AudioProtoPNet's prototypes changed, None where it was not
        done.
    """

    classifier: convnext.ConvNeXt
    class_names: tuple[str, ...]
    other: prototypes.AudioProtoPNet | None
    other_names: tuple[str, ...]
    front_end: audio.FrontEnd
    push: dict[str, Any] | None = None

    def restricted(self, names: Sequence[str], what: str) -> Networks:
        """The same networks with a test set's classes alone, in its order."""
        own = labels.positions(self.class_names, names, what)
        other = self.other
        if other is not None:
            at = labels.positions(self.other_names, names, what)
            other = prototypes.restrict(other, at)
        return dataclasses.replace(
            self,
            classifier=convnext.restrict(self.classifier, own),
            class_names=tuple(names),
            other=other,
            other_names=tuple(names),
        )


def read(
    config: options.Config,
    name: str,
    split: corpus.Split,
    class_names: Sequence[str],
    skip_log: data.SkipLog,
) -> tuple[data.Clip, ...]:
    """Clips of a subset; says what of them could not be used."""
    skipped = len(skip_log)
    part = corpus.read(
        config.data_dir,
        name,
        split,
        class_names,
        own_names=labels.read(config.labels, name),
        class_limit=config.class_limit,
        event_limit=config.event_limit,
        seed=config.seed,
        unpack_dir=config.unpack_dir,
        skip_log=skip_log,
    )
    runs.report(name, f"{len(part.clips):,} clips ({split})")
    if part.unknown:
        runs.report(
            "",
            f"{len(part.unknown)} birds are not among the {len(class_names):,} "
            f"classes: {', '.join(list(part.unknown)[:5])}"
            + ", ..."
            * (len(part.unknown) > 5),
        )
    if len(skip_log) > skipped:
        runs.report("", f"{len(skip_log) - skipped} files are missing or broken")
    return part.clips


def get(
    config: options.Config,
    output: Path,
    mesh: jax.sharding.Mesh,
    skip_log: data.SkipLog,
    *,
    with_other: bool,
) -> Networks:
    """The networks of the options: given, trained before, or trained now.

    Args:
      config: what is asked for.
      output: the run's folder.
      mesh: devices.
      skip_log: takes files that cannot be read.
      with_other: whether an AudioProtoPNet is wanted.
    """
    front_end, model, other, push = config.front_end, None, None, None
    names: tuple[str, ...] = ()
    other_names: tuple[str, ...] = ()
    if config.weights is not None:
        model, metadata = checkpoint.load_classifier(_inside(config.weights))
        names = _names(config, config.weights, metadata["class_names"])
        front_end = _front_end(config.weights, metadata["front_end"])
    if config.prototypes is not None and with_other:
        other, metadata = checkpoint.load_audioprotopnet(config.prototypes)
        other_names = _names(config, config.prototypes, metadata["class_names"])
        own = _front_end(config.prototypes, metadata["front_end"])
        if own != front_end:
            raise ValueError(
                f"--prototypes {config.prototypes} has another front end than the "
                f"classifier: {own.shape[0]} x {own.shape[1]} pixels, not "
                f"{front_end.shape[0]} x {front_end.shape[1]}, or other settings; they "
                "are compared on the same spectrograms"
            )
    if model is None or (other is None and with_other):
        names = names or labels.read(config.labels, config.train_on)
        problem = _problem(config, names, front_end, mesh, skip_log)
        if model is None:
            model = methods.train_convnext(output / "classifier", problem, config)
        if other is None and with_other:
            other, push = methods.train_prototypes(
                output / "audioprotopnet", problem, config, model
            )
            other_names = names
    return Networks(
        classifier=model,
        class_names=names,
        other=other,
        other_names=other_names,
        front_end=front_end,
        push=push,
    )


def explained(
    config: options.Config,
    networks: Networks,
    mesh: jax.sharding.Mesh,
    skip_log: data.SkipLog,
) -> tuple[methods.Problem, Networks]:
    """The clips that U is learned on, and the networks with their classes."""
    names = labels.read(config.labels, config.explain_on)
    names = tuple(name for name in names if name in set(networks.class_names))
    restricted = dataclasses.replace(networks, other=None).restricted(
        names, config.explain_on
    )
    clips = read(config, config.explain_on, "train", names, skip_log)
    if config.explain_clips is not None and config.explain_clips < len(clips):
        rng = np.random.default_rng(config.seed)
        chosen = np.sort(rng.choice(len(clips), config.explain_clips, replace=False))
        clips = tuple(clips[i] for i in chosen)
    splits = data.Splits(train=list(clips), validation=[], test=[])
    problem = methods.Problem(
        splits=splits,
        class_names=names,
        activation="sigmoid",
        front_end=networks.front_end,
        mesh=mesh,
        skip_log=skip_log,
    )
    return problem, restricted


def learn(
    stages: progress.Stages,
    config: options.Config,
    key: jax.Array,
    folder: Path,
    problem: methods.Problem,
    networks: Networks,
    scheme: schemes.Scheme,
    *,
    cache_dir: Path,
) -> methods.Learned:
    """U under a scheme, kept in a folder; see `methods.learn`."""
    learned = methods.learn(
        stages,
        folder,
        key,
        problem,
        config,
        networks.classifier,
        scheme,
        cache_dir=cache_dir,
        trained_on=f"BirdSet {config.train_on}",
    )
    if learned.rounding is not None:
        runs.report("rounding", rounding.in_words(learned.rounding))
    return learned


def _problem(
    config: options.Config,
    names: tuple[str, ...],
    front_end: audio.FrontEnd,
    mesh: jax.sharding.Mesh,
    skip_log: data.SkipLog,
) -> methods.Problem:
    """Clips to train the networks on, and to validate them on."""
    train = list(read(config, config.train_on, "train", names, skip_log))
    if config.background is None:
        runs.report("", "nothing is put behind or in place of them: no --background")
    if config.validate_on is None:
        # Whole recordings, unlike BirdSet's own split: clips of one are alike.
        train, validation = dataset.split(
            train,
            (1 - VALIDATION, VALIDATION),
            num_classes=len(names),
            seed=config.seed,
        )
        runs.report("", f"{len(validation):,} of them to validate on")
    else:
        validation = list(read(config, config.validate_on, "test_5s", names, skip_log))
    return methods.Problem(
        splits=data.Splits(train=train, validation=validation, test=[]),
        class_names=names,
        activation="sigmoid",
        front_end=front_end,
        background=()
        if config.background is None
        else corpus.backgrounds(config.background, config.unpack_dir, skip_log),
        mesh=mesh,
        skip_log=skip_log,
    )


def resolved(config: options.Config, output: Path) -> options.Config:
    """What runs: without background recordings none are put behind clips.

    Raises:
      ValueError: they are asked for in so many words, and there are none.
    """
    config = dataclasses.replace(
        config, output_dir=output, scheme=schemes.parse(config.scheme)
    )
    if config.validate_on is None and config.train_on in ("XCL", "XCM"):
        config = dataclasses.replace(config, validate_on="POW")
    if config.background is not None:
        return config
    trainings = {}
    for name in ("train", "audioprotopnet"):
        training = getattr(config, name)
        for part in ("background", "no_call"):
            asked = getattr(training.augment, part)
            if asked not in (0, getattr(options.AUGMENT, part)):
                raise ValueError(
                    f"--{name}.augment.{part.replace('_', '-')} {asked:g} takes "
                    "recordings without birds: --background DIR"
                )
        augment = training.augment.without_background
        trainings[name] = dataclasses.replace(training, augment=augment)
    return dataclasses.replace(config, **trainings)


def _inside(weights: Path) -> Path:
    """A run's classifier, where the run itself is named."""
    return weights / "classifier" if (weights / "classifier").is_dir() else weights


def _names(config: options.Config, path: Path, found: Sequence[str]) -> tuple[str, ...]:
    """A checkpoint's classes; those of --train-on's list where it has but numbers."""
    if all(name.isdigit() for name in found):
        listed = labels.read(config.labels, config.train_on)
        if len(found) != len(listed):
            raise ValueError(
                f"{path} has {len(found)} classes without names, --train-on's list has "
                f"{len(listed)}; name the subset that it was trained on"
            )
        runs.say(f"{path} has no class names; taken as --train-on's list has them")
        return listed
    return tuple(found)


def _front_end(path: Path, stored: dict | None) -> audio.FrontEnd:
    if stored is None:
        raise ValueError(
            f"{path} does not say how its spectrograms are made: apex-jax convert "
            "--front-end birdset-128, for BirdSet's ConvNeXts, or FILE.json writes "
            "that beside it"
        )
    return audio.FrontEnd.from_dict(stored)
