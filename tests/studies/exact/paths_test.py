"""Measures along training are those of training that ends there."""

import jax
import jax.numpy as jnp
import numpy as np

from xpo_jax import objectives, scored
from xpo_jax.studies.exact import paths
from xpo_jax.testing import bandit


def _view(theta_V, _):
  logp_V = jax.nn.log_softmax(theta_V)
  return scored.from_sequence_logps(logp_V[None], jnp.ones((1, 2)), jnp.zeros((1, 2)))


def test_points_are_ends_of_shorter_runs():
  objective, start = objectives.dpo(), jnp.zeros(2)
  found = paths.descend(
    objective,
    _view,
    start,
    jax.random.key(0),
    lambda theta_V: {"first": theta_V[0]},
    steps=20,
    learning_rate=0.1,
  )
  np.testing.assert_array_equal(found["step"], paths.ends(20))
  assert paths.ends(20)[-1] == 20
  for steps, first in zip(paths.ends(20), found["first"], strict=True):
    end = bandit.descend(
      objective, _view, start, jax.random.key(0), steps=steps, learning_rate=0.1
    )
    np.testing.assert_allclose(first, end[0], rtol=1e-5)


def test_sign_ascends():
  up, down = (
    paths.descend(
      objectives.dpo(),
      _view,
      jnp.zeros(2),
      jax.random.key(0),
      lambda theta_V: {"first": theta_V[0]},
      steps=5,
      learning_rate=0.1,
      sign=sign,
    )["first"][-1]
    for sign in (1.0, -1.0)
  )
  assert up > 0 > down
