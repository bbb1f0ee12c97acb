"""Tables and curves of docs/truth.md, from the scores of every seed beside it.

    python docs/make_truth.py

Writes docs/truth/tables.md, the two tables at a glance into docs/truth.md between their
marks, and of each event the curves and the consistency of channels. Pictures of regions
are of the runs themselves (`regions.png`), with the sounds, and are not made here.
"""

from __future__ import annotations

import pathlib
import shutil
import tempfile

from experiments.localisation import merge

HERE = pathlib.Path(__file__).parent
PAGE, FOLDER = HERE / "truth.md", HERE / "truth"
START, END = "<!-- tables at a glance -->\n", "<!-- end of these -->\n"
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
    glance, rest = tables.split("### ", 1)
    (FOLDER / "tables.md").write_text(f"{HEAD}### {rest}", encoding="utf-8")
    before, after = PAGE.read_text(encoding="utf-8").split(START)
    _, after = after.split(END)
    PAGE.write_text(f"{before}{START}\n{glance}{END}{after}", encoding="utf-8")


if __name__ == "__main__":
    main()
