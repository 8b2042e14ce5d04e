"""Values and gradients of the KL estimators in expectation over a tabular softmax."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import special

from xpo_jax.ops import divergences

pytestmark = pytest.mark.usefixtures("float64")

V = 7
RNG = np.random.default_rng(0)
LOGITS, REF = RNG.normal(size=V), special.log_softmax(RNG.normal(size=V))


def reverse_kl(logits):
  logp = jax.nn.log_softmax(logits)
  return jnp.exp(logp) @ (logp - REF)


def forward_kl(logits):
  return np.exp(REF) @ (REF - jax.nn.log_softmax(logits))


def expected(estimator):
  """Value and gradient of the expected loss, samples of the policy held fixed."""

  def loss(logits):
    logp = jax.nn.log_softmax(logits)
    return jax.lax.stop_gradient(jnp.exp(logp)) @ estimator.fn(logp - REF)

  return jax.jit(jax.value_and_grad(loss))(LOGITS)


@pytest.mark.parametrize(
  "estimator",
  [divergences.K1, divergences.K3, divergences.K1_PLUS, divergences.K3_PLUS],
  ids=repr,
)
def test_value_is_the_reverse_kl(estimator):
  value, _ = expected(estimator)
  np.testing.assert_allclose(value, reverse_kl(LOGITS), rtol=1e-12)


def test_k2_is_a_biased_value():
  value, _ = expected(divergences.K2)
  assert abs(value - reverse_kl(LOGITS)) > 1e-3


@pytest.mark.parametrize(
  ("estimator", "exact"),
  [
    (divergences.K2, reverse_kl),
    (divergences.K1_PLUS, reverse_kl),
    (divergences.K3_PLUS, reverse_kl),
    (divergences.K3, forward_kl),
    (divergences.K1, lambda logits: 0.0 * logits.sum()),
  ],
  ids=lambda x: getattr(x, "__name__", repr(x)),
)
def test_gradient_is_that_of_the_exact_divergence(estimator, exact):
  _, gradient = expected(estimator)
  np.testing.assert_allclose(gradient, jax.jit(jax.grad(exact))(LOGITS), atol=1e-14)


def test_k1_as_a_reward_has_the_gradient_of_the_kl():
  """The policy gradient of the reward -k1, by value only, descends the KL."""

  def surrogate(logits):
    logp = jax.nn.log_softmax(logits)
    cost = jax.lax.stop_gradient(jnp.exp(logp) * divergences.K1.fn(logp - REF))
    return cost @ logp

  expected = jax.jit(jax.grad(reverse_kl))(LOGITS)
  np.testing.assert_allclose(jax.jit(jax.grad(surrogate))(LOGITS), expected, atol=1e-14)


def test_reverse_and_forward_kl_differ_in_their_gradient():
  reverse, forward = (jax.jit(jax.grad(kl))(LOGITS) for kl in (reverse_kl, forward_kl))
  assert abs(reverse - forward).max() > 0.1
