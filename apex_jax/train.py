"""Training a classifier of clips, data parallel over the mesh.

In come clips and a front end; out comes the network of the epoch with the lowest
validation loss. `fit` trains a ConvNeXt: clips of one class each are learned by cross
entropy; where a clip can have several classes or none, each class is learned for
itself. `run` trains whatever a `Task` says. APEX never trains the network: this is for
those who have none yet.
"""

from __future__ import annotations

import dataclasses
import functools
import itertools
import math
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import Mesh
from jaxtyping import Array, Bool, Float, Int, Key

from apex_jax import (
    audio,
    augment,
    data,
    inference,
    metrics,
    objective,
    progress,
    resume,
    settings,
    spectrogram,
)
from apex_jax import classifier as classifier_lib
from apex_jax import mesh as mesh_lib
from apex_jax.models import convnext

Config = settings.Training
Trained = TypeVar("Trained")

# After so many steps within an epoch it is asked whether the state is to be saved.
_STEPS = 500

NO_AUGMENTATION = settings.Augmentation()


@dataclasses.dataclass(frozen=True, kw_only=True)
class Epoch:
    """What an epoch of training came to.

    Attributes:
      epoch: from 1.
      train_loss: mean over the steps, with the penalty if there is one.
      validation_loss: mean over the validation clips.
      validation_accuracy: share of the clips with a class whose most likely class is
        one of theirs (where clips have several, BirdSet's top-1 accuracy); None
        without such clips.
      learning_rate: in its last step.
      validation_metrics: cmap, auroc, eer, as far as the clips allow; see
        `metrics.summary`.
    """

    epoch: int
    train_loss: float
    validation_loss: float
    validation_accuracy: float | None
    learning_rate: float
    validation_metrics: dict[str, float] = dataclasses.field(default_factory=dict)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Task:
    """What is learned. Hashable: what is compiled depends on it.

    Attributes:
      forward: `(trained, fixed, spectrogram [batch, freq, time], matmul_dtype)` to
        logits `[batch, classes]`; trained and fixed are the parts of a network that
        the training changes and leaves alone.
      loss: `(logits, target, valid)` to what the clips add to what is minimised; on
        the validation clips it chooses the epoch.
      penalty: of the trained part alone, added to the loss.
      activation: "softmax" asks for one class a clip.
      matmul_dtype: of the products in a step; what is validated is never rounded.
    """

    forward: Callable[[Any, Any, jax.Array, settings.MatmulDtype], jax.Array]
    loss: Callable[[jax.Array, jax.Array, jax.Array], jax.Array]
    penalty: Callable[[Any], jax.Array | float] = lambda trained: 0.0
    activation: classifier_lib.Activation
    matmul_dtype: settings.MatmulDtype = "float32"


@functools.cache
def _exact(task: Task) -> classifier_lib.ForwardFn:
    """A task's network in float32, as `inference.predict` runs one."""

    def forward(parts: Any, pixels: jax.Array) -> tuple[jax.Array, jax.Array]:
        trained, fixed = parts
        logits = task.forward(trained, fixed, pixels, "float32")
        # As its own map: nobody asks for it.
        return logits[:, None, None, :], logits

    return forward


@functools.cache
def classification(
    activation: classifier_lib.Activation,
    matmul_dtype: settings.MatmulDtype = "float32",
    loss: settings.Loss = "cross-entropy",
    rematerialise: bool = False,
) -> Task:
    """Learning all of a ConvNeXt.

    Raises:
      ValueError: a loss that the activation cannot have.
    """
    if loss == "asymmetric" and activation != "sigmoid":
        raise ValueError(
            "loss 'asymmetric' is for classes that are each there or not, "
            f"activation 'sigmoid'; got {activation!r}"
        )

    def forward(
        model: convnext.ConvNeXt,
        _: Any,
        pixels: jax.Array,
        dtype: settings.MatmulDtype,
    ) -> jax.Array:
        model = convnext.rounded(model, dtype)
        return (convnext.rematerialised(model) if rematerialise else model)(pixels)

    return Task(
        forward=forward,
        loss=objective.asymmetric
        if loss == "asymmetric"
        else functools.partial(objective.cross_entropy, activation=activation),
        activation=activation,
        matmul_dtype=matmul_dtype,
    )


