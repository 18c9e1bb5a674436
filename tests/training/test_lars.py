"""LARS against the stated mathematics, against a loop over parameters, and against lightly's."""

from __future__ import annotations

import copy
import io
import math
from collections.abc import Iterable

import pytest
import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from barlow_fast.training.lars import LARS, parameter_groups

SHAPES = ((4, 3, 3, 3), (7, 5), (1, 1), (9,), (1,), (), (0, 3))


def parameters(dtype: torch.dtype = torch.float64, seed: int = 0) -> list[nn.Parameter]:
    generator = torch.Generator().manual_seed(seed)
    return [
        nn.Parameter(torch.randn(s, generator=generator, dtype=torch.float64).to(dtype))
        for s in SHAPES
    ]


def gradients(step: int, dtype: torch.dtype = torch.float64) -> list[Tensor]:
    generator = torch.Generator().manual_seed(100 + step)
    return [
        (0.3 * torch.randn(s, generator=generator, dtype=torch.float64)).to(dtype) for s in SHAPES
    ]


class Loop:
    """The update of one parameter after another, in plain Python numbers where it can be."""

    def __init__(self, values: list[Tensor], lr=0.3, decay=0.01, momentum=0.9, eta=0.001):
        self.values = [v.detach().clone().double() for v in values]
        self.mu = [torch.zeros_like(v) for v in self.values]
        self.settings = lr, decay, momentum, eta

    def step(self, grads: list[Tensor | None], decayed=True, adapted=True) -> None:
        """decayed, adapted: whether also parameters of at most one dimension are."""
        lr, decay, momentum, eta = self.settings
        for i, (p, grad) in enumerate(zip(self.values, grads, strict=True)):
            if grad is None:
                continue
            d, ratio = grad.double(), 1.0
            if p.ndim > 1 or decayed:
                d = d + decay * p
            if p.ndim > 1 or adapted:
                of_p = math.sqrt(math.fsum(x * x for x in p.flatten().tolist()))
                of_d = math.sqrt(math.fsum(x * x for x in d.flatten().tolist()))
                ratio = eta * of_p / of_d if of_p > 0 and of_d > 0 else 1.0
            self.mu[i] = momentum * self.mu[i] + ratio * d
            self.values[i] = p - lr * self.mu[i]


def step(optimizer: LARS, ps: list[nn.Parameter], grads: list[Tensor | None]) -> None:
    for p, g in zip(ps, grads, strict=True):
        p.grad = g
    optimizer.step()


def taken(optimizer: LARS, ps: list[nn.Parameter], steps: int) -> None:
    for i in range(steps):
        step(optimizer, ps, gradients(i, ps[0].dtype))


def assert_near(found: list[Tensor], wanted: list[Tensor], bound: float = 1e-12) -> None:
    for got, want in zip(found, wanted, strict=True):
        assert torch.isfinite(got).all()
        assert float((got.detach().double() - want).norm()) <= bound * max(float(want.norm()), 1.0)


@pytest.mark.parametrize("decay_filter", [True, False])
@pytest.mark.parametrize("adaptation_filter", [True, False])
@pytest.mark.parametrize(("decay", "rate", "eta"), [(0.0, 0.3, 0.001), (0.01, 0.25, 0.1)])
@pytest.mark.parametrize("momentum", [0.0, 0.9])
def test_the_stated_mathematics(decay_filter, adaptation_filter, decay, rate, eta, momentum):
    """Settings that are the defaults are left out."""
    ps = parameters()
    oracle = Loop(ps, rate, decay, momentum, eta)
    defaults = {
        "weight_decay": (decay, 0.0), "momentum": (momentum, 0.9),
        "trust_coefficient": (eta, 0.001), "weight_decay_filter": (decay_filter, True),
        "lars_adaptation_filter": (adaptation_filter, True),
    }  # fmt: skip
    optimizer = LARS(ps, lr=rate, **{n: v for n, (v, default) in defaults.items() if v != default})
    taken(optimizer, ps, 5)
    for i in range(5):
        oracle.step(gradients(i), decayed=not decay_filter, adapted=not adaptation_filter)
    assert_near(ps, oracle.values)
    if momentum:
        assert_near([optimizer.state[p]["momentum_buffer"] for p in ps], oracle.mu)
    else:
        assert not optimizer.state


