"""Loss and gradients of every adapter against its peer's mathematics and the installed peer."""

from __future__ import annotations

import functools
import importlib
import math

import gate
import pytest
import torch
from embeddings import draw
from formulas import BATCH, CASES, LAMBDA, Case, official_model, outcome, penalty, rms_errors
from torch import Tensor

from barlow_fast.adapters import hsic, lightly, lightning_tutorial, monai, solo_learn, susmelj

SHAPES = ((2, 1), (2, 3), (3, 2), (7, 13), (13, 7), (24, 24), (33, 65), (65, 33))
EXACT = 1e-10
BY_NAME = pytest.mark.parametrize("name", CASES)


def tiny(n: int, d: int, seed: int, dtype: torch.dtype = torch.float64) -> tuple[Tensor, Tensor]:
    """Correlated views at a scale where every eps matters."""
    return tuple(1e-4 * z for z in draw("correlated", n, d, seed, dtype))


def assert_equal(found: tuple[Tensor, ...], exact: tuple[Tensor, ...], z: Tensor) -> None:
    """Within 1e-10 of the value or, where a gradient all but vanishes, of one over the deviation,
    which everything that cancels in it is multiplied with."""
    steep = float((1 / z.std(0).clamp_min(1e-6)).norm())
    for x, y, smallest in zip(found, exact, (1.0, steep, steep), strict=True):
        assert x.shape == y.shape
        assert float((x - y).norm()) <= EXACT * max(float(y.norm()), smallest)


@BY_NAME
def test_float64_is_the_formula(name):
    case = CASES[name]
    for shape in SHAPES:
        for seed in range(2):
            kinds = ("random", "correlated", "heavy_tailed")
            drawn = (draw(kind, *shape, seed, torch.float64) for kind in kinds)
            for z_a, z_b in (*drawn, tiny(*shape, seed)):
                exact = outcome(case.formula, z_a, z_b)
                assert_equal(outcome(case.adapter, z_a, z_b), exact, z_a)


@BY_NAME
def test_float32_passes_the_gate(name):
    """rms error over seeds at most twice that of the formula in float32, against float64."""
    case = CASES[name]
    for shape in ((13, 7), (7, 13), (48, 160), (160, 48)):
        for kind in ("random", "correlated", "tiny"):
            make = tiny if kind == "tiny" else functools.partial(draw, kind)
            draws = [make(*shape, seed, torch.float32) for seed in range(5)]
            ours, plain = rms_errors(draws, case.formula, case.adapter, case.formula)
            allowed = 2 * plain + gate.FLOOR["fp32"]
            assert bool((ours <= allowed).all()), (shape, kind, ours.tolist(), allowed.tolist())


@BY_NAME
def test_dead_features(name):
    """A constant column: NaN where the formula's is, else its loss and gradients."""
    case = CASES[name]
    for shape in ((13, 7), (7, 13)):
        z_a, z_b = draw("constant_columns", *shape, 3, torch.float64)
        exact = outcome(case.formula, z_a, z_b)
        assert bool(exact[0].isnan()) == case.dead_is_nan
        found = outcome(case.adapter, z_a, z_b)
        if case.dead_is_nan:
            assert found[0].isnan()
        else:
            assert_equal(found, exact, torch.randn(3, 2))


@BY_NAME
def test_nan_and_infinity_reach_the_loss(name):
    for poison in (math.nan, math.inf):
        for view in range(2):
            for shape in ((13, 7), (7, 13)):
                pair = list(draw("random", *shape, 1))
                pair[view][3, 2] = poison
                assert not CASES[name].adapter(*pair).isfinite()


@BY_NAME
def test_strides_and_gradients_that_are_not_wanted(name):
    case = CASES[name]
    z_a, z_b = draw("correlated", 12, 18, 5, torch.float64)
    whole = outcome(case.adapter, z_a, z_b)
    strided = torch.empty(18, 12, dtype=torch.float64).T.copy_(z_a)
    every_other = torch.zeros(12, 36, dtype=torch.float64)
    every_other[:, ::2] = z_b
    for x, y in zip(outcome(case.adapter, strided, every_other[:, ::2]), whole, strict=True):
        torch.testing.assert_close(x, y, rtol=1e-12, atol=1e-13)
    for wanted in range(2):
        pair = [z_a.clone(), z_b.clone()]
        pair[wanted].requires_grad_()
        case.adapter(*pair).backward()
        torch.testing.assert_close(pair[wanted].grad, whole[1 + wanted], rtol=1e-12, atol=1e-13)
        assert pair[1 - wanted].grad is None
    with torch.no_grad():
        assert not case.adapter(z_a, z_b).requires_grad


