"""GMPO."""

import numpy as np
import pytest

from tests.compiled import scored
from tests.objectives import group_oracle as oracle
from xpo_jax import objectives


def check():
  """Eq. 4 as written: a product of clipped token gains, to the power 1 / |y|."""
  s = oracle.record()
  low, high = 0.1, 0.2
  fields = oracle.completions(s, "logp_BKT", "old_logp_BKT", "ref_logp_BKT")
  prompts, clipped, tokens = [], 0, 0
  for group, r in zip(fields, oracle.rewards(s), strict=True):
    each = []
    for (logp, old, ref), a in zip(group, oracle.standardised(r), strict=True):
      rho = np.exp(logp - old)
      within = np.clip(rho, np.exp(-low), np.exp(high))
      gain = np.minimum(rho * a, within * a)
      objective = np.prod(np.abs(gain)) ** (1 / len(gain)) * np.sign(a)
      each.append(-objective + 0.5 * oracle.k3(logp, ref).mean())
      clipped, tokens = clipped + (within * a < rho * a).sum(), tokens + len(rho)
    prompts.append(np.mean(each))
  out = scored.evaluate(objectives.gmpo(low, high, beta=0.5), s)
  np.testing.assert_allclose(out.loss, np.mean(prompts), rtol=1e-5)
  assert out.metrics["clip_fraction"] == pytest.approx(clipped / tokens)
  assert 0 < clipped < tokens


def test_oracle():
  check()


def test_a_token_moved_against_its_advantage_is_not_clipped():
  logp = np.log([[[0.1], [10.0]]])  # the better one less likely, the worse one more
  s = scored.from_token_logps(
    logp, np.ones((1, 2, 1)), old_logp_BKT=0 * logp, reward_BK=[[1.0, 0.0]]
  )
  out = scored.evaluate(objectives.gmpo(), s)
  a = 0.5 / (np.sqrt(0.5) + 1e-4)
  assert out.loss == pytest.approx((-0.1 * a + 10 * a) / 2, rel=1e-5)
  assert out.metrics["clip_fraction"] == 0


def test_clip_below_0_is_refused():
  with pytest.raises(ValueError, match=r"gmpo: clip_low=-0\.1"):
    objectives.gmpo(clip_low=-0.1)