def test_the_two_groups_of_the_recipe():
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Flatten(), nn.Linear(4, 2))
    model.double()
    model[1].weight.requires_grad_(False)
    groups = parameter_groups(model, weights_lr=0.2, biases_lr=0.0048, weight_decay=1e-6)
    assert [[tuple(p.shape) for p in g["params"]] for g in groups] == [
        [(4, 3, 3, 3), (2, 4)],
        [(4,), (4,), (2,)],
    ]
    assert [(g["lr"], g["weight_decay"]) for g in groups] == [(0.2, 1e-6), (0.0048, 0.0)]
    assert len(parameter_groups([torch.ones(2, requires_grad=True)], weights_lr=1, biases_lr=1,
                                weight_decay=0)) == 1  # fmt: skip
    with pytest.raises(ValueError, match=r"no parameter that requires a gradient"):
        parameter_groups(nn.ReLU(), weights_lr=0.2, biases_lr=0.1, weight_decay=0.0)
    weights, biases = ([p.detach().clone() for p in g["params"]] for g in groups)
    optimizer = LARS(groups, lr=0.0)
    for p in [*groups[0]["params"], *groups[1]["params"]]:
        p.grad = torch.ones_like(p)
    optimizer.step()
    # A weight moves by lr * eta of its own norm, a bias by lr times its gradient.
    for before, after in zip(weights, groups[0]["params"], strict=True):
        assert float((after.detach() - before).norm() / before.norm()) == pytest.approx(
            2e-4, rel=1e-4
        )
    for before, after in zip(biases, groups[1]["params"], strict=True):
        assert torch.allclose(after - before, torch.full_like(before, -0.0048), rtol=1e-9)


def test_zero_gradients_zero_parameters_and_none():
    ps = parameters()
    with torch.no_grad():
        ps[1].zero_()
    grads = gradients(0)
    grads[0] = torch.zeros_like(grads[0])
    grads[3] = None
    for decay in (0.0, 0.01):
        now = [nn.Parameter(p.detach().clone()) for p in ps]
        oracle = Loop(now, decay=decay)
        optimizer = LARS(now, lr=0.3, weight_decay=decay)
        step(optimizer, now, grads)
        oracle.step(grads, decayed=False, adapted=False)
        assert_near(now, oracle.values)
        assert torch.equal(now[3], ps[3])
        assert now[3] not in optimizer.state
        assert decay or torch.equal(now[0], ps[0])


def equal(a: Iterable[Tensor], b: Iterable[Tensor]) -> bool:
    return all(torch.equal(p, q) for p, q in zip(a, b, strict=True))


def test_nothing_to_do_is_no_error():
    ps = parameters()
    LARS(ps, lr=0.3).step()
    assert equal(ps, parameters())


def test_gradients_are_left_alone():
    ps = parameters()
    taken(LARS(ps, lr=0.3, weight_decay=0.0), ps, 1)
    assert equal([p.grad for p in ps], gradients(0))


