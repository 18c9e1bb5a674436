"""Logistic regression against scikit-learn and against its own optimality condition."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch.nn import functional

from barlow_fast.data import load
from barlow_fast.evaluation import fit_logistic, fit_with_chosen_penalty
from barlow_fast.evaluation.logistic import PENALTIES, fit_over_seeds


@pytest.fixture(scope="module")
def digits():
    data = load("digits")
    return (
        data.train_images.flatten(1).double(),
        data.train_labels,
        data.test_images.flatten(1).double(),
        data.test_labels,
    )


@pytest.mark.parametrize("penalty", [1e-1, 1e-2, 1e-3])
def test_against_scikit_learn(digits, penalty: float):
    linear_model = pytest.importorskip("sklearn.linear_model")
    train, labels, test, truth = digits
    ours = fit_logistic(train, labels, 10, penalty, tolerance=1e-7)
    mean, std = train.mean(0), train.std(0, correction=0)
    # Pixels that are always black have no say in ours.
    train, test = ((x - mean) / torch.where(std == 0, torch.inf, std) for x in (train, test))
    theirs = linear_model.LogisticRegression(
        C=1 / (len(train) * penalty), tol=1e-8, max_iter=2000
    ).fit(train.numpy(), labels.numpy())
    logits = torch.from_numpy(theirs.decision_function(train.numpy()))
    objective = functional.cross_entropy(logits, labels).item()
    objective += penalty / 2 * float(np.square(theirs.coef_).sum())
    assert ours.objective == pytest.approx(objective, rel=1e-5)
    np.testing.assert_allclose(ours.weight.numpy(), theirs.coef_, atol=1e-3)
    theirs_right = theirs.score(test.numpy(), truth.numpy())
    assert ours.accuracy(digits[2], truth).top1 == pytest.approx(theirs_right, abs=1.5 / 600)


def test_the_gradient_at_the_minimum_is_zero_by_autograd(digits):
    train, labels, *_ = digits
    fit = fit_logistic(train, labels, 10, 1e-2, tolerance=1e-8)
    weight, bias = fit.weight.clone().requires_grad_(), fit.bias.clone().requires_grad_()
    standardised = (train - fit.mean) * fit.scale
    loss = functional.cross_entropy(standardised @ weight.T + bias, labels)
    loss = loss + 1e-2 / 2 * weight.square().sum()
    loss.backward()
    assert loss.item() == pytest.approx(fit.objective)
    assert max(weight.grad.abs().max(), bias.grad.abs().max()) < 1e-6


def test_float32_finds_the_same_minimum(digits):
    train, labels, *_ = digits
    exact = fit_logistic(train, labels, 10, 1e-3, iterations=500, tolerance=1e-8)
    single = fit_logistic(train.float(), labels, 10, 1e-3)
    assert single.objective == pytest.approx(exact.objective, rel=1e-3)


def test_scale_and_constant_columns_do_not_matter():
    generator = torch.Generator().manual_seed(0)
    features = torch.randn(60, 3, generator=generator, dtype=torch.float64)
    labels = (features[:, 0] + 0.3 * torch.randn(60, generator=generator) > 0).long()
    plain = fit_logistic(features, labels, 2, 1e-2, tolerance=1e-9)
    changed = torch.cat([features * 1000 + 5, torch.full((60, 1), 0.1)], 1)
    other = fit_logistic(changed, labels, 2, 1e-2, tolerance=1e-9)
    torch.testing.assert_close(other.weight[:, :3], plain.weight, rtol=1e-5, atol=1e-7)
    assert other.weight[:, 3].abs().max() == 0
    assert torch.isfinite(other.logits(changed)).all()


def test_a_fit_is_the_same_every_time(digits):
    train, labels, *_ = digits
    first, second = (fit_logistic(train.float(), labels, 10, 1e-3) for _ in range(2))
    assert torch.equal(first.weight, second.weight)


def test_noise_chooses_a_strong_penalty_and_signal_a_weak_one():
    generator = torch.Generator().manual_seed(1)
    labels = torch.arange(400) % 2
    noise = torch.randn(400, 80, generator=generator)
    signal = labels[:, None] * 0.5 + torch.randn(400, 80, generator=generator) * 0.02
    noisy = noise.clone()
    noisy[:, 0] += labels
    assert fit_with_chosen_penalty(noisy, labels, 2, seed=0).penalty >= 1e-2
    assert fit_with_chosen_penalty(signal, labels, 2, seed=0).penalty == min(PENALTIES)


def test_seeds_together_equal_seeds_apart(digits):
    train, labels, *_ = digits
    train, labels = train[:300].float(), labels[:300]
    together = fit_over_seeds(train, labels, 10, (0, 1, 2), penalties=(1e-1, 1e-2, 1e-3))
    for seed, fit in enumerate(together):
        alone = fit_with_chosen_penalty(train, labels, 10, seed, penalties=(1e-1, 1e-2, 1e-3))
        assert alone.penalty == fit.penalty
        assert torch.equal(alone.weight, fit.weight)


def test_one_sample_per_class_takes_the_middle_penalty():
    fit = fit_with_chosen_penalty(torch.eye(3), torch.arange(3), 3, seed=0)
    assert fit.penalty == sorted(PENALTIES)[len(PENALTIES) // 2]
    assert fit.accuracy(torch.eye(3), torch.arange(3)).top1 == 1


def test_shuffled_labels_reach_chance():
    generator = torch.Generator().manual_seed(2)
    features = torch.randn(1200, 20, generator=generator)
    labels = torch.randint(0, 6, (1200,), generator=generator)
    fit = fit_logistic(features[:600], labels[:600], 6, 1e-3)
    top1, top5 = fit.accuracy(features[600:], labels[600:])
    assert abs(top1 - 1 / 6) < 4 * (1 / 6 * 5 / 6 / 600) ** 0.5
    assert abs(top5 - 5 / 6) < 4 * (1 / 6 * 5 / 6 / 600) ** 0.5


@pytest.mark.parametrize(
    ("features", "labels", "penalty", "error", "message"),
    [
        (torch.rand(3), torch.arange(3), 0.1, ValueError, r"\(N, F\)"),
        (torch.rand(3, 2), torch.arange(2), 0.1, ValueError, r"\(N,\) labels"),
        (torch.rand(3, 2), torch.arange(3), -0.1, ValueError, "penalty must be at least 0"),
        (torch.rand(3, 2), torch.arange(3) + 1, 0.1, ValueError, r"labels must be in \[0, 3\)"),
        (torch.full((3, 2), torch.nan), torch.arange(3), 0.1, RuntimeError, "dimension 0"),
    ],
)
def test_bad_arguments(features, labels, penalty, error, message):
    with pytest.raises(error, match=message):
        fit_logistic(features, labels, 3, penalty)


def test_a_large_set_chooses_on_a_part_of_it(monkeypatch: pytest.MonkeyPatch):
    from barlow_fast.evaluation import logistic

    labels = torch.arange(300) % 3
    learned, held = logistic._held_out(labels, 0)
    assert sorted([*learned, *held]) == list(range(300))
    monkeypatch.setattr(logistic, "MOST_TO_CHOOSE", 50)
    fewer, same = logistic._held_out(labels, 0)
    assert len(fewer) == 50
    assert set(fewer) < set(learned)
    assert same.tolist() == held.tolist()


def test_a_column_of_variance_one_has_its_say():
    signs = torch.tensor([1.0, -1.0]).repeat(20).double()
    features = torch.stack([signs, torch.linspace(0, 3, 40).double()], 1)
    assert features[:, 0].var(correction=0) == 1
    fit = fit_logistic(features, (signs > 0).long(), 2, 1e-3)
    assert (fit.logits(features).argmax(1) == (signs > 0)).all()
    assert fit.weight[:, 0].abs().min() > 1
