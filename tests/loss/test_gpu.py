"""What a CUDA device must show; selected by `make gpu`, skipped without one."""

from __future__ import annotations

import pytest
import torch
from embeddings import KINDS, draw
from gate import assert_within_gate

from barlow_fast import barlow_twins_loss

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device"),
]


def on_device(kind: str, n: int, d: int, seed: int) -> tuple[torch.Tensor, torch.Tensor]:
    return tuple(z.cuda() for z in draw(kind, n, d, seed))


@pytest.mark.parametrize("precision", ["fp64", "fp32", "bf16", "fp16"])
@pytest.mark.parametrize("kind", KINDS)
def test_gate(kind, precision):
    for form, n, d in (("gram", 64, 512), ("correlation", 512, 64)):

        def views(seed, n=n, d=d):
            return on_device(kind, n, d, seed)

        assert_within_gate(views, precision, form, "aten")


def test_no_host_synchronisation():
    z_a, z_b = (z.requires_grad_() for z in on_device("random", 64, 256, 0))
    barlow_twins_loss(z_a, z_b).backward()  # compiles and allocates
    torch.cuda.set_sync_debug_mode("error")
    try:
        barlow_twins_loss(z_a, z_b).backward()
    finally:
        torch.cuda.set_sync_debug_mode("default")


def test_autocast_and_grad_scaler():
    z_a, z_b = (z.half().requires_grad_() for z in on_device("random", 64, 512, 1))
    with torch.autocast("cuda", torch.float16):
        loss = barlow_twins_loss(z_a, z_b)
    assert loss.dtype == torch.float32
    torch.amp.GradScaler("cuda").scale(loss).backward()
    assert z_a.grad.isfinite().all()
