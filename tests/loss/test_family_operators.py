"""The losses of any number of views in torch's programs: opcheck, torch.compile, fake tensors,
autocast, GradScaler, copies; the same bits on every route."""

from __future__ import annotations

import copy
import pickle

import pytest
import torch
from test_family import LOSSES, drawn, every_loss
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils.flop_counter import FlopCounterMode

import barlow_fast
from barlow_fast import ops, vicreg_loss
from barlow_fast.forms.family import ViewOptions

NAMES = {"barlow twins": 3, "target": 2, "vicreg": 2, "frossl": 2, "mixed": 3}


def options_of(name: str, form: str, precision: str, backend: str) -> ViewOptions:
    loss = {"barlow twins": "barlow_twins", "target": "barlow_twins", "mixed": "mixed_barlow_twins"}
    target = -1.0 if name == "target" else 0.0
    return ViewOptions(loss.get(name, name), 1.0, target, 1e-5, form, precision, backend)


def weights_of(name: str) -> torch.Tensor:
    weights = {"vicreg": [20.0, 10.0, 3.0], "frossl": [1.4], "mixed": [0.02, 1.7, 0.3]}
    return torch.tensor(weights.get(name, [0.02]), dtype=torch.float64)


@pytest.mark.parametrize("form", ["gram", "correlation"])
@pytest.mark.parametrize("precision", ["fp32", "fp64"])
@every_loss
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_opcheck(name, precision, form, backend):
    dtype = torch.float64 if precision == "fp64" else torch.float32
    views, permutation = drawn(NAMES[name], 9, 11, dtype=dtype)
    permutation = permutation if name == "mixed" else None
    options, weights = options_of(name, form, precision, backend), weights_of(name)
    torch.library.opcheck(ops.family.operator, (views, permutation, weights, *options))
    plain = [z.detach() for z in views]
    _, _, *kept = ops.family.operator(plain, permutation, weights, *options)
    gradient = getattr(torch.ops, ops.family.operator._opoverload.namespace).views_backward_2
    for need in ([True] * len(views), [True] + [False] * (len(views) - 1)):
        arguments = (torch.ones((), dtype=dtype), plain, permutation, kept, weights, *options, need)
        torch.library.opcheck(gradient.default, arguments)


@every_loss
def test_both_routes_give_the_same_bits(name, backend):
    views, permutation = drawn(NAMES[name], 33, 65, dtype=torch.float32)
    permutation = permutation if name == "mixed" else None
    options, weights = options_of(name, "auto", "fp32", backend), weights_of(name)
    eager = ops.family.eager(permutation, tuple(weights.tolist()), options, *views)[0]
    operator = ops.family.operator(views, permutation, weights, *options)[0]
    assert torch.equal(eager, operator)
    gradients = (torch.autograd.grad(loss, views) for loss in (eager, operator))
    assert all(torch.equal(x, y) for x, y in zip(*gradients, strict=True))


def test_operators_refuse_what_they_did_not_return(backend):
    views, _ = drawn(2, 6, 8, dtype=torch.float32)
    plain = [z.detach() for z in views]
    options, weights = options_of("vicreg", "gram", "fp32", backend), weights_of("vicreg")
    _, _, *kept = ops.family.operator(plain, None, weights, *options)
    gradient = getattr(torch.ops, ops.family.operator._opoverload.namespace).views_backward_2
    one, need = torch.ones(()), [True, True]
    for change, words in (
        (lambda k: k[:-1], "kept 7 tensors"),
        (lambda k: [*k[:-1], k[-1][:, :3]], r"kept\[6\] must be as the forward operator"),
        (lambda k: [k[0].double(), *k[1:]], r"kept\[0\] must be as the forward operator"),
    ):
        with pytest.raises(ValueError, match=words):
            gradient(one, plain, None, change(kept), weights, *options, need)
    for given, words in (
        ((plain, None, weights[:1]), r"weights must be torch.float64 \(3,\)"),
        ((plain, None, weights.float()), r"weights must be torch.float64 \(3,\)"),
        (([], None, weights), "at least one tensor"),
        (([plain[0], plain[1][:, :4]], None, weights), "of one shape"),
        ((plain, torch.arange(6), weights), "permutation must be None"),
    ):
        with pytest.raises(ValueError, match=words):
            ops.family.operator(*given, *options)
    with pytest.raises(ValueError, match="loss must be one of"):
        ops.family.operator(plain, None, weights[:1], *options._replace(loss="simclr"))
    with pytest.raises(ValueError, match="frossl takes 2 views, got 1"):
        ops.family.operator(plain[:1], None, weights[:1], *options._replace(loss="frossl"))


