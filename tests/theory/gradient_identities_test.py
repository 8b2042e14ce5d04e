"""Gradients that the papers state, and the limits in which one method is another."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import special

from tests.compiled import scored
from xpo_jax import objectives
from xpo_jax.testing import toy
from xpo_jax.types import Aux

pytestmark = pytest.mark.usefixtures("float64")

BETA = 0.6
LOGP = np.array([[-3.0, -8.0], [-6.0, -2.0], [-5.0, -4.5]])
REF = np.array([[-4.0, -7.0], [-5.0, -3.5], [-4.5, -6.0]])
LENGTH = np.array([[2.0, 5.0], [3.0, 4.0], [5.0, 5.0]])
SIGN = np.array([1.0, -1.0])  # of chosen and rejected


def rows(objective, logp=LOGP, ref=REF, length=LENGTH, **columns):
  """Loss of each pair, and its gradient in the log-probabilities, `[B, 2]`.

  The sum over all terms of the loss, which divides by the number of pairs.
  """

  def loss(logp):
    s = scored.from_sequence_logps(logp, length, ref, **columns)
    return scored.evaluate(objective, s, objective.init()).loss * len(logp)

  value, slope = jax.jit(jax.value_and_grad(loss))(jnp.asarray(logp))
  return float(value) / len(logp), np.asarray(slope)


def sigmoid(x):
  return special.expit(x)[:, None]


def test_simpo_gradient_is_length_normalised_and_weighted_by_the_margin():
  """-beta sigma(gamma - margin) (grad log pi_w / |w| - grad log pi_l / |l|)."""
  average = LOGP / LENGTH
  margin = BETA * (average[:, 0] - average[:, 1])
  loss, slope = rows(objectives.simpo(BETA, 0.9))
  weight = BETA * sigmoid(0.9 - margin)
  np.testing.assert_allclose(slope, -weight * SIGN / LENGTH, rtol=1e-12)
  assert loss == pytest.approx(np.log1p(np.exp(0.9 - margin)).mean())


def test_orpo_gradient_is_the_product_of_the_papers_two_factors():
  """(1 + odds_w / odds_l)^-1 (grad log p_w / (1 - p_w) - grad log p_l / (1 - p_l))."""
  p = np.exp(LOGP / LENGTH)
  odds = p / (1 - p)
  delta = 1 / (1 + odds[:, 0] / odds[:, 1])
  loss, slope = rows(objectives.odds_ratio(0.3))
  expected = -0.3 * delta[:, None] * SIGN / LENGTH / (1 - p)
  np.testing.assert_allclose(slope, expected, rtol=1e-10)
  assert loss == pytest.approx(-0.3 * np.log(1 - delta).mean())


def test_cpo_is_dpo_with_a_uniform_reference_plus_the_likelihood_of_the_chosen():
  """Any reference that is the same for both completions gives the same loss."""
  dpo, dpo_slope = rows(objectives.dpo(BETA), ref=np.full_like(REF, -11.0))
  cpo, slope = rows(objectives.cpo(BETA, weight=0.3))
  assert cpo == pytest.approx(dpo - 0.3 * LOGP[:, 0].mean())
  np.testing.assert_allclose(slope, dpo_slope - [0.3, 0.0], rtol=1e-12)


@pytest.mark.parametrize(
  ("reduction", "value"),
  [
    ("sequence_sum", -LOGP[:, 0].mean()),
    ("sequence_mean", -(LOGP / LENGTH)[:, 0].mean()),
    ("token_mean", -LOGP[:, 0].sum() / LENGTH[:, 0].sum()),
  ],
)
def test_likelihood_of_the_chosen_by_reduction(reduction, value):
  nll, slope = rows(objectives.nll(reduction))
  assert nll == pytest.approx(value)
  assert (slope[:, 0] < 0).all()
  assert not slope[:, 1].any()
  weighted, _ = rows(objectives.cpo(BETA, 0.7, 0.0, reduction))
  assert weighted - rows(objectives.cpo(BETA, 0.0))[0] == pytest.approx(0.7 * value)
  if reduction == "token_mean":
    assert rows(objectives.sft())[0] == pytest.approx(value)


def test_a_demonstration_counts_where_column_0_is_present_whatever_the_others():
  present = np.array([[1.0, 0.0], [0.0, 1.0], [1.0, 1.0]])
  nll, slope = rows(objectives.nll("sequence_sum"), present_BK=present)
  assert nll == pytest.approx(-LOGP[[0, 2], 0].mean())
  np.testing.assert_array_equal(slope[:, 0] < 0, [True, False, True])


def test_arpo_trains_only_the_chosen_of_equal_completions_and_is_cpo_far_apart():
  """tau = exp(eta |a_w - a_l|) - 1, at most 1, so 0 for equal averages."""
  equal = np.array([[-2.0, -5.0]])
  length = np.array([[4.0, 10.0]])
  arpo = objectives.arpo(BETA, weight=0.0, eta=0.4, relax=1.0)
  s = scored.from_sequence_logps(equal, length)
  assert objectives.rejection(s, 0.4) == pytest.approx(0)
  loss, _ = rows(arpo, equal, 0 * equal, length)
  assert loss == pytest.approx(np.log1p(np.exp(BETA * 2.0)))
  far, near = (rows(o(BETA, weight=0.2)) for o in (objectives.cpo, objectives.arpo))
  assert far[0] != near[0]
  logp = LOGP * [[1.0, 10.0]]  # averages more than log(2 / relax) / eta apart
  expected, expected_slope = rows(objectives.cpo(BETA, weight=0.2), logp)
  for relax in (0.9, 1.0, 1.5):
    o = objectives.arpo(BETA, weight=0.2, eta=0.7, relax=relax)
    loss, slope = rows(o, logp)
    assert loss == pytest.approx(expected)
    np.testing.assert_allclose(slope, expected_slope, rtol=1e-12)


def test_arpo_between_its_limits_has_the_gradient_of_tau_too():
  average = LOGP / LENGTH
  gap = np.abs(average[:, 0] - average[:, 1])
  tau = np.minimum(1.2 * np.exp(0.3 * gap) - 1, 1)
  assert (tau < 1).all()
  margin = BETA * (LOGP[:, 0] - tau * LOGP[:, 1])
  loss, slope = rows(objectives.arpo(BETA, 0.0, eta=0.3, relax=1.2))
  assert loss == pytest.approx(np.log1p(np.exp(-margin)).mean())
  side = np.sign(average[:, 0] - average[:, 1])[:, None] * SIGN / LENGTH
  tau_slope = 1.2 * 0.3 * np.exp(0.3 * gap)[:, None] * side
  margin_slope = BETA * (np.stack([1 + 0 * tau, -tau], 1) - tau_slope * LOGP[:, 1:])
  np.testing.assert_allclose(slope, -sigmoid(-margin) * margin_slope, rtol=1e-10)


def test_alphapo_is_simpo_at_alpha_0_and_weighs_by_inverse_powers_of_likelihood():
  """d reward / d log pi = p^-alpha / |y|, p the average probability of a token."""
  simpo, alphapo = (
    rows(o)
    for o in (objectives.simpo(BETA, 0.3), objectives.alphapo(BETA, 0.3, alpha=0.0))
  )
  np.testing.assert_allclose(alphapo[1], simpo[1], rtol=1e-12)
  assert alphapo[0] == pytest.approx(simpo[0])
  for alpha in (2.0, 0.5, -0.7, 1e-9):
    loss, slope = rows(objectives.alphapo(BETA, 0.3, alpha=alpha))
    p = np.exp(LOGP / LENGTH)
    reward = (1 - p**-alpha) / alpha if abs(alpha) > 1e-6 else LOGP / LENGTH
    margin = BETA * (reward[:, 0] - reward[:, 1]) - 0.3
    assert loss == pytest.approx(np.logaddexp(0, -margin).mean(), rel=1e-7)
    expected = -BETA * sigmoid(-margin) * p**-alpha / LENGTH * SIGN
    np.testing.assert_allclose(slope, expected, rtol=1e-7)


def test_slic_stops_at_the_margin_and_keeps_its_likelihood_term():
  """A hinge of unit slope: nothing from pairs whose gap is at least delta."""
  gap = LOGP[:, 0] - LOGP[:, 1]  # 5, -4, -0.5
  for delta, active in ((1.0, gap < 1.0), (6.0, gap < 6.0)):
    loss, slope = rows(objectives.slic(delta, weight=0.2))
    hinge = np.where(active, delta - gap, 0)
    assert loss == pytest.approx(hinge.mean() - 0.2 * LOGP[:, 0].mean())
    expected = -1.0 * active[:, None] * SIGN - [0.2, 0.0]
    np.testing.assert_allclose(slope, expected, rtol=1e-12)


def test_dpop_raises_the_weight_of_a_chosen_completion_that_has_fallen():
  """The penalty makes the slopes -(1 + lambda) to 1 below the reference, else -1."""
  _, slope = rows(objectives.dpop(BETA, penalty=4.0))
  fallen = LOGP[:, 0] < REF[:, 0]
  assert fallen.any()
  assert not fallen.all()
  ratio = slope[:, 0] / slope[:, 1]
  np.testing.assert_allclose(ratio, np.where(fallen, -5.0, -1.0), rtol=1e-12)
  u = LOGP - REF
  margin = BETA * (u[:, 0] - u[:, 1] - 4.0 * np.maximum(-u[:, 0], 0))
  np.testing.assert_allclose(slope[:, 1:], BETA * sigmoid(-margin), rtol=1e-12)


def test_apo_zero_raises_the_chosen_and_lowers_the_rejected_always():
  """Slopes of sigma(-r_w) + sigma(r_l): each side depends on its own reward only."""
  reward = BETA * (LOGP - REF)
  s = special.expit(reward)
  loss, slope = rows(objectives.apo_zero(BETA))
  np.testing.assert_allclose(slope, -BETA * s * (1 - s) * SIGN, rtol=1e-12)
  assert loss == pytest.approx((1 - s[:, 0] + s[:, 1]).mean())


def test_apo_down_lowers_the_rejected_faster_than_the_chosen():
  reward = BETA * (LOGP - REF)
  own, gap = special.expit(reward[:, 0]), special.expit(reward[:, 1] - reward[:, 0])
  loss, slope = rows(objectives.apo_down(BETA))
  assert loss == pytest.approx((own + gap).mean())
  rejected = BETA * gap * (1 - gap)
  np.testing.assert_allclose(slope[:, 1], rejected, rtol=1e-12)
  chosen = BETA * own * (1 - own) - rejected
  np.testing.assert_allclose(slope[:, 0], chosen, rtol=1e-12)
  # At the reference only the rejected one moves.
  _, slope = rows(objectives.apo_down(BETA), logp=REF)
  np.testing.assert_allclose(slope, [[0.0, BETA / 4]] * 3, atol=1e-15)


def test_unpaired_apo_zero_of_both_sides_is_the_paired_one():
  paired, paired_slope = rows(objectives.apo_zero(BETA))
  total, slopes = 0.0, []
  for side in (0, 1):
    label = np.full((3, 1), 1.0 - side)
    one = np.s_[:, side : side + 1]
    o = objectives.apo_zero_unpaired(BETA)
    loss, slope = rows(o, LOGP[one], REF[one], LENGTH[one], desirable_BK=label)
    total, slopes = total + loss, [*slopes, slope]
  assert total == pytest.approx(paired)
  np.testing.assert_allclose(np.concatenate(slopes, 1), paired_slope, rtol=1e-12)


def test_discopop_is_logistic_on_misranked_and_exponential_on_ranked_pairs():
  """Blended by sigma(margin / tau): half of each at 0."""
  at = {}
  for gap in (-40.0, 0.0, 20.0):
    logp = np.array([[gap, 0.0]])
    o = objectives.discopop(BETA, tau=0.5)
    at[gap], _ = rows(o, logp, 0 * logp, np.ones((1, 2)))
  assert at[-40.0] == pytest.approx(40 * BETA, rel=1e-6)
  assert at[0.0] == pytest.approx((np.log(2) + 1) / 2)
  assert at[20.0] == pytest.approx(np.exp(-20 * BETA), rel=1e-6)
  gap = np.array([[0.7, 0.0]])
  m, blend = BETA * 0.7, special.expit(BETA * 0.7 / 0.5)
  loss, _ = rows(objectives.discopop(BETA, tau=0.5), gap, 0 * gap, np.ones((1, 2)))
  expected = (1 - blend) * np.log1p(np.exp(-m)) + blend * np.exp(-m)
  assert loss == pytest.approx(expected)


def test_simnpo_weight_and_its_limits():
  """2 p^beta / (p^beta + e^-gamma..) / |y|: ascent of log pi / |y| as beta falls."""
  label = np.zeros((3, 1))
  own = (LOGP[:, :1], None, LENGTH[:, :1])
  _, slope = rows(objectives.simnpo(1e-8), *own, desirable_BK=label)
  np.testing.assert_allclose(slope, 1 / LENGTH[:, :1], rtol=1e-6)
  p = np.exp(BETA * LOGP[:, :1] / LENGTH[:, :1])
  for gamma in (0.0, 0.5):
    weight = 2 * p * np.exp(gamma) / (1 + p * np.exp(gamma))
    loss, slope = rows(objectives.simnpo(BETA, gamma), *own, desirable_BK=label)
    np.testing.assert_allclose(slope, weight / LENGTH[:, :1], rtol=1e-12)
    assert loss == pytest.approx(2 / BETA * np.log1p(p * np.exp(gamma)).mean())


def test_npo_and_simnpo_are_equal_for_a_reference_of_log_probability_0():
  """SimNPO drops NPO's reference and divides by the length."""
  label, one = np.zeros((3, 1)), np.ones((3, 1))
  npo = rows(objectives.npo(BETA), LOGP[:, :1], 0 * one, one, desirable_BK=label)
  simnpo = rows(objectives.simnpo(BETA), LOGP[:, :1], None, one, desirable_BK=label)
  assert npo[0] == pytest.approx(simnpo[0])
  np.testing.assert_allclose(npo[1], simnpo[1], rtol=1e-12)


