"""What the compiler makes of the Triton kernels on each architecture, and what each launch costs.

No device is needed: kernels are recorded from a step on tensors without data, planned for the
reference device of an architecture, and compiled ahead of time. Times are modelled: each launch
takes the longer of its operations and its bytes at the rates below, operations as far as the
programs fill whole waves, and LAUNCH.
"""

from __future__ import annotations

import functools
import math
import os
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, NamedTuple

from bench import cli, floor, provenance, results
from bench.cli import Option
from bench.markdown import SHAPE, Column, details, joined, reading, table_of, unmeasured
from bench.results import Row, listed

SECTION = "Triton kernels as compiled"
origin = functools.partial(unmeasured, "compilation")
FILE = results.FOLDER / "compilation.jsonl"

KIND = "launches"
# The loss where N is small, at the paper's size, at a wide projector, and where N >> D.
SHAPES = (
    ("gram", 256, 8192),
    ("gram", 2048, 8192),
    ("gram", 1024, 65536),
    ("correlation", 4096, 512),
    ("correlation", 65536, 128),
    ("correlation", 169343, 256),
)
# What one of eight GPUs does when each has a slice of the columns; both views of 256 photographs.
# These are listed in bfloat16, and have no floor.
PARTS = {
    ("tiles", 2048, 1024): "{n} × {d} columns of one of eight GPUs",
    ("views", 512, 224): "the photometric part of {n} views of {d} × {d} × 3",
}
LAUNCH = 1.5e-6  # seconds from one kernel of a captured graph to the next


class Rates(NamedTuple):
    """Peaks of a device by its data sheet, dense: operations and bytes a second; and the limits of
    one SM that decide how many programs share it."""

    half: float
    tf32: float
    memory: float
    shared: int  # bytes of shared memory, of which each program takes RESERVED more than its own

    def products(self, precision: str) -> float:
        """The rate of products; float32 takes three of TF32."""
        return {"tf32": self.tf32, "fp32": self.tf32 / 3}.get(precision, self.half)


