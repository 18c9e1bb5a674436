"""Where `barlow_twins_loss` enters with a process group.

A module of its own, imported by the first call: `torch.compiler.disable` loads the compiler, a
second that nobody without a group should wait for.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from .. import ops
from ..differentiable import refuse_transforms
from ..losses import barlow_twins as functional
from . import autograd, groups


# Exchanges between processes stay out of compiled graphs, where they could change their order.
@torch.compiler.disable
def of_group(
    z_a: Tensor, z_b: Tensor, process_group: Any, **options: Any
) -> tuple[Tensor, Tensor, Tensor]:
    """(loss, on_diagonal, off_diagonal), without `scale`; arguments as `barlow_twins_loss` takes
    them."""
    group = groups.resolve(process_group)
    error = None
    try:
        refuse_transforms("the loss of a process group")
        functional.check_options(process_group=process_group, **options)
        z_a, z_b = functional.as_matrices(z_a, z_b, at_least=0 if group else 2)
        options["precision"] = functional.given_precision(z_a, options["precision"])
    except (TypeError, ValueError, RuntimeError) as problem:
        if group is None:
            raise
        error = problem  # not before the other ranks know
    if group is not None:
        return autograd.forward(z_a, z_b, error, group, **options)
    names = ("lambd", "eps", "form", "precision", "backend")
    return ops.barlow_twins(z_a, z_b, *(options[name] for name in names))
