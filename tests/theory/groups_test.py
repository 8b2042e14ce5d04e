"""Expected gradients of the group-relative objectives, by enumerating all groups.

Every group of K samples is one row of a batch, weighted by its probability: the loss
is then an expectation, and its gradient the estimator's mean.
"""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.compiled import scored
from xpo_jax import objectives
from xpo_jax.ops import groups
from xpo_jax.testing import toy
from xpo_jax.types import Array, Aux, Objective

V, K = 3, 3
LOGITS = np.array([0.3, -0.5, 0.9])
REF_LOGITS = np.array([-0.2, 0.4, 0.1])
REWARD = np.array([2.0, 1.0, 3.5])
GROUPS = np.array(list(itertools.product(range(V), repeat=K)))  # all of them
BETA = 1.0


def expected_gradient(o: Objective, length: tuple[int, ...] = (1, 1, 1)) -> Array:
  """Expected gradient of an objective over all groups of samples, in the logits.

  Completion v has `length[v]` tokens: the first is random, the others are certain.
  """
  first_BKT = np.arange(max(length)) == 0
  mask = np.arange(max(length)) < np.array(length)[GROUPS][..., None]

  def tokens(logits: Array) -> Array:
    return jnp.where(first_BKT, jax.nn.log_softmax(logits)[GROUPS][..., None], 0)

  def loss(logits: Array) -> Array:
    sampler = jax.lax.stop_gradient(logits)
    s = scored.from_token_logps(
      tokens(logits),
      mask,
      tokens(REF_LOGITS),
      old_logp_BKT=tokens(sampler),
      reward_BK=REWARD[GROUPS],
      weight_B=jax.nn.softmax(sampler)[GROUPS].prod(-1),
    )
    return scored.evaluate(o, s).loss

  with jax.enable_x64(True):
    return np.asarray(jax.jit(jax.grad(loss))(jnp.asarray(LOGITS)))


def policy_gradient(beta: float = 0.0) -> Array:
  """Exact gradient of -(E reward - beta KL(policy || ref))."""

  def negative(logits: Array) -> Array:
    logp, ref = jax.nn.log_softmax(logits), jax.nn.log_softmax(REF_LOGITS)
    return -(jnp.exp(logp) * (REWARD - beta * (logp - ref))).sum()

  with jax.enable_x64(True):
    return np.asarray(jax.jit(jax.grad(negative))(jnp.asarray(LOGITS)))


def cosine(a: Array, b: Array) -> float:
  return float(a @ b / np.linalg.norm(a) / np.linalg.norm(b))


def test_leave_one_out_is_the_mean_baseline_times_k_over_k_minus_1():
  x = np.random.default_rng(0).normal(size=(5, 4)).astype(np.float32)
  every = np.ones_like(x)
  minus_others = x - groups.leave_one_out(x, every)
  np.testing.assert_allclose(minus_others, 4 / 3 * groups.centre(x, every), rtol=1e-5)
  advantage = groups.leave_one_out_advantage(x, every)
  np.testing.assert_allclose(advantage, minus_others, rtol=1e-5)


def test_rloo_is_unbiased():
  gradient = expected_gradient(objectives.rloo(beta=None))
  np.testing.assert_allclose(gradient, policy_gradient(), rtol=1e-6)


def test_rloo_with_the_penalty_in_the_reward_is_unbiased():
  gradient = expected_gradient(objectives.rloo(beta=BETA))
  np.testing.assert_allclose(gradient, policy_gradient(BETA), rtol=1e-6)
  assert cosine(gradient, policy_gradient()) < 0.99  # the penalty has an effect


def test_mean_of_all_as_baseline_is_k_minus_1_over_k_of_the_gradient():
  gradient = expected_gradient(objectives.dr_grpo())
  np.testing.assert_allclose(gradient, (K - 1) / K * policy_gradient(), rtol=1e-6)


def test_standard_deviation_changes_the_direction_of_the_gradient():
  """The cosine to the policy gradient is below 1."""
  assert (
    cosine(expected_gradient(objectives.grpo(beta=None)), policy_gradient()) < 0.999
  )


