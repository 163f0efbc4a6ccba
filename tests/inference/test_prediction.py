"""Predictions of models set by hand, and properties that must hold for random weights."""

import itertools

import pytest
import torch
from pyro import poutine
from pyro.infer import Predictive
from torch import Tensor

from pyro_hrssm import HRSSM, HRSSMConfig
from pyro_hrssm.errors import InputError
from pyro_hrssm.inference.prediction import Prediction, Settings, forecast, infill, jump, reconstruct, sample

SIZES = {"frame_shape": (3,), "hidden": 8, "abstract_size": 2, "observation_size": 2}


def tiny(**changes: object) -> HRSSM:
    torch.manual_seed(5)
    model = HRSSM(HRSSMConfig(**{**SIZES, "max_segments": None, "max_length": 3, **changes})).eval()  # type: ignore[arg-type]
    with torch.no_grad():
        for parameter in model.parameters():  # a fresh model hardly reacts to its states
            parameter.add_(0.5 * torch.randn_like(parameter))
    return model


def counter(length: int) -> HRSSM:
    """A model set by hand whose segments last exactly `length` frames and whose frames count within the segment.

    The first belief of a segment is 0 and each step of the recurrence increases it by a fixed rule, so that the
    decoded frame is a known function of the place within the segment, whatever the latents. Boundaries come from
    the limit alone, taken greedily: the conditioned posterior would spread boundaries that cost the same everywhere.
    """
    changes = {"frame_shape": (1,), "likelihood": "normal", "boundary_posterior": "limited"}
    model = HRSSM(HRSSMConfig(**{**SIZES, "max_segments": None, "max_length": length, **changes})).eval()  # type: ignore[arg-type]
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.zero_()
        hidden = model.config.hidden
        # Gates: reset 1/2; update σ(0) = 1/2; candidate tanh(3): belief moves half the way to tanh(3) each frame.
        model.observation.recurrence.input.bias[2 * hidden :] = 3.0
        # Feature: the belief itself; frame: the first entry of its ELU.
        model.emission.combine.weight[:, :hidden] = torch.eye(hidden)
        model.emission.decoder.layers[0].weight.copy_(torch.eye(hidden))
        model.emission.decoder.layers[2].weight[0, 0] = 1.0
        model.emission.boundary.bias.fill_(-40.0)
        model.posterior.boundary_logit.product.bias.fill_(-40.0)
    return model


def counted(length: int, frames: int) -> Tensor:
    """The frame of :func:`counter`: tanh(3) · (1 - 2^-place)."""
    places = torch.arange(frames) % length
    return (torch.tanh(torch.tensor(3.0)) * (1 - 0.5**places)).unsqueeze(-1)


@pytest.mark.parametrize("length", [1, 2, 4])
@pytest.mark.parametrize("given", [1, 3, 5])
def test_forecasts_of_a_model_set_by_hand_follow_the_known_future(length: int, given: int) -> None:
    model, future = counter(length), counted(length, 12)
    result = forecast(model, future[:given].expand(2, -1, -1), 12 - given, settings=Settings(num_samples=3))
    torch.testing.assert_close(result.frames, future.expand(3, 2, -1, -1), rtol=0, atol=1e-6)  # float32
    ends = (torch.arange(12) % length == length - 1) & (torch.arange(12) < 11)
    assert torch.equal(result.boundaries, ends.expand(3, 2, -1))


def test_jumps_of_a_model_set_by_hand_show_first_frames_alone() -> None:
    model, future = counter(4), counted(4, 12)
    result = jump(model, future[:6].expand(2, -1, -1), 3)
    torch.testing.assert_close(result.frames[0, 0, :6], future[:6], rtol=0, atol=1e-6)
    torch.testing.assert_close(result.frames[0, :, 6:], future[:1].expand(2, 3, -1), rtol=0, atol=1e-6)
    assert result.boundaries[0, :, 5:8].all()


def test_infill_of_a_model_set_by_hand_fills_what_is_missing() -> None:
    model, truth = counter(4), counted(4, 8)
    mask = torch.tensor([[1, 0, 1, 1, 0, 0, 1, 1]], dtype=torch.bool)
    hidden = truth.unsqueeze(0).masked_fill(~mask.unsqueeze(-1), float("nan"))
    torch.testing.assert_close(infill(model, hidden, mask).frames[0], truth.unsqueeze(0), rtol=0, atol=1e-6)


