"""Scoring: from hidden states and heads to the statistics an objective reads.

`token_statistics` is the one operation with a custom gradient that every objective
shares. It never holds the [tokens, vocabulary] logits of a batch: both passes walk
the response tokens in chunks, and the backward pass computes a chunk's logits anew.
"""

import functools
from collections.abc import Iterable, Mapping
from typing import Any

import jax
import jax.numpy as jnp

from xpo_jax import scored
from xpo_jax.models import heads, transformer
from xpo_jax.sharding import mesh as meshes
from xpo_jax.sharding import rules
from xpo_jax.types import Array, Params, Scored, TokenStat

# The roles whose hidden states, heads and values get a gradient.
TRAINED = frozenset({"policy", "critic"})
BUDGET = 8 << 20  # bytes of a chunk's logits, per device; see `chunk_length`
_VOCAB = rules.RULES["vocab"]


def score(
  models: Mapping[str, transformer.Model],
  params: Mapping[str, Params],
  needs: Iterable[TokenStat],
  batch: Any,
  mesh: jax.sharding.Mesh | None = None,
  chunk: int | None = None,
) -> Scored:
  """Runs the models over packed rows and lays the statistics out B x K x T.

  Only what `stats` asks for is computed: no reference pass where every statistic that
  reads it is cached in `batch.ref`, no logits for an objective that reads values only.

  Args:
    models: role -> model: "policy", "critic" where values have a decoder of their own,
      and each frozen role ("ref").
    params: role -> `{"lm": parameters, "value": scalar head, where needed}`. Only those
      of policy and critic get a gradient.
    stats: an objective's `stats`.
    batch: one microbatch of a `data.pack.Batch` (its arrays without the axis M).
    mesh: where rows are split over devices; pins rows, and the head's vocabulary.
    chunk: see `token_statistics`.

  Returns:
    Scored with the needs, the batch's `ref` and `fields`; padding is exactly zero.

  Raises:
    ValueError: a role without model or parameters, a value head that is missing, or
      rows that do not split evenly over the mesh.
  """
  if mesh is not None:
    meshes.check_batch(mesh, batch.tokens_MRL.shape[0])
  missing = tuple(s for s in sorted(needs, key=_field) if s.field not in batch.ref)
  _check_roles(missing, models, params)
  rows = transformer.Rows(
    batch.tokens_MRL, batch.segment_MRL, batch.branch_MRL, batch.position_MRL
  )
  source_RC, valid_RC = batch.source_MRC, batch.valid_MRC
  reads = {role for stat in missing for role in stat.roles}
  hidden, head, values = {}, {}, {}
  for role in sorted({read.split(".")[0] for read in reads}):
    lm = params[role]["lm"]
    if role not in TRAINED:
      lm = jax.lax.stop_gradient(lm)
    if mesh is not None:
      lm = rules.gather_tables(mesh, lm, models[role].logical_axes())
    hidden_RLD = rules.pin(mesh, models[role].hidden(lm, rows), meshes.ROWS)
    hidden_RCD = jnp.take_along_axis(hidden_RLD, source_RC[..., None], axis=1)
    # Selected here, before anything is computed from it: what stands on padding, NaN
    # included, reaches neither a value nor a gradient.
    hidden_RCD = jnp.where(valid_RC[..., None] > 0, hidden_RCD, 0)
    hidden[role] = rules.pin(mesh, hidden_RCD, meshes.ROWS)
    if role in reads:
      head[role] = rules.pin(mesh, models[role].head(lm), _VOCAB)
    if f"{role}.value" in reads:
      values[f"{role}.value"] = heads.value(params[role]["value"], hidden[role])
  fields = token_statistics(
    hidden, head, batch.target_MRC, missing, values, chunk, mesh
  )
  fields = {name: _gather(x, batch.index_MBKT) for name, x in fields.items()}
  fields = dict(batch.fields) | fields | dict(batch.ref)
  known = Scored.__dataclass_fields__
  return scored.from_token_logps(
    **{"logp_BKT": None} | {name: x for name, x in fields.items() if name in known},
    mask_BKT=batch.mask_MBKT,
    present_BK=batch.present_MBK,
    weight_B=batch.weight_MB,
    row_B=batch.row_MB,
    extra={name: x for name, x in fields.items() if name not in known},
  )


def _field(stat):
  return stat.field


