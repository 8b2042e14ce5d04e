"""Demonstrations are a policy's best samples, or the texts that match."""

import re

import pytest

from tests.studies import hash_reward
from tests.studies.tiny_task import TINY
from xpo_jax.config.data import Data
from xpo_jax.data import synthetic_reviews
from xpo_jax.studies import task as tasks
from xpo_jax.studies.multistage import demonstrations, samples

TEXTS = Data(TINY.path, portion="train")


def test_best_sample_of_each_prompt_is_taken(tiny_policy):
  prompts, score = tasks.prompts(TINY), hash_reward.scorer()
  rows = demonstrations.best_of(
    tiny_policy,
    prompts,
    score,
    completions=3,
    max_completion_tokens=6,
    num_prompts=8,
    seed=1,
  )
  texts = samples.texts_of(prompts, 0, 8)
  sampled = samples.sample(
    tiny_policy, texts, completions=3, max_completion_tokens=6, seed=1
  )
  every = dict(zip(texts, sampled.texts_BK, strict=True))
  assert len({row.prompt for row in rows}) == len(rows) > 1
  for row in rows:
    reward_K = score([row.prompt] * 3, every[row.prompt]).value_N
    assert row.completion == every[row.prompt][reward_K.argmax()]
    assert row.completion.strip()


def test_texts_that_match_are_taken_in_their_order():
  rows = demonstrations.matching(TEXTS, "[aeiou]{2}")
  every = [completion for _, completion in synthetic_reviews.generate(300, seed=0)]
  numbers = [int(row.uid.split()[1]) for row in rows]
  assert numbers == sorted(numbers) and 0 < len(rows) < len(every)
  assert all(row.completion == every[n] for row, n in zip(rows, numbers, strict=True))
  assert demonstrations.matching(TEXTS, "[aeiou]{2}", limit=2) == rows[:2]
  assert demonstrations.matching(TEXTS, "no such text") == []


def test_pattern_that_is_none_is_refused():
  with pytest.raises(re.error, match="unterminated character set"):
    demonstrations.matching(TEXTS, "[")
