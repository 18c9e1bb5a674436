"""The scripts of examples/: the parallel ones run as a user runs them, the others in this process,
which has torch imported already. lightly's has tests of its own, test_lightly_example.py."""

from __future__ import annotations

import importlib.util
import re
import sys
from pathlib import Path
from types import ModuleType
from typing import NamedTuple

import pytest
import torch
from ended import completed

EXAMPLES = Path(__file__).resolve().parents[1] / "examples"


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_cuda_graph():
    done = completed(sys.executable, EXAMPLES / "cuda_graph.py")
    assert done.returncode == 0, done.stdout + done.stderr
    assert "replays equal eager steps" in done.stdout


def test_cuda_graph_says_that_it_needs_a_device():
    done = completed(sys.executable, EXAMPLES / "cuda_graph.py", CUDA_VISIBLE_DEVICES="")
    assert done.returncode == 2, done.stderr
    assert "needs a CUDA device" in done.stderr
    assert not done.stdout


@pytest.mark.slow
def test_ddp_under_torchrun():
    """Two ranks print one loss per step, which falls, and the bytes that the loss sent."""
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
    script = ["--nproc_per_node", "2", EXAMPLES / "ddp.py"]
    done = completed(*launcher, *script, OMP_NUM_THREADS="1")
    assert done.returncode == 0, done.stdout + done.stderr
    lines = done.stdout.splitlines()
    losses = [float(line.split()[-1]) for line in lines if line.startswith("step ")]
    assert len(losses) == 8
    assert losses[-1] < 0.8 * losses[0]
    sent = re.search(r"in each step: ([\d.]+) MiB sent", done.stdout)
    matrix = re.search(r"D x D matrix would send ([\d.]+) MiB", done.stdout)
    assert 0 < float(sent[1]) < float(matrix[1])


def test_ddp_alone_says_how_to_run_it(monkeypatch):
    monkeypatch.delenv("RANK", raising=False)
    done = completed(sys.executable, EXAMPLES / "ddp.py")
    assert done.returncode == 2
    assert "torchrun --nproc_per_node 2 examples/ddp.py" in done.stderr


class Case(NamedTuple):
    """A script at a size for tests.

    Attributes:
        steps: of training.
        falls: the last loss is below this share of the first.
        scores: how the line of scores begins, or None; its last number is that of what was learned.
        gain: percentage points by which that is above each of the others, at least.
    """

    steps: int
    falls: float
    scores: str | None = None
    gain: float = 0.0
    more: tuple[str, ...] = ()  # arguments


CASES = {
    "plain_torch": Case(60, 0.6, "nearest neighbours", 1.0),
    "lightning_module": Case(60, 0.6, "nearest neighbours", 1.0),
    "huggingface_trainer": Case(40, 0.8, "nearest neighbours", 3.0),
    "accelerate_loop": Case(40, 0.7),
    "graph_encoder": Case(40, 0.6, "linear probe", 0.5),
    "dense_prediction": Case(25, 0.7, "digit of a place", 0.5),
    "tabular": Case(150, 0.5, "linear probe", 2.0),
    "mixed_wide": Case(60, 0.6, "nearest neighbours", 1.0, ("--features", "2048")),
}

# Modules without which a script can only say what to install.
NEEDED = {
    "plain_torch": ("sklearn",),
    "lightning_module": ("lightning", "pytorch_lightning"),
    "huggingface_trainer": ("transformers",),
    "accelerate_loop": ("accelerate",),
    "graph_encoder": ("sklearn.datasets",),
    "dense_prediction": ("sklearn.datasets",),
    "tabular": ("sklearn.datasets",),
    "mixed_wide": ("sklearn",),
    "lightly_barlow_twins": ("lightly.models.modules",),
}


def loaded(name: str) -> ModuleType:
    """A script as a module."""
    path = EXAMPLES / f"{name}.py"
    specification = importlib.util.spec_from_file_location(f"example_{name}", path)
    module = importlib.util.module_from_spec(specification)
    specification.loader.exec_module(module)
    return module


def numbers(pattern: str, text: str) -> list[float]:
    return [float(value) for value in re.findall(pattern, text)]


@pytest.mark.parametrize("name", CASES)
def test_learns(name, capsys):
    case = CASES[name]
    try:
        example = loaded(name)
    except SystemExit as error:
        pytest.skip(str(error))
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # two that wait for each other on a busy machine take far longer
    try:
        with torch.random.fork_rng():
            assert example.main(["--steps", str(case.steps), "--seed", "1", *case.more]) == 0
    finally:
        torch.set_num_threads(threads)
    printed = capsys.readouterr().out
    losses = numbers(r"(?m)^step \d+  loss ([\d.]+)$", printed)
    losses = losses or numbers(r"(?m)(?:^loss |, )([\d.]+) at ", printed)
    assert len(losses) >= 2, printed
    assert losses[-1] < case.falls * losses[0], printed
    if case.scores is not None:
        (line,) = (line for line in printed.splitlines() if line.startswith(case.scores))
        *others, learned = numbers(r"([\d.]+)%", line)
        assert others, line
        assert learned >= max(others) + case.gain, line


@pytest.mark.parametrize("name", NEEDED)
def test_says_what_to_install(name, monkeypatch):
    for needed in NEEDED[name]:
        monkeypatch.setitem(sys.modules, needed, None)
    with pytest.raises(SystemExit, match=r"^This example needs .*: pip install "):
        loaded(name)


def test_every_script_is_tested_and_in_the_table():
    scripts = {path.stem for path in EXAMPLES.glob("*.py")}
    assert scripts == {*CASES, *NEEDED, "cuda_graph", "ddp"}
    table = (EXAMPLES / "README.md").read_text(encoding="utf-8")
    files = [f"{name}.py" for name in scripts] + [each.name for each in EXAMPLES.glob("*.ipynb")]
    assert all(f"[{name}]({name})" in table for name in files)
