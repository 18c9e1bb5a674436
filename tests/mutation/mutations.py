"""All mutants of a source file: cosmic-ray's operators, and three of our own.

Left out, because no test can or should distinguish them:

* annotations, which nothing reads at run time; `__all__`; what only type checkers see
* the texts of errors, warnings and logs
* decorators that only cache (the same results take longer) or that only name (`wraps`, `overload`)
* `strict=` of `zip`, an assertion about our own code
* the measured rows of tile sizes (`_rows(...)`): any row that compiles gives the same results, and
  only a device knows the fastest
* the bodies of Triton's kernels, which are not Python that runs here: they are held to the plain
  torch set by Triton's interpreter (seconds for each test), by the compiler and by GPUs, in tiers
  of their own
"""

from __future__ import annotations

import ast
import difflib
from collections.abc import Iterator
from typing import Any

import parso
from choosing import Mutant
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
KEPT_DECORATORS = ("cache", "overload", "override", "wraps", "runtime_checkable", "jit")
MESSAGES = ("warn", "debug", "info", "warning", "error", "exception")


class OwnOperator(Operator):
    @classmethod
    def examples(cls) -> tuple[Any, ...]:
        return ()


class DropKeywordArgument(OwnOperator):
    """f(a, option=b) -> f(a): an option that is accepted and then ignored."""

    @staticmethod
    def _arguments(node: Any) -> list[Any]:
        if node.type == "arglist":
            return [c for c in node.children if c.type == "argument" and _keyword(c)]
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


def _keyword(argument: Any) -> bool:
    name, *rest = argument.children
    return len(rest) == 2 and rest[0] == "=" and name.value != "strict"


class ReturnNone(OwnOperator):
    """return value -> return None."""

    def mutation_positions(self, node: Any) -> Iterator[Any]:
        if node.type == "return_stmt" and node.children[1] != "None":
            yield node.children[1].start_pos, node.children[1].end_pos

    def mutate(self, node: Any, index: int) -> Any:
        node.children[1] = Keyword("None", node.children[1].start_pos, prefix=" ")
        return node


class ReplaceDefault(OwnOperator):
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


def operators() -> dict[str, Operator]:
    """All that are applied, by name."""
    core = OperatorProvider()
    names = [f"ReplaceBinaryOperator_{name}" for name in BINARY]
    names += [f"ReplaceComparisonOperator_{name}" for name in COMPARISONS]
    found = {name: core[name]() for name in (*names, *OTHERS)}
    return found | {kind.__name__: kind() for kind in OwnOperator.__subclasses__()}


def mutants(path: str, source: str) -> list[Mutant]:
    """Those of one file, in the order of its lines. A number becomes one more or one less, in turn:
    both would be more than all others."""
    found = []
    nodes = list(ast_nodes(parso.parse(source)))
    for name, operator in operators().items():
        occurrence = 0
        for node in nodes:
            for position in operator.mutation_positions(node):
                other = name == "NumberReplacer" and occurrence % 4 in (1, 2)
                if not other and not _left_out(node):
                    found.append(Mutant(path, name, occurrence, position[0][0]))
                occurrence += 1
    return sorted(found, key=lambda m: (m.line, m.operator, m.occurrence))


def _left_out(node: Any) -> bool:
    child, parent = node, node.parent
    if node.type == "decorator":
        return _is_kept(node)
    while parent is not None:
        kind = parent.type
        first = parent.children[0]
        name = getattr(first, "value", "")
        if (
            kind == "tfpdef"
            or (kind == "parameters" and child.type == "operator")  # bare * and /
            or (kind == "funcdef" and parent.annotation is child)
            or (kind == "annassign" and child is parent.children[1])
            or (kind == "assert_stmt" and child is not parent.children[1])
            or (kind == "trailer" and _is_message(parent))
            or (kind == "argument" and name == "strict")
            or (kind == "expr_stmt" and name == "__all__")
            or (kind == "if_stmt" and "TYPE_CHECKING" in parent.children[1].get_code())
            or (kind == "atom_expr" and name == "_rows")
            or (kind == "decorator" and _is_kept(parent))
            or (kind == "decorated" and "jit" in first.get_code())
        ):
            return True
        child, parent = parent, parent.parent
    return False


def _is_kept(decorator: Any) -> bool:
    return any(name in decorator.get_code() for name in KEPT_DECORATORS)


def _is_message(trailer: Any) -> bool:
    """The arguments of an exception that is raised, of a warning or of a log's line."""
    before = trailer.get_previous_leaf()
    raised = trailer.parent.get_previous_leaf() == "raise"
    return trailer.children[0] == "(" and (raised or before.value in MESSAGES)


def mutated(mutant: Mutant, source: str) -> str:
    return mutate_code(source, operators()[mutant.operator], mutant.occurrence)


def is_change(mutant: Mutant, source: str) -> bool:
    """Whether it is Python, and other Python than before."""
    try:
        changed = ast.parse(mutated(mutant, source))
    except SyntaxError:
        return False
    return ast.dump(changed) != ast.dump(ast.parse(source))


def difference(mutant: Mutant, source: str) -> tuple[str, str]:
    """(what the changed lines were, what they are)."""
    lines = list(difflib.ndiff(source.splitlines(), mutated(mutant, source).splitlines()))
    return tuple(" ".join(x[2:].strip() for x in lines if x[:2] == sign) for sign in ("- ", "+ "))
