"""What model and guide take for frames, masks and values of sites, and what they refuse in one line."""

from __future__ import annotations

from typing import Any

import numpy as np
import pyro
import pytest
import torch
from pyro import poutine
from pyro.infer import SVI, Trace_ELBO
from torch import Tensor

from pyro_hrssm import HRSSMConfig, InputError
from pyro_hrssm.inference.bounds import log_likelihood
from pyro_hrssm.inference.objectives import LeaveOneOutELBO
from pyro_hrssm.model.base import StateSpaceModel
from pyro_hrssm.prediction import forecast, infill, reconstruct, sample, segment

KINDS = ["hrssm", "rssm"]


def tiny(kind: str = "hrssm", **changes: Any) -> StateSpaceModel:
    torch.manual_seed(5)
    sizes = {"frame_shape": (3,), "hidden": 8, "abstract_size": 2, "observation_size": 2}
    return StateSpaceModel.build(HRSSMConfig(model=kind, **{**sizes, **changes}))


def batch() -> tuple[Tensor, Tensor]:
    frames, mask = torch.rand(3, 6, 3), torch.ones(3, 6, dtype=torch.bool)
    mask[0, 4:] = mask[1, 3] = False
    return frames, mask


AS = {
    "float64": lambda frames, mask: (frames.double(), mask),
    "float16": lambda frames, mask: (frames.half(), mask),
    "numpy": lambda frames, mask: (frames.numpy(), mask.numpy()),
    "numpy of doubles and numbers": lambda frames, mask: (frames.double().numpy(), mask.numpy().astype(np.uint8)),
    "numpy that cannot be written to": lambda frames, mask: (readonly(frames.numpy()), readonly(mask.numpy())),
    "numpy from right to left": lambda frames, mask: (frames.numpy().copy()[:, ::-1][:, ::-1], mask.numpy()),
    "numpy of another byte order": lambda frames, mask: (frames.numpy().astype(">f4"), mask.numpy()),
    "one of each": lambda frames, mask: (frames, mask.numpy()),
}


def readonly(array: Any) -> Any:
    array = array.copy()
    array.flags.writeable = False
    return array


@pytest.mark.parametrize("way", AS)
@pytest.mark.parametrize("kind", KINDS)
def test_frames_and_masks_of_any_plain_kind_mean_the_same(kind: str, way: str) -> None:
    model, (frames, mask) = tiny(kind, context=1), batch()
    if way == "float16":
        frames = frames.half().float()
    others = AS[way](frames, mask)

    def results(*given: Any) -> list[Tensor]:
        found = []
        for call in (
            lambda: Trace_ELBO().differentiable_loss(model.model, model.guide, *given),
            lambda: LeaveOneOutELBO(3).differentiable_loss(model.model, model.guide, *given),
            lambda: model.model(*given, horizon=2).future.mean,
            lambda: reconstruct(model, *given).frames,
            lambda: forecast(model, given[0], 2, given[1]).frames,
            lambda: infill(model, *given).frames,
            lambda: log_likelihood(model, *given, particles=2),
            lambda: segment(model, *given).probabilities if kind == "hrssm" else torch.zeros(1),
        ):
            pyro.set_rng_seed(2)
            found.append(call().detach())
        return found

    for one, two in zip(results(frames, mask), results(*others), strict=True):
        assert one.dtype == two.dtype
        assert torch.equal(one, two)


def test_frames_are_brought_to_a_double_models_precision() -> None:
    model, (frames, mask) = tiny().double(), batch()
    assert model.model(frames.numpy(), mask.numpy()).observed.mean.dtype == torch.float64


def test_a_step_on_doubles_trains() -> None:
    model, (frames, mask) = tiny(), batch()
    before = [parameter.detach().clone() for parameter in model.parameters()]
    SVI(model.model, model.guide, pyro.optim.Adam({"lr": 1e-2}), Trace_ELBO()).step(frames.double(), mask.numpy())
    assert all(not torch.equal(now, then) for now, then in zip(model.parameters(), before, strict=True))


def test_a_sample_takes_its_context_from_numpy() -> None:
    model = tiny(context=2)
    assert sample(model, 3, 4, np.random.default_rng(0).random((3, 2, 3))).frames.shape == (1, 3, 4, 3)


