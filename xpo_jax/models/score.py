"""Computes the token statistics of objectives from hidden states and heads.

`token_statistics` is the operation with a custom gradient that all objectives share. It
never materialises the [tokens, vocabulary] logits of a large batch. Both passes walk
over blocks of the vocabulary (`ops.head.blocks`); where that does not pay, and for a
statistic that is known as a function of all logits only, over chunks of the tokens. The
backward pass computes the logits of a block or a chunk again.
"""

import functools
from collections.abc import Iterable, Mapping
from typing import Any

import jax
import jax.numpy as jnp

from xpo_jax import scored
from xpo_jax.models import heads, transformer
from xpo_jax.ops import token_stats
from xpo_jax.ops.head import blocks, kernels
from xpo_jax.ops.head.blocks import matmul, wide
from xpo_jax.sharding import mesh as meshes
from xpo_jax.sharding import rules
from xpo_jax.types import Array, Params, Scored, TokenStat

# Roles whose hidden states, heads and values get a gradient.
TRAINED = frozenset({"policy", "critic"})
BUDGET = 8 << 20  # bytes of a chunk's logits, per device; see `chunk_length`
# Entries of the vocabulary at a time. On a CPU their logits are to stay in its cache;
# an accelerator reads and writes the hidden states' gradient once a block.
BLOCK, CPU_BLOCK = 512, 256
MIN_VOCAB = 2048  # of a device, to be read by blocks
_VOCAB = rules.RULES["vocab"]


def score(
  models: Mapping[str, transformer.Model],
  params: Mapping[str, Params],
  stats: Iterable[TokenStat],
  batch: Any,
  *,
  mesh: jax.sharding.Mesh | None = None,
  chunk: int | None = None,
) -> Scored:
  """Runs the models on packed rows and arranges the statistics as B x K x T.

  It computes `stats` only: no reference pass if `batch.ref` caches all statistics that
  read the reference, no logits for an objective of values only.

  Args:
    models: role -> model: "policy", "critic" if values have their own decoder, and each
      frozen role ("ref").
    params: role -> `{"lm": parameters, "value": scalar head, if needed}`. Only those of
      policy and critic get a gradient.
    stats: an objective's `stats`.
    batch: one microbatch of a `data.pack.Batch` (its arrays without the axis M).
    mesh: over which rows and the head's vocabulary are split, or None.
    chunk: see `token_statistics`.

  Returns:
    Scored with the statistics and the batch's `ref` and `fields`; 0 on padding. Of a
    mixture of experts also the policy's routing, over prompts and completions.

  Raises:
    ValueError: a role without model or parameters, a missing value head, or rows that
      do not split evenly over the mesh.
  """
  if mesh is not None:
    meshes.check_batch(mesh, batch.tokens_MRL.shape[0])
  uncached = tuple(s for s in sorted(stats, key=_field) if s.field not in batch.ref)
  _check_roles(uncached, models, params)
  rows = transformer.Rows(
    batch.tokens_MRL, batch.segment_MRL, batch.branch_MRL, batch.position_MRL
  )
  reads = {role for stat in uncached for role in stat.roles}
  hidden = {}
  routing = {}
  head = {}
  values = {}
  for role in sorted({role for stat in uncached for role in stat.decoders}):
    lm = params[role]["lm"]
    if role not in TRAINED:
      lm = jax.lax.stop_gradient(lm)
    if role in reads:
      head[role] = models[role].head(lm)
    if mesh is not None:
      lm = rules.gather_tables(mesh, lm, models[role].logical_axes())
    hidden_RLD, routing[role] = transformer.states(models[role], lm, rows, mesh)
    hidden_RLD = rules.pin(mesh, hidden_RLD, meshes.ROWS)
    if reads & {role, f"{role}.value"}:
      hidden[role] = _select(hidden_RLD, batch.source_MRC, batch.valid_MRC, mesh)
    if f"{role}.value" in reads:
      values[f"{role}.value"] = heads.value(params[role]["value"], hidden[role])
    if f"{role}.reward" in reads:
      read_RCD = _select(hidden_RLD, batch.input_MRC, batch.valid_MRC, mesh)
      values[f"{role}.reward"] = heads.value(params[role]["value"], read_RCD)
  fields = token_statistics(
    hidden,
    head,
    batch.target_MRC,
    uncached,
    values=values,
    softcaps={role: models[role].softcap for role in head},
    chunk=chunk,
    mesh=mesh,
  )
  fields = {name: _gather(x, batch.index_MBKT) for name, x in fields.items()}
  fields = dict(batch.fields) | fields | dict(batch.ref)
  known = Scored.__dataclass_fields__
  record = scored.from_token_logps(
    **{"logp_BKT": None} | {name: x for name, x in fields.items() if name in known},
    mask_BKT=batch.mask_MBKT,
    present_BK=batch.present_MBK,
    weight_B=batch.weight_MB,
    row_B=batch.row_MB,
    extra={name: x for name, x in fields.items() if name not in known},
  )
  return record.replace(routing=routing.get("policy"))


