"""The parts of `make gpu`: what each runs, what it shows. Standard library only."""

from __future__ import annotations

import functools
import importlib.util
import os
import re
import shutil
import xml.etree.ElementTree as ElementTree
from collections import ChainMap
from pathlib import Path

from bench import exits, runner, sources
from bench.runner import LATE, Command, Context, Part, Result, Suite, judge, python
from bench.state import FAILED, SKIPPED, STOPPED, Progress, write_at_once

SANITIZERS = ("memcheck", "racecheck")
SANITIZER_ERRORS = 99
CUDA = ("--device", "cuda")
PASSED, NOT_RUN = "passed", "skipped"
# Of the output of `pytest -v`: a test, then its outcome when it has ended (pytest-xdist writes that
# in a line of its own, before the name); and what the plugin adds of a test that failed or was
# skipped, or a file that cannot be imported.
NAME = r"(\S+\.py::[^\[\s]+(?:\[.*?\](?= |$))?)"
OUTCOME = r"(PASSED|FAILED|ERROR|SKIPPED|XFAIL|XPASS)"
TEST = re.compile(rf"^(?:\[gw\d+\] \[ *\d+%\] {OUTCOME} )?{NAME} ?{OUTCOME}?.*$", re.MULTILINE)
REASON = re.compile(rf"^(FAILED|SKIPPED) (?:{NAME}|(\S+)) - (.*)$", re.MULTILINE)
ENDED = {"PASSED": PASSED, "XPASS": PASSED, "SKIPPED": NOT_RUN, "XFAIL": NOT_RUN}
NO_MODULE = re.compile(r"ModuleNotFoundError: No module named '(\w+)")
NO_TESTS = 5  # pytest: nothing was left to run
MOST_PROCESSES = 8  # of tests, which share the device
KERNEL_TESTS = "tests/triton_kernels/"


def gpu_test_files(kernels: bool) -> list[str]:
    """Test files that have tests for a GPU: no other is imported, whatever it may need. Those of
    the kernels, or all others."""
    return [name for name in _marked_files() if name.startswith(KERNEL_TESTS) == kernels]


@functools.cache
def _marked_files() -> list[str]:
    files = sorted((sources.ROOT / "tests").rglob("test_*.py"))
    marked = (path for path in files if re.search(r"mark\.gpu\b", path.read_text()))
    return [path.relative_to(sources.ROOT).as_posix() for path in marked]


def kernel_tests(context: Context, progress: Progress, seconds: float) -> None:
    """The tests of the kernels that are marked `gpu`."""
    _tests(context, progress, seconds, "kernels", gpu_test_files(kernels=True))


def tests(context: Context, progress: Progress, seconds: float) -> None:
    """All other tests marked `gpu`."""
    _tests(context, progress, seconds, "tests", gpu_test_files(kernels=False))


def _tests(
    context: Context, progress: Progress, seconds: float, name: str, files: list[str]
) -> None:
    """Runs tests, in several processes where pytest-xdist is installed; those that passed in an
    earlier run, or ended an earlier process of this one, are left out of the next process."""
    output, finished = context.scratch / f"{name}.txt", context.scratch / "finished.txt"
    earlier = {k: each for k, each in progress.finished.items() if each["outcome"] != "failed"}

    def collect() -> None:
        keep(outcomes(output))

    def keep(found: dict[str, dict[str, str]]) -> None:
        progress.finished = earlier | found
        context.save()
        parts = [context.state.parts.get(part) for part in ("kernels", "tests")]
        known = [part.finished for part in parts if part is not None]
        write_junit(dict(ChainMap(progress.finished, *known)), context.out / "gpu-tests.xml")

    def command(left: float) -> list[str]:
        finished.write_text("\n".join(earlier | outcomes(output)), encoding="utf-8")
        options = ["-m", "gpu", "-p", "bench.gpu.pytest_plugin", "-p", "no:cacheprovider"]
        options += ["-v", "--no-summary", "-o", "addopts=", "--continue-on-collection-errors"]
        return python("-m", "pytest", *options, *in_parallel(), *files)

    environment = {"FINISHED_TESTS": str(finished), "COLUMNS": "400"}
    result = runner.persevere(command, output, seconds, output, environment, collect)
    found = outcomes(output)
    if result == LATE:  # a process that was ended because time was up did not break on its test
        found = {name: each for name, each in found.items() if each["text"] != STOPPED}
    if context.log is not None and output.exists():
        with context.log.open("ab") as log:
            log.write(output.read_bytes())
    keep(found)
    ends = [each["outcome"] for each in progress.finished.values()]
    counts = {name: ends.count(name) for name in (PASSED, NOT_RUN, "failed")}
    if result == NO_TESTS or (result == exits.FAILED and not counts["failed"]):
        result = exits.COMPLETE
    judge(progress, result, ", ".join(f"{n} {name}" for name, n in counts.items() if n) or "none")
    if counts["failed"]:
        progress.status = FAILED