@functools.partial(
    jax.jit,
    static_argnames=("task", "optimiser", "augmentation", "front_end", "mesh"),
    donate_argnames=("trained", "state"),
)
def step(
    trained: Trained,
    state: optax.OptState,
    key: Key[Array, ""],
    waveform: Float[Array, "batch sample"],
    target: Float[Array, "batch classes"],
    valid: Bool[Array, " batch"],
    place: Int[Array, " batch"],
    background: Float[Array, "batch sample"] | None = None,
    has_background: Bool[Array, " batch"] | None = None,
    *,
    fixed: Any = None,
    task: Task,
    optimiser: optax.GradientTransformation,
    augmentation: settings.Augmentation = NO_AUGMENTATION,
    front_end: audio.FrontEnd,
    mesh: Mesh,
) -> tuple[Trained, optax.OptState, jax.Array]:
    """One step on a batch spread over the mesh; `trained` and `state` are donated.

    Args:
      trained: the part that is trained.
      state: the optimiser's.
      key: of what the augmentation draws in this step.
      waveform: `[batch, sample]`.
      target: `[batch, classes]`.
      valid: which clips count.
      place: of each clip in the batch.
      background: recordings for the augmentation.
      has_background: which of them could be read.
      fixed: the part that stays.
      task: what is learned.
      optimiser: its updates.
      augmentation: what is done to the clips.
      front_end: settings of the spectrogram.
      mesh: devices.
    """
    mix_key, clip_key = jax.random.split(key)
    if not augmentation.off:
        waveform, target = augment.mixed(
            mix_key, augmentation, waveform, target, valid, task.activation
        )

    def on_device(key, spread):
        if augmentation.off:
            here = spread[0]
            return audio.spectrogram(front_end, here), jnp.ones(len(here), bool)
        power, kept = augment.power(key, augmentation, front_end, *spread)
        return spectrogram.decibel(front_end, power), kept

    pixels, kept = mesh_lib.map_clips(
        on_device, mesh, together=front_end.couples_clips
    )(clip_key, (waveform, place, background, has_background))
    target = target * kept[:, None]

    def loss_of(trained):
        logits = task.forward(trained, fixed, pixels, task.matmul_dtype)
        return task.loss(logits, target, valid) + task.penalty(trained)

    loss, gradient = jax.value_and_grad(loss_of)(trained)
    updates, state = optimiser.update(gradient, state, trained)
    return optax.apply_updates(trained, updates), state, loss


def fit(
    model: convnext.ConvNeXt,
    clips: Sequence[data.Clip],
    validation: Sequence[data.Clip],
    front_end: audio.FrontEnd,
    *,
    class_names: Sequence[str],
    activation: classifier_lib.Activation = "softmax",
    seed: int = 0,
    config: Config | None = None,
    mesh: Mesh | None = None,
    skip_log: data.SkipLog | None = None,
    on_progress: progress.OnProgress = progress.silent,
    on_epoch: Callable[[Epoch], None] = lambda epoch: None,
    background: Sequence[data.Clip] = (),
    state_dir: Path | None = None,
) -> tuple[convnext.ConvNeXt, list[Epoch]]:
    """Trains a ConvNeXt on `clips` and returns the best epoch on `validation`.

    Args:
      model: where to start.
      clips: training clips.
      validation: chooses the epoch.
      front_end: settings of the spectrogram.
      class_names: in the order of the labels.
      activation: "sigmoid" where a clip can have several classes or none.
      seed: of order and crops.
      config: None for the defaults.
      mesh: devices; None for all.
      skip_log: notes clips that cannot be read; None raises at the first.
      on_progress: told how many training clips are done.
      on_epoch: called after each epoch, and for those of an interrupted training.
      background: recordings for the augmentation; their classes do not matter.
      state_dir: a folder for the state, kept about once a minute; if there is one of
        the same training, it goes on from there to the same result. None keeps none.

    Returns:
      The network of the epoch with the lowest validation loss, and all epochs.

    Raises:
      ValueError: no clips, labels that do not fit, a setting that cannot work, or a
        loss that is no longer finite.
    """
    config = Config() if config is None else config
    return run(
        classification(
            activation, config.matmul_dtype, config.loss, config.rematerialise
        ),
        model,
        clips,
        validation,
        front_end,
        num_classes=len(class_names),
        seed=seed,
        config=config,
        mesh=mesh,
        skip_log=skip_log,
        on_progress=on_progress,
        on_epoch=on_epoch,
        background=background,
        state_dir=state_dir,
    )


