"""Time of one forward and backward pass of the loss, against the floor and against the peers."""

from __future__ import annotations

import gc
import itertools
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Annotated

from bench import agreement, devices, provenance, results
from bench.floor import Peaks, floor_seconds, measure_peaks
from bench.gpu import loss as gpu_loss
from bench.gpu import tables as gpu_tables
from bench.inputs import VARIANTS, Pair, Variant, parse_shapes, parse_variants, rotation
from bench.optional import Console, Table, typer
from bench.peers import Loss, Peer, choose, discover
from bench.results import Row, rounded
from bench.timing import Budget, interleave, percentile, warm_up

SECTION = "Loss: forward + backward"
SHAPES = (
    "256x1024,256x2048,256x4096,256x8192,128x16384,512x8192,1024x4096,1024x1024,"
    "4096x512,16384x256,65536x128"
)
QUICK_SHAPES = "256x1024,256x2048,1024x1024,4096x512"
SECONDS, QUICK_SECONDS = 0.3, 0.2
LONG = 1.0  # seconds

# Wider than a redirected log, so that no column is folded.
console = Console(highlight=False, width=None if Console().is_terminal else 110)


def command(
    shapes: Annotated[
        str | None,
        typer.Option(help="Such as 256x8192,512x8192. Default: the eleven of the results."),
    ] = None,
    dtypes: Annotated[
        str | None,
        typer.Option(
            help="Of fp32, bf16-autocast, bf16-inputs; bf16 stands for both. On cuda also tf32 and "
            "fp16-inputs. Default: all."
        ),
    ] = None,
    peers: Annotated[str | None, typer.Option(help="Names, comma-separated. Default: all.")] = None,
    seconds: Annotated[
        float | None, typer.Option(help="Time for each peer at each shape and dtype.")
    ] = None,
    repeats: Annotated[
        int | None, typer.Option(help="Repeats, instead of --seconds.", min=1)
    ] = None,
    quick: Annotated[bool, typer.Option("--quick", help="Few small shapes, little time.")] = False,
    out: Annotated[
        Path | None,
        typer.Option(
            help="JSON Lines file. Default: this machine's in bench/results, none for --quick."
        ),
    ] = None,
    device: Annotated[str, typer.Option(help="cpu or cuda.")] = "cpu",
    limit: Annotated[
        float | None, typer.Option(help="cuda: seconds after which no group is begun.")
    ] = None,
    resume: Annotated[
        bool, typer.Option("--resume", help="cuda: leave out groups that the file holds.")
    ] = False,
    compiled_shapes: Annotated[
        str | None, typer.Option(help="cuda: where compiled peers take part; 'none': nowhere.")
    ] = None,
) -> None:
    """Time the loss, forward + backward, against its floor and its peers."""
    try:
        chosen_device = devices.choose(device)
        if shapes is None and quick:
            shapes = QUICK_SHAPES
        chosen_shapes = None if shapes is None else parse_shapes(shapes)
        variants = parse_variants(
            dtypes or ",".join(chosen_device.variants), chosen_device.variants
        )
        chosen_peers = choose(peers, device)
    except ValueError as error:
        raise typer.BadParameter(str(error)) from None
    except RuntimeError as error:
        console.print(f"[red]{error}[/]")
        raise typer.Exit(1) from None
    if out is None and not quick:
        out = results.default_file(chosen_device.slug())
    if device == "cuda":
        failures = measure_cuda(
            chosen_device, chosen_shapes, variants, chosen_peers, out, seconds, repeats, limit,
            resume, compiled_shapes,
        )  # fmt: skip
    else:
        if seconds is None:
            seconds = QUICK_SECONDS if quick else SECONDS
        budget = Budget(seconds, repeats)
        chosen_shapes = chosen_shapes or parse_shapes(SHAPES)
        failures = measure(chosen_shapes, variants, chosen_peers, budget, out, console)
    if failures:
        console.print(f"[bold red]{len(failures)} of the peers failed; they were not timed[/]")
        raise typer.Exit(1)


