"""Which tests could see a mutant, by the lines that each of them executed."""

from __future__ import annotations

import ast
from collections.abc import Iterable, Iterator
from pathlib import Path

from running import Traced

Span = tuple[int, int]  # first and last line


def lines_to_see(source: str, line: int) -> list[Span]:
    """The lines of which one must run for a test to see a change at `line`: its statement within a
    function; for what runs on import, the functions that depend on it."""
    tree = ast.parse(source)
    place = [node for node in ast.walk(tree) if _reaches(node, line)]
    functions = [n for n in place if isinstance(n, ast.FunctionDef | ast.AsyncFunctionDef)]
    inner = max(functions, key=lambda node: node.lineno, default=None)
    if inner is not None and line >= inner.body[0].lineno:
        statements = [n for n in ast.walk(inner) if isinstance(n, ast.stmt) and _head(n, line)]
        return [_head_span(max(statements, key=lambda node: node.lineno))]
    if inner is not None:  # in its header: a default, a decorator
        return [_body(inner)]
    classes = [node for node in place if isinstance(node, ast.ClassDef)]
    scope = max(classes, key=lambda node: node.lineno, default=tree)
    return list(_bodies(scope)) or list(_bodies(tree))


def _reaches(node: ast.AST, line: int) -> bool:
    if not isinstance(node, ast.stmt):
        return False
    first = min([node.lineno, *(d.lineno for d in getattr(node, "decorator_list", []))])
    return first <= line <= (node.end_lineno or first)


def _head_span(node: ast.stmt) -> Span:
    """A compound statement's own lines, without its body."""
    body = getattr(node, "body", None) or getattr(node, "cases", None)
    last = node.end_lineno or node.lineno
    if body:
        first = getattr(body[0], "lineno", None) or body[0].pattern.lineno
        last = max(node.lineno, first - 1)
    return node.lineno, last


def _head(node: ast.stmt, line: int) -> bool:
    """Whether the line is one of the statement, or of an `except` of it."""
    return node.lineno <= line <= (node.end_lineno or node.lineno)


def _body(function: ast.FunctionDef | ast.AsyncFunctionDef) -> Span:
    return function.body[0].lineno, function.end_lineno or function.lineno


def _bodies(scope: ast.AST) -> Iterator[Span]:
    for node in ast.walk(scope):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            yield _body(node)


def candidates(path: str, line: int, source: str, traced: Iterable[Traced]) -> dict[str, float]:
    """All tests that could see it, with the seconds that each takes; none where none executes it.

    Where only importing executes it and no function follows (tables), those of the folder."""
    spans = lines_to_see(source, line)
    found: dict[str, float] = {}
    traced = list(traced)
    for file in traced:
        contexts = {
            context
            for context, lines in file.lines.get(path, {}).items()
            if any(first <= executed <= last for executed in lines for first, last in spans)
        }
        for test in file.passed:
            shared = file.fixtures.get(test, [])
            if test in contexts or contexts.intersection(shared):
                found[test] = cost(file, test)
    if not spans:
        folder = f"tests/{Path(path).parent.name}/"
        for file in traced:
            found.update((t, cost(file, t)) for t in file.passed if t.startswith(folder))
    return found


def cost(file: Traced, test: str) -> float:
    """Its seconds when it runs alone."""
    shared = sum(file.fixture_seconds[key] for key in file.fixtures.get(test, []))
    return max(file.seconds[test], 0.001) + shared


def within(tests: dict[str, float], budget: float) -> dict[str, float]:
    """The fastest that fit into `budget` seconds, at least one; the files whose tests are fastest
    first, and all of a file together, so that what they share is made once."""
    chosen: dict[str, float] = {}
    left = budget
    for test, seconds in sorted(tests.items(), key=lambda pair: (pair[1], pair[0])):
        if chosen and seconds > left:
            break
        chosen[test] = seconds
        left -= seconds
    files: dict[str, list[float]] = {}
    for test, seconds in chosen.items():
        files.setdefault(test.partition("::")[0], []).append(seconds)
    mean = {file: sum(those) / len(those) for file, those in files.items()}
    order = sorted(
        chosen, key=lambda t: (mean[t.partition("::")[0]], t.partition("::")[0], chosen[t], t)
    )
    return {test: chosen[test] for test in order}
