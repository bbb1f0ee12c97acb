"""Explanations in NumPy loops from the method's section 7, and saving an explainer."""

import dataclasses
import shutil

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import soundfile
import test_cache

from apex_jax import (
    audio,
    bank,
    checkpoint,
    data,
    disentangle,
    evidence,
    explain,
    gallery,
    look,
    schemes,
)
from apex_jax import features as features_lib

FRONT_END, CHAN = test_cache.FRONT_END, test_cache.CHAN
F, T, CELL = 3, 4, 8
NUM_PROTOTYPES = 4
PAPER = {"evidence": "plain", "locate": "map"}  # the rest is as in the paper anyway


def transform_of(rng):
    """An affine one: the centre must not be forgotten anywhere."""
    generator = jnp.asarray(rng.normal(0, 0.3, (CHAN, CHAN)), jnp.float32)
    centre = jnp.asarray(rng.normal(size=CHAN), jnp.float32)
    made = disentangle.from_generator(generator)
    return dataclasses.replace(made, centre=centre)


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A run's folder with the clips inside."""
    return tmp_path_factory.mktemp("runs") / "first"


@pytest.fixture(scope="module")
def seen(run):
    """Spectrogram, map and logits of every clip, alone in the network."""
    classifier = test_cache.classifier_of()
    clips = test_cache.write_clips(run / "wavs")
    return classifier, clips, [test_cache.map_of(classifier, clip) for clip in clips]


@pytest.fixture(scope="module")
def explainers(seen):
    classifier, clips, shown = seen
    mesh = test_cache.mesh_of(1)
    features = features_lib.from_maps(
        np.stack([feature_map for _, feature_map, _ in shown]),
        np.stack([logits for _, _, logits in shown]),
    ).to_mesh(mesh)
    transform = transform_of(np.random.default_rng(4))
    made = {}
    for scheme in schemes.SCHEMES:
        positive, negative = (
            bank.build(
                transform,
                features,
                scheme=scheme,
                num_prototypes=NUM_PROTOTYPES,
                sign=sign,
                mesh=mesh,
            )
            for sign in ("positive", "negative")
        )
        made[scheme] = explain.Explainer(
            classifier=classifier,
            transform=transform,
            positive=positive,
            negative=negative,
            clips=clips,
            front_end=FRONT_END,
        )
    return made


@pytest.fixture(scope="module")
def explainer(explainers):
    return explainers["time_frequency"]


# --- section 7 once more


def by_hand(explainer):
    """U, What, b' and mu in float64."""
    transform, head = explainer.transform, explainer.classifier.head
    matrix, inverse, centre, weight, bias = (
        np.asarray(a, np.float64)
        for a in (
            transform.matrix,
            transform.inverse,
            transform.centre,
            head.weight,
            head.bias,
        )
    )
    return matrix, weight @ inverse, bias + weight @ centre, centre


def transformed(explainer, feature_map):
    matrix, _, _, centre = by_hand(explainer)
    zhat = np.zeros(feature_map.shape)
    for f, t in np.ndindex(feature_map.shape[:2]):
        zhat[f, t] = matrix @ (feature_map[f, t] - centre)
    return zhat


def contributions_by_hand(explainer, feature_map, target):
    zhat, (_, weight, _, _) = transformed(explainer, feature_map), by_hand(explainer)
    mean = sum(zhat[f, t] for f in range(F) for t in range(T)) / (F * T)
    return [weight[target, k] * max(mean[k], 0) for k in range(CHAN)]


def upsampled(cells):
    """Bilinear with half-pixel centres; beyond the outermost centres, constant."""
    fine = np.zeros((F * CELL, T * CELL))
    for row, frame in np.ndindex(*fine.shape):
        f = min(max((row + 0.5) / CELL - 0.5, 0), F - 1)
        t = min(max((frame + 0.5) / CELL - 0.5, 0), T - 1)
        f0, t0 = int(f), int(t)
        f1, t1 = min(f0 + 1, F - 1), min(t0 + 1, T - 1)
        df, dt = f - f0, t - t0
        low = cells[f0, t0] * (1 - dt) + cells[f0, t1] * dt
        high = cells[f1, t0] * (1 - dt) + cells[f1, t1] * dt
        fine[row, frame] = low * (1 - df) + high * df
    return fine


def heatmap_by_hand(explainer, feature_map, channel, target):
    zhat, (_, weight, bias, _) = transformed(explainer, feature_map), by_hand(explainer)
    cells = np.zeros((F, T))
    for f, t in np.ndindex(F, T):
        value = weight[target, channel] * zhat[f, t, channel] + bias[target] / CHAN
        cells[f, t] = max(value, 0)
    return upsampled(cells / cells.max() if cells.max() > 0 else cells)


