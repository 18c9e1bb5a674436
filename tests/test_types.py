"""Types that a type checker reads: the words of an option are those that it accepts."""

from __future__ import annotations

import importlib
import inspect
import re
import shutil
import sys
import typing
from pathlib import Path

import pytest
from ended import completed

from barlow_fast import BarlowTwinsLoss, arguments, barlow_twins_loss, explain, ops
from barlow_fast.adapters import standardised
from barlow_fast.distributed import autograd
from barlow_fast.kernels import KERNEL_SETS
from barlow_fast.kernels.precision import PRECISIONS

ROOT = Path(__file__).resolve().parents[1]
ACCEPTED = arguments.ACCEPTED
CORRECT = """
import torch
from torch import Tensor

from barlow_fast import BarlowTwinsLoss, Plan, Terms, barlow_twins_loss, explain, patch, warmup
from barlow_fast import MixedBarlowTwinsLoss, VICRegLoss, VICRegTerms, frossl_loss, vicreg_loss
from barlow_fast.adapters.lightly import BarlowTwinsLoss as Lightly

z = torch.randn(4, 8)
loss: Tensor = barlow_twins_loss(z, z, 0.01, form="gram", precision="bf16", scale=2.0)
pair: tuple[Tensor, Terms] = barlow_twins_loss(z, z, return_terms=True, backend="aten")
loss = BarlowTwinsLoss(form="correlation", statistics="local")(z, z)
pair = BarlowTwinsLoss(process_group="world")(z, z, return_terms=True)
loss = barlow_twins_loss([z, z, z], lambd=0.1)
loss = vicreg_loss(z, z, 25.0, gamma=2.0, form="gram")
of_vicreg: tuple[Tensor, VICRegTerms] = vicreg_loss([z, z], return_terms=True)
of_vicreg = VICRegLoss()(z, z, return_terms=True)
loss = frossl_loss([z, z], precision="bf16")
loss = MixedBarlowTwinsLoss(mixing=2.0)(z, z, z, torch.arange(4), 0.5)
plan: Plan = explain(4, 8, form="gram", layout="rows", world_size=2)
warmup([(4, 8)], device="cpu", form="gram")
Lightly(gradient="official")
patch("lightly")
"""
WRONG = (
    'barlow_twins_loss(z, z, form="grma")',
    'barlow_twins_loss(z, z, frm="gram")',
    'BarlowTwinsLoss(form="grma")',
    'explain(4, 8, backend="cdua")',
    'vicreg_loss(z, z, form="grma")',
    'frossl_loss([z, z], precison="bf16")',
    "loss = VICRegLoss()(z, z, return_terms=True)",
    'warmup([(4, 8)], form="grma")',
    'Lightly(gradient="offical")',
    "loss = BarlowTwinsLoss()(z, z, return_terms=True)",
)


def words(function: typing.Any, name: str) -> tuple[str, ...]:
    """Of a parameter that is a Literal, or a Literal or something else."""
    hint = typing.get_type_hints(function)[name]
    literals = (h for h in (hint, *typing.get_args(hint)) if typing.get_origin(h) is typing.Literal)
    return typing.get_args(next(literals))


@pytest.mark.parametrize(
    "function",
    [barlow_twins_loss, BarlowTwinsLoss.__init__, explain, standardised.deviation_loss],
    ids=lambda function: function.__qualname__,
)
def test_the_words_of_a_type_are_those_that_are_accepted(function):
    named = [name for name in inspect.signature(function).parameters if name in ACCEPTED]
    assert len(named) >= 4
    for name in named:
        assert words(function, name) == ACCEPTED[name]


def test_accepted_values_are_those_that_exist():
    """Of kernels and layouts, which state their own."""
    assert ACCEPTED["precision"] == ("auto", *PRECISIONS)
    assert ACCEPTED["backend"] == ("auto", *KERNEL_SETS)
    assert ACCEPTED["form"] == ("auto", *ops.FORM)
    assert ACCEPTED["layout"] == ("auto", *autograd.LAYOUT)
    assert set(ACCEPTED) == {
        "precision", "form", "backend", "statistics", "gradient", "layout", "dead_features",
    }  # fmt: skip