def test_the_same_bits_every_time_and_those_of_a_loop_of_torch_calls():
    ends = []
    for _ in range(2):
        ps = parameters(torch.float32)
        taken(LARS(ps, lr=0.3, weight_decay=0.01), ps, 4)
        ends.append(ps)
    assert equal(*ends)
    values = [p.detach().clone() for p in parameters(torch.float32)]
    buffers = [torch.zeros_like(v) for v in values]
    for i in range(4):
        for p, mu, d in zip(values, buffers, gradients(i, torch.float32), strict=True):
            if p.ndim > 1:
                d = d.add(p, alpha=0.01)
                ratio = 0.001 * torch.norm(p) / torch.norm(d)
                d = d * (ratio if p.numel() else 1.0)
            mu.mul_(0.9).add_(d)
            p.add_(mu, alpha=-0.3)
    assert equal(ends[0], values)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_with_norms_in_float32(dtype):
    ps = [nn.Parameter(torch.full((300, 300), 2.0, dtype=dtype)), *parameters(dtype)]
    oracle = Loop(ps)
    optimizer = LARS(ps, lr=0.3, weight_decay=0.01)
    # In float16 the squares of neither fit.
    grads = [torch.full((300, 300), 500.0, dtype=dtype), *gradients(0, dtype)]
    step(optimizer, ps, grads)
    oracle.step(grads, decayed=False, adapted=False)
    assert all(optimizer.state[p]["momentum_buffer"].dtype == dtype for p in ps)
    assert_near([optimizer.state[p]["momentum_buffer"] for p in ps], oracle.mu,
                4 * torch.finfo(dtype).eps)  # fmt: skip
    assert_near(ps, oracle.values, 4 * torch.finfo(dtype).eps)


def test_types_may_be_mixed():
    ps = [*parameters(), *parameters(torch.float32), *parameters(torch.bfloat16)]
    apart = copy.deepcopy(ps)
    grads = [*gradients(0), *gradients(0, torch.float32), *gradients(0, torch.bfloat16)]
    for p, q, g in zip(ps, apart, grads, strict=True):
        p.grad, q.grad = g, g.clone()
    LARS(ps, lr=0.3, weight_decay=0.01).step()
    for q in apart:
        LARS([q], lr=0.3, weight_decay=0.01).step()
    assert equal(ps, apart)


def test_a_rate_in_a_tensor():
    ps, qs = parameters(), parameters()
    rate = torch.tensor(0.3, dtype=torch.float64)
    taken(LARS(ps, lr=rate), ps, 2)
    taken(LARS(qs, lr=0.3), qs, 2)
    assert_near(ps, [q.detach() for q in qs])


class NoReading(TorchDispatchMode):
    """Any operator that hands a tensor's value to Python fails."""

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        assert "_local_scalar_dense" not in func.name(), "a tensor's value was read"
        assert "nonzero" not in func.name()
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("rate", [0.3, torch.tensor(0.3)])
def test_no_value_is_read_from_the_device(rate):
    ps = parameters(torch.float32)
    optimizer = LARS(ps, lr=rate, weight_decay=0.01)
    taken(optimizer, ps, 1)
    with NoReading():
        optimizer.step()
        with pytest.raises(AssertionError, match=r"value was read"):
            bool(ps[0].norm() > 0)


def test_the_closure_is_called_with_gradients():
    p = nn.Parameter(torch.ones(2, 2))
    optimizer = LARS([p], lr=0.1)

    def closure():
        optimizer.zero_grad()
        loss = p.square().sum()
        loss.backward()
        return loss

    assert float(optimizer.step(closure)) == 4.0
    assert float(p.detach().sum()) < 4.0


def test_a_sparse_gradient_is_refused_and_nothing_changed():
    table, dense = nn.Embedding(5, 3, sparse=True), nn.Parameter(torch.ones(2, 2))
    before = table.weight.detach().clone()
    optimizer = LARS([{"params": [dense]}, {"params": table.parameters()}], lr=0.1)
    (table(torch.tensor([1])).sum() + dense.sum()).backward()
    with pytest.raises(RuntimeError, match=r"dense gradients.*\(5, 3\)"):
        optimizer.step()
    assert torch.equal(table.weight, before)
    assert torch.equal(dense, torch.ones(2, 2))


@pytest.mark.parametrize(
    ("settings", "error", "text"),
    [
        ({"lr": -0.1}, ValueError, r"lr .* got -0\.1"),
        ({"lr": "fast"}, TypeError, r"lr must be a number, got 'fast'"),
        ({"lr": torch.ones(2)}, ValueError, r"0-dim"),
        ({"lr": 0.1, "momentum": 1.0}, ValueError, r"momentum must be below 1"),
        ({"lr": 0.1, "weight_decay": float("nan")}, ValueError, r"weight_decay .* nan"),
        ({"lr": 0.1, "trust_coefficient": True}, TypeError, r"trust_coefficient"),
        ({"lr": 0.1, "lars_adaptation_filter": 1}, TypeError, r"lars_adaptation_filter .* got 1"),
    ],
)
def test_bad_settings_are_named(settings, error, text):
    with pytest.raises(error, match=text):
        LARS(parameters(), **settings)
    with pytest.raises(error, match=text):
        LARS([{"params": parameters(), **settings}], lr=0.1)


