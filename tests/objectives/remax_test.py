"""ReMax."""

import jax
import numpy as np
import pytest

from tests.compiled import scored
from xpo_jax import objectives
from xpo_jax.testing import toy


def record():
  """Ragged, a filler row, and one prompt whose greedy completion is not there."""
  s = toy.scored(K=3, B=5)
  present = s.present_BK.at[3, 0].set(0)
  return s.replace(present_BK=present, weight_B=s.weight_B.at[1].set(0))


def check():
  s, beta = record(), 0.3
  mask = np.asarray(s.mask_BKT, np.float64)
  logp, old, ref = (
    (np.asarray(x, np.float64) * mask).sum(-1)
    for x in (s.logp_BKT, s.old_logp_BKT, s.ref_logp_BKT)
  )
  reward = np.asarray(s.reward_BK, np.float64)
  losses = []
  for b in (0, 2, 3, 4):
    samples = [k for k in (1, 2) if s.present_BK[b, k] and s.present_BK[b, 0]]
    each = [
      -(reward[b, k] - beta * (old[b, k] - ref[b, k]) - reward[b, 0]) * logp[b, k]
      for k in samples
    ]
    losses.append(np.mean(each) if each else 0.0)
  out = scored.evaluate(objectives.remax(beta=beta), s)
  np.testing.assert_allclose(out.loss, np.mean(losses), rtol=1e-4)
  np.testing.assert_allclose(
    out.metrics["greedy_reward"], reward[[0, 2, 4], 0].mean(), rtol=1e-5
  )
  own = [reward[0, 1], *reward[2, 1:], *reward[4, 1:]]
  np.testing.assert_allclose(out.metrics["reward"], np.mean(own), rtol=1e-5)


def test_loss_is_that_of_a_loop_over_samples():
  check()


def test_greedy_completion_has_no_gradient_of_its_own():
  s, o = record(), objectives.remax()
  gradient = jax.grad(lambda x: scored.evaluate(o, s.replace(logp_BKT=x)).loss)(
    s.logp_BKT
  )
  assert not gradient[:, 0].any()
  assert gradient[:, 1:].any()


def test_one_column_is_refused():
  with pytest.raises(ValueError, match="remax needs K >= 2, batch has K=1"):
    scored.evaluate(objectives.remax(), toy.scored(K=1))
