"""Rule-based feedback: scorers and preferences without a model."""

import re
from collections.abc import Callable, Mapping, Sequence

import numpy as np
from scipy import special

from xpo_jax.data import synthetic_reviews
from xpo_jax.feedback.protocol import Preference, Scorer, Scores, check_scores


def synthetic_reward() -> Scorer:
  """Scores by the synthetic reviews' true reward: VADER on prompt and completion."""
  return _from_pairs(
    lambda prompts, texts: synthetic_reviews.true_reward(
      [prompt + text for prompt, text in zip(prompts, texts, strict=True)]
    )
  )


def sentiment() -> Scorer:
  """Scores by VADER's compound of the completion alone, in [-1, 1].

  A lexicon, which does not recognise irony. Hutto and Gilbert 2014, through the
  `vaderSentiment` package.
  """
  return _from_completions(synthetic_reviews.true_reward)


def matches(pattern: str, *, whole: bool = False) -> Scorer:
  """Scores 1 where a regular expression matches within the completion, else 0.

  Args:
    pattern: of Python's `re`.
    whole: match the whole completion, without whitespace at its ends.

  Raises:
    ValueError: not a regular expression.
  """
  regex = _compiled(pattern)
  if whole:
    return _from_completions(
      lambda texts: [bool(regex.fullmatch(text.strip())) for text in texts]
    )
  return _from_completions(lambda texts: [bool(regex.search(text)) for text in texts])


def exact_match(answers: Mapping[str, str], *, extract: str | None = None) -> Scorer:
  """Scores 1 where the completion equals the prompt's reference answer, else 0.

  Case and repeated whitespace are ignored.

  Args:
    answers: prompt -> reference answer; the scorer abstains on other prompts.
    extract: a regular expression whose first group (or whole match) is the answer; the
      last match counts ("#### (.*)"). None: the whole completion.

  Raises:
    ValueError: not a regular expression, or no answers.
  """
  if not answers:
    raise ValueError(
      "exact_match: answers is empty; give a reference answer per prompt"
    )
  pattern = None if extract is None else _compiled(extract)

  def extracted(text: str) -> str | None:
    if pattern is None:
      return text
    matches = list(pattern.finditer(text))
    return matches[-1][1 if pattern.groups else 0] if matches else None

  def correct(prompt: str, text: str) -> float:
    if prompt not in answers:
      return np.nan
    answer = extracted(text)
    return answer is not None and _normalised(answer) == _normalised(answers[prompt])

  return _from_pairs(lambda prompts, texts: list(map(correct, prompts, texts)))


def length(*, target: int | None = None) -> Scorer:
  """Scores by the number of words; with a target, by minus the distance from it."""
  if target is None:
    return _from_completions(lambda texts: [len(text.split()) for text in texts])
  return _from_completions(
    lambda texts: [-abs(len(text.split()) - target) for text in texts]
  )


def at_least(scorer: Scorer, threshold: float) -> Scorer:
  """Scores 1 where another scorer's score reaches a threshold, else 0: success or not.

  Args:
    scorer: abstentions stay abstentions.
    threshold: in units of its score.
  """

  def score(prompts: Sequence[str], completions: Sequence[str]) -> Scores:
    value_N = check_scores(scorer(prompts, completions), len(prompts)).value_N
    return Scores(
      np.where(np.isnan(value_N), value_N, value_N >= threshold).astype(np.float32)
    )

  return score


def bradley_terry(scorer: Scorer, temperature: float = 1.0) -> Preference:
  """Converts a scorer to a preference: sigmoid((r_first - r_second) / temperature).

  Args:
    scorer: the reward r.
    temperature: in units of the score; 0: probability 1 for the higher score, 1/2 for
      ties.

  Returns:
    Preference; abstains where the scorer abstains on either completion. Its
    `Scores.compared_parts` are the parts of the two scores, if the scorer names any.

  Raises:
    ValueError: a negative temperature.
  """
  if not temperature >= 0:
    raise ValueError(f"bradley_terry: temperature is {temperature!r}; allowed: >= 0")

  def prefer(
    prompts: Sequence[str], first: Sequence[str], second: Sequence[str]
  ) -> Scores:
    both = scorer([*prompts, *prompts], [*first, *second])
    both = check_scores(both, 2 * len(prompts))
    first_N, second_N = np.split(both.value_N, 2)
    gap_N = first_N - second_N
    parts = both.parts and {
      name: np.stack(np.split(part_M, 2), axis=1) for name, part_M in both.parts.items()
    }
    if temperature == 0:
      p_N = np.where(np.isnan(gap_N), gap_N, (1 + np.sign(gap_N)) / 2)
    else:
      p_N = special.expit(gap_N / temperature).astype(np.float32)
    return Scores(p_N, compared_parts=parts)

  return prefer


def cyclic_preference(patterns: Sequence[str], *, edge: float = 0.9) -> Preference:
  """Intransitive preference: each kind beats the next, and the last kind the first.

  A completion is of the first kind whose pattern matches in it. Any kind beats a
  completion of no kind; equal kinds and kinds that are not adjacent tie.

  Args:
    patterns: of Python's `re`, one per kind; at least 3.
    edge: probability that the preferred kind wins; in [1/2, 1].

  Raises:
    ValueError: too few patterns, one that is not a regular expression, or an edge
      outside its range.
  """
  if len(patterns) < 3:
    raise ValueError(
      f"cyclic_preference: {len(patterns)} patterns; allowed: at least 3"
    )
  if not 0.5 <= edge <= 1:
    raise ValueError(f"cyclic_preference: edge is {edge!r}; allowed: 1/2 to 1")
  kinds = list(map(_compiled, patterns))
  none = len(patterns)  # index of completions of no kind
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
    first_kinds = list(map(kind_of, first))
    second_kinds = list(map(kind_of, second))
    return Scores(win[first_kinds, second_kinds])

  return prefer


def _compiled(pattern: str) -> re.Pattern[str]:
  try:
    return re.compile(pattern)
  except re.error as error:
    raise ValueError(
      f"pattern {pattern!r} is not a regular expression: {error}"
    ) from error


def _normalised(text: str) -> str:
  return " ".join(text.split()).casefold()


def _from_completions(values: Callable[[Sequence[str]], Sequence[float]]) -> Scorer:
  return _from_pairs(lambda prompts, texts: values(texts))


def _from_pairs(
  values: Callable[[Sequence[str], Sequence[str]], Sequence[float]],
) -> Scorer:
  def score(prompts: Sequence[str], completions: Sequence[str]) -> Scores:
    if len(prompts) != len(completions):
      raise ValueError(f"{len(prompts)} prompts, but {len(completions)} completions")
    return Scores(np.asarray(values(prompts, completions), np.float32))

  return score
