"""The masking study clip by clip, and on a classifier whose evidence has a place."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import test_attribution
import test_cache

from apex_jax import audio, classifier, data, disentangle, masking, schemes
from apex_jax import mesh as mesh_lib

FRONT_END, CHAN = test_cache.FRONT_END, test_cache.CHAN
F, T, CELL = 3, 4, 8
mesh_of = test_cache.mesh_of


@pytest.fixture(scope="module")
def clips(tmp_path_factory):
    return test_cache.write_clips(tmp_path_factory.mktemp("wavs"))


@pytest.fixture(scope="module")
def network():
    return test_cache.classifier_of()


@pytest.fixture(scope="module")
def transform():
    rng = np.random.default_rng(4)
    generator = jnp.asarray(rng.normal(0, 0.3, (CHAN, CHAN)), jnp.float32)
    made = disentangle.from_generator(generator)
    centre = jnp.asarray(rng.normal(size=CHAN), jnp.float32)
    return dataclasses.replace(made, centre=centre)


def study(network, transform, clips, **options):
    options = {
        "scheme": "time_frequency",
        "draws": 3,
        "batch_size": 4,
        "mesh": mesh_of(1),
        **options,
    }
    return masking.study(
        jax.random.key(7), network, transform, clips, FRONT_END, **options
    )


def gauss(x, sigma):
    """Area of the Gaussian below x."""
    from math import erf

    return 0.5 * (1 + erf(x / sigma / 2**0.5))


def profile(cell, num, *, hard=False):
    """A cell's pixels, blurred by a quarter of a cell, sharp at the outer edges."""
    if hard:
        return np.repeat((np.arange(num) == cell) | (cell == schemes.ALL), CELL) * 1.0
    if cell == schemes.ALL:
        return np.ones(num * CELL)
    soft = np.zeros(num * CELL)
    for pixel in range(num * CELL):
        below = 1 if cell == 0 else gauss(pixel + 0.5 - CELL * cell, CELL / 4)
        above = (
            0 if cell == num - 1 else gauss(pixel + 0.5 - CELL * (cell + 1), CELL / 4)
        )
        soft[pixel] = below - above
    return soft


def mask_by_hand(scheme, row, column, *, hard=False):
    freq = profile(row, F, hard=hard)[:, None]
    time = profile(column, T, hard=hard)[None, :]
    match scheme:
        case "square":
            return freq * time
        case "time":
            return np.ones((F * CELL, 1)) * time
        case "frequency":
            return freq * np.ones((1, T * CELL))
    # Column and row: hidden is what either of them hides.
    return 1 - (1 - freq) * (1 - time)


def attenuated(spectrogram, mask):
    """S (1 - M) + silence M, silence being 80 dB below the clip's maximum."""
    decibel = spectrogram * FRONT_END.std + FRONT_END.mean
    silence = (max(decibel.max() - 80, -100) - FRONT_END.mean) / FRONT_END.std
    return spectrogram * (1 - mask) + silence * mask


def test_attenuate_by_hand(rng):
    spectrogram = rng.normal(-1, 2, (2, 24, 32)).astype(np.float32)
    mask = rng.random((2, 24, 32)).astype(np.float32)
    found = audio.attenuate(FRONT_END, jnp.asarray(spectrogram), jnp.asarray(mask))
    for n in range(2):
        np.testing.assert_allclose(
            found[n], attenuated(spectrogram[n], mask[n]), atol=1e-5
        )
    ones = audio.attenuate(FRONT_END, jnp.asarray(spectrogram), jnp.ones((2, 24, 32)))
    assert (np.ptp(np.asarray(ones), axis=(1, 2)) == 0).all()


@jax.jit
def logits_of(model, spectrogram):
    return model(spectrogram[None])[0]


