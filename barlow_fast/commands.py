"""The commands of `barlow-fast`. Imports of heavy libraries wait until a command runs."""

from __future__ import annotations

import contextlib
import os
import signal
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console

from .cli import missing_libraries
from .data_commands import data
from .exits import FAILURE, INTERRUPTED
from .exits import fail as _fail

if TYPE_CHECKING:
    from .training import Feeding, PretrainConfig, Trainer

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    help="The exact Barlow Twins loss, and the training that goes with it.",
)
app.add_typer(data, name="data")


@app.callback()
def barlow_fast() -> None:
    """Keeps every command a subcommand, however few there are."""


@app.command()
def doctor() -> None:
    """Report what is installed, what is missing and what that costs."""
    from .doctor import report

    raise typer.Exit(report())


@app.command(
    context_settings={
        "allow_extra_args": True,
        "ignore_unknown_options": True,
        "help_option_names": [],
    }
)
def tune(context: typer.Context) -> None:
    """Measure configurations of the Triton kernels on this GPU and keep the best."""
    from .cli import tune

    sys.exit(tune(context.args))


@app.command()
def pretrain(
    dataset: Annotated[
        str | None,
        typer.Option(
            help="digits (comes with the install), fashion-mnist, cifar10, cifar100 or stl10."
        ),
    ] = None,
    data_dir: Annotated[
        Path | None, typer.Option(help="Folder of the data set's files, or to download them to.")
    ] = None,
    files: Annotated[
        str | None,
        typer.Option("--data", help="A folder of images or of tar shards, instead of a data set."),
    ] = None,
    views: Annotated[
        str | None,
        typer.Option(
            help="imagenet, cifar, another preset, or a YAML file. Default: the data set's."
        ),
    ] = None,
    on_bad_image: Annotated[
        str, typer.Option(help="error or skip, where an image cannot be read.")
    ] = "error",
    loader: Annotated[str, typer.Option(help="auto, arrays, pil or dali.")] = "auto",
    workers: Annotated[
        int | None, typer.Option(min=0, help="Processes or threads that read images.")
    ] = None,
    epochs: Annotated[int | None, typer.Option(help="Passes over the training images.")] = None,
    batch_size: Annotated[int | None, typer.Option(help="Images per step.")] = None,
    projector: Annotated[
        str | None, typer.Option(help="Widths of the projector, such as 512-512-1024.")
    ] = None,
    dim: Annotated[
        int | None, typer.Option(help="Embedding dimensions: the projector's last width.")
    ] = None,
    lr: Annotated[float | None, typer.Option(help="Peak learning rate of AdamW.")] = None,
    lambd: Annotated[float | None, typer.Option(help="Weight of the off-diagonal term.")] = None,
    seed: Annotated[int | None, typer.Option(help="Of weights, order and views.")] = None,
    out: Annotated[
        Path | None, typer.Option(help="Folder for the results. Default: a new one in runs/.")
    ] = None,
    precision: Annotated[
        str | None, typer.Option(help="fp32, bf16 or auto (bf16 on a GPU, fp32 on a CPU).")
    ] = None,
    backend: Annotated[
        str | None, typer.Option(help="Kernels of the loss: auto, cpu, triton or aten.")
    ] = None,
    resume: Annotated[
        Path | None, typer.Option(help="Checkpoint to continue; its settings are used.")
    ] = None,
    device: Annotated[str, typer.Option(help="auto, cpu or cuda.")] = "auto",
    quiet: Annotated[bool, typer.Option("--quiet", help="Print errors only.")] = False,
) -> None:
    """Pretrain an encoder on images without labels; the defaults take a minute on two cores."""
    console = Console(quiet=quiet, highlight=False, soft_wrap=True)
    choices = {
        "dataset": dataset if files is None else _absolute(files),
        "views": _absolute(views) if views and views.endswith((".yaml", ".yml")) else views,
        "epochs": epochs,
        "batch_size": batch_size,
        "projector": _widths(projector),
        "learning_rate": lr,
        "lambd": lambd,
        "seed": seed,
        "precision": precision,
        "backend": backend,
    }
    try:
        if files is not None and (dataset is not None or data_dir is not None):
            raise ValueError("--data is instead of a data set: give no --dataset and no --data-dir")
        from .training import Feeding

        feeding = Feeding(loader, workers, on_bad_image)
        config = _configuration(choices, dim, resume)
        trainer, folder = _prepare(config, data_dir, feeding, device, out, resume, console)
    except ModuleNotFoundError as error:
        _fail(missing_libraries([str(error.name)]), FAILURE)
    except (ValueError, OSError, RuntimeError, ImportError) as error:
        _fail(f"barlow-fast: {error}")
    with trainer:
        _train(trainer, folder, console)


