"""Where a prototype lies: the four schemes (Eqs. 5 to 11) and their regions.

In comes a feature map `[F, T, chan]`; out come the candidate vectors a scheme
chooses among, the location it chooses for a direction, and that location as a
region of the spectrogram. The functions are unbatched: callers `jax.vmap` them.

A scheme looks at one or two *tables* of candidates: all cells of the map (square),
its columns averaged over frequency (time), its rows averaged over time (frequency),
or columns and rows (time-frequency). With `Zhat = U (Z - mu)` everything is linear,
so a location needs one row of U and a prototype one product with U; the transformed
map itself is never formed.
"""

from __future__ import annotations

import dataclasses
from typing import Literal, get_args

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

Scheme = Literal["square", "time", "frequency", "time_frequency"]
SCHEMES: tuple[Scheme, ...] = get_args(Scheme)

# The (row, column) of a location along an axis on which the scheme fixes nothing.
ALL = -1


def parse(name: str) -> Scheme:
    """The scheme called `name`; `time-frequency` is accepted too.

    Raises:
      ValueError: there is no such scheme.
    """
    scheme = name.replace("-", "_")
    if scheme not in SCHEMES:
        raise _unknown(name)
    return scheme


def _unknown(name: str) -> ValueError:
    return ValueError(f"scheme must be one of {', '.join(SCHEMES)}; got {name!r}")


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True, kw_only=True)
class Views:
    """The averages of a feature map that schemes look at.

    Attributes:
      rows: mean over time, `[*batch, F, chan]`.
      columns: mean over frequency, `[*batch, T, chan]`.
      cells: the map itself, `[*batch, F, T, chan]`; None where only the marginals
        are kept, which is all that the three marginal schemes need.
    """

    rows: jax.Array | np.ndarray
    columns: jax.Array | np.ndarray
    cells: jax.Array | np.ndarray | None = None


def views(
    feature_map: Float[Array, "*batch freq time chan"], *, keep_cells: bool
) -> Views:
    """The marginals of a feature map, and the map where `keep_cells`; float32."""
    return Views(
        rows=jnp.mean(feature_map, axis=-2, dtype=jnp.float32),
        columns=jnp.mean(feature_map, axis=-3, dtype=jnp.float32),
        cells=feature_map.astype(jnp.float32) if keep_cells else None,
    )


def needs_cells(scheme: Scheme) -> bool:
    """Whether the scheme looks at single cells, not only at marginals."""
    return scheme == "square"


def _argmax(table: jax.Array | np.ndarray, direction: jax.Array) -> jax.Array:
    scores = jnp.matmul(table, direction, precision=jax.lax.Precision.HIGHEST)
    return jnp.argmax(scores).astype(jnp.int32)  # ties: the lowest index


def locate(
    scheme: Scheme, views: Views, direction: Float[Array, " chan"]
) -> Int[Array, "2"]:
    """The cell, column, row or both where a channel is largest. Unbatched.

    `argmax over (f, t) of U[k] . Z[f, t]` for square, and likewise over the columns
    or rows for the others. The centre `mu` shifts every candidate alike and cannot
    change the argmax.

    Args:
      scheme: one of the four.
      views: of one clip.
      direction: the channel's row of U, `[chan]`.

    Returns:
      `(row, column)` of the map; `ALL` (-1) along an axis the scheme leaves open.
      Ties go to the lowest index, row first.
    """
    everywhere = jnp.int32(ALL)
    match scheme:
        case "square":
            cells = _cells(views)
            best = _argmax(cells.reshape(-1, cells.shape[-1]), direction)
            row, column = jnp.divmod(best, cells.shape[1])
        case "time":
            row, column = everywhere, _argmax(views.columns, direction)
        case "frequency":
            row, column = _argmax(views.rows, direction), everywhere
        case "time_frequency":
            row = _argmax(views.rows, direction)
            column = _argmax(views.columns, direction)
        case _:
            raise _unknown(scheme)
    return jnp.stack([row, column])


