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
# # An online loop in plain calls
#
# Sample, ask for feedback, make a record, step: over and over. Here the policy answers
# each prompt of the exact bandit with one of twelve answers (a completion of one
# token), so that the best policy is known: the reference times exp(reward / beta),
# which is a policy of this family. PPO, RLOO and online DPO all aim at it.

# %%
import functools

import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np
import optax

from xpo_jax import objectives, scored
from xpo_jax.testing import bandit

BETA, ITERATIONS = 0.5, 600
SEEDS = jnp.arange(5)
task = bandit.make(jax.random.key(0))
prompts = jnp.arange(len(task.reward_XY))

# %% [markdown]
# ## The optimum
#
# Reward is linear in the features, and so is a policy's log-ratio: the optimum is the
# reward's own weights over beta. What a policy lacks of it is its regret.

# %%
features = task.feature_XYD.reshape(-1, task.feature_XYD.shape[-1])
reward_weights = jnp.linalg.lstsq(features, task.reward_XY.reshape(-1))[0]


def worth(theta):
  """What all three maximise: reward - beta KL, with both beside it."""
  found = bandit.measure(task, theta)
  return found.reward - BETA * found.kl, found.reward, found.kl


best, best_reward, best_kl = worth(reward_weights / BETA)
print(f"optimum: reward {best_reward:.3f} at {best_kl:.3f} nats, worth {best:.3f}")

# %% [markdown]
# ## A loop
#
# A rollout is drawn from the policy as it is; its log-probs and values are kept, for
# PPO's ratios and the KL in the reward. `record` scores the same answers by the policy
# that is being trained, and every objective reads that one record. Nothing below asks
# which method it is: what differs is the objective, how many samples a prompt has, how
# many steps are taken on them, and what the judge says.


# %%
def score(params, answer):
  """Log-prob and value of every answer, `[prompts, samples, 1]`."""
  logp = bandit.logp(task, params["theta"])[prompts[:, None], answer]
  value = jnp.broadcast_to(params["value"][:, None], answer.shape)
  return logp[..., None], value[..., None]


def record(params, answer, born, reward):
  """The record that every objective reads."""
  logp, value = score(params, answer)
  old_logp, old_value = born
  ref_logp = task.ref_logp_XY[prompts[:, None], answer][..., None]
  return scored.from_token_logps(
    logp,
    jnp.ones_like(logp),
    ref_logp,
    old_logp_BKT=old_logp,
    value_BKT=value,
    old_value_BKT=old_value,
    reward_BK=reward,
  )


def graded(reward, key):
  """A reward model: the number itself."""
  del key
  return reward


def duelled(reward, key):
  """A judge of two: the better one wins with Bradley-Terry's probability."""
  won = jax.random.bernoulli(key, jax.nn.sigmoid(reward[:, 0] - reward[:, 1]))
  return jnp.stack([won, ~won], 1).astype(jnp.float32)


@functools.partial(jax.jit, static_argnums=(0, 1, 2, 3))
def learn(make, samples, steps, judge, seeds):
  """Every seed's way: worth, reward and KL after each iteration."""
  objective = make(beta=BETA)
  chain = optax.adam(optax.linear_schedule(0.02, 0.0, ITERATIONS * steps))

  def loss(params, answer, born, reward, state, key):
    s = record(params, answer, born, reward)
    found = scored.evaluate(objective, s, state, key)
    return found.loss, found.state

  def iterate(carry, key):
    params, moments, state = carry
    drawing, judging, own = jax.random.split(key, 3)
    logp = bandit.logp(task, params["theta"])
    answer = jax.random.categorical(drawing, logp, shape=(samples, len(prompts))).T
    reward = judge(task.reward_XY[prompts[:, None], answer], judging)
    born = score(params, answer)
    for _ in range(steps):
      slope, state = jax.grad(loss, has_aux=True)(
        params, answer, born, reward, state, own
      )
      update, moments = chain.update(slope, moments)
      params = optax.apply_updates(params, update)
    return (params, moments, state), worth(params["theta"])

  def one(seed):
    width = task.feature_XYD.shape[-1]
    params = {"theta": jnp.zeros(width), "value": jnp.zeros(len(prompts))}
    begun = (params, chain.init(params), objective.init())
    keys = jax.random.split(jax.random.key(seed), ITERATIONS)
    return jax.lax.scan(iterate, begun, keys)[1]

  return jax.vmap(one)(seeds)


methods = {
  "PPO": (functools.partial(objectives.ppo, whiten_reward=False), 4, 2, graded),
  "RLOO": (objectives.rloo, 4, 1, graded),
  "online DPO": (objectives.online_dpo, 2, 1, duelled),
}
ways = {label: learn(*how, SEEDS) for label, how in methods.items()}

# %% [markdown]
# ## Towards it
#
# Left: what is missing to the optimum, mean and range over five seeds. Right: the ways
# on the plane of reward and KL, above them the optimum of every beta, which nobody can
# pass. Online DPO hears of a pair only who won, and has half the samples.

# %%
figure, (left, right) = plt.subplots(1, 2, figsize=(10, 3.8), layout="constrained")
at = np.unique(np.geomspace(1, ITERATIONS, 60).astype(int)) - 1
for label, (value, reward, kl) in ways.items():
  regret = np.asarray(best - value)[:, at]
  (line,) = left.plot(at + 1, regret.mean(0), label=label)
  left.fill_between(
    at + 1, regret.min(0), regret.max(0), color=line.get_color(), alpha=0.15
  )
  right.plot(kl.mean(0), reward.mean(0), label=label)
tied = [worth(reward_weights / beta) for beta in np.geomspace(0.4, 10, 20)]
right.plot([p[2] for p in tied], [p[1] for p in tied], "k--", lw=1, label="optima")
right.plot(best_kl, best_reward, "k*", ms=11)
left.set(xscale="log", yscale="log", xlabel="iteration", ylabel="regret")
right.set(xlabel="KL, nats", ylabel="reward over the reference")
_ = right.legend(frameon=False, fontsize=8)

# %% [markdown]
# All three end at the same policy, though none was shown it: the KL in PPO's and RLOO's
# reward and the log-ratio in DPO's margin are the same tie.

# %%
start = float(best - worth(jnp.zeros_like(reward_weights))[0])
for label, (value, _, kl) in ways.items():
  left_over = float(best - value[:, -1].mean())
  print(f"{label}: regret {start:.3f} -> {left_over:.4f}, KL {kl[:, -1].mean():.3f}")
  assert left_over < 0.1 * start
