"""The losses of any number of views over the ranks of a group.

Two layouts, with the functions of `forms/views.py` and `forms/mixed.py` on each rank:

    features     features for samples by all-to-all; every rank has all samples of some columns and
                 adds up N x N as tiles (Gram form)
    correlation  every rank has its samples and adds up moments and D x D (correlation form)

Gradients are scaled as those of `autograd.py`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from .. import plan
from ..arguments import FORM_OF_LAYOUT, Options
from ..differentiable import (
    refuse_double_backward,
    refuse_forward_mode,
    refuse_transforms,
    save_views,
    saved_tensors,
)
from ..forms import family
from ..forms.family import work_of
from ..forms.views import Moments, Run
from ..kernels import load, tiles
from . import agreement, wire
from .collectives import all_gather, all_reduce, total
from .correlation import in_layout, squared_sums
from .features import to_columns, to_samples
from .groups import Group, node


@dataclass(frozen=True)
class ByColumns(Run):
    """All samples of this rank's columns, which may be none."""

    group: Group

    def total(self, values: Tensor) -> Tensor:
        return total("terms", values.reshape(-1), self.group).reshape(values.shape)

    def moments(self, views: Sequence[Tensor]) -> Moments:
        if views[0].shape[1]:
            return super().moments(views)
        count = len(views)
        empty = torch.empty((count, count, 0), dtype=torch.float64, device=views[0].device)
        return Moments(empty[0], empty, views[0].shape[0])

    def gram_tiles(self, z: Tensor, statistics: Tensor) -> Tensor:
        n = z.shape[0]
        if z.shape[1]:
            packed = super().gram_tiles(z, statistics)
        else:
            b = tiles.side(n, self.precision)
            packed = statistics.new_zeros((tiles.count(n, self.precision), b, b))
        return all_reduce("matrices", packed, self.group).wait()


@dataclass(frozen=True)
class BySamples(Run):
    """All columns of this rank's samples, which may be none."""

    group: Group
    samples: tuple[int, ...]

    @property
    def share(self) -> float:
        return self.samples[self.group.rank] / sum(self.samples)

    def total_of_samples(self, values: Tensor) -> Tensor:
        return total("terms", values.reshape(-1), self.group).reshape(values.shape)

    def moments(self, views: Sequence[Tensor]) -> Moments:
        own, count, n = views[0].shape[0], len(views), sum(self.samples)
        if own:
            means, comoments, _ = super().moments(views)
        else:
            zeros = torch.zeros((count, count, self.d), dtype=torch.float64, device=views[0].device)
            means, comoments = zeros[0], zeros
        whole = self.total_of_samples(own * means) / n
        away = means - whole
        comoments = comoments + own * away[:, None] * away[None]
        return Moments(whole, self.total_of_samples(comoments), n)

    def correlation(self, z_v: Tensor, z_u: Tensor, statistics: Tensor) -> tuple[Tensor, Tensor]:
        if z_v.shape[0]:
            part = super().correlation(z_v, z_u, statistics)[0][: self.d, : self.d]
            part = part.to(self.dtype) * self.share
        else:
            part = statistics.new_zeros((self.d, self.d))
        whole = all_reduce("matrices", part.contiguous(), self.group).wait()
        return in_layout(self, whole), torch.stack(squared_sums(whole))


