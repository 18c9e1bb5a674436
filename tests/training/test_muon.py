"""Muon against torch's own, on what that one cannot take, and in a trainer."""

from __future__ import annotations

import copy
import math
from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn

from barlow_fast.models import SmallEncoder
from barlow_fast.training import Trainer
from barlow_fast.training.muon import Muon, matrices, orthogonal

STEPS = 4


def gradients(shape: tuple[int, ...], seed: int = 1) -> list[Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(shape, generator=generator) for _ in range(STEPS)]


def stepped(optimizer: torch.optim.Optimizer, p: Tensor, shape: tuple[int, ...]) -> Tensor:
    for gradient in gradients(shape):
        p.grad = gradient.view(p.shape)
        optimizer.step()
    return p.detach()


@pytest.mark.parametrize("shape", [(6, 20), (20, 6), (8, 8), (1, 5)])
@pytest.mark.parametrize("momentum", [0.95, 0.5, 0.0])
def test_matrices_move_as_with_torchs_muon(shape: tuple[int, int], momentum: float):
    start = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    settings = {"lr": 0.03, "momentum": momentum, "weight_decay": 0.2}
    ours, theirs = (nn.Parameter(start.clone()) for _ in range(2))
    found = stepped(Muon([{"params": [ours], "matrices": True}], **settings), ours, shape)
    reference = torch.optim.Muon([theirs], adjust_lr_fn="match_rms_adamw", **settings)
    expected = stepped(reference, theirs, shape)
    # Torch's iterations are in bfloat16.
    moved = (expected - start).norm()
    assert (found - expected).norm() < 0.02 * moved
    decayed = start * (1 - 0.03 * 0.2) ** STEPS
    assert (expected - decayed).norm() > 0.1 * moved


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_a_convolution_moves_as_its_matrix(layout: torch.memory_format):
    start = torch.randn(6, 5, 3, 3, generator=torch.Generator().manual_seed(0))
    convolution = nn.Parameter(start.to(memory_format=layout))
    matrix = nn.Parameter(start.flatten(1).clone())
    found, expected = (
        stepped(Muon([{"params": [p], "matrices": True}], lr=0.1), p, (6, 5, 3, 3))
        for p in (convolution, matrix)
    )
    torch.testing.assert_close(found.flatten(1), expected)
    assert convolution.is_contiguous(memory_format=layout)


@pytest.mark.parametrize("fused", [None, True])
def test_what_is_no_matrix_moves_as_with_adamw(fused: bool | None):
    start = torch.randn(7, 3)
    weight, ours, theirs = (nn.Parameter(start.clone()) for _ in range(3))
    groups = [{"params": [weight], "matrices": True}, {"params": [ours], "weight_decay": 0.3}]
    optimizer = Muon(groups, lr=0.02, fused=fused)
    expected = stepped(torch.optim.AdamW([theirs], lr=0.02, weight_decay=0.3), theirs, (7, 3))
    torch.testing.assert_close(stepped(optimizer, ours, (7, 3)), expected)
    assert torch.equal(weight, start)  # it had no gradient
    weight.grad = torch.randn(7, 3)
    gradient = weight.grad.clone()
    optimizer.step()
    assert not torch.equal(weight, start)
    assert torch.equal(weight.grad, gradient)
    assert set(optimizer.state[weight]) == {"momentum_buffer"}


def test_singular_values_end_near_one():
    matrix = torch.randn(40, 100, generator=torch.Generator().manual_seed(0))
    for each in (matrix, matrix.T, 1e-6 * matrix, 1e6 * matrix):
        found = torch.linalg.svdvals(orthogonal(each))
        assert found.min() > 0.6
        assert found.max() < 1.3
    u, _, v = torch.linalg.svd(matrix, full_matrices=False)
    # The same singular vectors: in their basis it is diagonal.
    basis = u.T @ orthogonal(matrix) @ v.T
    assert (basis - basis.diag().diag()).abs().max() < 1e-4
    assert orthogonal(torch.zeros(3, 4)).eq(0).all()
    assert orthogonal(matrix.double()).dtype == torch.float64


