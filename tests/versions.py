"""The tests of loss, ranks, kernels, interpreter and compilation on every supported torch.

    make test-versions                              # every row of the table
    make test-versions VERSIONS="oldest newest"     # of 'oldest', 'newest' and versions of torch

Each row has an environment in the user's cache (~/.cache/barlow_fast/versions, or below
XDG_CACHE_HOME), gigabytes that the first run installs and later ones use again; the folder may be
deleted at any time. It holds torch and the tools of the tests. What is tested is this clone: its
sources, and the native library that `make install` built, which must load in every torch.

Ends with a table, and with status 1 when a test failed or a tier ran nothing. Needs nothing beyond
the standard library.
"""

from __future__ import annotations

import argparse
import contextlib
import hashlib
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import xml.etree.ElementTree as ElementTree
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).resolve().parents[1]


class Row(NamedTuple):
    """A release of torch, the Triton that its Linux wheel brings, and the Python it is run on."""

    torch: str
    triton: str
    python: str
    oldest_python: str  # that this torch has wheels for

    @property
    def numpy(self) -> str:
        """Triton 3.6's interpreter fails in loops over a range with NumPy 2.4."""
        return "numpy<2.4" if self.triton.startswith("3.6.") else "numpy"


# Oldest first. docs/support.md has the same table; pyproject.toml and the workflows must agree
# with it (test_versions.py).
MATRIX = (
    Row("2.10.0", "3.6.0", "3.10", "3.10"),
    Row("2.11.0", "3.6.0", "3.12", "3.10"),
    Row("2.14.1", "3.8.0", "3.11", "3.10"),
    Row("2.15.0", "3.9.0", "3.13", "3.11"),
)
TOOLS = ("pytest>=8", "pytest-benchmark>=5", "hypothesis>=6.100", "expecttest>=0.2")

PYTEST = ("-m", "pytest", "-q", "-p", "no:cacheprovider", "-m", "not slow")


class Tier(NamedTuple):
    """Some tests, and the environment variables that they need."""

    name: str
    paths: tuple[str, ...]
    environment: dict[str, str]


# Two run side by side on two cores; waiting threads that spin would take the other's core.
ONE_THREAD = {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}
THREADS = {"OMP_WAIT_POLICY": "passive"}
INTERPRETED = {"TRITON_INTERPRET": "1"}  # must be on before Triton is imported
# The longest first: that is the order in which they begin.
TIERS = (
    Tier("interpreter", ("tests/triton_kernels/test_interpreter.py",), INTERPRETED | ONE_THREAD),
    Tier("compilation", ("tests/triton_kernels/test_compilation.py",), ONE_THREAD),
    Tier("distributed", ("tests/distributed",), ONE_THREAD),
    Tier("kernels", ("tests/kernels", "tests/triton_kernels/test_planning.py"), THREADS),
    Tier("loss", ("tests/loss",), THREADS),
)

# What an environment must be before its tests count.
PROBE = """
import json, sys, torch, triton, barlow_fast, barlow_fast.kernels as kernels
print(json.dumps({
    "python": "%d.%d" % sys.version_info[:2],
    "torch": torch.__version__.split("+")[0],
    "triton": triton.__version__.split("+")[0],
    "sources": [barlow_fast.__file__, kernels.__file__],
    "native": kernels.why_unusable("cpu", torch.device("cpu")),
}))
"""


class Failure(Exception):
    """Why a row cannot be tested."""


class Result(NamedTuple):
    """One line of the table at the end."""

    row: Row
    python: str
    tier: str
    outcome: str
    seconds: float
    failed: bool


def cache(name: str = "versions") -> Path:
    """Where the environments are."""
    base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(base) / "barlow_fast" / name


def selected(names: Sequence[str]) -> list[Row]:
    """Rows by name, all when there is none; in the order of the table."""
    known = {row.torch: row for row in MATRIX} | {"oldest": MATRIX[0], "newest": MATRIX[-1]}
    unknown = [name for name in names if name not in known]
    if unknown:
        raise SystemExit(f"VERSIONS: {' '.join(unknown)} is none of {', '.join(known)}")
    wanted = {known[name] for name in names or known}
    return [row for row in MATRIX if row in wanted]


def numbers(version: str) -> tuple[int, ...]:
    return tuple(int(part) for part in version.split("."))


