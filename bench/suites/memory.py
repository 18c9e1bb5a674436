"""Peak memory of one forward and backward pass beyond its inputs and gradients.

Each measurement is a process of its own. What is counted: the highest resident memory (VmHWM)
during one forward and backward pass, minus the resident memory just before it, when torch, its
threads and both inputs are already there, minus the bytes of both gradients. Inputs and gradients
are therefore excluded; everything else is included, whatever it is: matrices kept for the backward
pass, temporaries, packing buffers of the GEMM library.
The pool of reused outputs of barlow_fast is switched off, so its outputs are allocated like
anyone's; in normal use it keeps outputs of past steps (gradients, Gram matrices) up to
BARLOW_FAST_CPU_POOL_MIB instead of giving them back.
"""

from __future__ import annotations

import ctypes
import itertools
import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Annotated

import torch

from bench import agreement, devices, provenance, results
from bench.gpu import memory as gpu_memory
from bench.gpu import tables as gpu_tables
from bench.inputs import VARIANTS, parse_shapes, parse_variants, random_pair
from bench.optional import Console, typer
from bench.peers import choose, discover
from bench.results import Row

SECTION = "Memory beyond inputs and gradients"
SHAPES = "256x8192,512x65536"
STATUS = Path("/proc/self/status")
AVAILABLE_SHARE = 0.7  # of the free memory; a peer that needs more does not fit

console = Console(highlight=False, soft_wrap=True)


def command(
    shapes: Annotated[
        str | None, typer.Option(help=f"Default: {SHAPES}, and more on cuda.")
    ] = None,
    dtypes: Annotated[
        str | None,
        typer.Option(
            help="Of fp32, bf16-autocast, bf16-inputs; bf16 stands for both. On cuda also tf32 and "
            "fp16-inputs. Default: fp32; on cuda also bf16-inputs."
        ),
    ] = None,
    peers: Annotated[str | None, typer.Option(help="Names, comma-separated. Default: all.")] = None,
    out: Annotated[
        Path | None, typer.Option(help="JSON Lines file. Default: this machine's in bench/results.")
    ] = None,
    device: Annotated[str, typer.Option(help="cpu (Linux) or cuda.")] = "cpu",
) -> None:
    """Measure the peak memory of a pass beyond inputs and gradients."""
    if device != "cpu":
        measure_cuda(device, shapes, dtypes, peers, out)
        return
    try:
        chosen_shapes, variants, chosen = (
            parse_shapes(shapes or SHAPES),
            parse_variants(dtypes or "fp32"),
            choose(peers),
        )
    except ValueError as error:
        raise typer.BadParameter(str(error)) from None
    if not STATUS.exists():
        console.print("[red]the memory suite reads /proc, which this system does not have[/]")
        raise typer.Exit(1)
    origin = provenance.collect()
    failed = False
    for (n, d), variant in itertools.product(chosen_shapes, variants):
        rows = []
        for peer in chosen:
            reason = peer.unavailable() or agreement.check_small(peer, [variant])
            if reason is None:
                measured = measure_in_child(n, d, variant.name, peer.name)
                reason = measured.get("problem")
            else:
                failed |= peer.unavailable() is None
            if reason is not None:
                console.print(f"{n} x {d} {variant.name} {peer.name}: not measured: {reason}")
                continue
            row = {"suite": "memory", "n": n, "d": d, "dtype": variant.name, "peer": peer.name}
            rows.append(row | {"source": peer.source} | measured | {"provenance": origin})
            console.print(
                f"{n} x {d} {variant.name} {peer.name}: {measured['extra_bytes'] / 2**20:.1f} MiB "
                f"beyond inputs and gradients = {measured['extra_over_inputs']:.3g} x the inputs"
            )
        if rows:
            results.merge(out or results.default_file(), rows)
    if failed:
        raise typer.Exit(1)


def measure_cuda(
    kind: str, shapes: str | None, dtypes: str | None, peers: str | None, out: Path | None
) -> None:
    """The suite on a CUDA device."""
    try:
        cases, chosen = gpu_memory.cases_of(shapes, dtypes), choose(peers, "cuda")
        device = devices.choose(kind)
    except ValueError as error:
        raise typer.BadParameter(str(error)) from None
    except RuntimeError as error:
        console.print(f"[red]{error}[/]")
        raise typer.Exit(1) from None
    out = out or results.default_file(device.slug())
    if gpu_memory.measure(cases, chosen, device, out, console).failures:
        raise typer.Exit(1)


