"""Rules on the shape of the repository: sizes of files, of signatures, of the package's root and of
README.md, and suites that do not depend on the device."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import bans
import pytest
from ended import tracked

ROOT = Path(__file__).resolve().parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8").splitlines()
MOST_GENERATED_BYTES = 200_000
MOST_PARAMETERS = 12
MOST_ROOT_MODULES = 14
# Signatures that users call and that therefore stay. Every entry needs more than MOST_PARAMETERS.
PUBLIC = {
    "barlow_twins_loss",
    "ViewLoader.__init__",
    "evaluate_linear",
    "explain",
    "mixed_barlow_twins_loss",
    "vicreg_loss",
    "VICRegLoss.__init__",
}
# Kernels take pointers, strides and sizes; commands take one parameter per option.
UNLIMITED = ("kernels/", "barlow_fast/cli/")
DEVICE_KINDS = {"cpu", "cuda"}


def test_no_large_generated_file_is_tracked():
    """Rows of the benchmark are measurements; any other file of this size is generated."""
    large = [
        name
        for name in tracked()
        if (ROOT / name).stat().st_size > MOST_GENERATED_BYTES
        and not (name.startswith("bench/results/") and name.endswith(".jsonl"))
    ]
    assert not large, f"files above {MOST_GENERATED_BYTES} bytes: {large}"


def test_the_readme_is_short_and_begins_with_the_gpu_status():
    assert len(README) <= 120
    beginning = "\n".join(README[:10])
    assert "never run on a GPU" in beginning
    assert "No GPU figure is claimed" in beginning


@pytest.mark.parametrize("command", ["make demo", "make test"])
def test_the_readme_has_its_two_commands(command):
    assert any(line.strip().startswith(command) for line in README)


def functions(tree: ast.AST, inside: str = "") -> Iterator[tuple[str, ast.FunctionDef]]:
    """(qualified name, function) of every function and method of a module, nested ones too."""
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
            yield f"{inside}{node.name}", node
        named = isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef))
        yield from functions(node, f"{inside}{node.name}." if named else inside)


def parameters(function: ast.FunctionDef) -> int:
    """The number of parameters, self and a context of autograd included."""
    given = function.args
    several = [each for each in (given.vararg, given.kwarg) if each is not None]
    return len([*given.posonlyargs, *given.args, *given.kwonlyargs, *several])


def test_no_function_has_too_many_parameters():
    found, exempt = [], set()
    for name in tracked():
        if not name.endswith(".py") or name.startswith(UNLIMITED):
            continue
        for qualified, function in functions(ast.parse((ROOT / name).read_text("utf-8"))):
            if parameters(function) <= MOST_PARAMETERS:
                continue
            if name.startswith("barlow_fast/") and qualified in PUBLIC:
                exempt.add(qualified)
            else:
                found.append(f"{name}:{function.lineno}: {qualified}: {parameters(function)}")
    assert not found, f"more than {MOST_PARAMETERS} parameters:\n" + "\n".join(found)
    assert exempt == PUBLIC, "an exemption that nothing needs"


def is_kind(node: ast.AST) -> bool:
    return isinstance(node, ast.Constant) and node.value in DEVICE_KINDS


def device_branches(tree: ast.AST) -> Iterator[int]:
    """Lines that compare a device's kind, or read `is_cuda`."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute) and node.attr == "is_cuda":
            yield node.lineno
        if isinstance(node, ast.Compare):
            compared = [node.left, *node.comparators]
            kind = any(getattr(each, "attr", "") == "type" for each in compared)
            constants = [each for part in compared for each in ast.walk(part)]
            if kind or any(is_kind(each) for each in constants):
                yield node.lineno
        if isinstance(node, ast.MatchValue) and is_kind(node.value):
            yield node.lineno


SUITES = sorted((ROOT / "bench" / "suites").glob("*.py"))


@pytest.mark.parametrize("suite", SUITES, ids=lambda path: path.stem)
def test_suites_do_not_branch_on_the_device(suite):
    lines = list(device_branches(ast.parse(suite.read_text(encoding="utf-8"))))
    assert not lines, f"{suite.name}: lines {lines}: ask bench/devices.py instead"


@pytest.mark.parametrize(
    "source",
    [
        "if device.type == 'mps': pass",
        "x = 1 if kind == 'cuda' else 2",
        "x = device in ('cpu', 'mps')",
        "x = tensor.is_cuda",
        "match kind:\n    case 'cpu': pass",
    ],
)
def test_branches_on_the_device_are_found(source):
    assert list(device_branches(ast.parse(source)))


def test_the_root_of_the_package_has_few_modules():
    modules = sorted(path.name for path in (ROOT / "barlow_fast").glob("*.py"))
    assert len(modules) <= MOST_ROOT_MODULES, modules


@pytest.mark.parametrize(
    ("line", "hits"),
    [
        ("told = agreement.tell(values)", 1),
        ("def test_ranks_tell_it(): self.companion = None", 2),
        ("cp.async.bulk.tensor; position = file.tell(); explain(n, d)", 0),
        ("with split-K tiles, trees of files, multiprocessors, a storyteller", 0),
    ],
)
def test_words_that_the_glossary_replaces_are_found(line, hits, tmp_path):
    (tmp_path / "module.py").write_text(line)
    assert len(bans.replaced_words(tmp_path / "module.py", "module.py")) == hits
