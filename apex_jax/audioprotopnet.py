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

from apex_jax import audio, cache, data, objective, progress, settings, train
from apex_jax import mesh as mesh_lib
from apex_jax.models import audioprotopnet, convnext

Config = settings.PrototypeTraining


@functools.cache
def learning(
    config: audioprotopnet.AudioProtoPNetConfig,
    part: Literal["head", "all"] = "head",
    matmul_dtype: settings.MatmulDtype = "float32",
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
        body = convnext.rounded(whole.backbone, dtype).body(pixels)
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
        task = learning(model.config, "all", config.matmul_dtype)
        return train.run(task, model, *sounds, **options)
    task = learning(model.config, "head", config.matmul_dtype)
    head, epochs = train.run(task, model.head, *sounds, fixed=model.backbone, **options)
    return audioprotopnet.joined(model.config, backbone, head), epochs


@dataclasses.dataclass(frozen=True, kw_only=True)
class Nearest:
    """For every prototype the clips that come closest to it.

    Prototypes are counted class by class: number `class * prototypes a class + j`.

    Attributes:
      clips: the clips that numbers point to.
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

    Args:
      model: the network; `restrict` one of thousands of classes first, the
        similarities of all clips to all prototypes are held on the host.
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
    positions, similarity, _ = cache.predict(
        audioprotopnet.as_network(model),
        clips,
        front_end,
        batch_size=batch_size,
        mesh=mesh_lib.make() if mesh is None else mesh,
        skip_log=data.SkipLog(strict=True) if skip_log is None else skip_log,
        on_progress=on_progress,
    )
    read = [clips[i] for i in positions]
    if own_class:
        carried = objective.targets(read, classes).astype(bool)
        similarity = np.where(np.repeat(carried, each, axis=1), similarity, -np.inf)
    order = np.argsort(-similarity, axis=0, kind="stable")[:num]
    best = np.take_along_axis(similarity, order, axis=0)
    there = np.isfinite(best)
    return Nearest(
        clips=tuple(read),
        index=np.where(there, order, -1).T,
        similarity=np.where(there, best, np.nan).T,
    )


def push(
    model: audioprotopnet.AudioProtoPNet,
    clips: Sequence[data.Clip],
    front_end: audio.FrontEnd,
    **options: Any,
) -> tuple[audioprotopnet.AudioProtoPNet, Nearest]:
    """Replaces each prototype by the most similar place of its class's clips.

    A prototype of a class without clips stays. Clips start where they start in every
    run: unlike the authors' push, ours does not depend on a seed.

    Args:
      model: the network.
      clips: to look in, the training clips.
      front_end: settings of the spectrogram.
      **options: of `nearest`, but for num and own_class.

    Returns:
      The network, and the clip that each prototype now is a place of.

    Raises:
      ValueError: no clip could be read.
    """
    found = nearest(model, clips, front_end, num=1, own_class=True, **options)
    arrays = convnext.named_arrays(model)
    shape = arrays["head.prototypes"].shape
    vectors = np.array(arrays["head.prototypes"]).reshape(-1, shape[-1])
    for prototype in np.flatnonzero(found.index[:, 0] >= 0):
        clip = found.clips[found.index[prototype, 0]]
        waveform = audio.load_clip(clip.path, front_end, clip.offset_s)
        vectors[prototype] = _vector(
            model, waveform[None], np.array([prototype]), front_end=front_end
        )
    arrays["head.prototypes"] = vectors.reshape(shape)
    return audioprotopnet.from_named_arrays(model.config, arrays), found


@functools.partial(jax.jit, static_argnames=("front_end",))
def _vector(
    model: audioprotopnet.AudioProtoPNet,
    waveform: Float[Array | np.ndarray, "one sample"],
    prototype: Int[Array | np.ndarray, " one"],
    *,
    front_end: audio.FrontEnd,
) -> Float[Array, " chan"]:
    """The finer map's vector where a prototype is most similar."""
    body = model.backbone.body(audio.spectrogram(front_end, waveform))
    similarity = model.head.maps(body, prototype)
    cells = audioprotopnet.finer(body).reshape(-1, body.shape[-1])
    return cells[jnp.argmax(similarity)]
