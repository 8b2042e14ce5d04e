"""Products with split weights: gathered for each use, their gradients reduce-scattered.

The compiler alone sums the gradient of a weight whole on every device and then keeps a
part of it, or moves parts of both around while it multiplies. Here each device receives
the sum of its own part: half the bytes. On TPUs a sum is scattered along one line of
the torus after the other; over several at once the compiler has no reduce-scatter.
"""

import functools
import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.custom_derivatives import SymbolicZero
from jax.sharding import AbstractMesh, Mesh, PartitionSpec

from xpo_jax.sharding import mesh as meshes
from xpo_jax.sharding import nf4, rules
from xpo_jax.types import Array

_SPLIT = rules.RULES["embed"]
_COPIES = tuple(axis for axis in meshes.ROWS if axis != _SPLIT)


class _Static(NamedTuple):
  """Mesh, or None where the kernel is used as it is; `meshes.lines` of `_SPLIT`, the
  mesh axes of the kernel, and how many of its axes are contracted."""

  mesh: Mesh | AbstractMesh | None
  lines: tuple[int, ...]
  kernel: tuple[str | None, ...]
  contract: int


def product(
  mesh: Mesh | AbstractMesh | None,
  axes: tuple[str, ...],
  x: Array,
  kernel: Array,
  contract: int = 1,
) -> Array:
  """Computes `jnp.tensordot(x, kernel, axes=contract)` in the dtype of `x`.

  Where there are fewer activations than weights, as in a step of decoding, the compiler
  chooses what moves.

  Args:
    mesh: over which rows, the first axis of `x`, and the kernel are split by the rules;
      None: wherever they are.
    axes: logical axes of the kernel; "embed" is the first of its inputs or outputs.
    x: activations `[R, ..., *inputs]`.
    kernel: a weight `[*inputs, *outputs]`. One in 4 bits is frozen: it has no gradient,
      and its codes are gathered, not its values.
    contract: number of inputs.
  """
  static = _Static(None, (), (None,) * len(axes), contract)
  if mesh is not None and mesh.shape[_SPLIT] > 1 and x.size >= kernel.size:
    sizes = zip(axes, kernel.shape, strict=True)
    split = tuple(rules.mesh_axis(mesh, axis, size) for axis, size in sizes)
    if _SPLIT in split:
      static = _Static(mesh, meshes.lines(mesh, _SPLIT), split, contract)
  if nf4.is_nf4(kernel):
    return _frozen_product(static, x, kernel)
  if static.mesh is not None:
    return _product(static, x, kernel)
  return jnp.tensordot(x, kernel.astype(x.dtype), axes=contract)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _product(static, x, kernel):
  return _with_whole(static, x, kernel)


def _with_whole(static, x, kernel):
  kernel = _gathered(static, kernel.astype(x.dtype))
  return jnp.tensordot(x, kernel, axes=static.contract)


def _forward(static, x, kernel):
  # What is not differentiated has no gradient to compute.
  read = (
    x.value if kernel.perturbed else None,
    kernel.value if x.perturbed else None,
  )
  # Not `_product`: policies of `jax.checkpoint` do not see what is within it.
  y = _with_whole(static, x.value, kernel.value)
  return y, (*read, jnp.zeros((), kernel.value.dtype))


def _backward(static, residuals, dy):
  x, kernel, like = residuals
  if isinstance(dy, SymbolicZero):
    dy = jnp.zeros(dy.shape, dy.dtype)
  # Two products read it: were what computes it fused into them, each would compute it
  # again for each of its tiles.
  dy = jax.lax.optimization_barrier(dy)
  d_x = d_kernel = None
  if kernel is not None:
    outputs = tuple(range(static.contract - len(static.kernel), 0))
    kernel = _gathered(static, kernel.astype(dy.dtype))
    d_x = jnp.tensordot(dy, kernel, axes=(outputs, outputs))
  if x is not None:
    d_kernel = _kernel_gradient(static, x, dy).astype(like.dtype)
  return d_x, d_kernel


