"""The figures of a run: what they show of a model belongs together."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from pyro_hrssm import HRSSM, HRSSMConfig
from pyro_hrssm.reports import charts, figures, strips


@pytest.fixture
def model() -> HRSSM:
    torch.manual_seed(3)
    return HRSSM(HRSSMConfig(frame_shape=(9,), hidden=8, context=2, likelihood="normal")).eval()


def drawn(monkeypatch: pytest.MonkeyPatch, module: Any, name: str, found: dict[str, tuple[Any, ...]]) -> None:
    """Keep what a figure is drawn from."""
    real = getattr(module, name)
    monkeypatch.setattr(module, name, lambda *given, **named: found.update({name: given}) or real(*given, **named))


def test_all_figures_show_one_draw_of_the_states(model: HRSSM, monkeypatch: pytest.MonkeyPatch) -> None:
    found: dict[str, tuple[Any, ...]] = {}
    drawn(monkeypatch, strips, "reconstructions", found)
    drawn(monkeypatch, charts, "boundary_probabilities", found)
    figures.run_figures(model, torch.rand(3, 30, 9), truth=torch.rand(3, 30) < 0.2)
    ends, again = found["reconstructions"][2], found["boundary_probabilities"][2]
    assert 0 < ends.float().mean() < 1
    assert torch.equal(ends, again)


def test_samples_do_not_read_a_missing_frame_of_the_context(model: HRSSM, monkeypatch: pytest.MonkeyPatch) -> None:
    masks: list[Tensor | None] = []
    real = figures.sample
    monkeypatch.setattr(figures, "sample", lambda *given, mask=None: masks.append(mask) or real(*given, mask=mask))
    mask = torch.ones(3, 12, dtype=torch.bool)
    mask[0, 1] = mask[1, 5] = False
    for given in (mask, None):
        figures.run_figures(model, torch.rand(3, 12, 9), given)
    assert masks[1] is None
    assert masks[0] is not None
    assert masks[0].tolist() == [[True, False], [True, True], [True, True]]
