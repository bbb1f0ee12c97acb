"""The invertible transform of the channels and the head that undoes it (Eqs. 2 to 4).

In comes the generator A `[chan, chan]`; out come `U = expm(A)`, its inverse, the head
that gives the same logits from the transformed channels, and the audit that measures
whether it really does.

The transform is affine, `Zhat = U (Z - mu)`: the paper has `mu = 0`. A fixed change of
coordinates before `expm(A)` composes into the same three arrays, so nothing
downstream knows whether there was one.
"""

from __future__ import annotations

import dataclasses
import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from apex_jax import causes, expm, settings
from apex_jax import classifier as classifier_lib

# How the exponential is computed: from products alone, or by JAX's own function.
Method = settings.Exponential

HIGHEST = jax.lax.Precision.HIGHEST

# Clips whose logits are compared at a time, in float64 on the host.
CHUNK_CLIPS = 4096

# Largest entry of U U^-1 - 1: float32 keeps it up to condition numbers of about 1e5.
LARGEST_INVERSE_ERROR = 1e-2


class InvarianceError(ValueError):
    """The transformed classifier does not reproduce the original's predictions."""


class UntrainedError(InvarianceError):
    """The classifier answers nearly the same for every clip: nothing to reproduce."""


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True, kw_only=True)
class Transform:
    """`Zhat = matrix (Z - centre)`, and the way back.

    Attributes:
      matrix: U, `[chan, chan]`.
      inverse: U^-1, `[chan, chan]`.
      centre: mu, `[chan]`.
    """

    matrix: jax.Array
    inverse: jax.Array
    centre: jax.Array

    def __call__(
        self, vectors: Float[Array | np.ndarray, "*batch chan"]
    ) -> Float[Array, "*batch chan"]:
        """Transforms vectors of the feature map, or any averages of them."""
        centre = self.centre.reshape((1,) * (vectors.ndim - 1) + (-1,))
        return jnp.matmul(vectors - centre, self.matrix.T, precision=HIGHEST)

    def compensate(self, head: classifier_lib.LinearHead) -> classifier_lib.LinearHead:
        """The head that gives the same logits from transformed channels (Eq. 4).

        `W Z + b = (W U^-1) Zhat + (b + W mu)`.
        """
        return classifier_lib.LinearHead(
            weight=jnp.matmul(head.weight, self.inverse, precision=HIGHEST),
            bias=head.bias + jnp.matmul(head.weight, self.centre, precision=HIGHEST),
        )


def check(transform: Transform, head: classifier_lib.LinearHead) -> None:
    """Raises unless U, U^-1 and mu fit the head and undo one another.

    What can be said of a transform without a clip; `audit` says the rest.

    Raises:
      ValueError: a shape that does not fit.
      InvarianceError: NaN or infinity, or U U^-1 is not the identity.
    """
    chan = head.weight.shape[-1]
    wanted = {"matrix": (chan, chan), "inverse": (chan, chan), "centre": (chan,)}
    for name, shape in wanted.items():
        array = np.asarray(getattr(transform, name))
        if array.shape != shape:
            raise ValueError(
                f"{name} of U must be {shape}, as the head has {chan} channels; got "
                f"{array.shape}"
            )
        if not np.isfinite(array).all():
            raise InvarianceError(f"{name} of U holds NaN or infinity; learn U again")
    matrix, inverse = (
        np.asarray(a, np.float64) for a in (transform.matrix, transform.inverse)
    )
    error = float(np.abs(matrix @ inverse - np.eye(chan)).max())
    if error > LARGEST_INVERSE_ERROR:
        raise InvarianceError(
            "U and its inverse do not undo one another: their product differs from the "
            f"identity by up to {error:.3g} (condition number of U "
            f"{np.linalg.cond(matrix):.3g}, about 100 is usual). Learn U again, at a "
            "lower learning rate if it is ill-conditioned."
        )


def identity(chan: int) -> Transform:
    """The transform that changes nothing: the raw channels."""
    eye = jnp.eye(chan)
    return Transform(matrix=eye, inverse=eye, centre=jnp.zeros(chan))


# Compiled: by itself, its loop would compile anew at every call.
@functools.partial(jax.jit, static_argnames=("method",))
def exponential(
    generator: Float[Array, "chan chan"], method: Method = "products"
) -> Float[Array, "chan chan"]:
    """`expm(A)` in float32 at the highest matmul precision (Eq. 2).

    Args:
      generator: A.
      method: "products" for `expm.expm`, "reference" for `jax.scipy.linalg.expm`.
    """
    if method == "products":
        return expm.expm(generator)
    # TF32 and bf16 passes, the default on accelerators, would break invariance.
    with jax.default_matmul_precision("highest"):
        return jax.scipy.linalg.expm(generator)


