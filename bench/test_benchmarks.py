"""The loss, forward + backward, under pytest-benchmark: `pytest bench --benchmark-only`.

The plugin's own clock times one test after the other. Comparisons that are published interleave
their peers instead: `python -m bench loss`.
"""

from __future__ import annotations

import itertools

import pytest

from bench import agreement
from bench.inputs import Variant, rotation
from bench.peers import Peer


def test_forward_and_backward(benchmark, device, shape: tuple[int, int], variant, peer):
    if benchmark.disabled:
        pytest.skip("timing is switched off; --benchmark-only switches it on")
    if reason := peer.unavailable():
        pytest.skip(reason)
    with variant.products():
        call = _checked(device, *shape, variant, peer)
        benchmark.extra_info.update(source=peer.source, exact=peer.exact)
        benchmark(call)


def _checked(device, n: int, d: int, variant: Variant, peer: Peer):
    """() -> None: one pass on the next inputs, until the device has finished it; fails for a peer
    that is wrong."""
    problem = agreement.check_small(peer, [variant], device.torch)
    pairs = rotation(n, d, variant.dtype, device.cache_bytes, device.torch)
    loss = agreement.built(peer, n, d, variant, device.torch)
    if problem is None:
        true = agreement.truth(pairs[0], peer.mathematics)
        problem = agreement.check_timed(agreement.run(loss, pairs[0], variant), true, variant)
    if problem is not None:
        pytest.fail(f"{peer.name} is not timed: {problem}", pytrace=False)
    turns = itertools.cycle(pairs)

    def call() -> None:
        agreement.run(loss, next(turns), variant)
        device.synchronize()

    return call
