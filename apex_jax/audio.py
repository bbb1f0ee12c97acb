"""From a sound file to a waveform on the host.

First step of the flow. In comes a path; out goes a waveform `[sample]` (NumPy), mono
at the rate asked for, or an `AudioError` that says what is wrong with the file. The
spectrogram and its settings, which live in `spectrogram` and `frontend`, can be had
from here too.
"""

from __future__ import annotations

import contextlib
import math
import os
import re
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float

from apex_jax.frontend import LARGEST_SAMPLE, FrontEnd, Real
from apex_jax.spectrogram import attenuate, silence_level, spectrogram

# soundfile and soxr are imported where they are used: `--help` must not pay for them.

__all__ = [
    "AudioError",
    "FrontEnd",
    "attenuate",
    "clip_of",
    "duration",
    "fit_length",
    "load",
    "load_clip",
    "sample_rate_of",
    "silence_level",
    "spectrogram",
]


# Samples of all channels decoded at a time: a header can promise any number.
BLOCK = 2**22
# And samples in memory at once, 8 GiB: silence of years fits into a small FLAC file.
MOST_SAMPLES = 2**31
# Between a file's rate and the one asked for; what is beyond is no sound, but a header
# that lies, and resampling would take any amount of memory or time.
LARGEST_RATIO = 1000


class AudioError(ValueError):
    """A sound file that cannot be used: which one, and why.

    Attributes:
      path: the file.
      reason: what is wrong with it and what would be right.
    """

    def __init__(self, path: str | Path, reason: str):
        super().__init__(path, reason)
        self.path = path
        self.reason = reason

    def __str__(self) -> str:
        return f"{self.path}: {self.reason}"


def load(
    path: str | Path,
    sample_rate: int,
    *,
    offset_s: Real = 0.0,
    duration_s: Real | None = None,
) -> Float[np.ndarray, " sample"]:
    """Reads a file or a segment of it, mono at `sample_rate`.

    Whatever libsndfile reads. Only the segment is decoded, so damage elsewhere in
    a FLAC or MP3 goes unnoticed; a WAV, AIFF, AU or Ogg file that was cut is refused
    whatever the segment. Channels are averaged; other rates are resampled by soxr.

    Args:
      path: the file.
      sample_rate: of the result, Hz.
      offset_s: start of the segment in seconds.
      duration_s: length of the segment, less where the file ends; None: to the end.

    Returns:
      Float32 samples `[sample]`, full scale 1.

    Raises:
      AudioError: missing, a directory, not audio, truncated, without samples, with
        NaN, infinite or absurdly large samples, at an absurd rate, too long to be in
        memory at once, or `offset_s` outside the file.
    """
    import soundfile

    if duration_s is not None and not duration_s > 0:
        raise ValueError(f"load: duration_s={duration_s}; it must be positive, or None")
    with _open(path) as file:
        rate, start = file.samplerate, round(offset_s * file.samplerate)
        if not 0 <= start < file.frames:
            raise AudioError(
                path,
                f"offset {offset_s:g} s lies outside the file; it must be at least 0 "
                f"and below its length, {file.frames / rate:g} s",
            )
        count = file.frames - start
        if duration_s is not None:
            count = min(count, math.ceil(duration_s * rate))
        if wrong_rate := _wrong_rate(rate, sample_rate):
            raise AudioError(path, f"its header says {wrong_rate}")
        most = count * max(file.channels, sample_rate / rate)
        if most > MOST_SAMPLES:
            raise AudioError(
                path,
                f"its header promises {count / rate:g} s, {most:.3g} samples in "
                f"memory, where {MOST_SAMPLES} are the most; give duration_s, or "
                "look whether it is what it says",
            )
        try:
            file.seek(start)
            samples = _read(file, count)
        except soundfile.LibsndfileError as error:
            raise AudioError(
                path,
                f"truncated or damaged ({error.error_string}) within {count} samples "
                f"from {offset_s:g} s; copy it again from its source",
            ) from error
    if len(samples) < count:
        raise _truncated(path, f"{count} samples", f"{len(samples)} could be read")
    # Written so that NaN is caught too.
    wrong = ~(np.abs(samples) <= LARGEST_SAMPLE)
    if wrong.any():
        frame, channel = np.argwhere(wrong)[0]
        raise AudioError(
            path,
            f"sample {start + frame} is {samples[frame, channel]:g}; samples must be "
            f"finite and of magnitude up to {LARGEST_SAMPLE:g} (full scale is 1)",
        )
    waveform = np.asarray(samples.mean(axis=1))
    if rate != sample_rate:
        import soxr

        waveform = soxr.resample(waveform, rate, sample_rate, quality="HQ")
    if duration_s is not None:
        waveform = waveform[: round(duration_s * sample_rate)]
    return waveform


