"""What a result was measured on, so that it can be judged later."""

from __future__ import annotations

import datetime
import importlib.metadata
import os
import platform
import subprocess
from pathlib import Path
from typing import Any

import jax

from apex_jax import hosts

PACKAGES = ("jax", "jaxlib", "flax", "optax", "numpy", "scipy", "librosa", "grain")


def describe() -> dict[str, Any]:
    """Devices, cores, versions, commit, and how busy the machine is now."""
    device = jax.devices()[0]
    versions = {name: importlib.metadata.version(name) for name in PACKAGES}
    return {
        "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "platform": device.platform,
        "device": device.device_kind if device.platform != "cpu" else processor(),
        "devices": len(jax.devices()),
        "cores": hosts.cores(),
        "system": f"{platform.system()} {platform.machine()}",
        "versions": {"python": platform.python_version(), **versions},
        "commit": commit(),
        "load_average": load_average(),
    }


def load_average() -> float | None:
    """Processes that want a core, over the last minute; None where nobody counts.

    Well above 0 before a run means that its times are not to be trusted.
    """
    return round(os.getloadavg()[0], 2) if hasattr(os, "getloadavg") else None


def processor() -> str:
    """The CPU's name as the system gives it."""
    file = Path("/proc/cpuinfo")
    if file.exists():
        for line in file.read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def commit() -> str | None:
    """The commit of the working tree, with "-dirty" if it differs; None without one."""
    try:
        done = subprocess.run(
            ["git", "describe", "--always", "--dirty", "--abbrev=12"],
            cwd=Path(__file__).parent,
            capture_output=True,
            text=True,
            check=False,
        )
    except FileNotFoundError:
        return None
    return done.stdout.strip() if done.returncode == 0 else None
