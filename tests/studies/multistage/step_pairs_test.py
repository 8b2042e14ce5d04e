"""Pairs of steps: the same text before, the best next words against the worst."""

from tests.studies import hash_reward
from tests.studies.tiny_task import TINY
from xpo_jax.studies import task as tasks
from xpo_jax.studies.multistage import samples, step_pairs


def test_step_is_whole_words_with_their_spaces():
  assert step_pairs.step(" not  bad at all.", 2) == " not  bad"
  assert step_pairs.step(" fine.", 2) == " fine."
  assert step_pairs.step("  ", 2) == ""


def test_steps_follow_a_sampled_first_step(tiny_policy):
  prompts, score = tasks.prompts(TINY), hash_reward.scorer()
  settings = {"max_completion_tokens": 6, "seed": 1}
  pairs = step_pairs.best_and_worst(
    tiny_policy, prompts, score, words=1, candidates=3, num_prompts=16, **settings
  )
  texts = samples.texts_of(prompts, 0, 16)
  first = samples.sample(tiny_policy, texts, completions=1, **settings)
  longer = [
    text + step_pairs.step(own, 1)
    for text, (own,) in zip(texts, first.texts_BK, strict=True)
    if len(own.split()) > 1
  ]
  assert pairs and {pair.prompt for pair in pairs} <= set(longer)
  for pair in pairs:
    assert len(pair.chosen.split()) == len(pair.rejected.split()) == 1
    chosen, rejected = score([pair.prompt] * 2, [pair.chosen, pair.rejected]).value_N
    assert chosen > rejected
