"""`barlow-fast pretrain`: from settings to a finished run. Heavy imports wait until it runs."""

from __future__ import annotations

import contextlib
import inspect
import itertools
import os
import re
import signal
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from . import terminal
from .exits import FAILURE, INTERRUPTED, SIGNALLED, fail, skipping, without
from .files import WriteError, remove_abandoned

if TYPE_CHECKING:
    from rich.console import Console

    from .data import ImageDataset
    from .data.sources import Source
    from .training import Feeding, PretrainConfig, Ranks, Trainer
    from .training.reporting import Report

CHECKPOINT = "checkpoint.pt"
RUN_FILES = re.compile(r"checkpoint(-\d+)?\.pt|log\.jsonl|trackers\.json|\.run\.lock")
AUTO = Path("auto")
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
            help="Any setting, such as lambd=0.01 or encoder=resnet50; --dry-run shows them all.",
        ),
    ] = None,
    preset: Annotated[
        str | None, typer.Option(help="Settings of a whole run, such as cifar10 or imagenet-100ep.")
    ] = None,
    config_file: Annotated[
        Path | None,
        typer.Option("--config", help="YAML file of settings; `preset:` names what it builds on."),
    ] = None,
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
    encoder: Annotated[
        str | None, typer.Option(help="small, or a model of torchvision or timm.")
    ] = None,
    on_bad_image: Annotated[
        str, typer.Option(help="error or skip, where an image cannot be read.")
    ] = "error",
    loader: Annotated[str, typer.Option(help="auto, arrays, pil or dali.")] = "auto",
    workers: Annotated[
        int | None, typer.Option(min=0, help="Processes or threads that read images.")
    ] = None,
    worker_timeout: Annotated[
        float,
        typer.Option(min=0, help="Seconds until such a process counts as stopped; 0: never."),
    ] = 1800,
    epochs: Annotated[int | None, typer.Option(help="Passes over the training images.")] = None,
    batch_size: Annotated[
        int | None, typer.Option(help="Images per step, over all processes.")
    ] = None,
    micro_batch_size: Annotated[
        int | None,
        typer.Option(help="Images in memory at a time; the loss stays that of the whole batch."),
    ] = None,
    projector: Annotated[
        str | None, typer.Option(help="Widths of the projector, such as 512-512-1024.")
    ] = None,
    dim: Annotated[
        int | None, typer.Option(help="Embedding dimensions: the projector's last width.")
    ] = None,
    lr: Annotated[float | None, typer.Option(help="Peak learning rate of weights.")] = None,
    lambd: Annotated[float | None, typer.Option(help="Weight of the off-diagonal term.")] = None,
    seed: Annotated[int | None, typer.Option(help="Of weights, order and views.")] = None,
    out: Annotated[
        Path | None, typer.Option(help="Folder for the results. Default: a new one in runs/.")
    ] = None,
    precision: Annotated[
        str | None, typer.Option(help="fp32, bf16, fp16 or auto (bf16 on a GPU, fp32 on a CPU).")
    ] = None,
    backend: Annotated[
        str | None, typer.Option(help="Kernels of the loss: auto, cpu, triton or aten.")
    ] = None,
    compile_mode: Annotated[
        str | None,
        typer.Option(
            "--compile", help="off, default, reduce-overhead (CUDA graphs) or max-autotune."
        ),
    ] = None,
    resume: Annotated[
        Path | None,
        typer.Option(
            help="Checkpoint to continue; its settings are used, and --epochs may be others. auto: "
            "that in --out, if any."
        ),
    ] = None,
    device: Annotated[str, typer.Option(help="auto, cpu or cuda.")] = "auto",
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Print the plan and the settings, and stop.")
    ] = False,
    ignore_memory: Annotated[
        bool, typer.Option("--ignore-memory", help="Start even if the estimate says it won't fit.")
    ] = False,
    tensorboard: Annotated[
        bool,
        typer.Option(
            "--tensorboard/--no-tensorboard", help="Curves in OUT/tensorboard, if it is installed."
        ),
    ] = True,
    logger: Annotated[
        list[str] | None,
        typer.Option(help="wandb or mlflow: curves there too. May be given twice."),
    ] = None,
    quiet: Annotated[bool, typer.Option("--quiet", help="Print errors only.")] = False,
) -> None:
    """Pretrain an encoder on images without labels; the defaults take a minute on two cores.

    On several GPUs: torchrun --nproc_per_node 8 -m barlow_fast pretrain ...
    """
    options = _not_in_checkpoints(locals())
    choices = {
        "dataset": dataset if files is None else _absolute(files),
        "views": _absolute(views) if views and views.endswith((".yaml", ".yml")) else views,
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
    try:
        if files is not None and (dataset is not None or data_dir is not None):
            raise ValueError("--data is instead of a data set: give no --dataset and no --data-dir")
        from .training import Feeding, joined
        from .training.reporting.trackers import check_trackers

        check_trackers(logger or ())
        feeding = Feeding(loader, workers, on_bad_image, worker_timeout)
    except ModuleNotFoundError as error:
        fail(without(error), FAILURE)
    except (ValueError, OSError, RuntimeError, ImportError) as error:
        fail(f"barlow-fast: {error}")
    with contextlib.ExitStack() as stack:
        try:
            ranks = stack.enter_context(joined(device))
            with ranks.together("settings"):
                if resume == AUTO:
                    resume = _newest(out)
                config = _configuration(choices, dim, preset, config_file, settings or [], resume)
            console = terminal.console(quiet=quiet or not ranks.first)
            if dry_run:
                _print_plan(config, data_dir, ranks, console)
                return
            data = _load(config, data_dir, ranks)
            if not ignore_memory:
                with ranks.together("memory"):
                    _check_memory(config, data, ranks)
            trainer, folder = _prepare(
                config, data, feeding, ranks, out, resume, tensorboard, logger or (), console
            )
        except ModuleNotFoundError as error:
            fail(without(error), FAILURE)
        except (ValueError, OSError, RuntimeError, ImportError) as error:
            fail(f"barlow-fast: {_of_rank(error)}")
        stack.enter_context(trainer)
        trainer.options = options
        _train(trainer, folder, console)


def _not_in_checkpoints(options: dict[str, Any]) -> dict[str, Any]:
    """Those that a run would need again, where they are not as by default."""
    defaults = inspect.signature(pretrain).parameters
    return {name: options[name] for name in REPEATED if options[name] != defaults[name].default}


def _of_rank(error: Exception) -> str:
    """The error, with the rank where there are several."""
    rank = os.environ.get("RANK")
    return f"rank {rank}: {error}" if os.environ.get("WORLD_SIZE", "1") != "1" else str(error)


def _absolute(path: str) -> str:
    """Of files, so that a run may be resumed from anywhere."""
    return path if "://" in path or path.startswith("pipe:") else os.path.abspath(path)


def _widths(text: str | None) -> tuple[int, ...] | None:
    if text is None:
        return None
    try:
        return tuple(int(width) for width in text.split("-"))
    except ValueError:
        fail(f"barlow-fast: --projector takes widths such as 512-512-1024, got {text!r}")


def _newest(out: Path | None) -> Path | None:
    """What `--resume auto` goes on from: None to start anew."""
    from .training import newest_checkpoint

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
    from .training import PretrainConfig, configure, load_checkpoint, override
    from .training.presets import find, fitting, preset_in

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

    from .training.presets import fitting

    return replace(base, **fitting(base, chosen))


def _differ(ours: Any, theirs: Any) -> bool:
    as_list = (list(v) if isinstance(v, tuple) else v for v in (ours, theirs))
    return next(as_list) != next(as_list)


def _preset(dataset: str) -> str:
    """The preset of the settings for a data set's name or the path of files."""
    from .training.presets import preset_of

    return "files" if is_path(dataset) else preset_of(dataset)


def is_path(dataset: str) -> bool:
    """Whether a setting names files rather than a data set."""
    return os.path.isabs(dataset) or "://" in dataset or dataset.startswith("pipe:")


def _load(config: PretrainConfig, data_dir: Path | None, ranks: Ranks) -> ImageDataset | Source:
    from .data import load
    from .data.sources import open_source

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


def _check_memory(config: PretrainConfig, data: ImageDataset | Source, ranks: Ranks) -> None:
    """Refuses what does not fit before anything large is made."""
    from .training.estimate import check_memory, estimate_memory
    from .training.feeding import choose_views, image_size

    views = choose_views(config.views, data)
    size = image_size(views, data)
    memory = estimate_memory(config, len(views.mean), size, ranks.device, ranks.size)
    check_memory(memory, config, ranks.device)


def _print_plan(
    config: PretrainConfig, data_dir: Path | None, ranks: Ranks, console: Console
) -> None:
    """What a run would do, and its settings as YAML. Data that are not there are taken to be as
    large as they are known to be."""
    import yaml

    from .training.estimate import available_memory, estimate_memory, plan_loss
    from .training.feeding import NOMINAL, choose_views, image_size, named_views

    try:
        if config.dataset == "files":
            raise ValueError("no --data given")
        data = _load(config, data_dir, ranks)
    except (ValueError, OSError) as error:
        if config.dataset not in NOMINAL:
            raise
        images = NOMINAL[config.dataset]
        views = named_views(config.views or config.dataset)
        size = max(views.views[0].shape)
        described = f"{images} training images, as published ({error})"
    else:
        images = len(getattr(data, "train_images", data))
        views = choose_views(config.views, data)
        size = image_size(views, data)
        described = f"{data.name}, {images} training images"
    steps = images // config.batch_size
    if not steps:
        raise ValueError(
            f"batch_size {config.batch_size} is larger than the data set: {config.dataset} has "
            f"{images} training images"
        )
    memory = estimate_memory(config, len(views.mean), size, ranks.device, ranks.size)
    weights, biases = config.learning_rates
    lines = [
        f"data      {described}; views {views.name} of {size} pixels",
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
    lines += [
        str(plan_loss(config, ranks.device, ranks.size, ranks.nodes)),
        "settings  (a file for --config)",
        yaml.safe_dump(config.to_dict(), sort_keys=False).rstrip(),
    ]
    for line in lines:
        console.print(line, markup=False)


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
    from .training import JsonLinesLog, TensorBoardLog, Trainer
    from .training.folder_lock import FolderLock
    from .training.reporting import why_no_tensorboard
    from .training.reporting.progress import ProgressReport
    from .training.reporting.trackers import TRACKERS

    trainer = Trainer(config, data, feeding=feeding, ranks=ranks)
    try:
        if resume is not None:
            trainer.resume(resume)
        _describe(trainer, console)
        # Ranks other than the first write nothing; they only have to have a path.
        folder = Path()
        with ranks.together("the results"):
            if ranks.first:
                folder = _output_folder(out, _name(config), resume)
                trainer.folder_lock = FolderLock(
                    folder, lambda line: console.print(line, markup=False)
                )
                remove_abandoned(folder, RUN_FILES.fullmatch)
                _check_unused(folder, resume)
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
    trainer.hooks += [TRACKERS[name](folder) for name in dict.fromkeys(loggers)]
    if resume is not None:
        console.print(f"resuming  after step {trainer.step} of {trainer.total_steps} ({resume})")
    return trainer, folder


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
    """Refuses a folder whose checkpoints would be lost. Called when no other run can write there
    any more."""
    from .training.checkpoint import kept_checkpoints

    continued = resume is not None and out.resolve() == resume.parent.resolve()
    there = kept_checkpoints(out / CHECKPOINT)
    if there and not continued:
        raise ValueError(
            f"{out} holds the checkpoint of another run: continue it with "
            f"--resume {there[0]}, or choose another --out"
        )


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


def _describe(trainer: Trainer, console: Console) -> None:
    from .data.sources import passed_over
    from .training.estimate import plan_loss

    config, ranks = trainer.config, trainer.ranks
    sizes = [
        sum(p.numel() for p in part.parameters())
        for part in (trainer.model.encoder, trainer.model.projector)
    ]
    described = trainer.dataset or f"{trainer.source.name}: {len(trainer.source)} training images"
    console.print(f"data      {described}", markup=False)
    if passed_over(trainer.source):
        console.print(f"          {passed_over(trainer.source)}")
    console.print(
        f"views     {trainer.views.name}, by {trainer.loader.chosen} ({trainer.loader.reason})",
        markup=False,
    )
    if not trainer.scores:
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
    from .data.faults import BadImageError
    from .training import TrainingDiverged, TrainingInterrupted
    from .training.reporting.commands import resume_command

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
            raise typer.Exit(code) from None
        fail(f"barlow-fast: {error}. Continue with: {resume_command(trainer)}", code)
    except OSError as error:
        what = "" if isinstance(error, WriteError) else "cannot write the results: "
        fail(f"barlow-fast: {what}{_of_rank(error)}{_advice(trainer)}", FAILURE)
    except (RuntimeError, ValueError) as error:
        fail(f"barlow-fast: {_of_rank(error)}", FAILURE)
    if not trainer.ranks.first:
        return
    after = trainer.history[-1]["knn"]
    if after is not None:
        console.print(
            f"k-NN      {100 * trainer.before['before']:.2f} % with random weights -> "
            f"{100 * after:.2f} % after training (raw pixels: {100 * trainer.before['raw']:.2f} %)"
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


def _advice(trainer: Trainer) -> str:
    from .training.reporting.commands import resume_command

    if not trainer.checkpoint_path.is_file():
        return ""
    return f". Correct that, then continue with: {resume_command(trainer)}"


def _finish(trainer: Trainer, folder: Path) -> Report:
    from .training.reporting import report_run

    return report_run(trainer, folder, _name(trainer.config))


@contextlib.contextmanager
def _stop_on_signal(trainer: Trainer, seen: list[int]) -> Iterator[None]:
    """The first signal that would end this process asks the trainer to stop between two steps; a
    second one stops at once, unsaved.

    Those that are ignored stay so, as SIGHUP under nohup, and so do handlers of others.
    """
    from .data.processes import STOP_SIGNALS

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
