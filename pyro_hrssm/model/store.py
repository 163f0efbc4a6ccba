"""Models in Pyro's parameter store: one stable name each, values that were loaded there, and entries that go in time.

A model is named by its kind, with a number where another living model has that name already. The names of a new process
are therefore those of the last, and `get_param_store().save` and `load` restore a model there.
"""

from __future__ import annotations

import gc
import itertools
import re
import warnings
import weakref
from typing import NamedTuple

import pyro
import torch
from pyro.params.param_store import module_from_param_with_module_name, param_with_module_name
from torch import Tensor, nn

from pyro_hrssm.errors import InputError


class _Entry(NamedTuple):
    """A model's place in the store."""

    name: str
    registered: weakref.WeakValueDictionary[int, Tensor]
    """The parameters that the model has registered, by their `id`."""

    def register(self, parameter: Tensor) -> None:
        """Note a parameter as the model's own."""
        self.registered[id(parameter)] = _REGISTERED[id(parameter)] = parameter

    def owns(self, tensor: Tensor) -> bool:
        """Whether the model has registered this very tensor."""
        return self.registered.get(id(tensor)) is tensor


_REGISTERED: weakref.WeakValueDictionary[int, Tensor] = weakref.WeakValueDictionary()
"""The parameters that any model has registered, by their `id`. A model that is freed while another store is in scope
leaves its own behind; they are no values for the next model."""

_ENTRIES: weakref.WeakKeyDictionary[nn.Module, _Entry] = weakref.WeakKeyDictionary()


def is_registered(model: nn.Module) -> bool:
    """Whether the model has a name in the store."""
    return model in _ENTRIES


def adopt(model: nn.Module, wanted: str) -> str:
    """Copy the values that the store was given for this model into its parameters; return the model's name there.

    Pyro's store keeps the first parameters registered under a name. A name therefore belongs to one object, never to a
    copy of it. Of what the store holds under the name, tensors that a model registered give way to the present
    parameters; all others, loaded from a file or set by hand, are values for these.

    Arguments:
        wanted: the name, which gets a number where another living model has it.

    Raises:
        InputError: where the store holds another model's values under the name.
    """
    entry = _ENTRIES.get(model) or _enter(model, wanted)
    store = pyro.get_param_store()
    held = dict(store.named_parameters())
    given: dict[str, Tensor] = {}
    for key, parameter in model.named_parameters():
        name = param_with_module_name(entry.name, key)
        found = held.get(name)
        if found is parameter:
            continue
        entry.register(parameter)
        if found is not None:
            if not _was_registered(found):
                given[name] = parameter
            del store[name]
    if given:
        _copy(entry.name, held, given)
    return entry.name


def _copy(model: str, held: dict[str, Tensor], given: dict[str, Tensor]) -> None:
    """Copy values that the store held into the parameters of the same names."""
    for name, parameter in given.items():
        if held[name].shape != parameter.shape:
            raise InputError(
                f"Pyro's parameter store holds {name} of shape {list(held[name].shape)}, and this model's has shape "
                f"{list(parameter.shape)}: load the store that belongs to {model}, or give the model a store_name"
            )
    with torch.no_grad():
        for name, parameter in given.items():
            parameter.copy_(held[name])


def _enter(model: nn.Module, wanted: str) -> _Entry:
    """Give a model its name, and its entries an end with it."""
    taken = {entry.name for entry in _ENTRIES.values()}
    if wanted in taken:
        # A model in a circle of references keeps its name until the garbage collector comes round.
        gc.collect()
        taken = {entry.name for entry in _ENTRIES.values()}
    numbered = (wanted if number == 1 else f"{wanted}_{number}" for number in itertools.count(1))
    entry = _Entry(next(name for name in numbered if name not in taken), weakref.WeakValueDictionary())
    _warn_of_others(entry.name, wanted)
    _ENTRIES[model] = entry
    for parameter in model.parameters():
        entry.register(parameter)
    weakref.finalize(model, _leave, entry).atexit = False
    return entry


def _warn_of_others(name: str, wanted: str) -> None:
    """Warn if the store was given values for several models of this kind, or for others than this one."""
    loaded = {
        module_from_param_with_module_name(full)
        for full, tensor in pyro.get_param_store().named_parameters()
        if not _was_registered(tensor)
    }
    alike = sorted(found for found in loaded if re.fullmatch(rf"{re.escape(wanted)}(_\d+)?", found))
    if alike and alike != [name]:
        warnings.warn(
            f"Pyro's parameter store holds values of {', '.join(alike)}, and this model is {name} there; "
            "its store_name, set before its first use, chooses another",
            UserWarning,
            stacklevel=2,
        )


def _was_registered(tensor: Tensor) -> bool:
    return _REGISTERED.get(id(tensor)) is tensor


def _leave(entry: _Entry) -> None:
    """Remove a model's parameters from the store, which would keep them as long as the process lasts."""
    store = pyro.get_param_store()
    for name, tensor in list(store.named_parameters()):
        if entry.owns(tensor):
            del store[name]