@pytest.mark.parametrize(
    ("frames", "mask", "words"),
    [
        ([[[0.1, 0.2, 0.3]]], None, "frames must be a tensor or a NumPy array, found list"),
        (np.zeros((2, 4, 3), dtype=np.uint8), None, "frames must be floats, found torch.uint8"),
        (np.array([[["a", "b", "c"]]]), None, "frames must hold numbers of at most 64 bits, found <U1"),
        (np.array([[None, 1.0]]), None, "frames must hold numbers of at most 64 bits, found object"),
        (torch.zeros(2, 4, 3, dtype=torch.complex64), None, "frames must be floats, found torch.complex64"),
        (np.zeros((2, 4)), None, r"frames must have shape \[B, T, 3\], found \[2, 4\]"),
        (torch.zeros(2, 4, 3), [True] * 4, "mask must be a tensor or a NumPy array, found list"),
        (torch.zeros(2, 4, 3), np.ones((2, 5), bool), r"mask must have shape \[2, 4\] or \[2, 4, 3\], found \[2, 5\]"),
        (torch.zeros(2, 4, 3), np.ones((2, 4, 2), bool), r"\[2, 4\] or \[2, 4, 3\], found \[2, 4, 2\]"),
        (torch.zeros(2, 4, 3), torch.ones(2, 4, 3), r"mask of floats \[2, 4, 3\] holds weights, which need likelihood"),
        (torch.zeros(2, 4, 3, device="meta"), None, "frames must be on the model's device, cpu, found meta"),
    ],
)
def test_what_is_not_plain_is_refused_in_one_line(frames: Any, mask: Any, words: str) -> None:
    model = tiny()
    for call in (
        lambda: model.model(frames, mask),
        lambda: model.guide(frames, mask),
        lambda: model(frames, mask),
        lambda: forecast(model, frames, 2, mask),
        lambda: segment(model, frames, mask),
        lambda: SVI(model.model, model.guide, pyro.optim.Adam({}), Trace_ELBO()).step(frames, mask),
    ):
        with pytest.raises(InputError, match=words) as caught:
            call()
        assert "\n" not in str(caught.value)
        assert "Trace Shapes" not in str(caught.value)


FLAGS = "must hold 0 and 1 alone, found"


@pytest.mark.parametrize("likelihood", ["bernoulli", "normal"])
@pytest.mark.parametrize(
    ("mask", "words"),
    [
        (torch.full((2, 4), 4), rf"mask \[2, 4\] of torch.int64 {FLAGS} 4: weights need a weight for each entry"),
        (torch.full((2, 4), 0.5), rf"mask \[2, 4\] of torch.float32 {FLAGS} 0.5: weights need a weight for each entry"),
        (np.full((2, 4), -1.0), rf"{FLAGS} -1"),
        (torch.full((2, 4), torch.nan), rf"{FLAGS} nan"),
        (torch.full((2, 4, 3), 4), rf"mask \[2, 4, 3\] of torch.int64 {FLAGS} 4: weights need floats"),
        (np.full((2, 4, 3), 255, np.uint8), rf"of torch.uint8 {FLAGS} 255: weights need floats"),
    ],
)
def test_flags_that_are_no_flags_are_refused(mask: Any, words: str, likelihood: str) -> None:
    model, frames = tiny(likelihood=likelihood), torch.rand(2, 4, 3)
    for call in (model.model, model.guide, model.accept, model.start_at):
        with pytest.raises(InputError, match=words):
            call(frames, mask)
    with pytest.raises(InputError, match=words):
        SVI(model.model, model.guide, pyro.optim.Adam({}), Trace_ELBO()).step(frames, mask)


@pytest.mark.parametrize("weight", [-1.0, float("nan"), float("inf")])
def test_weights_are_finite_and_not_negative(weight: float) -> None:
    weights = torch.ones(2, 4, 3)
    weights[1, 2, 0] = weight
    with pytest.raises(InputError, match=f"weights must be finite and at least 0, found {weight:g}"):
        tiny(likelihood="normal").model(torch.rand(2, 4, 3), weights)


@pytest.mark.parametrize("kind", [torch.bool, torch.uint8, torch.int64, torch.float32, torch.float64])
def test_flags_of_any_kind_mean_the_same(kind: torch.dtype) -> None:
    model, (frames, mask) = tiny(likelihood="normal"), batch()
    entries = mask.unsqueeze(-1).expand(3, 6, 3).clone()
    entries[2, 1, 0] = False
    for flags in (mask, entries):
        torch.manual_seed(1)
        expected = log_likelihood(model, frames, flags, particles=2)
        torch.manual_seed(1)
        torch.testing.assert_close(log_likelihood(model, frames, flags.to(kind), particles=2), expected)


