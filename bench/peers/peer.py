"""What a peer is, an implementation that is compared, and what it computes: the paper's loss, or
the loss that its authors' library states.

Public implementations differ in how they standardise and in constant factors, which moves the loss
by more than rounding does; each is therefore held against its own statement. With one mean and one
deviation for each column of a view, or for both views together (`shared`),

    v     = sum_n (z - mean)^2 / (rows - 1 if unbiased else rows)
    z_hat = (z - mean) / sqrt(v + eps)         or (z - mean) / (sqrt(v) + eps), by eps_on
    C     = z_hat_a^T z_hat_b / N
    loss  = factor * [sum_i (C_ii - 1)^2 + lambd * redundancy]

where the redundancy is sum over i != j of C_ij^2, or, in the relaxation of Shigeto et al.
(*Learning Decorrelated Representations Efficiently Using Fast Fourier Transform*, CVPR 2023), the
squares of the sums along the circular diagonals of the blocks of C; see `circular_redundancy`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from barlow_fast import reference

Loss = Callable[[Tensor, Tensor], Tensor]
LAMBD = 0.0051  # the paper's; every peer is built with it


@dataclass(frozen=True)
class Mathematics:
    """The loss that a peer states; the defaults are the paper's.

    Attributes:
        unbiased: whether variances are divided by the number of rows less one.
        eps: the constant that keeps the division finite.
        eps_on: what it is added to: "variance" or "deviation".
        shared: whether both views are standardised by the statistics of their concatenation.
        lambd: weight of the redundancy.
        factor: of the whole loss.
        circular_groups: 0 for the loss itself; else the FFT relaxation, with the columns of each
            view in that many groups.
    """

    unbiased: bool = False
    eps: float = 1e-5
    eps_on: str = "variance"
    shared: bool = False
    lambd: float = LAMBD
    factor: float = 1.0
    circular_groups: int = 0

    def group_size(self, d: int) -> int:
        """Columns of one of `circular_groups` groups; ValueError where they are not equal."""
        if d % self.circular_groups:
            raise ValueError(f"D = {d} is not a multiple of {self.circular_groups} groups")
        return d // self.circular_groups

    def loss(self, z_a: Tensor, z_b: Tensor) -> Tensor:
        """The scalar loss of two (N, D) views by the definition, D x D matrix and all, in the dtype
        of the views: the oracle at small shapes. Gradients are autograd's."""
        n = z_a.shape[0]
        if self.standardises_like_the_paper() and not self.circular_groups:
            return self.factor * reference.barlow_twins_loss(z_a, z_b, self.lambd, self.eps)
        hat_a, hat_b = self.standardised(z_a, z_b)
        c = hat_a.T @ hat_b / n
        diagonal = c.diagonal()
        if self.circular_groups:
            redundancy = circular_redundancy(c, self.group_size(c.shape[0]))
        else:
            redundancy = (c - torch.diag(diagonal)).square().sum()
        return self.factor * ((diagonal - 1).square().sum() + self.lambd * redundancy)

    def standardises_like_the_paper(self) -> bool:
        """Whether `barlow_fast.reference` standardises in this way (for any eps)."""
        return not (self.unbiased or self.shared) and self.eps_on == "variance"

    def standardised(self, z_a: Tensor, z_b: Tensor) -> tuple[Tensor, Tensor]:
        """Both views, standardised."""
        if self.shared:
            return self._standardised(torch.cat([z_a, z_b])).split(len(z_a))
        return self._standardised(z_a), self._standardised(z_b)

    def _standardised(self, z: Tensor) -> Tensor:
        centred = z - z.mean(0)
        variance = centred.square().sum(0) / (z.shape[0] - self.unbiased)
        if self.eps_on == "variance":
            return centred / (variance + self.eps).sqrt()
        return centred / (variance.sqrt() + self.eps)


PAPER = Mathematics()


def circular_redundancy(c: Tensor, size: int) -> Tensor:
    """Squares of the sums along circular diagonals of the (size, size) blocks of `c`, summed.

    The sum with offset k of block B is sum_j B[j, (j + k) mod size]. The main diagonal (k = 0) of
    the blocks on the diagonal of `c` is left out. Elements are picked by index: no transform.
    """
    offsets = torch.arange(size, device=c.device)
    columns = (offsets[:, None] + offsets) % size  # [j, k]
    total = c.new_zeros(())
    for i, rows in enumerate(c.split(size)):
        for j, block in enumerate(rows.split(size, dim=1)):
            sums = block.gather(1, columns).sum(0)
            total = total + sums[int(i == j) :].square().sum()
    return total


@dataclass(frozen=True)
class Peer:
    """One implementation of the loss.

    Attributes:
        name: what `--peers` and the results call it.
        title: what the tables call it.
        source: where the implementation comes from, with its version.
        build: (n, d, dtype) -> loss(z_a, z_b), for (n, d) inputs of `dtype`; called once per shape,
            not timed, with the device of the inputs as torch's default device.
        mathematics: what it states to compute, and is checked against; the paper's by default.
        exact: whether that is the loss itself, rather than a relaxation of it.
        double: whether it accepts float64 inputs.
        ours: whether it is this repository's.
        kinds: of devices on which it is measured.
        compile: whether a peer is derived from it that is this one under torch.compile.
        compiled_name: of that peer; `name` with '-compiled' by default.
        compiled_title: of that peer; `title` with ', compiled' by default.
        compiles: whether its first call at a shape compiles, and so its time and memory are not
            representative.
        unavailable: () -> None, or the reason why it cannot run here.
        build_for_graph: like `build`, for the loss that is captured in a CUDA graph; None where
            that is the same.
    """

    name: str
    title: str
    source: str
    build: Callable[[int, int, torch.dtype], Loss]
    mathematics: Mathematics = PAPER
    exact: bool = True
    double: bool = True
    ours: bool = False
    kinds: tuple[str, ...] = ("cpu", "cuda")
    compile: bool = True
    compiled_name: str | None = None
    compiled_title: str | None = None
    compiles: bool = False
    unavailable: Callable[[], str | None] = lambda: None  # nothing beyond torch is needed
    build_for_graph: Callable[[int, int, torch.dtype], Loss] | None = None

    def columns(self) -> dict[str, str]:
        """Of its rows."""
        return {"peer": self.name, "source": self.source}


def stateless(loss: Loss) -> Callable[[int, int, torch.dtype], Loss]:
    """`build` of a loss that is a function without state."""
    return lambda n, d, dtype: loss
