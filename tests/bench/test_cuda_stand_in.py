"""The code of CUDA devices against a stand-in for `torch.cuda` that runs everything on the CPU.

It shows that the calls are made in the right order and that failures are handled; what a real
device does, only a real device shows.
"""

from __future__ import annotations

import contextlib
import itertools
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
from invoked import invoke

from bench import agreement, devices, exits, floor, peers, results, sources
from bench.peers import discover
from bench.peers.gram_plain import gram_loss
from bench.suites import views
from bench.views import feeds

PROPERTIES = SimpleNamespace(
    name="Example GPU", major=9, minor=0, multi_processor_count=100, total_memory=80 << 30,
    L2_cache_size=1 << 20,
)  # fmt: skip


class Stream:
    def __init__(self, name="side"):
        self.name = name

    def wait_stream(self, other):
        pass


CLOCK = itertools.count()


class Event:
    def __init__(self, enable_timing):
        assert enable_timing

    def record(self):
        self.at = next(CLOCK)

    def synchronize(self):
        pass

    def elapsed_time(self, other):
        return (other.at - self.at) * 2.0  # milliseconds


class StandIn:
    """The part of torch.cuda that is used, with a log of what was done."""

    def __init__(self):
        self.log, self.stream, self.refuses, self.broken = [], Stream("default"), None, False
        self.allocated, self.peak = 1000, 0

    @contextlib.contextmanager
    def graph(self, graph, pool, stream):
        self.log.append(("capture", pool, stream))
        before, self.stream = self.stream, stream
        yield
        if self.refuses:
            raise self.refuses  # and leaves its own stream in place
        self.stream = before

    @contextlib.contextmanager
    def side(self, stream):
        self.log.append(("warm up", stream))
        yield

    def synchronize(self):
        if self.broken:
            raise RuntimeError("CUDA error: an illegal memory access was encountered\nmore")

    def handle(self):
        self.log.append("new pool")
        return len(self.log)

    def set_stream(self, stream):
        self.stream = stream


@pytest.fixture
def cuda(monkeypatch):
    """A `Cuda` whose tensors are on the CPU, and the stand-in behind it as `cuda.stand_in`."""
    stand_in = StandIn()
    graph = SimpleNamespace(replay=lambda: None)
    for name, value in {
        "is_available": lambda: True,
        "set_device": lambda device: None,
        "get_device_properties": lambda device: PROPERTIES,
        "Stream": lambda device=None: Stream(),
        "Event": Event,
        "CUDAGraph": lambda: graph,
        "graph": stand_in.graph,
        "stream": stand_in.side,
        "current_stream": lambda: stand_in.stream,
        "set_stream": stand_in.set_stream,
        "graph_pool_handle": stand_in.handle,
        "synchronize": stand_in.synchronize,
        "empty_cache": lambda: stand_in.log.append("empty cache"),
        "memory_reserved": lambda: 0,
        "memory_allocated": lambda: stand_in.allocated,
        "max_memory_allocated": lambda: stand_in.allocated + stand_in.peak,
        "reset_peak_memory_stats": lambda: stand_in.log.append("reset peak"),
    }.items():
        monkeypatch.setattr(torch.cuda, name, value)
    monkeypatch.setattr(sources, "fingerprint", lambda: "0123456789ab")
    monkeypatch.setattr(devices, "EVICT_BYTES", 1 << 20)
    monkeypatch.setattr(devices, "GEMM_SIZE", 32)
    monkeypatch.setattr(devices, "COPY_BYTES", 1 << 16)
    device = devices.Cuda()
    device.torch, device.stand_in = torch.device("cpu"), stand_in
    monkeypatch.setattr(devices, "Cuda", lambda: device)
    return device


def test_the_device_is_named_in_files_and_rows(cuda):
    assert devices.choose("cuda") is cuda
    assert cuda.slug == "gpu-example-gpu"
    assert cuda.cache_bytes == 1 << 20
    origin = cuda.origin()
    assert (origin["gpu"], origin["compute_capability"]) == ("Example GPU", "9.0")
    assert origin["last_level_cache_bytes"] == 1 << 20
    assert {"driver", "cuda", "triton", "commit"} <= set(origin)


def test_all_peaks_are_measured_and_the_precision_is_put_back(cuda):
    before = torch.get_float32_matmul_precision()
    found = cuda.peaks()
    measured = {name: rate for name, rate in vars(found).items() if name != "tiles_bf16"}
    assert min(measured.values()) > 0
    assert found.tiles_bf16 is None  # of a CPU
    assert torch.get_float32_matmul_precision() == before
    assert found.launch_graph_us == pytest.approx(2000 / floor.LAUNCHES, rel=1)


def test_captures_warm_up_aside_and_share_stream_and_pool(cuda):
    calls = []
    for _ in range(2):
        replay, outcome = cuda.capture(lambda: calls.append(1))
        assert outcome is None
        assert cuda.replay_seconds(replay) >= 0.002
    assert len(calls) == 2 * (devices.GRAPH_WARM_UPS + 1)
    captures = [each for each in cuda.stand_in.log if each[0] == "capture"]
    assert captures[0][1:] == captures[1][1:]
    assert cuda.stand_in.log.count("new pool") == 1
    cuda.new_graphs()
    cuda.capture(lambda: None)
    assert cuda.stand_in.log.count("new pool") == 2


