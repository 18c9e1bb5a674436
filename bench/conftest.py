"""The options of `pytest bench --benchmark-only`, which are those of `python -m bench loss`."""

from __future__ import annotations

import itertools

import pytest

from bench import devices, peers
from bench.inputs import parse_shapes, parse_variants

DTYPES = "fp32,bf16-autocast"


def pytest_addoption(parser: pytest.Parser) -> None:
    group = parser.getgroup("bench", "what bench/test_benchmarks.py times")
    group.addoption("--device", default="cpu", help="cpu or cuda. Default: cpu.")
    group.addoption("--dtypes", default=DTYPES, help=f"Default: {DTYPES}.")
    group.addoption("--shapes", help="Such as 256x2048,1024x1024.")
    group.addoption("--peers", help="Such as ours,official. Default: all that do not compile.")


@pytest.hookimpl(tryfirst=True)
def pytest_configure(config: pytest.Config) -> None:
    """--benchmark-only switches timing on, as --benchmark-enable does."""
    if getattr(config.option, "benchmark_only", False):
        config.option.benchmark_enable = True


def pytest_report_header() -> str:
    return (
        "bench: pytest-benchmark times one test after the other; the rows of bench/results "
        "interleave their peers (python -m bench)"
    )


@pytest.fixture(scope="session")
def device(request: pytest.FixtureRequest) -> devices.Cpu | devices.Cuda:
    """The device of --device."""
    return devices.choose(request.config.getoption("--device"))


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Every shape, dtype and peer."""
    if "peer" not in metafunc.fixturenames:
        return
    option = metafunc.config.getoption
    kind, text = option("--device"), option("--shapes")
    try:
        device = devices.choose(kind)
        shapes = parse_shapes(text) if text else device.grid.quick
        variants = parse_variants(option("--dtypes"), device.variants)
        chosen = peers.choose(option("--peers"), kind, compiled=False)
    except (ValueError, RuntimeError) as error:
        raise pytest.UsageError(str(error)) from None
    found = []
    for (n, d), variant, peer in itertools.product(shapes, variants, chosen):
        group = pytest.mark.benchmark(group=f"{n} x {d} {variant.title}")
        name = f"{n}x{d}-{variant.name}-{peer.name}"
        found.append(pytest.param((n, d), variant, peer, id=name, marks=group))
    metafunc.parametrize(("shape", "variant", "peer"), found)
