"""APEX on WaveFake: real speech against vocoders (the paper's Tables 1 and 2).

    python -m experiments.wavefake --scheme=frequency
    python -m experiments.wavefake --scheme=time --data-dir WaveFake --model base

Trains a ConvNeXt on one vocoder (or takes `--weights`), learns U on its training
clips, tests classifier and APEX on every vocoder, and hides the regions that APEX
points at. Without `--data-dir` it runs on the synthetic demo corpus, in a few minutes
on two CPU cores. What the paper reports for HiFi-GAN: aEER 1.8 % for the classifier
and for APEX alike; with regions hidden 1.9 (square), 1.9 (time), 3.4 (frequency) and
3.5 % (time-frequency).
"""

from __future__ import annotations

import dataclasses
import functools
import shutil
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Literal

import jax
import numpy as np
import tyro
from flax import nnx

from apex_jax import (
    audio,
    cache,
    checkpoint,
    data,
    disentangle,
    explain,
    fit,
    masking,
    metrics,
    optimize,
    plot,
    progress,
    schemes,
    train,
)
from apex_jax import classifier as classifier_lib
from apex_jax import mesh as mesh_lib
from apex_jax.models import convnext
from experiments import demo_corpus, records, vocoders, wavefake_corpus

HELP = """Explains a detector of vocoded speech with APEX.

Without --data-dir it runs on a synthetic demo corpus."""
DEMO_TRAIN_ON = "mel80_griffin_lim"  # mel spectrogram to wave, as HiFi-GAN does
LAYER_SCALE = 1.0  # 1e-6, made for 300 epochs on ImageNet, hardly trains in 16
FAKE = wavefake_corpus.CLASS_NAMES.index("fake")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config:
    """Explains a detector of vocoded speech with APEX."""

    scheme: Literal[
        "square", "time", "frequency", "time_frequency", "time-frequency"
    ] = "frequency"
    """Where prototypes lie."""
    data_dir: Path | None = None
    """A WaveFake copy; without it the synthetic demo corpus is made and used."""
    output_dir: Path | None = None
    """Where results go; by default runs/CORPUS-SCHEME."""
    train_on: str | None = None
    """Vocoder to train on; by default hifiGAN, and for the demo mel80_griffin_lim."""
    weights: Path | None = None
    """A classifier to explain instead of training one: the classifier folder of a
    run, or of `python -m apex_jax.convert`."""
    model: convnext.Size = "atto"
    """Size of the ConvNeXt to train; the paper's is base."""
    seed: int = 0
    """Of the demo corpus, the training, the optimisation and the random masks."""
    strict: bool = False
    """Stop at the first file that cannot be read, instead of skipping it."""
    test_sentences: int | None = None
    """Sentences to test on; by default the paper's 1,000, or a fifth if too few."""
    validation_sentences: int | None = None
    """Sentences to validate on; by default as many as to test on."""
    windows_per_file: int | None = None
    """Clips cut from a file; by default 1, or up to 4 of fewer than 200 sentences."""
    mask_draws: int = 10
    """Random masks a clip in the masking study."""
    examples: int = 4
    """Explained clips to draw: a real one, one by `train_on`, then by the others."""
    batch_size: int = 32
    """Clips in the network at a time when it is not being trained."""
    demo_utterances: int = 240
    """Utterances of the demo corpus."""
    front_end: audio.FrontEnd = audio.FrontEnd(
        sample_rate=22050,
        clip_s=1.48,
        n_fft=1024,
        hop_length=256,
        n_mels=128,
        mean=-30.0,
        std=17.0,
    )
    """Settings of the spectrogram; those of `--weights` come with them."""
    train: train.Config = train.Config()
    """Training of the classifier."""
    optimise: optimize.Config = optimize.Config()
    """Optimisation of U."""


