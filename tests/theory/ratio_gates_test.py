"""What the newer on-policy objectives prove about ratios, gates and normalisation."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.compiled import scored
from tests.theory import groups_test, policy_gradient_test
from xpo_jax import objectives
from xpo_jax.objectives import _reinforce_plus_plus
from xpo_jax.ops import groups, returns
from xpo_jax.testing import toy
from xpo_jax.types import Aux

pytestmark = pytest.mark.usefixtures("float64")


def _record(spread=1.0):
  """Groups with ratios on both sides of 1, and a first column of each sign."""
  s = toy.scored(K=3, B=4, T=6, dtype=np.float64)
  return s.replace(
    old_logp_BKT=s.logp_BKT + 4 * spread * (s.old_logp_BKT - s.logp_BKT),
    present_BK=jnp.ones_like(s.present_BK),
    mask_BKT=jnp.asarray(s.mask_BKT, np.float64).at[:, :, 0].set(1),
    length_BK=jnp.maximum(s.length_BK, 1.0),
  )


def _gradient(o, s, rows=None):
  """Gradient in the token log-probs, with the objective's advantages or others."""
  aux = o.prepare(s, (), None)[0] if rows is None else Aux(rows)

  def loss(logp_BKT):
    out = o.loss(s.replace(logp_BKT=logp_BKT), aux)
    return sum(term.value for term in out.terms.values())

  return np.asarray(jax.jit(jax.grad(loss))(s.logp_BKT))


@pytest.mark.parametrize("clips", [(1.0, 1e3), (0.05, 0.1)])
def test_gspo_token_is_gspo_where_a_completion_has_one_advantage(clips):
  """GSPO paper, Sec. 4.3: the same value, clip and gradient."""
  s = _record()
  token, whole = objectives.gspo_token(*clips), objectives.gspo(*clips)
  ours, expected = scored.evaluate(token, s), scored.evaluate(whole, s)
  assert ours.loss == pytest.approx(float(expected.loss), rel=1e-12)
  gradient = _gradient(token, s)
  np.testing.assert_allclose(gradient, _gradient(whole, s), atol=1e-12)
  assert np.abs(gradient).max() > 1e-3
  # An advantage that differs by token is another loss.
  moved = 1 + np.arange(6.0)[None, None]
  rows = token.prepare(s, (), None)[0].rows * moved
  assert np.abs(_gradient(token, s, rows) - gradient).max() > 1e-3


@pytest.mark.parametrize("tau", [0.5, 1.0, 3.0])
def test_sapo_s_gate_multiplies_the_unclipped_gradient(tau):
  """sech^2(tau (rho - 1) / 2): 1 at ratio 1 for any tau, the same at 1 + x and 1 - x,
  smaller farther away; only the sign of A selects tau."""
  s = _record()
  unclipped = _gradient(objectives.grpo(1.0, 1e6, beta=None), s)
  rho = np.exp(np.asarray(s.logp_BKT - s.old_logp_BKT))
  aux, _ = objectives.sapo().prepare(s, (), None)
  positive = np.asarray(aux.rows)[..., None] > 0
  own_tau = np.where(positive, tau, 2 * tau)
  gate = 1 / np.cosh(own_tau * (rho - 1) / 2) ** 2
  gradient = _gradient(objectives.sapo(tau, 2 * tau), s)
  np.testing.assert_allclose(gradient, gate * unclipped, atol=1e-12)
  on_policy = s.replace(old_logp_BKT=s.logp_BKT)
  np.testing.assert_allclose(
    _gradient(objectives.sapo(tau, 2 * tau), on_policy),
    _gradient(objectives.grpo(beta=None), on_policy),
    atol=1e-12,
  )


def test_gmpo_is_bounded_by_grpo_s_unclipped_objective():
  """GMPO paper, Sec. 3: the geometric mean is at most the arithmetic mean, and equal
  to it only where all ratios of a completion are."""
  gmpo, grpo = objectives.gmpo(1e3, 1e3), objectives.grpo(1.0, 1e9, beta=None)
  rng = np.random.default_rng(0)
  for log_ratio in (*rng.normal(size=(8, 5)), np.full(5, 0.7)):
    own = log_ratio[None, None]
    s = scored.from_token_logps(
      own, np.ones((1, 1, 5)), old_logp_BKT=0 * own, reward_BK=[[0.0]]
    )
    for a in (1.5, -1.5):
      aux = Aux(jnp.full((1, 1), a))
      geometric = float(gmpo.loss(s, aux).terms["gmpo"].value)
      arithmetic = float(grpo.loss(s, aux).terms["grpo"].value)
      assert np.sign(geometric) == np.sign(arithmetic) == -np.sign(a)
      if log_ratio.std() > 0.1:
        assert abs(geometric) < abs(arithmetic) - 1e-3
      else:
        assert geometric == pytest.approx(arithmetic)


