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
# # The model and the guide
#
# The Hierarchical Recurrent State Space Model (HRSSM; Kim, Ahn and Bengio, *Variational Temporal Abstraction*, 2019)
# explains a sequence of frames $x_0, \dots, x_{T-1}$ by segments. A slow **abstract state** $z$ holds for a whole
# segment, a fast **observation state** $s_t$ changes at every frame, and a binary **boundary** $m_t$ says whether a
# segment ends with frame $t$. Nobody tells the model where segments end.
#
# Here every formula stands beside the Pyro site that implements it. The objects are those of the package:
# nothing is defined anew.

# %%
import inspect
import shutil

import pyro
import torch
from IPython.display import Code, Markdown
from pyro import poutine
from pyro.infer import SVI, Trace_ELBO

from pyro_hrssm import HRSSM, HRSSMConfig
from pyro_hrssm.model.levels import AbstractLevel, ObservationLevel, SegmentEmission
from pyro_hrssm.model.posterior import Posterior

pyro.set_rng_seed(0)
model = HRSSM(HRSSMConfig(frame_shape=(3,), hidden=16, abstract_size=4, observation_size=2, max_length=6))
frames = torch.rand(5, 3, 3)  # [B, T, X]: 5 sequences of 3 frames, 3 numbers each

# %% [markdown]
# ## The generative model
#
# $$p(X, Z, S, M) = \prod_t p(x_t \mid s_t, h_t)\; p(m_t \mid s_t, h_t, m_{<t})\; p(s_t \mid h_t)\; p(z_t \mid c_t, m_{t-1})$$
#
# | formula | site | where |
# |---|---|---|
# | $c_t = f_{z\text{-rnn}}(z_{t-1}, c_{t-1})$ if $m_{t-1} = 1$ (UPDATE), else $c_{t-1}$ (COPY) | | `AbstractLevel.beliefs` |
# | $z_t \sim \mathcal N(\mu_z(c_t), \sigma_z(c_t))$ if $m_{t-1} = 1$, else $z_{t-1}$ | `z_t`, masked at COPY | `AbstractLevel.prior` |
# | $h_t = f_{s\text{-mlp}}(c_t, z_t)$ if $m_{t-1} = 1$ (INIT), else $f_{s\text{-rnn}}(s_{t-1} \Vert z_t, h_{t-1})$ | | `ObservationLevel.opened`, `ObservationLevel.beliefs` |
# | $s_t \sim \mathcal N(\mu_s(h_t), \sigma_s(h_t))$ | `s_t` | `ObservationLevel.prior` |
# | $m_t \sim \mathrm{Bern}(\sigma(f_m(s_t, h_t)))$, 0 past $N_{\max}$ segments and before $l_{\min}$ frames, else 1 after $l_{\max}$ frames | `m_t` | `SegmentEmission`, `SegmentLimits` |
# | $x_t \sim p(x_t \mid s_t, h_t)$, Bernoulli or Normal | `x`, all frames in one site | `Emission.frames` |
#
# The loop itself, as it runs in training, in forecasting and in imagination:

# %%
Code(inspect.getsource(HRSSM._loop), language="python")

# %% [markdown]
# The two levels whose formulas it calls:

# %%
Code("\n\n".join(map(inspect.getsource, (AbstractLevel, ObservationLevel, SegmentEmission))), language="python")

# %% [markdown]
# ### Its graph
#
# `pyro.render_model` draws what Pyro sees: boundaries lead to everything after them, since they choose between copying
# and opening. It needs [Graphviz](https://graphviz.org)'s program `dot`.

# %%
DOT = shutil.which("dot") is not None
NO_DOT = Markdown("*Graphviz is not installed: `make system` installs it where it can. The graph is left out.*")
pyro.render_model(model.model, model_args=(frames,), render_distributions=True) if DOT else NO_DOT

# %% [markdown]
# ## The guide
#
# $$q(Z, S, M \mid X) = q(M \mid X)\; q(Z \mid M, X)\; q(S \mid Z, M, X)$$
#
# | formula | site | where |
# |---|---|---|
# | $q(m_t \mid X)$: logits $\varphi_t$ of a non-causal convolution, conditioned on the paths the limits allow | `m_t` | `Posterior.boundary_logits`, `BoundaryChain.conditioned` |
# | $q(z_t \mid M, X)$: a Normal from all frames before $t$ and the segment's frames from $t$ on; COPY where $m_{t-1} = 0$ | `z_t`, masked at COPY | `Posterior.abstract_parameters` |
# | $q(s_t \mid z_t, M, X)$: a Normal from $z_t$ and all frames of the segment (in the paper, those up to $t$: `smoothing=False`) | `s_t` | `Posterior.observation_parameters` |

# %%
Code(inspect.getsource(HRSSM.guide) + "\n\n" + inspect.getsource(Posterior), language="python")

# %%
pyro.render_model(model.guide, model_args=(frames,)) if DOT else NO_DOT

# %% [markdown]
# ## Shapes
#
# Batch shape left of the bar, event shape right of it. `m_t` is drawn between frames, so the last frame has none.

# %%
guide_trace = poutine.trace(model.guide).get_trace(frames)
model_trace = poutine.trace(poutine.replay(model.model, trace=guide_trace)).get_trace(frames)
print(model_trace.format_shapes())

# %% [markdown]
# ## Masks
#
# A segment that goes on copies its state: its site `z_t` is masked, in model and guide alike, so that it costs nothing.
# With `temperature=0` boundaries are hard; then the log density of `z_1` vanishes exactly where `m_0` is 0.

# %%
guide_trace = poutine.trace(model.guide).get_trace(frames, temperature=0.0)
guide_trace.compute_log_prob()
torch.stack([guide_trace.nodes["m_0"]["value"], guide_trace.nodes["z_1"]["log_prob"]], -1)

# %% [markdown]
# ## Training is Pyro's own
#
# `SVI` takes model and guide as they are, and one step returns the loss, here in nats per sequence. `pyro_hrssm.fit` calls
# `SVI` too, with another objective for sequences of vectors and one optimiser for all parameters together; the next notebooks
# use it.

# %%
pyro.clear_param_store()
svi = SVI(model.model, model.guide, pyro.optim.Adam({"lr": 1e-2}), Trace_ELBO())
[round(svi.step(frames, temperature=0.8) / len(frames), 2) for _ in range(5)]
