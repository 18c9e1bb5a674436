"""`barlow-fast pretrain`: from settings to a finished run. Heavy imports wait until it runs."""

from __future__ import annotations

import contextlib
import inspect
import itertools
import os
import re
import signal
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from .. import terminal
from ..files import (
    WriteError,
    check_output,
    check_writable,
    is_inside,
    remove_abandoned,
    write_whole,
)
from ..inputs import needed_for
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

if TYPE_CHECKING:
    from rich.console import Console

    from ..data import ImageDataset
    from ..data.sources import Source
    from ..training import Feeding, PretrainConfig, Ranks, Trainer
    from ..training.reporting import Report

CHECKPOINT, CONFIG = "checkpoint.pt", "config.yaml"
RUN_FILES = re.compile(r"checkpoint(-\d+)?\.pt|config\.yaml|log\.jsonl|trackers\.json|\.run\.lock")
YAML_SUFFIXES = (".yaml", ".yml")
AUTO = Path("auto")
# The first line of all files of settings that we write: others are not replaced.
HEADER = "# settings of a run, for barlow-fast pretrain --config"
# The default of options that are settings.
PRESETS = "the preset's"
# What the lines of a run mean, by the words that they use.
LEGEND = {
    "loss": "mean over the epoch's steps",
    "on": "on-diagonal term, the mean of (C_ii - 1)²",
    "off": "off-diagonal term, the mean of C_ij²",
    "k-NN": "accuracy of nearest neighbours on test images",
    "rank": "effective rank of the embeddings, 1 is collapse",
    "data wait": "share of the time spent waiting for images",
}
# Options that are no settings: no checkpoint holds them.
REPEATED = (
    "data_dir", "on_bad_image", "loader", "workers", "worker_timeout", "device", "ignore_memory",
    "tensorboard", "logger",
)  # fmt: skip
# Seconds in which a second signal is the first one again: a terminal and a batch system signal all
# processes, and torchrun then passes on what it got itself.
SAME_REQUEST = 2.0


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
    data_dir: Annotated[
        Path | None,
        typer.Option(
            help="Folder of the data set's files, or to download them to.",
            show_default="the usual places",
        ),
    ] = None,
    files: Annotated[
        str | None,
        typer.Option("--data", help="Folder of images or of tar shards, instead of a data set."),
    ] = None,
    views: Annotated[
        str | None,
        typer.Option(
            help="Views: imagenet, cifar, fashion-mnist, digits or a YAML file.",
            show_default="those of the preset or the data",
        ),
    ] = None,
    encoder: Annotated[
        str | None,
        typer.Option(
            help="Architecture: small, or a model of torchvision or timm.", show_default=PRESETS
        ),
    ] = None,
    on_bad_image: Annotated[
        str, typer.Option(help="What to do about an image that cannot be read: error or skip.")
    ] = "error",
    loader: Annotated[
        str, typer.Option(help="What reads and crops images: auto, arrays, pil or dali.")
    ] = "auto",
    workers: Annotated[
        int | None,
        typer.Option(
            min=0,
            help="Processes (pil) or threads (dali) that read images; 0: this process.",
            show_default="one per core, of pil at most 16",
        ),
    ] = None,
    worker_timeout: Annotated[
        float,
        typer.Option(min=0, help="Seconds until such a process counts as stopped; 0: never."),
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
    lambd: Annotated[
        float | None, typer.Option(help="Weight of the off-diagonal term.", show_default=PRESETS)
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
    device: Annotated[str, typer.Option(help="Device: auto, cpu or cuda.")] = "auto",
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
    options = _not_in_checkpoints(locals())
    with contextlib.ExitStack() as stack:
        with failures(skipping(files), USAGE_ERROR):
            if files is not None and (dataset is not None or data_dir is not None):
                raise ValueError(
                    "--data is instead of a data set: give no --dataset and no --data-dir"
                )
            from ..training import Feeding, joined
            from ..training.reporting.trackers import check_trackers

            check_trackers(logger or ())
            choices = {
                "dataset": dataset if files is None else _absolute(files),
                "views": _absolute(views) if views and views.endswith(YAML_SUFFIXES) else views,
                "encoder": encoder,
                "epochs": epochs,
                "batch_size": batch_size,
                "micro_batch_size": micro_batch_size,
                "projector": _widths(projector),
                "learning_rate": lr,
                "lambd": lambd,
                "seed": seed,
                "precision": precision,
                "backend": backend,
                "compile": compile_mode,
            }
            feeding = Feeding(loader, workers, on_bad_image, worker_timeout)
            ranks = stack.enter_context(joined(device))
            with ranks.together("settings"):
                if resume == AUTO:
                    resume = _newest(out)
                config = _configuration(choices, dim, preset, config_file, settings or [], resume)
            quiet = quiet or not ranks.first
            if dry_run:
                # Standard output is for the settings alone.
                console = terminal.console(quiet=quiet, stderr=True)
                _print_plan(config, data_dir, feeding, ranks, out, resume, ignore_memory, console)
                return
            console = terminal.console(quiet=quiet)
            data = _load(config, data_dir, ranks)
            if not ignore_memory:
                with ranks.together("memory"):
                    _check_memory(config, data, ranks)
            trainer, folder = _prepare(
                config, data, feeding, ranks, out, resume, tensorboard, logger or (), console
            )
        stack.enter_context(trainer)
        trainer.options = options
        with failures(skipping(files)):
            _train(trainer, folder, console)


def _not_in_checkpoints(options: dict[str, Any]) -> dict[str, Any]:
    """Those that a run would need again, where they are not as by default."""
    defaults = inspect.signature(pretrain).parameters
    return {name: options[name] for name in REPEATED if options[name] != defaults[name].default}


def legend() -> str:
    """What the words of a run's lines mean, a paragraph each."""
    lines = (f"{word}: {text}." for word, text in LEGEND.items())
    return "\n\n".join(("The lines of a run, C being the cross-correlation matrix:", *lines))


def _absolute(path: str) -> str:
    """Of files, so that a run may be resumed from anywhere."""
    return path if "://" in path or path.startswith("pipe:") else os.path.abspath(path)


def _widths(text: str | None) -> tuple[int, ...] | None:
    if text is None:
        return None
    try:
        return tuple(int(width) for width in text.split("-"))
    except ValueError:
        raise ValueError(f"--projector takes widths such as 512-512-1024, got {text!r}") from None


def _newest(out: Path | None) -> Path | None:
    """What `--resume auto` goes on from: None to start anew."""
    from ..training import newest_checkpoint

    if out is None:
        raise ValueError("--resume auto looks for a checkpoint in --out: give that folder")
    found = newest_checkpoint(out / CHECKPOINT)
    if found is None:
        return None
    path, complaints = found
    for complaint in complaints:
        terminal.complain(f"barlow-fast: {complaint}; going on from {path}")
    return path


def _configuration(
    choices: dict[str, Any],
    dim: int | None,
    preset: str | None,
    file: Path | None,
    assignments: list[str],
    resume: Path | None,
) -> PretrainConfig:
    """The preset, then the YAML file, then the options, then NAME=VALUE; with `resume` the
    checkpoint's settings, which choices must not contradict."""
    from ..training import PretrainConfig, configure, load_checkpoint, override
    from ..training.presets import find, fitting, preset_in

    if dim is not None and choices["projector"] is not None:
        raise ValueError("--dim and --projector both set the embedding dimensions: give one")
    named = preset or (preset_in(file) if file is not None else None)
    if resume is not None:
        state = load_checkpoint(resume)
        base = PretrainConfig.from_dict(state.get("config"))
    else:
        base = configure(named or _preset(choices["dataset"] or "digits"))
    overridden, in_file = override(base, file)
    chosen = in_file | {name: value for name, value in choices.items() if value is not None}
    if dim is not None:
        chosen["projector"] = (*overridden.projector[:-1], dim)
    _, in_arguments = override(base, None, assignments)
    chosen |= in_arguments
    if resume is None:
        return _replaced(base, chosen)
    if named is not None:
        # Less what the choices derive, such as the warm-up of a short run: nobody requested that.
        # Nor the length of the run, which its own command set.
        first = chosen | {"epochs": base.epochs}
        theirs, derived = find(named).to_dict(), fitting(find(named), first)
        chosen = {k: v for k, v in theirs.items() if derived.get(k, v) == v} | chosen
    refused = [
        f"{name} is {getattr(base, name)!r} there, {value!r} was asked for"
        for name, value in chosen.items()
        if name not in base.MAY_CHANGE and _differ(value, getattr(base, name))
    ]
    if refused:
        raise ValueError(
            f"{resume} was made with other settings, which resuming keeps: {'; '.join(refused)}"
        )
    config = _replaced(base, {k: v for k, v in chosen.items() if k in base.MAY_CHANGE})
    if config.epochs < state.get("epoch", 0):
        raise ValueError(
            f"{resume} is of {state['epoch']} epochs: epochs must be at least that, got "
            f"{config.epochs}"
        )
    return config


def _replaced(base: PretrainConfig, chosen: dict[str, Any]) -> PretrainConfig:
    from dataclasses import replace

    from ..training.presets import fitting

    return replace(base, **fitting(base, chosen))


def _differ(ours: Any, theirs: Any) -> bool:
    as_list = (list(v) if isinstance(v, tuple) else v for v in (ours, theirs))
    return next(as_list) != next(as_list)


def _preset(dataset: str) -> str:
    """The preset of the settings for a data set's name or the path of files."""
    from ..training.presets import preset_of

    return "files" if is_path(dataset) else preset_of(dataset)


def is_path(dataset: str) -> bool:
    """Whether a setting names files rather than a data set."""
    return os.path.isabs(dataset) or "://" in dataset or dataset.startswith("pipe:")


def _load(config: PretrainConfig, data_dir: Path | None, ranks: Ranks) -> ImageDataset | Source:
    from ..data import load
    from ..data.sources import open_source

    if config.dataset == "files":
        raise ValueError("this preset is for a folder of images: give it as --data")
    if is_path(config.dataset):
        with ranks.together("the data"):
            return open_source(config.dataset)
    # Only one process of a machine may download; the others find the files.
    for first in (True, False):
        with ranks.together("the data"):
            if ranks.first == first:
                data = load(config.dataset, data_dir)
    return data


def _held_out(config: PretrainConfig, data: ImageDataset | Source) -> tuple[Any, str]:
    """(The labelled images beside those of `--data` that features are scored on, or None; what is
    said of them.)"""
    from ..evaluation.splits import held_out_splits

    if not is_path(config.dataset):
        return None, ""
    try:
        splits = held_out_splits(config.dataset, data)
    except ValueError as error:
        return None, f"is skipped: {error}"
    if splits is None:
        return None, ""
    scored, candidates = (
        min(len(part), config.neighbour_images) for part in (splits.test, splits.train)
    )
    return splits, f"scores {scored:,} images of {splits.test.name} by {candidates:,} of training"


def _check_memory(config: PretrainConfig, data: ImageDataset | Source, ranks: Ranks) -> None:
    """Refuses what does not fit before anything large is made."""
    from ..training.estimate import check_memory, estimate_memory
    from ..training.feeding import choose_views, image_size

    views = choose_views(config.views, data)
    size = image_size(views, data)
    memory = estimate_memory(config, len(views.mean), size, ranks.device, ranks.size)
    check_memory(memory, config, ranks.device)


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
    """What a run would do, and its settings as YAML on standard output. Refuses what a run would
    refuse before its first step, by the same functions; data sets that are not there are taken to
    be as large as they are known to be."""
    from ..data import ImageDataset
    from ..data.sources import ArraySource
    from ..training.estimate import available_memory, check_memory, estimate_memory, plan_loss
    from ..training.feeding import check_batch, choose_views, image_size

    data, described = _planned_data(config, data_dir, ranks)
    scoring = _held_out(config, data)[1]
    views = choose_views(config.views, data)
    source = ArraySource.of_dataset(data) if isinstance(data, ImageDataset) else data
    check_batch(config.batch_size, len(source), data.name, ranks.size)
    if config.dataset != "files":
        feeding.open(source, views, config, ranks).close()
    with ranks.together("the results"):
        if ranks.first:
            _check_out(out, config, data)
            if out is not None:
                _check_unused(out, resume)
            _try_out(out if out is not None or resume is None else resume.parent)
    size = image_size(views, data)
    steps = len(source) // config.batch_size
    memory = estimate_memory(config, len(views.mean), size, ranks.device, ranks.size)
    weights, biases = config.learning_rates
    lines = [
        f"data      {described}; views {views.name} of {size} pixels",
        *([f"k-NN      {scoring}"] if scoring else []),
        f"steps     {config.epochs} epochs of {steps}: {config.epochs * steps} in all, "
        f"{config.batch_size} images x 2 views each on {ranks.size} process(es)",
        f"rates     {config.optimizer}: weights {weights:g}, biases and norms {biases:g} at their "
        f"peak after {config.warmup_epochs} epochs",
        f"memory    {memory}",
    ]
    available = available_memory(ranks.device)
    if available is not None:
        verdict = "fits" if memory.total <= available else "does not fit"
        lines.append(f"          {verdict}: {ranks.device} has {available / 2**30:.2f} GiB")
    lines.append(str(plan_loss(config, ranks.device, ranks.size, ranks.nodes)))
    for line in lines:
        console.print(line, markup=False)
    if ranks.first:
        terminal.say(_as_yaml(config))
    if not ignore_memory:
        with ranks.together("memory"):
            check_memory(memory, config, ranks.device)


def _planned_data(
    config: PretrainConfig, data_dir: Path | None, ranks: Ranks
) -> tuple[ImageDataset | Source, str]:
    """The data of a run and what a plan says of them; blank images where a named data set can be
    neither found nor downloaded."""
    from ..training.feeding import nominal_dataset

    nominal = nominal_dataset(config.dataset) if data_dir is None else None
    if config.dataset == "files":
        return nominal, f"{len(nominal.train_images)} training images, as ImageNet has (no --data)"
    try:
        data = _load(config, data_dir, ranks)
    except FileNotFoundError as error:
        if nominal is None:
            raise
        return nominal, f"{len(nominal.train_images)} training images, as published ({error})"
    return data, f"{data.name}, {len(getattr(data, 'train_images', data))} training images"


def _as_yaml(config: PretrainConfig) -> str:
    """All settings, as `--config` takes them."""
    with needed_for("a run's file of settings"):
        import yaml

    return f"{HEADER}\n{yaml.safe_dump(config.to_dict(), sort_keys=False).rstrip()}"


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
    """Everything that can fail before the first step; says what is about to happen."""
    from ..training import JsonLinesLog, TensorBoardLog, Trainer
    from ..training.folder_lock import FolderLock
    from ..training.reporting import why_no_tensorboard
    from ..training.reporting.progress import ProgressReport
    from ..training.reporting.trackers import TRACKERS

    with ranks.together("the held-out images"):
        splits, scoring = _held_out(config, data)
    trainer = Trainer(config, data, feeding=feeding, ranks=ranks, splits=splits)
    try:
        if resume is not None:
            trainer.resume(resume)
        _describe(trainer, scoring, console)
        # Ranks other than the first write nothing; they only have to have a path.
        folder = Path()
        with ranks.together("the results"):
            if ranks.first:
                _check_out(out, config, data)
                folder = _output_folder(out, _name(config), resume)
                trainer.folder_lock = FolderLock(
                    folder, lambda line: console.print(line, markup=False)
                )
                remove_abandoned(folder, RUN_FILES.fullmatch)
                _check_unused(folder, resume)
                write_whole(folder / CONFIG, _as_yaml(config) + "\n")
    except BaseException:
        trainer.close()
        raise
    trainer.checkpoint_path = folder / CHECKPOINT
    trainer.hooks = [JsonLinesLog(folder / "log.jsonl"), ProgressReport(console)]
    console.print(f"results   {folder}", markup=False)
    missing = why_no_tensorboard() if tensorboard else None
    if tensorboard and missing is None:
        trainer.hooks.append(TensorBoardLog(folder / "tensorboard"))
    elif missing is not None:
        console.print(f"watching  {missing}", markup=False)
    words = [f"{word}: {text}" for word, text in LEGEND.items()]
    for start, part in (("log       ", words[:3]), (" " * 10, words[3:])):
        console.print(start + "; ".join(part), markup=False)
    trainer.hooks += [TRACKERS[name](folder) for name in dict.fromkeys(loggers)]
    if resume is not None:
        console.print(f"resuming  after step {trainer.step} of {trainer.total_steps} ({resume})")
    return trainer, folder


def _check_out(out: Path | None, config: PretrainConfig, data: ImageDataset | Source) -> None:
    """Refuses a folder whose figures would become data, or a part of them."""
    named = Path(config.dataset) if is_path(config.dataset) else None
    for images in (named, getattr(data, "root", None)):
        if None not in (out, images) and os.path.isdir(images) and is_inside(out, images):
            raise ValueError(
                f"--out {out} lies in the folder of the images, {images}, and its figures would be "
                "taken for some of them: choose another folder"
            )


def _try_out(out: Path | None) -> None:
    """Whether results can be written there; nothing is left behind."""
    made = []
    folder = out = Path("runs") if out is None else out
    while not os.path.lexists(folder):
        made.append(folder)
        folder = folder.parent
    try:
        _output_folder(out, "", None)
        check_writable(out)
    finally:
        for each in made:
            with contextlib.suppress(OSError):
                each.rmdir()


def _output_folder(out: Path | None, dataset: str, resume: Path | None) -> Path:
    """The folder, created."""
    if out is None and resume is None:
        return _fresh_folder(Path("runs"), dataset)
    out = resume.parent if out is None else out
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ValueError(f"cannot write to --out {out}: {error.strerror}") from error
    return out


def _check_unused(out: Path, resume: Path | None) -> None:
    """Refuses a folder whose checkpoints, or settings that somebody wrote, would be lost. Called
    when no other run can write there any more."""
    from ..checkpoints.training import kept_checkpoints

    continued = resume is not None and out.resolve() == resume.parent.resolve()
    there = kept_checkpoints(out / CHECKPOINT)
    if there and not continued:
        raise ValueError(
            f"{out} holds the checkpoint of another run: continue it with "
            f"--resume {there[0]}, or choose another --out"
        )
    if os.path.lexists(out / CONFIG):
        check_output(out / CONFIG, HEADER.encode(), option="--out:")


def _name(config: PretrainConfig) -> str:
    """Of the data, for people and for folders."""
    if not is_path(config.dataset):
        return config.dataset
    path = Path(config.dataset)
    return path.name if path.is_dir() and path.name else "files"


def _fresh_folder(parent: Path, name: str) -> Path:
    """A new one, which is created: two runs that start at once get one each."""
    for number in itertools.count(1):
        folder = parent / (f"{name}-{number}" if number > 1 else name)
        try:
            folder.mkdir(parents=True)
        except FileExistsError:
            continue
        except OSError as error:
            raise ValueError(f"cannot write to {folder}: {error.strerror}") from error
        return folder
    raise AssertionError("numbers do not end")


def _describe(trainer: Trainer, scoring: str, console: Console) -> None:
    from ..data.sources import passed_over
    from ..training.estimate import plan_loss

    config, ranks = trainer.config, trainer.ranks
    sizes = [
        sum(p.numel() for p in part.parameters())
        for part in (trainer.model.encoder, trainer.model.projector)
    ]
    described = trainer.dataset or f"{trainer.source.name}: {len(trainer.source)} training images"
    console.print(f"data      {described}", markup=False)
    splits = trainer.watcher.splits
    left = passed_over(trainer.source, None if splits is None else splits.test)
    if left:
        console.print(f"          {left}")
    console.print(
        f"views     {trainer.views.name}, by {trainer.loader.chosen} ({trainer.loader.reason})",
        markup=False,
    )
    if scoring:
        console.print(f"k-NN      {scoring}")
    elif not trainer.scores:
        console.print("k-NN      is skipped: it takes labelled images for training and for tests")
    name = config.encoder
    if name == "small":
        name = f"convolutions of width {'-'.join(map(str, config.encoder_widths))}"
    console.print(
        f"encoder   {name}, {trainer.model.encoder.features} features, {sizes[0]:,} parameters"
    )
    micro = config.micro_batch_size
    in_parts = f", {micro} in memory at a time" if micro else ""
    console.print(
        f"projector {'-'.join(map(str, config.projector))}, {sizes[1]:,} parameters; "
        f"{config.epochs} epochs of {trainer.steps_per_epoch} steps, "
        f"{config.batch_size} images x 2 views each{in_parts}"
    )
    if not ranks.alone:
        console.print(
            f"ranks     {ranks.size} on {ranks.nodes} machine(s), by {config.parallel}, "
            f"{config.batch_size // ranks.size} images each"
        )
    plan = plan_loss(config, trainer.device, ranks.size, ranks.nodes)
    console.print(str(plan), markup=False)


def _train(trainer: Trainer, folder: Path, console: Console) -> None:
    """Runs the training and reports; a run that does not finish exits with its code."""
    from ..data.faults import BadImageError
    from ..training import TrainingDiverged, TrainingInterrupted
    from ..training.reporting.commands import resume_command

    start = time.perf_counter()
    signals: list[int] = []
    try:
        with _stop_on_signal(trainer, signals):
            trainer.run()
        report = _finish(trainer, folder)
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
    seconds = time.perf_counter() - start
    console.print(f"finished  in {seconds:.0f} s")
    files = {**report.files, "weights": trainer.checkpoint_path, "log": folder / "log.jsonl"}
    if (folder / "tensorboard").is_dir():
        files["curves"] = folder / "tensorboard"
    for name, path in files.items():
        console.print(f"{name:<9} {path}", markup=False)
    for complaint in report.complaints:
        terminal.complain(f"barlow-fast: {complaint}")


def _raw(score: float | None) -> str:
    return "" if score is None else f" (raw pixels: {100 * score:.2f} %)"


def _advice(trainer: Trainer) -> str:
    from ..training.reporting.commands import resume_command

    if not trainer.checkpoint_path.is_file():
        return ""
    return f". Correct that, then continue with: {resume_command(trainer)}"


def _finish(trainer: Trainer, folder: Path) -> Report:
    from ..training.reporting import report_run

    return report_run(trainer, folder, _name(trainer.config))


@contextlib.contextmanager
def _stop_on_signal(trainer: Trainer, seen: list[int]) -> Iterator[None]:
    """The first signal that would end this process asks the trainer to stop between two steps; a
    second one stops at once, unsaved.

    Those that are ignored stay so, as SIGHUP under nohup, and so do handlers of others.
    """
    from ..data.processes import STOP_SIGNALS

    previous: dict[int, Any] = {}
    first = 0.0

    def restore() -> None:
        for each, handler in previous.items():
            signal.signal(each, handler)

    def request(number: int, frame: object) -> None:
        nonlocal first
        if not seen:
            first = time.monotonic()
            trainer.stop_requested = True
            seen.append(number)
        elif time.monotonic() - first > SAME_REQUEST:
            restore()
            signal.raise_signal(number)

    for each in STOP_SIGNALS:
        handler = signal.getsignal(each)
        if handler in (signal.SIG_DFL, signal.default_int_handler):
            previous[each] = signal.signal(each, request)
    try:
        yield
    finally:
        restore()