def antisymmetric(
    generator: Float[Array, "chan chan"],
) -> Float[Array, "chan chan"]:
    """The antisymmetric part of A, whose exponential is orthogonal, a rotation."""
    return (generator - generator.T) / 2


def from_generator(
    generator: Float[Array, "chan chan"],
    base: Transform | None = None,
    *,
    method: Method = "products",
) -> Transform:
    """`U = expm(A) P` around `mu`, with `P` and `mu` those of `base`.

    Args:
      generator: A.
      base: coordinates in which A was learned; None for the channels as they are.
      method: of `exponential`.

    Raises:
      InvarianceError: A is not finite or so large that its exponential is not.
    """
    base = identity(generator.shape[0]) if base is None else base
    forward, backward = (exponential(a, method) for a in (generator, -generator))
    transform = Transform(
        matrix=jnp.matmul(forward, base.matrix, precision=HIGHEST),
        inverse=jnp.matmul(base.inverse, backward, precision=HIGHEST),
        centre=base.centre,
    )
    if not all(bool(jnp.isfinite(leaf).all()) for leaf in jax.tree.leaves(transform)):
        norm = float(jnp.max(jnp.sum(jnp.abs(generator), axis=0)))
        size = f"{norm:.3g}, where 10 is usual" if math.isfinite(norm) else "not finite"
        limit = ""
        if method == "products" and norm > expm.LARGEST_NORM:
            limit = (
                f" That is beyond {expm.LARGEST_NORM:.0f}, the range of the "
                "exponential from products; 'reference' has none."
            )
        raise InvarianceError(
            "expm(A) or its inverse is not finite in float32; the largest column sum "
            f"of |A| is {size}.{limit} Lower the learning rate of the optimisation."
        )
    return transform


@dataclasses.dataclass(frozen=True, kw_only=True)
class Audit:
    """What the transform did to the logits of real clips.

    Attributes:
      num_clips: clips compared.
      max_abs_logit_error: largest `|yhat - y|`.
      mean_abs_logit_error: mean of it.
      changed_predictions: clips whose most likely class changed; where a clip can
        have several classes, clips of which a class came or went.
      near_ties: clips that are not among these because the network itself decided
        them within the resolution of float32, one way or the other.
      condition_number: of U, 2-norm.
      logit_spread: standard deviation of the logits within a class over clips, root
        mean square over classes: how far logits move from clip to clip.
      largest_logit: largest `|y|`.
      tolerance: largest allowed `max_abs_logit_error / logit_spread`.
      cause: where the audit failed, what made it fail and what helps, if the
        arithmetic tells; see `causes`.
    """

    num_clips: int
    max_abs_logit_error: float
    mean_abs_logit_error: float
    changed_predictions: int
    condition_number: float
    logit_spread: float
    largest_logit: float
    tolerance: float
    near_ties: int = 0
    cause: str = ""

    @property
    def allowed(self) -> float:
        """The largest `|yhat - y|` that passes."""
        # Where logits hardly differ from clip to clip, float32's own resolution of
        # them is the yardstick.
        resolution = float(_resolution(self.largest_logit))
        return max(self.tolerance * self.logit_spread, resolution)

    @property
    def passed(self) -> bool:
        """No prediction changed and the error is within tolerance."""
        within = self.max_abs_logit_error <= self.allowed
        return self.changed_predictions == 0 and within

    def check(self) -> Audit:
        """Returns itself, or raises.

        Raises:
          InvarianceError: the audit failed; says by how much and what to do. An
            UntrainedError where the classifier hardly tells the clips apart.
        """
        if self.passed:
            return self
        kind: type[InvarianceError] = InvarianceError
        finite = math.isfinite(self.max_abs_logit_error)
        if self.condition_number > 1e3 and finite and not self.cause:
            remedy = (
                f"U is ill-conditioned (condition number {self.condition_number:.3g}; "
                "about 100 is usual): lower the learning rate of the optimisation or "
                "stop earlier."
            )
        elif self.logit_spread < max(0.05, 0.01 * self.largest_logit) and finite:
            kind = UntrainedError
            remedy = (
                "The classifier itself hardly tells these clips apart: is it trained, "
                f"and is this the front end it was trained with? {self.cause}".rstrip()
            )
        else:
            remedy = self.cause or (
                f"U is well conditioned ({self.condition_number:.3g}) and the error is "
                "float32's own: the clips' features are far larger than what their "
                "logits differ by."
            )
        raise kind(
            "APEX must not change the classifier, but on "
            f"{self.num_clips} clips {self.changed_predictions} predictions changed "
            f"and logits moved by up to {self.max_abs_logit_error:.3g} (allowed: "
            f"{self.tolerance:g} x their spread of {self.logit_spread:.3g}). {remedy}"
        )