@pytest.mark.parametrize("factory", [objectives.npo, objectives.simnpo])
def test_unlearning_losses_leave_the_retained_rows_alone(factory):
  label = np.array([[0.0], [1.0], [0.0]])
  columns = (LOGP[:, :1], REF[:, :1], LENGTH[:, :1])
  loss, slope = rows(factory(BETA), *columns, desirable_BK=label)
  np.testing.assert_array_equal(slope[:, 0] > 0, [True, False, True])
  assert slope[1, 0] == 0
  forget = [x[::2] for x in columns]
  alone, _ = rows(factory(BETA), *forget, desirable_BK=label[::2])
  assert loss == pytest.approx(alone)


def test_sppo_has_its_zero_at_the_multiplicative_weights_step():
  """log-ratio = (P - 1/2) / beta for both; the squared distance elsewhere."""
  rate = np.array([[0.9, 0.2], [0.6, 0.5], [1.0, 0.0]])
  best = REF + (rate - 0.5) / BETA
  loss, slope = rows(objectives.sppo(BETA), best, reward_BK=rate)
  assert loss == pytest.approx(0, abs=1e-20)
  np.testing.assert_allclose(slope, 0, atol=1e-12)
  off = np.array([[0.3, 0.0], [0.0, -0.4], [0.1, 0.1]])
  loss, slope = rows(objectives.sppo(BETA), best + off, reward_BK=rate)
  assert loss == pytest.approx((off**2).mean())
  np.testing.assert_allclose(slope, off, atol=1e-12)  # 2 off / 2


