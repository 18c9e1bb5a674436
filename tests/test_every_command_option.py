"""Every option of every command reaches the function behind it, with its value and its unit.

That the function's argument then has its effect is shown beside the function, in
`test_every_setting.py` and its like.
"""

from __future__ import annotations

import contextlib
import functools
import json
import re
import signal
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import typer
from commands import invoke as run_command
from options import assert_covered, record_calls
from rich.console import Console

import barlow_fast.data.check
import barlow_fast.data.loader
import barlow_fast.data.pack
import barlow_fast.data.show
from barlow_fast import checkpoints, data, evaluation, training
from barlow_fast.cli import data as data_commands
from barlow_fast.cli import evaluate as evaluate_commands
from barlow_fast.cli import exits
from barlow_fast.cli import pretrain as pretrain_commands
from barlow_fast.cli import tune as tune_command
from barlow_fast.cli.app import app
from barlow_fast.data import multicrop, sources
from barlow_fast.data.faults import POLICIES, BadImage
from barlow_fast.data.pack import Packed
from barlow_fast.evaluation import FinetuneSettings, LinearSettings
from barlow_fast.evaluation.scores import Evaluation, Score
from barlow_fast.files import WriteError
from barlow_fast.losses.catalogue import LOSSES
from barlow_fast.training import (
    PretrainConfig,
    Ranks,
    configure,
    images,
    save_checkpoint,
    settings,
    stopping,
)
from barlow_fast.training.reporting import description
from barlow_fast.training.stopping import STOP_SIGNALS

Calls = dict[str, list[dict[str, Any]]]


def invoke(*arguments: object, code: int = 0) -> str:
    return run_command(*arguments, code=code).output


def commands() -> dict[str, Any]:
    """{words that call it: the command}."""
    found: dict[str, Any] = {}

    def walk(group: Any, words: str) -> None:
        for name, command in group.commands.items():
            if hasattr(command, "commands"):
                walk(command, f"{words}{name} ")
            else:
                found[words + name] = command

    walk(typer.main.get_command(app), "")
    return found


Case = tuple[str, str, Any]
NOT_CALLED = "not called"


def passed(calls: Calls, place: str) -> Any:
    """What a function received: `function.argument`, or an attribute of the argument."""
    function, argument, *attributes = place.split(".")
    if not calls[function]:
        return NOT_CALLED
    found = calls[function][-1][argument]
    return functools.reduce(getattr, attributes, found)


# Pretraining. option: (arguments, where what is passed, its value)
PRETRAIN: dict[str, Case] = {
    **{
        name: (f"--{name.replace('_', '-')} {value}", f"_prepare.config.{name}", value)
        for name, value in {
            "dataset": "fashion-mnist", "views": "cifar", "encoder": "resnet18", "epochs": 7,
            "batch_size": 48, "micro_batch_size": 16, "seed": 11,
            "precision": "bf16", "backend": "aten", "small_views": 6, "loss": "vicreg",
        }.items()
    },
    **{
        name: (f"--{name} 1.5 --loss {loss}", f"_prepare.config.{name}", 1.5)
        for name, loss in (
            ("lambd", "barlow-twins"), ("mixing", "mixed-barlow-twins"), ("invariance", "frossl"),
            ("variance", "vicreg"), ("covariance", "vicreg"),
        )
    },
    "small_size": ("--small-views 2 --small-size 5", "_prepare.config.small_size", 5),
    "settings": ("momentum=0.5 projector=[8,9]", "_prepare.config.projector", (8, 9)),
    "preset": ("--preset cifar10", "_prepare.config.encoder", "resnet18"),
    "config_file": ("--config settings.yaml", "_prepare.config.scale", 3.0),
    "data_dir": ("--data-dir there", "load_images.data_dir", Path("there")),
    "files": ("--data photos", "_prepare.config.dataset", "photos"),
    "reduced_decoding": ("--reduced-decoding", "_prepare.config.reduced_decoding", True),
    "on_bad_image": ("--on-bad-image skip", "_prepare.feeding.on_bad_image", "skip"),
    "loader": ("--loader pil", "_prepare.feeding.loader", "pil"),
    "workers": ("--workers 3", "_prepare.feeding.workers", 3),
    "worker_timeout": ("--worker-timeout 7.5", "_prepare.feeding.timeout", 7.5),
    "projector": ("--projector 6-7-8", "_prepare.config.projector", (6, 7, 8)),
    "dim": ("--dim 24", "_prepare.config.projector", (512, 512, 24)),
    "lr": ("--lr 0.25", "_prepare.config.learning_rate", 0.25),
    "out": ("--out results", "_prepare.out", Path("results")),
    "compile_mode": ("--compile reduce-overhead", "_prepare.config.compile", "reduce-overhead"),
    "resume": ("--resume old.pt", "_prepare.resume", Path("old.pt")),
    "device": ("--device cuda", "joined.device", "cuda"),
    "dry_run": ("--dry-run --data-dir there", "_print_plan.data_dir", Path("there")),
    "ignore_memory": ("--ignore-memory", "check_memory_of.config", NOT_CALLED),
    "tensorboard": ("--no-tensorboard", "_prepare.tensorboard", False),
    "logger": ("--logger wandb --logger mlflow", "_prepare.loggers", ["wandb", "mlflow"]),
    "quiet": ("--quiet", "_prepare.console.quiet", True),
}  # fmt: skip


def recorded(monkeypatch: Any, stand_ins: dict[tuple[Any, str], Any]) -> Calls:
    """The calls of functions by their names, in place of which stand-ins run."""
    return {
        name: record_calls(monkeypatch, owner, name, stand_in)
        for (owner, name), stand_in in stand_ins.items()
    }


@pytest.fixture
def pretraining(monkeypatch, tmp_path: Path) -> Calls:
    """What the parts of `pretrain` receive; none of them does anything."""
    monkeypatch.chdir(tmp_path)
    Path("settings.yaml").write_text("scale: 3.0\n")
    save_checkpoint(Path("old.pt"), {"config": PretrainConfig().to_dict()})

    @contextlib.contextmanager
    def joined(device: str) -> Iterator[Ranks]:
        yield Ranks(torch.device("cpu"))

    # Their libraries need not be installed.
    monkeypatch.setattr(training.reporting.trackers, "check_trackers", lambda names: None)
    return recorded(monkeypatch, {
        (pretrain_commands, "_prepare"): lambda *_: (contextlib.nullcontext(), Path("here")),
        (pretrain_commands, "_train"): lambda *_: None,
        (pretrain_commands, "_print_plan"): lambda *_: None,
        (training, "joined"): joined,
        (images, "load_images"): lambda *_: "images",
        (images, "check_memory_of"): lambda *_: None,
    })  # fmt: skip


