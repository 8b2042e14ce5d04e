"""Theorems on listwise losses and on the functions of rankings they are made of."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import special

from tests.compiled import scored
from xpo_jax import objectives
from xpo_jax.ops import ranking

pytestmark = pytest.mark.usefixtures("float64")

BETA = 0.5
RATIO = np.array([[0.4, -1.3, 1.1, 0.2], [2.0, 0.5, -0.7, 1.4]])
REWARD = np.array([[1.0, 0.0, 3.0, 2.0], [0.5, 2.0, -1.0, 1.0]])
LENGTH = np.array([[2.0, 5.0, 4.0, 1.0], [3.0, 3.0, 6.0, 2.0]])
EVERY = np.ones_like(REWARD)


def lists(objective, ratio=RATIO, reward=REWARD, length=LENGTH, key=None):
  """Loss and slope in log pi of lists of completions, reference 0."""

  def loss(logp):
    s = scored.from_sequence_logps(logp, length, 0 * ratio, reward_BK=reward)
    return scored.evaluate(objective, s, key=key).loss

  return jax.device_get(jax.jit(jax.value_and_grad(loss))(jnp.asarray(ratio)))


def exact_ndcg(score, grade):
  order = np.argsort(-score, axis=1)
  discount = 1 / np.log2(2 + np.arange(score.shape[1]))
  gain = 2 ** (grade - grade.min(1, keepdims=True)) - 1
  dcg = (np.take_along_axis(gain, order, 1) * discount).sum(1)
  return dcg / (-np.sort(-gain, 1) * discount).sum(1)


def test_approx_ndcg_is_the_ndcg_of_sharp_ranks():
  loss, _ = lists(objectives.approx_ndcg(beta=1e3))
  assert loss == pytest.approx(-exact_ndcg(RATIO, REWARD).mean())
  assert lists(objectives.approx_ndcg(1e3), ratio=REWARD)[0] == pytest.approx(-1)


def test_approx_ndcg_of_smooth_ranks():
  """1 + sum_j sigma(s_j - s_i), (K + 1) / 2 for all as beta falls."""
  gain = 2 ** (REWARD - REWARD.min(1, keepdims=True)) - 1
  ideal = (-np.sort(-gain, 1) / np.log2(2 + np.arange(4))).sum(1)
  for beta in (1e-9, BETA):
    s = beta * RATIO
    rank = 0.5 + special.expit(s[:, None, :] - s[:, :, None]).sum(-1)
    expected = -((gain / np.log2(1 + rank)).sum(1) / ideal).mean()
    loss, slope = lists(objectives.approx_ndcg(beta))
    assert loss == pytest.approx(expected)
    np.testing.assert_allclose(slope.sum(1), 0, atol=1e-12)
  np.testing.assert_allclose(
    ranking.approximate_rank(RATIO, EVERY, temperature=1e-3),
    1 + (RATIO[:, None, :] > RATIO[:, :, None]).sum(-1),
  )


def test_rrhf_is_the_likelihood_of_the_best_once_the_list_is_in_order():
  ordered = LENGTH * (REWARD - 5.0)
  best = REWARD.argmax(1)
  average = np.take_along_axis(ordered / LENGTH, best[:, None], 1)
  loss, slope = lists(objectives.rrhf(weight=3.0), ordered)
  assert loss == pytest.approx(-average.mean())
  share = np.eye(4)[best] / LENGTH / 2
  np.testing.assert_allclose(slope, -share, atol=1e-12)


@pytest.mark.parametrize("power", [1.0, 0.0])
def test_rrhf_hinges_have_unit_slope_on_misordered_pairs_and_read_only_the_order(power):
  """Only the order of rewards counts; there is no margin."""
  p = RATIO / LENGTH**power
  behind = (REWARD[:, :, None] > REWARD[:, None, :]) * (
    p[:, None, :] - p[:, :, None]
  ).clip(0)
  nll = -(RATIO / LENGTH)[[0, 1], REWARD.argmax(1)]
  for reward in (REWARD, np.exp(3 * REWARD)):
    loss, slope = lists(objectives.rrhf(0.7, power), reward=reward)
    assert loss == pytest.approx((0.7 * behind.sum((1, 2)) + nll).mean())
    active = behind > 0
    force = 0.7 * (active.sum(1) - active.sum(2)) / LENGTH**power
    force -= np.eye(4)[REWARD.argmax(1)] / LENGTH
    np.testing.assert_allclose(slope, force / 2, atol=1e-12)


def test_pro_of_a_pair_is_bradley_terry_at_the_gap_of_the_rewards():
  """-log sigma(gap (p_w - p_l)) - sft log pi(y_w): gaps are inverse temperatures."""
  two, length = RATIO[:, :2], LENGTH[:, :2]
  reward = REWARD[:, :2]
  best = reward.argmax(1)
  gap = abs(reward[:, 0] - reward[:, 1])
  p = two / length
  lead = np.where(best == 0, p[:, 0] - p[:, 1], p[:, 1] - p[:, 0])
  nll = -two[[0, 1], best]
  loss, _ = lists(objectives.pro(0.3), two, reward, length)
  assert loss == pytest.approx((np.logaddexp(0, -gap * lead) + 0.3 * nll).mean())


def test_pro_contrasts_each_completion_with_all_worse_ones():
  """Doubling rewards is halving the temperature of all scores."""
  p = RATIO / LENGTH
  expected = np.zeros(2)
  for b, i in itertools.product(range(2), range(4)):
    gaps = {j: REWARD[b, i] - REWARD[b, j] for j in range(4)}
    worse = [j for j in range(4) if gaps[j] > 0]
    if worse:
      own = max(gaps.values()) * p[b, i]
      expected[b] += np.log1p(sum(np.exp(gaps[j] * p[b, j] - own) for j in worse))
  nll = -RATIO[[0, 1], REWARD.argmax(1)]
  loss, _ = lists(objectives.pro(0.05))
  assert loss == pytest.approx((expected + 0.05 * 9 * nll).mean())
  sharp, _ = lists(objectives.pro(0.0), reward=2 * REWARD)
  same, _ = lists(objectives.pro(0.0), ratio=2 * RATIO)
  assert sharp == pytest.approx(same)
  assert sharp != pytest.approx(expected.mean())


def test_exo_list_of_all_completions_is_the_reverse_kl_to_the_tilted_reference():
  """At beta = 1 and a uniform ref: KL(pi || ref exp(r / t) / Z) and its gradient."""
  temperature = 0.6
  target = special.log_softmax(REWARD / temperature, axis=1)

  def reverse(logits):
    logp = jax.nn.log_softmax(logits)
    return (jnp.exp(logp) * (logp - target)).sum(1).mean()

  loss, slope = lists(objectives.exo_list(1.0, temperature), RATIO)
  value, expected = jax.jit(jax.value_and_grad(reverse))(jnp.asarray(RATIO))
  assert loss == pytest.approx(float(value))
  np.testing.assert_allclose(slope, expected, atol=1e-12)
  best, slope = lists(objectives.exo_list(1.0, temperature), target)
  assert best == pytest.approx(0, abs=1e-14)
  np.testing.assert_allclose(slope, 0, atol=1e-12)
  # beta sharpens the policy.
  loss, _ = lists(objectives.exo_list(BETA, temperature))
  q = special.log_softmax(BETA * RATIO, axis=1)
  assert loss == pytest.approx((np.exp(q) * (q - target)).sum(1).mean())


def test_forward_and_reverse_kl_of_the_list_have_the_same_optimum():
  """InfoNCA and ListNet fit the target by the forward KL plus its entropy."""
  target = special.softmax(REWARD / 0.6, axis=1)
  entropy = special.entr(target).sum(1).mean()
  for o in (objectives.infonca(BETA, 0.6), objectives.list_net(BETA, 0.6)):
    loss, slope = lists(o, REWARD / 0.6 / BETA)
    assert loss == pytest.approx(entropy)
    np.testing.assert_allclose(slope, 0, atol=1e-12)
    loss, slope = lists(o)
    q = special.softmax(BETA * RATIO, axis=1)
    assert loss == pytest.approx(entropy + special.rel_entr(target, q).sum(1).mean())
    np.testing.assert_allclose(slope, BETA * (q - target) / 2, atol=1e-12)


def test_infonca_lead_is_added_to_the_reward_of_the_best():
  best = np.eye(4)[REWARD.argmax(1)]
  actual = lists(objectives.infonca(BETA, 0.6, lead=1.5))
  expected = lists(objectives.infonca(BETA, 0.6), reward=REWARD + 1.5 * best)
  assert actual[0] == pytest.approx(expected[0])
  np.testing.assert_allclose(actual[1], expected[1], rtol=1e-12)


def test_nca_of_a_list_fits_absolute_rewards():
  """sigma(beta u) = p / (p + 1/K): each completion for itself."""
  target = special.softmax(REWARD / 0.6, axis=1)
  best = np.log(4 * target) / BETA
  loss, slope = lists(objectives.nca_list(BETA, 0.6), best)
  np.testing.assert_allclose(slope, 0, atol=1e-12)
  s = target / (target + 0.25)
  value = -(target * np.log(s) + np.log(1 - s) / 4).sum(1)
  assert loss == pytest.approx(value.mean())
  _, slope = lists(objectives.nca_list(BETA, 0.6), best + 1)
  assert (slope > 0).all()


def test_plackett_luce_likelihood_of_a_list():
  """The product of softmaxes over those that remain; ListMLE without ties."""
  score = BETA * RATIO
  order = np.argsort(-REWARD, axis=1)
  s = np.take_along_axis(score, order, 1)
  log = [s[:, k] - special.logsumexp(s[:, k:], axis=1) for k in range(4)]
  expected = -np.sum(log, 0).mean()
  for name in ("plackett_luce", "list_mle"):
    o = objectives.build(name, {"beta": BETA})
    loss, slope = lists(o, key=jax.random.key(0))
    assert loss == pytest.approx(expected)
    np.testing.assert_allclose(slope.sum(1), 0, atol=1e-12)


def test_list_mle_breaks_ties_evenly():
  """The mean over draws of the order is the mean over both orders of the tie."""
  ratio, reward = RATIO[:1, :3], np.array([[1.0, 1.0, 0.0]])
  o = objectives.list_mle(BETA)
  s = scored.from_sequence_logps(ratio, EVERY[:1, :3], 0 * ratio, reward_BK=reward)
  keys = jax.random.split(jax.random.key(0), 2000)
  each = jax.jit(jax.vmap(lambda key: scored.evaluate(o, s, key=key).loss))(keys)

  def nll(order):
    s = BETA * ratio[0, list(order)]
    return -sum(s[k] - special.logsumexp(s[k:]) for k in range(3))

  two = np.array([nll((0, 1, 2)), nll((1, 0, 2))])
  first = np.isclose(each, two[0])
  assert (first | np.isclose(each, two[1])).all()
  assert abs(first.mean() - 0.5) < 4 * np.sqrt(0.25 / len(keys))


def test_lipo_weighs_each_pair_by_the_dcg_of_its_swap():
  """|2^r_i - 2^r_j| |1/ln(1 + rank_i) - 1/ln(1 + rank_j)|, ranks of the policy."""
  place = 1 + (RATIO[:, None, :] > RATIO[:, :, None]).sum(-1)
  total, force = np.zeros(2), np.zeros((2, 4))
  for b, i, j in itertools.product(range(2), range(4), range(4)):
    if REWARD[b, i] > REWARD[b, j]:
      gain = 2 ** REWARD[b, i] - 2 ** REWARD[b, j]
      step = abs(1 / np.log(1 + place[b, i]) - 1 / np.log(1 + place[b, j]))
      margin = BETA * (RATIO[b, i] - RATIO[b, j])
      total[b] += gain * step * np.log1p(np.exp(-margin))
      pull = gain * step * BETA * special.expit(-margin)
      force[b, i] -= pull
      force[b, j] += pull
  loss, slope = lists(objectives.lipo(BETA))
  assert loss == pytest.approx(total.mean())
  np.testing.assert_allclose(slope, force / 2, atol=1e-12)


def test_lipo_softmax_weighs_by_shares_of_the_reward():
  reward = REWARD.clip(0.1)
  share = reward / reward.sum(1, keepdims=True)
  loss, slope = lists(objectives.lipo_softmax(BETA), reward=reward)
  q = special.log_softmax(BETA * RATIO, axis=1)
  assert loss == pytest.approx(-(share * q).sum(1).mean())
  np.testing.assert_allclose(slope, BETA * (np.exp(q) - share) / 2, atol=1e-12)


def test_pair_weights_are_the_differences_of_dcg_they_stand_for():
  """ndcg_loss_2's step is that of neighbours a distance apart; ++ adds LambdaRank."""
  gain, place = np.array([[7.0, 1.0, 3.0]]), np.array([[2.0, 3.0, 1.0]])
  discount = np.log2(1 + place)
  first = np.asarray(ranking.ndcg_loss_1(gain, place))
  lost = (gain / discount)[..., None]
  np.testing.assert_allclose(first, np.broadcast_to(lost, (1, 3, 3)))
  second = np.asarray(ranking.ndcg_loss_2(gain, place))[0]
  both = np.asarray(ranking.ndcg_loss_2pp(gain, place, mu=4.0))[0]
  swap = np.asarray(ranking.lambda_rank(gain, place))[0]
  for i, j in itertools.permutations(range(3), 2):
    d = abs(place[0, i] - place[0, j])
    step = 1 / np.log2(1 + d) - 1 / np.log2(2 + d)
    assert second[i, j] == pytest.approx(abs(gain[0, i] - gain[0, j]) * step)
    jump = abs(1 / discount[0, i] - 1 / discount[0, j])
    assert swap[i, j] == pytest.approx(abs(gain[0, i] - gain[0, j]) * jump)
  np.testing.assert_allclose(both, 4 * second + swap, rtol=1e-12)
  np.testing.assert_array_equal(ranking.rank_net(gain), np.ones((1, 3, 3)))
  power = np.asarray(ranking.rank_net(gain, 2.0))
  np.testing.assert_allclose(power[0, 0], [0.0, 48.0, 40.0])


