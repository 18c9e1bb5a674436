"""The closed form in float64 against autograd through the reference."""

from __future__ import annotations

import pytest
import torch

from bench import agreement, truth
from bench.inputs import FP64, random_pair
from bench.peers import LAMBD


@pytest.mark.parametrize(("n", "d"), [(12, 40), (40, 12), (30, 30)])
@pytest.mark.parametrize("block", [None, 7])
def test_closed_form_is_the_reference(n, d, block):
    pair = random_pair(n, d, torch.float32, torch.Generator().manual_seed(1))
    expected = agreement.run(agreement.reference_loss, agreement.in_double(pair), FP64)
    found = agreement.Outcome(*truth.exact(pair, LAMBD, block))
    assert agreement.errors(found, expected).within(1e-13, 1e-13)


def test_no_matrix_of_d_by_d_is_made_where_d_is_the_larger(monkeypatch):
    sizes = []
    plain = torch.Tensor.__matmul__

    def watched(left, right):
        result = plain(left, right)
        sizes.append(result.numel())
        return result

    monkeypatch.setattr(torch.Tensor, "__matmul__", watched)
    pair = random_pair(8, 64, torch.float32, torch.Generator().manual_seed(2))
    truth.exact(pair, LAMBD, block=16)
    assert sizes
    assert max(sizes) <= 8 * 64


def test_gradients_of_a_scaled_loss_are_held_against_the_unscaled_truth():
    pair = random_pair(12, 40, torch.float32, torch.Generator().manual_seed(3))
    true = agreement.exact_truth(pair)
    scaled = agreement.Outcome(true.loss, tuple(8 * g for g in true.gradients), 8.0)
    assert agreement.errors(scaled, true).gradient == 0
    unmarked = agreement.Outcome(true.loss, scaled.gradients)
    assert agreement.errors(unmarked, true).gradient == pytest.approx(7)
