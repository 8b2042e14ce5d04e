"""Saves and restores checkpoints: orbax, with a checksum of every file.

Orbax commits atomically but does not detect a flipped bit in an array's file, and a
kill while it deletes an old step leaves that step listed and incomplete. So a manifest
of SHA-256 sums is written after the commit and verified before a restore. A step that
fails verification falls back to the next older one; old steps are deleted once a newer
one has its manifest. Of several processes each writes its part, in the background while
training goes on, and the first writes the manifest.
"""

import contextlib
import dataclasses
import functools
import os
import shutil
import signal
import threading
from collections.abc import Iterator, Mapping
from concurrent import futures
from typing import Any, NamedTuple

import jax
import numpy as np
import orbax.checkpoint as ocp
from jax.experimental import multihost_utils

from xpo_jax.data import buckets, sealed_files
from xpo_jax.sharding import distributed
from xpo_jax.train.state import TrainState
from xpo_jax.types import Params

MANIFEST = sealed_files.MANIFEST
_CTRL_C = b"\nCtrl-C: ends after this step, with a checkpoint; once more ends at once\n"


class Restored(NamedTuple):
  """A checkpoint read back.

  Attributes:
    state: with the abstract state's shardings; None where a run's first save is
      incomplete.
    meta: metadata saved with it.
    rejected: later steps that are damaged, each with the reason.
  """

  state: TrainState | None
  meta: Mapping[str, Any]
  rejected: tuple[str, ...]


class Manager(ocp.CheckpointManager):
  """Orbax's manager without deletion of old steps, which `finish` does after sealing.

  Attributes:
    place: the directory of the checkpoints.
    keep: steps that are kept.
    background: the thread that seals while training goes on; None: `save` does.
    unsealed: the step that was saved last, until it is known to be sealed.
    sealing: its sealing in the background, on the first process.
  """

  def __init__(self, place: buckets.Directory, keep: int, background: bool):
    options = ocp.CheckpointManagerOptions(
      enable_async_checkpointing=background, cleanup_tmp_directories=True
    )
    super().__init__(place, options=options)
    self.place = place
    self.keep = keep
    self.background = futures.ThreadPoolExecutor(1) if background else None
    self.unsealed: int | None = None
    self.sealing: futures.Future | None = None

  def close(self) -> None:
    """Waits for the last save, and closes the manager."""
    finish(self)
    super().close()


def open_manager(
  directory: buckets.Directory, keep: int, *, background: bool = False
) -> Manager:
  """Opens a manager that keeps the last `keep` steps and deletes incomplete files.

  Args:
    directory: of the checkpoints, perhaps in a bucket.
    keep: number of steps.
    background: save while training goes on; `finish` waits.
  """
  place = directory if buckets.is_bucket(directory) else directory.resolve()
  return Manager(place, keep, background)


def check_place(named: str, new: bool) -> None:
  """Refuses a directory that a run cannot have its checkpoints in; a collective call.

  Args:
    named: `Loop.checkpoints`.
    new: whether the run is: then the directory must not have checkpoints, else it must
      exist, unless it is in a bucket, where empty directories do not.

  Raises:
    ValueError: a process cannot read or write it, or sees another directory under its
      name; it has checkpoints of another run, or is absent.
  """
  distributed.together(lambda: _check_own_place(named, new))
  place = buckets.directory(named)
  mark = place / distributed.on_first(lambda: buckets.write_mark(place))
  try:
    distributed.together(lambda: _check_seen(mark))
  finally:
    distributed.on_first(lambda: mark.unlink())


def _check_own_place(named: str, new: bool) -> None:
  """Refuses a directory by what this process sees of it."""
  try:
    place = buckets.directory(named)
    if not (new or buckets.is_bucket(place) or place.exists()):
      raise ValueError(
        f"{place} does not exist here: mount it, or put it back; where it is lost, "
        "start the run anew under another name"
      )
    steps = sorted(filter(str.isdigit, buckets.names(place)), key=int)
    if new and steps:
      raise ValueError(
        f"{place} has checkpoints, of the steps {', '.join(steps)}: name a directory "
        "for this run alone, or resume the run that they are of"
      )
    buckets.check_writable(place)
  except ValueError as error:
    raise ValueError(f"Loop.checkpoints {error}") from error