def load_clip(
    path: str | Path, front_end: FrontEnd, offset_s: Real = 0.0
) -> Float[np.ndarray, " sample"]:
    """The clip of `front_end.num_samples` that starts at `offset_s`.

    Raises:
      AudioError: as `load`, or less than one window of sound.
    """
    waveform = load(
        path, front_end.sample_rate, offset_s=offset_s, duration_s=front_end.clip_s
    )
    window = front_end.win_length or front_end.n_fft
    if len(waveform) < window:
        raise AudioError(
            path,
            f"too short: {len(waveform)} samples at {front_end.sample_rate} Hz from "
            f"{offset_s:g} s; one analysis window takes {window}",
        )
    return fit_length(waveform, front_end.num_samples)


def clip_of(
    samples: Float[np.ndarray, " sample"],
    sample_rate: int,
    front_end: FrontEnd,
    offset_s: Real = 0.0,
) -> Float[np.ndarray, " fitted"]:
    """The clip of `front_end.num_samples` that starts at `offset_s` of samples.

    What `load_clip` is for files. Other rates are resampled by soxr.

    Args:
      samples: floating point, one channel, full scale 1.
      sample_rate: theirs, Hz.
      front_end: for the rate and the length.
      offset_s: start of the clip in seconds.

    Raises:
      ValueError: not floating point, not one channel, NaN, infinite or absurdly large,
        an offset outside, or less than one window of sound.
    """
    if not np.issubdtype(samples.dtype, np.floating):
        raise ValueError(
            f"a waveform must be floating point with full scale 1; got {samples.dtype}"
        )
    if samples.ndim != 1:
        raise ValueError(
            f"a waveform must be one channel, [sample]; got shape {samples.shape}"
        )
    # Written so that NaN is caught too.
    if not (np.abs(samples) <= LARGEST_SAMPLE).all():
        raise ValueError(
            f"a waveform must be finite and of magnitude up to {LARGEST_SAMPLE:g} "
            "(full scale is 1); got NaN, infinity or more"
        )
    if sample_rate < 1:
        raise ValueError(f"sample_rate must be at least 1 Hz; got {sample_rate}")
    if wrong_rate := _wrong_rate(sample_rate, front_end.sample_rate):
        raise ValueError(f"sample_rate is {wrong_rate}")
    start = round(offset_s * sample_rate) if math.isfinite(offset_s) else -1
    if not 0 <= start < len(samples):
        raise ValueError(
            f"offset_s must lie within the waveform of {len(samples)} samples; got "
            f"{offset_s} s"
        )
    waveform = samples[start:][: math.ceil(front_end.clip_s * sample_rate)]
    waveform = waveform.astype(np.float32)
    if sample_rate != front_end.sample_rate:
        import soxr

        waveform = soxr.resample(
            waveform, sample_rate, front_end.sample_rate, quality="HQ"
        )
    window = front_end.win_length or front_end.n_fft
    if len(waveform) < window:
        raise ValueError(
            f"the waveform is too short: {len(waveform)} samples at "
            f"{front_end.sample_rate} Hz from {offset_s:g} s; one analysis window "
            f"takes {window}"
        )
    return fit_length(waveform, front_end.num_samples)


def fit_length(
    waveform: Float[np.ndarray, " sample"], num_samples: int
) -> Float[np.ndarray, " fitted"]:
    """Cuts the end off, or appends zeros, to `num_samples`."""
    waveform = waveform[:num_samples]
    return np.pad(waveform, (0, num_samples - len(waveform)))


def duration(path: str | Path, *, check_end: bool = False) -> float:
    """Length of a file in seconds, from its header.

    Args:
      path: the file.
      check_end: decode its last sample too: a header can promise any number of them.

    Raises:
      AudioError: as `load`, as far as the header tells.
    """
    import soundfile

    with _open(path) as file:
        if check_end:
            try:
                file.seek(file.frames - 1)
                there = len(_read(file, 1))
            except soundfile.LibsndfileError:
                there = 0
            if not there:
                raise _truncated(
                    path, f"{file.frames} samples", "the last is not there"
                )
        return file.frames / file.samplerate


