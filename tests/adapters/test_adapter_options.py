"""Every option of every adapter is seen to have its effect; one without a case here fails.

An option is given a value that is not its default (or not that of `required`), and loss and
gradients are those of the formula with that value, when it is passed and when it is set afterwards.
"""

from __future__ import annotations

import importlib
import inspect
import pkgutil
from collections.abc import Callable, Mapping
from types import MappingProxyType, SimpleNamespace
from typing import Any, NamedTuple

import pytest
import torch
from formulas import Flat, batch_norm, of_norm, outcome, shared_norm, unbiased
from torch import Tensor, nn

from barlow_fast import adapters

N, D = 8, 5
RANKS = 4  # of the pool: these losses are those of the world


class Effect(NamedTuple):
    """Loss and gradients are those of `formula`."""

    value: Any
    formula: Callable[[Tensor, Tensor], Tensor]
    attribute: str | None = ""  # where the option is set afterwards: '' for its name, None for not


class Seen(NamedTuple):
    """An effect on something else than the loss."""

    value: Any
    check: Callable[[Any], bool]


class Refused(NamedTuple):
    value: Any
    error: type[Exception]


class AcrossRanks(NamedTuple):
    """On ranks gradients are `factor` times the default's; None: the loss is of all ranks."""

    value: Any
    factor: float | None


class DeadFeatures(NamedTuple):
    value: str = "zero"


class OfKernels(NamedTuple):
    """The calls of the kernel set show it."""

    value: str
    used: str
    unused: str = "nothing"


Case = Effect | Seen | Refused | AcrossRanks | DeadFeatures | OfKernels


def two_views(loss: Any, a: Tensor, b: Tensor) -> Tensor:
    return loss(a, b)


def concatenated(loss: Any, a: Tensor, b: Tensor) -> Tensor:
    return loss(torch.cat((a, b)))


def with_a_target(loss: Any, a: Tensor, b: Tensor) -> Tensor:
    return loss(torch.cat((a, b)), None)


def interleaved(loss: Any, a: Tensor, b: Tensor) -> Tensor:
    sample = torch.arange(len(a)).repeat_interleave(2)
    return loss(torch.stack((a, b), 1).flatten(0, 1), sample)


def by_method(head: Any, a: Tensor, b: Tensor) -> Tensor:
    return head.double().loss(a, b)


def of_matrix(loss: Any, a: Tensor, b: Tensor) -> Tensor:
    return loss(batch_norm(a).T @ batch_norm(b) / len(a))


def without_projector(model: Any, a: Tensor, b: Tensor) -> Tensor:
    model.projector = nn.Identity()
    return model.double()(a, b)


