"""Compare two sets of results, commits or files, with verdicts that consider noise.

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
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Annotated, Any

from bench import cli, provenance, results
from bench.cli import Option
from bench.console import aligned
from bench.plots import selection
from bench.results import Row

SLOWER, FASTER, SAME, NOT = "slower", "faster", "same within noise", "not comparable"
FAILS, WORKS = "fails now", "works now"
JUDGED = ("ratio", "drift", "corrected", "verdict")
ORDER = (FAILS, SLOWER, WORKS, FASTER, SAME)
RESULTS = "bench/results"
KEY = ("suite", "n", "d", "dtype", "peer", "ranks", "case")
PEER = 1 + KEY.index("peer")  # in a key, after the device
# Ours under other names: no estimates of the machine's drift.
NOT_UNCHANGED = ("limit", "kernel-", "crops-")
VERSIONS = ("torch", "triton", "cuda", "driver", "cores", "threads", "instruction_set")


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


@dataclass(frozen=True)
class Side:
    """One set of results.

    Attributes:
        name: as it was given.
        origin: description of where the rows come from.
        rows: all of them.
    """

    name: str
    origin: str
    rows: list[Row]


@dataclass(frozen=True)
class Comparison:
    """One figure of both sides.

    Attributes:
        key: suite, N, D, dtype, peer, ranks and case.
        device: where both were measured.
        measure: what is compared.
        unit: of a and b.
        a, b: [median, p20, p80] of each side; None where it has none.
        ratio: cost of B over cost of A: above 1, B is slower. None where there are not both.
        drift: what of it is the machine's; None where nothing shows it.
        corrected: ratio / drift.
        verdict: SLOWER, FASTER, SAME, FAILS, WORKS or NOT.
        reason: why it is not comparable, or fails.
    """

    key: dict[str, Any]
    device: str
    measure: str = ""
    unit: str = ""
    a: tuple[float, ...] | None = None
    b: tuple[float, ...] | None = None
    ratio: float | None = None
    drift: float | None = None
    corrected: float | None = None
    verdict: str = NOT
    reason: str = ""


def command(
    a: Annotated[str, Option("Commit, or a file of rows (.jsonl): before.")],
    b: Annotated[str, Option("Commit, or a file of rows (.jsonl): after.")],
    suite: Annotated[str | None, Option("Suites, comma-separated. Default: all in both.")] = None,
    threshold: Annotated[str, Option("What counts as a difference, such as 3% or 0.03.")] = "3%",
    fail_on_slower: Annotated[bool, Option("Exit with 1 if anything is slower.")] = False,
    as_json: Annotated[bool, Option("Print JSON instead of a table.", name="--json")] = False,
) -> None:
    """Compare the results of two commits or two files."""
    with cli.reading():
        least = parse_threshold(threshold)
        sides = side(a), side(b)
        found = compare(*of_suites(suite, sides), least)
        if not found.comparisons:
            raise ValueError(f"no row of {a} matches one of {b}")
    if as_json:
        named = {
            letter: {"name": each.name, "origin": each.origin}
            for letter, each in zip("ab", sides, strict=True)
        }
        comparisons = [asdict(each) for each in found.comparisons]
        record = named | {"threshold": least, "counts": counts(found), "comparisons": comparisons}
        print(json.dumps(record, indent=1, ensure_ascii=False))
    else:
        show(sides, found, least)
    if fail_on_slower and any(each.verdict in (SLOWER, FAILS) for each in found.comparisons):
        raise SystemExit(1)


def parse_threshold(text: str) -> float:
    """'3%' or '0.03' -> 0.03; ValueError for what is not between 0 and 1."""
    number = re.fullmatch(r"\s*(\d+(?:\.\d*)?|\.\d+)\s*(%?)\s*", text)
    value = float(number[1]) / (100 if number[2] else 1) if number else -1.0
    if not 0 <= value < 1:
        raise ValueError(f"a threshold is a share from 0 to 1, such as 3% or 0.03; got {text!r}")
    return value


def of_suites(text: str | None, sides: Sequence[Side]) -> list[list[Row]]:
    """The rows of comma-separated suites, or all; ValueError for one that neither side has."""
    if text is None:
        return [each.rows for each in sides]
    wanted = {name.strip() for name in text.split(",") if name.strip()}
    known = sorted({str(row["suite"]) for each in sides for row in each.rows})
    for name in sorted(wanted.difference(known)):
        raise ValueError(f"unknown suite {name!r}; the rows have {', '.join(known)}")
    return [[row for row in each.rows if row["suite"] in wanted] for each in sides]


def side(name: str, root: Path = provenance.ROOT) -> Side:
    """Return the rows of a commit or a file.

    A commit has the rows committed with it, and the rows measured at it that are in the present
    files: those replace groups of the former, as they come from exactly that code.

    Raises:
        ValueError: it is neither a file of rows nor a commit, or there are no rows.
    """
    path = Path(name)
    if path.suffix == ".jsonl" or path.is_file():
        return _file(name, path)
    found = _git(root, "rev-parse", "--verify", "--quiet", "--end-of-options", f"{name}^{{commit}}")
    if not found:
        raise ValueError(f"{name!r} is neither a file nor a commit of this repository")
    commit = found.strip()
    present = [row for path in (root / RESULTS).glob("*.jsonl") for row in results.read(path)]
    measured = [row for row in present if _measured_at(row, commit)]
    replaced = {(_device(row), *results.group(row)) for row in measured}
    rows = [
        row for row in _stored(root, commit) if (_device(row), *results.group(row)) not in replaced
    ]
    rows += measured
    if not rows:
        raise ValueError(f"commit {name} has no rows in {RESULTS}, and none were measured at it")
    origin = f"{len(rows)} rows of {RESULTS} at commit {commit[:12]}"
    return Side(name, origin + (f", {len(measured)} measured at it" if measured else ""), rows)


def _file(name: str, path: Path) -> Side:
    if not path.is_file():
        raise ValueError(f"{name}: no such file")
    try:
        rows = _parsed(path.read_text(encoding="utf-8"))
    except (ValueError, OSError) as error:
        raise ValueError(f"{name} is not a file of rows, one JSON object a line: {error}") from None
    if not rows:
        raise ValueError(f"{name} has no rows")
    return Side(name, f"{len(rows)} rows of {name}", rows)


def _stored(root: Path, commit: str) -> list[Row]:
    listed = _git(root, "ls-tree", "-r", "--name-only", commit, "--", RESULTS) or ""
    names = [name for name in listed.splitlines() if name.endswith(".jsonl")]
    return [row for name in names for row in _parsed(_git(root, "show", f"{commit}:{name}") or "")]


def _parsed(text: str) -> list[Row]:
    rows = [json.loads(line) for line in text.splitlines() if line.strip()]
    if not all(isinstance(row, dict) and "suite" in row for row in rows):
        raise ValueError("a row is an object with a 'suite'")
    # Rows of models and compilers have no device: nothing of them was measured.
    return [row for row in rows if {"cpu", "gpu"} & set(row.get("provenance") or {})]


def _git(root: Path, *arguments: str) -> str | None:
    try:
        process = subprocess.run(
            ["git", "-C", str(root), *arguments], capture_output=True, text=True, encoding="utf-8"
        )
    except OSError as error:
        raise ValueError(f"git cannot be run: {error}") from None
    return process.stdout if process.returncode == 0 else None


def _measured_at(row: Row, commit: str) -> bool:
    # A tree with changes is no commit.
    known = (row.get("provenance") or {}).get("commit")
    return isinstance(known, str) and len(known) >= 7 and commit.startswith(known)


def _device(row: Row) -> str:
    """The machine, as precisely as its rows say."""
    origin = row.get("provenance") or {}
    if origin.get("gpu"):
        return str(origin["gpu"])
    model = f" {origin['cpu_family_model']}" if origin.get("cpu_family_model") else ""
    return f"{origin.get('cpu')}{model}, {origin.get('cores')} cores"


@dataclass(frozen=True)
class Found:
    """What comparing gives: figures of both sides, and how many rows only one side has."""

    comparisons: list[Comparison]
    only_a: int
    only_b: int


def compare(a: Sequence[Row], b: Sequence[Row], threshold: float) -> Found:
    """Matches rows by device, suite, N, D, dtype, peer, ranks and case, and judges each figure."""
    left, right = ({(_device(row), *_key(row)): row for row in rows} for rows in (a, b))
    elsewhere = {key[1:]: key[0] for key in right if key not in left}
    turns: dict[tuple, dict[str, tuple[Row, Row]]] = {}
    for key in left:
        if key in right:
            turns.setdefault(_group(key), {})[key[PEER]] = left[key], right[key]
    found, other = [], set()
    for key, row in left.items():
        if key in right:
            drifts = _drifts(key[PEER], turns[_group(key)])
            found += _judged(key, (row, right[key]), drifts, threshold)
        elif key[1:] in elsewhere:
            other.add(key[1:])
            reason = f"other device: {key[0]} → {elsewhere[key[1:]]}"
            found.append(Comparison(_named(key), key[0], reason=reason))
    found.sort(key=_place)
    only_a, only_b = (
        sum(key not in those and key[1:] not in other for key in these)
        for these, those in ((left, right), (right, left))
    )
    return Found(found, only_a, only_b)


def _place(each: Comparison) -> tuple[int, float]:
    """Worst verdict first, then the largest change."""
    change = abs(math.log(each.corrected)) if each.corrected else 0.0
    return (*ORDER, NOT).index(each.verdict), -change


def _key(row: Row) -> tuple:
    # The largest D is what is measured there.
    return tuple(None if (key, row["suite"]) == ("d", "largest") else row.get(key) for key in KEY)


def _named(key: tuple) -> dict[str, Any]:
    return {name: value for name, value in zip(KEY, key[1:], strict=True) if value is not None}


def _figures(row: Row, measure: Measure) -> tuple[float, ...] | None:
    """Median, p20 and p80; the median alone where there is no noise; None where it lacks one."""
    if measure.suite not in (None, row["suite"]):
        return None
    values = tuple(selection.number(row.get(key)) for key in measure.keys)
    return None if None in values else values


def _cost(measure: Measure, figures: tuple[float, ...]) -> tuple[float, float, float]:
    """Median, least and most of what it costs: a rate's is its inverse."""
    median, low, high = figures if len(figures) == 3 else figures * 3
    return (1 / median, 1 / high, 1 / low) if measure.more_is_better else (median, low, high)


