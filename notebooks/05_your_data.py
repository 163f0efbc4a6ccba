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
# Any array `[N, T, …]` of sequences will do: vectors or images, as `.npy` (memory-mapped, so larger than memory if
# need be), a folder of such files, or `.npz` with `lengths`, `mask` and, if you know them, `boundaries`.
#
# Here: 500 recordings of a machine with three sensors. It stays 4 to 8 frames in one of four states, each with levels
# of its own under noise, and then changes to another. Put your own file in its place.

# %%
# %matplotlib inline
import os
from pathlib import Path

import numpy as np

os.makedirs("runs", exist_ok=True)
rng = np.random.default_rng(0)
durations = rng.integers(4, 9, (500, 8))
changes = rng.integers(1, 4, durations.shape).cumsum(1) % 4
states = np.stack([np.repeat(state, frames)[:30] for state, frames in zip(changes, durations, strict=True)])
levels = np.array([[0, 0, 1], [0, 2, 0], [1, 0, 0], [2, 1, 2]])[states]
np.save("runs/signals.npy", (levels + 0.2 * rng.standard_normal(levels.shape)).astype(np.float32))

# %% [markdown]
# ## From `.npy` to segments in ten lines

# %%
from pyro_hrssm import HRSSM, data
from pyro_hrssm.cli import main
from pyro_hrssm.prediction import segment

STEPS = "3" if "PYRO_HRSSM_SMOKE" in os.environ else "800"  # quick: every cell, whose results mean nothing
if not os.path.exists("runs/signals"):
    main(["train", "--data", "runs/signals.npy", "--out", "runs/signals", "--steps", STEPS])
model = HRSSM.load("runs/signals")
splits = data.load(data.DataConfig(data="runs/signals.npy"))
found = segment(model, splits.held_out.batch(range(50)).frames)

# %% [markdown]
# ## Look at them

# %%
from pyro_hrssm import plotting

plotting.boundary_raster(found.boundaries)

# %%
from pyro_hrssm.reports.figures import run_figures

run_figures(model, splits.held_out.batch(range(50)).frames)["reconstructions"]

# %% [markdown]
# The same from a shell: `pyro-hrssm segment runs/signals --out segments.csv` writes one row per segment, and
# `pyro-hrssm report runs/signals` one page to look through.

# %%
main(["segment", "runs/signals", "--out", "runs/segments.csv"])
print(Path("runs/segments.csv").read_text()[:300])
