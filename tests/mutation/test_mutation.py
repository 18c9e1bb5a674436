"""Which mutants are tried and which tests are chosen for them. Running them is `make mutants`."""

from __future__ import annotations

import ast
from collections import Counter
from textwrap import dedent

import pytest
from choosing import Mutant, Traced, candidates, lines_to_see, sample, within

SOURCE = dedent("""\
    LIMIT = 3


    class Judge:
        bound = 2

        def judge(self, x, eps=1e-5):
            try:
                if x > (
                    self.bound
                ):
                    return eps
            except ValueError:
                raise
            return 0


    def other(x):
        return x + LIMIT
""")
POPULATION = [
    Mutant(f"{folder}/file.py", "AddNot", place, place)
    for folder, count in (("kernels", 60), ("barlow_fast/data/sources", 30), ("barlow_fast", 10))
    for place in range(count)
]


def everything(mutant: Mutant) -> bool:
    return True


def test_each_folder_has_its_share():
    chosen = sample(POPULATION, 20, 0, everything)
    assert len(set(chosen)) == 20
    counts = Counter(mutant.folder for mutant in chosen)
    assert counts == {"kernels": 12, "barlow_fast/data": 6, "barlow_fast": 2}


def test_shares_are_rounded_to_the_count():
    for count in (1, 7, 11, 99):
        assert len(sample(POPULATION, count, 0, everything)) == count
    assert len(sample(POPULATION, 1000, 0, everything)) == len(POPULATION)


def test_the_seed_decides():
    assert sample(POPULATION, 20, 5, everything) == sample(POPULATION, 20, 5, everything)
    assert sample(POPULATION, 20, 5, everything) != sample(POPULATION, 20, 6, everything)


def test_what_is_no_change_is_replaced():
    chosen = sample(POPULATION, 20, 0, lambda mutant: mutant.line % 2 == 0)
    assert len(chosen) == 20
    assert all(mutant.line % 2 == 0 for mutant in chosen)


@pytest.mark.parametrize(
    ("line", "spans"),
    [
        (9, [(9, 11)]),  # a condition of several lines, without its body
        (10, [(9, 11)]),
        (12, [(12, 12)]),
        (13, [(13, 13)]),  # runs only where something was raised
        (7, [(8, 15)]),  # a default: the body that uses it
        (5, [(8, 15)]),  # a class's own: its methods
        (1, [(19, 19), (8, 15)]),  # the module's own: all functions
        (19, [(19, 19)]),
    ],
)
def test_lines_that_a_test_must_execute(line, spans):
    assert lines_to_see(SOURCE, line) == spans


TRACED = Traced(
    seconds={"a::fast": 0.1, "a::slow": 2.0, "a::shares": 0.5, "a::fails": 0.1, "a::far": 0.1},
    passed=["a::fast", "a::slow", "a::shares", "a::far"],
    fixtures={"a::shares": ["a::run"]},
    fixture_seconds={"a::run": 3.0},
    lines={
        "kernels/file.py": {
            "a::fast": [12],
            "a::slow": [9, 12],
            "a::fails": [12],
            "a::run": [12],
            "a::far": [19],
        }
    },
)


def test_tests_that_execute_the_line_and_pass():
    found = candidates(Mutant("kernels/file.py", "ReturnNone", 0, 12), SOURCE, [TRACED])
    assert found == {"a::fast": 0.1, "a::slow": 2.0, "a::shares": 3.5}
    assert not candidates(Mutant("kernels/file.py", "AddNot", 0, 13), SOURCE, [TRACED])


def test_a_file_without_functions_is_seen_by_its_folder():
    traced = Traced(seconds={"tests/kernels/test_a.py::b": 1.0, "tests/data/test_a.py::b": 1.0})
    traced.passed = list(traced.seconds)
    found = candidates(Mutant("kernels/table.py", "NumberReplacer", 0, 1), "X = 1\n", [traced])
    assert list(found) == ["tests/kernels/test_a.py::b"]


def test_the_fastest_within_the_budget_and_files_together():
    tests = {"a::1": 1.0, "b::1": 2.0, "a::2": 4.0, "b::2": 2.5, "c::1": 9.0}
    assert list(within(tests, 10.0)) == ["b::1", "b::2", "a::1", "a::2"]
    assert list(within({"c::1": 9.0}, 1.0)) == ["c::1"]


@pytest.mark.parametrize(
    ("before", "after"),
    [
        ("f(a, key=b)", ["f(a)"]),
        ("f(key=b)", ["f()"]),
        ("f(key=b, other=c)", ["f(other=c)", "f(key=b)"]),
        ("return f(x)", ["return None"]),
        ("def f(form='gram'): pass", ["def f(form=None): pass"]),
        ("def f(n=3): pass", ["def f(n=4): pass"]),
        ("not a", ["a"]),
        ("a < b", ["a <= b", "a > b"]),
        ("a + b", ["a - b"]),
        ("f(*a, **b)", []),
        ("def f(a, *, b: int | float) -> int | None: pass", []),
        ("raise ValueError(f'{n + 1}', key=n)", []),
        ("warnings.warn('...' + a, stacklevel=2)", []),
        ("zip(a, b, strict=True)", []),
        ("__all__ = ['a' + 'b']", []),
        ("@functools.lru_cache(maxsize=None)\ndef f(): pass", []),
        ("@triton.jit\ndef f(): return 1", []),
    ],
)
def test_changes_and_what_is_left_out(before, after):
    pytest.importorskip("cosmic_ray", reason="pip install 'barlow-fast[mutants]'")
    import mutations

    found = [mutations.mutated(m, before) for m in mutations.mutants("kernels/file.py", before)]
    assert sorted(map(parsed, found)) == sorted(map(parsed, after))


def parsed(source: str) -> str:
    return ast.dump(ast.parse(source.strip()))