def sample_rate_of(path: str | Path) -> int:
    """A file's own sample rate in Hz, from its header.

    Raises:
      AudioError: as `duration`.
    """
    with _open(path) as file:
        return file.samplerate


@contextlib.contextmanager
def _open(path: str | Path) -> Iterator[Any]:
    """The `soundfile.SoundFile` of a file that is there, whole and not empty."""
    import soundfile

    try:
        kind = os.stat(path).st_mode
    except FileNotFoundError:
        raise AudioError(path, "missing; expected a sound file") from None
    # A folder that may not be looked into, a circle of links, a name too long.
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or error
        raise AudioError(path, f"not readable: {reason}") from error
    if stat.S_ISDIR(kind):
        raise AudioError(path, "a directory; expected a sound file")
    if not stat.S_ISREG(kind):
        # To open a pipe is to wait until somebody writes to it.
        raise AudioError(path, "a pipe or a device; expected a sound file")
    try:
        # libsndfile calls it a "System error".
        open(path, "rb").close()
    except OSError as error:
        raise AudioError(path, f"not readable: {error.strerror}") from error
    try:
        # In bytes: soundfile would insist that a name is UTF-8.
        file = soundfile.SoundFile(os.fsencode(path))
    # TypeError: headerless formats, which soundfile tells by the name's ending.
    except (soundfile.LibsndfileError, TypeError) as error:
        raise AudioError(
            path,
            f"not readable as audio ({getattr(error, 'error_string', error)}); "
            "expected a format of libsndfile's, such as WAV, FLAC, OGG or MP3",
        ) from error
    with file:
        _check_whole(path, file)
        if file.frames == 0:
            raise AudioError(path, "holds no samples; expected at least one")
        if file.frames >= 2**62:
            raise AudioError(
                path,
                "its header does not say how long it is, as when an encoder wrote to "
                "a pipe; encode it again into a file",
            )
        yield file


def _read(file: Any, count: int) -> np.ndarray:
    """Up to `count` frames, `[frame, channel]`; memory for those that are there."""
    parts, left = [], count
    block = max(1, BLOCK // file.channels)
    while left > 0:
        part = file.read(min(left, block), dtype="float32", always_2d=True)
        parts.append(part)
        left -= len(part)
        if len(part) < min(left + len(part), block):
            break
    return parts[0] if len(parts) == 1 else np.concatenate(parts)


def _check_whole(path: str | Path, file: Any) -> None:
    """Raises where the end of the file is missing.

    libsndfile fails or reads short for FLAC and MP3, but quietly corrects the length
    of uncompressed formats, a remark in its log apart, and takes an Ogg stream to
    end with its last page, whether or not that page says so.
    """
    promise = re.search(
        r"^\s*(?:data|SSND|Data Size|riff|Riff size)\s*: (\d+) \(should be (\d+)\)",
        file.extra_info,
        flags=re.MULTILINE,
    )
    if promise:
        promised, held = map(int, promise.groups())
        # Who writes to a pipe puts about 2**31 or 2**32 for a length yet unknown.
        if held < promised < 2**31 - 2**12:
            raise _truncated(path, f"{promised} bytes", f"it holds {held}")
    if file.format == "OGG":
        with Path(path).open("rb") as raw:
            raw.seek(max(0, raw.seek(0, 2) - 2**16))  # a page is shorter
            tail = raw.read()
        page = tail[max(0, tail.rfind(b"OggS")) :]
        lacing = page[27 : 27 + page[26]] if len(page) > 26 else b""
        last = len(page) > 26 and page[5] & 4
        if not last or len(page) < 27 + page[26] + sum(lacing):
            raise _truncated(path, "a last page that ends the stream", "it has none")


def _wrong_rate(rate: int, sample_rate: int) -> str:
    """Why one rate cannot be turned into another; empty where it can."""
    if max(rate, sample_rate) <= LARGEST_RATIO * min(rate, sample_rate):
        return ""
    return (
        f"{rate} Hz, more than {LARGEST_RATIO} times above or below the {sample_rate} "
        "Hz asked for; expected the rate that the sound was recorded at"
    )


def _truncated(path: str | Path, promised: str, found: str) -> AudioError:
    return AudioError(
        path,
        f"truncated: the header promises {promised}, {found}; "
        "copy it again from its source",
    )