def test_sppo_of_two_completions_keeps_the_exact_step():
  """P's of two rivals add up to 1, so that their step is the game's."""
  rate = np.array([[0.8, 0.2]])
  ref = special.log_softmax(np.array([[0.3, -0.4]]), axis=1)
  target = (rate - 0.5) / BETA
  exact = special.log_softmax(ref + rate / BETA, axis=1)
  gap = np.diff(exact - ref)
  np.testing.assert_allclose(np.diff(target), gap, rtol=1e-12)
  loss, _ = rows(objectives.sppo(BETA), ref + target, ref, LENGTH[:1], reward_BK=rate)
  assert loss == pytest.approx(0, abs=1e-20)


def test_dno_fits_the_logistic_model_of_the_win_rates():
  """Cross-entropy to sigma(r_w - r_l): no gradient where the margins are equal."""
  rate = np.array([[0.9, 0.2], [0.6, 0.5], [0.1, 0.7]])
  best = REF + rate / BETA
  loss, slope = rows(objectives.dno(BETA), best, reward_BK=rate)
  np.testing.assert_allclose(slope, 0, atol=1e-12)
  p = special.expit(rate[:, 0] - rate[:, 1])
  assert loss == pytest.approx(special.entr(np.stack([p, 1 - p])).sum(0).mean())
  _, slope = rows(objectives.dno(BETA), REF, reward_BK=rate)
  np.testing.assert_allclose(slope, BETA * (0.5 - p)[:, None] * SIGN, rtol=1e-12)


