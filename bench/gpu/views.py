"""Views on a CUDA device: the part `views` of `python -m bench.gpu`.

The photometric kernel alone, and whole loaders: images in memory and JPEG files. Each is checked
before it is timed: the kernel against plain torch, a loader's first batch against torchvision where
torchvision is installed.
"""

from __future__ import annotations

import argparse
import importlib.util
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import torch

from barlow_fast import kernels
from barlow_fast.data import ViewLoader
from barlow_fast.data.sources import ArraySource, FolderSource
from barlow_fast.kernels.photometry import Parameter
from bench import devices, results
from bench.devices import Cpu, Cuda, NoGraphError, brief
from bench.gpu import exits, loss, sources
from bench.gpu.journal import Journal, lost
from bench.optional import Console
from bench.results import Row
from bench.suites import views as suite
from bench.views import feeds, images
from bench.views.feeds import CASES, Case

KERNEL_CALLS = 30  # samples of its time
WARM_UPS, ROUNDS, SECONDS = 6, 5, 2.0  # batches; turns and seconds of each, of a loader
CLOSE = 0.01  # levels of 255 from plain torch, on average, in float32
CHOSEN = {
    "kernel": replace(CASES["kernel"], batch_size=256),
    "arrays-32": CASES["arrays-32"],
    "photographs": CASES["photographs"],
}
ESTIMATE = {"kernel": 20.0, "arrays-32": 20.0, "photographs": 35.0}  # seconds

console = Console(highlight=False, soft_wrap=True)


def measure(
    device: Cpu | Cuda,
    out: Path,
    chosen: Sequence[Case] = tuple(CHOSEN.values()),
    limit: float | None = None,
    resume: bool = False,
    journal: Path | None = None,
    command: str | None = None,
) -> loss.Summary:
    """Rows of each case; a case for which the time is too short is left for the next run."""
    start = time.monotonic()
    origin = device.origin() | {"sources": sources.fingerprint(sources.VIEWED)}
    if command is not None:
        origin["command"] = command
    held = loss.finished(out, origin) if resume else set()
    known = lost(journal)
    todo = [case for case in chosen if key(case) not in held]
    summary = loss.Summary(left=len(todo))
    if not todo:
        return summary
    peaks = device.peaks()
    with tempfile.TemporaryDirectory() as temporary:
        for case in todo:
            name = case.name
            if name in known:
                summary.failures[name] = known[name]
                summary.left -= 1
                continue
            if limit is not None and time.monotonic() - start + ESTIMATE[name] > limit:
                continue
            log = Journal(journal)
            log.start(name)
            rows, failed = _rows(case, Path(temporary), device, peaks.copy)
            log.end(name)
            rows = [
                row | {"device": "cuda", "peaks": peaks.as_fields(), "provenance": origin}
                for row in rows
            ]
            for row in rows:
                console.print(suite.line_of(row), markup=False)
            if rows:
                results.merge(out, rows)
            summary.measured, summary.left = summary.measured + 1, summary.left - 1
            summary.failures |= failed
            device.release()
    return summary


def key(case: Case) -> tuple:
    """The group of a case's rows."""
    return results.group(suite.row(case, "", [1.0], 1.0))


def _rows(
    case: Case, temporary: Path, device: Cpu | Cuda, copy: float
) -> tuple[list[Row], dict[str, str]]:
    pillow = importlib.util.find_spec("PIL") is not None
    if not pillow and case.files and case.unit != "views":
        console.print(f"{case.name} is left out: PIL is not installed", markup=False)
        return [], {}
    try:
        if case.unit == "views":
            return _kernel_rows(case, temporary if pillow else None, device, copy)
        return _loader_rows(case, temporary, device, copy)
    except Exception as error:  # one case does not stop the others
        device.check_alive()
        console.print(f"{case.name} is not timed: {brief(error)}", markup=False)
        return [], {case.name: brief(error)}


def _kernel_rows(
    case: Case, temporary: Path | None, device: Cpu | Cuda, copy: float
) -> tuple[list[Row], dict[str, str]]:
    """Triton with and without blur, to both types; plain torch beside it."""
    folder = None
    if temporary is not None:
        distinct = min(case.batch_size, 60)
        folder = images.photographs(temporary / "kernel", distinct, case.batch_size)
    arguments = feeds.kernel_arguments(case, folder, device.torch)
    rows, failed = [], {}
    for backend, sharp, dtype in (
        ("triton", True, torch.bfloat16),
        ("triton", True, torch.float32),
        ("triton", False, torch.bfloat16),
        ("triton", False, torch.float32),
        ("aten", False, torch.float32),
    ):
        reason = kernels.why_unusable(backend, device.torch)
        if reason is not None:
            console.print(f"{backend} is left out: {reason}", markup=False)
            continue
        name = feeds.kernel_name(backend, sharp, dtype)
        run, given = kernels.load(backend).photometric, arguments
        if sharp:
            given = [(pixels, _sharp(rows), *rest) for pixels, rows, *rest in arguments]
        problem = differs(run, given)
        if problem is not None:
            failed[f"{case.name} {name}"] = problem
            console.print(f"{name} is not timed: {problem}", markup=False)
            continue

        def call(run=run, given=given, dtype=dtype) -> list[torch.Tensor]:
            return [run(*each, dtype) for each in given]

        views = sum(len(each[0]) for each in given)
        rates = [views / seconds for seconds in _samples(call, device)]
        # One group, and so one run: the type of the output is in the name.
        rows.append(suite.row(case, name, rates, copy, dtype.itemsize))
    return rows, failed


