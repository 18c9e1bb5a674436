"""What callers rely on: options, shapes, strides, errors, terms, autocast, AMP, pickling, double
backward."""

from __future__ import annotations

import copy
import inspect
import pickle
import warnings

import pytest
import torch
from embeddings import ARRANGED, draw
from gate import relative_error, truth

import barlow_fast
from barlow_fast import BarlowTwinsLoss, barlow_twins_loss


@pytest.fixture
def views():
    return draw("correlated", 24, 40, seed=1)


def test_public_names_and_signature():
    assert set(barlow_fast.__all__) >= {"BarlowTwinsLoss", "barlow_twins_loss", "explain"}
    parameters = inspect.signature(BarlowTwinsLoss).parameters
    assert {name: p.default for name, p in parameters.items()} == {
        "lambd": 0.0051, "scale": 1.0, "eps": 1e-5,
        "precision": "auto", "form": "auto", "backend": "auto",
        "process_group": None, "statistics": "global", "gradient": "exact",
        "layout": "auto", "off_diagonal_target": 0.0,
    }  # fmt: skip


def test_module_has_no_state_and_survives_copy_and_pickle(views):
    criterion = BarlowTwinsLoss(lambd=0.02, scale=0.5, form="gram")
    assert not list(criterion.parameters())
    assert not list(criterion.buffers())
    assert not criterion.state_dict()
    expected = criterion(*views)
    for other in (copy.deepcopy(criterion), pickle.loads(pickle.dumps(criterion))):
        assert torch.equal(other(*views), expected)
    assert "lambd=0.02" in repr(criterion)


def test_terms_are_detached_means_included_and_add_up(views, backend):
    z_a, z_b = (z.requires_grad_() for z in views)
    loss, terms = barlow_twins_loss(z_a, z_b, 0.1, scale=3.0, backend=backend, return_terms=True)
    assert loss.requires_grad
    assert not any(t.requires_grad for t in terms)
    d = z_a.shape[1]
    torch.testing.assert_close(loss.detach(), 3 * (terms.on_diagonal + 0.1 * terms.off_diagonal))
    torch.testing.assert_close(terms.on_diagonal_mean, terms.on_diagonal / d)
    torch.testing.assert_close(terms.off_diagonal_mean, terms.off_diagonal / (d * (d - 1)))
    exact = truth(z_a, z_b)
    assert relative_error(terms.off_diagonal, exact.off_diagonal) < 1e-5


def test_one_dimension_has_no_off_diagonal(backend):
    z = torch.randn(10, 1)
    _, terms = barlow_twins_loss(z, z, backend=backend, return_terms=True)
    assert abs(float(terms.off_diagonal)) < 1e-6
    assert float(terms.off_diagonal_mean) == pytest.approx(0, abs=1e-6)


@pytest.mark.filterwarnings("ignore:the last size of z_a")
@pytest.mark.parametrize("shape", [(6, 4, 40), (2, 3, 4, 40)])
def test_leading_sizes_are_samples(views, shape, backend):
    z_a, z_b = (z.reshape(shape).requires_grad_() for z in views)
    loss = barlow_twins_loss(z_a, z_b, backend=backend)
    loss.backward()
    assert z_a.grad.shape == shape
    assert torch.equal(loss.detach(), barlow_twins_loss(*views, backend=backend))


def test_feature_maps_warn_once(views):
    maps, tokens = ([z.reshape(shape) for z in views] for shape in ((2, 3, 4, 40), (6, 4, 40)))
    words = r"size of z_a and z_b, \(N, 3, 4, 40\), is D = 40"
    with pytest.warns(UserWarning, match=words) as seen:
        barlow_twins_loss(*maps)
    assert "z.movedim(1, -1).flatten(0, -2)" in str(seen[0].message)
    assert seen[0].filename == __file__
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        barlow_twins_loss(*tokens)
        compiled = torch.compile(barlow_twins_loss, backend="eager", fullgraph=True)
        assert torch.equal(compiled(*maps), barlow_twins_loss(*views))
    with warnings.catch_warnings(record=True) as seen:
        warnings.simplefilter("default")
        for _ in range(3):
            barlow_twins_loss(*maps)
    assert len(seen) == 1


