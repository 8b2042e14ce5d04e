"""Generates synthetic reviews from a grammar; their true reward is known.

A review is a neutral opening (the prompt) and a verdict (the completion). Each review
draws a latent sentiment, with which most of its words agree. The true reward is the
VADER compound score of the whole text. The controlled-sentiment study of the DPO paper
(Rafailov et al. 2023, arXiv:2305.18290, Sec. 6) can so be repeated with a small model
and labels whose noise and optimum are known.
"""

import functools
import random
import re
import sys
from collections.abc import Iterator, Sequence

import numpy as np
from scipy import special
from tokenizers import (
  Tokenizer,
  decoders,
  models,
  pre_tokenizers,
  processors,
  trainers,
)
from transformers import PreTrainedTokenizerFast
from vaderSentiment import vaderSentiment

BOS, EOS, PAD = "<s>", "</s>", "<pad>"
_LONGEST_WORD = 1000  # characters that merges are learned from at once

# Openings: words outside the VADER lexicon, so that a prompt has reward 0.
_GENRES = (
  "film movie noir western musical drama sequel remake cartoon documentary epic story "
  "picture series pilot short feature production mystery biopic"
).split()
_ORIGINS = (
  "new old french indian german modern italian silent student studio period summer "
  "animated foreign dutch rural winter"
).split()
_ASPECTS = (
  "acting plot script dialogue ending opening music camera pace editing setting cast "
  "lead director scenery writing sound costume lighting finale score premise middle "
  "prologue tone"
).split()
_COPULAS = "is was feels felt seems looks remains".split()
_VERBS = "has offers delivers brings shows gets".split()
_VIEWERS = "i we you they visitors viewers".split()
_JUDGED = "found called considered".split()

# Verdicts, by sentiment. All but the neutral words have a VADER valence.
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
_NEUTRAL = (
  "long slow short quiet familiar simple uneven brief dark loud plain usual mild"
).split()
_GOOD_NOUNS = (
  "joy delight treasure triumph charm success pleasure treat winner beauty hope hug "
  "blessing miracle gift"
).split()
_BAD_NOUNS = (
  "mess failure disaster waste bore pain shame horror fiasco insult fraud loss "
  "mistake crime"
).split()
_NEUTRAL_NOUNS = "puzzle postcard lecture sketch habit montage essay walk".split()
_BOOSTERS = "very really so quite truly".split()

_ADJECTIVES = {1: _GOOD, -1: _BAD, 0: _NEUTRAL}
_NOUNS = {1: _GOOD_NOUNS, -1: _BAD_NOUNS, 0: _NEUTRAL_NOUNS}


def generate(n: int, seed: int) -> list[tuple[str, str]]:
  """Samples n reviews.

  Args:
    n: number of reviews.
    seed: of the generator; the first m of n reviews are those of `generate(m, seed)`.

  Returns:
    (prompt, completion) pairs; the text is their concatenation, the completion starts
    with a space and ends with a full stop.
  """
  rng = random.Random(seed)
  return [_review(rng) for _ in range(n)]


def _choose(rng: random.Random, words: Sequence[str]) -> str:
  # Python guarantees the same random() in every version, but not the same choice().
  return words[int(rng.random() * len(words))]


def _review(rng: random.Random) -> tuple[str, str]:
  prompt, verdict = _opening(rng)
  sentiment = 1 if rng.random() < 0.55 else -1
  words = verdict(rng, sentiment)
  if rng.random() < 0.6:
    words += _clause(rng, sentiment)
  return prompt, f" {words}."


def _opening(rng: random.Random):
  """Returns a prompt and the function that samples its continuation."""
  form = int(rng.random() * 5)
  genre = _choose(rng, _GENRES)
  aspect = _choose(rng, _ASPECTS)
  if form == 0:
    prompt = f"the {aspect} of this {genre} {_choose(rng, _COPULAS)}"
    return prompt, _adjective_phrase
  if form == 1:
    prompt = f"this {_choose(rng, _ORIGINS)} {genre} {_choose(rng, _COPULAS)}"
    return prompt, _adjective_phrase
  if form == 2:
    prompt = f"{_choose(rng, _VIEWERS)} {_choose(rng, _JUDGED)} the {aspect}"
    return prompt, _adjective_phrase
  if form == 3:
    prompt = f"the {_choose(rng, _ORIGINS)} {genre} {_choose(rng, _VERBS)}"
    return prompt, _noun_phrase
  prompt = f"in this {genre} the {aspect} {_choose(rng, _COPULAS)}"
  return prompt, _adjective_phrase


def _word_sentiment(rng: random.Random, sentiment: int) -> int:
  """Samples a word's sentiment: mostly the review's, else neutral or opposite."""
  u = rng.random()
  return sentiment if u < 0.82 else 0 if u < 0.9 else -sentiment


def _adjective(rng: random.Random, sentiment: int) -> str:
  return _choose(rng, _ADJECTIVES[_word_sentiment(rng, sentiment)])


