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

from matplotlib import pyplot

import pyro_hrssm
from pyro_hrssm import data, plotting

pyplot.rcParams["figure.dpi"] = 72
SMOKE = "PYRO_HRSSM_SMOKE" in os.environ  # a quick run of every cell, whose numbers mean nothing
STEPS, NUM, DRAWS = (3, 60, 2) if SMOKE else (400, 4000, 200)

# %% [markdown]
# ## A model of small images
#
# Squares of 8 by 8 pixels whose colour holds for 2 to 6 frames and then becomes another one. The model is told neither.

# %%
squares = {"noise": 0.05, "image_size": 8}
run = pyro_hrssm.fit(data.generate("colours", NUM, seed=0, **squares), steps=STEPS)

# %%
new = data.generate("colours", 4, seed=1, **squares)["frames"]
given = new[:, :8]  # what is seen; the rest is imagined

# %% [markdown]
# ## Full imagination
#
# Twelve frames after those given, one by one. Brackets mark the segments that the model opens on the way.

# %%
rolled = run.forecast(given, horizon=12)
plotting.film_strip(rolled.frames[0].clip(0, 1), rolled.boundaries[0], rolled.given.tolist(), title="Frame by frame")

# %% [markdown]
# Which colour comes next nobody can know: the model draws one, and another one in every sample. Six of ten samples of the first
# sequence follow. Some of their segments last longer than 6 frames, which no segment of the data does: after so short a training
# the model knows colours better than lengths.

# %%
names = [f"sample {number}" for number in range(6)]
plotting.film_strip(rolled.frames[:6, 0].clip(0, 1), rolled.boundaries[:6, 0], [8] * 6, names, title="Six futures")

# %% [markdown]
# ## Jumpy imagination
#
# Four segments after those given: one frame each, and nothing between.

# %%
jumped = run.jump(given, num_segments=4)
plotting.film_strip(jumped.frames[0].clip(0, 1), jumped.boundaries[0], jumped.given.tolist(), title="By segments")

# %% [markdown]
# ## What it costs
#
# Four segments by jumping, against the frames that four segments of the mean length take.

# %%
length = run.evaluation["mean_segment_length"]
print(f"mean segment length: {length:.2f} frames")

# %%
# %timeit -n 1 -r 5 run.jump(given, 4, num_samples=DRAWS, progress=False)

# %%
# %timeit -n 1 -r 5 run.forecast(given, round(4 * length), num_samples=DRAWS, progress=False)

# %% [markdown]
# Both times contain the reading of the given frames. `python -m benchmarks.imagination RUN` measures the imagined
# part alone, and the quality of the forecasts.
