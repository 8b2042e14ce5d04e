"""Stages: found by digest, trained once into a store, put in place, resumed."""

import dataclasses
import json
import os
import shutil
import signal
from pathlib import Path

import numpy as np
import pytest

from tests.quiet import quiet
from tests.train import compare
from tests.train.tiny_runs import MODEL, PLAIN
from xpo_jax.config import experiment as experiments
from xpo_jax.config.data import Data
from xpo_jax.config.experiment import (
  AuxLossConfig,
  Experiment,
  Loop,
  MeshShape,
  Pretrained,
  Scratch,
  Stage,
)
from xpo_jax.config.factories import Configured, ObjectiveConfig
from xpo_jax.config.optim import Optimizer
from xpo_jax.config.sampling import Feedback
from xpo_jax.data.records import Pair
from xpo_jax.feedback import reward_model
from xpo_jax.train import loading, loop, metrics, rollouts, run_directory, stages

DATA = Data("demos", rows_per_step=4, row_length=192, groups_per_row=1, steps=3)
SFT = Experiment(
  ObjectiveConfig("sft"),
  DATA,
  Scratch(MODEL),
  Optimizer(learning_rate=1e-2),
  Loop(log_every=1, checkpoint_every=1),
  MeshShape(data=1),
)
OTHER = experiments.replace(SFT, steps=2)
REWARD = experiments.replace(
  SFT, objective=ObjectiveConfig("bradley_terry"), path="pairs", start=Stage(SFT)
)
DPO = experiments.replace(
  SFT, objective=ObjectiveConfig("dpo"), path="pairs", start=Stage(SFT)
)
# SFT, a reward model on it, and PPO of both: a judge, and a critic that starts as it.
PPO = experiments.replace(
  PLAIN,
  objective=ObjectiveConfig("ppo"),
  feedback=Feedback(Configured(reward_model.scorer, directory=Stage(REWARD))),
  start=Stage(SFT),
  iterations=1,
  critic_init=Stage(REWARD),
  loop=Loop(log_every=1),
)


def _stopping_at(start: str):
  """A `say` that stops the run once, as a line starts so."""
  said = []

  def say(text):
    said.append(text)
    if text.startswith(start) and sum(one.startswith(start) for one in said) == 1:
      os.kill(os.getpid(), signal.SIGTERM)

  return say


def test_stages_stand_in_the_run_or_beside_a_run_that_is_a_stage():
  run_dir = Path("runs/dpo")
  store = stages.default_store(run_dir)
  assert store == run_dir / "stages"
  assert stages.default_store(store / "sft-0123") == store


def test_equal_stages_of_a_run_count_once():
  assert list(stages.of(PPO)) == [Stage(REWARD), Stage(SFT)]
  assert list(stages.of(SFT)) == []
  equal = dataclasses.replace(DPO, reference=Stage(dataclasses.replace(SFT)))
  assert list(stages.of(equal)) == [Stage(SFT)]


def test_digest_is_of_the_experiment_and_of_the_records_it_reads(datasets):
  digest = stages.digest(SFT, datasets)
  assert digest == stages.digest(dataclasses.replace(SFT), datasets)
  assert digest != stages.digest(OTHER, datasets)
  assert digest == stages.digest(SFT, {"demos": datasets["demos"]})  # reads no pairs
  fewer = datasets | {"demos": datasets["demos"][:-1]}
  assert digest != stages.digest(SFT, fewer)
  # What a stage before reads, and a function's argument, counts too.
  assert stages.digest(DPO, datasets) != stages.digest(DPO, fewer)
  made = experiments.replace(DPO, path=Configured(named, rows="demos"))
  assert stages.digest(made, datasets) != stages.digest(made, fewer)
  place = stages.directory(SFT, Path("store"), datasets)
  assert place == Path("store") / f"sft-{digest[:12]}"


def named(rows: str):
  """Records that something else holds."""
  del rows
  return []