@pytest.mark.parametrize("option", PRETRAIN)
def test_pretrain(option: str, pretraining: Calls):
    arguments, place, value = PRETRAIN[option]
    if option == "files":  # the folder from wherever the run is resumed
        value = str(Path(value).absolute())
    invoke("pretrain")
    assert passed(pretraining, place) != value, "this is what is passed without the option"
    for calls in pretraining.values():
        calls.clear()
    invoke("pretrain", *arguments.split())
    assert passed(pretraining, place) == value
    assert all(len(calls) <= 1 for calls in pretraining.values())
    if option == "dry_run":
        assert not pretraining["_prepare"]
        return
    # What is not requested stays the preset's, and all parts receive the same.
    (prepared,), (trained,) = pretraining["_prepare"], pretraining["_train"]
    assert prepared["data"] == "images"
    assert trained["folder"] == Path("here")
    assert trained["console"] is prepared["console"]
    assert pretraining["load_images"][0]["config"] == prepared["config"]
    for call in pretraining["check_memory_of"]:
        assert (call["config"], call["data"]) == (prepared["config"], "images")


def chosen(calls: Calls, *arguments: object) -> PretrainConfig:
    """The settings of a run with these arguments."""
    invoke("pretrain", *arguments)
    return calls["_prepare"][-1]["config"]


def test_without_options_the_presets_settings_are_used(pretraining: Calls):
    invoke("pretrain")
    prepared = pretraining["_prepare"][0]
    assert prepared["config"] == configure("digits")
    assert (prepared["out"], prepared["resume"], prepared["tensorboard"]) == (None, None, True)
    assert prepared["feeding"] == training.Feeding("auto", None, "error")
    assert pretraining["joined"][0]["device"] == "auto"
    assert not prepared["console"].quiet
    assert len(pretraining["check_memory_of"]) == 1


def test_views_are_named_or_counted(pretraining: Calls):
    config = chosen(pretraining, "--views", "4")
    assert (config.views, config.view_count) == ("", 4)
    config = chosen(pretraining, "--views", "cifar", "view_count=3")
    assert (config.views, config.view_count) == ("cifar", 3)
    for given, message in (
        (["--views", "1"], "view_count must be at least 2, got 1"),
        (["--views", "-3"], "view_count must be at least 2, got -3"),
        (["--loss", "mixed-barlow-twins", "--views", "4"], "takes 2 views, got 4"),
        (["--loss", "vicreg", "--lambd", "0.01"], "lambd is no weight of loss vicreg"),
        (["--loss", "simclr"], "loss must be one of ('barlow-twins', 'vicreg'"),
        (["--small-size", "4"], "small_size is 4, and there are no small_views"),
        (["--resume", "old.pt", "--loss", "frossl"], "loss is 'barlow-twins' there, 'frossl' was"),
        (["--resume", "old.pt", "--views", "4"], "view_count is None there, 4 was requested"),
    ):
        output = " ".join(invoke("pretrain", *given, code=2).split())
        assert message in output


def test_what_is_said_last_holds(pretraining: Calls):
    """The preset, then the file, then options, then assignments."""
    Path("settings.yaml").write_text(
        "preset: cifar100\nbatch_size: 40\nlambd: 0.5\nseed: 3\nprojector: [10, 11]\n"
    )
    file = ("--config", "settings.yaml")
    expected = {"batch_size": 40, "lambd": 0.25, "seed": 5, "projector": (10, 12)}
    found = chosen(pretraining, *file, "--lambd", 0.25, "--seed", 4, "--dim", 12, "seed=5")
    assert found == replace(configure("cifar100"), **expected)
    # An option names another preset than the file.
    assert chosen(pretraining, *file, "--preset", "stl10").epochs == 400


def saved(**settings: Any) -> PretrainConfig:
    """A checkpoint `old.pt` of a run of the preset digits with other settings."""
    config = configure("digits", **settings)
    save_checkpoint(Path("old.pt"), {"config": config.to_dict()})
    return config


@pytest.mark.parametrize("how", ["option", "file"])
def test_a_run_continues_by_the_command_that_began_it(pretraining: Calls, how: str):
    """Its preset, its file, and the warm-up that a short run has."""
    config = saved(epochs=2, batch_size=40, seed=9)
    assert config.warmup_epochs == 2
    name = "preset: digits\n" if how == "file" else ""
    Path("settings.yaml").write_text(f"{name}epochs: 2\nbatch_size: 40\n")
    preset = ["--preset", "digits"] if how == "option" else []
    rest = ["--config", "settings.yaml", "--resume", "old.pt"]
    assert chosen(pretraining, *preset, "--seed", 9, *rest) == config
    # Another preset is refused, wherever it is named.
    Path("settings.yaml").write_text(f"{name.replace('digits', 'stl10')}epochs: 2\n")
    preset = ["--preset", "stl10"] if how == "option" else []
    output = invoke("pretrain", *preset, *rest, code=2)
    assert "dataset is 'digits' there, 'stl10' was requested" in output


@pytest.mark.parametrize(
    "command",
    ["--preset digits --epochs 2", "--preset digits epochs=2",
     "--preset digits --epochs 2 warmup_epochs=1", "--preset fashion-mnist --dim 24 invariance=2",
     "--epochs 1", "--dataset cifar10 --epochs 3 --projector 6-7",
     "--config settings.yaml --epochs 1"],
)  # fmt: skip
def test_a_command_may_be_given_again(pretraining: Calls, command: str):
    """What a cluster does that queues a job again. What was derived then is not compared either."""
    again = [*command.split(), "--out", "out", "--resume", "auto"]
    config = chosen(pretraining, *again)
    Path("out").mkdir()
    save_checkpoint(Path("out/checkpoint.pt"), {"config": config.to_dict()})
    for arguments in (again, [part for part in again if part != "warmup_epochs=1"]):
        assert chosen(pretraining, *arguments) == config
        assert pretraining["_prepare"][-1]["resume"] == Path("out/checkpoint.pt")


def test_what_may_change_changes_in_a_resumed_run(pretraining: Calls):
    config = saved()
    found = chosen(pretraining, "--resume", "old.pt", "--backend", "aten", "checkpoint_minutes=2")
    assert found == replace(config, backend="aten", checkpoint_minutes=2.0)
    output = invoke("pretrain", "--resume", "old.pt", "--lr", 0.5, code=2)
    assert "learning_rate is 0.002 there, 0.5 was requested" in output


@pytest.mark.parametrize("given", ["--epochs 7", "epochs=7", "--config longer.yaml"])
def test_more_epochs_are_requested_by_name(pretraining: Calls, given: str):
    config = saved(epochs=2, batch_size=40)
    Path("longer.yaml").write_text("epochs: 7\n")
    resumed = ["--resume", "old.pt"]
    for preset in ([], ["--preset", "digits", "--batch-size", 40]):
        # The warm-up stays that of the first command.
        found = chosen(pretraining, *preset, *resumed, *given.split())
        assert found == replace(config, epochs=7)
    # A preset's own length requests nothing.
    assert chosen(pretraining, *preset, *resumed) == config


