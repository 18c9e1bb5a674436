"""`barlow-fast evaluate`: what pretrained encoders are worth. Imports of heavy libraries wait until
a command runs."""

from __future__ import annotations

import hashlib
import inspect
import json
import platform
import time
from collections.abc import Callable
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, NamedTuple

import typer
from rich.table import Table

from .. import terminal
from ..files import check_output, write_whole
from .exits import failures, skipping
from .options import (
    DataDir,
    Device,
    EncoderName,
    ImageSize,
    JsonFile,
    OnBadImage,
    ReducedDecoding,
    Symlinks,
    Workers,
)  # fmt: skip
from .progress import progress_bar

if TYPE_CHECKING:
    from ..checkpoints import Pretrained
    from ..evaluation import Evaluation, ImageFormat, LabelledSplits, Score

FORMAT, VERSION = "barlow_fast.evaluation", 1
# How every file of numbers begins.
JSON_START = f'{{\n  "format": "{FORMAT}"'.encode()

evaluate = typer.Typer(
    no_args_is_help=True,
    help="Judge pretrained encoders: k-NN, linear, finetuned, on other images.",
)

Checkpoints = Annotated[
    list[Path],
    typer.Argument(
        help="Checkpoints or exported encoders; of several, such as those of several pretraining "
        "seeds, mean ± std is over all.",
        show_default=False,
    ),
]
Dataset = Annotated[
    str | None,
    typer.Option(
        help="Data set: digits, fashion-mnist, cifar10, cifar100 or stl10; or give --data."
    ),
]
Data = Annotated[
    Path | None,
    typer.Option(
        help="Folder with train/ and val/ or test/, or one of classes, which is split here."
    ),
]
TestFraction = Annotated[
    float | None,
    typer.Option(
        help="Share of a folder of classes that is set apart to score.", show_default="0.2"
    ),
]
SplitSeed = Annotated[
    int | None, typer.Option(help="Seed of that split of a folder.", show_default="0")
]
Seeds = Annotated[
    str, typer.Option(help="Seeds of all that is random, one run each, such as 0,1,2.")
]
Random = Annotated[
    bool, typer.Option("--random", help="Judge the same architecture with random weights instead.")
]
Baselines = Annotated[
    bool,
    typer.Option("--baselines", help="Judge random weights and, where frozen, raw pixels too."),
]
Chunk = Annotated[int, typer.Option(min=1, help="Images per pass where nothing is trained.")]
Neighbours = Annotated[
    str | None,
    typer.Option(
        "--k",
        help="Numbers of neighbours that vote.",
        show_default="10,20,100,200, as far as there are images",
    ),
]
Temperature = Annotated[float, typer.Option(help="Temperature of the votes.")]


@dataclass(frozen=True)
class Request:
    """The options that all protocols share."""

    checkpoints: Checkpoints
    dataset: Dataset = None
    data_dir: DataDir = None
    data: Data = None
    test_fraction: TestFraction = None
    split_seed: SplitSeed = None
    allow_symlinks: Symlinks = False
    encoder: EncoderName = None
    image_size: ImageSize = None
    seeds: Seeds = "0"
    random: Random = False
    baselines: Baselines = False
    on_bad_image: OnBadImage = "error"
    reduced_decoding: ReducedDecoding = None
    workers: Workers = None
    device: Device = "auto"
    chunk: Chunk = 256
    json_file: JsonFile = None


class Protocol(NamedTuple):
    """How one encoder is evaluated."""

    evaluate: Callable[..., Evaluation]
    choices: dict[str, Any]  # arguments of `evaluate`
    check: Callable[[LabelledSplits], None] = lambda _: None  # refuses choices for these images


def _command(choose: Callable[..., Protocol]) -> None:
    """Register the command that evaluates the protocol which `choose` returns; it has the options
    of `Request` and the parameters of `choose`."""

    def command(**options: Any) -> None:
        request = Request(**{field.name: options.pop(field.name) for field in fields(Request)})
        with failures(skipping(request.data)):
            _run(request, choose(**options))

    parameters = [
        parameter.replace(kind=inspect.Parameter.KEYWORD_ONLY)
        for entry in (Request, choose)
        for parameter in inspect.signature(entry, eval_str=True).parameters.values()
    ]
    command.__signature__ = inspect.Signature(parameters)
    evaluate.command(choose.__name__, help=choose.__doc__)(command)


@_command
def knn(k: Neighbours = None, temperature: Temperature = 0.07) -> Protocol:
    """Accuracy of the k nearest neighbours on frozen features: trains nothing."""
    from ..evaluation import evaluate_knn

    return Protocol(evaluate_knn, _voting(k, temperature))


@_command
def transfer(k: Neighbours = None, temperature: Temperature = 0.07) -> Protocol:
    """k-NN and linear accuracy on images of another kind, resized and converted to fit."""
    from ..evaluation import evaluate_transfer

    return Protocol(evaluate_transfer, _voting(k, temperature))


