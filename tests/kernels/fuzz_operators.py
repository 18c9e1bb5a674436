"""Calls of the operators with arguments that are wrong in one to three places.

    python tests/kernels/fuzz_operators.py LIBRARY INSTRUCTION_SET CALLS SEED

Valid calls are recorded from what the contract's checks and the losses call. A mutated call may
raise or return; what it may not do, to read or write beyond its tensors, is for AddressSanitizer to
see, with which LIBRARY was built. Prints how many calls raised and returned.
"""

from __future__ import annotations

import math
import random
import sys
from collections import Counter
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, NamedTuple

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import torch
from contract import (
    check_correlation,
    check_gram,
    check_moments,
    check_tiles,
    check_view_gradients,
    check_view_moments,
    prepared,
    prepared_views,
)
from photometric_contract import crops, drawn
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from barlow_fast import ops
from barlow_fast.adapters import standardised
from barlow_fast.kernels import cpu

NATIVE, REGISTERED = "barlow_fast_cpu", "barlow_fast"
EXPECTED = (RuntimeError, ValueError, TypeError, NotImplementedError, IndexError)
DTYPES = (
    torch.float64, torch.float32, torch.bfloat16, torch.float16, torch.bool, torch.uint8,
    torch.int64, torch.complex64, torch.float8_e5m2,
)  # fmt: skip
INTEGERS = (0, -1, 1, 2, 3, 5, 64, 127, 128, 2**31, 2**53, 2**63 - 1, -(2**63))
FLOATS = (0.0, -0.0, -1.0, 1e-300, 1e308, -1e308, math.nan, math.inf, -math.inf)
WORDS = ("gram", "correlation", "auto", "fp64", "fp32", "tf32", "bf16", "fp16", "aten", "cpu", "")


class Call(NamedTuple):
    operator: Any
    arguments: tuple


def copied(arguments: Iterable) -> tuple:
    """The arguments with tensors, also those of lists, in memory of their own."""

    def copy(value: Any) -> Any:
        if isinstance(value, list):
            return [copy(element) for element in value]
        return value.clone() if isinstance(value, Tensor) else value

    return tuple(map(copy, arguments))


class Recorder(TorchDispatchMode):
    """Keeps the calls of our operators."""

    def __init__(self) -> None:
        super().__init__()
        self.calls: list[Call] = []

    def __torch_dispatch__(self, operator, types, arguments=(), keywords=None):
        if operator.namespace in (NATIVE, REGISTERED):
            self.calls.append(Call(operator, copied(arguments)))
        return operator(*arguments, **(keywords or {}))


def recorded() -> list[Call]:
    """Small calls of every operator, in every precision, of every shape of work."""
    with Recorder() as recorder:
        for precision in ("fp64", "fp32", "tf32", "bf16", "fp16"):
            for shape in ((2, 1), (5, 9), (9, 5), (17, 33)):
                case = prepared(shape, precision)
                check_moments(cpu, case, precision)
                check_gram(cpu, case, precision)
                check_tiles(cpu, case, precision)
                check_correlation(cpu, case, precision)
                _losses(case.z_a, case.z_b, precision)
            views, statistics = prepared_views((5, 9), precision, 3)
            check_view_moments(cpu, views, precision)
            check_view_gradients(cpu, views, statistics, precision)
        for channels in (1, 3):
            for dtype in (torch.float32, torch.bfloat16, torch.float16):
                size = (5, 7)
                values = (torch.rand(channels), torch.rand(channels) + 0.1)
                cpu.photometric(crops(2, size, channels), drawn(2, size), *values, dtype)
        _crops(channels)
    return recorder.calls


