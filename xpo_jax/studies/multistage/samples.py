"""Records made from a policy's samples: functions for `Data(Configured(...))`.

Each takes the directory of a policy, which in an experiment is a `Stage`, samples
completions of the training prompts, rewards them, and returns records to train on. A
function of its arguments alone: a resumed run, and another run of the study, has the
same records.
"""

import functools
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import numpy as np
from scipy import special

from xpo_jax.config.data import Prompts
from xpo_jax.data import records, tokenise
from xpo_jax.data.records import prompt_string
from xpo_jax.data.split import prompt_text
from xpo_jax.feedback import protocol
from xpo_jax.feedback.protocol import Scorer
from xpo_jax.models import hf_checkpoint, transformer
from xpo_jax.models.generate import Batching, generate
from xpo_jax.models.generation_config import GenerationConfig
from xpo_jax.train import loading

_SEQUENCES = 1024  # decoded together


class Sampled(NamedTuple):
  """Completions of prompts.

  Attributes:
    prompts: B texts.
    texts_BK: K completions each.
  """

  prompts: tuple[str, ...]
  texts_BK: tuple[tuple[str, ...], ...]


def texts_of(prompts: Prompts, start: int = 0, stop: int | None = None) -> list[str]:
  """The different prompts of a source, in its order, from one number to another."""
  rows = loading.load(prompts, prompts, {}).records
  first = {prompt_text(row): prompt_string(row) for row in reversed(rows)}
  return list(reversed(first.values()))[start:stop]


def sample(
  policy: str,
  prompts: Sequence[str],
  *,
  completions: int,
  max_completion_tokens: int,
  seed: int,
  temperature: float = 1.0,
  top_k: int | None = None,
  sequences: int = _SEQUENCES,
) -> Sampled:
  """Samples completions of prompts; equal calls of a process sample once.

  Args:
    policy: its directory.
    prompts: B texts.
    completions: K of each.
    max_completion_tokens: longest completion.
    seed: of the draws.
    temperature, top_k: see `GenerationConfig`.
    sequences: decoded together; the draws do not depend on it, memory does.
  """
  limits = (completions, max_completion_tokens, sequences)
  return _sampled(policy, tuple(prompts), limits, seed, temperature, top_k)


def two_of_each(
  policy: str,
  prompts: Prompts,
  *,
  max_completion_tokens: int,
  num_prompts: int,
  seed: int,
  first_prompt: int = 0,
  temperature: float = 1.0,
) -> Sampled:
  """Samples two completions of each prompt of a source.

  Args:
    policy: its directory.
    prompts: the source.
    max_completion_tokens: longest completion.
    num_prompts: number of different prompts.
    seed: of the draws.
    first_prompt: number of the first of them in the source.
    temperature: see `GenerationConfig`.
  """
  return sample(
    policy,
    texts_of(prompts, first_prompt, first_prompt + num_prompts),
    completions=2,
    max_completion_tokens=max_completion_tokens,
    seed=seed,
    temperature=temperature,
  )


