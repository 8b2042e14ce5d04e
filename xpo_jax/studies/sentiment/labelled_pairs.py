"""Data of the controlled-sentiment study: a corpus with a known reward, and pairs.

The reward of a text is its VADER compound, so labels can be drawn by Bradley-Terry at
a stated temperature: their noise and the best possible accuracy are known.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from xpo_jax.config import experiment
from xpo_jax.data import records, sources, split, synthetic_reviews, tokenise
from xpo_jax.models import generate, transformer
from xpo_jax.models.generation_config import GenerationConfig
from xpo_jax.studies.sentiment.settings import SentimentStudy
from xpo_jax.train import loading
from xpo_jax.types import Array, Layout, Params


class Corpus(NamedTuple):
  """Texts cut into prompt and completion; no prompt is in two splits.

  Attributes:
    name: where they come from.
    demonstrations: split -> records.
    tokenizer: encodes and decodes them.
    dropped: rows that could not be used.
  """

  name: str
  demonstrations: dict[str, list[records.Demonstration]]
  tokenizer: Any
  dropped: tuple[records.BadRecord, ...] = ()

  def examples(self, name: str, max_completion_tokens: int) -> list[tokenise.Example]:
    """A split in tokens, completions cut to the limit."""
    limits = tokenise.Limits(completion=max_completion_tokens)
    return tokenise.tokenise(self.demonstrations[name], self.tokenizer, limits=limits)

  def prompts(self, name: str) -> list[np.ndarray]:
    """The distinct prompts of a split in tokens, in the order of the texts."""
    seen = {record.prompt: record for record in self.demonstrations[name]}
    return tokenise.tokenise_prompts(list(seen.values()), self.tokenizer)


class SampledPairs(NamedTuple):
  """Two samples a prompt from the SFT policy, with their true rewards.

  Attributes:
    prompts: token ids.
    completions: two per prompt, EOS included where the sample ended.
    reward_P2: their true rewards.
    identical: pairs left out because both samples were the same text.
  """

  prompts: list[np.ndarray]
  completions: list[tuple[np.ndarray, np.ndarray]]
  reward_P2: np.ndarray
  identical: int

  def in_order(self, labelled: Sequence[tokenise.Example]) -> np.ndarray:
    """True rewards `[P, 2]` of the chosen and the rejected completions."""
    swapped = [
      e.completions[0] is not both[0]
      for e, both in zip(labelled, self.completions, strict=True)
    ]
    return np.where(np.array(swapped)[:, None], self.reward_P2[:, ::-1], self.reward_P2)


def corpus(study: SentimentStudy, tokenizer: Any = None) -> Corpus:
  """The study's texts, split by prompt.

  Args:
    study: names the source.
    tokenizer: of a pretrained policy; None trains one on the train split.

  Raises:
    BadRecords: a record is bad.
    ValueError: no such source, or its rows are not texts.
  """
  if study.source is None:
    name, dropped = "synthetic reviews", ()
    rows = _synthetic(study.num_texts, study.seed)
  else:
    name, rows, dropped = _read(study)
  parts = split.by_prompt(rows, split.PORTIONS, study.seed)
  if tokenizer is None:
    texts = [row.prompt + row.completion for row in parts["train"]]
    tokenizer = synthetic_reviews.train_bpe(texts, study.vocab)
  return Corpus(name, parts, tokenizer, dropped)


def _synthetic(texts: int, seed: int) -> list[records.Demonstration]:
  return [
    records.Demonstration(f"review {i}", prompt, completion)
    for i, (prompt, completion) in enumerate(synthetic_reviews.generate(texts, seed))
  ]


def _read(study: SentimentStudy):
  data = experiment.Data(
    path=study.source,
    split=study.source_split,
    limit=study.num_texts,
    reading=sources.Reading(prompt_words=study.prompt_words),
  )
  loaded = loading.load(data, data, {})
  if loaded.bad and study.bad_rows == "stop":
    raise records.BadRecords(loaded.bad)
  if not loaded.records:
    raise ValueError(
      f"SentimentStudy.source: {loaded.name} has no row that can be used"
    )
  if not isinstance(loaded.records[0], records.Demonstration):
    kind = type(loaded.records[0]).__name__
    raise ValueError(
      f"SentimentStudy.source: {loaded.name} holds {kind} rows; this study needs texts "
      "(a 'text' column, or 'prompt' and 'completion')"
    )
  return loaded.name, list(loaded.records), loaded.bad


def complete(
  model: transformer.Model,
  params: Params,
  tokenizer: Any,
  prompts: Sequence[np.ndarray],
  *,
  completions: int,
  max_completion_tokens: int,
  key: Array,
  sequences: int = 1024,
) -> tuple[list[np.ndarray], list[str]]:
  """Samples at temperature 1.

  Args:
    model: the architecture.
    params: `{"lm": ...}` of the policy.
    tokenizer: decodes; its EOS ends a completion.
    prompts: token ids.
    completions: K samples a prompt.
    max_completion_tokens: longest completion.
    key: of the sampling.
    sequences: decoded at once.

  Returns:
    Completions as int32 ids (EOS included where one ended) and full texts, both in
    the order of the prompts, K in a row.
  """
  batch = min(max(sequences // completions, 1), len(prompts))
  drawn = generate.generate(
    model,
    params["lm"],
    prompts,
    tokenizer=tokenizer,
    config=GenerationConfig(max_completion_tokens, completions=completions),
    key=key,
    batching=generate.Batching(batch),
  )
  ids = [
    tokens for of_prompt in drawn.unpadded(drawn.tokens_BKT) for tokens in of_prompt
  ]
  texts = [
    prompt + text
    for prompt, of_prompt in zip(drawn.prompts, drawn.texts_BK, strict=True)
    for text in of_prompt
  ]
  return ids, texts


def draw_pairs(
  model: transformer.Model,
  params: Params,
  tokenizer: Any,
  prompts: Sequence[np.ndarray],
  *,
  max_completion_tokens: int,
  key: Array,
) -> SampledPairs:
  """Samples two completions a prompt; arguments as in `complete`."""
  ids, texts = complete(
    model,
    params,
    tokenizer,
    prompts,
    completions=2,
    max_completion_tokens=max_completion_tokens,
    key=key,
  )
  both = list(zip(ids[::2], ids[1::2], strict=True))
  different = [i for i, (a, b) in enumerate(both) if not np.array_equal(a, b)]
  reward_P2 = synthetic_reviews.true_reward(texts).reshape(-1, 2)
  return SampledPairs(
    prompts=[prompts[i] for i in different],
    completions=[both[i] for i in different],
    reward_P2=reward_P2[different],
    identical=len(prompts) - len(different),
  )


def label(
  pairs: SampledPairs, temperature: float, seed: Sequence[int], kind: str = "true"
) -> list[tokenise.Example]:
  """Preferences over pairs: chosen in column 0, rejected in column 1.

  Args:
    pairs: the samples.
    temperature: of Bradley-Terry on the true reward.
    seed: of the labels.
    kind: "true"; "flipped", the same labels swapped; or "random", with probability 1/2.

  Returns:
    PAIR examples, in the order of the pairs.
  """
  rng = np.random.default_rng(seed)
  first_P = synthetic_reviews.label_pairs(*pairs.reward_P2.T, temperature, rng=rng)
  if kind == "flipped":
    first_P = ~first_P
  elif kind == "random":
    first_P = rng.random(len(first_P)) < 0.5
  elif kind != "true":
    raise ValueError(f"kind: {kind!r} is none of 'true', 'flipped', 'random'")
  return [
    tokenise.Example(f"pair {i}", prompt, (a, b) if first else (b, a), Layout.PAIR)
    for i, (prompt, (a, b), first) in enumerate(
      zip(pairs.prompts, pairs.completions, first_P, strict=True)
    )
  ]
