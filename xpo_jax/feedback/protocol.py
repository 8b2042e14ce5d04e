"""What every source of feedback is: a function of texts, and how groups are asked.

A reward model, a judge, a rule and the embedded world are all a `Scorer` (a number for
each completion) or a `Preference` (the probability that one completion beats another).
Whoever cannot tell abstains with NaN; nothing here turns that into a verdict silently.
"""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np

from xpo_jax.models.transformer import Model
from xpo_jax.ops import ai_labels, preference_games
from xpo_jax.types import Params


class Scores(NamedTuple):
  """Verdicts on N questions.

  Attributes:
    value_N: float32: a score, or a probability; NaN: abstained.
    reason: why, in words, "" where there is none; None: this source never says.
  """

  value_N: np.ndarray
  reason: tuple[str, ...] | None = None


Scorer = Callable[[Sequence[str], Sequence[str]], Scores]
"""`(prompts, completions) -> Scores`: the n-th completion answers the n-th prompt."""

Preference = Callable[[Sequence[str], Sequence[str], Sequence[str]], Scores]
"""`(prompts, first, second) -> Scores`: P(first beats second), each in [0, 1]."""


class OfPolicy(NamedTuple):
  """Feedback that a policy gives on itself, made anew whenever it has learned.

  Attributes:
    make: `(model, params, tokenizer) -> Scorer or Preference`, of the decoder as it is
      now.
  """

  make: Callable[[Model, Params, Any], Any]


def both_orders(preference: Preference) -> Preference:
  """Asks twice, the answers swapped, and averages the two probabilities.

  P = (P(first, shown first) + 1 - P(second, shown first)) / 2: a liking for what comes
  first cancels, and swapping the answers gives 1 - P. NaN where either order abstains.

  Paper: position debiasing of RLAIF, Lee et al. 2023, arXiv:2309.00267.

  Args:
    preference: whose answer may depend on the order; asked once, about all.
  """

  def asked(
    prompts: Sequence[str], first: Sequence[str], second: Sequence[str]
  ) -> Scores:
    orders = ([*prompts, *prompts], [*first, *second], [*second, *first])
    found = check_probabilities(preference(*orders), 2 * len(prompts))
    shown_N, swapped_N = np.split(found.value_N, 2)
    reason = found.reason and found.reason[: len(prompts)]
    return Scores((shown_N + 1 - swapped_N) / 2, reason)

  return asked


def clamped(preference: Preference, low: float = 0.4, high: float = 0.6) -> Preference:
  """A preference kept from being too sure of itself; see `ai_labels.clamped`.

  Raises:
    ValueError: a bound out of range.
  """
  ai_labels.clamped(np.full((1, 2), 0.5, np.float32), low, high)  # checks the bounds

  def asked(
    prompts: Sequence[str], first: Sequence[str], second: Sequence[str]
  ) -> Scores:
    found = check_probabilities(preference(prompts, first, second), len(prompts))
    return found._replace(value_N=np.clip(found.value_N, low, high))  # NaN stays

  return asked


def score_groups(
  scorer: Scorer,
  prompts: Sequence[str],
  texts_BK: Sequence[Sequence[str]],
  *,
  present: np.ndarray | None = None,
) -> np.ndarray:
  """Scores every completion of every prompt, in one call of the scorer.

  Args:
    scorer: who is asked.
    prompts: B texts.
    texts_BK: K completions each.
    present: [B, K], 0 on padded columns: they are not asked about and get 0.

  Returns:
    `reward_BK`, float32; NaN where the scorer abstained.

  Raises:
    ValueError: groups of unequal size, or an answer that is no list of scores.
  """
  present_BK = _present(prompts, texts_BK, present)
  row_N, column_N = np.nonzero(present_BK)
  asked = [texts_BK[b][k] for b, k in zip(row_N, column_N, strict=True)]
  scores = check_scores(scorer([prompts[b] for b in row_N], asked), len(asked))
  reward_BK = np.zeros(present_BK.shape, np.float32)
  reward_BK[row_N, column_N] = scores.value_N
  return reward_BK


def win_matrix(
  preference: Preference,
  prompts: Sequence[str],
  texts_BK: Sequence[Sequence[str]],
  *,
  present: np.ndarray | None = None,
) -> np.ndarray:
  """P(row beats column) within each group, in one call of the preference.

  Each pair is asked about once; the other half is 1 - P, the diagonal 1/2.

  Args:
    preference: who is asked.
    prompts: B texts.
    texts_BK: K completions each.
    present: [B, K], 0 on padded columns: they are not asked about and get 0.

  Returns:
    `win_BKK`, float32; NaN where the preference abstained.

  Raises:
    ValueError: groups of unequal size, or an answer that is no list of probabilities.
  """
  present_BK = _present(prompts, texts_BK, present)
  both_BKK = present_BK[:, :, None] * present_BK[:, None, :]
  row_N, first_N, second_N = np.nonzero(np.triu(both_BKK, 1))
  first = [texts_BK[b][k] for b, k in zip(row_N, first_N, strict=True)]
  second = [texts_BK[b][k] for b, k in zip(row_N, second_N, strict=True)]
  answers = preference([prompts[b] for b in row_N], first, second)
  p_N = check_probabilities(answers, len(first)).value_N
  win_BKK = np.where(both_BKK, np.float32(0.5), np.float32(0))
  win_BKK[row_N, first_N, second_N] = p_N
  win_BKK[row_N, second_N, first_N] = 1 - p_N
  return win_BKK


