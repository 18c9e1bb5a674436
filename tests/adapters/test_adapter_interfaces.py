"""What a script relies on besides numbers: signatures, attributes, errors, state, repr."""

from __future__ import annotations

import ast
import functools
import importlib
import inspect
import operator
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from formulas import CASES, Flat, outcome
from torch import nn

from barlow_fast import adapters

EMPTY = inspect.Parameter.empty
CROSS_CORRELATION = {"type": "CrossCorrelationLoss", "lambd": 0.1}

# What takes (by position, with its default) which arguments, and those of its `forward`.
SIGNATURES = {
    "lightly.BarlowTwinsLoss": ("lambda_param=0.005, gather_distributed=False", "z_a, z_b"),
    "lightly.VICRegLoss": (
        "lambda_param=25.0, mu_param=25.0, nu_param=1.0, gather_distributed=False, eps=0.0001",
        "z_a, z_b",
    ),
    "lightly.FroSSLLoss": ("invariance_weight=1.0", "z_views"),
    "lightly.covariance_loss": ("x", None),
    "solo_learn.vicreg_loss_func": (
        "z1, z2, sim_loss_weight=25.0, var_loss_weight=25.0, cov_loss_weight=1.0", None,
    ),
    "solo_learn.frossl_loss_func": ("z, invariance_weight=1, logger=None", None),
    "stable_pretraining.VICRegLoss": (
        "sim_coeff=25, std_coeff=25, cov_coeff=1, epsilon=0.0001", "z_i, z_j",
    ),
    "stable_pretraining.VCRegLoss": ("std_coeff=25, cov_coeff=1, epsilon=0.0001", "z_i"),
    "vicreg.VICReg": ("args", "x, y"),
    "solo_learn.barlow_loss_func": ("z1, z2, lamb=0.005, scale_loss=0.025", None),
    "mmpretrain.CrossCorrelationLoss": ("lambd=0.0051", "cross_correlation_matrix"),
    "mmpretrain.LatentCrossCorrelationHead": ("in_channels, loss, init_cfg=None", None),
    "mmselfsup.LatentCrossCorrelationHead": ("in_channels, loss", "input, target"),
    "vissl.BarlowTwinsCriterion": ("lambda_, scale_loss, embedding_dim", "embedding"),
    "vissl.BarlowTwinsLoss": ("loss_config", "output, target"),
    "official.BarlowTwins": ("args", "y1, y2"),
    "monai.BarlowTwinsLoss": ("lambd=0.005", "input, target"),
    "stable_pretraining.BarlowTwinsLoss": ("lambd=0.005", "z_i, z_j"),
    "catalyst.BarlowTwinsLoss": (
        "offdiag_lambda=1.0, eps=1e-12", "embeddings_left, embeddings_right",
    ),
    "lightning_tutorial.BarlowTwinsLoss": (
        "batch_size, lambda_coeff=0.005, z_dim=128", "z1, z2",
    ),
    "ffcv_ssl.BarlowTwinsLoss": ("bn, batch_size, world_size, lambd=0.0051", "z1, z2"),
    "lifestream.BarlowTwinsLoss": ("lambd", "model_outputs, target"),
    "susmelj.BarlowTwinsLoss": ("device, lambda_param=0.005", "z_a, z_b"),
}  # fmt: skip


def by_position(thing) -> str:
    """What can be passed by position, with defaults; not `self`."""
    parameters = inspect.signature(thing).parameters.values()
    found = {p.name: p.default for p in parameters if p.kind is p.POSITIONAL_OR_KEYWORD}
    found.pop("self", None)
    return ", ".join(n if d is EMPTY else f"{n}={d!r}" for n, d in found.items())


@pytest.mark.parametrize("name", SIGNATURES)
def test_signatures(name):
    arguments, forward = SIGNATURES[name]
    thing = operator.attrgetter(name)(adapters)
    assert by_position(thing) == arguments
    if forward is not None:
        assert by_position(thing.forward) == forward
    kinds = (inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY)
    parameters = inspect.signature(thing).parameters.values()
    assert all(p.kind in kinds for p in parameters)
    assert all(p.default is not EMPTY for p in parameters if p.kind is p.KEYWORD_ONLY)