def _group(key: tuple) -> tuple:
    return key[:PEER] + key[PEER + 1 :]


def _drifts(peer: str, rows: Mapping[str, tuple[Row, Row]]) -> Callable[[Measure], list[float]]:
    """measure -> estimates of the machine's drift, as cost of B over cost of A; `rows`: those that
    took turns with the peer's, before and after, by peer."""
    others = [
        pair
        for name, pair in rows.items()
        if name != peer
        and not selection.is_ours(str(name))
        and not str(name).startswith(NOT_UNCHANGED)
        and not differences(*pair)
    ]
    rates = [_product(row) for row in rows[peer]]

    def estimates(measure: Measure) -> list[float]:
        if not measure.drifts:
            return []
        pairs = ([_figures(row, measure) for row in pair] for pair in others)
        costs = ([_cost(measure, each)[0] for each in pair] for pair in pairs if None not in pair)
        found = [second / first for first, second in costs]
        return found + ([rates[0] / rates[1]] if None not in rates else [])

    return estimates


def _product(row: Row) -> float | None:
    """The measured rate of the products of its dtype."""
    kind = str(row.get("dtype", "")).partition("-")[0]
    return selection.number((row.get("peaks") or {}).get(f"gemm_{kind}_gflops"))


def _judged(
    key: tuple,
    rows: tuple[Row, Row],
    drifts: Callable[[Measure], list[float]],
    threshold: float,
) -> list[Comparison]:
    """Each figure that either row has."""
    blank = Comparison(_named(key), key[0])
    if other := differences(*rows):
        return [replace(blank, reason=f"other versions: {', '.join(other)}")]
    found = []
    for measure in MEASURES:
        a, b = (_figures(row, measure) for row in rows)
        each = replace(blank, measure=measure.name, unit=measure.unit, a=a, b=b)
        if a and b:
            judged = judge(measure, a, b, drifts(measure), threshold)
            found.append(replace(each, **dict(zip(JUDGED, judged, strict=True))))
        elif (a or b) and (problem := rows[0 if b else 1].get("problem")):
            found.append(replace(each, verdict=WORKS if b else FAILS, reason=str(problem)))
    problems = [row.get("problem") for row in rows]
    if not found and problems[0] != problems[1]:
        found.append(replace(blank, reason=f"no figures: {problems[0] or problems[1]}"))
    return found


