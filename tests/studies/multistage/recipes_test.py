"""Recipes of several stages, made small: they train, share stages, resume and widen."""

import dataclasses
import json
import math
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from tests.studies import hash_reward
from tests.studies.tiny_task import TINY
from xpo_jax.config import yaml_file
from xpo_jax.config.experiment import Experiment, Pretrained, Stage
from xpo_jax.config.factories import Configured, ObjectiveConfig
from xpo_jax.models.lora import Adapter
from xpo_jax.studies import find_recipe
from xpo_jax.studies import task as tasks
from xpo_jax.studies.multistage import arms
from xpo_jax.train import metrics, run_directory

TASK = dataclasses.replace(TINY, reward=Configured(hash_reward.scorer))
MERGES = ("linear", "task arithmetic", "TIES", "DARE", "DARE-TIES")


class Case(NamedTuple):
  """A recipe made small.

  Attributes:
    changes: of its settings.
    labels: of its rows.
    runs: of one seed, beside SFT.
  """

  changes: dict[str, Any]
  labels: tuple[str, ...]
  runs: int


CASES = {
  "best_of_n": Case(
    {"ns": (1, 2), "pool": 2, "distilled": 2},
    ("best of 1", "best of 2", "SFT on best of 2"),
    1,
  ),
  "slic_sample_rank": Case(
    {"candidates": 4}, ("SFT", "SLiC, tournament", "SLiC, pointwise"), 2
  ),
  "rso": Case(
    {"candidates": 4, "accepted": 2},
    ("SFT", "RSO, sigmoid-norm", "RSO, hinge-norm", "sft-sample-rank"),
    3,
  ),
  "sdpo": Case(
    {},
    ("SFT", "sDPO, easy first", "sDPO, hard first", "DPO", "DPO, beta / stages"),
    6,
  ),
  "paft": Case(
    {"adapter": Adapter(rank=2, targets="query|up"), "l1": (1e-3,)},
    (
      "DPO",
      "SFT, l1 0.001",
      *(f"{name}, l1 0.001" for name in MERGES),
      "SFT, then DPO",
    ),
    3,
  ),
  # A round shares the runs of the rounds before it: a policy, a train and a test
  # reward model of each arm.
  "iterated_rlhf": Case(
    {"rounds": 2, "comparisons": 4, "iterations": 2, "every": 2},
    ("SFT", "round 1", "round 2", "at once"),
    9,
  ),
}


def _small(name: str, **changes: Any) -> tuple[Any, Any]:
  recipe = find_recipe.load(name)
  task = dataclasses.replace(TASK, **changes)
  settings = dataclasses.replace(recipe.experiment, task=task, **CASES[name].changes)
  return recipe, settings


def _arms(name: str):
  """The function that lists the runs of a recipe."""
  return find_recipe.load(name).run.__globals__["arms"]


def _listed(name: str, **changes: Any) -> dict[str, Experiment]:
  """The runs of a recipe made small, by label and seed."""
  _, settings = _small(name, **changes)
  return _arms(name)(settings)


def _summaries(run_dir: Path) -> dict[str, int]:
  """Name of a finished run -> when it was finished."""
  paths = (run_dir / run_directory.STAGES).glob(f"*/{run_directory.SUMMARY}")
  return {path.parent.name: path.stat().st_mtime_ns for path in paths}


def _rows(run_dir: Path) -> dict[str, Any]:
  rows = json.loads((run_dir / arms.RESULTS).read_text(encoding="utf-8"))
  return {row.pop("label"): row for row in rows}


@pytest.mark.parametrize("name", CASES)
def test_study_trains_each_run_and_has_a_row_for_each_arm(name, tmp_path):
  recipe, settings = _small(name)
  assert recipe.run(settings, tmp_path / "study") == 0
  rows, first = _rows(tmp_path / "study"), _summaries(tmp_path / "study")
  assert tuple(rows) == CASES[name].labels
  for row in rows.values():
    assert math.isfinite(row["reward"]["mean"]) and row["kl"]["mean"] > -1e-6
  assert len(first) == 1 + CASES[name].runs


