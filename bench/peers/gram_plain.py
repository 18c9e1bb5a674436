"""The same algorithm in a few lines of plain torch: the strongest simple alternative.

    sum over i != j of C_ij^2 = <K_a, K_b> / N^2 - sum_i C_ii^2,      K = z_hat z_hat^T  (N x N)

Where N exceeds D by enough that this takes more operations than C itself, ||C||^2 is summed over C:
the same identity on its cheaper side.
"""

from __future__ import annotations

from torch import Tensor
from torch.nn import functional

from bench.peers.peer import LAMBD, Peer, stateless


def gram_loss(z_a: Tensor, z_b: Tensor) -> Tensor:
    """The scalar loss of two (N, D) views; gradients are autograd's."""
    n, d = z_a.shape
    # batch_norm is the fastest standardisation that torch has on a CPU; var_mean over rows is ten
    # times slower.
    z_a, z_b = (functional.batch_norm(z, None, None, training=True) for z in (z_a, z_b))
    diagonal = (z_a * z_b).sum(0) / n
    # Both Gram matrices take 4 N^2 D operations forward and as many backward, C takes 2 N D^2 and 4
    # N D^2.
    if 4 * n <= 3 * d:
        square = ((z_a @ z_a.T) * (z_b @ z_b.T)).sum() / n**2
    else:
        square = (z_a.T @ z_b / n).square().sum()
    on_diagonal = (diagonal - 1).square().sum()
    return on_diagonal + LAMBD * (square - diagonal.square().sum())


PEERS = (
    Peer(
        name="gram-plain",
        title="Gram form, plain torch",
        source="the smaller-side identity in plain torch with autograd (bench/peers/gram_plain.py)",
        build=stateless(gram_loss),
        compiled_name="gram-compiled",
        compiled_title="Gram form, compiled",
    ),
)
