"""pytest in a process forked off one that has imported what all tests need, in a copy of the tree:
once for each file of tests, to see which lines each test executes; then for mutants."""

from __future__ import annotations

import contextlib
import importlib
import itertools
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import traceback
import types
from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import coverage
import pytest
from choosing import Traced

STARTUP = Path(__file__).parent / "startup"
sys.path.insert(0, str(STARTUP))
import process_tracing  # noqa: E402

# Imported before the fork. None starts a thread.
BEFORE_FORK = (
    "torch", "torch._dynamo", "torchvision", "hypothesis", "scipy.stats", "sklearn.linear_model",
    "sklearn.datasets", "matplotlib.pyplot", "jinja2", "typer.testing", "timm",
    "rich.progress", "torch.utils.tensorboard", "safetensors.torch", "monai.losses",
)  # fmt: skip
INTERPRETED = "tests/triton_kernels/test_interpreter.py"
# Seconds that a test may take: generous, for a machine that is busy with other things.
FIXED_LIMIT, LIMIT_FACTOR = 20.0, 10.0
# Seconds of a processor for one file's tests when they are traced; those after that are left out.
TRACE_LIMIT = 240.0


def copy_tree(root: Path, tree: Path) -> None:
    """Everything that git would track, and the native library. `barlow_fast.kernels` is found in
    the copy, not where the package was installed from."""
    listed = subprocess.run(
        ["git", "-C", root, "ls-files", "--cached", "--others", "--exclude-standard"],
        capture_output=True, text=True, check=True,
    ).stdout.splitlines()  # fmt: skip
    built = [str(p.relative_to(root)) for p in (root / "kernels/cpu").iterdir()]
    for name in {*listed, *built}:
        if (root / name).is_file():
            (tree / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(root / name, tree / name)
    (tree / "barlow_fast" / "kernels").symlink_to("../kernels")


class Tracing:
    """pytest's plugin of the first kind of run."""

    def __init__(self, folder: Path, tree: Path, every: int) -> None:
        self.folder, self.tree, self.every = folder, tree, every
        self.found = Traced()
        self.end = sum(os.times()[:4]) + TRACE_LIMIT
        self._tracer = process_tracing.tracer(folder, tree)
        self._contexts = [""]
        self._shared: dict[str, str] = {}
        self._failed: set[str] = set()
        self._enter("")
        self._tracer.start()

    def _enter(self, context: str) -> None:
        (self.folder / process_tracing.CONTEXT).write_text(context)
        if self._tracer is coverage.Coverage.current():
            self._tracer.switch_context(context)

    @contextlib.contextmanager
    def _within(self, context: str) -> Iterator[None]:
        self._contexts.append(context)
        self._enter(context)
        try:
            yield
        finally:
            self._contexts.pop()
            self._enter(self._contexts[-1])

    @pytest.hookimpl(tryfirst=True)
    def pytest_collection_modifyitems(self, items: list[Any]) -> None:
        self.found.collected = [item.nodeid for item in items]
        items[:] = items[:: self.every]
        pool = getattr(sys.modules.get("ranks"), "Pool", None)
        if pool is not None:
            plain = pool.run

            def run(this: Any, function: Any, ranks: Any, *arguments: Any, **options: Any) -> Any:
                where = (function.__module__, function.__name__, self._contexts[-1])
                return plain(this, process_tracing.call, ranks, *where, *arguments, **options)

            pool.run = run

    @pytest.hookimpl(hookwrapper=True)
    def pytest_runtest_protocol(self, item: Any) -> Iterator[None]:
        with self._within(item.nodeid):
            yield
        if sum(os.times()[:4]) > self.end:
            item.session.shouldstop = "no more of this file is traced"
        self.found.fixtures[item.nodeid] = [
            key
            for key, base in self._shared.items()
            if key.rpartition("::")[2] in item.fixturenames and item.nodeid.startswith(base)
        ]

    @pytest.hookimpl(hookwrapper=True)
    def pytest_fixture_setup(self, fixturedef: Any) -> Iterator[None]:
        if fixturedef.scope == "function":
            yield
            return
        key = f"{fixturedef.baseid}::{fixturedef.argname}"
        self._shared[key] = fixturedef.baseid
        before = time.perf_counter()
        with self._within(key):
            yield
        took = time.perf_counter() - before
        self.found.fixture_seconds[key] = self.found.fixture_seconds.get(key, 0.0) + took
        test = next((c for c in self._contexts if c not in self._shared and c), None)
        if test is not None:
            self.found.seconds[test] = self.found.seconds.get(test, 0.0) - took

    def pytest_runtest_logreport(self, report: Any) -> None:
        seconds = self.found.seconds
        seconds[report.nodeid] = seconds.get(report.nodeid, 0.0) + report.duration
        if report.outcome != "passed":
            self._failed.add(report.nodeid)

    def finish(self) -> None:
        self._tracer.stop()
        self._tracer.save()
        self.found.passed = [test for test in self.found.seconds if test not in self._failed]


class Chosen:
    """pytest's plugin of the second kind: some tests, in a given order, each within its limit.

    `out` has at any time the test that runs or has failed, why, and those that have passed.
    """

    def __init__(self, tests: dict[str, float], known: set[str], out: Path) -> None:
        self.tests, self.known, self.out = tests, known, out
        self.order = {test: place for place, test in enumerate(tests)}
        self.outcome = {"test": "collection", "reason": "time", "passed": []}
        self._limit(3 * FIXED_LIMIT)

    def _limit(self, seconds: float) -> None:
        write(self.out, json.dumps(self.outcome))
        signal.setitimer(signal.ITIMER_REAL, seconds)  # SIGALRM ends the process

    @pytest.hookimpl(trylast=True)
    def pytest_collection_modifyitems(self, items: list[Any]) -> None:
        # A mutant may give tests other names than are known.
        chosen = [i for i in items if i.nodeid in self.order or i.nodeid not in self.known]
        items[:] = sorted(chosen, key=lambda item: self.order.get(item.nodeid, len(self.order)))

    @pytest.hookimpl(hookwrapper=True)
    def pytest_runtest_protocol(self, item: Any) -> Iterator[None]:
        self.outcome |= {"test": item.nodeid, "reason": "time"}
        self._limit(FIXED_LIMIT + LIMIT_FACTOR * self.tests.get(item.nodeid, 1.0))
        yield
        if self.outcome["reason"] == "time":
            self.outcome["passed"].append(item.nodeid)
        self._limit(0)

    def pytest_exception_interact(self, call: Any) -> None:
        self.outcome["reason"] = call.excinfo.exconly()[:200]
        self._limit(FIXED_LIMIT)


OPTIONS = ("-q", "--tb=no", "-p", "no:cacheprovider", "-m", "not slow", "--hypothesis-seed=0")


def pytest_run(files: Iterable[str], plugin: Any, *more: str) -> int:
    """Its exit status; the temporary files of pytest are among those of the process."""
    return int(pytest.main([*OPTIONS, *more, *files], plugins=[plugin]))


def trace(file: str, every: int, out: Path, tree: Path, folder: Path) -> int:
    """In a child: runs one file, writes to `out` what its tests did."""
    os.environ["BARLOW_FAST_TRACE"] = os.pathsep.join((str(folder), str(tree)))
    os.environ["PYTHONPATH"] += os.pathsep + str(STARTUP)
    if file == INTERPRETED:
        use_interpreter()
    plugin = Tracing(folder, tree, every)
    code = pytest_run([file], plugin)
    plugin.finish()
    for path in folder.glob("data*"):
        data = coverage.CoverageData(str(path))
        with contextlib.suppress(coverage.CoverageException):  # of a process that was killed
            data.read()
            for measured in data.measured_files():
                lines = plugin.found.lines.setdefault(os.path.relpath(measured, tree), {})
                for line, contexts in data.contexts_by_lineno(measured).items():
                    for context in contexts:
                        lines.setdefault(context, []).append(line)
    for name, contexts in plugin.found.lines.items():
        found = {context: sorted(set(those)) for context, those in contexts.items() if context}
        plugin.found.lines[name] = found
    write(out, json.dumps(asdict(plugin.found)))
    return code


def run_tests(tests: dict[str, float], known: set[str], out: Path, *more: str) -> int:
    """In a child: runs these tests, those in Triton's interpreter in a process of their own."""
    for interpreted in (False, True):
        some = {t: s for t, s in tests.items() if t.startswith(INTERPRETED) == interpreted}
        if not some:
            continue
        child = os.fork()
        if child == 0:
            code = 70
            try:
                if interpreted:
                    use_interpreter()
                files = dict.fromkeys(test.partition("::")[0] for test in some)
                code = pytest_run(files, Chosen(some, known, out), *more)
            finally:
                os._exit(code)
        code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
        if code not in (0, 5):
            return 1
    return 0


def write(path: Path, text: str) -> None:
    """Whole or not at all."""
    partial = path.with_name(f".{path.name}.{os.getpid()}")
    partial.parent.mkdir(parents=True, exist_ok=True)
    partial.write_text(text)
    partial.replace(path)


@dataclass
class Job:
    """Something to do in a child, in a copy of the tree."""

    run: Callable[[Path, Path], int]  # (tree, folder) in the child
    before: Callable[[Path], None] = lambda tree: None
    after: Callable[[Path, Path, int], None] = lambda tree, folder, code: None


def in_parallel(jobs: Iterable[Job], worktrees: list[Path], temporary: Path) -> None:
    """Runs all, one at a time in each tree."""
    waiting, free = iter(jobs), list(worktrees)
    running: dict[int, tuple[Job, Path, Path]] = {}
    try:
        while True:
            for job in itertools.islice(waiting, len(free)):
                tree, folder = free.pop(), Path(tempfile.mkdtemp(dir=temporary))
                job.before(tree)
                running[_begin(job, tree, folder)] = (job, tree, folder)
            if not running:
                return
            child, status = os.wait()
            if child in running:
                job, tree, folder = running.pop(child)
                _end(child)  # whatever its tests have left
                job.after(tree, folder, os.waitstatus_to_exitcode(status))
                shutil.rmtree(folder, ignore_errors=True)
                free.append(tree)
    finally:
        for child in running:
            _end(child)


def _end(session: int) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.killpg(session, signal.SIGKILL)


def _begin(job: Job, tree: Path, folder: Path) -> int:
    sys.stdout.flush()
    child = os.fork()
    if child:
        return child
    code = 70
    try:
        os.setsid()
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        log = os.open(folder / "log", os.O_WRONLY | os.O_CREAT)
        for stream, target in ((0, os.open(os.devnull, os.O_RDONLY)), (1, log), (2, log)):
            os.dup2(target, stream)
        temporary = folder / "temporary"
        temporary.mkdir()
        own = ("TMPDIR", "BARLOW_FAST_TUNING_DIR", "HYPOTHESIS_STORAGE_DIRECTORY")
        os.environ.update(dict.fromkeys(own, str(temporary)), PYTHONPATH=str(tree))
        tempfile.tempdir = None
        os.chdir(tree)
        sys.path[:] = [str(tree), *(entry for entry in sys.path if "mutation" not in entry)]
        # What multiprocessing starts would run this program again.
        sys.modules["__main__"] = types.ModuleType("__main__")
        code = job.run(tree, folder)
        sys.stdout.flush()
    except BaseException:
        traceback.print_exc()
    finally:
        os._exit(code)


def import_before_fork() -> None:
    """What is not installed is not needed."""
    for name in BEFORE_FORK:
        with contextlib.suppress(ImportError):
            importlib.import_module(name)


def use_interpreter() -> None:
    """Triton looks at TRITON_INTERPRET as its own kernels are imported: again, then."""
    os.environ["TRITON_INTERPRET"] = "1"
    imported = [name for name in sys.modules if name.partition(".")[0] == "triton"]
    for name in imported:
        if not name.startswith("triton._C"):  # can be imported once only
            del sys.modules[name]
