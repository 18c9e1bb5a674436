"""What is installed, what runs here, what does not and why, and whether it computes the right
numbers.

The output of `barlow-fast doctor` (or `python -m barlow_fast.doctor`) is what a bug report pastes.
It needs torch only.
"""

from __future__ import annotations

import itertools
import os
import platform
import sys
from importlib import metadata
from pathlib import Path

import torch

from . import __version__, barlow_twins_loss, reference
from .arguments import FORMS
from .kernels import KERNEL_SETS, load, why_unusable
from .kernels.precision import PRECISIONS, float32_matmul_precision
from .plan import choose_precision
from .terminal import say

# Libraries that not everybody needs, by what `pip install` takes: what is lost without them.
TRAIN, EXPORT = "barlow-fast[train]", "barlow-fast[export]"
OPTIONAL = {
    "triton": ("barlow-fast[triton]", "kernels for GPUs, and `barlow-fast tune`"),
    "numpy": (TRAIN, "data, training and evaluation"),
    "torchvision": (TRAIN, "encoders of torchvision"),
    "pillow": (TRAIN, "image files"),
    "simplejpeg": (TRAIN, "fast decoding of JPEGs, by Pillow then, and no report of suspect ones"),
    "pyyaml": (TRAIN, "files of settings and views, `pretrain --dry-run`"),
    "typer": (TRAIN, "all commands but `doctor` and `tune`"),
    "rich": (TRAIN, "all commands but `doctor` and `tune`"),
    "scikit-learn": (TRAIN, "the data set digits, the map of features"),
    "threadpoolctl": (TRAIN, "the map of features"),
    "matplotlib": (TRAIN, "figures of a run"),
    "jinja2": (TRAIN, "the report of a run"),
    "tensorboard": (TRAIN, "curves in TensorBoard"),
    "timm": ("barlow-fast[timm]", "encoders of timm"),
    "safetensors": (EXPORT, "files of safetensors"),
    "onnx": (EXPORT, "exports to ONNX"),
    "onnxscript": (EXPORT, "exports to ONNX"),
    "onnxruntime": (EXPORT, "a fast check of exports to ONNX"),
    "lightly": ("lightly", "its loss, which `patch` replaces"),
}
# One of them.
DALI = ("nvidia-dali-cuda130", "nvidia-dali-cuda120")

VARIABLES = (
    "BARLOW_FAST_CPU_INSTRUCTION_SET",
    "BARLOW_FAST_CPU_POOL_MIB",
    "OMP_NUM_THREADS",
    "MKL_NUM_THREADS",
    "TORCH_ALLOW_TF32_CUBLAS_OVERRIDE",
    "TRITON_INTERPRET",
    "CUDA_VISIBLE_DEVICES",
)

CPU_FEATURES = (
    "avx2",
    "fma",
    "f16c",
    "avx512f",
    "avx512_bf16",
    "avx512_fp16",
    "amx_bf16",
    "asimd",
    "bf16",
    "sve",
)

COST = {
    "cpu": "the loss runs on plain torch on CPUs: same numbers, slower (see the README's table)",
    "triton": "the loss runs on plain torch on CUDA devices: same numbers, slower",
}

# Relative error of the gradients against float64 that a correct set stays well below on this
# problem.
BOUND = {"fp64": 1e-12, "fp32": 2e-5, "tf32": 1e-2, "bf16": 3e-2, "fp16": 5e-3}


def report() -> int:
    """Prints the report; 0 when every usable kernel set computes the right numbers, else 1."""
    for title, lines in (
        ("Versions", versions()),
        ("Optional libraries", optional()),
        ("Machine", machine()),
        ("Environment", environment()),
        ("Kernel sets", kernel_sets()),
        ("Images on a CPU", images()),
    ):
        say(f"{title}\n" + "\n".join(f"  {line}" for line in lines) + "\n")
    say("Self-test: relative error against the float64 reference (loss, gradient)")
    healthy = True
    for device in devices():
        for name in KERNEL_SETS:
            if why_unusable(name, device) is None:
                healthy &= print_self_test(name, device)
    say(
        "\n"
        + ("All usable kernel sets compute the right numbers." if healthy else "SELF-TEST FAILED")
    )
    return 0 if healthy else 1


