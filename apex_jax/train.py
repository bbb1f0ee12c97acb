"""Training a ConvNeXt classifier of clips, data parallel over the mesh.

In come clips and a front end; out comes the network of the epoch with the lowest
validation loss. Clips of one class each are learned by cross entropy; where a clip
can have several classes or none, each class is learned for itself. APEX never trains
the network: this is for those who have none yet.
"""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Callable, Sequence

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


@dataclasses.dataclass(frozen=True, kw_only=True)
class Epoch:
    """What an epoch of training came to.

    Attributes:
      epoch: from 1.
      train_loss: mean over the steps, cross entropy in nats.
      validation_loss: mean over the validation clips.
      validation_accuracy: share of the clips with a class whose most likely class is
        one of theirs (where clips have several, BirdSet's top-1 accuracy); None
        without such clips.
    """

    epoch: int
    train_loss: float
    validation_loss: float
    validation_accuracy: float | None


@functools.partial(
    jax.jit,
    static_argnames=("optimiser", "front_end", "activation", "mesh"),
    donate_argnames=("model", "state"),
)
def step(
    model: convnext.ConvNeXt,
    state: optax.OptState,
    waveform: Float[Array, "batch sample"],
    target: Float[Array, "batch classes"],
    valid: Bool[Array, " batch"],
    *,
    optimiser: optax.GradientTransformation,
    front_end: audio.FrontEnd,
    activation: classifier_lib.Activation = "softmax",
    mesh: Mesh,
) -> tuple[convnext.ConvNeXt, optax.OptState, jax.Array]:
    """One step on a batch that is spread over the mesh; model and state are donated."""

    def on_device(_, waveform):
        return audio.spectrogram(front_end, waveform)

    together = front_end.couples_clips
    spectrogram = mesh_lib.map_clips(on_device, mesh, together=together)(None, waveform)

    def loss_of(model):
        return objective.cross_entropy(model(spectrogram), target, valid, activation)

    loss, gradient = jax.value_and_grad(loss_of)(model)
    updates, state = optimiser.update(gradient, state, model)
    return optax.apply_updates(model, updates), state, loss


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
    """Trains on `clips` and returns the best epoch on `validation`.

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
    config = Config() if config is None else config
    config.check()
    mesh = mesh_lib.make() if mesh is None else mesh
    skip_log = data.SkipLog(strict=True) if skip_log is None else skip_log
    if not clips or not validation:
        raise ValueError(
            "training needs clips to train on and to validate on; got "
            f"{len(clips)} and {len(validation)}"
        )
    objective.check_labels((*clips, *validation), len(class_names), activation)
    front_end.check_devices(mesh.size)
    batch_size = mesh_lib.round_up(config.batch_size, mesh)
    steps_per_epoch = math.ceil(len(clips) / batch_size)
    num_epochs = config.num_epochs(steps_per_epoch)
    optimiser = config.optimiser(num_epochs * steps_per_epoch)
    # A copy: the steps below give their input's memory away.
    model = mesh_lib.replicate(jax.tree.map(jnp.copy, model), mesh)
    state = mesh_lib.replicate(optimiser.init(model), mesh)
    target = objective.targets(clips, len(class_names))

    epochs: list[Epoch] = []
    best, best_loss = model, math.inf
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
        model, state, loss = step(
            model,
            state,
            **mesh_lib.shard_own(arrays, mesh),
            optimiser=optimiser,
            front_end=front_end,
            activation=activation,
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
            model,
            validation,
            front_end,
            epoch=len(epochs) + 1,
            train_loss=float(np.mean([float(loss) for loss in losses])),
            class_names=class_names,
            activation=activation,
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
                    f"lower learning_rate, now {config.learning_rate:g}"
                )
        if report.validation_loss < best_loss:
            best = jax.tree.map(jnp.copy, model)
            best_loss = report.validation_loss
    skip_log.share()
    return mesh_lib.to_host(best), epochs


def _validate(
    model: convnext.ConvNeXt,
    clips: Sequence[data.Clip],
    front_end: audio.FrontEnd,
    *,
    epoch: int,
    train_loss: float,
    class_names: Sequence[str],
    activation: classifier_lib.Activation,
    batch_size: int,
    mesh: Mesh,
    skip_log: data.SkipLog,
) -> Epoch:
    positions, _, logits = cache.predict(
        convnext.as_classifier(model, class_names, activation),
        clips,
        front_end,
        batch_size=batch_size,
        mesh=mesh,
        skip_log=skip_log,
    )
    read = [clips[i] for i in positions]
    scores, target = jnp.asarray(logits), objective.targets(read, len(class_names))
    everything = jnp.ones(len(read), bool)
    loss = objective.cross_entropy(scores, jnp.asarray(target), everything, activation)
    best = np.asarray(jnp.argmax(scores, axis=1))
    hit, labelled = target[np.arange(len(read)), best], target.any(axis=1)
    return Epoch(
        epoch=epoch,
        train_loss=train_loss,
        validation_loss=float(loss),
        validation_accuracy=float(hit[labelled].mean()) if labelled.any() else None,
    )