@pytest.mark.parametrize("context", [0, 2])
def test_an_empty_horizon_is_a_reconstruction(context: int) -> None:
    model, frames = tiny(context=context), torch.rand(4, 6, 3)
    torch.manual_seed(1)
    one = forecast(model, frames, 0, settings=Settings(num_samples=2))
    torch.manual_seed(1)
    two = reconstruct(model, frames, settings=Settings(num_samples=2))
    assert all(torch.equal(a, b) for a, b in zip(one, two, strict=True))
    assert one.frames.shape == (2, 4, 6 - context, 3)


@pytest.mark.parametrize("kind", ["hrssm", "rssm"])
@pytest.mark.parametrize("entries", [False, True])
def test_samples_never_read_what_is_missing_of_a_context(kind: str, entries: bool) -> None:
    model = tiny(model=kind, context=3, likelihood="normal", entry_flags=entries)
    context, mask = torch.rand(4, 3, 3), torch.ones(4, 3, 3, dtype=torch.bool)
    mask[0, 2] = mask[1, 0] = mask[2] = False
    if entries:
        mask[3, 1, 2] = False
    given = mask if entries else mask.all(2)
    found = []
    for filling in (0.0, 7.0, float("nan")):
        torch.manual_seed(2)
        found.append(sample(model, 4, 5, context.masked_fill(~mask, filling), mask=given))
    assert all(torch.equal(one, two) for other in found[1:] for one, two in zip(found[0], other, strict=True))
    torch.manual_seed(2)
    read = sample(model, 4, 5, context.masked_fill(~mask, 0.0))
    moved = (found[0].frames - read.frames).abs().flatten(2).sum(2)[0] > 0
    assert moved.tolist() == [True, True, True, entries], "a frame of zeros says something else than none"
    assert (found[0].lengths.tolist(), found[0].given.tolist()) == ([5] * 4, [0] * 4)


def test_hidden_pixels_never_reach_the_result() -> None:
    model, frames = tiny(), torch.rand(3, 6, 3)
    mask = torch.rand(3, 6) > 0.4
    mask[:, 0] = mask[:, -1] = True
    results = []
    for filling in (0.0, 7.0, float("nan")):
        torch.manual_seed(2)
        results.append(infill(model, frames.masked_fill(~mask.unsqueeze(-1), filling), mask))
    for result in results[1:]:
        assert all(torch.equal(a, b) for a, b in zip(results[0], result, strict=True))
    assert torch.equal(results[0].frames[0][mask], frames[mask]), "observed frames are kept"


@pytest.mark.parametrize("kind", ["hrssm", "rssm"])
@pytest.mark.parametrize(("context", "weighted"), [(0, False), (2, True)])
def test_infill_fills_single_entries_and_keeps_all_others(kind: str, context: int, weighted: bool) -> None:
    model = tiny(model=kind, context=context, likelihood="normal", entry_flags=True)
    frames, mask = torch.rand(3, 6, 3), torch.rand(3, 6, 3) > 0.4
    mask[:, -1] = torch.tensor([True, False, True])
    mask[0, 2] = False
    given = mask * (0.5 + torch.rand(mask.shape)) if weighted else mask
    results = []
    for filling in (0.0, 7.0, float("nan")):
        torch.manual_seed(2)
        results.append(infill(model, frames.masked_fill(~mask, filling), given, Settings(num_samples=2, draw=True)))
    for result in results[1:]:
        assert all(torch.equal(a, b) for a, b in zip(results[0], result, strict=True))
    found, kept = results[0].frames, mask[:, context:]
    assert torch.equal(found[:, kept], frames[:, context:][kept].expand(2, -1))
    assert found.isfinite().all()
    assert ((found - frames[:, context:]).abs()[:, ~kept] > 0).all(), "what is missing is drawn"
    assert results[0].lengths.tolist() == [6 - context] * 3


def test_the_future_starts_where_the_last_entry_is() -> None:
    model, frames = tiny(entry_flags=True), torch.rand(2, 5, 3)
    mask = (torch.arange(5) < torch.tensor([[3], [5]])).unsqueeze(-1).repeat(1, 1, 3)
    mask[0, 2, 1:] = mask[1, 4, :2] = False
    result = forecast(model, frames, 2, mask, Settings(num_samples=2))
    assert (result.given.tolist(), result.lengths.tolist()) == ([3, 5], [5, 7])
    assert (result.frames[:, 0, 5:] == 0).all()


