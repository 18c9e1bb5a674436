"""The report page of a run."""

from __future__ import annotations

import base64
import datetime
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ...checkpoints.state import PHASES
from ...files import write_whole
from ...losses.catalogue import LOSSES, LossKind
from ..callbacks import Record
from ..feeding import views_in_words
from ..monitors import CRITERION, has_collapsed
from ..watching import Portrait
from .commands import next_commands
from .figures import printable
from .pace import duration

if TYPE_CHECKING:
    from ..loop import Trainer

CAPTIONS = {
    "figure": "The terms of the loss over epochs, k-NN accuracy where there are labels, and C of "
    "two views of the same images before and after training; a perfect C is the identity.",
    "monitors": "Whether embeddings collapse. The effective rank is the number of directions that "
    "they use evenly; with random weights chance uses many. It usually falls in a good run, as "
    "images that belong together get embeddings in the same directions: that alone is no collapse. "
    f"The criterion is {CRITERION}.",
    "map": "Test images, placed so that neighbours in the space of features are neighbours here.",
}
# The names of the time table's rows, by phase.
PHASE_NAMES = {
    "data": "waiting for views",
    "forward": "encoder and projector, forward",
    "loss": "loss and its gradient",
    "backward": "encoder and projector, backward",
    "update": "optimizer",
}


def write_page(
    path: Path,
    trainer: Trainer,
    name: str,
    portraits: dict[str, Portrait],
    figures: dict[str, Path],
) -> None:
    """Writes an HTML file that needs no other: no network, no scripts, pictures inside.

    Args:
        path: the file, which appears whole or not at all.
        trainer: of a run that came to its end.
        name: of the data.
        portraits: `before` and `after` training, as far as they are there.
        figures: PNG files by name, see `CAPTIONS`.

    Raises:
        ImportError: without jinja2.
        OSError: a file cannot be read or written.
    """
    text = render_page(content(trainer, name, portraits, figures))
    # A path may hold bytes that are no text.
    write_whole(path, text.encode("utf-8", "replace"))


