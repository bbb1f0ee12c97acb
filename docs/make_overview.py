"""Draws docs/overview.png from a finished run: how APEX explains a clip.

python docs/make_overview.py runs/demo-frequency CLIP docs/overview.png
"""

import dataclasses
import sys

import numpy as np
from matplotlib.figure import Figure
from matplotlib.patches import ConnectionPatch

from apex_jax import audio, classifier, disentangle, explain, plot

CHANNELS = 3


def main(run: str, clip: str, target: str) -> None:
    """Explains `clip` with the raw channels and with APEX, and draws both."""
    apex = explain.load(run)
    chan = apex.transform.centre.size
    raw = dataclasses.replace(apex, transform=disentangle.identity(chan))
    after = apex(clip, num_channels=CHANNELS, num_prototypes=3)
    before = raw(clip, num_channels=CHANNELS, num_prototypes=1)

    figure = Figure(figsize=(13, 5.4))
    grid = figure.add_gridspec(
        CHANNELS, 6, left=0.06, right=0.99, bottom=0.22, top=0.84, hspace=0.35,
        wspace=0.42, width_ratios=[1.7, 1, 1, 1, 1, 1],
    )  # fmt: skip
    clip_axes = figure.add_subplot(grid[:, 0])
    plot.spectrogram(clip_axes, apex.front_end, after.spectrogram)
    plot.name_axes(np.array([[clip_axes]]), apex.front_end)
    clip_axes.set_title("a clip", fontsize=11)

    heat_axes = []
    for row, (old, new) in enumerate(zip(before.channels, after.channels, strict=True)):
        for column, channel in ((1, old), (2, new)):
            axes = figure.add_subplot(grid[row, column])
            plot.heatmap(axes, apex.front_end, channel.heatmap)
            if column == 2:
                plot.areas(axes, channel.areas)
            heat_axes.append(axes)
        for column, prototype in enumerate(new.prototypes, start=3):
            axes = figure.add_subplot(grid[row, column])
            plot.spectrogram(axes, apex.front_end, prototype.spectrogram)
            plot.areas(axes, prototype.areas)
            axes.set_title(f"training clip, {prototype.class_name}", fontsize=8, pad=3)
            heat_axes.append(axes)
    for axes in heat_axes:
        axes.set_xticks([])
        axes.set_yticks([])

    def middle(first: int, last: int) -> float:
        """Centre of a range of columns, as a share of the figure."""
        left, right = (grid[0, c].get_position(figure) for c in (first, last))
        return (left.x0 + right.x1) / 2

    for columns, text in (
        ((1, 1), "network's channels:\nconcepts mixed"),
        ((2, 2), "APEX channels:\npurer"),
        ((3, 5), "prototypes: the training clips that\nexcite each APEX channel most"),
    ):
        figure.text(middle(*columns), 0.89, text, ha="center", fontsize=11)
    for column, text in ((0, "network"), (1, r"$U=e^{A}$")):
        start = grid[0, column].get_position(figure).x1 + 0.006
        end = grid[0, column + 1].get_position(figure).x0 - 0.006
        figure.text((start + end) / 2, 0.555, text, ha="center", fontsize=9)
        arrow = ConnectionPatch(
            (start, 0.535), (end, 0.535), "figure fraction", arrowstyle="-|>",
            linewidth=1.6, mutation_scale=14, color="black",
        )  # fmt: skip
        figure.add_artist(arrow)
    logits = transformed_logits(apex, clip)
    np.testing.assert_allclose(logits, after.logits, atol=1e-4)
    named = zip(after.class_names, after.logits, strict=True)
    says = ", ".join(f"{name} {value:+.2f}" for name, value in named)
    figure.text(
        0.5,
        0.05,
        r"pooling, then the head $W$ on the network's channels  =  "
        r"the head $W\,U^{-1}$ on APEX channels:"
        f"   {says}   either way",
        ha="center",
        fontsize=11,
        bbox={"boxstyle": "round,pad=0.5", "facecolor": "#eef3f8", "edgecolor": "#9ab"},
    )
    figure.savefig(target, dpi=110)


def transformed_logits(explainer: explain.Explainer, clip: str) -> np.ndarray:
    """The clip's logits by way of the APEX channels and the compensated head."""
    waveform = audio.load_clip(clip, explainer.front_end)[None]
    spectrogram = audio.spectrogram(explainer.front_end, waveform)
    feature_map, _ = explainer.classifier(spectrogram)
    channels = explainer.transform(feature_map)
    head = explainer.transform.compensate(explainer.classifier.head)
    return np.asarray(head(classifier.pool(channels))[0])


if __name__ == "__main__":
    main(*sys.argv[1:])
