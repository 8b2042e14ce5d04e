"""Attention of packed rows: a token attends to its prompt and to its own branch.

`dense` computes all L x L products of a row and masks them: the definition, and the
fastest for short rows. `blocked` visits only the pairs of blocks that hold an allowed
pair, few in packed rows, with a softmax that is updated block by block (Milakov and
Gimelshein 2018, arXiv:1805.02867; Dao et al. 2022, arXiv:2205.14135). Which pairs those
are is data: another packing compiles nothing, and padding costs nothing.
`ops.tpu.attention` computes the same in a TPU's kernels.

Heads are grouped (Ainslie et al. 2023, arXiv:2305.13245): H query heads share g key
heads, which are never repeated.
"""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import struct

from xpo_jax.ops import capping
from xpo_jax.types import Array

MASKED = -1e30  # finite: a padding row attends to nothing and must not be NaN
KEY_BLOCKS = "key_blocks"  # scope of the loops whose length is data
_START = MASKED / 2  # of a running maximum: exp(MASKED - _START) is 0, not 1


@struct.dataclass
class Ids:
  """What decides which positions a position attends to; each `[..., L]`, int32.

  Attributes:
    key: identifies segment and branch of a key; -1 on padding.
    own: the same of a query; -2 on padding.
    prompt: identifies the prompt of a query; -2 on padding.
    index: of the position in its row.
    position: in its text.
  """

  key: Array
  own: Array
  prompt: Array
  index: Array
  position: Array


def ids(segment_RL: Array, branch_RL: Array, position_RL: Array) -> Ids:
  """Derives the ids of packed rows; the arguments are those of `transformer.Rows`."""
  length = segment_RL.shape[1]
  prompt_RL = segment_RL * (length + 1)  # a row has fewer branches than that
  run_RL = prompt_RL + branch_RL
  real_RL = segment_RL != 0
  return Ids(
    key=jnp.where(real_RL, run_RL, -1),
    own=jnp.where(real_RL, run_RL, -2),
    prompt=jnp.where(real_RL, prompt_RL, -2),
    index=jnp.broadcast_to(jnp.arange(length), segment_RL.shape),
    position=position_RL,
  )


def allowed(query: Ids, key: Ids, window: Any = None) -> Array:
  """Whether each query attends to each key, `[..., Lq, Lk]` bool.

  Args:
    query: of the queries, `[..., Lq]`.
    key: of the keys, `[..., Lk]`.
    window: see `within`.
  """
  q = jax.tree.map(lambda x: x[..., :, None], query)
  k = jax.tree.map(lambda x: x[..., None, :], key)
  return attends(q, k, window)


def attends(query: Ids, key: Ids, window: Any = None) -> Array:
  """`allowed` of ids whose shapes broadcast."""
  run = (key.key == query.own) | (key.key == query.prompt)
  seen = run & (key.index <= query.index)
  if window is None:
    return seen
  return seen & within(query.position, key.position, window)


def within(query_position: Array, key_position: Array, window: Any) -> Array:
  """Whether a key is among the last `window` positions of a query's text, bool.

  By position, not by index: a completion follows its prompt, however far away in the
  row. Shapes broadcast. A window includes the query's own position; None: no window.
  """
  if window is None:
    return jnp.ones((1,) * query_position.ndim, bool)
  return query_position - key_position < window


def padded(ids: Ids, count: int) -> Ids:
  """The ids of rows with `count` more positions of padding on the right."""
  fill = {"key": -1, "own": -2, "prompt": -2}
  return Ids(
    **{
      name: jnp.pad(x, ((0, 0), (0, count)), constant_values=fill.get(name, 0))
      for name, x in vars(ids).items()
    }
  )


def weights(score: Array, sink: Array | None = None) -> Array:
  """Softmax over the last axis, in which a sink takes part and gets no value.

  Args:
    score: logits.
    sink: one more logit, without the last axis, or None; broadcasts over `score`.
  """
  if sink is None:
    return jax.nn.softmax(score, axis=-1)
  sink = jnp.broadcast_to(sink[..., None].astype(score.dtype), (*score.shape[:-1], 1))
  return jax.nn.softmax(jnp.concatenate([score, sink], axis=-1), axis=-1)[..., :-1]


