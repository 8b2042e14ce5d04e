"""Demonstrations to fine-tune on: a policy's best samples, texts that match."""

import re

import numpy as np

from xpo_jax.config.data import Data, Prompts
from xpo_jax.data import records
from xpo_jax.feedback.protocol import Scorer
from xpo_jax.ops import selection
from xpo_jax.studies.multistage import samples
from xpo_jax.train import loading


def best_of(
  policy: str,
  prompts: Prompts,
  reward: Scorer,
  *,
  completions: int,
  max_completion_tokens: int,
  num_prompts: int = 800,
  seed: int = 0,
) -> list[records.Demonstration]:
  """The sample of most reward of each prompt; one without a word makes none.

  Args:
    policy: directory of the policy that is sampled.
    prompts: what for.
    reward: ranks, `Scorer`; the first among ties is taken.
    completions: samples of each prompt.
    max_completion_tokens: longest completion.
    num_prompts: the first so many prompts.
    seed: of the samples.
  """
  sampled = samples.sample(
    policy,
    samples.texts_of(prompts, 0, num_prompts),
    completions=completions,
    max_completion_tokens=max_completion_tokens,
    seed=seed,
  )
  reward_BK = samples.rewards(reward, sampled)
  best_B = selection.best_of(reward_BK, np.ones_like(reward_BK))
  rows = [
    records.Demonstration(f"prompt {b}", prompt, sampled.texts_BK[b][k])
    for b, (prompt, k) in enumerate(zip(sampled.prompts, best_B, strict=True))
  ]
  return [row for row in rows if row.completion.strip()]


def every_sample(
  policy: str,
  prompts: Prompts,
  *,
  completions: int,
  max_completion_tokens: int,
  num_prompts: int = 800,
  seed: int = 0,
) -> list[records.Demonstration]:
  """All samples of a policy, unranked; one without a word makes none.

  Args:
    policy: directory of the policy that is sampled: a teacher.
    prompts: what for.
    completions: samples of each prompt.
    max_completion_tokens: longest completion.
    num_prompts: the first so many prompts.
    seed: of the samples.
  """
  sampled = samples.sample(
    policy,
    samples.texts_of(prompts, 0, num_prompts),
    completions=completions,
    max_completion_tokens=max_completion_tokens,
    seed=seed,
  )
  return [
    records.Demonstration(f"prompt {b} sample {k}", prompt, text)
    for b, prompt in enumerate(sampled.prompts)
    for k, text in enumerate(sampled.texts_BK[b])
    if text.strip()
  ]


def matching(
  source: Data, pattern: str, *, limit: int | None = None
) -> list[records.Record]:
  """The texts in whose completion a regular expression is found.

  Args:
    source: texts.
    pattern: of Python's `re`.
    limit: the first so many of them, or None.
  """
  search = re.compile(pattern).search
  rows = loading.load(source, source, {}).records
  return [row for row in rows if search(records.completions(row)[0])][:limit]
