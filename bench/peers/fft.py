"""The FFT relaxation of the loss: another loss, which needs no D x D matrix. Not exact.

Shigeto, Shimbo, Yoshikawa, Takeuchi, *Learning Decorrelated Representations Efficiently Using Fast
Fourier Transform*, CVPR 2023, with squares (q = 2):

    s_k = sum_j C_(j, (j + k) mod D) = irfft(sum_n conj(rfft(a_n)) rfft(b_n))_k / N
    loss = scale * [sum_i (C_ii - 1)^2 + lambda * sum over k = 1 .. D - 1 of s_k^2]

with a and b the views after a BatchNorm1d that is made anew in each call, and `scale`, as in
solo-learn, on which the authors' code builds. torch transforms no bfloat16: half precision is
widened. Left out, in its favour, is the random permutation of the columns before each call. It
needs a lambda of its own to train well; here all have the same. Written from the paper.
"""

from __future__ import annotations

import functools

import torch
from torch import Tensor

from bench.peers.official import batch_norm
from bench.peers.peer import LAMBD, Mathematics, Peer, stateless

SCALE = 0.025


def relaxed_loss(groups: int, z_a: Tensor, z_b: Tensor) -> Tensor:
    """The scalar loss of two (N, D) views with the columns in so many groups: each pair of groups
    has a transform of its own, and only a group with itself leaves out k = 0. ValueError where D is
    no multiple of `groups`."""
    n, d = z_a.shape
    size = Mathematics(circular_groups=groups).group_size(d)
    norm = batch_norm(d, z_a.dtype).to(z_a.device)
    hat_a, hat_b = (norm(z).to(norm.running_mean.dtype) for z in (z_a, z_b))
    on_diagonal = ((hat_a * hat_b).sum(0) / n - 1).pow(2).sum()
    a, b = (torch.fft.rfft(hat.view(n, groups, size)) for hat in (hat_a, hat_b))
    if groups == 1:
        products = (a.conj() * b).sum(0)[None]
    else:
        products = torch.einsum("npf, nqf -> pqf", a.conj(), b)
    squares = (torch.fft.irfft(products, size) / n).pow(2)
    off_diagonal = squares.sum() - squares[..., 0].diagonal().sum()
    return SCALE * (on_diagonal + LAMBD * off_diagonal)


def _peer(name: str, groups: int, columns: str) -> Peer:
    return Peer(
        name=name,
        title=f"FFT relaxation{'' if groups == 1 else f', {groups} groups'} (not exact)",
        source=f"the relaxation of Shigeto et al. (CVPR 2023) in plain torch, {columns}",
        build=stateless(functools.partial(relaxed_loss, groups)),
        mathematics=Mathematics(circular_groups=groups, factor=SCALE),
        exact=False,
    )


PEERS = (
    _peer("fft", 1, "one group of all columns"),
    # What the authors' default group of 2048 columns makes of D = 8192.
    _peer("fft-grouped", 4, "4 groups of columns"),
)
