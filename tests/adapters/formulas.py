"""Each peer's loss as its mathematics says, in eager torch: written from the formulas, not from
anybody's code, and without what makes the adapters fast.

    C = u_a^T u_b / divisor,   loss = scale * (sum (C_ii - 1)^2 + lambd * sum (C_ij - t)^2)
"""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Callable, Iterable
from types import SimpleNamespace
from typing import NamedTuple

import torch
from gate import relative_error
from torch import Tensor, nn

from barlow_fast import adapters

for module in pkgutil.iter_modules(adapters.__path__):
    importlib.import_module(f"{adapters.__name__}.{module.name}")


LAMBDA = 0.0051
SCALE = 0.025
BATCH = 24  # what some peers divide by, whatever N is


def penalty(c: Tensor, lambd: float, target: float = 0.0, scale: float = 1.0) -> Tensor:
    """The loss of a cross-correlation matrix."""
    outside = 1 - torch.eye(c.shape[0], dtype=c.dtype, device=c.device)
    on_diagonal = (torch.diagonal(c) - 1).square().sum()
    return scale * (on_diagonal + lambd * ((c - target).square() * outside).sum())


def batch_norm(z: Tensor) -> Tensor:
    centred = z - z.mean(0)
    return centred / (centred.square().mean(0) + 1e-5).sqrt()


def unbiased(z: Tensor, inside: float = 0.0, outside: float = 0.0) -> Tensor:
    if outside:
        return (z - z.mean(0)) / (z.std(0) + outside)  # whose derivative at 0 is 0
    return (z - z.mean(0)) / (z.var(0) + inside).sqrt()


def of_norm(norm: Callable[[Tensor], Tensor], **options: float) -> Callable[..., Tensor]:
    divisor = options.pop("divisor", None)

    def of_standardised(u_a: Tensor, u_b: Tensor) -> Tensor:
        return penalty(u_a.T @ u_b / (divisor or u_a.shape[0]), **({"lambd": LAMBDA} | options))

    def loss(z_a: Tensor, z_b: Tensor) -> Tensor:
        return of_standardised(norm(z_a), norm(z_b))

    loss.of_standardised = of_standardised
    return loss


def hinge(z: Tensor, eps: float = 1e-4) -> Tensor:
    return (1 - (z.var(0) + eps).sqrt()).clamp_min(0).mean()


def covariances(z: Tensor, divisor: int | None = None) -> Tensor:
    """The sum of the squares off the diagonal of the covariance matrix, divided by D."""
    centred = z - z.mean(0)
    cov = centred.T @ centred / ((divisor or z.shape[0]) - 1)
    return (cov.square().sum() - torch.diagonal(cov).square().sum()) / z.shape[1]


def variance_covariance(
    weights: tuple[float, float, float] = (25.0, 25.0, 1.0),
    eps: float = 1e-4,
    batch: int | None = None,
) -> Callable[[Tensor, Tensor], Tensor]:
    """The loss of VICReg, whose variance term is the mean of both views'."""
    pull, spread, decorrelate = weights

    def loss(z_a: Tensor, z_b: Tensor) -> Tensor:
        variance = (hinge(z_a, eps) + hinge(z_b, eps)) / 2
        covariance = covariances(z_a, batch) + covariances(z_b, batch)
        return pull * (z_a - z_b).square().mean() + spread * variance + decorrelate * covariance

    return loss


def frossl(weight: float = 1.0, summed: bool = False) -> Callable[[Tensor, Tensor], Tensor]:
    """FroSSL of two views; `summed`: distances of views added up instead of averaged."""

    def loss(*views: Tensor) -> Tensor:
        us = torch.stack([z / z.norm(dim=0).clamp_min(1e-12) for z in views])
        grams = us @ us.mT
        sizes = grams.square().sum((1, 2)).sqrt() / grams.diagonal(dim1=1, dim2=2).sum(1)
        count, _, d = us.shape
        away = count * d * (us - us.mean(0)).square().mean() * (count if summed else 1)
        return 2 * sizes.log().sum() + weight * away

    return loss


def third_view(z_a: Tensor, z_b: Tensor) -> Tensor:
    """Stands for the embeddings of mixed inputs."""
    return z_a.sin() * 2 + z_b


def permutation_of(n: int) -> Tensor:
    return torch.arange(n).flip(0).roll(2)


