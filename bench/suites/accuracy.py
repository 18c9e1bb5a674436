"""What encoders are worth that were trained from start to end: ours, and with lightly's parts."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any

import torch

from bench import cli, provenance, results
from bench.cli import Option
from bench.markdown import Column, joined, reading, table_of, titled
from bench.results import Row, rounded

SECTION = "Pretraining: accuracy"
CASE = "fashion-mnist"
NEIGHBOURS, TEMPERATURE = 20, 0.07
PENALTIES = (1e-2, 1e-3, 1e-4)
OURS, LIGHTLY, RANDOM, PIXELS = "ours", "lightly", "random weights", "raw pixels"
TITLES = {
    OURS: "barlow_fast",
    LIGHTLY: "lightly's loss and transforms",
    RANDOM: "the same encoder, random weights",
    PIXELS: "raw pixels",
}
SCORES, RATE = {"knn": "k-NN", "linear": "linear"}, "images_per_second"


def command(
    seeds: Annotated[str, Option("Comma-separated.")] = "0,1,2",
    epochs: Annotated[int | None, Option("Default: the preset's.", least=1)] = None,
    out: Annotated[Path | None, Option("JSON Lines file. Default: this machine's.")] = None,
) -> None:
    """Pretrain on Fashion-MNIST, ours and with lightly's parts, and compare accuracies with random
    weights and raw pixels."""
    from barlow_fast.data import load

    with cli.reading():
        chosen = [int(seed) for seed in seeds.split(",")]
        data = load(CASE, None)
    rows = measure(data, chosen, epochs)
    print(*map(results.line, rows), sep="\n")
    results.merge(out or results.default_file(), rows, whole=True)


def measure(data: Any, seeds: Sequence[int], epochs: int | None) -> list[Row]:
    """Trains and scores all; one row for each of `TITLES` that can run here."""
    from barlow_fast.evaluation import random_weights, raw_pixels
    from barlow_fast.training import configure
    from bench.training import quality

    config = configure(CASE, epochs=epochs)
    config = replace(config, evaluate_every=config.epochs)
    origin = provenance.collect()
    found: dict[str, list[dict[str, float]]] = {}

    def score(name: str, seed: int, encoder: torch.nn.Module, rate: float | None) -> None:
        values = _scores(encoder, data, config)
        values |= {} if rate is None else {"images_per_second": rate}
        found.setdefault(name, []).append(values)
        shown = ", ".join(f"{key} {value:.4g}" for key, value in values.items())
        print(f"{name}, seed {seed}: {shown}")

    # In turns, so that a machine that grows busier is so for both.
    for seed in seeds:
        for name, train in ((OURS, quality.ours), (LIGHTLY, quality.lightly)):
            try:
                encoder, rate = train(replace(config, seed=seed), data, print)
            except ModuleNotFoundError as error:
                print(f"{name} is left out: {error}")
                continue
            score(name, seed, encoder, rate)
    for seed in seeds:
        score(RANDOM, seed, random_weights(encoder, seed), None)
    score(PIXELS, 0, raw_pixels(), None)
    return [row(name, runs, config, len(data.train_images), origin) for name, runs in found.items()]


def _scores(encoder: torch.nn.Module, data: Any, config: Any) -> dict[str, float]:
    """Top-1 in per cent: k-NN with all training images as candidates, and logistic regression on
    features of the images as they are, whose penalty a held-out part chooses."""
    from barlow_fast.evaluation import ImageFormat, dataset_splits, evaluate_transfer
    from barlow_fast.training.feeding import choose_views, image_size

    views = choose_views(config.views, data)
    form = ImageFormat(image_size(views, data), len(views.mean), views.mean, views.std)
    chosen = {"neighbours": (NEIGHBOURS,), "temperature": TEMPERATURE, "penalties": PENALTIES}
    found = evaluate_transfer(encoder, dataset_splits(data), form, seeds=(config.seed,), **chosen)
    names = {"knn": f"k = {NEIGHBOURS}", "linear": "linear"}
    return {key: 100 * found.score(name).mean for key, name in names.items()}


def row(name: str, runs: list[dict[str, float]], config: Any, images: int, origin: Row) -> Row:
    """A row of results: means and standard deviations over runs."""
    found: Row = {"suite": "accuracy", "case": CASE, "n": config.batch_size}
    found |= {"d": config.projector[-1], "dtype": config.precision, "peer": name}
    found |= {"epochs": config.epochs, "images": images, "runs": len(runs), "provenance": origin}
    for key in (*SCORES, RATE):
        values = [run[key] for run in runs if key in run]
        found[key] = rounded(statistics.mean(values)) if values else None
        spread = statistics.stdev(values) if len(values) > 1 else None
        found[f"{key}_std"] = None if spread is None else rounded(spread)
    return found


def _score(key: str) -> Callable[[Row], str]:
    def text(found: Row) -> str:
        spread = found[f"{key}_std"]
        return f"{found[key]:.2f}" + ("" if spread is None else f" ± {spread:.2f}")

    return text


COLUMNS = [
    titled(TITLES, "features"),
    *(Column(f"{words}, %", _score(key)) for key, words in SCORES.items()),
]


def tables(rows: list[Row]) -> str:
    """Markdown of one machine's rows."""
    found = {each["peer"]: each for each in rows}
    values = {key: rows[0][key] for key in ("images", "epochs", "n", "d")}
    runs = max(each["runs"] for each in rows)
    return joined(
        reading("accuracy", **values, runs=runs, neighbours=NEIGHBOURS),
        table_of(COLUMNS, results.chosen(TITLES, found)),
    )
