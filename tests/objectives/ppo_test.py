"""PPO, and PPO-ptx as two parts."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.compiled import scored
from xpo_jax import objectives
from xpo_jax.ops import returns
from xpo_jax.testing import toy
from xpo_jax.types import AuxLoss

HPARAMS = {"beta": 0.3, "clip": 0.1, "value_clip": 0.4, "value_weight": 0.5}
HPARAMS |= {"gamma": 0.9, "lam": 0.8}


def completions(s):
  """Every completion that counts, its real tokens alone, float64."""
  names = ["logp_BKT", "old_logp_BKT", "ref_logp_BKT", "value_BKT", "old_value_BKT"]
  for b, k in np.argwhere(np.asarray(s.present_BK * s.weight_B[:, None]) > 0):
    n = int(s.length_BK[b, k])
    own = {name: np.asarray(vars(s)[name], np.float64)[b, k, :n] for name in names}
    yield float(s.reward_BK[b, k]), own


def advantages(s, beta, gamma, lam, whiten_reward):
  """Advantages and returns of all tokens, with loops."""
  rewards = []
  for score, own in completions(s):
    reward = -beta * (own["old_logp_BKT"] - own["ref_logp_BKT"])
    if len(reward):
      reward[-1] += score
    rewards.append(reward)
  if whiten_reward:
    every = np.concatenate(rewards)
    mean, deviation = every.mean(), np.sqrt(every.var() + 1e-8)
    rewards = [(reward - mean) / deviation + mean for reward in rewards]
  advantages, targets = [], []
  for reward, (_, own) in zip(rewards, completions(s), strict=True):
    value = np.append(own["old_value_BKT"], 0)
    advantage = np.zeros(len(reward) + 1)
    for t in reversed(range(len(reward))):
      delta = reward[t] + gamma * value[t + 1] - value[t]
      advantage[t] = delta + gamma * lam * advantage[t + 1]
    advantages.append(advantage[:-1])
    targets.append(advantage[:-1] + value[:-1])
  every = np.concatenate(advantages)
  return (every - every.mean()) / np.sqrt(every.var() + 1e-8), np.concatenate(targets)


def oracle(s, *, beta, clip, value_clip, value_weight, gamma, lam, whiten_reward):
  a, target = advantages(s, beta, gamma, lam, whiten_reward)
  logp, old, _, value, old_value = (
    np.concatenate([list(own.values())[i] for _, own in completions(s)])
    for i in range(5)
  )
  ratio = np.exp(logp - old)
  policy = np.maximum(-a * ratio, -a * np.clip(ratio, 1 - clip, 1 + clip))
  near = np.clip(value, old_value - value_clip, old_value + value_clip)
  fit = np.maximum((value - target) ** 2, (near - target) ** 2) / 2
  return {"policy": policy.mean(), "value": value_weight * fit.mean()}


def check():
  s = toy.scored(K=3, B=4)  # of 8 the whitened mean is 0 up to rounding
  s = s.replace(weight_B=s.weight_B.at[2].set(0))
  for whiten_reward in (True, False):
    hparams = HPARAMS | {"whiten_reward": whiten_reward}
    terms = scored.evaluate(objectives.ppo(**hparams), s).terms
    for name, expected in oracle(s, **hparams).items():
      np.testing.assert_allclose(terms[name], expected, rtol=1e-4, err_msg=name)


def test_terms_are_those_of_a_loop_over_completions():
  check()


def test_one_token_by_hand():
  """One row's token moved too far, the other's moved the wrong way."""
  one = np.ones((2, 1, 1))
  s = scored.from_token_logps(
    np.log([[[0.6]], [[0.6]]]),
    one,
    np.log([[[0.4]], [[0.4]]]),
    old_logp_BKT=np.log([[[0.4]], [[0.4]]]),
    value_BKT=1.0 * one,
    old_value_BKT=0.0 * one,
    reward_BK=np.array([[3.0], [1.0]]),
  )
  out = scored.evaluate(objectives.ppo(whiten_reward=False), s)
  # Advantages 3 and 1 whiten to 1 and -1; the ratio is 1.5, which pays 1.2 at most.
  assert out.terms["policy"] == pytest.approx((-1 * 1.2 + 1 * 1.5) / 2, rel=1e-5)
  # The value moved from 0 to 1: it is clipped to 0.2 where the return is 3 or 1.
  assert out.terms["value"] == pytest.approx(0.1 * (2.8**2 + 0.8**2) / 2 / 2, rel=1e-5)
  assert out.metrics["clip_fraction"] == 0.5
  assert out.metrics["value_clip_fraction"] == 1
  assert out.metrics["reward"] == 2
  assert out.metrics["seq_kl"] == 0


def test_observed_kl_is_that_of_the_rollout():
  s = toy.scored(K=1)
  seq_kl = scored.evaluate(objectives.ppo(), s).metrics["seq_kl"]
  gap = [own["old_logp_BKT"] - own["ref_logp_BKT"] for _, own in completions(s)]
  np.testing.assert_allclose(seq_kl, np.mean([x.sum() for x in gap]), rtol=1e-5)


def test_gradient_at_ratio_1_is_the_policy_gradient():
  s = toy.scored(K=2)
  s = s.replace(logp_BKT=s.old_logp_BKT)
  o = objectives.ppo(value_weight=0.0)
  advantage, _ = o.prepare(s, (), None)[0].rows
  gradient = jax.grad(lambda x: scored.evaluate(o, s.replace(logp_BKT=x)).loss)(
    s.logp_BKT
  )
  np.testing.assert_allclose(gradient, -advantage * s.mask_BKT / s.mask_BKT.sum(), 1e-5)


def test_advantages_do_not_depend_on_microbatches_or_filler():
  s = toy.scored(K=2)
  o = objectives.ppo()
  whole = o.prepare(s, (), None)[0].rows
  filled = jax.tree.map(lambda x: jnp.concatenate([x, x[:1]]), s)
  filled = filled.replace(weight_B=filled.weight_B.at[-1].set(0))
  for a, b in zip(whole, o.prepare(filled, (), None)[0].rows, strict=True):
    np.testing.assert_allclose(a, b[:-1], atol=1e-5)


def test_ptx_is_ppo_and_language_modelling_on_two_batches():
  rollouts, text = toy.scored(K=2), toy.scored(K=1, B=3, seed=1)
  parts = (
    AuxLoss(1.0, objectives.ppo(), "rollouts"),
    AuxLoss(27.8, objectives.sft(), "text"),
  )

  def total(logp_BKT):
    batches = {"rollouts": rollouts, "text": text.replace(logp_BKT=logp_BKT)}
    out = scored.evaluate_parts(parts, batches)
    return out.loss, out.terms

  gradient, terms = jax.grad(total, has_aux=True)(text.logp_BKT)
  real = np.asarray(text.mask_BKT) > 0
  nll = -np.asarray(text.logp_BKT)[real].mean()
  np.testing.assert_allclose(terms["text/sft"], 27.8 * nll, rtol=1e-5)
  np.testing.assert_allclose(np.asarray(gradient)[real], -27.8 / real.sum(), rtol=1e-5)
  alone = scored.evaluate(objectives.ppo(), rollouts).terms
  np.testing.assert_allclose(terms["rollouts/policy"], alone["policy"], rtol=1e-6)
  np.testing.assert_allclose(terms["rollouts/value"], alone["value"], rtol=1e-6)


def test_reported_statistics_are_those_of_the_advantages_before_whitening():
  s = toy.scored_for(objectives.ppo(**HPARAMS), seed=2)
  hparams = {"beta": 0.3, "gamma": 0.9, "lam": 0.8, "whiten_reward": True}
  _, target = advantages(s, **hparams)
  old = np.concatenate([own["old_value_BKT"] for _, own in completions(s)])
  metrics = scored.evaluate(objectives.ppo(**HPARAMS), s).metrics
  raw = target - old
  np.testing.assert_allclose(
    metrics["advantage_mean"], raw.mean(), rtol=1e-4, atol=1e-6
  )
  np.testing.assert_allclose(metrics["advantage_std"], raw.std(), rtol=1e-4)
  explained = 1 - raw.var() / target.var()
  np.testing.assert_allclose(metrics["explained_variance"], explained, rtol=1e-3)


def test_values_that_are_the_returns_explain_all_of_them():
  s = toy.scored(K=1)
  # With gamma = lam = 1 and no tie the return of every token is the score.
  exact = jnp.broadcast_to(s.reward_BK[..., None], s.mask_BKT.shape) * s.mask_BKT
  s = s.replace(old_value_BKT=exact, ref_logp_BKT=s.old_logp_BKT)
  o = objectives.ppo(lam=1.0, whiten_reward=False)
  metrics = scored.evaluate(o, s).metrics
  np.testing.assert_allclose(metrics["explained_variance"], 1, atol=1e-6)
  np.testing.assert_allclose(metrics["advantage_std"], 0, atol=1e-6)
  none = scored.evaluate(o, s.replace(reward_BK=0 * s.reward_BK)).metrics
  assert np.isfinite(float(none["explained_variance"]))


def test_score_past_the_end_is_discounted_once_more():
  """TRL's placement, with what `ppo` is built from."""
  mask = jnp.array([[[1.0, 1, 0]]])
  score, value = jnp.array([[2.0]]), jnp.zeros((1, 1, 3))
  longer = returns.one_longer(mask)
  last, _ = returns.gae(returns.place(score, mask), value, mask, 1.0, 0.5)
  past, _ = returns.gae(returns.place(score, longer), value, longer, 1.0, 0.5)
  np.testing.assert_allclose(last, [[[2 * 0.5, 2, 0]]])
  np.testing.assert_allclose(past, [[[2 * 0.25, 2 * 0.5, 2]]])


@pytest.mark.parametrize(
  ("hparam", "value"),
  [
    ("clip", 0.0),
    ("value_clip", 0.0),
    ("value_weight", -0.1),
    ("gamma", 1.1),
    ("lam", -0.1),
  ],
)
def test_hparam_out_of_range_is_refused(hparam, value):
  with pytest.raises(ValueError, match=rf"ppo: {hparam}=.*must be a finite number"):
    objectives.ppo(**{hparam: value})
