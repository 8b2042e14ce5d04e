"""Reduces logits over the vocabulary by blocks: an operation with its own gradient.

Both passes walk over the rows of a head `[V, D]`, some hundreds at a time: the logits
of a block are made, reduced and dropped. The backward pass makes them again from hidden
states and head, adds the block's part to the gradient of the hidden states, and writes
the block's rows of the head's gradient in place, in the head's dtype: there is neither
an array [tokens, V] nor a second one of the head's size.

On a mesh each device keeps its tokens and its part of the vocabulary. Where parameters
are split along the width too, the head is brought from slices of the width to slices of
the vocabulary (an all-to-all), and these go round in a ring, with their gradients.
"""

import functools
import math
from collections.abc import Callable, Iterable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.sharding import Mesh, PartitionSpec

from xpo_jax.ops.head import kernels, reductions
from xpo_jax.ops.head.reductions import Reduction
from xpo_jax.types import Array


class Split(NamedTuple):
  """How tokens and heads are split over devices; hashable.

  Attributes:
    mesh: the devices.
    rows: axes that split R, the ring's among them.
    ring: axis that splits the width of a head, and along which its slices travel.
    vocab: axis that splits the vocabulary.
  """

  mesh: Mesh
  rows: tuple[str, ...]
  ring: str
  vocab: str

  @property
  def ring_size(self) -> int:
    """Devices in a ring."""
    return self.mesh.shape[self.ring]

  @property
  def copies(self) -> tuple[str, ...]:
    """Axes along which rows are split, and heads are not."""
    return tuple(axis for axis in self.rows if axis != self.ring)


class _Static(NamedTuple):
  plan: reductions.Plan
  pulled: reductions.Plan  # what the backward pass reads
  cotangents: tuple[Reduction, ...]  # those of its reductions that have a cotangent
  vocab: int  # V
  block: int
  split: Split | None
  kernel: bool
  interpret: bool


def reduce(
  hidden: Mapping[str, Array],
  head: Mapping[str, Array],
  target_RC: Array,
  wanted: Iterable[Reduction],
  *,
  trained: Iterable[str],
  detached: Iterable[Reduction] = (),
  block: int,
  split: Split | None = None,
  kernel: bool = False,
  interpret: bool = False,
) -> dict[Reduction, Any]:
  """Computes reductions of `hidden @ head.T` over the vocabulary.

  Logits are float32: operands in the dtype of the hidden states, accumulated in float32
  (float64 stays float64).

  Args:
    hidden: role -> hidden_RCD.
    head: role -> head_VD, of one V.
    target_RC: int32 token ids.
    wanted: the reductions.
    trained: the roles whose hidden states and heads have a gradient.
    detached: those of the reductions whose cotangents are taken as 0.
    block: rows of a head at a time.
    split: the mesh, or None: one device.
    kernel: whether a TPU's kernels do it, where they can (`kernels.fits`).
    interpret: whether the kernels run without a TPU.

  Returns:
    reduction -> `[R, C]`; of `Top` a pair of `[R, C, k]`.

  Raises:
    ValueError: block < 1, heads of different vocabularies, or one smaller than k.
  """
  wanted = tuple(wanted)  # its order is that of the program, the same in every process
  plan = reductions.plan(wanted)
  sizes = {role: head[role].shape[0] for role in sorted(plan.roles)}
  if block < 1:
    raise ValueError(f"block={block}; it must be at least 1")
  if len(set(sizes.values())) > 1:
    raise ValueError(f"roles have heads of different vocabularies: {sizes}")
  (vocab,) = set(sizes.values())
  for top in plan.tops:
    if top.k + top.others > vocab:
      raise ValueError(
        f"k={top.k} {'other ' * top.others}tokens need a vocabulary of at least "
        f"{top.k + top.others}, this is {vocab}"
      )
  roles = set(trained) & plan.roles
  differentiated = set(wanted) - set(detached)
  with_cotangent = tuple(
    one
    for one in _each(plan)
    if one in differentiated and roles & reductions.roles(one)
  )
  static = _Static(
    plan,
    reductions.plan(with_cotangent),
    with_cotangent,
    vocab,
    block,
    split,
    kernel and _kernel_fits(plan, hidden, head, roles, split),
    interpret,
  )
  # Alone what is read, so that nothing else travels round a ring.
  free = {role: (hidden[role], head[role]) for role in sorted(roles)}
  fixed = {role: (hidden[role], head[role]) for role in sorted(plan.roles - roles)}
  values = _reduce(static, free, jax.lax.stop_gradient(fixed), target_RC)
  out = dict(zip(_each(plan), values, strict=True))
  return {
    one: x if isinstance(one, reductions.Top) else x[..., 0] for one, x in out.items()
  }


