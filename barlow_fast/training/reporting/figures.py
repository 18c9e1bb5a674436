"""The pictures of a run: what was learned, what the embeddings are like, where features lie."""

from __future__ import annotations

import contextlib
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ...data import fonts
from ...files import whole_file
from ...losses.catalogue import LossKind
from ..callbacks import Record
from ..watching import Portrait
from .projection import project

ON, OFF, SCORE, GRAY = "#c2410c", "#1d4ed8", "#15803d", "#6b7280"
TERMS = (ON, OFF, "#7e22ce")
# More classes than this cannot be distinguished by colour, nor listed.
MOST_LISTED = 20


def printable(text: str) -> str:
    """On one line and in UTF-8: names of folders hold anything."""
    whole = text.encode("utf-8", "replace").decode("utf-8")
    return "".join(each if each.isprintable() else "?" for each in whole)


def draw_figure(
    path: Path,
    title: str,
    loss: LossKind,
    history: list[Record],
    scores: dict[str, float | None],
    before: Tensor,
    after: Tensor,
) -> None:
    """The terms falling, the score rising, and C turning into the identity: a PNG of 1500 x 925
    pixels.

    Args:
        path: the file.
        title: one line.
        loss: whose terms are drawn.
        history: the trainer's records, in order.
        scores: k-NN accuracies in [0, 1] of `raw` pixels and of the encoder `before` training; None
            where nothing was scored. Without the latter there is no panel for them.
        before, after: (d, d) parts of the cross-correlation matrix C of two views of test images.

    Raises:
        OSError: the file cannot be written; what was there stays.
    """
    with _drawn(path, title, (12, 7.4)) as figure:
        left, right = figure.subfigures(1, 2, width_ratios=(1, 0.72))
        if scores["before"] is None:
            terms = left.subplots()
            _draw_terms(terms, loss, history)
            terms.set_xlabel("epoch")
        else:
            terms, knn = left.subplots(2, 1, sharex=True)
            _draw_terms(terms, loss, history)
            _draw_scores(knn, history, scores)
        _draw_matrices(right, before, after)


def draw_monitors(
    path: Path, title: str, history: list[Record], before: Portrait, after: Portrait
) -> None:
    """Whether the embeddings collapse, and how the training went: a PNG of 1500 x 800 pixels.

    Args: see `draw_figure`; `before` and `after` training.

    Raises:
        OSError: the file cannot be written; what was there stays.
    """
    with _drawn(path, title, (12, 6.4)) as figure:
        (rank, spread, spectrum), (correlation, rates, speed) = figure.subplots(2, 3)
        scored = [(0, before.monitors)]
        scored += [(r["epoch"], r) for r in history if "effective_rank" in r]

        def curve(axes: Any, name: str, label: str, colour: str) -> None:
            epochs, values = zip(*((epoch, of[name]) for epoch, of in scored), strict=True)
            axes.plot(epochs, values, "o-", color=colour, linewidth=2, markersize=3, label=label)

        curve(rank, "effective_rank", "", OFF)
        _label(rank, "effective rank of embeddings")
        rank.set_ylim(bottom=0)
        curve(spread, "embedding_std", "", ON)
        spread.axhline(1, color=GRAY, linestyle="--", label="the sphere is filled")
        _label(spread, r"std per dimension $\times \sqrt{D}$, unit length")
        # With room above the line that is to be reached.
        spread.set_ylim(0, max(1.1, 1.1 * spread.dataLim.y1))
        spread.legend(frameon=False, fontsize=9)
        curve(correlation, "diagonal_mean", r"mean of $C_{ii}$", ON)
        curve(correlation, "off_diagonal_abs_mean", r"mean of $|C_{ij}|$, $i \neq j$", OFF)
        _label(correlation, "C of two views")
        correlation.legend(frameon=False, fontsize=9)
        _draw_spectrum(spectrum, before.singular_values, after.singular_values)
        epochs = [record["epoch"] for record in history]
        dots = "o-" if len(epochs) == 1 else "-"
        rates.plot(epochs, [r["learning_rate"] for r in history], dots, color=SCORE, linewidth=2)
        _label(rates, "learning rate of weights, at each epoch's end")
        rates.ticklabel_format(axis="y", scilimits=(-2, 3))
        speed.plot(
            epochs, [r["images_per_second"] for r in history], dots, color=GRAY, linewidth=1.5
        )
        _label(speed, "images per second")
        speed.set_ylim(bottom=0)


