"""What a loss would choose for given shapes, and why, and what each choice costs."""

from __future__ import annotations

from dataclasses import dataclass, field, replace

import torch

from .arguments import FORM_OF_LAYOUT, FORMS, LAYOUTS, Backend, Form, Layout, Options, Precision
from .distributed import cost as distribution
from .forms.family import BARLOW_TWINS, FROSSL, MIXED, VICREG, work_of
from .kernels import KERNEL_SETS, why_unusable
from .kernels.precision import OPERAND_DTYPE, accumulation_dtype
from .losses import catalogue
from .plan import (
    AUTOCAST_PRECISION,
    PAIR,
    Work,
    choose_backend,
    choose_form,
    choose_precision,
    flops,
)


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
    loss: str = "Barlow Twins"
    views: int = 2
    world_size: int = 1  # ranks
    layout: str | None = None  # across ranks; None on one
    layout_costs: dict[str, distribution.LayoutCost] = field(default_factory=dict)  # of each layout
    layout_seconds: dict[str, float] = field(default_factory=dict)  # modelled, not measured

    def __str__(self) -> str:
        name = str(self.dtype).removeprefix("torch.")
        count = "two" if self.views == 2 else str(self.views)
        lines = [
            f"{self.loss} loss of {count} {self.n} x {self.d} {name} embeddings on {self.device}"
        ]
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


def cost(
    form: str,
    n: int,
    d: int,
    backend: str,
    precision: str,
    element_size: int = 4,
    work: Work = PAIR,
    views: int = 2,
) -> Cost:
    """The cost model: of two views 6 N D min(N, D) operations where symmetric products are halved
    (design: kernels/README.md)."""
    # Of two views the Triton kernels keep matrices in the operand type; others as they were summed.
    half = backend == "triton" and work == PAIR
    kept = OPERAND_DTYPE[precision] if half else accumulation_dtype(precision)
    forward, gradient = flops(form, n, d, backend, work, views)
    if form == "gram":
        extra = work.grams * n * n // (1 if work == PAIR else 2)  # of more views, triangles
    else:
        extra = work.correlations * d * d
    moved = 3 * views * n * d * element_size
    return Cost(forward + views * gradient, float(moved), float(extra * kept.itemsize))


# Of each loss its operator's name, and how many views it takes at least.
_LOSSES = {
    catalogue.BARLOW_TWINS: (BARLOW_TWINS, 2),
    catalogue.MIXED: (MIXED, 3),
    catalogue.VICREG: (VICREG, 1),
    catalogue.FROSSL: (FROSSL, 2),
}


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
    loss: str = "barlow-twins",
    views: int | None = None,
    world_size: int = 1,
    nodes: int = 1,
    network: distribution.Network | None = None,
) -> Plan:
    """What a loss would do for (n, d) embeddings, and why.

    Args:
        n: samples in the batch, of all ranks together.
        d: embedding dimensions.
        dtype: dtype of the embeddings.
        device: device of the embeddings.
        autocast: the autocast dtype that will be active, or None.
        form, precision, backend, layout: as given to the loss.
        loss: 'barlow-twins', 'mixed-barlow-twins', 'vicreg' or 'frossl'.
        views: how many embeddings; None for two, of mixed Barlow Twins three.
        world_size: ranks of the process group; they are taken to have equally many samples.
        nodes: machines that the ranks are spread over.
        network: what to assume of ranks and links; None for what the loss itself assumes of
            `device` and `nodes`. The loss always chooses by that.

    Raises:
        TypeError: sizes that are not whole numbers, a dtype that is none.
        ValueError: an unknown form, precision, backend, layout or loss, n < 2, d < 1, views that
            the loss does not take, world_size < 1 or nodes not in 1...world_size.
        RuntimeError: a requested backend cannot be used on `device`.
    """
    name, views = named(loss, views)
    sizes = {"n": n, "d": d, "world_size": world_size, "nodes": nodes}
    for name_of_size, size in sizes.items():
        if not isinstance(size, int):
            raise TypeError(f"{name_of_size} must be a whole number, got {size!r}")
    _check_dtypes(dtype, autocast)
    if n < 2 or d < 1:
        raise ValueError(f"n must be at least 2 and d at least 1, got n={n}, d={d}")
    if not 1 <= nodes <= world_size:
        raise ValueError(
            "world_size must be at least 1 and nodes between 1 and it, got "
            f"world_size={world_size}, nodes={nodes}"
        )
    Options(precision=precision, form=form, backend=backend, layout=layout).check()
    device = torch.device(device)
    chosen_backend = choose_backend(backend, device)
    executed, why_precision = choose_precision(
        precision, dtype, device.type, autocast, chosen_backend
    )
    pair = name == BARLOW_TWINS and views == 2
    work = PAIR if pair else work_of(name, views)
    chosen_form = choose_form(form, n, d, chosen_backend, work)
    costs = {f: cost(f, n, d, chosen_backend, executed, dtype.itemsize, work, views) for f in FORMS}
    other = next(f for f in FORMS if f != chosen_form)
    ratio = costs[other].flops / costs[chosen_form].flops
    reasons = {
        "form": "requested" if form != "auto" else _form_reason(other, ratio),
        "precision": why_precision,
        "backend": "requested" if backend != "auto" else _backend_reason(chosen_backend, device),
    }
    plan = Plan(
        n, d, dtype, str(device), chosen_form, executed, chosen_backend, costs, reasons,
        catalogue.LOSSES[loss].title, views,
    )  # fmt: skip
    if world_size == 1:
        return plan
    if not pair:
        return _one_layout_of_a_form(plan, layout, world_size)
    network = network or distribution.network_of(device.type, nodes, executed)
    return _distributed(plan, form, layout, world_size, network)


