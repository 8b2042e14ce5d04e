"""RSO's rejection sampler draws from the tilted policy, as its paper proves."""

import jax
import jax.numpy as jnp
import numpy as np
from scipy import stats

from xpo_jax.ops import selection

RUNS, CANDIDATES, BETA = 4000, 64, 0.5
POLICY = np.array([0.35, 0.25, 0.2, 0.12, 0.08])
REWARD = np.array([-0.4, 0.3, 0.0, 0.8, 1.0])
CHANCE = np.exp(
  (REWARD - REWARD.max()) / BETA
)  # to be accepted, where the best is known


def accepted(num, runs):
  """Answers accepted among fresh draws from the policy, and uniforms used."""

  def one(key):
    draw, accept = jax.random.split(key)
    log_policy = jnp.log(jnp.asarray(POLICY, jnp.float32))
    answer = jax.random.categorical(draw, log_policy, shape=(CANDIDATES,))
    reward = jnp.asarray(REWARD, jnp.float32)[answer]
    out = selection.rejection_sample(reward, num, BETA, accept)
    return answer[out.index_J], out.draws

  keys = jax.random.split(jax.random.key(0), runs)
  return jax.device_get(jax.jit(jax.vmap(one))(keys))


def test_one_of_many_candidates_follows_the_tilted_policy():
  answer, draws = accepted(1, RUNS)
  seen = np.bincount(answer[:, 0], minlength=len(POLICY))
  tilted = POLICY * CHANCE / (POLICY @ CHANCE)
  assert stats.chisquare(seen, RUNS * tilted).pvalue > 1e-3
  distance = np.abs(seen / RUNS - tilted).sum() / 2
  assert distance < 2 * np.sqrt(tilted * (1 - tilted) / RUNS).sum()
  # And the test would notice the policy itself, or twice the temperature.
  warmer = POLICY * np.exp(REWARD / (2 * BETA))
  for other in (POLICY, warmer / warmer.sum()):
    assert stats.chisquare(seen, RUNS * other).pvalue < 1e-6
  # Theorem 1: a candidate is accepted with probability E exp((r - r_max) / beta).
  rate = POLICY @ CHANCE
  error = np.sqrt(1 - rate) / rate / np.sqrt(RUNS)  # of the mean of a geometric law
  assert abs(draws.mean() - 1 / rate) < 4 * error


def test_without_replacement_eight_of_sixty_four_are_not_quite_the_tilted_policy():
  answer, _ = accepted(8, 500)
  assert answer.shape == (500, 8)  # as many as asked for, whatever the luck
  tilted = POLICY * CHANCE / (POLICY @ CHANCE)
  share = np.bincount(answer.ravel(), minlength=len(POLICY)) / answer.size
  distance = np.abs(share - tilted).sum() / 2
  to_policy = np.abs(share - POLICY).sum() / 2
  # Rare good answers run out: the bias stays, well on the right side of the policy.
  assert distance < to_policy / 4
