"""APO-zero, of pairs and of single completions."""

import jax
import numpy as np
import pytest
from scipy import special

from tests.compiled import scored
from xpo_jax import objectives
from xpo_jax.testing import toy


def test_hand_computed_pair():
  s = scored.from_sequence_logps([[3.0, 2.0]], [[1, 1]], [[1.0, 5.0]])  # u: 2, -3
  out = scored.evaluate(objectives.apo_zero(beta=0.5), s)
  expected = (1 - special.expit(0.5 * 2)) + special.expit(0.5 * -3)
  assert out.loss == pytest.approx(expected, rel=1e-6)


def test_gradient_raises_chosen_and_lowers_rejected_anywhere():
  s = toy.scored(K=2)

  def loss(logp_BKT):
    return scored.evaluate(objectives.apo_zero(), s.replace(logp_BKT=logp_BKT)).loss

  slope = jax.jit(jax.grad(loss))(s.logp_BKT)
  mask = np.asarray(s.mask_BKT) > 0
  assert (slope[:, 0][mask[:, 0]] < 0).all()
  assert (slope[:, 1][mask[:, 1]] > 0).all()


def test_unpaired_rows_add_up_to_the_pair():
  s = toy.scored(K=2)
  pair = scored.evaluate(objectives.apo_zero(beta=0.3), s)
  rows = []
  for column, label in ((0, 1.0), (1, 0.0)):
    single = scored.from_token_logps(
      s.logp_BKT[:, [column]],
      s.mask_BKT[:, [column]],
      s.ref_logp_BKT[:, [column]],
      desirable_BK=np.full((8, 1), label),
    )
    out = scored.evaluate(objectives.apo_zero_unpaired(beta=0.3), single)
    rows.append(out.per_example_B)
  np.testing.assert_allclose(rows[0] + rows[1], pair.per_example_B, rtol=1e-6)
