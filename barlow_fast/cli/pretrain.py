"""`barlow-fast pretrain`: its options, the lines that it prints and how it ends. Imports of heavy
libraries wait until it runs."""

from __future__ import annotations

import contextlib
import inspect
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from .. import terminal
from ..files import WriteError, remove_abandoned, write_whole
from ..losses.catalogue import LOSSES
from .exits import (
    FAILURE,
    INTERRUPTED,
    SIGNALLED,
    USAGE_ERROR,
    described,
    fail,
    failures,
    skipping,
)
from .options import PRESETS, DataDir, Device, OnBadImage, ReducedDecoding

if TYPE_CHECKING:
    from rich.console import Console

    from ..data import ImageDataset
    from ..data.sources import Source
    from ..training import Feeding, PretrainConfig, Ranks, Trainer

AUTO = Path("auto")
# Settings whose option has another name.
RENAMED = {"lr": "learning_rate", "compile_mode": "compile"}
# The terms of a run's lines, between which those of its loss come: `words_of`.
LEGEND = {
    "loss": "mean over the epoch's steps",
    "k-NN": "accuracy of nearest neighbours on test images",
    "rank": "effective rank of the embeddings, 1 is collapse",
    "data wait": "share of the time spent waiting for images",
}
# Options that are no settings: no checkpoint holds them.
REPEATED = (
    "data_dir", "on_bad_image", "loader", "workers", "worker_timeout", "device", "ignore_memory",
    "tensorboard", "logger",
)  # fmt: skip


