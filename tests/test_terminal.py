"""What commands print: no control character of a name, a key, an argument or an environment
variable reaches the terminal, and whatever they are given they end without a traceback."""

from __future__ import annotations

import contextlib
import io
import json
import logging
import random
import re
import shlex
import sys
import warnings
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
import typer
from ended import completed
from PIL import Image
from sources import write_encoder
from typer.testing import CliRunner

from barlow_fast import inputs, terminal
from barlow_fast.cli.app import app
from barlow_fast.data import PRESETS, datasets
from barlow_fast.data.decoding import decode_pixels
from barlow_fast.inputs import optional_library
from barlow_fast.kernels import environment
from barlow_fast.models import build_encoder
from barlow_fast.terminal import escaped, printable
from barlow_fast.training import PretrainConfig, override
from barlow_fast.training.presets import ANNOTATIONS, preset_in

RED, BELL, UP = "\x1b[31m", "\x07", "\x1b[1A"
NASTY = f"a{RED}b{BELL}c\r{UP}\x9b2Jd\u202e\u2028e"


def controls(text: str) -> set[str]:
    return {c for c in text if not c.isprintable() and c != "\n"}


def run(*arguments: object, code: int | None = None) -> str:
    result = CliRunner().invoke(app, [str(argument) for argument in arguments])
    assert isinstance(result.exception, SystemExit | None), (arguments, result.exception)
    assert "Traceback" not in result.output, arguments
    assert not controls(result.output), (arguments, controls(result.output))
    if code is not None:
        assert result.exit_code == code, result.output
    return result.output


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "200")
    return tmp_path


def folder(path: Path, name: str = "fine", content: bytes | None = None) -> Path:
    path.mkdir(parents=True, exist_ok=True)
    if content is None:
        Image.fromarray(np.zeros((9, 9, 3), np.uint8)).save(path / f"{name}.png")
    else:
        (path / f"{name}.png").write_bytes(content)
    return path


def test_characters():
    assert printable(f"a{RED}\nb") == r"a\x1b[31m\nb"
    assert escaped(f"a{RED}\nb") == "a\\x1b[31m\nb"
    assert printable(b"a\xff\x1b\xc3\xa9") == printable("a\udcff\x1b\xe9") == "a\\xff\\x1b\xe9"
    assert printable("\ud800") == r"\ud800"
    assert not controls(printable("".join(map(chr, range(0x3000)))))


PRINTED = {
    "views file": ["data", "show", "fine", "--preset", "views.yaml"],
    "output": ["data", "show", "fine", "--preset", "imagenet", "--output", f"{NASTY}.png"],
    "source": ["data", "check", NASTY],
    "folder": ["data", "check", f"nasty{RED}"],
    "bad image": ["data", "check", "bad"],
    "target": ["data", "pack", "fine", NASTY],
    "option": ["data", "check", f"--{NASTY}"],
    "command": ["data", NASTY],
    "first command": [NASTY],
    "number": ["data", "check", "fine", "--workers", NASTY],
    "bytes": ["data", "pack", "fine", "x", "--shard-bytes", NASTY],
    "preset": ["data", "show", "fine", "--preset", NASTY],
    "out": ["pretrain", "epochs=1", "--out", f"file/{NASTY}", "--batch-size", "512"],
    "setting": ["pretrain", "--dry-run", f"encoder=small{RED}"],
    "text setting": ["pretrain", "--dry-run", f"dataset={NASTY}"],
    "setting's name": ["pretrain", "--dry-run", f"{NASTY}=1"],
    "no setting": ["pretrain", "--dry-run", NASTY],
    "key": ["pretrain", "--dry-run", "--config", "keys.yaml"],
    "config": ["pretrain", "--dry-run", "--config", NASTY],
    "resumed": ["pretrain", "--resume", NASTY],
    "dataset": ["pretrain", "--dry-run", "--dataset", NASTY],
    "device": ["pretrain", "--dry-run", "--device", NASTY],
    "files": ["pretrain", "--dry-run", "--data", NASTY],
    "views": ["pretrain", "--dry-run", "--views", NASTY],
    "checkpoint": ["evaluate", "knn", NASTY, "--dataset", "digits"],
    "json": ["evaluate", "knn", "x", "--dataset", "digits", "--json", f"none/{NASTY}"],
    "neighbours": ["evaluate", "knn", "x", "--dataset", "digits", "--k", NASTY],
    "labelled": ["evaluate", "knn", "x", "--data", NASTY],
    "exported": ["export", NASTY, f"{NASTY}.pth"],
    "format": ["export", "x", "y", "--format", NASTY],
    "tuning": ["tune", f"--{NASTY}"],
}


