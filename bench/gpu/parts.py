"""The parts of `make gpu`: what each runs, what it shows. Standard library only."""

from __future__ import annotations

import re
import shutil
import xml.etree.ElementTree as ElementTree
from pathlib import Path

from bench import exits, sources
from bench.runner import (
    LATE,
    Context,
    Part,
    Result,
    Suite,
    judge,
    last_line,
    persevere,
    python,
    run_child,
)
from bench.state import FAILED, SKIPPED, Journal, Progress, finished, lost

SANITIZERS = ("memcheck", "racecheck")
SANITIZER_ERRORS = 99
GOOD = ("passed", "skipped")
CUDA = ("--device", "cuda")


def doctor(context: Context, progress: Progress, seconds: float) -> None:
    """The self-test of every kernel set on every device."""
    report = context.out / "gpu-doctor.txt"
    report.unlink(missing_ok=True)
    result = run_child(python("-m", "barlow_fast.doctor"), report, seconds)
    judge(progress, result, last_line(report))


def compile_kernels(context: Context, progress: Progress, seconds: float) -> None:
    """Compiles the Triton kernels on all cores at once, so that later parts find them on disk."""
    command = python("-m", "barlow_fast.kernels.triton.inspection")
    judge(progress, run_child(command, context.log, seconds), last_line(context.log))


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
            context.save()

    def command(left: float) -> list[str]:
        options = ["-m", "gpu", "-p", "bench.gpu.pytest_journal", "-p", "no:cacheprovider"]
        options += ["-q", "-o", "addopts=", "--journal", str(journal)]
        options += ["--continue-on-collection-errors"]
        options += ["--stop-after", f"{max(left - 30, 1):.0f}"]
        return python("-m", "pytest", *options, *gpu_test_files())

    result = persevere(context, command, seconds, journal, tick=collect)
    collect()
    # A process that was ended because time was up did not break on the test it was at.
    broken = {} if result == LATE else lost(journal)
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


def profile(context: Context, progress: Progress, seconds: float) -> None:
    """Kernels and launches of one pass."""
    out = context.out / "gpu-profile.txt"
    command = python("-m", "bench.gpu.profile", "--out", str(out))
    result = run_child(command, context.log, seconds)
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
    result: Result = exits.COMPLETE
    for name in todo:
        command = [tool, "--tool", name, "--error-exitcode", str(SANITIZER_ERRORS)]
        command += python("-m", "bench.gpu.exercise")
        # With torch's cache, an access beyond one tensor would end in another one unnoticed.
        alone = {"PYTORCH_NO_CUDA_MEMORY_CACHING": "1"}
        result = run_child(command, report, seconds / len(todo), environment=alone)
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
    command += ["--out", str(out)]
    judge(progress, run_child(command, context.log, seconds), out.name)


PARTS = (
    Part("compile", 90, compile_kernels, sources.CODE),
    Part("doctor", 60, doctor, sources.CODE),
    Part("tests", 220, tests, (*sources.TESTED, *gpu_test_files())),
    Part("loss", 330, Suite("loss", CUDA), sources.MEASURED),
    Part("memory", 60, Suite("memory", CUDA), sources.MEASURED),
    Part("views", 100, Suite("views", CUDA), sources.VIEWED),
    Part("train", 340, Suite("train", CUDA), sources.TRAINED),
    Part("profile", 60, profile, sources.MEASURED),
    Part("sanitizer", 150, sanitizer, sources.SANITIZED),
    Part("tuning", 150, tuning, sources.CODE),
)
