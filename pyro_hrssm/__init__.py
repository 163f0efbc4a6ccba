"""Hierarchical Recurrent State Space Model (Kim, Ahn and Bengio 2019) as a Pyro program."""

from pyro_hrssm.config import DataConfig, HRSSMConfig, InputError, TrainingConfig
from pyro_hrssm.hrssm import HRSSM

__all__ = ["HRSSM", "DataConfig", "HRSSMConfig", "InputError", "TrainingConfig"]