def dense(
  query: Array,
  key: Array,
  value: Array,
  mask_RLL: Array,
  *,
  scale: float,
  softcap: float | None = None,
  sink_H: Array | None = None,
) -> Array:
  """Masked attention, `[R, L, H, h]`.

  Args:
    query: `[R, L, H, h]`.
    key, value: `[R, L, g, h]`; g divides H.
    mask_RLL: of `allowed`.
    scale: factor of the logits.
    softcap: c of `capping.soft_cap` on the logits, or None.
    sink_H: see `weights`, of each head.
  """
  group_size = query.shape[2] // key.shape[2]
  key, value = (jnp.repeat(x, group_size, axis=2) for x in (key, value))
  # Heads before positions: two batched matrix products, which XLA on CPU runs about
  # twice as fast as the same contraction in any other layout.
  query, key, value = (x.transpose(0, 2, 1, 3) for x in (query, key, value))
  score = jnp.matmul(
    query * scale, key.swapaxes(-1, -2), preferred_element_type=_wide(query)
  )
  score = jnp.where(mask_RLL[:, None], capping.soft_cap(score, softcap), MASKED)
  sink = None if sink_H is None else sink_H[None, :, None]
  weight = weights(score, sink).astype(value.dtype)
  return jnp.matmul(weight, value).transpose(0, 2, 1, 3)


# --- By blocks


class Blocks(NamedTuple):
  """The pairs of blocks that hold an allowed pair of positions, by query block.

  Blocks of all rows are numbered through, N = R L / b of them.

  Attributes:
    start: `[N + 1]`: the pairs of query block n are start[n] to start[n + 1].
    key: `[P]`: the key block of each pair; P bounds their number for any packing, and
      entries past the last pair are not read.
  """

  start: Array
  key: Array


def block_pairs(ids: Ids, block: int, window: Any = None) -> Blocks:
  """Lists the pairs of blocks of rows whose length is a multiple of `block`.

  Every block is paired with itself, one of padding too. It compares all L x L positions
  of a row, `block` x L at a time: once a batch, for all layers with the same window.
  """
  rows, length = ids.key.shape
  count = length // block

  def of_query_block(query: Ids) -> Array:
    seen = allowed(query, ids, window)
    return seen.reshape(rows, block, count, block).any((1, 3))

  by_block = jax.tree.map(lambda x: x.reshape(rows, count, block).swapaxes(0, 1), ids)
  pairs_RNN = jax.lax.map(of_query_block, by_block).swapaxes(0, 1)
  pairs_RNN = pairs_RNN | jnp.eye(count, dtype=bool)[None]
  most = rows * count * (count + 1) // 2
  row, _, key = jnp.nonzero(pairs_RNN, size=most, fill_value=0)
  end = jnp.cumsum(pairs_RNN.sum(-1, dtype=jnp.int32).reshape(-1))
  start = jnp.concatenate([jnp.zeros_like(end[:1]), end])
  return Blocks(start, (row * count + key).astype(jnp.int32))


class Static(NamedTuple):
  """What is known of `blocked` before it is traced.

  Attributes:
    block: length of a block.
    row_blocks: number of blocks of a row.
    scale: factor of the logits.
    softcap: c of `capping.soft_cap` on the logits, or None.
  """

  block: int
  row_blocks: int
  scale: float
  softcap: float | None


