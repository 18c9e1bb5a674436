"""What the compiler makes of the Triton kernels on each architecture, and what each launch moves.

No device is needed: kernels are recorded from a step on tensors without data, planned for the
reference device of an architecture, and compiled ahead of time.
"""

from __future__ import annotations

import functools
import os
import time
from pathlib import Path
from typing import Annotated

from bench import cli, provenance, results
from bench.cli import Option
from bench.markdown import Column, details, joined, reading, table_of, unmeasured
from bench.results import Row, listed

SECTION = "Triton kernels as compiled"
origin = functools.partial(unmeasured, "compilation")
FILE = results.FOLDER / "compilation.jsonl"

# Steps whose launches are listed one by one: small N, the paper's size, a graph encoder; what one
# of eight GPUs does when each has a slice of the columns; both views of 256 photographs.
STEPS = (
    ("gram", 256, 8192),
    ("gram", 2048, 8192),
    ("correlation", 169343, 256),
    ("tiles", 2048, 1024),
    ("views", 512, 224),
)
TITLES = {
    "tiles": "{n} × {d}, bfloat16 columns of one of eight GPUs: {count} forward and backward",
    "views": "The photometric part of {n} views of {d} × {d} × 3, to bfloat16: {count}",
}
TITLE = "{n} × {d}, bfloat16 inputs: {count} forward and backward"

# Rates of an H100 for the derived floor of a launch: an 8192^3 bf16 product on random data and a
# device-to-device copy, as measured on such cards (shared figures, not from this suite).
H100_FLOPS, H100_BYTES = 790e12, 3.0e12


def command(
    out: Annotated[Path, Option("JSON Lines file.")] = FILE,
    workers: Annotated[int, Option("Processes that compile.", least=1)] = os.cpu_count() or 1,
    architectures: Annotated[
        str | None, Option("Such as 90,100. Default: 80, 89, 90 and 100.")
    ] = None,
    minutes: Annotated[
        float | None,
        Option("No architecture is begun that would not be done by then; sm_90 always."),
    ] = None,
) -> None:
    """Compile every Triton kernel for sm_80, sm_89, sm_90 and sm_100; no GPU needed."""
    try:
        import triton

        from barlow_fast.kernels.triton import inspection
        from barlow_fast.kernels.triton.launch import REFERENCE_DEVICES
    except ImportError as error:
        raise cli.Refused(f"the Triton kernels cannot be imported: {error}") from None
    with cli.reading():
        chosen = parse_architectures(architectures, list(REFERENCE_DEVICES))
    origin = provenance.unmeasured("python -m bench compilation")
    origin["triton"] = triton.__version__
    rows, left, longest, begun = [], [], 0.0, time.monotonic()
    for architecture in chosen:
        start = time.monotonic()
        if longest and minutes is not None and start + longest > begun + 60 * minutes:
            left.append(architecture)
            continue
        found = inspection.survey(architecture, workers)
        longest = max(longest, time.monotonic() - start)
        rows += [_kernel_row(architecture, *each, origin) for each in found]
        spills = sum(r.spilled > 0 for _, _, r in found)
        print(f"sm_{architecture}: {len(found)} kernels, {spills} of them spill")
    if left:
        names = ", ".join(f"sm_{architecture}" for architecture in left)
        print(f"left out, as {minutes:g} minutes would not do: {names}")
    rows += launch_rows(origin)
    # Rows of architectures that were left out stay as they are.
    results.merge(out, rows, whole=len(chosen) - len(left) == len(REFERENCE_DEVICES))
    print(f"rows are in {out}; `python -m bench report` makes the tables")


def parse_architectures(text: str | None, known: list[int]) -> list[int]:
    """'90,100' -> [90, 100], for None all that are known; sm_90 first. ValueError for others."""
    text = text and text.replace("sm_", "")
    names = cli.listed(text, map(str, known), "architecture")
    return sorted(map(int, names), key=lambda each: (each != 90, each))


def _kernel_row(architecture: int, case, launch, resources, origin: Row) -> Row:
    found = {"suite": "compilation", "form": case.form, "n": case.n, "d": case.d}
    found |= {"dtype": f"sm_{architecture}", "inputs": str(case.dtype).removeprefix("torch.")}
    found |= {"precision": case.precision, "kernel": launch.name, "constants": launch.constants}
    found |= {"warps": launch.warps, "stages": launch.stages}
    return found | {**resources._asdict(), "provenance": origin}


