"""GSPO."""

import numpy as np
import pytest

from tests.compiled import scored
from tests.objectives import group_oracle as oracle
from xpo_jax import objectives


def check():
  s = oracle.record()
  fields = oracle.completions(s, "logp_BKT", "old_logp_BKT", "ref_logp_BKT")
  prompts = [
    np.mean(
      [
        oracle.clipped(np.exp((logp - old).mean()), a, 0.05, 0.1)
        + 0.5 * oracle.k3(logp, ref).mean()
        for (logp, old, ref), a in zip(group, oracle.standardised(r), strict=True)
      ]
    )
    for group, r in zip(fields, oracle.rewards(s), strict=True)
  ]
  actual = scored.evaluate(objectives.gspo(0.05, 0.1, beta=0.5), s).loss
  np.testing.assert_allclose(actual, np.mean(prompts), rtol=1e-5)


def test_oracle():
  check()


def test_one_token_completions_are_grpo():
  s = oracle.record()
  one = s.mask_BKT.at[..., 1:].set(0)
  s = s.replace(mask_BKT=one, length_BK=one.sum(-1))
  gspo, grpo = objectives.gspo(0.1, 0.2, beta=0.3), objectives.grpo(0.1, 0.2, beta=0.3)
  same = float(scored.evaluate(grpo, s).loss)
  assert scored.evaluate(gspo, s).loss == pytest.approx(same, rel=1e-5)


def test_clip_is_of_completions():
  # Tokens at ratios 4 and 1/4: every one beyond its own clip, their geometric mean 1.
  logp = np.log([[[4.0, 0.25], [4.0, 0.25]]])
  s = scored.from_token_logps(
    logp, np.ones((1, 2, 2)), old_logp_BKT=0 * logp, reward_BK=[[1.0, 0.0]]
  )
  assert scored.evaluate(objectives.gspo(), s).metrics["clip_fraction"] == 0
  assert scored.evaluate(objectives.grpo(beta=None), s).metrics["clip_fraction"] == 0.5
