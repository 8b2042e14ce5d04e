"""Every recipe that learns from samples, from one start: true reward, KL, claims.

Paper: Ahmadian et al. 2024, arXiv:2402.14740, Table 1, and the papers that the claims
  below name. Theirs are models of billions of parameters, ours has some 170 thousand.
Command: xpo train ahmadian2024_online_methods [--jobs 2 --only rloo,ppo]
  The same command goes on with an interrupted run; --show prints the rows there are.
Hardware: 2 CPU cores, half an hour.
Expected: more true reward than the start's for every recipe; no order among them is
  expected: their strengths are not matched.
Result: PPO, true reward {PPO | reward} at {PPO | kl | 1} nats from {SFT | reward}, the
  most of 18 online recipes, three seeds.
"""

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from xpo_jax.config.experiment import Experiment, Loop, Rollouts
from xpo_jax.evaluation.bootstrap import Interval
from xpo_jax.report import html
from xpo_jax.studies import demo, find_recipe
from xpo_jax.studies.find_recipe import Recipe
from xpo_jax.studies.frontier import (
  frontier_page,
  online_frontier,
  processes,
  recipe_studies,
)
from xpo_jax.studies.frontier.frontier_page import OrderingClaim
from xpo_jax.studies.frontier.online_frontier import ArmPoints, JudgedRun
from xpo_jax.studies.task import Task

START = "SFT"
RLOO = "RLOO, arXiv:2402.14740, Table 1"
CLAIMS = (
  OrderingClaim(
    RLOO, "learning from all samples wins more often than from the best", "rloo", "raft"
  ),
  OrderingClaim(
    RLOO,
    "the others of the prompt are a better baseline than a mean over time",
    "rloo",
    "reinforce",
  ),
  OrderingClaim(
    RLOO, "REINFORCE with leave-one-out wins more often than PPO", "rloo", "ppo"
  ),
  OrderingClaim(
    "Dr. GRPO, arXiv:2503.20783",
    "GRPO's division by length makes longer completions",
    "grpo",
    "dr_grpo",
    column="length",
  ),
  OrderingClaim(
    "DAPO, arXiv:2503.14476", "more reward than GRPO in as many steps", "dapo", "grpo"
  ),
  OrderingClaim(
    "GSPO, arXiv:2507.18071",
    "ratios of sequences learn more than ratios of tokens",
    "gspo",
    "grpo",
  ),
  OrderingClaim(
    "XPO, arXiv:2405.21046",
    "an exploration bonus adds to iterative DPO",
    "exploratory_dpo",
    "iterative_dpo",
  ),
  OrderingClaim(
    "SPPO, arXiv:2405.00675",
    "self-play on win rates does better than iterative DPO",
    "sppo",
    "iterative_dpo",
  ),
)


@dataclasses.dataclass(frozen=True)
class OnlineMethods:
  """Settings.

  Attributes:
    task: start, reward and sizes.
    only: names of recipes, with commas between; None: all.
    jobs: processes at once.
    show: train nothing, show the rows there are.
  """

  task: Task = dataclasses.field(default_factory=Task)
  only: str | None = None
  jobs: int = 2
  show: bool = False


def experiment() -> OnlineMethods:
  """All recipes that need no file of your own, three seeds."""
  return OnlineMethods()


def recipes(only: str | None = None) -> dict[str, Recipe]:
  """The recipes on rollouts or of several stages that need no argument, by name.

  Args:
    only: names, with commas between; None: all.

  Raises:
    ValueError: one of `only` is none of them.
  """
  known = {}
  for name in find_recipe.names("recipe"):
    if find_recipe.required(name):  # a file of one's own
      continue
    recipe = find_recipe.load(name)
    data = vars(recipe.experiment).get("data")
    if isinstance(data, Rollouts) or recipe_studies.task_of(recipe):
      known[name] = recipe
  chosen = known if only is None else only.split(",")
  unknown = sorted(set(chosen) - set(known))
  if unknown:
    raise ValueError(f"only is {unknown[0]!r}; recipes are {', '.join(known)}")
  return {name: recipe for name, recipe in known.items() if name in chosen}


def judged_runs(
  settings: OnlineMethods, chosen: Mapping[str, Recipe]
) -> list[JudgedRun]:
  """The start and every recipe on rollouts, all of the first seed first."""
  runs = []
  for seed in settings.task.seeds:
    runs.append(JudgedRun(START, seed, None))
    for name, recipe in chosen.items():
      if recipe.run is None:
        one = online_frontier.on_task(recipe.experiment, settings.task, seed=seed)
        total = one.data.iterations
        loop = Loop(log_every=total, eval_every=total, checkpoint_every=20)
        one = dataclasses.replace(one, loop=loop)
        runs.append(JudgedRun(name, seed, one, strength=total))
  return runs


def arms(settings: OnlineMethods) -> dict[str, Experiment]:
  """Every run of a recipe on rollouts, by name and seed."""
  return online_frontier.run_names(judged_runs(settings, recipes(settings.only)))


def run(settings: OnlineMethods, run_dir: Path) -> int:
  """Trains and judges what is missing, prints both tables; 1 where a recipe failed."""
  demo.environment()
  chosen = recipes(settings.only)
  study, failed = online_frontier.open_study(settings, run_dir), {}
  if not settings.show:
    studies = {
      name: (recipe_studies.run_recipe, name, settings.task, run_dir)
      for name, recipe in chosen.items()
      if recipe.run is not None
    }
    runs = judged_runs(settings, chosen)
    failed = online_frontier.measure_all(study, runs, settings.jobs, studies)
  points = online_frontier.read(study, judged_runs(settings, recipes()))
  tables = {
    "Recipes": results_table(points, settings.task, run_dir),
    "Claims": frontier_page.final_claims_table(CLAIMS, points),
  }
  frontier_page.show(run_dir, "Every recipe that learns from samples", tables)
  return processes.exit_code(failed)


def results_table(arms: ArmPoints, task: Task, run_dir: Path) -> html.Table:
  """A row a recipe; of a recipe of several stages, a row for each of its arms."""
  header = ["recipe", "true reward", "over SFT", "KL, nats", "tokens", "seconds"]
  last = {arm: [points[-1] for points in seeds.values()] for arm, seeds in arms.items()}
  rows = []
  for label, points in last.items():
    change = online_frontier.gap(points, last.get(START, ()), "reward")
    columns = ("reward", "kl", "length")
    reward, kl, length = (online_frontier.mean(points, column) for column in columns)
    cells = [reward, "" if label == START else change, kl, length]
    spent = sum(p.seconds for p in points) / len(points)
    seeds = "" if len(points) == len(task.seeds) else f" ({len(points)} seeds)"
    rows.append([label + seeds, *cells, f"{spent:.0f}"])
  for recipe, row in recipe_studies.rows(run_dir):
    if row["label"] != START:
      measured = [row.get(x) for x in ("reward", "change", "kl", "length")]
      label = f"{recipe}: {row['label']}"
      rows.append([label, *map(_cell, measured), f"{row['seconds']:.0f}"])
  caption = (
    f"Mean [95 %] over {task.eval_prompts} held-out prompts x {task.eval_samples} "
    "samples and the seeds; reward: the task's true reward; over SFT: paired; KL to "
    "SFT; seconds of a seed's run, of recipes of several stages all seeds together."
  )
  return html.Table(header, rows, caption)


def _cell(x: Any) -> str:
  if x is None:
    return ""
  return str(Interval(**x)) if isinstance(x, dict) else f"{x:.3g}"
