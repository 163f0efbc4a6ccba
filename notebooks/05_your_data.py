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
# Here: 500 signals of two channels that drift up, hold, or fall, each for a while. Put your own file in its place.

# %%
# %matplotlib inline
import os
from pathlib import Path

import numpy as np

os.makedirs("runs", exist_ok=True)
rng = np.random.default_rng(0)
slopes = rng.choice([-1.0, 0.0, 1.0], size=(500, 5, 2)).repeat(6, axis=1)  # 5 segments of 6 frames
signals = slopes.cumsum(1) + 0.1 * rng.standard_normal(slopes.shape)
np.save("runs/signals.npy", signals.astype(np.float32))

# %% [markdown]
# ## From `.npy` to segments in ten lines

# %%
from pyro_hrssm import HRSSM, data
from pyro_hrssm.cli import main
from pyro_hrssm.prediction import segment

STEPS = "3" if "PYRO_HRSSM_SMOKE" in os.environ else "800"  # quick: every cell, whose results mean nothing
if not os.path.exists("runs/signals"):
    main(["train", "--data", "runs/signals.npy", "--out", "runs/signals", "--hidden", "32", "--batch-size", "64",
          "--elbo", "leave_one_out", "--max-length", "8", "--steps", STEPS])  # fmt: skip
model = HRSSM.load("runs/signals")
splits = data.load(data.DataConfig(data="runs/signals.npy"))
found = segment(model, splits.held_out.batch(range(50)).frames)

# %% [markdown]
# ## Look at them

# %%
from pyro_hrssm import plotting

plotting.boundary_raster(found.boundaries)

# %%
from pyro_hrssm.figures import run_figures

run_figures(model, splits.held_out.batch(range(50)).frames)["reconstructions"]

# %% [markdown]
# The same from a shell: `pyro-hrssm segment runs/signals --out segments.csv` writes one row per segment, and
# `pyro-hrssm report runs/signals` one page to look through.

# %%
main(["segment", "runs/signals", "--out", "runs/segments.csv"])
print(Path("runs/segments.csv").read_text()[:300])
