"""Unlikelihood, on labelled completions and in the paper's token-level form."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import special

from tests.compiled import scored
from xpo_jax import objectives


def picked():
  rng = np.random.default_rng(0)
  logits, tokens = rng.normal(size=(4, 1, 3, 5)), rng.integers(5, size=(4, 1, 3))
  mask = np.arange(3) < np.array([3, 1, 2, 3])[:, None, None]
  p = np.take_along_axis(special.softmax(logits, -1), tokens[..., None], -1)[..., 0]
  return logits, tokens, mask, p


def check():
  """Both forms in NumPy: every token of the batch counts once in the denominator."""
  logits, tokens, mask, p = picked()
  label = np.array([[1], [0], [0], [1]])
  o = objectives.unlikelihood(alpha=0.3)
  s = scored.from_logits(logits, tokens, mask, stats=o.stats, desirable_BK=label)
  each = np.where(label[..., None] == 1, -np.log(p), -0.3 * np.log(1 - p))
  expected = (each * mask).sum() / mask.sum()
  np.testing.assert_allclose(scored.evaluate(o, s).loss, expected, rtol=1e-5)
  penalty = np.random.default_rng(1).gamma(1.0, size=mask.shape)
  s = s.replace(extra={"penalty_BKT": jnp.asarray(penalty, jnp.float32)})
  expected = ((-np.log(p) + 0.3 * penalty) * mask).sum() / mask.sum()
  actual = scored.evaluate(objectives.token_unlikelihood(alpha=0.3), s).loss
  np.testing.assert_allclose(actual, expected, rtol=1e-5)


def test_oracle():
  check()


def test_certain_token_still_has_its_gradient():
  o, one = objectives.unlikelihood(), np.ones((1, 1, 1), int)

  def loss(logits):
    s = scored.from_logits(logits, one, one, stats=o.stats, desirable_BK=[[0.0]])
    return scored.evaluate(o, s).loss

  value, slope = jax.jit(jax.value_and_grad(loss))(
    jnp.array([[[[0.0, 500.0, -100.0]]]])
  )
  assert value == pytest.approx(500.0)  # -log(1 - p) = 500, where 1 - p rounds to 0
  np.testing.assert_allclose(slope[0, 0, 0], [-1.0, 1.0, 0.0], atol=1e-6)


def test_hparam_out_of_range_is_refused():
  with pytest.raises(ValueError, match="unlikelihood: alpha="):
    objectives.unlikelihood(alpha=-0.1)
