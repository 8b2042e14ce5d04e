"""Reads and writes a run directory.

A run directory holds `config.yaml` (the experiment, versions, flags, code), `data.json`
(counts and hashes), `shown.json` (the first rows, token by token), `metrics.jsonl`,
`tensorboard/`, `checkpoints/` (unless `Loop.checkpoints` is elsewhere), `policy/` (a
Hugging Face directory) or `adapter/` (PEFT's format, where adapters are trained;
`base/` has what they belong to where it was random weights), `stages/` (a run directory
for each `Stage`) and, when it is finished, `summary.json`. A run on records has
`references/`, the reference's statistics; a run on rollouts has `rollouts/`, JSON lines
of each iteration, and `held_out/`, the same of each evaluation by iterations done.
While a process writes it, `lock.json` says which; of a study, `NAME.lock.json` beside
its directory. Of several processes of a run all see it, the first writes it, and all
write checkpoints.
"""

import contextlib
import datetime
import fcntl
import functools
import io
import json
import os
import secrets
import shutil
import socket
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np

from xpo_jax.config import trust, yaml_file
from xpo_jax.config.experiment import Experiment
from xpo_jax.data import audit, buckets, sealed_files
from xpo_jax.data.pack import Batch
from xpo_jax.sharding import distributed
from xpo_jax.train import checkpoint, metrics, progress

SUMMARY, SHOWN, COUNTS = "summary.json", "shown.json", "data.json"
CHECKPOINTS, POLICY, ADAPTER, BASE = "checkpoints", "policy", "adapter", "base"
STAGES, NONFINITE, REFERENCES = "stages", "nonfinite", "references"
ROLLOUTS, HELD_OUT = "rollouts", "held_out"
LOCK, WANDB_ID = "lock.json", "wandb_id.json"
SHOWN_ROWS = 4
# Results for which the directory of a refused run is not removed.
_COMPUTED = (CHECKPOINTS, metrics.FILE, STAGES, ROLLOUTS, HELD_OUT)
# Digests and counts that data.json of an older run may lack.
JUDGES_DIGEST, START_DIGEST = "judges_sha256", "start_sha256"
_NEWER = frozenset(
  {JUDGES_DIGEST, START_DIGEST}
  | {"lengths", "overlap", "problems", "repeated_prompts", "repeated_rows"}
)


class NonFiniteLoss(ValueError):
  """A loss or a gradient that is not a finite number; the batch was saved."""


class Writer(NamedTuple):
  """The process that writes a run directory.

  Attributes:
    host: its host's name.
    pid: its number there.
    started: when the process began, by the clock of its kernel; "" where unknown.
    since: when it took the directory, in UTC.
  """

  host: str
  pid: int
  started: str
  since: str

  def __str__(self) -> str:
    return f"process {self.pid} on {self.host} since {self.since}"

  @property
  def is_gone(self) -> bool:
    """Whether the process is known to be gone; one of another host is not."""
    return self.host == socket.gethostname() and self.started != _started(self.pid)


@contextlib.contextmanager
def lock(run_dir: Path, say: progress.Say) -> Iterator[None]:
  """Makes this process the only writer of a directory.

  With several JAX processes, the first of them holds the lock for all.

  Args:
    run_dir: the directory, which exists.
    say: prints whose lock was taken over, where a process was killed.

  Raises:
    ValueError: another process writes it; names host, process and time. A process of
      this run cannot write it.
  """
  own = _this_process()
  distributed.on_first(lambda: _acquire(run_dir / LOCK, own, say))
  try:
    distributed.together(lambda: _check_shared(run_dir))
    yield
  finally:
    if distributed.is_first():
      _release(run_dir / LOCK, own)


@contextlib.contextmanager
def lock_study(run_dir: Path, say: progress.Say) -> Iterator[None]:
  """Makes this process the only writer of the directory of a study.

  The lock stands beside the directory, which a study creates and may clear. A study is
  one process, and may still choose JAX's devices when it has the lock.

  Args:
    run_dir: the directory, which may not exist yet.
    say: see `lock`.

  Raises:
    ValueError: see `lock`.
  """
  missing = [folder for folder in run_dir.parents if not folder.exists()]
  run_dir.parent.mkdir(parents=True, exist_ok=True)
  try:
    path, own = run_dir.with_name(f"{run_dir.name}.{LOCK}"), _this_process()
    _acquire(path, own, say)
    try:
      yield
    finally:
      _release(path, own)
  finally:
    for folder in missing:  # of a study that was refused
      with contextlib.suppress(OSError):
        folder.rmdir()


def _this_process() -> Writer:
  now = datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%d %H:%M:%S UTC")
  return Writer(socket.gethostname(), os.getpid(), _started(os.getpid()) or "", now)


