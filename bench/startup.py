"""What a fresh process measures of itself: imports, then the first calls of one implementation.

    python -m bench.startup '{"module": "barlow_fast", "peer": "ours", "n": 256, ...}'

The last line printed is a JSON object of seconds. Nothing heavy is imported before its clock runs.
"""

from __future__ import annotations

import importlib
import json
import sys
import time
from typing import Any

COMPILED = "-compiled"  # after the name of a peer: the same under torch.compile
ARCHITECTURE = "sm_"  # begins the dtype of a visit that compiles for one


def main(module: str | None, peer: str, n: int, d: int, dtype: str, kind: str) -> dict[str, Any]:
    """Seconds of `import torch` ('torch'), of the module beyond torch ('import'), of the first two
    calls of a peer on a kind of device ('first', 'second'), or, where the dtype is an architecture,
    of compiling the Triton kernels of a step ('kernels'); 'problem' is the error, if any."""
    found: dict[str, Any] = {"torch": _seconds(lambda: importlib.import_module("torch"))}
    if dtype.startswith(ARCHITECTURE):
        return found | compile_kernels(n, d, int(dtype.removeprefix(ARCHITECTURE)))
    if module is not None:
        found["import"] = _seconds(lambda: importlib.import_module(module))
    return found | call(peer, n, d, dtype, kind)


def _seconds(action) -> float:
    start = time.perf_counter()
    action()
    return time.perf_counter() - start


def call(name: str, n: int, d: int, dtype: str, kind: str) -> dict[str, Any]:
    """Seconds from nothing but imports to both gradients, and of the same again.

    Building the module counts: what it loads then is part of a user's first step. Inputs are there
    before, and with them the device's context.
    """
    import torch

    from bench import agreement, devices
    from bench.inputs import random_pair
    from bench.peers import discover

    device = devices.choose(kind)
    variant = device.variants[dtype]
    peer = discover(kind)[name.removesuffix(COMPILED)]
    pair = random_pair(n, d, variant.dtype, torch.Generator(device.torch).manual_seed(0))
    with variant.products():
        device.synchronize()
        start = time.perf_counter()
        loss = agreement.built(peer, n, d, variant, device.torch)
        if name.endswith(COMPILED):
            loss = torch.compile(loss, dynamic=False)
        outcome = agreement.run(loss, pair, variant)
        device.synchronize()
        first = time.perf_counter() - start
        start = time.perf_counter()
        agreement.run(loss, pair, variant)
        device.synchronize()
        second = time.perf_counter() - start
    problem = agreement.check_timed(outcome, agreement.truth(pair, peer.mathematics), variant)
    return {"first": first, "second": second, "problem": problem}


def compile_kernels(n: int, d: int, architecture: int) -> dict[str, Any]:
    """Seconds to compile the Triton kernels of one step of the loss for an architecture such as 90,
    one after the other, as a first call on that GPU would; no GPU is needed."""
    import torch

    from barlow_fast.kernels.triton import inspection
    from barlow_fast.kernels.triton.launch import REFERENCE_DEVICES

    form = "gram" if n < d else "correlation"
    case = inspection.Case(form, n, d, torch.bfloat16, "bf16")
    launches = inspection.record_step(case, REFERENCE_DEVICES[architecture])
    kernels = {inspection.identity(launch): launch for launch in launches}

    def compile_all() -> None:
        for launch in kernels.values():
            inspection.compile_launch(launch, architecture)

    return {"kernels": _seconds(compile_all), "count": len(kernels)}


if __name__ == "__main__":
    print(json.dumps(main(**json.loads(sys.argv[1]))))
