"""What kernels of TPUs have in common: registers, and products in float32."""

import jax
import jax.numpy as jnp

from xpo_jax.types import Array

LANES = 128  # of a vector register


def padded(length: int, multiple: int) -> int:
  """The least multiple of `multiple` that is at least `length`."""
  return -(-length // multiple) * multiple


def dot(x: Array, y: Array, contracted: tuple) -> Array:
  """Product of two matrices, accumulated in float32.

  Args:
    x, y: operands of one dtype.
    contracted: axes of x and of y that are summed over, such as `((1,), (0,))`.
  """
  # HIGHEST: by default float32 products are computed from bfloat16 operands.
  precision = jax.lax.Precision.HIGHEST if x.dtype == jnp.float32 else None
  return jax.lax.dot_general(
    x,
    y,
    (contracted, ((), ())),
    precision=precision,
    preferred_element_type=jnp.float32,
  )
