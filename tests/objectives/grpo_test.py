"""GRPO."""

import numpy as np
import pytest

from tests.compiled import scored
from tests.objectives import group_oracle as oracle
from xpo_jax import objectives
from xpo_jax.ops import token_stats
from xpo_jax.testing import toy


def check():
  s = oracle.record()
  actual = scored.evaluate(objectives.grpo(0.2, 0.3, beta=0.5, dual_clip=1.5), s).loss
  tokens = oracle.tokens(s, oracle.standardised, 0.2, 0.3, 0.5, max_ratio=1.5)
  expected = np.mean([np.mean([y.mean() for y in group]) for group in tokens])
  np.testing.assert_allclose(actual, expected, rtol=1e-5)


def test_oracle():
  check()


def test_hand_computed_pair():
  # A = +-0.5 / (0.5 sqrt 2 + 1e-4); ratios 1.5, clipped to 1.2, and 1.5, which counts.
  logp = np.log([[[1.5], [1.5]]])
  s = scored.from_token_logps(
    logp, np.ones((1, 2, 1)), old_logp_BKT=0 * logp, reward_BK=[[1.0, 0.0]]
  )
  out = scored.evaluate(objectives.grpo(beta=None), s)
  a = 0.5 / (np.sqrt(0.5) + 1e-4)
  assert out.loss == pytest.approx((-1.2 * a + 1.5 * a) / 2, rel=1e-5)
  assert out.metrics["clip_fraction"] == 0.5
  assert out.metrics["reward"] == 0.5
  assert out.metrics["frac_informative_prompts"] == 1


def test_no_tie_to_ref_reads_no_reference():
  tied, free = objectives.grpo(), objectives.grpo(beta=None)
  assert tied.stats - free.stats == {token_stats.REF_LOGP}
  s = toy.scored(K=3)
  without = scored.evaluate(free, s.replace(ref_logp_BKT=None)).loss
  at_ref = scored.evaluate(tied, s.replace(ref_logp_BKT=s.logp_BKT)).loss
  assert without == pytest.approx(float(at_ref))


def test_single_completion_gives_0():
  s = toy.scored(K=3)
  s = s.replace(present_BK=s.present_BK.at[:, 1:].set(0))
  assert scored.evaluate(objectives.grpo(beta=None), s).loss == 0


@pytest.mark.nonfinite
def test_reward_of_an_absent_column_may_be_missing():
  s = toy.scored(K=3)  # the last column of prompt 0 is absent
  missing = s.replace(reward_BK=s.reward_BK.at[0, 2].set(np.nan))
  full, out = (scored.evaluate(objectives.grpo(), x) for x in (s, missing))
  assert out.loss == full.loss
  assert out.metrics["reward"] == full.metrics["reward"]


@pytest.mark.parametrize(
  "hparams", [{"clip_low": 1.5}, {"clip_high": -0.1}, {"dual_clip": 1.0}, {"beta": 0.0}]
)
@pytest.mark.parametrize("name", ["grpo", "dr_grpo", "dapo", "bnpo"])
def test_hparam_out_of_range_is_refused(name, hparams):
  (hparam,) = hparams
  with pytest.raises(ValueError, match=rf"{name}: {hparam}=.*must be a finite number"):
    objectives.build(name, hparams)


@pytest.mark.parametrize(
  "name", ["grpo", "dapo", "bnpo", "cispo", "gspo", "sapo", "gmpo"]
)
def test_scale_rewards_is_the_population_of_the_deviation(name):
  s = oracle.record()
  rewards = oracle.rewards(s)
  deviation = {
    "group": [r.std(ddof=1) + 1e-4 for r in rewards],
    "batch": [np.concatenate(rewards).std(ddof=1) + 1e-4] * len(rewards),
    "nothing": [1.0] * len(rewards),
  }
  present = np.asarray(s.present_BK) > 0
  for scale, each in deviation.items():
    o = objectives.build(name, {"beta": None, "scale_rewards": scale})
    assert o.hparams["scale_rewards"] == scale
    aux, _ = o.prepare(s, (), None)
    for b, (r, d) in enumerate(zip(rewards, each, strict=True)):
      expected = (r - r.mean()) / d
      np.testing.assert_allclose(aux.rows[b][present[b]], expected, rtol=1e-4)


def test_filler_rows_do_not_count_in_the_batch_s_deviation():
  s = oracle.record()
  s = s.replace(weight_B=s.weight_B.at[1].set(0))
  o = objectives.grpo(scale_rewards="batch")
  far = s.replace(reward_BK=s.reward_BK.at[1].set(np.array([0.0, 1e3, -1e3, 5.0])))
  assert scored.evaluate(o, far).loss == scored.evaluate(o, s).loss


def test_unknown_scale_is_refused():
  with pytest.raises(ValueError, match=r"grpo: scale_rewards='batches'.*'batch'"):
    objectives.grpo(scale_rewards="batches")
