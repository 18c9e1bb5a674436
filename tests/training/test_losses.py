"""Runs with every loss of the family: what a step computes, in parts, resumed, shown."""

from __future__ import annotations

import io
from dataclasses import replace

import numpy as np
import pytest
import torch
from rich.console import Console
from runs import StopAt, assert_same, lines_of

from barlow_fast import (
    barlow_twins_loss,
    frossl_loss,
    mix_inputs,
    mixed_barlow_twins_loss,
    vicreg_loss,
)
from barlow_fast.losses.catalogue import LOSSES
from barlow_fast.models import build_twins
from barlow_fast.training import (
    JsonLinesLog,
    PretrainConfig,
    TensorBoardLog,
    Trainer,
    TrainingInterrupted,
    load_checkpoint,
)
from barlow_fast.training.reporting import report_run
from barlow_fast.training.reporting.progress import ProgressReport

MANY = {"view_count": 3, "small_views": 2, "small_size": 4}
RUNS = {
    "pairs": {},
    "views": {"view_count": 4},
    "small views": MANY,
    "vicreg": {"loss": "vicreg"},
    "vicreg of small views": {"loss": "vicreg", **MANY, "one_pass": True},
    "frossl": {"loss": "frossl", "view_count": 4},
    "mixed": {"loss": "mixed-barlow-twins", "mixing": 2.0},
}
FUNCTIONS = {
    "barlow-twins": lambda views, config: barlow_twins_loss(views, lambd=config.lambd),
    "vicreg": lambda views, config: vicreg_loss(views),
    "frossl": lambda views, config: frossl_loss(views),
}


def mixture(config: PretrainConfig, step: int) -> torch.Generator:
    """What the images of a step are mixed by: the seed and the step alone."""
    state = np.random.SeedSequence([config.seed, step]).generate_state(1, np.uint64)
    return torch.Generator().manual_seed(int(state[0] >> 1))


