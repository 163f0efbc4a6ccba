"""Models as objects: their names in Pyro's parameter store, their end there, copies and pickles."""

from __future__ import annotations

import copy
import gc
import io
import pickle
import subprocess
import sys
import weakref
from pathlib import Path
from typing import Any

import pyro
import pytest
import torch
from pyro import poutine
from pyro.infer import SVI, Trace_ELBO
from torch import Tensor

from pyro_hrssm import HRSSM, RSSM, HRSSMConfig, InputError
from pyro_hrssm.model import store
from pyro_hrssm.model.base import StateSpaceModel

FRAMES = torch.rand(4, 5, 3, generator=torch.Generator().manual_seed(1))


@pytest.fixture(autouse=True)
def _no_other_models(monkeypatch: pytest.MonkeyPatch) -> None:
    """The models of other tests have no names here, although some may still live."""
    monkeypatch.setattr(store, "_ENTRIES", weakref.WeakKeyDictionary())


def tiny(kind: str = "hrssm", **changes: Any) -> StateSpaceModel:
    sizes = {"frame_shape": (3,), "hidden": 8, "abstract_size": 2, "observation_size": 2}
    return StateSpaceModel.build(HRSSMConfig(model=kind, **{**sizes, **changes}))


def train(model: StateSpaceModel, steps: int = 2) -> None:
    svi = SVI(model.model, model.guide, pyro.optim.Adam({"lr": 1e-2}), Trace_ELBO())
    for _ in range(steps):
        svi.step(FRAMES)


def loss(model: StateSpaceModel) -> float:
    pyro.set_rng_seed(4)
    with torch.no_grad():
        return Trace_ELBO().loss(model.model, model.guide, FRAMES)


def names() -> set[str]:
    return {name.partition("$$$")[0] for name in pyro.get_param_store()}


# Names


def test_models_are_named_by_their_kind_and_number() -> None:
    models = [tiny(), tiny(), tiny("rssm"), tiny()]
    for model in models:
        train(model, 1)
    assert names() == {"hrssm", "hrssm_2", "hrssm_3", "rssm"}
    for model in models:  # the same names ever after, also in an empty store
        pyro.clear_param_store()
        train(model, 1)
        assert len(pyro.get_param_store()) == len(list(model.parameters()))


def test_a_name_may_be_chosen_before_the_first_use() -> None:
    first, second = tiny(), tiny()
    first.store_name = second.store_name = "speech"
    train(first, 1)
    train(second, 1)
    assert names() == {"speech", "speech_2"}
    with pytest.raises(InputError, match="before the first use"):
        first.store_name = "music"
    with pytest.raises(InputError, match=r"without \$\$\$"):
        tiny().store_name = "a$$$b"


def test_a_model_that_only_a_circle_holds_has_no_name_any_more() -> None:
    gc.disable()
    try:
        model: Any = tiny()
        model.circle = [model]
        train(model, 1)
        model = tiny()
        train(model, 1)
        assert names() == {"hrssm"}
    finally:
        gc.enable()


# The end of a model


def test_a_model_that_nobody_holds_is_freed_along_with_its_entries() -> None:
    models: list[Any] = []
    for _ in range(5):
        model = tiny()
        train(model)
        model.model(FRAMES, horizon=2)
        models += [weakref.ref(model), weakref.ref(next(model.parameters()))]
    assert names() <= {"hrssm", "hrssm_2"}
    del model
    gc.collect()
    assert [reference() for reference in models] == [None] * 10
    assert len(pyro.get_param_store()) == 0
    assert not pyro.get_param_store()._param_to_name


def test_the_end_of_a_model_leaves_others_and_what_was_loaded(tmp_path: Path) -> None:
    first, second = tiny(), tiny()
    train(first)
    pyro.get_param_store().save(str(tmp_path / "store"))
    train(second)
    pyro.get_param_store().load(str(tmp_path / "store"))
    pyro.param("own", torch.zeros(2))
    del first, second
    gc.collect()
    assert names() == {"hrssm", "own"}


