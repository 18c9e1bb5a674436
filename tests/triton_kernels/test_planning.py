"""Launches, plans and tuned rows, without a device: recorded from the calls that a step makes."""

from __future__ import annotations

import itertools
import json
import math
import re
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import triton

triton_kernels = pytest.importorskip("barlow_fast.kernels.triton", reason="Triton is not installed")
from barlow_fast.cli.tune import tune  # noqa: E402
from barlow_fast.kernels import Coefficients, GradientInputs, tiles  # noqa: E402
from barlow_fast.kernels.triton import (  # noqa: E402
    arrival,
    configurations,
    inspection,
    tuned,
    tuning,
)
from barlow_fast.kernels.triton.inspection import Case, record_step  # noqa: E402
from barlow_fast.kernels.triton.launch import (  # noqa: E402
    REFERENCE_DEVICES,
    Device,
    device_of,
    recording,
)
from barlow_fast.kernels.triton.table import LARGE, PATHS, TABLE, Product, sizes  # noqa: E402

H100 = REFERENCE_DEVICES[90]
KEY = ("gram", 90, "half", 256)
OWNED = {"kernel": "gram_gradients", "path": "owned"}
OPERANDS = [(torch.bfloat16, "bf16")]


def forget():
    configurations.forget_plans()
    tuned.rows_of.cache_clear()


@pytest.fixture(autouse=True)
def fresh_plans():
    forget()
    yield
    forget()


def recorded(form, n, d, dtype=torch.bfloat16, precision="bf16"):
    """Launches of a step."""
    return record_step(Case(form, n, d, dtype, precision), H100)


def gram_plan(n=256, d=8192, device=H100, **options):
    return configurations.gram(device, n, d, torch.bfloat16, "bf16", **options)


@pytest.mark.parametrize(
    ("n", "d"), [(64, 512), (64, 65536), (256, 2048), (256, 8192), (512, 8192)]
)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32], ids=str)
def test_few_launches_at_small_n(n, d, dtype):
    """Four for a whole step: statistics, products, their sums and the terms, gradients."""
    kernels = ["moments", "gram", "gram_finish", "gram_columns"]
    launches = recorded("gram", n, d, dtype)
    assert [launch.name for launch in launches] == [f"{name}_kernel" for name in kernels]


@pytest.mark.parametrize(("n", "d"), [(4096, 512), (65536, 128), (169343, 256), (4096, 64)])
@pytest.mark.parametrize(("dtype", "precision"), inspection.OPERANDS, ids=str)
def test_few_launches_where_n_is_large(n, d, dtype, precision):
    """Five for a whole step: the last programs to arrive merge moments and add up squares, and both
    gradients are one launch."""
    kernels = ["moments", "correlation", "correlation_finish", "terms", "correlation_gradients"]
    launches = recorded("correlation", n, d, dtype, precision)
    assert [launch.name for launch in launches] == [f"{name}_kernel" for name in kernels]


@pytest.mark.parametrize(("dtype", "precision"), inspection.OPERANDS, ids=str)
@pytest.mark.parametrize("shape", [(1024, 65536), (2048, 8192)], ids=str)
def test_four_launches_where_both_are_large(shape, dtype, precision):
    """z_hat is nowhere stored. Both views share each launch; the one that adds up parts makes the
    terms, and no launch follows the tiles of the gradients."""
    launches = recorded("gram", *shape, dtype, precision)
    names = [launch.name.removesuffix("_kernel") for launch in launches]
    assert names == ["moments", "gram", "gram_finish", "gram_stripes"]


def test_large_products_store_z_hat_of_one_view_at_a_time():
    names = [launch.name.removesuffix("_kernel") for launch in recorded("gram", 4096, 8192)]
    products, gradients = 2 * ["standardise", "gram"], 2 * ["standardise", "gram_tiles"]
    assert names == ["moments", *products, "terms", *gradients]


