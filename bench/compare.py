"""Compare two files of results, of different commits or runs, with verdicts that consider noise.

A verdict of slower or faster needs two things: the ranges from p20 to p80 do not overlap, and the
medians differ by more than the threshold. Both are judged after correcting for the drift of the
machine: two runs of the same code differ by its clock rate, its neighbours and its memory, and what
changes all times by the same factor is not an effect of the code.

The factor is estimated from what did not change between the two: implementations that are not of
this repository in the same group of rows (they took turns with ours), and the measured rate of the
matrix product that bounds the group. Their median is the drift; where the estimates disagree, the
range that is compared is as much wider. The copy bandwidth is left out: on shared machines it
doubles from one minute to the next. An implementation never corrects itself, and uncorrected ratios
are shown too. Bytes do not drift: they are compared as they are.
"""

from __future__ import annotations

import json
import math
import re
import statistics
import subprocess
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from operator import attrgetter
from pathlib import Path
from typing import Annotated, Any, NamedTuple

from bench import cli, provenance
from bench.cli import Option
from bench.console import aligned
from bench.markdown import Column, cells
from bench.plots import drawing
from bench.results import Row

SLOWER, FASTER, SAME, NOT = "slower", "faster", "same within noise", "not comparable"
FAILS, WORKS = "fails now", "works now"
ORDER = (FAILS, SLOWER, WORKS, FASTER, SAME, NOT)
RESULTS = "bench/results/cpu-NAME.jsonl"
# Ours under other names: no estimates of the machine's drift.
NOT_UNCHANGED = ("limit", "kernel-", "crops-")
VERSIONS = ("torch", "triton", "cuda", "driver", "cores", "threads", "instruction_set")

Figures = tuple[float, float, float]  # median, p20 and p80, all the same where there is no noise