def _acquire(path: Path, own: Writer, say: progress.Say) -> None:
  """Writes the lock, new or in the place of one whose process is gone."""
  while True:
    try:
      number = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o644)
    except FileExistsError:
      try:
        number = os.open(path, os.O_RDWR)
      except FileNotFoundError:
        continue  # released meanwhile
    # Two processes must not both take over a stale lock: one judges it at a time, and
    # the file must still be the one at the path.
    with os.fdopen(number, "r+", encoding="utf-8", errors="replace") as file:
      with contextlib.suppress(OSError):  # a file system without flock
        fcntl.flock(file, fcntl.LOCK_EX)
      if not _is_at(path, number):
        continue
      text = file.read()
      writer = _writer(text)
      _refuse_writer(path, writer)
      if text:
        say(f"lock taken over, its process is gone: {writer or path}")
      file.seek(0)
      file.truncate()
      file.write(json.dumps(own._asdict()) + "\n")
      return


def _is_at(path: Path, number: int) -> bool:
  """Whether an open file is still the one at its path."""
  try:
    return os.path.samestat(path.stat(), os.fstat(number))
  except FileNotFoundError:
    return False


def _release(path: Path, own: Writer) -> None:
  """Removes the lock, unless it was removed or taken by another process."""
  with contextlib.suppress(FileNotFoundError):
    if _read_writer(path) == own:
      path.unlink()


def _refuse_writer(path: Path, writer: Writer | None) -> None:
  if writer is None or writer.is_gone:
    return
  mend = "wait for it, or end it"
  if writer.host != socket.gethostname():
    mend = f"if that process is gone, delete {path}"
  run_dir = path.parent
  if path.name != LOCK:  # of a study, beside its directory
    run_dir = path.with_name(path.name.removesuffix(f".{LOCK}"))
  raise ValueError(f"{run_dir} is being written by {writer}; {mend}")


def _read_writer(path: Path) -> Writer | None:
  return _writer(path.read_text(encoding="utf-8", errors="replace"))


def _writer(text: str) -> Writer | None:
  """The writer that a lock names; None where a kill cut its file."""
  try:
    return Writer(**json.loads(text))
  except (ValueError, TypeError):
    return None


def _started(pid: int) -> str | None:
  """When a process of this host began: boot and clock ticks; "" where there is no
  /proc; None where the process is gone."""
  proc = Path("/proc")
  if not (proc / "self/stat").exists():
    try:
      os.kill(pid, 0)
    except ProcessLookupError:
      return None
    except PermissionError:
      return ""
    return ""
  try:
    # Fields from the third on: the second, the name, may hold spaces.
    fields = (proc / f"{pid}/stat").read_text().rpartition(")")[2].split()
  except (FileNotFoundError, ProcessLookupError):
    return None
  state, ticks = fields[0], fields[19]
  if state in "ZX":  # ended, and not yet waited for
    return None
  return f"{(proc / 'sys/kernel/random/boot_id').read_text().strip()} {ticks}"


def checkpoints(run_dir: Path, experiment: Experiment) -> buckets.Directory:
  """The directory of a run's checkpoints: in the run directory, or where its
  configuration says."""
  named = experiment.loop.checkpoints
  return run_dir / CHECKPOINTS if named is None else buckets.directory(named)


def exported(run_dir: Path, experiment: Experiment) -> Path:
  """The directory that a run's policy is exported to: of adapters theirs."""
  return run_dir / (POLICY if experiment.adapter is None else ADAPTER)


def policy(run_dir: Path) -> Path:
  """Finds the policy of a finished run: a whole model or an adapter, both of which
  `hf_checkpoint.load` reads.

  Raises:
    ValueError: the run is not finished.
  """
  for name in (POLICY, ADAPTER):
    if (run_dir / name).exists():
      return run_dir / name
  raise ValueError(
    f"{run_dir} is not finished, it has neither {POLICY}/ nor {ADAPTER}/; "
    f"xpo resume {run_dir}"
  )


def refuse_existing(run_dir: Path) -> None:
  """Refuses to create a run in an existing directory.

  Raises:
    ValueError: the directory exists; names the process that writes it, if one does.
  """
  path = run_dir / LOCK
  with contextlib.suppress(FileNotFoundError):
    _refuse_writer(path, _read_writer(path))
  if run_dir.exists():
    raise ValueError(
      f"run directory {run_dir} exists; name another one, or continue that run: "
      f"xpo resume {run_dir}"
    )