def test_fewer_epochs_than_there_were_are_refused(pretraining: Calls):
    save_checkpoint(Path("old.pt"), {"config": configure("digits").to_dict(), "epoch": 12})
    output = invoke("pretrain", "--resume", "old.pt", "--epochs", 11, "--dry-run", code=2)
    assert "old.pt is of 12 epochs: epochs must be at least that, got 11" in output
    invoke("pretrain", "--resume", "old.pt", "--epochs", 12)


def test_auto_continues_from_the_newest_or_begins(pretraining: Calls):
    invoke("pretrain", "--resume", "auto", "--out", "out")
    assert pretraining["_prepare"][0]["resume"] is None
    Path("out").mkdir()
    save_checkpoint(Path("out/checkpoint.pt"), {"config": configure("digits", seed=6).to_dict()})
    assert chosen(pretraining, "--resume", "auto", "--out", "out").seed == 6
    assert pretraining["_prepare"][1]["resume"] == Path("out/checkpoint.pt")
    assert "give that folder" in invoke("pretrain", "--resume", "auto", code=2)


# What the parts of `pretrain` do with what they receive.


class Prepared:
    """Stands in for a trainer."""

    made: list[dict[str, Any]]

    def __init__(self, config: Any, data: Any, *, feeding: Any, ranks: Any, splits: Any) -> None:
        assert splits is None
        Prepared.made.append({"config": config, "data": data, "feeding": feeding, "ranks": ranks})
        self.resumed: list[Path] = []
        self.closed = False
        self.step, self.total_steps = 3, 9

    def resume(self, path: Path) -> None:
        self.resumed.append(path)

    def close(self) -> None:
        self.closed = True
        self.folder_lock.release()


@pytest.fixture
def prepare(monkeypatch, tmp_path: Path) -> Callable[..., Any]:
    """`_prepare` with a stand-in for the trainer."""
    from barlow_fast.training import reporting

    monkeypatch.chdir(tmp_path)
    Prepared.made = []
    monkeypatch.setattr(training, "Trainer", Prepared)
    monkeypatch.setattr(description, "describe", lambda *_: ())
    monkeypatch.setattr(reporting, "why_no_tensorboard", lambda: None)
    opened = record_calls(monkeypatch, training, "TensorBoardLog", lambda path: ("curves", path))

    def call(**changes: Any) -> tuple[Prepared, Path, list[dict[str, Any]]]:
        arguments = {
            "config": configure("digits"), "data": "images",
            "feeding": training.Feeding(workers=2), "ranks": Ranks(torch.device("cpu")),
            "out": None, "resume": None, "tensorboard": True, "loggers": (),
            "console": SimpleNamespace(print=lambda *a, **k: None, is_terminal=False), **changes,
        }  # fmt: skip
        trainer, folder = pretrain_commands._prepare(**arguments)
        if arguments["ranks"].first:
            trainer.folder_lock.release()
        made = Prepared.made[-1]
        assert all(made[name] is arguments[name] for name in made)
        return trainer, folder, opened

    return call


def test_results_go_where_they_are_requested(prepare):
    trainer, folder, _ = prepare()
    assert folder == Path("runs/digits")
    assert trainer.checkpoint_path == folder / "checkpoint.pt"
    assert trainer.hooks[0].path == folder / "log.jsonl"
    assert prepare()[1] == Path("runs/digits-2")
    assert prepare(out=Path("mine"))[1] == Path("mine")
    old = Path("mine/checkpoint.pt")
    old.write_bytes(b"")
    trainer, folder, _ = prepare(resume=old)
    assert (folder, trainer.resumed) == (Path("mine"), [old])
    assert prepare(resume=old, out=Path("other"))[1] == Path("other")
    with pytest.raises(ValueError, match="checkpoint of another run"):
        prepare(out=Path("mine"))


def test_loggers_watch_the_run(prepare):
    trainer, folder, _ = prepare(loggers=["mlflow", "mlflow"])
    (tracker,) = (hook for hook in trainer.hooks if isinstance(hook, training.Tracker))
    assert isinstance(tracker, training.MlflowLog)
    assert tracker.folder == folder


def test_curves_are_written_if_wanted(prepare):
    trainer, folder, opened = prepare()
    assert ("curves", folder / "tensorboard") in trainer.hooks
    trainer, _, opened = prepare(tensorboard=False)
    assert len(opened) == 1
    assert len(trainer.hooks) == 2


def test_other_ranks_write_nothing(prepare):
    trainer, folder, _ = prepare(ranks=Ranks(torch.device("cpu"), 1, 2), tensorboard=False)
    assert folder == Path()
    assert not Path("runs").exists()
    assert trainer.checkpoint_path.name == "checkpoint.pt"


def test_the_other_ranks_of_a_machine_wait_for_the_first_ones_data(monkeypatch):
    """They leave two blocks together, and the first loads in the first of them."""
    for rank, order in ((0, ["load", "left", "left"]), (1, ["left", "load", "left"])):
        events: list[str] = []
        monkeypatch.setattr(
            images, "load", lambda *a, events=events: events.append("load") or "set"
        )

        @contextlib.contextmanager
        def together(purpose: str, events=events):
            yield
            events.append("left")

        ranks = SimpleNamespace(first=rank == 0, together=together)
        assert images.load_images(configure("digits"), None, ranks) == "set"
        assert events == order


# What `pretrain` says and how it ends.


PLAN = ("pretrain", "--dry-run", "--device", "cpu")


@pytest.mark.parametrize(("room", "verdict"), [(0, "fits"), (-1, "does not fit"), (None, "")])
def test_a_plan_reports_what_a_run_would_do(monkeypatch, tmp_path, room, verdict: str):
    from barlow_fast.training import estimate

    arguments = ["--epochs", 3, "--batch-size", 64, "--projector", "32-96", "precision=fp32"]
    config = configure("digits", epochs=3, batch_size=64, projector=(32, 96), precision="fp32")
    total = estimate.estimate_memory(config, 1, (8, 8), torch.device("cpu")).total
    available = None if room is None else total + room
    monkeypatch.setattr(estimate, "available_memory", lambda _: available)
    result = run_command(*PLAN, *arguments, "bias_learning_rate=0.5", code=2 if room == -1 else 0)
    output = result.stderr
    assert ("the run does not fit" in output) == (room == -1)
    assert "data      digits, 1197 training images; views digits of 8 pixels" in output
    assert "3 epochs of 18: 54 in all, 64 images x 2 views each on 1 process(es)" in output
    assert "adamw: weights 0.002, biases and norms 0.5 at their peak after 3 epochs" in output
    assert (f"{verdict}: cpu has" in output) == (verdict != "")
    file = tmp_path / "settings.yaml"
    file.write_text(result.stdout)
    found, _ = training.override(configure("cifar10"), file)
    assert found == replace(config, bias_learning_rate=0.5)


