"""`barlow-fast pretrain`, as a user meets it."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
import typer
import yaml
from commands import pretrain
from ended import completed
from PIL import Image
from runs import lines_of

from barlow_fast import cli
from barlow_fast.cli.app import app
from barlow_fast.training import PretrainConfig, load_checkpoint, run_folder

pytestmark = pytest.mark.usefixtures("undrawn")
SMALL = ["--epochs", "2", "--batch-size", "64", "--projector", "32-96"]


@pytest.fixture(scope="module")
def finished(tmp_path_factory) -> tuple[Path, str]:
    """(folder, output) of a small run."""
    folder = tmp_path_factory.mktemp("run") / "out"
    return folder, pretrain(*SMALL, "--out", folder).output


def test_a_run_leaves_checkpoint_figure_and_log(finished):
    folder, output = finished
    left = {p.name for p in folder.iterdir()}
    assert {"checkpoint.pt", "config.yaml", "figure.png", "log.jsonl", "report.html"} <= left
    assert not [name for name in left if name.startswith(".")]
    state = load_checkpoint(folder / "checkpoint.pt")
    assert state["config"]["projector"] == [32, 96]
    assert state["step"] == 2 * (1197 // 64)
    assert (folder / "figure.png").read_bytes().startswith(b"\x89PNG")
    lines = lines_of(folder / "log.jsonl")
    assert [line["event"] for line in lines] == ["started", "epoch", "epoch"]
    for name in ("checkpoint.pt", "figure.png", "log.jsonl"):
        assert str(folder / name) in output


def test_it_says_what_it_does(finished):
    _, output = finished
    for part in (
        "1197 training and 600 test images",
        "two 64 x 96 ",
        "form       gram",
        "images/s",
        "random weights",
        "raw pixels",
        "log       loss: mean over the epoch's steps; invariance: squared",
    ):
        assert part in output, part
    # Without a terminal there is no bar, only lines.
    assert "\r" not in output
    assert "\x1b" not in output
    assert len(output.splitlines()) < 25


def test_quiet_prints_nothing(tmp_path: Path):
    assert pretrain(*SMALL, "--epochs", 1, "--out", tmp_path / "out", "--quiet").output == ""


def test_resuming_a_finished_run_changes_nothing(finished):
    folder, _ = finished
    before = load_checkpoint(folder / "checkpoint.pt")
    pretrain("--resume", folder / "checkpoint.pt")
    after = load_checkpoint(folder / "checkpoint.pt")
    assert after["step"] == before["step"]
    assert all(torch.equal(v, after["model"][k]) for k, v in before["model"].items())


HAS_DALI = find_spec("nvidia") is not None and find_spec("nvidia.dali") is not None

# arguments: what stderr says. `FINISHED` is the folder of a run that has ended.
ERRORS = {
    "--batch-size 1198": "1197 training images",
    "--batch-size 1": "at least 2",
    "--dataset cifar": "unknown data set 'cifar'",
    "--dataset fashion-mnist --data-dir foreign": "does not hold",
    "--dataset fashion-mnist --data-dir corrupt": "train-images-idx3-ubyte.gz",
    "--data-dir foreign": "no data directory",
    "--projector 512,1024": "--projector",
    "--dim 0": "projector",
    "--projector 8-8 --dim 8": "give one",
    "--lr -1": "learning_rate",
    "--epochs 0": "epochs",
    "--precision fp8": "precision",
    "--backend abacus": "backend",
    "--device tpu": "--device",
    "--resume none.pt": "none.pt",
    "--resume damaged.pt": "damaged.pt",
    "--resume FINISHED/checkpoint.pt --dim 128": "projector",
    "--resume FINISHED/checkpoint.pt --seed 4 --epochs 9": "seed",
    "--out FINISHED": "--resume",
    "--out file": "cannot write",
    "--out file/deeper": "cannot write",
    "--loader bogus": "loader must be one of auto, arrays, pil, dali",
    "--loader dali": "(loader='arrays')" if HAS_DALI else "NVIDIA DALI is not installed",
    "--on-bad-image ignore": "on_bad_image must be one of error, skip",
    "--worker-timeout inf": "timeout must be at least 0 and finite",
    "--views nothing": "--views must be one of",
    "--views cifar": "have 3 channels, digits has 1",
    "--preset files --data foreign": "holds no images",
    "--data photographs --dataset digits": "--data is instead of a data set",
    "--data photographs --views cifar": "batch_size 64 is larger",
    "--data photographs --views cifar --batch-size 2 --loader arrays": "images in memory",
    "--data photographs batch_size=2 --out photographs/run": "lies in the folder of the images",
    "--projector 2000000-2000000": "the run does not fit",
    "projector=[131072,131072,131072]": "a narrower --projector",
    "--config mine/config.yaml --out mine": "config.yaml is there already",  # written by hand
}


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with files that a run cannot use."""
    monkeypatch.chdir(tmp_path)
    for name in ("corrupt", "foreign", "mine", "photographs"):
        Path(name).mkdir()
    Path("damaged.pt").write_bytes(b"PK\x03\x04")
    Path("corrupt/train-images-idx3-ubyte.gz").write_bytes(b"\x1f\x8bnot gzip")
    Path("corrupt/train-labels-idx1-ubyte.gz").write_bytes(b"")
    Path("foreign/notes.txt").touch()
    Path("file").touch()
    Path("mine/config.yaml").write_text("# why\nepochs: 2\n")
    for number in range(3):
        Image.new("RGB", (9, 9)).save(f"photographs/{number}.png")
    return tmp_path


