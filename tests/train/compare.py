"""Compares what two runs left: checkpoints, metrics, files, bit for bit."""

from pathlib import Path

import jax
import numpy as np

from xpo_jax.train import checkpoint, metrics, run_directory


def state(run_dir: Path):
  """The state in a run's last checkpoint, as nested dicts."""
  manager = checkpoint.open_manager(run_dir / run_directory.CHECKPOINTS, keep=2)
  tree = checkpoint.read(manager, manager.latest_step())
  manager.close()
  return tree


def leaves(run_dir: Path) -> list[np.ndarray]:
  """Every array of that state, keys and method state included."""
  keys = jax.dtypes.prng_key
  return [
    np.asarray(jax.random.key_data(x) if jax.dtypes.issubdtype(x.dtype, keys) else x)
    for x in jax.tree.leaves(state(run_dir))
  ]


def lines(run_dir: Path, without: tuple[str, ...] = ("time/",)) -> list[dict]:
  """A run's metrics, but for those whose names start so."""
  return [
    {name: x for name, x in line.items() if not name.startswith(without)}
    for line in metrics.read(run_dir)
  ]


def differences(
  run_dir: Path, whole: Path, without: tuple[str, ...] = ("time/",)
) -> list[str]:
  """What of a run is not the same as in another; nothing if they are the same run.

  Args:
    run_dir: the run.
    whole: the one that it is compared with.
    without: metrics that may differ, by the beginnings of their names.
  """
  found = []
  pairs = zip(leaves(run_dir), leaves(whole), strict=True)
  if any(a.tobytes() != b.tobytes() for a, b in pairs):
    found.append("parameters or state")
  if lines(run_dir, without) != lines(whole, without):
    found.append("metrics")
  for file in sorted(whole.glob("*/*.jsonl")):
    other = run_dir / file.relative_to(whole)
    if not other.exists() or other.read_bytes() != file.read_bytes():
      found.append(str(file.relative_to(whole)))
  return found
