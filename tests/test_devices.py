"""Device and dtype come from the inputs: no host tensor, no synchronisation, no float32 among doubles.

Without a GPU, PyTorch's `meta` device stands in: its tensors have no data, so that any operation that would bring
a value to the host raises, and a dispatch mode sees every tensor made anywhere else.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyro
import pytest
import torch
from pyro import poutine
from pyro.infer import SVI, Trace_ELBO, TraceMeanField_ELBO
from torch import Tensor
from torch.distributions import kl_divergence
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from waiting import OnlyOn, waiting_is_an_error

from pyro_hrssm import checkpoint
from pyro_hrssm.checkpoint import Checkpoint
from pyro_hrssm.config import HRSSMConfig, TrainingConfig, to_dict
from pyro_hrssm.data import Sequences
from pyro_hrssm.errors import InputError
from pyro_hrssm.inference.bounds import log_weights
from pyro_hrssm.inference.objectives import LeaveOneOutELBO, Objective
from pyro_hrssm.inference.prediction import forecast, infill, jump, segment
from pyro_hrssm.model.base import StateSpaceModel
from pyro_hrssm.model.hrssm import HRSSM
from pyro_hrssm.run.parallel import device_named
from pyro_hrssm.run.training import Trainer

POSTERIORS = ["conditioned", "factorised", "limited"]

CASES = [
    *[("rows", False, posterior) for posterior in POSTERIORS],
    *[("context", True, posterior) for posterior in POSTERIORS],
    ("images", True, "conditioned"),
    ("noise", False, "conditioned"),
]
in_every_case = pytest.mark.parametrize(("kind", "masked", "posterior"), CASES)
at_every_temperature = pytest.mark.parametrize("temperature", [0.0, 0.5])


def build(kind: str, posterior: str, **where: Any) -> tuple[HRSSM, Tensor]:
    """A model with limits that bind, and four sequences of six frames."""
    sizes: dict[str, Any] = {"hidden": 8, "abstract_size": 2, "observation_size": 2, "channels": 2}
    if kind == "images":
        sizes |= {"frame_shape": (8, 8, 3), "networks": "conv", "likelihood": "normal"}
    else:
        sizes |= {"frame_shape": (3,), "context": 2 if kind == "context" else 0}
    if kind == "noise":
        sizes |= {"likelihood": "normal", "noise_scale": 0.3}  # one number, of which no tensor may be made on the host
    config = HRSSMConfig(**sizes, max_segments=2, max_length=3, window=5, boundary_posterior=posterior)
    return HRSSM(config).to(**where), torch.rand(4, 6, *config.frame_shape, **where)


def mask_for(frames: Tensor) -> Tensor:
    """A frame missing inside one sequence, and another sequence that ends early."""
    mask = torch.ones(4, 6, dtype=torch.bool)
    mask[0, 3] = mask[1, 4:] = False
    return mask.to(frames.device)


def scored(trace: poutine.Trace) -> dict[str, dict[str, Any]]:
    """The sites with a density, which excludes the index of Pyro's plate and deterministic sites."""
    pyros = ("sequences", "boundaries")
    return {name: site for name, site in trace.nodes.items() if site["type"] == "sample" and name not in pyros}


