"""The figures and the page at the end of a run; their errors do not end it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from ...losses.catalogue import LOSSES
from ..watching import Portrait

if TYPE_CHECKING:
    from ..loop import Trainer


@dataclass
class Report:
    """What `report_run` made."""

    files: dict[str, Path] = field(default_factory=dict)  # `figure`, `monitors`, `map`, `report`
    complaints: list[str] = field(default_factory=list)  # a line for each that could not be made


def report_run(trainer: Trainer, folder: Path | str, name: str) -> Report:
    """Draws `figure.png`, `monitors.png` and, where there are test images in memory, `map.png`,
    and writes `report.html`, which holds them.

    Failures are listed in `complaints` and not raised: the weights are in the
    checkpoint. On several ranks all must call it; all but the first do nothing else.

    Args:
        trainer: of a run that came to its end.
        folder: must exist.
        name: of the data, for titles.
    """
    model = trainer.plain_model(copied=True)
    report = Report()
    if not trainer.ranks.first:
        return report
    folder = Path(folder)
    config = trainer.config
    title = (
        f"{LOSSES[config.loss].title} on {name}: batches of {config.batch_size}, "
        f"{config.projector[-1]} dimensions, {config.epochs} epochs"
    )
    portraits: dict[str, Portrait] = {}

    def attempt(what: str, file: str, make: Callable[[Path], None]) -> None:
        try:
            make(folder / file)
        # Of any kind: the run is over, and whole.
        except Exception as error:
            reason = " ".join(str(error).split()) or type(error).__name__
            report.complaints.append(f"no {file}: {reason}; the weights are saved")
        else:
            report.files[what] = folder / file

    def figure(path: Path) -> None:
        from .figures import draw_figure

        # Built again from the seed: the weights that training began with.
        initial = trainer.initial_model().to(trainer.device)
        portraits["before"] = trainer.watcher.portrait(initial)
        portraits["after"] = trainer.watcher.portrait(model)
        scores = {key: trainer.before.get(key) for key in ("raw", "before")}
        matrices = (trainer.before.get("correlation"), portraits["after"].correlation)
        draw_figure(path, title, LOSSES[config.loss], trainer.history, scores, *matrices)

    def monitors(path: Path) -> None:
        from .figures import draw_monitors

        draw_monitors(path, title, trainer.history, portraits["before"], portraits["after"])

    def places(path: Path) -> None:
        from .figures import draw_map

        names = trainer.dataset.class_names
        draw_map(path, title, portraits["before"], portraits["after"], names)

    def page(path: Path) -> None:
        from .page import write_page

        write_page(path, trainer, name, portraits, dict(report.files))

    attempt("figure", "figure.png", figure)
    # Without portraits the reason is already reported.
    if len(portraits) == 2:
        attempt("monitors", "monitors.png", monitors)
        if portraits["after"].features is not None:
            attempt("map", "map.png", places)
    attempt("report", "report.html", page)
    return report