def mixed(
    lambd: float = LAMBDA,
    mixing: float = 2.0,
    alpha: float = 0.3,
    batch: int | None = None,
    other: Tensor | None = None,
    index: Tensor | None = None,
) -> Callable[[Tensor, Tensor], Tensor]:
    """mix-bt's loss by its four matrices; `other`: embeddings of mixed inputs."""

    def loss(z_a: Tensor, z_b: Tensor) -> Tensor:
        n = z_a.shape[0]
        divisor, order = batch or n, permutation_of(n) if index is None else index
        u_a, u_b = unbiased(z_a), unbiased(z_b)
        u_m = unbiased(third_view(z_a, z_b) if other is None else other)
        total = penalty(u_a.T @ u_b / divisor, lambd)
        for u in (u_a, u_b):
            goal = alpha * (u_a.T @ u) + (1 - alpha) * (u_b[order].T @ u)
            total = total + mixing * lambd * ((u_m.T @ u - goal) / divisor).square().sum()
        return total

    return loss


def shared_norm(z_a: Tensor, z_b: Tensor) -> Tensor:
    u_a, u_b = batch_norm(torch.cat((z_a, z_b))).chunk(2)
    return penalty(u_a.T @ u_b / z_a.shape[0], LAMBDA, scale=SCALE)


class Flat(nn.Module):
    """A backbone that leaves its input as it is."""

    def forward(self, y: Tensor) -> Tensor:
        return y


def official_model(d: int, batch_size: int, dtype: torch.dtype, **options: str):
    """The official module of embeddings as they are: an identity for backbone and projector."""
    args = SimpleNamespace(projector=str(d), batch_size=batch_size, lambd=LAMBDA)
    model = adapters.official.BarlowTwins(args, backbone=Flat(), features=d, **options).to(dtype)
    model.projector = nn.Identity()
    return model


def _head(kind: type[nn.Module], z: Tensor) -> nn.Module:
    head = kind(z.shape[1], {"type": "CrossCorrelationLoss", "lambd": LAMBDA})
    return head.to(torch.promote_types(z.dtype, torch.float32))


def _vissl(z_a: Tensor, z_b: Tensor) -> Tensor:
    return adapters.vissl.BarlowTwinsCriterion(LAMBDA, SCALE, z_a.shape[1])(torch.cat((z_a, z_b)))


class Case(NamedTuple):
    formula: Callable[[Tensor, Tensor], Tensor]
    adapter: Callable[[Tensor, Tensor], Tensor]
    dead_is_nan: bool = False


def _interleaved(z_a: Tensor, z_b: Tensor) -> Tensor:
    both = torch.stack((z_a, z_b), 1).flatten(0, 1)
    target = torch.arange(z_a.shape[0]).repeat_interleave(2)
    return adapters.lifestream.BarlowTwinsLoss(LAMBDA)(both, target)


def _ffcv(z_a: Tensor, z_b: Tensor) -> Tensor:
    wide = torch.promote_types(z_a.dtype, torch.float32)
    norm = nn.BatchNorm1d(z_a.shape[1], affine=False, dtype=wide)
    return adapters.ffcv_ssl.BarlowTwinsLoss(norm, BATCH, 1, LAMBDA)(z_a, z_b)


def vicreg_model(d: int, dtype: torch.dtype, **settings: float) -> nn.Module:
    """The authors' module of embeddings as they are, of batches of `BATCH`."""
    given = {"batch_size": BATCH, "sim_coeff": 25.0, "std_coeff": 25.0, "cov_coeff": 1.0}
    args = SimpleNamespace(mlp=str(d), **(given | settings))
    model = adapters.vicreg.VICReg(args, backbone=Flat(), features=d).to(dtype)
    model.projector = nn.Identity()
    return model


def _mix_bt(z_a: Tensor, z_b: Tensor) -> Tensor:
    views = (z_a, z_b, third_view(z_a, z_b))
    return adapters.mix_bt.mixed_barlow_twins_loss(
        *views, permutation_of(len(z_a)), 0.3, 2.0, LAMBDA, BATCH
    )


def _vcreg(z_a: Tensor, z_b: Tensor) -> Tensor:
    loss = adapters.stable_pretraining.VCRegLoss()
    return loss(z_a) + loss(z_b)


def _covariance(z_a: Tensor, z_b: Tensor) -> Tensor:
    return adapters.lightly.covariance_loss(z_a) + adapters.lightly.covariance_loss(z_b)


