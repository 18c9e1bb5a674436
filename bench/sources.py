"""What a result depends on: fingerprints of the files that were measured or tested.

A part of `python -m bench.gpu` is complete for one fingerprint; a change of any of its files starts
it anew. Needs nothing beyond the standard library.
"""

from __future__ import annotations

import hashlib
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]


def _bench(*names: str) -> list[str]:
    return [f"bench/{name}.py" for name in names]


CODE = ("kernels/**/*.py", "kernels/**/*.json", "barlow_fast/*.py")
MEASURED = (
    *CODE,
    *_bench("peers/*", "agreement", "devices", "inputs", "timing", "loss/group"),
    *_bench("suites/loss", "suites/memory", "peak_memory", "floor", "gpu/profile"),
)
VIEWED = (
    "kernels/photometry.py", "kernels/aten.py", "kernels/triton/photometric.py",
    "kernels/triton/launch.py", "barlow_fast/data/**/*.py",
    *_bench("devices", "views/*", "suites/views", "floor"),
)  # fmt: skip
TRAINED = (
    *CODE, "barlow_fast/data/**/*.py", "barlow_fast/models/*.py", "barlow_fast/training/**/*.py",
    *_bench("peers/*", "training/*", "views/*", "suites/train"),
)  # fmt: skip
# And the files that hold the tests, which `parts` finds.
TESTED = (
    *CODE,
    "barlow_fast/**/*.py",
    "examples/cuda_graph.py",
    "tests/*.py",
    "tests/*kernels*/**/*.py",
)
RANKED = (*CODE, "barlow_fast/distributed/*.py", "bench/ranks/*.py")
STARTED = (*CODE, "bench/startup.py")
SANITIZED = (*CODE, "barlow_fast/data/views.py", "bench/inputs.py", "bench/gpu/exercise.py")


def fingerprint(patterns: tuple[str, ...], root: Path = ROOT) -> str:
    """12 hexadecimal digits, a hash of the contents and names of the matching files."""
    digest = hashlib.sha256()
    for path in sorted({path for pattern in patterns for path in root.glob(pattern)}):
        digest.update(path.relative_to(root).as_posix().encode() + b"\0")
        digest.update(hashlib.sha256(path.read_bytes()).digest())
    return digest.hexdigest()[:12]
