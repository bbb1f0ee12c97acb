"""The benchmark suite: it runs, its sums are right; no time is asserted."""

import dataclasses
import functools
import json
import pathlib
import time

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from apex_jax import bank, optimize
from apex_jax.models import convnext
from benchmarks import __main__ as suite
from benchmarks import (
    compare_torch,
    frontend,
    growth,
    growth_plot,
    method,
    naive,
    rows,
    sizes,
    synthetic,
    table,
    timing,
    whole,
)

pytestmark = pytest.mark.slow


def tiny():
    size = sizes.smoke()
    return dataclasses.replace(
        size,
        network=dataclasses.replace(size.network, depths=(1, 1), dims=(4, 12)),
        chan=12,
        clips=30,
        sounds=3,
        schedule=optimize.Config(
            epochs=4, prototypes_start=20, prototypes_end=10, batch_size=24
        ),
        least=1,
    )


def row(**changes):
    values = {
        "name": "scoring",
        "what": "scoring 30 clips, top 5",
        "unit": "round",
        "seconds": 0.25,
        "compile_s": 1.5,
        "floor": "its product alone",
        "floor_seconds": 0.2,
        "ratio": timing.Ratio(median=1.25, low=1.2, high=1.4),
        "goal": rows.Goal(at_most=1.3),
    }
    return rows.Row(**values | changes)


# --- timing


def test_turns_alternate_there_and_back():
    order = []

    def call(name):
        time.sleep(timing.TURN_S)  # so long that a turn is one call
        order.append(name)

    calls = {name: functools.partial(call, name) for name in "ab"}
    timings = timing.alternate(calls, budget_s=0.0, least=3)
    # The first calls, one to see how long it takes, and three turns.
    assert "".join(order) == "ab" + "ab" + "ab" + "ba" + "ab"
    assert [len(t.turns_s) for t in timings] == [3, 3]


@pytest.mark.parametrize(("backend", "waits"), [("cpu", 5 + 1), ("gpu", 1)])
def test_calls_are_queued_on_accelerators(backend, waits, monkeypatch):
    """So that the time of a dispatch hides behind the call before it."""
    events = []
    monkeypatch.setattr(jax, "default_backend", lambda: backend)
    monkeypatch.setattr(jax, "block_until_ready", lambda x: events.append("wait") or x)
    assert timing.seconds(lambda: events.append("call"), repeats=5) > 0
    assert events.count("call") == 5
    assert events.count("wait") == waits
    assert events[-1] == "wait"


def test_nothing_is_timed_after_a_wrong_result():
    calls = []

    def check(a, b):
        assert (a, b) == (1, 2)
        raise timing.WrongResultError("no")

    functions = {"a": lambda: calls.append("a") or 1, "b": lambda: 2}
    with pytest.raises(timing.WrongResultError):
        timing.alternate(functions, budget_s=1.0, check=check)
    assert calls == ["a"]


def test_turns_stop_at_most_and_at_the_budget():
    fast = {"a": lambda: None}
    assert len(timing.alternate(fast, budget_s=1e3, least=1, most=4)[0].turns_s) == 4
    with pytest.raises(ValueError, match="least <= most"):
        timing.alternate(fast, budget_s=1.0, least=5, most=4)


def test_compiling_is_told_apart():
    @jax.jit
    def cube(x):
        return x**3

    def slow():
        time.sleep(0.2)
        return cube(jnp.arange(3.0))

    (first,) = timing.alternate({"slow": slow}, budget_s=0.0, least=1)
    # A first call is slow for other reasons too: those are not compilation.
    assert 0 < first.compile_s < first.first_s - 0.2
    (again,) = timing.alternate({"slow": slow}, budget_s=0.0, least=1)
    assert again.compile_s == 0
    assert table.compiling(again.compile_s) == "-"


def test_ratio_is_of_neighbours_in_time():
    # The machine slows down threefold; every turn says 2.
    ours = timing.Timing(first_s=9.0, compile_s=4.5, turns_s=(2.0, 4.0, 6.0))
    floor = timing.Timing(first_s=1.0, compile_s=0.0, turns_s=(1.0, 2.0, 3.0))
    assert timing.ratio(ours, floor) == timing.Ratio(median=2.0, low=2.0, high=2.0)
    assert ours.median_s == 4.0


