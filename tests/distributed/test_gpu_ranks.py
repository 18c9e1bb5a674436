"""Layouts on CUDA tensors: two ranks that share one GPU, joined by gloo; one rank of NCCL.

Two NCCL ranks cannot share a device: what is tested here is every kernel call of the layouts on
CUDA tensors with samples and columns of another rank, not NCCL. Selected by `make gpu`; this file
needs nothing of this folder, so that a machine that has only a GPU can run it.
"""

from __future__ import annotations

from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from embeddings import draw
from ended import SECONDS, until
from gate import EPS, FLOOR, LAMBDA, plain, relative_error, truth

from barlow_fast import barlow_twins_loss
from barlow_fast.distributed import LAYOUTS

pytestmark = pytest.mark.gpu

RANKS = 2
SHAPES = {"features": (250, 1500), "rows": (250, 1500), "correlation": (1900, 166)}
FIELDS = ("loss", "on_diagonal", "off_diagonal", "grad_a", "grad_b")

# name: (precision, dtype of the embeddings)
OPERANDS = {
    "fp64": ("fp64", torch.float64),
    "fp32": ("fp32", torch.float32),
    "bf16": ("bf16", torch.float32),
    "bf16-inputs": ("bf16", torch.bfloat16),
}
CASES = [
    (layout, operands, statistics)
    for layout in LAYOUTS
    for operands in OPERANDS
    for statistics in ("global", "local")
]


def views(layout: str, operands: str) -> tuple[torch.Tensor, ...]:
    """All samples, on the CPU: the same in every process."""
    n, d = SHAPES[layout]
    return tuple(z.to(OPERANDS[operands][1]) for z in draw("random", n, d, 0, torch.float64))


def samples_of(n: int) -> tuple[int, int]:
    """Unequal ones."""
    return n // 2 + 10, n - n // 2 - 10


def step(z: tuple[torch.Tensor, ...], **options: Any) -> list[torch.Tensor]:
    """(loss, terms, gradients), on the CPU."""
    leaves = [each.to("cuda").requires_grad_() for each in z]
    loss, terms = barlow_twins_loss(*leaves, LAMBDA, eps=EPS, return_terms=True, **options)
    gradients = torch.autograd.grad(loss, leaves)
    return [x.detach().cpu() for x in (loss, *terms[:2], *gradients)]


def compute_all(rank: int, store: str, folder: str) -> None:
    """Entry of a process: every case on this rank's samples, one file each."""
    torch.cuda.set_device(0)
    dist.init_process_group(
        "gloo", init_method=f"file://{store}", rank=rank, world_size=RANKS,
        timeout=timedelta(seconds=SECONDS),
    )  # fmt: skip
    try:
        for index, (layout, operands, statistics) in enumerate(CASES):
            z = views(layout, operands)
            own = tuple(each.split(samples_of(len(each)))[rank] for each in z)
            result: Any
            try:
                result = step(
                    own, process_group="world", layout=layout, precision=OPERANDS[operands][0],
                    statistics=statistics,
                )  # fmt: skip
            except Exception as error:  # one case that fails must not hide the others
                result = f"{type(error).__name__}: {error}"
            torch.save(result, Path(folder) / f"{index}-{rank}.pt")
    finally:
        dist.destroy_process_group()


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder with each rank's results of every case, computed once."""
    folder = tmp_path_factory.mktemp("ranks")
    arguments = (str(folder / "store"), str(folder))
    context = mp.start_processes(
        compute_all, arguments, RANKS, join=False, daemon=True, start_method="spawn"
    )
    try:
        assert until(lambda: context.join(0)), "two ranks did not end"
    finally:
        for process in context.processes:
            if process.is_alive():
                process.kill()
            process.join()
    return folder


def gathered(folder: Path, case: tuple[str, str, str]) -> list[torch.Tensor]:
    """(loss, terms, gradients of all samples): the mean over ranks, as DDP takes it."""
    index = CASES.index(case)
    paths = [folder / f"{index}-{rank}.pt" for rank in range(RANKS)]
    by_rank = [torch.load(path, weights_only=True) for path in paths]
    for rank, result in enumerate(by_rank):
        assert not isinstance(result, str), f"rank {rank}: {result}"
    for scalar in range(3):
        assert torch.equal(by_rank[0][scalar], by_rank[1][scalar]), "ranks hold other bits"
    gradients = [torch.cat([result[i] for result in by_rank]) / RANKS for i in (3, 4)]
    return [*by_rank[0][:3], *gradients]


def standardised_by_rank(z: torch.Tensor) -> torch.Tensor:
    """float64 samples, each rank's standardised by its own statistics."""
    parts = []
    for part in z.double().split(samples_of(len(z))):
        centred = part - part.mean(0)
        parts.append(centred * (centred.square().mean(0) + EPS).rsqrt())
    return torch.cat(parts)


def local_truth(z: tuple[torch.Tensor, ...]) -> list[torch.Tensor]:
    """The loss in float64 with each rank's own statistics, under autograd."""
    leaves = [each.double().requires_grad_() for each in z]
    hat_a, hat_b = map(standardised_by_rank, leaves)
    c = hat_a.T @ hat_b / len(hat_a)
    diagonal = c.diagonal()
    on = (diagonal - 1).square().sum()
    off = (c - torch.diag(diagonal)).square().sum()
    loss = on + LAMBDA * off
    return [loss, on, off, *torch.autograd.grad(loss, leaves)]


@pytest.mark.parametrize("case", CASES, ids="-".join)
def test_two_ranks_on_one_gpu(results, case):
    layout, operands, statistics = case
    z, precision = views(layout, operands), OPERANDS[operands][0]
    form = "correlation" if layout == "correlation" else "gram"
    exact = list(truth(*z)) if statistics == "global" else local_truth(z)
    base, true = list(plain(*z, precision, form)), list(truth(*z))
    alone = step(z, precision=precision, form=form) if statistics == "global" else None
    for index, (name, value) in enumerate(zip(FIELDS, gathered(results, case), strict=True)):
        # One draw of a rounding error may be luckily small, and what travels is rounded once more:
        # four times plain torch, where tests/distributed/test_precision.py averages over draws.
        allowed = (
            4 * relative_error(base[index].to(value.dtype), true[index]) + 4 * FLOOR[precision]
        )
        if alone is not None:
            allowed = max(allowed, 2 * relative_error(alone[index], exact[index]))
        if precision == "bf16":
            allowed = max(allowed, 1e-3)  # of terms, whose single error may be next to nothing
        error = relative_error(value, exact[index].detach())
        assert error <= allowed, f"{name}: {error:.3g} > {allowed:.3g}"


@pytest.mark.parametrize("operands", OPERANDS)
@pytest.mark.skipif(not dist.is_nccl_available(), reason="this torch has no NCCL")
def test_one_nccl_rank_computes_the_loss_of_one_process(tmp_path, operands):
    """A group of one rank exchanges nothing: equal bits."""
    z, precision = views("features", operands), OPERANDS[operands][0]
    dist.init_process_group(
        "nccl", init_method=f"file://{tmp_path / 'store'}", rank=0, world_size=1,
        timeout=timedelta(seconds=SECONDS), device_id=torch.device("cuda", 0),
    )  # fmt: skip
    try:
        together = step(z, process_group="world", precision=precision)
    finally:
        dist.destroy_process_group()
    for name, value, alone in zip(FIELDS, together, step(z, precision=precision), strict=True):
        assert torch.equal(value, alone), name
