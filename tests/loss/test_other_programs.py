"""The loss inside other people's programs: their settings, transforms, devices and compilers."""

from __future__ import annotations

import contextlib
import functools
import io

import pytest
import torch
from embeddings import draw
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.func import grad, hessian, jacfwd, jacrev, jvp, vmap
from torch.utils.flop_counter import FlopCounterMode

from barlow_fast import (
    BarlowTwinsLoss,
    barlow_twins_loss,
    doctor,
    explain,
    frossl_loss,
    mixed_barlow_twins_loss,
    ops,
    reference,
    vicreg_loss,
)
from barlow_fast.adapters import lightly, mmpretrain, monai
from barlow_fast.adapters.standardised import deviation_loss
from barlow_fast.kernels import aten, cpu
from barlow_fast.kernels.precision import float32_matmul_precision

both_forms = pytest.mark.parametrize("shape", [(9, 14), (14, 9)], ids=["gram", "correlation"])
WAY_OUT = r"barlow_fast: .*barlow_fast\.reference\.barlow_twins_loss"


def set_backend(path, value):
    functools.reduce(getattr, path.split("."), torch.backends).fp32_precision = value


@pytest.fixture
def float32_settings():
    """The settings of float32 products, put back to what torch starts with."""
    yield
    torch.set_float32_matmul_precision("highest")
    torch.backends.fp32_precision = "none"
    for path in ("cudnn", "cuda.matmul", "mkldnn.matmul"):
        set_backend(path, "none")
    assert float32_matmul_precision("cpu") == float32_matmul_precision("cuda") == "highest"


# (what a program sets, precision on a CPU before it is executed, precision on a CUDA device)
SETTINGS = {
    "nothing": (lambda: None, "fp32", "fp32"),
    "cuda.matmul=tf32": (lambda: set_backend("cuda.matmul", "tf32"), "fp32", "tf32"),
    "mkldnn.matmul=bf16": (lambda: set_backend("mkldnn.matmul", "bf16"), "bf16", "fp32"),
    "mkldnn.matmul=tf32": (lambda: set_backend("mkldnn.matmul", "tf32"), "tf32", "fp32"),
    "cudnn=tf32": (lambda: set_backend("cudnn", "tf32"), "fp32", "tf32"),
    "all=tf32": (lambda: setattr(torch.backends, "fp32_precision", "tf32"), "tf32", "tf32"),
    "cuda.matmul=ieee": (lambda: set_backend("cuda.matmul", "ieee"), "fp32", "fp32"),
    "allow_tf32": (lambda: setattr(torch.backends.cuda.matmul, "allow_tf32", True), "fp32", "tf32"),
    "high": (lambda: torch.set_float32_matmul_precision("high"), "tf32", "tf32"),
    "medium": (lambda: torch.set_float32_matmul_precision("medium"), "bf16", "bf16"),
}  # fmt: skip
WORDS = {"fp32": "highest", "tf32": "high", "bf16": "medium"}


@pytest.mark.parametrize("name", SETTINGS)
def test_float32_precision_is_that_of_the_device(name, backend, float32_settings):
    apply, on_cpu, on_cuda = SETTINGS[name]
    z_a, z_b = draw("random", 16, 24)
    fast = backend == "cpu" and cpu.multiplies_tf32()
    executed = "fp32" if on_cpu == "tf32" and not fast else on_cpu
    expected = barlow_twins_loss(z_a, z_b, precision=executed, backend=backend)
    apply()
    assert float32_matmul_precision("cpu") == WORDS[on_cpu]
    assert explain(16, 24, backend=backend).precision == executed
    assert explain(16, 24, device="cuda", backend="aten").precision == on_cuda
    assert torch.equal(barlow_twins_loss(z_a, z_b, backend=backend), expected)
    torch.compiler.reset()
    compiled = torch.compile(barlow_twins_loss, backend="aot_eager", fullgraph=True)
    assert torch.equal(compiled(z_a, z_b, backend=backend), expected)
    deviation_loss(z_a, z_b, 0.1, backend=backend)
    # Products of plain torch set it for themselves and put it back.
    aten.product(z_a.T, z_b, "fp32")
    aten.product(z_a.T, z_b, "tf32")
    assert float32_matmul_precision("cpu") == WORDS[on_cpu]
    assert float32_matmul_precision("cuda") == WORDS[on_cuda]