def pythons(version: str) -> Iterator[str]:
    """Where a Python of this version may be: this one, PATH, and pyenv's folder."""
    yield sys.executable
    on_path = shutil.which(f"python{version}")
    if on_path:
        yield on_path
    pyenv = Path(os.environ.get("PYENV_ROOT") or Path.home() / ".pyenv")
    for path in sorted(pyenv.glob(f"versions/{version}.*/bin/python{version}")):
        yield str(path)


def version_of(python: str) -> str | None:
    """'3.12' when this command is a Python that can make environments, None otherwise."""
    text = "import sys, venv, ensurepip; print('%d.%d' % sys.version_info[:2])"
    done = subprocess.run([python, "-c", text], capture_output=True, text=True)
    return done.stdout.strip() if done.returncode == 0 else None


def find_python(row: Row) -> tuple[str, str]:
    """(command, version) of the row's Python, of this one where that is missing."""
    for python in pythons(row.python):
        if version_of(python) == row.python:
            return python, row.python
    running = f"{sys.version_info[0]}.{sys.version_info[1]}"
    if numbers(running) < numbers(row.oldest_python):
        raise Failure(
            f"no Python {row.python} here, and torch {row.torch} has no wheel for {running}: "
            f"install Python {row.python}"
        )
    return sys.executable, running


def run(command: Sequence[str | Path], environment: Mapping[str, str]) -> None:
    """A step that must succeed."""
    done = subprocess.run(command, env=os.environ | dict(environment))
    if done.returncode:
        raise Failure(f"status {done.returncode} of: {' '.join(map(str, command))}")


def environment_of(row: Row, python: str, version: str) -> Path:
    """The Python of the row's environment, installed when the cache has none.

    The name contains a hash of the requirements, so that other ones never meet an old environment.
    It is made under another name and renamed when complete, so that an interrupted installation is
    never used.
    """
    requirements = (f"torch=={row.torch}", row.numpy, *TOOLS)
    key = hashlib.sha256("\n".join(requirements).encode()).hexdigest()[:8]
    folder = cache() / f"python{version}-torch{row.torch}-{key}"
    if not folder.exists():
        cache().mkdir(parents=True, exist_ok=True)
        print(f"installing torch {row.torch} for Python {version} into {folder}", flush=True)
        with tempfile.TemporaryDirectory(prefix="incomplete-", dir=cache()) as work:
            made = Path(work) / "environment"
            run([python, "-m", "venv", made], {})
            # The environment is what is kept, so no second copy of its wheels is; an interrupted
            # pip leaves nothing outside `work`. The versions are the matrix's: constraints of the
            # machine's pip configuration do not apply to them.
            pip = [made / "bin" / "python", "-m", "pip", "install", "-q", "--no-cache-dir"]
            settings = {"PIP_CONSTRAINT": os.devnull, "TMPDIR": work}
            run([*pip, "--no-compile", *requirements], settings)
            made.rename(folder)
    return folder / "bin" / "python"


def from_the_clone() -> dict[str, str]:
    """Environment variables with which a Python imports barlow_fast from this clone."""
    others = os.environ.get("PYTHONPATH")
    startup = str(ROOT / "bench" / "gpu" / "startup")
    return {"PYTHONPATH": os.pathsep.join([startup, others] if others else [startup])}


def probe(python: str | Path) -> dict:
    """What PROBE finds in an environment, with barlow_fast from this clone."""
    done = subprocess.run(
        [python, "-c", PROBE],
        capture_output=True,
        text=True,
        cwd=ROOT,
        env=os.environ | from_the_clone(),
    )
    if done.returncode:
        raise Failure(f"import of barlow_fast failed:\n{done.stderr}")
    return json.loads(done.stdout.splitlines()[-1])


def check(found: dict, row: Row, python: str) -> None:
    """The environment is the row's, the sources are the clone's, and the native library loads."""
    for name, wanted in (("python", python), ("torch", row.torch), ("triton", row.triton)):
        if found[name] != wanted:
            raise Failure(f"the environment's {name} is {found[name]}, not {wanted}")
    if not all(ROOT in Path(source).resolve().parents for source in found["sources"]):
        raise Failure(f"barlow_fast is not imported from this clone: {found['sources']}")
    if found["native"] is not None:
        raise Failure(f"the native library does not load: {found['native']}")


def counts(report: Path) -> dict[str, int]:
    """How many tests passed, failed and were skipped, from pytest's report."""
    suites = ElementTree.parse(report).getroot().iter("testsuite")
    found = {"tests": 0, "failures": 0, "errors": 0, "skipped": 0}
    for suite in suites:
        for name in found:
            found[name] += int(suite.get(name, 0))
    failed = found["failures"] + found["errors"]
    passed = found["tests"] - failed - found["skipped"]
    return {"passed": passed, "failed": failed, "skipped": found["skipped"]}


