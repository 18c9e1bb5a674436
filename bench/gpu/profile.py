"""The kernels of one forward and backward pass: how many are launched, and what each takes.

`python -m bench.gpu.profile --out FILE` writes a table for each shape; times are of the device, in
microseconds, averaged over a few passes with warm caches.
"""

from __future__ import annotations

import argparse
import sys
from collections import defaultdict
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from torch.autograd import DeviceType
from torch.profiler import ProfilerActivity

from bench import agreement, devices, exits
from bench.devices import brief
from bench.inputs import CUDA_VARIANTS, parse_shapes, parse_variants, random_pair
from bench.peers import Peer, choose

SHAPES = "256x8192,2048x8192,169343x256"
DTYPES = "bf16-inputs,fp32"
PEERS = "ours,gram-plain"
WARM_UPS, PASSES = 3, 5
NAME_WIDTH = 90

Kernels = list[tuple[str, int, float]]


def profiled(action: Callable[[], object]) -> Kernels:
    """(name, launches, microseconds) of all passes together, longest first."""
    for _ in range(WARM_UPS):
        action()
    torch.cuda.synchronize()
    activities = [ProfilerActivity.CPU, ProfilerActivity.CUDA]
    with torch.profiler.profile(activities=activities) as profile:
        for _ in range(PASSES):
            action()
        torch.cuda.synchronize()
    return totals(
        (event.name, event.time_range.elapsed_us())
        for event in profile.events()
        if event.device_type == DeviceType.CUDA
    )


def totals(launches: Sequence[tuple[str, float]]) -> Kernels:
    """Launches of one name taken together, longest first."""
    counts: dict[str, int] = defaultdict(int)
    times: dict[str, float] = defaultdict(float)
    for name, microseconds in launches:
        counts[name] += 1
        times[name] += microseconds
    return [(name, counts[name], times[name]) for name in sorted(times, key=lambda n: -times[n])]


def table(title: str, kernels: Kernels, passes: int) -> str:
    """The kernels of one pass, under a heading with their number and their sum."""
    launches = sum(count for _, count, _ in kernels) / passes
    total = sum(time for *_, time in kernels) / passes
    lines = [f"{title}: {launches:g} launches, {total:.1f} us of kernels in one pass"]
    lines += [
        f"  {time / passes:10.2f} us  {count / passes:5g} x  {name[:NAME_WIDTH]}"
        for name, count, time in kernels
    ]
    return "\n".join(lines)


def text_of(peer: Peer, n: int, d: int, name: str, device: devices.Cuda) -> str:
    """The table of one peer at one shape, or why there is none."""
    variant = CUDA_VARIANTS[name]
    title = f"{peer.title} {n} x {d} {name}"
    reason = peer.unavailable()
    if reason is not None:
        return f"{title}: left out: {reason}"
    pair = random_pair(n, d, variant.dtype, torch.Generator(device.torch).manual_seed(0))
    try:
        with variant.products():
            loss = agreement.built(peer, n, d, variant, device.torch)
            return table(title, profiled(lambda: agreement.run(loss, pair, variant)), PASSES)
    except Exception as error:  # whatever a peer raises, the others are still to be profiled
        return f"{title}: {brief(error)}"


def main(arguments: Sequence[str] | None = None) -> int:
    """Profiles every peer at every shape and dtype; an exit status of `bench.gpu.exits`."""
    options = argparse.ArgumentParser(prog="python -m bench.gpu.profile", description=__doc__)
    options.add_argument("--out", type=Path, required=True, help="text file")
    options.add_argument("--shapes", default=SHAPES)
    options.add_argument("--dtypes", default=DTYPES)
    options.add_argument("--peers", default=PEERS)
    given = options.parse_args(arguments)
    try:
        shapes, variants = parse_shapes(given.shapes), parse_variants(given.dtypes, CUDA_VARIANTS)
        peers, device = choose(given.peers, "cuda"), devices.choose("cuda")
    except (ValueError, RuntimeError) as error:
        print(error, file=sys.stderr)
        return exits.NO_DEVICE
    with given.out.open("w", encoding="utf-8") as file:
        for (n, d), variant, peer in (
            (shape, v, p) for shape in shapes for v in variants for p in peers
        ):
            text = text_of(peer, n, d, variant.name, device)
            print(text, file=file, flush=True)
            print(text.splitlines()[0], flush=True)
            device.release()
    return exits.COMPLETE


if __name__ == "__main__":
    sys.exit(main())
