"""The pool of output memory: reuse, bounds, and no memory handed out twice."""

from __future__ import annotations

import gc
import threading

import torch

from barlow_fast.kernels.cpu.memory import SMALLEST, Pool

MIB = 1 << 20


def test_memory_returns_and_is_used_again():
    pool = Pool(16 * MIB)
    first = pool.empty((512, 1024), torch.float32)
    assert first.shape == (512, 1024)
    assert first.is_contiguous()
    address = first.data_ptr()
    del first
    gc.collect()
    assert pool.free_bytes() == 2 * MIB
    again = pool.empty((1024, 512), torch.float32)
    assert again.data_ptr() == address
    assert pool.free_bytes() == 0


def test_memory_in_use_is_never_handed_out_again():
    pool = Pool(16 * MIB)
    tensors = [pool.empty((256, 1024), torch.float32).fill_(i) for i in range(8)]
    assert len({t.data_ptr() for t in tensors}) == 8
    for i, tensor in enumerate(tensors):
        assert bool((tensor == i).all())


def test_a_view_keeps_the_memory_alive():
    pool = Pool(16 * MIB)
    tensor = pool.empty((512, 1024), torch.float32).fill_(3)
    view = tensor[5:, ::2]
    del tensor
    gc.collect()
    assert pool.free_bytes() == 0
    pool.empty((512, 1024), torch.float32).fill_(7)
    assert bool((view == 3).all())


def test_free_memory_is_bounded_and_the_oldest_goes_first():
    pool = Pool(4 * MIB)
    old, new = pool.empty((3 * MIB,), torch.uint8), pool.empty((2 * MIB,), torch.uint8)
    kept = new.data_ptr()
    del old
    del new
    gc.collect()
    assert pool.free_bytes() == 2 * MIB
    assert pool.empty((2 * MIB,), torch.uint8).data_ptr() == kept


def test_no_pool_and_small_tensors_use_torch():
    for pool, size in ((Pool(0), MIB), (Pool(16 * MIB), SMALLEST - 1)):
        tensor = pool.empty((size,), torch.uint8)
        del tensor
        gc.collect()
        assert pool.free_bytes() == 0


def test_threads_share_it():
    pool = Pool(64 * MIB)
    wrong = []

    def work(value: int) -> None:
        for _ in range(200):
            tensor = pool.empty((32, 1024), torch.float32).fill_(value)
            if not bool((tensor == value).all()):
                wrong.append(value)

    workers = [threading.Thread(target=work, args=(i,)) for i in range(4)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    assert not wrong
    gc.collect()
    # Each thread holds the last tensor while it requests the next.
    assert pool.free_bytes() <= 2 * 4 * 32 * 4096


def test_gradients_survive_the_next_call():
    """A gradient that somebody holds is not overwritten by the next step."""
    from barlow_fast import barlow_twins_loss

    z_a, z_b = (torch.randn(64, 2048, requires_grad=True) for _ in range(2))
    first = torch.autograd.grad(barlow_twins_loss(z_a, z_b), (z_a, z_b))
    copies = [g.clone() for g in first]
    for _ in range(3):
        torch.autograd.grad(barlow_twins_loss(z_a * 2, z_b * 3), (z_a, z_b))
    assert all(torch.equal(g, copy) for g, copy in zip(first, copies, strict=True))
