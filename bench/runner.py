"""Parts of a run, one after the other, each in child processes and a time of its own; resumable.

`make bench` and `make gpu` are tables of parts for this runner. A part gets seconds and fills in
its progress; it does not raise for what a child process does. Standard library only: torch is in
the children.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from bench import exits, lifetime
from bench.sources import ROOT, fingerprint
from bench.state import COMPLETE, FAILED, PARTIAL, SKIPPED, Progress, State

POLL = 0.2  # seconds
GRACE = 10.0  # between asking a process to end and ending it
LATE, STILL = "late", "still"
STILL_SECONDS = 150.0  # without a sign of life; compilations of one peer take up to sixty
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

    def save(self) -> None:
        """Writes the state, where it is kept."""
        if self.out is not None:
            self.state.save(self.out)


@dataclass(frozen=True)
class Part:
    """One part: its name, the most seconds it gets, how it runs, and what it depends on.

    `run(context, progress, seconds)` sets status and detail of `progress`.
    """

    name: str
    seconds: float
    run: Callable[[Context, Progress, float], None]
    sources: tuple[str, ...] = ()


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
        log = context.log
        if self.report:
            log = context.out / self.report
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
        judge(progress, result, count_rows(context.rows or self.file, self.name))
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
    grown: Callable[[], None] = lambda: None,
) -> Result:
    """Runs a command, again and again while it breaks but the file `watched` grows.

    `command(seconds)` is what to run in that time. Returns the result of the last one.
    """
    end, result = time.monotonic() + seconds, LATE
    for _ in range(MOST_RESTARTS):
        left = end - time.monotonic()
        if left < 5:
            return LATE
        known = _size(watched)
        options = {"environment": environment, "watched": watched, "grown": grown}
        result = run_child(command(left), log, left, **options)
        broken = result in (exits.RESTART, STILL) or (isinstance(result, int) and result < 0)
        if not broken or _size(watched) <= known:
            return result
    return result


def run_child(
    command: Sequence[str],
    log: Path | None,
    limit: float,
    *,
    environment: Mapping[str, str] | None = None,
    watched: Path | None = None,
    grown: Callable[[], None] = lambda: None,
) -> Result:
    """The exit status of a command that imports the source tree, or why it was ended; its output
    is appended to `log`, or goes where this process's goes.

    LATE: it ran for more than `limit` seconds. STILL: the file `watched` did not grow for
    STILL_SECONDS; `grown` is called when it did. Whatever interrupts this function ends the
    command, with all processes it started; they lead a session of their own, which a terminal's
    Ctrl-C does not reach.
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
            return _wait(process, limit, watched, grown)
        finally:
            lifetime.stop(process, (signal.SIGINT, signal.SIGTERM), GRACE)


def _wait(
    process: subprocess.Popen, limit: float, watched: Path | None, grown: Callable[[], None]
) -> Result:
    start = moved = time.monotonic()
    size = -1
    while process.poll() is None:
        time.sleep(POLL)
        now = time.monotonic()
        if _size(watched) != size:
            size, moved = _size(watched), now
            grown()
        if now - start > limit:
            return LATE
        if watched is not None and now - moved > STILL_SECONDS:
            return STILL
    return process.returncode


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


def count_rows(path: Path | None, suite: str) -> str:
    """How many rows of a suite a file holds, and how many of them have a problem."""
    text = path.read_text(encoding="utf-8") if path is not None and path.exists() else ""
    rows = [row for row in map(json.loads, text.splitlines()) if row["suite"] == suite]
    problems = sum(row.get("problem") is not None for row in rows)
    return f"{len(rows)} rows" + (f", {problems} with a problem" if problems else "")


def last_line(path: Path | None) -> str:
    """The last line with text, at most 100 characters of it."""
    known = path is not None and path.exists()
    lines = path.read_text(encoding="utf-8", errors="replace").splitlines() if known else []
    return next((line.strip()[:100] for line in reversed(lines) if line.strip()), "no output")


def until(end: float) -> Callable[[Part], float]:
    """Each part its own seconds, and all together until `end` on the monotonic clock."""
    return lambda part: min(part.seconds, end - time.monotonic())


def in_turn(parts: Sequence[Part]) -> Callable[[Part], float]:
    """Each part its own seconds, and those that the parts before it have left over."""
    total, ends = time.monotonic(), {}
    for part in parts:
        ends[part.name] = total = total + part.seconds
    return lambda part: max(ends[part.name] - time.monotonic(), part.seconds)


def run(parts: Sequence[Part], context: Context, seconds_of: Callable[[Part], float]) -> int:
    """Runs the parts one after the other; the exit status. `seconds_of(part)` is what it gets."""
    with interruptible():
        for part in parts:
            progress = context.state.part(part.name, fingerprint(part.sources))
            if context.resume and progress.settled(progress.sources):
                print(f"{part.name}: complete in an earlier run", flush=True)
                continue
            if not context.resume:
                progress.finished = {}
            seconds = seconds_of(part)
            if seconds < min(LEAST, part.seconds):
                progress.status, progress.detail = PARTIAL, progress.detail or "not begun"
                continue
            try:
                _run(part, context, progress, seconds)
            except KeyboardInterrupt:
                progress.status, progress.detail = FAILED, "interrupted"
                return exits.INTERRUPTED
            finally:
                context.save()
    return status(parts, context.state)


def _run(part: Part, context: Context, progress: Progress, seconds: float) -> None:
    """Runs one part; shows what came of it."""
    print(f"{part.name}: at most {seconds:.0f} s ...", flush=True)
    logged, start = _size(context.log), time.monotonic()
    try:
        part.run(context, progress, seconds)
    except Exception as error:  # one part does not stop the others
        progress.status, progress.detail = FAILED, f"{type(error).__name__}: {error}"
    progress.seconds = round(time.monotonic() - start, 1)
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


@contextlib.contextmanager
def interruptible() -> Iterator[None]:
    """SIGTERM raises KeyboardInterrupt, so that no child outlives this process."""

    def interrupt(number: int, frame: object) -> None:
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGTERM, interrupt)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)
