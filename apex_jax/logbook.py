"""What a training came to, epoch by epoch, on disk: JSON lines, and TensorBoard's logs.

Beside `train`, whose `on_epoch` it is. A folder of its own holds `epochs.jsonl`, a line
an epoch, and event files that `tensorboard --logdir` shows. It begins anew each time: a
training that goes on after an interruption tells its earlier epochs again.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
from collections.abc import Callable, Iterator
from pathlib import Path

from apex_jax import hosts, train

EPOCHS = "epochs.jsonl"


@contextlib.contextmanager
def writing(folder: Path) -> Iterator[Callable[[train.Epoch], None]]:
    """An `on_epoch` that writes into `folder`; of several processes the first writes.

    Args:
      folder: made if need be; an earlier logbook in it is replaced.
    """
    if not hosts.is_primary():
        yield lambda epoch: None
        return
    # Where it is used: whoever does not train need not wait for it.
    import tensorboardX

    folder.mkdir(parents=True, exist_ok=True)
    for stale in (folder / EPOCHS, *folder.glob("events.out.tfevents.*")):
        stale.unlink(missing_ok=True)
    with (
        (folder / EPOCHS).open("w", encoding="utf-8") as lines,
        tensorboardX.SummaryWriter(str(folder)) as board,
    ):

        def on_epoch(epoch: train.Epoch) -> None:
            values = dataclasses.asdict(epoch)
            lines.write(json.dumps(values) + "\n")
            lines.flush()
            number = values.pop("epoch")
            for name, value in values.pop("validation_metrics").items():
                values[f"validation_{name}"] = value
            for name, value in values.items():
                if value is not None:
                    board.add_scalar(name, value, number)
            board.flush()

        yield on_epoch
        os.fsync(lines.fileno())  # what comes after tells that the training is finished


def read(folder: Path) -> list[train.Epoch]:
    """The epochs that lie in `folder`.

    Raises:
      ValueError: the lines were cut or changed; says in which file.
    """
    file = folder / EPOCHS
    try:
        lines = file.read_text(encoding="utf-8").splitlines()
        return [train.Epoch(**json.loads(line)) for line in lines]
    except (ValueError, TypeError) as error:
        raise ValueError(
            f"{file} is damaged: {error!s:.200}; delete {folder} to train anew"
        ) from error