# arguments: what the message says, beside the option or the file
MISTAKES = {
    "pretrain --dry-run lambd=abc": "lambd must be a number, got 'abc'",
    "pretrain --dry-run --config abc.yaml": "abc.yaml: lambd must be a number, got 'abc'",
    "pretrain --dry-run checkpoint_every=x": "checkpoint_every must be a whole number, or null",
    "pretrain --dry-run one_pass=maybe": "one_pass must be true or false, got 'maybe'",
    "pretrain --dry-run projector=512": "projector must be whole numbers such as [512, 512, 1024]",
    "pretrain --dry-run lr=0.1": "unknown setting 'lr'; did you mean learning_rate?",
    "pretrain --dry-run batch_size": "settings are given as name=value, such as",
    "pretrain --dry-run --lambd abc": "'--lambd'",
    "pretrain --dry-run --config none.yaml": "barlow-fast: none.yaml: No such file or directory",
    "pretrain --dry-run --config fine": "barlow-fast: fine: is a folder",
    "pretrain --dry-run --views none.yaml": "/none.yaml: No such file or directory",
    "pretrain --dry-run --out ''": "Invalid value for '--out': it is empty",
    "pretrain --dry-run --data ''": "Invalid value for '--data': it is empty",
    "pretrain --dry-run --data none": "none does not exist",
    "pretrain --dry-run --projector 8,8": "--projector takes widths",
    "pretrain --resume ''": "Invalid value for '--resume': it is empty",
    "pretrain --resume run": "run is not a file: give a checkpoint in that folder, such as run/",
    "pretrain --resume fine": "fine is not a file: it is a folder, with no checkpoint in it",
    "evaluate knn run --dataset digits": "give a checkpoint in that folder, such as run/",
    "evaluate knn '' --dataset digits": "it is empty",
    "evaluate knn x --dataset digits --json ''": "Invalid value for '--json': it is empty",
    "evaluate knn x --dataset digits --json none/x": "--json none/x: no folder none for x",
    "evaluate knn x --dataset digits --json fine": "--json fine is a folder",
    "evaluate knn x --dataset digits --json text.pt": "--json text.pt is there already and holds",
    "evaluate knn x --data two --test-fraction 2": "test_fraction must be in (0, 1), got 2",
    "export run x.pth": "give a checkpoint in that folder, such as run/",
    "data pack fine text.pt": "text.pt is a file: give a new folder",
    "data pack fine ''": "it is empty",
    "data show fine --preset imagenet --output x.jpg": "--output x.jpg: the sheet is a PNG",
    "export empty.pt x.pth": "empty.pt is not a readable checkpoint: it is empty",
    "export text.pt x.pth": "text.pt is not a readable checkpoint: it is a text",
    "export page.pt x.pth": "page.pt is not a readable checkpoint: it is a web page",
    "export pointer.pt x.pth": "it is a pointer of Git LFS",
    "export model.pt x.pth": "it is a protobuf, such as an ONNX model",
    "export keras.pt x.pth": "it is an HDF5 file",
    "export packed.pt x.pth": "it is compressed by gzip",
    "export other.pt x.pth": "it begins with 01 02 03 04",
}
FILES = {
    "empty.pt": b"",
    "text.pt": b"loss 3.5\nloss 3.4\n",
    "page.pt": b"<!DOCTYPE html><html>",
    "pointer.pt": b"version https://git-lfs.github.com/spec/v1",
    "model.pt": b"\x08\x0a\x12\x07pytorch",
    "keras.pt": b"\x89HDF\r\n\x1a\n",
    "packed.pt": b"\x1f\x8b\x08",
    "other.pt": b"\x01\x02\x03\x04\x05",
    "abc.yaml": b"lambd: abc\n",
    "run/checkpoint.pt": b"",
}


@pytest.mark.parametrize("command", MISTAKES)
def test_every_message_names_its_setting_or_its_file(here: Path, command: str):
    folder(here / "fine")
    for name in ("a", "b"):
        folder(here / "two" / name)
    (here / "run").mkdir()
    for name, content in FILES.items():
        (here / name).write_bytes(content)
    result = CliRunner().invoke(app, shlex.split(command))
    assert result.exit_code == 2, result.output
    assert MISTAKES[command] in result.stderr
    assert len(result.stderr.splitlines()) == 1 or result.stderr.startswith("Usage: ")


@pytest.mark.parametrize("name", list(PRINTED))
def test_no_control_character_reaches_the_terminal(here: Path, name: str):
    folder(here / "fine")
    folder(here / f"nasty{RED}", f"x{UP}")
    folder(here / "bad", f"x{NASTY}".replace("/", ""), b"no image")
    (here / "views.yaml").write_text(f'"{json.dumps(NASTY)[1:-1]}": 1\n')
    (here / "keys.yaml").write_text(f'"{json.dumps(NASTY)[1:-1]}": 1\n')
    (here / "file").write_bytes(b"")
    output = run(*PRINTED[name])
    # Older versions of click take colours out of their own messages.
    assert "\\x" in output or name == "number"


