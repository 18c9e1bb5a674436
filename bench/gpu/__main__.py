"""Everything that a machine with a CUDA device can show, in parts, within a time, resumably.

From the root of the source tree, with any Python that has torch; nothing is installed and no
network is used. Results go to DIR: rows, test results, logs, and gpu-state.json, from which the
next run goes on. Exit status: 0 when all parts are complete, 1 when something failed, 2 without a
CUDA device, 75 when time was up first.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

from bench import lifetime
from bench.gpu import child, exits, sources, state
from bench.gpu.parts import PARTS, Context, Part
from bench.gpu.state import COMPLETE, FAILED, SKIPPED, State

RESULTS = sources.ROOT / "bench" / "results"
BUDGET = 540.0
LEAST = 15.0  # seconds with which a part is begun
RESERVE = 5.0  # seconds at the end for the summary
TAIL = 15  # lines of the log that a failed part shows
LOG_BYTES = 8 << 20
PROBE_SECONDS = 120.0


def parser() -> argparse.ArgumentParser:
    """The options."""
    names = ", ".join(part.name for part in PARTS)
    options = argparse.ArgumentParser(
        prog="python -m bench.gpu",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    options.add_argument(
        "--parts", default="", help=f"of {names}; NAME=SECONDS sets a part's limit. Default: all"
    )
    options.add_argument("--budget-seconds", type=float, default=BUDGET, help="for all parts")
    options.add_argument("--resume", action="store_true", help="leave out what is complete")
    options.add_argument(
        "--resume-from", type=Path, metavar="DIR", help="like --resume, from results in DIR"
    )
    options.add_argument("--out", type=Path, default=RESULTS, metavar="DIR", help="for the results")
    options.add_argument("--commit", help="of a copy of the tree that has no history")
    options.add_argument(
        "--compiled-shapes",
        metavar="SHAPES",
        help="where peers under torch.compile take part in the loss; 'none': nowhere",
    )
    return options


def chosen(text: str, parts: Sequence[Part] = PARTS) -> list[Part]:
    """'tests=100,loss' -> these parts in their usual order; ValueError for an unknown name."""
    if not text:
        return list(parts)
    limits: dict[str, float | None] = {}
    for item in text.split(","):
        name, _, seconds = item.strip().partition("=")
        if name not in {part.name for part in parts}:
            raise ValueError(
                f"unknown part {name!r}; known are {', '.join(part.name for part in parts)}"
            )
        limits[name] = float(seconds) if seconds else None
    return [
        Part(part.name, limits[part.name] or part.seconds, part.sources, part.run)
        for part in parts
        if part.name in limits
    ]


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the command; an exit status of `bench.gpu.exits`."""
    options = parser().parse_args(arguments)
    begun = time.monotonic()
    try:
        parts = chosen(options.parts)
    except ValueError as error:
        parser().error(str(error))
    if options.commit:
        os.environ["BARLOW_FAST_COMMIT"] = options.commit
    device = probe()
    if "problem" in device:
        print(f"make gpu needs a CUDA device: {device['problem']}", file=sys.stderr)
        return exits.NO_DEVICE
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    out = options.out.resolve()
    out.mkdir(parents=True, exist_ok=True)
    resume = options.resume or options.resume_from is not None
    earlier = (out, (options.resume_from or RESULTS).resolve())
    known = adopt(out, earlier, device) if resume else State(device)
    with tempfile.TemporaryDirectory() as scratch:
        extra = ["--compiled-shapes", options.compiled_shapes] if options.compiled_shapes else []
        context = Context(out, Path(scratch), device["slug"], known, resume, {"loss": extra})
        run(parts, context, begun + options.budget_seconds - RESERVE)
    print(summary(parts, context, time.monotonic() - begun))
    return status(parts, known)


def probe() -> dict[str, str]:
    """The device as `bench.gpu.probe` finds it."""
    try:
        done = subprocess.run(
            [sys.executable, "-m", "bench.gpu.probe"],
            cwd=sources.ROOT,
            env=os.environ | child.source_tree_environment(),
            capture_output=True,
            text=True,
            timeout=PROBE_SECONDS,
            preexec_fn=lifetime.tied(),
        )
        return json.loads(done.stdout.splitlines()[-1])
    except (subprocess.TimeoutExpired, IndexError, json.JSONDecodeError) as error:
        return {"problem": f"asking torch for one failed ({type(error).__name__})"}


