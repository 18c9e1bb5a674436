"""Every setting of a run, and every argument of the trainer, is seen to do what it says.

A setting without a case here fails `test_every_setting_has_a_case`: one that is accepted and then
ignored looks like any other until somebody depends on it.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from dataclasses import fields, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from options import assert_covered, record_calls
from runs import Recording
from scenarios import part_of
from torch import Tensor, nn

from barlow_fast import plan
from barlow_fast.data import PRESETS as VIEWS
from barlow_fast.data import ImageDataset
from barlow_fast.data.order import order
from barlow_fast.losses.catalogue import LOSSES
from barlow_fast.models import BarlowTwinsModel
from barlow_fast.training import (
    LARS,
    PRESETS,
    Feeding,
    Hook,
    PretrainConfig,
    Ranks,
    Trainer,
    configure,
    feeding,
    images,
    loop,
    parallel,
    watching,
)
from barlow_fast.training.feeding import VIEWS_OF
from barlow_fast.training.muon import Muon

CPU = torch.device("cpu")
BASE = configure(
    "digits", loss="barlow-twins", epochs=3, batch_size=32, encoder_widths=(4, 8),
    projector=(16, 24), warmup_epochs=1, evaluate_every=3, precision="fp32",
)  # fmt: skip
# Plain steps of LARS: what an optimizer's setting does can be computed from outside.
LARGE_STEPS = replace(BASE, optimizer="lars", learning_rate=0.3, momentum=0.0, warmup_epochs=0)

CASES: dict[str, Callable[..., None]] = {}


def case(name: str) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Registers the function that shows the effect of the setting `name`."""

    def register(function: Callable[..., None]) -> Callable[..., None]:
        assert name not in CASES
        CASES[name] = function
        return function

    return register


class Surroundings(SimpleNamespace):
    """What a case works with: `data`, `folder`, `patch`."""

    data: ImageDataset
    folder: Path
    patch: pytest.MonkeyPatch

    def trainer(self, config: PretrainConfig = BASE, **settings: Any) -> Trainer:
        trainer = Trainer(replace(config, **settings), self.data)
        trainer.network.train()
        return trainer

    def run(self, config: PretrainConfig = BASE, *hooks: Hook, **settings: Any) -> Trainer:
        path = self.folder / "checkpoint.pt"
        trainer = Trainer(replace(config, **settings), self.data, "cpu", path, hooks)
        trainer.run()
        return trainer


@pytest.fixture
def around(small_digits: ImageDataset, tmp_path: Path, monkeypatch) -> Surroundings:
    return Surroundings(data=part_of(small_digits, 100, 40), folder=tmp_path, patch=monkeypatch)


@pytest.mark.parametrize("name", [field.name for field in fields(PretrainConfig)])
def test_every_setting_has_its_effect(name: str, around: Surroundings):
    CASES[name](around)


def test_every_setting_has_a_case():
    assert_covered(PretrainConfig, CASES)


# What is learned from.


@case("dataset")
def _(around):
    calls = record_calls(around.patch, images, "load", lambda *_: around.data)
    images.load_images(replace(BASE, dataset="fashion-mnist"), around.folder, Ranks(CPU))
    assert calls == [{"name": "fashion-mnist", "data_dir": around.folder}]


@case("views")
def _(around):
    trainer = around.trainer(views="fashion-mnist")
    assert trainer.views is trainer.loader.views is trainer.watcher.views is VIEWS["fashion-mnist"]
    assert around.trainer().views is VIEWS["digits"]


@case("view_count")
def _(around):
    a, b = VIEWS["digits"].views
    for count, expected in ((4, (a, b, a, b)), (2, (a, b)), (None, (a, b))):
        trainer = around.trainer(view_count=count)
        assert trainer.views.views == trainer.loader.views.views == expected
    trainer = around.trainer(view_count=4, small_views=1)
    seen: list[int] = []
    trainer.network.register_forward_pre_hook(lambda _, views: seen.append(len(views)))
    trainer.train_step()
    assert seen == [5]


@case("small_views")
@case("small_size")
def _(around):
    for size, side in ((None, 3), (5, 5)):
        trainer = around.trainer(small_views=3, small_size=size)
        shapes = [tuple(view.shape[2:]) for view in trainer.next_batch().views]
        assert shapes == [(8, 8)] * 2 + [(side, side)] * 3
    with pytest.raises(ValueError, match="8 x 8 pixels must be smaller than the large ones"):
        around.trainer(small_views=1, small_size=8)


@case("reduced_decoding")
def _(around):
    around.patch.setattr(feeding, "ViewLoader", Fed)
    for reduced in (False, True):
        trainer = around.trainer(reduced_decoding=reduced)
        views = Fed.received[0][1]
        assert views is trainer.views is trainer.watcher.views
        assert views == replace(VIEWS["digits"], reduced_decoding=reduced)


