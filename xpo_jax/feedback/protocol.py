"""Defines the feedback types, functions of texts, and applies them to groups.

Reward models, judges and rules are all a `Scorer` (a number for each completion) or a
`Preference` (the probability that one completion beats another). NaN is an abstention;
no function here replaces it silently.
"""

import functools
import itertools
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np

from xpo_jax.models.transformer import Model
from xpo_jax.ops import ai_labels, preference_games
from xpo_jax.sharding import distributed
from xpo_jax.types import Params

# Queries that are asked again alone to find the one on which a function raises.
_ASKED_AGAIN = 16


class Scores(NamedTuple):
  """Verdicts on N queries.

  Attributes:
    value_N: float32: a score, or a probability; NaN: abstention.
    reason: reasons as text, "" where there is none; None: the source gives no reasons.
    parts: what the value is the sum of, by name, float32 [N] each; for reports.
    compared_parts: of a preference that compares scores, what those of the first and of
      the second completion are the sum of, by name, float32 [N, 2] each; for reports.
  """

  value_N: np.ndarray
  reason: tuple[str, ...] | None = None
  parts: Mapping[str, np.ndarray] | None = None
  compared_parts: Mapping[str, np.ndarray] | None = None


Scorer = Callable[[Sequence[str], Sequence[str]], Scores]
"""`(prompts, completions) -> Scores`: one score for each completion of its prompt. A
completion that was cut at a limit of tokens is a string of `data.records.Cut`. A list
or array of numbers is taken for `Scores` without reasons."""

Preference = Callable[[Sequence[str], Sequence[str], Sequence[str]], Scores]
"""`(prompts, first, second) -> Scores`: P(first beats second), each in [0, 1]."""


class GroupScores(NamedTuple):
  """Scores of K completions of B prompts.

  Attributes:
    value_BK: float32; NaN: abstention.
    parts: of `Scores`, float32 [B, K] each; {} where the scorer names none. Beside win
      rates those of the scores that are compared, NaN where none is.
  """

  value_BK: np.ndarray
  parts: Mapping[str, np.ndarray]


class SelfFeedback(NamedTuple):
  """Feedback from the policy itself, rebuilt after every update of its parameters.

  Attributes:
    make: `(model, params, tokenizer) -> Scorer or Preference`, for the current
      parameters.
  """

  make: Callable[[Model, Params, Any], Any]


def over_processes(rater: Callable[..., Scores]) -> Callable[..., Scores]:
  """Divides the queries of a scorer or a preference among the processes of a run.

  Each asks about a share of them, and has the verdicts on all. Where there is one
  process, and for what is no function, the argument itself.
  """
  if jax.process_count() == 1 or not callable(rater):
    return rater

  @functools.wraps(rater)
  def shared(*columns: Sequence[str]) -> Scores:
    count = len(columns[0])
    if not count:
      return rater(*columns)
    own = distributed.share(count)

    def ask() -> Scores:
      found = rater(*(column[own] for column in columns))
      return check_scores(found, own.stop - own.start, _name(rater))

    return _of_rows(distributed.gather_shares(own, _rows(distributed.together(ask))))

  return shared


def _rows(scores: Scores) -> list[list[Any]]:
  """Scores as plain data by query: value, reason, parts, parts that are compared."""
  value_N, reason, *named = scores
  rows = []
  for n, value in enumerate(np.asarray(value_N).tolist()):
    parts = [
      x and {name: np.asarray(part)[n].tolist() for name, part in x.items()}
      for x in named
    ]
    rows.append([value, reason and reason[n], *parts])
  return rows


def _of_rows(rows: list[list[Any]]) -> Scores:
  values, reasons, *named = zip(*rows, strict=True)
  parts = [
    x[0] and {name: np.array([row[name] for row in x], np.float32) for name in x[0]}
    for x in named
  ]
  reason = None if reasons[0] is None else reasons
  return Scores(np.array(values, np.float32), reason, *parts)


def both_orders(preference: Preference) -> Preference:
  """Queries a preference in both orders and averages the two probabilities.

  P = (P(first, shown first) + 1 - P(second, shown first)) / 2: an additive position
  bias cancels, and swapping the completions gives 1 - P. NaN where either order
  abstains.

  Paper: position debiasing of RLAIF, Lee et al. 2023, arXiv:2309.00267.

  Args:
    preference: may depend on the order; called once, with both orders.
  """

  def debiased(
    prompts: Sequence[str], first: Sequence[str], second: Sequence[str]
  ) -> Scores:
    scores = preference([*prompts, *prompts], [*first, *second], [*second, *first])
    scores = check_probabilities(scores, 2 * len(prompts))
    shown_N, swapped_N = np.split(scores.value_N, 2)
    reason = scores.reason and scores.reason[: len(prompts)]
    compared = scores.compared_parts and {
      name: part_N2[: len(prompts)] for name, part_N2 in scores.compared_parts.items()
    }
    return Scores((shown_N + 1 - swapped_N) / 2, reason, compared_parts=compared)

  return debiased


