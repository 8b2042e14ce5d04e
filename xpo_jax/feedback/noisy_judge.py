"""Judges and critics that follow a script and err at a stated rate.

Where a demonstration needs a judge that no small model can be, this one stands in for
it. Its luck depends on seed and content only: asked again, in another batch or after a
restart, it says the same.
"""

from collections.abc import Mapping, Sequence

import numpy as np
from vaderSentiment import vaderSentiment

from xpo_jax.feedback import prompting, rules
from xpo_jax.feedback.constitution import Critic, Revised
from xpo_jax.feedback.protocol import Preference, Scorer, Scores, check_scores

_MARKS = ".,;!?"


def preference(
  truth: Scorer | None = None,
  *,
  error: float = 0.1,
  position: float = 0.0,
  temperature: float = 0.0,
  seed: int = 0,
) -> Preference:
  """A judge that knows the truth and errs.

  Args:
    truth: the score by which the better one wins; None: the embedded world's reward.
    error: share of the pairs it looks at on which it is wrong, whichever is shown
      first; in [0, 1].
    position: share of all pairs at which it does not look, and takes what is shown
      first; in [0, 1].
    temperature: how unsure it is, as in `rules.bradley_terry`; 0: quite sure. Where it
      is wrong it is so as surely.
    seed: of its luck.

  Returns:
    Preference; 1/2 where the truth is a draw. It abstains where the truth does.

  Raises:
    ValueError: a share outside [0, 1].
  """
  _check_share("error", error)
  _check_share("position", position)
  better = rules.bradley_terry(truth or rules.synthetic_reward(), temperature)

  def judge(
    prompts: Sequence[str], first: Sequence[str], second: Sequence[str]
  ) -> Scores:
    p_N = np.array(better(prompts, first, second).value_N)
    for n, (prompt, *pair) in enumerate(zip(prompts, first, second, strict=True)):
      content = (prompt, *sorted(pair))
      if prompting.draw(seed, "position", *content) < position:
        p_N[n] = np.where(np.isnan(p_N[n]), np.nan, 1)
      elif prompting.draw(seed, "error", *content) < error:
        p_N[n] = 1 - p_N[n]
    return Scores(p_N)

  return judge


def scorer(
  truth: Scorer | None = None,
  *,
  error: float = 0.1,
  least: float = -1.0,
  most: float = 1.0,
  levels: int = 5,
  seed: int = 0,
) -> Scorer:
  """A rater that knows the truth in whole points and errs.

  Args:
    truth: what it rates; None: the embedded world's reward.
    error: share of completions that get another rating, any at equal odds.
    least: the truth that gets 0; less does too.
    most: the truth that gets `levels`; more does too.
    levels: the highest rating; the lowest is 0.
    seed: of its luck.

  Raises:
    ValueError: a share outside [0, 1], no room between least and most, no levels.
  """
  _check_share("error", error)
  if not least < most or levels < 1:
    raise ValueError(
      f"scripted rater: least={least!r}, most={most!r}, levels={levels!r}; it must "
      "hold least < most and levels >= 1"
    )
  known = truth or rules.synthetic_reward()

  def rate(prompts: Sequence[str], completions: Sequence[str]) -> Scores:
    true_N = check_scores(known(prompts, completions), len(completions)).value_N
    value_N = np.round(levels * np.clip((true_N - least) / (most - least), 0, 1))
    for n, content in enumerate(zip(prompts, completions, strict=True)):
      uniform = prompting.draw(seed, "error", *content)
      if uniform < error:
        # One of the others: 1 to `levels` on from the right one, round the circle.
        step = 1 + int(levels * uniform / error)
        value_N[n] = (value_N[n] + step) % (levels + 1)
    return Scores(value_N.astype(np.float32))

  return rate


def harshness() -> Scorer:
  """How many words of a completion VADER holds to be negative: what `critic` mends."""
  known = _harsh_words()

  def count(prompts: Sequence[str], completions: Sequence[str]) -> Scores:
    if len(prompts) != len(completions):
      raise ValueError(f"{len(prompts)} prompts, but {len(completions)} completions")
    found = [len(_wrong(text.split(" "), known)) for text in completions]
    return Scores(np.array(found, np.float32))

  return count


def critic(
  better: Mapping[str, str] | None = None, *, error: float = 0.1, seed: int = 0
) -> Critic:
  """A critic that knows which words are wrong, and mends one a round.

  Args:
    better: word -> what to write in its place; None: every word that VADER holds to be
      negative becomes "fine".
    error: share of revisions that are forgotten; in [0, 1].
    seed: of its luck.

  Raises:
    ValueError: a share outside [0, 1].
  """
  _check_share("error", error)
  known = _harsh_words() if better is None else dict(better)

  def criticise(
    prompts: Sequence[str], completions: Sequence[str], draw: int
  ) -> Revised:
    said, texts = [], []
    for prompt, completion in zip(prompts, completions, strict=True):
      words = completion.split(" ")
      wrong = _wrong(words, known)
      forgets = prompting.draw(seed, str(draw), prompt, completion) < error
      if not wrong:
        said.append("No word is wrong.")
      else:
        bare = words[wrong[0]].strip(_MARKS)
        said.append(f"The word {bare!r} is wrong.")
        if not forgets:
          words[wrong[0]] = words[wrong[0]].replace(bare, known[bare.lower()])
      texts.append(" ".join(words))
    return Revised(tuple(said), tuple(texts), ("",) * len(texts))

  return criticise


def _harsh_words() -> dict[str, str]:
  lexicon = vaderSentiment.SentimentIntensityAnalyzer().lexicon
  return {word: "fine" for word, valence in lexicon.items() if valence < 0}


def _wrong(words: Sequence[str], known: Mapping[str, str]) -> list[int]:
  """Places of the words that are known to be wrong."""
  return [n for n, word in enumerate(words) if word.strip(_MARKS).lower() in known]


def _check_share(name: str, share: float) -> None:
  if not 0 <= share <= 1:
    raise ValueError(f"scripted judge: {name} is {share!r}; allowed: 0 to 1")
