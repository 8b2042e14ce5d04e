"""Reward runs, tiny: what the trainer measured is what the saved directory says."""

import dataclasses
import json
import shutil

import numpy as np
import pytest

from tests.quiet import quiet
from xpo_jax import cli
from xpo_jax.config import yaml_file
from xpo_jax.config.data import Data, Evaluation
from xpo_jax.config.experiment import Experiment, Loop, MeshShape, Scratch
from xpo_jax.config.factories import ObjectiveConfig
from xpo_jax.config.optim import Optimizer
from xpo_jax.data import split, synthetic_reviews
from xpo_jax.data.records import Pair, Stepped
from xpo_jax.data.tokenise import Limits
from xpo_jax.evaluation import agreement, evaluate_reward_model, reward_bench
from xpo_jax.feedback import reward_model
from xpo_jax.models.config import Config
from xpo_jax.objectives import margin_bradley_terry, soft_bradley_terry
from xpo_jax.report import run_page
from xpo_jax.train import loop, metrics, run_directory

MODEL = Config(
  vocab=500,
  width=16,
  layers=1,
  heads=2,
  kv_heads=2,
  head_dim=8,
  mlp_width=16,
  tied=True,
  remat="none",
)
RUN = Experiment(
  ObjectiveConfig("bradley_terry"),
  Data("pairs", limits=Limits(completion=24), row_length=128, rows_per_step=8),
  Scratch(MODEL),
  Optimizer(learning_rate=1e-2),
  Loop(log_every=100),
  MeshShape(data=1),
  Evaluation(share=0.25),
)


def _pairs(count):
  """Pairs whose label is the sign of the true reward."""
  texts = synthetic_reviews.generate(2 * count, seed=0)
  rows = []
  for n, ((prompt, a), (_, b)) in enumerate(zip(texts[::2], texts[1::2], strict=True)):
    first, second = synthetic_reviews.true_reward([prompt + a, prompt + b])
    if abs(first - second) > 0.3:
      chosen, rejected = (a, b) if first > second else (b, a)
      rows.append(Pair(str(n), prompt, chosen, rejected))
  return rows


@pytest.fixture(scope="module")
def datasets():
  return {"pairs": _pairs(500)}


@pytest.fixture(scope="module")
def run_dir(datasets, tmp_path_factory):
  run_dir = tmp_path_factory.mktemp("runs") / "reward"
  data = dataclasses.replace(RUN.data, epochs=3)
  run = dataclasses.replace(RUN, data=data)
  assert loop.train(run, run_dir, datasets=datasets, say=quiet).finished
  return run_dir


def test_reward_model_learns_and_its_directory_says_what_the_trainer_measured(
  run_dir, datasets
):
  assert evaluate_reward_model.is_reward(run_dir)
  agreed = evaluate_reward_model.judge_run(run_dir, datasets=datasets)
  accuracy = agreed.measures["accuracy"]
  assert accuracy.low > 0.6  # chance is 0.5
  measured = metrics.read(run_dir)[-1]["eval/reward_accuracy"]
  assert accuracy.mean == pytest.approx(measured, abs=1e-6)
  written = json.loads((run_dir / agreement.FILE).read_text())
  assert written["measures"]["accuracy"]["mean"] == accuracy.mean
  run_page.write(run_dir)
  page = (run_dir / "report.md").read_text()
  assert "Agreement with held-out labels" in page
  # Normalised on preferred answers: a run from scratch has no other reference.
  scorer = reward_model.scorer(str(run_dir / run_directory.POLICY))
  sides = split.by_prompt(datasets["pairs"], RUN.evaluation.shares, RUN.data.seed)
  chosen = [(row.prompt, row.chosen) for row in sides["train"]]
  reward = scorer(*zip(*chosen, strict=True)).value_N
  assert abs(reward.mean()) < 0.1 and 0.9 < reward.std() < 1.1
  worse = scorer([prompt for prompt, _ in chosen], [" awful."] * len(chosen))
  assert worse.value_N.mean() < -0.5


def test_accuracy_by_subset_is_that_of_the_saved_model(
  run_dir, datasets, tmp_path, capsys
):
  pairs = datasets["pairs"][:40]
  rows = [
    {"prompt": one.prompt, "chosen": one.chosen, "rejected": one.rejected}
    | {"subset": "odd" if n % 2 else "even"}
    for n, one in enumerate(pairs)
  ]
  path = tmp_path / "pairs.jsonl"
  path.write_text("\n".join(map(json.dumps, rows)))
  assert cli.main(["evaluate", str(run_dir), "--reward-bench", str(path)]) == 0
  scorer = reward_model.scorer(str(run_dir / run_directory.POLICY))
  prompts = [one.prompt for one in pairs]
  chosen, rejected = (
    scorer(prompts, [getattr(one, side) for one in pairs]).value_N
    for side in ("chosen", "rejected")
  )
  written = json.loads((run_dir / reward_bench.FILE).read_text())["accuracy"]
  right_N = chosen > rejected
  assert written["all"]["mean"] == pytest.approx(right_N.mean())
  assert written["odd"]["mean"] == pytest.approx(right_N[1::2].mean())
  assert f"odd   {written['odd']['mean']:.3f}" in capsys.readouterr().out


