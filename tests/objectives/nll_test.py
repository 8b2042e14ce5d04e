"""Negative log-likelihood and its reductions."""

import numpy as np
import pytest

from tests.compiled import scored
from xpo_jax import objectives
from xpo_jax.objectives import _nll
from xpo_jax.testing import toy


@pytest.mark.parametrize("reduction", ["token_mean", "sequence_sum", "sequence_mean"])
def test_oracle(reduction):
  s = toy.scored(K=2)
  s = s.replace(weight_B=s.weight_B.at[1].set(0))
  logp, mask = (np.asarray(x, np.float64)[:, 0] for x in (s.logp_BKT, s.mask_BKT))
  sums, lengths = (logp * mask).sum(-1), mask.sum(-1)
  sums, lengths = np.delete(sums, 1), np.delete(lengths, 1)
  expected = {
    "token_mean": -sums.sum() / lengths.sum(),
    "sequence_sum": -sums.mean(),
    "sequence_mean": -(sums / lengths).mean(),
  }
  out = scored.evaluate(objectives.nll(reduction), s)
  assert out.loss == pytest.approx(expected[reduction], rel=1e-6)
  assert out.metrics["logp_chosen"] == pytest.approx(sums.mean(), rel=1e-6)


def test_reductions_agree_on_one_token_each():
  s = scored.from_sequence_logps([[-3.0], [-1.0]], [[1], [1]])
  for reduction in _nll.REDUCTIONS:
    assert scored.evaluate(objectives.nll(reduction), s).loss == 2.0


def test_unknown_reduction_is_refused():
  with pytest.raises(ValueError, match="nll: reduction='mean' is not known"):
    objectives.nll("mean")


def test_a_reduction_may_be_given_as_a_value():
  o = objectives.nll(_nll.REDUCTIONS["sequence_sum"])
  assert o.hparams == {"reduction": "sequence_sum"}