def _crops(channels: int) -> None:
    """Windows that begin and end with their image, and sizes that are reached by any path."""
    for height, width in ((1, 1), (9, 50), (70, 13)):
        images = torch.randint(0, 256, (2, height, width, channels), dtype=torch.uint8)
        for size in ((1, 1), (5, 40), (40, 5), (height, width)):
            out = images.new_empty(2, *size, channels)
            for interpolation in ("bilinear", "bicubic"):
                window = (0, 0, height, width)
                cpu.crop_resize(images[1], window, interpolation, out[0])
                cpu.crop_resize(
                    images, (*window, height // 2, width // 2, 1, 1), interpolation, out
                )


def _losses(z_a: Tensor, z_b: Tensor, precision: str) -> None:
    for form in ("gram", "correlation"):
        for backend in ("cpu", "aten"):
            choices = (form, precision, backend)
            options = (0.01, 1e-5, *choices)
            saved = ops.barlow_twins.forward(z_a, z_b, *options)[3:]
            grad = saved[0].new_ones(())
            ops.barlow_twins.backward(grad, z_a, z_b, *saved, *options, True, True)
            options = (0.01, 0.1, 0.0, 0, 1e-5, 1e-5, False, *choices)
            saved = standardised.deviation.forward(z_a, z_b, *options)[1:]
            standardised.deviation.backward(grad, z_a, z_b, *saved, *options, True, False)


def resized(x: Tensor, arguments: tuple, draw: random.Random) -> Tensor:
    shape = list(x.shape) or [1]
    at = draw.randrange(len(shape))
    shape[at] = draw.choice((0, 1, shape[at] + 1, max(shape[at] - 1, 0), 2 * shape[at], 64))
    # No element more than is there: what reads on is seen.
    return torch.zeros(shape).to(x.dtype)


def tensors(arguments: Iterable) -> list[Tensor]:
    """Those of the arguments and of lists among them."""
    found = (a if isinstance(a, list) else [a] for a in arguments)
    return [x for values in found for x in values if isinstance(x, Tensor)]


def another(x: Tensor, arguments: tuple, draw: random.Random) -> Tensor:
    return draw.choice(tensors(arguments))


def overlapping(x: Tensor, arguments: tuple, draw: random.Random) -> Tensor:
    """A view of the memory of another tensor of the call, in the shape of this one if it fits."""
    other = another(x, arguments, draw)
    room = other.numel() - x.numel()
    if other.dtype != x.dtype or room < 0 or not other.is_contiguous():
        return other
    return other.reshape(-1)[draw.randint(0, room) :][: x.numel()].view(x.shape)


# What is done to a tensor.
TENSORS: tuple[Callable[[Tensor, tuple, random.Random], Any], ...] = (
    lambda x, _, draw: x.to(draw.choice(DTYPES)),
    resized,
    lambda x, *_: x.mT if x.dim() > 1 else x[None],
    lambda x, *_: x[..., :1].expand(x.shape) if x.dim() else x,
    lambda x, *_: x[None] if x.dim() else x.reshape(1),
    lambda x, *_: x.flatten(),
    lambda x, *_: x[::2] if x.dim() else x,
    lambda x, *_: x[..., 1:] if x.dim() and x.shape[-1] else x,
    lambda x, *_: torch.empty(0, dtype=x.dtype),
    lambda x, *_: x.to("meta"),
    lambda x, *_: x.to_sparse() if x.dim() and x.is_floating_point() else x,
    lambda x, *_: torch.full_like(x, math.nan) if x.is_floating_point() else x,
    lambda x, *_: torch.full_like(x, 1e30) if x.is_floating_point() else x,
    another,
    overlapping,
)  # fmt: skip


def mutated(arguments: tuple, draw: random.Random) -> tuple:
    changed = list(arguments)
    for _ in range(draw.choice((1, 1, 1, 2, 3))):
        at = draw.randrange(len(changed))
        value = changed[at]
        if isinstance(value, Tensor):
            changed[at] = mutated_tensor(value, tuple(changed), draw)
        elif isinstance(value, list):
            changed[at] = mutated_list(value, tuple(changed), draw)
        elif isinstance(value, bool):
            changed[at] = not value
        elif isinstance(value, int):
            changed[at] = draw.choice(INTEGERS)
        elif isinstance(value, float):
            changed[at] = draw.choice(FLOATS)
        else:
            changed[at] = draw.choice(WORDS)
    return tuple(changed)


def mutated_tensor(x: Tensor, arguments: tuple, draw: random.Random) -> Tensor:
    try:
        return draw.choice(TENSORS)(x, arguments, draw)
    except (RuntimeError, NotImplementedError):  # a change that torch does not have
        return x


def mutated_list(values: list, arguments: tuple, draw: random.Random) -> list:
    """One element removed, changed or, in an empty list, added."""
    at = draw.randrange(len(values) + 1)
    if values[at : at + 1] and isinstance(values[at], Tensor):
        new = mutated_tensor(values[at], arguments, draw)
    else:
        new = draw.choice(values) if tensors(values) else draw.choice(INTEGERS)
    return values[:at] + draw.choice(([], [new])) + values[at + 1 :]


def freed(arguments: tuple, draw: random.Random) -> tuple:
    """One tensor without the end of its memory. torch's own functions do not survive that: only for
    operators that call none."""
    changed = list(arguments)
    at = draw.choice([i for i, x in enumerate(changed) if tensors([x])])
    if isinstance(changed[at], list):
        changed[at] = list(freed(tuple(changed[at]), draw))
        return tuple(changed)
    storage = changed[at].clone().untyped_storage()
    changed[at] = changed[at].new_empty(0).set_(storage, 0, changed[at].shape)
    storage.resize_(draw.randrange(max(storage.nbytes(), 1)))
    return tuple(changed)


def fuzz(calls: Iterable[Call], count: int, seed: int) -> Counter[str]:
    """As many calls of each operator; none changes what later ones start from."""
    draw = random.Random(seed)
    of_operator: dict[Any, list[Call]] = {}
    for call in calls:
        if tensors(call.arguments):
            of_operator.setdefault(call.operator, []).append(call)
    # The registered ones run through Python: fewer of them in the same time.
    native = [o for o in of_operator if o.namespace == NATIVE]
    weights = [20 if operator in native else 1 for operator in of_operator]
    seen: Counter[str] = Counter()
    for operator in draw.choices(list(of_operator), weights, k=count):
        arguments = draw.choice(of_operator[operator]).arguments
        copies = copied(arguments)
        free = operator in native and draw.random() < 0.05
        wrong = freed(copies, draw) if free else mutated(copies, draw)
        try:
            operator(*wrong)
        except EXPECTED:
            seen["raised"] += 1
        else:
            seen["returned"] += 1
    seen["operators"] = len(of_operator)
    return seen


def main(library: str, instruction_set: str, count: str, seed: str) -> None:
    cpu.FOLDER = Path(library)
    cpu.require()
    cpu.use_instruction_set(instruction_set)
    torch.set_num_threads(1)
    torch.manual_seed(0)
    print(dict(fuzz(recorded(), int(count), int(seed))))


if __name__ == "__main__":
    main(*sys.argv[1:])
