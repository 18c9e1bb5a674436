"""The parts of `python -m bench.gpu`: what each runs, and what it says of its outcome.

A part gets seconds and fills in its progress; it does not raise for what a child process does.
Standard library only: torch is in the children.
"""

from __future__ import annotations

import json
import re
import shutil
import sys
import time
import xml.etree.ElementTree as ElementTree
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from bench.gpu import child, exits, sources
from bench.gpu.journal import Journal, finished, lost
from bench.gpu.state import COMPLETE, FAILED, PARTIAL, SKIPPED, Progress, State

MOST_RESTARTS = 8
STILL = 150.0  # seconds without a sign of life; compilations of one peer take up to sixty
SANITIZERS = ("memcheck", "racecheck")
SANITIZER_ERRORS = 99
GOOD = ("passed", "skipped")


@dataclass(frozen=True)
class Context:
    """Where a part works.

    Attributes:
        out: folder of the results.
        scratch: folder that goes away.
        slug: of the device, for the file of rows.
        state: of all parts, saved from time to time.
        resume: whether what is finished is left out.
        options: more arguments for the children of a part, by its name.
    """

    out: Path
    scratch: Path
    slug: str
    state: State
    resume: bool
    options: Mapping[str, Sequence[str]] = field(default_factory=dict)

    @property
    def log(self) -> Path:
        """Output of all children."""
        return self.out / "gpu-log.txt"

    @property
    def rows(self) -> Path:
        """The JSON Lines file of this device."""
        return self.out / f"{self.slug}.jsonl"


Runner = Callable[[Context, Progress, float], None]


@dataclass(frozen=True)
class Part:
    """One part: its name, the most seconds it gets, what it depends on, and how it runs.

    `run(context, progress, seconds)` sets status and detail of `progress`.
    """

    name: str
    seconds: float
    sources: tuple[str, ...]
    run: Runner


def python(*arguments: str) -> list[str]:
    """A command of this Python."""
    return [sys.executable, *arguments]


def start(
    context: Context, command: list[str], seconds: float, log: Path | None = None, **options
) -> child.Result:
    """Runs a command against the source tree; its output goes to `log`, else to the common one."""
    environment = child.source_tree_environment() | options.pop("environment", {})
    return child.run(command, log or context.log, seconds, environment=environment, **options)


def persevere(
    context: Context,
    command: Callable[[float], list[str]],
    seconds: float,
    journal: Path,
    **options,
) -> child.Result:
    """Runs a command that keeps a journal, again and again while it breaks but gets on.

    `command(seconds)` is what to run in that time. Returns the result of the last one.
    """
    end, result = time.monotonic() + seconds, child.LATE
    for _ in range(MOST_RESTARTS):
        left = end - time.monotonic()
        if left < 5:
            return child.LATE
        known = journal.stat().st_size if journal.exists() else 0
        result = start(context, command(left), left, still=STILL, watched=journal, **options)
        broken = result in (exits.RESTART, child.STILL) or (isinstance(result, int) and result < 0)
        advanced = journal.exists() and journal.stat().st_size > known
        if not broken or not advanced:
            return result
    return result


def judge(progress: Progress, result: child.Result, detail: str) -> None:
    """Status from the result of a child; the detail says what ended it otherwise."""
    if result == exits.COMPLETE:
        progress.status, progress.detail = COMPLETE, detail
    elif result in (exits.UNFINISHED, child.LATE):
        progress.status, progress.detail = PARTIAL, detail
    else:
        progress.status = FAILED
        progress.detail = f"{detail}; ended with {result}" if result != exits.FAILED else detail


def doctor(context: Context, progress: Progress, seconds: float) -> None:
    """The self-test of every kernel set on every device."""
    report = context.out / "gpu-doctor.txt"
    report.unlink(missing_ok=True)
    result = start(context, python("-m", "barlow_fast.doctor"), seconds, report)
    judge(progress, result, last_line(report))


