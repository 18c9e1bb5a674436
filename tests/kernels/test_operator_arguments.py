"""Operators refuse what their kernels could not read: every tensor's type, shape, layout and place,
every number's range, and outputs that overlap.

Without the checks these calls end the process, or damage its heap and return.
"""

from __future__ import annotations

import ast
import math
import os
import shutil
import subprocess
import sys
from pathlib import Path

import fuzz_operators
import pytest
import torch
from contract import native, prepared

from barlow_fast import ops
from barlow_fast.adapters import standardised
from barlow_fast.kernels import cpu

ROOT = Path(__file__).resolve().parents[2]
N, D = 6, 8
DOUBLE = torch.float64


def call(name: str, *arguments) -> None:
    getattr(torch.ops.barlow_fast_cpu, name)(*arguments)


def z(n: int = N, d: int = D, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    return torch.ones(n, d, dtype=dtype)


def zeros(*sizes: int, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    return torch.zeros(sizes, dtype=dtype)


def gradients(name: str, **changed):
    """Arguments of one of the two gradient operators, with some replaced."""
    gram = name == "gram_gradients"
    arguments = {"z_a": z(), "z_b": z(), "statistics": zeros(7, D)}
    if gram:
        arguments |= {"grams": zeros(2, N, N)}
    else:
        arguments |= {"matrix": zeros(D, D), "squares": zeros(2, D, dtype=DOUBLE)}
    arguments |= {"grad_scale": zeros(1), "coefficient": 0.1, "slope": 0.1, "offset": 0.1}
    if gram:
        arguments |= {"eps": 1e-5, "operand": 1, "dimensions": D, "projected": True}
    else:
        arguments |= {"operand": 1}
    arguments |= {"grad_a": z(), "grad_b": z()}
    assert set(changed) <= set(arguments)
    return (arguments | changed).values()


def view_gradients(**changed):
    """Arguments of that operator for three views and two gradients, with some replaced."""
    arguments = {
        "views": [z(), z(), z()], "statistics": zeros(3, 3, D), "grams": zeros(1, N, N),
        "products": zeros(1, dtype=DOUBLE), "links": [0, 1, 0, 2, 1, 1], "weights": zeros(3, D),
        "added": zeros(0, D), "grad_scale": zeros(1), "eps": 1e-5, "operand": 1, "dimensions": D,
        "projected": True, "grads": [z(), z()],
    }  # fmt: skip
    assert set(changed) <= set(arguments)
    return ("view_gradients", *(arguments | changed).values())


SHARED = zeros(5, D, dtype=DOUBLE)
NATIVE_CALLS = {
    "statistics of 16 bits": (
        "statistics", z(), z(), 1, 1e-5, zeros(7, D, dtype=torch.float16), zeros(2, dtype=DOUBLE),
    ),
    "standardisation in 16 bits": (
        "standardisation", SHARED, 2, 1e-5, zeros(7, D, dtype=torch.bfloat16),
        zeros(2, dtype=DOUBLE),
    ),
    "no rows": ("column_moments", z(0), z(0), 1, SHARED),
    "no columns": ("column_moments", z(N, 0), z(N, 0), 1, zeros(5, 0, dtype=DOUBLE)),
    "one view is longer": ("column_moments", z(), z(N + 1), 1, SHARED),
    "an unknown operand": ("column_moments", z(), z(), 5, SHARED),
    "count 0": (
        "standardisation", SHARED, 0, 1e-5, zeros(7, D), zeros(2, dtype=DOUBLE),
    ),
    "eps is NaN": (
        "standardisation", SHARED, 2, math.nan, zeros(7, D), zeros(2, dtype=DOUBLE),
    ),
    "vectors of another size": ("standardise", z(), zeros(D - 1), zeros(D), zeros(D), z()),
    "vectors of another type": ("standardise", z(), *3 * [zeros(D, dtype=DOUBLE)], z()),
    "Gram matrices of another type": (
        "gram_pair", z(dtype=DOUBLE), z(dtype=DOUBLE), zeros(7, D, dtype=DOUBLE), 0,
        zeros(2, N, N, dtype=torch.bfloat16), zeros(2, dtype=DOUBLE), zeros(1, dtype=DOUBLE),
    ),
    "an inner product in float32": (
        "gram_pair", z(), z(), zeros(7, D), 1, zeros(2, N, N), zeros(2), zeros(1),
    ),
    "centres of three matrices": (
        "gram_pair", z(), z(), zeros(7, D), 1, zeros(2, N, N), zeros(3), zeros(1, dtype=DOUBLE),
    ),
    "one Gram matrix of two": (
        "gram_terms", z(), z(), zeros(7, D), zeros(1, 2, dtype=DOUBLE), 0.1, 1, zeros(1, N, N),
        zeros(2), *3 * [zeros(1)],
    ),
    "sums of three columns": (
        "gram_terms", z(), z(), zeros(7, D), zeros(1, 3, dtype=DOUBLE), 0.1, 1, zeros(2, N, N),
        zeros(2), *3 * [zeros(1)],
    ),
    "a weight that is no number": (
        "gram_terms", z(), z(), zeros(7, D), zeros(1, 2, dtype=DOUBLE), math.nan, 1,
        zeros(2, N, N), zeros(2), *3 * [zeros(1)],
    ),
    "tiles of 0 rows": ("gram_tiles", z(), zeros(3, D), 1, zeros(1, 0, 0)),
    "fewer tiles than rows need": ("gram_tiles", z(65), zeros(3, D), 1, zeros(1, 64, 64)),
    "packed tiles of 0 rows": ("gram_from_tiles", zeros(2, 1, 0, 0), zeros(2), 1, zeros(2, N, N)),
    "centres of other matrices": (
        "gram_from_tiles", zeros(3, 1, 64, 64), zeros(2), 1, zeros(3, N, N),
    ),
    "moments of no views": ("view_moments", [], 1, zeros(0, D, dtype=DOUBLE), zeros(0, 0, D)),
    "moments of views of two shapes": (
        "view_moments", [z(), z(N, 4)], 1, zeros(2, D, dtype=DOUBLE), zeros(2, 2, D, dtype=DOUBLE),
    ),
    "moments of views of two types": (
        "view_moments", [z(), z(dtype=DOUBLE)], 1, zeros(2, D, dtype=DOUBLE),
        zeros(2, 2, D, dtype=DOUBLE),
    ),
    "moments of other views": (
        "view_moments", [z(), z()], 1, zeros(2, D, dtype=DOUBLE), zeros(3, 3, D, dtype=DOUBLE),
    ),
    "gradients of no views": view_gradients(views=[], grads=[]),
    "a gradient more than views": view_gradients(grads=[z() for _ in range(4)]),
    "a matrix more than gradients": view_gradients(
        grams=zeros(3, N, N), products=zeros(3, dtype=DOUBLE),
    ),
    "gradients of one type for views of another": view_gradients(grads=[z(), z(dtype=DOUBLE)]),
    "statistics of fewer views": view_gradients(statistics=zeros(2, 3, D)),
    "products in float32": view_gradients(products=zeros(1)),
    "half a link": view_gradients(links=[0, 1, 0, 2, 1]),
    "a link to a view beyond the last": view_gradients(links=[0, 1, 0, 3, 1, 1]),
    "a link to a view before the first": view_gradients(links=[0, 1, 0, -1, 1, 1]),
    "a link of a gradient beyond the last": view_gradients(links=[0, 1, 0, 2, 2, 1]),
    "links in no order": view_gradients(links=[0, 1, 1, 2, 0, 1]),
    "links without weights": view_gradients(weights=zeros(2, D)),
    "rows added to projected gradients": view_gradients(added=zeros(2, D)),
    "rows added for fewer gradients": view_gradients(added=zeros(1, D), projected=False),
    "no dimensions": view_gradients(dimensions=0),
    "no Gram matrix": ("gram_from_tiles", zeros(2, 0, 64, 64), zeros(2), 1, zeros(2, 0, 0)),
    "a Gram matrix of truth values": (
        "gram_gradients", *gradients("gram_gradients", grams=zeros(2, N, N, dtype=torch.bool)),
    ),
    "a coefficient that is no number": (
        "gram_gradients", *gradients("gram_gradients", coefficient=math.nan),
    ),
    "squares in float16": (
        "correlation", z(), z(), zeros(7, D), 1, zeros(D, D), zeros(2, D, dtype=torch.float16),
    ),
    "gradients of two types": (
        "correlation_gradients", *gradients("correlation_gradients", grad_a=z(dtype=DOUBLE)),
    ),
    "a matrix of another type": (
        "correlation_gradients",
        *gradients("correlation_gradients", matrix=zeros(D, D, dtype=DOUBLE)),
    ),
    "no divisor": (
        "terms", zeros(1, 2, dtype=DOUBLE), zeros(1, dtype=DOUBLE), 0, True, 0.1,
        zeros(1), zeros(1), zeros(1),
    ),
}  # fmt: skip

# As above, and what the error says.
WORDS = {
    r"out must be .* float64 .* of \(5, 8\)": ("column_moments", z(), z(), 1, SHARED[:, :-1]),
    "must have the same shape": ("column_moments", z(), z(N, 4), 1, SHARED),
    "operand must be 0": ("column_moments", z(), z(), 9, SHARED),
    r"tiles must .* of \(1, 64, 64\)": ("gram_tiles", z(), zeros(3, D), 1, zeros(2, 64, 64)),
    "tiles must have tiles of 64 or 128 rows": ("gram_tiles", z(), zeros(3, D), 1, zeros(1, 8, 8)),
    "grams must be a contiguous float64": (
        "gram_from_tiles", zeros(2, 1, 64, 64), zeros(2, dtype=DOUBLE), 0, zeros(2, D, D),
    ),
}  # fmt: skip


@native
@pytest.mark.parametrize(
    ("words", "arguments"),
    [*((r"barlow_fast: .*(must|contiguous)", a) for a in NATIVE_CALLS.values()), *WORDS.items()],
    ids=[*NATIVE_CALLS, *WORDS],
)
def test_native_operators_refuse(words, arguments):
    with pytest.raises(RuntimeError, match=words):
        call(*arguments)


@native
def test_outputs_overlap_nothing():
    one, out = zeros(2 * N, D), z()
    for changed in (
        {"grad_a": one[:N], "grad_b": one[1 : N + 1]},
        {"z_a": out, "grad_a": out},
        {"z_b": one[:N], "grad_a": one[N - 1 : 2 * N - 1]},
    ):
        with pytest.raises(RuntimeError, match=r"grad_a is written and overlaps"):
            call("gram_gradients", *gradients("gram_gradients", **changed))
    call("gram_gradients", *gradients("gram_gradients", z_b=one[:N], grad_a=one[N:]))
    for changed in (
        {"grads": [one[:N], one[1 : N + 1]]},
        {"views": [z(), z(), out], "grads": [out, z()]},
    ):
        with pytest.raises(RuntimeError, match=r"grads is written and overlaps"):
            call(*view_gradients(**changed))
    call(*view_gradients(views=[out, out, one[:N]], grads=[one[N:], z()]))


@native
def test_memory_that_was_freed_under_a_tensor():
    """As FSDP does with parameters between their uses."""
    views = z(), z()
    views[1].untyped_storage().resize_(0)
    with pytest.raises(RuntimeError, match="the storage of z_b has been freed"):
        call("column_moments", *views, 1, SHARED)


OPTIONS = (0.01, 1e-5, "gram", "fp32", "aten")
FORWARD = {
    "no rows": (z(0), z(0), *OPTIONS),
    "one row": (z(1), z(1), *OPTIONS),
    "no columns": (z(N, 0), z(N, 0), *OPTIONS),
    "two shapes": (z(), z(N + 1), *OPTIONS),
    "two types": (z(), z(dtype=DOUBLE), *OPTIONS),
    "whole numbers": (z(dtype=torch.int64), z(dtype=torch.int64), *OPTIONS),
    "three dimensions": (z()[None], z()[None], *OPTIONS),
    "eps below 0": (z(), z(), 0.01, -1e-5, *OPTIONS[2:]),
    "eps NaN": (z(), z(), 0.01, math.nan, *OPTIONS[2:]),
    "lambda infinite": (z(), z(), math.inf, *OPTIONS[1:]),
    "an unknown form": (z(), z(), 0.01, 1e-5, "fft", "fp32", "aten"),
    "an unknown precision": (z(), z(), 0.01, 1e-5, "gram", "fp8", "aten"),
    "an unknown backend": (z(), z(), 0.01, 1e-5, "gram", "fp32", "cudnn"),
}


def refused_alike(operator, arguments) -> None:
    """With the same words for tensors of every kind: kernels of all sets, and fakes."""
    words = "must be|too small"
    with pytest.raises(ValueError, match=words) as real:
        operator(*arguments)
    fakes = [a.to("meta") if isinstance(a, torch.Tensor) else a for a in arguments]
    with pytest.raises(ValueError, match=words) as fake:
        operator(*fakes)
    assert str(fake.value).replace("meta", "cpu") == str(real.value)


@pytest.mark.parametrize("arguments", FORWARD.values(), ids=FORWARD)
def test_registered_operators_and_their_fakes_refuse(arguments):
    refused_alike(ops.barlow_twins.forward, arguments)


@pytest.mark.parametrize("form", ["gram", "correlation"])
@pytest.mark.parametrize("change", ["dtype", "size", "stride"])
def test_backward_takes_only_what_forward_returned(form, change, backend):
    case, options = prepared((6, 4), "fp32"), (0.01, 1e-5, form, "fp32", backend)
    kept = ops.barlow_twins.forward(case.z_a, case.z_b, *options)[3:]
    changes = {
        "dtype": lambda x: x.to(torch.float64 if x.dtype == torch.float32 else torch.float32),
        "size": lambda x: torch.cat((x, x)),
        "stride": lambda x: x.repeat_interleave(2, -1)[..., ::2],
    }
    names = ("grad", "statistics", "matrix", "companion")
    for index, name in enumerate(names):
        tensors = [torch.ones(1), *kept]
        wrong = changes[change](tensors[index])
        if wrong.is_contiguous() and wrong.shape == tensors[index].shape and change == "stride":
            continue  # one element has no strides
        tensors[index] = wrong
        arguments = (tensors[0], case.z_a, case.z_b, *tensors[1:], *options, True, True)
        with pytest.raises(ValueError, match=f"{name} must be as the forward operator returned"):
            ops.barlow_twins.backward(*arguments)


@pytest.mark.parametrize(
    ("position", "value"),
    [(3, math.nan), (4, -1.0), (4, 1e-300), (5, 2), (5, -3), (6, -1.0), (7, math.inf), (9, "x")],
)
def test_deviation_refuses_numbers_out_of_range(position, value):
    arguments = [z(), z(), 0.01, 0.1, 0.0, 1, 1e-5, 0.0, False, "gram", "fp32", "aten"]
    standardised.deviation.forward(*arguments)
    arguments[position] = value
    refused_alike(standardised.deviation.forward, arguments)


@pytest.mark.parametrize("lambd", [torch.ones(2), torch.ones((), dtype=torch.complex64)])
def test_a_weight_is_one_real_number(lambd):
    with pytest.raises(ValueError, match="lambd must be a real tensor of one element"):
        ops.barlow_twins.forward_tensor(z(), z(), lambd, *OPTIONS[1:])


@native
def test_valid_calls_are_taken_and_mutated_ones_end_in_words():
    """The fuzz itself, without a sanitizer: every operator is called."""
    seen = fuzz_operators.fuzz(fuzz_operators.recorded(), 1500, seed=3)
    assert seen["operators"] == 20
    assert seen["raised"] > 500
    assert seen["returned"] > 100


def libraries(compiler: str) -> str | None:
    """What a process preloads for AddressSanitizer; None where this compiler has none."""
    paths = []
    for name in ("libasan.so", "libstdc++.so"):  # asan looks for the functions of the second
        done = subprocess.run(
            [compiler, f"-print-file-name={name}"], capture_output=True, text=True
        )
        paths.append(done.stdout.strip())
    return " ".join(paths) if all(Path(path).is_absolute() for path in paths) else None


@pytest.fixture(scope="module")
def sanitized(tmp_path_factory) -> tuple[Path, str]:
    """Folder of a library built with both sanitizers, and what to preload."""
    compiler, cmake = shutil.which("g++"), _tool("cmake")
    if compiler is None or cmake is None or sys.platform != "linux":
        pytest.skip("needs Linux with g++ and cmake")
    preload = libraries(compiler)
    if preload is None:
        pytest.skip("g++ has no libasan.so here")
    folder = tmp_path_factory.mktemp("sanitized")
    configure = [
        cmake, "-S", ROOT, "-B", folder / "build", f"-DCMAKE_CXX_COMPILER={compiler}",
        f"-DTORCH_FOLDER={Path(torch.__file__).parent}", f"-DOUTPUT_FOLDER={folder}",
        "-DSANITIZE=address,undefined",
    ]  # fmt: skip
    if ninja := _tool("ninja"):
        configure += ["-G", "Ninja", f"-DCMAKE_MAKE_PROGRAM={ninja}"]
    for command in (configure, [cmake, "--build", folder / "build", "--parallel", "2"]):
        done = subprocess.run(list(map(str, command)), capture_output=True, text=True)
        assert done.returncode == 0, done.stdout + done.stderr
    return folder, preload


def _tool(name: str) -> str | None:
    beside = Path(sys.executable).parent / name
    return str(beside) if beside.exists() else shutil.which(name)


@native
@pytest.mark.slow
@pytest.mark.parametrize("instruction_set", cpu.INSTRUCTION_SETS)
def test_mutated_calls_under_sanitizers(instruction_set, sanitized):
    if instruction_set not in cpu.supported_instruction_sets():
        pytest.skip(f"this CPU has no {instruction_set}")
    if instruction_set == cpu.EMULATED and "amx_bf16" in cpu.supported_instruction_sets():
        pytest.skip("AMX itself has the same layouts")
    folder, preload = sanitized
    environment = os.environ | {
        "LD_PRELOAD": preload,
        "ASAN_OPTIONS": "detect_leaks=0:allocator_may_return_null=1",
        "UBSAN_OPTIONS": "print_stacktrace=1",
    }
    command = [sys.executable, "-W", "ignore", fuzz_operators.__file__, folder]
    arguments = [instruction_set, os.environ.get("FUZZ_CALLS", "200000"), "1"]
    done = subprocess.run(
        list(map(str, [*command, *arguments])), env=environment, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr[-4000:]
    seen = ast.literal_eval(done.stdout)
    assert seen["operators"] == 20
    assert seen["returned"] > seen["raised"] / 50
