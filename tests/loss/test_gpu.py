"""What a CUDA device must show of the loss; selected by `make gpu`, skipped without one.

The shapes of `PATHS` reach every way through the Triton kernels. Tests share them, because each new
shape and precision costs compilations, and those are most of the time this file takes.
"""

from __future__ import annotations

import functools
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from embeddings import KINDS, draw
from ended import SECONDS
from gate import EPS, FLOOR, LAMBDA, Result, assert_within_gate, ours, plain, relative_error, truth
from torch import Tensor

from barlow_fast import BarlowTwinsLoss, barlow_twins_loss, reference

pytestmark = pytest.mark.gpu

DEVICE = torch.device("cuda")
ROOT = Path(__file__).resolve().parents[2]
FLOAT, HALF, BFLOAT = torch.float32, torch.float16, torch.bfloat16

# Gram: both views in one launch and gradient programs that own whole columns, or stored operands
# and tiles. Correlation: all tiles of C split over N, or full tiles and a last, split wave.
PATHS = {
    "gram-owned": ("gram", 250, 1500),
    "gram-large": ("gram", 1200, 1500),
    "correlation-split": ("correlation", 3000, 100),
    "correlation-whole": ("correlation", 1900, 1660),
}
ONE_OF_EACH_FORM = ("gram-owned", "correlation-split")

# (precision, dtype of the inputs)
OPERANDS = {
    "fp32": ("fp32", FLOAT),
    "tf32": ("tf32", FLOAT),
    "bf16": ("bf16", FLOAT),
    "fp16": ("fp16", FLOAT),
    "bf16-inputs": ("bf16", BFLOAT),
    "fp64": ("fp64", torch.float64),
}
FEW_OPERANDS = ("fp32", "bf16-inputs")

all_paths = pytest.mark.parametrize("path", PATHS)
both_forms = pytest.mark.parametrize("path", ONE_OF_EACH_FORM)
few_operands = pytest.mark.parametrize("operands", FEW_OPERANDS)


@functools.lru_cache(maxsize=8)
def drawn(kind: str, n: int, d: int, seed: int) -> tuple[Tensor, ...]:
    return tuple(z.to(DEVICE) for z in draw(kind, n, d, seed, torch.float64))


def views(kind: str, n: int, d: int, seed: int = 0, dtype: torch.dtype = FLOAT) -> tuple:
    """Two views on the device. Nothing may write to them: the draws are shared."""
    return tuple(z.to(dtype) for z in drawn(kind, n, d, seed))


def problem(path: str, operands: str, kind: str = "random", seed: int = 0) -> tuple[tuple, dict]:
    """(views, options) of one path in one precision, on the Triton set."""
    form, n, d = PATHS[path]
    precision, dtype = OPERANDS[operands]
    options = {"precision": precision, "form": form, "backend": "triton"}
    return views(kind, n, d, seed, dtype), options


def assert_same_bits(got: Result | tuple, want: Result | tuple) -> None:
    for index, (x, y) in enumerate(zip(got, want, strict=True)):
        assert torch.equal(x, y), f"result {index} differs"


def assert_agree(got: tuple, want: tuple, backend: str) -> None:
    """Equal bits; what torch's own products add up in which order is not ours to promise."""
    if backend == "triton":
        assert_same_bits(got, want)
    for x, y in zip(got, want, strict=True):
        assert relative_error(x, y.double()) <= 1e-3


def assert_gate(kind: str, path: str, operands: str, backend: str) -> None:
    form, n, d = PATHS[path]
    precision, dtype = OPERANDS[operands]
    seeds = 5 if n * d < 1_000_000 else 3
    drawn = functools.partial(views, kind, n, d, dtype=dtype)
    assert_within_gate(drawn, precision, form, backend, seeds=seeds)


@pytest.mark.parametrize("operands", OPERANDS)
@pytest.mark.parametrize("kind", KINDS)
@all_paths
def test_gate_of_triton(path, kind, operands):
    assert_gate(kind, path, operands, "triton")


@pytest.mark.parametrize("operands", OPERANDS)
@pytest.mark.parametrize("kind", KINDS)
@both_forms
def test_gate_of_plain_torch(path, kind, operands):
    assert_gate(kind, path, operands, "aten")


def test_automatic_choices():
    """CUDA tensors go to the Triton kernels, float32 products follow torch's global setting."""
    z = views("random", *PATHS["gram-owned"][1:])
    before = torch.get_float32_matmul_precision()
    try:
        for setting, precision in (("highest", "fp32"), ("high", "tf32")):
            torch.set_float32_matmul_precision(setting)
            want = ours(*z, precision=precision, form="gram", backend="triton")
            assert_same_bits(ours(*z), want)
    finally:
        torch.set_float32_matmul_precision(before)