# The network.


@case("encoder")
def _(around):
    trainer = around.trainer(encoder="resnet18")
    assert hasattr(trainer.model.encoder, "layer4")


@case("stem")
def _(around):
    large, small = (
        around.trainer(encoder="resnet18", stem=stem).model.encoder
        for stem in ("imagenet", "small")
    )
    assert large.conv1.kernel_size == (7, 7)
    assert small.conv1.kernel_size == (3, 3)
    halved, whole = (around.trainer(stem=stem).model.encoder for stem in ("imagenet", "small"))
    assert (halved[0].stride, whole[0].stride) == ((2, 2), (1, 1))


@case("encoder_widths")
def _(around):
    encoder = around.trainer(encoder_widths=(3, 5, 7)).model.encoder
    convolutions = [m for m in encoder.modules() if isinstance(m, nn.Conv2d)]
    assert [c.out_channels for c in convolutions] == [3, 3, 5, 5, 7, 7]


@case("encoder_grid")
def _(around):
    encoder = around.trainer(encoder_grid=3).model.encoder
    assert encoder(torch.zeros(2, 1, 8, 8)).shape == (2, 8 * 9)


@case("projector")
def _(around):
    projector = around.trainer(projector=(6, 10, 14)).model.projector
    linears = [m for m in projector.modules() if isinstance(m, nn.Linear)]
    assert [linear.out_features for linear in linears] == [6, 10, 14]


@case("one_pass")
def _(around):
    many = {"view_count": 3, "small_views": 2}
    for one_pass, changes, passes in ((True, {}, 1), (False, {}, 2), (True, many, 2), (0, many, 5)):
        trainer = around.trainer(one_pass=bool(one_pass), **changes)
        trainer.train_step()
        assert trainer.model.encoder[1].num_batches_tracked == passes


# The loss.


def first_step(around: Surroundings, **settings: Any) -> tuple[dict[str, float], list[Tensor]]:
    """(Loss and terms, gradients) of the first step."""
    trainer = around.trainer(LARGE_STEPS, **settings)
    values = {name: float(value) for name, value in trainer.train_step().items()}
    return values, [p.grad for p in trainer.model.parameters()]


@case("lambd")
def _(around):
    for lambd in (0.0, 0.5):
        values, _ = first_step(around, lambd=lambd)
        on, off = 24 * values["on_diagonal_mean"], 24 * 23 * values["off_diagonal_mean"]
        assert values["loss"] == pytest.approx(on + lambd * off, rel=1e-4)


@case("loss")
def _(around):
    for name, kind in LOSSES.items():
        values, _ = first_step(around, loss=name)
        assert list(values) == ["loss", *kind.terms]


def weighted(around: Surroundings, loss: str, name: str, values: tuple[float, ...]) -> None:
    """The loss moves by the weight times its term, which stays."""
    found = [first_step(around, loss=loss, **{name: value})[0] for value in (0.0, *values)]
    factor = {"covariance": 24 - 1, "mixing": 0.0051 * 2 * 24**2}.get(name, 1)
    term = name if name in found[0] else f"{name}_mean"
    for value, each in zip(values, found[1:], strict=True):
        assert each[term] == found[0][term] > 0
        moved = each["loss"] - found[0]["loss"]
        assert moved == pytest.approx(value * factor * each[term], rel=1e-3)


# Without a value they are those of the loss's own signature.
@case("invariance")
def _(around):
    for loss, own in (("vicreg", 25.0), ("frossl", 1.0)):
        weighted(around, loss, "invariance", (0.5, 2.0))
        plain, same = (first_step(around, loss=loss, **c)[0] for c in ({}, {"invariance": own}))
        assert plain == same


for _name, _loss, _own in (
    ("variance", "vicreg", 25.0), ("covariance", "vicreg", 1.0),
    ("mixing", "mixed-barlow-twins", 1.0),
):  # fmt: skip

    @case(_name)
    def _(around, name=_name, loss=_loss, own=_own):
        weighted(around, loss, name, (0.5, 2.0))
        plain, same = (first_step(around, loss=loss, **c)[0] for c in ({}, {name: own}))
        assert plain == same


@case("scale")
def _(around):
    plain, gradients = first_step(around)
    scaled, larger = first_step(around, scale=4.0)
    assert scaled["loss"] == 4 * plain["loss"]
    assert scaled["on_diagonal_mean"] == plain["on_diagonal_mean"]
    assert all(torch.equal(4 * a, b) for a, b in zip(gradients, larger, strict=True))


@case("backend")
def _(around):
    calls = record_calls(around.patch, plan, "choose_backend")
    for backend in ("aten", "auto"):
        trainer = around.trainer(backend=backend)
        calls.clear()
        trainer.train_step()
        assert calls[0]["backend"] == backend


# How it is learned.


