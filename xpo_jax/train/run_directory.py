"""What every trainer does with its run directory: go on, keep, hand over."""

import contextlib
import json
import shutil
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np

from xpo_jax.config import yaml_file
from xpo_jax.data.pack import Batch
from xpo_jax.models import hf_checkpoint
from xpo_jax.models.config import Config
from xpo_jax.train import checkpoint, progress
from xpo_jax.types import Params


def refuse_taken(run_dir: Path) -> None:
  """Refuses to begin a run where there is one.

  Raises:
    ValueError: the directory exists.
  """
  if run_dir.exists():
    raise ValueError(
      f"run directory {run_dir} exists; name another one, or continue that run: "
      f"xpo resume {run_dir}"
    )


@contextlib.contextmanager
def begun(run_dir: Path, experiment: Any, computed: Sequence[str]) -> Iterator[None]:
  """Makes the directory of a run and its config.yaml; a run that is refused with
  nothing computed leaves none, so that the same name can be used.

  Args:
    run_dir: does not exist yet.
    experiment: what runs.
    computed: names in the directory, of what is worth keeping.
  """
  run_dir.mkdir(parents=True)
  yaml_file.write(run_dir, experiment)
  try:
    yield
  except ValueError:
    if not any((run_dir / name).exists() for name in computed):
      shutil.rmtree(run_dir)
    raise


def kept(run_dir: Path, experiment: Any | None) -> Any:
  """The experiment of a run that is there.

  Args:
    run_dir: the run.
    experiment: what the caller thinks it is, or None to take the run's word.

  Raises:
    ValueError: no such run, or of another experiment; says how.
  """
  found, _ = yaml_file.read(run_dir)
  if experiment is not None:
    dicts = map(yaml_file.to_dict, (found, experiment))
    yaml_file.refuse_change("configuration", run_dir, *dicts)
  return found


def restored(
  manager: checkpoint.Manager,
  run_dir: Path,
  fresh: Any,
  meta: Mapping[str, Any],
  say: progress.Say,
) -> Any:
  """The state of the newest valid checkpoint, or the fresh one where there is none.

  Args:
    manager: see `checkpoint.open_manager`.
    run_dir: the run, for messages.
    fresh: the state before the first step.
    meta: "experiment" and `yaml_file.surroundings`, as they are now.
    say: is told what was passed over, and what else may change bits.

  Raises:
    ValueError: the checkpoint is of another experiment, or all are damaged.
  """
  found = checkpoint.restore(manager, fresh)
  if found is None:
    return fresh
  for reason in found.rejected:
    say(f"damaged checkpoint passed over: {reason}")
  if found.state is None:
    say("there is none before it: beginning again")
    return fresh
  old, new = found.meta["experiment"], meta["experiment"]
  yaml_file.refuse_change("configuration", run_dir, old, new)
  around = ("versions", "flags", "devices", "code")
  old, new = ({name: m[name] for name in around} for m in (found.meta, meta))
  for line in yaml_file.difference(old, new):
    say(f"warning: changed since the checkpoint, bits may differ: {line}")
  say(f"continuing after step {int(found.state.step)}")
  return found.state


def export(path: Path, config: Config, params: Params, tokenizer: Any) -> None:
  """Writes a Hugging Face directory, unless it is there."""
  # Beside it, then renamed: a kill must not leave half a policy under its name.
  beside = path.with_name(f"{path.name}.tmp")
  shutil.rmtree(beside, ignore_errors=True)
  if not path.exists():
    hf_checkpoint.save(beside, config, params, tokenizer=tokenizer)
    beside.rename(path)


def keep_batch(directory: Path, batch: Batch, line: Mapping[str, float]) -> Path:
  """Writes a batch on which numbers ceased to be finite, and the numbers.

  Returns:
    The path of the arrays.
  """
  directory.mkdir(exist_ok=True)
  leaves = jax.tree_util.tree_leaves_with_path(batch)
  arrays = {jax.tree_util.keystr(p, simple=True, separator="."): x for p, x in leaves}
  np.savez_compressed(directory / "batch.npz", **arrays)
  write_json(directory / "metrics.json", line)
  return directory / "batch.npz"


def wandb(
  project: str | None, run_dir: Path, meta: Mapping[str, Any]
) -> dict[str, Any] | None:
  """Arguments of `wandb.init`, or None."""
  if project is None:
    return None
  return {"project": project, "dir": str(run_dir), "config": meta["experiment"]}


def due(every: int | None, now: int) -> bool:
  """Whether something that happens every so often does now; None: never."""
  return every is not None and now % every == 0


def write_json(path: Path, content: Any) -> None:
  """Writes plain data, a line at the end."""
  path.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
