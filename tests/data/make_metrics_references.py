"""Makes `metrics.json`: scores as torchmetrics gives them, which BirdSet reports.

    pip install torch torchmetrics==1.3.1
    python tests/data/make_metrics_references.py

Multi-label average precision and AUROC without thresholds, macro, on random targets
with ties among scores, with classes that never and that always occur.
"""

import json
import pathlib
import warnings

import numpy as np
import torch
import torchmetrics
from torchmetrics.functional.classification import (
    multilabel_auroc,
    multilabel_average_precision,
)

warnings.simplefilter("ignore")
cases = []
for seed in range(6):
    rng = np.random.default_rng(seed)
    clips, classes = int(rng.integers(20, 60)), int(rng.integers(3, 9))
    target = (rng.random((clips, classes)) < rng.uniform(0.05, 0.6, classes)).astype(
        int
    )
    if seed % 2:
        target[:, 0] = 0
    if seed % 3 == 2:
        target[:, 1] = 1
    scores = np.round(rng.random((clips, classes)), 1 + seed % 3)
    arrays = torch.from_numpy(scores), torch.from_numpy(target)
    each = multilabel_average_precision(*arrays, num_labels=classes, average="none")
    cases.append(
        {
            "target": target.tolist(),
            "scores": scores.tolist(),
            "average_precision": [
                None if torch.isnan(value) else float(value) for value in each
            ],
            "cmap": float(multilabel_average_precision(*arrays, num_labels=classes)),
            "auroc": float(multilabel_auroc(*arrays, num_labels=classes)),
        }
    )
path = pathlib.Path(__file__).parent / "metrics.json"
path.write_text(
    json.dumps({"torchmetrics": torchmetrics.__version__, "cases": cases}) + "\n"
)