def _check_seen(mark: buckets.Directory) -> None:
  if not mark.exists():
    raise ValueError(
      f"Loop.checkpoints {mark.parent} is not the directory that process 0 sees: of "
      "several processes all must see it; name one on a shared file system, or a bucket"
    )


def check_room(manager: Manager, state: Any, saves: int) -> None:
  """Refuses a run whose checkpoints do not fit on the disk, beside those there are; of
  a bucket nothing is asked.

  Args:
    manager: see `open_manager`.
    state: of the run, all its arrays.
    saves: checkpoints that are there at once, at most: an old one is deleted when a new
      one is complete.

  Raises:
    ValueError: there is too little room; names the bytes needed and free.
  """
  if buckets.is_bucket(manager.place):
    return
  bytes_each = sum(x.nbytes for x in jax.tree.leaves(state) if not _is_key(x))
  needed = bytes_each * max(saves - len(manager.all_steps()), 0)
  free = shutil.disk_usage(manager.place).free
  if needed > free:
    raise ValueError(
      f"no room for checkpoints in {manager.place}: they need {needed:,} bytes "
      f"({bytes_each:,} each), and {free:,} are free; free some space, or lower "
      "Loop.keep"
    )


def _is_key(x: jax.Array) -> bool:
  return jax.dtypes.issubdtype(x.dtype, jax.dtypes.prng_key)


def save(manager: Manager, state: TrainState, meta: Mapping[str, Any]) -> None:
  """Saves at `state.step`, writes the manifest, then deletes old steps.

  With a manager in the background it returns as soon as the state is on the host; the
  next save waits for this one.
  """
  step = int(state.step)
  if step in manager.all_steps():
    return
  finish(manager)
  manager.save(
    step,
    args=ocp.args.Composite(
      state=ocp.args.StandardSave(state), meta=ocp.args.JsonSave(dict(meta))
    ),
    force=True,
  )
  manager.unsealed = step
  if manager.background is None:
    finish(manager)
  elif distributed.is_first():
    manager.sealing = manager.background.submit(_seal, manager, step)


def finish(manager: Manager) -> None:
  """Waits until the last save is committed and sealed, then deletes old steps.

  Raises:
    OSError: it could not be written.
  """
  if manager.unsealed is None:
    return
  seal = functools.partial(_seal, manager, manager.unsealed)
  if manager.sealing is not None:
    seal = manager.sealing.result
  manager.unsealed = manager.sealing = None
  distributed.on_first(seal)
  manager.wait_until_finished()
  for old in sorted(manager.all_steps())[: -manager.keep]:
    # First, so that a kill leaves a step that is incomplete, not one that is damaged.
    if distributed.is_first():
      (manager.place / str(old) / MANIFEST).unlink(missing_ok=True)
    manager.delete(old)


def _seal(manager: Manager, step: int) -> None:
  manager.wait_until_finished()
  sealed_files.seal(manager.place / str(step))


def restore(manager: Manager, like: TrainState) -> Restored | None:
  """Restores the newest valid checkpoint; None where there is none at all.

  Damaged steps after it are deleted: the run will save them again.

  Args:
    manager: see `open_manager`.
    like: the state's tree with shapes, dtypes and shardings (a state, or
      `jax.ShapeDtypeStruct`s).

  Raises:
    ValueError: every checkpoint is damaged; lists the reasons, deletes nothing.
  """
  valid, rejected = distributed.on_first(lambda: _newest_valid(manager))
  if valid is None and not rejected:
    return None
  rejected = tuple(rejected)
  manager.reload()
  if valid is None:
    return Restored(None, {}, rejected)
  abstract = jax.tree.map(ocp.utils.to_shape_dtype_struct, like)
  fields = {
    field.name: getattr(abstract, field.name) for field in dataclasses.fields(like)
  }
  stored = _stored_fields(manager.place / str(valid))
  # An older version's checkpoint lacks a field that was added since.
  known = {name: x for name, x in fields.items() if x is not None or name in stored}
  content = manager.restore(
    valid,
    args=ocp.args.Composite(
      state=ocp.args.StandardRestore(known), meta=ocp.args.JsonRestore()
    ),
  )
  return Restored(like.replace(**content["state"]), content["meta"], rejected)


