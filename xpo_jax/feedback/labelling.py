"""Pairs of records as questions to a judge, and its verdicts as labels."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from xpo_jax.data.records import Demonstration, Pair, Text
from xpo_jax.feedback import judge, prompting
from xpo_jax.feedback.protocol import Preference, check_probabilities


class Questions(NamedTuple):
  """Pairs in an order that tells nothing, ready for a judge.

  Attributes:
    prompts: as plain text.
    first: one answer.
    second: the other.
    people: whether the first is the one that was chosen.
  """

  prompts: list[str]
  first: list[str]
  second: list[str]
  people: list[bool]


class Labelled(NamedTuple):
  """Pairs with a judge's labels.

  Attributes:
    pairs: those with a verdict; `probability` is the judge's, at least 1/2.
    abstained: pairs left out because the judge said nothing.
    draws: pairs left out because it said exactly 1/2.
  """

  pairs: list[Pair]
  abstained: int
  draws: int


def questions(rows: Sequence[Pair], seed: int = 0) -> Questions:
  """Pairs as questions; which answer comes first is drawn, by uid and seed.

  A judge that is shown the chosen answer first every time would agree with people by
  its position bias alone.

  Args:
    rows: pairs; conversations are written out as text.
    seed: of the order.
  """
  people = [prompting.draw(seed, row.uid) < 0.5 for row in rows]
  chosen = [as_text(row.chosen) for row in rows]
  rejected = [as_text(row.rejected) for row in rows]
  return Questions(
    [as_text(row.prompt) for row in rows],
    [c if kept else r for c, r, kept in zip(chosen, rejected, people, strict=True)],
    [r if kept else c for c, r, kept in zip(chosen, rejected, people, strict=True)],
    people,
  )


def as_text(text: Text) -> str:
  """A conversation as a judge reads it: who says what, a turn a paragraph."""
  if isinstance(text, str):
    return text
  if len(text) == 1:
    return text[0].content
  return "\n\n".join(f"{turn.role}: {turn.content}" for turn in text)


def label(
  judge: Preference, rows: Sequence[Pair], *, hard: bool = False, seed: int = 0
) -> Labelled:
  """The same answers with the judge's labels in place of the old ones: distilled RLAIF.

  Paper: RLAIF, Lee et al. 2023, arXiv:2309.00267: reward models are trained on the soft
  labels.

  Args:
    judge: who labels.
    rows: pairs; their own labels are not looked at.
    hard: leave the probabilities out.
    seed: of the order in which answers are shown.
  """
  asked = questions(rows, seed)
  answer = judge(asked.prompts, asked.first, asked.second)
  p_N = check_probabilities(answer, len(rows)).value_N
  p_N = np.where(asked.people, p_N, 1 - p_N)  # of the answer in `chosen`
  pairs = []
  for row, p in zip(rows, p_N.tolist(), strict=True):
    if p > 0.5 or p < 0.5:  # neither a draw nor NaN
      pairs.append(_labelled(row, p, hard))
  abstained = int(np.isnan(p_N).sum())
  return Labelled(pairs, abstained, len(rows) - len(pairs) - abstained)


def ratings(
  prompts: Sequence[str],
  completions: Sequence[str],
  levels_N: Sequence[int],
  *,
  prompt: str = "rating",
  levels: int = 5,
) -> list[Demonstration]:
  """Answers and their ratings as demonstrations of a judge: seed data of a model that
  is to rate itself.

  Paper: the evaluation part of Self-Rewarding Language Models' seed data, Yuan et al.
  2024, arXiv:2401.10020. As many of each rating as of the rarest, which the paper
  approaches too: a judge of mostly fours learns to say four.

  Args:
    prompts: N texts.
    completions: an answer to each.
    levels_N: its rating, 1 to `levels`.
    prompt: a prompt file, see `judge.rating`. The demonstration is plain text: for a
      tokenizer without a chat template.
    levels: the highest rating.
  """
  of = [
    [n for n, given in enumerate(levels_N) if given == 1 + i] for i in range(levels)
  ]
  fewest = min(filter(None, map(len, of)), default=0)
  kept = sorted(n for rated in of for n in rated[:fewest])
  made = []
  for n in kept:
    (turn,) = judge.rating_question(
      prompts[n], completions[n], prompt=prompt, levels=levels
    )
    question = "".join(piece.text for piece in turn.pieces)
    made.append(Demonstration(f"rating {n}", question, f" {levels_N[n]}"))
  return made


def _labelled(row: Pair, p: float, hard: bool) -> Pair:
  better, worse = (row.chosen, row.rejected) if p > 0.5 else (row.rejected, row.chosen)
  return Pair(row.uid, row.prompt, better, worse, None if hard else max(p, 1 - p))
