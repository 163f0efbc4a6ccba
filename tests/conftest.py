"""Every test starts from the same state: Pyro's checks on, an empty parameter store, one seed."""

import contextlib
import os

# Fixed, because the order of a parallel sum depends on it; one, because tiny models gain nothing from more. Set before
# torch reads it, and inherited by the programs that tests start.
os.environ["OMP_NUM_THREADS"] = "1"

import pyro
import pytest
import torch

os.environ.setdefault("MPLBACKEND", "Agg")  # no window, also in a test's subprocesses
torch.set_num_threads(1)  # also where a plugin imported torch before


class TorchRandom:
    """Torch's generator, in the form that Hypothesis seeds before each example."""

    seed = staticmethod(torch.manual_seed)
    getstate = staticmethod(torch.get_rng_state)
    setstate = staticmethod(torch.set_rng_state)


TORCH_RANDOM = TorchRandom()  # Hypothesis itself keeps only a weak reference
with contextlib.suppress(ImportError):  # the tests of a GPU do without it, on a machine that may have little else
    import hypothesis

    hypothesis.register_random(TORCH_RANDOM)
    hypothesis.settings.register_profile("project", derandomize=True, deadline=None)
    hypothesis.settings.load_profile("project")


LONGEST = ("test_compiled.py", "test_reliability.py", "test_notebooks.py")
"""Files of the longest tests, which come first: begun last, one would leave all processes but its own idle."""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    items.sort(key=lambda item: LONGEST.index(item.path.name) if item.path.name in LONGEST else len(LONGEST))
    marked = [item for item in items if item.get_closest_marker("cuda")]
    if marked and not torch.cuda.is_available():
        for item in marked:
            item.add_marker(pytest.mark.skip(reason="needs an NVIDIA GPU, and torch finds none"))


@pytest.fixture(autouse=True)
def _fresh_pyro() -> None:
    pyro.enable_validation(True)
    pyro.clear_param_store()
    pyro.set_rng_seed(0)


@pytest.fixture
def no_figures(monkeypatch: pytest.MonkeyPatch) -> None:
    """A run's figures are prepared but not painted: painting takes seconds, which tests of other things save.

    The model is asked for all of them as ever, so that random numbers and errors are the same.
    """
    from pyro_hrssm.reports import figures
    from pyro_hrssm.run import training

    monkeypatch.setattr(training, "paint", lambda model, shown, *_: figures._run_makers(model, *shown) and {})