def test_online_ipo_regresses_the_gap_on_the_win_rate_of_the_pair():
  """Least at a gap of (2 p - 1) / (2 beta), whatever both log-ratios share."""
  p = np.array([0.9, 0.5, 0.2])
  rate = np.stack([p, 1 - p], 1)
  gap = (2 * p - 1) / (2 * BETA)
  for constant in (0.0, 3.0):
    best = REF + np.stack([gap, 0 * gap], 1) + constant
    loss, slope = rows(objectives.ipo_md(BETA), best, reward_BK=rate)
    np.testing.assert_allclose(slope, 0, atol=1e-12)
    assert loss == pytest.approx((p * (1 - p) / BETA).mean())
  _, slope = rows(objectives.ipo_md(BETA), REF, reward_BK=rate)
  np.testing.assert_allclose(slope, -(2 * p - 1)[:, None] * SIGN, atol=1e-12)


def test_ld_dpo_between_dpo_and_dpo_on_the_common_prefix():
  """The slope of a token after the shorter length is alpha times that of the others."""
  s = toy.scored(K=2, dtype=np.float64)

  def slope(objective, mask=None):
    def loss(logp_BKT):
      record = s.replace(logp_BKT=logp_BKT)
      record = record if mask is None else record.replace(mask_BKT=jnp.asarray(mask))
      return scored.evaluate(objective, record).loss

    return jax.device_get(jax.jit(jax.value_and_grad(loss))(s.logp_BKT))

  mask = np.asarray(s.mask_BKT)
  shortest = mask.sum(-1).min(-1)[:, None, None]
  common = mask * (np.arange(mask.shape[-1]) < shortest)
  assert (common != mask).any()
  for alpha, kept in ((1.0, mask), (0.0, common)):
    actual, expected = (
      slope(objectives.ld_dpo(BETA, alpha)),
      slope(objectives.dpo(BETA), kept),
    )
    assert actual[0] == pytest.approx(expected[0], rel=1e-12)
    np.testing.assert_allclose(actual[1], expected[1], atol=1e-15)
  _, middle = slope(objectives.ld_dpo(BETA, 0.3))
  first = np.broadcast_to(middle[..., :1], middle.shape)
  expected = np.where(common > 0, first, np.where(mask > 0, 0.3 * first, 0))
  np.testing.assert_allclose(middle, expected, rtol=1e-12)
  ratio = (np.asarray(s.logp_BKT) - np.asarray(s.ref_logp_BKT)) * mask
  ratio = (ratio * np.where(common > 0, 1, 0.3)).sum(-1)
  margin = BETA * (ratio[:, 0] - ratio[:, 1])
  value, _ = slope(objectives.ld_dpo(BETA, 0.3))
  assert value == pytest.approx(np.log1p(np.exp(-margin)).mean())


