"""Pairs of a policy's samples with labels that a reward model is fitted to."""

from typing import Literal

import numpy as np
from scipy import special

from xpo_jax.config.data import Prompts
from xpo_jax.data import records
from xpo_jax.feedback.protocol import Preference, Scorer
from xpo_jax.studies.multistage import samples


def by_preference(
  policy: str,
  prompts: Prompts,
  preference: Preference,
  *,
  max_completion_tokens: int,
  num_prompts: int = 800,
  seed: int = 0,
) -> list[records.Pair]:
  """Two samples of each prompt, labelled with a preference's probability.

  Args:
    policy: directory of the policy that writes.
    prompts: what for.
    preference: labels, `Preference`.
    max_completion_tokens: longest completion.
    num_prompts: the first so many prompts.
    seed: of samples and labels.
  """
  sampled = samples.two_of_each(
    policy,
    prompts,
    max_completion_tokens=max_completion_tokens,
    num_prompts=num_prompts,
    seed=seed,
  )
  first, second = zip(*sampled.texts_BK, strict=True)
  p_B = preference(sampled.prompts, first, second).value_N
  return samples.draw_labels(sampled, p_B, np.random.default_rng((seed, 6)))


def misspecified(
  policy: str,
  prompts: Prompts,
  reward: Scorer,
  half: Literal["train", "test"],
  *,
  max_completion_tokens: int,
  num_pairs: int,
  temperature: float,
  length_logit: float = 0.0,
  num_prompts: int = 800,
  seed: int = 0,
) -> list[records.Pair]:
  """Two samples of each prompt, labelled with a Bradley-Terry model that may prefer
  length.

  Its logit of a completion is reward / temperature + length_logit * words.

  Args:
    policy: directory of the policy that writes.
    prompts: what for.
    reward: the true reward, `Scorer`.
    half: which of the two disjoint halves of the pairs.
    max_completion_tokens: longest completion.
    num_pairs: at most so many, the first of the half.
    temperature: reward that is one logit; > 0.
    length_logit: logits for each word.
    num_prompts: the first so many prompts.
    seed: of samples and labels.
  """
  sampled = samples.two_of_each(
    policy,
    prompts,
    max_completion_tokens=max_completion_tokens,
    num_prompts=num_prompts,
    seed=seed,
  )
  words_BK = np.array([[len(text.split()) for text in row] for row in sampled.texts_BK])
  reward_BK = samples.rewards(reward, sampled)
  logit_BK = reward_BK / temperature + length_logit * words_BK
  p_B = special.expit(logit_BK[:, 0] - logit_BK[:, 1])
  pairs = samples.draw_labels(sampled, p_B, np.random.default_rng((seed, 7)))
  first = {"train": 0, "test": 1}[half]
  return pairs[first::2][:num_pairs]