def test_scaling_leaves_compiling_alone():
    whole_call = timing.Timing(first_s=9.0, compile_s=5.0, turns_s=(4.0, 4.0))
    step = whole_call.scaled(1 / 8)
    assert step.turns_s == (0.5, 0.5)
    assert step.compile_s == whole_call.compile_s == 5.0


def test_check_close():
    expected = np.array([1.0, -4.0])
    assert timing.check_close("x", expected + 0.04, expected, 0.02) == pytest.approx(
        0.01
    )
    with pytest.raises(timing.WrongResultError, match=r"x: off by 0\.25"):
        timing.check_close("x", expected + 1, expected, 0.1)
    with pytest.raises(timing.WrongResultError, match="nan"):
        timing.check_close("x", np.full(2, np.nan), expected, 0.1)
    with pytest.raises(timing.WrongResultError, match="shape"):
        timing.check_close("x", np.zeros(3), expected, 0.1)


# --- rows and goals


def test_goals():
    assert row().met is True
    assert row(ratio=timing.Ratio(median=1.31, low=1.0, high=2.0)).met is False
    assert row(goal=None).met is None
    # The limit itself is met; seconds are judged by seconds, not by the ratio.
    assert row(goal=rows.Goal(at_most=0.25, of="seconds")).met is True
    assert row(goal=rows.Goal(at_most=0.24, of="seconds")).met is False


def test_a_row_survives_json():
    for goal in (rows.Goal(at_most=1.3), None):
        one = row(goal=goal, note="scaled", details={"clips": 30})
        values = json.loads(json.dumps(one.to_dict()))
        assert values["per_second"] == 4.0
        assert rows.from_dict(values) == one


def test_between_counts_units():
    ours = timing.Timing(first_s=10.0, compile_s=4.0, turns_s=(4.0, 8.0))
    floor = timing.Timing(first_s=1.0, compile_s=0.0, turns_s=(2.0, 2.0))
    made = rows.between("a", "b", ours, floor, unit="clip", per_call=4, floor_is="c")
    assert (made.seconds, made.floor_seconds, made.compile_s) == (1.5, 0.5, 4.0)
    assert made.ratio == timing.Ratio(median=3.0, low=2.0, high=4.0)


# --- the arithmetic of what is scaled


def test_work_of_the_paper():
    work = naive.Work.of(optimize.Config(), chan=1024, clips=22_200)
    schedule = [100, 89, 79, 68, 58, 47, 37, 26, 16, 5]
    assert work.pairs == 2 * 1024 * sum(schedule) == 1_075_200
    assert work.ranked == 222_000
    assert work.steps == 2_100
    assert work.seconds(pass_s=2.0, step_s=3.0) == 1_297_200 * 2 + 2_100 * 3


def test_steps_round_up():
    config = optimize.Config(
        epochs=3, prototypes_start=3, prototypes_end=1, batch_size=4
    )
    # Rounds of 3, 3 and 1 prototypes for 5 channels: 15 pairs, 15 pairs, 5 pairs.
    assert synthetic.steps(config, 5) == [4, 4, 2]


def test_a_share_keeps_rounds_and_epochs():
    config = optimize.Config()
    short = whole.share_of(config, 10)
    assert len(short.schedule()) == len(config.schedule()) == 10
    assert short.epochs == config.epochs
    assert short.schedule()[0] == 10
    # As far as the whole goes, each pair goes in the share.
    whole_way = config.learning_rate * sum(config.schedule())
    assert short.learning_rate * sum(short.schedule()) == pytest.approx(whole_way)


def test_scaled_counts_steps_at_their_own_speed():
    # Two epochs: 2 steps of 3 s stand for 10, 1 step of 5 s for 4; 2 rounds of 7 s.
    seconds = whole.scaled([6.0, 5.0], [2, 1], [10, 4], choice_s=7.0, rounds=2)
    assert seconds == 10 * 3 + 4 * 5 + 3 * 7
    everything = whole.scaled([6.0, 5.0], [2, 1], [2, 1], choice_s=0.0, rounds=1)
    assert everything == 11


