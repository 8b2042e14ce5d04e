# ---
# jupyter:
#   jupytext:
#     text_representation:
#       extension: .py
#       format_name: percent
#   kernelspec:
#     display_name: Python 3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # Margins and links
#
# Loss and gradient of every pairwise objective on one pair, as the log-probability of
# the chosen completion rises. Policy and reference start equal; completions have four
# tokens of 8 nats each, and the rise is spread evenly over them. Hyperparameters are
# the defaults, which are the papers' where a paper gives one.

# %%
import math

import matplotlib.pyplot as plt
import numpy as np

from xpo_jax import objectives
from xpo_jax.ops import links
from xpo_jax.testing import toy
from xpo_jax.types import Layout

# %% [markdown]
# ## Links
#
# GPO's observation: DPO, SLiC, IPO and others are one family, a link of the margin. All
# are convex except the savage loss, which is bounded: its gradient vanishes for very
# negative margins.

# %%
margin = np.linspace(-4, 4, 201)
figure, axis = plt.subplots(figsize=(5.5, 3.6), layout="constrained")
for link in links.LINKS.values():
  style = "-" if link.convex else "--"
  axis.plot(margin, link.fn(margin), style, label=link.name.replace("_", " "))
axis.set(xlabel="margin", ylabel="loss", ylim=(-0.2, 6))
axis.axvline(0, color="0.8", zorder=0)
_ = axis.legend(frameon=False, fontsize=8)

# %% [markdown]
# ## Every pairwise objective
#
# Loss on the left axis (blue, from its value at the start), gradient with respect to
# the rise on the right (orange). The objectives differ in where the gradient vanishes
# for positive margins (DPO: gradually; IPO: at its target, beyond which the sign
# changes; robust DPO: nowhere, its loss is unbounded below), and in whether it vanishes
# for negative ones (EXO, APO).

# %%
gap = np.linspace(-30, 30, 121)
all_objectives = {name: objectives.build(name) for name in objectives.NAMES}
pairwise = {
  name: o
  for name, o in all_objectives.items()
  if o.layout is Layout.PAIR and any(s.field == "logp_BKT" for s in o.stats)
}
columns = 5
rows = math.ceil(len(pairwise) / columns)
figure, axes = plt.subplots(
  rows, columns, figsize=(12, 1.9 * rows), sharex=True, layout="constrained"
)
for axis in axes.flat[len(pairwise) :]:
  axis.remove()
for axis, (name, objective) in zip(axes.flat, pairwise.items(), strict=False):
  curve = toy.curve(objective, gap)
  axis.plot(gap, curve.loss - curve.loss[gap.size // 2], color="C0")
  axis.set_title(name, fontsize=9)
  axis.axvline(0, color="0.85", zorder=0)
  axis.tick_params(labelsize=7)
  slope = axis.twinx()
  slope.plot(gap, curve.slope, color="C1", linewidth=1)
  slope.tick_params(labelsize=7)
_ = figure.supxlabel("log-probability that the chosen completion gained (nats)")

# %% [markdown]
# SimPO, CPO and ORPO read no reference: their curves have the same form, but a margin
# of 0 is not where policy equals reference. Methods with a separate term per side (NCA,
# BCO, APO) have a finite target for the chosen completion, which the margin alone does
# not show.
