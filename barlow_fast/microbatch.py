"""The gradient of a large batch's loss on the memory of a small one.

The loss L needs the embeddings Z of the whole batch, and no more of it. With theta the parameters:

    dL/dtheta = sum over parts p of (dZ_p / dtheta)^T (dL / dZ_p)

So each part passes the model twice: first without a graph, for Z alone; then, when dL/dZ is known,
with a graph that its backward pass frees at once. Source of the idea: Gao et al., *Scaling Deep
Contrastive Learning Batch Size under Memory Limited Setup* (RepL4NLP 2021).
"""

from __future__ import annotations

import contextlib
import itertools
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from .distributed import agreement, micro_batches
from .plan import autocast_dtype

Context = contextlib.AbstractContextManager


def backward_in_microbatches(
    model: nn.Module,
    views: Sequence[Tensor],
    criterion: Callable[..., Any],
    micro_batch_size: int,
    *,
    call: Callable[..., Any] | None = None,
    autocast: Context | Callable[[], Context] | None = None,
    scaler: Any = None,
) -> Any:
    """Forward and backward of `criterion(*model(*views))`, a few samples in memory at a time: what
    it adds to every `.grad` is the gradient of the whole batch's loss.

        optimizer.zero_grad()
        loss, terms = backward_in_microbatches(
            model, (view_a, view_b), partial(criterion, return_terms=True), 256,
            autocast=lambda: torch.autocast("cuda", torch.bfloat16),
        )
        optimizer.step()

    Costs one more forward pass. Memory: the graph of one micro-batch, and the embeddings of the
    whole batch with their gradients.

    Equal to the plain step up to rounding, dropout included: both passes see the same random
    numbers. With these differences:

    - Batch norm in training mode takes its statistics over a micro-batch (of all ranks, with
      SyncBatchNorm). Running statistics, and all other buffers, end as after one pass over the
      micro-batches in order.
    - Hooks, and whatever else `forward` does besides its result, happen twice. A model must give
      the same result for the same buffers, weights and random state; what it draws from generators
      of its own differs, and so may what torch.compile draws with and without a graph (dropout
      inside a compiled model), and the gradient is then off by as much.

    Under DistributedDataParallel the ranks' gradients are averaged once, in the last backward
    pass; let `criterion` have the `process_group`, so that the loss is that of all ranks' samples.
    Fully sharded models work too, and reduce in every micro-batch.

    Ranks may have different numbers of samples, at least one each. Those that share the model
    (DDP, FSDP, SyncBatchNorm) exchange their numbers first, in one small exchange between
    hosts, and all take as many micro-batches as the one that needs most. A rank with fewer samples
    than that joins in some with a batch of none where the model exchanges data in its forward
    (SyncBatchNorm, FSDP), and takes as few as it needs where it does not.

    Args:
        model: whose buffers are put back between the passes, and which is called.
        views: tensors with the samples first, of one batch size N; where they lie is up to the
            model.
        criterion: `criterion(*embeddings)` gives a scalar loss, or a tuple that starts with it,
            for embeddings of the whole batch.
        micro_batch_size: samples of each view at a time, at most: micro-batches are as equal as
            they can be. (Of an odd number in twos, one has three: a batch norm has no statistics
            over one sample.) From N on, on all ranks, there is one plain pass.
        call: `call(*parts)` gives the embeddings, a tensor or tuple of tensors with the samples
            first; None calls `model(*parts)`. For a model of one view:
            `call=lambda a, b: (model(a), model(b))`.
        autocast: entered around each forward pass and the loss: a context that can be entered again
            (torch.autocast is), or a function that makes one. An autocast that is on around this
            call holds for the same parts.
        scaler: a `torch.amp.GradScaler` that scales the loss before its backward pass; unscaling,
            step and update are the caller's.

    Returns:
        What `criterion` returned, the loss detached and unscaled.

    Raises:
        TypeError: an argument of another type; embeddings or a loss that are not tensors.
        ValueError: micro_batch_size below 1, views of differing or no batch size, embeddings
            without the samples first, a loss that is no scalar, a micro-batch of one sample that
            batch norm cannot take, DistributedDataParallel with static_graph=True.
        RuntimeError: no gradient: everything is frozen, or the loss does not depend on embeddings.
        What one rank finds wrong before the loss all raise; only where the model exchanges data in
        its forward, an error within that is the rank's own.
    """
    if not isinstance(model, nn.Module):
        raise TypeError(
            f"model must be a torch.nn.Module, whose buffers can be found, got "
            f"{type(model).__name__}; pass another way to call it as call="
        )

    def checked() -> tuple[int, int]:
        check_arguments(model, views, micro_batch_size)
        entered_by(autocast)
        return len(views[0]), micro_batch_size

    plan = micro_batches.agree(model, checked)
    call = model if call is None else call
    forward_context = entered_by(autocast)
    n = len(views[0])
    if plan.plain:
        with forward_context():
            with agreement.errors_shared(micro_batches.PURPOSE, plan.listening):
                embeddings = as_tuple(call(*views), n)
            result = criterion(*embeddings)
        with without_autocast(views):
            scaled(loss_of(result), scaler, tuple(embeddings)).backward()
        return detached(result)

    ends = list(itertools.accumulate(plan.sizes))
    bounds = [(stop - size, stop) for size, stop in zip(plan.sizes, ends, strict=True)]
    random = RandomState(model, views)
    with (
        buffers_of_first_rank(model),
        agreement.errors_shared(micro_batches.PURPOSE, plan.listening),
        buffers_put_back(model),
    ):
        stored, states = embed(call, views, bounds, micro_batch_size, forward_context, random)
    # What was cast without a graph must not serve the pass that needs one.
    torch.clear_autocast_cache()

    for embedding in stored:
        # Integers, such as a number of tokens, take no gradient.
        embedding.requires_grad_(embedding.is_floating_point())
    with forward_context():
        result = criterion(*stored)
    with without_autocast(views):
        scaled(loss_of(result), scaler, stored).backward()
    gradients = [embedding.grad for embedding in stored]
    del stored
    if all(gradient is None for gradient in gradients):
        raise RuntimeError("the loss of criterion does not depend on the embeddings it was given")

    after = random.get()
    for index, (start, stop) in enumerate(bounds):
        last = index == len(bounds) - 1
        with contextlib.nullcontext() if last else unsynchronised(model):
            random.set(states[index])
            with forward_context():
                embeddings = as_tuple(call(*(v[start:stop] for v in views)), stop - start)
            backward(embeddings, [g if g is None else g[start:stop] for g in gradients], views)
    random.set(after)
    return detached(result)