def test_gradients_of_rows_that_do_not_begin_at_16_bytes_store_z_hat():
    """Beside addresses of single elements there are no registers to standardise in."""
    names = [launch.name.removesuffix("_kernel") for launch in recorded("gram", 2048, 8190)]
    assert names[:2] == ["moments", "gram"]
    assert names[-4:] == 2 * ["standardise", "gram_tiles"]


def test_operations_of_a_step():
    """Triangles are counted as the half that they need: 6 N D min(N, D), and no more than one
    row of tiles beyond that is launched."""
    for form, n, d in (("gram", 256, 8192), ("gram", 2048, 8192), ("correlation", 8192, 2048)):
        launches = recorded(form, n, d)
        assert sum(launch.flops for launch in launches) == 6 * n * d * min(n, d)


def flat(values):
    """Arguments, and those in tuples of them."""
    for value in values:
        if isinstance(value, tuple):
            yield from flat(value)
        else:
            yield value


def work(launch, n):
    """Multiplications of a recorded Gram launch, from its grid and block sizes."""
    block = launch.constants["BLOCK_M"]
    tiles = math.ceil(n / block)
    return tiles * (tiles + 1) / 2 * block * block


def test_about_half_of_the_tiles_of_a_symmetric_product():
    for n in (256, 1024, 2048, 4096):
        launches = recorded("gram", n, 8192)
        product = next(x for x in launches if x.name == "gram_kernel")
        assert work(product, n) <= 0.5 * n * n * (1 + 2 * product.constants["BLOCK_M"] / n)


@pytest.mark.parametrize("num_sms", [1, 4, 108, 132, 148])
@pytest.mark.parametrize("n", [2, 64, 100, 256, 700, 1500, 2048, 5000])
def test_every_tile_is_computed_once(n, num_sms):
    """Full and split-K tiles together are the triangle, and parts cover the sum over D."""
    device = Device("any", 90, num_sms, H100.shared_memory)
    for d in (1, 40, 512, 8192):
        for precision in ("bf16", "fp32"):
            plan = configurations.gram(device, n, d, torch.bfloat16, precision)
            side = math.ceil(n / plan.block_m)
            assert plan.full_tiles + plan.split_tiles == side * (side + 1) // 2
            columns = plan.k_blocks_per_split * plan.block_k
            assert plan.split_tiles == 0 or (plan.splits - 1) * columns < d
            assert plan.splits * columns >= d
            assert plan.block_m % plan.strip == 0


@pytest.mark.parametrize("capability", sorted(REFERENCE_DEVICES))
@pytest.mark.parametrize("n", [2, 64, 256, 300, 1500, 5000])
def test_tiles_that_leave_the_set(n, capability):
    """The contract's side, every part in memory, and no more of them than the inputs allow, also
    where a device holds few columns of many samples."""
    device = REFERENCE_DEVICES[capability]
    for d in (1, 40, 512, 8192):
        for dtype, precision in inspection.OPERANDS:
            plan = configurations.gram(device, n, d, dtype, precision, packed=True)
            assert plan.block_m == tiles.side(n, precision)
            assert plan.full_tiles == 0
            assert plan.split_tiles == tiles.count(n, precision)
            columns = plan.k_blocks_per_split * plan.block_k
            assert (plan.splits - 1) * columns < d <= plan.splits * columns
            parts = plan.split_tiles * plan.splits * plan.block_m**2 * 4
            allowed = max(n * d * dtype.itemsize, configurations.SMALL_WORKSPACE)
            assert plan.splits == 1 or parts <= allowed


def test_tuned_rows_do_not_change_the_tiles(monkeypatch):
    """What ranks exchange does not depend on what one of them measured."""
    other = Product(128, 128, 64, 8, 3, "stored")
    monkeypatch.setitem(configurations.override, KEY, other)
    assert gram_plan().block_m == 128
    plan = gram_plan(packed=True)
    assert (plan.block_m, plan.path) == (64, "fused")
    # A row with the right blocks serves.
    monkeypatch.setitem(configurations.override, KEY, Product(64, 64, 32, 4, 5, "stored"))
    configurations.forget_plans()
    plan = gram_plan(packed=True)
    assert (plan.block_k, plan.stages, plan.path) == (32, 5, "stored")