def test_a_plan_needs_no_images(monkeypatch):
    def absent(*_: Any) -> Any:
        raise FileNotFoundError("none here")

    monkeypatch.setattr(images, "load", absent)
    output = invoke(*PLAN, "--dataset", "cifar10")
    assert "50000 training images, as published (none here); views cifar of 32 pixels" in output
    assert "1000 epochs of 195: 195000 in all" in output
    assert "none here" in invoke(*PLAN, code=2)
    output = invoke(*PLAN, "--preset", "stl10", "--batch-size", 5001, code=2)
    assert "batch_size 5001 is larger than the data set: stl10 has 5000" in output
    # A folder that somebody named is another matter.
    assert "none here" in invoke(*PLAN, "--dataset", "cifar10", "--data-dir", "x", code=2)


class Ending:
    """Stands in for a trainer whose run ends in a certain way."""

    def __init__(self, error: BaseException | None = None, first: bool = True) -> None:
        self.error, self.ranks = error, SimpleNamespace(first=first, alone=True)
        self.checkpoint_path = Path("there/checkpoint.pt")
        self.history, self.before = [{"knn": 0.75}], {"before": 0.25, "raw": 0.5}
        self.loader = SimpleNamespace(
            bad_images=[1, 2, 3], suspect_images=[4, 5], suspects="2 images, decoded"
        )
        self.stop_requested, self.options = False, {"data_dir": Path("a b")}
        self.config = SimpleNamespace(dataset="/it's")

    def run(self) -> None:
        if self.error is not None:
            raise self.error


BAD = BadImage(3, "image 3", "none")
STOPPED = training.TrainingInterrupted("stopped")


@pytest.mark.parametrize(
    ("error", "first", "code", "message"),
    [
        (data.faults.BadImageError(BAD), True, 1, "image 3: none. --on-bad-image skip"),
        (data.faults.BadImageError(BAD), True, 1, """`barlow-fast data check '/it'"'"'s'`"""),
        (training.TrainingDiverged("at step 3"), True, 1, "barlow-fast: at step 3"),
        (OSError("disk full"), True, 1, "cannot write the results: disk full"),
        (RuntimeError("a worker died"), True, 1, "barlow-fast: a worker died"),
        (STOPPED, True, 130, "--resume there/checkpoint.pt --data-dir 'a b'"),
        (STOPPED, False, 130, ""),
    ],
)
def test_a_run_that_does_not_finish_says_why(capsys, error, first: bool, code: int, message: str):
    with pytest.raises(SystemExit) as left:
        pretrain_commands._train(Ending(error, first), Path("there"), Console())
    assert left.value.code == code
    assert message in capsys.readouterr().err or not message


def test_a_full_disk_reports_how_to_continue(capsys, tmp_path: Path):
    trainer = Ending(WriteError(28, "cannot write out/checkpoint.pt: No space left on device"))
    trainer.checkpoint_path = tmp_path / "checkpoint.pt"
    again = f"barlow-fast pretrain --resume {trainer.checkpoint_path} --data-dir 'a b'"
    for advice in ("", f". Correct that, then continue with: {again}"):
        with pytest.raises(SystemExit):
            pretrain_commands._train(trainer, tmp_path, Console())
        line = "barlow-fast: cannot write out/checkpoint.pt: No space left on device"
        assert capsys.readouterr().err.strip() == line + advice
        trainer.checkpoint_path.touch()


@pytest.fixture
def now(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[float]]:
    """The clock. In the background and under nohup some signals are ignored; here none is."""
    before = {number: signal.getsignal(number) for number in STOP_SIGNALS}
    for number, handler in before.items():
        if handler is signal.SIG_IGN:
            default = signal.default_int_handler if number == signal.SIGINT else signal.SIG_DFL
            signal.signal(number, default)
    clock = [100.0]
    monkeypatch.setattr(stopping.time, "monotonic", lambda: clock[0])
    yield clock
    for number, handler in before.items():
        signal.signal(number, handler)


@pytest.mark.usefixtures("now")
@pytest.mark.parametrize("number", STOP_SIGNALS)
def test_the_first_signal_requests_a_stop(number: int):
    before = [signal.getsignal(each) for each in STOP_SIGNALS]
    trainer = Ending()

    def run() -> None:
        signal.raise_signal(number)
        assert trainer.stop_requested
        # The same again, as from torchrun and the batch system.
        signal.raise_signal(number)
        signal.raise_signal(signal.SIGTERM)
        raise training.TrainingInterrupted("stopped")

    trainer.run = run
    with pytest.raises(SystemExit) as left:
        pretrain_commands._train(trainer, Path("there"), Console(quiet=True))
    assert left.value.code == 128 + number
    assert [signal.getsignal(each) for each in STOP_SIGNALS] == before


def test_a_later_signal_ends_at_once(now: list[float]):
    trainer = Ending()

    def run() -> None:
        signal.raise_signal(signal.SIGTERM)
        now[0] += 3
        signal.raise_signal(signal.SIGINT)  # which Python turns into an exception, if it is itself
        raise AssertionError("not reached")

    trainer.run = run
    with pytest.raises(KeyboardInterrupt):
        pretrain_commands._train(trainer, Path("there"), Console(quiet=True))


def test_what_is_ignored_or_handled_by_others_stays_so(monkeypatch):
    """As SIGHUP under nohup."""
    mine = {signal.SIGHUP: signal.SIG_IGN, signal.SIGUSR1: lambda *_: None}
    before = {number: signal.signal(number, handler) for number, handler in mine.items()}
    try:
        with stopping.stop_on_signal(Ending(), []):
            assert {number: signal.getsignal(number) for number in mine} == mine
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def test_a_finished_run_reports_its_scores_and_files(monkeypatch, capsys, tmp_path: Path):
    report = SimpleNamespace(files={"figure": tmp_path / "figure.png"}, complaints=["no font"])
    monkeypatch.setattr(training.reporting, "report_run", lambda *_: report)
    console = Console(highlight=False, soft_wrap=True)
    pretrain_commands._train(Ending(), tmp_path, console)
    received = capsys.readouterr()
    for line in (
        "25.00 % with random weights -> 75.00 % after training (raw pixels: 50.00 %)",
        "skipped   3 images", "suspect   2 images, decoded", f"figure    {tmp_path / 'figure.png'}",
        f"log       {tmp_path / 'log.jsonl'}",
    ):  # fmt: skip
        assert line in received.out
    assert "curves" not in received.out
    assert "barlow-fast: no font" in received.err
    (tmp_path / "tensorboard").mkdir()
    unscored = Ending()
    unscored.history, unscored.loader.bad_images = [{"knn": None}], []
    unscored.loader.suspect_images = []
    pretrain_commands._train(unscored, tmp_path, console)
    received = capsys.readouterr()
    assert f"curves    {tmp_path / 'tensorboard'}" in received.out
    assert "random weights" not in received.out
    assert "skipped" not in received.out
    assert "suspect" not in received.out
    pretrain_commands._train(Ending(first=False), tmp_path, console)
    assert capsys.readouterr().out == ""


