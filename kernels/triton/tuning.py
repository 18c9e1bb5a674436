"""Opt-in tuning: measures rows of the configuration table on the device at hand and keeps the best.

    python -m barlow_fast.kernels.triton.tuning                 # or: barlow-fast tune

Runs only on request. For every row of the table that the given shapes reach, the primitive is run
in each candidate configuration. Those that do not compile, do not fit or give other numbers are
dropped, the rest are timed in turns with cold caches. A row that beats the table's by more than the
noise is stored in a file for this device (`tuned.file_of`), which every later process reads.
Deleting the file undoes it.
"""

from __future__ import annotations

import argparse
import contextlib
import itertools
import statistics
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ...files import check_output
from .. import triton as kernels
from ..contract import Coefficients, GradientInputs
from . import configurations
from .launch import device_of
from .table import HALF, MIXED, PATHS, TABLE, Key, Product, row_of
from .tuned import START, file_of, save, why_invalid

WORTHWHILE = 0.97  # of the table's time; less is noise
REPEATS = 15
SHAPES = (
    (2048, 8192),
    (256, 8192),
    (1024, 8192),
    (169343, 256),
    (512, 8192),
    (8192, 4096),
    (128, 8192),
    (64, 8192),
    (16384, 64),
)
OPERANDS = ((torch.bfloat16, "bf16"), (torch.float32, "tf32"), (torch.float32, "fp32"))


def candidates(key: Key) -> list[Product]:
    """The configurations worth trying for a row: the table's first, then its neighbours."""
    table = TABLE[key]
    kernel, architecture, family, _ = key
    depth = 64 if family in (HALF, MIXED) else 32
    rows = [table]
    if table.path == "owned":
        for n, warps, stages in itertools.product((32, 64, 128), (4, 8, 16), (2, 3, 4)):
            if table.block_m * n <= 512 * 64 and table.block_m * n >= 64 * 64 * warps // 8:
                rows.append(Product(table.block_m, n, depth, warps, stages, "owned"))
    else:
        tiles = ((64, 64), (128, 64), (128, 128), (128, 256), (256, 128))
        for path, (m, n), warps, stages in itertools.product(
            PATHS[kernel], tiles, (4, 8), (2, 3, 4)
        ):
            if path == "tma" and architecture < 90:
                continue
            if path == "owned" or (path == "cublas" and (m, n, warps, stages) != (64, 64, 4, 2)):
                continue
            # An accumulator takes half of the registers at most; fewer warps hold smaller ones.
            if 64 * 64 * warps // 8 <= m * n <= 128 * 32 * warps:
                rows.append(Product(m, n, depth, warps, stages, path))
    distinct = dict.fromkeys(rows)
    return [row for row in distinct if why_invalid(key, row) is None]


def tune(
    shapes: Iterable[tuple[int, int]],
    operands: Iterable[tuple[torch.dtype, str]],
    device: torch.device,
    budget_seconds: float,
    report: Callable[[str], None] = print,
    measure: Callable[..., dict[Product, float]] | None = None,
) -> dict[Key, tuple[Product, dict[str, Any]]]:
    """Rows that beat the table's, with their times in milliseconds.

    Args:
        shapes: (N, D) pairs; each tunes the rows that it reaches, the first shape wins.
        operands: (input dtype, precision) pairs.
        device: a CUDA device.
        budget_seconds: what is not done by then is left as it is.
        report: called with a line of progress.
        measure: (key, rows, n, d, dtype, precision, device, deadline) -> milliseconds by row.
    """
    deadline = time.monotonic() + budget_seconds
    found: dict[Key, tuple[Product, dict[str, Any]]] = {}
    done: set[Key] = set()
    planned = device_of(torch.empty(0, device=device))
    for (n, d), (dtype, precision) in itertools.product(shapes, operands):
        form = "gram" if n <= d else "correlation"
        for kernel in (form, f"{form}_gradients"):
            key = row_of(kernel, planned.architecture, precision, dtype, n if form == "gram" else d)
            if key in done or time.monotonic() > deadline:
                continue
            done.add(key)
            rows = candidates(key)
            timed = (measure or measure_rows)(key, rows, n, d, dtype, precision, device, deadline)
            table = TABLE[key]
            if table not in timed:
                report(f"{key}: the table's row was not timed")
                continue
            best = min(timed, key=timed.__getitem__)
            gain = timed[best] / timed[table]
            report(
                f"{kernel} {n}x{d} {precision}: {len(timed)} of {len(rows)} rows timed, table "
                f"{timed[table]:.4f} ms, best {timed[best]:.4f} ms {tuple(best)}"
            )
            if gain < WORTHWHILE:
                measured = {"ms": timed[best], "table_ms": timed[table], "shape": [n, d]}
                found[key] = (best, measured)
    return found