def _voting(k: str | None, temperature: float) -> dict[str, Any]:
    neighbours = None if k is None else _numbers(k, "--k")
    return {"neighbours": neighbours, "temperature": temperature}


@_command
def linear(
    features: Annotated[
        str,
        typer.Option(
            help="Protocol: augmented, the official one, SGD on random crops; cached, logistic "
            "regression on features computed once; auto, cached for images in memory."
        ),
    ] = "auto",
    stages: Annotated[
        bool,
        typer.Option("--stages", help="Judge every stage of the encoder too, in the same pass."),
    ] = False,
    stage_dimensions: Annotated[
        int,
        typer.Option(min=1, help="About how many numbers are kept of a stage's map."),
    ] = 9000,
    epochs: Annotated[
        int | None,
        typer.Option(min=1, help="Epochs, of augmented alone.", show_default="100"),
    ] = None,
    batch_size: Annotated[
        int | None,
        typer.Option(min=1, help="Images per step, of augmented alone.", show_default="256"),
    ] = None,
    lr: Annotated[
        float | None,
        typer.Option(
            help="Learning rate of the output's classifier, of augmented alone.",
            show_default="0.3",
        ),
    ] = None,
    stage_lr: Annotated[
        float | None,
        typer.Option(
            help="Learning rate of the stages' classifiers, of augmented alone.",
            show_default="0.01",
        ),
    ] = None,
) -> Protocol:
    """Accuracy of a linear classifier on frozen features."""
    from ..evaluation import AVERAGE_POOL, LinearSettings, evaluate_linear
    from ..evaluation.linear import chosen_features

    chosen = {
        "epochs": epochs,
        "batch_size": batch_size,
        "learning_rate": lr,
        "stage_learning_rate": stage_lr,
    }
    chosen = {name: value for name, value in chosen.items() if value is not None}
    choices = {
        "features": features,
        "names": None if stages else (AVERAGE_POOL,),
        "dimensions": stage_dimensions,
        "settings": LinearSettings(**chosen) if chosen else None,
    }

    def check(splits: LabelledSplits) -> None:
        if chosen and chosen_features(features, splits) == "cached":
            raise ValueError(
                "--epochs, --batch-size, --lr and --stage-lr are of --features augmented; "
                "cached features, the default for images in memory, take none of them"
            )

    return Protocol(evaluate_linear, choices, check)


@_command
def finetune(
    fraction: Annotated[
        float, typer.Option(help="Share of the labels to learn from: 0.01, 0.1, 1 or any other.")
    ] = 0.01,
    subset_seed: Annotated[
        int, typer.Option(min=0, help="Seed of the choice of these labels.")
    ] = 0,
    epochs: Annotated[int, typer.Option(min=1, help="Epochs.")] = 20,
    batch_size: Annotated[int, typer.Option(min=1, help="Images per step.")] = 256,
    lr_backbone: Annotated[float, typer.Option(help="Learning rate of the encoder.")] = 0.005,
    lr_classifier: Annotated[float, typer.Option(help="Learning rate of the classifier.")] = 0.5,
    weight_decay: Annotated[float, typer.Option(help="Weight decay of all weights.")] = 0.0,
) -> Protocol:
    """Accuracy after training all weights on a part of the labels."""
    from ..evaluation import FinetuneSettings, evaluate_finetune

    settings = FinetuneSettings(
        epochs=epochs,
        batch_size=batch_size,
        backbone_learning_rate=lr_backbone,
        classifier_learning_rate=lr_classifier,
        weight_decay=weight_decay,
    )
    choices = {"fraction": fraction, "subset_seed": subset_seed, "settings": settings}
    return Protocol(evaluate_finetune, choices)