def assert_all_steps(around: Surroundings, changes: list[dict[str, Any]]) -> None:
    for settings in changes:
        assert_steps(around, **settings)


@case("epochs")
def _(around):
    assert around.run(epochs=2, warmup_epochs=0).history[-1]["step"] == 2 * 3


@case("batch_size")
def _(around):
    trainer = around.trainer(batch_size=40)
    assert len(trainer.next_batch().index) == 40
    assert trainer.steps_per_epoch == 2


@case("micro_batch_size")
def _(around):
    trainer = around.trainer(micro_batch_size=12)
    sizes: list[int] = []
    trainer.network.register_forward_pre_hook(lambda _, views: sizes.append(len(views[0])))
    trainer.train_step()
    assert sizes == [11, 11, 10] * 2


@case("optimizer")
def _(around):
    kinds = {"lars": LARS, "adamw": torch.optim.AdamW, "sgd": torch.optim.SGD, "muon": Muon}
    for name, kind in kinds.items():
        assert type(around.trainer(optimizer=name).optimizer) is kind
    # The steps of LARS without its trust ratio.
    assert_steps(
        around, 3, optimizer="sgd", learning_rate=0.01, bias_learning_rate=0.02, momentum=0.6,
        weight_decay=0.4,
    )  # fmt: skip


def assert_steps(around: Surroundings, steps: int = 1, **settings: Any) -> None:
    """The weights move as the text of `lars` or SGD says, with the numbers of the settings."""
    config = replace(LARGE_STEPS, **settings)
    trainer = around.trainer(config)
    trainer.optimizer.param_groups[0]["lr"] = trainer.optimizer.param_groups[1]["lr"] = math.nan
    scale = config.batch_size / (config.reference_batch_size or config.batch_size)
    biases = config.bias_learning_rate
    biases = config.learning_rate if biases is None else biases
    momenta = [torch.zeros_like(p, dtype=torch.float64) for p in trainer.model.parameters()]
    for step in range(steps):
        before = [p.detach().double() for p in trainer.model.parameters()]
        trainer.train_step()
        # The text of `learning_rate` without warm-up.
        course = 0.5 * (1 + math.cos(math.pi * step / trainer.total_steps))
        course = config.final_learning_rate + (1 - config.final_learning_rate) * course
        for p, old, momentum in zip(trainer.model.parameters(), before, momenta, strict=True):
            d, rate = p.grad.double(), scale * course * biases
            if p.ndim > 1:
                rate = scale * course * config.learning_rate
                d = d + config.weight_decay * old
                if config.optimizer == "lars":
                    d = config.trust_coefficient * old.norm() / d.norm() * d
            momentum.mul_(config.momentum).add_(d)
            torch.testing.assert_close(
                p.detach().double(), old - rate * momentum, rtol=2e-5, atol=1e-7
            )


# What the steps of LARS depend on; 0 is a rate of biases, and None that of the weights.
for _name, _changes in {
    "learning_rate": [{"learning_rate": 0.7}],
    "bias_learning_rate": [{"bias_learning_rate": 0.01}, {"bias_learning_rate": 0.0}],
    "reference_batch_size": [{"reference_batch_size": 8, "bias_learning_rate": 0.05}],
    "momentum": [{"steps": 3, "momentum": 0.6}],
    "trust_coefficient": [{"trust_coefficient": 0.05}],
}.items():
    CASES[_name] = functools.partial(assert_all_steps, changes=_changes)


@case("weight_decay")
def _(around):
    assert_steps(around, weight_decay=0.4)
    trainer = around.trainer(weight_decay=0.4, warmup_epochs=0)
    expected = [p.detach().clone().requires_grad_() for p in trainer.model.parameters()]
    trainer.train_step()
    weights = [p for p in expected if p.ndim > 1]
    groups = [{"params": weights}, {"params": [p for p in expected if p.ndim <= 1]}]
    groups[1]["weight_decay"] = 0.0
    optimizer = torch.optim.AdamW(groups, lr=BASE.learning_rate, weight_decay=0.4)
    for mine, theirs in zip(expected, trainer.model.parameters(), strict=True):
        mine.grad = theirs.grad
    optimizer.step()
    for mine, theirs in zip(expected, trainer.model.parameters(), strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-5, atol=1e-7)


@case("warmup_epochs")
def _(around):
    watch = Recording()
    around.run(BASE, watch, warmup_epochs=2)
    peak = BASE.learning_rate
    weights, biases = zip(*watch.rates, strict=True)
    assert weights[:7] == biases[:7] == pytest.approx([peak * k / 6 for k in range(1, 7)] + [peak])
    assert weights[7] < peak


@case("final_learning_rate")
def _(around):
    watch = Recording()
    around.run(LARGE_STEPS, watch, final_learning_rate=0.25, bias_learning_rate=0.1)
    assert len(watch.rates) == 9
    for step, rates in enumerate(watch.rates):
        course = 0.25 + 0.75 * 0.5 * (1 + math.cos(math.pi * step / 9))
        assert rates == pytest.approx([0.3 * course, 0.1 * course])


