"""`barlow_fast.patch` on packages written for the test and on those that are installed."""

from __future__ import annotations

import importlib
import logging
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType

import pytest
import torch
from formulas import batch_norm, penalty

import barlow_fast
from barlow_fast import adapters, patching
from barlow_fast.adapters import lightly as adapter

LOSS = """
import torch

class BarlowTwinsLoss(torch.nn.Module):
    def __init__(self, lambda_param=5e-3, gather_distributed=False):
        super().__init__()
"""

FILES = {
    "lightly/__init__.py": "__version__ = '{version}'",
    "lightly/loss/__init__.py": "from lightly.loss.barlow_twins_loss import BarlowTwinsLoss",
    "lightly/loss/barlow_twins_loss.py": LOSS,
    "lightly/later.py": "from lightly.loss import BarlowTwinsLoss as Later",
}


@pytest.fixture
def package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., None]]:
    """Writes packages of the given files and puts them in front of the installed ones."""
    before = dict(sys.modules)
    taken: set[str] = set()

    def write(files: dict[str, str], version: str = "1.6.0") -> None:
        for name, text in files.items():
            path = tmp_path / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text.replace("{version}", version))
            taken.add(name.partition("/")[0])
        for name in list(sys.modules):
            if name.partition(".")[0] in taken:
                del sys.modules[name]
        importlib.invalidate_caches()

    monkeypatch.syspath_prepend(tmp_path)
    yield write
    for name in taken & set(patching.TARGETS):
        barlow_fast.unpatch(name)
    for name in list(sys.modules):
        if name.partition(".")[0] in taken:
            del sys.modules[name]
    restored = {k: v for k, v in before.items() if k.partition(".")[0] in taken}
    sys.modules.update(restored)


def defined() -> type:
    return sys.modules["lightly.loss.barlow_twins_loss"].BarlowTwinsLoss


def test_replaced_wherever_the_package_holds_it_and_undone(package):
    package(FILES)
    loss = importlib.import_module("lightly.loss")
    original = loss.BarlowTwinsLoss
    handle = barlow_fast.patch("lightly")
    assert loss.BarlowTwinsLoss is adapter.BarlowTwinsLoss
    assert defined() is adapter.BarlowTwinsLoss
    assert importlib.import_module("lightly.later").Later is adapter.BarlowTwinsLoss
    assert sorted(handle.replaced) == [
        "lightly.loss.BarlowTwinsLoss",
        "lightly.loss.barlow_twins_loss.BarlowTwinsLoss",
    ]
    for place in handle.replaced:
        assert place in str(handle)
    assert "1.6.0" in str(handle)
    assert barlow_fast.unpatch("lightly") is True
    assert loss.BarlowTwinsLoss is defined() is original
    assert "undone" in str(handle)
    assert barlow_fast.unpatch("lightly") is False
    handle.undo()
    assert defined() is original


def test_twice_is_once(package):
    package(FILES)
    first = barlow_fast.patch("lightly")
    original = first._changes[0].original
    places = first.replaced
    assert barlow_fast.patch("lightly") is first
    assert first.replaced == places
    first.undo()
    assert defined() is original


def test_a_block(package):
    package(FILES)
    with barlow_fast.patch("lightly") as handle:
        assert isinstance(handle, patching.Patch)
        assert defined() is adapter.BarlowTwinsLoss
    assert defined() is not adapter.BarlowTwinsLoss
    with pytest.raises(KeyError), barlow_fast.patch("lightly"):
        raise KeyError
    assert defined() is not adapter.BarlowTwinsLoss