# --- what is measured is what it is said to be


def test_naive_and_ours_take_the_same_step():
    naive.check_same_step()


def test_ranking_is_checked():
    scores = np.arange(12.0).reshape(4, 3)  # the last clip is the best everywhere
    method.check_ranking(jnp.array([[3, 2]] * 3), scores, 2)
    with pytest.raises(timing.WrongResultError, match="ranking"):
        method.check_ranking(jnp.array([[3, 1]] * 3), scores, 2)


def test_synthetic_features_are_of_one_map():
    features = synthetic.features(6, 5, (2, 3))
    assert features.views.rows.shape == (6, 2, 5)
    assert features.views.columns.shape == (6, 3, 5)
    for view in (features.views.rows, features.views.columns):
        np.testing.assert_allclose(view.mean(axis=1), features.pooled, atol=1e-5)


def test_generator_has_the_norm():
    generator = np.asarray(synthetic.generator(9, 18.0))
    assert np.abs(generator).sum(axis=0).max() == pytest.approx(18.0, rel=1e-5)


def test_feature_pass_reads_files_of_both_rates():
    own, other = frontend.feature_pass(tiny())
    rate = tiny().front_end.sample_rate
    assert (own.details["sample_rate"], other.details["sample_rate"]) == (rate, 44_100)
    for one in (own, other):
        assert one.details["first_batch_s"] > 0
        assert one.details["reading_s"] > 0


def test_linear_layers_are_those_of_the_network():
    config = convnext.ConvNeXtConfig(depths=(1, 2), dims=(4, 6), num_classes=2)
    out = frontend.linear_layers(config, (3, 16, 24))()
    # Cells of each stage, 4 x 6 and 2 x 3 a clip.
    assert [x.shape for x in out] == [(3 * 24, 4), (3 * 6, 6)]


# --- the whole suite


@pytest.fixture(scope="module")
def results(tmp_path_factory):
    output = tmp_path_factory.mktemp("results") / "deep" / "tiny.json"
    config = suite.Config(
        only=("backbone", "expm", "step", "round", "whole", "scoring"),
        naive=True,
        output=output,
    )
    returned = suite.main(config, tiny())
    assert json.loads(output.read_text()) == json.loads(json.dumps(returned))
    return returned


def test_results_say_where_and_what(results):
    machine = results["machine"]
    assert {"device", "devices", "cores", "versions", "commit", "load_average"} <= set(
        machine
    )
    assert {"jax", "jaxlib", "numpy", "python"} <= set(machine["versions"])
    names = [one["name"] for one in results["rows"]]
    assert names == [
        *("backbone", "expm", "expm", "step", "round", "whole", "scoring", "naive")
    ]
    for one in results["rows"]:
        assert one["seconds"] > 0
        assert one["floor_seconds"] > 0
        assert one["met"] is None  # goals are for the paper's size
        assert one["per_second"] == pytest.approx(1 / one["seconds"])


def test_no_path_of_this_machine_is_written(results):
    assert str(pathlib.Path.home()) not in json.dumps(results)
    assert str(pathlib.Path(suite.__file__).parent) not in json.dumps(results)


def test_a_share_of_the_schedule_is_said(results):
    (one,) = (r for r in results["rows"] if r["name"] == "whole")
    config = tiny().schedule
    assert one["details"]["steps"] == sum(synthetic.steps(config, 12))
    assert one["details"]["steps_run"] < one["details"]["steps"]
    assert "scaled from" in one["note"]


def test_all_of_the_schedule():
    (one,) = whole.optimisation(tiny(), full=True)
    assert one.details["steps_run"] == one.details["steps"]
    assert "all" in one.note


def test_the_terminal_table_has_80_columns(results):
    for one in map(rows.from_dict, results["rows"]):
        assert all(len(line) <= table.WIDTH for line in table.terminal(one).split("\n"))
    long = row(
        seconds=123_456.0, goal=rows.Goal(at_most=600, of="seconds"), compile_s=100.0
    )
    assert max(map(len, table.terminal(long).split("\n"))) <= table.WIDTH
    assert max(map(len, table.heading().split("\n"))) <= table.WIDTH


