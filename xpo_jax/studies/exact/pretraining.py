"""RL beside the likelihood of pretraining data: what is forgotten, and what it costs.

Prompts of RL and of pretraining share a linear policy, but vary along other features:
a direction that the first hardly use may be one that the second depend on. As
`bandits`, each function is a cell.
"""

import functools
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import optax

from xpo_jax import objectives, scored
from xpo_jax.ops import token_stats
from xpo_jax.studies.exact import bandits, programs
from xpo_jax.testing import bandit
from xpo_jax.testing.bandit import Bandit
from xpo_jax.types import Array

SEEN = bandits.PROMPTS // 2
SCALES = (0.2, 1.8)  # of the first and the last feature of RL; reversed in pretraining


def worlds(key: Array) -> tuple[Bandit, Bandit]:
  """Tasks of RL and of pretraining; the second has no reward that matters."""
  scale_D = jnp.linspace(*SCALES, bandits.FEATURES)
  tasks = [bandits.world(own, False) for own in jax.random.split(key)]
  return tuple(
    task._replace(feature_XYD=task.feature_XYD * scale_D[None, None, ::order])
    for task, order in zip(tasks, (1, -1), strict=True)
  )


def forgotten(task: Bandit, theta_D: Array) -> Array:
  """Rise of the loss on data that the reference generates: KL(reference || policy) on
  held-out prompts, nats."""
  logp_XY, ref_XY = bandit.logp(task, theta_D)[SEEN:], task.ref_logp_XY[SEEN:]
  return token_stats.kl(ref_XY, logp_XY).mean()


def mix(
  seed: int,
  *,
  objective: str,
  hparams: Mapping[str, Any],
  likelihood: Mapping[str, Any],
  gamma: float,
  samples: int = 4,
  iterations: int = 400,
  learning_rate: float = 0.02,
) -> dict[str, Array]:
  """Adds `gamma` times the loss on pretraining data to a policy gradient's.

  Args:
    seed: of the tasks and the samples.
    objective: of layout SAMPLED.
    hparams: of the objective.
    likelihood: {"objective": its name, of layout DEMO, "hparams": names only}.
    gamma: weight of the likelihood of a completion of the reference at prompts of
      pretraining.
    samples: completions of a prompt in an iteration, of RL and of pretraining.
    iterations: updates, each on new samples.
    learning_rate: of Adam.

  Returns:
    reward: expected reward above the reference's on held-out prompts of RL; kl to the
    reference there, nats; forgotten: see the function.
  """
  static, traced = programs.split(hparams)
  text = (
    objectives.get(likelihood["objective"]),
    tuple(likelihood["hparams"].items()),
  )
  program = _mix(objectives.get(objective), static, text, samples, iterations)
  return program(jax.random.key(seed), traced, gamma, learning_rate)


@functools.cache
def _mix(make, static, text, samples, iterations):
  @jax.jit
  def program(key, traced, gamma, learning_rate):
    objective = programs.build(make, static, traced)
    likelihood = programs.build(*text, {})
    of_task, of_samples = jax.random.split(key)
    rl, pretraining = worlds(of_task)
    chain = optax.adam(learning_rate)
    row_X1 = jnp.arange(SEEN)[:, None]

    def one(carry, key):
      theta, moments, state = carry
      keys = jax.random.split(key, 3)
      old_XY = bandit.logp(rl, theta)
      at = (row_X1, programs.sample(objective, old_XY[:SEEN], samples, keys[0]))
      text_XY = pretraining.ref_logp_XY[:SEEN]
      text_at = (row_X1, programs.sample(likelihood, text_XY, samples, keys[1]))

      def loss(theta):
        own = scored.from_token_logps(
          bandit.logp(rl, theta)[at][..., None],
          jnp.ones((SEEN, samples, 1)),
          rl.ref_logp_XY[at][..., None],
          old_logp_BKT=old_XY[at][..., None],
          reward_BK=rl.reward_XY[at],
        )
        text_B1 = bandit.logp(pretraining, theta)[text_at].reshape(-1, 1)
        seen = scored.from_sequence_logps(text_B1, jnp.ones_like(text_B1))
        out = scored.evaluate(objective, own, state, keys[2])
        extra = scored.evaluate(likelihood, seen, likelihood.init())
        return out.loss + gamma * extra.loss, out.state

      gradient, state = jax.grad(loss, has_aux=True)(theta)
      update, moments = chain.update(gradient, moments)
      return (theta + update, moments, state), None

    theta = jnp.zeros(bandits.FEATURES)
    carry = (theta, chain.init(theta), objective.init())
    (theta, _, _), _ = jax.lax.scan(
      one, carry, jax.random.split(of_samples, iterations)
    )
    found = bandits.measures(rl, theta, SEEN)
    return {
      "reward": found["reward"],
      "kl": found["kl"],
      "forgotten": forgotten(pretraining, theta),
    }

  return program
