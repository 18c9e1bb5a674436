"""The ablations of the Barlow Twins paper in small: accuracy against the projector's output, the
batch size and lambda."""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

from bench import cli, provenance, results
from bench.cli import Option
from bench.markdown import Column, joined, reading, table_of
from bench.results import Row
from bench.suites.speedrun import SCORES, measured, score

SECTION = "Ablations: projector, batch size, lambda"
ROWS = results.FOLDER / "ablations.jsonl"
EPOCHS = 4


@dataclass(frozen=True)
class Parameter:
    """What is varied.

    Attributes:
        title: for tables and figures.
        values: that it takes.
        changes: (settings of the recipe, value) -> `name=value` texts.
    """

    title: str
    values: tuple[float, ...]
    changes: Callable[[Any, float], list[str]]


def _projector(config: Any, width: float) -> list[str]:
    """The last width, as in the paper."""
    return [f"projector={[*config.projector[:-1], int(width)]}"]


def _batch(config: Any, size: float) -> list[str]:
    """Learning rates follow: with LARS and SGD as the batch size, with the others as its root."""
    ratio = size / config.batch_size
    ratio = ratio if config.optimizer in ("lars", "sgd") else math.sqrt(ratio)
    texts = [f"batch_size={int(size)}", f"learning_rate={config.learning_rate * ratio:.6g}"]
    if config.bias_learning_rate is not None:
        texts += [f"bias_learning_rate={config.bias_learning_rate * ratio:.6g}"]
    return [*texts, "reference_batch_size=null"]


PARAMETERS = {
    "projector": Parameter(
        "projector output D", tuple(2**k for k in range(5, 15)), _projector
    ),
    "batch": Parameter("batch size", tuple(2**k for k in range(5, 12)), _batch),
    "lambd": Parameter(
        "λ", (0.0005, 0.001, 0.002, 0.005, 0.01, 0.02, 0.05),
        lambda config, value: [f"lambd={value:g}"],
    ),
}  # fmt: skip


def command(
    parameters: Annotated[
        str | None, Option(f"Comma-separated. Default: {','.join(PARAMETERS)}.")
    ] = None,
    values: Annotated[
        str | None, Option("Comma-separated, of a single parameter. Default: its own.")
    ] = None,
    epochs: Annotated[int, Option("Of every run.", least=1)] = EPOCHS,
    seeds: Annotated[str, Option("Comma-separated.")] = "0,1,2",
    recipe: Annotated[str, Option("A name of RECIPES in bench/training/speedrun.py.")] = "baseline",
    images: Annotated[
        int | None, Option("Of the 50,000 images to learn from, use so many.", least=1000)
    ] = None,
    folder: Annotated[Path, Option("For logs and checkpoints; continues what is there.")] = Path(
        "runs/ablations"
    ),
    out: Annotated[Path | None, Option("JSON Lines file of rows.")] = None,
) -> None:
    """Repeat the paper's ablations with a recipe of the speedrun, on validation images."""
    with cli.reading():
        from bench.training import speedrun

        chosen = [int(seed) for seed in seeds.split(",")]
        names = cli.listed(parameters, PARAMETERS, "parameter")
        if values is not None and len(names) != 1:
            raise ValueError("--values needs a single name in --parameters")
        points = None if values is None else [float(text) for text in values.split(",")]
        cli.listed(recipe, speedrun.RECIPES, "recipe")
        data = speedrun.images_of(speedrun.VALIDATION, images)
        planned = list(plans(names, points, recipe, epochs))
    origin = provenance.collect()
    found: dict[tuple, list[Row]] = {}
    # Seed by seed, so that an interrupted run has whole curves.
    for seed in chosen:
        for name, value, plan in planned:
            about = {"provenance": origin, "recipe": recipe, "parameter": name, "value": value}
            run = speedrun.Run(plan, data, seed, None, speedrun.OURS, folder, about)
            with cli.reading():
                end = run.finish()
            ends = found.setdefault((name, value), [])
            ends.append(end)
            print(
                f"{name} {value:g}, seed {seed}: linear {end['linear']:.2f} %, k-NN "
                f"{end['knn']:.2f} %, {end['cpu_seconds']:.0f} s of CPU",
                flush=True,
            )
            point = row(name, value, plan, data, chosen[: len(ends)], ends, origin, recipe)
            results.put(out or ROWS, point, identity)


def plans(
    names: Sequence[str], points: Sequence[float] | None, recipe: str, epochs: int
) -> Iterator[tuple[str, float, Any]]:
    """(parameter, value, plan) of every point of the curves.

    Raises:
        ValueError: a value that the setting does not take.
    """
    from bench.training import speedrun

    base = speedrun.planned(speedrun.RECIPES[recipe], [f"epochs={epochs}"])
    for name in names:
        for value in PARAMETERS[name].values if points is None else points:
            changes = [f"epochs={epochs}", *PARAMETERS[name].changes(base.config, value)]
            yield name, value, speedrun.planned(speedrun.RECIPES[recipe], changes)


def row(
    name: str,
    value: float,
    plan: Any,
    data: Any,
    seeds: Sequence[int],
    ends: Sequence[Row],
    origin: Row,
    recipe: str,
) -> Row:
    """One point of a curve."""
    found: Row = {"suite": "ablations", "case": name, "value": value, "recipe": recipe}
    found |= measured(plan, data, "ours", seeds, ends) | {"epochs": plan.config.epochs}
    return found | {"provenance": origin}


def identity(found: Row) -> tuple:
    """Of a point: its parameter and value."""
    return found["case"], found["value"]


def curves(rows: Sequence[Row]) -> dict[str, list[Row]]:
    """The points of each parameter, in the order of their values."""
    found = {name: [each for each in rows if each["case"] == name] for name in PARAMETERS}
    return {
        name: sorted(points, key=lambda each: each["value"])
        for name, points in found.items()
        if points
    }


def summary(name: str, points: Sequence[Row]) -> str:
    """The shape of a curve in numbers: its best point, and what its ends lack."""
    means = [statistics.fmean(each["linear"]) for each in points]
    best = max(range(len(points)), key=means.__getitem__)
    ends = " and ".join(
        f"{means[place] - means[best]:+.2f} at {points[place]['value']:g}"
        for place in (0, len(points) - 1)
        if place != best
    )
    text = f"best linear accuracy {means[best]:.2f} % at {points[best]['value']:g}"
    return f"{PARAMETERS[name].title}: {text}" + (f"; {ends}" if ends else "")


def tables(rows: list[Row]) -> str:
    """Markdown of the curves, each beside the paper's finding."""
    first = rows[0]
    parts = [reading("ablations", recipe=first["recipe"], epochs=first["epochs"],
                     images=first["images"], judged_on=first["judged_on"])]  # fmt: skip
    for name, points in curves(rows).items():
        columns = [
            Column(PARAMETERS[name].title, "value", "g"),
            *(Column(f"{words}, %", lambda each, key=key: score(each, key))
              for key, words in SCORES.items()),
            Column("seeds", lambda each: len(each["seeds"])),
            Column("CPU, s", lambda each: statistics.fmean(each["cpu_seconds"]), ".0f"),
        ]  # fmt: skip
        parts += [f"### {PARAMETERS[name].title}", reading(f"ablations {name}")]
        parts += [summary(name, points) + ".", table_of(columns, points)]
    return joined(*parts)
