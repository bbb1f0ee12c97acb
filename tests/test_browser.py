"""The page in a real browser, opened from disk, without a network."""

import dataclasses
import os
import pathlib

import pytest
import test_report

from apex_jax import report

sync_api = pytest.importorskip("playwright.sync_api")

CHROMIUM = os.environ.get("CHROMIUM", "/usr/bin/chromium")
QUIET = (
    "--no-sandbox --disable-gpu --disable-quic --no-first-run "
    "--disable-background-networking --disable-component-update --disable-sync "
    "--mute-audio"
)
HOSTILE = "<img src=x onerror=alert(1)>.wav"

pytestmark = pytest.mark.skipif(
    not pathlib.Path(CHROMIUM).exists(), reason=f"there is no Chromium at {CHROMIUM}"
)


@pytest.fixture(scope="module")
def browser():
    with sync_api.sync_playwright() as playwright:
        chromium = playwright.chromium.launch(
            executable_path=CHROMIUM, args=QUIET.split()
        )
        yield chromium
        chromium.close()


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """One clip explained in many ways; windows; hostile names; several classes."""
    folder = tmp_path_factory.mktemp("pages")
    square = test_report.explained(folder, "square", name="a <clip>.wav")
    cross = test_report.explained(folder, "time_frequency", name="a <clip>.wav")
    channel = dataclasses.replace(square.channels[0], index=None, prototypes=())
    cam = dataclasses.replace(square, method="grad-cam", channels=(channel,))
    other = dataclasses.replace(square, target=0)
    report.write(folder / "ways.html", [square, cross, cam, other])
    windows = [
        dataclasses.replace(square, offset_s=offset_s) for offset_s in (0.0, 0.5, 1.0)
    ]
    report.write(folder / "windows.html", windows)
    # The recording of two seconds ends within the last window, before its regions.
    several = [
        dataclasses.replace(one, offset_s=offset_s, sound_s=sound_s)
        for offset_s, sound_s in ((0.0, 1.0), (0.9, 1.0), (1.8, 0.2))
        for one in test_report.multi_label(square, [1.0, 2.5, -0.3], [1, 0])
    ]
    report.write(folder / "several.html", several)
    clip = dataclasses.replace(channel, index=0)
    prototype = square.channels[0].prototypes[0]
    named = dataclasses.replace(
        prototype,
        class_name=HOSTILE,
        clip=dataclasses.replace(prototype.clip, path=HOSTILE),
    )
    hostile = dataclasses.replace(
        square,
        source=HOSTILE,
        class_names=(HOSTILE, f"</script>{HOSTILE}", "crow"),
        channels=(dataclasses.replace(clip, prototypes=(named,)),),
    )
    report.write(folder / "hostile.html", hostile)
    return folder


class Watched:
    """A page and whatever went wrong or out while it was open."""

    def __init__(self, browser, path, **context):
        self.context = browser.new_context(offline=True, **context)
        self.page = self.context.new_page()
        self.troubles, self.requests = [], []
        self.page.on("console", lambda message: self.troubles.append(message.text))
        self.page.on("pageerror", lambda error: self.troubles.append(str(error)))
        self.page.on("dialog", self._dismiss)
        self.page.on("request", lambda request: self.requests.append(request.url))
        self.page.goto(path.as_uri())

    def _dismiss(self, dialog):
        self.troubles.append(f"dialog: {dialog.message}")
        dialog.dismiss()

    def check(self):
        assert not self.troubles
        assert all(url.startswith(("file:", "data:")) for url in self.requests)
        assert sum(url.startswith("file:") for url in self.requests) == 1


@pytest.fixture
def open_page(browser, folder):
    opened = []

    def open_page(name, **context):
        opened.append(Watched(browser, folder / f"{name}.html", **context))
        return opened[-1].page

    yield open_page
    for watched in opened:
        watched.check()
        watched.context.close()


def button(page, word):
    return page.locator(f".view:visible button.play:has-text('{word}')").first


PLAYHEAD = "button => button.closest('figure').querySelector('.playhead')"
AUDIO = "document.querySelector('audio')"


def until(page, expression):
    """Waits until it is true; the page's policy forbids playwright's own way."""
    for _ in range(250):
        if page.evaluate(expression):
            return
        page.wait_for_timeout(20)
    raise AssertionError(f"never became true: {expression}")


def percent(page, at):
    """Where the playhead of a button's picture is."""
    value = at.evaluate(f"(b) => ({PLAYHEAD})(b).getAttribute('x1')")
    return float(value.removesuffix("%"))


@pytest.mark.parametrize("name", ["ways", "windows", "hostile", "several"])
def test_it_renders_from_disk_without_network_or_complaint(open_page, name):
    page = open_page(name)
    # What the policy blocked would be on the console: see `Watched.check`.
    sizes = page.eval_on_selector_all(
        ".plot:not([hidden] *)",
        "plots => plots.map(p => [p.clientWidth, p.clientHeight])",
    )
    assert sizes
    assert min(min(size) for size in sizes) > 80
    blank = page.eval_on_selector_all(
        "image", "images => images.filter(i => !i.getBBox().width).length"
    )
    assert blank == 0


