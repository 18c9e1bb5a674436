"""The peers: found, named, derived under torch.compile, and each checked against what it states."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import fields, replace
from pathlib import Path
from types import ModuleType

import pytest
import torch

from bench import agreement, peers
from bench.inputs import FP64, VARIANTS, Case, random_pair
from bench.peers import DEFAULT_ON_CUDA, Peer, choose, compiled, discover, libraries
from bench.peers.peer import LAMBD, PAPER, Mathematics

KNOWN = discover()
EAGER = [peer for peer in KNOWN.values() if not peer.compiles]
OTHERS = [peer for peer in EAGER if not peer.ours]
FP32 = VARIANTS["fp32"]
# Those of libraries that are measured themselves where they are installed.
FORMULAS = [
    KNOWN[name] for name in ("lightly-formula", "monai-formula", "stable-pretraining-formula")
]


@pytest.fixture
def peer(request):
    """An eager peer that can run here."""
    reason = request.param.unavailable()
    if reason is not None and request.param not in FORMULAS:
        pytest.skip(reason)
    return request.param


def each(known):
    return pytest.mark.parametrize("peer", known, ids=[p.name for p in known], indirect=True)


@each(EAGER)
def test_each_peer_agrees_with_its_mathematics(peer):
    assert agreement.check_small(peer, list(VARIANTS.values())) is None


@each(EAGER)
def test_each_peer_agrees_at_a_timed_shape(peer):
    for n, d in ((16, 48), (48, 16)):
        for variant in VARIANTS.values():
            pair = random_pair(n, d, variant.dtype, torch.Generator().manual_seed(0))
            outcome = agreement.run(peer.build(n, d, variant.dtype), pair, variant)
            true = agreement.truth(pair, peer.mathematics)
            assert agreement.check_timed(outcome, true, variant) is None


WRONG = {
    "unbiased": lambda m: not m.unbiased,
    "eps": lambda m: m.eps + 1e-3,
    "eps_on": lambda m: "deviation" if m.eps_on == "variance" else "variance",
    "shared": lambda m: not m.shared,
    "lambd": lambda m: m.lambd * 1.0001,
    "factor": lambda m: m.factor * 1.0001,
    "circular_groups": lambda m: m.circular_groups + 1,
}


@pytest.mark.parametrize("name", WRONG)
@each([KNOWN[n] for n in ("gram-plain", "monai-formula", "solo-learn", "vissl", "fft")])
def test_a_peer_with_another_statement_is_refused(peer, name):
    wrong = replace(peer.mathematics, **{name: WRONG[name](peer.mathematics)})
    if name == "eps_on":  # so small an eps makes no difference in either place
        wrong = replace(wrong, eps=1e-3)
        fitting = replace(peer.mathematics, eps=1e-3)
        pair = random_pair(24, 72, torch.float64, torch.Generator().manual_seed(1))
        outcome = agreement.run(fitting.loss, pair, FP64)
        assert agreement.check_timed(outcome, agreement.truth(pair, fitting), FP64) is None
        assert "off by" in agreement.check_timed(outcome, agreement.truth(pair, wrong), FP64)
    assert "off by" in agreement.check_small(replace(peer, mathematics=wrong), [FP32])


def test_every_parameter_of_the_mathematics_has_been_wrong_once():
    assert set(WRONG) == {each.name for each in fields(Mathematics)}


def test_what_is_not_exact_says_so():
    for kind in ("cpu", "cuda"):
        for peer in discover(kind).values():
            assert peer.exact == (peer.mathematics.circular_groups == 0), peer.name
            assert peer.exact or "not exact" in peer.title
    relaxed = [peer.name for peer in KNOWN.values() if not peer.exact]
    assert relaxed == ["fft", "fft-compiled", "fft-grouped", "fft-grouped-compiled"]


def test_the_relaxation_is_another_loss_than_the_paper_s():
    peer = replace(KNOWN["fft"], mathematics=PAPER)
    assert "off by" in agreement.check_small(peer, [FP32])


def test_what_is_not_exact_is_checked_before_it_is_timed(measure):
    def build(n, d, dtype):
        right = KNOWN["fft"].build(n, d, dtype)
        return right if (n, d) in agreement.SMALL_SHAPES else lambda a, b: 1.1 * right(a, b)

    wrong = replace(KNOWN["fft"], name="wrong", build=build)
    session, rows, _ = measure([wrong, KNOWN["fft"]], [Case(16, 32, FP32)])
    assert list(session.failures) == ["16x32 fp32 wrong"]
    assert "16 x 32" in session.failures["16x32 fp32 wrong"]
    assert [row["median_ms"] is None for row in rows] == [True, False]
    assert not rows[1]["exact"]


@pytest.mark.parametrize("kind", ["cpu", "cuda"])
def test_names_and_titles_are_unique_and_ours_comes_first(kind):
    known = discover(kind)
    assert [peer.name for peer in known.values()] == list(known)
    assert len({peer.title for peer in known.values()}) == len(known)
    assert len({peer.source for peer in known.values()}) == len(known)
    assert list(known)[:2] == ["ours", "ours-aten"]
    assert list(known)[2:] == sorted(list(known)[2:])


@pytest.mark.parametrize("kind", ["cpu", "cuda"])
def test_every_other_peer_has_a_compiled_form(kind):
    known = discover(kind)
    eager = [peer for peer in known.values() if not peer.compiles]
    for peer in eager:
        name = peer.compiled_name or f"{peer.name}-compiled"
        assert (name in known) == (not peer.ours)
        if name not in known:
            continue
        derived = known[name]
        assert derived.compiles
        assert derived.source.startswith("torch.compile (torch ")
        assert derived.source.endswith(f"of {peer.source}")
        assert (derived.mathematics, derived.exact) == (peer.mathematics, peer.exact)
        assert ("max-autotune" in derived.source) == (kind == "cuda")
        assert (derived.build_for_graph is not None) == (kind == "cuda")
    assert len(known) == 2 * len(eager) - 2


def test_derived_names_are_those_of_the_results():
    assert {"official-compiled", "gram-compiled"} <= set(KNOWN)
    assert KNOWN["official-compiled"].title == "official, compiled"
    assert KNOWN["gram-compiled"].title == "Gram form, compiled"


def test_on_cuda_kernels_are_tuned_and_built_again_for_graphs(monkeypatch):
    calls = []

    def compile_(loss, **options):
        calls.append(options)
        return loss

    monkeypatch.setattr(torch, "compile", compile_)
    derived = discover("cuda")["gram-compiled"]
    pair = random_pair(4, 8, torch.float32, torch.Generator().manual_seed(0))
    for build in (derived.build, derived.build_for_graph):
        assert build(4, 8, torch.float32)(*pair).ndim == 0
    discover("cpu")["gram-compiled"].build(4, 8, torch.float32)
    assert calls == [
        {"dynamic": False, "mode": "max-autotune"},
        {"dynamic": False, "mode": "max-autotune-no-cudagraphs"},
        {"dynamic": False},
    ]


PRODUCTS = {"matmul", "einsum", "mm", "rfft", "fft_rfft"}


@each(OTHERS)
def test_what_takes_the_time_is_compiled_and_not_left_to_eager_mode(peer, monkeypatch):
    """Captured as for torch.compile, run by the interpreter of graphs: inductor takes seconds."""
    seen, plain = set(), torch.compile

    def backend(graph, inputs):
        seen.update(getattr(node.target, "__name__", node.target) for node in graph.graph.nodes)
        return graph.forward

    monkeypatch.setattr(torch, "compile", lambda loss, **_: plain(loss, backend=backend))
    torch._dynamo.reset()
    derived = compiled.compiled(peer, "cpu")
    assert agreement.check_small(derived, [FP32]) is None
    assert seen & PRODUCTS, seen


@pytest.mark.skipif(compiled.why_no_compiler("cpu") is not None, reason="no C++ compiler")
def test_a_compiled_peer_agrees_on_the_one_shape_that_it_is_checked_on(monkeypatch):
    shapes = []

    def build(n, d, dtype):
        shapes.append((n, d, dtype))
        return KNOWN["gram-compiled"].build(n, d, dtype)

    peer = replace(KNOWN["gram-compiled"], build=build)
    assert agreement.check_small(peer, [FP32]) is None
    assert shapes == [(*agreement.SMALL_SHAPES[0], torch.float64)]
    assert agreement.check_small(replace(peer, double=False), [FP32]) is None
    assert len(shapes) == 1


def test_a_compiled_form_that_fails_is_named_and_stops_nothing(measure, monkeypatch):
    def refuses(loss, **options):
        raise RuntimeError("this cannot be compiled")

    monkeypatch.setattr(torch, "compile", refuses)
    monkeypatch.setattr(compiled, "why_no_compiler", lambda kind: None)
    session, rows, _ = measure(choose("gram-compiled,gram-plain"), [Case(16, 32, FP32)])
    assert list(session.failures) == ["16x32 fp32 gram-compiled"]
    assert "this cannot be compiled" in session.failures["16x32 fp32 gram-compiled"]
    assert [(row["peer"], row["median_ms"] is None) for row in rows] == [
        ("gram-compiled", True), ("gram-plain", False),
    ]  # fmt: skip


def test_reasons_name_what_is_missing(monkeypatch):
    monkeypatch.setattr(libraries.provenance, "missing", "{} is not installed".format)
    monkeypatch.setattr(compiled.shutil, "which", lambda name: None)
    known = discover()
    assert known["monai"].unavailable() == "monai is not installed (pip install monai)"
    assert "pip install stable-pretraining" in known["stable-pretraining"].unavailable()
    assert "pip install catalyst" in known["catalyst"].unavailable()
    assert "barlow-fast[bench]" in known["lightly"].unavailable()
    assert known["monai-compiled"].unavailable() == known["monai"].unavailable()
    assert "C++ compiler" in known["official-compiled"].unavailable()
    assert "compiler" in compiled.why_no_compiler("cuda") or "Triton" in compiled.why_no_compiler(
        "cuda"
    )
    for peer in FORMULAS:
        assert peer.unavailable() is None
    monkeypatch.setattr(libraries.provenance, "missing", lambda module: None)
    for peer in FORMULAS:
        assert "itself is installed" in peer.unavailable()


def test_nothing_heavy_is_imported_to_find_the_peers():
    code = (
        "import sys; from bench.peers import discover; "
        "[peer.unavailable() for kind in ('cpu', 'cuda') for peer in discover(kind).values()]; "
        "print([name for name in ('lightly', 'monai', 'stable_pretraining', 'catalyst', "
        "'torchvision') if name in sys.modules])"
    )
    root = Path(peers.__file__).resolve().parents[2]
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=root)
    assert found.stdout.strip() == "[]", found.stderr


def test_a_file_is_all_that_a_peer_takes(monkeypatch):
    added = ModuleType("bench.peers.example")
    plain = replace(KNOWN["gram-plain"], compiled_name=None, compiled_title=None)
    added.PEERS = (replace(plain, name="example", title="Example"),)
    real = list(peers.pkgutil.iter_modules(peers.__path__))
    monkeypatch.setitem(sys.modules, "bench.peers.example", added)
    entry = real[0]._replace(name="example")
    monkeypatch.setattr(peers.pkgutil, "iter_modules", lambda path: [*real, entry])
    assert {"example", "example-compiled"} == set(discover()) - set(KNOWN)
    assert [peer.title for peer in choose("example-compiled")] == ["Example, compiled"]


def test_gpu_machines_have_a_default_and_all_on_request():
    known = discover("cuda")
    assert set(DEFAULT_ON_CUDA) <= set(known)
    assert [peer.name for peer in choose(None, "cuda")] == list(DEFAULT_ON_CUDA)
    assert [peer.name for peer in choose("all", "cuda")] == list(known)
    assert [peer.name for peer in choose(None)] == list(KNOWN)
    assert [peer.name for peer in choose("vissl-compiled", "cuda")] == ["vissl-compiled"]


def test_groups_that_do_not_divide_the_columns_are_refused():
    pair = random_pair(8, 10, torch.float32, torch.Generator().manual_seed(0))
    with pytest.raises(ValueError, match=r"D = 10 is not a multiple of 4 groups"):
        KNOWN["fft-grouped"].build(8, 10, torch.float32)(*pair)


def test_lambda_is_matched_everywhere():
    for peer in KNOWN.values():
        assert peer.mathematics.lambd == pytest.approx(LAMBD, rel=1e-7), peer.name


def test_a_peer_is_the_paper_s_unless_it_says_otherwise():
    peer = Peer("name", "title", "source", lambda n, d, dtype: PAPER.loss)
    assert peer.mathematics == PAPER
    assert peer.exact
    assert agreement.check_small(peer, [FP32]) is None
