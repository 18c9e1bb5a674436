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

from bench import cli, launches, provenance, results
from bench.cli import Option
from bench.markdown import Column, details, joined, reading, table_of, unmeasured
from bench.results import Row, listed

SECTION = "Triton kernels as compiled"
origin = functools.partial(unmeasured, "compilation")
FILE = results.FOLDER / "compilation.jsonl"


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
        taken = {inspection.identity(launch): resources for _, launch, resources in found}
        rows += launches.rows(architecture, taken, origin)
        spills = sum(r.spilled > 0 for _, _, r in found)
        print(f"sm_{architecture}: {len(found)} kernels, {spills} of them spill")
    if left:
        names = ", ".join(f"sm_{architecture}" for architecture in left)
        print(f"left out, as {minutes:g} minutes would not do: {names}")
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


def tables(rows: list[Row]) -> str:
    """Resources by kernel and architecture, and the launches of some steps."""
    steps = [row for row in rows if row["dtype"].endswith(launches.KIND)]
    kernels = [row for row in rows if not row["dtype"].endswith(launches.KIND)]
    groups = sorted(listed(kernels, "kernel", "dtype").items())
    return joined(
        reading("compilation kernels"),
        table_of(SUMMARY, [variants for _, variants in groups]),
        details("Every variant", table_of(DETAILS, kernels)),
        launches.tables(steps),
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
