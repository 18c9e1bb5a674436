"""Statistics of wide matrices against their definitions in plain float64, and their memory."""

from __future__ import annotations

import math
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import pytest
import torch
from embeddings import ARRANGED, draw
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.weak import WeakIdKeyDictionary

from barlow_fast import plan
from barlow_fast.kernels.cpu.memory import POOL
from barlow_fast.statistics import (
    MinibatchCKA,
    cka,
    columns,
    cross_correlation_summary,
    effective_rank,
    singular_values,
)
from barlow_fast.statistics.rank import RANK_ME_EPS, entropy_rank

EXACT = 1e-10
SMALL = columns.LEAST_MEMORY  # tiles of 90 rows or columns
SHAPES = ((2, 1), (2, 3), (3, 2), (7, 13), (13, 7), (64, 64), (150, 200), (200, 150), (95, 400))
KINDS = ("random", "correlated", "badly_scaled", "constant_columns")


@pytest.fixture(autouse=True)
def kernel_set(backend, monkeypatch) -> str:
    monkeypatch.setattr(plan, "choose_backend", lambda *_: backend)
    return backend


def split(z: Tensor, width: int = 70) -> list[Tensor]:
    return list(z.split(width, 1))


FORMS: dict[str, Callable[[Tensor], object]] = {
    "tensor": lambda z: z,
    "three sizes": lambda z: z.reshape(1, *z.shape),
    "list": split,
    "function": lambda z: lambda: iter(split(z, 3 if z.shape[1] < 20 else 33)),
}


# --- cross-correlation ---------------------------------------------------------------------------


def matrix_of(z_a: Tensor, z_b: Tensor, eps: float) -> Tensor:
    """C, in which a constant column is zero."""
    hats = []
    for z in (z_a.double(), z_b.double()):
        alive = z.std(0, correction=0) > 1e-12 * z.mean(0).abs()
        hats.append((z - z.mean(0)) / (z.var(0, correction=0) + eps + (~alive)).sqrt() * alive)
    return hats[0].T @ hats[1] / len(z_a)


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("largest", [False, True])
def test_the_summary_is_that_of_the_matrix(form, largest):
    for n, d in SHAPES:
        for kind in KINDS:
            for eps in (1e-5, 0.0):
                z_a, z_b = draw(kind, n, d, 1, torch.float64)
                c = matrix_of(z_a, z_b, eps)
                found = cross_correlation_summary(
                    FORMS[form](z_a), FORMS[form](z_b), eps=eps, largest=largest, memory=SMALL
                )
                diagonal, off = c.diagonal(), c - torch.diag(c.diagonal())
                want = (
                    diagonal.mean(), diagonal.min(), diagonal.max(),
                    (off.square().sum() / max(1, d * (d - 1))).sqrt(),
                )  # fmt: skip
                for value, exact in zip(found[:4], want, strict=True):
                    assert abs(value - exact) <= EXACT * c.abs().max(), (n, d, kind, eps)
                if not largest:
                    assert found.largest is None
                    assert found.largest_position is None
                    continue
                assert abs(abs(found.largest) - off.abs().max()) <= EXACT
                if not found.largest:
                    assert found.largest_position is None
                    continue
                row, column = found.largest_position
                assert row != column
                assert off[row, column] == pytest.approx(found.largest, abs=EXACT)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("arranged", ARRANGED)
