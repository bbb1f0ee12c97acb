"""AudioProtoPNet, the network with prototypes built in that APEX is compared to.

Beside the flow: a ConvNeXt's map before pooling and before its last norm goes in, a
class's logit is a weighted sum of how similar the most similar place is to each of the
class's own prototypes. Unlike APEX it is another classifier, with predictions of its
own. Heinrich et al., "AudioProtoPNet", 2024; facts and formulas after its code.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Float, Int

from apex_jax import classifier, settings
from apex_jax.models import convnext

# A vector is this far from having no direction; also added to its norm, as there.
EPSILON = 1e-4
# A vector and itself are 1 / 1.01 similar.
_SHRINK = 1 / 1.01
# The map is made this much finer, so that boxes are.
UPSAMPLING = 2
# Prototypes compared at a time: their similarities at all places are held at once.
CHUNK = 1024


@dataclasses.dataclass(frozen=True, kw_only=True)
class AudioProtoPNetConfig:
    """The shape of an AudioProtoPNet.

    Attributes:
      backbone: the network below; its own classes may be others, or none.
      num_classes: classes.
      num_prototypes: prototypes a class.
      weight_init: first weight of each prototype.
      bias_init: first bias of each class.
    """

    backbone: convnext.ConvNeXtConfig
    num_classes: int
    num_prototypes: int = 5
    weight_init: float = 1.0
    bias_init: float = -2.0

    def __post_init__(self):
        if min(self.num_classes, self.num_prototypes) < 1:
            raise ValueError(
                "num_classes and num_prototypes are at least 1, got "
                f"{self.num_classes} and {self.num_prototypes}"
            )


class PrototypeHead(nnx.Module):
    """Prototypes of each class and what they count for.

    Attributes:
      prototypes: `[classes, prototypes, chan]`.
      weight: `[classes, prototypes]`; what is below zero counts as zero.
      bias: `[classes]`.
    """

    def __init__(self, config: AudioProtoPNetConfig, *, rngs: nnx.Rngs):
        shape = config.num_classes, config.num_prototypes
        self.prototypes = nnx.Param(
            jax.random.uniform(rngs.params(), (*shape, config.backbone.dims[-1]))
        )
        self.weight = nnx.Param(jnp.full(shape, config.weight_init, jnp.float32))
        self.bias = nnx.Param(
            jnp.full(config.num_classes, config.bias_init, jnp.float32)
        )

    def similarities(
        self,
        body: Float[Array, "batch freq time chan"],
        matmul_dtype: settings.MatmulDtype = "float32",
    ) -> Float[Array, "batch classes prototypes"]:
        """Each prototype's similarity at the place where it is largest, in [0, 0.991].

        A gradient reaches that place alone, of equal ones the first.

        Args:
          body: the map before pooling and before the last norm, not yet finer.
          matmul_dtype: of the products that look for the place; the similarity there is
            float32 either way.
        """
        prototypes = self.prototypes[...]
        fine = finer(body)
        best = _best_similarities(
            fine.reshape(len(fine), -1, fine.shape[-1]),
            prototypes.reshape(-1, fine.shape[-1]),
            matmul_dtype,
        )
        return best.reshape(len(body), *prototypes.shape[:2])

    def logits(
        self, similarities: Float[Array, "batch classes prototypes"]
    ) -> Float[Array, "batch classes"]:
        """`sum_j relu(w_cj) s_cj + b_c`."""
        weight = jax.nn.relu(self.weight[...])
        return jnp.sum(similarities * weight[None], axis=-1) + self.bias[...][None]

    def maps(
        self,
        body: Float[Array, "batch freq time chan"],
        chosen: Int[Array | np.ndarray, " chosen"],
    ) -> Float[Array, "batch chosen fine_freq fine_time"]:
        """Where some of the prototypes are how similar, on the finer map.

        Args:
          body: as for `similarities`.
          chosen: prototypes, `class * prototypes a class + its number`.
        """
        fine = finer(body)
        prototypes = self.prototypes[...].reshape(-1, body.shape[-1])[chosen]
        cells = fine.reshape(len(fine), -1, fine.shape[-1])
        flat = _similarities(cells, prototypes)
        return jnp.moveaxis(flat, -1, 1).reshape(len(body), -1, *fine.shape[1:3])


class AudioProtoPNet(nnx.Module):
    """A ConvNeXt with a `PrototypeHead` in the place of pooling, norm and head.

    Attributes:
      config: its shape.
      backbone: the ConvNeXt; of it only `body` is used.
      head: the prototypes.
    """

    def __init__(self, config: AudioProtoPNetConfig, *, rngs: nnx.Rngs):
        self.config = config
        self.backbone = convnext.ConvNeXt(config.backbone, rngs=rngs)
        self.head = PrototypeHead(config, rngs=rngs)

    def __call__(self, spectrogram: Float[Array, "batch freq time"]) -> jax.Array:
        """Logits `[batch, classes]`; each class for itself (sigmoid)."""
        return self.head.logits(self.head.similarities(self.backbone.body(spectrogram)))


def on(
    backbone: convnext.ConvNeXt,
    *,
    num_classes: int,
    num_prototypes: int = 5,
    key: jax.Array,
) -> AudioProtoPNet:
    """An untrained AudioProtoPNet on a trained ConvNeXt.

    Args:
      backbone: the network below.
      num_classes: classes.
      num_prototypes: prototypes a class.
      key: of the prototypes, uniform in [0, 1).
    """
    config = AudioProtoPNetConfig(
        backbone=backbone.config,
        num_classes=num_classes,
        num_prototypes=num_prototypes,
    )
    return joined(config, backbone, PrototypeHead(config, rngs=nnx.Rngs(key)))


def joined(
    config: AudioProtoPNetConfig, backbone: convnext.ConvNeXt, head: PrototypeHead
) -> AudioProtoPNet:
    """A network of these two parts."""
    empty = abstract(config)
    leaves = [*jax.tree.leaves(backbone), *jax.tree.leaves(head)]
    return jax.tree.unflatten(jax.tree.structure(empty), leaves)


def finer(
    body: Float[Array, "batch freq time chan"],
) -> Float[Array, "batch fine_freq fine_time chan"]:
    """The map at twice as many rows and columns, bilinear, half-pixel centres."""
    batch, freq, time, chan = body.shape
    shape = batch, UPSAMPLING * freq, UPSAMPLING * time, chan
    return jax.image.resize(body, shape, "bilinear")


def restrict(model: AudioProtoPNet, classes: Sequence[int]) -> AudioProtoPNet:
    """The same network with some of its classes, whose logits stay what they were.

    Args:
      model: the network.
      classes: which, in the order wanted.

    Raises:
      ValueError: no classes, or one that the network does not have.
    """
    total = model.config.num_classes
    if not classes or not all(0 <= c < total for c in classes):
        raise ValueError(f"classes must be some of 0 to {total - 1}, got {classes!r}")
    chosen = jnp.asarray(classes)
    config = dataclasses.replace(model.config, num_classes=len(classes))
    return joined(
        config, model.backbone, jax.tree.map(lambda array: array[chosen], model.head)
    )


def forward(
    model: AudioProtoPNet, spectrogram: Float[Array, "batch freq time"]
) -> tuple[jax.Array, jax.Array]:
    """The best similarities as a map of one cell, and the logits."""
    similarities = model.head.similarities(model.backbone.body(spectrogram))
    return (
        similarities.reshape(len(spectrogram), 1, 1, -1),
        model.head.logits(similarities),
    )


def as_network(model: AudioProtoPNet) -> classifier.Network:
    """The network as the rest of the package runs it.

    The pooled vector of a clip is the similarity to each prototype, so whatever asks
    for pooled vectors gets these.
    """
    return classifier.Network(params=model, forward_fn=forward)


@functools.cache
def abstract(config: AudioProtoPNetConfig) -> AudioProtoPNet:
    """A network of shapes and dtypes that holds no arrays; nobody may change it."""
    return jax.eval_shape(lambda: AudioProtoPNet(config, rngs=nnx.Rngs(0)))


def from_named_arrays(
    config: AudioProtoPNetConfig, arrays: Mapping[str, Any]
) -> AudioProtoPNet:
    """The network with these arrays; the inverse of `convnext.named_arrays`.

    Raises:
      ValueError: an array is missing, left over or of another shape.
    """
    return convnext.fill(abstract(config), arrays)


def _similarities(
    cells: Float[Array, "batch cells chan"],
    prototypes: Float[Array, "prototypes chan"],
    dtype: settings.MatmulDtype = "float32",
) -> Float[Array, "batch cells prototypes"]:
    """Of every cell to every prototype; `dtype` rounds the factors of the products."""
    cell_norm, prototype_norm = _norm(cells), _prototype_norm(prototypes)
    product = jnp.einsum(
        "bnc,pc->bnp",
        (cells / cell_norm[..., None]).astype(dtype),
        (prototypes / prototype_norm[:, None]).astype(dtype),
        precision=jax.lax.Precision.HIGHEST,
        preferred_element_type=jnp.float32,
    )
    return _shrunk(product, cell_norm[..., None] * prototype_norm[None, None])


# What is held for the gradient are the places, not the vectors there.
@jax.checkpoint
def _similarity_at(
    cells: Float[Array, "batch cells chan"],
    place: Int[Array, "batch prototypes"],
    prototypes: Float[Array, "prototypes chan"],
) -> Float[Array, "batch prototypes"]:
    """Of one cell of each clip to each prototype."""
    there = jnp.take_along_axis(cells, place[..., None], axis=1)
    norms = _norm(there) * _prototype_norm(prototypes)[None]
    return _shrunk(jnp.sum(there * prototypes[None], axis=-1) / norms, norms)


def _shrunk(cosine: jax.Array, norms: jax.Array) -> jax.Array:
    """A cosine with the two channels of EPSILON, which belong to both vectors."""
    return jax.nn.relu(_SHRINK * (cosine + 2 * EPSILON**2 / norms))


def _norm(vectors: Float[Array, "*any chan"]) -> jax.Array:
    squares = jnp.sum(vectors**2, axis=-1) + 2 * EPSILON**2
    return jnp.sqrt(squares + EPSILON)


def _prototype_norm(prototypes: Float[Array, "prototypes chan"]) -> jax.Array:
    return _norm(prototypes) + EPSILON


def _best_similarities(
    cells: Float[Array, "batch cells chan"],
    prototypes: Float[Array, "prototypes chan"],
    dtype: settings.MatmulDtype,
) -> Float[Array, "batch prototypes"]:
    """The largest similarity over all cells, a chunk of prototypes at a time."""

    def best(chunk: jax.Array) -> jax.Array:
        # Looked for without a gradient: through the maximum of all similarities it
        # would be two more products as large, for one cell of hundreds.
        everywhere = _similarities(*jax.lax.stop_gradient((cells, chunk)), dtype)
        return _similarity_at(cells, jnp.argmax(everywhere, axis=1), chunk)

    total = len(prototypes)
    if total <= CHUNK:
        return best(prototypes)
    padding = -total % CHUNK
    # Ones, not zeros: a gradient through the norm of nothing helps nobody.
    padded = jnp.pad(prototypes, ((0, padding), (0, 0)), constant_values=1.0)
    chunks = jax.lax.map(best, padded.reshape(-1, CHUNK, prototypes.shape[-1]))
    return jnp.moveaxis(chunks, 0, 1).reshape(len(cells), -1)[:, :total]