def test_a_jump_is_a_roll_out_with_every_boundary_held_at_one() -> None:
    model, frames = tiny(), torch.rand(3, 4, 3)
    guide = poutine.trace(model.guide).get_trace(frames, temperature=0.0)
    ones = {f"m_{t}": torch.ones(3) for t in range(3, 6)}

    def run(jumpy: bool) -> poutine.Trace:
        torch.manual_seed(3)
        program = model.model if jumpy else poutine.condition(model.model, ones)
        replayed = poutine.replay(program, trace=guide)
        return poutine.trace(replayed).get_trace(frames, horizon=3, temperature=0.0, jumpy=jumpy)

    jumps, full = run(True), run(False)
    assert not any(name in jumps.nodes for name in ones)
    for trace in (jumps, full):
        trace.compute_log_prob()
    for t, name in itertools.product(range(7), "zs"):
        torch.testing.assert_close(jumps.nodes[f"{name}_{t}"]["value"], full.nodes[f"{name}_{t}"]["value"])
        torch.testing.assert_close(jumps.nodes[f"{name}_{t}"]["log_prob"], full.nodes[f"{name}_{t}"]["log_prob"])


@pytest.mark.parametrize(
    ("max_segments", "max_length", "min_length"),
    [(2, 3, 1), (None, 2, 1), (3, None, 1), (1, 1, 1), (None, None, 3), (3, 3, 2)],
)
def test_samples_obey_the_limits(max_segments: int | None, max_length: int | None, min_length: int) -> None:
    model = tiny(max_segments=max_segments, max_length=max_length, min_length=min_length, window=8)
    drawn = sample(model, 200, 8)
    segments = 1 + drawn.boundaries[0, :, :-1].sum(1)
    if max_segments is not None:
        assert segments.max() <= max_segments
    length = torch.ones(200)
    for t in range(7):
        ends = drawn.boundaries[0, :, t]
        free = torch.ones(200, dtype=torch.bool)
        if max_segments is not None:
            free = 1 + drawn.boundaries[0, :, :t].sum(1) < max_segments
        assert max_length is None or (ends | (length < max_length) | ~free).all()
        assert (~ends | (length >= min_length)).all()
        length = torch.where(ends, 1, length + 1)


def test_predictive_agrees_in_distribution() -> None:
    model, frames = tiny(), torch.rand(2, 4, 3)
    ours = forecast(model, frames, 3, settings=Settings(num_samples=2000))
    # Predictive draws one sample at a time: copies in the batch make up for it.
    predictive = Predictive(model.model, guide=model.guide, num_samples=8, return_sites=["s_5", "boundaries"])
    theirs = predictive(frames.repeat(100, 1, 1), horizon=3, temperature=0.0)
    pairs = [
        (ours.observation[:, :, 5], theirs["s_5"].reshape(800, 2, 2)),
        (ours.boundaries[:, :, :-1].float(), theirs["boundaries"].reshape(800, 2, 6)),
    ]
    for one, two in pairs:
        error = (one.var(0) / len(one) + two.var(0) / len(two)).sqrt()
        assert ((one.mean(0) - two.mean(0)).abs() <= 6 * error + 1e-6).all()  # 6 standard errors


@pytest.mark.parametrize("chunk_size", [1, 3, 7, 1000])
def test_chunks_change_the_shape_of_nothing(chunk_size: int) -> None:
    settings = Settings(num_samples=4, chunk_size=chunk_size)
    result = forecast(tiny(), torch.rand(3, 4, 3), 2, settings=settings)
    assert result.frames.shape == (4, 3, 6, 3)
    assert result.frames.isfinite().all()


def check_shapes(result: Prediction, samples: int, size: int, frames: int) -> None:
    shape = (samples, size, frames)
    assert result.frames.shape == (*shape, 3)
    assert all(value.shape == shape for value in (result.boundaries, result.prior, result.posterior))
    assert result.abstract.shape == result.observation.shape == (*shape, 2)
    assert result.lengths.shape == result.given.shape == (size,)


