"""ConvNeXt, the network that the paper explains, in Flax NNX.

First box of the flow: spectrogram `[batch, freq, time]` in, feature map
`[batch, F, T, chan]` and logits out. ConvNeXt normalises *after* pooling,
`y = W LayerNorm(v) + b`, which is not the shape APEX needs; `feature_map` has that
norm folded in and `as_classifier` gives the `Classifier` that the rest of the package
works with. Weights of transformers, timm and torchvision come in through `convert`.

Liu et al., "A ConvNet for the 2020s", 2022.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Mapping, Sequence
from typing import Any, Literal, TypeVar, get_args

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float, Key

from apex_jax import classifier, settings
from apex_jax.models import depthwise

MatmulDtype = settings.MatmulDtype
Network = TypeVar("Network", bound=nnx.Module)
Size = Literal["atto", "femto", "pico", "nano", "tiny", "small", "base", "large"]

_SIZES: dict[str, tuple[tuple[int, ...], tuple[int, ...]]] = {
    "atto": ((2, 2, 6, 2), (40, 80, 160, 320)),
    "femto": ((2, 2, 6, 2), (48, 96, 192, 384)),
    "pico": ((2, 2, 6, 2), (64, 128, 256, 512)),
    "nano": ((2, 2, 8, 2), (80, 160, 320, 640)),
    "tiny": ((3, 3, 9, 3), (96, 192, 384, 768)),
    "small": ((3, 3, 27, 3), (96, 192, 384, 768)),
    "base": ((3, 3, 27, 3), (128, 256, 512, 1024)),
    "large": ((3, 3, 27, 3), (192, 384, 768, 1536)),
}

# Of factors in float32: left alone, GPUs round them to 11 bits (TF32), TPUs to 8.
PRECISION = jax.lax.Precision.HIGHEST

# The layers that hold nearly all of the arithmetic.
_PRODUCTS = ("blocks.expand.kernel", "blocks.contract.kernel")

# Differs from the original's normal(0.02). Trained from scratch on a small corpus the
# two do equally well (docs/decisions/0010).
_kernel_init = nnx.initializers.lecun_normal()


@dataclasses.dataclass(frozen=True, kw_only=True)
class ConvNeXtConfig:
    """The shape of a ConvNeXt.

    Attributes:
      depths: blocks in each stage.
      dims: channels of each stage.
      num_classes: outputs of the head; 0 where only `body` is used.
      in_channels: 1, or 3 for a network made for images; the spectrogram is then
        repeated.
      patch_size: side of the stem's patches; every later stage halves once more.
      norm_epsilon: epsilon of the norms before pooling.
      head_norm_epsilon: epsilon of the norm after pooling, 1e-12 in transformers.
      layer_scale_init: first value of each block's scale.
    """

    depths: tuple[int, ...]
    dims: tuple[int, ...]
    num_classes: int
    in_channels: int = 1
    patch_size: int = 4
    norm_epsilon: float = 1e-6
    head_norm_epsilon: float = 1e-6
    layer_scale_init: float = 1e-6

    def __post_init__(self):
        if not self.depths or len(self.depths) != len(self.dims):
            raise ValueError(
                f"depths and dims name the same stages, got {self.depths} and "
                f"{self.dims}"
            )
        if min(*self.depths, *self.dims, self.patch_size) < 1 or self.num_classes < 0:
            raise ValueError(
                "depths, dims and patch_size are at least 1 and num_classes at least "
                f"0, got {self}"
            )
        if self.in_channels not in (1, 3):
            raise ValueError(f"in_channels is 1 or 3, got {self.in_channels}")

    @classmethod
    def named(cls, size: Size, *, num_classes: int, **changes) -> ConvNeXtConfig:
        """The configuration published under a name, from `atto` to `large`.

        >>> ConvNeXtConfig.named("base", num_classes=2).dims
        (128, 256, 512, 1024)
        """
        if size not in _SIZES:
            raise ValueError(f"size is one of {', '.join(_SIZES)}, got {size!r}")
        depths, dims = _SIZES[size]
        return cls(depths=depths, dims=dims, num_classes=num_classes, **changes)

    @property
    def size(self) -> str:
        """The published name of these depths and dims, or "custom"."""
        for name, shape in _SIZES.items():
            if shape == (self.depths, self.dims):
                return name
        return "custom"

    @property
    def stride(self) -> int:
        """Spectrogram rows, and frames, that one cell of the map covers."""
        return self.patch_size * 2 ** (len(self.depths) - 1)


class Depthwise(nnx.Module):
    """A 7x7 convolution within each channel."""

    def __init__(self, dim: int, *, rngs: nnx.Rngs):
        self.kernel = nnx.Param(_kernel_init(rngs.params(), (7, 7, dim)))
        self.bias = nnx.Param(jnp.zeros(dim))

    def __call__(self, x: jax.Array) -> jax.Array:
        """Same shape, `[batch, freq, time, chan]`."""
        return depthwise.depthwise(x, self.kernel[...]) + _along(self.bias, x)


class Block(nnx.Module):
    """Depthwise convolution, norm, two linear layers, scaled and added to the input."""

    def __init__(self, config: ConvNeXtConfig, dim: int, *, rngs: nnx.Rngs):
        self.depthwise = Depthwise(dim, rngs=rngs)
        self.norm = _layer_norm(dim, config.norm_epsilon, rngs)
        self.expand = nnx.Linear(dim, 4 * dim, kernel_init=_kernel_init, rngs=rngs)
        self.contract = nnx.Linear(4 * dim, dim, kernel_init=_kernel_init, rngs=rngs)
        # A dtype: of a Python number alone it would be weak, and a step compiled twice.
        self.scale = nnx.Param(jnp.full(dim, config.layer_scale_init, jnp.float32))

    def __call__(self, x: jax.Array) -> jax.Array:
        """Same shape, `[batch, freq, time, chan]`."""
        hidden = _gelu(_linear(self.expand, self.norm(self.depthwise(x))))
        return x + _linear(self.contract, hidden) * _along(self.scale, x)


class Stage(nnx.Module):
    """Blocks of one width, after a halving of rows and frames in all but the first.

    The blocks are one `Block` whose arrays have a leading axis, run by a scan: one
    block is compiled, not twenty-seven.

    Attributes:
      rematerialise: whether a block runs again where its gradient is asked for, so that
        of each block only the input is kept until then.
    """

    rematerialise = False

    def __init__(self, config: ConvNeXtConfig, index: int, *, rngs: nnx.Rngs):
        dim = config.dims[index]
        if index > 0:
            before = config.dims[index - 1]
            self.downsample_norm = _layer_norm(before, config.norm_epsilon, rngs)
            self.downsample = _patches(before, dim, 2, rngs)
        keys = jax.random.split(rngs.params(), config.depths[index])
        self.blocks = jax.vmap(lambda key: Block(config, dim, rngs=nnx.Rngs(key)))(keys)

    def __call__(self, x: jax.Array) -> jax.Array:
        """`[batch, freq, time, chan]`, half as many rows and frames unless first."""
        if hasattr(self, "downsample"):
            x = self.downsample(self.downsample_norm(x))

        def run(x: jax.Array, block: Block) -> tuple[jax.Array, None]:
            return block(x), None

        if self.rematerialise:
            run = jax.checkpoint(run, prevent_cse=False)  # in a scan nothing is merged
        return jax.lax.scan(run, x, self.blocks)[0]


class ConvNeXt(nnx.Module):
    """A ConvNeXt classifier of spectrograms.

    Attributes:
      config: its shape.
      norm: the LayerNorm between pooling and head, scale and bias `[chan]`.
      head: the linear layer, kernel `[chan, classes]`, bias `[classes]`; absent where
        there are no classes.
    """

    def __init__(self, config: ConvNeXtConfig, *, rngs: nnx.Rngs):
        self.config = config
        first = config.dims[0]
        self.stem = _patches(config.in_channels, first, config.patch_size, rngs)
        self.stem_norm = _layer_norm(first, config.norm_epsilon, rngs)
        self.stages = nnx.List(
            [Stage(config, index, rngs=rngs) for index in range(len(config.depths))]
        )
        self.norm = _layer_norm(config.dims[-1], config.head_norm_epsilon, rngs)
        if config.num_classes:
            self.head = nnx.Linear(
                config.dims[-1],
                config.num_classes,
                kernel_init=_kernel_init,
                precision=PRECISION,
                rngs=rngs,
            )

    @property
    def stride(self) -> int:
        """Spectrogram rows, and frames, that one cell of the map covers."""
        return self.config.stride

    def embed(self, spectrogram: Float[Array, "batch freq time"]) -> jax.Array:
        """The stem's patches, `[batch, freq // patch_size, time // patch_size, chan]`.

        Args:
          spectrogram: `[batch, freq, time]`, at least `stride` rows and frames. Rows
            and frames beyond a multiple of the stride reach no cell, as in torch.

        Raises:
          ValueError: fewer rows or frames than the stride.
        """
        if min(spectrogram.shape[1:]) < self.stride:
            raise ValueError(
                f"spectrogram [batch, freq, time] needs at least {self.stride} rows "
                f"and frames, got {spectrogram.shape}"
            )
        planes = (*spectrogram.shape, self.config.in_channels)
        return self.stem_norm(
            self.stem(jnp.broadcast_to(spectrogram[..., None], planes))
        )

    def body(self, spectrogram: Float[Array, "batch freq time"]) -> jax.Array:
        """The map before pooling and before the last norm, `[batch, F, T, chan]`."""
        x = self.embed(spectrogram)
        for stage in self.stages:
            x = stage(x)
        return x

    def fold(self, body: Float[Array, "batch freq time chan"]) -> jax.Array:
        """`body`'s map with the norm after pooling moved in front of it."""
        return classifier.fold_layer_norm(
            body,
            jnp.asarray(self.norm.scale),
            jnp.asarray(self.norm.bias),
            epsilon=self.config.head_norm_epsilon,
        )

    def logits(self, body: Float[Array, "batch freq time chan"]) -> jax.Array:
        """`body`'s map pooled, normalised and through the head, `[batch, classes]`."""
        return self.head(self.norm(classifier.pool(body)))

    def feature_map(self, spectrogram: Float[Array, "batch freq time"]) -> jax.Array:
        """`[batch, F, T, chan]` whose mean goes straight into the head."""
        return self.fold(self.body(spectrogram))

    def __call__(self, spectrogram: Float[Array, "batch freq time"]) -> jax.Array:
        """The untouched network's logits, `[batch, classes]`."""
        return self.logits(self.body(spectrogram))


