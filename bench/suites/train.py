"""Images per second of whole pretraining steps: our trainer, the official recipe, lightly."""

from __future__ import annotations

import contextlib
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Annotated, Any

from bench import devices, provenance, results
from bench.devices import Cpu, Cuda
from bench.markdown import table_line
from bench.optional import Console, typer
from bench.results import Row, rounded
from bench.timing import percentile
from bench.training import cases
from bench.training.cases import CASES, LIGHTLY, LIMIT, OFFICIAL, OURS, TITLES, Case
from bench.views import images, turns

SECTION = "Pretraining: images per second end to end"
SECONDS, QUICK_SECONDS = 15.0, 2.0  # for each run of a case
ROUNDS, QUICK_ROUNDS = 5, 2
AHEAD = 2  # batches that our loader, or each worker of a DataLoader, has ready
QUICK_DISTINCT = 60
CORES = 2
WAIT_TARGET = 0.02  # of a GPU's step
SHARES = ("data_wait_share", "loss_share")
PACKAGES = {OFFICIAL: ("torchvision", "pillow"), LIGHTLY: ("lightly", "torchvision", "pillow")}

console = Console(highlight=False, soft_wrap=True)


def command(
    cases_of: Annotated[
        str | None, typer.Option("--cases", help=f"Of {', '.join(CASES)}. Default: the device's.")
    ] = None,
    peers: Annotated[
        str | None, typer.Option(help=f"Of {', '.join(cases.PEERS)}. Default: all.")
    ] = None,
    seconds: Annotated[float | None, typer.Option(help="Time for each run of a case.")] = None,
    rounds: Annotated[int | None, typer.Option(help="Turns of each run.", min=1)] = None,
    quick: Annotated[bool, typer.Option("--quick", help="One case, little time.")] = False,
    minutes: Annotated[float | None, typer.Option(help="After this time no case is begun.")] = None,
    out: Annotated[
        Path | None,
        typer.Option(
            help="JSON Lines file. Default: this machine's in bench/results, none for --quick."
        ),
    ] = None,
    deadline: Annotated[
        float, typer.Option(help="Seconds without an answer after which a run is ended.")
    ] = turns.DEADLINE,
    device: Annotated[str, typer.Option(help="cpu or cuda.")] = "cpu",
) -> None:
    """Time pretraining end to end: ours, the official recipe, lightly's loss and transforms."""
    try:
        chosen_device = devices.choose(device)
        chosen = cases.parse(cases_of, chosen_device.kind, quick)
        names = cases.choose_peers(peers)
    except ValueError as error:
        raise typer.BadParameter(str(error)) from None
    except RuntimeError as error:
        console.print(f"[red]{error}[/]")
        raise typer.Exit(1) from None
    if out is None and not quick:
        out = results.default_file(chosen_device.slug())
    seconds = seconds or (QUICK_SECONDS if quick else SECONDS)
    rounds = rounds or (QUICK_ROUNDS if quick else ROUNDS)
    origin = chosen_device.origin()
    console.print(
        f"{origin.get('gpu', origin['cpu'])}, {origin['cores']} cores, torch {origin['torch']}, "
        f"load {origin['load_average']}, commit {origin['commit']}"
    )
    failures: dict[str, str] = {}
    end = None if minutes is None else time.monotonic() + 60 * minutes
    with image_files(chosen, QUICK_DISTINCT if quick else images.DISTINCT) as folder:
        for case in chosen:
            if end is not None and time.monotonic() > end:
                console.print(f"left out, as time is over: {case.name}")
                continue
            rows, failed = measure(
                case, names, chosen_device, origin, folder, seconds, rounds, deadline
            )
            failures |= failed
            if out is not None and rows:
                results.merge(out, rows)
    if out is not None and out.exists():
        console.print(f"rows are in {out}; `python -m bench report` makes the tables")
    if failures:
        raise typer.Exit(1)


@contextlib.contextmanager
def image_files(chosen: Sequence[Case], distinct: int = images.DISTINCT):
    """A folder of JPEG files that goes away, for cases that need one, else None."""
    if not any(case.files and cases.unavailable(OURS, case) is None for case in chosen):
        yield None
        return
    with tempfile.TemporaryDirectory() as temporary:
        yield images.photographs(Path(temporary) / "photographs", distinct)


