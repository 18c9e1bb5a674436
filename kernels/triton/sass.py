"""Write-after-read and read-after-write hazards of asynchronous tensor-core instructions in SASS.

A `wgmma` (HGMMA in SASS) returns before it has read a left operand that is in registers, and
before its accumulator is complete. Both are free again behind the `WARPGROUP.DEPBAR` that waits for
its group. Some versions of Triton and ptxas overwrite such an operand earlier: the product is then
wrong now and then, which no test of results finds reliably.
"""

from __future__ import annotations

import re
from typing import NamedTuple

_LINE = re.compile(r"/\*([0-9a-f]{4,})\*/\s+(?:@!?U?P\w+\s+)?([A-Z][\w.]*)\s*([^;]*);")
_PREDICATED = re.compile(r"\*/\s+@")
_REGISTER = re.compile(r"(?<![\w.])R(\d+)")
_WIDTH = re.compile(r"\.(64|128|WIDE|M88\.4|M88\.2)\b")
_WIDTHS = {"64": 2, "128": 4, "WIDE": 2, "M88.4": 4, "M88.2": 2}
_LEFT_REGISTERS = 4  # per thread: 64 rows of 32 bytes among 128 threads
# Opcodes without a destination in general registers.
_STORES = ("ST", "RED", "BAR", "BRA", "EXIT", "DEPBAR", "LDGSTS", "LDGDEPBAR", "UTMA", "SYNCS")
_DOUBLE = ("CS2R", "DADD", "DMUL", "DFMA", "F2F.F64", "I2F.F64")


class Instruction(NamedTuple):
    """One line of a listing."""

    address: int
    opcode: str
    operands: str
    predicated: bool

    @property
    def read_or_written(self) -> set[int]:
        """General registers that are named, and those that the destination's width adds."""
        return {int(number) for number in _REGISTER.findall(self.operands)} | self.written

    @property
    def written(self) -> set[int]:
        """General registers that are overwritten."""
        first = self.operands.split(",")[0].strip()
        found = _REGISTER.fullmatch(first)
        if not found or self.opcode.startswith(_STORES):
            return set()
        width = _WIDTH.search(self.opcode)
        count = _WIDTHS[width[1]] if width else 1
        if self.opcode.startswith(_DOUBLE):
            count = 2
        return set(range(int(found[1]), int(found[1]) + count))


class Product(NamedTuple):
    """The registers of a tensor-core instruction in flight."""

    left: frozenset[int]  # empty where the operand is in shared memory
    accumulator: frozenset[int]


def instructions(listing: str) -> list[Instruction]:
    """The instructions of `cuobjdump -sass`."""
    return [
        Instruction(int(found[1], 16), found[2], found[3].strip(), bool(_PREDICATED.search(line)))
        for line in listing.splitlines()
        if (found := _LINE.search(line))
    ]


def hazards(listing: str) -> tuple[str, ...]:
    """Every instruction that touches registers of an HGMMA in flight, on any path through the code.

    A path enters each state, which is a place in the code with the products in flight there, once.
    """
    code = instructions(listing)
    place = {instruction.address: number for number, instruction in enumerate(code)}
    found: dict[int, str] = {}
    seen = set()
    # (number of the instruction, closed groups oldest first, the group that is not closed yet)
    waiting: list[tuple[int, tuple, tuple]] = [(0, (), ())]
    while waiting:
        state = waiting.pop()
        number, groups, group = state
        if state in seen or number >= len(code):
            continue
        seen.add(state)
        line = code[number]
        if line.opcode.startswith("HGMMA"):
            group += (_product(line),)
            if "gsb0" in line.operands:
                groups, group = (*groups, group), ()
        elif line.opcode.startswith("WARPGROUP.DEPBAR"):
            left = int(line.operands.split(",")[1], 16)
            groups = groups[-left:] if left else ()
        else:
            for product in (p for some in (*groups, group) for p in some):
                touched = line.written & product.left | line.read_or_written & product.accumulator
                if touched:
                    registers = ", ".join(f"R{r}" for r in sorted(touched))
                    found[line.address] = f"{line.address:#x}: {line.opcode} touches {registers}"
        if line.opcode == "BRA":
            waiting.append((place[int(line.operands.split()[-1], 16)], groups, group))
        ends = line.opcode in ("BRA", "EXIT", "RET") and not line.predicated
        if not ends:
            waiting.append((number + 1, groups, group))
    return tuple(found[address] for address in sorted(found))


def _product(line: Instruction) -> Product:
    """HGMMA.64xNxK.F32... accumulator, left, right, accumulator."""
    columns = int(re.search(r"\.\d+x(\d+)x\d+", line.opcode)[1])
    accumulator, left = (operand.strip() for operand in line.operands.split(",")[:2])
    first = int(accumulator.removeprefix("R"))
    count = columns // 2 if ".F32" in line.opcode else columns // 4
    in_registers = _REGISTER.fullmatch(left)
    at = int(in_registers[1]) if in_registers else 0
    return Product(
        frozenset(range(at, at + _LEFT_REGISTERS)) if in_registers else frozenset(),
        frozenset(range(first, first + count)),
    )
