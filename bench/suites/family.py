"""Losses of any number of views against the code that others write: forward + backward, on a CPU.

Each implementation is first held against the definition in float64 at a small shape; what differs
is not timed. All are called in turns.
"""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Annotated, NamedTuple

import torch
from torch import Tensor

import barlow_fast
from bench import cli, devices, provenance, sources
from bench.cli import Option
from bench.inputs import VARIANTS, Variant, parse_shapes, parse_variants
from bench.markdown import SHAPE, Column, in_words, joined, reading, short, spread, table_of, titled
from bench.results import Row, rounded
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
SEED = 0
FEW_FROM = 2.0  # seconds of a call from which it is timed three times

Loss = Callable[[Sequence[Tensor], Tensor], Tensor]


def _off_diagonal(c: Tensor) -> Tensor:
    """The elements off the diagonal of a square matrix, as most of this field's code takes them."""
    d = c.shape[0]
    return c.flatten()[:-1].view(d - 1, d + 1)[:, 1:]


def _standardised(z: Tensor) -> Tensor:
    return torch.nn.functional.batch_norm(z, None, None, training=True)


def vicreg_authors(views: Sequence[Tensor], permutation: Tensor) -> Tensor:
    """By two covariance matrices."""
    a, b = views
    n, d = a.shape
    loss = 25.0 * torch.nn.functional.mse_loss(a, b)
    for z in (a, b):
        centred = z - z.mean(0)
        deviation = torch.sqrt(centred.var(0) + 1e-4)
        covariance = centred.T @ centred / (n - 1)
        loss = loss + 12.5 * torch.relu(1 - deviation).mean()
        loss = loss + _off_diagonal(covariance).pow(2).sum() / d
    return loss


def frossl_solo_learn(views: Sequence[Tensor], permutation: Tensor) -> Tensor:
    """By the smaller side's matrices of all views at once."""
    z = torch.nn.functional.normalize(torch.stack(list(views)), dim=1)
    count, n, d = z.shape
    matrices = z.transpose(1, 2) @ z if n > d else z @ z.transpose(1, 2)
    traces = matrices.diagonal(dim1=1, dim2=2).sum(1)
    norms = torch.linalg.norm(matrices / traces[:, None, None], dim=(1, 2))
    away = torch.nn.functional.mse_loss(z, z.mean(0).repeat(count, 1, 1))
    return (2 * torch.log(norms)).sum() + count * d * away


def mixed_authors(views: Sequence[Tensor], permutation: Tensor) -> Tensor:
    """By seven D x D products."""
    a, b, m = (_standardised(z) for z in views)
    n, c = a.shape[0], a.T @ b / a.shape[0]
    loss = (c.diagonal() - 1).pow(2).sum() + LAMBD * _off_diagonal(c).pow(2).sum()
    for z in (a, b):
        first, second = a.T @ z / n, b[permutation].T @ z / n
        aimed_at = ALPHA * first + (1 - ALPHA) * second
        loss = loss + LAMBD * (m.T @ z / n - aimed_at).pow(2).sum()
    return loss


def by_pairs(views: Sequence[Tensor], permutation: Tensor) -> Tensor:
    losses = [barlow_fast.barlow_twins_loss(*pair) for pair in itertools.combinations(views, 2)]
    return torch.stack(losses).mean()


def _lightly(name: str, listed: bool) -> Loss:
    import lightly.loss

    criterion = getattr(lightly.loss, name)()
    if listed:
        return lambda views, permutation: criterion(list(views))
    return lambda views, permutation: criterion(*views)


class Kind(NamedTuple):
    """A loss: how many views, its implementations, and of which the first is held to be right."""

    views: int
    losses: dict[str, Loss | Callable[[], Loss]]
    shapes: tuple[tuple[int, int], ...]