def win_rates(
  preference: Preference,
  prompts: Sequence[str],
  texts_BK: Sequence[Sequence[str]],
  *,
  present: np.ndarray | None = None,
  include_self: bool = True,
) -> np.ndarray:
  """Mean probability of each completion to beat its group.

  A pair on which the preference abstained counts as a draw; see `win_matrix` for which.

  Args:
    preference: who is asked.
    prompts: B texts.
    texts_BK: K completions each.
    present: [B, K], 0 on padded columns: they are not asked about and get 0.
    include_self: whether a completion is of its own group, as a draw (1/2), which is
      SPPO's estimate (`preference_games.win_rate`); else the group is the others, and
      who has none gets 1/2.

  Returns:
    `reward_BK`, float32; NaN where every verdict on a completion was an abstention.

  Raises:
    ValueError: as `win_matrix`.
  """
  present_BK = _present(prompts, texts_BK, present).astype(np.float32)
  win_BKK = win_matrix(preference, prompts, texts_BK, present=present)
  told_BKK = np.where(np.isnan(win_BKK), np.float32(0.5), win_BKK)
  others_BK = present_BK.sum(-1, keepdims=True) - 1
  if include_self:
    reward_BK = np.array(preference_games.win_rate(told_BKK, present_BK))
  else:
    apart_BKK = told_BKK * (1 - np.eye(present_BK.shape[1], dtype=np.float32))
    mean_BK = apart_BKK.sum(-1) / np.maximum(others_BK, 1)
    reward_BK = np.where(others_BK > 0, mean_BK, present_BK / 2)
  silent_BK = (np.isnan(win_BKK).sum(-1) == others_BK) & (others_BK > 0)
  return np.where(silent_BK & (present_BK > 0), np.float32(np.nan), reward_BK)


def win_rates_against(
  preference: Preference,
  prompts: Sequence[str],
  texts_BK: Sequence[Sequence[str]],
  opponents_BJ: Sequence[Sequence[str]],
) -> np.ndarray:
  """Mean probability of each completion to beat its prompt's J opponents.

  A pair on which the preference abstained counts as a draw.

  Args:
    preference: who is asked, in one call.
    prompts: B texts.
    texts_BK: K completions each.
    opponents_BJ: J completions each.

  Returns:
    `reward_BK`, float32; NaN where every verdict on a completion was an abstention.

  Raises:
    ValueError: groups of unequal size, or an answer that is no list of probabilities.
  """
  B, K = _present(prompts, texts_BK, None).shape
  _, J = _present(prompts, opponents_BJ, None).shape
  row_N, first_N, second_N = (x.ravel() for x in np.indices((B, K, J)))
  first = [texts_BK[b][k] for b, k in zip(row_N, first_N, strict=True)]
  second = [opponents_BJ[b][j] for b, j in zip(row_N, second_N, strict=True)]
  answers = preference([prompts[b] for b in row_N], first, second)
  p_BKJ = check_probabilities(answers, B * K * J).value_N.reshape(B, K, J)
  silent_BKJ = np.isnan(p_BKJ)
  win_rate_BK = np.where(silent_BKJ, np.float32(0.5), p_BKJ).mean(-1)
  return np.where(silent_BKJ.all(-1), np.float32(np.nan), win_rate_BK)


def abstentions(values: np.ndarray) -> int:
  """How many of these verdicts are abstentions; of `win_matrix`, twice the pairs."""
  return int(np.isnan(values).sum())


def check_scores(scores: Scores, count: int) -> Scores:
  """The scores, if they are one number or NaN for each of `count` questions.

  Raises:
    ValueError: another shape, an infinite score, or reasons of another count.
  """
  value_N = np.asarray(scores.value_N, np.float32)
  if value_N.shape != (count,):
    raise ValueError(
      f"feedback of shape {value_N.shape} on {count} questions; it must be ({count},), "
      "NaN where it abstains"
    )
  if np.isinf(value_N).any():
    worst = int(np.isinf(value_N).argmax())
    raise ValueError(
      f"feedback on question {worst} is {value_N[worst]}; it must be finite, or NaN to "
      "abstain"
    )
  if scores.reason is not None and len(scores.reason) != count:
    raise ValueError(f"{len(scores.reason)} reasons for {count} questions")
  return Scores(value_N, scores.reason)


def check_probabilities(scores: Scores, count: int) -> Scores:
  """As `check_scores`, of numbers in [0, 1].

  Raises:
    ValueError: also for a number outside [0, 1].
  """
  scores = check_scores(scores, count)
  wrong_N = (scores.value_N < 0) | (scores.value_N > 1)  # False for NaN
  if wrong_N.any():
    worst = int(wrong_N.argmax())
    raise ValueError(
      f"preference on question {worst} is {scores.value_N[worst]}; a probability lies "
      "in [0, 1] (a score? use score_groups)"
    )
  return scores


def _present(
  prompts: Sequence[str],
  texts_BK: Sequence[Sequence[str]],
  present: np.ndarray | None,
) -> np.ndarray:
  """Which completions there are, bool [B, K]."""
  if not len(prompts):
    raise ValueError("prompts is empty; there is nothing to give feedback on")
  if len(prompts) != len(texts_BK):
    raise ValueError(f"{len(prompts)} prompts, but {len(texts_BK)} groups of texts")
  sizes = {len(texts) for texts in texts_BK}
  if len(sizes) != 1:
    raise ValueError(
      f"groups of {sorted(sizes)} completions; pad them to one size and give `present`"
    )
  shape = (len(prompts), sizes.pop())
  if present is None:
    return np.ones(shape, bool)
  present_BK = np.asarray(present) > 0
  if present_BK.shape != shape:
    raise ValueError(f"present has shape {present_BK.shape}, the texts {shape}")
  return present_BK