def run(
    task: Task,
    trained: Trained,
    clips: Sequence[data.Clip],
    validation: Sequence[data.Clip],
    front_end: audio.FrontEnd,
    *,
    fixed: Any = None,
    num_classes: int,
    seed: int = 0,
    config: settings.AnyTraining,
    mesh: Mesh | None = None,
    skip_log: data.SkipLog | None = None,
    on_progress: progress.OnProgress = progress.silent,
    on_epoch: Callable[[Epoch], None] = lambda epoch: None,
    background: Sequence[data.Clip] = (),
    state_dir: Path | None = None,
) -> tuple[Trained, list[Epoch]]:
    """Trains part of a network and returns it as of the best epoch on `validation`.

    Args:
      task: what is learned.
      trained: the part that is trained, where to start.
      clips: training clips.
      validation: chooses the epoch.
      front_end: settings of the spectrogram.
      fixed: the part that stays.
      num_classes: labels count up to it.
      seed: of order and crops.
      config: epochs, batches, optimiser.
      mesh: devices; None for all.
      skip_log: notes clips that cannot be read; None raises at the first.
      on_progress: told how many training clips are done.
      on_epoch: called after each epoch, and for those of an interrupted training.
      background: recordings for the augmentation; their classes do not matter.
      state_dir: a folder for the state, kept about once a minute; if there is one of
        the same training, it goes on from there to the same result. None keeps none.

    Returns:
      The trained part as of the epoch with the lowest validation loss, and all epochs.

    Raises:
      ValueError: as `fit`.
    """
    config.check()
    mesh = mesh_lib.make() if mesh is None else mesh
    skip_log = data.SkipLog(strict=True) if skip_log is None else skip_log
    if not clips or not validation:
        raise ValueError(
            "training needs clips to train on and to validate on; got "
            f"{len(clips)} and {len(validation)}"
        )
    objective.check_labels((*clips, *validation), num_classes, task.activation)
    _check_augmentation(config.augment, task, background)
    front_end.check_devices(mesh.size)
    batch_size = mesh_lib.round_up(config.batch_size, mesh)
    steps_per_epoch = math.ceil(len(clips) / batch_size)
    num_epochs = config.num_epochs(steps_per_epoch)
    num_steps = num_epochs * steps_per_epoch
    optimiser = _optimiser(config, num_steps)
    saver = resume.Saver(
        state_dir,
        lambda: {
            "settings": resume.digest(config, seed, front_end, num_classes, batch_size),
            "weights": resume.digest(trained, fixed),
            "clips": resume.digest(*clips, "", *validation, "", *background),
        },
    )
    state = optimiser.init(trained)
    done, epochs, losses, best = 0, [], [], trained
    if found := saver.load((trained, state, best)):
        done, (trained, state, best), told = found
        epochs = [Epoch(**one) for one in told["epochs"]]
        losses = list(told["losses"])
        for path, reason in told["skipped"]:
            skip_log.add(audio.AudioError(path, reason))
        on_progress(_clips_done(done, steps_per_epoch, batch_size, len(clips)))
        for epoch in epochs:
            on_epoch(epoch)
    # Copies: the steps below give their input's memory away.
    trained, state, best, fixed = (
        mesh_lib.replicate(jax.tree.map(jnp.copy, tree), mesh)
        for tree in (trained, state, best, fixed)
    )
    key = jax.random.key(seed)
    # A process reads what its own devices work on.
    part = jax.process_index(), jax.process_count()
    place = np.array_split(np.arange(batch_size, dtype=np.int32), part[1])[part[0]]
    reading: dict[str, Any] = {
        "batch_size": batch_size,
        "skip_log": skip_log,
        "part": part,
        "start": done,
    }
    stream = data.batches(
        clips,
        front_end,
        seed=seed,
        random_crop=config.random_crop,
        num_epochs=num_epochs,
        **reading,
    )
    behind = _backgrounds(config.augment, background, front_end, seed, reading)
    if _has_ended(epochs, config.patience, num_epochs):
        stream = iter(())
    for number, (batch, other) in enumerate(
        zip(stream, behind, strict=False), start=done + 1
    ):
        arrays = {
            "waveform": batch["waveform"],
            # A batch's: of all clips of BirdSet XCL they are 20 GB. Of padding they
            # are the last clip's, which does not matter: it is not valid.
            "target": objective.targets(
                [clips[i] for i in batch["index"]], num_classes
            ),
            "valid": batch["valid"],
            "place": place,
            **other,
        }
        trained, state, loss = step(
            trained,
            state,
            jax.random.fold_in(key, number),
            **mesh_lib.shard_own(arrays, mesh),
            fixed=fixed,
            task=task,
            optimiser=optimiser,
            augmentation=config.augment,
            front_end=front_end,
            mesh=mesh,
        )
        losses.append(loss)
        on_progress(
            _clips_done(number, steps_per_epoch, batch_size, len(clips))
            - _clips_done(number - 1, steps_per_epoch, batch_size, len(clips))
        )
        if number % steps_per_epoch == 0:
            report = _validate(
                task,
                (trained, fixed),
                validation,
                front_end,
                epoch=len(epochs) + 1,
                train_loss=float(np.mean([float(loss) for loss in losses])),
                learning_rate=config.rate(number - 1, num_steps),
                num_classes=num_classes,
                batch_size=batch_size,
                mesh=mesh,
                skip_log=skip_log,
            )
            losses = []
            if report.validation_loss < min(
                (epoch.validation_loss for epoch in epochs), default=math.inf
            ):
                best = jax.tree.map(jnp.copy, trained)
            epochs.append(report)
            on_epoch(report)
            _check_finite(report, config)
            if _has_ended(epochs, config.patience, num_epochs):
                break
        elif number % _STEPS:
            continue
        if saver.due():
            losses = [float(loss) for loss in losses]
            told = {
                "epochs": [dataclasses.asdict(epoch) for epoch in epochs],
                "losses": losses,
                "skipped": skip_log.entries(),
            }
            saver.save(number, (trained, state, best), told)
    skip_log.share()
    return mesh_lib.to_host(best), epochs