@pytest.mark.parametrize("backend", ["triton", "aten"])
@both_forms
def test_finite_differences(path, backend):
    """Central differences of the float64 loss along random directions are the gradient's product
    with them."""
    form, n, d = PATHS[path]
    z = views("random", n, d)
    grads = ours(*z, precision="fp32", form=form, backend=backend)[3:]
    generator = torch.Generator(DEVICE).manual_seed(1)
    step = 1e-5

    def loss(inputs: list[Tensor]) -> float:
        return float(reference.barlow_twins_loss(*inputs, LAMBDA, EPS))

    for view, grad in enumerate(grads):
        for _ in range(3):
            direction = torch.randn((n, d), generator=generator, device=DEVICE, dtype=torch.float64)
            ends = []
            for sign in (1, -1):
                moved = [x.double() for x in z]
                moved[view] = moved[view] + sign * step * direction
                ends.append(loss(moved))
            difference = (ends[0] - ends[1]) / (2 * step)
            # The product of a random direction and an error is about the size of that error.
            error = abs(difference - float((grad.double() * direction).sum()))
            assert error <= 1e-4 * float(grad.double().norm())


@pytest.mark.parametrize("dtype", [BFLOAT, HALF], ids=["bf16", "fp16"])
@pytest.mark.parametrize("inputs", ["float32", "half"])
@both_forms
def test_autocast_chooses_the_precision(path, inputs, dtype):
    form, n, d = PATHS[path]
    z = views("random", n, d, 0, dtype if inputs == "half" else FLOAT)
    with torch.autocast(DEVICE.type, dtype):
        got = ours(*z, form=form, backend="triton")
    assert got.loss.dtype == FLOAT
    precision = "bf16" if dtype == BFLOAT else "fp16"
    assert_same_bits(got, ours(*z, precision=precision, form=form, backend="triton"))


@both_forms
def test_grad_scaler_at_its_first_scale(path):
    """Float16 inputs under a loss scale of 65536: nothing overflows, no step is skipped."""
    form, n, d = PATHS[path]
    weights = [torch.nn.Parameter(z.float()) for z in views("random", n, d, 0, HALF)]
    before = [weight.detach().clone() for weight in weights]
    optimizer = torch.optim.SGD(weights, lr=1.0)
    scaler = torch.amp.GradScaler(DEVICE.type, init_scale=65536.0)
    z = [weight.half() for weight in weights]
    with torch.autocast(DEVICE.type, HALF):
        loss = barlow_twins_loss(*z, LAMBDA, eps=EPS, form=form, backend="triton")
    scaler.scale(loss).backward()
    scaler.unscale_(optimizer)
    exact, baseline = truth(*z), plain(*z, "fp16", form)
    for weight, true, base in zip(weights, exact[3:], baseline[3:], strict=True):
        assert weight.grad.isfinite().all()
        # Plain torch rounds the scaled gradient to half precision as well.
        base = (base * 65536).half().float() / 65536
        error, allowed = relative_error(weight.grad, true), 2 * relative_error(base, true)
        assert error <= allowed + FLOOR["fp16"]
    scaler.step(optimizer)
    scaler.update()
    assert scaler.get_scale() == 65536.0
    for weight, old in zip(weights, before, strict=True):
        assert not torch.equal(weight, old)


class Model(torch.nn.Module):
    def __init__(self, dimensions: int):
        super().__init__()
        self.encoder = torch.nn.Sequential(
            torch.nn.Linear(32, 64), torch.nn.Tanh(), torch.nn.Linear(64, dimensions, bias=False)
        )
        self.criterion = BarlowTwinsLoss(backend="triton", scale=0.5)

    def forward(self, x_a: Tensor, x_b: Tensor) -> tuple[Tensor, Tensor]:
        loss, terms = self.criterion(self.encoder(x_a), self.encoder(x_b), return_terms=True)
        return loss, terms.on_diagonal_mean


def test_inductor_with_dynamic_batch():
    torch.manual_seed(0)
    torch.compiler.reset()
    model = Model(100).to(DEVICE)
    parameters = list(model.parameters())
    compiled = torch.compile(model, fullgraph=True, dynamic=True)
    try:
        for n in (60, 48, 3000):  # both forms
            x_a = torch.randn(n, 32, device=DEVICE)
            x_b = x_a + torch.randn(n, 32, device=DEVICE)
            results = []
            for run in (compiled, model):
                loss, term = run(x_a, x_b)
                results.append((loss, term, *torch.autograd.grad(loss, parameters)))
            for got, want in zip(*results, strict=True):
                assert relative_error(got.detach(), want.detach().double()) <= 1e-4
    finally:
        torch.compiler.reset()


def gradient_step(inputs: tuple, options: dict) -> tuple[Tensor, ...]:
    loss = barlow_twins_loss(*inputs, LAMBDA, eps=EPS, **options)
    return loss.detach(), *torch.autograd.grad(loss, inputs)