def forward(
    views: Sequence[Tensor],
    permutation: Tensor | None,
    weights: Sequence[float],
    given: Any,
    options: Options,
    group: Group,
) -> tuple[Tensor, Tensor]:
    """(loss, terms) of the samples of all ranks, without `scale`.

    Args:
        views: (n_r, D) samples of this rank, checked.
        permutation: (n_r,) of these samples, or None.
        weights, given: as the operator of the family takes them; precision not 'auto' in a group.

    Raises:
        ValueError, TypeError: on all ranks, what was wrong on one of them, or in what their calls
            differ.
        RuntimeError: a rank has stopped.
    """

    z = views[0]
    with agreement.errors_reported(group):
        refuse_transforms("the loss of a process group")
        if options.layout == "rows":
            raise ValueError(
                "layout='rows' is for two views of the Barlow Twins loss; use 'features', "
                "'correlation' or 'auto'"
            )
        _, precision, backend = plan.resolve(z, "gram", given.precision, given.backend)
    recorded = torch.is_grad_enabled()
    shared = {
        "dimensions": z.shape[1],
        "dtype": str(z.dtype),
        "device": z.device.type,
        "loss": given.loss,
        "views": len(views),
        "weights": tuple(map(float, weights)),
        "scale": options.scale,
        "gradient": options.gradient,
        "layout": options.layout,
        **given._replace(precision=precision, backend="")._asdict(),
        "requires_grad": [view.requires_grad and recorded for view in views],
    }
    agreed = agreement.agree(shared, z.shape[0], node(), group)
    agreed.check("global")
    n = sum(agreed.samples)
    form = given.form if options.layout == "auto" else FORM_OF_LAYOUT[options.layout]
    # Of the sets that halve symmetric products, whatever the rank has: all choose alike.
    form = plan.choose_form(form, n, z.shape[1], "cpu", work_of(given.loss, len(views)))
    if permutation is not None and form == "gram":
        permutation = _global_permutation(permutation, agreed.samples, group)
    parts = load(backend, precision), form, precision, z.shape[1], group
    run = ByColumns(*parts) if form == "gram" else BySamples(*parts, agreed.samples)
    exact = options.gradient == "exact"
    return FamilyLoss.apply(run, agreed.samples, permutation, weights, given, exact, *views)


def _global_permutation(permutation: Tensor, samples: tuple[int, ...], group: Group) -> Tensor:
    """(N,) of the samples of all ranks, from each rank's (n_r,) of its own."""
    padded = torch.nn.functional.pad(permutation, (0, max(samples) - len(permutation)))
    arrived = all_gather("permutation", padded, group).wait()
    first, parts = 0, []
    for part, count in zip(arrived, samples, strict=True):
        parts.append(part[:count] + first)
        first += count
    return torch.cat(parts)


class FamilyLoss(torch.autograd.Function):
    @staticmethod
    def forward(ctx, run, samples, permutation, weights, given, exact, *views):
        ctx.arguments = run, samples, permutation, weights, given, exact, len(views)
        with plan.without_autocast(views[0].device.type):
            if run.form == "gram":
                sent = [to_columns(z, samples, run.group) for z in views]
                views = [x.wait().view(sum(samples), -1) for x in sent]
            loss, terms, *kept = family.forward(run, views, permutation, weights, given)
        save_views(ctx, views, kept)
        ctx.mark_non_differentiable(terms)
        return loss, terms

    @staticmethod
    def backward(ctx, grad, _):
        found = FamilyGradient.apply(
            grad, ctx.needs_input_grad[6:], *ctx.arguments, *saved_tensors(ctx)
        )
        return *(None,) * 6, *found

    jvp = staticmethod(refuse_forward_mode)


class FamilyGradient(torch.autograd.Function):
    """The backward pass as a node of its own: differentiating it again raises an error."""

    @staticmethod
    def forward(ctx, grad, need, run, samples, permutation, weights, given, exact, count, *tensors):
        scale = total("scale", grad.reshape(1).double(), run.group)
        if not exact:
            scale = scale / run.group.size
        views, kept, n = tensors[:count], tensors[count:], sum(samples)
        with plan.without_autocast(grad.device.type):
            grads = family.backward(
                run, views, permutation, kept, weights, given, n,
                scale.reshape(()).to(grad.dtype), need,
            )  # fmt: skip
        if run.form == "gram":
            d, own = run.d, samples[run.group.rank]
            sent = [
                to_samples(g, samples, d, run.group) for g, w in zip(grads, need, strict=True) if w
            ]
            arrived = iter(wire.from_columns(x.wait(), own, d, run.group.size) for x in sent)
            return tuple(next(arrived) if needed else None for needed in need)
        return tuple(g if needed else None for g, needed in zip(grads, need, strict=True))

    @staticmethod
    def backward(ctx, *_):
        refuse_double_backward()
