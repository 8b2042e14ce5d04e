"""Listwise ranking against oracles in NumPy."""

import math

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests import compiled
from xpo_jax import scored
from xpo_jax.ops import ranking

ranking = compiled.module(ranking)

PRESENT = np.array([[1, 1, 1, 1], [1, 1, 1, 0], [1, 0, 0, 0], [0, 0, 0, 0]], float)
LABEL = np.array([[3, 1, 0, 2], [1, 2, 1, 9], [5, 9, 9, 9], [1, 2, 3, 4]], float)
SCORE = np.array(
  [[0.3, -1.2, 0.9, 0.4], [-0.5, 0.2, 1.1, 9.0], [2.0, 9, 9, 9], [1, 2, 3, 4]]
)


def rows(function):
  """The oracle on the present columns of each list; 0 for an empty one."""
  per_list = []
  for label, score, here in zip(LABEL, SCORE, PRESENT > 0, strict=True):
    per_list.append(function(score[here], label[here]) if here.any() else 0.0)
  return np.array(per_list)


def close(actual, expected, rtol=1e-5):
  np.testing.assert_allclose(actual, expected, rtol=rtol, atol=1e-6)


def test_ranks_break_ties_by_column_or_tie_breaker_and_put_absent_last():
  score_BK = np.array([[2.0, 5.0, 2.0, 7.0]])
  present_BK = np.array([[1.0, 1.0, 1.0, 0.0]])
  close(ranking.rank(score_BK, present_BK), [[2, 1, 3, 4]])
  tie_BK = np.array([[0.9, 0.5, 0.1, 0.0]])
  close(ranking.rank(score_BK, present_BK, tie_BK), [[3, 1, 2, 4]])


def test_better_is_strict_and_among_present():
  better = ranking.better(np.array([[1.0, 2.0, 1.0, 9.0]]), PRESENT[1:2])
  expected = np.zeros((4, 4), bool)
  expected[1, [0, 2]] = True
  np.testing.assert_array_equal(better[0], expected)


def _plackett_luce(score, label, eps=0.0):
  total = 0.0
  for s, own in zip(score, label, strict=True):
    rest = np.exp(score[label <= own]).sum() + eps * np.exp(score.max())
    total += s - np.log(rest)
  return total


@pytest.mark.parametrize("eps", [0.0, 0.01])
def test_plackett_luce_oracle(eps):
  actual = ranking.plackett_luce(SCORE, LABEL, PRESENT, eps)
  close(actual, rows(lambda s, y: _plackett_luce(s, y, eps)))


def test_plackett_luce_of_one_completion_is_certain():
  close(ranking.plackett_luce(SCORE, LABEL, PRESENT)[2:], [0, 0])


def test_ties_favour_no_column():
  order = [2, 1, 0, 3]  # exchanges the two that tie
  swapped = ranking.plackett_luce(SCORE[1:2, order], LABEL[1:2, order], PRESENT[1:2])
  close(swapped, ranking.plackett_luce(SCORE[1:2], LABEL[1:2], PRESENT[1:2]))


def test_cross_entropy_oracle():
  def softmax(x):
    return np.exp(x) / np.exp(x).sum()

  actual = ranking.cross_entropy(SCORE, ranking.softmax(LABEL, PRESENT), PRESENT)
  close(actual, rows(lambda s, y: -(softmax(y) * np.log(softmax(s))).sum()))
  actual = ranking.cross_entropy(SCORE, ranking.shares(LABEL, PRESENT), PRESENT)
  close(actual, rows(lambda s, y: -(y / y.sum() * np.log(softmax(s))).sum()))


def test_contrast_oracle():
  def oracle(score, label, eps=0.0):
    total = 0.0
    for s, own in zip(score, label, strict=True):
      worse = label < own
      if worse.any():
        gap = own - label[worse]
        rest = np.exp(gap * score[worse]).sum() + eps
        total += np.log(rest + np.exp(gap.max() * s)) - gap.max() * s
    return total

  close(ranking.contrast(SCORE, LABEL, PRESENT), rows(oracle))
  loose = ranking.contrast(SCORE, LABEL, PRESENT, eps=0.5)
  close(loose, rows(lambda s, y: oracle(s, y, 0.5)))


def _dcg(label, order, base):
  place = np.arange(2, len(order) + 2)
  return ((2.0 ** label[order] - 1) / (np.log(place) / np.log(base))).sum()


@pytest.mark.parametrize("base", [2.0, math.e])
def test_ideal_dcg_oracle(base):
  actual = ranking.ideal_dcg(LABEL, PRESENT, base)
  close(actual, rows(lambda s, y: _dcg(y, np.argsort(-y), base)))


def test_ndcg_oracle():
  def oracle(score, label):
    return _dcg(label, np.argsort(-score), 2) / _dcg(label, np.argsort(-label), 2)

  place_BK = ranking.rank(SCORE, PRESENT)
  close(ranking.ndcg(place_BK, LABEL, PRESENT), rows(oracle))