def measure_in_child(n: int, d: int, dtype: str, peer: str) -> Row:
    """The figures of one case, or {'problem': why there are none}."""
    process = subprocess.run(
        [sys.executable, "-m", "bench.suites.memory", str(n), str(d), dtype, peer],
        cwd=provenance.ROOT,
        env=os.environ | {"BARLOW_FAST_CPU_POOL_MIB": "0"},
        capture_output=True,
        text=True,
    )
    if process.returncode == 0:
        return json.loads(process.stdout.splitlines()[-1])
    last = (process.stderr.strip().splitlines() or [f"exit status {process.returncode}"])[-1]
    memory = re.search(r"alloc|memory", last, re.IGNORECASE)
    return {"problem": f"does not fit into memory ({last})" if memory else last}


def measure(n: int, d: int, dtype: str, name: str) -> Row:
    """Runs one case in this process, which should be fresh."""
    variant, peer = VARIANTS[dtype], discover()[name]
    generator = torch.Generator().manual_seed(0)
    # Threads, libraries and code are loaded by a pass too small to matter.
    agreement.run(
        peer.build(8, 16, variant.dtype), random_pair(8, 16, variant.dtype, generator), variant
    )
    _limit_memory()
    pair = random_pair(n, d, variant.dtype, generator)
    loss = peer.build(n, d, variant.dtype)
    if peer.compiles:
        agreement.run(loss, pair, variant)
    _give_back_free_memory()
    before = _status("VmRSS")
    # The kernel's documented way to reset the high-water mark.
    Path("/proc/self/clear_refs").write_text("5")
    outcome = agreement.run(loss, pair, variant)
    peak = _status("VmHWM")
    inputs = sum(z.nbytes for z in pair)
    gradients = sum(gradient.nbytes for gradient in outcome.gradients)
    extra = max(peak - before - gradients, 0)
    return {
        "input_bytes": inputs,
        "gradient_bytes": gradients,
        "peak_bytes": peak - before,
        "extra_bytes": extra,
        "extra_over_inputs": round(extra / inputs, 4),
    }


def _status(key: str) -> int:
    return int(re.search(rf"^{key}:\s+(\d+) kB", STATUS.read_text(), re.MULTILINE)[1]) << 10


def _limit_memory() -> None:
    """Makes an allocation that cannot fit raise an error instead of waking the system's killer."""
    import resource

    available = (
        int(re.search(r"MemAvailable:\s+(\d+) kB", Path("/proc/meminfo").read_text())[1]) << 10
    )
    limit = _status("VmSize") + int(AVAILABLE_SHARE * available)
    resource.setrlimit(resource.RLIMIT_AS, (limit, limit))


def _give_back_free_memory() -> None:
    """Blocks that the C library keeps would be reused by the pass and hide part of its memory."""
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if trim is not None:
        trim(0)


def tables(rows: list[Row], brief: bool) -> str:
    """Markdown of one machine's rows."""
    if any("device" in row for row in rows):
        return gpu_tables.memory(rows)
    titles = {name: peer.title for name, peer in discover().items()}
    lines = [
        "| N × D | inputs | implementation | MiB extra | multiple of the inputs |",
        "| ---: | --- | --- | ---: | ---: |",
    ]
    for row in rows:
        extra, multiple = row["extra_bytes"] / 2**20, row["extra_over_inputs"]
        inputs = f"{row['input_bytes'] / 2**20:.4g} MiB, {VARIANTS[row['dtype']].title}"
        title = titles.get(row["peer"], row["peer"])
        lines.append(
            f"| {row['n']} × {row['d']} | {inputs} | {title} | {extra:.1f} | {multiple:.3g} |"
        )
    reading = (
        "Extra: the highest resident memory during one forward and backward pass, less what was "
        "resident before it (both inputs included) and less both gradients; each in a process of "
        "its own. Temporaries, saved matrices and packing buffers all count. The pool of reused "
        "outputs is off here; in normal use it keeps outputs of past steps for the next one. "
        "Implementations that are missing at a shape did not fit into memory."
    )
    return reading + "\n\n" + "\n".join(lines)


if __name__ == "__main__":
    print(json.dumps(measure(int(sys.argv[1]), int(sys.argv[2]), sys.argv[3], sys.argv[4])))