def draw_map(
    path: Path,
    title: str,
    before: Portrait,
    after: Portrait,
    class_names: tuple[str, ...] | None = None,
) -> None:
    """Features of test images in two dimensions, before and after training, coloured by label: a
    PNG of 1500 x 775 pixels.

    Args: see `draw_figure`; portraits with features, labels or none.

    Raises:
        OSError: the file cannot be written; what was there stays.
        ValueError: features that are not finite.
    """
    with _drawn(path, title, (12, 6.2)) as figure:
        handles: list[Any] = []
        for panel, portrait, when in zip(
            figure.subplots(1, 2), (before, after), ("before", "after"), strict=True
        ):
            places, method = project(portrait.features)
            handles = _draw_places(panel, places, portrait.labels)
            panel.set_title(f"{len(places)} test images {when} training, {method}", fontsize=11)
            panel.set_xticks([])
            panel.set_yticks([])
        if handles:
            classes = after.labels.unique().tolist()
            names = [class_names[c] if class_names else str(c) for c in classes]
            # matplotlib leaves out what begins with an underscore.
            names = [f" {_drawable(name)[:24]}" for name in names]
            legend = figure.legend(
                handles, names, loc="outside right center", frameon=False,
                markerscale=1.6, handletextpad=0.2,
                prop={"family": list(fonts.installed()), "size": 9},
            )  # fmt: skip
            for text in legend.get_texts():
                text.set_parse_math(False)


@contextlib.contextmanager
def _drawn(path: Path, title: str, inches: tuple[float, float]) -> Iterator[Any]:
    """A figure to draw into; a file at the end."""
    # Not pyplot: it keeps global state and may look for a display.
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=inches, dpi=125, layout="constrained")
    FigureCanvasAgg(figure)
    # A dollar in a name is a dollar.
    figure.suptitle(
        _drawable(title), fontsize=13, parse_math=False, fontfamily=list(fonts.installed())
    )
    yield figure
    with warnings.catch_warnings(), whole_file(path) as partial:
        # Of names that leave little room.
        warnings.filterwarnings("ignore", category=UserWarning, module="matplotlib")
        figure.savefig(partial, format="png")


def _drawable(text: str) -> str:
    """With escapes for what no font here has."""
    return fonts.drawable(
        printable(text), lambda c: any(fonts.has(font, c) for font in fonts.installed().values())
    )


def _label(axes: Any, title: str) -> None:
    axes.set_title(title, fontsize=11)
    axes.set_xlabel("epoch", fontsize=9)
    axes.xaxis.get_major_locator().set_params(integer=True)
    axes.grid(alpha=0.25)


def _draw_terms(axes: Any, loss: LossKind, history: list[Record]) -> None:
    epochs = [record["epoch"] for record in history]
    for (name, term), colour in zip(loss.terms.items(), TERMS, strict=False):
        values = [record[name] for record in history]
        dots = "o-" if len(epochs) == 1 else "-"
        axes.plot(epochs, values, dots, color=colour, linewidth=2, label=term.meaning)
    # A term that is the logarithm of something is drawn as it is.
    if all(record[name] >= 0 for record in history for name in loss.terms):
        axes.set_yscale("log")
    axes.set_title("terms of the loss, training batches", fontsize=11)
    axes.grid(alpha=0.25, which="both")
    axes.legend(frameon=False, fontsize=9)


