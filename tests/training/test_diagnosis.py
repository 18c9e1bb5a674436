"""The guard names the step and the tensor, and keeps what was good."""

from __future__ import annotations

import contextlib
import math

import pytest
import torch
from runs import assert_same
from torch import nn

from barlow_fast.models import build_twins
from barlow_fast.training import Hook, TrainingDiverged, load_checkpoint
from barlow_fast.training.diagnosis import first_bad_tensor, gradients_finite

VIEWS = torch.rand(4, 1, 8, 8), torch.rand(4, 1, 8, 8)


@pytest.fixture
def model():
    return build_twins(channels=1, image_size=8, encoder_widths=(4, 8), projector=(8, 16))


def culprit(model, views=VIEWS, index=None) -> str:
    return first_bad_tensor(model, views, contextlib.nullcontext, index)


def test_a_bad_view_is_named_with_its_sample(model):
    bad = VIEWS[1].clone()
    bad[2, 0, 3, 3] = math.inf
    assert culprit(model, (VIEWS[0], bad), torch.tensor([9, 8, 7, 6])) == (
        "view b (row 2, sample 7)"
    )


def test_a_bad_weight_buffer_and_gradient_are_named(model):
    assert "loss itself" in culprit(model)
    model.projector[0].weight.grad = torch.full_like(model.projector[0].weight, math.nan)
    assert culprit(model) == "the gradient of projector.0.weight (256 of 256 values)"
    model.encoder[1].running_var[3] = math.nan
    assert culprit(model) == "the buffer encoder.1.running_var (1 of 4 values)"
    with torch.no_grad():
        model.projector[3].weight[0, 0] = math.nan
    assert culprit(model).startswith("the weight projector.3.weight (1 of")


def test_the_first_module_that_makes_a_bad_number_is_named(model):
    class Root(nn.Module):
        def forward(self, x):
            return (x - 10).sqrt()

    model.encoder[2] = Root()
    before = model.encoder[1].running_mean.clone()
    assert culprit(model).startswith("the output of encoder.2, Root (")
    assert torch.equal(model.encoder[1].running_mean, before)


def test_gradients_are_looked_at_as_a_whole(model):
    assert gradients_finite(model)
    for parameter in model.parameters():
        parameter.grad = torch.ones_like(parameter)
    assert gradients_finite(model)
    next(model.parameters()).grad.view(-1)[1] = math.inf
    assert not gradients_finite(model)


class Break(Hook):
    """Makes the gradient of one weight bad in the step after `step`, and leaves the loss alone."""

    def __init__(self, step: int) -> None:
        self.step = step

    def stepped(self, trainer, step):
        if trainer.step == self.step:
            weight = trainer.model.projector[0].weight
            weight.register_hook(lambda gradient: gradient * math.inf)


def test_a_bad_gradient_stops_the_run_with_the_state_from_before_it(train, tmp_path):
    path = tmp_path / "checkpoint.pt"
    message = (
        r"step 16 of 24 \(epoch 3\).*the gradient of projector\.0\.weight.*"
        r"A lower learning rate than 0\.002 usually.*checkpoint\.pt"
    )
    with pytest.raises(TrainingDiverged, match=message):
        train(Break(15), path=path)
    assert load_checkpoint(path)["step"] == 15

    # What was saved is the state before the bad step, as a run without it would have had.
    assert_same(train(resume=path).state_dict(), train().state_dict())


def test_a_bad_loss_is_reported_from_a_bad_gradient(train):
    with pytest.raises(TrainingDiverged, match=r"the first value that is not finite is in the "):
        train(learning_rate=1e30)