def _field(stat):
  return stat.field


def _select(hidden_RLD, index_RC, valid_RC, mesh):
  """Selects the hidden states at positions of L, `[R, C, D]`; 0 on padding."""
  hidden_RCD = jnp.take_along_axis(hidden_RLD, index_RC[..., None], axis=1)
  # Zeroed before anything is computed from it: padding, even NaN, affects neither
  # values nor gradients.
  hidden_RCD = jnp.where(valid_RC[..., None] > 0, hidden_RCD, 0)
  return rules.pin(mesh, hidden_RCD, meshes.ROWS)


def _check_roles(stats, models, params):
  for stat in stats:
    for read in stat.roles:
      role = read.split(".")[0]
      if role not in models or role not in params:
        given = sorted(set(models) & set(params))
        raise ValueError(
          f"{stat.field} reads the role {role!r}, but models and parameters were given "
          f"for {given}; add {role!r}, or cache {stat.field} in batch.ref"
        )
      if "." in read and "value" not in params[role]:
        raise ValueError(
          f"{stat.field} reads a scalar head, but params[{role!r}] has only "
          f"{sorted(params[role])}; add 'value': heads.init_value_head(width)"
        )


def _gather(x_RC, index_BKT):
  """Gathers `x_RC[...]` at flat indices; index R * C, one past the end, gives 0."""
  flat = x_RC.reshape(-1, *x_RC.shape[2:])
  return flat.at[index_BKT].get(mode="fill", fill_value=0)