KINDS = {
    "vicreg": Kind(
        2,
        {
            OURS: lambda views, permutation: barlow_fast.vicreg_loss(*views),
            "authors": vicreg_authors,
            "lightly": lambda: _lightly("VICRegLoss", listed=False),
        },
        ((256, 2048), (256, 8192), (1024, 1024), (4096, 512)),
    ),
    "frossl": Kind(
        2,
        {
            OURS: lambda views, permutation: barlow_fast.frossl_loss(views),
            "solo-learn": frossl_solo_learn,
        },
        ((256, 2048), (256, 8192), (1024, 1024), (4096, 512)),
    ),
    "mixed": Kind(
        3,
        {
            OURS: lambda views, permutation: barlow_fast.mixed_barlow_twins_loss(
                *views, permutation, ALPHA
            ),
            "authors": mixed_authors,
        },
        ((256, 2048), (256, 16384), (1024, 1024)),
    ),
    "eight views": Kind(
        8,
        {
            OURS: lambda views, permutation: barlow_fast.barlow_twins_loss(list(views)),
            "pairs": by_pairs,
            "two": lambda views, permutation: barlow_fast.barlow_twins_loss(*views[:2]),
        },
        ((256, 2048), (256, 8192), (1024, 1024)),
    ),
}
LATE = ("lightly",)  # implementations that are made when they are needed
OTHERS = ("two",)  # what computes something else


@dataclass(frozen=True)
class Case:
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
        names = cli.listed(kinds, KINDS, "kind")
        variants = parse_variants(dtypes, VARIANTS)
        wanted = parse_shapes(shapes) if shapes else None
    quick = given.quick
    cases = [
        Case(name, n, d, variant)
        for variant in variants
        for name in names
        for n, d in (wanted or (KINDS[name].shapes[:1] if quick else KINDS[name].shapes))
    ]
    session = Session(devices.Cpu(), given, sources.CODE)
    session.announce()
    budget = Budget(0.2 if quick else seconds, few_from=FEW_FROM)
    for case in session.in_time(cases):
        losses, wrong = usable(KINDS[case.kind])
        session.failures |= {f"{case} {name}": problem for name, problem in wrong.items()}
        session.keep(measure(case, losses, budget), SHOWN)
    return session.end()


def usable(kind: Kind) -> tuple[dict[str, Loss], dict[str, str]]:
    """(The implementations that can run and agree with the first in float64, what is wrong with
    others)."""
    found, wrong = {}, {}
    for name, loss in kind.losses.items():
        if name in LATE:
            if missing := provenance.missing(name):
                print(f"{name} is left out: {missing}")
                continue
            loss = loss()
        found[name] = loss
    definition = next(loss for name, loss in found.items() if name != OURS)
    for name, loss in list(found.items()):
        for n, d in SMALL:
            views, permutation = inputs(kind.views, n, d, torch.float64)
            if name in OTHERS:
                continue
            values = []
            for each in (loss, definition):
                value = each(views, permutation)
                values.append((value, *torch.autograd.grad(value, views)))
            for x, y in zip(*values, strict=True):
                if float((x - y).norm()) > TOLERANCE * max(float(y.norm()), 1.0):
                    wrong[name] = f"differs from its definition at {n} x {d}"
                    found.pop(name, None)
    return found, wrong


def inputs(count: int, n: int, d: int, dtype: torch.dtype) -> tuple[list[Tensor], Tensor]:
    """(Views that correlate by about a half, gradients wanted; a permutation)."""
    generator = torch.Generator().manual_seed(SEED)
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

    estimates = {name: min(step(loss) for _ in range(2)) for name, loss in losses.items()}
    counts = {name: budget.count(seconds) for name, seconds in estimates.items()}
    with without_collections():
        actions = {name: lambda loss=loss: step(loss) for name, loss in losses.items()}
        samples = interleave(actions, counts)
    head = {"suite": "family", "n": case.n, "d": case.d, "dtype": case.variant.name}
    fastest = {name: percentile(found, 20) for name, found in samples.items()}
    return [
        {
            **head, "case": case.kind, "peer": name,
            "source": f"lightly {provenance.version('lightly')}" if name == "lightly" else None,
            "repeats": len(found), **columns(found, "ms", 1e3),
            "over_ours": rounded(fastest[name] / fastest[OURS]) if OURS in fastest else None,
        }
        for name, found in samples.items()
    ]  # fmt: skip


LEFT = [
    Column("loss", "case", left=True),
    SHAPE,
    Column("precision", "dtype", left=True),
    titled(TITLES),
]
RIGHT = [*spread("ms", short, "ms"), Column("of ours", "over_ours", lambda x: f"{x:.3g}×")]
SHOWN = in_words(*LEFT, *RIGHT)


def tables(rows: list[Row]) -> str:
    """Markdown of one machine's rows."""
    kinds = list(KINDS)
    rows = sorted(
        rows, key=lambda row: (kinds.index(row["case"]), row["dtype"] != "fp32", row["n"], row["d"])
    )
    return joined(reading("family"), table_of([*LEFT, *RIGHT], rows))
