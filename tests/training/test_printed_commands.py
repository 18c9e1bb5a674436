"""Every command that a run prints, in its report, at a stop and in errors, can be run as it is; so
can those of the documentation, as far as their files are there."""

from __future__ import annotations

import contextlib
import gzip
import html
import re
import shlex
import struct
from pathlib import Path
from types import SimpleNamespace

import click
import numpy as np
import pytest
import typer
from click.testing import Result
from commands import invoke
from sources import write_images

from barlow_fast.cli import exits
from barlow_fast.cli import pretrain as pretrain_commands
from barlow_fast.cli.app import app
from barlow_fast.training import load_checkpoint, reporting, stopping
from barlow_fast.training.reporting import Report
from barlow_fast.training.reporting.commands import resume_command
from barlow_fast.training.reporting.page import write_page

ROOT = Path(__file__).resolve().parents[2]
SMALL = "--epochs 1 --batch-size 32 --projector 16-24 encoder_widths=[4,8] precision=fp32"


def run(command: str, code: int = 0) -> Result:
    program, *arguments = shlex.split(command)
    assert program == "barlow-fast"
    return invoke(*arguments, code=code)


def named_data_set(folder: Path) -> str:
    """Fashion-MNIST's files, of random images, where only --data-dir finds them."""
    folder.mkdir()
    generator = np.random.default_rng(0)
    for part, count in (("train", 64), ("t10k", 40)):
        images = generator.integers(0, 256, (count, 28, 28), np.uint8)
        labels = np.arange(count, dtype=np.uint8) % 10
        for kind, values in (("images-idx3", images), ("labels-idx1", labels)):
            header = struct.pack(f">HBB{values.ndim}I", 0, 8, values.ndim, *values.shape)
            file = folder / f"{part}-{kind}-ubyte.gz"
            file.write_bytes(gzip.compress(header + values.tobytes(), 1))
    return f"--dataset fashion-mnist --data-dir {shlex.quote(str(folder))}"


def folder_of_files(folder: Path, *parts: str) -> str:
    for part in parts:
        write_images(folder / part, 32, 40)
    start = folder / parts[0].split("/")[0] if parts[0].startswith("train") else folder
    return f"--data {shlex.quote(str(start))} --views cifar --workers 0 --loader pil"


# name -> (the arguments of a run, made in a folder; the protocols whose commands are printed)
KINDS = {
    "digits": (lambda folder: "", ["knn", "linear"]),
    "data directory": (named_data_set, ["knn", "linear"]),
    "classes": (lambda folder: folder_of_files(folder, "a", "b"), ["knn", "linear"]),
    "train and val": (
        lambda folder: folder_of_files(folder, "train/a", "train/b", "val/a", "val/b"),
        ["knn", "linear"],
    ),
    "no labels": (lambda folder: folder_of_files(folder, "."), []),
}


