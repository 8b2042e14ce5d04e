"""Learning from samples on the tabular bandit: a path of reward and KL."""

import functools
from collections.abc import Mapping
from typing import Any, Literal

import jax
import jax.numpy as jnp
import optax

from xpo_jax import objectives, scored
from xpo_jax.studies.exact import bandits, programs
from xpo_jax.testing import bandit
from xpo_jax.types import Array

POINTS = 12


def train(
  seed: int,
  *,
  objective: str,
  hparams: Mapping[str, Any],
  samples: int = 4,
  iterations: int = 300,
  learning_rate: float = 0.03,
  noise: float = 0.0,
  labels: Literal["reward", "comparisons"] = "reward",
  sampler: Literal["policy", "reference"] = "policy",
) -> dict[str, Array]:
  """Trains on samples of the policy, or always on samples of the reference.

  Args:
    seed: of the task, as of `bandits.pairs`, and of the samples.
    objective: of layout SAMPLED.
    hparams: of the objective.
    samples: completions of a prompt in an iteration.
    iterations: updates, each on new samples.
    learning_rate: of Adam.
    noise: standard deviation of an error added to each reward.
    labels: "reward", the true one; "comparisons", a Gumbel variable is added to each
      reward, so that the best of two follows Bradley-Terry.
    sampler: who writes the completions.

  Raises:
    ValueError: iterations is not a multiple of `POINTS`, the points of a path.

  Returns:
    step: iterations done, at `POINTS` points; `bandits.measures` at each.
  """
  static, traced = programs.split(hparams)
  make = objectives.get(objective)
  program = _train(make, static, samples, iterations, labels, sampler)
  return program(jax.random.key(seed), traced, noise, learning_rate)


@functools.cache
def _train(make, static, samples, iterations, labels, sampler):
  @jax.jit
  def program(key, traced, noise, learning_rate):
    objective = programs.build(make, static, traced)
    keys = jax.random.split(key, 3)
    task = bandits.world(keys[0], True)
    row_X1 = jnp.arange(len(task.reward_XY))[:, None]

    def view(theta, key):
      of_samples, of_labels = jax.random.split(key)
      logp_XY = bandit.logp(task, theta)
      own_XY = jax.lax.stop_gradient(logp_XY)
      writer_XY = own_XY if sampler == "policy" else task.ref_logp_XY
      action_XK = programs.sample(objective, writer_XY, samples, of_samples)
      at = (row_X1, action_XK)
      draw = jax.random.gumbel if labels == "comparisons" else jax.random.normal
      scale = 1.0 if labels == "comparisons" else noise
      reward_XK = task.reward_XY[at] + scale * draw(of_labels, action_XK.shape)
      return scored.from_token_logps(
        logp_XY[at][..., None],
        jnp.ones((*action_XK.shape, 1)),
        task.ref_logp_XY[at][..., None],
        old_logp_BKT=writer_XY[at][..., None],
        reward_BK=reward_XK,
      )

    theta_PD = bandit.descent(
      objective,
      view,
      jnp.zeros(task.reward_XY.size),
      keys[2],
      optax.adam(learning_rate),
      steps=iterations,
      points=POINTS,
    )
    path = jax.vmap(lambda theta: bandits.measures(task, theta, 0))(theta_PD)
    done = (1 + jnp.arange(POINTS)) * (iterations // POINTS)
    return path | {"step": done.astype(jnp.float32)}

  return program
