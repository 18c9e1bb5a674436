"""Everything that a machine with a CUDA device can show, in parts, within a time, resumably.

From the root of the source tree, with any Python that has torch; nothing is installed and no
network is used. Results go to DIR: rows, test results, logs, and gpu-state.json, from which the
next run resumes. Exit status: 0 when all parts are complete, 1 when something failed, 2 without a
CUDA device, 75 when time was up first.
"""

from __future__ import annotations

import os
import shutil
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Annotated

from bench import cli, exits, lifetime, runner, sources, state
from bench.cli import Option
from bench.gpu.parts import PARTS
from bench.runner import Context, Part
from bench.state import State

RESULTS = sources.ROOT / "bench" / "results"
RESERVE = 5.0  # seconds at the end for the summary
PROBE_SECONDS = 120.0
NAMES = ", ".join(part.name for part in PARTS)


def command(
    parts: Annotated[
        str, Option(f"Of {NAMES}; NAME=SECONDS sets a part's limit. Default: all.")
    ] = "",
    budget_seconds: Annotated[float, Option("For all parts.")] = 480.0,
    resume: Annotated[bool, Option("Leave out what is complete.")] = False,
    resume_from: Annotated[
        Path | None, Option("Like --resume, from results in this folder.")
    ] = None,
    out: Annotated[Path, Option("Folder for the results.")] = RESULTS,
    commit: Annotated[str | None, Option("Of a copy of the tree that has no history.")] = None,
    compiled_shapes: Annotated[
        str | None,
        Option("Where peers under torch.compile take part in the loss; 'none': nowhere."),
    ] = None,
) -> int:
    """Test and measure everything that a machine with a CUDA device can show."""
    begun = time.monotonic()
    with cli.reading():
        some = chosen(parts)
    if commit:
        os.environ["BARLOW_FAST_COMMIT"] = commit
    device = probe()
    if "problem" in device:
        print(f"make gpu needs a CUDA device: {device['problem']}", file=sys.stderr)
        return exits.NO_DEVICE
    out = out.resolve()
    out.mkdir(parents=True, exist_ok=True)
    resume = resume or resume_from is not None
    earlier = (out, (resume_from or RESULTS).resolve())
    known = adopt(out, earlier, device) if resume else State(device)
    rows = out / f"{device['slug']}.jsonl"
    options = {"loss": ["--compiled-shapes", compiled_shapes]} if compiled_shapes else {}
    with tempfile.TemporaryDirectory() as scratch:
        context = Context(Path(scratch), rows, known, out, resume, "make gpu", options)
        left = begun + budget_seconds - RESERVE - time.monotonic()
        status = runner.run(some, context, left)
    print(summary(some, context, time.monotonic() - begun))
    return status


def chosen(text: str, parts: Sequence[Part] = PARTS) -> list[Part]:
    """'tests=100,loss' -> these parts in their usual order; ValueError for an unknown name."""
    given = dict(item.strip().partition("=")[::2] for item in text.split(",")) if text else {}
    known = {part.name: part for part in parts}
    return [
        replace(known[name], seconds=float(given.get(name) or known[name].seconds))
        for name in cli.listed(",".join(given) or None, known, "part")
    ]


PROBE = """
import json, torch
from bench import devices
cuda = devices.choose("cuda")
found = {"name": cuda.properties.name, "slug": cuda.slug, "torch": str(torch.__version__)}
print(json.dumps(found))
"""


def probe() -> dict[str, str]:
    """name, slug and torch of the device, or {'problem': why there is none}. In a process of its
    own: this one never holds a CUDA context."""
    environment = runner.source_tree_environment()
    try:
        return lifetime.result_of(["-c", PROBE], PROBE_SECONDS, environment)
    except lifetime.ChildError as error:
        problem = str(error).partition(": ")[2] or str(error)
    if "torch" in problem and "module" in problem:
        problem = f"{sys.executable} has no torch (choose another with PYTHON=...)"
    return {"problem": problem}


def adopt(out: Path, folders: Sequence[Path], device: dict[str, str]) -> State:
    """The state of the first folder that has one of this device; rows are copied to `out`."""
    target = out / f"{device['slug']}.jsonl"
    for folder in folders:
        rows = folder / target.name
        if rows.exists() and not target.exists():
            shutil.copyfile(rows, target)
    states = (state.load(folder, device) for folder in folders)
    return next((found for found in states if found is not None), State(device))


def summary(parts: Sequence[Part], context: Context, seconds: float) -> str:
    """What was done, in a table; the end of the output is what is read."""
    lines = ["", f"{context.state.device['name']}, {seconds:.0f} s"]
    lines += [*runner.summary(parts, context.state), f"results: {context.out}"]
    if runner.status(parts, context.state) == exits.UNFINISHED:
        lines.append("time was up: the same command with --resume continues (make gpu does so)")
    return "\n".join(lines)


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the command; an exit status of `bench.exits`."""
    return cli.run(command, arguments, "python -m bench.gpu", __doc__)


if __name__ == "__main__":
    sys.exit(main())
