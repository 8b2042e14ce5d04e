"""The tables of `experiments/tables/` in miniature: they train, show and go on."""

import dataclasses
import json
from pathlib import Path

import jax
import numpy as np
import pytest

from tests.studies.tiny_task import TINY
from xpo_jax.config import experiment as experiments
from xpo_jax.config.factories import Configured, ObjectiveConfig
from xpo_jax.config.sampling import Sampling
from xpo_jax.feedback import judge, local, rules
from xpo_jax.studies import demo, find_recipe
from xpo_jax.studies import task as tasks
from xpo_jax.studies.find_recipe import Recipe
from xpo_jax.studies.frontier import online_frontier, recipe_studies
from xpo_jax.studies.multistage import arms as study_arms
from xpo_jax.studies.task import Task
from xpo_jax.train import run_directory

SMALL = dataclasses.replace(TINY, seeds=(0, 1))
ONLINE = (
  "ahmadian2024_frontier",
  "ahmadian2024_online_methods",
  "gao2022_overoptimisation",
  "guo2024_noisy_judge",
  "munos2023_exploitability",
)
load = find_recipe.load


@pytest.fixture
def shown(monkeypatch):
  """Tables that are printed; `demo.environment` changes nothing here."""
  tables = []
  monkeypatch.setattr(demo, "environment", lambda: None)
  monkeypatch.setattr(demo, "show", tables.append)
  return tables


@pytest.fixture
def small_recipes(monkeypatch):
  """Recipes on rollouts have two iterations of four prompts."""

  def load_small(name, arguments=()):
    recipe = load(name, arguments)
    sizes = {"iterations": 2, "prompts_per_iteration": 4}
    return recipe._replace(experiment=experiments.replace(recipe.experiment, **sizes))

  monkeypatch.setattr(find_recipe, "load", load_small)


def table(name: str, **settings) -> Recipe:
  """A table on the smallest task, in this process."""
  recipe = load(name)
  settings = {"task": SMALL, "jobs": 1} | settings
  changed = dataclasses.replace(recipe.experiment, **settings)
  return recipe._replace(experiment=changed)


def run_twice(recipe: Recipe, run_dir: Path) -> None:
  """Runs a table; shows it; nothing is trained the second time."""
  assert recipe.run(recipe.experiment, run_dir) == 0
  before = _times(run_dir / run_directory.STAGES)
  again = dataclasses.replace(recipe.experiment, show=True)
  assert recipe.run(again, run_dir) == 0
  assert _times(run_dir / run_directory.STAGES) == before


def _times(directory: Path) -> dict[str, int]:
  files = [path for path in directory.rglob("*") if path.is_file()]
  return {str(path): path.stat().st_mtime_ns for path in files}


@pytest.mark.parametrize("name", ONLINE)
def test_show_refuses_a_directory_without_points(name, tmp_path, shown):
  recipe = table(name, show=True)
  with pytest.raises(ValueError, match="no points to show; run it without --show"):
    recipe.run(recipe.experiment, tmp_path / "empty")
  assert not shown and not (tmp_path / "empty").exists()


@pytest.mark.parametrize("name", ONLINE)
def test_runs_of_a_table_are_listed_for_a_check(name):
  recipe = load(name)
  runs = recipe.run.__globals__["arms"](recipe.experiment)
  assert len(runs) % 3 == 0  # three seeds
  assert all(
    name.rpartition(", ")[2] in ("seed 0", "seed 1", "seed 2") for name in runs
  )
  starts = [one.start for one in runs.values()]
  assert all(start == tasks.start(recipe.experiment.task) for start in starts)


def test_frontier_compares_online_and_offline_methods(
  tmp_path, shown, small_recipes, monkeypatch
):
  sizes = {"every": 1, "pool": 4, "best_of": (1, 2), "betas": (1.0, 0.1)}
  # Untrained policies rarely write a word of VADER's; their lengths differ.
  task = dataclasses.replace(TINY, reward=Configured(rules.length))
  recipe = table("ahmadian2024_frontier", task=task, matched_kl=(1e-4,), **sizes)
  monkeypatch.setitem(
    recipe.run.__globals__, "ONLINE", {"RLOO": "rloo", "RAFT": "raft"}
  )
  run_twice(recipe, tmp_path / "run")
  rewards, claims = shown[:2]
  assert [row[0] for row in rewards.rows] == [
    "RLOO",
    "RAFT",
    "offline DPO",
    "best of n",
  ]
  assert [row[2].split(":")[0] for row in claims.rows] == ["RLOO - RAFT"]
  assert shown[2:] == [rewards, claims]
  assert (tmp_path / "run" / "frontier.svg").read_text().startswith("<svg")
  assert "RLOO - RAFT" in (tmp_path / "run" / "tables.md").read_text()