def judge(
    measure: Measure,
    a: tuple[float, ...],
    b: tuple[float, ...],
    estimates: Sequence[float],
    threshold: float,
) -> tuple[float, float | None, float, str]:
    """(ratio, drift, corrected ratio, verdict) of one figure.

    Args:
        measure: what it is.
        a: median, p20 and p80 before; the median alone where there is no noise.
        b: the same, after.
        estimates: of the drift; none where nothing shows it.
        threshold: what counts as a difference, as a share.
    """
    before, after = _cost(measure, a), _cost(measure, b)
    ratio = after[0] / before[0]
    logs = sorted(math.log(value) for value in estimates)
    drift = math.exp(statistics.median(logs)) if logs else None
    # The middle half of the estimates, or all of a few.
    cut = len(logs) // 4
    inner = logs[cut : len(logs) - cut] or [0.0]
    least, most = math.exp(inner[0]), math.exp(inner[-1])
    corrected = ratio / (drift or 1.0)
    low, high = after[1] / most, after[2] / least
    threshold = max(threshold, measure.share)
    verdict = SAME
    if abs(b[0] - a[0]) >= measure.least:
        if corrected > 1 + threshold and low > before[2]:
            verdict = SLOWER
        elif corrected < 1 / (1 + threshold) and high < before[1]:
            verdict = FASTER
    return ratio, drift, corrected, verdict


