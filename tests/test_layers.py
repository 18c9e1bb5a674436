"""Imports point downwards and form no circle, those inside functions included."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
# From the top down; a module imports its own line and the lines below.
LAYERS = (
    ("bench",),
    ("__main__", "cli"),
    ("doctor",),
    ("training",),
    ("evaluation",),
    ("checkpoints",),
    ("data", "models"),
    ("adapters",),
    ("__init__", "microbatch", "warming", "explain"),
    ("losses", "statistics"),
    ("ops",),
    ("forms", "distributed"),
    ("plan",),
    ("differentiable",),
    ("arguments", "reference"),
    ("kernels",),
    ("files", "inputs", "terminal"),
)
LEVEL = {name: level for level, names in enumerate(LAYERS) for name in names}
# `python -m barlow_fast` and lazy public names stand above what they start.
ABOVE = {("__init__", "adapters")}


def modules() -> dict[str, Path]:
    """Every module of the repository by the name that it is imported under."""
    found = {}
    for folder, package in (("barlow_fast", ""), ("kernels", "kernels"), ("bench", "bench")):
        for path in (ROOT / folder).rglob("*.py"):
            parts = path.relative_to(ROOT / folder).with_suffix("").parts
            parts = parts[:-1] if parts[-1] == "__init__" and len(parts) > 1 else parts
            if package and parts == ("__init__",):
                parts = ()
            found[".".join((*((package,) if package else ()), *parts))] = path
    return found


def absolute(node: ast.ImportFrom, name: str, is_package: bool) -> str | None:
    """The module that `from ... import` names, without `barlow_fast.`; None outside."""
    if node.level == 0:
        module = node.module or ""
        if module.split(".")[0] not in ("barlow_fast", "bench"):
            return None
        return module.removeprefix("barlow_fast").removeprefix(".") or "__init__"
    parts = [] if name == "__init__" else name.split(".")
    up = node.level - (1 if is_package else 0)
    parts = parts[: len(parts) - up] if up else parts
    return ".".join((*parts, *filter(None, [node.module]))) or "__init__"


def imports(name: str, path: Path, known: dict[str, Path]) -> Iterator[str]:
    """The modules of the repository that one of them imports, anywhere in its file."""
    is_package = path.name == "__init__.py"
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom):
            module = absolute(node, name, is_package)
            if module is None:
                continue
            prefix = "" if module == "__init__" else f"{module}."
            for alias in node.names:
                target = f"{prefix}{alias.name}"
                yield target if target in known else module
        elif isinstance(node, ast.Import):
            for alias in node.names:
                target = alias.name.removeprefix("barlow_fast.")
                if target in known and alias.name.split(".")[0] in ("barlow_fast", "bench"):
                    yield target


@pytest.fixture(scope="module")
def graph() -> dict[str, set[str]]:
    known = modules()
    return {
        name: {target for target in imports(name, path, known) if target != name}
        for name, path in known.items()
    }


def circles(graph: dict[str, set[str]]) -> list[list[str]]:
    """Strongly connected components of more than one module."""
    reachable: dict[str, set[str]] = {}
    for name in graph:
        seen, left = set(), [name]
        while left:
            for target in graph.get(left.pop(), ()):
                if target not in seen:
                    seen.add(target)
                    left.append(target)
        reachable[name] = seen
    found = {
        tuple(sorted(other for other in seen if name in reachable.get(other, ())))
        for name, seen in reachable.items()
        if name in seen
    }
    return [list(circle) for circle in sorted(found)]


def test_every_module_has_a_layer(graph: dict[str, set[str]]):
    assert {name.split(".")[0] for name in graph} == set(LEVEL)


def test_imports_point_downwards(graph: dict[str, set[str]]):
    upwards = [
        f"{name} -> {target}"
        for name, targets in sorted(graph.items())
        for target in sorted(targets)
        if LEVEL[target.split(".")[0]] < LEVEL[name.split(".")[0]]
        and (name, target.split(".")[0]) not in ABOVE
    ]
    assert not upwards


def test_imports_form_no_circle(graph: dict[str, set[str]]):
    assert not circles(graph)


def test_a_lazy_import_that_closes_a_circle_is_found(tmp_path: Path):
    lower, upper = tmp_path / "lower.py", tmp_path / "upper.py"
    lower.write_text("def late():\n    from .upper import name\n")
    upper.write_text("from .lower import late\n")
    known = {"lower": lower, "upper": upper}
    found = {name: set(imports(name, path, known)) for name, path in known.items()}
    assert circles(found) == [["lower", "upper"]]