def measure(
    case: Case,
    names: Sequence[str],
    device: Cpu | Cuda,
    origin: Row,
    folder: Path | None,
    seconds: float,
    rounds: int,
    deadline: float = turns.DEADLINE,
    moved: Callable[[str], None] = lambda name: None,
) -> tuple[list[Row], dict[str, str]]:
    """(rows, failures) of one case; what cannot run here is named and has neither.

    Args:
        case: what to train.
        names: of the runs.
        device: where.
        origin: provenance of the rows.
        folder: of the files, for a case of files.
        seconds: for each run, in `rounds` turns.
        rounds: turns of each run.
        deadline: of a process that does not answer.
        moved: called whenever something has got on.
    """
    begun = time.monotonic()
    usable = []
    for name in names:
        reason = cases.unavailable(name, case)
        if reason is None:
            usable.append(name)
        else:
            console.print(f"{case.name}: {name} is left out: {reason}", markup=False)
    rates, failed, reports = race(
        case, usable, device.kind, folder, seconds, rounds, deadline, moved
    )
    rows = [
        row(case, name, found, reports[name], device.kind) | {"provenance": origin}
        for name, found in rates.items()
    ]
    add_fractions(rows)
    for each in rows:
        console.print(line_of(each), markup=False)
    for name, reason in failed.items():
        console.print(f"{case.name}: {name} is not timed: {reason}", markup=False)
    console.print(f"{case.name}: {time.monotonic() - begun:.0f} s", markup=False)
    return rows, {f"{case.name} {name}": reason for name, reason in failed.items()}


def race(
    case: Case,
    names: Sequence[str],
    kind: str,
    folder: Path | None,
    seconds: float,
    rounds: int,
    deadline: float = turns.DEADLINE,
    moved: Callable[[str], None] = lambda name: None,
) -> tuple[dict[str, list[float]], dict[str, str], dict[str, list[turns.Figures]]]:
    """(images per second of every turn, failures, figures of every turn) of runs that can take
    place on a kind of device, 'cpu' or 'cuda'; see `measure` and `turns.race`."""
    from bench.training import runs

    runners = []
    for name in names:
        arguments = (name, case, kind, folder if case.files else None)
        cores = turns.two_cores() if kind == "cpu" else None
        ahead = AHEAD * (runs.workers(kind) if name in (OFFICIAL, LIGHTLY) else 1)
        runners.append(turns.Runner(name, runs.open_run, arguments, cores, deadline, ahead))
    rates, failed = turns.race(
        runners, rounds, seconds / rounds, together=kind == "cpu", moved=moved
    )
    return rates, failed, {runner.name: runner.reports for runner in runners}


def row(
    case: Case, peer: str, rates: Sequence[float], reports: Sequence[turns.Figures], kind: str
) -> Row:
    """A row of results without its provenance."""
    config = case.config()
    median, p20, p80 = (percentile(rates, q) for q in (50, 20, 80))
    found: Row = {
        "suite": "train",
        "case": case.name,
        "device": kind,
        "n": config.batch_size,
        "d": config.projector[-1],
        "dtype": precision(case, kind),
        "peer": peer,
        "source": version(peer),
        "encoder": config.encoder,
        "optimizer": config.optimizer,
        "rounds": len(rates),
        "median_per_s": rounded(median),
        "p20_per_s": rounded(p20),
        "p80_per_s": rounded(p80),
    }
    found["fraction_of_limit"] = None  # see `add_fractions`
    for share in SHARES:
        values = [report[share] for report in reports if share in report]
        found[share] = rounded(percentile(values, 50)) if values else None
    return found


def precision(case: Case, kind: str) -> str:
    """That of all runs of a case, as they find it themselves."""
    import torch

    from barlow_fast.training.estimate import resolved_precision

    if kind == "cuda" and not torch.cuda.is_available():
        return case.config().precision
    found = resolved_precision(case.config(), torch.device(kind))
    return str(found).removeprefix("torch.")


def version(peer: str) -> str:
    """The packages that do the work besides torch, with their versions."""
    found = ((name, provenance.version(name)) for name in PACKAGES.get(peer, ()))
    return ", ".join(f"{name} {number}" for name, number in found if number is not None)


def add_fractions(rows: Sequence[Row]) -> None:
    """What each reaches of the step with its views ready, `fraction_of_limit`."""
    limit = next((each["median_per_s"] for each in rows if each["peer"] == LIMIT), None)
    for each in rows:
        reached = limit and each["peer"] != LIMIT
        each["fraction_of_limit"] = rounded(each["median_per_s"] / limit) if reached else None


