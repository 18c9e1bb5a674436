"""What callers rely on in a group: gradients that are not wanted, sub-groups, upstream gradients,
strides, NaN, reproducibility."""

from __future__ import annotations

import pytest
import ranks
import torch
import torch.distributed as dist
from embeddings import ARRANGED
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from whole import EPS, LAMBDA, LAYOUTS, computed, differentiated, joined, own, views

from barlow_fast import BarlowTwinsLoss, barlow_twins_loss, reference
from barlow_fast.distributed import count_traffic

SAMPLES, D = (5, 9, 4, 7), 37
BOUND = 1e-12


def loss_of(group, z_a, z_b, **options):
    return barlow_twins_loss(z_a, z_b, LAMBDA, eps=EPS, process_group=group, **options)


def drawn(group, dtype=torch.float64, samples=SAMPLES, kind="correlated"):
    """Leaves with this rank's samples of both views."""
    samples = samples[: group.size()]
    return tuple(own(z, samples, group.rank()) for z in views(kind, samples, D, dtype=dtype))


def exact_of(size, statistics="global"):
    samples = SAMPLES[:size]
    return differentiated(*views("correlated", samples, D), samples, statistics)


def assert_close(got, want, bound=BOUND):
    assert got.shape == want.shape
    assert float((got - want).norm()) <= bound * float(want.norm())


def assert_gradients(found, exact, factor=1.0, bound=BOUND):
    """Of both views, the last results of every rank."""
    for got, want in zip(joined(found), exact[-2:], strict=True):
        assert_close(got, factor * want, bound)


# --- gradients that are not wanted -----------------------------------------------------------


def one_input(group, which, layout, statistics):
    pair = [z.detach() for z in drawn(group)]
    pair[which].requires_grad_()
    loss_of(group, *pair, layout=layout, statistics=statistics).backward()
    assert pair[1 - which].grad is None
    return pair[which].grad


@pytest.mark.parametrize("which", [0, 1])
def test_gradient_of_one_input_alone(layout, statistics, which, pool):
    found = pool.run(one_input, 3, which, layout, statistics)
    assert_close(torch.cat(found) / 3, exact_of(3, statistics)[3 + which])


def without_gradient(group, layout):
    """(loss, bytes by step) with gradients, without any input's, and under no_grad."""
    outcomes = []
    for wanted, enabled in ((True, True), (False, True), (True, False)):
        pair = [z.detach().requires_grad_(wanted) for z in drawn(group)]
        with torch.set_grad_enabled(enabled), count_traffic() as traffic:
            loss = loss_of(group, *pair, layout=layout)
        assert loss.requires_grad == (wanted and enabled)
        outcomes.append((loss.detach(), dict(traffic.by_step)))
    return outcomes


def test_without_gradients_matrices_are_not_gathered(layout, pool):
    for outcomes in pool.run(without_gradient, 4, layout):
        (loss, with_gradient), *without = outcomes
        for other, traffic in without:
            assert torch.equal(loss, other)
            saved = sum(with_gradient.values()) - sum(traffic.values())
            if layout == "rows":  # whose matrices never travel
                assert traffic == with_gradient
                assert "matrices" not in traffic
            else:
                # Samples of the sum went to those that add them up, and did not come back.
                assert traffic["matrices"] * 2 == with_gradient["matrices"]
                assert saved >= traffic["matrices"]


# --- groups ----------------------------------------------------------------------------------


def as_group(world, kind):
    if kind == "world":
        return computed_with("world", world)
    if kind == "mesh":
        return computed_with(init_device_mesh("cpu", (4,)), world)
    if kind == "part of a mesh":
        mesh = init_device_mesh("cpu", (2, 2), mesh_dim_names=("replicate", "shard"))
        with pytest.raises(TypeError, match="must be a 1-D DeviceMesh, got 2 dimensions"):
            barlow_twins_loss(torch.zeros(4, 3), torch.zeros(4, 3), process_group=mesh)
        return computed_with(mesh["shard"], mesh["shard"].get_group())
    group = ranks.groups[(1, 3) if dist.get_rank() % 2 else (0, 2)]
    if kind == "mesh of a group":
        return computed_with(DeviceMesh.from_group(group, "cpu"), group)
    return computed_with(group, group)


