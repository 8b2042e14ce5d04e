"""Rollouts as a run would have written them, made of words."""

import numpy as np

from xpo_jax.data.tokenise import Example
from xpo_jax.train.rollouts import RolloutBatch
from xpo_jax.types import Layout

END = 0


def rollouts(reward_BK, texts_BK=None, iteration=-1) -> RolloutBatch:
  """Rollouts with these rewards; a completion's tokens are its words' lengths, then the
  end where it has no "…"."""
  reward_BK = np.array(reward_BK, np.float32)
  if texts_BK is None:
    texts_BK = [[f"b{b} k{k}" for k in range(len(x))] for b, x in enumerate(reward_BK)]
  tokens = [[_tokens(text) for text in texts] for texts in texts_BK]
  return RolloutBatch(
    iteration=iteration,
    row_B=np.arange(len(reward_BK)),
    prompts=tuple(f"prompt {b}" for b in range(len(reward_BK))),
    texts_BK=tuple(map(tuple, texts_BK)),
    examples=tuple(
      Example(f"uid {b}", np.array([1], np.int32), tuple(ys), Layout.SAMPLED)
      for b, ys in enumerate(tokens)
    ),
    logp=tuple(tuple(np.zeros(len(y), np.float32) for y in ys) for ys in tokens),
    ended_BK=np.array([["…" not in text for text in texts] for texts in texts_BK]),
    reward_BK=reward_BK,
  )


def _tokens(text: str) -> np.ndarray:
  end = [] if "…" in text else [END]
  words = [len(word) for word in text.replace("…", "").split()]
  return np.array(words + end, np.int32)