def measure_cuda(
    device: devices.Cuda,
    shapes: list[tuple[int, int]] | None,
    variants: list[Variant],
    peers: list[Peer],
    out: Path | None,
    seconds: float | None,
    repeats: int | None,
    limit: float | None,
    resume: bool,
    compiled_shapes: str | None,
) -> dict[str, str]:
    """Runs the suite on a CUDA device. Returns what failed of ours, with reasons."""
    try:
        settings = gpu_loss.settings_of(
            seconds or gpu_loss.SECONDS, repeats, limit, resume, compiled_shapes
        )
    except ValueError as error:
        raise typer.BadParameter(str(error)) from None
    summary = gpu_loss.measure(
        gpu_loss.grid(variants, shapes), peers, device, settings, out, console
    )
    console.print(f"{summary.measured} groups measured, {summary.left} left")
    return summary.failures


def measure(
    shapes: list[tuple[int, int]],
    variants: list[Variant],
    peers: list[Peer],
    budget: Budget,
    out: Path | None,
    console: Console,
) -> dict[str, str]:
    """Runs the suite. Returns the peers that failed a check, with reasons; they are not timed."""
    origin = provenance.collect()
    console.print(
        f"{origin['cpu']}, {origin['cores']} cores, torch {origin['torch']}, "
        f"kernels {origin['instruction_set']}, commit {origin['commit']}"
    )
    peers = available(peers, console)
    failures = {}
    for peer in peers:
        problem = agreement.check_small(peer, variants)
        if problem is not None:
            _report_failure(console, failures, peer, problem)
    peaks = measure_peaks()
    console.print(
        f"peaks: fp32 GEMM {peaks.gemm_fp32:.0f} GFLOP/s, bf16 GEMM {peaks.gemm_bf16:.0f} GFLOP/s, "
        f"copy {peaks.copy:.1f} GB/s"
    )
    for (n, d), variant in itertools.product(shapes, variants):
        sound = [peer for peer in peers if peer.name not in failures]
        found = _measure_group(n, d, variant, sound, budget, origin, console, failures)
        rows = [
            _row(n, d, variant, peer, samples, peaks, origin) for peer, samples in found.items()
        ]
        if rows:
            console.print(_table(rows))
            if out is not None:
                results.merge(out, rows)
    if out is not None and out.exists():
        console.print(f"rows are in {out}; `python -m bench report` makes the tables")
    return failures


def available(peers: list[Peer], console: Console) -> list[Peer]:
    """The peers that can run here; says why the others cannot."""
    usable = []
    for peer in peers:
        reason = peer.unavailable()
        if reason is None:
            usable.append(peer)
        else:
            console.print(f"[yellow]{peer.name} is left out: {reason}[/]")
    return usable


def _report_failure(console: Console, failures: dict[str, str], peer: Peer, problem: str) -> None:
    failures[peer.name] = problem
    console.print(f"[bold red]{peer.name} fails the check and is not timed: {problem}[/]")


