"""REINFORCE++."""

import numpy as np
import pytest

from tests.compiled import scored
from tests.objectives import group_oracle as oracle
from xpo_jax import objectives
from xpo_jax.testing import toy


def whitened(x, filler=0.0):
  """(x - mean) / std of one array of all tokens of the batch."""
  return (x - x.mean()) / np.sqrt(x.var() + 1e-8)


def split(flat, groups):
  """The tokens of a flat array, in the shape of ragged groups."""
  sizes = [len(tokens) for group in groups for tokens in group]
  parts = iter(np.split(flat, np.cumsum(sizes)[:-1]))
  return [[next(parts) for _ in group] for group in groups]


def loss(s, advantages, low, high, penalty=None):
  """Mean over prompts of the mean over completions of the mean over tokens."""
  fields = oracle.completions(s, "logp_BKT", "old_logp_BKT", "ref_logp_BKT")
  prompts = []
  for group, own in zip(fields, advantages, strict=True):
    each = []
    for (logp, old, ref), a in zip(group, own, strict=True):
      rho = np.exp(logp - old)
      token = -np.minimum(rho * a, np.clip(rho, 1 - low, 1 + high) * a)
      each.append((token if penalty is None else token + penalty(logp, ref)).mean())
    prompts.append(np.mean(each))
  return np.mean(prompts)


def check():
  s, beta = oracle.record(), 0.3
  fields = oracle.completions(s, "old_logp_BKT", "ref_logp_BKT")
  # Eq. 4: r - beta times the log-ratios of the rollout from this token on.
  raw = [
    [r_i - beta * np.cumsum((old - ref)[::-1])[::-1] for (old, ref), r_i in pairs]
    for pairs in (
      list(zip(group, r, strict=True))
      for group, r in zip(fields, oracle.rewards(s), strict=True)
    )
  ]
  flat = np.concatenate([tokens for group in raw for tokens in group])
  advantages = split(whitened(flat), raw)  # Eq. 5
  o = objectives.reinforce_plus_plus(0.1, 0.2, beta=beta)
  actual = scored.evaluate(o, s).loss
  np.testing.assert_allclose(actual, loss(s, advantages, 0.1, 0.2), rtol=1e-5)


def test_oracle():
  check()


def test_filler_rows_do_not_count_in_the_deviation():
  s = oracle.record()
  o = objectives.reinforce_plus_plus(beta=None)
  s = s.replace(weight_B=s.weight_B.at[1].set(0))
  losses = [
    float(scored.evaluate(o, s.replace(reward_BK=s.reward_BK.at[1].set(r))).loss)
    for r in (0.0, 1e3)
  ]
  assert losses[0] == losses[1] != 0


def test_no_tie_reads_no_reference():
  s = toy.scored(K=1)
  tied = objectives.reinforce_plus_plus(beta=0.5)
  free = objectives.reinforce_plus_plus(beta=None)
  at_ref = s.replace(ref_logp_BKT=s.old_logp_BKT)  # every penalty is 0
  expected = float(scored.evaluate(tied, at_ref).loss)
  without = scored.evaluate(free, s.replace(ref_logp_BKT=None)).loss
  assert without == pytest.approx(expected)
