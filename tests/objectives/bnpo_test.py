"""BNPO as in TRL."""

import numpy as np

from tests.compiled import scored
from tests.objectives import group_oracle as oracle
from xpo_jax import objectives


def check():
  s = oracle.record()
  actual = scored.evaluate(objectives.bnpo(0.2, 0.3, beta=0.5, dual_clip=1.5), s).loss
  tokens = oracle.tokens(s, oracle.standardised, 0.2, 0.3, 0.5, max_ratio=1.5)
  expected = np.concatenate([y for group in tokens for y in group]).mean()
  np.testing.assert_allclose(actual, expected, rtol=1e-5)


def test_oracle():
  check()
