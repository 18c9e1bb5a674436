"""What encoders are worth that were trained from start to end: ours, and with lightly's parts."""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any

import torch

from bench import cli, provenance, results
from bench.cli import Option
from bench.markdown import Column, in_words, joined, reading, table_of, titled
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
# Points above the untrained encoder.
TARGETS = {"knn": 3.0, "linear": 2.0}


def command(
    data_dir: Annotated[
        Path | None, Option("Folder of Fashion-MNIST's files. Default: Debian's.")
    ] = None,
    seeds: Annotated[str, Option("Comma-separated.")] = "0,1,2",
    epochs: Annotated[int | None, Option("Default: the preset's.", least=1)] = None,
    images: Annotated[
        int | None, Option("The first so many training images alone.", least=512)
    ] = None,
    out: Annotated[Path | None, Option("JSON Lines file. Default: this machine's.")] = None,
) -> None:
    """Pretrain on Fashion-MNIST, ours and with lightly's parts, and compare accuracies with random
    weights and raw pixels."""
    from barlow_fast.data import load

    with cli.reading():
        chosen = [int(seed) for seed in seeds.split(",")]
        data = load(CASE, data_dir)
    if images is not None:
        data = replace(
            data,
            train_images=data.train_images[:images],
            train_labels=data.train_labels[:images],
        )
    rows = measure(data, chosen, epochs)
    shown = in_words(*COLUMNS, Column("images/s", RATE, ",.0f"))
    print(*map(shown, rows), sep="\n")
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

    architecture = None
    # In turns, so that a machine that grows busier is so for both.
    for seed in seeds:
        for name, train in ((OURS, quality.ours), (LIGHTLY, quality.lightly)):
            try:
                encoder, rate = train(replace(config, seed=seed), data, print)
            except ModuleNotFoundError as error:
                print(f"{name} is left out: {error}")
                continue
            score(name, seed, encoder, rate)
            architecture = encoder
    for seed in seeds:
        score(RANDOM, seed, random_weights(architecture, seed), None)
    score(PIXELS, 0, raw_pixels(), None)
    return [row(name, runs, config, len(data.train_images), origin) for name, runs in found.items()]


def _scores(encoder: torch.nn.Module, data: Any, config: Any) -> dict[str, float]:
    """Top-1 in per cent: k-NN with all training images as candidates, and logistic regression on
    features of the images as they are, whose penalty a held-out part chooses."""
    from barlow_fast.evaluation import (
        AVERAGE_POOL,
        ImageFormat,
        Reading,
        dataset_splits,
        features_of_source,
        fit_with_chosen_penalty,
        knn_scores,
    )
    from barlow_fast.training.feeding import choose_views, image_size

    views = choose_views(config.views, data)
    form = ImageFormat(image_size(views, data), len(views.mean), views.mean, views.std)
    splits = dataset_splits(data)
    (train, train_labels), (test, test_labels) = (
        features_of_source(encoder, source, form, Reading())
        for source in (splits.train, splits.test)
    )
    x, test_x = train[AVERAGE_POOL], test[AVERAGE_POOL]
    knn = knn_scores(x, train_labels, test_x, test_labels, (NEIGHBOURS,), TEMPERATURE)[NEIGHBOURS]
    linear = fit_with_chosen_penalty(
        x, train_labels, splits.classes, config.seed, penalties=PENALTIES
    ).accuracy(test_x, test_labels)
    return {"knn": 100 * knn.top1, "linear": 100 * linear.top1}


def row(name: str, runs: list[dict[str, float]], config: Any, images: int, origin: Row) -> Row:
    """A row of results: means and standard deviations over runs."""
    found: Row = {
        "suite": "accuracy",
        "case": CASE,
        "n": config.batch_size,
        "d": config.projector[-1],
        "dtype": config.precision,
        "peer": name,
        "epochs": config.epochs,
        "images": images,
        "runs": len(runs),
        "provenance": origin,
    }
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
        _verdict(found) if OURS in found else "",
    )


def _verdict(found: dict[str, Row]) -> str:
    """Which targets are met and which are not."""
    ours, texts = found[OURS], []
    for key, words in SCORES.items():
        if RANDOM in found:
            gain, target = ours[key] - found[RANDOM][key], TARGETS[key]
            met = _met(gain >= target)
            texts.append(
                f"{words} is {gain:+.1f} points above random weights (target {target:g}: {met})"
            )
        if PIXELS in found:
            gain = ours[key] - found[PIXELS][key]
            texts.append(f"{gain:+.1f} above raw pixels (target 0: {_met(gain > 0)})")
    theirs = found.get(LIGHTLY, {})
    for key, words in SCORES.items():
        spreads = [each.get(f"{key}_std") for each in (ours, theirs)]
        if None not in spreads:
            gap = ours[key] - theirs[key]
            counts = ours["runs"], theirs["runs"]
            error = math.sqrt(sum(s**2 / n for s, n in zip(spreads, counts, strict=True)))
            texts.append(
                f"{words} differs from lightly's by {gap:+.2f} (standard error {error:.2f})"
            )
    return "; ".join(texts) + "."


def _met(met: bool) -> str:
    return "met" if met else "missed"