@pytest.mark.parametrize(
    ("module", "adapter", "kind"),
    [
        ("lightly.loss", adapters.lightly, "BarlowTwinsLoss"),
        ("lightly.loss", adapters.lightly, "VICRegLoss"),
        ("lightly.loss", adapters.lightly, "FroSSLLoss"),
        ("monai.losses", adapters.monai, "BarlowTwinsLoss"),
        ("stable_pretraining.losses", adapters.stable_pretraining, "BarlowTwinsLoss"),
        ("stable_pretraining.losses", adapters.stable_pretraining, "VICRegLoss"),
        ("stable_pretraining.losses.utils", adapters.stable_pretraining, "VCRegLoss"),
        ("catalyst.contrib.losses", adapters.catalyst, "BarlowTwinsLoss"),
    ],
)
def test_signatures_of_the_installed_peers(module, adapter, kind):
    pytest.importorskip(module.partition(".")[0], exc_type=ImportError)
    theirs = getattr(importlib.import_module(module), kind)
    ours = getattr(adapter, kind)
    assert by_position(theirs) == by_position(ours)
    assert by_position(theirs.forward) == by_position(ours.forward)
    instances = [
        {k: v for k, v in vars(kind()).items() if not k.startswith("_")} for kind in (theirs, ours)
    ]
    assert instances[0].items() <= instances[1].items()
    assert list(theirs().state_dict()) == list(ours().state_dict())
    assert isinstance(ours(), theirs.__mro__[1])


def z(*shape: int) -> torch.Tensor:
    return torch.randn(*shape)


# One sample, another N, another D, no matrix: what the error says, and views.
SHAPES = (
    ("1", z(1, 4), z(1, 4)),
    ("6.*5|5.*6", z(6, 4), z(5, 4)),
    ("4.*3|3.*4", z(6, 4), z(6, 3)),
    ("6, 4, 2|6, 2, 4", z(6, 4, 2), z(6, 2, 4)),
)
# What each raises for them.
WRONG = {
    "solo_vicreg": (ValueError, RuntimeError, RuntimeError, ValueError),
    "stable_vicreg": (ValueError, RuntimeError, RuntimeError, ValueError),
    "vicreg": (ValueError, RuntimeError, RuntimeError, ValueError),
    "lightly": (ValueError, RuntimeError, AssertionError, ValueError),
    "solo_learn": (ValueError, RuntimeError, RuntimeError, ValueError),
    "mmpretrain": (ValueError, RuntimeError, RuntimeError, ValueError),
    "mmselfsup": (ValueError, RuntimeError, RuntimeError, ValueError),
    "monai": (ValueError,) * 4,
    "stable_pretraining": (ValueError, RuntimeError, AssertionError, ValueError),
    "catalyst": (ValueError,) * 4,
    "susmelj": (ValueError, RuntimeError, RuntimeError, ValueError),
    "lightning_tutorial": (ValueError, RuntimeError, AssertionError, ValueError),
    "hsic": (ValueError, RuntimeError, AssertionError, ValueError),
}


@pytest.mark.parametrize("name", WRONG)
def test_errors_of_shapes(name):
    for error, (words, *views) in zip(WRONG[name], SHAPES, strict=True):
        with pytest.raises(error, match=words):
            CASES[name].adapter(*views)


def test_lightly_errors():
    """In the peer's order: the batch, then the shapes."""
    loss = adapters.lightly.VICRegLoss()
    for a, b, words in (
        (z(1, 4), z(6, 4), r"batch size > 1 but found 1 and 6"),
        (z(6, 4), z(6, 3), r"same shape but found \(6, 4\) and \(6, 3\)"),
        (z(6, 4, 2), z(6, 2, 4), r"same shape but found"),
    ):
        with pytest.raises(AssertionError, match=words):
            loss(a, b)
    with pytest.raises(ValueError, match=r"at least two views but found 1"):
        adapters.lightly.FroSSLLoss()([z(6, 4)])


