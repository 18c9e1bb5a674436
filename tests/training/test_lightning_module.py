"""`BarlowTwinsModule` under Lightning's Trainer: the loss, rates and weights of our own loop, and
checkpoints that `load_encoder` reads."""

from __future__ import annotations

import importlib
import sys
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from runs import Recording

from barlow_fast.checkpoints import load_encoder, load_projector
from barlow_fast.data import PRESETS, ViewLoader
from barlow_fast.data.sources import ArraySource
from barlow_fast.training import Trainer, configure, learning_rate

lightning = pytest.importorskip("lightning.pytorch")
library = importlib.import_module(
    "barlow_fast.training.lightning"
)  # of the Lightning imported here
VIEWS = PRESETS["digits"]
CONFIG = configure(
    "digits", loss="barlow-twins",
    epochs=2, batch_size=64, encoder_widths=(4, 8), projector=(16, 24), warmup_epochs=1,
    precision="fp32", optimizer="lars", learning_rate=0.3, bias_learning_rate=0.01,
)  # fmt: skip
NORMALISED = {"channels": 1, "image_size": 8, "mean": VIEWS.mean, "std": VIEWS.std}


def loader(data, config=CONFIG) -> ViewLoader:
    return ViewLoader(ArraySource.of_dataset(data), VIEWS, config.batch_size, seed=config.seed)


def fitted(module, data, folder: Path, **options):
    trainer = lightning.Trainer(
        **({"max_epochs": CONFIG.epochs} | options), accelerator="cpu", logger=False,
        enable_progress_bar=False, enable_model_summary=False, default_root_dir=folder,
        enable_checkpointing=False,
    )  # fmt: skip
    trainer.fit(module, loader(data, module.config))
    return trainer


class Watching(lightning.Callback):
    def __init__(self) -> None:
        self.losses, self.rates = [], []

    def on_before_optimizer_step(self, trainer, module, optimizer):
        self.rates.append([group["lr"] for group in optimizer.param_groups])

    def on_train_batch_end(self, trainer, module, outputs, batch, index):
        self.losses.append(float(outputs["loss"]))
        assert trainer.logged_metrics["on_diagonal_mean"] > 0


@pytest.mark.parametrize("optimizer", ["lars", "adamw", "sgd", "muon"])
def test_steps_are_those_of_our_loop(small_digits, tmp_path: Path, optimizer: str):
    config = replace(CONFIG, optimizer=optimizer)
    if optimizer != "lars":
        config = replace(config, learning_rate=0.002)
    ours, theirs = Recording(), Watching()
    loop = Trainer(config, small_digits, hooks=[ours])
    loop.run()
    module = library.BarlowTwinsModule(config, **NORMALISED)
    fitted(module, small_digits, tmp_path, callbacks=[theirs])
    losses = ours.values("loss")
    assert len(losses) == len(theirs.losses) == 6
    assert theirs.rates == ours.rates
    assert theirs.losses == pytest.approx(losses, rel=1e-4)
    for name, value in loop.model.state_dict().items():
        torch.testing.assert_close(module.model.state_dict()[name], value, rtol=1e-3, atol=1e-5)


def test_its_checkpoints_are_read_by_both(small_digits, tmp_path: Path):
    module = library.BarlowTwinsModule(CONFIG, **NORMALISED)
    path = tmp_path / "module.ckpt"
    fitted(module, small_digits, tmp_path, max_steps=1).save_checkpoint(path)
    loaded = load_encoder(path)
    assert (loaded.format, loaded.name, loaded.image_size) == ("barlow_fast", "small", 8)
    assert (loaded.mean, loaded.std) == (VIEWS.mean, VIEWS.std)
    assert loaded.metadata["assumed"] == []
    images = torch.randn(3, 1, 8, 8)
    module.eval()
    with torch.no_grad():
        features = module(images)
        torch.testing.assert_close(loaded.encoder(images), features)
        torch.testing.assert_close(load_projector(path)(features), module.model.projector(features))
    again = library.BarlowTwinsModule.load_from_checkpoint(path, weights_only=True)
    assert again.config == CONFIG
    for name, value in module.state_dict().items():
        assert torch.equal(again.state_dict()[name], value), name
    unknown = library.BarlowTwinsModule(CONFIG, channels=1, image_size=8)
    fitted(unknown, small_digits, tmp_path, max_steps=1).save_checkpoint(path)
    assert load_encoder(path).metadata["assumed"] == ["mean", "std"]


