"""Sampled policy gradients against the exact gradient: bias and variance."""

import functools
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp

from xpo_jax import scored
from xpo_jax.studies.exact import programs
from xpo_jax.types import Array

ACTIONS = 16


def estimator(
  seed: int,
  *,
  objective: str,
  hparams: Mapping[str, Any],
  samples: int = 4,
  prompts: int = 32,
  offset: float = 3.0,
  draws: int = 400,
) -> dict[str, Array]:
  """Compares gradients on samples with the gradient of the expected reward.

  A prompt's rewards have standard deviation 1 around a mean of its own, the prompt's
  difficulty.

  Args:
    seed: of rewards, policy and samples.
    objective: of layout SAMPLED, whose column 0 is a sample or the greedy completion.
    hparams: of the objective.
    samples: completions of a prompt, the greedy one included.
    prompts: of a batch.
    offset: standard deviation of the prompts' means.
    draws: batches; a running baseline is carried from one to the next.

  Returns:
    variance: total variance of the gradient, over the squared norm of the exact one.
    bias: distance of the mean gradient from the exact one, over its norm, with the
      part that `draws` batches leave to chance.
    cosine: of the angle between mean and exact gradient.
    norm: of the mean gradient, over the exact one's.
  """
  static, traced = programs.split(hparams)
  make = programs.factory(objective)
  program = _estimator(make, static, samples, prompts, draws)
  return program(jax.random.key(seed), traced, offset)


@functools.cache
def _estimator(make, static, samples, prompts, draws):
  @jax.jit
  def program(key, traced, offset):
    objective = programs.build(make, static, traced)
    keys = jax.random.split(key, 4)
    logits_XY = jax.random.normal(keys[0], (prompts, ACTIONS))
    reward_XY = jax.random.normal(keys[1], (prompts, ACTIONS))
    reward_XY += offset * jax.random.normal(keys[2], (prompts, 1))
    row_X1 = jnp.arange(prompts)[:, None]

    def draw(state, key):
      action_XK = jax.random.categorical(key, logits_XY, shape=(samples, prompts)).T
      if objective.column0_source == "greedy":
        action_XK = action_XK.at[:, 0].set(logits_XY.argmax(1))
      at = (row_X1, action_XK)

      def loss(logits_XY):
        logp_XK = jax.nn.log_softmax(logits_XY)[at]
        s = scored.from_token_logps(
          logp_XK[..., None],
          jnp.ones((*logp_XK.shape, 1)),
          old_logp_BKT=jax.lax.stop_gradient(logp_XK)[..., None],
          reward_BK=reward_XY[at],
        )
        out = scored.evaluate(objective, s, state, key)
        return out.loss, out.state

      gradient_XY, state = jax.grad(loss, has_aux=True)(logits_XY)
      return state, -gradient_XY

    _, gradient_DXY = jax.lax.scan(
      draw, objective.init(), jax.random.split(keys[3], draws)
    )
    gradient_DXY = gradient_DXY[draws // 10 :]  # a running baseline has begun at 0

    def value(logits_XY):
      return (jax.nn.softmax(logits_XY) * reward_XY).sum(1).mean()

    exact_XY = jax.grad(value)(logits_XY)
    mean_XY = gradient_DXY.mean(0)
    norm = jnp.linalg.norm(exact_XY)
    return {
      "variance": gradient_DXY.var(0, ddof=1).sum() / norm**2,
      "bias": jnp.linalg.norm(mean_XY - exact_XY) / norm,
      "cosine": (mean_XY * exact_XY).sum() / norm / jnp.linalg.norm(mean_XY),
      "norm": jnp.linalg.norm(mean_XY) / norm,
    }

  return program
