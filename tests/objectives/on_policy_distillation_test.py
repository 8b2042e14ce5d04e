"""On-policy distillation."""

import jax
import numpy as np
import pytest

from tests.compiled import scored
from tests.objectives import teacher_records
from xpo_jax import objectives


@pytest.mark.parametrize("discount", [0.0, 0.7, 1.0])
def test_oracle(discount):
  o = objectives.on_policy_distillation(discount)
  s, groups = teacher_records.record(o)
  out = scored.evaluate(o, s)

  def of(y):
    reward = y.teacher_logp - y.old_logp
    total = 0.0
    for t, ratio in enumerate(np.exp(y.logp - y.old_logp)):
      later = reward[t:]
      total -= ratio * (discount ** np.arange(len(later)) * later).sum()
    return total

  expected = [np.mean([of(y) for y in ys]) for ys in groups]
  np.testing.assert_allclose(out.per_example_B, expected, rtol=1e-4)
  kl = np.mean([(y.old_logp - y.teacher_logp).sum() for ys in groups for y in ys])
  np.testing.assert_allclose(out.metrics["teacher_kl"], kl, rtol=1e-4)


def test_no_gradient_where_teacher_and_sampler_agree():
  o = objectives.on_policy_distillation(1.0)
  s, _ = teacher_records.record(o)
  s = s.replace(extra={"teacher_logp_BKT": s.old_logp_BKT})

  def loss(logp_BKT):
    return scored.evaluate(o, s.replace(logp_BKT=logp_BKT)).loss

  assert not np.asarray(jax.jit(jax.grad(loss))(s.logp_BKT)).any()


@pytest.mark.parametrize("discount", [-0.1, 1.1])
def test_discount_out_of_range_is_refused(discount):
  with pytest.raises(ValueError, match=r"discount=.*>= 0 and <= 1"):
    objectives.on_policy_distillation(discount)
