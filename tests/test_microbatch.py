"""Gradients by micro-batches against those of the whole batch at once."""

from __future__ import annotations

import contextlib
import copy
import weakref
from collections.abc import Callable
from functools import partial

import pytest
import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from barlow_fast import (
    BarlowTwinsLoss,
    barlow_twins_loss,
    frossl_loss,
    mixed_barlow_twins_loss,
    vicreg_loss,
)
from barlow_fast.microbatch import backward_in_microbatches

N, SIZE, D = 11, 6, 8
criterion = BarlowTwinsLoss(lambd=0.1)


class Twins(nn.Module):
    """Both views in one call, one after the other."""

    def __init__(self, encoder: nn.Module) -> None:
        super().__init__()
        self.encoder = encoder
        self.calls: list[int] = []

    def forward(self, a: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
        self.calls.append(len(a))
        return self.encoder(a), self.encoder(b)


def encoder(norm: str = "group", dropout: float = 0.0) -> nn.Sequential:
    norms = {
        "group": (nn.GroupNorm(2, 4), nn.LayerNorm(16)),
        "batch": (nn.BatchNorm2d(4), nn.BatchNorm1d(16)),
    }[norm]
    with torch.random.fork_rng():
        torch.manual_seed(1)
        return nn.Sequential(
            nn.Conv2d(2, 4, 3), norms[0], nn.ReLU(), nn.AdaptiveAvgPool2d(2), nn.Flatten(),
            nn.Linear(16, 16), norms[1], nn.Dropout(dropout), nn.GELU(), nn.Linear(16, D),
        ).double()  # fmt: skip


def views(n: int = N) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(2)
    a = torch.randn(n, 2, SIZE, SIZE, dtype=torch.float64, generator=generator)
    return a, a + 0.5 * torch.randn(a.shape, dtype=torch.float64, generator=generator)


def plain(model: nn.Module, pair: tuple[Tensor, ...], loss=criterion) -> Tensor:
    result = loss(*model(*pair))
    result.backward()
    return result.detach()


def assert_same_gradients(found: nn.Module, wanted: nn.Module, bound: float = 1e-12) -> None:
    """Relative to the largest, so that a gradient that is zero by symmetry may be rounding."""
    largest = max(float(p.grad.norm()) for p in wanted.parameters())
    assert largest > 1e-3
    for (name, p), q in zip(found.named_parameters(), wanted.parameters(), strict=True):
        assert float((p.grad - q.grad).norm()) <= bound * largest, name


def whole_batch(model: nn.Module) -> None:
    plain(model, views())


def explicit(model: nn.Module, pair: tuple[Tensor, Tensor] | None = None) -> None:
    """The statistics of micro-batches of 4, with the graphs of all at once in memory."""
    parts = [model(a, b) for a, b in zip(*(v.split(4) for v in pair or views()), strict=True)]
    criterion(*(torch.cat(z) for z in zip(*parts, strict=True))).backward()


def assert_as(by_hand: Callable[[nn.Module], None], model: nn.Module) -> nn.Module:
    """Micro-batches of 4 have the gradients of a copy that `by_hand` differentiates."""
    expected = copy.deepcopy(model)
    by_hand(expected)
    backward_in_microbatches(model, views(), criterion, 4)
    assert_same_gradients(model, expected)
    return expected


@pytest.mark.parametrize("size", [1, 2, 4, 5, 10, 11, 99])
def test_the_gradient_of_the_whole_batch(size):
    model = Twins(encoder())
    whole = copy.deepcopy(model)
    want = plain(whole, views())
    loss = backward_in_microbatches(model, views(), criterion, size)
    assert not loss.requires_grad
    assert abs(float(loss - want)) <= 1e-12 * float(want)
    assert_same_gradients(model, whole)
    # None of a single sample, unless that was requested.
    count = 5 if size == 2 else -(-N // size)
    parts = [N // count + (part < N % count) for part in range(count)]
    assert model.calls == (parts * 2 if len(parts) > 1 else [N])


def test_gradients_are_added_to_those_that_are_there():
    model, whole = Twins(encoder()), Twins(encoder())
    for _ in range(2):
        plain(whole, views())
        backward_in_microbatches(model, views(), criterion, 4)
    assert_same_gradients(model, whole)


def test_terms_come_back_and_one_view_models_are_called_as_reported():
    single = encoder()
    whole = Twins(copy.deepcopy(single))
    want, terms = criterion(*whole(*views()), return_terms=True)
    want.backward()
    loss, found = backward_in_microbatches(
        single,
        list(views()),
        partial(criterion, return_terms=True),
        4,
        call=lambda a, b: (single(a), single(b)),
    )
    assert float(loss) == pytest.approx(float(want.detach()), rel=1e-12)
    assert float(found.off_diagonal) == pytest.approx(float(terms.off_diagonal), rel=1e-12)
    assert_same_gradients(single, whole.encoder)


def test_one_view_and_one_tensor():
    model, whole = encoder(), encoder()
    (view, _), loss = views(), lambda z: z.square().mean().sqrt()
    loss(whole(view)).backward()
    backward_in_microbatches(model, (view,), loss, 4)
    assert_same_gradients(model, whole)


def test_parameters_of_the_criterion_and_views_get_their_gradients_once():
    class Weighted(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight = nn.Parameter(torch.tensor(0.3, dtype=torch.float64))

        def forward(self, a: Tensor, b: Tensor) -> Tensor:
            return self.weight * criterion(a, b)

    found, wanted = Weighted(), Weighted()
    pairs = [tuple(v.requires_grad_() for v in views()) for _ in range(2)]
    backward_in_microbatches(Twins(encoder()), pairs[0], found, 4)
    plain(Twins(encoder()), pairs[1], wanted)
    assert float(found.weight.grad) == pytest.approx(float(wanted.weight.grad), rel=1e-12)
    for got, want in zip(*pairs, strict=True):
        assert torch.allclose(got.grad, want.grad, rtol=1e-10, atol=1e-12)


class Drawn(nn.Module):
    """Remembers the noise it drew."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner, self.noise = inner, []

    def forward(self, a: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
        self.noise.append(torch.rand(()))
        return self.inner(a), self.inner(b)


GPU = pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")


@pytest.mark.parametrize("device", ["cpu", pytest.param("cuda", marks=[pytest.mark.gpu, GPU])])
def test_dropout_is_the_same_in_both_passes(device: str):
    """Against a whole batch whose masks are those of the micro-batches, concatenated."""
    model = Drawn(encoder(dropout=0.5)).to(device)
    whole = copy.deepcopy(model)
    pair = tuple(v.to(device) for v in views())
    torch.manual_seed(7)
    explicit(whole, pair)
    next_number = torch.rand((), device=device)
    torch.manual_seed(7)
    backward_in_microbatches(model, pair, criterion, 4)
    assert_same_gradients(model, whole)
    assert model.noise[:3] == model.noise[3:] == whole.noise
    assert len(set(map(float, whole.noise))) == 3
    assert torch.equal(torch.rand((), device=device), next_number)


def test_random_numbers_of_the_criterion_are_not_drawn_again():
    drawn = []

    def noisy(a: Tensor, b: Tensor) -> Tensor:
        drawn.append(torch.rand(()))
        return criterion(a, b)

    backward_in_microbatches(Twins(encoder(dropout=0.5)), views(), noisy, 4)
    assert float(torch.rand(())) not in map(float, drawn)


def test_batch_norm_is_that_of_the_micro_batches():
    model = Twins(encoder("batch"))
    model.register_buffer("untouched", torch.ones(3))
    by_hand, whole = copy.deepcopy(model), copy.deepcopy(model)
    for _ in range(2):
        explicit(by_hand)
        backward_in_microbatches(model, views(), criterion, 4)
        plain(whole, views())
    assert_same_gradients(model, by_hand)
    buffers = dict(model.named_buffers())
    assert int(buffers["encoder.1.num_batches_tracked"]) == 2 * 2 * 3
    for name, buffer in by_hand.named_buffers():
        assert torch.equal(buffers[name], buffer), name
    # The documented difference from the whole batch.
    with pytest.raises(AssertionError):
        assert_same_gradients(model, whole, 1e-3)


def test_batch_norm_in_evaluation_is_exact():
    assert_as(whole_batch, Twins(encoder("batch")).eval())


class Exchanged(nn.Module):
    """Puts a new tensor in the place of its buffer, and its output depends on it."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = encoder()
        self.register_buffer("count", torch.zeros((), dtype=torch.float64))

    def forward(self, a: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
        self.count = self.count + 1
        return self.inner(a * self.count), self.inner(b)


def test_outputs_that_depend_on_buffers_and_buffers_that_are_exchanged():
    model = Exchanged()
    by_hand = assert_as(explicit, model)
    assert float(model.count) == float(by_hand.count) == 3


def test_spectral_norm():
    model = Twins(encoder())
    model.encoder[5] = nn.utils.parametrizations.spectral_norm(model.encoder[5])
    assert_as(explicit, model)


def test_buffers_are_put_back_if_the_first_pass_fails():
    model = Twins(encoder("batch"))
    before = copy.deepcopy(model.state_dict())
    with pytest.raises(ValueError, match=r"micro_batch_size 1 leaves a micro-batch of one .*of 11"):
        backward_in_microbatches(model, views(), criterion, 1)
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())
    assert all(p.grad is None for p in model.parameters())


def test_gradient_checkpointing_inside():
    class Checkpointed(Twins):
        def forward(self, a, b):
            return tuple(checkpoint(self.encoder, v, use_reentrant=False) for v in (a, b))

    model = Checkpointed(encoder(dropout=0.5))
    by_hand = Twins(copy.deepcopy(model.encoder))
    torch.manual_seed(3)
    explicit(by_hand)
    torch.manual_seed(3)
    backward_in_microbatches(model, views(), criterion, 4)
    assert_same_gradients(model, by_hand)


class Alive:
    """Bytes that graphs hold, now and at most."""

    def __init__(self) -> None:
        self.now = self.most = 0

    def pack(self, tensor: Tensor) -> list[Tensor]:
        class Held(list):
            pass

        held, size = Held([tensor]), tensor.numel() * tensor.element_size()
        self.now += size
        self.most = max(self.most, self.now)
        weakref.finalize(held, self.release, size)
        return held

    def release(self, size: int) -> None:
        self.now -= size


def most_held(run) -> int:
    alive = Alive()
    with torch.autograd.graph.saved_tensors_hooks(alive.pack, lambda held: held[0]):
        run()
    assert alive.now == 0
    return alive.most


def test_the_graph_in_memory_is_that_of_a_micro_batch():
    pair = views(64)
    whole = most_held(lambda: plain(Twins(encoder()), pair))
    parts = most_held(lambda: backward_in_microbatches(Twins(encoder()), pair, criterion, 4))
    one = most_held(lambda: plain(Twins(encoder()), tuple(v[:4] for v in pair)))
    embeddings = 2 * 64 * D * 8
    assert parts <= one + 4 * embeddings
    assert parts < whole / 5


@pytest.mark.parametrize("given", ["instance", "function", "around"])
def test_autocast(given):
    """The gradient of the same forward passes in bfloat16, whose rounding does not depend on the
    rest of the batch."""
    model = Twins(encoder()).float()
    by_hand = copy.deepcopy(model)
    pair = tuple(v.float() for v in views(12))
    types = []

    def seen(a: Tensor, b: Tensor) -> Tensor:
        types.append((a.dtype, torch.is_autocast_enabled("cpu")))
        return criterion(a, b)

    with torch.autocast("cpu", torch.bfloat16):
        parts = [by_hand(a, b) for a, b in zip(*(v.split(4) for v in pair), strict=True)]
        want = criterion(*(torch.cat(z) for z in zip(*parts, strict=True)))
    want.backward()
    context = torch.autocast("cpu", torch.bfloat16)
    options = {"instance": {"autocast": context}, "around": {},
               "function": {"autocast": lambda: torch.autocast("cpu", torch.bfloat16)}}  # fmt: skip
    with context if given == "around" else contextlib.nullcontext():
        loss = backward_in_microbatches(model, pair, seen, 4, **options[given])
    assert types == [(torch.bfloat16, True)]
    assert float(loss) == pytest.approx(float(want.detach()), rel=1e-6)
    # Sums over micro-batches are rounded to bfloat16 once in the one and three times in the other.
    assert_same_gradients(model, by_hand, 0.02)
    assert all(p.grad.dtype == torch.float32 for p in model.parameters())


def test_float64_is_kept_under_autocast():
    found, whole = Twins(encoder()), Twins(encoder())
    with torch.autocast("cpu", torch.bfloat16):
        plain(whole, views())
        for size in (4, N):
            found.zero_grad()
            loss = backward_in_microbatches(found, views(), criterion, size)
            assert loss.dtype == torch.float64
            assert {p.grad.dtype for p in found.parameters()} == {torch.float64}
            assert_same_gradients(found, whole)


def test_the_scaler_scales():
    model = Twins(encoder())
    whole = copy.deepcopy(model)
    want_loss = plain(whole, views())
    for size in (4, N):
        model.zero_grad()
        scaler = torch.amp.GradScaler("cpu", init_scale=1024.0)
        optimizer = torch.optim.SGD(model.parameters(), lr=0.0)
        loss = backward_in_microbatches(model, views(), criterion, size, scaler=scaler)
        grad, want = model.encoder[0].weight.grad, whole.encoder[0].weight.grad
        assert float(grad.norm()) == pytest.approx(1024 * float(want.norm()), rel=1e-9)
        scaler.unscale_(optimizer)
        assert_same_gradients(model, whole)
        assert float(loss) == pytest.approx(float(want_loss), rel=1e-12)


@pytest.mark.slow
def test_a_compiled_model():
    model = Twins(encoder())
    whole = copy.deepcopy(model)
    plain(whole, views())
    compiled = torch.compile(model, backend="aot_eager")
    backward_in_microbatches(compiled, views(12)[:2], criterion, 4)
    model.zero_grad()
    backward_in_microbatches(compiled, views(), criterion, 4)
    assert_same_gradients(model, whole)


def test_embeddings_without_gradient_beside_others():
    """A target network's: the loss uses them, nothing goes back."""
    model = Twins(encoder())
    whole = copy.deepcopy(model)
    a, b = whole(*views())
    criterion(a, b.detach()).backward()

    def call(a: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
        return model.encoder(a), model.encoder(b).detach()

    backward_in_microbatches(model, views(), criterion, 4, call=call)
    assert_same_gradients(model, whole)


@pytest.mark.parametrize("size", [4, N])
def test_no_gradient_is_an_error(size):
    frozen = Twins(encoder()).requires_grad_(False)
    with pytest.raises(RuntimeError, match=r"all its parameters frozen"):
        backward_in_microbatches(frozen, views(), criterion, size)
    with pytest.raises(RuntimeError, match=r"criterion detaches it"):
        backward_in_microbatches(
            Twins(encoder()), views(), lambda a, b: criterion(a, b).detach(), size
        )


def test_bad_arguments_are_named():
    model, (a, b) = Twins(encoder()), views()
    for arguments, error, text in (
        ((model, (a, b), criterion, 0), ValueError, r"micro_batch_size must be at least 1, got 0"),
        ((model, (a, b), criterion, 2.0), TypeError, r"micro_batch_size must be an int, got 2\.0"),
        ((model, (a, b[:3]), criterion, 4), ValueError, r"same number .*\(11, .*\(3, "),
        ((model, (), criterion, 4), ValueError, r"got shapes \[\]"),
        ((model, (a[:0], b[:0]), criterion, 4), ValueError, r"at least 1"),
        ((model, a, criterion, 4), TypeError, r"views must be a tuple .* got Tensor"),
        ((model, (a, 3), criterion, 4), TypeError, r"views must be tensors, got int"),
        ((lambda a, b: (a, b), (a, b), criterion, 4), TypeError, r"model .* got function"),
        ((model, (a, b), lambda a, b: a, 4), ValueError, r"scalar loss, got .* \(11, 8\)"),
        ((model, (a, b), lambda a, b: 1.0, 4), TypeError, r"loss tensor.* got float"),
    ):
        with pytest.raises(error, match=text):
            backward_in_microbatches(*arguments)
    with pytest.raises(TypeError, match=r"autocast must be a context .* got 'bf16'"):
        backward_in_microbatches(model, (a, b), criterion, 4, autocast="bf16")
    for call, error, text in (
        (lambda a, b: {"z": a}, TypeError, r"tuple of tensors, got dict"),
        (lambda a, b: model(a, b)[0].mean(0), ValueError, r"4 of them, got shapes \[\(8,\)\]"),
        (lambda a, b: a.new_zeros(len(a), len(a)), ValueError, r"\[\(3,\)\] after \[\(4,\)\]"),
    ):
        with pytest.raises(error, match=text):
            backward_in_microbatches(model, (a, b), criterion, 4, call=call)


# --- the losses of any number of views -------------------------------------------------------


class Several(nn.Module):
    """Any number of views in one call, one after the other."""

    def __init__(self, encoder: nn.Module) -> None:
        super().__init__()
        self.encoder = encoder

    def forward(self, *several: Tensor) -> tuple[Tensor, ...]:
        return tuple(self.encoder(view) for view in several)


def several_views(count: int) -> tuple[Tensor, ...]:
    a, b = views()
    return tuple(a * (1 - 0.2 * v) + 0.2 * v * b for v in range(count))


PERMUTATION = torch.randperm(N, generator=torch.Generator().manual_seed(3))
SEVERAL = {
    "barlow twins": (4, lambda *z: barlow_twins_loss(z, lambd=0.1)),
    "target": (3, lambda *z: barlow_twins_loss(z, lambd=0.1, off_diagonal_target=-1.0)),
    "vicreg": (3, lambda *z: vicreg_loss(z, return_terms=True)),
    "vcreg": (1, lambda *z: vicreg_loss(z[0])),
    "frossl": (3, lambda *z: frossl_loss(z)),
    "mixed": (3, lambda *z: mixed_barlow_twins_loss(*z, PERMUTATION, 0.3, 0.1)),
}


@pytest.mark.parametrize("dropout", [0.0, 0.4])
@pytest.mark.parametrize("name", SEVERAL)
def test_every_loss_has_the_gradient_of_the_whole_batch(name, dropout):
    count, loss = SEVERAL[name]
    model = Several(encoder(dropout=dropout)).train()
    whole = copy.deepcopy(model)
    torch.manual_seed(4)
    found = backward_in_microbatches(model, several_views(count), loss, 4)
    found = found[0] if isinstance(found, tuple) else found
    torch.manual_seed(4)
    # Dropout of the whole batch at once would draw other numbers: part by part, as they did.
    parts = [whole(*(v[i : i + 4] for v in several_views(count))) for i in range(0, N, 4)]
    want = loss(*(torch.cat(z) for z in zip(*parts, strict=True)))
    want = want[0] if isinstance(want, tuple) else want
    want.backward()
    assert float((found - want).abs()) <= 1e-12 * max(1.0, float(want.abs()))
    assert_same_gradients(model, whole)


@pytest.mark.parametrize("name", SEVERAL)
def test_every_loss_under_batch_norm_of_micro_batches(name):
    count, loss = SEVERAL[name]
    model = Several(encoder("batch")).train()
    whole = copy.deepcopy(model)
    backward_in_microbatches(model, several_views(count), loss, 4)
    parts = [whole(*(v[i : i + 4] for v in several_views(count))) for i in range(0, N, 4)]
    result = loss(*(torch.cat(z) for z in zip(*parts, strict=True)))
    (result[0] if isinstance(result, tuple) else result).backward()
    assert_same_gradients(model, whole)
    for (key, x), y in zip(model.named_buffers(), whole.buffers(), strict=True):
        torch.testing.assert_close(x, y, rtol=1e-12, atol=0, msg=key)