@both_forms
def test_both_passes_run_in_the_precision_of_the_first(shape, backend, float32_settings):
    z_a, z_b = draw("random", *shape)
    expected = plain_gradient(lambda a, b: barlow_twins_loss(a, b, backend=backend), z_a, z_b)
    loss = barlow_twins_loss(z_a.requires_grad_(), z_b, backend=backend)
    torch.set_float32_matmul_precision("medium")
    assert torch.equal(torch.autograd.grad(loss, z_a)[0], expected)


def test_the_doctor_reads_the_precision_of_each_device(float32_settings):
    set_backend("cuda.matmul", "tf32")
    assert "float32 matmul precision: highest (cpu), high (cuda)" in doctor.environment()


def test_a_setting_of_all_backends_still_reaches_products_later(float32_settings):
    torch.backends.fp32_precision = "tf32"
    aten.product(torch.ones(2, 2), torch.ones(2, 2), "fp32")
    torch.backends.fp32_precision = "ieee"
    assert float32_matmul_precision("cpu") == float32_matmul_precision("cuda") == "highest"


# A weight that changes from step to step.
class Matrix(nn.Module):
    """mmpretrain's loss takes the matrix."""

    def __init__(self):
        super().__init__()
        self.loss = mmpretrain.CrossCorrelationLoss()

    def forward(self, z_a, z_b):
        return self.loss(z_a.T @ z_b / z_a.shape[0])


class Function(nn.Module):
    lambd = 0.0

    def forward(self, z_a, z_b):
        return barlow_twins_loss(z_a, z_b, self.lambd, scale=2.0)


WEIGHTED = {
    "module": (BarlowTwinsLoss, "lambd"),
    "function": (Function, "lambd"),
    "lightly": (lightly.BarlowTwinsLoss, "lambda_param"),
    "monai": (monai.BarlowTwinsLoss, "lambd"),
    "mmpretrain": (Matrix, "loss.lambd"),
}


@pytest.mark.parametrize("kind", [float, torch.tensor], ids=["float", "tensor"])
@pytest.mark.parametrize("name", WEIGHTED)
@pytest.mark.parametrize(
    "compiler", ["aot_eager", pytest.param("inductor", marks=pytest.mark.slow)]
)
def test_a_weight_that_changes_compiles_no_graph_of_its_own(name, kind, compiler):
    torch.compiler.reset()
    torch._dynamo.utils.counters.clear()
    make, path = WEIGHTED[name]
    criterion = make()
    *parents, attribute = path.split(".")
    owner = functools.reduce(getattr, parents, criterion)
    compiled = torch.compile(criterion, backend=compiler, fullgraph=True)
    z = [x.requires_grad_() for x in draw("random", 12, 20)]
    for step in range(12):
        setattr(owner, attribute, kind(0.01 * (step + 1)))
        loss = compiled(*z)
        expected = criterion(*z)
        torch.testing.assert_close(loss, expected, rtol=1e-6, atol=0)
        gradients = (torch.autograd.grad(each, z) for each in (loss, expected))
        for got, want in zip(*gradients, strict=True):
            torch.testing.assert_close(got, want, rtol=1e-5, atol=1e-9)
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] <= 2


def test_a_tensor_weighs_as_its_number(backend):
    z_a, z_b = (z.requires_grad_() for z in draw("random", 9, 14))
    expected = barlow_twins_loss(z_a, z_b, 0.25, backend=backend)
    wanted = torch.autograd.grad(expected, z_a, retain_graph=True)[0]
    for lambd in (torch.tensor(0.25), torch.tensor([0.25], dtype=torch.float64)):
        loss = barlow_twins_loss(z_a, z_b, lambd, backend=backend)
        assert torch.equal(loss, expected)
        assert torch.equal(torch.autograd.grad(loss, z_a)[0], wanted)
    assert torch.equal(BarlowTwinsLoss(torch.tensor(0.25), backend=backend)(z_a, z_b), expected)


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_operators_with_a_tensor_as_weight(form, backend):
    z_a, z_b = (z.requires_grad_() for z in draw("random", 12, 17))
    lambd, options = torch.tensor(0.0051, dtype=torch.float64), (1e-5, form, "fp32", backend)
    torch.library.opcheck(ops.barlow_twins.forward_tensor, (z_a, z_b, lambd, *options))
    by_number = ops.barlow_twins.forward(z_a, z_b, 0.0051, *options)
    by_tensor = ops.barlow_twins.forward_tensor(z_a, z_b, lambd, *options)
    assert all(torch.equal(x, y) for x, y in zip(by_number, by_tensor, strict=True))
    # CUDA graphs would keep the value that the host has read.
    tags = ops.barlow_twins.forward_tensor._opoverload.tags
    assert torch.Tag.cudagraph_unsafe in tags
    assert torch.Tag.cudagraph_unsafe not in ops.barlow_twins.forward._opoverload.tags


