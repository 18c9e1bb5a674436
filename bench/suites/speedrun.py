"""The best encoder of Fashion-MNIST within a fixed time: records, and the experiments behind them.

Rows of runs on the test images go to one file, those of experiments to another.
"""

from __future__ import annotations

import json
import math
import shlex
import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, NamedTuple

from bench import cli, provenance, results
from bench.cli import Option
from bench.markdown import Column, joined, reading, table_of
from bench.results import Row

SECTION = "Speedrun: the best encoder in a fixed time"
RECORDS = results.FOLDER / "speedrun-records.jsonl"
TRIALS = results.FOLDER / "speedrun-trials.jsonl"
MINUTES = 15.0
LEAST_SEEDS = 5  # of a record
SCORES = {"linear": "linear", "knn": "k-NN"}
CLEAR = 2.0  # standard errors from which a difference counts


def command(
    recipe: Annotated[str, Option("A name of RECIPES in bench/training/speedrun.py.")] = "muon",
    changes: Annotated[
        str,
        Option(
            "Further changes, separated by blanks: `lambd=0.01 views.flip=0 "
            "features=[Feature2,output]`."
        ),
    ] = "",
    minutes: Annotated[
        float, Option("Wall-clock time of the training; evaluation is apart.", least=0)
    ] = MINUTES,
    epochs: Annotated[
        int | None, Option("Train so many epochs instead, whatever time they take.", least=1)
    ] = None,
    seeds: Annotated[str, Option("Comma-separated.")] = "0,1,2,3,4",
    split: Annotated[
        str,
        Option(
            "`validation`: learn from 50,000 training images and judge on the other 10,000, to "
            "choose; `test`: judge on the test images, for records."
        ),
    ] = "validation",
    images: Annotated[
        int | None, Option("Of the images to learn from, use so many.", least=1000)
    ] = None,
    peer: Annotated[str, Option("`ours`, or `lightly`: its loss, transforms and loader.")] = "ours",
    trials: Annotated[
        Path | None,
        Option(
            "YAML file of experiments, mappings of `changes`, `prediction` and `against` (changes "
            "of what it compares with), which become rows of the history: all of them with the "
            "first seed, then with one more, and so on."
        ),
    ] = None,
    folder: Annotated[Path, Option("For logs and checkpoints; continues what is there.")] = Path(
        "runs/speedrun"
    ),
    out: Annotated[Path | None, Option("JSON Lines file of rows. Default: by the split.")] = None,
) -> None:
    """Pretrain on Fashion-MNIST within a fixed time and judge the encoder."""
    with cli.reading():
        from bench.training import speedrun

        chosen = [int(seed) for seed in seeds.split(",")]
        cli.listed(recipe, speedrun.RECIPES, "recipe")
        cli.listed(split, speedrun.SPLITS, "split")
        cli.listed(peer, (speedrun.OURS, speedrun.LIGHTLY), "peer")
        if peer == speedrun.LIGHTLY and (missing := provenance.missing("lightly")):
            raise ValueError(f"{missing}: pip install lightly")
        if split == speedrun.TEST and (epochs or images or trials):
            raise ValueError(
                "records take none of --epochs, --images and --trials: the budget is fixed"
            )
        if trials and changes:
            raise ValueError("--trials states the changes")
        listed = [Trial(changes)] if trials is None else read_trials(trials)
        # Before the changes, which may set epochs of their own: so many as take the same time.
        counted = [] if epochs is None else [f"epochs={epochs}"]
        plans = [
            speedrun.planned(speedrun.RECIPES[recipe], [*counted, *shlex.split(each.changes)])
            for each in listed
        ]
        data = speedrun.images_of(split, images)
    origin = provenance.collect()
    budget = {"minutes": minutes if epochs is None else None, "per_run": epochs}
    for count in [len(chosen)] if trials is None else range(1, len(chosen) + 1):
        for each, plan in zip(listed, plans, strict=True):
            more = shlex.split(each.changes)
            about = {"provenance": origin, "recipe": recipe, "changes": more, "split": split}
            runs = [
                speedrun.Run(plan, data, seed, budget["minutes"], peer, folder, about)
                for seed in chosen[:count]
            ]
            ends = [_finished(run) for run in runs]
            found = row(recipe, more, plan, data, peer, chosen[:count], ends, origin)
            found |= {"split": split, **budget}
            means = (f"{words} {score(found, key)} %" for key, words in SCORES.items())
            print(f"{each.changes or recipe}:", ", ".join(means), flush=True)
            if split == speedrun.TEST:
                results.put(out or RECORDS, found, identity)
            elif each.prediction or out:
                found |= {"prediction": each.prediction, "against": shlex.split(each.against)}
                results.put(out or TRIALS, found, identity)


class Trial(NamedTuple):
    """An experiment: its changes, what is expected of them, and the changes of the experiment that
    it compares with."""

    changes: str = ""
    prediction: str = ""
    against: str = ""