def whole_computation(model: HRSSM, frames: Tensor, mask: Tensor | None, temperature: float) -> dict[str, Tensor]:
    """Every tensor that a step of training, an evaluation and the roll-outs give, by name.

    Densities are taken one site at a time, since `Trace.log_prob_sum` starts from the number of Pyro's plate.
    """
    guide = poutine.trace(model.guide).get_trace(frames, mask, temperature=temperature, kl_weight=0.5)
    program = poutine.replay(model.model, trace=guide)
    trace = poutine.trace(program).get_trace(frames, mask, temperature=temperature, kl_weight=0.5)
    log_q = [site["fn"].log_prob(site["value"]).sum() for site in scored(guide).values()]
    log_p = [site["fn"].log_prob(site["value"]).sum() for site in scored(trace).values()]
    # These sites enter the mean-field bound.
    normals = [name for name in scored(guide) if name[0] in "zs"]
    divergences = [kl_divergence(guide.nodes[name]["fn"], trace.nodes[name]["fn"]).sum() for name in normals]
    loss = torch.stack([*log_q, *divergences]).sum() - torch.stack(log_p).sum()
    loss.backward()

    tensors = {"loss": loss}
    for name, part in (("guide", guide), ("model", trace)):
        tensors |= {f"{name} {site}": node["value"] for site, node in scored(part).items()}
    tensors |= {f"gradient of {name}": value.grad for name, value in model.named_parameters()}  # type: ignore[misc]
    for jumpy in (False, True):
        rollout = program(frames, mask, horizon=2, temperature=temperature, jumpy=jumpy)
        lists = (rollout.boundaries, rollout.abstract, rollout.observation)
        for name, part in zip(("boundary", "abstract", "observation"), lists, strict=True):
            tensors |= {f"{name} {number} {jumpy}": value for number, value in enumerate(tree_leaves(part))}
        tensors[f"future {jumpy}"] = rollout.future.mean
    if not model.config.context:
        sampled = poutine.trace(model.model).get_trace(size=4, horizon=3, temperature=temperature)
        tensors |= {f"prior {site}": node["value"] for site, node in scored(sampled).items()}
    return tensors


@pytest.fixture
def _no_validation() -> Iterator[None]:
    """Pyro's checks read values: they synchronise, and meta tensors have none."""
    with pyro.validation_enabled(False):
        yield


# The guard itself


@pytest.mark.parametrize(
    "offence",
    [
        lambda x: torch.zeros(3),
        lambda x: torch.tensor(1.0),
        lambda x: torch.as_tensor([1.0, 2.0]),
        lambda x: torch.arange(3),
        lambda x: x * torch.ones(()).neg(),
        lambda x: torch.empty(3).to(x.device),
        lambda x: x.sum().item(),
        lambda x: bool(x.sum() > 0),
        lambda x: x[x > 0],
        lambda x: x.tolist(),
    ],
)
def test_the_guard_catches(offence: Any) -> None:
    x = torch.ones(3, device="meta")
    with pytest.raises((AssertionError, RuntimeError, NotImplementedError)), OnlyOn("meta"):
        offence(x)


def test_the_guard_lets_pass() -> None:
    x = torch.ones(3, device="meta", requires_grad=True)
    with OnlyOn("meta") as guard:
        (torch.where(x > 0, 1.0, x) + torch.ones_like(x) + x.new_zeros(3) + 2).sum().backward()
        with pyro.plate("sequences", 3):
            pass
    assert guard.excepted > 0


# Devices


@pytest.mark.usefixtures("_no_validation")
@at_every_temperature
@in_every_case
def test_no_tensor_is_made_on_the_host(kind: str, masked: bool, posterior: str, temperature: float) -> None:
    model, frames = build(kind, posterior, device="meta")
    mask = mask_for(frames) if masked else None
    with OnlyOn("meta"):
        tensors = whole_computation(model, frames, mask, temperature)
    for name, value in tensors.items():
        assert value is not None, name
        assert value.device.type == "meta", name


# A default device that is not the model's


