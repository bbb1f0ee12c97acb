"""What README and the guide print works: commands parse, Python runs, links lead."""

import importlib
import pathlib
import re
import shlex
import shutil

import pytest
import test_explain
import tyro

from apex_jax import archive, cli, explain, hosts

ROOT = pathlib.Path(__file__).parents[1]
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *ROOT.glob("docs/**/*.md")]

# The runs of test_explain, and its clips.
run, seen, explainers, explainer = (
    test_explain.run,
    test_explain.seen,
    test_explain.explainers,
    test_explain.explainer,
)


def printed():
    """The lines of the pages' code blocks, without their comments."""
    for page in PAGES:
        inside = False
        for line in page.read_text().splitlines():
            if line.startswith("```"):
                inside = not inside
            elif inside:
                yield line.split("#")[0].strip()


def commands():
    """Every `apex-jax` line."""
    return sorted({line for line in printed() if line.startswith("apex-jax ")})


def experiments():
    """Every `python -m experiments...` line: the module, and its arguments."""
    found = set()
    for line in printed():
        words = line.partition("python -m experiments.")[2].partition(" ")
        if words[0]:
            found.add((f"experiments.{words[0]}", words[2]))
    return sorted(found)


@pytest.mark.parametrize(("name", "arguments"), experiments())
def test_a_printed_experiment_is_understood(name, arguments):
    package = ROOT.joinpath(*name.split(".")).is_dir()
    module = importlib.import_module(f"{name}.options" if package else name)
    tyro.cli(module.Config, args=shlex.split(arguments))


def test_the_pages_are_read():
    names = {line.split()[1] for line in commands()}
    assert names >= {"train", "predict", "fit", "explain", "evaluate", "figure"}
    asked = {name for name, _ in experiments()}
    assert asked >= {f"experiments.{n}" for n in ("wavefake", "birdset", "esc10")}


@pytest.mark.parametrize("line", commands())
def test_a_printed_command_is_understood(line, monkeypatch):
    name, *arguments = shlex.split(line)[1:]
    module = importlib.import_module(cli.COMMANDS[name].module)
    parsed = []
    monkeypatch.setattr(module, "main", parsed.append)
    # The other processes would not come.
    monkeypatch.setattr(hosts, "connect", lambda config: None)
    assert cli.main([name, *arguments]) == 0
    (config,) = parsed
    assert type(config).__name__ == cli.COMMANDS[name].config


def test_the_guides_python_runs(explainer, run, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    explain.save("runs/apex", explainer)
    shutil.copy(explainer.clips[3].path, "query.wav")
    guide = (ROOT / "docs" / "guide.md").read_text()
    (block,) = re.findall(r"```python\n(.*?)```", guide, re.DOTALL)
    names = {}
    exec(block, names)
    shown = capsys.readouterr().out.splitlines()
    result = names["result"]
    assert shown[0].startswith(result.class_name)
    assert len(shown) == 1 + len(result.channels)
    assert archive.load("query-explained").source == "query.wav"
    assert "query.wav" in pathlib.Path("query.html").read_text()
    assert result._repr_html_().startswith("<iframe")


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_somewhere(page):
    for target in re.findall(r"\]\(([^)#\s]+)\)", page.read_text()):
        if not re.match(r"https?:", target):
            assert (page.parent / target).exists(), target