def test_complex_parameters_are_refused():
    with pytest.raises(TypeError, match=r"complex64 of shape \(2, 2\)"):
        LARS([torch.ones(2, 2, dtype=torch.complex64, requires_grad=True)], lr=0.1)
    optimizer = LARS(parameters(), lr=0.1)
    with pytest.raises(TypeError, match=r"complex64"):
        optimizer.add_param_group({"params": torch.ones(2, dtype=torch.complex64)})
    assert len(optimizer.param_groups) == 1


def through_a_file(state):
    stream = io.BytesIO()
    torch.save(state, stream)
    stream.seek(0)
    return torch.load(stream, weights_only=True)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_run_continues_from_its_state(dtype):
    ps = parameters(dtype)
    optimizer = LARS(ps, lr=0.3, weight_decay=0.01)
    taken(optimizer, ps, 2)
    qs = copy.deepcopy(ps)
    resumed = LARS(qs, lr=0.0)
    resumed.load_state_dict(through_a_file(optimizer.state_dict()))
    taken(optimizer, ps, 2)
    taken(resumed, qs, 2)
    assert equal(ps, qs)
    assert resumed.param_groups[0]["weight_decay"] == 0.01


def two_groups(ps: list[nn.Parameter]) -> list[dict]:
    return parameter_groups(ps, weights_lr=0.3, biases_lr=0.1, weight_decay=0.01)


def state_of(ps: list[nn.Parameter], key: str, **settings) -> dict:
    """As torch writes it for two groups after two steps of `Loop`, in another's layout."""
    groups, index, state = [], 0, {}
    for group in two_groups(ps):
        indices = list(range(index, index + len(group["params"])))
        index += len(indices)
        for i, p in zip(indices, group["params"], strict=True):
            state[i] = {key: torch.full_like(p.detach(), 0.25)}
        shared = {"lr": group["lr"], "weight_decay": group["weight_decay"], "momentum": 0.8}
        groups.append({**shared, **settings, "params": indices})
    return {"state": state, "param_groups": groups}


OFFICIAL = {"eta": 0.002, "weight_decay_filter": True, "lars_adaptation_filter": False}
SOLO = {"eta": 0.002, "eps": 1e-8, "dampening": 0, "nesterov": False, "clip_lr": False,
        "exclude_bias_n_norm": False}  # fmt: skip
LIGHTLY = {"trust_coefficient": 0.002, "eps": 1e-8, "dampening": 0, "nesterov": False}


@pytest.mark.parametrize(
    ("key", "settings", "filters"),
    [
        ("mu", OFFICIAL, (True, False)),
        ("momentum_buffer", SOLO, (False, False)),
        ("momentum_buffer", LIGHTLY, (True, True)),
    ],
    ids=["official", "solo", "lightly"],
)
def test_the_states_of_others_are_read(key, settings, filters):
    ps = parameters()
    state = state_of(ps, key, **settings)
    kept = copy.deepcopy(state)
    optimizer = LARS(two_groups(ps), lr=0.0)
    optimizer.load_state_dict(through_a_file(state))
    assert all(float((optimizer.state[p]["momentum_buffer"] - 0.25).abs().sum()) == 0 for p in ps)
    for group, rate, decay in zip(optimizer.param_groups, (0.3, 0.1), (0.01, 0.0), strict=True):
        assert (group["lr"], group["weight_decay"], group["momentum"]) == (rate, decay, 0.8)
        assert group["trust_coefficient"] == 0.002
        assert (group["weight_decay_filter"], group["lars_adaptation_filter"]) == filters
    taken(optimizer, ps, 1)
    optimizer.load_state_dict(state)
    assert state["param_groups"] == kept["param_groups"]
    assert state["state"].keys() == kept["state"].keys()
    assert all(set(entry) == {key} for entry in state["state"].values())


