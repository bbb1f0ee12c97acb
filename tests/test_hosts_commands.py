"""The commands in two processes of four devices against one process of eight."""

import csv
import json
import pathlib
import re
import shutil

import numpy as np
import pytest
import soundfile
import test_hosts

PROGRAM = pathlib.Path(__file__).parent / "commands_program.py"
RATE, TONES = 8000, {"high": 2800, "low": 300, "middle": 1100}
SMALL = [
    *("--front-end.n-fft", "256", "--front-end.hop-length", "128"),
    *("--front-end.n-mels", "24"),
]
FIT = [
    *("--optimise.epochs", "2", "--optimise.prototypes-start", "3"),
    *("--optimise.prototypes-end", "2", "--optimise.batch-size", "16"),
    *("--batch-size", "8"),
]

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    """`sounds/CLASS/*.wav`, of each class one that is no sound."""
    root, rng = tmp_path_factory.mktemp("hosts-commands"), np.random.default_rng(0)
    for name, hertz in TONES.items():
        (root / "sounds" / name).mkdir(parents=True)
        for n in range(10):
            seconds = np.arange(RATE // 2 + 400 * (n % 3)) / RATE
            tone = 0.3 * np.sin(2 * np.pi * hertz * seconds)
            sound = tone + rng.normal(0, 0.02, len(tone))
            soundfile.write(root / "sounds" / name / f"{name}{n}.wav", sound, RATE)
        (root / "sounds" / name / f"{name}4.wav").write_text("no sound")
    return root


def alone(folder, *arguments):
    """In one process; what it says."""
    ((status, log),) = test_hosts.start(folder, [[PROGRAM, *arguments]], devices=8)
    assert status == 0, log
    return log


def together(folder, *arguments):
    """In two processes; the status and the output of each."""

    def of_process(rank, port):
        hosts = {
            "coordinator": f"127.0.0.1:{port}",
            "num-processes": 2,
            "process-id": rank,
        }
        flags = [word for k, v in hosts.items() for word in (f"--hosts.{k}", v)]
        return [PROGRAM, *arguments, *flags]

    return test_hosts.start_two(folder, of_process)


@pytest.fixture(scope="module")
def runs(root):
    """By the number of processes: folders `classifier` and `apex`, and what is said.

    Both fit the classifier that one process trained: small differences grow in
    training, and are no business of what follows.
    """
    said = {}
    for name, run in (("one", alone), ("two", together)):
        out = root / name
        out.mkdir()
        said[name] = [
            run(out, "train", "--data", root / "sounds", "--out", out / "classifier",
                "--train.epochs", 3, "--train.batch-size", 8, *SMALL),
            run(out, "fit", "--weights", root / "one" / "classifier", "--data",
                root / "sounds", "--out", out / "apex", *FIT),
            run(out, "evaluate", "--run", out / "apex", "--draws", 2, "--split", "all"),
        ]  # fmt: skip
    for (first, log), (second, other) in said["two"]:
        assert (first, second) == (0, 0), log + other
    return root, said


def read(*path):
    text = pathlib.Path(*path).read_text()
    if path[-1].endswith(".jsonl"):
        return [json.loads(line) for line in text.splitlines()]
    return json.loads(text)


def numbers(tree, name=""):
    """Every number of a JSON value by where it stands."""
    if isinstance(tree, dict):
        return {k: v for key, one in tree.items()
                for k, v in numbers(one, f"{name}/{key}").items()}  # fmt: skip
    if isinstance(tree, list):
        return {k: v for i, one in enumerate(tree)
                for k, v in numbers(one, f"{name}/{i}").items()}  # fmt: skip
    return {name: tree} if isinstance(tree, int | float) else {}


@pytest.mark.parametrize(
    ("file", "tolerance"),
    [
        ("classifier/classifier-training/epochs.jsonl", 2e-3),
        ("classifier/results.json", 2e-3),
        ("apex/results.json", 2e-4),
        ("apex/evaluation.json", 2e-4),
    ],
)
def test_two_processes_report_what_one_does(runs, file, tolerance):
    root, _ = runs
    found = []
    for name in ("one", "two"):
        results = read(root, name, file)
        if isinstance(results, dict):
            for apart in ("seconds", "compile_seconds"):
                results.pop(apart)
        found.append(numbers(results))
    one, two = found
    assert one.keys() == two.keys()
    for name, value in one.items():
        # An error is a matter of rounding; that it is small is checked by the audit.
        if not name.endswith("logit_error"):
            assert two[name] == pytest.approx(value, rel=tolerance, abs=1e-4), name


def test_two_processes_find_the_same_prototypes(runs):
    root, _ = runs
    tables = []
    for name in ("one", "two"):
        with (root / name / "apex" / "bank.csv").open(newline="") as file:
            tables.append(list(csv.DictReader(file)))
    assert len(tables[0]) == len(tables[1]) > 0
    for one, two in zip(*tables, strict=True):
        for column in ("channel", "sign", "rank", "file", "class", "regions"):
            assert one[column] == two[column]
        assert float(two["purity"]) == pytest.approx(float(one["purity"]), abs=2e-4)


def test_what_cannot_be_read_is_known_to_the_first(runs):
    root, _ = runs
    for folder in ("classifier", "apex"):
        listed = [
            (root / name / folder / "skipped.csv").read_text()
            for name in ("one", "two")
        ]
        assert listed[0] == listed[1]
        assert listed[0].count("4.wav") == len(TONES)


def test_only_the_first_process_speaks(runs):
    _, said = runs
    for first, second in said["two"]:
        assert "data" in first[1]
        # Gloo, JAX's way from CPU to CPU, says from several threads what it does, at
        # times one line within another.
        gloo = (
            r"\[Gloo\] Rank|is connected to|peer ranks\.|Expected number of connected|"
        )
        own = re.sub(gloo + r"peer ranks is :|[\d\s]", "", second[1])
        assert not own


def test_a_taken_folder_is_refused_by_all(runs):
    root, _ = runs
    ends = together(
        root / "two", "fit", "--weights", root / "one" / "classifier", "--data",
        root / "sounds", "--out", root / "two" / "apex", "--seed", 1, *FIT,
    )  # fmt: skip
    for status, log in ends:
        assert status == 1
        assert "holds a finished run of other settings" in log


def test_strict_ends_all_and_says_which_file(runs):
    """One process meets the file; the other would otherwise wait for it."""
    root, _ = runs
    few = root / "few"
    for name in TONES:
        (few / name).mkdir(parents=True)
        for n in range(4):
            shutil.copy(root / "sounds" / name / f"{name}{n}.wav", few / name)
    (few / "high" / "high0.wav").write_text("no sound")
    ends = together(
        root / "two", "fit", "--weights", root / "one" / "classifier", "--data", few,
        "--out", root / "two" / "strict", "--strict", *FIT,
    )  # fmt: skip
    # None where it had to be stopped.
    assert all(status not in (0, None) for status, _ in ends)
    assert sum("high0.wav: not readable as audio" in log for _, log in ends) == 1


def test_the_experiment(root):
    """On its demo corpus, which one process writes."""
    options = [
        *("wavefake", "--demo-utterances", 10, "--examples", 1, "--mask-draws", 1),
        *("--windows-per-file", 1, "--train.epochs", 1, "--train.batch-size", 8),
        *("--front-end.n-fft", 256, "--front-end.n-mels", 24),
        *FIT,
    ]
    folder = root / "experiment"
    folder.mkdir()
    alone(folder, *options, "--output-dir", folder / "one")
    ends = together(folder, *options, "--output-dir", folder / "two")
    assert [status for status, _ in ends] == [0, 0], ends
    one, two = (read(folder, name, "results.json") for name in ("one", "two"))
    assert one["corpus"]["clips"] == two["corpus"]["clips"]
    assert two["purity"]["before"] == pytest.approx(one["purity"]["before"], abs=1e-3)
    assert two["purity"]["after"] == pytest.approx(one["purity"]["after"], abs=1e-3)
    assert two["eer"].keys() == one["eer"].keys()
