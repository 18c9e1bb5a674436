"""The modelled cost of launches: occupancy, waves and seconds by hand, and the plans of today."""

from __future__ import annotations

from types import SimpleNamespace

import pytest

from bench import floor
from bench.suites import compilation as launches

ROW = {
    "form": "gram", "n": 2048, "d": 8192, "dtype": "sm_90 launches", "inputs": "bfloat16",
    "precision": "bf16", "sms": 132, "index": 0, "kernel": "gram_kernel", "grid": [260, 1],
    "warps": 8, "registers": 200, "shared": 100 << 10, "flops": 2e9, "bytes": 1e6,
}  # fmt: skip


class Anything(dict):
    """Resources of whatever kernel is launched."""

    def __missing__(self, key):
        return SimpleNamespace(registers=128, shared=0)


@pytest.mark.parametrize(
    ("change", "programs"),
    [
        ({}, 1),  # 8 warps of 32 threads and 200 registers: 51200 of 65536
        ({"registers": 128}, 2),  # 2 * (100 + 1) KiB of 228
        ({"registers": 127, "warps": 4}, 2),
        ({"registers": 127, "warps": 4, "shared": 0}, 4),
        ({"registers": 121, "warps": 4, "shared": 0}, 4),  # registers come in blocks of 8
        ({"registers": 16, "warps": 4, "shared": 0}, 16),  # 64 warps
        ({"registers": 128, "dtype": "sm_80 launches"}, 1),  # 164 KiB
    ],
    ids=str,
)
def test_programs_per_sm(change, programs):
    assert launches.resident(ROW | change) == programs


def test_a_last_wave_that_is_not_full_costs_what_a_full_one_costs():
    assert launches.waves(ROW) == pytest.approx(260 / 132)
    assert launches.efficiency(ROW) == pytest.approx(260 / 264)
    assert launches.efficiency(ROW | {"grid": [265]}) == pytest.approx(265 / 396)
    rate = launches.PRODUCT_SHARE * 989e12
    expected = 2e9 / (rate * 260 / 264) + launches.LAUNCH
    assert launches.seconds(ROW) == pytest.approx(expected)
    copied = launches.seconds(ROW | {"bytes": 1e9}) - launches.LAUNCH
    assert copied == pytest.approx(1e9 / (launches.MEMORY_SHARE * 3.35e12))
    thirds = launches.seconds(ROW | {"precision": "fp32"}) - launches.LAUNCH
    assert thirds == pytest.approx((expected - launches.LAUNCH) * 989 / 495 * 3)


def test_products_of_the_headline_shapes_fill_the_sms():
    pytest.importorskip("barlow_fast.kernels.triton", reason="Triton is not installed")
    rows = launches.launches_of(90, Anything(), {})
    products = [row for row in rows if row["flops"] and row["form"] != "tiles"]
    assert len({(row["n"], row["d"]) for row in products}) == len(launches.SHAPES)
    for row in products:
        assert launches.efficiency(row) >= 0.8, row


def test_tables():
    smaller = ROW | {"index": 1, "kernel": "other_kernel", "flops": 0.0}
    part = ROW | {"form": "tiles", "n": 2048, "d": 1024}
    text = launches.tables([smaller, ROW, part])
    assert text.count("| 2048 × 8192 | sm_90 | bfloat16 | bf16 | 2 | 0.98 |") == 1
    assert text.index("`gram_kernel`") < text.index("`other_kernel`")
    assert "2048 × 1024 columns of one of eight GPUs" in text
    least = floor.floor_seconds(2048, 8192, 2, 0.8 * 989e3, 0.9 * 3350) * 1e6
    assert f"| {least:.3g} |" in text


def test_no_rates_no_rows():
    assert launches.launches_of(89, {}, {}) == []