@case("seed")
def _(around):
    a, b = around.trainer(seed=2**63 + 5), around.trainer()
    assert not torch.equal(a.model.encoder[0].weight, b.model.encoder[0].weight)
    ours = a.next_batch().index
    assert ours.tolist() == order(2**63 + 5, 0, 100)[:32].tolist()
    assert not torch.equal(ours, b.next_batch().index)
    # What the network draws itself.
    drawn = []
    for trainer in (a, b):
        trainer._seed_generators()
        drawn.append(torch.rand(()).item())
    assert drawn[0] != drawn[1]
    # The measured views.
    found = [t.watcher.measure(t.plain_model(copied=True))[0] for t in (a, b)]
    b.watcher.config = a.config
    found.append(b.watcher.measure(b.plain_model(copied=True))[0])
    assert not torch.equal(found[1], found[2])


# How it is computed.


@case("precision")
def _(around):
    for precision, dtype in (("fp32", torch.float32), ("bf16", torch.bfloat16)):
        trainer = around.trainer(precision=precision)
        seen: list[torch.dtype] = []
        trainer.model.projector.register_forward_hook(lambda *a, seen=seen: seen.append(a[2].dtype))
        loss = trainer.train_step()["loss"]
        assert set(seen) == {dtype}
        assert loss.dtype == torch.float32
        assert {p.dtype for p in trainer.model.parameters()} == {torch.float32}


@case("compile")
def _(around):
    modes: list[Any] = []
    around.patch.setattr(nn.Module, "compile", lambda self, mode: modes.append(mode))
    for mode in ("off", "default", "reduce-overhead", "max-autotune"):
        around.trainer(compile=mode)
    assert modes == [None, "reduce-overhead", "max-autotune"]


@case("checkpoint_activations")
def _(around):
    for recomputed, passes in ((True, 4), (False, 2)):
        trainer = around.trainer(checkpoint_activations=recomputed)
        seen: list[int] = []
        trainer.model.encoder[0].register_forward_pre_hook(lambda *_, seen=seen: seen.append(1))
        trainer.train_step()
        assert len(seen) == passes


def model() -> BarlowTwinsModel:
    from barlow_fast.models import build_twins

    return build_twins("small", channels=1, image_size=8, encoder_widths=(4, 8), projector=(16, 24))


@case("sync_batch_norm")
def _(around):
    plain = type(model().encoder[1])
    for wanted, size in ((True, 1), (True, 2), (False, 1), (False, 2)):
        config, ranks = replace(BASE, sync_batch_norm=wanted), Ranks(CPU, 0, size)
        found = type(parallel.prepare(model(), config, ranks).encoder[1])
        assert (found is plain) == ((wanted, size) != (True, 2))


@case("parallel")
def _(around):
    shards = record_calls(around.patch, parallel, "_shard", lambda *_, **__: False)
    wraps = record_calls(
        around.patch, nn.parallel, "DistributedDataParallel", lambda *_, **__: nn.Identity()
    )
    for kind, size, seen in (("ddp", 2, (0, 1)), ("fsdp", 2, (1, 1)), ("fsdp", 1, (1, 1))):
        config, ranks = replace(BASE, parallel=kind), Ranks(CPU, 0, size)
        parallel.wrap(parallel.prepare(model(), config, ranks), config, ranks)
        assert (len(shards), len(wraps)) == seen


# How it is watched.


@case("evaluate_every")
def _(around):
    history = around.run(epochs=5, evaluate_every=2).history
    assert [record["knn"] is not None for record in history] == [False, True, False, True, True]


@case("neighbours")
@case("neighbour_images")
def _(around):
    calls = record_calls(around.patch, watching, "knn_accuracy")
    around.trainer(neighbours=3, neighbour_images=17).score()
    (call,) = calls
    assert (call["k"], len(call["train_features"]), len(call["test_features"])) == (3, 17, 40)
    assert torch.equal(call["train_labels"], around.data.train_labels[:17])


class Clock:
    """Seconds that pass as requested."""

    def __init__(self, around: Surroundings) -> None:
        self.now = 1000.0
        around.patch.setattr(loop, "time", SimpleNamespace(monotonic=self, perf_counter=self))

    def __call__(self) -> float:
        return self.now


def saved_steps(around: Surroundings, seconds_per_step: float = 1.0, **settings: Any) -> list[int]:
    """The steps after which a run writes its checkpoint."""
    clock, steps = Clock(around), []
    around.patch.setattr(
        loop, "save_checkpoint", lambda _, state, keep: steps.append(state["step"])
    )

    class Passing(Hook):
        def stepped(self, trainer, step):
            clock.now += seconds_per_step

    around.run(BASE, Passing(), **settings)
    return steps