def _newest_valid(manager: Manager) -> tuple[int | None, tuple[str, ...]]:
  """The newest valid step, and why later ones, which are deleted, are not."""
  faults, valid = {}, None
  for step in sorted(manager.all_steps(), reverse=True):
    fault = sealed_files.damage(manager.place / str(step))
    if fault is None:
      valid = step
      break
    faults[step] = fault
  rejected = tuple(f"step {step}: {fault}" for step, fault in faults.items())
  # Steps are deleted only after a newer one is sealed: a single step without a manifest
  # is an incomplete first save.
  sealed = [manager.place / str(step) / MANIFEST for step in faults]
  if faults and valid is None and (len(sealed) > 1 or sealed[0].exists()):
    listed = "\n  ".join(rejected)
    raise ValueError(
      f"every checkpoint in {manager.place} is damaged\n  {listed}\nnothing was "
      "deleted; put one back from a copy, or start the run anew under another name"
    )
  for step in faults:  # orbax refuses to write over a step
    buckets.remove(manager.place / str(step))
  return valid, rejected


def _stored_fields(step: buckets.Directory) -> set[str]:
  """Names of the fields of the state in a checkpoint."""
  return set(ocp.PyTreeCheckpointHandler().metadata(step / "state").keys())


def read(manager: Manager, step: int) -> dict[str, Any]:
  """Reads the state of a checkpoint as nested dicts of arrays of NumPy.

  It may be of another number of devices, or of processes.
  """
  stored = ocp.PyTreeCheckpointHandler().metadata(manager.place / str(step) / "state")
  like = jax.tree.map(lambda x: np.empty(x.shape, x.dtype), stored.tree)
  args = ocp.args.Composite(state=ocp.args.StandardRestore(like))
  return manager.restore(step, args=args)["state"]


def policies(directory: buckets.Directory) -> Iterator[tuple[int, Params]]:
  """Yields steps and parameters of the checkpoints of a run, in order.

  The parameters are those of `state.final_params`, on the host; incomplete checkpoints,
  which have no manifest, are left out.

  Args:
    directory: directory of the checkpoints.

  Raises:
    ValueError: a checkpoint is damaged.
  """
  manager = open_manager(directory, keep=len(list(directory.iterdir())))
  try:
    for step in sorted(manager.all_steps()):
      if (directory / str(step) / MANIFEST).exists():
        sealed_files.check_directory(directory / str(step))
        state = read(manager, step)
        trained = state.get("train", state)  # a `RolloutState` contains a `TrainState`
        yield step, trained["ema"] or trained["params"]
  finally:
    manager.close()


@dataclasses.dataclass
class StopRequest:
  """Whether a run was asked to end, read between two steps.

  Attributes:
    signal: "SIGTERM" or "SIGINT"; "" for none.
  """

  signal: str = ""

  def reached(self, step: int) -> bool:
    """Whether the run ends after a step; every process asks after every step.

    A signal to one of several processes ends all of them after the same step.
    """
    if jax.process_count() > 1 and multihost_utils.reached_preemption_sync_point(step):
      self.signal = "SIGTERM"
    return bool(self.signal)


@contextlib.contextmanager
def preemption() -> Iterator[StopRequest]:
  """Turns SIGTERM and Ctrl-C into a request that the loop reads between two steps.

  A second Ctrl-C raises KeyboardInterrupt at once. In a thread other than the main one
  signals cannot be caught; the request then stays empty and they end the process. Where
  SIGINT is ignored (nohup, a shell's background) it stays ignored. Of several processes
  JAX catches SIGTERM (`StopRequest.reached`), and Ctrl-C is passed on as one.
  """
  stop, several, interrupted = StopRequest(), jax.process_count() > 1, []
  if threading.current_thread() is not threading.main_thread():
    yield stop
    return

  def request(number: int, frame: Any) -> None:
    del frame
    if number == signal.SIGINT:
      if interrupted:
        raise KeyboardInterrupt
      interrupted.append(number)
      os.write(2, _CTRL_C)  # print is not safe within a signal handler
    if several:
      os.kill(os.getpid(), signal.SIGTERM)
    else:
      stop.signal = signal.Signals(number).name

  caught = (signal.SIGINT,) if several else (signal.SIGTERM, signal.SIGINT)
  before = {
    number: signal.signal(number, request)
    for number in caught
    if signal.getsignal(number) is not signal.SIG_IGN
  }
  try:
    yield stop
  finally:
    for number, handler in before.items():
      signal.signal(number, handler)