def boxes_by_hand(scheme, zhat):
    """Rows and frames of the region of one channel's map `[F, T]`."""
    if scheme == "square":
        f, t = np.unravel_index(zhat.argmax(), zhat.shape)
    else:
        f, t = zhat.mean(axis=1).argmax(), zhat.mean(axis=0).argmax()
    rows, frames = (CELL * f, CELL * f + CELL), (CELL * t, CELL * t + CELL)
    whole_rows, whole_frames = (0, F * CELL), (0, T * CELL)
    return {
        "square": [(rows, frames)],
        "time": [(whole_rows, frames)],
        "frequency": [(rows, whole_frames)],
        "time_frequency": [(whole_rows, frames), (rows, whole_frames)],
    }[scheme]


def assert_areas(areas, boxes):
    assert [(a.box.rows, a.box.frames) for a in areas] == boxes
    top = FRONT_END.sample_rate / 2
    for area, ((low, high), (start, end)) in zip(areas, boxes, strict=True):
        # The 24 triangles' corners are 26 points from 0 to half the rate; row r peaks
        # at the (r + 1)th. Below 1 kHz a mel is 200/3 Hz, above it is logarithmic.
        mels = [
            (r + 0.5) / 25 * (15 + 27 * np.log(4) / np.log(6.4)) for r in (low, high)
        ]
        hertz = [m * 200 / 3 if m < 15 else 1000 * 6.4 ** ((m - 15) / 27) for m in mels]
        assert area.low_hz == pytest.approx(hertz[0], rel=1e-6)
        assert area.high_hz == pytest.approx(min(hertz[1], top), rel=1e-6)
        hop_s = FRONT_END.hop_length / FRONT_END.sample_rate
        assert area.start_s == pytest.approx(max(0, (start - 0.5) * hop_s))
        assert area.end_s == pytest.approx(min(FRONT_END.clip_s, (end - 0.5) * hop_s))


def test_contributions_and_the_logit(explainer, seen):
    """They are the positive part of a sum that is the logit itself."""
    _, _, shown = seen
    head = explainer.transform.compensate(explainer.classifier.head)
    matrix, weight, bias, centre = by_hand(explainer)
    for _, feature_map, logits in shown[:3]:
        mean = matrix @ (feature_map.mean(axis=(0, 1)) - centre)
        pooled = explainer.transform(jnp.asarray(feature_map.mean(axis=(0, 1))))
        for target in range(3):
            total = sum(weight[target, k] * mean[k] for k in range(CHAN))
            assert total + bias[target] == pytest.approx(logits[target], abs=1e-3)
            np.testing.assert_allclose(
                evidence.contributions(head, pooled, jnp.int32(target)),
                contributions_by_hand(explainer, feature_map, target),
                atol=1e-3,
            )


@pytest.mark.parametrize("bias", [-5.0, 0.0, 5.0])
def test_heatmap_of_a_channel(bias, explainer, seen):
    """At a large negative bias nothing is left: zeros stay zeros."""
    classifier, _, shown = seen
    head = dataclasses.replace(
        classifier.head, bias=jnp.full(3, bias * CHAN, jnp.float32)
    )
    biased = dataclasses.replace(
        explainer, classifier=dataclasses.replace(classifier, head=head)
    )
    grid = schemes.Grid.of((F, T), FRONT_END.shape, (CELL, CELL))
    for k in (0, 7):
        found = evidence.heatmap(
            biased.transform.compensate(head),
            biased.transform,
            schemes.views(jnp.asarray(shown[2][1]), keep_cells=True),
            jnp.int32(k),
            jnp.int32(1),
            grid=grid,
        )
        expected = heatmap_by_hand(biased, shown[2][1], k, 1)
        np.testing.assert_allclose(found, expected, atol=1e-3)
        assert np.isfinite(np.asarray(found)).all()


