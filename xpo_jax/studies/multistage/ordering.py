"""Preference pairs in sources of equal size, ordered by difficulty (sDPO)."""

import itertools
from typing import NamedTuple

import numpy as np

from xpo_jax.config.data import Prompts
from xpo_jax.data import records, tokenise
from xpo_jax.evaluation import sequence_logps
from xpo_jax.feedback import protocol
from xpo_jax.feedback.protocol import Scorer
from xpo_jax.models import hf_checkpoint, transformer
from xpo_jax.ops import selection
from xpo_jax.studies.multistage import preference_pairs


class Sources(NamedTuple):
  """Parts of preference data.

  Attributes:
    pairs: of each source, the easiest source first.
    accuracy: the fraction of each source's pairs whose chosen completion has the
      greater log-prob under the policy.
  """

  pairs: tuple[tuple[records.Pair, ...], ...]
  accuracy: tuple[float, ...]


def by_margin(
  policy: str,
  prompts: Prompts,
  reward: Scorer,
  *,
  num_sources: int,
  max_completion_tokens: int,
  num_prompts: int = 800,
  seed: int = 0,
) -> Sources:
  """Pairs of two samples, those of large margins one source, of small ones another.

  Args:
    policy: directory of the policy that is sampled, and whose accuracy orders the
      sources (`selection.easiest_first`).
    prompts: what for.
    reward: chooses, `Scorer`; its difference is the margin.
    num_sources: how many.
    max_completion_tokens: longest completion.
    num_prompts: the first so many prompts.
    seed: of the samples.
  """
  pairs = preference_pairs.ranked(
    policy,
    prompts,
    reward,
    max_completion_tokens,
    candidates=2,
    kept=2,
    rejection_beta=None,
    num_prompts=num_prompts,
    seed=seed,
  )
  reward_BK = protocol.score_groups(
    reward,
    [pair.prompt for pair in pairs],
    [(pair.chosen, pair.rejected) for pair in pairs],
  )
  order_B = np.argsort(-(reward_BK[:, 0] - reward_BK[:, 1]), kind="stable")
  cuts = np.linspace(0, len(pairs), num_sources + 1).astype(int)
  sources = [
    tuple(pairs[b] for b in order_B[start:stop])
    for start, stop in itertools.pairwise(cuts)
  ]
  if not all(sources):
    raise ValueError(
      f"{len(pairs)} pairs of {num_prompts} prompts do not fill {num_sources} sources; "
      "take more prompts"
    )
  accuracy = np.array([_accuracy(policy, source) for source in sources])
  easiest = np.asarray(selection.easiest_first(accuracy))
  return Sources(
    tuple(sources[i] for i in easiest), tuple(float(accuracy[i]) for i in easiest)
  )


def stage(
  policy: str,
  prompts: Prompts,
  reward: Scorer,
  *,
  number: int | None,
  hardest_first: bool = False,
  num_sources: int,
  max_completion_tokens: int,
  num_prompts: int = 800,
  seed: int = 0,
) -> list[records.Pair]:
  """The pairs of one stage of sDPO (`selection.sdpo_stage`).

  Args:
    policy, prompts, reward, num_sources, max_completion_tokens, num_prompts, seed: see
      `by_margin`.
    number: the stage, from 1; None: the pairs of all stages.
    hardest_first: the reverse order of the sources.
  """
  sources = by_margin(
    policy,
    prompts,
    reward,
    num_sources=num_sources,
    max_completion_tokens=max_completion_tokens,
    num_prompts=num_prompts,
    seed=seed,
  ).pairs
  if hardest_first:
    sources = sources[::-1]
  pairs = [pair for source in sources for pair in source]
  if number is None:
    return pairs
  return pairs[selection.sdpo_stage(number, [len(x) for x in sources]).rows]


def _accuracy(policy: str, pairs: tuple[records.Pair, ...]) -> float:
  checkpoint = hf_checkpoint.load(policy, remat="none")
  examples = tokenise.tokenise_valid(pairs, checkpoint.tokenizer).examples
  logp_BK = sequence_logps.score_pairs(
    transformer.model(checkpoint.config),
    checkpoint.params,
    checkpoint.params,
    examples,
  )["logp_BK"]
  return float(np.mean(logp_BK[:, 0] > logp_BK[:, 1]))
