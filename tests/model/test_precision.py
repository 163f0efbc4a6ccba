"""Training in bfloat16 affects only the networks' products: training improves as in float32 and saves float32."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from pyro import poutine

from pyro_hrssm import HRSSMConfig, StateSpaceModel, TrainingConfig, checkpoint
from pyro_hrssm.data import Sequences
from pyro_hrssm.run.training import Trainer

SIZES: dict[str, Any] = {
    "hidden": 8, "abstract_size": 2, "observation_size": 2, "max_segments": 3, "max_length": 3, "channels": 4
}  # fmt: skip
KINDS: dict[str, dict[str, Any]] = {
    "rows": {"frame_shape": (3,), "window": 6},
    "context": {"frame_shape": (3,), "context": 2, "window": 4, "likelihood": "normal"},
    "images": {"frame_shape": (16, 16, 1), "window": 6},
    "flat": {"frame_shape": (3,), "model": "rssm", "window": 6},
}


def sequences(kind: str) -> Sequences:
    shape = KINDS[kind]["frame_shape"]
    # A pattern to learn, the same in all frames, and noise.
    pattern = np.random.default_rng(0).random(shape, dtype=np.float32)
    return Sequences(0.8 * pattern + 0.2 * np.random.default_rng(3).random((24, 6, *shape), dtype=np.float32))


def trainer(run: Path, kind: str, **settings: Any) -> Trainer:
    config = TrainingConfig(**({"batch_size": 8, "warmup_steps": 0, "evaluate_every": 0} | settings))
    torch.manual_seed(1)
    return Trainer(StateSpaceModel.build(HRSSMConfig(**SIZES, **KINDS[kind])), config, run, {})


def step(trainer: Trainer, kind: str) -> tuple[float, torch.Tensor]:
    """Loss per sequence and the gradient, in one vector, of one step with these random numbers."""
    gradients: list[torch.Tensor] = []
    real = trainer.optimiser.adam.step

    def noted() -> object:
        gradients.extend(p.grad.flatten().clone() for p in trainer.optimiser.parameters if p.grad is not None)
        return real()

    trainer.optimiser.adam.step = noted  # type: ignore[method-assign,assignment]
    torch.manual_seed(5)
    loss = trainer.update(sequences(kind).batch(range(8)).frames, None) / 8
    return loss, torch.cat(gradients)


@pytest.mark.filterwarnings("ignore:Failed to verify mean field")
@pytest.mark.parametrize("elbo", ["trace", "mean_field", "leave_one_out"])
@pytest.mark.parametrize("kind", KINDS)
def test_a_step_is_close_to_one_in_float32(tmp_path: Path, kind: str, elbo: str) -> None:
    exact, gradient = step(trainer(tmp_path, kind, elbo=elbo), kind)
    found, rough = step(trainer(tmp_path, kind, elbo=elbo, precision="bf16"), kind)
    assert found != exact, "nothing was computed in bfloat16"
    # bfloat16 has 8 bits: each product is off by up to 2^-9 = 0.2 %, of either sign, and the loss sums many.
    assert found == pytest.approx(exact, rel=0.01)
    # No boundary lies near enough to its threshold to be drawn differently; a few layers add 0.2 % each.
    assert (rough - gradient).norm() < 0.05 * gradient.norm()


@pytest.mark.parametrize("kind", KINDS)
def test_densities_and_draws_are_in_float32(tmp_path: Path, kind: str) -> None:
    found = trainer(tmp_path, kind, precision="bf16")
    seen: set[torch.dtype] = set()
    hook = torch.nn.modules.module.register_module_forward_hook(
        lambda *call: seen.add(call[2].dtype) if isinstance(call[2], torch.Tensor) else None
    )
    try:
        found.update(sequences(kind).batch(range(8)).frames, None)
    finally:
        hook.remove()
    assert torch.bfloat16 in seen
    for trace in found.elbo._traces:
        for name, site in trace.nodes.items():
            if site["type"] == "sample" and not poutine.util.site_is_subsample(site):
                assert site["value"].dtype is torch.float32, name
                assert site["log_prob_sum"].dtype is torch.float32, name


def test_training_descends_and_saves_and_evaluates_in_float32(tmp_path: Path) -> None:
    run = trainer(tmp_path, "rows", steps=40, learning_rate=1e-2, precision="bf16")
    data = sequences("rows")
    before = run.bound(data).nats_per_sequence
    run.fit(data, data)
    # As in float32: a random start gives every pixel a probability near 1/2.
    assert run.bound(data).nats_per_sequence < before - 0.3
    tensors = checkpoint.load(tmp_path).tensors
    named = {name: value.dtype for name, value in tensors.items() if name != checkpoint.BEST}  # a score, no weight
    kept = {name: dtype for name, dtype in named.items() if not name.startswith("random.")}
    assert set(kept.values()) == {torch.float32}
    # The same weights in a run set to float32 give the same score.
    other = trainer(tmp_path, "rows")
    other.restore(checkpoint.load(tmp_path))
    assert other.bound(data) == run.bound(data)
