"""Looks up rows of a split table: ids and what is found move, the table does not."""

import jax
import jax.numpy as jnp
from jax.sharding import Mesh, PartitionSpec

from xpo_jax.sharding import mesh as meshes
from xpo_jax.sharding.rules import RULES
from xpo_jax.types import Array


def take(mesh: Mesh | None, table: Array, ids: Array, axes: tuple[str, str]) -> Array:
  """Takes rows of a table, `[V, D]`, at ids `[R, ...]`: `[R, ..., D]`.

  Each device looks up the ids of all devices that split D, in its own columns; an
  all-to-all then brings the columns of its own ids together. The gradient goes back
  the same way, so that no device holds that of the whole table.

  An id that the table does not have gives NaN, which stops a run.

  Args:
    mesh: over which R is split by rows, and the table by the rules; None: wherever
      they are.
    table: `[V, D]`.
    ids: integers.
    axes: logical axes of the table.
  """
  if mesh is None:
    return table.at[ids].get(mode="fill", wrap_negative_indices=False)
  across, width = (_splits(mesh, axis) for axis in axes)

  def local(table: Array, ids: Array) -> Array:
    if width is not None:
      ids = jax.lax.all_gather(ids, width, tiled=True)
    start = 0 if across is None else jax.lax.axis_index(across) * table.shape[0]
    own = (ids >= start) & (ids < start + table.shape[0])
    found = jnp.where(own[..., None], table.at[ids - start].get(mode="clip"), 0)
    if across is not None:
      found, own = jax.lax.psum((found, own.astype(jnp.int32)), across)
    found = jnp.where((own > 0)[..., None], found, jnp.nan)
    if width is None:
      return found
    return jax.lax.all_to_all(found, width, 0, found.ndim - 1, tiled=True)

  rows = PartitionSpec(meshes.ROWS)
  specs = (PartitionSpec(across, width), rows)
  return jax.shard_map(local, mesh=mesh, in_specs=specs, out_specs=rows)(table, ids)


def _splits(mesh: Mesh, axis: str) -> str | None:
  """The mesh axis that splits a logical one into several parts, or None."""
  name = RULES[axis]
  return None if name is None or mesh.shape[name] == 1 else name
