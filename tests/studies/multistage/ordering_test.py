"""Sources of pairs are cut by margin and ordered by the policy's accuracy."""

import numpy as np
import pytest

from tests.studies import hash_reward
from tests.studies.tiny_task import TINY
from xpo_jax.feedback.protocol import Scores
from xpo_jax.studies import task as tasks
from xpo_jax.studies.multistage import ordering, preference_pairs

PROMPTS = tasks.prompts(TINY)
SCORE = hash_reward.scorer()
SIZES = {"num_sources": 2, "max_completion_tokens": 6, "num_prompts": 12}


def _stage(policy, number, **changes):
  return ordering.stage(policy, PROMPTS, SCORE, number=number, **SIZES | changes)


def _margin(pair):
  better, worse = SCORE([pair.prompt] * 2, [pair.chosen, pair.rejected]).value_N
  return better - worse


def test_sources_share_all_pairs_by_margin(tiny_policy):
  sources = ordering.by_margin(tiny_policy, PROMPTS, SCORE, **SIZES)
  every = preference_pairs.ranked(
    tiny_policy,
    PROMPTS,
    SCORE,
    6,
    candidates=2,
    kept=2,
    rejection_beta=None,
    num_prompts=12,
  )
  pairs = [pair for source in sources.pairs for pair in source]
  assert sorted(pair.uid for pair in pairs) == sorted(pair.uid for pair in every)
  sizes = [len(source) for source in sources.pairs]
  assert max(sizes) - min(sizes) <= 1
  first, second = ([_margin(pair) for pair in source] for source in sources.pairs)
  assert min(first) >= max(second) or min(second) >= max(first)


def test_source_of_greater_accuracy_comes_first(tiny_policy, monkeypatch):
  accuracy = {}

  def count(policy, pairs):
    del policy
    accuracy[pairs] = float(np.mean([_margin(pair) for pair in pairs]) < 0.4)
    return accuracy[pairs]

  monkeypatch.setattr(ordering, "_accuracy", count)
  sources = ordering.by_margin(tiny_policy, PROMPTS, SCORE, **SIZES)
  assert [accuracy[pairs] for pairs in sources.pairs] == list(sources.accuracy)
  assert list(sources.accuracy) == sorted(sources.accuracy, reverse=True)


def test_accuracy_is_the_fraction_of_pairs_that_the_policy_ranks_correctly(tiny_policy):
  def opposite(prompts, completions):
    return Scores(-SCORE(prompts, completions).value_N)

  one = {**SIZES, "num_sources": 1}
  (pairs,), (accuracy,) = ordering.by_margin(tiny_policy, PROMPTS, SCORE, **one)
  (turned,), (rest,) = ordering.by_margin(tiny_policy, PROMPTS, opposite, **one)
  assert {(p.prompt, p.rejected, p.chosen) for p in turned} == {
    (p.prompt, p.chosen, p.rejected) for p in pairs
  }
  assert 0 <= accuracy <= 1
  assert accuracy * len(pairs) == pytest.approx(round(accuracy * len(pairs)))
  assert rest == pytest.approx(1 - accuracy)


def test_stages_take_the_sources_in_order(tiny_policy):
  first, second = (_stage(tiny_policy, number) for number in (1, 2))
  assert _stage(tiny_policy, None) == first + second
  assert _stage(tiny_policy, 1, hardest_first=True) == second
  assert _stage(tiny_policy, 2, hardest_first=True) == first


def test_fewer_pairs_than_sources_are_refused(tiny_policy):
  with pytest.raises(ValueError, match="do not fill 4 sources"):
    _stage(tiny_policy, 1, num_sources=4, num_prompts=3)
