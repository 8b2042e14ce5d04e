"""Bounds logits smoothly (Gemma 2, arXiv:2408.00118)."""

import jax.numpy as jnp

from xpo_jax.types import Array


def soft_cap(x: Array, cap: float | None) -> Array:
  """Bounds logits to (-cap, cap) by `cap tanh(x / cap)`; None: leaves them."""
  return x if cap is None else cap * jnp.tanh(x / cap)
