"""Public names of :mod:`pyro_hrssm.inference.objectives`."""

from pyro_hrssm.inference.objectives import LeaveOneOutELBO, MeanFieldObjective, Measured, Objective
from pyro_hrssm.inference.prices import RateControl

__all__ = ["LeaveOneOutELBO", "MeanFieldObjective", "Measured", "Objective", "RateControl"]
