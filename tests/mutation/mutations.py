"""All mutants of a source file: cosmic-ray's operators, and three of our own.

Left out, because no test can or should tell them apart: annotations, which nothing reads at run
time; `__all__`; what only type checkers see; the texts of errors, warnings and logs. Decorators that
only cache are kept on: without them the same results take longer.
"""

from __future__ import annotations

import ast
import difflib
import random
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import parso
from cosmic_ray.ast import ast_nodes
from cosmic_ray.mutating import mutate_code
from cosmic_ray.operators.operator import Operator
from cosmic_ray.operators.provider import OperatorProvider
from parso.python.tree import Keyword, String

PACKAGES = ("barlow_fast", "kernels")
# Of the replacements for an arithmetic operator or a comparison the nearest ones: those that are
# hardest to see. Of cosmic-ray's other operators all but the one that puts variables anywhere.
BINARY = (
    "Add_Sub", "Sub_Add", "Mul_Div", "Div_Mul", "FloorDiv_Div", "Mod_FloorDiv", "Pow_Mul",
    "LShift_RShift", "RShift_LShift", "BitOr_BitAnd", "BitAnd_BitOr", "BitXor_BitOr",
)  # fmt: skip
COMPARISONS = (
    "Eq_NotEq", "NotEq_Eq", "Lt_LtE", "Lt_Gt", "LtE_Lt", "LtE_GtE", "Gt_GtE", "Gt_Lt", "GtE_Gt",
    "GtE_LtE", "Is_IsNot", "IsNot_Is",
)  # fmt: skip
OTHERS = (
    "ReplaceUnaryOperator_Delete_USub", "ReplaceUnaryOperator_Delete_Not",
    "ReplaceUnaryOperator_Delete_Invert", "AddNot", "ReplaceTrueWithFalse", "ReplaceFalseWithTrue",
    "ReplaceAndWithOr", "ReplaceOrWithAnd", "ReplaceBreakWithContinue",
    "ReplaceContinueWithBreak", "ExceptionReplacer", "NumberReplacer", "RemoveDecorator",
    "ZeroIterationForLoop",
)  # fmt: skip
# Without them the same results take longer (caches); or nothing changes at run time.
KEPT_DECORATORS = ("cache", "lru_cache", "overload", "override", "wraps", "runtime_checkable")
MESSAGES = ("warn", "debug", "info", "warning", "error", "exception")


class DropKeywordArgument(Operator):
    """f(a, option=b) -> f(a): an option that is accepted and then ignored."""

    @staticmethod
    def _arguments(node: Any) -> list[Any]:
        if node.type == "arglist":
            call = node.parent.type in ("trailer", "decorator")
            return [c for c in node.children if c.type == "argument" and call and _keyword(c)]
        sole = node.type == "trailer" and len(node.children) == 3 and node.children[0] == "("
        inner = node.children[1] if sole else None
        return [inner] if sole and inner.type == "argument" and _keyword(inner) else []

    def mutation_positions(self, node: Any) -> Iterator[Any]:
        yield from ((a.start_pos, a.end_pos) for a in self._arguments(node))

    def mutate(self, node: Any, index: int) -> Any:
        place = node.children.index(self._arguments(node)[index])
        after = node.children[place + 1 : place + 2]
        has_comma = bool(after) and after[0] == ","
        del node.children[place : place + 1 + has_comma]
        return node

    @classmethod
    def examples(cls) -> tuple[Any, ...]:
        return ()


def _keyword(argument: Any) -> bool:
    return len(argument.children) == 3 and argument.children[1] == "="


class ReturnNone(Operator):
    """return value -> return None."""

    def mutation_positions(self, node: Any) -> Iterator[Any]:
        if node.type == "return_stmt" and node.children[1] != "None":
            yield node.children[1].start_pos, node.children[1].end_pos

    def mutate(self, node: Any, index: int) -> Any:
        node.children[1] = Keyword("None", node.children[1].start_pos, prefix=" ")
        return node

    @classmethod
    def examples(cls) -> tuple[Any, ...]:
        return ()


class ReplaceDefault(Operator):
    """A default that is a string, of a parameter or of a field -> None. Others replace numbers."""

    @staticmethod
    def _default(node: Any) -> Any:
        if node.type == "annassign" and len(node.children) == 4:
            value = node.children[3]
        else:
            value = node.default if node.type == "param" else None
        return value if isinstance(value, String) else None

    def mutation_positions(self, node: Any) -> Iterator[Any]:
        value = self._default(node)
        if value is not None:
            yield value.start_pos, value.end_pos

    def mutate(self, node: Any, index: int) -> Any:
        value = self._default(node)
        place = node.children.index(value)
        node.children[place] = Keyword("None", value.start_pos, prefix=" ")
        return node

    @classmethod
    def examples(cls) -> tuple[Any, ...]:
        return ()