@pytest.mark.parametrize("command", ERRORS)
def test_errors_are_one_line_and_exit_with_2(here: Path, finished, command: str):
    arguments = command.replace("FINISHED", str(finished[0])).split()
    if "--out" not in arguments and "--resume" not in arguments:
        arguments += ["--out", "out"]
    # A plan refuses what a run refuses.
    for planned in (["--dry-run"], []):
        stderr = pretrain(*arguments, *planned, code=2).stderr
        assert ERRORS[command] in stderr
        *plan, _ = stderr.strip().splitlines()
        assert not plan or (planned and "does not fit" in stderr)
        assert not Path("out").exists()


def test_the_settings_that_a_plan_prints_are_those_of_the_run(tmp_path: Path, monkeypatch):
    """`--dry-run > run.yaml` and `--config run.yaml`; the run keeps them in a file of its own."""
    monkeypatch.chdir(tmp_path)
    chosen = ["--preset", "digits", *SMALL, "--epochs", 1, "--seed", 3, "compile=off"]
    chosen += ["bias_learning_rate=0.001", "--micro-batch-size", 32, "evaluate_every=4"]
    planned = pretrain("--dry-run", *chosen)
    assert not list(tmp_path.iterdir())
    Path("run.yaml").write_text(planned.stdout)
    assert yaml.safe_load(planned.stdout).keys() == PretrainConfig().to_dict().keys()
    assert pretrain("--dry-run", "--config", "run.yaml").stdout == planned.stdout
    assert pretrain("--dry-run", "--quiet", *chosen).output == planned.stdout
    pretrain("--config", "run.yaml", "--out", "out")
    kept = Path("out/config.yaml").read_text()
    assert kept == planned.stdout
    assert load_checkpoint(Path("out/checkpoint.pt"))["config"] == yaml.safe_load(kept)
    pretrain("--config", "out/config.yaml", "--out", "out", "--resume", "auto")
    large = pretrain("--preset", "imagenet-1000ep", "--dry-run", "--ignore-memory", "lambd=0.02")
    for part in ("625000 in all", "weights 1.6", "about", "GiB", "form       gram", "lambd: 0.02"):
        assert part in large.output, part
    Path("large.yaml").write_text(large.stdout)
    again = pretrain("--config", "large.yaml", "--dry-run", "--ignore-memory")
    assert again.stdout == large.stdout
    # A data set that is missing and its views.
    missing = pretrain("--dry-run", "--dataset", "cifar10", "--views", "nothing", code=2)
    assert missing.stdout == ""
    assert "--views must be one of" in missing.stderr


def test_a_folder_without_permission(tmp_path: Path):
    if os.geteuid() == 0:
        pytest.skip("root may write everywhere")
    tmp_path.chmod(0o500)
    assert "cannot write" in pretrain("--out", tmp_path / "out", code=2).stderr


