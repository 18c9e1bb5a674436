"""What an installed wheel must do: run by `make wheel-test` with the Python of a fresh environment,
from outside the tree, with torch alone beside the wheel.

    python tests/wheel_check.py 2.10.0        # the version of torch that is expected
"""

from __future__ import annotations

import importlib
import pkgutil
import subprocess
import sys
from importlib import metadata
from pathlib import Path

import torch

import barlow_fast
import barlow_fast.adapters
from barlow_fast import barlow_twins_loss, ops, reference
from barlow_fast.kernels import KERNEL_SETS, why_unusable

TREE = Path(__file__).resolve().parents[1]
SHAPES = ((64, 256), (96, 40), (33, 1031))
# Both forms of float32 are within a few units of 1e-7 of float64 here.
TOLERANCE = {torch.float64: 1e-12, torch.float32: 1e-5}


def check_where_it_comes_from(expected_torch: str) -> None:
    installed = torch.__version__.split("+")[0]
    assert installed == expected_torch, f"torch {installed}, expected {expected_torch}"
    package = Path(barlow_fast.__file__).resolve().parent
    assert package != TREE / "barlow_fast", f"imported from the source tree: {package}"
    assert Path(sys.prefix).resolve() in package.parents, f"imported from {package}"
    assert metadata.version("barlow-fast") == barlow_fast.__version__


def check_kernels() -> None:
    problems = {name: why_unusable(name, torch.device("cpu")) for name in KERNEL_SETS}
    assert problems["cpu"] is None, f"native kernels: {problems['cpu']}"
    assert barlow_fast.explain(256, 8192).backend == "cpu"
    done = subprocess.run(
        [sys.executable, "-m", "barlow_fast", "doctor"], capture_output=True, text=True, cwd="/"
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "cpu      usable on cpu" in done.stdout, done.stdout
    assert "All usable kernel sets compute the right numbers." in done.stdout, done.stdout


def gradients(function, z_a, z_b):
    inputs = [z.clone().requires_grad_() for z in (z_a, z_b)]
    loss = function(*inputs)
    return [loss.detach(), *torch.autograd.grad(loss, inputs)]


def truth(z_a, z_b):
    return reference.barlow_twins_terms(z_a, z_b)[0]


def relative_error(values, truths) -> float:
    return max(
        ((value.double() - truth).norm() / truth.norm()).item()
        for value, truth in zip(values, truths, strict=True)
    )


def check_numbers() -> None:
    generator = torch.Generator().manual_seed(0)
    for n, d in SHAPES:
        z_a = torch.randn(n, d, generator=generator, dtype=torch.float64)
        z_b = z_a + 0.5 * torch.randn(n, d, generator=generator, dtype=torch.float64)
        for dtype, tolerance in TOLERANCE.items():
            pair = z_a.to(dtype), z_b.to(dtype)
            truths = gradients(truth, *(z.double() for z in pair))
            for form in ("gram", "correlation"):

                def ours(a, b, form=form):
                    return barlow_twins_loss(a, b, form=form, backend="cpu")

                error = relative_error(gradients(ours, *pair), truths)
                assert error < tolerance, f"{n} x {d} {dtype} {form}: {error:.1e}"


def check_compiled() -> None:
    z_a, z_b = torch.randn(2, 32, 128, generator=torch.Generator().manual_seed(1))
    criterion = barlow_fast.BarlowTwinsLoss()
    # The C++ compiler that inductor wants is no part of the environment; tracing is what is tested.
    compiled = torch.compile(criterion, fullgraph=True, backend="aot_eager")
    error = relative_error(
        gradients(compiled, z_a, z_b), [v.double() for v in gradients(criterion, z_a, z_b)]
    )
    assert error < 1e-6, f"compiled differs from eager by {error:.1e}"


def check_adapters() -> None:
    """All import beside torch alone, and one computes."""
    names = [module.name for module in pkgutil.iter_modules(barlow_fast.adapters.__path__)]
    assert "lightly" in names, names
    modules = {name: importlib.import_module(f"barlow_fast.adapters.{name}") for name in names}
    z_a, z_b = torch.randn(2, 16, 48, generator=torch.Generator().manual_seed(2))
    loss = modules["lightly"].BarlowTwinsLoss(lambda_param=0.0051)(z_a, z_b)
    assert abs(loss / truth(z_a.double(), z_b.double()) - 1) < 1e-5


def check_operator() -> None:
    z_a, z_b = (torch.randn(8, 24).requires_grad_() for _ in range(2))
    for form in ("gram", "correlation"):
        torch.library.opcheck(
            ops.barlow_twins.forward, (z_a, z_b, 0.0051, 1e-5, form, "fp32", "cpu")
        )


def main() -> None:
    (expected_torch,) = sys.argv[1:]
    check_where_it_comes_from(expected_torch)
    for check in (check_kernels, check_numbers, check_compiled, check_operator, check_adapters):
        check()
    python = ".".join(map(str, sys.version_info[:3]))
    print(f"torch {torch.__version__}, Python {python}: the wheel computes the right numbers")


if __name__ == "__main__":
    main()