def embed(
    call: Callable[..., Any],
    views: Sequence[Tensor],
    bounds: Sequence[tuple[int, int]],
    micro_batch_size: int,
    forward_context: Callable[[], Context],
    random: RandomState,
) -> tuple[tuple[Tensor, ...], list[list[Tensor]]]:
    """(Embeddings of the whole batch without graph, the random state before each micro-batch)."""
    stored: tuple[Tensor, ...] = ()
    states = []
    n = bounds[-1][1]
    for start, stop in bounds:
        states.append(random.get())
        error = small_batch_error(stop - start, n, micro_batch_size)
        with torch.no_grad(), forward_context(), error:
            parts = as_tuple(call(*(v[start:stop] for v in views)), stop - start)
        if not stored:
            stored = tuple(part.new_empty((n, *part.shape[1:])) for part in parts)
        if len(parts) != len(stored) or any(
            p.shape[1:] != s.shape[1:] for p, s in zip(parts, stored, strict=True)
        ):
            raise ValueError(
                "the model's embeddings must have the same sizes for every micro-batch, got "
                f"{[tuple(p.shape[1:]) for p in parts]} after "
                f"{[tuple(s.shape[1:]) for s in stored]}"
            )
        # Copied at once: a model in a CUDA graph writes its next result to the same place.
        for whole, part in zip(stored, parts, strict=True):
            whole[start:stop].copy_(part)
    return stored, states