def test_floors_bound_the_loss_of_a_pair_and_of_a_place():
  """-log(max(sigma, floor)), and eps inside the sums of the public codes."""
  score, weight = np.array([[0.0, 30.0]]), np.array([[[0.0, 1.0], [0.0, 0.0]]])
  free = ranking.pair_logistic(score, weight)
  assert free[0] == pytest.approx(30.0)
  bounded = ranking.pair_logistic(score, weight, floor=1e-10)
  assert bounded[0] == pytest.approx(10 * np.log(10))
  label, every = np.array([[1.0, 0.0]]), np.ones((1, 2))
  nll = -ranking.plackett_luce(score, label, every, eps=1e-3)[0]
  total = np.log(1 + np.exp(30) + 1e-3 * np.exp(30)) + np.log(1 + 1e-3)
  assert nll == pytest.approx(total)
  small = score / 10
  contrast = ranking.contrast(small, label, every, eps=1e-3)
  assert contrast[0] == pytest.approx(np.log(1 + np.exp(3) + 1e-3))


def test_absent_completions_leave_every_listwise_loss_unchanged():
  """A list with a padded column is the shorter list."""
  present = np.array([[1.0, 1.0, 1.0, 0.0]] * 2)
  for name in (
    "plackett_luce list_net infonca lipo approx_ndcg rrhf pro exo_list kwise"
  ).split():
    o = objectives.get(name)()
    value = RATIO[..., None] / 2

    def loss(logp, reward, length, present, value, o=o):
      s = scored.from_token_logps(
        logp[..., None],
        np.ones((*logp.shape, 1)),
        0 * logp[..., None],
        reward_head_BKT=value,
        reward_BK=reward,
        present_BK=present,
      )
      return scored.evaluate(o, s.replace(length_BK=jnp.asarray(length))).loss

    run = jax.jit(loss)
    padded = run(RATIO, REWARD, LENGTH, present, value)
    short = np.s_[:, :3]
    expected = run(
      RATIO[short], REWARD[short], LENGTH[short], present[short], value[short]
    )
    assert padded == pytest.approx(float(expected)), name
