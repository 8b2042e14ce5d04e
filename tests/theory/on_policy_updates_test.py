"""Theorems on selection, clipping and penalties of sampled completions."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import special

from tests.compiled import scored
from xpo_jax import objectives
from xpo_jax.ops import groups, kl_control, policy_loss, returns
from xpo_jax.types import Aux

pytestmark = pytest.mark.usefixtures("float64")

V, K, BETA = 4, 3, 0.4
RNG = np.random.default_rng(0)
LOGP, REF = special.log_softmax(RNG.normal(size=(2, V)), axis=1)
REWARD = np.array([0.3, 2.0, -1.0, 0.7])
GROUPS = np.array(list(itertools.product(range(V), repeat=K)))  # all of them
P = np.exp(LOGP)


def expected(objective, *, first=None, ref=REF):
  """Expected loss over all groups of samples, and its gradient in log pi, `[V]`.

  Args:
    objective: its loss is a mean over prompts of one token each.
    first: the distribution of column 0; default: the policy, as the others.
    ref: log-probabilities of the reference.
  """
  weight = P[GROUPS].prod(1)
  if first is not None:
    weight = weight * first[GROUPS[:, 0]] / P[GROUPS[:, 0]]

  def loss(logp):
    one = np.ones((len(GROUPS), K, 1))
    s = scored.from_token_logps(
      logp[GROUPS][..., None],
      one,
      ref[GROUPS][..., None],
      old_logp_BKT=LOGP[GROUPS][..., None],
      reward_BK=REWARD[GROUPS],
      weight_B=weight,
    )
    out = scored.evaluate(objective, s)
    return out.loss, out.terms

  run = jax.jit(jax.value_and_grad(loss, has_aux=True))
  (value, terms), slope = jax.device_get(run(jnp.asarray(LOGP)))
  return value, terms, slope


def best_of_k(sign):
  """P(v is the best of K samples by sign * reward), in closed form."""
  order = np.argsort(sign * REWARD)
  cumulative = np.cumsum(P[order]) ** K
  best = np.empty(V)
  best[order] = np.diff(cumulative, prepend=0.0)
  return best


def test_raft_is_the_likelihood_of_the_best_of_k_distribution():
  """Its gradient in log pi is minus F(v)^K - F(v-)^K."""
  best = best_of_k(1)
  assert best.sum() == pytest.approx(1)
  loss, _, slope = expected(objectives.raft())
  np.testing.assert_allclose(slope, -best, atol=1e-12)
  assert loss == pytest.approx(-best @ LOGP)


def test_online_dpo_at_the_reference_moves_mass_from_worst_to_best_of_k():
  """At policy = ref the slope is -beta/2 (P_best - P_worst) of groups that differ."""
  differ = (REWARD[GROUPS] != REWARD[GROUPS[:, :1]]).any(1)
  weight = P[GROUPS].prod(1)
  same = weight[~differ].sum()
  assert same == pytest.approx((P**K).sum())
  loss, _, slope = expected(objectives.online_dpo(BETA), ref=LOGP)
  assert loss == pytest.approx(np.log(2))
  gain = best_of_k(1) - best_of_k(-1)
  np.testing.assert_allclose(slope, -BETA / 2 * gain / (1 - same), atol=1e-12)


def test_online_dpo_is_dpo_on_the_best_and_the_worst():
  loss, _, slope = expected(objectives.online_dpo(BETA))
  best = GROUPS[np.arange(len(GROUPS)), REWARD[GROUPS].argmax(1)]
  worst = GROUPS[np.arange(len(GROUPS)), REWARD[GROUPS].argmin(1)]
  weight = P[GROUPS].prod(1) * (best != worst)
  weight /= weight.sum()
  ratio = LOGP - REF
  margin = BETA * (ratio[best] - ratio[worst])
  assert loss == pytest.approx(weight @ np.log1p(np.exp(-margin)))
  force = BETA * weight * special.expit(-margin)
  expected_slope = np.bincount(worst, force, V) - np.bincount(best, force, V)
  np.testing.assert_allclose(slope, expected_slope, atol=1e-12)


def test_exploration_lowers_reference_samples_which_raises_the_forward_kl():
  """XPO adds alpha E_ref log pi = -alpha KL(ref || pi) + constant to online DPO."""
  alpha, ref = 0.3, np.exp(REF)
  loss, terms, slope = expected(objectives.exploratory_dpo(BETA, alpha), first=ref)
  plain, _, dpo_slope = expected(objectives.online_dpo(BETA), first=ref)
  np.testing.assert_allclose(slope - dpo_slope, alpha * ref, atol=1e-12)
  assert terms["exploration"] == pytest.approx(alpha * ref @ LOGP)
  kl, entropy = special.rel_entr(ref, P).sum(), special.entr(ref).sum()
  assert loss - plain == pytest.approx(-alpha * (kl + entropy))


B, T = 2, 4
MASK = (np.arange(T) < np.array([[4, 2], [3, 1]])[..., None]) * 1.0
OLD = -RNG.uniform(0.5, 2, (B, 2, T))
RATIO = np.exp(RNG.uniform(-0.9, 0.9, (B, 2, T)))  # policy / old
ADVANTAGE = np.array([[1.5, -0.5], [-2.0, 0.8]])
RATED = np.array([[1.0, 0.0], [-1.0, 2.0]])


def update(objective, advantage=ADVANTAGE, ref=None):
  """Loss, and d loss / d log pi, of given advantages and ratios; the policy is `RATIO`
  times the old one."""

  def loss(logp):
    s = scored.from_token_logps(logp, MASK, ref, old_logp_BKT=OLD, reward_BK=RATED)
    out = objective.loss(s, Aux(rows=jnp.asarray(advantage)))
    return sum(term.value for term in out.terms.values())

  logp = jnp.asarray(OLD + np.log(RATIO))
  return jax.device_get(jax.jit(jax.value_and_grad(loss))(logp))


# Weight of a token in the loss.
LENGTH = MASK.sum(-1, keepdims=True)
TOKEN_WEIGHT = {
  "grpo": 1 / (LENGTH * 2 * B),
  "dr_grpo": np.full((B, 2, 1), 1 / (2 * B)),
  "dapo": 1 / (LENGTH.sum(1, keepdims=True) * B),
  "bnpo": np.full((B, 2, 1), 1 / LENGTH.sum()),
}


@pytest.mark.parametrize("name", TOKEN_WEIGHT)
def test_clipped_update_stops_beyond_the_trust_region_and_is_pessimistic(name):
  """Slope -A ratio, 0 where A > 0 and ratio > 1 + high or A < 0 and ratio < 1 - low."""
  hparams = {"clip_low": 0.1, "clip_high": 0.3, "beta": None}
  loss, slope = update(objectives.build(name, hparams))
  A = ADVANTAGE[..., None]
  stopped = np.where(A > 0, RATIO > 1.3, RATIO < 0.9) & (MASK > 0)
  assert stopped.any()
  assert (~stopped & (RATIO > 1.3)).any()  # a step back is not clipped
  weight = TOKEN_WEIGHT[name] * MASK
  expected = np.where(stopped, 0, -A * RATIO) * weight
  np.testing.assert_allclose(slope, expected, atol=1e-12)
  bound = np.where(A > 0, np.minimum(RATIO, 1.3), np.maximum(RATIO, 0.9))
  assert loss == pytest.approx((-A * bound * weight).sum())
  assert loss > (-A * RATIO * weight).sum()  # a lower bound of the objective


@pytest.mark.parametrize("name", [*TOKEN_WEIGHT, "cispo", "gspo"])
def test_kl_penalty_has_the_slope_of_k3(name):
  """beta (1 - ref / pi) per token, without any advantage."""
  ref = OLD + 0.4
  o = objectives.build(name, {"beta": BETA})
  loss, slope = update(o, 0 * ADVANTAGE, ref)
  gap = OLD + np.log(RATIO) - ref
  weight = TOKEN_WEIGHT.get({"cispo": "dapo", "gspo": "grpo"}.get(name, name)) * MASK
  np.testing.assert_allclose(slope, BETA * (1 - np.exp(-gap)) * weight, atol=1e-12)
  assert loss == pytest.approx((BETA * (np.exp(-gap) - 1 + gap) * weight).sum())


def test_cispo_keeps_the_gradient_of_clipped_tokens_at_a_bounded_weight():
  loss, slope = update(objectives.cispo(max_ratio=1.2))
  weight = np.minimum(RATIO, 1.2) * TOKEN_WEIGHT["dapo"] * MASK
  assert (RATIO[MASK > 0] > 1.2).any()
  expected = -ADVANTAGE[..., None] * weight
  np.testing.assert_allclose(slope, expected, atol=1e-12)
  assert loss == pytest.approx((expected * (OLD + np.log(RATIO))).sum())


def test_gspo_clips_whole_sequences_by_the_geometric_mean_of_their_ratios():
  mean = np.exp((np.log(RATIO) * MASK).sum(-1) / MASK.sum(-1))
  low, high = 0.05, 0.02
  loss, slope = update(objectives.gspo(low, high))
  A = ADVANTAGE
  stopped = np.where(A > 0, mean > 1 + high, mean < 1 - low)
  assert stopped.any()
  assert not stopped.all()
  bound = np.where(A > 0, np.minimum(mean, 1 + high), np.maximum(mean, 1 - low))
  assert loss == pytest.approx((-A * bound).mean())
  each = np.where(stopped, 0, -A * mean)[..., None] * MASK / LENGTH / (2 * B)
  np.testing.assert_allclose(slope, each, atol=1e-12)


def test_dual_clip_bounds_the_loss_of_a_negative_advantage():
  """-A ratio <= -A c: far ratios of bad completions have no gradient."""
  advantage = -np.abs(ADVANTAGE)
  free, _ = update(objectives.grpo(0.2, 0.2, None), advantage)
  loss, slope = update(objectives.grpo(0.2, 0.2, None, dual_clip=1.5), advantage)
  assert loss < free
  A = advantage[..., None]
  bound = np.clip(np.maximum(RATIO, 0.8), None, 1.5)
  assert loss == pytest.approx((-A * bound * TOKEN_WEIGHT["grpo"] * MASK).sum())
  moving = (RATIO > 0.8) & (RATIO < 1.5)
  expected = np.where(moving, -A * RATIO, 0) * TOKEN_WEIGHT["grpo"] * MASK
  np.testing.assert_allclose(slope, expected, atol=1e-12)
  positive = np.abs(ADVANTAGE)
  same, _ = update(objectives.grpo(0.2, 0.2, None, dual_clip=1.5), positive)
  assert same == pytest.approx(update(objectives.grpo(0.2, 0.2, None), positive)[0])


def test_ppo_is_pessimistic_in_policy_and_value():
  """The value's clip keeps the larger of two squares, halved and weighted."""
  value = RNG.normal(size=(B, 2, T))
  # Beyond the clip and within it, above the old value and below, towards the target
  # and away from it.
  old_value = value + np.array([0.5, -0.4, 0.1, -0.05])
  target = value + np.array([1.0, -1.0])[:, None]
  A = np.broadcast_to(ADVANTAGE[..., None], MASK.shape)
  o = objectives.ppo(BETA, clip=0.2, value_clip=0.3, value_weight=0.7)
  statistics = dict.fromkeys(("advantage_mean", "advantage_std"), jnp.zeros(()))

  def loss(logp, value):
    s = scored.from_token_logps(
      logp,
      MASK,
      OLD,
      old_logp_BKT=OLD,
      value_BKT=value,
      old_value_BKT=old_value,
      reward_BK=RATED,
    )
    out = o.loss(s, Aux((jnp.asarray(A), jnp.asarray(target)), statistics))
    return out.terms["policy"].value + out.terms["value"].value

  run = jax.jit(jax.value_and_grad(loss, (0, 1)))
  logp = jnp.asarray(OLD + np.log(RATIO))
  total, (slope, value_slope) = jax.device_get(run(logp, jnp.asarray(value)))
  share = MASK / MASK.sum()
  bound = np.where(A > 0, np.minimum(RATIO, 1.2), np.maximum(RATIO, 0.8))
  moved = old_value + np.clip(value - old_value, -0.3, 0.3)
  squares = np.maximum((value - target) ** 2, (moved - target) ** 2)
  expected = ((-A * bound + 0.7 * squares / 2) * share).sum()
  assert total == pytest.approx(expected)
  stopped = np.where(A > 0, RATIO > 1.2, RATIO < 0.8)
  np.testing.assert_allclose(
    slope, np.where(stopped, 0, -A * RATIO) * share, atol=1e-12
  )
  outside = abs(value - old_value) > 0.3
  kept = ~outside | ((value - target) ** 2 > (moved - target) ** 2)
  for above in (value > old_value, value < old_value):
    assert (outside & ~kept & above & (MASK > 0)).any()
  np.testing.assert_allclose(
    value_slope, np.where(kept, 0.7 * (value - target), 0) * share, atol=1e-12
  )


