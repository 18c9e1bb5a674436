"""Each peer's layout, built as its documentation has it, gives the same features."""

from __future__ import annotations

import random
from argparse import Namespace
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from scrambled import scramble
from torch import Tensor, nn

from barlow_fast.checkpoints import load_encoder, load_projector
from barlow_fast.checkpoints.layouts import PRETRAIN, infer_resnet
from barlow_fast.models import Projector, build_encoder, build_twins

Save = Callable[..., Path]


def under(prefix: str, state: dict[str, Tensor]) -> dict[str, Tensor]:
    return {prefix + key: value for key, value in state.items()}


def projector(biases: tuple[bool, bool, bool] = (False, False, False)) -> nn.Sequential:
    torch.manual_seed(1)
    return scramble(
        nn.Sequential(
            nn.Linear(512, 8, bias=biases[0]), nn.BatchNorm1d(8), nn.ReLU(),
            nn.Linear(8, 8, bias=biases[1]), nn.BatchNorm1d(8), nn.ReLU(),
            nn.Linear(8, 6, bias=biases[2]),
        )
    )  # fmt: skip


NECK = {"0": "fc0", "1": "bn0", "3": "fc1", "4": "bn1", "6": "fc2"}


def official(state: dict) -> tuple[Any, nn.Module]:
    head = projector()
    bn = nn.BatchNorm1d(6, affine=False)
    model = {
        **under("module.backbone.", state),
        **under("module.projector.", head.state_dict()),
        **under("module.bn.", bn.state_dict()),
    }
    return {"epoch": 3, "model": model, "optimizer": {"state": {}, "param_groups": []}}, head


def solo(state: dict) -> tuple[Any, nn.Module]:
    head = projector((True, True, True))
    weights = {
        **under("backbone.", state),
        **under("projector.", head.state_dict()),
        **under("classifier.", nn.Linear(512, 10).state_dict()),
    }
    return {"state_dict": weights, "epoch": 3, "args": Namespace(method="barlow_twins")}, head


def lightly(state: dict) -> tuple[Any, nn.Module]:
    head = projector((False, False, True))
    weights = {
        **under("backbone.", state),
        **under("projection_head.layers.", head.state_dict()),
        **under("online_classifier.linear.", nn.Linear(512, 10).state_dict()),
    }
    return {"state_dict": weights, "epoch": 3, "pytorch-lightning_version": "2.4"}, head


def mmselfsup(state: dict) -> tuple[Any, nn.Module]:
    head = projector()
    neck = {
        f"neck.{NECK[key.split('.')[0]]}.{key.split('.')[1]}": value
        for key, value in head.state_dict().items()
    }
    bn = under("head.bn.", nn.BatchNorm1d(6, affine=False).state_dict())
    return {"meta": {"epoch": 3}, "state_dict": {**under("backbone.", state), **neck, **bn}}, head


def vissl(state: dict) -> tuple[Any, None]:
    trunk = under("_feature_blocks.", state)
    model = {"trunk": trunk, "heads": {"0.clf.0.weight": torch.rand(4, 512)}}
    return {"classy_state_dict": {"base_model": {"model": model}}, "iteration": 7}, None


def bare(state: dict) -> tuple[Any, None]:
    return dict(state), None


def with_classifier(state: dict) -> tuple[Any, None]:
    return {**state, **under("fc.", nn.Linear(512, 1000).state_dict())}, None


PEERS = {
    "official": (official, "official"),
    "solo-learn": (solo, "solo-learn"),
    "lightly": (lightly, "lightly"),
    "mmselfsup": (mmselfsup, "mmselfsup"),
    "vissl": (vissl, "vissl"),
    "resnet50.pth": (bare, "torchvision"),
    "whole torchvision": (with_classifier, "torchvision"),
}


@pytest.mark.parametrize("peer", PEERS)
def test_features_and_embeddings_are_the_peers(peer: str, resnet18, saved: Save):
    make, layout = PEERS[peer]
    content, head = make(resnet18.state)
    path = saved(content)
    state = torch.random.get_rng_state()
    loaded = load_encoder(path)
    assert torch.equal(torch.random.get_rng_state(), state)
    assert (loaded.format, loaded.name) == (layout, "resnet18")
    assert (loaded.features, loaded.channels, loaded.image_size) == (512, 3, 224)
    assert not loaded.encoder.training
    assert "mean" in loaded.metadata["assumed"]
    with torch.no_grad():
        features = loaded.encoder(resnet18.images)
        assert torch.equal(features, resnet18.features)
        if head is None:
            assert loaded.projector is None
            with pytest.raises(ValueError, match="no projector"):
                load_projector(path)
        else:
            embeddings = load_projector(path)(features)
            assert torch.equal(embeddings, head(resnet18.features))
            assert torch.equal(embeddings, loaded.projector(features))