def read_trials(path: Path) -> list[Trial]:
    """The experiments of a YAML file.

    Raises:
        ValueError: something else than a list of mappings of `Trial`'s fields to texts.
        OSError: the file cannot be read.
    """
    from barlow_fast.inputs import read_yaml

    content = read_yaml(path)
    known = set(Trial._fields)
    for each in content if isinstance(content, list) else [content]:
        texts = isinstance(each, dict) and all(isinstance(text, str) for text in each.values())
        if not texts or not set(each) <= known or not each.get("prediction"):
            raise ValueError(
                f"{path}: an experiment has texts named {', '.join(Trial._fields)}, and its "
                f"prediction is not empty; got {each}"
            )
    return [Trial(**each) for each in content]


def _finished(run: Any) -> Row:
    with cli.reading():
        end = run.finish()
    print(
        f"seed {run.seed}: linear {end['linear']:.2f} %, k-NN {end['knn']:.2f} %, {end['epochs']} "
        f"epochs in {end['seconds']:.0f} s, {end['cpu_seconds']:.0f} s of CPU, log "
        f"{run.folder / run.name() / 'log.jsonl'}",
        flush=True,
    )
    return end


def row(
    recipe: str,
    changes: Sequence[str],
    plan: Any,
    data: Any,
    peer: str,
    seeds: Sequence[int],
    ends: Sequence[Row],
    origin: Row,
) -> Row:
    """One row of all seeds."""
    from bench.training import speedrun

    found: Row = {"suite": "speedrun", "case": speedrun.CASE, "recipe": recipe}
    found |= {"sentence": speedrun.RECIPES[recipe].sentence, "changes": list(changes)}
    found |= measured(plan, data, peer, seeds, ends) | {"features": list(plan.features)}
    found["settings"]["views"] = speedrun.CASE
    for key in ("seconds", "epochs"):
        found[key] = [results.rounded(end[key]) for end in ends]
    found["over_budget"] = any(end["over_budget"] for end in ends)
    return found | {"provenance": origin}


def measured(plan: Any, data: Any, peer: str, seeds: Sequence[int], ends: Sequence[Row]) -> Row:
    """What rows of runs have in common: settings, numbers of images, and scores by seed."""
    config = plan.config
    found: Row = {"n": config.batch_size, "d": config.projector[-1], "dtype": config.precision}
    found |= {"peer": peer, "settings": config.to_dict(), "views": plan.views}
    found |= {"images": len(data.train_images), "judged_on": len(data.test_images)}
    found |= {"seeds": list(seeds)}
    scores = {key: [results.rounded(end[key]) for end in ends] for key in (*SCORES, "cpu_seconds")}
    return found | scores


def identity(found: Row) -> tuple:
    """Rows of the same identity replace each other."""
    keys = ("split", "recipe", "changes", "peer", "images", "minutes", "per_run")
    values = [found[key] for key in keys]
    # A record stays when the same recipe runs again at another commit.
    values += [found["provenance"]["commit"]] if found["split"] == "test" else []
    return tuple(json.dumps(value) for value in values)


def score(found: Row, key: str) -> str:
    """Mean ± standard deviation over the seeds."""
    values = found[key]
    spread = f" ± {statistics.stdev(values):.2f}" if len(values) > 1 else ""
    return f"{statistics.fmean(values):.2f}{spread}"


def origin(rows: list[Row], name: str) -> str:
    """What a file holds, and on what machines it was measured."""
    machines = dict.fromkeys(
        f"{results.machine([each])} (torch {each['provenance']['torch']})" for each in rows
    )
    kind = "records" if any(each["split"] == "test" for each in rows) else "trials"
    return reading(f"speedrun {kind}", file=name, machines="; ".join(machines))


def tables(rows: list[Row]) -> str:
    """Markdown of the rows of one file."""
    records = sorted(
        (each for each in rows if each["split"] == "test"),
        key=lambda each: each["provenance"]["date"],
    )
    trials = [each for each in rows if each["split"] != "test"]
    return joined(record_table(records), trial_table(trials))


def record_table(records: list[Row]) -> str:
    """Runs on the test images by date; a record is bold."""
    best, marked = -math.inf, set()
    for number, each in enumerate(records):
        mean = statistics.fmean(each["linear"])
        enough = len(each["seeds"]) >= LEAST_SEEDS and not each["over_budget"]
        if enough and mean > best:
            best = mean
            marked.add(number)
    numbered = {id(each): number for number, each in enumerate(records)}
    columns = [
        Column("date", lambda each: each["provenance"]["date"][:10], left=True),
        Column("commit", lambda each: each["provenance"]["commit"] or "unknown", left=True),
        Column("recipe", _sentence, left=True),
        Column("CPU", lambda each: each["provenance"]["cpu"], left=True),
        Column(
            "linear, %", lambda each: score(each, "linear"),
            bold=lambda each: numbered[id(each)] in marked,
        ),
        Column("k-NN, %", lambda each: score(each, "knn")),
        Column("seeds", lambda each: len(each["seeds"])),
        Column("epochs", lambda each: _range(each["epochs"])),
        Column("minutes", _minutes),
        Column("command", lambda each: f"`{each['provenance']['command']}`", left=True),
    ]  # fmt: skip
    return table_of(columns, records) if records else ""