@BY_NAME
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_and_autocast_give_float32(name, dtype):
    """Within a few roundings of the operands of what the rounded embeddings' formula gives."""
    if name == "mm_matrix":
        pytest.skip("the matrix is the caller's: its precision too")
    case = CASES[name]
    z_a, z_b = (z.to(dtype) for z in draw("correlated", 16, 40, 2))
    exact = outcome(case.formula, z_a.double(), z_b.double())
    found = outcome(case.adapter, z_a, z_b)
    assert found[0].dtype == torch.float32
    assert found[1].dtype == found[2].dtype == dtype
    with torch.autocast("cpu", dtype):
        under_autocast = outcome(case.adapter, z_a.float(), z_b.float())
    assert under_autocast[0].dtype == torch.float32
    assert under_autocast[1].dtype == torch.float32
    allowed = 16 * torch.finfo(dtype).eps
    for result in (found, under_autocast):
        for x, y in zip(result, exact, strict=True):
            assert gate.relative_error(x, y) <= allowed


def test_monai_rounds_its_weight_whatever_the_default_device(monkeypatch):
    given = []
    monkeypatch.setattr(monai, "deviation_loss", lambda a, b, lambd, **_: given.append(lambd))
    with torch.device("meta"):
        monai.BarlowTwinsLoss(0.3)(*torch.randn(2, 6, 4, device="cpu"))
    assert given == [float(torch.tensor(0.3))]


# --- the switch for dead features ------------------------------------------------------------


ZERO = {
    "susmelj": susmelj.BarlowTwinsLoss("cpu", LAMBDA, dead_features="zero"),
    "lightning_tutorial": lightning_tutorial.BarlowTwinsLoss(BATCH, LAMBDA, dead_features="zero"),
    "hsic": lambda a, b: hsic.barlow_twins_hsic_loss(a, b, LAMBDA, dead_features="zero"),
    "hsic_negative": lambda a, b: hsic.barlow_twins_hsic_loss(
        a, b, LAMBDA, True, BATCH, dead_features="zero"
    ),
}


@pytest.mark.parametrize("name", ZERO)
@pytest.mark.parametrize("value", [2.5, 0.1, -1e6])
def test_dead_features_as_zero(name, value):
    """Value and gradients are those of columns that are zero in u; also where the mean of a
    constant is not the constant, for rounding."""

    def formula(z_a: Tensor, z_b: Tensor) -> Tensor:
        alive = [torch.ones_like(z_a[0]), torch.ones_like(z_a[0])]
        alive[0][::3] = 0
        views = []
        for z, mask in zip((z_a, z_b), alive, strict=True):
            centred = (z - z.mean(0)) * mask
            deviation = (centred.square().sum(0) / (z.shape[0] - 1) + (1 - mask)).sqrt()
            views.append(centred / deviation)
        return CASES[name].formula.of_standardised(*views)

    for shape in ((13, 7), (7, 13)):
        for dtype, bound in ((torch.float64, EXACT), (torch.float32, 1e-4)):
            z_a, z_b = draw("correlated", *shape, 4, dtype)
            z_a[:, ::3] = value
            exact = outcome(formula, z_a.double(), z_b.double())
            found = outcome(ZERO[name], z_a, z_b)
            for x, y in zip(found, exact, strict=True):
                assert gate.relative_error(x, y) <= bound
            assert not found[1][:, ::3].any()
            assert outcome(CASES[name].adapter, z_a, z_b)[0].isnan()


# --- the official module and its batch norm --------------------------------------------------


@pytest.mark.parametrize("momentum", [0.1, None])
def test_running_statistics_move_as_two_calls_would(momentum):
    z_a, z_b = draw("random", 9, 5, 6, torch.float64)
    model = official_model(5, 9, torch.float64)
    norm = torch.nn.BatchNorm1d(5, affine=False, momentum=momentum).double()
    model.bn.momentum = momentum
    for _ in range(2):
        model(z_a, z_b)
        norm(z_a)
        norm(z_b)
    state = norm.state_dict()
    assert list(model.bn.state_dict()) == list(state)
    for key, value in model.bn.state_dict().items():
        torch.testing.assert_close(value, state[key], rtol=1e-13, atol=1e-14)


def test_in_eval_mode_the_running_statistics_standardise():
    z_a, z_b = draw("random", 9, 5, 6, torch.float64)
    model = official_model(5, 9, torch.float64)
    model(z_a, z_b)
    model.eval()
    before = {key: value.clone() for key, value in model.state_dict().items()}
    mean, variance = model.bn.running_mean, model.bn.running_var

    def formula(a: Tensor, b: Tensor) -> Tensor:
        u_a, u_b = ((z - mean) / (variance + 1e-5).sqrt() for z in (a, b))
        return penalty(u_a.T @ u_b / 9, LAMBDA)

    assert_equal(outcome(model, z_a, z_b), outcome(formula, z_a, z_b), z_a)
    for key, value in model.state_dict().items():
        assert torch.equal(value, before[key])


# --- the installed peers ---------------------------------------------------------------------

INSTALLED = {
    "lightly": ("lightly.loss", "BarlowTwinsLoss", LAMBDA),
    "lightly_vicreg": ("lightly.loss", "VICRegLoss"),
    "lightly_frossl": ("lightly.loss", "FroSSLLoss"),
    "monai": ("monai.losses", "BarlowTwinsLoss", LAMBDA),
    "stable_pretraining": ("stable_pretraining.losses", "BarlowTwinsLoss", LAMBDA),
    "stable_vicreg": ("stable_pretraining.losses", "VICRegLoss"),
    "catalyst": ("catalyst.contrib.losses", "BarlowTwinsLoss"),
}


