"""Trains a small network with the exact loss of all ranks' batches under DistributedDataParallel.

    torchrun --nproc_per_node 2 examples/ddp.py

One GPU per rank and NCCL where there are GPUs, gloo on CPUs elsewhere. Prints the loss of each
step, the same on every rank, and what the loss sent: the embeddings' share, not a D x D matrix.
"""

from __future__ import annotations

import os
import sys

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from barlow_fast import BarlowTwinsLoss
from barlow_fast.distributed import count_traffic

SAMPLES, FEATURES, HIDDEN, DIMENSIONS, STEPS = 64, 32, 128, 1024, 8


def views(generator: torch.Generator, device: torch.device) -> tuple[Tensor, Tensor]:
    """Two noisy views of the same random samples."""
    x = torch.randn(SAMPLES, FEATURES, generator=generator)
    pair = (x + 0.2 * torch.randn(x.shape, generator=generator) for _ in range(2))
    return tuple(view.to(device) for view in pair)


def main() -> int:
    if "RANK" not in os.environ:
        print("Run this as: torchrun --nproc_per_node 2 examples/ddp.py", file=sys.stderr)
        return 2
    local = int(os.environ["LOCAL_RANK"])
    if torch.cuda.device_count() > local:
        device = torch.device("cuda", local)
        torch.cuda.set_device(device)
        dist.init_process_group("nccl")
    else:
        device = torch.device("cpu")
        dist.init_process_group("gloo")
    rank = dist.get_rank()

    torch.manual_seed(0)  # the same network on every rank
    network = nn.Sequential(nn.Linear(FEATURES, HIDDEN), nn.ReLU(), nn.Linear(HIDDEN, DIMENSIONS))
    model = DistributedDataParallel(network.to(device))
    criterion = BarlowTwinsLoss(process_group="world")
    optimizer = torch.optim.Adam(model.parameters(), lr=3e-3)
    generator = torch.Generator().manual_seed(1 + rank)  # and other samples
    for step in range(STEPS):
        view_a, view_b = views(generator, device)
        with count_traffic() as traffic:
            loss = criterion(model(view_a), model(view_b))
            optimizer.zero_grad()
            loss.backward()
        optimizer.step()
        if rank == 0:
            print(f"step {step}  loss {loss.item():.3f}")
    if rank == 0:
        every = DIMENSIONS**2 * 4 * 2 * (dist.get_world_size() - 1) / dist.get_world_size()
        print(f"sent by rank 0 for the loss in each step: {traffic}")
        print(f"an all-reduce of the D x D matrix would send {every / 2**20:.2f} MiB")
    dist.destroy_process_group()
    return 0


if __name__ == "__main__":
    sys.exit(main())
