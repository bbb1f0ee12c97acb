"""Rows of the way from sound to feature map: log-mel, backbone, feature pass."""

from __future__ import annotations

import collections
import functools
import itertools
import tempfile
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from apex_jax import audio, cache, data
from apex_jax import classifier as classifier_lib
from apex_jax import mesh as mesh_lib
from apex_jax.models import convnext
from benchmarks import rows, sizes, synthetic, timing


def log_mel(size: sizes.Sizes) -> list[rows.Row]:
    """Our spectrogram on the device against librosa's on the host."""
    import librosa

    front_end = audio.FrontEnd.librosa(
        sample_rate=22050, clip_s=5.0, hop_length=512, top_db=None
    )
    clips = 8 * size.batch
    waveform = synthetic.waveforms(front_end, clips)
    # As the feature pass runs it.
    ours = jax.jit(
        functools.partial(
            mesh_lib.map_clips(
                lambda _, clips: audio.spectrogram(front_end, clips),
                mesh_lib.make(jax.devices()[:1]),
            ),
            None,
        )
    )

    def theirs() -> np.ndarray:
        power = librosa.feature.melspectrogram(y=waveform, sr=22050)
        return librosa.power_to_db(power, top_db=None)

    def check(found: jax.Array, expected: np.ndarray) -> None:
        timing.check_close("log-mel", found, expected, 1e-3)

    timings = timing.alternate(
        {"ours": lambda: ours(waveform), "librosa": theirs},
        budget_s=size.budget_s,
        check=check,
        least=size.least,
    )
    return [
        rows.between(
            "log-mel",
            "log-mel of 5 s clips",
            *timings,
            unit="clip",
            per_call=clips,
            floor_is="librosa's",
            goal=rows.Goal(at_most=1.0) if size.judged else None,
        )
    ]


def backbone(size: sizes.Sizes) -> list[rows.Row]:
    """A forward pass against the two linear layers of its blocks alone."""
    model = synthetic.classifier(size.network).params
    images = jax.random.normal(
        jax.random.key(0), (size.batch, *size.front_end.shape), jnp.float32
    )
    run = jax.jit(lambda model, images: model(images))

    def check(logits: jax.Array, _: Any) -> None:
        # A clip's logits do not depend on those beside it.
        alone = jnp.concatenate([run(model, image[None]) for image in images[:2]])
        timing.check_close("backbone, clip by clip", logits[:2], alone, 1e-4)

    timings = timing.alternate(
        {
            "backbone": lambda: run(model, images),
            "linear layers": linear_layers(size.network, images.shape),
        },
        budget_s=size.budget_s,
        check=check,
        least=size.least,
    )
    return [
        rows.between(
            "backbone",
            f"backbone {size.network_name}",
            *timings,
            unit="clip",
            per_call=size.batch,
            floor_is="its linear layers alone",
        )
    ]


