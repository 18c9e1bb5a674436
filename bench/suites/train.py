"""Images per second of whole pretraining steps: our trainer, the official recipe, lightly."""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

from bench import cli, devices, exits, markdown, provenance, results
from bench.cli import Option
from bench.devices import Device
from bench.markdown import Column, joined, rate, reading, spread, table_of, titled
from bench.results import Row, chosen, grouped, ratio, rounded
from bench.session import Given, Session
from bench.timing import columns
from bench.training import cases
from bench.training.cases import CASES, LIGHTLY, LIMIT, OFFICIAL, OURS, TITLES, Case
from bench.views import images, turns

SECTION = "Pretraining: images per second end to end"
# By kind of device: seconds and turns of each run of a case, and seconds for a process to start,
# kernels compiled, or for a turn beyond its time.
PACE = {"cpu": (15.0, 5, turns.DEADLINE), "cuda": (9.0, 3, 90.0)}
QUICK = 2.0, 2  # seconds and turns
AHEAD = 2  # batches that our loader, or each worker of a DataLoader, has ready
CORES = 2
SHARES = ("data_wait_share", "loss_share")
# By case, how many times as fast as lightly ours should be; by kind of device, the share of a step
# that may wait for data.
TARGETS, WAITS = {"fashion-mnist": 2.0}, {"cuda": 0.02}
PACKAGES = {OFFICIAL: ("torchvision", "pillow"), LIGHTLY: ("lightly", "torchvision", "pillow")}


def command(
    given: Given,
    pace: turns.Pace,
    names: Annotated[
        str | None, Option(f"Of {', '.join(CASES)}. Default: the device's.", name="--cases")
    ] = None,
    peers: Annotated[str | None, Option(f"Of {', '.join(cases.PEERS)}. Default: all.")] = None,
) -> int:
    """Time pretraining end to end: ours, the official recipe, lightly's loss and transforms."""
    with cli.reading():
        device = devices.choose(given.device)
        chosen = cases.parse(names, device.kind, given.quick)
        some = cli.listed(peers, cases.PEERS, "implementation")
    reasons = {cases.unavailable(OURS, case) for case in chosen}
    if None not in reasons:
        print("; ".join(sorted(filter(None, reasons))), flush=True)
        return exits.UNUSABLE
    session = Session(device, given)
    over = pace.over(PACE[device.kind], QUICK if given.quick else None)
    distinct = images.QUICK_DISTINCT if given.quick else images.DISTINCT
    measure(session, chosen, some, over, distinct)
    return session.end()


def measure(
    session: Session,
    chosen: Sequence[Case],
    names: Sequence[str],
    pace: tuple[float, int, float],
    distinct: int = images.DISTINCT,
) -> None:
    """Rows of each case and of the runs of `names`, at a pace as in PACE, with `distinct` different
    files in a case of files; what cannot run here is named."""
    todo = session.todo(chosen, lambda case: results.group(_head(case, session.device)))
    if todo:
        session.announce()
    with tempfile.TemporaryDirectory() as temporary:
        needed = any(case.files and cases.unavailable(OURS, case) is None for case in todo)
        folder = images.photographs(Path(temporary) / "files", distinct) if needed else None
        for case in session.named(todo):
            rows, failed = _rows(session, case, names, folder, pace)
            session.keep(rows)
            session.failures |= failed


def _rows(
    session: Session,
    case: Case,
    names: Sequence[str],
    folder: Path | None,
    pace: tuple[float, int, float],
) -> tuple[list[Row], dict[str, str]]:
    """(rows, failures) of one case."""
    from bench.training import runs

    device, (seconds, rounds, deadline) = session.device, pace
    reasons = {name: cases.unavailable(name, case) for name in names}
    runners = []
    for name in cli.usable(reasons, f"{case.name}: "):
        arguments = (name, case, device.kind, folder if case.files else None)
        ahead = AHEAD * (runs.workers(device) if name in (OFFICIAL, LIGHTLY) else 1)
        runners.append(turns.Runner(name, runs.open_run, arguments, device.cores, deadline, ahead))
    rates, figures, failed = turns.race(runners, rounds, seconds / rounds)
    rows = [row(case, name, found, figures[name], device) for name, found in rates.items()]
    add_fractions(rows)
    return rows, {f"{case.name} {name}": reason for name, reason in failed.items()}