@pytest.mark.parametrize("scheme", schemes.SCHEMES)
def test_study_by_hand(scheme, network, transform, clips):
    found = study(network, transform, clips[:5], scheme=scheme, draws=1)
    np.testing.assert_array_equal(found.index, range(5))
    matrix, inverse, centre, weight = (
        np.asarray(a, np.float64)
        for a in (
            transform.matrix,
            transform.inverse,
            transform.centre,
            network.head.weight,
        )
    )
    for n, clip in enumerate(clips[:5]):
        spectrogram, feature_map, logits = test_cache.map_of(network, clip)
        np.testing.assert_allclose(found.none[n], logits, rtol=1e-4, atol=1e-4)
        zhat = (feature_map - centre) @ matrix.T
        target = logits.argmax()
        share = (weight @ inverse)[target] * np.maximum(zhat.mean(axis=(0, 1)), 0)
        channel = zhat[:, :, share.argmax()]
        row, column = channel.mean(axis=1).argmax(), channel.mean(axis=0).argmax()
        match scheme:
            case "square":
                row, column = np.unravel_index(channel.argmax(), (F, T))
            case "time":
                row = schemes.ALL
            case "frequency":
                column = schemes.ALL
        assert tuple(found.location[n].tolist()) == (row, column)
        hidden = attenuated(spectrogram, mask_by_hand(scheme, row, column))
        expected = logits_of(network.params, jnp.asarray(hidden, jnp.float32))
        np.testing.assert_allclose(found.apex[n], expected, rtol=1e-3, atol=1e-3)
        # The random region is one of the twelve cells', by the same filter.
        possible = [
            logits_of(
                network.params,
                jnp.asarray(attenuated(spectrogram, mask_by_hand(scheme, f, t)), "f4"),
            )
            for f, t in np.ndindex(F, T)
        ]
        assert np.abs(found.random[0, n] - np.array(possible)).max(axis=1).min() < 1e-3


@pytest.mark.slow
def test_random_masks_depend_on_the_clip_not_the_batch(network, transform, clips):
    whole = study(network, transform, clips)
    assert whole.random.shape == (3, 11, 3)
    other = study(network, transform, clips, batch_size=8, mesh=mesh_of(8))
    for field in dataclasses.fields(masking.Study):
        one, two = getattr(whole, field.name), getattr(other, field.name)
        if one is None:
            assert two is None
            continue
        np.testing.assert_allclose(one, two, rtol=1e-4, atol=1e-4, err_msg=field.name)
    fewer = study(network, transform, clips[:4], draws=3)
    np.testing.assert_allclose(whole.random[:, :4], fewer.random, rtol=1e-5, atol=1e-5)
    # Draws differ from each other, and so do the clips' cells.
    assert np.abs(whole.random[0] - whole.random[1]).max() > 1e-3
    other_key = masking.study(
        jax.random.key(8),
        network,
        transform,
        clips[:4],
        FRONT_END,
        scheme="time_frequency",
        draws=3,
        batch_size=4,
        mesh=mesh_of(1),
    )
    assert np.abs(other_key.random - fewer.random).max() > 1e-3
    np.testing.assert_array_equal(other_key.apex, fewer.apex)


def test_each_clip_has_cells_of_its_own(network, transform, clips):
    """The same sound eight times: what is hidden differs, by place alone."""
    found = study(network, transform, clips[:1] * 8)
    np.testing.assert_allclose(found.apex, found.apex[[0] * 8], rtol=1e-5, atol=1e-5)
    for draw in found.random:
        assert len(np.unique(draw[:, 0].round(4))) > 2


@pytest.mark.slow
@pytest.mark.parametrize("scheme", schemes.SCHEMES)
def test_the_own_region_can_be_left_out_of_the_draws(scheme, network, transform, clips):
    """Uniform draws meet the region of their clip; `exclude_own` never does."""
    paper = study(network, transform, clips, scheme=scheme, draws=8)
    other = study(network, transform, clips, scheme=scheme, draws=8, exclude_own=True)
    np.testing.assert_array_equal(paper.apex, other.apex)
    np.testing.assert_array_equal(paper.location, other.location)

    def own(found):
        return np.abs(found.random - found.apex).max(axis=2) < 1e-5

    rows, columns = 3, 4
    regions = {"square": rows * columns, "time": columns, "frequency": rows,
               "time_frequency": rows * columns}[scheme]  # fmt: skip
    assert paper.own_share is None
    assert other.own_share == pytest.approx(1 / regions)
    assert own(paper).any()
    assert not own(other).any()
    assert np.abs(other.random[0] - other.random[1]).max() > 1e-3


