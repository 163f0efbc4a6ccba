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
from pathlib import Path

import pandas
import torch

from pyro_hrssm import HRSSM, DataConfig, data, plotting
from pyro_hrssm.cli import main
from pyro_hrssm.files import read_lines
from pyro_hrssm.inference.evaluation import measure
from pyro_hrssm.prediction import Settings, forecast, reconstruct, sample
from pyro_hrssm.reports.figures import prediction_figures

SMOKE = "PYRO_HRSSM_SMOKE" in os.environ  # a quick run of every cell, whose numbers mean nothing
RUN = Path("runs/rows")

# %% [markdown]
# ## Train
#
# As `make train` does, with a quarter of its 2,000 steps: about a minute on two CPU cores. A run that is there already
# is kept.

# %%
QUICK = ["--hidden", "16", "--batch-size", "8", "--particles", "2"] if SMOKE else []
if not RUN.exists():
    main(["train", "--data", "mnist5k", "--out", str(RUN), "--steps", "3" if SMOKE else "500", *QUICK])
model = HRSSM.load(RUN)
digits = data.load(DataConfig(data="mnist5k"))
held_out = digits.held_out.batch(range(8 if SMOKE else 200)).frames

# %% [markdown]
# The training loss is that of relaxed boundaries, which is no bound; the held-out points are the true bound, with hard ones.

# %%
plotting.training_curves(read_lines(RUN / "metrics.jsonl"))

# %% [markdown]
# ## The terms of the bound
#
# In nats per digit: what the emission still has to explain, and what the three kinds of sites cost.

# %%
scores = measure(model, digits.held_out, particles=2 if SMOKE else 20)
print(scores.table())

# %%
terms = pandas.Series(scores.terms, name="nats per digit").to_frame()
terms.plot.barh(legend=False, xlabel="nats per digit", figsize=(6, 2))
# %% [markdown]
# ## Reconstructions and segments
#
# Each bracket at the left is one segment. The boundaries were drawn from $q(M \mid X)$.

# %%
seen = reconstruct(model, held_out[:8])
plotting.reconstructions(held_out[:8], seen.frames[0], seen.boundaries[0])

# %% [markdown]
# How sure the model is of them, before (prior) and after (posterior) it has seen the rows that follow:

# %%
plotting.boundary_probabilities(seen.prior[0, :3], seen.posterior[0, :3], seen.boundaries[0, :3])

# %% [markdown]
# ## Samples from the prior

# %%
torch.manual_seed(2)
fresh = sample(model, num_sequences=16, horizon=28)
plotting.film_strip(fresh.frames[0], fresh.boundaries[0], title="Samples from the prior")

# %% [markdown]
# ## The lower half, given the upper one
#
# Eight digits cut at row 14 and continued by the prior; then eight continuations of the first of them.

# %%
torch.manual_seed(3)
future = forecast(model, held_out[:8, :14], horizon=14, settings=Settings(num_samples=8))
figures = prediction_figures(future)
figures["sequences"]

# %%
figures["samples"]