_product.defvjp(_forward, _backward, symbolic_zeros=True)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _frozen_product(static, x, kernel):
  """The product with a weight in 4 bits, which is kept so for the backward pass."""
  return _with_values(static, x, kernel)


def _with_values(static, x, kernel):
  return jnp.tensordot(x, _values(static, kernel, x.dtype), axes=static.contract)


def _frozen_forward(static, x, kernel):
  return _with_values(static, x, kernel), kernel


def _frozen_backward(static, kernel, dy):
  outputs = tuple(range(static.contract - len(static.kernel), 0))
  values = _values(static, kernel, dy.dtype)
  return jnp.tensordot(dy, values, axes=(outputs, outputs)), None


_frozen_product.defvjp(_frozen_forward, _frozen_backward)


def _values(static, kernel, dtype):
  """A weight in 4 bits as an array, whole along `_SPLIT`."""
  if static.mesh is not None:
    kernel = jax.tree.map(functools.partial(_gathered, static), kernel)
  return kernel.astype(dtype)


def _whole(axes):
  """Mesh axes of what is whole along `_SPLIT`."""
  return tuple(None if axis == _SPLIT else axis for axis in axes)


# check_vma: nothing in the functions below is differentiated by JAX.


def _gathered(static, x):
  """The kernel, or the codes or scales of one, whole along `_SPLIT`."""
  split = [
    None if axis is None or size % static.mesh.shape[axis] else axis
    for axis, size in zip(static.kernel, x.shape, strict=True)
  ]
  if _SPLIT not in split:  # scales that are whole already
    return x
  at = split.index(_SPLIT)
  return jax.shard_map(
    lambda part: jax.lax.all_gather(part, _SPLIT, axis=at, tiled=True),
    mesh=static.mesh,
    in_specs=PartitionSpec(*split),
    out_specs=PartitionSpec(*_whole(split)),
    check_vma=False,
  )(x)


def _kernel_gradient(static, x, dy):
  """The kernel's gradient `[*inputs, *outputs]`, split as the kernel is."""
  lead = x.ndim - static.contract
  inputs, outputs = static.kernel[: static.contract], static.kernel[static.contract :]
  by_row = (meshes.ROWS, *[None] * (lead - 1))
  into, out_of = (PartitionSpec(*by_row, *_whole(axes)) for axes in (inputs, outputs))

  def on_device(x: Array, dy: Array) -> Array:
    # The axis that is scattered comes first: it is cut into whole tiles of memory.
    pair = (x, dy) if _SPLIT in inputs else (dy, x)
    whole = jnp.tensordot(*pair, axes=(tuple(range(lead)),) * 2)
    part = jax.lax.psum(_scattered(static, whole), _COPIES)
    if _SPLIT in inputs:
      return part
    return jnp.moveaxis(part, range(len(outputs)), range(-len(outputs), 0))

  return jax.shard_map(
    on_device,
    mesh=static.mesh,
    in_specs=(into, out_of),
    out_specs=PartitionSpec(*static.kernel),
    check_vma=False,
  )(x, dy)


def _scattered(static, x):
  """The device's part, along the first axis, of the sum over the devices."""
  place = np.arange(math.prod(static.lines)).reshape(static.lines)
  for number, length in enumerate(static.lines):
    groups = np.moveaxis(place, number, -1).reshape(-1, length).tolist()
    # Between processes on CPUs, JAX's reduce-scatter may overwrite what it still sends
    # (jax-ml/jax#40830), and waits for no more than 30 seconds (jax-ml/jax#40831).
    if meshes.device_kind(static.mesh) == "cpu":
      x = jax.lax.all_to_all(x, _SPLIT, 0, 0, axis_index_groups=groups, tiled=True)
      x = x.reshape(length, -1, *x.shape[1:]).sum(0)
    else:
      x = jax.lax.psum_scatter(
        x, _SPLIT, scatter_dimension=0, axis_index_groups=groups, tiled=True
      )
  return x
