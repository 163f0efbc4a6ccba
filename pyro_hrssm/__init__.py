"""Hierarchical Recurrent State Space Model (Kim, Ahn and Bengio 2019) as a Pyro program."""

from pyro_hrssm.config import DataConfig, HRSSMConfig, LeaveOneOut, TrainingConfig
from pyro_hrssm.errors import InputError
from pyro_hrssm.files import installed_version
from pyro_hrssm.model.base import StateSpaceModel
from pyro_hrssm.model.hrssm import HRSSM
from pyro_hrssm.model.rssm import RSSM

__all__ = [
    "HRSSM",
    "RSSM",
    "DataConfig",
    "HRSSMConfig",
    "InputError",
    "LeaveOneOut",
    "StateSpaceModel",
    "TrainingConfig",
]

__version__ = installed_version("pyro-hrssm")
"""`unknown` for a source tree that was not installed."""
