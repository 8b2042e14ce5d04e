"""DPO-Shift."""

import numpy as np
import pytest

from tests.compiled import scored
from tests.objectives import pairs
from xpo_jax import objectives
from xpo_jax.testing import toy


def check():
  s = toy.scored(K=2)
  ratio = pairs.log_ratio(s)
  z = 0.5 * ratio[:, 0] - 0.6 * 0.5 * ratio[:, 1]
  out = scored.evaluate(objectives.dpo_shift(beta=0.5, shift=0.6), s)
  np.testing.assert_allclose(out.per_example_B, np.log1p(np.exp(-z)), rtol=2e-5)
  # The margin that is reported is DPO's.
  assert out.metrics["reward_margin"] == pytest.approx(
    0.5 * pairs.gap(s).mean(), rel=1e-5
  )


def test_oracle():
  check()


@pytest.mark.parametrize("shift", [0.0, 1.05, -0.5])
def test_shift_out_of_range_is_refused(shift):
  with pytest.raises(ValueError, match=r"dpo_shift: shift=.* > 0 and <= 1"):
    objectives.dpo_shift(shift=shift)
