"""`pytest bench --benchmark-only`: the suites under pytest-benchmark, see `bench/replay`."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from bench import replay
from bench.replay import Choice, Replay, Timed

SUITES = tuple(replay.discover())
Groups = dict[str, list[str]]
CHOSEN = pytest.StashKey[dict[str, Groups]]()
MEASURED = pytest.StashKey[dict[tuple[str, str], dict[str, Timed]]]()


def pytest_addoption(parser: pytest.Parser) -> None:
    """The choices of `python -m bench`, for all suites together."""
    group = parser.getgroup("bench", "what the suites of bench/ measure")
    group.addoption("--suite", help=f"Of {', '.join(SUITES)}, comma-separated. Default: all.")
    group.addoption("--device", default="cpu", help="cpu or cuda. Default: cpu.")
    group.addoption("--dtypes", help="Such as fp32,bf16-autocast; those that each suite knows.")
    group.addoption("--shapes", help="Such as 256x2048,1024x1024, for suites that have shapes.")
    group.addoption("--peers", help="Such as ours,official; those that each suite knows.")


@pytest.hookimpl(tryfirst=True)
def pytest_configure(config: pytest.Config) -> None:
    """--benchmark-only asks for timing as plainly as --benchmark-enable does."""
    if getattr(config.option, "benchmark_only", False):
        config.option.benchmark_enable = True
    config.stash[MEASURED] = {}
    try:
        config.stash[CHOSEN] = chosen_groups(config)
    except (ValueError, RuntimeError) as error:
        raise pytest.UsageError(str(error)) from None


def chosen_groups(config: pytest.Config) -> dict[str, Groups]:
    """The groups of each chosen suite; ValueError or RuntimeError for options that make no sense
    here, before anything runs."""
    from bench import devices
    from bench.suites import all as every

    text = config.getoption("--suite")
    names = SUITES if text is None else tuple(name.strip() for name in text.split(","))
    for name in names:
        if name not in SUITES:
            raise ValueError(f"--suite: unknown suite {name!r}; there are {', '.join(SUITES)}")
    choice = choice_of(config)
    devices.choose(choice.device)
    parts = [every.PARTS[name] for name in names]
    every.refuse_unknown(parts, choice.device, choice.dtypes, choice.peers)
    modules = replay.discover()
    return {name: modules[name].groups(choice) for name in names}


def choice_of(config: pytest.Config) -> Choice:
    """The options."""
    option = config.getoption
    return Choice(option("--device"), option("--dtypes"), option("--shapes"), option("--peers"))


def pytest_ignore_collect(collection_path: Path, config: pytest.Config) -> bool | None:
    """Suites that are not chosen."""
    name = collection_path.stem.removeprefix("test_")
    return True if name in SUITES and name not in config.stash[CHOSEN] else None


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """A test for every implementation of every group, with a timer of its own."""
    if "replayed" not in metafunc.fixturenames:
        return
    cases = [
        pytest.param(
            group,
            peer,
            id=f"{group} {peer}".replace(" ", "-").replace(",", ""),
            marks=pytest.mark.benchmark(
                timer=Replay(), group=f"{_suite(metafunc.module)}: {group}"
            ),
        )
        for group, peers in metafunc.config.stash[CHOSEN].get(_suite(metafunc.module), {}).items()
        for peer in peers
    ]
    metafunc.parametrize(("group", "peer"), cases)


def _suite(module) -> str:
    return module.__name__.rpartition(".")[2].removeprefix("test_")


@pytest.fixture
def replayed(
    request: pytest.FixtureRequest, benchmark, group: str, peer: str
) -> Callable[[], None]:
    """Replays the samples of one implementation, measured with its group when the first of them is
    asked for; only implementations whose tests are selected take part. One that is wrong fails."""

    def replay_samples() -> None:
        if benchmark.disabled:
            pytest.skip("timing is switched off; --benchmark-only switches it on")
        timed = measured(request, group)[peer]
        if timed.unavailable is not None:
            pytest.skip(timed.unavailable)
        if timed.problem is not None:
            pytest.fail(f"{peer} is not timed: {timed.problem}", pytrace=False)
        benchmark.extra_info.update(timed.told())
        timer = request.node.get_closest_marker("benchmark").kwargs["timer"]
        timer.load(timed.samples)
        benchmark.pedantic(replay.nothing, rounds=len(timed.samples), iterations=1)

    return replay_samples


def measured(request: pytest.FixtureRequest, group: str) -> dict[str, Timed]:
    """What became of the implementations of a group; measured once."""
    suite = _suite(request.module)
    kept = request.config.stash[MEASURED]
    if (suite, group) not in kept:
        selected = [
            item.callspec.params["peer"]
            for item in request.session.items
            if getattr(item, "module", None) is request.module
            and item.callspec.params["group"] == group
        ]
        module = replay.discover()[suite]
        kept[suite, group] = module.measure(choice_of(request.config), group, selected)
    return kept[suite, group]
