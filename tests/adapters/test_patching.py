"""`barlow_fast.patch` on packages written for the test and on those that are installed."""

from __future__ import annotations

import copyreg
import importlib
import logging
import multiprocessing
import sys
from collections.abc import Callable, Iterator
from multiprocessing.process import BaseProcess
from pathlib import Path
from types import ModuleType, SimpleNamespace

import pytest
import torch
from formulas import batch_norm, penalty

import barlow_fast
from barlow_fast import adapters
from barlow_fast.adapters import lightly as adapter
from barlow_fast.adapters import patching

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

    def forget() -> None:
        for name in list(sys.modules):
            if name.partition(".")[0] in taken:
                del sys.modules[name]

    def write(files: dict[str, str], version: str = "1.6.0") -> None:
        for name, text in files.items():
            path = tmp_path / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text.replace("{version}", version))
            taken.add(name.partition("/")[0].removesuffix(".py"))
        forget()
        importlib.invalidate_caches()

    monkeypatch.syspath_prepend(tmp_path)
    yield write
    for name in taken & set(patching.TARGETS):
        barlow_fast.unpatch(name)
    forget()
    sys.modules.update({k: v for k, v in before.items() if k.partition(".")[0] in taken})


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
    places = ["lightly.loss.BarlowTwinsLoss", "lightly.loss.barlow_twins_loss.BarlowTwinsLoss"]
    assert sorted(handle.replaced) == places
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
    with caplog.at_level(logging.INFO, "barlow_fast.adapters.patching"):
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
    replacements = (patching.Replacement("absent_peer.loss", "Loss", "lightly"),)
    target = patching.Target("absent_peer", "absent-peer", "1", "2", replacements)
    monkeypatch.setitem(patching.TARGETS, "absent_peer", target)
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
    loss = {"type": "CrossCorrelationLoss", "lambd": 0.3}
    options = {"type": "LatentCrossCorrelationHead", "in_channels": 4, "loss": loss}
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


# --- classes that call themselves by name ----------------------------------------------------

VISSL = {
    "vissl/__init__.py": "__version__ = '{version}'",
    "vissl/losses/__init__.py": """
from vissl.losses.barlow_twins_loss import BarlowTwinsCriterion, BarlowTwinsLoss
""",
    "vissl/losses/barlow_twins_loss.py": """
import functools
import torch
from classy_vision.losses import LOSS_REGISTRY

def registered(name):
    def register(kind):
        LOSS_REGISTRY[name] = kind
        return kind
    return register

@registered("barlow_twins_loss")
class BarlowTwinsLoss(torch.nn.Module):
    def __init__(self, loss_config):
        super(BarlowTwinsLoss, self).__init__()
        self.loss_config = loss_config
        self.bt_criterion = BarlowTwinsCriterion(
            lambda_=loss_config.lambda_,
            scale_loss=loss_config.scale_loss,
            embedding_dim=loss_config.embedding_dim,
        )

    @classmethod
    def from_config(cls, loss_config):
        return cls(loss_config)

    def forward(self, output, target):
        return self.bt_criterion(output)

class BarlowTwinsCriterion(torch.nn.Module):
    copies = 2

    def __init__(self, lambda_, scale_loss, embedding_dim):
        super(BarlowTwinsCriterion, self).__init__()
        self.lambda_ = lambda_
        self.scale_loss = scale_loss
        self.embedding_dim = embedding_dim
        self.num_copies = 2
        self.eps = 1e-5

    @classmethod
    def rows(cls, embedding):
        return len(embedding) // BarlowTwinsCriterion.copies

    @property
    def name(self):
        return BarlowTwinsCriterion.__module__

    def forward(self, embedding):
        check(self)
        a, b = embedding.split(self.rows(embedding))
        return self.scale_loss * (a * b).sum()

def check(loss):
    assert isinstance(loss, BarlowTwinsCriterion)
    assert loss.name.startswith("vissl.")
""",
    "classy_vision/__init__.py": "",
    "classy_vision/losses/__init__.py": "LOSS_REGISTRY = {}",
}


