"""The kernels of one forward and backward pass: how many are launched, and what each takes.

`python -m bench.gpu.profile --out FILE` writes a table of torch's profiler for each shape: calls
and times on the device, with warm caches.
"""

from __future__ import annotations

import itertools
import sys
from pathlib import Path
from typing import Annotated

import torch
from torch.profiler import ProfilerActivity, profile

from bench import agreement, cli, devices, exits
from bench.cli import Option
from bench.devices import brief
from bench.inputs import CUDA_VARIANTS, Variant, parse_variants, random_pair
from bench.peers import Peer, choose

WARM_UPS, PASSES = 3, 5
NAME_WIDTH = 90


def profiled(peer: Peer, n: int, d: int, variant: Variant, device: devices.Device) -> str:
    """The kernels of PASSES passes, longest first."""
    pair = random_pair(n, d, variant.dtype, torch.Generator(device.torch).manual_seed(0))
    with variant.products():
        loss = agreement.built(peer, n, d, variant, device.torch)
        for _ in range(WARM_UPS):
            agreement.run(loss, pair, variant)
        device.synchronize()
        with profile(activities=[ProfilerActivity.CUDA]) as found:
            for _ in range(PASSES):
                agreement.run(loss, pair, variant)
            device.synchronize()
    averages = found.key_averages()
    return averages.table("self_device_time_total", -1, max_name_column_width=NAME_WIDTH)


def text_of(peer: Peer, n: int, d: int, variant: Variant, device: devices.Device) -> str:
    """The table of one peer at one shape, or why there is none."""
    title = f"{peer.title} {n} x {d} {variant.name}"
    if reason := peer.unavailable():
        return f"{title}: left out: {reason}"
    try:
        return f"{title}, {PASSES} passes\n{profiled(peer, n, d, variant, device)}"
    except Exception as error:  # whatever a peer raises, the others are still to be profiled
        return f"{title}: {brief(error)}"


def command(out: Annotated[Path, Option("Text file.")] = Path("gpu-profile.txt")) -> int:
    """Profile ours and the Gram form in plain torch at the shapes of the README."""
    with cli.reading():
        device = devices.choose("cuda")
    variants = parse_variants("bf16-inputs,fp32", CUDA_VARIANTS)
    cases = itertools.product(device.grid.quick, variants, choose("ours,gram-plain", "cuda"))
    with out.open("w", encoding="utf-8") as file:
        for (n, d), variant, peer in cases:
            text = text_of(peer, n, d, variant, device)
            print(text, file=file, flush=True)
            print(text.splitlines()[0], flush=True)
            device.release()
    return exits.COMPLETE


if __name__ == "__main__":
    sys.exit(cli.run(command, None, "python -m bench.gpu.profile", __doc__))
