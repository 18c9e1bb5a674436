"""The signs of collapse, against their definitions and against embeddings whose state is known."""

from __future__ import annotations

import math

import pytest
import torch

from barlow_fast import reference
from barlow_fast.training import monitors
from barlow_fast.training.monitors import collapse_monitors


def gaussian(n: int, d: int, seed: int = 0, dtype: torch.dtype = torch.float64) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(n, d, generator=generator, dtype=dtype)


def from_the_definitions(z_a: torch.Tensor, z_b: torch.Tensor) -> dict[str, float]:
    """Row by row and entry by entry, by a full decomposition."""
    d = z_a.shape[1]
    unit = torch.stack([row / row.norm() for row in z_a])
    deviations = [math.sqrt(((unit[:, i] - unit[:, i].mean()) ** 2).mean()) for i in range(d)]
    shares = torch.linalg.svdvals(z_a - z_a.mean(0))
    shares = shares[shares > 1e-12 * shares[0]] / shares.sum()
    c = reference.cross_correlation(z_a, z_b)
    off = [abs(c[i, j].item()) for i in range(d) for j in range(d) if i != j]
    return {
        "embedding_std": math.sqrt(d) * sum(deviations) / d,
        "effective_rank": math.exp(-sum(p * math.log(p) for p in shares.tolist())),
        "diagonal_mean": sum(c[i, i].item() for i in range(d)) / d,
        "off_diagonal_abs_mean": sum(off) / len(off),
    }


@pytest.mark.parametrize(("n", "d"), [(2, 3), (17, 5), (9, 31), (64, 64)])
def test_the_monitors_are_what_their_definitions_say(n: int, d: int):
    z_a = gaussian(n, d) * torch.linspace(0.1, 3, d) + 0.7
    z_b = z_a + 0.5 * gaussian(n, d, 1)
    found = collapse_monitors(z_a, z_b)
    expected = from_the_definitions(z_a, z_b)
    assert tuple(found) == monitors.MONITORS
    for name, value in expected.items():
        assert found[name] == pytest.approx(value, rel=1e-5), name


def test_random_embeddings_fill_the_space():
    n, d = 1000, 100
    found = collapse_monitors(gaussian(n, d), gaussian(n, d, 1))
    assert found["embedding_std"] == pytest.approx(1, abs=0.01)
    assert 0.95 * d < found["effective_rank"] <= d
    assert found["diagonal_mean"] == pytest.approx(0, abs=0.02)
    assert found["off_diagonal_abs_mean"] == pytest.approx(math.sqrt(2 / (math.pi * n)), rel=0.05)


@pytest.mark.parametrize("rank", [1, 3, 20])
def test_the_effective_rank_counts_directions(rank: int):
    basis = torch.linalg.qr(gaussian(40, rank)).Q
    scores = torch.linalg.qr(gaussian(200, rank + 1, 1)).Q
    scores = torch.linalg.qr(scores - scores.mean(0)).Q[:, :rank]
    z = 5 * scores @ basis.T
    assert collapse_monitors(z, z)["effective_rank"] == pytest.approx(rank, rel=1e-3)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_one_vector_for_all_is_a_collapse(dtype: torch.dtype):
    """Also where the copies differ by rounding, which has a rank of its own."""
    vector = gaussian(1, 50, dtype=dtype).expand(80, 50)
    rounding = 1 + 0.2 * torch.finfo(dtype).eps * gaussian(80, 50, 2, dtype)
    for z in (vector, vector * rounding, torch.zeros(80, 50, dtype=dtype)):
        found = collapse_monitors(z, z)
        assert found["embedding_std"] < 1e-5
        assert found["effective_rank"] == 0
        assert found["diagonal_mean"] == pytest.approx(0, abs=1e-6)


def test_a_line_of_embeddings_is_a_dimensional_collapse():
    z = 100 * gaussian(60, 1) * gaussian(1, 32, 1)
    found = collapse_monitors(z, z)
    assert found["effective_rank"] == pytest.approx(1, abs=1e-3)
    assert found["off_diagonal_abs_mean"] == pytest.approx(1, abs=1e-3)


def test_only_the_first_dimensions_of_the_matrix_are_looked_at(monkeypatch):
    z_a, z_b = gaussian(30, 12), gaussian(30, 12, 1)
    monkeypatch.setattr(monitors, "MOST_DIMENSIONS", 5)
    part = from_the_definitions(z_a[:, :5], z_b[:, :5])
    whole = from_the_definitions(z_a, z_b)
    found = collapse_monitors(z_a, z_b)
    assert found["off_diagonal_abs_mean"] == pytest.approx(part["off_diagonal_abs_mean"])
    assert found["diagonal_mean"] == pytest.approx(whole["diagonal_mean"])


def test_a_single_dimension_has_nothing_off_the_diagonal():
    found = collapse_monitors(gaussian(20, 1), gaussian(20, 1, 1))
    assert found["off_diagonal_abs_mean"] == 0
    assert found["effective_rank"] == pytest.approx(1)


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_embeddings_that_are_no_numbers_do_not_end_the_run(bad: float):
    z = gaussian(10, 4)
    z[3, 2] = bad
    for pair in ((z, gaussian(10, 4)), (gaussian(10, 4), z)):
        assert all(math.isnan(value) for value in collapse_monitors(*pair).values())


@pytest.mark.parametrize("shapes", [((1, 4), (1, 4)), ((4, 4), (4, 5)), ((4,), (4,))])
def test_shapes_that_cannot_be_measured_are_named(shapes):
    with pytest.raises(ValueError, match=r"z_a and z_b must be \(N, D\).*at least 2, got"):
        collapse_monitors(*(torch.zeros(shape) for shape in shapes))
