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
import math
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import Mesh
from jaxtyping import Array, Bool, Float

from apex_jax import audio, cache, data, objective, progress, settings
from apex_jax import classifier as classifier_lib
from apex_jax import mesh as mesh_lib
from apex_jax.models import convnext

Config = settings.Training
Trained = TypeVar("Trained")


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
    """

    epoch: int
    train_loss: float
    validation_loss: float
    validation_accuracy: float | None


@dataclasses.dataclass(frozen=True, kw_only=True)
class Task:
    """What is learned. Hashable: what is compiled depends on it.

    Attributes:
      forward: `(trained, fixed, spectrogram [batch, freq, time])` to logits
        `[batch, classes]`; trained and fixed are the parts of a network that the
        training changes and leaves alone.
      loss: `(logits, target, valid)` to what the clips add to what is minimised; on
        the validation clips it chooses the epoch.
      penalty: of the trained part alone, added to the loss.
      as_classifier: `(trained, fixed)` to the network as the rest of the package sees
        it.
      activation: "softmax" asks for one class a clip.
    """

    forward: Callable[[Any, Any, jax.Array], jax.Array]
    loss: Callable[[jax.Array, jax.Array, jax.Array], jax.Array]
    penalty: Callable[[Any], jax.Array | float] = lambda trained: 0.0
    as_classifier: Callable[[Any, Any], classifier_lib.Classifier]
    activation: classifier_lib.Activation


@functools.cache
def classification(
    class_names: tuple[str, ...], activation: classifier_lib.Activation
) -> Task:
    """Learning all of a ConvNeXt by cross entropy."""
    return Task(
        forward=lambda model, _, spectrogram: model(spectrogram),
        loss=functools.partial(objective.cross_entropy, activation=activation),
        as_classifier=lambda model, _: convnext.as_classifier(
            model, class_names, activation
        ),
        activation=activation,
    )


@functools.partial(
    jax.jit,
    static_argnames=("task", "optimiser", "front_end", "mesh"),
    donate_argnames=("trained", "state"),
)
def step(
    trained: Trained,
    state: optax.OptState,
    waveform: Float[Array, "batch sample"],
    target: Float[Array, "batch classes"],
    valid: Bool[Array, " batch"],
    *,
    fixed: Any = None,
    task: Task,
    optimiser: optax.GradientTransformation,
    front_end: audio.FrontEnd,
    mesh: Mesh,
) -> tuple[Trained, optax.OptState, jax.Array]:
    """One step on a batch spread over the mesh; `trained` and `state` are donated."""

    def on_device(_, waveform):
        return audio.spectrogram(front_end, waveform)

    together = front_end.couples_clips
    spectrogram = mesh_lib.map_clips(on_device, mesh, together=together)(None, waveform)

    def loss_of(trained):
        logits = task.forward(trained, fixed, spectrogram)
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
      on_epoch: called after each epoch.

    Returns:
      The network of the epoch with the lowest validation loss, and all epochs.

    Raises:
      ValueError: no clips, labels that do not fit, a setting that cannot work, or a
        loss that is no longer finite.
    """
    return run(
        classification(tuple(class_names), activation),
        model,
        clips,
        validation,
        front_end,
        num_classes=len(class_names),
        seed=seed,
        config=Config() if config is None else config,
        mesh=mesh,
        skip_log=skip_log,
        on_progress=on_progress,
        on_epoch=on_epoch,
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
      on_epoch: called after each epoch.

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
    front_end.check_devices(mesh.size)
    batch_size = mesh_lib.round_up(config.batch_size, mesh)
    steps_per_epoch = math.ceil(len(clips) / batch_size)
    num_epochs = config.num_epochs(steps_per_epoch)
    optimiser = config.optimiser(num_epochs * steps_per_epoch)
    # A copy: the steps below give their input's memory away.
    trained = mesh_lib.replicate(jax.tree.map(jnp.copy, trained), mesh)
    fixed = mesh_lib.replicate(fixed, mesh)
    state = mesh_lib.replicate(optimiser.init(trained), mesh)
    target = objective.targets(clips, num_classes)

    epochs: list[Epoch] = []
    best, best_loss = trained, math.inf
    losses: list[jax.Array] = []
    stream = data.batches(
        clips,
        front_end,
        batch_size=batch_size,
        skip_log=skip_log,
        seed=seed,
        random_crop=config.random_crop,
        num_epochs=num_epochs,
        # A process reads what its own devices work on.
        part=(jax.process_index(), jax.process_count()),
    )
    for number, batch in enumerate(stream, start=1):
        arrays = {
            "waveform": batch["waveform"],
            "target": target[batch["index"]],  # of padding the last: it is not valid
            "valid": batch["valid"],
        }
        trained, state, loss = step(
            trained,
            state,
            **mesh_lib.shard_own(arrays, mesh),
            fixed=fixed,
            task=task,
            optimiser=optimiser,
            front_end=front_end,
            mesh=mesh,
        )
        losses.append(loss)
        place = number % steps_per_epoch
        on_progress(
            batch_size if place else len(clips) - batch_size * (steps_per_epoch - 1)
        )
        if place:
            continue
        report = _validate(
            task,
            task.as_classifier(trained, fixed),
            validation,
            front_end,
            epoch=len(epochs) + 1,
            train_loss=float(np.mean([float(loss) for loss in losses])),
            num_classes=num_classes,
            batch_size=batch_size,
            mesh=mesh,
            skip_log=skip_log,
        )
        losses = []
        epochs.append(report)
        on_epoch(report)
        for name in ("train", "validation"):
            loss = getattr(report, f"{name}_loss")
            if not math.isfinite(loss):
                raise ValueError(
                    f"the {name} loss is {loss} in epoch {report.epoch}: "
                    f"lower {config.rate_in_words()}"
                )
        if report.validation_loss < best_loss:
            best = jax.tree.map(jnp.copy, trained)
            best_loss = report.validation_loss
    skip_log.share()
    return mesh_lib.to_host(best), epochs


def _validate(
    task: Task,
    classifier: classifier_lib.Classifier,
    clips: Sequence[data.Clip],
    front_end: audio.FrontEnd,
    *,
    epoch: int,
    train_loss: float,
    num_classes: int,
    batch_size: int,
    mesh: Mesh,
    skip_log: data.SkipLog,
) -> Epoch:
    positions, _, logits = cache.predict(
        classifier,
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
    best = np.asarray(jnp.argmax(scores, axis=1))
    hit, labelled = target[np.arange(len(read)), best], target.any(axis=1)
    return Epoch(
        epoch=epoch,
        train_loss=train_loss,
        validation_loss=float(loss),
        validation_accuracy=float(hit[labelled].mean()) if labelled.any() else None,
    )
