"""docs/truth.md has the tables of the scores that are kept beside it."""

import importlib.util
import pathlib
import shutil

import pytest

DOCS = pathlib.Path(__file__).parents[1] / "docs"


@pytest.mark.slow
def test_the_page_has_the_tables_of_the_scores(tmp_path, monkeypatch):
    """So that nobody changes a figure by hand, or scores without the page."""
    spec = importlib.util.spec_from_file_location("make_truth", DOCS / "make_truth.py")
    make_truth = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(make_truth)
    shutil.copytree(DOCS / "truth" / "scores", tmp_path / "truth" / "scores")
    page = shutil.copy(DOCS / "truth.md", tmp_path)
    monkeypatch.setattr(make_truth, "PAGE", page := pathlib.Path(page))
    monkeypatch.setattr(make_truth, "FOLDER", tmp_path / "truth")
    make_truth.main()
    assert page.read_text() == (DOCS / "truth.md").read_text()
    made = (tmp_path / "truth" / "tables.md").read_text()
    assert made == (DOCS / "truth" / "tables.md").read_text()