def launch_rows(origin: Row) -> list[Row]:
    """The launches of whole steps in bfloat16 on the reference H100, in order."""
    import torch

    from barlow_fast.kernels.triton import inspection
    from barlow_fast.kernels.triton.launch import REFERENCE_DEVICES

    rows = []
    for form, n, d in STEPS:
        case = inspection.Case(form, n, d, torch.bfloat16, "bf16")
        for index, launch in enumerate(inspection.record_step(case, REFERENCE_DEVICES[90])):
            row = {"suite": "compilation", "form": form, "n": n, "d": d, "dtype": "launches"}
            row |= {"index": index, "kernel": launch.name, "grid": list(launch.grid)}
            row |= {"flops": launch.flops, "bytes": launch.bytes, "provenance": origin}
            rows.append(row)
    return rows


def tables(rows: list[Row]) -> str:
    """Resources by kernel and architecture, and the launches of some steps."""
    launches = [row for row in rows if row["dtype"] == "launches"]
    kernels = [row for row in rows if row["dtype"] != "launches"]
    groups = sorted(listed(kernels, "kernel", "dtype").items())
    return joined(
        reading("compilation kernels"),
        table_of(SUMMARY, [variants for _, variants in groups]),
        details("Every variant", table_of(DETAILS, kernels)),
        reading("compilation launches"),
        *(_launches(step) for step in listed(launches, "form", "n", "d").values()),
    )


def _instruction(row: Row) -> str:
    return f"{row['instruction']} {row['operands']}"


def _step(row: Row) -> str:
    return f"{row.get('form', '')} {row['n']}×{row['d']}".strip()


def _registers(variants: list[Row]) -> str:
    found = [row["registers"] for row in variants]
    return f"{min(found)}–{max(found)}"


def _spills(variants: list[Row]) -> str:
    spilled = [row for row in variants if row["spilled"]]
    if not spilled:
        return "0"
    shapes = sorted({_step(row) for row in spilled})
    return f"up to {max(row['spilled'] for row in spilled)} at {', '.join(shapes)}"


CODE = "`{}`".format
# One line per kernel and architecture: the worst of its variants.
SUMMARY = [
    Column("kernel", lambda variants: f"`{variants[0]['kernel']}`", left=True),
    Column("architecture", lambda variants: variants[0]["dtype"], left=True),
    Column("variants", len),
    Column("registers per thread", _registers),
    Column("spilled bytes", _spills),
    Column("shared KiB", lambda variants: max(row["shared"] for row in variants) / 1024, ".0f"),
    Column(
        "tensor-core instruction",
        lambda variants: (
            ", ".join(sorted({_instruction(row).strip() for row in variants} - {""})) or None
        ),
        left=True,
    ),
]
DETAILS = [
    Column("kernel", "kernel", CODE, left=True),
    Column("architecture", "dtype", left=True),
    Column("step", _step, left=True),
    *(Column(key, key, left=True) for key in ("inputs", "precision")),
    Column(
        "constants",
        lambda row: ", ".join(f"{key}={value}" for key, value in row["constants"].items()),
        left=True,
    ),
    *(Column(key, key) for key in ("warps", "stages", "registers", "spilled")),
    Column("shared bytes", "shared"),
    Column("instruction", _instruction, left=True),
]
LAUNCHES = [
    Column("launch", "kernel", CODE, left=True),
    Column("programs", lambda row: " × ".join(map(str, row["grid"]))),
    Column("GFLOP", lambda row: row["flops"] / 1e9, ".4g"),
    Column("MB", lambda row: row["bytes"] / 1e6, ".4g"),
    Column("derived floor, µs", "floor", ".3g"),
]


def _launches(step: list[Row]) -> str:
    """What each launch of a step computes and moves, with the floor that this implies."""
    lines = [
        row | {"floor": max(row["flops"] / H100_FLOPS, row["bytes"] / H100_BYTES) * 1e6}
        for row in sorted(step, key=lambda row: row["index"])
    ]
    total = sum(line["floor"] for line in lines)
    count = f"{len(step)} launch{'es' if len(step) > 1 else ''}"
    title = TITLES.get(step[0].get("form"), TITLE)
    return joined(
        f"**{title.format(n=step[0]['n'], d=step[0]['d'], count=count)}**",
        f"{table_of(LAUNCHES, lines)}\n| sum | | | | {total:.3g} |",
    )
