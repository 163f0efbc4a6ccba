"""Paths of q(M | X) decoded in pieces; `test_paths` compares them with the enumeration of all paths."""

from __future__ import annotations

import oracle
import pytest
import torch

from pyro_hrssm.model.decoding import Decoder
from pyro_hrssm.model.limits import Counts, SegmentLimits

LIMITS = [
    SegmentLimits(None, None),
    SegmentLimits(3, None, window=30),
    SegmentLimits(None, 7, min_length=3),
    SegmentLimits(4, 9, window=25, min_length=2),
]


@pytest.mark.parametrize("conditioned", [True, False])
@pytest.mark.parametrize("limits", LIMITS)
def test_pieces_change_nothing(limits: SegmentLimits, conditioned: bool) -> None:
    torch.manual_seed(0)
    logits = 3 * torch.randn(50, 3, dtype=torch.float64)
    acts = torch.arange(50).unsqueeze(1) < torch.tensor([50, 37, 1])  # ends within pieces and at the first frame
    whole = Decoder(logits, limits, acts, conditioned).decode()
    for frames in (1, 7, 16):
        pieces = Decoder(logits, limits, acts, conditioned, frames).decode()
        assert torch.equal(pieces.boundaries, whole.boundaries)
        assert torch.equal(pieces.forced, whole.forced)
        torch.testing.assert_close(pieces.probabilities, whole.probabilities, rtol=0, atol=1e-12)  # double


@pytest.mark.parametrize("limits", LIMITS)
def test_forced_boundaries_are_those_of_the_counts_on_the_path(limits: SegmentLimits) -> None:
    torch.manual_seed(1)
    found = Decoder(torch.randn(40, 2), limits, None, frames_at_once=8).decode()
    counts = Counts.start(2, torch.device("cpu"))
    for frame, opened in enumerate(found.boundaries.unbind(1)):
        forced = limits.forced(counts, frame)
        assert torch.equal(
            found.forced[:, frame], torch.zeros(2, dtype=torch.bool) if forced is None else forced.either
        )
        counts = oracle.counted(counts, opened)
    assert found.forced.any() == limits.bind


def test_a_long_path_loses_no_digits() -> None:
    """Each boundary is decided by the frames around it, however many frames follow: here by less than a float32 of the
    whole path's log probability would resolve.
    """
    frames, limits = 20_000, SegmentLimits(None, None, min_length=2)
    logits = torch.full((frames, 1), -9.0)
    logits[::10] = 1.0
    logits[1::10] = 1.001  # beside the other, and at most one of the two can end a segment
    found = Decoder(logits, limits, None).decode()
    assert found.boundaries[0].nonzero().squeeze(1).tolist() == list(range(1, frames, 10))
    inner = found.probabilities[0, 1000:-1000].unflatten(0, (-1, 10))
    torch.testing.assert_close(inner, inner[:1].expand_as(inner), rtol=0, atol=1e-6)  # float32


@pytest.mark.parametrize("limits", LIMITS)
@pytest.mark.parametrize("conditioned", [True, False])
def test_what_lies_past_the_end_decides_nothing(limits: SegmentLimits, conditioned: bool) -> None:
    torch.manual_seed(2)
    logits = 2 * torch.randn(30, 200, dtype=torch.float64)
    acts = (torch.arange(30) < 20).unsqueeze(1).expand(30, 200)
    found = Decoder(logits, limits, acts, conditioned, frames_at_once=7).decode()
    alone = Decoder(logits[:20], limits, None, conditioned).decode()
    assert torch.equal(found.boundaries[:, :20], alone.boundaries)
    torch.testing.assert_close(found.probabilities[:, :20], alone.probabilities, rtol=0, atol=1e-12)  # double
    assert not found.boundaries[:, 20:].any()
    assert not found.probabilities[:, 20:].any()
