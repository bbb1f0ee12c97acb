"""A classifier that finds a planted event, and the clips in which it does.

What the localisation experiment explains: put together from a folder in which the
network is trained, and from which U is learned in one way or another.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float

from apex_jax import (
    audio,
    checkpoint,
    data,
    disentangle,
    look,
    masking,
    occlusion,
    progress,
    runs,
    schemes,
    settings,
)
from apex_jax import classifier as classifier_lib
from apex_jax.models import convnext
from experiments import methods
from experiments.localisation import corpus as corpus_lib
from experiments.localisation import options, plants, scoring, variants

PLANTED = corpus_lib.CLASSES.index("planted")
AT_ONCE = 4  # spectrograms in the network at a time


@dataclasses.dataclass(frozen=True, kw_only=True)
class Explained:
    """A trained classifier, its test clips, and what learns U for it.

    Attributes:
      config: of the experiment, with this seed.
      folder: of this event and seed.
      event: what is planted.
      problem: what U is learned on: the first of the network's training clips.
      model: the network.
      clips: test clips with the event in which it was found.
      maps: their feature maps, `[clip, F, T, chan]`.
      effects: by scheme, what each region adds to their pooled vectors.
      boxes: of their events in pixels, `[clip, 4]`.
      known: of the events of the training clips, `[event, 4]`.
      probabilities: of the event in the clips, `[clip]`.
      tested: pooled vectors and logits of all test clips.
      accuracy: of the classifier on them.
    """

    config: options.Config
    folder: Path
    event: options.Event
    problem: methods.Problem
    model: convnext.ConvNeXt
    clips: list[data.Clip]
    maps: np.ndarray
    effects: dict[schemes.Scheme, schemes.Views]
    boxes: np.ndarray
    known: np.ndarray
    probabilities: np.ndarray
    tested: tuple[np.ndarray, np.ndarray]
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

    def views(self, scheme: schemes.Scheme, locate: settings.Location) -> schemes.Views:
        """What a location is looked for in."""
        if locate == "occlusion":
            return self.effects[scheme]
        return schemes.views(jnp.asarray(self.maps), keep_cells=True)

    def silenced(self, scheme: schemes.Scheme) -> Float[np.ndarray, "clip region chan"]:
        """Pooled vectors of the clips without each region, as the masking study does.

        Regions are in the order of `grid.locations`.
        """
        front_end = self.problem.front_end
        locations = jnp.asarray(self.grid.locations(scheme))
        masks = masking.masks(self.grid, scheme, locations)
        found = []
        with progress.bar("masking", len(self.clips), "clip") as on_progress:
            for clip in self.clips:
                spectrogram = spectrogram_of(front_end, clip)
                copies = jnp.broadcast_to(jnp.asarray(spectrogram), masks.shape)
                left = np.asarray(audio.attenuate(front_end, copies, masks))
                found.append(look.pooled(self.classifier, left, AT_ONCE))
                on_progress(1)
        return np.stack(found)

    def audit(self, transform: disentangle.Transform) -> disentangle.Audit:
        """The transformed classifier against the network on all test clips.

        Raises:
          InvarianceError: it changes a prediction.
        """
        pooled, logits = self.tested
        return disentangle.audit(
            transform, self.classifier.head, pooled, logits
        ).check()

    def located(
        self,
        transform: disentangle.Transform,
        scheme: schemes.Scheme,
        kind: settings.Evidence,
        locate: settings.Location,
    ) -> scoring.Where:
        """Where each clip's top channels lie."""
        return self.channels(transform, scheme, kind, locate).where

    def channels(
        self,
        transform: disentangle.Transform,
        scheme: schemes.Scheme,
        kind: settings.Evidence,
        locate: settings.Location,
    ) -> scoring.Pointing:
        """The channels that contribute most to each clip."""
        return scoring.channels(
            transform,
            self.classifier,
            np.asarray(classifier_lib.pool(self.maps)),
            self.views(scheme, locate),
            PLANTED,
            scheme,
            kind=kind,
            locate=locate,
        )


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
    some: Sequence[schemes.Scheme] = ("square", "time", "frequency"),
) -> Explained:
    """The network on its test clips, with what regions of some schemes add.

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
    pooled, logits = (
        np.asarray(a)[: tested.features.num_clips]
        for a in (tested.features.pooled, tested.features.logits)
    )
    labels = np.array([clip.labels[0] for clip in tested.clips])
    predicted = logits.argmax(axis=1)
    found = np.flatnonzero((labels == PLANTED) & (predicted == PLANTED))
    if not len(found):
        raise ValueError(
            f"{folder}: the classifier finds none of the planted events, so there is "
            "nothing to explain; train longer, --train.epochs"
        )
    clips = [tested.clips[i] for i in found]
    maps = np.asarray(tested.features.views.cells)[found]
    return Explained(
        config=config,
        folder=folder,
        event=event,
        problem=dataclasses.replace(
            problem,
            splits=problem.splits._replace(
                train=problem.splits.train[: config.explain_clips]
            ),
        ),
        model=model,
        clips=clips,
        maps=maps,
        effects=effects_of(
            problem.classifier(model), problem.front_end, clips, maps, some
        ),
        boxes=_boxes(corpus, clips, problem.front_end),
        known=_boxes(
            corpus, [c for c in corpus.splits.train if c.label], problem.front_end
        ),
        probabilities=classifier_lib.probabilities(logits, "softmax")[found, PLANTED],
        tested=(pooled, logits),
        accuracy=float((predicted == labels).mean()),
    )


def _boxes(
    corpus: corpus_lib.Corpus, clips: Sequence[data.Clip], front_end: audio.FrontEnd
) -> np.ndarray:
    """Where the events of planted clips are, in pixels, `[clip, 4]`."""
    boxes = [event.box(front_end) for event in corpus_lib.of(corpus, clips)]
    return np.array([(*box.rows, *box.frames) for box in boxes])


def spectrogram_of(front_end: audio.FrontEnd, clip: data.Clip) -> np.ndarray:
    """The spectrogram of a clip, `[F_in, T_in]`."""
    waveform = audio.load_clip(clip.path, front_end, clip.offset_s)
    return look.spectrogram_of(front_end, waveform)


def effects_of(
    classifier: classifier_lib.Classifier,
    front_end: audio.FrontEnd,
    clips: Sequence[data.Clip],
    maps: Float[np.ndarray, "clip freq time chan"],
    some: Sequence[schemes.Scheme],
) -> dict[schemes.Scheme, schemes.Views]:
    """What each region of each clip adds, under some schemes.

    Where time and frequency are among them, time-frequency is too.
    """
    grid = schemes.Grid.of(maps.shape[1:3], front_end.shape, classifier.stride)
    pooled_of_all = np.asarray(classifier_lib.pool(maps))
    found: dict[schemes.Scheme, list[np.ndarray]] = {s: [] for s in some}
    with progress.bar("occlusion", len(clips), "clip") as on_progress:
        for clip, pooled in zip(clips, pooled_of_all, strict=True):
            spectrogram = spectrogram_of(front_end, clip)
            for scheme, each in found.items():
                effects = occlusion.effects_of_clip(
                    classifier,
                    front_end,
                    spectrogram,
                    pooled,
                    grid=grid,
                    scheme=scheme,
                    chunk_size=AT_ONCE,
                )
                each.append(np.asarray(effects.cells))
            on_progress(1)
    cells = {scheme: np.stack(each) for scheme, each in found.items()}
    if {"time", "frequency"} <= set(cells):
        # What it would be, without as many passes again.
        cells["time_frequency"] = cells["frequency"] + cells["time"]
    return {
        scheme: schemes.views(jnp.asarray(each), keep_cells=True)
        for scheme, each in cells.items()
    }


def reopened(folder: Path, mesh: jax.sharding.Mesh) -> Explained:
    """From a folder that the experiment has finished; settings that only make, default.

    What regions add is known of the scheme that fits the event alone.

    Raises:
      FileNotFoundError: there is no corpus, or no network.
    """
    corpus, about = corpus_lib.read(folder / "corpus"), corpus_lib.about(folder)
    finished = runs.read_json(folder / "scores.json")["settings"]
    config = options.Config(seed=about["seed"], explain_clips=finished["explain_clips"])
    event = about["event"]
    problem = problem_of(corpus, config, event, mesh, data.SkipLog())
    model, _ = checkpoint.load_classifier(folder / "classifier")
    scheme, _ = plants.FITS[event]
    return made(config, folder, event, problem, model, corpus, (scheme,))
