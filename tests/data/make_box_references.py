"""Makes `boxes.json`: AudioProtoPNet's boxes as OpenCV finds them.

    pip install opencv-python-headless numpy
    python tests/data/make_box_references.py

The steps of the authors' local explanation: a similarity map enlarged by `cv2.resize`
with INTER_CUBIC over the whole spectrogram, what is at or above its 95th percentile,
the connected component (8 neighbours) with the largest mean, its bounding box.
"""

import json
import pathlib

import cv2
import numpy as np

PERCENTILE = 95
# Shapes of map and spectrogram: AudioProtoPNet's own, and small odd ones.
SHAPES = [((16, 38), (256, 626)), ((6, 8), (24, 37)), ((4, 10), (96, 161))]


def similarity(rng, shape):
    """Bumps of several heights and widths above nothing, three decimals."""
    rows, columns = np.indices(shape)
    found = np.zeros(shape)
    for _ in range(4):
        row, column = (rng.uniform(0, n) for n in shape)
        width = rng.uniform(0.5, 2.0)
        distance = (rows - row) ** 2 + (columns - column) ** 2
        found += rng.uniform(0.2, 0.9) * np.exp(-distance / (2 * width**2))
    # As the ReLU leaves it: nothing in most places.
    return np.round(np.maximum(found - 0.1, 0), 3)


def box(heat):
    """Rows and frames, half-open, and how many components there were."""
    bright = (heat >= np.percentile(heat, PERCENTILE)).astype(np.uint8)
    number, labels, stats, _ = cv2.connectedComponentsWithStats(bright, connectivity=8)
    means = [heat[labels == n].mean() for n in range(1, number)]
    x, y, width, height = (int(v) for v in stats[1 + int(np.argmax(means))][:4])
    return {"rows": [y, y + height], "frames": [x, x + width], "parts": number - 1}


def main():
    rng = np.random.default_rng(0)
    cases = []
    for shape, whole in SHAPES:
        for _ in range(4):
            values = similarity(rng, shape)
            heat = cv2.resize(values, whole[::-1], interpolation=cv2.INTER_CUBIC)
            at = [[int(rng.integers(n)) for n in whole] for _ in range(12)]
            cases.append(
                {
                    "similarity": values.tolist(),
                    "shape": whole,
                    "at": at,
                    "values": [float(heat[tuple(place)]) for place in at],
                    "largest": float(heat.max()),
                    "box": box(heat),
                }
            )
    made = {"opencv": cv2.__version__, "numpy": np.__version__, "cases": cases}
    file = pathlib.Path(__file__).with_name("boxes.json")
    file.write_text(json.dumps(made) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