def _check_roles(needs, models, params):
  for stat in needs:
    for read in stat.roles:
      role = read.split(".")[0]
      if role not in models or role not in params:
        given = sorted(set(models) & set(params))
        raise ValueError(
          f"{stat.field} reads the role {role!r}, but models and parameters were given "
          f"for {given}; add {role!r}, or cache {stat.field} in batch.ref"
        )
      if read.endswith(".value") and "value" not in params[role]:
        raise ValueError(
          f"{stat.field} reads a scalar head, but params[{role!r}] has only "
          f"{sorted(params[role])}; add 'value': heads.init_value_head(width)"
        )


def _gather(x_RC, index_BKT):
  """`x_RC[...]` at flat indices; R * C, one past the end, reads 0."""
  flat = x_RC.reshape(-1, *x_RC.shape[2:])
  return flat.at[index_BKT].get(mode="fill", fill_value=0)


def chunk_length(
  rows: int, capacity: int, vocab: int, width: int, roles: int = 1
) -> int:
  """How much of the axis C one chunk covers.

  A chunk's logits, in float32, take at most `BUDGET` bytes on a device, or half of
  what the head's gradient takes there anyway (its float32 sum), whichever is more: a
  small model is then one chunk, and a large one keeps the matrix unit busy. Chunks are
  evened out, so that padding C costs less than one token a chunk and row.

  Args:
    rows: R on one device.
    capacity: C.
    vocab: V on one device.
    width: D.
    roles: parameter sets whose logits are held together.

  Returns:
    Length c, 1 <= c <= C; c = C means one chunk, whose logits are kept for the
    backward pass rather than computed twice.
  """
  tokens = max(BUDGET // (4 * vocab * max(roles, 1)), width // 2, 1)
  longest = min(max(tokens // rows, 1), capacity)
  chunks = -(-capacity // longest)
  return -(-capacity // chunks)


def token_statistics(
  hidden: Mapping[str, Array],
  head: Mapping[str, Array],
  target_RC: Array,
  stats: tuple[TokenStat, ...],
  values: Mapping[str, Array] | None = None,
  chunk: int | None = None,
  mesh: jax.sharding.Mesh | None = None,
) -> dict[str, Array]:
  """Statistics per token from hidden states, without a batch of logits.

  Differentiable in what belongs to the roles `TRAINED` (hidden states, head, value);
  every other role is frozen. The head's gradient is summed in float32 and returned
  in the head's dtype. Logits are float32: operands in the dtype of the hidden
  states, accumulated in float32 (float64 stays float64).

  Args:
    hidden: role -> hidden_RCD, the states that predict the targets.
    head: role -> head_VD.
    target_RC: int32 token ids.
    stats: what to compute; each sees `({role: logits_CV or value_C}, target_C)`.
    values: "role.value" -> value_RC, for statistics that read a scalar head.
    chunk: length of C walked at a time; `chunk_length` says which by default.
    mesh: where rows are split over devices, or None.

  Returns:
    field -> [R, C, ...], at least float32.

  Raises:
    ValueError: a statistic reads a role that was not given, two statistics share a
      field, or chunk < 1.
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
  rows, capacity = target_RC.shape
  logit_roles = sorted(used & set(hidden))
  if chunk is None:
    row_shards, vocab_shards = 1, 1
    if mesh is not None:
      row_shards, vocab_shards = meshes.row_shards(mesh), mesh.shape[_VOCAB]
    vocab, width = max((head[role].shape for role in logit_roles), default=(1, 1))
    chunk = chunk_length(
      rows // row_shards, capacity, vocab // vocab_shards, width, len(logit_roles)
    )
  if chunk < 1:
    raise ValueError(f"chunk={chunk}; it must be at least 1, or None for the rule")
  # One dict for all that has a row per token: hidden states by role, and values.
  tokens = {role: hidden[role] for role in logit_roles}
  tokens |= {role: values[role] for role in sorted(used & set(values))}
  own = {role: x for role, x in tokens.items() if _is_trained(role)}
  heads = {role: head[role] for role in logit_roles}
  own_heads = {role: w for role, w in heads.items() if _is_trained(role)}
  frozen = jax.lax.stop_gradient(
    (
      {role: x for role, x in tokens.items() if role not in own},
      {role: w for role, w in heads.items() if role not in own_heads},
    )
  )
  static = (stats, min(chunk, capacity), mesh)
  return _statistics(static, own, own_heads, frozen, target_RC)


def _is_trained(role):
  return role.split(".")[0] in TRAINED


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _statistics(static, own, own_heads, frozen, target_RC):
  """`own` and `frozen[0]`: {role: hidden_RCD, or value_RC}; heads: {role: head_VD}."""
  stats, chunk, _ = static
  frozen_tokens, frozen_heads = frozen
  heads = own_heads | frozen_heads

  def step(carry, xs):
    tokens, target_C = xs
    return carry, _evaluate(stats, _outputs(tokens, heads), target_C)

  return _walk(step, None, (own | frozen_tokens, target_RC), chunk)[1]


def _forward(static, own, own_heads, frozen, target_RC):
  stats, chunk, _ = static
  inputs = (own, own_heads, frozen, target_RC)
  if chunk < target_RC.shape[1]:
    return _statistics(static, *inputs), (inputs, None)

  # A single chunk is within the budget: keep what its gradient needs.
  def step(_, xs):
    own_C, frozen_C, target_C = xs
    out, pullback = _linearised(stats, own_C, own_heads, frozen_C, frozen[1], target_C)
    return pullback, out

  pullback, out = _walk(step, None, (own, frozen[0], target_RC), chunk)
  return out, (inputs, pullback)


def _backward(static, residuals, cotangents):
  stats, chunk, mesh = static
  (own, own_heads, frozen, target_RC), pullback = residuals

  def step(d_heads, xs):
    own_C, frozen_C, target_C, d_out = xs
    kept = pullback
    if kept is None:
      _, kept = _linearised(stats, own_C, own_heads, frozen_C, frozen[1], target_C)
    (d_outputs,) = kept(d_out)
    d_own, d_heads_C = _input_gradients(own_C, own_heads, d_outputs, shards)
    return jax.tree.map(jnp.add, d_heads, d_heads_C), d_own

  def zeros(head_VD):
    start = jnp.zeros((shards, *head_VD.shape), _wide(head_VD))
    return rules.pin(mesh, start, meshes.ROWS, _VOCAB)

  # Each shard of the rows sums its own share of the head's gradient; they are added
  # up once, after the loop, and not by an all-reduce in every chunk.
  shards = 1 if mesh is None else meshes.row_shards(mesh)
  xs = (own, frozen[0], target_RC, cotangents)
  d_heads, d_own = _walk(step, jax.tree.map(zeros, own_heads), xs, chunk)
  d_heads = jax.tree.map(lambda d, w: d.sum(0).astype(w.dtype), d_heads, own_heads)
  return d_own, d_heads, None, None


_statistics.defvjp(_forward, _backward)


def _walk(step, carry, xs_RC, chunk):
  """`lax.scan` over chunks of the axis C; `step` sees rows and C as one axis.

  C is padded with zeros to whole chunks and the padding cut from the result; as the
  cotangents are padded alike, it adds nothing to a gradient.
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
  """What statistics read: {role: logits_CV or value_C}."""
  out = {}
  for role, x in tokens.items():
    if role in heads:
      out[role] = _matmul("cd,vd->cv", x, heads[role].astype(x.dtype))
    else:
      out[role] = x.astype(_wide(x))
  return out


def _evaluate(stats, outputs, target_C):
  return {
    stat.field: stat.fn({role: outputs[role] for role in stat.roles}, target_C)
    for stat in stats
  }


def _linearised(stats, own, own_heads, frozen, frozen_heads, target_C):
  """The statistics of a chunk, and their pullback to the policy's outputs."""
  others = _outputs(frozen, frozen_heads)

  def evaluate(outputs):
    return _evaluate(stats, outputs | others, target_C)

  return jax.vjp(evaluate, _outputs(own, own_heads))


def _input_gradients(own, own_heads, d_outputs, shards):
  """Gradients of a chunk's tokens, and what it adds to each shard's of the heads."""

  def split(x):
    return x.reshape(shards, -1, x.shape[-1])

  d_own, d_heads = {}, {}
  for role, x in own.items():
    d = d_outputs[role].astype(x.dtype)
    if role in own_heads:
      d_heads[role] = _matmul("scv,scd->svd", split(d), split(x))
      d = _matmul("cv,vd->cd", d, own_heads[role].astype(x.dtype)).astype(x.dtype)
    d_own[role] = d
  return d_own, d_heads


def _matmul(equation, x, y):
  # HIGHEST: on TPU a float32 product is otherwise computed from bfloat16 operands.
  return jnp.einsum(
    equation,
    x,
    y,
    precision=jax.lax.Precision.HIGHEST,
    preferred_element_type=_wide(x),
  )


def _wide(x):
  return jnp.promote_types(x.dtype, jnp.float32)
