"""The truth in float64 against autograd through the definitions."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from barlow_fast import reference
from bench import agreement
from bench.inputs import FP64, random_pair
from bench.peers.peer import LAMBD, PAPER, Mathematics, circular_redundancy

STATED = {
    "paper": PAPER,
    "unbiased": Mathematics(unbiased=True),
    "eps": Mathematics(eps=0.3),
    "eps on the deviation": Mathematics(eps=0.3, eps_on="deviation"),
    "shared": Mathematics(shared=True),
    "everything": Mathematics(True, 0.3, "deviation", True, 0.02, 0.025),
    "circular": Mathematics(circular_groups=1, lambd=0.02),
    "circular in groups": Mathematics(circular_groups=2, lambd=0.02, shared=True, factor=3.0),
}
SHAPES = ((12, 40), (40, 12), (30, 30))


def shifted_pair(n, d, seed=1):
    """Views whose statistics differ, so that sharing them makes a difference."""
    z_a, z_b = random_pair(n, d, torch.float64, torch.Generator().manual_seed(seed))
    return z_a, (2 * z_b + 0.5).detach().requires_grad_()


def by_autograd(pair, mathematics=PAPER):
    return agreement.run(mathematics.loss, pair, FP64)


@pytest.mark.parametrize("name", STATED)
@pytest.mark.parametrize(("n", "d"), SHAPES)
def test_the_truth_is_that_of_the_definitions(name, n, d):
    pair = shifted_pair(n, d)
    found = agreement.truth(pair, STATED[name])
    assert agreement.errors(found, by_autograd(pair, STATED[name])).within(1e-13, 1e-12)


def test_the_default_is_the_reference():
    pair = shifted_pair(12, 40)
    expected = agreement.run(
        lambda z_a, z_b: reference.barlow_twins_loss(z_a, z_b, LAMBD), pair, FP64
    )
    assert agreement.errors(agreement.truth(pair), expected).within(1e-13, 1e-13)
    # The general definition, taken where only the factor differs from what the reference has.
    for other in (replace(PAPER, shared=True), replace(PAPER, unbiased=True)):
        assert not agreement.errors(by_autograd(pair, other), expected).within(1e-4, 1e-4)


@pytest.mark.parametrize("eps_on", ["variance", "deviation"])
@pytest.mark.parametrize("unbiased", [False, True])
def test_statistics_are_those_of_torch(eps_on, unbiased):
    """The definition against torch's own deviation, written out as libraries do."""
    z_a, z_b = shifted_pair(9, 5)

    def standardised(z):
        if eps_on == "variance":
            return (z - z.mean(0)) / (z.var(0, unbiased=unbiased) + 0.1).sqrt()
        return (z - z.mean(0)) / (z.std(0, unbiased=unbiased) + 0.1)

    c = standardised(z_a).T @ standardised(z_b) / 9
    weights = torch.full((5, 5), 0.5).fill_diagonal_(1)
    expected = 4 * (weights * (c - torch.eye(5)).square()).sum()
    stated = Mathematics(unbiased, 0.1, eps_on, lambd=0.5, factor=4.0)
    torch.testing.assert_close(stated.loss(z_a, z_b), expected, rtol=1e-13, atol=0)


def test_circular_sums_by_hand():
    c = torch.arange(16.0).view(4, 4)
    whole = [1 + 6 + 11 + 12, 2 + 7 + 8 + 13, 3 + 4 + 9 + 14]
    assert circular_redundancy(c, 4) == sum(s**2 for s in whole)
    blocks = [1 + 4, 11 + 14, 2 + 7, 3 + 6, 8 + 13, 9 + 12]
    assert circular_redundancy(c, 2) == sum(s**2 for s in blocks)
    # Groups of one column: all that is left out is the diagonal.
    assert circular_redundancy(c, 1) == c.square().sum() - c.diagonal().square().sum()


def test_columns_that_do_not_divide_into_groups_are_refused():
    with pytest.raises(ValueError, match=r"D = 10 is not a multiple of 4 groups"):
        agreement.truth(shifted_pair(4, 10), Mathematics(circular_groups=4))


def test_the_truth_of_the_paper_is_evaluated_once(monkeypatch):
    evaluated, plain = [], agreement.truth
    monkeypatch.setattr(
        agreement, "truth", lambda *given: evaluated.append(given[1]) or plain(*given)
    )
    pair = shifted_pair(12, 20)
    shared, scaled = Mathematics(shared=True), Mathematics(factor=0.025)
    truths = agreement.Truths(pair)
    for stated in (PAPER, shared, scaled, PAPER, replace(shared, factor=2.0)):
        assert agreement.errors(truths.of(stated), by_autograd(pair, stated)).within(1e-12, 1e-12)
        assert agreement.errors(by_autograd(pair, stated), truths.of(stated)).within(1e-12, 1e-12)
    assert evaluated == [PAPER, *[shared] * 2, *[replace(shared, factor=2.0)] * 2]


def test_no_matrix_of_d_by_d_is_made_where_d_is_the_larger(monkeypatch):
    sizes = []
    plain = torch.Tensor.__matmul__

    def watched(left, right):
        result = plain(left, right)
        sizes.append(result.numel())
        return result

    monkeypatch.setattr(torch.Tensor, "__matmul__", watched)
    pair = random_pair(8, 64, torch.float32, torch.Generator().manual_seed(2))
    agreement.truth(pair)
    assert sizes
    assert max(sizes) <= 8 * 64


def test_gradients_of_a_scaled_loss_are_held_against_the_unscaled_truth():
    pair = random_pair(12, 40, torch.float32, torch.Generator().manual_seed(3))
    true = agreement.truth(pair)
    scaled = agreement.Outcome(true.loss, tuple(8 * g for g in true.gradients), 8.0)
    assert agreement.errors(scaled, true).gradient == 0
    unmarked = agreement.Outcome(true.loss, scaled.gradients)
    assert agreement.errors(unmarked, true).gradient == pytest.approx(7)