def forward(
    model: ConvNeXt, spectrogram: Float[Array, "batch freq time"]
) -> tuple[jax.Array, jax.Array]:
    """Folded map and the untouched network's logits from one pass of the body."""
    body = model.body(spectrogram)
    return model.fold(body), model.logits(body)


def as_classifier(
    model: ConvNeXt,
    class_names: Sequence[str],
    activation: classifier.Activation = "softmax",
) -> classifier.Classifier:
    """The network as the rest of the package sees it.

    Args:
      model: the network; it becomes the classifier's `params`.
      class_names: one name a class, in the order of the logits.
      activation: how its logits become probabilities.

    Returns:
      The classifier; `params` is an argument of everything jitted, never a constant.

    Raises:
      ValueError: not as many names as classes.
    """
    check_class_names(class_names, model.config.num_classes)
    return classifier.Classifier(
        params=model,
        head=classifier.LinearHead(
            weight=model.head.kernel[...].T, bias=jnp.asarray(model.head.bias)
        ),
        forward_fn=forward,
        class_names=tuple(class_names),
        stride=(model.stride, model.stride),
        activation=activation,
    )


def check_class_names(class_names: Sequence[str], num_classes: int) -> None:
    """Raises a ValueError unless there is one name a class."""
    if isinstance(class_names, str) or len(class_names) != num_classes:
        raise ValueError(
            f"class_names needs one name for each of {num_classes} classes, got "
            f"{len(class_names)}: {class_names!r:.200}"
        )