def render_page(values: Record) -> str:
    """The page of `content`'s values; every one of them is escaped."""
    from jinja2 import Environment, StrictUndefined

    template = Path(__file__).with_name("page.html").read_text(encoding="utf-8")
    environment = Environment(
        autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    return environment.from_string(template).render(values)


def content(
    trainer: Trainer, name: str, portraits: dict[str, Portrait], figures: dict[str, Path]
) -> Record:
    """What the page says, as texts and numbers."""
    config, facts = trainer.config, trainer.provenance()
    loss = LOSSES[config.loss]
    columns = _columns(loss, trainer.history)
    settings = {key: printable(_plain(value)) for key, value in facts["config"].items()}
    return {
        "title": f"{loss.title} on {printable(name)}",
        "made": datetime.datetime.now(datetime.timezone.utc).strftime("%Y-%m-%d %H:%M UTC"),
        "summary": f"{config.epochs} epochs of {trainer.steps_per_epoch} steps, "
        f"{config.batch_size} images x {views_in_words(trainer.views)} each; {config.encoder} "
        "encoder, projector "
        f"{'-'.join(map(str, config.projector))}",
        "tiles": _tiles(trainer, portraits),
        "scores": _scores(trainer),
        "times": time_table(trainer.history),
        "columns": list(columns),
        "history": list(zip(*columns.values(), strict=True)),
        "pictures": [
            {
                "source": base64.b64encode(file.read_bytes()).decode("ascii"),
                "caption": CAPTIONS[key],
            }
            for key, file in figures.items()
            if key in CAPTIONS
        ],
        "commands": [(what, printable(command)) for what, command in next_commands(trainer)],
        "settings": settings,
        "facts": {
            key: "\n".join(map(printable, value.split("\n")))
            for key, value in _facts(trainer, facts).items()
        },
    }


def time_table(history: list[Record]) -> list[Record]:
    """Where the time of a step went, over all epochs: `name`, `share` in [0, 1] and `milliseconds`
    of a step. Phases whose share the records lack are one row, the last."""
    seconds = sum(record["seconds"] for record in history)
    steps = history[-1]["step"] if history else 0
    if not seconds or not steps:
        return []
    rows = []
    for phase in PHASES:
        key = "data_wait_share" if phase == "data" else f"{phase}_share"
        if all(key in record for record in history):
            share = sum(record[key] * record["seconds"] for record in history) / seconds
            rows.append({"name": PHASE_NAMES[phase], "share": share})
    rest = 1 - sum(row["share"] for row in rows)
    if len(rows) < len(PHASES):
        rows.append({"name": "encoder, projector and optimizer", "share": max(0.0, rest)})
    return [{**row, "milliseconds": 1000 * row["share"] * seconds / steps} for row in rows]


def _tiles(trainer: Trainer, portraits: dict[str, Portrait]) -> list[tuple[str, str, str]]:
    """(a number, what it is, what to hold against it)."""
    history = trainer.history
    seconds = sum(record["seconds"] for record in history)
    # In one process the loader hands out whole batches.
    images = trainer.step * trainer.config.batch_size
    tiles = []
    last = history[-1] if history else {}
    if last.get("knn") is not None:
        before = trainer.before.get("before")
        against = "" if before is None else f"{100 * before:.1f} % with random weights"
        tiles.append((f"{100 * last['knn']:.1f} %", "k-NN accuracy", against))
    if seconds:
        tiles.append((f"{images / seconds:,.0f}", "images per second", "while training"))
        tiles.append((duration(seconds), "training", "scores and checkpoints not counted"))
    if "after" in portraits:
        tiles.append(_collapse(portraits["after"], portraits.get("before")))
    return tiles


def _collapse(after: Portrait, before: Portrait | None) -> tuple[str, str, str]:
    rank, spread = (after.monitors[name] for name in ("effective_rank", "embedding_std"))
    against = f"effective rank {rank:.0f} of at most {len(after.singular_values)}"
    if before is not None:
        against += f" ({before.monitors['effective_rank']:.0f} with random weights)"
    against += f", standard deviation {spread:.2f}: see the monitors below"
    if has_collapsed(after.monitors):
        return "collapsed", "embeddings", against
    return "no collapse", "of embeddings", against


def _scores(trainer: Trainer) -> list[tuple[str, str]]:
    if not trainer.scores or not trainer.history:
        return []
    rows = (
        ("the encoder after training", trainer.history[-1]["knn"]),
        ("the same encoder with random weights", trainer.before.get("before")),
        ("raw pixels", trainer.before.get("raw")),
    )
    return [(what, f"{100 * value:.2f} %") for what, value in rows if value is not None]


def _columns(loss: LossKind, history: list[Record]) -> dict[str, list[str]]:
    """A table of the epochs, less the columns in which every cell is empty."""

    def term(name: str, decimals: int) -> Callable[[Record], str]:
        return lambda record: f"{record[name]:.{decimals}f}"

    columns: dict[str, Callable[[Record], str]] = {
        "epoch": lambda record: str(record["epoch"]),
        "loss": lambda record: f"{record['loss']:.2f}",
        **{
            name.removesuffix("_mean").replace("_", " "): term(name, each.decimals)
            for name, each in loss.terms.items()
        },
        "k-NN": lambda r: "" if r["knn"] is None else f"{100 * r['knn']:.2f} %",
        "rank": lambda r: f"{r['effective_rank']:.1f}" if "effective_rank" in r else "",
        "learning rate": lambda record: f"{record['learning_rate']:.3g}",
        "images/s": lambda record: f"{record['images_per_second']:,.0f}",
        "data wait": lambda record: f"{100 * record['data_wait_share']:.0f} %",
    }
    cells = {name: [cell(record) for record in history] for name, cell in columns.items()}
    return {name: texts for name, texts in cells.items() if any(texts)}


def _facts(trainer: Trainer, provenance: Record) -> dict[str, str]:
    from ..estimate import plan_loss

    config, ranks = trainer.config, trainer.ranks
    source = trainer.dataset or f"{trainer.source.name}: {len(trainer.source)} training images"
    views = provenance["dataset"]["views"]
    splits = trainer.watcher.splits
    facts = {
        "data": str(source) + ("" if splits is None else f"; scored on {splits.test.name}"),
        "views": f"{trainer.views.name}, by {trainer.loader.chosen}"
        + (f" (fingerprint {views})" if isinstance(views, str) else ""),
        "precision": str(trainer.precision).removeprefix("torch."),
        "loss": str(
            plan_loss(config, len(trainer.views.views), trainer.device, ranks.size, ranks.nodes)
        ),
        "device": provenance["device"],
        "processes": str(ranks.size),
        "versions": ", ".join(f"{key} {value}" for key, value in provenance["versions"].items()),
    }
    if trainer.loader.bad_images:
        facts["skipped"] = f"{len(trainer.loader.bad_images)} images that cannot be read"
    if trainer.loader.suspect_images:
        facts["suspect"] = trainer.loader.suspects
    return facts


def _plain(value: Any) -> str:
    if value is None:
        return "none"
    if isinstance(value, list):
        return "-".join(map(str, value))
    return str(value) if value != "" else "by the data"
