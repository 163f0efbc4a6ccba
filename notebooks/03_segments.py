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
# methods that need no model.

# %%
# %matplotlib inline
import os

import numpy as np
import pandas
from matplotlib import pyplot

import pyro_hrssm
from pyro_hrssm import data, plotting

pyplot.rcParams["figure.dpi"] = 72
SMOKE = "PYRO_HRSSM_SMOKE" in os.environ  # a quick run of every cell, whose numbers mean nothing
STEPS, NUM = (3, 60) if SMOKE else (500, 4000)

# %% [markdown]
# ## Data and training
#
# `generate` returns arrays by name: the frames, the true boundaries, which training does not read, and which colour is
# which. `fit` takes such a table, or the frames alone. Nothing is told about the number or the length of segments.

# %%
colours = data.generate("colours", NUM, seed=0, noise=0.1)
run = pyro_hrssm.fit(colours, steps=STEPS)

# %% [markdown]
# The last lines are scores of the boundaries on sequences that were held out. Each other method has one parameter (a
# period, a threshold, a penalty), which is the best on the training sequences **and their truth**, which the model never
# sees. `best_possible` knows how the data were made. Colours in little noise are easy, and a threshold on the difference of two
# frames finds nearly all changes too. What it does not have is the rest of this page.

# %% [markdown]
# ## Boundaries
#
# Black: model and truth agree. Orange: the model alone. Blue: the truth alone.

# %%
figures = run.figures()
figures["segments"]

# %%
figures["segment_lengths"]

# %% [markdown]
# ## How sure is it?
#
# The probability of a boundary after each frame. The prior knows the past alone, and expects an end the more, the longer the
# segment has lasted: it has learned that segments last 2 to 6 frames. The posterior has seen the frames that follow.

# %%
figures["boundaries"]

# %% [markdown]
# ## Segments as a table
#
# New sequences, in the data's own units. `types` asks for groups of segments that are alike; they are found on the
# training sequences, without any label.

# %%
new = data.generate("colours", 150, seed=1, noise=0.1)
table = run.segment(new, types=2 if SMOKE else 8)
pandas.DataFrame(table.columns).head(8).round(3)

# %% [markdown]
# The mean colour of each type, and how many segments it has:

# %%
segments = pandas.DataFrame(table.columns)
segments[["red", "green", "blue"]] = new["frames"][table["sequence"], table["start"]]
means = segments.groupby("type")[["red", "green", "blue"]].mean()
means.assign(segments=segments["type"].value_counts()).round(2)

# %% [markdown]
# ## What the abstract states say
#
# One point per segment: its abstract state $z$ in the plane of the two principal components, in the colour that the
# segment's frames show. Segments of one colour lie together, though nothing told the model that colours exist.

# %%
seen = run.reconstruct(new["frames"], num_samples=1)
opens = np.roll(seen.boundaries[0], 1, axis=1)
opens[:, 0] = True
plotting.abstract_states(seen.abstract[0][opens], seen.frames[0][opens].clip(0, 1))