def compile_kernels(context: Context, progress: Progress, seconds: float) -> None:
    """Compiles the Triton kernels on all cores at once, so that later parts find them on disk."""
    report = context.out / "gpu-log.txt"
    command = python("-m", "barlow_fast.kernels.triton.inspection")
    judge(progress, start(context, command, seconds), last_line(report))


def last_line(path: Path) -> str:
    """The last line with text, at most 100 characters of it."""
    lines = path.read_text(encoding="utf-8", errors="replace").splitlines() if path.exists() else []
    return next((line.strip()[:100] for line in reversed(lines) if line.strip()), "no output")


def gpu_test_files() -> list[str]:
    """Test files that have tests for a GPU: no other is imported, whatever it may need."""
    files = sorted((sources.ROOT / "tests").rglob("test_*.py"))
    marked = (path for path in files if re.search(r"mark\.gpu\b", path.read_text()))
    return [path.relative_to(sources.ROOT).as_posix() for path in marked]


def tests(context: Context, progress: Progress, seconds: float) -> None:
    """All tests marked `gpu`; the passed ones of an earlier run count."""
    journal = context.scratch / "tests.jsonl"
    for name, entry in progress.finished.items():
        if entry["outcome"] in GOOD:
            Journal(journal).end(name, **entry)

    def collect() -> None:
        ended = finished(journal)
        new = {k: {f: e[f] for f in ("outcome", "seconds", "text")} for k, e in ended.items()}
        if new != progress.finished:
            progress.finished = new
            context.state.save(context.out)

    def command(left: float) -> list[str]:
        options = ["-m", "gpu", "-p", "bench.gpu.pytest_journal", "-p", "no:cacheprovider"]
        options += ["-q", "-o", "addopts=", "--journal", str(journal)]
        options += ["--continue-on-collection-errors"]
        options += ["--stop-after", f"{max(left - 30, 1):.0f}"]
        return python("-m", "pytest", *options, *gpu_test_files())

    result = persevere(context, command, seconds, journal, tick=collect)
    collect()
    # A process that was ended because time was up did not break on the test it was at.
    broken = {} if result == child.LATE else lost(journal)
    for name, reason in broken.items():
        progress.finished[name] = {"outcome": "failed", "seconds": 0.0, "text": reason}
    write_junit(progress.finished, context.out / "gpu-tests.xml")
    outcomes = [entry["outcome"] for entry in progress.finished.values()]
    counts = {name: outcomes.count(name) for name in (*GOOD, "failed")}
    if result == 5:  # pytest: nothing was left to run
        result = exits.COMPLETE
    judge(progress, result, ", ".join(f"{n} {name}" for name, n in counts.items() if n) or "none")
    if counts["failed"]:
        progress.status = FAILED


def write_junit(results: dict[str, dict], path: Path) -> None:
    """The results in the JUnit format that CI systems read."""
    root = ElementTree.Element("testsuites")
    suite = ElementTree.SubElement(root, "testsuite", name="gpu", tests=str(len(results)))
    for name, entry in sorted(results.items()):
        file, _, test = name.partition("::")
        case = ElementTree.SubElement(
            suite, "testcase", classname=file, name=test, time=str(entry["seconds"])
        )
        if entry["outcome"] != "passed":
            tag = "failure" if entry["outcome"] == "failed" else "skipped"
            text = re.sub(r"[^\t\n\x20-\ud7ff\ue000-\ufffd]", "?", entry["text"])
            first = (text.strip().splitlines() or [""])[-1]
            ElementTree.SubElement(case, tag, message=first[:200]).text = text
    failures = sum(entry["outcome"] == "failed" for entry in results.values())
    skipped = sum(entry["outcome"] == "skipped" for entry in results.values())
    suite.attrib.update(failures=str(failures), skipped=str(skipped), errors="0")
    ElementTree.ElementTree(root).write(path, encoding="utf-8", xml_declaration=True)