def test_mix_bt_errors():
    loss, index = adapters.mix_bt.mixed_barlow_twins_loss, torch.arange(6)
    for views, order, error, words in (
        ((z(6, 4), z(6, 4), z(5, 4)), index, RuntimeError, r"out_1 and out_m must have the same N"),
        ((z(6, 4), z(6, 3), z(6, 4)), index, AssertionError, r"out_1 and out_2 .* same D"),
        ((z(1, 4), z(1, 4), z(1, 4)), index[:1], ValueError, r"\(1, 4\)"),
        ((z(6, 4), z(6, 4), z(6, 4)), index * 0, ValueError, r"must hold each of 0 ... 5 once"),
        ((z(6, 4), z(6, 4), z(6, 4)), index.int(), TypeError, r"torch.int64 tensor"),
    ):
        with pytest.raises(error, match=words):
            loss(*views, order, 0.5, 1.0)
    with pytest.raises(ValueError, match=r"batch_size must be from 1"):
        loss(z(6, 4), z(6, 4), z(6, 4), index, 0.5, 1.0, batch_size=0)
    with pytest.raises(ValueError, match=r"z must be \(V, N, D\)"):
        adapters.solo_learn.frossl_loss_func(z(6, 4))
    with pytest.raises(ValueError, match=r"z_i must be \(N, D\)"):
        adapters.stable_pretraining.VCRegLoss()(z(6, 4, 2))


def test_vicreg_modules_hold_the_peers_parts():
    args = SimpleNamespace(mlp="7-6-5", batch_size=4, sim_coeff=25.0, std_coeff=25.0, cov_coeff=1.0)
    model = adapters.vicreg.VICReg(args, backbone=nn.Linear(3, 8), features=8)
    assert model.num_features == 5
    parts = [("0", "weight", "bias"), ("3", "weight", "bias"), ("6", "weight")]
    linear = [f"projector.{name}.{each}" for name, *every in parts for each in every]
    assert [name for name in linear if name in model.state_dict()] == linear
    assert "projector.6.bias" not in model.state_dict()
    assert model(z(4, 3), z(4, 3)).isfinite()
    assert isinstance(
        adapters.stable_pretraining.VICRegLoss().vcreg_loss, adapters.stable_pretraining.VCRegLoss
    )


def test_vissl_errors_and_repr():
    criterion = adapters.vissl.BarlowTwinsCriterion(0.1, 0.5, 4)
    with pytest.raises(AssertionError, match=r"\(6, 3\) but expected Nx4"):
        criterion(z(6, 3))
    with pytest.raises(AssertionError, match=r"\(6, 4, 1\) but expected Nx4"):
        criterion(z(6, 4, 1))
    with pytest.raises(AssertionError, match=r"Batch size 5 should be divisible by num_copies"):
        criterion(z(5, 4))
    assert "'scale_loss': 0.5" in repr(criterion)
    config = SimpleNamespace(lambda_=0.1, scale_loss=0.5, embedding_dim=4)
    loss = adapters.vissl.BarlowTwinsLoss.from_config(config)
    both = z(6, 4)
    assert torch.equal(loss(both, None), criterion(both))
    assert "'name': 'BarlowTwinsLoss'" in repr(loss)
    assert not loss.state_dict()


def test_lifestream_positions():
    loss = adapters.lifestream.BarlowTwinsLoss(0.1)
    assert loss(z(6, 4), torch.tensor([5, 5, 1, 1, 2, 2])).isfinite()
    with pytest.raises(AssertionError, match=r"Wrong embedding positions"):
        loss(z(6, 4), torch.tensor([5, 1, 2, 5, 1, 2]))
    with pytest.raises(ValueError, match=r"\(5, 4\)"):
        loss(z(5, 4), torch.arange(5))