@pytest.mark.parametrize("scheme", schemes.SCHEMES)
def test_an_explanation_by_hand(scheme, explainers, seen):
    """Every number of it; the prototypes' too, each from its own clip."""
    explainer, (_, clips, shown) = explainers[scheme], seen
    clip, (spectrogram, feature_map, logits) = clips[5], shown[5]
    found = explainer(clip.path, offset_s=clip.offset_s, num_channels=5, **PAPER)
    assert found.source == str(clip.path)
    assert found.scheme == scheme
    assert found.class_names == test_cache.NAMES
    np.testing.assert_allclose(found.logits, logits, rtol=1e-4, atol=1e-4)
    np.testing.assert_allclose(found.spectrogram, spectrogram, atol=1e-4)
    target = int(np.argmax(logits))
    assert found.predicted == found.target == target
    assert found.class_name == test_cache.NAMES[target]

    share = np.array(contributions_by_hand(explainer, feature_map, target))
    order = np.argsort(-share, kind="stable")[:5]
    assert [c.index for c in found.channels] == order.tolist()
    np.testing.assert_allclose(
        [c.contribution for c in found.channels], share[order], atol=1e-3
    )
    positive = [s for s in share if s > 0]
    shown_share = sum(s for s in share[order] if s > 0) / sum(positive)
    assert found.evidence_share == pytest.approx(shown_share, rel=1e-3)

    of_class = feature_map @ np.asarray(explainer.classifier.head.weight[target])
    assert_areas(found.class_areas, boxes_by_hand(scheme, of_class))
    assert found.agrees == (found.class_areas == found.channels[0].areas)

    zhat = transformed(explainer, feature_map)
    maps = [transformed(explainer, feature_map) for _, feature_map, _ in shown]
    for channel in found.channels:
        k = channel.index
        assert_areas(channel.areas, boxes_by_hand(scheme, zhat[:, :, k]))
        np.testing.assert_allclose(
            channel.heatmap,
            heatmap_by_hand(explainer, feature_map, k, target),
            atol=2e-3,
        )
        sums = [m[:, :, k].sum() for m in maps]
        best = np.argsort(np.negative(sums))[:NUM_PROTOTYPES]
        assert [p.clip for p in channel.prototypes] == [clips[n] for n in best]
        for prototype, n in zip(channel.prototypes, best, strict=True):
            assert prototype.activation == pytest.approx(sums[n], rel=1e-3, abs=1e-3)
            assert prototype.class_name == test_cache.NAMES[clips[n].label]
            assert_areas(prototype.areas, boxes_by_hand(scheme, maps[n][:, :, k]))
            np.testing.assert_allclose(prototype.spectrogram, shown[n][0], atol=1e-4)
            np.testing.assert_allclose(
                prototype.heatmap,
                heatmap_by_hand(explainer, shown[n][1], k, target),
                atol=2e-3,
            )


def test_contrastive_evidence_by_hand(explainers, seen):
    """Shares, regions' heat and prototypes' heat of the contrastive head."""
    _, clips, shown = seen
    explainer = explainers["time"]
    _, feature_map, logits = shown[0]
    target = int(np.argmax(logits))
    found = explainer(clips[0].path, num_channels=3, locate="map")
    _, weights, bias, _ = by_hand(explainer)
    others = [c for c in range(len(weights)) if c != target]
    row = weights[target] - weights[others].mean(axis=0)
    zhat = transformed(explainer, feature_map)
    share = row * np.maximum(zhat.mean(axis=(0, 1)), 0)
    np.testing.assert_allclose(found.contributions, share, atol=1e-3)
    order = np.argsort(-share, kind="stable")[:3]
    assert [c.index for c in found.channels] == order.tolist()
    plain = explainer(clips[0].path, num_channels=3, **PAPER)
    assert (found.evidence, plain.evidence) == ("contrastive", "plain")
    assert not np.allclose(found.contributions, plain.contributions, atol=1e-2)
    k = found.channels[0].index
    level = bias[target] - bias[others].mean()
    cells = np.maximum(row[k] * zhat[:, :, k] + level / CHAN, 0)
    heat = upsampled(cells / cells.max())
    np.testing.assert_allclose(found.channels[0].heatmap, heat, atol=1e-3)


def test_region_is_the_banks_location(explainers):
    """What is drawn of a prototype is what earned its purity."""
    for explainer in explainers.values():
        grid = explainer.grid(explainer.map_shape, FRONT_END.shape)
        assert grid == schemes.Grid.of((F, T), (24, 32), (CELL, CELL))
        found = explainer(explainer.clips[0].path, num_channels=2, locate="map")
        for channel in found.channels:
            for rank, prototype in enumerate(channel.prototypes):
                at = channel.index, rank
                location = explainer.positive.location[at]
                assert prototype.areas == explainer.areas(grid, np.asarray(location))
                assert prototype.purity == float(explainer.positive.purity[at])
                assert prototype.clip == explainer.clips[explainer.positive.clip[at]]


# --- what is asked for