def test_frontier_has_every_online_method(shown):
  recipe = table("ahmadian2024_frontier")
  runs = recipe.run.__globals__["judged_runs"](recipe.experiment)
  labels = {"PPO", "RLOO", "REINFORCE", "RAFT", "online DPO", "offline DPO"}
  assert {run.label for run in runs} == labels
  assert len({run.name for run in runs}) == len(runs) == 2 * (5 + 4)


def test_noisy_judges_differ_in_nothing_but_their_error(tmp_path, shown, small_recipes):
  settings = {"errors": (0.0, 0.4), "every": 2, "matched_kl": (1e-4,), "task": TINY}
  recipe = table("guo2024_noisy_judge", **settings)
  runs = recipe.run.__globals__["judged_runs"](recipe.experiment)
  clean, noisy = (one.experiment for one in runs)
  judges = [one.data.feedback.source.arguments for one in (clean, noisy)]
  assert [judge["error"] for judge in judges] == [0.0, 0.4]
  assert noisy.data.feedback.source.arguments == judges[0] | {"error": 0.4}
  same = dataclasses.replace(noisy.data, feedback=clean.data.feedback)
  assert dataclasses.replace(noisy, data=same) == clean
  run_twice(recipe, tmp_path / "run")
  rewards, claims = shown[:2]
  assert [row[0] for row in rewards.rows] == ["error 0%", "error 40%"]
  assert [row[2].split(":")[0] for row in claims.rows] == ["error 40% - error 0%"]


def test_overoptimisation_scores_by_both_reward_models_and_the_truth(
  tmp_path, shown, monkeypatch
):
  sizes = {"iterations": 2, "every": 1, "reward_epochs": 1}
  task = dataclasses.replace(TINY, num_prompts=24)
  recipe = table("gao2022_overoptimisation", task=task, **sizes)
  monkeypatch.setitem(recipe.run.__globals__, "ARMS", {"few labels": (4, 0.0)})
  run_twice(recipe, tmp_path / "run")
  points, claims = shown[:2]
  assert [row[:2] for row in points.rows] == [["few labels", n] for n in (0, 1, 2)]
  assert [row[1].partition(":")[0] for row in claims.rows] == ["few labels"] * 2
  assert (tmp_path / "run" / "few_labels.svg").read_text().startswith("<svg")
  runs = recipe.run.__globals__["judged_runs"](recipe.experiment)
  for run in runs:
    assert run.experiment.data.feedback.source == run.scorers["train score"]
    halves = [
      scorer.arguments["directory"].experiment.data.path.arguments["half"]
      for scorer in run.scorers.values()
    ]
    assert halves == ["train", "test"]
  study = study_arms.Arms(task, tmp_path / "run", print)
  for points in online_frontier.read(study, runs)["few labels"].values():
    train, test = (points[-1].column(name) for name in ("train score", "test score"))
    assert np.abs(train - test).max() > 0


@pytest.mark.parametrize(
  "ahead, verdict",
  [(1.0, "reproduces"), (0.0, "not separable"), (-1.0, "does not reproduce")],
)
def test_score_that_falls_behind_is_told_from_one_that_is_level(ahead, verdict):
  recipe = table("gao2022_overoptimisation")
  noise_P = np.tile([-0.1, 0.1], 8)
  scores = {"train score": noise_P + ahead, "test score": np.zeros(16)}
  seeds = {
    seed: [
      online_frontier.FrontierPoint(
        "arm", seed, strength, 0.0, noise_P, noise_P, noise_P, scores
      )
      for strength in (0, 1)
    ]
    for seed in (0, 1)
  }
  claims = recipe.run.__globals__["claims_table"]({"arm": seeds})
  assert claims.rows[1][-1].startswith(verdict)


def test_equilibrium_is_exploited_less_than_a_reward_at_its_kl(
  tmp_path, shown, small_recipes
):
  sizes = {"iterations": 2, "every": 2, "reward_epochs": 1, "task": TINY}
  recipe = table("munos2023_exploitability", **sizes)
  run_twice(recipe, tmp_path / "run")
  exact, text = shown[:2]
  closest = exact.rows[-1]  # next to no tie: the game's own equilibrium
  assert float(closest[2]) < 0.01 < float(closest[3])
  assert [row[:2] for row in text.rows] == [
    [label, n] for label in ("Nash-MD", "RLOO, Bradley-Terry") for n in (0, 2)
  ]
  assert {len(row) for row in text.rows} == {len(text.header)}
  runs = recipe.run.__globals__["judged_runs"](recipe.experiment)
  assert {run.experiment.data.feedback.kind for run in runs} == {"scores", "win_rates"}


