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
# Every pairwise objective of the package on one pair: its loss, and its gradient, as
# the chosen completion gains on the rejected one. Policy and reference start alike;
# completions have four tokens at 8 nats each, the rise is spread evenly over them.
# Hyperparameters are the defaults, which are the papers' where a paper gives one.

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
# are convex but the savage loss, which is bounded: a hopeless pair is given up.

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
# the gain on the right (orange). What to look for: where the gradient ends (DPO: where
# the pair is won; IPO: at its target, beyond which it pulls back), where it vanishes on
# lost pairs (EXO, APO), and which never end (robust DPO is unbounded below).

# %%
gap = np.linspace(-30, 30, 121)
built = {name: objectives.build(name) for name in objectives.NAMES}
pairwise = {
  name: o
  for name, o in built.items()
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
  found = toy.curve(objective, gap)
  axis.plot(gap, found.loss - found.loss[gap.size // 2], color="C0")
  axis.set_title(name, fontsize=9)
  axis.axvline(0, color="0.85", zorder=0)
  axis.tick_params(labelsize=7)
  slope = axis.twinx()
  slope.plot(gap, found.slope, color="C1", linewidth=1)
  slope.tick_params(labelsize=7)
_ = figure.supxlabel("log-probability that the chosen completion gained (nats)")

# %% [markdown]
# SimPO, CPO and ORPO read no reference: the curves are the same, only their zero is not
# where policy equals reference. Methods that look at each side alone (NCA, BCO, APO)
# have a finite target for the chosen answer; on the margin alone it cannot be seen.