def assert_same(one, other):
    """The same, arrays and all; a number may differ by rounding, a path by its root."""
    assert type(one) is type(other)
    if dataclasses.is_dataclass(one):
        for field in dataclasses.fields(one):
            if field.name == "path":
                assert one.path.name == other.path.name
            else:
                assert_same(getattr(one, field.name), getattr(other, field.name))
    elif isinstance(one, tuple | list):
        assert len(one) == len(other)
        for mine, theirs in zip(one, other, strict=True):
            assert_same(mine, theirs)
    elif isinstance(one, np.ndarray | float):
        np.testing.assert_allclose(one, other, rtol=1e-5, atol=1e-5)
    else:
        assert one == other


def test_classes_by_name_and_index(explainer):
    clip = explainer.clips[5]
    explain_as = {
        t: explainer(clip.path, target=t) for t in (0, 1, 2, *test_cache.NAMES)
    }
    for index, name in enumerate(test_cache.NAMES):
        assert explain_as[index].target == index
        assert explain_as[index].class_name == name
        assert_same(explain_as[index], explain_as[name])
    predicted = explainer(clip.path)
    assert predicted.predicted == predicted.target
    assert_same(predicted, explain_as[predicted.predicted])
    assert len({explain_as[i].channels[0].contribution for i in range(3)}) == 3


def test_a_class_by_numpys_index(explainer):
    assert explainer(explainer.clips[5].path, target=np.int64(2)).target == 2


@pytest.mark.parametrize("target", ["lowest", 3, -1])
def test_no_such_class(target, explainer):
    with pytest.raises(ValueError, match="one of low, middle, high; got"):
        explainer(explainer.clips[0].path, target=target)


@pytest.mark.parametrize("offset_s", [0.0, 0.125])
def test_waveform_and_file_agree(offset_s, explainer):
    path = explainer.clips[3].path  # 0.7 s
    waveform, _ = soundfile.read(path, dtype="float32")
    from_file = explainer(path, offset_s=offset_s)
    rate = FRONT_END.sample_rate
    from_waveform = explainer(waveform, sample_rate=rate, offset_s=offset_s)
    first = round(offset_s * rate)
    heard = waveform[first : first + FRONT_END.num_samples]
    np.testing.assert_array_equal(from_waveform.waveform, heard)
    in_memory = {"source": "waveform", "waveform": heard, "sample_rate": rate}
    assert_same(dataclasses.replace(from_file, **in_memory), from_waveform)
    np.testing.assert_allclose(
        from_file.spectrogram,
        test_cache.map_of(
            explainer.classifier, data.Clip(path=path, label=0, offset_s=offset_s)
        )[0],
        atol=1e-4,
    )
    doubles = explainer(
        waveform.astype(np.float64), sample_rate=rate, offset_s=offset_s
    )
    assert_same(from_waveform, doubles)


def test_offset_is_heard(explainer):
    path = explainer.clips[3].path
    one, other = explainer(path), explainer(path, offset_s=0.2)
    assert np.abs(one.spectrogram - other.spectrogram).max() > 0.1


@pytest.mark.parametrize(
    ("sound", "message"),
    [
        (np.zeros((2, 4000), np.float32), r"\[24, 32\].*got shape \[2, 4000\]"),
        (np.full((24, 32), np.nan, np.float32), "and finite"),
        (np.full(4000, np.nan, np.float32), "NaN, infinity"),
        ([0.1, 0.2], "a file's path, a waveform.*got float"),
    ],
)
def test_impossible_sounds(sound, message, explainer):
    # The annotation refuses some of them, but only in tests.
    read = look._read
    sound = sound[0] if isinstance(sound, list) else sound
    with pytest.raises(ValueError, match=message):
        getattr(read, "__wrapped__", read)(FRONT_END, sound, 0.0, 8000)


def test_a_waveform_says_how_fast_it_is(explainer):
    with pytest.raises(ValueError, match="sample_rate must say"):
        explainer(np.zeros(4000, np.float32))


def test_a_waveform_of_another_rate(explainer):
    """The same tone, sampled twice as fast, is the same clip."""
    rate = FRONT_END.sample_rate
    slow, fast = (
        0.3 * np.sin(2 * np.pi * 440 * np.arange(r) / r).astype(np.float32)
        for r in (rate, 2 * rate)
    )
    one = explainer(slow, sample_rate=rate, num_prototypes=1)
    other = explainer(fast, sample_rate=2 * rate, num_prototypes=1)
    row = np.argmax(one.spectrogram.mean(axis=1))
    np.testing.assert_allclose(
        other.spectrogram[row, 2:-2], one.spectrogram[row, 2:-2], atol=0.01
    )
    assert len(other.waveform) == FRONT_END.clip_s * 2 * rate