@pytest.mark.parametrize(
    ("error", "code", "message"),
    [
        (data.faults.BadImageError(BAD), 1, "barlow-fast: image 3: none, more"),
        (RuntimeError("a worker died"), 1, "barlow-fast: a worker died"),
        (ValueError("no such thing"), 2, "barlow-fast: no such thing"),
        (OSError("disk full"), 2, "barlow-fast: disk full"),
        (KeyboardInterrupt(), 130, "barlow-fast: interrupted"),
        (ModuleNotFoundError("none", name="somewhere"), 1, "somewhere not found"),
        (ModuleNotFoundError("pip install 'barlow-fast[export]'"), 1, "barlow-fast[export]"),
    ],
)
def test_every_error_of_a_command_has_its_status(capsys, error, code: int, message: str):
    with pytest.raises(SystemExit) as left, exits.failures(", more"):
        raise error
    assert left.value.code == code
    assert message in capsys.readouterr().err


def test_errors_of_several_ranks_name_theirs(monkeypatch):
    monkeypatch.setenv("RANK", "3")
    monkeypatch.setenv("WORLD_SIZE", "1")
    assert exits.described(ValueError("no")) == "no"
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert exits.described(ValueError("no")) == "rank 3: no"


def test_numbers_are_read_as_they_are_written():
    assert evaluate_commands._numbers("3,1,3,0", "--k") == (3, 1, 0)
    for wrong in ("", "1,", "-1", "1.5", "one"):
        with pytest.raises(ValueError, match="--k takes whole numbers"):
            evaluate_commands._numbers(wrong, "--k")
    assert settings.projector_widths("512-16") == (512, 16)
    assert data_commands._number(1, "image") == "1 image"
    assert data_commands._number(1234, "class") == "1,234 classes"
    assert data_commands._number(0, "shard") == "0 shards"


def test_scores_are_reported_in_percent_with_their_spread():
    row = Score("encoder", "k = 3", (0.5, 0.75))
    assert evaluate_commands._percent(row) == "62.50 ± 17.68"
    assert evaluate_commands._percent(replace(row, top1=(0.5,))) == "50.00"
    rows = (row, replace(row, top5=(0.8, 0.9)))
    table = evaluate_commands._table(Evaluation("knn", "x", 1, 1, 2, rows))
    assert list(zip(*(column.cells for column in table.columns), strict=True)) == [
        ("encoder", "k = 3", "62.50 ± 17.68", top5, "2") for top5 in ("", "85.00 ± 7.07")
    ]


@pytest.mark.parametrize(
    ("name", "there", "chosen"),
    [("auto", True, "cuda"), ("auto", False, "cpu"), ("cpu", True, "cpu"), ("cuda", True, "cuda"),
     ("cuda", False, None), ("tpu", True, None)],
)  # fmt: skip
def test_devices_of_evaluations(monkeypatch, name: str, there: bool, chosen: str | None):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: there)
    if chosen is None:
        with pytest.raises(ValueError, match="--device"):
            evaluate_commands._device(name)
    else:
        assert evaluate_commands._device(name) == chosen


def test_numbers_that_cannot_be_written_are_refused_before_the_work(evaluating: Calls):
    Path("folder").mkdir()
    for target, message in (("folder", "is a folder"), ("absent/x.json", "no folder absent")):
        command = ["evaluate", "knn", "first.pt", "--data", "x", "--json", target]
        assert message in invoke(*command, code=2)
    assert not evaluating["evaluate_knn"]


def test_encoders_of_several_architectures_or_none_are_refused(evaluating: Calls):
    output = invoke("evaluate", "knn", "first.pt", "second.pt", "--data", "x", "--random", code=2)
    assert "--random needs the architecture alone" in output
    for wrong in ([], ["--dataset", "digits", "--data", "x"]):
        assert "give either" in invoke("evaluate", "knn", "first.pt", *wrong, code=2)
    output = invoke("evaluate", "knn", "first.pt", "--data", "x", "--data-dir", "y", code=2)
    assert "--data-dir belongs to --dataset" in output


# Evaluations.

# option: (arguments, where what is passed, its value)
SHARED: dict[str, Case] = {
    "checkpoints": ("second.pt", "load_encoder.path", Path("second.pt")),
    "dataset": ("--dataset digits", "load.name", "digits"),
    "data_dir": ("--dataset digits --data-dir there", "load.data_dir", Path("there")),
    "data": ("--data images", "folder_splits.folder", Path("images")),
    "test_fraction": ("--test-fraction 0.375", "folder_splits.test_fraction", 0.375),
    "split_seed": ("--split-seed 5", "folder_splits.seed", 5),
    "allow_symlinks": ("--allow-symlinks", "folder_splits.allow_symlinks", True),
    "encoder": ("--encoder resnet18", "load_encoder.encoder", "resnet18"),
    "image_size": ("--image-size 40", "load_encoder.image_size", 40),
    "seeds": ("--seeds 4,2", "protocol.seeds", (4, 2)),
    "random": ("--random", "protocol.random", True),
    "baselines": ("--baselines", "protocol.baselines", True),
    "on_bad_image": ("--on-bad-image skip", "Reading.on_bad_image", "skip"),
    "reduced_decoding": ("--reduced-decoding", "Reading.reduced_decoding", True),
    "workers": ("--workers 3", "Reading.workers", 3),
    "device": ("--device cpu", "Reading.device", "cpu"),
    "chunk": ("--chunk 17", "Reading.chunk", 17),
}
NEAREST: dict[str, Case] = {
    "k": ("--k 3,7", "protocol.neighbours", (3, 7)),
    "temperature": ("--temperature 0.5", "protocol.temperature", 0.5),
}


def of_settings(settings: type, **options: tuple[str, Any]) -> dict[str, Case]:
    """{option: (setting, value)} of a protocol: that setting alone differs from the defaults."""
    return {
        option: (
            f"--{option.replace('_', '-')} {value}", "protocol.settings", settings(**{name: value})
        )
        for option, (name, value) in options.items()
    }  # fmt: skip


PROTOCOLS: dict[str, dict[str, Case]] = {
    "knn": NEAREST,
    "transfer": NEAREST,
    "linear": {
        "features": ("--features cached", "protocol.features", "cached"),
        "stages": ("--stages", "protocol.names", None),
        "stage_dimensions": ("--stage-dimensions 77", "protocol.dimensions", 77),
        **of_settings(
            LinearSettings, epochs=("epochs", 3), batch_size=("batch_size", 9),
            lr=("learning_rate", 0.7), stage_lr=("stage_learning_rate", 0.6),
        ),
    },
    "finetune": {
        "fraction": ("--fraction 0.25", "protocol.fraction", 0.25),
        "subset_seed": ("--subset-seed 8", "protocol.subset_seed", 8),
        **of_settings(
            FinetuneSettings, epochs=("epochs", 3), batch_size=("batch_size", 9),
            lr_backbone=("backbone_learning_rate", 0.6), weight_decay=("weight_decay", 0.1),
            lr_classifier=("classifier_learning_rate", 0.7),
        ),
    },
}  # fmt: skip
WRITTEN = {"json_file": "test_numbers_are_written_where_requested"}


