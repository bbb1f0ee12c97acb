"""Rows of what a user waits for: an explanation, the masking study."""

from __future__ import annotations

import functools
import tempfile
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

from apex_jax import audio, bank, cache, explainer, explanation, look, masking
from apex_jax import mesh as mesh_lib
from benchmarks import rows, sizes, synthetic, timing


def explain(size: sizes.Sizes) -> list[rows.Row]:
    """A sound file to an explanation, by map and by occlusion, against the passes."""
    classifier = synthetic.classifier(size.network)
    front_end, mesh = size.front_end, mesh_lib.make()
    with tempfile.TemporaryDirectory() as temporary:
        clips = synthetic.sounds(
            Path(temporary), front_end, size.sounds, size.network.num_classes
        )
        cached = cache.build(
            Path(temporary) / "cache",
            classifier,
            clips,
            front_end,
            batch_size=size.batch,
            mesh=mesh,
        )
        features = cached.features.to_mesh(mesh)
        transform = synthetic.transform(features.pooled.shape[-1])
        of_sign = functools.partial(
            bank.build, transform, features, scheme="frequency", mesh=mesh
        )
        explain_clip = explainer.Explainer(
            classifier=classifier,
            transform=transform,
            positive=of_sign(sign="positive"),
            negative=of_sign(sign="negative"),
            clips=cached.clips,
            front_end=front_end,
        )
        path = Path(clips[0].path)
        shape = (1, *front_end.shape)
        images = jax.random.normal(jax.random.key(0), shape)

        def check(found: explanation.Explanation, _: object) -> None:
            # The compensated head on the transformed map: the network's own logits.
            own = np.asarray(cached.features.logits)[0]
            timing.check_close("explained logits", found.logits, own, 1e-3)

        found = []
        regions = len(explain_clip.grid().locations(explain_clip.scheme))
        for locate, name, passes in (
            ("map", "explanation, not the first", 1),
            ("occlusion", "the same by occlusion", 2 + 2 * regions),
        ):
            ours, one_pass = timing.alternate(
                {
                    "explain": functools.partial(explain_clip, path, locate=locate),
                    "network": lambda: look.network(classifier, images),
                },
                budget_s=size.budget_s,
                check=check,
                least=size.least,
            )
            first_s = ours.first_s
            floor = "one pass" if passes == 1 else f"{passes} passes"
            found.append(
                rows.between(
                    "explain",
                    name,
                    ours,
                    one_pass.scaled(passes),
                    unit="clip",
                    floor_is=f"{floor} of the network",
                    details={"first_s": first_s, "clips": size.sounds},
                    note="the first, compilation and prototypes included: "
                    f"{first_s:.1f} s",
                )
            )
    return found


def mask(size: sizes.Sizes) -> list[rows.Row]:
    """The masking study of a batch against as many passes of the network."""
    classifier = synthetic.classifier(size.network)
    front_end, mesh = size.front_end, mesh_lib.make(jax.devices()[:1])
    transform = synthetic.transform(size.network.dims[-1])
    waveform = jnp.asarray(synthetic.waveforms(front_end, size.batch))
    images = jax.jit(audio.spectrogram, static_argnums=0)(front_end, waveform)
    # Nothing hidden, the region hidden, and each random draw.
    passes = 2 + size.draws
    forward = jax.jit(lambda classifier, images: classifier(images)[1])

    def study() -> tuple[jax.Array, ...]:
        return masking.masked_logits(
            jax.random.key(0),
            classifier,
            transform,
            waveform,
            jnp.arange(size.batch),
            front_end=front_end,
            scheme="frequency",
            draws=size.draws,
            mesh=mesh,
        )

    def check(found: tuple[jax.Array, ...], logits: jax.Array) -> None:
        timing.check_close("masking, nothing hidden", found[0], logits, 1e-3)

    ours, one_pass = timing.alternate(
        {"study": study, "network": lambda: forward(classifier, images)},
        budget_s=size.budget_s,
        check=check,
        least=size.least,
    )
    return [
        rows.between(
            "masking",
            f"masking study, {size.draws} draws",
            ours,
            one_pass.scaled(passes),
            unit="clip",
            per_call=size.batch,
            floor_is=f"{passes} passes of the network",
        )
    ]
