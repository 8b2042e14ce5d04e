"""Reduces logits over the vocabulary in VMEM: Pallas kernels of the two passes, on TPU.

`add` and `pull` of `reductions` run on tiles of logits that never leave the chip. The
forward kernel holds a tile of tokens and streams the head past it. The backward kernel
holds a tile of the head and streams the tokens past it; its logits are computed once,
and the gradient of all hidden states stays in VMEM until the last tile.

Whoever calls asks `fits` first: no `Top`, no second pass, and sizes that VMEM holds.
"""

import functools
from collections.abc import Mapping
from typing import Any, Literal

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu

from xpo_jax.ops.head import reductions
from xpo_jax.ops.head.reductions import Plan, Reduction, State
from xpo_jax.ops.tpu import chip
from xpo_jax.types import Array

# Chips whose VMEM, 128 MiB, the kernels are made for, as JAX names them.
CHIPS = ("TPU v5 lite", "TPU v5e", "TPU v6 lite", "TPU v6e")
FORWARD_TOKENS, BACKWARD_TOKENS = 1024, 256  # of a tile
VMEM = 110 << 20  # bytes that tiles and sums may take


def fits(
  plan: Plan,
  tokens: int,
  shape: tuple[int, int],
  dtypes: tuple[Any, Any],
  roles: int,
  trained: int,
) -> bool:
  """Whether the kernels can reduce a plan.

  Args:
    plan: the reductions.
    tokens: on one device.
    shape: `[S, D]` of what is read of a head at a time, with the largest D.
    dtypes: of hidden states and heads, and of their gradients.
    roles: number of roles that are read.
    trained: number of those that have a gradient.
  """
  if plan.tops or plan.second or shape[1] % chip.LANES:
    return False
  return backward_tile(tokens, shape, dtypes, roles, trained) is not None


def backward_tile(
  tokens: int, shape: tuple[int, int], dtypes: tuple[Any, Any], roles: int, trained: int
) -> int | None:
  """Rows of the head in a tile of the backward kernel, or None: VMEM is too small.

  Arguments as in `fits`.
  """
  length, width = shape
  item, d_item = (jnp.dtype(dtype).itemsize for dtype in dtypes)
  rows = BACKWARD_TOKENS
  for size in _tiles(length):
    # All of the hidden states' gradient; the head's in float32, and a product of its
    # size; what is read and written, twice, as the next tile is on its way.
    sums = trained * width * 4 * (chip.padded(tokens, rows) + 2 * size)
    moved = 2 * width * (item * roles * (size + rows) + d_item * trained * size)
    last = trained * width * d_item * rows
    if sums + moved + last <= VMEM:
      return size
  return None


def _tiles(length):
  """Rows of the head in a tile, best first: divisors of its length, then others."""
  sizes = (512, 384, 256)
  whole = [size for size in sizes if length % size == 0]
  return [min(size, chip.padded(length, chip.LANES)) for size in (*whole, *sizes)]


# --- Forward