def linear_layers(
    config: convnext.ConvNeXtConfig, shape: tuple[int, ...]
) -> Callable[[], list[jax.Array]]:
    """The products of all blocks, nearly all of the arithmetic, one after another."""
    batch, freq, time = shape
    stages = []
    for index, (depth, dim) in enumerate(zip(config.depths, config.dims, strict=True)):
        stride = config.patch_size * 2**index
        cells = batch * (freq // stride) * (time // stride)
        weight = jnp.ones((depth, dim, 4 * dim)) / dim
        stages.append((jnp.ones((cells, dim)), weight))

    # As precise as the network's: left alone, a GPU would round the factors (TF32).
    multiply = functools.partial(jnp.matmul, precision=convnext.PRECISION)

    @jax.jit
    def products(stages):
        return [
            jax.lax.scan(lambda x, w: (multiply(multiply(x, w), w.T), None), x, weight)[
                0
            ]
            for x, weight in stages
        ]

    return functools.partial(products, stages)


# Hertz of files that have to be resampled for the front end.
OTHER_RATE = 44_100


def feature_pass(size: sizes.Sizes) -> list[rows.Row]:
    """Sound files to a cache on disk against the backbone on ready spectrograms.

    Files of the front end's own sample rate, and files of another one.
    """
    classifier = synthetic.classifier(size.network)
    front_end, mesh = size.front_end, mesh_lib.make()
    batch = mesh_lib.round_up(size.batch, mesh)
    num_batches = -(-size.sounds // batch)
    copies = mesh_lib.replicate(classifier, mesh)
    spectrogram = jax.jit(audio.spectrogram, static_argnums=0)

    @jax.jit
    def forward(classifier, spectrogram):
        alone = mesh_lib.map_clips(lambda network, clips: network(clips)[1], mesh)
        return alone(classifier, spectrogram)

    def first_batch(clips: Sequence[data.Clip]) -> Any:
        waveforms = [audio.load_clip(clip.path, front_end) for clip in clips[:batch]]
        images = spectrogram(front_end, np.stack(waveforms))
        return mesh_lib.shard(np.asarray(images), mesh)

    with tempfile.TemporaryDirectory() as temporary:
        corpora = {
            rate: synthetic.sounds(
                Path(temporary) / str(rate),
                front_end,
                size.sounds,
                size.network.num_classes,
                sample_rate=rate,
            )
            for rate in (front_end.sample_rate, OTHER_RATE)
        }
        number = itertools.count()
        ready = first_batch(corpora[front_end.sample_rate])

        def build(clips: Sequence[data.Clip]) -> np.ndarray:
            cached = cache.build(
                Path(temporary) / f"cache-{next(number)}",
                classifier,
                clips,
                front_end,
                batch_size=batch,
                mesh=mesh,
            )
            return np.asarray(cached.features.logits)

        def network_alone() -> jax.Array:
            return [forward(copies, ready) for _ in range(num_batches)][-1]

        def check(*found: Any) -> None:
            *passes, _ = found
            for logits, clips in zip(passes, corpora.values(), strict=True):
                first = min(batch, size.sounds)
                alone = forward(copies, first_batch(clips))
                timing.check_close(
                    "feature pass", logits[:first], np.asarray(alone)[:first], 1e-3
                )

        *timings, floor = timing.alternate(
            {
                **{
                    f"{rate} Hz": functools.partial(build, clips)
                    for rate, clips in corpora.items()
                },
                "backbone": network_alone,
            },
            budget_s=size.budget_s,
            check=check,
            least=size.least,
        )
        details = [
            _reading(classifier, clips, front_end, batch) for clips in corpora.values()
        ]
    names = f"feature pass {size.network_name}", f"  from {OTHER_RATE / 1e3:g} kHz"
    return [
        rows.between(
            "feature-pass",
            name,
            one,
            floor,
            unit="clip",
            per_call=size.sounds,
            floor_is="the backbone alone",
            details={
                "clips": size.sounds,
                "batch": batch,
                "sample_rate": rate,
                **found,
            },
            note=(
                f"reading alone {1e3 * found['reading_s'] / size.sounds:.3g} ms a clip"
                f"; once a corpus, the fingerprint: {found['fingerprint_s']:.2g} s"
            ),
        )
        for name, one, rate, found in zip(names, timings, corpora, details, strict=True)
    ]


def _reading(
    classifier: classifier_lib.Classifier,
    clips: Sequence[data.Clip],
    front_end: audio.FrontEnd,
    batch: int,
) -> dict[str, float]:
    """Seconds of what a feature pass does besides the network."""

    def read() -> Iterator[data.Batch]:
        skip_log = data.SkipLog(strict=True)
        return data.batches(clips, front_end, batch_size=batch, skip_log=skip_log)

    return {
        "fingerprint_s": timing.seconds(
            lambda: cache.fingerprint(classifier, clips, front_end)
        ),
        # What an accelerator waits for before it begins.
        "first_batch_s": timing.seconds(lambda: next(read())),
        # And what it may not outrun.
        "reading_s": timing.seconds(lambda: collections.deque(read(), maxlen=0)),
    }