@pytest.fixture
def evaluating(monkeypatch, tmp_path: Path) -> Calls:
    """What is behind `evaluate` is recorded; nothing is computed."""
    monkeypatch.chdir(tmp_path)
    for name in ("first.pt", "second.pt"):
        Path(name).write_bytes(name.encode())
    row = Score("encoder", "k = 3", (0.5,))
    result = Evaluation("knn", "patterns", 8, 4, 2, (row,))
    pretrained = SimpleNamespace(
        encoder="network", name="small", image_size=8, channels=1, mean=(0.3,), std=(0.2,),
        metadata={},
    )  # fmt: skip
    splits = SimpleNamespace(in_memory=False)
    return recorded(monkeypatch, {
        (checkpoints, "load_encoder"): lambda *a, **k: pretrained,
        (data, "load"): lambda *a: "set",
        (evaluation, "folder_splits"): lambda *a, **k: splits,
        (evaluation, "dataset_splits"): lambda _: splits,
        (evaluation, "Reading"): None,
        **{(evaluation, f"evaluate_{name}"): lambda *a, **k: result for name in PROTOCOLS},
    })  # fmt: skip


def evaluate(calls: Calls, protocol: str, *arguments: str) -> Calls:
    for seen in calls.values():
        seen.clear()
    source = [] if "--dataset" in arguments or "--data" in arguments else ["--data", "folder"]
    invoke("evaluate", protocol, "first.pt", *source, *arguments)
    return {**calls, "protocol": calls[f"evaluate_{protocol}"]}


@pytest.mark.parametrize(
    ("protocol", "option"),
    [(protocol, option) for protocol in PROTOCOLS for option in SHARED | PROTOCOLS[protocol]],
)
def test_evaluate(protocol: str, option: str, evaluating: Calls):
    arguments, place, value = (SHARED | PROTOCOLS[protocol])[option]
    plain = passed(evaluate(evaluating, protocol), place)
    # The automatic device of a machine without a GPU is the CPU; else the value is another.
    assert option == "device" or plain != value
    calls = evaluate(evaluating, protocol, *arguments.split())
    assert passed(calls, place) == value
    # Nothing else is passed in another way than without the option.
    (own, *_) = calls["protocol"]
    assert (own["encoder"], own["form"].size, own["form"].mean) == ("network", (8, 8), (0.3,))
    assert own["reading"].bad.policy == ("skip" if option == "on_bad_image" else "error")


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_evaluate_without_options_has_the_protocols_defaults(protocol: str, evaluating: Calls):
    calls = evaluate(evaluating, protocol)
    (received,) = calls["protocol"]
    (split,) = calls["folder_splits"]
    assert (split["test_fraction"], split["seed"], split["allow_symlinks"]) == (0.2, 0, False)
    nearest = {"neighbours": None, "temperature": evaluation.knn.TEMPERATURE}
    plain = {
        "knn": nearest,
        "transfer": nearest,
        "linear": {
            "features": "auto", "names": ("average pool",), "dimensions": 9000, "settings": None
        },
        "finetune": {"fraction": 0.01, "subset_seed": 0, "settings": FinetuneSettings()},
    }[protocol]  # fmt: skip
    shared = {"seeds": (0,), "random": False, "baselines": False}
    assert {name: received[name] for name in plain | shared} == plain | shared
    (reading,) = calls["Reading"]
    assert (reading["workers"], reading["chunk"], reading["on_bad_image"]) == (None, 256, "error")
    assert reading["reduced_decoding"] is False


def test_baselines_are_computed_once(evaluating: Calls):
    calls = evaluate(evaluating, "knn", "second.pt", "--baselines")
    assert [received["baselines"] for received in calls["protocol"]] == [True, False]
    paths = [received["path"] for received in calls["load_encoder"]]
    assert paths == [Path("first.pt"), Path("second.pt")]


def test_numbers_are_written_where_requested(evaluating: Calls):
    evaluate(evaluating, "knn", "--json", "scores.json")
    written = json.loads(Path("scores.json").read_text())
    assert (written["format"], written["protocol"]) == ("barlow_fast.evaluation", "knn")
    assert written["encoders"][0]["path"] == "first.pt"
    assert written["input"]["channels"] == 1
    evaluate(evaluating, "knn")
    assert {path.name for path in Path().iterdir()} == {"first.pt", "second.pt", "scores.json"}


def test_a_size_that_nobody_reported_does_not_resize_images_in_memory():
    pretrained = SimpleNamespace(
        image_size=32, channels=3, mean=(0.1,), std=(0.2,), metadata={"assumed": ["image_size"]}
    )
    for in_memory, expected_size in ((True, None), (False, (32, 32))):
        splits = SimpleNamespace(in_memory=in_memory)
        assert evaluate_commands._form(pretrained, splits).size == expected_size
    pretrained.metadata = {}
    assert evaluate_commands._form(pretrained, SimpleNamespace(in_memory=True)).size == (32, 32)


# Images.

# option: (arguments, where what is passed, its value)
OPENED: dict[str, Case] = {
    "source": ("folder", "open_source.spec", "folder"),
    "split": ("--split val", "open_source.split", "val"),
    "data_dir": ("--data-dir there", "open_source.data_dir", Path("there")),
    "allow_symlinks": ("--allow-symlinks", "open_source.allow_symlinks", True),
}
IMAGES: dict[str, dict[str, Case]] = {
    "check": {
        **OPENED,
        "workers": ("--workers 3", "bad_images.workers", 3),
        "json_file": ("--json bad.json", "write_report.path", Path("bad.json")),
    },
    "pack": {
        **OPENED,
        "target": ("target", "pack.target", Path("target")),
        "size": ("--size 40", "pack.size", 40),
        "max_side": ("--max-side 50", "pack.max_side", 50),
        "quality": ("--quality 30", "pack.quality", 30),
        "shard_bytes": ("--shard-bytes 3M", "pack.shard_bytes", 3 * 2**20),
        "on_bad_image": ("--on-bad-image skip", "pack.on_bad_image", "skip"),
        "workers": ("--workers 3", "pack.workers", 3),
    },
    "show": {
        **OPENED,
        "preset": ("--preset digits", "sheet.views", data.PRESETS["digits"]),
        "views": ("--views 4", "sheet.views", multicrop.of_count(data.PRESETS["imagenet"], 4)),
        "small_views": (
            "--small-views 2",
            "sheet.views",
            multicrop.with_small(data.PRESETS["imagenet"], 2),
        ),
        "small_size": (
            "--small-views 1 --small-size 64",
            "sheet.views",
            multicrop.with_small(data.PRESETS["imagenet"], 1, 64),
        ),
        "output": ("--output here.png", "write_sheet.path", Path("here.png")),
        "count": ("--count 3", "sheet.count", 3),
        "seed": ("--seed 4", "sheet.seed", 4),
        "epoch": ("--epoch 5", "sheet.epoch", 5),
    },
}
# Without them there is no command, so they have no default to compare with.
REQUIRED = {"source": "folder", "target": "target", "preset": "--preset imagenet"}
DEFAULTS = {
    "open_source": {"split": None, "data_dir": None, "allow_symlinks": False},
    "bad_images": {"workers": None},
    "pack": {
        "size": None, "max_side": None, "quality": 95, "shard_bytes": 2**28,
        "on_bad_image": "error", "workers": None,
    },
    "sheet": {"count": 8, "seed": 0, "epoch": 0},
    "write_sheet": {"path": Path("sheet.png")},
}  # fmt: skip


