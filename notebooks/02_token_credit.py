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
# # Token credit
#
# From r to Q* (arXiv:2404.12358): the log-ratio of a DPO policy, token by token, is the
# advantage of the KL-regularised optimum, r + V*(s') - V*(s): the shaped reward, not
# the reward itself. Here on a token MDP small enough to be solved exactly: 3 tokens,
# completions of length 4, a random reward for every token in every state.

# %%
import functools

import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np
import optax

from xpo_jax import objectives, scored
from xpo_jax.ops import token_mdp

V, T, BETA = 3, 4, 0.5
keys = jax.random.split(jax.random.key(0), 5)
next_SV = token_mdp.tree(V, T)
reward_SV = jax.random.normal(keys[0], next_SV.shape)
ref_logp_SV = jax.nn.log_softmax(jax.random.normal(keys[1], next_SV.shape))
optimum = token_mdp.soft_bellman(reward_SV, ref_logp_SV, next_SV, BETA, T)
completions = token_mdp.sequences(V, T)
print(f"{next_SV.shape[0]} states, {len(completions)} completions")

# %% [markdown]
# ## Labels of whole completions
#
# Pairs are sampled from the reference; a label states only which of two completions is
# preferred, by Bradley-Terry on the sum of the rewards. The policy is a table of
# logits.


# %%
def total(table, tokens):
  return token_mdp.along(table, next_SV, tokens).sum(-1)


ref_logp = total(ref_logp_SV, completions)
reward = total(reward_SV, completions)


def labelled(count, key):
  sample_key, label_key = jax.random.split(key)
  pair = jax.random.categorical(sample_key, ref_logp, shape=(count, 2))
  margin = reward[pair[:, 0]] - reward[pair[:, 1]]
  first = jax.random.bernoulli(label_key, jax.nn.sigmoid(margin))
  return completions[jnp.where(first[:, None], pair, pair[:, ::-1])]


def record(logits_SV, tokens):
  policy = token_mdp.along(jax.nn.log_softmax(logits_SV), next_SV, tokens)
  ref = token_mdp.along(ref_logp_SV, next_SV, tokens)
  return scored.from_token_logps(policy, jnp.ones_like(ref), ref)


@functools.partial(jax.jit, static_argnums=1)
def train(tokens, steps=400):
  objective = objectives.token_dpo(beta=BETA)
  optimizer = optax.adam(0.05)

  def loss(logits_SV):
    return scored.evaluate(objective, record(logits_SV, tokens)).loss

  def step(carry, _):
    logits_SV, state = carry
    update, state = optimizer.update(jax.grad(loss)(logits_SV), state)
    return (logits_SV + update, state), None

  (logits_SV, _), _ = jax.lax.scan(
    step, (ref_logp_SV, optimizer.init(ref_logp_SV)), length=steps
  )
  return objectives.token_rewards(record(logits_SV, completions[:, None]), BETA)[:, 0]


# %% [markdown]
# ## Credit against the exact advantage
#
# One row per completion (every fifth of the 81), one column per token.

# %%
exact = token_mdp.along(optimum.advantage_SV, next_SV, completions)
raw = token_mdp.along(reward_SV, next_SV, completions)
credit = {n: train(labelled(n, keys[2])) for n in (300, 1_000, 10_000)}
panels = {"reward": raw, "exact advantage": exact}
panels |= {f"credit, {n:,} pairs": x for n, x in credit.items()}
figure, axes = plt.subplots(1, len(panels), figsize=(11, 4), layout="constrained")
for axis, (title, table) in zip(axes, panels.items(), strict=True):
  image = axis.imshow(table[::5], cmap="RdBu", vmin=-3, vmax=3, aspect="auto")
  axis.set_title(title, fontsize=9)
  axis.set(xticks=range(T), yticks=[])
  for (row, column), token in np.ndenumerate(np.asarray(completions[::5])):
    axis.text(column, row, token, ha="center", va="center", fontsize=6)
axes[0].set_ylabel("completions; numbers are tokens")
_ = figure.colorbar(image, ax=axes, label="nats, or units of reward", shrink=0.8)

# %% [markdown]
# Labels of whole completions suffice to recover the credit of each token. It converges
# to the advantage as the number of pairs grows; it does not converge to the reward,
# since the exact advantage differs from the reward.


# %%
def correlation(x, y):
  return np.corrcoef(np.ravel(x), np.ravel(y))[0, 1]


for n, learned in credit.items():
  with_exact, with_raw = correlation(learned, exact), correlation(learned, raw)
  print(f"{n:6,} pairs: {with_exact:.3f} with the advantage, {with_raw:.3f} with r")
print(f"exact advantage: {correlation(exact, raw):.3f} with r")

# %% [markdown]
# ## Beam search by likelihood
#
# Under the optimum the log-probability of a prefix is, up to a constant, the rewards so
# far plus the value of the current state, divided by beta: beam search by likelihood is
# guided by the policy's own value function, towards the largest sum of r + beta log
# ref.

# %%
target = total(reward_SV + BETA * ref_logp_SV, completions)
for width in (1, 2, 4, 8):
  tokens, _ = token_mdp.beam_search(optimum.logp_SV, next_SV, width, T)
  regret = target.max() - total(reward_SV + BETA * ref_logp_SV, tokens[:1])[0]
  print(f"width {width}: {np.asarray(tokens[0])}, regret {regret:.4f}")