def peer(name: str) -> Case:
    """The installed peer's own class in place of the formula."""
    module, kind, *arguments = INSTALLED[name]
    pytest.importorskip(module.partition(".")[0], exc_type=ImportError)
    loss = getattr(importlib.import_module(module), kind)(*arguments)
    if kind == "FroSSLLoss":
        return CASES[name]._replace(formula=lambda a, b: loss([a, b]))
    return CASES[name]._replace(formula=loss)


@pytest.mark.parametrize("name", INSTALLED)
def test_float64_is_the_installed_peer(name):
    case = peer(name)
    for shape in SHAPES:
        for kind in ("random", "correlated", "constant_columns"):
            z_a, z_b = draw(kind, *shape, 7, torch.float64)
            dead = kind == "constant_columns"
            exact = outcome(case.formula, z_a, z_b)
            assert_equal(outcome(case.adapter, z_a, z_b), exact, torch.randn(3, 2) if dead else z_a)


@pytest.mark.parametrize("shape", [(6, 3, 5), (6, 3, 2, 5), (5, 2, 9)])
def test_positions_between_samples_and_features(shape):
    """lightly's VICReg of (B, ..., D): the mean over positions, and so its covariance."""
    losses = pytest.importorskip("lightly.loss.vicreg_loss", exc_type=ImportError)
    z_a, z_b = torch.randn(2, *shape, dtype=torch.float64)
    for x, y in zip(
        outcome(lightly.VICRegLoss(), z_a, z_b), outcome(losses.VICRegLoss(), z_a, z_b), strict=True
    ):
        torch.testing.assert_close(x, y, rtol=EXACT, atol=EXACT)
    for z in (z_a, z_a[:, 0] if z_a.dim() == 3 else z_a[:, 0, 0]):
        torch.testing.assert_close(lightly.covariance_loss(z), losses.covariance_loss(z))


def test_frossl_of_more_views():
    loss = pytest.importorskip("lightly.loss", exc_type=ImportError).FroSSLLoss(0.3)
    views = [z.requires_grad_() for z in torch.randn(5, 7, 4, dtype=torch.float64)]
    theirs, ours = loss(views), lightly.FroSSLLoss(0.3)(views)
    torch.testing.assert_close(ours, theirs, rtol=EXACT, atol=EXACT)
    for x, y in zip(*(torch.autograd.grad(each, views) for each in (ours, theirs)), strict=True):
        torch.testing.assert_close(x, y, rtol=EXACT, atol=EXACT)
    stacked = solo_learn.frossl_loss_func(torch.stack(views), 5 * 0.3)
    torch.testing.assert_close(stacked, theirs, rtol=EXACT, atol=EXACT)


# Those whose loss of half-precision embeddings is float32 as ours is (docs/migrating.md).
FLOAT32 = {"monai"}
# Those that autocast leaves in float32, as it does the mean squared error.
FLOAT32_UNDER_AUTOCAST = {"lightly_vicreg", "lightly_frossl", "stable_vicreg"}


def has_trace(dtype):
    try:
        torch.ones(2, 2, dtype=dtype).trace()
    except NotImplementedError:  # torch 2.10, of 16 bits
        return False
    return True


@pytest.mark.parametrize("name", INSTALLED)
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
@pytest.mark.parametrize("autocast", [None, torch.bfloat16, torch.float16])
def test_types_of_losses_are_the_documented_ones(name, dtype, autocast):
    case = peer(name)
    z_a, z_b = draw("random", 8, 5, 1, dtype)
    if name == "lightly_frossl" and autocast and dtype.itemsize == 2:
        pytest.skip("torch stacks no half-precision tensors under a CPU's autocast")
    if name == "lightly_frossl" and not has_trace(dtype):
        pytest.skip(f"this torch has no trace of {dtype}")
    with torch.autocast("cpu", autocast or torch.bfloat16, enabled=autocast is not None):
        theirs, ours = case.formula(z_a, z_b), case.adapter(z_a, z_b)
    computed = dtype if dtype == torch.float64 else autocast or dtype
    wide = torch.promote_types(computed, torch.float32)
    assert ours.dtype == wide
    is_wide = name in FLOAT32 or (autocast and name in FLOAT32_UNDER_AUTOCAST)
    assert theirs.dtype == (wide if is_wide else computed)


@pytest.mark.parametrize("name", INSTALLED)
def test_float32_loses_no_more_than_the_installed_peer(name):
    case = peer(name)
    for shape in ((48, 160), (160, 48)):
        for kind in ("random", "correlated"):
            draws = [draw(kind, *shape, seed) for seed in range(5)]
            ours, theirs = rms_errors(draws, case.formula, case.adapter, case.formula)
            assert bool((ours <= 2 * theirs + gate.FLOOR["fp32"]).all()), (ours, theirs)
