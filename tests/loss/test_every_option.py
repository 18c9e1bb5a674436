"""Every option of the loss, of `explain` and of `warmup` is seen to have its effect."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from embeddings import draw
from options import assert_covered, record_calls

from barlow_fast import (
    BarlowTwinsLoss,
    Terms,
    barlow_twins_loss,
    explain,
    ops,
    plan,
    warming,
    warmup,
)
from barlow_fast.distributed import autograd, cost, groups
from barlow_fast.losses import barlow_twins as loss_module

ACROSS_RANKS = {
    "process_group": "world",
    "statistics": "local",
    "gradient": "official",
    "layout": "rows",
}


def resolved(monkeypatch, **options):
    """(form, precision, backend) that a call runs."""
    found = []
    plain = plan.resolve

    def noted(*arguments):
        found.append(plain(*arguments))
        return found[-1]

    with monkeypatch.context() as patch:
        patch.setattr(plan, "resolve", noted)
        barlow_twins_loss(*draw("random", 8, 64), **options)
    return found[0]


# option: (value that is not the default, what the call must show)
EFFECTS = {
    "lambd": (0.5, lambda out, off, m: out["lambd"] > off["lambd"]),
    "scale": (3.0, lambda out, off, m: torch.equal(out["scale"], 3 * off["scale"])),
    "eps": (1.0, lambda out, off, m: not torch.equal(out["eps"], off["eps"])),
    "precision": ("bf16", lambda out, off, m: resolved(m, precision="bf16")[1] == "bf16"),
    "form": ("correlation", lambda out, off, m: resolved(m, form="correlation")[0] != "gram"),
    "backend": ("aten", lambda out, off, m: resolved(m, backend="aten")[2] == "aten"),
    "off_diagonal_target": (
        -1.0,
        lambda out, off, m: out["off_diagonal_target"] > off["off_diagonal_target"],
    ),
    "return_terms": (True, lambda out, off, m: isinstance(out["return_terms"][1], Terms)),
}  # fmt: skip


@pytest.mark.parametrize("name", EFFECTS)
def test_the_function_does_what_its_option_says(name, monkeypatch):
    views = draw("random", 8, 64)
    value, seen = EFFECTS[name]
    assert seen(
        {name: barlow_twins_loss(*views, **{name: value})},
        {name: barlow_twins_loss(*views)},
        monkeypatch,
    )


@pytest.mark.parametrize("name", ACROSS_RANKS)
def test_options_across_ranks_reach_the_loss_of_the_group(name, monkeypatch):
    """What they do there is what tests/distributed is about."""
    group = groups.Group(None, 0, 2)
    monkeypatch.setattr(groups, "resolve", lambda given: group if given else None)
    scalar = torch.zeros(())
    calls = record_calls(monkeypatch, autograd, "forward", lambda *a, **k: (scalar,) * 3)
    options = {"process_group": "world", name: ACROSS_RANKS[name]}
    barlow_twins_loss(*draw("random", 8, 64), lambd=0.5, scale=3.0, eps=1.0, **options)
    (call,) = calls
    assert call["group"] is group
    given = call["options"]
    assert (given.lambd, given.scale, given.eps) == (0.5, 3.0, 1.0)
    assert getattr(given, name) == ACROSS_RANKS[name]


def test_every_option_of_the_function_has_a_case():
    assert_covered(
        barlow_twins_loss,
        [*EFFECTS, *ACROSS_RANKS],
        {"z_a": "what is computed on", "z_b": "what is computed on"},
    )


def test_the_module_hands_every_option_on(monkeypatch):
    options = {name: value for name, (value, _) in EFFECTS.items() if name != "return_terms"}
    options |= ACROSS_RANKS | {"form": "gram"}
    assert_covered(BarlowTwinsLoss, options)
    calls = record_calls(monkeypatch, loss_module, "barlow_twins_loss", lambda *a, **k: None)
    z_a, z_b = draw("random", 8, 64)
    BarlowTwinsLoss(**options)(z_a, z_b, return_terms=True)
    (call,) = calls
    assert call.pop("z_a") is z_a
    assert call.pop("z_b") is z_b
    assert call == options | {"return_terms": True}
    assert_covered(barlow_twins_loss, [*call, "z_a", "z_b"])


def test_the_module_shows_its_options():
    shown = repr(BarlowTwinsLoss(0.5, 3.0, 1.0, "bf16", "gram", "aten"))
    for part in ("lambd=0.5", "scale=3.0", "eps=1.0", "'bf16'", "'gram'", "'aten'"):
        assert part in shown
    shown = repr(BarlowTwinsLoss(**ACROSS_RANKS))
    for part in ("statistics='local'", "gradient='official'", "layout='rows'"):
        assert part in shown


SLOW = dataclasses.replace(
    cost.network_of("cpu", 1, "fp32"), bandwidth=1e6, shared_bandwidth=1e6, latency=1.0
)

PLANS = {
    "n": ({"n": 8192}, lambda new, old: new.n == 8192 and new.form != old.form),
    "d": ({"d": 64}, lambda new, old: new.d == 64 and new.form != old.form),
    "dtype": ({"dtype": torch.float64}, lambda new, old: new.precision == "fp64"),
    "device": ({"device": "cuda", "backend": "aten"}, lambda new, old: new.device == "cuda"),
    "autocast": ({"autocast": torch.bfloat16}, lambda new, old: new.precision == "bf16"),
    "form": ({"form": "correlation"}, lambda new, old: new.form == "correlation"),
    "precision": ({"precision": "fp16"}, lambda new, old: new.precision == "fp16"),
    "backend": ({"backend": "aten"}, lambda new, old: new.backend == "aten"),
    "loss": ({"loss": "vicreg"}, lambda new, old: new.loss == "VICReg" != old.loss),
    "views": ({"views": 5}, lambda new, old: new.costs["gram"].flops > 2 * old.costs["gram"].flops),
    "world_size": ({"world_size": 4}, lambda new, old: new.world_size == 4 and new.layout),
    "layout": (
        {"world_size": 4, "layout": "rows"},
        lambda new, old: new.layout == "rows" and old.layout != "rows",
    ),
    "nodes": (
        {"world_size": 4, "device": "cuda", "backend": "aten", "nodes": 4},
        lambda new, old: new.layout_seconds != old.layout_seconds,
    ),
    "network": (
        {"world_size": 4, "network": SLOW},
        lambda new, old: new.layout_seconds["correlation"] > old.layout_seconds["correlation"],
    ),
}


@pytest.mark.parametrize("name", PLANS)
def test_explain_follows_every_option(name):
    """Against what is chosen without it."""
    options, seen = PLANS[name]
    without = {key: value for key, value in options.items() if key != name}
    sizes = {"n": 256, "d": 4096}
    assert seen(explain(**sizes | options), explain(**sizes | without))


def test_every_option_of_explain_has_a_case():
    assert_covered(explain, PLANS)


def test_warmup_runs_what_it_is_reported(monkeypatch):
    assert_covered(warmup, ["shapes", "dtype", "device", "loss", "views"])
    calls = record_calls(monkeypatch, warming, "barlow_twins_loss")
    warmup([(4, 6), (6, 4)], dtype=torch.bfloat16, device="cpu", precision="fp32", lambd=0.5)
    assert [[tuple(z.shape) for z in call["z_a"]] for call in calls] == [[(4, 6)] * 2, [(6, 4)] * 2]
    for call in calls:
        assert (call["precision"], call["lambd"]) == ("fp32", 0.5)
        for z in call["z_a"]:
            assert z.dtype == torch.bfloat16
            assert z.grad is not None  # backward too


@pytest.mark.parametrize(
    ("loss", "views", "count"),
    [
        ("barlow-twins", 4, 4),
        ("vicreg", 1, 1),
        ("vicreg", None, 2),
        ("frossl", 3, 3),
        ("mixed-barlow-twins", None, 3),
    ],
)
def test_warmup_of_the_family(loss, views, count, monkeypatch):
    """What runs is the operator of that loss, of as many views."""
    given = []
    family = ops.family

    def recorded(z, permutation, weights, options):
        given.append((options.loss.replace("_", "-"), z))
        return family(z, permutation, weights, options)

    monkeypatch.setattr(ops, "family", recorded)
    warmup([(4, 6)], device="cpu", loss=loss, views=views)
    assert [(name, len(z)) for name, z in given] == [(loss, count)]
    assert all(each.grad is not None for each in given[0][1])


def test_warmup_refuses_what_no_loss_takes():
    with pytest.raises(ValueError, match="loss must be one of"):
        warmup([(4, 6)], device="cpu", loss="simclr")
    with pytest.raises(ValueError, match="views must be at least 3 for mixed-barlow-twins, got 2"):
        warmup([(4, 6)], device="cpu", loss="mixed-barlow-twins", views=2)
    with pytest.raises(TypeError, match="views must be a whole number"):
        warmup([(4, 6)], device="cpu", views=2.5)
