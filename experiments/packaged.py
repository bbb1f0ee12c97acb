"""WaveFake and BirdSet as TFDS data sets, to share or to keep in an object store.

Beside the experiments, which read copies as they are. In comes a copy, out comes an
array_record data set with the experiments' splits, which `tfds.data_source` and `read`
open; TensorFlow is needed for neither. A record holds the bytes of a sound file, not
TFDS's audio feature, which would need TensorFlow, take fifteen times as long, and give
integers. WaveFake's are the files themselves; of BirdSet's, minutes long and with many
events each, a record has the stretch that it is about, as FLAC.

The builders stand here, not in the module that is run: grain's workers could not find
them in `__main__`.
"""

from __future__ import annotations

import io
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow_datasets as tfds

from apex_jax import audio, data
from experiments.birdset import corpus as birdset_corpus
from experiments.birdset import labels as birdset_labels
from experiments.wavefake import corpus as wavefake_corpus

Example = tuple[str, dict[str, Any]]


class WaveFake(tfds.core.GeneratorBasedBuilder):
    """A WaveFake copy: real and vocoded speech, split by sentence as in the paper."""

    VERSION = tfds.core.Version("1.0.0")

    def __init__(self, *, copy: Path, **options: Any):
        self._copy = Path(copy)
        super().__init__(**options)

    def _info(self) -> tfds.core.DatasetInfo:
        return _info(
            self,
            {
                "audio": tfds.features.Text(),  # the file's bytes
                "file": tfds.features.Text(),
                "sentence": tfds.features.Text(),
                "vocoder": tfds.features.Text(),
                "label": tfds.features.ClassLabel(names=wavefake_corpus.CLASS_NAMES),
            },
            supervised=("audio", "label"),
        )

    def _split_generators(self, _: Any) -> dict[str, Iterator[Example]]:
        corpus = wavefake_corpus.read(self._copy)
        test, validation = wavefake_corpus.sentences_held_out(corpus)
        parts = {
            "train": set(corpus.sentences) - set(test) - set(validation),
            "validation": set(validation),
            "test": set(test),
        }
        return {
            name: self._examples(corpus, sentences) for name, sentences in parts.items()
        }

    def _examples(
        self, corpus: wavefake_corpus.Corpus, sentences: set[str]
    ) -> Iterator[Example]:
        for vocoder, clips in {"": corpus.real, **corpus.fake}.items():
            for clip in clips:
                if clip.group in sentences:
                    path = Path(clip.path)
                    yield (
                        f"{vocoder}/{path.name}",
                        {
                            "audio": path.read_bytes(),
                            "file": path.name,
                            "sentence": clip.group,
                            "vocoder": vocoder,
                            "label": clip.labels[0],
                        },
                    )

    def _generate_examples(self, **_: Any) -> Iterator[Example]:
        raise NotImplementedError  # each split brings its own generator


