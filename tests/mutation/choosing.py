"""Which mutants are tried, and which tests could see one, by the lines that each test executed."""

from __future__ import annotations

import ast
import random
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

Span = tuple[int, int]  # first and last line
FUNCTIONS = (ast.FunctionDef, ast.AsyncFunctionDef)
# Tests of folders of other names; all others are in a folder of tests/ of the same name.
FOLDERS = {"barlow_fast": "loss", "triton": "triton_kernels", "cpu": "kernels"}


@dataclass(frozen=True)
class Mutant:
    """One change of one file: the `occurrence`-th that `operator` finds there."""

    path: str
    operator: str
    occurrence: int
    line: int

    @property
    def folder(self) -> str:
        return "/".join(Path(self.path).parts[:-1][:2])


@dataclass
class Traced:
    """What the tests of one file did; not all that there are need to have run."""

    collected: list[str] = field(default_factory=list)
    seconds: dict[str, float] = field(default_factory=dict)
    passed: list[str] = field(default_factory=list)
    # Fixtures that several tests share: what runs in them is run for all of these.
    fixtures: dict[str, list[str]] = field(default_factory=dict)
    fixture_seconds: dict[str, float] = field(default_factory=dict)
    # For each file the lines that a test, or such a fixture, executed.
    lines: dict[str, dict[str, list[int]]] = field(default_factory=dict)

    def cost(self, test: str) -> float:
        """Its seconds when it runs alone."""
        shared = sum(self.fixture_seconds[key] for key in self.fixtures.get(test, []))
        return max(self.seconds[test], 0.001) + shared


def sample(
    population: Iterable[Mutant], count: int, seed: int, usable: Callable[[Mutant], bool]
) -> list[Mutant]:
    """`count` of them: each folder's share is that of its mutants, within a folder all are equally
    likely."""
    folders: dict[str, list[Mutant]] = {}
    for mutant in population:
        folders.setdefault(mutant.folder, []).append(mutant)
    whole = sum(map(len, folders.values()))
    count = min(count, whole)
    exact = {name: count * len(those) / whole for name, those in folders.items()}
    shares = {name: int(share) for name, share in exact.items()}
    by_remainder = sorted(exact, key=lambda name: (shares[name] - exact[name], name))
    for name in by_remainder[: count - sum(shares.values())]:
        shares[name] += 1
    chosen = []
    for name in sorted(folders):
        order = random.Random(f"{seed} {name}").sample(folders[name], len(folders[name]))
        chosen += [m for _, m in zip(range(shares[name]), filter(usable, order), strict=False)]
    return chosen


def lines_to_see(source: str, line: int) -> list[Span]:
    """The lines of which one must run for a test to see a change at `line`: its statement within a
    function; for what runs on import, the functions that depend on it."""
    tree = ast.parse(source)
    place = [node for node in ast.walk(tree) if isinstance(node, ast.stmt) and _holds(node, line)]
    inner = max((n for n in place if isinstance(n, FUNCTIONS)), key=_first, default=None)
    if inner is not None and line >= inner.body[0].lineno:
        kinds = (ast.stmt, ast.ExceptHandler)
        statements = [n for n in ast.walk(inner) if isinstance(n, kinds) and _holds(n, line)]
        return [_head(max(statements, key=_first))]
    if inner is not None:  # a default, a decorator
        return [_body(inner)]
    scope = max((n for n in place if isinstance(n, ast.ClassDef)), key=_first, default=tree)
    return list(_bodies(scope)) or list(_bodies(tree))


def runs_on_import(source: str, line: int) -> bool:
    """Whether the line is in the body of no function."""
    functions = (node for node in ast.walk(ast.parse(source)) if isinstance(node, FUNCTIONS))
    return not any(node.body[0].lineno <= line <= node.end_lineno for node in functions)


def _first(node: ast.AST) -> int:
    return min([node.lineno, *(d.lineno for d in getattr(node, "decorator_list", []))])


def _holds(node: ast.AST, line: int) -> bool:
    return _first(node) <= line <= node.end_lineno


def _head(node: ast.AST) -> Span:
    """Of a compound statement its own lines, without its body."""
    body = getattr(node, "body", None)
    return node.lineno, max(node.lineno, body[0].lineno - 1) if body else node.end_lineno


def _body(function: ast.AST) -> Span:
    return function.body[0].lineno, function.end_lineno


def _bodies(scope: ast.AST) -> Iterator[Span]:
    return (_body(node) for node in ast.walk(scope) if isinstance(node, FUNCTIONS))


def candidates(mutant: Mutant, source: str, traced: Iterable[Traced]) -> dict[str, float]:
    """All tests that could see it, with the seconds of each. None where no test executes it; of
    what runs on import, all tests of the folder and of files that use the module: a constant is
    visible to every reader."""
    spans = lines_to_see(source, mutant.line)
    on_import = runs_on_import(source, mutant.line)
    name = Path(mutant.folder).name
    folder = f"tests/{FOLDERS.get(name, name)}/"
    found: dict[str, float] = {}
    for file in traced:
        contexts = {
            context
            for context, lines in file.lines.get(mutant.path, {}).items()
            if any(first <= executed <= last for executed in lines for first, last in spans)
        }
        users = on_import and mutant.path in file.lines
        for test in file.passed:
            runs = test in contexts or not contexts.isdisjoint(file.fixtures.get(test, []))
            if runs or users or (on_import and test.startswith(folder)):
                found[test] = file.cost(test)
    return found


def within(tests: dict[str, float], budget: float) -> dict[str, float]:
    """The fastest that fit into `budget` seconds, at least one. Files with fast tests come first,
    and tests of one file together, so that what they share is made once."""
    chosen: dict[str, float] = {}
    for test in sorted(tests, key=lambda test: (tests[test], test)):
        budget -= tests[test]
        if chosen and budget < 0:
            break
        chosen[test] = tests[test]
    files: dict[str, list[float]] = {}
    for test, seconds in chosen.items():
        files.setdefault(test.partition("::")[0], []).append(seconds)
    mean = {file: sum(those) / len(those) for file, those in files.items()}

    def place(test: str) -> tuple[float, str, float, str]:
        file = test.partition("::")[0]
        return mean[file], file, chosen[test], test

    return {test: chosen[test] for test in sorted(chosen, key=place)}
