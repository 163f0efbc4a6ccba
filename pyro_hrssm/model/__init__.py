"""The generative model p and its guide q (Kim, Ahn and Bengio 2019)."""

from pyro_hrssm.model import hrssm, rssm

__all__ = ["hrssm", "rssm"]  # imported with any module of this room: each makes its kind known to StateSpaceModel