def test_tables_bars_and_markup_are_escaped(capsys: pytest.CaptureFixture):
    from rich.progress import Progress
    from rich.table import Table

    table = Table(NASTY)
    table.add_row(NASTY)
    console = terminal.console(force_terminal=True, color_system=None, width=200)
    console.print(table, NASTY, f"[bold]{RED}")
    with Progress("{task.description}", console=console) as progress:
        progress.add_task(NASTY)
    output = capsys.readouterr().out
    assert RED not in output
    assert BELL not in output
    assert "[bold]\\x1b[31m" in output
    assert output.count("\\x1b[31m") >= 4


# Without torch, which takes seconds.
ALONE = f"""
import logging, sys, types, warnings
package = sys.modules["barlow_fast"] = types.ModuleType("barlow_fast")
package.__path__ = [{str(Path(terminal.__file__).parent)!r}]
from barlow_fast import terminal
"""


def test_logs_warnings_and_tracebacks_are_escaped():
    code = (
        "terminal.install()\n"
        "logging.getLogger('x').warning('logged %s', '\\x1b[31m')\n"
        "warnings.warn('warned \\x1b[31m')\n"
        "raise ValueError('raised \\x1b[31m')\n"
    )
    found = completed(sys.executable, "-c", ALONE + code)
    assert found.returncode == 1
    assert not controls(found.stderr)
    for word in ("logged", "warned", "raised"):
        assert f"{word} \\x1b[31m" in found.stderr


def test_a_handler_that_is_there_stays():
    code = (
        "logging.basicConfig(stream=sys.stdout, format='mine %(message)s')\n"
        "terminal.install()\n"
        "logging.getLogger('x').warning('logged')\n"
    )
    found = completed(sys.executable, "-c", ALONE + code)
    assert (found.stdout, found.stderr) == ("mine logged\n", "")


# ---- Pillow's warnings


def tiff_with_a_tag_beyond_its_end() -> bytes:
    stream = io.BytesIO()
    Image.new("RGB", (9, 9)).save(stream, "TIFF", software="none")
    content = bytearray(stream.getvalue())
    at = content.index((305).to_bytes(2, "little") + b"\2\0")
    content[at + 4 : at + 12] = (200).to_bytes(4, "little") + b"\xf0\xff\0\0"
    return bytes(content)


def test_warnings_of_pillow_name_the_file(caplog: pytest.LogCaptureFixture):
    with warnings.catch_warnings():
        warnings.simplefilter("always")
        with caplog.at_level(logging.WARNING, "barlow_fast.data"):
            decode_pixels(tiff_with_a_tag_beyond_its_end(), "folder/picture.tif")
            assert "folder/picture.tif: " in caplog.text
            caplog.clear()
            # Outside of an image they go where they went.
            with pytest.warns(UserWarning, match="another"):
                warnings.warn("another", stacklevel=1)
    assert not caplog.text


# ---- the environment


@pytest.mark.parametrize("text", ["abc", "1.5", "-1", "1_0", "\u0663", "9" * 30, RED])
def test_numbers_of_the_environment(monkeypatch, text: str):
    monkeypatch.setenv("BARLOW_FAST_CPU_POOL_MIB", text)
    with pytest.raises(ValueError, match="BARLOW_FAST_CPU_POOL_MIB must be a whole number") as e:
        environment.whole_number("BARLOW_FAST_CPU_POOL_MIB", 512)
    assert not controls(str(e.value))
    for text, number in (("", 512), (" 7 ", 7), ("0", 0)):
        monkeypatch.setenv("BARLOW_FAST_CPU_POOL_MIB", text)
        assert environment.whole_number("BARLOW_FAST_CPU_POOL_MIB", 512) == number


def test_words_of_the_environment(monkeypatch):
    from barlow_fast.kernels import cpu, why_unusable

    usable = why_unusable("cpu", torch.device("cpu")) is None  # loaded before the variable is wrong
    monkeypatch.setenv("BARLOW_FAST_CPU_INSTRUCTION_SET", "abc")
    words = "BARLOW_FAST_CPU_INSTRUCTION_SET must be one of baseline, .* got 'abc'"
    with pytest.raises(ValueError, match=words):
        environment.choice("BARLOW_FAST_CPU_INSTRUCTION_SET", cpu.INSTRUCTION_SETS[1:])
    if usable:
        with pytest.raises(ValueError, match=words):
            cpu._problem.__wrapped__()


