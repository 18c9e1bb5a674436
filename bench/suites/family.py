"""Losses of any number of views against the code that others write: forward + backward, on a CPU.

Each implementation is first held against the definition in float64 at a small shape; what differs
is not timed. All are called in turns.
"""

from __future__ import annotations

import importlib
import itertools
import time
from collections.abc import Callable, Sequence
from typing import Annotated, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional

import barlow_fast
from bench import cli, devices, provenance
from bench.cli import Option
from bench.inputs import VARIANTS, Variant, parse_shapes, parse_variants
from bench.markdown import SHAPE, Column, joined, reading, short, spread, table_of, titled
from bench.peers.official import off_diagonal
from bench.results import Row, grouped, ratio, rounded
from bench.session import Output, Session
from bench.timing import Budget, columns, interleave, percentile, without_collections

SECTION = "The family: losses of other kinds and of more views"
OURS = "ours"
TITLES = {
    OURS: "barlow_fast",
    "lightly": "lightly",
    "authors": "authors' formula",
    "solo-learn": "solo-learn's formula",
    "pairs": "barlow_fast, pair by pair",
    "two": "barlow_fast, two views",
}
SMALL = ((6, 20), (20, 6))
TOLERANCE = 1e-10
ALPHA, LAMBD = 0.3, 0.0051
FEW_FROM = 2.0  # seconds of a call from which it is timed three times

Loss = Callable[[Sequence[Tensor], Tensor], Tensor]  # of views and a permutation of the samples


def vicreg_authors(views: Sequence[Tensor], permutation: Tensor) -> Tensor:
    """By two covariance matrices."""
    n, d = views[0].shape
    loss = 25.0 * functional.mse_loss(*views)
    for z in views:
        centred = z - z.mean(0)
        deviation = torch.sqrt(centred.var(0) + 1e-4)
        loss = loss + 12.5 * torch.relu(1 - deviation).mean()
        loss = loss + off_diagonal(centred.T @ centred / (n - 1)).pow(2).sum() / d
    return loss


def vicreg_lightly(views: Sequence[Tensor], permutation: Tensor) -> Tensor:
    """The class of the library."""
    return importlib.import_module("lightly.loss").VICRegLoss()(*views)


def frossl_solo_learn(views: Sequence[Tensor], permutation: Tensor) -> Tensor:
    """By the smaller side's matrices of all views at once."""
    z = functional.normalize(torch.stack(list(views)), dim=1)
    count, n, d = z.shape
    matrices = z.transpose(1, 2) @ z if n > d else z @ z.transpose(1, 2)
    traces = matrices.diagonal(dim1=1, dim2=2).sum(1)
    norms = torch.linalg.norm(matrices / traces[:, None, None], dim=(1, 2))
    away = functional.mse_loss(z, z.mean(0).repeat(count, 1, 1))
    return (2 * torch.log(norms)).sum() + count * d * away


def mixed_authors(views: Sequence[Tensor], permutation: Tensor) -> Tensor:
    """By seven D x D products."""
    a, b, m = (functional.batch_norm(z, None, None, training=True) for z in views)
    n, c = len(a), a.T @ b / len(a)
    loss = (c.diagonal() - 1).pow(2).sum() + LAMBD * off_diagonal(c).pow(2).sum()
    for z in (a, b):
        first, second = a.T @ z / n, b[permutation].T @ z / n
        aimed_at = ALPHA * first + (1 - ALPHA) * second
        loss = loss + LAMBD * (m.T @ z / n - aimed_at).pow(2).sum()
    return loss


def by_pairs(views: Sequence[Tensor], permutation: Tensor) -> Tensor:
    """The mean over all pairs."""
    losses = [barlow_fast.barlow_twins_loss(*pair) for pair in itertools.combinations(views, 2)]
    return torch.stack(losses).mean()


class Kind(NamedTuple):
    """A loss: how many views, its implementations, of which the second is its definition, and
    whether one computes something else; the shapes."""

    views: int
    losses: dict[str, Loss]
    shapes: str
    other: str = ""


KINDS = {
    "vicreg": Kind(
        2,
        {
            OURS: lambda views, permutation: barlow_fast.vicreg_loss(*views),
            "authors": vicreg_authors,
            "lightly": vicreg_lightly,
        },
        "256x2048,256x8192,1024x1024,4096x512",
    ),
    "frossl": Kind(
        2,
        {
            OURS: lambda views, permutation: barlow_fast.frossl_loss(views),
            "solo-learn": frossl_solo_learn,
        },
        "256x2048,256x8192,1024x1024,4096x512",
    ),
    "mixed": Kind(
        3,
        {
            OURS: lambda views, permutation: barlow_fast.mixed_barlow_twins_loss(
                *views, permutation, ALPHA
            ),
            "authors": mixed_authors,
        },
        "256x2048,256x16384,1024x1024",
    ),
    "eight views": Kind(
        8,
        {
            OURS: lambda views, permutation: barlow_fast.barlow_twins_loss(list(views)),
            "pairs": by_pairs,
            "two": lambda views, permutation: barlow_fast.barlow_twins_loss(*views[:2]),
        },
        "256x2048,256x8192,1024x1024",
        other="two",
    ),
}


