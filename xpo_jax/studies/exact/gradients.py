"""Sampled policy gradients against the exact gradient: bias and variance."""

import functools
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp

from xpo_jax import objectives, scored
from xpo_jax.studies.exact import programs
from xpo_jax.types import Array

PROMPTS, ACTIONS = 32, 16


def world(
  key: Array, offset: float | Array, spread: float | Array
) -> tuple[Array, Array]:
  """Logits of a policy and rewards, `[X, Y]` each; the settings are of `estimator`."""
  keys = jax.random.split(key, 4)
  logits_XY = jax.random.normal(keys[0], (PROMPTS, ACTIONS))
  mean_X1, scale_X1 = (jax.random.normal(k, (PROMPTS, 1)) for k in keys[1:3])
  reward_XY = jax.random.normal(keys[3], (PROMPTS, ACTIONS))
  reward_XY = offset * mean_X1 + jnp.exp(spread * scale_X1) * reward_XY
  return logits_XY, reward_XY


def estimator(
  seed: int,
  *,
  objective: str,
  hparams: Mapping[str, Any],
  samples: int = 4,
  offset: float = 0.0,
  spread: float = 0.0,
  draws: int = 400,
) -> dict[str, Array]:
  """Compares gradients on samples with the gradient of the expected reward.

  A prompt's rewards have a mean of its own, the prompt's difficulty, and a standard
  deviation of its own, 1 in the geometric mean.

  Args:
    seed: of rewards, policy and samples.
    objective: of layout SAMPLED, whose column 0 is a sample or the greedy completion.
    hparams: of the objective.
    samples: completions of a prompt, the greedy one included.
    offset: standard deviation of the prompts' means.
    spread: standard deviation of the log of the prompts' standard deviations.
    draws: batches; a running baseline is carried from one to the next.

  Returns:
    variance: total variance of the gradient, over the squared norm of the exact one.
    along: component of the mean gradient along the exact one, over the exact one's
      norm; 1 without bias.
    bias: squared distance of the mean gradient from the exact one, over the exact one's
      squared norm, less its expectation by chance, variance / draws; of either sign, 0
      on average without bias.
    cosine: of the angle between the exact gradient and the estimator's expectation,
      whose squared norm is that of the mean less variance / draws; by chance above 1.
  """
  static, traced = programs.split(hparams)
  make = objectives.get(objective)
  program = _estimator(make, static, samples, draws)
  return program(jax.random.key(seed), traced, offset, spread)


@functools.cache
def _estimator(make, static, samples, draws):
  @jax.jit
  def program(key, traced, offset, spread):
    objective = programs.build(make, static, traced)
    of_world, of_draws = jax.random.split(key)
    logits_XY, reward_XY = world(of_world, offset, spread)
    row_X1 = jnp.arange(PROMPTS)[:, None]

    def draw(state, key):
      of_samples, of_objective = jax.random.split(key)
      action_XK = programs.sample(objective, logits_XY, samples, of_samples)
      at = (row_X1, action_XK)

      def loss(logits_XY):
        logp_XK = jax.nn.log_softmax(logits_XY)[at]
        s = scored.from_token_logps(
          logp_XK[..., None],
          jnp.ones((*logp_XK.shape, 1)),
          old_logp_BKT=jax.lax.stop_gradient(logp_XK)[..., None],
          reward_BK=reward_XY[at],
        )
        out = scored.evaluate(objective, s, state, of_objective)
        return out.loss, out.state

      gradient_XY, state = jax.grad(loss, has_aux=True)(logits_XY)
      return state, -gradient_XY

    _, gradient_DXY = jax.lax.scan(
      draw, objective.init(), jax.random.split(of_draws, draws)
    )
    gradient_DXY = gradient_DXY[draws // 10 :]  # a running baseline has begun at 0

    def value(logits_XY):
      return (jax.nn.softmax(logits_XY) * reward_XY).sum(1).mean()

    exact_XY = jax.grad(value)(logits_XY)
    mean_XY = gradient_DXY.mean(0)
    variance = gradient_DXY.var(0, ddof=1).sum()
    chance = variance / len(gradient_DXY)
    square = (exact_XY**2).sum()
    along = (mean_XY * exact_XY).sum()
    return {
      "variance": variance / square,
      "along": along / square,
      "bias": (((mean_XY - exact_XY) ** 2).sum() - chance) / square,
      "cosine": along / jnp.sqrt(square * ((mean_XY**2).sum() - chance)),
    }

  return program
