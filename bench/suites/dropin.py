"""A training run through lightly's own example, before and after `barlow_fast.patch("lightly")`.

Three runs start from the same seed and see the same batches, in turns: lightly's loss, lightly's
class replaced by the patch, and lightly's loss once more from weights that are moved by one unit in
the last place. The last is the baseline: how far rounding alone carries two runs of one program
apart. A run in float64 begins closer by nine digits; over many steps that grows as well. So at
every step both losses also see the same embeddings, where nothing can grow: that is the comparison.
"""

from __future__ import annotations

import functools
import importlib.util
import itertools
import random
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Annotated, Any

import torch
from torch import Tensor, nn

from bench import devices, exits, provenance
from bench.agreement import Errors, errors, in_double, run
from bench.cli import Option
from bench.group import leaves
from bench.inputs import FP64, VARIANTS, Pair, Variant
from bench.markdown import Column, joined, reading, short, spread, table_of, titled
from bench.results import Row, chosen, grouped, ratio, rounded
from bench.session import Output, Session
from bench.timing import columns, percentile, without_collections
from bench.views.agreement import DisagreementError

SECTION = "Drop-in: lightly's example before and after the patch"
LIGHTLY, PATCHED, MOVED = "lightly", "patched", "lightly-moved"
TITLES = {LIGHTLY: "lightly", PATCHED: "patched", MOVED: "lightly, weights moved by one rounding"}
STEPS, QUICK_STEPS = 50, 6
BATCH, QUICK_BATCH, DOUBLE_BATCH = 128, 32, 16
EXAMPLE = "examples/lightly_barlow_twins.py"
LEARNING_RATE = 0.06  # of that example
DISTINCT = 8  # batches, which come round again
WARM_UPS = 2  # first steps, which are not timed
PROBES = 10  # every so many steps both losses are held against float64
# A loss or gradient may be this often as far from float64 as lightly's, plus a few roundings.
ALLOWED, ROUNDINGS = 2.0, 4
DOUBLE = 1e-10  # the most that both are apart in float64
SEED = 0
NEEDED = ("lightly", "torchvision", "sklearn", "PIL")

Criterion = Callable[[Tensor, Tensor], Tensor]


def command(
    given: Output,
    steps: Annotated[int | None, Option("Of each run.", least=WARM_UPS + 1)] = None,
    batch: Annotated[int | None, Option("Samples; two views of each.", least=2)] = None,
) -> int:
    """Train lightly's example before and after the patch: losses, seconds, the loss's share."""
    if missing := provenance.missing(*NEEDED):
        print(f"{missing} (pip install lightly ...)")
        return exits.FAILED
    steps = steps or (QUICK_STEPS if given.quick else STEPS)
    batch = batch or (QUICK_BATCH if given.quick else BATCH)
    session = Session(devices.Cpu(), given)
    session.announce()
    cases = [(batch, VARIANTS["fp32"]), (min(batch, DOUBLE_BATCH), FP64)]
    for samples, variant in session.in_time(cases):
        try:
            rows = measure(steps, samples, variant)
        except DisagreementError as error:
            session.failures[f"{samples} samples, {variant.name}"] = f"not timed: {error}"
            break
        session.keep(rows)
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

    def columns(self) -> Row:
        """Of a row: seconds of the steps, and of the loss in them."""
        seconds, loss_seconds = self.seconds[WARM_UPS:], self.loss_seconds[WARM_UPS:]
        shares = [part / whole for part, whole in zip(loss_seconds, seconds, strict=True)]
        return {
            "steps": len(self.losses),
            **columns(seconds, "ms", 1e3),
            "loss_ms": rounded(percentile(loss_seconds, 50) * 1e3),
            "loss_share": rounded(percentile(shares, 50)),
            "first_loss": self.losses[0],
            "last_loss": self.losses[-1],
        }

    def differences(self, other: Run) -> Row:
        """Of a row: how far its losses are from those of another run."""
        if self is other:
            return {}
        found = [abs(x - y) / y for x, y in zip(self.losses, other.losses, strict=True)]
        chosen = {"first": found[0], "median": percentile(found, 50), "largest": max(found)}
        return {f"{key}_difference": rounded(value) for key, value in chosen.items()}


