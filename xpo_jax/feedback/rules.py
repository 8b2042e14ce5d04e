"""Feedback by rule: no model, no doubt."""

import re
from collections.abc import Callable, Mapping, Sequence

import numpy as np
from scipy import special

from xpo_jax.data import synthetic_reviews
from xpo_jax.feedback.protocol import Preference, Scorer, Scores, check_scores


def synthetic_reward() -> Scorer:
  """The embedded world's true reward: VADER's compound of prompt and completion."""
  return _of_pair(
    lambda prompts, texts: synthetic_reviews.true_reward(
      [prompt + text for prompt, text in zip(prompts, texts, strict=True)]
    )
  )


def sentiment() -> Scorer:
  """VADER's compound of the completion alone, in [-1, 1].

  A lexicon: it counts words and knows no irony. Hutto and Gilbert 2014, through the
  `vaderSentiment` package.
  """
  return _of_text(synthetic_reviews.true_reward)


def matches(pattern: str, *, whole: bool = False) -> Scorer:
  """1 where a regular expression is found in the completion, else 0.

  Args:
    pattern: of Python's `re`.
    whole: it must match the whole completion, blanks at its ends aside.

  Raises:
    ValueError: not a regular expression.
  """
  found = _compiled(pattern)
  if whole:
    return _of_text(
      lambda texts: [bool(found.fullmatch(text.strip())) for text in texts]
    )
  return _of_text(lambda texts: [bool(found.search(text)) for text in texts])


def exact(answers: Mapping[str, str], *, extract: str | None = None) -> Scorer:
  """1 where the completion gives the prompt's known answer, else 0.

  Compared without case and blanks at the ends.

  Args:
    answers: prompt -> its answer; a prompt without one is an abstention.
    extract: a regular expression whose first group (or all of it) is the answer given,
      the last one found counts ("#### (.*)"); None: the whole completion.

  Raises:
    ValueError: not a regular expression, or no answers.
  """
  if not answers:
    raise ValueError("exact: no answers to compare with")
  pattern = None if extract is None else _compiled(extract)

  def given(text: str) -> str | None:
    if pattern is None:
      return text
    found = list(pattern.finditer(text))
    return found[-1][1 if pattern.groups else 0] if found else None

  def right(prompt: str, text: str) -> float:
    if prompt not in answers:
      return np.nan
    said = given(text)
    return said is not None and _plain(said) == _plain(answers[prompt])

  return _of_pair(lambda prompts, texts: list(map(right, prompts, texts)))


def length(*, target: int | None = None) -> Scorer:
  """Words of the completion; or, with a target, minus the distance from it."""
  if target is None:
    return _of_text(lambda texts: [len(text.split()) for text in texts])
  return _of_text(lambda texts: [-abs(len(text.split()) - target) for text in texts])


def bradley_terry(scorer: Scorer, temperature: float = 1.0) -> Preference:
  """Any scorer as a preference: sigmoid((r_first - r_second) / temperature).

  Args:
    scorer: a function of prompt and completion.
    temperature: in units of its score; 0: the better one wins for certain, equal ones
      draw.

  Returns:
    Preference; abstains where the scorer does on either.

  Raises:
    ValueError: a negative temperature.
  """
  if not temperature >= 0:
    raise ValueError(f"bradley_terry: temperature is {temperature!r}; allowed: >= 0")

  def prefer(
    prompts: Sequence[str], first: Sequence[str], second: Sequence[str]
  ) -> Scores:
    both = scorer([*prompts, *prompts], [*first, *second])
    value_N = check_scores(both, 2 * len(prompts)).value_N
    gap_N = value_N[: len(prompts)] - value_N[len(prompts) :]
    if temperature == 0:
      return Scores(np.where(np.isnan(gap_N), gap_N, (1 + np.sign(gap_N)) / 2))
    return Scores(special.expit(gap_N / temperature).astype(np.float32))

  return prefer


def cycle(patterns: Sequence[str], *, edge: float = 0.9) -> Preference:
  """A preference that no reward explains: each kind beats the next, the last the first.

  A completion is of the first kind whose pattern is found in it. One of any kind beats
  one of none; within a kind, and between kinds that are not neighbours, it is a draw.

  Args:
    patterns: of Python's `re`, one for each kind; at least 3.
    edge: probability of the kind that is preferred; in [1/2, 1].

  Raises:
    ValueError: too few patterns, one that is no regular expression, or an edge outside
      its range.
  """
  if len(patterns) < 3:
    raise ValueError(f"cycle: {len(patterns)} patterns; a cycle takes at least 3")
  if not 0.5 <= edge <= 1:
    raise ValueError(f"cycle: edge is {edge!r}; allowed: 1/2 to 1")
  kinds, none = list(map(_compiled, patterns)), len(patterns)
  win = np.full((none + 1, none + 1), 0.5, np.float32)  # row beats column
  win[:none, none], win[none, :none] = edge, 1 - edge
  for kind in range(none):
    win[kind, (kind + 1) % none] = edge
    win[(kind + 1) % none, kind] = 1 - edge

  def kind_of(text: str) -> int:
    return next((n for n, kind in enumerate(kinds) if kind.search(text)), none)

  def prefer(
    prompts: Sequence[str], first: Sequence[str], second: Sequence[str]
  ) -> Scores:
    del prompts
    pair = [list(map(kind_of, texts)) for texts in (first, second)]
    return Scores(win[pair[0], pair[1]])

  return prefer


def _compiled(pattern: str) -> re.Pattern[str]:
  try:
    return re.compile(pattern)
  except re.error as error:
    raise ValueError(
      f"pattern {pattern!r} is no regular expression: {error}"
    ) from error


def _plain(text: str) -> str:
  return " ".join(text.split()).casefold()


def _of_text(values: Callable[[Sequence[str]], Sequence[float]]) -> Scorer:
  return _of_pair(lambda prompts, texts: values(texts))


def _of_pair(
  values: Callable[[Sequence[str], Sequence[str]], Sequence[float]],
) -> Scorer:
  def score(prompts: Sequence[str], completions: Sequence[str]) -> Scores:
    if len(prompts) != len(completions):
      raise ValueError(f"{len(prompts)} prompts, but {len(completions)} completions")
    return Scores(np.asarray(values(prompts, completions), np.float32))

  return score
