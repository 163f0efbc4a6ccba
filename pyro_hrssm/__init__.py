"""Hierarchical Recurrent State Space Model (Kim, Ahn and Bengio 2019) as a Pyro program."""

from pyro_hrssm.base import StateSpaceModel
from pyro_hrssm.config import DataConfig, HRSSMConfig, InputError, TrainingConfig
from pyro_hrssm.hrssm import HRSSM
from pyro_hrssm.rssm import RSSM

__all__ = ["HRSSM", "RSSM", "DataConfig", "HRSSMConfig", "InputError", "StateSpaceModel", "TrainingConfig"]
