"""What each command of the command line can be asked.

Known without JAX, so that `--help` and a mistake are answered at once; the module of
the same name does the work.
"""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Annotated, Literal

import tyro

from apex_jax import settings

Flag = tyro.conf.FlagCreatePairsOff[bool]
# The help texts of Figure say what happens without them.
Kind = Literal[
    "explained", "before-after", "methods", "masking", "twin", "beside", "prototypes"
]
File = Annotated[Path | None, tyro.conf.arg(metavar="FILE", help_behavior_hint="")]
Class = Annotated[str | None, tyro.conf.arg(metavar="CLASS", help_behavior_hint="")]
Evidence = Annotated[
    settings.Evidence | None,
    tyro.conf.arg(
        metavar="{plain,contrastive}",
        help_behavior_hint="(default: contrastive, of several classes a clip plain)",
    ),
]
Location = Annotated[
    settings.Location | None,
    tyro.conf.arg(
        metavar="{map,occlusion}",
        help_behavior_hint="(default: occlusion if the network can be run)",
    ),
]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Train:
    """Trains a ConvNeXt on a folder of sounds.

    Attributes:
      data: a folder with one folder a class, or a manifest with the columns path,
        label (or labels, joined by ;) and if wanted split, offset_s, group.
      out: the run's folder, to be made.
      model: size of the ConvNeXt, from some 3 to 200 million weights.
      seed: of the first weights, the order of the clips and the crops.
      strict: stop at the first file that cannot be read, instead of skipping it.
      overwrite: replace a finished run of other settings.
      split: how data that come without splits are split.
      front_end: settings of the spectrogram; those left out are chosen from the data.
      train: how to train.
      hosts: for several processes; started alone, none of these.
    """

    data: Annotated[Path, tyro.conf.arg(metavar="DIR|CSV")]
    out: Annotated[Path, tyro.conf.arg(metavar="DIR")]
    model: settings.Size = "atto"
    seed: int = 0
    strict: Flag = False
    overwrite: Flag = False
    split: settings.Shares = dataclasses.field(default_factory=settings.Shares)
    front_end: settings.Wanted = dataclasses.field(default_factory=settings.Wanted)
    train: settings.Training = dataclasses.field(default_factory=settings.Training)
    hosts: settings.Hosts = dataclasses.field(default_factory=settings.Hosts)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Fit:
    """Learns the explanations of a trained classifier.

    Attributes:
      weights: the classifier: a run of apex-jax train, what apex-jax convert wrote, or
        what that takes, a file of torch's weights or a transformers folder.
      data: a folder with one folder a class, or a manifest with the columns path,
        label (or labels, joined by ;) and if wanted split, offset_s, group. Without
        a column split, clips are split as they were to train the classifier.
      out: the run's folder, to be made.
      scheme: where prototypes lie: a moment in a band, a moment, a band, or both.
      windows_per_file: consecutive clips taken from a long file, at most.
      batch_size: clips in the network at a time.
      matmul_dtype: of the network's products while the training clips' features are
        computed; bfloat16 is faster on accelerators and most new processors. What it
        changed is measured and written down; predictions stay the network's own.
      seed: of the optimisation.
      strict: stop at the first file that cannot be read, instead of skipping it.
      overwrite: replace a finished run of other settings.
      front_end: settings of the spectrogram, for a classifier that brings none; those
        left out are librosa's.
      optimise: how U is learned.
      hosts: for several processes; started alone, none of these.
    """

    weights: Annotated[
        Path | None, tyro.conf.arg(metavar="DIR|FILE", help_behavior_hint="(required)")
    ] = None
    data: Annotated[
        Path | None,
        tyro.conf.arg(
            metavar="DIR|CSV",
            help_behavior_hint="(default: what the classifier was trained on)",
        ),
    ] = None
    out: Annotated[Path, tyro.conf.arg(metavar="DIR")]
    scheme: Literal["square", "time", "frequency", "time-frequency"] = "frequency"
    windows_per_file: int = 1
    batch_size: int = 32
    matmul_dtype: settings.MatmulDtype = "float32"
    seed: int = 0
    strict: Flag = False
    overwrite: Flag = False
    front_end: settings.Wanted = dataclasses.field(default_factory=settings.Wanted)
    optimise: settings.Optimisation = dataclasses.field(
        default_factory=settings.Optimisation.recommended
    )
    hosts: settings.Hosts = dataclasses.field(default_factory=settings.Hosts)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Predict:
    """Classifies sound files.

    Attributes:
      clips: sound files, or folders of them.
      weights: the network: a run of apex-jax train, what apex-jax convert wrote, or a
        run's folder classifier or audioprotopnet.
      num_classes: most likely classes of each window.
      hop_s: seconds from one window of a long recording to the next; a window is as
        long as the network's clips, and may reach beyond the end.
      batch_size: windows in the network at a time.
      out: the table to write, in the place of one that is there.
      strict: stop at the first file that cannot be read, instead of skipping it.
    """

    clips: Annotated[
        tuple[Path, ...],
        tyro.conf.Positional,
        tyro.conf.arg(metavar="CLIP [CLIP ...]", help_behavior_hint="(required)"),
    ]
    weights: Annotated[Path, tyro.conf.arg(metavar="DIR")]
    num_classes: int = 3
    hop_s: Annotated[
        float | None, tyro.conf.arg(help_behavior_hint="(default: windows touch)")
    ] = None
    batch_size: int = 32
    out: Annotated[Path, tyro.conf.arg(metavar="FILE.csv")] = Path("predictions.csv")
    strict: Flag = False