def test_every_mode_at_its_smallest() -> None:
    model, frames, mask = tiny(), torch.rand(1, 1, 3), torch.ones(1, 1, dtype=torch.bool)
    check_shapes(reconstruct(model, frames), 1, 1, 1)
    check_shapes(forecast(model, frames, 1), 1, 1, 2)
    check_shapes(jump(model, frames, 1), 1, 1, 2)
    check_shapes(sample(model, 1, 1), 1, 1, 1)
    check_shapes(infill(model, frames, mask), 1, 1, 1)


@pytest.mark.parametrize("mode", [forecast, jump])
def test_each_sequences_future_starts_at_its_own_end(mode: object) -> None:
    model, frames = tiny(), torch.rand(3, 5, 3)
    mask = torch.arange(5) < torch.tensor([[2], [5], [2]])
    result = mode(model, frames, 2, mask, Settings(num_samples=2))  # type: ignore[operator]
    check_shapes(result, 2, 3, 7)
    assert result.lengths.tolist() == [4, 7, 4]
    assert result.given.tolist() == [2, 5, 2]
    assert (result.frames[:, 0, 4:] == 0).all()
    torch.manual_seed(4)
    alone = mode(model, frames[:1, :2], 2, None, Settings(num_samples=2))  # type: ignore[operator]
    torch.manual_seed(4)
    changed = frames.clone()
    changed[0, 2:] = 9.0
    again = mode(model, changed[:1], 2, mask[:1], Settings(num_samples=2))  # type: ignore[operator]
    torch.testing.assert_close(again.frames[:, :, :4], alone.frames)


@pytest.mark.parametrize("mode", [forecast, jump])
@pytest.mark.parametrize("context", [0, 2])
def test_a_future_follows_a_sequence_of_which_too_little_is_observed(mode: object, context: int) -> None:
    model, frames = tiny(context=context), torch.rand(3, 4, 3)
    mask = torch.arange(4) < torch.tensor([[0], [4], [1]])
    result = mode(model, frames, 2, mask, Settings(num_samples=2))  # type: ignore[operator]
    check_shapes(result, 2, 3, 4 - context + 2)
    assert result.given.tolist() == [0, 4 - context, max(0, 1 - context)]
    assert result.lengths.tolist() == (result.given + 2).tolist()
    within = torch.arange(6 - context) < result.lengths.unsqueeze(1)
    assert (result.frames[:, within] != 0).all()
    assert (result.frames[:, ~within] == 0).all()


@pytest.mark.parametrize("mode", [reconstruct, infill])
def test_nothing_is_predicted_past_a_sequences_end(mode: object) -> None:
    model, frames = tiny(context=1), torch.rand(3, 6, 3)
    mask = torch.arange(6) < torch.tensor([[3], [6], [1]])
    mask[1, 2] = False  # missing, and predicted
    result = mode(model, frames, mask, Settings(num_samples=2))  # type: ignore[operator]
    check_shapes(result, 2, 3, 5)
    assert result.lengths.tolist() == [2, 5, 0]
    past = torch.arange(5) >= result.lengths.unsqueeze(1)
    for value in result[:6]:
        assert (value[:, past] == 0).all()
    assert (result.frames[:, ~past] != 0).all()


@pytest.mark.parametrize(
    ("shape", "mask"), [((2, 4, 5), None), ((4, 3), None), ((2, 4, 3), (2, 5)), ((2, 0, 3), None), ((0, 4, 3), None)]
)
def test_a_wrong_shape_is_one_clear_error(shape: tuple[int, ...], mask: tuple[int, int] | None) -> None:
    model, frames = tiny(), torch.rand(shape)
    flags = None if mask is None else torch.ones(mask, dtype=torch.bool)
    for call in (
        lambda: reconstruct(model, frames, flags),
        lambda: forecast(model, frames, 2, flags),
        lambda: jump(model, frames, 2, flags),
    ):
        with pytest.raises(InputError, match=r"must have shape \[") as error:
            call()
        assert "\n" not in str(error.value)


def test_what_cannot_be_asked_is_refused() -> None:
    model = tiny()
    for call in (
        lambda: forecast(model, torch.rand(1, 2, 3), -1),
        lambda: sample(model, 0, 4),
        lambda: sample(model, 2, 0),
        lambda: Settings(num_samples=0),
        lambda: sample(tiny(context=2), 2, 3),
        lambda: sample(tiny(context=2), 2, 3, torch.rand(2, 3, 3)),
    ):
        with pytest.raises(InputError):
            call()