def test_hooks_of_a_step_run_once():
    weight = nn.Parameter(torch.ones(2, 2))
    optimizer = Muon([{"params": [weight], "matrices": True}], lr=0.1)
    torch.optim.AdamW([nn.Parameter(torch.ones(1))])
    calls = []
    optimizer.register_step_pre_hook(lambda *_: calls.append("before"))
    optimizer.register_step_post_hook(lambda *_: calls.append("after"))

    def closure() -> Tensor:
        loss = (weight * 3).sum()
        weight.grad = torch.autograd.grad(loss, weight)[0]
        return loss

    assert optimizer.step(closure) == 12
    assert calls == ["before", "after"]
    optimizer.add_param_group({"params": [nn.Parameter(torch.ones(3))]})
    assert optimizer.param_groups[1]["momentum"] == 0.95
    assert optimizer.param_groups[1]["matrices"] is False


@pytest.mark.parametrize("momentum", [-0.1, 1.0, math.nan])
def test_momentum_must_be_below_one(momentum: float):
    with pytest.raises(ValueError, match=r"momentum must be in \[0, 1\)"):
        Muon([nn.Parameter(torch.ones(2))], lr=0.1, momentum=momentum)


def test_what_counts_as_a_matrix():
    encoder = SmallEncoder(3, (4, 8))
    assert [p.shape[:2] for p in matrices(encoder)] == [(4, 3), (4, 4), (8, 4), (8, 8)]
    linear, depthwise = nn.Linear(3, 2), nn.Conv2d(4, 4, 3, groups=4)
    frozen = nn.Linear(2, 2).requires_grad_(False)
    network = nn.Sequential(linear, depthwise, frozen, nn.BatchNorm1d(2), linear)
    assert [id(p) for p in matrices(network)] == [id(linear.weight)]


@pytest.mark.parametrize("shape", [(), (5,)])
def test_vectors_are_no_matrices(shape: tuple[int, ...]):
    with pytest.raises(ValueError, match=r"Muon takes matrices that are whole, got Parameter"):
        Muon([{"params": [nn.Parameter(torch.ones(shape))], "matrices": True}], lr=0.1)


def test_a_scaler_divides_the_gradients_first():
    weight = nn.Parameter(torch.eye(3))
    optimizer = Muon([{"params": [weight], "matrices": True}], lr=0.1, fused=True)
    scaler = torch.amp.GradScaler("cpu", init_scale=1024.0)
    (scaler.scale(weight.sum())).backward()
    scaler.step(optimizer)
    scaler.update()
    torch.testing.assert_close(optimizer.state[weight]["momentum_buffer"], torch.full((3, 3), 0.05))
    (scaler.scale(weight.sum()) * math.inf).backward()
    before = weight.detach().clone()
    scaler.step(optimizer)
    assert torch.equal(weight, before)


def test_a_trainer_gives_it_the_matrices_of_the_encoder(small_config, small_digits):
    config = replace(small_config, optimizer="muon", momentum=0.8, bias_learning_rate=0.03,
                     weight_decay=0.2)  # fmt: skip
    with Trainer(config, small_digits) as trainer:
        trainer.train_step()
        groups = trainer.optimizer.param_groups
        assert [group["matrices"] for group in groups] == [True, False, False]
        assert [group["momentum"] for group in groups] == [0.8] * 3
        assert [group["weight_decay"] for group in groups] == [0.2, 0.2, 0.0]
        assert groups[0]["params"] == matrices(trainer.model.encoder)
        assert {p.ndim for p in groups[1]["params"]} == {2}
        assert {p.ndim for p in groups[2]["params"]} == {1}
        assert groups[0]["lr"] == groups[1]["lr"] != groups[2]["lr"]


def test_states_of_others_are_refused(small_config, small_digits):
    config = replace(small_config, optimizer="muon")
    with Trainer(config, small_digits) as trainer:
        trainer.train_step()
        state = trainer.state_dict()
        for change in ("group", "state", "beyond"):
            wrong = copy.deepcopy(state)
            optimizer = wrong["optimizer"]
            last = len(optimizer["state"]) - 1
            if change == "group":
                optimizer["param_groups"][0]["matrices"] = False
                reason = "the optimizer's matrices are others"
            elif change == "state":
                optimizer["state"][0] = copy.deepcopy(optimizer["state"][last])
                reason = "state 0 is not momentum_buffer"
            else:
                optimizer["state"][last + 1] = optimizer["state"][last]
                reason = "is of no parameter"
            with pytest.raises(ValueError, match=reason):
                trainer.load_state_dict(wrong)
        trainer.load_state_dict(state)


def test_shards_are_refused(small_config):
    with pytest.raises(ValueError, match=r"muon updates whole matrices, which parallel=fsdp"):
        replace(small_config, optimizer="muon", parallel="fsdp")
