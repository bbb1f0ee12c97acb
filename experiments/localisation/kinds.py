"""Do channels tell events apart that the network was not taught to tell apart?

    python -m experiments.localisation.kinds RUN [RUN ...] --sounds DIR --output DIR

Under `sound` the event is a dog, a rooster, a sneeze or a baby, and the classes say
only whether there is one. If a channel stands for one kind of sound, the prototypes of
a clip's top channel are of the kind that is in the clip. Takes finished folders of the
localisation experiment, such as runs/localisation/sound/seed0.
"""

from __future__ import annotations

import dataclasses
import itertools
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import tyro

from experiments import command

if TYPE_CHECKING:
    import numpy as np

CLEAN = ""  # the kind of a clip in which nothing is planted


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config:
    """Do channels tell apart events of one class."""

    runs: Annotated[tuple[Path, ...], tyro.conf.Positional]
    """Finished folders of the event sound, one a seed."""
    sounds: Annotated[Path, tyro.conf.arg(metavar="DIR")]
    """ESC-10, whose folders say of which kind a recording is."""
    output: Path
    """Folder for kinds.json and kinds.md."""


def main(config: Config) -> dict[str, Any]:
    """Writes kinds.json and kinds.md and returns what they show.

    Raises:
      ValueError: no folders, or one that is no finished folder of the event sound.
    """
    from apex_jax import atomic, runs
    from experiments.localisation import cells

    if not config.runs:
        raise ValueError("name at least one folder, such as runs/localisation/sound/*")
    parts = [_of_run(run, config.sounds) for run in config.runs]
    results: dict[str, Any] = {
        "seeds": [part["seed"] for part in parts],
        "clips": sum(len(part["recordings"]) for part in parts),
        "rows": {
            name: _row([part["found"][name] for part in parts], parts)
            for name in parts[0]["found"]
        },
    }
    config.output.mkdir(parents=True, exist_ok=True)
    text = json.dumps(results, indent=1) + "\n"
    atomic.write_text(config.output / "kinds.json", text)
    atomic.write_text(config.output / "kinds.md", markdown(results))
    runs.say("prototypes of the top channel that are of the clip's kind")
    chance = next(iter(results["rows"].values()))["chance"]
    runs.say(f"  {'by chance':24} {cells.cell(chance)}")
    for name, row in results["rows"].items():
        runs.say(f"  {name:24} {cells.cell(row['same'])}")
    runs.say(f"written to  {config.output}, kinds.json and .md")
    return results


def _of_run(run: Path, sounds: Path) -> dict[str, Any]:
    """Of a seed: each way to learn U, and which recording is in each clip."""
    from apex_jax import explain
    from apex_jax import runs as runs_lib
    from experiments.localisation import corpus as corpus_lib
    from experiments.localisation import variants

    scores = runs_lib.read_json(run / "scores.json") or {}
    if scores.get("event") != "sound":
        raise ValueError(
            f"{run} is no finished folder of the event sound, such as "
            "runs/localisation/sound/seed0"
        )
    kind_of = corpus_lib.kinds(sounds)
    corpus = corpus_lib.read(run / "corpus")
    unknown = set(corpus.recordings.values()) - set(kind_of)
    if unknown:
        raise ValueError(
            f"--sounds {sounds} lacks recordings that were planted in {run}, such as "
            f"{min(unknown)}; it must be the folder that the run was made from"
        )
    heard = {
        clip.id: kind_of[corpus.recordings[clip.path]]
        for clip in corpus.splits.train
        if clip.path in corpus.recordings
    }
    recordings = [clip["recording"] for clip in scores["explained"]]
    asked = [kind_of[recording] for recording in recordings]
    scheme = scores["fits"][0]
    num = scores["settings"]["explain_clips"]
    known = [heard[c.id] for c in corpus.splits.train[:num] if c.id in heard]
    found: dict[str, Any] = {}
    for name in (variants.RAW, *scores["settings"]["variants"]):
        # The network's own bank is in every explainer, so in the first.
        first = scores["settings"]["variants"][0]
        folder = run / (first if name == variants.RAW else name) / scheme
        explainer = explain.load(folder)
        bank = explainer.raw if name == variants.RAW else explainer.positive
        assert bank is not None
        shown = [
            [heard.get(explainer.clips[int(position)].id, CLEAN) for position in row]
            for row in bank.clip
        ]
        top = next(
            row["top"]
            for row in scores["rows"]
            if (row["method"], row["scheme"]) == (name, scheme)
            and row["evidence"] == "contrastive"
        )
        found[name] = measure(shown, [channels[0] for channels in top], asked, known)
    return {"seed": scores["seed"], "recordings": recordings, "found": found}