@case("checkpoint_every")
def _(around):
    assert saved_steps(around, epochs=5, evaluate_every=1, checkpoint_every=2) == [6, 12, 15]
    assert saved_steps(around, epochs=5, evaluate_every=2) == [6, 12, 15]


@case("checkpoint_minutes")
def _(around):
    # 2 minutes: more than 119 seconds, less than 121. An epoch has 6 steps.
    settings = {"batch_size": 16, "epochs": 1, "checkpoint_minutes": 2.0}
    assert saved_steps(around, 61.0, **settings) == [2, 4, 6]
    assert saved_steps(around, 41.0, **settings) == [3, 6]
    assert saved_steps(around, 19.0, **settings) == [6]
    # Exactly as long is not yet longer, and the end of an epoch is not inside of one.
    assert saved_steps(around, 60.0, **settings) == [3, 6]
    assert saved_steps(around, 1e9, **settings, checkpoint_every=1) == [1, 2, 3, 4, 5, 6]


@case("keep_checkpoints")
def _(around):
    around.run(epochs=5, evaluate_every=1, keep_checkpoints=3)
    names = {path.name for path in around.folder.iterdir()}
    assert names == {"checkpoint.pt", "checkpoint-1.pt", "checkpoint-2.pt"}


# The limits of the settings. name: (accepted, refused)
NO_NUMBERS = (math.inf, math.nan)
LIMITS: dict[str, tuple[tuple, tuple]] = {
    **dict.fromkeys(
        ("encoder_grid", "evaluate_every", "neighbours", "neighbour_images", "keep_checkpoints"),
        ((1,), (0,)),
    ),
    **dict.fromkeys(("checkpoint_every", "reference_batch_size"), ((1, None), (0,))),
    "view_count": ((2, None), (1, 0, -1)),
    "small_views": ((0, 1), (-1,)),
    "loss": (("barlow-twins", "vicreg", "mixed-barlow-twins", "frossl"), ("simclr", "")),
    "epochs": ((5, 6), (0, 4)),  # 5 of warm-up
    "batch_size": ((2,), (1,)),
    "micro_batch_size": ((2, None), (0, 1)),
    **dict.fromkeys(("encoder_widths", "projector"), (((1,), [3, 1]), ((), (0,), (4, 0)))),
    **dict.fromkeys(
        ("learning_rate", "scale", "trust_coefficient", "checkpoint_minutes"),
        ((1e-30,), (0.0, -1e-30, *NO_NUMBERS)),
    ),
    "bias_learning_rate": ((0.0, None), (-1e-30, *NO_NUMBERS)),
    **dict.fromkeys(("lambd", "weight_decay"), ((0.0,), (-1e-30, *NO_NUMBERS))),
    **dict.fromkeys(("momentum", "final_learning_rate"), ((0.0, 0.999), (-1e-9, 1.0, math.nan))),
    "warmup_epochs": ((0, 100), (-1, 101)),
    "seed": ((0, 2**64 - 1), (-1, 2**64)),
    "precision": (("auto", "fp32", "bf16", "fp16"), ("fp64", "")),
    "optimizer": (("adamw", "lars", "sgd", "muon"), ("adam", "SGD")),
    "parallel": (("ddp", "fsdp"), ("none",)),
    "compile": (("off", "default", "reduce-overhead", "max-autotune"), ("on",)),
    "stem": (("auto", "imagenet", "small"), ("large",)),
}
UNLIMITED = {
    **dict.fromkeys(("dataset", "views"), "a name or a path: looked up when it is loaded"),
    "encoder": "a name of another library: looked up when it is built",
    "backend": "checked by the loss",
    **dict.fromkeys(
        ("small_size", "mixing", "invariance", "variance", "covariance"),
        "of other settings: test_settings_that_exclude_each_other",
    ),
    "reduced_decoding": "a flag",
    **dict.fromkeys(("one_pass", "checkpoint_activations", "sync_batch_norm"), "a flag"),
}


