"""Draws parts of one random array, so that each device draws only its own.

Element i of `jax.random.normal(key, (n,))` is a function of the key and i alone
(threefry with a counter). A part computed from its own counters has the same bits as
the part cut from the whole array, which then is in no memory.
"""

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
from jax.extend.random import threefry2x32_p

from xpo_jax.types import Array

_WORD = 2**32
_WITHIN = _WORD  # most elements that are counted by one word


@functools.partial(jax.jit, static_argnums=(1, 2))
def normal(key: Array, first: int, shape: tuple[int, ...]) -> Array:
  """Computes `jax.random.normal(key, (n,))[first : first + size].reshape(shape)`.

  Elementwise from iota: under jit with a sharded output each device computes its own
  elements, and no other array of their size.

  Args:
    key: typed PRNG key of threefry.
    first: index of the first element.
    shape: of the part, in row-major order.

  Returns:
    float32 array.

  Raises:
    ValueError: a key of another generator, whose elements depend on n.
  """
  if jax.random.key_impl(key) != "threefry2x32":
    raise ValueError(
      f"weights are drawn by threefry2x32; the key is of {jax.random.key_impl(key)}: "
      "leave jax_default_prng_impl as it is"
    )
  high, low = _counters(first, shape)
  k0, k1 = (jnp.broadcast_to(word, shape) for word in jax.random.key_data(key))
  bits = jnp.bitwise_xor(*threefry2x32_p.bind(k0, k1, high, low))
  # As jax.random: 23 random bits as the mantissa of a number in [1, 2).
  one = np.float32(1)
  mantissa = (bits >> 9) | one.view(np.uint32)
  unit = jax.lax.bitcast_convert_type(mantissa, jnp.float32) - one
  least = np.nextafter(-one, np.float32(0))
  uniform = jnp.maximum(least, unit * (one - least) + least)
  return np.float32(np.sqrt(2)) * jax.lax.erf_inv(uniform)


def _counters(first: int, shape: tuple[int, ...]) -> tuple[Array, Array]:
  """The high and low words of `first + arange(size)`, of this shape."""
  # Leading axes are counted on the host, until the others fit one word.
  lead = 0
  while math.prod(shape[lead:]) > _WITHIN:
    lead += 1
  inner = shape[lead:]
  starts = np.arange(math.prod(shape[:lead]), dtype=np.uint64)
  starts = starts * np.uint64(math.prod(inner)) + np.uint64(first)
  starts = starts.reshape(*shape[:lead], *(1,) * len(inner))
  start_low = jnp.asarray((starts % _WORD).astype(np.uint32))
  start_high = jnp.asarray((starts // _WORD).astype(np.uint32))
  within = jnp.zeros((1,) * lead + inner, jnp.uint32)
  for axis, size in enumerate(inner):
    stride = math.prod(inner[axis + 1 :]) if size > 1 else 0
    at = jax.lax.broadcasted_iota(jnp.uint32, within.shape, lead + axis)
    within += at * np.uint32(stride)
  low = start_low + within
  carry = (low < start_low).astype(jnp.uint32)
  return start_high + carry, low