def test_words_of_data_and_evaluation_are_those_that_are_accepted():
    data = pytest.importorskip("barlow_fast.data", reason="the extra 'train' is not installed")
    pytest.importorskip("barlow_fast.evaluation")
    from barlow_fast.checkpoints import FORMATS, export
    from barlow_fast.data import faults, loader, pack
    from barlow_fast.evaluation import evaluate_linear, linear
    from barlow_fast.models import build_encoder, build_twins, encoders
    from barlow_fast.training import Feeding

    for function in (data.ViewLoader.__init__, pack.pack, Feeding):
        assert words(function, "on_bad_image") == faults.POLICIES
    for function in (data.ViewLoader.__init__, Feeding):
        assert words(function, "loader") == ("auto", *loader.LOADERS)
    for function in (build_encoder, build_twins):
        assert words(function, "stem") == encoders.STEMS
    assert words(evaluate_linear, "features") == linear.FEATURES
    assert words(data.ViewSpecification, "interpolation") == data.views.INTERPOLATIONS
    assert words(export, "format") == tuple(FORMATS)


def public() -> list[tuple[str, typing.Any]]:
    """What barlow_fast and its adapters take; `Plan` is a result."""
    adapters = sorted(path.stem for path in (ROOT / "barlow_fast/adapters").glob("[a-z]*.py"))
    names = ("barlow_fast", *(f"barlow_fast.adapters.{name}" for name in adapters))
    modules = map(importlib.import_module, names)
    return [
        (f"{module.__name__}.{name}", getattr(module, name))
        for module in modules
        for name in getattr(module, "__all__", ())
        if name != "Plan"
    ]


def test_no_public_name_takes_such_a_word_as_any_string():
    found = [
        f"{name}({parameter.name})"
        for name, item in public()
        if callable(item)
        for parameter in inspect.signature(item).parameters.values()
        if parameter.name in ACCEPTED and parameter.annotation in (str, "str")
    ]
    assert not found


@pytest.mark.parametrize("function", [barlow_twins_loss, BarlowTwinsLoss.__init__])
def test_options_are_those_of_the_function_and_of_the_module(function):
    """Names, order, annotations and defaults."""
    others = {"self", "z_a", "z_b", "return_terms"}
    parameters = inspect.signature(function).parameters.values()
    assert [(p.name, p.annotation, p.default) for p in parameters if p.name not in others] == [
        (name, arguments.Options.__annotations__[name].__forward_arg__, default)
        for name, default in arguments.Options._field_defaults.items()
    ]


def test_the_keywords_of_the_overloads_are_those_of_the_function():
    options = typing.get_type_hints(arguments.Options)
    del options["lambd"]  # by position or keyword
    assert typing.get_type_hints(arguments.Keywords) == options


@pytest.mark.slow
def test_mypy_finds_wrong_words_and_no_fault_in_right_ones(tmp_path):
    pytest.importorskip("mypy", reason="mypy is not installed")
    package = tmp_path / "packages" / "barlow_fast"
    shutil.copytree(ROOT / "barlow_fast", package)
    shutil.copytree(ROOT / "kernels", package / "kernels")
    (tmp_path / "right.py").write_text(CORRECT)
    (tmp_path / "wrong.py").write_text(CORRECT + "\n".join(WRONG) + "\n")
    command = ["mypy", "--strict", "--follow-imports=silent", "right.py", "wrong.py"]
    path = str(package.parent)
    done = completed(sys.executable, "-m", *command, cwd=tmp_path, MYPYPATH=path)
    lines = [line for line in done.stdout.splitlines() if ": error: " in line]
    first = CORRECT.count("\n") + 1
    assert {line.split(": error: ")[0] for line in lines} == {
        f"wrong.py:{first + number}" for number in range(len(WRONG))
    }, done.stdout + done.stderr


def _faults(python: str, cache: Path) -> set[str]:
    """mypy's lines of errors for a version of Python; other packages count as unknown."""
    flags = ["--no-site-packages", "--ignore-missing-imports", "--cache-dir", str(cache)]
    parts = ["barlow_fast", "kernels", "bench", "examples", "setup.py"]
    command = [sys.executable, "-m", "mypy", "--python-version", python, *flags, *parts]
    done = completed(*command, cwd=ROOT)
    assert "source files" in done.stdout.splitlines()[-1], done.stdout + done.stderr
    return {line for line in done.stdout.splitlines() if ": error: " in line}


def test_nothing_needs_a_newer_python_than_the_oldest_supported(tmp_path):
    """What only the oldest lacks: the standard library of other versions has more, such as
    `int.from_bytes` without a byte order."""
    pytest.importorskip("mypy", reason="mypy is not installed")
    stated = re.search(r'requires-python = ">=(3\.\d+)"', (ROOT / "pyproject.toml").read_text())
    oldest, newest = stated[1], "3.14"
    assert sorted(_faults(oldest, tmp_path) - _faults(newest, tmp_path)) == []
