"""What encoders are worth that were trained from start to end: with each loss, and with lightly's
parts."""

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
from bench.markdown import Column, joined, reading, table_of, titled
from bench.results import Row, rounded

SECTION = "Pretraining: accuracy"
CASE = "fashion-mnist"
NEIGHBOURS, TEMPERATURE = 20, 0.07
PENALTIES = (1e-2, 1e-3, 1e-4)
OURS, LIGHTLY, RANDOM, PIXELS = "ours", "lightly", "random weights", "raw pixels"
FOUR_VIEWS, MIXED, VICREG = "four views", "mixed", "vicreg"
# What a run of each changes in the settings of ours. Weights are each loss's own defaults.
FAMILY = {
    FOUR_VIEWS: {"view_count": 4},
    MIXED: {"loss": "mixed-barlow-twins"},
    VICREG: {"loss": "vicreg"},
}
TITLES = {
    OURS: "barlow_fast, two views",
    FOUR_VIEWS: "four views",
    MIXED: "Mixed Barlow Twins",
    VICREG: "VICReg",
    LIGHTLY: "lightly's loss and transforms",
    RANDOM: "the same encoder, random weights",
    PIXELS: "raw pixels",
}
TRAINED = (OURS, *FAMILY, LIGHTLY)
SCORES, RATE = {"knn": "k-NN", "linear": "linear"}, "images_per_second"
TIMED = 16  # steps that show how long an epoch takes
# Points above the untrained encoder.
TARGETS = {"knn": 3.0, "linear": 2.0}


def command(
    seeds: Annotated[str, Option("Comma-separated.")] = "0,1,2",
    epochs: Annotated[
        int | None, Option("Of two views; others take as long. Default: the preset's.", least=1)
    ] = None,
    peers: Annotated[str, Option("Comma-separated.")] = ",".join(TITLES),
    out: Annotated[Path | None, Option("JSON Lines file. Default: this machine's.")] = None,
) -> None:
    """Pretrain on Fashion-MNIST with each loss for the same time, and with lightly's parts, and
    compare accuracies with random weights and raw pixels."""
    from barlow_fast.data import load

    with cli.reading():
        chosen = [int(seed) for seed in seeds.split(",")]
        names = cli.listed(peers, TITLES, "peer")
        if not set(names) & set(TRAINED):
            raise ValueError(f"no peer is trained: name at least one of {', '.join(TRAINED)}")
        data = load(CASE, None)
    rows = measure(data, chosen, epochs, names)
    print(*map(results.line, rows), sep="\n")
    results.merge(out or results.default_file(), rows, whole=True)


def measure(
    data: Any, seeds: Sequence[int], epochs: int | None, names: Sequence[str] = tuple(TITLES)
) -> list[Row]:
    """Trains and scores those of `TITLES` that can run here; one row for each."""
    from barlow_fast.evaluation import random_weights, raw_pixels
    from barlow_fast.losses.catalogue import BARLOW_TWINS
    from barlow_fast.training import configure
    from bench.training import quality
    from bench.training.cases import COMPACT

    config = configure(CASE, epochs=epochs, loss=BARLOW_TWINS, encoder_grid=2, **COMPACT)
    config = replace(config, evaluate_every=config.epochs)
    configs = as_long(config, [name for name in names if name in FAMILY], data)
    origin = provenance.collect()
    found: dict[str, list[dict[str, float]]] = {}

    def score(name: str, seed: int, encoder: torch.nn.Module, rate: float | None) -> None:
        values = _scores(encoder, data, config)
        values |= {} if rate is None else {"images_per_second": rate}
        found.setdefault(name, []).append(values)
        shown = ", ".join(f"{key} {value:.4g}" for key, value in values.items())
        print(f"{name}, seed {seed}: {shown}")

    # In turns, so that a machine that grows busier is so for all.
    for seed in seeds:
        for name in (name for name in TRAINED if name in names):
            train = quality.lightly if name == LIGHTLY else quality.ours
            try:
                chosen = replace(configs.get(name, config), seed=seed)
                encoder, rate = train(chosen, data, print)
            except ModuleNotFoundError as error:
                print(f"{name} is left out: {error}")
                continue
            score(name, seed, encoder, rate)
        if RANDOM in names:
            score(RANDOM, seed, random_weights(encoder, seed), None)
    if PIXELS in names:
        score(PIXELS, 0, raw_pixels(), None)
    return [
        row(name, runs, configs.get(name, config), len(data.train_images), origin)
        for name, runs in found.items()
    ]


def as_long(config: Any, names: Sequence[str], data: Any) -> dict[str, Any]:
    """Settings of the `FAMILY`, by name, with as many epochs as take the time of `config`'s: by the
    fastest of three epochs of TIMED batches each, in turns."""
    from bench.training import quality

    configs = {OURS: config} | {name: replace(config, **FAMILY[name]) for name in names}
    images = data.train_images[: TIMED * config.batch_size]
    few = replace(data, train_images=images, train_labels=data.train_labels[: len(images)])
    rates = dict.fromkeys(configs, 0.0)
    for _ in range(3 if names else 0):
        for name, each in configs.items():
            short = replace(each, epochs=1, evaluate_every=1)
            rates[name] = max(rates[name], quality.ours(short, few, lambda line: None)[1])
    for name in names:
        epochs = max(1, round(config.epochs * rates[name] / rates[OURS]))
        configs[name] = replace(configs[name], epochs=epochs, evaluate_every=epochs)
        print(f"{name}: {epochs} epochs, for {config.epochs} of {OURS}")
    return configs


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
    Column("epochs", lambda found: found["epochs"] if found[RATE] else None),
    *(Column(f"{words}, %", _score(key)) for key, words in SCORES.items()),
]


def tables(rows: list[Row]) -> str:
    """Markdown of one machine's rows."""
    found = {each["peer"]: each for each in rows}
    values = {key: rows[0][key] for key in ("images", "n", "d")}
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
            text = f"{words} is {gain:+.1f} points above random weights (target {target:g}: "
            texts.append(text + ("met)" if gain >= target else "missed)"))
        if PIXELS in found:
            gain = ours[key] - found[PIXELS][key]
            met = "met" if gain > 0 else "missed"
            texts.append(f"{gain:+.1f} above raw pixels (target 0: {met})")
    theirs = found.get(LIGHTLY, {})
    for key, words in SCORES.items():
        variances = [each[f"{key}_std"] ** 2 / each["runs"] for each in (ours, theirs)
                     if each.get(f"{key}_std") is not None]  # fmt: skip
        if len(variances) == 2:
            gap, error = ours[key] - theirs[key], math.sqrt(sum(variances))
            texts.append(
                f"{words} differs from lightly's by {gap:+.2f} (standard error {error:.2f})"
            )
    return "; ".join(texts) + "."
