"""REINFORCE with a moving average."""

import jax
import numpy as np
import pytest

from tests.compiled import scored
from xpo_jax import objectives
from xpo_jax.testing import toy


def batches():
  """Two batches, ragged, a filler row in the second."""
  first, second = toy.scored(K=3), toy.scored(K=3, seed=1)
  return first, second.replace(weight_B=second.weight_B.at[1].set(0))


def oracle(s, beta, baseline):
  """The loss, its rows, and the mean of R over completions that count."""
  mask = np.asarray(s.mask_BKT, np.float64)
  logp, old, ref = (
    (np.asarray(x, np.float64) * mask).sum(-1)
    for x in (s.logp_BKT, s.old_logp_BKT, s.ref_logp_BKT)
  )
  reward = np.asarray(s.reward_BK, np.float64) - beta * (old - ref)
  present, weight = np.asarray(s.present_BK), np.asarray(s.weight_B)
  each = -(reward - baseline) * logp
  rows = (each * present).sum(-1) / present.sum(-1)
  counts = present * weight[:, None]
  return (rows * weight).sum() / weight.sum(), (reward * counts).sum() / counts.sum()


def check():
  o = objectives.reinforce(beta=0.3)
  first, second = batches()
  expected, mean = oracle(first, 0.3, 0.0)
  out = scored.evaluate(o, first, o.init())
  np.testing.assert_allclose(out.loss, expected, rtol=1e-4)
  expected, second_mean = oracle(second, 0.3, mean)
  out = scored.evaluate(o, second, out.state)
  np.testing.assert_allclose(out.loss, expected, rtol=1e-4)
  np.testing.assert_allclose(out.metrics["baseline"], mean, rtol=1e-4)
  # The third batch's baseline is the mean of both batches' means.
  after = scored.evaluate(o, first, out.state).metrics["baseline"]
  np.testing.assert_allclose(after, (mean + second_mean) / 2, rtol=1e-4)


def test_loss_and_baseline_over_three_batches():
  check()


def test_state_is_required():
  with pytest.raises(ValueError, match="reinforce keeps state"):
    scored.evaluate(objectives.reinforce(), toy.scored(K=3))


def test_without_beta_no_reference_is_read():
  o = objectives.reinforce(beta=None)
  assert {stat.field for stat in o.stats} == {"logp_BKT"}
  assert o.columns == {"reward_BK"}


def test_filler_alone_leaves_the_baseline():
  o, (s, _) = objectives.reinforce(), batches()
  state = scored.evaluate(o, s, o.init()).state
  after = scored.evaluate(o, s.replace(weight_B=0 * s.weight_B), state).state
  assert jax.tree.map(float, after) == jax.tree.map(float, state)
