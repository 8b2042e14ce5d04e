"""Multi-process runs: starts `jax.distributed`, and checks that all processes agree."""

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
  """Calls `jax.distributed.initialize`; must run before any use of a device.

  On TPU pods and under Slurm all three are detected; elsewhere give all of them.

  Args:
    coordinator: "host:port" of process 0.
    processes: number of processes.
    index: index of this process.

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


def agreed(flag: bool) -> bool:
  """The flag of process 0, on every process; a collective call where there are several.

  For decisions by a clock, which processes would take at different steps.
  """
  if jax.process_count() == 1:
    return flag
  return bool(multihost_utils.broadcast_one_to_all(np.array(flag)))


def digest(tree: Any) -> np.ndarray:
  """SHA-256 of host arrays (structure, shapes, dtypes, bytes) as uint8 `[32]`."""
  leaves, treedef = jax.tree.flatten(tree)
  sha = hashlib.sha256(str(treedef).encode())
  for leaf in map(np.asarray, leaves):
    sha.update(f"{leaf.dtype}{leaf.shape}".encode())
    sha.update(np.ascontiguousarray(leaf).tobytes())
  return np.frombuffer(sha.digest(), np.uint8)


def assert_same(tree: Any, what: str) -> None:
  """Asserts that every process holds the same host arrays; a collective call.

  JAX raises no error when replicated devices receive different rows: check the inputs.

  Args:
    tree: a batch, or other arrays that must agree.
    what: its name, for the message.

  Raises:
    AssertionError: they differ.
  """
  if jax.process_count() > 1:
    multihost_utils.assert_equal(digest(tree), f"{what} differs between processes")