def test_names_that_a_script_has_already(package, monkeypatch, caplog):
    package(FILES)
    original = importlib.import_module("lightly.loss").BarlowTwinsLoss
    script = ModuleType("train_script")
    script.Criterion = original
    script.Derived = type("Derived", (original,), {"__module__": "train_script"})
    monkeypatch.setitem(sys.modules, "train_script", script)
    monkeypatch.setitem(sys.modules, "__train_script__", script)  # by two names, as __main__ is
    with caplog.at_level(logging.INFO, "barlow_fast.patching"):
        handle = barlow_fast.patch("lightly")
    assert handle.left == ["train_script.Criterion"]
    assert handle.subclasses == ["train_script.Derived"]
    assert script.Criterion is original
    assert "train_script.Criterion" in str(handle)
    assert "train_script.Derived" in str(handle)
    warnings = [r.getMessage() for r in caplog.records if r.levelno == logging.WARNING]
    assert len(warnings) == 1
    assert "train_script.Criterion" in warnings[0]
    assert any("lightly.loss.BarlowTwinsLoss" in r.getMessage() for r in caplog.records)

    assert barlow_fast.patch("lightly", everywhere=True) is handle
    assert script.Criterion is adapter.BarlowTwinsLoss
    assert not handle.left
    handle.undo()
    assert script.Criterion is original


def test_what_was_set_since_stays(package):
    package(FILES)
    loss = importlib.import_module("lightly.loss")
    handle = barlow_fast.patch("lightly")
    loss.BarlowTwinsLoss = int
    handle.undo()
    assert loss.BarlowTwinsLoss is int


@pytest.mark.parametrize("version", ["1.5.25", "1.7.0", "2.0", "nightly"])
def test_untested_versions_are_refused(package, version):
    package(FILES, version)
    with pytest.raises(RuntimeError, match=rf"lightly {version} .*1\.5\.26 <= version < 1\.7"):
        barlow_fast.patch("lightly")
    assert defined() is not adapter.BarlowTwinsLoss
    barlow_fast.patch("lightly", force=True)
    assert defined() is adapter.BarlowTwinsLoss


def test_other_arguments_are_refused(package):
    changed = LOSS.replace("lambda_param=5e-3", "lambda_param=1e-2")
    package(FILES | {"lightly/loss/barlow_twins_loss.py": changed})
    with pytest.raises(RuntimeError, match=r"takes .*0\.01.*the drop-in .*0\.005"):
        barlow_fast.patch("lightly")
    assert defined() is not adapter.BarlowTwinsLoss


def test_a_package_without_the_loss(package):
    package({"lightly/__init__.py": "__version__ = '1.6.0'"})
    with pytest.raises(RuntimeError, match=r"lightly 1\.6\.0 has no lightly\.loss\.barlow_twins"):
        barlow_fast.patch("lightly")


def test_a_package_that_lacks_a_library(package):
    package({"solo/__init__.py": "import a_library_that_nobody_has"})
    with pytest.raises(ImportError, match=r"solo is installed but cannot be imported.*nobody_has"):
        barlow_fast.patch("solo")


def test_a_package_that_is_not_installed(package, monkeypatch):
    package({"unrelated/__init__.py": ""})
    monkeypatch.setitem(
        patching.TARGETS,
        "absent_peer",
        patching.Target(
            "absent_peer",
            "absent-peer",
            "1",
            "2",
            (patching.Replacement("absent_peer.loss", "Loss", "lightly"),),
        ),
    )
    with pytest.raises(ImportError, match=r"absent_peer is not installed: pip install absent-peer"):
        barlow_fast.patch("absent_peer")


def test_unknown_names_are_refused():
    for function in (barlow_fast.patch, barlow_fast.unpatch):
        with pytest.raises(ValueError, match=r"name must be one of \('lightly', .*got 'pytorch'"):
            function("pytorch")
    with pytest.raises(ValueError, match=r"got 3"):
        barlow_fast.patch(3)


REGISTRY = """
class Registry:
    def __init__(self):
        self._module_dict = {}

    def register(self, kind):
        self._module_dict[kind.__name__] = kind
        return kind

    def build(self, options):
        options = dict(options)
        return self._module_dict[options.pop("type")](**options)

MODELS = Registry()
"""

