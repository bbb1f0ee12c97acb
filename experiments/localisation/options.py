"""What the localisation experiment can be asked, known without JAX."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Annotated, Literal, get_args

import tyro

from apex_jax import frontend, settings
from experiments import options
from experiments.localisation import variants

Event = Literal["burst", "band", "click", "sound"]

# 64 rows and 128 frames: a map of 4 x 8 cells.
SPEECH = frontend.FrontEnd(
    sample_rate=8000,
    clip_s=1.016,
    n_fft=512,
    hop_length=64,
    n_mels=64,
    mean=-32.0,
    std=16.0,
)
# A window of 32 ms instead of 64: it spreads a click of 4 ms over a quarter of a cell.
CLICKS = dataclasses.replace(SPEECH, n_fft=256)
SOUNDS = dataclasses.replace(
    SPEECH,
    sample_rate=16000,
    clip_s=3.048,
    n_fft=1024,
    hop_length=384,
    mean=-18.0,
    std=14.0,
)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config(options.Common):
    """Whether explanations point at an event that was planted."""

    speech: Annotated[
        Path | None,
        tyro.conf.arg(metavar="DIR", help_behavior_hint="(default: synthetic babble)"),
    ] = None
    """Recordings of speech, in which bursts, bands and clicks are planted."""
    sounds: Annotated[
        Path | None,
        tyro.conf.arg(metavar="DIR", help_behavior_hint="(default: none of these)"),
    ] = None
    """ESC-10, one folder a class: its short sounds are planted in its long ones."""
    events: tuple[Event, ...] = ("burst", "band", "click", "sound")
    """What is planted: a burst of noise in a band; a band that is there all the time; a
    click; a real sound over another. A seed has one band."""
    seeds: int = 3
    """Corpora, trainings and optimisations of each event, from --seed on."""
    clips: tuple[int, int, int] = (4000, 160, 240)
    """To train, validate and test on; every other one has an event."""
    explain_clips: int = 800
    """Of the training clips so many at most, the first, on which U is learned."""
    variants: tuple[variants.Name, ...] = get_args(variants.Name)
    """Ways to learn U."""
    lime_clips: int = 20
    """Test clips that LIME explains; it is slow."""
    lime_samples: int = 500
    """Copies of each that it asks about, with parts left out."""
    faithful_clips: int = 10
    """Test clips that are silenced and brought back step by step."""
    curve_steps: int = 16
    """In so many steps."""
    stable_clips: int = 10
    """Test clips that are disturbed: noise, speed, pitch, encoding."""
    patch_size: int = 2
    """Of the ConvNeXt's stem: half the published one, for cells of half the size."""
    train: settings.Training = settings.Training(epochs=3)
    """Training of the classifier."""
    # It is one process's work: others can do other events and seeds.
    hosts: tyro.conf.Suppress[settings.Hosts] = settings.Hosts()

    def check(self) -> None:
        """Raises ValueError for what cannot work before any work is done."""
        super().check()
        self.check_least(seeds=1, lime_clips=0, lime_samples=2, patch_size=1)
        self.check_least(explain_clips=2)
        self.check_least(faithful_clips=0, stable_clips=0, curve_steps=1)
        if min(self.clips) < 2:
            raise ValueError(f"--clips must be at least 2 each; got {self.clips}")
        if not self.events or not self.variants:
            raise ValueError("--events and --variants must name at least one each")
        if "sound" in self.events and self.sounds is None and len(self.events) == 1:
            raise ValueError("--events sound takes --sounds DIR, a copy of ESC-10")

    def front_end_of(self, event: Event) -> frontend.FrontEnd:
        """Settings of the spectrogram of an event's clips."""
        return {"sound": SOUNDS, "click": CLICKS}.get(event, SPEECH)
