"""Judges: a language model's verdict as a preference or a score.

What is asked, in which order, how often, and what becomes of an unreadable verdict is
written here once; a `Backend` (a model on this machine, an endpoint) only writes texts
and, where it can, gives the log-probabilities of the names of verdicts.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

import numpy as np

from xpo_jax.feedback import parse, prompting, protocol
from xpo_jax.feedback.prompting import Conversation, Piece, Turn
from xpo_jax.feedback.protocol import Preference, Scorer, Scores
from xpo_jax.ops import ai_labels

_IMPOSSIBLE = -1e30  # log-probability of the option a text did not choose
_RATED = ("preamble", "sample", "ending")
_RATING = ("prompt", "completion", "levels")


class Backend(NamedTuple):
  """A language model that can be asked.

  Attributes:
    name: for messages.
    write: `(conversations, draw) -> texts`: an answer to each, None where there is
      none. Another draw is another answer; the same draw the same answer.
    options: `(conversations, names, draw) -> logp_NJ`: log-probabilities of the names
      as the first word of the answer, not necessarily normalised, NaN where unknown;
      None: this model does not tell.
  """

  name: str
  write: Callable[[Sequence[Conversation], int], list[str | None]]
  options: Callable[[Sequence[Conversation], Sequence[str], int], np.ndarray] | None


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
  """A judge of pairs.

  Each pair is shown in both orders and the two distributions are averaged
  (`ai_labels.debiased`). A verdict that cannot be read in one of the orders is asked
  for again; then the judge abstains.

  Papers: RLAIF, Lee et al. 2023, arXiv:2309.00267 (log-probabilities of verdicts, both
  orders, reasons first, self-consistency, which did not help there); Constitutional AI,
  Bai et al. 2022, arXiv:2212.08073 (a principle drawn for each pair; labels clamped to
  [0.4, 0.6] after reasoning).

  Args:
    backend: who judges.
    prompt: a prompt file with `{prompt}`, `{first}`, `{second}`; see `prompting`.
    principles: a file of principles, one of them drawn for each pair: then the prompt
      has `{principle}` too.
    options: what the prompt file calls the first answer and the second.
    logprobs: read the probabilities of the options; False: read the text.
    reasoning: let the judge argue first (the part `reasoning`).
    samples: verdicts averaged over, each with reasons of its own; >= 1.
    retries: how often an unreadable verdict is asked for again.
    both_orders: False: ask with the first answer first only; for
      `evaluation.judge_bias`.
    clamp: bounds of the probability, or None.
    seed: of the drawn principle.

  Returns:
    Preference; its reason is what the judge argued on the first sample, first order.

  Raises:
    ValueError: a prompt file that does not fit, log-probabilities of a backend that has
      none, or samples that would all be equal.
  """
  places = {"prompt", "first", "second"} | ({"principle"} if principles else set())
  parts = ("preamble", "sample", "ending") + (("reasoning",) if reasoning else ())
  made = prompting.load(prompt, parts, places)
  drawn_from = prompting.principles(principles) if principles else ()
  _check(backend, logprobs, reasoning, samples, retries)
  if len(set(options)) != 2:
    raise ValueError(f"options: {tuple(options)}; a judge of pairs needs two names")

  def question(asked: str, first: str, second: str) -> _Question:
    texts = {"prompt": asked, "first": first, "second": second}
    words = {}
    if drawn_from:
      uniform = prompting.draw(seed, asked, *sorted((first, second)))
      words["principle"] = drawn_from[int(uniform * len(drawn_from))]
    return _question(made, texts, words)

  def judge(
    prompts: Sequence[str], first: Sequence[str], second: Sequence[str]
  ) -> Scores:
    if not len(prompts):
      return Scores(np.zeros(0, np.float32), ())
    shown = [question(*each) for each in zip(prompts, first, second, strict=True)]
    if both_orders:
      shown += [question(*each) for each in zip(prompts, second, first, strict=True)]
    p_SN, reason = [], None
    for sample in range(samples):
      logp_NJ, argued = _verdicts(
        backend, shown, options, logprobs, reasoning, sample, samples, retries
      )
      p_SN.append(_first_wins(logp_NJ, both_orders))
      reason = argued if reason is None else reason
    p_N = _mean(np.stack(p_SN))
    return Scores(p_N, tuple(reason[: len(prompts)]))

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
  """A judge that argues and ends with "Score: n".

  Paper: Self-Rewarding Language Models, Yuan et al. 2024, arXiv:2401.10020: five
  additive points, the mean of three verdicts.

  Args:
    backend: who judges.
    prompt: a prompt file with `{prompt}` and `{completion}`.
    least: the lowest score.
    most: the highest.
    samples: verdicts averaged over; unreadable ones are left out.
    retries: how often an unreadable verdict is asked for again.

  Returns:
    Scorer; NaN where no verdict could be read; its reason is the first verdict's text.

  Raises:
    ValueError: a prompt file that does not fit, or numbers out of range.
  """
  made = prompting.load(
    prompt, ("preamble", "sample", "ending"), ("prompt", "completion")
  )
  _check(backend, False, False, samples, retries)
  if not least < most:
    raise ValueError(f"scorer: least={least!r} must be below most={most!r}")

  def score(prompts: Sequence[str], completions: Sequence[str]) -> Scores:
    asked = [
      _question(made, {"prompt": p, "completion": c}, {}).plain
      for p, c in zip(prompts, completions, strict=True)
    ]
    value_SN = np.full((samples, len(asked)), np.nan, np.float32)
    reason = [""] * len(asked)
    for sample in range(samples):
      waiting = list(range(len(asked)))
      for attempt in range(retries + 1):
        if not waiting:
          break
        texts = backend.write([asked[n] for n in waiting], attempt * samples + sample)
        for n, text in zip(waiting, texts, strict=True):
          found = None if text is None else parse.score(text, least, most)
          if found is not None:
            value_SN[sample, n] = found
            reason[n] = reason[n] or text
        waiting = [n for n in waiting if np.isnan(value_SN[sample, n])]
    return Scores(_mean(value_SN), tuple(reason))

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
  """The mean rating under the probabilities of 1 to `levels`, scaled to [-1, 1].

  Paper: direct RLAIF, Lee et al. 2023, arXiv:2309.00267: 10 levels.

  Args:
    backend: who judges; must give log-probabilities.
    prompt: a prompt file with `{prompt}`, `{completion}` and `{levels}`.
    levels: >= 2. A local model must write each as one token, at most 9 for many, and is
      refused otherwise; of an endpoint that is not known: one that writes "10" in two
      tokens would count it as 1.
    reasoning: let the judge argue first (the part `reasoning`).
    samples: ratings averaged over, each with reasons of its own.
    retries: how often an unreadable verdict is asked for again.

  Raises:
    ValueError: a prompt file that does not fit, a backend without log-probabilities, or
      numbers out of range.
  """
  made = prompting.load(prompt, _RATED + (("reasoning",) * reasoning), _RATING)
  _check(backend, True, reasoning, samples, retries)
  if levels < 2:
    raise ValueError(f"rating: levels={levels}; at least 2")
  names = tuple(str(1 + level) for level in range(levels))

  def rate(prompts: Sequence[str], completions: Sequence[str]) -> Scores:
    if not len(prompts):
      return Scores(np.zeros(0, np.float32), ())
    asked = [
      _question(made, {"prompt": p, "completion": c}, {"levels": str(levels)})
      for p, c in zip(prompts, completions, strict=True)
    ]
    value_SN, reason = [], None
    for sample in range(samples):
      logp_NJ, argued = _verdicts(
        backend, asked, names, True, reasoning, sample, samples, retries
      )
      silent_N = np.isnan(logp_NJ).any(-1)
      mean_N = ai_labels.expected_score(np.where(silent_N[:, None], 0, logp_NJ))
      scaled_N = np.asarray(ai_labels.rescaled(mean_N, 1, levels))
      value_SN.append(np.where(silent_N, np.float32(np.nan), scaled_N))
      reason = argued if reason is None else reason
    return Scores(_mean(np.stack(value_SN)), tuple(reason))

  return rate


def rating_question(
  asked: str, completion: str, *, prompt: str = "rating", levels: int = 10
) -> Conversation:
  """What `rating` asks about one answer, to teach a model to answer it.

  Args:
    asked: the prompt of the answer.
    completion: the answer.
    prompt: a prompt file, see `rating`.
    levels: the highest rating.
  """
  made = prompting.load(prompt, _RATED, _RATING)
  texts = {"prompt": asked, "completion": completion}
  return _question(made, texts, {"levels": str(levels)}).plain


class _Question(NamedTuple):
  """A question, and what is said around the judge's reasons where it argues first."""

  plain: Conversation
  arguing: Conversation
  ending: tuple[Piece, ...]


