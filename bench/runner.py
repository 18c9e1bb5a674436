"""Parts of a run, one after the other, each in child processes and a time of its own; resumable.

`make bench` and `make gpu` are tables of parts for this runner. A part gets seconds and fills in
its progress; it does not raise for what a child process does. Standard library only: torch is in
the children.
"""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from bench import exits, lifetime
from bench.sources import MEASURED, ROOT, fingerprint
from bench.state import COMPLETE, FAILED, PARTIAL, SKIPPED, Progress, State, read_lines

GRACE = 10.0  # seconds between asking a process to end and ending it
LATE = "late"
MOST_RESTARTS = 8
LEAST = 15.0  # seconds with which a part is begun
TAIL = 15  # lines of the log that a failed part shows
# What a suite may be given by the runner, where it has the option.
OPTIONS = ("minutes", "out", "journal", "resume", "command")

Result = int | str


@dataclass(frozen=True)
class Context:
    """Where a part works.

    Attributes:
        scratch: folder that goes away.
        rows: JSON Lines file for the rows of suites; None for their own.
        state: of all parts.
        out: folder of the other results, of `log` and of the saved state; None where there are
            none, and children print to the terminal.
        resume: whether what is finished is left out.
        command: what the rows call the command.
        options: more arguments for the children of a part, by its name.
        grace: seconds beyond its time after which a suite is ended.
    """

    scratch: Path
    rows: Path | None
    state: State
    out: Path | None = None
    resume: bool = False
    command: str = ""
    options: Mapping[str, Sequence[str]] = field(default_factory=dict)
    grace: float = 0.0

    @property
    def log(self) -> Path | None:
        """Output of all children."""
        return None if self.out is None else self.out / "gpu-log.txt"


@dataclass(frozen=True)
class Part:
    """One part: its name, the most seconds it gets, how it runs, and what it depends on.

    `run(context, progress, seconds)` sets status and detail of `progress`.
    """

    name: str
    seconds: float
    run: Callable[[Context, Progress, float], None]
    sources: tuple[str, ...] = MEASURED


@dataclass(frozen=True)
class Command:
    """The `run` of a part that is one command of this Python; its last line is the detail.

    Attributes:
        arguments: with {out} for the folder of the results and {seconds} for the time.
        report: file there that holds its output; the log where it is ''.
        spare: seconds of the time that the command itself is not given.
    """

    arguments: tuple[str, ...]
    report: str = ""
    spare: float = 0.0

    def __call__(self, context: Context, progress: Progress, seconds: float) -> None:
        log = context.out / self.report if self.report else context.log
        if self.report:
            log.unlink(missing_ok=True)
        values = {"out": context.out, "seconds": f"{max(seconds - self.spare, 5):.0f}"}
        command = python(*(each.format(**values) for each in self.arguments))
        judge(progress, run_child(command, log, seconds), last_line(log))


@dataclass(frozen=True)
class Suite:
    """The `run` of a part that is a command of `python -m bench` and writes rows.

    Attributes:
        name: of the command.
        arguments: for it.
        takes: of OPTIONS, those that it has.
        file: of its rows where the context has none.
    """

    name: str
    arguments: tuple[str, ...] = ()
    takes: Sequence[str] = OPTIONS
    file: Path | None = None

    def __call__(self, context: Context, progress: Progress, seconds: float) -> None:
        journal = context.scratch / f"{self.name}.jsonl" if "journal" in self.takes else None

        def command(left: float) -> list[str]:
            # A second process of this run resumes where the first one broke.
            resume = context.resume or (journal is not None and journal.exists())
            given = {
                "minutes": f"{max(left - max(10.0, context.grace), 1) / 60:.3g}",
                "out": context.rows,
                "journal": journal,
                "command": context.command or None,
                "resume": "" if resume else None,
            }
            options = [*context.options.get(self.name, ()), *self.arguments]
            for name, value in given.items():
                if name in self.takes and value is not None:
                    options += [f"--{name}", *([str(value)] if value != "" else [])]
            return python("-m", "bench", self.name, *options)

        result = persevere(command, context.log, seconds + context.grace, journal)
        rows = [row for row in read_lines(context.rows or self.file) if row["suite"] == self.name]
        problems = sum(row.get("problem") is not None for row in rows)
        detail = f"{len(rows)} rows" + (f", {problems} with a problem" if problems else "")
        judge(progress, result, detail)
        if result == exits.UNUSABLE:
            progress.status, progress.detail = SKIPPED, last_line(context.log)


def python(*arguments: str) -> list[str]:
    """A command of this Python."""
    return [sys.executable, *arguments]


def persevere(
    command: Callable[[float], list[str]],
    log: Path | None,
    seconds: float,
    watched: Path | None,
    environment: Mapping[str, str] | None = None,
) -> Result:
    """Runs a command, again and again while it breaks but the file `watched` grows.

    `command(seconds)` is what to run in that time. Returns the result of the last one.
    """
    end, result = time.monotonic() + seconds, LATE
    for _ in range(MOST_RESTARTS):
        left, known = end - time.monotonic(), _size(watched)
        if left < 5:
            return LATE
        result = run_child(command(left), log, left, environment)
        broken = result == exits.RESTART or (isinstance(result, int) and result < 0)
        if not broken or _size(watched) <= known:
            return result
    return result


