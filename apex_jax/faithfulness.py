"""Does the network hang on what an explanation points at? Insertion and deletion.

In come a clip and the heat of an explanation; out come the class's probability while
the hottest pixels are silenced first, and while they are the first to be heard, with
the area below each curve (Petsiuk et al., "RISE", 2018). A good explanation has a small
deletion area and a large insertion area; what is good is said by comparison, with other
explanations of the same clip and with heat at random.
"""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from apex_jax import audio, disentangle, look, schemes
from apex_jax import classifier as classifier_lib


@dataclasses.dataclass(frozen=True, kw_only=True)
class Curves:
    """Probability of a class while a clip is silenced, and while it comes back.

    Attributes:
      share: of the pixels that are silenced, or heard, from 0 to 1, `[step]`.
      deletion: probability with the hottest `share` silenced, `[step]`.
      insertion: probability with the hottest `share` heard alone, `[step]`.
    """

    share: np.ndarray
    deletion: np.ndarray
    insertion: np.ndarray

    @property
    def deletion_area(self) -> float:
        """Below the curve, in [0, 1]; small where what was hot mattered."""
        return float(np.trapezoid(self.deletion, self.share))

    @property
    def insertion_area(self) -> float:
        """Below the curve, in [0, 1]; large where what was hot is enough."""
        return float(np.trapezoid(self.insertion, self.share))


def curves(
    classifier: classifier_lib.Classifier,
    front_end: audio.FrontEnd,
    spectrogram: Float[np.ndarray, "freq time"],
    heat: Float[np.ndarray, "rows frames"],
    target: int,
    *,
    steps: int = 16,
    chunk_size: int = 8,
    key: jax.Array | None = None,
    grid: schemes.Grid | None = None,
) -> Curves:
    """Insertion and deletion of one clip by one heat.

    Pixels of equal heat go in random order. Much of a heat can be equal, zeros above
    all: in a fixed order what lies early would be reached early, wherever the heat
    points.

    Args:
      classifier: the untouched network.
      front_end: tells what silence is in the spectrogram's units.
      spectrogram: of the clip.
      heat: where the explanation points, larger is more; any scale.
      target: the class whose probability is watched.
      steps: parts that the pixels are taken in, equally large but for one pixel.
      chunk_size: spectrograms in the network at a time.
      key: of the order of equal heat, the same for the same key; None for
        `jax.random.key(0)`.
      grid: whose cells stay together among equal heat: cell after cell in the order
        of a `random_heat`, pixels in random order only within one. So what a heat
        leaves open is silenced as heat at random is, and not as scattered pixels.
        None for pixel by pixel.

    Raises:
      ValueError: heat of another shape or not finite, a grid of another spectrogram,
        or fewer than one step.
    """
    if heat.shape != spectrogram.shape or not np.isfinite(heat).all():
        raise ValueError(
            f"heat must be finite and of the spectrogram's shape {spectrogram.shape}; "
            f"got {heat.shape}"
        )
    if grid is not None and grid.input_shape != heat.shape:
        raise ValueError(
            f"grid must be of the spectrogram's shape {heat.shape}; got "
            f"{grid.input_shape}"
        )
    if not 1 <= steps <= heat.size:
        raise ValueError(f"steps must be between 1 and {heat.size}; got {steps}")
    rank = np.empty(heat.size, int)
    rank[_order(heat, key, grid)] = np.arange(heat.size)
    counts = np.round(np.linspace(0, heat.size, steps + 1)).astype(int)
    hottest = (rank[None] < counts[:, None]).reshape(-1, *heat.shape)
    # The clip itself and silence are on both curves, and are looked at once.
    masks = np.concatenate([hottest, ~hottest[1:-1]]).astype(np.float32)
    probability: list[float] = []
    for first in range(0, len(masks), chunk_size):
        chunk = masks[first : first + chunk_size]
        left = audio.attenuate(
            front_end,
            jnp.broadcast_to(jnp.asarray(spectrogram), chunk.shape),
            jnp.asarray(chunk),
        )
        _, logits = look.run(classifier, list(np.asarray(left)), chunk_size)
        found = classifier_lib.probabilities(logits, classifier.activation)
        probability += found[: len(chunk), target].tolist()
    deletion, between = np.split(np.array(probability), [steps + 1])
    insertion = np.concatenate([deletion[-1:], between, deletion[:1]])
    return Curves(share=counts / heat.size, deletion=deletion, insertion=insertion)


def _order(
    heat: Float[np.ndarray, "rows frames"],
    key: jax.Array | None,
    grid: schemes.Grid | None,
) -> np.ndarray:
    """Positions of the pixels, the hottest first; see `curves` for equal ones."""
    of_cells, of_pixels = jax.random.split(jax.random.key(0) if key is None else key)
    pixels = np.asarray(jax.random.permutation(of_pixels, heat.size))
    together = np.zeros(heat.shape) if grid is None else random_heat(of_cells, grid)
    return np.lexsort((pixels, -together.ravel(), -heat.ravel()))


