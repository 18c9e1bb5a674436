"""Compare two files of results, of different commits or runs, with verdicts that consider noise.

Slower or faster needs two things: ranges from p20 to p80 that do not overlap, and medians that
differ by more than the threshold. Both are judged after removing the drift of the machine: the
median change of what took turns with a row and is neither of this repository nor of another version
than before. Bytes and the largest D do not drift.
"""

from __future__ import annotations

import math
import statistics
import subprocess
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Annotated, NamedTuple

from bench import cli, provenance, results
from bench.cli import Option
from bench.markdown import Column, table_of, titled
from bench.plots.figure import number
from bench.results import Row

SLOWER, FASTER, SAME = "slower", "faster", "same within noise"
FAILS, WORKS = "fails now", "works now"
ORDER = (FAILS, SLOWER, WORKS, FASTER, SAME)
RESULTS = "bench/results/cpu-NAME.jsonl"
# Ours under other names: no estimates of the machine's drift.
NOT_UNCHANGED = ("ours", "limit", "kernel-", "crops-")
PAGES = 2**20  # resident memory comes in pages and stacks of threads

Figures = tuple[float, ...]  # median, least and most
Pair = tuple[Row, Row]


class Measure(NamedTuple):
    """One figure of a row: its name and unit, the columns of its median, least and most or of the
    only one, whose range is `within` wide; whether more is better, and whether the state of the
    machine changes it."""

    name: str
    unit: str
    keys: tuple[str, ...]
    within: float = 0.0
    more_is_better: bool = False
    drifts: bool = True

    def figures(self, row: Row) -> Figures | None:
        """None where a column is missing."""
        values = [number(row.get(key)) for key in self.keys]
        if None in values:
            return None
        median, low, high = values * (3 // len(values))
        return median, low - self.within / 2, high + self.within / 2

    def cost(self, figures: Figures) -> Figures:
        """The inverse of what is better when it is more."""
        median, low, high = figures
        return (1 / median, 1 / high, 1 / low) if self.more_is_better else figures


MEASURES = (
    Measure("time", "ms", ("median_ms", "p20_ms", "p80_ms")),
    Measure("time in a graph", "ms", ("graph_ms", "graph_p20_ms", "graph_p80_ms")),
    Measure("forward", "ms", ("forward_ms", "forward_p20_ms", "forward_p80_ms")),
    Measure("time", "s", ("median_s", "p20_s", "p80_s")),
    Measure("rate", "/s", ("median_per_s", "p20_per_s", "p80_per_s"), more_is_better=True),
    Measure("sent", "bytes", ("counted_bytes",), drifts=False),
    Measure("memory", "bytes", ("extra_bytes",), PAGES, drifts=False),
    Measure("largest D", "", ("d", "d", "failed_d"), more_is_better=True, drifts=False),
)


def command(
    a: Annotated[str, Option(f"File of rows, or COMMIT:{RESULTS}: before.")],
    b: Annotated[str, Option("The same: after.")],
    suite: Annotated[str | None, Option("Suites, comma-separated. Default: all in both.")] = None,
    threshold: Annotated[float, Option("The share that counts as a difference.")] = 0.03,
    fail_on_slower: Annotated[bool, Option("Exit with 1 if anything is slower.")] = False,
) -> int:
    """Compare the results of two files, of different commits or runs."""
    with cli.reading():
        sides = [side(a), side(b)]
        known = sorted({str(row["suite"]) for rows in sides for row in rows})
        wanted = cli.listed(suite, known, "suite")
        found, alone = compare(
            *([row for row in rows if row["suite"] in wanted] for rows in sides), threshold
        )
        if not found:
            raise ValueError(f"no row of {a} matches one of {b}")
    for name, rows in zip("AB", sides, strict=True):
        torch = sorted({str((row.get("provenance") or {}).get("torch")) for row in rows})
        print(f"{name}: {len(rows)} rows, torch {', '.join(torch)}")
    print("Ratios are cost of B over cost of A: above 1, B is slower")
    print(table_of(COLUMNS, found))
    counts = Counter(line["verdict"] for line in found)
    words = [f"{counts[verdict]} {verdict}" for verdict in ORDER if counts[verdict]]
    words += [f"{n} only in {name}" for name, n in zip("AB", alone, strict=True) if n]
    print(f"{', '.join(words)} (threshold {threshold:.3g}, ranges p20 to p80 apart, drift removed)")
    return int(fail_on_slower and bool(counts[SLOWER] or counts[FAILS]))


def side(name: str, root: Path = provenance.ROOT) -> list[Row]:
    """The rows of a file, or of a file at a commit as Git names it; ValueError where there are
    none."""
    path = Path(name)
    if path.is_file():
        text = path.read_text(encoding="utf-8", errors="replace")
    else:
        command = ["git", "-C", str(root), "show", "--end-of-options", name]
        done = subprocess.run(command, capture_output=True, text=True, encoding="utf-8")
        if done.returncode:
            raise ValueError(f"{name!r} is no file of rows, nor one of a commit (COMMIT:{RESULTS})")
        text = done.stdout
    try:
        rows = results.parse(text)
        if not all("suite" in row for row in rows):
            raise ValueError("a row is an object with a 'suite'")
    except (ValueError, TypeError) as error:
        raise ValueError(f"{name} is not a file of rows, one JSON object a line: {error}") from None
    if not rows:
        raise ValueError(f"{name} has no rows")
    return rows


def compare(
    a: Sequence[Row], b: Sequence[Row], threshold: float
) -> tuple[list[Row], tuple[int, int]]:
    """(a line for each figure of rows of the same machine, group and peer; how many rows only A and
    only B has). Worst verdict first, then the largest change."""
    left, right = ({_key(row): row for row in rows} for rows in (a, b))
    groups: dict[tuple, list[Pair]] = {}
    for key in (key for key in left if key in right):
        groups.setdefault(key[:-1], []).append((left[key], right[key]))
    found = [
        line
        for turns in groups.values()
        for rows in turns
        for measure in MEASURES
        for line in _lines(measure, rows, turns, threshold)
    ]
    found.sort(key=lambda line: (ORDER.index(line["verdict"]), -abs(math.log(line["corrected"]))))
    return found, (len(left.keys() - right.keys()), len(right.keys() - left.keys()))


def _key(row: Row) -> tuple:
    """What two rows that are compared have in common, the peer last."""
    model = (row.get("provenance") or {}).get("cpu_family_model")
    return results.machine([row]), model, *results.group(row), row.get("peer")


def _lines(measure: Measure, rows: Pair, turns: Sequence[Pair], threshold: float) -> Iterator[Row]:
    """The line of one figure, where a row has it; `turns`: the rows that took turns."""
    a, b = map(measure.figures, rows)
    line = rows[1] | {"measure": measure, "a": a, "b": b, "ratio": None, "drift": None}
    if a and b:
        drifts = [
            measure.cost(measure.figures(after))[0] / measure.cost(measure.figures(before))[0]
            for before, after in turns
            if before is not rows[0]
            and measure.drifts
            and not str(before["peer"]).startswith(NOT_UNCHANGED)
            and before.get("source") == after.get("source")
            and measure.figures(before)
            and measure.figures(after)
        ]
        drift = statistics.median(drifts) if drifts else None
        before, least, most = measure.cost(a)
        after, low, high = (cost / (drift or 1.0) for cost in measure.cost(b))
        corrected, verdict = after / before, SAME
        if corrected > 1 + threshold and low > most:
            verdict = SLOWER
        elif corrected < 1 / (1 + threshold) and high < least:
            verdict = FASTER
        line |= {"ratio": corrected * (drift or 1.0), "drift": drift}
        yield line | {"corrected": corrected, "verdict": verdict}
    elif (a or b) and (problem := rows[bool(a)].get("problem")):
        verdict = FAILS if a else WORKS
        yield line | {"corrected": 1.0, "verdict": verdict, "reason": f": {problem}"}


def _what(line: Row) -> str:
    parts = (f"{line['n']} × {line['d']}", line["dtype"], line.get("ranks"), line.get("case"))
    return ", ".join(str(part) for part in parts if part is not None)


def _range(figures: Figures) -> str:
    # Four digits: ranges that differ should look different.
    median, low, high = (f"{v:,.0f}" if v >= 1000 else f"{v:.4g}" for v in figures)
    return median if low == high else f"{median} ({low}–{high})"


COLUMNS = [
    Column("suite", "suite", left=True),
    Column("what", _what, left=True),
    titled({}, "peer"),
    Column("measure", lambda line: f"{line['measure'].name} {line['measure'].unit}", left=True),
    *(Column(f"{side.upper()} (p20–p80)", side, _range) for side in "ab"),
    *(Column(name, name, ".3f") for name in ("ratio", "drift", "corrected")),
    Column("verdict", lambda line: line["verdict"] + line.get("reason", ""), left=True),
]