# torch.func and its relatives.
def mixed(z_a, z_b, backend):
    permutation = torch.arange(z_a.shape[-2]).flip(0)
    mixture = 0.3 * z_a + 0.7 * z_b.flip(-2)
    return mixed_barlow_twins_loss(z_a, z_b, mixture, permutation, 0.3, backend=backend)


LOSSES = {
    "core": lambda z_a, z_b, backend: barlow_twins_loss(z_a, z_b, 0.1, backend=backend),
    "standardised": lambda z_a, z_b, backend: deviation_loss(z_a, z_b, 0.1, backend=backend),
    "three views": lambda z_a, z_b, backend: barlow_twins_loss(
        [z_a, z_b, z_b.flip(-2)], lambd=0.1, backend=backend
    ),
    "vicreg": lambda z_a, z_b, backend: vicreg_loss(z_a, z_b, backend=backend),
    "frossl": lambda z_a, z_b, backend: frossl_loss([z_a, z_b], backend=backend),
    "mixed": mixed,
}


@pytest.fixture(params=LOSSES)
def loss_of(request, backend):
    return lambda z_a, z_b: LOSSES[request.param](z_a, z_b, backend)


def plain_gradient(loss, z_a, z_b):
    z_a = z_a.detach().requires_grad_()
    return torch.autograd.grad(loss(z_a, z_b), z_a)[0]


@both_forms
def test_first_derivatives_by_torch_func(loss_of, shape):
    z_a, z_b = draw("random", *shape)
    expected = plain_gradient(loss_of, z_a, z_b)
    assert torch.equal(grad(loss_of)(z_a, z_b), expected)
    assert torch.equal(jacrev(loss_of)(z_a, z_b), expected)


@pytest.mark.parametrize(
    "compiled", [False, pytest.param(True, marks=pytest.mark.slow)], ids=["eager", "compiled"]
)
def test_a_batch_of_losses_by_vmap(loss_of, compiled):
    draws = [draw("random", 9, 14, seed=seed) for seed in (1, 2, 3)]
    views = [torch.stack(view) for view in zip(*draws, strict=True)]
    found = []
    for function, arguments, whole in (
        (vmap(loss_of), views, True),
        (vmap(grad(loss_of)), views, False),  # no part of a graph on any torch
        (vmap(loss_of, in_dims=(0, None)), (views[0], views[1][0]), True),
    ):
        if compiled:
            torch.compiler.reset()  # what one leaves to eager mode, the next would as well
            function = torch.compile(function, backend="aot_eager", fullgraph=whole)
        found.append(function(*arguments))
    losses, gradients, against_one = found
    for index, (z_a, z_b) in enumerate(zip(*views, strict=True)):
        assert torch.equal(losses[index], loss_of(z_a, z_b))
        assert torch.equal(gradients[index], plain_gradient(loss_of, z_a, z_b))
        assert torch.equal(against_one[index], loss_of(z_a, views[1][0]))


def test_a_gradient_of_torch_func_in_a_whole_graph_is_refused_in_our_words(loss_of):
    torch.compiler.reset()
    compiled = torch.compile(grad(loss_of), backend="aot_eager", fullgraph=True)
    with pytest.raises(torch._dynamo.exc.Unsupported) as refusal:
        compiled(*draw("random", 9, 14))
    causes, error = [], refusal.value
    while error is not None:
        causes.append(str(error))
        error = error.__cause__ or error.__context__
    assert "without fullgraph=True torch.compile leaves them" in "\n".join(causes)