def test_a_spectrogram(explainer):
    clip = explainer.clips[5]
    from_file = explainer(clip.path)
    found = explainer(np.array(from_file.spectrogram))
    assert found.source == "spectrogram"
    assert found.sound_s is None
    assert found.waveform is None
    same = {"source": "spectrogram", "sound_s": None}
    assert_same(dataclasses.replace(from_file, **same), found)


def test_several_sounds_at_once(explainer):
    """Each as if it came alone; more of them than fit into the network together."""
    explainer = dataclasses.replace(explainer, chunk_size=3)
    paths = [clip.path for clip in explainer.clips[:4]]
    waveform = np.float32(soundfile.read(paths[0])[0])
    sounds = [*paths, waveform, np.array(explainer(paths[1]).spectrogram)]
    options = {"num_channels": 2, "num_prototypes": 1, "target": "low"}
    found = explainer(sounds, sample_rate=FRONT_END.sample_rate, **options)
    assert [one.source for one in found][4:] == ["waveform", "spectrogram"]
    for one, sound in zip(found, sounds, strict=True):
        rate = {"sample_rate": FRONT_END.sample_rate}
        assert_same(one, explainer(sound, **rate, **options))
    looks = [explainer.look(paths[0]), paths[1], explainer.look(paths[2])]
    for one, other in zip(explainer(looks, **options), found, strict=False):
        assert_same(one, other)
    assert explainer([]) == []
    assert len(explainer((paths[0],))) == 1


def test_no_more_than_a_chunk_at_a_time(explainer, monkeypatch):
    sizes = []
    run = look.run

    def spy(classifier, spectrograms, size):
        sizes.append((len(spectrograms), size))
        return run(classifier, spectrograms, size)

    monkeypatch.setattr(look, "run", spy)
    explainer = dataclasses.replace(explainer, chunk_size=2)
    explainer([clip.path for clip in explainer.clips[:5]], num_channels=3)
    assert {size for _, size in sizes} == {2}
    assert max(count for count, _ in sizes) == 2
    # The clips that have been seen are not looked at again.
    before = len(sizes)
    explainer(explainer.clips[4].path, num_channels=3, locate="map")
    assert sizes[before:] == [(1, 1)]
    # By occlusion without and with each of its regions alone, three rows and four
    # columns, and with nothing of each.
    before = len(sizes)
    explainer(explainer.clips[4].path, num_channels=3)
    assert sizes[before:] == [(1, 1), *[(2, 2)] * 3, (1, 2), *[(2, 2)] * 4, (1, 2)]


def test_prototypes_kept_in_memory_are_few(explainer, monkeypatch):
    monkeypatch.setattr(gallery, "RECENT_CLIPS", 3)
    monkeypatch.setattr(gallery, "RECENT_EFFECTS", 4)
    explainer = dataclasses.replace(explainer, chunk_size=2)
    for clip in explainer.clips[:3]:
        explainer(clip.path, num_channels=CHAN)
    assert len(explainer._gallery._recent) == 3
    assert len(explainer._gallery._effects) == 4


# --- classifiers of several classes a clip


@pytest.fixture
def multi(explainer):
    classifier = dataclasses.replace(explainer.classifier, activation="sigmoid")
    return dataclasses.replace(explainer, classifier=classifier)


def shifted(explainer, logits):
    """The same explainer whose bias gives these logits for its sixth clip."""
    now = explainer(explainer.clips[5].path).logits
    head = explainer.classifier.head
    moved = dataclasses.replace(head, bias=head.bias + jnp.asarray(logits - now))
    params = jax.tree.map(lambda a: a, explainer.classifier.params)
    params.head.bias[...] = moved.bias
    classifier = dataclasses.replace(explainer.classifier, head=moved, params=params)
    return dataclasses.replace(explainer, classifier=classifier)


def test_each_class_that_is_found(multi):
    path = multi.clips[5].path
    some = shifted(multi, np.float32([0.5, -1.0, 2.0]))
    found = some.positives(path, num_channels=2, num_prototypes=1)
    assert [one.class_name for one in found] == ["high", "low"]
    for one in found:
        assert one.activation == "sigmoid"
        np.testing.assert_allclose(
            one.probabilities, 1 / (1 + np.exp(-one.logits)), rtol=1e-6
        )
        wanted = some(path, target=one.target, num_channels=2, num_prototypes=1)
        assert_same(one, wanted)
    assert found[0].found == (2, 0)
    looked = some.positives(some.look(path), num_channels=2, num_prototypes=1)
    for one, other in zip(found, looked, strict=True):
        assert_same(one, other)
    none = shifted(multi, np.float32([-0.5, -1.0, -2.0]))
    assert [one.class_name for one in none.positives(path)] == ["low"]
    assert none(path).found == ()


