"""Fashion-MNIST pretrained within a fixed time, or for a fixed number of epochs, and judged.

The number of epochs is fixed before the first step: of a budget in minutes it follows from two
short timed runs, whose time counts. So the schedule stays a function of the step, a run that was
interrupted continues with the same schedule, and the log is enough to train the same weights again.
A schedule on elapsed time would use the budget to the second, and no run could be repeated. A
machine that slows down after the timing ends the run at the last epoch that fits: its learning rate
is near zero by then. A peer's run cannot end early, and may exceed the budget: `over_budget`.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from barlow_fast.checkpoints.training import earlier, load_checkpoint
from barlow_fast.data import Batch, ImageDataset
from barlow_fast.data.datasets import SYSTEM_FASHION_MNIST, load_fashion_mnist
from barlow_fast.evaluation import ImageFormat, dataset_splits, evaluate_transfer
from barlow_fast.evaluation.features import AVERAGE_POOL, StageFeatures
from barlow_fast.evaluation.splits import balanced_subset, stratified
from barlow_fast.files import write_whole
from barlow_fast.inputs import parse_yaml
from barlow_fast.losses.catalogue import BARLOW_TWINS
from barlow_fast.training import PretrainConfig, Trainer, configure
from barlow_fast.training.callbacks import Hook
from barlow_fast.training.feeding import choose_views, image_size, named_views
from barlow_fast.training.presets import override
from bench.results import Row
from bench.training.cases import COMPACT

CASE = "fashion-mnist"
OURS, LIGHTLY = "ours", "lightly"
TEST, VALIDATION = "test", "validation"
SPLITS = (VALIDATION, TEST)
HELD_OUT = 1 / 6  # of the training images, for validation: 10 000 of 60 000
SPLIT_SEED = 0
NEIGHBOURS, TEMPERATURE = 20, 0.07
PENALTIES = (1e-2, 1e-3, 1e-4)
TIMED = (8, 40)  # batches of the two timed runs: their difference is free of what a start takes
MARGIN = 0.97  # of the time that is left after them
VIEWS = "views."  # prefix of changes of the views
FEATURES = "features"
AVERAGE = "average"
SIZES = "sizes"


@dataclass(frozen=True)
class Recipe:
    """What is changed in the preset `fashion-mnist`.

    A recipe is not edited once rows name it: what it stood for then would be lost.

    Attributes:
        sentence: what it is.
        changes: `name=value` texts: settings of `PretrainConfig`; `views.NAME=VALUE`, a field of
            `ViewSpecification` in both views; `features=[Feature2,output]`, stages whose pooled
            outputs are judged side by side; `average=3`, epochs at whose ends the weights that are
            judged were, in the mean; `sizes=[16,20,28]`, pixels a side of the views of the first
            epochs, the last one of all others too.
    """

    sentence: str
    changes: tuple[str, ...] = ()


_EARLIER = tuple(
    f"{name}={list(value) if isinstance(value, tuple) else value}"
    for name, value in COMPACT.items()
)

_MUON = (
    "loss=frossl",
    "encoder_grid=4",
    "views.crop_area=[0.7,1.0]",
    "features=[Feature1,Feature2,Feature3,output]",
    "stem=small",
    "encoder_widths=[16,32,64,128]",
    "optimizer=muon",
    "momentum=0.95",
    "learning_rate=0.008",
)

BASELINE = "baseline"
RECIPES = {
    BASELINE: Recipe(
        "Barlow Twins with the settings of the preset `fashion-mnist` before the experiments.",
        (*_EARLIER, "loss=barlow-twins", "encoder_grid=2", "views.crop_area=[0.5,1.0]"),
    ),
    "speedrun": Recipe(
        "FroSSL, crops of at least 70 % of the area, the output on a grid of 4 x 4, judged on the "
        "first two stages beside it.",
        (
            *_EARLIER,
            "loss=frossl",
            "encoder_grid=4",
            "views.crop_area=[0.7,1.0]",
            "features=[Feature1,Feature2,output]",
        ),
    ),
    "muon": Recipe(
        "As `speedrun`, with Muon for the convolutions at twice the learning rate, and an encoder "
        "of four stages that begins at full resolution; judged on the first three beside the "
        "output.",
        _MUON,
    ),
    "wide": Recipe(
        "As `muon`, with an encoder of 1.5 times as many channels and half as many epochs.",
        (*_MUON, "encoder_widths=[24,48,96,192]"),
    ),
}


@dataclass(frozen=True)
class Plan:
    """Everything that a run's result depends on, besides data, device and software.

    Attributes:
        config: settings; the number of epochs is preliminary where a budget decides it.
        views: YAML of the views: their content, since presets change.
        features: stages that are judged; empty for the encoder's output.
        average: last epochs whose weights are averaged.
        sizes: of the views by epoch; empty: those that `views` states.
    """

    config: PretrainConfig
    views: str
    features: tuple[str, ...] = ()
    average: int = 1
    sizes: tuple[int, ...] = ()


def planned(recipe: Recipe, more: Sequence[str] = ()) -> Plan:
    """The plan of a recipe with further changes; of one setting the last counts.

    Raises:
        ValueError: an unknown setting or field, or a value out of its range.
    """
    settings: list[str] = []
    fields: dict[str, Any] = {}
    features: tuple[str, ...] = ()
    average = 1
    sizes: tuple[int, ...] = ()
    for text in (*recipe.changes, *more):
        name, equals, value = text.partition("=")
        if name == FEATURES and equals:
            names = parse_yaml(value)
            if not isinstance(names, list) or not all(isinstance(each, str) for each in names):
                raise ValueError(
                    f"features must be names of stages such as [Feature2,output], got {value}"
                )
            features = tuple(names)
        elif name == AVERAGE and equals:
            average = parse_yaml(value)
            if type(average) is not int or average < 1:
                raise ValueError(f"average must be a number of epochs from 1 on, got {value}")
        elif name == SIZES and equals:
            found = parse_yaml(value)
            if not isinstance(found, list) or not all(type(n) is int and n > 0 for n in found):
                raise ValueError(f"sizes must be pixels such as [16,20,28], got {value}")
            sizes = tuple(found)
        elif name.startswith(VIEWS) and equals:
            fields[name.removeprefix(VIEWS)] = parse_yaml(value)
        else:
            settings.append(text)
    config, _ = override(configure(CASE), assignments=settings)
    base = named_views(CASE)
    known = base.views[0].__dataclass_fields__
    if unknown := [name for name in fields if name not in known]:
        raise ValueError(
            f"unknown field of a view: {', '.join(unknown)}; there are {', '.join(known)}"
        )
    changed = tuple(replace(view, **fields) for view in base.views)
    return Plan(config, replace(base, views=changed).to_yaml(), features, average, sizes)


def images_of(split: str, count: int | None = None) -> ImageDataset:
    """Fashion-MNIST from Debian's files.

    Args:
        split: TEST, its own two parts; VALIDATION, of the training images five sixths to learn from
            and the others in the place of the test images, which are not read into the result.
        count: training images to use, balanced over classes; None for all.

    Raises:
        FileNotFoundError: no files; the message names the package.
        ValueError: too few images.
    """
    if not SYSTEM_FASHION_MNIST.is_dir():
        raise FileNotFoundError(
            f"no Fashion-MNIST in {SYSTEM_FASHION_MNIST}: install Debian's package "
            "dataset-fashion-mnist (non-free)"
        )
    data = load_fashion_mnist(SYSTEM_FASHION_MNIST)
    if split == VALIDATION:
        data = validation(data)
    if count is None or count == len(data.train_labels):
        return data
    if count > len(data.train_labels):
        raise ValueError(f"there are {len(data.train_labels):,} images to learn from, not {count}")
    kept = balanced_subset(data.train_labels.numpy(), count / len(data.train_labels), SPLIT_SEED)
    return replace(data, train_images=data.train_images[kept], train_labels=data.train_labels[kept])


def validation(data: ImageDataset) -> ImageDataset:
    """Its training images alone, divided."""
    learned, held = stratified(data.train_labels.numpy(), HELD_OUT, SPLIT_SEED)
    images, labels = data.train_images, data.train_labels
    return replace(
        data, train_images=images[learned], train_labels=labels[learned],
        test_images=images[held], test_labels=labels[held],
    )  # fmt: skip


class Log:
    """JSON lines of one run: its start, its timing, its epochs, its result. The file is replaced
    whole at every line."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.lines: list[Row] = []
        if path.exists():
            self.lines = [json.loads(line) for line in path.read_text().splitlines()]

    def add(self, event: str, **values: Any) -> Row:
        """Appends a line."""
        self.lines.append({"event": event, **values})
        write_whole(self.path, "".join(json.dumps(line) + "\n" for line in self.lines))
        return self.lines[-1]

    def find(self, event: str, **values: Any) -> Row | None:
        """The last line of a kind with these values."""
        wanted = {"event": event} | values
        return next((line for line in reversed(self.lines) if wanted.items() <= line.items()), None)

    def epochs(self) -> list[Row]:
        """The lines of epochs."""
        return [line for line in self.lines if line["event"] == "epoch"]

    def spent(self, key: str) -> float:
        """Seconds of the timing and of all epochs."""
        timing = self.find("timing")
        return sum(line[key] for line in [*([timing] if timing else []), *self.epochs()])


