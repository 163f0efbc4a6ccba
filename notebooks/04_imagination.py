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
# # Full and jumpy imagination
#
# A flat model imagines the future frame by frame. The HRSSM can also *jump*: from one segment straight to the next,
# without rolling out the frames between. Both are the same generative loop; jumping holds the boundary at 1.

# %%
# %matplotlib inline
import os
from pathlib import Path

import torch

from pyro_hrssm import HRSSM, DataConfig, data
from pyro_hrssm.cli import main
from pyro_hrssm.inference.evaluation import measure
from pyro_hrssm.plotting import film_strip
from pyro_hrssm.prediction import Settings, forecast, jump

SMOKE = "PYRO_HRSSM_SMOKE" in os.environ  # a quick run of every cell, whose numbers mean nothing
FILE, RUN = Path("runs/colour_images.npz"), Path("runs/colour_images")
FILE.parent.mkdir(exist_ok=True)

# %% [markdown]
# ## A model of small images
#
# Squares of 8 by 8 pixels whose colour holds for 2 to 6 frames and then becomes another one. Training takes about
# 3 minutes. A run that is there already is kept.

# %%
QUICK = ["--steps", "3", "--batch-size", "8", "--particles", "2"] if SMOKE else ["--steps", "600"]
if not RUN.exists():
    data.save_npz(FILE, **data.generate("colours", 60 if SMOKE else 4000, seed=0, noise=0.05, image_size=8))
    main(["train", "--data", str(FILE), "--out", str(RUN), *QUICK])
model = HRSSM.load(RUN)
splits = data.load(DataConfig(data=str(FILE)))
scaling = splits.held_out.scaling
frames = splits.held_out.batch(range(4)).frames
given = frames[:, :8]  # what is seen; the rest is imagined

# %% [markdown]
# ## Full imagination
#
# Twelve frames after those given, one by one. Brackets mark the segments that the model opens on the way.

# %%
torch.manual_seed(0)
rolled = forecast(model, given, horizon=12)
shown = scaling.invert(rolled.frames[0]).clip(0, 1)
film_strip(shown, rolled.boundaries[0], rolled.given.tolist(), title="Frame by frame")

# %% [markdown]
# ## Jumpy imagination
#
# Four segments after those given: one frame each, and nothing between.

# %%
torch.manual_seed(0)
jumped = jump(model, given, num_segments=4)
shown = scaling.invert(jumped.frames[0]).clip(0, 1)
film_strip(shown, jumped.boundaries[0], jumped.given.tolist(), title="Segment by segment")

# %% [markdown]
# ## What it costs
#
# Four segments by jumping, against the frames that four segments of the mean length take.

# %%
length = measure(model, splits.held_out, particles=2).mean_segment_length
print(f"mean segment length: {length:.2f} frames")
many = Settings(num_samples=2 if SMOKE else 200)

# %%
# %timeit -n 1 -r 7 jump(model, given, 4, settings=many)

# %%
# %timeit -n 1 -r 7 forecast(model, given, round(4 * length), settings=many)

# %% [markdown]
# Both times contain the reading of the given frames. `python -m benchmarks.imagination RUN` measures the imagined
# part alone, and the quality of the forecasts.
