"""More than one process: start JAX's own service, and check that all agree."""

import hashlib
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils


def initialize(
  coordinator: str | None = None,
  processes: int | None = None,
  index: int | None = None,
) -> None:
  """`jax.distributed.initialize`, before anything touches a device.

  On TPU pods and under Slurm all three are found out; elsewhere give all of them.

  Args:
    coordinator: "host:port" of process 0.
    processes: how many there are.
    index: which one this is.

  Raises:
    ValueError: some but not all of the three are given, or an index out of range.
  """
  given = {"coordinator": coordinator, "processes": processes, "index": index}
  absent = [name for name, value in given.items() if value is None]
  if absent and len(absent) < len(given):
    raise ValueError(f"{absent} not given beside {given}; give all three, or none")
  if not absent and not 0 <= index < processes:
    raise ValueError(
      f"index={index} with processes={processes}; allowed: 0..{processes - 1}"
    )
  jax.distributed.initialize(coordinator, processes, index)


def to_host(tree: Any) -> Any:
  """Device arrays as NumPy arrays, whole on every process.

  A collective call where an array is split over processes.
  """
  if jax.process_count() == 1:
    return jax.device_get(tree)

  def fetch(x: jax.Array) -> np.ndarray:
    if x.is_fully_addressable or x.is_fully_replicated:
      return np.asarray(x)
    return multihost_utils.process_allgather(x, tiled=True)

  return jax.tree.map(fetch, tree)


def digest(tree: Any) -> np.ndarray:
  """SHA-256 of host arrays (structure, shapes, dtypes, bytes) as uint8 `[32]`."""
  leaves, treedef = jax.tree.flatten(tree)
  sha = hashlib.sha256(str(treedef).encode())
  for leaf in map(np.asarray, leaves):
    sha.update(f"{leaf.dtype}{leaf.shape}".encode())
    sha.update(np.ascontiguousarray(leaf).tobytes())
  return np.frombuffer(sha.digest(), np.uint8)


def assert_same(tree: Any, what: str) -> None:
  """Every process must hold the same host arrays; a collective call.

  Devices that are copies of each other and were given different rows disagree
  without an error from JAX: check what they are given.

  Args:
    tree: a batch, or whatever must agree.
    what: its name, for the message.

  Raises:
    AssertionError: they differ.
  """
  if jax.process_count() > 1:
    multihost_utils.assert_equal(digest(tree), f"{what} differs between processes")
