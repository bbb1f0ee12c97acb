"""ConvNeXt, AudioProtoPNet and APEX on the same clips: trained, kept, tested.

What the paper's tables share. A network that an earlier, interrupted run of the same
settings has finished is not trained again, and one in training goes on where it was; a
U that was learned is not learned again.
"""

from __future__ import annotations

import dataclasses
import functools
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from apex_jax import (
    atomic,
    audio,
    audioprotopnet,
    cache,
    checkpoint,
    data,
    disentangle,
    explain,
    fit,
    hosts,
    inference,
    metrics,
    objective,
    optimize,
    progress,
    resume,
    rounding,
    runs,
    schemes,
    train,
)
from apex_jax import classifier as classifier_lib
from apex_jax.commands import clips as clips_of
from apex_jax.models import audioprotopnet as prototypes
from apex_jax.models import convnext
from experiments import layout, options

TITLES = {"classifier": "ConvNeXt", "audioprotopnet": "AudioProtoPNet", "apex": "APEX"}
LEARNED = "learned.json"
STATE = "optimise-state"  # of U while it is learned
PUSH = "push.json"
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

    def classifier(self, model: convnext.ConvNeXt) -> classifier_lib.Classifier:
        """A network of these classes as what is explained."""
        return convnext.as_classifier(model, self.class_names, self.activation)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Tested:
    """What the methods say of test clips.

    Attributes:
      clips: those that could be read.
      head: the ConvNeXt's.
      pooled: its pooled vectors, `[clip, chan]`.
      logits: of each method, `[clip, classes]`.
      activation: of the ConvNeXt's logits, and so of APEX's.
    """

    clips: list[data.Clip]
    head: classifier_lib.LinearHead
    pooled: np.ndarray
    logits: dict[str, np.ndarray]
    activation: classifier_lib.Activation

    def audit(self, transform: disentangle.Transform) -> disentangle.Audit:
        """APEX against the untouched network, on these clips.

        Raises:
          InvarianceError: APEX changes a prediction.
        """
        return disentangle.audit(
            transform,
            self.head,
            self.pooled,
            self.logits["classifier"],
            activation=self.activation,
        ).check()

    def with_apex(self, transform: disentangle.Transform) -> Tested:
        """With the logits that APEX comes to, audited."""
        self.audit(transform)
        logits = np.asarray(transform.compensate(self.head)(transform(self.pooled)))
        return dataclasses.replace(self, logits={**self.logits, "apex": logits})

    def probabilities(self) -> dict[str, np.ndarray]:
        """Of each method as it means them: AudioProtoPNet's classes stand alone."""
        return {
            method: classifier_lib.probabilities(
                logits, "sigmoid" if method == "audioprotopnet" else self.activation
            )
            for method, logits in self.logits.items()
        }


@dataclasses.dataclass(frozen=True, kw_only=True)
class Learned:
    """U, and how it came about.

    Attributes:
      explainer: ready to explain clips.
      history: how purity grew.
      audit: of the training clips; passed.
      rounding: what rounded products did to the logits; None where none were.
      num_clips: clips that it was learned on.
    """

    explainer: explain.Explainer
    history: optimize.History
    audit: disentangle.Audit
    rounding: rounding.Rounding | None
    num_clips: int

    def to_dict(self) -> dict[str, Any]:
        """What results tell of it."""
        return {
            "purity": dataclasses.asdict(self.history),
            "invariance": dataclasses.asdict(self.audit),
            "rounding": self.rounding and dataclasses.asdict(self.rounding),
        }


