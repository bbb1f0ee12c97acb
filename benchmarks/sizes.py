"""How large the measured problems are: the paper's size, or small for a smoke test."""

from __future__ import annotations

import dataclasses
import functools

from apex_jax import audio, optimize
from apex_jax.models import convnext


@dataclasses.dataclass(frozen=True, kw_only=True)
class Sizes:
    """The sizes of one run of the suite.

    Attributes:
      judged: whether the goals, which are for the paper's size, apply.
      network: the backbone.
      front_end: its spectrogram.
      batch: clips in the network at a time.
      sounds: files of the feature pass.
      chan: channels of the method's rows.
      clips: of the optimisation and of the scoring.
      map_shape: rows and columns of the feature map.
      schedule: of the optimisation.
      epoch_prototypes: prototypes a channel of the epochs that are timed.
      draws: random masks a clip.
      norm: 1-norm of the generator that exponentials are timed at; a larger one takes
        more squarings. About where the schedule ends.
      growth_clips: numbers of clips.
      growth_chan: numbers of channels.
      growth_devices: numbers of devices.
      growth_spread: clips that are scored on each of them: a block and more to every
        device, else filling up the blocks is all that is measured.
      growth_network: the backbone on each of them.
      growth_batch: clips that it is given.
      budget_s: of a row's alternating turns.
      least: turns at least.
    """

    judged: bool
    network: convnext.ConvNeXtConfig
    front_end: audio.FrontEnd
    batch: int
    sounds: int
    chan: int
    clips: int
    map_shape: tuple[int, int]
    schedule: optimize.Config
    epoch_prototypes: int
    draws: int
    norm: float
    growth_clips: tuple[int, ...]
    growth_chan: tuple[int, ...]
    growth_devices: tuple[int, ...]
    growth_spread: int
    growth_network: convnext.ConvNeXtConfig
    growth_batch: int
    budget_s: float
    least: int

    @property
    def network_name(self) -> str:
        """The backbone and its input in words."""
        return self.named(self.network)

    def named(self, network: convnext.ConvNeXtConfig) -> str:
        """A backbone and its input in words."""
        rows, frames = self.front_end.shape
        return f"{network.size}, {rows} x {frames}"


def paper(*, accelerator: bool) -> Sizes:
    """The paper's: ConvNeXt-Base, one vocoder of WaveFake.

    Args:
      accelerator: as many clips at a time as fill one, and as many files as keep it
        busy for seconds; else as few as a CPU computes in that time.
    """
    # Scales of 1: at the published 1e-6 a check would not see the blocks.
    named = functools.partial(
        convnext.ConvNeXtConfig.named, num_classes=2, layer_scale_init=1.0
    )
    return Sizes(
        judged=True,
        network=named("base"),
        # 224 rows and 224 frames.
        front_end=audio.FrontEnd(sample_rate=22050, clip_s=5.2, n_mels=224),
        batch=128 if accelerator else 4,
        sounds=1024 if accelerator else 48,
        chan=1024,
        clips=22_200,
        map_shape=(7, 7),
        schedule=optimize.Config(),
        epoch_prototypes=5,
        draws=10,
        norm=18.0,
        # The last: as many clips as BirdSet's largest training set has.
        growth_clips=(10_000, 100_000, 528_434)
        if accelerator
        else (2_000, 10_000, 50_000),
        growth_chan=(256, 512, 1024, 1536),
        growth_devices=(1, 2, 4, 8),
        growth_spread=528_434 if accelerator else 16_384,
        # A CPU would take minutes of base for each number of devices.
        growth_network=named("base" if accelerator else "tiny"),
        growth_batch=1024 if accelerator else 32,
        # An accelerator's turns are all alike.
        budget_s=3.0 if accelerator else 10.0,
        least=3,
    )


def smoke() -> Sizes:
    """Small: everything runs, and no time means anything."""
    network = convnext.ConvNeXtConfig(
        depths=(1, 2), dims=(8, 64), num_classes=2, layer_scale_init=1.0
    )
    return Sizes(
        judged=False,
        network=network,
        # 64 rows and 64 frames.
        front_end=audio.FrontEnd(sample_rate=22050, clip_s=1.48, n_mels=64),
        batch=2,
        sounds=5,
        chan=64,
        clips=500,
        map_shape=(2, 3),
        schedule=optimize.Config(
            epochs=4, prototypes_start=8, prototypes_end=2, batch_size=64
        ),
        epoch_prototypes=2,
        draws=2,
        norm=3.0,
        growth_clips=(256, 600),  # the first as in growth with channels: compiled once
        growth_chan=(32, 64),
        growth_devices=(1, 2),
        growth_spread=2_100,
        growth_network=network,
        growth_batch=4,
        budget_s=0.0,
        least=2,
    )