# Values for a model in the store

RESTORE = """
import sys, pyro, torch
from pyro.infer import Trace_ELBO
from pyro_hrssm import HRSSMConfig
from pyro_hrssm.model.base import StateSpaceModel

torch.manual_seed(99)
kind, path, way = sys.argv[1:]
model = StateSpaceModel.build(
    HRSSMConfig(model=kind, frame_shape=(3,), hidden=8, abstract_size=2, observation_size=2)
)
frames = torch.rand(4, 5, 3, generator=torch.Generator().manual_seed(1))

def loss():
    pyro.set_rng_seed(4)
    with torch.no_grad():
        return Trace_ELBO().loss(model.model, model.guide, frames)

if way == "after a call":
    print(loss())
pyro.get_param_store().load(path)
print(loss())
state = model.state_dict()
print(all(torch.equal(value, state[name.partition("$$$")[2]]) for name, value in pyro.get_param_store().items()))
"""


@pytest.mark.parametrize(("kind", "way"), [("hrssm", "before"), ("hrssm", "after a call"), ("rssm", "before")])
def test_pyros_own_save_and_load_restore_a_model_in_a_new_process(tmp_path: Path, kind: str, way: str) -> None:
    model = tiny(kind)
    fresh = loss(model)
    train(model, 20)
    path = tmp_path / "store"
    pyro.get_param_store().save(str(path))
    command = [sys.executable, "-c", RESTORE, kind, str(path), way]
    result = subprocess.run(command, capture_output=True, text=True, check=True)
    *_, found, same = result.stdout.split()
    assert loss(model) < fresh - 1
    assert float(found) == pytest.approx(loss(model), rel=1e-6)  # float32
    assert same == "True"
    assert result.stderr == ""


def test_values_loaded_into_the_store_reach_predictions_too(tmp_path: Path) -> None:
    from pyro_hrssm.prediction import segment

    model = tiny()
    train(model)
    before = segment(model, FRAMES).probabilities
    path = str(tmp_path / "store")
    pyro.get_param_store().save(path)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(1.0)
    assert not torch.equal(segment(model, FRAMES).probabilities, before)
    pyro.get_param_store().load(path)
    assert torch.equal(segment(model, FRAMES).probabilities, before)


def test_a_restored_model_is_trained_on(tmp_path: Path) -> None:
    model = tiny()
    train(model)
    path = str(tmp_path / "store")
    pyro.get_param_store().save(path)
    pyro.get_param_store().load(path)
    before = [parameter.detach().clone() for parameter in model.parameters()]
    train(model, 1)
    assert all(not torch.equal(now, then) for now, then in zip(model.parameters(), before, strict=True))


def test_scopes_of_the_store_keep_models_apart() -> None:
    values, model = pyro.get_param_store(), tiny()
    with values.scope() as kept:
        train(model)
    after = [parameter.detach().clone() for parameter in model.parameters()]
    model.load_state_dict({name: value + 1 for name, value in model.state_dict().items()}, assign=True)
    with values.scope(kept):  # it holds the parameters of old, which the model has put there itself
        loss(model)
    assert all(torch.equal(now, then + 1) for now, then in zip(model.parameters(), after, strict=True))


def test_a_model_freed_in_another_scope_leaves_no_values_for_the_next() -> None:
    model = tiny()
    train(model, 1)
    with pyro.get_param_store().scope():
        del model
        gc.collect()
    assert names() == {"hrssm"}  # out of reach as the model was freed
    other = tiny(hidden=16)
    before = [parameter.clone() for parameter in other.parameters()]
    loss(other)
    assert all(map(torch.equal, before, other.parameters()))
    assert len(pyro.get_param_store()) == len(before)


def test_parameters_that_a_user_registered_are_the_models_own() -> None:
    model = tiny()
    pyro.module("hrssm", model)
    train(model, 1)
    wanted = {name: value + 1 for name, value in model.state_dict().items()}
    model.load_state_dict(wanted, assign=True)
    loss(model)
    assert all(torch.equal(value, wanted[name]) for name, value in model.state_dict().items())