def pretrain(
    settings: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="[NAME=VALUE]...",
            help="Any settings, such as lambd=0.01 or encoder=resnet50; --dry-run shows them all.",
            show_default="the preset's",
        ),
    ] = None,
    preset: Annotated[
        str | None,
        typer.Option(
            help="Settings of a whole run, such as cifar10 or imagenet-100ep.",
            show_default="that of the data",
        ),
    ] = None,
    config_file: Annotated[
        Path | None,
        typer.Option("--config", help="YAML file of settings; `preset:` names what it builds on."),
    ] = None,
    dataset: Annotated[
        str | None,
        typer.Option(
            help="Data set: digits (comes with the install), fashion-mnist, cifar10, cifar100 or "
            "stl10.",
            show_default=PRESETS,
        ),
    ] = None,
    data_dir: DataDir = None,
    files: Annotated[
        str | None,
        typer.Option("--data", help="Folder of images or of tar shards, instead of a data set."),
    ] = None,
    views: Annotated[
        str | None,
        typer.Option(
            help="Views: imagenet, cifar, fashion-mnist, digits or a YAML file; or their number, "
            "such as 4, of which view_count=4 beside a name.",
            show_default="those of the preset or the data",
        ),
    ] = None,
    small_views: Annotated[
        int | None,
        typer.Option(
            help="Small views of each image beside the others (multi-crop), of 5 to 14 % of it.",
            show_default=PRESETS,
        ),
    ] = None,
    small_size: Annotated[
        int | None,
        typer.Option(
            help="Pixels a side of small views.", show_default="the preset's, 96/224 of the others'"
        ),
    ] = None,
    reduced_decoding: ReducedDecoding = None,
    encoder: Annotated[
        str | None,
        typer.Option(
            help="Architecture: small, or a model of torchvision or timm.", show_default=PRESETS
        ),
    ] = None,
    on_bad_image: OnBadImage = "error",
    loader: Annotated[
        str, typer.Option(help="What reads and crops images: auto, arrays, pil or dali.")
    ] = "auto",
    workers: Annotated[
        int | None,
        typer.Option(
            min=0,
            help="Threads that read images; 0: none of their own (pil).",
            show_default="one per core, of pil at most 16",
        ),
    ] = None,
    worker_timeout: Annotated[
        float,
        typer.Option(
            min=0, help="Seconds until storage that does not answer is given up; 0: never."
        ),
    ] = 1800,
    epochs: Annotated[
        int | None, typer.Option(help="Passes over the training images.", show_default=PRESETS)
    ] = None,
    batch_size: Annotated[
        int | None,
        typer.Option(help="Images per step, over all processes.", show_default=PRESETS),
    ] = None,
    micro_batch_size: Annotated[
        int | None,
        typer.Option(
            help="Images in memory at a time; the loss stays that of the whole batch.",
            show_default="the preset's, the whole batch",
        ),
    ] = None,
    projector: Annotated[
        str | None,
        typer.Option(help="Widths of the projector, such as 512-512-1024.", show_default=PRESETS),
    ] = None,
    dim: Annotated[
        int | None,
        typer.Option(
            help="Embedding dimensions: the projector's last width.", show_default=PRESETS
        ),
    ] = None,
    lr: Annotated[
        float | None, typer.Option(help="Peak learning rate of weights.", show_default=PRESETS)
    ] = None,
    loss: Annotated[
        str | None,
        typer.Option(
            help="Loss: barlow-twins, vicreg, mixed-barlow-twins or frossl.", show_default=PRESETS
        ),
    ] = None,
    lambd: Annotated[
        float | None,
        typer.Option(
            help="Weight of the off-diagonal term, of barlow-twins and mixed-barlow-twins.",
            show_default=PRESETS,
        ),
    ] = None,
    mixing: Annotated[
        float | None,
        typer.Option(
            help="Weight of the mixing term, times lambd, of mixed-barlow-twins.",
            show_default="the preset's, 1",
        ),
    ] = None,
    invariance: Annotated[
        float | None,
        typer.Option(
            help="Weight of the invariance term, of vicreg and frossl.",
            show_default="the preset's, 25 and 1",
        ),
    ] = None,
    variance: Annotated[
        float | None,
        typer.Option(
            help="Weight of the variance term, of vicreg.", show_default="the preset's, 25"
        ),
    ] = None,
    covariance: Annotated[
        float | None,
        typer.Option(
            help="Weight of the covariance term, of vicreg.", show_default="the preset's, 1"
        ),
    ] = None,
    seed: Annotated[
        int | None,
        typer.Option(help="Seed of initial weights, order and views.", show_default=PRESETS),
    ] = None,
    out: Annotated[
        Path | None, typer.Option(help="Folder for the results.", show_default="a new one in runs/")
    ] = None,
    precision: Annotated[
        str | None,
        typer.Option(
            help="Precision: fp32, bf16, fp16 (GPUs only) or auto, which is bf16 on GPUs and CPUs "
            "that compute in it (CPUs: AVX-512 BF16 or AMX) and fp32 elsewhere.",
            show_default=PRESETS,
        ),
    ] = None,
    backend: Annotated[
        str | None,
        typer.Option(help="Kernels of the loss: auto, cpu, triton or aten.", show_default=PRESETS),
    ] = None,
    compile_mode: Annotated[
        str | None,
        typer.Option(
            "--compile",
            help="Mode of torch.compile: off, default, reduce-overhead (CUDA graphs) or "
            "max-autotune.",
            show_default=PRESETS,
        ),
    ] = None,
    resume: Annotated[
        Path | None,
        typer.Option(
            help="Checkpoint to continue, whose settings are used but for --epochs; auto: that in "
            "--out, if any."
        ),
    ] = None,
    device: Device = "auto",
    dry_run: Annotated[
        bool,
        typer.Option(
            "--dry-run",
            help="Check everything, print the plan on standard error and the settings on standard "
            "output (a file for --config), and stop.",
        ),
    ] = False,
    ignore_memory: Annotated[
        bool, typer.Option("--ignore-memory", help="Start even if the estimate says it won't fit.")
    ] = False,
    tensorboard: Annotated[
        bool,
        typer.Option(
            "--tensorboard/--no-tensorboard", help="Write curves to OUT/tensorboard, if installed."
        ),
    ] = True,
    logger: Annotated[
        list[str] | None,
        typer.Option(
            help="Service that gets the curves too: wandb or mlflow; may be given twice.",
            show_default="none",
        ),
    ] = None,
    quiet: Annotated[bool, typer.Option("--quiet", help="Print errors only.")] = False,
) -> None:
    """Pretrain an encoder on images without labels; the defaults take a minute on two cores.

    On several GPUs: torchrun --nproc_per_node 8 -m barlow_fast pretrain ...
    """
    options = dict(locals())
    with contextlib.ExitStack() as stack:
        with failures(skipping(files), USAGE_ERROR):
            if files is not None and (dataset is not None or data_dir is not None):
                raise ValueError(
                    "--data is instead of a data set: give no --dataset and no --data-dir"
                )
            from ..training import Feeding, images, joined
            from ..training.reporting.trackers import check_trackers
            from ..training.settings import configuration

            check_trackers(logger or ())
            choices = _settings(options)
            feeding = Feeding(loader, workers, on_bad_image, worker_timeout)
            ranks = stack.enter_context(joined(device))
            with ranks.together("settings"):
                if resume == AUTO:
                    resume = _newest(out)
                config = configuration(choices, dim, preset, config_file, settings or [], resume)
            quiet = quiet or not ranks.first
            if dry_run:
                # Standard output is for the settings alone.
                console = terminal.console(quiet=quiet, stderr=True)
                _print_plan(config, data_dir, feeding, ranks, out, resume, ignore_memory, console)
                return
            console = terminal.console(quiet=quiet)
            data = images.load_images(config, data_dir, ranks)
            if not ignore_memory:
                with ranks.together("memory"):
                    images.check_memory_of(config, data, ranks)
            trainer, folder = _prepare(
                config, data, feeding, ranks, out, resume, tensorboard, logger or (), console
            )
        stack.enter_context(trainer)
        trainer.options = _not_in_checkpoints(options)
        with failures(skipping(files)):
            _train(trainer, folder, console)