def test_digest_changes_with_the_files_that_are_read(tmp_path):
  file, start = tmp_path / "demos.jsonl", tmp_path / "start"
  file.write_text('{"prompt": "a", "completion": " b"}\n')
  start.mkdir()
  (start / "model.safetensors").write_text("weights")
  run = experiments.replace(
    SFT, path=str(file), start=Pretrained(str(start)), reference=Stage(SFT)
  )
  digests = [stages.digest(run, {})]
  file.write_text('{"prompt": "a", "completion": " c"}\n')
  digests.append(stages.digest(run, {}))
  (start / "model.safetensors").write_text("others")
  digests.append(stages.digest(run, {}))
  beside = AuxLossConfig(1.0, ObjectiveConfig("sft"), Data(str(file)))
  with_aux = dataclasses.replace(SFT, aux_losses=(beside,))
  digests.append(stages.digest(with_aux, {}))
  file.write_text('{"prompt": "a", "completion": " d"}\n')
  digests.append(stages.digest(with_aux, {}))
  assert len(set(digests)) == len(digests)
  assert digests[-1] == stages.digest(with_aux, {})


def test_stages_are_replaced_by_the_directories_of_their_policies():
  bf16 = dataclasses.replace(MODEL, compute_dtype="bfloat16", remat="full")
  sft = experiments.replace(SFT, start=Scratch(bf16))
  reward = experiments.replace(REWARD, start=Stage(sft))
  run = experiments.replace(
    PPO,
    start=Stage(reward),
    reference=Stage(sft),
    feedback=Feedback(
      Configured(named, rows=[Configured(reward_model.scorer, directory=Stage(reward))])
    ),
    aux_losses=(
      AuxLossConfig(
        1.0, ObjectiveConfig("sft"), Data(Configured(named, rows=Stage(sft)))
      ),
    ),
  )
  found = stages.replaced(run, lambda stage: Path(stage.experiment.objective.name))
  # Read as the first start was: its dtype and remat.
  assert found.start == Pretrained("bradley_terry", "bfloat16", "full")
  assert found.reference == Pretrained("sft", "bfloat16", "full")
  assert found.data.critic_init == "bradley_terry"
  (scorer,) = found.data.feedback.source.arguments["rows"]
  assert scorer.arguments["directory"] == "bradley_terry"
  assert found.aux_losses[0].data.path.arguments["rows"] == "sft"
  assert not list(experiments.stages(found))
  assert stages.replaced(SFT, Path) is SFT


def test_only_missing_stages_are_run_and_an_early_stop_ends_there(tmp_path, datasets):
  ran = []

  def run_stage(experiment, directory):
    ran.append(experiment)
    directory.mkdir(parents=True)
    (directory / run_directory.SUMMARY).write_text("{}")
    return experiment != OTHER

  def resolve(experiment):
    return stages.resolve(experiment, tmp_path, datasets, run_stage)

  resolved = resolve(DPO)
  policy = stages.directory(SFT, tmp_path, datasets) / run_directory.POLICY
  assert resolved.start.directory == str(policy) and ran == [SFT]
  assert resolve(dataclasses.replace(DPO, seed=1, reference=Stage(SFT))) is not None
  assert ran == [SFT]  # another run, the same stage
  assert resolve(dataclasses.replace(DPO, reference=Stage(OTHER))) is None
  assert ran == [SFT, OTHER]
  run_dir = tmp_path / "run"
  assert stages.resolved(DPO, run_dir, tmp_path, datasets) == resolved
  own = stages.resolved(DPO, run_dir, None, datasets).start.directory
  assert own.startswith(str(run_dir / "stages" / "sft-"))


@pytest.fixture(scope="module")
def whole(datasets, tmp_path_factory):
  """A run of PPO with all its stages, uninterrupted."""
  run_dir = tmp_path_factory.mktemp("runs") / "whole"
  result = loop.train(PPO, run_dir, datasets=datasets, say=quiet)
  assert result.finished and result.steps == 1
  return run_dir


def _stage(run_dir, experiment, datasets):
  return stages.directory(experiment, run_dir / "stages", datasets)


def test_each_stage_is_a_finished_run_trained_once(whole, datasets):
  places = {_stage(whole, one, datasets) for one in (SFT, REWARD)}
  assert set((whole / "stages").iterdir()) == places
  for place in places:
    assert json.loads((place / run_directory.SUMMARY).read_text())["steps"] == 3
    assert not (place / "stages").exists()  # the reward model's start is beside it
  nll = metrics.read(_stage(whole, SFT, datasets))[0]["loss"]
  assert nll == pytest.approx(np.log(MODEL.vocab), rel=0.1)  # about uniform