def computed_with(process_group, group):
    pair = drawn(group)
    loss = loss_of(process_group, *pair)
    return loss.detach(), *torch.autograd.grad(loss, pair)


@pytest.mark.parametrize(
    ("kind", "members"),
    [
        ("world", [(0, 1, 2, 3)]),
        ("mesh", [(0, 1, 2, 3)]),
        ("part of a mesh", [(0, 1), (2, 3)]),
        ("mesh of a group", [(0, 2), (1, 3)]),
        ("group", [(0, 2), (1, 3)]),
    ],
)
def test_kinds_of_groups(kind, members, pool):
    """Two groups that share no rank compute at once; each has the loss of its own samples."""
    found = pool.run(as_group, 4, kind)
    for group in members:
        exact = exact_of(len(group))
        for rank in group:
            assert_close(found[rank][0], exact[0])
        assert_gradients([found[rank] for rank in group], exact)


def test_a_group_of_some_ranks_alone(pool):
    """The others do not take part."""
    samples = SAMPLES[:2]
    for values in pool.run(computed, (1, 3), *views("correlated", samples, D), samples):
        assert_close(values[0], exact_of(2)[0])


def alone(group):
    results = []
    for process_group in (group, None):
        for layout in ("auto", *LAYOUTS):
            z_a, z_b = drawn(group, torch.float32)
            loss = loss_of(process_group, z_a, z_b, layout=layout)
            results.append((loss.detach(), *torch.autograd.grad(loss, (z_a, z_b))))
    with count_traffic() as traffic:
        loss_of(group, z_a, z_b, statistics="local", gradient="official").backward()
    assert traffic.sent == 0
    return results


def test_a_group_of_one_rank_is_no_group(pool):
    (results,) = pool.run(alone, (0,))
    for values in results[1:]:
        for got, want in zip(values, results[0], strict=True):
            assert torch.equal(got, want)


def outside(world):
    """Each rank is given groups that it is not in."""
    texts = []
    for members, group in ranks.groups.items():
        if dist.get_rank() in members:
            continue
        try:
            barlow_twins_loss(torch.zeros(4, 3), torch.zeros(4, 3), process_group=group)
        except ValueError as error:
            texts.append(str(error))
    return texts


def test_not_a_member(pool):
    for texts in pool.run(outside, 4):
        assert texts
        assert set(texts) == {"this process is not a member of the process_group that it was given"}


def module_of_world(group):
    criterion = BarlowTwinsLoss(LAMBDA, eps=EPS, process_group="world", layout="features")
    z_a, z_b = drawn(group)
    loss, terms = criterion(z_a, z_b, return_terms=True)
    assert loss.requires_grad
    assert not any(term.requires_grad for term in terms)
    return loss.detach(), tuple(terms)


def test_module_and_terms(pool):
    exact = exact_of(4)
    for loss, (on, off, on_mean, off_mean) in pool.run(module_of_world, 4):
        assert_close(loss, exact[0])
        assert_close(on, exact[1])
        assert_close(off, exact[2])
        assert_close(on_mean, exact[1] / D)
        assert_close(off_mean, exact[2] / (D * (D - 1)))


# --- autograd --------------------------------------------------------------------------------


def twice(group, layout, statistics):
    pair = drawn(group)
    loss = loss_of(group, *pair, layout=layout, statistics=statistics)
    first = torch.autograd.grad(loss, pair, retain_graph=True)
    second = torch.autograd.grad(loss, pair)
    return [torch.equal(x, y) for x, y in zip(first, second, strict=True)], *second


