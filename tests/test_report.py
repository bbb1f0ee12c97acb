"""The page is one file that loads nothing, says what it should and escapes names."""

import base64
import dataclasses
import hashlib
import html as html_lib
import html.parser
import os
import pathlib
import re
import subprocess
import sys

import numpy as np
import pytest
import soundfile

from apex_jax import (
    data,
    disentangle,
    escape,
    explanation,
    frontend,
    report,
    schemes,
)

FRONT_END = frontend.FrontEnd(
    sample_rate=8000, clip_s=1.0, n_fft=512, hop_length=160, n_mels=24, mean=-40, std=20
)
GRID = schemes.Grid.of((3, 5), FRONT_END.shape, (8, 10))
AUDIT = disentangle.Audit(
    num_clips=33,
    max_abs_logit_error=2.5e-5,
    mean_abs_logit_error=1e-6,
    changed_predictions=0,
    condition_number=87.3,
    logit_spread=1.9,
    largest_logit=8.8,
    tolerance=1e-3,
)
PROVENANCE = explanation.Provenance(
    audit=AUDIT,
    purity=(0.21, 0.78),
    settings=(("epochs", "20"), ("note", "a < b")),
    versions=(("jax", "0.10.0"),),
)


def write_sound(path, seed=0):
    """Two seconds of 16 bits: a quiet noise with a tone that comes and goes."""
    rng = np.random.default_rng(seed)
    second = np.arange(16_000) / 8000
    tone = np.sin(2 * np.pi * 900 * second) * (np.sin(2 * np.pi * second) > 0)
    samples = 0.1 * tone + 0.01 * rng.normal(size=second.size)
    soundfile.write(path, samples, 8000, subtype="PCM_16")
    return path


def explained(folder, scheme, *, name="clip.wav", num_channels=2, num_prototypes=2):
    """A made-up explanation of sounds that are there."""
    rng = np.random.default_rng(0)

    def array():
        return rng.normal(0, 1, FRONT_END.shape).astype(np.float32)

    def heatmap():
        return rng.random(FRONT_END.shape).astype(np.float32)

    def areas():
        row, column = rng.integers(0, 3), rng.integers(0, 4)
        return explanation.areas(GRID, scheme, np.array([row, column]), FRONT_END)

    def prototype(n):
        return explanation.Prototype(
            clip=data.Clip(
                path=write_sound(folder / f"train {n}.wav", n + 1),
                label=n % 2,
                offset_s=0.5 * n,
            ),
            class_name=("wren", "robin")[n % 2],
            activation=12.5 - n,
            purity=0.71,
            location=(0, 0),
            areas=areas(),
            spectrogram=array(),
            heatmap=heatmap(),
        )

    contributions = rng.normal(0, 0.1, 7)
    channels = []
    for k in range(num_channels):
        contributions[3 * k] = 2.0 / (k + 1)
        channels.append(
            explanation.Channel(
                index=3 * k,
                contribution=float(contributions[3 * k]),
                location=(0, 0),
                areas=areas(),
                heatmap=heatmap(),
                prototypes=tuple(prototype(n) for n in range(num_prototypes)),
            )
        )
    return explanation.Explanation(
        source=str(write_sound(folder / name)),
        sound_s=1.0,
        class_names=("wren", "robin", "crow"),
        logits=np.array([-1.0, 2.5, 0.3]),
        predicted=1,
        target=1,
        scheme=scheme,
        front_end=FRONT_END,
        spectrogram=array(),
        channels=tuple(channels),
        contributions=contributions,
        evidence_share=0.87,
        provenance=PROVENANCE,
    )


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("sounds")


@pytest.fixture(scope="module")
def result(folder):
    return explained(folder, "square")


