"""AudioProtoPNet from a trained ConvNeXt: training, nearest clips, push.

The comparison method beside the flow. In come a ConvNeXt and its clips; out comes a
network with prototypes, `models/audioprotopnet`, and for each prototype the training
clips that come closest to it. The authors' published networks are trained with the
backbone left alone and no push; both can be had (`PrototypeTraining.backbone_rate`,
`push`).
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Sequence
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from jaxtyping import Array, Float, Int

from apex_jax import (
    audio,
    data,
    hosts,
    inference,
    objective,
    progress,
    settings,
    train,
)
from apex_jax import mesh as mesh_lib
from apex_jax.models import audioprotopnet, convnext

Config = settings.PrototypeTraining


@functools.cache
def learning(
    config: audioprotopnet.AudioProtoPNetConfig,
    part: Literal["head", "all"] = "head",
    matmul_dtype: settings.MatmulDtype = "float32",
    rematerialise: bool = False,
) -> train.Task:
    """Learning the prototypes and what they count for, or the backbone with them.

    What is trained is the head and what is fixed the backbone; with "all" the whole
    network is trained and nothing fixed.
    """

    def joined(trained: Any, fixed: Any) -> audioprotopnet.AudioProtoPNet:
        if part == "all":
            return trained
        return audioprotopnet.joined(config, fixed, trained)

    def forward(
        trained: Any, fixed: Any, pixels: jax.Array, dtype: settings.MatmulDtype
    ) -> jax.Array:
        whole = joined(trained, fixed)
        backbone = convnext.rounded(whole.backbone, dtype)
        if rematerialise:
            backbone = convnext.rematerialised(backbone)
        body = backbone.body(pixels)
        similarities = whole.head.similarities(body, dtype)
        return whole.head.logits(similarities)

    def penalty(trained: Any) -> jax.Array:
        head = trained.head if part == "all" else trained
        return objective.orthogonality(
            head.prototypes[...], epsilon=audioprotopnet.EPSILON
        )

    return train.Task(
        forward=forward,
        loss=objective.asymmetric,
        penalty=penalty,
        activation="sigmoid",
        matmul_dtype=matmul_dtype,
    )


def fit(
    backbone: convnext.ConvNeXt,
    clips: Sequence[data.Clip],
    validation: Sequence[data.Clip],
    front_end: audio.FrontEnd,
    *,
    class_names: Sequence[str],
    num_prototypes: int = 5,
    seed: int = 0,
    config: Config | None = None,
    **options: Any,
) -> tuple[audioprotopnet.AudioProtoPNet, list[train.Epoch]]:
    """Trains an AudioProtoPNet on a trained ConvNeXt.

    Args:
      backbone: the network below, trained.
      clips: training clips.
      validation: chooses the epoch, by the asymmetric loss.
      front_end: settings of the spectrogram, the backbone's.
      class_names: in the order of the labels.
      num_prototypes: prototypes a class.
      seed: of the prototypes' beginning, of order and crops.
      config: None for the authors' defaults.
      **options: mesh, skip_log, on_progress, on_epoch, background and state_dir, as
        for `train.fit`.

    Returns:
      The network of the epoch with the lowest validation loss, and all epochs.

    Raises:
      ValueError: no clips, labels that do not fit, a setting that cannot work, or a
        loss that is no longer finite.
    """
    config = Config() if config is None else config
    model = audioprotopnet.on(
        backbone,
        num_classes=len(class_names),
        num_prototypes=num_prototypes,
        key=jax.random.key(seed),
    )
    options |= {"num_classes": len(class_names), "seed": seed, "config": config}
    sounds = (clips, validation, front_end)
    if config.backbone_rate:
        task = learning(model.config, "all", config.matmul_dtype, config.rematerialise)
        return train.run(task, model, *sounds, **options)
    task = learning(model.config, "head", config.matmul_dtype)
    head, epochs = train.run(task, model.head, *sounds, fixed=model.backbone, **options)
    return audioprotopnet.joined(model.config, backbone, head), epochs


@dataclasses.dataclass(frozen=True, kw_only=True)
class Nearest:
    """For every prototype the clips that come closest to it.

    Prototypes are counted class by class: number `class * prototypes a class + j`.

    Attributes:
      clips: those looked in, which numbers point to.
      index: positions in `clips`, most similar first, `[prototype, n]`; -1 where a
        class has fewer clips.
      similarity: at the place of each clip where it is largest, `[prototype, n]`, NaN
        where there is no clip.
    """

    clips: tuple[data.Clip, ...]
    index: np.ndarray
    similarity: np.ndarray


def nearest(
    model: audioprotopnet.AudioProtoPNet,
    clips: Sequence[data.Clip],
    front_end: audio.FrontEnd,
    *,
    num: int = 10,
    own_class: bool = True,
    batch_size: int = 32,
    mesh: Mesh | None = None,
    skip_log: data.SkipLog | None = None,
    on_progress: progress.OnProgress = progress.silent,
) -> Nearest:
    """Looks up the clips that come closest to each prototype.

    The host holds the best so far and no more: 9,736 classes and any number of clips
    fit. Of equally similar clips the first is taken. Of several processes each looks
    through its share; all return the whole.

    Args:
      model: the network.
      clips: to look in.
      front_end: settings of the spectrogram.
      num: clips a prototype.
      own_class: only clips that carry the prototype's class.
      batch_size: clips a step.
      mesh: devices; None for all.
      skip_log: notes clips that cannot be read; None raises at the first.
      on_progress: told how many clips are done.

    Raises:
      ValueError: no clip could be read, or num is below 1.
    """
    if num < 1:
        raise ValueError(f"num must be at least 1; got {num}")
    classes, each = model.config.num_classes, model.config.num_prototypes
    skip_log = data.SkipLog(strict=True) if skip_log is None else skip_log
    own = _share(len(clips))
    best = np.full((num, classes * each), -np.inf, np.float32)
    index = np.full(best.shape, -1, np.int32)
    read = 0
    for positions, arrays in inference.stream(
        audioprotopnet.as_network(model),
        clips[own.start : own.stop],
        front_end,
        batch_size=batch_size,
        mesh=mesh_lib.make() if mesh is None else mesh,
        skip_log=skip_log,
        on_progress=on_progress,
    ):
        positions, similarity = positions + own.start, arrays["pooled"]
        if own_class:
            here = [clips[i] for i in positions]
            carried = objective.targets(here, classes).astype(bool)
            similarity = np.where(np.repeat(carried, each, axis=1), similarity, -np.inf)
        # Few prototypes have a new clip among their best: the others are not sorted.
        better = (similarity > best[-1]).any(axis=0)
        best[:, better], index[:, better] = _largest(
            num,
            (best[:, better], similarity[:, better]),
            (index[:, better], np.repeat(positions[:, None], better.sum(), axis=1)),
        )
        read += len(positions)
    skip_log.share()
    if not sum(hosts.collect(read)):
        raise ValueError(f"none of the {len(clips)} clips could be read")
    if len(own) < len(clips):
        # In process order, which is that of the clips.
        found = hosts.concatenate((best, index))
        best, index = _largest(num, found[:1], found[1:])
    there = np.isfinite(best)
    return Nearest(
        clips=tuple(clips), index=index.T, similarity=np.where(there, best, np.nan).T
    )


def _share(count: int) -> range:
    """This process's part of the clips; of fewer than processes each takes all."""
    return hosts.share(count) if count >= jax.process_count() else range(count)