@pytest.mark.parametrize(("n", "d"), [(256, 2048), (2048, 1024), (2048, 64), (300, 1)])
def test_launches_with_tiles(n, d):
    """One product a view, and one launch that makes both matrices of what comes back."""
    names = [x.name for x in recorded("tiles", n, d)]
    assert names.count("gram_kernel") == names.count("gram_unpack_kernel") == 1
    assert "gram_finish_kernel" not in names


@pytest.mark.parametrize("n", [64, 256, 512])
def test_launches_of_views_at_small_n(n):
    """One for the moments, the matrices and all gradients each, beside a product a view."""
    names = [x.name for x in recorded("vicreg", n, 8192)]
    assert names == ["moments_kernel", "gram_kernel", "gram_unpack_kernel", "view_columns_kernel"]
    names = [x.name for x in recorded("multiview", n, 8192)]
    assert names[:4] == [
        "view_moments_kernel", "gram_kernel", "gram_unpack_kernel", "view_columns_kernel",
    ]  # fmt: skip
    # Without matrices.
    assert names[4:] == ["view_moments_kernel", "view_means_kernel", "view_linear_kernel"]


def test_memory_beyond_inputs_stays_below_the_inputs(monkeypatch):
    """What is allocated on top of inputs and gradients, from the allocations themselves."""
    # A recorded launch would keep its tensors alive.
    monkeypatch.setattr("barlow_fast.kernels.triton.launch.Launch", lambda *_: None)
    for form, n, d in (("gram", 256, 8192), ("gram", 2048, 8192), ("correlation", 16384, 512)):
        for dtype in (torch.bfloat16, torch.float32):
            inputs = 2 * n * d * dtype.itemsize
            assert peak_of_step(Case(form, n, d, dtype, "bf16")) <= inputs


def peak_of_step(case):
    """Peak bytes of storages alive at once, less inputs and gradients; nothing runs."""
    from torch.utils._python_dispatch import TorchDispatchMode
    from torch.utils.weak import WeakIdKeyDictionary

    alive = WeakIdKeyDictionary()
    peak = 0

    class Watch(TorchDispatchMode):
        def __torch_dispatch__(self, function, types, arguments=(), keywords=None):
            nonlocal peak
            out = function(*arguments, **(keywords or {}))
            if isinstance(out, torch.Tensor) and out.untyped_storage() not in alive:
                alive[out.untyped_storage()] = out.untyped_storage().nbytes()
            peak = max(peak, sum(alive.values()))
            return out

    with Watch():
        record_step(case, H100)
    return peak - 4 * case.n * case.d * case.dtype.itemsize


def test_no_quadratic_matrix_of_the_larger_size():
    """Never D x D when N <= D, never N x N when N > D: seen in the largest allocation."""
    for form, n, d in (("gram", 256, 65536), ("correlation", 169343, 256)):
        values = (x for launch in recorded(form, n, d) for x in flat(launch.arguments.values()))
        tensors = [value for value in values if isinstance(value, torch.Tensor)]
        assert tensors
        assert max(t.numel() for t in tensors) <= 2 * n * d
        forbidden = max(n, d)
        assert not any(list(t.shape[-2:]) == [forbidden, forbidden] for t in tensors)


@pytest.mark.parametrize("form", ["gram", "vicreg", "multiview"])
def test_equal_buckets_share_machine_code(form):
    """A shorter last batch compiles nothing new within its bucket."""
    codes = [set(map(inspection.identity, recorded(form, n, 8192))) for n in (255, 200, 130)]
    assert codes[0] == codes[1] == codes[2]


def test_recording_runs_nothing_and_ends():
    z = torch.empty(8, 16, device="meta")
    with recording(H100) as record:
        triton_kernels.statistics(z, z, 1e-5, "fp32")
        assert device_of(z) is H100
    assert [launch.name for launch in record.launches] == ["moments_kernel"]
    assert device_of(torch.empty(1)) is not H100


