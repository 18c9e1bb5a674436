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
import subprocess
import sys
from pathlib import Path
from typing import Annotated

import torch

from bench import agreement, devices, lifetime, memory_limit, provenance, results
from bench.gpu import memory as gpu_memory
from bench.gpu import tables as gpu_tables
from bench.inputs import VARIANTS, parse_shapes, parse_variants, random_pair
from bench.optional import Console, typer
from bench.peers import choose, discover
from bench.results import Row

SECTION = "Memory beyond inputs and gradients"
SHAPES = "256x8192,512x65536"
QUICK_SHAPES, QUICK_PEERS = "256x4096", "ours,official,gram-plain"
NO_MEMORY = "does not fit into memory"
SECONDS = 180.0  # for one measurement

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
    peers: Annotated[
        str | None,
        typer.Option(help="Names, comma-separated, or 'all'. Default: all; on cuda some of them."),
    ] = None,
    out: Annotated[
        Path | None, typer.Option(help="JSON Lines file. Default: this machine's in bench/results.")
    ] = None,
    device: Annotated[str, typer.Option(help="cpu (Linux) or cuda.")] = "cpu",
    quick: Annotated[
        bool, typer.Option("--quick", help="cpu: one shape, three peers; no file without --out.")
    ] = False,
) -> None:
    """Measure the peak memory of a pass beyond inputs and gradients."""
    if device != "cpu":
        measure_cuda(device, shapes, dtypes, peers, out)
        return
    try:
        chosen_shapes, variants, chosen = (
            parse_shapes(shapes or (QUICK_SHAPES if quick else SHAPES)),
            parse_variants(dtypes or "fp32"),
            choose(peers or (QUICK_PEERS if quick else None)),
        )
    except ValueError as error:
        raise typer.BadParameter(str(error)) from None
    if not memory_limit.STATUS.exists():
        console.print("[red]the memory suite reads /proc, which this system does not have[/]")
        raise typer.Exit(1)
    if peers is None:  # compiling changes the speed; its memory is compiled peers' own, by name
        chosen = [peer for peer in chosen if not peer.compiles]
    if out is None and not quick:
        out = results.default_file()
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
            if reason is not None and not told_as_row(reason):
                console.print(f"{n} x {d} {variant.name} {peer.name}: not measured: {reason}")
                continue
            row = {"suite": "memory", "n": n, "d": d, "dtype": variant.name, "peer": peer.name}
            rows.append(row | {"source": peer.source} | measured | {"provenance": origin})
            told = reason or (
                f"{measured['extra_bytes'] / 2**20:.1f} MiB beyond inputs and gradients = "
                f"{measured['extra_over_inputs']:.3g} x the inputs"
            )
            console.print(f"{n} x {d} {variant.name} {peer.name}: {told}", markup=False)
        if rows and out is not None:
            results.merge(out, rows)
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


def told_as_row(problem: str) -> bool:
    """Whether a problem is a result: a peer that needs too much memory, not one that is wrong."""
    return problem.startswith(NO_MEMORY)


def measure_in_child(
    n: int, d: int, dtype: str, peer: str, limit_bytes: int = 0, seconds: float = SECONDS
) -> Row:
    """The figures of one case, or {'problem': why there are none}.

    limit_bytes: what the pass may use, inputs and gradients included; 0 for most of what is free.
    """
    arguments = [str(n), str(d), dtype, peer, str(limit_bytes)]
    try:
        process = subprocess.run(
            [sys.executable, "-m", "bench.suites.memory", *arguments],
            cwd=provenance.ROOT,
            env=os.environ | {"BARLOW_FAST_CPU_POOL_MIB": "0"},
            capture_output=True,
            text=True,
            timeout=seconds,
            preexec_fn=lifetime.tied(),
        )
    except subprocess.TimeoutExpired:
        return {"problem": f"took more than {seconds:.0f} s"}
    if process.returncode == 0:
        return json.loads(process.stdout.splitlines()[-1])
    last = (process.stderr.strip().splitlines() or [f"exit status {process.returncode}"])[-1]
    if memory_limit.TOLD.search(last):
        return {"problem": f"{NO_MEMORY} ({last})"}
    return {"problem": last}


def measure(n: int, d: int, dtype: str, name: str, limit_bytes: int = 0) -> Row:
    """Runs one case in this process, which should be fresh."""
    variant, peer = VARIANTS[dtype], discover()[name]
    generator = torch.Generator().manual_seed(0)
    # Threads, libraries and code are loaded by a pass too small to matter.
    agreement.run(
        peer.build(8, 16, variant.dtype), random_pair(8, 16, variant.dtype, generator), variant
    )
    with memory_limit.within(limit_bytes or None):
        pair = random_pair(n, d, variant.dtype, generator)
        loss = peer.build(n, d, variant.dtype)
        if peer.compiles:
            agreement.run(loss, pair, variant)
        _give_back_free_memory()
        before = memory_limit.of_process("VmRSS")
        # The kernel's documented way to reset the high-water mark.
        Path("/proc/self/clear_refs").write_text("5")
        outcome = agreement.run(loss, pair, variant)
        peak = memory_limit.of_process("VmHWM")
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
        variant = VARIANTS[row["dtype"]]
        size = 2 * row["n"] * row["d"] * variant.dtype.itemsize
        cells = f"{row['n']} × {row['d']} | {size / 2**20:.4g} MiB, {variant.title}"
        title = titles.get(row["peer"], row["peer"])
        figures = "no memory | –"
        if "problem" not in row:
            figures = f"{row['extra_bytes'] / 2**20:.1f} | {row['extra_over_inputs']:.3g}"
        lines.append(f"| {cells} | {title} | {figures} |")
    reading = (
        "Extra: the highest resident memory during one forward and backward pass, less what was "
        "resident before it (both inputs included) and less both gradients; each in a process of "
        "its own. Temporaries, saved matrices and packing buffers all count. The pool of reused "
        "outputs is off here; in normal use it keeps outputs of past steps for the next one. "
        "*No memory*: more than most of what the machine had free."
    )
    return reading + "\n\n" + "\n".join(lines)


if __name__ == "__main__":
    n, d, dtype, peer, limit = sys.argv[1:]
    print(json.dumps(measure(int(n), int(d), dtype, peer, int(limit))))
