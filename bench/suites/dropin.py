"""A training run through lightly's own example, before and after `barlow_fast.patch("lightly")`.

Three runs start from the same seed and see the same batches, in turns: lightly's loss, lightly's
class replaced by the patch, and lightly's loss once more from weights that are moved by one unit in
the last place. The last is the baseline: how far rounding alone carries two runs of one program
apart. A run in float64 begins closer by nine digits; over many steps that grows as well. So at
every step both losses also see the same embeddings, where nothing can grow: that is the comparison.
"""

from __future__ import annotations

import gc
import importlib.util
import random
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Annotated, Any

import torch
from torch import Tensor, nn

from bench import devices, exits, provenance, sources
from bench.cli import Option
from bench.markdown import short, table_line
from bench.results import Row, rounded
from bench.session import Output, Session
from bench.timing import columns, percentile

SECTION = "Drop-in: lightly's example before and after the patch"
LIGHTLY, PATCHED, MOVED = "lightly", "patched", "lightly-moved"
TITLES = {LIGHTLY: "lightly", PATCHED: "patched", MOVED: "lightly, weights moved by one rounding"}
STEPS, QUICK_STEPS = 50, 6
BATCH, QUICK_BATCH, DOUBLE_BATCH = 128, 32, 16
DIM = 2048  # of lightly's example: projector 512-2048-2048
LEARNING_RATE, SIDE = 0.06, 32
DISTINCT = 8  # batches, which come round again
WARM_UPS = 2  # first steps, which are not timed
PROBES = 10  # every so many steps both losses are held against float64
# A loss or gradient may be this often as far from float64 as lightly's, plus a few roundings.
ALLOWED, ROUNDINGS = 2.0, 4
SEED = 0
NEEDED = ("lightly", "torchvision", "sklearn", "PIL")

Criterion = Callable[[Tensor, Tensor], Tensor]


class DisagreementError(Exception):
    """The patched loss is not lightly's."""


def command(
    given: Output,
    steps: Annotated[int | None, Option("Of each run.", least=WARM_UPS + 1)] = None,
    batch: Annotated[int | None, Option("Samples; two views of each.", least=2)] = None,
    dim: Annotated[int, Option("Outputs of the projector.", least=2)] = DIM,
    double: Annotated[
        bool, Option(f"Also a pair of runs in float64, at batch {DOUBLE_BATCH} at most.")
    ] = True,
) -> int:
    """Train lightly's example before and after the patch: losses, seconds, the loss's share."""
    missing = [name for name in NEEDED if importlib.util.find_spec(name) is None]
    if missing:
        print(f"not installed: {', '.join(missing)} (pip install lightly ...)")
        return exits.FAILED
    steps = steps or (QUICK_STEPS if given.quick else STEPS)
    batch = batch or (QUICK_BATCH if given.quick else BATCH)
    session = Session(devices.Cpu(), given, sources.CODE)
    session.announce()
    cases = [(batch, torch.float32)]
    cases += [(min(batch, DOUBLE_BATCH), torch.float64)] if double else []
    for samples, dtype in session.in_time(cases, lambda case: 0.0):
        try:
            rows = measure(steps, samples, dim, dtype)
        except DisagreementError as error:
            session.failures[f"{samples} x {dim} {dtype}"] = f"not timed: {error}"
            break
        session.keep(rows, line_of)
    return session.end()


@dataclass
class Run:
    """One training run: the network of lightly's example, and what it did."""

    name: str
    model: nn.Module
    optimizer: torch.optim.Optimizer
    criterion: Criterion
    losses: list[float] = field(default_factory=list)
    seconds: list[float] = field(default_factory=list)  # of a step
    loss_seconds: list[float] = field(default_factory=list)  # of the loss, both passes

    def step(self, x_a: Tensor, x_b: Tensor) -> tuple[Tensor, Tensor]:
        """Trains on a pair of views; returns the embeddings that the loss saw.

        The backward pass is cut at the embeddings, which changes no number: it is the loss's, then
        the network's.
        """
        start = time.perf_counter()
        z_a, z_b = self.model(x_a), self.model(x_b)
        seen = [z.detach().requires_grad_() for z in (z_a, z_b)]
        before = time.perf_counter()
        loss = self.criterion(*seen)
        loss.backward()
        after = time.perf_counter()
        torch.autograd.backward([z_a, z_b], [z.grad for z in seen])
        self.optimizer.step()
        self.optimizer.zero_grad()
        end = time.perf_counter()
        self.losses.append(loss.item())
        self.seconds.append(end - start)
        self.loss_seconds.append(after - before)
        return seen[0].detach(), seen[1].detach()


