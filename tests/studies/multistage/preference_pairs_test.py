"""Rankings make the pairs of their paper among a policy's samples."""

import numpy as np
import pytest

from tests.studies import hash_reward
from tests.studies.tiny_task import TINY
from xpo_jax.studies import task as tasks
from xpo_jax.studies.multistage import preference_pairs, samples

PROMPTS = tasks.prompts(TINY)
SCORE = hash_reward.scorer()


def _ranked(policy, **changes):
  settings = {"candidates": 4, "kept": 4, "rejection_beta": None, "num_prompts": 8}
  return preference_pairs.ranked(policy, PROMPTS, SCORE, 6, **settings | changes)


def _rewards(policy):
  sampled = samples.sample(
    policy,
    samples.texts_of(PROMPTS, 0, 8),
    completions=4,
    max_completion_tokens=6,
    seed=0,
  )
  return sampled, samples.rewards(SCORE, sampled)


@pytest.mark.parametrize(
  ("ranking", "most"), [("first_round", 2), ("tournament", 3), ("best_worst", 1)]
)
def test_better_sample_is_chosen_in_as_many_pairs_as_the_ranking_makes(
  ranking, most, tiny_policy
):
  pairs = _ranked(tiny_policy, ranking=ranking)
  assert (most - 1) * 8 < len(pairs) <= most * 8  # ties make none
  for pair in pairs:
    better, worse = SCORE([pair.prompt] * 2, [pair.chosen, pair.rejected]).value_N
    assert better > worse


def test_best_sample_wins_the_tournament_and_meets_the_worst(tiny_policy):
  sampled, reward_BK = _rewards(tiny_policy)
  extremes = {pair.prompt: pair for pair in _ranked(tiny_policy, ranking="best_worst")}
  champions = {}
  for pair in _ranked(tiny_policy, ranking="tournament"):
    champions[pair.prompt] = pair.chosen  # of the last duel
  for prompt, texts, reward_K in zip(*sampled, reward_BK, strict=True):
    assert extremes[prompt].chosen == texts[np.argmax(reward_K)] == champions[prompt]
    assert extremes[prompt].rejected == texts[np.argmin(reward_K)]


def test_rejection_at_zero_temperature_keeps_the_best_two(tiny_policy):
  sampled, reward_BK = _rewards(tiny_policy)
  pairs = _ranked(tiny_policy, kept=2, rejection_beta=0.0)
  chosen = {pair.prompt: (pair.chosen, pair.rejected) for pair in pairs}
  for prompt, texts, reward_K in zip(*sampled, reward_BK, strict=True):
    best = tuple(texts[k] for k in np.argsort(-reward_K)[:2])
    assert chosen.get(prompt, best) == best
  assert pairs != _ranked(tiny_policy, kept=2)  # the first two