def test_one_class_a_clip_is_the_likeliest(explainer):
    some = shifted(explainer, np.float32([0.5, -1.0, 2.0]))
    found = some.positives(some.clips[5].path, num_channels=1, num_prototypes=1)
    assert [one.class_name for one in found] == ["high"]
    assert found[0].probabilities.sum() == pytest.approx(1)


# --- long recordings


@pytest.mark.parametrize(
    ("seconds", "hop_s", "offsets"),
    [
        (0.3, None, [0.0]),
        (1.0, None, [0.0, 0.5]),
        (1.2, None, [0.0, 0.5, 0.7]),  # the last one ends with the recording
        (1.25, None, [0.0, 0.5, 0.75]),
        (1.0, 0.25, [0.0, 0.25, 0.5]),
        (1.1, 0.4, [0.0, 0.4, 0.6]),
    ],
)
def test_windows_of_a_recording(seconds, hop_s, offsets, explainer, tmp_path, rng):
    path, rate = tmp_path / "long.wav", FRONT_END.sample_rate
    soundfile.write(path, 0.1 * rng.normal(size=round(seconds * rate)), rate)
    options = {"num_channels": 1, "num_prototypes": 1}
    found = list(explainer.windows(path, hop_s=hop_s, **options))
    assert [one.offset_s for one in found] == pytest.approx(offsets)
    assert explainer.offsets(path, hop_s=hop_s) == pytest.approx(offsets)
    for one in found:
        alone = explainer(path, offset_s=one.offset_s, **options)
        assert_same(one, alone)
        left = seconds - one.offset_s
        assert one.sound_s == pytest.approx(min(left, FRONT_END.clip_s))


def test_windows_of_several_classes(multi):
    some = shifted(multi, np.float32([0.5, -1.0, 2.0]))
    path = some.clips[5].path
    options = {"num_channels": 1, "num_prototypes": 1}
    every = list(some.windows(path, positives=True, **options))
    assert [one.class_name for one in every] == ["high", "low"]
    one = list(some.windows(path, target="middle", **options))
    assert [o.class_name for o in one] == ["middle"]
    with pytest.raises(ValueError, match="hop_s must be positive"):
        list(some.windows(path, hop_s=0.0))


@pytest.mark.parametrize("offset_s", [-0.1, 0.5])
def test_offset_outside_the_sound(offset_s, explainer):
    with pytest.raises(ValueError, match="offset_s must lie within"):
        explainer(np.zeros(4000, np.float32), sample_rate=8000, offset_s=offset_s)
    with pytest.raises(audio.AudioError, match="lies outside the file"):
        explainer(explainer.clips[0].path, offset_s=offset_s)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"num_channels": 0}, "num_channels must be between 1 and 12; got 0"),
        ({"num_channels": 13}, "num_channels must be between 1 and 12; got 13"),
        ({"num_prototypes": 0}, "num_prototypes must be between 1 and 4; got 0"),
        ({"num_prototypes": 5}, "num_prototypes must be between 1 and 4; got 5"),
        ({"num_negatives": -1}, "num_negatives must be between 0 and 4; got -1"),
        ({"num_negatives": 5}, "num_negatives must be between 0 and 4; got 5"),
    ],
)
def test_numbers_out_of_range(options, message, explainer):
    with pytest.raises(ValueError, match=message):
        explainer(explainer.clips[0].path, **options)


def test_asked_for_nothing_it_shows_what_there_is(explainer):
    """A bank has fewer than five prototypes where a run asks for fewer."""
    found = explainer(explainer.clips[0].path)
    assert len(found.channels) == 4
    assert {len(channel.prototypes) for channel in found.channels} == {NUM_PROTOTYPES}


def test_all_channels_carry_all_the_evidence(explainer):
    path = explainer.clips[0].path
    found = explainer(path, num_channels=CHAN, num_prototypes=1)
    assert found.evidence_share == pytest.approx(1)
    assert sorted(c.index for c in found.channels) == list(range(CHAN))
    shares = [c.contribution for c in found.channels]
    assert shares == sorted(shares, reverse=True)


def test_no_evidence_at_all(explainer):
    """Where every weight is negative no channel speaks for the class."""
    head = explainer.classifier.head
    weight = -jnp.abs(head.weight) @ explainer.transform.matrix  # What = -|W|
    classifier = dataclasses.replace(
        explainer.classifier, head=dataclasses.replace(head, weight=weight)
    )
    seen = explainer.look(explainer.clips[0].path)
    pooled = jnp.asarray(seen.views.rows.mean(axis=0))
    seen = dataclasses.replace(seen, logits=np.asarray(classifier.head(pooled)))
    silent = dataclasses.replace(explainer, classifier=classifier)
    found = silent.explain(seen, target=0, evidence="plain")
    assert found.evidence_share == 0
    assert all(c.contribution <= 0 for c in found.channels)