def row(
    case: Case, peer: str, rates: Sequence[float], figures: turns.Figures, device: Device
) -> Row:
    """A row of results without its provenance."""
    config = case.config()
    found = _head(case, device) | {"peer": peer}
    found |= {"source": provenance.versions(PACKAGES.get(peer, ()))}
    found |= {"encoder": config.encoder, "optimizer": config.optimizer, "rounds": len(rates)}
    found |= {**columns(rates, "per_s"), "fraction_of_limit": None}  # see `add_fractions`
    for share in SHARES:
        found[share] = rounded(figures[share]) if share in figures else None
    return found


def _head(case: Case, device: Device) -> Row:
    from barlow_fast.training.estimate import resolved_precision

    config = case.config()
    precision = str(resolved_precision(config, device.torch)).removeprefix("torch.")
    head = {"suite": "train", "case": case.name, "device": device.kind, "n": config.batch_size}
    return head | {"d": config.projector[-1], "dtype": precision}


def add_fractions(rows: Sequence[Row]) -> None:
    """What each reaches of the step with its views ready, `fraction_of_limit`."""
    limit = next((each["median_per_s"] for each in rows if each["peer"] == LIMIT), None)
    for each in rows:
        reached = limit and each["peer"] != LIMIT
        each["fraction_of_limit"] = rounded(each["median_per_s"] / limit) if reached else None


COLUMNS = [
    titled(TITLES),
    *spread("per_s", rate, "images/s", bold=lambda row: row["peer"] == OURS),
    Column("turns", "rounds"),
    Column("versions", "source"),
    Column("of views ready", "fraction_of_limit", ".1%", missing=""),
    Column("waits for data", SHARES[0], ".1%", missing=""),
    Column("loss", SHARES[1], ".1%", missing=""),
]
# How many times as fast ours is: under the names of the others.
RATIOS = [
    Column(f"× {TITLES[other]}", other, lambda ratio: f"{ratio:.2f}×", missing="")
    for other in (OFFICIAL, LIGHTLY)
]
READ_BY = {
    "cpu": {"where": f"{CORES} cores", "workers": "2 workers"},
    "cuda": {"where": "the GPU", "workers": "as many workers as there are cores"},
}


def tables(rows: list[Row]) -> str:
    """Markdown of one machine's rows: a table for each case."""
    parts = [reading("train", **READ_BY[rows[0]["device"]])]
    groups = grouped(rows, "case")
    for case in CASES.values():
        if found := groups.get((case.name,)):
            first = next(iter(found.values()))
            ratios = {o: ratio(found, "median_per_s", OURS, o) for o in (OFFICIAL, LIGHTLY)}
            parts.append(
                f"**{markdown.capital(case.title)}, batch {first['n']}, {first['dtype']}**"
            )
            some = found | {OURS: found[OURS] | ratios} if OURS in found else found
            lines = chosen(TITLES, some)
            parts += [table_of([*COLUMNS, *RATIOS], lines), _verdict(case, some.get(OURS))]
    return joined(*parts)


def _verdict(case: Case, ours: Row | None) -> str:
    """Which targets are met, and where ours is slower."""
    if ours is None:
        return ""
    texts, share = [], ours["data_wait_share"]
    if case.name in TARGETS and ours[LIGHTLY]:
        words, met = f"{TARGETS[case.name]:g} times lightly", ours[LIGHTLY] >= TARGETS[case.name]
        texts.append(markdown.target(words, met, f"{ours[LIGHTLY]:.2f} times"))
    if (most := WAITS.get(case.kind)) and share is not None:
        words = f"less than {most:.0%} of a step waiting for data"
        texts.append(markdown.target(words, share < most, f"{share:.1%}"))
    slower = [TITLES[peer] for peer in (OFFICIAL, LIGHTLY) if ours[peer] and ours[peer] < 1]
    return " ".join([*texts, *([f"Slower than {' and '.join(slower)}."] if slower else [])])