@pytest.mark.parametrize("name", RUNS)
def test_a_step_takes_the_gradient_of_all_views_together(start, name: str):
    trainer = start(**RUNS[name])
    plain = trainer.plain_model(copied=True).train()
    views = start(**RUNS[name]).next_batch().views
    values = trainer.train_step()
    if trainer.config.loss == "mixed-barlow-twins":
        mixed, permutation, alpha = mix_inputs(*views, generator=mixture(trainer.config, 0))
        assert 0 < alpha < 1
        z = plain(*views, mixed)
        loss = mixed_barlow_twins_loss(*z, permutation, alpha, trainer.config.lambd, mixing=2.0)
    else:
        assert len(views) == len(trainer.views.views)
        loss = FUNCTIONS[trainer.config.loss](plain(*views), trainer.config)
    loss.backward()
    assert torch.equal(values["loss"], loss.detach())
    for ours, theirs in zip(trainer.model.parameters(), plain.parameters(), strict=True):
        torch.testing.assert_close(ours.grad, theirs.grad, rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("name", RUNS)
def test_micro_batches_are_the_whole_batch(start, name: str):
    """Up to batch norm, which this encoder is without."""
    found = []
    for micro in (None, 8):
        trainer = start(**RUNS[name], micro_batch_size=micro)
        for module in trainer.model.modules():
            if isinstance(module, torch.nn.modules.batchnorm._BatchNorm):
                module.eval()
        values = trainer.train_step()
        found.append((values["loss"], [p.grad for p in trainer.model.parameters()]))
    (loss, whole), (same, parts) = found
    torch.testing.assert_close(loss, same, rtol=1e-5, atol=1e-5)
    for a, b in zip(whole, parts, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-3, atol=1e-4 * float(a.abs().max()))


@pytest.mark.parametrize("name", RUNS)
def test_a_run_resumes_in_the_middle_of_an_epoch_with_the_same_bits(train, tmp_path, name: str):
    path = tmp_path / "checkpoint.pt"
    whole = train(**RUNS[name])
    with pytest.raises(TrainingInterrupted):
        train(StopAt(9), path=path, **RUNS[name])
    assert load_checkpoint(path)["step"] == 9
    resumed = train(path=path, resume=path, **RUNS[name])
    assert_same(resumed.state_dict(), whole.state_dict())
    assert set(LOSSES[whole.config.loss].terms) <= set(whole.history[-1])


def test_two_views_are_computed_as_before_there_were_more(start):
    """A run of V views begins with the same weights and the same two views as one of two."""
    two, four, small = start(), start(view_count=4), start(**MANY)
    batches = [trainer.next_batch() for trainer in (two, four, small)]
    for batch in batches[1:]:
        assert torch.equal(batch.index, batches[0].index)
        assert all(torch.equal(a, b) for a, b in zip(batches[0].views, batch.views, strict=False))
    for trainer in (four, small):
        assert_same(trainer.model.state_dict(), two.model.state_dict())
        # Watched on the same two views.
        assert_same(trainer.correlation(), two.correlation())


def test_a_checkpoint_without_the_terms_of_its_loss_is_refused(start):
    trainer = start(loss="vicreg")
    trainer.train_epoch()
    state = trainer.state_dict()
    (record,) = state["history"]
    lacking = {k: v for k, v in record.items() if k != "covariance_mean"}
    other = start(loss="vicreg")
    for changes in ({"history": [lacking]}, {"totals": state["totals"][:3]}):
        with pytest.raises(ValueError, match="lacks terms of its loss: loss, invariance, variance"):
            other.load_state_dict({**state, **changes})
    other.load_state_dict(state)
    with pytest.raises(ValueError, match=r"other settings: loss \('vicreg' there, 'frossl' here\)"):
        start(loss="frossl").load_state_dict(state)


@pytest.mark.parametrize("name", ["vicreg of small views", "frossl", "mixed"])
def test_what_is_shown_has_the_terms_by_their_names(train, tmp_path, name: str):
    kind = LOSSES[RUNS[name]["loss"]]
    output = io.StringIO()
    console = Console(file=output, width=300)
    hooks = [JsonLinesLog(tmp_path / "log.jsonl", every=1), ProgressReport(console)]
    pytest.importorskip("tensorboard")
    hooks.append(TensorBoardLog(tmp_path / "events"))
    trainer = train(*hooks, **RUNS[name], epochs=2)
    (*_, record) = trainer.history
    for line in [*lines_of(tmp_path / "log.jsonl", "step"), record]:
        assert {"loss", *kind.terms} <= set(line)
        assert "on_diagonal_mean" in line or "on_diagonal_mean" not in kind.terms
    last = output.getvalue().strip().splitlines()[-1]
    for field, term in kind.terms.items():
        assert f"{term.label} {record[field]:.{term.decimals}f}" in last
    assert scalars(tmp_path / "events") >= {f"epoch/{field}" for field in kind.terms}
    report = report_run(trainer, tmp_path, "digits")
    assert not report.complaints
    page = (tmp_path / "report.html").read_text(encoding="utf-8")
    assert f"<title>{kind.title} on digits" in page
    views = len(trainer.views.views)
    count = views if name == "frossl" else views - trainer.config.small_views
    assert f"32 images x {count} views" in page
    assert f"{kind.title} loss of " in page
    for field, term in kind.terms.items():
        assert f">{field.removesuffix('_mean').replace('_', ' ')}<" in page
        assert f">{record[field]:.{term.decimals}f}<" in page


def scalars(folder) -> set[str]:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(folder))
    events.Reload()
    return set(events.Tags()["scalars"])


def test_terms_are_fields_of_what_the_losses_return():
    views = [torch.randn(8, 5, generator=torch.Generator().manual_seed(n)) for n in range(3)]
    found = {
        name: function(views) for name, function in {
            "barlow-twins": lambda v: barlow_twins_loss(v, return_terms=True),
            "vicreg": lambda v: vicreg_loss(v, return_terms=True),
            "frossl": lambda v: frossl_loss(v, return_terms=True),
            "mixed-barlow-twins": lambda v: mixed_barlow_twins_loss(
                *v, torch.arange(8), 0.5, return_terms=True
            ),
        }.items()
    }  # fmt: skip
    assert found.keys() == LOSSES.keys()
    for name, (_, terms) in found.items():
        fields = set(terms._fields)
        assert set(LOSSES[name].terms) <= fields
        # Each term is shown once, and as a mean where it has one.
        plain = {field for field in fields if f"{field}_mean" not in fields}
        assert set(LOSSES[name].terms) == plain


def test_small_views_that_an_encoder_does_not_take(small_config, small_digits):
    pytest.importorskip("torchvision")
    with pytest.raises(ValueError, match=r"'vit_b_16' does not take images of 96 pixels a side"):
        build_twins("vit_b_16", image_size=224, other_sizes=(96,), projector=(8,))
    config = replace(small_config, encoder="resnet18", small_views=1, small_size=4)
    with Trainer(config, small_digits) as trainer:
        trainer.network.train()
        trainer.train_step()