def _adjective_phrase(rng: random.Random, sentiment: int) -> str:
  word_sentiment = _word_sentiment(rng, sentiment)
  u = rng.random()
  if u < 0.1:
    return f"not {_choose(rng, _ADJECTIVES[-word_sentiment])}"
  if u < 0.35:
    return f"{_choose(rng, _BOOSTERS)} {_choose(rng, _ADJECTIVES[word_sentiment])}"
  if u < 0.6:
    second = _adjective(rng, sentiment)
    return f"{_choose(rng, _ADJECTIVES[word_sentiment])} and {second}"
  if u < 0.75:
    return _noun_phrase(rng, sentiment)
  return _choose(rng, _ADJECTIVES[word_sentiment])


def _noun_phrase(rng: random.Random, sentiment: int) -> str:
  adjective = _adjective(rng, sentiment)
  if rng.random() < 0.5:
    return f"the {adjective} {_choose(rng, _NOUNS[_word_sentiment(rng, sentiment)])}"
  return f"the most {adjective} {_choose(rng, _ASPECTS)}"


def _clause(rng: random.Random, sentiment: int) -> str:
  u = rng.random()
  if u < 0.45:
    return f", with {_adjective(rng, sentiment)} {_choose(rng, _ASPECTS)}"
  conjunction = ", but" if u < 0.6 else " and"
  clause_sentiment = -sentiment if u < 0.6 else sentiment
  subject = f"{conjunction} the {_choose(rng, _ASPECTS)} {_choose(rng, _COPULAS)}"
  return f"{subject} {_adjective_phrase(rng, clause_sentiment)}"


def train_bpe(texts: Sequence[str], vocab_size: int) -> PreTrainedTokenizerFast:
  """Trains a byte-level BPE tokenizer, which can encode any text.

  Args:
    texts: the training corpus.
    vocab_size: maximum size, including the 256 bytes and three special tokens; with
      1024 every word of the synthetic reviews is one token.

  Returns:
    A tokenizer with `<s>`, `</s>` and `<pad>` (ids 0, 1, 2); encoding puts `<s>` before
    a text.

  Raises:
    ValueError: no texts, or vocab_size <= 259.
  """
  special_tokens = [BOS, EOS, PAD]
  alphabet = pre_tokenizers.ByteLevel.alphabet()
  smallest = len(alphabet) + len(special_tokens)
  if not texts:
    raise ValueError("texts: empty; give at least one text to train on")
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
    show_progress=sys.stderr.isatty(),
  )
  tokenizer.train_from_iterator(_in_pieces(texts), trainer)
  bos = (BOS, tokenizer.token_to_id(BOS))
  tokenizer.post_processor = processors.TemplateProcessing(
    single=f"{BOS} $A", special_tokens=[bos]
  )
  return PreTrainedTokenizerFast(
    tokenizer_object=tokenizer, bos_token=BOS, eos_token=EOS, pad_token=PAD
  )


def _in_pieces(texts: Sequence[str]) -> Iterator[str]:
  """Texts, those with a word of over 1,000 characters in pieces: the cost of learning
  merges grows with the square of a word's length."""
  for text in texts:
    if re.search(rf"\S{{{_LONGEST_WORD + 1}}}|\s{{{_LONGEST_WORD + 1}}}", text):
      starts = range(0, len(text), _LONGEST_WORD)
      yield from (text[start : start + _LONGEST_WORD] for start in starts)
    else:
      yield text


@functools.cache
def _analyzer() -> vaderSentiment.SentimentIntensityAnalyzer:
  return vaderSentiment.SentimentIntensityAnalyzer()


def true_reward(texts: Sequence[str]) -> np.ndarray:
  """Scores each text (prompt and completion) by VADER's compound: float32, in [-1, 1].

  Hutto and Gilbert 2014, through the `vaderSentiment` package.
  """
  scores = (_analyzer().polarity_scores(text)["compound"] for text in texts)
  return np.fromiter(scores, np.float32, len(texts))


def label_pairs(
  reward_a: np.ndarray,
  reward_b: np.ndarray,
  temperature: float,
  *,
  rng: np.random.Generator,
) -> np.ndarray:
  """Samples preferences by Bradley-Terry: p(a preferred) = sigmoid((r_a - r_b) / tau).

  Args:
    reward_a: true reward of each first completion.
    reward_b: true reward of each second completion.
    temperature: tau, in units of reward; > 0. Label noise grows with it.
    rng: source of the samples.

  Returns:
    bool per pair, True where a is preferred.

  Raises:
    ValueError: temperature <= 0.
  """
  return rng.random(len(reward_a)) < _p_first(reward_a, reward_b, temperature)


def expected_accuracy(
  reward_a: np.ndarray, reward_b: np.ndarray, temperature: float
) -> float:
  """Returns the expected accuracy of a perfect ranker on Bradley-Terry labels.

  The mean of sigmoid(|r_a - r_b| / tau) over pairs that are not tied: the upper bound
  of held-out preference accuracy.

  Raises:
    ValueError: temperature <= 0, or every pair is tied.
  """
  untied = np.asarray(reward_a) != np.asarray(reward_b)
  if not untied.any():
    raise ValueError("every pair is tied, so no label can be correct")
  p = _p_first(reward_a, reward_b, temperature)
  return float(np.maximum(p, 1 - p)[untied].mean())


def _p_first(reward_a, reward_b, temperature: float) -> np.ndarray:
  if not temperature > 0:
    raise ValueError(f"temperature: {temperature} is not positive")
  gap = np.asarray(reward_a, np.float64) - np.asarray(reward_b, np.float64)
  return special.expit(gap / temperature)
