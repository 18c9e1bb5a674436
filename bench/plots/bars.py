"""Horizontal bars, a panel for each case: training, views, startup."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from bench import markdown
from bench.plots import drawing, selection
from bench.plots.figure import Data, Figure
from bench.results import Row
from bench.suites import startup
from bench.training import cases as training
from bench.views import feeds

COLOURS = {"limit": "#b9d3e6", "official": selection.OFFICIAL}
THEIRS, ONLY_CROPS = "#e0a080", "#d8dce0"
STARTUP = {
    "import": "Import of torch, and what each package adds to it",
    "first-call": "First call",
    "second-call": "Second call",
    "triton-kernels": "Triton kernels, compiled ahead of time",
    "compiler-cold": "First call under torch.compile, nothing on disk",
    "compiler-warm": "First call under torch.compile, compiled code on disk",
}


def _figure(
    name: str,
    suite: str,
    unit: tuple[str, str],
    titles: Callable[[], Mapping[str, str]],
    heading: Callable[[Row], str],
    headline: Callable[[Data], str],
    text: str,
    conditions: str = "",
) -> Figure:
    """A figure of one suite: `unit` is that of its columns and of its bars, `titles()` names the
    peers, `heading(row)` the case of a row, `headline(data)` is the main result; `text` states how
    to read it, `conditions` what was measured, in the caption."""

    def select(rows: Sequence[Row]) -> Data | None:
        """A panel for each case, with (peer, title, median, p20, p80) in the order of the rows."""
        panels: dict[str, Data] = {}
        known = titles()
        for row in rows:
            found = selection.spread(row, unit[0])
            # A kernel alone counts something else than images, and smaller images are less work.
            other = row.get("unit", "images") != "images" or "error_levels" in row
            if found is None or other:
                continue
            peer = str(row.get("peer", ""))
            case = " ".join(str(row.get(key)) for key in ("case", "n", "d", "dtype"))
            panel = panels.setdefault(case, {"title": heading(row), "bars": []})
            panel["bars"].append([peer, known.get(peer, peer), *found])
        return {"panels": list(panels.values())} if panels else None

    def caption(data: Data) -> str:
        return f"{headline(data)} ({data['machine']}{conditions})."

    def draw(data: Data) -> Any:
        counts = [len(panel["bars"]) for panel in data["panels"]]
        figure, panels = drawing.sheet(
            headline(data),
            f"{data['machine']}. {text}",
            0.36 * sum(counts) + 0.62 * len(counts) + 0.7,
            len(counts),
            gridspec_kw={"height_ratios": counts},
        )
        for axes, panel in zip(panels, data["panels"], strict=True):
            _bars(axes, panel, unit[1])
        return figure

    return Figure(name, (suite,), select, caption, draw)


def _bars(axes: Any, panel: Data, unit: str) -> None:
    """From top to bottom, with lines from p20 to p80: ours is blue, the official one vermilion,
    others a light vermilion."""
    bars = panel["bars"][::-1]
    most = max(bar[2] for bar in bars)
    for y, (peer, _, value, low, high) in enumerate(bars):
        ours = selection.is_ours(peer)
        other = ONLY_CROPS if peer.startswith("crops-") else THEIRS
        colour = COLOURS.get(peer, selection.OURS if ours else other)
        axes.barh(y, value, height=0.68, color=colour)
        axes.hlines(y, low, high, color=drawing.INK, linewidth=1.4)
        end, text = max(value, high) + 0.01 * most, f"{markdown.rate(value)} {unit}"
        weight = "bold" if ours else "normal"
        shown = axes.text(end, y, text, va="center", fontsize=9, fontweight=weight)
        shown.set_gid(f"bar-{peer}")
    drawing.finish_bars(axes, panel["title"], [bar[1] for bar in bars], most)


def _case(known: Mapping[str, Any], row: Row) -> str:
    case = known.get(row.get("case"))
    title = case.title if case else str(row.get("case"))
    return f"{title[:1].upper()}{title[1:]}"


def _trained(row: Row) -> str:
    return f"{_case(training.CASES, row)}, batch {row.get('n')}, {row.get('dtype')}"


def _started(row: Row) -> str:
    case = str(row.get("case"))
    shape = f", {row['n']} × {row['d']}" if row.get("n") and row.get("d") else ""
    return STARTUP.get(case, case) + shape


def _span(data: Data, other: str) -> str:
    """How many times the rate of another one the best of ours is, over the panels."""
    ratios = []
    for panel in data["panels"]:
        ours = [bar[2] for bar in panel["bars"] if selection.is_ours(bar[0])]
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


RATES, TIMES = ("per_s", "images/s"), ("ms", "ms")
FIGURES = (
    _figure(
        "training", "train", RATES, lambda: training.TITLES, _trained, _training_headline,
        "Whole steps, two views an image; lines from p20 to p80.",
        ", whole steps, two views an image",
    ),
    _figure(
        "views", "views", RATES, lambda: feeds.TITLES, lambda row: _case(feeds.CASES, row),
        _views_headline, "Two views an image, decoded or from memory; lines from p20 to p80.",
        ", two views an image",
    ),
    _figure(
        "startup", "startup", TIMES, startup.titles, _started,
        lambda data: "Milliseconds until the first result, case by case",
        "Fresh processes; shorter is better; lines from p20 to p80.",
    ),
)  # fmt: skip