def restrict(model: ConvNeXt, classes: Sequence[int]) -> ConvNeXt:
    """The same network with some of its classes, whose logits stay what they were.

    Args:
      model: the network.
      classes: which, in the order wanted.

    Raises:
      ValueError: no classes, or one that the network does not have.
    """
    total = model.config.num_classes
    if not len(classes) or not all(0 <= c < total for c in classes):
        raise ValueError(f"classes must be some of 0 to {total - 1}, got {classes!r}")
    arrays = named_arrays(model)
    for name in ("head.kernel", "head.bias"):
        arrays[name] = arrays[name][..., jnp.asarray(classes)]
    config = dataclasses.replace(model.config, num_classes=len(classes))
    return from_named_arrays(config, arrays)


def continued(config: ConvNeXtConfig, other: ConvNeXt, key: Key[Array, ""]) -> ConvNeXt:
    """A new network that goes on from another's weights, as far as they fit.

    The head of other classes, or of a network without one, and the kernel of a stem
    with other input channels begin anew: kernels from a normal distribution of
    deviation 0.02, biases at zero, as transformers does with mismatched sizes. The
    stem's bias stays.

    Args:
      config: of the new network.
      other: of the same depths and dims.
      key: of what begins anew.

    Raises:
      ValueError: of others.
    """
    mine, theirs = config, other.config
    if (mine.depths, mine.dims) != (theirs.depths, theirs.dims):
        raise ValueError(
            f"a network of depths {theirs.depths} and dims {theirs.dims} cannot go on "
            f"as one of {mine.depths} and {mine.dims}"
        )
    shapes = named_arrays(abstract(config))
    found = named_arrays(other)
    arrays = {}
    for number, (name, wanted) in enumerate(shapes.items()):
        if name in found and found[name].shape == wanted.shape:
            arrays[name] = found[name]
        elif name.endswith("bias"):
            arrays[name] = jnp.zeros(wanted.shape)
        else:
            own_key = jax.random.fold_in(key, number)
            arrays[name] = 0.02 * jax.random.normal(own_key, wanted.shape)
    return from_named_arrays(config, arrays)