def main(config: Config) -> dict[str, Any]:
    """Runs the experiment, writes its folder, and returns `results.json`."""
    _check(config)
    scheme = schemes.parse(config.scheme)
    corpus_name = "demo" if config.data_dir is None else config.data_dir.name
    output = config.output_dir or Path("runs") / f"{corpus_name}-{config.scheme}"
    output.mkdir(parents=True, exist_ok=True)
    records.write_json(output / "config.json", records.plain(config))
    stages, skip_log = progress.Stages(), data.SkipLog(strict=config.strict)
    mesh = mesh_lib.make()
    key = jax.random.key(config.seed)

    with stages("corpus"):
        corpus, vocoder = _corpus(config, output)
        front_end, model = config.front_end, None
        if config.weights is not None:
            model, front_end = _weights(config)
        splits = wavefake_corpus.split(
            corpus,
            vocoder,
            num_test=config.test_sentences,
            num_validation=config.validation_sentences,
            cut=_cutter(config, corpus, front_end, skip_log),
        )
        _say(_split_message(splits, corpus))
    if model is None:
        with stages("train"):
            model, epochs = _train(config, splits, front_end, mesh, skip_log)
        records.write_json(
            output / "training.json", [dataclasses.asdict(e) for e in epochs]
        )
    classifier = convnext.as_classifier(model, wavefake_corpus.CLASS_NAMES)

    with stages("features"):
        cached = {
            name: _features(
                output / "cache" / name,
                classifier,
                clips,
                front_end,
                content=cache.content_for(scheme),
                batch_size=config.batch_size,
                mesh=mesh,
                skip_log=skip_log,
            )
            for name, clips in (("train", splits.train), ("test", splits.test))
        }
    with stages("optimise"):
        fitted = _fit(config, key, classifier, cached["train"], front_end, scheme, mesh)
        explainer, history = fitted.explainer, fitted.history
        transform, test = explainer.transform, cached["test"].features
        # Clips that U was not learned on have to keep their predictions too.
        invariance = disentangle.audit(
            transform, classifier.head, test.pooled, test.logits
        ).check()
    explain.save(output, explainer, overwrite=True)
    records.write_bank(output / "bank.csv", explainer)

    with stages("evaluate"):
        rows = wavefake_corpus.rows_by_vocoder(cached["test"].clips, corpus)
        apex_logits = transform.compensate(classifier.head)(transform(test.pooled))
        eer = {
            "classifier": _eers(np.asarray(test.logits), cached["test"].clips, rows),
            "apex": _eers(np.asarray(apex_logits), cached["test"].clips, rows),
        }
    with stages("masking"):
        masked = _masking(config, key, explainer, splits.test, corpus, mesh, skip_log)
    with stages("figures"):
        plot.purity(history).savefig(output / "purity.png", dpi=120)
        _examples(config, output, explainer, splits.test, corpus, vocoder)

    skip_log.write_csv(output / "skipped.csv")
    results = {
        "scheme": scheme,
        "corpus": {
            "data_dir": str(corpus.root),
            "train_on": vocoder,
            "clips": {name: len(part.clips) for name, part in cached.items()},
            "vocoders": {name: len(at) for name, at in rows.items()},
            "skipped_files": len(skip_log),
        },
        "eer": eer,
        "invariance": dataclasses.asdict(invariance),
        "purity": {
            "before": history.round_purity[0],
            "after": history.round_purity[-1],
            **dataclasses.asdict(history),
        },
        "masking": masked,
        "seconds": {name: round(s, 2) for name, s in stages.seconds.items()},
        "seed": config.seed,
        "device": f"{mesh.size} x {mesh.devices.flat[0].device_kind}",
        "versions": records.versions(),
    }
    records.write_json(output / "results.json", results)
    _say(_report(results, output))
    return results


def _check(config: Config) -> None:
    """Raises for what cannot work before any work is done."""
    config.train.check()
    config.optimise.check()
    for name, least in (
        ("mask_draws", 1),
        ("examples", 0),
        ("batch_size", 1),
        ("demo_utterances", 5),
        ("windows_per_file", 1),
        ("test_sentences", 1),
        ("validation_sentences", 1),
    ):
        value = getattr(config, name)
        if value is not None and value < least:
            flag = name.replace("_", "-")
            raise ValueError(f"--{flag} must be at least {least}; got {value}")


def _corpus(config: Config, output: Path) -> tuple[wavefake_corpus.Corpus, str]:
    """The corpus and the vocoder to train on."""
    if config.data_dir is None:
        root, default = output / "corpus", DEMO_TRAIN_ON
        _make_demo(config, root)
    else:
        root, default = config.data_dir, "hifiGAN"
    corpus = wavefake_corpus.read(root)
    if config.data_dir is not None:
        absent = [name for name in wavefake_corpus.VOCODERS if name not in corpus.fake]
        if absent:
            _say(f"absent from {root}, so not tested: {', '.join(absent)}")
    return corpus, corpus.vocoder(config.train_on or default)


def _make_demo(config: Config, root: Path) -> None:
    """Writes the demo corpus: what the run will need of it, and no more."""
    train_on = config.train_on or DEMO_TRAIN_ON
    if train_on not in vocoders.VOCODERS:
        raise ValueError(
            f"--train-on {train_on!r}: the demo corpus has "
            f"{', '.join(vocoders.VOCODERS)}"
        )
    names = [f"{n:04d}" for n in range(config.demo_utterances)]
    tested = wavefake_corpus.held_out(
        names, config.test_sentences, config.validation_sentences
    )[0]
    others = [name for name in vocoders.VOCODERS if name != train_on]
    only = {name: [names.index(sentence) for sentence in tested] for name in others}
    total = 2 * len(names) + len(others) * len(tested)
    with progress.bar("demo corpus", total, "file") as on_progress:
        demo_corpus.write(
            root,
            num_utterances=config.demo_utterances,
            seed=config.seed,
            only=only,
            overwrite=True,
            on_progress=on_progress,
        )


