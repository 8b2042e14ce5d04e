"""Maps the logical axes of parameters to mesh axes.

A size that its mesh axis does not divide is refused, never replicated instead: silent
replication would only show when memory runs out. The key and value heads alone are held
whole there: models have few of them (Gemma 3 1B: one), and they are small; so are the
scales of weights in 4 bits.
"""

import functools
from typing import Any

import jax
from jax.sharding import AbstractMesh, Mesh, NamedSharding, PartitionSpec

from xpo_jax.sharding import mesh as meshes
from xpo_jax.sharding import nf4
from xpo_jax.types import Array, Params

# Logical axis of a parameter -> mesh axis, or None: whole on every device.
RULES = {
  "layers": None,  # scanned over
  "embed": "fsdp",
  "heads": "tensor",
  "kv_heads": "tensor",
  "head_dim": None,
  "mlp": "tensor",
  "experts": "tensor",
  "expert_mlp": None,
  "router": None,  # its outputs: every device chooses among all experts
  "vocab": "tensor",
  "position": None,
  "rank": None,  # of an adapter
  None: None,
}
_WHOLE_IF_NOT_DIVISIBLE = ("kv_heads",)


def is_axes(x: Any) -> bool:
  """Whether x is a leaf of a tree of logical axes (a tuple of names)."""
  return isinstance(x, tuple)


def replicated(mesh: Mesh) -> NamedSharding:
  """Returns the sharding of an array that every device holds whole."""
  return NamedSharding(mesh, PartitionSpec())


def param_shardings(mesh: Mesh, logical_axes: Any, params: Params) -> Params:
  """Returns the sharding of every parameter, by `RULES`.

  Args:
    mesh: from `make_mesh`.
    logical_axes: pytree like the parameters, a tuple of axis names for each leaf.
    params: arrays or `jax.ShapeDtypeStruct`s.

  Returns:
    Pytree of `NamedSharding`.

  Raises:
    ValueError: an axis name that has no rule, or a size that is not divisible.
  """

  def sharding(path, axes, x):
    unknown = [axis for axis in axes if axis not in RULES]
    if unknown:
      raise ValueError(
        f"parameter {_name(path)} has the axes {axes}; there is no rule for "
        f"{unknown}, known: {sorted(axis for axis in RULES if axis)}"
      )
    if len(axes) != len(x.shape):
      raise ValueError(
        f"parameter {_name(path)} of shape {x.shape} has the axes {axes}"
      )
    sizes = zip(axes, x.shape, strict=True)
    split = [_checked_axis(mesh, path, axis, size) for axis, size in sizes]
    if not nf4.is_nf4(x):
      return NamedSharding(mesh, PartitionSpec(*split))
    sizes = zip(axes, x.scale.shape, strict=True)
    of_scale = [mesh_axis(mesh, axis, size) for axis, size in sizes]
    specs = (PartitionSpec(*split), PartitionSpec(*of_scale))
    shardings: list[Any] = [NamedSharding(mesh, spec) for spec in specs]
    return nf4.NF4(*shardings)

  return jax.tree_util.tree_map_with_path(
    sharding, logical_axes, params, is_leaf=is_axes
  )


def mesh_axis(mesh: Mesh | AbstractMesh, axis: str, size: int) -> str | None:
  """The mesh axis that splits a logical axis of a size; None: it is held whole."""
  rule = RULES[axis]
  return None if rule is None or size % mesh.shape[rule] else rule


def kv_head_axis(mesh: Mesh | None, kv_heads: int) -> str | None:
  """The mesh axis that splits heads; None where it does not divide the key heads."""
  return None if mesh is None else mesh_axis(mesh, "kv_heads", kv_heads)


def pin(mesh: Mesh | None, x: Array, *axes: Any) -> Array:
  """Constrains `x` to be split by these mesh axes, under jit; no mesh, no effect."""
  if mesh is None:
    return x
  return jax.lax.with_sharding_constraint(x, NamedSharding(mesh, PartitionSpec(*axes)))


def pin_rows(mesh: Mesh | None, tree: Any) -> Any:
  """Arrays whose first axis is rows, split by rows, inside a jitted function; their
  other axes are the compiler's. No mesh, no effect."""
  free = PartitionSpec.UNCONSTRAINED
  return jax.tree.map(lambda x: pin(mesh, x, meshes.ROWS, *[free] * (x.ndim - 1)), tree)


def gather_tables(mesh: Mesh, params: Params, logical_axes: Any) -> Params:
  """Restricts parameters with a vocabulary axis to be split along that axis alone.

  If such a table is looked up or multiplied while its other axis is split too, the
  compiler splits activations along the width, and then replicates them.
  """

  def gather(axes, x):
    return gather_table(mesh, x, axes) if "vocab" in axes else x

  return jax.tree.map(gather, logical_axes, params, is_leaf=is_axes)


def gather_table(
  mesh: Mesh | None, x: Array, axes: tuple = ("vocab", "embed")
) -> Array:
  """Restricts a table to be split along its vocabulary alone; its gradient is split as
  the table was. No mesh, no effect."""
  return x if mesh is None else _by_vocab(mesh, axes, x)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0, 1))
def _by_vocab(mesh: Mesh, axes: tuple, x: Array) -> Array:
  return pin(mesh, x, *(RULES[axis] if axis == "vocab" else None for axis in axes))


_by_vocab.defvjp(
  lambda mesh, axes, x: (_by_vocab(mesh, axes, x), None),
  lambda mesh, axes, _, d_x: (pin(mesh, d_x, *(RULES[axis] for axis in axes)),),
)


def _checked_axis(mesh, path, axis, size):
  """`mesh_axis` of an axis of a parameter, which the mesh must divide."""
  rule, found = RULES[axis], mesh_axis(mesh, axis, size)
  if found == rule or axis in _WHOLE_IF_NOT_DIVISIBLE:
    return found
  count = mesh.shape[rule]
  allowed = [n for n in range(1, size + 1) if size % n == 0]
  raise ValueError(
    f"parameter {_name(path)}: axis {axis!r} of size {size} cannot be split over "
    f"{rule}={count} devices; {rule} must be one of {allowed} "
    f"(for every parameter), or change the model's size"
  )


def _name(path):
  return jax.tree_util.keystr(path, simple=True, separator="/")
