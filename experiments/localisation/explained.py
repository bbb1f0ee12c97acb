"""A classifier that finds a planted event, and the clips in which it does.

What the localisation experiment explains: put together from a folder in which the
network is trained, and from which U is learned in one way or another.
"""

from __future__ import annotations

import dataclasses
from pathlib import Path

import jax
import numpy as np

from apex_jax import checkpoint, data, disentangle, progress, runs, schemes
from apex_jax import classifier as classifier_lib
from apex_jax.models import convnext
from experiments import methods
from experiments.localisation import corpus as corpus_lib
from experiments.localisation import options, scoring, variants

PLANTED = corpus_lib.CLASSES.index("planted")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Explained:
    """A trained classifier, its test clips, and what learns U for it.

    Attributes:
      config: of the experiment, with this seed.
      folder: of this event and seed.
      event: what is planted.
      problem: what the network was trained on.
      model: the network.
      clips: test clips with the event in which it was found.
      maps: their feature maps, `[clip, F, T, chan]`.
      boxes: of their events in pixels, `[clip, 4]`.
      accuracy: of the classifier on all test clips.
    """

    config: options.Config
    folder: Path
    event: options.Event
    problem: methods.Problem
    model: convnext.ConvNeXt
    clips: list[data.Clip]
    maps: np.ndarray
    boxes: np.ndarray
    accuracy: float

    @property
    def cache_dir(self) -> Path:
        """Where the training clips' features are."""
        return self.folder / "cache"

    @property
    def classifier(self) -> classifier_lib.Classifier:
        """The network as what is explained."""
        return self.problem.classifier(self.model)

    @property
    def grid(self) -> schemes.Grid:
        """How its map lies on the spectrogram."""
        return schemes.Grid.of(
            self.maps.shape[1:3], self.problem.front_end.shape, self.classifier.stride
        )

    def learn(
        self, variant: variants.Name, scheme: schemes.Scheme, *, seed: int, folder: Path
    ) -> tuple[methods.Learned, progress.Stages]:
        """U in one of the ways, from disk where it is there, and the time it took."""
        stages = progress.Stages()
        optimise = variants.of(variant, self.config.optimise)
        found = methods.learn(
            stages,
            folder,
            jax.random.key(seed),
            self.problem,
            dataclasses.replace(self.config, optimise=optimise),
            self.model,
            scheme,
            cache_dir=self.cache_dir,
            trained_on=f"clips, half of them with a planted {self.event}",
        )
        return found, stages

    def pointing(
        self, transform: disentangle.Transform, scheme: schemes.Scheme
    ) -> tuple[dict[str, np.ndarray], np.ndarray]:
        """Scores of each clip by contrastive evidence, and the top channel's share."""
        where = scoring.channels(
            transform, self.classifier, self.maps, PLANTED, scheme, kind="contrastive"
        )
        scores = scoring.scored(self.grid, scheme, where.locations, self.boxes)
        return scores, where.share[:, 0]


def problem_of(
    made: corpus_lib.Corpus,
    config: options.Config,
    event: options.Event,
    mesh: jax.sharding.Mesh,
    skip_log: data.SkipLog,
) -> methods.Problem:
    """What the network of an event is trained on."""
    return methods.Problem(
        splits=made.splits,
        class_names=corpus_lib.CLASSES,
        front_end=config.front_end_of(event),
        mesh=mesh,
        skip_log=skip_log,
    )


def made(
    config: options.Config,
    folder: Path,
    event: options.Event,
    problem: methods.Problem,
    model: convnext.ConvNeXt,
    corpus: corpus_lib.Corpus,
) -> Explained:
    """The network on its test clips.

    Raises:
      ValueError: it finds none of the events.
    """
    tested = runs.features(
        folder / "test-cache",
        problem.classifier(model),
        corpus.splits.test,
        problem.front_end,
        content="maps",
        batch_size=config.batch_size,
        **problem.common,
    )
    logits = np.asarray(tested.features.logits)[: tested.features.num_clips]
    labels = np.array([clip.labels[0] for clip in tested.clips])
    predicted = logits.argmax(axis=1)
    found = np.flatnonzero((labels == PLANTED) & (predicted == PLANTED))
    if not len(found):
        raise ValueError(
            f"{folder}: the classifier finds none of the planted events, so there is "
            "nothing to explain; train longer, --train.epochs"
        )
    clips = [tested.clips[i] for i in found]
    places = [one.box(problem.front_end) for one in corpus_lib.of(corpus, clips)]
    return Explained(
        config=config,
        folder=folder,
        event=event,
        problem=problem,
        model=model,
        clips=clips,
        maps=np.asarray(tested.features.views.cells)[found],
        boxes=np.array([(*box.rows, *box.frames) for box in places]),
        accuracy=float((predicted == labels).mean()),
    )


def reopened(folder: Path, mesh: jax.sharding.Mesh) -> Explained:
    """From a folder that the experiment has finished; settings that only make, default.

    Raises:
      FileNotFoundError: there is no corpus, or no network.
    """
    corpus, about = corpus_lib.read(folder / "corpus"), corpus_lib.about(folder)
    config, event = options.Config(seed=about["seed"]), about["event"]
    problem = problem_of(corpus, config, event, mesh, data.SkipLog())
    model, _ = checkpoint.load_classifier(folder / "classifier")
    return made(config, folder, event, problem, model, corpus)