def test_runs_get_folders_of_their_own(tmp_path: Path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for _ in range(2):
        pretrain(*SMALL, "--epochs", 1, "--quiet")
    assert sorted(p.name for p in (tmp_path / "runs").iterdir()) == ["digits", "digits-2"]


def test_divergence_exits_with_1(tmp_path: Path):
    result = pretrain(*SMALL, "--lr", 1e30, "--out", tmp_path / "out", code=1)
    assert "diverged at step" in result.stderr


@pytest.fixture
def bare(monkeypatch: pytest.MonkeyPatch) -> Callable[[str], int]:
    """The status of the program where a library is missing."""
    monkeypatch.setattr(cli, "REQUIRED", ("typer", "a_library_that_is_not_there"))

    def run(arguments: str) -> int:
        monkeypatch.setattr(sys, "argv", ["barlow-fast", *arguments.split()])
        try:
            cli.main()
        except SystemExit as stopped:
            return stopped.code
        return 0

    return run


def test_missing_libraries_are_named_with_the_extra(bare, capsys):
    assert bare("pretrain") == 1
    printed = capsys.readouterr().err
    assert printed.startswith("barlow-fast: a_library_that_is_not_there not found")
    assert "pip install 'barlow-fast[train]'" in printed


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ("--help", "pretrain   Pretrain an encoder"),
        ("--version", "barlow-fast 0."),
        ("doctor --help", "Report what is installed"),
    ],
)
def test_what_works_with_torch_alone(bare, capsys, arguments: str, words: str):
    """What is missing, and how to get it, is said where it matters."""
    assert bare(arguments) == 0
    printed = capsys.readouterr().out
    assert words in printed
    assert ("pip install 'barlow-fast[train]'" in printed) == ("help" in arguments)


def test_help_without_libraries_lists_every_command():
    group = typer.main.get_command(app)
    for name, command in group.commands.items():
        summary = command.help.split("\n")[0].split(";")[0].rstrip(".")
        assert f"  {name:<10} {summary}" in cli.WITHOUT_EXTRA
    assert f"Usage: barlow-fast doctor\n\n{group.commands['doctor'].help}" == cli.DOCTOR


def test_shells_complete_options(monkeypatch, capsys):
    """An empty word too, which stands for no mistake then."""
    for words, found in (("pretrain --lam", "--lambd"), ("evaluate ", "finetune")):
        monkeypatch.setenv("_BARLOW_FAST_COMPLETE", "complete_bash")
        monkeypatch.setenv("COMP_WORDS", f"barlow-fast {words}")
        monkeypatch.setenv("COMP_CWORD", str(len(words.split(" "))))
        with pytest.raises(SystemExit) as stopped:
            app(prog_name="barlow-fast")
        assert stopped.value.code == 0
        assert found in capsys.readouterr().out.splitlines()


@pytest.mark.parametrize("installed", [True, False])
def test_doctor_needs_no_extra_and_passes_its_exit_code_on(bare, monkeypatch, installed: bool):
    monkeypatch.setitem(sys.modules, "barlow_fast.doctor", SimpleNamespace(report=lambda: 3))
    if installed:
        monkeypatch.setattr(cli, "REQUIRED", ("typer",))
    assert bare("doctor") == 3


def test_the_core_imports_without_the_extra():
    """`import barlow_fast` and its loss need torch alone."""
    program = (
        "import sys\n"
        "for name in ('typer', 'rich', 'matplotlib', 'sklearn', 'torchvision'):\n"
        "    sys.modules[name] = None\n"
        "import barlow_fast, barlow_fast.cli\n"
        "import barlow_fast.data, barlow_fast.training, barlow_fast.evaluation\n"
    )
    completed(sys.executable, "-c", program).check_returncode()


@pytest.mark.slow
def test_packages_name_the_extra_that_they_need():
    for name in ("data", "training", "evaluation"):
        program = f"import sys; sys.modules['numpy'] = None; import barlow_fast.{name}"
        done = completed(sys.executable, "-c", program)
        assert done.returncode == 1
        assert "need numpy: pip install 'barlow-fast[train]'" in done.stderr.splitlines()[-1]


def test_results_beside_the_parts_of_the_images_are_refused(tmp_path):
    """Their figures would be one more part in the next run."""
    config, data = SimpleNamespace(dataset=str(tmp_path)), SimpleNamespace(root=tmp_path / "train")
    with pytest.raises(ValueError, match=r"--out .*run lies in the folder of the images"):
        run_folder.check_out(tmp_path / "run", config, data)
    run_folder.check_out(tmp_path.parent / "run", config, data)