def test_markdown(results):
    text = table.markdown(results)
    assert "| optimiser step, C = 12 |" in text
    assert "No accelerator was available" in text
    lines = [line for line in text.splitlines() if line.startswith("|")]
    assert len({line.count("|") for line in lines}) == 1


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (1.5e-5, "15 us"),
        (0.0123, "12.3 ms"),
        (12.0, "12 s"),
        (599.0, "9.98 min"),
        (7_200.0, "2 h"),
        (2e6, "23.1 days"),
    ],
)
def test_seconds(value, text):
    assert table.seconds(value) == text


def test_only_what_is_asked():
    assert list(suite.stages(suite.Config(only=("expm",)))) == ["expm"]
    assert list(suite.stages(suite.Config(only=("growth",), naive=True))) == ["naive"]
    assert list(suite.stages(suite.Config(only=("naive",)))) == ["naive"]
    assert list(suite.stages(suite.Config(only=("step", "compare-torch")))) == [
        *("step", "compare-torch")
    ]
    usual = suite.stages(suite.Config())
    assert not {"naive", "compare-torch"} & set(usual)
    assert list(suite.stages(suite.Config(compare_torch=True, naive=True))) == [
        *(*usual, "naive", "compare-torch")
    ]


@pytest.mark.parametrize("way", [{"compare_torch": True}, {"only": ("compare-torch",)}])
def test_torch_that_is_missing_is_named(way, monkeypatch):
    monkeypatch.setattr(compare_torch.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ModuleNotFoundError, match="compare-torch needs torch"):
        suite.main(suite.Config(**way), tiny())


def test_torch_takes_the_same_weights():
    pytest.importorskip("torch")
    size = tiny()
    found = compare_torch.backbone(size)
    assert [one.floor for one in found] == ["torch, eager"] * 2


# --- growth


def test_growth_over_devices(tmp_path):
    points = growth.on_devices(tiny())  # the tests have eight virtual devices
    assert [(p.stage, p.value) for p in points] == [
        *(("scoring", 1), ("scoring", 2), ("features", 1), ("features", 2))
    ]
    assert all(p.axis == "devices" and p.seconds > 0 for p in points)
    assert points[0].ratio == points[2].ratio == 1.0
    assert points[0].at == "2,100 clips, 12 channels"
    assert points[2].at == "4 clips, custom, 64 x 64"


def test_other_clips_on_more_devices_stop_the_run(monkeypatch):
    top_clips = bank.top_clips

    def wrong(*args, mesh, **options):
        clips, means = top_clips(*args, mesh=mesh, **options)
        # The two best of one channel change places.
        swapped = clips.at[3, :2].set(clips[3, 1::-1])
        return swapped if mesh.size == 2 else clips, means

    monkeypatch.setattr(bank, "top_clips", wrong)
    with pytest.raises(timing.WrongResultError, match="other clips are best"):
        growth.on_devices(tiny())


def test_a_child_that_does_not_end_is_stopped(monkeypatch):
    monkeypatch.setattr(growth, "CHILD_S", 0.05)
    size = dataclasses.replace(tiny(), growth_devices=(1, 16))  # more than there are
    with pytest.raises(RuntimeError, match="16 virtual devices was stopped"):
        growth.over_devices(size)


def test_growth_plot(tmp_path):
    points = [
        growth.Point(stage=stage, axis=axis, value=value, seconds=0.1, ratio=1.0)
        for stage, axis in (
            ("scoring", "clips"),
            ("step", "chan"),
            ("features", "devices"),
        )
        for value in (1, 10)
    ]
    growth_plot.save(tmp_path / "growth.png", points, virtual=True)
    assert (tmp_path / "growth.png").read_bytes().startswith(b"\x89PNG")
    lines = table.terminal_growth(points).splitlines()
    assert len(lines) == 9
    assert max(map(len, lines)) <= table.WIDTH
