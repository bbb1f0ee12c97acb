"""Learning A so that channels become pure (the paper's schedule).

In come the cached features of the training clips and a scheme; out comes the
generator A and how purity grew. The backbone is never run: a step needs, for each
(channel, clip) pair of the batch, one row of U to find the location and one product
with U for the prototype vector.

An epoch is one compiled program. A round picks the prototype clips, then trains on
them for a few epochs; their number falls from round to round without recompiling.
"""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import Mesh
from jaxtyping import Array, Float, Int

from apex_jax import bank, disentangle, evidence, purity, resume, schemes, settings
from apex_jax import classifier as classifier_lib
from apex_jax import features as features_lib
from apex_jax import mesh as mesh_lib

Config = settings.Optimisation


@dataclasses.dataclass(frozen=True, kw_only=True)
class History:
    """How purity grew.

    Attributes:
      epoch_purity: mean over the pairs trained on, while training, one an epoch.
      epoch_prototypes: prototypes a channel in that epoch.
      round_purity: mean over each channel's `prototypes_end` strongest clips at the
        start of each round, and after the last: comparable from start to end.
      round_epochs: epochs done at each of these.
      round_prototypes: prototypes a channel that `round_purity` is over.
    """

    epoch_purity: list[float]
    epoch_prototypes: list[int]
    round_purity: list[float]
    round_epochs: list[int]
    round_prototypes: int


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True, kw_only=True)
class Evidence:
    """What the concentration term of the loss needs of the clips.

    Attributes:
      head: whose contributions are to be concentrated, in the features' coordinates.
      pooled: `[clip, chan]`, spread over the mesh and padded.
      predicted: class of each clip, `[clip]`, alike.
      num_clips: clips that are not padding.
    """

    head: classifier_lib.LinearHead
    pooled: jax.Array
    predicted: jax.Array
    num_clips: int = dataclasses.field(metadata={"static": True})


def constrained(
    generator: Float[Array, "chan chan"], transform: settings.Family
) -> Float[Array, "chan chan"]:
    """A of the family that U may be of: antisymmetric for an orthogonal U."""
    if transform == "orthogonal":
        return disentangle.antisymmetric(generator)
    return generator


