"""MiniLLM."""

import numpy as np
import pytest

from tests.compiled import scored
from tests.objectives import teacher_records
from xpo_jax import objectives


@pytest.mark.parametrize("normalised", [True, False])
@pytest.mark.parametrize("share", [0.0, 0.2, 0.7])
def test_oracle(share, normalised):
  o = objectives.minillm(share, clip=0.1, length_normalised=normalised)
  s, groups = teacher_records.record(o)
  out = scored.evaluate(o, s)
  clipped = []

  def long_range(y):
    mixed = (1 - share) * np.exp(y.old_logp) + share * np.exp(y.teacher_logp)
    rho = np.exp(y.logp) / mixed
    reward, total = y.teacher_logp - y.old_logp, 0.0
    for t in range(len(reward)):
      later = reward[t + 1 :].sum()
      if normalised:
        later /= max(len(reward) - t - 1, 1)
      # The paper maximises min(rho R, clip(rho) R).
      surrogate = rho[t] * later, np.clip(rho[t], 0.9, 1.1) * later
      clipped.append(surrogate[1] < surrogate[0])
      total -= min(surrogate)
    return total

  single = [
    np.mean([teacher_records.jsd(y.teacher, y.policy, 1).sum() for y in ys])
    for ys in groups
  ]
  later = [np.mean([long_range(y) for y in ys]) for ys in groups]
  np.testing.assert_allclose(out.terms["single_step"], np.mean(single), rtol=1e-4)
  np.testing.assert_allclose(out.terms["long_range"], np.mean(later), rtol=1e-4)
  np.testing.assert_allclose(out.per_example_B, np.add(single, later), rtol=1e-4)
  np.testing.assert_allclose(out.metrics["clip_fraction"], np.mean(clipped), rtol=1e-5)


def test_samples_are_to_be_mixed_with_the_teachers():
  assert objectives.minillm().teacher_share == 0.2
  assert objectives.minillm(0.0).teacher_share == 0
  assert objectives.gkd().teacher_share == 0


@pytest.mark.parametrize(
  "hparams", [{"teacher_share": 1.0}, {"teacher_share": -0.1}, {"clip": -0.1}]
)
def test_hparam_out_of_range_is_refused(hparams):
  (hparam,) = hparams
  with pytest.raises(ValueError, match=rf"minillm: {hparam}=.*must be a finite number"):
    objectives.minillm(**hparams)
