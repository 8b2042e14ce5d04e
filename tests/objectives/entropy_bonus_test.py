"""The entropy bonus, on any objective."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import special

from tests.compiled import scored
from tests.objectives import group_oracle as oracle
from xpo_jax import objectives
from xpo_jax.ops import token_stats


def test_oracle():
  s = oracle.record()
  o = objectives.entropy_bonus(objectives.dapo(), 0.3)
  out = scored.evaluate(o, s)
  mask = np.asarray(s.mask_BKT * s.present_BK[..., None], np.float64)
  entropy = np.asarray(s.extra["entropy_BKT"], np.float64)
  expected = -0.3 * (entropy * mask).sum() / mask.sum()
  assert out.terms["entropy_bonus"] == pytest.approx(expected, rel=1e-5)
  alone = scored.evaluate(objectives.dapo(), s)
  assert out.terms["dapo"] == alone.terms["dapo"]
  assert out.metrics == alone.metrics


def test_gradient_raises_the_entropy_over_the_whole_vocabulary():
  """dH/dlogits = -p (log p + H), of every token of the vocabulary."""
  logits = np.random.default_rng(0).normal(size=(1, 1, 3, 5))
  o = objectives.entropy_bonus(objectives.sft(), 0.5)

  def loss(logits_BKTV):
    s = scored.from_logits(
      logits_BKTV, np.array([[[0, 1, 2]]]), np.ones((1, 1, 3)), stats=o.stats
    )
    return scored.evaluate(o, s).terms["entropy_bonus"]

  p = special.softmax(logits, -1)
  entropy = -(p * np.log(p)).sum(-1, keepdims=True)
  slope = -p * (np.log(p) + entropy)
  gradient = jax.jit(jax.grad(loss))(jnp.asarray(logits, jnp.float32))
  np.testing.assert_allclose(gradient, -0.5 * slope / 3, rtol=1e-4, atol=1e-7)


def test_what_the_objective_requires_stays():
  inner = objectives.ppo()
  o = objectives.entropy_bonus(inner)
  assert o.stats == inner.stats | {token_stats.ENTROPY}
  kept = ("layout", "columns", "prepare", "init", "column0_source", "reward_kind")
  assert all(getattr(o, name) == getattr(inner, name) for name in kept)


def test_weight_that_is_no_number_is_refused():
  with pytest.raises(ValueError, match="entropy_bonus: weight=nan"):
    objectives.entropy_bonus(objectives.grpo(), float("nan"))
