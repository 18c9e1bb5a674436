"""Shared by all figures: files, fingerprints, colours, and the pieces that they draw with."""

from __future__ import annotations

import hashlib
import inspect
import io
import json
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from bench.inputs import CUDA_VARIANTS
from bench.peers import discover
from bench.results import Row

Data = dict[str, Any]
MARK = "figure of bench report, data "
WIDTH = 9.4  # inches; 902 pixels, the width of a README
INK, SOFT, LINE = "#1f2328", "#59636e", "#c8ccd1"
# The colour-blind palette of Okabe and Ito: blue is ours in every figure, vermilion the official.
OURS, OFFICIAL = "#0072b2", "#d55e00"
COLOURS = {
    "ours": OURS,
    "official": OFFICIAL,
    "gram": "#009e73",
    "lightly": "#aa4499",
}
OTHER_COLOURS = ("#b8860b", "#1f2328", "#56b4e9", "#7f7f7f", "#8c510a", "#44aa99", "#882255")
MARKERS = {"ours": "o", "official": "s", "gram": "^", "lightly": "D"}
OTHER_MARKERS = ("v", "P", "X", "<", ">", "p", "h", "*")
CROWD = 7  # peers
FORMULA, COMPILED = "-formula", "-compiled"
COMPILED_SHOWN = ("gram-compiled", "official-compiled")
# By the suffix of a name: variants share the colour and the marker of what they vary.
LINES = {"compiled": "--", "aten": "--", "formula": "-.", "grouped": ":"}
SETTINGS = {
    # Text stays text: it can be searched, and a test can read it.
    "svg.fonttype": "none",
    # Element names that are the same each time: a figure changes only with its data.
    "svg.hashsalt": "barlow_fast",
    "font.size": 10,
    "axes.edgecolor": LINE,
    "axes.labelcolor": INK,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.titlesize": 10.5,
    "axes.titleweight": "bold",
    "axes.titlelocation": "left",
    "figure.titlesize": 12.5,
    "figure.titleweight": "bold",
    "text.color": INK,
    "xtick.color": INK,
    "ytick.color": INK,
    "hatch.linewidth": 0.6,
}


@dataclass(frozen=True)
class Picture:
    """A figure before it is drawn.

    Attributes:
        name: of the file, without its suffix.
        suite: whose page shows it.
        machine: name of the file of rows that it shows.
        caption: the main result and its conditions; also the alternative text.
        data: all that is drawn, as JSON can hold it.
        draw: data -> matplotlib's figure.
    """

    name: str
    suite: str
    machine: str
    caption: str
    data: Data
    draw: Callable[[Data], Any]

    @property
    def mark(self) -> str:
        """The fingerprint of data and code that the SVG carries: two that are drawn
        from the same have the same, whatever the version of matplotlib."""
        content = hashlib.sha256(json.dumps(self.data, sort_keys=True).encode())
        figure = inspect.getmodule(self.draw)
        parts = [figure, *(part for part in vars(figure).values() if inspect.ismodule(part))]
        for module in parts:
            if module.__name__.startswith(__package__):
                content.update(inspect.getsource(module).encode())
        return MARK + content.hexdigest()[:16]

    def svg(self) -> str:
        """The file as text; the same bytes for the same data and version of matplotlib.

        Raises:
            ImportError: without matplotlib.
        """
        from matplotlib import style
        from matplotlib.backends.backend_svg import FigureCanvasSVG

        with style.context(["default", SETTINGS]):
            figure = self.draw(self.data)
            FigureCanvasSVG(figure)
            text = io.StringIO()
            metadata = {"Date": None, "Description": self.mark}
            figure.savefig(text, format="svg", metadata=metadata)
        # A thousandth of a point is finer than any screen; the rest would be a third of the file.
        shorter = re.sub(r"(?<=\d\.\d{3})\d+", "", text.getvalue())
        return re.sub(r"[ \t]+$", "", shorter, flags=re.MULTILINE)


def by_dtype(
    kind: str,
    suite: str,
    files: Mapping[str, Sequence[Row]],
    data: Callable[[list[Row], str], Data | None],
    caption: Callable[[Data], str],
    draw: Callable[[Data], Any],
) -> list[Picture]:
    """A picture for each file and dtype with data."""
    found = []
    for name, rows in rows_of(files, suite):
        each = {v: data([row for row in rows if row.get("dtype") == v], v) for v in CUDA_VARIANTS}
        found += [
            Picture(f"{kind}-{stem(name)}-{dtype}", suite, name, caption(content), content, draw)
            for dtype, content in each.items()
            if content is not None
        ]
    return found


def figure(height: float, title: str, text: str) -> Any:
    """An empty figure with its title in bold and, below it, what is shown.

    Args:
        height: in inches; constrained layout leaves room for both texts.
        title: the main result.
        text: machine, dtype and how to read it.
    """
    from matplotlib.figure import Figure

    made = Figure(figsize=(WIDTH, height), layout="constrained")
    made.suptitle(title + "\n", x=0.01, ha="left")
    made.text(0.01, 1 - 0.36 / height, text, ha="left", va="top", fontsize=9, color=SOFT)
    return made


