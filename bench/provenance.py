"""Provenance of a result: machine, versions, commit, date, command."""

from __future__ import annotations

import datetime
import importlib.metadata
import importlib.util
import os
import platform
import re
import shlex
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

import barlow_fast
from barlow_fast.doctor import cpu_model_and_features
from barlow_fast.kernels import why_unusable
from bench.sources import ROOT as ROOT

# The flags that decide which kernels run; a CPU lists a hundred more.
KERNEL_FLAGS = (
    "avx2", "fma", "avx512f", "avx512_bf16", "avx512_fp16", "avx512_vnni",
    "amx_tile", "amx_bf16", "amx_int8", "amx_fp16",
    "asimd", "asimdhp", "bf16", "sve", "sve2", "i8mm",
)  # fmt: skip
DEFAULT_CACHE = 32 << 20


def collect() -> dict[str, Any]:
    """The provenance that every row of results carries."""
    # They distinguish generations where a virtual machine hides the name.
    numbers = [_cpuinfo(key) for key in ("cpu family", "model", "stepping")]
    model, present = cpu_model_and_features()
    affinity = getattr(os, "sched_getaffinity", None)
    return {
        "cpu": model,
        "cpu_family_model": None if None in numbers else "/".join(numbers),
        "cores": len(affinity(0)) if affinity else os.cpu_count(),
        "threads": torch.get_num_threads(),
        "flags": [flag for flag in KERNEL_FLAGS if flag in present],
        "last_level_cache_bytes": last_level_cache(),
        "instruction_set": instruction_set(),
        "system": f"{platform.system()} {platform.machine()}",
        "python": platform.python_version(),
        "torch": torch.__version__,
        "barlow_fast": barlow_fast.__version__,
        "lightly": version("lightly"),
        "commit": commit(),
        "date": now(),
        # Well above 0: the machine was not idle in the minute before the run.
        "load_average": round(os.getloadavg()[0], 2) if hasattr(os, "getloadavg") else None,
        "command": "python -m bench " + shlex.join(sys.argv[1:]),
    }


def unmeasured(command: str) -> dict[str, Any]:
    """The provenance of rows that no device has measured: models, and what compilers make."""
    return {"commit": commit(), "date": now(), "command": command}


def now() -> str:
    """Date and time in UTC."""
    return datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds")


def _cpuinfo(key: str) -> str | None:
    path = Path("/proc/cpuinfo")
    text = path.read_text() if path.exists() else ""
    found = re.search(rf"^{key}\s*:\s*(.*)$", text, re.MULTILINE)
    return found and found[1].strip()


def cpu_model() -> str:
    """The CPU's name according to the system."""
    return cpu_model_and_features()[0]


def last_level_cache() -> int:
    """Bytes of the largest cache of the first core, DEFAULT_CACHE where it is unknown."""
    sizes = []
    for path in Path("/sys/devices/system/cpu/cpu0/cache").glob("index*/size"):
        found = re.fullmatch(r"(\d+)([KM])", path.read_text().strip())
        if found:
            sizes.append(int(found.group(1)) << {"K": 10, "M": 20}[found.group(2)])
    return max(sizes, default=DEFAULT_CACHE)


def two_cores() -> set[int] | None:
    """Two of the cores that this process may use; None where the system has no affinity."""
    affinity = getattr(os, "sched_getaffinity", None)
    return None if affinity is None else set(sorted(affinity(0))[:2])


def instruction_set() -> str | None:
    """What the native CPU kernels use; None where they cannot run."""
    if why_unusable("cpu", torch.device("cpu")) is not None:
        return None
    from barlow_fast.kernels import cpu

    return cpu.instruction_set()


def version(package: str) -> str | None:
    """The installed version of a package, None if it is not installed."""
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def missing(*modules: str) -> str | None:
    """None if all modules can be imported, else which is not installed."""
    lacking = (name for name in modules if importlib.util.find_spec(name) is None)
    return next((f"{name} is not installed" for name in lacking), None)


def versions(packages: Sequence[str]) -> str:
    """Installed packages with their versions."""
    found = ((name, version(name)) for name in packages)
    return ", ".join(f"{name} {number}" for name, number in found if number is not None)


def commit() -> str | None:
    """The commit, with '+changes' if tracked files other than generated results differ from it.

    A copy of the tree without its history takes it from BARLOW_FAST_COMMIT; None without that.
    """

    def git(*arguments: str) -> str:
        process = subprocess.run(
            ["git", "-C", str(ROOT), *arguments], capture_output=True, text=True, check=True
        )
        return process.stdout.strip()

    try:
        head = git("rev-parse", "--short=12", "HEAD")
        generated = (":!bench/results", ":!README.md")
        changes = git("status", "--porcelain", "--untracked-files=no", "--", ".", *generated)
    except (OSError, subprocess.CalledProcessError):
        return os.environ.get("BARLOW_FAST_COMMIT")
    return head + ("+changes" if changes else "")


def slug(text: str) -> str:
    """Part of a file name: lower-case words joined by hyphens, no trademarks, no clock rates."""
    text = re.sub(r"\((R|TM)\)|@.*$|\bCPU\b|\bProcessor\b", " ", text, flags=re.IGNORECASE)
    return "-".join(re.findall(r"[a-z0-9]+", text.lower())) or "unknown"