def adopt(out: Path, folders: Sequence[Path], device: dict[str, str]) -> State:
    """The state of the first folder that has one of this device; rows are copied to `out`."""
    target = out / f"{device['slug']}.jsonl"
    for folder in folders:
        rows = folder / target.name
        if rows.exists() and not target.exists():
            shutil.copyfile(rows, target)
    states = (state.load(folder, device) for folder in folders)
    return next((found for found in states if found is not None), State(device))


def run(parts: Sequence[Part], context: Context, end: float) -> None:
    """Runs the parts one after the other until `end` on the monotonic clock."""
    for part in parts:
        progress = context.state.part(part.name, sources.fingerprint(part.sources))
        if context.resume and progress.settled(progress.sources):
            print(f"{part.name}: complete in an earlier run", flush=True)
            continue
        if not context.resume:
            progress.finished = {}
        seconds = min(part.seconds, end - time.monotonic())
        if seconds < min(LEAST, part.seconds):
            progress.status, progress.detail = state.PARTIAL, progress.detail or "not begun"
            continue
        print(f"{part.name}: at most {seconds:.0f} s ...", flush=True)
        logged = context.log.stat().st_size if context.log.exists() else 0
        start = time.monotonic()
        try:
            part.run(context, progress, seconds)
        except Exception as error:  # one part does not stop the others
            progress.status, progress.detail = FAILED, f"{type(error).__name__}: {error}"
        progress.seconds = round(time.monotonic() - start, 1)
        print(f"{part.name}: {progress.status}, {progress.detail}", flush=True)
        if progress.status == FAILED:
            print(tail(context.log, logged), flush=True)
        shorten(context.log)
        context.state.save(context.out)
    context.state.save(context.out)


def tail(log: Path, since: int = 0) -> str:
    """The last lines of the log after its first `since` bytes, indented."""
    text = log.read_bytes()[since:] if log.exists() else b""
    lines = text.decode(errors="replace").splitlines()
    return "\n".join(f"    {line[:160]}" for line in lines[-TAIL:])


def shorten(log: Path) -> None:
    """Keeps the end of a log that has become too long."""
    if log.exists() and log.stat().st_size > LOG_BYTES:
        log.write_bytes(log.read_bytes()[-LOG_BYTES // 2 :])


def status(parts: Sequence[Part], known: State) -> int:
    """The exit status."""
    found = {known.parts[part.name].status for part in parts}
    if FAILED in found:
        return exits.FAILED
    return exits.COMPLETE if found <= {COMPLETE, SKIPPED} else exits.UNFINISHED


def summary(parts: Sequence[Part], context: Context, seconds: float) -> str:
    """What was done, in a table; the end of the output is what is read."""
    lines = ["", f"{context.state.device['name']}, {seconds:.0f} s", *timings(context.rows)]
    for part in parts:
        progress = context.state.parts[part.name]
        lines.append(
            f"  {part.name:<10} {progress.status:<9} {progress.seconds:6.0f} s  {progress.detail}"
        )
    lines.append(f"results: {context.out}")
    if status(parts, context.state) == exits.UNFINISHED:
        lines.append("time was up: the same command with --resume goes on (make gpu does so)")
    return "\n".join(lines)


def timings(rows: Path, most: int = 9) -> list[str]:
    """The first groups of the file: ours, and the fastest of the others, replayed from a graph."""
    text = rows.read_text(encoding="utf-8") if rows.exists() else ""
    groups: dict[tuple, dict[str, dict]] = {}
    for row in map(json.loads, text.splitlines()):
        if row["suite"] == "loss":
            groups.setdefault((row["n"], row["d"], row["dtype"]), {})[row["peer"]] = row
    lines = []
    for (n, d, dtype), peers in groups.items():
        times = {name: _fastest(row) for name, row in peers.items() if _fastest(row) is not None}
        ours = times.get("ours")
        others = {name: t for name, t in times.items() if not name.startswith("ours")}
        best = min(others, key=others.get) if others else None
        parts = [f"  {n}x{d} {dtype}: floor {peers[next(iter(peers))]['floor_ms']:.3g} ms"]
        parts.append(f"ours {ours:.3g}" if ours is not None else "ours –")
        parts += [f"best other {best} {times[best]:.3g}"] if best else []
        lines.append(", ".join(parts))
    return lines[:most]


def _fastest(row: dict) -> float | None:
    """Milliseconds: replayed where the peer can be captured, else called."""
    return row["graph_ms"] if row["graph_ms"] is not None else row["median_ms"]


if __name__ == "__main__":
    sys.exit(main())