def region_heat(
    transform: disentangle.Transform,
    scheme: schemes.Scheme,
    views: schemes.Views,
    channel: int,
    grid: schemes.Grid,
) -> Float[np.ndarray, "freq time"]:
    """A channel's regions by rank, as heat on the spectrogram, `[F_in, T_in]`.

    The hottest region is the one that the scheme locates, the next its second choice,
    and so on: cells by `Zhat_k`, columns and rows by their averages; of
    time-frequency a pixel has the rank of its column or of its row, whichever is
    higher. Regions of equal value are equally hot, the first of them too: which comes
    first, `curves` decides.

    Args:
      transform: U, mu.
      scheme: where regions lie.
      views: of the clip.
      channel: k.
      grid: how the map lies on the spectrogram.
    """
    return _regions_by_rank(scheme, views, transform.matrix[channel], grid)


def region_heat_of_cells(
    scheme: schemes.Scheme,
    cells: Float[Array | np.ndarray, "map_freq map_time"],
    grid: schemes.Grid,
) -> Float[np.ndarray, "freq time"]:
    """`region_heat` of what has a value a cell and no channels, `[F_in, T_in]`.

    Args:
      scheme: where regions lie; columns and rows by their averages of the cells.
      cells: larger is more.
      grid: how the cells lie on the spectrogram.
    """
    views = schemes.views(jnp.asarray(cells)[:, :, None], keep_cells=True)
    return _regions_by_rank(scheme, views, jnp.ones(1), grid)


def _regions_by_rank(
    scheme: schemes.Scheme,
    views: schemes.Views,
    direction: Float[Array, " chan"],
    grid: schemes.Grid,
) -> Float[np.ndarray, "freq time"]:
    def ranked(table: np.ndarray | jax.Array) -> np.ndarray:
        """1 for the first choice, falling to nearly 0; the same for equal ones."""
        scores = np.asarray(
            jnp.matmul(jnp.asarray(table), direction, precision="highest")
        ).ravel()
        before = np.searchsorted(np.sort(-scores), -scores)
        return 1 - before / scores.size

    rows, columns = grid.map_shape
    shape = (rows, columns)
    match scheme:
        case "square":
            (cells,) = schemes.candidates(scheme, views)
            heat = ranked(cells).reshape(shape)
        case "time":
            heat = np.broadcast_to(ranked(views.columns)[None], shape)
        case "frequency":
            heat = np.broadcast_to(ranked(views.rows)[:, None], shape)
        case "time_frequency":
            heat = np.maximum(ranked(views.columns)[None], ranked(views.rows)[:, None])
        case _:
            raise ValueError(f"scheme must be one of the four; got {scheme!r}")
    return _nearest(heat, grid)


def random_heat(
    key: jax.Array, grid: schemes.Grid, scheme: schemes.Scheme = "square"
) -> Float[np.ndarray, "freq time"]:
    """Regions in random order: what an explanation has to beat, `[F_in, T_in]`.

    Args:
      key: of the order.
      grid: how maps lie on spectrograms.
      scheme: whose regions, cells by default; of time-frequency rows and columns, each
        in an order of its own, and a pixel has the higher rank of its two.
    """

    def order(key: jax.Array, shape: tuple[int, int]) -> np.ndarray:
        count = shape[0] * shape[1]
        rank = np.asarray(jax.random.permutation(key, count), float) + 1
        return (rank / count).reshape(shape)

    if scheme == "time_frequency":
        of_rows, of_columns = jax.random.split(key)
        heat = np.maximum(
            order(of_rows, grid.regions("frequency")),
            order(of_columns, grid.regions("time")),
        )
    else:
        heat = order(key, grid.regions(scheme))
    return _nearest(np.broadcast_to(heat, grid.map_shape), grid)


def _nearest(
    cells: Float[np.ndarray, "map_freq map_time"], grid: schemes.Grid
) -> Float[np.ndarray, "freq time"]:
    """A pixel has its cell's value; beyond the last cell 0."""
    heat = np.zeros(grid.input_shape)
    index = [
        ((np.arange(size) + 0.5) // step).astype(int)
        for size, step in zip(grid.input_shape, grid.cell, strict=True)
    ]
    inside = [np.flatnonzero(i < n) for i, n in zip(index, grid.map_shape, strict=True)]
    picked = np.ix_(index[0][inside[0]], index[1][inside[1]])
    heat[np.ix_(*inside)] = cells[picked]
    return heat


def paired_p(
    better: Float[Array | np.ndarray, " clip"],
    worse: Float[Array | np.ndarray, " clip"],
    *,
    resamples: int = 9999,
    seed: int = 0,
) -> float:
    """One-sided p of "`better` is no larger than `worse`", clip by clip.

    Signs of the differences are turned at random (`scipy.stats.permutation_test`).

    Args:
      better: a number a clip, say insertion areas by APEX.
      worse: of the same clips, say those by random heat.
      resamples: how many times.
      seed: of the signs.
    """
    import scipy.stats

    def mean_difference(x, y, axis):
        return np.mean(x - y, axis=axis)

    found = scipy.stats.permutation_test(
        (np.asarray(better, float), np.asarray(worse, float)),
        mean_difference,
        permutation_type="samples",
        alternative="greater",
        n_resamples=resamples,
        vectorized=True,
        rng=np.random.default_rng(seed),
    )
    return float(found.pvalue)