def devices() -> list[torch.device]:
    """The CPU and every CUDA device."""
    return [
        torch.device("cpu"),
        *(torch.device("cuda", i) for i in range(torch.cuda.device_count())),
    ]


def versions() -> list[str]:
    lines = [f"{'barlow-fast':<22} {__version__}", f"{'python':<22} {platform.python_version()}"]
    lines.append(f"{'torch':<22} {torch.__version__}")
    return lines


def optional() -> list[str]:
    """Each library with its version, or with what is lost and how to get it."""
    found = {name: _version(name) for name in (*OPTIONAL, *DALI)}
    dali = next((name for name in DALI if found[name]), "")
    rows = {name: (found[name], *OPTIONAL[name]) for name in OPTIONAL}
    rows[dali or "nvidia-dali"] = (
        found.get(dali, ""), "barlow-fast[dali]", "decoding and cropping on the GPU"
    )  # fmt: skip
    return [
        f"{name:<22} {version or f'not installed: without it no {lost} (pip install {what!r})'}"
        for name, (version, what, lost) in rows.items()
    ]


def _version(name: str) -> str:
    """'' where it is not installed."""
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return ""


def machine() -> list[str]:
    model, flags = cpu_model_and_features()
    lines = [
        f"system    {platform.platform()}",
        f"CPU       {model}",
        f"threads   {torch.get_num_threads()} of torch on {os.cpu_count()} visible cores",
        f"features  {' '.join(f for f in CPU_FEATURES if f in flags) or 'unknown'}",
        f"torch     CPU capability {torch.backends.cpu.get_cpu_capability()}",
        f"          CUDA build {torch.version.cuda or 'none'}",
    ]
    for i in range(torch.cuda.device_count()):
        p = torch.cuda.get_device_properties(i)
        lines.append(
            f"GPU {i}     {p.name}, sm_{p.major}{p.minor}, {p.total_memory / 2**30:.1f} GiB"
        )
    if not torch.cuda.device_count():
        lines.append("GPU       none that torch can use")
    return lines


def cpu_model_and_features() -> tuple[str, set[str]]:
    """The CPU's own name and its feature flags, as far as the system reports them."""
    model, flags = platform.processor() or platform.machine(), set()
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        for line in cpuinfo.read_text().splitlines():
            key, _, value = line.partition(":")
            if key.strip() == "model name":
                model = value.strip()
            elif key.strip() in ("flags", "Features"):
                flags = set(value.split())
                break
    return model, flags


def environment() -> list[str]:
    lines = [f"{name}={os.environ[name]}" for name in VARIABLES if name in os.environ]
    lines.append(
        "float32 matmul precision: "
        + ", ".join(f"{float32_matmul_precision(kind)} ({kind})" for kind in ("cpu", "cuda"))
    )
    return lines


def kernel_sets() -> list[str]:
    lines = []
    for name in KERNEL_SETS:
        problems = {str(device): why_unusable(name, device) for device in devices()}
        usable = [device for device, problem in problems.items() if problem is None]
        if usable:
            detail = {"cpu": _native_detail, "triton": _triton_detail}.get(name, str)()
            detail = f" ({detail})" if detail else ""
            lines.append(f"{name:<8} usable on {', '.join(usable)}{detail}")
            if name == "cpu":
                lines += [f"{'':<8} {p}: {load(name).products(p)}" for p in PRECISIONS]
            continue
        home = "cuda" if name == "triton" else "cpu"
        reason = next((p for d, p in problems.items() if d.startswith(home)), None)
        lines.append(f"{name:<8} not usable: {reason or 'no CUDA device'}")
        lines.append(f"{'':<8} without it {COST[name]}")
    return lines