def backward(
    embeddings: tuple[Tensor, ...], gradients: list[Tensor | None], views: Sequence[Tensor]
) -> None:
    pairs = [
        (z, g)
        for z, g in zip(embeddings, gradients, strict=True)
        if g is not None and z.requires_grad
    ]
    if not pairs:
        raise RuntimeError(
            "the model's embeddings take no gradient: are all its parameters frozen, or does its "
            "forward detach them or run without gradients?"
        )
    with without_autocast(views):
        torch.autograd.backward(*zip(*pairs, strict=True))


@contextlib.contextmanager
def buffers_put_back(model: nn.Module) -> Iterator[None]:
    """All buffers of the model end with the values they have now: the same tensors, even where a
    module exchanged them."""
    kept = [
        (module, name, buffer, buffer.detach().clone())
        for module in model.modules()
        for name, buffer in module.named_buffers(recurse=False)
    ]
    try:
        yield
    finally:
        with torch.no_grad():
            for module, name, buffer, value in kept:
                buffer.copy_(value)
                if getattr(module, name) is not buffer:
                    setattr(module, name, buffer)


@contextlib.contextmanager
def buffers_of_first_rank(model: nn.Module) -> Iterator[None]:
    """Does now what DistributedDataParallel does before a pass, instead of within some of the
    passes: where among its other exchanges that falls would depend on their number, and on whether
    they fail. It does so again after the pass that exchanges gradients, or where the block fails.
    """
    wrappers = [(ddp, ddp.require_forward_param_sync) for ddp in data_parallel(model)]
    for ddp, _ in wrappers:
        if ddp.will_sync_module_buffers():
            ddp._sync_buffers()
        ddp.require_forward_param_sync = False
    try:
        yield
    except BaseException:
        for ddp, before in wrappers:
            ddp.require_forward_param_sync = before
        raise


def data_parallel(model: nn.Module) -> list[DistributedDataParallel]:
    """The model itself, or wrappers within it."""
    return [m for m in model.modules() if isinstance(m, DistributedDataParallel)]


@contextlib.contextmanager
def unsynchronised(model: nn.Module) -> Iterator[None]:
    """Gradients stay this rank's own."""
    with contextlib.ExitStack() as stack:
        for ddp in data_parallel(model):
            stack.enter_context(ddp.no_sync())
        yield


class RandomState:
    """The default generators of the CPU and of every device that takes part."""

    def __init__(self, model: nn.Module, views: Sequence[Tensor]) -> None:
        tensors = (*views, *model.parameters(), *model.buffers())
        devices = {t.device for t in tensors} - {torch.device("cpu"), torch.device("meta")}
        self.devices = sorted(devices, key=str)

    def get(self) -> list[Tensor]:
        return [torch.get_rng_state()] + [
            torch.get_device_module(d).get_rng_state(*self._of(d)) for d in self.devices
        ]

    def set(self, states: list[Tensor]) -> None:
        torch.set_rng_state(states[0])
        for device, state in zip(self.devices, states[1:], strict=True):
            torch.get_device_module(device).set_rng_state(state, *self._of(device))

    @staticmethod
    def _of(device: torch.device) -> tuple[torch.device, ...]:
        return () if device.type == "mps" else (device,)


def entered_by(autocast: Context | Callable[[], Context] | None) -> Callable[[], Context]:
    if autocast is None:
        return contextlib.nullcontext
    # torch.autocast has a __call__ too: it decorates functions.
    if hasattr(autocast, "__enter__"):
        return lambda: autocast
    if not callable(autocast):
        raise TypeError(
            "autocast must be a context such as torch.autocast(...), or a function that returns "
            f"one, got {autocast!r}"
        )
    return autocast


@contextlib.contextmanager
def without_autocast(views: Sequence[Tensor]) -> Iterator[None]:
    """A backward pass runs in the types that the forward pass chose."""
    with contextlib.ExitStack() as stack:
        for kind in {"cpu", "cuda", *(v.device.type for v in views)}:
            if autocast_dtype(kind) is not None:
                stack.enter_context(torch.autocast(kind, enabled=False))
        yield