def test_sampo_takes_as_many_tokens_from_both_sides():
  """The margin is beta min(|w|, |l|) (c_w - c_l) at log-ratios c per token."""
  T, length = 6, np.array([[6, 2], [3, 5]])
  mask = np.arange(T) < length[..., None]
  per_token = np.array([0.4, -0.1])[None, :, None] * np.ones((2, 2, T))
  s = scored.from_token_logps(per_token - 1, mask, -np.ones((2, 2, T)))
  o = objectives.sampo(BETA)
  margin = BETA * np.array([2, 3]) * 0.5
  each = jax.jit(lambda key: scored.evaluate(o, s, key=key).per_example_B)
  for seed in range(3):
    loss = each(jax.random.key(seed))
    np.testing.assert_allclose(loss, np.log1p(np.exp(-margin)))


def test_sampo_draws_every_token_of_the_longer_side_as_often():
  T, draws = 5, 4000
  s = scored.from_token_logps(
    np.zeros((1, 2, T)), np.arange(T) < np.array([[[5], [2]]]), np.zeros((1, 2, T))
  )
  keys = jax.random.split(jax.random.key(0), draws)
  mask = jax.jit(
    jax.vmap(lambda key: objectives.down_sample(s.mask_BKT, s.row_B, key))
  )(keys)
  np.testing.assert_array_equal(np.asarray(mask).sum(-1), 2)
  often = np.asarray(mask)[:, 0, 0].mean(0)
  np.testing.assert_allclose(often, 2 / 5, atol=4 * np.sqrt(0.24 / draws))


def test_aot_sorts_both_sides_so_that_shuffling_one_changes_nothing():
  """Optimal transport in one dimension: only the sorted samples count."""
  chosen, rejected = LOGP[:, :1] - REF[:, :1], LOGP[:, 1:] - REF[:, 1:]
  margins = np.sort(chosen, 0) - np.sort(rejected, 0)
  for e in (0.0, 0.2):
    m = BETA * margins
    loss = (1 - e) * np.logaddexp(0, -m) + e * np.logaddexp(0, m)
    for order in ([0, 1, 2], [2, 0, 1]):
      logp = np.concatenate([LOGP[:, :1], LOGP[order, 1:]], 1)
      ref = np.concatenate([REF[:, :1], REF[order, 1:]], 1)
      actual, slope = rows(objectives.aot_unpaired(BETA, e), logp, ref)
      assert actual == pytest.approx(loss.mean())
      weight = (1 - e) * special.expit(-m) - e * special.expit(m)
      rank = np.argsort(np.argsort(chosen[:, 0]))
      np.testing.assert_allclose(slope[:, :1], -BETA * weight[rank], rtol=1e-12)
      rank = np.argsort(np.argsort(rejected[order, 0]))
      np.testing.assert_allclose(slope[:, 1:], BETA * weight[rank], rtol=1e-12)