def test_a_batch_of_gradients(loss_of):
    z_a, z_b = (z.requires_grad_() for z in draw("random", 9, 14))
    weights = torch.tensor([1.0, -2.0, 0.5])
    found = torch.autograd.grad(loss_of(z_a, z_b), (z_a, z_b), weights, is_grads_batched=True)
    for got, z in zip(found, (z_a, z_b), strict=True):
        want = torch.autograd.grad(loss_of(z_a, z_b), z)[0]
        torch.testing.assert_close(got, weights[:, None, None] * want)


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.filterwarnings("ignore::torch.jit.TracerWarning")
def test_what_there_is_no_derivative_for_is_refused_in_our_words(loss_of):
    z_a, z_b = draw("random", 9, 14)

    def dual():
        with torch.autograd.forward_ad.dual_level():
            loss_of(torch.autograd.forward_ad.make_dual(z_a, z_b), z_b)

    for call in (
        lambda: jvp(loss_of, (z_a, z_b), (z_a, z_b)),
        lambda: jacfwd(loss_of)(z_a, z_b),
        lambda: hessian(loss_of)(z_a, z_b),
        lambda: grad(lambda z: grad(loss_of)(z, z_b).sum())(z_a),
        lambda: torch.jit.trace(loss_of, (z_a, z_b)),
        dual,
    ):
        with pytest.raises(RuntimeError, match=WAY_OUT):
            call()
    hessian(reference.barlow_twins_loss)(z_a[:, :3], z_b[:, :3])  # the way out


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_what_mmpretrains_matrix_loss_has_no_derivative_for_is_refused():
    c, loss = torch.eye(4), mmpretrain.CrossCorrelationLoss()
    for call in (lambda: jvp(loss, (c,), (c,)), lambda: grad(loss)(c)):
        with pytest.raises(RuntimeError, match=WAY_OUT):
            call()


def test_a_weight_has_no_batch_and_no_gradient():
    z_a, z_b = draw("random", 9, 14)
    for transform, lambd in ((vmap, torch.ones(3)), (grad, torch.ones(()))):
        with pytest.raises(TypeError, match="lambd must be"):
            transform(lambda lambd: barlow_twins_loss(z_a, z_b, lambd))(lambd)


# torch.export
class Exported(nn.Module):
    def __init__(self, **options):
        super().__init__()
        self.encoder = nn.Linear(6, 20)
        self.criterion = BarlowTwinsLoss(**options)

    def forward(self, x_a, x_b):
        return self.criterion(self.encoder(x_a), self.encoder(x_b))


def exported(model, dimension, strict=False):
    views = torch.randn(8, 6), torch.randn(8, 6)
    shapes = {"x_a": {0: dimension}, "x_b": {0: dimension}}
    return torch.export.export(model, views, dynamic_shapes=shapes, strict=strict).module()


@pytest.mark.parametrize("dimension", [torch.export.Dim("n", max=512), torch.export.Dim.AUTO])
def test_exports_with_a_dynamic_batch_ask_for_a_form(dimension, backend):
    with pytest.raises(RuntimeError, match=r"form='gram'.*form='correlation'.*Dim\('n', max"):
        exported(Exported(backend=backend), dimension)
    for form in ("gram", "correlation"):
        model = Exported(form=form, backend=backend)
        assert_equal_programs(exported(model, dimension), model, (3, 8, 40))


def assert_equal_programs(program, model, sizes):
    for n in sizes:
        views = torch.randn(n, 6), torch.randn(n, 6)
        assert torch.equal(program(*views), model(*views))


@pytest.mark.parametrize("strict", [False, True])
def test_a_batch_that_stays_on_one_side_exports_as_it_is(strict, backend):
    model = Exported(backend=backend)
    program = exported(model, torch.export.Dim("n", min=2, max=15), strict)
    assert_equal_programs(program, model, (3, 15))


# Devices and tensors without memory.
LARGE = (256, 1024)  # its outputs come from the pool


