"""Limiting cases of the listwise losses and of the reward models."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.compiled import scored
from xpo_jax import objectives
from xpo_jax.ops import ranking
from xpo_jax.testing import toy

ORDERS = np.array(list(itertools.permutations(range(4))))
SCORES = np.array([0.3, -1.2, 0.9, 2.0])


def loss_and_gradient(objective, s, key=None):
  def loss(logp_BKT):
    return scored.evaluate(objective, s.replace(logp_BKT=logp_BKT), (), key).loss

  return jax.jit(jax.value_and_grad(loss))(s.logp_BKT)


def pairs(reward=(1.0, 0.0)):
  s = toy.scored(K=2)
  return s.replace(reward_BK=jnp.broadcast_to(jnp.array(reward), s.present_BK.shape))


def lists(log_ratio, reward):
  one = np.ones_like(reward)
  return scored.from_sequence_logps(log_ratio, one, 0 * one, reward_BK=reward)


def order_probabilities():
  """P(order) of every order of four completions; entry k has rank k."""
  place_BK = np.argsort(ORDERS, axis=1)
  score_BK = np.broadcast_to(SCORES, place_BK.shape)
  return np.exp(ranking.plackett_luce(score_BK, -place_BK, np.ones(place_BK.shape)))


def test_plackett_luce_sums_to_one_over_all_orders():
  assert order_probabilities().sum() == pytest.approx(1)


def test_first_place_of_plackett_luce_is_a_softmax():
  first = ORDERS[:, 0]
  actual = [order_probabilities()[first == i].sum() for i in range(4)]
  expected = np.exp(SCORES) / np.exp(SCORES).sum()
  np.testing.assert_allclose(actual, expected, rtol=1e-5)


def test_pairs_of_plackett_luce_are_bradley_terry():
  """Leaving the others out of the order, P(i before j) = sigma(s_i - s_j)."""
  place = np.argsort(ORDERS, axis=1)
  actual = order_probabilities()[place[:, 0] < place[:, 2]].sum()
  assert actual == pytest.approx(1 / (1 + np.exp(SCORES[2] - SCORES[0])))


@pytest.mark.parametrize("name", ["plackett_luce", "list_mle"])
def test_likelihood_of_a_pair_is_dpo(name):
  o = objectives.build(name, {"beta": 0.3})
  actual = loss_and_gradient(o, pairs(), jax.random.key(0))
  expected = loss_and_gradient(objectives.dpo(beta=0.3), pairs())
  jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, 1e-5), actual, expected)


@pytest.mark.parametrize("reward", [(1.0, 0.0), (0.75, 0.25)])
def test_lipo_of_a_pair_is_a_multiple_of_dpo(reward):
  """The swap of two ranks: |2^r_w - 2^r_l| (1/ln 2 - 1/ln 3), for either ranking."""
  multiple = (2 ** reward[0] - 2 ** reward[1]) * (1 / np.log(2) - 1 / np.log(3))
  actual = loss_and_gradient(objectives.lipo(beta=0.3), pairs(reward))
  expected = loss_and_gradient(objectives.dpo(beta=0.3), pairs(reward))
  for x, y in zip(actual, expected, strict=True):
    np.testing.assert_allclose(x, multiple * y, rtol=1e-5)


def test_lambda_weight_is_the_change_of_dcg_by_a_swap():
  gain, place = np.array([7.0, 1.0, 0.0, 3.0]), np.array([2, 4, 1, 3])
  weight = ranking.lambda_rank(gain[None], place[None].astype(float))[0]

  def dcg(place):
    return (gain / np.log2(1 + place)).sum()

  for i, j in itertools.combinations(range(4), 2):
    swapped = place.copy()
    swapped[[i, j]] = place[[j, i]]
    assert weight[i, j] == pytest.approx(abs(dcg(swapped) - dcg(place)), rel=1e-5)


def test_list_net_at_low_temperature_is_the_first_place_of_plackett_luce():
  s = lists(SCORES[None], np.array([[1.0, 3.0, 0.0, 2.0]]))
  out = scored.evaluate(objectives.list_net(beta=1.0, temperature=1e-2), s)
  expected = -np.log(np.exp(SCORES[1]) / np.exp(SCORES).sum())
  assert out.loss == pytest.approx(expected, rel=1e-5)


def test_list_net_is_minimal_at_the_optimal_policy():
  """beta log-ratio = reward + constant: no gradient, and the target's entropy."""
  reward = np.array([[1.0, 3.0, 0.0, 2.0]])
  s = lists((reward - 5.0) / 0.2, reward)
  loss, gradient = loss_and_gradient(objectives.list_net(beta=0.2), s)
  p = np.exp(reward) / np.exp(reward).sum()
  assert loss == pytest.approx(-(p * np.log(p)).sum(), rel=1e-5)
  np.testing.assert_allclose(gradient, 0, atol=1e-6)


