"""The device mesh: ("data", "fsdp", "tensor"), always with Auto axes."""

import contextlib
import contextvars
import itertools
import math
from collections.abc import Collection, Iterator, Sequence

import jax
import numpy as np
from jax.experimental import mesh_utils
from jax.sharding import AbstractMesh, AxisType, Mesh

AXES = ("data", "fsdp", "tensor")
ROWS = ("data", "fsdp")  # the axes that split the rows of a batch
_ON_A_LINE = 8  # devices whose collectives need not follow the torus
_entered: contextvars.ContextVar[Mesh | AbstractMesh | None] = contextvars.ContextVar(
  "entered", default=None
)


def make_mesh(
  data: int = 1,
  fsdp: int = 1,
  tensor: int = 1,
  devices: Sequence[jax.Device] | None = None,
) -> Mesh:
  """Makes a mesh whose axes the compiler shards automatically.

  Args:
    data: number of copies of the model, each with its own rows.
    fsdp: number of devices that split both the rows and the parameters.
    tensor: number of devices that split heads, MLP and vocabulary.
    devices: default all of `jax.devices()`.

  Raises:
    ValueError: a size below 1, or a product that is not the number of devices.
  """
  devices = jax.devices() if devices is None else list(devices)
  sizes = dict(zip(AXES, (data, fsdp, tensor), strict=True))
  if min(sizes.values()) < 1 or math.prod(sizes.values()) != len(devices):
    raise ValueError(
      f"mesh {sizes} has {math.prod(sizes.values())} places for {len(devices)} "
      f"devices; (data, fsdp, tensor) may be {_factorizations(len(devices))}"
    )
  shape = tuple(sizes.values())
  # Explicit types: `jax.make_mesh` defaults to Explicit axes, `Mesh` to Auto ones.
  types = (AxisType.Auto,) * len(AXES)
  try:
    return jax.make_mesh(shape, AXES, types, devices=devices)
  except NotImplementedError:  # an axis takes a part of one of the torus: 8 of 4x4x4
    placed = mesh_utils.create_device_mesh(
      shape, devices, allow_split_physical_axes=True
    )
    return Mesh(placed, AXES, axis_types=types)


@contextlib.contextmanager
def entered(mesh: Mesh | AbstractMesh | None) -> Iterator[None]:
  """Makes a mesh `current` while a block is traced; None: no mesh."""
  if mesh is None:
    yield
    return
  token = _entered.set(mesh)
  try:
    with jax.sharding.use_abstract_mesh(mesh.abstract_mesh):
      yield
  finally:
    _entered.reset(token)


def current() -> AbstractMesh | None:
  """The mesh of `AXES` that was entered, or None: for functions that users call without
  one. Where another is entered, or a `shard_map` is within its part, there is none."""
  mesh = jax.sharding.get_abstract_mesh()
  ours = mesh.axis_names == AXES and not mesh.manual_axes
  return mesh if ours else None


def platform(mesh: Mesh | AbstractMesh | None) -> str:
  """The platform that programs are compiled for, "tpu", "gpu" or "cpu"; argument as in
  `device_kind`."""
  kind = device_kind(mesh).lower()
  return next((name for name in ("tpu", "cpu") if kind.startswith(name)), "gpu")


def device_kind(mesh: Mesh | AbstractMesh | None) -> str:
  """The kind of device that programs are compiled for, as JAX names it: that of the
  mesh, else of the mesh that was entered, else of JAX's default backend."""
  if isinstance(mesh, Mesh):
    return mesh.devices.flat[0].device_kind
  mesh = current() if mesh is None else mesh
  device = None if mesh is None else mesh.abstract_device
  return (device or jax.devices()[0]).device_kind


def has_chips(mesh: Mesh | AbstractMesh | None, kinds: Collection[str]) -> bool:
  """Whether kernels of these chips can compute each device's part of arrays.

  Args:
    mesh: in whose `shard_map` they run; None: on the only device, for without a mesh
      the compiler would have to split them, which it cannot.
    kinds: of chips, as JAX names them.
  """
  alone = mesh is not None or (current() is None and jax.device_count() == 1)
  return alone and device_kind(mesh) in kinds


def lines(mesh: Mesh | AbstractMesh, axis: str) -> tuple[int, ...]:
  """Factors of a mesh axis, the last the fastest: lines of a TPU's torus.

  The first factor is what is left over: few devices, those of several slices, or those
  that are on no line. It is the only one where there is no torus, and where that is not
  known: of an abstract mesh the lines are those of the mesh that was entered.
  """
  if isinstance(mesh, AbstractMesh):
    known = _entered.get()
    if not isinstance(known, Mesh) or known.abstract_mesh != mesh:
      return (mesh.shape[axis],)
    mesh = known
  along = np.moveaxis(mesh.devices, mesh.axis_names.index(axis), 0)
  first = along.reshape(len(along), -1)[:, 0]
  return _lines([_place(device) for device in first])


def _place(device: jax.Device) -> tuple[int, ...]:
  """The slice that a device is in, and where on the torus of that."""
  return (getattr(device, "slice_index", 0), *getattr(device, "coords", ()))


def _lines(places: Sequence[Sequence[int]]) -> tuple[int, ...]:
  """The factors of a list of places on a torus; see `lines`."""
  count, length = len(places), 1
  while length < count and _on_a_line(places[: length + 1]):
    length += 1
  if count <= _ON_A_LINE or length in (1, 2, count) or count % length:
    return (count,)
  return (*_lines(places[::length]), length)


def _on_a_line(places: Sequence[Sequence[int]]) -> bool:
  """Whether places differ in one coordinate."""
  return sum(len(set(of_axis)) > 1 for of_axis in zip(*places, strict=True)) == 1


def row_shards(mesh: Mesh) -> int:
  """Returns the number of parts into which the rows of a batch are split."""
  return math.prod(mesh.shape[axis] for axis in ROWS)


def padded_rows(mesh: Mesh | None, rows: int) -> int:
  """Returns the least number of at least `rows` that a mesh splits evenly.

  Args:
    mesh: from `make_mesh`; None: one device, which takes any number.
    rows: number of rows.
  """
  return rows if mesh is None else rows + -rows % row_shards(mesh)


def check_batch(mesh: Mesh, rows: int, microbatches: int = 1) -> None:
  """Refuses a step whose rows do not split evenly.

  Args:
    mesh: from `make_mesh`.
    rows: rows of an optimiser step, over all microbatches and devices.
    microbatches: number of microbatches of a step.

  Raises:
    ValueError: `rows` is no multiple of microbatches x data x fsdp.
  """
  multiple = microbatches * row_shards(mesh)
  if rows < 1 or rows % multiple:
    nearest = max(round(rows / multiple), 1) * multiple
    sizes = {axis: mesh.shape[axis] for axis in ROWS}
    raise ValueError(
      f"rows={rows} of a step do not split evenly over microbatches={microbatches} "
      f"and the mesh {sizes}; use a multiple of {multiple}, such as {nearest}"
    )


def _factorizations(count: int) -> str:
  """Lists the (data, fsdp, tensor) whose product is `count`, for a message."""
  divisors = [d for d in range(1, count + 1) if count % d == 0]
  triples = [t for t in itertools.product(divisors, repeat=3) if math.prod(t) == count]
  return ", ".join(map(str, triples[:12])) + (", ..." if len(triples) > 12 else "")
