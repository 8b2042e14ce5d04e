"""Attention by blocks beside attention by a mask, and a mask by its definition."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests import compiled
from xpo_jax.ops import attention
from xpo_jax.ops.tpu import attention as kernels

attention = compiled.module(attention)

R, L, BLOCK, HEADS, KEY_HEADS, DIM = 3, 48, 8, 4, 2, 6


def packed(rng: np.random.Generator, groups: int, branches: int) -> np.ndarray:
  """Segments, branches and positions of a row, `[3, L]`; it may have padding."""
  row, at = np.zeros((3, L), int), 0
  for group in range(1, groups + 1):
    sizes = rng.integers(1, 9, branches + 1)
    for branch, size in enumerate(sizes):
      size = min(size, L - at)
      row[:, at : at + size] = [
        [group] * size,
        [branch] * size,
        np.arange(size) + (sizes[0] if branch else 0),
      ]
      at += size
  return row


def rows(kind: str) -> attention.Ids:
  rng = np.random.default_rng(0)
  kinds = {
    "one group": [packed(rng, 1, 2)] * R,
    "many groups": [packed(rng, 20, 2) for _ in range(R)],
    "one branch": [packed(rng, 4, 1) for _ in range(R)],
    "eight branches": [packed(rng, 2, 8) for _ in range(R)],
    "an empty row": [packed(rng, 2, 2), np.zeros((3, L), int), packed(rng, 20, 3)],
    "a long prompt": [np.stack([np.ones(L), np.arange(L) > 40, np.arange(L)])] * R,
    "padding on the left": [np.roll(packed(rng, 1, 2), 20, 1) for _ in range(R)],
  }
  return attention.ids(*jnp.asarray(np.stack(kinds[kind], 1), jnp.int32))


KINDS = (
  "one group",
  "many groups",
  "one branch",
  "eight branches",
  "an empty row",
  "a long prompt",
  "padding on the left",
)
BY_BLOCKS = {
  "blocks": attention.blocked,
  "kernels": functools.partial(kernels.blocked, interpret=True),
}


@functools.partial(jax.jit, static_argnames=("by", "softcap"))
def attended(by, ids, arrays, softcap, window):
  """Real rows of the result, and the gradients of its product with the last array."""
  *inputs, d_mixed = arrays
  real = (ids.key >= 0)[..., None, None]

  def mixed(query, key, value, sink):
    more = {"scale": query.shape[-1] ** -0.5, "softcap": softcap, "sink_H": sink}
    if by == "mask":
      seen = attention.allowed(ids, ids, window)
      out = attention.dense(query, key, value, seen, **more)
    else:
      pairs = attention.block_pairs(ids, BLOCK, window)
      more |= {"block": BLOCK, "window": window}
      out = BY_BLOCKS[by](query, key, value, ids, pairs, **more)
    return jnp.where(real, out, 0)

  out, pullback = jax.vjp(mixed, *inputs)
  return out, pullback(d_mixed)


def arrays(dtype, sink: bool, key_heads: int = KEY_HEADS, dim: int = DIM):
  rng = np.random.default_rng(1)
  heads = (HEADS, key_heads, key_heads, HEADS)
  *inputs, d_mixed = (
    jnp.asarray(rng.standard_normal((R, L, n, dim)), dtype) for n in heads
  )
  sinks = jnp.asarray(rng.standard_normal(HEADS), jnp.float32) if sink else None
  return (*inputs, sinks, d_mixed)


def check(actual, expected):
  assert jnp.abs(expected[0]).max() > 0.1
  for x, y in zip(*map(jax.tree.leaves, (expected, actual)), strict=True):
    np.testing.assert_allclose(y, x, atol=1e-5)


@pytest.mark.parametrize("by", BY_BLOCKS)
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
  ("softcap", "window", "sink"),
  [(None, None, False), (1.5, 5, True)],
  ids=["plain", "soft cap, window, sink"],
)
def test_blocks_are_equal_to_the_mask_in_values_and_gradients(
  kind, softcap, window, sink, by
):
  given = (rows(kind), arrays(jnp.float32, sink), softcap, window)
  check(attended(by, *given), attended("mask", *given))


@pytest.mark.parametrize(("key_heads", "dim"), [(1, 64), (HEADS, 128)])
def test_kernels_take_any_group_of_heads_and_their_usual_sizes(key_heads, dim):
  inputs = arrays(jnp.float32, False, key_heads, dim)
  given = (rows("eight branches"), inputs, None, None)
  check(attended("kernels", *given), attended("mask", *given))


@pytest.mark.parametrize("by", BY_BLOCKS)
def test_bfloat16_is_as_near_to_float32_as_the_mask_is(by):
  ids = rows("many groups")
  whole = attended("mask", ids, arrays(jnp.float32, False), None, None)
  errors = {}
  for way in ("mask", by):
    rounded = attended(way, ids, arrays(jnp.bfloat16, False), None, None)
    pairs = zip(*map(jax.tree.leaves, (whole, rounded)), strict=True)
    errors[way] = max(float(jnp.abs(x - y).max()) for x, y in pairs)
  assert errors[by] < 1.5 * errors["mask"]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("window", [None, 3])
def test_mask_and_pairs_of_blocks_are_those_of_the_definition(kind, window):
  ids = rows(kind)
  branches = L + 1
  key, position = np.asarray(ids.key), np.asarray(ids.position)
  segment, branch = key // branches, key % branches
  seen = np.zeros((R, L, L), bool)
  for r, i, j in np.ndindex(R, L, L):
    real = key[r, i] >= 0 and key[r, j] >= 0
    same = segment[r, i] == segment[r, j] and branch[r, j] in (0, branch[r, i])
    near = window is None or position[r, i] - position[r, j] < window
    seen[r, i, j] = real and same and near and j <= i
  np.testing.assert_array_equal(attention.allowed(ids, ids, window), seen)

  pairs = attention.block_pairs(ids, BLOCK, window)
  count = L // BLOCK
  by_block = seen.reshape(R, count, BLOCK, count, BLOCK).any((2, 4)) | np.eye(
    count, dtype=bool
  )
  start, listed = np.asarray(pairs.start), np.asarray(pairs.key)
  for n, (r, i) in enumerate(np.ndindex(R, count)):
    expected = r * count + np.flatnonzero(by_block[r, i])
    np.testing.assert_array_equal(listed[start[n] : start[n + 1]], expected)


@pytest.mark.parametrize("by", BY_BLOCKS)
def test_a_row_of_padding_is_visited_once_a_block_and_gives_0(by):
  ids = rows("an empty row")
  pairs = attention.block_pairs(ids, BLOCK)
  count = L // BLOCK
  assert pairs.start[2 * count] - pairs.start[count] == count
  out, grads = attended(by, ids, arrays(jnp.float32, True), None, None)
  assert not out[1].any()
  assert all(np.isfinite(x).all() for x in jax.tree.leaves(grads))


@pytest.mark.parametrize("by", BY_BLOCKS)
def test_another_packing_compiles_nothing(by):
  given = (arrays(jnp.float32, False), None, None)
  attended(by, rows("one group"), *given)
  compiled = attended._cache_size()
  attended(by, rows("many groups"), *given)
  assert attended._cache_size() == compiled


def test_position_sees_its_branch_and_its_prompt_alone():
  segment, branch, position = np.array(
    [
      [1, 1, 1, 1, 1, 2, 2, 2, 2, 0],
      [0, 0, 1, 1, 2, 0, 1, 2, 2, 0],
      [0, 1, 2, 3, 2, 0, 1, 1, 2, 0],
    ]
  )
  seen = np.zeros((10, 10), bool)
  for i, j in np.ndindex(9, 9):
    same = segment[i] == segment[j] and branch[j] in (0, branch[i])
    seen[i, j] = same and j <= i
  ids = attention.ids(*(jnp.asarray(x[None]) for x in (segment, branch, position)))
  np.testing.assert_array_equal(attention.allowed(ids, ids)[0], seen)


@pytest.mark.parametrize(
  ("attend", "block", "message"),
  [
    (attention.blocked, 32, "block=32 does not divide the row length 48; .* to 64"),
    (BY_BLOCKS["kernels"], 32, "block=32 does not divide the row length 48"),
    (kernels.blocked, 24, "block=24: .* multiples of 128, such as 128"),
  ],
)
def test_a_bad_block_is_refused(attend, block, message):
  *inputs, _, _ = arrays(jnp.float32, False)
  ids = rows("one group")
  pairs = attention.block_pairs(ids, BLOCK)
  with pytest.raises(ValueError, match=message):
    attend(*inputs, ids, pairs, block=block, scale=1.0)


@pytest.mark.parametrize(
  ("shape", "block", "dtype", "fits"),
  [
    ((4, 3072, 32, 64), 128, jnp.bfloat16, True),
    ((1, 8192, 32, 128), 128, jnp.bfloat16, True),
    ((1, 65536, 32, 128), 128, jnp.bfloat16, False),  # keys of a row fill VMEM
    ((1024, 4096, 32, 128), 128, jnp.bfloat16, False),  # the list fills SMEM
    ((4, 3072, 32, 64), 64, jnp.bfloat16, False),
    ((4, 3072, 32, 64), 128, jnp.float16, False),
  ],
)
def test_what_kernels_do_not_hold_is_left_to_the_loops(shape, block, dtype, fits):
  assert kernels.fits(shape, 8, block, dtype) == fits