class Page(html.parser.HTMLParser):
    """Elements with their attributes, the text a person reads, and raw contents."""

    VOID = ("meta", "input", "link", "br", "img")

    def __init__(self, text):
        super().__init__()
        self.elements, self.open, self.words, self.raw = [], [], [], []
        self.feed(text)
        self.close()
        assert not self.open

    def handle_starttag(self, tag, attrs):
        names = [name for name, _ in attrs]
        assert len(names) == len(set(names))
        self.elements.append((tag, dict(attrs)))
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.elements.append((tag, dict(attrs)))

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, text):
        raw = self.open and self.open[-1] in ("script", "style")
        (self.raw if raw else self.words).append(text)

    @property
    def text(self):
        return " ".join("".join(self.words).split())

    def all(self, tag, **attributes):
        return [
            found
            for name, found in self.elements
            if name == tag and attributes.items() <= found.items()
        ]


@pytest.mark.parametrize(
    ("location", "said"),
    [
        ((0, 0), "0.10–0.20 s, 100–200 Hz, as the first one does."),
        ((1, 0), "0.10–0.20 s, 100–200 Hz, and the first one elsewhere"),
    ],
)
def test_the_page_says_whether_all_channels_agree(location, said, result):
    box = schemes.Box(rows=(1.0, 2.0), frames=(3.0, 4.0))
    area = explanation.Area(
        box=box, start_s=0.1, end_s=0.2, low_hz=100.0, high_hz=200.0
    )
    found = dataclasses.replace(result, class_location=location, class_areas=(area,))
    text = Page(report.html(found)).text
    assert f"All channels together point at {said}" in text


def test_the_page_says_what_was_found(result):
    page = Page(report.html(result))
    assert page.all("h1")
    for words in (
        "Predicted: robin , 87.6 %",
        "Why “ robin ”? APEX, square",
        "87 % of the positive evidence for robin",
        "Channel 3",
        "to the score of robin , which is 2.5",
        "counts as nothing here",
        "A region in silence",
        "Training clips where it is strongest",
        "activation 12.5, purity 0.71",
        "from 0.50 s",
        "On 33 clips, no prediction changed",
        "2.5e−05",
        "from 0.21 to 0.78",
        "a < b",
        "What it does not prove",
    ):
        assert re.sub(r"\s", "", words) in re.sub(r"\s", "", page.text), words
    assert "All channels together point" not in page.text
    # Every picture has words for who cannot see it.
    pictures = page.all("div", role="img")
    assert len(pictures) == 1 + 2 * (1 + 2)
    assert "0.20–" in str(pictures) or "Hz." in str(pictures)
    for found in pictures[1:]:
        assert re.search(r"Region: .* s, .* Hz\.$", found["aria-label"])


def test_the_page_loads_nothing_and_runs_nothing_else(result):
    text = report.html(result)
    page = Page(text)
    assert not re.search(r"""(href|src|srcset|url)\s*[=(]\s*["']?(https?:|//)""", text)
    for tag, attributes in page.elements:
        assert tag not in ("iframe", "object", "embed", "link", "base", "form")
        assert "style" not in attributes
        assert not [name for name in attributes if name.startswith("on")]
    (policy,) = (
        m["content"]
        for m in page.all("meta")
        if m.get("http-equiv") == "Content-Security-Policy"
    )
    assert policy.startswith("default-src 'none'; img-src data:; media-src data:")
    assert "unsafe" not in policy
    for tag, directive in (("style", "style-src"), ("script", "script-src")):
        (inline,) = re.findall(f"<{tag}>(.*?)</{tag}>", text, re.DOTALL)
        digest = base64.b64encode(hashlib.sha256(inline.encode()).digest()).decode()
        assert f"{directive} 'sha256-{digest}'" in policy


def test_references_lead_somewhere_and_names_are_unique(result, folder):
    later = dataclasses.replace(result, offset_s=1.0)
    page = Page(report.html([result, later, explained(folder, "time_frequency")]))
    ids = [found["id"] for _, found in page.elements if "id" in found]
    assert len(ids) == len(set(ids))
    references = [
        found["href"][1:]
        for _, found in page.elements
        if found.get("href", "").startswith("#")
    ]
    references += [found["data-sound"] for found in page.all("button")]
    references += [
        found["aria-labelledby"]
        for _, found in page.elements
        if "aria-labelledby" in found
    ]
    assert len(references) > 40
    assert set(references) <= set(ids)
    groups = {found["name"] for found in page.all("input", type="radio")}
    assert groups == {"method", "heat"}


