"""LARS on parameters that FSDP2 has sharded: the norms are those of the whole tensors."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor, Replicate, Shard, distribute_tensor

from barlow_fast.training.lars import LARS, parameter_groups

STEPS = 3


def network() -> nn.Module:
    """One row is not the other rank's to have: sizes that do not divide, and one of 1."""
    with torch.random.fork_rng():
        torch.manual_seed(3)
        layers = nn.Linear(5, 7), nn.LayerNorm(7), nn.ReLU(), nn.Linear(7, 1)
        return nn.Sequential(*layers).double()


def trained(model: nn.Module) -> dict[str, Tensor]:
    groups = parameter_groups(model, weights_lr=0.5, biases_lr=0.1, weight_decay=0.01)
    optimizer = LARS(groups, lr=0.0)
    generator = torch.Generator().manual_seed(4)
    for _ in range(STEPS):
        optimizer.zero_grad()
        model(torch.randn(6, 5, dtype=torch.float64, generator=generator)).square().sum().backward()
        optimizer.step()
    found = dict(model.state_dict())
    for index, state in enumerate(optimizer.state.values()):
        found[f"momentum {index}"] = state["momentum_buffer"]
    return found


def trained_in_shards(group) -> dict[str, Tensor]:
    model = network()
    mesh = DeviceMesh.from_group(group, "cpu")
    fully_shard(model, mesh=mesh)
    found = trained(model)
    assert all(isinstance(value, DTensor) for value in found.values())
    return {name: value.full_tensor() for name, value in found.items()}


def updated(group, placements: str) -> list[Tensor]:
    """A step on tensors laid out in several ways at once, one gradient otherwise than its
    parameter."""
    mesh = DeviceMesh.from_group(group, "cpu")
    ways = {"row": [Shard(0)], "column": [Shard(1)], "whole": [Replicate()]}
    ps, plain = [], []
    for name, way in ways.items():
        values = torch.arange(1.0, 16.0).view(3, 5)
        grad = 10 * torch.linspace(-1, 1, 15).view(3, 5)
        p = nn.Parameter(distribute_tensor(values, mesh, way))
        p.grad = distribute_tensor(grad, mesh, ways[placements] if name == "row" else way)
        ps.append(p)
        plain.append(nn.Parameter(values.clone()))
        plain[-1].grad = grad.clone()
    LARS(ps, lr=100.0, weight_decay=0.1).step()
    LARS(plain, lr=100.0, weight_decay=0.1).step()
    pairs = zip(ps, plain, strict=True)
    return [torch.stack([p.full_tensor().detach(), q.detach()]) for p, q in pairs]


def test_sharded_training_is_that_of_one_process(pool):
    whole = trained(network())
    for found in pool.run(trained_in_shards, 2):
        assert found.keys() == whole.keys()
        assert sum("momentum" in name for name in found) == 6
        for name, want in whole.items():
            assert float((found[name] - want).norm()) <= 1e-12 * float(want.norm()), name


@pytest.mark.parametrize("placements", ["row", "column", "whole"])
def test_parameters_and_gradients_in_any_layout(placements, pool):
    for found in pool.run(updated, 2, placements):
        start = torch.arange(1.0, 16.0).view(3, 5)
        for sharded, plain in found:
            assert float((sharded - plain).abs().max()) <= 1e-6 * float(plain.abs().max())
            assert float((plain - start).abs().max()) > 0.1