def _resolution(largest_logit: float | np.ndarray) -> float | np.ndarray:
    """What logits summed in float32 in another order differ by."""
    return 1e-5 * np.maximum(1.0, largest_logit)


def _moved(
    before: np.ndarray,
    after: np.ndarray,
    activation: classifier_lib.Activation,
) -> tuple[np.ndarray, np.ndarray]:
    """Clips decided otherwise, and those of them that were no tie before."""
    one, other = (classifier_lib.decisions(a, activation) for a in (before, after))
    moved = one != other
    if one.dtype == bool:  # signs
        margin = np.abs(before)
    else:
        chosen, instead = (np.take_along_axis(before, a, 1) for a in (one, other))
        margin = chosen - instead
    # By the clip's own logits: a large one elsewhere must not make ties here.
    tie = margin <= _resolution(np.abs(before).max(axis=1, keepdims=True))
    clear = moved & ~tie  # where a logit is NaN there is no tie
    return moved.any(axis=1), clear.any(axis=1)


def audit(
    transform: Transform,
    head: classifier_lib.LinearHead,
    pooled: Float[Array | np.ndarray, "clip chan"],
    logits: Float[Array | np.ndarray, "clip classes"],
    *,
    activation: classifier_lib.Activation = "softmax",
    tolerance: float = 1e-3,
) -> Audit:
    """Compares the transformed classifier with the untouched one on real clips.

    Args:
      transform: U, U^-1, mu.
      head: the original head.
      pooled: pooled feature maps.
      logits: what the untouched network itself said of the same clips.
      activation: how logits become decisions.
      tolerance: allowed error as a share of the logits' spread.
    """
    compensated = transform.compensate(head)
    logits, wanted = np.asarray(logits), (len(pooled), len(compensated.bias))
    if len(logits) == 0:
        raise ValueError("logits must hold at least one clip to audit; got none")
    if logits.shape != wanted:
        raise ValueError(
            "logits must be those of this head for these clips, [clip, classes] = "
            f"{wanted}; got {logits.shape}"
        )
    largest, total, squares, changed, ties = 0.0, 0.0, 0.0, 0, 0
    # By NumPy's maximum, which keeps NaN; of all at once would copy all.
    largest_logit = np.float64(0)
    worst = slice(0, CHUNK_CLIPS)
    with np.errstate(invalid="ignore"):
        mean = np.mean(logits, axis=0, dtype=np.float64)
        for first in range(0, len(logits), CHUNK_CLIPS):
            chunk = slice(first, first + CHUNK_CLIPS)
            transformed = transform(jnp.asarray(pooled[chunk]))
            after = np.asarray(compensated(transformed), np.float64)
            before = np.asarray(logits[chunk], np.float64)
            # A NaN or infinity anywhere must fail, not vanish in a comparison.
            error = np.nan_to_num(np.abs(after - before), nan=math.inf, posinf=math.inf)
            if float(error.max()) > largest:
                largest, worst = float(error.max()), chunk
            total += float(error.sum())
            squares += float(np.square(before - mean).sum())
            largest_logit = np.maximum(largest_logit, np.abs(before).max())
            moved, clear = _moved(before, after, activation)
            changed += int(clear.sum())
            ties += int((moved & ~clear).sum())
        spread = math.sqrt(squares / logits.size)
    matrix = np.asarray(transform.matrix, np.float64)
    found = Audit(
        num_clips=len(logits),
        max_abs_logit_error=largest,
        mean_abs_logit_error=total / logits.size,
        changed_predictions=changed,
        condition_number=(
            float(np.linalg.cond(matrix)) if np.isfinite(matrix).all() else math.inf
        ),
        logit_spread=spread,
        largest_logit=float(largest_logit),
        tolerance=tolerance,
        near_ties=ties,
    )
    if found.passed:
        return found
    cause = cause_of(transform, head, pooled[worst], logits[worst])
    return dataclasses.replace(found, cause=cause)


def cause_of(
    transform: Transform,
    head: classifier_lib.LinearHead,
    pooled: Float[Array | np.ndarray, "clip chan"],
    logits: Float[Array | np.ndarray, "clip classes"],
) -> str:
    """Why the transformed classifier does not give these logits; see `causes.find`."""
    path = causes.Path(
        *(np.asarray(a) for a in (transform.matrix, transform.inverse)),
        *(np.asarray(a) for a in (transform.centre, head.weight, head.bias)),
    )
    after = transform.compensate(head)(transform(jnp.asarray(pooled)))
    return causes.find(path, *(np.asarray(a) for a in (pooled, logits, after)))
