"""The largest D that each peer can do at N = 256 within a given memory, and memory against D.

Every try is a process of its own, whose address space may grow by the limit and no more: inputs,
gradients and everything else of one forward and backward pass. A peer that allocates more gets the
error of its own allocation, and the row keeps that error. D is bracketed: from two small passes
the next try is predicted, until the smallest D that failed is at most 5 % above the largest that
worked.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from typing import Annotated

from bench import agreement, cli, devices, peak_memory, peers
from bench.cli import Option
from bench.inputs import VARIANTS, parse_variants
from bench.markdown import Column, details, joined, reading, table_of, titled
from bench.results import Row, grouped
from bench.session import Output, Session

SECTION = "The largest D"
LIMIT_GB = 20.0
FIRST = (8192, 16384)
QUICK_FIRST, QUICK_LIMIT_GB, QUICK_PEERS = (1024, 2048), 0.3, "ours,official"
STEP = 256  # tries are multiples of this
CLOSE = 1.05  # failed over worked: close enough
MOST_TRIES = 12
MOST_D = 1 << 24  # far beyond what 20 GB hold
HEADROOM = 1.03  # of the limit, which must be free

Measure = Callable[[int], Row]


def command(
    given: Output,
    limit_gb: Annotated[
        float | None, Option(f"Memory in 10^9 bytes; default {LIMIT_GB:g}.", least=0.05)
    ] = None,
    n: Annotated[int, Option("Samples in a batch.", least=2)] = 256,
    dtypes: Annotated[
        str, Option("Of fp32, bf16-autocast, bf16-inputs; bf16 stands for both.")
    ] = "fp32",
    names: Annotated[
        str | None, Option("Comma-separated. Default: all that do not compile.", name="--peers")
    ] = None,
) -> int:
    """Find the largest D of each peer within a given memory (Linux, CPU)."""
    limit = int((limit_gb or (QUICK_LIMIT_GB if given.quick else LIMIT_GB)) * 1e9)
    device = devices.Cpu()
    with cli.reading():
        variants = parse_variants(dtypes)
        names = names or (QUICK_PEERS if given.quick else None)
        chosen = peers.choose(names, compiled=False)
        if (reason := device.why_no_memory()) is not None:
            raise RuntimeError(reason)
        free = peak_memory.available()
        if free < HEADROOM * limit:
            raise RuntimeError(
                f"--limit-gb {limit / 1e9:g}: only {free / 1e9:.1f} GB are free on this machine"
            )
    session = Session(device, given)
    first = QUICK_FIRST if given.quick else FIRST
    for variant in session.in_time(variants):
        rows = []
        for peer in peers.available(chosen):
            reason = agreement.check_small(peer, [variant])
            if reason is not None:
                session.failures[f"{variant.name} {peer.name}"] = reason
                continue
            measure = functools.partial(_measure, n, variant.name, peer.name, limit)
            row = {"suite": "largest", "n": n, "dtype": variant.name, **peer.columns()}
            row |= {"exact": peer.exact, "limit_bytes": limit}
            rows.append(row | search(measure, limit, first))
        session.keep(rows)
    return session.end()


def _measure(n: int, dtype: str, name: str, limit: int, d: int) -> Row:
    found = peak_memory.in_child(n, d, dtype, name, limit)
    size = found.get("problem") or f"{total(found) / 1e9:.2f} GB"
    print(f"{name} {n} x {d}: {size}", flush=True)
    return found


def search(measure: Measure, limit: int, first: tuple[int, int]) -> Row:
    """Brackets the largest D: fields `d`, `failed_d`, `problem` and `points` of a row.

    `points` are [D, bytes] in the order of D: inputs plus the peak beyond them, None where it
    failed. `d` is 0 where even the first try failed; `failed_d` None where none did.
    """
    points: dict[int, int | None] = {}
    problem = None
    queue = list(first)
    while len(points) < MOST_TRIES:
        d = queue.pop(0) if queue else predicted(points, limit)
        if d is None:
            break
        found = measure(d)
        if "problem" in found:
            points[d] = None
            problem, queue = found["problem"], []
        else:
            points[d] = total(found)
    worked = [d for d, size in points.items() if size is not None]
    failed = [d for d, size in points.items() if size is None]
    return {
        "d": max(worked, default=0),
        "failed_d": min(failed, default=None),
        "problem": problem,
        "points": [[d, points[d]] for d in sorted(points)],
    }


def predicted(points: dict[int, int | None], limit: int) -> int | None:
    """The next D to try; None when the bracket is close enough, or nothing worked."""
    worked = sorted(d for d, size in points.items() if size is not None)
    failed = min((d for d, size in points.items() if size is None), default=None)
    if not worked:
        return None
    low = worked[-1]
    if low >= MOST_D or (failed is not None and failed <= CLOSE * low):
        return None
    guess = 8.0 * low
    if len(worked) > 1:
        # By a line and by a power of D through the last two: the nearer.
        d, size = worked[-2], points[worked[-2]]
        rise, growth = points[low] - size, math.log(points[low] / size) / math.log(low / d)
        if rise > 0:
            line = low + (limit - points[low]) * (low - d) / rise
            guess = min(line, low * (limit / points[low]) ** (1 / growth))
    # Just below the predicted edge while nothing has failed, then just above what worked.
    guess *= 0.985 if failed is None or guess < failed else 1.0
    highest = MOST_D if failed is None else failed / 1.02
    guess = min(max(guess, 1.03 * low), highest, 8 * low)
    d = int(guess) // STEP * STEP
    if d <= low or d in points:
        d = int((low * (failed or 2 * low)) ** 0.5) // STEP * STEP
    return None if d <= low or d in points else d


def total(found: Row) -> int:
    """Bytes of a pass, with its inputs."""
    return found["input_bytes"] + found["peak_bytes"]


COLUMNS = [
    titled({name: peer.title for name, peer in peers.discover().items()}),
    Column("largest D", "d"),
    Column("failed at", "failed_d"),
    Column("ours / its", "behind", lambda ratio: f"{ratio:.3g}×"),
    Column(f"memory at D = {FIRST[1]}", "memory", lambda size: f"{size / 1e9:.2f} GB"),
]


def tables(rows: list[Row]) -> str:
    """Markdown of one machine's rows: the peers in the order of their largest D."""
    parts = []
    for (n, dtype, limit), group in grouped(rows, "n", "dtype", "limit_bytes").items():
        ours = group.get("ours", {}).get("d")
        lines = [
            row
            | {"behind": ours / row["d"] if ours and row["d"] else None}
            | {"memory": dict(map(tuple, row["points"])).get(FIRST[1])}
            for row in sorted(group.values(), key=lambda row: (-row["d"], row["peer"]))
        ]
        title = VARIANTS[dtype].title
        parts.append(reading("largest", n=n, title=title, gigabytes=limit / 1e9))
        parts.append(table_of(COLUMNS, lines))
        problems = [f"- {COLUMNS[0].cell(r)}: {r['problem']}" for r in lines if r["problem"]]
        parts += [details("Errors", "\n".join(problems))] if problems else []
    return joined(*parts)