def test_backward_may_run_again(layout, statistics, pool):
    found = pool.run(twice, 3, layout, statistics)
    assert all(all(equal) for equal, *_ in found)
    assert_gradients(found, exact_of(3, statistics))


def doubly(group, layout):
    z_a, z_b = drawn(group)
    loss = loss_of(group, z_a, z_b, layout=layout)
    (grad,) = torch.autograd.grad(loss, z_a, create_graph=True)
    with pytest.raises(RuntimeError, match="cannot be differentiated twice"):
        torch.autograd.grad(grad.square().sum() + loss, z_b, retain_graph=True)
    with pytest.raises(RuntimeError, match="cannot be differentiated twice"):
        grad.sum().backward()
    return True


def test_double_backward_is_refused(layout, pool):
    assert all(pool.run(doubly, 2, layout))


def weighted(group, layout, gradient, scale):
    pair = drawn(group)
    loss = loss_of(group, *pair, layout=layout, gradient=gradient, scale=scale)
    return torch.autograd.grad(loss * (group.rank() + 1), pair)


@pytest.mark.parametrize(("gradient", "factor"), [("exact", 1.0), ("official", 1 / 3)])
def test_upstream_gradients_of_all_ranks_count(layout, gradient, factor, pool):
    """Every rank's objective holds the same loss, here 1, 2 and 3 times: what is differentiated is
    the mean of them all."""
    found = pool.run(weighted, 3, layout, gradient, 0.5)
    assert_gradients(found, exact_of(3), factor * 0.5 * (1 + 2 + 3) / 3)


def one_rank_ignores_its_loss(group, layout):
    """A factor of zero is a call of backward like any other."""
    pair = drawn(group)
    loss = loss_of(group, *pair, layout=layout)
    return torch.autograd.grad(loss * (0.0 if group.rank() == 1 else 1.0), pair)


def test_one_rank_ignores_its_loss(layout, pool):
    found = pool.run(one_rank_ignores_its_loss, 2, layout)
    assert_close(torch.cat([values[0] for values in found]), exact_of(2)[3])


def several_losses(group, layout):
    """Losses of several layers in one graph, differentiated in one backward pass."""
    z_a, z_b = drawn(group)
    total = sum(loss_of(group, z_a * k, z_b, layout=layout) for k in (1.0, 2.0, 3.0))
    return torch.autograd.grad(total, (z_a, z_b))


def test_several_losses_in_one_graph(layout, pool):
    samples = SAMPLES[:3]
    a, b = (z.requires_grad_() for z in views("correlated", samples, D))
    total = sum(reference.barlow_twins_loss(a * k, b, LAMBDA, EPS) for k in (1.0, 2.0, 3.0))
    exact = torch.autograd.grad(total, (a, b))
    found = pool.run(several_losses, 3, layout)
    assert_gradients(found, exact)


# --- inputs ----------------------------------------------------------------------------------


def arranged(group, layout, arrangement):
    z_a, z_b = (z.detach() for z in drawn(group, samples=(6, 4, 2)))

    arrange = ARRANGED.get(arrangement, lambda z: z.reshape(2, -1, 1, z.shape[1]))
    pair = [arrange(z).requires_grad_() for z in (z_a, z_b)]
    loss = loss_of(group, *pair, layout=layout)
    grads = torch.autograd.grad(loss, pair)
    assert all(g.shape == z.shape for g, z in zip(grads, pair, strict=True))
    return loss.detach(), *(g.reshape(-1, D) for g in grads)


@pytest.mark.parametrize("arrangement", ["transposed", "sliced", "rows_skipped", "leading"])
def test_strides_and_leading_sizes(arrangement, layout, pool):
    samples = (6, 4, 2)
    exact = differentiated(*views("correlated", samples, D), samples, "global")
    found = pool.run(arranged, 3, layout, arrangement)
    assert_gradients(found, exact)
    assert all(torch.equal(values[0], found[0][0]) for values in found)


