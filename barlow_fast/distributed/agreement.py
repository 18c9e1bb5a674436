"""All ranks compare what they were called with before any data move.

One small exchange between hosts: no device waits for it. Without it, ranks whose shapes differ
would read each other's bytes as something else, or wait for each other until a timeout.
"""

from __future__ import annotations

import contextlib
import struct
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, fields
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from .collectives import explained
from .groups import Group, host_group

MESSAGE_BYTES = 200
_ERRORS = (TypeError, ValueError, RuntimeError)
_HEADER = struct.Struct("<qQB")  # rows, node, error (0: none, else 1 + its index)
_LENGTH = 512
_PURPOSE = 32


@dataclass(frozen=True)
class Call:
    """What all ranks must have in common."""

    dimensions: int
    dtype: str
    device: str
    lambd: float
    scale: float
    eps: float
    precision: str
    form: str
    layout: str
    statistics: str
    gradient: str
    z_a_requires_grad: bool
    z_b_requires_grad: bool

    def encoded(self) -> bytes:
        return "\n".join(repr(getattr(self, field.name)) for field in fields(self)).encode()


@dataclass(frozen=True)
class Agreement:
    """What the ranks told each other."""

    rows: tuple[int, ...]  # samples of each rank
    nodes: int  # machines


@dataclass(frozen=True)
class Report:
    """What one rank tells all others."""

    rows: int  # its samples
    node: int  # its machine
    payload: bytes


def agree(
    call: Call | None, rows: int, node: int, error: Exception | None, group: Group
) -> Agreement:
    """Exchanges `call` and `rows`, or this rank's `error`, with all ranks of the group.

    Raises, on all ranks alike:
        `error`, and its kind with its text and rank on the other ranks.
        ValueError: the calls differ; the message says in what.
    """
    reports = tell("", b"" if error else call.encoded(), error, group, rows, node)
    payloads = [report.payload.rstrip(b"\0") for report in reports]
    if any(text != payloads[0] for text in payloads):
        raise ValueError(_difference(payloads))
    return Agreement(tuple(r.rows for r in reports), len({r.node for r in reports}))


def tell(
    purpose: str,
    payload: bytes,
    error: Exception | None,
    group: Group,
    rows: int = 0,
    node: int = 0,
) -> list[Report]:
    """The reports of all ranks of the group, in their order; payloads come filled up with zeros.

    purpose: what this exchange is for, in up to 32 bytes, empty for the loss; where ranks came to
    different ones, they would otherwise read each other's payloads as something else.

    Raises, on all ranks alike:
        `error`, and its kind with its text and rank on the other ranks.
        ValueError: purposes differ.
    """
    if error is not None:
        payload = str(error).encode()[:MESSAGE_BYTES]
    packed = _HEADER.pack(rows, node, _kind(error)) + payload
    named = purpose.encode()
    if len(packed) > _LENGTH or len(named) > _PURPOSE:
        raise AssertionError(f"{len(packed)} and {len(named)} bytes do not fit")
    received = _exchange(packed.ljust(_LENGTH, b"\0") + named.ljust(_PURPOSE, b"\0"), group)
    if error is not None:
        raise error
    reports = []
    for rank, report in enumerate(received):
        their_rows, their_node, kind = _HEADER.unpack_from(report)
        content = report[_HEADER.size : _LENGTH]
        if kind:
            message = content.rstrip(b"\0").decode(errors="replace")
            raise _ERRORS[kind - 1](f"rank {rank} of process_group: {message}")
        reports.append(Report(their_rows, their_node, content))
    purposes = {
        rank: r[_LENGTH:].rstrip(b"\0").decode() or "the loss" for rank, r in enumerate(received)
    }
    if len(set(purposes.values())) > 1:
        raise ValueError(
            "the ranks of process_group came to different exchanges: " + _by_value(purposes)
        )
    return reports


def compare(values: dict[str, Any], group: Group) -> None:
    """ValueError on all ranks where values that print differ; the message says which."""
    everyone = gather({name: repr(value) for name, value in values.items()}, group)
    names = dict.fromkeys(name for some in everyone for name in some)
    differing = []
    for name in names:
        told = {rank: some.get(name, "nothing") for rank, some in enumerate(everyone)}
        if len(set(told.values())) > 1:
            differing.append(f"{name}: {_by_value(told)}")
    if differing:
        raise ValueError("the ranks of process_group differ: " + "; ".join(differing))


def gather(value: Any, group: Group) -> list[Any]:
    """The values of all ranks, in their order; any that can be pickled."""
    everyone: list[Any] = [None] * group.size
    with explained():
        dist.all_gather_object(everyone, value, group=host_group(group))
    return everyone


@contextlib.contextmanager
def refusals_told(group: Group | None) -> Iterator[None]:
    """An error of the block is told to the other ranks, who are on their way to `agree` or `tell`
    and raise it there; without one, nothing is exchanged."""
    try:
        yield
    except Exception as error:
        if group is not None:
            tell("", b"", error, group)
        raise


@contextlib.contextmanager
def shared_fate(purpose: str, group: Group | None) -> Iterator[None]:
    """A block without exchanges of its own, that all ranks leave together: where it fails on one,
    all raise."""
    failure = None
    try:
        yield
    except Exception as error:
        failure = error
    if group is not None:
        tell(purpose, b"", failure, group)
    elif failure is not None:
        raise failure


def _kind(error: Exception | None) -> int:
    if error is None:
        return 0
    return next((1 + i for i, kind in enumerate(_ERRORS) if isinstance(error, kind)), 3)


def _exchange(report: bytes, group: Group) -> list[bytes]:
    """The reports of all ranks."""
    send = torch.frombuffer(bytearray(report), dtype=torch.uint8).repeat(group.size)
    received: Tensor = torch.empty_like(send)
    with explained():
        # An all-to-all of copies: gloo's all-gather goes around the ring, this does not.
        dist.all_to_all_single(received, send, group=host_group(group))
    whole = received.numpy().tobytes()
    return [whole[i : i + len(report)] for i in range(0, len(whole), len(report))]


def _difference(payloads: Sequence[bytes]) -> str:
    """Names each field in which calls differ, with its values by rank."""
    calls = [payload.decode().split("\n") for payload in payloads]
    differing = []
    for index, field in enumerate(fields(Call)):
        values = {rank: call[index] for rank, call in enumerate(calls)}
        if len(set(values.values())) > 1:
            differing.append(f"{field.name}: {_by_value(values)}")
    return "the ranks of process_group were called differently: " + "; ".join(differing)


def _by_value(values: dict[int, str]) -> str:
    """'VALUE on ranks 0, 2, OTHER on rank 1'."""
    ranks: dict[str, list[int]] = {}
    for rank, value in values.items():
        ranks.setdefault(value, []).append(rank)
    return ", ".join(f"{value} on {_ranks(some)}" for value, some in ranks.items())


def _ranks(ranks: list[int]) -> str:
    shown = ", ".join(map(str, ranks[:8])) + (", ..." if len(ranks) > 8 else "")
    return f"rank{'s' if len(ranks) > 1 else ''} {shown}"
