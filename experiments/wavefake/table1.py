"""The paper's Table 1: a network for each vocoder, all tested on all.

    python -m experiments.wavefake --table 1 --data-dir WaveFake --model base

For each vocoder in turn a ConvNeXt is trained, an AudioProtoPNet on it, and U is
learned; each is tested on every vocoder. A vocoder has a folder of its own, and what is
finished in it is not done again: an interrupted table goes on where it was.
"""

from __future__ import annotations

import dataclasses
import functools
from pathlib import Path
from typing import Any

import jax
import numpy as np

from apex_jax import (
    audioprotopnet,
    cache,
    checkpoint,
    data,
    disentangle,
    explain,
    hosts,
    progress,
    runs,
    schemes,
    train,
)
from apex_jax import mesh as mesh_lib
from apex_jax.models import audioprotopnet as prototypes
from apex_jax.models import convnext
from experiments.wavefake import corpus as wavefake_corpus
from experiments.wavefake import evaluation, options, tables
from experiments.wavefake import run as wavefake_run


def main(config: options.Config) -> dict[str, Any]:
    """Fills the table, writes it in every form, and returns `results.json`."""
    wavefake_run.check(config)
    config.audioprotopnet.check()
    for name in ("train_on", "weights"):
        if getattr(config, name) is not None:
            flag = name.replace("_", "-")
            raise ValueError(
                f"--{flag} and --table 1: the table trains on every vocoder"
            )
    stages, mesh = progress.Stages(), mesh_lib.make()
    name = "demo" if config.data_dir is None else config.data_dir.resolve().name
    output = config.output_dir or Path("runs") / f"{name}-table1"
    with stages("corpus"):
        corpus = None if config.data_dir is None else wavefake_run.copy(config.data_dir)
        config = dataclasses.replace(
            config,
            scheme=schemes.parse(config.scheme),
            output_dir=output,
            windows_per_file=wavefake_run.windows_per_file(config, corpus),
        )
        runs.claim(output, config)
        if corpus is None:
            corpus = wavefake_run.demo(config, output / "corpus", whole=True)
    table: dict[str, dict[str, dict[str, float | None]] | None] = {}
    for number, vocoder in enumerate(corpus.fake, start=1):
        runs.say(f"\n{vocoder} ({number} of {len(corpus.fake)})")
        with stages(vocoder):
            table[vocoder] = _row(config, corpus, vocoder, output / vocoder, mesh)
    results = {
        "table": 1,
        "scheme": config.scheme,
        "model": config.model,
        "data_dir": str(corpus.root),
        "eer": table,
        "paper": tables.PAPER,
        **stages.to_dict(),
        "seed": config.seed,
        "device": f"{mesh.size} x {mesh.devices.flat[0].device_kind}",
        "versions": dict(checkpoint.versions()),
    }
    if hosts.is_primary():
        for ending, text in (
            ("csv", tables.as_csv(table)),
            ("md", tables.markdown(table)),
            ("tex", tables.latex(table)),
        ):
            (output / f"table1.{ending}").write_text(text, encoding="utf-8")
    runs.write_json(output / "results.json", results)
    runs.say(tables.terminal(table))
    runs.say(f"seconds     {progress.in_words(results)}")
    runs.say(f"written to  {output}, table1.csv, .md and .tex")
    return results


def _row(
    config: options.Config,
    corpus: wavefake_corpus.Corpus,
    vocoder: str,
    output: Path,
    mesh: jax.sharding.Mesh,
) -> dict[str, dict[str, float | None]] | None:
    """EERs of the three methods trained on a vocoder, None where that cannot be."""
    config = dataclasses.replace(config, train_on=vocoder, output_dir=output)
    finished = (output / "results.json").exists() and runs.same(output, config)
    if hosts.collect(finished)[0]:
        runs.say(f"finished before, in {output}")
        return runs.read_json(output / "results.json")["eer"]
    stages, skip_log = progress.Stages(), data.SkipLog(strict=config.strict)
    try:
        splits = wavefake_corpus.split(
            corpus,
            vocoder,
            num_test=config.test_sentences,
            num_validation=config.validation_sentences,
            cut=wavefake_run.cutter(config, skip_log),
        )
    except ValueError as error:
        runs.say(f"left out: {error}")
        return None
    runs.claim(output, config)
    names, front_end = wavefake_corpus.CLASS_NAMES, config.front_end
    common: dict[str, Any] = {"mesh": mesh, "skip_log": skip_log}
    key, _ = jax.random.split(jax.random.key(config.seed))  # as without --table

    with stages("train"):
        model, _ = wavefake_run.train_classifier(config, splits, front_end, **common)
    with stages("audioprotopnet"):
        other, _ = runs.trained(
            output / "audioprotopnet",
            functools.partial(
                audioprotopnet.fit,
                model,
                splits.train,
                splits.validation,
                front_end,
                class_names=names,
                seed=config.seed,
                config=config.audioprotopnet,
                **common,
            ),
            load=checkpoint.load_audioprotopnet,
            save=functools.partial(
                checkpoint.save_audioprotopnet,
                class_names=names,
                front_end=front_end.to_dict(),
                overwrite=True,
            ),
            clips=(splits.train, splits.validation),
            label="train prototypes",
            total=train.clips_in_all(config.audioprotopnet, len(splits.train), mesh),
        )
    classifier = convnext.as_classifier(model, names)
    with stages("features"):
        cached = runs.features(
            output / "cache",
            classifier,
            splits.train,
            front_end,
            content=cache.content_for(schemes.parse(config.scheme)),
            batch_size=config.batch_size,
            **common,
        )
    with stages("optimise"):
        fitted = wavefake_run.fit_explainer(
            config,
            key,
            classifier,
            cached,
            front_end,
            schemes.parse(config.scheme),
            mesh,
        )
        transform = fitted.explainer.transform
    explain.save(output, fitted.explainer, overwrite=True)
    with stages("test"):
        common["batch_size"] = config.batch_size
        read, pooled, logits = runs.predictions(
            "test ConvNeXt", classifier, splits.test, front_end, **common
        )
        invariance = disentangle.audit(
            transform, classifier.head, pooled, logits
        ).check()
        again, _, others = runs.predictions(
            "test AudioProtoPNet",
            prototypes.as_classifier(other, names),
            splits.test,
            front_end,
            **common,
        )
    rows = wavefake_corpus.rows_by_vocoder(read, corpus)
    apex = transform.compensate(classifier.head)(transform(pooled))
    eer = {
        "classifier": evaluation.eers(logits, read, rows),
        "audioprotopnet": evaluation.eers(
            others, again, wavefake_corpus.rows_by_vocoder(again, corpus)
        ),
        "apex": evaluation.eers(np.asarray(apex), read, rows),
    }
    if hosts.is_primary():
        skip_log.write_csv(output / "skipped.csv")
    runs.write_json(
        output / "results.json",
        {
            "train_on": vocoder,
            "eer": eer,
            "clips": {"train": len(cached.clips), "test": len(read)},
            "invariance": dataclasses.asdict(invariance),
            "purity": dataclasses.asdict(fitted.history),
            "skipped_files": len(skip_log),
            **stages.to_dict(),
        },
    )
    means = ", ".join(
        f"{title} {eer[method]['aeer']:.1f}"
        for method, title in tables.METHODS.items()
        if eer[method]["aeer"] is not None
    )
    runs.say(f"aEER in %: {means}")
    return eer
