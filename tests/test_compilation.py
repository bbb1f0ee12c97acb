"""Compiled programs kept from run to run, and the time that compiling takes."""

import json
import os
import subprocess
import sys

import jax
import jax.numpy as jnp
import pytest

from apex_jax import compilation, progress

PROGRAM = """
import json, os
import jax, jax.numpy as jnp
from apex_jax import compilation

folder = compilation.keep()
hits = []
jax.monitoring.register_event_listener(lambda name, **_: hits.append(name))
jax.block_until_ready(jax.jit(lambda x: jnp.sin(x) @ x)(jnp.ones((8, 8))))
print(json.dumps({
    "folder": None if folder is None else str(folder),
    "hits": hits.count("/jax/compilation_cache/cache_hits"),
    "misses": hits.count("/jax/compilation_cache/cache_misses"),
    "seconds": compilation.clock.seconds,
}))
"""


def run(*, warns=None, **environment):
    kept = {k: v for k, v in os.environ.items() if "COMPILATION_CACHE" not in k}
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM],
        env=kept | environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert bool(done.stderr) == bool(warns), done.stderr
    assert (warns or "") in done.stderr
    return json.loads(done.stdout)


def test_a_second_process_compiles_nothing(tmp_path):
    caches = tmp_path / "caches"
    first = run(XDG_CACHE_HOME=str(caches))
    second = run(XDG_CACHE_HOME=str(caches))
    folder = caches / "apex_jax" / "compiled"
    assert first["folder"] == second["folder"] == str(folder)
    assert folder.stat().st_mode & 0o077 == 0  # a program of others would be run
    assert first["misses"] > 0
    assert second["misses"] == 0
    assert second["hits"] == first["misses"] + first["hits"]


def test_a_folder_of_the_users_choice_is_left_alone(tmp_path):
    found = run(
        JAX_COMPILATION_CACHE_DIR=str(tmp_path / "mine"),
        XDG_CACHE_HOME=str(tmp_path / "caches"),
    )
    assert found["folder"] == str(tmp_path / "mine")
    assert not (tmp_path / "caches").exists()


def test_without_a_place_to_keep_them_programs_are_compiled(tmp_path):
    file = tmp_path / "file"
    file.touch()
    assert run(XDG_CACHE_HOME=str(file))["folder"] is None


def test_a_folder_that_others_may_write_to_is_not_used(tmp_path):
    folder = tmp_path / "apex_jax" / "compiled"
    folder.mkdir(parents=True)
    folder.chmod(0o777)
    found = run(XDG_CACHE_HOME=str(tmp_path), warns="not the user's alone; chmod 700")
    assert found["folder"] is None


def test_spans_within_one_another_count_once(monkeypatch):
    clock = compilation.Clock()
    now = 100.0
    monkeypatch.setattr(compilation.time, "perf_counter", lambda: now)
    trace, compile_ = (
        "/jax/core/compile/jaxpr_trace_duration",
        "/jax/core/compile/backend_compile_duration",
    )
    clock.add(trace, 1.0)  # 99 to 100
    now = 102.0
    clock.add(trace, 1.5, fun_name="f")  # 100.5 to 102
    assert clock.seconds == pytest.approx(2.5)
    now = 103.0
    clock.add(trace, 5.0)  # 98 to 103, around both
    assert clock.seconds == pytest.approx(5.0)
    now = 110.0
    clock.add(compile_, 4.0)
    clock.add("/jax/checkpoint/write", 50.0)
    assert clock.seconds == pytest.approx(9.0)


def test_stages_tell_compiling_apart():
    stages = progress.Stages()
    run_twice = jax.jit(lambda x: jnp.cos(x) + len(stages.seconds))
    for name in ("first", "second"):
        with stages(name):
            run_twice(jnp.ones(3)).block_until_ready()
    compiling = stages.compile_seconds
    assert 0 < compiling["first"] <= stages.seconds["first"]
    assert compiling["second"] == 0
    assert set(stages.to_dict()) == {"seconds", "compile_seconds"}
    words = progress.in_words(
        {"seconds": {"a": 3.2, "b": 1.0}, "compile_seconds": {"a": 2.1, "b": 0.2}}
    )
    assert words == "a 3, b 1; compiling 2 of it"