@pytest.mark.parametrize("name", LIMITS)
def test_limits_of_every_setting(name: str):
    accepted, refused = LIMITS[name]
    config = PretrainConfig()
    for value in accepted:
        found = getattr(replace(config, **{name: value}), name)
        assert found == (tuple(value) if isinstance(value, list) else value)
    for value in refused:
        # An epoch too few for the warm-up is reported as such.
        with pytest.raises(ValueError, match=name):
            replace(config, **{name: value})


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"loss": "vicreg", "lambd": 0.01}, "lambd is no weight of loss vicreg, which has inv"),
        ({"loss": "frossl", "lambd": 0.01}, "Losses with lambd: barlow-twins, mixed-barlow-twins"),
        ({"loss": "frossl", "variance": 2.0}, "variance is no weight of loss frossl"),
        ({"mixing": 1.0}, "mixing is no weight of loss barlow-twins, which has lambd; got 1.0"),
        ({"loss": "mixed-barlow-twins", "invariance": 1.0}, "invariance is no weight of loss mix"),
        ({"loss": "vicreg", "covariance": -1.0}, "covariance must be at least 0"),
        ({"loss": "vicreg", "variance": math.nan}, "variance must be at least 0"),
        ({"loss": "frossl", "invariance": -1e-9}, "invariance must be at least 0"),
        ({"loss": "mixed-barlow-twins", "mixing": math.inf}, "mixing must be at least 0"),
        (
            {"loss": "mixed-barlow-twins", "view_count": 4},
            "mixed-barlow-twins takes 2 views, got 4",
        ),
        ({"loss": "mixed-barlow-twins", "small_views": 1}, "takes 2 views, got 2 and 1 small ones"),
        ({"small_size": 4}, "small_size is 4, and there are no small_views"),
        ({"small_size": 0, "small_views": 1}, "small_size must be at least 1"),
    ],
)
def test_settings_that_exclude_each_other(settings: dict[str, Any], message: str):
    with pytest.raises(ValueError, match=message):
        PretrainConfig(**settings)
    PretrainConfig(loss="mixed-barlow-twins", view_count=2, mixing=0.0, lambd=0.0)
    PretrainConfig(loss="vicreg", view_count=8, small_views=6, small_size=4, invariance=0.0)


def test_every_setting_has_its_limits():
    assert_covered(PretrainConfig, LIMITS, UNLIMITED)


def test_the_numbers_of_the_presets():
    """The paper's: Zbontar et al. (ICML 2021), section 2.2, and the authors' code. Users compare
    their scores with those of these numbers."""
    digits, files = PRESETS["digits"], PRESETS["files"]
    assert digits == PretrainConfig(loss="frossl")
    assert digits.to_dict() == {
        "dataset": "digits", "views": "", "view_count": None, "small_views": 0,
        "small_size": None, "reduced_decoding": False,
        "encoder": "small", "stem": "auto",
        "encoder_widths": [32, 64, 128], "encoder_grid": 2, "projector": [512, 512, 1024],
        "one_pass": False, "loss": "frossl", "lambd": 0.0051, "mixing": None,
        "invariance": None, "variance": None, "covariance": None,
        "scale": 1.0, "backend": "auto", "epochs": 100,
        "batch_size": 128, "micro_batch_size": None, "optimizer": "adamw", "learning_rate": 2e-3,
        "bias_learning_rate": None, "reference_batch_size": None, "momentum": 0.9,
        "trust_coefficient": 0.001, "weight_decay": 1e-4, "warmup_epochs": 5,
        "final_learning_rate": 0.001, "seed": 0, "precision": "auto", "compile": "off",
        "checkpoint_activations": False, "sync_batch_norm": True, "parallel": "ddp",
        "evaluate_every": 10, "neighbours": 5, "neighbour_images": 10_000,
        "checkpoint_every": None, "checkpoint_minutes": 15.0, "keep_checkpoints": 2,
    }  # fmt: skip
    assert files == replace(
        digits, dataset="files", views="imagenet", loss="barlow-twins", epochs=20, batch_size=64,
        encoder_widths=(16, 32, 64, 128, 256), warmup_epochs=2, evaluate_every=1,
    )  # fmt: skip
    assert PRESETS["fashion-mnist"] == replace(
        digits, dataset="fashion-mnist", loss="frossl", epochs=4, batch_size=256,
        learning_rate=8e-3, optimizer="muon", momentum=0.95, stem="small", encoder_grid=4,
        encoder_widths=(16, 32, 64, 128), warmup_epochs=1, evaluate_every=2, neighbours=20,
    )  # fmt: skip
    paper = PRESETS["imagenet-1000ep"]
    assert paper == replace(
        files, encoder="resnet50", encoder_widths=digits.encoder_widths,
        projector=(8192, 8192, 8192), epochs=1000, batch_size=2048, optimizer="lars",
        learning_rate=0.2, bias_learning_rate=0.0048, reference_batch_size=256, weight_decay=1e-6,
        warmup_epochs=10, evaluate_every=10, neighbours=20, checkpoint_every=1,
    )  # fmt: skip
    assert paper.learning_rates == pytest.approx((0.2 * 2048 / 256, 0.0048 * 2048 / 256))
    small = replace(
        paper, dataset="cifar10", views="", encoder="resnet18", projector=(2048, 2048, 2048),
        batch_size=256, weight_decay=1e-4,
    )  # fmt: skip
    assert PRESETS["cifar10"] == small
    assert PRESETS["cifar100"] == replace(small, dataset="cifar100")
    assert PRESETS["stl10"] == replace(small, dataset="stl10", epochs=400, weight_decay=1e-5)
    assert PRESETS["imagenet100"] == replace(
        paper, encoder="resnet18", projector=(2048, 2048, 2048), epochs=400, batch_size=256
    )
    assert PRESETS["imagenet-100ep"] == replace(
        paper, epochs=100, batch_size=256, weight_decay=1.5e-6
    )
    vicreg = replace(paper, loss="vicreg", bias_learning_rate=None)
    assert PRESETS["vicreg-imagenet-1000ep"] == vicreg
    assert vicreg.learning_rates == pytest.approx((1.6, 1.6))
    assert PRESETS["vicreg-imagenet-100ep"] == replace(
        vicreg, epochs=100, batch_size=512, learning_rate=0.3
    )
    small_vicreg = replace(small, loss="vicreg", bias_learning_rate=None)
    assert PRESETS["vicreg-cifar10"] == small_vicreg
    assert PRESETS["vicreg-cifar100"] == replace(small_vicreg, dataset="cifar100")
    assert PRESETS["vicreg-imagenet100"] == replace(
        PRESETS["imagenet100"], loss="vicreg", bias_learning_rate=None
    )
    mixed = replace(
        digits, dataset="cifar10", encoder="resnet18", projector=(512, 1024), epochs=2000,
        loss="mixed-barlow-twins", lambd=1 / 128, mixing=4.0, batch_size=256, learning_rate=0.01,
        reference_batch_size=256, weight_decay=1e-6, warmup_epochs=10, neighbours=20,
        checkpoint_every=1,
    )  # fmt: skip
    assert PRESETS["mixed-barlow-twins-cifar10"] == mixed
    assert PRESETS["mixed-barlow-twins-cifar100"] == replace(
        mixed, dataset="cifar100", projector=(512, 2048)
    )
    assert PRESETS["mixed-barlow-twins-stl10"] == replace(mixed, dataset="stl10", mixing=2.0)
    assert PRESETS["mixed-barlow-twins-imagenet-300ep"] == replace(
        paper, loss="mixed-barlow-twins", mixing=0.5, epochs=300, batch_size=1024
    )
    frossl = replace(small, loss="frossl", projector=(2048, 2048, 1024), invariance=1.4)
    assert PRESETS["frossl-cifar10"] == frossl
    assert PRESETS["frossl-cifar100"] == replace(frossl, dataset="cifar100")
    assert PRESETS["frossl-stl10"] == replace(frossl, dataset="stl10", invariance=1.0, epochs=500)
    assert PRESETS["frossl-imagenet100"] == replace(
        frossl, dataset="files", views="imagenet", invariance=1.0, epochs=400, batch_size=512
    )
    assert [view.size for view in VIEWS_OF["stl10"].views] == [96, 96]
    assert (watching.MEASURED_SAMPLES, watching.MEASURED_DIMENSIONS) == (512, 64)
    assert (watching.MAPPED_IMAGES, watching.MEASURED_EPOCH) == (400, 2**32 - 2)


