"""The exchanges that the layouts are made of, all asynchronous, on process groups of any backend.

Two patterns carry nearly everything: an all-to-all and an all-gather. Both move bytes, whatever
their type, so no backend's list of types matters. Sums over ranks are an all-to-all whose parts
each rank adds up itself: parts may then travel in half precision and still be added in float32, in
the order of ranks, so that all ranks hold the same bits; on gloo that also sends half of what its
reduce-scatter does. Between machines that would be the wrong way: every byte of an all-to-all goes
over its sender's own link, while the rings and trees of NCCL send each byte between two machines
once, over all links together. There sums are NCCL's, in float32.

Nothing here is differentiable: the layouts' autograd function calls it on detached tensors.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from .groups import Group
from .traffic import record


class Transfer:
    """An exchange under way; `wait` may be called again."""

    def __init__(self, work: Any, output: Tensor, kept: Tensor) -> None:
        self._work, self._output, self._kept = work, output, kept

    def wait(self) -> Tensor:
        """What has arrived. On a GPU only the current stream waits."""
        if self._work is not None:
            with communication_errors():
                self._work.wait()
            self._work = self._kept = None
        return self._output


@contextlib.contextmanager
def communication_errors() -> Iterator[None]:
    """States what an error of an exchange means for the loss."""
    try:
        yield
    except RuntimeError as error:
        raise RuntimeError(
            "barlow_fast: an exchange between the ranks of process_group failed. A rank has "
            "stopped, or did not call the loss (and its backward) as often as the others did "
            f"within the group's timeout. The backend says: {error}"
        ) from error


def _bytes(x: Tensor) -> Tensor:
    return x.reshape(-1).view(torch.uint8)


def all_to_all(
    step: str,
    send: Tensor,
    send_counts: Sequence[int],
    receive_counts: Sequence[int],
    group: Group,
) -> Transfer:
    """Sends consecutive pieces of the contiguous `send`, one to each rank; receives theirs in the
    order of ranks, flat. Counts are elements."""
    size = send.element_size()
    output = send.new_empty(sum(receive_counts))
    with communication_errors():
        work = dist.all_to_all_single(
            _bytes(output),
            _bytes(send),
            [size * count for count in receive_counts],
            [size * count for count in send_counts],
            group=group.handle,
            async_op=True,
        )
    record(step, size * (sum(send_counts) - send_counts[group.rank]))
    return Transfer(work, output, send)


def all_gather(step: str, share: Tensor, group: Group) -> Transfer:
    """(W, *share.shape): equally shaped shares of all ranks, in the order of ranks."""
    share = share.contiguous()
    output = share.new_empty((group.size, *share.shape))
    with communication_errors():
        if group.through_host(share):
            # gloo's own all-gather takes three times as long as this (two ranks, 16 MiB).
            copies = share.expand(output.shape).contiguous()
            work = dist.all_to_all_single(
                _bytes(output), _bytes(copies), group=group.handle, async_op=True
            )
        else:
            copies = share
            work = dist.all_gather_into_tensor(
                _bytes(output), _bytes(share), group=group.handle, async_op=True
            )
    record(step, share.nbytes * (group.size - 1))
    return Transfer(work, output, copies)


def total(step: str, values: Tensor, group: Group) -> Tensor:
    """The sum of small float64 tensors over all ranks, equal bits on all."""
    if group.through_host(values):
        # gloo would go around the ring twice; this is one exchange, added in the order of ranks.
        return all_gather(step, values, group).wait().sum(0)
    return all_reduce(step, values.clone(), group).wait()


def all_reduce(step: str, values: Tensor, group: Group) -> Transfer:
    """The sum of contiguous tensors over all ranks, in place, by the backend's own all-reduce."""
    with communication_errors():
        work = dist.all_reduce(values, group=group.handle, async_op=True)
    record(step, 2 * values.nbytes * (group.size - 1) // group.size)
    return Transfer(work, values, values)


class Reduction:
    """A sum over ranks of equally shaped (rows, ...) parts, of which each rank adds up some rows.

    Directly: an all-to-all of parts in the type `wire`, added in the type of `part`. With
    `use_all_reduce`, as between machines: one all-reduce in the type of `part`, after which every
    rank has all rows.
    """

    def __init__(
        self, step: str, part: Tensor, wire: torch.dtype, group: Group, use_all_reduce: bool
    ) -> None:
        self._dtype, self._group, self._step = part.dtype, group, step
        rows = -(-part.shape[0] // group.size)
        self._shape = (group.size, rows, *part.shape[1:])
        part = part if use_all_reduce else part.to(wire)
        missing = group.size * rows - part.shape[0]
        if missing:
            part = torch.cat((part, part.new_zeros(missing, *part.shape[1:])))
        self.whole = None
        if use_all_reduce:
            self.whole = part.contiguous()
            self._transfer = all_reduce(step, self.whole, group)
        else:
            counts = [part.numel() // group.size] * group.size
            self._transfer = all_to_all(step, part.contiguous(), counts, counts, group)

    def share(self) -> Tensor:
        """(ceil(rows / W), ...): this rank's rows of the sum, in the type of the part."""
        arrived = self._transfer.wait().view(self._shape)
        if self.whole is not None:
            return arrived[self._group.rank]
        return arrived.sum(0, dtype=self._dtype)


def gather_shares(step: str, shares: Sequence[Tensor], sums: Sequence[Reduction]) -> Transfer:
    """(W, len(shares), rows, ...): all rows of several sums, from `Reduction.share` of each, which
    may have been rounded for the way; what every rank has already does not travel again."""
    if all(reduction.whole is not None for reduction in sums):
        whole = [reduction.whole.view(reduction._shape) for reduction in sums]
        return Transfer(None, torch.stack(whole, 1).to(shares[0].dtype), None)
    return all_gather(step, torch.stack(list(shares)), sums[0]._group)