def test_killed_study_resumes_and_widens_without_training_a_run_twice(tmp_path):
  name = "slic_sample_rank"
  recipe, settings = _small(name)
  assert recipe.run(settings, tmp_path / "study") == 0
  first = _summaries(tmp_path / "study")
  # As if the last run had been killed before its end, and then a further seed.
  last = max(first, key=first.get)
  lines = len(metrics.read(tmp_path / "study" / "stages" / last))
  (tmp_path / "study" / "stages" / last / run_directory.SUMMARY).unlink()
  recipe, wider = _small(name, seeds=(0, 1))
  assert recipe.run(wider, tmp_path / "study") == 0
  second = _summaries(tmp_path / "study")
  assert len(second) == 1 + 2 * CASES[name].runs
  assert {run for run in first if second[run] != first[run]} == {last}
  assert len(metrics.read(tmp_path / "study" / "stages" / last)) == lines
  assert tuple(_rows(tmp_path / "study")) == CASES[name].labels


@pytest.mark.parametrize("name", CASES)
def test_runs_are_values_that_config_files_hold(name):
  _, settings = _small(name)
  assert yaml_file.from_dict(type(settings), yaml_file.to_dict(settings)) == settings
  for experiment in _arms(name)(settings).values():
    plain = json.loads(json.dumps(yaml_file.to_dict(experiment)))
    assert yaml_file.to_dict(yaml_file.from_dict(Experiment, plain)) == plain


@pytest.mark.parametrize("name", CASES)
def test_recipe_takes_texts_and_a_policy_of_ones_own(name):
  settings = find_recipe.load(name, ["source=mine.jsonl", "policy=gpt2"]).experiment
  assert (settings.task.path, settings.task.policy) == ("mine.jsonl", "gpt2")
  for label, experiment in _arms(name)(settings).items():
    if "then" not in label and "sDPO" not in label:
      assert experiment.start == Pretrained("gpt2", remat="none")


def test_each_seed_draws_its_own_samples_and_order():
  for name in CASES:
    runs = _listed(name, seeds=(1, 2))
    seeds = [int(label.rpartition("seed ")[2]) for label in runs]
    assert set(seeds) == {1, 2}
    assert [run.seed for run in runs.values()] == seeds
    assert len(set(map(repr, runs.values()))) == len(runs)


def test_best_of_n_has_its_exact_kl(tmp_path):
  recipe, settings = _small("best_of_n")
  recipe.run(settings, tmp_path / "study")
  rows = _rows(tmp_path / "study")
  one, two = rows["best of 1"], rows["best of 2"]
  assert one["kl"]["mean"] == pytest.approx(0, abs=1e-12)
  # Of two completions the better is drawn 3 times in 4; of two that tie either: 0 nats.
  apart = 0.75 * math.log(1.5) + 0.25 * math.log(0.5)
  prompts = two["kl"]["mean"] / apart * TASK.eval_prompts
  assert prompts == pytest.approx(round(prompts), abs=1e-6)
  assert 1 <= round(prompts) <= TASK.eval_prompts
  assert two["reward"]["mean"] > one["reward"]["mean"]


def test_best_of_n_is_learned_by_sft():
  (run,) = _listed("best_of_n").values()
  assert run.objective == ObjectiveConfig("sft")
  assert run.data.path.arguments["completions"] == 2
  assert run.start == Stage(tasks.sft(TASK))


def test_sample_rank_compares_all_candidates_by_both_rankings():
  runs = _listed("slic_sample_rank")
  for run in runs.values():
    assert run.objective == ObjectiveConfig("slic", delta=1.0, weight=0.1)
    arguments = run.data.path.arguments
    assert arguments["candidates"] == arguments["kept"] == 4
    assert (arguments["sampling_temperature"], arguments["top_k"]) == (0.7, 40)
  rankings = [run.data.path.arguments["ranking"] for run in runs.values()]
  assert rankings == ["tournament", "best_worst"]


def test_sdpo_starts_each_stage_where_the_one_before_ended():
  runs = _listed("sdpo")
  for label, reverse in {"easy": False, "hard": True}.items():
    second = runs[f"sDPO, {label} first, seed 0"]
    first = second.start.experiment
    assert first.start == Stage(tasks.sft(TASK))
    for number, run in enumerate((first, second), 1):
      assert run.reference is None  # its start
      arguments = run.data.path.arguments
      assert (arguments["number"], arguments["hardest_first"]) == (number, reverse)
      assert arguments["policy"] == tasks.start_weights(TASK)
  betas = [run.objective.hparams["beta"] for run in runs.values()]
  assert betas == [0.3, 0.3, 0.3, 0.15]


