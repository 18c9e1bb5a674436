"""What is chosen, and why."""

from __future__ import annotations

import contract
import pytest
import torch
from embeddings import draw

from barlow_fast import barlow_twins_loss, explain, plan
from barlow_fast.explain import cost
from barlow_fast.plan import choose_form, choose_precision


def test_the_form_with_less_work_is_chosen():
    for n, d in ((2, 1), (64, 64), (100, 90), (256, 8192), (65536, 128), (1024, 1024), (900, 1000)):
        for backend in ("cpu", "aten", "triton"):
            chosen = choose_form("auto", n, d, backend)
            flops = {f: cost(f, n, d, backend, "fp32").flops for f in ("gram", "correlation")}
            # Near the break-even the form with fewer passes may have a few percent more operations.
            assert flops[chosen] <= 1.1 * min(flops.values())
    assert choose_form("auto", 1024, 1024, "cpu") == "correlation"
    assert choose_form("auto", 256, 1024, "cpu") == "gram"
    assert choose_form("correlation", 2, 1000, "cpu") == "correlation"


def test_cost_is_the_stated_count():
    assert cost("gram", 256, 8192, "cpu", "fp32").flops == 6 * 256 * 256 * 8192
    assert cost("gram", 256, 8192, "aten", "fp32").flops == 8 * 256 * 256 * 8192
    assert cost("correlation", 4096, 512, "cpu", "fp32").flops == 6 * 4096 * 512 * 512
    assert cost("gram", 256, 8192, "cpu", "fp64").extra_bytes == 2 * 256 * 256 * 8
    assert cost("gram", 256, 8192, "cpu", "bf16", 2).input_bytes == 6 * 256 * 8192 * 2


@pytest.mark.parametrize(
    ("precision", "dtype", "autocast", "setting", "expected"),
    [
        ("auto", torch.float64, None, "highest", "fp64"),
        ("auto", torch.float64, torch.bfloat16, "highest", "fp64"),
        ("auto", torch.float32, None, "highest", "fp32"),
        ("auto", torch.float32, torch.float16, "highest", "fp16"),
        ("auto", torch.bfloat16, None, "highest", "bf16"),
        ("auto", torch.float16, None, "high", "fp16"),
        ("auto", torch.float32, None, "high", "tf32"),
        ("auto", torch.float32, None, "medium", "bf16"),
        ("fp32", torch.bfloat16, torch.float16, "highest", "fp32"),
    ],
)
def test_precision(precision, dtype, autocast, setting, expected, monkeypatch):
    monkeypatch.setattr(plan, "float32_matmul_precision", lambda device_type: setting)
    assert choose_precision(precision, dtype, "cuda", autocast)[0] == expected


@pytest.mark.parametrize(
    ("instruction_set", "executed"),
    [("amx_bf16_emulated", "tf32"), ("amx_bf16", "tf32"), ("avx512_bf16", "fp32"),
     ("baseline", "fp32")],
)  # fmt: skip
def test_tf32_on_a_cpu_is_what_matrix_tiles_compute(instruction_set, executed):
    with contract.using(instruction_set):
        chosen, reason = choose_precision("tf32", torch.float32, "cpu", backend="cpu")
        assert chosen == executed
        assert reason.startswith("requested; ")
        assert ("two pieces of bfloat16" in reason) == (executed == "tf32")
        explained = explain(16, 24, precision="tf32", backend="cpu")
        assert (explained.precision, explained.reasons["precision"]) == (chosen, reason)
        z_a, z_b = draw("random", 40, 90)
        same = torch.equal(
            barlow_twins_loss(z_a, z_b, precision="tf32", backend="cpu"),
            barlow_twins_loss(z_a, z_b, precision="fp32", backend="cpu"),
        )
        assert same == (executed == "fp32")


def test_tf32_is_float32_in_plain_torch_on_a_cpu():
    chosen, reason = choose_precision("tf32", torch.float32, "cpu", backend="aten")
    assert chosen == "fp32"
    assert reason == "requested; tf32 is computed as fp32 on a CPU without AMX or the cpu kernels"
    assert choose_precision("tf32", torch.float32, "cuda") == ("tf32", "requested")


def test_explain_states_what_and_why():
    explained = explain(256, 8192, autocast=torch.bfloat16)
    assert (explained.form, explained.precision) == ("gram", "bf16")
    text = str(explained)
    assert "256 x 8192" in text
    assert "correlation would take" in text
    assert "autocast" in text
    assert "not triton" in text
    assert explain(256, 8192, form="correlation").reasons["form"] == "requested"
    assert explain(8192, 256, backend="aten").form == "correlation"


@pytest.mark.parametrize(
    ("arguments", "options", "words"),
    [
        ((1, 5), {}, "n must be at least 2"),
        ((5, 0), {}, "d at least 1"),
        ((5, 5), {"form": "best"}, "form must be one of"),
        ((5, 5), {"precision": "int8"}, "precision must be one of"),
        ((5, 5), {"backend": "mkl"}, "backend must be one of"),
    ],
)
def test_explain_refuses(arguments, options, words):
    with pytest.raises(ValueError, match=words):
        explain(*arguments, **options)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"dtype": "bfloat16"}, r"dtype must be a floating torch.dtype, .* got 'bfloat16'"),
        ({"dtype": torch.int32}, r"dtype must be a floating torch.dtype, .* got torch.int32"),
        ({"autocast": True}, r"autocast must be one of torch.bfloat16, .* got True"),
        ({"autocast": "bf16"}, r"autocast must be one of torch.bfloat16, .* got 'bf16'"),
        ({"n": 8.5}, r"n must be a whole number, got 8.5"),
        ({"d": "4"}, r"d must be a whole number, got '4'"),
        ({"world_size": None}, r"world_size must be a whole number, got None"),
    ],
)
def test_arguments_of_other_types_are_named(arguments: dict, message: str):
    with pytest.raises(TypeError, match=message):
        explain(**{"n": 8, "d": 4, **arguments})


@pytest.mark.parametrize(
    ("loss", "views", "edge"),
    [
        ("barlow-twins", 2, 11 / 12), ("barlow-twins", 8, 7 * 11 / 12),
        ("vicreg", 2, 4 / 3 * 11 / 12), ("frossl", 3, 4 / 3 * 11 / 12),
        ("mixed-barlow-twins", None, 2 * 11 / 12),
    ],
)  # fmt: skip
def test_the_form_of_each_loss_is_the_one_with_less_work(loss, views, edge):
    d = 1200
    for n, form in ((int(edge * d) - 2, "gram"), (int(edge * d) + 2, "correlation")):
        plan = explain(n, d, loss=loss, views=views, backend="cpu")
        assert plan.form == form
        assert plan.costs["gram"].flops > 0
        assert str(plan).startswith(plan.loss)
    if loss != "barlow-twins" or views != 2:  # which a model of three layouts decides
        assert explain(64, 900, loss=loss, views=views, world_size=4).layout == "features"
        assert explain(9000, 90, loss=loss, views=views, world_size=4).layout == "correlation"


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"loss": "simclr"}, "loss must be one of"),
        ({"loss": "frossl", "views": 1}, "views must be at least 2"),
        ({"loss": "mixed-barlow-twins", "views": 4}, "views must be at least 3"),
        ({"loss": "vicreg", "layout": "rows", "world_size": 2}, "for two views"),
    ],
)
def test_losses_and_views_that_do_not_fit_are_refused(options, words):
    with pytest.raises(ValueError, match=words):
        explain(8, 100, **options)