@pytest.fixture
def started(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Starts a run of a kind; what is drawn of its report is the page alone."""

    def write(trainer, folder, name):
        write_page(Path(folder) / "report.html", trainer, name, {}, {})
        return Report()

    def start(name: str, *more: str, code: int = 0) -> tuple[Path, list[str], Result]:
        make, protocols = KINDS[name]
        data = make(tmp_path / "it's here")
        out = tmp_path / "my run"
        command = f"barlow-fast pretrain {SMALL} {data} --out {shlex.quote(str(out))}"
        return out, protocols, run(" ".join([command, *more]), code)

    monkeypatch.setattr(reporting, "report_run", write)
    return start


@pytest.mark.parametrize(
    "name", [pytest.param(k, marks=[pytest.mark.slow] * (k == "classes")) for k in KINDS]
)
def test_every_command_of_the_report_runs(name: str, started):
    pytest.importorskip("safetensors")
    out, protocols, _ = started(name, "--ignore-memory")
    page = (out / "report.html").read_text(encoding="utf-8")
    commands = [html.unescape(text) for text in re.findall(r"<dd><code>(.*?)</code>", page)]
    words = [shlex.split(command) for command in commands]
    assert [each[2] for each in words if each[1] == "evaluate"] == protocols
    assert [each[1] for each in words[len(protocols) :]] == ["export", "pretrain"]
    for command in commands:
        # Fewer epochs of the classifier, which is not what is looked at.
        faster = " --features cached" if " linear " in command else ""
        run(command + faster)
    assert (out / "encoder.safetensors").is_file()
    state = load_checkpoint(out / "checkpoint.pt")
    assert (state["epoch"], state["config"]["epochs"]) == (2, 2)


@pytest.mark.parametrize(
    "name", ["data directory", pytest.param("classes", marks=pytest.mark.slow)]
)
def test_the_command_printed_at_a_stop_continues(
    name: str, started, monkeypatch: pytest.MonkeyPatch
):
    @contextlib.contextmanager
    def stopped(trainer, signals):
        trainer.stop_requested = True
        yield

    with monkeypatch.context() as patched:
        patched.setattr(stopping, "stop_on_signal", stopped)
        out, _, result = started(name, "--ignore-memory", code=exits.INTERRUPTED)
    command = result.stderr.strip().split("Continue with: ")[1]
    assert "--ignore-memory" in shlex.split(command)
    run(command)
    assert load_checkpoint(out / "checkpoint.pt")["epoch"] == 1


def test_what_lists_unreadable_images_runs(tmp_path: Path):
    write_images(tmp_path / "it's" / "a", 32, 40)
    (tmp_path / "it's" / "a" / "00.png").write_bytes(b"\x89PNG\r\n\x1a\n")
    data, out = (shlex.quote(str(tmp_path / name)) for name in ("it's", "out"))
    base = f"barlow-fast pretrain {SMALL} --data {data} --batch-size 16 --views cifar"
    result = run(f"{base} --workers 0 --loader pil --out {out}", exits.FAILURE)
    (command,) = re.findall(r"`(barlow-fast data check .*)`", result.stderr)
    assert "00.png" in run(command, exits.FAILURE).output


def test_several_processes_continue_as_many():
    trainer = SimpleNamespace(
        ranks=SimpleNamespace(alone=False, size=8, nodes=2),
        checkpoint_path=Path("runs/a b/checkpoint.pt"),
        options={"workers": 3, "tensorboard": False, "ignore_memory": True, "logger": ["a", "b"]},
    )
    assert resume_command(trainer, "--epochs", "4") == (
        "torchrun --nnodes 2 --nproc_per_node 4 -m barlow_fast pretrain --resume "
        "'runs/a b/checkpoint.pt' --epochs 4 --workers 3 --no-tensorboard --ignore-memory "
        "--logger a --logger b"
    )


def test_every_option_of_a_run_is_a_setting_or_repeated():
    """What is neither in the checkpoint nor repeated would be lost in the command that resumes."""
    settings = {
        "settings", "preset", "config_file", "dataset", "files", "views", "encoder", "epochs",
        "batch_size", "micro_batch_size", "projector", "dim", "lr", "lambd", "seed", "precision",
        "backend", "compile_mode", "reduced_decoding", "small_views", "small_size", "loss",
        "mixing", "invariance", "variance", "covariance",
    }  # fmt: skip
    of_one_command = {"out", "resume", "dry_run", "quiet"}
    command = typer.main.get_command(app).commands["pretrain"]
    names = {parameter.name for parameter in command.params}
    assert names == settings | of_one_command | set(pretrain_commands.REPEATED)


PAGES = [*(ROOT / "docs").glob("*.md"), *ROOT.glob("*.md"), *(ROOT / "barlow_fast").rglob("*.md")]


def documented() -> list[tuple[str, str]]:
    lines = [(page.name, line) for page in PAGES for line in page.read_text().splitlines()]
    commands = [(page, line.split("#")[0].strip()) for page, line in lines]
    return [(page, line) for page, line in commands if re.match(r"barlow-fast [a-z]", line)]


def test_documented_commands_are_complete():
    """They parse, and an evaluation names its images; `tune` and `doctor` have parsers apart."""
    found = documented()
    assert len(found) > 15
    for page, line in found:
        command, words = typer.main.get_command(app), shlex.split(line)[1:]
        if words[0] in ("tune", "doctor"):
            continue
        while isinstance(command, click.Group):
            command = command.commands[words.pop(0)]
        context = command.make_context(line, words)
        if "checkpoints" in context.params:
            given = [context.params[name] for name in ("dataset", "data")]
            assert given.count(None) == 1, f"{page}: {line}"
