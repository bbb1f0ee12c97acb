"""One picture: its words, its outline and its sounds mean the same region."""

import dataclasses

import numpy as np
import pytest
import test_report

from apex_jax import explanation, schemes
from apex_jax.pages import embed, panel, picture

SHAPE = test_report.FRONT_END.shape


def words(scheme, location, front_end=test_report.FRONT_END, **options):
    areas = explanation.areas(test_report.GRID, scheme, np.array(location), front_end)
    return panel.where(areas, SHAPE, **options)


def test_where_leaves_out_what_is_everything():
    low, high = test_report.FRONT_END.band_hz(8, 16)
    start, end = test_report.FRONT_END.span_s(10, 20)
    time, band = f"{start:.2f}–{end:.2f} s", f"{low:.0f}–{high:.0f} Hz"
    assert words("square", (1, 1)) == f"{time}, {band}"
    assert words("time", (-1, 1)) == f"{time}, all frequencies"
    assert words("frequency", (1, -1)) == f"{band}, whole clip"
    assert (
        words("time_frequency", (1, 1))
        == f"{time}, all frequencies; {band}, whole clip"
    )
    box = schemes.Box(rows=(0.0, float(SHAPE[0])), frames=(0.0, float(SHAPE[1])))
    assert panel.where([explanation.Area(box=box)], SHAPE) == "the whole clip"


def test_where_in_the_file_and_where_nothing_tells():
    start, end = test_report.FRONT_END.span_s(10, 20)
    assert words("time", (-1, 1), offset_s=35.0) == (
        f"{start:.2f}–{end:.2f} s ({35 + start:.2f}–{35 + end:.2f} s of the file), "
        "all frequencies"
    )
    assert words("square", (1, 1), None) == "frames 10–20, rows 8–16"


@pytest.mark.parametrize("scheme", schemes.SCHEMES)
def test_a_channel_and_a_prototype(tmp_path, scheme):
    result, store = test_report.explained(tmp_path, scheme), embed.Store()
    channel = result.channels[0]
    prototype = channel.prototypes[0]
    for part, owner in ((channel, None), (prototype, prototype)):
        made = panel.make(result, store, "Words.", part)
        boxes = [area.box for area in part.areas]
        assert made.outline == picture.outline(boxes, SHAPE[0])
        assert made.text == f"Words. Region: {made.where}."
        assert [word for word, _ in made.players] == ["Clip", "Region"]
        assert made.players[0][1] is store.player(result, owner)
        assert made.players[1][1] is store.player(result, owner, part.areas)
        assert made.heat is store.image(picture.heatmap, part.heatmap)
    shown = panel.decibel(result, prototype.spectrogram)
    limits = picture.limits([shown])
    assert made.image is store.image(picture.spectrogram, shown, limits)


def test_without_a_region_a_spectrogram_or_a_front_end(tmp_path):
    result = test_report.explained(tmp_path, "square")
    store = embed.Store()
    nowhere = dataclasses.replace(result.channels[0], areas=())
    made = panel.make(result, store, "Words.", nowhere)
    assert (made.where, made.outline, made.text) == ("", "", "Words.")
    assert [word for word, _ in made.players] == ["Clip"]

    bare = dataclasses.replace(result, spectrogram=None, front_end=None)
    made = panel.make(bare, store, "Words.", bare.channels[0])
    assert made.image is None
    assert made.heat is not None
    assert made.players == ()
    assert made.axes.units == ("frame", "row")
