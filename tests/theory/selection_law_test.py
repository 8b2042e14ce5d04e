"""RSO's rejection sampler draws from the tilted policy, as its paper proves."""

import jax
import jax.numpy as jnp
import numpy as np
from scipy import stats

from xpo_jax.ops import selection

RUNS, CANDIDATES, BETA = 4000, 64, 0.5
POLICY = np.array([0.35, 0.25, 0.2, 0.12, 0.08])
REWARD = np.array([-0.4, 0.3, 0.0, 0.8, 1.0])
# Probability of acceptance if the best reward is among the candidates.
ACCEPT_PROB = np.exp((REWARD - REWARD.max()) / BETA)


def accepted(num, runs):
  """Accepted completions among samples of the policy, and uniform variates used."""

  def one(key):
    draw, accept = jax.random.split(key)
    log_policy = jnp.log(jnp.asarray(POLICY, jnp.float32))
    completion = jax.random.categorical(draw, log_policy, shape=(CANDIDATES,))
    reward = jnp.asarray(REWARD, jnp.float32)[completion]
    out = selection.rejection_sample(reward, num, BETA, accept)
    return completion[out.index_J], out.draws

  keys = jax.random.split(jax.random.key(0), runs)
  return jax.device_get(jax.jit(jax.vmap(one))(keys))


def test_one_of_many_candidates_follows_the_tilted_policy():
  completion, draws = accepted(1, RUNS)
  counts = np.bincount(completion[:, 0], minlength=len(POLICY))
  tilted = POLICY * ACCEPT_PROB / (POLICY @ ACCEPT_PROB)
  assert stats.chisquare(counts, RUNS * tilted).pvalue > 1e-3
  distance = np.abs(counts / RUNS - tilted).sum() / 2
  assert distance < 2 * np.sqrt(tilted * (1 - tilted) / RUNS).sum()
  # The test rejects the policy itself, and twice the temperature.
  doubled = POLICY * np.exp(REWARD / (2 * BETA))
  for other in (POLICY, doubled / doubled.sum()):
    assert stats.chisquare(counts, RUNS * other).pvalue < 1e-6
  # Theorem 1: a candidate is accepted with probability E exp((r - r_max) / beta).
  rate = POLICY @ ACCEPT_PROB
  error = np.sqrt(1 - rate) / rate / np.sqrt(RUNS)  # of the mean of a geometric law
  assert abs(draws.mean() - 1 / rate) < 4 * error


def test_eight_of_sixty_four_without_replacement_approximate_the_tilted_policy():
  completion, _ = accepted(8, 500)
  assert completion.shape == (500, 8)  # always the requested number
  tilted = POLICY * ACCEPT_PROB / (POLICY @ ACCEPT_PROB)
  fraction = np.bincount(completion.ravel(), minlength=len(POLICY)) / completion.size
  distance = np.abs(fraction - tilted).sum() / 2
  distance_to_policy = np.abs(fraction - POLICY).sum() / 2
  # Rare good completions run out: biased, but far closer to the tilted policy.
  assert distance < distance_to_policy / 4
