"""KD on given completions."""

import numpy as np
import pytest

from tests.compiled import scored
from tests.objectives import teacher_records
from xpo_jax import objectives


@pytest.mark.parametrize("b", [0.0, 0.3, 1.0])
@pytest.mark.parametrize("columns", [1, 2])
def test_oracle_on_column_0(b, columns):
  o = objectives.kd(b)
  s, groups = teacher_records.record(o, columns)
  out = scored.evaluate(o, s)
  each = [teacher_records.jsd(ys[0].teacher, ys[0].policy, b) for ys in groups]
  np.testing.assert_allclose(out.per_example_B, [d.mean() for d in each], rtol=2e-5)
  total = np.mean([d.sum() for d in each])
  np.testing.assert_allclose(out.metrics["seq_divergence"], total, rtol=2e-5)


def test_equals_gkd_on_single_completions():
  o = objectives.kd(0.4)
  s, _ = teacher_records.record(o, 1)
  same = scored.evaluate(objectives.gkd(0.4), s)
  assert float(scored.evaluate(o, s).loss) == pytest.approx(float(same.loss), rel=1e-6)