def test_ratios_are_bounded_so_that_they_stay_finite():
  far = policy_loss.ratio(jnp.array([900.0, -900.0]), jnp.zeros(2), 3.0)
  np.testing.assert_allclose(far, np.exp([3.0, -3.0]))


def test_overlong_penalty_falls_linearly_over_the_buffer():
  """0 up to longest - buffer, then down to -1 at the longest and beyond."""
  length = np.array([[10.0, 60.0, 70.0, 80.0, 100.0, 400.0]])
  penalty = objectives.overlong_penalty(length, longest=100.0, buffer=40.0)
  np.testing.assert_allclose(penalty, [[0, 0, -0.25, -0.5, -1, -1]])


def test_standardised_advantages_do_not_depend_on_shift_and_scale():
  """Mean 0 and deviation 1 of the group or batch; the mean of two is +-1/sqrt(2)."""
  x, every = RNG.normal(size=(3, 4)), np.ones((3, 4))
  scaled = 7.0 * x + 100.0
  for over, axis in ((groups.Over.GROUP, 1), (groups.Over.BATCH, None)):
    white = np.asarray(groups.standardise(x, every, over=over, eps=0.0))
    np.testing.assert_allclose(white.mean(1), 0, atol=1e-12)
    spread = (white**2).sum(axis) / (3 if axis else 8)
    centred = x - x.mean(1, keepdims=True)
    expected = centred / (x.std(1, ddof=1, keepdims=True) if axis else x.std(ddof=1))
    np.testing.assert_allclose(white, expected, rtol=1e-9)
    assert np.all(spread > 0)
    again = groups.standardise(scaled, every, over=over, eps=0.0)
    np.testing.assert_allclose(again, white, rtol=1e-9)
  centred = groups.standardise(x, every, over=groups.Over.NOTHING)
  np.testing.assert_allclose(centred, x - x.mean(1, keepdims=True), atol=1e-12)
  two = groups.standardise(np.array([[3.0, 1.0]]), np.ones((1, 2)), eps=0.0)
  np.testing.assert_allclose(two, [[np.sqrt(0.5), -np.sqrt(0.5)]])