def chunk_length(
  rows: int, capacity: int, vocab: int, width: int, roles: int = 1
) -> int:
  """Computes the length of a chunk of the axis C.

  A chunk's float32 logits take at most `BUDGET` bytes on a device, or half the memory
  of the head's float32 gradient, whichever is more: a small model is one chunk, and
  chunks of a large one are large enough to use the matrix unit. Chunks have nearly
  equal lengths, so that padding C costs less than one token per chunk and row.

  Args:
    rows: R on one device.
    capacity: C.
    vocab: V on one device.
    width: D.
    roles: number of roles whose logits are in memory at once.

  Returns:
    Length c, 1 <= c <= C; c = C means one chunk, whose logits are stored for the
    backward pass instead of recomputed.
  """
  tokens = max(BUDGET // (4 * vocab * max(roles, 1)), width // 2, 1)
  longest = min(max(tokens // rows, 1), capacity)
  chunks = -(-capacity // longest)
  return -(-capacity // chunks)


def block_length(tokens: int, vocab: int, on_cpu: bool) -> int | None:
  """Computes the number of entries of the vocabulary in a block, or None: all at once.

  Float32 logits of `BUDGET` bytes are held as they are, and not computed again.

  Args:
    tokens: R x C on one device.
    vocab: V on one device.
    on_cpu: whether the device is a CPU.
  """
  if 4 * tokens * vocab <= BUDGET or vocab < MIN_VOCAB:
    return None
  return CPU_BLOCK if on_cpu else BLOCK


def token_statistics(
  hidden: Mapping[str, Array],
  head: Mapping[str, Array],
  target_RC: Array,
  stats: tuple[TokenStat, ...],
  *,
  values: Mapping[str, Array] | None = None,
  softcaps: Mapping[str, float | None] | None = None,
  chunk: int | None = None,
  block: int | None = None,
  mesh: jax.sharding.Mesh | None = None,
) -> dict[str, Array]:
  """Computes statistics per token from hidden states, without a batch of logits.

  Differentiable in hidden states, heads and values of the roles `TRAINED`; other roles
  are frozen. The head's gradient is summed in float32 and returned in the head's dtype.
  Logits are float32: operands in the dtype of the hidden states, accumulated in float32
  (float64 stays float64).

  Args:
    hidden: role -> hidden_RCD, the states that predict the targets.
    head: role -> head_VD.
    target_RC: int32 token ids.
    stats: the statistics, functions of `({role: logits_CV or value_C}, target_C)`.
    values: "role.value" or "role.reward" -> value_RC, for statistics that read a
      scalar head.
    softcaps: role -> `Model.softcap`, of the models that have one.
    chunk: length of a chunk of C: in chunks of tokens.
    block: entries of the vocabulary at a time: in blocks of it. Without either,
      `block_length` decides, and then `chunk_length`; a TPU's kernels choose blocks of
      their own.
    mesh: over which rows and heads are split, or None.

  Returns:
    field -> [R, C, ...], at least float32.

  Raises:
    ValueError: a statistic reads a role that was not given, two statistics share a
      field, chunk or block < 1, both, or a statistic that has no form by blocks.
  """
  values = values or {}
  used = {role for stat in stats for role in stat.roles}
  given = set(hidden) & set(head) | set(values)
  if used - given:
    raise ValueError(
      f"statistics read the roles {sorted(used)}, but hidden states and heads were "
      f"given for {sorted(given)} only; pass {sorted(used - given)} too"
    )
  fields = [stat.field for stat in stats]
  if len(set(fields)) < len(fields):
    raise ValueError(f"two statistics share a field: {sorted(fields)}; rename one")
  if chunk is not None and block is not None:
    raise ValueError(f"chunk={chunk} and block={block}: give one of them, or neither")
  if chunk is not None and chunk < 1:
    raise ValueError(f"chunk={chunk}; it must be at least 1, or None for the rule")
  hidden = {role: hidden[role] for role in sorted(used & set(hidden))}
  head = {role: head[role] for role in hidden}
  caps = tuple(sorted((role, cap) for role, cap in (softcaps or {}).items() if cap))
  stats = tuple(token_stats.capped(stat, caps) for stat in stats)
  only_whole = [
    stat.field for stat in stats if stat.reduced is None and set(stat.roles) & set(head)
  ]
  if block is not None and only_whole:
    raise ValueError(
      f"{only_whole} are functions of all logits; give them `reduced`, or leave out "
      f"block={block}"
    )
  vocabularies = {x.shape[0] for x in head.values()}
  by_rule = chunk is None and block is None
  if by_rule and not only_whole and len(vocabularies) == 1:
    tokens, vocab = target_RC.size, max(vocabularies)
    if mesh is not None:
      tokens, vocab = tokens // meshes.row_shards(mesh), vocab // mesh.shape[_VOCAB]
    block = block_length(tokens, vocab, meshes.platform(mesh) == "cpu")
  if block is None:
    return _in_chunks(hidden, head, values, target_RC, stats, chunk=chunk, mesh=mesh)
  kernel = by_rule and meshes.has_chips(mesh, kernels.CHIPS)
  return _by_blocks(
    hidden, head, values, target_RC, stats, block=block, mesh=mesh, kernel=kernel
  )


def _in_chunks(hidden, head, values, target_RC, stats, *, chunk, mesh):
  """`token_statistics` in chunks of tokens; arguments as there."""
  rows, capacity = target_RC.shape
  if chunk is None:
    row_shards = 1 if mesh is None else meshes.row_shards(mesh)
    vocab_shards = 1 if mesh is None else mesh.shape[_VOCAB]
    # Scalar heads alone count as one entry of the vocabulary on each shard.
    none = (vocab_shards, 1)
    vocab, width = max((x.shape for x in head.values()), default=none)
    chunk = chunk_length(
      rows // row_shards, capacity, vocab // vocab_shards, width, len(head)
    )
  # Per-token inputs: hidden states by role, and values.
  read = {role for stat in stats for role in stat.roles}
  tokens = hidden | {role: values[role] for role in sorted(read & set(values))}
  trained = {role: x for role, x in tokens.items() if _is_trained(role)}
  heads = {role: rules.gather_table(mesh, x) for role, x in head.items()}
  trained_heads = {role: w for role, w in heads.items() if _is_trained(role)}
  frozen = jax.lax.stop_gradient(
    (
      {role: x for role, x in tokens.items() if role not in trained},
      {role: w for role, w in heads.items() if role not in trained_heads},
    )
  )
  static = (stats, min(chunk, capacity), mesh)
  return _statistics(static, trained, trained_heads, frozen, target_RC)


def _by_blocks(hidden, head, values, target_RC, stats, *, block, mesh, kernel):
  """`token_statistics` by blocks of the vocabulary; arguments as there."""
  by_logits = [stat for stat in stats if stat.reduced is not None]
  read = [one for stat in by_logits for one in stat.reduced.reductions]
  differentiated = {
    one
    for stat in by_logits
    if not stat.reduced.detached
    for one in stat.reduced.reductions
  }
  split = None
  if mesh is not None:
    ring, vocab = rules.RULES["embed"], rules.RULES["vocab"]
    split = blocks.Split(mesh, meshes.ROWS, ring, vocab)
    head = {role: rules.pin(mesh, x, vocab, ring) for role, x in head.items()}
  reduced = {}
  if read:
    reduced = blocks.reduce(
      hidden,
      head,
      target_RC,
      read,
      trained=TRAINED,
      detached=set(read) - differentiated,
      block=block,
      split=split,
      kernel=kernel,
    )
  out = {}
  for stat in stats:
    if stat.reduced is None:  # of scalar heads alone
      scalars = {role: values[role].astype(wide(values[role])) for role in stat.roles}
      fixed = {role: x for role, x in scalars.items() if not _is_trained(role)}
      out[stat.field] = stat.fn(scalars | jax.lax.stop_gradient(fixed), target_RC)
    else:
      inputs = [reduced[one] for one in stat.reduced.reductions]
      if stat.reduced.detached:
        inputs = jax.lax.stop_gradient(inputs)
      out[stat.field] = stat.reduced.fn(*inputs, target_RC)
  return out


def _is_trained(role):
  return role.split(".")[0] in TRAINED


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _statistics(static, trained, trained_heads, frozen, target_RC):
  """`trained`, `frozen[0]`: {role: hidden_RCD or value_RC}; heads: {role: head_VD}."""
  stats, chunk, _ = static
  frozen_tokens, frozen_heads = frozen
  heads = trained_heads | frozen_heads

  def step(carry, xs):
    tokens, target_C = xs
    return carry, _evaluate(stats, _outputs(tokens, heads), target_C)

  return _scan_chunks(step, None, (trained | frozen_tokens, target_RC), chunk)[1]


def _forward(static, trained, trained_heads, frozen, target_RC):
  stats, chunk, _ = static
  inputs = (trained, trained_heads, frozen, target_RC)
  if chunk < target_RC.shape[1]:
    return _statistics(static, *inputs), (inputs, None)

  # A single chunk is within the budget: store the residuals of its gradient.
  def step(_, xs):
    trained_C, frozen_C, target_C = xs
    out, pullback = _linearise(
      stats, trained_C, trained_heads, frozen_C, frozen[1], target_C
    )
    return pullback, out

  pullback, out = _scan_chunks(step, None, (trained, frozen[0], target_RC), chunk)
  return out, (inputs, pullback)


def _backward(static, residuals, cotangents):
  stats, chunk, mesh = static
  (trained, trained_heads, frozen, target_RC), stored_pullback = residuals

  def step(d_heads, xs):
    trained_C, frozen_C, target_C, d_out = xs
    pullback = stored_pullback
    if pullback is None:
      _, pullback = _linearise(
        stats, trained_C, trained_heads, frozen_C, frozen[1], target_C
      )
    (d_outputs,) = pullback(d_out)
    d_trained, d_heads_C = _input_gradients(trained_C, trained_heads, d_outputs, shards)
    return jax.tree.map(jnp.add, d_heads, d_heads_C), d_trained

  def zeros(head_VD):
    initial = jnp.zeros((shards, *head_VD.shape), wide(head_VD))
    return rules.pin(mesh, initial, meshes.ROWS, _VOCAB)

  # Each row shard accumulates its part of the head's gradient; the parts are summed
  # once after the loop, not by an all-reduce in every chunk.
  shards = 1 if mesh is None else meshes.row_shards(mesh)
  xs = (trained, frozen[0], target_RC, cotangents)
  initial = jax.tree.map(zeros, trained_heads)
  d_heads, d_trained = _scan_chunks(step, initial, xs, chunk)
  d_heads = jax.tree.map(lambda d, w: d.sum(0).astype(w.dtype), d_heads, trained_heads)
  return d_trained, d_heads, None, None


_statistics.defvjp(_forward, _backward)


def _scan_chunks(step, carry, xs_RC, chunk):
  """Scans over chunks of the axis C; `step` gets rows and C merged into one axis.

  C is padded with zeros to whole chunks, and the padding removed from the result; the
  cotangents are padded in the same way, so that it adds nothing to a gradient.
  """
  rows, capacity = jax.tree.leaves(xs_RC)[0].shape[:2]
  count = -(-capacity // chunk)

  def split(x):
    x = jnp.pad(x, [(0, 0), (0, count * chunk - capacity)] + [(0, 0)] * (x.ndim - 2))
    x = x.reshape(rows, count, chunk, *x.shape[2:])
    return jnp.moveaxis(x, 1, 0).reshape(count, rows * chunk, *x.shape[3:])

  def join(y):
    y = y.reshape(count, rows, chunk, *y.shape[2:])
    return jnp.moveaxis(y, 0, 1).reshape(rows, -1, *y.shape[3:])[:, :capacity]

  xs = jax.tree.map(split, xs_RC)
  if count == 1:  # no loop
    carry, ys = step(carry, jax.tree.map(lambda x: x[0], xs))
    ys = jax.tree.map(lambda y: y[None], ys)
  else:
    carry, ys = jax.lax.scan(step, carry, xs)
  return carry, jax.tree.map(join, ys)


def _outputs(tokens, heads):
  """Computes the inputs of statistics: {role: logits_CV or value_C}."""
  out = {}
  for role, x in tokens.items():
    if role in heads:
      out[role] = matmul("cd,vd->cv", x, heads[role].astype(x.dtype))
    else:
      out[role] = x.astype(wide(x))
  return out


def _evaluate(stats, outputs, target_C):
  return {
    stat.field: stat.fn({role: outputs[role] for role in stat.roles}, target_C)
    for stat in stats
  }


def _linearise(stats, trained, trained_heads, frozen, frozen_heads, target_C):
  """Returns a chunk's statistics and their pullback to the trained roles' outputs."""
  frozen_outputs = _outputs(frozen, frozen_heads)

  def evaluate(outputs):
    return _evaluate(stats, outputs | frozen_outputs, target_C)

  return jax.vjp(evaluate, _outputs(trained, trained_heads))


def _input_gradients(trained, trained_heads, d_outputs, shards):
  """Computes a chunk's gradients of tokens, and of heads by row shard."""

  def split(x):
    return x.reshape(shards, -1, x.shape[-1])

  d_trained = {}
  d_heads = {}
  for role, x in trained.items():
    d = d_outputs[role].astype(x.dtype)
    if role in trained_heads:
      d_heads[role] = matmul("scv,scd->svd", split(d), split(x))
      d = matmul("cv,vd->cd", d, trained_heads[role].astype(x.dtype)).astype(x.dtype)
    d_trained[role] = d
  return d_trained, d_heads
