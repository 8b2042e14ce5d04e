"""Pure rules that select rows."""

import chex
import jax
import jax.numpy as jnp

from xpo_jax.types import Array


def without_replacement(
  log_weight_B: Array, keep: float | Array, weight_B: Array, row_B: Array, key: Array
) -> Array:
  """Draws a share of the rows, likelier with more weight, none twice (Gumbel top-k).

  Args:
    log_weight_B: log of each row's unnormalised probability of being drawn first.
    keep: share of the real rows to draw, in (0, 1]; rounded down, but one at least.
    weight_B: 0 on filler rows, which are never drawn.
    row_B: global row numbers; folded into the key, so that the draw does not depend on
      how the batch was laid out.
    key: PRNG key.

  Returns:
    `[B]`, 1 where drawn, in the type of `weight_B`.
  """
  chex.assert_equal_shape([log_weight_B, weight_B, row_B])
  gumbel_B = jax.vmap(lambda row: jax.random.gumbel(jax.random.fold_in(key, row)))(
    row_B
  )
  real_B = weight_B > 0
  score_B = jnp.where(real_B, log_weight_B + gumbel_B, -jnp.inf)
  rank_B = jnp.argsort(jnp.argsort(-score_B))
  # The 1e-4 keeps 0.7 * 10 = 6.9999995 a seven.
  count = jnp.maximum(jnp.floor(keep * real_B.sum() + 1e-4), 1)
  return jnp.where((rank_B < count) & real_B, 1, 0).astype(weight_B.dtype)
