"""The front end that suits a set of clips, for who has no opinion on it.

After `dataset`: from the headers of the files come sample rate and length, from those
the resolution, and from the sound itself mean and deviation. Whatever is asked for
is kept, and what is not asked for is chosen to go with it.
"""

from __future__ import annotations

import collections
import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import numpy as np

from apex_jax import audio, data, progress
from apex_jax import settings as settings_lib

MAX_RATE = 32_000  # Hz; above, there is little that tells sounds apart
MAX_CLIP_S = 5.0
WINDOW_S = 0.046  # 1024 samples at 22,050 Hz
MAX_MELS = 128
# Frames that a column of ConvNeXt's map covers, and the columns wanted of a clip.
COLUMN, FEWEST, USUAL = 32, 4, 10
MAX_FILES = 1000  # whose headers are read
MAX_CLIPS = 200  # that mean and deviation are measured on


Wanted = settings_lib.Wanted


@dataclasses.dataclass(frozen=True, kw_only=True)
class Choice:
    """A front end, and why each of its settings is what it is.

    Attributes:
      front_end: the settings.
      reasons: of the settings that were chosen, by name.
    """

    front_end: audio.FrontEnd
    reasons: Mapping[str, str]


def front_end(
    clips: Sequence[data.Clip],
    settings: Mapping[str, Any],
    *,
    skip_log: data.SkipLog,
    on_progress: progress.OnProgress = progress.silent,
) -> Choice:
    """Chooses what `settings` leaves open.

    Args:
      clips: training clips.
      settings: of the front end, by name; they are kept.
      skip_log: takes the files that cannot be read.
      on_progress: told how many clips are measured.

    Raises:
      ValueError: settings that do not go together, or no clip can be read.
    """
    chosen, reasons = dict(settings), {}

    def choose(name: str, value: audio.Real, reason: str) -> None:
        if name not in settings:
            chosen[name], reasons[name] = value, reason

    if not {"sample_rate", "clip_s"} <= set(settings):
        rates, seconds = _headers(clips, skip_log)
        rate, count = collections.Counter(rates).most_common(1)[0]
        if rate > MAX_RATE:
            choose(
                "sample_rate", MAX_RATE, f"at most {MAX_RATE}; the files have {rate}"
            )
        else:
            choose("sample_rate", rate, f"as {count} of {len(rates)} files")
        median = float(f"{np.median(seconds):.2g}")
        if median > MAX_CLIP_S:
            choose("clip_s", MAX_CLIP_S, f"at most; the files' median is {median:g}")
        else:
            choose("clip_s", median, "as the files' median")
    rate, samples = chosen["sample_rate"], chosen["sample_rate"] * chosen["clip_s"]
    powers = [2**power for power in range(6, 15)]
    n_fft = min(powers, key=lambda n: abs(n - WINDOW_S * rate))
    while n_fft > samples / 2 and n_fft > powers[0]:
        n_fft //= 2
    choose("n_fft", n_fft, f"{1000 * n_fft / rate:.0f} ms")
    hop = min(
        max(int(samples / (USUAL * COLUMN)), chosen["n_fft"] // 4),
        chosen["n_fft"] // 2,
        max(1, int(samples / (FEWEST * COLUMN))),
    )
    choose("hop_length", hop, f"{1000 * hop / rate:.1f} ms")
    if "n_mels" not in settings:
        n_mels = _most_mels(chosen)
        fewer = "as many as leave no filter empty"
        choose("n_mels", n_mels, fewer if n_mels < MAX_MELS else "")
    if not {"mean", "std"} <= set(settings):
        plain = audio.FrontEnd.from_dict({**chosen, "mean": 0.0, "std": 1.0})
        mean, std = _measure(plain, clips, skip_log, on_progress)
        choose("mean", round(mean, 2), "dB, measured")
        choose("std", round(std, 2), "dB, measured")
    return Choice(front_end=audio.FrontEnd.from_dict(chosen), reasons=reasons)


def _evenly(clips: Sequence[data.Clip], most: int) -> list[data.Clip]:
    at = np.linspace(0, len(clips) - 1, min(most, len(clips))).round().astype(int)
    return [clips[i] for i in at]


def _headers(
    clips: Sequence[data.Clip], skip_log: data.SkipLog
) -> tuple[list[int], list[float]]:
    """Sample rates and seconds of the files that can be read."""
    rates, seconds = [], []
    for clip in _evenly(clips, MAX_FILES):
        try:
            seconds.append(audio.duration(clip.path))
        except audio.AudioError as error:
            skip_log.add(error)
            continue
        rates.append(audio.sample_rate_of(clip.path))
    if not rates:
        raise ValueError(f"none of the {len(clips)} training clips could be read")
    return rates, seconds


def _most_mels(settings: Mapping[str, Any]) -> int:
    """As many mel filters as leave none empty, at most `MAX_MELS`."""
    for n_mels in range(MAX_MELS, 1, -1):
        try:
            audio.FrontEnd.from_dict({**settings, "n_mels": n_mels})
        except ValueError:
            continue
        return n_mels
    return 1  # whatever is wrong, `FrontEnd` will say it


def _measure(
    front_end: audio.FrontEnd,
    clips: Sequence[data.Clip],
    skip_log: data.SkipLog,
    on_progress: progress.OnProgress,
) -> tuple[float, float]:
    """Mean and standard deviation of the spectrograms, in dB."""
    spectrogram = jax.jit(lambda waveform: audio.spectrogram(front_end, waveform))
    some = _evenly(clips, MAX_CLIPS)
    sums = np.zeros(3)
    for batch in data.batches(some, front_end, batch_size=8, skip_log=skip_log):
        values = np.asarray(spectrogram(batch["waveform"]), np.float64)[batch["valid"]]
        sums += values.size, values.sum(), (values**2).sum()
        on_progress(int((batch["index"] >= 0).sum()))
    count, total, squares = sums
    if not count:
        raise ValueError(f"none of the {len(some)} training clips could be read")
    mean = total / count
    # Digital silence deviates by nothing; it must not be divided by that.
    std = max(1.0, squares / count - mean**2) ** 0.5
    return float(mean), float(std)