def _cutter(
    config: Config,
    corpus: wavefake_corpus.Corpus,
    front_end: audio.FrontEnd,
    skip_log: data.SkipLog,
) -> Callable[[Sequence[data.Clip]], list[data.Clip]]:
    """From files to clips: one a file, or several of a small corpus."""
    windows = config.windows_per_file
    if windows is None:
        windows = 1 if len(corpus.sentences) >= 200 else 4
    if windows == 1:
        return list
    return functools.partial(
        data.windows, front_end=front_end, max_windows=windows, skip_log=skip_log
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


def _weights(config: Config) -> tuple[convnext.ConvNeXt, audio.FrontEnd]:
    """The classifier given, and its front end if it carries one."""
    assert config.weights is not None
    model, metadata = checkpoint.load_classifier(config.weights)
    if model.config.num_classes != len(wavefake_corpus.CLASS_NAMES):
        raise ValueError(
            f"--weights {config.weights} has {model.config.num_classes} classes "
            f"({', '.join(metadata['class_names'][:4])}, ...); this experiment needs "
            f"two, {' and '.join(wavefake_corpus.CLASS_NAMES)}"
        )
    if metadata["front_end"] is None:
        _say(f"{config.weights} carries no front end; --front-end's settings are used")
        return model, config.front_end
    return model, audio.FrontEnd.from_dict(metadata["front_end"])


def _train(
    config: Config,
    splits: data.Splits,
    front_end: audio.FrontEnd,
    mesh: jax.sharding.Mesh,
    skip_log: data.SkipLog,
) -> tuple[convnext.ConvNeXt, list[train.Epoch]]:
    shape = convnext.ConvNeXtConfig.named(
        config.model,
        num_classes=len(wavefake_corpus.CLASS_NAMES),
        layer_scale_init=LAYER_SCALE,
    )
    # Compiled: one by one, the random draws would each compile by themselves.
    seed = config.seed
    model = jax.jit(lambda: convnext.ConvNeXt(shape, rngs=nnx.Rngs(seed)))()
    batch_size = mesh_lib.round_up(config.train.batch_size, mesh)
    num_epochs = config.train.num_epochs(-(-len(splits.train) // batch_size))
    with progress.bar(
        "train classifier", num_epochs * len(splits.train), "clip"
    ) as on_progress:
        return train.fit(
            model,
            splits.train,
            splits.validation,
            front_end,
            class_names=wavefake_corpus.CLASS_NAMES,
            seed=config.seed,
            config=config.train,
            mesh=mesh,
            skip_log=skip_log,
            on_progress=on_progress,
        )


def _features(directory: Path, classifier, clips, front_end, **options) -> cache.Cached:
    """The features of clips; a cache that something else made is made anew."""
    with progress.bar(
        f"features ({directory.name})", len(clips), "clip"
    ) as on_progress:
        options["on_progress"] = on_progress
        try:
            return cache.build(directory, classifier, clips, front_end, **options)
        except cache.CacheError as error:
            _say(f"{error}; making it anew")
            shutil.rmtree(directory)
            return cache.build(directory, classifier, clips, front_end, **options)


def _fit(
    config: Config,
    key: jax.Array,
    classifier: classifier_lib.Classifier,
    cached: cache.Cached,
    front_end: audio.FrontEnd,
    scheme: schemes.Scheme,
    mesh: jax.sharding.Mesh,
) -> fit.Fit:
    with progress.bar("optimise U", config.optimise.epochs, "epoch") as on_progress:
        return fit.explainer(
            key,
            classifier,
            cached,
            front_end,
            scheme,
            config=config.optimise,
            mesh=mesh,
            on_epoch=lambda epoch, purity: on_progress(1),
        )


def _eers(
    logits: np.ndarray, clips: Sequence[data.Clip], rows: dict[str, np.ndarray]
) -> dict[str, float | None]:
    """EER in percent of each vocoder, None without clips, and their mean, `aeer`."""
    label = np.array([clip.label for clip in clips])
    score = logits[:, FAKE] - logits[:, 1 - FAKE]
    percent = {
        name: 100 * metrics.equal_error_rate(label[at], score[at]) if len(at) else None
        for name, at in rows.items()
    }
    known = [value for value in percent.values() if value is not None]
    return {**percent, "aeer": float(np.mean(known)) if known else None}


def _masking(
    config: Config,
    key: jax.Array,
    explainer: explain.Explainer,
    clips: Sequence[data.Clip],
    corpus: wavefake_corpus.Corpus,
    mesh: jax.sharding.Mesh,
    skip_log: data.SkipLog,
) -> dict[str, Any]:
    """EERs with nothing hidden, APEX's regions hidden, random regions hidden."""
    with progress.bar("masking study", len(clips), "clip") as on_progress:
        study = masking.study(
            key,
            explainer.classifier,
            explainer.transform,
            clips,
            explainer.front_end,
            scheme=explainer.scheme,
            draws=config.mask_draws,
            batch_size=config.batch_size,
            mesh=mesh,
            skip_log=skip_log,
            on_progress=on_progress,
        )
    read = [clips[i] for i in study.index]
    rows = wavefake_corpus.rows_by_vocoder(read, corpus)
    draws = [_eers(logits, read, rows) for logits in study.random]
    names = [name for name, value in draws[0].items() if value is not None]
    table = np.array([[draw[name] for name in names] for draw in draws])
    return {
        "none": _eers(study.none, read, rows),
        "apex": _eers(study.apex, read, rows),
        "random": {
            "draws": len(draws),
            "mean": dict(zip(names, table.mean(axis=0).tolist(), strict=True)),
            "std": dict(zip(names, table.std(axis=0).tolist(), strict=True)),
        },
    }


def _examples(
    config: Config,
    output: Path,
    explainer: explain.Explainer,
    clips: Sequence[data.Clip],
    corpus: wavefake_corpus.Corpus,
    vocoder: str,
) -> None:
    """Explanation figures of the first test clips: real, and by each vocoder."""
    directory = output / "explanations"
    shutil.rmtree(directory, ignore_errors=True)
    directory.mkdir()
    made_by = {str(c.path): name for name, fakes in corpus.fake.items() for c in fakes}
    first: dict[str, data.Clip] = {}
    for clip in clips:
        first.setdefault(made_by.get(str(clip.path), "real"), clip)
    order = sorted(first, key=("real", vocoder).__contains__, reverse=True)
    drawn = order[: config.examples]
    with progress.bar("figures", len(drawn), "figure") as on_progress:
        for name in drawn:
            clip = first[name]
            try:
                result = explainer(clip.path, offset_s=clip.offset_s)
            except audio.AudioError as error:
                _say(f"no figure: {error}")
                continue
            figure = plot.explained(result, explainer.front_end)
            figure.savefig(directory / f"{clip.group}_{name}.png", dpi=100)
            on_progress(1)


def _report(results: dict[str, Any], output: Path) -> str:
    """The tables, for a terminal of 80 columns."""
    eer, masked = results["eer"], results["masking"]
    random = masked["random"]
    lines = [
        "",
        f"EER in %, trained on {results['corpus']['train_on']}, scheme "
        f"{results['scheme']}",
        f"{'':24}{'':>6}{'nothing hidden':>18}{'region hidden':>28}",
        f"{'vocoder':24}{'clips':>6}{'classifier':>12}{'APEX':>6}"
        f"{'random':>16}{'APEX':>12}",
    ]
    for name, value in eer["classifier"].items():
        clips = results["corpus"]["vocoders"].get(name, "")
        if value is None:
            lines.append(f"{name:24}{clips:>6}{'no test clips':>18}")
            continue
        spread = f"{random['mean'][name]:.1f} ± {random['std'][name]:.1f}"
        lines.append(
            f"{name:24}{clips:>6}{value:12.1f}{eer['apex'][name]:6.1f}"
            f"{spread:>16}{masked['apex'][name]:12.1f}"
        )
    invariance, purity = results["invariance"], results["purity"]
    lines += [
        "",
        f"purity      {purity['before']:.3f} before, {purity['after']:.3f} after",
        f"invariance  {invariance['changed_predictions']} of "
        f"{invariance['num_clips']} predictions changed, logits within "
        f"{invariance['max_abs_logit_error']:.1e}, cond(U) "
        f"{invariance['condition_number']:.1f}",
        "seconds     "
        + ", ".join(f"{name} {s:.0f}" for name, s in results["seconds"].items()),
    ]
    if results["corpus"]["skipped_files"]:
        lines.append(
            f"skipped     {results['corpus']['skipped_files']} files, listed in "
            f"{output / 'skipped.csv'}"
        )
    lines.append(f"written to  {output}")
    return "\n".join(lines)


def _say(message: str) -> None:
    print(message, flush=True)


def cli() -> None:
    """The command line: a clear line instead of a traceback for what users cause."""
    config = tyro.cli(Config, description=HELP)
    try:
        main(config)
    except (ValueError, OSError) as error:
        sys.exit(f"error: {error}")
    except KeyboardInterrupt:
        sys.exit("interrupted")


if __name__ == "__main__":
    cli()
