"""What one process with all samples computes, and what a rank computes from its own."""

from __future__ import annotations

import torch
from embeddings import draw
from torch import Tensor

from barlow_fast import barlow_twins_loss, reference
from barlow_fast.reference import standardise

LAMBDA = 0.05  # larger than the paper's: the off-diagonal term shall count in every comparison
EPS = 1e-5
LAYOUTS = ("features", "rows", "correlation")


def views(
    kind: str, samples: tuple[int, ...], d: int, seed: int = 0, dtype: torch.dtype = torch.float64
) -> tuple[Tensor, Tensor]:
    """Both views of all ranks' samples, from which each rank takes its own."""
    return draw(kind, sum(samples), d, seed, dtype)


def own(z: Tensor, samples: tuple[int, ...], rank: int) -> Tensor:
    """A leaf with one rank's samples."""
    return z.split(list(samples))[rank].clone().requires_grad_()


def standardise_by_rank(samples: tuple[int, ...], z: Tensor, eps: float = EPS) -> Tensor:
    """As `statistics='local'` does."""
    return torch.cat([standardise(part, eps) for part in z.split(list(samples))])


def terms(
    z_a: Tensor, z_b: Tensor, samples: tuple[int, ...], statistics: str, lambd: float = LAMBDA
) -> tuple[Tensor, Tensor, Tensor]:
    """(loss, on_diagonal, off_diagonal) of all samples in plain torch."""
    if statistics == "global":
        return reference.barlow_twins_terms(z_a, z_b, lambd, EPS)
    c = standardise_by_rank(samples, z_a).T @ standardise_by_rank(samples, z_b) / z_a.shape[0]
    diagonal = c.diagonal()
    on_diagonal = (diagonal - 1).square().sum()
    off_diagonal = (c - torch.diag(diagonal)).square().sum()
    return on_diagonal + lambd * off_diagonal, on_diagonal, off_diagonal


def differentiated(
    z_a: Tensor, z_b: Tensor, samples: tuple[int, ...], statistics: str
) -> tuple[Tensor, ...]:
    """(loss, on_diagonal, off_diagonal, dL/dz_a, dL/dz_b) in float64."""
    a, b = (z.double().requires_grad_() for z in (z_a.detach(), z_b.detach()))
    values = terms(a, b, samples, statistics)
    return *(v.detach() for v in values), *torch.autograd.grad(values[0], (a, b))


def joined(by_rank: list) -> list[Tensor]:
    """Gradients of all samples from each rank's last two results: the mean over ranks, as DDP takes
    it."""
    return [
        torch.cat(parts) / len(by_rank) for parts in zip(*(r[-2:] for r in by_rank), strict=True)
    ]


def computed(
    group, z_a: Tensor, z_b: Tensor, samples: tuple[int, ...], lambd: float = LAMBDA, **options
) -> tuple[Tensor, ...]:
    """The same of one rank: gradients of its samples as the loss gives them."""
    a, b = (own(z, samples, group.rank()) for z in (z_a, z_b))
    loss, found = barlow_twins_loss(
        a, b, lambd, eps=EPS, process_group=group, return_terms=True, **options
    )
    grads = torch.autograd.grad(loss, (a, b))
    return loss.detach(), found.on_diagonal, found.off_diagonal, *grads
