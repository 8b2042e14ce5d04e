"""DAPO."""

import jax.numpy as jnp
import numpy as np
import pytest

from tests.compiled import scored
from tests.objectives import group_oracle as oracle
from xpo_jax import objectives


def check():
  s = oracle.record()
  actual = scored.evaluate(objectives.dapo(beta=0.5, dual_clip=1.5), s).loss
  tokens = oracle.tokens(s, oracle.standardised, 0.2, 0.28, 0.5, max_ratio=1.5)
  expected = np.mean([np.concatenate(group).mean() for group in tokens])
  np.testing.assert_allclose(actual, expected, rtol=1e-5)

  # No penalty up to 10 - 4 tokens, half of it at 8, all of it from 10 on.
  penalty = objectives.overlong_penalty(jnp.array([[3.0, 6.0, 8.0, 10.0, 12.0]]), 10, 4)
  np.testing.assert_allclose(penalty, [[0, 0, -0.5, -1, -1]], atol=1e-7)


def test_oracle():
  check()


def test_one_prompt_is_bnpo():
  """They differ in how prompts are averaged, and in the upper clip."""
  s = oracle.record()
  one = s.replace(weight_B=s.weight_B.at[1:].set(0))
  dapo, bnpo = objectives.dapo(clip_high=0.2), objectives.bnpo()
  same = scored.evaluate(bnpo, one).loss
  assert scored.evaluate(dapo, one).loss == pytest.approx(float(same))
  assert abs(scored.evaluate(dapo, s).loss - scored.evaluate(bnpo, s).loss) > 1e-3
