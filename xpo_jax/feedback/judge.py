"""Builds judges from a language model: preferences of pairs, scores, ratings.

This module defines the queries, their order, retries and the treatment of unreadable
verdicts; a `Backend` (a local model, an endpoint) only generates texts and, where it
can, gives the log-probabilities of the options.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

import numpy as np

from xpo_jax.feedback import parse, prompting, protocol
from xpo_jax.feedback.prompting import ChatTurn, Conversation, Piece, PromptTemplate
from xpo_jax.feedback.protocol import Preference, Scorer, Scores
from xpo_jax.ops import ai_labels

_IMPOSSIBLE = -1e30  # log-probability of an option that a text did not choose
_PARTS = ("preamble", "sample", "ending")
_RATING_FIELDS = ("prompt", "completion", "levels")


class Backend(NamedTuple):
  """A language model that a judge queries.

  Attributes:
    name: for messages.
    write: `(conversations, draw) -> texts`: a response to each, None where there is
      none. The response is a function of conversation and draw.
    options: `(conversations, names, draw) -> logp_NJ`: log-probabilities of the names
      as the first token of the response, not necessarily normalised, NaN where unknown;
      None: not available for this model.
  """

  name: str
  write: Callable[[Sequence[Conversation], int], list[str | None]]
  options: Callable[[Sequence[Conversation], Sequence[str], int], np.ndarray] | None


class _VerdictSettings(NamedTuple):
  """How verdicts are read.

  Attributes:
    options: names of the options.
    logprobs: read the log-probabilities of the options; False: parse the text.
    reasoning: generate reasons before the verdict.
    samples: number of verdicts per query.
    retries: number of further attempts after an unreadable verdict.
  """

  options: Sequence[str]
  logprobs: bool
  reasoning: bool
  samples: int
  retries: int


def preference(
  backend: Backend,
  *,
  prompt: str = "pairwise",
  principles: str | None = None,
  options: Sequence[str] = ("1", "2"),
  logprobs: bool = True,
  reasoning: bool = False,
  samples: int = 1,
  retries: int = 2,
  both_orders: bool = True,
  clamp: tuple[float, float] | None = None,
  seed: int = 0,
) -> Preference:
  """Builds a judge of pairs.

  Each pair is shown in both orders and the two distributions are averaged
  (`ai_labels.debiased`). If the verdict cannot be read in one of the orders, the query
  is repeated; after the last attempt the judge abstains.

  Papers: RLAIF, Lee et al. 2023, arXiv:2309.00267 (log-probabilities of verdicts, both
  orders, reasons first, self-consistency, which did not help there); Constitutional AI,
  Bai et al. 2022, arXiv:2212.08073 (a principle sampled for each pair; labels clamped
  to [0.4, 0.6] after reasoning).

  Args:
    backend: the language model.
    prompt: a prompt file with `{prompt}`, `{first}`, `{second}`; see `prompting`.
    principles: a file of principles, of which one is sampled for each pair; the prompt
      then has `{principle}` too.
    options: the prompt file's names of the first and the second completion.
    logprobs: read the probabilities of the options; False: parse the text.
    reasoning: generate reasons before the verdict (the part `reasoning`).
    samples: number of verdicts to average, each with its own reasons; >= 1.
    retries: number of further attempts after an unreadable verdict.
    both_orders: False: show only the first completion first; for
      `evaluation.judge_bias`.
    clamp: bounds of the probability, or None.
    seed: of the sampled principle.

  Returns:
    Preference; its reason is the text of the first sample's reasons, first order.

  Raises:
    ValueError: an invalid prompt file, log-probabilities of a backend that has none, or
      samples that would all be equal.
  """
  fields = {"prompt", "first", "second"} | ({"principle"} if principles else set())
  parts = _PARTS + (("reasoning",) if reasoning else ())
  template = prompting.load_template(prompt, parts, fields)
  all_principles = prompting.load_principles(principles) if principles else ()
  settings = _VerdictSettings(options, logprobs, reasoning, samples, retries)
  _check(backend, settings)
  if len(set(options)) != 2:
    raise ValueError(f"options: {tuple(options)}; a judge of pairs needs two names")

  def query(prompt: str, first: str, second: str) -> _Query:
    texts = {"prompt": prompt, "first": first, "second": second}
    trusted = {}
    if all_principles:
      uniform = prompting.hash_uniform(seed, prompt, *sorted((first, second)))
      trusted["principle"] = all_principles[int(uniform * len(all_principles))]
    return _make_query(template, texts, trusted)

  def judge(
    prompts: Sequence[str], first: Sequence[str], second: Sequence[str]
  ) -> Scores:
    if not len(prompts):
      return Scores(np.zeros(0, np.float32), ())
    queries = [query(*each) for each in zip(prompts, first, second, strict=True)]
    if both_orders:
      queries += [query(*each) for each in zip(prompts, second, first, strict=True)]
    p_N, reasons = _mean_verdicts(
      backend, queries, settings, lambda logp_NJ: _first_wins(logp_NJ, both_orders)
    )
    return Scores(p_N, reasons[: len(prompts)])

  return judge if clamp is None else protocol.clamped(judge, *clamp)


def scorer(
  backend: Backend,
  *,
  prompt: str = "additive",
  least: float = 0,
  most: float = 5,
  samples: int = 3,
  retries: int = 2,
) -> Scorer:
  """Builds a judge that writes reasons and ends with "Score: n".

  Paper: Self-Rewarding Language Models, Yuan et al. 2024, arXiv:2401.10020: five
  additive points, the mean of three verdicts.

  Args:
    backend: the language model.
    prompt: a prompt file with `{prompt}` and `{completion}`.
    least: the lowest score.
    most: the highest score.
    samples: number of verdicts to average; unreadable ones are left out.
    retries: number of further attempts after an unreadable verdict.

  Returns:
    Scorer; NaN where no verdict could be read; its reason is the first verdict's text.

  Raises:
    ValueError: an invalid prompt file, or numbers out of range.
  """
  template = prompting.load_template(prompt, _PARTS, ("prompt", "completion"))
  _check(backend, _VerdictSettings((), False, False, samples, retries))
  if not least < most:
    raise ValueError(f"scorer: least={least!r} must be below most={most!r}")

  def score(prompts: Sequence[str], completions: Sequence[str]) -> Scores:
    queries = [
      _make_query(template, {"prompt": p, "completion": c}, {}).plain
      for p, c in zip(prompts, completions, strict=True)
    ]
    value_SN = np.full((samples, len(queries)), np.nan, np.float32)
    reasons = [""] * len(queries)
    for sample in range(samples):
      pending = list(range(len(queries)))
      for attempt in range(retries + 1):
        if not pending:
          break
        draw = attempt * samples + sample
        texts = backend.write([queries[n] for n in pending], draw)
        for n, text in zip(pending, texts, strict=True):
          value = None if text is None else parse.score(text, least, most)
          if value is not None:
            value_SN[sample, n] = value
            reasons[n] = reasons[n] or text
        pending = [n for n in pending if np.isnan(value_SN[sample, n])]
    return Scores(_mean(value_SN), tuple(reasons))

  return score


def rating(
  backend: Backend,
  *,
  prompt: str = "rating",
  levels: int = 10,
  reasoning: bool = False,
  samples: int = 1,
  retries: int = 2,
) -> Scorer:
  """Builds a judge of the expected rating from 1 to `levels`, scaled to [-1, 1].

  Paper: direct RLAIF, Lee et al. 2023, arXiv:2309.00267: 10 levels.

  Args:
    backend: the language model; must give log-probabilities.
    prompt: a prompt file with `{prompt}`, `{completion}` and `{levels}`.
    levels: >= 2. A local model must encode each level as one token (for many
      tokenizers at most 9), else it raises; an endpoint's tokenizer is unknown: one
      that encodes "10" as two tokens would count it as 1.
    reasoning: generate reasons before the rating (the part `reasoning`).
    samples: number of ratings to average, each with its own reasons.
    retries: number of further attempts after an unreadable rating.

  Raises:
    ValueError: an invalid prompt file, a backend without log-probabilities, or numbers
      out of range.
  """
  parts = _PARTS + (("reasoning",) if reasoning else ())
  template = prompting.load_template(prompt, parts, _RATING_FIELDS)
  names = tuple(str(1 + level) for level in range(levels))
  settings = _VerdictSettings(names, True, reasoning, samples, retries)
  _check(backend, settings)
  if levels < 2:
    raise ValueError(f"rating: levels={levels}; allowed: at least 2")

  def scaled(logp_NJ: np.ndarray) -> np.ndarray:
    abstains_N = np.isnan(logp_NJ).any(-1)
    mean_N = ai_labels.expected_score(np.where(abstains_N[:, None], 0, logp_NJ))
    scaled_N = np.asarray(ai_labels.rescaled(mean_N, 1, levels))
    return np.where(abstains_N, np.float32(np.nan), scaled_N)

  def rate(prompts: Sequence[str], completions: Sequence[str]) -> Scores:
    if not len(prompts):
      return Scores(np.zeros(0, np.float32), ())
    queries = [
      _make_query(template, {"prompt": p, "completion": c}, {"levels": str(levels)})
      for p, c in zip(prompts, completions, strict=True)
    ]
    return Scores(*_mean_verdicts(backend, queries, settings, scaled))

  return rate


def rating_conversation(
  completion_prompt: str, completion: str, *, prompt: str = "rating", levels: int = 10
) -> Conversation:
  """Returns the query of `rating` for one completion, to train a model to rate.

  Args:
    completion_prompt: the prompt of the completion.
    completion: the completion.
    prompt: a prompt file, see `rating`.
    levels: the highest rating.
  """
  template = prompting.load_template(prompt, _PARTS, _RATING_FIELDS)
  texts = {"prompt": completion_prompt, "completion": completion}
  return _make_query(template, texts, {"levels": str(levels)}).plain


class _Query(NamedTuple):
  """A query, in the form without and with reasons.

  Attributes:
    plain: requests the verdict at once.
    reasoning: requests reasons.
    ending: requests the verdict after the reasons.
  """

  plain: Conversation
  reasoning: Conversation
  ending: tuple[Piece, ...]


def _mean_verdicts(
  backend: Backend,
  queries: Sequence[_Query],
  settings: _VerdictSettings,
  value: Callable[[np.ndarray], np.ndarray],
) -> tuple[np.ndarray, tuple[str, ...]]:
  """Means over the samples of `value(logp_NJ)`, and the first sample's reasons."""
  drawn = [
    _read_verdicts(backend, queries, settings, sample)
    for sample in range(settings.samples)
  ]
  return _mean(np.stack([value(logp_NJ) for logp_NJ, _ in drawn])), tuple(drawn[0][1])


