"""ORPO."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.compiled import scored
from xpo_jax import objectives
from xpo_jax.objectives import _orpo
from xpo_jax.testing import toy


def test_hand_computed_pair():
  # P = 1/2 and 1/10: odds 1 and 1/9, so the odds term is log(1 + 1/9).
  s = scored.from_sequence_logps([[2 * np.log(0.5), np.log(0.1)]], [[2, 1]])
  out = scored.evaluate(objectives.orpo(weight=0.3), s)
  assert out.terms["sft"] == pytest.approx(np.log(2))
  assert out.terms["odds_ratio"] == pytest.approx(0.3 * np.log(1 + 1 / 9))
  assert out.loss == pytest.approx(np.log(2) + 0.3 * np.log(1 + 1 / 9))


def test_two_denominators_tokens_and_pairs():
  s = toy.scored(K=2)
  mask = np.asarray(s.mask_BKT, np.float64)
  logp = np.asarray(s.logp_BKT, np.float64) * mask
  p = np.exp(logp.sum(-1) / mask.sum(-1))
  odds = p / (1 - p)
  terms = scored.evaluate(objectives.orpo(weight=0.2), s).terms
  assert terms["sft"] == pytest.approx(-logp[:, 0].sum() / mask[:, 0].sum(), rel=1e-5)
  expected = 0.2 * np.log1p(odds[:, 1] / odds[:, 0]).mean()
  assert terms["odds_ratio"] == pytest.approx(expected, rel=1e-5)


def test_weight_0_is_sft():
  s = toy.scored(K=2)
  expected = float(scored.evaluate(objectives.sft(), s).loss)
  assert scored.evaluate(objectives.orpo(weight=0.0), s).loss == pytest.approx(expected)


def test_log_odds_at_both_ends():
  a = np.array([-1e-4, -0.1, -np.log(2), -3.0, -80.0])
  expected = a - np.log(-np.expm1(a))  # exact in float64 at all of these
  np.testing.assert_allclose(
    _orpo.log_odds(jnp.asarray(a, jnp.float32)), expected, 1e-5
  )


def test_certainty_has_the_odds_of_one_machine_epsilon():
  eps = float(jnp.finfo(jnp.float32).eps)
  value, slope = jax.value_and_grad(_orpo.log_odds)(jnp.float32(0))
  assert value == pytest.approx(-np.log(eps), rel=1e-5)
  assert np.isfinite(slope)
