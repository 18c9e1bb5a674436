"""No speed without agreement."""

from __future__ import annotations

from dataclasses import replace

import pytest

from bench import agreement, exits
from bench.inputs import VARIANTS, Case, parse_shapes, parse_variants
from bench.peers import choose, discover
from bench.peers.gram_plain import gram_loss


def wrong_gradient(z_a, z_b):
    value = gram_loss(z_a, z_b)
    return value.detach() + 1.001 * (value - value.detach())


WRONG = {
    "loss": lambda z_a, z_b: gram_loss(z_a, z_b) * 1.0001,
    "gradient": wrong_gradient,
    "not a number": lambda z_a, z_b: gram_loss(z_a, z_b) * float("nan"),
}


def wrong_peer(kind, **changes):
    def build(n, d, dtype):
        return WRONG[kind]

    return replace(discover()["gram-plain"], name="wrong", build=build, **changes)


@pytest.mark.parametrize("kind", WRONG)
def test_a_wrong_result_is_named(kind):
    assert "off by" in agreement.check_small(wrong_peer(kind), [VARIANTS["fp32"]])


def test_a_wrong_loss_is_found_without_float64_too():
    problem = agreement.check_small(wrong_peer("loss", double=False), [VARIANTS["fp32"]])
    assert "fp32" in problem


def test_a_peer_that_raises_is_named():
    def build(n, d, dtype):
        raise RuntimeError("no such kernel")

    peer = replace(wrong_peer("loss"), build=build)
    assert "no such kernel" in agreement.check_small(peer, [VARIANTS["fp32"]])


CASES = [Case(16, 32, VARIANTS["fp32"])]


def test_a_failing_peer_is_not_timed(measure):
    session, rows, text = measure([wrong_peer("loss"), *choose("gram-plain")], CASES)
    assert set(session.failures) == {"16x32 fp32 wrong"}
    wrong, right = rows
    assert "off by" in wrong["problem"]
    assert (wrong["peer"], wrong["median_ms"], wrong["repeats"]) == ("wrong", None, 0)
    assert right["median_ms"] > 0
    assert f"problem {wrong['problem']}" in text
    assert session.end() == exits.FAILED


def test_a_peer_that_is_wrong_at_the_timed_shape_alone_is_not_timed(measure):
    def build(n, d, dtype):
        return gram_loss if (n, d) in agreement.SMALL_SHAPES else lambda a, b: 1.1 * gram_loss(a, b)

    session, (row,), _ = measure([replace(wrong_peer("loss"), build=build)], CASES)
    assert "16 x 32" in session.failures["16x32 fp32 wrong"]
    assert row["median_ms"] is None


def test_an_unavailable_peer_is_left_out_with_its_reason(measure):
    peer = replace(wrong_peer("loss"), unavailable=lambda: "it is not installed")
    session, rows, text = measure([peer], CASES)
    assert session.failures == {}
    assert rows == []
    assert "left out: it is not installed" in text


def test_names_and_shapes_are_checked():
    assert [variant.name for variant in parse_variants("bf16,fp32,tf32")] == list(VARIANTS)
    assert parse_shapes("256x8192, 8x4") == [(256, 8192), (8, 4)]
    for call, text in ((parse_variants, "fp8"), (parse_shapes, "256"), (choose, "nobody")):
        with pytest.raises(ValueError, match=text):
            call(text)