def train_convnext(
    folder: Path, problem: Problem, config: options.Common, **shaped: Any
) -> convnext.ConvNeXt:
    """A ConvNeXt trained from scratch or from `pretrained`, kept in `folder`.

    Args:
      folder: where it is kept.
      problem: what it is trained on.
      config: size, seed and training.
      **shaped: of `ConvNeXtConfig`, where it is to differ from the published size.
    """
    shape = convnext.ConvNeXtConfig.named(
        config.model,
        num_classes=len(problem.class_names),
        layer_scale_init=LAYER_SCALE,
        **shaped,
    )

    pretrained = None if config.pretrained is None else _pretrained(config.pretrained)

    def begin() -> convnext.ConvNeXt:
        if pretrained is not None:
            return convnext.continued(shape, pretrained, jax.random.key(config.seed))
        # Compiled: one by one, the random draws would each compile by themselves.
        return jax.jit(lambda: convnext.ConvNeXt(shape, rngs=nnx.Rngs(config.seed)))()

    def learn(**more: Any) -> tuple[convnext.ConvNeXt, list[train.Epoch]]:
        return train.fit(
            begin(),
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
        config,
        config.train,
        weights=pretrained,
        shape=shape,
        load=checkpoint.load_classifier,
        save=save,
        label="train ConvNeXt",
    )


def _pretrained(path: Path) -> convnext.ConvNeXt:
    """A ConvNeXt, or the one below an AudioProtoPNet."""
    if checkpoint.kind_of(path) == "audioprotopnet":
        return checkpoint.load_audioprotopnet(path)[0].backbone
    return checkpoint.load_classifier(path)[0]


def train_prototypes(
    folder: Path,
    problem: Problem,
    config: options.Reproduction,
    backbone: convnext.ConvNeXt,
) -> tuple[prototypes.AudioProtoPNet, dict[str, Any] | None]:
    """An AudioProtoPNet trained on a trained ConvNeXt, kept in `folder`.

    Returns:
      The network, pushed where that is asked for, and what the push changed.
    """
    model = _trained(
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
        config,
        config.audioprotopnet,
        weights=backbone,
        shape=backbone.config,
        load=checkpoint.load_audioprotopnet,
        save=functools.partial(checkpoint.save_audioprotopnet, **_about(problem)),
        label="train AudioProtoPNet",
    )
    if not config.push_prototypes:
        return model, None
    return _pushed(folder.with_name(f"{folder.name}-pushed"), problem, config, model)


def _pushed(
    folder: Path,
    problem: Problem,
    config: options.Common,
    model: prototypes.AudioProtoPNet,
) -> tuple[prototypes.AudioProtoPNet, dict[str, Any]]:
    """The network pushed, kept in `folder`, and what that changed, kept beside it."""
    file, splits = folder.parent / PUSH, problem.splits
    digests = {
        "network": resume.digest(model, repr(problem.front_end)),
        "clips": resume.digest(*splits.train, "", *splits.validation),
    }
    found = hosts.collect(runs.read_json(file))[0] or {}
    if found.get("digests") != digests:
        clips = splits.train
        with progress.bar("push prototypes", len(clips), "clip") as on_progress:
            pushed, nearest = audioprotopnet.push(
                model,
                clips,
                problem.front_end,
                batch_size=config.batch_size,
                on_progress=on_progress,
                **problem.common,
            )
        there = nearest.index[:, 0] >= 0
        effect = {
            "prototypes": len(there),
            "pushed": int(there.sum()),
            "clips": len(np.unique(nearest.index[there])),
            "similarity_before": float(np.mean(nearest.similarity[there])),
            "validation_before": _validated(problem, config, model),
            "validation_after": _validated(problem, config, pushed),
        }
        if hosts.is_primary():
            # What it tells of is replaced: it must not stand beside the new one.
            file.unlink(missing_ok=True)
        checkpoint.save_audioprotopnet(folder, pushed, **_about(problem))
        _list(folder, problem)
        found = {"digests": digests, "effect": effect}
        runs.write_json(file, found)
        hosts.barrier("prototypes pushed")
    effect = found["effect"]
    before, after = effect["validation_before"], effect["validation_after"]
    runs.report(
        "push",
        f"{effect['pushed']:,} of {effect['prototypes']:,} prototypes are now places "
        f"of {effect['clips']:,} clips, {effect['similarity_before']:.2f} similar "
        "before; on the validation clips "
        + ", ".join(
            f"{name.replace('_', ' ')} {value:.4g} before, {after[name]:.4g} after"
            for name, value in before.items()
        ),
    )
    return checkpoint.load_audioprotopnet(folder)[0], effect


