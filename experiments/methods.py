"""ConvNeXt, AudioProtoPNet and APEX on the same clips: trained, kept, tested.

What the paper's tables share. A network that an earlier, interrupted run of the same
settings has finished is not trained again, and one in training goes on where it was.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
from flax import nnx

from apex_jax import (
    audio,
    audioprotopnet,
    cache,
    checkpoint,
    data,
    disentangle,
    fit,
    progress,
    runs,
    schemes,
    train,
)
from apex_jax import classifier as classifier_lib
from apex_jax.models import audioprotopnet as prototypes
from apex_jax.models import convnext
from experiments import options

TITLES = {"classifier": "ConvNeXt", "audioprotopnet": "AudioProtoPNet", "apex": "APEX"}
LAYER_SCALE = 1.0  # the published 1e-6 is made for 300 epochs on ImageNet


@dataclasses.dataclass(frozen=True, kw_only=True)
class Problem:
    """What the methods are trained on.

    Attributes:
      splits: clips to train on and to validate on; those to test on are not looked at.
      class_names: in the order of the labels.
      activation: how classes exclude each other.
      front_end: settings of the spectrogram.
      background: recordings for the augmentation.
      mesh: devices.
      skip_log: takes the files that cannot be read.
    """

    splits: data.Splits
    class_names: tuple[str, ...]
    activation: classifier_lib.Activation = "softmax"
    front_end: audio.FrontEnd
    background: tuple[data.Clip, ...] = ()
    mesh: jax.sharding.Mesh
    skip_log: data.SkipLog

    @property
    def common(self) -> dict[str, Any]:
        """Options that everything takes."""
        return {"mesh": self.mesh, "skip_log": self.skip_log}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Tested:
    """What the three methods say of test clips.

    Attributes:
      clips: those that could be read.
      logits: of each method, `[clip, classes]`.
      audit: APEX against the untouched network.
    """

    clips: list[data.Clip]
    logits: dict[str, np.ndarray]
    audit: disentangle.Audit


def train_convnext(
    folder: Path, problem: Problem, config: options.Common
) -> convnext.ConvNeXt:
    """A ConvNeXt trained from scratch or from `pretrained`, kept in `folder`."""
    shape = convnext.ConvNeXtConfig.named(
        config.model,
        num_classes=len(problem.class_names),
        layer_scale_init=LAYER_SCALE,
    )

    def learn(**more: Any) -> tuple[convnext.ConvNeXt, list[train.Epoch]]:
        # Compiled: one by one, the random draws would each compile by themselves.
        model = jax.jit(lambda: convnext.ConvNeXt(shape, rngs=nnx.Rngs(config.seed)))()
        if config.pretrained is not None:
            other, _ = checkpoint.load_classifier(config.pretrained)
            model = convnext.continued(model, other)
        return train.fit(
            model,
            problem.splits.train,
            problem.splits.validation,
            problem.front_end,
            class_names=problem.class_names,
            activation=problem.activation,
            seed=config.seed,
            config=config.train,
            background=problem.background,
            **problem.common,
            **more,
        )

    save = functools.partial(
        checkpoint.save_classifier, activation=problem.activation, **_about(problem)
    )
    return _trained(
        folder,
        learn,
        problem,
        config.train,
        load=checkpoint.load_classifier,
        save=save,
        label="train ConvNeXt",
    )


def train_prototypes(
    folder: Path, problem: Problem, config: options.Common, backbone: convnext.ConvNeXt
) -> prototypes.AudioProtoPNet:
    """An AudioProtoPNet trained on a trained ConvNeXt, kept in `folder`."""
    return _trained(
        folder,
        functools.partial(
            audioprotopnet.fit,
            backbone,
            problem.splits.train,
            problem.splits.validation,
            problem.front_end,
            class_names=problem.class_names,
            seed=config.seed,
            config=config.audioprotopnet,
            background=problem.background,
            **problem.common,
        ),
        problem,
        config.audioprotopnet,
        load=checkpoint.load_audioprotopnet,
        save=functools.partial(checkpoint.save_audioprotopnet, **_about(problem)),
        label="train AudioProtoPNet",
    )


def _trained(
    folder: Path, learn: Any, problem: Problem, training: Any, **how: Any
) -> Any:
    splits = problem.splits
    return runs.trained(
        folder,
        learn,
        clips=(splits.train, splits.validation, problem.background),
        total=train.clips_in_all(training, len(splits.train), problem.mesh),
        **how,
    )[0]


def _about(problem: Problem) -> dict[str, Any]:
    """What a checkpoint carries so that it can be used."""
    return {
        "class_names": problem.class_names,
        "front_end": problem.front_end.to_dict(),
        "overwrite": True,
    }


def features(
    folder: Path,
    problem: Problem,
    config: options.Common,
    classifier: classifier_lib.Classifier,
    clips: Sequence[data.Clip],
    scheme: schemes.Scheme,
) -> cache.Cached:
    """Features of clips, enough for one scheme, kept in `folder`."""
    return runs.features(
        folder,
        classifier,
        clips,
        problem.front_end,
        content=cache.content_for(scheme),
        batch_size=config.batch_size,
        **problem.common,
    )


def fit_apex(
    key: jax.Array,
    problem: Problem,
    config: options.Common,
    classifier: classifier_lib.Classifier,
    cached: cache.Cached,
    scheme: schemes.Scheme,
    *,
    trained_on: str,
) -> fit.Fit:
    """U learned on cached features, and the explainer that it makes."""
    with progress.bar("optimise U", config.optimise.epochs, "epoch") as on_progress:
        return fit.explainer(
            key,
            classifier,
            cached,
            problem.front_end,
            scheme,
            config=config.optimise,
            mesh=problem.mesh,
            settings=(
                ("classifier", f"trained on {trained_on}"),
                ("seed", str(config.seed)),
            ),
            on_epoch=lambda epoch, purity: on_progress(1),
        )


def test(
    problem: Problem,
    config: options.Common,
    classifier: classifier_lib.Classifier,
    other: prototypes.AudioProtoPNet,
    transform: disentangle.Transform,
    clips: Sequence[data.Clip],
) -> Tested:
    """Logits of the three methods, and the audit of APEX on these clips.

    Args:
      problem: classes and front end.
      config: for the batch size.
      classifier: the ConvNeXt.
      other: the AudioProtoPNet, with the same classes.
      transform: APEX's.
      clips: to test on.

    Raises:
      InvarianceError: APEX changes a prediction.
      ValueError: no clip could be read.
    """
    common = {"batch_size": config.batch_size, **problem.common}
    read, pooled, logits = runs.predictions(
        "test ConvNeXt", classifier, clips, problem.front_end, **common
    )
    audit = disentangle.audit(transform, classifier.head, pooled, logits).check()
    again, _, others = runs.predictions(
        "test AudioProtoPNet",
        prototypes.as_classifier(other, problem.class_names),
        clips,
        problem.front_end,
        **common,
    )
    if read != again:
        raise ValueError("files became readable or unreadable while they were tested")
    apex = transform.compensate(classifier.head)(transform(pooled))
    return Tested(
        clips=read,
        logits={
            "classifier": logits,
            "audioprotopnet": others,
            "apex": np.asarray(apex),
        },
        audit=audit,
    )