def measure_rows(
    key: Key,
    rows: list[Product],
    n: int,
    d: int,
    dtype: torch.dtype,
    precision: str,
    device: torch.device,
    deadline: float,
) -> dict[Product, float]:
    """Median milliseconds of the primitive in each row that compiles and gives right numbers."""
    generator = torch.Generator(device).manual_seed(0)
    z_a, z_b = (
        torch.randn(n, d, dtype=torch.float32, device=device, generator=generator).to(dtype)
        for _ in range(2)
    )
    actions: dict[Product, Callable[[], tuple[Tensor, ...]]] = {}
    reference: tuple[Tensor, ...] | None = None
    for row in rows:
        if time.monotonic() > deadline:
            break
        action = _primitive(key, row, z_a, z_b, precision)
        try:
            outputs = action()
            torch.cuda.synchronize(device)
        except Exception:  # too much shared memory, too many registers: not a candidate here
            continue
        if reference is None:
            reference = outputs
        if all(_close(x, y) for x, y in zip(outputs, reference, strict=True)):
            actions[row] = _replayed(action)
    return _times(actions, device)


def _replayed(action: Callable[[], Any]) -> Callable[[], None]:
    """The action as a CUDA graph: its kernels without what planning and launching them costs."""
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        action()
    return graph.replay


def _close(x: Tensor, y: Tensor) -> bool:
    difference = (x.double() - y.double()).norm()
    return bool(difference <= 2e-2 * y.double().norm())


def _primitive(
    key: Key, row: Product, z_a: Tensor, z_b: Tensor, precision: str
) -> Callable[[], tuple[Tensor, ...]]:
    """A call of the primitive that `key` belongs to, in one configuration.

    What it returns is what can be compared between configurations: their matrices may differ in
    layout, their sums and gradients may not.
    """
    kernel = key[0]
    rows, sums = kernels.statistics(z_a, z_b, 1e-5, precision)
    one, coefficients = torch.ones((), device=z_a.device), Coefficients(1e-5, 0.1, -0.1, 1e-5)

    def forward() -> tuple[Tensor, ...]:
        if kernel.startswith("gram"):
            return kernels.gram_pair(z_a, z_b, rows, sums, precision)
        return kernels.correlation(z_a, z_b, rows, precision)

    inputs = None
    if kernel.endswith("_gradients"):
        matrices = forward()[:2]
        inputs = GradientInputs(z_a, z_b, rows, matrices, one, coefficients, precision)

    def action() -> tuple[Tensor, ...]:
        with overridden(key, row):
            if inputs is not None:
                return getattr(kernels, kernel)(inputs)
            return (forward()[2].sum(),) if kernel == "gram" else (forward()[1],)

    return action


@contextlib.contextmanager
def overridden(key: Key, row: Product) -> Iterator[None]:
    """Uses one row in the table's place."""
    before = configurations.override.get(key)
    configurations.override[key] = row
    configurations.forget_plans()
    try:
        yield
    finally:
        del configurations.override[key]
        if before is not None:
            configurations.override[key] = before
        configurations.forget_plans()


def _times(actions: dict[Product, Callable[[], Any]], device: torch.device) -> dict[Product, float]:
    """Medians in milliseconds, in turns, each call after a pass over memory that empties the
    cache."""
    cache = torch.cuda.get_device_properties(device).L2_cache_size
    eviction = torch.empty(4 * cache, dtype=torch.int8, device=device)
    samples: dict[Product, list[float]] = {row: [] for row in actions}
    for _ in range(REPEATS):
        for row, action in actions.items():
            eviction.zero_()
            start, stop = (torch.cuda.Event(enable_timing=True) for _ in range(2))
            start.record()
            action()
            stop.record()
            stop.synchronize()
            samples[row].append(start.elapsed_time(stop))
    return {row: statistics.median(times) for row, times in samples.items()}


def _shapes(text: str) -> list[tuple[int, int]]:
    try:
        pairs = [part.lower().split("x") for part in text.split(",")]
        return [(int(n), int(d)) for n, d in pairs]
    except ValueError:
        raise argparse.ArgumentTypeError(
            f"takes sizes N x D such as 256x8192,2048x8192, got {text!r}"
        ) from None


def _parser() -> argparse.ArgumentParser:
    usual = ",".join(f"{n}x{d}" for n, d in SHAPES)
    parser = argparse.ArgumentParser(prog="barlow-fast tune", description=__doc__.splitlines()[0])
    parser.add_argument(
        "--shapes",
        type=_shapes,
        default=SHAPES,
        help=f"Sizes N x D of embeddings, such as 256x8192,2048x8192. [default: {usual}]",
    )
    parser.add_argument(
        "--budget-seconds",
        type=float,
        default=600,
        help="Seconds after which nothing new is measured. [default: %(default)s]",
    )
    parser.add_argument(
        "--device", default="cuda", help="CUDA device to measure on. [default: %(default)s]"
    )
    parser.add_argument(
        "--out", type=Path, help="File to write. [default: the one that the kernels read]"
    )
    return parser


def main(arguments: list[str] | None = None) -> int:
    """The command line; 2 without a CUDA device."""
    options = _parser().parse_args(arguments)
    if not torch.cuda.is_available():
        print("tuning needs a CUDA device, and there is none", file=sys.stderr)
        return 2
    device = torch.device(options.device)
    name = torch.cuda.get_device_name(device)
    path = options.out or file_of(name)
    path.parent.mkdir(parents=True, exist_ok=True)
    check_output(path, START, option="--out")
    rows = tune(options.shapes, OPERANDS, device, options.budget_seconds)
    save(path, name, rows)
    print(f"{len(rows)} rows are faster than the table's; they are in {path}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
