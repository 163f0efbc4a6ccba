"""What a learned noise does to training at both ends: data without any noise, and data that are nothing else."""

from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from pyro_hrssm import HRSSM, HRSSMConfig, LeaveOneOut, TrainingConfig, data
from pyro_hrssm.data import Sequences
from pyro_hrssm.inference.evaluation import Evaluation
from pyro_hrssm.model.levels import FIRST_NOISE, SMALLEST_NOISE
from pyro_hrssm.run.training import Trainer


def trained(frames: NDArray[np.float32], state_weight: float, run: Path) -> tuple[HRSSM, Evaluation]:
    torch.manual_seed(1)
    config = HRSSMConfig(
        frame_shape=frames.shape[2:], hidden=16, abstract_size=4, observation_size=4, likelihood="normal",
        max_segments=None, max_length=None,
    )  # fmt: skip
    model, sequences = HRSSM(config), Sequences(frames)
    model.start_at(torch.from_numpy(frames))
    training = TrainingConfig(
        steps=250, batch_size=32, elbo=LeaveOneOut(exploration=0.3, boundary_price=0.5), learning_rate=1e-2,
        warmup_steps=20, state_weight=state_weight, evaluate_every=0,
    )  # fmt: skip
    trainer = Trainer(model, training, run, {})
    trainer.fit(sequences, sequences)
    return model, trainer.bound(sequences)


@pytest.mark.parametrize("state_weight", [1.0, 4.0])
def test_noise_free_data_keep_their_states_and_blow_nothing_up(tmp_path: Path, state_weight: float) -> None:
    frames = data.generate("colours", 256, 1, num_frames=10, noise=0.0)["frames"]
    frames = (frames - frames.mean((0, 1))) / frames.std((0, 1))
    model, scores = trained(frames, state_weight, tmp_path)
    noise = model.emission.noise(torch.zeros(3))
    # Every entry has the spread 1: what the states say is missing from its noise.
    assert ((noise > SMALLEST_NOISE) & (noise < 0.95)).all()
    assert noise.mean() < 0.7
    # Without states the frames would cost 3 · 10 entries of a standard Normal: 42.6 nats.
    assert scores.terms["emission"] < 30
    assert scores.terms["z"] + scores.terms["s"] > 3


def test_of_pure_noise_the_states_say_nothing(tmp_path: Path) -> None:
    frames = np.random.default_rng(1).standard_normal((256, 10, 3)).astype(np.float32)
    model, scores = trained(frames, 4.0, tmp_path)
    assert (model.emission.noise(torch.zeros(3)) > 2 * FIRST_NOISE).all()
    assert scores.terms["z"] + scores.terms["s"] < 3
    assert scores.nats_per_sequence == pytest.approx(42.6, abs=2.0)  # the entropy of 30 standard Normals
