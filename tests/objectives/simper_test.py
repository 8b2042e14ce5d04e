"""SimPER."""

import numpy as np
import pytest

from tests.compiled import scored
from xpo_jax import objectives
from xpo_jax.testing import toy


def check():
  s = toy.scored(K=2)
  mask = np.asarray(s.mask_BKT, np.float64)
  average = (np.asarray(s.logp_BKT, np.float64) * mask).sum(-1) / mask.sum(-1)
  inverse = np.exp(average)  # 1 / perplexity
  out = scored.evaluate(objectives.simper(), s)
  np.testing.assert_allclose(
    out.per_example_B, inverse[:, 1] - inverse[:, 0], rtol=2e-5, atol=1e-6
  )
  assert out.metrics["reward_chosen"] == pytest.approx(inverse[:, 0].mean(), rel=1e-5)


def test_oracle():
  check()


def test_same_rate_at_any_length_is_a_tie():
  s = scored.from_sequence_logps([[-1.0, -8.0]], [[2, 16]])
  out = scored.evaluate(objectives.simper(), s)
  assert out.loss == 0
  assert out.metrics["reward_accuracy"] == 0.5