def test_group_statistics_leave_out_what_is_absent():
  """As of the present completions alone; a group of one has no advantage."""
  x = np.array([[1.0, 4.0, 99.0], [2.0, 77.0, 77.0]])
  present = np.array([[1.0, 1.0, 0.0], [1.0, 0.0, 0.0]])
  np.testing.assert_allclose(groups.mean(x, present), [2.5, 2.0])
  np.testing.assert_allclose(groups.total(x, present), [5.0, 2.0])
  np.testing.assert_allclose(groups.centre(x, present), [[-1.5, 1.5, 0], [0, 0, 0]])
  others = groups.leave_one_out(x, present)
  np.testing.assert_allclose(others, [[4.0, 1.0, 0.0], [0, 0, 0]])
  advantage = groups.leave_one_out_advantage(x, present)
  np.testing.assert_allclose(advantage, [[-3.0, 3.0, 0.0], [0, 0, 0]])
  np.testing.assert_allclose(groups.std(x, present), [np.sqrt(4.5), 0.0])
  np.testing.assert_array_equal(groups.differ(x, present), [1.0, 0.0])
  np.testing.assert_allclose(groups.count(present), [2.0, 1.0])
  total, any_scored = groups.weighted_sum(
    np.stack([x, 2 * x], -1)[:1],
    np.array([1.0, 0.5]),
    np.array([[[1.0, 1.0], [1.0, 0.0], [0.0, 0.0]]]),
  )
  np.testing.assert_allclose(total, [[2.0, 4.0, 0.0]])
  np.testing.assert_array_equal(any_scored, [[1.0, 1.0, 0.0]])


