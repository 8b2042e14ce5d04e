"""Places parameters, optimiser states and batches on a mesh."""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from xpo_jax.sharding import distributed, rules
from xpo_jax.sharding import mesh as meshes
from xpo_jax.types import Array, Params


def place_params(mesh: Mesh, params: Params, logical_axes: Any) -> Params:
  """Places the parameters, each split by `rules.RULES`.

  Raises:
    ValueError: a size that its mesh axis does not divide, by the parameter's name.
  """
  return _put(params, rules.param_shardings(mesh, logical_axes, params))


@jax.jit
def copied(tree: Any) -> Any:
  """Copies of arrays, each where it is."""
  return jax.tree.map(jnp.copy, tree)


def init_params(
  mesh: Mesh, init: Callable[[Array], Params], logical_axes: Any, key: Array
) -> Params:
  """Runs `init(key)` with sharded outputs: no device ever holds the whole model.

  Raises:
    ValueError: see `place_params`.
  """
  shapes = jax.eval_shape(init, key)
  shardings = rules.param_shardings(mesh, logical_axes, shapes)
  return jax.jit(init, out_shardings=shardings)(key)


def optimizer_shardings(
  mesh: Mesh,
  optimizer: optax.GradientTransformation,
  params: Params,
  shardings: Params,
) -> Any:
  """Shardings of an optimiser's state: arrays of a parameter's shape are split like it.

  All others are replicated: step counts, and Adafactor's factors, which have one axis
  less than their parameter and are small. Use the result as `out_shardings` of
  a jitted `optimizer.init`; without it all moments are placed on one device.

  Args:
    mesh: from `make_mesh`.
    optimizer: the optax chain.
    params: arrays or `jax.ShapeDtypeStruct`s.
    shardings: those of the parameters, see `rules.param_shardings`.
  """
  whole = rules.replicated(mesh)

  def placed(x, param, sharding):
    if isinstance(x, optax.MaskedNode):  # a parameter of another optimiser (Muon)
      return x
    return sharding if x.shape == param.shape else whole

  return optax.tree.map_params(
    optimizer,
    placed,
    jax.eval_shape(optimizer.init, params),
    params,
    shardings,
    transform_non_params=lambda _: whole,
    is_leaf=lambda x: isinstance(x, optax.MaskedNode),
  )


def init_optimizer(
  mesh: Mesh,
  optimizer: optax.GradientTransformation,
  params: Params,
  logical_axes: Any,
) -> optax.OptState:
  """Runs `optimizer.init(params)`, every moment sharded like its parameter."""
  shardings = rules.param_shardings(mesh, logical_axes, params)
  placed = optimizer_shardings(mesh, optimizer, params, shardings)
  return jax.jit(optimizer.init, out_shardings=placed)(params)


def batch_shardings(mesh: Mesh, batch: Any) -> Any:
  """Shardings of a `data.pack.Batch`: rows are split, all else is replicated.

  An array has rows if its suffix contains R. The arrays by prompt group (B x K x T) are
  small, B need not be a multiple of the devices, and an objective may couple all of
  them: every device holds them whole.
  """
  whole = rules.replicated(mesh)

  def sharding(path, _):
    axes = path[0].name.rsplit("_", 1)[-1]
    if "R" not in axes:
      return whole
    spec = [meshes.ROWS if axis == "R" else None for axis in axes]
    return NamedSharding(mesh, PartitionSpec(*spec))

  return jax.tree_util.tree_map_with_path(sharding, batch)


def place_batch(mesh: Mesh, batch: Any) -> Any:
  """Places a batch on the mesh; every process passes the same whole batch.

  A batch is a function of the step, so that every process can make it, and each device
  takes its part, without slicing per process (`distributed.assert_same` checks that
  all agree).

  Raises:
    ValueError: rows that do not split evenly.
  """
  meshes.check_batch(mesh, batch.tokens_MRL.shape[1])
  return _put(batch, batch_shardings(mesh, batch))


def batch_placer(mesh: Mesh | None) -> Callable[[Any], Any]:
  """Returns `place_batch` on a mesh; on one device the step places its arguments."""
  return _unchanged if mesh is None else functools.partial(place_batch, mesh)


def place_rows(mesh: Mesh, tree: Any) -> Any:
  """Host arrays whose first axis is rows, on the mesh, split by rows.

  Every process passes the same whole arrays.

  Raises:
    ValueError: rows that do not split evenly.
  """
  meshes.check_batch(mesh, len(jax.tree.leaves(tree)[0]))
  return _put(tree, jax.tree.map(lambda _: row_sharding(mesh), tree))


def row_sharding(mesh: Mesh) -> NamedSharding:
  """Returns the sharding of an array whose first axis is rows."""
  return NamedSharding(mesh, PartitionSpec(meshes.ROWS))


def _unchanged(batch: Any) -> Any:
  return batch


def replicate(mesh: Mesh | None, tree: Any) -> Any:
  """Small host arrays, whole on every device of the mesh; no mesh, no effect."""
  if mesh is None:
    return tree
  return _put(tree, jax.tree.map(lambda _: rules.replicated(mesh), tree))


def _put(tree: Any, shardings: Any) -> Any:
  """Places arrays that every process holds whole, or that are placed already."""
  if jax.process_count() == 1:
    return jax.device_put(tree, shardings)

  def place(x, sharding):
    if distributed.is_global(x):
      return jax.device_put(x, sharding)
    # `device_put` would compare the values of all processes, one array at a time.
    host = np.asarray(x)
    return jax.make_array_from_callback(host.shape, sharding, lambda at: host[at])

  return jax.tree.map(place, tree, shardings)