@functools.cache
def example() -> Any:
    """The module of EXAMPLE: lightly's example with the loss as an option."""
    path = provenance.ROOT / EXAMPLE
    specification = importlib.util.spec_from_file_location(path.stem, path)
    module = importlib.util.module_from_spec(specification)
    specification.loader.exec_module(module)
    return module


def network() -> nn.Module:
    """ResNet-18 and lightly's head."""
    return example().BarlowTwins()


def criterion(loss: str) -> nn.Module:
    """lightly's loss, or what the same import gives under the patch."""
    with example().criterion_of(loss) as found:
        return found


def start(name: str, criterion: Criterion, dtype: torch.dtype) -> Run:
    """A run at its first step; the weights are the same for all but MOVED."""
    torch.manual_seed(SEED)
    model = network().to(dtype)
    if name == MOVED:
        with torch.no_grad():
            for weight in model.parameters():
                up = torch.rand_like(weight) < 0.5
                far = torch.where(up, torch.inf, -torch.inf).to(dtype)
                weight.copy_(torch.nextafter(weight, far))
    optimizer = torch.optim.SGD(model.parameters(), lr=LEARNING_RATE)
    return Run(name, model, optimizer, criterion)


def views(batch: int, count: int, dtype: torch.dtype) -> list[list[Tensor]]:
    """`count` batches of lightly's two views at the most."""
    import numpy as np

    for seed in (torch.manual_seed, random.seed, np.random.seed):  # its views draw from all three
        seed(SEED)
    pairs = itertools.islice(example().two_views(batch), count)
    return [[view.to(dtype) for view in pair] for pair in pairs]


def measure(steps: int, batch: int, variant: Variant) -> list[Row]:
    """The rows of one precision, without provenance.

    Raises:
        DisagreementError: the patched loss is further from float64 than lightly's may be.
    """
    losses = {LIGHTLY: criterion(LIGHTLY), PATCHED: criterion(PATCHED)}
    if type(losses[PATCHED]) is type(losses[LIGHTLY]):
        raise DisagreementError("the patch replaced nothing, or something had been replaced before")
    moved = {} if variant == FP64 else {MOVED: losses[LIGHTLY]}
    runs = [start(name, loss, variant.dtype) for name, loss in (losses | moved).items()]
    batches = views(batch, min(steps, DISTINCT), variant.dtype)
    locked = Locked(losses, variant)
    generator = random.Random(SEED)
    with without_collections():
        for step in range(steps):
            for each in generator.sample(runs, len(runs)):
                seen = each.step(*batches[step % len(batches)])
                if each.name == LIGHTLY:
                    locked.compare(seen, probe=step % PROBES == 0)
    locked.check()
    head = {"suite": "dropin", "n": batch, "d": seen[0].shape[1], "dtype": variant.name}
    source = f"lightly {provenance.version('lightly')}"
    same = {PATCHED: locked.columns()}
    return [
        {**head, "peer": each.name, "source": source, **each.columns()}
        | {**each.differences(runs[0]), **same.get(each.name, {})}
        for each in runs
    ]


