"""A study keeps its settings, trains its runs once, and judges policies."""

import dataclasses
import json
import math

import numpy as np
import pytest

from tests.quiet import quiet
from tests.studies import hash_reward
from tests.studies.tiny_task import TINY
from xpo_jax.config.experiment import Stage
from xpo_jax.config.factories import Configured, ObjectiveConfig
from xpo_jax.feedback import reward_model
from xpo_jax.studies import task as tasks
from xpo_jax.studies.multistage import arms, demonstrations, preference_pairs, samples
from xpo_jax.studies.task import Task
from xpo_jax.train import loop, metrics, progress, run_directory

TASK = dataclasses.replace(
  TINY, reward=Configured(hash_reward.scorer), learning_rate=1e-2
)
PAIRS = Configured(
  preference_pairs.ranked,
  policy=tasks.start_weights(TASK),
  prompts=tasks.prompts(TASK),
  reward=TASK.reward,
  max_completion_tokens=TASK.max_completion_tokens,
  candidates=2,
  kept=2,
  rejection_beta=None,
  num_prompts=TASK.num_prompts,
)
DPO = tasks.on_records(ObjectiveConfig("dpo", beta=0.5), TASK, PAIRS)


@dataclasses.dataclass(frozen=True)
class Settings:
  """Of a study."""

  task: Task = TASK


@pytest.fixture(scope="module")
def study(tmp_path_factory):
  return arms.open_study(
    Settings(), tmp_path_factory.mktemp("studies") / "study", quiet
  )


def test_run_is_trained_once_and_stands_in_the_store(study):
  run_dir = arms.train(study, DPO)
  assert run_dir.parent == study.store
  done = (run_dir / run_directory.SUMMARY).stat().st_mtime_ns
  assert arms.train(study, DPO) == run_dir
  assert (run_dir / run_directory.SUMMARY).stat().st_mtime_ns == done
  names = {path.name.partition("-")[0] for path in study.store.iterdir()}
  assert {"sft", "dpo"} <= names  # its start beside it


def test_study_ends_with_its_run_when_a_signal_comes(study, monkeypatch):
  def train(experiment, run_dir, **_):
    return loop.Result(run_dir, None, None, None, 3, finished=True, stopped="SIGINT")

  monkeypatch.setattr(loop, "train", train)
  other = dataclasses.replace(DPO, seed=7)
  with pytest.raises(progress.Stopped, match=f"SIGINT: xpo resume {study.run_dir}"):
    arms.train(study, other)


def test_policy_of_a_stage_is_the_reference_of_the_next(study):
  second = dataclasses.replace(DPO, start=Stage(DPO))
  for experiment in (DPO, second):
    first = metrics.read(arms.train(study, experiment))[0]
    assert first["loss"] == pytest.approx(math.log(2), abs=1e-5)


def test_reward_model_is_normalised_on_samples_of_its_start(study):
  experiment = tasks.on_records(ObjectiveConfig("bradley_terry"), TASK, PAIRS)
  directory = arms.train(study, experiment) / run_directory.POLICY
  score = reward_model.scorer(str(directory))
  start = str(arms.start_directory(study))
  sampled = samples.sample(
    start,
    samples.texts_of(tasks.prompts(TASK)),
    completions=4,
    max_completion_tokens=TASK.max_completion_tokens,
    seed=1,
  )
  reward_BK = samples.rewards(score, sampled)
  # Other samples than those that it was normalised on, of which there were eight.
  assert abs(reward_BK.mean()) < 2 and 0.3 < reward_BK.std() < 3


def test_start_has_no_kl_and_no_change(study):
  row = arms.start_row(study)
  assert row.measures["kl"].mean == pytest.approx(0, abs=1e-6)
  assert row.measures["change"].mean == 0
  assert row.measures["reward"].units == TASK.eval_prompts


def test_policy_is_judged_beside_its_reference_and_by_further_scores(study):
  trained = arms.train_arm(study, lambda seed: DPO)
  seen = []

  def score(seed, draws):
    seen.append(seed)
    return np.ones_like(draws.reward_PK)

  row = arms.row(study, "DPO", trained, scores={"one": score}, extra=2.0)
  assert seen == list(TASK.seeds)
  assert (row.measures["one"].mean, row.measures["extra"]) == (1, 2)
  assert row.measures["kl"].mean > 0
  own = arms.train(study, DPO) / run_directory.POLICY
  itself = arms.row(study, "DPO", trained, reference=own)
  assert itself.measures["kl"].mean == pytest.approx(0, abs=1e-6)
  assert itself.measures["change"].mean == 0


def test_nll_of_a_start_that_knows_nothing_is_log_of_the_vocabulary(study):
  texts = dataclasses.replace(tasks.sft(TASK).data, portion="test")
  rows = demonstrations.matching(texts, "", limit=8)
  nll = arms.nll(study, [arms.start(study).params], rows)
  assert nll.mean == pytest.approx(math.log(TASK.vocab), rel=0.1)


def test_table_holds_every_measure_and_json_the_same(study):
  row = arms.start_row(study, extra=2.0)
  table = arms.finish(study, "Title", [row])
  assert table.header == ["", "reward", "change", "kl", "length", "extra", "seconds"]
  (written,) = json.loads((study.run_dir / arms.RESULTS).read_text())
  assert written["reward"]["mean"] == row.measures["reward"].mean
  assert (written["label"], written["extra"]) == ("SFT", 2.0)


def test_study_takes_further_seeds_and_refuses_other_settings(tmp_path):
  arms.open_study(Settings(), tmp_path / "study")
  wider = dataclasses.replace(TASK, seeds=(0, 1))
  arms.open_study(Settings(wider), tmp_path / "study")
  with pytest.raises(ValueError, match=r"settings changed\n  task\.seeds: "):
    arms.open_study(Settings(), tmp_path / "study")
  other = dataclasses.replace(wider, learning_rate=1.0)
  with pytest.raises(ValueError, match=r"settings changed\n  task\.learning_rate: "):
    arms.open_study(Settings(other), tmp_path / "study")
  (tmp_path / "full").mkdir()
  (tmp_path / "full" / "file").write_text("mine")
  with pytest.raises(ValueError, match="holds something else"):
    arms.open_study(Settings(), tmp_path / "full")


def test_fewer_held_out_prompts_than_asked_for_are_refused(study):
  more = study._replace(task=dataclasses.replace(TASK, eval_prompts=10_000))
  with pytest.raises(ValueError, match=r"Task\.eval_prompts is 10000"):
    arms.judge(more, arms.start(study).params, seed=0)