@dataclasses.dataclass(frozen=True, kw_only=True)
class Explain:
    """Explains what a classifier says of sound files.

    Attributes:
      clips: sound files, or folders of them.
      run: a run of apex-jax fit; give it again for other schemes of the same
        classifier.
      data: where the run's training clips lie now, if they have moved.
      target: the class to explain.
      num_channels: top channels of each clip.
      num_prototypes: training clips beside each channel.
      num_negatives: and of those that excite it least.
      evidence: what channels add to the class's logit, the paper's, or, under softmax,
        to its lead over the other classes.
      locate: what finds regions, the feature map, the paper's, or occlusion: what the
        channel loses without each part of the sound and has of each alone, two passes
        through the network for each region of the clip and of each prototype.
      start_s: where in the recording to begin, in seconds.
      end_s: where to end; a window is as long as the classifier's clips, and may reach
        beyond.
      hop_s: seconds from one window of a long recording to the next.
      out: the page to write, in the place of one that is there; with many windows
        several, FILE-01.html and so on.
      save: a folder to keep the explanations in, as JSON and NPZ, with an index.
      sounds: embed the sounds, which are most of the page's size.
      strict: stop at the first file that cannot be read, instead of skipping it.
    """

    clips: Annotated[
        tuple[Path, ...],
        tyro.conf.Positional,
        tyro.conf.arg(metavar="CLIP [CLIP ...]", help_behavior_hint="(required)"),
    ]
    run: Annotated[
        tuple[Path, ...], tyro.conf.UseAppendAction, tyro.conf.arg(metavar="DIR")
    ]
    data: Annotated[
        Path | None, tyro.conf.arg(metavar="DIR", help_behavior_hint="")
    ] = None
    target: Annotated[
        str | None,
        tyro.conf.arg(
            metavar="CLASS",
            help_behavior_hint="(default: the predicted one; where a clip can have "
            "several classes, each that is found)",
        ),
    ] = None
    num_channels: Annotated[
        int | None, tyro.conf.arg(help_behavior_hint="(default: 4)")
    ] = None
    num_prototypes: Annotated[
        int | None, tyro.conf.arg(help_behavior_hint="(default: 5)")
    ] = None
    num_negatives: int = 0
    evidence: Evidence = None
    locate: Location = None
    start_s: float = 0.0
    end_s: Annotated[
        float | None,
        tyro.conf.arg(help_behavior_hint="(default: the recording's end)"),
    ] = None
    hop_s: Annotated[
        float | None, tyro.conf.arg(help_behavior_hint="(default: windows touch)")
    ] = None
    out: Annotated[Path, tyro.conf.arg(metavar="FILE.html")] = Path("report.html")
    save: Annotated[
        Path | None, tyro.conf.arg(metavar="DIR", help_behavior_hint="")
    ] = None
    sounds: bool = True
    strict: Flag = False


