"""Whether the tests see small changes of the code: mutants, sampled by a seed.

    python tests/mutation --seed 1 --count 200        (make mutants)

Each mutant is one change by an operator of cosmic-ray or of ours. The tests that execute its line
run in a copy of the tree, the fastest first, until one fails or `--budget` seconds of tests have
passed. A test that fails, or that takes more than ten times its time, kills the mutant, provided
that it passes without. cosmic-ray's own sessions are not used: they run one command for every
mutant, in the tree itself, and all tests would take days.

Verdicts are stored in `--cache` as they come, and hold as long as what they rest on is unchanged: a
run that was stopped continues, and after a change of tests only what survived runs again.
"""

from __future__ import annotations

import argparse
import hashlib
import itertools
import json
import os
import shutil
import signal
import sys
import tempfile
import time
from collections.abc import Iterable
from functools import partial
from pathlib import Path

import choosing
import mutations
import running
from choosing import Mutant, Traced
from running import Job

ROOT = Path(__file__).resolve().parents[2]
SURVIVORS = Path(__file__).parent / "survivors.json"
GOAL = 85.0  # per cent
# These see installations, documents, measurements or a GPU.
NOT_TRACED = (
    "tests/bench/", "tests/test_packaging.py", "tests/test_build.py",
    "tests/test_docs.py", "tests/test_examples.py", "tests/test_lightly_example.py",
)  # fmt: skip
# One test in so many, of a file whose tests execute the same lines for minutes.
EVERY = {running.INTERPRETED: 8}


def digest(paths: Iterable[Path]) -> str:
    found = hashlib.sha256()
    for path in sorted(paths):
        found.update(f"{path.relative_to(ROOT)}\0".encode() + path.read_bytes())
    return found.hexdigest()[:16]