def test_paired_aot_compares_the_sorted_gaps_of_policy_and_reference():
  gap, ref_gap = LOGP[:, 0] - LOGP[:, 1], REF[:, 0] - REF[:, 1]
  m = BETA * (np.sort(gap) - np.sort(ref_gap))
  loss, slope = rows(objectives.aot(BETA, 0.2))
  value = 0.8 * np.logaddexp(0, -m) + 0.2 * np.logaddexp(0, m)
  assert loss == pytest.approx(value.mean())
  order = np.argsort(np.argsort(gap))
  weight = (0.8 * special.expit(-m) - 0.2 * special.expit(m))[order, None]
  np.testing.assert_allclose(slope, -BETA * weight * SIGN, rtol=1e-12)


def beta_dpo(logp, state, key=0, **hparams):
  o = objectives.beta_dpo(BETA, **hparams)
  s = scored.from_sequence_logps(logp, np.ones_like(logp), 0 * logp)
  return o, s, jax.jit(o.prepare)(s, state, jax.random.key(key))


def test_beta_dpo_without_adaptation_is_dpo_and_with_it_dpo_at_another_beta():
  """beta' = beta (1 + alpha (M - M_0)); M_0 moves to M in steps of 1 - m."""
  logp = LOGP - REF  # gaps 0, 0.5..
  gap = logp[:, 0] - logp[:, 1]
  o, s, (aux, state) = beta_dpo(logp, objectives.beta_dpo().init(), alpha=0.0, keep=1.0)
  assert aux.shared == pytest.approx(BETA)
  plain = scored.evaluate(objectives.dpo(BETA), s).loss
  assert o.loss(s, aux).terms["beta_dpo"].value == pytest.approx(plain)
  state = objectives.beta_dpo().init()
  for n in range(1, 4):
    _, s, (aux, state) = beta_dpo(logp, state, alpha=0.3, keep=1.0, momentum=0.5)
    moved = gap.mean() * (1 - 0.5**n)
    used = BETA * (1 + 0.3 * (gap.mean() - moved))
    assert aux.shared == pytest.approx(used)
    assert state["gap_mean"] == pytest.approx(moved)
    assert state["gap_std"] == pytest.approx(gap.std(ddof=1) * (1 - 0.5**n))
    adapted = scored.evaluate(objectives.dpo(used), s).loss
    loss = objectives.beta_dpo(BETA, 0.3, 1.0).loss(s, aux).terms["beta_dpo"].value
    assert loss == pytest.approx(adapted)


def test_beta_dpo_of_one_pair_has_no_deviation():
  state = {"gap_mean": jnp.asarray(1.0), "gap_std": jnp.asarray(2.0)}
  _, _, (aux, state) = beta_dpo(LOGP[:1], state, keep=1.0, momentum=0.5)
  assert state["gap_std"] == pytest.approx(0.5 * 2.0)
  assert aux.rows == pytest.approx(1)


def test_beta_dpo_is_dpo_on_the_pairs_drawn():
  o = objectives.beta_dpo(BETA, keep=0.5)
  s = scored.from_sequence_logps(LOGP, LENGTH, REF)
  drawn = np.array([1.0, 0.0, 1.0])
  loss = o.loss(s, Aux(rows=jnp.asarray(drawn), shared=BETA)).terms["beta_dpo"].value
  kept = drawn > 0
  expected, _ = rows(objectives.dpo(BETA), LOGP[kept], REF[kept], LENGTH[kept])
  assert loss == pytest.approx(expected)


def test_beta_dpo_is_bounded_below():
  logp = np.array([[-900.0, 0.0], [-950.0, 0.0]])
  _, _, (aux, _) = beta_dpo(logp, objectives.beta_dpo().init(), keep=1.0)
  assert aux.shared == pytest.approx(1e-3)