def measure(
    shown: Sequence[Sequence[str]],
    top: Sequence[int],
    asked: Sequence[str],
    known: Sequence[str],
) -> dict[str, Any]:
    """How far channels go by kind.

    Args:
      shown: kinds of each channel's prototypes, `CLEAN` of clips without an event,
        which are left out.
      top: the top channel of each clip.
      asked: the kind of the event in each clip.
      known: of those in the training clips that U was learned on.

    Returns:
      `same`, of each clip the share of its top channel's prototypes that are of its
      kind, NaN where none has an event; `chance`, the share of its kind among `known`;
      `pairs`, of each channel with two prototypes or more the share of their pairs that
      are of one kind; `pairs by chance`, the same of two clips drawn at random;
      `tops`, how many different top channels there are.
    """
    import numpy as np

    planted = [[kind for kind in kinds if kind != CLEAN] for kinds in shown]
    shares = {kind: known.count(kind) / len(known) for kind in set(known)}
    pairs = [
        np.mean([a == b for a, b in itertools.combinations(kinds, 2)])
        for kinds in planted
        if len(kinds) > 1
    ]
    return {
        "same": np.array(
            [
                np.mean([one == kind for one in planted[channel]])
                if planted[channel]
                else np.nan
                for channel, kind in zip(top, asked, strict=True)
            ]
        ),
        "chance": np.array([shares.get(kind, 0.0) for kind in asked]),
        "pairs": np.array(pairs),
        "pairs by chance": sum(share**2 for share in shares.values()),
        "tops": len(set(top)),
    }


def _row(
    found: Sequence[Mapping[str, Any]], parts: Sequence[Mapping[str, Any]]
) -> dict[str, Any]:
    """Of all seeds; intervals over seeds and the recordings that clips share.

    None of pairs: channels are near copies of each other, and no sample of anything.
    """
    import numpy as np

    from experiments.localisation import summary

    def over(
        values: Sequence[np.ndarray], groups: Sequence[Sequence[Any]]
    ) -> summary.Interval | None:
        known = [
            list(zip(v[~np.isnan(v)], np.array(g)[~np.isnan(v)], strict=True))
            for v, g in zip(values, groups, strict=True)
        ]
        pairs = [zip(*each, strict=True) for each in known if each]
        return summary.interval(*zip(*pairs, strict=True)) if pairs else None

    recordings = [part["recordings"] for part in parts]
    return {
        "same": over([one["same"] for one in found], recordings),
        "chance": over([one["chance"] for one in found], recordings),
        "pairs": [float(one["pairs"].mean()) for one in found if len(one["pairs"])],
        "pairs by chance": float(np.mean([one["pairs by chance"] for one in found])),
        "tops": [one["tops"] for one in found],
    }


def markdown(results: Mapping[str, Any]) -> str:
    """A line each way to learn U, and what chance comes to."""
    from experiments.localisation import cells

    seeds = ", ".join(map(str, results["seeds"]))
    rows: list[list[str]] = []
    for name, row in results["rows"].items():
        if not rows:
            chance = f"{row['pairs by chance']:.2f}"
            rows.append(["by chance", cells.cell(row["chance"]), chance, ""])
        pairs = ", ".join(f"{share:.2f}" for share in row["pairs"])
        tops = ", ".join(map(str, row["tops"]))
        rows.append([name, cells.cell(row["same"]), pairs, tops])
    header = (
        "channels | top channel's prototypes of the clip's kind | pairs of a channel's "
        "prototypes of one kind, by seed | different top channels, by seed"
    )
    return (
        f"Kinds of events that share a class, sound, seeds {seeds}, "
        f"{results['clips']} clips:\n\n{cells.table(header, rows)}\n"
    )


if __name__ == "__main__":
    asked = tyro.cli(
        Config, prog="python -m experiments.localisation.kinds", description=__doc__
    )
    with command.ending():
        main(asked)
