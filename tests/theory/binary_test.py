"""Theorems on binary and negative feedback, on exact tabular policies.

A policy over V completions of each prompt is a table of logits; the population is every
completion (with every label), weighted by its probability.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import optimize, special

from tests.compiled import scored
from xpo_jax import objectives

pytestmark = pytest.mark.usefixtures("float64")

P, V, BETA = 2, 4, 0.5  # prompts, completions
RNG = np.random.default_rng(0)
REF = special.log_softmax(RNG.normal(size=(P, V)), axis=1)
REWARD = RNG.normal(size=(P, V))
MU = special.softmax(RNG.normal(size=(P, V)), axis=1)  # policy of the data: not ref
ONE = np.ones((P * V, 1, 1))


def dro_slope(logits, value, mu):
  """DRO-V's gradient in the logits and the values, completions drawn from mu."""

  def loss(logits, value):
    s = scored.from_token_logps(
      jax.nn.log_softmax(logits).reshape(ONE.shape),
      ONE,
      REF.reshape(ONE.shape),
      value_BKT=jnp.broadcast_to(value[:, None], (P, V)).reshape(ONE.shape),
      reward_BK=REWARD.reshape(-1, 1),
      weight_B=mu.reshape(-1),
    )
    return scored.evaluate(objectives.dro(BETA), s).loss

  return jax.jit(jax.grad(loss, (0, 1)))(logits, value)


VALUE = BETA * special.logsumexp(REWARD / BETA, b=np.exp(REF), axis=1)
OPTIMUM = special.log_softmax(REF + REWARD / BETA, axis=1)


def test_dro_v_finds_the_optimal_value_and_the_tilted_reference():
  @jax.jit
  def field(x):
    slope = dro_slope(x[: P * V].reshape(P, V), x[P * V :], MU)
    return jnp.concatenate([x.reshape(-1) for x in slope])

  start = np.concatenate([REF.reshape(-1), np.zeros(P)])
  solution = optimize.root(field, start, method="lm", tol=1e-12)
  logits, value = solution.x[: P * V].reshape(P, V), solution.x[P * V :]
  np.testing.assert_allclose(value, VALUE, atol=1e-6)
  np.testing.assert_allclose(special.log_softmax(logits, axis=1), OPTIMUM, atol=1e-6)


def test_dro_value_is_a_baseline_only_on_the_policys_own_completions():
  own, _ = dro_slope(OPTIMUM, VALUE + 1, np.exp(OPTIMUM))
  np.testing.assert_allclose(own, 0, atol=1e-12)
  other, _ = dro_slope(OPTIMUM, VALUE + 1, MU)
  assert abs(other).max() > 0.01


def kto_slope(logp, up, kept_fraction, **weights):
  """d loss / d log pi of each completion, times the size of the population.

  Args:
    logp: log-probabilities of the policy.
    up: P(desirable | completion).
    kept_fraction: fraction of the desirable feedback that is in the data.
    weights: of `kto`.
  """
  labels = np.repeat([1.0, 0.0], V)[:, None]
  weight = np.concatenate([MU[0] * up * kept_fraction, MU[0] * (1 - up)])
  ref, other = (
    np.tile(REF[0], 2),
    np.full(2 * V, 0.3),
  )  # of the mismatched pairs: constant

  def loss(logp):
    s = scored.from_sequence_logps(
      jnp.stack([jnp.tile(logp, 2), ref + other], 1),
      np.ones((2 * V, 2)),
      np.stack([ref, ref], 1),
      desirable_BK=np.concatenate([labels, labels], 1),
      weight_B=weight,
    )
    return scored.evaluate(objectives.kto(BETA, **weights), s).loss

  return np.asarray(jax.jit(jax.grad(loss))(logp)) * weight.sum()


def test_kto_weight_compensates_rare_desirable_feedback():
  """One in nine thumbs-up at lambda_D = 9 is the balanced population."""
  logp, up = special.log_softmax(RNG.normal(size=V)), RNG.uniform(0.1, 0.9, V)
  balanced = kto_slope(logp, up, 1.0)
  rare = kto_slope(logp, up, 1 / 9, desirable_weight=9.0)
  np.testing.assert_allclose(rare, balanced, rtol=1e-10)
  assert abs(kto_slope(logp, up, 1 / 9) - balanced).max() > 0.1 * abs(balanced).max()


def test_kto_gradient_is_0_where_the_weights_offset_the_odds():
  """For any policy: raised where lambda_D P(up) > lambda_U P(down), 0 where equal."""
  up = np.array([0.25, 0.2, 0.6, 0.25])
  for seed in range(3):
    logp = special.log_softmax(np.random.default_rng(seed).normal(size=V))
    slope = kto_slope(logp, up, 1.0, desirable_weight=3.0)
    np.testing.assert_allclose(slope[[0, 3]], 0, atol=1e-16)
    assert slope[1] > 0 > slope[2]


def npo_slope(ratio, beta):
  """d loss / d log pi of rows with this log-ratio, times their number."""

  def loss(logp):
    zero = jnp.zeros((len(ratio), 1))
    s = scored.from_sequence_logps(logp[:, None], zero + 1, zero, desirable_BK=zero)
    return scored.evaluate(objectives.npo(beta), s).loss

  return jax.jit(jax.grad(loss))(jnp.asarray(ratio)) * len(ratio)


def test_npo_is_gradient_ascent_as_beta_falls():
  ratio = np.array([2.0, 0.0, -30.0])
  np.testing.assert_allclose(npo_slope(ratio, 1e-7), 1, rtol=1e-5)


def test_npo_weight_is_the_formula_of_the_log_ratio():
  ratio, beta = np.array([2.0, 0.0, -3.0]), 0.7
  expected = 2 * np.exp(beta * ratio) / (np.exp(beta * ratio) + 1)
  np.testing.assert_allclose(npo_slope(ratio, beta), expected, rtol=1e-12)


def test_npo_collapses_as_a_logarithm_where_gradient_ascent_is_linear():
  """Gradient flow: ratio - (exp(-beta ratio) - 1) / beta = -2 t."""
  beta, step, steps = 1.0, 0.01, 2000

  @jax.jit
  def flow():
    def one(ratio, _):
      return ratio - step * npo_slope(ratio, beta), None

    return jax.lax.scan(one, jnp.zeros(1), None, steps)[0][0]

  ratio, time = float(flow()), step * steps
  assert ratio - (np.exp(-beta * ratio) - 1) / beta == pytest.approx(
    -2 * time, rel=5e-3
  )
  assert -np.log(2 * beta * time + 1) / beta < ratio < 0  # gradient ascent: -20
