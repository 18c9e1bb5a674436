"""Pickles, saved modules and copies of losses on both sides of a patch, with the installed peers.

A pickle names a class by its place in its library. While patched, what is read from there is ours;
ours is pickled as barlow_fast's own, so that it stays ours.
"""

from __future__ import annotations

import copy
import importlib
import io
import pickle
from collections.abc import Callable, Iterator

import pytest
import torch
from torch import Tensor, nn

import barlow_fast

ATTRIBUTE = {"lightly": "lambda_param", "monai": "lambd"}
BY_NAME = pytest.mark.parametrize("name", ATTRIBUTE)


class Model(nn.Module):
    """As a LightningModule holds its criterion."""

    def __init__(self, criterion: nn.Module) -> None:
        super().__init__()
        self.encoder = nn.Linear(7, 5)
        self.criterion = criterion

    def forward(self, views: tuple[Tensor, Tensor]) -> Tensor:
        return self.criterion(*map(self.encoder, views))


def losses(name: str):
    pytest.importorskip(name, exc_type=ImportError)
    return importlib.import_module({"lightly": "lightly.loss", "monai": "monai.losses"}[name])


def model_of(kind: type[nn.Module], name: str) -> Model:
    """A model whose weight of the off-diagonal term was set after construction."""
    model = Model(kind(0.1))
    setattr(model.criterion, ATTRIBUTE[name], 0.25)
    return model


def saved(module: nn.Module) -> bytes:
    file = io.BytesIO()
    torch.save(module, file)
    return file.getvalue()


def loaded(data: bytes) -> nn.Module:
    return torch.load(io.BytesIO(data), weights_only=False)


WAYS: dict[str, tuple[Callable, Callable]] = {
    "torch": (saved, loaded),
    "pickle": (pickle.dumps, pickle.loads),
    "protocol 2": (lambda module: pickle.dumps(module, 2), pickle.loads),
}


@pytest.fixture
def views() -> tuple[Tensor, Tensor]:
    return torch.randn(9, 7), torch.randn(9, 7)


def written(model: nn.Module) -> Iterator[tuple[bytes, Callable]]:
    for write, read in WAYS.values():
        yield write(model), read


@BY_NAME
def test_saved_before_and_loaded_while_patched(name, views):
    module = losses(name)
    model = model_of(module.BarlowTwinsLoss, name)
    for data, read in list(written(model)):
        with barlow_fast.patch(name):
            found = read(data)
            assert type(found.criterion) is module.BarlowTwinsLoss is not type(model.criterion)
            torch.testing.assert_close(found(views), model(views))
            found(views).backward()
            for twin in (copy.deepcopy(found), pickle.loads(pickle.dumps(found))):
                torch.testing.assert_close(twin(views), model(views))
        torch.testing.assert_close(found(views), model(views))
        assert type(read(data).criterion) is type(model.criterion)


@BY_NAME
def test_originals_are_saved_and_copied_while_patched(name, views):
    module = losses(name)
    original = module.BarlowTwinsLoss
    model = model_of(original, name)
    derived = Model(type(f"Derived_{name}", (original,), {"__module__": __name__})(0.25))
    globals()[f"Derived_{name}"] = type(derived.criterion)
    derived.encoder = model.encoder
    with barlow_fast.patch(name):
        for copied in (copy.deepcopy(model), copy.copy(model)):
            assert type(copied.criterion) is original
            assert torch.equal(copied(views), model(views))
        shallow = copy.copy(model.criterion)
        assert type(shallow) is original
        assert vars(shallow) == vars(model.criterion)
        data = list(written(model))
        for file, read in data:
            assert b"barlow_fast" not in file  # another program can read it
            assert type(read(file).criterion) is module.BarlowTwinsLoss
            torch.testing.assert_close(read(file)(views), model(views))
        for file, read in written(derived):
            assert type(read(file).criterion) is type(derived.criterion)
            assert torch.equal(read(file)(views), model(views))
    for file, read in data:
        assert type(read(file).criterion) is original
        assert torch.equal(read(file)(views), model(views))


@BY_NAME
def test_ours_stays_ours(name, views):
    module = losses(name)
    with barlow_fast.patch(name):
        model = model_of(module.BarlowTwinsLoss, name)
        data = list(written(model))
    for file, read in [*data, *written(model)]:
        assert type(read(file).criterion) is type(model.criterion)
        assert torch.equal(read(file)(views), model(views))
    # Without barlow_fast: the state, into a model of the library's own.
    theirs = model_of(module.BarlowTwinsLoss, name)
    theirs.load_state_dict(model.state_dict(), strict=True)
    torch.testing.assert_close(theirs(views), model(views))
