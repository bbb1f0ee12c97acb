"""Strict numerics for every test, on eight virtual CPU devices."""

import os
import shutil
import tempfile

# Before jax is imported anywhere: the device count is read once.
os.environ["XLA_FLAGS"] = (
    os.environ.get("XLA_FLAGS", "")
    + " --xla_force_host_platform_device_count=8"
    # Most of the time is compilation; the programs themselves are tiny. The emitters of
    # fused loops alone take more than half of it.
    + " --xla_backend_optimization_level=0 --xla_llvm_disable_expensive_passes=true"
    + " --xla_cpu_use_fusion_emitters=false --xla_cpu_parallel_codegen_split_count=1"
)
os.environ.setdefault("JAX_PLATFORMS", "cpu")
# What one worker or one command has compiled, the others load: a folder of this run,
# made by the process that starts the workers, and not the user's own. Several runs in a
# row may share one that is not removed, TESTS_COMPILED_DIR.
if "PYTEST_XDIST_WORKER" not in os.environ:
    os.environ["JAX_COMPILATION_CACHE_DIR"] = os.environ.get(
        "TESTS_COMPILED_DIR"
    ) or tempfile.mkdtemp(prefix="apex-compiled-")
    os.environ["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0"

import jax
import numpy as np
import psutil
import pytest

jax.config.update("jax_numpy_rank_promotion", "raise")


def pytest_unconfigure():
    folder = os.environ["JAX_COMPILATION_CACHE_DIR"]
    shared = folder == os.environ.get("TESTS_COMPILED_DIR")
    if "PYTEST_XDIST_WORKER" not in os.environ and not shared:
        shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture(scope="module", autouse=True)
def forget_programs():
    """Compiled programs take gigabytes, and looking them through takes seconds."""
    yield
    if psutil.Process().memory_info().rss > 3 * 2**30:
        jax.clear_caches()


@pytest.fixture
def key():
    return jax.random.key(0)


@pytest.fixture
def rng():
    return np.random.default_rng(0)
