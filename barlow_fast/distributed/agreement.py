"""All ranks compare what they were called with before any data move.

One small exchange between hosts: no device waits for it. Without it, ranks whose shapes differ
would read each other's bytes as something else, or wait for each other until a timeout.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence
from dataclasses import dataclass, fields

import torch
import torch.distributed as dist
from torch import Tensor

from .collectives import explained
from .groups import Group, host_group

MESSAGE_BYTES = 200
_ERRORS = (TypeError, ValueError, RuntimeError)
_HEADER = struct.Struct("<qQB")  # rows, node, error (0: none, else 1 + its index)
_LENGTH = 512


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


def agree(
    call: Call | None, rows: int, node: int, error: Exception | None, group: Group
) -> Agreement:
    """Exchanges `call` and `rows`, or this rank's `error`, with all ranks of the group.

    Raises, on all ranks alike:
        `error`, and its kind with its text and rank on the other ranks.
        ValueError: the calls differ; the message says in what.
    """
    payload = str(error).encode()[:MESSAGE_BYTES] if error else call.encoded()
    kind = _kind(error)
    packed = _HEADER.pack(rows, node, kind) + payload
    if len(packed) > _LENGTH:
        raise AssertionError(f"{len(packed)} bytes do not fit")
    reports = _exchange(packed.ljust(_LENGTH, b"\0"), group)
    headers = [_HEADER.unpack_from(report) for report in reports]
    payloads = [report[_HEADER.size :].rstrip(b"\0") for report in reports]
    if error is not None:
        raise error
    for rank, ((_, _, kind), text) in enumerate(zip(headers, payloads, strict=True)):
        if kind:
            message = text.decode(errors="replace")
            raise _ERRORS[kind - 1](f"rank {rank} of process_group: {message}")
    if any(text != payloads[0] for text in payloads):
        raise ValueError(_difference(payloads))
    return Agreement(tuple(header[0] for header in headers), len({h[1] for h in headers}))


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
    return [whole[i : i + _LENGTH] for i in range(0, len(whole), _LENGTH)]


def _difference(payloads: Sequence[bytes]) -> str:
    """Names each field in which calls differ, with its values by rank."""
    calls = [payload.decode().split("\n") for payload in payloads]
    differing = []
    for index, field in enumerate(fields(Call)):
        values: dict[str, list[int]] = {}
        for rank, call in enumerate(calls):
            values.setdefault(call[index], []).append(rank)
        if len(values) > 1:
            told = ", ".join(f"{value} on {_ranks(ranks)}" for value, ranks in values.items())
            differing.append(f"{field.name}: {told}")
    return "the ranks of process_group were called differently: " + "; ".join(differing)


def _ranks(ranks: list[int]) -> str:
    shown = ", ".join(map(str, ranks[:8])) + (", ..." if len(ranks) > 8 else "")
    return f"rank{'s' if len(ranks) > 1 else ''} {shown}"