class _Resizing(Trainer):
    """A trainer whose views are made smaller in some epochs."""

    sizes: tuple[int, ...] = ()

    def next_batch(self) -> Batch:
        batch = super().next_batch()
        size = self.sizes[min(self.epoch, len(self.sizes) - 1)] if self.sizes else None
        if size in (None, batch.views[0].shape[-1]):
            return batch
        views = [
            nn.functional.interpolate(view, (size, size), mode="bilinear", antialias=True)
            for view in batch.views
        ]
        # Resampling returns the contiguous layout.
        views = [view.to(memory_format=torch.channels_last) for view in views]
        return batch._replace(views=tuple(views))


class _OutOfTime(Exception):
    """Another epoch would exceed the budget."""


class _Epochs(Hook):
    """Writes each epoch, with the CPU time of this process, and ends the run where another one
    would exceed the budget."""

    def __init__(self, log: Log, minutes: float | None) -> None:
        self.log, self.minutes, self.begun = log, minutes, time.process_time()

    def full(self) -> bool:
        """Whether another epoch, as long as the longest one, would exceed the budget."""
        epochs = self.log.epochs()
        if self.minutes is None or not epochs:
            return False
        longest = max(each["seconds"] for each in epochs)
        return self.log.spent("seconds") + longest > 60 * self.minutes

    def epoch_ended(self, trainer: Any, record: Row) -> None:
        done = {line["epoch"] for line in self.log.epochs()}
        now = time.process_time()
        if record["epoch"] not in done:
            numbers = {key: value for key, value in record.items() if value is not None}
            self.log.add("epoch", **numbers, cpu_seconds=now - self.begun)
        self.begun = now
        if self.full():
            raise _OutOfTime