@contextlib.contextmanager
def small_batch_error(size: int, n: int, micro_batch_size: int) -> Iterator[None]:
    """A model's complaint of one sample or none, with its cause."""
    try:
        yield
    except Exception as error:
        if size == 1 and isinstance(error, ValueError) and "more than 1 value" in str(error):
            raise ValueError(
                f"micro_batch_size {micro_batch_size} leaves a micro-batch of one sample (of {n}), "
                "over which batch norm has no statistics; choose a larger one"
            ) from error
        if size == 0:
            raise RuntimeError(
                f"the model cannot take a batch of no samples: {error}. With {n} samples, fewer "
                "than another rank needs micro-batches, this rank joins in some with none, since "
                "the model exchanges data in its forward; use a larger micro_batch_size or "
                "batches of more equal sizes"
            ) from error
        raise


def check_arguments(model: nn.Module, views: Sequence[Tensor], micro_batch_size: int) -> None:
    if any(ddp.static_graph for ddp in data_parallel(model)):
        raise ValueError(
            "DistributedDataParallel(static_graph=True) expects one forward and backward pass in "
            "each step, micro-batches take several: build it with static_graph=False"
        )
    if not isinstance(micro_batch_size, int) or isinstance(micro_batch_size, bool):
        raise TypeError(f"micro_batch_size must be an int, got {micro_batch_size!r}")
    if micro_batch_size < 1:
        raise ValueError(f"micro_batch_size must be at least 1, got {micro_batch_size}")
    if isinstance(views, Tensor) or not isinstance(views, Sequence):
        raise TypeError(
            f"views must be a tuple or list of tensors, one per view, got {type(views).__name__}"
        )
    for view in views:
        if not isinstance(view, Tensor):
            raise TypeError(f"views must be tensors, got {type(view).__name__}")
    shapes = [tuple(view.shape) for view in views]
    if not shapes or not all(shapes) or len({shape[0] for shape in shapes}) > 1 or not shapes[0][0]:
        raise ValueError(
            f"views must have the same number of samples, at least 1, in front; got shapes {shapes}"
        )


def as_tuple(embeddings: Any, n: int) -> tuple[Tensor, ...]:
    """What the model returned for n samples, checked."""
    found = (embeddings,) if isinstance(embeddings, Tensor) else embeddings
    if not isinstance(found, (tuple, list)) or not all(isinstance(z, Tensor) for z in found):
        raise TypeError(
            "the model must return its embeddings as a tensor or a tuple of tensors, got "
            f"{type(embeddings).__name__}; pass call= to choose them"
        )
    if not found or any(z.ndim == 0 or len(z) != n for z in found):
        raise ValueError(
            f"the model must return embeddings with the samples first: {n} of them, got shapes "
            f"{[tuple(z.shape) for z in found]}"
        )
    return tuple(found)


def loss_of(result: Any) -> Tensor:
    """The loss in what the criterion returned, checked."""
    loss = result[0] if isinstance(result, (tuple, list)) and result else result
    if not isinstance(loss, Tensor):
        raise TypeError(
            "criterion must return a loss tensor, or a tuple that starts with one, got "
            f"{type(result).__name__}"
        )
    if loss.numel() != 1:
        raise ValueError(
            f"criterion must return a scalar loss, got one of shape {tuple(loss.shape)}"
        )
    return loss


def scaled(loss: Tensor, scaler: Any, embeddings: Sequence[Tensor]) -> Tensor:
    if not loss.requires_grad:
        raise RuntimeError(
            "the loss takes no gradient: "
            + (
                "criterion detaches it or does not use the embeddings"
                if any(z.requires_grad for z in embeddings)
                else "the model's embeddings take none; are all its parameters frozen?"
            )
        )
    return loss if scaler is None else scaler.scale(loss)


def detached(result: Any) -> Any:
    """The criterion's result without the graph of its loss."""
    if isinstance(result, Tensor):
        return result.detach()
    return (result[0].detach(), *result[1:])