def test_tie_draws_the_scores_of_plackett_luce_together():
  s = lists(np.array([[0.7, 0.7, 0.0]]), np.array([[1.0, 1.0, 0.0]]))
  _, gradient = loss_and_gradient(objectives.plackett_luce(beta=1.0), s)
  assert gradient[0, 0, 0] == pytest.approx(float(gradient[0, 1, 0]))
  s = lists(np.array([[0.7, 0.2, 0.0]]), np.array([[1.0, 1.0, 0.0]]))
  _, gradient = loss_and_gradient(objectives.plackett_luce(beta=1.0), s)
  assert gradient[0, 0, 0] > gradient[0, 1, 0]  # the higher score of a tie is lowered


def test_kwise_of_a_pair_is_bradley_terry():
  s = pairs()
  actual = scored.evaluate(objectives.kwise(), s)
  expected = scored.evaluate(objectives.bradley_terry(), s)
  np.testing.assert_allclose(actual.per_example_B, expected.per_example_B, rtol=1e-6)
  for name, metric in expected.metrics.items():
    assert actual.metrics[name] == pytest.approx(float(metric))


def test_certain_soft_label_is_bradley_terry():
  actual = scored.evaluate(objectives.soft_bradley_terry(), pairs()).per_example_B
  expected = scored.evaluate(objectives.bradley_terry(), pairs()).per_example_B
  np.testing.assert_allclose(actual, expected, rtol=1e-6)


def test_intransitive_preferences_need_a_model_of_pairs():
  """Rock, paper, scissors at 4 to 1: rewards can do no better than log 2."""
  # One row for each pair (y, y') of the cycle, reward r_y in column 0.
  cycle = np.array([[0, 1], [1, 2], [2, 0]])
  one = np.ones((3, 2, 1))

  def rewards(r):
    votes = np.full((3, 2), [0.8, 0.2])
    value = r[cycle][..., None]
    s = scored.from_token_logps(None, one, reward_head_BKT=value, reward_BK=votes)
    return scored.evaluate(objectives.soft_bradley_terry(), s).loss

  loss, gradient = jax.jit(jax.value_and_grad(rewards))(jnp.zeros(3))
  assert loss == pytest.approx(np.log(2))
  np.testing.assert_allclose(gradient, 0, atol=1e-7)  # convex, so this is the best

  # The same votes as weights of wins and losses; the head reads both completions.
  logit = np.log(0.8 / 0.2)
  value = np.repeat(np.array([[[logit], [-logit]], [[-logit], [logit]]]), 3, axis=0)
  s = scored.from_token_logps(
    None, np.ones((6, 2, 1)), reward_head_BKT=value, weight_B=np.repeat([0.8, 0.2], 3)
  )
  loss = scored.evaluate(objectives.preference_model(), s).loss
  assert loss == pytest.approx(-0.8 * np.log(0.8) - 0.2 * np.log(0.2))
