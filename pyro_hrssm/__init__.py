"""Hierarchical Recurrent State Space Model (Kim, Ahn and Bengio 2019) as a Pyro program."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from pyro_hrssm.files import installed_version

if TYPE_CHECKING:
    from pyro_hrssm.aeon import AeonSegmenter
    from pyro_hrssm.config import DataConfig, HRSSMConfig, LeaveOneOut, TrainingConfig
    from pyro_hrssm.errors import InputError
    from pyro_hrssm.estimator import HRSSMSegmenter
    from pyro_hrssm.model.base import StateSpaceModel
    from pyro_hrssm.model.hrssm import HRSSM
    from pyro_hrssm.model.rssm import RSSM
    from pyro_hrssm.run.fitting import fit
    from pyro_hrssm.run.trained import Run

__all__ = [
    "HRSSM",
    "RSSM",
    "AeonSegmenter",
    "DataConfig",
    "HRSSMConfig",
    "HRSSMSegmenter",
    "InputError",
    "LeaveOneOut",
    "Run",
    "StateSpaceModel",
    "TrainingConfig",
    "fit",
]

_HOMES = {
    "AeonSegmenter": "aeon",
    "DataConfig": "config",
    "HRSSM": "model.hrssm",
    "HRSSMConfig": "config",
    "HRSSMSegmenter": "estimator",
    "InputError": "errors",
    "LeaveOneOut": "config",
    "RSSM": "model.rssm",
    "Run": "run.trained",
    "StateSpaceModel": "model.base",
    "TrainingConfig": "config",
    "fit": "run.fitting",
}
"""The module that each public name is loaded from at its first use: the command line sets up its process before torch
is loaded, and importing this package must not load torch earlier."""

__version__ = installed_version("pyro-hrssm")
"""`unknown` for a source tree that was not installed."""


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