def test_judge_and_critic_are_the_reward_model_that_a_stage_trained(whole, datasets):
  policy = _stage(whole, REWARD, datasets) / run_directory.POLICY
  drawn = rollouts.read(whole / run_directory.ROLLOUTS / "000001.jsonl")
  score = reward_model.scorer(str(policy))
  for prompt, texts, rewards in zip(
    drawn.prompts, drawn.texts_BK, drawn.reward_BK, strict=True
  ):
    told = score([prompt] * len(texts), texts).value_N
    np.testing.assert_allclose(rewards, told, atol=1e-5)
  counts = json.loads((whole / run_directory.COUNTS).read_text())
  digest = loading.files_digest(policy)
  assert counts[run_directory.JUDGES_DIGEST] == {"directory": digest}
  assert "start_sha256" in counts
  assert "critic" in compare.state(whole)["train"]["params"]
  # The policy starts where the reference is.
  assert metrics.read(whole)[0]["rollout/kl"] == pytest.approx(0, abs=1e-4)


@pytest.mark.parametrize("stopped", [SFT, REWARD], ids=["sft", "reward"])
def test_run_stopped_in_a_stage_resumes_bit_for_bit(whole, datasets, tmp_path, stopped):
  run_dir = tmp_path / "run"
  number = 1 + [SFT, REWARD].index(stopped)
  seen = []

  def say(text):
    seen.append(text)
    if text.startswith("step 1/3") and len(_starting(seen, "step 1/3")) == number:
      os.kill(os.getpid(), signal.SIGTERM)

  result = loop.train(PPO, run_dir, datasets=datasets, say=say)
  assert not result.finished and result.params is None and result.steps == 0
  assert f"stopped by SIGTERM in a stage: xpo resume {run_dir}" in seen[-1]
  place = _stage(run_dir, stopped, datasets)
  assert not (place / run_directory.SUMMARY).exists()
  assert not (run_dir / run_directory.CHECKPOINTS).exists()
  said = []
  assert loop.resume(run_dir, PPO, datasets=datasets, say=said.append).finished
  assert "continuing after step 2" in said  # the signal is seen a step later
  assert compare.differences(run_dir, whole) == []
  for experiment in (SFT, REWARD):
    own, others = (_stage(one, experiment, datasets) for one in (run_dir, whole))
    assert compare.differences(own, others) == []


def _starting(said, start):
  return [text for text in said if text.startswith(start)]


def test_stage_resumed_by_itself_finds_the_stages_beside_it(datasets, tmp_path):
  run_dir = tmp_path / "run"
  run = experiments.replace(DPO, start=Stage(REWARD))
  say = _stopping_at("step 1/3")  # of SFT
  assert not loop.train(run, run_dir, datasets=datasets, say=say).finished
  place = _stage(run_dir, REWARD, datasets)
  assert loop.resume(place, datasets=datasets, say=quiet).finished
  assert not (place / "stages").exists()
  said = []
  assert loop.resume(run_dir, datasets=datasets, say=said.append).finished
  assert len(_starting(said, "step 1/3")) == 1  # of the run's own steps alone


def test_runs_that_share_a_store_share_their_equal_stages(datasets, tmp_path):
  store, said = tmp_path / "store", []
  arms = [DPO, experiments.replace(DPO, reference=Stage(OTHER), seed=1)]
  for number, arm in enumerate(arms):
    result = loop.train(
      arm, tmp_path / str(number), store=store, datasets=datasets, say=said.append
    )
    assert result.finished
  names = [path.name for path in store.iterdir()]
  wanted = [stages.directory(one, store, datasets).name for one in (SFT, OTHER)]
  assert sorted(names) == sorted(wanted)
  headlines = _starting(said, str(store))
  assert sum(": sft" in text for text in headlines) == 2
  # The first learns from its start as the reference, the second from another one.
  one, other = (metrics.read(tmp_path / str(number))[0] for number in range(2))
  assert one["loss"] == pytest.approx(np.log(2), abs=1e-5)
  assert one["kl_k3"] == pytest.approx(0, abs=1e-6) and other["kl_k3"] > 1e-5
  assert other["loss"] != pytest.approx(np.log(2), abs=1e-5)
  for number in range(2):
    assert not (tmp_path / str(number) / "stages").exists()