class BirdSet(tfds.core.GeneratorBasedBuilder):
    """A subset of BirdSet: its training events, and its annotated clips.

    An example of the train split is a recording's event, or all of the eight seconds
    around a short one, from which crops are taken; one of test_5s is its clip. Labels
    are positions in the subset's class list.

    Attributes:
      skip_log: sounds that could not be read, known once the data set is prepared.
    """

    VERSION = tfds.core.Version("3.0.0")

    def __init__(
        self,
        *,
        copy: Path,
        labels: Path,
        subset: str,
        class_limit: int | None = None,
        event_limit: int | None = None,
        **options: Any,
    ):
        self._copy, self._subset = Path(copy), subset
        self._class_limit, self._event_limit = class_limit, event_limit
        self._names = birdset_labels.read(Path(labels), subset)
        self.skip_log = data.SkipLog()
        super().__init__(**options)

    def _info(self) -> tfds.core.DatasetInfo:
        return _info(
            self,
            {
                "audio": tfds.features.Text(),  # of a FLAC file
                "file": tfds.features.Text(),
                "labels": tfds.features.Sequence(
                    tfds.features.ClassLabel(names=self._names)
                ),
                # What its samples are to be multiplied by: see `_flac`.
                "scale": np.float32,
                # Where in the recording the sound begins, and where in the sound a
                # clip does that is not drawn: the event's middle.
                "start_s": np.float64,
                "clip_s": np.float64,
            },
        )

    def _split_generators(self, _: Any) -> dict[str, Iterator[Example]]:
        found: dict[str, Iterator[Example]] = {}
        splits: tuple[birdset_corpus.Split, ...] = ("train", "test_5s")
        for split in splits:
            if birdset_corpus.has(self._copy, self._subset, split):
                part = birdset_corpus.read(
                    self._copy,
                    self._subset,
                    split,
                    self._names,
                    own_names=self._names,
                    class_limit=self._class_limit,
                    event_limit=self._event_limit,
                    skip_log=self.skip_log,
                )
                found[split] = self._examples(part)
        if not found:
            raise ValueError(f"{self._copy / self._subset} holds no split of BirdSet")
        return found

    def _examples(self, part: birdset_corpus.Part) -> Iterator[Example]:
        for number, clip in enumerate(part.clips):
            path, start = Path(clip.path), float(clip.offset_s)
            end = start + birdset_corpus.CLIP_S
            if clip.within is not None:
                # A clip may reach beyond the event that it is the middle of.
                start, end = min(start, clip.within[0]), max(end, clip.within[1])
            try:
                content, scale = _flac(path, start, end)
            except audio.AudioError as error:
                self.skip_log.add(error)
                continue
            yield (
                f"{number:07d}/{path.name}",
                {
                    "audio": content,
                    "file": path.name,
                    "labels": list(clip.labels),
                    "scale": scale,
                    "start_s": start,
                    "clip_s": float(clip.offset_s) - start,
                },
            )

    def _generate_examples(self, **_: Any) -> Iterator[Example]:
        raise NotImplementedError  # each split brings its own generator


def write(builder: tfds.core.DatasetBuilder) -> dict[str, int]:
    """Prepares a data set, and says how many examples each split has."""
    # Without hosts' caches and checksums of downloads: everything is here.
    builder.download_and_prepare(
        download_config=tfds.download.DownloadConfig(register_checksums=False)
    )
    return {name: split.num_examples for name, split in builder.info.splits.items()}


def read(builder: tfds.core.DatasetBuilder | Path, split: str, sample_rate: int) -> Any:
    """A grain data set of one split: its records with decoded waveforms.

    Args:
      builder: or the folder that a data set was prepared in.
      split: as TFDS names it, slices too: "train[:10%]".
      sample_rate: of the waveforms, Hz.

    Returns:
      A `grain.MapDataset` of dicts, the record's fields but `audio`, and `waveform`,
      float32 `[sample]`, mono.
    """
    import grain

    if isinstance(builder, Path):
        builder = tfds.builder_from_directory(builder)

    def decoded(record: Mapping[str, Any]) -> dict[str, Any]:
        fields = {**record}
        samples = waveform(fields.pop("audio"), sample_rate)
        return {**fields, "waveform": samples * np.float32(fields.pop("scale", 1.0))}

    return grain.MapDataset.source(builder.as_data_source(split)).map(decoded)


def waveform(content: bytes, sample_rate: int) -> np.ndarray:
    """A sound file's bytes as samples, mono, `[sample]`."""
    import soundfile
    import soxr

    samples, rate = soundfile.read(io.BytesIO(content), dtype="float32", always_2d=True)
    mono = samples.mean(axis=1)
    return mono if rate == sample_rate else soxr.resample(mono, rate, sample_rate)


def _flac(path: Path, start_s: float, end_s: float) -> tuple[bytes, float]:
    """A stretch of a recording at its own rate, mono, 16 bits, and its scale.

    Lossy formats can decode to beyond full scale, which FLAC cannot hold: such a
    stretch is made quieter, and the scale, 1 of all others, undoes it.
    """
    import soundfile

    rate = audio.sample_rate_of(path)
    samples = audio.load(path, rate, offset_s=start_s, duration_s=end_s - start_s)
    content = io.BytesIO()
    scale = max(1.0, float(np.abs(samples).max()))
    soundfile.write(content, samples / scale, rate, format="FLAC", subtype="PCM_16")
    return content.getvalue(), scale


def _info(
    builder: tfds.core.DatasetBuilder,
    features: dict[str, Any],
    *,
    supervised: tuple[str, str] | None = None,
) -> tfds.core.DatasetInfo:
    return tfds.core.DatasetInfo(
        builder=builder,
        features=tfds.features.FeaturesDict(features),
        supervised_keys=supervised,
    )
