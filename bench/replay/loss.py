"""The loss, forward + backward: one group for each shape and dtype."""

from __future__ import annotations

import functools
import itertools
from collections.abc import Sequence

from bench import agreement, devices
from bench.floor import floor_seconds
from bench.inputs import Variant, parse_shapes, parse_variants, rotation
from bench.loss import measurement
from bench.loss.grid import QUICK_SHAPES
from bench.optional import Console
from bench.peers import Peer, discover
from bench.replay import Choice, Timed
from bench.results import rounded
from bench.suites.all import among
from bench.suites.loss import QUICK_SECONDS
from bench.timing import Budget, interleave, warm_up

DTYPES = "fp32,bf16-autocast"

# Problems are told by the tests.
quiet = Console(quiet=True)


def groups(choice: Choice) -> dict[str, list[str]]:
    """Peers by shape and dtype; those that compile only if they are named."""
    known = discover(choice.device)
    names = [name for name, peer in known.items() if not peer.compiles]
    if choice.peers is not None:
        names = among(choice.peers, list(known))
    shapes = QUICK_SHAPES if choice.shapes is None else parse_shapes(choice.shapes)
    return {
        f"{n}x{d} {variant.name}": names
        for (n, d), variant in itertools.product(shapes, variants(choice))
    }


def variants(choice: Choice) -> list[Variant]:
    """Those that are chosen."""
    known = devices.Cuda.variants if choice.device == "cuda" else devices.Cpu.variants
    if choice.dtypes is None:
        return parse_variants(DTYPES, known)
    return parse_variants(",".join(among(choice.dtypes, list(known))), known)


@functools.cache
def ceilings(kind: str):
    """The device, its peaks and its provenance; measured once."""
    device = devices.choose(kind)
    return device, device.peaks(), device.origin()


def measure(choice: Choice, group: str, peers: Sequence[str]) -> dict[str, Timed]:
    """Checks every peer, then times in turns those that are right."""
    shape, dtype = group.split()
    ((n, d),) = parse_shapes(shape)
    device, peaks, origin = ceilings(choice.device)
    variant = device.variants[dtype]
    found: dict[str, Timed] = {}
    sound = []
    for name in peers:
        peer = discover(choice.device)[name]
        reason = peer.unavailable()
        problem = None if reason else agreement.check_small(peer, [variant], device.torch)
        if reason is None and problem is None:
            sound.append(peer)
        found[name] = Timed(problem=problem, unavailable=reason)
    time = _on_cuda if choice.device == "cuda" else _on_cpu
    floor = floor_seconds(n, d, variant.dtype.itemsize, peaks.gemm(variant.gemm), peaks.copy)
    for name, timed in time(n, d, variant, sound, device).items():
        peer = discover(choice.device)[name]
        timed.extra = {
            "source": peer.source,
            "exact": peer.exact,
            "floor_ms": rounded(floor * 1e3),
            "peaks": peaks.as_fields(),
            "provenance": origin,
        }
        if timed.problem is None:
            timed.extra["fraction_of_floor"] = rounded(floor * 1e3 / timed.told()["median_ms"])
        found[name] = timed
    return found


def _on_cpu(
    n: int, d: int, variant: Variant, peers: list[Peer], device: devices.Cpu
) -> dict[str, Timed]:
    failures: dict[str, str] = {}
    origin = {"last_level_cache_bytes": device.cache_bytes()}
    group = measurement.measure_group(
        n, d, variant, peers, Budget(QUICK_SECONDS), origin, quiet, failures
    )
    found = {peer.name: Timed(samples.both) for peer, samples in group.samples.items()}
    wrong = failures | {peer.name: text for peer, text in group.problems.items()}
    return found | {name: Timed(problem=text) for name, text in wrong.items()}


def _on_cuda(
    n: int, d: int, variant: Variant, peers: list[Peer], device: devices.Cuda
) -> dict[str, Timed]:
    """As user code calls the peers, launches included, on an idle device with cold caches."""
    found: dict[str, Timed] = {}
    actions, counts = {}, {}
    with variant.products():
        pairs = rotation(n, d, variant.dtype, device.cache_bytes(), device.torch)
        turns, truths = itertools.cycle(pairs), agreement.Truths(pairs[0])
        for peer in peers:
            try:
                loss = agreement.built(peer, n, d, variant, device.torch)
                outcome = agreement.run(loss, pairs[0], variant)
                problem = agreement.check_timed(outcome, truths.of(peer.mathematics), variant)
                del outcome
            except Exception as error:  # whatever a peer raises, the others are still to be timed
                device.check_alive()
                problem = f"raises {devices.brief(error)}"
            if problem is not None:
                found[peer.name] = Timed(problem=problem)
                continue

            def action(loss=loss) -> float:
                pair = next(turns)
                return device.call_seconds(lambda: agreement.run(loss, pair, variant))

            actions[peer.name] = action
            counts[peer.name] = Budget(QUICK_SECONDS).count(warm_up(action, measurement.LONG))
        samples = interleave(actions, counts) if actions else {}
    return found | {name: Timed(seconds) for name, seconds in samples.items()}