@functools.lru_cache(maxsize=4)  # the arms of a study share the samples of their start
def _sampled(
  policy: str,
  prompts: tuple[str, ...],
  limits: tuple[int, int, int],
  seed: int,
  temperature: float,
  top_k: int | None,
) -> Sampled:
  completions, max_completion_tokens, sequences = limits
  checkpoint = hf_checkpoint.load(policy, remat="none")
  drawn = generate(
    transformer.model(checkpoint.config),
    checkpoint.params["lm"],
    encode(checkpoint.tokenizer, prompts),
    tokenizer=checkpoint.tokenizer,
    config=GenerationConfig(
      max_completion_tokens, completions, temperature=temperature, top_k=top_k
    ),
    key=jax.random.fold_in(jax.random.key(seed), 3),
    batching=Batching(batch_size=min(max(sequences // completions, 1), len(prompts))),
  )
  return Sampled(prompts, drawn.texts_BK)


def encode(tokenizer: Any, prompts: Sequence[str]) -> list[np.ndarray]:
  """Token ids of prompts."""
  rows = [
    records.with_messages(records.Prompt(str(i), text))
    for i, text in enumerate(prompts)
  ]
  return tokenise.tokenise_prompts(rows, tokenizer)


def rewards(scorer: Scorer, sampled: Sampled) -> np.ndarray:
  """Rewards of samples, `[B, K]`."""
  return protocol.score_groups(scorer, sampled.prompts, sampled.texts_BK)


def to_pairs(
  sampled: Sampled,
  reward_BK: np.ndarray,
  winner_BJ: np.ndarray,
  loser_BJ: np.ndarray,
  keep_BJ: np.ndarray,
) -> list[records.Pair]:
  """Duels (`ops.pairing`) as preference records.

  Two completions of the same reward, the same text, or without a word make no pair.
  """
  pairs = []
  for b, prompt in enumerate(sampled.prompts):
    duels = zip(winner_BJ[b], loser_BJ[b], keep_BJ[b], strict=True)
    for j, (winner, loser, keep) in enumerate(duels):
      chosen, rejected = sampled.texts_BK[b][winner], sampled.texts_BK[b][loser]
      tied = reward_BK[b, winner] == reward_BK[b, loser]
      if keep and not tied and chosen.strip() and rejected.strip():
        uid = f"prompt {b} duel {j}"
        pairs.append(records.Pair(uid, prompt, chosen, rejected))
  return pairs


def draw_labels(
  sampled: Sampled, p_B: np.ndarray, rng: np.random.Generator
) -> list[records.Pair]:
  """Pairs of two samples of a prompt, by a label that is drawn.

  Args:
    sampled: two completions of each prompt; two that are the same make no pair.
    p_B: probability that the first is called better.
    rng: the draw.
  """
  first_B = rng.random(len(p_B)) < p_B
  differ_B = np.array([a != b for a, b in sampled.texts_BK])
  wins_BK = np.stack([first_B, ~first_B], 1)
  winner_B, loser_B = wins_BK.argmax(1), wins_BK.argmin(1)
  columns = (x[:, None] for x in (winner_B, loser_B, differ_B))
  return to_pairs(sampled, wins_BK, *columns)


def noisy_pairs(
  policy: str,
  prompts: Prompts,
  reward: Scorer,
  *,
  max_completion_tokens: int,
  noise: float,
  seed: int = 0,
  first_prompt: int = 0,
  num_prompts: int = 800,
) -> list[records.Pair]:
  """Pairs of two samples, labelled by a Bradley-Terry labeller of the reward.

  Args:
    policy: directory of the policy that writes.
    prompts: what for.
    reward: the labeller's, `Scorer`.
    max_completion_tokens: longest completion.
    noise: reward that is one logit of the labeller; > 0.
    seed: of samples and labels.
    first_prompt, num_prompts: which prompts.
  """
  sampled = two_of_each(
    policy,
    prompts,
    max_completion_tokens=max_completion_tokens,
    num_prompts=num_prompts,
    seed=seed,
    first_prompt=first_prompt,
  )
  reward_BK = rewards(reward, sampled)
  p_B = special.expit((reward_BK[:, 0] - reward_BK[:, 1]) / noise)
  rng = np.random.default_rng((seed, first_prompt, 8))
  return draw_labels(sampled, p_B, rng)


def skewed_thumbs(
  policy: str,
  prompts: Prompts,
  reward: Scorer,
  *,
  max_completion_tokens: int,
  skew: float,
  num_prompts: int = 800,
  seed: int = 0,
) -> list[records.Rated]:
  """Thumbs on samples, up above the median reward, whose classes differ by prompt.

  Of prompts with more words than the median thumbs down are lost with probability
  `skew`, of the others thumbs up: as if people judged other questions when content than
  when not.

  Args:
    policy: directory of the policy that writes.
    prompts: what for.
    reward: its median over the samples divides the thumbs, `Scorer`.
    max_completion_tokens: longest completion.
    skew: 0: the classes have the same prompts; 1: they share none; 0 <= skew < 1.
    num_prompts: the first so many prompts, two samples of each.
    seed: of samples and losses.

  Raises:
    ValueError: skew out of range.
  """
  if not 0 <= skew < 1:
    raise ValueError(f"skewed_thumbs: skew is {skew}; it must lie in [0, 1)")
  sampled = two_of_each(
    policy,
    prompts,
    max_completion_tokens=max_completion_tokens,
    num_prompts=num_prompts,
    seed=seed,
  )
  reward_BK = rewards(reward, sampled)
  up_BK = reward_BK > np.median(reward_BK)
  words_B = np.array([len(prompt.split()) for prompt in sampled.prompts])
  against_BK = up_BK != (words_B > np.median(words_B))[:, None]
  rng = np.random.default_rng((seed, 9))
  lost_BK = against_BK & (rng.random(up_BK.shape) < skew)
  return [
    records.Rated(f"prompt {b} sample {k}", prompt, text, desirable=bool(up_BK[b, k]))
    for b, (prompt, texts) in enumerate(
      zip(sampled.prompts, sampled.texts_BK, strict=True)
    )
    for k, text in enumerate(texts)
    if text.strip() and not lost_BK[b, k]
  ]