@pytest.fixture
def reading(monkeypatch, tmp_path: Path) -> Calls:
    """What is behind `data` is recorded; nothing is read."""
    monkeypatch.chdir(tmp_path)

    class Images(list):
        name, classes = "images", None

    return recorded(monkeypatch, {
        (sources, "open_source"): lambda *a, **k: Images([1, 2]),
        (data.check, "bad_images"): lambda *a: iter(()),
        (data.check, "write_report"): lambda *a: iter(()),
        (data.pack, "pack"): lambda *a, **k: Packed(2, 0, 0, 1, 99),
        (data.show, "sheet"): lambda *a, **k: ("picture", []),
        (data.show, "write_sheet"): lambda *a: None,
    })  # fmt: skip


@pytest.mark.parametrize(
    ("command", "option"), [(command, option) for command in IMAGES for option in IMAGES[command]]
)
def test_data(command: str, option: str, reading: Calls):
    arguments, place, value = IMAGES[command][option]
    required = {name: given for name, given in REQUIRED.items() if name in IMAGES[command]}
    if option in REQUIRED:
        required[option], arguments = arguments, ""
    else:
        invoke("data", command, *" ".join(required.values()).split())
        for name, calls in reading.items():
            if calls and name in DEFAULTS:
                expected = DEFAULTS[name]
                assert {key: calls[-1][key] for key in expected} == expected
    invoke("data", command, *" ".join([*required.values(), arguments]).split())
    assert passed(reading, place) == value


@pytest.mark.parametrize(
    ("text", "count"),
    [("1000", 1000), ("7K", 7 * 1024), ("7k", 7 * 1024), ("64M", 2**26), ("1G", 2**30),
     ("2GiB", 2**31), ("3MB", 3 * 2**20), (" 5 ", 5)],
)  # fmt: skip
def test_sizes_have_units(text: str, count: int):
    assert data_commands._bytes(text) == count


def test_bad_images_are_listed_up_to_a_number(reading: Calls, monkeypatch):
    bad = [BadImage(n, f"image {n}", "none") for n in range(data_commands.ROWS + 2)]
    monkeypatch.setattr(data.check, "bad_images", lambda *a: iter(bad))
    output = invoke("data", "check", "folder", code=1)
    assert f"image {data_commands.ROWS - 1} " in output
    assert f"image {data_commands.ROWS} " not in output
    assert "and 2 more" in output
    assert f"{data_commands.ROWS + 2} of 2 images cannot be read" in output


# Exports, and what remains.

EXPORT: dict[str, Case] = {
    "checkpoint": ("", "load_encoder.path", Path("in.pt")),
    "out": ("", "export.path", Path("out.pth")),
    "format": ("--format timm", "export.format", "timm"),
    "encoder": ("--encoder convnext_tiny", "load_encoder.encoder", "convnext_tiny"),
    "channels": ("--channels 1", "load_encoder.channels", 1),
    "image_size": ("--image-size 40", "load_encoder.image_size", 40),
}


@pytest.mark.parametrize("option", EXPORT)
def test_export(option: str, monkeypatch, tmp_path: Path):
    monkeypatch.chdir(tmp_path)
    Path("out.pth").write_bytes(b"1234")
    loaded = SimpleNamespace(
        name="small", format="torchvision", features=8, channels=1, image_size=8,
        metadata={"assumed": []},
    )  # fmt: skip
    calls = recorded(monkeypatch, {
        (checkpoints, "load_encoder"): lambda *a, **k: loaded,
        (checkpoints, "export"): lambda *a: None,
    })  # fmt: skip
    arguments, place, value = EXPORT[option]
    invoke("export", "in.pt", "out.pth")
    assert calls["export"] == [
        {"pretrained": loaded, "path": Path("out.pth"), "format": "torchvision"}
    ]
    assert (passed(calls, place) != value) == bool(arguments)
    invoke("export", "in.pt", "out.pth", *arguments.split())
    assert passed(calls, place) == value


def test_the_format_is_reported_by_the_name(monkeypatch):
    from barlow_fast.checkpoints.exporting import SUFFIXES

    assert SUFFIXES == {
        ".pth": "torchvision", ".pt": "torchvision", ".safetensors": "safetensors", ".onnx": "onnx"
    }  # fmt: skip
    assert "--format must be one of" in invoke("export", "in.pt", "out.zip", code=2)


@pytest.mark.parametrize("arguments", [[], ["--shapes", "512x1024", "--help", "x"]])
def test_tune_passes_everything_on(monkeypatch, arguments: list[str]):
    calls = record_calls(monkeypatch, tune_command, "tune", lambda _: 3)
    invoke("tune", *arguments, code=3)
    assert calls == [{"arguments": arguments}]


def test_the_versions_are_one_line():
    line = invoke("--version")
    assert line.startswith(f"barlow-fast {barlow_fast.__version__}, torch {torch.__version__}, ")
    assert "native kernels" in line
    assert line.count("\n") == 1


# ---- help


def options() -> list[Any]:
    """(option as it is typed, parameter) of every command."""
    found = []
    for words, command in commands().items():
        for parameter in command.params:
            found.append(pytest.param(parameter, id=f"{words} {parameter.opts[0]}"))
    return found


# Without a value they do nothing, and say so by having none.
NOTHING = {"config_file", "files", "dataset", "data", "resume", "json_file", "version"}


@pytest.mark.parametrize("parameter", options())
def test_every_help_text_is_a_phrase_with_its_default(parameter: Any):
    text = parameter.help
    assert re.fullmatch(r"[A-Z].*[^.]\.", text), text
    assert "efault:" not in text, "beside the text, as [default: ...]"
    # Longer sentences are for the pages.
    assert len(text) <= 200
    shown = parameter.default is not None and parameter.show_default is not False
    received = isinstance(parameter.show_default, str)
    assert parameter.required or shown or received or parameter.name in NOTHING


