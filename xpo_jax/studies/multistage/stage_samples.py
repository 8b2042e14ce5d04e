"""Samples of a stage's policy, and the pairs that are made of them."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import numpy as np

from xpo_jax.data import records, synthetic_reviews, tokenise
from xpo_jax.models import generate
from xpo_jax.models.generation_config import GenerationConfig
from xpo_jax.models.transformer import Model
from xpo_jax.types import Params


class Sampled(NamedTuple):
  """Completions of the asked prompts.

  Attributes:
    prompts: B texts.
    texts_BK: K completions each.
    reward_BK: their true reward.
  """

  prompts: list[str]
  texts_BK: list[list[str]]
  reward_BK: np.ndarray


def draw(
  model: Model,
  params: Params,
  tokenizer: Any,
  prompts: Sequence[str],
  *,
  completions: int,
  max_completion_tokens: int,
  seed: int,
  temperature: float = 1.0,
  top_k: int | None = None,
  sequences: int = 1024,
) -> Sampled:
  """Draws completions of prompts and rewards them.

  Args:
    model: of the policy.
    params: `{"lm": ...}` of the policy.
    tokenizer: of the policy; its EOS ends a completion.
    prompts: B texts.
    completions: K.
    max_completion_tokens: longest completion.
    seed: of the draws.
    temperature, top_k: see `GenerationConfig`.
    sequences: decoded at once.
  """
  batch = min(max(sequences // completions, 1), len(prompts))
  drawn = generate.generate(
    model,
    params["lm"],
    encode(tokenizer, prompts),
    tokenizer=tokenizer,
    config=GenerationConfig(
      max_completion_tokens,
      completions=completions,
      temperature=temperature,
      top_k=top_k,
    ),
    key=jax.random.fold_in(jax.random.key(seed), 3),
    batching=generate.Batching(batch),
  )
  texts_BK = [list(texts) for texts in drawn.texts_BK]
  whole = [p + t for p, texts in zip(prompts, texts_BK, strict=True) for t in texts]
  reward_BK = synthetic_reviews.true_reward(whole).reshape(len(prompts), completions)
  return Sampled(list(prompts), texts_BK, reward_BK)


def encode(tokenizer: Any, prompts: Sequence[str]) -> list[np.ndarray]:
  """Token ids of prompts."""
  rows = [records.Prompt(str(i), text) for i, text in enumerate(prompts)]
  return tokenise.tokenise_prompts(rows, tokenizer)


def pairs(
  sampled: Sampled, winner_BJ: np.ndarray, loser_BJ: np.ndarray, keep_BJ: np.ndarray
) -> list[records.Pair]:
  """Comparisons (`pairing.Comparisons`) as preference records.

  Two answers of the same reward, the same text, or without a word make no pair.
  """
  out = []
  for b, prompt in enumerate(sampled.prompts):
    duels = zip(winner_BJ[b], loser_BJ[b], keep_BJ[b], strict=True)
    for j, (w, l, keep) in enumerate(duels):
      chosen, rejected = sampled.texts_BK[b][w], sampled.texts_BK[b][l]
      tied = sampled.reward_BK[b, w] == sampled.reward_BK[b, l]
      if keep and not tied and chosen.strip() and rejected.strip():
        out.append(records.Pair(f"prompt {b} duel {j}", prompt, chosen, rejected))
  return out


def labelled(
  sampled: Sampled, p_B: np.ndarray, rng: np.random.Generator
) -> list[records.Pair]:
  """Pairs of two samples a prompt, by a label that is drawn.

  Args:
    sampled: two completions of each prompt; two that are the same make no pair.
    p_B: probability that the first is called better.
    rng: the draw.
  """
  first_B = rng.random(len(p_B)) < p_B
  apart_B = np.array([a != b for a, b in sampled.texts_BK])
  duel_BK = np.stack([first_B, ~first_B], 1)
  winner_B, loser_B = duel_BK.argmax(1), duel_BK.argmin(1)
  columns = (x[:, None] for x in (winner_B, loser_B, apart_B))
  return pairs(sampled._replace(reward_BK=duel_BK), *columns)