def images() -> list[str]:
    """What decodes, crops and finishes image files on a CPU."""
    pillow = _version("pillow")
    decoder = "not possible: Pillow is not installed"
    if pillow:
        decoder = "simplejpeg, other formats Pillow" if _version("simplejpeg") else "Pillow"
    native = why_unusable("cpu", torch.device("cpu")) is None
    crops = "Pillow" if pillow else "images in memory by plain torch"
    return [
        f"{'decoder':<10} {decoder}",
        f"{'crops':<10} {'native kernels' if native else crops}",
        f"{'colours':<10} {'native kernels' if native else 'plain torch'}",
    ]


def _triton_detail() -> str:
    """Where block sizes come from on the current CUDA device."""
    from .kernels.triton import tuned
    from .kernels.triton.launch import device_of

    if not torch.cuda.is_available():
        return "in Triton's interpreter"
    device = device_of(torch.empty(0, device="cuda"))
    rows = len(tuned.rows_of(device.name))
    source = f"{rows} tuned rows in {tuned.file_of(device.name)}" if rows else "not tuned"
    return f"table of sm_{device.architecture}, {source}"


def _native_detail() -> str:
    from .kernels import cpu

    known = [name for name in cpu.supported_instruction_sets() if name != cpu.EMULATED]
    detail = f"instruction set {cpu.instruction_set()} of {', '.join(known)}"
    if "amx_bf16" in cpu_model_and_features()[1] and "amx_bf16" not in known:
        detail += "; the CPU has AMX, which the system or this build does not let the kernels use"
    return detail


def print_self_test(name: str, device: torch.device) -> bool:
    """Runs one kernel set on two and on three views, in both forms and every precision; True when
    all errors are in bounds."""
    generator = torch.Generator().manual_seed(0)
    healthy = True
    for count, form in itertools.product((2, 3), FORMS):
        n, d = (96, 200) if form == "gram" else (200, 96)
        views = [
            torch.randn(n, d, generator=generator, dtype=torch.float64, device="cpu")
            for _ in range(count)
        ]
        views[1:] = [0.7 * views[0] + z for z in views[1:]]
        results = []
        for precision, bound in BOUND.items():
            executed, _ = choose_precision(precision, torch.float32, device.type, backend=name)
            if executed != precision:
                continue
            errors = _errors(views, name, form, precision, device)
            fine = max(errors) <= bound
            healthy &= fine
            verdict = "" if fine else f" > {bound:g} WRONG"
            results.append(f"{precision} {errors[0]:.0e} {errors[1]:.0e}{verdict}")
        say(f"  {name:<8} {device!s:<8} {count} views, {form:<12} " + "   ".join(results))
    return healthy


def _errors(
    views: list[torch.Tensor], backend: str, form: str, precision: str, device: torch.device
) -> tuple[float, float]:
    dtype = torch.float64 if precision == "fp64" else torch.float32
    inputs = [z.to(device, dtype).requires_grad_() for z in views]
    exact_inputs = [z.detach().cpu().double().requires_grad_() for z in inputs]
    loss = barlow_twins_loss(inputs, form=form, backend=backend, precision=precision)
    pairs = itertools.combinations(exact_inputs, 2)
    exact = torch.stack([reference.barlow_twins_loss(*pair) for pair in pairs]).mean()
    errors = [abs(loss.item() / exact.item() - 1)]
    got, want = torch.autograd.grad(loss, inputs), torch.autograd.grad(exact, exact_inputs)
    for x, y in zip(got, want, strict=True):
        errors.append(float((x.cpu().double() - y).norm() / y.norm()))
    # NaN compares false with everything: report it as infinitely wrong.
    errors = [e if e == e else float("inf") for e in errors]
    return errors[0], max(errors[1:])


if __name__ == "__main__":
    sys.exit(report())