@functools.partial(
    jax.jit,
    static_argnames=("config", "scheme", "mesh"),
    donate_argnames=("generator", "state"),
)
def run_epoch(
    key: jax.Array,
    generator: Float[Array, "chan chan"],
    state: optax.OptState,
    views: schemes.Views,
    clips: Int[Array, "chan top"],
    num_prototypes: Int[Array, ""],
    *,
    config: Config,
    scheme: schemes.Scheme,
    mesh: Mesh,
    concentrate: Evidence | None = None,
) -> tuple[jax.Array, optax.OptState, jax.Array]:
    """Every (channel, prototype) pair once, in random order, in batches.

    Args:
      key: for the order.
      generator: A; donated.
      state: of `config.optimiser()`; donated.
      views: of the training clips, spread over `mesh`.
      clips: prototype clips of each channel, strongest first, for the largest number
        of prototypes in the schedule.
      num_prototypes: how many of them count now. An array, so that a new number
        does not compile anew.
      config: optimiser and batch size.
      scheme: where prototypes lie.
      mesh: where `views` live.
      concentrate: of the training clips, for the loss's second term, which is over as
        many clips a step as there are pairs, drawn at random; None leaves it out.

    Returns:
      A, optimiser state, and the mean purity of the pairs while they were trained on.
    """
    chan, top = clips.shape
    optimiser = config.optimiser()
    batch_size = min(config.batch_size, chan * top)
    total = chan * num_prototypes

    # A random order in which the pairs that count come first.
    counts = jnp.tile(jnp.arange(top) < num_prototypes, chan)
    order = jnp.argsort(jnp.where(counts, jax.random.uniform(key, (chan * top,)), 2.0))
    order = jnp.pad(order, (0, -order.size % batch_size))
    channels, clips = order // top, clips.reshape(-1)[order]
    drawn, head, of_clips = jnp.zeros_like(channels), None, None
    if concentrate is not None:
        head, of_clips = concentrate.head, (concentrate.pooled, concentrate.predicted)
        drawn = jax.random.randint(
            jax.random.fold_in(key, 1), drawn.shape, 0, concentrate.num_clips
        )

    def exponential(generator):
        generator = constrained(generator, config.transform)
        return disentangle.exponential(generator, config.exponential)

    def on_device(
        generator, state, views, channels, clips, total, drawn, head, of_clips
    ):
        def step(number, carry):
            generator, state, purity_sum = carry
            start = number * batch_size
            channel, clip = (
                jax.lax.dynamic_slice_in_dim(a, start, batch_size)
                for a in (channels, clips)
            )
            counts = (start + jnp.arange(batch_size) < total).astype(jnp.float32)

            matrix, pull_back = jax.vjp(exponential, generator)
            # The location is a constant of the step: only `vector` meets U below.
            _, vector = bank.prototype_vectors(scheme, views, matrix[channel], clip)

            def loss_of(matrix):
                prototype = jnp.matmul(vector, matrix.T, precision=disentangle.HIGHEST)
                impurity = purity.loss(prototype, channel, counts)
                if concentrate is None:
                    return impurity, impurity
                some = jax.lax.dynamic_slice_in_dim(drawn, start, batch_size)
                pooled, predicted = of_clips
                term = mean_concentration(
                    head, pooled, predicted, some, matrix, config.transform
                )
                return impurity - config.concentration * term, impurity

            (loss, impurity), gradient = jax.value_and_grad(loss_of, has_aux=True)(
                matrix
            )
            (gradient,) = pull_back(gradient)

            # For a line search; whoever takes steps without one leaves them out.
            def value_fn(generator):
                return loss_of(exponential(generator))[0]

            updates, state = optimiser.update(
                gradient, state, generator, value=loss, grad=gradient, value_fn=value_fn
            )
            generator = optax.apply_updates(generator, updates)
            return generator, state, purity_sum - impurity * jnp.sum(counts)

        steps = -(-total // batch_size)
        start = (generator, state, jnp.float32(0))
        generator, state, purity_sum = jax.lax.fori_loop(0, steps, step, start)
        return generator, state, purity_sum / total

    # Every device takes the same step: the exponential, which cannot be split over
    # pairs, is most of the work. Only the clips are spread.
    copy, spread = mesh_lib.COPY, mesh_lib.CLIPS
    return jax.shard_map(
        on_device,
        mesh=mesh,
        in_specs=(copy, copy, spread, copy, copy, copy, copy, copy, spread),
        out_specs=copy,
    )(generator, state, views, channels, clips, total, drawn, head, of_clips)


def compensated(
    head: classifier_lib.LinearHead,
    matrix: Float[Array, "chan chan"],
    transform: settings.Family,
) -> classifier_lib.LinearHead:
    """The head that takes U back, `W U^-1` (Eq. 4), of a family of U.

    By a solve for its few rows: `e^-A` would be a second exponential.
    """
    if transform == "orthogonal":
        weight = jnp.matmul(head.weight, matrix.T, precision=disentangle.HIGHEST)
    else:
        weight = jnp.linalg.solve(matrix.T, head.weight.T).T
    return dataclasses.replace(head, weight=weight)


def mean_concentration(
    head: classifier_lib.LinearHead,
    pooled: Float[Array, "clip chan"],
    predicted: Int[Array, " clip"],
    drawn: Int[Array, " some"],
    matrix: Float[Array, "chan chan"],
    transform: settings.Family,
) -> Float[Array, ""]:
    """The mean over the drawn clips of how concentrated their evidence is.

    That is `evidence.concentration` for a clip's predicted class, by the `compensated`
    head: of all classes, or where these are more than the clips, of each clip's own.

    For use inside `jax.shard_map`, see `bank.prototype_vectors`.
    """
    num_local = len(pooled)
    local = drawn - jax.lax.axis_index(mesh_lib.AXIS) * num_local
    owned = (local >= 0) & (local < num_local)
    at = jnp.clip(local, 0, num_local - 1)
    mine = (
        jnp.where(owned[:, None], pooled[at], 0.0),
        jnp.where(owned, predicted[at], 0),
    )
    vectors, targets = jax.lax.psum(mine, mesh_lib.AXIS)
    if len(head.bias) > len(targets):
        head = dataclasses.replace(
            head, weight=head.weight[targets], bias=head.bias[targets]
        )
        targets = jnp.arange(len(targets))
    head = compensated(head, matrix, transform)
    moved = jnp.matmul(vectors, matrix.T, precision=disentangle.HIGHEST)
    each = jax.vmap(evidence.concentration, in_axes=(None, 0, 0))
    return jnp.mean(each(head, moved, targets))


def fit(
    key: jax.Array,
    features: features_lib.Features,
    scheme: schemes.Scheme,
    *,
    config: Config | None = None,
    head: classifier_lib.LinearHead | None = None,
    mesh: Mesh | None = None,
    saver: resume.Saver | None = None,
    on_epoch: Callable[[int, float], None] = lambda epoch, purity: None,
) -> tuple[Float[Array, "chan chan"], History]:
    """Learns A by making each channel's prototypes pure (method, section 4).

    Args:
      key: for the order of the pairs.
      features: of the training clips; spread over the mesh here if they are not yet.
      scheme: where prototypes lie.
      config: schedule and optimiser; None for the paper's.
      head: whose evidence a `concentration` above 0 is about, in the coordinates of
        the features: the contrastive one under softmax.
      mesh: devices; None for all of them.
      saver: keeps the state between epochs, and gives that of an interrupted call, from
        which this one goes on to the same A; None keeps nothing.
      on_epoch: called with the number of epochs done and the epoch's mean purity, also
        for those that the interrupted call had done.

    Returns:
      A `[chan, chan]`, on every host, and how purity grew. With A = 0 as the start, U
      starts at the identity.

    Raises:
      ValueError: a setting that cannot work, no clips, or features without the
        cells that the square scheme needs.
      InvarianceError: A left the range in which its exponential is finite.
    """
    config = Config() if config is None else config
    config.check()
    if features.num_clips < 1:
        raise ValueError("features must hold at least one clip; got none")
    if config.concentration > 0 and head is None:
        raise ValueError("concentration above 0 needs the head whose evidence it is")
    mesh = mesh_lib.make() if mesh is None else mesh
    features = features.to_mesh(mesh)
    chan = features.pooled.shape[-1]

    generator = jnp.zeros((chan, chan))
    # Copies: what is donated must not be there twice, as L-BFGS starts with A itself.
    state = jax.tree.map(jnp.copy, config.optimiser().init(generator))
    generator, state = mesh_lib.replicate((generator, state), mesh)
    schedule = [min(n, features.num_clips) for n in config.schedule()]
    concentrate = None
    if config.concentration > 0 and head is not None:
        predicted = np.argmax(np.asarray(features.logits), axis=1).astype(np.int32)
        concentrate = Evidence(
            head=mesh_lib.replicate(head, mesh),
            pooled=jnp.asarray(features.pooled),
            predicted=mesh_lib.shard(predicted, mesh),
            num_clips=features.num_clips,
        )
    history = History(
        epoch_purity=[],
        epoch_prototypes=[],
        round_purity=[],
        round_epochs=[],
        round_prototypes=min(config.prototypes_end, features.num_clips),
    )

    def choose() -> jax.Array:
        """This round's prototypes; notes the purity of the strongest."""
        transform = disentangle.from_generator(
            constrained(generator, config.transform), method=config.exponential
        )
        clips, _ = bank.top_clips(
            transform,
            features.pooled,
            num=schedule[0],
            num_clips=features.num_clips,
            mesh=mesh,
        )
        _, score = bank.measure(
            transform,
            features.views,
            clips[:, : config.prototypes_end],
            scheme=scheme,
            mesh=mesh,
        )
        history.round_purity.append(float(score.mean()))
        history.round_epochs.append(len(history.epoch_purity))
        return clips

    done, clips = 0, jnp.zeros((chan, schedule[0]), jnp.int32)
    saver = resume.Saver(None, dict) if saver is None else saver
    if found := saver.load((generator, state, clips)):
        done, tree, told = found
        generator, state, clips = mesh_lib.replicate(tree, mesh)
        history = History(**told)
        for epoch, mean_purity in enumerate(history.epoch_purity, start=1):
            on_epoch(epoch, mean_purity)
    for epoch in range(done, config.epochs):
        round_number, first = divmod(epoch, config.epochs_per_round)
        if first == 0:
            clips = choose()
        generator, state, mean_purity = run_epoch(
            jax.random.fold_in(key, epoch),
            generator,
            state,
            features.views,
            clips,
            mesh_lib.replicate(jnp.int32(schedule[round_number]), mesh),
            config=config,
            scheme=scheme,
            mesh=mesh,
            concentrate=concentrate,
        )
        history.epoch_purity.append(float(mean_purity))
        if not math.isfinite(history.epoch_purity[-1]):
            choose()  # says what is wrong with A
            raise ValueError(f"the mean purity is not finite in epoch {epoch + 1}")
        history.epoch_prototypes.append(schedule[round_number])
        if saver.due():
            told = dataclasses.asdict(history)
            saver.save(epoch + 1, mesh_lib.to_host((generator, state, clips)), told)
        on_epoch(epoch + 1, history.epoch_purity[-1])
    choose()
    return mesh_lib.to_host(constrained(generator, config.transform)), history