def content(**changes):
    row = {"kernel": KEY[0], "architecture": KEY[1], "family": KEY[2], "size": KEY[3]}
    row |= {"blocks": [128, 128, 64, 8, 3], "path": "fused"} | changes
    return {"format": 1, "device": "H100", "triton": triton.__version__, "rows": [row]}


def test_tuned_rows_are_used(tmp_path, monkeypatch):
    monkeypatch.setenv("BARLOW_FAST_TUNING_DIR", str(tmp_path))
    chosen = Product(128, 128, 64, 8, 3, "fused")
    before = gram_plan()
    assert before.block_m == 64
    tuned.save(tuned.file_of("H100"), "H100", {KEY: (chosen, {"ms": 1.0})})
    forget()
    assert gram_plan().block_m == 128
    # Another device, and rows that were not tuned, stay with the table.
    other = Device("A100", 90, 108, H100.shared_memory)
    assert gram_plan(device=other).block_m == 64
    assert [path.name for path in tmp_path.iterdir()] == ["tuning-h100.json"]


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"path": "magic"}, "path must be one of"),
        ({"blocks": [128, 128, 48, 8, 3]}, "power of two"),
        ({"blocks": [128, 128, 64, 3, 3]}, "warps must be"),
        ({"blocks": [128, 128, 64, 8, 99]}, "stages 1 to 6"),
        ({"blocks": [128, 64, 64, 8, 3]}, "square"),
        ({"blocks": [128, 128, 128, 8, 3]}, "block_k"),
        ({"size": 255}, "not a row of the table"),
        (
            OWNED | {"blocks": [64] * 3 + [8, 3]},
            "owns 64 rows",
        ),
    ],
)
def test_invalid_tuned_rows_are_refused(changes, words, tmp_path, monkeypatch):
    with pytest.raises(ValueError, match=words):
        tuned.parse(content(**changes), "H100")
    assert_ignored(json.dumps(content(**changes)), tmp_path, monkeypatch)


def assert_ignored(text, folder, monkeypatch):
    monkeypatch.setenv("BARLOW_FAST_TUNING_DIR", str(folder))
    tuned.file_of("H100").write_text(text)
    with pytest.warns(UserWarning, match="are ignored"):
        assert tuned.load("H100") == {}


def test_tuned_rows_of_another_triton_or_device_are_refused(tmp_path, monkeypatch):
    assert tuned.parse(content(), "H100")[KEY].block_m == 128
    with pytest.raises(ValueError, match="made for 'H100'"):
        tuned.parse(content(), "H200")
    with pytest.raises(ValueError, match=r"made with Triton 1\.0"):
        tuned.parse(content() | {"triton": "1.0"}, "H100")
    assert_ignored("{", tmp_path, monkeypatch)


def test_candidates_are_valid_and_start_with_the_table():
    """They suit the architecture, and have blocks of powers of two."""
    for key, row in TABLE.items():
        rows = tuning.candidates(key)
        assert rows[0] == row
        assert len(rows) >= 5
        for each in rows:
            assert tuning.why_invalid(key, each) is None
            assert key[1] >= 90 or each.path != "tma"
            for size in (each.block_m, each.block_n, each.block_k, each.warps):
                assert size & (size - 1) == 0, (key, each)
        owned = {each.block_n for each in rows if each.path == "owned"}
        assert not owned or owned >= {32, 64}, key


def test_shared_memory_of_the_devices_is_nvidias():
    """CUDA C++ Programming Guide, technical specifications per compute capability: the most shared
    memory of a thread block."""
    memory = {capability: device.shared_memory for capability, device in REFERENCE_DEVICES.items()}
    assert memory == {80: 163 << 10, 89: 99 << 10, 90: 227 << 10, 100: 227 << 10}


