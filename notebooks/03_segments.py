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
# # Are the segments right?
#
# Data whose segments are known: a colour holds for 2 to 6 frames, then another one follows. The model sees colours
# as three numbers per frame and is never told where one ends. What it finds is compared with the truth, and with
# baselines that need no model.

# %%
# %matplotlib inline
import os
from pathlib import Path

import pandas
import torch

from pyro_hrssm import HRSSM, DataConfig, data
from pyro_hrssm.cli import main
from pyro_hrssm.inference.evaluation import measure
from pyro_hrssm.plotting import abstract_states
from pyro_hrssm.prediction import reconstruct, segment
from pyro_hrssm.reports.figures import segment_figures

SMOKE = "PYRO_HRSSM_SMOKE" in os.environ  # a quick run of every cell, whose numbers mean nothing
FILE, RUN = Path("runs/colours.npz"), Path("runs/colours")
FILE.parent.mkdir(exist_ok=True)

# %% [markdown]
# ## Data and training
#
# A file gets the preset `segments`: no limits on the number or the length of segments, and nothing told about either. 600
# steps take about a minute. A run that is there already is kept.

# %%
QUICK = ["--steps", "3", "--batch-size", "8", "--particles", "2"] if SMOKE else ["--steps", "600"]
if not RUN.exists():
    data.save_npz(FILE, **data.generate("colours", 60 if SMOKE else 4000, seed=0, noise=0.1))
    main(["train", "--data", str(FILE), "--out", str(RUN), *QUICK])
model = HRSSM.load(RUN)
splits = data.load(DataConfig(data=str(FILE)))
batch = splits.held_out.batch(range(min(40, len(splits.held_out))))

# %% [markdown]
# ## Boundary raster
#
# Black: model and truth agree. Orange: the model alone. Blue: the truth alone.

# %%
figures = segment_figures(model, batch.frames, truth=batch.boundaries)
figures["segments"]

# %%
figures["segment_lengths"]

# %% [markdown]
# ## Scores
#
# Precision, recall and F1 over held-out sequences. The baselines' one parameter each (a period, a threshold, a penalty) is
# the best on the training sequences **and their truth**, which the model never sees. `best_possible` knows how the data
# were made.

# %%
scores = measure(model, splits.held_out, splits.train, particles=2 if SMOKE else 20).boundaries.to_dict()
rows = {"HRSSM": {key: scores[key] for key in ("precision", "recall", "f1", "f1_tolerance_1")}} | scores["baselines"]
pandas.DataFrame(rows).T[["precision", "recall", "f1", "f1_tolerance_1"]].round(3)

# %% [markdown]
# ## What the abstract states say
#
# One point per segment: its abstract state $z$ in the plane of the two principal components, in the colour that the
# segment's frames show. Segments of one colour lie together, though nothing told the model that colours exist.

# %%
torch.manual_seed(0)
many = splits.held_out.batch(range(len(splits.held_out))).frames
seen = reconstruct(model, many)
opens = torch.cat([torch.ones(len(many), 1, dtype=torch.bool), seen.boundaries[0, :, :-1]], 1)
colours = splits.held_out.scaling.invert(seen.frames[0][opens]).clip(0, 1)
abstract_states(seen.abstract[0][opens], colours)

# %% [markdown]
# ## How sure is it?
#
# `segment` gives the most probable path, and the exact probability of every boundary: no sampling.

# %%
figures["boundaries"]

# %%
found = segment(model, batch.frames[:1])
pandas.DataFrame({"boundary": found.boundaries[0], "probability": found.probabilities[0].numpy().round(3)}).T
