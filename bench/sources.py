"""What a result depends on: fingerprints of the files that were measured or tested.

A part of `python -m bench.gpu` is complete for one fingerprint; a change of any of its files starts
it anew. Needs nothing beyond the standard library.
"""

from __future__ import annotations

import hashlib
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]

CODE = ("kernels/**/*.py", "kernels/**/*.json", "barlow_fast/*.py")
MEASURED = (
    *CODE,
    "bench/peers/*.py",
    "bench/agreement.py",
    "bench/devices.py",
    "bench/inputs.py",
    "bench/timing.py",
    "bench/truth.py",
    "bench/loss/group.py",
    "bench/suites/loss.py",
    "bench/suites/memory.py",
    "bench/peak_memory.py",
    "bench/floor.py",
    "bench/gpu/profile.py",
)
VIEWED = (
    "kernels/photometry.py",
    "kernels/aten.py",
    "kernels/triton/photometric.py",
    "kernels/triton/launch.py",
    "barlow_fast/data/**/*.py",
    "bench/devices.py",
    "bench/views/*.py",
    "bench/suites/views.py",
    "bench/floor.py",
)
TRAINED = (
    *CODE,
    "barlow_fast/data/**/*.py",
    "barlow_fast/models/*.py",
    "barlow_fast/training/**/*.py",
    "bench/peers/*.py",
    "bench/training/*.py",
    "bench/views/*.py",
    "bench/suites/train.py",
)
# And the files that hold the tests, which `parts` finds.
TESTED = (
    *CODE,
    "barlow_fast/**/*.py",
    "examples/cuda_graph.py",
    "tests/*.py",
    "tests/*kernels*/**/*.py",
)
RANKED = (*CODE, "barlow_fast/distributed/*.py", "bench/ranks/*.py")
STARTED = (*CODE, "bench/startup/*.py")
SANITIZED = (*CODE, "barlow_fast/data/views.py", "bench/inputs.py", "bench/gpu/exercise.py")


def fingerprint(patterns: tuple[str, ...], root: Path = ROOT) -> str:
    """12 hexadecimal digits, a hash of the contents and names of the matching files."""
    digest = hashlib.sha256()
    for path in sorted({path for pattern in patterns for path in root.glob(pattern)}):
        digest.update(path.relative_to(root).as_posix().encode() + b"\0")
        digest.update(hashlib.sha256(path.read_bytes()).digest())
    return digest.hexdigest()[:12]