MM = {
    "mmpretrain/__init__.py": "__version__ = '{version}'",
    "mmpretrain/registry.py": REGISTRY,
    "mmpretrain/models/__init__.py": "",
    "mmpretrain/models/losses/__init__.py": "",
    "mmpretrain/models/heads/__init__.py": "",
    "mmpretrain/models/losses/cross_correlation_loss.py": """
from mmpretrain.registry import MODELS

@MODELS.register
class CrossCorrelationLoss:
    def __init__(self, lambd=0.0051): pass
""",
    "mmpretrain/models/heads/latent_heads.py": """
from mmpretrain.registry import MODELS

@MODELS.register
class LatentCrossCorrelationHead:
    def __init__(self, in_channels, loss, init_cfg=None): pass
""",
}


def test_registries_build_ours(package):
    package(MM, "1.2.0")
    options = {
        "type": "LatentCrossCorrelationHead",
        "in_channels": 4,
        "loss": {"type": "CrossCorrelationLoss", "lambd": 0.3},
    }
    with barlow_fast.patch("mmpretrain") as handle:
        models = sys.modules["mmpretrain.registry"].MODELS
        head = models.build(options)
        assert isinstance(head, adapters.mmpretrain.LatentCrossCorrelationHead)
        assert "mmpretrain.registry.MODELS._module_dict['CrossCorrelationLoss']" in handle.replaced
        a, b = torch.randn(2, 6, 4)
        want = penalty(batch_norm(a).T @ batch_norm(b) / 6, 0.3)
        torch.testing.assert_close(head.loss(a, b), want)
    assert not isinstance(models.build(options), torch.nn.Module)


def test_functions_and_hyphens(package):
    text = "def barlow_loss_func(z1, z2, lamb=5e-3, scale_loss=0.025): pass"
    package(
        {
            "solo/__init__.py": "__version__ = '{version}'",
            "solo/losses/__init__.py": "from solo.losses.barlow import barlow_loss_func",
            "solo/losses/barlow.py": text,
        },
        "1.0.6",
    )
    with barlow_fast.patch("solo-learn"):
        found = sys.modules["solo.losses"].barlow_loss_func
        assert found is importlib.import_module("barlow_fast.adapters.solo_learn").barlow_loss_func


@pytest.mark.parametrize("name", ["lightly", "monai", "stable_pretraining", "catalyst"])
def test_the_installed_package(name):
    """Replaced, the same numbers, and put back."""
    pytest.importorskip(name, exc_type=ImportError)
    target = patching.TARGETS[name]
    module = importlib.import_module(target.replacements[0].module)
    original = module.BarlowTwinsLoss
    a, b = torch.randn(2, 8, 5, dtype=torch.float64)
    want = original()(a, b)
    with barlow_fast.patch(name) as handle:
        assert module.BarlowTwinsLoss is not original
        assert type(module.BarlowTwinsLoss()).__module__ == f"barlow_fast.adapters.{name}"
        torch.testing.assert_close(module.BarlowTwinsLoss()(a, b), want, rtol=1e-10, atol=1e-12)
        assert len(handle.replaced) >= 2
    assert module.BarlowTwinsLoss is original


def training_curve(steps: int = 50) -> torch.Tensor:
    """Losses of a small encoder trained through lightly's own head and whatever loss it has."""
    from lightly.models.modules import BarlowTwinsProjectionHead

    torch.manual_seed(0)
    model = torch.nn.Sequential(
        torch.nn.Linear(20, 32), torch.nn.ReLU(), BarlowTwinsProjectionHead(32, 64, 48)
    )
    criterion = sys.modules["lightly.loss"].BarlowTwinsLoss()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    data = torch.randn(256, 20)
    losses = []
    for _ in range(steps):
        x = data[torch.randperm(256)[:32]]
        views = (x + 0.3 * torch.randn_like(x) for _ in range(2))
        loss = criterion(*(model(view) for view in views))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return torch.tensor(losses)


def test_training_takes_the_same_course():
    """Fifty steps with lightly's loss and with ours: float32 noise apart."""
    pytest.importorskip("lightly.models.modules", exc_type=ImportError)
    importlib.import_module("lightly.loss")
    theirs = training_curve()
    with barlow_fast.patch("lightly"):
        ours = training_curve()
    assert theirs[-1] < 0.8 * theirs[0]
    assert not torch.equal(theirs, ours)  # another loss did compute it
    torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=0)