def clamped(preference: Preference, low: float = 0.4, high: float = 0.6) -> Preference:
  """Clamps the probabilities of a preference; see `ai_labels.clamped`.

  Raises:
    ValueError: a bound out of range.
  """
  ai_labels.clamped(np.full((1, 2), 0.5, np.float32), low, high)  # checks the bounds

  def bounded(
    prompts: Sequence[str], first: Sequence[str], second: Sequence[str]
  ) -> Scores:
    scores = check_probabilities(preference(prompts, first, second), len(prompts))
    return scores._replace(value_N=np.clip(scores.value_N, low, high))  # NaN stays NaN

  return bounded


def score_groups(
  scorer: Scorer,
  prompts: Sequence[str],
  texts_BK: Sequence[Sequence[str]],
  *,
  present: np.ndarray | None = None,
) -> np.ndarray:
  """Scores every completion of every prompt, in one call of the scorer.

  Args:
    scorer: the scorer.
    prompts: B texts.
    texts_BK: K completions each.
    present: [B, K], 0 on padded columns: they are not scored and get 0.

  Returns:
    `reward_BK`, float32; NaN where the scorer abstained.

  Raises:
    ValueError: groups of unequal size, or a result that is not a list of scores.
  """
  return score_groups_in_parts(scorer, prompts, texts_BK, present=present).value_BK


def score_groups_in_parts(
  scorer: Scorer,
  prompts: Sequence[str],
  texts_BK: Sequence[Sequence[str]],
  *,
  present: np.ndarray | None = None,
) -> GroupScores:
  """Scores as `score_groups`, with the parts that the scorer's values are made of."""
  present_BK = _present(prompts, texts_BK, present)
  row_N, column_N = np.nonzero(present_BK)
  completions = [texts_BK[b][k] for b, k in zip(row_N, column_N, strict=True)]
  scores = _call(scorer, [prompts[b] for b in row_N], completions)
  scores = check_scores(scores, len(completions), _name(scorer))

  def in_groups(value_N: np.ndarray) -> np.ndarray:
    value_BK = np.zeros(present_BK.shape, np.float32)
    value_BK[row_N, column_N] = value_N
    return value_BK

  parts = {name: in_groups(value_N) for name, value_N in (scores.parts or {}).items()}
  return GroupScores(in_groups(scores.value_N), parts)


def win_matrix(
  preference: Preference,
  prompts: Sequence[str],
  texts_BK: Sequence[Sequence[str]],
  *,
  present: np.ndarray | None = None,
) -> np.ndarray:
  """Computes P(row beats column) in each group, in one call of the preference.

  Each pair is queried once; the lower triangle is 1 - P, the diagonal 1/2.

  Args:
    preference: the preference.
    prompts: B texts.
    texts_BK: K completions each.
    present: [B, K], 0 on padded columns: they are not queried and get 0.

  Returns:
    `win_BKK`, float32; NaN where the preference abstained.

  Raises:
    ValueError: groups of unequal size, or a result that is not a list of probabilities.
  """
  win_BKK, _ = _win_matrix_in_parts(preference, prompts, texts_BK, present)
  return win_BKK


def _win_matrix_in_parts(
  preference: Preference,
  prompts: Sequence[str],
  texts_BK: Sequence[Sequence[str]],
  present: np.ndarray | None,
) -> tuple[np.ndarray, dict[str, np.ndarray]]:
  """Returns the win matrix and the parts of the scores that are compared, `[B, K]`."""
  present_BK = _present(prompts, texts_BK, present)
  both_BKK = present_BK[:, :, None] * present_BK[:, None, :]
  row_N, first_N, second_N = np.nonzero(np.triu(both_BKK, 1))
  first = [texts_BK[b][k] for b, k in zip(row_N, first_N, strict=True)]
  second = [texts_BK[b][k] for b, k in zip(row_N, second_N, strict=True)]
  scores = _call(preference, [prompts[b] for b in row_N], first, second)
  scores = check_probabilities(scores, len(first), _name(preference))
  win_BKK = np.where(both_BKK, np.float32(0.5), np.float32(0))
  win_BKK[row_N, first_N, second_N] = scores.value_N
  win_BKK[row_N, second_N, first_N] = 1 - scores.value_N
  each_M = (np.tile(row_N, 2), np.concatenate([first_N, second_N]))
  parts = {
    name: _mean_of_each(part_N2.T.ravel(), each_M, present_BK.shape)
    for name, part_N2 in (scores.compared_parts or {}).items()
  }
  return win_BKK, parts