CASES = {
    "lightly": Case(of_norm(batch_norm), adapters.lightly.BarlowTwinsLoss(LAMBDA)),
    "solo_learn": Case(
        of_norm(batch_norm, scale=SCALE),
        lambda a, b: adapters.solo_learn.barlow_loss_func(a, b, LAMBDA, SCALE),
    ),
    "mmpretrain": Case(
        of_norm(batch_norm),
        lambda a, b: _head(adapters.mmpretrain.LatentCrossCorrelationHead, a).loss(a, b),
    ),
    "mmselfsup": Case(
        of_norm(batch_norm),
        lambda a, b: _head(adapters.mmselfsup.LatentCrossCorrelationHead, a)(a, b),
    ),
    "lightly_vicreg": Case(variance_covariance(), adapters.lightly.VICRegLoss()),
    "lightly_covariance": Case(variance_covariance((0.0, 0.0, 1.0)), _covariance),
    "lightly_frossl": Case(frossl(summed=True), lambda a, b: adapters.lightly.FroSSLLoss()([a, b])),
    "solo_vicreg": Case(
        variance_covariance((25.0, 50.0, 1.0)), adapters.solo_learn.vicreg_loss_func
    ),
    "solo_frossl": Case(
        frossl(), lambda a, b: adapters.solo_learn.frossl_loss_func(torch.stack((a, b)))
    ),
    "stable_vicreg": Case(variance_covariance(), adapters.stable_pretraining.VICRegLoss()),
    "stable_vcreg": Case(variance_covariance((0.0, 25.0, 1.0)), _vcreg),
    "vicreg": Case(
        variance_covariance(batch=BATCH),
        lambda a, b: vicreg_model(a.shape[1], a.dtype)(a, b),
    ),
    "mix_bt": Case(mixed(batch=BATCH), _mix_bt, dead_is_nan=True),
    "mm_matrix": Case(
        of_norm(batch_norm),
        lambda a, b: adapters.mmpretrain.CrossCorrelationLoss(LAMBDA)(
            batch_norm(a).T @ batch_norm(b) / a.shape[0]
        ),
    ),
    "vissl": Case(shared_norm, _vissl),
    "official": Case(
        of_norm(batch_norm),
        lambda a, b: official_model(a.shape[1], a.shape[0], a.dtype)(a, b),
    ),
    "official_short_batch": Case(
        of_norm(batch_norm, divisor=BATCH),
        lambda a, b: official_model(a.shape[1], BATCH, a.dtype)(a, b),
    ),
    "monai": Case(
        of_norm(lambda z: unbiased(z, outside=1e-6), lambd=float(torch.tensor(LAMBDA))),
        adapters.monai.BarlowTwinsLoss(LAMBDA),
    ),
    "stable_pretraining": Case(
        of_norm(lambda z: unbiased(z, outside=1e-5)),
        adapters.stable_pretraining.BarlowTwinsLoss(LAMBDA),
    ),
    "catalyst": Case(
        of_norm(lambda z: unbiased(z, inside=1e-12), lambd=1.0), adapters.catalyst.BarlowTwinsLoss()
    ),
    "ffcv_ssl": Case(of_norm(batch_norm, divisor=BATCH), _ffcv),
    "lifestream": Case(of_norm(lambda z: z), _interleaved),
    "susmelj": Case(
        of_norm(unbiased), adapters.susmelj.BarlowTwinsLoss("cpu", LAMBDA), dead_is_nan=True
    ),
    "lightning_tutorial": Case(
        of_norm(unbiased, divisor=BATCH),
        adapters.lightning_tutorial.BarlowTwinsLoss(BATCH, LAMBDA),
        dead_is_nan=True,
    ),
    "hsic": Case(
        of_norm(unbiased),
        lambda a, b: adapters.hsic.barlow_twins_hsic_loss(a, b, LAMBDA),
        dead_is_nan=True,
    ),
    "hsic_negative": Case(
        of_norm(unbiased, target=-1.0, divisor=BATCH),
        lambda a, b: adapters.hsic.barlow_twins_hsic_loss(a, b, LAMBDA, True, BATCH),
        dead_is_nan=True,
    ),
}


def rms_errors(draws: Iterable, exact: Callable, *candidates: Callable) -> Tensor:
    """(candidates, 3): rms errors over draws of loss and gradients."""
    errors = []
    for z_a, z_b in draws:
        truth = outcome(exact, z_a.double(), z_b.double())
        found = (outcome(candidate, z_a, z_b) for candidate in candidates)
        errors.append([list(map(relative_error, each, truth)) for each in found])
    return torch.tensor(errors, dtype=torch.float64).square().mean(0).sqrt()


def outcome(
    loss: Callable[[Tensor, Tensor], Tensor], z_a: Tensor, z_b: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """(loss, grad_a, grad_b), detached."""
    a, b = (z.detach().clone().requires_grad_() for z in (z_a, z_b))
    value = loss(a, b)
    return value.detach(), *torch.autograd.grad(value, (a, b))
