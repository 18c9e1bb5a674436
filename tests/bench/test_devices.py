"""The device abstraction, as far as a machine without a GPU can show it."""

from __future__ import annotations

import contextlib
import re
from types import SimpleNamespace

import pytest
import torch

from bench import devices, provenance
from bench.devices import Cpu, Cuda
from bench.inputs import CUDA_VARIANTS, VARIANTS, parse_variants
from bench.peers import choose, discover


def test_the_cpu_is_what_it_has_always_been():
    cpu = devices.choose("cpu")
    assert cpu.slug == f"cpu-{provenance.slug(provenance.cpu_model())}"
    assert cpu.cache_bytes == provenance.last_level_cache()
    assert set(cpu.origin()) == set(provenance.collect())
    assert cpu.variants is VARIANTS
    assert cpu.peaks().copy > 0


def test_the_cpu_clock_takes_the_time_of_the_call(monkeypatch):
    clock = [5.0]
    monkeypatch.setattr(devices, "time", SimpleNamespace(perf_counter=lambda: clock[-1]))
    assert devices.Cpu().call_seconds(lambda: clock.append(7.5)) == 2.5


def test_a_cpu_has_no_graphs():
    with pytest.raises(devices.NoGraphError, match="CPU"):
        devices.Cpu().capture(lambda: None)


def test_an_unknown_device_is_refused():
    with pytest.raises(ValueError, match="tpu"):
        devices.choose("tpu")


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device")
def test_without_a_cuda_device_the_reason_is_reported():
    with pytest.raises(RuntimeError, match="CUDA"):
        devices.choose("cuda")


def test_an_error_is_reported_in_one_line():
    memory = torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 16.00 GiB. GPU 0 has")
    assert devices.brief(memory) == "out of memory (requested 16.00 GiB)"
    assert devices.brief(RuntimeError("\nfirst\nsecond")) == "RuntimeError: first"
    assert len(devices.brief(ValueError("x" * 500))) == 200


def test_cuda_has_its_own_variants_and_peers():
    assert list(CUDA_VARIANTS) == ["fp32", "tf32", "bf16-autocast", "bf16-inputs", "fp16-inputs"]
    assert [v.name for v in parse_variants("tf32,bf16", CUDA_VARIANTS)] == [
        "tf32", "bf16-autocast", "bf16-inputs",
    ]  # fmt: skip
    with pytest.raises(ValueError, match="fp16-inputs"):
        parse_variants("fp16-inputs")
    assert discover("cuda")["ours"].source.endswith("backend='triton'")
    assert discover("cuda")["official"] is discover("cpu")["official"]
    assert set(discover("cuda")) == set(discover("cpu"))
    with pytest.raises(ValueError, match="gram-compiled"):
        choose("nobody", "cuda")


@pytest.mark.parametrize("name", ["fp32", "tf32"])
def test_the_matmul_precision_is_set_and_put_back(name):
    variant = CUDA_VARIANTS[name]
    before = torch.get_float32_matmul_precision()
    with contextlib.suppress(KeyError), variant.products():
        seen = torch.get_float32_matmul_precision()
        raise KeyError
    assert seen == variant.matmul
    assert torch.get_float32_matmul_precision() == before


# Comparisons with a device's kind, in any of the ways that Python has.
BRANCH = re.compile(
    r"""(==|!=|\bin\b|\bis\b)\s*\(?["'](cpu|cuda)["']|["'](cpu|cuda)["']\s*(==|!=)"""
    r"""|\.(kind|type)\s*(==|!=)|isinstance\([^)]*(Cpu|Cuda)\b|cuda\.is_available"""
)


@pytest.mark.parametrize("folder", ["suites", "views", "training", "ranks"])
def test_suites_ask_the_device_and_never_which_one_it_is(folder):
    for path in sorted((provenance.ROOT / "bench" / folder).glob("*.py")):
        for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1):
            assert not BRANCH.search(line), f"{path.name}:{number}: a method of bench.devices"


def test_both_devices_have_the_same_methods():
    cpu, cuda = ({name for name in dir(each) if name[0] != "_"} for each in (Cpu, Cuda))
    assert cpu - cuda == set()
    assert cuda - cpu == set()
