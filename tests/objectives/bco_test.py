"""BCO, on single completions and on pairs."""

import jax
import numpy as np
import pytest
from scipy import special

from tests.compiled import scored
from xpo_jax import objectives
from xpo_jax.testing import toy
from xpo_jax.types import Aux


def record(ratio, desirable):
  """Single completions with these log-ratios."""
  ratio = np.array(ratio)[:, None]
  label = np.array(desirable)[:, None]
  return scored.from_sequence_logps(
    ratio, np.ones_like(ratio), 0 * ratio, desirable_BK=label
  )


def test_two_batches_by_hand():
  o = objectives.bco(beta=0.5)
  first = scored.evaluate(o, record([4.0, -2.0], [1, 0]), o.init())
  d = 0.5 * (4 - 2) / 2
  assert first.metrics["shift"] == pytest.approx(d)
  assert first.loss == pytest.approx(
    -(special.log_expit(0.5 * 4 - d) + special.log_expit(d - 0.5 * -2)) / 2
  )
  second = scored.evaluate(o, record([8.0], [0]), first.state)
  d = 0.5 * (4 - 2 + 8) / 3  # of all three completions, the new one included
  assert second.metrics["shift"] == pytest.approx(d)
  assert second.loss == pytest.approx(-special.log_expit(d - 0.5 * 8))
  assert second.state["count"] == 3


def test_filler_rows_change_nothing():
  o = objectives.bco(beta=0.5)
  s = record([4.0, 90.0], [1, 0]).replace(weight_B=np.array([1.0, 0.0]))
  out = scored.evaluate(o, s, o.init())
  assert out.metrics["shift"] == pytest.approx(0.5 * 4)
  assert out.state["count"] == 1


def test_adding_a_constant_to_all_rewards_changes_nothing():
  o = objectives.bco(beta=0.5)
  ratios = np.array([4.0, -2.0, 1.0])
  losses = []
  for constant in (0.0, 30.0):
    state = o.init()
    for _ in range(2):
      out = scored.evaluate(o, record(ratios + constant, [1, 0, 1]), state)
      state = out.state
    losses.append(out.per_example_B)
  np.testing.assert_allclose(losses[0], losses[1], rtol=1e-5)


def test_no_gradient_through_the_shift():
  s, o = toy.scored(K=2, B=3), objectives.bco_pair(beta=0.5)

  def loss(logp_BKT):
    return scored.evaluate(o, s.replace(logp_BKT=logp_BKT), o.init()).loss

  gap = np.asarray(s.logp_BKT - s.ref_logp_BKT, np.float64)
  r = 0.5 * np.where(np.asarray(s.mask_BKT) > 0, gap, 0).sum(-1)
  d = r.mean()
  by_chosen = -0.5 / 3 / (1 + np.exp(r[:, 0] - d))
  np.testing.assert_allclose(
    jax.jit(jax.grad(loss))(s.logp_BKT)[:, 0, 0], by_chosen, rtol=1e-5
  )


@pytest.mark.parametrize("shift", [-3.0, 0.0, 0.4, 5.0])
def test_it_is_an_upper_bound_of_dpo_at_any_shift(shift):
  s = toy.scored(K=2)
  aux = Aux(shared=np.float32(shift))
  bco = objectives.bco_pair(beta=0.5).loss(s, aux).per_example_B
  dpo = scored.evaluate(objectives.dpo(beta=0.5), s).per_example_B
  assert (np.asarray(bco) >= np.asarray(dpo)).all()
