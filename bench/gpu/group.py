"""One shape and dtype on one device: every peer checked, called in turns, captured and replayed.

Nothing a peer does stops the others: what it raises becomes its `problem`. The exception is a
broken CUDA context, which no later call in the process survives: DeviceLostError, with the peer's
name in the journal so that the next process leaves it out.
"""

from __future__ import annotations

import contextlib
import functools
import gc
import itertools
import signal
import threading
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field

import torch

from bench import agreement
from bench.agreement import Outcome, Truths
from bench.devices import Cpu, Cuda, DeviceLostError, NoGraphError, brief
from bench.gpu.journal import Journal
from bench.inputs import Pair, Variant, rotation
from bench.peers import Loss, Peer
from bench.peers.mathematics import PAPER
from bench.timing import Budget, schedule, warm_up

LONG, FEWEST_LONG = 0.5, 3  # calls of half a second and more are sampled three times
HIDDEN = 0.02  # seconds of a call from which its launches are too small a part to be told apart
MOST_PAIRS = 8  # the caches are emptied before each call: the rotation need not do that alone

Checks = dict[tuple[str, str], str | None]


@dataclass(frozen=True)
class Case:
    """Two (n, d) views in one variant."""

    n: int
    d: int
    variant: Variant

    def __str__(self) -> str:
        return f"{self.n}x{self.d} {self.variant.name}"


@dataclass
class Candidate:
    """One peer at one case, with all that is found out about it; times in seconds."""

    peer: Peer
    key: str
    problem: str | None = None
    graph_problem: str | None = None
    loss: Loss | None = None
    estimate: float = 0.0
    replay: Callable[[], None] | None = None
    called: list[float] = field(default_factory=list)
    replayed: list[float] = field(default_factory=list)

    def fail(self, problem: str) -> None:
        """It is out, and its state is given back."""
        self.problem, self.loss, self.replay = problem, None, None


