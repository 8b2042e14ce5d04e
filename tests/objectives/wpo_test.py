"""WPO."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.compiled import scored
from xpo_jax import objectives
from xpo_jax.objectives import _wpo

RNG = np.random.default_rng(0)
SHAPE = (3, 2, 4, 7)
LOGITS, REF = RNG.normal(size=(2, *SHAPE))
TOKENS = RNG.integers(7, size=SHAPE[:-1])
MASK = np.arange(4) < np.array([[[4], [2]], [[1], [3]], [[2], [2]]])


def record(o, logits=LOGITS):
  return scored.from_logits(logits, TOKENS, MASK, REF, stats=o.stats)


def weights():
  """float64, straight from the probabilities."""
  p = np.exp(LOGITS) / np.exp(LOGITS).sum(-1, keepdims=True)
  own = np.take_along_axis(p, TOKENS[..., None], -1)[..., 0]
  per_token = np.where(MASK, np.log(own) - np.log((p**2).sum(-1)), 0)
  return np.exp((per_token.sum(-1) / MASK.sum(-1)).sum(-1))


def test_oracle():
  o = objectives.wpo(beta=0.5, label_smoothing=0.1, max_weight=0.3)
  s = record(o)
  assert (weights() > 0.3).any()
  assert (weights() < 0.3).any()
  w = np.minimum(weights(), 0.3)
  dpo = scored.evaluate(objectives.dpo(beta=0.5, label_smoothing=0.1), s)
  out = scored.evaluate(o, s)
  np.testing.assert_allclose(out.per_example_B, w * dpo.per_example_B, rtol=1e-5)
  assert out.metrics["weight"] == pytest.approx(w.mean(), rel=1e-5)


def test_no_gradient_through_the_weight():
  o, beta = objectives.wpo(beta=0.5, max_weight=1e9), 0.5
  dpo = objectives.dpo(beta)

  def loss(logits):
    return scored.evaluate(o, record(o, logits)).loss

  def fixed_weight_loss(logits):
    rows = scored.evaluate(dpo, record(o, logits)).per_example_B
    return (weights() * rows).mean()

  logits = jnp.asarray(LOGITS, jnp.float32)
  np.testing.assert_allclose(
    jax.jit(jax.grad(loss))(logits),
    jax.jit(jax.grad(fixed_weight_loss))(logits),
    rtol=1e-4,
    atol=1e-6,
  )


def test_mean_probability_of_a_uniform_and_of_a_certain_policy():
  certain = np.array([0.0, -np.inf, -np.inf, -np.inf])
  actual = _wpo.LOG_MEAN_PROB.fn({"policy": jnp.array([np.zeros(4), certain])}, None)
  np.testing.assert_allclose(actual, [-np.log(4), 0], rtol=1e-6)


@pytest.mark.parametrize(
  "hparams", [{"beta": 0.0}, {"label_smoothing": 0.5}, {"max_weight": 0.0}]
)
def test_hparam_out_of_range_is_refused(hparams):
  with pytest.raises(ValueError, match=r"wpo: .* must be"):
    objectives.wpo(**hparams)
