"""What a run exports: a policy, its adapters, a reward model with its scale."""

import dataclasses
import json
import os
import shutil
import signal

import chex
import jax
import numpy as np
import pytest

from tests.quiet import quiet
from tests.train import compare
from tests.train.tiny_runs import ADAPTED, MODEL
from xpo_jax.config.data import Data, Evaluation
from xpo_jax.config.experiment import Experiment, Loop, MeshShape, Pretrained, Scratch
from xpo_jax.config.factories import ObjectiveConfig
from xpo_jax.config.optim import Optimizer
from xpo_jax.data import sealed_files, split
from xpo_jax.data.records import Ranked
from xpo_jax.evaluation import evaluate_run
from xpo_jax.feedback import preference_model, reward_model
from xpo_jax.models import heads, hf_checkpoint, lora, peft, transformer
from xpo_jax.train import export, loading, loop, run_directory

REWARD = Experiment(
  ObjectiveConfig("bradley_terry"),
  Data("pairs", rows_per_step=4, row_length=192, steps=3),
  Scratch(MODEL),
  Optimizer(learning_rate=1e-2),
  Loop(log_every=1),
  MeshShape(data=1),
  Evaluation(share=0.2),
)


def test_policy_is_the_base_with_the_saved_adapter_merged(adapted):
  run_dir, result, base = adapted
  model = ADAPTED.start.model
  adapter, params = peft.load(run_dir / run_directory.ADAPTER, model, base)
  assert (adapter.rank, adapter.alpha) == (2, 4.0)
  merged = lora.merged(base, params, adapter)
  assert not (run_dir / run_directory.POLICY).exists()
  written = hf_checkpoint.load(run_dir / run_directory.ADAPTER).params["lm"]
  # The file has the base's norm and the trained change in one float32.
  for given in (merged, result.params["lm"]):
    chex.assert_trees_all_close(written, given, atol=1e-6)
  # The average of the adapters, as without adapters that of the weights.
  ema = compare.state(run_dir)["ema"]["lm"]
  for part, own in params["blocks"].items():
    assert np.abs(own["m"]).max() > 1e-3, part
    np.testing.assert_allclose(own["m"], ema["blocks"][part]["m"], atol=1e-6)
    for factor in "ab":
      np.testing.assert_array_equal(own[factor], ema["blocks"][part][factor])


@pytest.mark.parametrize("name", ["adapter_config.json", "adapter_model.safetensors"])
def test_damaged_adapter_is_refused_with_the_file(adapted, tmp_path, name):
  run_dir, _, base = adapted
  directory = shutil.copytree(run_dir / run_directory.ADAPTER, tmp_path / "adapter")
  data = bytearray((directory / name).read_bytes())
  data[-3] ^= 1
  (directory / name).write_bytes(data)
  with pytest.raises(ValueError, match=f"{name} differs from its checksum"):
    peft.load(directory, ADAPTED.start.model, base)


@pytest.mark.parametrize("name", ["adapter_config.json", "adapter_model.safetensors"])
def test_damaged_policy_is_refused_with_the_file_and_not_exported(
  adapted, tmp_path, name
):
  run_dir = tmp_path / "run"
  shutil.copytree(adapted.run_dir, run_dir)
  evaluate_run.export(run_dir, tmp_path / "sound")
  exported = {file.name for file in (tmp_path / "sound").iterdir()}
  policy = {file.name for file in (run_dir / run_directory.ADAPTER).iterdir()}
  assert exported == policy - {sealed_files.MANIFEST}  # its user's own
  file = run_dir / run_directory.ADAPTER / name
  data = bytearray(file.read_bytes())
  data[-3] ^= 1
  file.write_bytes(data)
  with pytest.raises(ValueError, match=f"adapter: {name} differs from its checksum"):
    hf_checkpoint.load(run_dir / run_directory.ADAPTER)
  with pytest.raises(ValueError, match=f"adapter: {name} differs from its checksum"):
    evaluate_run.export(run_dir, tmp_path / "damaged")
  assert not (tmp_path / "damaged").exists()


def test_export_that_is_killed_leaves_nothing_under_its_name(
  adapted, tmp_path, monkeypatch
):
  def killed(source, target, **named):
    target.mkdir()
    raise KeyboardInterrupt

  with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
    patch.setattr(shutil, "copytree", killed)
    evaluate_run.export(adapted.run_dir, tmp_path / "policy")
  assert not (tmp_path / "policy").exists()
  evaluate_run.export(adapted.run_dir, tmp_path / "policy")
  assert [path.name for path in tmp_path.iterdir()] == ["policy"]


def test_resumed_run_exports_the_same_bits(adapted, datasets, tmp_path):
  run_dir = tmp_path / "run"

  def say(text):
    if text.startswith("step 3/"):
      os.kill(os.getpid(), signal.SIGTERM)

  stopped = loop.train(ADAPTED, run_dir, datasets=datasets, say=say)
  assert not stopped.finished and stopped.steps == 4
  assert not (run_dir / run_directory.ADAPTER).exists()
  loop.resume(run_dir, ADAPTED, datasets=datasets, say=quiet)
  for name in (run_directory.BASE, run_directory.ADAPTER):
    for file in (adapted.run_dir / name).glob("*.safetensors"):
      assert (run_dir / name / file.name).read_bytes() == file.read_bytes()


