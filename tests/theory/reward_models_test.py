"""Optima of reward models, preference models and token rewards over populations."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import special

from tests.compiled import scored
from xpo_jax import objectives

pytestmark = pytest.mark.usefixtures("float64")


def pairs(objective, value, reward=None, weight=None, **columns):
  """Loss and slope in the head's values of pairs of single tokens, `[B, 2]`."""

  def loss(value):
    s = scored.from_token_logps(
      None,
      np.ones((*value.shape, 1)),
      reward_head_BKT=value[..., None],
      reward_BK=reward,
      weight_B=weight,
      **columns,
    )
    return scored.evaluate(objective, s).loss

  return jax.device_get(jax.jit(jax.value_and_grad(loss))(jnp.asarray(value)))


def shared(objective, margin, p, **columns):
  """d loss / d margin where the first of two wins with probability p."""
  two = np.array([[margin, 0.0], [0.0, margin]]) + columns.pop("constant", 0.0)
  loss, slope = pairs(objective, two, weight=np.array([p, 1 - p]), **columns)
  return loss, slope[0, 0] + slope[1, 1]


def test_bradley_terry_fits_the_log_odds_and_a_margin_enlarges_them():
  """p sigma(mu - m) = (1 - p) sigma(mu + m): the log-odds at mu = 0."""
  p = 0.7
  loss, slope = shared(objectives.bradley_terry(), special.logit(p), p)
  assert slope == pytest.approx(0, abs=1e-12)
  assert loss == pytest.approx(special.entr([p, 1 - p]).sum())
  e = np.exp(-0.5)
  a, b, c = (1 - p) * e, -(2 * p - 1), -p * e
  margin = np.log((-b + np.sqrt(b * b - 4 * a * c)) / (2 * a))
  assert margin > special.logit(p)
  _, slope = shared(objectives.bradley_terry(margin=0.5), margin, p)
  assert slope == pytest.approx(0, abs=1e-12)
  _, slope = shared(objectives.bradley_terry(margin=0.5), special.logit(p), p)
  assert slope < -1e-2
  # Each pair's own margin: of column 0, whatever stands in the other.
  own = {"margin_BK": np.array([[0.5, 9.0], [0.5, 9.0]])}
  _, slope = shared(objectives.margin_bradley_terry(), margin, p, **own)
  assert slope == pytest.approx(0, abs=1e-12)


def test_centring_leaves_the_margin_and_fixes_the_constant_that_pairs_cannot_see():
  """Pairs ignore a constant; c (r_1 + r_2)^2 is least where they sum to 0."""
  free = [
    pairs(objectives.bradley_terry(), np.array([[1.0, -0.5]]) + c)[0] for c in (0, 3)
  ]
  assert free[0] == pytest.approx(free[1])
  o = objectives.bradley_terry(centring=0.25)
  loss, slope = pairs(o, np.array([[2.5, 1.0]]))
  assert loss == pytest.approx(np.log1p(np.exp(-1.5)) + 0.25 * 3.5**2)
  assert slope.sum() == pytest.approx(4 * 0.25 * 3.5)
  _, slope = pairs(o, np.array([[0.75, -0.75]]))
  assert slope.sum() == pytest.approx(0, abs=1e-12)


def test_soft_labels_are_fitted_exactly():
  votes = np.array([[0.8, 0.2], [0.35, 0.65]])
  best = np.stack([special.logit(votes[:, 0]), [0, 0]], 1)
  loss, slope = pairs(objectives.soft_bradley_terry(), best, votes)
  np.testing.assert_allclose(slope, 0, atol=1e-12)
  assert loss == pytest.approx(special.entr(votes).sum(1).mean())
  _, slope = pairs(objectives.soft_bradley_terry(), 0 * best, votes)
  np.testing.assert_allclose(slope[:, 0], (0.5 - votes[:, 0]) / 2)


