"""Weights and masks of the sampler's ratio, against formulas in NumPy."""

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.compiled import scored
from xpo_jax import objectives
from xpo_jax.ops import sampler_correction
from xpo_jax.ops.sampler_correction import corrected
from xpo_jax.testing import toy


def _record():
  """Samples of the policy itself, drawn from something else."""
  s = toy.scored(K=3)
  shift_BKT = np.random.default_rng(5).normal(size=s.mask_BKT.shape)
  return s.replace(
    old_logp_BKT=s.logp_BKT, sampler_logp_BKT=s.logp_BKT - 0.5 * shift_BKT * s.mask_BKT
  )


def _ratio(s, level: str) -> np.ndarray:
  gap_BKT = np.asarray(s.old_logp_BKT - s.sampler_logp_BKT, np.float64)
  if level == "sequence":
    gap_BKT = np.broadcast_to(gap_BKT.sum(-1, keepdims=True), gap_BKT.shape)
  return np.exp(gap_BKT)


def _slope(objective, s) -> np.ndarray:
  def loss(logp_BKT):
    return scored.evaluate(objective, s.replace(logp_BKT=logp_BKT)).loss

  return np.asarray(jax.jit(jax.grad(loss))(s.logp_BKT))


def _advantages(s) -> np.ndarray:
  """GRPO's, 0 where a completion is absent."""
  out = np.zeros(s.reward_BK.shape)
  for b, there in enumerate(np.asarray(s.present_BK) > 0):
    r = np.asarray(s.reward_BK, np.float64)[b, there]
    out[b, there] = (r - r.mean()) / (r.std(ddof=1) + 1e-4)
  return out


@pytest.mark.parametrize("level", ["token", "sequence"])
@pytest.mark.parametrize("cap", [0.9, 2.0, math.inf])
def test_each_token_of_grpo_is_weighted(level, cap):
  """-(1 / B) sum of w A / (K |y|) at each token: the policy's ratio is 1."""
  s = _record()
  mask, present = np.asarray(s.mask_BKT), np.asarray(s.present_BK)
  weight = np.minimum(_ratio(s, level), cap)
  share = present / np.maximum(mask.sum(-1), 1) / present.sum(-1, keepdims=True)
  wanted = -(weight * (_advantages(s) * share)[..., None] * mask) / len(mask)
  found = _slope(corrected(objectives.grpo(beta=None), cap=cap, level=level), s)
  np.testing.assert_allclose(found, wanted, rtol=1e-4, atol=1e-7)


@pytest.mark.parametrize("level", ["token", "sequence"])
def test_tokens_out_of_bounds_leave_loss_and_denominators(level):
  """GRPO's means are over the tokens and completions that are left."""
  s, (low, high) = _record(), (0.8, 1.3)
  ratio = _ratio(s, level)
  mask = np.asarray(s.mask_BKT) * (ratio >= low) * (ratio <= high)
  assert 0 < mask.sum() < s.mask_BKT.sum()
  present = np.asarray(s.present_BK) * (mask.sum(-1) > 0)
  count = np.maximum(present.sum(-1, keepdims=True), 1)
  share = present / np.maximum(mask.sum(-1), 1) / count
  wanted = -((_advantages(s) * share)[..., None] * mask) / len(mask)
  grpo = objectives.grpo(beta=None)
  found = _slope(corrected(grpo, cap=None, bounds=(low, high), level=level), s)
  np.testing.assert_allclose(found, wanted, rtol=1e-4, atol=1e-7)


def test_completion_without_a_token_left_is_absent_and_an_empty_one_is_not():
  mask = np.ones((1, 3, 2))
  mask[0, 0] = 0  # it ended at once
  keep = np.ones_like(mask)
  keep[0, 1] = 0
  logp = np.zeros_like(mask)
  s = scored.from_token_logps(logp, mask, logp)
  left = sampler_correction.leave_out(s, jnp.asarray(keep))
  np.testing.assert_array_equal(left.length_BK, [[0, 0, 2]])
  np.testing.assert_array_equal(left.present_BK, [[1, 0, 1]])


def test_metrics_say_how_far_the_sampler_is():
  s = _record()
  tokens = (np.asarray(s.mask_BKT) * np.asarray(s.present_BK)[..., None]) > 0
  ratio = _ratio(s, "token")[tokens]
  found = scored.evaluate(
    corrected(objectives.grpo(beta=None), cap=1.2, bounds=(0.7, 1.5)), s
  ).metrics
  wanted = {
    "sampler_kl": -np.log(ratio).mean(),
    "sampler_ratio": ratio.mean(),
    "sampler_truncated": (ratio > 1.2).mean(),
    "sampler_left_out": ((ratio < 0.7) | (ratio > 1.5)).mean(),
  }
  for name, value in wanted.items():
    assert found[name] == pytest.approx(value, rel=1e-4)


@pytest.mark.parametrize("name", ["grpo", "rloo", "ppo", "gspo", "nash_md", "remax"])
def test_sampler_that_is_the_policy_changes_nothing(name):
  s = _record()
  s = s.replace(sampler_logp_BKT=s.old_logp_BKT)
  objective = objectives.build(name)
  same = corrected(objective, cap=2.0, bounds=(0.5, 2.0))
  np.testing.assert_array_equal(_slope(same, s), _slope(objective, s))
  losses = (
    jax.jit(functools.partial(scored.evaluate, each))(s).loss
    for each in (same, objective)
  )
  np.testing.assert_array_equal(*losses)


def test_gradient_is_scaled_and_the_value_stays():
  x, weight = jnp.array([1.5, -2.0]), jnp.array([3.0, math.e])
  scaled, pullback = jax.vjp(
    lambda x: sampler_correction.scale_gradient(x, weight) ** 2, x
  )
  np.testing.assert_array_equal(scaled, x**2)
  np.testing.assert_allclose(pullback(jnp.ones(2))[0], 2 * x * weight, rtol=1e-6)


@pytest.mark.parametrize(
  ("arguments", "match"),
  [
    ({"cap": None}, "cap and bounds are None"),
    ({"cap": 0.0}, "cap is 0.0; allowed: > 0"),
    ({"bounds": (2.0, 0.5)}, r"bounds is \(2.0, 0.5\); allowed"),
  ],
)
def test_corrections_that_make_no_sense_are_refused(arguments, match):
  with pytest.raises(ValueError, match=match):
    corrected(objectives.grpo(), **arguments)


@pytest.mark.parametrize("name", ["dpo", "raft", "online_dpo", "sft"])
def test_objective_that_is_no_policy_gradient_is_refused(name):
  with pytest.raises(ValueError, match=f"{name} is no policy gradient"):
    corrected(objectives.build(name))


def test_samples_of_a_teacher_are_not_weighed_twice():
  with pytest.raises(ValueError, match=r"minillm weighs samples .*0.2 of it.* twice"):
    sampler_correction.corrected(objectives.minillm(teacher_share=0.2))
  sampler_correction.corrected(objectives.minillm(teacher_share=0.0))