def _run(request: Request, protocol: Protocol) -> None:
    """Evaluate every checkpoint, print a table, write the JSON."""
    from ..checkpoints import load_encoder
    from ..evaluation import Reading, merged

    console = terminal.console()
    seeds = _numbers(request.seeds, "--seeds")
    if request.random and len(request.checkpoints) > 1:
        raise ValueError("--random needs the architecture alone: give one checkpoint")
    if request.json_file is not None:
        check_output(request.json_file, JSON_START, request.checkpoints, "--json")
    device = _device(request.device)
    splits = _splits(request)
    protocol.check(splits)
    console.print(f"data      {splits}")
    start = time.perf_counter()
    found, used = [], []
    with progress_bar(console) as progress:
        reading = Reading(
            device,
            request.chunk,
            request.workers,
            request.on_bad_image,
            progress,
            bool(request.reduced_decoding),
        )
        for number, path in enumerate(request.checkpoints):
            pretrained = load_encoder(path, encoder=request.encoder, image_size=request.image_size)
            form = _form(pretrained, splits)
            used.append(
                {
                    "path": str(path),
                    "sha256": _sha256(path),
                    "name": pretrained.name,
                    "assumed": _assumed(pretrained),
                }
            )
            if pretrained.name != used[0]["name"]:
                raise ValueError(
                    f"{path} is a {pretrained.name}, {request.checkpoints[0]} a {used[0]['name']}: "
                    "evaluate encoders of one architecture together"
                )
            found.append(
                protocol.evaluate(
                    pretrained.encoder,
                    splits,
                    form,
                    reading,
                    seeds=seeds,
                    random=request.random,
                    # They do not depend on what an encoder has learned: once is enough.
                    baselines=request.baselines and number == 0,
                    **protocol.choices,
                )
            )
    result = merged(found)
    for entry in used:
        console.print(
            f"encoder   {entry['path']} ({entry['name']}, sha256 {entry['sha256'][:12]})",
        )
        for name in sorted({"mean", "std"} & set(entry["assumed"])):
            console.print(f"assumed   {name} {getattr(form, name)}: not stated in the file")
    console.print(_table(result))
    if result.skipped:
        console.print(f"skipped   {result.skipped} images that cannot be read")
    if request.json_file is not None:
        content = {
            "format": FORMAT,
            "version": VERSION,
            **result.to_dict(),
            "encoders": used,
            "input": _plain(form),
            "seconds": round(time.perf_counter() - start, 3),
            "versions": _versions(device),
        }
        write_whole(request.json_file, json.dumps(content, indent=2) + "\n")
        console.print(f"written   {request.json_file}")


def _splits(request: Request) -> LabelledSplits:
    from ..data import load
    from ..evaluation import dataset_splits, folder_splits

    if (request.dataset is None) == (request.data is None):
        raise ValueError("give either --dataset NAME or --data FOLDER: images with labels")
    own_split = request.test_fraction is not None or request.split_seed is not None
    if request.dataset is not None and own_split:
        raise ValueError("--test-fraction and --split-seed belong to --data, not to --dataset")
    if request.dataset is not None:
        return dataset_splits(load(request.dataset, request.data_dir))
    if request.data_dir is not None:
        raise ValueError("--data-dir belongs to --dataset, not to --data")
    return folder_splits(
        request.data,
        test_fraction=0.2 if request.test_fraction is None else request.test_fraction,
        seed=request.split_seed or 0,
        allow_symlinks=request.allow_symlinks,
    )


def _form(pretrained: Pretrained, splits: LabelledSplits) -> ImageFormat:
    from ..evaluation import ImageFormat

    # An assumed size is no reason to refuse images in memory, or to resize them.
    guessed = splits.in_memory and "image_size" in _assumed(pretrained)
    return ImageFormat(
        size=None if guessed else pretrained.image_size,
        channels=pretrained.channels,
        mean=pretrained.mean,
        std=pretrained.std,
    )


def _assumed(pretrained: Pretrained) -> list[str]:
    """What the file did not say about its images."""
    return list(pretrained.metadata.get("assumed", ()))


def _device(name: str) -> str:
    import torch

    if name not in ("auto", "cpu", "cuda"):
        raise ValueError(f"--device must be auto, cpu or cuda, got {name!r}")
    available = torch.cuda.is_available()
    if name == "cuda" and not available:
        raise ValueError("--device cuda: torch finds no CUDA device")
    return "cuda" if name == "auto" and available else name.replace("auto", "cpu")


def _numbers(text: str, option: str) -> tuple[int, ...]:
    try:
        numbers = tuple(dict.fromkeys(int(part) for part in text.split(",")))
    except ValueError:
        numbers = ()
    if not numbers or min(numbers) < 0:
        raise ValueError(f"{option} takes whole numbers such as 0,1,2, got {text!r}")
    return numbers


def _table(result: Evaluation) -> Table:
    table = Table(box=None, pad_edge=False, header_style="")
    for name in ("features", "classifier"):
        table.add_column(name, no_wrap=True)
    for name in ("top-1 %", "top-5 %", "runs"):
        table.add_column(name, justify="right", no_wrap=True)
    for row in result.scores:
        table.add_row(
            row.features,
            row.classifier,
            _percent(row),
            "" if row.top5 is None else _percent(replace(row, top1=row.top5)),
            str(len(row.top1)),
        )
    return table


def _percent(row: Score) -> str:
    spread = "" if row.std is None else f" ± {100 * row.std:.2f}"
    return f"{100 * row.mean:.2f}{spread}"


def _sha256(path: Path) -> str:
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while block := file.read(2**20):
            digest.update(block)
    return digest.hexdigest()


def _versions(device: str) -> dict[str, str]:
    """What computed the numbers."""
    import torch

    from .. import __version__

    name = torch.cuda.get_device_name() if device == "cuda" else platform.processor()
    return {
        "barlow_fast": __version__,
        "torch": torch.__version__,
        "python": platform.python_version(),
        "device": f"{device} ({name or platform.machine()})",
        "threads": str(torch.get_num_threads()),
    }


def _plain(form: ImageFormat) -> dict[str, Any]:
    return {name: getattr(form, name) for name in ("size", "channels", "mean", "std")}