def _settings(options: dict[str, Any]) -> dict[str, Any]:
    """The options that are settings, by the settings' names; None where not given."""
    from ..data.presets import YAML_SUFFIXES
    from ..training.images import absolute
    from ..training.presets import ANNOTATIONS
    from ..training.settings import projector_widths

    settings = {RENAMED.get(name, name): value for name, value in options.items()}
    chosen = {name: value for name, value in settings.items() if name in ANNOTATIONS}
    if options["files"] is not None:
        chosen["dataset"] = absolute(options["files"])
    views = options["views"] or ""
    if views.endswith(YAML_SUFFIXES):
        chosen["views"] = absolute(views)
    elif views.lstrip("-").isdecimal():
        chosen |= {"views": None, "view_count": int(views)}
    chosen["projector"] = projector_widths(options["projector"])
    return chosen


def _not_in_checkpoints(options: dict[str, Any]) -> dict[str, Any]:
    """Those that a run would need again, where they are not as by default."""
    defaults = inspect.signature(pretrain).parameters
    return {name: options[name] for name in REPEATED if options[name] != defaults[name].default}


def words_of(loss: str) -> dict[str, str]:
    """The terms of a run's lines and their meaning."""
    own = {term.label: term.meaning for term in LOSSES[loss].terms.values()}
    return {"loss": LEGEND["loss"]} | own | LEGEND


def legend() -> str:
    """The terms of a run's lines, a paragraph each."""
    lines = [f"{term}: {text}." for term, text in LEGEND.items()]
    for name, kind in LOSSES.items():
        terms = (f"{term.label}: {term.meaning}" for term in kind.terms.values())
        lines.append(f"--loss {name}: {'; '.join(terms)}.")
    return "\n\n".join(("The lines of a run, C being the cross-correlation matrix:", *lines))


def _newest(out: Path | None) -> Path | None:
    """The checkpoint that `--resume auto` continues; None to begin a new run."""
    from ..training import newest_checkpoint
    from ..training.run_folder import CHECKPOINT

    if out is None:
        raise ValueError("--resume auto looks for a checkpoint in --out: give that folder")
    found = newest_checkpoint(out / CHECKPOINT)
    if found is None:
        return None
    path, complaints = found
    for complaint in complaints:
        terminal.complain(f"barlow-fast: {complaint}; resuming from {path}")
    return path


def _print_plan(
    config: PretrainConfig,
    data_dir: Path | None,
    feeding: Feeding,
    ranks: Ranks,
    out: Path | None,
    resume: Path | None,
    ignore_memory: bool,
    console: Console,
) -> None:
    """Print the plan of a run, and its settings as YAML on standard output.

    What a run refuses before its first step is refused by the same functions. Data sets that are
    absent are taken to have their published size.
    """
    from ..training.estimate import check_memory
    from ..training.reporting.description import plan_of
    from ..training.run_folder import check_out, check_unused, try_out
    from ..training.settings import as_yaml

    plan = plan_of(config, data_dir, ranks)
    if config.dataset != "files":
        feeding.open(plan.source, plan.views, config, ranks).close()
    with ranks.together("the results"):
        if ranks.first:
            check_out(out, config, plan.data)
            if out is not None:
                check_unused(out, resume)
            try_out(out if out is not None or resume is None else resume.parent)
    for line in plan.lines(config, ranks):
        console.print(line)
    if ranks.first:
        terminal.say(as_yaml(config))
    if not ignore_memory:
        with ranks.together("memory"):
            check_memory(plan.memory, config, ranks.device)


