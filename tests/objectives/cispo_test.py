"""CISPO."""

import jax
import numpy as np
import pytest

from tests.compiled import scored
from tests.objectives import group_oracle as oracle
from xpo_jax import objectives


def check():
  s = oracle.record()
  fields = oracle.completions(s, "logp_BKT", "old_logp_BKT", "ref_logp_BKT")
  prompts = [
    np.concatenate(
      [
        -np.minimum(np.exp(logp - old), 1.1) * a * logp + 0.5 * oracle.k3(logp, ref)
        for (logp, old, ref), a in zip(group, oracle.standardised(r), strict=True)
      ]
    ).mean()
    for group, r in zip(fields, oracle.rewards(s), strict=True)
  ]
  actual = scored.evaluate(objectives.cispo(max_ratio=1.1, beta=0.5), s).loss
  np.testing.assert_allclose(actual, np.mean(prompts), rtol=1e-5)


def test_oracle():
  check()


def test_no_token_is_dropped():
  """Beyond PPO's bound a token keeps its gradient, with the bounded weight."""
  logp = np.log([[[3.0], [0.3]]])
  s = scored.from_token_logps(
    logp, np.ones((1, 2, 1)), old_logp_BKT=0 * logp, reward_BK=[[1.0, 0.0]]
  )

  def slope(o):
    def loss(logp_BKT):
      return scored.evaluate(o, s.replace(logp_BKT=logp_BKT)).loss

    return jax.jit(jax.grad(loss))(s.logp_BKT).ravel()

  a = 0.5 / (np.sqrt(0.5) + 1e-4)
  assert not slope(objectives.grpo(beta=None)).any()
  # -A w / 2 with w the ratio, 3 bounded by 2
  expected = pytest.approx([-a * 2 / 2, a * 0.3 / 2], rel=1e-5)
  assert slope(objectives.cispo(max_ratio=2.0)).tolist() == expected
  clipped = scored.evaluate(objectives.cispo(max_ratio=2.0), s).metrics["clip_fraction"]
  assert clipped == 0.5
  assert scored.evaluate(objectives.cispo(4.0), s).metrics["clip_fraction"] == 0


@pytest.mark.parametrize("hparams", [{"max_ratio": 0.0}, {"beta": -1.0}])
def test_hparam_out_of_range_is_refused(hparams):
  with pytest.raises(ValueError, match=r"cispo: .*must be a finite number"):
    objectives.cispo(**hparams)