def _kernel_fits(plan, hidden, head, trained, split):
  """Whether the kernels can reduce the part of a device."""
  row_shards = 1
  if split is not None:
    row_shards = math.prod(split.mesh.shape[axis] for axis in split.rows)
    if split.ring_size == 1 and row_shards > 1:
      # The kernel would hold all of the head's gradient in float32 until it is summed
      # over the copies; the loop sums it block by block.
      return False
  x = {role: hidden[role] for role in plan.roles}
  tokens = max(math.prod(y.shape[:2]) for y in x.values()) // row_shards
  (vocab,) = {head[role].shape[0] for role in x}
  parts = 1 if split is None else split.mesh.shape[split.vocab]
  shape = -(-vocab // parts // _ring_size(split)), max(y.shape[2] for y in x.values())
  read = {y.dtype for y in x.values()} | {head[role].dtype for role in x}
  dtype = read.pop()
  if read or dtype not in (jnp.bfloat16, jnp.float32):
    return False
  dtypes = dtype, jnp.float32 if _ring_size(split) > 1 else dtype
  return kernels.fits(plan, tokens, shape, dtypes, len(x), len(trained))


def _each(plan: reductions.Plan) -> tuple[Reduction, ...]:
  return tuple(one for kind in plan for one in kind)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _reduce(static, free, fixed, target_RC):
  """`free`, `fixed`: role -> (hidden_RCD, head_VD). Values in the order of `_each`."""
  rows, head = _specs(static.split)
  run = _on_devices(
    functools.partial(_forward_on_device, static),
    static.split,
    ({role: (rows, head) for role in free | fixed}, rows),
    rows,
  )
  return run(free | fixed, target_RC)


def _forward(static, free, fixed, target_RC):
  values = _reduce(static, free, fixed, target_RC)
  return values, (free, fixed, target_RC, values)


def _backward(static, residuals, cotangents):
  free, fixed, target_RC, values = residuals
  if not static.cotangents:
    return jax.tree.map(jnp.zeros_like, free), None, None
  needed = static.pulled.roles
  fixed = {role: x for role, x in fixed.items() if role in needed}
  value_of = dict(zip(_each(static.plan), values, strict=True))
  results = tuple(value_of[one] for one in _each(static.pulled))
  cotangent_of = dict(zip(_each(static.plan), cotangents, strict=True))
  given = tuple(
    cotangent_of[one][0] if isinstance(one, reductions.Top) else cotangent_of[one]
    for one in static.cotangents
  )
  read = {role: x for role, x in free.items() if role in needed}
  rows, head = _specs(static.split)
  roles = {role: (rows, head) for role in read | fixed}
  run = _on_devices(
    functools.partial(_backward_on_device, static, tuple(read)),
    static.split,
    (roles, rows, rows, rows),
    {role: roles[role] for role in read},
  )
  gradients = run(read | fixed, target_RC, results, given)
  unread = {role: x for role, x in free.items() if role not in read}
  return gradients | jax.tree.map(jnp.zeros_like, unread), None, None


_reduce.defvjp(_forward, _backward)


def _specs(split: Split | None) -> tuple[PartitionSpec, PartitionSpec]:
  """Of what has rows, and of heads."""
  if split is None:
    return PartitionSpec(), PartitionSpec()
  return PartitionSpec(split.rows), PartitionSpec(split.vocab, split.ring)


def _on_devices(
  run: Callable, split: Split | None, inputs: Any, outputs: Any
) -> Callable:
  if split is None:
    return run
  # check_vma: the collectives are all written out, and nothing in here is
  # differentiated by JAX.
  return jax.shard_map(
    run, mesh=split.mesh, in_specs=inputs, out_specs=outputs, check_vma=False
  )


# --- On one device: its tokens, and its part of the vocabulary


def _forward_on_device(static, roles, target_RC):
  part = _part(static)
  tokens, target = _flat(roles), target_RC.reshape(-1, 1)
  slices = {role: _to_slice(static.split, head) for role, (_, head) in roles.items()}
  dtype = jnp.result_type(*(wide(x) for x in tokens.values()))

  plan = static.plan

  def reduced(add, state):
    def step(state, own, first, at):
      del at
      return add(state, _block(part, tokens, own, target, first))

    walk = functools.partial(_by_blocks, static.block, step)
    return _over_slices(static.split, slices, walk, state)

  def in_kernel(state, slices, first):
    own = kernels.forward(
      plan,
      tokens,
      slices,
      target,
      _span(part, slices, first),
      padded=part.padded,
      interpret=static.interpret,
    )
    return reductions.combine(plan, state, own)

  state = reductions.start(plan, target.size, dtype)
  if static.kernel:
    state = _over_slices(static.split, slices, in_kernel, state)
  else:
    state = reduced(functools.partial(reductions.add, plan), state)
  if static.split is not None:
    state = reductions.merge(plan, state, static.split.vocab)
  results = reductions.results(plan, state)
  if plan.second:
    second = reduced(
      lambda state, block: reductions.add_second(plan, state, results, block),
      tuple(jnp.zeros((target.size, 1), dtype) for _ in plan.second),
    )
    if static.split is not None:
      second = jax.lax.psum(second, static.split.vocab)
    results |= dict(zip(plan.second, second, strict=True))

  def by_row(x):
    return x.reshape(*target_RC.shape, x.shape[-1])

  return tuple(jax.tree.map(by_row, results[one]) for one in _each(plan))


def _backward_on_device(static, trained, roles, target_RC, results, cotangents):
  part, split = _part(static), static.split
  tokens, target = _flat(roles), target_RC.reshape(-1, 1)
  slices = {role: _to_slice(split, head) for role, (_, head) in roles.items()}

  def by_token(x):
    return x.reshape(-1, x.shape[-1])

  results, cotangents = jax.tree.map(by_token, (results, cotangents))
  results = dict(zip(_each(static.pulled), results, strict=True))
  cotangents = dict(zip(static.cotangents, cotangents, strict=True))

  def step(state, own, first, at):
    d_tokens, d_heads = (dict(x) for x in state)
    block = _block(part, tokens, own, target, first)
    d_logits = reductions.pull(static.pulled, results, cotangents, block, trained)
    for role, d in d_logits.items():
      x = tokens[role]
      d = d.astype(x.dtype)
      d_tokens[role] += matmul("nv,vd->nd", d, own[role].astype(x.dtype))
      d_head = matmul("nv,nd->vd", d, x)
      d_heads[role] = _written(split, d_heads[role], d_head, at)
    return d_tokens, d_heads

  in_ring = _ring_size(split) > 1  # where the devices' parts add up, in float32
  d_dtype = wide(next(iter(tokens.values())))

  def in_kernel(state, slices, first):
    own = kernels.backward(
      static.pulled,
      tokens,
      slices,
      target,
      _span(part, slices, first),
      results,
      cotangents,
      trained,
      d_dtype if in_ring else next(iter(slices.values())).dtype,
      padded=part.padded,
      interpret=static.interpret,
    )
    return jax.tree.map(jnp.add, state, own) if in_ring else own

  def pass_on(state):
    d_tokens, d_heads = state
    return d_tokens, _passed_on(split, d_heads)

  def zeros(x, dtype):
    return jnp.zeros(x.shape, dtype)

  state = (
    {role: zeros(tokens[role], wide(tokens[role])) for role in trained},
    {
      role: zeros(x, wide(x) if in_ring else x.dtype)
      for role, x in slices.items()
      if role in trained
    },
  )
  by_blocks = functools.partial(_by_blocks, static.block, step)
  walk: Callable = in_kernel if static.kernel else by_blocks
  d_tokens, d_heads = _over_slices(split, slices, walk, state, pass_on)
  if split is not None:
    d_tokens = jax.lax.psum(d_tokens, split.vocab)
  out = {}
  for role in trained:
    hidden_RCD, head_VD = roles[role]
    d_hidden = d_tokens[role].astype(hidden_RCD.dtype).reshape(hidden_RCD.shape)
    out[role] = d_hidden, _from_slice(split, d_heads[role], head_VD)
  return out


class _Part(NamedTuple):
  """A device's part of the vocabulary: the id of its first entry, and its size.

  In a ring it is cut into equal slices; `padded`: the last of them is longer than what
  is left.
  """

  first: int | Array
  size: int
  padded: bool


def _part(static):
  split = static.split
  if split is None:
    return _Part(0, static.vocab, False)
  size = static.vocab // split.mesh.shape[split.vocab]
  first = jax.lax.axis_index(split.vocab) * size
  return _Part(first, size, size % split.ring_size > 0)


def _flat(roles):
  return {role: x.reshape(-1, x.shape[-1]) for role, (x, _) in roles.items()}


def _block(part, tokens, own, target, first):
  """The logits of tokens at the entries from `first` on of a device's part."""
  logits = {
    role: matmul("nd,vd->nv", x, own[role].astype(x.dtype))
    for role, x in tokens.items()
  }
  size = next(iter(own.values())).shape[0]
  within = first + jnp.arange(size, dtype=target.dtype)[None, :]
  valid = within < part.size if part.padded else None
  return reductions.Block(logits, target, part.first + within, valid)


def _by_blocks(block, step, state, slices, first):
  """Applies `step(state, rows, place, at)` to the blocks of slices of the heads.

  Args:
    block: rows of a block.
    step: gets role -> the rows of a block, the place of the first of them in the
      device's part of the vocabulary, and in the slice.
    state: its first state.
    slices: role -> `[S, D]`.
    first: the place of the slices in the part.
  """
  length = next(iter(slices.values())).shape[0]

  def one(start, size, state):
    rows = {
      role: jax.lax.dynamic_slice_in_dim(x, start, size) for role, x in slices.items()
    }
    return step(state, rows, first + start, start)

  whole, rest = divmod(length, block)
  if whole:
    state = jax.lax.fori_loop(
      0, whole, lambda i, state: one(i * block, block, state), state
    )
  return one(whole * block, rest, state) if rest else state


def _over_slices(split, slices, walk, state, pass_on=lambda state: state):
  """Applies `walk(state, slices, first)` to all slices of the device's part.

  Args:
    split: the mesh, or None.
    slices: role -> this device's slice of the head, `[S, D]`.
    walk: what is done with a slice, the first row of which is `first` of the part.
    state: its first state.
    pass_on: what sends the part of a state that belongs to a slice after it.
  """
  count = _ring_size(split)
  if count == 1:
    return walk(state, slices, 0)
  length = next(iter(slices.values())).shape[0]
  own = jax.lax.axis_index(split.ring)

  def turn(i, carried):
    state, slices = carried
    following = _passed_on(split, slices)  # on its way while this one is read
    state = walk(state, slices, (own + i) % count * length)
    return pass_on(state), following

  state, slices = jax.lax.fori_loop(0, count - 1, turn, (state, slices))
  return pass_on(walk(state, slices, (own + count - 1) % count * length))


def _span(part, slices, first):
  """The id of the first row of slices, and how many rows are in the vocabulary."""
  length = next(iter(slices.values())).shape[0]
  inside = jnp.minimum(part.size - first, length)
  return jnp.stack([part.first + first, inside]).astype(jnp.int32)


def _ring_size(split):
  return 1 if split is None else split.ring_size


def _passed_on(split, x):
  """What the next device in the ring sends this one."""
  count = split.ring_size
  return jax.lax.ppermute(x, split.ring, [(i, (i - 1) % count) for i in range(count)])


def _to_slice(split, head_VD):
  """All of the width of this device's slice of the vocabulary, from a slice of the
  width of all of it."""
  count = _ring_size(split)
  if count == 1:
    return head_VD
  head_VD = jnp.pad(head_VD, ((0, -head_VD.shape[0] % count), (0, 0)))
  return jax.lax.all_to_all(head_VD, split.ring, 0, 1, tiled=True)


def _from_slice(split, d_head, head_VD):
  """The gradient of this device's part of the head, from that of its slice."""
  if _ring_size(split) == 1:
    return d_head
  d_head = jax.lax.psum(d_head, split.copies).astype(head_VD.dtype)
  d_head = jax.lax.all_to_all(d_head, split.ring, 1, 0, tiled=True)
  return d_head[: head_VD.shape[0]]


def _written(split, d_head, rows, at):
  """A slice's gradient with that of its rows from `at` on."""
  if _ring_size(split) > 1:  # the device before has added to them
    rows += jax.lax.dynamic_slice_in_dim(d_head, at, rows.shape[0])
  elif split is not None:
    rows = jax.lax.psum(rows, split.copies)
  rows = rows.astype(d_head.dtype)
  return jax.lax.dynamic_update_slice_in_dim(d_head, rows, at, axis=0)


def matmul(equation: str, x: Array, y: Array) -> Array:
  """A product of two matrices, accumulated and returned in at least float32."""
  # HIGHEST: by default TPUs compute float32 products from bfloat16 operands.
  return jnp.einsum(
    equation,
    x,
    y,
    precision=jax.lax.Precision.HIGHEST,
    preferred_element_type=wide(x),
  )


def wide(x: Array) -> Any:
  """The dtype of an array's sums: at least float32."""
  return jnp.promote_types(x.dtype, jnp.float32)