def test_the_loss_is_that_of_all_devices(monkeypatch: pytest.MonkeyPatch):
    module = library.BarlowTwinsModule(CONFIG, **NORMALISED)
    norms = []
    monkeypatch.setattr(library, "synchronise", lambda model, device: norms.append(device) or model)
    for world, group, synchronised in ((1, None, []), (4, "world", ["cpu"])):
        strategy = SimpleNamespace(root_device=torch.device("cpu"))
        module._trainer = SimpleNamespace(world_size=world, strategy=strategy)
        module.setup("fit")
        assert module.criterion.process_group == group
        assert norms == synchronised
    module.config = replace(CONFIG, sync_batch_norm=False)
    module.setup("fit")
    assert norms == ["cpu"]


@pytest.mark.parametrize("options", [{"max_epochs": None, "max_steps": 4}, {"max_epochs": 1}])
def test_the_trainer_decides_how_many_steps_there_are(small_digits, tmp_path: Path, options: dict):
    theirs = Watching()
    module = library.BarlowTwinsModule(CONFIG, **NORMALISED)
    fitted(module, small_digits, tmp_path, callbacks=[theirs], **options)
    (schedule,) = (each.scheduler for each in module.trainer.lr_scheduler_configs)
    total = 4 if "max_steps" in options else 3
    assert schedule.shape[:2] == (total, 3)
    assert [weights for weights, _ in theirs.rates] == [
        learning_rate(step, total, 0.3, 3, CONFIG.final_learning_rate) for step in range(total)
    ]


@pytest.mark.parametrize(
    ("changes", "options", "message"),
    [
        ({"micro_batch_size": 16}, {}, "micro_batch_size is 16: Lightning's Trainer takes whole"),
        ({}, {"max_epochs": -1}, "give the Trainer max_epochs or max_steps"),
    ],
)
def test_what_it_cannot_do_is_said(
    small_digits, tmp_path: Path, changes: dict, options: dict, message: str
):
    with pytest.raises(ValueError, match=message):
        fitted(
            library.BarlowTwinsModule(replace(CONFIG, **changes), **NORMALISED), small_digits,
            tmp_path, **options,
        )  # fmt: skip


def test_batches_of_other_loaders():
    a, b = torch.zeros(2, 1, 8, 8), torch.ones(2, 1, 8, 8)
    for batch in ((a, b), [a, b], ((a, b), torch.zeros(2)), [[a, b, a], None]):
        found = library._views(batch)
        assert found[0] is a
        assert found[1] is b
    for wrong in (a, (a,), (a, torch.zeros(2)), {"views": (a, b)}, ()):
        with pytest.raises(TypeError, match="a batch must be two views"):
            library._views(wrong)


def test_the_one_that_is_imported_is_used(monkeypatch: pytest.MonkeyPatch):
    def only(*names: str):
        for name in library.LIBRARIES:
            monkeypatch.delitem(sys.modules, name, raising=False)
        stand_ins = {name: SimpleNamespace(name=name) for name in names}
        monkeypatch.setattr(library.importlib, "import_module", lambda name: find(stand_ins, name))

    def find(stand_ins, name):
        if name not in stand_ins:
            raise ModuleNotFoundError(f"No module named {name!r}", name=name.split(".")[0])
        return stand_ins[name]

    only(*library.LIBRARIES)
    assert library._lightning().name == "lightning.pytorch"
    monkeypatch.setitem(sys.modules, "pytorch_lightning", SimpleNamespace())
    assert library._lightning().name == "pytorch_lightning"
    only("pytorch_lightning")
    assert library._lightning().name == "pytorch_lightning"
    only()
    with pytest.raises(ModuleNotFoundError, match=r"pip install 'barlow-fast\[lightning\]'"):
        library._lightning()