def _draw_scores(axes: Any, history: list[Record], scores: dict[str, float | None]) -> None:
    scored = [(0, scores["before"])]
    scored += [(r["epoch"], r["knn"]) for r in history if r["knn"] is not None]
    epochs, accuracies = zip(*scored, strict=True)
    percent = [100 * accuracy for accuracy in accuracies]
    axes.plot(epochs, percent, "o-", color=SCORE, linewidth=2, markersize=4, label="encoder")
    axes.annotate(
        f"{percent[-1]:.1f} %", (epochs[-1], percent[-1]), (0, 7), textcoords="offset points",
        ha="right", color=SCORE, fontweight="bold",
    )  # fmt: skip
    axes.annotate(
        f"{percent[0]:.1f} %", (0, percent[0]), (8, -6), textcoords="offset points", color=SCORE
    )
    if scores["raw"] is not None:
        raw = 100 * scores["raw"]
        axes.axhline(raw, color=GRAY, linestyle="--", label=f"raw pixels: {raw:.1f} %")
    axes.margins(y=0.18)
    axes.set_title("k-NN accuracy on test images (%)", fontsize=11)
    axes.set_xlabel("epoch (0: random weights)")
    axes.xaxis.get_major_locator().set_params(integer=True)
    axes.grid(alpha=0.25)
    axes.legend(frameon=False, fontsize=9, loc="center right")


def _draw_matrices(figure: Any, before: Tensor, after: Tensor) -> None:
    axes = figure.subplots(2, 1)
    for panel, matrix, when in zip(axes, (before, after), ("before", "after"), strict=True):
        image = panel.imshow(
            matrix.numpy(), cmap="RdBu_r", vmin=-1, vmax=1, interpolation="nearest"
        )
        diagonal = matrix.diagonal()
        count = max(matrix.numel() - len(diagonal), 1)
        off = ((matrix.square().sum() - diagonal.square().sum()) / count).clamp_min(0).sqrt()
        panel.set_title(
            f"C {when} training, {len(matrix)} dimensions\n"
            f"diagonal {diagonal.mean():.2f}, elsewhere {off:.2f} (rms)",
            fontsize=11,
        )
        panel.set_xticks([])
        panel.set_yticks([])
    figure.colorbar(image, ax=axes, shrink=0.55, label="correlation between the two views")


def _draw_spectrum(axes: Any, before: Tensor, after: Tensor) -> None:
    for values, label, colour in ((before, "before", GRAY), (after, "after training", SCORE)):
        # A logarithm of what is lost in rounding would stretch the axis to nothing.
        kept = values[values > 1e-6 * values.max()] if len(values) else values
        if len(kept):
            axes.plot(range(1, len(kept) + 1), kept / kept[0], color=colour, label=label)
    axes.set_yscale("log")
    axes.set_title("singular values of embeddings / largest", fontsize=11)
    axes.set_xlabel("number", fontsize=9)
    axes.grid(alpha=0.25, which="both")
    if axes.lines:
        axes.legend(frameon=False, fontsize=9)


def _draw_places(axes: Any, places: Tensor, labels: Tensor | None) -> list[Any]:
    """Returns what a legend lists: nothing without labels, or where they are too many."""
    size = max(6.0, min(14.0, 6000 / len(places)))
    if labels is None:
        axes.scatter(*places.T.numpy(), s=size, color=OFF, linewidths=0, alpha=0.7)
        return []
    from matplotlib import colormaps

    classes = labels.unique().tolist()
    if len(classes) > MOST_LISTED:
        shown = torch.searchsorted(labels.unique(), labels) / len(classes)
        axes.scatter(
            *places.T.numpy(), s=size, c=shown.numpy(), cmap="hsv", vmin=0, vmax=1, linewidths=0
        )
        return []
    colours = colormaps["tab10" if len(classes) <= 10 else "tab20"].colors
    return [
        axes.scatter(
            *places[labels == each].T.numpy(), s=size, color=colour, linewidths=0, alpha=0.85
        )
        for each, colour in zip(classes, colours, strict=False)
    ]