def test_beta_dpo_draws_pairs_by_the_normal_density_of_their_gap():
  """The first pair drawn has probability exp(-z^2 / 2) / sum; the mean is theirs."""
  logp = np.stack([np.array([0.0, 1.0, 3.0, 7.0]), np.zeros(4)], 1)
  state = {"gap_mean": jnp.asarray(2.0), "gap_std": jnp.asarray(2.0)}
  o = objectives.beta_dpo(BETA, 0.1, keep=0.25, momentum=0.5)
  s = scored.from_sequence_logps(logp, np.ones_like(logp), 0 * logp)
  keys = jax.random.split(jax.random.key(0), 4000)
  aux, _ = jax.jit(jax.vmap(lambda key: o.prepare(s, state, key)))(keys)
  mean, std = (2 + logp[:, 0].mean()) / 2, (2 + logp[:, 0].std(ddof=1)) / 2
  p = np.exp(-(((logp[:, 0] - mean) / std) ** 2) / 2)
  p /= p.sum()
  drawn = np.asarray(aux.rows)
  np.testing.assert_array_equal(drawn.sum(1), 1)
  np.testing.assert_allclose(drawn.mean(0), p, atol=4 * np.sqrt(0.25 / 4000))
  used = BETA * (1 + 0.1 * (drawn @ logp[:, 0] - mean))
  np.testing.assert_allclose(aux.shared, used, rtol=1e-12)


def test_kto_loss_is_symmetric_about_the_kl_of_the_mismatched_completions():
  """Half of lambda at log-ratio = z0 >= 0, and what one side gains the other loses."""
  beta, weights = 0.5, {1: 1.5, 0: 0.8}

  def loss(offset, label, others):
    z0 = max(0.0, np.mean(others))
    ratio = np.stack([np.full(2, z0 + offset), others], 1)
    o = objectives.kto(beta, weights[1], weights[0])
    labels = np.full((2, 2), label)
    return rows(o, ratio, 0 * ratio, 1 + 0 * ratio, desirable_BK=labels)

  for others in (np.array([0.5, 1.7]), np.array([-3.0, 1.0])):
    for label, weight in weights.items():
      value, slope = loss(0.0, label, others)
      assert value == pytest.approx(weight / 2)
      sign = 1 if label else -1
      np.testing.assert_allclose(slope[:, 0], -sign * weight * beta / 4)
      np.testing.assert_array_equal(slope[:, 1], 0)  # the reference point is fixed
      above, below = (loss(d, label, others)[0] for d in (1.3, -1.3))
      assert above + below == pytest.approx(weight)
      assert (above < below) == bool(label)
      assert below - above == pytest.approx(
        sign * weight * (2 * special.expit(beta * 1.3) - 1)
      )


def test_ktos_reference_point_is_the_kl_where_the_mismatched_are_the_policys_own():
  policy, ref = special.log_softmax([[1.0, 0.2, -1.0], [0.0, 0.1, 0.2]], axis=1)
  kl = np.exp(policy) @ (policy - ref)
  own = np.stack([np.zeros(3), policy], 1)
  s = scored.from_sequence_logps(
    own,
    np.ones((3, 2)),
    np.stack([np.zeros(3), ref], 1),
    desirable_BK=np.ones((3, 2)),
    weight_B=np.exp(policy),
  )
  aux, _ = objectives.kto().prepare(s, (), None)
  assert isinstance(aux, Aux)
  assert aux.shared == pytest.approx(kl)
  assert kl > 0.05


def test_dro_on_the_policys_own_samples_is_the_regularised_policy_gradient():
  """Exactly, at any value function: the factor 1 / beta undoes the square's beta."""
  policy = special.log_softmax([0.4, -1.0, 0.3, 1.1])
  ref = special.log_softmax([0.0, 0.5, -0.2, 0.1])
  reward, value = np.array([1.0, 0.3, -2.0, 0.7]), 0.9

  def loss(logits, value):
    one = np.ones((4, 1, 1))
    s = scored.from_token_logps(
      jax.nn.log_softmax(logits)[:, None, None],
      one,
      ref[:, None, None],
      value_BKT=value * one,
      reward_BK=reward[:, None],
      weight_B=np.exp(policy),
    )
    return scored.evaluate(objectives.dro(BETA), s).loss

  def regularised(logits):
    logp = jax.nn.log_softmax(logits)
    return jnp.exp(logp) @ (reward - BETA * (logp - ref))

  total, (slope, value_slope) = jax.jit(jax.value_and_grad(loss, (0, 1)))(policy, value)
  np.testing.assert_allclose(slope, -jax.jit(jax.grad(regularised))(policy), atol=1e-12)
  # The value regresses on reward minus penalty.
  residual = np.exp(policy) @ (reward - value - BETA * (policy - ref))
  assert value_slope == pytest.approx(-residual)
  squares = np.exp(policy) @ (reward - value - BETA * (policy - ref)) ** 2 / 2
  assert total == pytest.approx(squares * (1 / BETA + 1))