def test_no_draws(network, transform, clips):
    found = study(network, transform, clips[:4], draws=0)
    assert found.random.shape == (0, 4, 3)


def test_bad_files_are_left_out(network, transform, clips, tmp_path):
    bad = data.Clip(path=tmp_path / "absent.wav", label=0)
    mixed = (clips[0], bad, *clips[2:4])
    log, seen = data.SkipLog(), []
    found = study(network, transform, mixed, skip_log=log, on_progress=seen.append)
    np.testing.assert_array_equal(found.index, [0, 2, 3])
    assert len(log) == 1
    assert seen == [4]
    whole = study(network, transform, clips[:4])
    np.testing.assert_allclose(found.apex, whole.apex[[0, 2, 3]], rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(
        found.random, whole.random[:, [0, 2, 3]], rtol=1e-5, atol=1e-5
    )
    with pytest.raises(audio.AudioError, match=r"absent\.wav"):
        study(network, transform, mixed)
    with pytest.raises(ValueError, match="none of the 1 clips could be read"):
        study(network, transform, (bad,), skip_log=data.SkipLog())


# --- a classifier whose evidence has a place


def patches(params, spectrogram):
    """Channel 0 is how loud a cell is, channel 1 is always a little."""
    loud = spectrogram.reshape(-1, F, CELL, T, CELL).mean(axis=(2, 4)) + params["floor"]
    feature_map = jnp.stack([loud, jnp.full_like(loud, 0.01)], axis=-1)
    return feature_map, feature_map.mean(axis=(1, 2)) @ params["weight"].T


@pytest.mark.parametrize("scheme", schemes.SCHEMES)
@pytest.mark.parametrize("place", [(2, 1), (0, 3)])
def test_hiding_the_evidence_hurts_and_hiding_elsewhere_does_not(place, scheme):
    """All that is heard lies in one cell; whoever finds it silences the clip."""
    row, column = place
    spectrogram = np.full((8, F * CELL, T * CELL), -2.0, np.float32)
    spectrogram[
        :, CELL * row : CELL * row + CELL, CELL * column : CELL * column + CELL
    ] = 2.0  # 80 dB above
    weight = jnp.array([[1.0, 0.0], [0.0, 1.0]])
    network = classifier.Classifier(
        params={"floor": jnp.float32(2.0), "weight": weight},
        head=classifier.LinearHead(weight=weight, bias=jnp.zeros(2)),
        forward_fn=patches,
        class_names=("loud", "quiet"),
    )
    with pytest.MonkeyPatch.context() as patch:
        # Sound of just one cell cannot be had; the spectrogram can.
        patch.setattr(
            audio, "spectrogram", lambda _, wave: wave.reshape(-1, F * CELL, T * CELL)
        )
        none, apex, random, location = masking.masked_logits(
            jax.random.key(0),
            network,
            disentangle.identity(2),
            mesh_lib.shard(spectrogram.reshape(8, -1), mesh_of(8)),
            mesh_lib.shard(np.arange(8, dtype=np.int32), mesh_of(8)),
            front_end=FRONT_END,
            scheme=scheme,
            draws=6,
            mesh=mesh_of(8),
        )
    wanted = {
        "square": place,
        "time": (schemes.ALL, column),
        "frequency": (row, schemes.ALL),
        "time_frequency": place,
    }[scheme]
    assert {tuple(one) for one in np.asarray(location).tolist()} == {wanted}
    np.testing.assert_allclose(none[:, 0], 4 / 12, rtol=1e-5)
    assert (np.argmax(none, axis=1) == 0).all()
    # What the soft edges leave over, by the mask written out above.
    left = spectrogram[0] > 0
    left = (4 * (1 - mask_by_hand(scheme, *wanted))[left]).sum() / left.size
    np.testing.assert_allclose(apex[:, 0], left, rtol=1e-4)
    assert left < 0.3 * 4 / 12
    np.testing.assert_allclose(apex[:, 1], none[:, 1])
    # A random region hides as much where it meets the cell, and little elsewhere.
    kept = np.asarray(random)[:, :, 0] / (4 / 12)
    meets = {"square": 1 / 12, "time": 1 / 4, "frequency": 1 / 3}.get(scheme, 1 / 2)
    assert abs((kept < 0.5).mean() - meets) < 0.25
    assert kept.mean() > 2 * left / (4 / 12)
    if scheme == "square":
        assert (kept > 0.85).mean() > 0.7


@pytest.mark.parametrize("scheme", ["square", "time_frequency"])
def test_hiding_in_one_clip_is_what_the_study_does(scheme, network, transform, clips):
    """The same location, mask and probability; of another scheme than its own."""
    found = study(network, transform, clips[:1], scheme=scheme, draws=1)
    explainer = dataclasses.replace(
        test_attribution.explainer_of("time", network), transform=transform
    )
    seen = explainer.look(clips[0].path, offset_s=clips[0].offset_s)
    target = int(np.argmax(found.none[0]))
    hidden = masking.hide(jax.random.key(1), explainer, seen, target, scheme, draws=12)
    assert (hidden.scheme, hidden.learned, hidden.draws) == (scheme, "time", 12)
    row, column = found.location[0].tolist()
    mask = mask_by_hand(scheme, row, column)
    np.testing.assert_allclose(hidden.mask, mask, atol=1e-5)
    left = attenuated(seen.spectrogram, mask)
    np.testing.assert_allclose(hidden.spectrogram, left, atol=1e-4)
    powers = np.exp(found.apex[0].astype(np.float64))
    assert hidden.probability == pytest.approx(powers[target] / powers.sum(), abs=1e-5)
    grid = explainer.grid()
    assert [a.box for a in hidden.areas] == list(grid.boxes(scheme, (row, column)))
    # The random ones: silence somewhere else, and the mean of what it does.
    again = masking.hide(jax.random.key(1), explainer, seen, target, scheme, draws=12)
    other = masking.hide(jax.random.key(2), explainer, seen, target, scheme, draws=12)
    assert hidden.random_mean == again.random_mean != other.random_mean
    one = masking.hide(jax.random.key(1), explainer, seen, target, scheme, draws=1)
    assert one.random_mean == one.random_probability
    logits = logits_of(network.params, jnp.asarray(one.random_spectrogram))
    powers = np.exp(np.asarray(logits, np.float64))
    expected = powers[target] / powers.sum()
    assert one.random_probability == pytest.approx(expected, abs=1e-5)


@pytest.mark.parametrize("scheme", schemes.SCHEMES)
def test_the_random_region_that_is_shown_is_another(scheme, network, transform, clips):
    explainer = dataclasses.replace(
        test_attribution.explainer_of(scheme, network), transform=transform
    )
    seen = explainer.look(clips[0].path)
    for seed in range(12):  # of three rows, a third of uniform draws would be APEX's
        hidden = masking.hide(jax.random.key(seed), explainer, seen, 0, scheme, draws=1)
        left = hidden.random_spectrogram
        assert np.abs(left - hidden.spectrogram).max() > 0.1


def test_hiding_takes_a_spectrogram_and_a_front_end(network, clips):
    explainer = test_attribution.explainer_of("time", network)
    seen = explainer.look(clips[0].path)
    for broken, bare in (
        (explainer, dataclasses.replace(seen, spectrogram=None)),
        (dataclasses.replace(explainer, front_end=None), seen),
    ):
        with pytest.raises(ValueError, match="spectrogram and front end"):
            masking.hide(jax.random.key(0), broken, bare, 0, "time", draws=1)
