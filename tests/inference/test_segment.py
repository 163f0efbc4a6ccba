"""The most probable path and the marginals of q(M | X), against every path spelled out."""

import itertools
import math

import numpy as np
import pytest
import torch
from torch import Tensor

from pyro_hrssm import HRSSM, HRSSMConfig
from pyro_hrssm.data import Sequences
from pyro_hrssm.data.batches import in_order
from pyro_hrssm.errors import InputError
from pyro_hrssm.inference.against_truth import boundary_score
from pyro_hrssm.inference.prediction import segment
from pyro_hrssm.inference.segments import find_segments

FRAMES = 6


def model_of(
    posterior: str, max_segments: int | None, max_length: int | None, window: int | None, min_length: int = 1
) -> HRSSM:
    torch.manual_seed(7)
    config = HRSSMConfig(
        frame_shape=(2,), hidden=8, abstract_size=1, observation_size=1, max_segments=max_segments,
        max_length=max_length, window=window, min_length=min_length,
        boundary_posterior=posterior,  # type: ignore[arg-type]
    )  # fmt: skip
    model = HRSSM(config).double().eval()
    with torch.no_grad():
        model.posterior.boundary_logit.product.weight.mul_(20)  # so that boundaries are neither sure nor even
    return model


def paths(model: HRSSM, frames: Tensor, mask: Tensor, number: int) -> dict[tuple[int, ...], float]:
    """Probability of every path of boundaries of one sequence, from the definition of q(M | X)."""
    config = model.config
    length = int(mask[number].nonzero()[-1]) + 1
    seen = mask[number : number + 1, :length].T
    encoded = model.posterior.encode(frames[number : number + 1, :length].transpose(0, 1), seen)
    phi = model.posterior.boundary_logits(encoded, None).squeeze(1).tolist()
    result = {}
    for path in itertools.product((0, 1), repeat=length - 1):
        weight, n, l = 1.0, 1, 1
        for t, m in enumerate(path):
            inside = config.window is None or t + 1 < config.window
            none = config.max_segments is not None and inside and n >= config.max_segments
            none = none or l < config.min_length
            some = not none and config.max_length is not None and l >= config.max_length
            free = 1 / (1 + math.exp(-phi[t] if m else phi[t]))
            if config.boundary_posterior != "factorised" and (none or some):
                allowed = m == int(some)
                # `limited` takes a forced step with certainty; `conditioned` weighs it like any other and normalises.
                free = (1.0 if config.boundary_posterior == "limited" else free) if allowed else 0.0
            weight *= free
            n, l = (n + 1, 1) if m else (n, l + 1)
        result[path] = weight
    total = sum(result.values())
    return {path: weight / total for path, weight in result.items()}


@pytest.mark.parametrize("posterior", ["conditioned", "factorised", "limited"])
@pytest.mark.parametrize(
    ("max_segments", "max_length", "window", "min_length"),
    [
        (2, 3, None, 1), (3, None, None, 1), (None, 2, None, 1), (2, 2, 4, 1), (None, None, None, 1),
        (None, None, None, 2), (3, 3, None, 2), (2, None, 4, 2), (None, 3, None, 3), (None, None, None, 8),
    ],
)  # fmt: skip
def test_segments_are_the_best_of_all_paths(
    posterior: str, max_segments: int | None, max_length: int | None, window: int | None, min_length: int
) -> None:
    model = model_of(posterior, max_segments, max_length, window, min_length)
    frames = torch.rand(3, FRAMES, 2, dtype=torch.float64)
    mask = torch.ones(3, FRAMES, dtype=torch.bool)
    mask[1, 2] = mask[2, 4:] = False
    found = segment(model, frames, mask)
    assert found.boundaries.shape == found.probabilities.shape == (3, FRAMES)
    with torch.no_grad():
        for number in range(3):
            spelled = paths(model, frames, mask, number)
            best = max(spelled, key=lambda path: spelled[path])
            padding = [0] * (FRAMES - len(best))
            assert found.boundaries[number].int().tolist() == [*best, *padding]
            marginals = [sum(p for path, p in spelled.items() if path[t]) for t in range(len(best))]
            expected = torch.tensor([*marginals, *padding], dtype=torch.float64)
            torch.testing.assert_close(found.probabilities[number], expected, rtol=1e-9, atol=1e-12)  # double sums