@pytest.mark.parametrize("shape", [(9, 14), (14, 9), LARGE])
def test_a_default_device_moves_nothing(shape, backend):
    z_a, z_b = (z.requires_grad_() for z in draw("random", *shape))
    expected = barlow_twins_loss(z_a, z_b, backend=backend)
    wanted = torch.autograd.grad(expected, z_a, retain_graph=True)[0]
    with torch.device("meta"):
        loss = barlow_twins_loss(z_a, z_b, backend=backend)
        gradient = torch.autograd.grad(loss, z_a)[0]
        deviation_loss(z_a, z_b, 0.1, backend=backend).backward()
    assert torch.equal(loss, expected)
    assert torch.equal(gradient, wanted)


@pytest.mark.parametrize("shape", [(9, 14), (14, 9), LARGE])
def test_meta_and_fake_tensors(shape, backend):
    with contextlib.suppress(RuntimeError):  # `cpu` says that it takes CPU tensors
        z = torch.empty(shape, device="meta", requires_grad=True)
        loss = barlow_twins_loss(z, z, backend=backend)
        assert backend == "aten"
        loss.backward()
        assert (loss.device.type, z.grad.shape) == ("meta", shape)
    z = torch.empty(shape, device="meta", requires_grad=True)
    assert barlow_twins_loss(z, z).is_meta
    with FakeTensorMode():
        z = torch.empty(shape, requires_grad=True)
        loss = barlow_twins_loss(z, z, torch.tensor(0.1), backend=backend)
        loss.backward()
    assert (loss.shape, loss.device.type, z.grad.shape) == ((), "cpu", shape)


@both_forms
def test_the_flop_counter_counts_the_products(shape, backend):
    z_a, z_b = draw("random", *shape)
    z_a.requires_grad_()
    n, d = shape
    with FlopCounterMode(display=False) as counter:
        loss = barlow_twins_loss(z_a, z_b, backend=backend)
        forward = counter.get_total_flops()
        loss.backward()
    small = min(n, d)
    symmetric = backend == "cpu" or small == d
    assert forward == (2 if symmetric else 4) * n * d * small
    assert counter.get_total_flops() - forward == 2 * n * d * small  # of one view
    with FlopCounterMode(display=False) as counter:
        deviation_loss(z_a, z_b, 0.1, backend=backend).backward()
    assert counter.get_total_flops() == forward + 2 * n * d * small


# Inputs with a history.
@both_forms
def test_embeddings_made_in_inference_mode(shape, loss_of):
    z_a, z_b = draw("random", *shape)
    expected = plain_gradient(loss_of, z_a, z_b)
    with torch.inference_mode():
        z_b = z_b.clone()
        loss_of(z_b, z_b)  # inside it nothing is saved
    assert torch.equal(plain_gradient(loss_of, z_a, z_b), expected)


def test_embeddings_changed_before_the_backward_pass(loss_of):
    z_a, z_b = draw("random", 9, 14)
    loss = loss_of(z_a.requires_grad_(), z_b)
    z_b.mul_(2)
    with pytest.raises(RuntimeError, match=r"an embedding was changed in place.*z\.clone\(\)"):
        loss.backward()


def test_distributed_tensors_are_refused_with_the_way_out(tmp_path):
    import torch.distributed as dist
    from torch.distributed.tensor import DTensor, Shard, init_device_mesh

    store = f"file://{tmp_path / 'store'}"
    dist.init_process_group("gloo", init_method=store, rank=0, world_size=1)
    try:
        mesh = init_device_mesh("cpu", (1,))
        z = DTensor.from_local(torch.randn(8, 4), mesh, [Shard(0)])
        with pytest.raises(TypeError, match=r"z_a is a DTensor.*z_a\.to_local\(\)"):
            barlow_twins_loss(z, z)
        assert barlow_twins_loss(z.to_local(), z.to_local()).ndim == 0
    finally:
        dist.destroy_process_group()


def test_a_large_gradient_has_a_storage_of_fixed_size(backend):
    """Documented in kernels/README.md: the pool lends memory, which cannot grow."""
    z_a, z_b = (z.requires_grad_() for z in draw("random", *LARGE))
    barlow_twins_loss(z_a, z_b, backend=backend).backward()
    if backend == "cpu":
        assert not z_a.grad.untyped_storage().resizable()
    z_a.grad.set_(z_a.grad.clone())
    z_a.grad.resize_(2 * LARGE[0], LARGE[1])
    torch.save(z_b.grad, io.BytesIO())