def _validated(
    problem: Problem, config: options.Common, model: prototypes.AudioProtoPNet
) -> dict[str, float]:
    """Loss and scores of the validation clips, the network as it is tested."""
    read, _, logits = runs.predictions(
        "validate",
        prototypes.as_network(model),
        problem.splits.validation,
        problem.front_end,
        batch_size=config.batch_size,
        **problem.common,
    )
    target = objective.targets(read, len(problem.class_names))
    loss = objective.asymmetric(
        jnp.asarray(logits), jnp.asarray(target), jnp.ones(len(read), bool)
    )
    probabilities = classifier_lib.probabilities(logits, "sigmoid")
    scores = metrics.summary(target.astype(bool), probabilities, "sigmoid")
    return {"loss": float(loss), **scores}


def _trained(
    folder: Path,
    learn: Any,
    problem: Problem,
    config: options.Common,
    training: Any,
    *,
    weights: convnext.ConvNeXt | None,
    shape: convnext.ConvNeXtConfig,
    **how: Any,
) -> Any:
    splits = problem.splits
    network, _ = runs.trained(
        folder,
        learn,
        made_from={
            "settings": repr((shape, training, config.seed, problem.activation)),
            "classes": repr(problem.class_names),
            "front end": repr(problem.front_end),
            "weights": weights,
        },
        overwrite=config.overwrite,
        clips=(splits.train, splits.validation, problem.background),
        skip_log=problem.skip_log,
        total=train.clips_in_all(training, len(splits.train), problem.mesh),
        **how,
    )
    _list(folder, problem)
    return network


def _list(folder: Path, problem: Problem) -> None:
    """What a network is trained on, as a manifest in its training folder.

    `apex-jax figure` looks in it for what a prototype stands for.
    """
    if not hosts.is_primary():
        return
    several = problem.activation == "sigmoid"
    lines = {}
    for split in ("train", "validation"):
        for clip in getattr(problem.splits, split):
            classes = ";".join(problem.class_names[label] for label in clip.labels)
            path = Path(clip.path).absolute()
            # Once each, as a manifest has it: events of a recording can coincide.
            lines[path, clip.offset_s] = (
                path, classes, split, f"{float(clip.offset_s)!r}", clip.group
            )  # fmt: skip
    head = ("path", "labels" if several else "label", "split", "offset_s", "group")
    text = layout.as_csv([head, *lines.values()])
    beside = folder.with_name(folder.name + runs.TRAINING)
    beside.mkdir(parents=True, exist_ok=True)
    content = text.encode(errors="surrogateescape")
    atomic.write(beside / clips_of.LISTED, lambda stream: stream.write(content))


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
    model: convnext.ConvNeXt,
    scheme: schemes.Scheme,
) -> cache.Cached:
    """What U is learned on: the training clips' features, enough for a scheme."""
    return runs.features(
        folder,
        problem.classifier(convnext.with_matmul_dtype(model, config.matmul_dtype)),
        problem.splits.train,
        problem.front_end,
        content=inference.content_for(scheme),
        batch_size=config.batch_size,
        **problem.common,
    )


