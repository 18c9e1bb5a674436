"""Pieces without a process group: how work is dealt out, what is packed for the wire, how moments
merge, which layout is chosen, what errors say."""

from __future__ import annotations

import threading
from dataclasses import asdict, replace
from types import SimpleNamespace

import pytest
import torch
from embeddings import draw

from barlow_fast import distributed
from barlow_fast.arguments import Options, check_layout, check_process_group
from barlow_fast.distributed import agreement, autograd, cost, groups, slices, wire
from barlow_fast.distributed.call import Call
from barlow_fast.distributed.cost import Network
from barlow_fast.distributed.groups import Group
from barlow_fast.distributed.traffic import count_traffic, record
from barlow_fast.forms.norms import differentiate_norm
from barlow_fast.kernels import aten, tiles
from barlow_fast.kernels.precision import PRECISIONS

CPU = torch.device("cpu")
LOCAL = Network(
    bandwidth=300e9, shared_bandwidth=300e9, latency=15e-6, per_rank=0.5e-6, matmul=1e14,
    memory=3e12,
)  # fmt: skip
NUMBERS = {name: value for name, value in asdict(LOCAL).items() if name != "use_all_reduce"}


# --- slices and tiles ------------------------------------------------------------------------


@pytest.mark.parametrize("ranks", [1, 2, 3, 4, 7, 8, 64])
@pytest.mark.parametrize("d", [1, 2, 3, 5, 31, 64, 100, 513, 2048, 8192, 8191])
def test_columns_are_dealt_out_evenly(d, ranks):
    pieces = slices.columns(d, ranks)
    assert len(pieces) == ranks
    covered = [column for begin, end in pieces for column in range(begin, end)]
    assert covered == list(range(d))
    widths = slices.widths(d, ranks)
    assert sum(widths) == d
    assert max(widths) <= 1.125 * d / ranks + 1
    if d >= 8 * 64 * ranks:
        assert all(begin % 64 == 0 for begin, _ in pieces)