def test_a_variable_is_named_in_one_line():
    code = "from barlow_fast.cli import main; import sys; sys.argv[1:] = ['doctor']; main()"
    found = completed(sys.executable, "-c", code, BARLOW_FAST_CPU_POOL_MIB="abc")
    assert found.returncode != 0
    assert "Traceback" not in found.stderr
    assert re.search("barlow-fast: .*BARLOW_FAST_CPU_POOL_MIB must be .*'abc'", found.stderr)


# ---- whatever they are given

VALUES = (
    "", " ", "0", "-1", "1", "2", "1e400", "-1e-400", "nan", "inf", "9" * 25, "1" * 5000,
    "4294967296", "null", "true", "off", "[]", "[1]", "[x]", "{}", "{a: 1}", "[[1]]", "x", "auto",
    "'", '"', ":", "- ", "!!int x", "!!timestamp x", "&a [*a]", "2001-99-99", "${a}", "%s",
    "/dev/null", "pipe:",
    "x://y", "*", "[", "~", "fine", "views.yaml", "\u00e9", "\udcff", NASTY, RED, "a\nb",
)  # fmt: skip
NAMES = (*ANNOTATIONS, "preset", "x", "", "a.b", "epochs.x", "1", NASTY)
COMMANDS = {
    "pretrain": ["--dry-run", "--device", "cpu"],
    "data check": ["fine"],
    "data pack": ["fine", "packed"],
    "data show": ["fine", "--preset", "views.yaml", "--count", "2"],
    "evaluate knn": ["checkpoint.pt", "--data", "labelled", "--device", "cpu", "--image-size", "8"],
    "export": ["checkpoint.pt", "out.pth"],
}


def settings(generator: random.Random) -> None:
    """A random setting, as an argument and in a file: taken or refused with a ValueError."""
    name, value = generator.choice(NAMES), generator.choice(VALUES)
    Path("run.yaml").write_text(f"{name}: {value}\n", errors="replace")
    for read in (
        lambda: override(PretrainConfig(), None, [f"{name}={value}"]),
        lambda: override(PretrainConfig(), Path("run.yaml")),
        lambda: preset_in(Path("run.yaml")),
    ):
        with contextlib.suppress(ValueError):
            read()


def command(generator: random.Random) -> list[str]:
    """A command with random options, one of them at the least."""
    words = generator.choice(list(COMMANDS))
    found = typer.main.get_command(app)
    for word in words.split():
        found = found.commands[word]
    names = [
        name
        for parameter in found.params
        for name in parameter.opts
        # Those that start processes take time, and these end the command.
        if name.startswith("--") and name not in ("--workers", "--help", "--resume")
    ]
    arguments = list(COMMANDS[words])
    for _ in range(generator.randint(1, 2)):
        arguments.append(generator.choice(names))
        if generator.random() < 0.9:
            arguments.append(generator.choice(VALUES))
    if words == "pretrain" and generator.random() < 0.5:
        arguments.append(f"{generator.choice(NAMES)}={generator.choice(VALUES)}")
    return [*words.split(), *arguments]


def prepare(here: Path) -> None:
    folder(here / "fine")
    for name in ("a", "b"):
        for number in range(3):
            folder(here / "labelled" / name, str(number))
    (here / "views.yaml").write_text(replace(PRESETS["cifar"], name="small").to_yaml())
    write_encoder(here / "checkpoint.pt", 3)


def test_settings_are_taken_or_refused(here: Path):
    generator = random.Random(0)
    for _ in range(500):
        settings(generator)


@pytest.mark.parametrize("count", [60, pytest.param(600, marks=pytest.mark.slow)])
def test_commands_end_without_a_traceback(here: Path, count: int):
    prepare(here)
    generator = random.Random(count)
    for _ in range(count):
        run(*command(generator))


@pytest.mark.parametrize(
    ("library", "extra", "need"),
    [
        ("yaml", "train", lambda: inputs.parse_yaml("a: 1")),
        ("yaml", "train", lambda: PRESETS["imagenet"].to_yaml()),
        ("sklearn", "train", lambda: datasets.load("digits")),
        ("torchvision", "train", lambda: datasets._download(Path("nowhere"))),
        ("torchvision", "train", lambda: build_encoder("resnet18", channels=3, image_size=8)),
        ("timm", "timm", lambda: build_encoder("timm:resnet18", channels=3, image_size=8)),
        ("safetensors", "export", lambda: optional_library("safetensors", "export", "a file")),
    ],
)
def test_a_missing_library_is_named_with_its_extra(monkeypatch, library: str, extra: str, need):
    monkeypatch.setitem(sys.modules, library, None)
    for name in [name for name in sys.modules if name.startswith(f"{library}.")]:
        monkeypatch.delitem(sys.modules, name)
    with pytest.raises(
        ModuleNotFoundError, match=rf"needs {library}: pip install 'barlow-fast\[{extra}\]'"
    ):
        need()
