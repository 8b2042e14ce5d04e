"""A run directory: made whole, refused by name, compared with what it holds."""

import dataclasses
import json

import jax.numpy as jnp
import numpy as np
import pytest
from flax import struct

from tests.train.tiny_runs import PLAIN
from xpo_jax.config import experiment as experiments
from xpo_jax.config import yaml_file
from xpo_jax.data import sealed_files
from xpo_jax.train import run_directory


def test_directory_holds_the_configuration_from_the_start(tmp_path, monkeypatch):
  run_dir = tmp_path / "a" / "run"

  def killed(directory, experiment):
    raise KeyboardInterrupt

  with monkeypatch.context() as patch:
    patch.setattr(yaml_file, "write", killed)
    with pytest.raises(KeyboardInterrupt), run_directory.create(run_dir, PLAIN):
      pass
  assert not run_dir.exists()  # so that the same name can be used
  with run_directory.create(run_dir, PLAIN):
    assert run_directory.read_config(run_dir) == PLAIN
  assert [path.name for path in run_dir.parent.iterdir()] == ["run"]
  with pytest.raises(ValueError, match=r"exists; name another one.*xpo resume"):
    run_directory.refuse_existing(run_dir)


@pytest.mark.parametrize(
  ("made", "stays"),
  [
    ((), False),
    (("references", "tokenizer"), False),
    (("stages",), False),  # whose first stage was refused
    (("stages", "stages/sft"), True),
    (("checkpoints",), True),
    (("rollouts",), True),
  ],
)
def test_refused_run_leaves_no_directory_unless_something_was_computed(
  tmp_path, made, stays
):
  run_dir = tmp_path / "run"
  with pytest.raises(ValueError, match="refused"):
    with run_directory.create(run_dir, PLAIN):
      for name in made:
        (run_dir / name).mkdir()
      raise ValueError("refused")
  assert run_dir.exists() == stays


def test_run_killed_by_anything_else_stays(tmp_path):
  run_dir = tmp_path / "run"
  with pytest.raises(OSError), run_directory.create(run_dir, PLAIN):
    raise OSError("the disk is full")
  assert run_directory.read_config(run_dir) == PLAIN


def test_another_experiment_is_refused_with_the_difference(tmp_path):
  with run_directory.create(tmp_path / "run", PLAIN):
    pass
  other = experiments.replace(PLAIN, seed=1)
  with pytest.raises(ValueError, match=r"configuration changed\n  seed: 0 -> 1"):
    run_directory.read_config(tmp_path / "run", other)


def test_data_that_changed_since_the_run_began_are_refused(tmp_path):
  counts = {"rows": 3, "splits": {"train": (1, 2)}}
  run_directory.write_counts(tmp_path, counts)
  run_directory.write_counts(tmp_path, counts)
  with pytest.raises(ValueError, match=r"its data changed\n  rows: 3 -> 2"):
    run_directory.write_counts(tmp_path, counts | {"rows": 2})


@pytest.mark.parametrize(
  "name", [run_directory.JUDGES_DIGEST, run_directory.START_DIGEST]
)
def test_digest_that_an_older_run_lacks_passes(tmp_path, name):
  run_directory.write_counts(tmp_path, {"rows": 3})
  run_directory.write_counts(tmp_path, {"rows": 3, name: "a"})
  assert sealed_files.read_json(tmp_path / run_directory.COUNTS) == {"rows": 3}
  (tmp_path / run_directory.COUNTS).unlink()
  run_directory.write_counts(tmp_path, {"rows": 3, name: "a"})
  with pytest.raises(ValueError, match=rf"{name}: a -> b"):
    run_directory.write_counts(tmp_path, {"rows": 3, name: "b"})


@struct.dataclass
class _Batch:
  tokens: jnp.ndarray


@pytest.mark.parametrize("name", ["loss", "grad_norm"])
def test_number_that_is_not_finite_stops_the_run_and_saves_the_batch(tmp_path, name):
  sound = {"loss": 1.0, "grad_norm": 2.0, "rollout/reward": float("nan")}
  made = []

  def batch():
    made.append(1)
    return _Batch(jnp.arange(3))

  run_directory.refuse_non_finite(tmp_path, "step 1", sound, batch)
  run_directory.refuse_non_finite(tmp_path, "step 1", {"rollout/kl": 0.0}, batch)
  assert not made
  numbers = sound | {name: float("inf")}
  match = rf"step 2: .*{name} inf|step 2: {name} is inf"
  with pytest.raises(run_directory.NonFiniteLoss, match=match) as refused:
    run_directory.refuse_non_finite(tmp_path, "step 2", numbers, batch)
  assert "learning_rate" in str(refused.value)
  saved = np.load(tmp_path / run_directory.NONFINITE / "batch.npz")
  np.testing.assert_array_equal(saved["tokens"], [0, 1, 2])
  metrics = json.loads(
    (tmp_path / run_directory.NONFINITE / "metrics.json").read_text()
  )
  assert metrics[name] == float("inf")


def test_what_happens_every_so_often_is_due_then():
  assert [n for n in range(1, 9) if run_directory.due(3, n)] == [3, 6]
  assert not any(run_directory.due(None, n) for n in range(9))


def test_wandb_gets_the_configuration(tmp_path):
  meta = {"experiment": yaml_file.to_dict(dataclasses.replace(PLAIN, seed=3))}
  assert run_directory.wandb_arguments(None, tmp_path, meta) is None
  arguments = run_directory.wandb_arguments("project", tmp_path, meta)
  assert arguments["project"] == "project" and arguments["config"]["seed"] == 3
