"""The WaveFake experiment from corpus to results; `__main__` is its command line."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np

from apex_jax import (
    audio,
    checkpoint,
    data,
    disentangle,
    figures,
    hosts,
    progress,
    runs,
    schemes,
)
from apex_jax import classifier as classifier_lib
from apex_jax import mesh as mesh_lib
from apex_jax.models import convnext
from experiments import methods
from experiments.wavefake import corpus as wavefake_corpus
from experiments.wavefake import evaluation, options, report

# The demo's synthesiser is imported where it is used: a WaveFake copy needs none.

DEMO_TRAIN_ON = "mel80_griffin_lim"  # mel spectrogram to wave, as HiFi-GAN does


def main(
    config: options.Config,
    *,
    corpus: wavefake_corpus.Corpus | None = None,
    cache_dir: Path | None = None,
) -> dict[str, Any]:
    """Runs the experiment, writes its folder, and returns `results.json`.

    Args:
      config: what is asked for.
      corpus: None to read `data_dir`, or to make the demo corpus.
      cache_dir: of the training clips' features; None for one in the run's folder.
    """
    config.check()
    scheme = schemes.parse(config.scheme)
    output = config.output_dir or _default_output(config, scheme)
    stages, skip_log = progress.Stages(), data.SkipLog(strict=config.strict)
    mesh = mesh_lib.make()
    fit_key, mask_key = jax.random.split(jax.random.key(config.seed))

    with stages("corpus"):
        front_end, activation, model = config.front_end, config.activation, None
        if config.weights is not None:
            model, front_end, activation = _weights(config)
            config.check_evidence(activation)
        else:
            note_recipe(config)
        if corpus is None and config.data_dir is not None:
            corpus = copy(config.data_dir)
        # What runs, with every default filled in.
        config = dataclasses.replace(
            config,
            scheme=scheme,
            output_dir=output,
            train_on=train_on(config, corpus),
            windows_per_file=windows_per_file(config, corpus),
            front_end=front_end,
        )
        runs.claim(output, config, **made_from(corpus))
        if corpus is None:
            corpus = demo(config, output / "corpus")
        vocoder = corpus.vocoder(config.train_on or "")
        splits = wavefake_corpus.split(
            corpus,
            vocoder,
            num_test=config.test_sentences,
            num_validation=config.validation_sentences,
            cut=cutter(config, skip_log),
        )
        runs.say(_split_message(splits, corpus))
    problem = methods.Problem(
        splits=splits,
        class_names=wavefake_corpus.CLASS_NAMES,
        activation=activation,
        front_end=front_end,
        mesh=mesh,
        skip_log=skip_log,
    )
    if model is None:
        with stages("train"):
            model = methods.train_convnext(output / "classifier", problem, config)
    learned = methods.learn(
        stages,
        output,
        fit_key,
        problem,
        config,
        model,
        scheme,
        cache_dir=cache_dir or output / "cache",
        trained_on=vocoder,
    )
    explainer, history = learned.explainer, learned.history
    runs.write_bank(output / "bank.csv", explainer)

    with stages("evaluate"):
        classifier, transform = problem.classifier(model), explainer.transform
        clips, pooled, logits = runs.predictions(
            "test",
            classifier,
            splits.test,
            front_end,
            batch_size=config.batch_size,
            **problem.common,
        )
        # Clips that U was not learned on have to keep their predictions too.
        invariance = disentangle.audit(
            transform, classifier.head, pooled, logits, activation=activation
        ).check()
        rows = wavefake_corpus.rows_by_vocoder(clips, corpus)
        apex_logits = transform.compensate(classifier.head)(transform(pooled))
        eer = {
            "classifier": evaluation.eers(logits, clips, rows),
            "apex": evaluation.eers(np.asarray(apex_logits), clips, rows),
        }
    with stages("masking"):
        masked = evaluation.masking_eers(
            mask_key,
            explainer,
            splits.test,
            corpus,
            masks=config.masks,
            batch_size=config.batch_size,
            mesh=mesh,
            skip_log=skip_log,
        )
    with stages("figures"):
        if hosts.is_primary():
            figures.save(figures.purity(history), output / "purity.png", dpi=120)
            evaluation.draw_examples(
                output / "explanations",
                explainer,
                clips,
                corpus,
                num=config.examples,
                train_on=vocoder,
                shown=config.shown,
            )
            skip_log.write_csv(output / "skipped.csv")
    results = {
        "scheme": scheme,
        "model": model.config.size,
        "corpus": {
            "data_dir": str(corpus.root),
            "train_on": vocoder,
            "clips": {"train": learned.num_clips, "test": len(clips)},
            "vocoders": {name: len(at) for name, at in rows.items()},
            "skipped_files": len(skip_log),
        },
        "eer": eer,
        "invariance": dataclasses.asdict(invariance),
        "rounding": learned.to_dict()["rounding"],
        "purity": {
            "before": history.round_purity[0],
            "after": history.round_purity[-1],
            **dataclasses.asdict(history),
        },
        "masking": masked,
        "regions": {"per_channel": evaluation.regions_per_channel(explainer.positive)},
        **stages.to_dict(),
        "seed": config.seed,
        "device": f"{mesh.size} x {mesh.devices.flat[0].device_kind}",
        "versions": dict(checkpoint.versions()),
    }
    runs.write_json(output / "results.json", results)
    runs.say(report.table(results, output))
    return results


def note_recipe(config: options.Config) -> None:
    """Says what the published recipe takes that was not given."""
    if config.recipe == "published" and config.pretrained is None:
        runs.say("the published networks begin with one of images: --pretrained")


def copy(root: Path) -> wavefake_corpus.Corpus:
    """A WaveFake copy; says which of the release's vocoders it lacks."""
    corpus = wavefake_corpus.read(root)
    absent = [name for name in wavefake_corpus.VOCODERS if name not in corpus.fake]
    if absent:
        runs.say(f"absent from {root}, so not tested: {', '.join(absent)}")
    return corpus


