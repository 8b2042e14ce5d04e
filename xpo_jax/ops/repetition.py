"""Repeated tokens and n-grams: the negative candidates of unlikelihood training.

Paper: Welleck et al. 2019, arXiv:1908.04319. The functions work on logits and tokens;
`objectives.token_unlikelihood` trains on what they return.
"""

from collections.abc import Sequence

import chex
import jax
import jax.numpy as jnp

from xpo_jax.types import Array


def previous_tokens(
  tokens_BKT: Array, mask_BKT: Array, vocab: int, always: Sequence[int] = ()
) -> Array:
  """Marks the earlier tokens of a completion as candidates: the token-level form.

  The token itself is no candidate.

  Args:
    tokens_BKT: the completion tokens.
    mask_BKT: 1 on completion tokens; padding is no candidate and has none.
    vocab: V.
    always: ids that are candidates at every position; the authors' code adds its
      padding id.

  Returns:
    `[B, K, T, V]` float32, 1 on candidates.
  """
  chex.assert_equal_shape([tokens_BKT, mask_BKT])
  real_BKTV = jnp.expand_dims(mask_BKT > 0, 3)
  own_BKTV = jax.nn.one_hot(tokens_BKT, vocab)
  seen_BKTV = jnp.where(real_BKTV, own_BKTV, 0)
  so_far_BKTV = jnp.cumsum(seen_BKTV, 2)
  for token_id in always:
    so_far_BKTV = so_far_BKTV.at[..., token_id].set(1)
  return jnp.where(real_BKTV & (so_far_BKTV > 0) & (own_BKTV == 0), 1.0, 0.0)


def repeated_ngrams(tokens_BKT: Array, mask_BKT: Array, n: int) -> Array:
  """Marks the tokens of n-grams that occurred before: the sequence-level form.

  Args:
    tokens_BKT: the completion tokens.
    mask_BKT: 1 on completion tokens; n-grams lie within them. The authors' code skips
      the last n-gram (a bug); a mask without the last token reproduces it.
    n: length of the n-grams; >= 1. Paper: 4.

  Returns:
    `[B, K, T]` float32, 1 on all tokens of repeated n-grams.

  Raises:
    ValueError: n < 1.
  """
  chex.assert_equal_shape([tokens_BKT, mask_BKT])
  if n < 1:
    raise ValueError(f"repeated_ngrams: n={n}; it must be at least 1 (paper: 4)")
  T = tokens_BKT.shape[-1]
  pad = [(0, 0), (0, 0), (0, n - 1)]
  offset_TN = jnp.arange(T)[:, None] + jnp.arange(n)[None]
  gram_BKTN = jnp.pad(tokens_BKT, pad)[..., offset_TN]
  whole_BKT = (jnp.pad(mask_BKT, pad)[..., offset_TN] > 0).all(-1)
  same_BKTT = (gram_BKTN[:, :, :, None] == gram_BKTN[:, :, None]).all(-1)
  earlier_TT = jnp.tril(jnp.ones((T, T), bool), -1)
  seen_BKTT = same_BKTT & earlier_TT[None, None] & whole_BKT[:, :, None]
  repeats_BKT = seen_BKTT.any(-1) & whole_BKT
  # A token belongs to the n-grams that start at it or up to n - 1 tokens before.
  starts_BKT = jnp.pad(repeats_BKT, [(0, 0), (0, 0), (n - 1, 0)])
  return jnp.where(starts_BKT[..., offset_TN].any(-1), 1.0, 0.0)


def unlikelihood(logits_BKTV: Array, candidate_BKTV: Array) -> Array:
  """-log(1 - p) summed over the candidates of each position, nats, `[B, K, T]`.

  Finite, with its gradient, for a candidate whose probability rounds to 1: at most one
  token has more than one half, and for it 1 - p is summed over all others.
  """
  chex.assert_equal_shape([logits_BKTV, candidate_BKTV])
  logp_BKTV = jax.nn.log_softmax(logits_BKTV)
  top_BKT = logits_BKTV.argmax(-1)
  top_BKTV = jax.nn.one_hot(top_BKT, logits_BKTV.shape[-1], dtype=bool)
  # The 0.5 of the top token is never used; it keeps the gradient there finite.
  small_BKTV = jnp.where(top_BKTV, 0.5, jnp.exp(logp_BKTV))
  others_BKTV = jnp.where(top_BKTV, -jnp.inf, logp_BKTV)
  rest_BKT = jax.nn.logsumexp(others_BKTV, axis=-1)
  rest_BKTV = jnp.where(top_BKTV, rest_BKT[..., None], jnp.log1p(-small_BKTV))
  return -jnp.where(candidate_BKTV > 0, rest_BKTV, 0).sum(-1)
