"""Encoders on the Hugging Face Hub: safetensors, a configuration and a model card.

Needs `huggingface_hub` and `safetensors`: pip install 'barlow-fast[huggingface]'.
"""

from __future__ import annotations

import json
import os
from dataclasses import replace
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from ..files import write_whole
from ..inputs import optional_library
from .exporting import export
from .pretrained import Pretrained, load_encoder

__all__ = ["HubEncoder"]

_HUB = optional_library("huggingface_hub", "huggingface", "barlow_fast.checkpoints.hub")

WEIGHTS = "model.safetensors"
CARD = """---
{metadata}
---

# {name}, pretrained with Barlow Twins

An encoder without a classifier: images (B, {channels}, {image_size}, {image_size}) give features
(B, {features}). Pixels are in [0, 1], less the mean {mean}, divided by the deviation {std}, by
channel.

```python
from barlow_fast.checkpoints.hub import HubEncoder  # pip install 'barlow-fast[huggingface]'

encoder = HubEncoder.from_pretrained("{address}")
features = encoder(images)
```

`{weights}` is a safetensors file: `barlow_fast.checkpoints.load_encoder` reads it too, and its keys
are those of {library}.
"""


class HubEncoder(
    nn.Module,
    _HUB.ModelHubMixin,
    library_name="barlow_fast",
    pipeline_tag="image-feature-extraction",
    tags=["barlow-twins", "self-supervised-learning"],
):
    """An encoder with `save_pretrained`, `from_pretrained` and `push_to_hub`.

        encoder = HubEncoder(load_encoder("runs/imagenet/checkpoint.pt"))
        encoder.push_to_hub("user/resnet50-barlow-twins")
        encoder = HubEncoder.from_pretrained("user/resnet50-barlow-twins")

    The folder or repository holds `model.safetensors` (see `export`, which reads it back and
    compares), `config.json` and `README.md`; the projector is left out. Nothing in them is run
    when they are read. The methods take the arguments of `huggingface_hub.ModelHubMixin`.

    Args:
        pretrained: from `load_encoder`.

    Attributes:
        encoder: the network; what is saved are its weights as they are then.
        pretrained: what its images must look like.
    """

    def __init__(self, pretrained: Pretrained) -> None:
        super().__init__()
        self.encoder = pretrained.encoder
        self.pretrained = pretrained
        self.train(pretrained.encoder.training)

    def forward(self, images: Tensor) -> Tensor:
        """(B, channels, H, W) -> (B, features)."""
        return self.encoder(images)

    def push_to_hub(self, repo_id: str, **options: Any) -> str:
        """Uploads to the repository `repo_id`, which is made where there is none; returns the
        commit's address. `options` are those of `ModelHubMixin.push_to_hub`."""
        card = {"address": repo_id, **(options.pop("model_card_kwargs", None) or {})}
        return super().push_to_hub(repo_id, model_card_kwargs=card, **options)

    def generate_model_card(self, address: str = "FOLDER") -> Any:
        """The card, as it is saved; `address` is a repository, or a folder."""
        values, name = _description(self.pretrained), self.pretrained.name
        library = "timm" if name.startswith("timm:") else "torchvision"
        text = CARD.format(
            metadata=self._hub_mixin_info.model_card_data.to_yaml(),
            address=address,
            weights=WEIGHTS,
            library="barlow_fast" if name == "small" else library,
            **values,
        )
        return _HUB.ModelCard(text)

    def _save_pretrained(self, save_directory: Path) -> None:
        current = replace(self.pretrained, encoder=self.encoder)
        export(current, save_directory / WEIGHTS, "safetensors")
        text = json.dumps(_description(self.pretrained), indent=2) + "\n"
        write_whole(save_directory / "config.json", text)

    @classmethod
    def _from_pretrained(cls, *, model_id: str, **options: Any) -> HubEncoder:
        if os.path.isdir(model_id):
            return cls(load_encoder(Path(model_id) / WEIGHTS))
        return cls(load_encoder(_HUB.hf_hub_download(model_id, WEIGHTS, **options)))


def _description(pretrained: Pretrained) -> dict[str, Any]:
    """Plain values for the Hub; `load_encoder` reads those of the weights' file."""
    names = ("name", "features", "channels", "image_size", "mean", "std")
    values = {name: getattr(pretrained, name) for name in names}
    return {**values, "features": int(pretrained.features), "stem": pretrained.architecture.stem}
