"""Captures a training step's forward and backward pass in a CUDA graph and replays it on new data.

    python examples/cuda_graph.py

The loss never waits for the device and allocates the same memory at every step, so it can be
captured with the network before it. Where kernels are short, a replay saves the launches, which
then take most of the time. Exit status: 0 when replays equal eager steps, 1 when they do not, 2
without a CUDA device.
"""

from __future__ import annotations

import sys
from collections.abc import Callable

import torch
from torch import Tensor, nn

from barlow_fast import BarlowTwinsLoss

BATCH, FEATURES, HIDDEN, DIMENSIONS = 256, 512, 1024, 4096
WARM_UP, REPLAYS, TIMED = 3, 5, 50
# Of the norm of a gradient. Equal kernels give equal bits; torch's products may choose others.
AGREEMENT = 1e-4

Step = Callable[[], tuple[Tensor, ...]]


def projector() -> nn.Module:
    """The head of the paper, smaller. Biases would have no effect: the loss standardises."""
    return nn.Sequential(
        nn.Linear(FEATURES, HIDDEN, bias=False),
        nn.BatchNorm1d(HIDDEN),
        nn.ReLU(),
        nn.Linear(HIDDEN, DIMENSIONS, bias=False),
    )


def step_of(model: nn.Module, criterion: nn.Module, x_a: Tensor, x_b: Tensor) -> Step:
    """A function that returns (loss, gradients of all parameters) for what x_a and x_b hold."""
    parameters = list(model.parameters())

    def step() -> tuple[Tensor, ...]:
        loss = criterion(model(x_a), model(x_b))
        return loss.detach(), *torch.autograd.grad(loss, parameters)

    return step


def capture(step: Step) -> tuple[torch.cuda.CUDAGraph, tuple[Tensor, ...]]:
    """(graph, outputs): every replay overwrites the same outputs.

    Kernels are compiled and libraries set up before the capture, on its own stream.
    """
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for _ in range(WARM_UP):
            step()
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph, stream=stream):
        outputs = step()
    return graph, outputs


def largest_difference(got: tuple[Tensor, ...], want: tuple[Tensor, ...]) -> float:
    """The largest |got - want| / |want| in the 2-norm; not a number if a value is not one."""
    differences = [(x - y).norm() / y.norm() for x, y in zip(got, want, strict=True)]
    return float(torch.stack(differences).max())


def milliseconds(run: Callable[[], object]) -> float:
    """Mean time of one call."""
    start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    run()
    start.record()
    for _ in range(TIMED):
        run()
    end.record()
    end.synchronize()
    return start.elapsed_time(end) / TIMED


def main() -> int:
    if not torch.cuda.is_available():
        print("This example needs a CUDA device, and there is none.", file=sys.stderr)
        return 2
    torch.manual_seed(0)
    model = projector().cuda()
    x_a, x_b = (torch.empty(BATCH, FEATURES, device="cuda").normal_() for _ in range(2))
    step = step_of(model, BarlowTwinsLoss(), x_a, x_b)
    graph, outputs = capture(step)
    # A training loop gives these gradients to its optimizer once; replays fill them.
    for parameter, gradient in zip(model.parameters(), outputs[1:], strict=True):
        parameter.grad = gradient
    worst = 0.0
    for _ in range(REPLAYS):
        x_a.normal_()  # new data into the tensors that the graph reads
        x_b.copy_(x_a + 0.5 * torch.randn_like(x_a))
        graph.replay()
        replayed = tuple(output.clone() for output in outputs)
        difference = largest_difference(replayed, step())
        print(f"loss {float(replayed[0]):.6f}, difference to the eager step {difference:.2e}")
        if not difference <= AGREEMENT:  # or not a number
            print("The replay differs from the eager step.", file=sys.stderr)
            return 1
        worst = max(worst, difference)
    eager, replay = milliseconds(step), milliseconds(graph.replay)
    print(f"eager step {eager:.3f} ms, replayed step {replay:.3f} ms")
    print(f"OK: {REPLAYS} replays equal eager steps (largest difference {worst:.2e}).")
    return 0


if __name__ == "__main__":
    sys.exit(main())