def test_negative_prototypes(explainer, seen):
    """On request, and beside the positive ones."""
    _, clips, shown = seen
    maps = [transformed(explainer, feature_map) for _, feature_map, _ in shown]
    found = explainer(clips[5].path, num_negatives=3)
    assert_same(
        [dataclasses.replace(c, negatives=()) for c in found.channels],
        list(explainer(clips[5].path).channels),
    )
    for channel in found.channels:
        assert len(channel.prototypes) == NUM_PROTOTYPES
        sums = np.array([m[:, :, channel.index].sum() for m in maps])
        worst = np.argsort(sums)[:3]
        assert [p.clip for p in channel.negatives] == [clips[n] for n in worst]
        np.testing.assert_allclose(
            [p.activation for p in channel.negatives], sums[worst], atol=2e-3
        )


@pytest.mark.parametrize("chunk_size", [3, 16])
def test_chunks_change_nothing(chunk_size, explainer):
    path = explainer.clips[5].path
    other = dataclasses.replace(explainer, chunk_size=chunk_size)
    assert_same(explainer(path), other(path))


# --- saving


def test_a_run_can_be_moved(explainers, run, tmp_path):
    explainer = explainers["square"]
    clip = explainer.clips[5]
    expected = explainer(clip.path, num_negatives=2)
    moved = tmp_path / "elsewhere" / "second"
    shutil.copytree(run, moved)
    explain.save(moved, dataclasses.replace(explainer, clips=within(moved, explainer)))
    final = tmp_path / "third"
    moved.rename(final)
    loaded = explain.load(final)
    assert loaded.front_end == FRONT_END
    assert loaded.scheme == "square"
    assert loaded.map_shape == (F, T)
    for one in loaded.clips:
        assert one.path.is_relative_to(final)
    found = loaded(final / "wavs" / clip.path.name, num_negatives=2)
    assert_same(dataclasses.replace(found, source=expected.source), expected)
    # And again from what was loaded, in place.
    explain.save(final, loaded, overwrite=True)
    again = explain.load(final)
    assert again.clips == loaded.clips
    for sign in ("positive", "negative"):
        one, other = getattr(loaded, sign), getattr(again, sign)
        chex.assert_trees_all_equal(one, other)


def within(folder, explainer):
    return [
        dataclasses.replace(clip, path=folder / "wavs" / clip.path.name)
        for clip in explainer.clips
    ]


def test_clips_elsewhere_keep_their_paths_and_others_are_left_out(
    explainers, seen, tmp_path
):
    """Only clips that a bank points to are listed, and counted from 0 again."""
    _, clips, _ = seen
    few = {
        sign: dataclasses.replace(
            getattr(explainers["time"], sign),
            clip=jnp.full((CHAN, NUM_PROTOTYPES), {"positive": 7, "negative": 2}[sign]),
        )
        for sign in ("positive", "negative")
    }
    explain.save(tmp_path / "run", dataclasses.replace(explainers["time"], **few))
    loaded = explain.load(tmp_path / "run")
    assert loaded.clips == (clips[2], clips[7])
    assert np.unique(loaded.positive.clip).tolist() == [1]
    assert np.unique(loaded.negative.clip).tolist() == [0]


def test_training_clips_that_have_moved(explainers, run, tmp_path):
    """Found again by the ends of their paths, wherever the folder lies now."""
    explainer = explainers["time"]
    old, new = tmp_path / "old" / "sounds", tmp_path / "new" / "place"
    shutil.copytree(run / "wavs", old)
    clips = [
        dataclasses.replace(clip, path=old / clip.path.name) for clip in explainer.clips
    ]
    explain.save(tmp_path / "run", dataclasses.replace(explainer, clips=clips))
    query = run / "wavs" / clips[0].path.name
    before = explain.load(tmp_path / "run")(query)
    new.parent.mkdir()
    old.rename(new)
    with pytest.raises(audio.AudioError, match=r"missing.*data=FOLDER"):
        explain.load(tmp_path / "run")(query)
    for folder in (new, run / "wavs"):
        after = explain.load(tmp_path / "run", data=folder)
        assert {clip.path.parent for clip in after.clips} == {folder}
        assert_same(before, after(query))