@pytest.mark.parametrize("d", [96, 128, 1024])
def test_depths_without_a_rest_are_not_masked(d):
    launches = recorded("correlation", 4096, d, torch.float32, "fp32")
    (found,) = (x.constants for x in launches if x.name == "correlation_gradients_kernel")
    assert found["EVEN"] == (d % found["BLOCK_K"] == 0)


def test_every_launch_states_the_bytes_that_it_must_move():
    for form, n, d in (("gram", 256, 1024), ("gram", 2048, 8192), ("correlation", 4096, 256)):
        for precision in ("fp32", "bf16"):
            for launch in recorded(form, n, d, torch.float32, precision):
                assert launch.bytes > 0, launch.name


@pytest.fixture
def streams(monkeypatch):
    """Counters of a device that is not there: (the pool, a function that chooses the stream and
    whether it is being captured)."""
    pool = arrival._Pool(torch.zeros(3 * arrival.STREAM, dtype=torch.int32))
    here = SimpleNamespace(capturing=False, stream=SimpleNamespace(cuda_stream=0))
    monkeypatch.setattr(arrival, "_pools", {})
    monkeypatch.setattr(arrival, "_new_pool", lambda device: pool)
    monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: here.capturing)
    monkeypatch.setattr(torch.cuda, "current_stream", lambda device: here.stream)

    def choose(stream, capturing=False):
        here.capturing, here.stream = capturing, SimpleNamespace(cuda_stream=stream)

    return pool, choose


def test_counters_are_shared_by_no_launches_at_the_same_time(streams):
    """Those of a stream run one after the other; those of captured graphs may run at any time."""
    pool, choose = streams
    device, taken = torch.device("cuda", 0), []
    assert arrival._pooled(device, 8).data_ptr() == pool.zeros.data_ptr()
    for stream, capturing, length in ((0, False, 8), (1, False, 8), (2, True, 8), (2, True, 12)):
        choose(stream, capturing)
        taken.append(arrival._pooled(device, length))
        assert taken[-1].numel() == length
        assert taken[-1].data_ptr() % 16 == 0
    ranges = sorted((x.data_ptr(), x.data_ptr() + x.nbytes) for x in taken)
    assert all(end <= start for (_, end), (start, _) in itertools.pairwise(ranges))
    choose(1)
    assert arrival._pooled(device, 100).data_ptr() == taken[1].data_ptr()


def test_counters_where_the_pool_has_none(streams, monkeypatch):
    """They are made zero by a launch then: too many at once, all given away, no pool yet."""
    _, choose = streams
    device = torch.device("cuda", 0)
    choose(0, capturing=True)
    assert arrival._pooled(device, 8) is None  # nothing is allocated for good within a graph
    choose(0)
    assert arrival._pooled(device, arrival.STREAM + 4) is None
    choose(1)
    assert arrival._pooled(device, 8) is not None
    choose(2, capturing=True)
    assert arrival._pooled(device, arrival.STREAM - 4) is not None
    assert arrival._pooled(device, 8) is None
    choose(3)
    assert arrival._pooled(device, 8) is None
    monkeypatch.setattr(arrival, "_pools", {})
    monkeypatch.setattr(arrival, "_new_pool", lambda device: None)  # a private pool of memory
    assert arrival._pooled(device, 8) is None
    assert not arrival.counters(torch.device("cpu"), 6).any()


def test_tuning_keeps_what_is_faster_and_only_that():
    lines = []

    def measure(key, rows, *_):
        # The third candidate is twice as fast for the product, and as fast for the gradient.
        fast = 0.5 if key[0] == "gram" else 0.99
        return {row: (fast if i == 2 else 1.0) for i, row in enumerate(rows)}

    shapes = [(256, 8192), (250, 8192)]
    found = tuning.tune(shapes, OPERANDS, torch.device("meta"), 60, lines.append, measure)
    assert list(found) == [KEY]
    row, measured = found[KEY]
    assert row == tuning.candidates(KEY)[2]
    assert measured == {"ms": 0.5, "table_ms": 1.0, "shape": [256, 8192]}
    assert len(lines) == 2  # one for each kernel; the second shape reaches the same rows


