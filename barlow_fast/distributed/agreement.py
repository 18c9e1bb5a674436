"""All ranks compare what they were called with before any data move.

One small exchange between hosts: no device waits for it. Without it, ranks whose shapes differ
would read each other's bytes as something else, or wait for each other until a timeout.
"""

from __future__ import annotations

import contextlib
import struct
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from .collectives import communication_errors
from .groups import Group, host_group

MESSAGE_BYTES = 200
_ERRORS = (TypeError, ValueError, RuntimeError)
_HEADER = struct.Struct("<qQB")  # samples, node, error (0: none, else 1 + its index)
_LENGTH = 512
_PURPOSE = 32


@dataclass(frozen=True)
class Agreement:
    """What the ranks reported to each other."""

    samples: tuple[int, ...]  # samples of each rank
    nodes: int  # machines

    def check(self, statistics: str) -> None:
        """ValueError where there are too few samples to standardise over."""
        if sum(self.samples) < 2:
            raise ValueError(
                "the loss needs at least 2 samples to standardise over, "
                f"got {sum(self.samples)} on all ranks together"
            )
        least = min(self.samples)
        if statistics == "local" and least < 2:
            raise ValueError(
                f"statistics='local' needs at least 2 samples on each rank, got {least} on rank "
                f"{self.samples.index(least)}"
            )


@dataclass(frozen=True)
class Report:
    """What one rank reports to all others."""

    samples: int  # its samples
    node: int  # its machine
    payload: bytes


def call_of(z_a: Tensor, z_b: Tensor, **options: Any) -> dict[str, Any]:
    """What all ranks must have in common: the options, and properties of the embeddings."""
    recorded = torch.is_grad_enabled()
    return {
        "dimensions": z_a.shape[1],
        "dtype": str(z_a.dtype),
        "device": z_a.device.type,
        **options,
        "z_a_requires_grad": z_a.requires_grad and recorded,
        "z_b_requires_grad": z_b.requires_grad and recorded,
    }


def encoded(call: dict[str, Any]) -> bytes:
    return "\n".join(f"{name}: {value!r}" for name, value in call.items()).encode()


def agree(call: dict[str, Any], samples: int, node: int, group: Group) -> Agreement:
    """Exchanges `call` and `samples` with all ranks of the group.

    Raises, on all ranks alike:
        The error that another rank reports, with its rank.
        ValueError: the calls differ; the message says in what.
    """
    reports = exchange("", encoded(call), None, group, samples, node)
    payloads = [report.payload.rstrip(b"\0").decode() for report in reports]
    if any(text != payloads[0] for text in payloads):
        calls = [dict(line.split(": ", 1) for line in text.split("\n")) for text in payloads]
        raise ValueError(
            f"the ranks of process_group were called differently: {_differences(calls)}"
        )
    return Agreement(tuple(r.samples for r in reports), len({r.node for r in reports}))


def exchange(
    purpose: str,
    payload: bytes,
    error: Exception | None,
    group: Group,
    samples: int = 0,
    node: int = 0,
) -> list[Report]:
    """The reports of all ranks of the group, in their order; payloads are padded with zeros.

    purpose: of this exchange, in up to 32 bytes, empty for the loss. Ranks that came to exchanges
    of different purposes would otherwise read each other's payloads as something else.

    Raises, on all ranks alike:
        `error`, and its kind with its text and rank on the other ranks.
        ValueError: purposes differ.
    """
    if error is not None:
        payload = str(error).encode()[:MESSAGE_BYTES]
    packed = _HEADER.pack(samples, node, _kind(error)) + payload
    named = purpose.encode()
    if len(packed) > _LENGTH or len(named) > _PURPOSE:
        raise AssertionError(f"{len(packed)} and {len(named)} bytes do not fit")
    received = _all_to_all(packed.ljust(_LENGTH, b"\0") + named.ljust(_PURPOSE, b"\0"), group)
    if error is not None:
        raise error
    reports = []
    for rank, report in enumerate(received):
        their_samples, their_node, kind = _HEADER.unpack_from(report)
        content = report[_HEADER.size : _LENGTH]
        if kind:
            message = content.rstrip(b"\0").decode(errors="replace")
            raise _ERRORS[kind - 1](f"rank {rank} of process_group: {message}")
        reports.append(Report(their_samples, their_node, content))
    purposes = [r[_LENGTH:].rstrip(b"\0").decode() or "the loss" for r in received]
    if len(set(purposes)) > 1:
        raise ValueError(
            f"the ranks of process_group came to different exchanges: {_by_value(purposes)}"
        )
    return reports


def compare(values: dict[str, Any], group: Group) -> None:
    """ValueError on all ranks where values that print differ; the message says which."""
    differing = _differences(gather({name: repr(value) for name, value in values.items()}, group))
    if differing:
        raise ValueError(f"the ranks of process_group differ: {differing}")


def gather(value: Any, group: Group) -> list[Any]:
    """The values of all ranks, in their order; any that can be pickled."""
    everyone: list[Any] = [None] * group.size
    with communication_errors():
        dist.all_gather_object(everyone, value, group=host_group(group))
    return everyone


@contextlib.contextmanager
def errors_reported(group: Group | None) -> Iterator[None]:
    """Reports an error of the block to the other ranks, which raise it in their next `agree` or
    `exchange`. Nothing is exchanged without one."""
    try:
        yield
    except Exception as error:
        if group is not None:
            exchange("", b"", error, group)
        raise


@contextlib.contextmanager
def errors_shared(purpose: str, group: Group | None) -> Iterator[None]:
    """Ends a block with an exchange, and raises on all ranks where it fails on one. The block
    itself must exchange nothing."""
    failure = None
    try:
        yield
    except Exception as error:
        failure = error
    if group is not None:
        exchange(purpose, b"", failure, group)
    elif failure is not None:
        raise failure


def _kind(error: Exception | None) -> int:
    if error is None:
        return 0
    return next((1 + i for i, kind in enumerate(_ERRORS) if isinstance(error, kind)), 3)


def _all_to_all(report: bytes, group: Group) -> list[bytes]:
    """The reports of all ranks."""
    send = torch.frombuffer(bytearray(report), dtype=torch.uint8).repeat(group.size)
    received: Tensor = torch.empty_like(send)
    with communication_errors():
        # An all-to-all of copies: gloo's all-gather goes around the ring, this does not.
        dist.all_to_all_single(received, send, group=host_group(group))
    whole = received.numpy().tobytes()
    return [whole[i : i + len(report)] for i in range(0, len(whole), len(report))]


def _differences(everyone: Sequence[dict[str, str]]) -> str:
    """Each name whose values differ between ranks, with its values by rank; '' if none does."""
    names = dict.fromkeys(name for some in everyone for name in some)
    differing = []
    for name in names:
        values = [some.get(name, "nothing") for some in everyone]
        if len(set(values)) > 1:
            differing.append(f"{name}: {_by_value(values)}")
    return "; ".join(differing)


def _by_value(values: Sequence[str]) -> str:
    """'VALUE on ranks 0, 2, OTHER on rank 1' of each rank's value."""
    ranks: dict[str, list[int]] = {}
    for rank, value in enumerate(values):
        ranks.setdefault(value, []).append(rank)
    return ", ".join(f"{value} on {_ranks(some)}" for value, some in ranks.items())


def _ranks(ranks: list[int]) -> str:
    shown = ", ".join(map(str, ranks[:8])) + (", ..." if len(ranks) > 8 else "")
    return f"rank{'s' if len(ranks) > 1 else ''} {shown}"
