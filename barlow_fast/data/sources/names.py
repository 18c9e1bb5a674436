"""Names of millions of files as one block of bytes.

A list of a million strings takes 100 MB more, and every worker process that looks at one of them
copies its page to count the reference. Two arrays do not have reference counts inside.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

import numpy as np


class Names:
    """An immutable sequence of `bytes`.

    Args:
        block: all names, one after another.
        ends: (N,) int64, where each one ends.
    """

    def __init__(self, block: bytes, ends: np.ndarray) -> None:
        self.block = block
        self.ends = ends

    @classmethod
    def of(cls, names: Sequence[bytes]) -> Names:
        lengths = np.fromiter(map(len, names), dtype=np.int64, count=len(names))
        return cls(b"".join(names), np.cumsum(lengths, dtype=np.int64))

    def __len__(self) -> int:
        return len(self.ends)

    def __getitem__(self, index: int) -> bytes:
        start = int(self.ends[index - 1]) if index else 0
        return self.block[start : int(self.ends[index])]


def fingerprint(names: Names, sizes: np.ndarray, labels: np.ndarray | None) -> str:
    """A hash of names, sizes in bytes and labels, the same on every machine.

    Args:
        names: N names, relative to the source's root.
        sizes: (N,) integers, bytes.
        labels: (N,) integers, or None.

    Returns:
        32 hexadecimal digits.
    """
    digest = hashlib.sha256(f"barlow_fast source 1, {len(names)} images\n".encode())
    digest.update(names.block)
    digest.update(names.ends.astype("<i8").tobytes())
    digest.update(np.asarray(sizes).astype("<i8").tobytes())
    if labels is not None:
        digest.update(labels.astype("<i8").tobytes())
    return digest.hexdigest()[:32]
