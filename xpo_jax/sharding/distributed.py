"""Multi-process runs: starts `jax.distributed`; one process writes, and all agree.

Every process runs the same program. A file is written by process 0: `on_first` where
the others read it or wait for it, `is_first` where they do not. An error that only one
process can see is raised on all by `together`. Each is a plain call where there is one
process. A process that dies is found by JAX's coordination service, which ends the
others.
"""

import hashlib
import json
import os
import socket
from collections.abc import Callable
from typing import Any, TypeVar

import jax
import numpy as np
from jax.experimental import multihost_utils

T = TypeVar("T")
# Seconds without a sign of life before a process counts as dead, and seconds that a
# process which ends waits for the others: together less than a minute.
HEARTBEAT_TIMEOUT, SHUTDOWN_TIMEOUT = 25, 30
_ERRORS = (ValueError, OSError, ImportError)  # of the user, not of the program
_LEAST = 256  # bytes of an exchange: few sizes, so that few programs are compiled


class ProcessError(ValueError):
  """An error of one process, or of several, raised on all of them."""


def initialize(
  coordinator: str | None = None,
  processes: int | None = None,
  index: int | None = None,
) -> None:
  """Calls `jax.distributed.initialize`; must run before any use of a device.

  On TPU pods, on GKE and under Slurm all three are detected; elsewhere give all.

  Args:
    coordinator: "host:port" of process 0.
    processes: number of processes.
    index: index of this process.

  Raises:
    ValueError: some but not all of the three are given, or an index out of range; none
      is given, and no cluster is detected.
  """
  given = {"coordinator": coordinator, "processes": processes, "index": index}
  absent = [name for name, value in given.items() if value is None]
  if absent and len(absent) < len(given):
    raise ValueError(f"{absent} not given beside {given}; give all three, or none")
  if not absent and not 0 <= index < processes:
    raise ValueError(
      f"index={index} with processes={processes}; allowed: 0..{processes - 1}"
    )
  try:
    jax.distributed.initialize(
      coordinator,
      processes,
      index,
      heartbeat_timeout_seconds=HEARTBEAT_TIMEOUT,
      shutdown_timeout_seconds=SHUTDOWN_TIMEOUT,
    )
  except ValueError as error:
    if not absent:
      raise
    raise ValueError(
      f"JAX detects no cluster here ({error}): outside TPU pods, GKE and Slurm give "
      "coordinator, processes and index"
    ) from error


def is_initialized() -> bool:
  """Whether `initialize` was called."""
  return jax.distributed.is_initialized()


def is_first() -> bool:
  """Whether this process writes the files that no other one reads."""
  return jax.process_index() == 0


def name() -> str:
  """Names this process, for messages."""
  return f"process {jax.process_index()} (pid {os.getpid()} on {socket.gethostname()})"


def gather(value: Any) -> list[Any]:
  """Plain data (what JSON holds) of every process, by index; a collective call."""
  if jax.process_count() == 1:
    return [value]
  data = np.frombuffer(json.dumps(value).encode(), np.uint8)
  sizes = multihost_utils.process_allgather(np.int32(len(data)))
  width = max(_LEAST, 1 << (int(sizes.max()) - 1).bit_length())
  rows = multihost_utils.process_allgather(np.pad(data, (0, width - len(data))))
  return [
    json.loads(row[:size].tobytes()) for row, size in zip(rows, sizes, strict=True)
  ]


def together(function: Callable[[], T]) -> T:
  """Calls a function on every process, and raises the errors of any on all of them.

  A collective call, so the function must hold none.

  Raises:
    ProcessError: it fails on a process; names the process and its error. Where there
      is one process, the error itself.
  """
  if jax.process_count() == 1:
    return function()
  result, fault = None, None
  try:
    result = function()
  except _ERRORS as error:
    fault = error
  faults = gather(None if fault is None else [name(), str(fault)])
  texts = [each[1] for each in faults if each is not None]
  if not texts:
    return result
  if texts == texts[:1] * len(faults):  # the same on all of them
    raise ProcessError(texts[0]) from fault
  listed = "\n  ".join(f"{who}: {text}" for who, text in filter(None, faults))
  raise ProcessError(
    f"{len(texts)} of {len(faults)} processes failed\n  {listed}"
  ) from fault


def on_first(function: Callable[[], T]) -> T:
  """Calls a function on process 0 alone; the others wait for its result, or its error.

  A collective call. The result must be plain data (what JSON holds).

  Raises:
    ProcessError: it fails. Where there is one process, the error itself.
  """
  if jax.process_count() == 1:
    return function()
  value, fault = None, None
  if is_first():
    try:
      value = function()
    except _ERRORS as error:
      fault = error
  value, text = gather([value, None if fault is None else str(fault)])[0]
  if text is not None:
    raise ProcessError(text) from fault
  return value


def to_host(tree: Any) -> Any:
  """Device arrays as NumPy arrays, whole on every process.

  A collective call where an array is split over processes.
  """
  if jax.process_count() == 1:
    return jax.device_get(tree)

  def fetch(x: Any) -> np.ndarray:
    if is_global(x) and not x.is_fully_replicated:
      return multihost_utils.process_allgather(x, tiled=True)
    return np.asarray(x)

  return jax.tree.map(fetch, tree)


def share(count: int) -> slice:
  """The part of `count` items that this process works on; at least one, perhaps
  another's."""
  index, processes = jax.process_index(), jax.process_count()
  begin = min(index * count // processes, count - 1)
  return slice(begin, max((index + 1) * count // processes, begin + 1))


def gather_shares(own: slice, items: list[Any]) -> list[Any]:
  """The items of every `share` in their order, plain data; a collective call."""
  by_index: dict[int, Any] = {}
  for begin, share_items in gather([own.start, items]):
    by_index |= dict(enumerate(share_items, begin))
  return [by_index[index] for index in sorted(by_index)]


def is_global(x: Any) -> bool:
  """Whether an array is on devices of several processes."""
  return isinstance(x, jax.Array) and not x.is_fully_addressable


def agreed(flag: bool) -> bool:
  """The flag of process 0, on every process; a collective call where there are several.

  For decisions by a clock, which processes would take at different steps.
  """
  if jax.process_count() == 1:
    return flag
  return bool(multihost_utils.broadcast_one_to_all(np.array(flag)))


def digest(tree: Any) -> np.ndarray:
  """SHA-256 of arrays (structure, shapes, dtypes, bytes) as uint8 `[32]`.

  A collective call where an array is split over processes.
  """
  leaves, treedef = jax.tree.flatten(tree)
  sha = hashlib.sha256(str(treedef).encode())
  for leaf in leaves:
    # Not `device_get`, whose copy would keep the array on the device alive.
    leaf = np.asarray(to_host(leaf) if is_global(leaf) else leaf)
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