def world(*packages: str) -> dict:
    """All that a patch may touch: namespaces and classes of modules, registries, copyreg."""
    modules = {
        name: (type(module), dict(vars(module)))
        for name, module in sys.modules.items()
        if name.partition(".")[0] in packages
    }
    registries = {
        name: dict(found["LOSS_REGISTRY"])
        for name, (_, found) in modules.items()
        if "LOSS_REGISTRY" in found
    }
    return {
        "modules": modules,
        "registries": registries,
        "copyreg": dict(copyreg.dispatch_table),
        "processes": dict(vars(BaseProcess)),
    }


def assert_untouched(before: dict, *packages: str) -> None:
    after = world(*packages)
    for part, value in before.items():
        assert after[part] == value, part


def test_classes_that_call_themselves_by_name_stay_what_they_were(package):
    package(VISSL, "0.1.6")
    losses = importlib.import_module("vissl.losses")
    defining = sys.modules["vissl.losses.barlow_twins_loss"]
    registry = sys.modules["classy_vision.losses"].LOSS_REGISTRY
    loss, criterion = losses.BarlowTwinsLoss, losses.BarlowTwinsCriterion
    derived = type("Derived", (criterion,), {"__module__": "train_script"})
    further = type("Further", (derived,), {"__module__": "train_script"})
    config = SimpleNamespace(lambda_=0.1, scale_loss=0.5, embedding_dim=3)
    before = criterion(0.1, 0.5, 3)
    embedding = torch.randn(8, 3)
    want = before(embedding)
    untouched = world("vissl", "classy_vision")

    with barlow_fast.patch("vissl") as handle:
        # Instances, names and subclasses from before, made before and now.
        made = [kind(0.1, 0.5, 3) for kind in (criterion, derived, further)]
        for kind, instance in zip((criterion, derived, further), made, strict=True):
            assert type(instance) is kind
        for instance in (before, *made, loss.from_config(config).bt_criterion):
            assert torch.equal(instance(embedding), want)
        # New ones, for any caller.
        for module in (losses, defining):
            assert module.BarlowTwinsCriterion is adapters.vissl.BarlowTwinsCriterion
            assert module.BarlowTwinsLoss is adapters.vissl.BarlowTwinsLoss
        assert registry["barlow_twins_loss"] is adapters.vissl.BarlowTwinsLoss
        ours = registry["barlow_twins_loss"].from_config(config)
        assert torch.equal(ours.bt_criterion(embedding), ours(embedding, None))
        assert type("New", (losses.BarlowTwinsCriterion,), {})(0.1, 0.5, 3)(embedding).isfinite()
        assert handle.subclasses == ["train_script.Derived", "train_script.Further"]
        kept = ("BarlowTwinsCriterion", "BarlowTwinsLoss")
        assert handle.kept == [f"vissl.losses.barlow_twins_loss.{name}" for name in kept]
        assert set(handle.kept) < set(handle.replaced)
        assert barlow_fast.patch("vissl") is handle
        assert len(set(handle.replaced)) == len(handle.replaced) == 5

    assert_untouched(untouched, "vissl", "classy_vision")


def test_the_installed_lightly_stays_what_it_was():
    """A name imported before, its instances and its subclasses; new ones are ours."""
    loss = pytest.importorskip("lightly.loss", exc_type=ImportError)
    original = loss.BarlowTwinsLoss

    class Derived(original):
        def forward(self, z_a, z_b):
            return 2 * super().forward(z_a, z_b)

    z_a, z_b = torch.randn(2, 8, 5)
    before = original(0.1)
    want = before(z_a, z_b)
    untouched = world("lightly")
    with barlow_fast.patch("lightly") as handle:
        made = original(0.1, gather_distributed=False)
        assert type(made) is original
        for instance in (before, made):
            assert torch.equal(instance(z_a, z_b), want)
        assert torch.equal(Derived(0.1)(z_a, z_b), 2 * want)
        assert type(loss.BarlowTwinsLoss()) is adapter.BarlowTwinsLoss
        assert defined() is adapter.BarlowTwinsLoss
        assert f"{__name__}.{Derived.__qualname__}" in handle.subclasses
    assert_untouched(untouched, "lightly")