def test_dtypes_and_strides_of_the_summary(dtype, arranged):
    z_a, z_b = (ARRANGED[arranged](z) for z in draw("correlated", 90, 130, 2, dtype))
    found = cross_correlation_summary(z_a, z_b)
    c = matrix_of(z_a, z_b, 1e-5)
    off = c - torch.diag(c.diagonal())
    assert found.diagonal_mean == pytest.approx(c.diagonal().mean().item(), rel=EXACT)
    rms = off.square().sum().div(130 * 129).sqrt().item()
    assert found.off_diagonal_rms == pytest.approx(rms, rel=EXACT)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_dead_columns_are_counted(dtype):
    z_a, z_b = draw("random", 40, 30, 0, dtype)
    z_a[:, ::3], z_b[:, ::5] = 0.1, -7.3
    found = cross_correlation_summary(z_a, z_b, eps=0.0, largest=True)
    assert (found.dead_a, found.dead_b) == (10, 6)
    assert math.isfinite(found.off_diagonal_rms)
    assert found.diagonal_min <= 0 <= found.diagonal_max
    row, column = found.largest_position
    assert row % 3
    assert column % 5


def test_a_single_dimension_has_nothing_off_the_diagonal():
    z_a, z_b = draw("random", 20, 1, 0)
    found = cross_correlation_summary(z_a, z_b, largest=True)
    assert found.off_diagonal_rms == 0
    assert found.largest == 0


# --- effective rank ------------------------------------------------------------------------------


def ranks_by_definition(z: Tensor) -> tuple[float, float, float]:
    values = torch.linalg.svdvals(z)
    values = values[values > 1e-12 * values[0]]
    shares, variances = values / values.sum(), values.square()
    with_eps = torch.cat((shares, shares.new_zeros(min(z.shape) - len(shares)))) + RANK_ME_EPS
    return (
        math.exp(-sum(p * math.log(p) for p in shares.tolist())),
        math.exp(-sum(p * math.log(p) for p in with_eps.tolist())),
        (variances.sum() ** 2 / variances.square().sum()).item(),
    )


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("centre", [True, False])
def test_effective_ranks_are_their_definitions(form, centre):
    for n, d in SHAPES[1:]:
        z = draw("random", n, d, 3, torch.float64)[0] * torch.linspace(0.1, 3, d) + 0.7
        exact = ranks_by_definition(z - z.mean(0) if centre else z)
        found = effective_rank(FORMS[form](z), centre=centre, memory=SMALL)
        for value, want in zip(found[:3], exact, strict=True):
            assert value == pytest.approx(want, rel=EXACT), (n, d)
        assert found.singular_values.shape == (min(n, d),)


@pytest.mark.parametrize("rank", [1, 3, 20])
@pytest.mark.parametrize("shape", [(40, 200), (200, 40)])
def test_the_effective_rank_counts_equal_directions(rank, shape):
    generator = torch.Generator().manual_seed(rank)

    def orthogonal(rows: int) -> Tensor:
        drawn = torch.randn(rows, rank, generator=generator, dtype=torch.float64)
        return torch.linalg.qr(drawn).Q

    z = 5 * orthogonal(shape[0]) @ orthogonal(shape[1]).T
    found = effective_rank(z, centre=False)
    assert found.entropy == pytest.approx(rank, rel=EXACT)
    assert found.participation == pytest.approx(rank, rel=EXACT)


@pytest.mark.parametrize(("n", "d"), [(50, 8), (8, 50)])
def test_singular_values_are_those_of_the_centred_embeddings(n: int, d: int):
    z = draw("random", n, d, 0, torch.float64)[0] + 3
    found = singular_values(z)
    expected = torch.linalg.svdvals(z - z.mean(0))
    assert found.shape == (min(n, d),)
    # Centring leaves one direction less where there are few samples; its value is noise.
    torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-6 * expected[0].item())


def test_the_rank_of_one_vector_is_zero():
    for z in (torch.full((9, 5), 0.1), torch.zeros(5, 9), torch.full((6, 4), 1e8).double()):
        assert effective_rank(z)[:3] == (0, 0, 0)


def test_entropy_ranks_of_known_spectra():
    assert entropy_rank(torch.ones(7, dtype=torch.float64)) == pytest.approx(7)
    assert entropy_rank(torch.tensor([2.0, 0.0])) == pytest.approx(1)
    assert entropy_rank(torch.zeros(3)) == 0
    # Shares 1/2, 1/4, 1/4: an entropy of 1.5 log 2.
    assert entropy_rank(torch.tensor([2.0, 1.0, 1.0])) == pytest.approx(2**1.5)


