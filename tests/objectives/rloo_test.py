"""RLOO."""

import numpy as np
import pytest

from tests.compiled import scored
from tests.objectives import group_oracle as oracle
from xpo_jax import objectives


def check():
  s = oracle.record()
  fields = oracle.completions(s, "logp_BKT", "old_logp_BKT", "ref_logp_BKT")
  prompts = []
  for group, r in zip(fields, oracle.rewards(s), strict=True):
    kl = np.array([(old - ref).sum() for _, old, ref in group])
    shaped = r - 0.4 * kl
    others = [np.delete(shaped, i).mean() for i in range(len(r))]
    seq_logp = np.array([logp.sum() for logp, _, _ in group])
    prompts.append(-((shaped - others) * seq_logp).mean())
  actual = scored.evaluate(objectives.rloo(beta=0.4), s).loss
  np.testing.assert_allclose(actual, np.mean(prompts), rtol=1e-5)


def test_oracle():
  check()


def test_hand_computed_three():
  s = scored.from_sequence_logps(
    [[-1.0, -2.0, -4.0]], [[1, 2, 3]], reward_BK=[[1.0, 0.0, 0.5]]
  )
  # less the mean of the others: 1 - 0.25, 0 - 0.75, 0.5 - 0.5
  loss = scored.evaluate(objectives.rloo(beta=None), s).loss
  assert loss == pytest.approx((0.75 * 1 - 0.75 * 2 + 0 * 4) / 3)


def test_single_completion_adds_0():
  s = scored.from_sequence_logps(
    [[-1.0, -2.0]], [[1, 2]], reward_BK=[[1.0, 0.0]], present_BK=[[1, 0]]
  )
  assert scored.evaluate(objectives.rloo(beta=None), s).loss == 0


def test_reward_is_clipped_before_the_penalty():
  s = oracle.record()
  s = s.replace(reward_BK=10 * s.reward_BK)
  clipped = s.replace(reward_BK=s.reward_BK.clip(-0.5, 0.5))
  actual = objectives.rloo_advantages(s, 0.1, reward_range=(-0.5, 0.5))
  np.testing.assert_array_equal(actual, objectives.rloo_advantages(clipped, 0.1))


def test_beta_must_be_positive_or_none():
  with pytest.raises(ValueError, match=r"rloo: beta=0.0.* > 0 \(usual: beta=0.03\)"):
    objectives.rloo(beta=0.0)