RATES = {
    80: Rates(312e12, 156e12, 2.04e12, 164 << 10),
    90: Rates(989e12, 495e12, 3.35e12, 228 << 10),
    100: Rates(2250e12, 1125e12, 8.0e12, 228 << 10),
}
# What large products and copies reach of these: an H100's 790 TFLOP/s and 3.0 TB/s.
PRODUCT_SHARE, MEMORY_SHARE = 0.8, 0.9
REGISTERS, REGISTER_BLOCK, WARPS, RESERVED = 1 << 16, 256, 64, 1 << 10


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
        rows += launches_of(architecture, taken, origin)
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
    steps = [row for row in rows if row["dtype"].endswith(KIND)]
    kernels = [row for row in rows if not row["dtype"].endswith(KIND)]
    groups = sorted(listed(kernels, "kernel", "dtype").items())
    return joined(
        reading("compilation kernels"),
        table_of(SUMMARY, [variants for _, variants in groups]),
        details("Every variant", table_of(DETAILS, kernels)),
        steps_and_launches(steps),
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


def launches_of(architecture: int, found: Mapping[tuple, Any], origin: Row) -> list[Row]:
    """The launches of every step on the reference device of an architecture, in order; none where
    no rates are stated.

    found: resources by `inspection.identity` of a launch.
    """
    from barlow_fast.kernels.triton import inspection
    from barlow_fast.kernels.triton.launch import REFERENCE_DEVICES

    device, lines = REFERENCE_DEVICES[architecture], []
    if architecture not in RATES:
        return lines
    cases = [(shape, operands) for shape in SHAPES for operands in inspection.OPERANDS]
    cases += [(shape, inspection.OPERANDS[0]) for shape in PARTS]
    for shape, (dtype, precision) in cases:
        case = inspection.Case(*shape, dtype, precision)
        step = {"suite": "compilation", "form": case.form, "n": case.n, "d": case.d}
        step |= {"dtype": f"sm_{architecture} {KIND}", "precision": precision}
        step |= {"inputs": str(dtype).removeprefix("torch."), "sms": device.num_sms}
        for index, launch in enumerate(inspection.record_step(case, device)):
            taken = found[inspection.identity(launch)]
            row = step | {"index": index, "kernel": launch.name, "grid": list(launch.grid)}
            row |= {"warps": launch.warps, "registers": taken.registers}
            row |= {"shared": taken.shared, "flops": launch.flops, "bytes": launch.bytes}
            lines.append(row | {"provenance": origin})
    return lines


def programs(row: Row) -> int:
    """Of a launch."""
    return math.prod(row["grid"])


def resident(row: Row) -> int:
    """Programs of a launch that one SM runs at a time, by registers, shared memory and warps."""
    block = -(-32 * row["registers"] // REGISTER_BLOCK) * REGISTER_BLOCK
    rates = RATES[architecture(row)]
    by_memory = rates.shared // (row["shared"] + RESERVED)
    return min(REGISTERS // (block * row["warps"]), by_memory, WARPS // row["warps"])


def waves(row: Row) -> float:
    """Programs by those that run at a time."""
    return programs(row) / (resident(row) * row["sms"])


def efficiency(row: Row) -> float:
    """The mean work of an SM by the work of that with the most programs."""
    each = programs(row) / row["sms"]
    return each / math.ceil(each)


def seconds(row: Row) -> float:
    """Modelled, of one launch."""
    rates = RATES[architecture(row)]
    products = row["flops"] / (PRODUCT_SHARE * rates.products(row["precision"]) * efficiency(row))
    return max(products, row["bytes"] / (MEMORY_SHARE * rates.memory)) + LAUNCH


def architecture(row: Row) -> int:
    """The number in 'sm_90 launches'."""
    return int(row["dtype"].split()[0].removeprefix("sm_"))


def _floor(step: list[Row]) -> float:
    """Seconds that no implementation can beat at these rates (`bench.floor`)."""
    row = step[0]
    rates = RATES[architecture(row)]
    gemm = PRODUCT_SHARE * rates.products(row["precision"]) / 1e9
    copy = MEMORY_SHARE * rates.memory / 1e9
    return floor.floor_seconds(row["n"], row["d"], _element(row), gemm, copy)


def _element(row: Row) -> int:
    return 4 if row["inputs"] == "float32" else 2


def _bytes(step: list[Row]) -> float:
    row = step[0]
    least = floor.moved_bytes(row["n"], row["d"], _element(row))
    return sum(line["bytes"] for line in step) / least


def _modelled(step: list[Row]) -> float:
    return sum(map(seconds, step))


STEPS = [
    Column(SHAPE.head, lambda step: SHAPE.cell(step[0])),
    Column("architecture", lambda step: f"sm_{architecture(step[0])}", left=True),
    Column("inputs", lambda step: step[0]["inputs"], left=True),
    Column("precision", lambda step: step[0]["precision"], left=True),
    Column("launches", len),
    Column(
        "lowest wave efficiency of a product",
        lambda step: min(efficiency(row) for row in step if row["flops"]),
        ".2f",
    ),
    Column("bytes / minimum", _bytes, ".2f"),
    Column("modelled µs", lambda step: 1e6 * _modelled(step), ".3g"),
    Column("floor µs", lambda step: 1e6 * _floor(step), ".3g"),
    Column("floor / modelled", lambda step: _floor(step) / _modelled(step), ".2f"),
]
LAUNCHES = [
    Column("launch", "kernel", "`{}`".format, left=True),
    Column("programs", lambda row: " × ".join(map(str, row["grid"]))),
    Column("registers", "registers"),
    Column("shared KiB", lambda row: row["shared"] / 1024, ".0f"),
    Column("programs per SM", resident),
    Column("waves", waves, ".2f"),
    Column("wave efficiency", efficiency, ".2f"),
    Column("GFLOP", lambda row: row["flops"] / 1e9, ".4g"),
    Column("MB", lambda row: row["bytes"] / 1e6, ".4g"),
    Column("modelled µs", lambda row: 1e6 * seconds(row), ".3g"),
]


def steps_and_launches(lines: list[Row]) -> str:
    """Steps one by one, then the launches of those in bfloat16 on sm_90."""
    steps = [
        sorted(step, key=lambda row: row["index"])
        for step in listed(lines, "dtype", "form", "n", "d", "inputs", "precision").values()
    ]
    shown = [s for s in steps if architecture(s[0]) == 90 and s[0]["inputs"] == "bfloat16"]
    rates = "; ".join(
        f"sm_{name} {each.half / 1e12:g} and {each.tf32 / 1e12:g} TFLOP/s, "
        f"{each.memory / 1e12:g} TB/s"
        for name, each in RATES.items()
    )
    shares = {"product": PRODUCT_SHARE, "memory": MEMORY_SHARE, "launch": 1e6 * LAUNCH}
    return joined(
        reading("compilation launches", rates=rates, **shares),
        table_of(STEPS, [step for step in steps if not _title(step)]),
        *(details(_launches(step), table_of(LAUNCHES, step)) for step in shown),
    )


def _title(step: list[Row]) -> str | None:
    """Of one of PARTS."""
    row = step[0]
    title = PARTS.get((row["form"], row["n"], row["d"]))
    return title and title.format(**row)


def _launches(step: list[Row]) -> str:
    return f"Launches on sm_90 in bfloat16: {_title(step) or SHAPE.cell(step[0])}"