def _make_query(
  template: PromptTemplate, texts: Mapping[str, str], trusted: Mapping[str, str]
) -> _Query:
  before = tuple(part for part in ("preamble", "examples") if part in template.parts)
  plain = prompting.fill(
    template, (*before, "sample", "ending"), texts, trusted=trusted
  )
  reasoning = plain
  if "reasoning" in template.parts:
    reasoning = prompting.fill(
      template, (*before, "sample", "reasoning"), texts, trusted=trusted
    )
  ending = prompting.fill(template, ("ending",), texts, trusted=trusted, note=False)
  return _Query((ChatTurn("user", plain),), (ChatTurn("user", reasoning),), ending)


def _read_verdicts(
  backend: Backend, queries: Sequence[_Query], settings: _VerdictSettings, sample: int
) -> tuple[np.ndarray, list[str]]:
  """Returns log-probs of the options, `[N, J]`, NaN where unreadable, and reasons."""
  options = settings.options
  logp_NJ = np.full((len(queries), len(options)), np.nan, np.float32)
  reasons = [""] * len(queries)
  pending = list(range(len(queries)))
  for attempt in range(settings.retries + 1):
    draw = attempt * settings.samples + sample
    conversations = [queries[n].plain for n in pending]
    if settings.reasoning:
      texts = backend.write([queries[n].reasoning for n in pending], draw)
      for n, text in zip(pending, texts, strict=True):
        reasons[n] = text or ""
      pending = [n for n in pending if reasons[n]]
      conversations = [_after_reasons(queries[n], reasons[n]) for n in pending]
    if not conversations:
      read_NJ = []
    elif settings.logprobs:
      read_NJ = backend.options(conversations, options, draw)
    else:
      texts = backend.write(conversations, draw)
      read_NJ = [_parsed_logps(text, options) for text in texts]
    for n, logp_J in zip(pending, read_NJ, strict=True):
      logp_NJ[n] = logp_J
    pending = [n for n in range(len(queries)) if np.isnan(logp_NJ[n]).any()]
    if not pending:
      break
  return logp_NJ, reasons