def made_from(corpus: wavefake_corpus.Corpus | None) -> dict[str, str]:
    """What a run depends on beside its settings, which alone make the demo corpus."""
    if corpus is None:
        return {}
    return {"clips": runs.digest_of(corpus.real, *corpus.fake.values())}


def demo(
    config: options.Config, root: Path, *, whole: bool = False
) -> wavefake_corpus.Corpus:
    """Writes the demo corpus: what the run will need of it, and no more, or all."""
    from experiments import demo_corpus, vocoders

    names = [f"{n:04d}" for n in range(config.demo_utterances)]
    tested = wavefake_corpus.held_out(
        names, config.test_sentences, config.validation_sentences
    )[0]
    others = [name for name in vocoders.VOCODERS if name != config.train_on]
    only = {name: [names.index(sentence) for sentence in tested] for name in others}
    total = 2 * len(names) + len(others) * len(tested)
    if whole:
        only, total = {}, (1 + len(vocoders.VOCODERS)) * len(names)
    if hosts.is_primary():
        with progress.bar("demo corpus", total, "file") as on_progress:
            demo_corpus.write(
                root,
                num_utterances=config.demo_utterances,
                seed=config.seed,
                only=only,
                overwrite=True,
                on_progress=on_progress,
            )
    hosts.barrier("demo corpus written")
    return wavefake_corpus.read(root)


def train_on(config: options.Config, corpus: wavefake_corpus.Corpus | None) -> str:
    """The vocoder asked for, or else the corpus' usual one."""
    if corpus is not None and config.data_dir is not None:
        return corpus.vocoder(config.train_on or "hifiGAN")
    from experiments import vocoders

    name = config.train_on or DEMO_TRAIN_ON
    if name not in vocoders.VOCODERS:
        raise ValueError(
            f"--train-on {name!r}: the demo corpus has {', '.join(vocoders.VOCODERS)}"
        )
    return name


def windows_per_file(
    config: options.Config, corpus: wavefake_corpus.Corpus | None
) -> int:
    """As asked, or one, or four of the files of a small corpus."""
    if config.windows_per_file is not None:
        return config.windows_per_file
    num = config.demo_utterances if corpus is None else len(corpus.sentences)
    return 1 if num >= 200 else 4


def _default_output(config: options.Config, scheme: schemes.Scheme) -> Path:
    corpus = "demo" if config.data_dir is None else config.data_dir.resolve().name
    parts = [corpus, scheme.replace("_", "-")]
    parts += [config.train_on] if config.train_on else []
    parts += [config.model] if config.model != "atto" else []
    parts += [f"seed{config.seed}"] if config.seed else []
    return Path("runs") / "-".join(parts)


def cutter(
    config: options.Config, skip_log: data.SkipLog
) -> Callable[[Sequence[data.Clip]], list[data.Clip]]:
    """From files to clips: one a file, or several of a small corpus."""
    windows = config.windows_per_file
    if windows is None or windows == 1:
        return list
    return functools.partial(
        data.windows,
        front_end=config.front_end,
        max_windows=windows,
        skip_log=skip_log,
    )


def _split_message(splits: data.Splits, corpus: wavefake_corpus.Corpus) -> str:
    sizes = ", ".join(
        f"{len({clip.group for clip in part})} sentences ({len(part)} clips) to {name}"
        for name, part in zip(("train", "validate", "test"), splits, strict=True)
    )
    total = len(corpus.sentences)
    if total >= 3 * wavefake_corpus.PAPER_SPLIT:
        return sizes
    return f"only {total} sentences (the paper has 13,100): {sizes}"


def _weights(
    config: options.Config,
) -> tuple[convnext.ConvNeXt, audio.FrontEnd, classifier_lib.Activation]:
    """The classifier given, its classes in our order, its front end, its activation."""
    assert config.weights is not None
    model, metadata = checkpoint.load_classifier(config.weights)
    wanted, names = wavefake_corpus.CLASS_NAMES, tuple(metadata["class_names"])
    if len(names) == len(wanted) and all(name.isdigit() for name in names):
        runs.say(
            f"{config.weights} has no class names; taken as {' and '.join(wanted)}"
        )
    elif set(names) == set(wanted):
        # Else scores would be inverted without a word.
        order = np.array([names.index(name) for name in wanted])
        arrays = convnext.named_arrays(model)
        for name in ("head.kernel", "head.bias"):
            arrays[name] = arrays[name][..., order]
        model = convnext.from_named_arrays(model.config, arrays)
    else:
        raise ValueError(
            f"--weights {config.weights} has {len(names)} classes "
            f"({', '.join(names[:4])}{', ...' * (len(names) > 4)}); this experiment "
            f"needs {' and '.join(wanted)}"
        )
    if metadata["front_end"] is None:
        runs.say(
            f"{config.weights} carries no front end; --front-end's settings are used"
        )
        return model, config.front_end, metadata["activation"]
    front_end = audio.FrontEnd.from_dict(metadata["front_end"])
    return model, front_end, metadata["activation"]