@contextlib.contextmanager
def create(run_dir: Path, experiment: Any, say: progress.Say) -> Iterator[None]:
  """Creates the directory of a run with its config.yaml, and locks it; removes it where
  the run is refused before anything is computed.

  Args:
    run_dir: does not exist yet.
    experiment: the run.
    say: see `lock`.
  """
  own = _this_process()
  distributed.on_first(lambda: _begin(run_dir, experiment, own, say))
  try:
    distributed.together(lambda: _check_shared(run_dir))
    yield
  except ValueError:
    if distributed.is_first():
      _remove_refused(run_dir)
    raise
  finally:
    if distributed.is_first():
      _release(run_dir / LOCK, own)


def _begin(run_dir: Path, experiment: Any, own: Writer, say: progress.Say) -> None:
  # Beside it, then renamed: a kill must not leave a directory without config.yaml, and
  # nobody else may find it without its lock.
  beside = run_dir.with_name(f"{run_dir.name}.tmp")
  beside.mkdir(parents=True, exist_ok=True)
  _acquire(beside / LOCK, own, say)
  try:
    yaml_file.write(beside, experiment)
    refuse_existing(run_dir)  # another process may have been faster
    beside.rename(run_dir)
  except ValueError:
    shutil.rmtree(beside)
    raise
  finally:
    _release(beside / LOCK, own)


def _remove_refused(run_dir: Path) -> None:
  """Removes the directory of a run that was refused, unless something was computed."""
  stages = run_dir / STAGES
  if stages.exists() and not any(stages.iterdir()):  # the first was refused
    stages.rmdir()
  if not any((run_dir / name).exists() for name in _COMPUTED):
    sealed_files.remove_directory(run_dir)


def _check_shared(run_dir: Path) -> None:
  """Refuses a directory that one of several processes does not see or cannot write."""
  if jax.process_count() == 1:
    return
  if not (run_dir / yaml_file.FILE).exists():
    raise ValueError(
      f"{run_dir} has no {yaml_file.FILE} here, which process 0 wrote: of several "
      "processes all must see the run directory; name one on a shared file system"
    )
  try:
    buckets.check_writable(run_dir)
  except ValueError as error:
    raise ValueError(
      f"{error}, and every process writes its part of a checkpoint: give this host's "
      "user the right to write it"
    ) from error


def refuse_different_processes(what: str, own: Mapping[str, Any]) -> None:
  """Refuses to start where a process has something else than process 0.

  A collective call.

  Args:
    what: its name, for the message.
    own: of this process: plain data.

  Raises:
    ValueError: they differ; names the processes and what differs.
  """
  plain = json.loads(json.dumps(own))
  first = distributed.on_first(lambda: plain)

  def compare() -> None:
    lines = yaml_file.difference(first, plain)
    if lines:
      listed = "\n    ".join(lines)
      raise ValueError(f"its {what} is not that of process 0\n    {listed}")

  distributed.together(compare)


def read_config(run_dir: Path, experiment: Any | None = None) -> Any:
  """Reads the experiment of a run.

  Args:
    run_dir: the run.
    experiment: to compare with the recorded one, or None for no comparison.

  Raises:
    ForeignCode: it names code that is neither the package's nor trusted.
    ValueError: no such run, or another experiment; shows the differences. A reward
      model whose head was read at another position.
  """
  recorded, more = yaml_file.read(run_dir)
  head_at = more.get("reward_head_at")
  if yaml_file.reads_reward_head(recorded) and head_at != yaml_file.REWARD_HEAD_AT:
    raise ValueError(
      f"{run_dir} cannot be resumed: reward_head_at is {head_at} in {yaml_file.FILE}, "
      f"it must be {yaml_file.REWARD_HEAD_AT!r}: {recorded.objective.name} was trained "
      "with the head read where each token is predicted; start a new run"
    )
  if experiment is not None:
    old, new = map(yaml_file.to_dict, (recorded, experiment))
    yaml_file.refuse_change("configuration", run_dir, old, new)
  return recorded


def restore_state(
  manager: checkpoint.Manager,
  run_dir: Path,
  fresh: Any,
  meta: Mapping[str, Any],
  say: progress.Say,
) -> Any:
  """Restores the newest valid checkpoint, or returns the fresh state without one.

  Args:
    manager: see `checkpoint.open_manager`.
    run_dir: the run, for messages.
    fresh: the state before the first step.
    meta: "experiment" and `yaml_file.surroundings`, as they are now.
    say: prints rejected checkpoints, and changes that may affect the results.

  Raises:
    ValueError: the checkpoint is of another experiment, or all are damaged.
  """
  restored = checkpoint.restore(manager, fresh)
  if restored is None:
    return fresh
  for reason in restored.rejected:
    say(f"damaged checkpoint passed over: {reason}")
  if restored.state is None:
    say("there is none before it: beginning again")
    return fresh
  # Built once more: a field that is newer than the checkpoint has its default.
  again = yaml_file.from_dict(Experiment, restored.meta["experiment"])
  old, new = yaml_file.to_dict(again), meta["experiment"]
  yaml_file.refuse_change("configuration", run_dir, old, new)
  around = ("versions", "flags", "devices", "code")
  old, new = ({name: m[name] for name in around} for m in (restored.meta, meta))
  for line in yaml_file.difference(old, new):
    say(f"warning: changed since the checkpoint, bits may differ: {line}")
  say(f"continuing after step {int(restored.state.step)}")
  return restored.state