@dataclass(frozen=True)
class Measure:
    """One figure of a row.

    Attributes:
        name: what is measured.
        keys: of the median and the percentiles in a row; the median alone where there is no noise.
        unit: of all of them.
        more_is_better: for rates.
        drifts: whether the state of the machine changes it.
        suite: the only suite that has it; any for None.
        least: differences below it are none, in its unit: what measuring alone makes of it.
        share: the same as a share; a smaller threshold counts as this.
    """

    name: str
    keys: tuple[str, ...]
    unit: str
    more_is_better: bool = False
    drifts: bool = True
    suite: str | None = None
    least: float = 0.0
    share: float = 0.0

    def figures(self, row: Row) -> Figures | None:
        """Those of a row; None where it lacks one."""
        if self.suite not in (None, row["suite"]):
            return None
        values = [drawing.number(row.get(key)) for key in self.keys]
        return None if None in values else tuple(values * (3 // len(values)))

    def cost(self, figures: Figures) -> Figures:
        """Median, least and most of what it costs: a rate's is its inverse."""
        median, low, high = figures
        return (1 / median, 1 / high, 1 / low) if self.more_is_better else figures


MEASURES = (
    Measure("time", ("median_ms", "p20_ms", "p80_ms"), "ms"),
    Measure("time in a graph", ("graph_ms", "graph_p20_ms", "graph_p80_ms"), "ms"),
    Measure("forward", ("forward_ms", "forward_p20_ms", "forward_p80_ms"), "ms"),
    Measure("time", ("median_s", "p20_s", "p80_s"), "s"),
    Measure("rate", ("median_per_s", "p20_per_s", "p80_per_s"), "/s", more_is_better=True),
    Measure("sent", ("counted_bytes",), "bytes", drifts=False),
    # Resident memory comes in pages and stacks of threads.
    Measure("memory", ("extra_bytes",), "bytes", drifts=False, suite="memory", least=2**20),
    # Bracketed to 5 % by its suite.
    Measure(
        "largest D", ("d",), "", more_is_better=True, drifts=False, suite="largest", share=0.05
    ),
)


class Key(NamedTuple):
    """What two rows that are compared have in common; the device as precisely as its rows say."""

    device: str
    suite: str
    n: Any
    d: Any
    dtype: Any
    peer: Any
    ranks: Any
    case: Any

    @property
    def group(self) -> Key:
        """Of the rows that took turns."""
        return self._replace(peer=None)

    @property
    def anywhere(self) -> Key:
        """On any device."""
        return self._replace(device="")

    @classmethod
    def of(cls, row: Row) -> Key:
        """Of a row."""
        origin = row.get("provenance") or {}
        model = f" {origin['cpu_family_model']}" if origin.get("cpu_family_model") else ""
        device = origin.get("gpu") or f"{origin.get('cpu')}{model}, {origin.get('cores')} cores"
        # The largest D is what is measured there.
        row = row | {"d": None} if row["suite"] == "largest" else row
        return cls(device, *(row.get(key) for key in cls._fields[1:]))


@dataclass(frozen=True)
class Comparison:
    """One figure of both sides.

    Attributes:
        key: of both rows.
        measure: what is compared; None where nothing is.
        a, b: of each side; None where it has none.
        ratio: cost of B over cost of A: above 1, B is slower. None where there are not both.
        drift: what of it is the machine's; None where nothing shows it.
        corrected: ratio / drift.
        verdict: SLOWER, FASTER, SAME, FAILS, WORKS or NOT.
        reason: why it is not comparable, or fails.
    """

    key: Key
    measure: Measure | None = None
    a: Figures | None = None
    b: Figures | None = None
    ratio: float | None = None
    drift: float | None = None
    corrected: float | None = None
    verdict: str = NOT
    reason: str = ""


def command(
    a: Annotated[str, Option(f"File of rows, or COMMIT:{RESULTS}: before.")],
    b: Annotated[str, Option("The same: after.")],
    suite: Annotated[str | None, Option("Suites, comma-separated. Default: all in both.")] = None,
    threshold: Annotated[float, Option("The share that counts as a difference.")] = 0.03,
    fail_on_slower: Annotated[bool, Option("Exit with 1 if anything is slower.")] = False,
) -> None:
    """Compare the results of two files, of different commits or runs."""
    with cli.reading():
        sides = side(a), side(b)
        known = sorted({str(row["suite"]) for _, rows in sides for row in rows})
        wanted = cli.listed(suite, known, "suite")
        found, alone = compare(
            *([row for row in rows if row["suite"] in wanted] for _, rows in sides), threshold
        )
        if not found:
            raise ValueError(f"no row of {a} matches one of {b}")
    print(*(f"{side}: {origin}" for side, (origin, _) in zip("AB", sides, strict=True)), sep="\n")
    show(found)
    counts = Counter(each.verdict for each in found)
    words = [f"{counts[verdict]} {verdict}" for verdict in ORDER if counts[verdict]]
    words += [f"{n} only in {side}" for side, n in zip("AB", alone, strict=True) if n]
    print(
        f"{', '.join(words)} (threshold {threshold:.3g}, ranges p20 to p80 apart, drift corrected)"
    )
    if fail_on_slower and (counts[SLOWER] or counts[FAILS]):
        raise SystemExit(1)


def side(name: str, root: Path = provenance.ROOT) -> tuple[str, list[Row]]:
    """Where rows come from, and the rows: of a file, or of a file at a commit as Git names it.

    Raises:
        ValueError: there is no such file, or no rows are in it.
    """
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
        rows = _parsed(text)
    except ValueError as error:
        raise ValueError(f"{name} is not a file of rows, one JSON object a line: {error}") from None
    if not rows:
        raise ValueError(f"{name} has no rows")
    return f"{len(rows)} rows of {name}", rows


def _parsed(text: str) -> list[Row]:
    rows = [json.loads(line) for line in text.splitlines() if line.strip()]
    if not all(isinstance(row, dict) and "suite" in row for row in rows):
        raise ValueError("a row is an object with a 'suite'")
    # Rows of models and compilers have no device: nothing of them was measured.
    return [row for row in rows if {"cpu", "gpu"} & set(row.get("provenance") or {})]


def compare(
    a: Sequence[Row], b: Sequence[Row], threshold: float
) -> tuple[list[Comparison], tuple[int, int]]:
    """(comparisons, rows that only A and only B has): rows are matched by `Key`, and each figure is
    judged. Worst verdict first, then the largest change."""
    left, right = ({Key.of(row): row for row in rows} for rows in (a, b))
    groups: dict[Key, dict[str, tuple[Row, Row]]] = {}
    for key in left.keys() & right.keys():
        groups.setdefault(key.group, {})[key.peer] = left[key], right[key]
    elsewhere = {key.anywhere: key.device for key in right if key not in left}
    found, other = [], set()
    for key in left:
        if key in right:
            found += _judged(key, groups[key.group], threshold)
        elif key.anywhere in elsewhere:
            other.add(key.anywhere)
            reason = f"other device: {key.device} → {elsewhere[key.anywhere]}"
            found.append(Comparison(key, reason=reason))
    alone = [
        sum(key not in those and key.anywhere not in other for key in these)
        for these, those in ((left, right), (right, left))
    ]
    found.sort(key=lambda each: (ORDER.index(each.verdict), -abs(math.log(each.corrected or 1))))
    return found, (alone[0], alone[1])


def _judged(
    key: Key, group: Mapping[str, tuple[Row, Row]], threshold: float
) -> Iterator[Comparison]:
    """Each figure that either row has; `group`: the rows that took turns, by peer."""
    rows = group[key.peer]
    if other := differences(*rows):
        yield Comparison(key, reason=f"other versions: {', '.join(other)}")
        return
    problems = [row.get("problem") for row in rows]
    compared = False
    for measure in MEASURES:
        a, b = (measure.figures(row) for row in rows)
        each = Comparison(key, measure, a, b)
        if a and b:
            yield replace(
                each, **judge(measure, a, b, _drifts(measure, key.peer, group), threshold)
            )
        elif problem := (a and problems[1]) or (b and problems[0]):
            yield replace(each, verdict=WORKS if b else FAILS, reason=str(problem))
        else:
            continue
        compared = True
    if not compared and problems[0] != problems[1]:
        yield Comparison(key, reason=f"no figures: {problems[0] or problems[1]}")


def _drifts(measure: Measure, peer: str, group: Mapping[str, tuple[Row, Row]]) -> list[float]:
    """Estimates of the machine's drift, as cost of B over cost of A."""
    if not measure.drifts:
        return []
    figures = [
        [measure.figures(row) for row in pair]
        for name, pair in group.items()
        if name != peer
        and not drawing.is_ours(str(name))
        and not str(name).startswith(NOT_UNCHANGED)
        and not differences(*pair)
    ]
    found = [measure.cost(b)[0] / measure.cost(a)[0] for a, b in figures if a and b]
    rates = [_product(row) for row in group[peer]]
    return found + ([rates[0] / rates[1]] if None not in rates else [])


def _product(row: Row) -> float | None:
    """The measured rate of the products of its dtype."""
    kind = str(row.get("dtype", "")).partition("-")[0]
    return drawing.number((row.get("peaks") or {}).get(f"gemm_{kind}_gflops"))


def judge(
    measure: Measure, a: Figures, b: Figures, estimates: Sequence[float], threshold: float
) -> dict[str, Any]:
    """Ratio, drift, corrected ratio and verdict of one figure: fields of a `Comparison`.

    Args:
        measure: what it is.
        a: before.
        b: after.
        estimates: of the drift; none where nothing shows it.
        threshold: what counts as a difference, as a share.
    """
    before, after = measure.cost(a), measure.cost(b)
    logs = sorted(math.log(value) for value in estimates)
    drift = math.exp(statistics.median(logs)) if logs else None
    # The middle half of the estimates, or all of a few.
    cut = len(logs) // 4
    inner = logs[cut : len(logs) - cut] or [0.0]
    ratio = after[0] / before[0]
    corrected = ratio / (drift or 1.0)
    low, high = after[1] / math.exp(inner[-1]), after[2] / math.exp(inner[0])
    threshold, verdict = max(threshold, measure.share), SAME
    if abs(b[0] - a[0]) >= measure.least:
        if corrected > 1 + threshold and low > before[2]:
            verdict = SLOWER
        elif corrected < 1 / (1 + threshold) and high < before[1]:
            verdict = FASTER
    return {"ratio": ratio, "drift": drift, "corrected": corrected, "verdict": verdict}


def differences(a: Row, b: Row) -> list[str]:
    """What makes two rows of one device incomparable: versions and settings, by name."""
    before, after = (_versions(row) for row in (a, b))
    return [
        f"{name} {before[name]} → {after[name]}"
        for name in before
        if name in after and _counted(name, before[name]) != _counted(name, after[name])
    ]


def _counted(name: str, version: Any) -> Any:
    """What counts of a version: of Python only the first two numbers."""
    return version.split(".")[:2] if name == "Python" else version


def _versions(row: Row) -> dict[str, Any]:
    """Settings, versions, and what the peer consists of, such as 'lightly 1.6.0, torchvision
    0.29.2'; our own version is what is compared."""
    origin = row.get("provenance") or {}
    found = {name: origin[name] for name in VERSIONS if origin.get(name) is not None}
    found["Python"] = str(origin.get("python", ""))
    packages = re.findall(r"([A-Za-z][\w-]*) (\d+(?:\.\d+)+)", str(row.get("source") or ""))
    return found | {name: number for name, number in packages if name != "barlow_fast"}


def show(found: Sequence[Comparison]) -> None:
    """Print the table, slowdowns first, and what is not comparable."""
    judged = [each for each in found if each.verdict != NOT]
    if judged:
        print("Ratios are cost of B over cost of A: above 1, B is slower")
        lines = [cells(COLUMNS, each) for each in judged]
        print(aligned([column.head for column in COLUMNS], lines))
    reasons = Counter((each.reason, each.key.suite) for each in found if each.verdict == NOT)
    for (reason, suite), number in reasons.items():
        print(f"not comparable: {number} rows of {suite}: {reason}")


def _what(each: Comparison) -> str:
    key = each.key
    shape = f"N = {key.n}" if key.d is None else f"{key.n} × {key.d}"
    parts = (shape, key.dtype, key.ranks and f"{key.ranks} ranks", key.case)
    return ", ".join(str(part) for part in parts if part is not None)


def _range(side: str) -> Column:
    def text(each: Comparison) -> str | None:
        figures, measure = getattr(each, side), each.measure
        if figures is None:
            return None
        # Four digits: ranges that differ should look different.
        median, low, high = (f"{v:,.0f}" if v >= 1000 else f"{v:.4g}" for v in figures)
        spread = f" ({low}–{high})" if len(measure.keys) > 1 else ""
        return f"{median}{spread} {measure.unit}".strip()

    return Column(f"{side.upper()} (p20–p80)", text)


COLUMNS = [
    Column("device", attrgetter("key.device")),
    Column("suite", attrgetter("key.suite")),
    Column("what", _what),
    Column("peer", attrgetter("key.peer")),
    Column("measure", attrgetter("measure.name")),
    _range("a"),
    _range("b"),
    *(Column(name, attrgetter(name), ".3f") for name in ("ratio", "drift", "corrected")),
    Column("verdict", lambda each: each.verdict + (f": {each.reason}" if each.reason else "")),
]