def _absolute(path: str) -> str:
    """Of files, so that a run may be resumed from anywhere."""
    return path if "://" in path or path.startswith("pipe:") else os.path.abspath(path)


def _widths(text: str | None) -> tuple[int, ...] | None:
    if text is None:
        return None
    try:
        return tuple(int(width) for width in text.split("-"))
    except ValueError:
        _fail(f"barlow-fast: --projector takes widths such as 512-512-1024, got {text!r}")


def _configuration(choices: dict, dim: int | None, resume: Path | None) -> PretrainConfig:
    """The preset with the choices made; with `resume` the checkpoint's settings, which choices
    must not contradict."""
    from .training import PretrainConfig, configure, load_checkpoint

    if dim is not None and choices["projector"] is not None:
        raise ValueError("--dim and --projector both set the embedding dimensions: give one")
    if resume is not None:
        base = PretrainConfig.from_dict(load_checkpoint(resume)["config"])
    else:
        base = configure(_preset(choices["dataset"] or "digits"))
    if dim is not None:
        choices["projector"] = (*base.projector[:-1], dim)
    if resume is None:
        return configure(_preset(base.dataset), **choices)
    differing = [
        f"{name} is {getattr(base, name)!r} there, {value!r} was asked for"
        for name, value in choices.items()
        if value is not None and value != getattr(base, name)
    ]
    if differing:
        raise ValueError(
            f"{resume} was made with other settings, which resuming keeps: {'; '.join(differing)}"
        )
    return base


def _preset(dataset: str) -> str:
    """The preset of the settings for a data set's name or the path of files."""
    from .training.config import FILES

    return FILES.dataset if _is_path(dataset) else dataset


def _is_path(dataset: str) -> bool:
    return os.path.isabs(dataset) or "://" in dataset or dataset.startswith("pipe:")


def _prepare(
    config: PretrainConfig,
    data_dir: Path | None,
    feeding: Feeding,
    device: str,
    out: Path | None,
    resume: Path | None,
    console: Console,
) -> tuple[Trainer, Path]:
    """Everything that can fail before the first step; says what is about to happen."""
    from .data import load
    from .data.sources import open_source
    from .training import JsonLinesLog, Trainer
    from .training.report import ProgressReport

    chosen_device = _device(device)
    files = _is_path(config.dataset)
    data = open_source(config.dataset) if files else load(config.dataset, data_dir)
    trainer = Trainer(config, data, chosen_device, feeding=feeding)
    try:
        if resume is not None:
            trainer.resume(resume)
        _describe(trainer, console)
        folder = _output_folder(out, _name(config), resume)
    except BaseException:
        trainer.close()
        raise
    trainer.checkpoint_path = folder / "checkpoint.pt"
    trainer.hooks = [JsonLinesLog(folder / "log.jsonl"), ProgressReport(console)]
    console.print(f"results   {folder}")
    if resume is not None:
        console.print(f"resuming  after step {trainer.step} of {trainer.total_steps} ({resume})")
    return trainer, folder


def _device(name: str) -> str:
    import torch

    if name not in ("auto", "cpu", "cuda"):
        raise ValueError(f"--device must be auto, cpu or cuda, got {name!r}")
    available = torch.cuda.is_available()
    if name == "cuda" and not available:
        raise ValueError("--device cuda: torch finds no CUDA device")
    return "cuda" if name == "auto" and available else name.replace("auto", "cpu")


def _output_folder(out: Path | None, dataset: str, resume: Path | None) -> Path:
    """The folder, created and seen to be writable. Never one that would lose another run's
    checkpoint."""
    if out is None:
        out = resume.parent if resume is not None else _fresh_folder(Path("runs"), dataset)
    continued = resume is not None and out.resolve() == resume.parent.resolve()
    if not continued and (out / "checkpoint.pt").exists():
        raise ValueError(
            f"{out} holds the checkpoint of another run: continue it with "
            f"--resume {out / 'checkpoint.pt'}, or choose another --out"
        )
    try:
        out.mkdir(parents=True, exist_ok=True)
        probe = out / ".writable"
        probe.touch()
        probe.unlink()
    except OSError as error:
        raise ValueError(f"cannot write to --out {out}: {error.strerror}") from error
    return out