def test_a_kill_before_it_is_normalised_leaves_no_reward_model(
  run_dir, datasets, tmp_path, monkeypatch
):
  again = tmp_path / "run"
  shutil.copytree(run_dir, again)
  policy = again / run_directory.POLICY
  written = (policy / reward_model.FILE).read_bytes()
  shutil.rmtree(policy)
  (again / run_directory.SUMMARY).unlink()

  def killed(*args):
    raise KeyboardInterrupt

  with monkeypatch.context() as patch:
    patch.setattr(reward_model, "normalise", killed)
    with pytest.raises(KeyboardInterrupt):
      loop.resume(again, datasets=datasets, say=quiet)
  assert not policy.exists()
  with pytest.raises(ValueError, match="not finished"):
    evaluate_reward_model.judge_run(again, datasets=datasets)
  assert loop.resume(again, datasets=datasets, say=quiet).finished
  assert (policy / reward_model.FILE).read_bytes() == written


def test_every_held_out_pair_is_judged(run_dir, datasets):
  counts = json.loads((run_dir / run_directory.COUNTS).read_text())["splits"]
  agreed = evaluate_reward_model.judge_run(run_dir, datasets=datasets)
  assert agreed.questions + agreed.abstained == counts["held_out"]["examples"]


def test_soft_labels_train(datasets, tmp_path):
  soft = [dataclasses.replace(row, probability=0.8) for row in datasets["pairs"]]
  data = dataclasses.replace(RUN.data, steps=2)
  run = dataclasses.replace(
    RUN,
    objective=ObjectiveConfig(soft_bradley_terry),
    data=data,
    evaluation=Evaluation(),
  )
  loop.train(run, tmp_path / "run", datasets={"pairs": soft}, say=quiet)
  first, *_ = metrics.read(tmp_path / "run")
  # Cross-entropy to 0.8 is least, and equal to the entropy, at the right log odds.
  entropy = -(0.8 * np.log(0.8) + 0.2 * np.log(0.2))
  assert entropy < first["loss"] < 3
  with pytest.raises(ValueError, match="holds no data out"):
    evaluate_reward_model.judge_run(tmp_path / "run", datasets=datasets)


def test_margins_of_the_data_reach_the_loss(datasets, tmp_path):
  def first_loss(name, objective, rows):
    run = dataclasses.replace(
      RUN,
      objective=objective,
      data=dataclasses.replace(RUN.data, steps=1),
      evaluation=Evaluation(),
    )
    loop.train(run, tmp_path / name, datasets={"pairs": rows}, say=quiet)
    counts = json.loads((tmp_path / name / run_directory.COUNTS).read_text())
    return metrics.read(tmp_path / name)[0]["loss"], counts["unused_columns"]

  rows = datasets["pairs"][:40]
  margins = [dataclasses.replace(row, margin=2.0) for row in rows]
  constant = ObjectiveConfig("bradley_terry", margin=2.0)
  expected, unused = first_loss("constant", constant, margins)
  assert unused == {"margin": 40}  # a column that this objective does not read
  loss, unused = first_loss("column", ObjectiveConfig(margin_bradley_terry), margins)
  assert loss == pytest.approx(expected, rel=1e-6) and not unused


def test_steps_with_labels_train_a_token_reward(tmp_path):
  # A label stands on the token after its step, which the head has read too.
  texts = synthetic_reviews.generate(400, seed=0)
  rows = []
  for n, (prompt, answer) in enumerate(texts):
    steps = (answer, "it is good" if n % 2 else "it is bad")
    rows.append(Stepped(str(n), prompt, steps, (0.0, 1.0 if n % 2 else -1.0)))
  data = dataclasses.replace(RUN.data, limits=Limits(), epochs=12)
  run = dataclasses.replace(RUN, objective=ObjectiveConfig("token_reward"), data=data)
  loop.train(run, tmp_path / "run", datasets={"pairs": rows}, say=quiet)
  assert metrics.read(tmp_path / "run")[-1]["eval/token_accuracy"] == 1


def test_policy_run_is_no_reward_run(tmp_path, datasets):
  data = dataclasses.replace(RUN.data, steps=1)
  run = dataclasses.replace(RUN, objective=ObjectiveConfig("dpo"), data=data)
  (tmp_path / "run").mkdir()
  yaml_file.write(tmp_path / "run", run)
  assert not evaluate_reward_model.is_reward(tmp_path / "run")
  with pytest.raises(ValueError, match="not finished"):
    evaluate_reward_model.judge_run(tmp_path / "run", datasets=datasets)


def test_a_reward_is_refused_where_a_reward_model_is_evaluated(run_dir, capsys):
  assert cli.main(["evaluate", str(run_dir), "--reward", "math:sqrt"]) == 2
  assert "--reward math:sqrt" in capsys.readouterr().err