def uses(model: StateSpaceModel, frames: Tensor, mask: Tensor) -> list[Tensor]:
    """What a user may do with a model, under one seed."""
    found = []
    explored = LeaveOneOutELBO(2, credit=0.5)
    explored.exploration = 0.5
    vectorised = Trace_ELBO(num_particles=2, vectorize_particles=True, max_plate_nesting=1)
    truth = poutine.condition(model.model, {"m_1": True})
    for use in (
        lambda: Objective().differentiable_loss(model.model, model.guide, frames, mask),
        lambda: explored.differentiable_loss(model.model, model.guide, frames, mask),
        lambda: vectorised.differentiable_loss(model.model, model.guide, frames, mask),
        lambda: model(frames, mask, horizon=2).future.mean,
        lambda: forecast(model, frames.numpy(), 2, mask.numpy()).frames,
        lambda: infill(model, frames, mask).frames,
        lambda: log_weights(model, frames, mask, 2).weights,
        lambda: torch.stack(truth(frames, mask, temperature=0.0).boundaries) if model.has_segments else frames,
        lambda: segment(model, frames, mask).probabilities if model.has_segments else frames,
        lambda: jump(model, frames, 2, mask).frames if model.has_segments else frames,
    ):
        pyro.set_rng_seed(3)
        found.append(use())
    return found


@pytest.mark.usefixtures("_no_validation")
@pytest.mark.parametrize("kind", ["hrssm", "rssm"])
def test_the_users_default_device_decides_nothing(kind: str, tmp_path: Path) -> None:
    """A default of `cuda` must not reach a model on the host; the meta device, whose tensors are empty, stands in."""
    sizes: dict[str, Any] = {"frame_shape": (3,), "hidden": 8, "abstract_size": 2, "observation_size": 2}
    config = HRSSMConfig(model=kind, context=1, max_length=3, window=6, **sizes)  # type: ignore[arg-type]
    frames, mask = torch.rand(3, 6, 3), torch.ones(3, 6, dtype=torch.bool)
    mask[0, 4:] = mask[1, 3] = False
    model = StateSpaceModel.build(config)
    run = Trainer(
        model, TrainingConfig(steps=2, batch_size=8, checkpoint_every=2), tmp_path, {"model": to_dict(config)}
    )
    data = Sequences(torch.rand(24, 6, 3).numpy())
    with torch.device("meta"):
        run.fit(data, data)
        found = uses(StateSpaceModel.load(tmp_path), frames, mask)
    expected = uses(model.eval(), frames, mask)
    for one, two in zip(found, expected, strict=True):
        assert torch.equal(one, two)


# Dtypes


@at_every_temperature
@in_every_case
def test_doubles_stay_doubles(kind: str, masked: bool, posterior: str, temperature: float) -> None:
    model, frames = build(kind, posterior, dtype=torch.float64)
    tensors = whole_computation(model, frames, mask_for(frames) if masked else None, temperature)
    for name, value in tensors.items():
        assert value is not None, name
        assert value.dtype == torch.float64, name
        assert value.isfinite().all(), name


@pytest.mark.parametrize("posterior", POSTERIORS)
def test_no_single_precision_hides_in_doubles(posterior: str) -> None:
    """No float32 appears even in between: a value rounded to float32 and back would keep a double's dtype."""

    class OnlyDoubles(TorchDispatchMode):
        def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            result = func(*args, **(kwargs or {}))
            for leaf in tree_leaves(result):
                # No number but a scalar of Pyro's own, and the empty tensor by which it asks for the default device.
                if isinstance(leaf, Tensor) and leaf.is_floating_point() and leaf.dim() > 0 and leaf.numel() > 0:
                    assert leaf.dtype == torch.float64, func
            return result

    model, frames = build("context", posterior, dtype=torch.float64)
    with OnlyDoubles():
        whole_computation(model, frames, mask_for(frames), 0.5)


# On a GPU


@pytest.mark.cuda
# q draws all boundaries before z and s, in another order than p, of which Pyro warns.
@pytest.mark.filterwarnings("ignore:Failed to verify mean field restriction:UserWarning")
@pytest.mark.parametrize("posterior", POSTERIORS)
@pytest.mark.parametrize("elbo", [Trace_ELBO, TraceMeanField_ELBO])
def test_a_gpu_takes_a_step(elbo: Any, posterior: str) -> None:
    model, frames = build("context", posterior, device="cuda")
    before = [parameter.detach().clone() for parameter in model.parameters()]
    svi = SVI(model.model, model.guide, pyro.optim.Adam({"lr": 1e-2}), elbo())
    loss = svi.step(frames, mask_for(frames))
    assert loss == pytest.approx(loss)  # not NaN
    assert all(parameter.is_cuda and parameter.isfinite().all() for parameter in model.parameters())
    assert any(not torch.equal(new, old) for new, old in zip(model.parameters(), before, strict=True))