def _measure_group(
    n: int,
    d: int,
    variant: Variant,
    peers: list[Peer],
    budget: Budget,
    origin: Row,
    console: Console,
    failures: dict[str, str],
) -> dict[Peer, list[float]]:
    """Seconds of each peer at one shape and dtype; adds those that are wrong to `failures`."""
    pairs = rotation(n, d, variant.dtype, origin["last_level_cache_bytes"])
    turns = itertools.cycle(pairs)
    true = agreement.truth(pairs[0])
    actions: dict[str, Callable[[], float]] = {}
    counts, earlier = {}, {}
    for peer in peers:
        loss = peer.build(n, d, variant.dtype)
        start = time.perf_counter()
        try:
            outcome = agreement.run(loss, pairs[0], variant)
        except Exception as error:  # whatever a peer raises, the others are still to be timed
            problem = f"raises {type(error).__name__}: {error}"
        else:
            estimate = time.perf_counter() - start
            problem = agreement.check_timed(outcome, true, variant) if peer.exact else None
            del outcome
        if problem is not None:
            _report_failure(console, failures, peer, f"{n} x {d} {problem}")
            continue
        action = _timed(loss, turns, variant)
        if peer.compiles or estimate < LONG:
            estimate = warm_up(action, LONG)
        # What takes longer than LONG gains nothing from warming up: that is its first sample.
        earlier[peer.name] = [estimate] if estimate >= LONG else []
        actions[peer.name] = action
        counts[peer.name] = budget.count(estimate) - len(earlier[peer.name])
    if not actions:
        return {}
    gc.collect()
    gc.disable()
    try:
        samples = interleave(actions, counts)
    finally:
        gc.enable()
    timed = (peer for peer in peers if peer.name in samples)
    return {peer: earlier[peer.name] + samples[peer.name] for peer in timed}


def _timed(loss: Loss, turns: Iterator[Pair], variant: Variant) -> Callable[[], float]:
    def action() -> float:
        pair = next(turns)
        start = time.perf_counter()
        agreement.run(loss, pair, variant)
        return time.perf_counter() - start

    return action


def _row(
    n: int,
    d: int,
    variant: Variant,
    peer: Peer,
    samples: list[float],
    peaks: Peaks,
    origin: Row,
) -> Row:
    floor = floor_seconds(n, d, variant.dtype.itemsize, peaks.gemm(variant.gemm), peaks.copy)
    median, p20, p80 = (percentile(samples, q) for q in (50, 20, 80))
    return {
        "suite": "loss",
        "n": n,
        "d": d,
        "dtype": variant.name,
        "peer": peer.name,
        "source": peer.source,
        "exact": peer.exact,
        "repeats": len(samples),
        "median_ms": rounded(median * 1e3),
        "p20_ms": rounded(p20 * 1e3),
        "p80_ms": rounded(p80 * 1e3),
        "floor_ms": rounded(floor * 1e3),
        "fraction_of_floor": rounded(floor / median),
        "peaks": peaks.as_fields(),
        "provenance": origin,
    }


def _table(rows: list[Row]) -> Table:
    first = rows[0]
    table = Table(
        title=f"{first['n']} x {first['d']} {first['dtype']}: floor {_short(first['floor_ms'])} ms",
        title_justify="left",
    )
    for heading in ("peer", "median ms", "p20", "p80", "repeats", "of floor", "ours is faster"):
        table.add_column(heading, justify="left" if heading == "peer" else "right")
    ours = {row["peer"]: row for row in rows}.get("ours")
    for row in rows:
        table.add_row(
            row["peer"],
            *(_short(row[key]) for key in ("median_ms", "p20_ms", "p80_ms")),
            str(row["repeats"]),
            f"{row['fraction_of_floor']:.2f}",
            f"{row['median_ms'] / ours['median_ms']:.2f}x" if ours and row is not ours else "",
        )
    return table


def _short(value: float) -> str:
    """Three significant digits without an exponent."""
    return f"{value:.0f}" if value >= 100 else f"{value:.3g}"


def tables(rows: list[Row], brief: bool) -> str:
    """Markdown of one machine's rows: a wide table for each dtype, percentiles unless `brief`."""
    if any("graph_ms" in row for row in rows):
        return gpu_tables.loss(rows, brief)

    order = [tuple(shape) for shape in parse_shapes(SHAPES)]
    parts = []
    for variant in VARIANTS.values():
        groups: dict[tuple[int, int], dict[str, Row]] = {}
        for row in rows:
            if row["dtype"] == variant.name:
                groups.setdefault((row["n"], row["d"]), {})[row["peer"]] = row
        shapes = sorted(
            groups, key=lambda shape: (order.index(shape) if shape in order else len(order), shape)
        )
        if not shapes:
            continue
        groups = {shape: groups[shape] for shape in shapes}
        parts += [f"**{variant.title}**", _wide_table(groups), _slowdowns(groups)]
        if not brief:
            parts.append(_long_table(groups))
    if parts:
        parts.insert(0, _reading())
    return "\n\n".join(parts)