def operators() -> dict[str, Operator]:
    """All that are applied, by name."""
    core = OperatorProvider()
    names = [f"ReplaceBinaryOperator_{name}" for name in BINARY]
    names += [f"ReplaceComparisonOperator_{name}" for name in COMPARISONS]
    found = {name: core[name]() for name in (*names, *OTHERS)}
    found.update(
        (kind.__name__, kind()) for kind in (DropKeywordArgument, ReturnNone, ReplaceDefault)
    )
    return found


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

    def source(self, original: str) -> str:
        return mutate_code(original, operators()[self.operator], self.occurrence)


def mutants(path: str, source: str, kernels_too: bool = True) -> list[Mutant]:
    """Those of one file, in the order of its lines."""
    found = []
    nodes = list(ast_nodes(parso.parse(source)))
    for name, operator in operators().items():
        occurrence = 0
        for node in nodes:
            for position in operator.mutation_positions(node):
                if not _left_out(node, kernels_too):
                    found.append(Mutant(path, name, occurrence, position[0][0]))
                occurrence += 1
    return sorted(found, key=lambda m: (m.line, m.operator, m.occurrence))


def _left_out(node: Any, kernels_too: bool) -> bool:
    if node.type == "decorator":
        return any(name in node.get_code() for name in (*KEPT_DECORATORS, "jit"))
    child, parent = node, node.parent
    while parent is not None:
        kind = parent.type
        if kind == "tfpdef" or (kind == "funcdef" and parent.annotation is child):
            return True
        if kind == "annassign" and child is parent.children[1]:
            return True
        if kind in ("raise_stmt", "assert_stmt") and child is not parent.children[1]:
            return True
        if kind == "trailer" and _is_message(parent):
            return True
        if kind == "expr_stmt" and parent.children[0] == "__all__":
            return True
        if kind == "if_stmt" and "TYPE_CHECKING" in parent.children[1].get_code():
            return True
        if kind == "decorated" and not kernels_too and "jit" in parent.children[0].get_code():
            return True
        child, parent = parent, parent.parent
    return False


def _is_message(trailer: Any) -> bool:
    """The arguments of an exception that is raised, of a warning or of a log's line."""
    before = trailer.get_previous_leaf()
    raised = trailer.parent.parent is not None and trailer.parent.parent.type == "raise_stmt"
    return trailer.children[0] == "(" and (raised or getattr(before, "value", "") in MESSAGES)


def is_change(mutant: Mutant, source: str) -> bool:
    """Whether it is Python, and other Python than before."""
    try:
        changed = ast.parse(mutant.source(source))
    except (SyntaxError, ValueError):
        return False
    return ast.dump(changed) != ast.dump(ast.parse(source))


def sample(
    population: Iterable[Mutant], count: int, seed: int, sources: dict[str, str]
) -> list[Mutant]:
    """`count` of them: each folder's share is that of its mutants, within a folder all are equally
    likely."""
    folders: dict[str, list[Mutant]] = {}
    for mutant in population:
        folders.setdefault(mutant.folder, []).append(mutant)
    whole = sum(map(len, folders.values()))
    exact = {name: min(count, whole) * len(those) / whole for name, those in folders.items()}
    shares = {name: int(share) for name, share in exact.items()}
    by_remainder = sorted(exact, key=lambda name: (shares[name] - exact[name], name))
    for name in by_remainder[: min(count, whole) - sum(shares.values())]:
        shares[name] += 1
    chosen = []
    for name in sorted(folders):
        order = random.Random(f"{seed} {name}").sample(folders[name], len(folders[name]))
        valid = (mutant for mutant in order if is_change(mutant, sources[mutant.path]))
        chosen += [mutant for mutant, _ in zip(valid, range(shares[name]), strict=False)]
    return chosen


def difference(original: str, mutated: str) -> tuple[str, str]:
    """(what the changed lines were, what they are)."""
    lines = list(difflib.ndiff(original.splitlines(), mutated.splitlines()))
    return tuple(
        " ".join(line[2:].strip() for line in lines if line[:2] == s) for s in ("- ", "+ ")
    )
