"""What a page embeds: every image and every sound once, however often it is shown.

In come arrays and explanations, out come the names under which a page finds their PNG
and FLAC files. The same training clip is a prototype of many channels and many clips.
"""

from __future__ import annotations

import base64
import dataclasses
import hashlib
import math
from collections.abc import Callable, Hashable
from pathlib import Path

import numpy as np

from apex_jax import audio, explanation, listen

# What is quieter than about one step of 16 bits cannot be heard: amplified as far as
# `listen` goes, it is still 50 dB below full scale.
SILENT_DB = -90.0


@dataclasses.dataclass(frozen=True, kw_only=True)
class Image:
    """A PNG file in the page.

    Attributes:
      id: its name there.
      shape: `(rows, frames)`, a pixel each.
      base64: the file.
    """

    id: str
    shape: tuple[int, int]
    base64: str = dataclasses.field(repr=False)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Player:
    """A sound in the page, or why there is none.

    Attributes:
      id: the sound's name there; empty where there is none.
      silence: what there is instead of a sound; empty where there is something to hear.
      start_s: where in the clip it begins.
      length_s: how long it is.
      gain_db: by how much it is louder than the recording.
      problem: why it cannot be played; empty where it can.
    """

    id: str = ""
    silence: str = ""
    start_s: float = 0.0
    length_s: float = 0.0
    gain_db: float = 0.0
    problem: str = ""


class Store:
    """The images and sounds of one page.

    Attributes:
      images: in the order in which they were first asked for.
      sounds: FLAC files by name, base64.
    """

    def __init__(self, *, sounds: bool = True):
        """An empty store; without `sounds` it hands out none."""
        self.images: dict[Hashable, Image] = {}
        self.sounds: dict[str, str] = {}
        self._with_sounds = sounds
        self._clips: dict[Hashable, listen.Sound | audio.AudioError | None] = {}
        self._players: dict[Hashable, Player | None] = {}

    def image(
        self, draw: Callable[..., bytes], values: np.ndarray, *options: Hashable
    ) -> Image:
        """The PNG file that `draw(values, *options)` gives."""
        key = (draw, digest(values), *options)
        if key not in self.images:
            self.images[key] = Image(
                id=f"image-{len(self.images)}",
                shape=values.shape,
                base64=_base64(draw(values, *options)),
            )
        return self.images[key]

    def player(
        self,
        result: explanation.Explanation,
        prototype: explanation.Prototype | None = None,
        areas: tuple[explanation.Area, ...] = (),
    ) -> Player | None:
        """The sound of a clip, or of a region in it; None where there can be none.

        Args:
          result: the explanation.
          prototype: one of its prototypes; None for the explained clip itself.
          areas: of the region; empty for the whole clip.
        """
        if not self._with_sounds:
            return None
        clip = _clip_key(result, prototype)
        if (clip, areas) not in self._players:
            self._players[clip, areas] = self._make(clip, result, prototype, areas)
        return self._players[clip, areas]

    def _make(
        self,
        clip: Hashable,
        result: explanation.Explanation,
        prototype: explanation.Prototype | None,
        areas: tuple[explanation.Area, ...],
    ) -> Player | None:
        # A recording that has moved or cannot be read costs its players, not the page:
        # they say what is wrong.
        try:
            if clip not in self._clips:
                self._clips[clip] = listen.clip(result, prototype)
        except audio.AudioError as error:
            self._clips[clip] = error
        sound = self._clips[clip]
        if sound is None:
            return None
        if isinstance(sound, audio.AudioError):
            return Player(problem=f"{Path(sound.path).name}: {sound.reason}")
        if areas:
            if min(area.start_s or 0.0 for area in areas) >= _length_s(sound):
                return Player(silence="in the silence appended to the clip")
            # The region alone can be far too quiet to hear; the page says how much
            # louder it was made.
            sound = listen.region(sound, areas, amplify=True)
        if _peak_db(sound) < SILENT_DB:
            return Player(silence="no sound here" if areas else "silent throughout")
        try:
            flac = listen.to_flac(_sixteen_bits(sound))
        except ValueError as error:  # a sample rate that FLAC does not know
            return Player(problem=str(error))
        name = f"sound-{len(self.sounds)}"
        self.sounds[name] = _base64(flac)
        return Player(
            id=name,
            start_s=sound.start_s,
            length_s=_length_s(sound),
            gain_db=sound.gain_db,
        )


def _length_s(sound: listen.Sound) -> float:
    return len(sound.samples) / sound.sample_rate


def _peak_db(sound: listen.Sound) -> float:
    """The recording's own, before it was made louder."""
    peak = float(np.abs(sound.samples).max())
    return 20 * math.log10(peak) - sound.gain_db if peak > 0 else -math.inf


def _sixteen_bits(sound: listen.Sound) -> listen.Sound:
    """The sound in steps of 16 bits, 96 dB below full scale.

    Enough to listen to, quiet regions being amplified first, and half the size of the
    24 bits that are kept otherwise. Recordings of 16 bits stay as they are.
    """
    steps = np.rint(sound.samples.astype(np.float64) * 2**15)
    samples = (np.clip(steps, -(2**15), 2**15 - 1) / 2**15).astype(np.float32)
    return dataclasses.replace(sound, samples=samples)


def digest(values: np.ndarray) -> bytes:
    """Equal for equal arrays."""
    values = np.ascontiguousarray(values)
    kind = f"{values.dtype} {values.shape}".encode()
    return hashlib.sha256(kind + values.tobytes()).digest()


def _clip_key(
    result: explanation.Explanation, prototype: explanation.Prototype | None
) -> Hashable:
    length = None if result.front_end is None else result.front_end.clip_s
    if prototype is not None:
        return str(prototype.clip.path), float(prototype.clip.offset_s), length
    if result.waveform is not None:
        return digest(result.waveform), result.sample_rate, length
    return result.source, result.offset_s, length


def _base64(content: bytes) -> str:
    return base64.b64encode(content).decode("ascii")