def _question(made: prompting.Prompt, texts, words: Mapping[str, str]) -> _Question:
  before = tuple(part for part in ("preamble", "examples") if part in made.parts)
  plain = prompting.fill(made, (*before, "sample", "ending"), texts, words)
  arguing = plain
  if "reasoning" in made.parts:
    arguing = prompting.fill(made, (*before, "sample", "reasoning"), texts, words)
  ending = prompting.fill(made, ("ending",), texts, words, note=False)
  return _Question((Turn("user", plain),), (Turn("user", arguing),), ending)


def _verdicts(
  backend: Backend,
  asked: Sequence[_Question],
  options: Sequence[str],
  logprobs: bool,
  reasoning: bool,
  sample: int,
  samples: int,
  retries: int,
) -> tuple[np.ndarray, list[str]]:
  """Log-probs of the options, `[N, J]`, NaN where unreadable; what was argued."""
  logp_NJ = np.full((len(asked), len(options)), np.nan, np.float32)
  reasons = [""] * len(asked)
  waiting = list(range(len(asked)))
  for attempt in range(retries + 1):
    draw = attempt * samples + sample
    conversations = [asked[n].plain for n in waiting]
    if reasoning:
      arguing = [asked[n].arguing for n in waiting]
      argued = backend.write(arguing, draw)
      for n, text in zip(waiting, argued, strict=True):
        reasons[n] = text or ""
      waiting = [n for n in waiting if reasons[n]]
      conversations = [_after(asked[n], reasons[n]) for n in waiting]
    if not conversations:
      read_NJ = []
    elif logprobs:
      read_NJ = backend.options(conversations, options, draw)
    else:
      texts = backend.write(conversations, draw)
      read_NJ = [_chosen(text, options) for text in texts]
    for n, logp_J in zip(waiting, read_NJ, strict=True):
      logp_NJ[n] = logp_J
    waiting = [n for n in range(len(asked)) if np.isnan(logp_NJ[n]).any()]
    if not waiting:
      break
  return logp_NJ, reasons


