"""Checkpoints: orbax underneath, a checksum over every file, the newest valid one.

Orbax commits atomically but does not notice a flipped bit in an array's file, and a
kill while it deletes an old step leaves that step listed and half gone. So a manifest
of SHA-256 sums is written after the commit and checked before a restore; a step that
fails falls back to the next older one, and old steps go once a newer one is sealed.
"""

import contextlib
import hashlib
import json
import shutil
import signal
import threading
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import jax
import orbax.checkpoint as ocp

from xpo_jax.train.state import TrainState
from xpo_jax.types import Params

MANIFEST = "MANIFEST.sha256.json"


class Restored(NamedTuple):
  """A checkpoint read back.

  Attributes:
    state: with the abstract state's shardings; None where a run's first save was cut
      off, and there is nothing before it.
    meta: what was saved beside it.
    rejected: later steps that were found damaged, each with the reason.
  """

  state: TrainState | None
  meta: Mapping[str, Any]
  rejected: tuple[str, ...]


class Manager(ocp.CheckpointManager):
  """Orbax's, which would delete old steps before the new one is sealed: `save` does."""

  def __init__(self, directory: Path, keep: int, options: Any):
    super().__init__(directory, options=options)
    self.keep = keep


def open_manager(directory: Path, keep: int) -> Manager:
  """A manager that keeps the last `keep` steps and clears what a kill left behind."""
  options = ocp.CheckpointManagerOptions(
    # Synchronous: the manifest must cover committed files before training goes on.
    enable_async_checkpointing=False,
    cleanup_tmp_directories=True,
  )
  return Manager(directory.resolve(), keep, options)


def save(manager: Manager, state: TrainState, meta: Mapping[str, Any]) -> None:
  """Saves at `state.step`, seals the step with its manifest, then lets old ones go."""
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
    _seal(manager.directory / str(step))
  for old in sorted(manager.all_steps())[: -manager.keep]:
    manager.delete(old)


def restore(manager: Manager, like: TrainState) -> Restored | None:
  """The newest checkpoint whose every file is as it was written, or None if there never
  was one. Damaged steps after it are deleted: the run will save them anew.

  Args:
    manager: see `open_manager`.
    like: the state's tree with shapes, dtypes and shardings (a state, or
      `jax.ShapeDtypeStruct`s).

  Raises:
    ValueError: every checkpoint is damaged; names the reasons, deletes nothing.
  """
  faults, sound = {}, None
  for step in sorted(manager.all_steps(), reverse=True):
    fault = verify(Path(manager.directory) / str(step))
    if fault is None:
      sound = step
      break
    faults[step] = fault
  if sound is None and not faults:
    return None
  rejected = tuple(f"step {step}: {fault}" for step, fault in faults.items())
  # Steps are deleted only after a newer one is sealed: one alone without a manifest is
  # the first save, cut off.
  sealed = [Path(manager.directory) / str(step) / MANIFEST for step in faults]
  if sound is None and (len(sealed) > 1 or sealed[0].exists()):
    listed = "\n  ".join(rejected)
    raise ValueError(
      f"every checkpoint in {manager.directory} is damaged\n  {listed}\nnothing was "
      "deleted; put one back from a copy, or start the run anew under another name"
    )
  for step in faults:  # orbax refuses to write over a step
    shutil.rmtree(Path(manager.directory) / str(step))
  manager.reload()
  if sound is None:
    return Restored(None, {}, rejected)
  abstract = jax.tree.map(ocp.utils.to_shape_dtype_struct, like)
  read = manager.restore(
    sound,
    args=ocp.args.Composite(
      state=ocp.args.StandardRestore(abstract), meta=ocp.args.JsonRestore()
    ),
  )
  return Restored(read["state"], read["meta"], rejected)


def policies(directory: Path) -> Iterator[tuple[int, Params]]:
  """Steps and parameters of the checkpoints that a run kept, in order.

  The parameters are those of `state.final_params`; damaged checkpoints are left out.

  Args:
    directory: of the checkpoints.
  """
  manager = open_manager(directory, keep=len(list(directory.iterdir())))
  args = ocp.args.Composite(state=ocp.args.StandardRestore())
  try:
    for step in sorted(manager.all_steps()):
      if verify(directory / str(step)) is None:
        held = manager.restore(step, args=args)["state"]
        trained = held.get("train", held)  # an online state holds a trainer's
        yield step, trained["ema"] or trained["params"]
  finally:
    manager.close()


def verify(directory: Path) -> str | None:
  """What is wrong with a checkpoint's files, or None."""
  manifest = directory / MANIFEST
  if not manifest.exists():
    return f"{MANIFEST} is missing: the save was cut off"
  try:
    sums = json.loads(manifest.read_text(encoding="utf-8"))
  except json.JSONDecodeError:
    return f"{MANIFEST} is not JSON: the save was cut off"
  for name, digest in sums.items():
    file = directory / name
    if not file.exists():
      return f"{name} is missing"
    if _sha256(file) != digest:
      return f"{name} differs from its checksum"
  return None


@contextlib.contextmanager
def preemption() -> Iterator[threading.Event]:
  """Turns SIGTERM into an event that the loop looks at between two steps.

  In a thread other than the main one signals cannot be caught; the event then stays
  unset and SIGTERM keeps its meaning.
  """
  asked = threading.Event()
  if threading.current_thread() is not threading.main_thread():
    yield asked
    return
  before = signal.signal(signal.SIGTERM, lambda number, frame: asked.set())
  try:
    yield asked
  finally:
    signal.signal(signal.SIGTERM, before)


def _seal(directory: Any) -> None:
  directory = Path(directory)
  files = sorted(file for file in directory.rglob("*") if file.is_file())
  sums = {str(file.relative_to(directory)): _sha256(file) for file in files}
  beside = directory / (MANIFEST + ".tmp")
  beside.write_text(json.dumps(sums, indent=1), encoding="utf-8")
  beside.replace(directory / MANIFEST)


def _sha256(file: Path) -> str:
  with file.open("rb") as stream:
    return hashlib.file_digest(stream, "sha256").hexdigest()