def test_ndcg_without_gain_is_zero():
  one = np.ones((1, 3))
  close(ranking.ndcg(np.array([[1.0, 2.0, 3.0]]), 0 * one, one), [0])


def test_approximate_rank_sharpens_to_the_rank():
  smooth = ranking.approximate_rank(SCORE[:1], PRESENT[:1], 2.0)
  sigma = 1 / (1 + np.exp((SCORE[0, 0] - SCORE[0, 1:]) / 2.0))
  close(smooth[0, 0], 1 + sigma.sum())
  sharp = ranking.approximate_rank(SCORE, PRESENT, 1e-3)
  exact = ranking.rank(SCORE, PRESENT)
  close(np.where(PRESENT, sharp, 0), np.where(PRESENT, exact, 0))


def _schemes(gain, place):
  """Every scheme of the paper by its formula, pair by pair."""

  def D(k):
    return np.log2(1 + k)

  K = len(gain)
  weights = {name: np.zeros((K, K)) for name in ("lambda", "1", "2", "2++")}
  for i in range(K):
    for j in range(K):
      apart, gap = abs(place[i] - place[j]), abs(gain[i] - gain[j])
      weights["1"][i, j] = gain[i] / D(place[i])
      weights["lambda"][i, j] = gap * abs(1 / D(place[i]) - 1 / D(place[j]))
      if apart:
        weights["2"][i, j] = gap * abs(1 / D(apart) - 1 / D(apart + 1))
      weights["2++"][i, j] = 10 * weights["2"][i, j] + weights["lambda"][i, j]
  return weights


def test_weighting_schemes_oracle():
  gain_BK, place_BK = 2 ** LABEL[:1] - 1, np.array([[2.0, 4.0, 1.0, 3.0]])
  expected = _schemes(gain_BK[0], place_BK[0])
  close(ranking.lambda_rank(gain_BK, place_BK)[0], expected["lambda"])
  close(ranking.ndcg_loss_1(gain_BK, place_BK)[0], expected["1"])
  close(ranking.ndcg_loss_2(gain_BK, place_BK)[0], expected["2"])
  close(ranking.ndcg_loss_2pp(gain_BK, place_BK)[0], expected["2++"])


@pytest.mark.parametrize("power", [0, 1, 2])
def test_rank_net_weights(power):
  y = LABEL[0]
  expected = np.abs(y[:, None] ** power - y**power) if power else np.ones((4, 4))
  close(ranking.rank_net(LABEL[:1], power)[0], expected)


def test_pair_logistic_oracle_and_floor():
  weight = np.abs(np.random.default_rng(0).normal(size=(1, 4, 4)))
  p = 1 / (1 + np.exp(-(SCORE[0][:, None] - SCORE[0])))
  close(ranking.pair_logistic(SCORE[:1], weight), [-(weight[0] * np.log(p)).sum()])
  floored = np.maximum(np.maximum(p, 0.4) ** weight[0], 0.4)
  actual = ranking.pair_logistic(SCORE[:1], weight, floor=0.4)
  close(actual, [-np.log(floored).sum()])


def test_metrics_exclude_lists_without_ordered_pairs():
  one = np.ones((4, 4))
  s = scored.from_sequence_logps(one, one, reward_BK=LABEL, present_BK=PRESENT)
  actual = {k: mean.value for k, mean in ranking.metrics(s, jnp.asarray(SCORE)).items()}
  close(actual["reward_chosen"], (0.3 + 0.2) / 2)
  close(actual["reward_rejected"], (0.9 + 1.1) / 2)  # tied for worst: the last
  # List 0 ranks (3, 1), (2, 1) correctly and (3, 0), (3, 2), (1, 0), (2, 0) not; list 1
  # ranks one of its two pairs correctly.
  close(actual["reward_accuracy"], (2 + 1) / (6 + 2))


def test_extreme_scores_stay_finite():
  big = jnp.array([[1000.0, -1000.0, 1000.0, 1000.0]] * 4)

  def everything(score_BK):
    weight = ranking.lambda_rank(LABEL[:, :], ranking.rank(score_BK, PRESENT))
    smooth = ranking.approximate_rank(score_BK, PRESENT)
    return jnp.stack(
      [
        ranking.plackett_luce(score_BK, LABEL, PRESENT).sum(),
        ranking.plackett_luce(score_BK, LABEL, PRESENT, eps=1e-10).sum(),
        ranking.contrast(score_BK, LABEL, PRESENT).sum(),
        ranking.pair_logistic(score_BK, weight).sum(),
        ranking.ndcg(smooth, LABEL, PRESENT).sum(),
        ranking.cross_entropy(score_BK, ranking.shares(LABEL, PRESENT), PRESENT).sum(),
      ]
    )

  chex.assert_tree_all_finite((everything(big), jax.jacrev(everything)(big)))
