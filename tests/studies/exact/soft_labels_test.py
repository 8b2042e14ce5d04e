"""Labels of a confidence, and the reward fitted to them."""

import jax.numpy as jnp
import numpy as np
import pytest

from xpo_jax.studies.exact import soft_labels


def test_labels_of_each_kind():
  logit_B = jnp.log(jnp.array([0.5, 0.7, 0.1]) / jnp.array([0.5, 0.3, 0.9]))
  soft = soft_labels.labels(logit_B, "soft")
  np.testing.assert_allclose(soft, [[0.5, 0.5], [0.7, 0.3], [0.1, 0.9]], atol=1e-6)
  clamped = soft_labels.labels(logit_B, "clamped")
  np.testing.assert_allclose(clamped, [[0.5, 0.5], [0.6, 0.4], [0.4, 0.6]], atol=1e-6)
  hard = soft_labels.labels(logit_B[1:], "hard")
  np.testing.assert_array_equal(hard, [[1, 0], [0, 1]])


def test_noiseless_soft_labels_find_the_reward():
  """Every pair then tells its gap exactly: the optimum is that of the true reward."""
  found = soft_labels.learn(
    0, objective="bradley_terry", kind="soft", confidence=1.0, noise=0.0
  )
  assert found["accuracy"] > 0.99
  # The fitted reward is the true one over the people's temperature.
  same = soft_labels.learn(
    0, objective="bradley_terry", kind="soft", confidence=0.5, noise=0.0, beta=0.5
  )
  assert float(found["drift"]) == pytest.approx(float(same["drift"]), rel=0.02)


def test_clamped_labels_move_the_policy_less():
  soft, clamped = (
    soft_labels.learn(0, objective="bradley_terry", kind=kind, confidence=5.0)
    for kind in ("soft", "clamped")
  )
  assert 0 < clamped["drift"] < soft["drift"]
