"""LIME on a spectrogram: which of its superpixels a class's probability hangs on.

In come a classifier and the spectrogram of one clip; out come superpixels and a weight
for each. The regression is the `lime` package's, the superpixels scikit-image's.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from apex_jax import audio
from apex_jax import classifier as classifier_lib

# lime and scikit-image are imported where they are used: they come with an extra.

# Of SLIC, chosen by eye: segments follow syllables and calls. At compactness 1 they are
# squares; at 0.1, or without the blur, they follow the noise, and in noise alone they
# can collapse into one.
COMPACTNESS = 0.3
SIGMA = 1.0  # pixels


def lime(
    classifier: classifier_lib.Classifier,
    front_end: audio.FrontEnd,
    spectrogram: Float[np.ndarray, "freq time"],
    target: int,
    *,
    seed: int = 0,
    num_samples: int = 1000,
    num_segments: int = 50,
    instead: Float[np.ndarray, "freq time"] | None = None,
    chunk_size: int = 8,
) -> tuple[Int[np.ndarray, "freq time"], Float[np.ndarray, " segment"]]:
    """Superpixels and what each adds to a class's probability (Ribeiro et al., 2016).

    Superpixels are SLIC's. Each sample leaves out about half of them; a weighted ridge
    regression explains the classifier's probability by which were kept. The same seed
    gives the same numbers, whatever `chunk_size`, up to the network's rounding.

    Args:
      classifier: the untouched network.
      front_end: tells what silence is in the spectrogram's units.
      spectrogram: of the clip.
      target: the class c.
      seed: of the samples.
      num_samples: copies of the clip with some left out.
      num_segments: superpixels, about.
      instead: what is heard in the place of those; None for silence.
      chunk_size: copies in the network at a time.

    Returns:
      The superpixel of each pixel, from 0; and the regression's coefficients, in units
      of probability.

    Raises:
      ImportError: lime or scikit-image is not installed.
      ValueError: a number out of range.
    """
    for name, value, least in (
        ("seed", seed, 0),
        ("num_samples", num_samples, 2),
        ("num_segments", num_segments, 2),
        ("chunk_size", chunk_size, 1),
    ):
        if value < least:
            raise ValueError(f"{name} must be at least {least}; got {value}")
    try:
        from lime import lime_image
        from skimage import segmentation
    except ImportError as error:
        raise ImportError(
            f"LIME needs {error.name}: pip install 'apex-jax[baselines]'"
        ) from error

    class Explainer(lime_image.LimeImageExplainer):
        """The same samples without lime's loop, which always prints a progress bar."""

        def data_labels(
            self, image, fudged_image, segments, classifier_fn, num_samples, **_
        ):
            shape = (num_samples, segments.max() + 1)
            kept = self.random_state.randint(0, 2, shape)
            kept[0] = 1
            return kept, classifier_fn(image, fudged_image, segments, kept)

    def probabilities(image, instead, segments, kept):
        # lime's images are of three equal colours.
        image, instead = (jnp.asarray(a[..., 0], jnp.float32) for a in (image, instead))
        found = []
        for first in range(0, len(kept), chunk_size):
            chunk = kept[first : first + chunk_size]
            padded = np.pad(chunk, ((0, chunk_size - len(chunk)), (0, 0)))
            logits = _logits(classifier, image, instead, segments, padded)
            found.append(np.asarray(logits)[: len(chunk)])
        return classifier_lib.probabilities(
            np.concatenate(found), classifier.activation
        )

    if instead is None:
        silence = audio.silence_level(front_end, spectrogram[None])
        instead = np.full(spectrogram.shape, float(silence[0]))
    segments = segmentation.slic(
        spectrogram,
        n_segments=num_segments,
        compactness=COMPACTNESS,
        sigma=SIGMA,
        start_label=0,
        channel_axis=None,
    )
    # `random_state` is the seed of the samples; `random_seed`, of `explain_instance`,
    # would reach a segmentation of lime's own only.
    found = Explainer(random_state=seed, feature_selection="none").explain_instance(
        spectrogram.astype(np.float64),
        probabilities,
        labels=(target,),
        top_labels=None,
        hide_color=instead[:, :, None],
        num_samples=num_samples,
        segmentation_fn=lambda image: segments,
    )
    weights = np.zeros(segments.max() + 1)
    for segment, weight in found.local_exp[target]:
        weights[segment] = weight
    return segments, weights


@jax.jit
def _logits(
    classifier: classifier_lib.Classifier,
    spectrogram: Float[Array, "freq time"],
    instead: Float[Array, "freq time"],
    segments: Int[Array, "freq time"],
    kept: Int[Array, "batch segment"],
) -> Float[Array, "batch classes"]:
    copies = jnp.where(kept[:, segments] == 1, spectrogram[None], instead[None])
    return classifier(copies)[1]