class Passes(NamedTuple):
  """The two passes of `blocked` over arrays by block.

  Blocks are numbered through, N of them; the m query heads of a key head stand one
  after the other, M = m b queries. `layout` is `(ids [N, b], pairs, window)`.

  Attributes:
    forward: `(static, query [N, g, M, h], key and value [N, g, b, h], sink [g, M, 1] or
      None, layout) -> (mixed [N, g, M, h], log_sum [N, g, M, 1])`, the latter of
      `log_sums`.
    backward: `(static, query, key, value, layout, d_mixed [N, g, M, h], log_sum, inner)
      -> gradients of query, key and value`; inner `[N, g, M, 1]` is the product of
      mixed and d_mixed.
  """

  forward: Callable[..., tuple[Array, Array]]
  backward: Callable[..., tuple[Array, Array, Array]]


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
  passes: Passes | None = None,
) -> Array:
  """Attention over listed pairs of blocks, `[R, L, H, h]`; 0 on padding.

  Equal to `dense` elsewhere, in values and gradients. The backward pass computes the
  weights again from the logarithm of their sum, which is what the forward pass keeps.

  Args:
    query: `[R, L, H, h]`; L is a multiple of `block`.
    key, value: `[R, L, g, h]`; g divides H.
    ids: of the rows.
    pairs: of `block_pairs`, with the same block and window.
    block: length of a block.
    scale: factor of the logits.
    softcap: c of `capping.soft_cap` on the logits, or None.
    sink_H: see `weights`, of each head.
    window: see `allowed`.
    passes: what computes it; None: loops of XLA.

  Raises:
    ValueError: L is no multiple of `block`.
  """
  R, L, H, h = query.shape
  if L % block:
    raise ValueError(
      f"block={block} does not divide the row length {L}; pad rows to "
      f"{-(-L // block) * block} (`padded`)"
    )
  static = Static(block, L // block, scale, softcap)
  group_size = H // key.shape[2]
  parts = [_split(x, block, n) for x, n in ((query, group_size), (key, 1), (value, 1))]
  sink = None  # of each row of a query block
  if sink_H is not None:
    sink = jnp.repeat(sink_H.astype(_wide(query)), block)
    sink = sink.reshape(key.shape[2], group_size * block, 1)
    # Varies over the devices of a mesh, as its gradient does.
    sink = sink + jnp.zeros_like(parts[0][0, ..., :1], sink.dtype)
  layout = (jax.tree.map(lambda x: x.reshape(-1, block), ids), pairs, window)
  mixed = _blocked(passes or _LOOPS, static, *parts, sink, layout)
  mixed = mixed.reshape(R, L // block, key.shape[2], group_size, block, h)
  return mixed.transpose(0, 1, 4, 2, 3, 5).reshape(R, L, H, h)


def _split(x: Array, block: int, group_size: int) -> Array:
  """`[R, L, g m, h]` to `[N, g, m b, h]`: the m query heads of a key head in one."""
  R, L, heads, h = x.shape
  x = x.reshape(R, L // block, block, heads // group_size, group_size, h)
  x = x.transpose(0, 1, 3, 4, 2, 5)
  return x.reshape(-1, heads // group_size, group_size * block, h)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0, 1))
def _blocked(passes, static, query, key, value, sink, layout):
  return _forward(passes, static, query, key, value, sink, layout)[0]


def _forward(passes, static, query, key, value, sink, layout):
  mixed, log_sum = passes.forward(static, query, key, value, sink, layout)
  return mixed, (query, key, value, sink, layout, mixed, log_sum)


def _backward(passes, static, residuals, d_mixed):
  query, key, value, sink, layout, mixed, log_sum = residuals
  wide = _wide(query)
  inner = (d_mixed.astype(wide) * mixed.astype(wide)).sum(-1, keepdims=True)
  gradients = passes.backward(
    static, query, key, value, layout, d_mixed, log_sum, inner
  )
  d_sink = None if sink is None else -(jnp.exp(sink[None] - log_sum) * inner).sum(0)
  return *gradients, d_sink, None


_blocked.defvjp(_forward, _backward)


# --- A pair of blocks


def scores(static: Static, product: Array) -> tuple[Array, Array | float]:
  """Logits of products of queries and keys, and the soft cap's derivative."""
  score = product * static.scale
  if static.softcap is None:
    return score, 1.0
  bent = jnp.tanh(score / static.softcap)
  return bent * static.softcap, 1 - bent**2


def start(like: Array, sink: Array | None) -> tuple[Array, Array]:
  """Maximum and sum of a softmax over no key, or over a sink alone.

  Args:
    like: zeros in the shape of the results.
    sink: logits that broadcast to it, or None.
  """
  return (like + _START, like) if sink is None else (like + sink, like + 1)


def add(
  top: Array, total: Array, score: Array, axis: int
) -> tuple[Array, Array, Array, Array]:
  """Adds keys to a softmax.

  Args:
    top: the maximum before, 1 along `axis`.
    total: the sum of `exp(score - top)` before.
    score: of the keys; `MASKED` where they are masked.
    axis: that of keys.

  Returns:
    Maximum, sum, weights of the keys, and the factor of the weights before.
  """
  higher = jnp.maximum(top, score.max(axis, keepdims=True))
  weight, shrink = jnp.exp(score - higher), jnp.exp(top - higher)
  return higher, total * shrink + weight.sum(axis, keepdims=True), weight, shrink


def log_sums(top: Array, total: Array) -> tuple[Array, Array]:
  """The divisor of weighted values, and the logarithm of the sum of `exp(score)`.

  Where a query attends to nothing: 1, and a logarithm that makes every weight 0.
  """
  none = total == 0
  total = jnp.where(none, 1, total)
  return total, jnp.where(none, -MASKED, top + jnp.log(total))


def pull(
  static: Static,
  score: Array,
  slope: Array | float,
  log_sum: Array,
  d_weight: Array,
  inner: Array,
) -> tuple[Array, Array]:
  """Weights of keys, and the gradient of the products of queries and keys.

  Args:
    static: of the call.
    score: `MASKED` where keys are masked.
    slope: of `scores`.
    log_sum: of `log_sums`.
    d_weight: gradient of the weights.
    inner: see `Passes`.
  """
  weight = jnp.exp(score - log_sum)
  return weight, weight * (d_weight - inner) * slope * static.scale


# --- Loops of XLA


def _forward_loop(static, query, key, value, sink, layout):
  ids, pairs, window = layout
  keys_T = key.swapaxes(-1, -2)
  wide = _wide(query)

  def of_query_block(carry, xs):
    query, query_ids, first, last = xs

    def of_key_block(p, running):
      top, total, mixed = running
      j = pairs.key[p]
      score, _ = scores(static, _matmul(query, keys_T[j], wide))
      score = _mask(score, query_ids, _at(ids, j), window)
      top, total, weight, shrink = add(top, total, score, axis=-1)
      added = _matmul(weight.astype(value.dtype), value[j], wide)
      return top, total, mixed * shrink + added

    mixed = jnp.zeros_like(query, wide)
    running = (*start(mixed[..., :1], sink), mixed)
    with jax.named_scope(KEY_BLOCKS):
      top, total, mixed = jax.lax.fori_loop(first, last, of_key_block, running)
    total, log_sum = log_sums(top, total)
    return carry, ((mixed / total).astype(query.dtype), log_sum)

  xs = (query, ids, pairs.start[:-1], pairs.start[1:])
  return jax.lax.scan(of_query_block, None, xs)[1]


def _backward_loop(static, query, key, value, layout, d_mixed, log_sum, inner):
  ids, pairs, window = layout
  keys_T, values_T = key.swapaxes(-1, -2), value.swapaxes(-1, -2)
  wide = _wide(query)

  def of_query_block(d_key_value, xs):
    query, query_ids, d_mixed, log_sum, inner, first, last = xs

    def of_key_block(p, carry):
      d_query, d_key, d_value = carry
      j = pairs.key[p]
      score, slope = scores(static, _matmul(query, keys_T[j], wide))
      score = _mask(score, query_ids, _at(ids, j), window)
      d_weight = _matmul(d_mixed, values_T[j], wide)
      weight, d_score = pull(static, score, slope, log_sum, d_weight, inner)
      d_score, weight = d_score.astype(key.dtype), weight.astype(value.dtype)
      d_query = d_query + _matmul(d_score, key[j], wide)
      d_key = _add_at(d_key, j, _matmul(d_score.swapaxes(-1, -2), query, wide))
      d_value = _add_at(d_value, j, _matmul(weight.swapaxes(-1, -2), d_mixed, wide))
      return d_query, d_key, d_value

    carry = (jnp.zeros_like(query, wide), *d_key_value)
    with jax.named_scope(KEY_BLOCKS):
      d_query, *d_key_value = jax.lax.fori_loop(first, last, of_key_block, carry)
    return tuple(d_key_value), d_query.astype(query.dtype)

  xs = (query, ids, d_mixed, log_sum, inner, pairs.start[:-1], pairs.start[1:])
  zeros = (jnp.zeros_like(key, wide), jnp.zeros_like(value, wide))
  (d_key, d_value), d_query = jax.lax.scan(of_query_block, zeros, xs)
  return d_query, d_key.astype(key.dtype), d_value.astype(value.dtype)


_LOOPS = Passes(_forward_loop, _backward_loop)


def _mask(score: Array, query: Ids, key: Ids, window: Any) -> Array:
  seen = allowed(query, key, window)
  seen = jnp.tile(seen, (score.shape[1] // seen.shape[0], 1))
  return jnp.where(seen, score, MASKED)


def _at(tree: Any, j: Array) -> Any:
  return jax.tree.map(lambda x: x[j], tree)


def _add_at(x: Array, j: Array, change: Array) -> Array:
  """`x.at[j].add(change)` without a scatter."""
  old = jax.lax.dynamic_index_in_dim(x, j, keepdims=False)
  return jax.lax.dynamic_update_index_in_dim(x, old + change, j, 0)


def _matmul(x: Array, y: Array, dtype: Any) -> Array:
  return jnp.matmul(x, y, preferred_element_type=dtype)


def _wide(x: Array) -> Any:
  return jnp.promote_types(x.dtype, jnp.float32)
