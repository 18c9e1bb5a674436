"""Time of one forward and backward pass of the loss, against the floor and against the peers."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from bench import devices, results
from bench.gpu import loss as gpu_loss
from bench.gpu import tables as gpu_tables
from bench.inputs import Variant, parse_shapes, parse_variants
from bench.loss import grid, measurement
from bench.loss import tables as cpu_tables
from bench.optional import Console, typer
from bench.peers import Peer, choose
from bench.results import Row
from bench.timing import Budget

SECTION = "Loss: forward + backward"
SECONDS, QUICK_SECONDS = 0.3, 0.1
QUICK_MINUTES = 0.6

# Wider than a redirected log, so that no column is folded.
console = Console(highlight=False, width=None if Console().is_terminal else 110)


def command(
    shapes: Annotated[
        str | None,
        typer.Option(help="Such as 256x8192,512x8192. Default: the eleven of the tables."),
    ] = None,
    dtypes: Annotated[
        str | None,
        typer.Option(
            help="Of fp32, bf16-autocast, bf16-inputs; bf16 stands for both. On cuda also tf32 and "
            "fp16-inputs. Default: all."
        ),
    ] = None,
    peers: Annotated[
        str | None,
        typer.Option(help="Names, comma-separated, or 'all'. Default: all; on cuda some of them."),
    ] = None,
    seconds: Annotated[
        float | None, typer.Option(help="Time for each peer at each shape and dtype.")
    ] = None,
    repeats: Annotated[
        int | None, typer.Option(help="Repeats, instead of --seconds.", min=1)
    ] = None,
    quick: Annotated[
        bool, typer.Option("--quick", help="cpu: few small shapes, half a minute.")
    ] = False,
    full: Annotated[
        bool,
        typer.Option("--full", help="cpu: also N from 32 to 65536, D from 64 to 131072, in fp32."),
    ] = False,
    minutes: Annotated[
        float | None,
        typer.Option(help="cpu: at most about so long; the most important groups come first."),
    ] = None,
    longest: Annotated[
        float,
        typer.Option(help="cpu: a peer with calls of more seconds is not tried at larger shapes."),
    ] = measurement.LONGEST,
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
        str | None,
        typer.Option(help="Where compiled peers take part; 'none': nowhere; cpu: 'all'."),
    ] = None,
) -> None:
    """Time the loss, forward + backward, against its floor and its peers."""
    try:
        chosen_device = devices.choose(device)
        chosen_shapes = None if shapes is None else parse_shapes(shapes)
        chosen_peers = choose(peers, device)
        if compiled_shapes is None and peers and any(peer.compiles for peer in chosen_peers):
            compiled_shapes = "all" if device == "cpu" else None  # asked for by name
        limits = None if device == "cuda" else _limits(longest, minutes, quick, compiled_shapes)
        variants = parse_variants(
            dtypes or ",".join(chosen_device.variants), chosen_device.variants
        )
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
        failures = measurement.measure(
            chosen_shapes or (grid.QUICK_SHAPES if quick else grid.SHAPES),
            variants,
            chosen_peers,
            Budget(seconds, repeats),
            out,
            console,
            limits,
            more_shapes=grid.full() if full else (),
        )
    if failures:
        console.print(f"[bold red]{len(failures)} of the peers failed; they were not timed[/]")
        raise typer.Exit(1)


def _limits(
    longest: float, minutes: float | None, quick: bool, compiled_shapes: str | None
) -> measurement.Limits:
    """What a run on a CPU leaves out; ValueError for shapes that are none."""
    if minutes is None and quick:
        minutes = QUICK_MINUTES
    if compiled_shapes is None:
        where = () if quick else tuple(grid.COMPILED_SHAPES)
    elif compiled_shapes == "all":
        where = None
    else:
        where = () if compiled_shapes == "none" else tuple(parse_shapes(compiled_shapes))
    return measurement.Limits(longest, minutes, where)


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


def tables(rows: list[Row], brief: bool) -> str:
    """Markdown of one machine's rows: a wide table for each dtype, percentiles unless `brief`."""
    if any("graph_ms" in row for row in rows):
        return gpu_tables.loss(rows, brief)
    return cpu_tables.tables(rows, brief)
