"""Merges the adapters of two runs that were trained apart from one base (PAFT)."""

from pathlib import Path

import jax
import numpy as np

from xpo_jax.models import lora, merge, peft
from xpo_jax.models.hf_checkpoint import Checkpoint
from xpo_jax.train import run_directory
from xpo_jax.types import Array, Params

SMALL = 0.01  # share of the largest entry below which one counts as no change


def change(run_dir: Path, base: Checkpoint) -> Params:
  """What the adapter of a finished run adds to the kernels of its start.

  Args:
    run_dir: the run.
    base: its start.
  """
  lm = base.params["lm"]
  adapter, params = peft.load(run_dir / run_directory.ADAPTER, base.config, lm)
  return lora.delta(lm, params, adapter)


def merges(
  sft: Params, dpo: Params, *, keep: float, drop: float, scale: float, key: Array
) -> dict[str, Params]:
  """Name of a merge -> the merged change of two.

  Args:
    sft, dpo: changes of one base.
    keep: share of the entries that TIES keeps.
    drop: share of the entries that DARE drops.
    scale: of the sum in task arithmetic, with DARE too.
    key: of DARE's draws.
  """
  both = [sft, dpo]
  keys = jax.random.split(key)
  dropped = [merge.dare(x, drop, k) for x, k in zip(both, keys, strict=True)]
  return {
    "linear": merge.linear(both, [1, 1]),
    "task arithmetic": merge.task_arithmetic(both, [scale] * 2),
    "TIES": merge.ties(both, keep, merge.disjoint_sum),
    "DARE": merge.task_arithmetic(dropped, [scale] * 2),
    "DARE-TIES": merge.disjoint_sum(dropped),
  }


def apply(base: Checkpoint, merged: Params) -> Params:
  """`{"lm": ...}` of the base with a change added to its kernels."""
  return {"lm": lora.add(base.params["lm"], merged)}


def sparsity(params: Params) -> float:
  """Share of the entries of a change below `SMALL` of the largest."""
  size_N = np.abs(_flat(params))
  return float(np.mean(size_N < SMALL * size_N.max()))


def conflicts(first: Params, second: Params) -> float:
  """Share of entries in which two changes have opposite signs, of those in which
  neither is below `SMALL` of its largest; 0 where there are none."""
  both = [_flat(first), _flat(second)]
  large_N = np.all([np.abs(x) >= SMALL * np.abs(x).max() for x in both], axis=0)
  if not large_N.any():
    return 0.0
  return float(np.mean((both[0] * both[1])[large_N] < 0))


def _flat(params: Params) -> np.ndarray:
  return np.concatenate([np.asarray(x).ravel() for x in jax.tree.leaves(params)])