def network(dim: int) -> nn.Module:
    """ResNet-18 and lightly's head, as in its example."""
    import torchvision
    from lightly.models.modules import BarlowTwinsProjectionHead

    backbone = list(torchvision.models.resnet18().children())[:-1]
    return nn.Sequential(*backbone, nn.Flatten(), BarlowTwinsProjectionHead(512, dim, dim))


def criteria() -> dict[str, nn.Module]:
    """lightly's loss, and what the same import gives under the patch."""
    import lightly.loss

    import barlow_fast

    original = lightly.loss.BarlowTwinsLoss()
    with barlow_fast.patch("lightly"):
        patched = lightly.loss.BarlowTwinsLoss()
    if type(patched) is type(original) or not type(original).__module__.startswith("lightly"):
        raise DisagreementError("the patch replaced nothing, or something had been replaced before")
    return {LIGHTLY: original, PATCHED: patched}


def start(name: str, criterion: Criterion, dim: int, dtype: torch.dtype) -> Run:
    """A run at its first step; the weights are the same for all but MOVED."""
    torch.manual_seed(SEED)
    model = network(dim).to(dtype)
    if name == MOVED:
        with torch.no_grad():
            for weight in model.parameters():
                up = torch.rand_like(weight) < 0.5
                far = torch.where(up, torch.inf, -torch.inf).to(dtype)
                weight.copy_(torch.nextafter(weight, far))
    optimizer = torch.optim.SGD(model.parameters(), lr=LEARNING_RATE)
    return Run(name, model, optimizer, criterion)


def views(batch: int, count: int, dtype: torch.dtype) -> list[tuple[Tensor, Tensor]]:
    """`count` batches of lightly's two views of scikit-learn's digits, as 32 x 32 images."""
    import numpy as np
    from lightly.transforms.byol_transform import (
        BYOLTransform,
        BYOLView1Transform,
        BYOLView2Transform,
    )
    from PIL import Image
    from sklearn.datasets import load_digits

    for seed in (torch.manual_seed, random.seed, np.random.seed):  # its views draw from all three
        seed(SEED)
    transform = BYOLTransform(
        view_1_transform=BYOLView1Transform(input_size=SIDE, gaussian_blur=0.0),
        view_2_transform=BYOLView2Transform(input_size=SIDE, gaussian_blur=0.0),
    )
    images = (load_digits().images * (255 / 16)).round().astype("uint8")
    order = torch.randperm(batch * count).remainder(len(images))
    found = []
    for part in order.reshape(count, batch):
        chosen = (Image.fromarray(images[index]).convert("RGB") for index in part.tolist())
        pairs = [transform(image.resize((SIDE, SIDE))) for image in chosen]
        found.append(tuple(torch.stack(each).to(dtype) for each in zip(*pairs, strict=True)))
    return found


def measure(steps: int, batch: int, dim: int, dtype: torch.dtype) -> list[Row]:
    """The rows of one precision, without provenance.

    Raises:
        DisagreementError: the patched loss is further from float64 than lightly's may be.
    """
    losses = criteria()
    runs = [start(name, criterion, dim, dtype) for name, criterion in losses.items()]
    if dtype == torch.float32:
        runs.append(start(MOVED, losses[LIGHTLY], dim, dtype))
    batches = views(batch, min(steps, DISTINCT), dtype)
    locked = Locked(losses)
    generator = random.Random(SEED)
    gc.collect()
    gc.disable()  # a collection would be part of some step's time
    try:
        for step in range(steps):
            for run in generator.sample(runs, len(runs)):
                seen = run.step(*batches[step % len(batches)])
                if run.name == LIGHTLY:
                    locked.compare(*seen, probe=step % PROBES == 0)
    finally:
        gc.enable()
    locked.check(dtype)
    return [row(run, runs[0], locked, steps, batch, dim, dtype) for run in runs]