def rounded(model: ConvNeXt, dtype: str) -> ConvNeXt:
    """The network with the factors of its blocks' products in another precision.

    In bfloat16 both factors are rounded to eight significant bits, and sums, norms,
    GELU, the residual stream, the folded norm and the head stay float32. A gradient
    passes through, to weights in float32.

    Args:
      model: a network in float32.
      dtype: "bfloat16", or "float32", which gives it back as it is.

    Raises:
      ValueError: no such dtype.
    """
    if dtype not in get_args(MatmulDtype):
        raise ValueError(
            f"matmul dtype is one of {', '.join(get_args(MatmulDtype))}, got {dtype!r}"
        )
    if dtype == "float32":
        return model
    arrays = {
        name: array.astype(dtype) if name.endswith(_PRODUCTS) else array
        for name, array in named_arrays(model).items()
    }
    return from_named_arrays(model.config, arrays)


def rematerialised(model: ConvNeXt) -> ConvNeXt:
    """The same network, trained in less memory and more time.

    Its blocks run again in the backward pass instead of keeping what happened in them:
    a third more work, a fraction of the memory.
    """
    model = jax.tree.map(lambda array: array, model)
    for stage in model.stages:
        stage.rematerialise = True
    return model


def with_matmul_dtype(model: ConvNeXt, dtype: str) -> ConvNeXt:
    """`rounded`, kept so that it runs fast; for features only, it cannot be trained.

    That is what accelerators are made for; what it does to logits, purity and regions
    is in docs/decisions/0021.

    Args:
      model: a network in float32.
      dtype: "bfloat16" or "float32".

    Raises:
      ValueError: no such dtype.
    """
    small = rounded(model, dtype)
    if small is model:
        return model
    # As bits: XLA's loop over the blocks takes its slice of a bfloat16 array by way of
    # float32 on a CPU, three times as long as the product.
    arrays = {
        name: jax.lax.bitcast_convert_type(jnp.asarray(array), jnp.uint16)
        if array.dtype == jnp.bfloat16
        else array
        for name, array in named_arrays(small).items()
    }
    return from_named_arrays(model.config, arrays)