def test_a_projector_without_biases_is_ours(resnet18, saved: Save):
    content, _ = official(resnet18.state)
    assert isinstance(load_projector(saved(content)), Projector)


WRAPPED = {
    "torch.compile of DataParallel": lambda n: torch.compile(nn.DataParallel(n)),
    "DataParallel of torch.compile": lambda n: nn.DataParallel(torch.compile(n)),
    "an average of a compiled one": lambda n: torch.optim.swa_utils.AveragedModel(torch.compile(n)),
    "a compiled stage": lambda n: within(n, "layer2", torch.compile),
    "a DataParallel block": lambda n: within(n, "layer3", nn.DataParallel),
}


def within(network: nn.Module, name: str, wrap: Callable) -> nn.Module:
    setattr(network, name, wrap(getattr(network, name)))
    return network


@pytest.mark.parametrize("wrapper", WRAPPED)
@pytest.mark.parametrize("given", [{}, {"encoder": "resnet18"}], ids=["found", "given"])
def test_wrappers_put_no_name_into_the_way(wrapper, given, resnet18, load):
    network = pytest.importorskip("torchvision").models.resnet18(weights=None)
    network.fc = nn.Identity()
    network.load_state_dict(resnet18.state)
    state = WRAPPED[wrapper](network).state_dict()
    assert state.keys() != resnet18.state.keys()
    resnet18.assert_same(load(state, **given))


NAMES = (
    "module", "_orig_mod", "_fsdp_wrapped_module", "_checkpoint_wrapped_module", "_fpw_module",
    "_forward_module",
)  # fmt: skip


@pytest.mark.parametrize("peer", PEERS)
def test_wrappers_of_every_layout_in_any_order_and_depth(peer: str, resnet18, load):
    """As FSDP does it, around blocks within blocks."""
    content, _ = PEERS[peer][0](resnet18.state)
    generator = random.Random(peer)
    chosen: dict[str, list[str]] = {}  # by the module that is wrapped

    def wrapped(key: str) -> str:
        parts, path = [], ""
        for part in key.split("."):
            names = generator.sample(NAMES, generator.choice([0, 0, 1, 3]))
            parts += [*chosen.setdefault(path, names), part]
            path += f".{part}"
        return ".".join(parts)

    def everywhere(values: dict) -> dict:
        is_weights = any(isinstance(v, Tensor) for v in values.values())
        return {
            wrapped(key) if is_weights else key: everywhere(v) if isinstance(v, dict) else v
            for key, v in values.items()
        }

    resnet18.assert_same(load(everywhere(content)))
    assert len(set(map(len, chosen.values()))) == 3


@pytest.mark.parametrize("prefix", ["net.", "model.backbone.", "_orig_mod.module.a.b.module.c."])
def test_a_prefix_that_all_keys_share_where_the_encoder_is_given(prefix, resnet18, load):
    head = under("fc.", nn.Linear(512, 1000).state_dict())
    for state in (resnet18.state, {**resnet18.state, **head}):
        resnet18.assert_same(load(under(prefix, state), encoder="resnet18"))
    sequence = in_a_sequence(resnet18.state)
    assert load(under(prefix, sequence), encoder="resnet18").name == "resnet18"