def symmetric(n: int, seed: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(n, n, dtype=torch.float64, generator=generator)
    return x + x.T


@pytest.mark.parametrize("precision", ["fp64", "bf16"])
@pytest.mark.parametrize("n", [2, 63, 64, 65, 128, 200, 257, 300])
def test_diagonal_of_tiles(n, precision):
    x = symmetric(n, n)
    positions = tiles.diagonal(n, precision, CPU)
    assert torch.equal(tiles.pack(x, precision).view(-1)[positions], x.diagonal())


@pytest.mark.parametrize("precision", ["fp64", "bf16"])
@pytest.mark.parametrize("ranks", [1, 2, 3, 4, 7])
@pytest.mark.parametrize("n", [2, 64, 130, 300])
def test_shares_of_tiles_add_up_to_the_matrix(n, ranks, precision):
    """<X, Y> and both traces from every rank's rows of packed tiles."""
    x, y = symmetric(n, 1), symmetric(n, 2)
    side = tiles.side(n, precision)
    packed = [tiles.pack(matrix, precision).view(-1, side) for matrix in (x, y)]
    held = -(-packed[0].shape[0] // ranks)
    inner, traces = 0.0, torch.zeros(2, dtype=torch.float64)
    for rank in range(ranks):
        share = slices.share_of_tiles(n, precision, rank, ranks, CPU)
        assert share.weights.shape == (held,)
        pieces = [matrix[rank * held : (rank + 1) * held] for matrix in packed]
        # What fills up the last shares must not count, whatever it is.
        fill = (0, 0, 0, held - len(pieces[0]))
        rows = [torch.nn.functional.pad(piece, fill, value=7.0) for piece in pieces]
        inner += float(torch.linalg.vecdot(*rows) @ share.weights)
        traces += torch.stack([r.view(-1)[share.diagonal].sum() for r in rows])
    assert inner == pytest.approx(float((x * y).sum()), rel=1e-12)
    torch.testing.assert_close(traces, torch.stack((x.trace(), y.trace())))


# --- wire ------------------------------------------------------------------------------------


@pytest.mark.parametrize("ranks", [1, 2, 3, 5])
@pytest.mark.parametrize("d", [1, 4, 37, 1100])
def test_columns_packed_and_unpacked(d, ranks):
    x = torch.arange(6.0 * d).view(6, d)
    flat = wire.by_columns(x, ranks)
    pieces = flat.split([6 * width for width in slices.widths(d, ranks)])
    for (begin, end), piece in zip(slices.columns(d, ranks), pieces, strict=True):
        assert torch.equal(piece.view(6, -1), x[:, begin:end])
    assert torch.equal(wire.from_columns(flat, 6, d, ranks), x)
    assert torch.equal(wire.by_columns(x.T.contiguous().T, ranks), flat)


@pytest.mark.parametrize(
    ("dtype", "precision", "embedding", "gradient"),
    [
        (torch.float64, "fp64", torch.float64, torch.float64),
        (torch.float32, "fp32", torch.float32, torch.float32),
        (torch.float32, "tf32", torch.float32, torch.float32),
        (torch.float32, "bf16", torch.bfloat16, torch.bfloat16),
        (torch.float32, "fp16", torch.float16, torch.float32),
        (torch.bfloat16, "bf16", torch.bfloat16, torch.bfloat16),
        (torch.float16, "fp16", torch.float16, torch.float16),
        (torch.bfloat16, "fp32", torch.bfloat16, torch.bfloat16),
        (torch.float16, "bf16", torch.float16, torch.float16),
    ],
)
def test_types_on_the_wire(dtype, precision, embedding, gradient):
    assert wire.embedding_dtype(dtype, precision) == embedding
    assert wire.gradient_dtype(dtype, precision, "global") == gradient
    # Not yet through the norm, it may be larger than what the embeddings' type holds.
    before_norm = torch.float32 if gradient == torch.float16 else gradient
    assert wire.gradient_dtype(dtype, precision, "local") == before_norm


def call_of(kernels, precision):
    group = Group(None, 0, 2)
    return Call(kernels, group, (3, 4), 5, torch.float32, 0.1, 1e-5, precision, statistics="global")


def test_counts_of_samples_are_float64():
    """Integers divided by integers would be float32."""
    call = call_of(aten, "fp32")
    assert call.counts(torch.zeros(1)).dtype == torch.float64
    assert call.counts(torch.zeros(1)).tolist() == [[[3.0]], [[4.0]]]


def test_the_matrix_is_padded_to_the_layout_of_the_set():
    """As the Triton set keeps it."""
    wide = SimpleNamespace(correlation_layout=lambda d, precision: ((d + 1, 8), torch.float64))
    exact = SimpleNamespace(correlation_layout=lambda d, precision: ((d, d), torch.float64))
    matrix = torch.rand(5, 5, dtype=torch.float64)
    for kernels, shape in ((wide, (6, 8)), (exact, (5, 5))):
        laid_out = distributed.correlation.in_layout(call_of(kernels, "fp64"), matrix)
        assert laid_out.shape == shape
        assert torch.equal(laid_out[:5, :5], matrix)
        assert laid_out.count_nonzero() == 25


def test_what_a_rank_keeps():
    """Both embeddings by columns and both Gram matrices by tiles, or what the layout needs."""

    def kept(d: int, n: int = 128) -> float:
        samples = (n // 2, n // 2)
        return cost.cost("features", samples, d, torch.float32, "fp32").kept

    # Of 64 columns more, 32 are this rank's: two views of 128 samples.
    assert kept(192) - kept(128) == 2 * 128 * 32 * 4
    # Without columns the shares of both matrices: 3 tiles of 64 x 64, by rows of tiles, on 2 ranks.
    assert kept(128) - 2 * 128 * 64 * 4 == 2 * 2 * (3 * 64 // 2) * 64 * 4


@pytest.mark.parametrize("precision", ["bf16", "fp16"])
def test_embeddings_survive_half_precision(precision):
    """Means a thousand times the deviations, deviations over eight decades, constant columns."""
    samples, d = (24, 0, 40), 50
    z, _ = draw("badly_scaled", sum(samples), d, seed=3)
    z[:, 7] = 2.5
    encoded, parts = [], []
    for block in z.split(list(samples)):
        empty = torch.zeros(5, d, dtype=torch.float64)
        moments = aten.column_moments(block, block, precision) if len(block) else empty
        parts.append(moments)
        mean, deviation = wire.spread(moments, torch.tensor(len(block)))
        encoded.append(wire.encode(aten, block, mean[0], deviation[0], precision))
    assert encoded[0].dtype == wire.embedding_dtype(torch.float32, precision)
    counts = torch.tensor(samples, dtype=torch.float64).view(-1, 1, 1)
    mean, deviation = wire.spread(torch.stack(parts), counts)
    decoded = wire.decode(torch.cat(encoded), mean[:, 0], deviation[:, 0], samples, torch.float32)
    assert torch.equal(decoded[:, 7], z[:, 7])
    spread = z.double().std(0).clamp_min(1e-30)
    # Of the deviation, not of the mean: and what float32 itself loses of such a mean.
    error = (decoded.double() - z.double()).abs() / (spread + 1e-6 * z.double().abs())
    assert float(error[:, spread > 1e-20].max()) < 8 * torch.finfo(encoded[0].dtype).eps


# --- statistics ------------------------------------------------------------------------------


def test_merged_moments_are_those_of_all_samples():
    samples = (5, 0, 1, 30)
    z_a, z_b = draw("badly_scaled", sum(samples), 20, seed=1, dtype=torch.float64)
    parts = [
        aten.column_moments(a, b, "fp64") if len(a) else torch.zeros(5, 20, dtype=torch.float64)
        for a, b in zip(z_a.split(list(samples)), z_b.split(list(samples)), strict=True)
    ]
    counts = torch.tensor(samples, dtype=torch.float64).view(-1, 1, 1)
    merged = distributed.statistics.merge(torch.stack(parts), counts, sum(samples))
    torch.testing.assert_close(merged, aten.column_moments(z_a, z_b, "fp64"), rtol=1e-9, atol=0)


def test_backward_of_the_norm():
    z, other = (x.requires_grad_() for x in draw("random", 12, 7, dtype=torch.float64))
    hat = (z - z.mean(0)) * (z.var(0, unbiased=False) + 1e-5).rsqrt()
    grad = (other - other.mean(0)).detach()  # as the loss's: columns sum to zero
    want = torch.autograd.grad(hat, z, grad)[0]
    moments = aten.column_moments(z.detach(), z.detach(), "fp64")
    rows = aten.standardisation(moments, 12, 1e-5, "fp64")[0][0:3]
    torch.testing.assert_close(differentiate_norm(grad, z.detach(), rows), want)


# --- cost ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("samples", "d", "form", "expected"),
    [
        ((512,) * 4, 8192, "auto", "features"),
        ((512,) * 4, 8192, "gram", "features"),
        ((512,) * 4, 8192, "correlation", "correlation"),
        ((4096,) * 4, 128, "auto", "correlation"),
        ((16384,) * 2, 256, "auto", "correlation"),
        ((8, 8), 256, "gram", "rows"),  # nothing to compute: messages are what counts
    ],
)
def test_the_layout_that_fits(samples, d, form, expected):
    arguments = (samples, d, torch.float32, "fp32", LOCAL)
    assert cost.choose_layout("auto", form, *arguments) == expected
    assert cost.choose_layout("correlation", "auto", *arguments) == "correlation"


@pytest.mark.parametrize("device", ["cpu", "cuda"])
@pytest.mark.parametrize("nodes", [1, 4])
@pytest.mark.parametrize("precision", ["fp64", "fp32", "tf32", "bf16", "fp16"])
def test_default_networks(device, nodes, precision):
    """Whatever is assumed of the machine, the form is clear where N is far from D."""
    network = cost.network_of(device, nodes, precision)
    for samples, d, form in (((512,) * 4, 16384, "gram"), ((8192,) * 4, 128, "correlation")):
        chosen = cost.choose_layout("auto", "auto", samples, d, torch.float32, precision, network)
        assert cost.FORM_OF_LAYOUT[chosen] == form


def test_rates_of_products_on_a_cpu():
    """What is rounded and multiplied in float32 has its rate; tf32 is executed where that is
    faster, by more than one product of bfloat16."""
    rates = {p: cost.network_of("cpu", 1, p).matmul for p in PRECISIONS}
    assert rates["fp64"] < rates["fp32"] == rates["fp16"] < rates["tf32"] <= rates["bf16"]


def test_the_choice_does_not_depend_on_the_rank():
    """It is taken for the rank with most samples, which all ranks know."""
    for samples in ((100, 3, 50, 9), (3, 100, 9, 50), (9, 3, 50, 100)):
        most = samples.index(max(samples))
        seconds = {
            name: cost.cost(name, samples, 600, torch.float32, "fp32", most).seconds(LOCAL, 4)
            for name in cost.LAYOUTS
        }
        chosen = cost.choose_layout("auto", "auto", samples, 600, torch.float32, "fp32", LOCAL)
        assert chosen == min(seconds, key=seconds.get)


@pytest.mark.parametrize("layout", cost.LAYOUTS)
def test_a_slower_machine_takes_longer(layout):
    each = cost.cost(layout, (64,) * 4, 1024, torch.float32, "fp32")
    base = each.seconds(LOCAL, 4)
    for name, value in NUMBERS.items():
        slower = value * 2 if name in ("latency", "per_rank") else value / 2
        assert each.seconds(replace(LOCAL, **{name: slower}), 4) > base
    assert "MiB sent" in str(each)


@pytest.mark.parametrize("name", NUMBERS)
@pytest.mark.parametrize("value", [-1.0, float("nan")])
def test_networks_that_cannot_be(name, value):
    with pytest.raises(ValueError, match=f"{name} must be .*{value}"):
        replace(LOCAL, **{name: value})
    assert replace(LOCAL, latency=0.0, per_rank=0.0).latency == 0  # 0 is a value like others


def test_layouts_and_forms_that_do_not_exist():
    with pytest.raises(ValueError, match=r"layout must be one of \('auto', 'features'.*'ring'"):
        check_layout("ring", "auto")
    with pytest.raises(ValueError, match="'correlation' computes the correlation form"):
        check_layout("correlation", "gram")
    for layout, form in (("auto", "gram"), ("rows", "gram"), ("features", "auto")):
        check_layout(layout, form)


# --- groups, agreement, exchanges ------------------------------------------------------------


@pytest.mark.parametrize("value", [3, "World", [0, 1], object()])
def test_things_that_are_no_group(value):
    with pytest.raises(TypeError, match=f"process_group must be.*got {type(value).__name__}"):
        check_process_group(value)


def test_groups_before_torch_distributed_was_initialised():
    check_process_group(None)
    check_process_group("world")
    assert groups.resolve(None) is None
    with pytest.raises(RuntimeError, match="init_process_group first"):
        groups.resolve("world")


def test_node_is_a_number_of_the_machine(monkeypatch):
    here = groups.node()
    assert here == groups.node()
    monkeypatch.setattr("socket.gethostname", lambda: "elsewhere")
    assert groups.node() != here
    assert 0 <= groups.node() < 2**64


CALL = agreement.call_of(
    torch.zeros(1, 8192, requires_grad=True), torch.zeros(1, 8192, requires_grad=True),
    **autograd._compared(Options(precision="fp32")),
)  # fmt: skip


def test_reports_have_room_for_every_call():
    """All floats with all their digits, the longest names."""
    options = Options(
        -1.2345678901234567e-300, -1.2345678901234567e-300, 1.2345678901234567e-300, "bf16",
        "correlation", gradient="official", layout="correlation",
    )  # fmt: skip
    longest = CALL | autograd._compared(options)
    longest |= {"dimensions": 2**40, "dtype": "torch.bfloat16", "device": "cuda"}
    longest |= {"z_a_requires_grad": False, "z_b_requires_grad": False}
    assert set(longest) == set(CALL)
    assert len(agreement.encoded(longest)) + agreement._HEADER.size <= agreement._LENGTH


@pytest.fixture
def agreed(monkeypatch):
    """`agree` of one rank among others that report what is given."""

    def run(others, call=CALL, samples=4, error=None):
        def exchange(report, group):
            return [report, *others]

        monkeypatch.setattr(agreement, "_all_to_all", exchange)
        group = Group(None, 0, 1 + len(others))
        with agreement.errors_reported(group):
            if error is not None:
                raise error
        return agreement.agree(call, samples, 1, group)

    return run


def report(call=CALL, samples=7, node=2, kind=0, text=None):
    payload = agreement.encoded(call) if text is None else text.encode()
    return (agreement._HEADER.pack(samples, node, kind) + payload).ljust(agreement._LENGTH, b"\0")


def test_ranks_learn_samples_and_nodes(agreed):
    found = agreed([report(), report(samples=0, node=1), report(samples=2**40)])
    assert found.samples == (4, 7, 0, 2**40)
    assert found.nodes == 2


def test_differences_are_listed_by_value(agreed):
    other = CALL | {"lambd": 0.1, "layout": "rows"}
    with pytest.raises(ValueError, match="called differently") as raised:
        agreed([report(), report(other), report(other)])
    assert str(raised.value).endswith(
        "lambd: 0.0051 on ranks 0, 1, 0.1 on ranks 2, 3; "
        "layout: 'auto' on ranks 0, 1, 'rows' on ranks 2, 3"
    )


def test_many_ranks_are_not_all_listed(agreed):
    with pytest.raises(ValueError, match=r"12 on ranks 1, 2, 3, 4, 5, 6, 7, 8, \.\.\.$"):
        agreed([report(CALL | {"dimensions": 12})] * 20)


@pytest.mark.parametrize(("kind", "error"), [(1, TypeError), (2, ValueError), (3, RuntimeError)])
def test_errors_of_others(kind, error, agreed):
    with pytest.raises(error, match=r"^rank 2 of process_group: no such thing$"):
        agreed([report(), report(kind=kind, text="no such thing")])


def test_an_error_of_its_own_comes_first(agreed):
    mine = ValueError("mine")
    with pytest.raises(ValueError, match=r"^mine$") as raised:
        agreed([report(kind=1, text="another's")], error=mine)
    assert raised.value is mine


def test_long_errors_are_cut(agreed):
    """Also within a character of several bytes."""
    with pytest.raises(ValueError, match=r"^ä+$"):
        agreed([report()], error=ValueError("ä" * 1000))
    cut = ("x" + "ä" * 1000).encode()[: agreement.MESSAGE_BYTES]
    header = agreement._HEADER.pack(0, 1, 2)
    with pytest.raises(ValueError, match="rank 1 of process_group: x") as raised:
        agreed([(header + cut).ljust(agreement._LENGTH, b"\0")])
    assert str(raised.value).endswith("ä\ufffd")


def test_errors_of_exchanges_name_their_cause():
    words = r"A rank has stopped.*The backend says: reset by peer"
    with pytest.raises(RuntimeError, match=words), distributed.collectives.communication_errors():
        raise RuntimeError("reset by peer")
    with pytest.raises(KeyError), distributed.collectives.communication_errors():
        raise KeyError("something else")


# --- traffic ---------------------------------------------------------------------------------


def test_counters_nest():
    record("embeddings", 1)
    with count_traffic() as outer:
        record("embeddings", 2**20)
        with count_traffic() as inner:
            record("matrices", 10)
            thread = threading.Thread(target=record, args=("matrices", 5))
            thread.start()
            thread.join()
        record("terms", 3)
    record("embeddings", 7)
    assert dict(inner.by_step) == {"matrices": 15}
    assert dict(outer.by_step) == {"embeddings": 2**20, "matrices": 15, "terms": 3}
    assert (inner.sent, outer.sent) == (15, 2**20 + 18)
    assert str(outer).startswith("1.00 MiB sent\n  embeddings")


def test_counters_close_when_the_body_fails():
    with pytest.raises(KeyError), count_traffic() as traffic:
        raise KeyError
    record("terms", 3)
    assert traffic.sent == 0


def test_two_counters_that_counted_the_same_are_two():
    with count_traffic() as outer:
        with count_traffic():
            pass
        record("terms", 3)
    assert outer.sent == 3