@dataclass
class Group:
    """Measures the candidates of one case.

    Attributes:
        case, device: what is measured, and on what.
        budget: how often each peer is called and replayed.
        compile_seconds: what a peer that compiles has for its first call.
        checks: small checks by (peer, variant), kept from group to group.
        journal: told what begins and ends.
        lost: keys of the journal that ended an earlier process, with reasons.
    """

    case: Case
    device: Cpu | Cuda
    budget: Budget
    compile_seconds: float
    checks: Checks
    journal: Journal
    lost: dict[str, str]

    def measure(self, peers: Sequence[Peer]) -> list[Candidate]:
        """All peers, those with problems too. Their losses and graphs are given back."""
        candidates = [Candidate(peer, f"{self.case} {peer.name}") for peer in peers]
        reason = self.lost.get(f"{self.case} samples")
        pairs, truths = ([], None) if reason else self._inputs()
        if truths is None:
            for candidate in candidates:
                candidate.fail(reason or "inputs and float64 truth do not fit into memory")
            return candidates
        self._forget_compiled(peers)
        self.device.new_graphs()
        with self.case.variant.products():
            for candidate in candidates:
                self._guarded(candidate, candidate.key, self._prepare, pairs[0], truths)
                self.device.release()
            call = functools.partial(self._call_seconds, turns=itertools.cycle(pairs))
            self._sample(candidates, call, "called")
            for candidate in candidates:
                self._guarded(candidate, graph_key(candidate), self._capture, pairs[0], truths)
            del truths
            captured = [each for each in candidates if each.replay]
            self._sample(captured, self._replay_seconds, "replayed")
        for candidate in candidates:
            candidate.loss = candidate.replay = None
        self._forget_compiled(peers)
        return candidates

    def _forget_compiled(self, peers: Sequence[Peer]) -> None:
        """All shapes share code objects, of which dynamo compiles a few specialisations each; and
        compiled losses keep the memory of their graphs."""
        if any(peer.compiles for peer in peers):
            torch._dynamo.reset()

    def _inputs(self) -> tuple[list[Pair], Truths | None]:
        n, d, variant = self.case.n, self.case.d, self.case.variant
        try:
            cache = self.device.cache_bytes()
            pairs = rotation(n, d, variant.dtype, cache, self.device.torch)[:MOST_PAIRS]
            # Kept for the paper's mathematics alone: the memory is the peers' to be measured in.
            truths = Truths(pairs[0], others=False)
            truths.of(PAPER)
            return pairs, truths
        except torch.OutOfMemoryError:
            pass
        self.device.release()
        return [], None

    def _guarded(
        self, candidate: Candidate, key: str, step: Callable[..., None], *arguments: object
    ) -> None:
        """Runs a step of a candidate that has no problem yet; whatever it raises is its problem."""
        if candidate.problem is not None:
            return
        try:
            step(candidate, *arguments)
            return
        except Exception as error:  # whatever a peer raises, the others are still to be timed
            problem = candidate.problem or brief(error)
        candidate.fail(problem)
        try:
            self.device.check_alive()
        except DeviceLostError:
            self.journal.lose(key, problem)
            raise
        self.device.release()
        self.journal.end(key)

    def _prepare(self, candidate: Candidate, pair: Pair, truths: Truths) -> None:
        """Checks the peer, builds its loss, holds its first result against the truth, warms up."""
        peer, case = candidate.peer, self.case
        problem = self.lost.get(candidate.key)
        if problem is None:
            self.journal.start(candidate.key)
            problem = self._small_check(peer)
        if problem is None:
            candidate.loss = agreement.built(peer, case.n, case.d, case.variant, self.device.torch)
            seconds = self.compile_seconds if peer.compiles else None
            with time_limit(seconds, f"compilation took more than {seconds} s"):
                problem = self._wrong(peer, self._run(candidate.loss, pair), truths)
        if problem is not None:
            candidate.fail(problem)
            self.device.check_alive()
        else:
            # Taken as a call, caches emptied: what it will be in its samples.
            candidate.estimate = warm_up(
                lambda: self.device.call_seconds(lambda: self._run(candidate.loss, pair)), LONG
            )
        self.journal.end(candidate.key)

    def _small_check(self, peer: Peer) -> str | None:
        """A peer that compiles is checked at the timed shapes alone: each check compiles anew."""
        key = (peer.name, self.case.variant.name)
        if key not in self.checks:
            self.checks[key] = (
                None
                if peer.compiles
                else agreement.check_small(peer, [self.case.variant], self.device.torch)
            )
        return self.checks[key]

    def _run(self, loss: Loss, pair: Pair) -> Outcome:
        return agreement.run(loss, pair, self.case.variant)

    def _wrong(self, peer: Peer, outcome: Outcome, truths: Truths) -> str | None:
        try:
            true = truths.of(peer.mathematics)
        except torch.OutOfMemoryError:
            return "not timed, as not checked: its float64 truth does not fit into memory"
        return agreement.check_timed(outcome, true, self.case.variant)

    def _call_seconds(self, candidate: Candidate, turns: Iterator[Pair]) -> float:
        pair = next(turns)
        return self.device.call_seconds(lambda: self._run(candidate.loss, pair))

    def _replay_seconds(self, candidate: Candidate) -> float:
        return self.device.replay_seconds(candidate.replay)

    def _capture(self, candidate: Candidate, pair: Pair, truths: Truths) -> None:
        """A graph of the pass, its replay held against the truth; or why there is none."""
        key, peer = graph_key(candidate), candidate.peer
        if candidate.estimate >= HIDDEN:
            candidate.graph_problem = (
                f"not captured: launches are a small part of {candidate.estimate * 1e3:.0f} ms"
            )
            return
        if key in self.lost:
            candidate.graph_problem = self.lost[key]
            return
        self.journal.start(key)
        try:
            candidate.replay, outcome = self.device.capture(self._graph_action(candidate, pair))
            candidate.replay()
            candidate.graph_problem = self._wrong(peer, outcome, truths)
            del outcome
        except NoGraphError as error:
            candidate.graph_problem = str(error)
        if candidate.graph_problem is not None:
            candidate.replay = None
            self.device.new_graphs()  # torch refuses a pool whose only graph is gone
        self.journal.end(key)

    def _graph_action(self, candidate: Candidate, pair: Pair) -> Callable[[], Outcome]:
        peer, case = candidate.peer, self.case
        loss = candidate.loss
        if peer.build_for_graph is not None:
            with self.device.torch:
                loss = peer.build_for_graph(case.n, case.d, case.variant.dtype)
            with time_limit(
                self.compile_seconds, f"compilation took more than {self.compile_seconds} s"
            ):
                self._run(loss, pair)
        return lambda: self._run(loss, leaves(pair))

    def _sample(
        self, candidates: list[Candidate], seconds: Callable[[Candidate], float], where: str
    ) -> None:
        """Takes turns in shuffled order and appends the times to the attribute `where`."""
        sound = {each.key: each for each in candidates if each.problem is None}
        if not sound:
            return
        counts = {key: self._count(each.estimate) for key, each in sound.items()}
        self.journal.start(f"{self.case} samples")
        gc.collect()
        gc.disable()
        try:
            for keys in schedule(counts):
                for key in keys:
                    self._guarded(sound[key], key, self._take, seconds, where)
        finally:
            gc.enable()
            # Whatever is raised here has been blamed on its peer: the case is not to blame.
            self.journal.end(f"{self.case} samples")

    def _take(
        self, candidate: Candidate, seconds: Callable[[Candidate], float], where: str
    ) -> None:
        if where == "called" and self.device.crowded():
            # Another peer's cached blocks fill the memory; asking for it anew is not to be timed.
            seconds(candidate)
        getattr(candidate, where).append(seconds(candidate))

    def _count(self, estimate: float) -> int:
        if estimate >= LONG and self.budget.repeats is None:
            return FEWEST_LONG
        return self.budget.count(estimate)


def leaves(pair: Pair) -> Pair:
    """The same memory as new leaves: autograd ties a leaf to the stream that it was first used on,
    which a capture on another stream does not survive."""
    z_a, z_b = (z.detach().requires_grad_() for z in pair)
    return z_a, z_b


def graph_key(candidate: Candidate) -> str:
    """What the journal calls the capture of a candidate."""
    return f"{candidate.key} graph"


@contextlib.contextmanager
def time_limit(seconds: float | None, message: str) -> Iterator[None]:
    """TimeoutError with `message` if the body takes longer; None and other threads: no limit.

    The error comes when Python runs again in the main thread, so a body that waits in native code
    is overdue until it returns.
    """
    if seconds is None or threading.current_thread() is not threading.main_thread():
        yield
        return

    def late(*_: object) -> None:
        raise TimeoutError(message)

    before = signal.signal(signal.SIGALRM, late)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