class Run:
    """One sample, its cache, and the worktrees that it works in."""

    def __init__(self, options: argparse.Namespace, temporary: Path) -> None:
        self.options, self.temporary = options, temporary
        packages = [p for name in mutations.PACKAGES for p in (ROOT / name).rglob("*.py")]
        self.sources = {str(p.relative_to(ROOT)): p.read_text() for p in sorted(packages)}
        tests = [p for p in (ROOT / "tests").rglob("*.py") if "mutation" not in p.parts]
        helpers = [p for p in tests if not p.name.startswith("test_")]
        names = (str(p.relative_to(ROOT)) for p in sorted(tests) if p not in helpers)
        traced = (n for n in names if not n.startswith(NOT_TRACED) and "/test_gpu_" not in n)
        self.files = [name for name in traced if name.startswith(tuple(options.tests))]
        native = [p for p in (ROOT / "kernels").rglob("*") if p.suffix in (".cpp", ".h")]
        self.cache = options.cache / digest([*packages, *native])
        self.helpers = digest(helpers)
        self.all_tests = digest([ROOT / name for name in self.files]) + self.helpers
        self.worktrees = [temporary / f"tree{place}" for place in range(options.jobs)]
        for tree in self.worktrees:
            running.copy_tree(ROOT, tree)
        self.traced: dict[str, Traced] = {}
        self.struck: set[str] = set()
        self.seconds_later = itertools.count(1)

    def _in_parallel(self, jobs: Iterable[Job]) -> None:
        running.in_parallel(jobs, self.worktrees, self.temporary)

    def trace(self) -> None:
        """Which test executes which lines, and how long it takes."""
        out = {f: self.cache / f"{digest([ROOT / f])}-{self.helpers}.json" for f in self.files}
        stored = self.options.cache / "seconds.json"
        seconds = json.loads(stored.read_text()) if stored.exists() else {}
        missing = [file for file in self.files if not out[file].exists()]
        missing.sort(key=lambda file: -seconds.get(file, (ROOT / file).stat().st_size / 100))
        began = time.perf_counter()
        self._in_parallel(
            Job(partial(running.trace, f, EVERY.get(f, 1), out[f]), after=partial(_report, f))
            for f in missing
        )
        for file in self.files:
            if out[file].exists():
                self.traced[file] = Traced(**json.loads(out[file].read_text()))
                seconds[file] = sum(self.traced[file].seconds.values())
        running.write(stored, json.dumps(seconds))
        self.known = {test for file in self.traced.values() for test in file.collected}
        self.seconds = {t: f.cost(t) for f in self.traced.values() for t in f.seconds}
        tests = sum(len(file.passed) for file in self.traced.values())
        took = f"{len(missing)} of them traced now in {time.perf_counter() - began:.0f} s"
        print(f"{tests} tests in {len(self.traced)} files, {took}", flush=True)

    def verdicts(self, mutants: list[Mutant]) -> dict[Mutant, dict]:
        """Stored ones, and new ones for those that are missing. Each test that has killed is then
        run without a mutant; one that fails there as well kills nothing."""
        while True:
            found = {mutant: self._stored(mutant) for mutant in mutants}
            missing = [mutant for mutant, verdict in found.items() if verdict is None]
            if not missing:
                killers = {v["test"] for v in found.values() if "::" in v["test"]}
                if not self._strike(killers):
                    return found
            self._in_parallel(self._jobs(missing))

    def _path(self, *parts: object) -> Path:
        name = hashlib.sha256(" ".join(map(str, parts)).encode()).hexdigest()[:20]
        return self.cache / "verdicts" / f"{name}.json"

    def _mutant_path(self, mutant: Mutant) -> Path:
        return self._path(mutant.path, mutant.operator, mutant.occurrence)

    def _tests_of(self, verdict: dict) -> str:
        """What it rests on: the file of the test that kills, or all tests."""
        file = verdict["test"].partition("::")[0]
        return digest([ROOT / file]) if file in self.files else self.all_tests

    def _stored(self, mutant: Mutant) -> dict | None:
        path = self._mutant_path(mutant)
        stored = json.loads(path.read_text()) if path.exists() else None
        stands = stored and stored["test"] not in self.struck
        return stored if stands and stored["rests_on"] == self._tests_of(stored) else None

    def _jobs(self, mutants: Iterable[Mutant]) -> Iterable[Job]:
        for mutant in mutants:
            source = self.sources[mutant.path]
            tests = choosing.candidates(mutant, source, self.traced.values())
            tests = {test: cost for test, cost in tests.items() if test not in self.struck}
            chosen = choosing.within(tests, self.options.budget)
            if chosen:
                yield Job(
                    lambda tree, folder, chosen=chosen: running.run_tests(
                        chosen, self.known, folder / "outcome", "-x"
                    ),
                    before=partial(self._apply, mutant),
                    after=partial(self._judge, mutant, len(chosen), time.perf_counter()),
                )
            else:
                self._store(mutant, {"test": "", "reason": "no test executes it", "tests": 0})

    def _apply(self, mutant: Mutant, tree: Path) -> None:
        path = tree / mutant.path
        path.write_text(mutations.mutated(mutant, self.sources[mutant.path]))
        # Python takes a compiled file by its source's size and time, in seconds.
        times = (ROOT / mutant.path).stat().st_mtime + next(self.seconds_later)
        os.utime(path, (times, times))

    def _judge(
        self, mutant: Mutant, tests: int, began: float, tree: Path, folder: Path, code: int
    ) -> None:
        shutil.copy2(ROOT / mutant.path, tree / mutant.path)
        if code not in (0, 1):
            raise RuntimeError(f"{mutant}: {(folder / 'log').read_text()[-2000:]}")
        outcome = json.loads((folder / "outcome").read_text()) if code else {}
        verdict = {"test": outcome.get("test", ""), "reason": outcome.get("reason", "")}
        seconds = round(time.perf_counter() - began, 1)
        self._store(mutant, verdict | {"tests": tests, "seconds": seconds})

    def _store(self, mutant: Mutant, verdict: dict) -> None:
        verdict["rests_on"] = self._tests_of(verdict)
        running.write(self._mutant_path(mutant), json.dumps(verdict))
        word = f"killed by {verdict['test']}" if verdict["test"] else "SURVIVED"
        seconds, changed = verdict.get("seconds", 0), self.difference(mutant)[1]
        print(f"{mutant.path}:{mutant.line}: {changed}\n    {seconds} s: {word}", flush=True)

    def _strike(self, killers: set[str]) -> set[str]:
        """Those that fail, or do not end, without a mutant too."""
        files: dict[str, list[str]] = {}
        for test in sorted(killers):
            if not self._trust_path(test).exists():
                files.setdefault(test.partition("::")[0], []).append(test)
        self._in_parallel(
            Job(partial(self._run_without, tests), after=partial(self._trust, tests))
            for tests in files.values()
        )
        failed = {t for t in killers if not json.loads(self._trust_path(t).read_text())}
        new = failed - self.struck
        self.struck |= failed
        return new

    def _trust_path(self, test: str) -> Path:
        return self._path(test, digest([ROOT / test.partition("::")[0]]))

    def _run_without(self, tests: list[str], tree: Path, folder: Path) -> int:
        chosen = choosing.within({t: self.seconds.get(t, 1.0) for t in tests}, float("inf"))
        return running.run_tests(chosen, self.known, folder / "outcome")

    def _trust(self, tests: list[str], tree: Path, folder: Path, code: int) -> None:
        passed = json.loads((folder / "outcome").read_text())["passed"]
        for test in tests:
            running.write(self._trust_path(test), json.dumps(test in passed))
            if test not in passed:
                print(f"{test} fails without a mutant: its kills do not count", flush=True)

    def is_change(self, mutant: Mutant) -> bool:
        return mutations.is_change(mutant, self.sources[mutant.path])

    def difference(self, mutant: Mutant) -> tuple[str, str]:
        return mutations.difference(mutant, self.sources[mutant.path])


