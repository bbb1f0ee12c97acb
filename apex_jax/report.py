"""Explanations as one HTML page to look at and listen to, which needs nothing else.

In come `Explanation`s: of one clip or many, of one class or several, of one scheme or
method or several of the same classifier. Out goes a file that a browser opens from
disk, without a network. `pages/page` computes what it says, a template lays it
out, and its script does no more than play, switch and move the playhead.
"""

from __future__ import annotations

import base64
import hashlib
import html as html_lib
import importlib.resources
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from apex_jax import atomic, escape, explanation, schemes
from apex_jax.pages import embed, overview, page, picture

# jinja2 is imported where it is used: `--help` must not pay for it.


def html(
    explanations: explanation.Explanation | Sequence[explanation.Explanation],
    *,
    title: str | None = None,
    sounds: bool = True,
) -> str:
    """The page as text.

    Explanations of the same clip stand together, windows of one recording in the
    order of time. Where there are several methods or schemes, the reader chooses among
    them or sets them side by side.

    Args:
      explanations: one or several, of one classifier.
      title: of the page; None for one made of the clips' names.
      sounds: embed the sounds, which are most of the page's size.

    Raises:
      ValueError: there is no explanation.
    """
    return "".join(_pieces(explanations, title=title, sounds=sounds))


def _pieces(
    explanations: explanation.Explanation | Sequence[explanation.Explanation],
    *,
    title: str | None,
    sounds: bool,
) -> Iterator[str]:
    """The page from top to bottom, each sound and image a piece of its own."""
    if isinstance(explanations, explanation.Explanation):
        explanations = [explanations]
    if not explanations:
        raise ValueError("report: explanations must hold at least one; got none")
    store = embed.Store(sounds=sounds)
    clips = page.clips(explanations, store)
    return _render(
        title=_title(clips) if title is None else title,
        clips=clips,
        overviews=overview.overviews(clips),
        methods=list(
            dict.fromkeys((v.method, v.method) for c in clips for v in c.views)
        ),
        provenance=_by_provenance(clips),
        locates={e.locate for e in explanations if e.method == "apex"} or {"map"},
        evidences={e.evidence for e in explanations},
        schemes=[
            s for s in schemes.SCHEMES if any(e.scheme == s for e in explanations)
        ],
        colour_bar=base64.b64encode(picture.colour_bar()).decode("ascii"),
        store=store,
        sounds=sounds,
    )


def write(
    path: str | Path,
    explanations: explanation.Explanation | Sequence[explanation.Explanation],
    *,
    title: str | None = None,
    sounds: bool = True,
) -> Path:
    """Writes the page, which appears whole or not at all. See `html`."""
    path = Path(path)
    # Never the whole page at once: with its sounds it can take hundreds of megabytes.
    pieces = _pieces(explanations, title=title, sounds=sounds)
    atomic.write(path, lambda file: file.writelines(p.encode() for p in pieces))
    return path


def notebook(result: explanation.Explanation, *, sounds: bool = True) -> str:
    """The page in a frame of its own, for the output of a notebook's cell."""
    content = html_lib.escape(html(result, sounds=sounds))
    # The sandbox keeps the page's script away from the notebook.
    return (
        f'<iframe title="explanation" sandbox="allow-scripts" srcdoc="{content}" '
        'width="100%" height="760" style="border: 1px solid #8884"></iframe>'
    )


def percent(probability: float) -> str:
    """A probability; what is not quite 0 or 1 does not read as if it were.

    >>> percent(0.9997), percent(0.0001), percent(0.971)
    ('> 99.9 %', '< 0.1 %', '97.1 %')
    """
    if 0 < probability < 0.001:
        return "< 0.1 %"
    if 0.999 < probability < 1:
        return "> 99.9 %"
    return f"{100 * probability:.1f} %"


def _title(clips: Sequence[page.Clip]) -> str:
    names = list(dict.fromkeys(clip.name for clip in clips))
    if len(names) == 1:
        return names[0]
    return f"{len(clips)} explained clips"


def _by_provenance(
    clips: Sequence[page.Clip],
) -> list[tuple[explanation.Provenance, list[str]]]:
    """Every provenance and the methods it stands behind."""
    found: dict[explanation.Provenance, list[str]] = {}
    for clip in clips:
        for view in clip.views:
            methods = found.setdefault(view.result.provenance, [])
            if view.method not in methods:
                methods.append(view.method)
    nothing = explanation.Provenance()
    return [(known, methods) for known, methods in found.items() if known != nothing]


def _render(**content: Any) -> Iterator[str]:
    import jinja2
    import markupsafe

    def finalize(value: Any) -> Any:
        # Every value passes through here, paths and numbers too, so that none can be
        # forgotten.
        return (
            value
            if isinstance(value, markupsafe.Markup)
            else escape.readable(str(value))
        )

    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("apex_jax.pages"),
        autoescape=True,
        finalize=finalize,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {"percent": percent, "number": page.number}
    templates = importlib.resources.files("apex_jax.pages") / "templates"
    style, script = (
        (templates / name).read_text("utf-8") for name in ("report.css", "report.js")
    )
    return environment.get_template("report.html").generate(
        style=markupsafe.Markup(style),
        script=markupsafe.Markup(script),
        style_hash=_csp_hash(style),
        script_hash=_csp_hash(script),
        **content,
    )


def _csp_hash(text: str) -> str:
    """The source expression that allows exactly this inline text."""
    digest = hashlib.sha256(text.encode("utf-8")).digest()
    return f"sha256-{base64.b64encode(digest).decode('ascii')}"