@pytest.mark.parametrize(
    "compiler", ["aot_eager", pytest.param("inductor", marks=pytest.mark.slow)]
)
@pytest.mark.parametrize("shape", [(16, 40), (70, 10)], ids=["gram", "correlation"])
@every_loss
def test_compile_fullgraph_gives_the_same_numbers(name, shape, compiler, backend):
    torch.compiler.reset()
    views, permutation = drawn(NAMES[name], *shape, dtype=torch.float32)

    def step(views, permutation):
        loss, terms = LOSSES[name].ours(
            [torch.tanh(z) for z in views], permutation, backend=backend
        )
        return 2 * loss, terms[0]

    want, want_term = step(views, permutation)
    expected = torch.autograd.grad(want, views)
    compiled = torch.compile(step, backend=compiler, fullgraph=True)
    got, term = compiled(views, permutation)
    torch.testing.assert_close(got, want, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(term, want_term, rtol=1e-5, atol=1e-6)
    for x, y in zip(torch.autograd.grad(got, views), expected, strict=True):
        torch.testing.assert_close(x, y, rtol=1e-4, atol=1e-5)


def test_a_changing_weight_and_batch_compile_few_graphs(backend):
    torch.compiler.reset()
    counter = torch._dynamo.testing.CompileCounterWithBackend("aot_eager")

    def step(views, invariance):
        return vicreg_loss(views, None, invariance, backend=backend)

    compiled = torch.compile(step, backend=counter, fullgraph=True, dynamic=True)
    for i, n in enumerate((12, 20, 31, 44)):
        views, _ = drawn(2, n, 50, dtype=torch.float32)
        weight = 20.0 + i
        assert torch.equal(compiled(views, weight), step(views, weight))
    assert counter.frame_count <= 2


@every_loss
def test_autocast_decides_on_the_products(name, backend):
    views, permutation = drawn(NAMES[name], 20, 70, dtype=torch.float32)
    with torch.autocast("cpu", torch.bfloat16):
        got, _ = LOSSES[name].ours(views, permutation, backend=backend)
    want, _ = LOSSES[name].ours(views, permutation, backend=backend, precision="bf16")
    assert torch.equal(got, want)
    assert got.dtype == torch.float32
    got.backward()
    assert all(z.grad.dtype == torch.float32 for z in views)


def test_fake_tensors_know_shapes_and_dtypes():
    with FakeTensorMode():
        z = torch.empty(20, 30, dtype=torch.bfloat16)
        loss, terms = vicreg_loss([z, z, z], return_terms=True)
    assert loss.shape == ()
    assert loss.dtype == torch.float32
    assert terms.covariance.dtype == torch.float32


def test_flops_are_those_of_the_products():
    views, _ = drawn(4, 8, 100, dtype=torch.float32)
    with FlopCounterMode(display=False) as counter:
        vicreg_loss(views, backend="cpu", form="gram").backward()
    assert counter.get_total_flops() == 4 * (8 * 8 * 100 + 2 * 8 * 8 * 100)


def test_scaled_losses_unscale_exactly():
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**14)
    views, _ = drawn(3, 9, 12, dtype=torch.float32)
    loss = vicreg_loss(views)
    want = torch.autograd.grad(loss, views)
    scaler.scale(vicreg_loss(views)).backward()
    for z, g in zip(views, want, strict=True):
        torch.testing.assert_close(z.grad / 2.0**14, g, rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize(
    "module",
    [
        barlow_fast.VICRegLoss(10.0, eps=1e-3),
        barlow_fast.FroSSLLoss(2.0),
        barlow_fast.MixedBarlowTwinsLoss(0.1, mixing=3.0),
    ],
    ids=lambda module: type(module).__name__,
)
def test_modules_are_copied_and_pickled(module):
    for copied in (copy.deepcopy(module), pickle.loads(pickle.dumps(module))):
        assert repr(copied) == repr(module)
        assert copied.options == module.options
    assert not module.state_dict()
