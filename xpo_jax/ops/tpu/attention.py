"""Attention by blocks in Pallas kernels of TPUs.

The forward kernel walks over the listed key blocks of a query block with a running
softmax; the backward kernel walks over the same list once and gives all three
gradients. Keys and values of one row and key head stay in VMEM while its query blocks
pass, and so do their gradients, in float32; scores never leave the chip. They are held
`[keys, queries]`, so that a query's statistics are a row of a register.

Whoever calls asks `fits` first: sizes that VMEM and SMEM hold, on chips that have them.
"""

import functools
from typing import Any

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu

from xpo_jax.ops import attention
from xpo_jax.ops.attention import Blocks, Ids, Passes, Static
from xpo_jax.ops.tpu import chip
from xpo_jax.types import Array

CHIPS = chip.LARGE_VMEM
VMEM = 52 << 20  # bytes that arrays of the kernels may take
SMEM = 512 << 10  # bytes that the list of pairs may take
_FIELDS = 8  # rows of a tile of int32; the five ids of a position are the first
_NN, _NT, _TN = ((1,), (0,)), ((1,), (1,)), ((0,), (0,))  # axes of a product's sum


def fits(
  shape: tuple[int, int, int, int], key_heads: int, block: int, dtype: Any
) -> bool:
  """Whether the kernels can attend within rows.

  Args:
    shape: `[R, L, H, h]` of the queries on one device, L a multiple of `block`.
    key_heads: g, on that device.
    block: length of a block.
    dtype: of queries, keys and values.
  """
  R, L, H, h = shape
  if dtype not in (jnp.bfloat16, jnp.float32) or block % chip.LANES:
    return False
  queries, item, count = H // key_heads * block, jnp.dtype(dtype).itemsize, L // block
  wide = chip.padded(h, chip.LANES)
  # Keys and values, their gradients twice, as the next row's are on their way, and the
  # sums of the latter in float32.
  row = 2 * L * wide * (2 * 2 * item + 4)
  # Queries and results of a block, twice; a pair's logits and what is made of them.
  own = 2 * 3 * queries * chip.padded(h, 16) * item + queries * (6 * block + 2 * h) * 4
  listed = 4 * R * (count + count * (count + 1) // 2)
  return row + own + 2 * L * _FIELDS * 4 <= VMEM and listed <= SMEM


def blocked(
  query: Array,
  key: Array,
  value: Array,
  ids: Ids,
  pairs: Blocks,
  *,
  block: int,
  scale: float,
  softcap: float | None = None,
  sink_H: Array | None = None,
  window: Any = None,
  interpret: bool = False,
) -> Array:
  """`attention.blocked` in the kernels; see `fits`.

  Args:
    query: as there.
    key: as there.
    value: as there.
    ids: as there.
    pairs: as there.
    block: length of a block, a multiple of `chip.LANES`.
    scale: as there.
    softcap: as there.
    sink_H: as there.
    window: as there.
    interpret: whether to run them without a TPU, where blocks may have any length.

  Raises:
    ValueError: a block that registers do not divide, or that does not divide rows.
  """
  if block % chip.LANES and not interpret:
    raise ValueError(
      f"block={block}: the kernels of TPUs take multiples of {chip.LANES}, such as "
      f"{chip.padded(block, chip.LANES)}; `attention.blocked` takes any"
    )
  passes = _INTERPRETED if interpret else _COMPILED
  more = {"scale": scale, "softcap": softcap, "sink_H": sink_H, "window": window}
  return attention.blocked(
    query, key, value, ids, pairs, block=block, passes=passes, **more
  )


# --- Forward


def _forward(interpret, static, query, key, value, sink, layout):
  N, g, M, h = query.shape
  scalars, packed = _scalars(layout)
  query_T = query.swapaxes(-1, -2)
  inputs = [packed, query_T, key, value]
  if sink is not None:
    inputs.append(sink.reshape(g, 1, M))

  def kernel(start, keys, window, ids, query, key, value, *refs):
    *sink, out, log_sum = refs
    at = _At(static, start, keys, window if layout[2] is not None else None)
    query_T, masked = query[...], at.mask(ids, M // static.block)

    def of_key_block(p, running):
      top, total, mixed = running
      j = at.key_block(p)
      score, _ = attention.scores(static, chip.dot(key[j], query_T, _NN))
      softmax = attention.add(top, total, masked(score, j), axis=0)
      top, total, weight, shrink = softmax
      added = chip.dot(value[j], weight.astype(value.dtype), _TN)
      return top, total, mixed * shrink + added

    zero = jnp.zeros((1, M), jnp.float32)
    first = attention.start(zero, sink[0][...] if sink else None)
    running = (*first, jnp.zeros((h, M), jnp.float32))
    top, total, mixed = at.over_keys(of_key_block, running)
    total, log_sum[...] = attention.log_sums(top, total)
    out[...] = (mixed / total).astype(out.dtype)

  specs = _Specs(static, query.shape)
  mixed_T, log_sum = _call(
    kernel,
    static,
    scalars,
    inputs,
    in_specs=[specs.ids, specs.query, *(specs.key,) * 2, specs.sink][: len(inputs)],
    out_specs=[specs.query, specs.column],
    outputs=[((N, g, h, M), query.dtype), ((N, g, 1, M), jnp.float32)],
    name="attention_forward",
    interpret=interpret,
  )
  return mixed_T.swapaxes(-1, -2), log_sum.swapaxes(-1, -2)


# --- Backward


def _backward(interpret, static, query, key, value, layout, d_mixed, log_sum, inner):
  N, g, M, h = query.shape
  scalars, packed = _scalars(layout)
  query_T, d_mixed_T, log_sum, inner = (
    x.swapaxes(-1, -2) for x in (query, d_mixed, log_sum, inner)
  )

  def kernel(start, keys, window, ids, query, key, value, *refs):
    d_mixed, log_sum, inner, d_query, d_key, d_value, sum_key, sum_value = refs
    at = _At(static, start, keys, window if layout[2] is not None else None)
    query_T, d_mixed_T = query[...], d_mixed[...]
    log_sum, inner = log_sum[...], inner[...]
    masked = at.mask(ids, M // static.block)

    @pl.when(at.block == 0)
    def _():
      sum_key[...] = jnp.zeros_like(sum_key)
      sum_value[...] = jnp.zeros_like(sum_value)

    def of_key_block(p, d_query_T):
      j = at.key_block(p)
      score, slope = attention.scores(static, chip.dot(key[j], query_T, _NN))
      d_weight = chip.dot(value[j], d_mixed_T, _NN)
      weight, d_score = attention.pull(
        static, masked(score, j), slope, log_sum, d_weight, inner
      )
      d_score = d_score.astype(key.dtype)
      sum_key[j] += chip.dot(d_score, query_T, _NT)
      sum_value[j] += chip.dot(weight.astype(value.dtype), d_mixed_T, _NT)
      return d_query_T + chip.dot(key[j], d_score, _TN)

    zeros = jnp.zeros((h, M), jnp.float32)
    d_query[...] = at.over_keys(of_key_block, zeros).astype(d_query.dtype)

    @pl.when(at.block == static.row_blocks - 1)
    def _():
      d_key[...] = sum_key[...].astype(d_key.dtype)
      d_value[...] = sum_value[...].astype(d_value.dtype)

  specs = _Specs(static, query.shape)
  by_row = (static.row_blocks, static.block, h)
  d_query_T, d_key, d_value = _call(
    kernel,
    static,
    scalars,
    [packed, query_T, key, value, d_mixed_T, log_sum, inner],
    in_specs=[
      *(specs.ids, specs.query, specs.key, specs.key),
      *(specs.query, specs.column, specs.column),
    ],
    out_specs=[specs.query, specs.key, specs.key],
    outputs=[
      ((N, g, h, M), query.dtype),
      (key.shape, key.dtype),
      (key.shape, value.dtype),
    ],
    scratch_shapes=[pltpu.VMEM(by_row, jnp.float32)] * 2,
    name="attention_backward",
    interpret=interpret,
  )
  return d_query_T.swapaxes(-1, -2), d_key, d_value


_COMPILED, _INTERPRETED = (
  Passes(functools.partial(_forward, how), functools.partial(_backward, how))
  for how in (False, True)
)


# --- Both


class _Specs:
  """The parts of arrays that a kernel sees, of row r, key head k and query block i."""

  def __init__(self, static: Static, shape: tuple[int, ...]):
    _, _, M, h = shape
    count, block = static.row_blocks, static.block

    def of_query_block(r, k, i, *_):
      return r * count + i, k, 0, 0

    self.ids = pl.BlockSpec((count, _FIELDS, block), lambda r, k, i, *_: (r, 0, 0))
    self.query = pl.BlockSpec((None, None, h, M), of_query_block)
    self.column = pl.BlockSpec((None, None, 1, M), of_query_block)
    self.key = pl.BlockSpec((count, None, block, h), lambda r, k, i, *_: (r, k, 0, 0))
    self.sink = pl.BlockSpec((None, 1, M), lambda r, k, i, *_: (k, 0, 0))


class _At:
  """The query block of a step of the grid, and the key blocks it is paired with."""

  def __init__(self, static: Static, start: Any, keys: Any, window: Any):
    self.block = pl.program_id(2)
    self._first = pl.program_id(0) * static.row_blocks  # block of the row
    self._start, self._keys = start, keys
    self._window = None if window is None else window[0]

  def key_block(self, p: Array) -> Array:
    """The key block of a pair, by its number in the row."""
    return self._keys[p] - self._first

  def over_keys(self, function: Any, initial: Any) -> Any:
    """Applies `(pair, carry) -> carry` to all pairs of the query block."""
    own = self._first + self.block
    with jax.named_scope(attention.KEY_BLOCKS):
      return jax.lax.fori_loop(
        self._start[own], self._start[own + 1], function, initial
      )

  def mask(self, ids: Any, heads: int) -> Any:
    """`(score [b, heads b], key block) -> score`, masked, of so many query heads."""
    query = _unpacked(jnp.split(ids[self.block], _FIELDS, axis=0))

    def masked(score: Array, j: Array) -> Array:
      key = _unpacked(jnp.split(ids[j].T, _FIELDS, axis=1))
      seen = attention.attends(query, key, self._window)
      # One head's part serves all heads, as they stand one after the other.
      added = jnp.where(seen, 0.0, attention.MASKED)
      return score + jnp.concatenate([added] * heads, axis=1)

    return masked


def _scalars(layout: tuple) -> tuple[tuple[Array, Array, Array], Array]:
  """What decides the key blocks, and the ids `[N, _FIELDS, b]`."""
  ids, pairs, window = layout
  limit = jnp.zeros(1, jnp.int32)
  if window is not None:
    limit = jnp.asarray(window, jnp.int32).reshape(1)
  fields = jnp.stack([getattr(ids, name) for name in _names()], axis=1)
  packed = jnp.pad(fields, ((0, 0), (0, _FIELDS - fields.shape[1]), (0, 0)))
  return (pairs.start, pairs.key, limit), packed


def _unpacked(fields: list[Array]) -> Ids:
  return Ids(**dict(zip(_names(), fields, strict=False)))


def _names() -> tuple[str, ...]:
  return tuple(Ids.__dataclass_fields__)


def _call(
  kernel: Any,
  static: Static,
  scalars: tuple[Array, ...],
  inputs: list[Array],
  outputs: list[tuple[tuple[int, ...], Any]],
  **how: Any,
) -> list[Array]:
  """Runs a kernel once for each row, key head and query block, the last innermost."""
  blocks, key_heads = inputs[1].shape[:2]
  grid_spec = pltpu.PrefetchScalarGridSpec(
    num_scalar_prefetch=len(scalars),
    grid=(blocks // static.row_blocks, key_heads, static.row_blocks),
    in_specs=how.pop("in_specs"),
    out_specs=how.pop("out_specs"),
    scratch_shapes=how.pop("scratch_shapes", ()),
  )
  # In `shard_map` results vary over the devices that the queries vary over.
  varying = jax.typeof(inputs[1]).manual_axis_type
  return pl.pallas_call(
    kernel,
    out_shape=[
      jax.ShapeDtypeStruct(shape, dtype, manual_axis_type=varying)
      for shape, dtype in outputs
    ],
    grid_spec=grid_spec,
    compiler_params=pltpu.CompilerParams(
      dimension_semantics=("parallel", "parallel", "arbitrary"),
      vmem_limit_bytes=VMEM + (8 << 20),
    ),
    **how,
  )(*scalars, *inputs)