def changed(state: dict, **settings) -> dict:
    groups = [{**group, **settings} for group in state["param_groups"]]
    return {**state, "param_groups": groups}


def test_states_that_do_not_fit_are_refused():
    ps = parameters()
    optimizer = LARS(two_groups(ps), lr=0.0)
    lightly, solo = (state_of(ps, "momentum_buffer", **s) for s in (LIGHTLY, SOLO))
    mmpretrain = {"eta": 0.001, "eps": 1e-8, "dampening": 0, "nesterov": False}
    wrong_shape = state_of(ps, "mu", **OFFICIAL)
    wrong_shape["state"][0]["mu"] = torch.ones(3)
    mixed = state_of(ps, "mu", **OFFICIAL)
    mixed["param_groups"][1] = lightly["param_groups"][1]
    for state, text in (
        (changed(lightly, nesterov=True), r"lightly with nesterov = True"),
        (changed(solo, clip_lr=True), r"solo-learn with clip_lr = True"),
        (changed(lightly, dampening=0.1), r"dampening = 0\.1"),
        (state_of(ps, "momentum_buffer", **mmpretrain), r"a group has \['dampening', 'eps', 'eta'"),
        (torch.optim.SGD(ps, lr=0.1).state_dict(), r"groups of \[7\] parameters.* of \[4, 3\]"),
        (torch.optim.SGD(two_groups(ps), lr=0.1, momentum=0.9).state_dict(), r"known are those of"),
        (state_of(ps, "momentum_buffer", **OFFICIAL), r"\['momentum_buffer'\] .* expected 'mu'"),
        (wrong_shape, r"'mu' of \(3,\) for parameter 0, whose shape is \(4, 3, 3, 3\)"),
        (mixed, r"several layouts"),
        ({"model": 1}, r"with 'state' and 'param_groups', got \['model'\]"),
        (7, r"got 7"),
    ):
        with pytest.raises(ValueError, match=text):
            optimizer.load_state_dict(state)
    assert not optimizer.state


def test_against_lightly():
    """Equal where gradient and parameter point one way or there is next to no decay; else their
    denominator is another, and without decay they do not adapt at all."""
    lars = pytest.importorskip("lightly.utils.lars").LARS
    start = torch.eye(3, dtype=torch.float64)
    for grad, decay, alike in (
        (0.5 * start, 0.1, True),  # ||g + wd p|| = ||g|| + wd ||p||: they point one way
        (-0.5 * start, 0.1, False),  # they cancel here, and add up there
        (torch.ones_like(start), 1e-9, True),
        (torch.ones_like(start), 0.0, False),
    ):
        ends = []
        for optimizer_class in (LARS, lars):
            p = nn.Parameter(start.clone())
            optimizer = optimizer_class([p], lr=0.3, momentum=0.9, weight_decay=decay)
            for _ in range(2):
                p.grad = grad.clone()
                optimizer.step()
            ends.append(p.detach())
        # Their eps of 1e-8 is added to the norm; the step is a thousandth of p.
        assert torch.allclose(*ends, rtol=0, atol=1e-10) is alike


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_devices_may_be_mixed_and_nothing_waits():
    ps = [*parameters(), *(nn.Parameter(p.detach().cuda()) for p in parameters())]
    grads = [*gradients(0), *(g.cuda() for g in gradients(0))]
    step(LARS(ps, lr=0.3, weight_decay=0.01), ps, grads)
    oracle = Loop(parameters())
    oracle.step(gradients(0), decayed=False, adapted=False)
    assert_near([p.cpu() for p in ps], oracle.values * 2)
    on_device = LARS(ps[len(SHAPES) :], lr=0.3, weight_decay=0.01)
    on_device.step()
    torch.cuda.set_sync_debug_mode("error")
    try:
        on_device.step()
    finally:
        torch.cuda.set_sync_debug_mode("default")
