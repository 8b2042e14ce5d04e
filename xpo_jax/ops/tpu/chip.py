"""What kernels of TPUs have in common: registers, and products in float32."""

import jax
import jax.numpy as jnp

from xpo_jax.types import Array

LANES = 128  # of a vector register
# Chips with 64 MiB of VMEM or more, as JAX names them.
LARGE_VMEM = (
  *("TPU v5 lite", "TPU v5e", "TPU v5", "TPU v5p"),
  *("TPU v6 lite", "TPU v6e"),
)


def compiler_options(kind: str) -> dict[str, str]:
  """Options of XLA, for `jax.jit`, of a program that is mostly products of matrices.

  A fusion may take 32 MiB of VMEM, twice the default: its tiles are larger, and what is
  fused with a product is computed, and read, less often.

  Args:
    kind: of the devices, as JAX names it.
  """
  return {"xla_tpu_scoped_vmem_limit_kib": "32768"} if kind in LARGE_VMEM else {}


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
