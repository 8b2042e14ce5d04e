"""The embedded world: a grammar of short reviews whose true reward is known.

A review is an opening that leaves the verdict open (the prompt) and a verdict (the
completion). Each draws a latent sentiment that its words follow most of the time. The
true reward is the VADER compound of the whole text, so a laptop can rebuild the
controlled-sentiment study of the DPO paper (Rafailov et al. 2023, arXiv:2305.18290,
Sec. 6) with labels whose noise and optimum are known.
"""

import functools
import random
from collections.abc import Sequence

import numpy as np
from scipy import special
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast
from vaderSentiment import vaderSentiment

BOS, EOS, PAD = "<s>", "</s>", "<pad>"

# Openings: words that VADER does not know, so that a prompt has reward 0.
_KINDS = (
  "film movie noir western musical drama sequel remake cartoon documentary epic story "
  "picture series pilot short feature production mystery biopic"
).split()
_MADE = (
  "new old french indian german modern italian silent student studio period summer "
  "animated foreign dutch rural winter"
).split()
_PARTS = (
  "acting plot script dialogue ending opening music camera pace editing setting cast "
  "lead director scenery writing sound costume lighting finale score premise middle "
  "prologue tone"
).split()
_LINKS = "is was feels felt seems looks remains".split()
_GIVES = "has offers delivers brings shows gets".split()
_VIEWERS = "i we you they visitors viewers".split()
_FOUND = "found called considered".split()

# Verdicts, by sentiment. All but the last group carry a VADER valence.
_GOOD = (
  "good great superb charming brilliant lovely fun funny clever honest strong fine "
  "smart amazing excellent perfect beautiful wonderful sweet fresh warm enjoyable "
  "graceful elegant exciting terrific pleasant delightful fantastic impressive "
  "magnificent lively splendid inspired caring"
).split()
_BAD = (
  "bad poor awful dull boring weak terrible stupid horrible dreadful nasty annoying "
  "lame tragic ugly pathetic messy empty dumb disappointing lousy crude cruel painful "
  "ridiculous gloomy worthless ruined tired fake vile dreary hateful miserable bitter"
).split()
_PLAIN = (
  "long slow short quiet familiar simple uneven brief dark loud plain usual mild"
).split()
_JOYS = (
  "joy delight treasure triumph charm success pleasure treat winner beauty hope hug "
  "blessing miracle gift"
).split()
_WOES = (
  "mess failure disaster waste bore pain shame horror fiasco insult fraud loss "
  "mistake crime"
).split()
_PLAINS = "puzzle postcard lecture sketch habit montage essay walk".split()
_BOOSTERS = "very really so quite truly".split()

_ADJECTIVES = {1: _GOOD, -1: _BAD, 0: _PLAIN}
_NOUNS = {1: _JOYS, -1: _WOES, 0: _PLAINS}


def generate(n: int, seed: int) -> list[tuple[str, str]]:
  """Draws n reviews.

  Args:
    n: how many.
    seed: with n, all that the result depends on; the first m of n reviews are those
      of `generate(m, seed)`.

  Returns:
    (prompt, completion) pairs; the text is their concatenation, the completion starts
    with a space and ends with a full stop.
  """
  rng = random.Random(seed)
  return [_review(rng) for _ in range(n)]


def _pick(rng: random.Random, words: Sequence[str]) -> str:
  # Python promises the same random() in every version, but not the same choice().
  return words[int(rng.random() * len(words))]


def _review(rng: random.Random) -> tuple[str, str]:
  prompt, verdict = _opening(rng)
  sentiment = 1 if rng.random() < 0.55 else -1
  words = verdict(rng, sentiment)
  if rng.random() < 0.6:
    words += _clause(rng, sentiment)
  return prompt, f" {words}."


def _opening(rng: random.Random):
  """A prompt and the kind of phrase that continues it."""
  form = int(rng.random() * 5)
  kind, part = _pick(rng, _KINDS), _pick(rng, _PARTS)
  if form == 0:
    return f"the {part} of this {kind} {_pick(rng, _LINKS)}", _quality
  if form == 1:
    return f"this {_pick(rng, _MADE)} {kind} {_pick(rng, _LINKS)}", _quality
  if form == 2:
    return f"{_pick(rng, _VIEWERS)} {_pick(rng, _FOUND)} the {part}", _quality
  if form == 3:
    return f"the {_pick(rng, _MADE)} {kind} {_pick(rng, _GIVES)}", _thing
  return f"in this {kind} the {part} {_pick(rng, _LINKS)}", _quality


def _lean(rng: random.Random, sentiment: int) -> int:
  """The sentiment of one word: mostly the review's, sometimes plain or opposite."""
  u = rng.random()
  return sentiment if u < 0.82 else 0 if u < 0.9 else -sentiment


