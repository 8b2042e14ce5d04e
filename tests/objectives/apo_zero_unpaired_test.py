"""APO-zero on single completions."""

import numpy as np
import pytest
from scipy import special

from tests.compiled import scored
from xpo_jax import objectives


def test_hand_computed_rows():
  s = scored.from_sequence_logps(
    [[3.0], [2.0]], [[1], [1]], [[1.0], [5.0]], desirable_BK=[[1.0], [0.0]]
  )
  out = scored.evaluate(objectives.apo_zero_unpaired(beta=0.5), s)
  expected = [1 - special.expit(0.5 * 2), special.expit(0.5 * -3)]
  np.testing.assert_allclose(out.per_example_B, expected, rtol=1e-6)
  assert out.metrics["reward_accuracy"] == 1
  assert out.metrics["reward_chosen"] == pytest.approx(0.5 * 2)
  assert out.metrics["reward_rejected"] == pytest.approx(0.5 * -3)


def test_it_is_kto_with_its_reference_point_at_0():
  ratio = np.array([[3.0, 0.0], [-2.0, 0.0], [0.5, 0.0]])
  label = np.array([[1.0, 1.0], [1.0, 1.0], [0.0, 0.0]])
  one = np.ones_like(ratio)
  both = scored.from_sequence_logps(ratio, one, 0 * ratio, desirable_BK=label)
  kto = scored.evaluate(objectives.kto(beta=0.7), both)
  first = scored.from_sequence_logps(
    ratio[:, :1], one[:, :1], 0 * ratio[:, :1], desirable_BK=label[:, :1]
  )
  apo = scored.evaluate(objectives.apo_zero_unpaired(beta=0.7), first)
  assert kto.metrics["z0"] == 0
  np.testing.assert_allclose(apo.per_example_B, kto.per_example_B, rtol=1e-6)