def _largest(
    num: int, values: Sequence[np.ndarray], index: Sequence[np.ndarray]
) -> tuple[np.ndarray, np.ndarray]:
    """Of several `[any, prototype]` the `num` largest, ties to the first."""
    joined, numbers = np.concatenate(values), np.concatenate(index)
    order = np.argsort(-joined, axis=0, kind="stable")[:num]
    return (
        np.take_along_axis(joined, order, axis=0),
        np.take_along_axis(numbers, order, axis=0),
    )


def push(
    model: audioprotopnet.AudioProtoPNet,
    clips: Sequence[data.Clip],
    front_end: audio.FrontEnd,
    *,
    batch_size: int = 32,
    mesh: Mesh | None = None,
    skip_log: data.SkipLog | None = None,
    on_progress: progress.OnProgress = progress.silent,
) -> tuple[audioprotopnet.AudioProtoPNet, Nearest]:
    """Replaces each prototype by the most similar place of its class's clips.

    A prototype of a class without clips stays. Clips start where they start in every
    run: unlike the authors' push, ours does not depend on a seed.

    Args:
      model: the network.
      clips: to look in, the training clips.
      front_end: settings of the spectrogram.
      batch_size: clips a step.
      mesh: devices; None for all.
      skip_log: notes clips that cannot be read; None raises at the first.
      on_progress: told how many clips are done.

    Returns:
      The network, and the clip that each prototype now is a place of, with how similar
      that place was to the prototype before.

    Raises:
      ValueError: no clip could be read.
    """
    mesh = mesh_lib.make() if mesh is None else mesh
    found = nearest(
        model,
        clips,
        front_end,
        num=1,
        batch_size=batch_size,
        mesh=mesh,
        skip_log=skip_log,
        on_progress=on_progress,
    )
    index = found.index[:, 0]
    if (index < 0).all():
        return model, found
    # By clip: each is run once, however many prototypes it is the nearest to. All are
    # asked of as many, so that one program does; what fills up is not counted.
    order = np.argsort(index, kind="stable")[np.sum(index < 0) :].astype(np.int32)
    chosen, counts = np.unique(index[order], return_counts=True)
    counted: np.ndarray = np.arange(counts.max()) < counts[:, None]
    asked: np.ndarray = np.zeros(counted.shape, np.int32)
    asked[counted] = order
    own, local = _share(len(chosen)), mesh_lib.local(mesh)
    asked, counted = asked[own.start : own.stop], counted[own.start : own.stop]
    copied = mesh_lib.replicate(model, local)
    parts: list[tuple[np.ndarray, np.ndarray]] = []
    for batch in data.batches(
        [found.clips[i] for i in chosen[own.start : own.stop]],
        front_end,
        batch_size=mesh_lib.round_up(batch_size, local),
        skip_log=data.SkipLog(strict=True),  # they were read a moment ago
    ):
        vectors = _nearest_places(
            copied,
            mesh_lib.shard(batch["waveform"], local),
            mesh_lib.shard(asked[batch["index"]], local),
            front_end=front_end,
            mesh=local,
        )
        here = counted[batch["index"]] & batch["valid"][:, None]
        parts.append((asked[batch["index"]][here], np.asarray(vectors)[here]))
    number, places = (np.concatenate(arrays) for arrays in zip(*parts, strict=True))
    if len(own) < len(chosen):
        number, places = hosts.concatenate((number, places))
    arrays = convnext.named_arrays(model)
    prototypes = np.array(arrays["head.prototypes"])
    prototypes.reshape(-1, prototypes.shape[-1])[number] = places
    arrays["head.prototypes"] = prototypes
    return audioprotopnet.from_named_arrays(model.config, arrays), found


@functools.partial(jax.jit, static_argnames=("front_end", "mesh"))
def _nearest_places(
    model: audioprotopnet.AudioProtoPNet,
    waveform: Float[Array, "batch sample"],
    asked: Int[Array, "batch prototypes"],
    *,
    front_end: audio.FrontEnd,
    mesh: Mesh,
) -> Float[Array, "batch prototypes chan"]:
    """The finer map's vectors of each clip where its prototypes are most similar."""

    def on_device(model, spread):
        waveform, asked = spread
        body = model.backbone.body(audio.spectrogram(front_end, waveform))

        def of_clip(body, asked):
            similarity = model.head.maps(body[None], asked)[0]
            cells = audioprotopnet.finer(body[None]).reshape(-1, body.shape[-1])
            return cells[jnp.argmax(similarity.reshape(len(asked), -1), axis=1)]

        return jax.vmap(of_clip)(body, asked)

    together = front_end.couples_clips
    return mesh_lib.map_clips(on_device, mesh, together=together)(
        model, (waveform, asked)
    )
