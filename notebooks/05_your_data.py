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
# # Your own data
#
# `fit` takes any array `[N, T, …]` of sequences of vectors or images, a list of recordings of different lengths, or a
# file. NaN is a missing value.
#
# Here: 500 recordings of a machine with three sensors. It stays 4 to 8 frames in one of four states, each with levels
# of its own under noise, and then changes to another. The recordings end after 24 to 30 frames, and one reading in fifty is
# missing. Put your own array in its place.

# %%
# %matplotlib inline
import os

import numpy as np
import pandas
from matplotlib import pyplot

import pyro_hrssm
from pyro_hrssm import Run

pyplot.rcParams["figure.dpi"] = 80
STEPS = 3 if "PYRO_HRSSM_SMOKE" in os.environ else 800  # quick: every cell, whose results mean nothing
rng = np.random.default_rng(0)
durations = rng.integers(4, 9, (500, 8))
changes = rng.integers(1, 4, durations.shape).cumsum(1) % 4
states = np.stack([np.repeat(state, frames)[:30] for state, frames in zip(changes, durations, strict=True)])
levels = np.array([[0, 0, 1], [0, 2, 0], [1, 0, 0], [2, 1, 2]])[states]
readings = levels + 0.2 * rng.standard_normal(levels.shape)
readings[rng.random(readings.shape) < 0.02] = np.nan
lengths = rng.integers(24, 31, 500)
recordings = [sequence[:length] for sequence, length in zip(readings, lengths, strict=True)]

# %% [markdown]
# ## Train, and look at what was found

# %%
run = pyro_hrssm.fit(recordings, steps=STEPS)

# %% [markdown]
# `segment` gives one row per segment. The last one of a recording ends with it, so that nothing is said of how probable its end is.

# %%
table = run.segment(recordings)
pandas.DataFrame(table.columns).head(8).round(3)

# %% [markdown]
# The states are known here, though the model was not told. Precision: the share of its boundaries that are true ones; recall: the
# share of the true ones that it found.

# %%
truth = np.diff(states) != 0
inside = np.arange(1, 30) < lengths[:, None]
found = table.boundaries[:, :-1]
hits = (found & truth)[inside].sum()
print(f"precision {hits / found[inside].sum():.3f}, recall {hits / truth[inside].sum():.3f}")

# %% [markdown]
# The first recording, its segments in grey and white:

# %%
first = pandas.DataFrame(table.columns).query("sequence == 0")
_, axes = pyplot.subplots(figsize=(8, 2.5))
axes.plot(recordings[0], marker=".", label=["sensor 1", "sensor 2", "sensor 3"])
shaded = [axes.axvspan(start - 0.5, end + 0.5, color="0.92") for start, end in first[["start", "end"]].values[::2]]
axes.legend(loc="upper right", ncols=3, frameon=False)
_ = axes.set(xlabel="frame", ylim=(-0.7, 3.2))

# %% [markdown]
# ## Missing readings
#
# `infill` puts values where a reading is missing, and keeps all others.

# %%
filled = run.infill(recordings, num_samples=20).frames.mean(0)
gaps = np.isnan(readings) & (np.arange(30) < lengths[:, None])[..., None]
error = np.abs(filled - levels)[gaps].mean()
print(f"{gaps.sum()} missing readings, filled in with a mean error of {error:.2f}; the noise has a scale of 0.20")

# %% [markdown]
# ## How it may go on
#
# The distribution of the next ten frames, in the data's own units: here the second sensor of the first recording. The median
# keeps the present level until the segment may end, and the band covers the levels that may follow.

# %%
ahead = run.forecast(recordings[:1], horizon=10, quantiles=[0.1, 0.5, 0.9])
low, middle, high = ahead.future_quantiles[:, 0, :, 1]
past, future = np.arange(lengths[0]), lengths[0] + np.arange(10)
_, axes = pyplot.subplots(figsize=(8, 2.5))
axes.plot(past, recordings[0][:, 1], marker=".", label="sensor 2")
axes.plot(future, middle, color="C1", label="median")
axes.fill_between(future, low, high, color="C1", alpha=0.25, linewidth=0, label="10 to 90 %")
axes.legend(loc="upper left", ncols=3, frameon=False)
_ = axes.set(xlabel="frame", ylim=(-0.7, 3.2))

# %% [markdown]
# ## Keep the run
#
# `save` writes a folder, on which the commands work too: `pyro-hrssm report runs/signals` makes one page to look through,
# `pyro-hrssm segment runs/signals --out segments.csv` the table.

# %%
if not os.path.exists("runs/signals"):
    run.save("runs/signals")
Run.load("runs/signals")
