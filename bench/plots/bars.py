"""Horizontal bars, a panel for each case: training, views, startup."""

from __future__ import annotations

import functools
import textwrap
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from bench import markdown
from bench.plots import drawing
from bench.plots.drawing import Data, Picture
from bench.results import Row
from bench.suites import startup
from bench.training import cases as training
from bench.views import feeds

PLACE = 5
COLOURS = {"ours": drawing.OURS, "limit": "#b9d3e6", "official": drawing.OFFICIAL}
THEIRS, ONLY_CROPS = "#e0a080", "#d8dce0"
RATES = ("median_per_s", "p20_per_s", "p80_per_s")
TIMES = ("median_ms", "p20_ms", "p80_ms")
STARTUP = {
    "import": "Import of torch, and what each package adds to it",
    "first-call": "First call",
    "second-call": "Second call",
    "triton-kernels": "Triton kernels, compiled ahead of time",
    "compiler-cold": "First call under torch.compile, nothing on disk",
    "compiler-warm": "First call under torch.compile, compiled code on disk",
}


@dataclass(frozen=True)
class Kind:
    """A figure of one suite.

    Attributes:
        name: of the figure.
        suite: whose rows it shows.
        keys: of the median and both percentiles.
        unit: of them.
        titles: () -> what the peers are called.
        heading: of a case, by one of its rows.
        headline: the main result, from the data.
        text: what is measured and how to read it.
        caption: of the machine.
    """

    name: str
    suite: str
    keys: tuple[str, str, str]
    unit: str
    titles: Callable[[], Mapping[str, str]]
    heading: Callable[[Row], str]
    headline: Callable[[Data], str]
    text: str
    caption: str


def pictures(files: Mapping[str, Sequence[Row]]) -> list[Picture]:
    """One for each kind and file."""
    return [
        picture
        for kind in KINDS
        for name, rows in drawing.rows_of(files, kind.suite)
        for picture in _picture(kind, name, rows)
    ]


def _picture(kind: Kind, name: str, rows: Sequence[Row]) -> list[Picture]:
    """One, or none without panels; a kernel alone counts something else than images."""
    rows = [row for row in rows if row.get("unit", "images") == "images"]
    panels = _panels(rows, kind)
    if not panels:
        return []
    data = {"machine": drawing.device(rows), "panels": panels}
    caption = f"{kind.headline(data)} ({kind.caption.format(machine=data['machine'])})."
    name_of_file = f"{kind.name}-{drawing.stem(name)}"
    return [Picture(name_of_file, kind.suite, name, caption, data, lambda data: _draw(kind, data))]


def _panels(rows: Sequence[Row], kind: Kind) -> list[Data]:
    """A panel for each case, with (peer, title, median, p20, p80) in the order of the rows."""
    found: dict[str, Data] = {}
    known = kind.titles()
    for row in rows:
        figures = drawing.spread(row, kind.keys)
        if figures is None:
            continue
        peer = str(row.get("peer", ""))
        case = " ".join(str(row.get(key)) for key in ("case", "n", "d", "dtype"))
        panel = found.setdefault(case, {"title": kind.heading(row), "bars": []})
        panel["bars"].append([peer, known.get(peer, peer), *figures])
    return list(found.values())


def _title(known: Mapping[str, Any], row: Row) -> str:
    case = known.get(row.get("case"))
    title = case.title if case else str(row.get("case"))
    return f"{title[:1].upper()}{title[1:]}"


def _trained(row: Row) -> str:
    return f"{_title(training.CASES, row)}, batch {row.get('n')}, {row.get('dtype')}"


def _started(row: Row) -> str:
    case = str(row.get("case"))
    shape = f", {row['n']} × {row['d']}" if row.get("n") and row.get("d") else ""
    return STARTUP.get(case, case) + shape


def _span(data: Data, other: str) -> str:
    """How many times the rate of another one the best of ours is, over the panels."""
    ratios = []
    for panel in data["panels"]:
        ours = [bar[2] for bar in panel["bars"] if drawing.is_ours(bar[0])]
        ratios += [max(ours) / bar[2] for bar in panel["bars"] if ours and bar[0] == other]
    ends = (min(ratios), max(ratios)) if ratios else ()
    return " to ".join(dict.fromkeys(map(markdown.times, ends)))


def _training_headline(data: Data) -> str:
    others = {"lightly": "lightly's", "official": "the official recipe's"}
    words = [f"{span} {whose}" for peer, whose in others.items() if (span := _span(data, peer))]
    if not words:
        return "Images per second of whole pretraining steps"
    return f"Pretraining runs at {' and '.join(words)} images per second"


def _views_headline(data: Data) -> str:
    span = _span(data, "official")
    if not span:
        return "Images per second of loaders of two views"
    return f"Loaders make {span} the official recipe's images per second"


def _colour(peer: str) -> str:
    """Of a bar: ours is blue, the official vermilion, others a light vermilion."""
    other = ONLY_CROPS if peer.startswith("crops-") else THEIRS
    return COLOURS.get(peer, drawing.OURS if drawing.is_ours(peer) else other)


def _draw(kind: Kind, data: Data) -> Any:
    """The figure; a bar ends with its median in figures, a line from p20 to p80 on it."""
    counts = [len(panel["bars"]) for panel in data["panels"]]
    height = 0.36 * sum(counts) + 0.62 * len(counts) + 0.7
    figure = drawing.figure(height, kind.headline(data), f"{data['machine']}. {kind.text}")
    all_axes = figure.subplots(
        len(counts), 1, squeeze=False, gridspec_kw={"height_ratios": counts}
    )[:, 0]
    for axes, panel in zip(all_axes, data["panels"], strict=True):
        _panel(axes, panel, kind.unit)
    return figure


def _panel(axes: Any, panel: Data, unit: str) -> None:
    bars = panel["bars"][::-1]
    most = max(bar[2] for bar in bars)
    for y, (peer, _, median, low, high) in enumerate(bars):
        axes.barh(y, median, height=0.68, color=_colour(peer))
        axes.hlines(y, low, high, color=drawing.INK, linewidth=1.4)
        text = axes.text(
            max(median, high) + 0.01 * most, y, f"{markdown.rate(median)} {unit}", va="center",
            fontsize=9, fontweight="bold" if drawing.is_ours(peer) else "normal",
        )  # fmt: skip
        text.set_gid(f"bar-{peer}")
    axes.set_yticks(range(len(bars)), [bar[1] for bar in bars])
    axes.set_xlim(0, 1.18 * most)
    axes.set_xticks([])
    axes.tick_params(length=0)
    axes.spines[["bottom", "left"]].set_visible(False)
    axes.set_ylim(-0.55, len(bars) - 0.45)
    axes.set_title(textwrap.fill(panel["title"], 78), fontsize=9.5, fontweight="normal")


KINDS = (
    Kind(
        "training", "train", RATES, "images/s", lambda: training.TITLES, _trained,
        _training_headline, "Whole steps, two views an image; lines from p20 to p80.",
        "{machine}, whole steps, two views an image",
    ),
    Kind(
        "views", "views", RATES, "images/s", lambda: feeds.TITLES,
        functools.partial(_title, feeds.CASES), _views_headline,
        "Two views an image, decoded or from memory; lines from p20 to p80.",
        "{machine}, two views an image",
    ),
    Kind(
        "startup", "startup", TIMES, "ms", startup.titles, _started,
        lambda data: "Milliseconds until the first result, case by case",
        "Fresh processes; shorter is better; lines from p20 to p80.", "{machine}",
    ),
)  # fmt: skip