@dataclass
class Run:
    """One seed of one plan.

    Args:
        plan: what is trained.
        data: what it is trained and judged on.
        seed: of weights, order and views.
        minutes: wall-clock budget of the timing and the training; None: the plan's epochs.
        peer: OURS or LIGHTLY.
        folder: for the log and the checkpoint.
        about: written at the start of the log: provenance, names.
    """

    plan: Plan
    data: ImageDataset
    seed: int
    minutes: float | None
    peer: str
    folder: Path
    about: Row = field(default_factory=dict)

    def name(self) -> str:
        """Of its folder: the same for the same training. What is judged may differ: checkpoints
        are kept."""
        settings = self.plan.config.to_dict() | {"seed": self.seed}
        if self.minutes is not None:
            del settings["epochs"]
        key = [settings, self.plan.views, self.minutes, self.peer,
               len(self.data.train_images), len(self.data.test_images),
               torch.get_num_threads()]  # fmt: skip
        if self.plan.average > 1:  # other checkpoints are kept
            key += [self.plan.average]
        if self.plan.sizes:
            key += [self.plan.sizes]
        digest = hashlib.sha256(json.dumps(key, sort_keys=True).encode()).hexdigest()[:10]
        return f"{digest}-seed{self.seed}"

    def finish(self, say: Callable[[str], None] = print) -> Row:
        """Trains, or continues, and judges; the result, which a finished log already has.

        Raises:
            ValueError: a budget in which not one epoch fits, settings that do not fit the images
                or lightly.
        """
        if self.peer == LIGHTLY:
            self._check_lightly()
        place = self.folder / self.name()
        place.mkdir(parents=True, exist_ok=True)
        log = Log(place / "log.jsonl")
        features = " ".join(self.plan.features)
        if (end := log.find("end", features=features)) is not None:
            return end
        write_whole(place / "views.yaml", self.plan.views)
        config = replace(self.plan.config, seed=self.seed, views=str(place / "views.yaml"))
        if log.find("start") is None:
            log.add(
                "start", **self.about, seed=self.seed, peer=self.peer, minutes=self.minutes,
                train_images=len(self.data.train_images), judged_on=len(self.data.test_images),
                settings=config.to_dict() | {"views": CASE}, views=self.plan.views,
            )  # fmt: skip
        config = self._timed(config, log, say)
        # Checkpoints at every epoch; nothing is scored before the end.
        config = replace(
            config, evaluate_every=config.epochs, checkpoint_every=1,
            keep_checkpoints=self.plan.average,
        )  # fmt: skip
        train = self._ours if self.peer == OURS else self._lightly
        encoder = train(config, log, place)
        seconds = log.spent("seconds")
        begun = time.perf_counter()
        scores = judge(encoder, self.data, config, self.plan.features)
        return log.add(
            "end", features=features, **scores, epochs=log.epochs()[-1]["epoch"],
            seconds=seconds, cpu_seconds=log.spent("cpu_seconds"),
            over_budget=self.minutes is not None and seconds > 60 * self.minutes,
            evaluation_seconds=time.perf_counter() - begun,
        )  # fmt: skip

    def _timed(self, config: PretrainConfig, log: Log, say: Callable[[str], None]) -> Any:
        """With the epochs that fit into the budget, or those of the interrupted run."""
        if self.minutes is None:
            return config
        if self.plan.sizes:
            raise ValueError("sizes are by epoch: give --epochs, not --minutes")
        timing = log.find("timing")
        if timing is None:
            begun, cpu = time.perf_counter(), time.process_time()
            epoch = epoch_seconds(config, self.data, self.peer)
            spent = time.perf_counter() - begun
            epochs = math.floor(MARGIN * (60 * self.minutes - spent) / epoch)
            if epochs < 1:
                raise ValueError(
                    f"the budget is too small: timing took {spent:.1f} s, an epoch takes "
                    f"{epoch:.1f} s, --minutes is {self.minutes:g}"
                )
            timing = log.add(
                "timing", epoch_seconds=epoch, epochs=epochs, seconds=spent,
                cpu_seconds=time.process_time() - cpu,
            )  # fmt: skip
            say(f"seed {self.seed}: {epochs} epochs of {epoch:.1f} s")
        epochs = timing["epochs"]
        return replace(config, epochs=epochs, warmup_epochs=min(config.warmup_epochs, epochs))

    def _ours(self, config: PretrainConfig, log: Log, place: Path) -> nn.Module:
        """By `Trainer`, which is shown no labels and no image that is judged on."""
        path = place / "checkpoint.pt"
        hook = _Epochs(log, self.minutes)
        with _Resizing(config, unlabelled(self.data), "cpu", path, [hook]) as trainer:
            trainer.sizes = self.plan.sizes
            if path.exists():
                trainer.resume(path)
            if not hook.full():
                with contextlib.suppress(_OutOfTime):
                    trainer.run()
        if self.plan.average > 1:
            count = min(self.plan.average, len(log.epochs()))
            trainer.model.load_state_dict(averaged([earlier(path, k) for k in range(count)]))
        return trainer.model.encoder

    def _check_lightly(self) -> None:
        if self.plan.average > 1:
            raise ValueError("lightly's runs keep no checkpoints whose weights could be averaged")
        if self.plan.sizes:
            raise ValueError("lightly's runs have views of one size")
        if self.plan.config.loss != BARLOW_TWINS:
            raise ValueError(
                f"lightly's runs train by its BarlowTwinsLoss, not by {self.plan.config.loss}: "
                f"add --changes loss={BARLOW_TWINS}"
            )

    def _lightly(self, config: PretrainConfig, log: Log, place: Path) -> nn.Module:
        from bench.training import quality

        log.lines = [line for line in log.lines if line["event"] != "epoch"]  # it cannot continue
        cpu = time.process_time()
        encoder, rate = quality.lightly(config, self.data, lambda line: None)
        steps = len(self.data.train_images) // config.batch_size
        seconds = config.epochs * steps * config.batch_size / rate
        # The processes of its loader are not counted in CPU seconds.
        log.add("epoch", epoch=config.epochs, seconds=seconds,
                cpu_seconds=time.process_time() - cpu)  # fmt: skip
        return encoder