def test_a_failed_capture_leaves_stream_and_pool_as_they_were(cuda):
    cuda.stand_in.refuses = RuntimeError("operation not permitted when stream is capturing")
    with pytest.raises(devices.NoGraphError, match="not permitted"):
        cuda.capture(lambda: None)
    assert cuda.stand_in.stream.name == "default"
    cuda.stand_in.refuses = None
    cuda.capture(lambda: None)
    assert cuda.stand_in.log.count("new pool") == 2


def test_a_broken_context_is_no_failed_capture(cuda):
    cuda.stand_in.broken = True
    with pytest.raises(devices.DeviceLostError, match="illegal memory access"):
        cuda.capture(lambda: None)


def arguments(suite, tmp_path, *more):
    out = ["--device", "cuda", "--out", str(tmp_path / "rows.jsonl"), "--command", "make gpu"]
    return [suite, *out, "--shapes", "16x32", "--dtypes", "fp32", *more]


def test_the_loss_of_a_device_from_the_command_line(cuda, tmp_path):
    options = ["--peers", "gram-plain,official", "--seconds", "0.01"]
    options = arguments("loss", tmp_path, "--journal", str(tmp_path / "journal"), *options)
    found = invoke(options)
    assert found.exit_code == exits.COMPLETE, found.output
    rows = results.read(tmp_path / "rows.jsonl")
    assert [row["peer"] for row in rows] == ["gram-plain", "official"]
    assert all(row["graph_ms"] >= 2 and row["median_ms"] > 0 for row in rows)
    assert all(row["device"] == "Example GPU" and "forward_ms" not in row for row in rows)
    assert rows[0]["peaks"]["gemm_tf32_gflops"] > 0
    assert rows[0]["provenance"]["command"] == "make gpu"
    assert "1 measured, 0 left" in found.output
    again = invoke([*options, "--resume"])
    assert again.exit_code == exits.COMPLETE
    assert "0 measured, 0 left" in again.output
    assert invoke([*options, "--minutes", "0"]).exit_code == exits.UNFINISHED
    assert invoke(arguments("loss", tmp_path, "--peers", "nobody")).exit_code == exits.NO_DEVICE


def test_a_broken_context_requests_a_new_process(cuda, tmp_path, monkeypatch):
    def breaks(z_a, z_b):
        cuda.stand_in.broken = True
        raise RuntimeError("CUDA error: an illegal memory access was encountered")

    peer = replace(discover()["gram-plain"], name="breaking", build=lambda n, d, dtype: breaks)
    monkeypatch.setattr(peers, "choose", lambda names, kind, **_: [peer])
    journal = ["--journal", str(tmp_path / "journal")]
    assert invoke(arguments("loss", tmp_path, *journal)).exit_code == exits.RESTART
    assert "illegal memory access" in (tmp_path / "journal").read_text()


def test_memory_is_what_the_allocator_says_less_gradients(cuda, tmp_path):
    gradients = 2 * 16 * 32 * 4
    cuda.stand_in.peak = gradients + 5 * gradients
    found = invoke(arguments("memory", tmp_path, "--peers", "gram-plain"))
    assert found.exit_code == exits.COMPLETE, found.output
    (row,) = results.read(tmp_path / "rows.jsonl")
    assert row["input_bytes"] == row["gradient_bytes"] == gradients
    assert row["extra_bytes"] == 5 * gradients
    assert row["extra_over_inputs"] == 5
    assert (row["problem"], row["device"]) == (None, "Example GPU")
    assert "reset peak" in cuda.stand_in.log


def test_what_does_not_fit_is_a_row_of_memory_too(cuda, tmp_path, monkeypatch):
    def greedy(z_a, z_b):
        if tuple(z_a.shape) in agreement.SMALL_SHAPES:
            return gram_loss(z_a, z_b)
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 8.00 GiB.")

    plain = discover()["gram-plain"]
    some = [replace(plain, name="greedy", build=lambda *_: greedy)]
    some += [replace(plain, name="modest", build=lambda *_: gram_loss)]
    monkeypatch.setattr(peers, "choose", lambda names, kind, **_: some)
    found = invoke(arguments("memory", tmp_path))
    assert found.exit_code == exits.COMPLETE
    assert [row["problem"] for row in results.read(tmp_path / "rows.jsonl")] == [
        "out of memory (requested 8.00 GiB)", None,
    ]  # fmt: skip
    assert "peer greedy, problem out of memory (requested" in found.output
    assert "1 measured, 0 left" in found.output
    assert "0 measured, 0 left" in invoke(arguments("memory", tmp_path, "--resume")).output


def test_the_kernel_of_views_is_replayed_from_graphs(cuda):
    case = replace(feeds.CUDA_CASES["kernel"], batch_size=2, side=8)
    rates, failed = views.kernel_rates(case, ["kernel-aten-float32"], None, cuda)
    assert failed == {}
    assert len(rates["kernel-aten-float32"]) == views.KERNEL_CALLS.most
    assert max(rates["kernel-aten-float32"]) <= 4 / 0.002
    assert any(each[0] == "capture" for each in cuda.stand_in.log)
