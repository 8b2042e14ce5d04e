"""Pairs by reward, win rate and tournament."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests import compiled
from xpo_jax.ops import pairing, preference_games

pairing = compiled.module(pairing)

tournament = jax.jit(pairing.tournament)

REWARD = np.array([[1, 3, 0, 9], [2, 2, 2, 2], [0, 4, 5, -9]], np.float32)
PRESENT = np.array([[1, 1, 1, 0], [1, 1, 1, 1], [1, 0, 0, 0]], np.float32)


def as_lists(pairs):
  return [x.tolist() for x in pairs]


def test_best_worst_drops_ties_and_incomplete_pairs():
  chosen, rejected, margin, keep = as_lists(pairing.best_worst(REWARD, PRESENT))
  assert keep == [1, 0, 0]
  assert (chosen[0], rejected[0], margin) == (1, 2, [3, 0, 0])


def test_length_penalty_affects_the_selection_and_not_the_order():
  reward, present = jnp.array([[2.0, 3.0, 2.5]]), jnp.ones((1, 3))
  length = jnp.array([[1.0, 9.0, 2.0]])
  # Penalised: 1, -6, 0.5. The worst of these has the greater reward.
  pairs = as_lists(pairing.best_worst(reward, present, length, 1.0))
  assert pairs == [[1], [0], [1], [1]]
  with pytest.raises(ValueError, match=r"length_penalty=1\.0, no length_BK"):
    pairing.best_worst(reward, present, length_penalty=1.0)


def test_other_rules_order_by_reward():
  reward, present = jnp.array([[1.0, 3.0, 2.0], [4.0, 1.0, 2.0]]), jnp.ones((2, 3))
  assert as_lists(pairing.best_first(reward, present)) == [
    [1, 0],
    [0, 1],
    [2, 3],
    [1, 1],
  ]
  assert as_lists(pairing.best_second(reward, present)) == [
    [1, 0],
    [2, 2],
    [1, 2],
    [1, 1],
  ]
  assert as_lists(pairing.first_two(reward, present)) == [
    [1, 0],
    [0, 1],
    [2, 3],
    [1, 1],
  ]


@pytest.mark.parametrize("present", [[1.0, 0.0], [0.0, 1.0]])
def test_pair_with_an_absent_completion_is_dropped(present):
  reward, present = jnp.array([[1.0, 2.0]]), jnp.array([present])
  _, _, margin, keep = as_lists(pairing.first_two(reward, present))
  assert (margin, keep) == ([0], [0])
  assert not tournament(preference_games.from_rewards(reward), present).keep_BJ.any()


def test_tournament_of_8_by_reward_has_4_and_2_and_1_pairs():
  reward = jnp.array([[3.0, 1.0, 0.0, 5.0, 2.0, 7.0, 6.0, 4.0]])
  comparisons = tournament(preference_games.from_rewards(reward), jnp.ones((1, 8)))
  assert comparisons.winner_BJ[0].tolist() == [0, 3, 5, 6, 3, 5, 5]
  assert comparisons.loser_BJ[0].tolist() == [1, 2, 4, 7, 0, 6, 3]
  first = pairing.first_round(preference_games.from_rewards(reward), jnp.ones((1, 8)))
  assert first.winner_BJ[0].tolist() == [0, 3, 5, 6]


@pytest.mark.parametrize("K", [2, 5, 6])
def test_tournament_winner_is_the_best_and_all_others_lose_once(K):
  reward = jnp.asarray(np.random.default_rng(K).permutation(K)[None], jnp.float32)
  comparisons = tournament(preference_games.from_rewards(reward), jnp.ones((1, K)))
  best = int(reward[0].argmax())
  assert comparisons.winner_BJ[0, -1] == best
  assert sorted(comparisons.loser_BJ[0].tolist()) == sorted(set(range(K)) - {best})


def test_tournament_byes_absent_completions_and_ties():
  win = preference_games.from_rewards(jnp.array([[1.0, 1.0, 9.0, 9.0, 0.0]]))
  present = jnp.array([[1.0, 1.0, 1.0, 0.0, 1.0]])
  comparisons = tournament(win, present)
  # 0 ties 1 and wins; 3 is absent; 4 has two byes, and meets 2, which beats 0.
  assert comparisons.winner_BJ[0].tolist() == [0, 2, 2, 2]
  assert comparisons.loser_BJ[0].tolist() == [1, 3, 0, 4]
  assert comparisons.keep_BJ[0].tolist() == [1, 0, 1, 1]