# --- CKA -----------------------------------------------------------------------------------------


def hsic(k: Tensor, other: Tensor, unbiased: bool) -> Tensor:
    n = len(k)
    if not unbiased:
        h = torch.eye(n, dtype=k.dtype) - 1 / n
        return torch.trace(k @ h @ other @ h) / (n - 1) ** 2
    k, other = (m - torch.diag(m.diagonal()) for m in (k, other))
    one = k.new_ones(n)
    sums = (one @ k @ one) * (one @ other @ one) / ((n - 1) * (n - 2))
    last = 2 / (n - 2) * (one @ k @ other @ one)
    return (torch.trace(k @ other) + sums - last) / (n * (n - 3))


def hsics_by_definition(x: Tensor, y: Tensor, unbiased: bool) -> Tensor:
    k, other = x.double() @ x.double().T, y.double() @ y.double().T
    return torch.stack([hsic(*pair, unbiased) for pair in ((k, k), (k, other), (other, other))])


def representations(n: int, d: int, other: int, seed: int = 0) -> tuple[Tensor, Tensor]:
    x, noise = draw("random", n, max(d, other), seed, torch.float64)
    return x[:, :d] + 0.5, x[:, :other].square() + 0.3 * noise[:, :other]


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("unbiased", [False, True])
def test_cka_is_its_definition(form, unbiased):
    shapes = ((5, 3, 2), (9, 30, 4), (150, 200, 40), (300, 20, 100), (95, 300, 150))
    for n, d, other in shapes:
        x, y = representations(n, d, other)
        own, cross, others = hsics_by_definition(x, y, unbiased).tolist()
        found = cka(FORMS[form](x), FORMS[form](y), unbiased=unbiased, memory=SMALL)
        assert found == pytest.approx(cross / math.sqrt(own * others), rel=EXACT), (n, d, other)


@pytest.mark.parametrize("unbiased", [False, True])
def test_cka_does_not_change_with_rotation_scale_and_shift(unbiased):
    x, y = representations(60, 12, 20)
    turned = 7 * y @ torch.linalg.qr(draw("random", 20, 20, 1, torch.float64)[0]).Q + 2
    want = cka(x, y, unbiased=unbiased)
    assert cka(x, turned, unbiased=unbiased) == pytest.approx(want, rel=EXACT)
    assert cka(x, 3 * x - 1, unbiased=unbiased) == pytest.approx(1, rel=EXACT)


def test_minibatch_cka_is_the_ratio_of_means():
    accumulated = MinibatchCKA()
    with pytest.raises(RuntimeError, match=r"at least one update"):
        accumulated.compute()
    for _ in range(2):
        total = torch.zeros(3, dtype=torch.float64)
        for seed, n in enumerate((16, 31, 8)):
            x, y = representations(n, 40, 12, seed)
            total += hsics_by_definition(x, y, True)
            accumulated.update(x, split(y, 5))
        own, cross, others = (total / 3).tolist()
        assert accumulated.batches == 3
        assert accumulated.compute() == pytest.approx(cross / math.sqrt(own * others), rel=EXACT)
        accumulated.reset()


def test_cka_of_a_constant_is_nan():
    x, y = representations(10, 6, 4)
    for dtype in (torch.float32, torch.float64):
        assert math.isnan(cka(torch.full_like(x, 0.1, dtype=dtype), y))
        assert math.isnan(cka(x, torch.full_like(y, 0.1, dtype=dtype), unbiased=True))


# --- inputs --------------------------------------------------------------------------------------


