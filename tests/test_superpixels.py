"""LIME against lime's own loop, and on a classifier that hears one cell alone.

The classifier serves `test_attribution` too.
"""

import builtins
import contextlib
import io

import jax.numpy as jnp
import numpy as np
import pytest
import test_cache

from apex_jax import audio, superpixels
from apex_jax import classifier as classifier_lib

F, T, CELL = 3, 4, 8
FRONT_END = test_cache.FRONT_END  # 24 rows x 32 frames
SHAPE = FRONT_END.shape


def patch_classifier(activation="softmax", row=1, column=2):
    """Its second class hears nothing but one cell of the spectrogram."""

    def forward(params, spectrogram):
        cells = spectrogram.reshape(-1, F, CELL, T, CELL).mean(axis=(2, 4))
        chosen = jnp.zeros_like(cells).at[:, row, column].set(cells[:, row, column])
        feature_map = jnp.stack([jnp.zeros_like(chosen), chosen], axis=-1)
        return feature_map, head(classifier_lib.pool(feature_map))

    head = classifier_lib.LinearHead(
        weight=jnp.eye(2) * (F * T), bias=jnp.array([0.0, -1.0])
    )
    return classifier_lib.Classifier(
        params=(),
        head=head,
        forward_fn=forward,
        class_names=("nothing", "cell"),
        activation=activation,
    )


def sound(rng):
    """A spectrogram in the front end's units, louder than silence everywhere."""
    return np.asarray(rng.uniform(1.0, 1.5, SHAPE), np.float32)


def lime_of(classifier, spectrogram, target=1, **options):
    options = {"num_samples": 60, "num_segments": 12, **options}
    return superpixels.lime(classifier, FRONT_END, spectrogram, target, **options)


@pytest.mark.parametrize("activation", ["softmax", "sigmoid"])
def test_lime_finds_the_only_cell_that_counts(rng, activation):
    segments, weights = lime_of(
        patch_classifier(activation), sound(rng), num_samples=400
    )
    assert segments.shape == SHAPE
    assert set(np.unique(segments)) == set(range(len(weights)))
    heat = np.maximum(weights, 0)[segments]
    cells = heat.reshape(F, CELL, T, CELL).mean(axis=(1, 3))
    assert np.unravel_index(cells.argmax(), cells.shape) == (1, 2)
    against = lime_of(patch_classifier(activation), sound(rng), target=0)[1]
    assert activation == "sigmoid" or np.abs(against).max() > 0.01


@pytest.mark.parametrize("instead", [None, "the average row"])
def test_lime_is_limes_own(rng, instead):
    """The same segments, seed and classifier through lime's slow and loud loop."""
    from lime import lime_image

    classifier, spectrogram = patch_classifier(), sound(rng)
    options = {}
    left_out = float(audio.silence_level(FRONT_END, spectrogram[None])[0])
    if instead:
        row = spectrogram.mean(axis=0)
        options["instead"] = np.tile(row, (len(spectrogram), 1))
        left_out = np.tile(row[None, :, None], (len(spectrogram), 1, 3))
    segments, weights = lime_of(classifier, spectrogram, seed=3, **options)

    def predict(images):
        logits = classifier(jnp.asarray(images[..., 0], jnp.float32))[1]
        return classifier_lib.probabilities(logits, "softmax")

    theirs = lime_image.LimeImageExplainer(random_state=3)
    with contextlib.redirect_stderr(io.StringIO()):
        found = theirs.explain_instance(
            spectrogram.astype(np.float64),
            predict,
            labels=(1,),
            top_labels=None,
            hide_color=left_out,
            num_samples=60,
            segmentation_fn=lambda image: segments,
        )
    expected = dict(found.local_exp[1])
    assert len(expected) == len(weights)
    for segment, weight in expected.items():
        assert weights[segment] == pytest.approx(weight, abs=1e-6)


def test_lime_is_reproducible_and_quiet(rng, capfd):
    classifier, spectrogram = patch_classifier(), sound(rng)
    _, first = lime_of(classifier, spectrogram)
    np.random.default_rng().random()
    _, again = lime_of(classifier, spectrogram)
    np.testing.assert_array_equal(first, again)
    # 7 divides neither the samples nor the default; the last chunk is padded.
    _, chunked = lime_of(classifier, spectrogram, chunk_size=7)
    np.testing.assert_allclose(chunked, first, atol=1e-6)
    _, other = lime_of(classifier, spectrogram, seed=1)
    assert np.abs(other - first).max() > 1e-4
    assert capfd.readouterr() == ("", "")


def test_lime_of_silence(rng):
    """Nothing can be hidden, so nothing counts."""
    silence = np.full(SHAPE, -3.5, np.float32)
    _, weights = lime_of(patch_classifier(), silence)
    np.testing.assert_allclose(weights, 0, atol=1e-6)


@pytest.mark.parametrize(
    ("option", "value", "least"),
    [("seed", -1, 0), ("num_samples", 1, 2), ("num_segments", 1, 2)],
)
def test_lime_says_which_number_is_wrong(rng, option, value, least):
    message = f"{option} must be at least {least}; got {value}"
    with pytest.raises(ValueError, match=message):
        lime_of(patch_classifier(), sound(rng), **{option: value})


@pytest.mark.parametrize("package", ["lime", "skimage"])
def test_lime_says_what_to_install(rng, package, monkeypatch):
    real = builtins.__import__

    def without(name, *rest, **options):
        if name.split(".")[0] == package:
            raise ModuleNotFoundError(f"No module named {name!r}", name=package)
        return real(name, *rest, **options)

    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(ImportError, match=r"pip install 'apex-jax\[baselines\]'"):
        lime_of(patch_classifier(), sound(rng))