def forward(
  plan: Plan,
  tokens: Mapping[str, Array],
  head: Mapping[str, Array],
  target: Array,
  span: Array,
  *,
  padded: bool = False,
  interpret: bool = False,
) -> State:
  """The state after all rows of a head.

  Args:
    plan: the reductions; see `fits`.
    tokens: role -> hidden states, `[n, D]`.
    head: role -> `[S, D]`, in the dtype of the hidden states.
    target: ids, `[n, 1]`.
    span: the id of the head's first row, and how many of its rows are in the
      vocabulary; int32 `[2]`.
    padded: whether that may be fewer than all.
    interpret: whether to run it without a TPU.
  """
  count, length = target.shape[0], next(iter(head.values())).shape[0]
  rows, size = min(FORWARD_TOKENS, chip.padded(count, 8)), _tiles(length)[0]
  roles, masked = sorted(tokens), padded or length % size > 0
  start = functools.partial(reductions.start, plan, rows, jnp.float32)
  leaves, tree = jax.tree.flatten(jax.eval_shape(start))
  xs = [_pad(tokens[role], rows) for role in roles]

  def kernel(span_ref, target_ref, *refs):
    x_refs, w_refs, out_ref = refs[: len(roles)], refs[len(roles) : -1], refs[-1]
    at = pl.program_id(1)

    @pl.when(at == 0)
    def _():
      out_ref[...] = jnp.zeros_like(out_ref)
      _write(out_ref, jax.tree.leaves(start()))

    read = zip(roles, x_refs, w_refs, strict=True)
    logits = {role: chip.dot(x[...], w[...], ((1,), (1,))) for role, x, w in read}
    block = _block(span_ref, target_ref[...], logits, at, masked)
    state = jax.tree.unflatten(tree, _read(out_ref, len(leaves)))
    _write(out_ref, jax.tree.leaves(reductions.add(plan, state, block)))

  grid = (xs[0].shape[0] // rows, pl.cdiv(length, size))
  packed = pl.pallas_call(
    kernel,
    out_shape=jax.ShapeDtypeStruct((xs[0].shape[0], chip.LANES), jnp.float32),
    grid_spec=pltpu.PrefetchScalarGridSpec(
      num_scalar_prefetch=1,
      grid=grid,
      in_specs=[
        pl.BlockSpec((rows, 1), lambda i, j, _: (i, 0)),
        *(pl.BlockSpec((rows, x.shape[1]), lambda i, j, _: (i, 0)) for x in xs),
        *(
          pl.BlockSpec((size, head[role].shape[1]), lambda i, j, _: (j, 0))
          for role in roles
        ),
      ],
      out_specs=pl.BlockSpec((rows, chip.LANES), lambda i, j, _: (i, 0)),
    ),
    compiler_params=_params("parallel", "arbitrary"),
    interpret=interpret,
    name="head_forward",
  )(span, _pad(target, rows), *xs, *(head[role] for role in roles))
  return jax.tree.unflatten(tree, _read(packed[:count], len(leaves)))


def _params(*semantics: Literal["parallel", "arbitrary"]) -> Any:
  return pltpu.CompilerParams(
    dimension_semantics=semantics, vmem_limit_bytes=VMEM + (10 << 20)
  )


def _pad(x: Array, multiple: int) -> Array:
  """`x` with rows of zeros, so that tiles are whole."""
  return jnp.pad(x, ((0, -x.shape[0] % multiple), (0, 0)))


def _read(packed: Any, count: int) -> list[Array]:
  """Columns of an array or its reference, `[n, 1]` each."""
  return [packed[:, k : k + 1] for k in range(count)]


def _write(ref: Any, columns: list[Array]) -> None:
  for k, column in enumerate(columns):
    ref[:, k : k + 1] = column


def _block(span_ref, target, logits, at, masked):
  shape = next(iter(logits.values())).shape
  within = at * shape[1] + jax.lax.broadcasted_iota(jnp.int32, shape, 1)
  valid = within < span_ref[1] if masked else None
  return reductions.Block(logits, target, span_ref[0] + within, valid)


# --- Backward


def backward(
  plan: Plan,
  tokens: Mapping[str, Array],
  head: Mapping[str, Array],
  target: Array,
  span: Array,
  results: Mapping[Reduction, Array],
  cotangents: Mapping[Reduction, Array],
  trained: tuple[str, ...],
  dtype: Any,
  *,
  padded: bool = False,
  interpret: bool = False,
) -> tuple[dict[str, Array], dict[str, Array]]:
  """The gradients of hidden states and head.

  Args:
    plan: as of `reductions.pull`.
    tokens: as in `forward`.
    head: as in `forward`.
    target: as in `forward`.
    span: as in `forward`.
    results: `[n, 1]` each.
    cotangents: `[n, 1]` each.
    trained: the roles that have a gradient.
    dtype: of the gradients.
    padded: as in `forward`.
    interpret: whether to run it without a TPU.
  """
  count, length = target.shape[0], next(iter(head.values())).shape[0]
  rows = min(BACKWARD_TOKENS, chip.padded(count, 8))
  operand = next(iter(tokens.values())).dtype
  width = max(x.shape[1] for x in tokens.values())
  size = backward_tile(
    count, (length, width), (operand, dtype), len(tokens), len(trained)
  )
  roles, masked = sorted(tokens), padded or length % size > 0
  known, given = list(results), list(cotangents)
  columns = [target.astype(jnp.float32)]  # exact: ids are below 2^24
  columns += [results[one] for one in known] + [cotangents[one] for one in given]
  packed = jnp.concatenate(columns, axis=1)
  packed = jnp.pad(packed, ((0, -count % rows), (0, chip.LANES - packed.shape[1])))
  xs = [_pad(tokens[role], rows) for role in roles]
  total = xs[0].shape[0]
  grid = (pl.cdiv(length, size), total // rows)

  def kernel(span_ref, packed_ref, *refs):
    x_refs, refs = refs[: len(roles)], refs[len(roles) :]
    w_refs, refs = refs[: len(roles)], refs[len(roles) :]
    parts = [refs[k : k + len(trained)] for k in range(0, len(refs), len(trained))]
    out_x_refs, out_w_refs, sum_x_refs, sum_w_refs, last_refs = parts
    at, i = pl.program_id(0), pl.program_id(1)
    x = {role: ref[...] for role, ref in zip(roles, x_refs, strict=True)}
    w = {role: ref[...] for role, ref in zip(roles, w_refs, strict=True)}
    if length % size:  # what lies behind the head may be anything, NaN too
      within = at * size + jax.lax.broadcasted_iota(jnp.int32, (size, 1), 0)
      w = {role: jnp.where(within < length, y, 0) for role, y in w.items()}
    logits = {role: chip.dot(x[role], w[role], ((1,), (1,))) for role in roles}
    read = _read(packed_ref, len(columns))
    block = _block(span_ref, read[0].astype(jnp.int32), logits, at, masked)
    result = dict(zip(known, read[1:], strict=False))
    cotangent = dict(zip(given, read[1 + len(known) :], strict=True))
    d_logits = reductions.pull(plan, result, cotangent, block, trained)
    for k, role in enumerate(trained):
      d = d_logits[role].astype(x[role].dtype)
      d_x, d_w = chip.dot(d, w[role], ((1,), (0,))), chip.dot(d, x[role], ((0,), (0,)))
      here = pl.ds(pl.multiple_of(i * rows, rows), rows)
      sum_x, sum_w = sum_x_refs[k], sum_w_refs[k]

      @pl.when(at == 0)
      def _(sum_x=sum_x, here=here, d_x=d_x):
        sum_x[here, :] = d_x

      @pl.when(at > 0)
      def _(sum_x=sum_x, here=here, d_x=d_x):
        sum_x[here, :] += d_x

      @pl.when(i == 0)
      def _(sum_w=sum_w, d_w=d_w):
        sum_w[...] = d_w

      @pl.when(i > 0)
      def _(sum_w=sum_w, d_w=d_w):
        sum_w[...] += d_w

      @pl.when(i == grid[1] - 1)
      def _(k=k, sum_w=sum_w):
        out_w_refs[k][...] = sum_w[...].astype(dtype)

      @pl.when(at == grid[0] - 1)
      def _(k=k, sum_x=sum_x, here=here):
        last_refs[k][...] = sum_x[here, :].astype(dtype)
        pltpu.sync_copy(last_refs[k], out_x_refs[k].at[here, :])

  widths = {role: tokens[role].shape[1] for role in roles}
  out = pl.pallas_call(
    kernel,
    out_shape=[
      *(jax.ShapeDtypeStruct((total, widths[role]), dtype) for role in trained),
      *(jax.ShapeDtypeStruct((length, widths[role]), dtype) for role in trained),
    ],
    grid_spec=pltpu.PrefetchScalarGridSpec(
      num_scalar_prefetch=1,
      grid=grid,
      in_specs=[
        pl.BlockSpec((rows, chip.LANES), lambda j, i, _: (i, 0)),
        *(pl.BlockSpec((rows, widths[role]), lambda j, i, _: (i, 0)) for role in roles),
        *(pl.BlockSpec((size, widths[role]), lambda j, i, _: (j, 0)) for role in roles),
      ],
      out_specs=[
        *(pl.BlockSpec(memory_space=pl.ANY) for _ in trained),
        *(
          pl.BlockSpec((size, widths[role]), lambda j, i, _: (j, 0)) for role in trained
        ),
      ],
      scratch_shapes=[
        *(pltpu.VMEM((total, widths[role]), jnp.float32) for role in trained),
        *(pltpu.VMEM((size, widths[role]), jnp.float32) for role in trained),
        *(pltpu.VMEM((rows, widths[role]), dtype) for role in trained),
      ],
    ),
    compiler_params=_params("arbitrary", "arbitrary"),
    interpret=interpret,
    name="head_backward",
  )(span, packed, *xs, *(head[role] for role in roles))
  d_tokens = {role: x[:count] for role, x in zip(trained, out, strict=False)}
  return d_tokens, dict(zip(trained, out[len(trained) :], strict=True))