def averaged(checkpoints: Sequence[Path]) -> dict[str, Tensor]:
    """The mean of the models of checkpoints, running statistics included; counters of the first."""
    states = [load_checkpoint(path)["model"] for path in checkpoints]
    return {
        name: torch.stack([state[name] for state in states]).mean(0)
        if value.is_floating_point()
        else value
        for name, value in states[0].items()
    }


def unlabelled(data: ImageDataset) -> ImageDataset:
    """The training images without labels, and some of them in the place of the test images."""
    return replace(data, train_labels=None, test_labels=None, test_images=data.train_images[:1024])


def epoch_seconds(config: PretrainConfig, data: ImageDataset, peer: str) -> float:
    """Seconds of an epoch, by two short runs."""
    from bench.training import quality

    train = quality.ours if peer == OURS else quality.lightly
    bare = unlabelled(data)
    short = replace(config, epochs=1, warmup_epochs=0, evaluate_every=1)
    steps = len(data.train_images) // config.batch_size
    few, many = (min(count, steps) for count in TIMED)
    taken = []
    for count in (few, few, many):  # the first one warms up
        images = count * config.batch_size
        part = replace(bare, train_images=bare.train_images[:images])
        taken.append(images / train(short, part, lambda line: None)[1])
    a_step = (taken[2] - taken[1]) / (many - few) if many > few else taken[2] / many
    # A negative difference is noise.
    a_step = a_step if a_step > 0 else taken[2] / many
    return max(taken[1] - few * a_step, 0.0) + steps * a_step


