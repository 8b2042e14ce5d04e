"""KL controllers and reward normalisation."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from xpo_jax.ops import kl_control
from xpo_jax.ops.kl_control import Observation


@pytest.mark.parametrize(
  ("kl", "error"), [(6.0, 0), (6.6, 0.1), (60.0, 0.2), (0.0, -0.2), (-3.0, -0.2)]
)
def test_adaptive_beta_follows_the_relative_error_within_bounds(kl, error):
  rule = kl_control.adaptive_kl(0.15, target=6.0, horizon=1000)
  actual = rule.update(rule.beta, Observation(jnp.float32(kl), jnp.float32(64)))
  np.testing.assert_allclose(actual, 0.15 * (1 + error * 64 / 1000), rtol=1e-6)


@pytest.mark.parametrize("name", ["beta", "target", "horizon", "max_error"])
@pytest.mark.parametrize("value", [0.0, -0.1, np.nan, np.inf])
def test_arguments_that_are_not_positive_are_refused_by_name(name, value):
  with pytest.raises(ValueError, match=rf"adaptive_kl: {name} is {value}; .*> 0"):
    kl_control.adaptive_kl(**{"beta": 0.1, name: value})


def test_fixed_beta_that_is_not_positive_is_refused():
  with pytest.raises(ValueError, match=r"fixed_kl: beta is 0; .*> 0"):
    kl_control.fixed_kl(0)


def test_fixed_beta_is_constant():
  rule = kl_control.fixed_kl(0.05)
  assert rule.update(rule.beta, Observation(100.0, 64)) == 0.05


def test_adaptive_beta_brings_a_kl_to_its_target():
  """A policy that always settles at KL 0.6 / beta: the target asks for beta = 0.1."""
  rule = kl_control.adaptive_kl(1.0, target=6.0, horizon=500)

  def rollout(beta, _):
    beta = rule.update(beta, Observation(0.6 / beta, 64.0))
    return beta, 0.6 / beta

  _, kl = jax.lax.scan(rollout, jnp.float32(rule.beta), length=300)
  np.testing.assert_allclose(kl[-1], 6.0, rtol=0.01)
  assert kl[0] < 0.7


def test_normalised_rewards_of_the_reference_have_the_target_moments():
  reward = jnp.array([[3.0, 5.0, 900.0], [1.0, 7.0, 4.0]])
  population = jnp.array([[1.0, 1, 0], [1, 1, 1]])
  rescaled = kl_control.standardising(reward, population, mean=0.5, std=2.0).of(reward)
  own = np.asarray(rescaled)[np.asarray(population) > 0]
  np.testing.assert_allclose((own.mean(), own.std()), (0.5, 2.0), rtol=1e-4)
  moved = kl_control.centring(reward, population).of(reward)
  np.testing.assert_allclose(moved, reward - 4.0)  # the mean of 3, 5, 1, 7, 4


def test_equal_rewards_get_a_finite_gain():
  equal = jnp.full((2, 2), 3.0)
  rule = kl_control.standardising(equal, jnp.ones((2, 2)))
  assert np.isfinite(rule.gain)
  np.testing.assert_allclose(rule.of(equal), 0.0, atol=1e-2)