def in_a_sequence(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """As lightly's examples do: nn.Sequential(*list(resnet.children())[:-1])."""
    numbers = {"conv1": 0, "bn1": 1, "layer1": 4, "layer2": 5, "layer3": 6, "layer4": 7}
    parts = {key: key.partition(".") for key in state}
    return {f"{numbers[parts[k][0]]}.{parts[k][2]}": value for k, value in state.items()}


def test_two_models_in_one_dict(resnet18, load):
    with pytest.raises(ValueError, match=r"has conv1.weight and module.conv1.weight, which name"):
        load({**resnet18.state, **under("module.", resnet18.state)})


@pytest.mark.slow
def test_architectures_with_a_part_of_a_wrappers_name(load):
    pytest.importorskip("timm")
    network = build_encoder("timm:iformer_t", channels=3, image_size=32)
    assert any(".module." in key for key in network.state_dict())
    loaded = load(under("_orig_mod.module.", network.state_dict()), encoder="timm:iformer_t")
    for key, value in network.state_dict().items():
        assert torch.equal(loaded.encoder.state_dict()[key], value)


def test_what_the_file_says_beside_its_weights(resnet18, load):
    metadata = load(solo(resnet18.state)[0]).metadata
    assert (metadata["epoch"], metadata["settings"]) == (3, {"method": "barlow_twins"})


def test_an_encoder_in_a_sequence_gets_its_names_back(resnet18, load):
    renamed = under("backbone.", in_a_sequence(resnet18.state))
    loaded = load(
        {"state_dict": {**renamed, "projection_head.layers.0.weight": torch.rand(4, 512)}}
    )
    resnet18.assert_same(loaded)
    assert loaded.projector(resnet18.features).shape == (2, 4)


def test_the_resnet_of_lightlys_small_image_benches(load):
    models = pytest.importorskip("lightly.models")
    torch.manual_seed(0)
    network = scramble(models.ResNetGenerator("resnet-18"))
    backbone = nn.Sequential(*list(network.children())[:-1], nn.AdaptiveAvgPool2d(1))
    images = torch.randn(2, 3, 32, 32)
    loaded = load({"state_dict": under("backbone.", backbone.state_dict())})
    assert (loaded.name, loaded.features, loaded.image_size) == ("resnet18", 512, 32)
    with torch.no_grad():
        expected = backbone.eval()(images).flatten(1)
        torch.testing.assert_close(loaded.encoder(images), expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(("make", "padding"), [(solo, 2), (official, 1), (bare, 1)])
def test_small_stems_pad_as_their_library_does(make, padding: int, small_resnet18, load):
    truth = small_resnet18(padding)
    loaded = load(make(truth.state)[0])
    assert loaded.image_size == 32
    truth.assert_same(loaded)


def test_files_without_counters_of_batch_norms(resnet18, load):
    old = {k: v for k, v in resnet18.state.items() if not k.endswith("num_batches_tracked")}
    resnet18.assert_same(load(old))


@pytest.mark.parametrize("name", ["resnet34", "resnet50", "wide_resnet50_2", "resnext50_32x4d"])
def test_depth_and_width_are_read_off_the_shapes(name: str):
    with torch.device("meta"):
        state = build_encoder(name, channels=1).state_dict()
    assert infer_resnet(state, "small") == (name, "imagenet")


def test_timm_and_transformers_are_given_by_name(saved: Save):
    pytest.importorskip("timm")
    torch.manual_seed(0)
    network = build_encoder("timm:convnext_atto", image_size=32).eval()
    head = {"head.fc.weight": torch.rand(10, 320), "head.fc.bias": torch.rand(10)}
    path = saved({"state_dict": {**network.state_dict(), **head}})
    with pytest.raises(ValueError, match=r"does not state its architecture.*give encoder="):
        load_encoder(path)
    loaded = load_encoder(path, encoder="timm:convnext_atto", image_size=32)
    assert (loaded.format, loaded.features, loaded.image_size) == ("timm", 320, 32)
    images = torch.randn(2, 3, 32, 32)
    with torch.no_grad():
        assert torch.equal(loaded.encoder(images), network(images))


def ours(model: nn.Module, config: dict[str, Any], **more: Any) -> dict[str, Any]:
    config, state = {"projector": [8, 6], **config}, model.state_dict()
    header = {"format": PRETRAIN, "version": 1, "config": config}
    return {**header, "model": state, "epoch": 2, **more}


IMAGE = {"channels": 1, "size": 12, "mean": [0.25], "std": [0.5]}


@pytest.mark.parametrize("encoder", ["small", "resnet18"])
def test_our_own_checkpoints(encoder: str, load):
    sizes = {"encoder_widths": [4, 6], "encoder_grid": 3}
    model = build_twins(encoder, channels=1, image_size=12, projector=(8, 6), **sizes)
    scramble(model)
    loaded = load(ours(model, {"encoder": encoder, "stem": "auto", **sizes}, image=IMAGE))
    assert (loaded.format, loaded.name) == ("barlow_fast", encoder)
    assert (loaded.channels, loaded.image_size) == (1, 12)
    assert (loaded.mean, loaded.std) == ((0.25,), (0.5,))
    assert loaded.metadata["assumed"] == []
    images = torch.rand(3, 1, 12, 12)
    with torch.no_grad():
        features = loaded.encoder(images)
        assert torch.equal(features, model.encoder(images))
        assert torch.equal(loaded.projector(features), model(images, images)[0])


def first_checkpoint() -> dict[str, Any]:
    model = build_twins(channels=1, encoder_widths=(4, 6), projector=(8, 6))
    return ours(model, {"encoder_widths": [4, 6], "encoder_grid": 2})


def test_our_first_checkpoints_reported_less(load):
    loaded = load(first_checkpoint())
    assert (loaded.name, loaded.channels, loaded.mean, loaded.std) == ("small", 1, (0.0,), (1.0,))
    assert loaded.metadata["assumed"] == ["image_size", "mean", "std"]


def test_the_trainers_files_are_recognised(tmp_path: Path):
    from barlow_fast.checkpoints.training import save_checkpoint

    content = first_checkpoint()
    del content["format"], content["version"]
    save_checkpoint(tmp_path / "checkpoint.pt", content)
    assert load_encoder(tmp_path / "checkpoint.pt").format == "barlow_fast"
