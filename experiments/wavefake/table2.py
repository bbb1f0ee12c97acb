"""The paper's Table 2: regions hidden under each of the four schemes.

    python -m experiments.wavefake --table 2 --data-dir WaveFake --recipe published

One ConvNeXt is trained (on HiFi-GAN, or --train-on), or taken from --weights; U is
learned under every scheme, and the regions that it points at are hidden, and random
ones of the same shape. The paper leaves the random ones blank. Each scheme has a folder
of its own, and a finished one is not done again.
"""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any, get_args

from apex_jax import checkpoint, progress, runs, schemes
from apex_jax import mesh as mesh_lib
from experiments import results as results_lib
from experiments.wavefake import options, tables
from experiments.wavefake import run as wavefake_run

_PARTS = ("mean", "std")  # of the random draws


def main(config: options.Config) -> dict[str, Any]:
    """Fills the table, writes it in every form, and returns `results.json`."""
    config.check()
    name = "demo" if config.data_dir is None else config.data_dir.resolve().name
    output = config.output_dir or Path("runs") / f"{name}-table2"
    config = dataclasses.replace(config, output_dir=output)
    runs.claim(output, config)
    stages, corpus = progress.Stages(), None
    if config.data_dir is None:
        with stages("corpus"):
            trained_on = wavefake_run.train_on(config, None)
            config = dataclasses.replace(config, train_on=trained_on)
            corpus = wavefake_run.demo(config, output / "corpus")
    else:
        corpus = wavefake_run.copy(config.data_dir)
    settings = runs.settings_of(
        config,
        wavefake_run.made_from(corpus),
        config.weights and checkpoint.load_classifier(config.weights)[0],
    )
    found: dict[str, dict[str, Any]] = {}
    weights = config.weights
    for scheme in get_args(schemes.Scheme):
        folder = output / scheme
        runs.say(f"\nscheme {scheme.replace('_', '-')}")
        if runs.is_finished(folder / "results.json", settings):
            runs.say(f"finished before, in {folder}")
            found[scheme] = runs.read_json(folder / "results.json")
        else:
            with stages(scheme):
                found[scheme] = wavefake_run.main(
                    dataclasses.replace(
                        config,
                        table=None,
                        scheme=scheme,
                        output_dir=folder,
                        weights=weights,
                    ),
                    corpus=corpus,
                    # The first scheme's are whole maps, which serve the others too.
                    cache_dir=output / "cache",
                )
            done = found[scheme] | {"settings": settings}
            runs.write_json(folder / "results.json", done)
        # The first scheme's run trains the classifier, the others explain the same.
        weights = weights or folder / "classifier"
    trained = next(iter(found.values()))["corpus"]["train_on"]
    table = {
        scheme: {
            "random": {part: of["masking"]["random"][part]["aeer"] for part in _PARTS},
            "apex": of["masking"]["apex"]["aeer"],
            "p": of["masking"]["p_value"],
            "purity": of["purity"]["after"],
        }
        for scheme, of in found.items()
    }
    results = {
        "table": 2,
        "train_on": trained,
        "none": next(iter(found.values()))["masking"]["none"]["aeer"],
        "aeer": table,
        **config.masks,
        "skipped_files": runs.gather_skipped(output, [output / name for name in found]),
        "paper": tables.PAPER_MASKED,
        **results_lib.how(config, mesh_lib.make(), stages),
    }
    results_lib.write(
        output, "table2", results, tables.MASKED, tables.masked_terminal(results)
    )
    return results
