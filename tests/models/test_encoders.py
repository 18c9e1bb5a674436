"""Encoders by name: their shapes, keys, stems and stages."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

from barlow_fast.models import SmallEncoder, build_encoder, stages

torchvision = pytest.importorskip("torchvision")


def on_meta(name: str, **arguments) -> nn.Module:
    """Shapes alone: no time for weights."""
    with torch.device("meta"):
        return build_encoder(name, **arguments)


@pytest.mark.parametrize(
    ("name", "size", "channels", "features"),
    [
        ("resnet18", 32, 3, 512),
        ("resnet50", 224, 1, 2048),
        ("convnext_tiny", 64, 3, 768),
        ("vit_b_16", 32, 3, 768),
        ("swin_t", 64, 4, 768),
        ("googlenet", 64, 1, 1024),
        ("densenet121", 64, 1, 1024),
        ("mobilenet_v3_small", 64, 3, 1024),
        ("squeezenet1_0", 64, 3, 512),
        ("vgg11", 64, 3, 4096),
    ],
)
def test_a_backbone_without_its_head(name: str, size: int, channels: int, features: int):
    encoder = on_meta(name, image_size=size, channels=channels)
    assert encoder.features == features
    images = torch.empty(2, channels, size, size, device="meta")
    assert encoder.train()(images).shape == (2, features)
    with torch.device("meta"):
        options = {"init_weights": False} if name == "googlenet" else {}
        whole = torchvision.models.get_model(name, weights=None, **options)
    removed = (f"{encoder.removed_head}.", "aux1.", "aux2.")
    expected = {key for key in whole.state_dict() if not key.startswith(removed)}
    assert set(encoder.state_dict()) == expected
    names = [key for key, _ in whole.named_parameters() if key in expected]
    assert [key for key, _ in encoder.named_parameters()] == names


def test_the_numbers_of_a_network_are_those_of_torchvision():
    encoder = build_encoder("resnet18", image_size=224).eval()
    whole = torchvision.models.resnet18(weights=None)
    missing = whole.load_state_dict(encoder.state_dict(), strict=False)
    assert missing.missing_keys == ["fc.weight", "fc.bias"]
    assert not missing.unexpected_keys
    whole.fc = nn.Identity()
    images = torch.rand(2, 3, 64, 64)
    assert torch.equal(encoder(images), whole.eval()(images))


def test_residual_branches_start_at_zero():
    encoder = build_encoder("resnet18", image_size=32)
    ends = [block.bn2.weight for layer in (encoder.layer1, encoder.layer4) for block in layer]
    assert all(not weight.any() for weight in ends)


@pytest.mark.parametrize(
    ("stem", "size", "kernel", "padding", "side"),
    [
        ("auto", 64, (3, 3), (1, 1), 64),
        ("auto", 65, (7, 7), (3, 3), 17),
        ("small", 224, (3, 3), (1, 1), 224),
        ("imagenet", 32, (7, 7), (3, 3), 8),
        ("small-padding-2", 32, (3, 3), (2, 2), 34),
    ],
)
def test_stem(stem: str, size: int, kernel: tuple, padding: tuple, side: int):
    encoder = on_meta("resnet18", image_size=size, stem=stem)
    assert (encoder.conv1.kernel_size, encoder.conv1.padding) == (kernel, padding)
    image = torch.empty(1, 3, size, size, device="meta")
    assert encoder.maxpool(encoder.conv1(image)).shape == (1, 64, side, side)
    assert build_rebuilt(encoder) == encoder.architecture


def build_rebuilt(encoder: nn.Module):
    return on_meta(**encoder.architecture.arguments()).architecture


def test_small_is_the_compact_encoder():
    encoder = build_encoder("small", channels=1, image_size=28, widths=(4, 8), grid=3)
    assert isinstance(encoder, SmallEncoder)
    assert encoder(torch.rand(2, 1, 28, 28)).shape == (2, encoder.features) == (2, 72)
    assert build_rebuilt(encoder) == encoder.architecture


def test_a_network_with_a_part_called_features_keeps_its_names_and_can_be_copied():
    encoder = build_encoder("squeezenet1_1", image_size=32)
    assert encoder.features == 512
    assert "features.0.weight" in encoder.state_dict()
    encoder.eval()
    assert not encoder.network.training
    assert not encoder.network._modules["features"].training
    images = torch.rand(2, 3, 32, 32)
    other = copy.deepcopy(encoder)
    with torch.no_grad():
        before = encoder(images)
        for parameter in other.parameters():
            parameter.zero_()
        assert torch.equal(encoder(images), before)
        assert not torch.equal(other(images), before)
    assert copy.deepcopy(nn.Linear(encoder.features, 2)).in_features == 512
    assert type(copy.deepcopy(encoder.features)) is int
    double = encoder.double()
    assert double(images.double()).dtype == torch.float64
    fresh = build_encoder("squeezenet1_1", image_size=32).double().eval()
    fresh.load_state_dict(encoder.state_dict())
    assert torch.equal(fresh(images.double()), encoder(images.double()))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"name": "resnet-50"}, r"unknown encoder 'resnet-50'.*did you mean resnet50"),
        ({"name": "nothing at all"}, r"unknown encoder 'nothing at all'"),
        ({"name": "vit_b_16", "image_size": 100}, r"vit_b_16.*100 pixels"),
        ({"name": "vgg11", "image_size": 8}, r"vgg11.*8 pixels"),
        ({"name": "vgg11", "stem": "small"}, r"stem='small' is for ResNets"),
        ({"name": "small", "stem": "small-padding-2"}, r"is for ResNets"),
        ({"name": "resnet18", "stem": "tiny"}, r"stem must be one of auto.*'tiny'"),
        ({"name": "resnet18", "channels": 0}, r"must be positive, got 0"),
    ],
)
def test_what_cannot_be_built(arguments: dict, message: str):
    with pytest.raises(ValueError, match=message):
        build_encoder(**arguments)


def outputs_of_stages(encoder: nn.Module, images: torch.Tensor) -> dict[str, tuple]:
    shapes = {}
    for name, module in stages(encoder).items():
        module.register_forward_hook(
            lambda _, __, output, name=name: shapes.__setitem__(name, tuple(output.shape))
        )
    encoder(images)
    return shapes


def test_stages_of_a_resnet_are_feature_1_to_5():
    encoder = on_meta("resnet50", image_size=224)
    shapes = outputs_of_stages(encoder, torch.empty(1, 3, 224, 224, device="meta"))
    sizes = [(64, 56), (256, 56), (512, 28), (1024, 14), (2048, 7)]
    assert shapes == {f"Feature{i + 1}": (1, d, side, side) for i, (d, side) in enumerate(sizes)}


def test_stages_of_the_compact_encoder_are_its_widths():
    encoder = build_encoder("small", channels=1, image_size=16, widths=(4, 8, 6), grid=2)
    images = torch.rand(2, 1, 16, 16)
    expected = {"Feature1": (2, 4, 16, 16), "Feature2": (2, 8, 8, 8), "Feature3": (2, 6, 4, 4)}
    assert outputs_of_stages(encoder, images) == expected
    assert outputs_of_stages(SmallEncoder(1, (4, 8)), images)["Feature2"] == (2, 8, 8, 8)


def test_stages_of_other_networks():
    encoder = on_meta("convnext_tiny", image_size=64)
    shapes = outputs_of_stages(encoder, torch.empty(1, 3, 64, 64, device="meta"))
    sizes = [(96, 16), (192, 8), (384, 4), (768, 2)]
    assert list(shapes.values()) == [(1, d, side, side) for d, side in sizes]
    transformer = on_meta("vit_b_32", image_size=32)
    assert stages(transformer) == {"features": transformer}
    with pytest.raises(ValueError, match="build_encoder"):
        stages(nn.Linear(2, 2))


@pytest.mark.parametrize(
    ("name", "size", "features", "number"),
    [
        ("timm:resnet18", 32, 512, 5),
        ("convnext_atto", 64, 320, 4),
        ("timm:vit_tiny_patch16_224", 48, 192, 1),
        ("timm:densenet121", 64, 1024, 5),
    ],
)
def test_timm(name: str, size: int, features: int, number: int):
    pytest.importorskip("timm")
    encoder = on_meta(name, image_size=size, channels=1)
    assert encoder.features == features
    assert encoder(torch.empty(2, 1, size, size, device="meta")).shape == (2, features)
    assert len(stages(encoder)) == number
    with pytest.raises(ValueError, match=r"did you mean .*convnext_atto"):
        build_encoder("timm:convnxt_atto")


def test_names_can_be_walked_as_checkpoints_of_sharded_models_do():
    from torch.distributed.checkpoint import state_dict

    encoder = build_encoder("squeezenet1_1", image_size=32)
    state = state_dict.get_model_state_dict(encoder)
    assert list(state) == list(encoder.state_dict())
    changed = {key: value + 1 for key, value in state.items()}
    state_dict.set_model_state_dict(encoder, changed)
    assert torch.equal(encoder.state_dict()["features.0.bias"], changed["features.0.bias"])


def test_an_encoder_of_two_sizes():
    """Transformers of timm fit their position embeddings; convolutions take both as they are."""
    pytest.importorskip("timm")
    name = "timm:vit_tiny_patch16_224"
    encoder = build_encoder(name, image_size=64, other_sizes=(32,))
    assert encoder(torch.rand(2, 3, 64, 64)).shape == encoder(torch.rand(2, 3, 32, 32)).shape
    plain = build_encoder(name, image_size=64)
    plain.load_state_dict(encoder.state_dict())
    images = torch.rand(2, 3, 64, 64)
    assert torch.equal(plain.eval()(images), encoder.eval()(images))
    with pytest.raises(ValueError, match="does not take images of 17 pixels a side"):
        build_encoder(name, image_size=64, other_sizes=(17,))
    convolutions = build_encoder("small", channels=1, image_size=16, other_sizes=(8,))
    assert convolutions(torch.rand(2, 1, 8, 8)).shape == (2, convolutions.features)
    build_encoder("timm:resnet18", image_size=64, other_sizes=(32,))