HOSTILE = [
    "<img src=x onerror=alert(1)>.wav",
    "\"' onmouseover='alert(1)' \".wav",
    "</script><script>alert(1)</script>",
    "{{ 7 * 7 }}{% if %}",
    "two\nlines\tand \u202egnp.exe",
    "not utf-8 \udcff.wav",
    "]]><!-- -->&lt;b&gt;",
]


@pytest.mark.parametrize("name", HOSTILE)
def test_names_stay_text(result, name, tmp_path):
    clip = dataclasses.replace(result.channels[0].prototypes[0].clip, path=name)
    prototype = dataclasses.replace(
        result.channels[0].prototypes[0], clip=clip, class_name=name
    )
    channel = dataclasses.replace(result.channels[0], prototypes=(prototype,))
    hostile = dataclasses.replace(
        result,
        source=name,
        class_names=(name, name + "2", name + "3"),
        channels=(channel,),
        provenance=dataclasses.replace(PROVENANCE, settings=((name, name),)),
    )
    usual = Page(report.html(dataclasses.replace(result, channels=(channel,))))
    text = report.html([hostile, dataclasses.replace(hostile, offset_s=1.0)])
    page = Page(text)
    assert not page.all("img")
    assert {tag for tag, _ in page.elements} - {tag for tag, _ in usual.elements} <= {
        *("nav", "thead", "a", "figure")
    }
    for _, attributes in page.elements:
        assert not [a for a in attributes if a.startswith("on")]
    assert len(page.all("script")) == 1 + len(page.all("script", type="text/plain"))
    shown = escape.readable(name.rsplit("/", 1)[-1])
    assert " ".join(shown.split()) in page.text
    assert "49" not in page.text or "7 * 7" in page.text
    written = report.write(tmp_path / "page.html", hostile)
    assert written.read_text("utf-8") == report.html(hostile)


@pytest.mark.parametrize(
    "name", ["two\nlines.wav", "\u202egnp.exe", "not utf-8 \udcff.wav"]
)
@pytest.mark.parametrize("kind", [str, pathlib.Path])
def test_paths_are_readable_whatever_they_are_called(result, name, kind, tmp_path):
    prototype = result.channels[0].prototypes[0]
    clip = dataclasses.replace(prototype.clip, path=kind(f"folder/{name}"))
    channel = dataclasses.replace(
        result.channels[0],
        prototypes=(dataclasses.replace(prototype, clip=clip),),
    )
    given = dataclasses.replace(result, channels=(channel,))
    text = report.write(tmp_path / "page.html", given).read_text("utf-8")
    titles = [found["title"] for found in Page(text).all("bdi") if "title" in found]
    assert titles == [escape.readable(f"folder/{name}")]
    for character in "\u202e\udcff":
        assert character not in text


def multi_label(result, logits, targets):
    return [
        dataclasses.replace(
            result,
            activation="sigmoid",
            logits=np.array(logits),
            predicted=int(np.argmax(logits)),
            target=target,
        )
        for target in targets
    ]


def says(explanations, words):
    """Whether a page does, spaces aside: cells of a table have none between them."""
    text = Page(report.html(explanations, sounds=False)).text
    return re.sub(r"\s", "", words) in re.sub(r"\s", "", text)


def test_a_clip_of_several_classes_or_of_none(result):
    several = multi_label(result, [1.0, 2.5, -0.3], [1, 0])
    nothing = multi_label(result, [-1.0, -2.5, -0.8], [2])
    assert says(several, "Found: robin 92.4 %, wren 73.1 %")
    assert says(several, "Why “robin”?")
    assert says(nothing, "Nothing found; most likely: crow, 31.0 %")
    assert says(nothing, "What speaks for “crow”?")
    for given in (several, nothing):
        assert not says(given, "Predicted")


