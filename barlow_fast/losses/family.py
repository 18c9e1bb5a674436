"""What the losses of any number of views have in common: checks, precision, ranks and modules."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import nullcontext
from typing import Any, NamedTuple

from torch import Tensor, compiler, nn

from .. import ops, plan
from ..arguments import Options, as_number, check_number, check_weight
from ..forms.family import ViewOptions


class Call(NamedTuple):
    """A call of a loss: what it is of, and how.

    weights: by name, numbers or tensors of one element.
    """

    loss: str
    weights: dict[str, float | Tensor]
    options: Options
    gamma: float = 1.0


def compute(
    call: Call, views_of: Callable[[int], tuple[Sequence[Tensor], Tensor | None]]
) -> tuple[Tensor, Tensor]:
    """(loss times `scale`, terms) of this process or of the group of `options`.

    views_of: (N that is needed) to the checked views and the permutation, or None.
    """
    weights = {name: as_number(name, value) for name, value in call.weights.items()}
    call = call._replace(weights=weights)
    if call.options.process_group is None:
        loss, terms = _compute(call, views_of)
    else:
        from ..distributed.eager import outside_graphs

        loss, terms = outside_graphs(_compute, call, views_of)
    scale = call.options.scale
    return (loss if scale == 1.0 else loss * scale), terms


def _compute(
    call: Call, views_of: Callable[[int], tuple[Sequence[Tensor], Tensor | None]]
) -> tuple[Tensor, Tensor]:
    group, errors, options = None, nullcontext(), call.options
    if options.process_group is not None:
        from ..distributed import agreement, groups

        group = groups.resolve(options.process_group)
        errors = agreement.errors_reported(group)
    with errors:
        views, permutation = views_of(2 if group is None else 0)
        if not compiler.is_compiling():
            check(call)
        precision = plan.precision_under_autocast(views[0], options.precision)
    given = ViewOptions(
        call.loss, float(call.gamma), float(options.off_diagonal_target), float(options.eps),
        options.form, precision, options.backend,
    )  # fmt: skip
    weights = tuple(call.weights.values())
    if group is None:
        return ops.family(views, permutation, weights, given)
    from ..distributed import views as across_ranks

    return across_ranks.forward(views, permutation, weights, given, options, group)


def check(call: Call) -> None:
    """The error that a loss documents for the first bad option."""
    call.options.check()
    check_number("gamma", call.gamma, at_least=0)
    for name, value in call.weights.items():
        check_weight(as_number(name, value), name)


_SHARED = ("scale", "precision", "form", "backend", "process_group", "gradient", "layout")


class FamilyLoss(nn.Module):
    """A module of a loss: its options as attributes, no parameters, no buffers."""

    names: tuple[str, ...] = ()

    def __init__(self, call: Call, *own: str) -> None:
        """Keeps the weights of the call, its options `own` and those that all losses have."""
        super().__init__()
        check(call)
        options = call.options._asdict() | {"gamma": call.gamma}
        kept = call.weights | {name: options[name] for name in (*own, *_SHARED)}
        self.names = tuple(kept)
        for name, value in kept.items():
            setattr(self, name, value)

    @property
    def options(self) -> dict[str, Any]:
        return {name: getattr(self, name) for name in self.names}

    def extra_repr(self) -> str:
        return ", ".join(f"{name}={value!r}" for name, value in self.options.items())