class SideBySide(nn.Module):
    """The pooled outputs of stages of an encoder, each divided by its length, side by side.

    Args:
        encoder: one of `build_encoder`.
        names: of its stages, and `output` for its own output.
    """

    def __init__(self, encoder: nn.Module, names: Sequence[str]) -> None:
        super().__init__()
        self.encoder = encoder
        self.names = [AVERAGE_POOL if name == "output" else name for name in names]

    def forward(self, images: Tensor) -> Tensor:
        """(B, C, H, W) -> (B, sum of the stages' features)."""
        with StageFeatures(self.encoder, self.names, dimensions=1024) as extract:
            found = extract(images)
        return torch.cat([nn.functional.normalize(each, dim=1) for each in found.values()], 1)


def judge(
    encoder: nn.Module, data: ImageDataset, config: PretrainConfig, features: Sequence[str] = ()
) -> dict[str, float]:
    """Top-1 in per cent: k-NN with all training images as candidates, and logistic regression whose
    penalty a held-out part of the training images chooses."""
    views = choose_views(config.views, data)
    form = ImageFormat(image_size(views, data), len(views.mean), views.mean, views.std)
    judged = SideBySide(encoder, features) if features else encoder
    found = evaluate_transfer(
        judged, dataset_splits(data), form, neighbours=(NEIGHBOURS,), temperature=TEMPERATURE,
        penalties=PENALTIES,
    )  # fmt: skip
    names = {"linear": "linear", "knn": f"k = {NEIGHBOURS}"}
    return {key: 100 * found.score(name).mean for key, name in names.items()}