@pytest.mark.cuda
def test_a_model_that_has_run_moves_to_a_gpu() -> None:
    """Pyro's parameter store keeps the parameters registered first."""
    model, frames = build("rows", "conditioned")
    svi = SVI(model.model, model.guide, pyro.optim.Adam({"lr": 1e-2}), Trace_ELBO())
    model.model(frames)
    model.to("cuda")
    before = [parameter.detach().clone() for parameter in model.parameters()]
    svi.step(frames.to("cuda"))
    assert any(not torch.equal(new, old) for new, old in zip(model.parameters(), before, strict=True))


@pytest.mark.cuda
@at_every_temperature
def test_a_gpu_rolls_out(temperature: float) -> None:
    model, frames = build("rows", "conditioned", device="cuda")
    guide = poutine.trace(model.guide).get_trace(frames, temperature=temperature)
    for jumpy in (False, True):
        program = poutine.replay(model.model, trace=guide)
        trace = poutine.trace(program).get_trace(frames, horizon=4, temperature=temperature, jumpy=jumpy)
        assert trace.nodes["x_future"]["value"].shape == (4, 4, 3)
        assert trace.nodes["x_future"]["value"].is_cuda


@pytest.mark.cuda
@pytest.mark.usefixtures("_no_validation")
@at_every_temperature
@in_every_case
def test_a_gpu_is_never_waited_for(kind: str, masked: bool, posterior: str, temperature: float) -> None:
    model, frames = build(kind, posterior, device="cuda")
    mask = mask_for(frames) if masked else None
    whole_computation(model, frames, mask, temperature)  # first calls of libraries may synchronise
    model.zero_grad()
    with waiting_is_an_error():
        tensors = whole_computation(model, frames, mask, temperature)
    for name, value in tensors.items():
        assert value.is_cuda, name


@pytest.mark.cuda
@pytest.mark.parametrize("posterior", POSTERIORS)
def test_a_gpu_agrees_with_the_host(posterior: str) -> None:
    model, frames = build("context", posterior, dtype=torch.float64)
    mask = mask_for(frames)
    guide = poutine.trace(model.guide).get_trace(frames, mask)
    values = {name: site["value"] for name, site in scored(guide).items()}
    found = []
    for device in ("cpu", "cuda"):
        model.to(device)
        moved = {name: value.detach().to(device) for name, value in values.items()}
        for program in (model.model, model.guide):
            trace = poutine.trace(poutine.condition(program, data=moved)).get_trace(frames.to(device), mask.to(device))
            found.append(trace.log_prob_sum().item())
    # The same sums of hundreds of terms in another order, in double.
    assert found[:2] == pytest.approx(found[2:], rel=1e-9)


@pytest.mark.cuda
def test_a_checkpoint_of_a_gpu_is_one_of_the_host(tmp_path: Path) -> None:
    checkpoint.save(tmp_path, Checkpoint(1, {"weight": torch.ones(3, device="cuda")}, {}), keep=1)
    loaded = checkpoint.load(tmp_path)
    assert (loaded.step, loaded.record, list(loaded.tensors)) == (1, {}, ["weight"])
    assert torch.equal(loaded.tensors["weight"], torch.ones(3))


def test_a_device_may_have_any_name_that_torch_knows() -> None:
    assert device_named("cpu") == torch.device("cpu")
    assert device_named("cuda:1") == torch.device("cuda", 1)
    assert device_named(torch.device("meta")) == torch.device("meta")
    with pytest.raises(InputError, match="device must be auto, cpu, cuda or one of torch's, found gpu"):
        device_named("gpu")