CHOICES: dict[tuple[str, str], Any] = {
    ("pretrain", "dataset"): data.DATASETS,
    ("pretrain", "views"): data.PRESETS,
    ("pretrain", "loss"): LOSSES,
    ("pretrain", "on_bad_image"): POLICIES,
    ("pretrain", "loader"): ("auto", *data.loader.LOADERS),
    ("pretrain", "precision"): training.config.PRECISIONS,
    ("pretrain", "compile_mode"): training.config.COMPILE,
    ("pretrain", "backend"): ("auto", *barlow_fast.kernels.KERNEL_SETS),
    ("pretrain", "device"): ("auto", "cpu", "cuda"),
    ("evaluate knn", "dataset"): data.DATASETS,
    ("evaluate knn", "on_bad_image"): POLICIES,
    ("evaluate knn", "device"): ("auto", "cpu", "cuda"),
    ("evaluate linear", "features"): evaluation.linear.FEATURES,
    ("data pack", "on_bad_image"): POLICIES,
    ("data show", "preset"): data.PRESETS,
    ("export", "format"): checkpoints.FORMATS,
}


@pytest.mark.parametrize(("command", "name"), CHOICES)
def test_help_names_every_choice(command: str, name: str):
    (text,) = (p.help for p in commands()[command].params if p.name == name)
    listed = re.split(r"[^\w-]+", text)
    assert not [choice for choice in CHOICES[command, name] if choice not in listed]


def test_defaults_in_help_are_those_of_the_functions():
    """Those that are texts, because what is not given has a meaning of its own."""
    found = {name: {p.name: p for p in command.params} for name, command in commands().items()}
    shown = {(name, option): p.show_default for name in found for option, p in found[name].items()}
    linear, finetune = LinearSettings(), FinetuneSettings()
    for option, value in (
        ("epochs", linear.epochs), ("batch_size", linear.batch_size), ("lr", linear.learning_rate),
        ("stage_lr", linear.stage_learning_rate),
    ):  # fmt: skip
        assert shown["evaluate linear", option] == str(value)
    for protocol in PROTOCOLS:
        assert shown[f"evaluate {protocol}", "test_fraction"] == "0.2"
        assert shown[f"evaluate {protocol}", "split_seed"] == "0"
    neighbours = ",".join(map(str, evaluation.knn.NEIGHBOURS))
    assert shown["evaluate knn", "k"].startswith(f"{neighbours},")
    for command in ("pretrain", "data check", "data pack", "evaluate knn"):
        assert f"at most {data.parallel.MOST_THREADS}" in shown[command, "workers"]
    assert f"1 to {data.show.MOST}" in found["data show"]["count"].help
    for option in ("epochs", "batch_size"):
        assert found["evaluate finetune"][option].default == getattr(finetune, option)
    loader, policy, timeout = (
        found["pretrain"][option].default for option in ("loader", "on_bad_image", "worker_timeout")
    )
    assert training.Feeding(loader, None, policy, timeout) == training.Feeding()


@pytest.mark.parametrize("flags", ["avx512_bf16", "amx_bf16", "avx2"])
def test_the_precision_that_help_promises(monkeypatch, flags: str):
    (text,) = (p.help for p in commands()["pretrain"].params if p.name == "precision")
    assert "bf16 on GPUs and CPUs that compute in it (CPUs: AVX-512 BF16 or AMX)" in text
    monkeypatch.setattr(Path, "read_text", lambda *_: f"flags : fma {flags}")
    found = training.estimate.resolved_precision(PretrainConfig(), torch.device("cpu"))
    assert (found == torch.bfloat16) == (flags != "avx2")


@pytest.mark.parametrize("loss", LOSSES)
def test_a_legend_has_the_words_of_the_log(capsys, loss: str):
    from barlow_fast.training.reporting import progress

    record = {
        "loss": 1.0, **dict.fromkeys(LOSSES[loss].terms, 0.5), "knn": 0.9,
        "effective_rank": 7.0, "images_per_second": 3.0, "data_wait_share": 0.1, "epoch": 1,
    }  # fmt: skip
    report = progress.ProgressReport(Console(width=200))
    trainer = SimpleNamespace(
        config=configure("digits", loss=loss), step=3, total_steps=9, epoch=0, scores=True,
        steps_per_epoch=3,
    )  # fmt: skip
    report.started(trainer)
    report.epoch_ended(trainer, record)
    line = capsys.readouterr().out
    words = set(re.findall(r"[A-Za-z][A-Za-z-]*(?: wait)?", line))
    plain = {"epoch", "images", "s", "left"}
    legend = pretrain_commands.words_of(loss)
    assert words - plain == set(legend)
    help_text = " ".join(invoke("pretrain", "--help").split())
    assert all(text in help_text for text in legend.values())


@pytest.mark.parametrize("option", ["--epochs", "--batch-size", "--lr", "--stage-lr"])
def test_settings_that_cached_features_do_not_use_are_refused(
    evaluating: Calls, monkeypatch, option: str
):
    calls = evaluate(evaluating, "linear", option, "3")
    assert calls["protocol"][0]["settings"] is not None
    refused = "are of --features augmented; cached features"
    command = ["evaluate", "linear", "first.pt", option, "3"]
    assert refused in invoke(*command, "--data", "x", "--features", "cached", code=2)
    in_memory = SimpleNamespace(in_memory=True)
    monkeypatch.setattr(evaluation, "dataset_splits", lambda _: in_memory)
    assert refused in invoke(*command, "--dataset", "digits", code=2)
    invoke(*command, "--dataset", "digits", "--features", "augmented")


def test_a_split_of_a_folder_is_not_of_a_data_set(evaluating: Calls):
    for given in (["--test-fraction", "0.5"], ["--split-seed", "3"]):
        output = invoke("evaluate", "knn", "first.pt", "--dataset", "digits", *given, code=2)
        assert "--test-fraction and --split-seed belong to --data" in output


def test_doctor_ends_with_the_status_of_its_report(monkeypatch):
    from barlow_fast import doctor

    for status in (0, 1):
        monkeypatch.setattr(doctor, "report", lambda status=status: status)
        invoke("doctor", code=status)


TABLES: dict[str, set[str]] = {
    "pretrain": set(PRETRAIN),
    "export": set(EXPORT),
    "doctor": set(),
    "tune": set(),
    **{f"data {command}": set(cases) for command, cases in IMAGES.items()},
    **{f"evaluate {name}": {*SHARED, *WRITTEN, *cases} for name, cases in PROTOCOLS.items()},
}


def test_every_command_has_a_table():
    assert set(commands()) == set(TABLES)


@pytest.mark.parametrize("name", TABLES)
def test_every_option_of_a_command_has_a_case(name: str):
    assert_covered(commands()[name], TABLES[name])