@functools.lru_cache(maxsize=32)
def _optimiser(
    config: settings.AnyTraining, num_steps: int
) -> optax.GradientTransformation:
    """One for equal settings: programs that differ by nothing else are shared."""
    return config.optimiser(num_steps)


def clips_in_all(config: settings.AnyTraining, count: int, mesh: Mesh) -> int:
    """Clips that all epochs of a training on `count` clips come to."""
    batch_size = mesh_lib.round_up(config.batch_size, mesh)
    return count * config.num_epochs(-(-count // batch_size))


def _check_augmentation(
    config: settings.Augmentation, task: Task, background: Sequence[data.Clip]
) -> None:
    """Raises for what these clips or this task cannot have."""
    if config.needs_background and not background:
        raise ValueError(
            "augment.background and augment.no_call need background recordings; "
            "none were given"
        )
    if config.no_call and task.activation != "sigmoid":
        raise ValueError(
            "augment.no_call leaves clips without a class, which activation 'softmax' "
            "cannot have"
        )


def _check_finite(report: Epoch, config: settings.AnyTraining) -> None:
    for name in ("train", "validation"):
        loss = getattr(report, f"{name}_loss")
        if not math.isfinite(loss):
            raise ValueError(
                f"the {name} loss is {loss} in epoch {report.epoch}: "
                f"lower {config.rate_in_words()}"
            )


def _clips_done(steps: int, steps_per_epoch: int, batch_size: int, clips: int) -> int:
    """Clips that so many steps have seen; an epoch's last batch may be smaller."""
    epochs, further = divmod(steps, steps_per_epoch)
    return epochs * clips + further * batch_size


def _has_ended(epochs: Sequence[Epoch], patience: int | None, num_epochs: int) -> bool:
    """Whether all epochs are done, or `patience` ones without a lower loss."""
    losses = [epoch.validation_loss for epoch in epochs]
    if patience is not None and len(losses) - 1 - np.argmin([*losses, math.inf]) >= (
        patience
    ):
        return True
    return len(epochs) >= num_epochs


def _backgrounds(
    config: settings.Augmentation,
    clips: Sequence[data.Clip],
    front_end: audio.FrontEnd,
    seed: int,
    reading: dict[str, Any],
) -> Iterator[dict[str, np.ndarray]]:
    """For each batch as many stretches of background recordings, without end."""
    if not config.needs_background:
        return itertools.repeat({})
    # As often as fills a batch.
    often = -(-reading["batch_size"] // len(clips))
    stream = data.batches(
        [*clips] * often,
        front_end,
        seed=(seed + 1) % 2**32,
        random_crop=True,
        num_epochs=None,
        **reading,
    )
    return (
        {"background": batch["waveform"], "has_background": batch["valid"]}
        for batch in stream
    )


def _validate(
    task: Task,
    parts: tuple[Any, Any],
    clips: Sequence[data.Clip],
    front_end: audio.FrontEnd,
    *,
    epoch: int,
    train_loss: float,
    learning_rate: float,
    num_classes: int,
    batch_size: int,
    mesh: Mesh,
    skip_log: data.SkipLog,
) -> Epoch:
    positions, _, logits = inference.predict(
        classifier_lib.Network(params=parts, forward_fn=_exact(task)),
        clips,
        front_end,
        batch_size=batch_size,
        mesh=mesh,
        skip_log=skip_log,
    )
    read = [clips[i] for i in positions]
    scores, target = jnp.asarray(logits), objective.targets(read, num_classes)
    everything = jnp.ones(len(read), bool)
    loss = task.loss(scores, jnp.asarray(target), everything)
    found: dict[str, float] = {}
    if np.isfinite(logits).all():  # what is not is refused once it is told
        likely = classifier_lib.probabilities(np.asarray(logits), task.activation)
        found = metrics.summary(target.astype(bool), likely, task.activation)
    return Epoch(
        epoch=epoch,
        train_loss=train_loss,
        validation_loss=float(loss),
        validation_accuracy=found.pop(
            "accuracy" if task.activation == "softmax" else "top1_accuracy", None
        ),
        learning_rate=learning_rate,
        validation_metrics=found,
    )