def _reading() -> str:
    return (
        "Median milliseconds of one forward and backward pass; × is how many times faster "
        "`barlow_fast` is. *Of floor* is the floor divided by the median of `barlow_fast`, where "
        "floor = 6·N·D·min(N, D) / (GEMM rate) + bytes / (copy bandwidth), with each input read "
        "twice and each gradient written once, at the peaks measured in the same run."
    )


def _titles(groups: dict[tuple[int, int], dict[str, Row]]) -> dict[str, str]:
    """Peers that occur, in the order of the tables, with their titles."""
    present = {name for group in groups.values() for name in group}
    known = {name: peer.title for name, peer in discover().items() if name in present}
    return known | {name: name for name in sorted(present - set(known))}


def _wide_table(groups: dict[tuple[int, int], dict[str, Row]]) -> str:
    titles = _titles(groups)
    others = [name for name in titles if name != "ours"]
    heads = [
        "N × D",
        "floor",
        titles.get("ours", "ours"),
        "of floor",
        *(titles[name] for name in others),
    ]
    lines = [_line(heads), _line(["---:"] * len(heads))]
    for (n, d), group in groups.items():
        ours = group.get("ours")
        cells = [f"{n} × {d}", _short(next(iter(group.values()))["floor_ms"])]
        cells += (
            [f"**{_short(ours['median_ms'])}**", f"{ours['fraction_of_floor']:.0%}"]
            if ours
            else ["–", "–"]
        )
        for name in others:
            row = group.get(name)
            if row is None:
                cells.append("–")
            elif ours is None:
                cells.append(_short(row["median_ms"]))
            else:
                ratio = row["median_ms"] / ours["median_ms"]
                digits = 0 if ratio >= 20 else 1 if ratio >= 2 else 2
                cells.append(f"{_short(row['median_ms'])} ({ratio:.{digits}f}×)")
        lines.append(_line(cells))
    return "\n".join(lines)


def _slowdowns(groups: dict[tuple[int, int], dict[str, Row]]) -> str:
    """Where `barlow_fast` is slower than something; said as plainly as the speedups."""
    titles, found, compared = _titles(groups), [], False
    for (n, d), group in groups.items():
        ours = group.get("ours")
        for name, row in group.items():
            if ours is None or name == "ours":
                continue
            compared = True
            if row["median_ms"] < ours["median_ms"]:
                ratio = ours["median_ms"] / row["median_ms"]
                found.append(f"{n} × {d} ({ratio:.2f}× the time of {titles[name]})")
    if not compared:
        return "No comparison: `barlow_fast` or every peer is missing."
    if found:
        return "`barlow_fast` is slower at: " + "; ".join(found) + "."
    return "`barlow_fast` is the fastest in every row."


def _long_table(groups: dict[tuple[int, int], dict[str, Row]]) -> str:
    titles = _titles(groups)
    heads = ["N × D", "implementation", "median ms", "p20", "p80", "repeats", "of floor"]
    lines = [_line(heads), _line(["---:", "---", *["---:"] * 5])]
    for (n, d), group in groups.items():
        for name in titles:
            if name in group:
                row = group[name]
                times = (_short(row[key]) for key in ("median_ms", "p20_ms", "p80_ms"))
                fraction = f"{row['fraction_of_floor']:.1%}"
                lines.append(
                    _line([f"{n} × {d}", titles[name], *times, str(row["repeats"]), fraction])
                )
    return "<details><summary>Percentiles</summary>\n\n" + "\n".join(lines) + "\n\n</details>"


def _line(cells: list[str]) -> str:
    return "| " + " | ".join(cells) + " |"
