"""SimNPO."""

import jax
import numpy as np
import pytest

from tests.compiled import scored
from xpo_jax import objectives
from xpo_jax.testing import toy


def check():
  """The paper's form in NumPy, gamma outside beta, on undesirable rows only."""
  s = toy.scored(K=1, B=6)
  mask = np.asarray(s.mask_BKT, np.float64)[:, 0]
  average = (np.asarray(s.logp_BKT, np.float64)[:, 0] * mask).sum(-1) / mask.sum(-1)
  z = -1.7 * average - 0.4
  bad = np.asarray(s.desirable_BK)[:, 0] == 0
  expected = (2 / 1.7 * np.log1p(np.exp(-z)))[bad].mean()
  actual = scored.evaluate(objectives.simnpo(beta=1.7, gamma=0.4), s).loss
  np.testing.assert_allclose(actual, expected, rtol=1e-5)


def test_oracle():
  check()


def test_effect_per_token_does_not_depend_on_length():
  logp = np.array([[-4.0], [-8.0]])  # -1 a token, 4 and 8 tokens
  bad = np.zeros((2, 1))

  def slope(o):
    def loss(logp):
      s = scored.from_sequence_logps(logp, [[4], [8]], logp - 1, desirable_BK=bad)
      return scored.evaluate(o, s).loss

    return np.asarray(jax.jit(jax.grad(loss))(logp))[:, 0]

  short, long = slope(objectives.simnpo(beta=2.0))
  assert short / long == pytest.approx(8 / 4)  # d a / d logp = 1 / length


@pytest.mark.parametrize("hparams", [{"gamma": -0.1}, {"beta": 0.0}])
def test_hparam_out_of_range_is_refused(hparams):
  (hparam,) = hparams
  with pytest.raises(ValueError, match=f"simnpo: {hparam}="):
    objectives.build("simnpo", hparams)
