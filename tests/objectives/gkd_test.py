"""GKD on the student's completions."""

import numpy as np
import pytest

from tests.compiled import scored
from tests.objectives import teacher_records
from xpo_jax import objectives
from xpo_jax.ops import token_stats


@pytest.mark.parametrize("b", [0.0, 0.1, 0.5, 0.9, 1.0])
def test_oracle(b):
  o = objectives.gkd(b)
  s, groups = teacher_records.record(o)
  out = scored.evaluate(o, s)
  each = [[teacher_records.jsd(y.teacher, y.policy, b) for y in ys] for ys in groups]
  # An empty completion is a member of its group with nothing to learn.
  means = [np.mean([d.mean() if len(d) else 0 for d in ds]) for ds in each]
  np.testing.assert_allclose(out.per_example_B, means, rtol=2e-5)
  np.testing.assert_allclose(out.loss, np.mean(means), rtol=2e-5)
  sums = [d.sum() for ds in each for d in ds]
  np.testing.assert_allclose(out.metrics["seq_divergence"], np.mean(sums), rtol=2e-5)


def test_only_the_divergence_is_scored():
  assert objectives.gkd().stats == {token_stats.teacher_jsd(0.5)}
  assert objectives.gkd(1.0).stats == {token_stats.POLICY_TEACHER_KL}


@pytest.mark.parametrize("name", ["gkd", "kd"])
@pytest.mark.parametrize("value", [-0.1, 1.1])
def test_interpolation_out_of_range_is_refused(name, value):
  with pytest.raises(ValueError, match=rf"{name}: interpolation=.*>= 0 and <= 1"):
    objectives.build(name, {"interpolation": value})
