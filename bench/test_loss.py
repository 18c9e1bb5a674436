"""The loss under pytest-benchmark: `pytest bench --benchmark-only`, one group for each shape.

For a look at one's own change (`--benchmark-compare`); the published numbers come from
`python -m bench loss`, which takes turns between the peers and knows the floor.
"""

from __future__ import annotations

import pytest
import torch

from bench import agreement
from bench.inputs import VARIANTS, random_pair
from bench.peers import Peer, discover

SHAPES = ((256, 1024), (256, 2048), (1024, 1024), (4096, 512))
PEERS = [peer for peer in discover().values() if not peer.compiles]


@pytest.mark.parametrize("peer", PEERS, ids=[peer.name for peer in PEERS])
@pytest.mark.parametrize("dtype", ["fp32", "bf16-autocast"])
@pytest.mark.parametrize(("n", "d"), SHAPES, ids=[f"{n}x{d}" for n, d in SHAPES])
def test_loss(benchmark, n: int, d: int, dtype: str, peer: Peer) -> None:
    reason = peer.unavailable()
    if reason is not None:
        pytest.skip(reason)
    variant = VARIANTS[dtype]
    pair = random_pair(n, d, variant.dtype, torch.Generator().manual_seed(0))
    loss = peer.build(n, d, variant.dtype)
    outcome = agreement.run(loss, pair, variant)
    true = agreement.truth(pair, peer.mathematics)
    assert agreement.check_timed(outcome, true, variant) is None
    benchmark.group = f"{n} x {d} {dtype}"
    benchmark.extra_info["source"] = peer.source
    benchmark(agreement.run, loss, pair, variant)