def test_gmpo_weights_every_token_by_the_geometric_mean():
  """GMPO paper, Eq. 6; GRPO weights each by its own ratio (Eq. 5)."""
  s = _record()
  aux, _ = objectives.gmpo().prepare(s, (), None)
  mask, length = np.asarray(s.mask_BKT), np.asarray(s.mask_BKT).sum(-1)
  gap = np.asarray(s.logp_BKT - s.old_logp_BKT) * mask
  mean = np.exp(gap.sum(-1) / length)
  each = -np.asarray(aux.rows) / (12 * length)
  gradient = _gradient(objectives.gmpo(1e3, 1e3), s)
  np.testing.assert_allclose(gradient, (each * mean)[..., None] * mask, atol=1e-12)
  own = _gradient(objectives.grpo(1.0, 1e6, beta=None), s)
  np.testing.assert_allclose(own, each[..., None] * np.exp(gap) * mask, atol=1e-12)


def test_gmpo_clips_a_token_and_leaves_the_others():
  """GSPO, whose mean is within its clip, would move all of them."""
  log_ratio = np.array([[[0.9, -0.3, 0.1], [0.0, 0.0, 0.0]]])
  s = scored.from_token_logps(
    log_ratio, np.ones((1, 2, 3)), old_logp_BKT=0 * log_ratio, reward_BK=[[1.0, 0.0]]
  )
  gradient = _gradient(objectives.gmpo(0.4, 0.4), s)
  a = 0.5 / (np.sqrt(0.5) + 1e-4)
  moved = -a * np.exp((0.4 - 0.3 + 0.1) / 3) / 6
  np.testing.assert_allclose(gradient[0, 0], [0, moved, moved], rtol=1e-10)
  # Where the advantage is negative the lower bound binds, and the upper does not.
  worse = s.replace(reward_BK=jnp.asarray([[0.0, 1.0]]))
  both = jnp.asarray([0.9, -0.7, -0.1])
  worse = worse.replace(logp_BKT=worse.logp_BKT.at[0, 0].set(both))
  gradient = _gradient(objectives.gmpo(0.4, 0.4), worse)
  moved = a * np.exp((0.9 - 0.4 - 0.1) / 3) / 6
  np.testing.assert_allclose(gradient[0, 0], [moved, 0, moved], rtol=1e-10)
  metrics = scored.evaluate(objectives.gmpo(0.4, 0.4), worse).metrics
  assert metrics["clip_fraction"] == pytest.approx(1 / 6)


@pytest.mark.parametrize("name", ["gmpo", "gspo_token", "sapo", "grpo", "gspo"])
def test_penalty_adds_its_gradient_to_that_of_rewards(name):
  """k3 = e^-r - 1 + r per token, r the log-ratio to the reference."""
  s = _record()
  s = s.replace(ref_logp_BKT=s.logp_BKT - 0.3)
  plain, tied = (objectives.build(name, {"beta": beta}) for beta in (None, 0.7))
  mask, length = np.asarray(s.mask_BKT), np.asarray(s.mask_BKT).sum(-1, keepdims=True)
  completions = s.mask_BKT.shape[0] * s.mask_BKT.shape[1]
  penalty = 0.7 * (1 - np.exp(-0.3)) * mask / length / completions
  change = _gradient(tied, s) - _gradient(plain, s)
  np.testing.assert_allclose(change, penalty, atol=1e-12)


@pytest.fixture(scope="module")
def world():
  """Logits of a policy, a reference, a reward of each completion."""
  shape = (policy_gradient_test.S, policy_gradient_test.V)
  rng = np.random.default_rng(3)
  ref = np.log(rng.dirichlet([2.0] * shape[1], size=shape[0]))
  return rng.normal(size=shape), ref, 2 + rng.normal(size=policy_gradient_test.N)


@pytest.mark.parametrize("beta", [None, 0.4])
def test_reinforce_plus_plus_is_the_policy_gradient_over_the_deviation(world, beta):
  """One batch of all completions: the batch's mean is a baseline, its deviation a
  factor (REINFORCE++ paper, Sec. 3.1)."""
  logits, ref, reward = world
  n, length = policy_gradient_test.N, policy_gradient_test.T
  o = objectives.reinforce_plus_plus(beta=beta)
  gradient = policy_gradient_test.expected(o, world)
  logp = policy_gradient_test.log_policy(logits)
  kl = (beta or 0) * (logp - policy_gradient_test.along(ref))
  mask = jnp.ones((n, 1, length))
  shaped = returns.place(jnp.asarray(reward)[:, None], mask) - kl[:, None]
  deviation = np.asarray(returns.discounted(shaped, mask, 1.0)).std()
  expected = -policy_gradient_test.exact(world, beta or 0.0) / (deviation * length)
  np.testing.assert_allclose(gradient, expected, atol=1e-7)


