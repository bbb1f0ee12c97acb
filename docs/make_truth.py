"""Tables and curves of docs/truth.md, from the scores of every seed beside it.

    python docs/make_truth.py

Writes docs/truth/tables.md, the tables of all events at a glance into docs/truth.md
between their marks, and of each event the curves and the consistency of channels.
Pictures of regions need the sounds: they are what the runs left (`regions.png`).
"""

from __future__ import annotations

import pathlib
import shutil
import tempfile

from experiments.localisation import glance, merge

HERE = pathlib.Path(__file__).parent
PAGE, FOLDER = HERE / "truth.md", HERE / "truth"
# Of the page, what lies between two marks, and which questions are answered there.
MARKS = {
    "pointing": ("without channels", "channels", "agreeing", "shares"),
    "else": ("curves", "hidden", "stays"),
}
HEAD = """# Do the explanations point at the truth? Every table

What the rows are, how to read them and what they do not show is in
[truth.md](../truth.md). Made of [these scores](scores) by `python docs/make_truth.py`.

"""


def main():
    """Writes everything."""
    scores = sorted((FOLDER / "scores").glob("*.json.gz"))
    with tempfile.TemporaryDirectory() as folder:
        output = pathlib.Path(folder)
        results = merge.main(merge.Config(scores=tuple(scores), output=output))
        tables = (output / "localisation.md").read_text(encoding="utf-8")
        for event in results["events"]:
            for file in (output / event).iterdir():
                (FOLDER / event).mkdir(exist_ok=True)
                shutil.copy(file, FOLDER / event)
    (FOLDER / "tables.md").write_text(HEAD + tables, encoding="utf-8")
    page, parts = PAGE.read_text(encoding="utf-8"), glance.markdown(results["events"])
    for name, questions in MARKS.items():
        start, end = f"<!-- tables: {name} -->\n", f"<!-- {name} ends -->\n"
        before, after = page.split(start)
        _, after = after.split(end)
        body = "\n\n".join(parts[question] for question in questions)
        page = f"{before}{start}\n{body}\n\n{end}{after}"
    PAGE.write_text(page, encoding="utf-8")


if __name__ == "__main__":
    main()
