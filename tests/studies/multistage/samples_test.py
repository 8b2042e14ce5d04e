"""Samples of a policy repeat, and make pairs by the labels they are given."""

import shutil

import numpy as np
import pytest

from tests.studies import hash_reward
from tests.studies.tiny_task import TINY
from xpo_jax.studies import task as tasks
from xpo_jax.studies.multistage import samples
from xpo_jax.studies.multistage.samples import Sampled

PROMPTS = tasks.prompts(TINY)


def _noisy_pairs(policy, **changes):
  settings = {"max_completion_tokens": 6, "noise": 1e-6, "num_prompts": 8} | changes
  return samples.noisy_pairs(policy, PROMPTS, hash_reward.scorer(), **settings)


def test_prompts_are_different_and_of_their_portion():
  train = samples.texts_of(PROMPTS)
  assert len(set(train)) == len(train) > 8
  assert samples.texts_of(PROMPTS, 2, 5) == train[2:5]
  assert not set(train) & set(samples.texts_of(tasks.prompts(TINY, "test")))


def test_samples_depend_on_the_weights_and_the_seed_alone(tiny_policy, tmp_path):
  prompts = samples.texts_of(PROMPTS, 0, 4)
  copy = shutil.copytree(tiny_policy, tmp_path / "copy")

  def texts_of(policy, seed):
    settings = {"completions": 3, "max_completion_tokens": 6, "seed": seed}
    return samples.sample(str(policy), prompts, **settings).texts_BK

  first = texts_of(tiny_policy, 0)
  assert [len(texts) for texts in first] == [3] * 4
  # Another directory is not the same call: it is sampled anew.
  assert texts_of(copy, 0) == first != texts_of(copy, 1)


def test_ties_and_wordless_completions_make_no_pair():
  sampled = Sampled(("x",), (("good", "bad", " ", "fine"),))
  pairs = samples.to_pairs(
    sampled,
    np.array([[1.0, 0.0, 2.0, 1.0]]),
    np.array([[0, 2, 0, 3]]),
    np.array([[1, 1, 3, 1]]),
    np.array([[1, 1, 1, 0]]),
  )
  assert [(pair.chosen, pair.rejected) for pair in pairs] == [("good", "bad")]


def test_label_is_drawn_with_its_probability_and_equal_texts_make_no_pair():
  sampled = Sampled(("x", "y", "z"), (("a", "b"), ("c", "d"), ("e", "e")))
  rng = np.random.default_rng(0)
  pairs = samples.draw_labels(sampled, np.array([1.0, 0.0, 1.0]), rng)
  assert [(pair.chosen, pair.rejected) for pair in pairs] == [("a", "b"), ("d", "c")]


def test_labeller_of_little_noise_chooses_the_greater_reward(tiny_policy):
  pairs = _noisy_pairs(tiny_policy)
  score = hash_reward.scorer()
  chosen_N, rejected_N = (
    score([pair.prompt for pair in pairs], texts).value_N
    for texts in ([p.chosen for p in pairs], [p.rejected for p in pairs])
  )
  assert pairs and (chosen_N > rejected_N).all()
  assert _noisy_pairs(tiny_policy) == pairs


def test_labeller_of_much_noise_errs(tiny_policy):
  score = hash_reward.scorer()
  pairs = _noisy_pairs(tiny_policy, noise=1e6, num_prompts=64)
  right = [
    np.diff(score([pair.prompt] * 2, [pair.rejected, pair.chosen]).value_N)[0] > 0
    for pair in pairs
  ]
  # Of 64 labels at even odds: five standard deviations are 20.
  assert np.mean(right) == pytest.approx(0.5, abs=20 / 64)


def test_rounds_take_prompts_of_their_own(tiny_policy):
  first, second = (
    {pair.prompt for pair in _noisy_pairs(tiny_policy, first_prompt=n, num_prompts=4)}
    for n in (0, 4)
  )
  prompts = samples.texts_of(PROMPTS)
  assert first <= set(prompts[:4]) and second <= set(prompts[4:8])


def test_skewed_thumbs_differ_by_prompt(tiny_policy):
  settings = {"max_completion_tokens": 6, "num_prompts": 64, "seed": 1}
  reward = hash_reward.scorer()
  every = samples.skewed_thumbs(tiny_policy, PROMPTS, reward, skew=0.0, **settings)
  skewed = samples.skewed_thumbs(tiny_policy, PROMPTS, reward, skew=0.9, **settings)
  assert {row.uid for row in skewed} < {row.uid for row in every}

  median = np.median([len(row.prompt.split()) for row in every])

  def fraction_up(rows, long):
    ups = [row.desirable for row in rows if (len(row.prompt.split()) > median) == long]
    return np.mean(ups)

  assert fraction_up(skewed, True) > fraction_up(every, True) + 0.1
  assert fraction_up(skewed, False) < fraction_up(every, False) - 0.1
  with pytest.raises(ValueError, match="skewed_thumbs: skew is 1"):
    samples.skewed_thumbs(tiny_policy, PROMPTS, reward, skew=1, **settings)