def test_changed_records_are_another_stage_and_refused_by_the_run(datasets, tmp_path):
  run_dir = tmp_path / "run"
  loop.train(DPO, run_dir, datasets=datasets, say=quiet)
  fewer = datasets | {"demos": datasets["demos"][:-1]}
  with pytest.raises(ValueError, match=r"its data changed\n(.*\n)*  start_sha256: "):
    loop.resume(run_dir, datasets=fewer, say=quiet)
  assert len(list((run_dir / "stages").iterdir())) == 2


def labelled(policy: str, log: str):
  """Pairs that name the call that made them; the policy must be there by then."""
  assert (Path(policy) / "model.safetensors").exists()
  with open(log, "a") as file:
    file.write("called\n")
  with open(log) as file:
    calls = len(file.readlines())
  return [Pair(f"{i}", f"prompt {i}", f" call {calls}", " other") for i in range(12)]


def test_records_made_by_a_function_of_a_stage_are_kept_for_a_resumption(
  datasets, tmp_path
):
  run_dir, log = tmp_path / "run", tmp_path / "log"
  made = Configured(labelled, policy=Stage(SFT), log=str(log))
  run = experiments.replace(DPO, path=made, start=Stage(OTHER))
  say = _stopping_at("step 1/3  loss 0.6931")  # of DPO, at its reference
  stopped = loop.train(run, run_dir, datasets=datasets, say=say)
  assert not stopped.finished and stopped.params is not None
  kept = (run_dir / loading.RECORDS).read_bytes()
  assert b" call 1" in kept
  result = loop.resume(run_dir, run, datasets=datasets, say=quiet)
  assert result.finished and (run_dir / loading.RECORDS).read_bytes() == kept
  assert log.read_text() == "called\n"


@pytest.mark.parametrize(
  ("change", "says"),
  [
    ({"path": "nowhere.jsonl"}, "nowhere.jsonl': no such file"),
    # Found when the stage tokenises, before anything is computed.
    ({"row_length": 9}, "row_length: 9 is shorter"),
  ],
)
def test_stage_that_cannot_run_is_refused_and_leaves_no_directory(
  datasets, tmp_path, change, says
):
  stage = experiments.replace(SFT, **change)
  run = dataclasses.replace(
    DPO, start=Stage(dataclasses.replace(REWARD, start=Stage(stage)))
  )
  with pytest.raises(ValueError, match=says):
    loop.train(run, tmp_path / "run", datasets=datasets, say=quiet)
  assert not (tmp_path / "run").exists()


def test_run_that_was_moved_without_its_stages_trains_them_to_the_same_bits(
  whole, datasets, tmp_path, monkeypatch
):
  shutil.copytree(whole, tmp_path / "moved")
  shutil.rmtree(tmp_path / "moved" / "stages")
  monkeypatch.chdir(tmp_path)
  assert loop.resume("moved", PPO, datasets=datasets, say=quiet).finished
  assert compare.differences(tmp_path / "moved", whole) == []
  own, others = (_stage(one, REWARD, datasets) for one in (tmp_path / "moved", whole))
  for file in (others / run_directory.POLICY).glob("*.safetensors"):
    again = own / run_directory.POLICY / file.name
    assert again.read_bytes() == file.read_bytes()


def test_signal_with_the_last_step_of_a_stage_ends_the_run_there(datasets, tmp_path):
  run_dir, say = tmp_path / "run", _stopping_at("step 3/3")
  result = loop.train(DPO, run_dir, datasets=datasets, say=say)
  assert not result.finished and result.stopped and result.params is None
  place = _stage(run_dir, SFT, datasets)
  assert (place / run_directory.SUMMARY).exists()  # the stage is whole
  said = []
  assert loop.resume(run_dir, datasets=datasets, say=said.append).finished
  assert len(_starting(said, "step 1/3")) == 1
