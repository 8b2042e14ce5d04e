"""DNO; see also theory/games_test.py."""

import jax
import numpy as np
from scipy import special

from tests.compiled import scored
from tests.objectives import pairs
from xpo_jax import objectives
from xpo_jax.testing import toy


def check():
  s = toy.scored(K=2)
  m = 0.7 * pairs.gap(s)
  p = special.expit(np.asarray(s.reward_BK, np.float64) @ [1, -1])
  expected = -p * np.log(special.expit(m)) - (1 - p) * np.log(1 - special.expit(m))
  out = scored.evaluate(objectives.dno(beta=0.7), s)
  np.testing.assert_allclose(out.per_example_B, expected, rtol=1e-5)


def test_oracle():
  check()


def test_gradient_is_zero_where_the_margin_is_the_difference_of_win_rates():
  def loss(margin, wins):
    logp = np.array([[0.5, -0.5]]) * margin / 0.1 - 9
    s = scored.from_sequence_logps(logp, [[4, 4]], [[-9.0, -9.0]], reward_BK=[wins])
    return scored.evaluate(objectives.dno(beta=0.1), s).loss

  slope = jax.grad(loss)
  np.testing.assert_allclose(slope(0.5, (0.8, 0.3)), 0, atol=1e-6)
  np.testing.assert_allclose(
    slope(0.0, (0.8, 0.3)), 0.5 - special.expit(0.5), rtol=1e-5
  )
