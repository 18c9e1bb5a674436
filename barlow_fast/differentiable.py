"""A loss of two views and its hand-written gradient, as autograd and torch.compile take them.

`forward` and `backward` are plain functions on tensors. Eager mode calls them from an
autograd.Function; under torch.compile and export the registered operators `torch.ops.barlow_fast.*`
stand in the graph, opaque to the compiler. Both routes run the same code, so both give the same
bits.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor


class DifferentiableOperator:
    """A loss and its gradient, called like the loss.

    Args:
        forward_name: of the operator `barlow_fast::{forward_name}`. Inductor keeps compiled graphs
            on disk by operator name, with the shapes that they were made for: another layout of
            what `forward` returns needs another name.
        backward_name: of its gradient.
        forward: (z_a, z_b, *options) to a tuple of tensors: the scalar loss, terms that no
            gradient flows through, and what `backward` needs beside the views. Its signature, types
            included, is the operator's.
        backward: (grad, z_a, z_b, *kept, *options, need_a, need_b) to the gradients of the loss
            times the scalar `grad`, of z_a and z_b; one that is not needed is empty.
        fake: `forward` on tensors without memory.
        results: how many of the outputs are the loss and its terms.
    """

    def __init__(
        self,
        forward_name: str,
        backward_name: str,
        forward: Callable[..., tuple[Tensor, ...]],
        backward: Callable[..., tuple[Tensor, Tensor]],
        fake: Callable[..., tuple[Tensor, ...]],
        results: int,
    ) -> None:
        self._results = results
        self.forward = torch.library.custom_op(
            f"barlow_fast::{forward_name}", forward, mutates_args=()
        )
        self.backward = torch.library.custom_op(
            f"barlow_fast::{backward_name}", backward, mutates_args=()
        )
        self.forward.register_fake(fake)
        self.backward.register_fake(_fake_gradients)

        def keep(ctx: Any, inputs: tuple, output: tuple[Tensor, ...]) -> None:
            z_a, z_b, *options = inputs
            ctx.save_for_backward(z_a, z_b, *output[results:])
            ctx.options = options

        def gradients_of(function: Callable[..., tuple[Tensor, Tensor]], ctx: Any, grad: Tensor):
            need = ctx.needs_input_grad[:2]
            gradients = function(grad, *ctx.saved_tensors, *ctx.options, *need)
            wanted = (g if needed else None for g, needed in zip(gradients, need, strict=True))
            return *wanted, *(None for _ in ctx.options)

        self.forward.register_autograd(
            lambda ctx, grad, *_: gradients_of(self.backward, ctx, grad), setup_context=keep
        )
        self.backward.register_autograd(
            refuse_double_backward, setup_context=lambda ctx, inputs, output: None
        )

        class Gradient(torch.autograd.Function):
            """The backward pass as a node of its own, so that differentiating it again is refused
            in words."""

            @staticmethod
            def forward(ctx, *arguments):
                return backward(*arguments)

            @staticmethod
            def backward(ctx, *_):
                refuse_double_backward()

        class Loss(torch.autograd.Function):
            """The eager route."""

            @staticmethod
            def forward(ctx, *inputs):
                output = forward(*inputs)
                keep(ctx, inputs, output)
                ctx.mark_non_differentiable(*output[1:results])
                return output[:results]

            @staticmethod
            def backward(ctx, grad, *_):
                # Gradients are recorded here only for the sake of second derivatives.
                function = Gradient.apply if torch.is_grad_enabled() else backward
                return gradients_of(function, ctx, grad)

        self.eager = Loss.apply

    def __call__(self, *arguments: Any) -> tuple[Tensor, ...]:
        """The loss and its terms; gradients flow through the loss alone."""
        if not torch.compiler.is_compiling():
            return self.eager(*arguments)
        loss, *terms = self.forward(*arguments)[: self._results]
        return loss, *(term.detach() for term in terms)


def _fake_gradients(grad: Tensor, z_a: Tensor, z_b: Tensor, *rest: Any) -> tuple[Tensor, Tensor]:
    need_a, need_b = rest[-2:]
    return z_a.new_empty(z_a.shape if need_a else 0), z_b.new_empty(z_b.shape if need_b else 0)


def refuse_double_backward(*_: object) -> None:
    raise RuntimeError(
        "barlow_fast: the loss cannot be differentiated twice (its fused backward pass has no "
        "gradient of its own). "
        "For second derivatives use barlow_fast.reference.barlow_twins_loss, which is plain torch."
    )