# What may change between a stop and the run that resumes: nothing that the weights depend on.
CHANGED = {
    "backend": "aten", "compile": "default", "checkpoint_activations": True, "parallel": "fsdp",
    "neighbours": 7, "neighbour_images": 77, "evaluate_every": 2, "checkpoint_every": 3,
    "checkpoint_minutes": 1.0, "keep_checkpoints": 5, "epochs": 4,
}  # fmt: skip
KEPT = {
    "views": "fashion-mnist", "reduced_decoding": True, "encoder_widths": (4, 9),
    "encoder_grid": 3, "projector": (16, 25),
    "one_pass": True, "lambd": 0.01, "scale": 2.0, "batch_size": 30, "micro_batch_size": 16,
    "optimizer": "lars", "learning_rate": 0.1, "bias_learning_rate": 0.1, "momentum": 0.5,
    "reference_batch_size": 16, "trust_coefficient": 0.1, "weight_decay": 0.1, "warmup_epochs": 2,
    "final_learning_rate": 0.5, "seed": 1, "precision": "bf16", "sync_batch_norm": False,
    "dataset": "other", "encoder": "resnet18", "stem": "imagenet", "loss": "vicreg",
    "view_count": 3, "small_views": 2, "small_size": 4, "mixing": 2.0, "invariance": 2.0,
    "variance": 2.0, "covariance": 2.0,
}  # fmt: skip
# What these settings take besides.
WITH = {
    "small_size": {"small_views": 1}, "mixing": {"loss": "mixed-barlow-twins"},
    **{name: {"loss": "vicreg"} for name in ("invariance", "variance", "covariance")},
}  # fmt: skip


def test_every_setting_may_or_may_not_change_in_a_resumed_run():
    assert_covered(PretrainConfig, CHANGED | KEPT)
    assert set(CHANGED) == PretrainConfig.MAY_CHANGE


