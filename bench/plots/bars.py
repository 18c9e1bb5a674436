"""Horizontal bars, a panel for each case: training, views, startup."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping, Sequence

from bench import markdown
from bench.plots import drawing, figure
from bench.plots.figure import Data, Figure
from bench.results import Row
from bench.suites import startup
from bench.training import cases as training
from bench.views import feeds

COLOURS = {"limit": "#b9d3e6", "official": figure.OFFICIAL}
THEIRS, ONLY_CROPS = "#e0a080", "#d8dce0"


def select(
    title: str,
    claim: tuple[str, Mapping[str, str]],
    text: str,
    unit: str,
    titles: Mapping[str, str],
    heading: Callable[[Row], str],
    rows: Sequence[Row],
) -> Data | None:
    """A panel for each case, with bars in the order of the rows: ours is blue, the official one
    vermilion, others a light vermilion. `unit` is that of the columns, `heading(row)` the case;
    `claim` the title where ours can be compared with those that it names."""
    panels: dict[str, Data] = {}
    for row in rows:
        found = figure.spread(row, unit)
        # A kernel alone counts something else than images, and smaller images are less work.
        if found is None or row.get("unit", "images") != "images" or "error_levels" in row:
            continue
        peer = str(row.get("peer", ""))
        other = ONLY_CROPS if peer.startswith("crops-") else THEIRS
        colour = COLOURS.get(peer, figure.OURS if figure.is_ours(peer) else other)
        shown = f"{markdown.rate(found[0])} {'ms' if unit == 'ms' else 'images/s'}"
        panel = panels.setdefault(heading(row), {"title": heading(row), "bars": []})
        panel["bars"].append([peer, titles.get(peer, peer), colour, shown, *found])
    text += ", lines from p20 to p80."
    spans = []
    for other, whose in claim[1].items():
        ratios = []
        for panel in panels.values():
            ours = [bar[4] for bar in panel["bars"] if figure.is_ours(bar[0])]
            ratios += [max(ours) / bar[4] for bar in panel["bars"] if ours and bar[0] == other]
        spans += [f"{figure.span(ratios)} {whose}"] if ratios else []
    title = claim[0].format(" and ".join(spans)) if spans else title
    return {"title": title, "text": text, "panels": list(panels.values())} if panels else None


def _case(known: Mapping[str, Data], row: Row) -> str:
    case = str(row.get("case"))
    return markdown.capital(known[case].title if case in known else case)


def _started(row: Row) -> str:
    case = str(row.get("case"))
    shape = f", {row['n']} × {row['d']}, {row.get('dtype')}" if row.get("n") else ""
    return startup.CASES.get(case, case) + shape


FIGURES = tuple(
    Figure(name, (suite,), functools.partial(select, *given), drawing.bars)
    for name, suite, *given in (
        (
            "training", "train", "Images per second of whole pretraining steps",
            (
                "Pretraining runs at {} images per second",
                {"lightly": "lightly's", "official": "the official recipe's"},
            ),
            "Whole steps, two views an image", "per_s", training.TITLES,
            lambda row: f"{_case(training.CASES, row)}, batch {row.get('n')}, {row.get('dtype')}",
        ),
        (
            "views", "views", "Images per second of loaders of two views",
            ("Loaders make {} images per second", {"official": "the official recipe's"}),
            "Two views an image, decoded or from memory", "per_s", feeds.TITLES,
            functools.partial(_case, feeds.CASES),
        ),
        (
            "startup", "startup", "Milliseconds until the first result, case by case", ("", {}),
            "Fresh processes; shorter is better", "ms", startup.titles(), _started,
        ),
    )
)  # fmt: skip
