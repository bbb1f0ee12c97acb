"""The front door: explainers from a finished run or from their parts.

    >>> from apex_jax import explain
    >>> explainer = explain.load("runs/demo-frequency")  # doctest: +SKIP
    >>> result = explainer("clip.wav")  # doctest: +SKIP

A run is a folder with two checkpoints: `classifier`, the untouched network, which is
left out where it belongs to another framework, and `apex`, everything that was learned.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any, get_args

import jax
import jax.numpy as jnp
import numpy as np

from apex_jax import (
    audio,
    bank,
    cache,
    checkpoint,
    disentangle,
    explanation,
    gallery,
    schemes,
)
from apex_jax import classifier as classifier_lib
from apex_jax import data as clips
from apex_jax import explainer as explainer_lib
from apex_jax.models import convnext

Explainer = explainer_lib.Explainer

_BANK = ("clip", "activation", "location", "purity")


def save(
    directory: str | Path, explainer: Explainer, *, overwrite: bool = False
) -> None:
    """Writes an explainer to `directory/classifier` and `directory/apex`.

    Clips are kept by path, relative to `directory` where they lie inside it, and only
    those that a bank points to.

    Args:
      directory: the run's folder.
      explainer: of a ConvNeXt of this package, or of feature maps.
      overwrite: replace a run that is already there.

    Raises:
      ValueError: the classifier is another network, which cannot be written, and no
        maps were kept; or see `checkpoint.save`.
    """
    directory = Path(directory).absolute()
    classifier, kept = explainer.classifier, explainer.kept
    settings = None if explainer.front_end is None else explainer.front_end.to_dict()
    banks = {"positive": explainer.positive, "negative": explainer.negative}
    if explainer.raw is not None:
        banks["raw"] = explainer.raw
    used, few_clips = bank.packed(list(banks.values()))
    arrays: dict[str, Any] = {
        "matrix": explainer.transform.matrix,
        "inverse": explainer.transform.inverse,
        "centre": explainer.transform.centre,
    }
    for name, one in zip(banks, few_clips, strict=True):
        arrays[name] = {field: getattr(one, field) for field in _BANK}
    made: dict[str, Any] = {
        "scheme": explainer.scheme,
        "clips": [_listed(explainer.clips[i], directory) for i in used],
        "provenance": dataclasses.asdict(explainer.provenance),
        "chunk_size": explainer.chunk_size,
    }
    if kept is None:
        if not isinstance(classifier.params, convnext.ConvNeXt):
            raise ValueError(
                "explain.save writes networks made by models.convnext, or explainers "
                "made from feature maps (fit.from_maps); got params of type "
                f"{type(classifier.params).__name__}"
            )
        made["weights"] = cache.weights_digest(classifier)
        checkpoint.save_classifier(
            directory / "classifier",
            classifier.params,
            class_names=classifier.class_names,
            activation=classifier.activation,
            front_end=settings,
            overwrite=overwrite,
        )
    else:
        few = kept.take(used)
        arrays["head"] = dataclasses.asdict(classifier.head)
        views = {"rows": few.views.rows, "columns": few.views.columns}
        optional = {"cells": few.views.cells, "spectrogram": few.spectrogram}
        arrays["kept"] = views | {k: v for k, v in optional.items() if v is not None}
        made["network"] = {
            "class_names": classifier.class_names,
            "activation": classifier.activation,
            "stride": classifier.stride,
            "front_end": settings,
        }
    checkpoint.save(
        directory / "apex", arrays, made, kind="explainer", overwrite=overwrite
    )


def load(directory: str | Path, *, data: str | Path | None = None) -> Explainer:
    """Reads what `save` wrote: a finished run, for one.

    Args:
      directory: the run's folder.
      data: where the training clips lie now, if they have moved: a clip whose file is
        gone is looked for there by the end of its path.

    Raises:
      FileNotFoundError: there is no such run.
      ValueError: the folder holds something else, is of another format, or its
        classifier is not the one that was explained.
      InvarianceError: U and its inverse do not undo one another.
    """
    directory = Path(directory).absolute()
    if not directory.is_dir():
        raise FileNotFoundError(f"no run at {directory}: no such folder")
    arrays, made = checkpoint.load(directory / "apex", kind="explainer")
    try:
        explainer = _explainer(directory, arrays, made, data)
    # A checkpoint that is whole, but was not written by `save`.
    except (LookupError, TypeError, AttributeError) as error:
        raise ValueError(
            f"{directory / 'apex'} does not describe an explainer: {error!r}"
        ) from error
    disentangle.check(explainer.transform, explainer.classifier.head)
    return explainer


def _explainer(
    directory: Path,
    arrays: Any,
    made: Mapping[str, Any],
    data: str | Path | None,
) -> Explainer:
    """Of what a checkpoint holds."""
    arrays = jax.tree.map(jnp.asarray, arrays)
    kept = None
    if "network" in made:
        network = made["network"]
        classifier = classifier_lib.of_maps(
            classifier_lib.LinearHead(**arrays["head"]),
            network["class_names"],
            activation=network["activation"],
            stride=network["stride"] and tuple(network["stride"]),
        )
        settings = network["front_end"]
        views = jax.tree.map(np.asarray, arrays["kept"])
        picture = views.pop("spectrogram", None)
        kept = gallery.Kept(views=schemes.Views(**views), spectrogram=picture)
    else:
        model, metadata = checkpoint.load_classifier(directory / "classifier")
        classifier = convnext.as_classifier(
            model, metadata["class_names"], metadata["activation"]
        )
        settings = metadata["front_end"]
        if made["weights"] != cache.weights_digest(classifier):
            raise ValueError(
                f"{directory / 'apex'} was fitted to another network than "
                f"{directory / 'classifier'} holds; fit it again"
            )
    scheme = schemes.parse(made["scheme"])
    positive, negative = (
        bank.Bank(scheme=scheme, sign=sign, **arrays[sign])
        for sign in get_args(bank.Sign)
    )
    raw = None
    if "raw" in arrays:
        raw = bank.Bank(scheme=scheme, sign="positive", **arrays["raw"])
    return Explainer(
        classifier=classifier,
        transform=disentangle.Transform(
            matrix=arrays["matrix"], inverse=arrays["inverse"], centre=arrays["centre"]
        ),
        positive=positive,
        negative=negative,
        raw=raw,
        clips=tuple(_clip(clip, directory, data) for clip in made["clips"]),
        front_end=settings and audio.FrontEnd.from_dict(settings),
        kept=kept,
        provenance=_provenance(made.get("provenance", {})),
        chunk_size=made.get("chunk_size", Explainer.chunk_size),
    )


def _listed(clip: clips.Clip, directory: Path) -> dict[str, Any]:
    path = Path(clip.path).absolute()
    inside = path.is_relative_to(directory) and path.exists()
    if inside:
        path = path.relative_to(directory)
    elif not path.exists():
        path = Path(clip.path)  # a name, of a clip that came without a file
    return {**dataclasses.asdict(clip), "path": str(path), "inside": inside}


def _clip(
    listed: Mapping[str, Any], directory: Path, moved: str | Path | None
) -> clips.Clip:
    path, label = Path(listed["path"]), listed["label"]
    if listed.get("inside", not path.is_absolute()):
        path = directory / path
    if moved is not None and not path.exists():
        ends = (Path(moved, *path.parts[i:]) for i in range(1, len(path.parts)))
        path = next((end for end in ends if end.exists()), path)
    return clips.Clip(
        path=path,
        label=tuple(label) if isinstance(label, list) else label,
        offset_s=listed["offset_s"],
        group=listed["group"],
    )


def _provenance(made: Mapping[str, Any]) -> explanation.Provenance:
    """From JSON, which has no tuples."""
    audit, purity = made.get("audit"), made.get("purity")
    return explanation.Provenance(
        audit=audit and disentangle.Audit(**audit),
        purity=purity and tuple(purity),
        settings=tuple((name, value) for name, value in made.get("settings", ())),
        versions=tuple((name, value) for name, value in made.get("versions", ())),
    )
