"""Pairs of a policy's samples, labelled by the true reward or by a judge.

Functions for `Data(Configured(...))`. The pairs that a judge labels are an argument:
`Configured(judged, pairs=Configured(better_of_two, ...), judge=Configured(...))`.
"""

from collections.abc import Sequence

import numpy as np

from xpo_jax.config.data import Prompts
from xpo_jax.data import records
from xpo_jax.feedback import labelling
from xpo_jax.feedback.protocol import Preference, Scorer
from xpo_jax.ops import pairing
from xpo_jax.studies.multistage import samples


def better_of_two(
  policy: str,
  prompts: Prompts,
  reward: Scorer,
  *,
  max_completion_tokens: int,
  temperature: float = 1.0,
  num_prompts: int = 800,
  seed: int = 0,
) -> list[records.Pair]:
  """Two samples of each prompt, the one of the greater reward chosen; ties are left
  out.

  Args:
    policy: directory of the policy that is sampled.
    prompts: what for.
    reward: labels, `Scorer`.
    max_completion_tokens: longest completion.
    temperature: of the samples.
    num_prompts: the first so many prompts.
    seed: of the samples.
  """
  sampled = samples.two_of_each(
    policy,
    prompts,
    max_completion_tokens=max_completion_tokens,
    num_prompts=num_prompts,
    seed=seed,
    temperature=temperature,
  )
  reward_BK = samples.rewards(reward, sampled)
  pairs = pairing.first_two(reward_BK, np.ones_like(reward_BK))
  columns = (pairs.chosen_B, pairs.rejected_B, pairs.keep_B)
  return samples.to_pairs(
    sampled, reward_BK, *(np.asarray(x_B)[:, None] for x_B in columns)
  )


def two_samples(
  policy: str,
  prompts: Prompts,
  *,
  max_completion_tokens: int,
  temperature: float = 1.0,
  num_prompts: int = 800,
  seed: int = 0,
) -> list[records.Pair]:
  """Two different samples of each prompt without a label: `chosen` is the first.

  For arguments see `better_of_two`.
  """
  sampled = samples.two_of_each(
    policy,
    prompts,
    max_completion_tokens=max_completion_tokens,
    num_prompts=num_prompts,
    seed=seed,
    temperature=temperature,
  )
  return [
    records.Pair(f"prompt {b}", prompt, first, second)
    for b, (prompt, (first, second)) in enumerate(
      zip(sampled.prompts, sampled.texts_BK, strict=True)
    )
    if first != second and first.strip() and second.strip()
  ]


def judged(
  pairs: Sequence[records.Pair], judge: Preference, *, seed: int = 0
) -> list[records.Pair]:
  """The pairs with a judge's soft labels; where it abstains or says 1/2 they are left
  out.

  Args:
    pairs: whose own labels the judge does not see.
    judge: labels, `Preference`.
    seed: of the order in which completions are shown.
  """
  return labelling.label_pairs(judge, pairs, seed=seed).pairs


def label_accuracy(
  pairs: Sequence[records.Pair], labelled: Sequence[records.Pair]
) -> tuple[float, float]:
  """The fraction of pairs that a judge labelled, and the fraction correct of these.

  Args:
    pairs: with true labels.
    labelled: of these, by the judge.
  """
  chosen = {pair.uid: pair.chosen for pair in pairs}
  correct = [pair.chosen == chosen[pair.uid] for pair in labelled]
  return len(labelled) / len(pairs), float(np.mean(correct))