def line_of(found: Row) -> str:
    """A row in words."""
    text = (
        f"{found['case']} {found['peer']}: {_short(found['median_per_s'])} images/s "
        f"({_short(found['p20_per_s'])} to {_short(found['p80_per_s'])})"
    )
    for key, words in (
        ("data_wait_share", "waits for data"),
        ("loss_share", "loss"),
        ("fraction_of_limit", "of the limit"),
    ):
        if found[key] is not None:
            text += f", {found[key]:.1%} {words}"
    return text


def _short(value: float) -> str:
    """Three significant digits without an exponent."""
    return f"{float(f'{value:.3g}'):,.0f}" if value >= 100 else f"{value:.3g}"


def tables(rows: list[Row], brief: bool) -> str:
    """Markdown of one machine's rows: a table for each case; percentiles unless `brief`."""
    parts = [_reading(rows)]
    for case in CASES.values():
        found = {each["peer"]: each for each in rows if each["case"] == case.name}
        if found:
            title = f"{case.title[0].upper()}{case.title[1:]}"
            first = next(iter(found.values()))
            parts.append(f"**{title}, batch {first['n']}, {first['dtype']}**")
            parts.append(_table(found, brief))
            parts += [text for text in (_verdict(case, found),) if text]
    return "\n\n".join(parts)


def _reading(rows: list[Row]) -> str:
    on_gpu = rows[0]["device"] == "cuda"
    where = "the GPU" if on_gpu else f"{CORES} cores"
    workers = "as many workers as there are cores" if on_gpu else "2 workers"
    return (
        "Images per second of whole steps of pretraining (two views each, forward, loss, backward, "
        f"update), medians of turns on {where}; the processes of one run stand still while another "
        "has its turn. All train the same network at the same batch size with the same optimizer, "
        "precision and memory format. `barlow_fast` is `Trainer` as `barlow-fast pretrain` runs "
        "it. The official recipe (the authors' loss and torchvision's transforms, both written "
        "anew from their mathematics and parameters) and lightly (its loss and its transforms) "
        f"read from a `DataLoader` with {workers}, in a loop as short as it can be. *Views ready* "
        "is our step without its loader: what no loader can exceed. Before it is timed, every loss "
        "is held against float64 and our views against torchvision's."
    )


def _table(found: dict[str, Row], brief: bool) -> str:
    heads = ["implementation", "images/s"]
    heads += [] if brief else ["p20", "p80", "turns", "versions"]
    heads += ["of views ready", "waits for data", "loss", "× official recipe", "× lightly"]
    lines = [table_line(heads), table_line(["---", *["---:"] * (len(heads) - 1)])]
    for name, title in TITLES.items():
        if name not in found:
            continue
        each = found[name]
        value = _short(each["median_per_s"])
        cells: list[Any] = [title, f"**{value}**" if name == OURS else value]
        if not brief:
            cells += [_short(each["p20_per_s"]), _short(each["p80_per_s"]), str(each["rounds"])]
            cells.append(each["source"])
        keys = ("fraction_of_limit", *SHARES)
        cells += ["" if each[key] is None else f"{each[key]:.1%}" for key in keys]
        for other in (OFFICIAL, LIGHTLY):
            shown = name == OURS and other in found
            ratio = each["median_per_s"] / found[other]["median_per_s"] if shown else 0.0
            cells.append(f"{ratio:.2f}×" if shown else "")
        lines.append(table_line(cells))
    return "\n".join(lines)


def _verdict(case: Case, found: dict[str, Row]) -> str:
    """Which targets are met and which are not, and where ours is slower; as plainly either way."""
    if OURS not in found:
        return ""
    ours, texts = found[OURS], []
    if case.target is not None and LIGHTLY in found:
        ratio = ours["median_per_s"] / found[LIGHTLY]["median_per_s"]
        met = "is met" if ratio >= case.target else f"is missed ({ratio:.2f} times)"
        texts.append(f"The target of {case.target:g} times lightly {met}.")
    if case.kind == "cuda" and ours["data_wait_share"] is not None:
        share = ours["data_wait_share"]
        met = "is met" if share < WAIT_TARGET else f"is missed ({share:.1%})"
        texts.append(f"The target of less than {WAIT_TARGET:.0%} of a step waiting for data {met}.")
    slower = [
        TITLES[peer]
        for peer in (OFFICIAL, LIGHTLY)
        if peer in found and ours["median_per_s"] < found[peer]["median_per_s"]
    ]
    texts += [f"Slower than {' and '.join(slower)}."] if slower else []
    return " ".join(texts)