def test_a_mask_without_frames_is_refused() -> None:
    with pytest.raises(InputError, match="mask must come with the frames that it is of, found frames None"):
        tiny().model(None, torch.ones(1, 4, dtype=torch.bool), horizon=4)
    with pytest.raises(InputError, match="mask must come with the context that it is of, found context None"):
        sample(tiny(), 2, 4, mask=torch.ones(2, 0, dtype=torch.bool))


# Values on which a user conditions a site

TRUTHS = {
    "bools": torch.tensor([True, False, True]),
    "numbers": torch.tensor([1, 0, 1]),
    "doubles": torch.tensor([1.0, 0.0, 1.0], dtype=torch.float64),
    "floats": torch.tensor([1.0, 0.0, 1.0]),
}


@pytest.mark.parametrize("truth", TRUTHS)
@pytest.mark.parametrize("program", ["model", "guide"])
def test_a_boundary_may_be_conditioned_by_any_truth(program: str, truth: str) -> None:
    model, (frames, _) = tiny(max_length=4), batch()

    def trace(value: Tensor) -> poutine.Trace:
        pyro.set_rng_seed(6)
        conditioned = poutine.condition(getattr(model, program), {"m_2": value})
        found = poutine.trace(conditioned).get_trace(frames, temperature=0.0)
        found.compute_log_prob()
        return found

    one, two = trace(TRUTHS["floats"]), trace(TRUTHS[truth])
    boundaries = two.nodes["_RETURN"]["value"].boundaries
    assert boundaries[2].tolist() == [1.0, 0.0, 1.0]
    assert torch.equal(one.nodes["m_2"]["log_prob"], two.nodes["m_2"]["log_prob"])
    assert torch.equal(one.log_prob_sum(), two.log_prob_sum())
    assert one.nodes["m_2"]["log_prob"].dtype == two.nodes["m_2"]["log_prob"].dtype


@pytest.mark.parametrize("value", [True, 1, 1.0, torch.tensor(True)])
def test_one_truth_holds_for_all_sequences(value: Any) -> None:
    model, (frames, mask) = tiny(), batch()
    conditioned = poutine.condition(model.model, {"m_1": value})
    trace = poutine.trace(conditioned).get_trace(frames, mask, temperature=0.0)
    trace.compute_log_prob()
    assert trace.nodes["_RETURN"]["value"].boundaries[1].tolist() == [1.0, 1.0, 1.0]
    assert trace.nodes["m_1"]["log_prob"].shape == (3,)
    with pyro.plate("copies", 2, dim=-2):
        assert conditioned(frames, mask, temperature=0.0).boundaries[1].tolist() == [[1.0] * 3] * 2


def test_states_are_brought_to_the_models_precision() -> None:
    model, (frames, _) = tiny(), batch()
    values = {"z_0": torch.zeros(3, 2, dtype=torch.float64), "s_1": np.zeros((3, 2))}
    loss = Trace_ELBO().loss(
        poutine.condition(model.model, values), poutine.block(model.guide, hide=list(values)), frames
    )
    assert np.isfinite(loss)


@pytest.mark.parametrize(
    ("site", "value", "temperature", "words"),
    [
        ("m_2", torch.tensor([True, False, True]), 0.5, "m_2 is a number whose sign decides"),
        ("m_2", torch.tensor([1, 0, 1]), 0.5, "temperature=0 along with 0 or 1, found torch.int64"),
        ("m_2", torch.tensor([0.3, 0.0, 1.0]), 0.0, r"m_2 must be 0 or 1 at temperature 0, found \[0.3"),
        ("m_2", torch.tensor([1.0, 0.0]), 0.0, r"m_2 must have shape \[3\], found \[2\]"),
        ("z_1", torch.zeros(3, 5), 0.5, r"z_1 must have shape \[3, 2\], found \[3, 5\]"),
    ],
)
def test_values_that_mean_nothing_are_refused_in_one_line(
    site: str, value: Tensor, temperature: float, words: str
) -> None:
    model, (frames, _) = tiny(), batch()
    with pytest.raises(InputError, match=words) as caught:
        poutine.trace(poutine.condition(model.model, {site: value})).get_trace(frames, temperature=temperature)
    assert "\n" not in str(caught.value)