def run_tiers(work: Sequence[tuple[Row, str, Sequence[str], Tier]], jobs: int) -> Iterator[Result]:
    """Runs tiers of rows, `jobs` at a time; what each has to say is printed when it is done."""
    waiting, running = list(work), []
    try:
        while waiting or running:
            while waiting and len(running) < jobs:
                running.append(Run(*waiting.pop(0)))
            done = [run for run in running if run.process.poll() is not None]
            for run in done:
                running.remove(run)
                yield run.result()
            time.sleep(0.0 if done else 0.2)
    finally:
        for run in running:
            run.end()


class Run:
    """One tier on one row, in a process group of its own."""

    def __init__(self, row: Row, version: str, python: Sequence[str], tier: Tier) -> None:
        self.row, self.version, self.tier = row, version, tier
        self.name = f"torch {row.torch}, Python {version}: {tier.name}"
        self.folder = tempfile.TemporaryDirectory()
        self.report = Path(self.folder.name) / "report.xml"
        self.log = Path(self.folder.name) / "log"
        self.started = time.monotonic()
        print(f"begun: {self.name}", flush=True)
        with self.log.open("wb") as log:
            self.process = subprocess.Popen(
                [*python, *PYTEST, f"--junitxml={self.report}", *tier.paths],
                cwd=ROOT,
                env=os.environ | from_the_clone() | tier.environment,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )

    def result(self) -> Result:
        """What the tests came to; a failure when one failed, or none ran."""
        seconds, status = time.monotonic() - self.started, self.process.returncode
        print(f"\n== {self.name}")
        print(self.log.read_text(encoding="utf-8", errors="replace"), flush=True)
        outcome, failed = f"pytest ended with status {status}", True
        if self.report.exists():
            found = counts(self.report)
            outcome = ", ".join(f"{number} {name}" for name, number in found.items())
            failed = bool(status or found["failed"] or not found["passed"])
        self.folder.cleanup()
        return Result(self.row, self.version, self.tier.name, outcome, seconds, failed)

    def end(self) -> None:
        """Ends the process with all that it started."""
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()
        self.folder.cleanup()


def prepared(row: Row) -> tuple[str, list[str]]:
    """(version of Python, command of the environment's), checked."""
    python, version = find_python(row)
    interpreter = environment_of(row, python, version)
    check(probe(interpreter), row, version)
    return version, [str(interpreter)]


def run_rows(rows: Sequence[Row], tiers: Sequence[Tier], jobs: int) -> list[Result]:
    """Every tier on every row; a row that cannot be tested is one failure."""
    results, environments = [], []
    for row in rows:
        try:
            environments.append((row, *prepared(row)))
        except Failure as failure:
            results.append(Result(row, row.python, "none", str(failure), 0.0, True))
    work = [(*environment, tier) for tier in tiers for environment in environments]
    results += run_tiers(work, jobs)
    return sorted(results, key=lambda result: rows.index(result.row))


def table(results: Sequence[Result]) -> str:
    """One line per tier, and what ran on another Python than the table says."""
    lines = [("torch", "Triton", "Python", "tier", "seconds", "outcome")]
    for result in results:
        instead = "" if result.python == result.row.python else f" (no {result.row.python} here)"
        seconds, outcome = f"{result.seconds:.0f}", result.outcome
        if result.failed:
            outcome = f"FAILED: {outcome}"
        row = result.row
        lines.append(
            (row.torch, row.triton, result.python + instead, result.tier, seconds, outcome)
        )
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    return "\n".join(
        "  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip()
        for line in lines
    )


def main() -> int:
    """Exit status 0 when every tier of every row passed."""
    tiers = {tier.name: tier for tier in TIERS}
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("versions", nargs="*", help="of 'oldest', 'newest' and versions of torch")
    parser.add_argument("--tiers", nargs="+", choices=tiers, default=list(tiers))
    parser.add_argument("--jobs", type=int, default=2, help="tiers that run at a time")
    arguments = parser.parse_args()
    # Ends as Ctrl-C does: what is begun is stopped, and an incomplete environment removed.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit("ended by SIGTERM"))
    chosen = [tier for tier in TIERS if tier.name in arguments.tiers]
    results = run_rows(selected(arguments.versions), chosen, arguments.jobs)
    print(f"\n{table(results)}")
    return int(any(result.failed for result in results))


if __name__ == "__main__":
    sys.exit(main())