def _samples(call: Callable[[], object], device: Cpu | Cuda) -> list[float]:
    """Seconds of a call on the device, launches left out where a graph can be captured."""
    call()
    try:
        replay, _ = device.capture(call)
    except NoGraphError:
        return [device.call_seconds(call) for _ in range(KERNEL_CALLS)]
    samples = [device.replay_seconds(replay) for _ in range(KERNEL_CALLS)]
    device.new_graphs()
    return samples


def _sharp(rows: torch.Tensor) -> torch.Tensor:
    rows = rows.clone()
    rows[:, Parameter.BLUR_SIGMA] = 0
    return rows


def differs(run: Callable, arguments: list[tuple]) -> str | None:
    """How far a kernel is from plain torch, where that is too far."""
    plain = kernels.load("aten").photometric
    for each in arguments:
        std = each[-1].view(1, -1, 1, 1)
        error = (run(*each, torch.float32) - plain(*each, torch.float32)) * std * 255
        # Written so that NaN is a problem.
        if not float(error.abs().mean()) <= CLOSE:
            return f"{float(error.abs().mean()):.3g} levels from plain torch on average"
    return None


def _loader_rows(
    case: Case, temporary: Path, device: Cpu | Cuda, copy: float
) -> tuple[list[Row], dict[str, str]]:
    if case.files:
        source = FolderSource(images.photographs(temporary / "photographs"))
    else:
        source = ArraySource(images.pixels(case.side, len(case.views.mean)))
    with ViewLoader(source, case.views, case.batch_size, device=device.torch) as loader:
        batches = feeds.endless(loader)
        problem = _disagreement(loader, next(batches))
        if problem is not None:
            return [], {f"{case.name} {loader.chosen}": problem}
        for _ in range(WARM_UPS):
            next(batches)
        rates = [_turn(batches, device) for _ in range(ROUNDS)]
        return [suite.row(case, f"ours-{loader.chosen}", rates, copy)], {}


def _disagreement(loader: ViewLoader, batch) -> str | None:
    if importlib.util.find_spec("torchvision") is None:
        return None
    from bench.views import agreement

    here = tuple(view.cpu() for view in batch.views)
    return agreement.problem(loader, batch._replace(views=here, index=batch.index.cpu()))


def _turn(batches, device: Cpu | Cuda) -> float:
    """Images per second until the device has them."""
    device.check_alive()
    count, start = 0, time.perf_counter()
    while time.perf_counter() - start < SECONDS:
        count += len(next(batches).index)
    device.check_alive()
    return count / (time.perf_counter() - start)


def main(arguments: Sequence[str] | None = None) -> int:
    """The part `views` of `python -m bench.gpu`; an exit status of `bench.gpu.exits`."""
    options = argparse.ArgumentParser(prog="python -m bench.gpu.views", description=__doc__)
    options.add_argument("--out", type=Path, required=True, help="JSON Lines file of the rows")
    options.add_argument("--limit", type=float, help="seconds; what is left is for the next run")
    options.add_argument("--journal", type=Path, help="file that survives a crash")
    options.add_argument("--resume", action="store_true", help="leave out cases in the file")
    options.add_argument("--command", help="what the rows call the command")
    given = options.parse_args(arguments)
    try:
        device = devices.choose("cuda")
    except RuntimeError as error:
        print(error, file=sys.stderr)
        return exits.NO_DEVICE
    try:
        summary = measure(
            device, given.out, tuple(CHOSEN.values()), given.limit, given.resume,
            given.journal, given.command,
        )  # fmt: skip
    except devices.DeviceLostError as error:
        print(f"the CUDA context is broken: {error}", flush=True)
        return exits.RESTART
    print(f"{summary.measured} cases measured, {summary.left} left")
    if summary.left:
        return exits.UNFINISHED
    return exits.FAILED if summary.failures else exits.COMPLETE


if __name__ == "__main__":
    sys.exit(main())
