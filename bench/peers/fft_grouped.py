"""The FFT relaxation in four groups of columns, which is what its authors' default group of 2048
makes of D = 8192. Not exact; see fft.py."""

from __future__ import annotations

import functools

from bench.peers import Mathematics, Peer
from bench.peers.fft import SCALE, relaxed

GROUPS = 4

PEER = Peer(
    name="fft-grouped",
    title=f"FFT relaxation, {GROUPS} groups (not exact)",
    source=f"the relaxation of Shigeto et al. (CVPR 2023) in plain torch, "
    f"{GROUPS} groups of columns",
    build=functools.partial(relaxed, GROUPS),
    mathematics=Mathematics(circular_groups=GROUPS, factor=SCALE),
    exact=False,
)
