"""Rejection sampling and position bias: laws of selections and of AI labels."""

import functools
from typing import Literal

import jax
import jax.numpy as jnp
import numpy as np

from xpo_jax.ops import ai_labels, selection
from xpo_jax.types import Array

ACTIONS = 20


def rejection(
  seed: int, *, candidates: int, beta: float = 0.5, draws: int = 4000
) -> dict[str, Array]:
  """The law of the first accepted of many candidates, against ref exp(r / beta) / Z.

  Args:
    seed: of reference, rewards and candidates.
    candidates: drawn from the reference, shuffled by being drawn.
    beta: temperature of the target.
    draws: independent repetitions.

  Returns:
    distance: total variation from the empirical law to the target.
    chance: the same for as many samples of the target itself.
    start: the same for samples of the reference.
    reward: mean reward of the accepted minus that of the target.
  """
  return _rejection(candidates, draws)(jax.random.key(seed), beta)


@functools.cache
def _rejection(candidates, draws):
  @jax.jit
  def program(key, beta):
    keys = jax.random.split(key, 5)
    ref_V = jax.nn.log_softmax(jax.random.normal(keys[0], (ACTIONS,)))
    reward_V = jax.random.normal(keys[1], (ACTIONS,))
    target_V = jax.nn.softmax(ref_V + reward_V / beta)

    def accepted(key):
      of_candidates, of_uniforms = jax.random.split(key)
      action_K = jax.random.categorical(of_candidates, ref_V, shape=(candidates,))
      found = selection.rejection_sample(reward_V[action_K], 1, beta, of_uniforms)
      return action_K[found.index_J[0]]

    def distance(action_D):
      law_V = jnp.bincount(action_D, length=ACTIONS) / draws
      return jnp.abs(law_V - target_V).sum() / 2

    action_D = jax.vmap(accepted)(jax.random.split(keys[2], draws))
    own_D = jax.random.categorical(keys[3], jnp.log(target_V), shape=(draws,))
    ref_D = jax.random.categorical(keys[4], ref_V, shape=(draws,))
    return {
      "distance": distance(action_D),
      "chance": distance(own_D),
      "start": distance(ref_D),
      "reward": reward_V[action_D].mean() - target_V @ reward_V,
    }

  return program


def position_bias(
  seed: int,
  *,
  bias: float,
  verdicts: Literal["one", "both orders", "two of one order"],
  noise: float = 0.7,
  pairs: int = 4000,
) -> dict[str, float]:
  """Agreement of an AI labeller with people, from one or both orders of a pair.

  The labeller's logit is the gap of qualities, plus a bias towards the completion that
  is shown first, plus noise; people choose by Bradley-Terry on the gap.

  Args:
    seed: of pairs, people and labeller, the same for any `verdicts`.
    bias: nats towards the completion shown first.
    verdicts: a verdict from one order; the mean of both orders, `ai_labels.debiased`;
      the mean of two verdicts of one order, which averages as much noise.
    noise: standard deviation of a verdict's logit, nats.
    pairs: number.

  Returns:
    agreement: fraction of pairs on which labeller and people prefer the same.
  """
  rng = np.random.default_rng(seed)
  gap_B = rng.normal(0, 2, pairs)
  human_B = rng.random(pairs) < 1 / (1 + np.exp(-gap_B))

  def verdict(shown_first):
    """Log-probabilities of "the first shown is better" and "the second"."""
    logit_B = shown_first + bias + rng.normal(0, noise, pairs)
    return jnp.stack([jax.nn.log_sigmoid(logit_B), jax.nn.log_sigmoid(-logit_B)], 1)

  shown, again, swapped = verdict(gap_B), verdict(gap_B), verdict(-gap_B)
  if verdicts == "both orders":
    first_B = np.asarray(ai_labels.debiased(shown, swapped))[:, 0]
  elif verdicts == "two of one order":
    first_B = (np.exp(shown) + np.exp(again))[:, 0] / 2
  else:
    first_B = np.exp(shown)[:, 0]
  return {"agreement": float(((first_B > 0.5) == human_B).mean())}
