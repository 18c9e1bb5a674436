"""Whether the tests see small changes of the code: mutants, sampled by a seed.

    python tests/mutation --seed 1 --count 200        (make mutants)

Each mutant is one change by an operator of cosmic-ray or of ours. The tests that execute its line
run in a copy of the tree, the fastest first, until one fails or `--budget` seconds of tests have
passed; one that fails, or that takes more than ten times its time, kills the mutant, provided that it
passes without the mutant. cosmic-ray's own session is not used: it runs one command for every
mutant in the tree itself, which here would take days.

Verdicts are stored in `--cache` as they come, and hold for as long as what they rest on is unchanged:
a run that was stopped continues, and after a change of tests only what survived runs again.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import shutil
import sys
import tempfile
import time
from collections.abc import Iterable
from functools import partial
from pathlib import Path

import choosing
import mutations
import running
from mutations import Mutant
from running import Job, Traced

ROOT = Path(__file__).resolve().parents[2]
SURVIVORS = Path(__file__).parent / "survivors.json"
GOAL = 85.0  # per cent
# These see installations, documents, measurements or a GPU.
NOT_TRACED = (
    "tests/bench/", "tests/mutation/", "tests/test_packaging.py", "tests/test_build.py",
    "tests/test_docs.py", "tests/test_examples.py", "tests/test_lightly_example.py",
)  # fmt: skip
# One test in so many, of files whose tests repeat the same lines for minutes.
EVERY = {running.INTERPRETED: 4}


def digest(paths: Iterable[Path]) -> str:
    found = hashlib.sha256()
    for path in sorted(paths):
        found.update(f"{path.relative_to(ROOT)}\0".encode() + path.read_bytes())
    return found.hexdigest()[:16]


class Run:
    """One sample, its cache, and the trees that it works in."""

    def __init__(self, options: argparse.Namespace, temporary: Path) -> None:
        self.options, self.temporary = options, temporary
        packages = [p for name in mutations.PACKAGES for p in (ROOT / name).rglob("*.py")]
        self.sources = {str(p.relative_to(ROOT)): p.read_text() for p in sorted(packages)}
        tests = [p for p in (ROOT / "tests").rglob("*.py") if p.parent != SURVIVORS.parent]
        helpers = [p for p in tests if not p.name.startswith("test_")]
        self.files = [
            name
            for name in (str(p.relative_to(ROOT)) for p in sorted(tests) if p not in helpers)
            if not name.startswith(NOT_TRACED)
            and "/test_gpu_" not in name
            and name.startswith(tuple(options.tests))
        ]
        native = [p for p in (ROOT / "kernels").rglob("*") if p.suffix in (".cpp", ".h")]
        self.cache = options.cache / digest([*packages, *native])
        self.helpers = digest(helpers)
        self.all_tests = digest([ROOT / name for name in self.files]) + self.helpers
        self.trees = [temporary / f"tree{place}" for place in range(options.jobs)]
        for tree in self.trees:
            running.copy_tree(ROOT, tree)
        self.traced: dict[str, Traced] = {}
        self.struck: set[str] = set()

    def in_parallel(self, jobs: Iterable[Job]) -> None:
        running.in_parallel(jobs, self.trees, self.temporary)

    def trace(self) -> None:
        """Which test executes which lines, and how long it takes."""
        out = {f: self.cache / f"{digest([ROOT / f])}-{self.helpers}.json" for f in self.files}
        stored = self.options.cache / "seconds.json"
        seconds = json.loads(stored.read_text()) if stored.exists() else {}
        missing = [file for file in self.files if not out[file].exists()]
        missing.sort(key=lambda file: -seconds.get(file, (ROOT / file).stat().st_size / 100))
        began = time.perf_counter()
        jobs = []
        for file in missing:
            job = partial(running.trace, file, EVERY.get(file, 1), out[file])
            jobs.append(Job(job, after=partial(_said, file)))
        self.in_parallel(jobs)
        for file in self.files:
            if out[file].exists():
                self.traced[file] = Traced(**json.loads(out[file].read_text()))
                seconds[file] = sum(self.traced[file].seconds.values())
        running.write(stored, json.dumps(seconds))
        tests = sum(len(file.passed) for file in self.traced.values())
        print(
            f"{tests} tests in {len(self.traced)} files, {len(missing)} of them traced now in "
            f"{time.perf_counter() - began:.0f} s",
            flush=True,
        )

    def verdict_path(self, mutant: Mutant) -> Path:
        return self.cache / "verdicts" / (_name(mutant) + ".json")

    def verdict(self, mutant: Mutant) -> dict | None:
        """The stored one, if what it rests on is as it was."""
        path = self.verdict_path(mutant)
        stored = json.loads(path.read_text()) if path.exists() else None
        if stored is None or stored["test"] in self.struck:
            return None
        if not stored["killed"]:
            return stored if stored["tests"] == self.all_tests else None
        file = ROOT / stored["test"].partition("::")[0]
        return stored if file.exists() and stored["tests"] == digest([file]) else None

    def jobs(self, mutants: Iterable[Mutant]) -> Iterable[Job]:
        known = {test for file in self.traced.values() for test in file.seconds}
        for place, mutant in enumerate(mutants, 1):
            source = self.sources[mutant.path]
            tests = choosing.candidates(mutant.path, mutant.line, source, self.traced.values())
            tests = {test: s for test, s in tests.items() if test not in self.struck}
            chosen = choosing.within(tests, self.options.budget)
            if not chosen:
                self.store(mutant, False, "", "no test executes it", 0, 0.0)
                continue
            yield Job(
                lambda tree, folder, c=chosen: running.run_tests(
                    c, known, folder / "outcome", "-x"
                ),
                before=partial(self._apply, mutant, place),
                after=partial(self._judge, mutant, len(chosen), time.perf_counter),
            )

    def _apply(self, mutant: Mutant, place: int, tree: Path) -> None:
        path = tree / mutant.path
        path.write_text(mutant.source(self.sources[mutant.path]))
        # Python takes a compiled file by the source's time, in seconds, and size.
        times = (ROOT / mutant.path).stat().st_mtime + place
        os.utime(path, (times, times))
        self._began = getattr(self, "_began", {}) | {mutant: time.perf_counter()}

    def _judge(
        self, mutant: Mutant, count: int, clock, tree: Path, folder: Path, code: int
    ) -> None:
        shutil.copy2(ROOT / mutant.path, tree / mutant.path)
        if code not in (0, 1):
            raise RuntimeError(f"{mutant}: {(folder / 'log').read_text()[-2000:]}")
        outcome = json.loads((folder / "outcome").read_text())
        took = clock() - self._began.pop(mutant)
        self.store(mutant, code == 1, outcome["test"], outcome["reason"], count, took)

    def store(
        self, mutant: Mutant, killed: bool, test: str, reason: str, count: int, seconds: float
    ) -> None:
        file = ROOT / test.partition("::")[0]
        tests = digest([file]) if killed and file.is_file() else self.all_tests
        stored = {
            "killed": killed,
            "test": test if killed else "",
            "reason": reason if killed or not count else "",
            "tests": tests,
            "count": count,
            "seconds": round(seconds, 1),
        }
        running.write(self.verdict_path(mutant), json.dumps(stored))
        was, now = mutations.difference(
            self.sources[mutant.path], mutant.source(self.sources[mutant.path])
        )
        word = "killed" if killed else "SURVIVED"
        print(
            f"{word} {seconds:5.1f} s {mutant.path}:{mutant.line} {now}  [{test if killed else count}] {stored['reason'][:80]}",
            flush=True,
        )


def _name(mutant: Mutant) -> str:
    text = f"{mutant.path} {mutant.operator} {mutant.occurrence}"
    return hashlib.sha256(text.encode()).hexdigest()[:20]


def _said(file: str, tree: Path, folder: Path, code: int) -> None:
    if code not in (0, 5):
        print(f"{file}: status {code}: " + (folder / "log").read_text()[-600:], flush=True)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    cache = Path(os.environ.get("XDG_CACHE_HOME", "~/.cache")).expanduser()
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--count", type=int, default=200)
    parser.add_argument("--jobs", type=int, default=os.cpu_count())
    parser.add_argument(
        "--budget", type=float, default=40.0, help="seconds of tests for each mutant"
    )
    parser.add_argument("--cache", type=Path, default=cache / "barlow_fast" / "mutants")
    parser.add_argument("--tests", nargs="*", default=["tests/"], help="where these paths begin")
    parser.add_argument("--trace-only", action="store_true")
    options = parser.parse_args()
    running.import_before_fork()
    with tempfile.TemporaryDirectory(prefix="mutants-") as temporary:
        run = Run(options, Path(temporary))
        run.trace()
        if options.trace_only:
            return 0
        population = [
            m for path, source in run.sources.items() for m in mutations.mutants(path, source)
        ]
        chosen = mutations.sample(population, options.count, options.seed, run.sources)
        print(f"{len(chosen)} of {len(population)} mutants", flush=True)
        run.in_parallel(run.jobs(m for m in chosen if run.verdict(m) is None))
    return 0


if __name__ == "__main__":
    sys.exit(main())