Z = torch.randn(6, 4)
CALLS = {
    "summary": lambda z: cross_correlation_summary(z, z),
    "rank": effective_rank,
    "cka": lambda z: cka(z, z),
    "minibatch": lambda z: MinibatchCKA().update(z, z),
}
BAD = {
    "number": (3, TypeError, r"(z\w*|x) must be a torch.Tensor, an iterable .* got int"),
    "iterator": (iter([Z]), TypeError, r"is an iterator, which can be read only once"),
    "integers": (Z.long(), TypeError, r"must be float64.*got torch.int64"),
    "blocks of lists": ([[1.0]], TypeError, r"block 0 of (z\w*|x) must be a torch.Tensor"),
    "vector": (Z[0], ValueError, r"must be \(N, D\) or \(..., D\), got \(4,\)"),
    "one sample": (Z[:1], ValueError, r"at least 2 samples, got \(1, 4\)"),
    "no samples": (Z[:0], ValueError, r"at least 2 samples, got \(0, 4\)"),
    "no columns": (Z[:, :0], ValueError, r"at least one column"),
    "no blocks": ([], ValueError, r"at least one column"),
    "unequal blocks": ([Z, Z[:5]], ValueError, r"block 1 of (z\w*|x) must be \(6, d\), got \(5, 4"),
    "nan": (Z.clone().fill_(math.nan), ValueError, r"(z\w*|x) must be finite"),
    "infinity": ([Z, Z / 0], ValueError, r"(z\w*|x) must be finite"),
}


@pytest.mark.parametrize("name", BAD)
@pytest.mark.parametrize("call", CALLS)
def test_bad_inputs_are_refused(name, call):
    value, error, words = BAD[name]
    with pytest.raises(error, match=words):
        CALLS[call](value)


def test_inputs_that_do_not_fit_each_other_are_refused():
    with pytest.raises(ValueError, match=r"z_a and z_b must have the same shape.*\(6, 4\).*6, 3"):
        cross_correlation_summary(Z, Z[:, :3])
    with pytest.raises(ValueError, match=r"same widths, got \(6, 2\) and \(6, 3\) from column 0"):
        cross_correlation_summary(split(Z, 2), split(Z, 3))
    with pytest.raises(ValueError, match=r"got \(6, 2\) and \(0,\) from column 2"):
        cross_correlation_summary(split(Z, 2), split(Z[:, :2], 2))
    with pytest.raises(ValueError, match=r"same number of samples, got 6 and 5"):
        cka(Z, Z[:5])
    with pytest.raises(ValueError, match=r"at least 4 samples, got N = 3"):
        cka(Z[:3], Z[:3], unbiased=True)
    with pytest.raises(ValueError, match=r"z_a and z_b must be on one device"):
        cross_correlation_summary(Z, Z.to("meta"))


@pytest.mark.parametrize("call", CALLS)
def test_a_source_that_changes_is_refused(call):
    measured = 1 if call == "rank" else 2
    reads = iter([[Z, Z]] * measured + [[Z]])
    with pytest.raises(ValueError, match=r"had 8 columns, then 4: it must not change"):
        CALLS[call](lambda: next(reads))


@pytest.mark.parametrize(
    ("options", "error", "words"),
    [
        ({"memory": 1000}, ValueError, r"memory must be from 1.04858e\+06"),
        ({"memory": "1 GiB"}, TypeError, r"memory must be a Python number"),
        ({"eps": -1.0}, ValueError, r"eps must be from 0"),
    ],
)
def test_bad_options_are_refused(options, error, words):
    with pytest.raises(error, match=words):
        cross_correlation_summary(Z, Z, **options)


def test_nothing_is_kept_for_a_gradient():
    z = Z.clone().requires_grad_()
    assert not effective_rank(z).singular_values.requires_grad
    cross_correlation_summary(z, z)
    cka(z, z)


def test_the_module_is_found_from_the_package():
    """Without an import of its own, and not with the package's."""
    script = "import barlow_fast, sys; assert 'barlow_fast.statistics' not in sys.modules; "
    script += "assert barlow_fast.statistics.cka"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


