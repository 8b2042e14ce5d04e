"""Weights in 4 bits: NormalFloat codes, of blocks that share a scale.

Dettmers et al. 2023 (QLoRA), arXiv:2305.14314: the sixteen values of Appendix E, blocks
of 64 weights. Blocks are along inputs, as in the authors' code, but never across two
rows of a matrix. Scales are bfloat16, together 4.25 bits a weight; the paper rounds
them to 8 bits in blocks of their own ("double quantization"), 4.127 bits.
"""

import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct

from xpo_jax.types import Array

BLOCK = 64  # most weights that share a scale

VALUES = np.array(
  [
    -1.0,
    -0.6961928009986877,
    -0.5250730514526367,
    -0.39491748809814453,
    -0.28444138169288635,
    -0.18477343022823334,
    -0.09105003625154495,
    0.0,
    0.07958029955625534,
    0.16093020141124725,
    0.24611230194568634,
    0.33791524171829224,
    0.44070982933044434,
    0.5626170039176941,
    0.7229568362236023,
    1.0,
  ],
  np.float32,
)
_BETWEEN = (VALUES[1:] + VALUES[:-1]) / 2


@struct.dataclass
class NF4:
  """A weight in 4 bits, with the attributes of an array that a product reads.

  Attributes:
    codes: of `VALUES`, uint4, of the weight's shape.
    scale: bfloat16; of the same shape, but for the axis of the blocks.
  """

  codes: Array
  scale: Array

  @property
  def shape(self) -> tuple[int, ...]:
    """Of the weight."""
    return self.codes.shape

  @property
  def ndim(self) -> int:
    """Number of its axes."""
    return self.codes.ndim

  @property
  def size(self) -> int:
    """Number of weights."""
    return math.prod(self.shape)

  @property
  def dtype(self) -> Any:
    """That of the values that `astype` gives without rounding them further."""
    return jnp.dtype(jnp.float32)

  def astype(self, dtype: Any) -> Array:
    """The weight as an array, computed in float32."""
    scale = self.scale.astype(jnp.float32)
    sizes = zip(self.shape, scale.shape, strict=True)
    axis = next((n for n, (own, blocks) in enumerate(sizes) if own != blocks), 0)
    value = jnp.asarray(VALUES)[self.codes.astype(jnp.int32)]
    scaled = _split(value, axis, scale.shape[axis]) * jnp.expand_dims(scale, axis + 1)
    return scaled.reshape(self.shape).astype(dtype)


def quantise(x: Array, axis: int) -> NF4:
  """Rounds a weight to the nearest of `VALUES` times the scale of its block.

  The scale is the largest size in a block. What was rounded before stays as it is.

  Args:
    x: of a float dtype.
    axis: of its inputs; a block is the largest part of it, up to `BLOCK`, that divides
      it.
  """
  size, axis = x.shape[axis], axis % x.ndim
  length = next(n for n in range(min(size, BLOCK), 0, -1) if size % n == 0)
  blocks = _split(x.astype(jnp.float32), axis, size // length)
  scale = jnp.abs(blocks).max(axis + 1, keepdims=True).astype(jnp.bfloat16)
  wide = scale.astype(jnp.float32)
  # Compared with products, not divided: so every backend gives the same.
  codes = sum((blocks > between * wide).astype(jnp.int32) for between in _BETWEEN)
  return NF4(codes.reshape(x.shape).astype(jnp.uint4), scale.squeeze(axis + 1))


def _split(x: Array, axis: int, blocks: int) -> Array:
  """Splits an axis in two: so many blocks, and what is in each."""
  return x.reshape(*x.shape[:axis], blocks, -1, *x.shape[axis + 1 :])


def is_nf4(x: Any) -> bool:
  """Whether a part of a tree is a weight in 4 bits."""
  return isinstance(x, NF4)


def dense(tree: Any) -> Any:
  """A tree with its weights in 4 bits as float32 arrays; others stay as they are."""
  return jax.tree.map(
    lambda x: x.astype(jnp.float32) if is_nf4(x) else x, tree, is_leaf=is_nf4
  )


def count(tree: Any) -> int:
  """Number of parameters of a tree."""
  return sum(x.size for x in jax.tree.leaves(tree, is_leaf=is_nf4))


def nbytes(shape: tuple[int, ...], dtype: Any) -> int:
  """Bytes of an array on a device; NumPy counts one for each integer of 4 bits."""
  dtype = jnp.dtype(dtype)
  integer = jnp.issubdtype(dtype, jnp.integer)
  bits = jnp.iinfo(dtype).bits if integer else 8 * dtype.itemsize
  return -(-math.prod(shape) * bits // 8)