def vector(
    scheme: Scheme, views: Views, location: Int[Array, "2"]
) -> Float[Array, " chan"]:
    """The map's vector at a location, before U (Eqs. 5 to 11). Unbatched.

    The prototype vector is `p = U (vector - mu)`: U commutes with every average.
    """
    row, column = location[0], location[1]
    match scheme:
        case "square":
            return _cells(views)[row, column]
        case "time":
            return jnp.asarray(views.columns)[column]
        case "frequency":
            return jnp.asarray(views.rows)[row]
        case "time_frequency":
            columns, rows = jnp.asarray(views.columns), jnp.asarray(views.rows)
            return (columns[column] + rows[row]) / 2
    raise _unknown(scheme)


def candidates(scheme: Scheme, views: Views) -> tuple[jax.Array, ...]:
    """The tables that a scheme chooses among, chan last; `*batch` axes in front.

    Raises:
      ValueError: there is no such scheme, or views without the cells it needs.
    """
    match scheme:
        case "square":
            return (_cells(views),)
        case "time":
            return (jnp.asarray(views.columns),)
        case "frequency":
            return (jnp.asarray(views.rows),)
        case "time_frequency":
            return (jnp.asarray(views.columns), jnp.asarray(views.rows))
    raise _unknown(scheme)


def _cells(views: Views) -> jax.Array:
    if views.cells is None:
        raise ValueError(
            "the square scheme looks at single cells, but these features hold only "
            "row and column averages; build the cache with content='maps'"
        )
    return jnp.asarray(views.cells)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Box:
    """A rectangle of the spectrogram, half-open, in (fractional) pixels.

    Attributes:
      rows: first row and the row after the last, row 0 the lowest frequency.
      frames: first frame and the frame after the last.
    """

    rows: tuple[float, float]
    frames: tuple[float, float]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Grid:
    """How the cells of a feature map lie on the spectrogram.

    The one place that turns a location into pixels: what is drawn, masked and heard
    comes from here.

    Attributes:
      map_shape: `(F, T)`.
      input_shape: `(F_in, T_in)` of the spectrogram.
      cell: rows and frames a cell covers. With a network's stride the cells need not
        reach the far edges; rows and frames beyond them belong to no cell.
    """

    map_shape: tuple[int, int]
    input_shape: tuple[int, int]
    cell: tuple[float, float]

    @classmethod
    def of(
        cls,
        map_shape: tuple[int, int],
        input_shape: tuple[int, int],
        stride: tuple[int, int] | None = None,
    ) -> Grid:
        """The grid of a network's stride; without one the cells divide evenly."""
        if stride is None:
            cell = (input_shape[0] / map_shape[0], input_shape[1] / map_shape[1])
        else:
            cell = (float(stride[0]), float(stride[1]))
        for axis, (n, size, step) in enumerate(
            zip(map_shape, input_shape, cell, strict=True)
        ):
            if n * step > size + 1e-6:
                raise ValueError(
                    f"{n} cells of {step:g} pixels do not fit into the {size} of the "
                    f"spectrogram's {('rows', 'frames')[axis]}: is the stride right?"
                )
        return cls(map_shape=map_shape, input_shape=input_shape, cell=cell)

    def boxes(self, scheme: Scheme, location: tuple[int, int]) -> tuple[Box, ...]:
        """The region as rectangles: one, or column and row for time-frequency."""
        row, column = (int(i) for i in location)
        rows = (row * self.cell[0], (row + 1) * self.cell[0])
        frames = (column * self.cell[1], (column + 1) * self.cell[1])
        all_rows = (0.0, float(self.input_shape[0]))
        all_frames = (0.0, float(self.input_shape[1]))
        match scheme:
            case "square":
                return (Box(rows=rows, frames=frames),)
            case "time":
                return (Box(rows=all_rows, frames=frames),)
            case "frequency":
                return (Box(rows=rows, frames=all_frames),)
            case "time_frequency":
                return (
                    Box(rows=all_rows, frames=frames),
                    Box(rows=rows, frames=all_frames),
                )
        raise _unknown(scheme)

    def mask(
        self,
        scheme: Scheme,
        location: Int[Array, "2"],
        *,
        blur: float = 0.0,
    ) -> Float[Array, "freq time"]:
        """The region's indicator on the spectrogram, in [0, 1]. Unbatched.

        Args:
          scheme: one of the four.
          location: from `locate`.
          blur: sigma of a Gaussian that softens the region's edges, as a share of a
            cell; 0 for the hard indicator. A region that touches the edge of the
            spectrogram is not softened there.

        Returns:
          `[F_in, T_in]`. A pixel belongs to a hard region if its centre does.
        """
        row, column = (
            _profile(index, n, step, size, blur)
            for index, n, step, size in zip(
                location, self.map_shape, self.cell, self.input_shape, strict=True
            )
        )
        row, column = row[:, None], column[None, :]
        ones = jnp.ones(self.input_shape)
        match scheme:
            case "square":
                return row * column
            case "time":
                return ones * column
            case "frequency":
                return row * ones
            case "time_frequency":
                # The union's indicator; blurring is linear and separable, so this
                # is exact for the soft region too.
                return row + column - row * column
        raise _unknown(scheme)

    def upsample(
        self, cells: Float[Array, "map_freq map_time"]
    ) -> Float[Array, "freq time"]:
        """A value a cell, bilinear with half-pixel centres, `[F_in, T_in]`. Unbatched.

        Pixels that belong to no cell did not reach the network: they get 0.
        """
        inside = tuple(
            min(size, round(n * step))
            for n, size, step in zip(
                self.map_shape, self.input_shape, self.cell, strict=True
            )
        )
        fine = jax.image.resize(cells, inside, method="bilinear")
        margin = [(0, n - m) for n, m in zip(self.input_shape, inside, strict=True)]
        return jnp.pad(fine, margin)

    def regions(self, scheme: Scheme) -> tuple[int, int]:
        """How many different regions there are along rows and along columns."""
        rows, columns = self.map_shape
        if scheme == "time":
            rows = 1
        elif scheme == "frequency":
            columns = 1
        return rows, columns

    def locations(self, scheme: Scheme) -> Int[np.ndarray, "location 2"]:
        """Every location of a scheme once, row by row; see `locate`."""
        rows, columns = self.map_shape
        along = (
            [ALL] if scheme == "time" else range(rows),
            [ALL] if scheme == "frequency" else range(columns),
        )
        return np.stack(np.meshgrid(*along, indexing="ij"), axis=-1).reshape(-1, 2)

    def random_location(self, key: jax.Array) -> Int[Array, "2"]:
        """A uniformly random cell: the control of the masking study. Unbatched."""
        return jax.random.randint(key, (2,), 0, np.array(self.map_shape))

    def other_location(
        self, key: jax.Array, scheme: Scheme, location: Int[Array, "2"]
    ) -> Int[Array, "2"]:
        """A uniformly random location of another region. Unbatched.

        Args:
          key: for the draw.
          scheme: decides which locations have the same region.
          location: from `locate`; what must not be drawn.

        Returns:
          `(row, column)`, 0 along an axis that the scheme leaves open; `location`'s
          own region where the map has no other.
        """
        rows, columns = self.regions(scheme)
        row, column = location * (location != ALL)
        # One to all but one steps on from its own, around the end.
        step = jax.random.randint(key, (), 1, rows * columns)
        other = (row * columns + column + step) % (rows * columns)
        return jnp.stack(jnp.divmod(other, columns))


def _profile(
    index: jax.Array, num: int, cell: float, size: int, blur: float
) -> jax.Array:
    """The interval of cell `index` of `num` along one axis, blurred, `[size]`."""
    # On the host in float64, as in `boxes`: in float32 a pixel whose centre lies on
    # an edge could fall into both cells or into none.
    edges = np.arange(num + 1) * cell
    reaches_end = edges[-1] >= size - 1e-3
    if blur == 0:
        first = np.ceil(edges - 0.5)  # the first pixel whose centre is past the edge
        if reaches_end:
            first[-1] = size
        low, high = jnp.asarray(first)[index], jnp.asarray(first)[index + 1]
        pixels = jnp.arange(size)
        return ((pixels >= low) & (pixels < high)).astype(jnp.float32)
    # Beyond the spectrogram the region goes on, so its edge there stays sharp.
    edges[0] = -np.inf
    if reaches_end:
        edges[-1] = np.inf
    low, high = jnp.asarray(edges)[index], jnp.asarray(edges)[index + 1]
    centres, sigma = jnp.arange(size) + 0.5, blur * cell
    cdf = jax.scipy.stats.norm.cdf
    return cdf(centres, low, sigma) - cdf(centres, high, sigma)