@pytest.mark.parametrize(
  ("name", "is_reward"),
  [("sft", False), ("dpo", False), ("ppo", False), ("bradley_terry", True)],
)
def test_reward_model_is_a_head_alone(name, is_reward):
  experiment = dataclasses.replace(REWARD, objective=ObjectiveConfig(name))
  assert export.is_reward(experiment) == is_reward


def _moments(directory, prompts, completions) -> tuple[float, float]:
  value_N = reward_model.scorer(str(directory))(prompts, completions).value_N
  return value_N.mean(), value_N.std()


def test_rewards_of_what_was_preferred_in_training_are_standardised(datasets, tmp_path):
  run_dir = tmp_path / "run"
  loop.train(REWARD, run_dir, datasets=datasets, say=quiet)
  train = split.by_prompt(
    datasets["pairs"], {"train": 0.8, "held_out": 0.2}, REWARD.data.seed
  )["train"]
  last = {row.prompt: row.chosen for row in train}
  assert len(train) < len(datasets["pairs"])
  directory = run_dir / run_directory.POLICY
  mean, std = _moments(directory, list(last), list(last.values()))
  assert mean == pytest.approx(0, abs=1e-3) and std == pytest.approx(1, abs=1e-3)


def _writer(experiment, run_dir, datasets):
  """Writes the policy of an experiment that has taken no step; its directory."""
  run_dir.mkdir()
  loaded = loading.load(experiment.data, experiment.data, datasets)
  begin = loading.start(experiment, run_dir, loaded)
  model = transformer.model(begin.config)
  head = heads.init_reward_head(jax.random.key(1), begin.config.width)
  fetch = export.policy_writer(None, model, {}, begin.tokenizer, "")
  fetch = export.reward_writer(experiment, begin, loaded, model, fetch)
  fetch(None, begin.params | {"value": head})(run_dir / "policy")
  return run_dir / "policy"


def test_start_with_weights_gives_the_samples_that_rewards_are_standardised_on(
  datasets, adapted, tmp_path, monkeypatch
):
  seen, normalise = [], reward_model.normalise

  def watched(model, prompts, completions):
    seen.append((prompts, completions))
    return normalise(model, prompts, completions)

  monkeypatch.setattr(reward_model, "normalise", watched)
  start = Pretrained(str(adapted.run_dir / run_directory.ADAPTER), remat="none")
  experiment = dataclasses.replace(REWARD, start=start)
  directory = _writer(experiment, tmp_path / "run", datasets)
  ((prompts, completions),) = seen
  assert len(set(prompts)) == len(prompts) == len(completions) > 2
  assert set(prompts) <= {row.prompt for row in datasets["pairs"]}
  answers = {x for row in datasets["pairs"] for x in (row.chosen, row.rejected)}
  assert not set(completions) & answers  # samples, of an untrained policy
  mean, std = _moments(directory, prompts, completions)
  assert mean == pytest.approx(0, abs=1e-3) and std == pytest.approx(1, abs=1e-3)
  # The same samples wherever the run is resumed.
  again = _writer(experiment, tmp_path / "again", datasets)
  assert (again / reward_model.FILE).read_text() == (
    directory / reward_model.FILE
  ).read_text()


def test_best_of_a_ranked_list_is_what_is_preferred(datasets, tmp_path, monkeypatch):
  rows = [
    Ranked(row.uid, f"{row.uid} {row.prompt}", (row.rejected, row.chosen), (0.0, 1.0))
    for row in datasets["pairs"]
  ]
  seen, normalise = [], reward_model.normalise

  def watched(model, prompts, completions):
    seen.append(dict(zip(prompts, completions, strict=True)))
    return normalise(model, prompts, completions)

  monkeypatch.setattr(reward_model, "normalise", watched)
  experiment = dataclasses.replace(REWARD, evaluation=Evaluation())
  _writer(experiment, tmp_path / "run", {"pairs": rows})
  assert seen == [{row.prompt: row.completions[1] for row in rows}]


def test_preference_model_has_a_kind_and_no_scale(datasets, tmp_path):
  data = dataclasses.replace(REWARD.data, transform=preference_model.BOTH_ORDERS)
  experiment = dataclasses.replace(
    REWARD, objective=ObjectiveConfig("preference_model"), data=data
  )
  directory = _writer(experiment, tmp_path / "run", datasets)
  said = json.loads((directory / reward_model.FILE).read_text())
  assert said["kind"] == reward_model.PREFERENCE
  assert (said["gain"], said["bias"]) == (1.0, 0.0)


def test_policy_has_no_reward_file(adapted):
  assert not (adapted.run_dir / run_directory.ADAPTER / reward_model.FILE).exists()
