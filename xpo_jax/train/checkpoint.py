"""Saves and restores checkpoints: orbax, with a checksum of every file.

Orbax commits atomically but does not detect a flipped bit in an array's file, and a
kill while it deletes an old step leaves that step listed and incomplete. So a manifest
of SHA-256 sums is written after the commit and verified before a restore. A step that
fails verification falls back to the next older one; old steps are deleted once a newer
one has its manifest.
"""

import contextlib
import dataclasses
import os
import shutil
import signal
import threading
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import jax
import orbax.checkpoint as ocp

from xpo_jax.data import sealed_files
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
  """Orbax's manager without deletion of old steps, which `save` does after sealing."""

  def __init__(self, directory: Path, keep: int, options: Any):
    super().__init__(directory, options=options)
    self.keep = keep


def open_manager(directory: Path, keep: int) -> Manager:
  """Opens a manager that keeps the last `keep` steps and deletes incomplete files."""
  options = ocp.CheckpointManagerOptions(
    # Synchronous: the manifest must cover committed files before training goes on.
    enable_async_checkpointing=False,
    cleanup_tmp_directories=True,
  )
  return Manager(directory.resolve(), keep, options)


def save(manager: Manager, state: TrainState, meta: Mapping[str, Any]) -> None:
  """Saves at `state.step`, writes the manifest, then deletes old steps."""
  step = int(state.step)
  if step in manager.all_steps():
    return
  manager.save(
    step,
    args=ocp.args.Composite(
      state=ocp.args.StandardSave(state), meta=ocp.args.JsonSave(dict(meta))
    ),
    force=True,
  )
  manager.wait_until_finished()
  if jax.process_index() == 0:
    sealed_files.seal(Path(manager.directory) / str(step))
  for old in sorted(manager.all_steps())[: -manager.keep]:
    # First, so that a kill leaves a step that is incomplete, not one that is damaged.
    if jax.process_index() == 0:
      (Path(manager.directory) / str(old) / MANIFEST).unlink(missing_ok=True)
    manager.delete(old)


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
  faults, valid = {}, None
  for step in sorted(manager.all_steps(), reverse=True):
    fault = sealed_files.damage(Path(manager.directory) / str(step))
    if fault is None:
      valid = step
      break
    faults[step] = fault
  if valid is None and not faults:
    return None
  rejected = tuple(f"step {step}: {fault}" for step, fault in faults.items())
  # Steps are deleted only after a newer one is sealed: a single step without a manifest
  # is an incomplete first save.
  sealed = [Path(manager.directory) / str(step) / MANIFEST for step in faults]
  if valid is None and (len(sealed) > 1 or sealed[0].exists()):
    listed = "\n  ".join(rejected)
    raise ValueError(
      f"every checkpoint in {manager.directory} is damaged\n  {listed}\nnothing was "
      "deleted; put one back from a copy, or start the run anew under another name"
    )
  for step in faults:  # orbax refuses to write over a step
    shutil.rmtree(Path(manager.directory) / str(step))
  manager.reload()
  if valid is None:
    return Restored(None, {}, rejected)
  abstract = jax.tree.map(ocp.utils.to_shape_dtype_struct, like)
  fields = {
    field.name: getattr(abstract, field.name) for field in dataclasses.fields(like)
  }
  stored = _stored_fields(Path(manager.directory) / str(valid))
  # An older version's checkpoint lacks a field that was added since.
  known = {name: x for name, x in fields.items() if x is not None or name in stored}
  content = manager.restore(
    valid,
    args=ocp.args.Composite(
      state=ocp.args.StandardRestore(known), meta=ocp.args.JsonRestore()
    ),
  )
  return Restored(like.replace(**content["state"]), content["meta"], rejected)


def _stored_fields(step: Path) -> set[str]:
  """Names of the fields of the state in a checkpoint."""
  return set(ocp.PyTreeCheckpointHandler().metadata(step / "state").keys())


def policies(directory: Path) -> Iterator[tuple[int, Params]]:
  """Yields steps and parameters of the checkpoints of a run, in order.

  The parameters are those of `state.final_params`; incomplete checkpoints, which have
  no manifest, are left out.

  Args:
    directory: directory of the checkpoints.

  Raises:
    ValueError: a checkpoint is damaged.
  """
  manager = open_manager(directory, keep=len(list(directory.iterdir())))
  args = ocp.args.Composite(state=ocp.args.StandardRestore())
  try:
    for step in sorted(manager.all_steps()):
      if (directory / str(step) / MANIFEST).exists():
        sealed_files.check_directory(directory / str(step))
        state = manager.restore(step, args=args)["state"]
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


@contextlib.contextmanager
def preemption() -> Iterator[StopRequest]:
  """Turns SIGTERM and Ctrl-C into a request that the loop reads between two steps.

  A second Ctrl-C raises KeyboardInterrupt at once. In a thread other than the main one
  signals cannot be caught; the request then stays empty and they end the process. Where
  SIGINT is ignored (nohup, a shell's background) it stays ignored.
  """
  stop = StopRequest()
  if threading.current_thread() is not threading.main_thread():
    yield stop
    return

  def request(number: int, frame: Any) -> None:
    del frame
    if number == signal.SIGINT:
      if stop.signal == "SIGINT":
        raise KeyboardInterrupt
      os.write(2, _CTRL_C)  # print is not safe within a signal handler
    stop.signal = signal.Signals(number).name

  before = {
    number: signal.signal(number, request)
    for number in (signal.SIGTERM, signal.SIGINT)
    if signal.getsignal(number) is not signal.SIG_IGN
  }
  try:
    yield stop
  finally:
    for number, handler in before.items():
      signal.signal(number, handler)
