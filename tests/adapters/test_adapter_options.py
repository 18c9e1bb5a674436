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
from formulas import (
    Flat,
    batch_norm,
    frossl,
    mixed,
    of_norm,
    outcome,
    permutation_of,
    shared_norm,
    unbiased,
    variance_covariance,
)
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
    one_loss: bool = True  # whether all ranks have the same


class Unused(NamedTuple):
    """The loss is what it is without the option."""

    value: Any


class DeadFeatures(NamedTuple):
    value: str = "zero"


class OfKernels(NamedTuple):
    """The calls of the kernel set show it."""

    value: str
    used: str
    unused: str = "nothing"


Case = Effect | Seen | Refused | AcrossRanks | Unused | DeadFeatures | OfKernels


def interleaved(loss: Any, a: Tensor, b: Tensor) -> Tensor:
    sample = torch.arange(len(a)).repeat_interleave(2)
    return loss(torch.stack((a, b), 1).flatten(0, 1), sample)


def without_projector(model: Any, a: Tensor, b: Tensor) -> Tensor:
    model.projector = nn.Identity()
    return model.double()(a, b)


class Entry(NamedTuple):
    thing: Any  # a class, or a function of two views
    required: Mapping[str, Any] = MappingProxyType({})
    call: Callable[[Any, Tensor, Tensor], Tensor] = lambda loss, a, b: loss(a, b)
    views: Callable[..., tuple[Tensor, ...]] = lambda a, b: (a, b)  # what a function takes

    def arguments(self, **options: Any) -> dict[str, Any]:
        given = {k: v() if inspect.isfunction(v) else v for k, v in self.required.items()}
        return given | options

    def made(self, **options: Any) -> Any:
        if inspect.isclass(self.thing):
            return self.thing(**self.arguments(**options))
        return lambda a, b: self.thing(*self.views(a, b), **self.arguments(**options))

    def made_and_set(self, views: Any, option: str, value: Any, attribute: str | None = ""):
        """With an option, and with the attribute that holds it set after a first call."""
        made = [self.made(**{option: value})]
        if inspect.isclass(self.thing) and attribute is not None:
            made.append(self.made())
            self.outcome(made[-1], *views)
            setattr(made[-1], attribute or option, value)
        return made

    def outcome(self, made: Any, a: Tensor, b: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        return outcome(lambda x, y: self.call(made, x, y), a, b)


def arguments_of(lambd: float = 0.0051, batch_size: int = N, projector: str = "5"):
    return SimpleNamespace(lambd=lambd, batch_size=batch_size, projector=projector)


def configuration(lambda_: float = 0.0051, scale_loss: float = 0.024, embedding_dim: int = D):
    return SimpleNamespace(lambda_=lambda_, scale_loss=scale_loss, embedding_dim=embedding_dim)


def vicreg_arguments(mlp: str = "5", batch_size: int = N, **others: float):
    weights = {"sim_coeff": 25.0, "std_coeff": 25.0, "cov_coeff": 1.0}
    return SimpleNamespace(mlp=mlp, batch_size=batch_size, **(weights | others))


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


def plain(z: Tensor) -> Tensor:
    return z


HEAD = {"in_channels": D, "loss": cross_correlation()}
WEIGHT = {"lambd": 0.1}
MIXTURE = {
    "out_m": torch.randn(N, D, dtype=torch.float64, generator=torch.Generator().manual_seed(7)),
    "index": permutation_of(N),
    "alpha": 0.3,
    "mixup_loss_scale": 2.0,
}
ENTRIES = {
    "lightly": Entry(adapters.lightly.BarlowTwinsLoss),
    "lightly_frossl": Entry(adapters.lightly.FroSSLLoss, call=lambda loss, a, b: loss([a, b])),
    "lightly_vicreg": Entry(adapters.lightly.VICRegLoss),
    "lightly_covariance": Entry(adapters.lightly.covariance_loss),
    "solo_learn": Entry(adapters.solo_learn.barlow_loss_func),
    "solo_frossl": Entry(
        adapters.solo_learn.frossl_loss_func, views=lambda a, b: (torch.stack((a, b)),)
    ),
    "solo_vicreg": Entry(adapters.solo_learn.vicreg_loss_func),
    "stable_vcreg": Entry(
        adapters.stable_pretraining.VCRegLoss, call=lambda loss, a, b: loss(a) + loss(b)
    ),
    "stable_vicreg": Entry(adapters.stable_pretraining.VICRegLoss),
    "vicreg": Entry(
        adapters.vicreg.VICReg,
        {"args": vicreg_arguments, "backbone": Flat(), "features": D},
        without_projector,
    ),
    "mix_bt": Entry(adapters.mix_bt.mixed_barlow_twins_loss, MIXTURE),
    "mm_matrix": Entry(
        adapters.mmpretrain.CrossCorrelationLoss,
        call=lambda loss, a, b: loss(batch_norm(a).T @ batch_norm(b) / len(a)),
    ),
    "mmpretrain": Entry(
        adapters.mmpretrain.LatentCrossCorrelationHead,
        HEAD,
        lambda head, a, b: head.double().loss(a, b),
    ),
    "mmselfsup": Entry(
        adapters.mmselfsup.LatentCrossCorrelationHead, HEAD, lambda head, a, b: head.double()(a, b)
    ),
    "vissl_criterion": Entry(
        adapters.vissl.BarlowTwinsCriterion,
        vars(configuration()),
        lambda loss, a, b: loss(torch.cat((a, b))),
    ),
    "vissl": Entry(
        adapters.vissl.BarlowTwinsLoss,
        {"loss_config": configuration},
        lambda loss, a, b: loss(torch.cat((a, b)), None),
    ),
    "official": Entry(
        adapters.official.BarlowTwins,
        {"args": arguments_of, "backbone": Flat(), "features": D},
        without_projector,
    ),
    "monai": Entry(adapters.monai.BarlowTwinsLoss),
    "stable_pretraining": Entry(adapters.stable_pretraining.BarlowTwinsLoss),
    "catalyst": Entry(adapters.catalyst.BarlowTwinsLoss),
    "ffcv_ssl": Entry(
        adapters.ffcv_ssl.BarlowTwinsLoss, {"bn": norm, "batch_size": N, "world_size": 1}
    ),
    "lifestream": Entry(adapters.lifestream.BarlowTwinsLoss, WEIGHT, interleaved),
    "susmelj": Entry(adapters.susmelj.BarlowTwinsLoss, {"device": "cpu"}),
    "lightning_tutorial": Entry(adapters.lightning_tutorial.BarlowTwinsLoss, {"batch_size": N}),
    "hsic": Entry(adapters.hsic.barlow_twins_hsic_loss),
    "off_diagonal": Entry(adapters.official.off_diagonal),
    "deviation_loss": Entry(adapters.standardised.deviation_loss, WEIGHT),
    "standardised_loss": Entry(adapters.standardised.standardised_loss, WEIGHT),
    "shared_norm_loss": Entry(adapters.standardised.shared_norm_loss, WEIGHT),
}
CLASSES = [name for name, entry in ENTRIES.items() if inspect.isclass(entry.thing)]

OFFICIAL = AcrossRanks("official", 1 / RANKS)
EXACT = AcrossRanks("exact", RANKS)


def weight(norm: Callable[[Tensor], Tensor], value: float = 0.3, **others: float) -> Effect:
    return Effect(value, of_norm(norm, lambd=value, **others))


def divisor(norm: Callable[[Tensor], Tensor], value: float = 12, **others: float) -> Effect:
    return Effect(value, of_norm(norm, divisor=value, **others))


def inside(eps: float, **others: float) -> Callable[..., Tensor]:
    return of_norm(lambda z: unbiased(z, inside=eps), **others)


def outside(z: Tensor, eps: float = 1e-5) -> Tensor:
    return unbiased(z, outside=eps)


def scaled(factor: float) -> Callable[..., Tensor]:
    return lambda a, b: of_norm(batch_norm)(factor * a, factor * b)


def both_normed(a: Tensor, b: Tensor) -> Tensor:
    return of_norm(plain, **WEIGHT)(*with_eps(0.5)(torch.cat((a, b))).chunk(2))


def width(model: nn.Module) -> int:
    return model.projector[-1].out_features


def of_mixture(**options: Any) -> Callable[[Tensor, Tensor], Tensor]:
    return mixed(**({"lambd": 0.005, "other": MIXTURE["out_m"]} | options))


HEAD_LOSS = Effect(cross_correlation(0.3), of_norm(batch_norm, lambd=0.3), None)
# (entry, option, what shows it), in the order of the signature
CASES: list[tuple[str, str, Case]] = [
    ("lightly_frossl", "invariance_weight", Effect(0.3, frossl(0.3, summed=True))),
    ("lightly_vicreg", "lambda_param", Effect(3.0, variance_covariance((3.0, 25.0, 1.0)))),
    ("lightly_vicreg", "mu_param", Effect(300.0, variance_covariance((25.0, 300.0, 1.0)))),
    ("lightly_vicreg", "nu_param", Effect(3.0, variance_covariance((25.0, 25.0, 3.0)))),
    ("lightly_vicreg", "gather_distributed", AcrossRanks(True, None, one_loss=False)),
    ("lightly_vicreg", "eps", Effect(0.3, variance_covariance(eps=0.3))),
    ("solo_frossl", "invariance_weight", Effect(0.3, frossl(0.3))),
    ("solo_frossl", "logger", Unused(object())),
    ("solo_vicreg", "sim_loss_weight", Effect(3.0, variance_covariance((3.0, 50.0, 1.0)))),
    ("solo_vicreg", "var_loss_weight", Effect(300.0, variance_covariance((25.0, 600.0, 1.0)))),
    ("solo_vicreg", "cov_loss_weight", Effect(3.0, variance_covariance((25.0, 50.0, 3.0)))),
    ("solo_vicreg", "gather_distributed", AcrossRanks(False, None, one_loss=False)),
    ("stable_vcreg", "std_coeff", Effect(300.0, variance_covariance((0.0, 300.0, 1.0)))),
    ("stable_vcreg", "cov_coeff", Effect(3.0, variance_covariance((0.0, 25.0, 3.0)))),
    ("stable_vcreg", "epsilon", Effect(0.3, variance_covariance((0.0, 25.0, 1.0), eps=0.3))),
    ("stable_vicreg", "sim_coeff", Effect(3.0, variance_covariance((3.0, 25.0, 1.0)))),
    ("stable_vicreg", "std_coeff", Effect(300.0, variance_covariance((25.0, 300.0, 1.0)), None)),
    ("stable_vicreg", "cov_coeff", Effect(3.0, variance_covariance((25.0, 25.0, 3.0)), None)),
    ("stable_vicreg", "epsilon", Effect(0.3, variance_covariance(eps=0.3), None)),
    ("vicreg", "args", Effect(vicreg_arguments(batch_size=12), variance_covariance(batch=12))),
    (
        "vicreg",
        "args",
        Effect(vicreg_arguments(sim_coeff=3.0), variance_covariance((3.0, 25.0, 1.0))),
    ),
    (
        "vicreg",
        "args",
        Effect(vicreg_arguments(std_coeff=300.0), variance_covariance((25.0, 300.0, 1.0))),
    ),
    (
        "vicreg",
        "args",
        Effect(vicreg_arguments(cov_coeff=3.0), variance_covariance((25.0, 25.0, 3.0))),
    ),
    ("vicreg", "args", Seen(vicreg_arguments(mlp="7-6"), lambda model: width(model) == 6)),
    (
        "vicreg",
        "backbone",
        Effect(Smaller(), lambda a, b: variance_covariance()(1e-3 * a, 1e-3 * b)),
    ),
    ("vicreg", "features", Seen(3, lambda model: model.projector[0].in_features == 3)),
    ("mix_bt", "out_m", Effect(-MIXTURE["out_m"], of_mixture(other=-MIXTURE["out_m"]))),
    ("mix_bt", "index", Effect(torch.arange(N), of_mixture(index=torch.arange(N)))),
    ("mix_bt", "alpha", Effect(0.9, of_mixture(alpha=0.9))),
    ("mix_bt", "mixup_loss_scale", Effect(9.0, of_mixture(mixing=9.0))),
    ("mix_bt", "lmbda", Effect(0.3, of_mixture(lambd=0.3))),
    ("mix_bt", "batch_size", Effect(12, of_mixture(batch=12))),
    ("lightly", "lambda_param", weight(batch_norm)),
    ("lightly", "gather_distributed", AcrossRanks(True, None)),
    ("lightly", "gradient", OFFICIAL),
    ("solo_learn", "lamb", weight(batch_norm, scale=0.025)),
    ("solo_learn", "scale_loss", Effect(0.5, of_norm(batch_norm, lambd=5e-3, scale=0.5))),
    ("solo_learn", "gradient", EXACT),
    ("mm_matrix", "lambd", weight(batch_norm)),
    ("mmpretrain", "in_channels", Seen(4, lambda head: head.bn.num_features == 4)),
    ("mmpretrain", "loss", HEAD_LOSS),
    ("mmpretrain", "init_cfg", kept("init_cfg", {"type": "Normal"})),
    ("mmpretrain", "gradient", EXACT),
    ("mmselfsup", "in_channels", Seen(4, lambda head: head.bn.num_features == 4)),
    ("mmselfsup", "loss", HEAD_LOSS),
    ("mmselfsup", "gradient", EXACT),
    ("vissl_criterion", "lambda_", Effect(0.3, shared(0.3, 0.024))),
    ("vissl_criterion", "scale_loss", Effect(0.5, shared(0.0051, 0.5))),
    ("vissl_criterion", "embedding_dim", Refused(4, AssertionError)),
    ("vissl_criterion", "gradient", EXACT),
    ("vissl", "loss_config", Effect(configuration(lambda_=0.3), shared(0.3, 0.024), None)),
    ("vissl", "loss_config", Effect(configuration(scale_loss=0.5), shared(0.0051, 0.5), None)),
    ("vissl", "loss_config", Refused(configuration(embedding_dim=4), AssertionError)),
    ("official", "args", weight(batch_norm)._replace(value=arguments_of(lambd=0.3))),
    ("official", "args", divisor(batch_norm)._replace(value=arguments_of(batch_size=12))),
    ("official", "args", Seen(arguments_of(projector="7-6"), lambda m: width(m) == 6)),
    ("official", "backbone", Effect(Smaller(), scaled(1e-3))),
    ("official", "features", Seen(3, lambda model: model.projector[0].in_features == 3)),
    ("official", "gradient", EXACT),
    # A value that float32 holds: MONAI makes a tensor of it.
    ("monai", "lambd", weight(lambda z: outside(z, 1e-6), 0.25)),
    ("stable_pretraining", "lambd", weight(outside)),
    ("stable_pretraining", "gradient", OFFICIAL),
    ("catalyst", "offdiag_lambda", weight(unbiased)),
    ("catalyst", "eps", Effect(0.1, inside(0.1, lambd=1.0))),
    ("ffcv_ssl", "bn", Effect(norm(0.5), of_norm(with_eps(0.5)))),
    ("ffcv_ssl", "batch_size", divisor(batch_norm)),
    ("ffcv_ssl", "world_size", Effect(2, of_norm(batch_norm, divisor=2 * N))),
    ("ffcv_ssl", "lambd", weight(batch_norm)),
    ("ffcv_ssl", "gradient", EXACT),
    ("lifestream", "lambd", weight(plain)),
    ("susmelj", "device", kept("device", "cuda")),
    ("susmelj", "lambda_param", weight(unbiased)),
    ("susmelj", "dead_features", DeadFeatures()),
    ("lightning_tutorial", "batch_size", divisor(unbiased, lambd=5e-3)),
    ("lightning_tutorial", "lambda_coeff", weight(unbiased)),
    ("lightning_tutorial", "z_dim", kept("z_dim", 64)),
    ("lightning_tutorial", "dead_features", DeadFeatures()),
    ("hsic", "lmbda", weight(unbiased)),
    ("hsic", "corr_neg_one", Effect(True, of_norm(unbiased, lambd=5e-3, target=-1.0))),
    ("hsic", "batch_size", divisor(unbiased, lambd=5e-3)),
    ("hsic", "dead_features", DeadFeatures()),
    ("deviation_loss", "lambd", weight(unbiased)),
    ("deviation_loss", "ddof", Effect(0, of_norm(with_eps(0.0), **WEIGHT))),
    ("deviation_loss", "eps_inside", Effect(0.5, inside(0.5, **WEIGHT))),
    ("deviation_loss", "eps_outside", Effect(0.5, of_norm(lambda z: outside(z, 0.5), **WEIGHT))),
    ("deviation_loss", "divisor", divisor(unbiased, 12.0, **WEIGHT)),
    ("deviation_loss", "off_diagonal_target", Effect(0.4, of_norm(unbiased, target=0.4, **WEIGHT))),
    ("deviation_loss", "dead_features", DeadFeatures()),
    ("standardised_loss", "lambd", weight(plain)),
    ("standardised_loss", "divisor", divisor(plain, 12.0, **WEIGHT)),
    ("standardised_loss", "off_diagonal_target", Effect(0.4, of_norm(plain, target=0.4, **WEIGHT))),
    ("shared_norm_loss", "lambd", Effect(0.3, shared(0.3, 1.0))),
    ("shared_norm_loss", "eps", Effect(0.5, both_normed)),
    ("shared_norm_loss", "scale", Effect(0.5, shared(0.1, 0.5))),
]
KERNELS = [
    ("precision", OfKernels("bf16", "bf16")),
    ("form", OfKernels("gram", "gram_pair", "correlation")),
    ("form", OfKernels("correlation", "correlation", "gram_pair")),
    ("backend", OfKernels("aten", "aten")),
]
CASES += [(name, *case) for name in ENTRIES if name.endswith("_loss") for case in KERNELS]


def cases_of(name: str, *kinds: type) -> dict[str, Any]:
    """{option: its last case} of one entry, in the order of its signature."""
    kinds = kinds or (tuple,)
    found = ((option, case) for entry, option, case in CASES if entry == name)
    return {option: case for option, case in found if isinstance(case, kinds)}


def by_case(*kinds: type):
    found = [each for each in CASES if isinstance(each[2], kinds)]
    identifiers = [f"{name}-{option}" for name, option, _ in found]
    return pytest.mark.parametrize(("name", "option", "case"), found, ids=identifiers)


@pytest.fixture
def views() -> tuple[Tensor, Tensor]:
    # A deviation below 1 in some dimension: a hinge of the variance is not zero everywhere.
    generator = torch.Generator().manual_seed(0)
    a, noise = torch.randn(2, N, D, dtype=torch.float64, generator=generator)
    assert a.std(0).min() < 1
    return a, a + noise


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
    entries = {entry.thing: name for name, entry in ENTRIES.items()}
    offered = public()
    assert set(offered.values()) == set(entries)
    for place, thing in offered.items():
        options = list(inspect.signature(thing).parameters)
        if not inspect.isclass(thing):
            # Embeddings come first.
            options = [o for o in options if o.rstrip("_12ab") not in ("z", "u", "out", "x")]
        assert options == list(cases_of(entries[thing])), place


@by_case(Effect)
def test_losses_and_gradients_are_those_of_the_option(name, option, case, views):
    entry = ENTRIES[name]
    exact = outcome(case.formula, *views)
    ordinary = entry.outcome(entry.made(), *views)
    for one in entry.made_and_set(views, option, case.value, case.attribute):
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


@by_case(Unused)
def test_options_without_an_effect(name, option, case, views):
    entry = ENTRIES[name]
    found, want = (
        entry.outcome(entry.made(**given), *views) for given in ({option: case.value}, {})
    )
    for x, y in zip(found, want, strict=True):
        assert torch.equal(x, y)


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
    for one in entry.made_and_set(views, option, case.value):
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
    cases = cases_of(name, AcrossRanks)
    for option, case in cases.items():
        others = {}
        if case.factor is not None and "gather_distributed" in cases:
            others = {"gather_distributed": True}
        pair = (entry.made(**others), entry.made(**others | {option: case.value}))
        found.append((option, *(entry.outcome(made, *views) for made in pair)))
    return found


@pytest.mark.parametrize("name", [name for name in ENTRIES if cases_of(name, AcrossRanks)])
def test_options_of_ranks(pool, name):
    ranks = pool.run(of_ranks, RANKS, name)
    for each in zip(*ranks, strict=True):
        (option,) = {found[0] for found in each}
        case = cases_of(name, AcrossRanks)[option]
        losses = [changed[0] for _, _, changed in each]
        if case.one_loss:
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


@pytest.mark.parametrize("name", CLASSES)
def test_modules_that_were_pickled_as_the_peers_lack_our_options(name, views):
    entry = ENTRIES[name]
    made = entry.made()
    want = entry.outcome(made, *views)
    for option in own_options(entry.thing):
        default = vars(made).pop(option)
        assert getattr(made, option) == default
    for x, y in zip(entry.outcome(made, *views), want, strict=True):
        assert torch.equal(x, y)
