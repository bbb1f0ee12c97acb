"""Fitting APEX to a classifier: U, the audit, the banks (method, sections 2 to 6).

In come a classifier and the cached features of its training clips; out comes an
`Explainer` of which it is known that it changes no prediction on those clips.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

import jax
from jax.sharding import Mesh

from apex_jax import audio, bank, cache, disentangle, explain, optimize, schemes
from apex_jax import classifier as classifier_lib
from apex_jax import mesh as mesh_lib


@dataclasses.dataclass(frozen=True, kw_only=True)
class Fit:
    """What fitting gives.

    Attributes:
      explainer: ready to explain clips, or to be saved.
      history: how purity grew.
      audit: of the training clips; passed.
    """

    explainer: explain.Explainer
    history: optimize.History
    audit: disentangle.Audit


def explainer(
    key: jax.Array,
    classifier: classifier_lib.Classifier,
    cached: cache.Cached,
    front_end: audio.FrontEnd,
    scheme: schemes.Scheme,
    *,
    config: optimize.Config | None = None,
    base: disentangle.Transform | None = None,
    mesh: Mesh | None = None,
    on_epoch: Callable[[int, float], None] = lambda epoch, purity: None,
) -> Fit:
    """Learns U, audits it, and builds the positive and negative banks.

    Args:
      key: for the order of the pairs.
      classifier: the network to explain; it is not changed.
      cached: features of its training clips, with cells for the square scheme.
      front_end: settings of the spectrogram that the features were made with.
      scheme: where prototypes lie.
      config: of the optimisation; None for the paper's.
      base: fixed coordinates in which to learn A; None for the channels as they are,
        which is the paper's way.
      mesh: devices; None for all.
      on_epoch: called with the number of epochs done and the epoch's mean purity.

    Raises:
      InvarianceError: the transformed classifier does not give the same predictions.
      ValueError: see `optimize.fit`.
    """
    config = optimize.Config() if config is None else config
    mesh = mesh_lib.make() if mesh is None else mesh
    features = cached.features.to_mesh(mesh)
    coordinates = features if base is None else features.moved(base)
    generator, history = optimize.fit(
        key, coordinates, scheme, config=config, mesh=mesh, on_epoch=on_epoch
    )
    transform = disentangle.from_generator(generator, base)
    audit = disentangle.audit(
        transform, classifier.head, cached.features.pooled, cached.features.logits
    ).check()

    def build(sign: bank.Sign) -> bank.Bank:
        return bank.build(
            transform,
            features,
            scheme=scheme,
            num_prototypes=config.prototypes_end,
            sign=sign,
            mesh=mesh,
        )

    return Fit(
        explainer=explain.Explainer(
            classifier=classifier,
            transform=transform,
            positive=build("positive"),
            negative=build("negative"),
            clips=cached.clips,
            front_end=front_end,
        ),
        history=history,
        audit=audit,
    )
