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
# # Label noise and length
#
# Two defects of preference data, and the methods against them, on the exact bandit:
# flipped labels (conservative DPO, robust DPO, beta-DPO), and labels biased towards the
# longer completion (R-DPO, SimPO). Everything is measured on held-out prompts, by
# enumeration; bands are the standard deviation over ten seeds (each with its own task,
# pairs and draws).

# %%
import functools

import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np

from xpo_jax import objectives
from xpo_jax.testing import bandit

SEEDS = jnp.arange(10)
TRAIN_PROMPTS = 32  # as many are held out


@functools.partial(jax.jit, static_argnums=0)
def draw(count, flipped, length_bias):
  """Draws a task and its pairs for every seed."""

  def one(seed):
    keys = jax.random.split(jax.random.key(seed))
    task = bandit.make(keys[0])
    settings = {
      "flipped": flipped,
      "length_bias": length_bias,
      "prompts": TRAIN_PROMPTS,
    }
    return task, bandit.draw(task, count, keys[1], **settings)

  return jax.vmap(one)(SEEDS)


@functools.partial(jax.jit, static_argnums=0)
def learn(make, hparam, task, pairs):
  """Trains on the pairs of every seed; measures on held-out prompts."""

  def one(task, pairs):
    theta = bandit.fit(make(hparam), task, pairs, jax.random.key(0))
    return bandit.measure(task, theta, first=TRAIN_PROMPTS)

  return jax.vmap(one)(task, pairs)


def sweep(make, hparams, data):
  """Measures with one row per hyperparameter, one column per seed."""
  rows = [
    learn(make, hparam, *given) for hparam, given in zip(hparams, data, strict=True)
  ]
  return jax.tree.map(lambda *x: np.stack(x), *rows)


# %% [markdown]
# ## Flipped labels
#
# 400 pairs with a fraction of the labels flipped; conservative and robust DPO are given
# the fraction. At equal beta their scale differs more than their ranking: conservative
# DPO stays near the reference, robust DPO goes far (its loss has no floor), so the
# reward at equal beta is not comparable. Accuracy on held-out pairs does not depend on
# scale.

# %%
flips = jnp.array([0.0, 0.1, 0.2, 0.3, 0.4])
against_noise = {
  "DPO": lambda flip: objectives.dpo(beta=1.0),
  "conservative DPO": lambda flip: objectives.dpo(beta=1.0, label_smoothing=flip),
  "robust DPO": lambda flip: objectives.robust_dpo(beta=1.0, flip_rate=flip),
  "beta-DPO": lambda flip: objectives.beta_dpo(beta=1.0, alpha=0.0),
}


def band(axis, x, values, label):
  mean, spread = values.mean(1), values.std(1)
  (line,) = axis.plot(x, mean, "o-", ms=3, label=label)
  axis.fill_between(x, mean - spread, mean + spread, color=line.get_color(), alpha=0.12)


noisy = [draw(400, flip, 0.0) for flip in flips]
figure, axes = plt.subplots(1, 3, figsize=(12, 3.6), layout="constrained")
for label, make in against_noise.items():
  measures = sweep(make, flips, noisy)
  quantities = (measures.accuracy, measures.reward, measures.kl)
  for axis, values in zip(axes, quantities, strict=True):
    band(axis, flips, values, label)
titles = ("accuracy on held-out pairs", "true reward over the reference", "KL, nats")
for axis, title in zip(axes, titles, strict=True):
  axis.set(xlabel="fraction of labels flipped", title=title)
_ = axes[0].legend(frameon=False, fontsize=8)

# %% [markdown]
# beta-DPO has a fixed beta here (alpha 0), so only its filter is active, which drops
# pairs with an unusual gap.
#
# ## Labels biased towards the longer completion
#
# True reward does not depend on length; each token of length difference adds 0.1 to the
# logit of the label. R-DPO penalises each token by alpha, SimPO's reward is an average
# per token.

# %%
strength = jnp.geomspace(0.1, 3.0, 6)
against_length = {
  "DPO": lambda s: objectives.dpo(beta=s),
  "R-DPO, alpha 0.05": lambda s: objectives.r_dpo(beta=s, alpha=0.05),
  "R-DPO, alpha 0.1": lambda s: objectives.r_dpo(beta=s, alpha=0.1),
  "SimPO": lambda s: objectives.simpo(beta=30.0 * s, gamma=0.0),
}


biased = [draw(1000, 0.0, 0.1)] * len(strength)
figure, (left, right) = plt.subplots(1, 2, figsize=(10, 3.8), layout="constrained")
for label, make in against_length.items():
  measures = sweep(make, strength, biased)
  kl = measures.kl.mean(1)
  left.plot(kl, measures.reward.mean(1), "o-", ms=3, label=label)
  right.plot(kl, measures.length.mean(1), "o-", ms=3)
left.set(xlabel="KL, nats", ylabel="true reward over the reference")
right.set(xlabel="KL, nats", ylabel="tokens more than the reference")
right.axhline(0, color="0.8", zorder=0)
_ = left.legend(frameon=False, fontsize=8)

# %% [markdown]
# On this task R-DPO removes the bias where alpha equals the bias of the labels (0.1 per
# token), since both have the same form. SimPO compares averages per token: it shortens
# completions for any labels, and has no reference.