def _name(config: PretrainConfig) -> str:
    """Of the data, for people and for folders."""
    if not _is_path(config.dataset):
        return config.dataset
    path = Path(config.dataset)
    return path.name if path.is_dir() and path.name else "files"


def _fresh_folder(parent: Path, name: str) -> Path:
    number = 1
    while (folder := parent / (f"{name}-{number}" if number > 1 else name)).exists():
        number += 1
    return folder


def _describe(trainer: Trainer, console: Console) -> None:
    import torch

    from . import explain

    config = trainer.config
    sizes = [
        sum(p.numel() for p in part.parameters())
        for part in (trainer.model.encoder, trainer.model.projector)
    ]
    described = trainer.dataset or f"{trainer.source.name}: {len(trainer.source)} training images"
    console.print(f"data      {described}", markup=False)
    console.print(
        f"views     {trainer.views.name}, by {trainer.loader.chosen} ({trainer.loader.reason})",
        markup=False,
    )
    if not trainer.scores:
        console.print("k-NN      is skipped: it takes labelled images for training and for tests")
    console.print(
        f"encoder   convolutions of width {'-'.join(map(str, config.encoder_widths))}, "
        f"{trainer.model.encoder.features} features, {sizes[0]:,} parameters"
    )
    console.print(
        f"projector {'-'.join(map(str, config.projector))}, {sizes[1]:,} parameters; "
        f"{config.epochs} epochs of {trainer.steps_per_epoch} steps, "
        f"{config.batch_size} images x 2 views each"
    )
    with trainer.autocast() as autocast:
        dtype = torch.bfloat16 if autocast is not None else torch.float32
    plan = explain(
        config.batch_size, config.projector[-1], dtype, trainer.device, backend=config.backend
    )
    console.print(str(plan), markup=False)


def _train(trainer: Trainer, folder: Path, console: Console) -> None:
    """Runs the training and reports; a run that does not finish exits with its code."""
    from .data.faults import BadImageError
    from .training import TrainingDiverged, TrainingInterrupted

    start = time.perf_counter()
    try:
        with _stop_on_interrupt(trainer):
            trainer.run()
        scores, figure = _finish(trainer, folder)
    except BadImageError as error:
        _fail(
            f"barlow-fast: {error}. --on-bad-image skip goes on without such images, "
            "`barlow-fast data check` lists them all",
            FAILURE,
        )
    except TrainingDiverged as error:
        _fail(f"barlow-fast: {error}", FAILURE)
    except TrainingInterrupted as error:
        _fail(
            f"barlow-fast: {error}. Continue with: "
            f"barlow-fast pretrain --resume {trainer.checkpoint_path}",
            INTERRUPTED,
        )
    except OSError as error:
        _fail(f"barlow-fast: cannot write the results: {error}", FAILURE)
    after = trainer.history[-1]["knn"]
    if after is not None:
        console.print(
            f"k-NN      {100 * scores['before']:.2f} % with random weights -> {100 * after:.2f} % "
            f"after training (raw pixels: {100 * scores['raw']:.2f} %)"
        )
    if trainer.loader.bad_images:
        console.print(f"skipped   {len(trainer.loader.bad_images)} images that cannot be read")
    seconds = time.perf_counter() - start
    console.print(f"finished  in {seconds:.0f} s")
    for name, path in (
        ("figure", figure),
        ("weights", trainer.checkpoint_path),
        ("log", folder / "log.jsonl"),
    ):
        console.print(f"{name:<9} {path}")


def _finish(trainer: Trainer, folder: Path) -> tuple[dict[str, float | None], Path]:
    from .training.figure import draw_figure

    scores = {name: trainer.before[name] for name in ("raw", "before")}
    figure = folder / "figure.png"
    config = trainer.config
    draw_figure(
        figure,
        f"Barlow Twins on {_name(config)}: batches of {config.batch_size}, "
        f"{config.projector[-1]} dimensions, {config.epochs} epochs",
        trainer.history,
        scores,
        trainer.before["correlation"],
        trainer.correlation(),
    )
    return scores, figure


@contextlib.contextmanager
def _stop_on_interrupt(trainer: Trainer) -> Iterator[None]:
    """The first Ctrl-C asks the trainer to stop between two steps; a second one stops at once,
    unsaved."""

    def request(number: int, frame: object) -> None:
        trainer.stop_requested = True
        signal.signal(signal.SIGINT, previous)

    previous = signal.signal(signal.SIGINT, request)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, previous)