def test_the_table_of_clips_tells_what_was_found(result):
    several = multi_label(result, [1.0, 2.5, -0.3], [1, 0])
    (nothing,) = multi_label(result, [-1.0, -2.5, -0.8], [2])
    given = [*several, dataclasses.replace(nothing, offset_s=1.0)]
    for words in (
        "Clip Found Strongest evidence",
        "0–1 s robin 92.4 %, wren 73.1 % Channel 0, for robin:",
        "1–2 s Nothing found; most likely: crow, 31.0 % Channel 0, for crow:",
    ):
        assert says(given, words), words
    given = [result, dataclasses.replace(result, offset_s=1.0, target=0)]
    for words in (
        "Clip Predicted Strongest evidence",
        "0–1 s robin, 87.6 % Channel 0:",
        "1–2 s robin, 87.6 % Channel 0, for wren:",
    ):
        assert says(given, words), words


def test_silence_in_place_of_a_button(result, tmp_path):
    silent = tmp_path / "silent.wav"
    soundfile.write(silent, np.zeros(16_000), 8000)
    page = Page(report.html(dataclasses.replace(result, source=str(silent))))
    assert "Clip: silent throughout" in page.text
    assert page.text.count("Region: no sound here") == 2
    assert len(page.all("button", **{"class": "play"})) == 2 * 2 * 2


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        ("plain.wav", "plain.wav"),
        ("Пение птиц ñ 鳥 👩‍🔬.ogg", "Пение птиц ñ 鳥 👩‍🔬.ogg"),
        ("a\r\nb", "a\\r\\nb"),
        ("\x00\x1b[2J", "\\x00\\x1b[2J"),
        ("\u202etxt\u2066", "\\u202etxt\\u2066"),
        ("\u2028\udc80", "\\u2028\\udc80"),
    ],
)
def test_readable(text, wanted):
    assert escape.readable(text) == wanted
    assert escape.readable(wanted) == wanted
    escape.readable(text).encode("utf-8")


@pytest.mark.parametrize(
    ("probability", "text"),
    [
        (0.0, "0.0 %"),
        (1e-9, "< 0.1 %"),
        (0.0012, "0.1 %"),
        (0.5, "50.0 %"),
        (0.9991, "> 99.9 %"),
        (1.0, "100.0 %"),
    ],
)
def test_percent(probability, text):
    assert report.percent(probability) == text


def test_a_sound_that_is_gone_is_told_at_its_player(result):
    gone = dataclasses.replace(result, source="/somewhere/gone.wav")
    page = Page(report.html(gone))
    assert "Clip: no sound. gone.wav: missing" in page.text
    assert len(page.all("button", **{"class": "play"})) == 2 * 2 * 2


def test_without_sounds(result):
    page = Page(report.html(result, sounds=False))
    assert not page.all("button")
    assert not page.all("script", type="text/plain")
    assert "no sound" not in page.text


def test_a_sound_and_an_image_are_embedded_once(result):
    once = Page(report.html(result))
    twice = Page(report.html([result, dataclasses.replace(result, target=0)]))
    for tag, attributes in (("script", {"type": "text/plain"}), ("image", {})):
        assert len(once.all(tag, **attributes)) == len(twice.all(tag, **attributes))
    assert len(twice.all("button")) > len(once.all("button"))


def test_feature_maps_computed_elsewhere(result):
    """No front end, then no spectrogram either: frames, rows and the heatmap."""
    bare_areas = tuple(explanation.Area(box=a.box) for a in result.channels[0].areas)
    prototype = dataclasses.replace(
        result.channels[0].prototypes[0], areas=bare_areas, spectrogram=None
    )
    channel = dataclasses.replace(
        result.channels[0], areas=bare_areas, prototypes=(prototype,)
    )
    unknown = dataclasses.replace(
        result, source="feature map", sound_s=None, front_end=None, channels=(channel,)
    )
    for given in (unknown, dataclasses.replace(unknown, spectrogram=None)):
        page = Page(report.html(given))
        assert "frames" in page.text
        assert "rows" in page.text
        assert "dB" not in page.text.replace("80 dB", "").replace("+12 dB", "")
        assert not page.all("button")
        assert all("data-left" not in p for p in page.all("div", role="img"))