def test_dr_grpo_does_not_depend_on_lengths_and_grpo_does():
  length = (1, 4, 2)
  gradient = expected_gradient(objectives.dr_grpo(), length)
  np.testing.assert_allclose(gradient, (K - 1) / K * policy_gradient(), rtol=1e-6)
  quarter = expected_gradient(objectives.dr_grpo(length=4.0), length)
  np.testing.assert_allclose(4 * quarter, gradient, rtol=1e-6)
  grpo = objectives.grpo(beta=None)
  assert cosine(expected_gradient(grpo, length), expected_gradient(grpo)) < 0.99


def _first_step():
  """Rollouts of the policy itself: every ratio is 1."""
  s = toy.scored(K=4, B=3)
  return s.replace(old_logp_BKT=s.logp_BKT)


def _per_completion(s):
  return 1 / (s.length_BK * s.present_BK.sum(-1, keepdims=True))


def _per_group(s):
  return 1 / s.present_BK.sum(-1, keepdims=True)


def _per_token_of_prompt(s):
  return 1 / s.length_BK.sum(-1, keepdims=True)


def _per_token_of_batch(s):
  return len(s.weight_B) / s.length_BK.sum()


@pytest.mark.nonfinite  # an absent column has no length
@pytest.mark.parametrize(
  ("name", "hparams", "advantage", "weight"),
  [
    ("rloo", {"beta": None}, groups.leave_one_out_advantage, _per_group),
    ("dr_grpo", {}, groups.centre, _per_group),
    ("grpo", {"beta": None}, groups.standardise, _per_completion),
    ("gspo", {}, groups.standardise, _per_completion),
    ("dapo", {}, groups.standardise, _per_token_of_prompt),
    ("cispo", {}, groups.standardise, _per_token_of_prompt),
    ("bnpo", {}, groups.standardise, _per_token_of_batch),
  ],
)
def test_on_policy_gradient_is_a_policy_gradient(name, hparams, advantage, weight):
  """At ratio 1 the methods differ only in advantages and token weights."""
  s = _first_step()
  o = objectives.build(name, hparams)
  gradient = jax.grad(lambda x: scored.evaluate(o, s.replace(logp_BKT=x)).loss)(
    s.logp_BKT
  )
  each_BK = advantage(s.reward_BK, s.present_BK) * weight(s) / len(s.weight_B)
  expected = np.where(s.mask_BKT > 0, -each_BK[..., None], 0)
  np.testing.assert_allclose(gradient, expected, rtol=1e-5, atol=1e-8)


@pytest.mark.parametrize(
  "name", ["rloo", "grpo", "dr_grpo", "dapo", "bnpo", "cispo", "gspo"]
)
def test_equal_rewards_give_no_gradient(name):
  s = toy.scored(K=4, B=3)
  s = s.replace(reward_BK=jnp.full_like(s.reward_BK, 0.1))
  o = objectives.build(name, {"beta": None})
  gradient = jax.grad(lambda x: scored.evaluate(o, s.replace(logp_BKT=x)).loss)(
    s.logp_BKT
  )
  assert not gradient.any()


def test_gspo_weights_by_the_sequence_ratio():
  """Unclipped: -A (pi(y) / pi_old(y))^(1/|y|), and its gradient."""
  s = toy.scored(K=2, B=1)
  advantage = jnp.array([[1.5, -0.5]])
  o = objectives.gspo(clip_low=1.0, clip_high=1e6)

  def loss(logp_BKT: Array) -> Array:
    return o.loss(s.replace(logp_BKT=logp_BKT), Aux(rows=advantage)).terms["gspo"].value

  value, gradient = jax.jit(jax.value_and_grad(loss))(s.logp_BKT)
  mask, length = np.asarray(s.mask_BKT), np.asarray(s.length_BK)
  gap = (np.asarray(s.logp_BKT) - np.asarray(s.old_logp_BKT)) * mask
  ratio = np.exp(gap.sum(-1)) ** (1 / length)
  assert value == pytest.approx(float((-advantage * ratio).mean()), rel=1e-5)
  slope = -advantage * ratio / length / 2
  np.testing.assert_allclose(gradient, np.asarray(slope)[..., None] * mask, rtol=1e-5)