def test_pictures_have_colours_and_a_green_region(open_page):
    page = open_page("ways")
    plot = page.locator(".channel .plot").first
    plot.scroll_into_view_if_needed()
    image = pixels_of(plot.screenshot())
    green = (image == (0x39, 0xFF, 0x14)).all(axis=2)
    assert green.sum() > 50
    # Half of the picture is spectrogram, not paper.
    box = image[image.shape[0] // 4 : image.shape[0] // 2, image.shape[1] // 2 :]
    assert len({tuple(p) for p in box.reshape(-1, 3).tolist()}) > 50


def pixels_of(content):
    import io

    import numpy as np
    from PIL import Image

    return np.asarray(Image.open(io.BytesIO(content)).convert("RGB"))


def test_a_player_plays_and_its_playhead_moves(open_page):
    page = open_page("ways")
    clip = button(page, "Clip")
    assert clip.get_attribute("aria-pressed") == "false"
    clip.click()
    until(page, f"{AUDIO}.currentTime > 0.1")
    assert clip.get_attribute("aria-pressed") == "true"
    first = percent(page, clip)
    until(page, f"{AUDIO}.currentTime > 0.3")
    assert percent(page, clip) > first
    clip.click()  # pauses
    until(page, f"{AUDIO}.paused")
    time_s = page.evaluate(f"{AUDIO}.currentTime")
    front_end = test_report.FRONT_END
    left, right = (front_end.frame_to_s(x) for x in (-0.5, front_end.num_frames - 0.5))
    wanted = 100 * (time_s - left) / (right - left)
    assert percent(page, clip) == pytest.approx(wanted, abs=6)
    assert clip.get_attribute("aria-pressed") == "false"


def test_a_region_starts_where_it_lies_and_stops_the_clip(open_page):
    page = open_page("ways")
    clip, region = button(page, "Clip"), button(page, "Region")
    clip.click()
    until(page, f"{AUDIO}.currentTime > 0")
    first = page.evaluate(f"{AUDIO}.src")
    region.click()
    until(page, f"{AUDIO}.currentTime > 0")
    assert page.evaluate(f"{AUDIO}.src") != first
    assert page.locator("audio").count() == 1
    assert clip.get_attribute("aria-pressed") == "false"
    assert page.locator("[aria-pressed=true]").count() <= 1
    start_s = float(region.get_attribute("data-start"))
    assert start_s > 0
    assert percent(page, region) >= 100 * start_s
    # Another picture's player takes the playhead along.
    other = button(page, "Clip").locator("xpath=following::button[3]")
    other.click()
    until(page, f"{AUDIO}.currentTime > 0")
    shown = page.locator(".playhead[visibility=visible]")
    assert shown.count() == 1
    same = other.evaluate(f"(b) => ({PLAYHEAD})(b).getAttribute('visibility')")
    assert same == "visible"


def test_pressing_on_a_picture_plays_from_there(open_page):
    page = open_page("ways")
    canvas = page.locator(".whole .canvas").first
    box = canvas.bounding_box()
    canvas.click(position={"x": 0.5 * box["width"], "y": 0.5 * box["height"]})
    until(page, f"{AUDIO}.currentTime > 0.4")
    assert page.evaluate(f"{AUDIO}.currentTime") < 1


def test_players_work_from_the_keyboard(open_page):
    page = open_page("windows")
    for _ in range(60):
        page.keyboard.press("Tab")
        if page.evaluate("document.activeElement.matches('button.play')"):
            break
    focused = page.locator("button.play:focus")
    assert focused.count() == 1
    outline = focused.evaluate("b => getComputedStyle(b).outlineStyle")
    assert outline == "solid"
    for key, paused in (("Enter", "false"), ("Space", "true"), ("Space", "false")):
        page.keyboard.press(key)
        until(page, f"{AUDIO}.paused === {paused}")
    until(page, f"{AUDIO}.currentTime > 0.05")


def shown(page):
    return page.eval_on_selector_all(
        ".view", "views => views.filter(v => !v.hidden).map(v => v.dataset.method)"
    )


def test_the_reader_chooses_scheme_method_and_class(open_page):
    page = open_page("ways")
    assert shown(page) == ["APEX, square"]
    page.get_by_role("radio", name="APEX, time-frequency").check(force=True)
    assert shown(page) == ["APEX, time-frequency"]
    button(page, "Clip").click()
    page.get_by_role("radio", name="Grad-CAM").check(force=True)
    assert shown(page) == ["Grad-CAM"]
    assert page.evaluate(f"{AUDIO}.paused")  # its player is gone
    page.get_by_role("radio", name="wren", exact=True).check(force=True)
    assert shown(page) == []
    assert page.locator(".absent").is_visible()
    page.get_by_role("radio", name="All, side by side").check(force=True)
    assert shown(page) == ["APEX, square"]
    page.get_by_role("radio", name="All", exact=True).check(force=True)
    assert len(shown(page)) == 4
    tops = page.eval_on_selector_all(
        ".view", "views => views.slice(0, 2).map(v => v.getBoundingClientRect().top)"
    )
    assert tops[0] == tops[1]


def test_heatmaps_are_switched_on_and_printed(open_page):
    page = open_page("ways")
    heat = page.locator(".view:visible .heat").first
    spectrum = page.locator(".view:visible .spectrum").first
    assert not heat.is_visible()
    page.get_by_role("radio", name="Over the spectrogram").check(force=True)
    assert heat.is_visible()
    assert spectrum.is_visible()
    page.get_by_role("radio", name="Alone").check(force=True)
    assert heat.is_visible()
    assert not spectrum.is_visible()
    page.get_by_role("radio", name="Off").check(force=True)
    page.emulate_media(media="print")
    assert heat.is_visible()
    assert spectrum.is_visible()
    assert not button(page, "Clip").is_visible()


def test_a_region_in_silence_has_words_but_its_clip_plays(open_page):
    page = open_page("several")
    figure = page.locator("#clip-2 .channel:visible .pair > figure").first
    assert figure.locator("button.play").all_inner_texts() == ["Clip"]
    words = figure.locator(".silent")
    assert words.inner_text() == "Region: in the silence appended to the clip"
    assert words.is_visible()
    figure.locator("button.play").click()
    until(page, f"{AUDIO}.currentTime > 0.05")
    assert page.locator("#clip-0 .silent:visible").count() == 0


def test_links_lead_to_the_windows(open_page):
    page = open_page("windows")
    page.locator(".overview a").nth(2).click()
    assert page.evaluate("document.activeElement.id") == "clip-2"
    top = page.evaluate("document.activeElement.getBoundingClientRect().top")
    assert 0 <= top < 300


def test_names_stay_text(open_page):
    page = open_page("hostile")
    assert page.locator("img").count() == 0
    assert page.locator("h1").inner_text() == HOSTILE
    assert page.locator(".file bdi", has_text="onerror").count() >= 1
    assert page.locator("[onerror], [onclick], [style]").count() == 0


@pytest.mark.parametrize("name", ["ways", "windows", "hostile", "several"])
def test_nothing_is_wider_than_the_window(open_page, name):
    page = open_page(name)
    if name == "ways":
        page.get_by_role("radio", name="All, side by side").check(force=True)
    page.locator("summary").click()
    for width in (360, 768, 1280):
        page.set_viewport_size({"width": width, "height": 800})
        assert page.evaluate("document.documentElement.scrollWidth") == width


def test_light_and_dark(open_page):
    """Text against paper is at least 4.5 to 1 (WCAG AA) in both."""
    papers = []
    page = open_page("ways")
    for scheme in ("light", "dark"):
        page.emulate_media(color_scheme=scheme)
        paper = colour(page, "body", "backgroundColor")
        papers.append(paper)
        for selector in (
            "h1",
            ".lead",
            "summary",
            ".file",
            "figcaption",
            "th",
            ".rest",
        ):
            text = colour(page, selector, "color")
            assert contrast(text, paper) >= 4.5, (scheme, selector)
    assert papers[0] != papers[1]


def colour(page, selector, what):
    value = page.locator(selector).first.evaluate(
        f"element => getComputedStyle(element).{what}"
    )
    return [int(part) for part in value.removeprefix("rgb(")[:-1].split(",")]


def contrast(one, other):
    def luminance(rgb):
        linear = [
            c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4
            for c in (part / 255 for part in rgb)
        ]
        return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]

    low, high = sorted([luminance(one), luminance(other)])
    return (high + 0.05) / (low + 0.05)


def test_less_motion_still_shows_where_it_plays(open_page):
    page = open_page("ways", reduced_motion="reduce")
    clip = button(page, "Clip")
    clip.click()
    until(page, f"{AUDIO}.currentTime > 0.5")
    assert percent(page, clip) > 10


def test_in_a_notebook(browser, folder):
    """The same in the sandboxed frame: it renders and plays."""
    square = test_report.explained(folder, "square")
    path = folder / "notebook.html"
    frame = report.notebook(square)
    path.write_text(f"<!DOCTYPE html><meta charset=utf-8>{frame}", "utf-8")
    watched = Watched(browser, path)
    inside = watched.page.frame_locator("iframe")
    inside.locator("button.play").first.click()
    inside.locator("[aria-pressed=true]").wait_for()
    plot = inside.locator(".plot.large")
    colours = {tuple(p) for p in pixels_of(plot.screenshot()).reshape(-1, 3).tolist()}
    assert len(colours) > 50
    assert not watched.troubles
    watched.context.close()