def test_preference_model_fits_both_orders_of_presentation_apart():
  """Column 0 shows the winner first, column 1 second: logit p and -logit p."""
  p = 0.8
  logit = special.logit(p)
  value = np.array([[logit, -logit], [-logit, logit]])
  weight = np.array([p, 1 - p])
  loss, slope = pairs(objectives.preference_model(), value, weight=weight)
  np.testing.assert_allclose(slope.sum(), 0, atol=1e-12)
  assert slope[0, 0] + slope[1, 1] == pytest.approx(0, abs=1e-12)
  assert loss == pytest.approx(special.entr([p, 1 - p]).sum())
  # A bias for the first place cancels in the mean of the two orders.
  for bias in (0.0, 0.9):
    value = np.array([[[logit + bias], [-logit + bias]], [[bias], [bias]]])
    s = scored.from_token_logps(None, np.ones((2, 2, 1)), reward_head_BKT=value)
    rate = objectives.preference(s)
    expected = (special.expit(logit + bias) + special.expit(logit - bias)) / 2
    np.testing.assert_allclose(rate, [expected, 0.5])


def test_kwise_averages_bradley_terry_over_the_pairs_that_differ():
  value = np.array([[0.5, -1.0, 2.0], [1.0, 0.0, 0.3]])
  grade = np.array([[2.0, 1.0, 0.0], [1.0, 1.0, 0.0]])
  gaps = (
    value[0, 0] - value[0, 1],
    value[0, 0] - value[0, 2],
    value[0, 1] - value[0, 2],
  )
  tied = (value[1, 0] - value[1, 2], value[1, 1] - value[1, 2])
  expected = [np.logaddexp(0, -np.array(x)).mean() for x in (gaps, tied)]
  loss, slope = pairs(objectives.kwise(), value, grade)
  assert loss == pytest.approx(np.mean(expected))
  np.testing.assert_allclose(slope.sum(1), 0, atol=1e-12)  # a shift changes nothing


def tokens(objective, value, reward, mask, weight=None):
  def loss(value):
    s = scored.from_token_logps(
      None, mask, reward_head_BKT=value, reward_BKT=reward, weight_B=weight
    )
    return scored.evaluate(objective, s).loss

  return jax.device_get(jax.jit(jax.value_and_grad(loss))(jnp.asarray(value)))


def test_token_reward_fits_the_log_odds_of_each_token_and_ignores_neutral_ones():
  """Rows of +1 and -1 with weights p and 1 - p: the optimum is logit p."""
  p = np.array([0.7, 0.2])
  value = np.zeros((2, 1, 3))
  value[..., :2] = special.logit(p)
  reward = np.array([[[1.0, 1.0, 0.0]], [[-1.0, -1.0, 0.0]]])
  total = np.zeros(value.shape[1:])
  loss = 0.0
  for token in range(2):
    mask = np.zeros(value.shape)
    mask[..., token] = 1
    weight = np.array([p[token], 1 - p[token]])
    part, slope = tokens(objectives.token_reward(), value, reward, mask, weight)
    total, loss = total + slope.sum(0), loss + part
  np.testing.assert_allclose(total, 0, atol=1e-12)
  assert loss == pytest.approx(special.entr([p, 1 - p]).sum())
  # Neutral tokens neither move nor count.
  value[..., 2] = 5.0
  mask = np.ones(value.shape)
  mask[1, 0, 1] = 0
  loss, slope = tokens(objectives.token_reward(), value, reward, mask)
  signs = np.sign(reward) * mask
  each = np.where(signs != 0, np.logaddexp(0, -signs * value), 0)
  assert loss == pytest.approx(each.sum() / 3)
  expected = -signs * special.expit(-signs * value) / 3
  np.testing.assert_allclose(slope, expected, atol=1e-12)


def test_squared_losses_have_the_mean_as_their_optimum():
  reward = np.array([1.0, 4.0, -2.0])
  mask = np.ones((3, 1, 2))
  mask[:, :, 1] = [[0], [1], [1]]
  dense = np.repeat(reward[:, None, None], 2, axis=2)
  value = np.full((3, 1, 2), (reward * mask[:, 0].sum(1)).sum() / mask.sum())
  loss, slope = tokens(objectives.token_regression(), value, dense, mask)
  assert slope.sum() == pytest.approx(0, abs=1e-12)
  spread = (dense - value) ** 2 * mask
  assert loss == pytest.approx(spread.sum() / mask.sum())
  np.testing.assert_allclose(slope, 2 * (value - dense) * mask / mask.sum(), atol=1e-12)
  one = np.full((3, 1), reward.mean())
  loss, slope = pairs(objectives.pointwise(), one, reward[:, None])
  assert loss == pytest.approx(reward.var())
  np.testing.assert_allclose(slope[:, 0], 2 * (reward.mean() - reward) / 3)