BY_NAME = """
from lightly.loss import BarlowTwinsLoss

def wrapping(function):
    def wrapped(self):
        return function(self)
    return wrapped

class Regularised(BarlowTwinsLoss):
    {decorator}
    def __init__(self):
        BarlowTwinsLoss.__init__(self)

def build():
    return BarlowTwinsLoss()
"""


@pytest.mark.parametrize("decorator", ["", "@wrapping"])
@pytest.mark.parametrize("outside", [False, True])
def test_subclasses_that_call_the_original_by_name(package, caplog, decorator, outside):
    """Their module keeps it for them; asked from outside it has ours. Other modules' code that
    makes one makes ours."""
    name = "script" if outside else "lightly.mine"
    build = "from lightly.loss import BarlowTwinsLoss\ndef build(): return BarlowTwinsLoss()"
    files = {
        f"{name.replace('.', '/')}.py": BY_NAME.replace("{decorator}", decorator),
        "lightly/builder.py": build,
    }
    package(FILES | files)
    mine, builder = map(importlib.import_module, (name, "lightly.builder"))
    original = mine.BarlowTwinsLoss
    with barlow_fast.patch("lightly", everywhere=True) as handle:
        assert isinstance(mine.Regularised(), original)
        assert mine.BarlowTwinsLoss is adapter.BarlowTwinsLoss
        assert type(builder.build()) is adapter.BarlowTwinsLoss
        assert handle.kept == [f"{name}.BarlowTwinsLoss"]
        assert f"{name}.BarlowTwinsLoss" in str(handle).partition("calls it by name:")[2]
        assert handle.left == ([f"{name}.BarlowTwinsLoss"] if outside else [])
        assert (f"{name}.BarlowTwinsLoss" in caplog.text) == outside
    assert vars(mine)["BarlowTwinsLoss"] is mine.BarlowTwinsLoss is original


def test_ours_that_somebody_else_put_there(package):
    package(FILES)
    defining = importlib.import_module("lightly.loss.barlow_twins_loss")
    defining.BarlowTwinsLoss = adapter.BarlowTwinsLoss
    with barlow_fast.patch("lightly") as handle:
        assert handle.replaced == []
    assert defined() is adapter.BarlowTwinsLoss


def test_attributes_that_others_set_meanwhile(package):
    package(VISSL, "0.1.6")
    defining = importlib.import_module("vissl.losses.barlow_twins_loss")
    original = defining.BarlowTwinsCriterion
    handle = barlow_fast.patch("vissl")
    with pytest.MonkeyPatch.context() as other:
        other.setattr(defining, "BarlowTwinsCriterion", int)
        assert defining.BarlowTwinsCriterion is int
    assert defining.BarlowTwinsCriterion is adapters.vissl.BarlowTwinsCriterion
    assert vars(defining)["BarlowTwinsCriterion"] is original
    defining.BarlowTwinsCriterion = int
    del defining.BarlowTwinsLoss
    with pytest.raises(AttributeError):
        _ = defining.BarlowTwinsLoss
    # A class that another library puts on top of ours stays there.
    above = type("Above", (type(defining),), {})
    defining.__class__ = above
    handle.undo()
    assert defining.BarlowTwinsCriterion is int
    assert type(defining) is above
    assert not hasattr(defining, "BarlowTwinsLoss")


# --- processes that are started later --------------------------------------------------------