def differences(a: Row, b: Row) -> list[str]:
    """What makes two rows of one device incomparable: versions and settings, by name."""
    before, after = (_versions(row) for row in (a, b))
    return [
        f"{name} {before[name]} → {after[name]}"
        for name in before
        if name in after and not _same(name, before[name], after[name])
    ]


def _same(name: str, a: Any, b: Any) -> bool:
    """Whether two versions are; of Python only the first two numbers count."""
    return a == b if name != "Python" else a.split(".")[:2] == b.split(".")[:2]


def _versions(row: Row) -> dict[str, Any]:
    """Settings, versions, and what the peer consists of; our own version is what is compared."""
    origin = row.get("provenance") or {}
    found = {name: origin[name] for name in VERSIONS if origin.get(name) is not None}
    return found | {"Python": str(origin.get("python", ""))} | _packages(row)


def _packages(row: Row) -> dict[str, str]:
    """Names and versions in the source of a peer, such as 'lightly 1.6.0, torchvision 0.29.2'."""
    pairs = re.findall(r"([A-Za-z][\w-]*) (\d+(?:\.\d+)+)", str(row.get("source") or ""))
    return {name: number for name, number in pairs if name != "barlow_fast"}


def counts(found: Found) -> dict[str, int]:
    """How many comparisons have each verdict, and how many rows have no counterpart."""
    verdicts = [each.verdict for each in found.comparisons]
    table = {verdict: verdicts.count(verdict) for verdict in (*ORDER, NOT)}
    return table | {"only in A": found.only_a, "only in B": found.only_b}


def show(sides: Sequence[Side], found: Found, threshold: float) -> None:
    """Print the table, slowdowns first, and the number of each verdict."""
    for letter, each in zip("AB", sides, strict=True):
        print(f"{letter}: {each.origin}")
    judged = [each for each in found.comparisons if each.verdict != NOT]
    if judged:
        devices = {each.device for each in judged}
        heads = ["suite", "what", "peer", "measure", "A (p20–p80)", "B (p20–p80)", "ratio"]
        heads += ["drift", "corrected", "verdict"]
        print("Ratios are cost of B over cost of A: above 1, B is slower")
        print(aligned(heads, [_cells(each, len(devices) > 1) for each in judged]))
    reasons: dict[str, list[Comparison]] = {}
    for each in found.comparisons:
        if each.verdict == NOT:
            reasons.setdefault(each.reason, []).append(each)
    for reason, group in reasons.items():
        suites = ", ".join(sorted({str(each.key["suite"]) for each in group}))
        print(f"not comparable: {len(group)} rows of {suites}: {reason}")
    total = counts(found)
    words = ", ".join(f"{number} {name}" for name, number in total.items() if number)
    print(f"{words} (threshold {threshold:.3g}, ranges p20 to p80 apart, drift corrected)")


def _cells(each: Comparison, name_device: bool) -> list[str]:
    key = each.key
    shape = f"{key.get('n', '')} × {key['d']}" if "d" in key else f"N = {key.get('n', '')}"
    what = [shape, str(key.get("dtype", ""))]
    what += [f"{key['ranks']} ranks"] if "ranks" in key else []
    what += [str(key["case"])] if "case" in key else []
    what += [each.device] if name_device else []
    ratios = [_ratio(value) for value in (each.ratio, each.drift, each.corrected)]
    verdict = each.verdict + (f": {each.reason}" if each.reason else "")
    return [
        str(key["suite"]), ", ".join(what), str(key.get("peer", "")), each.measure,
        _range(each.a, each.unit), _range(each.b, each.unit), *ratios, verdict,
    ]  # fmt: skip


def _ratio(value: float | None) -> str:
    return "–" if value is None else f"{value:.3f}"


def _range(figures: tuple[float, ...] | None, unit: str) -> str:
    if figures is None:
        return "–"
    # Four digits: ranges that differ should look different.
    median, *spread = (f"{v:,.0f}" if v >= 1000 else f"{v:.4g}" for v in figures)
    text = f"{median} ({spread[0]}–{spread[1]})" if spread else median
    return f"{text} {unit}".strip()