def _after(question: _Question, argued: str) -> Conversation:
  return (
    *question.arguing,
    Turn("assistant", (Piece(argued, trusted=False),)),
    Turn("user", question.ending),
  )


def _chosen(text: str | None, options: Sequence[str]) -> np.ndarray:
  found = None if text is None else parse.choice(text, options)
  if found is None:
    return np.full(len(options), np.nan, np.float32)
  return np.where(np.arange(len(options)) == found, 0, _IMPOSSIBLE).astype(np.float32)


def _first_wins(logp_NJ: np.ndarray, both_orders: bool) -> np.ndarray:
  """P(first beats second), NaN where an order could not be read."""
  silent_N = np.isnan(logp_NJ).any(-1)
  logp_NJ = np.where(silent_N[:, None], 0, logp_NJ)
  shown_NJ, swapped_NJ = logp_NJ, logp_NJ[:, ::-1]
  if both_orders:
    shown_NJ, swapped_NJ = np.split(logp_NJ, 2)
    silent_N = np.logical_or(*np.split(silent_N, 2))
  p_N = np.asarray(ai_labels.debiased(shown_NJ, swapped_NJ))[:, 0]
  return np.where(silent_N, np.float32(np.nan), p_N)


def _mean(value_SN: np.ndarray) -> np.ndarray:
  """Mean over samples that could be read; NaN where none could."""
  read_SN = ~np.isnan(value_SN)
  total_N = np.where(read_SN, value_SN, 0).sum(0)
  count_N = read_SN.sum(0)
  mean_N = total_N / np.maximum(count_N, 1)
  return np.where(count_N > 0, mean_N, np.nan).astype(np.float32)


def _check(
  backend: Backend, logprobs: bool, reasoning: bool, samples: int, retries: int
) -> None:
  if logprobs and backend.options is None:
    raise ValueError(
      f"judge {backend.name} gives no log-probabilities, which this verdict is read "
      "from; read its text instead (logprobs=False, or `scorer`), or ask another model"
    )
  if samples < 1 or retries < 0:
    raise ValueError(
      f"judge: samples={samples}, retries={retries}; allowed: samples >= 1, "
      "retries >= 0"
    )
  if logprobs and samples > 1 and not reasoning:
    raise ValueError(
      f"judge: samples={samples} without reasoning would read the same probabilities "
      "each time; set reasoning=True, logprobs=False, or samples=1"
    )