def _mean_of_each(
  value_M: np.ndarray, each_M: tuple[np.ndarray, np.ndarray], shape: tuple[int, int]
) -> np.ndarray:
  """Averages the values of each completion over the pairs that it is in.

  Args:
    value_M: NaN is left out.
    each_M: the prompt and the column of the completion that each value is of.
    shape: (B, K).

  Returns:
    float32 `[B, K]`, NaN for a completion without a value.
  """
  given_M = ~np.isnan(value_M)
  of_given = (each_M[0][given_M], each_M[1][given_M])
  sum_BK, count_BK = np.zeros(shape), np.zeros(shape)
  np.add.at(sum_BK, of_given, value_M[given_M])
  np.add.at(count_BK, of_given, 1)
  mean_BK = sum_BK / np.maximum(count_BK, 1)
  return np.where(count_BK > 0, mean_BK, np.nan).astype(np.float32)


def win_rates(
  preference: Preference,
  prompts: Sequence[str],
  texts_BK: Sequence[Sequence[str]],
  *,
  present: np.ndarray | None = None,
  include_self: bool = True,
) -> np.ndarray:
  """Computes the mean probability of each completion to beat its group.

  A pair on which the preference abstained counts as a tie; `win_matrix` shows which.

  Args:
    preference: the preference.
    prompts: B texts.
    texts_BK: K completions each.
    present: [B, K], 0 on padded columns: they are not queried and get 0.
    include_self: whether the group includes the completion itself, as a tie (1/2),
      which is SPPO's estimate (`preference_games.win_rate`); else the group is the
      other completions, and a single completion gets 1/2.

  Returns:
    `reward_BK`, float32; NaN where every verdict on a completion was an abstention.

  Raises:
    ValueError: as `win_matrix`.
  """
  return win_rates_in_parts(
    preference, prompts, texts_BK, present=present, include_self=include_self
  ).value_BK


def win_rates_in_parts(
  preference: Preference,
  prompts: Sequence[str],
  texts_BK: Sequence[Sequence[str]],
  *,
  present: np.ndarray | None = None,
  include_self: bool = True,
) -> GroupScores:
  """Computes `win_rates`, with the parts of the scores that the preference compares."""
  present_BK = _present(prompts, texts_BK, present).astype(np.float32)
  win_BKK, parts = _win_matrix_in_parts(preference, prompts, texts_BK, present)
  filled_BKK = np.where(np.isnan(win_BKK), np.float32(0.5), win_BKK)
  others_BK = present_BK.sum(-1, keepdims=True) - 1
  if include_self:
    reward_BK = np.array(preference_games.win_rate(filled_BKK, present_BK))
  else:
    off_diagonal_BKK = filled_BKK * (1 - np.eye(present_BK.shape[1], dtype=np.float32))
    mean_BK = off_diagonal_BKK.sum(-1) / np.maximum(others_BK, 1)
    reward_BK = np.where(others_BK > 0, mean_BK, present_BK / 2)
  abstains_BK = (np.isnan(win_BKK).sum(-1) == others_BK) & (others_BK > 0)
  reward_BK = np.where(abstains_BK & (present_BK > 0), np.float32(np.nan), reward_BK)
  return GroupScores(reward_BK, parts)


def win_rates_against(
  preference: Preference,
  prompts: Sequence[str],
  texts_BK: Sequence[Sequence[str]],
  *,
  opponents_BJ: Sequence[Sequence[str]],
) -> np.ndarray:
  """Computes the mean probability of each completion to beat its prompt's J opponents.

  A pair on which the preference abstained counts as a tie.

  Args:
    preference: the preference; called once.
    prompts: B texts.
    texts_BK: K completions each.
    opponents_BJ: J completions each.

  Returns:
    `reward_BK`, float32; NaN where every verdict on a completion was an abstention.

  Raises:
    ValueError: groups of unequal size, or a result that is not a list of probabilities.
  """
  return win_rates_against_in_parts(
    preference, prompts, texts_BK, opponents_BJ=opponents_BJ
  ).value_BK


def win_rates_against_in_parts(
  preference: Preference,
  prompts: Sequence[str],
  texts_BK: Sequence[Sequence[str]],
  *,
  opponents_BJ: Sequence[Sequence[str]],
) -> GroupScores:
  """Computes `win_rates_against`, with the parts of the completions' own scores."""
  B, K = _present(prompts, texts_BK, None).shape
  _, J = _present(prompts, opponents_BJ, None).shape
  row_N, first_N, second_N = (x.ravel() for x in np.indices((B, K, J)))
  first = [texts_BK[b][k] for b, k in zip(row_N, first_N, strict=True)]
  second = [opponents_BJ[b][j] for b, j in zip(row_N, second_N, strict=True)]
  scores = _call(preference, [prompts[b] for b in row_N], first, second)
  scores = check_probabilities(scores, B * K * J, _name(preference))
  p_BKJ = scores.value_N.reshape(B, K, J)
  abstains_BKJ = np.isnan(p_BKJ)
  win_rate_BK = np.where(abstains_BKJ, np.float32(0.5), p_BKJ).mean(-1)
  parts = {
    name: _mean_of_each(part_N2[:, 0], (row_N, first_N), (B, K))
    for name, part_N2 in (scores.compared_parts or {}).items()
  }
  reward_BK = np.where(abstains_BKJ.all(-1), np.float32(np.nan), win_rate_BK)
  return GroupScores(reward_BK, parts)


