"""What the page says: the order of clips, probabilities, contributions."""

import dataclasses

import numpy as np
import pytest
import test_report

from apex_jax.pages import embed, page


@pytest.fixture(scope="module")
def result(tmp_path_factory):
    return test_report.explained(tmp_path_factory.mktemp("sounds"), "square")


def clips_of(results):
    return page.clips(results, embed.Store(sounds=False))


def change(result, **changes):
    return dataclasses.replace(result, **changes)


def test_explanations_of_a_clip_stand_together_and_windows_in_order(result):
    other = change(result, source="other.wav")
    results = [
        change(result, offset_s=5.0),
        other,
        result,
        change(result, offset_s=5.0, scheme="time"),
        change(result, target=0),
        change(result, method="lime"),
    ]
    clips = clips_of(results)
    assert [(c.name, c.result.offset_s) for c in clips] == [
        (clips[0].name, 0.0),
        (clips[0].name, 5.0),
        ("other.wav", 0.0),
    ]
    assert [c.id for c in clips] == ["clip-0", "clip-1", "clip-2"]
    assert [v.method for v in clips[0].views] == [
        "APEX, square",
        "APEX, square",
        "LIME",
    ]
    assert [v.method for v in clips[1].views] == ["APEX, square", "APEX, time"]
    assert clips[0].targets == [(1, result.class_names[1]), (0, result.class_names[0])]


def test_arrays_are_the_same_clip_if_they_are_equal(result):
    rng = np.random.default_rng(0)
    samples = [rng.normal(size=50).astype(np.float32) for _ in range(2)]
    given = [
        change(result, source="waveform", waveform=w, sample_rate=8000)
        for w in (samples[0], samples[1], samples[0].copy())
    ]
    assert [len(c.views) for c in clips_of(given)] == [2, 1]
    louder = change(result, spectrogram=result.spectrogram + 1, source="spectrogram")
    given = [change(result, source="spectrogram"), louder]
    assert len(clips_of(given)) == 2
    bare = change(result, spectrogram=None, source="feature map")
    given = [bare, change(bare, logits=bare.logits + 1), bare]
    assert [len(c.views) for c in clips_of(given)] == [2, 1]


@pytest.mark.parametrize("activation", ["softmax", "sigmoid"])
def test_probabilities_of_the_likeliest_classes_and_of_those_explained(
    result, activation
):
    logits = np.linspace(-3, 3, 20)
    many = change(
        result,
        logits=logits,
        class_names=tuple(f"species {c}" for c in range(20)),
        predicted=19,
        target=2,
        activation=activation,
    )
    (clip,) = clips_of([many])
    names = [name for name, _, _ in clip.classes]
    wanted = range(19, 19 - page.MOST_CLASSES, -1)
    assert names == [*(f"species {c}" for c in wanted), "species 2"]
    assert [explained for *_, explained in clip.classes] == [False] * 8 + [True]
    powers = np.exp(logits)
    share = powers / powers.sum() if activation == "softmax" else powers / (1 + powers)
    np.testing.assert_allclose([p for _, p, _ in clip.classes[:8]], share[:-9:-1])
    assert clip.num_other == 20 - 9
    assert clip.most_other == pytest.approx(share[11])


@pytest.mark.parametrize(
    ("activation", "logits", "words", "classes"),
    [
        ("softmax", [-1.0, 2.5, 0.3], "Predicted", [1]),
        ("softmax", [-1.0, -2.5, -3.0], "Predicted", [0]),
        ("sigmoid", [-1.0, 0.3, 2.5], "Found", [2, 1]),
        ("sigmoid", [-1.0, -0.1, 2.5], "Found", [2]),
        ("sigmoid", [-1.0, -0.1, -2.5], "Nothing found; most likely", [1]),
    ],
)
def test_the_verdict_names_what_was_found(result, activation, logits, words, classes):
    given = change(
        result,
        logits=np.array(logits),
        activation=activation,
        predicted=int(np.argmax(logits)),
    )
    (clip,) = clips_of([given])
    powers = np.exp(logits)
    share = powers / powers.sum() if activation == "softmax" else powers / (1 + powers)
    names = [result.class_names[c] for c in classes]
    assert clip.verdict.words == words
    assert [name for name, _ in clip.verdict.classes] == names
    np.testing.assert_allclose([p for _, p in clip.verdict.classes], share[classes])
    assert str(clip.verdict) == f"{words}: {', '.join(names)}"


def test_bars_add_up_to_all_contributions(result):
    (clip,) = clips_of([result])
    (view,) = clip.views
    labels = [b.label for b in view.bars]
    assert labels[: len(result.channels)] == [
        f"Channel {c.index}" for c in result.channels
    ]
    contributions = np.asarray(result.contributions)
    for sign, word in ((1, "for"), (-1, "against")):
        total = sum(b.value for b in view.bars if b.value * sign > 0)
        assert total == pytest.approx(contributions[contributions * sign > 0].sum())
        assert labels[-2 if sign > 0 else -1].endswith(word)
    scale = 100 / (max(b.value for b in view.bars) - min(b.value for b in view.bars))
    for bar in view.bars:
        assert bar.length == pytest.approx(scale * abs(bar.value))
        edge = bar.start if bar.value > 0 else bar.start + bar.length
        assert edge == pytest.approx(view.zero)
        assert 0 <= bar.start <= bar.start + bar.length <= 100 + 1e-9
        assert float(bar.text.replace("−", "-")) == pytest.approx(bar.value, abs=0.006)


def test_bars_of_nothing(result):
    nothing = change(
        result,
        channels=tuple(
            dataclasses.replace(c, contribution=0.0) for c in result.channels
        ),
        contributions=np.zeros(len(result.contributions)),
    )
    (clip,) = clips_of([nothing])
    assert all(b.length == 0 and b.text == "+0" for b in clip.views[0].bars)


def test_another_method_has_no_bars(result):
    channel = dataclasses.replace(result.channels[0], index=None, prototypes=())
    (clip,) = clips_of([change(result, method="grad-cam", channels=(channel,))])
    assert clip.views[0].bars == ()
    assert clip.views[0].channels[0].name == "Grad-CAM"


def test_the_explained_clip_among_its_own_prototypes(result):
    examples = clips_of([result])[0].views[0].channels[0].prototypes
    assert [one.itself for one in examples] == [False, False]
    second = examples[1].prototype.clip  # half a second into its file
    for offset_s, wanted in ((0.5, [False, True]), (0.0, [False, False])):
        query = change(result, source=str(second.path), offset_s=offset_s)
        examples = clips_of([query])[0].views[0].channels[0].prototypes
        assert [one.itself for one in examples] == wanted


def test_windows_of_a_recording_share_their_colours(result):
    quieter = change(result, spectrogram=result.spectrogram / 2, offset_s=5.0)
    first, second = clips_of([result, quieter])
    assert first.figure.bar == second.figure.bar
    assert first.figure.image.base64 != second.figure.image.base64
    (alone,) = clips_of([quieter])
    assert alone.figure.bar != second.figure.bar


@pytest.mark.parametrize(
    ("offset_s", "span"), [(0.0, "0–1 s"), (2.5, "2.5–3.5 s"), (100.0, "100–101 s")]
)
def test_the_span_of_a_clip(result, offset_s, span):
    (clip,) = clips_of([change(result, offset_s=offset_s)])
    assert clip.span == span


@pytest.mark.parametrize(
    ("value", "form", "text"),
    [(-0.5123, "+.3g", "−0.512"), (2.0, ".1f", "2.0"), (3e-5, ".2g", "3e−05")],
)
def test_number(value, form, text):
    assert page.number(value, form) == text
