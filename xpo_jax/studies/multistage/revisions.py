"""Critique-revision demonstrations: the data of Constitutional AI's first phase."""

import re
from collections.abc import Sequence

import numpy as np

from xpo_jax.config.data import Prompts
from xpo_jax.data import records
from xpo_jax.feedback import constitution
from xpo_jax.feedback.constitution import Critic
from xpo_jax.feedback.protocol import Scorer
from xpo_jax.studies.multistage import samples
from xpo_jax.studies.multistage.samples import Sampled


def demonstrations(
  policy: str,
  prompts: Prompts,
  critic: Critic,
  *,
  max_completion_tokens: int,
  rounds: int = 4,
  num_prompts: int = 800,
  seed: int = 0,
) -> list[records.Demonstration]:
  """Every revision of a policy's samples as a demonstration.

  A round without a revision, or with an empty one, makes no demonstration.

  Args:
    policy: directory of the policy that is sampled.
    prompts: what for.
    critic: criticises and revises.
    max_completion_tokens: longest completion.
    rounds: of critique and revision. Paper: 4 (Bai et al. 2022, arXiv:2212.08073).
    num_prompts: the first so many prompts.
    seed: of the samples.
  """
  sampled = originals(
    policy,
    prompts,
    max_completion_tokens=max_completion_tokens,
    num_prompts=num_prompts,
    seed=seed,
  )
  texts = [completions[0] for completions in sampled.texts_BK]
  revised = constitution.revise(critic, sampled.prompts, texts, rounds=rounds)
  return [
    records.Demonstration(f"prompt {b} revision {number}", prompt, text)
    for number, revision in enumerate(revised)
    for b, (prompt, text) in enumerate(zip(sampled.prompts, revision.text, strict=True))
    if text is not None and text.strip()
  ]


def originals(
  policy: str,
  prompts: Prompts,
  *,
  max_completion_tokens: int,
  num_prompts: int = 800,
  seed: int = 0,
) -> Sampled:
  """The samples that `demonstrations` revises, one of each prompt."""
  return samples.sample(
    policy,
    samples.texts_of(prompts, 0, num_prompts),
    completions=1,
    max_completion_tokens=max_completion_tokens,
    seed=seed,
  )


def score_by_round(
  scorer: Scorer, sampled: Sampled, revised: Sequence[records.Demonstration]
) -> list[float]:
  """A measure of the texts before the first round and after each, mean over prompts.

  Args:
    scorer: measures; a text that made no demonstration counts 0.
    sampled: of `originals`.
    revised: of `demonstrations`.
  """
  means = [float(samples.rewards(scorer, sampled).mean())]
  number_N = np.array([int(re.search(r"\d+$", row.uid)[0]) for row in revised])
  value_N = scorer(
    [row.prompt for row in revised], [row.completion for row in revised]
  ).value_N
  for number in range(number_N.max() + 1):
    means.append(float(value_N[number_N == number].sum()) / len(sampled.prompts))
  return means