def _quality(rng: random.Random, sentiment: int) -> str:
  lean = _lean(rng, sentiment)
  u = rng.random()
  if u < 0.1:
    return f"not {_pick(rng, _ADJECTIVES[-lean])}"
  if u < 0.35:
    return f"{_pick(rng, _BOOSTERS)} {_pick(rng, _ADJECTIVES[lean])}"
  if u < 0.6:
    second = _pick(rng, _ADJECTIVES[_lean(rng, sentiment)])
    return f"{_pick(rng, _ADJECTIVES[lean])} and {second}"
  if u < 0.75:
    return _thing(rng, sentiment)
  return _pick(rng, _ADJECTIVES[lean])


def _thing(rng: random.Random, sentiment: int) -> str:
  adjective = _pick(rng, _ADJECTIVES[_lean(rng, sentiment)])
  if rng.random() < 0.5:
    return f"the {adjective} {_pick(rng, _NOUNS[_lean(rng, sentiment)])}"
  return f"the most {adjective} {_pick(rng, _PARTS)}"


def _clause(rng: random.Random, sentiment: int) -> str:
  u = rng.random()
  if u < 0.45:
    return (
      f", with {_pick(rng, _ADJECTIVES[_lean(rng, sentiment)])} {_pick(rng, _PARTS)}"
    )
  joint, lean = (", but", -sentiment) if u < 0.6 else (" and", sentiment)
  return f"{joint} the {_pick(rng, _PARTS)} {_pick(rng, _LINKS)} {_quality(rng, lean)}"


def train_bpe(texts: Sequence[str], vocab_size: int) -> PreTrainedTokenizerFast:
  """Trains a byte-level BPE tokenizer; any text can be encoded.

  Args:
    texts: what to learn the merges from.
    vocab_size: most entries, the 256 bytes and three special tokens included; 1024
      is enough for every word of this world to be one token.

  Returns:
    A tokenizer with `<s>`, `</s>` and `<pad>` (ids 0, 1, 2); it adds none by itself.

  Raises:
    ValueError: no texts, or vocab_size <= 259.
  """
  special_tokens = [BOS, EOS, PAD]
  alphabet = pre_tokenizers.ByteLevel.alphabet()
  smallest = len(alphabet) + len(special_tokens)
  if not texts:
    raise ValueError("texts: there is nothing to train a tokenizer on")
  if vocab_size <= smallest:
    raise ValueError(
      f"vocab_size: {vocab_size} leaves no room for merges; use more than {smallest}"
    )
  tokenizer = Tokenizer(models.BPE())
  tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
  tokenizer.decoder = decoders.ByteLevel()
  trainer = trainers.BpeTrainer(
    vocab_size=vocab_size,
    special_tokens=special_tokens,
    initial_alphabet=sorted(alphabet),
    show_progress=False,
  )
  tokenizer.train_from_iterator(texts, trainer)
  return PreTrainedTokenizerFast(
    tokenizer_object=tokenizer, bos_token=BOS, eos_token=EOS, pad_token=PAD
  )


@functools.cache
def _analyzer() -> vaderSentiment.SentimentIntensityAnalyzer:
  return vaderSentiment.SentimentIntensityAnalyzer()


def true_reward(texts: Sequence[str]) -> np.ndarray:
  """The VADER compound of each whole text (prompt and completion): float32, in [-1, 1].

  Hutto and Gilbert 2014, through the `vaderSentiment` package.
  """
  scores = (_analyzer().polarity_scores(text)["compound"] for text in texts)
  return np.fromiter(scores, np.float32, len(texts))


def label_pairs(
  reward_a: np.ndarray,
  reward_b: np.ndarray,
  temperature: float,
  rng: np.random.Generator,
) -> np.ndarray:
  """Draws preferences by Bradley-Terry: p(a preferred) = sigmoid((r_a - r_b) / tau).

  Args:
    reward_a: true reward of each first answer.
    reward_b: true reward of each second answer.
    temperature: tau, in units of reward; > 0. Labels turn to coin flips as it grows.
    rng: the draw.

  Returns:
    bool per pair, True where a is preferred.

  Raises:
    ValueError: temperature <= 0.
  """
  return rng.random(len(reward_a)) < _p_first(reward_a, reward_b, temperature)


def expected_accuracy(
  reward_a: np.ndarray, reward_b: np.ndarray, temperature: float
) -> float:
  """Share of labels that agree with the true order: what a perfect ranker scores.

  The mean of sigmoid(|r_a - r_b| / tau) over pairs that are not tied: the optimum that
  held-out preference accuracy is compared with.

  Raises:
    ValueError: temperature <= 0, or every pair is tied.
  """
  untied = np.asarray(reward_a) != np.asarray(reward_b)
  if not untied.any():
    raise ValueError("every pair is tied, so no order can be right")
  p = _p_first(reward_a, reward_b, temperature)
  return float(np.maximum(p, 1 - p)[untied].mean())


def _p_first(reward_a, reward_b, temperature: float) -> np.ndarray:
  if not temperature > 0:
    raise ValueError(f"temperature: {temperature} is not positive")
  gap = np.asarray(reward_a, np.float64) - np.asarray(reward_b, np.float64)
  return special.expit(gap / temperature)