def suite(module: str) -> Runner:
    """A part that writes rows: the module of a suite, resumed by what the file of rows holds."""

    def run(context: Context, progress: Progress, seconds: float) -> None:
        journal = context.scratch / f"{module}.jsonl"

        def command(left: float) -> list[str]:
            options = ["--out", str(context.rows), "--limit", f"{max(left - 10, 1):.0f}"]
            options += ["--journal", str(journal), "--command", "make gpu"]
            options += context.options.get(module, ())
            # A second process of this run goes on where the first one broke.
            again = context.resume or journal.exists()
            return python("-m", f"bench.gpu.{module}", *options, *(["--resume"] if again else []))

        result = persevere(context, command, seconds, journal)
        judge(progress, result, count_rows(context.rows, module))
        if result == exits.UNUSABLE:
            progress.status, progress.detail = SKIPPED, last_line(context.log)

    return run


def count_rows(path: Path, suite_name: str) -> str:
    """How many rows of a suite a file holds, and how many of them tell a problem."""
    text = path.read_text(encoding="utf-8") if path.exists() else ""
    rows = [row for row in map(json.loads, text.splitlines()) if row["suite"] == suite_name]
    problems = sum(row.get("problem") is not None for row in rows)
    return f"{len(rows)} rows" + (f", {problems} with a problem" if problems else "")


def profile(context: Context, progress: Progress, seconds: float) -> None:
    """Kernels and launches of one pass."""
    out = context.out / "gpu-profile.txt"
    result = start(context, python("-m", "bench.gpu.profile", "--out", str(out)), seconds)
    judge(progress, result, out.name)


def sanitizer(context: Context, progress: Progress, seconds: float) -> None:
    """compute-sanitizer over every kernel on small shapes, one tool after the other."""
    tool = sanitizer_tool()
    if tool is None:
        progress.status, progress.detail = SKIPPED, "compute-sanitizer: not found"
        return
    report = context.out / "gpu-sanitizer.txt"
    if not progress.finished:
        report.unlink(missing_ok=True)
    todo = [name for name in SANITIZERS if name not in progress.finished]
    result: child.Result = exits.COMPLETE
    for name in todo:
        command = [tool, "--tool", name, "--error-exitcode", str(SANITIZER_ERRORS)]
        command += python("-m", "bench.gpu.exercise")
        # With torch's cache, an access beyond one tensor would end in another one unnoticed.
        alone = {"PYTORCH_NO_CUDA_MEMORY_CACHING": "1"}
        result = start(context, command, seconds / len(todo), report, environment=alone)
        if result != exits.COMPLETE:
            break
        progress.finished[name] = {"outcome": "passed"}
    judge(progress, result, ", ".join(f"{name}: no errors" for name in progress.finished) or name)


def sanitizer_tool() -> str | None:
    """compute-sanitizer on the PATH, else where CUDA is usually installed."""
    usual = sorted(Path("/usr/local").glob("cuda*/bin/compute-sanitizer"))
    return shutil.which("compute-sanitizer") or next(map(str, usual), None)


def tuning(context: Context, progress: Progress, seconds: float) -> None:
    """The kernels' own search for block sizes, where this version has one."""
    if not (sources.ROOT / "kernels" / "triton" / "tuning.py").exists():
        progress.status, progress.detail = SKIPPED, "this version has no tuning"
        return
    out = context.out / "gpu-tuning.json"
    budget = f"{max(seconds - 20, 5):.0f}"
    command = python("-m", "barlow_fast.kernels.triton.tuning", "--budget-seconds", budget)
    judge(progress, start(context, [*command, "--out", str(out)], seconds), out.name)


PARTS = (
    Part("compile", 90, sources.CODE, compile_kernels),
    Part("doctor", 60, sources.CODE, doctor),
    Part("tests", 220, (*sources.TESTED, *gpu_test_files()), tests),
    Part("loss", 330, sources.MEASURED, suite("loss")),
    Part("memory", 60, sources.MEASURED, suite("memory")),
    Part("views", 100, sources.VIEWED, suite("views")),
    Part("train", 340, sources.TRAINED, suite("train")),
    Part("profile", 60, sources.MEASURED, profile),
    Part("sanitizer", 150, sources.SANITIZED, sanitizer),
    Part("tuning", 150, sources.CODE, tuning),
)
