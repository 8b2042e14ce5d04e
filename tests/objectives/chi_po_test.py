"""chi-PO against its formula."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.compiled import scored
from xpo_jax import objectives


def evaluate(u_B2, **hparams):
  u_B2 = jnp.asarray(u_B2, jnp.float32)
  s = scored.from_sequence_logps(u_B2, jnp.ones_like(u_B2), jnp.zeros_like(u_B2))
  return scored.evaluate(objectives.chi_po(**hparams), s)


def oracle(u_B2, beta, largest_reward):
  """The paper's loss in float64."""
  u_B2 = np.asarray(u_B2, np.float64)
  phi_B2 = np.exp(u_B2) + u_B2
  margin_B = beta * (phi_B2[:, 0] - phi_B2[:, 1])
  bounded_B = np.clip(margin_B, -2 * largest_reward, 2 * largest_reward)
  return np.log1p(np.exp(-bounded_B))


def check():
  u_B2 = [[0.3, -0.8], [-1.2, 0.4], [1.5, 1.0], [3.0, -2.0], [-2.0, 3.0]]
  out = evaluate(u_B2, beta=0.5, largest_reward=1.5)
  np.testing.assert_allclose(out.per_example_B, oracle(u_B2, 0.5, 1.5), rtol=1e-5)


def test_oracle():
  check()


def test_hand_computed_pair():
  out = evaluate([[np.log(2.0), 0.0]], beta=1.0)  # phi: 2 + log 2 against 1
  assert out.loss == pytest.approx(np.log1p(np.exp(-(1 + np.log(2)))))
  assert out.metrics["reward_chosen"] == pytest.approx(1 + np.log(2))
  assert out.metrics["reward_rejected"] == pytest.approx(0)


def test_small_ratios_are_dpo_with_twice_the_beta():
  u = 1e-3  # phi(exp(u)) = 1 + 2 u + ..
  dpo = objectives.dpo(beta=2.0)
  s = scored.from_sequence_logps([[u, -u]], [[1, 1]], [[0.0, 0.0]])
  expected = float(scored.evaluate(dpo, s).loss)
  assert evaluate([[u, -u]], beta=1.0).loss == pytest.approx(expected, rel=1e-6)


def test_no_gradient_beyond_the_bound():
  slope = jax.vmap(jax.grad(lambda u: evaluate(jnp.stack([u, 0.0])[None]).loss))
  inside, won, lost = slope(jnp.array([0.1, 4.0, -40.0]))
  assert inside < 0
  assert won == lost == 0
