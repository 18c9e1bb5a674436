"""Philox4x32-10 over whole arrays of counters: random words that depend on nothing but key and
counter.

Source: Salmon, Moraes, Dror, Shaw, *Parallel Random Numbers: As Easy as 1, 2, 3* (SC 2011). The
32-bit variant is the one that Triton and cuRAND compute, so a GPU rendering can draw the very same
words. numpy's own `Philox` bit generator has one counter per object, and an object per sample
would cost more than drawing the view.
"""

from __future__ import annotations

import numpy as np

MULTIPLIERS = (np.uint64(0xD2511F53), np.uint64(0xCD9E8D57))
WEYL = (0x9E3779B9, 0xBB67AE85)
ROUNDS = 10

_LOW = np.uint64(0xFFFFFFFF)
_SHIFT = np.uint64(32)


def philox(counter: tuple[np.ndarray | int, ...], key: int) -> np.ndarray:
    """Four random 32-bit words per counter.

    Args:
        counter: four integers or integer arrays that broadcast together, each in [0, 2**32).
        key: an integer in [0, 2**64).

    Returns:
        uint64 array (4, *broadcast shape); every word is in [0, 2**32).
    """
    words = np.broadcast_arrays(*(np.asarray(word, dtype=np.uint64) for word in counter))
    c0, c1, c2, c3 = words
    k0, k1 = key & 0xFFFFFFFF, key >> 32
    for _ in range(ROUNDS):
        first, second = c0 * MULTIPLIERS[0], c2 * MULTIPLIERS[1]
        c0, c2 = (second >> _SHIFT) ^ c1 ^ np.uint64(k0), (first >> _SHIFT) ^ c3 ^ np.uint64(k1)
        c1, c3 = second & _LOW, first & _LOW
        k0, k1 = (k0 + WEYL[0]) & 0xFFFFFFFF, (k1 + WEYL[1]) & 0xFFFFFFFF
    return np.stack((c0, c1, c2, c3))


def uniform(words: np.ndarray) -> np.ndarray:
    """float32 in the open interval (0, 1) from 32-bit words.

    Only the top 23 bits are used: with the half that keeps 0 out they fill float32's 24, so
    nothing rounds up to 1.
    """
    top = (words >> np.uint64(9)).astype(np.float32)
    return (top + np.float32(0.5)) * np.float32(2**-23)