def test_another_models_values_are_refused_in_one_line(tmp_path: Path) -> None:
    model = tiny(hidden=16)
    train(model)
    path = str(tmp_path / "store")
    pyro.get_param_store().save(path)
    del model
    gc.collect()
    pyro.get_param_store().load(path)
    smaller = tiny()
    with pytest.raises(InputError, match=r"hrssm\$\$\$\S+ of shape \[\d+") as caught:
        poutine.trace(smaller.model).get_trace(FRAMES)
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 300  # without Pyro's table of sites


def test_values_of_several_models_are_no_matter_of_chance(tmp_path: Path) -> None:
    first, second = tiny(), tiny()
    train(first)
    train(second)
    path = str(tmp_path / "store")
    pyro.get_param_store().save(path)
    wanted = [value.clone() for value in second.state_dict().values()]
    del first, second
    gc.collect()
    pyro.get_param_store().load(path)
    with pytest.warns(UserWarning, match="holds values of hrssm, hrssm_2, and this model is hrssm there"):
        loss(tiny())
    chosen = tiny()
    chosen.store_name = "hrssm_2"
    loss(chosen)
    assert all(torch.equal(now, then) for now, then in zip(chosen.state_dict().values(), wanted, strict=True))


# Copies and pickles


def torch_copy(model: StateSpaceModel) -> Any:
    file = io.BytesIO()
    torch.save(model, file)
    file.seek(0)
    return torch.load(file, weights_only=False)


WAYS = {"deepcopy": copy.deepcopy, "pickle": lambda model: pickle.loads(pickle.dumps(model)), "torch": torch_copy}


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("kind", ["hrssm", "rssm"])
def test_a_trained_model_can_be_copied_and_pickled(kind: str, way: str) -> None:
    model = tiny(kind, context=1)
    train(model)
    with poutine.trace(param_only=True):
        model.model(FRAMES, horizon=1)
    twin = WAYS[way](model)
    assert type(twin) is type(model)
    assert loss(twin) == loss(model)
    before: list[Tensor] = [parameter.detach().clone() for parameter in model.parameters()]
    train(twin)
    assert loss(twin) != loss(model)
    assert all(torch.equal(now, then) for now, then in zip(model.parameters(), before, strict=True))
    train(model)
    assert all(not torch.equal(now, then) for now, then in zip(model.parameters(), before, strict=True))


def test_a_pickle_opens_in_a_new_process(tmp_path: Path) -> None:
    model = tiny()
    train(model)
    torch.save(model, tmp_path / "model")
    program = (
        "import sys, pyro, torch\nfrom pyro.infer import Trace_ELBO\n"
        "model = torch.load(sys.argv[1], weights_only=False)\n"
        "frames = torch.rand(4, 5, 3, generator=torch.Generator().manual_seed(1))\n"
        "pyro.set_rng_seed(4)\nprint(Trace_ELBO().loss(model.model, model.guide, frames))"
    )
    command = [sys.executable, "-c", program, str(tmp_path / "model")]
    result = subprocess.run(command, capture_output=True, text=True, check=True)
    assert float(result.stdout) == pytest.approx(loss(model), rel=1e-6)  # float32


def test_a_model_is_called_as_pyros_modules_are() -> None:
    model = tiny()
    pyro.set_rng_seed(3)
    called = model(FRAMES, horizon=2).future.mean
    pyro.set_rng_seed(3)
    assert torch.equal(called, model.model(FRAMES, horizon=2).future.mean)
    svi = SVI(model, model.guide, pyro.optim.Adam({"lr": 1e-2}), Trace_ELBO())
    assert svi.step(FRAMES) > 0
    assert isinstance(tiny("rssm")(FRAMES), tuple)
    assert (type(model), type(tiny("rssm"))) == (HRSSM, RSSM)