class Locked:
    """Both losses on the same embeddings, those of lightly's run.

    Attributes:
        difference: between them, the largest of all steps.
        errors: of each against lightly's loss in float64, the largest of the steps that are probed.
    """

    def __init__(self, losses: dict[str, Criterion], variant: Variant) -> None:
        self.losses, self.variant = losses, variant
        self.difference = Errors(0.0, 0.0)
        self.errors: dict[str, Errors] = {}

    def compare(self, pair: Pair, probe: bool) -> None:
        """One step; with `probe`, against lightly's loss in float64 too."""
        found = {name: run(loss, leaves(pair), self.variant) for name, loss in self.losses.items()}
        self.difference = self.difference.most(errors(found[PATCHED], found[LIGHTLY]))
        if not probe or self.variant == FP64:
            return
        true = run(self.losses[LIGHTLY], in_double(pair), FP64)
        for name, each in found.items():
            known = self.errors.get(name, Errors(0.0, 0.0))
            self.errors[name] = known.most(errors(each, true))

    def check(self) -> None:
        """DisagreementError where the patched loss is another one."""
        found, allowed = self.difference, Errors(DOUBLE, DOUBLE)
        if self.variant != FP64:
            found, plain = self.errors[PATCHED], self.errors[LIGHTLY]
            floor = ROUNDINGS * torch.finfo(self.variant.dtype).eps
            allowed = Errors(ALLOWED * plain.loss + floor, ALLOWED * plain.gradient + floor)
        if not found.within(allowed.loss, allowed.gradient):
            raise DisagreementError(
                f"on the same embeddings the patched loss is off by {found.loss:.1e} (allowed "
                f"{allowed.loss:.1e}), its gradient is off by {found.gradient:.1e} (allowed "
                f"{allowed.gradient:.1e})"
            )

    def columns(self) -> Row:
        """Of the row of the patched run."""
        found = vars(self.difference).items()
        return {f"locked_{what}_difference": rounded(value) for what, value in found}


PEER = titled(TITLES, "loss of")
SIZES = [Column("batch", "n"), Column("D", "d")]
TIMES = [
    *spread("ms", short, "step, ms"),
    Column("loss, ms", "loss_ms", short),
    Column("share of the step", "loss_share", ".1%"),
]
FASTER = Column("times as fast", "faster", missing="")
DIFFERENCES = [
    Column(head, f"{key}_difference", ".1e", missing="")
    for head, key in (
        ("on the same embeddings: loss", "locked_loss"),
        ("gradient", "locked_gradient"),
        ("on its own: first step", "first"),
        ("median", "median"),
        ("largest", "largest"),
    )
]


def tables(rows: list[Row]) -> str:
    """Markdown of one machine's rows: seconds, then differences."""
    groups = dict(sorted(grouped(rows, "dtype", "d", "n").items()))
    single = {key: group for key, group in groups.items() if key[0] != FP64.name}
    for group in single.values():
        if faster := ratio(group, "median_ms", LIGHTLY, PATCHED):
            group[PATCHED] = group[PATCHED] | {"faster": f"{faster:.2f}×"}
    times, apart = (
        chosen((LIGHTLY, PATCHED), *single.values()),
        chosen((PATCHED, MOVED), *groups.values()),
    )
    run = [Column("precision", "dtype", left=True), Column("steps", "steps")]
    return joined(
        reading("dropin", learning_rate=LEARNING_RATE),
        table_of([*SIZES, PEER, *TIMES, FASTER], times) if single else "",
        "How far losses are apart:",
        table_of([*SIZES, *run, titled(TITLES, "run"), *DIFFERENCES], apart),
        " ".join(itertools.chain.from_iterable(_verdict(*each) for each in single.items())),
    )


def _verdict(key: tuple[Any, ...], group: dict[str, Row]) -> Iterator[str]:
    """Whether the patched run leaves lightly's further than lightly leaves itself, and whether a
    step became slower."""
    if apart := ratio(group, "median_difference", PATCHED, MOVED):
        yield (
            f"At {key[2]} × {key[1]} the patched run is {apart:.2f} times as far from lightly's "
            "as lightly is from itself, in the median of the steps."
        )
    if (slower := ratio(group, "median_ms", PATCHED, LIGHTLY)) and slower > 1:
        yield f"A patched step is slower there ({slower:.2f} times)."