def test_parts_that_do_not_fit(explainers):
    explainer = explainers["time"]
    for changes, message in (
        ({"chunk_size": 0}, "chunk_size must be at least 1; got 0"),
        ({"clips": explainer.clips[:2]}, "every clip that a bank points to"),
        (
            {"negative": explainers["square"].negative},
            "of one scheme; got time, square",
        ),
    ):
        with pytest.raises(ValueError, match=message):
            dataclasses.replace(explainer, **changes)


def test_saving_over_a_run_takes_leave(explainer, tmp_path):
    explain.save(tmp_path, explainer)
    with pytest.raises(ValueError, match="overwrite=True"):
        explain.save(tmp_path, explainer)


def test_only_convnexts_are_saved(explainer, tmp_path):
    bare = dataclasses.replace(explainer.classifier, params={"w": jnp.ones(3)})
    with pytest.raises(ValueError, match="type dict"):
        explain.save(tmp_path, dataclasses.replace(explainer, classifier=bare))


def test_loading_what_is_no_run(explainer, tmp_path):
    with pytest.raises(FileNotFoundError, match="absent"):
        explain.load(tmp_path / "absent")
    checkpoint.save_classifier(
        tmp_path / "half" / "classifier",
        explainer.classifier.params,
        class_names=test_cache.NAMES,
        front_end=FRONT_END.to_dict(),
    )
    with pytest.raises(FileNotFoundError, match=r"half.apex"):
        explain.load(tmp_path / "half")
    (tmp_path / "junk" / "apex").mkdir(parents=True)
    with pytest.raises(ValueError, match="no apex_jax checkpoint"):
        explain.load(tmp_path / "junk")


def a_lie(name):
    """What a whole checkpoint, digests and all, can hold that `save` never wrote."""

    def tell(arrays, made):
        chan = len(arrays["centre"])
        match name:
            case "nan":
                arrays["matrix"][0, 0] = np.nan
            case "inverse":
                arrays["inverse"] = 5 * np.eye(chan, dtype=np.float32)
            case "singular":
                scale = np.logspace(0, -12, chan, dtype=np.float32)
                arrays["matrix"] = np.diag(scale) @ arrays["matrix"]
            case "shape":
                arrays["centre"] = arrays["centre"][:-1]
            case "bank":
                arrays["positive"]["clip"] -= 100
            case "location":
                arrays["negative"]["location"] = arrays["negative"]["location"][..., :1]
            case "channels":
                arrays["negative"] = jax.tree.map(lambda a: a[:-1], arrays["negative"])
            case "no matrix":
                del arrays["matrix"]
            case "no location":
                del arrays["positive"]["location"]
            case "scheme" | "clips" | "weights":
                del made[name]
            case "odd clip":
                made["clips"][0] = {"path": "a.wav"}
            case "odd provenance":
                made["provenance"] = {"audit": {"passed": True}}

    return tell


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("nan", "holds NaN or infinity"),
        ("inverse", "do not undo one another"),
        ("singular", "do not undo one another.*ill-conditioned"),
        ("shape", "centre of U must be"),
        ("bank", "positions of clips, from 0"),
        ("location", "location of a bank must be"),
        ("channels", "clip of a bank must be of each prototype"),
        ("no matrix", "does not describe an explainer.*matrix"),
        ("no location", "does not describe an explainer.*location"),
        ("scheme", "does not describe an explainer.*scheme"),
        ("clips", "does not describe an explainer.*clips"),
        ("weights", "does not describe an explainer.*weights"),
        ("odd clip", "does not describe an explainer.*label"),
        ("odd provenance", "does not describe an explainer.*argument"),
    ],
)
def test_a_whole_checkpoint_that_lies(name, message, explainer, tmp_path):
    explain.save(tmp_path, explainer)
    arrays, made = checkpoint.load(tmp_path / "apex", kind="explainer")
    arrays = jax.tree.map(np.array, arrays)
    a_lie(name)(arrays, made)
    checkpoint.save(tmp_path / "apex", arrays, made, kind="explainer", overwrite=True)
    with pytest.raises(ValueError, match=message):
        explain.load(tmp_path)


def test_a_prototype_whose_file_has_gone(explainer, tmp_path):
    clips = [
        dataclasses.replace(c, path=tmp_path / c.path.name) for c in explainer.clips
    ]
    with pytest.raises(audio.AudioError, match="missing; expected a sound file"):
        dataclasses.replace(explainer, clips=clips)(explainer.clips[0].path)


def test_an_explainer_that_knows_no_shape(explainer):
    with pytest.raises(ValueError, match="no front end"):
        _ = dataclasses.replace(explainer, front_end=None).map_shape