def test_tuning_ends_with_its_budget():
    def measure(*_):
        raise AssertionError("no time is left to measure anything")

    found = tuning.tune([(256, 8192)], OPERANDS, torch.device("meta"), -1, print, measure)
    assert found == {}


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device")
def test_tuning_without_a_device_says_so(capsys):
    assert tuning.main([]) == 2
    assert "needs a CUDA device" in capsys.readouterr().err


def test_devices_with_little_shared_memory_get_fewer_stages():
    consumer = Device("consumer", 120, 170, 99 * 1024)
    assert consumer.architecture == 80
    dtypes, buckets = (torch.bfloat16, torch.float32), (64, 128, 256, 512, 4096)
    for kernel, precision, dtype, size in itertools.product(
        PATHS, ("bf16", "tf32", "fp32"), dtypes, buckets
    ):
        row = configurations.blocks(kernel, consumer, precision, dtype, size)
        assert configurations.shared_memory(row, 80, precision, dtype) <= consumer.shared_memory
        assert row.stages > 1
    row = configurations.blocks("gram_gradients", H100, "bf16", torch.bfloat16, 512)
    assert row == TABLE["gram_gradients", 90, "half", 512]


def test_the_table_has_a_row_for_every_size():
    for key in itertools.product(PATHS, (80, 90, 100), ("half", "tf32", "fp32")):
        assert LARGE in sizes(*key)


@pytest.mark.parametrize("number", [int, np.float32, np.float64])
@pytest.mark.parametrize("precision", ["bf16", "fp32"])
def test_numbers_of_any_type_launch_the_same_kernels(number, precision):
    """1 is the hardest: as an integer it would be a constant of the kernel."""

    def launches(one):
        z = torch.empty(64, 96, device="meta")
        scale, ones = torch.empty((), device="meta"), Coefficients(one, one, one, one)
        with recording(H100) as record:
            statistics, sums = triton_kernels.statistics(z, z, one, precision)
            moments = triton_kernels.column_moments(z, z, precision)
            triton_kernels.standardisation(moments, 64, one, precision)
            _, *grams = triton_kernels.gram_terms(z, z, statistics, sums, one, precision)
            triton_kernels.terms(sums, sums, 64**2, True, one, precision)
            inputs = GradientInputs(z, z, statistics, grams, scale, ones, precision)
            triton_kernels.gram_gradients(inputs)
            matrix = triton_kernels.correlation(z, z, statistics, precision)
            triton_kernels.correlation_gradients(inputs._replace(matrices=matrix))
        return [(inspection.identity(x), x.arguments) for x in record.launches]

    for (found, arguments), (expected, _) in zip(launches(number(1)), launches(1.0), strict=True):
        assert found == expected
        assert not any(isinstance(x, np.generic) for x in flat(arguments.values()))


def test_every_option_of_tune_has_a_phrase_with_its_default(capsys):
    for action in tuning._parser()._actions[1:]:
        assert re.fullmatch(r"[A-Z].*\. \[default: .+\]", action.help), action.help
    for wrong in ("x", "256", "256x", "axb"):
        with pytest.raises(SystemExit) as left:
            tuning.main(["--shapes", wrong])
        assert left.value.code == 2
        words = f"--shapes: takes sizes N x D such as 256x8192,2048x8192, got '{wrong}'"
        assert words in capsys.readouterr().err


def test_tuning_replaces_no_other_file(tmp_path, monkeypatch, capsys):
    """Before it measures anything."""
    monkeypatch.setattr(tuning.torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(tuning.torch.cuda, "get_device_name", lambda _: "a GPU")
    monkeypatch.setattr(tuning, "tune", lambda *_: {})
    path = tmp_path / "checkpoint.pt"
    path.write_bytes(b"PK")
    assert tune(["--out", str(path)]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert f"barlow-fast tune: --out {path} is there already" in line
    for _ in range(2):
        assert tuning.main(["--out", str(tmp_path / "rows.json")]) == 0