@pytest.mark.parametrize("name", CHANGED | KEPT)
def test_a_resumed_run_keeps_what_weights_depend_on(name: str, around: Surroundings):
    besides = WITH.get(name, {})
    state = around.trainer(**besides).state_dict()
    resumed = around.trainer(**besides)
    resumed.config = replace(BASE, **besides, **{name: (CHANGED | KEPT)[name]})
    if name in CHANGED:
        resumed.load_state_dict(state)
    else:
        with pytest.raises(ValueError, match=rf"other settings: {name}"):
            resumed.load_state_dict(state)


@pytest.mark.parametrize("name", PretrainConfig.LATER)
def test_checkpoints_of_versions_without_a_setting_continue(name: str, around: Surroundings):
    trainer = around.trainer()
    state = trainer.state_dict()
    state["config"] = dict(state["config"])
    del state["config"][name]
    assert PretrainConfig.from_dict(state["config"]) == BASE
    trainer.load_state_dict(state)


# The trainer itself, and how it is fed.


class Fed:
    """Stands in for the loader and keeps what it received."""

    received: tuple[tuple, dict[str, Any]]

    def __init__(self, *arguments: Any, **options: Any) -> None:
        Fed.received = (arguments, options)

    def __len__(self) -> int:
        return 3


def passed_to_the_loader(around: Surroundings, **arguments: Any) -> tuple[Trainer, dict[str, Any]]:
    around.patch.setattr(feeding, "ViewLoader", Fed)
    trainer = Trainer(BASE, around.data, **arguments)
    (_, _, batch_size), options = Fed.received
    policy = options["on_bad_image"].policy
    return trainer, {"batch_size": batch_size, **options, "on_bad_image": policy}


FEEDING = {"loader": "pil", "workers": 3, "on_bad_image": "skip", "timeout": 5.0}
PLAIN = {
    "batch_size": 32, "seed": 0, "rank": 0, "ranks": 1, "device": CPU,
    "loader": "auto", "workers": None, "on_bad_image": "error", "timeout": 1800.0,
}  # fmt: skip


@pytest.mark.parametrize("name", FEEDING)
def test_how_images_are_read_reaches_the_loader(name: str, around: Surroundings):
    assert_covered(Feeding, FEEDING)
    _, received = passed_to_the_loader(around, feeding=Feeding(**{name: FEEDING[name]}))
    assert received == {**PLAIN, name: FEEDING[name]}


def on_ranks(around: Surroundings) -> None:
    around.patch.setattr(parallel, "wrap", lambda model, config, ranks: model)
    trainer, received = passed_to_the_loader(around, ranks=Ranks(CPU, 1, 4))
    assert received == {**PLAIN, "batch_size": 8, "rank": 1, "ranks": 4}
    assert trainer.criterion.process_group == "world"
    alone, received = passed_to_the_loader(around)
    assert received == PLAIN
    assert alone.criterion.process_group is None
    for size, message in ((30, "take 28 or 32"), (2, "take 4 or 4")):
        with pytest.raises(ValueError, match=message):
            Trainer(replace(BASE, batch_size=size), around.data, ranks=Ranks(CPU, 1, 4))


def on_a_device(around: Surroundings) -> None:
    trainer, received = passed_to_the_loader(around, device="meta")
    meta = torch.device("meta")
    assert received["device"] == trainer.watcher.device == trainer.device == meta
    assert {p.device for p in trainer.model.parameters()} == {meta}
    # The ranks' device, where they are given.
    assert passed_to_the_loader(around, ranks=Ranks(meta))[0].device == meta


def with_a_path(around: Surroundings) -> None:
    around.patch.chdir(around.folder)
    path = around.folder / "here.pt"
    for given in (path, str(path)):
        Trainer(BASE, around.data, checkpoint_path=given).save()
        assert [p.name for p in around.folder.iterdir()] == ["here.pt"]
        path.unlink()
    Trainer(BASE, around.data).save()
    assert not list(around.folder.iterdir())


def with_hooks(around: Surroundings) -> None:
    watch = Recording()
    Trainer(BASE, around.data, hooks=iter([watch])).run()
    assert len(watch.rates) == 9


TRAINER = {
    "device": on_a_device, "ranks": on_ranks, "checkpoint_path": with_a_path, "hooks": with_hooks
}  # fmt: skip


@pytest.mark.parametrize("name", TRAINER)
def test_every_argument_of_the_trainer_has_its_effect(name: str, around: Surroundings):
    TRAINER[name](around)


def test_every_argument_of_the_trainer_has_a_case():
    shown = {"config": "test_every_setting_has_its_effect", "data": "what is learned from"}
    shown["feeding"] = "test_how_images_are_read_reaches_the_loader"
    shown["splits"] = "test_a_divided_folder_is_scored_on_its_held_out_images (test_feeding)"
    assert_covered(Trainer, TRAINER, shown)
