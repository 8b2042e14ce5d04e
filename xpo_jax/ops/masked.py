"""Masked sums, means, first and last values over the completion tokens.

Padding is removed with `where` before summation, not by `x * mask`, so that values
there, NaN included, reach neither the result nor the gradient. The first and the last
token are located by cumulative sums of the mask, without a gather, so that XLA never
has to collect a sharded axis.
"""

import chex
import jax
import jax.numpy as jnp

from xpo_jax.types import Array


def length(mask_BKT: Array) -> Array:
  """Number of completion tokens, `[B, K]`."""
  return mask_BKT.sum(-1)


def zero_padding(x_BKT: Array, mask_BKT: Array) -> Array:
  """`x_BKT` with exact zeros where the mask is 0; axes may follow T."""
  chex.assert_equal_shape_prefix([x_BKT, mask_BKT], mask_BKT.ndim)
  trailing = tuple(range(mask_BKT.ndim, x_BKT.ndim))
  return jnp.where(jnp.expand_dims(mask_BKT > 0, trailing), x_BKT, 0)


def sum_T(x_BKT: Array, mask_BKT: Array | None) -> Array:
  """Sum over completion tokens, `[B, K]`; 0 for an empty completion.

  Args:
    x_BKT: any quantity per token.
    mask_BKT: 1 on completion tokens; None in a record of summed log-probs
      (`scored.from_sequence_logps`), where T is 1.
  """
  if mask_BKT is None:
    chex.assert_axis_dimension(x_BKT, -1, 1)
    return x_BKT[..., 0]
  return zero_padding(x_BKT, mask_BKT).sum(-1)


def per_token(x_BK: Array, length_BK: Array) -> Array:
  """Divides a sum over tokens by their number, `[B, K]`; 0 for an empty completion."""
  chex.assert_equal_shape([x_BK, length_BK])
  return x_BK / jnp.where(length_BK == 0, 1, length_BK)


def mean_T(x_BKT: Array, mask_BKT: Array) -> Array:
  """Mean over completion tokens, `[B, K]`; 0 for an empty completion."""
  return per_token(sum_T(x_BKT, mask_BKT), length(mask_BKT))


def first_BKT(mask_BKT: Array) -> Array:
  """1 at the first token of each completion, else 0."""
  return jnp.where(jnp.cumsum(mask_BKT, -1) == 1, mask_BKT, 0)


def last_BKT(mask_BKT: Array) -> Array:
  """1 at the last token of each completion, else 0."""
  remaining_BKT = jax.lax.cumsum(mask_BKT, axis=mask_BKT.ndim - 1, reverse=True)
  return jnp.where(remaining_BKT == 1, mask_BKT, 0)


def first(x_BKT: Array, mask_BKT: Array) -> Array:
  """`x` at the first completion token, `[B, K]`; 0 for an empty completion."""
  return sum_T(x_BKT, first_BKT(mask_BKT))


def last(x_BKT: Array, mask_BKT: Array) -> Array:
  """`x` at the last completion token, `[B, K]`; 0 for an empty completion."""
  return sum_T(x_BKT, last_BKT(mask_BKT))
