"""Encoders trained from start to end by our trainer and by lightly's parts, for their accuracy."""

from __future__ import annotations

import time
from collections.abc import Callable

import numpy as np
import torch
from torch import nn
from torchvision import transforms

from barlow_fast.data import ImageDataset, Views, ViewSpecification
from barlow_fast.training import PretrainConfig, Trainer
from barlow_fast.training.feeding import choose_views, image_size
from barlow_fast.training.optimizers import set_learning_rates
from bench.training.runs import ShortLoop
from bench.views import recipes

WORKERS = 2

# An encoder, and images per second of the epochs, evaluations left out.
Trained = tuple[nn.Module, float]


def ours(config: PretrainConfig, data: ImageDataset, say: Callable[[str], None]) -> Trained:
    """As `barlow-fast pretrain` trains, with one score at the end."""
    with Trainer(config, data, "cpu") as trainer:
        trainer.run()
    seconds = sum(record["seconds"] for record in trainer.history)
    images = config.epochs * trainer.steps_per_epoch * config.batch_size
    say(f"loss {trainer.history[-1]['loss']:.1f}")
    return trainer.model.encoder, images / seconds


def lightly(config: PretrainConfig, data: ImageDataset, say: Callable[[str], None]) -> Trained:
    """lightly's loss and transforms with the parameters of the same views, in a DataLoader of two
    workers: same encoder and weights to start from, optimizer, schedule, precision and epochs."""
    from lightly.loss import BarlowTwinsLoss

    views = choose_views(config.views, data)
    criterion, side = BarlowTwinsLoss(lambda_param=config.lambd), image_size(views, data)
    loop = ShortLoop(config, len(views.mean), side, torch.device("cpu"), criterion)
    torch.manual_seed(config.seed)
    pixels = np.ascontiguousarray(data.train_images.permute(0, 2, 3, 1).numpy())
    dataset = recipes.pixels(pixels, transform(views, max(data.image_size)))
    batches = recipes.loader(dataset, config.batch_size, WORKERS)
    steps, step, seconds, total = len(batches), 0, 0.0, 0.0
    loop.model.train()
    for _ in range(config.epochs):
        start, total = time.perf_counter(), 0.0
        for pair in batches:
            set_learning_rates(loop.optimizer, config, step, config.epochs * steps, steps)
            total += loop.step(loop.moved(pair)).item()
            step += 1
        seconds += time.perf_counter() - start
    say(f"loss {total / steps:.1f}")
    return loop.model.encoder, config.epochs * steps * config.batch_size / seconds


def transform(views: Views, side: int) -> recipes.Transform:
    """lightly's transform of each view, with the numbers of `views`."""
    return recipes.Each([_view(specification, side, views) for specification in views.views])


def _view(specification: ViewSpecification, side: int, views: Views) -> recipes.Transform:
    from lightly.transforms.byol_transform import BYOLView1Transform

    s = specification
    found = BYOLView1Transform(
        input_size=side, cj_prob=s.jitter, cj_strength=1.0, cj_bright=s.brightness,
        cj_contrast=s.contrast, cj_sat=s.saturation, cj_hue=s.hue, min_scale=s.crop_area[0],
        random_gray_scale=s.grayscale, gaussian_blur=s.blur, sigmas=s.blur_sigma,
        solarization_prob=s.solarize, hf_prob=s.flip,
        normalize={"mean": list(views.mean), "std": list(views.std)},
    )  # fmt: skip
    if not s.erase:
        return found
    # lightly has none.
    black = [-mean / std for mean, std in zip(views.mean, views.std, strict=True)]
    erase = transforms.RandomErasing(s.erase, s.erase_area, (1, 1), black)
    return transforms.Compose([found, erase])