# --- memory --------------------------------------------------------------------------------------


class Allocations(TorchDispatchMode):
    """Peak bytes of storages alive at once that operators have made, and the largest of them."""

    def __init__(self) -> None:
        super().__init__()
        self.alive = WeakIdKeyDictionary()
        self.peak = self.largest = 0

    def __torch_dispatch__(self, function, types, arguments=(), keywords=None):
        out = function(*arguments, **(keywords or {}))
        for each in out if isinstance(out, list | tuple) else (out,):
            if isinstance(each, Tensor) and each.untyped_storage() not in self.alive:
                self.alive[each.untyped_storage()] = each.untyped_storage().nbytes()
        self.peak = max(self.peak, sum(self.alive.values()))
        self.largest = max(self.largest, *self.alive.values(), 0)
        return out


@contextmanager
def allocations(monkeypatch, *inputs: Tensor) -> Iterator[Allocations]:
    """What is allocated besides the inputs."""
    # Tensors over the pool's own mappings are made by no operator.
    monkeypatch.setattr(POOL, "limit", 0)
    with Allocations() as seen:
        for z in inputs:
            seen.alive[z.untyped_storage()] = 0
        yield seen


LIMIT = 2**22
MEASURED = {
    "summary, N < D": ((300, 4000), lambda z, y: cross_correlation_summary(z, y, memory=LIMIT)),
    "summary, N > D": ((4000, 300), lambda z, y: cross_correlation_summary(z, y, memory=LIMIT)),
    "largest": ((200, 1500), lambda z, y: cross_correlation_summary(
        z, y, largest=True, memory=LIMIT)),
    "rank": ((300, 4000), lambda z, y: singular_values(z, memory=LIMIT)),
    "CKA by samples": ((700, 1500), lambda z, y: cka(z, y, unbiased=True, memory=LIMIT)),
    "CKA by features": ((3000, 700), lambda z, y: cka(z, y[:, :600], memory=LIMIT)),
    "CKA of few features": ((30000, 20), lambda z, y: cka(z, y, unbiased=True, memory=LIMIT)),
}  # fmt: skip


@pytest.mark.parametrize("name", MEASURED)
def test_memory_stays_within_the_bound(name, monkeypatch):
    (n, d), call = MEASURED[name]
    z = torch.randn(n, d)
    y = torch.randn(n, d)
    result = 16 * min(n, d) ** 2 if name == "rank" else 0
    with allocations(monkeypatch, z, y) as seen:
        call(z, y)
    assert seen.peak <= LIMIT + result


def test_a_wide_matrix_never_allocates_a_square_of_its_width(monkeypatch):
    """Of 17000 columns, C alone would be 2.3 GB in float64."""
    z = torch.randn(64, 17000)
    limit = 2**24
    for call in (
        lambda: cross_correlation_summary(z, z, memory=limit),
        lambda: effective_rank(z, memory=limit),
        lambda: cka(z, z, unbiased=True, memory=limit),
    ):
        with allocations(monkeypatch, z) as seen:
            call()
        assert seen.largest < seen.peak <= limit


@pytest.mark.gpu
@pytest.mark.parametrize("form", FORMS)
def test_gpus_give_the_same_numbers(form, monkeypatch):
    monkeypatch.undo()  # the kernel sets of each device
    z_a, z_b = draw("correlated", 95, 400, 1)
    calls = (
        lambda a, b: cross_correlation_summary(a, b, largest=True, memory=SMALL),
        lambda a, _: effective_rank(a, memory=SMALL)[:3],
        lambda a, b: [cka(a, b, unbiased=each, memory=SMALL) for each in (False, True)],
    )
    for call in calls:
        on_cpu, on_gpu = (
            call(*(FORMS[form](z.to(device)) for z in (z_a, z_b))) for device in ("cpu", "cuda")
        )
        assert list(on_gpu) == pytest.approx(list(on_cpu), rel=EXACT)