def test_judge_is_examined_in_both_orders(tmp_path, monkeypatch, capsys):
  rows = [{"prompt": "x", "chosen": "good", "rejected": "a long one"}]
  rows += [{"prompt": "y", "chosen": "also a long one", "rejected": "bad"}]
  path = tmp_path / "pairs.jsonl"
  path.write_text("\n".join(map(json.dumps, rows)) + "\n")
  recipe = load("lee2023_judges", [f"pairs={path}"])
  with pytest.raises(ValueError, match="name one judge"):
    recipe.run(recipe.experiment, tmp_path / "run")
  seen = []

  def preference(backend, *, both_orders, **how):
    seen.append((backend, both_orders))
    return rules.bradley_terry(rules.length(), temperature=0)

  monkeypatch.setattr(local, "load", lambda directory: f"judge in {directory}")
  monkeypatch.setattr(judge, "preference", preference)
  recipe = load("lee2023_judges", [f"pairs={path}", "directory=model"])
  assert recipe.run(recipe.experiment, tmp_path / "run") == 0
  assert seen == [("judge in model", False)]
  text = (tmp_path / "run" / "judge.txt").read_text()
  assert text == capsys.readouterr().out and "changes its mind" in text


@dataclasses.dataclass(frozen=True)
class Stages:
  """Settings of a recipe of several stages."""

  task: Task = SMALL


def _run_stages(settings, run_dir):
  study = study_arms.open_study(settings, run_dir)
  start = study_arms.start(study).params
  trained = study_arms.Trained(dict.fromkeys(settings.task.seeds, start))
  rows = [study_arms.start_row(study), study_arms.row(study, "same", trained)]
  print(study_arms.finish(study, "stages", rows))
  return 0


def _run_broken(settings, run_dir):
  raise ValueError("it is broken")


def _rloo():
  sampling = Sampling(completions=2, max_completion_tokens=4)
  sizes = {"iterations": 2, "prompts_per_iteration": 2, "sampling": sampling}
  return tasks.on_rollouts(ObjectiveConfig("rloo", beta=0.1), TINY, **sizes)


RECIPES = {
  "rloo": Recipe(_rloo()),
  "stages": Recipe(Stages(), _run_stages),
  "broken": Recipe(Stages(), _run_broken),
}


@pytest.fixture(scope="module")
def online_methods(tmp_path_factory):
  """The table of three recipes, one of them broken, with one recipe first."""
  run_dir = tmp_path_factory.mktemp("runs") / "table"
  recipe, tables = table("ahmadian2024_online_methods"), []
  with pytest.MonkeyPatch.context() as patch:
    patch.setattr(find_recipe, "names", lambda kind: dict.fromkeys(RECIPES))
    patch.setattr(find_recipe, "required", lambda name: ())
    patch.setattr(find_recipe, "load", RECIPES.__getitem__)
    patch.setattr(demo, "environment", lambda: None)
    patch.setattr(demo, "show", tables.append)
    first = dataclasses.replace(recipe.experiment, task=TINY, only="rloo")
    assert recipe.run(first, run_dir) == 0
    before = _times(run_dir / run_directory.STAGES)
    assert recipe.run(recipe.experiment, run_dir) == 1  # a recipe is broken
    with pytest.raises(ValueError, match="recipes are rloo, stages, broken"):
      recipe.run(dataclasses.replace(first, only="rlo"), run_dir)
    again = dataclasses.replace(recipe.experiment, show=True)
    assert recipe.run(again, run_dir) == 0
  return run_dir, tables, before


def test_online_methods_have_a_row_for_every_recipe_and_arm(online_methods):
  _, tables, _ = online_methods
  few, _, rows, _, again, _ = tables
  assert [row[0] for row in few.rows] == ["SFT", "rloo"]
  assert [row[0] for row in rows.rows] == ["SFT", "rloo", "stages: same"]
  assert {len(row) for row in rows.rows} == {len(rows.header)}
  assert rows.rows[-1][2] == "0.000 [0.000, 0.000]"  # it is the start
  assert again == rows


def test_what_a_first_seed_trained_is_not_trained_again(online_methods):
  run_dir, _, before = online_methods
  after = _times(run_dir / run_directory.STAGES)
  assert before and all(after[path] == time for path, time in before.items())
  assert len(after) > len(before)


def test_recipes_of_several_stages_start_from_the_studys_start(online_methods):
  run_dir, _, _ = online_methods
  stage = tasks.start(SMALL).experiment
  policies = [
    study_arms.policy(study_arms.Arms(SMALL, where, print), stage).params
    for where in (run_dir, run_dir / recipe_studies.RECIPES / "stages")
  ]
  jax.tree.map(np.testing.assert_array_equal, *policies)


def test_arguments_without_a_default_are_required(tmp_path):
  path = tmp_path / "recipe.py"
  path.write_text("def experiment(path, policy, rate=1.0, *, key, seed=0):\n  pass\n")
  assert find_recipe.required(str(path)) == ("path", "policy", "key")
