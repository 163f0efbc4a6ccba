"""Progress bars: shown, hidden by their caller, hidden by the environment, also where a notebook has its own."""

import pytest
from tqdm.notebook import tqdm as notebook

from pyro_hrssm import progress


@pytest.mark.parametrize(
    ("variable", "shows", "off"),
    [(None, True, False), (None, False, True), ("1", True, True), ("0", True, False), ("", True, False)],
)
def test_a_bar_is_hidden_by_its_caller_or_the_environment(
    variable: str | None, shows: bool, off: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("TQDM_DISABLE", raising=False)
    if variable is not None:
        monkeypatch.setenv("TQDM_DISABLE", variable)
    bar = progress.bar(range(3), shows)
    assert bool(bar.disable) == off
    assert list(bar) == [0, 1, 2]


def test_a_notebooks_bar_heeds_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(progress, "tqdm", notebook)
    monkeypatch.setenv("TQDM_DISABLE", "1")
    assert list(progress.bar(range(3))) == [0, 1, 2]
    assert progress.bar(range(3)).disable