def count_abstentions(values: np.ndarray) -> int:
  """Counts abstentions; in a `win_matrix` every pair counts twice."""
  return int(np.isnan(values).sum())


def _call(function: Scorer | Preference, *columns: Sequence[str]) -> Any:
  """Calls a scorer or a preference, and names it and the query where it raises.

  Raises:
    ValueError: the function raised; what is no `Exception` of Python's own, such as a
      `client.JudgeError`, is passed on.
  """
  try:
    return function(*columns)
  except Exception as error:
    if type(error).__module__ != "builtins":
      raise
    query = None if isinstance(error, OSError) else _failing(function, columns)
    if query is None:
      raise ValueError(
        f"{_name(function)} raised {type(error).__name__}: {error}, on "
        f"{len(columns[0])} queries"
      ) from error
    shown = [f"{column[query]!r:.200}" for column in columns]
    raise ValueError(
      f"{_name(function)} raised {type(error).__name__}: {error}, on query {query}: "
      f"prompt {shown[0]}, completion {' and '.join(shown[1:])}"
    ) from error


def _failing(
  function: Scorer | Preference, columns: tuple[Sequence[str], ...]
) -> int | None:
  """The first query on which a function raises alone, of the first `_ASKED_AGAIN`; None
  where it does on none. Not more are asked again: a server may be paid for each."""
  queries = itertools.islice(zip(*columns, strict=True), _ASKED_AGAIN)
  for query, one in enumerate(queries):
    try:
      function(*([text] for text in one))
    except Exception:
      return query
  return None


def _name(function: Any) -> str:
  function = getattr(function, "func", function)  # of a functools.partial
  name = getattr(function, "__qualname__", type(function).__name__)
  return f"{function.__module__}:{name}"


def check_scores(scores: Any, count: int, source: str = "feedback") -> Scores:
  """Checks that scores are one finite number or NaN for each of `count` queries.

  Args:
    scores: `Scores`, or the numbers alone, as a list or an array; None in a list is an
      abstention.
    count: of queries.
    source: name of the function, for messages.

  Raises:
    ValueError: no numbers, another shape, an infinite score, or another number of
      reasons.
  """
  if not isinstance(scores, Scores):
    scores = Scores(scores)
  try:
    value_N = np.asarray(scores.value_N, np.float32)
  except (TypeError, ValueError):
    value_N = None
  if value_N is None or scores.value_N is None:
    raise ValueError(
      f"{source} returned {type(scores.value_N).__name__} on {count} queries; it must "
      "return a number for each, as a list, an array or protocol.Scores"
    )
  if value_N.shape != (count,):
    raise ValueError(
      f"{source} of shape {value_N.shape} on {count} queries; it must be ({count},), "
      "NaN where it abstains"
    )
  if np.isinf(value_N).any():
    worst = int(np.isinf(value_N).argmax())
    raise ValueError(
      f"{source} on query {worst} is {value_N[worst]}; it must be finite, or NaN to "
      "abstain"
    )
  if scores.reason is not None and len(scores.reason) != count:
    raise ValueError(f"{len(scores.reason)} reasons for {count} queries")
  return scores._replace(value_N=value_N)


def check_probabilities(scores: Any, count: int, source: str = "preference") -> Scores:
  """Checks as `check_scores`, and that numbers are in [0, 1].

  Raises:
    ValueError: also for a number outside [0, 1].
  """
  scores = check_scores(scores, count, source)
  wrong_N = (scores.value_N < 0) | (scores.value_N > 1)  # False for NaN
  if wrong_N.any():
    worst = int(wrong_N.argmax())
    raise ValueError(
      f"{source} on query {worst} is {scores.value_N[worst]}; it must be "
      "in [0, 1] (for a score use score_groups)"
    )
  return scores


def _present(
  prompts: Sequence[str],
  texts_BK: Sequence[Sequence[str]],
  present: np.ndarray | None,
) -> np.ndarray:
  """Returns the mask of completions that are not padding, bool [B, K]."""
  if not len(prompts):
    raise ValueError("prompts is empty; give at least one prompt")
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