def test_other_methods_negatives_and_a_failed_audit(result):
    channel = dataclasses.replace(result.channels[0], index=None, prototypes=())
    lime = dataclasses.replace(result, method="lime", channels=(channel,))
    nowhere = dataclasses.replace(channel, areas=(), heatmap=0 * channel.heatmap)
    cam = dataclasses.replace(result, method="grad-cam", channels=(nowhere,))
    channel = dataclasses.replace(
        result.channels[0], negatives=result.channels[0].prototypes[:1]
    )
    failed = dataclasses.replace(
        result,
        channels=(channel,),
        provenance=explanation.Provenance(
            audit=dataclasses.replace(AUDIT, changed_predictions=2)
        ),
    )
    page = Page(report.html([failed, cam, lime]))
    methods = [found["value"] for found in page.all("input", name="method")]
    assert methods == ["APEX, square", "Grad-CAM", "LIME", "*"]
    assert "Training clips where it is weakest" in page.text
    assert "The audit failed" in page.text
    assert "No region: the heatmap is zero everywhere" in page.text


def test_contrastive_evidence_by_occlusion_is_said_to_be_so(result):
    """In the caption, at each region, and in the guide; beside the paper's, both."""
    first, *others = result.channels
    silent = dataclasses.replace(first, areas=())
    found = dataclasses.replace(
        result,
        evidence="contrastive",
        locate="occlusion",
        channels=(silent, *others) if others else (first, silent),
    )
    assert found.score == pytest.approx(2.5 - (-1.0 + 0.3) / 2)
    page = Page(report.html(found))
    for words in (
        "adds to the lead of robin over the other classes, which is 2.85",
        "87 % of the positive evidence for robin against the other classes. Regions "
        "are those that add most to their channel.",
        "its score less the mean of the other classes'",
        "the part of the sound that adds most to the channel",
        "Hangs on",
        "No region: no part of the sound adds to this channel",
        "Of what goes on all the time one moment is as good as another",
    ):
        assert words in page.text, words
    for words in ("Strongest at", "before it becomes", "to the score of robin"):
        assert words not in page.text
    both = Page(report.html([result, dataclasses.replace(found, scheme="time")]))
    for words in (
        "A region in silence",
        "Of what goes on all the time one moment is as good as another",
        ", or where that is said the part",
    ):
        assert words in both.text, words


@pytest.mark.parametrize("ties", [0, 2])
def test_ties_are_told(ties, result):
    audit = dataclasses.replace(AUDIT, near_ties=ties)
    made = explanation.Provenance(audit=audit)
    page = Page(report.html(dataclasses.replace(result, provenance=made)))
    told = f"On {ties} of them the classifier's own decision is a tie"
    assert (told in page.text) == bool(ties)


def test_nothing_is_shown_of_what_is_not_known(result):
    page = Page(
        report.html(dataclasses.replace(result, provenance=explanation.Provenance()))
    )
    assert "How far to trust it" not in page.text


def test_titles(result):
    for given, wanted in (
        ({}, "clip.wav"),
        ({"title": "Case 12 <b>"}, "Case 12 &lt;b&gt;"),
    ):
        assert f"<title>{wanted}</title>" in report.html(result, **given)
    other = dataclasses.replace(result, source="other.wav")
    assert "<title>2 explained clips</title>" in report.html([result, other])


def test_write_replaces_whole_files(result, tmp_path, monkeypatch):
    path = tmp_path / "report.html"
    assert report.write(path, result, title="first") == path
    first = path.read_text("utf-8")
    assert first == report.html(result, title="first")

    def full(*_):
        raise OSError("no space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="no space"):
        report.write(path, result, title="second")
    assert path.read_text("utf-8") == first


def test_nothing_to_report():
    with pytest.raises(ValueError, match="explanations must hold at least one"):
        report.html([])


def test_in_a_notebook_the_page_is_a_frame_of_its_own(result):
    frame = report.notebook(result)
    ((tag, attributes),) = Page(frame).elements
    assert tag == "iframe"
    assert attributes["sandbox"] == "allow-scripts"
    assert attributes["srcdoc"] == report.html(result)
    assert html_lib.escape("<h1>") in frame


def test_importing_stays_cheap():
    code = (
        "import sys, apex_jax.report\n"
        "print([m for m in ('jinja2', 'matplotlib', 'PIL') if m in sys.modules])"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == "[]"
