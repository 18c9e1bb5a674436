"""What a result depends on: fingerprints of the files that were measured or tested.

A part of `python -m bench.gpu` is complete for one fingerprint; a change of any of its files starts
it anew. Needs nothing beyond the standard library.
"""

from __future__ import annotations

import hashlib
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]


MEASURED = (
    "kernels/**/*.py", "kernels/**/*.json", "kernels/cpu/*.cpp", "kernels/cpu/*.h",
    "barlow_fast/**/*.py", "bench/**/*.py", "examples/*.py",
)  # fmt: skip
TESTED = (*MEASURED, "tests/**/*.py")


def fingerprint(patterns: tuple[str, ...] = MEASURED, root: Path = ROOT) -> str:
    """12 hexadecimal digits, a hash of the contents and names of the matching files."""
    digest = hashlib.sha256()
    for path in sorted({path for pattern in patterns for path in root.glob(pattern)}):
        digest.update(path.relative_to(root).as_posix().encode() + b"\0")
        digest.update(hashlib.sha256(path.read_bytes()).digest())
    return digest.hexdigest()[:12]
