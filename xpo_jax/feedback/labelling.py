"""Labels pairs of completions with a judge, for distilled RLAIF."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from xpo_jax.data.records import Demonstration, Pair, Text
from xpo_jax.feedback import judge, prompting
from xpo_jax.feedback.protocol import Preference, check_probabilities


class PairQueries(NamedTuple):
  """Pairs in a random order, as a judge's input.

  Attributes:
    prompts: as plain text.
    first: the completion shown first.
    second: the completion shown second.
    chosen_first: whether the first completion is the chosen one.
  """

  prompts: list[str]
  first: list[str]
  second: list[str]
  chosen_first: list[bool]


class Labelled(NamedTuple):
  """Pairs with a judge's labels.

  Attributes:
    pairs: the labelled pairs; `probability` is the judge's, at least 1/2.
    abstained: number of pairs on which the judge abstained; they are left out.
    ties: number of pairs of probability 1/2; they are left out.
  """

  pairs: list[Pair]
  abstained: int
  ties: int


def make_queries(pairs: Sequence[Pair], seed: int = 0) -> PairQueries:
  """Converts pairs to a judge's input, in an order sampled by uid and seed.

  With the chosen completion always first, a judge would agree with the labels by its
  position bias alone.

  Args:
    pairs: the pairs; conversations are rendered as text.
    seed: of the order.
  """
  chosen_first = [prompting.hash_uniform(seed, pair.uid) < 0.5 for pair in pairs]
  texts = [(as_text(pair.chosen), as_text(pair.rejected)) for pair in pairs]
  ordered = [
    (chosen, rejected) if in_order else (rejected, chosen)
    for (chosen, rejected), in_order in zip(texts, chosen_first, strict=True)
  ]
  return PairQueries(
    [as_text(pair.prompt) for pair in pairs],
    [first for first, _ in ordered],
    [second for _, second in ordered],
    chosen_first,
  )


def as_text(text: Text) -> str:
  """Renders a conversation as text, one paragraph per turn with its role."""
  if isinstance(text, str):
    return text
  if len(text) == 1:
    return text[0].content
  return "\n\n".join(f"{turn.role}: {turn.content}" for turn in text)


def label_pairs(
  judge: Preference, pairs: Sequence[Pair], *, hard: bool = False, seed: int = 0
) -> Labelled:
  """Replaces the labels of pairs with a judge's: distilled RLAIF.

  Paper: RLAIF, Lee et al. 2023, arXiv:2309.00267: reward models are trained on the soft
  labels.

  Args:
    judge: the judge.
    pairs: the pairs; their own labels are ignored.
    hard: omit the probabilities.
    seed: of the order of the completions.
  """
  queries = make_queries(pairs, seed)
  scores = judge(queries.prompts, queries.first, queries.second)
  p_N = check_probabilities(scores, len(pairs)).value_N
  p_N = np.where(queries.chosen_first, p_N, 1 - p_N)  # P(`chosen` beats `rejected`)
  labelled = []
  for pair, p in zip(pairs, p_N.tolist(), strict=True):
    if p > 0.5 or p < 0.5:  # neither a tie nor NaN
      labelled.append(_relabel(pair, p, hard))
  abstained = int(np.isnan(p_N).sum())
  return Labelled(labelled, abstained, len(pairs) - len(labelled) - abstained)


def rating_demonstrations(
  prompts: Sequence[str],
  completions: Sequence[str],
  levels_N: Sequence[int],
  *,
  prompt: str = "rating",
  levels: int = 5,
) -> list[Demonstration]:
  """Converts rated completions to demonstrations of rating, to train a self-judge on.

  Paper: the evaluation part of Self-Rewarding Language Models' seed data, Yuan et al.
  2024, arXiv:2401.10020. Every rating is subsampled to the count of the rarest, which
  the paper approximates too: a judge trained on an unbalanced set predicts its most
  frequent rating.

  Args:
    prompts: N texts.
    completions: one per prompt.
    levels_N: the ratings, 1 to `levels`.
    prompt: a prompt file, see `judge.rating`. The demonstrations are plain text, for a
      tokenizer without a chat template.
    levels: the highest rating.
  """
  by_level = [
    [n for n, level in enumerate(levels_N) if level == 1 + i] for i in range(levels)
  ]
  fewest = min(filter(None, map(len, by_level)), default=0)
  balanced = sorted(n for members in by_level for n in members[:fewest])
  demonstrations = []
  for n in balanced:
    (turn,) = judge.rating_conversation(
      prompts[n], completions[n], prompt=prompt, levels=levels
    )
    query = "".join(piece.text for piece in turn.pieces)
    demonstrations.append(Demonstration(f"rating {n}", query, f" {levels_N[n]}"))
  return demonstrations


def _relabel(pair: Pair, p: float, hard: bool) -> Pair:
  chosen, rejected = pair.chosen, pair.rejected
  if p < 0.5:
    chosen, rejected = rejected, chosen
  return Pair(pair.uid, pair.prompt, chosen, rejected, None if hard else max(p, 1 - p))
