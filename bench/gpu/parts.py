"""The parts of `make gpu`: what each runs, what it shows. Standard library only."""

from __future__ import annotations

import functools
import importlib.util
import json
import os
import re
import shutil
import xml.etree.ElementTree as ElementTree
from collections import ChainMap, Counter
from pathlib import Path

from bench import exits, runner, sources, state
from bench.runner import LATE, Command, Context, Part, Result, Suite, judge, python
from bench.state import FAILED, SKIPPED, STOPPED, Progress

SANITIZERS = ("memcheck", "racecheck")
SANITIZER_ERRORS = 99
CUDA = ("--device", "cuda")
PASSED, NOT_RUN, BAD = "passed", "skipped", "failed"
NO_TESTS = 5  # pytest: nothing was left to run
MOST_PROCESSES = 8  # of tests, which share the device
KERNEL_TESTS = "tests/triton_kernels/"
TESTS = ("kernels", "tests")  # the parts of them


def gpu_test_files(kernels: bool) -> list[str]:
    """Test files that have tests for a GPU: no other is imported, whatever it may need. Those of
    the kernels, or all others."""
    files = sorted((sources.ROOT / "tests").rglob("test_*.py"))
    marked = (path for path in files if re.search(r"mark\.gpu\b", path.read_text()))
    names = (path.relative_to(sources.ROOT).as_posix() for path in marked)
    return [name for name in names if name.startswith(KERNEL_TESTS) == kernels]


def tests(context: Context, progress: Progress, seconds: float, name: str) -> None:
    """Runs the tests marked `gpu`, those of the part `kernels` or all others, in several processes
    where pytest-xdist is installed; those that passed in an earlier run, or ended an earlier
    process of this one, are left out of the next process."""
    files = gpu_test_files(kernels=name == "kernels")
    file = context.scratch / f"{name}.jsonl"
    with file.open("w", encoding="utf-8") as held:
        for test, entry in progress.finished.items():
            if entry["outcome"] != BAD:
                held.write(json.dumps({"test": test, **entry}) + "\n")
    options = ["-m", "gpu", "-p", "bench.gpu.pytest_plugin", "-p", "no:cacheprovider"]
    options += ["-o", "addopts=", "--continue-on-collection-errors", *in_parallel()]
    command = python("-m", "pytest", *options, *files)
    environment = {"TEST_OUTCOMES": str(file)}
    result = runner.persevere(lambda left: command, context.log, seconds, file, environment)
    found = {each.pop("test"): each for each in state.read_lines(file)}
    if result == LATE:  # a process that was ended because time was up did not break on its test
        found = {test: each for test, each in found.items() if each["text"] != STOPPED}
    progress.finished = found
    known = [context.state.parts[part].finished for part in TESTS if part in context.state.parts]
    write_junit(dict(ChainMap(found, *known)), context.out / "gpu-tests.xml")
    counts = Counter(each["outcome"] for each in found.values())
    if result == NO_TESTS or (result == exits.FAILED and not counts[BAD]):
        result = exits.COMPLETE
    counted = (f"{counts[each]} {each}" for each in (PASSED, NOT_RUN, BAD) if counts[each])
    judge(progress, result, ", ".join(counted) or "none")
    if counts[BAD]:
        progress.status = FAILED


def in_parallel() -> list[str]:
    """Options of pytest for several processes, each with a context on the device."""
    if importlib.util.find_spec("xdist") is None:
        return []
    processes = min(max((os.cpu_count() or 1) // 2, 1), MOST_PROCESSES)
    return ["-n", str(processes), "--dist", "worksteal"]


def write_junit(results: dict[str, dict[str, str]], path: Path) -> None:
    """The results in the JUnit format that CI systems read."""
    root = ElementTree.Element("testsuites")
    suite = ElementTree.SubElement(root, "testsuite", name="gpu", tests=str(len(results)))
    for name, entry in sorted(results.items()):
        file, _, test = name.partition("::")
        case = ElementTree.SubElement(suite, "testcase", classname=file, name=test)
        if entry["outcome"] != PASSED:
            tag = "failure" if entry["outcome"] == BAD else "skipped"
            text = re.sub(r"[^\t\n\x20-\ud7ff\ue000-\ufffd]", "?", entry["text"])
            ElementTree.SubElement(case, tag, message=text[:200]).text = text
    for attribute, outcome in {"failures": BAD, "skipped": NOT_RUN}.items():
        count = sum(entry["outcome"] == outcome for entry in results.values())
        suite.set(attribute, str(count))
    ElementTree.ElementTree(root).write(path, encoding="utf-8", xml_declaration=True)


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


TUNING = (
    *("-m", "barlow_fast.kernels.triton.tuning", "--budget-seconds", "{seconds}"),
    *("--out", "{out}/gpu-tuning.json"),
)
HEADLINE = "2048x8192,256x8192,169343x256,4096x512"
WITHOUT_COMPILED = ("--compiled-shapes", "none")
# What is most worth knowing comes first: whether the kernels are right, then the headline rows. A
# run of BUDGET seconds begins most parts, and the next run continues what is unfinished. Peers that
# compile come last: each takes up to a minute.
PARTS = (
    # On all cores at once, so that later parts find the kernels on disk.
    Part("compile", 60, Command(("-m", "bench.gpu.cache"))),
    Part("kernels", 90, functools.partial(tests, name="kernels"), sources.TESTED),
    Part("headline", 50, Suite("loss", (*CUDA, "--shapes", HEADLINE, *WITHOUT_COMPILED))),
    Part("profile", 30, Command(("-m", "bench.gpu.profile", "--out", "{out}/gpu-profile.txt"))),
    Part("doctor", 30, Command(("-m", "barlow_fast.doctor"), "gpu-doctor.txt")),
    Part("tests", 90, functools.partial(tests, name="tests"), sources.TESTED),
    Part("loss", 120, Suite("loss", (*CUDA, *WITHOUT_COMPILED))),
    Part("tuning", 60, Command(TUNING, spare=15)),
    Part("memory", 30, Suite("memory", CUDA)),
    Part("views", 60, Suite("views", CUDA)),
    Part("train", 120, Suite("train", CUDA)),
    Part("sanitizer", 150, sanitizer),
    Part("compiled", 300, Suite("loss", CUDA)),
)
