"""One shape and dtype on one device: every peer checked, called in turns, and replayed where the
device captures graphs.

Nothing a peer does stops the others: what it raises becomes its `problem`. The exception is a
broken CUDA context, which no later call in the process survives: DeviceLostError, with the peer's
name in the journal so that the next process leaves it out.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import torch

from bench import agreement, devices
from bench.agreement import Outcome, Truths
from bench.devices import GRAPH, WHOLE, DeviceLostError, NoGraphError
from bench.inputs import Case, Grid, Pair, Shape, rotation
from bench.peers import Loss, Peer
from bench.peers.peer import PAPER
from bench.session import Session
from bench.timing import Budget, schedule, warm_up, without_collections

LONG = 1.0  # seconds; longer calls are not warmed up
LONGEST = 15.0  # seconds of one call
HIDDEN = 0.02  # seconds of a call from which its launches are too small a part to matter

Times = dict[str, float]


@dataclass(frozen=True)
class Settings:
    """How much is measured.

    Attributes:
        budget: calls, and again replays, of each peer.
        longest: seconds; another's peer that takes longer is not tried at larger shapes.
        compiled: the grid of shapes at which peers take part that compile; None for all shapes.
    """

    budget: Budget
    longest: float = LONGEST
    compiled: Grid | None = None

    def some(self, known: Sequence[Peer], case: Case) -> list[Peer]:
        """The peers that take part in a case."""
        compiles = self.compiled is None or self.compiled.compiles(case)
        return [peer for peer in known if compiles or not peer.compiles]


class Known:
    """What is kept from group to group: small checks by (peer, variant), and the shapes at which a
    peer ran out of memory or patience: larger ones are not tried."""

    def __init__(self) -> None:
        self.checks: dict[tuple[str, str], str | None] = {}
        self._too_large: dict[tuple[str, str], list[tuple[Shape, str]]] = {}

    def too_large(self, peer: Peer, case: Case, reason: str) -> None:
        """Larger cases are not tried."""
        found = self._too_large.setdefault((peer.name, case.variant.name), [])
        found.append(((case.n, case.d), reason))

    def reason(self, peer: Peer, case: Case) -> str | None:
        """None, or why a peer is not tried in a case."""
        for (n, d), reason in self._too_large.get((peer.name, case.variant.name), ()):
            if case.n >= n and case.d >= d:
                return f"not tried, as at {n} x {d}: {reason}"
        return None


@dataclass
class Candidate:
    """One peer in one case, with all that is found out about it.

    Attributes:
        samples: seconds by measure, such as `devices.WHOLE`.
        early: how many of them were taken while it was prepared.
        wrong: whether `problem` is of the peer, rather than of memory or time.
    """

    peer: Peer
    key: str
    problem: str | None = None
    graph_problem: str | None = None
    wrong: bool = False
    loss: Loss | None = None
    estimate: float = 0.0
    early: int = 0
    replay: Callable[[], None] | None = None
    samples: dict[str, list[float]] = field(default_factory=dict)

    def fail(self, problem: str, wrong: bool = False) -> None:
        """It is out, and its state is given back."""
        self.problem, self.wrong, self.loss, self.replay = problem, wrong, None, None

    def add(self, times: Times) -> None:
        """One sample."""
        for measure, seconds in times.items():
            self.samples.setdefault(measure, []).append(seconds)


class Group:
    """Measures the candidates of one case."""

    def __init__(self, case: Case, session: Session, settings: Settings, known: Known) -> None:
        self.case, self.settings, self.known = case, settings, known
        self.device, self.journal, self.lost = session.device, session.journal, session.journal.lost

    def measure(self, peers: Sequence[Peer]) -> list[Candidate]:
        """All peers, those with problems too. Their losses and graphs are given back."""
        candidates = [Candidate(peer, f"{self.case} {peer.name}") for peer in peers]
        with self.device.memory_limit(), self.case.variant.products():
            self._measure(candidates)
        for candidate in candidates:
            candidate.loss = candidate.replay = None
        self._forget_compiled(candidates)
        return candidates

    def _measure(self, candidates: list[Candidate]) -> None:
        reason = self.lost.get(f"{self.case} samples")
        pairs, truths = ([], None) if reason else self._inputs()
        if truths is None:
            for candidate in candidates:
                candidate.fail(reason or "inputs and float64 truth do not fit into memory")
            return
        self._forget_compiled(candidates)
        self.device.new_graphs()
        for candidate in candidates:
            self._guarded(candidate, candidate.key, lambda c: self._prepare(c, pairs[0], truths))
            self.device.release()
        turns = itertools.cycle(pairs)
        self._sample(candidates, lambda candidate: self._call(candidate, next(turns)))
        if GRAPH in self.device.measures:
            for candidate in candidates:
                self._guarded(
                    candidate, graph_key(candidate), lambda c: self._capture(c, pairs[0], truths)
                )
            del truths
            self._sample([each for each in candidates if each.replay], self._replay)

    def _forget_compiled(self, candidates: Sequence[Candidate]) -> None:
        """All shapes share code objects, of which dynamo compiles a few specialisations each; and
        compiled losses keep the memory of their graphs."""
        if any(candidate.peer.compiles for candidate in candidates):
            torch._dynamo.reset()

    def _inputs(self) -> tuple[list[Pair], Truths | None]:
        n, d, variant = self.case.n, self.case.d, self.case.variant
        try:
            pairs = rotation(n, d, variant.dtype, self.device.cache_bytes, self.device.torch)
            truths = Truths(pairs[0])
            truths.of(PAPER)
            return pairs, truths
        except (RuntimeError, MemoryError) as error:
            if not devices.out_of_memory(self.device.problem(error)):
                raise
        self.device.release()
        return [], None

    def _guarded(self, candidate: Candidate, key: str, step: Callable[[Candidate], None]) -> None:
        """Runs a step of a candidate that has no problem yet, in the journal by `key`."""
        if candidate.problem is None:
            with self.journal.entry(key):
                self._try(candidate, key, step)

    def _try(self, candidate: Candidate, key: str, step: Callable[[Candidate], None]) -> None:
        """Runs a step; whatever it raises is the candidate's problem."""
        try:
            step(candidate)
            return
        except Exception as error:  # whatever a peer raises, the others are still to be timed
            problem = candidate.problem or self.device.problem(error)
        memory = devices.out_of_memory(problem)
        candidate.fail(problem, wrong=not memory)
        try:
            self.device.check_alive()
        except DeviceLostError:
            self.journal.lose(key, problem)
            raise
        if memory:
            self.known.too_large(candidate.peer, self.case, problem)
        self.device.release()

    def _prepare(self, candidate: Candidate, pair: Pair, truths: Truths) -> None:
        """Checks the peer, builds its loss, holds its first result against the truth, warms up."""
        peer, case = candidate.peer, self.case
        reason = self.lost.get(candidate.key) or self.known.reason(peer, case)
        if reason is not None:
            candidate.fail(reason, wrong=candidate.key in self.lost)
            return
        problem, first = self._small_check(peer), 0.0
        if problem is None:
            candidate.loss = agreement.built(peer, case.n, case.d, case.variant, self.device.torch)
            times, outcome = self._timed(candidate.loss, pair)
            first = times[WHOLE]
            problem = self._wrong(peer, outcome, truths)
            del outcome
        if problem is not None:
            candidate.fail(problem, wrong=True)
            self.device.check_alive()
        elif first >= LONG and not (peer.compiles or self.device.first_call_compiles):
            # What takes so long gains nothing from warming up: that is its first sample.
            candidate.estimate, candidate.early = first, 1
            candidate.add(times)
        else:
            candidate.estimate = warm_up(lambda: self._call(candidate, pair)[WHOLE], LONG)
        if candidate.estimate > self.settings.longest and not peer.ours:
            reason = f"one call took {candidate.estimate:.0f} s"
            self.known.too_large(peer, case, reason)

    def _small_check(self, peer: Peer) -> str | None:
        """A peer that compiles is checked at the timed shapes alone: each check compiles anew."""
        key = (peer.name, self.case.variant.name)
        if key not in self.known.checks:
            self.known.checks[key] = (
                None
                if peer.compiles
                else agreement.check_small(peer, [self.case.variant], self.device.torch)
            )
        return self.known.checks[key]

    def _timed(self, loss: Loss, pair: Pair) -> tuple[Times, Outcome]:
        variant = self.case.variant
        return self.device.timed(
            lambda: agreement.forward(loss, pair, variant),
            lambda value: agreement.backward(value, pair, variant),
        )

    def _call(self, candidate: Candidate, pair: Pair) -> Times:
        if self.device.crowded():
            # Another peer's cached blocks fill the memory; allocating it again must not be timed.
            self._timed(candidate.loss, pair)
        return self._timed(candidate.loss, pair)[0]

    def _replay(self, candidate: Candidate) -> Times:
        return {GRAPH: self.device.replay_seconds(candidate.replay)}

    def _wrong(self, peer: Peer, outcome: Outcome, truths: Truths) -> str | None:
        try:
            true = truths.of(peer.mathematics)
        except torch.OutOfMemoryError:
            return "not timed, as not checked: its float64 truth does not fit into memory"
        problem = agreement.check_timed(outcome, true, self.case.variant)
        return problem and f"{self.case.n} x {self.case.d} {problem}"

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

    def _graph_action(self, candidate: Candidate, pair: Pair) -> Callable[[], Outcome]:
        peer, case = candidate.peer, self.case
        loss = candidate.loss
        if peer.build_for_graph is not None:
            with self.device.torch:
                loss = peer.build_for_graph(case.n, case.d, case.variant.dtype)
            agreement.run(loss, pair, case.variant)
        return lambda: agreement.run(loss, leaves(pair), case.variant)

    def _sample(self, candidates: list[Candidate], take: Callable[[Candidate], Times]) -> None:
        """Takes turns in shuffled order and adds the times."""
        sound = {each.key: each for each in candidates if each.problem is None}
        if not sound:
            return
        counts = {
            key: max(self.settings.budget.count(each.estimate) - each.early, 1)
            for key, each in sound.items()
        }
        # What is raised here is blamed on its peer; what ends the process, on the case.
        with self.journal.entry(f"{self.case} samples"), without_collections():
            for key in itertools.chain.from_iterable(schedule(counts)):
                if sound[key].problem is None:
                    self._try(sound[key], key, lambda each: each.add(take(each)))


def leaves(pair: Pair) -> Pair:
    """The same memory as new leaves: autograd ties a leaf to the stream that it was first used on,
    which a capture on another stream does not survive."""
    z_a, z_b = (z.detach().requires_grad_() for z in pair)
    return z_a, z_b


def graph_key(candidate: Candidate) -> str:
    """What the journal calls the capture of a candidate."""
    return f"{candidate.key} graph"
