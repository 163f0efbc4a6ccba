"""The limits on segments, and distributions over paths of boundaries, against the enumeration of all paths."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence

import oracle
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from pyro_hrssm.model.decoding import Decoder
from pyro_hrssm.model.distributions import decide
from pyro_hrssm.model.limits import Counts, SegmentLimits
from pyro_hrssm.model.paths import BoundaryChain, PathDraws
from pyro_hrssm.model.sites import boundary


def assert_frequencies(drawn: Tensor, expected: Tensor) -> None:
    """Share of true entries along the first axis against their probability, to 6 standard errors."""
    errors = (expected * (1 - expected) / len(drawn)).sqrt()
    assert ((drawn.to(expected.dtype).mean(0) - expected).abs() <= 6 * errors).all()


# Limits


def literally_forced(limits: SegmentLimits, segments: int, length: int, frame: int) -> int | None:
    """The boundary after `frame`: 0 if n_t ≥ N_max in the window or l_t is too small, else 1 if l_t ≥ l_max."""
    next_is_in_window = limits.window is None or frame + 1 <= limits.window - 1
    if limits.max_segments is not None and next_is_in_window and segments >= limits.max_segments:
        return 0
    if length < limits.min_length:
        return 0
    if limits.max_length is not None and length >= limits.max_length:
        return 1
    return None


def literally_allowed(path: Sequence[int], limits: SegmentLimits) -> bool:
    segments = length = 1
    for frame, ends in enumerate(path):
        forced = literally_forced(limits, segments, length, frame)
        if forced is not None and forced != ends:
            return False
        segments, length = (segments + 1, 1) if ends else (segments, length + 1)
    return True


LIMITS = st.builds(
    SegmentLimits,
    max_segments=st.none() | st.integers(1, 5),
    max_length=st.none() | st.integers(1, 6),
    window=st.none() | st.integers(1, 12),
    min_length=st.sampled_from([1, 1, 2, 3, 4]),
).filter(lambda limits: limits.max_length is None or limits.min_length <= limits.max_length)


@given(LIMITS, st.integers(0, 15))
def test_forced_says_what_the_limits_say(limits: SegmentLimits, frame: int) -> None:
    segments, length = torch.cartesian_prod(torch.arange(1, 9), torch.arange(1, 9)).unbind(1)
    forced = limits.forced(Counts(segments, length), frame)
    states = zip(segments.tolist(), length.tolist(), strict=True)
    expected = [literally_forced(limits, n, l, frame) for n, l in states]
    if forced is None:
        assert expected == [None] * 64
        assert not limits.bind
        return
    assert limits.bind
    assert forced.none.tolist() == [value == 0 for value in expected]
    assert forced.some.tolist() == [value == 1 for value in expected]
    assert forced.either.tolist() == [value is not None for value in expected]
    logits = torch.randn(64, dtype=torch.float64)
    clamped = [
        free if value is None else math.log((1 - 1e-3) / 1e-3) * (2 * value - 1)
        for free, value in zip(logits.tolist(), expected, strict=True)
    ]
    assert forced.clamp(logits).tolist() == pytest.approx(clamped, rel=1e-12)  # double


@given(st.lists(st.integers(0, 1), max_size=12))
def test_counts_follow_a_path(path: list[int]) -> None:
    counts = Counts.start(1, torch.device("cpu"))
    for frame in range(len(path) + 1):
        opened = [0, *(t + 1 for t in range(frame) if path[t])]
        assert counts.segments.tolist() == [len(opened)]
        assert counts.length.tolist() == [frame - opened[-1] + 1]
        if frame < len(path):
            counts = oracle.counted(counts, torch.tensor([path[frame] == 1]))


# The conditioned posterior: the 7 boundaries between 8 frames, and all 128 paths of them

MAX_SEGMENTS = [None, 1, 2, 3, 5]
MAX_LENGTHS = [None, 1, 2, 3, 10]
MIN_LENGTHS = [1, 2, 3, 9]  # the last longer than the sequence
ALL_LIMITS = [
    (segments, longest, shortest)
    for segments, longest, shortest in itertools.product(MAX_SEGMENTS, MAX_LENGTHS, MIN_LENGTHS)
    if longest is None or shortest <= longest
]
WINDOWS = [None, 5, 8, 11]  # none, shorter than the sequence, as long, longer


def all_paths(boundaries: int) -> Tensor:
    paths = list(itertools.product([0, 1], repeat=boundaries))
    return torch.tensor(paths, dtype=torch.long).reshape(2**boundaries, boundaries)


def which_allowed(paths: Tensor, limits: SegmentLimits) -> Tensor:
    allowed = torch.tensor([literally_allowed(path, limits) for path in paths.tolist()])
    assert allowed.any()
    return allowed


def conditioned(logits: Tensor, limits: SegmentLimits, acts: Tensor | None) -> BoundaryChain:
    """The chain of logits [B, T-1]."""
    return BoundaryChain.conditioned(logits.T, limits, None if acts is None else acts.T)


def log_odds_at(messages: BoundaryChain, frame: int, counts: Counts) -> Tensor:
    """Log odds [B] of the boundary after `frame`, for paths that stand at `counts`."""
    grid = messages.grid
    row, column = counts.segments.clamp(max=grid.segments) - 1, counts.length.clamp(max=grid.lengths) - 1
    return messages.log_odds[frame].gather(0, (row * grid.lengths + column).unsqueeze(0)).squeeze(0)


def bernoulli(logits: Tensor, paths: Tensor) -> Tensor:
    return F.logsigmoid(torch.where(paths.bool(), logits, -logits))


def log_path(logits: Tensor, limits: SegmentLimits, paths: Tensor, acts: Tensor | None = None) -> Tensor:
    """log q(m_t | m_<t) [B, T-1] of paths [B, T-1] as the guide draws them: certain where forced."""
    messages = conditioned(logits.expand(paths.shape), limits, acts)
    counts = Counts.start(len(paths), paths.device)
    terms = []
    for frame, ends in enumerate(paths.bool().unbind(1)):
        term = bernoulli(log_odds_at(messages, frame, counts), ends)
        forced = limits.forced(counts, frame)
        if forced is not None:
            term = torch.where(forced.either, torch.where(forced.some == ends, 0.0, -torch.inf), term)
        terms.append(term)
        counts = oracle.counted(counts, ends)
    return torch.stack(terms, 1)


def log_conditioned(logits: Tensor, paths: Tensor, allowed: Tensor) -> Tensor:
    """log q(M) of all paths by enumeration: independent Bernoullis, conditioned on the paths allowed."""
    joint = torch.where(allowed, bernoulli(logits, paths).sum(1), -torch.inf)
    return joint - joint.logsumexp(0)


def random_logits(boundaries: int, spread: float) -> Tensor:
    return spread * torch.randn(boundaries, dtype=torch.float64)


@pytest.mark.parametrize(("max_segments", "max_length", "min_length"), ALL_LIMITS)
def test_conditioned_paths_have_the_enumerated_probabilities(
    max_segments: int | None, max_length: int | None, min_length: int
) -> None:
    paths = all_paths(7)
    for window in WINDOWS:
        limits = SegmentLimits(max_segments, max_length, window, min_length)
        allowed = which_allowed(paths, limits)
        for spread in (1.0, 20.0):
            logits = random_logits(7, spread)
            found, expected = log_path(logits, limits, paths).sum(1), log_conditioned(logits, paths, allowed)
            # Log sums of up to 128 terms of size 200, in double; a path forbidden has exactly no probability.
            torch.testing.assert_close(found, expected, rtol=1e-11, atol=1e-11)
            assert found.exp().sum().item() == pytest.approx(1, abs=1e-11)
            marginals = (found.exp()[:, None] * paths).sum(0)
            torch.testing.assert_close(marginals, (expected.exp()[:, None] * paths).sum(0), rtol=0, atol=1e-11)


@pytest.mark.parametrize(("max_segments", "max_length", "min_length"), ALL_LIMITS)
def test_conditioned_paths_end_with_their_sequence(
    max_segments: int | None, max_length: int | None, min_length: int
) -> None:
    # One ragged batch: for each length, all paths of a sequence that long; boundaries past its end do not act.
    ends = [6, 4, 2, 1, 0]
    logits = torch.stack([random_logits(6, 2.0) for _ in ends])
    prefixes = [all_paths(end) for end in ends]
    paths = torch.cat([F.pad(prefix, (0, 6 - prefix.shape[1]), value=1) for prefix in prefixes])
    owner = torch.repeat_interleave(torch.arange(len(ends)), torch.tensor([len(prefix) for prefix in prefixes]))
    acts = torch.arange(6) < torch.tensor(ends)[owner, None]
    for window in WINDOWS:
        limits = SegmentLimits(max_segments, max_length, window, min_length)
        terms = log_path(logits[owner], limits, paths, acts)
        for row, (end, prefix) in enumerate(zip(ends, prefixes, strict=True)):
            expected = log_conditioned(logits[row, :end], prefix, which_allowed(prefix, limits))
            # Log sums of up to 64 terms, in double.
            torch.testing.assert_close(terms[owner == row, :end].sum(1), expected, rtol=1e-11, atol=1e-11)


@pytest.mark.parametrize(
    "limits",
    [
        SegmentLimits(None, None),
        SegmentLimits(8, None),
        SegmentLimits(None, 8),
        SegmentLimits(9, 20, 8),
        SegmentLimits(1, None, 1),
    ],
)
def test_conditioned_is_factorised_where_no_limit_binds(limits: SegmentLimits) -> None:
    logits, paths = random_logits(7, 2.0), all_paths(7)
    # Every message is a sum of probabilities to 1, in double.
    torch.testing.assert_close(log_path(logits, limits, paths), bernoulli(logits, paths), rtol=0, atol=1e-12)


@pytest.mark.parametrize(
    "limits",
    [
        SegmentLimits(2, None),
        SegmentLimits(None, 2),
        SegmentLimits(3, 2),
        SegmentLimits(2, 3, 4),
        SegmentLimits(3, 10, 8),
        SegmentLimits(None, None, None, 2),
        SegmentLimits(2, 3, 4, 2),
        SegmentLimits(None, 2, None, 2),
    ],
)
def test_gradients_of_conditioned_paths(limits: SegmentLimits) -> None:
    paths = all_paths(5)
    paths = paths[which_allowed(paths, limits)]
    acts = torch.arange(5).expand(len(paths), -1) < 3
    weights = torch.randn(len(paths), 5, dtype=torch.float64)  # any one sum of the terms that uses them all
    logits = random_logits(5, 1.0).requires_grad_()
    assert torch.autograd.gradcheck(lambda at: (weights * log_path(at, limits, paths)).sum(), (logits,))
    ragged = weights * acts
    assert torch.autograd.gradcheck(lambda at: (ragged * log_path(at, limits, paths, acts)).sum(), (logits,))


def test_gradients_of_conditioned_paths_stay_finite_at_extreme_logits() -> None:
    logits = torch.tensor([50.0, -50.0, 50.0, 50.0, -50.0, -50.0, 50.0], requires_grad=True)
    upper = (SegmentLimits(2, 3), SegmentLimits(3, 2, 5), SegmentLimits(1, None), SegmentLimits(None, 1))
    for limits in (*upper, SegmentLimits(None, None, None, 3), SegmentLimits(3, 3, 5, 2)):
        terms = log_path(logits, limits, all_paths(7))
        terms[terms.isfinite()].sum().backward()
        assert logits.grad is not None
        assert logits.grad.isfinite().all()


DRAWN = [SegmentLimits(3, 3, 8), SegmentLimits(3, 3, 8, 2), SegmentLimits(None, None, None, 2)]
"""Limits of draws whose frequencies are compared."""


def draw_paths(
    logits: Tensor, draws: int, limits: SegmentLimits, temperature: float, acts: Tensor | None = None
) -> Tensor:
    messages = conditioned(logits.expand(draws, -1), limits, acts)
    counts = Counts.start(draws, logits.device)
    path = []
    for frame in range(len(logits)):
        logits, forced = log_odds_at(messages, frame, counts), limits.forced(counts, frame)
        if forced is not None:
            logits = forced.clamp(logits)
        fn = boundary(logits, None if forced is None else forced.either, temperature, draws)
        path.append(decide(fn.sample(), temperature) > 0.5)
        counts = oracle.counted(counts, path[-1])
    return torch.stack(path, 1).long()


@given(
    LIMITS,
    st.lists(st.sampled_from([-50.0, 50.0]) | st.floats(-50, 50, width=32), min_size=1, max_size=12),
    st.sampled_from([0.0, 0.05, 1.0]),
    st.none() | st.integers(0, 12),
)
@settings(max_examples=60)
def test_no_forbidden_path_is_drawn(
    limits: SegmentLimits, logits: list[float], temperature: float, end: int | None
) -> None:
    acts = None if end is None else torch.arange(len(logits)).expand(64, -1) < end
    paths = draw_paths(torch.tensor(logits), 64, limits, temperature, acts).unique(dim=0)
    assert which_allowed(paths, limits).all()


@pytest.mark.parametrize("limits", DRAWN)
@pytest.mark.parametrize("temperature", [0.0, 0.1, 1.0])
def test_conditioned_draws_have_the_enumerated_frequencies(temperature: float, limits: SegmentLimits) -> None:
    logits, paths = random_logits(7, 1.0), all_paths(7)
    drawn = draw_paths(logits, 20_000, limits, temperature)
    code = (drawn * 2 ** torch.arange(6, -1, -1)).sum(1)
    assert_frequencies(F.one_hot(code, 128), log_conditioned(logits, paths, which_allowed(paths, limits)).exp())


# Paths drawn for all frames at once


def chain(logits: Tensor, draws: int, limits: SegmentLimits, acts: Tensor | None = None) -> BoundaryChain:
    return conditioned(logits.expand(draws, -1), limits, acts)


def draw_at_once(chain: BoundaryChain, temperature: float, replaced: dict[int, Tensor]) -> Tensor:
    """[B, T-1] the path, its boundaries replaced where another value is given."""
    draws, path = PathDraws(chain, temperature), []
    for frame in range(len(chain.log_odds)):
        value = replaced.get(frame, draws[frame].value)
        draws.settle(frame, value)
        path.append(decide(value, temperature) > 0.5)
    return torch.stack(path, 1).long()


@pytest.mark.parametrize("temperature", [0.0, 0.1, 1.0])
@pytest.mark.parametrize("frame", [None, 0, 3, 5])
@pytest.mark.parametrize("limits", DRAWN)
def test_paths_drawn_at_once_have_the_enumerated_frequencies(
    limits: SegmentLimits, frame: int | None, temperature: float
) -> None:
    """The densities also agree if one boundary is held and the rest of the path has to follow it."""
    logits, paths = random_logits(7, 1.0), all_paths(7)
    size = 20_000
    # The boundary is held at 1 also past N_max and in a segment that is too short, where the limits would not draw it.
    held = {} if frame is None else {frame: torch.full((size,), 1.0, dtype=torch.float64)}
    drawn = draw_at_once(chain(logits, size, limits), temperature, held)
    code = (drawn * 2 ** torch.arange(6, -1, -1)).sum(1)
    expected = log_path(logits, limits, paths)
    if frame is not None:
        expected[:, frame] = torch.where(paths[:, frame] == 1, 0.0, -torch.inf)
    assert_frequencies(F.one_hot(code, 128), expected.sum(1).exp())


@given(
    LIMITS,
    st.lists(st.sampled_from([-50.0, 50.0]) | st.floats(-50, 50, width=32), min_size=1, max_size=12),
    st.sampled_from([0.0, 0.05, 1.0]),
)
@settings(max_examples=60)
def test_no_forbidden_path_is_drawn_at_once(limits: SegmentLimits, logits: list[float], temperature: float) -> None:
    paths = draw_at_once(chain(torch.tensor(logits), 64, limits), temperature, {}).unique(dim=0)
    assert which_allowed(paths, limits).all()


@pytest.mark.parametrize(("max_segments", "max_length", "min_length"), ALL_LIMITS)
def test_marginals_and_the_most_probable_path_are_the_enumerated(
    max_segments: int | None, max_length: int | None, min_length: int
) -> None:
    # One ragged batch: boundaries past a sequence's end do not act.
    ends = [6, 4, 2, 1]
    logits = torch.stack([random_logits(6, 2.0) for _ in ends])
    acts = torch.arange(6) < torch.tensor(ends)[:, None]
    for window in WINDOWS:
        limits = SegmentLimits(max_segments, max_length, window, min_length)
        found = Decoder(logits.T, limits, acts.T, frames_at_once=2).decode()  # in pieces of two frames
        marginals, best = found.probabilities, found.boundaries
        assert not marginals[~acts].any()
        assert not best[~acts].any()
        for row, end in enumerate(ends):
            paths = all_paths(end)
            expected = log_conditioned(logits[row, :end], paths, which_allowed(paths, limits))
            sums = (expected.exp()[:, None] * paths).sum(0)
            torch.testing.assert_close(marginals[row, :end], sums, rtol=0, atol=1e-11)  # sums of up to 64 terms
            assert best[row, :end].tolist() == paths[expected.argmax()].bool().tolist()


@given(LIMITS, st.integers(0, 3))
def test_log_odds_along_a_path_are_those_of_its_counts(limits: SegmentLimits, seed: int) -> None:
    torch.manual_seed(seed)
    found = chain(random_logits(6, 2.0), 16, limits)
    draws, counts = PathDraws(found, 0.5), Counts.start(16, torch.device("cpu"))
    for frame in range(6):
        value, logits, forced = draws[frame]
        expected = limits.forced(counts, frame)
        at_counts = log_odds_at(found, frame, counts)
        if expected is None:
            assert forced is None
        else:
            assert forced is not None
            assert torch.equal(forced.value, expected.either)
            at_counts = expected.clamp(at_counts)
        assert torch.equal(logits.value, at_counts)
        counts = oracle.counted(counts, value > 0)


@given(LIMITS, st.lists(st.integers(0, 1), min_size=1, max_size=12), st.integers(1, 12))
def test_limits_along_a_path_are_those_frame_by_frame(limits: SegmentLimits, path: list[int], split: int) -> None:
    """The result does not depend on the division of the frames over calls."""
    if not limits.bind:
        return
    updates = torch.tensor([[1, *path]], dtype=torch.float64).T
    before, parts = torch.zeros(1, 3, dtype=torch.long), []
    for part in (updates[:split], updates[split:]):
        if len(part) > 0:
            parts.append(limits.count(before, part))
            before = parts[-1][-1]
    odds = torch.randn(len(updates), 1)
    imposed, either = limits.impose(odds, torch.cat(parts))
    counts = Counts.start(1, torch.device("cpu"))
    for frame in range(len(path) + 1):
        expected = limits.forced(counts, frame)
        assert expected is not None
        assert torch.equal(imposed[frame], expected.clamp(odds[frame]))
        assert torch.equal(either[frame], expected.either)
        if frame < len(path):
            counts = oracle.counted(counts, torch.tensor([path[frame] == 1]))


@pytest.mark.parametrize("temperature", [0.0, 0.5])
def test_a_path_that_takes_its_own_draws_is_drawn_once(temperature: float, monkeypatch: pytest.MonkeyPatch) -> None:
    walks: list[int] = []
    walk = PathDraws._walk
    monkeypatch.setattr(PathDraws, "_walk", lambda self, start, at: walks.append(start) or walk(self, start, at))
    draws = PathDraws(chain(random_logits(6, 1.0), 5, SegmentLimits(3, 3)), temperature)
    for frame in range(6):
        drawn, logits, forced = draws[frame]
        draws.settle(frame, boundary(logits, forced, temperature, 5, drawn=drawn)())
    assert walks == [0]
