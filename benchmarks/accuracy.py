"""Errors of the exponential in float32, ours and JAX's, against SciPy in float64.

python -m benchmarks.accuracy --chan 256
"""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import scipy.linalg
import tyro

from apex_jax import expm


def kinds(rng: np.random.Generator, chan: int) -> dict[str, np.ndarray]:
    """Matrices `[chan, chan]` that exponentials err on in different ways, by name."""
    gauss = rng.normal(size=(chan, chan))
    return {
        "general": gauss,
        "antisymmetric": gauss - gauss.T,
        "symmetric": gauss + gauss.T,
        "decaying": -gauss @ gauss.T,
        "non-normal": np.diag(np.full(chan - 1, 10.0), 1) + 0.1 * gauss,
        "nilpotent": np.triu(gauss, 1),
        "rank two": rng.normal(size=(chan, 2)) @ rng.normal(size=(2, chan)),
        "diagonal": np.diag(rng.uniform(-1, 1, chan)),
        "decaying diagonal": -np.diag(rng.uniform(0, 1, chan)),
        "heavy-tailed": rng.standard_t(2, size=(chan, chan)),
        "minus identity": -np.eye(chan) + 1e-3 * gauss,
        "shifted": 3 * np.eye(chan) + gauss,
    }


def of_norm(matrix: np.ndarray, norm: float) -> np.ndarray:
    """The matrix in float32, scaled to a 1-norm."""
    return (matrix * (norm / np.abs(matrix).sum(axis=0).max())).astype(np.float32)


def error_of(found: jax.Array, exact: np.ndarray) -> float:
    """The largest error as a share of the largest entry."""
    difference = np.asarray(found, np.float64) - exact
    return float(np.abs(difference).max() / np.abs(exact).max())


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config:
    """Prints the largest error over the draws, ours / JAX's, as Markdown."""

    chan: int = 256
    """Channels."""
    norms: tuple[float, ...] = (0.5, 5.0, 18.0, 50.0)
    """1-norms of the matrices."""
    draws: int = 3
    """Matrices of each kind and norm."""


def main(config: Config) -> None:
    """Measures and prints, a line a kind of matrix."""
    methods = jax.jit(expm.expm), jax.jit(jax.scipy.linalg.expm)
    print(f"| C = {config.chan} | {' | '.join(f'norm {n:g}' for n in config.norms)} |")
    print("| --- |" + " --- |" * len(config.norms))
    for kind in kinds(np.random.default_rng(0), 2):
        cells = []
        for norm in config.norms:
            errors = []
            for seed in range(config.draws):
                rng = np.random.default_rng(seed)
                matrix = of_norm(kinds(rng, config.chan)[kind], norm)
                exact = scipy.linalg.expm(matrix.astype(np.float64))
                given = jnp.asarray(matrix)
                errors.append([error_of(method(given), exact) for method in methods])
            ours, reference = np.max(errors, axis=0)
            cells.append(f"{ours:.1e} / {reference:.1e}")
        print(f"| {kind} | {' | '.join(cells)} |", flush=True)


if __name__ == "__main__":
    main(tyro.cli(Config, description=__doc__))