def _sentence(found: Row) -> str:
    parts = ["lightly's loss, transforms and loader."] if found["peer"] == "lightly" else []
    parts += [found["sentence"]]
    parts += [f"Changes: `{' '.join(found['changes'])}`."] if found["changes"] else []
    return " ".join(parts)


def _minutes(found: Row) -> str:
    text = f"{max(found['seconds']) / 60:.1f}"
    return text + (" (over the budget)" if found["over_budget"] else "")


def _range(values: Sequence[float]) -> str:
    low, high = min(values), max(values)
    return f"{low:g}" if low == high else f"{low:g} to {high:g}"


def trial_table(trials: list[Row]) -> str:
    """Experiments in the order in which they were made; differences from what each states."""
    proxies: dict[str, list[Row]] = {}
    for each in trials:
        proxies.setdefault(_proxy(each), []).append(each)
    return "\n\n".join(
        f"### {title}\n\n{table_of(_trial_columns(some), some)}" for title, some in proxies.items()
    )


def _trial_columns(trials: list[Row]) -> list[Column]:
    return [
        Column("compared with", lambda each: _named(each["against"]), left=True),
        Column("change", lambda each: _named(_own(each)), left=True),
        Column("prediction", lambda each: each["prediction"] or None, left=True),
        *(
            Column(f"{words}, %", lambda each, key=key: score(each, key))
            for key, words in SCORES.items()
        ),
        *(
            Column(f"Δ {words}", lambda each, key=key: _difference(each, trials, key))
            for key, words in SCORES.items()
        ),
        Column("CPU, s", lambda each: statistics.fmean(each["cpu_seconds"]), ".0f"),
        Column("verdict", lambda each: verdict(each, trials), left=True),
    ]


def _proxy(found: Row) -> str:
    epochs = found["per_run"]
    time = f"{found['minutes']:g} minutes" if epochs is None else f"{epochs} epochs"
    return f"Recipe `{found['recipe']}`, {found['images']:,} images, {time}"


def _named(changes: Sequence[str]) -> str:
    return f"`{' '.join(changes)}`" if changes else "the recipe"


def _own(found: Row) -> list[str]:
    """The changes that what it is compared with lacks."""
    return [text for text in found["changes"] if text not in found["against"]]


def noise(trials: list[Row], key: str) -> float | None:
    """Standard deviation between seeds, pooled over the experiments that have several; None where
    none has.

    Two seeds alone estimate it badly: of such pairs two in five give less than half of it.
    """
    several = [each[key] for each in trials if len(each[key]) > 1]
    if not several:
        return None
    squares = sum((len(values) - 1) * statistics.variance(values) for values in several)
    return math.sqrt(squares / sum(len(values) - 1 for values in several))


def difference(found: Row, trials: list[Row], key: str) -> tuple[float, float | None] | None:
    """Mean difference from what the experiment is compared with, and its standard error by `noise`;
    None for a reference."""
    compared = identity(found | {"changes": found["against"]})
    base = next((each for each in trials if identity(each) == compared), found)
    if base is found:
        return None
    deviation = noise(trials, key)
    delta = statistics.fmean(found[key]) - statistics.fmean(base[key])
    if deviation is None:
        return delta, None
    return delta, deviation * math.sqrt(1 / len(found[key]) + 1 / len(base[key]))


def _difference(found: Row, trials: list[Row], key: str) -> str | None:
    if (measured := difference(found, trials, key)) is None:
        return None
    delta, error = measured
    return f"{delta:+.2f}" + ("" if error is None else f" ± {error:.2f}")


def verdict(found: Row, trials: list[Row]) -> str | None:
    """Whether the difference in the linear accuracy is more than noise, and whether a recipe
    beside the baseline has the change."""
    from bench.training.speedrun import BASELINE, RECIPES

    if (measured := difference(found, trials, "linear")) is None:
        return None
    delta, error = measured
    if error is None:
        text = "noise not known"
    elif abs(delta) > CLEAR * error:
        text = "better" if delta > 0 else "worse"
    else:
        text = "within the noise"
    recipes = [set(each.changes) for name, each in RECIPES.items() if name != BASELINE]
    # A recipe's budget decides its epochs; an experiment's own number makes times equal.
    own = {change for change in _own(found) if not change.startswith("epochs=")}
    kept = any(own and own <= changes for changes in recipes)
    return f"{text}; {'kept' if kept else 'dropped'}"
