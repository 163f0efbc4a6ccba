# ---
# jupyter:
#   jupytext:
#     formats: ipynb,py:percent
#   kernelspec:
#     display_name: Python 3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # Digits, row by row
#
# The first experiment: an MNIST digit is a sequence of 28 frames, its rows, of 28 pixels each. The model reads
# digits from top to bottom, finds segments in them, draws new ones, and completes a digit of which it saw the upper half.

# %%
# %matplotlib inline
import os

import pandas
from matplotlib import pyplot

import pyro_hrssm
from pyro_hrssm import DataConfig, data, plotting

pyplot.rcParams["figure.dpi"] = 64
SMOKE = "PYRO_HRSSM_SMOKE" in os.environ  # a quick run of every cell, whose numbers mean nothing
STEPS = 3 if SMOKE else 500

# %% [markdown]
# ## Train
#
# As `make train` does, with a quarter of its 2,000 steps: about a minute on two CPU cores. `fit` says what it read, and at
# the end it scores the 500 digits that it held out.

# %%
run = pyro_hrssm.fit("mnist5k", steps=STEPS)

# %% [markdown]
# The bound is in nats per digit, and lower is better. The loss of the training is that of relaxed boundaries, which is no
# bound; the points are the true bound of held-out digits, with boundaries of 0 and 1.

# %%
plotting.training_curves(run.metrics)

# %% [markdown]
# The terms of the bound: what the emission leaves unexplained, and what the three kinds of sites cost.

# %%
terms = pandas.Series(run.evaluation["terms"])
_ = terms.plot.barh(xlabel="nats per digit", figsize=(6, 2))

# %% [markdown]
# ## Reconstructions and segments
#
# Held-out digits, and below them what the model makes of them. Each bracket at the left is one segment, whose boundaries
# were drawn from $q(M \mid X)$.

# %%
figures = run.figures()
figures["reconstructions"]

# %% [markdown]
# How probable a boundary is after each row, before the model has seen the rows that follow (prior) and after (posterior).
# The preset for digits allows at most five segments of at most ten rows, and the model makes hardly more than the three that 28 rows
# need then. Nobody can say whether they are right: digits have no segments of their own. The next notebook has data that do.

# %%
held_out = data.load(DataConfig(data="mnist5k")).held_out
digits = run.scaling.invert(held_out.batch(range(8)).frames)  # a run takes frames as they are in the data: 0 to 255
seen = run.reconstruct(digits, num_samples=1)
plotting.boundary_probabilities(seen.prior[0], seen.posterior[0], seen.boundaries[0], limit=3)

# %% [markdown]
# ## Samples from the prior

# %%
figures["samples"]

# %% [markdown]
# ## The lower half, given the upper one
#
# Eight digits, and below them the same digits cut at row 14 and continued by the prior; then eight continuations of the
# first of them.

# %%
ahead = run.forecast(digits[:, :14], horizon=14, num_samples=8)
plotting.reconstructions(digits, ahead.frames[0], ahead.boundaries[0], title="The upper half is given")

# %%
given = [14] * 8
plotting.film_strip(ahead.frames[:, 0], ahead.boundaries[:, 0], given, title="Eight continuations of the first digit")
