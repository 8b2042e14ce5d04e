"""RAFT."""

import numpy as np
import pytest

from tests.compiled import scored
from tests.objectives import group_oracle as oracle
from xpo_jax import objectives
from xpo_jax.types import Aux


def check():
  s = oracle.record()
  groups = zip(oracle.completions(s, "logp_BKT"), oracle.rewards(s), strict=True)
  best = [group[np.argmax(r)][0] for group, r in groups]
  actual = scored.evaluate(objectives.raft(), s).loss
  np.testing.assert_allclose(actual, -np.concatenate(best).mean(), rtol=1e-6)


def test_oracle():
  check()


def test_tie_selects_the_first():
  s = oracle.record()
  tied = s.replace(reward_BK=0 * s.reward_BK)
  first = s.replace(reward_BK=s.reward_BK.at[:, 0].set(100.0))
  tied, first = (scored.evaluate(objectives.raft(), x) for x in (tied, first))
  assert tied.loss == first.loss
  assert first.metrics["reward_kept"] == 100


def test_another_selection_can_be_substituted():
  s = oracle.record()
  every = objectives.raft().loss(s, Aux(rows=s.present_BK)).terms["raft"]
  logps = oracle.completions(s, "logp_BKT")
  tokens = [logp for group in logps for (logp,) in group]
  assert every.value == pytest.approx(-np.concatenate(tokens).mean())