@dataclass
class Locked:
    """Both losses on the same embeddings, those of lightly's run; relative differences in the
    2-norm, the largest of all steps."""

    losses: dict[str, Criterion]
    loss_difference: float = 0.0
    gradient_difference: float = 0.0
    loss_errors: dict[str, float] = field(default_factory=dict)  # against float64
    gradient_errors: dict[str, float] = field(default_factory=dict)

    def compare(self, z_a: Tensor, z_b: Tensor, probe: bool) -> None:
        """One step; with `probe`, against lightly's loss in float64 too."""
        found = {name: outcome(loss, z_a, z_b) for name, loss in self.losses.items()}
        differences = distances(found[PATCHED], found[LIGHTLY])
        self.loss_difference = max(self.loss_difference, differences[0])
        self.gradient_difference = max(self.gradient_difference, differences[1])
        if not probe or z_a.dtype == torch.float64:
            return
        true = outcome(self.losses[LIGHTLY], z_a.double(), z_b.double())
        for name, each in found.items():
            errors = distances(each, true)
            self.loss_errors[name] = max(self.loss_errors.get(name, 0.0), errors[0])
            self.gradient_errors[name] = max(self.gradient_errors.get(name, 0.0), errors[1])

    def check(self, dtype: torch.dtype) -> None:
        """DisagreementError where the patched loss is another one."""
        floor = ROUNDINGS * torch.finfo(dtype).eps
        if dtype == torch.float64:
            held = [
                (self.loss_difference, "loss", 1e-10),
                (self.gradient_difference, "gradient", 1e-10),
            ]
        else:
            held = [
                (self.loss_errors[PATCHED], "loss", ALLOWED * self.loss_errors[LIGHTLY] + floor),
                (
                    self.gradient_errors[PATCHED],
                    "gradient",
                    ALLOWED * self.gradient_errors[LIGHTLY] + floor,
                ),
            ]
        for error, what, bound in held:
            if not error <= bound:  # or not a number
                raise DisagreementError(
                    f"on the same embeddings the patched {what} is off by {error:.1e}, "
                    f"allowed are {bound:.1e}"
                )


def outcome(loss: Criterion, z_a: Tensor, z_b: Tensor) -> tuple[Tensor, Tensor]:
    """(loss, gradients of both embeddings in one tensor)."""
    seen = [z.clone().requires_grad_() for z in (z_a, z_b)]
    value = loss(*seen)
    return value.detach(), torch.cat(torch.autograd.grad(value, seen))


def distances(got: Sequence[Tensor], want: Sequence[Tensor]) -> list[float]:
    """|got - want| / |want| of each."""
    return [
        float((x.double() - y.double()).norm() / y.double().norm())
        for x, y in zip(got, want, strict=True)
    ]


def row(
    run: Run, other: Run, locked: Locked, steps: int, batch: int, dim: int, dtype: torch.dtype
) -> Row:
    """A row without its provenance; `other` is the run that differences are taken from."""
    seconds, loss_seconds = run.seconds[WARM_UPS:], run.loss_seconds[WARM_UPS:]
    shares = [part / whole for part, whole in zip(loss_seconds, seconds, strict=True)]
    found: Row = {
        "suite": "dropin",
        "n": batch,
        "d": dim,
        "dtype": "fp64" if dtype == torch.float64 else "fp32",
        "peer": run.name,
        "source": f"lightly {provenance.version('lightly')}",
        "steps": steps,
        **columns(seconds, "ms", 1e3),
        "loss_ms": rounded(percentile(loss_seconds, 50) * 1e3),
        "loss_share": rounded(percentile(shares, 50)),
        "first_loss": run.losses[0],
        "last_loss": run.losses[-1],
    }
    if run is not other:
        differences = [abs(x - y) / y for x, y in zip(run.losses, other.losses, strict=True)]
        found["first_difference"] = rounded(differences[0])
        found["median_difference"] = rounded(percentile(differences, 50))
        found["largest_difference"] = rounded(max(differences))
    if run.name == PATCHED:
        found["locked_loss_difference"] = rounded(locked.loss_difference)
        found["locked_gradient_difference"] = rounded(locked.gradient_difference)
    if run.name in locked.loss_errors:
        found["locked_loss_error"] = rounded(locked.loss_errors[run.name])
        found["locked_gradient_error"] = rounded(locked.gradient_errors[run.name])
    return found


def line_of(found: Row) -> str:
    """A row in words."""
    text = (
        f"{found['n']} x {found['d']} {found['dtype']} {found['peer']}: step "
        f"{short(found['median_ms'])} ms, loss {short(found['loss_ms'])} ms "
        f"({found['loss_share']:.1%}), {found['first_loss']:.2f} to {found['last_loss']:.2f}"
    )
    if "largest_difference" in found:
        text += (
            f"; differs by {found['first_difference']:.1e} at the first step, at most "
            f"{found['largest_difference']:.1e}"
        )
    if "locked_loss_difference" in found:
        text += (
            f"; on the same embeddings loss {found['locked_loss_difference']:.1e}, gradient "
            f"{found['locked_gradient_difference']:.1e}"
        )
    return text