def legend(made: Any, handles: Mapping[str, Any], titles: Mapping[str, str]) -> None:
    """One legend below all panels, in the order of the titles."""
    shown = [peer for peer in titles if peer in handles]
    made.legend(
        [handles[peer] for peer in shown], [titles[peer].replace("`", "") for peer in shown],
        loc="outside lower center", ncols=4, frameon=False, fontsize=9,
    )  # fmt: skip


def note(axes: Any, text: str, point: Sequence[float], offset: Sequence[float], **style: Any):
    """Small text beside a point, at an offset in points of print."""
    style = {"fontsize": 8, "va": "bottom"} | style
    return axes.annotate(text, point, xytext=offset, textcoords="offset points", **style)


def ticks(axes: Any, values: Sequence[float], labels: Sequence[str]) -> None:
    """Labelled ticks of x at these values and nowhere between."""
    axes.set_xticks(values, labels)
    axes.minorticks_off()


def marked(svg: str) -> str | None:
    """The mark in the text of an SVG file; None where it is not one of ours."""
    found = re.search(re.escape(MARK) + r"[0-9a-f]{16}", svg)
    return found[0] if found else None


def stem(name: str) -> str:
    """Of the name of a file of rows, such as gpu-nvidia-h100: part of the names of its figures."""
    return name.removesuffix(".jsonl")


def device(rows: Sequence[Row]) -> str:
    """The machine of some rows, in a few words."""
    origin = rows[0].get("provenance") or {}
    if origin.get("gpu"):
        return str(origin["gpu"])
    cores = origin.get("cores")
    return str(origin.get("cpu", "unknown machine")) + (f", {cores} cores" if cores else "")


def titled(peers: Iterable[str]) -> dict[str, str]:
    """Titles of peers in tables and figures; the name of one that is not known here."""
    known = {n: peer.title for kind in ("cuda", "cpu") for n, peer in discover(kind).items()}
    return {peer: known.get(peer, peer) for peer in peers}


def spread(row: Row, keys: Sequence[str]) -> list[float] | None:
    """Median, p20 and p80 of a row, the median where it has no percentiles; None without one."""
    median = number(row.get(keys[0]))
    if median is None:
        return None
    return [median, *(number(row.get(key)) or median for key in keys[1:])]


def is_exact(peer: str) -> bool:
    """Whether an implementation computes the loss itself; those that are not known here do."""
    return all(discover(kind)[peer].exact for kind in ("cuda", "cpu") if peer in discover(kind))


def in_order(peers: Iterable[str]) -> list[str]:
    """Ours first, then by name: the order of the legends."""
    return sorted(set(peers), key=lambda name: (not is_ours(name), name != "ours", name))


def is_ours(peer: str) -> bool:
    """Whether an implementation is this repository's."""
    return peer == "ours" or peer.startswith("ours-")


def thinned(peers: Iterable[str]) -> list[str]:
    """In order; of more than CROWD peers, no formula of a peer that is present too, and compiled
    variants only of the simplest. The tables have all."""
    ordered = in_order(peers)
    if len(ordered) <= CROWD:
        return ordered
    restated = {f"{peer}{FORMULA}" for peer in ordered}
    return [
        peer
        for peer in ordered
        if peer not in restated and (not peer.endswith(COMPILED) or peer in COMPILED_SHOWN)
    ]


def styles(peers: Iterable[str]) -> dict[str, Data]:
    """Colour, marker and line of each peer: those of one family share a colour, variants are
    hollow, compiled ones dashed, ours is the thickest."""
    found: dict[str, Data] = {}
    families: list[str] = []
    for peer in in_order(peers):
        family, *words = peer.split("-")
        if family not in COLOURS and family not in families:
            families.append(family)
        index = families.index(family) if family in families else 0
        colour = COLOURS.get(family) or OTHER_COLOURS[index % len(OTHER_COLOURS)]
        line = next((LINES[word] for word in reversed(words) if word in LINES), "-")
        found[peer] = {
            "color": colour,
            "marker": MARKERS.get(family) or OTHER_MARKERS[index % len(OTHER_MARKERS)],
            "markerfacecolor": colour if line == "-" else "white",
            "linestyle": line,
            "linewidth": 2.6 if peer == "ours" else 1.4,
            "markersize": 7 if peer == "ours" else 5,
            "zorder": 5 if peer == "ours" else 3,
        }
    return found


def number(value: Any) -> float | None:
    """A finite positive number as a float; None for anything else that a row may hold."""
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return None
    return float(value) if 0 < value < float("inf") else None


def size(value: int) -> str:
    """A power of two in k (1024) from there on, anything else as it is."""
    return f"{value // 1024}k" if value >= 1024 and value % 1024 == 0 else str(value)


def rows_of(files: Mapping[str, Sequence[Row]], *suites: str) -> Iterable[tuple[str, list[Row]]]:
    """(file name, its rows of these suites) for each file that has some."""
    for name, rows in files.items():
        chosen = [row for row in rows if row.get("suite") in suites]
        if chosen:
            yield name, chosen
