"""Step-DPO."""

import numpy as np
import pytest

from tests.compiled import scored
from tests.objectives import pairs
from xpo_jax import objectives
from xpo_jax.testing import toy


def check():
  s = toy.scored(K=2)
  expected = np.log1p(np.exp(-0.5 * pairs.gap(s)))
  out = scored.evaluate(objectives.step_dpo(beta=0.5), s)
  np.testing.assert_allclose(out.per_example_B, expected, rtol=2e-5)
  assert set(out.terms) == {"step_dpo"}


def test_oracle():
  check()


def test_paper_s_beta_is_the_default():
  out = scored.evaluate(objectives.step_dpo(), pairs.one(2.0, -1.0))
  assert out.loss == pytest.approx(np.log1p(np.exp(-0.4 * 3.0)), rel=1e-6)
