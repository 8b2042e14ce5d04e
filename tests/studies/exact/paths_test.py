"""Measures along training, against Adam by hand."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from xpo_jax import objectives, scored
from xpo_jax.studies.exact import paths

STEPS, RATE, BETA = 20, 0.1, 0.1


def _view(theta_V, _):
  logp_V = jax.nn.log_softmax(theta_V)
  return scored.from_sequence_logps(logp_V[None], jnp.ones((1, 2)), jnp.zeros((1, 2)))


@functools.cache
@jax.jit
def _descend(sign):
  return paths.descend(
    objectives.dpo(BETA),
    _view,
    jnp.zeros(2),
    jax.random.key(0),
    lambda theta_V: {"first": theta_V[0]},
    optax.chain(optax.scale(sign), optax.adam(RATE)),
    steps=STEPS,
  )


def _adam(sign):
  """Both parameters move alike in opposite directions; the first one's path."""
  theta, first, second, path_T = 0.0, 0.0, 0.0, []
  for t in range(1, STEPS + 1):
    gradient = -sign * BETA / (1 + np.exp(2 * BETA * theta))
    first = 0.9 * first + 0.1 * gradient
    second = 0.999 * second + 0.001 * gradient**2
    theta -= RATE * first / (1 - 0.9**t) / (np.sqrt(second / (1 - 0.999**t)) + 1e-8)
    path_T.append(theta)
  return np.array(path_T)


@pytest.mark.parametrize("sign", [1.0, -1.0])
def test_points_are_those_of_adam_and_sign_ascends(sign):
  found = _descend(sign)
  ends = paths.ends(STEPS)
  np.testing.assert_array_equal(found["step"], ends)
  assert ends[0] == 1
  assert ends[-1] == STEPS
  path_T = _adam(sign)[np.array(ends) - 1]
  np.testing.assert_allclose(found["first"], path_T, rtol=1e-4)
  assert sign * path_T[-1] > 0
