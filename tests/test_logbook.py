"""The logbook: what is written is what was told, for people and for TensorBoard."""

import struct

import pytest

from apex_jax import logbook, train


def epoch(number, accuracy=0.5):
    return train.Epoch(
        epoch=number,
        train_loss=1 / number,
        validation_loss=2 / number,
        validation_accuracy=accuracy,
        learning_rate=1e-3,
        validation_metrics={"cmap": 0.25} if number == 1 else {},
    )


def events(file):
    """Step, name and value of every scalar, by the format's own definition."""
    from tensorboardX.proto import event_pb2

    raw, at, found = file.read_bytes(), 0, []
    while at < len(raw):
        (length,) = struct.unpack("<Q", raw[at : at + 8])
        event = event_pb2.Event.FromString(raw[at + 12 : at + 12 + length])
        found += [(event.step, v.tag, v.simple_value) for v in event.summary.value]
        at += 12 + length + 4
    return found


def test_every_epoch_is_written_as_it_ends(tmp_path):
    folder = tmp_path / "log"
    with logbook.writing(folder) as on_epoch:
        on_epoch(epoch(1))
        assert logbook.read(folder) == [epoch(1)]
        on_epoch(epoch(2, accuracy=None))
    assert logbook.read(folder) == [epoch(1), epoch(2, accuracy=None)]
    (file,) = folder.glob("events.out.tfevents.*")
    assert events(file) == [
        (1, "train_loss", 1.0),
        (1, "validation_loss", 2.0),
        (1, "validation_accuracy", 0.5),
        (1, "learning_rate", struct.unpack("f", struct.pack("f", 1e-3))[0]),
        (1, "validation_cmap", 0.25),
        (2, "train_loss", 0.5),
        (2, "validation_loss", 1.0),
        (2, "learning_rate", struct.unpack("f", struct.pack("f", 1e-3))[0]),
    ]


def test_who_goes_on_begins_a_new_logbook(tmp_path):
    for told in ([epoch(1)], [epoch(1), epoch(2)]):
        with logbook.writing(tmp_path) as on_epoch:
            for one in told:
                on_epoch(one)
    assert logbook.read(tmp_path) == told
    assert len(list(tmp_path.glob("events.out.tfevents.*"))) == 1


@pytest.mark.parametrize("text", ['{"epoch": 1', "[1]", '{"epoch": 1}', "\xff"])
def test_a_damaged_logbook_is_named(text, tmp_path):
    (tmp_path / logbook.EPOCHS).write_text(text, encoding="latin-1")
    with pytest.raises(ValueError, match=r"epochs\.jsonl is damaged: .*to train anew"):
        logbook.read(tmp_path)