def named(loss: str, views: int | None) -> tuple[str, int]:
    """(the operator's name, how many views) of a loss by its name and how many are requested.

    Raises:
        TypeError, ValueError: as `explain`.
    """
    if loss not in _LOSSES:
        raise ValueError(f"loss must be one of {tuple(_LOSSES)}, got {loss!r}")
    name, least = _LOSSES[loss]
    views = max(2, least) if views is None else views
    if not isinstance(views, int):
        raise TypeError(f"views must be a whole number, got {views!r}")
    if views < least or (name == MIXED and views != least):
        raise ValueError(f"views must be at least {least} for {loss}, got {views}")
    return name, views


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
        name: distribution.cost(name, *shape, use_all_reduce=network.use_all_reduce)
        for name in LAYOUTS
    }
    seconds = {name: cost.seconds(network, world_size) for name, cost in costs.items()}
    reason = distribution.DESCRIPTION[chosen]
    reason += "; requested" if layout != "auto" else "; fastest by the model"
    if layout == "auto" and form != "auto":
        reason += f" of the {form} form"
    reasons = plan.reasons | {"layout": reason}
    if form == "auto":
        reasons["form"] = "the layout's"
    return replace(
        plan,
        form=FORM_OF_LAYOUT[chosen],
        reasons=reasons,
        world_size=world_size,
        layout=chosen,
        layout_costs=costs,
        layout_seconds=seconds,
    )


def _one_layout_of_a_form(plan: Plan, layout: str, world_size: int) -> Plan:
    """The plan of a loss whose form decides on the layout, or the layout on the form."""
    if layout == "rows":
        raise ValueError("layout='rows' is for two views of the Barlow Twins loss")
    form = plan.form if layout == "auto" else FORM_OF_LAYOUT[layout]
    chosen = next(name for name, of in FORM_OF_LAYOUT.items() if of == form)
    reason = distribution.DESCRIPTION[chosen]
    reason += "; requested" if layout != "auto" else "; the form's"
    reasons = plan.reasons | {"layout": reason}
    return replace(plan, form=form, reasons=reasons, world_size=world_size, layout=chosen)


def _form_reason(other: str, ratio: float) -> str:
    if ratio < 1.1:
        return f"about the operations of {other}, in fewer passes"
    return f"{other} would take {ratio:.3g} times the operations"


def _backend_reason(chosen: str, device: torch.device) -> str:
    passed_over = KERNEL_SETS[: KERNEL_SETS.index(chosen)]
    reasons = [f"not {name}: {why_unusable(name, device)}" for name in passed_over]
    return "first usable set" + "".join(f"; {reason}" for reason in reasons)
