"""A loss of two views and its hand-written gradient, as autograd and torch.compile take them.

`forward` and `backward` are plain functions on tensors. Eager mode calls them from an
autograd.Function; under torch.compile, export and dispatch modes (fake tensors, FlopCounterMode)
the registered operators `torch.ops.barlow_fast.*` are called, opaque to the compiler. All
routes run the same code and give the same bits.

First derivatives only, in reverse mode: `torch.func.grad`, `vmap` and `jacrev` work, forward mode
and second derivatives are refused.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, NoReturn, get_type_hints

import torch
from torch import Tensor

from .arguments import (
    check_tensors,
    check_view_list,
    check_views,
    check_weight,
    check_weights,
    described,
)
from .kernels import Layout

# Of the registered operators: the name of the package that this module is imported in. Builds for
# the Kernel Hub have names of their own, so that several are loaded beside an installed package.
NAMESPACE = __name__.partition(".")[0]


class DifferentiableOperator:
    """A loss and its gradient, called like the loss.

    Args:
        forward_name: of the operator `barlow_fast::{forward_name}`. Inductor keeps compiled graphs
            on disk by operator name, with the shapes that they were made for: another layout of
            what `forward` returns needs another name.
        backward_name: of its gradient.
        forward: (z_a, z_b, lambd, options) to a tuple of tensors: the scalar loss, terms that no
            gradient flows through, and what `backward` needs beside the views.
        backward: (grad, z_a, z_b, kept, lambd, options, need) to the gradients of the loss times
            the scalar `grad`, of z_a and z_b; one that is not needed is empty.
        options: the NamedTuple of both. Its fields, with types, are the operators' arguments.
        kept: names of the tensors that `backward` needs, in the backward operator's schema.
        layouts: (z_a, lambd, options) to shape and dtype of everything that `forward` returns;
            ValueError for options out of range. Fakes and checks are made of it.
        results: how many of the outputs are the loss and its terms.
        at_least: samples that the loss needs.
        flops: (z_a, options) to the operations of the matrix products of the forward pass and of
            one view's gradient, for `torch.utils.flop_counter`.

    Graphs hold a float argument of an operator as a constant. `{name}_tensor` are the same two
    operators with `lambd` as a 0-dim tensor that the host reads: a weight that changes from step to
    step does not compile a graph of its own. CUDA graphs would hold it too, hence the tag.
    """

    def __init__(
        self,
        forward_name: str,
        backward_name: str,
        forward: Callable[..., tuple[Tensor, ...]],
        backward: Callable[..., tuple[Tensor, Tensor]],
        options: type[NamedTuple],
        kept: tuple[str, ...],
        layouts: Callable[..., tuple[Layout, ...]],
        results: int,
        at_least: int,
        flops: Callable[..., tuple[float, float]],
    ) -> None:
        self._results = results
        signature = _Signature(options, kept)
        check = _Check(signature, layouts, results, at_least)

        def flat_forward(*arguments: Any) -> tuple[Tensor, ...]:
            return forward(*signature.of_forward(arguments))

        def flat_backward(*arguments: Any) -> tuple[Tensor, Tensor]:
            return backward(*signature.of_backward(arguments))

        def registered(suffix: str, kind: str) -> tuple[Any, Any]:
            names = f"{forward_name}{suffix}", f"{backward_name}{suffix}"
            operators = _register(*names, flat_forward, flat_backward, check, kind)
            formulas = _flop_formulas(flops, signature)
            for operator, formula in zip(operators, formulas, strict=True):
                _FLOPS[operator._opoverload._overloadpacket] = formula
            return operators

        self.forward, self.backward = registered("", "float")
        self.forward_tensor, self.backward_tensor = registered("_tensor", "Tensor")

        class Gradient(torch.autograd.Function):
            """The backward pass as a node of its own, so that differentiating it again raises
            an error."""

            @staticmethod
            def forward(*arguments):
                return flat_backward(*arguments)

            @staticmethod
            def setup_context(ctx, inputs, output):
                pass

            @staticmethod
            def backward(ctx, *_):
                refuse_double_backward()

            @staticmethod
            def vmap(info, in_dims, *arguments):
                return _each_in_turn(Gradient.apply, info, in_dims, arguments)

            jvp = staticmethod(refuse_forward_mode)

        class Loss(torch.autograd.Function):
            """The eager route."""

            @staticmethod
            def forward(ctx, z_a, z_b, lambd, options):
                output = forward(z_a, z_b, lambd, options)
                save_for_backward(ctx, z_a, z_b, *output[results:])
                ctx.options = lambd, options
                ctx.mark_non_differentiable(*output[1:results])
                return output[:results]

            @staticmethod
            def backward(ctx, grad, *_):
                lambd, options = ctx.options
                need = ctx.needs_input_grad[:2]
                z_a, z_b, *saved = saved_tensors(ctx)
                if torch.is_grad_enabled():  # recorded only for the sake of second derivatives
                    found = Gradient.apply(grad, z_a, z_b, *saved, lambd, *options, *need)
                elif torch._C._functorch.is_legacy_batchedtensor(grad):  # is_grads_batched=True
                    found = self.backward(grad, z_a, z_b, *saved, lambd, *options, *need)
                else:
                    found = backward(grad, z_a, z_b, saved, lambd, options, need)
                return (
                    *(g if needed else None for g, needed in zip(found, need, strict=True)),
                    None,
                    None,
                )

            jvp = staticmethod(refuse_forward_mode)

        class Transformed(torch.autograd.Function):
            """The route of torch.func. In eager mode its context costs a small step a tenth."""

            @staticmethod
            def forward(*inputs):
                return flat_forward(*inputs)

            @staticmethod
            def setup_context(ctx, inputs, output):
                _keep(ctx, inputs, output, results)
                ctx.mark_non_differentiable(*output[1:])

            @staticmethod
            def backward(ctx, grad, *_):
                return _gradients(Gradient.apply, ctx, grad)

            @staticmethod
            def vmap(info, in_dims, *inputs):
                return _each_in_turn(Transformed.apply, info, in_dims, inputs)

            jvp = staticmethod(refuse_forward_mode)

        self.eager, self.transformed = Loss.apply, Transformed.apply

    def __call__(self, z_a: Tensor, z_b: Tensor, lambd: Any, options: Any) -> tuple[Tensor, ...]:
        """The loss and its terms; gradients flow through the loss alone."""
        if torch.compiler.is_compiling():
            _refuse_gradients_in_graphs()
            return self._operator(z_a, z_b, lambd, *options)
        if torch._C._are_functorch_transforms_active():
            return self.transformed(z_a, z_b, lambd, *options)[: self._results]
        if torch._C._len_torch_dispatch_stack():
            count_flops()
            return self._operator(z_a, z_b, lambd, *options)
        _refuse_tracing()
        return self.eager(z_a, z_b, lambd, options)

    def _operator(self, z_a: Tensor, z_b: Tensor, lambd: Any, *options: Any) -> tuple[Tensor, ...]:
        operator = self.forward
        if isinstance(lambd, Tensor):
            operator = self.forward_tensor
        elif torch.compiler.is_compiling() and z_a.device.type == "cpu":
            # A product, because that is how graphs take numbers that change.
            lambd = torch.ones((), dtype=torch.float64, device="cpu") * lambd
            operator = self.forward_tensor
        loss, *terms = operator(z_a, z_b, lambd, *options)[: self._results]
        return loss, *(term.detach() for term in terms)


class ViewsOperator:
    """A loss of any number of views and its gradient, called like the loss.

    The operators are `barlow_fast::{forward_name}` and `barlow_fast::{backward_name}`; graphs take
    the weights as a tensor that the host reads, so that changing one compiles no other graph.

    Args:
        forward: (views, permutation, weights, options) to the scalar loss, the vector of its terms,
            through which no gradient flows, and what `backward` needs beside the views. views: a
            sequence of (N, D) tensors; permutation: (N,) int64 or None; weights: floats.
        backward: (grad, views, permutation, kept, weights, options, need) to the gradients of the
            loss times the scalar `grad`, one per view; one that is not needed is empty.
        options: the NamedTuple of both; its fields, with types, are the operators' arguments.
        layouts: (views, permutation, options) to shape and dtype of all that `forward` returns;
            ValueError for arguments that do not fit each other.
        weights: (options) to how many weights there are.
        flops: (views, options) to the operations of the matrix products of the forward pass and of
            one view's gradient.
    """

    def __init__(
        self,
        forward_name: str,
        backward_name: str,
        forward: Callable[..., Sequence[Tensor]],
        backward: Callable[..., Sequence[Tensor]],
        options: type[NamedTuple],
        layouts: Callable[..., Sequence[Layout]],
        weights: Callable[[Any], int],
        flops: Callable[..., tuple[float, float]],
    ) -> None:
        hints = get_type_hints(options)
        fields = ", ".join(f"{_SCHEMA_TYPES[hints[name]]} {name}" for name in options._fields)
        common = f"Tensor weights, {fields}"

        def check(views, permutation, given, chosen) -> Sequence[Layout]:
            check_view_list(views)
            found = layouts(views, permutation, chosen)
            check_weights(given, weights(chosen))
            return found

        def check_kept(grad, views, permutation, kept, given, chosen) -> None:
            loss, _, *expected = check(views, permutation, given, chosen)
            if grad.numel() != 1 or len(kept) != len(expected):
                raise ValueError(
                    f"grad must have one element and kept {len(expected)} tensors, as the forward "
                    f"operator returned them, got {described(grad)} and {len(kept)}"
                )
            names = ("grad", *(f"kept[{i}]" for i in range(len(kept))))
            tensors = (grad.reshape(()), *kept)
            check_tensors(names, tensors, (loss, *expected), views[0].device)

        def run_forward(views, permutation, given, *rest):
            check(views, permutation, given, options._make(rest))
            return list(forward(views, permutation, given.tolist(), options._make(rest)))

        def run_backward(grad, views, permutation, kept, given, *rest):
            chosen, need = options._make(rest[:-1]), rest[-1]
            check_kept(grad, views, permutation, kept, given, chosen)
            numbers = given.tolist()
            return list(backward(grad, views, permutation, kept, numbers, chosen, need))

        def fake_forward(views, permutation, given, *rest):
            found = check(views, permutation, given, options._make(rest))
            return [views[0].new_empty(shape, dtype=dtype) for shape, dtype in found]

        def fake_backward(grad, views, permutation, kept, given, *rest):
            check_kept(grad, views, permutation, kept, given, options._make(rest[:-1]))
            return [
                z.new_empty(z.shape if needed else 0)
                for z, needed in zip(views, rest[-1], strict=True)
            ]

        def register(name: str, function: Any, arguments: str, fake: Any) -> Any:
            operator = torch.library.custom_op(
                f"{NAMESPACE}::{name}",
                function,
                mutates_args=(),
                schema=f"({arguments}) -> Tensor[]",
                tags=(torch.Tag.cudagraph_unsafe,),
            )
            operator.register_fake(fake)
            return operator

        shared = "Tensor[] views, Tensor? permutation"
        self.operator = register(forward_name, run_forward, f"{shared}, {common}", fake_forward)
        gradient = register(
            backward_name,
            run_backward,
            f"Tensor grad, {shared}, Tensor[] kept, {common}, bool[] need",
            fake_backward,
        )

        def keep(ctx, inputs, output):
            views, permutation, given, *rest = inputs
            ctx.count, ctx.options = len(views), (given, *rest)
            others = () if permutation is None else (permutation,)
            ctx.others = len(others)
            save_views(ctx, views, (*others, *output[2:]))

        def differentiate(ctx, grads):
            saved = saved_tensors(ctx)
            views, rest = saved[: ctx.count], saved[ctx.count :]
            permutation = rest[0] if ctx.others else None
            need = list(ctx.needs_input_grad[0])
            found = gradient(
                grads[0], list(views), permutation, list(rest[ctx.others :]), *ctx.options, need
            )
            wanted = [g if needed else None for g, needed in zip(found, need, strict=True)]
            return wanted, None, *(None for _ in ctx.options)

        self.operator.register_autograd(differentiate, setup_context=keep)
        gradient.register_autograd(
            refuse_double_backward, setup_context=lambda ctx, inputs, output: None
        )

        def forward_flops(views, permutation, given, *rest, out_val=None, **_):
            return int(flops(views, options._make(rest))[0])

        def backward_flops(grad, views, permutation, kept, given, *rest, out_val=None, **_):
            return int(flops(views, options._make(rest[:-1]))[1] * sum(rest[-1]))

        _FLOPS[self.operator._opoverload._overloadpacket] = forward_flops
        _FLOPS[gradient._opoverload._overloadpacket] = backward_flops

        for operator in (self.operator, gradient):
            operator.register_vmap(_vmap_rule(operator))

        class Gradient(torch.autograd.Function):
            """The backward pass as a node of its own, so that differentiating it again raises an
            error."""

            @staticmethod
            def forward(grad, count, permutation, given, chosen, need, *tensors):
                views, kept = tensors[:count], tensors[count:]
                return tuple(backward(grad, views, permutation, kept, given, chosen, need))

            @staticmethod
            def setup_context(ctx, inputs, output):
                pass

            @staticmethod
            def backward(ctx, *_):
                refuse_double_backward()

            @staticmethod
            def vmap(info, in_dims, *arguments):
                return _each_in_turn(Gradient.apply, info, in_dims, arguments)

            jvp = staticmethod(refuse_forward_mode)

        def keep_in(ctx, arguments, views, output):
            save_views(ctx, views, output[2:])
            ctx.arguments, ctx.count = arguments, len(views)

        def gradients(ctx, grad):
            need, saved = ctx.needs_input_grad[3:], saved_tensors(ctx)
            batched = torch._C._functorch.is_legacy_batchedtensor(grad)  # is_grads_batched=True
            scale = saved[0].new_ones((), dtype=grad.dtype) if batched else grad
            found = Gradient.apply(scale, ctx.count, *ctx.arguments, need, *saved)
            if batched:
                found = [(grad * g).to(g.dtype) for g in found]
            return None, None, None, *(g if n else None for g, n in zip(found, need, strict=True))

        class Loss(torch.autograd.Function):
            """The eager route."""

            @staticmethod
            def forward(ctx, permutation, given, chosen, *views):
                output = forward(views, permutation, given, chosen)
                keep_in(ctx, (permutation, given, chosen), views, output)
                ctx.mark_non_differentiable(output[1])
                return output[0], output[1]

            @staticmethod
            def backward(ctx, grad, _):
                return gradients(ctx, grad)

            jvp = staticmethod(refuse_forward_mode)

        class Transformed(torch.autograd.Function):
            """The route of torch.func."""

            @staticmethod
            def forward(permutation, given, chosen, *views):
                return tuple(forward(views, permutation, given, chosen))

            @staticmethod
            def setup_context(ctx, inputs, output):
                keep_in(ctx, inputs[:3], inputs[3:], output)
                ctx.mark_non_differentiable(*output[1:])

            @staticmethod
            def backward(ctx, grad, *_):
                return gradients(ctx, grad)

            @staticmethod
            def vmap(info, in_dims, *inputs):
                return _each_in_turn(Transformed.apply, info, in_dims, inputs)

            jvp = staticmethod(refuse_forward_mode)

        self.eager, self.transformed = Loss.apply, Transformed.apply

    def __call__(
        self,
        views: Sequence[Tensor],
        permutation: Tensor | None,
        weights: Sequence[float | Tensor],
        options: Any,
    ) -> tuple[Tensor, Tensor]:
        """(loss, terms); gradients flow through the loss alone."""
        if torch.compiler.is_compiling():
            _refuse_gradients_in_graphs()
            return self._operator(views, permutation, weights, options)
        if torch._C._are_functorch_transforms_active():
            return self.transformed(permutation, tuple(weights), options, *views)[:2]
        if torch._C._len_torch_dispatch_stack():
            count_flops()
            return self._operator(views, permutation, weights, options)
        _refuse_tracing()
        return self.eager(permutation, tuple(weights), options, *views)

    def _operator(
        self,
        views: Sequence[Tensor],
        permutation: Tensor | None,
        weights: Sequence[float | Tensor],
        options: Any,
    ) -> tuple[Tensor, Tensor]:
        loss, terms, *_ = self.operator(list(views), permutation, _as_tensor(weights), *options)
        return loss, terms.detach()


def _as_tensor(weights: Sequence[float | Tensor]) -> Tensor:
    """(K,) float64 on the CPU. Numbers are products, because that is how graphs take numbers that
    change."""
    one = torch.ones((), dtype=torch.float64, device="cpu")
    return torch.stack(
        [
            w.to("cpu", torch.float64).reshape(()) if isinstance(w, Tensor) else one * w
            for w in weights
        ]
    )


_SCHEMA_TYPES = {float: "float", int: "SymInt", bool: "bool", str: "str"}


class _Signature:
    """The arguments of the operators: flat for torch.library and autograd, packed for functions.

    forward:  z_a, z_b, lambd, *options
    backward: grad, z_a, z_b, *kept, lambd, *options, need_a, need_b
    """

    def __init__(self, options: type[NamedTuple], kept: tuple[str, ...]) -> None:
        self.options, self.kept = options, kept
        self._lambd = 3 + len(kept)  # its position in the backward pass
        hints = get_type_hints(options)
        self._fields = [f"{_SCHEMA_TYPES[hints[name]]} {name}" for name in options._fields]

    def schemas(self, lambd: str, outputs: int) -> tuple[str, str]:
        """Of both operators, with a weight of type `lambd`."""
        common = [f"{lambd} lambd", *self._fields]
        forward = ["Tensor z_a", "Tensor z_b", *common]
        tensors = [f"Tensor {name}" for name in ("grad", "z_a", "z_b", *self.kept)]
        backward = [*tensors, *common, "bool need_a", "bool need_b"]
        returned = ", ".join(["Tensor"] * outputs)
        return (
            f"({', '.join(forward)}) -> ({returned})",
            f"({', '.join(backward)}) -> (Tensor, Tensor)",
        )

    def of_forward(self, arguments: Sequence[Any]) -> tuple[Any, ...]:
        """(z_a, z_b, lambd, options)."""
        z_a, z_b, lambd, *rest = arguments
        return z_a, z_b, lambd, self.options._make(rest)

    def of_backward(self, arguments: Sequence[Any]) -> tuple[Any, ...]:
        """(grad, z_a, z_b, kept, lambd, options, need)."""
        at = self._lambd
        options = self.options._make(arguments[at + 1 : -2])
        return *arguments[:3], arguments[3:at], arguments[at], options, arguments[-2:]


MOST_KNOWN = 256  # shapes that the checks of an operator remember


class _Check:
    """Arguments of an operator, checked before kernels read memory by them."""

    def __init__(
        self,
        signature: _Signature,
        layouts: Callable[..., tuple[Layout, ...]],
        results: int,
        at_least: int,
    ) -> None:
        self.signature, self.layouts = signature, layouts
        self.results, self.at_least = results, at_least
        self._known: dict[tuple, tuple[Layout, ...]] = {}

    def known(self, z_a: Tensor, z_b: Tensor, lambd: Any, options: Any) -> tuple[Layout, ...]:
        """As `forward`, of tensors that have memory, remembered by shape, dtype and device."""
        key = (z_a.shape, z_a.dtype, z_a.device, z_b.shape, z_b.dtype, z_b.device, options)
        layouts = self._known.get(key)
        if layouts is not None:
            check_weight(lambd)
            return layouts
        layouts = self.forward(z_a, z_b, lambd, options)
        if options.precision != "auto":  # which depends on torch's settings of the moment
            if len(self._known) >= MOST_KNOWN:
                self._known.clear()
            self._known[key] = layouts
        return layouts

    def forward(self, z_a: Tensor, z_b: Tensor, lambd: Any, options: Any) -> tuple[Layout, ...]:
        """The layouts of what is returned."""
        check_views(z_a, z_b, self.at_least)
        check_weight(lambd)
        return self.layouts(z_a, options)

    def backward(
        self, arguments: Sequence[Any], layouts_of: Callable[..., tuple[Layout, ...]]
    ) -> None:
        """`layouts_of`: `forward` or `known`."""
        grad, z_a, z_b, kept, lambd, options, _ = self.signature.of_backward(arguments)
        layouts = layouts_of(z_a, z_b, lambd, options)
        if grad.dim() and grad.numel() == 1:  # of any shape, as kernels read it
            grad = grad.reshape(())
        names, expected = ("grad", *self.signature.kept), (layouts[0], *layouts[self.results :])
        check_tensors(names, (grad, *kept), expected, z_a.device)


def _register(
    forward_name: str,
    backward_name: str,
    forward: Callable[..., tuple[Tensor, ...]],
    backward: Callable[..., tuple[Tensor, Tensor]],
    check: _Check,
    lambd: str,
) -> tuple[Any, Any]:
    """The operators `barlow_fast::{forward_name}` and `barlow_fast::{backward_name}`.

    lambd: the type of the weight, 'float' or 'Tensor'.
    """
    signature, results = check.signature, check.results
    schemas = signature.schemas(lambd, results + len(signature.kept))
    tags = (torch.Tag.cudagraph_unsafe,) if lambd == "Tensor" else ()

    def checked_forward(*arguments: Any) -> tuple[Tensor, ...]:
        check.known(*signature.of_forward(arguments))
        return forward(*arguments)

    def checked_backward(*arguments: Any) -> tuple[Tensor, Tensor]:
        check.backward(arguments, check.known)
        return backward(*arguments)

    def fake_forward(*arguments: Any) -> tuple[Tensor, ...]:
        layouts = check.forward(*signature.of_forward(arguments))
        return tuple(arguments[0].new_empty(shape, dtype=dtype) for shape, dtype in layouts)

    def fake_backward(*arguments: Any) -> tuple[Tensor, Tensor]:
        check.backward(arguments, check.forward)
        views, need = arguments[1:3], arguments[-2:]
        return tuple(
            z.new_empty(z.shape if needed else 0) for z, needed in zip(views, need, strict=True)
        )

    operators = []
    for name, checked, schema, at in (
        (forward_name, checked_forward, schemas[0], 2),
        (backward_name, checked_backward, schemas[1], 3 + len(signature.kept)),
    ):
        function = _reading_lambd(checked, at) if lambd == "Tensor" else checked
        operators.append(
            torch.library.custom_op(
                f"{NAMESPACE}::{name}", function, mutates_args=(), schema=schema, tags=tags
            )
        )
    forward_operator, backward_operator = operators
    forward_operator.register_fake(fake_forward)
    backward_operator.register_fake(fake_backward)
    forward_operator.register_autograd(
        lambda ctx, grad, *_: _gradients(backward_operator, ctx, grad),
        setup_context=lambda ctx, inputs, output: _keep(ctx, inputs, output, results),
    )
    backward_operator.register_autograd(
        refuse_double_backward, setup_context=lambda ctx, inputs, output: None
    )
    for operator in operators:
        operator.register_vmap(_vmap_rule(operator))
    return forward_operator, backward_operator


def _reading_lambd(function: Callable[..., Any], index: int) -> Callable[..., Any]:
    """`function` of a number, as a function of a tensor that holds it."""

    def read(*arguments: Any) -> Any:
        lambd = arguments[index]
        check_weight(lambd)
        return function(*arguments[:index], lambd.item(), *arguments[index + 1 :])

    return read


def _keep(ctx: Any, inputs: tuple, output: tuple[Tensor, ...], results: int) -> None:
    z_a, z_b, *options = inputs
    save_for_backward(ctx, z_a, z_b, *output[results:])
    ctx.options = options


def _gradients(function: Callable[..., tuple[Tensor, Tensor]], ctx: Any, grad: Tensor) -> tuple:
    need = ctx.needs_input_grad[:2]
    gradients = function(grad, *saved_tensors(ctx), *ctx.options, *need)
    wanted = (g if needed else None for g, needed in zip(gradients, need, strict=True))
    return *wanted, *(None for _ in ctx.options)


def save_for_backward(ctx: Any, z_a: Tensor, z_b: Tensor, *kept: Tensor) -> None:
    """As `ctx.save_for_backward`, for embeddings that were made in inference mode as well."""
    save_views(ctx, (z_a, z_b), kept)


def save_views(ctx: Any, views: Sequence[Tensor], kept: Sequence[Tensor]) -> None:
    """`save_for_backward` of any number of views."""
    if any(z.is_inference() for z in views) and not torch.is_inference_mode_enabled():
        views = [z.clone() for z in views]
    ctx.save_for_backward(*views, *kept)


def saved_tensors(ctx: Any) -> tuple[Tensor, ...]:
    """As `ctx.saved_tensors`, with the cause in the error where an embedding was overwritten."""
    try:
        return ctx.saved_tensors
    except RuntimeError as error:
        if "modified by an inplace operation" not in str(error):
            raise
        raise RuntimeError(
            "barlow_fast: an embedding was changed in place after the loss was computed and before "
            "its backward pass, which reads it; change a copy instead (z.clone()). "
            f"[{error}]"
        ) from error


def _each_in_turn(
    function: Callable[..., tuple[Tensor, ...]], info: Any, in_dims: tuple, arguments: tuple
) -> tuple[tuple[Tensor, ...], tuple[int, ...]]:
    """The rule of torch.func.vmap: one call for each element of the batch."""

    def element(x: Any, dim: Any, index: int) -> Any:
        if isinstance(x, Tensor):
            return x if dim is None else x.select(dim, index)
        if isinstance(x, list) and dim is not None:  # of tensors, to an operator
            return [element(y, of_y, index) for y, of_y in zip(x, dim, strict=True)]
        return x

    results = [
        function(*(element(x, dim, index) for x, dim in zip(arguments, in_dims, strict=True)))
        for index in range(info.batch_size)
    ]
    kind = type(results[0])
    return kind(torch.stack(x) for x in zip(*results, strict=True)), kind([0] * len(results[0]))


def _in_gradient_of_torch_func() -> bool:
    """Whether the innermost transform of torch.func is a gradient. Can be traced."""
    if not torch._C._are_functorch_transforms_active():
        return False
    transform = torch._functorch.pyfunctorch.retrieve_current_functorch_interpreter()
    return transform.key() == torch._C._functorch.TransformType.Grad


def _refuse_gradients_in_graphs() -> None:
    if _in_gradient_of_torch_func():
        _refuse(
            "torch.func.grad and jacrev of the loss are no part of a graph; without "
            "fullgraph=True torch.compile leaves them to eager mode"
        )


def _refuse_tracing() -> None:
    if torch.jit.is_tracing():
        _refuse("the loss cannot be traced by torch.jit.trace; torch.export can export it")


def _vmap_rule(operator: Any) -> Callable[..., tuple]:
    """`_each_in_turn` as operators take it."""

    def rule(info: Any, in_dims: tuple, *arguments: Any) -> tuple:
        return _each_in_turn(operator, info, in_dims, arguments)

    return rule


# Formulas of `torch.utils.flop_counter`, by operator.
_FLOPS: dict[Any, Callable[..., int]] = {}


def _flop_formulas(
    flops: Callable[..., tuple[float, float]], signature: _Signature
) -> tuple[Callable[..., int], Callable[..., int]]:
    """Of the forward and of the backward operator."""

    def of_forward(*arguments, out_val=None, **_):
        z_a, _, _, options = signature.of_forward(arguments)
        return int(flops(z_a, options)[0])

    def of_backward(*arguments, out_val=None, **_):
        _, z_a, _, _, _, options, need = signature.of_backward(arguments)
        return int(flops(z_a, options)[1] * sum(need))

    return of_forward, of_backward


def count_flops() -> None:
    """Gives the formulas to `torch.utils.flop_counter`, if it is imported.

    Not before: importing it takes a third of a second. Counters that are at work already have
    copied the formulas they know.
    """
    module = sys.modules.get("torch.utils.flop_counter")
    if module is None:
        return
    from torch.utils._python_dispatch import _get_current_dispatch_mode_stack

    module.flop_registry.update(_FLOPS)
    for mode in _get_current_dispatch_mode_stack():
        counter = getattr(mode, "counter", mode)
        if isinstance(counter, module.FlopCounterMode):
            counter.flop_registry.update(_FLOPS)


def _refuse(problem: str) -> NoReturn:
    raise RuntimeError(
        f"barlow_fast: {problem}. barlow_fast.reference.barlow_twins_loss is plain torch and takes "
        "part in everything that torch offers."
    )


def refuse_double_backward(*_: object) -> NoReturn:
    _refuse(
        "the loss cannot be differentiated twice (its fused backward pass has no gradient of its "
        "own)"
    )


def refuse_forward_mode(*_: object) -> NoReturn:
    _refuse("the loss has no forward-mode derivative (jvp, jacfwd, torch.autograd.forward_ad)")


def refuse_transforms(what: str) -> None:
    """RuntimeError inside torch.func transforms and torch.jit.trace."""
    if torch.compiler.is_compiling():
        return
    if torch._C._are_functorch_transforms_active():
        _refuse(f"{what} cannot be transformed by torch.func (grad, vmap, jacrev, jvp)")
    if torch.jit.is_tracing():
        _refuse(f"{what} cannot be traced by torch.jit.trace")