@pytest.mark.parametrize(
  ("o", "ddof"),
  [
    (objectives.reinforce_plus_plus_baseline(beta=None), 0),
    (objectives.grpo(beta=None, scale_rewards="batch"), 1),
    (objectives.bnpo(scale_rewards="batch"), 1),
  ],
  ids=["reinforce_plus_plus_baseline", "grpo", "lite_ppo"],
)
def test_the_batch_s_deviation_keeps_the_direction_of_the_gradient(o, ddof):
  """(K - 1) / K of the policy gradient over one number; the group's own deviation,
  which depends on the sample, turns it (REINFORCE++ paper, Sec. 2.2)."""
  gradient = groups_test.expected_gradient(o)
  exact = groups_test.policy_gradient()
  rewards = groups_test.REWARD[groups_test.GROUPS]
  centred = rewards - rewards.mean(1, keepdims=True)
  spread = centred.std() if ddof == 0 else rewards.std(ddof=1) + 1e-4
  k = groups_test.K
  np.testing.assert_allclose(gradient, (k - 1) / k * exact / spread, rtol=1e-6)
  turned = groups_test.expected_gradient(objectives.grpo(beta=None))
  assert groups_test.cosine(turned, exact) < 0.999


def test_advantages_of_the_whole_batch_have_mean_0_and_deviation_1():
  s = _record()
  a_BKT = jnp.asarray(np.random.default_rng(0).normal(3, 5, s.mask_BKT.shape))
  white = np.asarray(_reinforce_plus_plus.normalised(s, a_BKT))
  tokens = white[np.asarray(s.mask_BKT) > 0]
  assert tokens.mean() == pytest.approx(0, abs=1e-12)
  assert tokens.std() == pytest.approx(1, rel=1e-6)
  assert not white[np.asarray(s.mask_BKT) == 0].any()


def test_k2_of_the_baseline_form_has_the_gradient_of_the_reverse_kl():
  """REINFORCE++ paper, Appendix B.1: E over the policy of the gradient of k2."""
  tie = 0.7
  with_tie = objectives.reinforce_plus_plus_baseline(beta=tie)
  without = objectives.reinforce_plus_plus_baseline(beta=None)
  difference = groups_test.expected_gradient(with_tie) - groups_test.expected_gradient(
    without
  )
  kl = groups_test.policy_gradient(tie) - groups_test.policy_gradient()
  np.testing.assert_allclose(difference, kl, rtol=1e-6)


def test_entropy_bonus_moves_the_optimum_to_the_softmax_of_the_reward():
  """One token: E r + w H is largest at p = softmax(r / w)."""
  reward, weight = np.array([0.3, -0.5, 1.1, 0.2]), 0.6
  o = objectives.entropy_bonus(objectives.dr_grpo(1.0, 1e6), weight)

  def gradient(logits):
    old = jax.nn.log_softmax(logits)

    def loss(logits):
      every = jnp.broadcast_to(logits, (4, 1, 1, 4))
      s = scored.from_logits(
        every, jnp.arange(4)[:, None, None], jnp.ones((4, 1, 1)), stats=o.stats
      )
      s = s.replace(
        old_logp_BKT=old[:, None, None],
        weight_B=jnp.exp(old),
        reward_BK=jnp.asarray(reward)[:, None],
      )
      advantage = jnp.asarray(reward - 2.0)[:, None]  # any constant baseline
      out = o.loss(s, Aux(jnp.asarray(advantage)))
      return sum(term.value for term in out.terms.values())

    return jax.jit(jax.grad(loss))(logits)

  best = jnp.asarray(reward / weight)
  np.testing.assert_allclose(gradient(best), 0, atol=1e-12)
  assert np.abs(gradient(best * 1.1)).max() > 1e-3


def test_equal_rewards_of_a_group_give_no_gradient_whatever_the_scale():
  s = _record()
  s = s.replace(reward_BK=s.reward_BK.at[0].set(0.3))
  for name in ("grpo", "gspo_token", "sapo", "gmpo"):
    for scale in groups.Over:
      o = objectives.build(name, {"beta": None, "scale_rewards": scale.value})
      gradient = _gradient(o, s)
      assert not gradient[0].any() and gradient[1:].any()
