"""The networks of one HRSSM training step, run once and alone: a yardstick for speed.

One forward pass, one backward pass and one Adam step over the networks that an HRSSM step needs, each
applied to all frames at once: frame encoder and decoder, the boundary convolutions, five recurrences
(forward and backward summaries of q, its within-segment summary, the abstract and the observation
recurrence of p) as plain ``torch.nn.GRU`` without resets, four Gaussian heads and two feature layers.
There is no sampling, no density, no Pyro and no loop over frames in Python.

The time is a yardstick, not a bound: on a CPU ``torch.nn.GRU`` is slower than a loop over precomputed input
projections. The project's benchmarks report ratios to this time, measured in the same process:

    networks = bare_networks(batch=128, frames=28, pixels=28, hidden=128, state=8)
    networks()  # one step; time it in turn with one SVI step of the same sizes
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable

import torch
from torch import nn


def bare_networks(
    batch: int = 128, frames: int = 28, pixels: int = 28, hidden: int = 128, state: int = 8, device: str = "cpu"
) -> Callable[[], None]:
    """Build the networks and random inputs; return a function that runs one training step of them."""
    feature = hidden + state

    def mlp(inputs: int, outputs: int) -> nn.Sequential:
        return nn.Sequential(nn.Linear(inputs, hidden), nn.ELU(), nn.Linear(hidden, outputs))

    def head(inputs: int) -> nn.Sequential:
        return nn.Sequential(nn.Linear(inputs, inputs), nn.ELU(), nn.Linear(inputs, 2 * state))

    recurrence_inputs = [hidden, hidden, hidden, state, feature]
    head_inputs = [hidden, hidden, 2 * hidden, 2 * hidden]
    encoder = nn.Sequential(mlp(pixels, hidden), nn.ELU())
    decoder = mlp(hidden, pixels)
    recurrences = nn.ModuleList(nn.GRU(size, hidden, batch_first=True) for size in recurrence_inputs)
    heads = nn.ModuleList(head(size) for size in head_inputs)
    features = nn.ModuleList(nn.Linear(feature, hidden) for _ in range(2))
    boundary = nn.Sequential(
        nn.Conv1d(hidden, hidden, 3, padding=1),
        nn.ELU(),
        nn.Conv1d(hidden, hidden, 3, padding=1),
        nn.ELU(),
        nn.Conv1d(hidden, 1, 3, padding=1),
    )
    networks = nn.ModuleList([encoder, decoder, recurrences, heads, features, boundary]).to(device)
    optimiser = torch.optim.Adam(networks.parameters(), fused=True)

    x = torch.rand(batch, frames, pixels, device=device)
    inputs = {size: torch.randn(batch, frames, size, device=device) for size in {state, feature, 2 * hidden}}

    def step() -> None:
        optimiser.zero_grad()
        encoded = encoder(x)
        loss = boundary(encoded.transpose(1, 2)).sum() + decoder(encoded).sum()
        for size, recurrence in zip(recurrence_inputs, recurrences, strict=True):
            loss = loss + recurrence(encoded if size == hidden else inputs[size])[0].sum()
        for size, layer in zip(head_inputs, heads, strict=True):
            loss = loss + layer(encoded if size == hidden else inputs[size]).sum()
        for layer in features:
            loss = loss + layer(inputs[feature]).sum()
        loss.backward()
        optimiser.step()

    return step


if __name__ == "__main__":
    step = bare_networks()
    step()
    seconds = []
    for _ in range(20):
        start = time.perf_counter()
        step()
        seconds.append(time.perf_counter() - start)
    print(f"bare networks: {1e3 * statistics.median(seconds):.1f} ms per step on {torch.get_num_threads()} threads")