def write_counts(run_dir: Path, counts: Mapping[str, Any]) -> None:
  """Writes data.json, or compares the data with it where it exists.

  What an older data.json lacks, such as digests of start and judge, is not compared.

  Raises:
    ValueError: the data changed since the run began, or a process has other data;
      shows the differences.
  """
  refuse_different_processes("data", counts)
  distributed.on_first(lambda: _write_counts(run_dir, counts))


def _write_counts(run_dir: Path, counts: Mapping[str, Any]) -> None:
  path = run_dir / COUNTS
  if not path.exists():
    sealed_files.write_json(path, counts)
    return
  old = sealed_files.read_json(path)
  new = _as_old(json.loads(json.dumps(counts)), old)
  yaml_file.refuse_change("data", run_dir, old, new)


def _as_old(new: Mapping[str, Any], old: Mapping[str, Any]) -> dict[str, Any]:
  """Leaves out what older counts lack, at any depth."""
  return {
    name: _as_old(x, old[name])
    if isinstance(x, dict) and isinstance(old.get(name), dict)
    else x
    for name, x in new.items()
    if name not in _NEWER or name in old
  }


def write_shown(run_dir: Path, batch: Batch, tokenizer: Any) -> None:
  """Writes shown.json, the first rows of a batch, token by token."""
  if not distributed.is_first():
    return
  rows = audit.inspect_tokens(batch, tokenizer)[:SHOWN_ROWS]
  shown = [[token._asdict() for token in row] for row in rows]
  sealed_files.write_json(run_dir / SHOWN, {"rows": shown})


def refuse_non_finite(
  run_dir: Path, where: str, numbers: Mapping[str, float], batch: Callable[[], Batch]
) -> None:
  """Stops a run whose loss or gradient is not finite, and saves the batch.

  Args:
    run_dir: the run.
    where: which step, for the message.
    numbers: its metrics; a step without an update has no loss.
    batch: makes the batch.

  Raises:
    NonFiniteLoss: they are not finite; names the saved arrays and the fix.
  """
  losses = [numbers[name] for name in ("loss", "grad_norm") if name in numbers]
  if np.isfinite(losses).all():
    return
  save = functools.partial(_save_batch, run_dir / NONFINITE, batch(), numbers)
  path = distributed.on_first(lambda: str(save()))
  raise NonFiniteLoss(
    f"{where}: loss is {numbers['loss']}, grad_norm {numbers['grad_norm']}; the batch "
    f"is in {path}, the last checkpoint is sound. Lower Optimizer.learning_rate, raise "
    "warmup_steps, or look at the batch"
  )


def _save_batch(directory: Path, batch: Batch, line: Mapping[str, float]) -> Path:
  """Writes the arrays of a batch, and its metrics; returns the path of the arrays."""
  directory.mkdir(exist_ok=True)
  leaves = jax.tree_util.tree_leaves_with_path(batch)
  arrays = {jax.tree_util.keystr(p, simple=True, separator="."): x for p, x in leaves}
  content = io.BytesIO()
  np.savez_compressed(content, **arrays)
  sealed_files.write_bytes(directory / "batch.npz", content.getvalue())
  sealed_files.write_json(directory / "metrics.json", line)
  return directory / "batch.npz"


def wandb_arguments(
  project: str | None, run_dir: Path, meta: Mapping[str, Any]
) -> dict[str, Any] | None:
  """Makes the arguments of `wandb.init`; None without a project.

  The id of the W&B run is kept in the run directory, so that a resumed run goes on with
  the same curves. W&B leaves out the steps after the last checkpoint that are done
  again: they are the same numbers.
  """
  if project is None:
    return None
  if not distributed.is_first():
    return None
  path = run_dir / WANDB_ID
  if not path.exists():
    sealed_files.write_json(path, {"id": secrets.token_hex(8)})
  return {
    "project": project,
    "dir": str(run_dir),
    "config": meta["experiment"],
    "id": sealed_files.read_json(path)["id"],
    "resume": "allow",
  }


def resume_command(run_dir: Path, experiment: Experiment) -> str:
  """The command that goes on with a run."""
  foreign = trust.foreign_modules(yaml_file.to_dict(experiment))
  return f"xpo resume {run_dir} {trust.options(foreign)}".rstrip()


def due(every: int | None, now: int) -> bool:
  """Whether `now` is a multiple of `every`; None: never."""
  return every is not None and now % every == 0