def named_arrays(model: nnx.Module) -> dict[str, Any]:
    """A network's arrays by name, `stages.0.blocks.norm.scale` for one.

    A stage's blocks are stacked: their arrays have a leading axis `[depth, ...]`.
    """
    paths = jax.tree_util.tree_leaves_with_path(model)
    # Every path ends in the Param's own attribute, which says nothing.
    return {
        jax.tree_util.keystr(path[:-1], simple=True, separator="."): array
        for path, array in paths
    }


@functools.cache  # it takes a second, and reading a checkpoint asks more than once
def abstract(config: ConvNeXtConfig) -> ConvNeXt:
    """A network of shapes and dtypes that holds no arrays; nobody may change it."""
    return jax.eval_shape(lambda: ConvNeXt(config, rngs=nnx.Rngs(0)))


def from_named_arrays(config: ConvNeXtConfig, arrays: Mapping[str, Any]) -> ConvNeXt:
    """The network with these arrays; the inverse of `named_arrays`.

    Raises:
      ValueError: an array is missing, left over or of another shape.
    """
    return fill(abstract(config), arrays)


def fill(empty: Network, arrays: Mapping[str, Any]) -> Network:
    """A network of shapes, with these arrays by the names of `named_arrays`.

    Raises:
      ValueError: an array is missing, left over or of another shape.
    """
    wanted = {name: leaf.shape for name, leaf in named_arrays(empty).items()}
    given = {name: array.shape for name, array in arrays.items()}
    if wanted != given:
        wrong = sorted(dict(wanted.items() ^ given.items()))
        name = type(empty).__name__
        raise ValueError(f"arrays do not fit this {name}: {', '.join(wrong)}")
    leaves = [jnp.asarray(arrays[name]) for name in wanted]
    return jax.tree.unflatten(jax.tree.structure(empty), leaves)


def _patches(before: int, after: int, size: int, rngs: nnx.Rngs) -> nnx.Conv:
    return nnx.Conv(
        before,
        after,
        kernel_size=(size, size),
        strides=size,
        padding="VALID",
        kernel_init=_kernel_init,
        precision=PRECISION,
        rngs=rngs,
    )


def _layer_norm(dim: int, epsilon: float, rngs: nnx.Rngs) -> nnx.LayerNorm:
    # The fast variance E[x^2] - E[x]^2 cancels where a map has a large mean.
    return nnx.LayerNorm(dim, epsilon=epsilon, use_fast_variance=False, rngs=rngs)


def _linear(layer: nnx.Linear, x: jax.Array) -> jax.Array:
    """The layer with its input in the kernel's precision and the sum in float32."""
    kernel = layer.kernel[...]
    if kernel.dtype == jnp.uint16:
        kernel = jax.lax.bitcast_convert_type(kernel, jnp.bfloat16)
    product = jax.lax.dot_general(
        x.astype(kernel.dtype),
        kernel,
        (((x.ndim - 1,), (0,)), ((), ())),
        precision=PRECISION,
        preferred_element_type=jnp.float32,
    )
    assert layer.bias is not None
    return product + _along(layer.bias, x)


def _gelu(x: jax.Array) -> jax.Array:
    # The exact GELU as torch computes it; jax.nn.gelu's erfc is twice as slow on a CPU.
    return 0.5 * x * (1 + jax.lax.erf(x * 0.5**0.5))


def _along(vector: nnx.Param, x: jax.Array) -> jax.Array:
    return vector[...].reshape((1,) * (x.ndim - 1) + (-1,))