def in_parallel() -> list[str]:
    """Options of pytest for several processes, each with a context on the device."""
    if importlib.util.find_spec("xdist") is None:
        return []
    processes = min(max((os.cpu_count() or 1) // 2, 1), MOST_PROCESSES)
    return ["-n", str(processes), "--dist", "worksteal"]


def outcomes(output: Path) -> dict[str, dict[str, str]]:
    """outcome and text of every test that the output of `pytest -v` names. One without an outcome
    ended its process; a file that needs a library which this machine lacks is skipped."""
    text = output.read_text(encoding="utf-8", errors="replace") if output.exists() else ""
    found = {}
    for first, name, last in TEST.findall(text):
        outcome = first or last
        if outcome:
            found[name] = {"outcome": ENDED.get(outcome, "failed"), "text": ""}
        else:
            found.setdefault(name, {"outcome": "failed", "text": STOPPED})
    for outcome, test, file, reason in REASON.findall(text):
        found[test or file] = {"outcome": ENDED.get(outcome, "failed"), "text": reason}
        missing = NO_MODULE.search(reason) if file else None
        if missing is not None and importlib.util.find_spec(missing[1]) is None:
            found[file] = {"outcome": NOT_RUN, "text": f"{missing[1]} is not installed"}
    return found


def write_junit(results: dict[str, dict[str, str]], path: Path) -> None:
    """The results in the JUnit format that CI systems read."""
    root = ElementTree.Element("testsuites")
    suite = ElementTree.SubElement(root, "testsuite", name="gpu", tests=str(len(results)))
    for name, entry in sorted(results.items()):
        file, _, test = name.partition("::")
        case = ElementTree.SubElement(suite, "testcase", classname=file, name=test)
        if entry["outcome"] != PASSED:
            tag = "failure" if entry["outcome"] == "failed" else "skipped"
            text = re.sub(r"[^\t\n\x20-\ud7ff\ue000-\ufffd]", "?", entry["text"])
            ElementTree.SubElement(case, tag, message=text[:200]).text = text
    for attribute, outcome in {"failures": "failed", "skipped": NOT_RUN, "errors": "error"}.items():
        count = sum(entry["outcome"] == outcome for entry in results.values())
        suite.set(attribute, str(count))
    write_at_once(path, ElementTree.tostring(root, encoding="unicode", xml_declaration=True))


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
        result = runner.run_child(command, report, seconds / len(todo), environment=alone)
        if result != exits.COMPLETE:
            break
        progress.finished[name] = {"outcome": PASSED}
    judge(progress, result, ", ".join(f"{n}: no errors" for n in progress.finished) or name)


def sanitizer_tool() -> str | None:
    """compute-sanitizer on the PATH, else where CUDA is usually installed."""
    usual = sorted(Path("/usr/local").glob("cuda*/bin/compute-sanitizer"))
    return shutil.which("compute-sanitizer") or next(map(str, usual), None)


TRITON = "barlow_fast.kernels.triton"
HEADLINE = "2048x8192,256x8192,169343x256,4096x512"
WITHOUT_COMPILED = ("--compiled-shapes", "none")
# What is most worth knowing comes first: whether the kernels are right, then the headline rows. A
# run of BUDGET seconds begins most parts, and the next run continues what is unfinished. Peers that
# compile come last: each takes up to a minute.
PARTS = (
    # On all cores at once, so that later parts find the kernels on disk.
    Part("compile", 60, Command(("-m", "bench.gpu.cache")), sources.CODE),
    Part("kernels", 90, kernel_tests, (*sources.TESTED, *gpu_test_files(kernels=True))),
    Part(
        "headline", 50, Suite("loss", (*CUDA, "--shapes", HEADLINE, *WITHOUT_COMPILED)),
        sources.MEASURED,
    ),
    Part(
        "profile", 30, Command(("-m", "bench.gpu.profile", "--out", "{out}/gpu-profile.txt")),
        sources.MEASURED,
    ),
    Part("doctor", 30, Command(("-m", "barlow_fast.doctor"), "gpu-doctor.txt"), sources.CODE),
    Part("tests", 90, tests, (*sources.TESTED, *gpu_test_files(kernels=False))),
    Part("loss", 120, Suite("loss", (*CUDA, *WITHOUT_COMPILED)), sources.MEASURED),
    Part(
        "tuning", 60,
        Command(
            ("-m", f"{TRITON}.tuning", "--budget-seconds", "{seconds}", "--out",
             "{out}/gpu-tuning.json"), spare=15,
        ), sources.CODE,
    ),
    Part("memory", 30, Suite("memory", CUDA), sources.MEASURED),
    Part("views", 60, Suite("views", CUDA), sources.VIEWED),
    Part("train", 120, Suite("train", CUDA), sources.TRAINED),
    Part("sanitizer", 150, sanitizer, sources.SANITIZED),
    Part("compiled", 300, Suite("loss", CUDA), sources.MEASURED),
)  # fmt: skip
