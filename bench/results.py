"""Rows of results: JSON Lines files, one per machine, from which every table is generated."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from barlow_fast.files import write_whole
from bench import provenance

Row = dict[str, Any]
FOLDER = provenance.ROOT / "bench" / "results"


def default_file(name: str | None = None) -> Path:
    """The file of a device, by its slug; without one, of this machine's processor."""
    return FOLDER / f"{name or f'cpu-{provenance.slug(provenance.cpu_model())}'}.jsonl"


def rounded(value: float) -> float:
    """Five significant digits: more than any timing has, and rows stay readable."""
    return float(f"{value:.5g}")


def line(row: Row) -> str:
    """What a run prints of a row: names and figures, without where they come from."""
    hidden = ("suite", "source", "provenance", "peaks")
    shown = {name: value for name, value in row.items() if name not in hidden}
    return ", ".join(f"{name} {value}" for name, value in shown.items() if value is not None)


def read(path: Path) -> list[Row]:
    """All rows of a file; none if it does not exist."""
    return parse(path.read_text(encoding="utf-8")) if path.exists() else []


def parse(text: str) -> list[Row]:
    """The rows of a text, one JSON object a line."""
    return [json.loads(line) for line in text.splitlines() if line.strip()]


def listed(rows: Iterable[Row], *keys: str) -> dict[tuple, list[Row]]:
    """Rows by the values of `keys`; None where they have none."""
    found: dict[tuple, list[Row]] = {}
    for row in rows:
        found.setdefault(tuple(row.get(key) for key in keys), []).append(row)
    return found


def grouped(rows: Iterable[Row], *keys: str) -> dict[tuple, dict[str, Row]]:
    """The same, each group by peer."""
    groups = listed(rows, *keys)
    return {key: {row["peer"]: row for row in group} for key, group in groups.items()}


def chosen(names: Iterable[str], *groups: Mapping[str, Row]) -> list[Row]:
    """The rows of `names` in each group, by peer, that has them."""
    names = list(names)
    return [group[name] for group in groups for name in names if name in group]


def ratio(group: Mapping[str, Row], key: str, over: str, under: str) -> float | None:
    """A column of one peer divided by that of another; None where a row is missing."""
    return group[over][key] / group[under][key] if {over, under} <= group.keys() else None


def rows_of(files: Mapping[str, Sequence[Row]], *suites: str) -> Iterator[tuple[str, list[Row]]]:
    """(file name, its rows of these suites) for each file that has some."""
    for name, rows in files.items():
        chosen = [row for row in rows if row.get("suite") in suites]
        if chosen:
            yield name, chosen


def machine(rows: Sequence[Row]) -> str:
    """The machine of some rows, in a few words; empty where there was none."""
    origin = rows[0].get("provenance") or {}
    if origin.get("gpu"):
        return str(origin["gpu"])
    cores = origin.get("cores")
    return str(origin.get("cpu", "")) + (f", {cores} cores" if cores else "")


def group(row: Row) -> tuple:
    """The group of a row: rows of one group were taken in turns, in one run."""
    d = None if row["suite"] == "largest" else row["d"]  # there D is what was found
    return row["suite"], row["n"], d, row["dtype"], row.get("ranks"), row.get("case")


def merge(path: Path, rows: Iterable[Row], whole: bool = False) -> None:
    """Writes rows, which replace whole groups of the file: a group never mixes two runs. With
    `whole`, they replace all rows of their suites, groups that are no more included.

    The file is replaced at once, so an interrupted run leaves the groups that it finished and
    nothing broken.
    """
    rows = list(rows)
    replaced = {group(row) for row in rows}
    suites = {row["suite"] for row in rows} if whole else set()
    kept = [r for r in read(path) if group(r) not in replaced and r["suite"] not in suites]
    _write(path, [*kept, *rows])


def put(path: Path, row: Row, identity: Callable[[Row], Any]) -> None:
    """Writes a row in the place of the one with the same identity, or at the end."""
    rows = {identity(each): each for each in (*read(path), row)}
    _write(path, rows.values())


def _write(path: Path, rows: Iterable[Row]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    write_whole(path, "".join(json.dumps(row) + "\n" for row in rows))