class Entry(NamedTuple):
    thing: Any  # a class, or a function of two views
    options: dict[str, Case | list[Case]]
    required: Mapping[str, Any] = MappingProxyType({})
    call: Callable[[Any, Tensor, Tensor], Tensor] = two_views

    def arguments(self, **options: Any) -> dict[str, Any]:
        given = {k: v() if inspect.isfunction(v) else v for k, v in self.required.items()}
        return given | options

    def made(self, **options: Any) -> Any:
        if inspect.isclass(self.thing):
            return self.thing(**self.arguments(**options))
        return lambda a, b: self.thing(a, b, **self.arguments(**options))

    def outcome(self, made: Any, a: Tensor, b: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        return outcome(lambda x, y: self.call(made, x, y), a, b)


def arguments_of(lambd: float = 0.0051, batch_size: int = N, projector: str = "5"):
    return SimpleNamespace(lambd=lambd, batch_size=batch_size, projector=projector)


def configuration(lambda_: float = 0.0051, scale_loss: float = 0.024, embedding_dim: int = D):
    return SimpleNamespace(lambda_=lambda_, scale_loss=scale_loss, embedding_dim=embedding_dim)


def cross_correlation(lambd: float = 0.0051) -> dict[str, Any]:
    return {"type": "CrossCorrelationLoss", "lambd": lambd}


def kept(option: str, value: Any) -> Seen:
    """For those that the peers have and do not use."""
    return Seen(value, lambda made: getattr(made, option) == value)


def shared(lambd: float, scale: float) -> Callable[[Tensor, Tensor], Tensor]:
    def loss(a: Tensor, b: Tensor) -> Tensor:
        u_a, u_b = batch_norm(torch.cat((a, b))).chunk(2)
        return of_norm(lambda z: z, lambd=lambd, scale=scale)(u_a, u_b)

    return loss


class Smaller(nn.Module):
    def forward(self, y: Tensor) -> Tensor:
        return 1e-3 * y


def norm(eps: float = 1e-5) -> nn.Module:
    return nn.BatchNorm1d(D, affine=False, eps=eps).double()


def with_eps(eps: float) -> Callable[[Tensor], Tensor]:
    return lambda z: (z - z.mean(0)) / (z.var(0, correction=0) + eps).sqrt()


OFFICIAL = AcrossRanks("official", 1 / RANKS)
EXACT = AcrossRanks("exact", RANKS)
KERNELS = {
    "precision": OfKernels("bf16", "bf16"),
    "form": [
        OfKernels("gram", "gram_pair", "correlation"),
        OfKernels("correlation", "correlation", "gram_pair"),
    ],
    "backend": OfKernels("aten", "aten"),
}


def plain(z: Tensor) -> Tensor:
    return z


ENTRIES = {
    "lightly": Entry(
        adapters.lightly.BarlowTwinsLoss,
        {
            "lambda_param": Effect(0.3, of_norm(batch_norm, lambd=0.3)),
            "gather_distributed": AcrossRanks(True, None),
            "gradient": OFFICIAL,
        },
    ),
    "solo_learn": Entry(
        adapters.solo_learn.barlow_loss_func,
        {
            "lamb": Effect(0.3, of_norm(batch_norm, lambd=0.3, scale=0.025)),
            "scale_loss": Effect(0.5, of_norm(batch_norm, lambd=5e-3, scale=0.5)),
            "gradient": EXACT,
        },
    ),
    "mm_matrix": Entry(
        adapters.mmpretrain.CrossCorrelationLoss,
        {"lambd": Effect(0.3, of_norm(batch_norm, lambd=0.3))},
        call=of_matrix,
    ),
    "mmpretrain": Entry(
        adapters.mmpretrain.LatentCrossCorrelationHead,
        {
            "in_channels": Seen(4, lambda head: head.bn.num_features == 4),
            "loss": Effect(cross_correlation(0.3), of_norm(batch_norm, lambd=0.3), None),
            "init_cfg": kept("init_cfg", {"type": "Normal"}),
            "gradient": EXACT,
        },
        {"in_channels": D, "loss": cross_correlation()},
        by_method,
    ),
    "mmselfsup": Entry(
        adapters.mmselfsup.LatentCrossCorrelationHead,
        {
            "in_channels": Seen(4, lambda head: head.bn.num_features == 4),
            "loss": Effect(cross_correlation(0.3), of_norm(batch_norm, lambd=0.3), None),
            "gradient": EXACT,
        },
        {"in_channels": D, "loss": cross_correlation()},
        lambda head, a, b: head.double()(a, b),
    ),
    "vissl_criterion": Entry(
        adapters.vissl.BarlowTwinsCriterion,
        {
            "lambda_": Effect(0.3, shared(0.3, 0.024)),
            "scale_loss": Effect(0.5, shared(0.0051, 0.5)),
            "embedding_dim": Refused(4, AssertionError),
            "gradient": EXACT,
        },
        vars(configuration()),
        concatenated,
    ),
    "vissl": Entry(
        adapters.vissl.BarlowTwinsLoss,
        {
            "loss_config": [
                Effect(configuration(lambda_=0.3), shared(0.3, 0.024), None),
                Effect(configuration(scale_loss=0.5), shared(0.0051, 0.5), None),
                Refused(configuration(embedding_dim=4), AssertionError),
            ]
        },
        {"loss_config": configuration},
        with_a_target,
    ),
    "official": Entry(
        adapters.official.BarlowTwins,
        {
            "args": [
                Effect(arguments_of(lambd=0.3), of_norm(batch_norm, lambd=0.3)),
                Effect(arguments_of(batch_size=12), of_norm(batch_norm, divisor=12)),
                Seen(arguments_of(projector="7-6"), lambda m: m.projector[-1].out_features == 6),
            ],
            "backbone": Effect(Smaller(), lambda a, b: of_norm(batch_norm)(1e-3 * a, 1e-3 * b)),
            "features": Seen(3, lambda model: model.projector[0].in_features == 3),
            "gradient": EXACT,
        },
        {"args": arguments_of, "backbone": Flat(), "features": D},
        without_projector,
    ),
    "monai": Entry(
        adapters.monai.BarlowTwinsLoss,
        # A value that float32 holds: MONAI makes a tensor of it.
        {"lambd": Effect(0.25, of_norm(lambda z: unbiased(z, outside=1e-6), lambd=0.25))},
    ),
    "stable_pretraining": Entry(
        adapters.stable_pretraining.BarlowTwinsLoss,
        {
            "lambd": Effect(0.3, of_norm(lambda z: unbiased(z, outside=1e-5), lambd=0.3)),
            "gradient": OFFICIAL,
        },
    ),
    "catalyst": Entry(
        adapters.catalyst.BarlowTwinsLoss,
        {
            "offdiag_lambda": Effect(0.3, of_norm(unbiased, lambd=0.3)),
            "eps": Effect(0.1, of_norm(lambda z: unbiased(z, inside=0.1), lambd=1.0)),
        },
    ),
    "ffcv_ssl": Entry(
        adapters.ffcv_ssl.BarlowTwinsLoss,
        {
            "bn": Effect(norm(0.5), of_norm(with_eps(0.5))),
            "batch_size": Effect(12, of_norm(batch_norm, divisor=12)),
            "world_size": Effect(2, of_norm(batch_norm, divisor=2 * N)),
            "lambd": Effect(0.3, of_norm(batch_norm, lambd=0.3)),
            "gradient": EXACT,
        },
        {"bn": norm, "batch_size": N, "world_size": 1},
    ),
    "lifestream": Entry(
        adapters.lifestream.BarlowTwinsLoss,
        {"lambd": Effect(0.3, of_norm(plain, lambd=0.3))},
        {"lambd": 0.1},
        interleaved,
    ),
    "susmelj": Entry(
        adapters.susmelj.BarlowTwinsLoss,
        {
            "device": kept("device", "cuda"),
            "lambda_param": Effect(0.3, of_norm(unbiased, lambd=0.3)),
            "dead_features": DeadFeatures(),
        },
        {"device": "cpu"},
    ),
    "lightning_tutorial": Entry(
        adapters.lightning_tutorial.BarlowTwinsLoss,
        {
            "batch_size": Effect(12, of_norm(unbiased, lambd=5e-3, divisor=12)),
            "lambda_coeff": Effect(0.3, of_norm(unbiased, lambd=0.3)),
            "z_dim": kept("z_dim", 64),
            "dead_features": DeadFeatures(),
        },
        {"batch_size": N},
    ),
    "hsic": Entry(
        adapters.hsic.barlow_twins_hsic_loss,
        {
            "lmbda": Effect(0.3, of_norm(unbiased, lambd=0.3)),
            "corr_neg_one": Effect(True, of_norm(unbiased, lambd=5e-3, target=-1.0)),
            "batch_size": Effect(12, of_norm(unbiased, lambd=5e-3, divisor=12)),
            "dead_features": DeadFeatures(),
        },
    ),
    "off_diagonal": Entry(adapters.official.off_diagonal, {}),
    "deviation_loss": Entry(
        adapters.standardised.deviation_loss,
        {
            "lambd": Effect(0.3, of_norm(unbiased, lambd=0.3)),
            "ddof": Effect(0, of_norm(with_eps(0.0), lambd=0.1)),
            "eps_inside": Effect(0.5, of_norm(lambda z: unbiased(z, inside=0.5), lambd=0.1)),
            "eps_outside": Effect(0.5, of_norm(lambda z: unbiased(z, outside=0.5), lambd=0.1)),
            "divisor": Effect(12.0, of_norm(unbiased, lambd=0.1, divisor=12)),
            "off_diagonal_target": Effect(0.4, of_norm(unbiased, lambd=0.1, target=0.4)),
            "dead_features": DeadFeatures(),
            **KERNELS,
        },
        {"lambd": 0.1},
    ),
    "standardised_loss": Entry(
        adapters.standardised.standardised_loss,
        {
            "lambd": Effect(0.3, of_norm(plain, lambd=0.3)),
            "divisor": Effect(12.0, of_norm(plain, lambd=0.1, divisor=12)),
            "off_diagonal_target": Effect(0.4, of_norm(plain, lambd=0.1, target=0.4)),
            **KERNELS,
        },
        {"lambd": 0.1},
    ),
    "shared_norm_loss": Entry(
        adapters.standardised.shared_norm_loss,
        {
            "lambd": Effect(0.3, shared(0.3, 1.0)),
            "eps": Effect(
                0.5,
                lambda a, b: of_norm(plain, lambd=0.1)(*with_eps(0.5)(torch.cat((a, b))).chunk(2)),
            ),
            "scale": Effect(0.5, shared(0.1, 0.5)),
            **KERNELS,
        },
        {"lambd": 0.1},
    ),
}


def cases(*kinds: type) -> list[tuple[str, str, Any]]:
    found = []
    for name, entry in ENTRIES.items():
        for option, given in entry.options.items():
            for case in given if isinstance(given, list) else [given]:
                if isinstance(case, kinds):
                    found.append((name, option, case))
    return found


def by_case(*kinds: type):
    found = cases(*kinds)
    identifiers = [f"{name}-{option}" for name, option, _ in found]
    return pytest.mark.parametrize(("name", "option", "case"), found, ids=identifiers)


@pytest.fixture
def views() -> tuple[Tensor, Tensor]:
    a = torch.randn(N, D, dtype=torch.float64)
    return a, a + torch.randn(N, D, dtype=torch.float64)


def public() -> dict[str, Any]:
    """The losses of all modules of adapters; `patch` has a test file of its own."""
    found = {}
    modules = (m for m in pkgutil.iter_modules(adapters.__path__) if m.name != "patching")
    for module_info in modules:
        module = importlib.import_module(f"{adapters.__name__}.{module_info.name}")
        for name in getattr(module, "__all__", ()):
            found[f"{module_info.name}.{name}"] = getattr(module, name)
    for name, value in vars(adapters.standardised).items():
        if name.endswith("_loss") and not name.startswith("_"):
            found[name] = value
    return found


def test_every_option_of_every_entry_point_has_a_case():
    entries = {entry.thing: entry for entry in ENTRIES.values()}
    offered = public()
    assert set(offered.values()) == set(entries)
    for place, thing in offered.items():
        options = list(inspect.signature(thing).parameters)
        if not inspect.isclass(thing):
            # Embeddings come first.
            options = [
                name for name in options if name.rstrip("_12ab") not in ("z", "u", "out", "x")
            ]
        assert options == list(entries[thing].options), place


@by_case(Effect)
def test_losses_and_gradients_are_those_of_the_option(name, option, case, views):
    entry = ENTRIES[name]
    exact = outcome(case.formula, *views)
    ordinary = entry.outcome(entry.made(), *views)
    made = [entry.made(**{option: case.value})]
    if inspect.isclass(entry.thing) and case.attribute is not None:
        later = entry.made()
        entry.outcome(later, *views)
        setattr(later, case.attribute or option, case.value)
        made.append(later)
    for one in made:
        found = entry.outcome(one, *views)
        assert not torch.allclose(found[0], ordinary[0], rtol=1e-4)
        for x, y in zip(found, exact, strict=True):
            torch.testing.assert_close(x, y, rtol=1e-8, atol=1e-10)


def test_configured_modules_follow_their_own_attributes(views):
    """What the peers' trainers set is inside of what was configured."""
    head = adapters.mmpretrain.LatentCrossCorrelationHead(D, cross_correlation()).double()
    head.loss_module.lambd = 0.3
    torch.testing.assert_close(head.loss(*views), of_norm(batch_norm, lambd=0.3)(*views))
    head.world_size = 2
    want = of_norm(batch_norm, lambd=0.3, divisor=2 * N)(*views)
    torch.testing.assert_close(head.loss(*views), want)
    loss = adapters.vissl.BarlowTwinsLoss(configuration())
    loss.bt_criterion.lambda_ = 0.3
    torch.testing.assert_close(loss(torch.cat(views), None), shared(0.3, 0.024)(*views))
    loss.bt_criterion.lambda_, loss.bt_criterion.scale_loss = 0.0051, 0.025
    torch.testing.assert_close(loss(torch.cat(views), None), shared_norm(*views))
    model = adapters.official.BarlowTwins(arguments_of(), backbone=Flat(), features=D)
    model.args.lambd = 0.3
    want = of_norm(batch_norm, lambd=0.3)(*views)
    torch.testing.assert_close(without_projector(model, *views), want)


@by_case(Seen)
def test_options_that_the_loss_does_not_show(name, option, case):
    entry = ENTRIES[name]
    assert not case.check(entry.made())
    assert case.check(entry.made(**{option: case.value}))


@by_case(Refused)
def test_options_that_refuse_what_does_not_fit(name, option, case, views):
    entry = ENTRIES[name]
    entry.outcome(entry.made(), *views)
    with pytest.raises(case.error, match=str(D)):
        entry.outcome(entry.made(**{option: case.value}), *views)


@by_case(DeadFeatures)
def test_dead_features_are_as_the_option_says(name, option, case, views):
    entry = ENTRIES[name]
    views[0][:, 2] = 0.5
    assert entry.outcome(entry.made(), *views)[0].isnan()
    made = [entry.made(**{option: case.value})]
    if inspect.isclass(entry.thing):
        made.append(entry.made())
        setattr(made[-1], option, case.value)
    for one in made:
        loss, grad_a, _ = entry.outcome(one, *views)
        assert loss.isfinite()
        assert not grad_a[:, 2].any()


@by_case(OfKernels)
def test_options_reach_the_kernels(name, option, case, views, monkeypatch):
    calls: list[str] = []
    load = adapters.standardised.load

    class Recorded:
        def __init__(self, backend: str, precision: str) -> None:
            self.kernels = load(backend, precision)
            calls.extend([backend, precision])

        def __getattr__(self, method: str) -> Callable[..., Any]:
            def call(*arguments: Any, **options: Any) -> Any:
                precisions = [getattr(a, "precision", a) for a in arguments]
                calls.extend([method, *(p for p in precisions if isinstance(p, str))])
                return getattr(self.kernels, method)(*arguments, **options)

            return call

    monkeypatch.setattr(adapters.standardised, "load", Recorded)
    entry = ENTRIES[name]
    entry.outcome(entry.made(**{option: case.value}), *(z.float() for z in views))
    assert case.used in calls
    assert case.unused not in calls


def of_ranks(group, name: str) -> list[tuple[str, tuple, tuple]]:
    """(option, outcome by default, outcome with it) of this rank's rows."""
    entry = ENTRIES[name]
    generator = torch.Generator().manual_seed(group.rank())
    views = torch.randn(2, N, D, dtype=torch.float64, generator=generator).unbind(0)
    found = []
    for option, case in entry.options.items():
        if isinstance(case, AcrossRanks):
            others = {}
            if case.factor is not None and "gather_distributed" in entry.options:
                others = {"gather_distributed": True}
            pair = (entry.made(**others), entry.made(**others | {option: case.value}))
            found.append((option, *(entry.outcome(made, *views) for made in pair)))
    return found


@pytest.mark.parametrize("name", dict.fromkeys(name for name, *_ in cases(AcrossRanks)))
def test_options_of_ranks(pool, name):
    ranks = pool.run(of_ranks, RANKS, name)
    for each in zip(*ranks, strict=True):
        (option,) = {found[0] for found in each}
        case = ENTRIES[name].options[option]
        losses = [changed[0] for _, _, changed in each]
        for loss in losses:
            torch.testing.assert_close(loss, losses[0])
        for _, ordinary, changed in each:
            if case.factor is None:
                assert not torch.allclose(changed[0], ordinary[0], rtol=1e-4)
                continue
            torch.testing.assert_close(changed[0], ordinary[0])
            for x, y in zip(changed[1:], ordinary[1:], strict=True):
                assert y.any()
                torch.testing.assert_close(x, case.factor * y)


def own_options(thing: Any) -> list[str]:
    """Those that the peers do not have: only ours can be given by name alone."""
    parameters = inspect.signature(thing).parameters.values()
    added = {"backbone", "features"}  # arguments of the official module that are no attributes
    return [p.name for p in parameters if p.kind is p.KEYWORD_ONLY and p.name not in added]


@pytest.mark.parametrize("name", [n for n, e in ENTRIES.items() if inspect.isclass(e.thing)])
def test_modules_that_were_pickled_as_the_peers_lack_our_options(name, views):
    entry = ENTRIES[name]
    made = entry.made()
    want = entry.outcome(made, *views)
    for option in own_options(entry.thing):
        default = vars(made).pop(option)
        assert getattr(made, option) == default
    for x, y in zip(entry.outcome(made, *views), want, strict=True):
        assert torch.equal(x, y)
