"""The paper's Table 1: a network for each vocoder, all tested on all.

    python -m experiments.wavefake --table 1 --data-dir WaveFake --model base

For each vocoder in turn a ConvNeXt is trained, an AudioProtoPNet on it, and U is
learned; each is tested on every vocoder. A vocoder has a folder of its own, and what is
finished in it is not done again: an interrupted table goes on where it was.
"""

from __future__ import annotations

import dataclasses
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
    done = _done(output, config)
    if "results.json" in done:
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
        if "classifier" not in done:
            model, epochs = wavefake_run.train_classifier(
                config, splits, front_end, **common
            )
            _save(output / "classifier", checkpoint.save_classifier, model, config)
            runs.write_json(output / "training.json", _plain(epochs))
        model, _ = checkpoint.load_classifier(output / "classifier")
    with stages("audioprotopnet"):
        if "audioprotopnet" not in done:
            total = _clips_trained_on(config, len(splits.train), mesh)
            with progress.bar("train prototypes", total, "clip") as on_progress:
                other, epochs = audioprotopnet.fit(
                    model,
                    splits.train,
                    splits.validation,
                    front_end,
                    class_names=names,
                    seed=config.seed,
                    config=config.audioprotopnet,
                    on_progress=on_progress,
                    **common,
                )
            _save(
                output / "audioprotopnet", checkpoint.save_audioprotopnet, other, config
            )
            runs.write_json(output / "training_audioprotopnet.json", _plain(epochs))
        other, _ = checkpoint.load_audioprotopnet(output / "audioprotopnet")
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


def _done(output: Path, config: options.Config) -> list[str]:
    """What an earlier run of these settings has finished, as the first process sees."""
    parts = ["classifier", "audioprotopnet", "results.json"]
    known = runs.same(output, config)
    return hosts.collect([p for p in parts if known and (output / p).exists()])[0]


def _save(path: Path, save: Any, model: Any, config: options.Config) -> None:
    save(
        path,
        model,
        class_names=wavefake_corpus.CLASS_NAMES,
        front_end=config.front_end.to_dict(),
        overwrite=True,
    )


def _plain(epochs: list[Any]) -> list[dict[str, Any]]:
    return [dataclasses.asdict(epoch) for epoch in epochs]


def _clips_trained_on(
    config: options.Config, clips: int, mesh: jax.sharding.Mesh
) -> int:
    """Clips that all epochs of the prototypes' training come to."""
    batch_size = mesh_lib.round_up(config.audioprotopnet.batch_size, mesh)
    return clips * config.audioprotopnet.num_epochs(-(-clips // batch_size))
