"""A labeller ranks a policy's samples by their reward and by noise."""

import numpy as np
import pytest
from scipy import stats

from tests.studies import hash_reward
from tests.studies.tiny_task import TINY
from xpo_jax.studies import task as tasks
from xpo_jax.studies.multistage import ranked_lists, samples
from xpo_jax.studies.multistage.samples import Sampled

PROMPTS = tasks.prompts(TINY)
SCORE = hash_reward.scorer()
SIZES = {"completions": 4, "max_completion_tokens": 6, "num_prompts": 8}


def _ranked(policy, **changes):
  return ranked_lists.noisy(policy, PROMPTS, SCORE, **SIZES | {"noise": 1e-6} | changes)


def _fixed(monkeypatch, prompts, texts_BK):
  """The samples of any policy."""
  sampled = Sampled(tuple(prompts), texts_BK)
  monkeypatch.setattr(samples, "sample", lambda policy, prompts, **how: sampled)


def test_little_noise_ranks_the_policys_samples_by_reward(tiny_policy):
  prompts = samples.texts_of(PROMPTS, 0, 8)
  settings = {"completions": 4, "max_completion_tokens": 6, "seed": 0}
  sampled = samples.sample(tiny_policy, prompts, **settings)
  texts = dict(zip(sampled.prompts, sampled.texts_BK, strict=True))
  rows = _ranked(tiny_policy)
  assert rows and _ranked(tiny_policy) == rows
  for row in rows:
    assert set(row.completions) == {text for text in texts[row.prompt] if text.strip()}
    reward_K = SCORE([row.prompt] * len(row.completions), row.completions).value_N
    np.testing.assert_array_equal(np.argsort(row.rewards), np.argsort(reward_K))


def test_equal_and_wordless_texts_leave_lists_of_two_at_least(monkeypatch):
  texts_BK = (("a", "b", "a", " "), ("c", "c", "c", "c"), (" ", "", "d", " "))
  _fixed(monkeypatch, "xyz", texts_BK)
  (row,) = _ranked("nobody")
  assert (row.prompt, sorted(row.completions)) == ("x", ["a", "b"])


@pytest.mark.parametrize("noise", [0.2, 1e6])
def test_each_pair_of_a_list_is_bradley_terry(monkeypatch, noise):
  prompts = [str(n) for n in range(2000)]
  _fixed(monkeypatch, prompts, (("a", "b", "c"),) * len(prompts))
  right, p = [], []
  for row in _ranked("nobody", noise=noise):
    reward_K = SCORE([row.prompt] * 3, row.completions).value_N.astype(np.float64)
    right.append((row.rewards[0] > row.rewards[1]) == (reward_K[0] > reward_K[1]))
    p.append(stats.logistic.cdf(abs(reward_K[0] - reward_K[1]) / noise))
  # Five standard deviations of the fraction are at most 2.5 / sqrt(2000).
  assert np.mean(right) == pytest.approx(np.mean(p), abs=2.5 / 2000**0.5)
