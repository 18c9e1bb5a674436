"""Shapes, dtype and device -> form, precision and kernel set. Pure: no tensor is touched, nothing
is changed.

`explain` is the public face: it answers what the loss would choose and why, and what each choice
costs.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass, field, replace

import torch

from .arguments import FORMS, Backend, Form, Layout, Precision, check_choice
from .distributed import cost as distribution
from .kernels import KERNEL_SETS, why_unusable
from .kernels.precision import (
    OPERAND_DTYPE,
    PRECISIONS,
    accumulation_dtype,
    float32_matmul_precision,
)

AUTOCAST_PRECISION = {torch.bfloat16: "bf16", torch.float16: "fp16", torch.float32: "fp32"}
MATMUL_PRECISION = {"highest": "fp32", "high": "tf32", "medium": "bf16"}

# The sets that compute only half of the tiles of a symmetric product.
SYMMETRIC_SETS = ("cpu", "triton")


@dataclass(frozen=True)
class Cost:
    """Work of one forward + backward pass in one form."""

    flops: float  # multiplications and additions of the matrix products
    input_bytes: float  # both inputs read twice, both gradients written once
    extra_bytes: float  # the matrices kept between forward and backward

    def __str__(self) -> str:
        return (
            f"{self.flops / 1e9:.4g} GFLOP, "
            f"{self.input_bytes / 2**20:.4g} MiB of inputs and gradients moved, "
            f"{self.extra_bytes / 2**20:.4g} MiB kept"
        )


@dataclass(frozen=True)
class Plan:
    """What a call of the loss does; `print` it for the reasons."""

    n: int  # samples of the batch, of all ranks together
    d: int  # dimensions of the embeddings
    dtype: torch.dtype  # of the embeddings
    device: str  # of the embeddings
    form: str  # 'gram' or 'correlation'
    precision: str  # the operand type that is computed in
    backend: str  # the kernel set
    costs: dict[str, Cost]  # of each form
    reasons: dict[str, str]  # of form, precision, backend and layout
    world_size: int = 1  # ranks
    layout: str | None = None  # across ranks; None on one
    layout_costs: dict[str, distribution.LayoutCost] = field(default_factory=dict)  # of each layout
    layout_seconds: dict[str, float] = field(default_factory=dict)  # modelled, not measured

    def __str__(self) -> str:
        name = str(self.dtype).removeprefix("torch.")
        lines = [f"Barlow Twins loss of two {self.n} x {self.d} {name} embeddings on {self.device}"]
        if self.layout is not None:
            lines[0] += f", over {self.world_size} ranks"
        for key in ("layout", "form", "precision", "backend"):
            if getattr(self, key) is not None:
                lines.append(f"  {key:<10} {getattr(self, key):<12} {self.reasons[key]}")
        if self.layout is None:
            for form, cost in self.costs.items():
                lines.append(f"  cost of {form}: {cost}{_mark(form == self.form)}")
        for layout, cost in self.layout_costs.items():
            seconds = f"{1e3 * self.layout_seconds[layout]:.3g} ms modelled"
            lines.append(f"  cost of {layout}: {cost}; {seconds}{_mark(layout == self.layout)}")
        return "\n".join(lines)


def _mark(chosen: bool) -> str:
    return "  <- chosen" if chosen else ""


def flops(form: str, n: int, d: int, backend: str) -> tuple[float, float]:
    """Multiplications and additions of the matrix products of the forward pass, and of the gradient
    of one view."""
    if form == "gram":
        return float((2 if backend in SYMMETRIC_SETS else 4) * n * n * d), float(2 * n * n * d)
    return float(2 * n * d * d), float(2 * n * d * d)


def cost(form: str, n: int, d: int, backend: str, precision: str, element_size: int = 4) -> Cost:
    """The cost model: 6 N D min(N, D) operations where symmetric products are halved (design:
    kernels/README.md)."""
    # The Triton kernels keep matrices in the operand type, the others as they were summed.
    kept = OPERAND_DTYPE[precision] if backend == "triton" else accumulation_dtype(precision)
    itemsize = kept.itemsize
    forward, gradient = flops(form, n, d, backend)
    extra = (2 * n * n if form == "gram" else d * d) * itemsize
    return Cost(forward + 2 * gradient, float(6 * n * d * element_size), float(extra))


def choose_form(form: str, n: int, d: int, backend: str) -> str:
    """The form with less work; `form` itself unless it is 'auto'. Safe on symbolic sizes."""
    if form != "auto":
        return form
    # Operations break even at N = D, but two triangles take more passes than one square matrix:
    # at N = D = 1024 the native kernels run the correlation form in 0.92 to 0.95 of the time.
    # Where the Gram products are not halved, operations break even at N = 3/4 D.
    ratio = (11, 12) if backend in SYMMETRIC_SETS else (3, 4)
    is_gram = ratio[1] * n <= ratio[0] * d
    if isinstance(is_gram, torch.SymBool) and torch.compiler.is_exporting():
        _refuse_undecided(is_gram, n, d, ratio)
    return "gram" if is_gram else "correlation"


def _refuse_undecided(is_gram: torch.SymBool, n: int, d: int, ratio: tuple[int, int]) -> None:
    """An exported program has one form: RuntimeError where the sizes that it is exported for need
    both."""
    from torch.fx.experimental.symbolic_shapes import statically_known_true

    if statically_known_true(is_gram) or statically_known_true(torch.sym_not(is_gram)):
        return
    raise RuntimeError(
        f"barlow_fast: the form of the loss ('gram' up to N = {ratio[0]}/{ratio[1]} D, else "
        f"'correlation') is open for the sizes of this export, N = {n}, D = {d}: give one, "
        "form='gram' for batches that are mostly smaller than D, else form='correlation' (both "
        "are exact for every N), or bound the dynamic size, as in torch.export.Dim('n', max=...)"
    )


@functools.lru_cache(maxsize=64)
def choose_backend(backend: str, device: torch.device) -> str:
    """The kernel set: the first usable one for 'auto', else the one asked for.

    Raises ValueError for an unknown name and RuntimeError, with the reason, for one that cannot
    serve `device`.
    """
    if backend not in ("auto", *KERNEL_SETS):
        raise ValueError(f"backend must be one of {('auto', *KERNEL_SETS)}, got {backend!r}")
    candidates = KERNEL_SETS if backend == "auto" else (backend,)
    if backend == "auto" and device.type != "cuda":
        # On a CPU the Triton set runs in Triton's interpreter, for tests, when asked for.
        candidates = tuple(name for name in KERNEL_SETS if name != "triton")
    problems = {name: why_unusable(name, device) for name in candidates}
    for name, problem in problems.items():
        if problem is None:
            return name
    raise RuntimeError(f"backend={backend!r} cannot be used here: {problems[backend]}")


def autocast_dtype(device_type: str) -> torch.dtype | None:
    """What autocast is on for, on a device; None where it is off or unknown, as on meta."""
    if device_type == "meta" or not torch.is_autocast_enabled(device_type):
        return None
    return torch.get_autocast_dtype(device_type)


def choose_precision(
    precision: str,
    dtype: torch.dtype,
    autocast: torch.dtype | None = None,
    matmul_precision: str = "highest",
) -> tuple[str, str]:
    """(precision, reason): an explicit choice, else autocast, else what the inputs' dtype implies;
    of float32 inputs what `float32_matmul_precision` of their device says."""
    if precision != "auto":
        return precision, "asked for"
    if dtype == torch.float64:
        return "fp64", "the inputs are float64"
    if autocast is not None:
        return AUTOCAST_PRECISION[autocast], f"autocast to {autocast} is on"
    if dtype in (torch.bfloat16, torch.float16):
        return AUTOCAST_PRECISION[dtype], f"the inputs are {dtype}"
    reason = f"float32 inputs, the float32 matmul precision is {matmul_precision!r}"
    return MATMUL_PRECISION[matmul_precision], reason


def executed_precision(precision: str, device_type: str) -> str:
    """What runs for `precision` on a device: CPUs have no TF32 and compute it as float32."""
    return "fp32" if precision == "tf32" and device_type == "cpu" else precision


def explain(
    n: int,
    d: int,
    dtype: torch.dtype = torch.float32,
    device: str | torch.device = "cpu",
    *,
    autocast: torch.dtype | None = None,
    form: Form = "auto",
    precision: Precision = "auto",
    backend: Backend = "auto",
    layout: Layout = "auto",
    world_size: int = 1,
    nodes: int = 1,
    network: distribution.Network | None = None,
) -> Plan:
    """What `barlow_twins_loss` would do for two (n, d) embeddings, and why.

    Args:
        n: samples in the batch, of all ranks together.
        d: embedding dimensions.
        dtype: dtype of the embeddings.
        device: device of the embeddings.
        autocast: the autocast dtype that will be active, or None.
        form, precision, backend, layout: as given to the loss.
        world_size: ranks of the process group; they are taken to have equally many samples.
        nodes: machines that the ranks are spread over.
        network: what to assume of ranks and links; None for what the loss itself assumes of
            `device` and `nodes`. The loss always chooses by that.

    Raises:
        TypeError: sizes that are not whole numbers, a dtype that is none.
        ValueError: an unknown form, precision, backend or layout, n < 2, d < 1, world_size < 1 or
            nodes not in 1...world_size.
        RuntimeError: a backend that was asked for cannot be used on `device`.
    """
    for name, size in (("n", n), ("d", d), ("world_size", world_size), ("nodes", nodes)):
        if not isinstance(size, int):
            raise TypeError(f"{name} must be a whole number, got {size!r}")
    _check_dtypes(dtype, autocast)
    if n < 2 or d < 1:
        raise ValueError(f"n must be at least 2 and d at least 1, got n={n}, d={d}")
    if not 1 <= nodes <= world_size:
        raise ValueError(
            "world_size must be at least 1 and nodes between 1 and it, got "
            f"world_size={world_size}, nodes={nodes}"
        )
    check_choice("form", form, FORMS)
    check_choice("precision", precision, PRECISIONS)
    distribution.check(layout, form)
    device = torch.device(device)
    chosen_backend = choose_backend(backend, device)
    matmul = float32_matmul_precision(device.type)
    chosen_precision, why_precision = choose_precision(precision, dtype, autocast, matmul)
    executed = executed_precision(chosen_precision, device.type)
    if executed != chosen_precision:
        why_precision += f"; {chosen_precision} is computed as {executed} on a CPU"
    chosen_form = choose_form(form, n, d, chosen_backend)
    costs = {f: cost(f, n, d, chosen_backend, executed, dtype.itemsize) for f in FORMS}
    other = next(f for f in FORMS if f != chosen_form)
    ratio = costs[other].flops / costs[chosen_form].flops
    reasons = {
        "form": "asked for" if form != "auto" else _form_reason(other, ratio),
        "precision": why_precision,
        "backend": "asked for" if backend != "auto" else _backend_reason(chosen_backend, device),
    }
    plan = Plan(n, d, dtype, str(device), chosen_form, executed, chosen_backend, costs, reasons)
    if world_size == 1:
        return plan
    network = network or distribution.network_of(device.type, nodes, executed)
    return _distributed(plan, form, layout, world_size, network)


def _check_dtypes(dtype: torch.dtype, autocast: torch.dtype | None) -> None:
    """TypeError for what torch does not take for a dtype of embeddings, or of autocast."""
    if not isinstance(dtype, torch.dtype) or not dtype.is_floating_point:
        raise TypeError(
            f"dtype must be a floating torch.dtype, such as torch.bfloat16, got {dtype!r}"
        )
    if autocast is not None and autocast not in AUTOCAST_PRECISION:
        names = ", ".join(map(str, AUTOCAST_PRECISION))
        raise TypeError(f"autocast must be one of {names}, or None for none, got {autocast!r}")


def _distributed(
    plan: Plan, form: str, layout: str, world_size: int, network: distribution.Network
) -> Plan:
    """The plan with a layout, and the form that it computes."""
    each, more = divmod(plan.n, world_size)
    rows = tuple(each + (rank < more) for rank in range(world_size))
    shape = (rows, plan.d, plan.dtype, plan.precision)
    chosen = distribution.choose_layout(layout, form, *shape, network)
    costs = {
        name: distribution.cost(name, *shape, trees=network.trees) for name in distribution.LAYOUTS
    }
    seconds = {name: cost.seconds(network, world_size) for name, cost in costs.items()}
    reason = distribution.DESCRIPTION[chosen]
    reason += "; asked for" if layout != "auto" else "; fastest by the model"
    if layout == "auto" and form != "auto":
        reason += f" of the {form} form"
    reasons = plan.reasons | {"layout": reason}
    if form == "auto":
        reasons["form"] = "the layout's"
    return replace(
        plan,
        form=distribution.FORM_OF_LAYOUT[chosen],
        reasons=reasons,
        world_size=world_size,
        layout=chosen,
        layout_costs=costs,
        layout_seconds=seconds,
    )


def _form_reason(other: str, ratio: float) -> str:
    if ratio < 1.1:
        return f"about the operations of {other}, in fewer passes"
    return f"{other} would take {ratio:.3g} times the operations"


def _backend_reason(chosen: str, device: torch.device) -> str:
    passed_over = KERNEL_SETS[: KERNEL_SETS.index(chosen)]
    reasons = [f"not {name}: {why_unusable(name, device)}" for name in passed_over]
    return "first usable set" + "".join(f"; {reason}" for reason in reasons)
