"""NCA, of pairs and of lists."""

import jax
import numpy as np
import pytest
from scipy import special

from tests.compiled import scored
from tests.objectives import pairs
from xpo_jax import objectives
from xpo_jax.testing import toy


def test_pair_oracle():
  s = toy.scored(K=2)
  w, l = (0.5 * pairs.log_ratio(s)).T
  expected = -special.log_expit(w) - 0.5 * special.log_expit([-w, -l]).sum(0)
  out = scored.evaluate(objectives.nca(beta=0.5), s)
  np.testing.assert_allclose(out.per_example_B, expected, rtol=1e-5)


def test_list_oracle_with_an_absent_column():
  s = toy.scored(K=3, B=3)  # the last column of prompt 0 is absent
  r, reward = 0.5 * pairs.log_ratio(s), np.asarray(s.reward_BK, np.float64)
  expected = []
  for b, n in enumerate((2, 3, 3)):
    p = np.exp(reward[b, :n] / 0.7)
    p = p / p.sum()
    up, down = special.log_expit(r[b, :n]), special.log_expit(-r[b, :n])
    expected.append(-(p * up).sum() - down.mean())
  out = scored.evaluate(objectives.nca_list(beta=0.5, alpha=0.7), s)
  np.testing.assert_allclose(out.per_example_B, expected, rtol=1e-5)


def test_list_of_two_at_low_temperature_is_the_pair_form():
  s = toy.scored(K=2).replace(reward_BK=np.array([[1.0, 0.0]] * 8, np.float32))
  pair = scored.evaluate(objectives.nca(beta=0.3), s).per_example_B
  cold = scored.evaluate(objectives.nca_list(beta=0.3, alpha=1e-3), s).per_example_B
  np.testing.assert_allclose(cold, pair, rtol=1e-6)


def test_fewer_than_two_completions_give_0():
  s = toy.scored(K=3, B=2)
  s = s.replace(present_BK=np.array([[1.0, 0, 0], [0, 0, 0]], np.float32))

  def loss(logp_BKT):
    return scored.evaluate(objectives.nca_list(), s.replace(logp_BKT=logp_BKT)).loss

  value, slope = jax.jit(jax.value_and_grad(loss))(s.logp_BKT)
  assert value == 0
  assert not slope.any()


@pytest.mark.parametrize("hparams", [{"beta": 0.0}, {"alpha": 0.0}, {"lead": -1.0}])
def test_hparam_out_of_range_is_refused(hparams):
  with pytest.raises(ValueError, match=r"nca_list: .* must be"):
    objectives.nca_list(**hparams)


@pytest.mark.parametrize("factory", [objectives.nca_list, objectives.bco_pair])
def test_forms_outside_the_index_stay_finite(factory):
  """Log-ratios of +-1000, a tie, a completion without tokens."""
  logp = np.array([[1000.0, -1000.0], [-1000.0, 1000.0], [0.0, 0.0]], np.float32)
  s = scored.from_sequence_logps(logp, [[1, 1], [1, 1], [0, 0]], 0 * logp)
  s = s.replace(reward_BK=np.array([[1.0, 0.0], [2.0, 2.0], [0.0, 0.0]], np.float32))
  o = factory(beta=1.0)

  def loss(logp_BKT):
    return scored.evaluate(o, s.replace(logp_BKT=logp_BKT), o.init()).loss

  value, slope = jax.jit(jax.value_and_grad(loss))(s.logp_BKT)
  assert np.isfinite(value) and np.isfinite(slope).all()
