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
# # Divergences
#
# Divergences between policy and reference as functions of the log-ratio u = log(policy
# / ref): the penalty f, its derivative f', which is the implicit reward of f-DPO, and
# the estimators k1, k2, k3 of the reverse KL from samples.

# %%
import functools

import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np

from xpo_jax import objectives
from xpo_jax.ops import divergences
from xpo_jax.testing import bandit

# %% [markdown]
# ## f and f'
#
# If f' goes to minus infinity on the left, every completion of the reference keeps
# positive probability; if it is bounded there (dashed) it need not, and f-DPO refuses
# the divergence. If f' is bounded on the right, the penalty hardly limits completions
# that are already likely.

# %%
u = jnp.linspace(-5, 4, 200)
figure, (left, right) = plt.subplots(1, 2, figsize=(10, 3.8), layout="constrained")
for divergence in divergences.DIVERGENCES.values():
  style = "-" if divergence.slope_at_0 == -np.inf else "--"
  left.plot(u, divergence.f(u), style, label=divergence.name.replace("_", " "))
  right.plot(u, divergence.slope(u), style)
left.set(xlabel="log-ratio u", ylabel="f", ylim=(-0.2, 6))
right.set(xlabel="log-ratio u", ylabel="f', the implicit reward", ylim=(-6, 4))
_ = left.legend(frameon=False, fontsize=8)

# %% [markdown]
# ## The trained policies
#
# f-DPO on the exact bandit, the same 2,000 pairs, over a range of beta. The scale of
# beta differs between divergences, so the policies are compared by their KL to the
# reference, on held-out prompts.

# %%
task = bandit.make(jax.random.key(0))
pairs = bandit.draw(task, 2000, jax.random.key(1), prompts=32)


@functools.partial(jax.jit, static_argnums=0)
def frontier(divergence, betas):
  def one(beta):
    objective = objectives.f_dpo(beta=beta, divergence=divergence)
    theta = bandit.fit(objective, task, pairs, jax.random.key(2))
    logp = bandit.logp(task, theta)[32:]
    entropy = -(jnp.exp(logp) * logp).sum(-1).mean()
    return bandit.measure(task, theta, first=32), entropy

  return jax.vmap(one)(betas)


figure, (left, right) = plt.subplots(1, 2, figsize=(10, 3.8), layout="constrained")
for name in ("reverse_kl", "forward_kl", "jensen_shannon", "alpha(0.5)"):
  divergence = divergences.DIVERGENCES[name]
  measures, entropy = frontier(divergence, jnp.geomspace(0.05, 3.0, 6))
  left.plot(measures.kl, measures.reward, "o-", ms=3, label=name.replace("_", " "))
  right.plot(measures.kl, entropy, "o-", ms=3)
left.set(xlabel="KL(policy || ref), nats", ylabel="true reward over the reference")
right.set(xlabel="KL(policy || ref), nats", ylabel="entropy of the policy, nats")
_ = left.legend(frameon=False, fontsize=8)

# %% [markdown]
# At small KL the curves nearly coincide; at larger KL the forward KL and alpha have
# less reward here (one task, one seed: no ranking of divergences). Entropy is a
# function of KL for every divergence: the policies depend on the same features.
#
# ## Estimating a KL from samples
#
# The same 200,000 samples of one policy over 32 tokens. As values k1 and k3 are
# unbiased, k2 is not; k3 is never negative and varies less than k1 when the policies
# are close. As gradients it is the other way round: in expectation that of k2 is the
# gradient of the reverse KL, that of k3 of the forward KL, and that of k1 is 0
# (tests/theory checks this exactly).

# %%
logits = jax.random.normal(jax.random.key(3), (2, 32))
logp, ref_logp = jax.nn.log_softmax(logits * 0.5)
samples = jax.random.categorical(jax.random.key(4), logp, shape=(200_000,))
log_ratio = (logp - ref_logp)[samples]
exact = divergences.between(divergences.REVERSE_KL, logp, ref_logp)
print(f"exact KL  {exact:.4f} nats")
figure, axis = plt.subplots(figsize=(6, 3.4), layout="constrained")
for estimator in (divergences.K1, divergences.K2, divergences.K3):
  estimate = estimator.fn(log_ratio)
  print(f"{estimator.name}: mean {estimate.mean():.4f}, std {estimate.std():.4f}")
  bins = np.linspace(-2.5, 3, 111)
  axis.hist(estimate, bins=bins, histtype="step", label=estimator.name)
axis.axvline(exact, color="0.5", linewidth=1)
axis.set(xlabel="estimate from one sample, nats", ylabel="samples")
_ = axis.legend(frameon=False)
