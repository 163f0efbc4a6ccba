"""The scaling's view of frames that were not scaled, and of tensors. Its map: `tests/data/test_sequences.py`."""

import numpy as np
import pytest
import torch
from torch.distributions import Normal

from pyro_hrssm.scaling import Scaling


def test_tensors_are_mapped_as_arrays_are() -> None:
    scaling, frames = Scaling((1.0, 2.0), 4.0), torch.rand(3, 2, requires_grad=True)
    np.testing.assert_array_equal(scaling.apply(frames), scaling.apply(frames.detach().numpy()))
    np.testing.assert_array_equal(scaling.invert(frames), scaling.invert(frames.detach().numpy()))


@pytest.mark.parametrize("scaling", [Scaling(), Scaling(0.3, 2.0), Scaling((1.0, -2.0), (0.1, 30.0))])
def test_nats_if_raw_are_a_difference_of_log_densities(scaling: Scaling) -> None:
    frames = torch.randn(50, 2, dtype=torch.float64)
    raw = Normal(torch.tensor(scaling.shift).double(), torch.tensor(scaling.scale).double()).log_prob(frames)
    expected = (raw - Normal(0.0, 1.0).log_prob(frames)).mean()
    torch.testing.assert_close(scaling.nats_if_raw(frames), expected, rtol=1e-6, atol=1e-9)
