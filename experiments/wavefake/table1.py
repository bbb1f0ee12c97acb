"""The paper's Table 1: a network for each vocoder, all tested on all.

    python -m experiments.wavefake --table 1 --data-dir WaveFake --recipe published

For each vocoder in turn a ConvNeXt is trained, an AudioProtoPNet on it, and U is
learned; each is tested on every vocoder. A vocoder has a folder of its own, and what is
finished in it is not done again: an interrupted table goes on where it was.
"""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import jax

from apex_jax import (
    data,
    disentangle,
    hosts,
    progress,
    runs,
    schemes,
)
from apex_jax import mesh as mesh_lib
from experiments import methods
from experiments import results as results_lib
from experiments.wavefake import corpus as wavefake_corpus
from experiments.wavefake import evaluation, options, tables
from experiments.wavefake import run as wavefake_run


def main(config: options.Config) -> dict[str, Any]:
    """Fills the table, writes it in every form, and returns `results.json`."""
    config.check()
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
        runs.claim(output, config, **wavefake_run.made_from(corpus))
        if corpus is None:
            corpus = wavefake_run.demo(config, output / "corpus", whole=True)
        wavefake_run.note_recipe(config)
    table: dict[str, dict[str, dict[str, float | None]] | None] = {}
    left_out: dict[str, str] = {}
    without_apex: dict[str, str] = {}
    for number, vocoder in enumerate(corpus.fake, start=1):
        runs.say(f"\n{vocoder} ({number} of {len(corpus.fake)})")
        with stages(vocoder):
            try:
                row = _row(config, corpus, vocoder, output / vocoder, mesh)
            # Too few sentences: the others go on.
            except wavefake_corpus.TooFewError as error:
                runs.say(f"left out: {error}")
                table[vocoder], left_out[vocoder] = None, str(error)
                continue
        table[vocoder] = row["eer"]
        if row.get("without_apex"):
            without_apex[vocoder] = row["without_apex"]
    if len(left_out) == len(table):
        raise ValueError(
            "no row of the table could be made; "
            + "; ".join(f"{vocoder}: {why}" for vocoder, why in left_out.items())
        )
    results = {
        "table": 1,
        "scheme": config.scheme,
        "model": config.model,
        "data_dir": str(corpus.root),
        "eer": table,
        "left_out": left_out,
        "without_apex": without_apex,
        "paper": tables.PAPER,
        "skipped_files": runs.gather_skipped(output, [output / name for name in table]),
        **results_lib.how(config, mesh, stages),
    }
    results_lib.write(output, "table1", results, tables.FORMS, tables.terminal(table))
    absent = [name for name in wavefake_corpus.VOCODERS if name not in corpus.fake]
    if left_out or absent:
        runs.report(
            "note",
            "the paper's aEER is over its seven vocoders, here over "
            f"{len(corpus.fake)}; not trained on: {', '.join(left_out) or 'none'}",
        )
    if without_apex:
        runs.report(
            "note",
            f"no APEX for {', '.join(without_apex)}: the network learned nothing that "
            "could be explained",
        )
    runs.say(f"seconds     {progress.in_words(results)}")
    return results


def _row(
    config: options.Config,
    corpus: wavefake_corpus.Corpus,
    vocoder: str,
    output: Path,
    mesh: jax.sharding.Mesh,
) -> dict[str, Any]:
    """What one vocoder's `results.json` says: EERs of the three methods and how.

    Without APEX where the audit refuses the network because it learned nothing.
    """
    config = dataclasses.replace(config, train_on=vocoder, output_dir=output)
    stages, skip_log = progress.Stages(), data.SkipLog(strict=config.strict)
    splits = wavefake_corpus.split(
        corpus,
        vocoder,
        num_test=config.test_sentences,
        num_validation=config.validation_sentences,
        cut=wavefake_run.cutter(config, skip_log),
    )
    settings = runs.settings_of(config, runs.digest_of(*splits))
    if runs.is_finished(output / "results.json", settings):
        runs.say(f"finished before, in {output}")
        return runs.read_json(output / "results.json")
    runs.claim(output, config, clips=runs.digest_of(*splits))
    scheme = schemes.parse(config.scheme)
    problem = methods.Problem(
        splits=splits,
        class_names=wavefake_corpus.CLASS_NAMES,
        activation=config.activation,
        front_end=config.front_end,
        mesh=mesh,
        skip_log=skip_log,
    )
    key, _ = jax.random.split(jax.random.key(config.seed))  # as without --table
    with stages("train"):
        model = methods.train_convnext(output / "classifier", problem, config)
    with stages("audioprotopnet"):
        other, push = methods.train_prototypes(
            output / "audioprotopnet", problem, config, model
        )
    with stages("test"):
        tested = methods.test(problem, config, model, other, splits.test)
    about: dict[str, Any] = {"without_apex": None}
    try:
        learned = methods.learn(
            stages,
            output,
            key,
            problem,
            config,
            model,
            scheme,
            cache_dir=output / "cache",
            trained_on=vocoder,
        )
        transform = learned.explainer.transform
        tested = tested.with_apex(transform)
        about |= learned.to_dict()
        about["invariance"] = dataclasses.asdict(tested.audit(transform))
    except disentangle.UntrainedError as error:
        runs.say(f"without APEX: {error}")
        about = {"without_apex": str(error)}
    rows = wavefake_corpus.rows_by_vocoder(tested.clips, corpus)
    eer = {
        method: evaluation.eers(logits, tested.clips, rows)
        for method, logits in tested.logits.items()
    }
    if hosts.is_primary():
        skip_log.write_csv(output / "skipped.csv")
    result = {
        "train_on": vocoder,
        "settings": settings,
        "eer": eer,
        "clips": {"train": len(splits.train), "test": len(tested.clips)},
        **about,
        "push": push,
        "skipped_files": len(skip_log),
        **stages.to_dict(),
    }
    runs.write_json(output / "results.json", result)
    means = ", ".join(
        f"{methods.TITLES[method]} {found['aeer']:.1f}"
        for method, found in eer.items()
        if found["aeer"] is not None
    )
    runs.say(f"aEER in %: {means}")
    return result
