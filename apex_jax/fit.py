"""Fitting APEX to a classifier: U, the audit, the banks (method, sections 2 to 6).

In come a classifier and the cached features of its training clips, or feature maps
that any framework computed; out comes an `Explainer` of which it is known that it
changes no prediction on those clips.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh
from jaxtyping import Array, Float

from apex_jax import (
    audio,
    bank,
    cache,
    checkpoint,
    data,
    disentangle,
    evidence,
    explain,
    explanation,
    gallery,
    look,
    optimize,
    precondition,
    resume,
    rounding,
    schemes,
)
from apex_jax import classifier as classifier_lib
from apex_jax import features as features_lib
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
    front_end: audio.FrontEnd | None,
    scheme: schemes.Scheme,
    *,
    config: optimize.Config | None = None,
    settings: Sequence[tuple[str, str]] = (),
    mesh: Mesh | None = None,
    state_dir: Path | None = None,
    on_epoch: Callable[[int, float], None] = lambda epoch, purity: None,
) -> Fit:
    """Learns U, audits it, and builds the positive, negative and raw banks.

    Args:
      key: for the order of the pairs.
      classifier: the network to explain; it is not changed.
      cached: features of its training clips, with cells for the square scheme.
      front_end: settings of the spectrogram that the features were made with.
      scheme: where prototypes lie.
      config: of the optimisation and the coordinates it starts from; None for
        `Config.recommended()`. `Config()` is the paper's.
      settings: names and values worth telling in a report, before the fit's own.
      mesh: devices; None for all.
      state_dir: where the optimisation's state is kept about once a minute, and taken
        from after an interruption; None keeps nothing. Whoever has saved the result
        removes it.
      on_epoch: called with the number of epochs done and the epoch's mean purity.

    Raises:
      InvarianceError: the head does not give the network's logits, or the transformed
        classifier does not give the same predictions.
      ValueError: see `optimize.fit`.
    """
    config = optimize.Config.recommended() if config is None else config
    mesh = mesh_lib.make() if mesh is None else mesh
    scheme = schemes.parse(scheme)
    chan = classifier.head.weight.shape[1]

    def audit_of(transform: disentangle.Transform) -> disentangle.Audit:
        return disentangle.audit(
            transform,
            classifier.head,
            cached.features.pooled,
            cached.features.logits,
            activation=classifier.activation,
        ).check()

    # Before the work: a norm that was not folded, a head of another network.
    audit_of(disentangle.identity(chan))
    features = cached.features.to_mesh(mesh)
    moments = precondition.moments(features, scheme, mesh=mesh)
    base = precondition.coordinates(
        moments, config.precondition, eps=config.precondition_eps
    )
    as_they_are = config.precondition == "none"
    head = None
    if config.concentration > 0:
        kind = evidence.best(classifier.head, classifier.activation)
        head = base.compensate(
            evidence.head_of(classifier.head, classifier.activation, kind)
        )
    saver = resume.Saver(
        state_dir,
        lambda: {
            "settings": resume.digest(repr((config, scheme)), jax.random.key_data(key)),
            "features": resume.digest(cached.features.pooled),
        },
    )
    generator, history = optimize.fit(
        key,
        features if as_they_are else features.moved(base),
        scheme,
        config=config,
        head=head,
        mesh=mesh,
        saver=saver,
        on_epoch=on_epoch,
    )
    transform = disentangle.from_generator(
        generator, None if as_they_are else base, method=config.exponential
    )
    audit = audit_of(transform)

    def build(transform: disentangle.Transform, sign: bank.Sign) -> bank.Bank:
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
            positive=build(transform, "positive"),
            negative=build(transform, "negative"),
            raw=build(disentangle.identity(chan), "positive"),
            clips=cached.clips,
            front_end=front_end,
            provenance=explanation.Provenance(
                audit=audit,
                purity=(history.round_purity[0], history.round_purity[-1]),
                settings=(*settings, *_settings(config, features, scheme, moments)),
                versions=checkpoint.versions(),
            ),
        ),
        history=history,
        audit=audit,
    )


def audited_exactly(
    fitted: Fit, cached: cache.Cached, **options: Any
) -> tuple[Fit, rounding.Rounding]:
    """The fit with an audit by the network as it is, where features were rounded.

    Args:
      fitted: learned on features of a network with rounded products.
      cached: these features.
      **options: of `inference.predict`.

    Returns:
      The fit with the exact audit, also in its explainer's provenance, and what the
      rounding did to the logits.

    Raises:
      InvarianceError: the exact audit fails.
    """
    explainer = fitted.explainer
    assert explainer.front_end is not None  # features are of sounds
    found, pooled, logits = rounding.measure(
        explainer.classifier, cached, explainer.front_end, **options
    )
    audit = disentangle.audit(
        explainer.transform,
        explainer.classifier.head,
        pooled,
        logits,
        activation=explainer.classifier.activation,
    ).check()
    provenance = dataclasses.replace(explainer.provenance, audit=audit)
    explainer = dataclasses.replace(explainer, provenance=provenance)
    return dataclasses.replace(fitted, explainer=explainer, audit=audit), found


def from_maps(
    key: jax.Array,
    maps: Float[Array | np.ndarray, "clip freq time chan"] | schemes.Views,
    logits: Float[Array | np.ndarray, "clip classes"],
    head: classifier_lib.LinearHead,
    scheme: schemes.Scheme,
    *,
    class_names: Sequence[str] | None = None,
    clips: Sequence[data.Clip] | None = None,
    activation: classifier_lib.Activation = "softmax",
    front_end: audio.FrontEnd | None = None,
    spectrograms: Float[np.ndarray, "clip rows frames"] | None = None,
    stride: tuple[int, int] | None = None,
    config: optimize.Config | None = None,
    mesh: Mesh | None = None,
    on_epoch: Callable[[int, float], None] = lambda epoch, purity: None,
) -> Fit:
    """Fits APEX to a classifier of any framework, from its training clips' maps.

    The explainer then explains clips by their maps (`Explainer.from_map`).

    Args:
      key: for the order of the pairs.
      maps: folded feature maps, or their averages (`schemes.Views`), which serve all
        schemes but square. Their mean, through `head`, must give `logits`.
      logits: the network's own.
      head: its linear layer after pooling.
      scheme: where prototypes lie.
      class_names: one a class; None for their numbers.
      clips: where the maps come from, files and classes; None for unnamed clips of
        the classes that `logits` say. Those that no bank points to are forgotten.
      activation: how logits become probabilities.
      front_end: tells the seconds and hertz of a region; None for pixels alone.
      spectrograms: to draw prototypes on; None for those of `clips`' files where
        there is a front end, else none.
      stride: pixels that a cell covers; None if cells divide the spectrogram evenly.
      config: of the optimisation, like `explainer`'s.
      mesh: devices; None for all.
      on_epoch: called after each epoch.

    Raises:
      InvarianceError: head, maps and logits do not belong together, or see
        `explainer`.
      ValueError: shapes that do not fit together, values that are not finite.
    """
    features = features_lib.from_maps(maps, logits)
    classes = [str(index) for index in range(logits.shape[1])]
    classifier = classifier_lib.of_maps(
        head,
        classes if class_names is None else class_names,
        activation=activation,
        stride=stride,
    )
    if clips is None:
        best = np.argmax(np.asarray(logits), axis=1)
        clips = [
            data.Clip(path=f"clip {i}", label=int(label))
            for i, label in enumerate(best)
        ]
    for name, given in (("clips", clips), ("spectrograms", spectrograms)):
        if given is not None and len(given) != features.num_clips:
            raise ValueError(
                f"{name} must be one a map, {features.num_clips}; got {len(given)}"
            )
    made = explainer(
        key,
        classifier,
        cache.Cached(features=features, clips=tuple(clips)),
        front_end,
        scheme,
        config=config,
        mesh=mesh,
        on_epoch=on_epoch,
    )
    small = _without_network(made.explainer, features.views, spectrograms)
    return dataclasses.replace(made, explainer=small)


def _without_network(
    explainer: explain.Explainer,
    views: schemes.Views,
    spectrograms: np.ndarray | None,
) -> explain.Explainer:
    """The explainer with the maps of the clips that banks point to, and no others."""
    assert explainer.raw is not None
    banks = [explainer.positive, explainer.negative, explainer.raw]
    used, (positive, negative, raw) = bank.packed(banks)
    clips = tuple(explainer.clips[i] for i in used)
    if spectrograms is not None:
        spectrograms = np.asarray(spectrograms)[used]
    elif explainer.front_end is not None and all(Path(c.path).is_file() for c in clips):
        spectrograms = np.stack(
            [
                look.spectrogram_of(
                    explainer.front_end,
                    audio.load_clip(clip.path, explainer.front_end, clip.offset_s),
                )
                for clip in clips
            ]
        )
    views = jax.tree.map(lambda a: np.asarray(a)[used], views)
    return dataclasses.replace(
        explainer,
        positive=positive,
        negative=negative,
        raw=raw,
        clips=clips,
        kept=gallery.Kept(views=views, spectrogram=spectrograms),
    )


def _settings(
    config: optimize.Config,
    features: features_lib.Features,
    scheme: schemes.Scheme,
    moments: precondition.Moments,
) -> tuple[tuple[str, str], ...]:
    """The fit in words, as a report shows it."""
    chan = features.pooled.shape[-1]
    coordinates = {
        "none": "as they are",
        "centre": "centred",
        "whiten": f"centred and whitened, eps {config.precondition_eps:g}",
    }
    more = [
        (name, value)
        for name, value, usual in (
            ("transform", config.transform, "general"),
            ("concentration", f"{config.concentration:g}", "0"),
            ("algorithm", config.algorithm, "adam"),
        )
        if value != usual
    ]
    numbers = dict.fromkeys((config.prototypes_start, config.prototypes_end))
    return (
        ("scheme", scheme.replace("_", "-")),
        ("training clips", f"{features.num_clips:,}"),
        ("channels", f"{chan:,}"),
        (
            "effective rank",
            f"{moments.participation_ratio:.1f}, {moments.num_large} eigenvalues above "
            "1 % of the largest",
        ),
        ("coordinates", coordinates[config.precondition]),
        ("feature map", f"{features.map_shape[0]} x {features.map_shape[1]} cells"),
        ("epochs", str(config.epochs)),
        ("prototypes a channel", " falling to ".join(map(str, numbers))),
        ("learning rate", f"{config.learning_rate:g}"),
        ("pairs a step", str(config.batch_size)),
        *more,
    )
