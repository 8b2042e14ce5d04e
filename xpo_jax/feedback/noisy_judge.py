"""Builds synthetic judges and critics with a given error rate.

They replace a language model in experiments whose task is too hard for a small model.
Their errors are hashes of seed and content: the same query gives the same verdict in
any batch and after a restart.
"""

from collections.abc import Mapping, Sequence

import numpy as np
from vaderSentiment import vaderSentiment

from xpo_jax.feedback import prompting, rules
from xpo_jax.feedback.constitution import Critic, Revision
from xpo_jax.feedback.protocol import Preference, Scorer, Scores, check_scores

_PUNCTUATION = ".,;!?"


def preference(
  truth: Scorer | None = None,
  *,
  error: float = 0.1,
  position: float = 0.0,
  temperature: float = 0.0,
  seed: int = 0,
) -> Preference:
  """Builds a judge that flips the true preference at a given rate.

  Args:
    truth: the true score; None: the synthetic reviews' reward.
    error: probability of a flipped verdict, in either order; in [0, 1].
    position: probability of choosing the first completion regardless of content; in
      [0, 1]. `error` applies to the other pairs.
    temperature: as in `rules.bradley_terry`; 0: deterministic. A flipped verdict is
      equally confident.
    seed: of the errors.

  Returns:
    Preference; 1/2 where the true scores tie. It abstains where `truth` does.

  Raises:
    ValueError: a probability outside [0, 1].
  """
  _check_probability("error", error)
  _check_probability("position", position)
  true_preference = rules.bradley_terry(truth or rules.synthetic_reward(), temperature)

  def judge(
    prompts: Sequence[str], first: Sequence[str], second: Sequence[str]
  ) -> Scores:
    p_N = np.array(true_preference(prompts, first, second).value_N)
    for n, (prompt, *pair) in enumerate(zip(prompts, first, second, strict=True)):
      content = (prompt, *sorted(pair))
      if prompting.hash_uniform(seed, "position", *content) < position:
        p_N[n] = np.where(np.isnan(p_N[n]), np.nan, 1)
      elif prompting.hash_uniform(seed, "error", *content) < error:
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
  """Builds a scorer that rounds the true score to integer ratings, with errors.

  Args:
    truth: the true score; None: the synthetic reviews' reward.
    error: probability of another rating, uniform over the others.
    least: the true score that maps to 0; lower ones are clipped.
    most: the true score that maps to `levels`; higher ones are clipped.
    levels: the highest rating; the lowest is 0.
    seed: of the errors.

  Raises:
    ValueError: a probability outside [0, 1], least >= most, or levels < 1.
  """
  _check_probability("error", error)
  if not least < most or levels < 1:
    raise ValueError(
      f"noisy_judge.scorer: least={least!r}, most={most!r}, levels={levels!r}; "
      "required: least < most and levels >= 1"
    )
  true_scorer = truth or rules.synthetic_reward()

  def rate(prompts: Sequence[str], completions: Sequence[str]) -> Scores:
    true_N = check_scores(true_scorer(prompts, completions), len(completions)).value_N
    value_N = np.round(levels * np.clip((true_N - least) / (most - least), 0, 1))
    for n, content in enumerate(zip(prompts, completions, strict=True)):
      uniform = prompting.hash_uniform(seed, "error", *content)
      if uniform < error:
        # One of the other ratings: an offset of 1 to `levels`, modulo their number.
        offset = 1 + int(levels * uniform / error)
        value_N[n] = (value_N[n] + offset) % (levels + 1)
    return Scores(value_N.astype(np.float32))

  return rate


def negative_word_count() -> Scorer:
  """Builds a scorer that counts the words that `critic` replaces by default."""
  replacements = _negative_words()

  def count(prompts: Sequence[str], completions: Sequence[str]) -> Scores:
    if len(prompts) != len(completions):
      raise ValueError(f"{len(prompts)} prompts, but {len(completions)} completions")
    counts = [len(_indices(text.split(" "), replacements)) for text in completions]
    return Scores(np.array(counts, np.float32))

  return count


def critic(
  replacements: Mapping[str, str] | None = None, *, error: float = 0.1, seed: int = 0
) -> Critic:
  """Builds a critic that replaces one listed word per round.

  Args:
    replacements: word -> replacement; None: every negative word (by VADER) is replaced
      by "fine".
    error: probability that a revision is omitted; in [0, 1].
    seed: of the errors.

  Raises:
    ValueError: a probability outside [0, 1].
  """
  _check_probability("error", error)
  replacements = _negative_words() if replacements is None else dict(replacements)

  def criticise(
    prompts: Sequence[str], completions: Sequence[str], draw: int
  ) -> Revision:
    critiques = []
    texts = []
    for prompt, completion in zip(prompts, completions, strict=True):
      words = completion.split(" ")
      indices = _indices(words, replacements)
      omits = prompting.hash_uniform(seed, str(draw), prompt, completion) < error
      if not indices:
        critiques.append("No word is wrong.")
      else:
        first = indices[0]
        word = words[first].strip(_PUNCTUATION)
        critiques.append(f"The word {word!r} is wrong.")
        if not omits:
          words[first] = words[first].replace(word, replacements[word.lower()])
      texts.append(" ".join(words))
    return Revision(tuple(critiques), tuple(texts), ("",) * len(texts))

  return criticise


def _negative_words() -> dict[str, str]:
  lexicon = vaderSentiment.SentimentIntensityAnalyzer().lexicon
  return {word: "fine" for word, valence in lexicon.items() if valence < 0}


def _indices(words: Sequence[str], listed: Mapping[str, str]) -> list[int]:
  """Returns the indices of the listed words."""
  return [
    n for n, word in enumerate(words) if word.strip(_PUNCTUATION).lower() in listed
  ]


def _check_probability(name: str, value: float) -> None:
  if not 0 <= value <= 1:
    raise ValueError(f"noisy_judge: {name} is {value!r}; allowed: 0 to 1")