def tables(rows: list[Row]) -> str:
    """Markdown of one machine's rows: seconds, then differences."""
    groups: dict[tuple[Any, ...], dict[str, Row]] = {}
    for each in rows:
        key = (each["dtype"], each["d"], each["n"])
        groups.setdefault(key, {})[each["peer"]] = each
    single = {key: group for key, group in sorted(groups.items()) if key[0] == "fp32"}
    parts = [_reading()]
    parts += [_times(single)] if single else []
    parts += ["How far losses are apart:", _differences(dict(sorted(groups.items())))]
    parts += [text for text in (_verdict(single),) if text]
    return "\n\n".join(parts)


def _reading() -> str:
    return (
        "lightly's own Barlow Twins example (ResNet-18, its head, its two views of 32 × 32 pixels, "
        f"SGD at {LEARNING_RATE}), on scikit-learn's digits, with lightly's loss and with what "
        '`barlow_fast.patch("lightly")` puts in its place: same seed, same batches, in turns. '
        "Milliseconds of a step whose views are ready: forward, loss, backward, update; *loss* is "
        "its forward and backward pass. Differences are relative, of the loss of one step. *On the "
        "same embeddings*: both losses at each step of lightly's run, the largest difference of "
        "the loss and, in the 2-norm, of its gradients. *On its own*: two whole runs. Training "
        "magnifies rounding, so two runs of lightly itself, one with its first weights moved by "
        "one unit in the last place, are the baseline; float64 begins nine digits closer "
        "and is magnified as well."
    )


def _times(groups: dict[tuple[Any, ...], dict[str, Row]]) -> str:
    heads = ["batch", "D", "loss of", "step, ms", "p20", "p80"]
    heads += ["loss, ms", "share of the step", "times as fast"]
    lines = [table_line(heads), table_line(["---:", "---:", "---", *["---:"] * (len(heads) - 3)])]
    for (_, d, n), group in groups.items():
        for name in (LIGHTLY, PATCHED):
            if name not in group:
                continue
            each = group[name]
            keys = ("median_ms", "p20_ms", "p80_ms", "loss_ms")
            cells = [str(n), str(d), TITLES[name], *(short(each[key]) for key in keys)]
            cells.append(f"{each['loss_share']:.1%}")
            compared = name == PATCHED and LIGHTLY in group
            ratio = group[LIGHTLY]["median_ms"] / each["median_ms"] if compared else 0.0
            cells.append(f"{ratio:.2f}×" if compared else "")
            lines.append(table_line(cells))
    return "\n".join(lines)


def _differences(groups: dict[tuple[Any, ...], dict[str, Row]]) -> str:
    heads = ["batch", "D", "precision", "steps", "run", "on the same embeddings: loss", "gradient"]
    heads += ["on its own: first step", "median", "largest"]
    lines = [table_line(heads), table_line(["---:", "---:", "---", "---:", "---", *["---:"] * 5])]
    for (dtype, d, n), group in groups.items():
        for name in (PATCHED, MOVED):
            if name not in group:
                continue
            each = group[name]
            keys = (
                "locked_loss_difference", "locked_gradient_difference", "first_difference",
                "median_difference", "largest_difference",
            )  # fmt: skip
            cells = [str(n), str(d), dtype, str(each["steps"]), TITLES[name]]
            cells += [f"{each[key]:.1e}" if key in each else "" for key in keys]
            lines.append(table_line(cells))
    return "\n".join(lines)


def _verdict(groups: dict[tuple[Any, ...], dict[str, Row]]) -> str:
    """Whether the patched run leaves lightly's further than lightly leaves itself, and where a
    step became slower."""
    texts = []
    for (_, d, n), group in groups.items():
        if PATCHED in group and MOVED in group:
            ratio = group[PATCHED]["median_difference"] / group[MOVED]["median_difference"]
            texts.append(
                f"At {n} × {d} the patched run is {ratio:.2f} times as far from lightly's as "
                "lightly is from itself, in the median of the steps."
            )
        if PATCHED in group and LIGHTLY in group:
            ratio = group[PATCHED]["median_ms"] / group[LIGHTLY]["median_ms"]
            texts += [f"A patched step is slower there ({ratio:.2f} times)."] if ratio > 1 else []
    return " ".join(texts)