def test_paft_adapts_one_base_twice_and_dpo_after_sft():
  runs = _listed("paft")
  dpo, sft = runs["DPO, seed 0"], runs["SFT, l1 0.001, seed 0"]
  assert dpo.start == sft.start == Stage(tasks.sft(TASK))
  assert (dpo.adapter.l1, sft.adapter.l1) == (0, 1e-3)
  after = runs["SFT, then DPO, seed 0"]
  assert dataclasses.replace(after, start=dpo.start) == dpo
  assert after.start == Stage(sft)
  rates = {run.optimizer.learning_rate for run in runs.values()}
  assert rates == {find_recipe.load("paft").experiment.learning_rate}


def test_instructgpt_ranks_its_starts_samples_and_learns_from_a_reward_model():
  recipe = find_recipe.load("instructgpt")
  settings = dataclasses.replace(recipe.experiment, task=TASK, gammas=(0.0, 2.0))
  runs = _arms("instructgpt")(settings)
  plain, ptx, strict = runs.values()
  assert list(runs) == [
    f"{label}, seed 0" for label in ("PPO", "PPO-ptx, gamma 2", "PPO, beta 2")
  ]
  for run, beta in ((plain, 0.2), (ptx, 0.2), (strict, 2.0)):
    assert run.objective.hparams["beta"] == beta
    judge = run.data.feedback.source.arguments["directory"]
    assert judge == run.data.critic_init
    assert judge.experiment.objective == ObjectiveConfig("kwise")
    lists = judge.experiment.data.path
    assert lists.name.endswith("ranked_lists:noisy")
    assert lists.arguments["policy"] == judge.experiment.start == run.start
    texts = run.start.experiment.data.path
    assert texts.name.endswith("sequel_texts:with_reviews")
  assert plain.aux_losses == strict.aux_losses == ()
  (loss,) = ptx.aux_losses
  assert (loss.weight, loss.objective) == (2.0, ObjectiveConfig("sft"))
  assert loss.data.path.name.endswith("sequel_texts:learned")


def test_iterated_rlhf_adds_the_newest_policys_labels_to_all_older_ones():
  runs = _listed("iterated_rlhf")
  first, second = runs["round 1, seed 0"], runs["round 2, seed 0"]
  once = runs["at once, seed 0"]
  sources = {}
  for label, run in {"first": first, "second": second, "once": once}.items():
    judge = run.data.feedback.source.arguments["directory"].experiment
    assert judge.objective == ObjectiveConfig("bradley_terry")
    assert judge.start == run.start == Stage(tasks.sft(TASK))  # from scratch
    assert judge.data.path.arguments["which"] == "first"
    sources[label] = judge.data.path.arguments["sources"]
  assert len(sources["first"]) == 1 and sources["second"][:1] == sources["first"]
  newest = sources["second"][1].arguments
  assert newest["policy"] == Stage(first) and newest["first_prompt"] == 4
  (every,) = sources["once"]
  assert every.arguments["policy"] == tasks.start_weights(TASK)
  assert every.arguments["num_prompts"] == 8
  test = runs["round 2, test reward model, seed 0"]
  assert test.data.path.arguments["which"] == "second"
  assert test.data.path.arguments["sources"] == sources["second"]


@pytest.mark.parametrize(
  ("name", "changes", "says"),
  [
    ("best_of_n", {"ns": (1, 65)}, "each must be in 1..64"),
    ("best_of_n", {"distilled": 1}, "take 2 at least"),
    ("slic_sample_rank", {"candidates": 1}, "at least 2"),
    ("sdpo", {"num_sources": 1}, "at least 2"),
    ("iterated_rlhf", {"rounds": 0}, "at least 1 round of 4"),
    ("iterated_rlhf", {"noise": 0.0}, "must be > 0"),
    ("iterated_rlhf", {"rounds": 4}, "more prompts than Task.num_prompts"),
  ],
)
def test_bad_settings_are_refused(name, changes, says):
  with pytest.raises(ValueError, match=says):
    dataclasses.replace(find_recipe.load(name).experiment, **changes)