@dataclasses.dataclass(frozen=True, kw_only=True)
class Evaluate:
    """Tests a classifier, with regions hidden too.

    Attributes:
      run: a run of apex-jax fit.
      data: a folder with one folder a class, or a manifest.
      split: which clips to test on.
      draws: random regions a clip.
      exclude_own: draw regions other than APEX's own; the paper draws among all, of
        which there may be few.
      evidence: what the channel whose region is hidden contributes most to, as in
        explain.
      locate: what finds its region, as in explain.
      batch_size: clips in the network at a time.
      seed: of the random regions.
      out: where the numbers go.
      strict: stop at the first file that cannot be read, instead of skipping it.
      hosts: for several processes; started alone, none of these.
    """

    run: Annotated[Path, tyro.conf.arg(metavar="DIR")]
    data: Annotated[
        Path | None,
        tyro.conf.arg(
            metavar="DIR|CSV", help_behavior_hint="(default: that of the run)"
        ),
    ] = None
    split: Literal["train", "validation", "test", "all"] = "test"
    draws: int = 10
    exclude_own: Flag = False
    evidence: Evidence = None
    locate: Location = None
    batch_size: int = 32
    seed: int = 0
    out: Annotated[
        Path | None,
        tyro.conf.arg(
            metavar="FILE.json", help_behavior_hint="(default: RUN/evaluation.json)"
        ),
    ] = None
    strict: Flag = False
    hosts: settings.Hosts = dataclasses.field(default_factory=settings.Hosts)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Figure:
    """Draws a figure of the paper from a finished run.

    Attributes:
      kind: a clip, its channels and their prototypes; prototypes before and after the
        optimisation (Fig. 3); APEX beside Grad-CAM and LIME (4); what each scheme
        hides and what it does (5); a real clip and its vocoded twin (6); APEX beside an
        AudioProtoPNet (7); where an AudioProtoPNet's prototypes are in a clip.
      run: a run's folder; for methods and masking several, of one classifier, each
        with its own scheme.
      data: where the run's training clips lie now, if they have moved.
      out: the picture, .png, .pdf or .svg; by default KIND.png in the run's folder.
      clip: a sound file; by default a training clip of the run. For twin, the real.
      twin: its vocoded twin.
      prototypes: a checkpoint of an AudioProtoPNet of the same classes (beside,
        prototypes).
      offset_s: where in the file the clip starts, in seconds.
      target: the class to explain; by default the predicted one, for twin the
        vocoded.
      evidence: what channels contribute to, as in explain; by default as in the paper.
      locate: what finds regions, as in explain; by default as in the paper.
      num_channels: channels shown, or prototypes of the class (prototypes).
      num_prototypes: prototypes shown of each.
      seed: of LIME's samples and of the random regions.
      num_samples: copies of the clip that LIME asks about (methods).
      instead: what these have in the place of what is left out (methods): silence, as
        LIME is mostly used, or the usual sound of the clip, as regions by occlusion.
      draws: random regions whose mean is given (masking).
      dpi: dots an inch.
    """

    kind: tyro.conf.Positional[Kind]
    run: Annotated[
        tuple[Path, ...], tyro.conf.UseAppendAction, tyro.conf.arg(metavar="DIR")
    ]
    data: Annotated[
        Path | None, tyro.conf.arg(metavar="DIR", help_behavior_hint="")
    ] = None
    out: File = None
    clip: File = None
    twin: File = None
    prototypes: Annotated[
        Path | None, tyro.conf.arg(metavar="DIR", help_behavior_hint="")
    ] = None
    offset_s: float = 0.0
    target: Class = None
    evidence: settings.Evidence = "plain"
    locate: settings.Location = "map"
    num_channels: int = 4
    num_prototypes: int = 3
    seed: int = 0
    num_samples: int = 1000
    instead: settings.Instead = "silence"
    draws: int = 10
    dpi: int = 150