class Case(NamedTuple):
    """One loss at one shape."""

    kind: str
    n: int
    d: int
    variant: Variant

    def __str__(self) -> str:
        return f"{self.kind} {self.n}x{self.d} {self.variant.name}"


def command(
    given: Output,
    kinds: Annotated[
        str | None, Option(f"Of {', '.join(KINDS)}, comma-separated. Default: all.")
    ] = None,
    dtypes: Annotated[str, Option("Of fp32, bf16-autocast.")] = "fp32,bf16-autocast",
    shapes: Annotated[str | None, Option("N x D; default: those of each kind.")] = None,
    seconds: Annotated[float, Option("Time for each implementation of a case.")] = 2.0,
) -> int:
    """Time VICReg, FroSSL, Mixed Barlow Twins and eight views, ours and as others write them."""
    with cli.reading():
        some = None if shapes or not given.quick else 1
        cases = [
            Case(name, n, d, variant)
            for variant in parse_variants(dtypes, VARIANTS)
            for name in cli.listed(kinds, KINDS, "kind")
            for n, d in parse_shapes(shapes or KINDS[name].shapes)[:some]
        ]
    session = Session(devices.Cpu(), given)
    session.announce()
    budget = Budget(0.2 if given.quick else seconds, few_from=FEW_FROM)
    for case in session.in_time(cases):
        losses, wrong = usable(KINDS[case.kind])
        session.failures |= {f"{case} {name}": problem for name, problem in wrong.items()}
        session.keep(measure(case, losses, budget))
    return session.end()


def usable(kind: Kind) -> tuple[dict[str, Loss], dict[str, str]]:
    """(The implementations that can run and agree with the definition in float64, what is wrong
    with others)."""
    found, wrong = dict(kind.losses), {}
    if "lightly" in found and (missing := provenance.missing("lightly")):
        print(f"lightly is left out: {missing}")
        del found["lightly"]
    definition = list(found.values())[1]
    for (name, loss), (n, d) in itertools.product(list(found.items()), SMALL):
        views, permutation = inputs(kind.views, n, d, torch.float64)
        if name == kind.other:
            continue
        values = [each(views, permutation) for each in (loss, definition)]
        found_and_true = ((value.detach(), *torch.autograd.grad(value, views)) for value in values)
        for x, y in zip(*found_and_true, strict=True):
            if not float((x - y).norm()) <= TOLERANCE * max(float(y.norm()), 1.0):
                wrong[name] = f"differs from its definition at {n} x {d}"
    return {name: loss for name, loss in found.items() if name not in wrong}, wrong


def inputs(count: int, n: int, d: int, dtype: torch.dtype) -> tuple[list[Tensor], Tensor]:
    """(Views that correlate by about a half, gradients wanted; a permutation)."""
    generator = torch.Generator().manual_seed(0)
    common = torch.randn(n, d, generator=generator)
    views = [common + torch.randn(n, d, generator=generator) for _ in range(count)]
    permutation = torch.randperm(n, generator=generator)
    return [z.to(dtype).requires_grad_() for z in views], permutation


def measure(case: Case, losses: dict[str, Loss], budget: Budget) -> list[Row]:
    """The rows of one case, without provenance."""
    views, permutation = inputs(KINDS[case.kind].views, case.n, case.d, case.variant.dtype)

    def step(loss: Loss) -> float:
        for z in views:
            z.grad = None
        start = time.perf_counter()
        with case.variant.context():
            value = loss(views, permutation)
        value.backward()
        return time.perf_counter() - start

    actions = {name: lambda loss=loss: step(loss) for name, loss in losses.items()}
    counts = {name: budget.count(min(act(), act())) for name, act in actions.items()}
    with without_collections():
        samples = interleave(actions, counts)
    head = {"suite": "family", "n": case.n, "d": case.d, "dtype": case.variant.name}
    ours = percentile(samples[OURS], 20) if OURS in samples else None
    return [
        {
            **head, "case": case.kind, "peer": name,
            "source": f"lightly {provenance.version('lightly')}" if name == "lightly" else None,
            "repeats": len(found), **columns(found, "ms", 1e3),
            "over_ours": ours and rounded(percentile(found, 20) / ours),
        }
        for name, found in samples.items()
    ]  # fmt: skip


COLUMNS = [
    Column("loss", "case", left=True),
    SHAPE,
    Column("precision", "dtype", left=True),
    titled(TITLES),
    *spread("ms", short, "ms"),
    Column("of ours", "over_ours", lambda x: f"{x:.3g}×"),
]


def tables(rows: list[Row]) -> str:
    """Markdown of one machine's rows."""
    kinds = list(KINDS)
    rows = sorted(
        rows, key=lambda row: (kinds.index(row["case"]), row["dtype"] != "fp32", row["n"], row["d"])
    )
    several = [
        f"{n} × {d}, {dtype}: {found:.2f} times two views"
        for (_, n, d, dtype), group in grouped(rows, "case", "n", "d", "dtype").items()
        if (found := ratio(group, "p20_ms", OURS, "two"))
    ]
    verdict = f"Eight views cost, in lower quintiles: {'; '.join(several)}." if several else ""
    return joined(reading("family"), table_of(COLUMNS, rows), verdict)
