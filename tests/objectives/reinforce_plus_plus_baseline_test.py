"""REINFORCE++ with a baseline."""

import numpy as np

from tests.compiled import scored
from tests.objectives import group_oracle as oracle
from tests.objectives import reinforce_plus_plus_test as plus_plus
from xpo_jax import objectives


def _advantages(s):
  """Eq. 6 and 7: rewards minus their group's mean, whitened over all tokens."""
  fields = oracle.completions(s, "logp_BKT")
  raw = [
    [np.full(len(logp), r_i - r.mean()) for (logp,), r_i in zip(group, r, strict=True)]
    for group, r in zip(fields, oracle.rewards(s), strict=True)
  ]
  flat = np.concatenate([tokens for group in raw for tokens in group])
  return plus_plus.split(plus_plus.whitened(flat), raw)


def check():
  s, beta = oracle.record(), 0.3

  def k2(logp, ref):
    return beta * (logp - ref) ** 2 / 2

  o = objectives.reinforce_plus_plus_baseline(0.1, 0.2, beta=beta)
  expected = plus_plus.loss(s, _advantages(s), 0.1, 0.2, k2)  # Eq. 8
  np.testing.assert_allclose(scored.evaluate(o, s).loss, expected, rtol=1e-5)


def test_oracle():
  check()


def test_a_constant_of_a_prompt_changes_nothing():
  s = oracle.record()
  moved = s.replace(reward_BK=s.reward_BK + np.array([[3.0], [-2.0], [0.5]]))
  o = objectives.reinforce_plus_plus_baseline()
  before, after = (scored.evaluate(o, x).loss for x in (s, moved))
  np.testing.assert_allclose(after, before, rtol=1e-5)
  plain = objectives.reinforce_plus_plus()  # without the baseline it does
  before, after = (scored.evaluate(plain, x).loss for x in (s, moved))
  assert abs(after - before) > 1e-3


def test_a_prompt_with_one_completion_teaches_nothing_by_its_reward():
  s = oracle.record()
  alone = s.replace(present_BK=s.present_BK.at[1, 1:].set(0))
  o = objectives.reinforce_plus_plus_baseline(beta=None)
  losses = [
    float(
      scored.evaluate(o, alone.replace(reward_BK=alone.reward_BK.at[1].set(r))).loss
    )
    for r in (0.0, 5.0)
  ]
  assert losses[0] == losses[1]
