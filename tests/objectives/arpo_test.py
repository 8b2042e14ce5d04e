"""ARPO."""

import jax
import numpy as np
import pytest

from tests.compiled import scored
from xpo_jax import objectives


def test_hand_computed_pair():
  # Per token -1 and -1.5: tau = 1.2 exp(0.5 * 0.5) - 1.
  s = scored.from_sequence_logps([[-4.0, -9.0]], [[4, 6]])
  tau = 1.2 * np.exp(0.25) - 1
  out = scored.evaluate(objectives.arpo(0.1, 0.5, eta=0.5, relax=1.2), s)
  assert out.metrics["rejection"] == pytest.approx(tau, rel=1e-6)
  expected = np.log1p(np.exp(-0.1 * (-4 - tau * -9)))
  assert out.terms["arpo"] == pytest.approx(expected, rel=1e-6)
  assert out.terms["nll"] == pytest.approx(0.5 * 4)


def test_completions_far_apart_give_cpo():
  s = scored.from_sequence_logps([[-4.0, -90.0]], [[4, 6]])
  arpo = scored.evaluate(objectives.arpo(), s)
  assert arpo.metrics["rejection"] == pytest.approx(1, rel=1e-6)
  assert arpo.loss == pytest.approx(float(scored.evaluate(objectives.cpo(), s).loss))


def test_equal_completions_are_not_rejected_at_relax_1():
  def tau(logp):
    s = scored.from_sequence_logps([[-4.0, logp]], [[4, 4]])
    return objectives.rejection(s, eta=0.4)[0]

  assert tau(-4.0) == pytest.approx(0, abs=1e-6)
  # The gradient flows through tau: 0.4 exp(0.4 |gap|) / 4 tokens, gap 0.5 per token.
  slope = jax.jit(jax.grad(tau))(-6.0)
  assert slope == pytest.approx(-0.4 * np.exp(0.4 * 0.5) / 4, rel=1e-5)


@pytest.mark.parametrize(
  "hparams", [{"beta": 0.0}, {"weight": -1.0}, {"eta": 0.0}, {"relax": 2.1}]
)
def test_hparam_out_of_range_is_refused(hparams):
  with pytest.raises(ValueError, match=r"arpo: .* must be"):
    objectives.arpo(**hparams)
