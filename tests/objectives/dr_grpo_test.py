"""Dr. GRPO."""

import numpy as np
import pytest

from tests.compiled import scored
from tests.objectives import group_oracle as oracle
from xpo_jax import objectives


def check():
  s = oracle.record()
  o = objectives.dr_grpo(0.2, 0.3, length=7.0, beta=0.5, dual_clip=1.5)
  tokens = oracle.tokens(s, lambda r: r - r.mean(), 0.2, 0.3, 0.5, max_ratio=1.5)
  expected = np.mean([np.mean([y.sum() / 7 for y in group]) for group in tokens])
  np.testing.assert_allclose(scored.evaluate(o, s).loss, expected, rtol=1e-5)


def test_oracle():
  check()


def test_length_must_be_positive():
  with pytest.raises(ValueError, match="dr_grpo: length=0"):
    objectives.dr_grpo(length=0)