def _report(file: str, tree: Path, folder: Path, code: int) -> None:
    if code not in (0, 5):
        print(f"{file}: status {code}\n{(folder / 'log').read_text()[-800:]}", flush=True)


def table(verdicts: dict[Mutant, dict]) -> str:
    """One row for each folder."""
    rows = [("folder", "mutants", "killed", "survived", "of these never run", "score"), ["---"] * 6]
    for name in (*sorted({mutant.folder for mutant in verdicts}), "all"):
        those = [v for m, v in verdicts.items() if name in ("all", m.folder)]
        killed = sum(1 for v in those if v["test"])
        unseen = sum(1 for v in those if not v["tests"])
        score = f"{100 * killed / len(those):.0f} %"
        rows.append((name, len(those), killed, len(those) - killed, unseen, score))
    return "\n".join("| " + " | ".join(map(str, row)) + " |" for row in rows)


def survivors(run: Run, verdicts: dict[Mutant, dict]) -> list[dict[str, str]]:
    """With the reasons that are written down already."""
    stored = json.loads(SURVIVORS.read_text()) if SURVIVORS.exists() else []
    reasons = {(s["file"], s["was"], s["is"]): s["reason"] for s in stored}
    found = []
    for mutant, verdict in verdicts.items():
        if not verdict["test"]:
            was, now = run.difference(mutant)
            reason = reasons.get((mutant.path, was, now), "")
            found.append({"file": mutant.path, "was": was, "is": now, "reason": reason})
    return found


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    cache = Path(os.environ.get("XDG_CACHE_HOME", "~/.cache")).expanduser()
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--count", type=int, default=200)
    parser.add_argument("--jobs", type=int, default=os.cpu_count(), help="processes at a time")
    parser.add_argument("--budget", type=float, default=60.0, help="seconds of tests for a mutant")
    parser.add_argument("--cache", type=Path, default=cache / "barlow_fast" / "mutants")
    parser.add_argument("--code", nargs="*", default=[""], help="only mutants of these paths")
    parser.add_argument("--tests", nargs="*", default=[""], help="only tests of these paths")
    parser.add_argument("--write", action="store_true", help=f"the survivors, to {SURVIVORS.name}")
    options = parser.parse_args()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))  # what was begun is ended
    running.import_before_fork()
    with tempfile.TemporaryDirectory(prefix="mutants-") as temporary:
        run = Run(options, Path(temporary))
        run.trace()
        population = [
            mutant
            for path, source in run.sources.items()
            if path.startswith(tuple(options.code))
            for mutant in mutations.mutants(path, source)
        ]
        chosen = choosing.sample(population, options.count, options.seed, run.is_change)
        print(f"{len(chosen)} of {len(population)} mutants", flush=True)
        verdicts = run.verdicts(chosen)
    lived = survivors(run, verdicts)
    for one in lived:
        print("{file}\n  - {was}\n  + {is}\n    {reason}".format(**one))
    print(table(verdicts))
    if options.write:
        running.write(SURVIVORS, json.dumps(lived, indent=1, ensure_ascii=False) + "\n")
    score = 100 * (1 - len(lived) / len(verdicts))
    mean = sum(verdict.get("seconds", 0.0) for verdict in verdicts.values()) / len(verdicts)
    unexplained = sum(1 for one in lived if not one["reason"])
    print(f"{score:.1f} % killed (goal {GOAL:.0f} %), {mean:.1f} s for each; ", end="")
    print(f"{unexplained} survivors without a reason")
    return int(score < GOAL or unexplained > 0)


if __name__ == "__main__":
    sys.exit(main())
