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
# # An online loop
#
# Each iteration samples completions, scores them, makes a record and takes optimiser
# steps. Here the policy gives one of twelve completions (of one token) to each prompt
# of the exact bandit, so that the optimal policy is known: the reference times
# exp(reward / beta), a policy of this family. PPO, RLOO and online DPO all have this
# optimum.

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
# Reward and log-ratio are both linear in the features: the optimum has the weights of
# the reward divided by beta. The regret of a policy is its distance in the objective
# reward - beta KL.

# %%
features = task.feature_XYD.reshape(-1, task.feature_XYD.shape[-1])
reward_weights = jnp.linalg.lstsq(features, task.reward_XY.reshape(-1))[0]


def value_of(theta):
  """The common objective reward - beta KL, the reward, and the KL."""
  measures = bandit.measure(task, theta)
  return measures.reward - BETA * measures.kl, measures.reward, measures.kl


best, best_reward, best_kl = value_of(reward_weights / BETA)
print(f"optimum: reward {best_reward:.3f} at {best_kl:.3f} nats, objective {best:.3f}")

# %% [markdown]
# ## A loop
#
# A rollout is sampled from the current policy; its log-probs and values are stored for
# PPO's ratios and the KL in the reward. `record` scores the same completions by the
# policy in training, and every objective reads this record. The code is the same for
# all methods, which differ in the objective, the number of samples per prompt, the
# number of steps per rollout, and the feedback.


# %%
def score(params, completion):
  """Log-prob and value of every completion, `[prompts, samples, 1]`."""
  logp = bandit.logp(task, params["theta"])[prompts[:, None], completion]
  value = jnp.broadcast_to(params["value"][:, None], completion.shape)
  return logp[..., None], value[..., None]


def record(params, completion, old, reward):
  """Makes the record that every objective reads."""
  logp, value = score(params, completion)
  old_logp, old_value = old
  ref_logp = task.ref_logp_XY[prompts[:, None], completion][..., None]
  return scored.from_token_logps(
    logp,
    jnp.ones_like(logp),
    ref_logp,
    old_logp_BKT=old_logp,
    value_BKT=value,
    old_value_BKT=old_value,
    reward_BK=reward,
  )


def reward_feedback(reward, key):
  """Feedback of a reward model: the reward itself."""
  del key
  return reward


def pairwise_feedback(reward, key):
  """Feedback of a pairwise judge: a win drawn by Bradley-Terry."""
  won = jax.random.bernoulli(key, jax.nn.sigmoid(reward[:, 0] - reward[:, 1]))
  return jnp.stack([won, ~won], 1).astype(jnp.float32)


@functools.partial(jax.jit, static_argnums=(0, 1, 2, 3))
def learn(make, samples, steps, feedback, seeds):
  """Trains every seed; objective, reward and KL after each iteration."""
  objective = make(beta=BETA)
  optimizer = optax.adam(optax.linear_schedule(0.02, 0.0, ITERATIONS * steps))

  def loss(params, completion, old, reward, state, key):
    s = record(params, completion, old, reward)
    out = scored.evaluate(objective, s, state, key)
    return out.loss, out.state

  def iterate(carry, key):
    params, moments, state = carry
    sample_key, feedback_key, own_key = jax.random.split(key, 3)
    logp = bandit.logp(task, params["theta"])
    completion = jax.random.categorical(
      sample_key, logp, shape=(samples, len(prompts))
    ).T
    reward = feedback(task.reward_XY[prompts[:, None], completion], feedback_key)
    old = score(params, completion)
    for _ in range(steps):
      slope, state = jax.grad(loss, has_aux=True)(
        params, completion, old, reward, state, own_key
      )
      update, moments = optimizer.update(slope, moments)
      params = optax.apply_updates(params, update)
    return (params, moments, state), value_of(params["theta"])

  def one(seed):
    width = task.feature_XYD.shape[-1]
    params = {"theta": jnp.zeros(width), "value": jnp.zeros(len(prompts))}
    start = (params, optimizer.init(params), objective.init())
    keys = jax.random.split(jax.random.key(seed), ITERATIONS)
    return jax.lax.scan(iterate, start, keys)[1]

  return jax.vmap(one)(seeds)


methods = {
  "PPO": (
    functools.partial(objectives.ppo, whiten_reward=False),
    4,
    2,
    reward_feedback,
  ),
  "RLOO": (objectives.rloo, 4, 1, reward_feedback),
  "online DPO": (objectives.online_dpo, 2, 1, pairwise_feedback),
}
runs = {label: learn(*settings, SEEDS) for label, settings in methods.items()}

# %% [markdown]
# ## Convergence
#
# Left: regret, mean and range over five seeds. Right: reward against KL during
# training, with the optima of all beta as an upper bound. Online DPO gets only the
# winner of each pair, and half the samples.

# %%
figure, (left, right) = plt.subplots(1, 2, figsize=(10, 3.8), layout="constrained")
at = np.unique(np.geomspace(1, ITERATIONS, 60).astype(int)) - 1
for label, (value, reward, kl) in runs.items():
  regret = np.asarray(best - value)[:, at]
  (line,) = left.plot(at + 1, regret.mean(0), label=label)
  left.fill_between(
    at + 1, regret.min(0), regret.max(0), color=line.get_color(), alpha=0.15
  )
  right.plot(kl.mean(0), reward.mean(0), label=label)
optima = [value_of(reward_weights / beta) for beta in np.geomspace(0.4, 10, 20)]
right.plot([p[2] for p in optima], [p[1] for p in optima], "k--", lw=1, label="optima")
right.plot(best_kl, best_reward, "k*", ms=11)
left.set(xscale="log", yscale="log", xlabel="iteration", ylabel="regret")
right.set(xlabel="KL, nats", ylabel="reward over the reference")
_ = right.legend(frameon=False, fontsize=8)

# %% [markdown]
# All three converge to the same policy: the KL in the reward of PPO and RLOO and the
# log-ratio in DPO's margin are the same regularisation.

# %%
start = float(best - value_of(jnp.zeros_like(reward_weights))[0])
for label, (value, _, kl) in runs.items():
  final = float(best - value[:, -1].mean())
  print(f"{label}: regret {start:.3f} -> {final:.4f}, KL {kl[:, -1].mean():.3f}")
  assert final < 0.1 * start