def test_mm_configurations():
    head = adapters.mmpretrain.LatentCrossCorrelationHead(4, dict(CROSS_CORRELATION), init_cfg=None)
    buffers = ("running_mean", "running_var", "num_batches_tracked")
    assert list(head.state_dict()) == [f"bn.{name}" for name in buffers]
    assert head.loss_module.lambd == 0.1
    scoped = {"type": "mmpretrain.CrossCorrelationLoss", "_scope_": "mmpretrain"}
    assert adapters.mmpretrain.LatentCrossCorrelationHead(4, scoped).loss_module.lambd == 0.0051
    by_class = {"type": adapters.mmpretrain.CrossCorrelationLoss, "lambd": 2.0}
    assert adapters.mmselfsup.LatentCrossCorrelationHead(4, by_class).loss.lambd == 2.0
    with pytest.raises(ValueError, match=r"got type 'CosineSimilarityLoss'"):
        adapters.mmpretrain.LatentCrossCorrelationHead(4, {"type": "CosineSimilarityLoss"})
    with pytest.raises(ValueError, match=r"loss must be a module or a dict with a 'type'"):
        adapters.mmpretrain.LatentCrossCorrelationHead(4, "CrossCorrelationLoss")


def test_an_own_loss_module_gets_the_matrix():
    class Total(nn.Module):
        def forward(self, matrix):
            return matrix.sum()

    a, b = z(6, 4), z(6, 4)
    found = adapters.mmpretrain.LatentCrossCorrelationHead(4, Total()).loss(a, b)
    u_a, u_b = (nn.BatchNorm1d(4, affine=False)(v) for v in (a, b))
    torch.testing.assert_close(found, (u_a.T @ u_b).sum() / 6)


def test_the_matrix_loss_leaves_its_matrix():
    loss = adapters.mmpretrain.CrossCorrelationLoss(0.1)
    matrix = z(5, 5)
    before = matrix.clone()
    loss(matrix)
    assert torch.equal(matrix, before)
    rest = loss.off_diagonal(matrix)
    assert torch.equal(rest, matrix[~torch.eye(5, dtype=torch.bool)])
    assert torch.equal(rest, adapters.official.off_diagonal(matrix))
    for wrong in (loss, loss.off_diagonal, adapters.official.off_diagonal):
        with pytest.raises(AssertionError, match=r"4, 5"):
            wrong(z(4, 5))


class OriginalLayout(nn.Module):
    """Modules named as in the original `main.py`, to compare state dicts."""

    def __init__(self, backbone: nn.Module, sizes: list[int]) -> None:
        super().__init__()
        self.backbone = backbone
        layers: list[nn.Module] = []
        for i in range(len(sizes) - 2):
            linear = nn.Linear(sizes[i], sizes[i + 1], bias=False)
            layers += [linear, nn.BatchNorm1d(sizes[i + 1]), nn.ReLU(inplace=True)]
        self.projector = nn.Sequential(*layers, nn.Linear(sizes[-2], sizes[-1], bias=False))
        self.bn = nn.BatchNorm1d(sizes[-1], affine=False)


def test_official_state_dict_is_the_originals():
    args = SimpleNamespace(projector="7-6-5", batch_size=4, lambd=0.0051)
    ours = adapters.official.BarlowTwins(args, backbone=nn.Linear(3, 8), features=8)
    theirs = OriginalLayout(nn.Linear(3, 8), [8, 7, 6, 5])
    shapes = {key: value.shape for key, value in theirs.state_dict().items()}
    assert {key: value.shape for key, value in ours.state_dict().items()} == shapes
    assert list(ours.state_dict()) == list(shapes)
    ours.load_state_dict(theirs.state_dict(), strict=True)
    a, b = z(4, 3), z(4, 3)
    z_a, z_b = (theirs.projector(theirs.backbone(v)) for v in (a, b))
    u_a, u_b = theirs.bn(z_a), theirs.bn(z_b)
    c = u_a.T @ u_b / 4
    rest = adapters.official.off_diagonal(c).square().sum()
    want = (c.diagonal() - 1).square().sum() + 0.0051 * rest
    torch.testing.assert_close(ours(a, b), want)


