"""Changes of adapters are read from their runs, merged and measured."""

import dataclasses
from pathlib import Path

import jax
import numpy as np
import pytest

from tests.studies import hash_reward
from tests.studies.tiny_task import TINY
from xpo_jax.config.factories import Configured, ObjectiveConfig
from xpo_jax.models import hf_checkpoint
from xpo_jax.models.lora import Adapter
from xpo_jax.studies import task as tasks
from xpo_jax.studies.multistage import demonstrations, merging
from xpo_jax.train import loop, run_directory


def test_base_with_an_adapters_change_is_the_runs_policy(tiny_policy, tmp_path):
  task = dataclasses.replace(TINY, policy=tiny_policy, learning_rate=0.1)
  rows = Configured(
    demonstrations.best_of,
    policy=tiny_policy,
    prompts=tasks.prompts(task),
    reward=Configured(hash_reward.scorer),
    completions=2,
    max_completion_tokens=6,
    num_prompts=8,
  )
  adapter = Adapter(rank=2, targets="query|up")
  experiment = tasks.on_records(ObjectiveConfig("sft"), task, rows, adapter=adapter)
  run_dir = Path(tmp_path / "run")
  loop.train(experiment, run_dir, say=lambda text: None)
  base = hf_checkpoint.load(tiny_policy, remat="none")
  policy = hf_checkpoint.load(run_dir / run_directory.ADAPTER, remat="none")
  change = merging.change(run_dir, base)
  assert set(change["blocks"]) == {"query", "up"}
  assert max(np.abs(x).max() for x in jax.tree.leaves(change)) > 0
  jax.tree.map(
    lambda x, y: np.testing.assert_allclose(x, y, atol=1e-6),
    merging.apply(base, change),
    {"lm": policy.params["lm"]},
  )


def _merges(sft, dpo, **changes):
  settings = {"keep": 1.0, "drop": 0.0, "scale": 1.0} | changes
  return merging.merges({"x": sft}, {"x": dpo}, key=jax.random.key(0), **settings)


def test_merges_are_those_of_two_entries():
  sft, dpo = np.array([1.0, 2.0, -3.0]), np.array([3.0, -1.0, -1.0])
  merges = {name: merged["x"] for name, merged in _merges(sft, dpo).items()}
  np.testing.assert_allclose(merges["linear"], (sft + dpo) / 2)
  np.testing.assert_allclose(merges["task arithmetic"], sft + dpo)
  # Of entries of opposite sign the larger stays: their sum has its sign.
  np.testing.assert_allclose(merges["TIES"], [4.0, 2.0, -4.0])
  # DARE that drops nothing is task arithmetic, and DARE-TIES is TIES.
  np.testing.assert_allclose(merges["DARE"], merges["task arithmetic"])
  np.testing.assert_allclose(merges["DARE-TIES"], merges["TIES"])


def test_settings_of_merges_reach_them():
  sft, dpo = np.array([1.0, 2.0, -4.0, 8.0]), np.array([8.0, -1.0, -1.0, 1.0])
  merges = _merges(sft, dpo, keep=0.25, drop=0.5, scale=3.0)
  np.testing.assert_allclose(merges["task arithmetic"]["x"], 3 * (sft + dpo))
  np.testing.assert_allclose(merges["TIES"]["x"], [8.0, 0.0, 0.0, 8.0])
  # What DARE leaves of an entry is twice it, from either change.
  for s, d, merged in zip(sft, dpo, merges["DARE"]["x"], strict=True):
    assert float(merged) in {0, 2 * 3 * s, 2 * 3 * d, 2 * 3 * (s + d)}


def test_sparsity_and_conflicts_leave_small_entries_out():
  first = {"x": np.array([10.0, 0.05, -5.0, 5.0]), "y": np.array([1.0])}
  second = {"x": np.array([1.0, -1.0, 1.0, 0.001]), "y": np.array([1.0])}
  assert merging.sparsity(first) == pytest.approx(1 / 5)
  assert merging.sparsity(second) == pytest.approx(1 / 5)
  # Large in both: entries 0, 2 and y; of these 2 has opposite signs.
  assert merging.conflicts(first, second) == pytest.approx(1 / 3)
  apart = ({"x": np.array([1.0, 0.0])}, {"x": np.array([0.0, 1.0])})
  assert merging.conflicts(*apart) == 0