def _prepare(
    config: PretrainConfig,
    data: ImageDataset | Source,
    feeding: Feeding,
    ranks: Ranks,
    out: Path | None,
    resume: Path | None,
    tensorboard: bool,
    loggers: Sequence[str],
    console: Console,
) -> tuple[Trainer, Path]:
    """Make the trainer and its folder, and describe the run."""
    from ..training import JsonLinesLog, TensorBoardLog, Trainer
    from ..training.folder_lock import FolderLock
    from ..training.images import held_out
    from ..training.reporting import why_no_tensorboard
    from ..training.reporting.description import describe
    from ..training.reporting.progress import ProgressReport
    from ..training.reporting.trackers import TRACKERS
    from ..training.run_folder import (
        CHECKPOINT,
        CONFIG,
        RUN_FILES,
        check_out,
        check_unused,
        name_of,
        output_folder,
    )  # fmt: skip
    from ..training.settings import as_yaml

    with ranks.together("the held-out images"):
        splits, scoring = held_out(config, data)
    trainer = Trainer(config, data, feeding=feeding, ranks=ranks, splits=splits)
    try:
        if resume is not None:
            trainer.resume(resume)
        for line in describe(trainer, scoring):
            console.print(line)
        # Ranks other than the first write nothing; they only have to have a path.
        folder = Path()
        with ranks.together("the results"):
            if ranks.first:
                check_out(out, config, data)
                folder = output_folder(out, name_of(config), resume)
                trainer.folder_lock = FolderLock(folder, console.print)
                remove_abandoned(folder, RUN_FILES.fullmatch)
                check_unused(folder, resume)
                write_whole(folder / CONFIG, as_yaml(config) + "\n")
    except BaseException:
        trainer.close()
        raise
    trainer.checkpoint_path = folder / CHECKPOINT
    trainer.hooks = [JsonLinesLog(folder / "log.jsonl"), ProgressReport(console)]
    console.print(f"results   {folder}")
    missing = why_no_tensorboard() if tensorboard else None
    if tensorboard and missing is None:
        trainer.hooks.append(TensorBoardLog(folder / "tensorboard"))
    elif missing is not None:
        console.print(f"watching  {missing}")
    terms = [f"{term}: {text}" for term, text in words_of(config.loss).items()]
    own = len(terms) - len(LEGEND) + 1
    for start, part in (("log       ", terms[:own]), (" " * 10, terms[own:])):
        console.print(start + "; ".join(part))
    trainer.hooks += [TRACKERS[name](folder) for name in dict.fromkeys(loggers)]
    if resume is not None:
        console.print(f"resuming  after step {trainer.step} of {trainer.total_steps} ({resume})")
    return trainer, folder


def _train(trainer: Trainer, folder: Path, console: Console) -> None:
    """Runs the training and reports; a run that does not finish exits with its code."""
    from ..data.faults import BadImageError
    from ..training import TrainingDiverged, TrainingInterrupted, reporting
    from ..training.images import is_path
    from ..training.reporting.commands import resume_command
    from ..training.run_folder import name_of
    from ..training.stopping import stop_on_signal

    start = time.perf_counter()
    signals: list[int] = []
    try:
        with stop_on_signal(trainer, signals):
            trainer.run()
        report = reporting.report_run(trainer, folder, name_of(trainer.config))
    except BadImageError as error:
        folder = trainer.config.dataset if is_path(trainer.config.dataset) else None
        fail(f"barlow-fast: {error}{skipping(folder)}", FAILURE)
    except TrainingDiverged as error:
        fail(f"barlow-fast: {error}", FAILURE)
    except TrainingInterrupted as error:
        code = SIGNALLED + signals[0] if signals else INTERRUPTED
        if not trainer.ranks.first:
            sys.exit(code)
        fail(f"barlow-fast: {error}. Continue with: {resume_command(trainer)}", code)
    except OSError as error:
        what = "" if isinstance(error, WriteError) else "cannot write the results: "
        fail(f"barlow-fast: {what}{described(error)}{_advice(trainer)}", FAILURE)
    except (RuntimeError, ValueError) as error:
        fail(f"barlow-fast: {described(error)}", FAILURE)
    if not trainer.ranks.first:
        return
    after = trainer.history[-1]["knn"]
    if after is not None:
        console.print(
            f"k-NN      {100 * trainer.before['before']:.2f} % with random weights -> "
            f"{100 * after:.2f} % after training{_raw(trainer.before['raw'])}"
        )
    if trainer.loader.bad_images:
        console.print(f"skipped   {len(trainer.loader.bad_images)} images that cannot be read")
    if trainer.loader.suspect_images:
        console.print(f"suspect   {trainer.loader.suspects}")
    seconds = time.perf_counter() - start
    console.print(f"finished  in {seconds:.0f} s")
    files = {**report.files, "weights": trainer.checkpoint_path, "log": folder / "log.jsonl"}
    if (folder / "tensorboard").is_dir():
        files["curves"] = folder / "tensorboard"
    for name, path in files.items():
        console.print(f"{name:<9} {path}")
    for complaint in report.complaints:
        terminal.complain(f"barlow-fast: {complaint}")


def _raw(score: float | None) -> str:
    return "" if score is None else f" (raw pixels: {100 * score:.2f} %)"


def _advice(trainer: Trainer) -> str:
    from ..training.reporting.commands import resume_command

    if not trainer.checkpoint_path.is_file():
        return ""
    return f". Correct that, then continue with: {resume_command(trainer)}"