def test_official_backbone_is_the_resnet():
    torchvision = pytest.importorskip("torchvision")
    args = SimpleNamespace(projector="16-16", batch_size=4, lambd=0.0051)
    with torch.device("meta"):
        ours = adapters.official.BarlowTwins(args)
        backbone = torchvision.models.resnet50()
        backbone.fc = nn.Identity()
        theirs = OriginalLayout(backbone, [2048, 16, 16])
    assert list(ours.state_dict()) == list(theirs.state_dict())
    for (key, x), y in zip(ours.state_dict().items(), theirs.state_dict().values(), strict=True):
        assert x.shape == y.shape, key


def test_official_works_as_a_synchronised_model_of_one_rank():
    args = SimpleNamespace(projector="5", batch_size=6, lambd=0.0051)
    model = adapters.official.BarlowTwins(args, backbone=Flat(), features=4)
    converted = nn.SyncBatchNorm.convert_sync_batchnorm(model)
    assert isinstance(converted.bn, nn.SyncBatchNorm)
    a, b = z(6, 4), z(6, 4)
    plain = adapters.official.BarlowTwins(args, backbone=Flat(), features=4)
    plain.load_state_dict(converted.state_dict())
    torch.testing.assert_close(converted(a, b), plain(a, b))


def test_options_are_refused_in_words():
    a, b = z(6, 4), z(6, 4)
    with pytest.raises(ValueError, match=r"dead_features must be one of \('nan', 'zero'\)"):
        adapters.hsic.barlow_twins_hsic_loss(a, b, dead_features="skip")
    with pytest.raises(ValueError, match=r"gradient must be one of"):
        adapters.lightly.BarlowTwinsLoss(gradient="half")(a, b)
    with pytest.raises(TypeError, match=r"lamb must be a number.*shape \(2,\)"):
        adapters.solo_learn.barlow_loss_func(a, b, torch.ones(2))


def test_numbers_may_be_tensors_of_one_element():
    a, b = z(6, 4), z(6, 4)
    loss = adapters.solo_learn.barlow_loss_func
    losses = (functools.partial(loss, lamb=lamb) for lamb in (torch.tensor(0.5), 0.5))
    found, want = (outcome(each, a, b) for each in losses)
    for x, y in zip(found, want, strict=True):
        assert torch.equal(x, y)


@pytest.mark.parametrize(
    "name", ["monai", "hsic_negative", "vissl", "lightly_vicreg", "solo_frossl", "mix_bt"]
)
def test_compiled_in_one_graph(name):
    a, b = (torch.randn(8, 6) for _ in range(2))
    adapter = CASES[name].adapter
    compiled = torch.compile(lambda x, y: 2 * adapter(x, y), fullgraph=True, backend="aot_eager")
    want = outcome(lambda x, y: 2 * adapter(x, y), a, b)
    for x, y in zip(outcome(compiled, a, b), want, strict=True):
        torch.testing.assert_close(x, y)


def test_no_adapter_imports_its_peer():
    allowed = {"torch", *sys.stdlib_module_names}
    found = {}
    files = sorted(Path(adapters.lightly.__file__).parent.glob("*.py"))
    assert len(files) >= 13
    for path in files:
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Import):
                names = [alias.name for alias in node.names]
            elif isinstance(node, ast.ImportFrom) and node.level == 0:
                names = [node.module]
            else:
                continue
            others = {name.partition(".")[0] for name in names} - allowed
            found.setdefault(path.stem, set()).update(others)
    # The official model's backbone, when it is requested.
    found = {name: others for name, others in found.items() if others}
    assert found == {"official": {"torchvision"}}
    assert not hasattr(adapters.official, "torchvision")