def run_child(
    command: Sequence[str],
    log: Path | None,
    limit: float,
    environment: Mapping[str, str] | None = None,
) -> Result:
    """The exit status of a command that imports the source tree, or LATE where it ran for more than
    `limit` seconds; its output is appended to `log`, or goes where this process's goes.

    Whatever interrupts this function ends the command, with all processes it started; they lead a
    session of their own, which a terminal's Ctrl-C does not reach.
    """
    with contextlib.ExitStack() as stack:
        output = None
        if log is not None:
            output = stack.enter_context(log.open("ab"))
            output.write(f"\n$ {' '.join(command)}\n".encode())
            output.flush()
        process = subprocess.Popen(
            command,
            stdout=output,
            stderr=subprocess.STDOUT if output else None,
            stdin=subprocess.DEVNULL,
            cwd=ROOT,
            env=os.environ | source_tree_environment() | dict(environment or {}),
            start_new_session=True,
            preexec_fn=lifetime.tied(),
        )
        try:
            return process.wait(limit)
        except subprocess.TimeoutExpired:
            return LATE
        finally:
            lifetime.stop(process, (signal.SIGINT, signal.SIGTERM), GRACE)


def _size(path: Path | None) -> int:
    return path.stat().st_size if path is not None and path.exists() else -1


def source_tree_environment() -> dict[str, str]:
    """Variables that make any Python import barlow_fast and bench from the source tree."""
    startup = ROOT / "bench" / "gpu" / "startup"
    present = os.environ.get("PYTHONPATH")
    path = os.pathsep.join([str(startup), str(ROOT), *([present] if present else [])])
    return {"PYTHONPATH": path, "PYTHONUNBUFFERED": "1"}


def judge(progress: Progress, result: Result, detail: str) -> None:
    """Status from the result of a child; the detail names what else ended it."""
    known = {exits.COMPLETE: COMPLETE, exits.UNFINISHED: PARTIAL, LATE: PARTIAL}
    progress.status, progress.detail = known.get(result, FAILED), detail
    if progress.status == FAILED and result != exits.FAILED:
        progress.detail = f"{detail}; ended with {result}"


def last_line(path: Path | None) -> str:
    """The last line with text, at most 100 characters of it."""
    known = path is not None and path.exists()
    lines = path.read_text(encoding="utf-8", errors="replace").splitlines() if known else []
    return next((line.strip()[:100] for line in reversed(lines) if line.strip()), "no output")


def run(parts: Sequence[Part], context: Context, seconds: float, carry: bool = False) -> int:
    """Runs the parts one after the other, all together for so many seconds, and with `carry` each
    for the seconds too that those before it have left over; the exit status. SIGTERM ends the run
    as Ctrl-C does, so that no child outlives this process."""
    due, before = time.monotonic(), signal.getsignal(signal.SIGTERM)
    end = due + seconds
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        for part in parts:
            due += part.seconds
            most = max(part.seconds, due - time.monotonic()) if carry else part.seconds
            _run(part, context, min(most, end - time.monotonic()))
    except KeyboardInterrupt:
        return exits.INTERRUPTED
    finally:
        signal.signal(signal.SIGTERM, before)
    return status(parts, context.state)


def _run(part: Part, context: Context, seconds: float) -> None:
    """Runs one part, unless it is complete or there is no time for it; shows what came of it."""
    progress = context.state.part(part.name, fingerprint(part.sources))
    if context.resume and progress.status == COMPLETE:
        print(f"{part.name}: complete in an earlier run", flush=True)
        return
    if not context.resume:
        progress.finished = {}
    if seconds < min(LEAST, part.seconds):
        progress.status, progress.detail = PARTIAL, progress.detail or "not begun"
        return
    print(f"{part.name}: at most {seconds:.0f} s ...", flush=True)
    logged, start = _size(context.log), time.monotonic()
    try:
        part.run(context, progress, seconds)
    except KeyboardInterrupt:
        progress.status, progress.detail = FAILED, "interrupted"
        raise
    except Exception as error:  # one part does not stop the others
        progress.status, progress.detail = FAILED, f"{type(error).__name__}: {error}"
    finally:
        progress.seconds = round(time.monotonic() - start, 1)
        if context.out is not None:
            context.state.save(context.out)
    print(f"{part.name}: {progress.status}, {progress.detail}", flush=True)
    if progress.status == FAILED and _size(context.log) > logged:
        lines = context.log.read_bytes()[max(logged, 0) :].decode(errors="replace").splitlines()
        print("\n".join(f"    {line[:160]}" for line in lines[-TAIL:]), flush=True)


def status(parts: Sequence[Part], known: State) -> int:
    """The exit status."""
    found = {known.parts[part.name].status for part in parts if part.name in known.parts}
    if FAILED in found:
        return exits.FAILED
    return exits.COMPLETE if found <= {COMPLETE, SKIPPED} else exits.UNFINISHED


def summary(parts: Sequence[Part], known: State) -> list[str]:
    """A line for each part that was begun."""
    found = [(part.name, known.parts[part.name]) for part in parts if part.name in known.parts]
    return [
        f"  {name:<12} {each.status:<9} {each.seconds:6.0f} s  {each.detail}"
        for name, each in found
    ]