def test_bco_shift_is_the_mean_reward_of_all_batches_so_far():
  """delta halves the mean rewards of both classes where there are as many of each."""
  o = objectives.bco_pair(BETA)
  batches = [LOGP - REF, 2 * (LOGP - REF) + 1]
  state, seen = o.init(), []
  for u in batches:
    s = scored.from_sequence_logps(u, np.ones_like(u), 0 * u)
    aux, state = o.prepare(s, state, None)
    seen.append(u)
    mean = BETA * np.concatenate(seen).mean()
    assert aux.shared == pytest.approx(mean)
    loss = o.loss(s, aux).terms["bco_pair"].value
    gain = (BETA * u - mean) * SIGN
    assert loss == pytest.approx(np.logaddexp(0, -gain).sum(1).mean())


def test_d2o_of_one_sample_and_equal_references_is_dpo():
  logp, ref = LOGP[..., None], REF[..., None]
  refs = {"ref_minus_logp_BKT": ref, "ref_plus_logp_BKT": ref}
  one = np.ones_like(ref)

  def d2o(logp):
    s = scored.from_token_logps(
      logp, one, desirable_BK=np.array([[1.0, 0.0]] * 3), extra=refs
    )
    return scored.evaluate(objectives.d2o(BETA, BETA), s).loss

  loss, slope = jax.jit(jax.value_and_grad(d2o))(jnp.asarray(logp))
  dpo, dpo_slope = rows(objectives.dpo(BETA))
  assert loss == pytest.approx(dpo)
  np.testing.assert_allclose(slope[..., 0] * 3, dpo_slope, rtol=1e-12)


def test_d2o_shares_its_slope_among_the_samples_and_keeps_the_references_apart():
  """mean over samples against pi_minus, the undesirable one against pi_plus."""
  rng = np.random.default_rng(1)
  logp, minus, plus = rng.normal(size=(3, 1, 4, 1))
  label = np.array([[1.0, 0.0, 1.0, 1.0]])
  refs = {"ref_minus_logp_BKT": minus, "ref_plus_logp_BKT": plus}

  def loss(logp, label=label):
    s = scored.from_token_logps(logp, 1 + 0 * plus, desirable_BK=label, extra=refs)
    return scored.evaluate(objectives.d2o(0.5, 0.8), s).loss

  value, slope = jax.jit(jax.value_and_grad(loss))(jnp.asarray(logp))
  up = (logp - minus)[0, [0, 2, 3], 0].mean()
  margin = 0.5 * up - 0.8 * (logp - plus)[0, 1, 0]
  assert value == pytest.approx(np.log1p(np.exp(-margin)))
  weight = special.expit(-margin)
  expected = weight * np.array([-0.5 / 3, 0.8, -0.5 / 3, -0.5 / 3])
  np.testing.assert_allclose(slope[0, :, 0], expected, rtol=1e-10)
  # The log-ratio of a completion is the sum over its tokens.
  cut = np.array([0.3, 0.7])
  refs = {name: cut * x for name, x in refs.items()}
  s = scored.from_token_logps(
    cut * logp, np.ones((1, 4, 2)), desirable_BK=label, extra=refs
  )
  assert scored.evaluate(objectives.d2o(0.5, 0.8), s).loss == pytest.approx(value)
  refs = {"ref_minus_logp_BKT": minus, "ref_plus_logp_BKT": plus}
  one_sided = jax.jit(loss)
  for alone in (np.ones((1, 4)), np.zeros((1, 4))):
    assert one_sided(logp, alone) == 0


def test_mixture_has_the_weighted_sum_of_losses_and_gradients():
  parts = (objectives.dpo(BETA), objectives.simpo(BETA), objectives.sft())
  weights = (0.5, 2.0, -0.3)
  loss, slope = rows(objectives.mixture(weights, parts))
  each = [rows(part) for part in parts]
  pairs = list(zip(weights, each, strict=True))
  assert loss == pytest.approx(sum(w * value for w, (value, _) in pairs))
  expected = sum(w * slope for w, (_, slope) in pairs)
  np.testing.assert_allclose(slope, expected, rtol=1e-12)
  s = scored.from_sequence_logps(LOGP, LENGTH, REF)
  by_row = objectives.mixture(weights[:2], parts[:2])
  run = jax.jit(lambda s: [scored.evaluate(o, s).per_example_B for o in two])
  two = (by_row, *parts[:2])
  whole, first, second = run(s)
  np.testing.assert_allclose(whole, 0.5 * first + 2.0 * second, rtol=1e-12)