@pytest.mark.parametrize("layout", ["transposed", "sliced", "rows_skipped", "expanded", "offset"])
def test_strides(layout, form, backend):
    base_a, base_b = draw("random", 30, 70, seed=6, dtype=torch.float64)

    def offset(z):
        return torch.cat([z.flatten().new_zeros(1), z.flatten()])[1:].view(30, 70)

    z_a, z_b = map(ARRANGED.get(layout, offset), (base_a, base_b))
    if layout == "expanded":
        z_a, z_b = base_a[:1].expand(30, 70), base_b
    z_a, z_b = z_a.detach().requires_grad_(), z_b.detach().requires_grad_()
    loss = barlow_twins_loss(z_a, z_b, form=form, backend=backend)
    grads = torch.autograd.grad(loss, (z_a, z_b))
    exact = truth(z_a, z_b)
    assert relative_error(loss.detach(), exact.loss) < 1e-12
    # One size for both: with one row repeated, one of the exact gradients is zero.
    size = float(torch.stack(exact[3:]).norm())
    for got, want in zip(grads, exact[3:], strict=True):
        assert float((got - want).norm()) < 1e-12 * size


def test_inputs_are_left_alone(views, backend):
    inputs = [z.clone().requires_grad_() for z in views]
    barlow_twins_loss(*inputs, backend=backend).backward()
    assert all(map(torch.equal, inputs, views))


@pytest.mark.parametrize("which", [0, 1])
def test_gradient_of_one_input_alone(which, form, views, backend):
    both = [z.clone().requires_grad_() for z in views]
    expected = torch.autograd.grad(barlow_twins_loss(*both, form=form, backend=backend), both)
    one = [z.clone() for z in views]
    one[which].requires_grad_()
    barlow_twins_loss(*one, form=form, backend=backend).backward()
    assert torch.equal(one[which].grad, expected[which])
    assert one[1 - which].grad is None


def test_the_same_tensor_twice(backend):
    z = torch.randn(16, 20, dtype=torch.float64, requires_grad=True)
    barlow_twins_loss(z, z, backend=backend).backward()
    exact = truth(z, z)
    assert relative_error(z.grad, exact.grad_a + exact.grad_b) < 1e-10


def test_upstream_gradient_scales(views, backend):
    z_a, z_b = (z.double().requires_grad_() for z in views)
    grads = [
        torch.autograd.grad(factor * barlow_twins_loss(z_a, z_b, backend=backend), z_a)[0]
        for factor in (1.0, -7.5)
    ]
    torch.testing.assert_close(grads[1], -7.5 * grads[0])


def test_double_backward_is_refused(views, backend):
    z_a, z_b = (z.requires_grad_() for z in views)
    loss = barlow_twins_loss(z_a, z_b, backend=backend)
    (grad,) = torch.autograd.grad(loss, z_a, create_graph=True)
    with pytest.raises(RuntimeError, match="cannot be differentiated twice"):
        grad.sum().backward()


def test_changing_an_input_in_place_before_backward_is_noticed(views, backend):
    z_a = views[0].clone().requires_grad_()
    z = z_a * 1
    loss = barlow_twins_loss(z, views[1], backend=backend)
    z.add_(1)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        loss.backward()