def _after_reasons(query: _Query, reasons: str) -> Conversation:
  return (
    *query.reasoning,
    ChatTurn("assistant", (Piece(reasons, trusted=False),)),
    ChatTurn("user", query.ending),
  )


def _parsed_logps(text: str | None, options: Sequence[str]) -> np.ndarray:
  choice = None if text is None else parse.choice(text, options)
  if choice is None:
    return np.full(len(options), np.nan, np.float32)
  chosen_J = np.arange(len(options)) == choice
  return np.where(chosen_J, 0, _IMPOSSIBLE).astype(np.float32)


def _first_wins(logp_NJ: np.ndarray, both_orders: bool) -> np.ndarray:
  """Returns P(first beats second), NaN where the verdict of an order is unreadable."""
  abstains_N = np.isnan(logp_NJ).any(-1)
  logp_NJ = np.where(abstains_N[:, None], 0, logp_NJ)
  shown_NJ = logp_NJ
  swapped_NJ = logp_NJ[:, ::-1]
  if both_orders:
    shown_NJ, swapped_NJ = np.split(logp_NJ, 2)
    abstains_N = np.logical_or(*np.split(abstains_N, 2))
  p_N = np.asarray(ai_labels.debiased(shown_NJ, swapped_NJ))[:, 0]
  return np.where(abstains_N, np.float32(np.nan), p_N)


def _mean(value_SN: np.ndarray) -> np.ndarray:
  """Averages over the readable samples; NaN where there is none."""
  readable_SN = ~np.isnan(value_SN)
  total_N = np.where(readable_SN, value_SN, 0).sum(0)
  count_N = readable_SN.sum(0)
  mean_N = total_N / np.maximum(count_N, 1)
  return np.where(count_N > 0, mean_N, np.nan).astype(np.float32)


def _check(backend: Backend, settings: _VerdictSettings) -> None:
  samples = settings.samples
  if settings.logprobs and backend.options is None:
    raise ValueError(
      f"judge {backend.name} gives no log-probabilities, from which this verdict is "
      "read; parse its text instead (logprobs=False, or `scorer`), or use another model"
    )
  if samples < 1 or settings.retries < 0:
    raise ValueError(
      f"judge: samples={samples}, retries={settings.retries}; allowed: samples >= 1, "
      "retries >= 0"
    )
  if settings.logprobs and samples > 1 and not settings.reasoning:
    raise ValueError(
      f"judge: samples={samples} without reasoning would read the same probabilities "
      "each time; set reasoning=True, logprobs=False, or samples=1"
    )
