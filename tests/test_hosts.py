"""Two processes with four devices each against one process with eight, and with one."""

import contextlib
import os
import pathlib
import shutil
import socket
import subprocess
import sys

import hosts_program
import jax
import numpy as np
import pytest
import test_cache

from apex_jax import cache, data, explain, hosts
from apex_jax import mesh as mesh_lib

PROGRAM = pathlib.Path(hosts_program.__file__)
TIMEOUT_S = 240  # on a machine that others use; alone it takes a tenth

pytestmark = pytest.mark.slow


def two_processes(folder):
    """Runs the program in two processes; what each of them found."""
    ends = start_two(folder, lambda rank, port: [PROGRAM, folder, rank, port])
    if any(status for status, _ in ends):
        pytest.fail("\n\n".join(log[-6000:] for _, log in ends))
    return [dict(np.load(folder / f"process{rank}.npz")) for rank in range(2)]


def start_two(folder, arguments):
    """Python with `arguments(rank, port)` in two processes of four devices."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    return start(folder, [arguments(rank, port) for rank in range(2)], devices=4)


def start(folder, commands, *, devices):
    """Runs Python with each of these arguments; status and output of each."""
    flags = os.environ["XLA_FLAGS"].replace("device_count=8", f"device_count={devices}")
    logs = [folder / f"process{rank}.log" for rank in range(len(commands))]
    running = []
    try:
        for command, log in zip(commands, logs, strict=True):
            with log.open("wb") as output:
                running.append(
                    subprocess.Popen(
                        [sys.executable, "-W", "error", *map(str, command)],
                        env={**os.environ, "XLA_FLAGS": flags, "COLUMNS": "80"},
                        stdout=output,
                        stderr=subprocess.STDOUT,
                    )
                )
        for process in running:
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(TIMEOUT_S)
        codes = [process.poll() for process in running]
    finally:
        for process in running:
            process.kill()
            process.wait()
    return [
        ("time-out" if code is None else code, log.read_text())
        for code, log in zip(codes, logs, strict=True)
    ]


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    root = tmp_path_factory.mktemp("hosts")
    clips = test_cache.write_clips(root / "wavs", hosts_program.NUM_CLIPS)
    for n in hosts_program.BAD:
        clips[n].path.write_bytes(b"no sound")
    return root


@pytest.fixture(scope="module")
def one(root):
    """What a single process finds, by its number of devices."""
    found = {}
    for devices in (1, 8):
        folder = root / f"one-{devices}"
        folder.mkdir()
        found[devices] = hosts_program.run(
            folder, mesh_lib.make(jax.devices()[:devices])
        )
    return found


@pytest.fixture(scope="module")
def two(root, one):
    """What two processes find, each of them."""
    folder = root / "two"
    # A cache that a single process left unfinished.
    shutil.copytree(root / "one-1" / "cache", folder / "half")
    for number in (0, 4):
        (folder / "half" / f"shard-{number:05d}.npz").unlink()
    return two_processes(folder)


EXACT = ("clip", "clips", "location", "skipped", "index")


@pytest.mark.parametrize("devices", [1, 8])
@pytest.mark.parametrize("rank", [0, 1])
def test_two_processes_find_what_one_finds(rank, devices, one, two):
    """Purity, banks, audit, masking and metrics, on every host."""
    wanted, found = one[devices], two[rank]
    assert found.keys() - wanted.keys() == {"finished", "finished_done"}
    for name in wanted.keys() - {"done"}:
        if name.endswith(EXACT):
            np.testing.assert_array_equal(found[name], wanted[name], err_msg=name)
        else:
            np.testing.assert_allclose(
                found[name], wanted[name], rtol=1e-4, atol=2e-5, err_msg=name
            )


def test_the_processes_agree_to_the_last_bit(two):
    first, second = two
    for name in first:
        np.testing.assert_array_equal(first[name], second[name], err_msg=name)


def test_it_went_somewhere(one):
    """Or equal results would say nothing."""
    assert one[1]["rounds"][-1] > one[1]["rounds"][0] + 1e-3
    assert np.abs(one[1]["matrix"] - np.eye(test_cache.CHAN)).max() > 0.01
    assert len(one[1]["skipped"]) == len(hosts_program.BAD)


def test_each_process_runs_the_backbone_on_its_share(two, one):
    assert one[1]["done"].tolist() == [hosts_program.NUM_CLIPS]
    # Six shards of four clips, the last of three.
    assert two[0]["done"].tolist() == [12, 11]


def test_two_processes_finish_what_one_began(one, two):
    """Without the backbone for shards that were there."""
    assert two[0]["finished_done"].tolist() == [4, 4]
    np.testing.assert_allclose(two[0]["finished"], one[1]["pooled"], atol=2e-5)


def test_one_process_reads_what_two_wrote(root, one, two):
    clips = [
        data.Clip(path=root / f"wavs/clip{n:02d}.wav", label=n % 3)
        for n in range(hosts_program.NUM_CLIPS)
    ]
    network = test_cache.classifier_of()
    cached = cache.load(root / "two/cache", network, clips, test_cache.FRONT_END)
    np.testing.assert_array_equal(cached.features.pooled, two[0]["pooled"])
    assert not list((root / "two").rglob("*.tmp"))

    explainer = explain.load(root / "two/run")
    np.testing.assert_array_equal(explainer.transform.matrix, two[0]["matrix"])
    np.testing.assert_array_equal(
        explainer.positive.location, two[1]["positive location"]
    )


# --- a single process, and settings


def test_a_single_process_is_alone():
    hosts.connect(hosts.Config())
    hosts.barrier("nobody else")
    assert hosts.is_primary()
    assert hosts.share(7) == range(7)
    tree = {"a": np.arange(3.0)}
    assert hosts.concatenate(tree) is tree
    assert hosts.collect(["x", None]) == [["x", None]]


@pytest.mark.parametrize("count", [0, 1, 2, 7, 64])
@pytest.mark.parametrize("processes", [1, 2, 5])
def test_shares_are_consecutive_whole_and_even(count, processes, monkeypatch):
    monkeypatch.setattr(jax, "process_count", lambda: processes)
    shares = []
    for rank in range(processes):
        monkeypatch.setattr(jax, "process_index", lambda rank=rank: rank)
        shares.append(hosts.share(count))
    assert [n for share in shares for n in share] == list(range(count))
    assert max(map(len, shares)) - min(map(len, shares)) <= 1


def test_how_processes_find_each_other(monkeypatch):
    asked = []
    monkeypatch.setattr(jax.distributed, "initialize", lambda *a, **_: asked.append(a))
    hosts.connect(hosts.Config())
    assert not asked
    hosts.connect(hosts.Config(cluster=True))
    hosts.connect(
        hosts.Config(coordinator="10.0.0.1:1234", num_processes=4, process_id=3)
    )
    assert asked == [(None, None, None), ("10.0.0.1:1234", 4, 3)]


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"process_id": 0}, "coordinator, num_processes not given"),
        ({"cluster": True}, "either cluster, which knows"),
        ({"coordinator": "a:1"}, "num_processes, process_id not given"),
        ({"coordinator": "localhost"}, "coordinator='localhost'; it must be HOST:PORT"),
        ({"coordinator": ":80"}, "it must be HOST:PORT"),
        ({"process_id": 2}, "process_id=2, num_processes=2; ids count from 0"),
        ({"process_id": -1}, "ids count from 0"),
        ({"num_processes": 0}, "ids count from 0"),
    ],
)
def test_settings_that_cannot_work(wrong, message):
    whole = {"coordinator": "a:1", "num_processes": 2, "process_id": 0}
    alone = message.endswith("not given")
    with pytest.raises(ValueError, match=message):
        hosts.connect(hosts.Config(**(wrong if alone else whole | wrong)))