def learn(
    stages: progress.Stages,
    folder: Path,
    key: jax.Array,
    problem: Problem,
    config: options.Common,
    model: convnext.ConvNeXt,
    scheme: schemes.Scheme,
    *,
    cache_dir: Path,
    trained_on: str,
) -> Learned:
    """U and the explainer that it makes, kept in `folder`.

    Args:
      stages: takes the time of the features and of the optimisation.
      folder: of the explainer. What an earlier run learned there from the same is used.
      key: for the order of the pairs.
      problem: what the network was trained on.
      config: of the optimisation.
      model: the network.
      scheme: where prototypes lie.
      cache_dir: where its features are or will be.
      trained_on: the classifier's data in words, for the report.
    """
    classifier = problem.classifier(model)
    digests = {
        "settings": resume.digest(
            repr((config.optimise, config.matmul_dtype, config.seed, scheme)),
            repr((problem.class_names, problem.activation, problem.front_end)),
            jax.random.key_data(key),
        ),
        "weights": cache.weights_digest(classifier),
        "clips": runs.digest_of(problem.splits.train),
    }
    before = hosts.collect(runs.read_json(folder / LEARNED))[0] or {}
    if before.get("digests") == digests:
        runs.say(f"learned before: {folder}")
        for path, reason in before.get("skipped", ()):
            problem.skip_log.add(audio.AudioError(path, reason))
        rounded = before["rounding"]
        return Learned(
            explainer=explain.load(folder),
            history=optimize.History(**before["purity"]),
            audit=disentangle.Audit(**before["invariance"]),
            rounding=rounded and rounding.Rounding(**rounded),
            num_clips=before["clips"],
        )
    with stages("features"):
        cached = features(cache_dir, problem, config, model, scheme)
    with (
        stages("optimise"),
        progress.bar("optimise U", config.optimise.epochs, "epoch") as on_progress,
    ):
        fitted = fit.explainer(
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
            state_dir=folder / STATE,
            on_epoch=lambda epoch, purity: on_progress(1),
        )
    rounded = None
    if config.matmul_dtype != "float32":
        with stages("check rounding"):
            fitted, rounded = fit.audited_exactly(
                fitted, cached, batch_size=config.batch_size, **problem.common
            )
    if hosts.is_primary():
        # What it tells of is replaced: it must not stand beside the new one.
        (folder / LEARNED).unlink(missing_ok=True)
    explain.save(folder, fitted.explainer, overwrite=True)
    found = Learned(
        explainer=fitted.explainer,
        history=fitted.history,
        audit=fitted.audit,
        rounding=rounded,
        num_clips=len(cached.clips),
    )
    runs.write_json(
        folder / LEARNED,
        {
            "digests": digests,
            "clips": found.num_clips,
            "skipped": runs.skipped(problem.skip_log, problem.splits.train),
            **found.to_dict(),
        },
    )
    if hosts.is_primary():
        shutil.rmtree(folder / STATE, ignore_errors=True)
    return found


def test(
    problem: Problem,
    config: options.Common,
    model: convnext.ConvNeXt,
    other: prototypes.AudioProtoPNet,
    clips: Sequence[data.Clip],
) -> Tested:
    """What both networks say of clips, from one pass over them.

    Args:
      problem: classes and front end.
      config: for the batch size.
      model: the ConvNeXt.
      other: the AudioProtoPNet, with the same classes.
      clips: to test on.

    Raises:
      ValueError: no clip could be read.
    """
    own = None if _same(model, other.backbone) else other.backbone
    read, pooled, logits = runs.predictions(
        "test",
        classifier_lib.Network(params=(model, other.head, own), forward_fn=_both),
        clips,
        problem.front_end,
        batch_size=config.batch_size,
        **problem.common,
    )
    first, second = np.split(logits, 2, axis=1)
    return Tested(
        clips=read,
        head=problem.classifier(model).head,
        pooled=pooled,
        logits={"classifier": first, "audioprotopnet": second},
        activation=problem.activation,
    )


def _same(model: convnext.ConvNeXt, backbone: convnext.ConvNeXt) -> bool:
    """Whether an AudioProtoPNet has left its backbone as it was."""
    one, other = (convnext.named_arrays(m) for m in (model, backbone))
    unused = {"head.kernel", "head.bias"}  # of a network restricted to some classes
    return all(
        name in unused or (name in one and np.array_equal(one[name], other[name]))
        for name in other
    )


def _both(params: Any, pixels: jax.Array) -> tuple[jax.Array, jax.Array]:
    """The ConvNeXt's map, its logits, and the AudioProtoPNet's beside them."""
    model, head, own = params
    body = model.body(pixels)
    others = head.similarities(body if own is None else own.body(pixels))
    logits = jnp.concatenate([model.logits(body), head.logits(others)], axis=1)
    return model.fold(body), logits
