"""The kernels of one forward and backward pass: how many are launched, and what each takes.

`python -m bench.gpu.profile --out FILE` writes a table for each shape; times are of the device, in
microseconds, averaged over a few passes with warm caches.
"""

from __future__ import annotations

import itertools
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Annotated

import torch
from torch.autograd import DeviceType
from torch.profiler import ProfilerActivity

from bench import agreement, cli, devices, exits
from bench.cli import Option
from bench.devices import brief
from bench.inputs import CUDA_VARIANTS, parse_shapes, parse_variants, random_pair
from bench.peers import Peer, choose

WARM_UPS, PASSES = 3, 5
NAME_WIDTH = 90

# Microseconds of every launch, by the name of the kernel.
Kernels = dict[str, list[float]]


def profiled(action: Callable[[], object]) -> Kernels:
    """The kernels of all passes together."""
    for _ in range(WARM_UPS):
        action()
    torch.cuda.synchronize()
    activities = [ProfilerActivity.CPU, ProfilerActivity.CUDA]
    with torch.profiler.profile(activities=activities) as profile:
        for _ in range(PASSES):
            action()
        torch.cuda.synchronize()
    kernels: Kernels = {}
    for event in profile.events():
        if event.device_type == DeviceType.CUDA:
            kernels.setdefault(event.name, []).append(event.time_range.elapsed_us())
    return kernels


def table(title: str, kernels: Kernels, passes: int) -> str:
    """The kernels of one pass, longest first, under a heading with their number and their sum."""
    launches = sum(map(len, kernels.values())) / passes
    total = sum(map(sum, kernels.values())) / passes
    lines = [f"{title}: {launches:g} launches, {total:.1f} us of kernels in one pass"]
    lines += [
        f"  {sum(times) / passes:10.2f} us  {len(times) / passes:5g} x  {name[:NAME_WIDTH]}"
        for name, times in sorted(kernels.items(), key=lambda item: -sum(item[1]))
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


def command(
    out: Annotated[Path, Option("Text file.")] = Path("gpu-profile.txt"),
    shapes: Annotated[str, Option("Such as 256x8192.")] = "256x8192,2048x8192,169343x256",
    dtypes: Annotated[str, Option("As in the suite loss.")] = "bf16-inputs,fp32",
    peers: Annotated[str, Option("Names, comma-separated.")] = "ours,gram-plain",
) -> int:
    """Profile every peer at every shape and dtype."""
    with cli.reading():
        variants = parse_variants(dtypes, CUDA_VARIANTS)
        cases = itertools.product(parse_shapes(shapes), variants, choose(peers, "cuda"))
        device = devices.choose("cuda")
    with out.open("w", encoding="utf-8") as file:
        for (n, d), variant, peer in cases:
            text = text_of(peer, n, d, variant.name, device)
            print(text, file=file, flush=True)
            print(text.splitlines()[0], flush=True)
            device.release()
    return exits.COMPLETE


if __name__ == "__main__":
    sys.exit(cli.run_one(command, None, "python -m bench.gpu.profile", __doc__))