def inputs_kept(group, layout, statistics, precision):
    pair = drawn(group, torch.float32)
    copies = [z.detach().clone() for z in pair]
    loss_of(group, *pair, layout=layout, statistics=statistics, precision=precision).backward()
    return [torch.equal(z, copy) for z, copy in zip(pair, copies, strict=True)]


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_inputs_are_left_alone(layout, statistics, precision, pool):
    for kept in pool.run(inputs_kept, 2, layout, statistics, precision):
        assert all(kept)


def with_bad_number(group, bad, layout, statistics, dtype, precision):
    z_a, z_b = (z.detach() for z in drawn(group, dtype, kind="random"))
    if group.rank() == 1:
        z_a[2, 17] = bad
    pair = (z_a.requires_grad_(), z_b.requires_grad_())
    options = {"layout": layout, "statistics": statistics, "precision": precision}
    loss, terms = loss_of(group, *pair, return_terms=True, **options)
    grads = torch.autograd.grad(loss, pair)
    return loss.detach(), tuple(terms), [bool(g.isfinite().all()) for g in grads]


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
def test_nan_and_infinity_of_one_rank_never_give_a_finite_number(bad, layout, statistics, pool):
    for dtype, precision in (
        (torch.float64, "auto"),
        (torch.float32, "fp32"),
        (torch.float32, "bf16"),
        (torch.float32, "fp16"),
        (torch.bfloat16, "auto"),
        (torch.float16, "auto"),
    ):
        arguments = (bad, layout, statistics, dtype, precision)
        for loss, terms, finite in pool.run(with_bad_number, 2, *arguments):
            assert loss.isnan(), (dtype, precision)
            assert all(term.isnan() for term in terms), (dtype, precision)
            assert not any(finite), (dtype, precision)


def scaled_up(group, samples, factor, layout, statistics, dtype):
    """Gradients at the loss scale that GradScaler starts with."""
    z_a, z_b = (factor * z for z in views("random", samples, D))
    pair = [own(z.to(dtype), samples, group.rank()) for z in (z_a, z_b)]
    loss = loss_of(group, *pair, layout=layout, statistics=statistics, precision="fp16")
    return torch.autograd.grad(loss * 65536.0, pair)


@pytest.mark.parametrize(("dtype", "factor"), [(torch.float16, 100.0), (torch.float32, 1.0)])
def test_nothing_overflows_at_the_initial_loss_scale(dtype, factor, layout, statistics, pool):
    """What the embeddings' gradients can hold, all that comes before them can too."""
    samples = (4, 3)
    pair = [(factor * z).to(dtype) for z in views("random", samples, D)]
    exact = differentiated(*pair, samples, statistics)
    found = pool.run(scaled_up, 2, samples, factor, layout, statistics, dtype)
    found = [[grad.double() / 65536 for grad in grads] for grads in found]
    assert_gradients(found, exact, bound=2e-3)


# --- the same bits ---------------------------------------------------------------------------


def repeated(group, layout, statistics, dtype, precision):
    pair = views("random", SAMPLES, D, dtype=dtype)
    options = {"layout": layout, "statistics": statistics, "precision": precision}
    first, *others = (computed(group, *pair, SAMPLES, **options) for _ in range(4))
    equal = [torch.equal(x, y) for other in others for x, y in zip(first, other, strict=True)]
    return all(equal), first[:3]


def test_all_ranks_and_all_runs_have_the_same_bits(layout, statistics, pool):
    for dtype, precision in (
        (torch.float32, "fp32"),
        (torch.float32, "bf16"),
        (torch.float16, "auto"),
    ):
        found = pool.run(repeated, 4, layout, statistics, dtype, precision)
        assert all(equal for equal, _ in found)
        for _, terms in found[1:]:
            for got, want in zip(terms, found[0][1], strict=True):
                assert torch.equal(got, want)