@pytest.mark.parametrize(
    ("arguments", "error", "words"),
    [
        ((torch.zeros(4, 3), torch.zeros(4, 5)), ValueError, r"same shape.*\(4, 3\).*\(4, 5\)"),
        ((torch.zeros(1, 3), torch.zeros(1, 3)), ValueError, "at least 2 samples.*N = 1"),
        ((torch.zeros(0, 3), torch.zeros(0, 3)), ValueError, "at least 2 samples.*N = 0"),
        ((torch.zeros(4, 0), torch.zeros(4, 0)), ValueError, "D, the last size"),
        ((torch.zeros(4), torch.zeros(4)), ValueError, r"\(N, D\)"),
        ((torch.zeros(4, 3, dtype=torch.int64),) * 2, TypeError, "z_a must be float64.*int64"),
        ((torch.zeros(4, 3) * 1j,) * 2, TypeError, "z_a must be float64.*complex64"),
        ((torch.zeros(4, 3), torch.zeros(4, 3) > 0), TypeError, "z_b must be float64.*bool"),
        ((torch.zeros(4, 3), [[0.0] * 3] * 4), TypeError, "z_b must be a torch.Tensor.*list"),
        ((torch.zeros(4, 3).to_sparse(), torch.zeros(4, 3)), TypeError, "dense"),
        ((torch.zeros(4, 3), torch.zeros(4, 3).to("meta")), ValueError, "one device.*cpu.*meta"),
    ],
)  # fmt: skip
def test_bad_inputs(arguments, error, words):
    with pytest.raises(error, match=words):
        barlow_twins_loss(*arguments)


OTHER_FORM = "layout='rows' computes the gram form, but form='correlation'"


@pytest.mark.parametrize(
    ("options", "error", "words"),
    [
        ({"form": "grams"}, ValueError, "form must be one of.*'grams'"),
        ({"precision": "fp8"}, ValueError, "precision must be one of.*'fp8'"),
        ({"backend": "cuda"}, ValueError, "backend must be one of.*'cuda'"),
        ({"statistics": "none"}, ValueError, "statistics must be one of.*'none'"),
        ({"gradient": "half"}, ValueError, "gradient must be one of.*'half'"),
        ({"eps": -1e-5}, ValueError, r"eps must be from 0 to 1e\+100, got -1e-05"),
        ({"lambd": float("nan")}, ValueError, "lambd must be finite.*nan"),
        ({"scale": float("inf")}, ValueError, "scale must be finite.*inf"),
        ({"lambd": [0.1]}, TypeError, "lambd must be a Python number.*list"),
        ({"lambd": torch.ones(2)}, TypeError, r"lambd must be.*one element.*shape \(2,\)"),
        ({"lambd": torch.tensor(0.1, requires_grad=True)}, TypeError, "requires_grad=True"),
        ({"lambd": torch.tensor(float("inf"))}, ValueError, "lambd must be finite.*inf"),
        ({"scale": torch.tensor(0.1)}, TypeError, "scale must be a Python number.*Tensor"),
        ({"lambd": True}, TypeError, "lambd must be a Python number.*bool"),
        ({"backend": "triton"}, RuntimeError, "backend='triton' cannot be used here"),
        ({"layout": "columns"}, ValueError, "layout must be one of"),
        ({"layout": "rows", "form": "correlation"}, ValueError, OTHER_FORM),
    ],
)
def test_bad_options(options, error, words, views):
    with pytest.raises(error, match=words):
        barlow_twins_loss(*views, **options)
    with pytest.raises(error, match=words):
        BarlowTwinsLoss(**options)(*views)


@pytest.mark.parametrize("criterion", [barlow_twins_loss, BarlowTwinsLoss])
def test_process_groups_of_the_wrong_kind(criterion, views):
    arguments = views if criterion is barlow_twins_loss else ()
    with pytest.raises(TypeError, match=r"process_group must be None, 'world', a torch.*got int"):
        criterion(*arguments, process_group=3)


def test_world_without_torch_distributed(views):
    criterion = BarlowTwinsLoss(process_group="world")
    assert pickle.loads(pickle.dumps(criterion)).process_group == "world"
    assert "layout='auto'" in repr(criterion)
    with pytest.raises(RuntimeError, match=r"call torch\.distributed\.init_process_group first"):
        criterion(*views)