CHILD = """
import multiprocessing
from pathlib import Path
import lightly.loss

def report(rank, path):
    Path(path).write_text(type(lightly.loss.BarlowTwinsLoss()).__module__)

class Worker(multiprocessing.get_context("spawn").Process):
    def __init__(self, path):
        super().__init__()
        self.path = path

    def run(self):
        report(0, self.path)
"""


@pytest.mark.slow
@pytest.mark.parametrize("way", ["torch", "subclass"])
def test_spawned_processes_are_patched(package, tmp_path, way):
    # What the fixture takes for the version of the adapter's library is not the installed one's.
    package(FILES | {"lightly/child.py": CHILD}, "9.0")
    child = importlib.import_module("lightly.child")
    path = tmp_path / "kind"
    with barlow_fast.patch("lightly", force=True) as handle:
        assert "processes that multiprocessing starts" in str(handle)
        if way == "torch":
            torch.multiprocessing.spawn(child.report, args=(str(path),))
        else:
            worker = child.Worker(str(path))
            worker.start()
            worker.join()
            assert worker.exitcode == 0
    assert path.read_text() == "barlow_fast.adapters.lightly"


def test_processes_are_pickled_as_ever_without_a_patch(package):
    package(FILES)
    plain = dict(vars(BaseProcess))
    process = multiprocessing.get_context("spawn").Process()
    with barlow_fast.patch("lightly"):
        function, (patches, *_), *_ = process.__reduce_ex__(4)
        assert function is patching._start_patched
        assert patches == {"lightly": {"everywhere": False, "force": False}}
        barlow_fast.patch("lightly", everywhere=True)
        barlow_fast.patch("lightly")
        assert process.__reduce_ex__(4)[1][0]["lightly"]["everywhere"]
    assert dict(vars(BaseProcess)) == plain
    assert process.__reduce_ex__(4)[0] is copyreg.__newobj__


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


def test_every_loss_of_the_installed_lightly():
    """VICReg and FroSSL are replaced too; VICRegL, which stays, computes with them."""
    loss = pytest.importorskip("lightly.loss", exc_type=ImportError)
    z = torch.randn(2, 8, 5, dtype=torch.float64)
    features = [
        (x, torch.randn(8, 3, 3, 5, dtype=torch.float64)) for x in torch.randn(2, 8, 5).double()
    ]
    grids = torch.rand(2, 8, 3, 3, 2, dtype=torch.float64)
    names = ("VICRegLoss", "FroSSLLoss", "VICRegLLoss")
    arguments = (tuple(z), (list(z),), (features, grids))

    def losses() -> list[torch.Tensor]:
        made = (getattr(loss, name)(num_matches=(3, 3)) if name == "VICRegLLoss"
                else getattr(loss, name)() for name in names)  # fmt: skip
        return [each(*given) for each, given in zip(made, arguments, strict=True)]

    want, originals = losses(), [getattr(loss, name) for name in names]
    with barlow_fast.patch("lightly"):
        assert loss.VICRegLoss is adapter.VICRegLoss
        assert loss.FroSSLLoss is adapter.FroSSLLoss
        assert type(loss.VICRegLLoss().vicreg_loss) is adapter.VICRegLoss
        module = sys.modules["lightly.loss.vicregl_loss"]
        assert module.covariance_loss is adapter.covariance_loss
        for x, y in zip(losses(), want, strict=True):
            torch.testing.assert_close(x, y, rtol=1e-10, atol=1e-12)
    assert [getattr(loss, name) for name in names] == originals


def test_a_version_without_a_loss_is_patched_without_it(package):
    """Not all versions of a range have FroSSL; what is there must take the same arguments."""
    package(FILES)
    with barlow_fast.patch("lightly") as handle:
        assert not any("FroSSL" in place or "VICReg" in place for place in handle.replaced)
    package({"lightly/loss/vicreg_loss.py": LOSS.replace("BarlowTwinsLoss", "VICRegLoss")})
    with pytest.raises(RuntimeError, match=r"lightly.loss.vicreg_loss.VICRegLoss .* takes"):
        barlow_fast.patch("lightly")


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