def captured(inputs: tuple, options: dict) -> tuple[torch.cuda.CUDAGraph, tuple[Tensor, ...]]:
    """(graph, outputs) of one forward and backward pass, after the warm-up that a capture needs."""
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for _ in range(3):
            gradient_step(inputs, options)
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph, stream=stream):
        outputs = gradient_step(inputs, options)
    return graph, outputs


def assert_replays_equal_eager(path: str, operands: str, backend: str) -> None:
    z, options = problem(path, operands)
    options["backend"] = backend
    static = tuple(x.clone().requires_grad_() for x in z)
    graph, outputs = captured(static, options)
    for seed in (1, 2):
        fresh, _ = problem(path, operands, seed=seed)
        with torch.no_grad():
            for x, y in zip(static, fresh, strict=True):
                x.copy_(y)
        graph.replay()
        replayed = tuple(x.clone() for x in outputs)
        eager = gradient_step(tuple(x.clone().requires_grad_() for x in fresh), options)
        assert_agree(replayed, eager, backend)


@few_operands
@all_paths
def test_cuda_graph(path, operands):
    assert_replays_equal_eager(path, operands, "triton")


@both_forms
def test_cuda_graph_of_plain_torch(path):
    assert_replays_equal_eager(path, "bf16-inputs", "aten")


@pytest.mark.parametrize("backend", ["triton", "aten"])
@few_operands
@all_paths
def test_no_host_synchronisation(path, operands, backend):
    z, options = problem(path, operands)
    options["backend"] = backend
    inputs = tuple(x.clone().requires_grad_() for x in z)
    want = gradient_step(inputs, options)  # compiles and allocates
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("error")
    try:
        got = gradient_step(inputs, options)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert_agree(got, want, backend)


def on_late_stream(z: tuple, run: Callable[..., Result], stream: torch.cuda.Stream) -> Result:
    """What `run` makes, on a stream that is busy for a while, of inputs that arrive behind that."""
    late = tuple(torch.full_like(x, float("nan")) for x in z)
    with torch.cuda.stream(stream):
        run(*late)  # memory of this stream is allocated here, which may stop the device
        torch.cuda.synchronize()
        torch.cuda._sleep(200_000_000)
        for x, y in zip(late, z, strict=True):
            x.copy_(y)
        result = run(*late)
    # Launched, not run: the host did not wait, and no kernel can have seen its inputs yet.
    assert not stream.query()
    return result


@few_operands
@all_paths
def test_stream_other_than_the_default(path, operands):
    z, options = problem(path, operands)
    run = functools.partial(ours, **options)
    want = run(*z)
    stream = torch.cuda.Stream()
    got = on_late_stream(z, run, stream)
    stream.synchronize()
    assert_same_bits(got, want)


@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="one CUDA device")
@both_forms
def test_device_other_than_the_current(path):
    z, options = problem(path, "bf16-inputs")
    want = ours(*z, **options)
    assert torch.cuda.current_device() == 0
    got = ours(*(x.to("cuda:1") for x in z), **options)
    assert got.grad_a.device == torch.device("cuda:1")
    assert torch.cuda.current_device() == 0
    assert_same_bits([x.to(DEVICE) for x in got], want)


@pytest.mark.parametrize("operands", ["fp32", "tf32", "bf16-inputs"])
@all_paths
def test_equal_runs_give_equal_bits(path, operands):
    z, options = problem(path, operands, kind="correlated")
    want = ours(*z, **options)
    for _ in range(20):
        assert_same_bits(ours(*z, **options), want)
    streams = [torch.cuda.Stream() for _ in range(2)]
    torch.cuda.synchronize()
    results = []
    for stream in streams:
        with torch.cuda.stream(stream):
            results.append(ours(*z, **options))
    torch.cuda.synchronize()
    for result in results:
        assert_same_bits(result, want)


@pytest.mark.parametrize("bad", [float("nan"), float("inf")], ids=str)
@few_operands
@all_paths
def test_nan_and_inf_are_not_hidden(path, operands, bad):
    (z_a, z_b), options = problem(path, operands)
    z_a = z_a.clone()
    z_a[3, 4] = bad
    result = ours(z_a, z_b, **options)
    assert result.loss.isnan()
    assert result.grad_a[:, 4].isnan().all()


FIRST_CALL = """
import time
import torch
import barlow_fast

barlow_fast.warmup([(256, 8192)], dtype=torch.bfloat16, device="cuda")
z = [torch.randn(256, 8192, device="cuda").bfloat16().requires_grad_() for _ in range(2)]
torch.cuda.synchronize()
start = time.perf_counter()
barlow_fast.barlow_twins_loss(*z).backward()
torch.cuda.synchronize()
print("milliseconds:", (time.perf_counter() - start) * 1e3)
"""


def test_first_call_after_warmup_is_quick():
    """In a process of its own: in this one, other tests have warmed everything up."""
    command = [sys.executable, "-c", FIRST_CALL]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=SECONDS)
    assert done.returncode == 0, done.stderr[-2000:]
    assert float(done.stdout.split("milliseconds:")[1]) < 50