@pytest.mark.parametrize("context", [0, 3])
def test_one_frame_is_one_segment(context: int) -> None:
    config = HRSSMConfig(frame_shape=(2,), hidden=8, abstract_size=1, observation_size=1, context=context)
    model = HRSSM(config).double().eval()
    frames, mask = torch.rand(3, context + 1, 2, dtype=torch.float64), torch.ones(3, context + 1, dtype=torch.bool)
    mask[1, -1] = False
    for given in (None, mask):
        decoded, found = model.decode_boundaries(frames, given), segment(model, frames, given)
        assert [part.shape for part in decoded] == [(3, 0)] * 3
        assert (decoded.boundaries.dtype, decoded.probabilities.dtype) == (torch.bool, torch.float64)
        assert [part.tolist() for part in found] == [[[False]] * 3, [[0.0]] * 3, [[False]] * 3]
    ends = find_segments(model, [(frames, mask)])
    assert ends.sequence.tolist() == [0, 2]
    truth = Sequences(frames.float().numpy(), None, np.ones((3, context + 1), bool))
    assert boundary_score(model, in_order(truth, torch.device("cpu"))).f1 == 0


def test_no_frame_has_no_segments_to_find() -> None:
    config = HRSSMConfig(frame_shape=(2,), hidden=8, abstract_size=1, observation_size=1, context=3)
    with pytest.raises(InputError, match="segments need frames after the context of 3, found none"):
        segment(HRSSM(config), torch.rand(1, 3, 2))


@pytest.mark.parametrize("posterior", ["conditioned", "factorised", "limited"])
@pytest.mark.parametrize("context", [0, 3])
@pytest.mark.parametrize("entries", [None, "flags", "weights"])
def test_a_recording_read_in_pieces_has_the_segments_of_one_pass(
    posterior: str, context: int, entries: str | None
) -> None:
    """No boundary appears at a seam, and no probability moves: masks, ends and a context count as in one pass."""
    torch.manual_seed(3)
    config = HRSSMConfig(
        frame_shape=(2,), hidden=8, abstract_size=1, observation_size=1, max_segments=4, max_length=6, window=20,
        context=context, boundary_layers=3, boundary_posterior=posterior,  # type: ignore[arg-type]
        entry_flags=entries is not None, likelihood="normal",
    )  # fmt: skip
    model = HRSSM(config).double().eval()
    frames = torch.randn(3, 80, 2, dtype=torch.float64)
    with torch.no_grad():
        model.posterior.boundary_logit.product.weight.mul_(60)
        encoded = model.posterior.encode(frames.transpose(0, 1), None)
        logits = model.posterior.boundary_logits(encoded, None)
        model.posterior.boundary_logit.product.bias.sub_(logits.mean())  # so that both kinds of frames are there
    mask = torch.ones(3, 80, dtype=torch.bool)
    mask[0, 30:36] = mask[1, 17:] = mask[2, 65:] = False
    if entries is not None:
        weights = mask.unsqueeze(-1) * torch.randint(0, 4, (3, 80, 2))
        mask = weights > 0 if entries == "flags" else weights.double()
    whole = model.decode_boundaries(frames, mask, frames_at_once=80)
    assert 0 < whole.boundaries.double().mean() < 1
    for at_once in (1, 16, 27):
        pieces = model.decode_boundaries(frames, mask, frames_at_once=at_once)
        assert torch.equal(pieces.boundaries, whole.boundaries)
        assert torch.equal(pieces.forced, whole.forced)
        # Products of other shapes round differently, in double.
        torch.testing.assert_close(pieces.probabilities, whole.probabilities, rtol=0, atol=1e-10)


def test_one_frame_less_around_each_piece_would_show() -> None:
    """The pieces overlap by what the logits depend on, and by no more."""
    model = model_of("factorised", None, None, None)
    assert model.posterior.boundary_reach == model.config.boundary_layers
    frames = torch.randn(1, 21, 2, dtype=torch.float64)
    changed = frames.clone()
    changed[:, 10] += 1
    moved = (segment(model, frames).probabilities != segment(model, changed).probabilities)[0].nonzero().squeeze(1)
    reach = model.posterior.boundary_reach
    assert moved.tolist() == list(range(10 - reach, 10 + reach + 1))
