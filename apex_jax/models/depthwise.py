"""The depthwise convolution of ConvNeXt, each channel with a kernel of its own.

Between a block's input and its norm. XLA turns a grouped convolution on the CPU into
one small convolution a channel, 10 to 40 times slower than adding up the kernel's
shifted products, which fuse into one loop. That sum's automatic gradient in turn
writes every shifted copy to memory, so the gradient is written out here. Accelerators
have kernels for the grouped convolution and keep it.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

# Channels that the CPU works on at a time: so many kernels stay in its first cache.
GROUP_CHANNELS = 64


@jax.custom_vjp
def depthwise(
    x: Float[Array, "batch freq time chan"],
    kernel: Float[Array, "rows columns chan"],
) -> Float[Array, "batch freq time chan"]:
    """Correlates each channel with its kernel, zeros beyond the edges.

      y[f, t, c] = sum over i, j of x[f + i - rows // 2, t + j - columns // 2, c]
                                    * kernel[i, j, c]

    Args:
      x: `[batch, freq, time, chan]`.
      kernel: `[rows, columns, chan]`, rows and columns odd.

    Returns:
      `[batch, freq, time, chan]`.
    """
    return jax.lax.platform_dependent(x, kernel, cpu=shifted, default=grouped)


def _forward(x: jax.Array, kernel: jax.Array):
    return depthwise(x, kernel), (x, kernel)


def _backward(residuals: tuple[jax.Array, jax.Array], cotangent: jax.Array):
    # The choice of platform stays outside the differentiation: the gradient of
    # `platform_dependent` would carry both branches' intermediates.
    return jax.lax.platform_dependent(
        *residuals, cotangent, cpu=shifted_gradients, default=grouped_gradients
    )


depthwise.defvjp(_forward, _backward)


def shifted(x: jax.Array, kernel: jax.Array) -> jax.Array:
    """`depthwise` as a sum of shifted products, for the CPU."""
    rows, columns, chan = kernel.shape
    freq, time = x.shape[1:3]
    padded = _pad(x, kernel)
    width = max(w for w in range(1, GROUP_CHANNELS + 1) if chan % w == 0)

    # A loop also keeps XLA from fusing the sum into each of its readers: the norm that
    # follows would compute it three times; what a loop has written is only read.
    def group(number, out):
        start = number * width
        clip, weight = (
            jax.lax.dynamic_slice_in_dim(a, start, width, axis=-1)
            for a in (padded, kernel)
        )
        total = sum(
            sum(
                clip[:, i : i + freq, j : j + time] * weight[i, j][None, None, None]
                for j in range(columns)
            )
            for i in range(rows)
        )
        return jax.lax.dynamic_update_slice_in_dim(out, total, start, axis=-1)

    return jax.lax.fori_loop(0, chan // width, group, jnp.zeros_like(x))


def shifted_gradients(
    x: jax.Array, kernel: jax.Array, cotangent: jax.Array
) -> tuple[jax.Array, jax.Array]:
    """Gradients of `shifted`: the flipped kernel for x, a sum a tap for the kernel."""
    rows, columns, _ = kernel.shape
    padded = _pad(x, kernel)

    def tap(offset):
        window = jax.lax.dynamic_slice(
            padded, (0, offset // columns, offset % columns, 0), x.shape
        )
        return jnp.einsum("bftc,bftc->c", window, cotangent)

    # A loop, not one fused sum of 49 results: that one takes twice as long.
    taps = jax.lax.map(tap, jnp.arange(rows * columns))
    return shifted(cotangent, kernel[::-1, ::-1]), taps.reshape(kernel.shape)


def grouped(x: jax.Array, kernel: jax.Array) -> jax.Array:
    """`depthwise` as XLA's grouped convolution, for everything but the CPU."""
    return jax.lax.conv_general_dilated(
        x,
        kernel[:, :, None, :],
        window_strides=(1, 1),
        padding="SAME",
        dimension_numbers=("NHWC", "HWIO", "NHWC"),
        feature_group_count=x.shape[-1],
        precision=jax.lax.Precision.HIGHEST,  # as the network's other products
    )


def grouped_gradients(
    x: jax.Array, kernel: jax.Array, cotangent: jax.Array
) -> tuple[jax.Array, jax.Array]:
    """Gradients of `grouped`: the flipped kernel for x, a sum a tap for the kernel.

    The kernel's as a convolution takes three times as long on a GPU.
    """
    rows, columns, _ = kernel.shape
    freq, time = x.shape[1:3]
    padded = _pad(x, kernel)

    def row(first):
        window = jax.lax.dynamic_slice_in_dim(padded, first, freq, axis=1)
        taps = [
            jnp.sum(window[:, :, j : j + time] * cotangent, axis=(0, 1, 2))
            for j in range(columns)
        ]
        return jnp.stack(taps)

    taps = jax.lax.map(row, jnp.arange(rows))
    return grouped(cotangent, kernel[::-1, ::-1]), taps


def _pad(x: jax.Array, kernel: jax.Array) -> jax.Array:
    rows, columns = kernel.shape[0] // 2, kernel.shape[1] // 2
    return jnp.pad(x, ((0, 0), (rows, rows), (columns, columns), (0, 0)))