def test_adaptive_kl_rests_at_its_target_and_moves_towards_it():
  """beta (1 + clip(KL / target - 1) n / horizon), Ziegler et al."""
  controller = kl_control.adaptive_kl(0.2, 6.0, 1000.0, 0.2)

  def update(kl):
    return controller.update(0.2, kl_control.Observation(kl, 50.0))

  assert update(6.0) == pytest.approx(0.2)
  assert update(6.6) == pytest.approx(0.2 * (1 + 0.1 * 50 / 1000))
  assert update(60.0) == pytest.approx(0.2 * (1 + 0.2 * 50 / 1000))
  assert update(0.0) == pytest.approx(0.2 * (1 - 0.2 * 50 / 1000))
  assert kl_control.fixed_kl(0.2).update(0.2, None) == 0.2


def test_normalised_rewards_have_the_wanted_mean_and_deviation():
  reward, population = RNG.normal(3, 2, (4, 5)), np.ones((4, 5))
  population[0, 0] = 0
  real = population > 0
  standard = kl_control.standardising(reward, population, mean=1.5, std=0.5, eps=0.0)
  x = np.asarray(standard.of(reward))[real]
  assert (x.mean(), x.std()) == pytest.approx((1.5, 0.5))
  centred = kl_control.centring(reward, population, mean=-1.0).of(reward)
  x = np.asarray(centred)[real]
  assert (x.mean(), x.std()) == pytest.approx((-1.0, reward[real].std()))
  white = np.asarray(returns.whiten(reward, population, eps=0.0))[real]
  assert (white.mean(), white.std()) == pytest.approx((0.0, 1.0), abs=1e-12)
  kept = np.asarray(returns.whiten(reward, population, shift_mean=False))[real]
  assert kept.mean() == pytest.approx(reward[real].mean())
  unbiased = np.asarray(returns.whiten(reward, population, unbiased=True, eps=0.0))
  assert unbiased[real].std(ddof=1) == pytest.approx(1.0)


def test_discounted_return_is_the_geometric_sum():
  reward, mask = RNG.normal(size=(1, 1, 4)), np.array([[[1.0, 1, 1, 0]]])
  actual = returns.discounted(reward, mask, 0.5)[0, 0]
  r = reward[0, 0]
  expected = [r[0] + r[1] / 2 + r[2] / 4, r[1] + r[2] / 2, r[2], 0]
  np.testing.assert_allclose(actual, expected, rtol=1e-12)


def test_explained_variance_is_1_for_a_perfect_value_and_0_for_a_constant_one():
  target, every = RNG.normal(size=20), np.ones(20)
  for value, expected in ((target, 1.0), (np.zeros(20), 0.0), (target / 2, 0.75)):
    actual = returns.explained(target - value, target, every)
    assert actual == pytest.approx(expected)