def test_differing_dtypes_are_promoted(views, backend):
    z_a, z_b = views
    mixed = barlow_twins_loss(z_a.double(), z_b, backend=backend)
    assert mixed.dtype == torch.float64
    half = z_b.bfloat16().requires_grad_()
    barlow_twins_loss(z_a, half, backend=backend).backward()
    assert half.grad.dtype == torch.bfloat16


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_autocast_sets_the_operand_type(dtype, views, backend):
    z_a, z_b = (z.requires_grad_() for z in views)
    with torch.autocast("cpu", dtype):
        loss = barlow_twins_loss(z_a, z_b, backend=backend)
    precision = "bf16" if dtype == torch.bfloat16 else "fp16"
    explicit = barlow_twins_loss(z_a, z_b, precision=precision, backend=backend)
    assert loss.dtype == torch.float32
    assert torch.equal(loss, explicit)
    assert not torch.equal(loss, barlow_twins_loss(z_a, z_b, backend=backend))
    loss.backward()
    assert z_a.grad.dtype == torch.float32


def test_autocast_of_another_device_type_changes_nothing(views, backend):
    expected = barlow_twins_loss(*views, backend=backend)
    with torch.autocast("cuda", torch.float16, enabled=torch.cuda.is_available()):
        assert torch.equal(barlow_twins_loss(*views, backend=backend), expected)


def test_explicit_precision_beats_autocast(views, backend):
    expected = barlow_twins_loss(*views, backend=backend)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(barlow_twins_loss(*views, precision="fp32", backend=backend), expected)


def test_float32_matmul_precision_is_followed_and_left_alone(views, backend):
    z_a, z_b = views
    before = torch.get_float32_matmul_precision()
    try:
        torch.set_float32_matmul_precision("medium")
        medium = barlow_twins_loss(z_a, z_b, backend=backend)
        assert torch.get_float32_matmul_precision() == "medium"
    finally:
        torch.set_float32_matmul_precision(before)
    assert torch.equal(medium, barlow_twins_loss(z_a, z_b, precision="bf16", backend=backend))


def test_nothing_overflows_at_the_initial_loss_scale_in_half_precision(backend):
    """65536 is where GradScaler starts; implementations that hold dL/dC in fp16 overflow there."""
    z_a, z_b = draw("random", 64, 512, seed=3, dtype=torch.float16)
    exact = truth(z_a, z_b)
    z_a, z_b = (z.requires_grad_() for z in (z_a, z_b))
    with torch.autocast("cpu", torch.float16):
        loss = barlow_twins_loss(z_a, z_b, backend=backend)
    grads = torch.autograd.grad(loss * 65536.0, (z_a, z_b))
    for got, want in zip(grads, exact[3:], strict=True):
        assert relative_error(got.double() / 65536, want) < 2e-3


def test_grad_scaler_trains(backend):
    torch.manual_seed(0)
    model = torch.nn.Linear(32, 128)
    x = torch.randn(256, 32)
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-3)
    scaler = torch.amp.GradScaler("cpu", init_scale=65536.0)
    losses = []
    for _ in range(12):
        with torch.autocast("cpu", torch.float16):
            loss = barlow_twins_loss(model(x), model(x + 0.1), 0.05, backend=backend)
        optimizer.zero_grad()
        scaler.scale(loss).backward()
        scaler.step(optimizer)
        scaler.update()
        losses.append(loss.item())
    assert scaler.get_scale() >= 2048  # the weights' own fp16 gradients may cost a few halvings
    assert losses[-1] < losses[0]


def test_training_lowers_the_loss(backend):
    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Linear(16, 64), torch.nn.ReLU(), torch.nn.Linear(64, 128))
    optimizer = torch.optim.Adam(model.parameters(), lr=3e-3)
    criterion = BarlowTwinsLoss(backend=backend)
    x = torch.randn(48, 16)
    losses = []
    for _ in range(60):
        loss = criterion(*(model(x + 0.05 * torch.randn_like(x)) for _ in range(2)))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.5 * losses[0]
