"""One picture of a run: the terms falling, the score rising, and C turning into the identity."""

from __future__ import annotations

from pathlib import Path

from torch import Tensor

from .hooks import Record

ON, OFF, SCORE, GRAY = "#c2410c", "#1d4ed8", "#15803d", "#6b7280"


def draw_figure(
    path: Path,
    title: str,
    history: list[Record],
    scores: dict[str, float | None],
    before: Tensor,
    after: Tensor,
) -> None:
    """Writes a PNG of 1500 x 925 pixels.

    Args:
        path: the file.
        title: one line.
        history: the trainer's records, in order.
        scores: k-NN accuracies in [0, 1] of `raw` pixels and of the encoder `before` training; None
            where nothing was scored.
        before, after: (d, d) parts of the cross-correlation matrix C of two views of test images.

    Raises:
        OSError: the file cannot be written.
    """
    # Not pyplot: it keeps global state and may look for a display.
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(12, 7.4), dpi=125, layout="constrained")
    FigureCanvasAgg(figure)
    left, right = figure.subfigures(1, 2, width_ratios=(1, 0.72))
    figure.suptitle(title, fontsize=13)
    terms, knn = left.subplots(2, 1, sharex=True)
    _draw_terms(terms, history)
    _draw_scores(knn, history, scores)
    _draw_matrices(right, before, after)
    figure.savefig(path)


def _draw_terms(axes, history: list[Record]) -> None:
    epochs = [record["epoch"] for record in history]
    for key, label, colour in (
        ("on_diagonal_mean", r"on the diagonal: mean of $(C_{ii}-1)^2$", ON),
        ("off_diagonal_mean", r"off the diagonal: mean of $C_{ij}^2$", OFF),
    ):
        values = [record[key] for record in history]
        axes.plot(epochs, values, color=colour, linewidth=2, label=label)
    axes.set_yscale("log")
    axes.set_title("terms of the loss, training batches", fontsize=11)
    axes.grid(alpha=0.25, which="both")
    axes.legend(frameon=False, fontsize=9)


def _draw_scores(axes, history: list[Record], scores: dict[str, float | None]) -> None:
    if scores["before"] is None:
        axes.set_title("k-NN accuracy: no labelled test images", fontsize=11)
        axes.set_xlabel("epoch")
        axes.set_yticks([])
        return
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
    raw = 100 * scores["raw"]
    axes.axhline(raw, color=GRAY, linestyle="--", label=f"raw pixels: {raw:.1f} %")
    axes.margins(y=0.18)
    axes.set_title("k-NN accuracy on test images (%)", fontsize=11)
    axes.set_xlabel("epoch (0: random weights)")
    axes.xaxis.get_major_locator().set_params(integer=True)
    axes.grid(alpha=0.25)
    axes.legend(frameon=False, fontsize=9, loc="center right")


def _draw_matrices(figure, before: Tensor, after: Tensor) -> None:
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
